"""Origin files as bootc writes and as other tools wrote them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootwright.deploy.model import CachedUpdate, ImageFacts, Origin, is_deployment_id
from bootwright.errors import DeploymentError
from bootwright.oci.reference import ImageReference

DIGEST = "sha256:" + "0d" * 32
BOOTC = f"""\
[origin]
container-image-reference = ostree-unverified-image:docker://registry.example.net/edge/os:prod
[boot]
boot_type = bls
digest = {"5b" * 32}
[image]
manifest_digest = {DIGEST}
"""


def test_bootcs_file_survives() -> None:
    origin = Origin.parse(BOOTC)
    assert origin.format() == BOOTC
    assert origin.image == ImageFacts(
        image="registry.example.net/edge/os:prod", transport="registry", manifest_digest=DIGEST
    )
    assert (origin.boot_type, origin.boot_digest, origin.is_incompatible) == ("bls", "5b" * 32, False)
    assert str(origin.get_reference()) == "docker://registry.example.net/edge/os:prod"


@pytest.mark.parametrize(
    ("text", "signature", "transport", "image"),
    [
        ("ostree-unverified-image:docker://a/b:c", None, "registry", "a/b:c"),
        ("ostree-unverified-image:registry:a.io/b:c", None, "registry", "a.io/b:c"),
        ("ostree-unverified-image:oci:/path:tag", None, "oci", "/path:tag"),
        ("ostree-unverified-registry:quay.io/b:c", None, "registry", "quay.io/b:c"),
        ("ostree-image-signed:docker://a.io/b", "containerPolicy", "registry", "a.io/b"),
        ("ostree-remote-image:fedora:docker://q.io/b", "ostreeRemote:fedora", "registry", "q.io/b"),
        ("ostree-remote-registry:fedora:q.io/b:c", "ostreeRemote:fedora", "registry", "q.io/b:c"),
        ("quay.io/b:c", None, "registry", "quay.io/b:c"),
    ],
)
def test_references(text: str, signature: str | None, transport: str, image: str) -> None:
    facts = Origin.parse(f"[origin]\ncontainer-image-reference={text}\n").image
    assert facts is not None
    assert (facts.signature, facts.transport, facts.image) == (signature, transport, image)


def test_make_and_change() -> None:
    origin = Origin.make(
        ImageReference.parse("oci:/layout:v1"),
        manifest_digest=DIGEST,
        boot_digest="ab" * 32,
        version="1\n[evil]\nx = y",
        created="2026-01-01T00:00:00Z",
        architecture="amd64",
    )
    again = Origin.parse(origin.format())
    assert again == origin, "a value cannot add lines"
    assert again.image is not None
    assert again.image.version == "1 [evil] x = y"
    moved = origin.tracking(ImageReference.parse("docker://a.io/b:c")).with_image(
        manifest_digest="sha256:" + "aa" * 32, version=None, created=None
    )
    assert moved.image is not None
    assert (moved.image.image, moved.image.version, moved.boot_digest) == ("a.io/b:c", None, "ab" * 32)


def test_unknown_sections_and_comments() -> None:
    origin = Origin.parse("# c\n; d\n[packages]\nrequested=vim\n[origin]\nrefspec=x\n")
    assert origin.is_incompatible
    assert origin.image is None
    assert "requested = vim" in origin.format()
    with pytest.raises(DeploymentError, match="does not say which image"):
        origin.get_reference()


@pytest.mark.parametrize("text", ["no section\n", "key = before section\n", "[a\nb\n"])
def test_damaged(text: str) -> None:
    with pytest.raises(DeploymentError):
        Origin.parse(text)


@given(st.text(max_size=200))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        origin = Origin.parse(text)
    except DeploymentError:
        return
    assert Origin.parse(origin.format()).values == origin.values


def test_cached_update() -> None:
    update = CachedUpdate(ImageFacts(image="a/b", transport="registry", manifest_digest=DIGEST, version="2"))
    assert CachedUpdate.from_json(update.to_json()) == update
    for text in ("", "[]", "{}", '{"image": 1}', "null"):
        with pytest.raises(DeploymentError):
            CachedUpdate.from_json(text)


@pytest.mark.parametrize(
    ("text", "is_id"),
    [("a" * 64, True), ("0" * 128, True), ("A" * 64, False), ("a" * 63, False), ("../" + "a" * 61, False), ("", False)],
)
def test_names_of_deployments(text: str, is_id: bool) -> None:
    assert is_deployment_id(text) is is_id
