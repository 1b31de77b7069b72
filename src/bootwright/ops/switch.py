"""Track another image, and stage it."""

from __future__ import annotations

from bootwright.errors import DeploymentError
from bootwright.oci.reference import ImageReference
from bootwright.ops.candidate import resolve_candidate
from bootwright.ops.host import Host
from bootwright.ops.state import read_state
from bootwright.ops.upgrade import Outcome, OutcomeKind, get_tracked, source_options, take_over
from bootwright.progress import Progress

__all__ = ["switch"]


def switch(
    host: Host,
    reference: ImageReference,
    progress: Progress,
    *,
    tls_verify: bool = True,
    auth_file: str | None = None,
) -> Outcome:
    """Make another reference the tracked one and stage what it leads to.

    The reference that is tracked already changes nothing, as with bootc: ``upgrade`` is for that. The same content
    under another name changes the tracked reference alone.

    Raises:
        BootwrightError: see :func:`bootwright.ops.upgrade.take_over`.
    """
    with host.prepare_for_write("bootwright switch"), host.open_boot(writable=True) as boot:
        state = read_state(host, boot)
        try:
            is_same = get_tracked(state) == reference
        except DeploymentError:
            # What is tracked now is not known: switching is how that is mended.
            is_same = False
        if is_same:
            is_locked = state.staged is not None and state.staged.is_locked
            kind = OutcomeKind.UNCHANGED if state.staged is None else OutcomeKind.STAGED_ALREADY
            return Outcome(
                kind=kind, reference=reference, is_locked=is_locked, notes=["Image specification is unchanged."]
            )
        options = source_options(host, tls_verify=tls_verify, auth_file=auth_file)
        return take_over(host, boot, resolve_candidate(reference, options), options, progress)
