"""Export: an image of the repository becomes an OCI layout again.

The layers are rebuilt from their splitstreams byte for byte, so they have the diff ids that were pulled, and the config
is the one that was pulled. They are compressed anew; only when that gives the very blobs of the registry (layers that
were never compressed) the manifest can be the old one, otherwise a new one is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

import msgspec
import zstandard
from isal import isal_zlib

from bootwright.digest import Digest
from bootwright.errors import RepositoryError
from bootwright.oci.layout import LayoutWriter
from bootwright.oci.manifest import CONFIG_TYPES, OCI_CONFIG, OCI_MANIFEST, Descriptor
from bootwright.progress import Progress, SubTask, Task
from bootwright.repo.images import PulledImage, read_document
from bootwright.repo.refs import config_stream, layer_stream, manifest_stream
from bootwright.repo.repository import Repository
from bootwright.repo.streams import SplitStream, iter_bytes
from bootwright.repo.workers import Report, available_processors, run_jobs

__all__ = ["Compression", "cat_layer", "export_image"]

Compression = Literal["gzip", "zstd", "none"]

_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_SUFFIX: dict[Compression, str] = {"gzip": "+gzip", "zstd": "+zstd", "none": ""}
_GZIP_LEVEL = 3  # isal's best: half the size of level 0, and several times faster than zlib
_GZIP_WINDOW = 31  # 15, and 16 for a gzip header, which has no time in it
_REPORT_BYTES = 8 << 20


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def cat_layer(repo: Repository, diff_id: Digest) -> Iterator[bytes]:
    """Yield the tar of a layer exactly as it was pulled; its digest is checked at the end.

    Raises:
        RepositoryError: the layer is not here, or damaged.
        VerificationError: what was yielded is not the layer.
    """
    found = diff_id.new_hash()
    for piece in iter_bytes(_get_layer(repo, diff_id), repo.objects.iter):
        found.update(piece)
        yield piece
    diff_id.check_hex(found.hexdigest(), what=f"the stored layer '{diff_id}'")


def export_image(
    repo: Repository,
    image: PulledImage,
    directory: str,
    *,
    tag: str | None,
    compression: Compression = "gzip",
    progress: Progress,
) -> Digest:
    """Write an image into an OCI layout, which is created or extended.

    Args:
        repo: opened with its lock held, so that nothing is collected meanwhile.
        image: what to export.
        directory: of the layout.
        tag: name in the layout; None: none.
        compression: of the layers.
        progress: told about every layer.

    Returns:
        The digest of the manifest in the layout.

    Raises:
        RepositoryError: something of the image is missing or damaged.
        VerificationError: a rebuilt layer has another diff id.
        SpaceError: the filesystem is full.
    """
    layout = LayoutWriter(directory)
    diff_ids = list(dict.fromkeys(image.config.diff_ids))
    sizes = [_get_layer(repo, diff_id).size for diff_id in diff_ids]

    def work(number: int, report: Report) -> bytes:
        pieces = _reported(cat_layer(repo, diff_ids[number]), report)
        digest, size = layout.write_blob_pieces(_compress(pieces, compression))
        return msgspec.msgpack.encode((str(digest), size))

    task = Task(
        task="exporting",
        description=f"Exporting {image.reference}",
        id=image.reference,
        unit="bytes",
        bytes_total=sum(sizes),
        steps_total=len(sizes),
        subtasks=[
            SubTask(subtask="layer", description=f"layer {diff_id.hex[:12]}", id=str(diff_id), total=size)
            for diff_id, size in zip(diff_ids, sizes, strict=True)
        ],
    )
    written: dict[Digest, Descriptor] = {}
    order = sorted(range(len(diff_ids)), key=lambda number: -sizes[number])
    with run_jobs(order, work, processes=available_processors()) as events:
        progress.begin(task)
        try:
            for event in events:
                subtask = task.subtasks[event.job]
                done = subtask.total if event.result is not None else min(event.count, subtask.total)
                task.bytes_done += done - subtask.done
                subtask.done = done
                if event.result is not None:
                    task.steps_done += 1
                    digest, size = msgspec.msgpack.decode(event.result, type=tuple[str, int])
                    written[diff_ids[event.job]] = Descriptor(
                        media_type=_LAYER_TYPE + _SUFFIX[compression], digest_text=digest, size=size
                    )
                progress.update(task)
        finally:
            progress.end(task)
    return _publish(repo, image, layout, [written[diff_id] for diff_id in image.config.diff_ids], tag)


def _publish(
    repo: Repository, image: PulledImage, layout: LayoutWriter, layers: list[Descriptor], tag: str | None
) -> Digest:
    config_bytes = _read_stream(repo, config_stream(image.config_digest))
    layout.write_blob_pieces([config_bytes], expected=image.config_digest)
    if [layer.digest for layer in layers] == [layer.digest for layer in image.manifest.layers]:
        manifest_bytes = _read_stream(repo, manifest_stream(image.manifest_digest))
        media_type = image.manifest.media_type or OCI_MANIFEST
    else:
        media_type = OCI_MANIFEST
        manifest_bytes = _make_manifest(image, layers)
    digest = layout.write_blob(manifest_bytes)
    layout.publish(Descriptor(media_type=media_type, digest_text=str(digest), size=len(manifest_bytes)), tag)
    return digest


def _make_manifest(image: PulledImage, layers: list[Descriptor]) -> bytes:
    config = image.manifest.config
    document: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {
            # Docker's config has the fields of OCI's; an OCI manifest names it so.
            "mediaType": config.media_type if config.media_type == CONFIG_TYPES[0] else OCI_CONFIG,
            "digest": config.digest_text,
            "size": config.size,
        },
        "layers": [
            {"mediaType": layer.media_type, "digest": layer.digest_text, "size": layer.size} for layer in layers
        ],
    }
    if image.annotations:
        document["annotations"] = image.annotations
    return msgspec.json.encode(document)


def _read_stream(repo: Repository, name: str) -> bytes:
    stream = repo.find_stream(name)
    if stream is None:
        raise RepositoryError(f"the stream '{name}' is missing", hint="pull the image again to bring it back")
    return read_document(repo, stream)


def _get_layer(repo: Repository, diff_id: Digest) -> SplitStream:
    stream = repo.find_stream(layer_stream(diff_id))
    if stream is None:
        raise RepositoryError(f"the layer '{diff_id}' is missing", hint="pull the image again to bring it back")
    return stream


def _reported(pieces: Iterator[bytes], report: Report) -> Iterator[bytes]:
    done = last = 0
    for piece in pieces:
        yield piece
        done += len(piece)
        if done - last >= _REPORT_BYTES:
            last = done
            report(done)


def _compress(pieces: Iterator[bytes], compression: Compression) -> Iterator[bytes]:
    if compression == "none":
        yield from pieces
        return
    compressor: _Compressor
    if compression == "gzip":
        compressor = isal_zlib.compressobj(_GZIP_LEVEL, isal_zlib.DEFLATED, _GZIP_WINDOW)
    else:
        compressor = zstandard.ZstdCompressor().compressobj()
    for piece in pieces:
        if data := compressor.compress(piece):
            yield data
    yield compressor.flush()
