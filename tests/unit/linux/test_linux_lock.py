"""Locks name their holder."""

from pathlib import Path

import pytest

from bootwright.errors import BusyError
from bootwright.linux.lock import Lock


def test_second_exclusive_holder_is_told_who_has_it(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with (
        Lock(path, exclusive=True, holder="bootwright upgrade"),
        pytest.raises(BusyError, match=r"locked by bootwright upgrade \(process \d+\)") as caught,
    ):
        Lock(path, exclusive=True, holder="bootwright switch")
    assert caught.value.exit_code == 10
    Lock(path, exclusive=True, holder="bootwright switch").release()


def test_shared_holders_of_a_directory_keep_an_exclusive_one_out(tmp_path: Path) -> None:
    with (
        Lock(str(tmp_path), exclusive=False, holder="pull"),
        Lock(str(tmp_path), exclusive=False, holder="pull"),
        pytest.raises(BusyError),
    ):
        Lock(str(tmp_path), exclusive=True, holder="gc", timeout_s=0.1)
    Lock(str(tmp_path), exclusive=True, holder="gc").release()
