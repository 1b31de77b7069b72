"""Write a directory of an image tree out as real files: the first /etc of a deployment, the /var of an installation."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Protocol

from bootwright.erofs.tree import Inode, Node, resolve
from bootwright.errors import ImageError
from bootwright.linux import files, xattr

__all__ = ["InodeReader", "write_tree"]

_FOREIGN_NAMES = (b"", b".", b"..")


class InodeReader(Protocol):
    """Gives the content of the regular files of a tree: a repository."""

    def iter_inode(self, inode: Inode) -> Iterator[bytes]:
        """Yield the bytes of a regular file, verified against its digest."""


def write_tree(repo: InodeReader, inode: Inode, directory: str, *, set_owner: bool) -> None:
    """Write the content of an image's directory into a directory that is new or empty.

    Hard links inside the tree stay hard links. Symlinks are written, never followed.

    Args:
        repo: where contents are.
        inode: a directory of an image tree.
        directory: where its content goes; created when missing.
        set_owner: also set owners, exact modes and extended attributes (needs root). Without it everything stays the
            caller's and readable by it, for tools that build a filesystem from the directory, and device nodes are
            left out.

    Raises:
        ImageError: a name that no directory can have.
        SpaceError, PrivilegeError: it cannot be written.
    """
    with files.translated(f"could not write the files of the image to '{directory}'"):
        os.makedirs(directory, exist_ok=True)
        _write_children(repo, inode, os.fsencode(directory), {}, set_owner=set_owner)
        _finish(os.fsencode(directory), inode, set_owner=set_owner)


def _write_children(
    repo: InodeReader, inode: Inode, directory: bytes, written: dict[int, bytes], *, set_owner: bool
) -> None:
    for name, node in (inode.children or {}).items():
        if name in _FOREIGN_NAMES or b"/" in name or b"\0" in name:
            raise ImageError(f"the image has a file with the impossible name {name!r}")
        _write_node(repo, node, os.path.join(directory, name), written, set_owner=set_owner)


def _write_node(repo: InodeReader, node: Node, path: bytes, written: dict[int, bytes], *, set_owner: bool) -> None:
    inode = resolve(node)
    # The link's target may lie outside of this directory: then the first name here becomes the real file.
    first = written.get(id(inode))
    if first is not None and not inode.is_directory:
        os.link(first, path, follow_symlinks=False)
        return
    if inode.is_directory:
        os.mkdir(path, 0o700)
        _write_children(repo, inode, path, written, set_owner=set_owner)
    elif inode.is_symlink:
        os.symlink(inode.target or b"", path)
    elif inode.is_regular:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            for piece in repo.iter_inode(inode):
                files.write_all(fd, piece)
        finally:
            os.close(fd)
    elif set_owner:
        os.mknod(path, stat.S_IFMT(inode.mode) | 0o600, inode.rdev)
    else:
        return
    written[id(inode)] = path
    _finish(path, inode, set_owner=set_owner)


def _finish(path: bytes, inode: Inode, *, set_owner: bool) -> None:
    """Set what a file has beside its content; owner first, because changing it drops other things."""
    mode = stat.S_IMODE(inode.mode)
    if set_owner:
        os.chown(path, inode.uid, inode.gid, follow_symlinks=False)
        if not inode.is_symlink:
            os.chmod(path, mode)
        xattr.replace_all(path, inode.xattrs)
    elif not inode.is_symlink:
        os.chmod(path, (mode & 0o777) | (0o700 if inode.is_directory else 0o600))
    times = inode.mtime_sec * 1_000_000_000 + inode.mtime_nsec
    os.utime(path, ns=(times, times), follow_symlinks=False)
