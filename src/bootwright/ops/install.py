"""install to-disk: an image becomes a disk that boots, without root, loop device or virtual machine.

::

    plan      resolve the image, look at the target, divide the disk         nothing is written
    pull      into a temporary repository beside the target
    check     bootable, boot loader there, everything fits                   nothing but temporary files is written
    stage     deployment and boot partition; objects get their Merkle trees
    write     partitions in place, table last
    publish   a file is renamed to its name; a device's table is read again

A run that is killed before "publish" leaves no target file, and temporary files that the next run removes. A device
that was being written has no partition table then.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from bootwright.deploy.model import Origin
from bootwright.digest import Algorithm, Digest
from bootwright.errors import SpaceError, UsageError, VerificationError
from bootwright.image.convert import FORMATS, convert
from bootwright.image.device import check_unused, reread_partitions, wipe_signatures
from bootwright.image.disk import DiskWriter, RootContent
from bootwright.image.ext4 import Needs
from bootwright.image.layout import Architecture, Identity, Layout, get_architecture, plan_layout
from bootwright.image.vfat import check_fits
from bootwright.linux import files
from bootwright.linux.process import find_program
from bootwright.oci.manifest import Descriptor
from bootwright.oci.reference import ImageReference
from bootwright.oci.source import ResolvedImage, SourceOptions, open_source
from bootwright.ops.bootable import check_initramfs
from bootwright.ops.install_stage import Stage, StagedImage, find_boot_loader, make_options
from bootwright.ops.install_target import Target, find_target, open_work_directory
from bootwright.progress import Progress, SubTask, Task
from bootwright.repo.images import build_boot_image
from bootwright.repo.imports import pull
from bootwright.repo.repository import Repository
from bootwright.units import format_size

__all__ = ["DEFAULT_ESP_SIZE", "InstallOptions", "InstallPlan", "InstallResult", "install_to_disk", "plan_to_disk"]

DEFAULT_ESP_SIZE = 1 << 30
_DEFAULT_SIZE_MIN = 4 << 30
_GIB = 1 << 30
# What layers grow by on the disk, with room for a second image of the same kind.
_GROWTH_COMPRESSED = 6
_GROWTH_PLAIN = 3
_PROGRAMS = ("mke2fs", "debugfs", "e2fsck", "mkfs.vfat", "mcopy")
_DISK_NAME = "disk.raw"
_STEPS = (
    ("seal", "computing fs-verity"),
    ("root", "writing the root filesystem"),
    ("owners", "setting owners and fs-verity"),
    ("esp", "writing the boot partition"),
    ("check", "checking the root filesystem"),
    ("publish", "completing the disk"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallOptions:
    """What to install where. Sizes in bytes.

    Attributes:
        source: where the image comes from.
        target: path of a file or block device.
        source_options: how to reach the source, and the architecture.
        followed: the reference that the machine will follow; the source when None.
        size: of the disk file; from the image's size when None. A device has its own.
        esp_size: of the EFI system partition.
        root_size: of the root partition; the rest of the disk when None.
        disk_format: ``raw`` or ``qcow2``; files only.
        kargs: kernel arguments after the image's own.
        ssh_keys: content of an authorized_keys file for root.
        is_generic: the disk will boot on other machines: nothing of this one goes into it.
        wipe: overwrite what is there.
        allow_missing_verity: boot also where fs-verity is missing (``composefs=?``).
        algorithm: of the repository.
        epoch: seconds since 1970 for every time that the build itself sets (SOURCE_DATE_EPOCH).
        seed: makes UUIDs reproducible; with ``epoch``, the image is the seed when there is no other.
    """

    source: ImageReference
    target: str
    source_options: SourceOptions
    followed: ImageReference | None = None
    size: int | None = None
    esp_size: int = DEFAULT_ESP_SIZE
    root_size: int | None = None
    disk_format: str = "raw"
    kargs: tuple[str, ...] = ()
    ssh_keys: bytes | None = None
    is_generic: bool = False
    wipe: bool = False
    allow_missing_verity: bool = False
    algorithm: Algorithm = Algorithm.SHA256
    epoch: int | None = None
    seed: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallPlan:
    """What will be done. Nothing was written for it."""

    options: InstallOptions
    target: Target
    layout: Layout
    identity: Identity = field(repr=False)
    architecture: Architecture
    manifest_digest: Digest
    download_size: int
    version: str | None

    @property
    def followed(self) -> ImageReference:
        """The reference that the machine will follow."""
        return self.options.followed or self.options.source


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallResult:
    """What was done; sizes in bytes.

    Attributes:
        deployment_id: of the first deployment.
        root_uuid: of the root filesystem.
        objects: files with fs-verity.
        used: of the root filesystem.
        free: of the root filesystem, for updates.
        kernel_sees_partitions: False when a device's old partitions are held by something, so that the new table
            shows after a reboot.
    """

    deployment_id: str
    root_uuid: str
    objects: int
    used: int
    free: int
    kernel_sees_partitions: bool = True


# ---- plan --------------------------------------------------------------------------------------------------------


def plan_to_disk(options: InstallOptions) -> InstallPlan:
    """Resolve the image and divide the disk; checks everything that can be known without pulling. Writes nothing.

    Raises:
        UsageError: options that do not go together, or a target that must not be overwritten.
        NetworkError: the image cannot be reached.
        ImageError: the image is malformed or for another architecture.
        SpaceError: the disk is too small.
        BusyError: the disk is in use.
        ToolError: a program is missing.
    """
    if options.disk_format not in FORMATS:
        raise UsageError(f"'{options.disk_format}' is no disk format", hint=f"known are {', '.join(FORMATS)}")
    architecture = get_architecture(options.source_options.architecture)
    target = find_target(options.target, wipe=options.wipe)
    if target.device is not None and options.disk_format != "raw":
        raise UsageError(f"'{target.path}' is a disk, which has no format", hint="leave --format away")
    if target.device is not None and options.size is not None:
        raise UsageError(f"'{target.path}' is a disk, which has its size", hint="leave --size away, or use --root-size")
    for program in (*_PROGRAMS, *(("qemu-img",) if options.disk_format == "qcow2" else ())):
        find_program(program)
    with open_source(options.source, options.source_options) as source:
        resolved = source.resolve()
    layers = resolved.manifest.layers
    download = sum(layer.size for layer in layers)
    identity = _make_identity(options, resolved)
    if target.device is not None:
        size, sector_size = target.device.size, target.device.sector_size
    else:
        size, sector_size = options.size or _default_size(options, layers), 512
        size -= size % sector_size
    layout = plan_layout(
        architecture=architecture,
        size=size,
        esp_size=options.esp_size,
        root_size=options.root_size,
        identity=identity,
        sector_size=sector_size,
    )
    if download > layout.root.size:
        raise SpaceError(
            f"disk too small: the root partition of {format_size(layout.root.size)} is smaller than the image,"
            f" which has {format_size(download)} compressed",
            hint=f"--size {_default_size(options, layers) // _GIB}G",
        )
    return InstallPlan(
        options=options,
        target=target,
        layout=layout,
        identity=identity,
        architecture=architecture,
        manifest_digest=resolved.manifest_digest,
        download_size=download,
        version=_version(resolved),
    )


def _default_size(options: InstallOptions, layers: list[Descriptor]) -> int:
    """Size a disk for the image, one more of its kind, and a little: whole GiB, at least 4. Unwritten space is free."""
    grown = sum(
        layer.size * (_GROWTH_PLAIN if layer.media_type.endswith(".tar") else _GROWTH_COMPRESSED) for layer in layers
    )
    wanted = max(options.esp_size + (options.root_size or grown) + _GIB // 2, _DEFAULT_SIZE_MIN)
    return -(-wanted // _GIB) * _GIB


def _make_identity(options: InstallOptions, resolved: ResolvedImage) -> Identity:
    if options.seed is not None:
        return Identity(hashlib.sha256(options.seed.encode()).digest())
    if options.epoch is not None:
        return Identity(hashlib.sha256(f"{resolved.manifest_digest} {options.epoch}".encode()).digest())
    return Identity()


def _version(resolved: ResolvedImage) -> str | None:
    name = "org.opencontainers.image.version"
    labels = resolved.config.labels
    return (resolved.manifest.annotations or {}).get(name) or labels.get(name) or labels.get("version")


# ---- do ----------------------------------------------------------------------------------------------------------


class _Steps:
    """Progress of the part after the pull; the task begins with its first step."""

    def __init__(self, progress: Progress, target: str) -> None:
        self._progress = progress
        self._task = Task(
            task="installing",
            description=f"Writing {target}",
            id=target,
            unit="steps",
            steps_total=len(_STEPS),
            subtasks=[SubTask(subtask=name, description=text, id=name, total=1) for name, text in _STEPS],
        )
        self._running: SubTask | None = None
        self._has_begun = False

    def __enter__(self) -> Callable[[str], None]:
        return self.start

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        if kind is None:
            self._finish()
        if self._has_begun:
            self._progress.end(self._task)

    def start(self, description: str) -> None:
        """Begin a step by its description; the one before is done."""
        if not self._has_begun:
            self._has_begun = True
            self._progress.begin(self._task)
        self._finish()
        self._running = next(sub for sub in self._task.subtasks if sub.description == description)
        self._progress.update(self._task)

    def _finish(self) -> None:
        if self._running is not None:
            self._running.done = 1
            self._task.steps_done += 1
            self._running = None
            self._progress.update(self._task)


def install_to_disk(plan: InstallPlan, *, progress: Progress) -> InstallResult:
    """Do what was planned.

    Raises:
        ImageError: the image cannot boot.
        SpaceError: the disk is too small, or the host's filesystem is full.
        VerificationError: the image is not what its digests say, or changed since the plan.
        NetworkError, BusyError, ToolError, BootError, ConfigError: as they say.
    """
    with open_work_directory(plan.target.work_parent) as work, _usual_umask():
        stage = Stage(work)
        stage.make_directories()
        writer = _make_writer(plan, work)
        with Repository.init(stage.repository, plan.options.algorithm) as repo:
            # The files get their Merkle trees for the new filesystem: the host's must not freeze them before.
            repo.objects.verity = False
            image = _pull(plan, repo, progress)
            _stage_image(plan, stage, image, str(writer.root_uuid))
        with _Steps(progress, plan.options.target) as step:
            # Progress begins when the workers have been forked: it may start a thread.
            stage.seal(plan.options.algorithm, begun=lambda: step("computing fs-verity"))
            used, free = _check_space(plan, stage, writer, work)
            disk = _prepare_disk(plan, work)
            content = RootContent(
                directory="root",
                metadata=stage.metadata,
                sealed={path: one.size for path, one in stage.sealed.items()},
            )
            writer.write(content, stage.esp, step=step)
            step("completing the disk")
            sees = _publish(plan, disk, work)
        return InstallResult(
            deployment_id=image.deployment_id,
            root_uuid=str(writer.root_uuid),
            objects=len(stage.sealed),
            used=used,
            free=free,
            kernel_sees_partitions=sees,
        )


@contextlib.contextmanager
def _usual_umask() -> Iterator[None]:
    """Make staged files 0644 and 0755, which is what most of them have in the end, whatever the caller's umask is."""
    old = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(old)


def _make_writer(plan: InstallPlan, work: str) -> DiskWriter:
    path = _DISK_NAME if plan.target.device is None else plan.target.path
    return DiskWriter(path, plan.layout, plan.identity, work=work, epoch=plan.options.epoch)


def _pull(plan: InstallPlan, repo: Repository, progress: Progress) -> StagedImage:
    options = plan.options
    tag = f"localhost/bootc-{plan.manifest_digest}"
    pulled = pull(repo, options.source, options.source_options, progress=progress, tag=tag)
    if pulled.manifest_digest != plan.manifest_digest:
        raise VerificationError(
            f"the image '{options.source}' changed while it was being installed",
            hint="run the command again, or name the image by its digest",
        )
    boot = build_boot_image(repo, pulled)
    find_boot_loader(boot.tree, plan.architecture, reference=str(options.source))
    if not check_initramfs(repo, boot, reference=str(options.source)):
        progress.note("warning: cannot tell whether the initramfs mounts deployments: unknown compression")
    return StagedImage(repo=repo, reference=options.source, pulled=pulled, boot=boot, architecture=plan.architecture)


def _stage_image(plan: InstallPlan, stage: Stage, image: StagedImage, root_uuid: str) -> None:
    options = plan.options
    kargs = make_options(
        image, root_uuid=root_uuid, kargs=options.kargs, allow_missing_verity=options.allow_missing_verity
    )
    is_portable = options.is_generic or plan.target.device is None
    boot_digest = stage.write_boot_partition(image, kargs, with_random_seed=not is_portable)
    check_fits(stage.esp, plan.layout.esp.size)
    origin = Origin.make(
        plan.followed,
        manifest_digest=str(plan.manifest_digest),
        boot_digest=boot_digest,
        version=image.pulled.version,
        created=image.pulled.created,
        architecture=image.pulled.architecture,
    )
    stage.write_deployment(image, origin, ssh_keys=options.ssh_keys)
    # bootc names the installing kernel here; a reproducible disk can only name the image's.
    kernel = platform.release() if options.epoch is None else image.boot.kernel.version
    stage.write_aleph(image, target=plan.followed, kernel=kernel)


def _check_space(plan: InstallPlan, stage: Stage, writer: DiskWriter, work: str) -> tuple[int, int]:
    """Require that everything fits, on the disk and on the host; returns used and free bytes of the root."""
    capacity = writer.root.measure_capacity()
    needs = Needs()
    stored = {os.path.join(stage.root, os.fsdecode(path[1:])): one.stored for path, one in stage.sealed.items()}
    needs.add_tree(stage.root, known=stored)
    needs.check(capacity, partition_size=plan.layout.root.size)
    if plan.target.device is None:
        status = os.statvfs(work)
        free = status.f_bavail * status.f_frsize
        wanted = needs.with_slack + (needs.size // 2 if plan.options.disk_format != "raw" else 0)
        if wanted > free:
            raise SpaceError(
                f"the disk file needs {format_size(wanted)} in '{plan.target.work_parent}',"
                f" {format_size(free)} are free",
                hint="free some space, or write the file to another filesystem",
            )
    return needs.size, capacity.free_bytes - needs.size


def _prepare_disk(plan: InstallPlan, work: str) -> str:
    """Make the sparse file, or clear a device of what was on it; returns the path to write to."""
    if plan.target.device is not None:
        check_unused(plan.target.path)
        wipe_signatures(plan.target.path, plan.layout)
        return plan.target.path
    path = os.path.join(work, _DISK_NAME)
    with files.translated("could not make the disk file"), open(path, "xb") as file:
        file.truncate(plan.layout.size)
    return path


def _publish(plan: InstallPlan, disk: str, work: str) -> bool:
    if plan.target.device is not None:
        return reread_partitions(plan.target.path)
    if plan.options.disk_format != "raw":
        converted = f"disk.{plan.options.disk_format}"
        convert(_DISK_NAME, converted, plan.options.disk_format, work=work)
        disk = os.path.join(work, converted)
    with files.translated(f"could not complete '{plan.target.path}'"):
        if os.path.lexists(plan.target.path) and not plan.target.replaces:
            raise UsageError(f"the file '{plan.target.path}' has appeared meanwhile", hint="--wipe to replace it")
        files.rename_durably(disk, plan.target.path)
    return True
