"""Durable writes."""

import errno
import os
from pathlib import Path

import pytest

from bootwright.errors import BootwrightError, PrivilegeError, SpaceError
from bootwright.linux import files


def leftovers(directory: Path) -> list[str]:
    return [name for name in os.listdir(directory) if name.startswith(files.TEMPORARY_PREFIX)]


def test_replace_durably_writes_mode_and_content(tmp_path: Path) -> None:
    target = tmp_path / "origin"
    files.replace_durably(target, b"old")
    files.replace_durably(target, b"new" * 100_000, mode=0o600)
    assert target.read_bytes() == b"new" * 100_000
    assert target.stat().st_mode & 0o7777 == 0o600
    assert not leftovers(tmp_path)


def test_replace_durably_keeps_the_old_content_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "origin"
    target.write_bytes(b"old")

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "the disk is dying")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="dying"):
        files.replace_durably(target, b"new")
    assert target.read_bytes() == b"old"
    assert not leftovers(tmp_path)


def test_replace_symlink(tmp_path: Path) -> None:
    link = tmp_path / "ref"
    files.replace_symlink("../a", link)
    files.replace_symlink("../b", link)
    assert os.readlink(link) == "../b"
    assert not leftovers(tmp_path)


def test_exchange_swaps_directories(tmp_path: Path) -> None:
    (tmp_path / "entries").mkdir()
    (tmp_path / "entries" / "old").touch()
    (tmp_path / "staged").mkdir()
    files.exchange(tmp_path / "entries", tmp_path / "staged")
    assert (tmp_path / "staged" / "old").exists()
    with pytest.raises(FileNotFoundError):
        files.exchange(tmp_path / "entries", tmp_path / "missing")


def test_clone_or_copy_copies_every_byte(tmp_path: Path) -> None:
    content = os.urandom(3_000_001)
    (tmp_path / "a").write_bytes(content)
    with (tmp_path / "a").open("rb") as source, (tmp_path / "b").open("wb") as target:
        files.clone_or_copy(source.fileno(), target.fileno())
    assert (tmp_path / "b").read_bytes() == content


def test_sync_filesystem_returns(tmp_path: Path) -> None:
    files.sync_filesystem(tmp_path)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, SpaceError),
        (errno.EROFS, PrivilegeError),
        (errno.EACCES, PrivilegeError),
        (errno.EIO, BootwrightError),
    ],
)
def test_translated_names_the_object_and_the_reason(code: int, kind: type[BootwrightError]) -> None:
    with pytest.raises(kind, match=r"could not write.*/x/y") as caught, files.translated("could not write"):
        raise OSError(code, os.strerror(code), "/x/y")
    assert type(caught.value) is kind


def test_remove_tree_does_not_follow_symlinks(tmp_path: Path) -> None:
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "keep")
    files.remove_tree(tmp_path / "link")
    files.remove_tree(tmp_path / "missing")
    assert (tmp_path / "keep" / "file").exists()
