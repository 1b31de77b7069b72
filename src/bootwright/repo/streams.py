"""Splitstreams: a byte stream kept as small inline pieces and references to objects. Pure.

A layer's tar is stored without its file bodies: headers, padding and bodies of at most 64 bytes inline, every bigger
body as a reference to the object that holds it. The exact tar, and so its digest, can be rebuilt at any time.
Manifests and configurations are splitstreams too: one object, and names for the streams and images that belong to
them.

File format (composefs-rs; integers little-endian)::

    0     "SplitStream" · u8 version 0 · u16 flags 0 · u8 algorithm (1 sha256, 2 sha512) · u8 log2 block size (12)
          · u64 start · u64 end of the info block
    32    info block: four ranges (u64 start, u64 end): stream_refs, object_refs, stream, named_refs
          · u64 content type · u64 stream size (of the rebuilt stream)
    112   stream_refs     digests of other splitstreams and images that this one needs
          object_refs     digests of objects, in order of first use, none twice
          named_refs      zstd: "INDEX:NAME" each ended by NUL, sorted; INDEX points into stream_refs
          stream          zstd: repeated i64: n < 0: -n inline bytes follow; n >= 0: object number n goes here

bootc up to 1.15 wrote the same 32 bytes of header in another order (info range first, magic at 18): both are read.
The digest of a splitstream depends on the zstd library's version: it names the file here, and is compared with nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import zstandard

from bootwright.digest import Algorithm, VerityDigest
from bootwright.errors import RepositoryError

__all__ = [
    "CONTENT_BLOB",
    "CONTENT_CONFIG",
    "CONTENT_LAYER",
    "CONTENT_MANIFEST",
    "INLINE_LIMIT",
    "SplitStream",
    "SplitStreamWriter",
    "is_splitstream",
    "iter_bytes",
    "parse_splitstream",
    "parse_stream_size",
]

CONTENT_LAYER = b"ocilayer"
CONTENT_CONFIG = b"ociconfg"
CONTENT_MANIFEST = b"ocimanif"
CONTENT_BLOB = b"oci_blob"

INLINE_LIMIT = 64

_MAGIC = b"SplitStream"
_HEADER = struct.Struct("<11sBHBBQQ")
_HEADER_OLD = struct.Struct("<QQH11sBBB")
_INFO = struct.Struct("<8Q8sQ")
_I64 = struct.Struct("<q")
_NAMES_MAX = 16 << 20
_WINDOW_MAX = 1 << 27
_RUN_MAX = 1 << 20
_PIECE = 1 << 17


class SplitStreamWriter:
    """Builds a splitstream in memory; only the compressed inline bytes are held.

    Args:
        algorithm: of every digest in it.
        content_type: eight ASCII letters, e.g. :data:`CONTENT_LAYER`.
    """

    def __init__(self, algorithm: Algorithm, content_type: bytes) -> None:
        self._algorithm = algorithm
        self._content_type = content_type
        self._compressor = zstandard.ZstdCompressor().compressobj()
        self._compressed: list[bytes] = []
        self._pending = bytearray()
        self._run: list[bytes] = []
        self._run_size = 0
        self._objects: dict[bytes, int] = {}
        self._streams: dict[bytes, int] = {}
        self._names: dict[str, int] = {}
        self.size = 0

    def add_inline(self, data: bytes) -> None:
        """Add bytes that are kept in the stream itself."""
        self._run.append(data)
        self._run_size += len(data)
        if self._run_size >= _RUN_MAX:
            self._end_run()

    def add_object(self, digest: bytes, size: int) -> None:
        """Add the whole content of an object of ``size`` bytes."""
        self._end_run()
        self._pending += _I64.pack(self.need_object(digest))
        self.size += size

    def need_object(self, digest: bytes) -> int:
        """Keep an object alive with this stream although its bytes are not part of it; returns its number."""
        return self._objects.setdefault(digest, len(self._objects))

    def add_name(self, name: str, digest: bytes) -> None:
        """Refer by name to another splitstream or an image."""
        self._names[name] = self._streams.setdefault(digest, len(self._streams))

    def finish(self) -> bytes:
        """Return the file."""
        self._end_run()
        self._compressed.append(self._compressor.compress(bytes(self._pending)))
        self._compressed.append(self._compressor.flush())
        names = sorted(f"{index}:{name}\0".encode() for name, index in self._names.items())
        parts = [
            b"".join(self._streams),
            b"".join(self._objects),
            zstandard.ZstdCompressor().compress(b"".join(names)),
            b"".join(self._compressed),
        ]
        at = _HEADER.size + _INFO.size
        ranges = []
        for part in parts:
            ranges.append((at, at + len(part)))
            at += len(part)
        streams, objects, named, stream = ranges
        info = _INFO.pack(*streams, *objects, *stream, *named, self._content_type, self.size)
        header = _HEADER.pack(_MAGIC, 0, 0, self._algorithm.value, 12, _HEADER.size, _HEADER.size + _INFO.size)
        return b"".join([header, info, *parts])

    def _end_run(self) -> None:
        if self._run_size:
            self._pending += _I64.pack(-self._run_size)
            self._pending += b"".join(self._run)
            self.size += self._run_size
            self._run.clear()
            self._run_size = 0
        if len(self._pending) >= _RUN_MAX:
            self._compressed.append(self._compressor.compress(bytes(self._pending)))
            self._pending.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitStream:
    """A parsed splitstream; the pieces are decompressed when they are iterated."""

    content_type: bytes
    size: int
    stream_refs: tuple[VerityDigest, ...]
    object_refs: tuple[VerityDigest, ...]
    names: dict[str, VerityDigest] = field(default_factory=dict)
    origin: str
    _stream: bytes

    def pieces(self) -> Iterator[bytes | VerityDigest]:
        """Yield the stream in order: inline bytes (up to 128 KiB at a time) or the object whose bytes go here.

        Raises:
            RepositoryError: the stream is damaged: bad zstd, a length beyond the size of the stream, an object
                number out of range, or an end in the middle.
        """
        reader = _Decompressed(self._stream, self.origin)
        inline_left = self.size
        while head := reader.take(8):
            if len(head) < 8:
                raise RepositoryError(f"the splitstream '{self.origin}' ends in the middle of a length")
            number = _I64.unpack(head)[0]
            if number >= 0:
                if number >= len(self.object_refs):
                    raise RepositoryError(
                        f"the splitstream '{self.origin}' names object {number} of {len(self.object_refs)}"
                    )
                yield self.object_refs[number]
                continue
            count = -number
            inline_left -= count
            if inline_left < 0:
                raise RepositoryError(f"the splitstream '{self.origin}' holds more than its {self.size} bytes")
            while count:
                piece = reader.take(min(count, _PIECE))
                if not piece:
                    raise RepositoryError(f"the splitstream '{self.origin}' ends in the middle of its data")
                count -= len(piece)
                yield piece


class _Decompressed:
    """Reads exact counts from a zstd frame held in memory, decompressing no more than is asked for."""

    def __init__(self, data: bytes, origin: str) -> None:
        self._reader = zstandard.ZstdDecompressor(max_window_size=_WINDOW_MAX).stream_reader(data)
        self._origin = origin
        self._buffer = b""
        self._at = 0

    def take(self, count: int) -> bytes:
        """Return ``count`` bytes, fewer only at the end."""
        end = self._at + count
        if end > len(self._buffer):
            rest = self._buffer[self._at :]
            try:
                more = self._reader.read(max(_PIECE, count))
                # A frame may give less than was asked for before its end.
                while len(rest) + len(more) < count and (piece := self._reader.read(_PIECE)):
                    more += piece
            except zstandard.ZstdError as exc:
                raise RepositoryError(f"the splitstream '{self._origin}' is damaged: {exc}") from exc
            self._buffer = rest + more
            self._at = 0
            end = count
        data = self._buffer[self._at : end]
        self._at += len(data)
        return data


def is_splitstream(head: bytes) -> bool:
    """Tell from the first 32 bytes whether a file is a splitstream, in either order of the header."""
    return head.startswith(_MAGIC) or head[18:29] == _MAGIC


def parse_splitstream(data: bytes, *, origin: str) -> SplitStream:
    """Parse a splitstream file; ``origin`` names it in messages.

    Raises:
        RepositoryError: it is none, or a range or index in it is out of bounds.
    """
    algorithm_number, start, end = _parse_header(data[: _HEADER.size], origin)
    info = _part(data, start, end, origin)
    if len(info) < _INFO.size:
        raise RepositoryError(f"the splitstream '{origin}' has an info block of {len(info)} bytes")
    *bounds, content_type, size = _INFO.unpack_from(info)
    size_of_digest = Algorithm(algorithm_number).size
    streams = _digests(_part(data, bounds[0], bounds[1], origin), size_of_digest, origin)
    objects = _digests(_part(data, bounds[2], bounds[3], origin), size_of_digest, origin)
    stream = _part(data, bounds[4], bounds[5], origin)
    return SplitStream(
        content_type=content_type,
        size=size,
        stream_refs=streams,
        object_refs=objects,
        names=_parse_names(_part(data, bounds[6], bounds[7], origin), streams, origin),
        origin=origin,
        _stream=stream,
    )


def parse_stream_size(read: Callable[[int, int], bytes], *, origin: str) -> int:
    """Return the length of the rebuilt stream from a file's header and info block.

    Args:
        read: returns bytes of the file, by offset and length.
        origin: names it in messages.

    Raises:
        RepositoryError: it is no splitstream.
    """
    _, start, end = _parse_header(read(0, _HEADER.size), origin)
    info = read(start, _INFO.size) if start + _INFO.size <= end < 1 << 62 else b""
    if len(info) < _INFO.size:
        raise RepositoryError(f"the splitstream '{origin}' has no info block")
    size: int = _INFO.unpack(info)[-1]
    return size


def _parse_header(head: bytes, origin: str) -> tuple[int, int, int]:
    """Return the number of the algorithm, and the range of the info block."""
    if len(head) < _HEADER.size or not is_splitstream(head):
        raise RepositoryError(f"'{origin}' is not a splitstream")
    if head.startswith(_MAGIC):
        _, version, flags, algorithm_number, block, start, end = _HEADER.unpack_from(head)
    else:
        start, end, flags, _, version, algorithm_number, block = _HEADER_OLD.unpack_from(head)
    if version != 0 or flags != 0 or block != 12 or algorithm_number not in (1, 2):
        raise RepositoryError(
            f"the splitstream '{origin}' is of an unknown kind"
            f" (version {version}, flags {flags}, algorithm {algorithm_number}, block size 2^{block})"
        )
    return algorithm_number, start, end


def _part(data: bytes, start: int, end: int, origin: str) -> bytes:
    if not start <= end <= len(data):
        raise RepositoryError(f"the splitstream '{origin}' has the range {start}-{end} in {len(data)} bytes")
    return data[start:end]


def _digests(data: bytes, size: int, origin: str) -> tuple[VerityDigest, ...]:
    if len(data) % size:
        raise RepositoryError(f"the splitstream '{origin}' has a broken list of digests")
    return tuple(VerityDigest(data[at : at + size]) for at in range(0, len(data), size))


def _parse_names(data: bytes, streams: tuple[VerityDigest, ...], origin: str) -> dict[str, VerityDigest]:
    if not data:
        return {}
    reader = _Decompressed(data, origin)
    text = b""
    while piece := reader.take(_PIECE):
        text += piece
        if len(text) > _NAMES_MAX:
            raise RepositoryError(f"the splitstream '{origin}' has more than {_NAMES_MAX} bytes of names")
    names: dict[str, VerityDigest] = {}
    for item in text.split(b"\0"):
        if not item:
            continue
        number, separator, name = item.partition(b":")
        if not separator or not number.isdigit() or len(number) > 9 or int(number) >= len(streams):
            raise RepositoryError(f"the splitstream '{origin}' has the broken name '{item[:80]!r}'")
        names[name.decode("utf-8", "surrogateescape")] = streams[int(number)]
    return names


def iter_bytes(stream: SplitStream, read_object: Callable[[VerityDigest], Iterator[bytes]]) -> Iterator[bytes]:
    """Rebuild the exact byte stream.

    Args:
        stream: what to rebuild.
        read_object: yields the content of an object in pieces.

    Raises:
        RepositoryError: the stream is damaged, or its length is not the one it tells.
    """
    total = 0
    for piece in stream.pieces():
        for data in (piece,) if isinstance(piece, bytes) else read_object(piece):
            total += len(data)
            if total > stream.size:
                break
            yield data
        if total > stream.size:
            break
    if total != stream.size:
        raise RepositoryError(f"the splitstream '{stream.origin}' gives {total} bytes, expected {stream.size}")
