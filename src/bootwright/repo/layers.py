"""One layer into the repository: a tar becomes entries, objects and a splitstream in one pass; and back.

Bodies of at most 64 bytes stay in the stream and in the image; every other body becomes an object. A GNU sparse file
is two: its stored bytes, of which the tar is rebuilt, and its real content, which the tree names.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import Protocol

from bootwright.digest import VerityDigest
from bootwright.errors import ImageError, RepositoryError
from bootwright.oci.archive import EntryType, TarEntry, TarReader, expand_sparse
from bootwright.repo.entries import HARD_LINK, LayerEntry
from bootwright.repo.objects import MEMORY_LIMIT, ObjectStore
from bootwright.repo.streams import CONTENT_LAYER, INLINE_LIMIT, SplitStream, SplitStreamWriter

__all__ = ["import_layer", "read_layer"]

# The reader of archives allows more, but zeros have to be hashed, and a few bytes of archive can ask for any number.
_SPARSE_MAX = 16 << 30
_CAPABILITY = b"security.capability"
_ZEROS = bytes(1 << 20)
_REG, _DIR, _SYMLINK, _HARDLINK = EntryType.REG, EntryType.DIR, EntryType.SYMLINK, EntryType.HARDLINK
_SPECIAL = {EntryType.CHAR: stat.S_IFCHR, EntryType.BLOCK: stat.S_IFBLK, EntryType.FIFO: stat.S_IFIFO}


class _Bodies(Protocol):
    """Where the bodies of a layer's entries go to or come from."""

    def take_small(self, entry: TarEntry) -> bytes:
        """Return a body of at most :data:`INLINE_LIMIT` bytes."""

    def take_object(self, entry: TarEntry) -> bytes:
        """Return the digest of the object that holds a body."""

    def take_sparse(self, entry: TarEntry) -> bytes:
        """Return the digest of the object that holds the real content of a file with holes."""


def import_layer(archive: TarReader, objects: ObjectStore) -> tuple[list[LayerEntry], VerityDigest, int]:
    """Store a layer: every body, then its splitstream.

    Args:
        archive: read to its end, so that the readers below it have checked their digests.
        objects: where to.

    Returns:
        The entries, the digest of the splitstream object, and the size of the archive in bytes.

    Raises:
        ImageError: the archive is malformed or hostile.
        SpaceError: the filesystem is full.
        BootwrightError: whatever the source raises.
    """
    stream = SplitStreamWriter(objects.algorithm, CONTENT_LAYER)
    entries = _read_entries(archive, _Storing(archive, objects, stream))
    for piece in archive.iter_trailer():
        stream.add_inline(piece)
    data = stream.finish()
    return entries, objects.store_bytes(data), stream.size


def read_layer(stream: SplitStream, objects: ObjectStore) -> list[LayerEntry]:
    """Return the entries of a layer that is in the repository; no body is read.

    Raises:
        RepositoryError: the stream is damaged, or one of its objects is missing or has a wrong size.
    """
    replay = _Replay(stream, objects)
    archive = TarReader(replay.read, what=f"stream '{stream.origin}'")
    try:
        return _read_entries(archive, _Found(archive, replay, objects))
    except ImageError as exc:
        raise RepositoryError(f"the layer stored as '{stream.origin}' is damaged: {exc.message}") from exc


def _read_entries(archive: TarReader, bodies: _Bodies) -> list[LayerEntry]:
    entries: list[LayerEntry] = []
    for entry in archive:
        kind = entry.type
        size = 0
        content = digest = capability = None
        if kind is _REG:
            mode = stat.S_IFREG | entry.mode
            size = entry.size
            if entry.sparse is not None and size > INLINE_LIMIT:
                digest = bodies.take_sparse(entry)
            elif entry.sparse is not None:
                content = b"".join(expand_sparse(entry, [bodies.take_small(entry)]))
            elif size <= INLINE_LIMIT:
                content = bodies.take_small(entry)
            else:
                digest = bodies.take_object(entry)
        else:
            if kind is _DIR:
                mode = stat.S_IFDIR | entry.mode
            elif kind is _SYMLINK:
                mode = stat.S_IFLNK | 0o777
            elif kind is _HARDLINK:
                mode = HARD_LINK
            else:
                mode = _SPECIAL[kind] | entry.mode
            _pass_body(entry, bodies)
        if entry.xattrs is not None:
            capability = entry.xattrs.get(_CAPABILITY)
        entries.append(
            LayerEntry(
                entry.name,
                mode,
                entry.uid,
                entry.gid,
                entry.mtime_sec,
                entry.mtime_nsec,
                size,
                entry.linkname,
                entry.rdev,
                content,
                digest,
                capability,
            )
        )
    return entries


def _pass_body(entry: TarEntry, bodies: _Bodies) -> None:
    """Keep a body for the rebuilt archive although it makes no file (a hard link may have one)."""
    if entry.stored_size <= INLINE_LIMIT:
        bodies.take_small(entry)
    else:
        bodies.take_object(entry)


class _Storing:
    """Stores bodies as objects and writes the splitstream."""

    def __init__(self, archive: TarReader, objects: ObjectStore, stream: SplitStreamWriter) -> None:
        self._archive = archive
        self._objects = objects
        self._stream = stream

    def take_small(self, entry: TarEntry) -> bytes:
        body = self._archive.read_body() if entry.stored_size else b""
        self._stream.add_inline(entry.header + body)
        return body

    def take_object(self, entry: TarEntry) -> bytes:
        self._stream.add_inline(entry.header)
        size = entry.stored_size
        if size <= MEMORY_LIMIT:
            digest = self._objects.store_bytes(self._archive.read_body())
        else:
            digest = self._objects.store_pieces(self._archive.iter_body())[0]
        self._stream.add_object(digest.raw, size)
        return digest.raw

    def take_sparse(self, entry: TarEntry) -> bytes:
        if entry.stored_size <= INLINE_LIMIT:
            stored = [self.take_small(entry)]
            real = _store_sparse(entry, iter(stored), self._objects)
        else:
            body = VerityDigest(self.take_object(entry))
            real = _store_sparse(entry, self._objects.iter(body), self._objects)
        self._stream.need_object(real.raw)
        return real.raw


class _Replay:
    """Gives a stored layer as a tar in which every object is zeros, and remembers where the objects are."""

    def __init__(self, stream: SplitStream, objects: ObjectStore) -> None:
        self._pieces = stream.pieces()
        self._objects = objects
        self._zeros = 0
        self._offset = 0
        self.at: dict[int, tuple[VerityDigest, int]] = {}

    def read(self, size: int) -> bytes:
        """Return some bytes, ``b""`` at the end; never of two pieces, so that nothing is read ahead."""
        if not self._zeros:
            piece = next(self._pieces, b"")
            if isinstance(piece, bytes):
                self._offset += len(piece)
                return piece
            found = self._objects.size_of(piece)
            if found is None:
                raise RepositoryError(f"the object '{piece}' is missing", hint="pull the image again to bring it back")
            self.at[self._offset] = (piece, found)
            self._zeros = found
            if not found:
                return self.read(size)
        count = min(self._zeros, size, len(_ZEROS))
        self._zeros -= count
        self._offset += count
        return _ZEROS if count == len(_ZEROS) else _ZEROS[:count]


class _Found:
    """Finds bodies among the objects of a replayed layer."""

    def __init__(self, archive: TarReader, replay: _Replay, objects: ObjectStore) -> None:
        self._archive = archive
        self._replay = replay
        self._objects = objects
        self._offset = 0

    def take_small(self, entry: TarEntry) -> bytes:
        self._offset += len(entry.header) + entry.stored_size
        body = self._archive.read_body() if entry.stored_size else b""
        # Other writers may keep even the smallest body as an object.
        at = self._replay.at.pop(self._offset - entry.stored_size, None) if body else None
        return body if at is None else self._objects.read(at[0])

    def take_object(self, entry: TarEntry) -> bytes:
        start = self._offset + len(entry.header)
        self._offset = start + entry.stored_size
        pieces = list(self._archive.iter_body()) if entry.stored_size <= MEMORY_LIMIT else self._skip()
        found = self._replay.at.pop(start, None)
        if found is None:
            # A writer with a higher limit kept the body in the stream.
            if entry.stored_size > MEMORY_LIMIT:
                raise RepositoryError(f"a body of {entry.stored_size} bytes is not stored as an object")
            return self._objects.store_bytes(b"".join(pieces)).raw
        digest, size = found
        if size != entry.stored_size:
            raise RepositoryError(
                f"the object '{digest}' has {size} bytes, expected {entry.stored_size}",
                hint="pull the image again to bring it back",
            )
        return digest.raw

    def take_sparse(self, entry: TarEntry) -> bytes:
        if entry.stored_size <= INLINE_LIMIT:
            return _store_sparse(entry, iter([self.take_small(entry)]), self._objects).raw
        body = VerityDigest(self.take_object(entry))
        return _store_sparse(entry, self._objects.iter(body), self._objects).raw

    def _skip(self) -> list[bytes]:
        for _ in self._archive.iter_body():
            pass
        return []


def _store_sparse(entry: TarEntry, body: Iterator[bytes], objects: ObjectStore) -> VerityDigest:
    if entry.size > _SPARSE_MAX:
        raise ImageError(
            f"the sparse file '{_text(entry.name)}' has {entry.size} bytes, more than {_SPARSE_MAX >> 30} GiB",
            hint="remove it from the image",
        )
    return objects.store_sparse(_place(entry, body), entry.size)


def _place(entry: TarEntry, body: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the stored bytes of a sparse file with their offsets in the real one."""
    rest = b""
    for start, length in entry.sparse or []:
        offset, end = start, start + length
        while offset < end:
            rest = rest or next(body, b"")
            if not rest:
                raise ImageError(f"the sparse file '{_text(entry.name)}' ends in the middle of its data")
            piece, rest = rest[: end - offset], rest[end - offset :]
            yield offset, piece
            offset += len(piece)


def _text(name: bytes) -> str:
    return name[:200].decode("utf-8", "backslashreplace")
