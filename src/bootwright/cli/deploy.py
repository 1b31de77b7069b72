"""The commands of a deployed machine: status, upgrade, switch, rollback, and the one that systemd calls at shutdown.

Flags and words are bootc's. What only later versions of bootwright can do is refused with a sentence, never ignored.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from bootwright.cli.options import AUTHFILE, HIDDEN_PROGRESS_FD, QUIET, TLS_VERIFY
from bootwright.cli.output import echo_json, echo_yaml, say
from bootwright.errors import UsageError

if TYPE_CHECKING:
    from bootwright.ops.host import Host
    from bootwright.ops.upgrade import Outcome

__all__ = ["finalize_staged", "rollback", "status", "switch", "upgrade"]

_SOFT_REBOOT = click.option(
    "--soft-reboot",
    type=click.Choice(["required", "auto"]),
    help="Restart user space only, when kernel and initramfs stay the same (not supported yet).",
)
_APPLY = click.option("--apply", is_flag=True, help="Reboot into the new state at once, if there is one.")


def _host() -> Host:
    from bootwright.ops.host import Host

    return Host.detect()


def _refuse_soft_reboot(value: str | None) -> None:
    if value is not None:
        raise UsageError("'--soft-reboot' is not supported yet", hint="use --apply for a full reboot")


def _refuse_together(**flags: bool) -> None:
    given = [name for name, value in flags.items() if value]
    if len(given) > 1:
        names = [f"'--{name.replace('_', '-')}'" for name in given[:2]]
        raise UsageError(f"{names[0]} and {names[1]} exclude each other")


# ---- status --------------------------------------------------------------------------------------------------------


@click.command()
@click.option(
    "--format",
    "output",
    type=click.Choice(["humanreadable", "yaml", "json"]),
    help="Output format; for people on a terminal, YAML elsewhere.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format=json.")
@click.option("--format-version", type=int, metavar="0|1", help="Version of the document; both mean version 1.")
@click.option("--booted", is_flag=True, help="Leave the staged and the rollback deployment out.")
@click.option("-v", "--verbose", is_flag=True, help="Show more of each deployment.")
def status(output: str | None, as_json: bool, format_version: int | None, booted: bool, verbose: bool) -> None:
    """Show what runs, what boots next, and where one can go back.

    It never waits for another command, and never fails because of a damaged boot entry: it says what is wrong.
    """
    from bootwright.ops.status import format_human, read_status

    if format_version not in (None, 0, 1):
        raise UsageError(f"there is no format version {format_version}", hint="use --format-version=1")
    if as_json and output not in (None, "json"):
        raise UsageError(f"'--json' and '--format={output}' exclude each other")
    document = read_status(_host(), booted_only=booted)
    chosen = output or ("json" if as_json else "humanreadable" if sys.stdout.isatty() else "yaml")
    if chosen == "json":
        echo_json(document, canonical=True)
    elif chosen == "yaml":
        echo_yaml(document)
    else:
        click.echo(format_human(document, verbose=verbose))


# ---- upgrade and switch --------------------------------------------------------------------------------------------


@click.command()
@click.option("--check", is_flag=True, help="Only look whether there is an update; nothing is fetched.")
@_APPLY
@_SOFT_REBOOT
@click.option("--download-only", is_flag=True, help="Stage the update, but do not boot it before --from-downloaded.")
@click.option("--from-downloaded", is_flag=True, help="Boot what --download-only staged; the registry is not asked.")
@click.option("--tag", metavar="TAG", help="Follow the tracked image with this tag instead.")
@QUIET
@TLS_VERIFY
@AUTHFILE
@HIDDEN_PROGRESS_FD
def upgrade(
    check: bool,
    apply: bool,
    soft_reboot: str | None,
    download_only: bool,
    from_downloaded: bool,
    tag: str | None,
    quiet: bool,
    tls_verify: bool,
    authfile: str | None,
    progress_fd: int | None,
) -> None:
    """Fetch the newest image of the tracked reference and stage it.

    The update takes over at the next shutdown; until then 'bootwright rollback' drops it.
    """
    _refuse_together(check=check, apply=apply)
    _refuse_together(check=check, download_only=download_only)
    _refuse_together(check=check, from_downloaded=from_downloaded)
    _refuse_together(apply=apply, download_only=download_only)
    _refuse_together(download_only=download_only, from_downloaded=from_downloaded)
    _refuse_together(tag=tag is not None, from_downloaded=from_downloaded)
    _refuse_soft_reboot(soft_reboot)
    from bootwright.cli.progress import open_progress
    from bootwright.ops.upgrade import UpgradeRequest
    from bootwright.ops.upgrade import upgrade as run_upgrade

    host = _host()
    request = UpgradeRequest(
        check=check,
        download_only=download_only,
        from_downloaded=from_downloaded,
        tag=tag,
        tls_verify=tls_verify,
        auth_file=authfile,
    )
    with open_progress(quiet=quiet, fd=progress_fd) as progress:
        outcome = run_upgrade(host, request, progress)
    _show(outcome, is_check=check)
    _apply(host, outcome, wanted=apply)


@click.command()
@click.argument("target")
@click.option(
    "--transport",
    type=click.Choice(
        ["registry", "oci", "oci-archive", "docker-daemon", "docker-archive", "containers-storage", "dir"]
    ),
    default="registry",
    show_default=True,
    help="Where TARGET is, when it does not say so itself.",
)
@_APPLY
@_SOFT_REBOOT
@click.option(
    "--retain",
    is_flag=True,
    expose_value=False,
    help="Accepted for bootc's sake: the deployment left behind is kept anyway.",
)
@click.option("--enforce-container-sigpolicy", is_flag=True, help="Require signatures (not supported yet).")
@click.option("--no-signature-verification", is_flag=True, expose_value=False, hidden=True, help="As bootc: no effect.")
@QUIET
@TLS_VERIFY
@AUTHFILE
@HIDDEN_PROGRESS_FD
def switch(
    target: str,
    transport: str,
    apply: bool,
    soft_reboot: str | None,
    enforce_container_sigpolicy: bool,
    quiet: bool,
    tls_verify: bool,
    authfile: str | None,
    progress_fd: int | None,
) -> None:
    """Track another image, TARGET, and stage it.

    TARGET is HOST/NAME[:TAG] or NAME@DIGEST in a registry, also as docker://…, or oci:DIRECTORY[:TAG].
    """
    _refuse_soft_reboot(soft_reboot)
    if enforce_container_sigpolicy:
        raise UsageError(
            "'--enforce-container-sigpolicy' is not supported yet: signatures cannot be checked",
            hint="leave it out only if the registry and the way to it are trusted",
        )
    from bootwright.cli.progress import open_progress
    from bootwright.oci.reference import ImageReference
    from bootwright.ops.switch import switch as run_switch

    if transport not in ("registry", "oci"):
        raise UsageError(
            f"the transport '{transport}' is not supported yet", hint="use --transport registry or --transport oci"
        )
    reference = ImageReference.parse(target, default_transport="oci" if transport == "oci" else "registry")
    host = _host()
    with open_progress(quiet=quiet, fd=progress_fd) as progress:
        outcome = run_switch(host, reference.canonical, progress, tls_verify=tls_verify, auth_file=authfile)
    _show(outcome, is_check=False)
    _apply(host, outcome, wanted=apply)


def _show(outcome: Outcome, *, is_check: bool) -> None:
    """Print the outcome in bootc's words."""
    from bootwright.ops.upgrade import OutcomeKind

    name = outcome.reference.image if outcome.reference.transport == "registry" else str(outcome.reference)
    details = [f"  Version: {outcome.version}"] if outcome.version else []
    details.append(f"  Digest: {outcome.digest}")
    locked = "It is not booted before 'bootwright upgrade --from-downloaded'." if outcome.is_locked else None
    match outcome.kind:
        case OutcomeKind.UNCHANGED if "Image specification is unchanged." in outcome.notes:
            lines = []
        case OutcomeKind.UNCHANGED:
            lines = [f"No changes in: {name}" if is_check else "No update available."]
        case OutcomeKind.AVAILABLE:
            lines = [f"Update available for: {name}", *details, *outcome.layers]
        case OutcomeKind.STAGED if locked:
            lines = [f"Downloaded: {name}", *details, locked]
        case OutcomeKind.STAGED | OutcomeKind.UNLOCKED:
            lines = [f"Queued for next boot: {name}", *details]
        case OutcomeKind.STAGED_ALREADY:
            lines = ["Staged update present, not changed.", *([locked] if locked else [])]
        case OutcomeKind.RETRACKED:
            lines = [f"Tracking {name}, whose content is what runs; nothing to boot."]
    for line in [*lines, *outcome.notes]:
        click.echo(line)


def _apply(host: Host, outcome: Outcome, *, wanted: bool) -> None:
    if not wanted:
        return
    if not outcome.is_pending:
        say("Nothing to apply: no reboot.")
        return
    host.reboot()


# ---- rollback and finalisation -------------------------------------------------------------------------------------


@click.command()
@_APPLY
@_SOFT_REBOOT
def rollback(apply: bool, soft_reboot: str | None) -> None:
    """Boot the previous deployment, or undo a staged one.

    While an update is staged, it is dropped and nothing else changes. Otherwise the previous deployment boots next,
    with its own /etc; once more undoes that.
    """
    _refuse_soft_reboot(soft_reboot)
    from bootwright.ops.rollback import RollbackKind
    from bootwright.ops.rollback import rollback as run_rollback

    host = _host()
    outcome = run_rollback(host)
    match outcome.kind:
        case RollbackKind.UNSTAGED:
            lines = ["notice: Dropped the staged deployment", "Next boot: current deployment"]
        case RollbackKind.QUEUED:
            lines = ["Next boot: rollback deployment"]
        case RollbackKind.REVERTED:
            lines = ["notice: Reverting queued rollback state", "Next boot: current deployment"]
    for line in [*lines, *([outcome.note] if outcome.note else [])]:
        click.echo(line)
    if apply and outcome.kind is RollbackKind.QUEUED:
        host.reboot()
    elif apply:
        say("Nothing to apply: the current deployment boots next.")


@click.command("composefs-finalize-staged")
def finalize_staged() -> None:
    """Finalise the staged deployment; systemd does it at shutdown.

    Merges /etc into the staged deployment and makes its boot entries the current ones, in one step.
    """
    from bootwright.ops.finalize import finalize_staged as run_finalize

    deployment_id = run_finalize(_host())
    click.echo("Nothing to finalise." if deployment_id is None else f"Deployment {deployment_id} boots next.")
