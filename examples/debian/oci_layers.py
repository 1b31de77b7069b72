"""Writes a root filesystem, given as a tar archive, into an OCI layout as several layers.

The same files give the same bytes, whatever order or time the archive has them in: entries are sorted, times that only
tell when the build ran are replaced, names of users are left out. So two builds share every layer whose files did not
change.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Protocol

__all__ = ["Layer", "add_image", "read_entries", "write_layer"]

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
TAG = "org.opencontainers.image.ref.name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer that was written to a layout."""

    name: str
    digest: str
    diff_id: str
    size: int


class _Sink(Protocol):
    def write(self, data: bytes, /) -> int: ...

    def flush(self) -> None: ...


class _Counter:
    """Passes bytes on and keeps their digest and number."""

    def __init__(self, target: _Sink) -> None:
        self._target = target
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.size += len(data)
        return self._target.write(data)

    def flush(self) -> None:
        self._target.flush()

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def read_entries(archive: Path) -> dict[str, tarfile.TarInfo]:
    """Return the entries of an archive by their path without leading ``./``; the root itself is ``""``."""
    entries: dict[str, tarfile.TarInfo] = {}
    with tarfile.open(archive) as tar:
        for entry in tar:
            path = entry.name.removeprefix("./").strip("/")
            entries["" if path == "." else path] = entry
    return entries


def write_layer(
    layout: Path, name: str, archive: Path, entries: Mapping[str, tarfile.TarInfo], mtime: Callable[[str], int | None]
) -> Layer:
    """Write some entries of an archive as one gzip layer.

    Args:
        layout: the OCI layout.
        name: what the image's history calls the layer.
        archive: where the content of the entries is.
        entries: what goes in, by path; parent directories are expected among them.
        mtime: the time an entry gets; None keeps its own.
    """
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    partial = blobs / f".{name}.{os.getpid()}"
    with archive.open("rb") as source, partial.open("wb") as file:
        packed = _Counter(file)
        # No file name, no time: the header is the same in every build.
        with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=packed, mtime=0) as squeezed:
            plain = _Counter(squeezed)
            with tarfile.open(fileobj=plain, mode="w|", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]  # same
                for path, entry in sorted(_link_first_names(entries).items()):
                    _add(tar, path, entry, source, mtime(path))
    partial.replace(blobs / packed.digest.partition(":")[2])
    return Layer(name=name, digest=packed.digest, diff_id=plain.digest, size=packed.size)


def _link_first_names(entries: Mapping[str, tarfile.TarInfo]) -> dict[str, tarfile.TarInfo]:
    """Give the content of hard-linked files to the name that sorts first, so that no link precedes its target."""
    result = dict(entries)
    names: dict[str, list[str]] = {}
    for path, entry in entries.items():
        if entry.islnk():
            names.setdefault(entry.linkname.removeprefix("./"), []).append(path)
    for target, links in names.items():
        if target not in entries:
            raise ValueError(f"'{links[0]}' is a hard link to '{target}', which is not in the same layer")
        first, *others = sorted([target, *links])
        result[first] = entries[target]
        for path in others:
            link = tarfile.TarInfo(path)
            link.type = tarfile.LNKTYPE
            link.linkname = first
            link.mode, link.uid, link.gid = entries[target].mode, entries[target].uid, entries[target].gid
            link.mtime = entries[target].mtime
            result[path] = link
    return result


def _add(tar: tarfile.TarFile, path: str, entry: tarfile.TarInfo, source: BinaryIO, mtime: int | None) -> None:
    clean = tarfile.TarInfo(path or ".")
    clean.type, clean.mode, clean.uid, clean.gid = entry.type, entry.mode, entry.uid, entry.gid
    clean.linkname = entry.linkname
    clean.devmajor, clean.devminor = entry.devmajor, entry.devminor
    clean.mtime = int(entry.mtime) if mtime is None else mtime
    clean.pax_headers = {key: value for key, value in entry.pax_headers.items() if key.startswith("SCHILY.xattr.")}
    if entry.isreg():
        clean.size = entry.size
        source.seek(entry.offset_data)
        tar.addfile(clean, source)
    else:
        tar.addfile(clean)


def write_layers(
    layout: Path,
    archive: Path,
    layers: Mapping[str, Mapping[str, tarfile.TarInfo]],
    mtime: Callable[[str], int | None],
) -> list[Layer]:
    """Write several layers, two at a time; empty ones are left out. The order is that of the mapping."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        jobs = [
            pool.submit(write_layer, layout, name, archive, entries, mtime)
            for name, entries in layers.items()
            if entries
        ]
        return [job.result() for job in jobs]


def _put_json(layout: Path, value: Any) -> tuple[str, int]:
    data = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(data)
    return f"sha256:{digest}", len(data)


def add_image(
    layout: Path, tag: str, layers: Iterable[Layer], *, architecture: str, labels: Mapping[str, str], created: int
) -> str:
    """Add an image to a layout under a tag, replacing the one that has it, and remove blobs that nothing refers to.

    Returns:
        The manifest digest.
    """
    layers = list(layers)
    moment = datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    config, config_size = _put_json(
        layout,
        {
            "architecture": architecture,
            "os": "linux",
            "created": moment,
            "config": {"Labels": dict(labels)},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            "history": [{"created": moment, "created_by": f"mmdebstrap, {layer.name}"} for layer in layers],
        },
    )
    annotations = {key: value for key, value in labels.items() if key.startswith("org.opencontainers.image.")}
    manifest, manifest_size = _put_json(
        layout,
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": config, "size": config_size},
            "layers": [{"mediaType": LAYER_TYPE, "digest": layer.digest, "size": layer.size} for layer in layers],
            "annotations": {**annotations, "org.opencontainers.image.created": moment},
        },
    )
    index_path = layout / "index.json"
    index = json.loads(index_path.read_text()) if index_path.exists() else {"manifests": []}
    kept = [entry for entry in index["manifests"] if entry.get("annotations", {}).get(TAG) != tag]
    entry = {
        "mediaType": MANIFEST_TYPE,
        "digest": manifest,
        "size": manifest_size,
        "annotations": {TAG: tag},
        "platform": {"architecture": architecture, "os": "linux"},
    }
    manifests = sorted([*kept, entry], key=lambda item: str(item["annotations"][TAG]))
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    partial = layout / ".index.json"
    partial.write_text(json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}, indent=1))
    partial.replace(index_path)
    _remove_unused(layout, [item["digest"] for item in manifests])
    return manifest


def _remove_unused(layout: Path, manifests: Iterable[str]) -> None:
    blobs = layout / "blobs" / "sha256"
    used = set()
    for digest in manifests:
        name = digest.partition(":")[2]
        manifest = json.loads((blobs / name).read_text())
        used |= {name, *(item["digest"].partition(":")[2] for item in [manifest["config"], *manifest["layers"]])}
    for path in blobs.iterdir():
        if path.name not in used:
            path.unlink()
