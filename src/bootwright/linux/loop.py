"""Loop devices: a file as a read-only block device, for kernels that mount filesystems from block devices only."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from bootwright.errors import BootwrightError, PrivilegeError

__all__ = ["attach_read_only"]

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_READ_ONLY, _AUTOCLEAR, _DIRECT_IO = 1, 4, 16
_ATTEMPTS = 64


def attach_read_only(file_fd: int) -> tuple[int, str]:
    """Attach a file to a free loop device that goes away with its last user.

    Returns:
        An open descriptor of the device, to be kept until it is mounted, and the device's path.

    Raises:
        PrivilegeError: not allowed.
        BootwrightError: no loop device to be had.
    """
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        kind = PrivilegeError if exc.errno in (errno.EPERM, errno.EACCES) else BootwrightError
        raise kind(f"could not open '/dev/loop-control': {exc.strerror}", hint="run it as root; modprobe loop") from exc
    try:
        for _ in range(_ATTEMPTS):
            path = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _configure(device, file_fd)
            except OSError as exc:
                os.close(device)
                if exc.errno != errno.EBUSY:  # somebody else was faster
                    raise
            else:
                return device, path
    except OSError as exc:
        raise BootwrightError(f"could not attach the image to a loop device: {exc.strerror}") from exc
    finally:
        os.close(control)
    raise BootwrightError("could not attach the image to a loop device: all are taken", hint="losetup -a shows them")


def _configure(device: int, file_fd: int) -> None:
    for flags in (_READ_ONLY | _AUTOCLEAR | _DIRECT_IO, _READ_ONLY | _AUTOCLEAR):
        # struct loop_config: fd, block size, then struct loop_info64 whose flags are at offset 52, then 64 reserved.
        config = struct.pack("=II52xI176x64x", file_fd, 4096, flags)
        try:
            fcntl.ioctl(device, _LOOP_CONFIGURE, config)
        except OSError as exc:
            if exc.errno != errno.EINVAL or not flags & _DIRECT_IO:
                raise
        else:
            return
