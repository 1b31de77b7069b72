"""What is deployed: boot entries, deployments on disk and the staged record, read together and put in their roles.

The boot entries decide: what no entry boots is not deployed. Nothing here fails because of one bad file; what is wrong
is collected in ``problems``.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, field, replace

from bootwright.boot.esp import read_boot_loader
from bootwright.boot.sdboot import EntrySet, EntryStore
from bootwright.deploy.model import is_deployment_id
from bootwright.deploy.store import StateStore, StoredDeployment
from bootwright.errors import BootwrightError
from bootwright.linux import files
from bootwright.ops.host import Host

__all__ = ["StagedRecord", "SystemState", "read_staged_record", "read_state", "remove_staged_record"]


@dataclass(frozen=True, slots=True)
class StagedRecord:
    """``/run/composefs/staged-deployment``: which deployment waits for shutdown.

    Args:
        deployment_id: hex digits.
        is_locked: it was only downloaded, and does not become the default at shutdown.
    """

    deployment_id: str
    is_locked: bool = False

    def to_json(self) -> bytes:
        """Write it as bootc does: canonical JSON."""
        document = {"depl_id": self.deployment_id, "finalization_locked": self.is_locked}
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    def write(self, path: str) -> None:
        """Publish it: the last step of staging."""
        with files.translated("could not record the staged deployment"):
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            files.replace_durably(path, self.to_json())


def read_staged_record(path: str) -> StagedRecord | None:
    """Read the record; None when there is none, or nothing that makes sense."""
    try:
        with open(path, "rb") as file:
            document = json.loads(file.read(1 << 16))
        deployment_id = document["depl_id"]
        is_locked = document.get("finalization_locked", False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not isinstance(deployment_id, str) or not is_deployment_id(deployment_id):
        return None
    return StagedRecord(deployment_id, is_locked is True)


def remove_staged_record(path: str) -> None:
    """Take the record away: the first step of undoing."""
    with (
        files.translated("could not remove the record of the staged deployment"),
        contextlib.suppress(FileNotFoundError),
    ):
        os.unlink(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemState:
    """The deployments of a machine, by role.

    Args:
        booted_id: what runs; None on a machine that is not ours.
        staged: what waits for shutdown.
        entries: what the boot menu shows.
        staged_entries: the next set, when something is staged.
        deployments: those on disk, by id.
        boot_loader: ``systemd``, ``grub-cc``, ``grub``.
        problems: sentences about what could not be read.
        entries_are_known: the boot partition could be read.
    """

    booted_id: str | None
    staged: StagedRecord | None = None
    entries: EntrySet = field(default_factory=EntrySet)
    staged_entries: EntrySet = field(default_factory=EntrySet)
    deployments: dict[str, StoredDeployment] = field(default_factory=dict)
    boot_loader: str = "systemd"
    problems: tuple[str, ...] = ()
    entries_are_known: bool = False

    @property
    def others(self) -> tuple[str, ...]:
        """What the menu offers besides the booted and the staged one, in menu order; the first is the rollback."""
        roles = {self.booted_id, self.staged.deployment_id if self.staged else None}
        return tuple(one for one in self.entries.deployment_ids if one not in roles)

    @property
    def rollback_id(self) -> str | None:
        """Where one can go back to."""
        return self.others[0] if self.others else None

    @property
    def is_rollback_queued(self) -> bool:
        """The menu boots the rollback deployment before the running one."""
        order = self.entries.deployment_ids
        if self.rollback_id is None:
            return False
        return self.booted_id not in order or order.index(self.rollback_id) < order.index(self.booted_id)

    @property
    def next_id(self) -> str | None:
        """What boots next, if nobody chooses something else in the menu."""
        if self.staged is not None and not self.staged.is_locked:
            return self.staged.deployment_id
        order = self.entries.deployment_ids
        return order[0] if order else self.booted_id

    @property
    def tracked_id(self) -> str | None:
        """The deployment whose image reference updates follow: the staged one's, else the running one's."""
        return self.staged.deployment_id if self.staged is not None else self.booted_id

    @property
    def live_ids(self) -> frozenset[str]:
        """Everything that a role or a boot entry needs."""
        ids = {*self.entries.deployment_ids, *self.staged_entries.deployment_ids, self.booted_id}
        if self.staged is not None:
            ids.add(self.staged.deployment_id)
        return frozenset(one for one in ids if one is not None)


def _read_boot(host: Host, boot: EntryStore | None) -> tuple[EntrySet, EntrySet, str]:
    with contextlib.ExitStack() as stack:
        store = boot or stack.enter_context(host.open_boot(writable=False))
        loader = read_boot_loader(store.boot_root, directory=host.efi_variables)
        return store.read_entries(), store.read_staged(), loader


def read_state(host: Host, boot: EntryStore | None = None) -> SystemState:
    """Read everything; never raises for what is damaged or not readable.

    Args:
        host: the machine.
        boot: the boot partition when the caller has it open already.
    """
    if host.booted_id is None:
        return SystemState(booted_id=None)
    problems: list[str] = []
    entries, staged_entries, loader, known = EntrySet(), EntrySet(), "", False
    try:
        entries, staged_entries, loader = _read_boot(host, boot)
        known = True
    except BootwrightError as exc:
        problems.append(exc.message)
        loader = read_boot_loader(None, directory=host.efi_variables)
    problems.extend(broken.reason for broken in (*entries.broken, *staged_entries.broken))
    deployments: dict[str, StoredDeployment] = {}
    try:
        deployments = {one.id: one for one in StateStore(host.sysroot).list()}
    except BootwrightError as exc:
        problems.append(exc.message)
    staged = read_staged_record(host.staged_file)
    if staged is not None and staged.deployment_id not in deployments:
        problems.append(f"the staged deployment '{staged.deployment_id}' is not on disk")
        staged = None
    state = SystemState(
        booted_id=host.booted_id,
        staged=staged,
        entries=entries,
        # Without a record what lies there is the leftover of an interrupted command.
        staged_entries=staged_entries if staged is not None else EntrySet(),
        deployments=deployments,
        boot_loader=loader,
        entries_are_known=known,
    )
    for deployment_id in sorted(state.live_ids):
        stored = deployments.get(deployment_id)
        if stored is None:
            problems.append(f"deployment '{deployment_id}' has a boot entry but no files")
        elif stored.problem is not None:
            problems.append(stored.problem)
    return replace(state, problems=tuple(problems))
