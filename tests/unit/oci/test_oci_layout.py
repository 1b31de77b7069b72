from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bootwright.digest import Digest
from bootwright.errors import BootwrightError, ImageError, NotFoundError, VerificationError
from bootwright.oci.layer import TarReader, open_layer
from bootwright.oci.layout import LayoutWriter, read_index
from bootwright.oci.manifest import Descriptor
from bootwright.oci.reference import ImageReference
from bootwright.oci.source import ResolvedImage, SourceOptions, open_source
from fakes.images import ImageBuilder, attestation, build_index, directory, file

OPTIONS = SourceOptions(architecture="amd64")


def image(name: str = "x", **fields: str) -> ImageBuilder:
    return ImageBuilder(**fields).add_layer([directory("etc"), file("etc/name", name.encode())])  # type: ignore[arg-type]


def resolve(path: Path, tag: str | None = None, options: SourceOptions = OPTIONS) -> ResolvedImage:
    with open_source(ImageReference(transport="oci", path=str(path), tag=tag), options) as source:
        return source.resolve()


def test_read(tmp_path: Path) -> None:
    built = image(labels={"version": "7"}).add_layer([file("b", b"b" * 5000)], "zstd").build()  # type: ignore[arg-type]
    built.write_layout(tmp_path, "v1")
    reference = ImageReference.parse(f"oci:{tmp_path}:v1")
    with open_source(reference, OPTIONS) as source:
        resolved = source.resolve()
        assert str(resolved.manifest_digest) == built.digest
        assert resolved.manifest_bytes == built.manifest_bytes
        assert resolved.config.labels == {"version": "7"}
        names = []
        for descriptor, diff_id in zip(resolved.manifest.layers, resolved.config.diff_ids, strict=True):
            with source.open_blob(descriptor) as blob:
                layer = open_layer(blob, descriptor.media_type, diff_id=diff_id)
                reader = TarReader(layer.read)
                names += [entry.name for entry in reader]
                assert reader.trailer
        assert names == [b"etc", b"etc/name", b"b"]


def test_one_image_needs_no_tag(tmp_path: Path) -> None:
    built = image().build()
    built.write_layout(tmp_path, "v1")
    assert str(resolve(tmp_path).manifest_digest) == built.digest
    image("y").build().write_layout(tmp_path, "v2")
    with pytest.raises(NotFoundError, match="2 images and no tag") as caught:
        resolve(tmp_path)
    assert "v1, v2" in (caught.value.hint or "")
    with pytest.raises(NotFoundError, match="no tag 'v3'") as caught:
        resolve(tmp_path, "v3")
    assert "v1, v2" in (caught.value.hint or "")


def test_index_is_resolved_to_the_platform(tmp_path: Path) -> None:
    arm = image("arm", architecture="arm64", variant="v8").build()
    amd = image("amd").build()
    index = build_index([attestation(), arm, build_index([amd])])
    # A nested index has no platform, so it is the last resort, but the only one for amd64.
    index.write_layout(tmp_path, "v1")
    assert str(resolve(tmp_path, "v1").manifest_digest) == amd.digest
    assert str(resolve(tmp_path, "v1", SourceOptions(architecture="arm64")).manifest_digest) == arm.digest


def test_wrong_architecture(tmp_path: Path) -> None:
    image(architecture="arm64").build().write_layout(tmp_path, "v1")
    with pytest.raises(ImageError, match="'arm64', this machine is 'amd64'"):
        resolve(tmp_path, "v1")


def test_index_of_indexes_of_indexes(tmp_path: Path) -> None:
    nested = build_index([image().build()])
    for _ in range(5):
        nested = build_index([nested])
    nested.write_layout(tmp_path, "v1")
    with pytest.raises(ImageError, match="indexes within indexes"):
        resolve(tmp_path, "v1")


def test_artifact_is_no_image(tmp_path: Path) -> None:
    built = image().build()
    document = json.loads(built.manifest_bytes)
    document["config"]["mediaType"] = "application/vnd.oci.empty.v1+json"
    document["artifactType"] = "application/spdx+json"
    writer = LayoutWriter(str(tmp_path))
    data = json.dumps(document).encode()
    writer.publish(Descriptor(built.media_type, str(writer.write_blob(data)), len(data)), "v1")
    with pytest.raises(ImageError, match="artifact of the type 'application/spdx"):
        resolve(tmp_path, "v1")


def test_missing_things(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no OCI layout"):
        resolve(tmp_path / "nowhere")
    built = image().build()
    built.write_layout(tmp_path, "v1")
    blobs = tmp_path / "blobs/sha256"
    (blobs / built.config_digest[7:]).unlink()
    with pytest.raises(NotFoundError, match="no blob"):
        resolve(tmp_path, "v1")
    os.mkfifo(blobs / built.config_digest[7:])
    with pytest.raises(ImageError, match="no regular file"):
        resolve(tmp_path, "v1")


def test_damaged_blobs(tmp_path: Path) -> None:
    built = image().build()
    built.write_layout(tmp_path, "v1")
    path = tmp_path / "blobs/sha256" / built.config_digest[7:]
    good = path.read_bytes()
    for bad, reason in [(good[:-1], "ends after"), (good + b" ", "longer than"), (good[:-1] + b" ", "has the digest")]:
        path.write_bytes(bad)
        with pytest.raises(VerificationError, match=reason):
            resolve(tmp_path, "v1")


@pytest.mark.parametrize("content", [b"", b"{}", b'{"schemaVersion": 2, "manifests": [{"digest": 5}]}', b"\xff"])
def test_malformed_index(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "index.json").write_bytes(content)
    with pytest.raises(ImageError, match=r"index\.json"):
        resolve(tmp_path)


def test_write_and_read_back(tmp_path: Path) -> None:
    target = tmp_path / "out"
    built = image().build()
    writer = LayoutWriter(str(target))
    for digest, blob in built.blobs.items():
        assert not writer.has_blob(Digest.parse(digest), len(blob))
        written, size = writer.write_blob_pieces([blob[:10], blob[10:]], expected=Digest.parse(digest))
        assert (str(written), size) == (digest, len(blob))
        assert writer.has_blob(written, size)
    descriptor = Descriptor(built.media_type, built.digest, len(built.manifest_bytes))
    writer.publish(descriptor, "v1")
    writer.publish(descriptor, "v2")
    writer.publish(descriptor, "v1")
    index = read_index(str(target))
    assert [entry.annotations for entry in index.manifests] == [
        {"org.opencontainers.image.ref.name": "v2"},
        {"org.opencontainers.image.ref.name": "v1"},
    ]
    assert str(resolve(target, "v1").manifest_digest) == built.digest
    assert json.loads((target / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}


def test_publishing_replaces_the_tag(tmp_path: Path) -> None:
    first, second = image("a").build(), image("b").build()
    first.write_layout(tmp_path, "v1")
    writer = LayoutWriter(str(tmp_path))
    for blob in second.blobs.values():
        writer.write_blob(blob)
    writer.publish(Descriptor(second.media_type, second.digest, len(second.manifest_bytes)), "v1")
    assert str(resolve(tmp_path, "v1").manifest_digest) == second.digest
    writer.publish(Descriptor(first.media_type, first.digest, len(first.manifest_bytes)), None)
    writer.publish(Descriptor(first.media_type, first.digest, len(first.manifest_bytes)), None)
    assert len(read_index(str(tmp_path)).manifests) == 2


def test_wrong_blob_leaves_nothing(tmp_path: Path) -> None:
    writer = LayoutWriter(str(tmp_path))
    with pytest.raises(VerificationError, match="blob to be written"):
        writer.write_blob_pieces([b"x"], expected=Digest.of(b"y"))
    assert list((tmp_path / "blobs/sha256").iterdir()) == []


def test_unwritable_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BootwrightError, match="cannot create the OCI layout"):
        LayoutWriter(str(tmp_path / "file"))
