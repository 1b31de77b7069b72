"""Writes docs/man/*.1 from the command table, so that the manual cannot say anything else than the program.

`make man` writes them; a test compares them with what is committed. Run with --check to compare only.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from bootwright import __version__
from bootwright.cli.main import cli
from bootwright.errors import BootwrightError

DIRECTORY = Path(__file__).parents[1] / "docs" / "man"


def escape(text: str) -> str:
    """Escape text for roff."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return "\n".join(f"\\&{line}" if line.startswith(".") else line for line in text.splitlines())


def commands(command: click.Command, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """Yield a command and everything visible below it."""
    yield command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden and not is_hidden_row(context, name):
                yield from commands(child, click.Context(child, info_name=name, parent=context))


def is_hidden_row(context: click.Context, name: str) -> bool:
    """Tell whether the command table hides a top-level name."""
    from bootwright.cli.main import COMMANDS

    return context.parent is None and name in COMMANDS and COMMANDS[name].hidden


def options_of(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """Yield each visible option as its spelling and its help; not in click's words, which change with its version."""
    for parameter in command.get_params(context):
        if not isinstance(parameter, click.Option) or parameter.hidden:
            continue
        spelling = ", ".join([*parameter.opts, *parameter.secondary_opts])
        if not parameter.is_flag and not parameter.count:
            spelling += f" {value_name(parameter)}"
        text = parameter.help or ""
        if parameter.show_default and parameter.default is not None and not isinstance(parameter.default, bool):
            text += f" Default: {parameter.default}."
        yield spelling, text.strip()


def value_name(parameter: click.Option) -> str:
    """Return what stands for an option's value: its metavar, its choices, or the name of its type."""
    if parameter.metavar:
        return parameter.metavar
    if isinstance(parameter.type, click.Choice):
        return "|".join(str(choice) for choice in parameter.type.choices)
    return parameter.type.name.upper()


def page(command: click.Command, context: click.Context) -> str:
    """Return the roff text of one command's page."""
    name = context.command_path.replace(" ", "-")
    usage = " ".join(command.collect_usage_pieces(context))
    text = inspect.cleandoc(command.help or "").split("\f")[0].replace("\b\n", "")
    paragraphs = [" ".join(part.split()) if not part.startswith("  ") else part for part in text.split("\n\n")]
    summary = (paragraphs[0] or command.get_short_help_str(200)).rstrip(".")
    lines = [
        f'.TH "{name.upper()}" "1" "" "bootwright {__version__}" "User Commands"',
        ".SH NAME",
        f"{escape(name)} \\- {escape(summary[:1].lower() + summary[1:])}",
        ".SH SYNOPSIS",
        f".B {escape(context.command_path)}",
        escape(usage),
        ".SH DESCRIPTION",
    ]
    for paragraph in paragraphs:
        lines += [".PP", escape(paragraph.strip())]
    lines.append(".SH OPTIONS")
    for spelling, text in options_of(command, context):
        lines += [".TP", f"\\fB{escape(spelling)}\\fR", escape(" ".join(text.split()))]
    if isinstance(command, click.Group):
        lines.append(".SH COMMANDS")
        for child_name in command.list_commands(context):
            child = command.get_command(context, child_name)
            if child is not None and not child.hidden and not is_hidden_row(context, child_name):
                lines += [".TP", f"\\fB{escape(child_name)}\\fR", escape(child.get_short_help_str(200))]
    lines += exit_status()
    if context.parent is not None:
        lines += [".SH SEE ALSO", f"\\fB{escape(context.parent.command_path.replace(' ', '-'))}\\fR(1)"]
    return "\n".join(line for line in lines if line) + "\n"


def exit_status() -> list[str]:
    """Return the EXIT STATUS section, from the exception tree."""

    def tree(kind: type[BootwrightError]) -> Iterator[type[BootwrightError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from tree(child)

    lines = [".SH EXIT STATUS", ".TP", "\\fB0\\fR", "success"]
    for kind in sorted(tree(BootwrightError), key=lambda kind: kind.exit_code):
        summary = (kind.__doc__ or "").splitlines()[0].rstrip(".")
        if kind is BootwrightError:
            summary = "a failure that has no status of its own"
        lines += [".TP", f"\\fB{kind.exit_code}\\fR", escape(summary[:1].lower() + summary[1:])]
    return [*lines, ".TP", "\\fB70\\fR", "a bug in bootwright", ".TP", "\\fB130\\fR", "interrupted"]


def pages() -> dict[str, str]:
    """Return every page: file name and text."""
    top = click.Context(cli, info_name="bootwright", max_content_width=100)
    return {
        f"{context.command_path.replace(' ', '-')}.1": page(command, context) for command, context in commands(cli, top)
    }


def main() -> int:
    """Write the pages, or with --check report those that differ."""
    wanted = pages()
    present = {path.name: path.read_text() for path in DIRECTORY.glob("*.1")}
    if "--check" in sys.argv:
        stale = sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))
        for name in stale:
            print(f"{DIRECTORY / name} does not match the program; run: make man", file=sys.stderr)
        return 1 if stale else 0
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for name in present.keys() - wanted.keys():
        (DIRECTORY / name).unlink()
    for name, text in wanted.items():
        (DIRECTORY / name).write_text(text)
    print(f"{len(wanted)} pages in {DIRECTORY}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
