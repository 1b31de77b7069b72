"""Writing image trees out as files, and reading them back for the merge."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootwright.deploy.etc_tree import read_directory, read_image
from bootwright.deploy.merge import Kind, plan_merge
from bootwright.deploy.seed import write_tree
from bootwright.digest import Algorithm
from bootwright.erofs.tree import HardLink, Inode
from bootwright.errors import ImageError
from bootwright.linux import fsverity

BIG = b"big" * 1000
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners of files")


class Contents:
    """Content of files without a repository: inline, or the one big object."""

    def iter_inode(self, inode: Inode) -> Iterator[bytes]:
        yield inode.content if inode.content is not None else BIG


def regular(content: bytes | None, mode: int = 0o644, *, gid: int = 0, mtime_sec: int = 0) -> Inode:
    digest = fsverity.compute(BIG).raw if content is None else None
    size = len(BIG if content is None else content)
    return Inode(stat.S_IFREG | mode, size=size, content=content, digest=digest, gid=gid, mtime_sec=mtime_sec)


def tree(**children: Inode | HardLink) -> Inode:
    return Inode(stat.S_IFDIR | 0o755, children={name.encode(): node for name, node in children.items()})


@pytest.fixture
def etc() -> Inode:
    shared = regular(b"shared")
    return tree(
        motd=regular(b"hello", mtime_sec=1000),
        big=regular(None),
        shadow=regular(b"s", 0o640, gid=42),
        link=Inode(stat.S_IFLNK | 0o777, target=b"/usr/lib/x"),
        one=shared,
        two=HardLink(shared),
        pipe=Inode(stat.S_IFIFO | 0o600),
        outside=HardLink(regular(b"its real name is in /usr")),
        sub=tree(inner=regular(b"i", 0o000)),
    )


@needs_root
def test_everything_arrives(etc: Inode, tmp_path: Path) -> None:
    target = tmp_path / "etc"
    write_tree(Contents(), etc, str(target), set_owner=True)
    assert (target / "motd").read_text() == "hello"
    assert (target / "motd").stat().st_mtime == 1000
    assert (target / "big").read_bytes() == BIG
    assert (target / "shadow").stat().st_gid == 42
    assert (target / "link").readlink() == Path("/usr/lib/x")
    assert (target / "one").stat().st_ino == (target / "two").stat().st_ino
    assert (target / "pipe").is_fifo()
    assert (target / "outside").read_text() == "its real name is in /usr"
    assert stat.S_IMODE((target / "sub/inner").stat().st_mode) == 0


@needs_root
def test_a_tree_written_out_has_no_local_changes(etc: Inode, tmp_path: Path) -> None:
    write_tree(Contents(), etc, str(tmp_path / "etc"), set_owner=True)
    for algorithm in Algorithm:
        image = read_image(Contents(), etc, algorithm)
        live = read_directory(str(tmp_path / "etc"), algorithm)
        assert live == image
        assert plan_merge(image, live, image).operations == ()
    assert image[b"sub"].kind is Kind.DIRECTORY
    assert b"pipe" not in image


@needs_root
def test_a_relabel_and_a_touch_are_no_changes(etc: Inode, tmp_path: Path) -> None:
    write_tree(Contents(), etc, str(tmp_path / "etc"), set_owner=True)
    before = read_directory(str(tmp_path / "etc"), Algorithm.SHA256)
    os.setxattr(tmp_path / "etc/motd", "security.selinux", b"system_u:object_r:etc_t:s0")
    os.utime(tmp_path / "etc/motd")
    (tmp_path / "etc/.updated").touch()
    assert read_directory(str(tmp_path / "etc"), Algorithm.SHA256) == before
    os.setxattr(tmp_path / "etc/motd", "user.x", b"1")
    assert read_directory(str(tmp_path / "etc"), Algorithm.SHA256) != before


def test_without_owners_all_stays_readable(etc: Inode, tmp_path: Path) -> None:
    write_tree(Contents(), etc, str(tmp_path), set_owner=False)
    assert (tmp_path / "sub/inner").read_text() == "i"
    assert (tmp_path / "shadow").stat().st_uid == os.geteuid()
    assert not (tmp_path / "pipe").exists()


@pytest.mark.parametrize("name", [b"..", b".", b"a/b", b""])
def test_impossible_names_are_refused(name: bytes, tmp_path: Path) -> None:
    hostile = Inode(stat.S_IFDIR | 0o755, children={name: regular(b"x")})
    with pytest.raises(ImageError, match="impossible name"):
        write_tree(Contents(), hostile, str(tmp_path / "etc"), set_owner=False)


def test_symlinks_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/file").write_text("x")
    (tmp_path / "etc/link").symlink_to(tmp_path / "secret")
    assert list(read_directory(str(tmp_path / "etc"), Algorithm.SHA256)) == [b"link"]
