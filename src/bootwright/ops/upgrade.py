"""Follow the tracked image: look, fetch, stage."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace

from bootwright.boot.sdboot import EntryStore
from bootwright.deploy.store import StateStore
from bootwright.digest import Digest
from bootwright.errors import BootwrightError, DeploymentError
from bootwright.oci.manifest import Manifest
from bootwright.oci.reference import ImageReference
from bootwright.oci.source import SourceOptions
from bootwright.ops.candidate import Candidate, describe_layers, resolve_candidate
from bootwright.ops.cleanup import clean_up_quietly
from bootwright.ops.host import FINALIZE_UNIT, Host
from bootwright.ops.stage import Stager, drop_staged
from bootwright.ops.state import StagedRecord, SystemState, read_state
from bootwright.progress import Progress
from bootwright.repo.images import load_image
from bootwright.repo.repository import Repository

__all__ = ["Outcome", "OutcomeKind", "UpgradeRequest", "get_tracked", "source_options", "take_over", "upgrade"]


class OutcomeKind(enum.Enum):
    """How an upgrade or switch ended."""

    UNCHANGED = "unchanged"  # what the reference leads to runs already
    AVAILABLE = "available"  # --check: there is something newer
    STAGED = "staged"  # it boots next
    STAGED_ALREADY = "staged already"  # it was staged before
    UNLOCKED = "unlocked"  # a downloaded update boots next now
    RETRACKED = "retracked"  # the same content under another name: only the reference changed


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was done.

    Args:
        kind: how it ended.
        reference: the image it was about.
        version: its version.
        digest: its manifest digest.
        layers: lines that compare its layers with the booted image's.
        is_locked: the staged deployment was only downloaded.
        notes: sentences for people.
    """

    kind: OutcomeKind
    reference: ImageReference
    version: str | None = None
    digest: str = ""
    layers: list[str] = field(default_factory=list)
    is_locked: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def is_pending(self) -> bool:
        """A reboot changes what runs."""
        staged = (OutcomeKind.STAGED, OutcomeKind.STAGED_ALREADY, OutcomeKind.UNLOCKED)
        return self.kind in staged and not self.is_locked


@dataclass(frozen=True, slots=True, kw_only=True)
class UpgradeRequest:
    """The options of upgrade.

    Args:
        check: only look, and remember what was seen.
        download_only: stage, but do not take over at shutdown.
        from_downloaded: unlock what was downloaded, without asking the source.
        tag: follow the current reference with this tag instead.
        tls_verify: check certificates, for this one call.
        auth_file: credentials, for this one call.
    """

    check: bool = False
    download_only: bool = False
    from_downloaded: bool = False
    tag: str | None = None
    tls_verify: bool = True
    auth_file: str | None = None


def source_options(host: Host, *, tls_verify: bool, auth_file: str | None) -> SourceOptions:
    """Build the options for this machine's architecture."""
    return SourceOptions(tls_verify=tls_verify, auth_file=auth_file, architecture=host.architecture)


def get_tracked(state: SystemState) -> ImageReference:
    """Return the reference that updates follow: the staged deployment's, else the booted one's.

    Raises:
        DeploymentError: it is not known.
    """
    stored = state.deployments.get(state.tracked_id or "")
    if stored is None:
        raise DeploymentError(
            "the tracked image is not known: the running deployment has no files in state/deploy",
            hint="bootwright switch REFERENCE",
        )
    return stored.get_origin().get_reference()


def upgrade(host: Host, request: UpgradeRequest, progress: Progress) -> Outcome:
    """Fetch the newest image of the tracked reference and stage it.

    Raises:
        DeploymentError: not a machine of ours, nothing tracked, or /etc conflicts.
        BusyError: another command is at work.
        BootwrightError: everything that :class:`~bootwright.ops.stage.Stager` raises.
    """
    with host.prepare_for_write("bootwright upgrade"), host.open_boot(writable=not request.check) as boot:
        state = read_state(host, boot)
        if request.from_downloaded:
            return _unlock(host, state)
        reference = get_tracked(state)
        if request.tag is not None:
            reference = reference.with_tag(request.tag)
        options = source_options(host, tls_verify=request.tls_verify, auth_file=request.auth_file)
        candidate = resolve_candidate(reference, options)
        if request.check:
            return _check(host, state, candidate)
        return take_over(host, boot, candidate, options, progress, is_locked=request.download_only)


def _unlock(host: Host, state: SystemState) -> Outcome:
    if state.staged is None:
        raise DeploymentError("nothing is staged", hint="bootwright upgrade --download-only")
    stored = state.deployments[state.staged.deployment_id]
    facts = stored.get_origin().image
    kind = OutcomeKind.STAGED_ALREADY
    if state.staged.is_locked:
        host.start_unit(FINALIZE_UNIT)
        StagedRecord(state.staged.deployment_id).write(host.staged_file)
        kind = OutcomeKind.UNLOCKED
    return Outcome(
        kind=kind,
        reference=get_tracked(state),
        version=facts.version if facts else None,
        digest=facts.manifest_digest if facts else "",
    )


def _digest_of(state: SystemState, deployment_id: str | None) -> str | None:
    stored = state.deployments.get(deployment_id or "")
    return stored.origin.manifest_digest if stored is not None and stored.origin is not None else None


def _check(host: Host, state: SystemState, candidate: Candidate) -> Outcome:
    """Compare with what is tracked, and remember the answer where status finds it."""
    digest = str(candidate.manifest_digest)
    is_new = digest not in (_digest_of(state, state.tracked_id), _digest_of(state, state.booted_id))
    if host.booted_id is not None and host.booted_id in state.deployments:
        update = candidate.to_cached_update() if is_new else None
        StateStore(host.sysroot).write_cached_update(host.booted_id, update)
    return Outcome(
        kind=OutcomeKind.AVAILABLE if is_new else OutcomeKind.UNCHANGED,
        reference=candidate.reference,
        version=candidate.version,
        digest=digest,
        layers=describe_layers(candidate.resolved.manifest, _booted_manifest(host, state)),
    )


def _booted_manifest(host: Host, state: SystemState) -> Manifest | None:
    """Return the booted image's manifest; None when the repository does not have it."""
    digest = _digest_of(state, state.booted_id)
    try:
        if digest is None:
            return None
        with Repository.open(host.repository) as repo:
            return load_image(repo, Digest.parse(digest), reference="booted image").manifest
    except BootwrightError:
        return None


def take_over(
    host: Host,
    boot: EntryStore,
    candidate: Candidate,
    options: SourceOptions,
    progress: Progress,
    *,
    is_locked: bool = False,
) -> Outcome:
    """Bring the machine to a candidate: nothing, a changed reference, or a staged deployment.

    Raises:
        BootwrightError: see :class:`~bootwright.ops.stage.Stager`; the boot entries are unchanged.
    """
    state = read_state(host, boot)
    digest = str(candidate.manifest_digest)
    if state.staged is not None and _digest_of(state, state.staged.deployment_id) == digest:
        return _keep_staged(host, state, candidate, is_locked=is_locked)
    if _digest_of(state, state.booted_id) == digest:
        return _keep_booted(host, boot, state, candidate)
    stager = Stager(host, boot, options, progress)
    with Repository.open(host.repository, writable=True) as repo:
        pulled, boot_image = stager.pull(repo, candidate)
        new_id = boot_image.id.hex
        is_known = new_id == state.booted_id or (state.staged is not None and new_id == state.staged.deployment_id)
        if is_known:
            # Another manifest, the same content: nothing to boot, but this is what runs from now on.
            stager.tag(repo, pulled)
        else:
            stager.stage(repo, candidate.reference, pulled, boot_image, is_locked=is_locked)
    if new_id == state.booted_id:
        outcome = _keep_booted(host, boot, state, candidate)
    elif is_known:
        outcome = _keep_staged(host, state, candidate, is_locked=is_locked)
    else:
        _forget_check(host, state)
        outcome = _outcome(OutcomeKind.STAGED, candidate, is_locked=is_locked)
    note = clean_up_quietly(host, boot)
    return outcome if note is None else _with_note(outcome, note)


def _keep_staged(host: Host, state: SystemState, candidate: Candidate, *, is_locked: bool) -> Outcome:
    """Leave the staged deployment; its lock and what it tracks may change."""
    if state.staged is None:
        raise DeploymentError("nothing is staged")
    _track(host, state, state.staged.deployment_id, candidate)
    if state.staged.is_locked != is_locked:
        host.start_unit(FINALIZE_UNIT)
        StagedRecord(state.staged.deployment_id, is_locked).write(host.staged_file)
    return _outcome(OutcomeKind.STAGED_ALREADY, candidate, is_locked=is_locked)


def _keep_booted(host: Host, boot: EntryStore, state: SystemState, candidate: Candidate) -> Outcome:
    """What runs is what was asked for: drop what is staged instead, and follow the new name."""
    booted_id = host.check_booted()
    notes = []
    if state.staged is not None:
        drop_staged(host, boot)
        notes.append("notice: the staged image was dropped: the booted one is what was asked for")
        failure = clean_up_quietly(host, boot)
        notes += [failure] if failure else []
    elif state.is_rollback_queued:
        notes.append("notice: a rollback is queued: 'bootwright rollback' keeps the booted image")
    is_changed = _track(host, state, booted_id, candidate)
    _forget_check(host, state)
    kind = OutcomeKind.RETRACKED if is_changed else OutcomeKind.UNCHANGED
    return _with_note(_outcome(kind, candidate), *notes)


def _track(host: Host, state: SystemState, deployment_id: str, candidate: Candidate) -> bool:
    """Make a deployment's origin say where its content comes from now; tell whether the reference is another one."""
    stored = state.deployments.get(deployment_id)
    if stored is None or stored.origin is None:
        return False
    before = stored.origin.image
    origin = stored.origin.tracking(candidate.reference).with_image(
        manifest_digest=str(candidate.manifest_digest), version=candidate.version, created=candidate.created
    )
    if origin != stored.origin:
        StateStore(host.sysroot).write_origin(deployment_id, origin)
    return before is None or (before.transport, before.image) != (
        candidate.reference.transport,
        candidate.reference.image,
    )


def _forget_check(host: Host, state: SystemState) -> None:
    if host.booted_id is not None and host.booted_id in state.deployments:
        StateStore(host.sysroot).write_cached_update(host.booted_id, None)


def _outcome(kind: OutcomeKind, candidate: Candidate, *, is_locked: bool = False) -> Outcome:
    return Outcome(
        kind=kind,
        reference=candidate.reference,
        version=candidate.version,
        digest=str(candidate.manifest_digest),
        is_locked=is_locked,
    )


def _with_note(outcome: Outcome, *notes: str) -> Outcome:
    return replace(outcome, notes=[*outcome.notes, *notes])
