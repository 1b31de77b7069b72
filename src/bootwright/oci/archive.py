"""Reads tar archives of every dialect found in image layers, one entry after the other, exactly.

::

    [padding][extension headers and bodies][header][sparse map]  [stored body]  …  [end blocks][record padding]
    └──────────────── TarEntry.header ───────────────────────┘  └─ iter_body ┘     └───── iter_trailer ─────┘

Joined in this order the parts are the archive byte for byte; the store depends on it to rebuild layers.

Why not ``tarfile``: it ends silently at a broken header, reads extended headers of any size, hides the raw bytes, and
is an order of magnitude slower. Dialects: v7, ustar, PAX, GNU (long names, base-256, sparse), star. Where they leave a
choice, this reader does what Go's archive/tar does, since that is what image builders were tested with: global PAX
headers are ignored, links and devices have no body, a lone zero block followed by something else is an error.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Self

from bootwright.errors import ImageError
from bootwright.oci.sparse import check_map, expand_holes, read_old_map, read_pax_map
from bootwright.oci.tar_entry import EntryType, TarEntry
from bootwright.oci.tar_fields import (
    MAX_NAME,
    PaxRecords,
    check_name_length,
    clean_name,
    cut,
    parse_decimal,
    parse_number,
    parse_time,
)

__all__ = ["EntryType", "TarEntry", "TarReader", "expand_sparse"]

_BLOCK = 512
_READ_SIZE = 1 << 20
_MAX_EXTENSION = 1 << 20  # body of one PAX or long-name header
_MAX_EXTENSIONS = 16  # in front of one entry
_MAX_ENTRIES = 5_000_000
_MAX_TRAILER = 64 << 20
_MAX_ID = 0xFFFFFFFE  # the last one means "do not change" to the kernel
_MAX_SIZE = (1 << 63) - 1 - _BLOCK
_ZERO_BLOCK = bytes(_BLOCK)

# name mode uid gid size mtime (checksum) typeflag linkname magic+version (uname gname) devmajor devminor prefix
_HEADER = struct.Struct("100s8s8s8s12s12s8xc100s8s64x8s8s155s12x")


_TYPES = {
    b"0": EntryType.REG,
    b"\0": EntryType.REG,
    b"7": EntryType.REG,  # contiguous: a hint to filesystems of old
    b"S": EntryType.REG,  # old GNU sparse
    b"1": EntryType.HARDLINK,
    b"2": EntryType.SYMLINK,
    b"3": EntryType.CHAR,
    b"4": EntryType.BLOCK,
    b"5": EntryType.DIR,
    b"6": EntryType.FIFO,
}
_EXTENSIONS = frozenset(b"xgLK")
_REG, _DIR, _SYMLINK, _HARDLINK = EntryType.REG, EntryType.DIR, EntryType.SYMLINK, EntryType.HARDLINK


class _Numbers(dict[bytes, int]):
    """Parsed numeric fields: most of them are the same few values in every header."""

    def __missing__(self, field: bytes) -> int:
        value = parse_number(field)
        if len(self) > 4096:
            self.clear()
        self[field] = value
        return value


class _Extensions:
    """What the headers in front of an entry say about it."""

    __slots__ = ("linkname", "name", "pax")

    def __init__(self) -> None:
        self.name: bytes | None = None
        self.linkname: bytes | None = None
        self.pax: PaxRecords | None = None


class TarReader:
    """Iterates over the entries of an archive. The body of an entry that was not read is skipped.

    Memory is bounded by the pieces that ``read`` returns and the limits on extension headers.

    Args:
        read: returns up to n bytes of the archive, ``b""`` at its end. Larger pieces are faster.
        what: names the archive in messages.

    Raises:
        ImageError: the archive is malformed or hostile; the message names the entry. Also whatever ``read`` raises.
    """

    def __init__(self, read: Callable[[int], bytes], *, what: str = "layer") -> None:
        self._read = read
        self._what = what
        self._buffer = b""
        self._position = 0  # in the buffer
        self._base = 0  # offset of the buffer in the archive
        self._left = 0  # unread bytes of the current body
        self._padding = 0  # bytes after the current body
        self._entry: TarEntry | None = None
        self._count = 0
        self._numbers = _Numbers()
        self._end: bytes | None = None  # first part of the trailer, when the end was met
        self._trailer: bytes | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TarEntry:
        if self._end is not None:
            raise StopIteration
        if self._left:
            self._skip_body()
        padding = self._padding
        position = self._position
        end = position + padding + _BLOCK
        if end <= len(self._buffer):
            header = self._buffer[position:end]
            self._position = end
        else:
            header = self._take(padding + _BLOCK)
        block = header[padding:] if padding else header
        if not self._is_header(block):
            self._finish(header, padding)
            raise StopIteration
        extensions = None
        if block[156] in _EXTENSIONS:
            header, block, extensions = self._read_extensions(header, block)
        self._count += 1
        if self._count > _MAX_ENTRIES:
            raise ImageError(f"{self._what} has more than {_MAX_ENTRIES} entries")
        try:
            entry = self._parse(block, header, extensions)
        except ValueError as exc:
            raise self._error(extensions, block, str(exc)) from exc
        self._left = entry.stored_size
        self._padding = -entry.stored_size & 511
        self._entry = entry
        return entry

    def read_body(self, size: int = -1) -> bytes:
        """Return the next bytes of the current body: ``size`` of them, or all that are left; fewer only at its end.

        For bodies that are known to be small: use :meth:`iter_body` for the others.

        Raises:
            ImageError: the archive ends inside the body.
        """
        if size < 0 or size > self._left:
            size = self._left
        position = self._position
        end = position + size
        if end <= len(self._buffer):
            data = self._buffer[position:end]
            self._position = end
        else:
            data = self._take(size)
            if len(data) < size:
                raise self._truncated_body()
        self._left -= size
        return data

    def iter_body(self) -> Iterator[bytes]:
        """Yield what is left of the current body, in pieces as large as they come; none is empty.

        Raises:
            ImageError: the archive ends inside the body.
        """
        entry = self._entry
        while self._left and self._entry is entry:
            position = self._position
            if position == len(self._buffer):
                if not self._next_buffer():
                    raise self._truncated_body()
                position = 0
            piece = self._buffer[position : position + self._left]
            self._position = position + len(piece)
            self._left -= len(piece)
            yield piece

    def iter_trailer(self) -> Iterator[bytes]:
        """Yield everything after the last body, when the iteration is over: padding, end blocks, what follows them.

        Reading it to its end makes the readers below check their digests.
        """
        if self._end is None:
            raise RuntimeError("the archive has not been read to its end")
        if self._trailer is not None:
            yield self._trailer
            return
        if self._end:
            yield self._end
            self._end = b""
        rest = self._buffer[self._position :]
        self._position = len(self._buffer)
        if rest:
            yield rest
        while data := self._read(_READ_SIZE):
            yield data

    @property
    def trailer(self) -> bytes:
        """Everything after the last body, as one piece; see :meth:`iter_trailer`.

        Raises:
            ImageError: it is unreasonably long.
        """
        if self._trailer is None:
            pieces = []
            size = 0
            for piece in self.iter_trailer():
                pieces.append(piece)
                size += len(piece)
                if size > _MAX_TRAILER:
                    raise ImageError(f"{self._what} has more than {_MAX_TRAILER >> 20} MiB after its last entry")
            self._trailer = b"".join(pieces)
        return self._trailer

    # --- the stream

    def _next_buffer(self) -> bool:
        self._base += len(self._buffer)
        self._buffer = self._read(_READ_SIZE)
        self._position = 0
        return bool(self._buffer)

    def _take(self, size: int) -> bytes:
        """Return the next bytes; fewer than ``size`` only at the end of the archive."""
        parts = [self._buffer[self._position : self._position + size]]
        have = len(parts[0])
        self._position += have
        while have < size and self._next_buffer():
            parts.append(self._buffer[: size - have])
            self._position = len(parts[-1])
            have += self._position
        return b"".join(parts)

    def _peek_block(self) -> bytes:
        block = self._take(_BLOCK)
        # Put back: what was taken may have come from more than one buffer.
        rest = self._buffer[self._position :]
        self._base += self._position - len(block)
        self._buffer = block + rest
        self._position = 0
        return block

    def _take_blocks(self, size: int) -> bytes:
        """Return the body of an extension header with its padding."""
        wanted = (size + _BLOCK - 1) & -_BLOCK
        data = self._take(wanted)
        if len(data) < wanted:
            raise ImageError(f"{self._what} ends inside an extension header {self._where()}")
        return data

    def _skip_body(self) -> None:
        while self._left:
            have = len(self._buffer) - self._position
            if not have:
                if not self._next_buffer():
                    raise self._truncated_body()
                continue
            step = min(have, self._left)
            self._position += step
            self._left -= step

    # --- headers

    def _is_header(self, block: bytes) -> bool:
        """Verify the checksum of a block; False for the zero block that ends the archive, and at the end of input."""
        if len(block) < _BLOCK:
            return False
        stored = block[148:156]
        if block == _ZERO_BLOCK:
            return False
        # adler32's low half is one more than the sum of the bytes, exact for up to 257 of them; 8 times sum()'s speed.
        total = (zlib.adler32(block[:256]) & 0xFFFF) + (zlib.adler32(block[256:]) & 0xFFFF) + 254 - sum(stored)
        expected = _parse_checksum(stored)
        if expected != total and expected != _signed_sum(block):
            raise ImageError(f"{self._what} has a header with a wrong checksum {self._where()}")
        return True

    def _finish(self, header: bytes, padding: int) -> None:
        """Meet the end: two zero blocks, one at the very end, or nothing at all at a block boundary."""
        if len(header) < padding:
            raise ImageError(f"{self._what} ends inside the padding {self._where()}")
        if padding < len(header) < padding + _BLOCK:
            raise ImageError(f"{self._what} ends inside a header {self._where()}")
        if len(header) > padding:
            second = self._take(_BLOCK)
            if second.strip(b"\0"):
                raise ImageError(f"{self._what} has a zero block that does not end it {self._where()}")
            header += second
        self._entry = None
        self._end = header

    def _read_extensions(self, header: bytes, block: bytes) -> tuple[bytes, bytes, _Extensions]:
        """Read PAX and GNU long-name headers up to the header they are for.

        Returns:
            All raw bytes, that header's block, and what was said.
        """
        raw = [header]
        extensions = _Extensions()
        for _ in range(_MAX_EXTENSIONS):
            kind = block[156]
            size = self._parse_extension_size(block)
            body = self._take_blocks(size)
            raw.append(body)
            body = body[:size]
            try:
                if kind == 0x78:  # x
                    extensions.pax = PaxRecords.parse(body)
                elif kind == 0x67:  # g: must be well-formed, but means nothing to an image
                    PaxRecords.parse(body)
                elif kind == 0x4C:  # L
                    extensions.name = cut(body)
                else:  # K
                    extensions.linkname = cut(body)
            except ValueError as exc:
                raise self._error(extensions, block, str(exc)) from exc
            block = self._take(_BLOCK)
            raw.append(block)
            if not self._is_header(block):
                raise ImageError(f"{self._what} ends after an extension header {self._where()}")
            if block[156] not in _EXTENSIONS:
                return b"".join(raw), block, extensions
        raise ImageError(f"{self._what} has more than {_MAX_EXTENSIONS} extension headers in a row {self._where()}")

    def _parse_extension_size(self, block: bytes) -> int:
        try:
            size = parse_number(block[124:136])
        except ValueError as exc:
            raise self._error(None, block, str(exc)) from exc
        if not 0 <= size <= _MAX_EXTENSION:
            raise self._error(None, block, f"has an extension header of {size} bytes")
        return size

    def _parse(self, block: bytes, header: bytes, extensions: _Extensions | None) -> TarEntry:
        name, mode, uid, gid, size, mtime, flag, linkname, magic, major, minor, prefix = _HEADER.unpack(block)
        kind = _TYPES.get(flag)
        if kind is None:
            raise ValueError(f"is of the unknown type {flag!r}")
        numbers = self._numbers
        name = name.split(b"\0", 1)[0]
        if prefix[0] and magic.startswith(b"ustar\0"):
            # star keeps times in the last 24 bytes and marks it at the very end.
            name = cut(prefix[:131] if block[508:] == b"tar\0" else prefix) + b"/" + name
        entry = TarEntry(
            name,
            kind,
            numbers[mode] & 0o7777,
            numbers[uid],
            numbers[gid],
            _parse_size(size) if kind is _REG or kind is _HARDLINK else 0,
            numbers[mtime],
            linkname if kind is _SYMLINK or kind is _HARDLINK else b"",
            header,
        )
        if extensions is not None:
            self._apply(entry, extensions)
        if flag == b"\0" and entry.name.endswith(b"/"):
            # v7 had no type for directories.
            entry.type = kind = _DIR
            entry.size = entry.stored_size = 0
        entry.name = clean_name(entry.name)
        if not entry.name and kind is not _DIR:
            raise ValueError(f"makes the root directory a {kind.value}")
        if not (0 <= entry.uid <= _MAX_ID and 0 <= entry.gid <= _MAX_ID):
            raise ValueError(f"has the owner {entry.uid}:{entry.gid}")
        if not 0 <= entry.size <= _MAX_SIZE:
            raise ValueError(f"has the size {entry.size}")
        if not -_MAX_SIZE <= entry.mtime_sec <= _MAX_SIZE:
            raise ValueError(f"has the time {entry.mtime_sec}")
        if kind is _REG:
            entry.stored_size = entry.size
            if flag == b"S" or (extensions is not None and extensions.pax is not None and extensions.pax.is_sparse):
                self._read_sparse(entry, block, extensions)
        elif kind is not _DIR:
            self._finish_special(entry, numbers[major], numbers[minor])
        return entry

    def _finish_special(self, entry: TarEntry, major: int, minor: int) -> None:
        """Complete a link or a device."""
        if entry.type is _SYMLINK or entry.type is _HARDLINK:
            target = cut(entry.linkname)
            if not target:
                raise ValueError("is a link without a target")
            if len(target) >= MAX_NAME:
                raise ValueError(f"is a link with a target of {len(target)} bytes")
            if entry.type is _HARDLINK:
                try:
                    target = clean_name(target)
                except ValueError as exc:
                    raise ValueError(f"is a hard link to '{_show(target)}', which {exc}") from exc
                if not target:
                    raise ValueError("is a hard link to the root directory")
                entry.stored_size = self._measure_link_body(entry.size)
                entry.size = 0
            entry.linkname = target
        elif entry.type is not EntryType.FIFO:
            # The kernel has 12 bits for the major and 20 for the minor number.
            if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
                raise ValueError(f"has the device number {major}:{minor}")
            entry.rdev = os.makedev(major, minor)

    def _measure_link_body(self, size: int) -> int:
        """Tell whether a hard link with a size has a body: POSIX allows it, Go, GNU and Python expect none."""
        if not size:
            return 0
        block = self._peek_block()
        if len(block) < _BLOCK or block == _ZERO_BLOCK:
            return 0
        try:
            return 0 if self._is_header(block) else size
        except ImageError:
            return size

    def _apply(self, entry: TarEntry, extensions: _Extensions) -> None:
        """Let the extension headers overrule the header."""
        if extensions.pax is not None:
            values = extensions.pax.values
            entry.xattrs = extensions.pax.xattrs or None
            entry.name = values.get(b"GNU.sparse.name") or values.get(b"path") or entry.name
            entry.linkname = values.get(b"linkpath") or entry.linkname
            if b"mtime" in values:
                entry.mtime_sec, entry.mtime_nsec = parse_time(values[b"mtime"])
            if b"uid" in values:
                entry.uid = parse_decimal(values[b"uid"], "owner")
            if b"gid" in values:
                entry.gid = parse_decimal(values[b"gid"], "group")
            if b"size" in values and entry.type in (_REG, _HARDLINK):
                entry.size = parse_decimal(values[b"size"], "size")
        if extensions.name is not None:
            entry.name = extensions.name
            check_name_length(entry.name)
        if extensions.linkname is not None:
            entry.linkname = extensions.linkname

    def _read_sparse(self, entry: TarEntry, block: bytes, extensions: _Extensions | None) -> None:
        raw = [entry.header]

        def read(size: int) -> bytes:
            data = self._take(size)
            if len(data) < size:
                raise ValueError("ends inside its sparse map")
            raw.append(data)
            return data

        pax = extensions.pax if extensions is not None else None
        if pax is not None and pax.is_sparse:
            entry.sparse, entry.size, used = read_pax_map(pax, entry.stored_size, read)
            entry.stored_size -= used
        else:
            entry.sparse, entry.size = read_old_map(block, lambda: read(_BLOCK))
            if pax is not None and b"SCHILY.realsize" in pax.values:
                entry.size = parse_decimal(pax.values[b"SCHILY.realsize"], "sparse size")
        check_map(entry.sparse, entry.size, entry.stored_size)
        entry.header = b"".join(raw)

    # --- messages

    def _where(self) -> str:
        after = f"after '{_show(self._entry.name)}'" if self._entry is not None else "at its start"
        return f"{after} (byte {self._base + self._position})"

    def _truncated_body(self) -> ImageError:
        name = self._entry.name if self._entry is not None else b""
        return ImageError(
            f"{self._what} ends inside the entry '{_show(name)}'",
            hint="the layer is truncated; build or push the image again",
        )

    def _error(self, extensions: _Extensions | None, block: bytes, reason: str) -> ImageError:
        name = cut(block[:100])
        if block[257:263] == b"ustar\0" and block[345]:
            name = cut(block[345:476]) + b"/" + name
        if extensions is not None:
            path = extensions.pax.values.get(b"path") if extensions.pax is not None else None
            name = extensions.name or path or name
        return ImageError(f"{self._what}: the entry '{_show(name)}' {reason} (byte {self._base + self._position})")


def expand_sparse(entry: TarEntry, body: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the content of the file that an entry makes, with the holes of a sparse file as zeros.

    Args:
        entry: of any regular file; one without holes is passed through.
        body: its stored bytes, as from :meth:`TarReader.iter_body`.

    Raises:
        ImageError: the stored bytes end early.
    """
    if entry.sparse is None:
        return iter(body)
    return expand_holes(entry.sparse, entry.size, body, what=f"the entry '{_show(entry.name)}'")


def _parse_size(field: bytes) -> int:
    try:
        return int(field[:11], 8) if field[11] == 0 and field[:11].isdigit() else parse_number(field)
    except ValueError:
        return parse_number(field)  # says why


def _parse_checksum(field: bytes) -> int:
    try:
        # Nearly all write six digits, NUL, space.
        return int(field[:6], 8) if field.endswith(b"\0 ") and field[:6].isdigit() else parse_number(field)
    except ValueError:
        return -1


def _signed_sum(block: bytes) -> int:
    """Sum a header as some old systems did, with signed characters; the checksum field counts as spaces."""
    body = block[:148] + b" " * 8 + block[156:]
    return sum(byte - 256 if byte > 127 else byte for byte in body)


def _show(name: bytes) -> str:
    text = name.decode("utf-8", "backslashreplace").replace("\0", "\\0")
    text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return text if len(text) <= 200 else f"{text[:197]}..."
