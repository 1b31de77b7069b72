"""Go back: undo a staged update, or boot the previous deployment next."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from bootwright.boot.entries import ranked
from bootwright.boot.sdboot import EntryStore
from bootwright.errors import DeploymentError
from bootwright.ops.cleanup import clean_up_quietly
from bootwright.ops.host import Host
from bootwright.ops.stage import drop_staged
from bootwright.ops.state import SystemState, read_state

__all__ = ["RollbackKind", "RollbackOutcome", "rollback"]

_MESSAGE_ID = "26f3b1eb24464d12aa5e7b544a6b5468"  # bootc's


class RollbackKind(enum.Enum):
    """What a rollback did."""

    UNSTAGED = "unstaged"  # the staged update was dropped; the booted deployment stays
    QUEUED = "queued"  # the previous deployment boots next
    REVERTED = "reverted"  # a queued rollback was undone; the booted deployment boots next


@dataclass(frozen=True, slots=True)
class RollbackOutcome:
    """What was done, the deployment that boots next, and a note for people when the clean-up failed."""

    kind: RollbackKind
    next_id: str
    note: str | None = None


def rollback(host: Host) -> RollbackOutcome:
    """Undo what is staged; else queue the previous deployment, or undo that.

    Raises:
        DeploymentError: there is nothing to go back to.
        BootError: the boot entries cannot be changed; nothing was.
        BusyError: another command is at work.
    """
    with host.prepare_for_write("bootwright rollback"), host.open_boot(writable=True) as boot:
        booted_id = host.check_booted()
        state = read_state(host, boot)
        if state.staged is not None:
            drop_staged(host, boot)
            _tell(host, "The staged deployment was dropped", booted_id)
            return RollbackOutcome(RollbackKind.UNSTAGED, booted_id, clean_up_quietly(host, boot))
        target = _choose(state, booted_id)
        _put_first(boot, state, target, booted_id)
        kind = RollbackKind.REVERTED if target == booted_id else RollbackKind.QUEUED
        _tell(host, f"Deployment {target} boots next", target)
        return RollbackOutcome(kind, target)


def _choose(state: SystemState, booted_id: str) -> str:
    if state.rollback_id is None:
        raise DeploymentError(
            "there is no deployment to roll back to", hint="after the next upgrade, this one is kept for that"
        )
    if not state.is_rollback_queued:
        return state.rollback_id
    if state.entries.find(booted_id) is None:
        raise DeploymentError(
            "the booted deployment has no boot entry any more, and the rollback deployment boots next already"
        )
    return booted_id


def _put_first(boot: EntryStore, state: SystemState, target: str, booted_id: str) -> None:
    """Write the menu anew, the target first and the booted deployment second, and swap it in."""
    rank = {target: 0, booted_id: 1} if target != booted_id else {booted_id: 0}
    entries = sorted(state.entries.own, key=lambda entry: rank.get(entry.deployment_id or "", 2))
    boot.check_exchange()
    boot.write_staged(ranked(entries))
    boot.exchange()


def _tell(host: Host, message: str, deployment_id: str) -> None:
    host.journal(message, message_id=_MESSAGE_ID, BOOTWRIGHT_DEPLOYMENT=deployment_id)
