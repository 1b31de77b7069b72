"""Kill staging, finalisation and rollback at every change they make: the old or the new state boots, never a third.

A forked child runs the command with an audit hook that ends the process (``os._exit``, as a power cut would) at the
n-th event that opens or changes a file; n goes up until the command gets through. After each kill the machine must
boot, and doing the command again must succeed.
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bootwright.oci.source import SourceOptions
from bootwright.ops.finalize import finalize_staged
from bootwright.ops.rollback import rollback
from bootwright.ops.upgrade import UpgradeRequest, upgrade
from bootwright.progress import SILENT
from bootwright.repo.imports import pull
from bootwright.repo.repository import Repository
from fakes.machine import Machine, os_image

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners of /etc")]

KILLED = 77
CHANGES = {"open", "os.rename", "os.mkdir", "os.symlink", "os.link", "os.remove", "os.rmdir", "os.chmod", "os.truncate"}


def run_and_kill(command: Callable[[], object], machine: Machine, at: int) -> bool:
    """Run a command in a child that dies at the n-th change below the machine; False when it got through."""
    pid = os.fork()
    if pid == 0:
        left = [at]
        top = str(machine.directory).encode()

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            if event not in CHANGES:
                return
            path = arguments[0] if arguments else None
            named = os.fsencode(path) if isinstance(path, str | bytes) else b""
            if event == "open" and not named.startswith(top):
                return
            left[0] -= 1
            if left[0] == 0:
                os._exit(KILLED)

        sys.addaudithook(hook)
        status = 1
        try:
            command()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, KILLED), "the command failed by itself"
    return code == KILLED


def kill_everywhere(
    machine: Machine,
    scratch: Path,
    command: Callable[[Machine], object],
    check: Callable[[Machine], None],
    *,
    stride: int,
    share_repository: bool = True,
) -> int:
    """Try every n (or every ``stride``-th); returns how many kills there were."""
    for kills, at in enumerate(range(1, 100_000, stride)):
        copy = machine.copy(scratch / "copy", share_repository=share_repository)
        killed = run_and_kill(lambda copy=copy: command(copy), copy, at)  # type: ignore[misc]  # bound at once
        check(copy)
        shutil.rmtree(scratch / "copy")
        if not killed:
            return kills
    raise AssertionError("the command never got through")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine.install(tmp_path / "machine", os_image(version="1"))
    (machine.etc / "motd").write_text("mine\n")
    machine.serve(os_image(version="2", etc={"motd": "two\n", "conf": "a=2\n", "new": "n\n"}, kernel=b"kernel 2"))
    # Pulling is interrupted in the tests of the repository; here the image is there already.
    with Repository.open(str(machine.sysroot / "composefs"), writable=True) as repo:
        pull(repo, machine.reference(), SourceOptions(architecture="amd64"), progress=SILENT, tag=None)
    return machine


def boots_intact(machine: Machine) -> None:
    """Whatever the menu has first boots, with an /etc that is that deployment's, whole."""
    machine.reboot(finalize=False)
    assert (machine.etc / "motd").read_text() == "mine\n"


def test_kill_while_staging(machine: Machine, tmp_path: Path) -> None:
    first = machine.booted_id

    def check(copy: Machine) -> None:
        assert copy.menu() == (first,)
        # Without a record nothing is finalised; with it, the staged deployment is complete.
        staged = copy.staged_file.exists()
        upgrade(copy.host, UpgradeRequest(), SILENT)
        second = copy.reboot()
        assert second != first
        assert copy.menu() == (second, first)
        assert (copy.etc / "motd").read_text() == "mine\n"
        assert (copy.etc / "conf").read_text() == "a=2\n"
        assert not [name for name in os.listdir(copy.esp / "loader") if name != "entries"], staged
        assert not [name for name in os.listdir(copy.sysroot / "state/deploy") if name.startswith(".")]

    kills = kill_everywhere(
        machine,
        tmp_path,
        lambda copy: upgrade(copy.host, UpgradeRequest(), SILENT),
        check,
        stride=3,
        share_repository=False,
    )
    assert kills > 20


def test_kill_while_finalising(machine: Machine, tmp_path: Path) -> None:
    first = machine.booted_id
    upgrade(machine.host, UpgradeRequest(), SILENT)
    seen: set[tuple[str, ...]] = set()

    def check(copy: Machine) -> None:
        seen.add(copy.menu())
        new = next(name for name in os.listdir(copy.sysroot / "state/deploy") if name not in (first, ".tmp"))
        assert copy.menu() in {(first,), (new, first)}
        again = copy.copy(tmp_path / "again", share_repository=True)
        # A machine that lost its power boots: the old state, or the new one with its merged /etc.
        boots_intact(copy)
        # And one whose service is only started again ends in the new state.
        finalize_staged(again.host)
        assert again.menu() == (new, first)
        boots_intact(again)
        assert (again.etc / "conf").read_text() == "a=2\n"
        assert sorted(os.listdir(again.etc.parent)) == sorted([f"{new}.origin", "etc", "var"])
        shutil.rmtree(tmp_path / "again")

    kills = kill_everywhere(machine, tmp_path, lambda copy: finalize_staged(copy.host), check, stride=1)
    assert kills > 40
    assert len(seen) == 2, "kills happened before and after the exchange"


def test_kill_while_rolling_back(machine: Machine, tmp_path: Path) -> None:
    first = machine.booted_id
    upgrade(machine.host, UpgradeRequest(), SILENT)
    second = machine.reboot()
    seen: set[tuple[str, ...]] = set()

    def check(copy: Machine) -> None:
        seen.add(copy.menu())
        assert copy.menu() in {(first, second), (second, first)}
        boots_intact(copy)

    kill_everywhere(machine, tmp_path, lambda copy: rollback(copy.host), check, stride=1)
    assert seen == {(first, second), (second, first)}
