"""The command table, and the one place where errors become text and exit statuses.

Commands live in modules that are imported when they are used: ``bootwright status`` must not pay for what
``bootwright install`` needs, and ``--help`` needs none of them.
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from typing import Any

import click

from bootwright import __version__
from bootwright.errors import BootwrightError

__all__ = ["COMMANDS", "cli", "main", "run"]

EXIT_BUG = 70
EXIT_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the command table."""

    module: str
    attribute: str
    summary: str
    hidden: bool = False


# The order is the order of --help: what people type most comes first.
COMMANDS: dict[str, Row] = {
    "status": Row("deploy", "status", "Show what runs, what boots next, and where one can go back."),
    "upgrade": Row("deploy", "upgrade", "Fetch the newest image of the tracked reference and stage it."),
    "switch": Row("deploy", "switch", "Track another image, and stage it."),
    "rollback": Row("deploy", "rollback", "Boot the previous deployment, or undo a staged one."),
    "image": Row("image", "image", "Pull, list, inspect, mount, export and remove images."),
    "install": Row("install", "install", "Install an image on a disk or into a disk file."),
    "vm": Row("vm", "vm", "Boot a disk in a virtual machine."),
    "composefs": Row("composefs", "composefs", "Make, read and mount composefs images."),
    "update": Row("deploy", "upgrade", "Alias of upgrade.", hidden=True),
    "composefs-finalize-staged": Row(
        "deploy", "finalize_staged", "Finalise the staged deployment at shutdown.", hidden=True
    ),
}


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are called, not when they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name every command, in table order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        row = COMMANDS.get(cmd_name)
        if row is None:
            return None
        command = getattr(importlib.import_module(f"bootwright.cli.{row.module}"), row.attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"'{row.attribute}' in the command table is no command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command list from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, row.summary) for name, row in COMMANDS.items() if not row.hidden])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="bootwright", message="%(prog)s %(version)s")
def cli() -> None:
    """Boot a machine from an OCI image and keep it on it."""


def _error_line(message: str, hint: str | None) -> None:
    color = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    label = click.style("error:", fg="red", bold=True) if color else "error:"
    click.echo(f"{label} {message}", err=True, color=color)
    if hint:
        click.echo(f"  hint: {hint}", err=True, color=color)


def _report_bug(exc: BaseException) -> None:
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="bootwright-", suffix=".log", delete=False) as log:
        log.write(f"bootwright {__version__} {sys.argv[1:]}\n")
        traceback.print_exception(exc, file=log)
    _error_line(
        f"internal error: {type(exc).__name__}: {exc}",
        f"this is a bug in bootwright; details are in '{log.name}': please report them",
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status; never raises."""
    arguments: dict[str, Any] = {"standalone_mode": False, "prog_name": "bootwright"}
    try:
        result = cli.main(args=argv, **arguments)
    except BootwrightError as exc:
        _error_line(exc.message, exc.hint)
        return exc.exit_code
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except click.UsageError as exc:
        where = exc.ctx.command_path if exc.ctx else "bootwright"
        _error_line(exc.format_message(), f"{where} --help")
        return exc.exit_code
    except click.ClickException as exc:
        _error_line(exc.format_message(), None)
        return exc.exit_code
    except (KeyboardInterrupt, click.Abort):
        _error_line("interrupted", None)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`| head`); the interpreter must not complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as exc:
        # Translated where it happened when the code knows better; this is the net below.
        from bootwright.linux.files import translate

        error = translate(exc, "the command failed")
        _error_line(error.message, error.hint)
        return error.exit_code
    except Exception as exc:  # noqa: BLE001  the last door: no traceback reaches a user
        _report_bug(exc)
        return EXIT_BUG
    return result if isinstance(result, int) else 0


def run() -> None:
    """Entry point of the installed program."""
    sys.exit(main())
