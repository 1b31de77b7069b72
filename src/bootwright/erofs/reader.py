"""An EROFS image of format version 0 or 1 becomes a tree again. Pure.

The image is not trusted. Every position is checked before it is used; a directory may be entered once; names must be
valid, unique and sorted; sizes are limited as in the writer. Because parts of an image must not overlap, their lengths
add up to at most its length: this bound is enforced, so that no image can make the reader work or allocate more than in
proportion to its size.

The rewriting for overlayfs is undone: stubs are dropped, external files get their payload and digest back, marked
whiteouts become character devices, keys are unescaped.
"""

from __future__ import annotations

import stat

from bootwright.digest import VerityDigest
from bootwright.erofs import disk
from bootwright.erofs.disk import BLOCK
from bootwright.erofs.inodes import InodeReader
from bootwright.erofs.tree import HardLink, Inode, Node, lookup, walk
from bootwright.errors import ImageError, VerificationError

__all__ = ["object_digests", "object_paths", "read_image", "read_version"]

_MAX_DEPTH = 2048
_MAX_PATH = 32768


def read_version(data: bytes | memoryview) -> int:
    """Return the format version of an image, 0 or 1.

    Raises:
        ImageError: it is no composefs image, or of another version.
    """
    if len(data) < disk.INODES_START or len(data) % BLOCK:
        raise ImageError(
            f"this is no composefs image: {len(data)} bytes are not a whole number of blocks", hint="it may be cut off"
        )
    magic, header_version, _, version = disk.COMPOSEFS_HEADER.unpack_from(data)
    if magic != disk.COMPOSEFS_MAGIC:
        raise ImageError("this is no composefs image: its first bytes are not the magic number")
    if header_version != 1 or version > 1:
        raise ImageError(
            f"the composefs image has format version {version}, known are 0 and 1",
            hint="version 2 was made by older releases of composefs-rs: pull the image again to get version 1",
        )
    return int(version)


def read_image(data: bytes | memoryview) -> Inode:
    """Read an image and return the tree it was made from.

    Directories have the size they have in the image. Of the names of an inode, the one that stands where the inode's
    number says is the real one, the others are hard links, so that writing the tree gives the same image again.

    Raises:
        ImageError: the image is damaged, hostile or of another format.
    """
    read_version(data)
    return _Reader(memoryview(data)).read_tree()


def object_paths(data: bytes | memoryview) -> set[bytes]:
    """Return the payloads of all external files of an image: paths below a repository's ``objects``.

    Raises:
        ImageError: the image is damaged, hostile or of another format.
    """
    root = read_image(data)
    return {node.payload for _, node in walk(root) if isinstance(node, Inode) and node.payload}


def object_digests(data: bytes | memoryview) -> set[VerityDigest]:
    """Return the digests that name the objects of an image, told by their paths.

    Raises:
        ImageError: the image is damaged, hostile or of another format, or an object has no such name.
    """
    digests: set[VerityDigest] = set()
    for path in object_paths(data):
        try:
            digests.add(VerityDigest(bytes.fromhex(path.replace(b"/", b"", 1).decode("ascii"))))
        except (ValueError, VerificationError) as exc:
            raise ImageError(f"the object path {path[:150]!r} of the image is not named by a digest") from exc
    return digests


class _Found:
    """An inode that was read, its number, and whether its real name is known."""

    __slots__ = ("ino", "inode", "is_placed")

    def __init__(self, inode: Inode, ino: int) -> None:
        self.inode = inode
        self.ino = ino
        self.is_placed = False


class _Reader:
    """Reads the directories of an image, breadth first."""

    def __init__(self, data: memoryview) -> None:
        self._inodes = InodeReader(data)
        self._seen: dict[int, _Found] = {}  # by nid
        self._count = 0  # real names so far: the number of the inode whose real name is next
        self._marked: list[tuple[Inode, Inode]] = []  # possible whiteouts and their directories

    def read_tree(self) -> Inode:
        nid = self._inodes.root_nid
        root = self._find(nid)
        if not root.inode.is_directory:
            raise ImageError("the image is damaged: its root is no directory")
        root.is_placed = True
        self._count = 1
        queue = [(root.inode, nid, nid, 1, 0)]
        for directory, nid, parent_nid, depth, length in queue:  # grows while it runs
            if depth > _MAX_DEPTH or length > _MAX_PATH:
                raise ImageError(f"the image has directories more than {_MAX_DEPTH} levels deep, or such long paths")
            entries = self._inodes.read_entries(directory, nid)
            if entries.pop(b".", (None, 0))[0] != nid or entries.pop(b"..", (None, 0))[0] != parent_nid:
                raise ImageError(f"the image is damaged: the directory {nid} does not lead to itself and its parent")
            children: dict[bytes, Node] = {}
            directory.children = children
            directory.nlink = 2
            for name, (child_nid, file_type) in entries.items():
                found = self._find(child_nid)
                inode = found.inode
                if disk.FILE_TYPES[inode.mode & 0o170000] != file_type:
                    raise ImageError(f"the image is damaged: entry {name!r} has another type than its inode")
                if file_type == _DIRECTORY:
                    if found.is_placed:
                        raise ImageError(f"the image is damaged: the directory {name!r} has two names")
                    directory.nlink += 1
                    queue.append((inode, child_nid, nid, depth + 1, length + 1 + len(name)))
                if file_type == _DIRECTORY or (found.ino == self._count and not found.is_placed):
                    found.is_placed = True
                    self._count += 1
                    children[name] = inode
                    if not inode.size and inode.xattrs and _is_marked_whiteout(inode):
                        self._marked.append((inode, directory))
                else:
                    children[name] = HardLink(inode)
                if inode.is_whiteout:
                    found.is_placed = True
                    del children[name]  # a stub
        self._place_the_rest(root.inode)
        self._restore_whiteouts()
        return root.inode

    def _find(self, nid: int) -> _Found:
        found = self._seen.get(nid)
        if found is None:
            found = self._seen[nid] = _Found(*self._inodes.read(nid))
        return found

    def _place_the_rest(self, root: Inode) -> None:
        """Make the first name the real one where the numbers do not tell, as in images of other writers."""
        unplaced = {found.inode for found in self._seen.values() if not found.is_placed}
        if not unplaced:
            return
        for path, node in walk(root):
            if isinstance(node, HardLink) and node.target in unplaced:
                parent_path, _, name = path.rpartition(b"/")
                parent = lookup(root, parent_path)
                if parent is not None and parent.children is not None:
                    parent.children[name] = node.target
                    unplaced.remove(node.target)

    def _restore_whiteouts(self) -> None:
        """Make whiteouts of the files that were ones: those that are marked, in directories that are marked."""
        directories: set[Inode] = set()
        for inode, directory in self._marked:
            if directory in directories or _take(directory, _DIRECTORY_MARKS):
                directories.add(directory)
                _take(inode, _WHITEOUT_MARKS)
                inode.mode = stat.S_IFCHR | inode.mode & 0o7777


# As they are after unescaping.
_WHITEOUT_MARKS = (b"trusted.overlay.whiteout", b"user.overlay.whiteout")
_DIRECTORY_MARKS = (b"trusted.overlay.whiteouts", b"user.overlay.whiteouts")
_DIRECTORY = disk.FILE_TYPES[stat.S_IFDIR]


def _is_marked_whiteout(inode: Inode) -> bool:
    return inode.is_regular and all(inode.xattrs.get(key) == b"" for key in _WHITEOUT_MARKS)


def _take(inode: Inode, marks: tuple[bytes, bytes]) -> bool:
    """Remove marks; False when they are not all there."""
    if any(inode.xattrs.get(key) != b"" for key in marks):
        return False
    for key in marks:
        del inode.xattrs[key]
    return True
