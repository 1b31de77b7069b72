"""Mounting in private, on this kernel: what a command makes writable or mounts is seen by it alone."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bootwright.boot.esp import BootPartition, open_boot_partition
from bootwright.errors import BootError
from bootwright.linux.mount import unshare_mounts
from bootwright.linux.mountinfo import find_mount, parse_mountinfo

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts")]


def in_child(work: Callable[[], None]) -> None:
    """Run in a forked process, whose mounts go with it."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            unshare_mounts()
            work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def mount_table() -> str:
    return Path("/proc/self/mountinfo").read_text()


def test_an_esp_that_is_no_filesystem_is_an_error_with_its_name(tmp_path: Path) -> None:
    import uuid

    def work() -> None:
        partition = BootPartition("/dev/null", uuid.UUID(int=1))
        with (
            pytest.raises(BootError, match="'/dev/null'"),
            open_boot_partition(partition, [], directory=str(tmp_path / "boot"), writable=False),
        ):
            pass

    in_child(work)


def test_an_existing_mount_is_used(tmp_path: Path) -> None:
    """The device's number is looked up in the mount table; here a directory on the root's own device stands in."""
    import uuid

    mounts = parse_mountinfo(mount_table())
    root = find_mount(mounts, "/")
    if root is None or root.device[0] == 0:
        pytest.skip("the root is on no block device")
    node = tmp_path / "node"
    os.mknod(node, 0o60600, os.makedev(*root.device))
    with open_boot_partition(
        BootPartition(str(node), uuid.UUID(int=1)), mounts, directory="/nonexistent/x", writable=False
    ) as path:
        assert path == "/"
