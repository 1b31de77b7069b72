"""A tree becomes an EROFS image, byte for byte as mkcomposefs makes it; format versions 0 and 1. Pure.

The tree is rewritten for overlayfs (:mod:`overlay`) on the way, without a copy and without changing it:

1. collect: number the inodes breadth first, children in byte order;
2. plan the xattrs; decide which are shared;
3. place: walk the inodes, give each its position; an inode's tail (last directory piece, symlink target, end of inline
   content, chunk table) follows it unless it would cross a block or is larger than half of one;
4. emit: inodes, shared xattrs, data blocks.

Lists with one element an inode hold what is known so far. The loops over all inodes are written for speed.
"""

from __future__ import annotations

import stat
import struct
from operator import attrgetter

from bootwright.digest import Algorithm
from bootwright.erofs import disk, overlay
from bootwright.erofs.directories import Directory, check_names, encode_directory
from bootwright.erofs.disk import BLOCK
from bootwright.erofs.dumptext import escape
from bootwright.erofs.tree import HardLink, Inode, walk
from bootwright.erofs.xattrs import AreaHead, XattrPlan, XattrSet, external_xattrs
from bootwright.errors import ImageError, UsageError

__all__ = ["write_image"]

_NO_BLOCK = b"\xff\xff\xff\xff"


def write_image(
    root: Inode, *, min_version: int = 0, max_version: int = 1, algorithm: Algorithm = Algorithm.SHA256
) -> bytes:
    """Make an image of a tree, which is not changed.

    Args:
        root: the tree.
        min_version: lowest format version to write, 0 or 1.
        max_version: highest; a version above the lowest is written only when the tree has whiteouts.
        algorithm: of the digests of the external files.

    Raises:
        ImageError: something in the tree cannot be stored; the message names its path.
        UsageError: unknown format version.
    """
    if not 0 <= min_version <= 1 or not 0 <= max_version <= 1:
        raise UsageError(
            f"there is no format version {max(min_version, max_version)}", hint="the format versions are 0 and 1"
        )
    image = _Image(root, algorithm)
    try:
        image.collect()
        version = 1 if min_version == 1 or (max_version == 1 and image.whiteouts) else 0
        image.plan_xattrs(version)
        image.place()
        return image.emit(version)
    except struct.error as exc:
        raise ImageError(_find_unfit(root) or f"a number in the tree does not fit an image: {exc}") from exc


# What an inode needs beside its fields. An external file whose set holds metacopy and redirect is "marked".
_EXTERNAL, _MARKED, _DIRECTORY, _SYMLINK, _INLINE, _EMPTY, _DEVICE = range(7)
_KINDS = {
    stat.S_IFREG: _EXTERNAL,
    stat.S_IFDIR: _DIRECTORY,
    stat.S_IFLNK: _SYMLINK,
    stat.S_IFCHR: _DEVICE,
    stat.S_IFBLK: _DEVICE,
    stat.S_IFIFO: _EMPTY,
    stat.S_IFSOCK: _EMPTY,
}


class _Image:
    """An image while it is made."""

    def __init__(self, root: Inode, algorithm: Algorithm) -> None:
        self.root = root
        self.digest_size = algorithm.size
        self.inodes: list[Inode] = [root]
        self.directories: list[Directory] = []
        self.has_links = False
        self.whiteouts: set[int] = set()  # inos of whiteouts of the tree, not of stubs
        self.whiteout_parents: set[int] = set()
        self.stubs: set[Inode] = set()
        self.build_time = (0, 0)
        # One element an inode:
        self.kinds: list[int] = []
        self.sets: list[XattrSet] = []
        self.places: list[tuple[int, bool, int, int, int]] = []  # nid, is compact, size, blocks, tail
        # One element an external file that is not marked:
        self.areas: list[tuple[AreaHead, bytes]] = []
        self.xattrs = XattrPlan()
        self.inodes_end = 0

    def collect(self) -> None:
        """Number the inodes breadth first."""
        root = self.root
        if not root.is_directory:
            raise ImageError("the root of an image must be a directory")
        stubs = overlay.make_stubs(root)
        self.stubs = set(stubs.values())
        inodes = self.inodes
        seen = {root}
        self.directories = [Directory(0, 0, {**(root.children or {}), **stubs})]
        for directory in self.directories:  # grows while it runs
            children = directory.children
            directory.first = len(inodes)
            names = sorted(children)
            if names:
                check_names(names)
            for name in names:
                node = children[name]
                if isinstance(node, HardLink):
                    self.has_links = True
                    continue
                kind = node.mode & 0o170000
                if kind == stat.S_IFDIR:
                    if node in seen:
                        raise ImageError("the same directory is in the tree twice")
                    seen.add(node)
                    directory.nlink += 1
                    self.directories.append(Directory(len(inodes), directory.ino, node.children or {}))
                elif kind == stat.S_IFCHR and node.rdev == 0 and node not in self.stubs:
                    self.whiteouts.add(len(inodes))
                    self.whiteout_parents.add(directory.ino)
                inodes.append(node)
            names += (b".", b"..")
            names.sort()
            directory.names = names
        if len(set(inodes)) != len(inodes):
            raise ImageError("the same inode is in the tree twice", hint="further names must be hard links")
        self.build_time = min(map(attrgetter("mtime_sec", "mtime_nsec"), inodes))

    def plan_xattrs(self, version: int) -> None:
        """Find out what each inode is, and its xattrs."""
        marks = overlay.DIRECTORY_MARKS | (overlay.OPAQUE_MARKS if version >= 1 else {})
        extras = dict.fromkeys(self.whiteouts, overlay.WHITEOUT_MARKS) | dict.fromkeys(self.whiteout_parents, marks)
        extras[0] = {overlay.OPAQUE: b"y"} | extras.get(0, {})
        digests: list[bytes | None] = []
        payloads: list[bytes | None] = []
        kinds, sets, get_set, find_set = self.kinds, self.sets, self.xattrs.get_set, self.xattrs.known.get
        no_xattrs = get_set({})
        for ino, inode in enumerate(self.inodes):
            try:
                xattrs = inode.xattrs
                xattr_set = find_set(tuple(xattrs.items())) if xattrs else no_xattrs
                if xattr_set is None or ino in extras:
                    xattr_set = get_set(xattrs, extras.get(ino))
                xattr_set.count += 1
                kind = _EMPTY if ino in self.whiteouts else self._find_kind(inode)
                if kind == _EXTERNAL:
                    if xattr_set.can_splice:
                        digests.append(inode.digest or None)
                        payloads.append(inode.payload or None)
                    else:
                        xattr_set.count -= 1
                        xattr_set = get_set(xattrs, external_xattrs(inode.digest, inode.payload))
                        xattr_set.count += 1
                        kind = _MARKED
            except ImageError as exc:
                raise ImageError(f"{self._find_path(inode)}: {exc.message}", hint=exc.hint) from exc
            kinds.append(kind)
            sets.append(xattr_set)
        self.xattrs.count_external(digests, payloads)
        self.xattrs.share()

    def _find_kind(self, inode: Inode) -> int:
        kind = _KINDS.get(inode.mode & 0o170000)
        if kind == _EXTERNAL:
            content = inode.content
            if not inode.size and not content:
                return _EMPTY
            if content is not None:
                if len(content) != inode.size:
                    raise ImageError(f"has {len(content)} bytes of content but the size {inode.size}")
                if inode.size > disk.MAX_CONTENT:
                    raise ImageError(
                        f"has {inode.size} bytes of inline content, at most {disk.MAX_CONTENT} are allowed"
                    )
                return _INLINE
            payload = inode.payload
            if payload and (len(payload) > disk.MAX_PAYLOAD or b"\0" in payload or b".." in payload.split(b"/")):
                raise ImageError(f"the object path {payload[:80]!r} cannot be stored")
            if inode.digest and len(inode.digest) != self.digest_size:
                raise ImageError(
                    f"its digest has {len(inode.digest)} bytes, this image's have {self.digest_size}",
                    hint="one image has digests of one algorithm, sha256 or sha512",
                )
            if not 0 < inode.size <= disk.MAX_EXTERNAL:
                raise ImageError(f"its size {inode.size} is more than {disk.MAX_EXTERNAL} bytes")
        elif kind == _SYMLINK:
            target = inode.target
            if not target or len(target) > disk.MAX_PAYLOAD or b"\0" in target:
                raise ImageError(f"a symlink's target has 1 to {disk.MAX_PAYLOAD} bytes, no NUL")
        elif kind is None:
            raise ImageError(f"the mode {inode.mode:o} has no valid file type")
        return kind

    def _find_path(self, inode: Inode) -> str:
        """Name an inode in a message; only errors pay for it."""
        for path, node in walk(self.root):
            if node is inode:
                return f"'{escape(path).decode('ascii')}'"
        return "a stub of the root"

    def place(self) -> None:
        """Give every inode its place."""
        pos = disk.INODES_START
        build_sec, build_nsec = self.build_time
        directories = iter(self.directories)
        splice = self.xattrs.splice
        places, areas = self.places, self.areas
        for inode, kind, xattr_set in zip(self.inodes, self.kinds, self.sets, strict=True):
            pos = (pos + 31) & ~31
            size = inode.size
            nlink = inode.nlink
            xattr_size = xattr_set.size
            blocks = tail = 0
            if kind <= _MARKED:
                tail = 4 if size <= 1 << disk.MAX_CHUNK_BITS else 4 * -(-size >> disk.MAX_CHUNK_BITS)
                if kind == _EXTERNAL:
                    area = splice(xattr_set, inode.digest or None, inode.payload or None)
                    areas.append(area)
                    xattr_size = area[0].size + len(area[1])
            elif kind == _DIRECTORY:
                directory = next(directories)
                nlink = directory.nlink
                blocks = directory.divide()
                tail = directory.tail
                size = blocks * BLOCK + tail
            elif kind == _SYMLINK:
                size = tail = len(inode.target or b"")
            elif kind == _INLINE:
                blocks, tail = divmod(size, BLOCK)
                if tail > disk.MAX_TAIL:
                    blocks, tail = blocks + 1, 0
            elif inode.mode & 0o170000 == stat.S_IFCHR and not inode.rdev:
                size = 0  # a whiteout or stub
            is_compact = (
                nlink <= 0xFFFF
                and inode.mtime_sec == build_sec
                and inode.mtime_nsec == build_nsec
                and inode.uid <= 0xFFFF
                and inode.gid <= 0xFFFF
                and size <= 0xFFFFFFFF
            )
            nontail = (disk.COMPACT.size if is_compact else disk.EXTENDED.size) + xattr_size
            # Four bytes or less cannot cross a block: everything before them is aligned to four.
            if kind == _SYMLINK:
                pos, blocks, tail = _align_symlink(pos, nontail, tail)
            elif tail > 4:
                pos, blocks, tail = _align_tail(pos, nontail, blocks, tail)
            places.append((pos >> 5, is_compact, size, blocks, tail))
            pos += nontail + tail
        self.inodes_end = (pos + 31) & ~31
        self.xattrs.place(self.inodes_end)
        root_nid = places[0][0]
        if root_nid > 0xFFFF:
            raise ImageError("the root directory cannot be placed: its xattrs are too large")

    def emit(self, version: int) -> bytes:
        """Write everything down."""
        data_start = _round_up(self.inodes_end + len(self.xattrs.table), BLOCK)
        data: list[bytes] = []
        out: list[bytes] = [b""]
        append = out.append
        block = data_start // BLOCK
        at = disk.INODES_START
        nids = [place[0] for place in self.places]
        types = [disk.FILE_TYPES[inode.mode & 0o170000] for inode in self.inodes]
        for ino in self.whiteouts:
            types[ino] = disk.FILE_TYPES[stat.S_IFREG]
        inos = {inode: ino for ino, inode in enumerate(self.inodes)} if self.has_links else None
        directories = iter(self.directories)
        areas = iter(self.areas)
        pack_compact, pack_extended = disk.COMPACT.pack, disk.EXTENDED.pack
        for ino, (inode, kind, xattr_set, (nid, is_compact, size, blocks, tail)) in enumerate(
            zip(self.inodes, self.kinds, self.sets, self.places, strict=True)
        ):
            mode = inode.mode & 0xFFFF
            nlink = inode.nlink
            stored = 0 if kind >= _EMPTY else size
            area = xattr_set.encoded
            word = block if blocks else 0  # i_u
            layout = disk.FLAT_INLINE if tail else disk.FLAT_PLAIN
            content = b""
            if kind <= _MARKED:
                layout = disk.CHUNKED
                if size <= BLOCK:
                    content = _NO_BLOCK
                elif size <= 1 << disk.MAX_CHUNK_BITS:
                    content = _NO_BLOCK
                    word = (size - 1).bit_length() - 12
                else:
                    # A table that was moved to a block fills it.
                    content = _NO_BLOCK * (BLOCK // 4 if blocks else -(-size >> disk.MAX_CHUNK_BITS))
                    word = word & 0xFFFF0000 | disk.MAX_CHUNK_BITS - 12
                if kind == _EXTERNAL:
                    area_head, rest = next(areas)
                    area = area_head.encoded + rest
            elif kind == _DIRECTORY:
                directory = next(directories)
                nlink = directory.nlink
                content = encode_directory(directory, nids, types, inos)
            elif kind == _SYMLINK:
                content = inode.target or b""
            elif kind == _INLINE:
                content = inode.content or b""
            elif kind == _DEVICE:
                word = inode.rdev
            elif ino in self.whiteouts:
                mode = stat.S_IFREG | mode & 0o7777
            icount = (len(area) - 8) >> 2 if area else 0
            if is_compact:
                head = pack_compact(layout << 1, icount, mode, nlink, stored, 0, word, ino, inode.uid, inode.gid, 0)
            else:
                head = pack_extended(
                    layout << 1 | 1,
                    icount,
                    mode,
                    0,
                    stored,
                    word,
                    ino,
                    inode.uid,
                    inode.gid,
                    inode.mtime_sec,
                    inode.mtime_nsec,
                    nlink,
                )
            if blocks:
                data.append(content[: blocks * BLOCK].ljust(blocks * BLOCK, b"\0"))
                block += blocks
                content = content[blocks * BLOCK :]
            start = nid << 5
            append(bytes(start - at))
            append(head)
            append(area)
            append(content)
            at = start + len(head) + len(area) + tail
        append(bytes(self.inodes_end - at))
        append(self.xattrs.table)
        append(bytes(data_start - self.inodes_end - len(self.xattrs.table)))
        out += data
        out[0] = self._headers(version, block)
        return b"".join(out)

    def _headers(self, version: int, blocks: int) -> bytes:
        flags = disk.FLAG_ACL if self.xattrs.has_acl else 0
        composefs = disk.COMPOSEFS_HEADER.pack(disk.COMPOSEFS_MAGIC, 1, flags, version)
        superblock = disk.SUPERBLOCK.pack(
            disk.EROFS_MAGIC,
            0,
            disk.FEATURES,
            12,
            0,
            self.places[0][0],
            len(self.inodes),
            *self.build_time,
            blocks,
            0,
            self.inodes_end // BLOCK,
            b"",
            b"",
            0,
        )
        return composefs.ljust(disk.SUPERBLOCK_OFFSET, b"\0") + superblock


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _align_symlink(pos: int, nontail: int, tail: int) -> tuple[int, int, int]:
    """Keep inode, xattrs and target in one block: old kernels reject a target that crosses one."""
    total = nontail + tail
    if pos // BLOCK != (pos + total - 1) // BLOCK:
        pos = _round_up(pos, BLOCK)
    return (pos, 1, 0) if total >= BLOCK else (pos, 0, tail)


def _align_tail(pos: int, nontail: int, blocks: int, tail: int) -> tuple[int, int, int]:
    """Keep the tail in one block; inode and xattrs may cross."""
    room = BLOCK - (pos + nontail) % BLOCK
    if room >= tail:
        return pos, blocks, tail
    skip = _round_up(room, 32)
    if tail <= BLOCK - (pos + nontail + skip) % BLOCK:
        return pos + skip, blocks, tail
    return _round_up(pos, BLOCK), blocks + 1, 0


_RANGES = (
    ("nlink", 0, 0xFFFFFFFF),
    ("uid", 0, 0xFFFFFFFF),
    ("gid", 0, 0xFFFFFFFF),
    ("rdev", 0, 0xFFFFFFFF),
    ("mtime_sec", -(1 << 63), (1 << 63) - 1),
    ("mtime_nsec", 0, 0xFFFFFFFF),
    ("size", 0, (1 << 64) - 1),
)


def _find_unfit(root: Inode) -> str | None:
    """Find the number that a struct refused, so that the common case need not look at every number."""
    for path, node in walk(root):
        if isinstance(node, Inode):
            for field, low, high in _RANGES:
                value: int = getattr(node, field)
                if not low <= value <= high:
                    return f"'{escape(path).decode('ascii')}': {field} {value} is not from {low} to {high}"
    return None
