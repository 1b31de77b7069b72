"""Images mounted for real: what one sees is what went in. Needs root and a kernel with erofs and overlayfs."""

import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootwright.cli import main as cli_main
from bootwright.linux import composefs, mount, mountapi

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
    pytest.mark.skipif(
        not {"erofs", "overlay"} <= set(Path("/proc/filesystems").read_text().split()),
        reason="this kernel has no erofs or no overlayfs",
    ),
]


def make_tree(directory: Path) -> None:
    (directory / "d" / "e").mkdir(parents=True)
    (directory / "d" / "big").write_bytes(os.urandom(200_000))
    (directory / "d" / "page").write_bytes(b"p" * 4096)
    (directory / "d" / "e" / "same").write_bytes(b"p" * 4096)
    (directory / "small").write_bytes(b"small")
    (directory / "empty").touch(0o600)
    (directory / "link").symlink_to("d/big")
    (directory / ("n" * 255)).write_bytes(b"n" * 65)
    os.mkfifo(directory / "fifo", 0o640)
    os.mknod(directory / "device", 0o600 | stat.S_IFCHR, os.makedev(5, 300))
    os.setxattr(directory / "d" / "big", "user.comment", b"some\0bytes")
    os.chown(directory / "small", 1234, 70_000)
    os.chmod(directory / "d", 0o2751)
    os.utime(directory / "small", ns=(1, 1_234_567_890_123_456_789))


def describe(directory: Path) -> dict[str, tuple[object, ...]]:
    """Return everything one can see of a tree."""
    seen: dict[str, tuple[object, ...]] = {}
    for top, directories, names in os.walk(directory):
        for path in [top, *(os.path.join(top, name) for name in directories + names)]:
            status = os.lstat(path)
            content: object = None
            if stat.S_ISREG(status.st_mode):
                content = Path(path).read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            xattrs = {
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in os.listxattr(path, follow_symlinks=False)
            }
            seen[os.path.relpath(path, directory)] = (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_mtime_ns,
                0 if stat.S_ISDIR(status.st_mode) else status.st_size,
                status.st_rdev,
                content,
                xattrs,
            )
    return seen


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Path]:
    """A tree, its image, its store, and a mount point that is clean afterwards."""
    make_tree(tmp_path / "tree")
    for name in ("mnt", "upper", "workdir"):
        (tmp_path / name).mkdir()
    arguments = ["composefs", "mkimage", "--digest-store", str(tmp_path / "store"), str(tmp_path / "tree")]
    assert cli_main.main([*arguments, str(tmp_path / "image")]) == 0
    yield tmp_path
    while any(found.target == str(tmp_path / "mnt") for found in mount.read_mountinfo()):
        mount.unmount(str(tmp_path / "mnt"), detach=True)


def run(*arguments: str | Path) -> int:
    return cli_main.main(["composefs", *map(str, arguments)])


def test_the_mount_shows_the_tree(ground: Path) -> None:
    assert run("mount", "-t", "composefs", "-o", f"basedir={ground}/store", ground / "image", ground / "mnt") == 0
    assert describe(ground / "mnt") == describe(ground / "tree")
    with pytest.raises(OSError, match="Read-only file system"):
        (ground / "mnt" / "new").touch()
    # The image of the mount is the image.
    assert run("mkimage", ground / "mnt", ground / "again") == 0
    assert (ground / "again").read_bytes() == (ground / "image").read_bytes()
    assert run("umount", ground / "mnt") == 0
    assert list((ground / "mnt").iterdir()) == []


def test_changes_go_to_the_upper_directory(ground: Path) -> None:
    options = f"basedir={ground}/none_here:{ground}/store,upperdir={ground}/upper,workdir={ground}/workdir"
    (ground / "none_here").mkdir()
    assert run("mount", "-o", options, ground / "image", ground / "mnt") == 0
    (ground / "mnt" / "new").write_text("new")
    os.chmod(ground / "mnt" / "d" / "big", 0o600)
    (ground / "mnt" / "small").unlink()
    assert (ground / "mnt" / "d" / "big").read_bytes() == (ground / "tree" / "d" / "big").read_bytes()
    assert run("umount", ground / "mnt") == 0
    assert (ground / "upper" / "new").read_text() == "new"
    assert stat.S_ISCHR(os.lstat(ground / "upper" / "small").st_mode)


@pytest.mark.parametrize("way", ["_open_overlay_by_fd", "_open_overlay_by_path", "_open_overlay_at_directory"])
def test_every_way_of_giving_layers(ground: Path, way: str) -> None:
    fd = os.open(ground / "image", os.O_RDONLY)
    erofs = composefs._open_erofs(fd, None)
    try:
        options = composefs._Options([str(ground / "store")], "composefs:test", False, None, None, True)
        try:
            overlay = getattr(composefs, way)(erofs, options)
        except composefs._UnknownWay:
            pytest.skip("this kernel does not take layers in this way")
        mountapi.attach(overlay, str(ground / "mnt"))
        os.close(overlay)
    finally:
        os.close(erofs)
        os.close(fd)
    assert describe(ground / "mnt") == describe(ground / "tree")
    found = [found for found in mount.read_mountinfo() if found.target == str(ground / "mnt")]
    assert [(one.fstype, one.source, one.is_read_only) for one in found] == [("overlay", "composefs:test", True)]
    # Nothing else of it is to be seen.
    assert not [one for one in mount.read_mountinfo() if one.fstype == "erofs" or ".bootwright-" in one.target]


def test_image_on_a_loop_device(ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on kernels before 6.12, which mount block devices only: there the first attempt ends like this."""
    if not os.path.exists("/dev/loop-control"):
        pytest.skip("this kernel has no loop devices")
    original = composefs._create_erofs

    def without_files(source: str, has_acl: bool) -> int:
        if source.startswith("/proc/"):
            raise BlockingIOError(15, "Block device required")
        return original(source, has_acl)

    monkeypatch.setattr(composefs, "_create_erofs", without_files)
    assert run("mount", "-o", f"basedir={ground}/store", ground / "image", ground / "mnt") == 0
    assert describe(ground / "mnt") == describe(ground / "tree")


def test_owners_are_mapped(ground: Path) -> None:
    """Root of the namespace is user 100000 outside."""
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import ctypes,sys; ctypes.CDLL(None).unshare(0x10000000); print(1, flush=True); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        child.stdout.readline()
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child.pid}/{name}").write_text("0 100000 65536")
        options = f"basedir={ground}/store,idmap=/proc/{child.pid}/ns/user"
        assert run("mount", "-o", options, ground / "image", ground / "mnt") == 0
        assert (ground / "mnt" / "small").stat().st_uid == 101_234
        assert (ground / "mnt" / "d").stat().st_uid == 100_000
    finally:
        child.communicate()


def test_verity_that_would_fail_every_read_is_refused(ground: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if composefs.find_verity_problem([str(ground / "store")]) is None:
        pytest.skip("the objects have fs-verity here")
    base = f"basedir={ground}/store"
    assert run("mount", "-o", f"{base},verity", ground / "image", ground / "mnt") == 5
    assert "every read would fail with an I/O error" in capsys.readouterr().err
    assert list((ground / "mnt").iterdir()) == []
    # Where it is only wished for, the mount works without.
    assert run("mount", "-o", f"{base},tryverity", ground / "image", ground / "mnt") == 0
    assert describe(ground / "mnt") == describe(ground / "tree")


def test_errors_leave_no_mount(ground: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = len(mount.read_mountinfo())
    damaged = bytearray((ground / "image").read_bytes())
    damaged[1024:1028] = bytes(4)
    (ground / "damaged").write_bytes(damaged)
    assert run("mount", "-o", f"basedir={ground}/store", ground / "damaged", ground / "mnt") == 1
    assert "could not mount the image (erofs): Invalid argument" in capsys.readouterr().err
    assert run("mount", "-o", f"basedir={ground}/store", ground / "tree" / "small", ground / "mnt") == 13
    assert run("umount", ground / "mnt") == 1
    assert "nothing is mounted there" in capsys.readouterr().err
    assert len(mount.read_mountinfo()) == before


def test_a_mount_in_use_is_left_alone_unless_lazy(ground: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("mount", "-o", f"basedir={ground}/store", ground / "image", ground / "mnt")
    with open(ground / "mnt" / "small", "rb"):
        assert run("umount", ground / "mnt") == 1
        assert "it is in use" in capsys.readouterr().err
        assert run("umount", "--lazy", ground / "mnt") == 0


def test_private_namespace_bind_and_remount(tmp_path: Path) -> None:
    """In a process of its own, because a namespace is for life."""
    script = textwrap.dedent("""
        import os, sys
        from bootwright.linux import mount
        top = sys.argv[1]
        mount.unshare_mounts()
        mount.mount_filesystem("tmpfs", "ground", top, flags=mount.RDONLY | mount.NOSUID, options="size=1m")
        mount.remount(top, read_only=False)
        (found,) = [m for m in mount.read_mountinfo() if m.target == top]
        assert not found.is_read_only and "nosuid" in found.options, found
        for name in ("a", "b", "a/sub"):
            os.mkdir(f"{top}/{name}")
        mount.mount_filesystem("tmpfs", "inner", f"{top}/a/sub")
        open(f"{top}/a/sub/file", "w").close()
        mount.bind(f"{top}/a", f"{top}/b")
        assert os.listdir(f"{top}/b/sub") == []
        mount.unmount(f"{top}/b")
        mount.bind(f"{top}/a", f"{top}/b", recursive=True)
        assert os.listdir(f"{top}/b/sub") == ["file"]
        mount.remount(f"{top}/b", read_only=True)
        try:
            open(f"{top}/b/new", "w")
        except OSError as exc:
            assert exc.errno == 30
        else:
            raise SystemExit("not read-only")
        open(f"{top}/a/new", "w").close()
    """)
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    assert os.listdir(tmp_path) == []
