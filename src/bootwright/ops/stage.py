"""Stage an image: make it a deployment that takes over at the next shutdown.

Order of checks and writes; nothing of the system changes before all checks have passed::

    source       manifest and config: exists, for this architecture
    pull         space, objects, streams, images (repo.imports)
    checks       bootable, initramfs, verity, kernel arguments, /etc conflicts, room for the kernel, exchange of entries
    unit         the service that finalises at shutdown runs
    writes       kernel → deployment (etc, origin) → tag → entries.staged → /run/composefs/staged-deployment

A crash before the last write leaves an unchanged system and leftovers that the next command removes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from bootwright.boot.entries import BootEntry, ranked
from bootwright.boot.image_kargs import read_image_kargs, read_os_release
from bootwright.boot.kargs import Kargs
from bootwright.boot.sdboot import BootFiles, EntryStore, boot_digest
from bootwright.deploy.finalize import EtcMerge, check_conflicts
from bootwright.deploy.model import Origin
from bootwright.deploy.seed import write_tree
from bootwright.deploy.store import StateStore
from bootwright.digest import VerityDigest
from bootwright.erofs.tree import Inode, lookup
from bootwright.errors import DeploymentError, ImageError
from bootwright.oci.reference import ImageReference
from bootwright.oci.source import SourceOptions
from bootwright.ops.bootable import check_initramfs
from bootwright.ops.candidate import Candidate
from bootwright.ops.cleanup import TAG_PREFIX, remove_leftovers
from bootwright.ops.host import FINALIZE_UNIT, Host
from bootwright.ops.state import StagedRecord, SystemState, read_state, remove_staged_record
from bootwright.progress import Progress, SubTask, Task
from bootwright.repo.images import BootImage, PulledImage, build_boot_image, read_tree
from bootwright.repo.imports import pull
from bootwright.repo.refs import manifest_stream
from bootwright.repo.repository import Repository

__all__ = ["Stager", "drop_staged"]

# The new deployment and the running one. A later "keep" setting and pins make it more.
_KEPT = 2
_STAGE_MESSAGE_ID = "8f7a2b1c3d4e5f6a7b8c9d0e1f2a3b4c"  # bootc's

_STEPS = {
    "checks": "checking the image",
    "kernel": "writing the kernel",
    "deployment": "writing /etc",
    "entries": "writing the boot entries",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """Everything that was found out before the first write."""

    boot_image: BootImage
    pulled: PulledImage
    reference: ImageReference
    kargs: Kargs
    os_release: dict[str, str]
    boot_digest: str
    kernel_size: int


def drop_staged(host: Host, boot: EntryStore) -> None:
    """Undo a staging: first the record, then the entries; the rest is clean-up."""
    remove_staged_record(host.staged_file)
    boot.discard_staged()


class Stager:
    """Stages images on a machine whose lock is held.

    Args:
        host: the machine.
        boot: its boot partition, writable.
        options: how to reach sources.
        progress: told what happens.
    """

    def __init__(self, host: Host, boot: EntryStore, options: SourceOptions, progress: Progress) -> None:
        self._host = host
        self._boot = boot
        self._options = options
        self._progress = progress
        self._store = StateStore(host.sysroot)
        self._booted_id = host.check_booted()

    def pull(self, repo: Repository, candidate: Candidate) -> tuple[PulledImage, BootImage]:
        """Bring the candidate's image in and make its bootable form. Untagged, so it goes when staging fails.

        Raises:
            DeploymentError: the system requires fs-verity, and the repository's filesystem has none.
            NetworkError, VerificationError, ImageError, SpaceError: see :func:`bootwright.repo.imports.pull`.
        """
        booted_kargs = self._booted_kargs(read_state(self._host, self._boot))
        if not booted_kargs.is_verity_optional and not repo.verity:
            raise DeploymentError(
                f"the system requires fs-verity, but the filesystem of '{repo.path}' cannot enable it",
                hint="enable the filesystem's verity feature (tune2fs -O verity), or boot with composefs=?ID",
            )
        pulled = pull(repo, candidate.pinned, self._options, progress=self._progress, tag=None)
        if pulled.manifest_digest != candidate.manifest_digest:
            raise ImageError(
                f"the image '{candidate.reference}' was replaced while it was fetched", hint="run the command again"
            )
        # Messages name what was asked for, not the digest it led to.
        return pulled, build_boot_image(repo, replace(pulled, reference=str(candidate.reference)))

    def tag(self, repo: Repository, pulled: PulledImage) -> None:
        """Keep an image in the repository for its deployment."""
        repo.refs.write_tag(f"{TAG_PREFIX}{pulled.manifest_digest}", manifest_stream(pulled.manifest_digest))

    def stage(
        self,
        repo: Repository,
        reference: ImageReference,
        pulled: PulledImage,
        boot_image: BootImage,
        *,
        is_locked: bool,
    ) -> None:
        """Make the image the staged deployment, in place of an earlier staged one.

        Args:
            repo: opened for writing.
            reference: what updates follow from then on.
            pulled: the image.
            boot_image: its bootable form.
            is_locked: it does not take over at shutdown until it is unlocked.

        Raises:
            ImageError: it cannot boot here.
            DeploymentError: /etc conflicts.
            SpaceError: the boot partition is too small.
            BootError: the boot entries cannot be changed in one step.
            ToolError: the service that finalises at shutdown does not start.
        """
        with self._task(pulled) as step:
            step("checks")
            state = read_state(self._host, self._boot)
            plan = self._check(repo, state, reference, pulled, boot_image)
            self._host.start_unit(FINALIZE_UNIT)
            drop_staged(self._host, self._boot)
            try:
                step("kernel")
                boot_files = self._write_kernel(repo, plan)
                step("deployment")
                self._write_deployment(repo, state, plan)
                self.tag(repo, pulled)
                step("entries")
                self._write_entries(state, plan, boot_files)
                StagedRecord(boot_image.id.hex, is_locked).write(self._host.staged_file)
            except BaseException:
                self._undo(state, boot_image.id.hex)
                raise
        self._host.journal(
            f"Staged '{reference}' ({pulled.version or pulled.manifest_digest}) for the next boot",
            message_id=_STAGE_MESSAGE_ID,
            BOOTC_IMAGE_REFERENCE=reference.image,
            BOOTC_IMAGE_DIGEST=str(pulled.manifest_digest),
            BOOTWRIGHT_DEPLOYMENT=boot_image.id.hex,
        )

    @contextmanager
    def _task(self, pulled: PulledImage) -> Iterator[_Step]:
        task = Task(
            task="staging",
            description="Staging the image",
            id=str(pulled.manifest_digest),
            unit="steps",
            steps_total=len(_STEPS),
            subtasks=[SubTask(subtask=name, description=text, id=name, total=1) for name, text in _STEPS.items()],
        )
        step = _Step(self._progress, task)
        self._progress.begin(task)
        try:
            yield step
            step.finish()
        finally:
            self._progress.end(task)

    # ---- checks: nothing is written ----------------------------------------------------------------------------

    def _check(
        self,
        repo: Repository,
        state: SystemState,
        reference: ImageReference,
        pulled: PulledImage,
        boot_image: BootImage,
    ) -> _Plan:
        if not check_initramfs(repo, boot_image, reference=str(reference)):
            self._progress.note("warning: cannot tell whether the initramfs mounts deployments: unknown compression")
        booted_kargs = self._booted_kargs(state)
        booted_tree = read_tree(repo, VerityDigest.parse(self._booted_id))
        architecture = self._host.rust_architecture
        kargs = booted_kargs.updated(
            old=read_image_kargs(repo, booted_tree, architecture=architecture),
            new=read_image_kargs(repo, boot_image.tree, architecture=architecture),
        ).with_composefs(boot_image.id.hex, verity_optional=booted_kargs.is_verity_optional)
        kargs.check_length()
        self._check_etc(repo, booted_tree, boot_image.tree)
        kernel = boot_image.kernel
        plan = _Plan(
            boot_image=boot_image,
            pulled=pulled,
            reference=reference,
            kargs=kargs,
            os_release=read_os_release(repo, boot_image.tree),
            boot_digest=boot_digest(repo.iter_inode(kernel.vmlinuz), repo.iter_inode(kernel.initramfs)),
            kernel_size=kernel.vmlinuz.size + kernel.initramfs.size,
        )
        remove_leftovers(self._host, self._boot)
        if self._boot.find_kernel(plan.boot_digest, plan.kernel_size) is None:
            self._boot.check_space(plan.kernel_size)
        self._boot.check_exchange()
        return plan

    def _booted_kargs(self, state: SystemState) -> Kargs:
        """Return the arguments to start from: the boot entry's, else the running kernel's."""
        booted = state.entries.find(self._booted_id)
        if booted is not None and booted.options:
            return booted.kargs
        # Without what boot loaders add by themselves.
        return self._host.kargs.delete("BOOT_IMAGE").delete("initrd")

    def _check_etc(self, repo: Repository, booted_tree: Inode, new_tree: Inode) -> None:
        merge = EtcMerge(
            repo=repo,
            algorithm=repo.algorithm,
            booted=booted_tree,
            current=self._host.current_etc(self._store.path(self._booted_id)),
            new=new_tree,
        )
        check_conflicts(merge.plan())

    # ---- writes --------------------------------------------------------------------------------------------------

    def _write_kernel(self, repo: Repository, plan: _Plan) -> BootFiles:
        shared = self._boot.find_kernel(plan.boot_digest, plan.kernel_size)
        if shared is not None:
            return BootFiles(shared, plan.boot_digest, is_shared=True)
        kernel = plan.boot_image.kernel
        return self._boot.install_kernel(
            plan.boot_image.id.hex, repo.iter_inode(kernel.vmlinuz), repo.iter_inode(kernel.initramfs)
        )

    def _write_deployment(self, repo: Repository, state: SystemState, plan: _Plan) -> None:
        pulled, deployment_id = plan.pulled, plan.boot_image.id.hex
        origin = Origin.make(
            plan.reference,
            manifest_digest=str(pulled.manifest_digest),
            boot_digest=plan.boot_digest,
            version=pulled.version,
            created=pulled.created,
            architecture=pulled.architecture,
        )
        if deployment_id in state.entries.deployment_ids and deployment_id in state.deployments:
            # Going forward to what is kept for going back: its /etc stays until it is merged anew at shutdown.
            self._store.write_origin(deployment_id, origin)
            return
        etc = lookup(plan.boot_image.tree, b"/etc")

        def fill(directory: str) -> None:
            if etc is not None:
                write_tree(repo, etc, f"{directory}/etc", set_owner=True)

        self._store.create(deployment_id, origin, fill=fill)

    def _write_entries(self, state: SystemState, plan: _Plan, boot_files: BootFiles) -> None:
        deployment_id = plan.boot_image.id.hex
        new = BootEntry.for_deployment(
            deployment_id,
            directory=boot_files.directory,
            os_release=plan.os_release,
            version=plan.pulled.version,
            options=plan.kargs,
        )
        kept = [one for one in (self._booted_id, *state.others) if one != deployment_id][: _KEPT - 1]
        entries = [entry for one in kept if (entry := state.entries.find(one)) is not None]
        self._boot.write_staged(ranked([new, *entries]))

    def _undo(self, state: SystemState, deployment_id: str) -> None:
        """Take back the writes after a failure. What fails here, too, is left to the next command."""
        drop_staged(self._host, self._boot)
        if deployment_id not in {*state.entries.deployment_ids, self._booted_id}:
            self._store.remove(deployment_id)
        remove_leftovers(self._host, self._boot)


class _Step:
    """Moves a task of steps forward: calling it with a step's name says that the ones before are done."""

    def __init__(self, progress: Progress, task: Task) -> None:
        self._progress = progress
        self._task = task

    def __call__(self, name: str) -> None:
        self._set(next(at for at, sub in enumerate(self._task.subtasks) if sub.id == name))

    def finish(self) -> None:
        self._set(len(self._task.subtasks))

    def _set(self, done: int) -> None:
        self._task.steps_done = done
        for at, subtask in enumerate(self._task.subtasks):
            subtask.done = int(at < done)
        self._progress.update(self._task)
