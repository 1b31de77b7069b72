"""Look into an initramfs: does it have the module that mounts a deployment? Pure.

An initramfs is a row of cpio archives, each plain or compressed, with zeros between them (Linux,
driver-api/early-userspace/buffer-format.rst). The first are often plain and carry microcode; the last, compressed, is
the file system. Names in cpio archives stand as they are, so a search for them in the decompressed bytes is enough.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from typing import Protocol

import zstandard

__all__ = ["MODULE_NAMES", "has_module"]

# Ours in dracut and initramfs-tools, then bootc's, whose initramfs takes the same arguments.
MODULE_NAMES = (
    b"bootwright-root-setup",
    b"lib/bootwright/root-setup",
    b"scripts/local-bottom/bootwright",
    b"bootc-root-setup",
    b"composefs-setup-root",
)

_NEWC = (b"070701", b"070702")
_HEADER_SIZE = 110
_MAX_DECOMPRESSED = 2 << 30
_PIECE = 1 << 20
_OVERLAP = max(len(name) for name in MODULE_NAMES) - 1


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def _open_compressed(data: memoryview) -> _Readable | None:
    """Open what follows as one compressed file, whose members may be several; None for an unknown compression."""
    head, file = bytes(data[:6]), io.BytesIO(data)
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        # Padding is no frame. Should the last frame itself end in zeros, only its checksum is cut, after all content.
        file = io.BytesIO(bytes(data).rstrip(b"\0"))
        return zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
    if head.startswith((b"\xfd7zXZ\0", b"\x5d\0\0")):
        return lzma.LZMAFile(file)
    if head.startswith(b"BZh"):
        return bz2.BZ2File(file)
    return None


def has_module(data: bytes) -> bool | None:
    """Tell whether an initramfs has a module that mounts deployments.

    Returns:
        None when that cannot be told: a compression we do not know (lz4, lzo), or damage.
    """
    try:
        return _search(memoryview(data))
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, zstandard.ZstdError):
        return None


def _search(data: memoryview) -> bool | None:
    at = 0
    while True:
        while at < len(data) and data[at] == 0:
            at += 1
        if at == len(data):
            return False if at else None
        if bytes(data[at : at + 6]) not in _NEWC:
            break
        end = _skip_archive(data, at)
        if end is None:
            return None
        if _contains_name(io.BytesIO(data[at:end])):
            return True
        at = end
    compressed = _open_compressed(data[at:])
    return None if compressed is None else _contains_name(compressed)


def _contains_name(file: _Readable) -> bool:
    tail = b""
    total = 0
    while piece := file.read(_PIECE):
        window = tail + piece
        if any(name in window for name in MODULE_NAMES):
            return True
        tail = window[-_OVERLAP:]
        total += len(piece)
        if total > _MAX_DECOMPRESSED:
            raise ValueError("the initramfs is too large to look into")
    return False


def _skip_archive(data: memoryview, at: int) -> int | None:
    """Return where a plain newc archive ends; None when it is damaged."""
    while True:
        header = bytes(data[at : at + _HEADER_SIZE])
        if len(header) < _HEADER_SIZE or not header.startswith(_NEWC):
            return None
        size, name_size = int(header[54:62], 16), int(header[94:102], 16)
        name_end = at + _HEADER_SIZE + name_size
        is_trailer = bytes(data[at + _HEADER_SIZE : name_end]).startswith(b"TRAILER!!!")
        at = -(-name_end // 4) * 4 + -(-size // 4) * 4
        if is_trailer:
            return min(at, len(data))
        if at >= len(data):
            return None
