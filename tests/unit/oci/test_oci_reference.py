from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootwright.digest import Digest
from bootwright.errors import BootwrightError, UsageError
from bootwright.oci.reference import ImageReference

HEX = "a" * 64


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        pytest.param("docker://quay.io/a/b:c", "docker://quay.io/a/b:c", id="full"),
        pytest.param("docker://quay.io/a/b", "docker://quay.io/a/b:latest", id="latest"),
        pytest.param("docker://debian", "docker://docker.io/library/debian:latest", id="hub-official"),
        pytest.param("docker://me/img:1", "docker://docker.io/me/img:1", id="hub-user"),
        pytest.param("docker://index.docker.io/me/img", "docker://docker.io/me/img:latest", id="hub-old-name"),
        pytest.param("docker://docker.io/debian:13", "docker://docker.io/library/debian:13", id="hub-short"),
        pytest.param("docker://localhost/x", "docker://localhost/x:latest", id="localhost"),
        pytest.param("docker://host:5000/x/y", "docker://host:5000/x/y:latest", id="port"),
        pytest.param("docker://[::1]:5000/x:y", "docker://[::1]:5000/x:y", id="ipv6"),
        pytest.param("docker://MyHost/x:Y", "docker://MyHost/x:Y", id="upper-case-host-and-tag"),
        pytest.param("docker://a.b/x__y-z--q.1/w", "docker://a.b/x__y-z--q.1/w:latest", id="separators"),
        pytest.param(f"docker://a.b/x@sha256:{HEX}", f"docker://a.b/x@sha256:{HEX}", id="digest"),
        pytest.param(f"docker://a.b/x:t@sha256:{HEX}", f"docker://a.b/x:t@sha256:{HEX}", id="tag-and-digest"),
        pytest.param("registry:a.b/x:t", "docker://a.b/x:t", id="transport-of-bootc"),
        pytest.param("oci:dir", "oci:dir", id="layout"),
        pytest.param("oci:/var/Dir/x:v1", "oci:/var/Dir/x:v1", id="layout-tag"),
        pytest.param("oci:/d:reg.io/a:b", "oci:/d:reg.io/a:b", id="layout-tag-with-colon"),
    ],
)
def test_parse(text: str, canonical: str) -> None:
    reference = ImageReference.parse(text)
    assert str(reference) == canonical
    assert ImageReference.parse(str(reference)) == reference
    assert ImageReference.parse(reference.image, default_transport=reference.transport) == reference
    assert pickle.loads(pickle.dumps(reference)) == reference


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("docker://quay.io/A/b", "must be lower case", id="upper-case"),
        pytest.param("docker://Debian", "must be lower case", id="upper-case-short"),
        pytest.param("docker://", "names no image", id="empty"),
        pytest.param("docker://quay.io/", "no image reference", id="no-path"),
        pytest.param("docker://quay.io/a//b", "no image reference", id="double-slash"),
        pytest.param("docker://quay.io/../b", "no image reference", id="dots"),
        pytest.param("docker://quay.io/a_-b", "no image reference", id="separators"),
        pytest.param("docker://quay.io/-a", "no image reference", id="leading-separator"),
        pytest.param("docker://quay.io/a:", "is no tag", id="empty-tag"),
        pytest.param("docker://quay.io/a:.x", "is no tag", id="dot-tag"),
        pytest.param("docker://quay.io/a:" + "x" * 129, "is no tag", id="long-tag"),
        pytest.param("docker://quay.io/a@sha256:xyz", "is no digest", id="bad-digest"),
        pytest.param("docker://quay.io/a@", "is no digest", id="empty-digest"),
        pytest.param(f"docker://{HEX}", "image id", id="image-id"),
        pytest.param("docker://quay.io:99999/a", "is no port", id="port-range"),
        pytest.param("docker://quay.io:/a", "is no host", id="port-empty"),
        pytest.param("docker://user@quay.io/a", "is no digest", id="user"),
        pytest.param("docker://a.b/" + "x" * 300, "longer than 255", id="long"),
        pytest.param("docker://quay.io/a?b", "no image reference", id="query"),
        pytest.param("docker://quay.io/a\nb", "names no image", id="newline"),
        pytest.param("oci:", "names no image", id="layout-empty"),
        pytest.param("oci::v1", "names no OCI layout", id="layout-no-path"),
        pytest.param("oci:dir:", "names no OCI layout", id="layout-empty-tag"),
        pytest.param("oci-archive:x.tar", "'oci-archive'", id="foreign-transport"),
        pytest.param("containers-storage:x", "'containers-storage'", id="foreign-storage"),
        pytest.param("quay.io/a:b", "does not say where", id="bare-without-default"),
    ],
)
def test_refuse(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        ImageReference.parse(text)


def test_bare_reference_with_the_transport_given() -> None:
    assert str(ImageReference.parse("127.0.0.1:5055/os:v1", default_transport="registry")) == (
        "docker://127.0.0.1:5055/os:v1"
    )
    assert ImageReference.parse("/x/y:v1", default_transport="oci").path == "/x/y"
    assert ImageReference.parse("oci:/x", default_transport="registry").transport == "oci"


def test_digest_wins_over_the_tag() -> None:
    reference = ImageReference.parse(f"docker://a.b/x:t@sha256:{HEX}")
    assert (reference.tag, reference.digest) == ("t", Digest("sha256", HEX))
    assert reference.canonical.image == f"a.b/x@sha256:{HEX}"
    assert reference.with_tag("new").image == "a.b/x:new"
    assert ImageReference.parse("docker://a.b/x:t").with_digest(Digest("sha256", HEX)).image == f"a.b/x@sha256:{HEX}"


def test_with_tag_checks() -> None:
    with pytest.raises(UsageError, match="is no tag"):
        ImageReference.parse("docker://a.b/x").with_tag("a b")
    with pytest.raises(UsageError, match="empty"):
        ImageReference.parse("oci:x").with_tag("")
    assert str(ImageReference.parse("oci:x").with_tag("v2")) == "oci:x:v2"


def test_docker_hub_connects_elsewhere() -> None:
    assert ImageReference.parse("docker://debian").endpoint == "registry-1.docker.io"
    assert ImageReference.parse("docker://quay.io/x").endpoint == "quay.io"


@given(st.text(max_size=80))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for transport in ("registry", "oci"):
        try:
            reference = ImageReference.parse(text, default_transport=transport)
        except BootwrightError:
            continue
        assert ImageReference.parse(str(reference)) == reference
