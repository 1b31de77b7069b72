"""Make the staged deployment the one that boots next. Runs at shutdown, as the stop of a systemd unit.

1. merge /etc into the staged deployment   2. exchange the boot entries: the commit point   3. clean up
A crash before 2 boots the old deployment with its own /etc, after it the new one. Doing it again is safe at any point.
"""

from __future__ import annotations

from bootwright.boot.sdboot import EntryStore
from bootwright.deploy.finalize import EtcMerge
from bootwright.deploy.store import StateStore
from bootwright.digest import VerityDigest
from bootwright.errors import BootwrightError, DeploymentError
from bootwright.ops.cleanup import remove_deployments, remove_leftovers
from bootwright.ops.host import Environment, Host
from bootwright.ops.state import SystemState, read_staged_record, read_state, remove_staged_record
from bootwright.repo.images import read_tree
from bootwright.repo.repository import Repository

__all__ = ["finalize_staged"]

_DONE_MESSAGE_ID = "5b6f6a1f0c5d4d0e9a1c7f2e8b3d4a60"
_FAILED_MESSAGE_ID = "c2a7d9e41b8f4f5a8d306e7b9c1f2a54"
# Another command may be about to end; systemd gives the unit five minutes.
_LOCK_TIMEOUT_S = 60


def finalize_staged(host: Host) -> str | None:
    """Finalise what is staged.

    Returns:
        The deployment that boots next now; None when nothing is staged, or it was only downloaded.

    Raises:
        DeploymentError: /etc conflicts, or the staged entries are not those of the record; nothing was changed.
        BootError: the entries cannot be exchanged; nothing was changed but the staged deployment's /etc.
    """
    # At every shutdown, also where nothing was ever staged or the machine is not ours.
    record = read_staged_record(host.staged_file)
    if record is None or record.is_locked or host.environment is not Environment.BOOTED:
        return None
    try:
        with (
            host.prepare_for_write("bootwright composefs-finalize-staged", timeout_s=_LOCK_TIMEOUT_S),
            host.open_boot(writable=True) as boot,
        ):
            state = read_state(host, boot)
            if state.staged is None or state.staged.is_locked:
                return None
            _finalize(host, boot, state, state.staged.deployment_id)
            return state.staged.deployment_id
    except BootwrightError as exc:
        host.journal(
            f"The staged deployment was not finalised: {exc.message}", message_id=_FAILED_MESSAGE_ID, priority=3
        )
        raise


def _finalize(host: Host, boot: EntryStore, state: SystemState, deployment_id: str) -> None:
    if state.entries.deployment_ids[:1] != (deployment_id,):
        if state.staged_entries.deployment_ids[:1] != (deployment_id,):
            raise DeploymentError(
                f"the staged boot entries are not those of deployment '{deployment_id}'",
                hint="run bootwright upgrade again",
            )
        _merge_etc(host, deployment_id)
        boot.exchange()
    remove_staged_record(host.staged_file)
    remove_leftovers(host, boot)
    remove_deployments(host, boot)
    host.journal(
        f"Finalised deployment {deployment_id}: it boots next",
        message_id=_DONE_MESSAGE_ID,
        BOOTWRIGHT_DEPLOYMENT=deployment_id,
    )


def _merge_etc(host: Host, deployment_id: str) -> None:
    store = StateStore(host.sysroot)
    booted_id = host.check_booted()
    with Repository.open(host.repository, writable=False, locked=True) as repo:
        EtcMerge(
            repo=repo,
            algorithm=repo.algorithm,
            booted=read_tree(repo, VerityDigest.parse(booted_id)),
            current=host.current_etc(store.path(booted_id)),
            new=read_tree(repo, VerityDigest.parse(deployment_id)),
        ).run(store.get(deployment_id))
