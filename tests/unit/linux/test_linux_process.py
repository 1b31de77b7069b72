"""The one door to other programs."""

import pytest

from bootwright.errors import ToolError
from bootwright.linux.process import run


def test_output_comes_back() -> None:
    assert run(["sh", "-c", "cat; echo $EXTRA"], purpose="echo", stdin=b"in ", env={"EXTRA": "x"}).stdout == b"in x\n"


def test_missing_program_names_its_package() -> None:
    with pytest.raises(ToolError, match="'no-such-program' is not installed") as caught:
        run(["no-such-program"], purpose="try")
    assert caught.value.hint == "apt-get install no-such-program"


def test_failure_carries_status_and_last_words() -> None:
    with pytest.raises(ToolError, match="could not format: 'sh' exited with status 3: bad; worse"):
        run(["sh", "-c", "echo bad >&2; echo worse >&2; exit 3"], purpose="format")


def test_killed_program_is_named_so() -> None:
    with pytest.raises(ToolError, match="'sh' was killed by SIGKILL"):
        run(["sh", "-c", "kill -9 $$"], purpose="format")


def test_expected_statuses_are_no_failure() -> None:
    assert run(["sh", "-c", "exit 1"], purpose="check", ok=(0, 1)).returncode == 1
