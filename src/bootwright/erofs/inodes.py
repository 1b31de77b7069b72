"""Reads single inodes of an image that is not trusted: fields, xattrs, content, directory entries. Pure.

The parts of an image do not overlap, so their lengths add up to at most its length. The reader keeps account
(:meth:`InodeReader._claim`): an image whose inodes share blocks to blow up the work is refused.
"""

from __future__ import annotations

import stat
import struct

from bootwright.erofs import disk
from bootwright.erofs.disk import BLOCK
from bootwright.erofs.overlay import ESCAPED_PREFIX, METACOPY, METACOPY_HEADERS, OPAQUE, OVERLAY_PREFIX, REDIRECT
from bootwright.erofs.tree import Inode
from bootwright.errors import ImageError

__all__ = ["InodeReader"]

_PREFIXES = {0: b"", **{index: prefix for prefix, index in disk.XATTR_PREFIXES}}
_LAYOUTS = {disk.FLAT_PLAIN, disk.FLAT_INLINE, disk.CHUNKED}
_CHUNK_BITS_MASK = 0x1F  # i_u of a chunked file; the bits above mean other kinds of index


def _damaged(reason: str) -> ImageError:
    return ImageError(f"the image is damaged: {reason}")


class InodeReader:
    """An image, its superblock checked.

    Args:
        data: the whole image; its composefs header was checked.

    Raises:
        ImageError: the superblock does not fit.
    """

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._claimed = 0
        (
            magic,
            _,
            _,
            block_bits,
            slots,
            self.root_nid,
            _,
            self._build_sec,
            self._build_nsec,
            blocks,
            meta_block,
            self._xattr_block,
            _,
            _,
            incompatible,
        ) = disk.SUPERBLOCK.unpack_from(data, disk.SUPERBLOCK_OFFSET)
        if magic != disk.EROFS_MAGIC or block_bits != 12 or slots or meta_block:
            raise _damaged("its superblock is not one of composefs")
        if incompatible:
            raise ImageError(f"the image uses EROFS features that composefs has not: 0x{incompatible:x}")
        if blocks * BLOCK != len(data):
            raise ImageError(
                f"the image says it has {blocks} blocks, but has {len(data) // BLOCK}", hint="it is cut off"
            )
        self._shared: dict[int, tuple[bytes, bytes]] = {}  # by id
        self._areas: dict[bytes, dict[bytes, bytes]] = {}  # parsed xattr areas without inline entries
        self._contents: dict[int, tuple[int, int, int, int]] = {}  # directories: where their entries are

    def _claim(self, position: int, size: int) -> None:
        """Require that a part lies inside the image and that all parts together are not larger than it."""
        self._claimed += size
        if position < disk.INODES_START or position + size > len(self._data) or self._claimed > len(self._data):
            raise _damaged(f"a part of {size} bytes at {position} lies outside or overlaps another one")

    def read(self, nid: int) -> tuple[Inode, int]:
        """Read an inode; returns it and its number. A directory has no children yet.

        Raises:
            ImageError: it is damaged.
        """
        data = self._data
        position = nid << 5
        if not disk.INODES_START <= position <= len(data) - disk.COMPACT.size:
            raise _damaged(f"the inode {nid} lies outside")
        if data[position] & 1:
            if position > len(data) - disk.EXTENDED.size:
                raise _damaged(f"the inode {nid} lies outside")
            kind, icount, mode, _, size, word, ino, uid, gid, sec, nsec, nlink = disk.EXTENDED.unpack_from(
                data, position
            )
            end = position + disk.EXTENDED.size
        else:
            kind, icount, mode, nlink, size, _, word, ino, uid, gid, _ = disk.COMPACT.unpack_from(data, position)
            sec, nsec = self._build_sec, self._build_nsec
            end = position + disk.COMPACT.size
        layout = kind >> 1
        if layout not in _LAYOUTS:
            raise _damaged(f"the inode {nid} has the unknown data layout {layout}")
        area_size = 8 + 4 * icount if icount else 0
        self._claim(position, end - position + area_size)
        xattrs = self._read_xattrs(bytes(data[end : end + area_size])) if icount else {}
        end += area_size
        inode = Inode(mode, nlink, uid, gid, 0, size, sec, nsec, xattrs)
        file_type = mode & 0o170000
        if layout == disk.CHUNKED:
            if file_type != stat.S_IFREG:
                raise _damaged(f"the inode {nid} has a chunk table but is no file")
            self._read_external(inode, end, word)
        elif METACOPY in xattrs or REDIRECT in xattrs:
            raise _damaged(f"the inode {nid} points to an object but is no external file")
        elif file_type == stat.S_IFREG:
            if size > disk.MAX_CONTENT:
                raise _damaged(f"the inode {nid} has {size} bytes of inline content")
            if size:
                inode.content = self._read_content(end, word, size, layout)
        elif file_type == stat.S_IFLNK:
            if not 0 < size <= disk.MAX_PAYLOAD:
                raise _damaged(f"the symlink {nid} has a target of {size} bytes")
            inode.target = self._read_content(end, word, size, layout)
            if b"\0" in inode.target:
                raise _damaged(f"the symlink {nid} has a NUL byte in its target")
        elif file_type == stat.S_IFDIR:
            self._contents[nid] = end, word, size, layout
        elif file_type in disk.FILE_TYPES:
            inode.size = 0
            if file_type in (stat.S_IFCHR, stat.S_IFBLK):
                inode.rdev = word
        else:
            raise _damaged(f"the inode {nid} has the mode {mode:o}, which is no file type")
        if xattrs:
            _undo_overlay(inode)
        return inode, ino

    def _read_content(self, end: int, word: int, size: int, layout: int) -> bytes:
        """Read blocks and tail; ``end`` is where the tail would be."""
        if size > len(self._data):
            raise _damaged(f"a content of {size} bytes is larger than the image")
        blocks, tail = divmod(size, BLOCK)
        if layout == disk.FLAT_PLAIN:
            blocks, tail = blocks + (1 if tail else 0), 0
        content = b""
        if blocks:
            self._claim(word * BLOCK, blocks * BLOCK)
            content = bytes(self._data[word * BLOCK : word * BLOCK + min(blocks * BLOCK, size)])
        if tail:
            self._claim(end, tail)
            if end // BLOCK != (end + tail - 1) // BLOCK:
                raise _damaged("an inline tail crosses a block")
            content += bytes(self._data[end : end + tail])
        return content

    def _read_external(self, inode: Inode, end: int, word: int) -> None:
        """Take payload and digest of an external file from its xattrs, and check its chunk table."""
        size = inode.size
        bits = 12 + (word & _CHUNK_BITS_MASK)
        chunks = -(-size >> bits)
        if not 0 < size <= disk.MAX_EXTERNAL or word & 0xFFFF & ~_CHUNK_BITS_MASK or chunks > disk.MAX_CHUNKS:
            raise _damaged(f"an external file of {size} bytes has an impossible chunk table")
        # A table that would cross a block was moved to a block whose address is not kept: no use, no check.
        if end // BLOCK == (end + 4 * chunks - 1) // BLOCK:
            self._claim(end, 4 * chunks)
            if bytes(self._data[end : end + 4 * chunks]) != b"\xff" * (4 * chunks):
                raise _damaged("an external file has data blocks")
        metacopy = inode.xattrs.pop(METACOPY, b"")
        redirect = inode.xattrs.pop(REDIRECT, None)
        if metacopy:
            header, inode.digest = metacopy[:4], metacopy[4:]
            if METACOPY_HEADERS.get(len(inode.digest)) != header:
                raise _damaged("the metacopy xattr of an external file is malformed")
        if redirect is not None:
            inode.payload = redirect[1:]
            if not redirect.startswith(b"/") or not 1 < len(redirect) <= 1 + disk.MAX_PAYLOAD:
                raise _damaged("the redirect xattr of an external file is no absolute path")
            if b"\0" in redirect or (b".." in redirect and b".." in redirect.split(b"/")):
                raise _damaged("the redirect xattr of an external file leaves the object directory")

    def _read_xattrs(self, area: bytes) -> dict[bytes, bytes]:
        known = self._areas.get(area)
        if known is not None:
            return known.copy()
        _, count = disk.XATTR_HEADER.unpack_from(area)
        at = inline_start = disk.XATTR_HEADER.size + 4 * count
        if at > len(area):
            raise _damaged("a list of shared xattrs is longer than its area")
        # Inline ones first: the order in which composefs-info prints them.
        xattrs: dict[bytes, bytes] = {}
        found = count
        while at < len(area):
            key, value, at = _read_entry(area, at)
            xattrs[key] = value
            found += 1
        for number in struct.unpack_from(f"<{count}I", area, disk.XATTR_HEADER.size):
            pair = self._shared.get(number)
            if pair is None:
                pair = self._shared[number] = self._read_shared(number)
            xattrs[pair[0]] = pair[1]
        if len(xattrs) != found:
            raise _damaged("an inode has the same xattr twice")
        if inline_start == len(area):
            self._areas[area] = xattrs.copy()
        return xattrs

    def _read_shared(self, number: int) -> tuple[bytes, bytes]:
        position = self._xattr_block * BLOCK + 4 * number
        # At most: an entry's head, suffix and value.
        entry = bytes(self._data[position : position + 4 + 255 + 65535])
        if position < disk.INODES_START or len(entry) < disk.XATTR_ENTRY.size:
            raise _damaged(f"the shared xattr {number} lies outside")
        suffix_size, _, value_size = disk.XATTR_ENTRY.unpack_from(entry)
        self._claim(position, 4 + suffix_size + value_size)
        key, value, _ = _read_entry(entry[: 4 + suffix_size + value_size], 0)
        return key, value

    def read_entries(self, directory: Inode, nid: int) -> dict[bytes, tuple[int, int]]:
        """Read a directory: nid and file type by name, in order.

        Raises:
            ImageError: it is damaged.
        """
        end, word, size, layout = self._contents.pop(nid)
        content = self._read_content(end, word, size, layout)
        entries: dict[bytes, tuple[int, int]] = {}
        names: list[bytes] = []
        for begin in range(0, size, BLOCK):
            piece = content[begin : begin + BLOCK]
            table_size = int.from_bytes(piece[8:10], "little")
            if table_size < disk.DIRENT.size or table_size % disk.DIRENT.size or table_size > len(piece):
                raise _damaged(f"the directory {nid} has no entries where they should be")
            table = list(disk.DIRENT.iter_unpack(piece[:table_size]))
            ends = [entry[1] for entry in table[1:]]
            last = table[-1][1]
            padding = piece.find(b"\0", last)
            ends.append(padding if padding >= 0 else len(piece))
            for (child_nid, start, file_type, _), stop in zip(table, ends, strict=True):
                if not table_size <= start < stop <= len(piece) or stop - start > disk.MAX_NAME:
                    raise _damaged(f"the directory {nid} has a name of impossible length")
                name = piece[start:stop]
                names.append(name)
                entries[name] = child_nid, file_type
        together = b"".join(names)
        if b"/" in together or b"\0" in together:
            raise _damaged(f"the directory {nid} has a name with a slash or a NUL byte")
        if len(entries) != len(names) or names != sorted(names):
            raise _damaged(f"the names in the directory {nid} are not sorted or not unique")
        return entries


def _read_entry(area: bytes, at: int) -> tuple[bytes, bytes, int]:
    """Return key and value of an xattr, and where the next one begins."""
    if at + disk.XATTR_ENTRY.size > len(area):
        raise _damaged("an xattr is cut off")
    suffix_size, index, value_size = disk.XATTR_ENTRY.unpack_from(area, at)
    middle = at + disk.XATTR_ENTRY.size + suffix_size
    end = middle + value_size
    prefix = _PREFIXES.get(index)
    if end > len(area) or prefix is None:
        raise _damaged("an xattr is longer than its area, or has an unknown prefix")
    key = prefix + area[at + disk.XATTR_ENTRY.size : middle]
    if not key or b"\0" in key:
        raise _damaged("the key of an xattr is empty or has a NUL byte")
    return key, area[middle:end], (end + 3) & ~3


def _undo_overlay(inode: Inode) -> None:
    """Drop what the writer added for overlayfs, and unescape keys."""
    xattrs = inode.xattrs
    if not any(key.startswith(OVERLAY_PREFIX) for key in xattrs):
        return
    plain: dict[bytes, bytes] = {}
    for key, value in xattrs.items():
        if key.startswith(ESCAPED_PREFIX):
            plain[OVERLAY_PREFIX + key[len(ESCAPED_PREFIX) :]] = value
        elif not key.startswith(OVERLAY_PREFIX):
            plain[key] = value
        elif key != OPAQUE:
            raise _damaged(f"the xattr {key!r} has no business there")
    inode.xattrs = plain
