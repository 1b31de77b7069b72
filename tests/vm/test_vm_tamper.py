"""A machine whose disk was changed behind its back: the kernel refuses what is not what it was."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import open_machine, read_status
from vm_ground import Ground

from bootwright.ops.vm import VirtualMachine

pytestmark = pytest.mark.vm

ROOT_PARTITION = re.compile(r"start=\s*(\d+),.*name=\"root\"")


@pytest.fixture(scope="module")
def disk(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("tampered") / "disk.raw"
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", ground.disk, path], check=True)
    yield path
    path.unlink()


def root_offset(disk: Path) -> int:
    table = subprocess.run(["/sbin/sfdisk", "--dump", disk], check=True, capture_output=True, text=True).stdout
    found = ROOT_PARTITION.search(table)
    assert found, table
    return int(found[1]) * 512


def debugfs(disk: Path, command: str, *, write: bool = False) -> str:
    target = f"{disk}?offset={root_offset(disk)}"
    argv = ["/sbin/debugfs", *(["-w"] if write else []), "-R", command, target]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def flip_first_byte(disk: Path, path: str) -> None:
    """Change one byte of a file's first block, in the place on the disk where it lies."""
    block = int(debugfs(disk, f"bmap {path} 0"))
    with disk.open("r+b") as file:
        file.seek(root_offset(disk) + block * 4096)
        (byte,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def find_object(machine: VirtualMachine, path: str) -> str:
    """Return the object (its path below /composefs/objects) that holds the content of a file of the running image."""
    identity = read_status(machine)["status"]["booted"]["composefs"]["verity"]
    listing = machine.run(f"bootwright composefs info ls /sysroot/composefs/images/{identity}").check()
    found = re.search(rf"^{re.escape(path)}\t@ (\S+)$", listing, flags=re.MULTILINE)
    assert found
    return found[1]


def test_reading_a_tampered_object_fails(disk: Path, tmp_path: Path) -> None:
    with open_machine(disk, serial_log=tmp_path / "first.log") as machine:
        machine.wait_for_ssh(timeout_s=600)
        victim = find_object(machine, "/usr/bin/nano")
        assert machine.run("cat /usr/bin/nano | wc -c").check().strip() != "0"
        machine.shutdown()
    flip_first_byte(disk, f"/composefs/objects/{victim}")
    with open_machine(disk, serial_log=tmp_path / "second.log") as machine:
        machine.wait_for_ssh(timeout_s=600)
        result = machine.run("cat /usr/bin/nano >/dev/null")
        assert result.status != 0
        assert "Input/output error" in result.stderr
        assert "FILE CORRUPTED" in machine.run("dmesg").check()
        # The rest of the machine is as it was.
        assert machine.run("systemctl is-system-running").stdout.strip() == "running"
        machine.shutdown()


def test_another_image_under_the_name_stops_the_boot(disk: Path, tmp_path: Path) -> None:
    identity = re.findall(r"\b[0-9a-f]{64}\b", debugfs(disk, "ls /state/deploy"))[0]
    other = re.findall(r"\b[0-9a-f]{62}\b", debugfs(disk, "ls /composefs/objects/00"))[0]
    debugfs(disk, f"unlink /composefs/images/{identity}", write=True)
    debugfs(disk, f"symlink /composefs/images/{identity} ../objects/00/{other}", write=True)
    with open_machine(disk, serial_log=tmp_path / "serial.log") as machine:
        said = machine.wait_for_console(
            r"bootwright: composefs image [^\n]*is not what its name says[^\n]*", timeout_s=600
        )
        assert f"sha256:00{other}" in machine.console()
        assert identity in said


def test_a_missing_image_stops_the_boot_with_its_name(disk: Path, tmp_path: Path) -> None:
    identity = re.findall(r"\b[0-9a-f]{64}\b", debugfs(disk, "ls /state/deploy"))[0]
    debugfs(disk, f"unlink /composefs/images/{identity}", write=True)
    with open_machine(disk, serial_log=tmp_path / "serial.log") as machine:
        machine.wait_for_console(f"bootwright: there is no composefs image '{identity}'", timeout_s=600)
