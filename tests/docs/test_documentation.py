"""The documents say what the program does."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from bootwright.errors import BootwrightError

ROOT = Path(__file__).parents[2]


def exception_tree(kind: type[BootwrightError] = BootwrightError) -> Iterator[type[BootwrightError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from exception_tree(child)


def test_every_exit_status_is_documented_once() -> None:
    table = (ROOT / "docs" / "exit-codes.md").read_text("utf-8")
    documented = {name: int(code) for code, name in re.findall(r"^\| (\d+) \| (\w+) \|", table, flags=re.MULTILINE)}
    defined = {kind.__name__: kind.exit_code for kind in exception_tree() if kind.__module__ == "bootwright.errors"}
    assert documented == defined
    assert len(set(defined.values())) == len(defined), "no two errors share a status"


def test_man_pages_match_the_program() -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "tools" / "manpages.py", "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md"], ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text("utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_readme_commands_exist() -> None:
    """Every `bootwright …` line of the README names a command and options the program has."""
    from bootwright.cli.main import cli

    text = (ROOT / "README.md").read_text("utf-8")
    lines = re.findall(r"^(?:[$#] )?bootwright ([^|#\n]+)", text, flags=re.MULTILINE)
    assert lines
    for line in lines:
        words = line.split()
        node: click.Command = cli
        context = click.Context(cli, info_name="bootwright")
        while words and isinstance(node, click.Group):
            child = node.get_command(context, words[0])
            assert child is not None, f"README: bootwright {line}"
            context = click.Context(child, info_name=words.pop(0), parent=context)
            node = child
        known = {
            name for parameter in node.get_params(context) for name in (*parameter.opts, *parameter.secondary_opts)
        }
        for word in words:
            if word.startswith("--"):
                assert word.split("=")[0] in known, f"README: bootwright {line}: {word}"


def test_nothing_names_a_path_of_one_machine() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, tracked.split("\0")):
        path = ROOT / name
        if path.suffix in {".py", ".md", ".sh", ".toml", ""} and path.is_file() and path != Path(__file__):
            text = path.read_text("utf-8", errors="replace")
            assert not re.search(r"(?<![\w.])/(?:work|root/\.pyenv|var/tmp/measure)\b(?!/)", text), name
