"""Find the EFI system partition of the disk that the machine runs from, and make it reachable.

The kernel says which block device holds the physical root; its disk's partition table says where the ESP is; the boot
loader says (``LoaderDevicePartUUID``) which one it came from when there are several. Nothing depends on where, or
whether, the ESP is mounted: without a mount it is mounted for this command alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bootwright.errors import BootError, BootwrightError
from bootwright.linux.mountinfo import Mount
from bootwright.linux.partitions import ESP_TYPE, find_disks, find_partition_device, read_gpt

__all__ = ["BootPartition", "find_boot_partition", "open_boot_partition", "read_boot_loader", "read_loader_variable"]

_LOADER_GUID = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
EFI_VARIABLES = "/sys/firmware/efi/efivars"
_VFAT_OPTIONS = "umask=0077"
_BUSY_RETRIES = 40
_BUSY_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class BootPartition:
    """An ESP: path of its device, and the partition's GUID."""

    device: str
    guid: uuid.UUID


def read_loader_variable(name: str, *, directory: str = EFI_VARIABLES) -> str | None:
    """Read a text that the boot loader left in an EFI variable (systemd, "The Boot Loader Interface").

    Returns:
        None when the machine has no EFI or the loader set no such variable.
    """
    try:
        with open(os.path.join(directory, f"{name}-{_LOADER_GUID}"), "rb", buffering=0) as file:
            data = file.read(4096)
    except OSError:
        return None
    # Four bytes of attributes, then UTF-16 with a terminating zero.
    return data[4:].decode("utf-16-le", "replace").partition("\0")[0] if len(data) > 4 else None


def read_boot_loader(boot_root: str | None, *, directory: str = EFI_VARIABLES) -> str:
    """Tell which boot loader started the machine, in bootc's words: ``systemd``, ``grub-cc`` or ``grub``.

    Args:
        boot_root: the boot partition, looked at when the loader says nothing, e.g. in a virtual machine without EFI
            variables; None when it cannot be read.
        directory: of the EFI variables.
    """
    told = (read_loader_variable("LoaderInfo", directory=directory) or "").lower()
    if "systemd-boot" in told:
        return "systemd"
    if "grub cc" in told:
        return "grub-cc"
    if not told and boot_root is not None and os.path.isdir(os.path.join(boot_root, "EFI/systemd")):
        return "systemd"
    return "grub"


def find_boot_partition(
    device: tuple[int, int], *, sys: str = "/sys", dev: str = "/dev", efi_variables: str = EFI_VARIABLES
) -> BootPartition:
    """Find the ESP on the disks below a block device.

    Args:
        device: major and minor number of the physical root's device.
        sys: where sysfs is.
        dev: where device nodes are.
        efi_variables: where the boot loader's messages are.

    Raises:
        BootError: there is none, or the disks cannot be read.
    """
    found: list[BootPartition] = []
    problems: list[str] = []
    for disk in find_disks(device, sys=sys):
        path = os.path.join(dev, os.path.basename(disk))
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                partitions = read_gpt(fd)
            finally:
                os.close(fd)
        except (OSError, BootError) as exc:
            problems.append(f"'{path}': {exc.strerror if isinstance(exc, OSError) else exc}")
            continue
        for partition in partitions:
            name = find_partition_device(disk, partition.number) if partition.type_guid == ESP_TYPE else None
            if name is not None:
                found.append(BootPartition(os.path.join(dev, name), partition.guid))
    if not found:
        detail = f" ({'; '.join(problems)})" if problems else ""
        raise BootError(
            f"no EFI system partition was found on the disk of the running system{detail}",
            hint="run it as root" if problems and os.geteuid() != 0 else None,
        )
    used = (read_loader_variable("LoaderDevicePartUUID", directory=efi_variables) or "").lower()
    return next((one for one in found if str(one.guid) == used), found[0])


@contextlib.contextmanager
def open_boot_partition(
    partition: BootPartition, mounts: Sequence[Mount], *, directory: str, writable: bool
) -> Iterator[str]:
    """Give a path at which the partition can be used, for the time of the block.

    An existing mount is used, and made writable if need be. Both happen in a private mount namespace, which the caller
    has entered.

    Args:
        partition: from :func:`find_boot_partition`.
        mounts: the mount table.
        directory: where to mount it, created when missing.
        writable: whether it is going to be written.

    Raises:
        BootError: it cannot be mounted or made writable.
    """
    # Late: status on a machine that has the partition mounted, or is not ours, needs none of it.
    from bootwright.linux import mount

    try:
        number = os.stat(partition.device).st_rdev
        device = (os.major(number), os.minor(number))
        known = next((one for one in mounts if one.device == device and one.root == "/"), None)
        if known is not None and os.path.isdir(known.target):
            if writable and known.is_read_only:
                mount.remount(known.target, read_only=False)
            yield known.target
            return
        os.makedirs(directory, mode=0o700, exist_ok=True)
        _mount(partition.device, directory, writable=writable)
    except OSError as exc:
        raise BootError(f"the EFI system partition '{partition.device}' cannot be used: {exc.strerror}") from exc
    try:
        yield directory
    finally:
        with contextlib.suppress(BootwrightError):
            mount.unmount(directory, detach=True)


def _mount(device: str, directory: str, *, writable: bool) -> None:
    """Mount the partition without programs, set-user-id files and devices.

    A filesystem is either read-only or writable for everybody who mounts it. Wanted read-only while somebody writes, it
    is mounted writable on the second attempt; wanted writable while somebody reads, it is tried again for two seconds.
    """
    from bootwright.linux import mount

    for attempt in range(_BUSY_RETRIES):
        flags = mount.NOSUID | mount.NODEV | mount.NOEXEC
        if not writable and attempt % 2 == 0:
            flags |= mount.RDONLY
        try:
            mount.mount_filesystem("vfat", device, directory, flags=flags, options=_VFAT_OPTIONS)
        except BootwrightError as exc:
            is_busy = isinstance(exc.__cause__, OSError) and exc.__cause__.errno == errno.EBUSY
            if not is_busy or attempt == _BUSY_RETRIES - 1:
                raise BootError(f"the EFI system partition cannot be mounted: {exc.message}", hint=exc.hint) from exc
            time.sleep(_BUSY_PAUSE_S)
        else:
            return
