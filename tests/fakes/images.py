"""Builds small real OCI images: for an OCI layout on disk or for the registry in ``fakes.registry``.

image = ImageBuilder().add_layer([directory("etc"), file("etc/os-release", b"ID=x\n")]).build()
image.write_layout(tmp_path / "oci", tag="v1")
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import zstandard

Compression = Literal["gzip", "zstd", "none"]
Entry = tuple[tarfile.TarInfo, bytes]

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
REF_NAME = "org.opencontainers.image.ref.name"


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


# --- entries


def _entry(name: str, kind: bytes, data: bytes = b"", **fields: Any) -> Entry:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.size = len(data)
    xattrs: dict[str, bytes] = fields.pop("xattrs", None) or {}
    # Latin-1 in, surrogates for what is no UTF-8: tarfile writes the value back as the same bytes.
    member.pax_headers = {
        f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape") for key, value in xattrs.items()
    }
    for key, value in fields.items():
        setattr(member, key, value)
    return member, data


def file(name: str, data: bytes = b"", *, mode: int = 0o644, **fields: Any) -> Entry:
    return _entry(name, tarfile.REGTYPE, data, mode=mode, **fields)


def directory(name: str, *, mode: int = 0o755, **fields: Any) -> Entry:
    return _entry(name, tarfile.DIRTYPE, mode=mode, **fields)


def symlink(name: str, target: str, **fields: Any) -> Entry:
    return _entry(name, tarfile.SYMTYPE, linkname=target, mode=0o777, **fields)


def hardlink(name: str, target: str, **fields: Any) -> Entry:
    return _entry(name, tarfile.LNKTYPE, linkname=target, **fields)


def device(name: str, major: int, minor: int, *, is_block: bool = False, mode: int = 0o600, **fields: Any) -> Entry:
    kind = tarfile.BLKTYPE if is_block else tarfile.CHRTYPE
    return _entry(name, kind, devmajor=major, devminor=minor, mode=mode, **fields)


def fifo(name: str, *, mode: int = 0o644, **fields: Any) -> Entry:
    return _entry(name, tarfile.FIFOTYPE, mode=mode, **fields)


def whiteout(path: str) -> Entry:
    """The entry that removes a path of a lower layer."""
    parent, slash, name = path.rpartition("/")
    return file(f"{parent}{slash}.wh.{name}")


def opaque(path: str) -> Entry:
    """The entry that empties a directory of the lower layers."""
    return file(f"{path}/.wh..wh..opq")


def make_tar(entries: Iterable[Entry], *, tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=tar_format, encoding="utf-8", errors="surrogateescape"
    ) as archive:
        for member, data in entries:
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def compress(data: bytes, compression: Compression) -> bytes:
    if compression == "gzip":
        return gzip.compress(data, 6, mtime=0)
    if compression == "zstd":
        return zstandard.ZstdCompressor().compress(data)
    return data


# --- images


@dataclass
class BuiltImage:
    """An image or an index: every blob that belongs to it, and the descriptor of its top."""

    blobs: dict[str, bytes]
    descriptor: dict[str, Any]
    layer_digests: list[str] = field(default_factory=list)
    config_digest: str = ""
    diff_ids: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """Digest of the manifest or index."""
        return str(self.descriptor["digest"])

    @property
    def manifest_bytes(self) -> bytes:
        return self.blobs[self.digest]

    @property
    def media_type(self) -> str:
        return str(self.descriptor["mediaType"])

    def write_layout(self, path: Path, tag: str | None = None) -> Path:
        """Write or extend an OCI layout; returns its path."""
        blobs = path / "blobs" / "sha256"
        blobs.mkdir(parents=True, exist_ok=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        for digest, data in self.blobs.items():
            (blobs / digest.removeprefix("sha256:")).write_bytes(data)
        index = path / "index.json"
        manifests: list[dict[str, Any]] = json.loads(index.read_text())["manifests"] if index.exists() else []
        entry = dict(self.descriptor)
        if tag is not None:
            entry["annotations"] = {**entry.get("annotations", {}), REF_NAME: tag}
        manifests = [old for old in manifests if tag is None or old.get("annotations", {}).get(REF_NAME) != tag]
        index.write_text(json.dumps({"schemaVersion": 2, "manifests": [*manifests, entry]}))
        return path


class ImageBuilder:
    """Collects layers and metadata, then builds one image for one platform."""

    def __init__(
        self,
        *,
        architecture: str = "amd64",
        variant: str | None = None,
        os: str = "linux",
        labels: dict[str, str] | None = None,
        annotations: dict[str, str] | None = None,
        created: str | None = "2026-01-02T03:04:05Z",
        docker: bool = False,
    ) -> None:
        self.architecture = architecture
        self.variant = variant
        self.os = os
        self.labels = labels or {}
        self.annotations = annotations or {}
        self.created = created
        self.docker = docker
        self._layers: list[tuple[dict[str, Any], bytes, str]] = []

    def add_layer(
        self, entries: Sequence[Entry], compression: Compression = "gzip", *, tar_format: int = tarfile.PAX_FORMAT
    ) -> ImageBuilder:
        return self.add_layer_tar(make_tar(entries, tar_format=tar_format), compression)

    def add_layer_tar(self, tar: bytes, compression: Compression = "gzip") -> ImageBuilder:
        suffix = {"gzip": "+gzip", "zstd": "+zstd", "none": ""}[compression]
        media_type = LAYER + suffix
        if self.docker:
            media_type = "application/vnd.docker.image.rootfs.diff.tar" + suffix.replace("+", ".")
        return self.add_layer_blob(compress(tar, compression), media_type, diff_id=sha256(tar))

    def add_layer_blob(self, blob: bytes, media_type: str, *, diff_id: str) -> ImageBuilder:
        """Add a blob as it is: for layers that are wrong in some way."""
        descriptor = {"mediaType": media_type, "digest": sha256(blob), "size": len(blob)}
        self._layers.append((descriptor, blob, diff_id))
        return self

    def build(self) -> BuiltImage:
        config: dict[str, Any] = {
            "architecture": self.architecture,
            "os": self.os,
            "config": {"Labels": self.labels or None},
            "rootfs": {"type": "layers", "diff_ids": [diff_id for _, _, diff_id in self._layers]},
            "history": [{"created_by": f"layer {n}"} for n in range(len(self._layers))],
        }
        if self.created is not None:
            config["created"] = self.created
        if self.variant is not None:
            config["variant"] = self.variant
        return assemble(
            config,
            [descriptor for descriptor, _, _ in self._layers],
            [blob for _, blob, _ in self._layers],
            annotations=self.annotations,
            docker=self.docker,
        )


def assemble(
    config: dict[str, Any],
    layers: list[dict[str, Any]],
    layer_blobs: list[bytes],
    *,
    annotations: dict[str, str] | None = None,
    docker: bool = False,
) -> BuiltImage:
    """Put an image together from documents that need not be right."""
    config_bytes = json.dumps(config).encode()
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST if docker else OCI_MANIFEST,
        "config": {
            "mediaType": DOCKER_CONFIG if docker else OCI_CONFIG,
            "digest": sha256(config_bytes),
            "size": len(config_bytes),
        },
        "layers": layers,
    }
    if annotations:
        manifest["annotations"] = annotations
    manifest_bytes = json.dumps(manifest).encode()
    platform = {"architecture": config.get("architecture"), "os": config.get("os")}
    if config.get("variant"):
        platform["variant"] = config["variant"]
    blobs = {sha256(blob): blob for blob in [*layer_blobs, config_bytes, manifest_bytes]}
    return BuiltImage(
        blobs=blobs,
        descriptor={
            "mediaType": manifest["mediaType"],
            "digest": sha256(manifest_bytes),
            "size": len(manifest_bytes),
            "platform": platform,
        },
        layer_digests=[layer["digest"] for layer in layers],
        config_digest=sha256(config_bytes),
        diff_ids=list(config.get("rootfs", {}).get("diff_ids", [])),
    )


def attestation() -> BuiltImage:
    """What BuildKit adds to an index: a manifest for the platform unknown/unknown."""
    image = assemble({"architecture": "unknown", "os": "unknown", "rootfs": {"type": "layers", "diff_ids": []}}, [], [])
    image.descriptor["platform"] = {"architecture": "unknown", "os": "unknown"}
    image.descriptor["annotations"] = {"vnd.docker.reference.type": "attestation-manifest"}
    return image


def build_index(images: Sequence[BuiltImage], *, docker: bool = False) -> BuiltImage:
    """Make an index over images (or over other indexes)."""
    index = {
        "schemaVersion": 2,
        "mediaType": DOCKER_LIST if docker else OCI_INDEX,
        "manifests": [image.descriptor for image in images],
    }
    index_bytes = json.dumps(index).encode()
    blobs = {digest: blob for image in images for digest, blob in image.blobs.items()}
    blobs[sha256(index_bytes)] = index_bytes
    descriptor = {"mediaType": index["mediaType"], "digest": sha256(index_bytes), "size": len(index_bytes)}
    return BuiltImage(blobs=blobs, descriptor=descriptor)
