"""Manifests, indexes and image configs as typed values. Pure.

Media types are those of the OCI image specification 1.1 and of Docker's image manifest version 2, schema 2. What a
registry says is parsed strictly: sizes and digests are checked before anybody uses them, a document that could be
read as two kinds is refused (CVE-2021-41190), and nothing above the size limits is looked at.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec

from bootwright.digest import Digest
from bootwright.errors import ImageError, VerificationError

__all__ = [
    "CONFIG_TYPES",
    "INDEX_TYPES",
    "MANIFEST_TYPES",
    "MAX_CONFIG_SIZE",
    "MAX_MANIFEST_SIZE",
    "ContainerConfig",
    "Descriptor",
    "History",
    "ImageConfig",
    "Index",
    "Manifest",
    "Platform",
    "RootFs",
    "check_config",
    "parse_config",
    "parse_manifest",
    "select_platform",
]

MAX_MANIFEST_SIZE = 4 << 20
MAX_CONFIG_SIZE = 4 << 20
_MAX_LAYERS = 1000
_MAX_INDEX_ENTRIES = 1000
_MAX_SIZE = (1 << 63) - 1

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

MANIFEST_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES = (OCI_INDEX, DOCKER_LIST)
CONFIG_TYPES = (OCI_CONFIG, DOCKER_CONFIG)
_SCHEMA1_TYPES = (
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)
# Answers with these types say nothing about the document; its own fields do.
_VAGUE_TYPES = ("", "text/plain", "application/json", "application/octet-stream", "binary/octet-stream")

_T = TypeVar("_T")
_Name = Annotated[str, msgspec.Meta(max_length=4096)]


class Platform(msgspec.Struct, frozen=True):
    """Which machines an index entry is for, in Go's names (``amd64``, ``arm64`` with variant ``v8``)."""

    architecture: str = ""
    os: str = ""
    variant: str = ""


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """A blob's name: media type, length and digest.

    ``size`` is in bytes and never negative; ``digest`` is checked. Annotation values are what the registry said.
    """

    media_type: _Name
    digest_text: Annotated[str, msgspec.Meta(max_length=200)] = msgspec.field(name="digest")
    size: Annotated[int, msgspec.Meta(ge=0, le=_MAX_SIZE)]
    annotations: dict[str, str] | None = None
    platform: Platform | None = None
    artifact_type: str | None = None

    def __post_init__(self) -> None:
        # msgspec makes a ValidationError with the JSON path out of a ValueError.
        try:
            Digest.parse(self.digest_text)
        except VerificationError as exc:
            raise ValueError(exc.message) from exc

    @property
    def digest(self) -> Digest:
        """The digest as a value."""
        return Digest.parse(self.digest_text)


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """One image for one platform: a config and its layers, the lowest first."""

    schema_version: int
    config: Descriptor
    layers: Annotated[list[Descriptor], msgspec.Meta(max_length=_MAX_LAYERS)]
    media_type: str | None = None
    annotations: dict[str, str] | None = None
    artifact_type: str | None = None
    subject: Descriptor | None = None


class Index(msgspec.Struct, frozen=True, rename="camel"):
    """A list of manifests, one for each platform."""

    schema_version: int
    manifests: Annotated[list[Descriptor], msgspec.Meta(max_length=_MAX_INDEX_ENTRIES)]
    media_type: str | None = None
    annotations: dict[str, str] | None = None
    artifact_type: str | None = None


class ContainerConfig(msgspec.Struct, frozen=True):
    """The ``config`` part of an image config. A deployer needs the labels only."""

    labels: dict[str, str] | None = msgspec.field(name="Labels", default=None)


class RootFs(msgspec.Struct, frozen=True):
    """Digests of the uncompressed layers, the lowest first."""

    type: str
    diff_ids: Annotated[list[str], msgspec.Meta(max_length=_MAX_LAYERS)]


class History(msgspec.Struct, frozen=True):
    """How a layer came to be; entries with ``empty_layer`` have none."""

    created: str | None = None
    created_by: str | None = None
    author: str | None = None
    comment: str | None = None
    empty_layer: bool = False


class ImageConfig(msgspec.Struct, frozen=True):
    """The image config: platform, labels, layer contents."""

    architecture: str
    os: str
    rootfs: RootFs
    variant: str | None = None
    created: str | None = None
    author: str | None = None
    config: ContainerConfig | None = None
    history: list[History] | None = None

    @property
    def labels(self) -> dict[str, str]:
        """The labels; empty when there are none."""
        return (self.config.labels if self.config else None) or {}

    @property
    def diff_ids(self) -> list[Digest]:
        """Digests of the uncompressed layers, the lowest first; checked by :func:`parse_config`."""
        return [Digest.parse(text) for text in self.rootfs.diff_ids]


def parse_manifest(data: bytes, media_type: str | None = None, *, what: str = "manifest") -> Manifest | Index:
    """Parse a manifest or index.

    Args:
        data: the document.
        media_type: what the registry or descriptor called it; None or a vague type (``application/json``) when
            nobody said, then the document itself decides.
        what: names the document in messages.

    Raises:
        ImageError: too large, malformed, ambiguous, of another kind than ``media_type``, or the old schema 1.
    """
    if len(data) > MAX_MANIFEST_SIZE:
        raise ImageError(f"{what} is larger than {MAX_MANIFEST_SIZE >> 20} MiB")
    fields = _read_object(data, what)
    kind = _decide_type(fields, (media_type or "").partition(";")[0].strip().lower(), what)
    if kind in INDEX_TYPES:
        index = _decode(data, Index, what)
        _check_version(index.schema_version, what)
        return index
    manifest = _decode(data, Manifest, what)
    _check_version(manifest.schema_version, what)
    return manifest


def parse_config(data: bytes, *, what: str = "image config") -> ImageConfig:
    """Parse an image config.

    Raises:
        ImageError: too large, malformed, or its diff ids are no digests.
    """
    if len(data) > MAX_CONFIG_SIZE:
        raise ImageError(f"{what} is larger than {MAX_CONFIG_SIZE >> 20} MiB")
    config = _decode(data, ImageConfig, what)
    if config.rootfs.type != "layers":
        raise ImageError(f"{what} has a root filesystem of the unknown type '{config.rootfs.type[:40]}'")
    try:
        for text in config.rootfs.diff_ids:
            Digest.parse(text)
    except VerificationError as exc:
        raise ImageError(f"{what}: diff id {exc.message}") from exc
    return config


def check_config(manifest: Manifest, config: ImageConfig, *, architecture: str, what: str = "image") -> None:
    """Require that a config belongs to its manifest and fits this machine.

    Args:
        manifest: the manifest that names the config.
        config: the parsed config.
        architecture: wanted, in OCI names: ``amd64``.
        what: names the image in messages.

    Raises:
        ImageError: numbers of layers differ, or the image is for another operating system or architecture.
    """
    if len(config.rootfs.diff_ids) != len(manifest.layers):
        raise ImageError(
            f"{what} has {len(manifest.layers)} layers, but its config names {len(config.rootfs.diff_ids)}",
            hint="the image is damaged; build or push it again",
        )
    if config.os != "linux":
        raise ImageError(f"{what} is for the operating system '{config.os[:40]}', not 'linux'")
    if config.architecture != architecture:
        raise ImageError(
            f"{what} is for the architecture '{config.architecture[:40]}', this machine is '{architecture}'",
            hint=f"pull an image built for {architecture} (podman build --platform linux/{architecture})",
        )


def select_platform(index: Index, architecture: str, variant: str = "", *, what: str = "image") -> Descriptor:
    """Choose the manifest of an index for a machine.

    The exact variant wins, then lower ones, then none (arm64 means v8). Entries that are artifacts or attestations
    (platform ``unknown/unknown``) are passed over; an entry without a platform is the last resort.

    Raises:
        ImageError: nothing in it is for this architecture; the message names what there is.
    """
    images = [entry for entry in index.manifests if not entry.artifact_type and not _is_attestation(entry)]
    for wanted in _wanted_variants(architecture, variant):
        for entry in images:
            found = entry.platform
            if found and found.os == "linux" and (found.architecture, found.variant) == (architecture, wanted):
                return entry
    for entry in images:
        if entry.platform is None:
            return entry
    present = sorted({_format_platform(entry.platform) for entry in images if entry.platform})
    if not present:
        raise ImageError(f"{what} is an index without any image")
    raise ImageError(
        f"{what} has no image for 'linux/{architecture}', only for {', '.join(present[:10])}",
        hint=f"build or choose an image for linux/{architecture}",
    )


def _is_attestation(entry: Descriptor) -> bool:
    if entry.platform and "unknown" in (entry.platform.os, entry.platform.architecture):
        return True
    return bool(entry.annotations) and "vnd.docker.reference.type" in (entry.annotations or {})


def _wanted_variants(architecture: str, variant: str) -> list[str]:
    """Variants that run on a machine, the best first; the empty one means that the entry names none."""
    default = {"arm64": 8, "arm": 7}.get(architecture)
    number = int(variant[1:]) if variant[:1] == "v" and variant[1:].isdecimal() and len(variant) < 4 else default
    if number is None:
        return [variant, ""] if variant else [""]
    lowest = {"arm64": 8, "arm": 5, "amd64": 1}.get(architecture, number)
    return [*(f"v{n}" for n in range(number, lowest - 1, -1)), ""]


def _format_platform(platform: Platform) -> str:
    parts = [platform.os, platform.architecture, platform.variant]
    return "'" + "/".join(part[:30] for part in parts if part) + "'"


def _read_object(data: bytes, what: str) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ImageError(f"{what} is no JSON: {exc}") from exc
    if not isinstance(fields, dict):
        raise ImageError(f"{what} is no JSON object")
    return fields


def _decide_type(fields: dict[str, Any], said: str, what: str) -> str:
    """Tell what a document is; everybody who says something must say the same."""
    inner = fields.get("mediaType")
    if inner is not None and not isinstance(inner, str):
        raise ImageError(f"{what} has a media type that is no text")
    if said in _SCHEMA1_TYPES or inner in _SCHEMA1_TYPES or fields.get("schemaVersion") == 1:
        raise ImageError(
            f"{what} is in Docker's old format (schema 1), which is not supported",
            hint="push the image again with a current podman, buildah or docker",
        )
    if "manifests" in fields and ("layers" in fields or "config" in fields):
        raise ImageError(f"{what} claims to be both an index and an image")
    if "fsLayers" in fields:
        raise ImageError(f"{what} mixes Docker's old format with a newer one")
    if inner and said not in _VAGUE_TYPES and said != inner:
        raise ImageError(f"{what} was announced as '{said[:100]}' but calls itself '{inner[:100]}'")
    kind = said if said not in _VAGUE_TYPES else inner
    if not kind:
        kind = OCI_INDEX if "manifests" in fields else OCI_MANIFEST
    if kind not in (*MANIFEST_TYPES, *INDEX_TYPES):
        raise ImageError(f"{what} has the unknown media type '{kind[:100]}'", hint="is this the reference of an image?")
    if (kind in INDEX_TYPES) != ("manifests" in fields):
        raise ImageError(f"{what} has the media type '{kind}' but not its content")
    return kind


def _decode(data: bytes, kind: type[_T], what: str) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ImageError(f"{what} is malformed: {exc}") from exc


def _check_version(version: int, what: str) -> None:
    if version != 2:
        raise ImageError(f"{what} has the unknown schema version {version}")
