"""install to-disk, run as an ordinary user, and the disk read back by other programs."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bootwright.linux.process import run
from fakes.ext4 import VERITY_FLAG, Ext4Reader
from fakes.images import Entry, _entry, device, directory, file, symlink
from fakes.machine import os_image
from fakes.users import SOURCE, ordinary_directory, run_as_ordinary_user, start_as_ordinary_user

pytestmark = pytest.mark.system

BOOT_LOADER = "usr/lib/systemd/boot/efi/systemd-bootx64.efi"
LOADER_BYTES = b"MZ boot loader " * 300
KERNEL = bytes(range(256)) * 2000
SIZES = [65, 4095, 4096, 4097, 65535, 65536, 65537, 1 << 20, (1 << 20) + 1, 3 << 20]
KEYS = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIH root@example\n"
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


def payload() -> list[Entry]:
    """What the small image lacks to be installed, and what is hard about files."""
    hard = [
        file("etc/shadow", b"root:*:1:0:99999:7:::\n", mode=0o640, gid=42),
        file("etc/unreadable", b"x", mode=0, uid=70000, gid=70001),
        file("etc/a \"b\" 'c'", b"quoted", mode=0o4755),
        file("etc/new\nline", b"line"),
        file("etc/capable", b"x", xattrs={"security.capability": CAPABILITY}),
        directory("etc/secret", mode=0o700, uid=5),
        file("etc/secret/inner", b"inner"),
        symlink("etc/mtab", "../proc/self/mounts"),
        device("etc/null device", 1, 3, mode=0o666),
        file("etc/.updated", b"0"),
        directory("var/lib", mode=0o755),
        directory("var/tmp", mode=0o1777),
        file("var/lib/data", b"seed", uid=33),
        directory("var/roothome", mode=0o700),
        symlink("root", "var/roothome"),
        _entry("etc/data-link", tarfile.LNKTYPE, linkname="etc/shadow"),
    ]
    bodies = [file(f"usr/lib/file-{size}", os.urandom(size)) for size in SIZES]
    parents = ["usr", "lib", "systemd", "boot", "efi"]
    return [
        *(directory("/".join(parents[:depth])) for depth in range(3, len(parents) + 1)),
        file(BOOT_LOADER, LOADER_BYTES),
        *hard,
        *bodies,
    ]


@dataclass
class Built:
    """A disk, how it was made, and where its filesystems are."""

    disk: Path
    stderr: str
    table: list[dict[str, object]]

    @property
    def root(self) -> Ext4Reader:
        return Ext4Reader(self.disk, self.start(1))

    def start(self, number: int) -> int:
        return int(str(self.table[number]["start"])) * 512

    @property
    def deployment(self) -> str:
        [name] = self.root.names("/state/deploy")
        return name

    def read_esp(self, path: str) -> bytes:
        image = f"{self.disk}@@{self.start(0)}"
        return run(["mtype", "-i", image, f"::/{path}"], purpose="read", env={"MTOOLSRC": "/dev/null"}).stdout

    def read_root(self, path: str, tmp_path: Path) -> bytes:
        out = tmp_path / "dumped"
        self.root.debugfs(f'dump "{path}" {out}')
        return out.read_bytes()


def sfdisk(disk: Path) -> list[dict[str, object]]:
    assert b"No errors detected" in run(["sfdisk", "--verify", str(disk)], purpose="verify").stdout
    table: list[dict[str, object]] = json.loads(run(["sfdisk", "-J", str(disk)], purpose="read").stdout)[
        "partitiontable"
    ]["partitions"]
    return table


def arguments(layout: Path, *more: str, disk: str = "disk.raw", tag: str = "v1") -> list[str]:
    return ["install", "to-disk", "--source-imgref", f"oci:{layout}:{tag}", "--size", "2G", *more, disk]


def fsck(disk: Path, offset: int) -> None:
    run(["e2fsck", "-fn", f"{disk}?offset={offset}"], purpose="check")


@pytest.fixture(scope="module")
def layout() -> Iterator[Path]:
    foreign = gzip.compress(b"a file system without our module")
    with ordinary_directory() as parent:
        path = parent / "oci"
        os_image(kernel=KERNEL, extra=payload()).write_layout(path, tag="v1")
        os_image(kernel=None, extra=payload()).write_layout(path, tag="no-kernel")
        os_image(kernel=KERNEL).write_layout(path, tag="no-loader")
        os_image(kernel=KERNEL, extra=payload(), initramfs=foreign).write_layout(path, tag="foreign-initramfs")
        os_image(kernel=KERNEL, extra=payload(), architecture="arm64").write_layout(path, tag="arm")
        parent.chmod(0o755)
        yield path


@pytest.fixture
def here() -> Iterator[Path]:
    with ordinary_directory() as parent:
        # Programs take "?" and "@@" in file names for options: they must not get to see this name.
        path = parent / "work, with ? and @@1 in its name"
        path.mkdir()
        path.chmod(0o777)
        yield path


@pytest.fixture(scope="module")
def built(layout: Path) -> Iterator[Built]:
    more = ["--karg", "quiet", "--karg", "console=ttyS0", "--root-ssh-authorized-keys", "keys"]
    more += ["--target-imgref", "registry.example.net/os:prod"]
    with ordinary_directory() as work:
        (work / "keys").write_text(KEYS)
        done = run_as_ordinary_user(arguments(layout, *more), cwd=work)
        assert done.returncode == 0, done.stderr
        assert sorted(os.listdir(work)) == ["disk.raw", "keys"], "nothing temporary is left"
        yield Built(work / "disk.raw", done.stderr, sfdisk(work / "disk.raw"))


# ---- the disk ------------------------------------------------------------------------------------------------------


def test_the_plan_comes_first(built: Built) -> None:
    plan = built.stderr.partition("Fetching")[0]
    assert "file disk.raw, 2.1 GB raw" in plan
    assert re.search(r"1 +EFI-SYSTEM +1\.1 GB +FAT32", plan)
    assert re.search(r"2 +root +1\.1 GB +ext4", plan)
    assert "Follows  docker://registry.example.net/os:prod" in plan


def test_partitions_are_discoverable(built: Built) -> None:
    assert [(p["name"], p["type"]) for p in built.table] == [
        ("EFI-SYSTEM", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"),
        ("root", "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"),
    ]
    assert built.disk.stat().st_size == 2 << 30
    assert built.disk.stat().st_blocks * 512 < 200 << 20, "the file is sparse"


def test_root_filesystem_is_clean(built: Built) -> None:
    fsck(built.disk, built.start(1))
    said = run(["dumpe2fs", "-h", f"{built.disk}?offset={built.start(1)}"], purpose="read").stdout.decode()
    assert re.search(r"Filesystem volume name: +root\n", said)
    assert "verity" in (re.search(r"Filesystem features:(.*)", said) or [""])[0]
    # The kernel on the ESP is told this very filesystem.
    fs_uuid = re.search(r"Filesystem UUID: +(\S+)", said)
    assert fs_uuid is not None
    entry = built.read_esp(f"loader/entries/bootc_composefs-{built.deployment}.conf").decode()
    assert f"root=UUID={fs_uuid[1]} rw quiet quiet console=ttyS0 composefs={built.deployment}\n" in entry


def test_every_object_has_the_verity_digest_of_its_name(built: Built) -> None:
    objects = [
        f"{prefix}/{name}"
        for prefix in built.root.names("/composefs/objects")
        for name in built.root.names(f"/composefs/objects/{prefix}")
    ]
    assert len(objects) > len(SIZES) + 3
    for name in objects:
        fields = built.root.stat(f"/composefs/objects/{name}")
        assert (fields["Mode"], fields["User"], fields["Group"]) == ("0644", "0", "0")
        assert built.root.verify(f"/composefs/objects/{name}") == name.replace("/", "")
    # The image that boots is one of them, and so is meta.json sealed.
    assert f"{built.deployment[:2]}/{built.deployment[2:]}" in objects
    assert built.root.verify("/composefs/meta.json")
    assert built.root.names("/composefs/images").count(built.deployment) == 1


def test_deployment_has_the_owners_and_modes_of_the_image(built: Built, tmp_path: Path) -> None:
    etc = f"/state/deploy/{built.deployment}/etc"
    found = {
        name: (built.root.stat(f"{etc}/{name}"))
        for name in ("shadow", "unreadable", "capable", "secret", "secret/inner", "mtab", "null device", "data-link")
    }
    assert {name: (one["Type"], one["Mode"], one["User"], one["Group"]) for name, one in found.items()} == {
        "shadow": ("regular", "0640", "0", "42"),
        "unreadable": ("regular", "0000", "70000", "70001"),
        "capable": ("regular", "0644", "0", "0"),
        "secret": ("directory", "0700", "5", "0"),
        "secret/inner": ("regular", "0644", "0", "0"),
        "mtab": ("symlink", "0777", "0", "0"),
        "null device": ("character", "0666", "0", "0"),
        "data-link": ("regular", "0640", "0", "42"),
    }
    assert found["shadow"]["Inode"] == found["data-link"]["Inode"]
    assert found["shadow"]["Links"] == "2"
    assert CAPABILITY.hex(" ") in found["capable"]["text"]
    assert built.read_root(f"{etc}/shadow", tmp_path) == b"root:*:1:0:99999:7:::\n"
    assert built.root.stat(f'{etc}/a ""b"" \'c\'')["Mode"] == "04755"
    names = built.root.names(etc)
    assert ".updated" not in names
    assert not int(found["shadow"]["Flags"], 16) & VERITY_FLAG


def test_state_and_origin(built: Built, tmp_path: Path) -> None:
    state = f"/state/deploy/{built.deployment}"
    assert '"../../os/default/var"' in built.root.stat(f"{state}/var")["text"]
    origin = built.read_root(f"{state}/{built.deployment}.origin", tmp_path).decode()
    assert "container-image-reference = ostree-unverified-image:docker://registry.example.net/os:prod\n" in origin
    assert (built.root.stat("/state/os/default/var/tmp")["Mode"]) == "01777"
    assert (built.root.stat("/state/os/default/var/lib/data")["User"]) == "33"
    assert (built.root.stat("/composefs")["Mode"]) == "0700"
    aleph = json.loads(built.read_root("/.bootc-aleph.json", tmp_path))
    assert aleph["target-image"] == "registry.example.net/os:prod"
    assert aleph["version"] == "1"
    keys = built.read_root(f"{state}/etc/tmpfiles.d/bootc-root-ssh.conf", tmp_path).decode()
    assert keys.startswith("f~ /var/roothome/.ssh/authorized_keys 600 root root - c3NoLWVkMjU1MTkg")


def test_boot_partition(built: Built) -> None:
    assert built.read_esp("EFI/BOOT/BOOTX64.EFI") == LOADER_BYTES
    assert built.read_esp("EFI/systemd/systemd-bootx64.efi") == LOADER_BYTES
    assert built.read_esp("loader/loader.conf") == b"timeout 3\n"
    assert built.read_esp(f"EFI/Linux/bootc_composefs-{built.deployment}/vmlinuz") == KERNEL
    assert (
        "random-seed"
        not in run(["mdir", "-b", "-i", f"{built.disk}@@{built.start(0)}", "::/loader"], purpose="list").stdout.decode()
    )


def test_repository_is_one_that_bootwright_reads(built: Built, tmp_path: Path) -> None:
    built.root.debugfs(f"rdump /composefs {tmp_path}")
    tags = run(["ls", str(tmp_path / "composefs/streams/refs/oci")], purpose="list").stdout.decode()
    assert tags.startswith("localhost%2Fbootc-sha256:")


# ---- other ways ----------------------------------------------------------------------------------------------------


def test_sha512_and_optional_verity(layout: Path, here: Path) -> None:
    more = ["--digest-algorithm", "sha512", "--allow-missing-verity", "--esp-size", "64M"]
    done = run_as_ordinary_user(arguments(layout, *more), cwd=here)
    assert done.returncode == 0, done.stderr
    # debugfs and mtools read the odd directory name in their own way.
    disk = here.parent / "disk.raw"
    (here / "disk.raw").rename(disk)
    built = Built(disk, done.stderr, sfdisk(disk))
    fsck(disk, built.start(1))
    assert len(built.deployment) == 128
    image = f"/composefs/objects/{built.deployment[:2]}/{built.deployment[2:]}"
    assert built.root.verify(image, "sha512") == built.deployment
    entry = built.read_esp(f"loader/entries/bootc_composefs-{built.deployment}.conf").decode()
    assert f" composefs=?{built.deployment}\n" in entry


def test_qcow2(layout: Path, here: Path) -> None:
    done = run_as_ordinary_user(arguments(layout, "--format", "qcow2", disk="disk.qcow2"), cwd=here)
    assert done.returncode == 0, done.stderr
    image = str(here / "disk.qcow2")
    run(["qemu-img", "check", image], purpose="check")
    said = json.loads(run(["qemu-img", "info", "--output=json", image], purpose="read").stdout)
    assert (said["format"], said["virtual-size"]) == ("qcow2", 2 << 30)
    assert said["format-specific"]["data"]["compression-type"] == "zstd"
    raw = here.parent / "back.raw"
    run(["qemu-img", "convert", "-O", "raw", image, str(raw)], purpose="convert")
    fsck(raw, int(str(sfdisk(raw)[1]["start"])) * 512)


def test_seed_and_time_make_the_same_uuids(layout: Path, here: Path) -> None:
    tables = []
    for _ in range(2):
        env = {"SOURCE_DATE_EPOCH": "1700000000"}
        done = run_as_ordinary_user(arguments(layout, "--wipe"), cwd=here, env=env)
        assert done.returncode == 0, done.stderr
        tables.append([p["uuid"] for p in sfdisk(here / "disk.raw")])
    assert tables[0] == tables[1]


def test_dry_run_writes_nothing(layout: Path, here: Path) -> None:
    done = run_as_ordinary_user(arguments(layout, "--dry-run"), cwd=here)
    assert (done.returncode, os.listdir(here)) == (0, [])
    assert "EFI-SYSTEM" in done.stderr


# ---- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "more", "status", "message"),
    [
        pytest.param("v1", ["--size", "1045M"], 14, "disk too small", id="disk-smaller-than-the-image"),
        pytest.param("v1", ["--size", "200M"], 14, "disk too small", id="disk-smaller-than-the-esp"),
        pytest.param("v1", ["--esp-size", "36M", "--root-size", "20M"], 14, "disk too small", id="root-too-small"),
        pytest.param("no-kernel", [], 13, "not bootable", id="no-kernel"),
        pytest.param("no-loader", [], 13, "has no boot loader", id="no-boot-loader"),
        pytest.param("foreign-initramfs", [], 13, "its initramfs lacks the module", id="foreign-initramfs"),
        pytest.param("arm", ["--arch", "amd64"], 13, "arm64", id="other-architecture"),
        pytest.param("no-such-tag", [], 12, "no-such-tag", id="no-image"),
        pytest.param("v1", ["--filesystem", "xfs"], 2, "'xfs' is not supported yet", id="filesystem"),
        pytest.param("v1", ["--size", "lots"], 2, "'lots' is not a size", id="size"),
        pytest.param("v1", ["--karg", "x=" + "y" * 3000], 8, "kernel command line", id="kargs-too-long"),
    ],
)
def test_refusals_leave_nothing(layout: Path, here: Path, tag: str, more: list[str], status: int, message: str) -> None:
    done = run_as_ordinary_user(arguments(layout, *more, tag=tag), cwd=here)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert (done.returncode, len(errors)) == (status, 1), done.stderr
    assert message in errors[0]
    assert os.listdir(here) == []


def test_existing_file_is_replaced_only_when_asked(layout: Path, here: Path) -> None:
    old = here / "disk.raw"
    old.write_bytes(b"precious")
    done = run_as_ordinary_user(arguments(layout), cwd=here)
    assert done.returncode == 2
    assert "the file 'disk.raw' exists\n  hint: --wipe" in done.stderr
    assert old.read_bytes() == b"precious"
    old.chmod(0o666)
    done = run_as_ordinary_user(arguments(layout, "--wipe"), cwd=here)
    assert done.returncode == 0, done.stderr
    assert old.stat().st_size == 2 << 30


def test_full_host_filesystem(layout: Path, here: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a small filesystem")
    small = here.parent / "small"
    small.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "size=20M,mode=1777", "none", str(small)], purpose="mount")
    try:
        done = run_as_ordinary_user(arguments(layout), cwd=small)
        assert done.returncode == 14, done.stderr
        assert os.listdir(small) == []
    finally:
        run(["umount", str(small)], purpose="unmount")


def wait_for_writing(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("Writing"):
            return
    pytest.fail("it ended before it wrote")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_run_leaves_no_target_and_the_next_one_cleans_up(layout: Path, here: Path, how: signal.Signals) -> None:
    process = start_as_ordinary_user(arguments(layout), cwd=here)
    wait_for_writing(process)
    if how is signal.SIGKILL:
        os.killpg(process.pid, how)
    else:
        os.kill(process.pid, how)
    process.communicate()
    left = os.listdir(here)
    if how is signal.SIGKILL:
        assert process.returncode == -how
        assert "disk.raw" not in left
        assert left, "killed in the middle"
    else:
        assert (process.returncode, left) == (130, [])
    done = run_as_ordinary_user(arguments(layout), cwd=here)
    assert done.returncode == 0, done.stderr
    assert os.listdir(here) == ["disk.raw"]


# ---- block devices -------------------------------------------------------------------------------------------------


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[str]:
    if os.geteuid() != 0 or not os.path.exists("/dev/loop-control"):
        pytest.skip("needs root and loop devices: one stands in for a real disk")
    backing = tmp_path / "backing"
    with backing.open("wb") as opened:
        opened.truncate(2 << 30)
    device_path = run(["losetup", "--find", "--show", str(backing)], purpose="make a disk").stdout.decode().strip()
    yield device_path
    run(["losetup", "--detach", device_path], purpose="remove the disk")


def as_root(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bootwright", *arguments],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def to_device(layout: Path, device_path: str, *more: str) -> subprocess.CompletedProcess[str]:
    return as_root("install", "to-disk", "--source-imgref", f"oci:{layout}:v1", *more, device_path)


def test_block_device_is_written_in_place(layout: Path, loop: str, tmp_path: Path) -> None:
    with open(loop, "r+b") as opened:
        opened.seek(1 << 30)
        opened.write(b"old" * 100000)
        opened.seek((2 << 30) - 4096)
        opened.write(b"old backup of something")
        opened.seek(0)
        opened.write(b"old table")
    refused = to_device(layout, loop, "--yes")
    assert (refused.returncode, "is not empty\n  hint: --wipe" in refused.stderr) == (2, True), refused.stderr
    done = to_device(layout, loop, "--wipe")
    assert done.returncode == 0, done.stderr
    assert f"disk {loop}" in done.stderr
    built = Built(Path(loop), done.stderr, sfdisk(Path(loop)))
    fsck(built.disk, built.start(1))
    image = f"/composefs/objects/{built.deployment[:2]}/{built.deployment[2:]}"
    assert built.root.verify(image) == built.deployment
    assert len(built.read_esp("loader/random-seed")) == 32


def test_blank_block_device_needs_a_word(layout: Path, loop: str) -> None:
    refused = to_device(layout, loop)
    assert refused.returncode == 2
    assert "nobody can be asked\n  hint: --yes" in refused.stderr
    with open(loop, "rb") as opened:
        assert not any(opened.read(1 << 20))
    done = to_device(layout, loop, "--yes", "--generic-image")
    assert done.returncode == 0, done.stderr


def test_block_device_in_use_is_refused(layout: Path, loop: str, tmp_path: Path) -> None:
    run(["mke2fs", "-q", "-F", loop], purpose="make a filesystem")
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    run(["mount", loop, str(mounted)], purpose="mount")
    try:
        refused = to_device(layout, loop, "--wipe")
        assert refused.returncode == 10
        assert f"the disk '{loop}' is in use" in refused.stderr
    finally:
        run(["umount", str(mounted)], purpose="unmount")


def test_ordinary_user_may_not_write_a_disk(layout: Path, loop: str, here: Path) -> None:
    done = run_as_ordinary_user(arguments(layout, "--wipe", disk=loop), cwd=here)
    assert done.returncode == 9
    assert "hint: run it as root" in done.stderr


def test_what_is_no_disk_is_refused(layout: Path, here: Path) -> None:
    for path in ("/dev/no-such-disk", "/dev/null", "missing/disk.raw", "."):
        done = run_as_ordinary_user(arguments(layout, "--wipe", disk=path), cwd=here)
        assert done.returncode == 2, done.stderr
