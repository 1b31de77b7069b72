"""What people read: the commands themselves on a machine in a directory."""

import json
import os
from pathlib import Path

import pytest

from bootwright.cli.main import main
from bootwright.ops.host import Host
from fakes.machine import Machine, os_image

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners of /etc")]

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine.install(tmp_path / "machine", os_image(version="1"))
    monkeypatch.setattr(Host, "detect", lambda: machine.host)
    return machine


def run(capsys: Capture, *arguments: str, status: int = 0) -> list[str]:
    """Run a command and return its lines on standard output."""
    capsys.readouterr()
    assert main(list(arguments)) == status, capsys.readouterr().err
    return capsys.readouterr().out.splitlines()


def test_the_words_of_a_whole_life(machine: Machine, capsys: Capture) -> None:
    name = str(machine.reference())
    assert run(capsys, "upgrade", "--check") == [f"No changes in: {name}"]
    assert run(capsys, "upgrade", "--quiet") == ["No update available."]
    assert run(capsys, "upgrade", "--quiet", "--apply") == ["No update available."]
    assert machine.reboots == 0

    machine.serve(os_image(version="2"))
    check = run(capsys, "upgrade", "--check")
    assert check[0] == f"Update available for: {name}"
    assert check[1] == "  Version: 2"
    assert check[2].startswith("  Digest: sha256:")
    assert check[3].startswith("Total new layers: 1")
    assert len(check) == 6

    staged = run(capsys, "upgrade", "--quiet")
    assert staged == [f"Queued for next boot: {name}", *check[1:3]]
    assert run(capsys, "upgrade", "--quiet", "--apply") == ["Staged update present, not changed."]
    assert machine.reboots == 1, "what is staged is applied, whoever staged it"
    assert run(capsys, "rollback") == ["notice: Dropped the staged deployment", "Next boot: current deployment"]
    run(capsys, "upgrade", "--quiet")
    machine.reboot()

    assert run(capsys, "rollback") == ["Next boot: rollback deployment"]
    assert run(capsys, "rollback") == [
        "notice: Reverting queued rollback state",
        "Next boot: current deployment",
    ]
    assert run(capsys, "rollback", "--apply") == ["Next boot: rollback deployment"]
    assert machine.reboots == 2


def test_switch_words(machine: Machine, capsys: Capture) -> None:
    name = str(machine.reference())
    assert run(capsys, "switch", name) == ["Image specification is unchanged."]
    machine.serve(os_image(version="1"), tag="same")
    other = str(machine.reference("same"))
    assert run(capsys, "switch", other) == [f"Tracking {other}, whose content is what runs; nothing to boot."]
    machine.serve(os_image(version="5"), tag="five")
    bare = str(machine.reference("five")).removeprefix("oci:")
    lines = run(capsys, "switch", "--transport", "oci", "--retain", "--quiet", bare)
    assert lines[0] == f"Queued for next boot: oci:{bare}"


def test_download_only_words(machine: Machine, capsys: Capture) -> None:
    machine.serve(os_image(version="2"))
    lines = run(capsys, "upgrade", "--quiet", "--download-only")
    assert lines[0] == f"Downloaded: {machine.reference()}"
    assert "--from-downloaded" in lines[-1]
    assert run(capsys, "composefs-finalize-staged") == ["Nothing to finalise."]
    lines = run(capsys, "upgrade", "--from-downloaded", "--apply")
    assert lines[0] == f"Queued for next boot: {machine.reference()}"
    assert machine.reboots == 1
    assert run(capsys, "composefs-finalize-staged")[0].endswith("boots next.")


def test_progress_on_a_descriptor_tells_pulling_and_staging(machine: Machine, capsys: Capture) -> None:
    machine.serve(os_image(version="2"))
    reader, writer = os.pipe()
    run(capsys, "upgrade", "--progress-fd", str(writer))
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        events = [json.loads(line) for line in file]
    assert events[0] == {"type": "Start", "version": "0.1.0"}
    last = {event["task"]: event for event in events[1:]}
    assert list(last) == ["pulling", "importing", "staging"]
    assert last["staging"]["steps"] == last["staging"]["stepsTotal"] == 4
    assert all(subtask["completed"] for subtask in last["staging"]["subtasks"])


def test_status_on_a_pipe_is_yaml_and_shows_the_booted_image(machine: Machine, capsys: Capture) -> None:
    lines = run(capsys, "status")
    assert lines[0] == "apiVersion: org.containers.bootc/v1"
    assert "  type: bootcHost" in lines
    human = run(capsys, "status", "--format", "humanreadable")
    assert human[0] == f"● Booted image: {machine.reference()}"


def test_errors_have_their_exit_status_and_a_hint(machine: Machine, capsys: Capture) -> None:
    machine.serve(os_image(version="2", kernel=None))
    assert main(["upgrade", "--quiet"]) == 13
    error = capsys.readouterr().err
    assert "is not bootable" in error
    assert "hint:" in error
    assert main(["rollback"]) == 7
    assert "no deployment to roll back to" in capsys.readouterr().err
