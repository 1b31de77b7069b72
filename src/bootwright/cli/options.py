"""Options that several commands take, spelled and explained the same everywhere."""

from __future__ import annotations

import click

__all__ = ["ARCH", "AUTHFILE", "HIDDEN_PROGRESS_FD", "PROGRESS_FD", "QUIET", "TLS_VERIFY"]

# podman's spelling: --tls-verify=false.
TLS_VERIFY = click.option(
    "--tls-verify",
    type=bool,
    default=True,
    show_default=True,
    metavar="true|false",
    help="Require a trusted certificate of the registry; false also allows plain http. For this call only.",
)
AUTHFILE = click.option("--authfile", metavar="FILE", help="Read registry credentials from this file.")
ARCH = click.option("--arch", metavar="ARCH", help="Architecture, e.g. arm64.  [default: this machine's]")
QUIET = click.option("--quiet", "-q", is_flag=True, help="Show no progress, print only the result.")
PROGRESS_FD = click.option(
    "--progress-fd", type=int, metavar="FD", help="Write progress as JSON lines to this descriptor, a pipe."
)
# bootc does not show it on the commands that have it there.
HIDDEN_PROGRESS_FD = click.option(
    "--progress-fd", type=int, metavar="FD", hidden=True, help="Write progress as JSON lines to this descriptor."
)
