"""Flags and words of status, upgrade, switch and rollback."""

import json
from collections.abc import Callable

import pytest
import yaml

from bootwright.cli.main import main

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        pytest.param(
            ["upgrade", "--check", "--apply"], 2, "'--check' and '--apply' exclude each other", id="check-apply"
        ),
        pytest.param(["upgrade", "--check", "--download-only"], 2, "'--download-only' exclude", id="check-download"),
        pytest.param(["upgrade", "--apply", "--download-only"], 2, "exclude each other", id="apply-download"),
        pytest.param(["upgrade", "--from-downloaded", "--check"], 2, "exclude each other", id="from-check"),
        pytest.param(["upgrade", "--tag", "x", "--from-downloaded"], 2, "exclude each other", id="tag-from"),
        pytest.param(["upgrade", "--soft-reboot", "auto"], 2, "'--soft-reboot' is not supported yet", id="soft"),
        pytest.param(["update", "--soft-reboot", "auto"], 2, "'--soft-reboot' is not supported yet", id="alias"),
        pytest.param(["upgrade", "--soft-reboot", "never"], 2, "'never' is not one of", id="soft-value"),
        pytest.param(["rollback", "--soft-reboot", "auto"], 2, "'--soft-reboot' is not supported yet", id="back-soft"),
        pytest.param(["switch"], 2, "Missing argument 'TARGET'", id="no-target"),
        pytest.param(
            ["switch", "--enforce-container-sigpolicy", "a.io/b"], 2, "signatures cannot be checked", id="signatures"
        ),
        pytest.param(["switch", "--transport", "dir", "/x"], 2, "'dir' is not supported yet", id="transport"),
        pytest.param(["switch", "a b"], 2, "is no image reference", id="no-reference"),
        pytest.param(["status", "--format-version", "2"], 2, "no format version 2", id="format-version"),
        pytest.param(["status", "--json", "--format", "yaml"], 2, "exclude each other", id="json-yaml"),
        pytest.param(["upgrade", "--progress-fd", "1"], 2, "--progress-fd 1 is not an open pipe", id="progress-fd"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], status: int, words: str, capsys: Capture) -> None:
    assert main(arguments) == status
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("command", [["upgrade", "--quiet"], ["switch", "--quiet", "a.io/b"], ["rollback"]])
def test_a_machine_that_is_not_ours_is_told_so(command: list[str], capsys: Capture) -> None:
    assert main(command) in (7, 9)
    assert capsys.readouterr().err.startswith("error: ")


def test_finalising_where_nothing_is_staged_is_fine(capsys: Capture) -> None:
    assert main(["composefs-finalize-staged"]) == 0
    assert capsys.readouterr().out == "Nothing to finalise.\n"


@pytest.mark.parametrize(
    ("arguments", "parse"),
    [
        (["status", "--json"], json.loads),
        (["status", "--format", "json", "--format-version", "0"], json.loads),
        (["status", "--format-version=1"], yaml.safe_load),
        (["status", "--format=yaml", "--booted"], yaml.safe_load),
    ],
)
def test_status_document_elsewhere(arguments: list[str], parse: Callable[[str], object], capsys: Capture) -> None:
    assert main(arguments) == 0
    document = parse(capsys.readouterr().out)
    assert isinstance(document, dict)
    assert document["kind"] == "BootcHost"
    assert document["status"]["booted"] is None


def test_status_for_people(capsys: Capture) -> None:
    assert main(["status", "--format", "humanreadable", "-v"]) == 0
    assert capsys.readouterr().out == "System is not deployed via bootwright.\n"
