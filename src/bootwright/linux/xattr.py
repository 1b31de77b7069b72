"""Extended attributes of files, by bytes."""

from __future__ import annotations

import errno
import os

__all__ = ["copy_all", "read_all", "replace_all"]

_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOTSUP)


def read_all(path: str | bytes | int) -> dict[bytes, bytes]:
    """Read every visible attribute; symlinks are not followed.

    ``trusted.*`` is visible only with CAP_SYS_ADMIN. A filesystem without attributes gives an empty dict.
    """
    follow = isinstance(path, int)
    try:
        names = os.listxattr(path, follow_symlinks=follow)
    except OSError as exc:
        if exc.errno in _UNSUPPORTED:
            return {}
        raise
    return {os.fsencode(name): os.getxattr(path, name, follow_symlinks=follow) for name in names}


def replace_all(path: str | bytes, xattrs: dict[bytes, bytes]) -> None:
    """Make the attributes of a path exactly these; symlinks are not followed."""
    present = read_all(path)
    for name in present.keys() - xattrs.keys():
        os.removexattr(path, name, follow_symlinks=False)
    for name, value in xattrs.items():
        if present.get(name) != value:
            os.setxattr(path, name, value, follow_symlinks=False)


def copy_all(source: str | bytes, target: str | bytes) -> None:
    """Give the target the attributes of the source."""
    replace_all(target, read_all(source))
