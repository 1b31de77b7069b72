"""Mounts: read the table, bind, remount, unmount, ordinary filesystems, and a private mount namespace.

composefs images have a module of their own, :mod:`composefs`.
"""

from __future__ import annotations

import ctypes
import os

from bootwright.linux import mountapi
from bootwright.linux.composefs import Verity, mount_composefs
from bootwright.linux.files import libc
from bootwright.linux.mountinfo import Mount, parse_mountinfo

__all__ = [
    "NODEV",
    "NOEXEC",
    "NOSUID",
    "RDONLY",
    "Mount",
    "Verity",
    "bind",
    "mount_composefs",
    "mount_filesystem",
    "parse_mountinfo",
    "read_mountinfo",
    "remount",
    "unmount",
    "unshare_mounts",
]

# Flags of mount(2).
RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8
_BIND, _REC, _PRIVATE = 0x1000, 0x4000, 1 << 18
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_CLONE_NEWNS = 0x00020000


def read_mountinfo() -> list[Mount]:
    """Return the mounts of this process's namespace, in the order they were made.

    Raises:
        OSError: /proc is not mounted.
    """
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as table:
        return parse_mountinfo(table.read())


def _mount(
    what: str, source: bytes | None, target: bytes, fstype: bytes | None, flags: int, data: bytes | None
) -> None:
    if libc.mount(source, target, fstype, ctypes.c_ulong(flags), data) != 0:
        code = ctypes.get_errno()
        error = OSError(code, os.strerror(code))
        raise mountapi.mount_error(what, error) from error


def unshare_mounts() -> None:
    """Give this process mounts of its own: what it mounts from now on nobody else sees, and it goes with the process.

    Raises:
        PrivilegeError: not root.
        BootwrightError: any other failure.
    """
    # os.unshare is new in Python 3.12.
    if libc.unshare(_CLONE_NEWNS) != 0:
        code = ctypes.get_errno()
        raise mountapi.mount_error("make a private mount namespace", OSError(code, os.strerror(code)))
    _mount("make the mounts private", None, b"/", None, _REC | _PRIVATE, None)


def bind(source: str, target: str, *, recursive: bool = False) -> None:
    """Show a directory or file at a second place, with the mounts below it when recursive.

    Raises:
        PrivilegeError: not root.
        BootwrightError: any other failure.
    """
    flags = _BIND | (_REC if recursive else 0)
    _mount(f"bind '{source}' to '{target}'", os.fsencode(source), os.fsencode(target), None, flags, None)


def mount_filesystem(fstype: str, source: str, target: str, *, flags: int = 0, options: str = "") -> None:
    """Mount a filesystem.

    Args:
        fstype: e.g. ``vfat``.
        source: block device, or any text for filesystems without one.
        target: existing directory.
        flags: of RDONLY, NOSUID, NODEV, NOEXEC.
        options: the filesystem's own, separated by commas.

    Raises:
        PrivilegeError: not root.
        BootwrightError: any other failure.
    """
    _mount(
        f"mount '{source}' ({fstype}) at '{target}'",
        os.fsencode(source),
        os.fsencode(target),
        fstype.encode(),
        flags,
        os.fsencode(options) if options else None,
    )


def remount(path: str, *, read_only: bool) -> None:
    """Make the mount at a path read-only or writable; its other options stay.

    Read-only concerns this one mount of the filesystem. Writable makes the filesystem itself writable as well if it
    is not.

    Raises:
        PrivilegeError: not root.
        BootwrightError: it is no mount point, or any other failure.
    """
    what = f"make '{path}' {'read-only' if read_only else 'writable'}"
    try:
        if read_only:
            mountapi.set_attributes(path, add=mountapi.ATTR_RDONLY)
            return
        mountapi.set_attributes(path, remove=mountapi.ATTR_RDONLY)
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            with mountapi.FsContext.pick(path) as context:
                try:
                    context.set_flag("rw")
                    context.reconfigure()
                except OSError as exc:
                    raise mountapi.mount_error(what, exc, context.read_log()) from exc
    except OSError as exc:
        raise mountapi.mount_error(what, exc) from exc


def unmount(path: str, *, detach: bool = False) -> None:
    """Unmount what is mounted at a path; a symlink is not followed.

    Args:
        path: the mount point.
        detach: also when it is in use; it then goes away with its last user.

    Raises:
        PrivilegeError: not root.
        BootwrightError: nothing is mounted there, it is in use, or any other failure.
    """
    if libc.umount2(os.fsencode(path), _UMOUNT_NOFOLLOW | (_MNT_DETACH if detach else 0)) != 0:
        code = ctypes.get_errno()
        reason = {16: "it is in use", 22: "nothing is mounted there"}.get(code, os.strerror(code))
        error = mountapi.mount_error(f"unmount '{path}'", OSError(code, reason))
        hint = "end the programs that use it (fuser -vm shows them)" if code == 16 else error.hint
        raise type(error)(error.message, hint=hint)
