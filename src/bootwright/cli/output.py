"""What commands print: JSON, YAML and tables. Results go to stdout, words for people to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import click

__all__ = ["echo_json", "echo_table", "echo_yaml", "say"]


def echo_json(document: Any, *, canonical: bool = False) -> None:
    """Print a document as JSON: readable, or canonical (sorted keys, no white space) as bootc's status."""
    if canonical:
        click.echo(json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False))
    else:
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def echo_yaml(document: Any) -> None:
    """Print a document as YAML, keys in their own order."""
    import yaml

    class Plain(yaml.SafeDumper):
        """Writes a part that occurs twice twice: bootc's status has no anchors, and few readers know them."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    click.echo(yaml.dump(document, Dumper=Plain, sort_keys=False, default_flow_style=False).rstrip("\n"))


def echo_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns; the header is dimmed on a terminal."""
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for number, row in enumerate(cells):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        click.echo(click.style(line, dim=True) if number == 0 and sys.stdout.isatty() else line)


def say(message: str) -> None:
    """Print a sentence for people on stderr."""
    click.echo(message, err=True)
