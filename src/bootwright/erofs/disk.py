"""The structures of an EROFS image as composefs writes it, format versions 0 and 1. Pure.

::

    0      composefs header (32 bytes), zeros up to 1024
    1024   EROFS superblock (128 bytes)
    1152   inodes, each 32-byte aligned: inode, xattr area, inline tail
           shared xattr table
           data blocks from the next block boundary

Little-endian throughout; a block is 4096 bytes. Source: the kernel's ``fs/erofs/erofs_fs.h`` and the composefs
project's description of its file format.
"""

from __future__ import annotations

import stat
from functools import lru_cache
from struct import Struct

from bootwright.erofs.xxhash import xxh32

__all__ = [
    "BLOCK",
    "CHUNKED",
    "COMPACT",
    "COMPOSEFS_HEADER",
    "COMPOSEFS_MAGIC",
    "DIRENT",
    "EROFS_MAGIC",
    "EXTENDED",
    "FEATURES",
    "FILE_TYPES",
    "FLAG_ACL",
    "FLAT_INLINE",
    "FLAT_PLAIN",
    "INODES_START",
    "MAX_CHUNKS",
    "MAX_CHUNK_BITS",
    "MAX_CONTENT",
    "MAX_EXTERNAL",
    "MAX_NAME",
    "MAX_PAYLOAD",
    "MAX_SHARED",
    "MAX_TAIL",
    "MAX_XATTR_TOTAL",
    "SUPERBLOCK",
    "SUPERBLOCK_OFFSET",
    "XATTR_ENTRY",
    "XATTR_HEADER",
    "XATTR_PREFIXES",
    "filter_bit",
    "split_key",
    "xattr_cost",
    "xattr_entry",
]

BLOCK = 4096
MAX_TAIL = BLOCK // 2  # more than that becomes a block of its own
INODES_START = 1152

COMPOSEFS_MAGIC = 0xD078629A
COMPOSEFS_HEADER = Struct("<IIII16x")  # magic, header version 1, flags, composefs version
FLAG_ACL = 1  # an inode has a POSIX ACL; without it the filesystem is mounted with noacl

EROFS_MAGIC = 0xE0F5E1E2
SUPERBLOCK_OFFSET = 1024
FEATURES = 6  # mtime, xattr name filter: both compatible
# magic, checksum, feature_compat, blkszbits, extslots, root_nid, inos, build_time, build_time_nsec, blocks,
# meta_blkaddr, xattr_blkaddr, uuid, volume name, feature_incompat
SUPERBLOCK = Struct("<IIIBBHQqIIII16s16sI44x")

# Inodes. The first field is layout << 1, plus 1 for the extended form.
FLAT_PLAIN, FLAT_INLINE, CHUNKED = 0, 2, 4
COMPACT = Struct("<HHHHIIIIHHI")  # format, icount, mode, nlink, size, -, i_u, ino, uid, gid, -
EXTENDED = Struct("<HHHHQIIIIqII16x")  # format, icount, mode, -, size, i_u, ino, uid, gid, mtime, nsec, nlink

DIRENT = Struct("<QHBB")  # nid, offset of the name in the piece, file type, -
FILE_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}

XATTR_HEADER = Struct("<IB7x")  # name filter, number of shared ids
XATTR_ENTRY = Struct("<BBH")  # length of the suffix, prefix index, length of the value
# First match wins; index 0 means that the key is stored whole.
XATTR_PREFIXES = (
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
)
_FILTER_SEED = 0x25BBE08F

MAX_NAME = 255
MAX_PAYLOAD = 4095  # also of a symlink target
MAX_CONTENT = 5000
MAX_CHUNK_BITS = 43
MAX_CHUNKS = 1024
MAX_EXTERNAL = MAX_CHUNKS << MAX_CHUNK_BITS
MAX_SHARED = 128  # shared xattrs of one inode; more are written inline
MAX_XATTR_TOTAL = 32767  # by xattr_cost


@lru_cache(maxsize=4096)
def split_key(key: bytes) -> tuple[int, bytes]:
    """Return the prefix index and the suffix that are stored for an xattr key."""
    for prefix, index in XATTR_PREFIXES:
        if key.startswith(prefix):
            return index, key[len(prefix) :]
    return 0, key


@lru_cache(maxsize=4096)
def filter_bit(key: bytes) -> int:
    """Return the bit of the name filter, as a mask, that an xattr key clears."""
    index, suffix = split_key(key)
    return 1 << (xxh32(suffix, _FILTER_SEED + index) & 31)


def xattr_entry(key: bytes, value: bytes) -> bytes:
    """Encode one xattr, padded to a multiple of four bytes."""
    index, suffix = split_key(key)
    padding = b"\0" * (-(len(suffix) + len(value)) & 3)
    return b"".join((XATTR_ENTRY.pack(len(suffix), index, len(value)), suffix, value, padding))


def xattr_cost(key: bytes, value: bytes) -> int:
    """Return what an xattr counts towards MAX_XATTR_TOTAL; the first one of an inode costs 12 more."""
    return 7 + len(key) + len(value)
