"""The kernel's mount interface by descriptors (fsopen, fsconfig, fsmount, move_mount; Linux 5.2), through ctypes.

A filesystem is configured and created on a descriptor and becomes a mount that is attached nowhere; only
:func:`attach` makes it visible. What fails leaves nothing behind but a descriptor to close, and the kernel says why in
a log that is read from the descriptor. The numbers of these calls are the same on all architectures.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from types import TracebackType
from typing import Self

from bootwright.errors import BootwrightError, PrivilegeError
from bootwright.linux.files import libc

__all__ = ["FsContext", "attach", "mount_error", "set_attributes"]

_MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _FSPICK, _MOUNT_SETATTR = 429, 430, 431, 432, 433, 442
_CLOEXEC = 1  # FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC, FSPICK_CLOEXEC
_SET_FLAG, _SET_STRING, _SET_FD, _CMD_CREATE, _CMD_RECONFIGURE = 0, 1, 5, 6, 7
_MOVE_MOUNT_F_EMPTY_PATH = 4
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000

ATTR_RDONLY = 0x1
ATTR_NOSUID = 0x2
ATTR_NODEV = 0x4
ATTR_NOEXEC = 0x8
ATTR_IDMAP = 0x00100000


def _call(number: int, *arguments: int | bytes | None) -> int:
    """Make a system call; pointers are bytes or None.

    Raises:
        OSError: it failed.
    """
    converted = [ctypes.c_long(value) if isinstance(value, int) else ctypes.c_char_p(value) for value in arguments]
    result = int(libc.syscall(ctypes.c_long(number), *converted))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def mount_error(what: str, exc: OSError, log: str = "") -> BootwrightError:
    """Return one of our errors for a failed mount call, with the kernel's own words."""
    detail = f": {log}" if log else ""
    if exc.errno in (errno.EPERM, errno.EACCES):
        return PrivilegeError(f"could not {what}: {exc.strerror}{detail}", hint="run it as root")
    if exc.errno in (errno.ENODEV, errno.ENOSYS):
        return BootwrightError(
            f"could not {what}: this kernel does not know how{detail}",
            hint="load the module (modprobe erofs, modprobe overlay) or boot a newer kernel",
        )
    hint = None if log or exc.errno != errno.EINVAL else "dmesg shows what the kernel did not like"
    return BootwrightError(f"could not {what}: {exc.strerror}{detail}", hint=hint)


class FsContext:
    """A filesystem being configured; a context manager that closes its descriptor.

    Methods raise OSError; :meth:`read_log` tells what the kernel said about it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def open(cls, fstype: str) -> FsContext:
        """Begin a new filesystem of a type."""
        return cls(_call(_FSOPEN, fstype.encode(), _CLOEXEC))

    @classmethod
    def pick(cls, path: str) -> FsContext:
        """Begin to reconfigure the filesystem that is mounted at a path."""
        return cls(_call(_FSPICK, _AT_FDCWD, os.fsencode(path), _CLOEXEC))

    def set_flag(self, key: str) -> None:
        """Set an option without a value, e.g. ``ro``."""
        _call(_FSCONFIG, self._fd, _SET_FLAG, key.encode(), None, 0)

    def set_string(self, key: str, value: str | bytes) -> None:
        """Set an option to a text."""
        _call(_FSCONFIG, self._fd, _SET_STRING, key.encode(), os.fsencode(value), 0)

    def set_fd(self, key: str, fd: int) -> None:
        """Set an option to an open file or detached mount."""
        _call(_FSCONFIG, self._fd, _SET_FD, key.encode(), None, fd)

    def create(self) -> None:
        """Create the filesystem's superblock."""
        _call(_FSCONFIG, self._fd, _CMD_CREATE, None, None, 0)

    def reconfigure(self) -> None:
        """Apply the options to a picked filesystem."""
        _call(_FSCONFIG, self._fd, _CMD_RECONFIGURE, None, None, 0)

    def mount(self, attributes: int = 0) -> int:
        """Return the descriptor of a detached mount of the created filesystem."""
        return _call(_FSMOUNT, self._fd, _CLOEXEC, attributes)

    def read_log(self) -> str:
        """Return what the kernel has to say, without its marks for error, warning and information."""
        lines: list[str] = []
        with contextlib.suppress(OSError):  # ENODATA: no more messages
            while message := os.read(self._fd, 4096):
                lines.append(message.decode("utf-8", "replace").strip()[2:])
        return "; ".join(lines)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)


def attach(mount_fd: int, target: str) -> None:
    """Attach a detached mount to a directory or file.

    Raises:
        OSError: not possible there.
    """
    _call(_MOVE_MOUNT, mount_fd, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)


def set_attributes(
    mount: int | str, *, add: int = 0, remove: int = 0, userns_fd: int = 0, recursive: bool = False
) -> None:
    """Change the attributes of a mount, given by descriptor or path (mount_setattr, Linux 5.12).

    Raises:
        OSError: not possible.
    """
    argument = struct.pack("=QQQQ", add, remove, 0, userns_fd)
    flags = _AT_RECURSIVE if recursive else 0
    if isinstance(mount, int):
        _call(_MOUNT_SETATTR, mount, b"", flags | _AT_EMPTY_PATH, argument, len(argument))
    else:
        _call(_MOUNT_SETATTR, _AT_FDCWD, os.fsencode(mount), flags, argument, len(argument))
