"""The one door to other programs."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bootwright.errors import ToolError
from bootwright.linux.process import run, run_attached


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


def test_program_that_takes_too_long_is_killed() -> None:
    with pytest.raises(TimeoutError, match=r"could not wait: 'sleep' did not end within 0\.1 s"):
        run(["sleep", "60"], purpose="wait", timeout_s=0.1)


def test_started_program_ends_with_us(tmp_path: Path) -> None:
    """Also when we are killed: the program that starts another one is a process of its own here."""
    code = (
        "import os, signal, sys; from bootwright.linux.process import start\n"
        f"child = start(['sleep', '600'], log=open({str(tmp_path / 'log')!r}, 'wb'))\n"
        "print(child.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    source = str(Path(__file__).parents[3] / "src")
    starter = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, env={**os.environ, "PYTHONPATH": source}
    )
    pid = int(starter.stdout)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except FileNotFoundError:
            return
        time.sleep(0.01)
    pytest.fail("it is still there")


def test_attached_program_has_our_streams_and_gives_its_status(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_attached(["sh", "-c", "echo said; exit 7"]) == 7
    assert capfd.readouterr().out == "said\n"
    assert run_attached(["sh", "-c", "kill -9 $$"]) == 137
