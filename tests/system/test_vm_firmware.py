"""A virtual machine up to its firmware: what happens when a disk does not boot."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bootwright.errors import BootError, ToolError
from bootwright.ops.vm import MachineOptions, VirtualMachine
from fakes.users import SOURCE

pytestmark = pytest.mark.system


@pytest.fixture
def disk(tmp_path: Path) -> str:
    path = tmp_path / "empty, with a comma.raw"
    with path.open("wb") as file:
        file.truncate(1 << 20)
    return str(path)


def options(disk: str, **more: object) -> MachineOptions:
    return MachineOptions(disk=disk, memory=256, cpus=1, **more)  # type: ignore[arg-type]  # as typed there


def running(directory: str) -> bool:
    """Whether any process has the directory in its command line."""
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                if directory.encode() in Path("/proc", name, "cmdline").read_bytes():
                    return True
            except OSError:
                continue
    return False


def test_disk_that_does_not_boot_fails_with_the_console(disk: str, tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    with VirtualMachine(options(disk, serial_log=str(log))) as machine, pytest.raises(BootError) as caught:
        machine.wait_for_ssh(timeout_s=300)
    assert "the guest did not boot" in caught.value.message
    assert "BdsDxe" in (caught.value.hint or "")
    assert log.stat().st_size > 0
    assert not running(machine._directory)
    assert not os.path.exists(machine._directory)


def test_console_reset_and_kept_variables(disk: str, tmp_path: Path) -> None:
    variables = tmp_path / "variables.fd"
    machine = VirtualMachine(options(disk, variables=str(variables), ssh=False, snapshot=False))
    with machine:
        machine.wait_for_console(r"BdsDxe|UEFI")
        size = len(machine.console())
        machine.reset()
        deadline = time.monotonic() + 300
        while len(machine.console()) <= size and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(machine.console()) > size
        assert variables.stat().st_size > 0
        with pytest.raises(BootError, match="did not show 'never'"):
            machine.wait_for_console("never", timeout_s=0.1)
    assert variables.exists()


def test_qemu_that_does_not_start_says_why(disk: str) -> None:
    machine = VirtualMachine(options(disk, disk_format="qcow2"))
    with pytest.raises(ToolError, match=r"does not start: .*not in qcow2 format"):
        machine.start()
    machine.close()


def test_qemu_that_ends_is_noticed(disk: str) -> None:
    with VirtualMachine(options(disk)) as machine:
        machine._get_qmp().execute("quit")
        with pytest.raises(BootError, match="QEMU ended before root could log in"):
            machine.wait_for_ssh(timeout_s=300)


def test_command_line_fails_with_the_reason_and_leaves_nothing(disk: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bootwright", "vm", "run", "--memory", "256M", "--exec", "true", disk],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 8
    assert done.stderr.startswith("error: the guest did not boot")
    assert [name for name in os.listdir(tmp_path) if name.startswith("bootwright-vm")] == []
