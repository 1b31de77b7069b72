"""Directories of an image: sorted entries, cut into pieces of at most a block. Pure.

A piece is an array of (nid, offset of the name, file type), 12 bytes each, then the names back to back. ``.`` and
``..`` are entries among the others and sort by their bytes, so ``!`` comes before them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bootwright.erofs import disk
from bootwright.erofs.disk import BLOCK
from bootwright.erofs.dumptext import escape
from bootwright.erofs.tree import HardLink, Inode, Node, resolve
from bootwright.errors import ImageError

__all__ = ["Directory", "check_names", "encode_directory"]


class Directory:
    """A directory of the image with its sorted entries, among them ``.`` and ``..``."""

    __slots__ = ("children", "first", "ino", "names", "nlink", "parent", "pieces", "tail")

    def __init__(self, ino: int, parent: int, children: dict[bytes, Node]) -> None:
        self.ino = ino
        self.parent = parent
        self.children = children
        self.names: list[bytes] = []
        self.nlink = 2
        self.first = 0  # ino of the first child that is no hard link; such children are numbered one after another
        self.pieces: list[int] = []  # index of the first entry of each piece
        self.tail = 0  # bytes of the last piece when it is no block of its own

    def divide(self) -> int:
        """Cut the entries into pieces of at most a block; return the number of blocks."""
        names = self.names
        used = 12 * len(names) + len(b"".join(names))
        self.pieces = [0]
        if used > BLOCK:
            used = 0
            for index, name in enumerate(names):
                used += 12 + len(name)
                if used > BLOCK:
                    self.pieces.append(index)
                    used = 12 + len(name)
        self.tail = used if used <= disk.MAX_TAIL else 0
        return len(self.pieces) - (1 if self.tail else 0)


def encode_directory(
    directory: Directory, nids: Sequence[int], types: Sequence[int], inos_of_links: Mapping[Inode, int] | None
) -> bytes:
    """Return the pieces of a directory, each but a last short one padded to a block.

    Args:
        directory: it was divided.
        nids: of every inode, by inode number.
        types: file types of every inode, by inode number.
        inos_of_links: inode numbers, needed when the tree has hard links.

    Raises:
        ImageError: a hard link leads to no inode of the tree, or to a directory.
    """
    names = directory.names
    if inos_of_links is None:
        inos = list(range(directory.first, directory.first + len(names) - 2))
        # "." comes before "..", and little else before them.
        inos.insert(names.index(b"."), directory.ino)
        inos.insert(names.index(b".."), directory.parent)
    else:
        inos = _number(directory, inos_of_links)
    pack = disk.DIRENT.pack
    ends = [*directory.pieces[1:], len(names)]
    pieces: list[bytes] = []
    for begin, end in zip(directory.pieces, ends, strict=True):
        part = names[begin:end]
        offset = disk.DIRENT.size * len(part)
        heads: list[bytes] = []
        for ino, name in zip(inos[begin:end], part, strict=True):
            heads.append(pack(nids[ino], offset, types[ino], 0))
            offset += len(name)
        piece = b"".join(heads + part)
        pieces.append(piece if end == len(names) else piece.ljust(BLOCK, b"\0"))
    return b"".join(pieces)


def _number(directory: Directory, inos_of_links: Mapping[Inode, int]) -> list[int]:
    """Return the inode number of every entry of a directory that may hold hard links."""
    inos: list[int] = []
    for name in directory.names:
        if name == b".":
            inos.append(directory.ino)
        elif name == b"..":
            inos.append(directory.parent)
        else:
            node = directory.children[name]
            ino = inos_of_links.get(resolve(node))
            if ino is None or (isinstance(node, HardLink) and node.target.is_directory):
                shown = escape(name).decode("ascii")
                raise ImageError(f"the hard link '{shown}' leads to a directory or out of the tree")
            inos.append(ino)
    return inos


def check_names(names: list[bytes]) -> None:
    """Require that the sorted names of a directory can be stored.

    Raises:
        ImageError: a name is empty, too long, ``.``, ``..`` or has a slash or a NUL.
    """
    together = b"".join(names)
    if b"/" in together or b"\0" in together or not names[0] or b"." in names or b".." in names:
        bad = next(name for name in names if b"/" in name or b"\0" in name or name in {b"", b".", b".."})
        raise ImageError(f"the name {bad[:80]!r} cannot be stored")
    longest = max(names, key=len)
    if len(longest) > disk.MAX_NAME:
        raise ImageError(f"the name {longest[:80]!r} has {len(longest)} bytes, at most {disk.MAX_NAME} are allowed")
