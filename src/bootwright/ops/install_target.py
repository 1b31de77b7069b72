"""Where an installation goes: a file that appears when it is complete, or a block device."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from bootwright.errors import UsageError
from bootwright.image.device import BlockDevice, check_unused, inspect_device
from bootwright.linux import files

__all__ = ["WORK_PREFIX", "Target", "find_target", "open_work_directory"]

WORK_PREFIX = f"{files.TEMPORARY_PREFIX}bootwright-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where the disk goes.

    Attributes:
        path: of the file or device.
        device: what the device is; None for a file.
        replaces: a file is there now, and will be replaced.
    """

    path: str
    device: BlockDevice | None = None
    replaces: bool = False

    @property
    def work_parent(self) -> str:
        """Directory for temporary files: beside a file, so that a rename completes it; else one that is no memory."""
        if self.device is not None:
            return os.environ.get("TMPDIR") or "/var/tmp"  # noqa: S108  a private directory is made in it
        return os.path.dirname(os.path.abspath(self.path))

    def describe(self) -> str:
        """Say what it is and what will happen to it."""
        if self.device is not None:
            model = f" ({self.device.model})" if self.device.model else ""
            old = f", {len(self.device.partitions)} partitions are lost" if self.device.partitions else ""
            return f"disk {self.path}{model}, everything on it is lost{old}"
        return f"file {self.path}, replaced" if self.replaces else f"file {self.path}"


def find_target(path: str, *, wipe: bool) -> Target:
    """Look at what a path is, and refuse what must not be overwritten. Writes nothing.

    Raises:
        UsageError: the file exists or the disk is not empty, and ``wipe`` is False; or neither file nor disk.
        BusyError: the disk is in use.
        PrivilegeError: it cannot be written.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return _new_file(path)
    except OSError as exc:
        raise UsageError(f"the target '{path}' cannot be used: {exc.strerror}") from exc
    if stat.S_ISBLK(status.st_mode):
        device = inspect_device(path)
        check_unused(device.path)
        if not device.is_blank and not wipe:
            found = f"has {len(device.partitions)} partitions" if device.partitions else "is not empty"
            raise UsageError(f"the disk '{device.path}' {found}", hint="--wipe to lose everything on it")
        return Target(path=device.path, device=device)
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"the target '{path}' is neither a file nor a block device")
    if not wipe:
        raise UsageError(f"the file '{path}' exists", hint="--wipe to replace it, or name another file")
    return _new_file(os.path.realpath(path), replaces=True)


def _new_file(path: str, *, replaces: bool = False) -> Target:
    parent = os.path.dirname(os.path.abspath(path))
    if path.startswith("/dev/"):
        raise UsageError(f"there is no disk '{path}'", hint="lsblk shows the disks of this machine")
    if not os.path.isdir(parent):
        raise UsageError(f"the directory '{parent}' for the target does not exist", hint=f"mkdir -p {parent}")
    if path.endswith("/"):
        raise UsageError(f"the target '{path}' names a directory", hint="name a file: disk.raw")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"the directory '{parent}' for the target cannot be written")
    return Target(path=path, replaces=replaces)


@contextlib.contextmanager
def open_work_directory(parent: str) -> Iterator[str]:
    """Make a temporary directory that goes away at the end, and remove those that killed runs left beside it.

    A lock on the directory tells a running installation from a killed one.

    Raises:
        SpaceError, PrivilegeError: it cannot be made.
    """
    with files.translated("could not make a temporary directory"):
        _remove_abandoned(parent)
        path, lock = _make_locked(parent)
    try:
        yield path
    finally:
        files.remove_tree(path)
        os.close(lock)


def _make_locked(parent: str) -> tuple[str, int]:
    while True:
        path = os.path.join(os.path.abspath(parent), f"{WORK_PREFIX}{secrets.token_hex(6)}")
        os.mkdir(path, 0o700)
        lock = files.open_directory(path)
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Somebody who looks for leftovers can have met it before it was locked.
        if os.path.lexists(path):
            return path, lock
        os.close(lock)


def _remove_abandoned(parent: str) -> None:
    for name in os.listdir(parent):
        if not name.startswith(WORK_PREFIX):
            continue
        path = os.path.join(parent, name)
        with contextlib.suppress(OSError):
            lock = files.open_directory(path)
            try:
                # Somebody else's leftovers in a shared directory are not ours to remove.
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    files.remove_tree(path)
            finally:
                os.close(lock)
