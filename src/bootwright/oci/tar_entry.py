"""What an archive says about one file, as a value. Pure."""

from __future__ import annotations

import enum

__all__ = ["EntryType", "SparseMap", "TarEntry"]

SparseMap = list[tuple[int, int]]
"""Offset and length of each stored piece of a sparse file, in bytes, in order."""


class EntryType(enum.Enum):
    """What an entry makes."""

    REG = "file"
    DIR = "directory"
    SYMLINK = "symlink"
    HARDLINK = "hard link"
    CHAR = "character device"
    BLOCK = "block device"
    FIFO = "fifo"


class TarEntry:
    """One entry of an archive.

    Attributes:
        name: path inside the image, without leading ``/`` or ``./`` or trailing ``/``; ``b""`` is the root directory.
        type: what it makes.
        mode: permission bits with setuid, setgid and sticky (``0o7777``).
        uid: owner, 0 … 2³²-2.
        gid: group, 0 … 2³²-2.
        size: length of the file that it makes, in bytes; 0 for what is no regular file.
        stored_size: bytes of body in the archive: ``size``, less for a sparse file. A hard link may have a body too
            (written by some, used by nobody).
        mtime_sec: time of modification, seconds since 1970, may be negative.
        mtime_nsec: 0 … 999,999,999.
        linkname: target of a symlink as it is; name of the other entry of a hard link, cleaned like ``name``.
        rdev: device number (``os.makedev``) of a device, else 0.
        xattrs: extended attributes, or None when there are none.
        sparse: offset and length of each stored piece, in order, or None for a file that is stored whole.
        header: every raw byte between the end of the previous body and the start of this one.
    """

    __slots__ = (
        "gid",
        "header",
        "linkname",
        "mode",
        "mtime_nsec",
        "mtime_sec",
        "name",
        "rdev",
        "size",
        "sparse",
        "stored_size",
        "type",
        "uid",
        "xattrs",
    )

    def __init__(
        self,
        name: bytes,
        kind: EntryType,
        mode: int,
        uid: int,
        gid: int,
        size: int,
        mtime_sec: int,
        linkname: bytes,
        header: bytes,
    ) -> None:
        self.name = name
        self.type = kind
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size = size
        self.stored_size = size
        self.mtime_sec = mtime_sec
        self.mtime_nsec = 0
        self.linkname = linkname
        self.rdev = 0
        self.xattrs: dict[bytes, bytes] | None = None
        self.sparse: SparseMap | None = None
        self.header = header

    def __repr__(self) -> str:
        return f"TarEntry({self.name!r}, {self.type.name}, size={self.size})"
