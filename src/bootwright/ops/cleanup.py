"""Remove what no boot entry needs: deployments, their tags, kernels, and then whatever the repository can spare.

Removal goes in the reverse order of publishing, and only from what was read without a doubt: with an unreadable boot
partition or entry nothing is removed.
"""

from __future__ import annotations

from bootwright.boot.sdboot import EntryStore
from bootwright.deploy.store import StateStore
from bootwright.digest import VerityDigest
from bootwright.errors import BootwrightError
from bootwright.ops.host import Host
from bootwright.ops.state import SystemState, read_state
from bootwright.repo.gc import collect
from bootwright.repo.repository import Repository

__all__ = ["TAG_PREFIX", "clean_up", "clean_up_quietly", "remove_deployments", "remove_leftovers"]

TAG_PREFIX = "localhost/bootc-"


def remove_leftovers(host: Host, boot: EntryStore) -> None:
    """Remove what interrupted commands left: staged entries without a record, temporary directories, lost kernels."""
    state = read_state(host, boot)
    if state.staged is None:
        boot.discard_staged()
    StateStore(host.sysroot).remove_leftovers()
    if state.entries_are_known and host.booted_id is not None:
        boot.remove_unreferenced(keep=[host.booted_id])


def remove_deployments(host: Host, boot: EntryStore) -> SystemState | None:
    """Remove the files of deployments that no boot entry needs.

    Returns:
        What is left; None when that cannot be told, and then nothing was removed.
    """
    state = read_state(host, boot)
    broken = (*state.entries.broken, *state.staged_entries.broken)
    if not state.entries_are_known or any(one.content is None for one in broken):
        return None
    store = StateStore(host.sysroot)
    for deployment_id in state.deployments.keys() - state.live_ids:
        store.remove(deployment_id)
    return state


def clean_up(host: Host, boot: EntryStore) -> None:
    """Remove deployments without a boot entry, and everything that only they needed.

    The repository must not be open in this process: its objects are removed under the exclusive lock.

    Raises:
        BusyError: somebody else uses the repository.
        RepositoryError: what is in use cannot be told; nothing of the repository was removed.
    """
    remove_leftovers(host, boot)
    state = remove_deployments(host, boot)
    if state is None:
        return
    with Repository.open_exclusively(host.repository) as repo:
        _remove_tags(repo, state)
        collect(repo, keep=[VerityDigest.parse(one) for one in sorted(state.live_ids)])


def _remove_tags(repo: Repository, state: SystemState) -> None:
    """Remove the tags of deployments that are gone; other people's tags stay."""
    digests: set[str] = set()
    for deployment_id in state.live_ids:
        stored = state.deployments.get(deployment_id)
        digest = stored.origin.manifest_digest if stored is not None and stored.origin is not None else None
        if digest is None:
            # Which tag belongs to it cannot be told, so none is taken away.
            return
        digests.add(digest)
    for tag in repo.refs.read_tags():
        if tag.startswith(TAG_PREFIX) and tag.removeprefix(TAG_PREFIX) not in digests:
            repo.refs.remove_tag(tag)


def clean_up_quietly(host: Host, boot: EntryStore) -> str | None:
    """Clean up after something that has succeeded; a failure is a sentence, not an error."""
    try:
        clean_up(host, boot)
    except BootwrightError as exc:
        return f"could not clean up: {exc.message}"
    return None
