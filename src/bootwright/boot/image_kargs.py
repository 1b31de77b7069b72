"""Kernel arguments that an image brings: ``kargs.d/*.toml`` below ``/usr/lib/bootc`` and ``/usr/lib/bootwright``.

Files are read by name within a directory, bootc's directory first. They may be symlinks inside the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from bootwright.boot.entries import parse_os_release
from bootwright.boot.kargs import Kargs, parse_drop_in
from bootwright.erofs.tree import Inode, lookup_follow
from bootwright.errors import ConfigError

__all__ = ["read_image_kargs", "read_os_release"]

KARGS_DIRECTORIES = (b"/usr/lib/bootc/kargs.d", b"/usr/lib/bootwright/kargs.d")
_OS_RELEASE = (b"/etc/os-release", b"/usr/lib/os-release")
_MAX_SIZE = 1 << 20


class _Reader(Protocol):
    def iter_inode(self, inode: Inode) -> Iterator[bytes]: ...


def _read(repo: _Reader, inode: Inode, path: bytes) -> bytes:
    if inode.size > _MAX_SIZE:
        raise ConfigError(f"'{path.decode('utf-8', 'backslashreplace')}' in the image is larger than {_MAX_SIZE} bytes")
    return b"".join(repo.iter_inode(inode))


def read_image_kargs(repo: _Reader, tree: Inode, *, architecture: str) -> Kargs:
    """Read the arguments of an image, in order, for one architecture (Rust's name).

    Raises:
        ConfigError: a file of the image is no valid drop-in.
    """
    result = Kargs()
    for directory in KARGS_DIRECTORIES:
        inode = lookup_follow(tree, directory)
        for name in sorted((inode.children if inode else None) or {}):
            path = directory + b"/" + name
            if not name.endswith(b".toml"):
                continue
            file = lookup_follow(tree, path)
            if file is None or not file.is_regular:
                continue
            origin = path.decode("utf-8", "backslashreplace")
            result = result.append(parse_drop_in(_read(repo, file, path), origin=origin, architecture=architecture))
    return result


def read_os_release(repo: _Reader, tree: Inode) -> dict[str, str]:
    """Read an image's os-release fields; none when it has no such file."""
    for path in _OS_RELEASE:
        file = lookup_follow(tree, path)
        if file is not None and file.is_regular:
            return parse_os_release(_read(repo, file, path).decode("utf-8", "replace"))
    return {}
