"""Garbage collection: what nothing refers to goes.

Roots are the references below ``streams/refs`` and ``images/refs``, and the ids of images that the caller knows to be
in use (deployments). From them::

    stream   → its own object, every object it needs, every stream and image it names
    image    → its own object, every object that its files live in

Everything else is removed, in the reverse of the order of publishing: links of streams and images, durably; then
objects. A crash in between leaves objects without a name, and the next collection removes them. It runs under the
exclusive lock: a writer holds the shared one from its first object to its published name, so nothing in the making is
lost.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from bootwright.digest import VerityDigest
from bootwright.erofs.reader import object_digests
from bootwright.errors import RepositoryError, VerificationError
from bootwright.linux import files
from bootwright.repo.refs import encode_tag
from bootwright.repo.repository import Repository
from bootwright.repo.streams import is_splitstream, parse_splitstream

__all__ = ["Collection", "collect"]


@dataclass(slots=True, kw_only=True)
class Collection:
    """What a collection removed, or would remove.

    Attributes:
        streams: names of streams.
        images: ids of images.
        objects: number of objects.
        bytes: their sizes together.
    """

    streams: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    objects: int = 0
    bytes: int = 0


def collect(
    repo: Repository, *, keep: Iterable[VerityDigest] = (), without: Iterable[str] = (), dry_run: bool = False
) -> Collection:
    """Remove everything that nothing refers to.

    Args:
        repo: opened with :meth:`Repository.open_exclusively`.
        keep: ids of further images in use.
        without: tags that do not count, as they are about to be removed.
        dry_run: only tell.

    Raises:
        RepositoryError: a stream or image that is in use is damaged, so that what it needs cannot be told; nothing was
            removed.
        PrivilegeError: the repository cannot be written.
    """
    marked = _mark(repo, keep, {f"oci/{encode_tag(tag)}" for tag in without})
    found = Collection()
    found.streams = [name for name, digest in repo.refs.read_streams().items() if digest not in marked]
    found.images = [name for name, digest in repo.refs.read_images().items() if digest not in marked]
    if not dry_run:
        if found.streams:
            repo.refs.remove_links("streams", found.streams)
        if found.images:
            repo.refs.remove_links("images", found.images)
        repo.refs.remove_leftovers()
    with files.translated(f"could not clean up '{repo.path}'"):
        _sweep(os.path.join(repo.path, "objects"), {digest.hex for digest in marked}, found, dry_run)
    return found


def _mark(repo: Repository, keep: Iterable[VerityDigest], without: set[str]) -> set[VerityDigest]:
    """Return every object that is in use."""
    marked: set[VerityDigest] = set()
    waiting = list(keep)
    streams = repo.refs.read_streams()
    images = repo.refs.read_images()
    for kind, links in (("streams", streams), ("images", images)):
        for reference, name in repo.refs.read_roots(kind):
            digest = links.get(name)
            if digest is not None and not (kind == "streams" and reference in without):
                waiting.append(digest)
    while waiting:
        digest = waiting.pop()
        if digest in marked:
            continue
        marked.add(digest)
        if repo.objects.size_of(digest) is None:
            continue
        objects, further = _read_references(repo, digest)
        marked.update(objects)
        waiting.extend(further)
    return marked


def _read_references(repo: Repository, digest: VerityDigest) -> tuple[set[VerityDigest], list[VerityDigest]]:
    """Return the objects that a stream or image needs, and the streams and images that it names."""
    try:
        data = repo.objects.read(digest, verify=True)
    except VerificationError as exc:
        raise RepositoryError(f"cannot tell what is in use: {exc.message}", hint=exc.hint) from exc
    if is_splitstream(data[:32]):
        stream = parse_splitstream(data, origin=digest.hex)
        return set(stream.object_refs), list(stream.stream_refs)
    return set(object_digests(data)), []


def _sweep(objects: str, marked: set[str], found: Collection, dry_run: bool) -> None:
    for prefix in sorted(os.listdir(objects)):
        directory = os.path.join(objects, prefix)
        if prefix.startswith(files.TEMPORARY_PREFIX) and not dry_run:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(directory)
        if len(prefix) != 2 or not os.path.isdir(directory):
            continue
        with os.scandir(directory) as entries:
            for entry in entries:
                # What does not look like an object is not ours to remove.
                if len(entry.name) not in (62, 126) or prefix + entry.name in marked:
                    continue
                found.objects += 1
                found.bytes += entry.stat(follow_symlinks=False).st_size
                if not dry_run:
                    os.unlink(entry.path)
