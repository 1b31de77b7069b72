"""The tree of an image in memory: inodes, names, hard links. Pure.

A directory maps names to nodes. A node is an :class:`Inode`, at the place where it has its real name, or a
:class:`HardLink`, a further name of an inode that has its real name elsewhere in the same tree. The real name decides
where the inode lies in an image, so which name is the real one is part of an image's identity.

Names, targets, keys and paths are bytes, never decoded text.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterator

from bootwright.errors import ImageError

__all__ = ["HardLink", "Inode", "Node", "lookup", "lookup_follow", "resolve", "walk"]

_MAX_SYMLINKS = 40  # the kernel's limit


class Inode:
    """One file of any type; mutable.

    Args:
        mode: st_mode with the type bits.
        nlink: written to an image as it is, except for directories, whose count the writer computes.
        uid: owner.
        gid: group.
        rdev: 32-bit device number; character and block devices only. A character device 0 is a whiteout.
        size: bytes of a regular file; for other types what a dump or image said, and 0 is fine.
        mtime_sec: seconds since 1970, may be negative.
        mtime_nsec: nanoseconds, 0 to 999,999,999.
        xattrs: extended attributes by full key; a new empty dict when None. Not shared between inodes.
        children: directories only, in any order; a new empty dict for a directory when None.
        target: of a symlink.
        content: bytes of a regular file that is stored inside the image; at most 5000.
        payload: object path (``xx/rest``) of a regular file that is not.
        digest: its raw fs-verity digest, 32 or 64 bytes.
    """

    __slots__ = (
        "children",
        "content",
        "digest",
        "gid",
        "mode",
        "mtime_nsec",
        "mtime_sec",
        "nlink",
        "payload",
        "rdev",
        "size",
        "target",
        "uid",
        "xattrs",
    )

    children: dict[bytes, Node] | None

    def __init__(
        self,
        mode: int,
        nlink: int = 1,
        uid: int = 0,
        gid: int = 0,
        rdev: int = 0,
        size: int = 0,
        mtime_sec: int = 0,
        mtime_nsec: int = 0,
        xattrs: dict[bytes, bytes] | None = None,
        children: dict[bytes, Node] | None = None,
        target: bytes | None = None,
        content: bytes | None = None,
        payload: bytes | None = None,
        digest: bytes | None = None,
    ) -> None:
        self.mode = mode
        self.nlink = nlink
        self.uid = uid
        self.gid = gid
        self.rdev = rdev
        self.size = size
        self.mtime_sec = mtime_sec
        self.mtime_nsec = mtime_nsec
        self.xattrs = {} if xattrs is None else xattrs
        self.children = {} if children is None and mode & 0o170000 == stat.S_IFDIR else children
        self.target = target
        self.content = content
        self.payload = payload
        self.digest = digest

    @property
    def is_directory(self) -> bool:
        """It has children."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        """It has content."""
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        """It has a target."""
        return stat.S_ISLNK(self.mode)

    @property
    def is_whiteout(self) -> bool:
        """It is the character device 0:0, overlayfs' mark for a removed name."""
        return stat.S_ISCHR(self.mode) and self.rdev == 0

    @property
    def is_external(self) -> bool:
        """It is a regular file whose bytes are in no image: an object, or a hole."""
        return stat.S_ISREG(self.mode) and self.size > 0 and self.content is None

    def copy(self) -> Inode:
        """Return a copy with its own xattrs and its own children dict, holding the same child nodes."""
        return Inode(
            self.mode,
            self.nlink,
            self.uid,
            self.gid,
            self.rdev,
            self.size,
            self.mtime_sec,
            self.mtime_nsec,
            dict(self.xattrs),
            None if self.children is None else dict(self.children),
            self.target,
            self.content,
            self.payload,
            self.digest,
        )

    def __repr__(self) -> str:
        return f"<Inode {self.mode:o} size={self.size}>"


class HardLink:
    """A further name of an inode that has its real name elsewhere in the tree."""

    __slots__ = ("target",)

    def __init__(self, target: Inode) -> None:
        self.target = target

    def __repr__(self) -> str:
        return f"<HardLink {self.target!r}>"


Node = Inode | HardLink


def resolve(node: Node) -> Inode:
    """Return the inode that a node is or links to."""
    return node.target if isinstance(node, HardLink) else node


def walk(root: Inode, names: Collection[bytes] = ()) -> Iterator[tuple[bytes, Node]]:
    """Yield every node with its absolute path, depth first, names in byte order; ``b"/"`` is first.

    A directory's children are read after it was yielded, so the consumer may change them at that moment.

    Args:
        root: the tree.
        names: entries of the root to visit; all when empty.
    """
    yield b"/", root
    children = _sorted_children(b"", root)
    stack = [((path, node) for path, node in children if path[1:] in names) if names else children]
    while stack:
        for path, node in stack[-1]:
            yield path, node
            if isinstance(node, Inode) and node.children:
                stack.append(_sorted_children(path, node))
                break
        else:
            stack.pop()


def _sorted_children(path: bytes, directory: Inode) -> Iterator[tuple[bytes, Node]]:
    children = directory.children or {}
    return iter([(b"%s/%s" % (path, name), children[name]) for name in sorted(children)])


def lookup(root: Inode, path: bytes) -> Inode | None:
    """Find an inode by path; symlinks are not followed, ``.`` and ``..`` are no names here."""
    inode = root
    for name in path.split(b"/"):
        if not name:
            continue
        node = (inode.children or {}).get(name)
        if node is None:
            return None
        inode = resolve(node)
    return inode


def lookup_follow(root: Inode, path: bytes) -> Inode | None:
    """Find an inode by path as a process chrooted into the tree would: symlinks are followed, ``..`` ends at the root.

    Raises:
        ImageError: more than 40 symlinks, i.e. a loop.
    """
    parents = [root]
    names = path.split(b"/")[::-1]
    links = 0
    while names:
        name = names.pop()
        if name in (b"", b"."):
            continue
        if name == b"..":
            if len(parents) > 1:
                parents.pop()
            continue
        node = (parents[-1].children or {}).get(name)
        if node is None:
            return None
        inode = resolve(node)
        if not inode.is_symlink:
            parents.append(inode)
            continue
        links += 1
        if links > _MAX_SYMLINKS:
            raise ImageError(f"too many levels of symbolic links at '{path.decode('utf-8', 'backslashreplace')}'")
        target = inode.target or b""
        if target.startswith(b"/"):
            del parents[1:]
        names.extend(target.split(b"/")[::-1])
    return parents[-1]
