"""Extended attributes."""

import os
from pathlib import Path

import pytest

from bootwright.linux import xattr


def test_replace_all_sets_changes_and_removes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    try:
        os.setxattr(path, "user.gone", b"1")
    except OSError:
        pytest.skip("this filesystem has no user xattrs")
    xattr.replace_all(str(path), {b"user.a": b"\0\xff", b"user.b": b""})
    assert {k: v for k, v in xattr.read_all(str(path)).items() if k.startswith(b"user.")} == {
        b"user.a": b"\0\xff",
        b"user.b": b"",
    }


def test_symlinks_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    os.setxattr(tmp_path / "file", "user.a", b"1")
    assert b"user.a" not in xattr.read_all(str(tmp_path / "link"))
