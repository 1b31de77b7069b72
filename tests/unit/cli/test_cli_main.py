"""The command table, and errors as text and exit statuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from bootwright.cli import main as cli_main
from bootwright.cli.progress import open_progress
from bootwright.errors import BusyError, UsageError
from bootwright.progress import SubTask, Task


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> type[Exception]:
    """A command that raises what its argument names, in the place of `status`."""

    @click.command()
    @click.argument("what")
    def status(what: str) -> None:
        if what == "busy":
            raise BusyError("'/run/lock' is locked by bootwright upgrade", hint="wait")
        if what == "interrupt":
            raise KeyboardInterrupt
        raise ZeroDivisionError("a bug")

    import bootwright.cli.deploy

    monkeypatch.setattr(bootwright.cli.deploy, "status", status)
    return BusyError


def test_errors_are_one_line_a_hint_and_an_exit_status(
    failing: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli_main.main(["status", "busy"]) == 10
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: '/run/lock' is locked by bootwright upgrade\n  hint: wait\n"


def test_interrupt_is_130(failing: type[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_main.main(["status", "interrupt"]) == 130
    assert capsys.readouterr().err.strip() == "error: interrupted"


def test_a_bug_is_70_with_a_log_and_no_traceback(
    failing: type[Exception], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cli_main.main(["status", "bug"]) == 70
    err = capsys.readouterr().err
    assert "internal error: ZeroDivisionError: a bug" in err
    assert "Traceback" not in err
    (log,) = tmp_path.iterdir()
    assert str(log) in err
    assert "Traceback" in log.read_text()


@pytest.mark.parametrize("argv", [["no-such-command"], ["image", "pull", "--no-such-option"]])
def test_usage_errors_are_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_main.main(argv) == 2
    assert "error: No such" in capsys.readouterr().err


def test_every_row_of_the_table_is_a_command() -> None:
    context = click.Context(cli_main.cli)
    for name in cli_main.COMMANDS:
        assert cli_main.cli.get_command(context, name) is not None


def test_help_imports_no_command_module() -> None:
    code = (
        "import sys; from bootwright.cli.main import main; main(['--help']);"
        "bad = {'urllib3','rich','yaml','msgspec','bootwright.cli.deploy','multiprocessing'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def _task(unit: str) -> Task:
    return Task(
        task="pulling",
        description="Pulling",
        id="x",
        unit="bytes" if unit == "bytes" else "steps",
        bytes_total=10,
        steps_total=1,
        subtasks=[SubTask(subtask="layer", description="layer 1", id="sha256:1", total=10)],
    )


@pytest.mark.parametrize("unit", ["bytes", "steps"])
def test_progress_fd_lines_match_the_published_schema(unit: str) -> None:
    shared = Path(__file__).parents[4] / "shared" / "vectors" / "progress-v0.schema.json"
    reader, writer = os.pipe()
    with open_progress(fd=writer) as progress:
        task = _task(unit)
        progress.begin(task)
        task.bytes_done = 5
        progress.update(task)
        progress.end(task)
    os.close(writer)
    with os.fdopen(reader) as stream:
        events = [json.loads(line) for line in stream]
    assert events[0] == {"type": "Start", "version": "0.1.0"}
    assert len(events) == 3, "an update within 200 ms is dropped, begin and end never are"
    if not shared.exists():
        pytest.skip("needs ../shared for the schema itself")
    import jsonschema

    validator = jsonschema.Draft202012Validator(json.loads(shared.read_text()))
    for event in events:
        validator.validate(event)


def test_progress_survives_a_reader_that_goes_away(capsys: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open_progress(fd=writer) as progress:
        progress.begin(_task("bytes"))
        progress.end(_task("bytes"))
    os.close(writer)
    assert capsys.readouterr().err == "Failed to write to jsonl: Broken pipe\n"


@pytest.mark.parametrize("fd", [1, 999])
def test_progress_fd_must_be_a_pipe_above_two(fd: int) -> None:
    with pytest.raises(UsageError, match="is not an open pipe"), open_progress(fd=fd):
        pass
