"""The root set-up run for real, in a mount namespace: a composefs image is mounted over a physical root made here.

The kernel of a build machine may have no fs-verity, so composefs=?ID is used here; the VM tests boot with composefs=ID.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from bootwright.erofs.tree import Inode
from bootwright.erofs.writer import write_image
from bootwright.linux import fsverity

pytestmark = pytest.mark.system

ROOT_SETUP = Path(__file__).parents[2] / "src" / "bootwright" / "data" / "initramfs" / "bootwright-root-setup"
OBJECT = b"content of a file that is an object in the repository\n" * 100


def _missing() -> str | None:
    if os.geteuid() != 0:
        return "needs root, to mount"
    for program in ("unshare", "fsverity", "findmnt"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    for filesystem in ("erofs", "overlay"):
        if shutil.which("modprobe"):
            subprocess.run(["modprobe", "-q", filesystem], check=False, capture_output=True)
        if filesystem not in Path("/proc/filesystems").read_text().split():
            return f"this kernel has no {filesystem}"
    return None


@pytest.fixture(autouse=True)
def _need_kernel() -> None:
    reason = _missing()
    if reason is not None:
        pytest.skip(reason)


@dataclass
class Machine:
    """A physical root with a repository, one image and its state, before it is set up."""

    directory: Path
    id: str

    @property
    def root(self) -> Path:
        return self.directory / "physical"

    @property
    def image(self) -> Path:
        return self.root / "composefs" / "images" / self.id

    @property
    def state(self) -> Path:
        return self.root / "state" / "deploy" / self.id

    def set_up(self, cmdline: str, then: str = "true") -> subprocess.CompletedProcess[str]:
        """Run the set-up in a mount namespace of its own, with an empty /run, and a command after it."""
        (self.directory / "cmdline").write_text(cmdline + "\n")
        script = (
            'mount -t tmpfs run /run && mount --bind "$1" "$1" && cd / && '
            f'BOOTWRIGHT_CMDLINE="$2" dash "{ROOT_SETUP}" "$1" && cd "$1" && {{ {then}\n}}'
        )
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, "sh", self.root, self.directory / "cmdline"],
            capture_output=True,
            text=True,
            check=False,
        )


def directory(**children: Inode) -> Inode:
    return Inode(stat.S_IFDIR | 0o755, children={name.encode(): child for name, child in children.items()})


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return make_machine(tmp_path)


def make_machine(place: Path, **extra: Inode) -> Machine:
    digest = fsverity.compute(OBJECT)
    big = Inode(
        stat.S_IFREG | 0o644, size=len(OBJECT), payload=digest.object_path.encode(), digest=digest.raw, mtime_sec=1
    )
    small = Inode(stat.S_IFREG | 0o644, size=6, content=b"small\n")
    names = {"etc": directory(), "var": directory(), "sysroot": directory(), "usr": directory(big=big, small=small)}
    data = bytes(write_image(directory(**{**names, **extra}), min_version=1, max_version=1))
    image_digest = fsverity.compute(data)
    made = Machine(place, image_digest.hex)
    objects = made.root / "composefs" / "objects"
    for name, content in ((digest.object_path, OBJECT), (image_digest.object_path, data)):
        (objects / name).parent.mkdir(parents=True, exist_ok=True)
        (objects / name).write_bytes(content)
    made.image.parent.mkdir()
    made.image.symlink_to(f"../objects/{image_digest.object_path}")
    (made.state / "etc").mkdir(parents=True)
    (made.state / "etc" / "hostname").write_text("machine\n")
    (made.root / "state" / "os" / "default" / "var").mkdir(parents=True)
    (made.state / "var").symlink_to("../../os/default/var")
    return made


def test_does_nothing_without_composefs(machine: Machine) -> None:
    result = machine.set_up("root=/dev/vda quiet", then="ls")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split() == ["composefs", "state"]


def test_sets_up_the_root(machine: Machine) -> None:
    commands = """
        findmnt -n -o SOURCE,FSTYPE,OPTIONS "$PWD" | tail -n 1  # the top one of the stack
        ls; cat usr/small; sha256sum <usr/big; cat etc/hostname
        echo changed >etc/hostname && echo kept >var/file
        touch usr/new || echo read-only usr
        touch sysroot/new || echo read-only sysroot
        ls sysroot
        find /run ! -type d ! -path "/run/mount/*"
        grep -c bootwright /proc/self/mountinfo
        """
    result = machine.set_up(f"rw composefs=?{machine.id}", then=commands)
    lines = result.stdout.splitlines()
    assert lines[0] == f"bootwright: root is composefs:{machine.id}, not verified"
    source, kind, options = lines[1].split()
    assert (source, kind) == (f"composefs:{machine.id}", "overlay")
    assert {"ro", "metacopy=on", "redirect_dir=on"} <= set(options.split(","))
    assert lines[2:6] == ["etc", "sysroot", "usr", "var"]
    assert lines[6] == "small"
    assert (
        lines[7] == subprocess.run(["sha256sum"], input=OBJECT, capture_output=True, check=True).stdout.decode().strip()
    )
    assert lines[8] == "machine"
    assert lines[9:13] == ["read-only usr", "read-only sysroot", "composefs", "state"]
    # The temporary mounts are gone; /run keeps the link to the block device, when a block device is behind the root.
    assert [line for line in lines[13:-1] if line != "/run/systemd/volatile-root"] == []
    assert lines[-1] == "1", "only the options of the overlay name the work directory"
    assert result.returncode == 0
    assert (machine.state / "etc" / "hostname").read_text() == "changed\n"
    assert (machine.root / "state" / "os" / "default" / "var" / "file").read_text() == "kept\n"


def test_second_run_changes_nothing(machine: Machine) -> None:
    again = f'BOOTWRIGHT_CMDLINE="$2" dash "{ROOT_SETUP}" "$PWD" && findmnt -n -o SOURCE "$PWD" | wc -l'
    result = machine.set_up(f"composefs=?{machine.id}", then=again)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split()[-1] == "2"  # the overlay and the physical root under it


def refusal(machine: Machine, cmdline: str) -> str:
    """Run the set-up, which must fail with one line and leave no mount, and return the line."""
    script = f'. "{ROOT_SETUP}"; (main "$1"); echo "$?"; ls "$1"; grep -c bootwright-root-setup /proc/self/mountinfo'
    (machine.directory / "cmdline").write_text(cmdline + "\n")
    result = subprocess.run(
        [
            "unshare",
            "--mount",
            "dash",
            "-c",
            'mount -t tmpfs run /run && mount --bind "$1" "$1" && cd / && ' + script,
            "dash",
            machine.root,
        ],
        env={**os.environ, "BOOTWRIGHT_SOURCED": "1", "BOOTWRIGHT_CMDLINE": str(machine.directory / "cmdline")},
        capture_output=True,
        text=True,
        check=False,
    )
    status, *names, mounts = result.stdout.split()
    assert status == "1"
    assert names == sorted(path.name for path in machine.root.iterdir())
    assert mounts == "0"
    assert result.stderr.endswith("\n")
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("bootwright: ")
    return result.stderr


def test_no_such_image(machine: Machine) -> None:
    wrong = "0" * 64
    assert f"there is no composefs image '{wrong}' in the repository" in refusal(machine, f"composefs={wrong}")


def test_malformed_id(machine: Machine) -> None:
    assert "composefs='none' on the kernel command line is no id" in refusal(machine, "composefs=none")


def test_conflicting_ids(machine: Machine) -> None:
    assert "given twice" in refusal(machine, f"composefs={machine.id} composefs=?{machine.id}")


def test_no_repository(machine: Machine) -> None:
    shutil.rmtree(machine.root / "composefs")
    assert "there is no composefs repository" in refusal(machine, f"composefs=?{machine.id}")


def test_missing_object_of_the_image(machine: Machine) -> None:
    machine.image.resolve().unlink()
    assert "points to an object that is missing" in refusal(machine, f"composefs=?{machine.id}")


def test_image_that_is_no_erofs(machine: Machine) -> None:
    machine.image.resolve().write_bytes(bytes(8192))
    message = refusal(machine, f"composefs=?{machine.id}")
    assert f"composefs image '{machine.id}' cannot be mounted" in message


def test_verity_is_required_and_absent(machine: Machine) -> None:
    # Which of the two sentences it is depends on the filesystem and kernel here.
    message = refusal(machine, f"composefs={machine.id}")
    assert "no fs-verity" in message
    assert f"composefs=?{machine.id}" in message


def test_no_state(machine: Machine) -> None:
    shutil.rmtree(machine.state)
    assert f"has no state directory '/state/deploy/{machine.id}'" in refusal(machine, f"composefs=?{machine.id}")


def test_var_that_leads_nowhere(machine: Machine) -> None:
    shutil.rmtree(machine.root / "state" / "os")
    assert f"has no directory '/state/deploy/{machine.id}/var'" in refusal(machine, f"composefs=?{machine.id}")


def test_var_that_leads_out_of_the_physical_root(machine: Machine) -> None:
    (machine.state / "var").unlink()
    (machine.state / "var").symlink_to("../../../../../../../../../../../../var")
    assert f"has no directory '/state/deploy/{machine.id}/var'" in refusal(machine, f"composefs=?{machine.id}")


def test_image_without_mount_point(tmp_path: Path) -> None:
    machine = make_machine(tmp_path, sysroot=Inode(stat.S_IFLNK | 0o777, target=b"var"))
    # A link to a directory would put the physical root elsewhere; it is a directory in the overlay all the same.
    result = machine.set_up(f"composefs=?{machine.id}", then="true")
    assert result.returncode == 0
    other = make_machine(tmp_path / "other", sysroot=Inode(stat.S_IFREG | 0o644, content=b""))
    assert f"composefs image '{other.id}' has no directory '/sysroot'" in refusal(other, f"composefs=?{other.id}")
