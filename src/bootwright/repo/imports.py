"""Pulling: an image from a registry or layout becomes objects, streams and EROFS images in the repository.

::

    manifest, config          here
    each missing layer        a worker: fetch → check → decompress → check → tar → objects + splitstream
    layers already here       a worker: splitstream → entries
    merge                     here
    EROFS images              two workers: the plain tree, the tree transformed for boot
    one syncfs                here
    publish                   layers and images → config → manifest → tag

What is left when it stops early:

=====================================  =======================================================================
killed, power cut, Ctrl-C              objects only; the next pull reuses them
an error (bad layer, no space, ...)    the same
the network failed                     the layers that were complete are published (after a syncfs), so that the
                                       next pull fetches only the others; nothing refers to them until then
=====================================  =======================================================================
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from bootwright.digest import Digest, VerityDigest
from bootwright.erofs.tree import Inode
from bootwright.errors import ImageError, NetworkError, RepositoryError, SpaceError, VerificationError
from bootwright.linux import files
from bootwright.oci.archive import TarReader
from bootwright.oci.layer import open_layer
from bootwright.oci.manifest import Descriptor, Manifest, parse_manifest, select_platform
from bootwright.oci.reference import ImageReference
from bootwright.oci.source import BlobReader, ImageSource, ResolvedImage, SourceOptions, open_source
from bootwright.progress import Progress, SubTask, Task
from bootwright.repo.entries import LayerEntry
from bootwright.repo.images import (
    PulledImage,
    find_kernel,
    load_image,
    make_image,
    write_documents,
)
from bootwright.repo.layers import import_layer, read_layer
from bootwright.repo.objects import StoreCounts
from bootwright.repo.refs import layer_stream, manifest_stream
from bootwright.repo.repository import Repository
from bootwright.repo.tree import apply_boot_transform, can_boot, merge_layers
from bootwright.repo.workers import Report, available_processors, run_jobs
from bootwright.units import format_size

__all__ = ["default_tag", "pull"]

_REPORT_INTERVAL_S = 0.1
_WRITEBACK_INTERVAL_S = 2.0
# What gzip and zstd layers of operating systems grow by, a little less than usual: objects that are there already
# and files that occur twice take nothing, and a pull that fits must not be refused.
_GROWTH = 2.2
_SPACE_SLACK = 64 << 20


class _LayerResult(msgspec.Struct, array_like=True):
    """What a worker hands back for one layer."""

    entries: list[LayerEntry]
    stream: bytes
    counts: tuple[int, int, int, int]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_LayerResult)


@dataclass(frozen=True, slots=True)
class _Job:
    """One layer; ``is_present`` when its stream is in the repository."""

    descriptor: Descriptor
    diff_id: Digest
    is_present: bool


def default_tag(reference: ImageReference) -> str:
    """Return the tag that a pulled image gets: its reference as bootc shows it; a digest, too, becomes a tag."""
    if reference.transport == "oci":
        return f"oci:{reference.image}"
    return reference.image.replace("@sha256:", ":sha256-").replace("@sha512:", ":sha512-")


def pull(
    repo: Repository,
    reference: ImageReference,
    options: SourceOptions,
    *,
    progress: Progress,
    tag: str | None,
) -> PulledImage:
    """Bring an image into the repository.

    An image that is complete already costs no more than reading its manifest, and nothing at all when the reference
    has the manifest's digest.

    Args:
        repo: opened for writing.
        reference: what to pull.
        options: how to reach it.
        progress: told about every layer. No thread may run that could hold a lock: workers are forked.
        tag: name to give it, see :func:`default_tag`; None: nothing keeps it but the caller's lock.

    Raises:
        NetworkError: the source cannot be reached or has no such image.
        VerificationError: something is not what its digest says.
        ImageError: the image is malformed, hostile or for another machine.
        SpaceError: the filesystem is, or would become, full.
        RepositoryError: the repository was opened for reading.
    """
    name = str(reference)
    if reference.digest is not None:
        found = _find_complete(repo, reference.digest, name)
        if found is not None:
            return _keep(repo, found, tag, progress)
    with open_source(reference, options) as source:
        if tag is not None and repo.refs.find_tag(tag) is not None:
            # Pulled before, so it may well be unchanged: look at the manifest alone.
            digest = _peek_manifest(source, name)
            found = _find_complete(repo, digest, name)
            if found is not None:
                return _keep(repo, found, tag, progress)
        resolved = source.resolve()
        found = _find_complete(repo, resolved.manifest_digest, name)
        if found is not None:
            return _keep(repo, found, tag, progress)
        return _Pull(repo, reference, source, resolved, progress, tag).run()


def _peek_manifest(source: ImageSource, name: str) -> Digest:
    """Return the digest of the manifest for this platform, fetching no more than the index or manifest."""
    found = source.read_manifest()
    document = parse_manifest(found.content, found.media_type, what=f"image '{name}'")
    if isinstance(document, Manifest):
        return found.digest
    options = source.options
    return select_platform(document, options.architecture, options.variant, what=f"image '{name}'").digest


def _find_complete(repo: Repository, digest: Digest, name: str) -> PulledImage | None:
    """Return an image of the repository when nothing of it is missing, as far as its streams and images tell."""
    if repo.refs.find_stream(manifest_stream(digest)) is None:
        return None
    try:
        image = load_image(repo, digest, reference=name)
        for diff_id in image.config.diff_ids:
            if not _is_present(repo, diff_id):
                return None
    except (RepositoryError, ImageError, VerificationError):
        # Damaged: pulling again repairs it.
        return None
    for image_id in (image.image_id, image.boot_id):
        if image_id is not None and not (repo.refs.has_image(image_id) and repo.objects.size_of(image_id)):
            return None
    return image


def _is_present(repo: Repository, diff_id: Digest) -> bool:
    try:
        stream = repo.refs.find_stream(layer_stream(diff_id))
    except RepositoryError:
        return False
    return stream is not None and repo.objects.size_of(stream) is not None


def _keep(repo: Repository, image: PulledImage, tag: str | None, progress: Progress) -> PulledImage:
    progress.note(f"'{image.reference}' is already present")
    if tag is not None:
        repo.refs.write_tag(tag, manifest_stream(image.manifest_digest))
    return image


class _Pull:
    """One pull of an image that is not complete in the repository."""

    def __init__(
        self,
        repo: Repository,
        reference: ImageReference,
        source: ImageSource,
        resolved: ResolvedImage,
        progress: Progress,
        tag: str | None,
    ) -> None:
        self._repo = repo
        self._reference = reference
        self._source = source
        self._options = source.options
        self._resolved = resolved
        self._progress = progress
        self._tag = tag
        self._jobs = self._plan()
        self._done: dict[Digest, _LayerResult] = {}
        self.counts = StoreCounts()

    def run(self) -> PulledImage:
        """Do all of it."""
        self._check_space()
        self._repo.begin_writing()
        try:
            self._import_layers()
        except NetworkError:
            self._publish_layers()
            raise
        return self._build_images()

    # ---- layers ----------------------------------------------------------------------------------------------

    def _plan(self) -> list[_Job]:
        """One job for each different layer, what is big and missing first."""
        jobs: dict[Digest, _Job] = {}
        manifest = self._resolved.manifest
        for descriptor, diff_id in zip(manifest.layers, self._resolved.config.diff_ids, strict=True):
            if diff_id not in jobs:
                jobs[diff_id] = _Job(descriptor, diff_id, _is_present(self._repo, diff_id))
        return sorted(jobs.values(), key=lambda job: (job.is_present, -job.descriptor.size))

    def _check_space(self) -> None:
        need = sum(
            job.descriptor.size * (1.0 if job.descriptor.media_type.endswith(".tar") else _GROWTH)
            for job in self._jobs
            if not job.is_present
        )
        status = os.statvfs(self._repo.path)
        free = status.f_bavail * status.f_frsize
        if need and need + _SPACE_SLACK > free:
            raise SpaceError(
                f"'{self._reference}' needs about {format_size(need + _SPACE_SLACK)} in '{self._repo.path}',"
                f" {format_size(free)} are free",
                hint="remove images (bootwright image rm) or use a larger disk",
            )

    def _import_layers(self) -> None:
        task = self._new_task()
        subtasks = task.subtasks
        self._options = self._source.worker_options()
        with run_jobs(list(range(len(self._jobs))), self._work, processes=available_processors()) as events:
            self._progress.begin(task)
            try:
                with _early_writeback(self._repo.path):
                    for event in events:
                        subtask = subtasks[event.job]
                        if event.result is None:
                            done = min(event.count, subtask.total)
                        else:
                            done = subtask.total
                            task.steps_done += 1
                            self._finish(self._jobs[event.job], event.result)
                        if not self._jobs[event.job].is_present:
                            task.bytes_done += done - subtask.done
                        subtask.done = done
                        self._progress.update(task)
            finally:
                self._progress.end(task)

    def _new_task(self) -> Task:
        task = Task(
            task="pulling",
            description=f"Fetching {self._reference}",
            id=str(self._reference),
            unit="bytes",
            steps_total=len(self._jobs),
        )
        for job in self._jobs:
            size = job.descriptor.size
            cached = size if job.is_present else 0
            task.bytes_cached += cached
            task.bytes_total += size - cached
            task.steps_cached += job.is_present
            digest = str(job.descriptor.digest)
            task.subtasks.append(
                SubTask(
                    subtask="layer",
                    description=f"layer {job.descriptor.digest.hex[:12]}",
                    id=digest,
                    cached=cached,
                    total=size,
                )
            )
        return task

    def _work(self, number: int, report: Report) -> bytes:
        """Bring one layer in; runs in a worker."""
        job = self._jobs[number]
        objects = self._repo.objects
        objects.counts = StoreCounts()
        stream: VerityDigest | None = None
        entries: list[LayerEntry] = []
        if job.is_present:
            with contextlib.suppress(RepositoryError):
                stored = self._repo.find_stream(layer_stream(job.diff_id))
                if stored is not None:
                    entries = read_layer(stored, objects)
                    stream = self._repo.refs.find_stream(layer_stream(job.diff_id))
        if stream is None:
            what = f"layer '{job.descriptor.digest}' of '{self._reference}'"
            with open_source(self._reference, self._options) as source, source.open_blob(job.descriptor) as blob:
                counted = _Counted(blob, report)
                reader = open_layer(counted, job.descriptor.media_type, diff_id=job.diff_id, what=what)
                entries, stream, _ = import_layer(TarReader(reader.read, what=what), objects)
        counts = objects.counts
        return _encoder.encode(
            _LayerResult(
                entries,
                stream.raw,
                (counts.objects_written, counts.bytes_written, counts.objects_reused, counts.bytes_reused),
            )
        )

    def _finish(self, job: _Job, encoded: bytes) -> None:
        result = _decoder.decode(encoded)
        self._done[job.diff_id] = result
        self.counts.add(StoreCounts(*result.counts))

    def _layer_links(self) -> list[tuple[str, VerityDigest]]:
        return [(layer_stream(diff_id), VerityDigest(result.stream)) for diff_id, result in self._done.items()]

    def _publish_layers(self) -> None:
        """Keep what is complete for the next attempt."""
        if self._done:
            self._repo.sync()
            self._repo.refs.link_streams(self._layer_links())

    # ---- images ----------------------------------------------------------------------------------------------

    def _build_images(self) -> PulledImage:
        resolved = self._resolved
        task = Task(
            task="importing",
            description="Building the image",
            id=str(self._reference),
            unit="steps",
            steps_total=3,
            subtasks=[
                SubTask(subtask=name, description=description, id=name, total=1)
                for name, description in (
                    ("merge", "merging layers"),
                    ("image", "writing the image"),
                    ("publish", "making it durable"),
                )
            ],
        )
        self._progress.begin(task)
        try:
            tree = merge_layers(self._done[diff_id].entries for diff_id in resolved.config.diff_ids)
            self._step(task, 0)
            image_id, boot_id = self._write_images(tree)
            self._step(task, 1)
            pulled = self._publish(image_id, boot_id)
            self._step(task, 2)
        finally:
            self._progress.end(task)
        return pulled

    def _step(self, task: Task, number: int) -> None:
        task.subtasks[number].done = 1
        task.steps_done += 1
        self._progress.update(task)

    def _write_images(self, tree: Inode) -> tuple[VerityDigest, VerityDigest | None]:
        """Write both images side by side; the second only when the image has what booting needs."""

        def work(number: int, _report: Report) -> bytes:
            if number == 1:
                apply_boot_transform(tree)
            return make_image(self._repo, tree).raw

        jobs = [0, 1] if can_boot(tree) and find_kernel(tree) is not None else [0]
        found: dict[int, VerityDigest] = {}
        with run_jobs(jobs, work, processes=available_processors()) as events:
            for event in events:
                if event.result is not None:
                    found[event.job] = VerityDigest(event.result)
        return found[0], found.get(1)

    def _publish(self, image_id: VerityDigest, boot_id: VerityDigest | None) -> PulledImage:
        resolved = self._resolved
        fetched = [job for job in self._jobs if not job.is_present]
        pulled = PulledImage(
            reference=str(self._reference),
            manifest_digest=resolved.manifest_digest,
            config_digest=resolved.manifest.config.digest,
            config=resolved.config,
            manifest=resolved.manifest,
            annotations=resolved.manifest.annotations or {},
            image_id=image_id,
            boot_id=boot_id,
            layers_fetched=len(fetched),
            bytes_fetched=sum(job.descriptor.size for job in fetched),
        )
        layers = self._layer_links()
        documents = write_documents(
            self._repo,
            resolved.manifest_digest,
            pulled,
            manifest_bytes=resolved.manifest_bytes,
            config_bytes=resolved.config_bytes,
            layers={diff_id: VerityDigest(result.stream) for diff_id, result in self._done.items()},
        )
        repo = self._repo
        repo.sync()
        repo.refs.link_images([image_id] if boot_id is None else [image_id, boot_id])
        repo.refs.link_streams(layers)
        repo.refs.link_streams(documents)
        if self._tag is not None:
            repo.refs.write_tag(self._tag, manifest_stream(pulled.manifest_digest))
        return pulled


class _Counted:
    """A blob that tells how much of it was read, some ten times a second."""

    def __init__(self, blob: BlobReader, report: Report) -> None:
        self._blob = blob
        self._report = report
        self._last = time.monotonic()
        self.what = blob.what

    def read(self, size: int = 1 << 18, /) -> bytes:
        """Return the next bytes of the blob."""
        data = self._blob.read(size)
        now = time.monotonic()
        if now - self._last >= _REPORT_INTERVAL_S:
            self._last = now
            self._report(self._blob.bytes_read)
        return data


@contextlib.contextmanager
def _early_writeback(path: str) -> Iterator[None]:
    """Let the disk work while layers are decompressed, so that little is left for the one syncfs that counts.

    The workers were forked before, so this thread is no danger to them. After a failure nobody waits for it: a syncfs
    can take seconds, and the workers are to be stopped at once.
    """
    stop = threading.Event()

    def sync() -> None:
        while not stop.wait(_WRITEBACK_INTERVAL_S):
            with contextlib.suppress(OSError):
                files.sync_filesystem(path)

    thread = threading.Thread(target=sync, name="writeback", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
    thread.join()
