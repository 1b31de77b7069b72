"""Trees for the merge of /etc, read from an image or from a live directory.

The content of a file is told by its fs-verity digest in the repository's algorithm: images have it at hand, live files
are read once. Sockets, pipes and devices are left out, and so are other filesystems mounted below the directory.
"""

from __future__ import annotations

import os
import stat

from bootwright.deploy.merge import Kind, MergeNode
from bootwright.deploy.seed import InodeReader
from bootwright.digest import Algorithm
from bootwright.erofs.tree import Inode, Node, resolve
from bootwright.errors import DeploymentError
from bootwright.linux import files, fsverity, xattr

__all__ = ["LEFT_OUT", "read_directory", "read_image"]

# A relabel is no change; the others belong to the filesystem, not to the file.
_SKIPPED_XATTRS = (b"security.selinux", b"trusted.overlay.", b"user.overlay.")
# The mark of systemd-update-done: without it services with ConditionNeedsUpdate=/etc run after the update.
LEFT_OUT = frozenset({b".updated"})
_MAX_DEPTH = 200


def _plain_xattrs(xattrs: dict[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    return tuple(sorted((key, value) for key, value in xattrs.items() if not key.startswith(_SKIPPED_XATTRS)))


def read_image(repo: InodeReader, directory: Inode | None, algorithm: Algorithm) -> dict[bytes, MergeNode]:
    """Read the tree below a directory of an image; an image without that directory gives an empty one."""
    tree: dict[bytes, MergeNode] = {}
    stack: list[tuple[bytes, Node]] = _children(b"", directory) if directory is not None else []
    while stack:
        path, node = stack.pop()
        inode = resolve(node)
        if inode.is_directory:
            kind, content = Kind.DIRECTORY, b""
            stack.extend(_children(path + b"/", inode))
        elif inode.is_symlink:
            kind, content = Kind.SYMLINK, inode.target or b""
        elif inode.is_regular:
            kind, content = Kind.FILE, _image_digest(repo, inode, algorithm)
        else:
            continue
        mode = 0 if inode.is_symlink else stat.S_IMODE(inode.mode)
        tree[path] = MergeNode(kind, mode, inode.uid, inode.gid, _plain_xattrs(inode.xattrs), content)
    for name in LEFT_OUT:
        tree.pop(name, None)
    return tree


def _children(prefix: bytes, directory: Inode) -> list[tuple[bytes, Node]]:
    return [(prefix + name, node) for name, node in (directory.children or {}).items()]


def _image_digest(repo: InodeReader, inode: Inode, algorithm: Algorithm) -> bytes:
    if inode.digest is not None and len(inode.digest) == algorithm.size:
        return inode.digest
    return fsverity.compute_pieces(repo.iter_inode(inode), algorithm).raw


def read_directory(directory: str, algorithm: Algorithm) -> dict[bytes, MergeNode]:
    """Read the tree below a live directory; symlinks are not followed, files that vanish meanwhile are left out.

    Raises:
        DeploymentError: directories nested deeper than anything real.
        PrivilegeError: something cannot be read.
    """
    tree: dict[bytes, MergeNode] = {}
    top = os.fsencode(directory)
    with files.translated(f"could not read '{directory}'"):
        device = os.stat(top).st_dev
        stack = [b""]
        while stack:
            prefix = stack.pop()
            if prefix.count(b"/") > _MAX_DEPTH:
                raise DeploymentError(f"directories in '{directory}' are nested more than {_MAX_DEPTH} deep")
            try:
                names = os.listdir(os.path.join(top, prefix))
            except FileNotFoundError:
                continue
            for name in names:
                path = prefix + name
                node = _read_node(os.path.join(top, path), device, algorithm)
                if node is None or path in LEFT_OUT:
                    continue
                tree[path] = node
                if node.kind is Kind.DIRECTORY:
                    stack.append(path + b"/")
    return tree


def _read_node(path: bytes, device: int, algorithm: Algorithm) -> MergeNode | None:
    try:
        status = os.lstat(path)
        if status.st_dev != device:
            return None
        if stat.S_ISDIR(status.st_mode):
            kind, content = Kind.DIRECTORY, b""
        elif stat.S_ISLNK(status.st_mode):
            kind, content = Kind.SYMLINK, os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            kind, content = Kind.FILE, _file_digest(path, algorithm)
        else:
            return None
        attributes = _plain_xattrs(xattr.read_all(path))
    except FileNotFoundError:
        return None
    mode = 0 if kind is Kind.SYMLINK else stat.S_IMODE(status.st_mode)
    return MergeNode(kind, mode, status.st_uid, status.st_gid, attributes, content)


def _file_digest(path: bytes, algorithm: Algorithm) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return fsverity.compute_fd(fd, algorithm).raw
    finally:
        os.close(fd)
