from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootwright.errors import BootwrightError, ImageError
from bootwright.oci.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MAX_MANIFEST_SIZE,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    Platform,
    check_config,
    parse_config,
    parse_manifest,
    select_platform,
)

DIGEST = "sha256:" + "a" * 64


def descriptor(**fields: Any) -> dict[str, Any]:
    return {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": DIGEST, "size": 7, **fields}


def manifest(**fields: Any) -> bytes:
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(mediaType="application/vnd.oci.image.config.v1+json"),
            "layers": [descriptor()],
            **fields,
        }
    ).encode()


def config(**fields: Any) -> bytes:
    document = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [DIGEST]}}
    return json.dumps({**document, **fields}).encode()


def entry(architecture: str, variant: str = "", **fields: Any) -> Descriptor:
    return Descriptor(OCI_MANIFEST, DIGEST, 1, platform=Platform(architecture, "linux", variant), **fields)


def test_parse() -> None:
    parsed = parse_manifest(manifest(annotations={"a": "b"}), OCI_MANIFEST)
    assert isinstance(parsed, Manifest)
    assert parsed.annotations == {"a": "b"}
    assert str(parsed.layers[0].digest) == DIGEST
    assert parsed.layers[0].size == 7


@pytest.mark.parametrize(
    "said", [None, "", "text/plain", "application/json; charset=utf-8", "application/octet-stream"]
)
def test_the_document_decides_when_nobody_says(said: str | None) -> None:
    assert isinstance(parse_manifest(manifest(), said), Manifest)
    document = json.loads(manifest())
    del document["mediaType"]
    assert isinstance(parse_manifest(json.dumps(document).encode(), said), Manifest)
    index = {"schemaVersion": 2, "manifests": [descriptor()]}
    assert isinstance(parse_manifest(json.dumps(index).encode(), said), Index)


def test_media_type_with_parameters_and_capitals() -> None:
    said = "Application/vnd.oci.image.manifest.v1+JSON; charset=utf-8"
    assert isinstance(parse_manifest(manifest(), said), Manifest)


def test_docker_types() -> None:
    assert isinstance(parse_manifest(manifest(mediaType=DOCKER_MANIFEST), DOCKER_MANIFEST), Manifest)
    index = {"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [descriptor()]}
    assert isinstance(parse_manifest(json.dumps(index).encode(), DOCKER_LIST), Index)


@pytest.mark.parametrize(
    ("data", "said", "reason"),
    [
        pytest.param(b"", None, "no JSON", id="empty"),
        pytest.param(b"[]", None, "no JSON object", id="list"),
        pytest.param(b"\xff\xfe", None, "no JSON", id="no-utf8"),
        pytest.param(b'{"a":' * 5000, None, "no JSON", id="deep"),
        pytest.param(b" " * (MAX_MANIFEST_SIZE + 1), None, "larger than 4 MiB", id="large"),
        pytest.param(manifest(schemaVersion=1), None, "schema 1", id="schema-1"),
        pytest.param(
            manifest(), "application/vnd.docker.distribution.manifest.v1+prettyjws", "schema 1", id="schema-1-type"
        ),
        pytest.param(manifest(fsLayers=[]), None, "mixes", id="schema-1-mixed"),
        pytest.param(manifest(schemaVersion=3), None, "schema version 3", id="version"),
        pytest.param(manifest(schemaVersion="2"), None, "malformed", id="version-text"),
        pytest.param(manifest(manifests=[]), None, "both an index and an image", id="ambiguous"),
        pytest.param(manifest(), OCI_INDEX, "announced as", id="other-type"),
        pytest.param(manifest(mediaType=5), None, "no text", id="type-number"),
        pytest.param(manifest(mediaType="x/y"), None, "unknown media type 'x/y'", id="unknown-type"),
        pytest.param(manifest(mediaType=OCI_INDEX), None, "not its content", id="index-without-manifests"),
        pytest.param(manifest(layers=None), None, "malformed", id="no-layers"),
        pytest.param(manifest(layers=[descriptor()] * 1001), None, "malformed", id="many-layers"),
        pytest.param(manifest(config=None), None, "malformed", id="no-config"),
        pytest.param(manifest(layers=[descriptor(size=-1)]), None, r"layers\[0\]|layers\[\.\.\.\]", id="negative"),
        pytest.param(manifest(layers=[descriptor(size=True)]), None, "malformed", id="bool"),
        pytest.param(manifest(layers=[descriptor(size=1.5)]), None, "malformed", id="float"),
        pytest.param(manifest(layers=[descriptor(size="7")]), None, "malformed", id="text"),
        pytest.param(manifest(layers=[descriptor(size=1 << 63)]), None, "malformed", id="absurd"),
        pytest.param(manifest(layers=[descriptor(size=10**30)]), None, "malformed", id="astronomic"),
        pytest.param(manifest(layers=[descriptor(digest="sha256:../../x")]), None, "malformed", id="digest-path"),
        pytest.param(manifest(layers=[descriptor(digest="md5:" + "a" * 32)]), None, "malformed", id="digest-md5"),
        pytest.param(manifest(layers=[descriptor(digest=DIGEST.upper())]), None, "malformed", id="digest-upper"),
        pytest.param(manifest(layers=[descriptor(digest=None)]), None, "malformed", id="digest-null"),
        pytest.param(manifest(annotations={"a": 1}), None, "malformed", id="annotation-number"),
    ],
)
def test_refuse(data: bytes, said: str | None, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        parse_manifest(data, said)


def test_config() -> None:
    parsed = parse_config(config(config={"Labels": {"version": "1"}, "Env": ["A=b"]}, created="2026-01-01T00:00:00Z"))
    assert parsed.labels == {"version": "1"}
    assert [str(digest) for digest in parsed.diff_ids] == [DIGEST]
    assert parse_config(config(config={"Labels": None})).labels == {}
    assert parse_config(config(config=None, history=None)).labels == {}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"{}", "malformed", id="empty"),
        pytest.param(config(rootfs={"type": "x", "diff_ids": []}), "unknown type", id="rootfs-type"),
        pytest.param(config(rootfs={"type": "layers", "diff_ids": ["x"]}), "is not a digest", id="diff-id"),
        pytest.param(config(rootfs={"type": "layers", "diff_ids": [None]}), "malformed", id="diff-id-null"),
        pytest.param(config(architecture=3), "malformed", id="architecture"),
        pytest.param(b" " * ((4 << 20) + 1), "larger", id="large"),
    ],
)
def test_refuse_config(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        parse_config(data)


def test_config_must_fit_manifest_and_machine() -> None:
    parsed = parse_manifest(manifest())
    assert isinstance(parsed, Manifest)
    check_config(parsed, parse_config(config()), architecture="amd64")
    with pytest.raises(ImageError, match="has 1 layers, but its config names 2"):
        check_config(
            parsed,
            parse_config(config(rootfs={"type": "layers", "diff_ids": [DIGEST] * 2})),
            architecture="amd64",
        )
    with pytest.raises(ImageError, match="'amd64', this machine is 'arm64'") as caught:
        check_config(parsed, parse_config(config()), architecture="arm64")
    assert "arm64" in (caught.value.hint or "")
    with pytest.raises(ImageError, match="operating system 'windows'"):
        check_config(parsed, parse_config(config(os="windows")), architecture="amd64")


@pytest.mark.parametrize(
    ("present", "wanted", "chosen"),
    [
        pytest.param([("amd64", ""), ("arm64", "v8")], ("arm64", ""), 1, id="arm64-means-v8"),
        pytest.param([("arm64", "")], ("arm64", ""), 0, id="arm64-without-variant"),
        pytest.param([("arm64", ""), ("arm64", "v8")], ("arm64", ""), 1, id="exact-before-none"),
        pytest.param([("arm64", "v9"), ("arm64", "v8")], ("arm64", ""), 1, id="not-a-newer-one"),
        pytest.param([("arm64", "v8")], ("arm64", "v9"), 0, id="newer-machine"),
        pytest.param([("arm", "v5"), ("arm", "v6"), ("arm", "v8")], ("arm", "v7"), 1, id="arm-ladder"),
        pytest.param([("amd64", "v3"), ("amd64", "")], ("amd64", ""), 1, id="amd64-plain"),
        pytest.param([("amd64", "v4"), ("amd64", "v2")], ("amd64", "v3"), 1, id="amd64-ladder"),
        pytest.param([("amd64", ""), ("amd64", "")], ("amd64", ""), 0, id="first-wins"),
        pytest.param([("s390x", ""), ("riscv64", "")], ("riscv64", ""), 1, id="no-variants"),
    ],
)
def test_select_platform(present: list[tuple[str, str]], wanted: tuple[str, str], chosen: int) -> None:
    index = Index(2, [entry(*platform) for platform in present])
    assert select_platform(index, *wanted) is index.manifests[chosen]


def test_attestations_and_artifacts_are_passed_over() -> None:
    image = entry("amd64")
    unknown = Descriptor(OCI_MANIFEST, DIGEST, 1, platform=Platform("unknown", "unknown"))
    artifact = entry("amd64", artifact_type="application/spdx+json")
    annotated = entry("amd64", annotations={"vnd.docker.reference.type": "attestation-manifest"})
    bare = Descriptor(OCI_MANIFEST, DIGEST, 1)
    assert select_platform(Index(2, [unknown, artifact, annotated, bare, image]), "amd64") is image
    assert select_platform(Index(2, [unknown, entry("s390x"), bare]), "amd64") is bare
    with pytest.raises(ImageError, match="without any image"):
        select_platform(Index(2, [unknown, artifact]), "amd64")


def test_no_platform_names_what_there_is() -> None:
    with pytest.raises(ImageError, match=r"no image for 'linux/amd64', only for 'linux/arm64/v8', 'linux/s390x'"):
        select_platform(Index(2, [entry("s390x"), entry("arm64", "v8")]), "amd64")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=10), children, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(sorted(json.loads(manifest()))), json_values, max_size=3))
def test_any_document_is_parsed_or_refused(changes: dict[str, Any]) -> None:
    for parse in (parse_manifest, parse_config):
        with contextlib.suppress(BootwrightError):
            parse(manifest(**changes))
