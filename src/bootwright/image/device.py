"""Block devices as the target of an installation: what they are, whether they are free, and how to announce changes."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time
from dataclasses import dataclass

from bootwright.errors import BusyError, PrivilegeError, UsageError
from bootwright.image.layout import ALIGNMENT, Layout
from bootwright.linux import files

__all__ = ["BlockDevice", "check_unused", "inspect_device", "reread_partitions", "wipe_signatures"]

_BLKGETSIZE64 = 0x80081272
_BLKSSZGET = 0x1268
_BLKRRPART = 0x125F


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockDevice:
    """A disk; sizes in bytes.

    Attributes:
        path: without symlinks.
        size: of the device.
        sector_size: of its logical sectors.
        model: what the hardware calls itself; empty when it does not.
        partitions: kernel names of its partitions.
        is_blank: neither partitions nor anything else at its start.
    """

    path: str
    size: int
    sector_size: int
    model: str
    partitions: tuple[str, ...]
    is_blank: bool


def inspect_device(path: str) -> BlockDevice:
    """Look at a block device, reading only.

    Raises:
        UsageError: it is a partition, or no block device.
        PrivilegeError: it cannot be opened.
    """
    path = os.path.realpath(path)
    with files.translated("could not open the disk"):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISBLK(status.st_mode):
            raise UsageError(f"'{path}' is no block device")
        size = struct.unpack("Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))[0]
        sector_size = struct.unpack("i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))[0]
        start = os.pread(fd, ALIGNMENT, 0)
    finally:
        os.close(fd)
    directory = os.path.realpath(f"/sys/dev/block/{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}")
    if os.path.exists(os.path.join(directory, "partition")):
        raise UsageError(
            f"'{path}' is a partition, not a whole disk",
            hint=f"name the disk: /dev/{os.path.basename(os.path.dirname(directory))}",
        )
    names = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    partitions = tuple(name for name in names if os.path.exists(os.path.join(directory, name, "partition")))
    return BlockDevice(
        path=path,
        size=size,
        sector_size=sector_size,
        model=_read_line(os.path.join(directory, "device/model")),
        partitions=partitions,
        is_blank=not partitions and not any(start),
    )


def _read_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return ""


def check_unused(path: str) -> None:
    """Require that nothing uses the disk or one of its partitions: mounts, swap, RAID, device mapper.

    Raises:
        BusyError: something does.
        PrivilegeError: it cannot be opened for writing.
    """
    try:
        # Exclusive opens of block devices exclude each other, and a mount holds one; so does one of a partition.
        os.close(os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC))
    except OSError as exc:
        if exc.errno == errno.EBUSY:
            raise BusyError(
                f"the disk '{path}' is in use", hint=f"unmount what lsblk {path} shows, and run the command again"
            ) from exc
        raise PrivilegeError(
            f"the disk '{path}' cannot be written: {exc.strerror}", hint="run it as root, or install into a file"
        ) from exc


def wipe_signatures(path: str, layout: Layout) -> None:
    """Zero the places where old partition tables, filesystems and volume managers leave their marks.

    These are the first and the last MiB of the disk and of every new partition.
    """
    zeros = bytes(ALIGNMENT)
    with files.translated(f"could not write to '{path}'"):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            places = {0, layout.size // ALIGNMENT * ALIGNMENT - ALIGNMENT, layout.size - ALIGNMENT}
            for partition in layout.partitions:
                places |= {partition.start, partition.start + partition.size - ALIGNMENT}
            for place in sorted(places):
                os.lseek(fd, place, os.SEEK_SET)
                files.write_all(fd, zeros)
            os.fsync(fd)
        finally:
            os.close(fd)


def reread_partitions(path: str) -> bool:
    """Ask the kernel to read the partition table again; False when something holds an old partition."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
        # udev opens a disk for a moment whenever somebody closes it after writing.
        for attempt in range(20):
            try:
                fcntl.ioctl(fd, _BLKRRPART)
            except OSError as exc:
                if exc.errno == errno.EINVAL:
                    return False
                if exc.errno != errno.EBUSY:
                    raise
                time.sleep(0.05 * (attempt + 1))
            else:
                return True
        return False
    finally:
        os.close(fd)
