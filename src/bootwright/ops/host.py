"""The machine that a command runs on: what booted, where things are, and the right to change it.

Everything outside of our own memory is a field here, so that a test can lay out a machine in a directory.
"""

from __future__ import annotations

import contextlib
import enum
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from bootwright.boot import esp
from bootwright.boot.kargs import Kargs
from bootwright.boot.sdboot import EntryStore
from bootwright.deploy.model import is_deployment_id
from bootwright.errors import BootwrightError, DeploymentError, PrivilegeError
from bootwright.linux import files, journal
from bootwright.linux.lock import Lock
from bootwright.linux.mountinfo import Mount, find_mount, parse_mountinfo

__all__ = ["FINALIZE_UNIT", "Environment", "Host"]

FINALIZE_UNIT = "bootwright-finalize-staged.service"

_MOUNT_SOURCES = ("composefs:", "transient:composefs=")
_CONTAINER_MARKS = ("run/.containerenv", ".dockerenv", "run/systemd/container")


class Environment(enum.Enum):
    """What kind of place a command runs in."""

    BOOTED = "booted"  # from a deployment of ours
    CONTAINER = "container"
    OTHER = "other"


def start_unit(name: str) -> None:
    """Start a systemd unit and wait until it runs.

    Raises:
        ToolError: systemd does not know it or it failed.
    """
    from bootwright.linux.process import run

    run(["systemctl", "start", name], purpose=f"start '{name}', which finalises the update at shutdown")


def reboot() -> None:
    """Ask systemd to reboot. A unit does it, because our own session is among the first things that end.

    Raises:
        ToolError: systemd refused.
    """
    from bootwright.linux.process import run

    message = "--message=Initiated by bootwright"
    run(["systemd-run", "--quiet", "--", "systemctl", "reboot", message], purpose="reboot")


@dataclass(kw_only=True)
class Host:
    """A machine.

    Args:
        cmdline: the kernel command line.
        mounts: the mount table.
        root: the running root.
        sysroot: the physical root.
        run: runtime state.
        efi_variables: directory of EFI variables.
        sys: where sysfs is.
        boot_root: the boot partition when it is at hand; None: it is found and mounted.
        machine: the kernel's name of the architecture.
        uid: effective user.
        is_live: mounts can be made. False for a machine laid out in a directory.
        in_container: a container engine started us.
        start_unit: starts a systemd unit.
        reboot: reboots.
        journal: takes a message, its id and fields.
    """

    cmdline: str
    mounts: list[Mount]
    root: str = "/"
    sysroot: str = "/sysroot"
    run: str = "/run"
    efi_variables: str = esp.EFI_VARIABLES
    sys: str = "/sys"
    boot_root: str | None = None
    machine: str = field(default_factory=platform.machine)
    uid: int = field(default_factory=os.geteuid)
    is_live: bool = True
    in_container: bool = False
    start_unit: Callable[[str], None] = start_unit
    reboot: Callable[[], None] = reboot
    journal: Callable[..., None] = journal.send
    _is_private: bool = field(default=False, init=False)

    @classmethod
    def detect(cls) -> Host:
        """Describe the machine this process runs on."""
        marks = any(os.path.exists(os.path.join("/", mark)) for mark in _CONTAINER_MARKS)
        return cls(
            cmdline=_read("/proc/cmdline"),
            mounts=parse_mountinfo(_read("/proc/self/mountinfo")),
            in_container=marks or "container" in os.environ,
        )

    @cached_property
    def kargs(self) -> Kargs:
        """The kernel command line, split."""
        return Kargs.parse(self.cmdline)

    @cached_property
    def booted_id(self) -> str | None:
        """The deployment that runs, told by the root's mount source: the command line is old after a soft reboot."""
        root = find_mount(self.mounts, "/")
        for prefix in _MOUNT_SOURCES:
            if root is not None and root.source.startswith(prefix):
                deployment_id = root.source.removeprefix(prefix)
                return deployment_id if is_deployment_id(deployment_id) else None
        return None

    @cached_property
    def environment(self) -> Environment:
        """What kind of place this is."""
        if self.in_container:
            return Environment.CONTAINER
        return Environment.OTHER if self.booted_id is None else Environment.BOOTED

    @property
    def repository(self) -> str:
        """Path of the repository."""
        return os.path.join(self.sysroot, "composefs")

    @property
    def staged_file(self) -> str:
        """Path of the record that something is staged; it goes with the boot."""
        return os.path.join(self.run, "composefs/staged-deployment")

    @property
    def architecture(self) -> str:
        """OCI's name of the architecture."""
        from bootwright.linux.architecture import oci_name

        return oci_name(self.machine)

    @property
    def rust_architecture(self) -> str:
        """Rust's name of the architecture, which kargs.d uses."""
        from bootwright.linux.architecture import rust_name

        return rust_name(self.machine)

    @cached_property
    def root_device(self) -> tuple[int, int] | None:
        """Number of the block device behind the physical root; None when it is on none."""
        physical = find_mount(self.mounts, self.sysroot)
        if physical is None:
            return None
        if physical.device[0] != 0:
            return physical.device
        # btrfs gives its mounts numbers of their own; the source is the real device.
        with contextlib.suppress(OSError):
            number = os.stat(physical.source).st_rdev
            if number:
                return os.major(number), os.minor(number)
        return None

    @property
    def is_read_only(self) -> bool:
        """The physical root lies on a medium that cannot be written, e.g. a live ISO."""
        if self.root_device is None:
            return False
        major, minor = self.root_device
        return _read(os.path.join(self.sys, f"dev/block/{major}:{minor}/ro")).strip() == "1"

    def current_etc(self, booted_state: str) -> str:
        """Return where the live /etc can be read: from the disk when it is just that, not what is mounted over it."""
        live, stored = os.path.join(self.root, "etc"), os.path.join(booted_state, "etc")
        with contextlib.suppress(OSError):
            if not os.path.samefile(live, stored):
                return live
        return stored

    # ---- the right to change things --------------------------------------------------------------------------

    def check_booted(self) -> str:
        """Require a machine that runs a deployment of ours; return its id.

        Raises:
            DeploymentError: it is a container, or was set up by something else.
        """
        if self.environment is Environment.CONTAINER:
            raise DeploymentError("this command requires a booted host system, and this is a container")
        if self.booted_id is None:
            if self.kargs.composefs_id is not None:
                raise DeploymentError(
                    "the kernel command line has 'composefs=', but the root is not mounted from it",
                    hint="the initramfs lacks bootwright's module, or failed: see journalctl -b",
                )
            raise DeploymentError(
                "this system is not deployed via bootwright",
                hint="install one: bootwright install to-disk --source-imgref REFERENCE DISK",
            )
        return self.booted_id

    @contextlib.contextmanager
    def prepare_for_write(self, holder: str, *, timeout_s: float = 0) -> Iterator[None]:
        """Take the one lock, and make the physical root writable for this process alone.

        Args:
            holder: what we are doing, shown to others who want the lock.
            timeout_s: how long to wait for it.

        Raises:
            BusyError: another command holds the lock.
            PrivilegeError: not root, or the medium is read-only.
            DeploymentError: not a machine of ours.
        """
        if self.environment is not Environment.CONTAINER and self.uid != 0:
            raise PrivilegeError(f"'{holder}' changes the system and must be run as root", hint=f"sudo {holder}")
        self.check_booted()
        if self.is_read_only:
            raise PrivilegeError(
                "the physical root is on a read-only medium", hint="install the system on a disk to update it"
            )
        directory = os.path.join(self.run, "bootwright")
        with files.translated("could not lock the system"):
            os.makedirs(directory, mode=0o755, exist_ok=True)
            lock = Lock(os.path.join(directory, "lock"), exclusive=True, holder=holder, timeout_s=timeout_s)
        with lock:
            self._make_private()
            if self.is_live:
                from bootwright.linux import mount

                mount.remount(self.sysroot, read_only=False)
            yield

    def _make_private(self) -> None:
        if self.is_live and not self._is_private:
            from bootwright.linux import mount

            mount.unshare_mounts()
            self._is_private = True

    @contextlib.contextmanager
    def open_boot(self, *, writable: bool) -> Iterator[EntryStore]:
        """Open the boot partition for the time of the block.

        Raises:
            BootError: it cannot be found or mounted.
            PrivilegeError: not root.
        """
        if self.boot_root is not None:
            yield EntryStore(self.boot_root)
            return
        if self.uid != 0:
            raise PrivilegeError("the boot partition can be read by root only", hint="run it as root")
        if self.root_device is None:
            raise BootwrightError(f"'{self.sysroot}' is on no block device, so there is no boot partition to find")
        partition = esp.find_boot_partition(self.root_device, sys=self.sys, efi_variables=self.efi_variables)
        self._make_private()
        directory = os.path.join(self.run, "bootwright/boot")
        with esp.open_boot_partition(partition, self.mounts, directory=directory, writable=writable) as path:
            yield EntryStore(path)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""
