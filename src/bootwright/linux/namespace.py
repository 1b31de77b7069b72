"""A mount namespace of our own: what a command mounts or makes writable is seen by nobody else and goes with it."""

from __future__ import annotations

import ctypes
import errno
import os
import time

from bootwright.linux.files import libc

__all__ = ["enter_private_mounts", "make_writable", "mount_partition", "unmount"]

_CLONE_NEWNS = 0x0002_0000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_SLAVE = 32, 4096, 16384, 1 << 19
_MNT_DETACH = 2
_BUSY_RETRIES = 40
_BUSY_PAUSE_S = 0.05


def _check(result: int, path: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)


def _mount(source: str, target: str, fstype: str | None, flags: int, options: str) -> None:
    kind = None if fstype is None else fstype.encode()
    result = libc.mount(
        os.fsencode(source), os.fsencode(target), kind, ctypes.c_ulong(flags), options.encode() if options else None
    )
    _check(result, target)


def enter_private_mounts() -> None:
    """Leave the shared mount table: later mounts stay ours, unmounts by others still reach us. Needs root.

    Raises:
        OSError: no privilege.
    """
    _check(libc.unshare(_CLONE_NEWNS), "/")
    _mount("none", "/", None, _MS_REC | _MS_SLAVE, "")


def make_writable(target: str) -> None:
    """Make a read-only mount writable in this namespace; its filesystem too, when that is read-only.

    Raises:
        OSError: EROFS or EACCES on a medium that cannot be written.
    """
    _mount("none", target, None, _MS_REMOUNT | _MS_BIND, "")
    if os.statvfs(target).f_flag & os.ST_RDONLY:
        _mount("none", target, None, _MS_REMOUNT, "")


def mount_partition(device: str, target: str, fstype: str, options: str, *, writable: bool) -> None:
    """Mount a partition without programs, set-user-id files and devices.

    A filesystem is either read-only or writable for everybody who mounts it. Asked for read-only while somebody writes,
    it is mounted writable; asked for writable while somebody reads, it is tried again for two seconds.

    Raises:
        OSError: it cannot be mounted.
    """
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    for attempt in range(_BUSY_RETRIES):
        try:
            # A reader that meets a writer (EBUSY) takes the filesystem as it is, on its second attempt.
            wanted = flags if writable or attempt % 2 else flags | _MS_RDONLY
            _mount(device, target, fstype, wanted, options)
        except OSError as exc:
            if exc.errno != errno.EBUSY or attempt == _BUSY_RETRIES - 1:
                raise
            if writable or attempt % 2:
                time.sleep(_BUSY_PAUSE_S)
        else:
            return


def unmount(target: str) -> None:
    """Unmount now, or as soon as nobody uses it.

    Raises:
        OSError: nothing is mounted there.
    """
    _check(libc.umount2(os.fsencode(target), _MNT_DETACH), target)
