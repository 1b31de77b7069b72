"""bootwright install: put an image on a disk."""

from __future__ import annotations

import os
import sys

import click

from bootwright.cli.interrupt import interrupt_on_termination
from bootwright.cli.options import ARCH, AUTHFILE, PROGRESS_FD, QUIET, TLS_VERIFY
from bootwright.cli.output import say
from bootwright.cli.progress import open_progress
from bootwright.digest import Algorithm
from bootwright.errors import UsageError
from bootwright.linux.architecture import oci_name
from bootwright.oci.reference import ImageReference, Transport
from bootwright.oci.source import SourceOptions
from bootwright.ops.install import (
    DEFAULT_ESP_SIZE,
    InstallOptions,
    InstallPlan,
    InstallResult,
    install_to_disk,
    plan_to_disk,
)
from bootwright.units import format_size, parse_size

__all__ = ["install"]

_SSH_KEYS_MAX = 64 << 10
_FILESYSTEMS_LATER = ("xfs", "btrfs")


@click.group()
def install() -> None:
    """Install an image on a disk or into a disk file."""


@install.command("to-disk")
@click.option("--source-imgref", required=True, metavar="REF", help="Image to install: docker://… or oci:DIR:TAG.")
@click.option("--target-imgref", metavar="REF", help="Image that the machine will follow.  [default: the source]")
@click.option(
    "--target-transport",
    type=click.Choice(["registry", "oci"]),
    default="registry",
    show_default=True,
    help="Where --target-imgref is when it does not say so itself.",
)
@click.option("--size", metavar="SIZE", help="Size of the disk file.  [default: for the image and one more]")
@click.option(
    "--esp-size",
    metavar="SIZE",
    default=f"{DEFAULT_ESP_SIZE >> 20}M",
    show_default=True,
    help="Size of the EFI system partition, which holds the kernels.",
)
@click.option("--root-size", metavar="SIZE", help="Size of the root partition.  [default: the rest of the disk]")
@click.option(
    "--format",
    "disk_format",
    type=click.Choice(["raw", "qcow2"]),
    default="raw",
    show_default=True,
    help="Of the disk file.",
)
@click.option("--filesystem", default="ext4", show_default=True, help="Root filesystem; ext4 is the only one so far.")
@click.option("--karg", "kargs", multiple=True, metavar="KARG", help="Kernel argument, after the image's own.")
@click.option(
    "--root-ssh-authorized-keys",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="Keys that may log in as root.",
)
@click.option("--generic-image", is_flag=True, help="The disk will boot elsewhere: put nothing of this machine in it.")
@click.option("--via-loopback", is_flag=True, help="Accepted for bootc's sake: a file needs no loop device here.")
@click.option("--wipe", is_flag=True, help="Overwrite the file, or the disk with all that is on it.")
@click.option("--allow-missing-verity", is_flag=True, help="Boot also where fs-verity is missing.")
@click.option(
    "--digest-algorithm",
    type=click.Choice(["sha256", "sha512"]),
    default="sha256",
    show_default=True,
    help="fs-verity digests in the new repository; bootc's are sha512.",
)
@TLS_VERIFY
@AUTHFILE
@ARCH
@click.option("--seed", metavar="TEXT", help="Derive all UUIDs of the disk from this text.")
@click.option("--yes", is_flag=True, help="Do not ask before a disk is overwritten.")
@click.option("--dry-run", is_flag=True, help="Show the plan and stop.")
@QUIET
@PROGRESS_FD
@click.argument("target")
def to_disk(**given: object) -> None:
    """Make a bootable disk: TARGET is a file, which is created, or a block device.

    A file needs neither root nor a loop device. It appears when it is complete: raw and sparse, or as --format says.
    fs-verity is enabled on every object in it, also where this machine has none.
    """
    options = _parse_options(given)
    quiet, progress_fd = bool(given["quiet"]), given["progress_fd"]
    plan = plan_to_disk(options)
    if not quiet or given["dry_run"]:
        _show_plan(plan)
    if given["dry_run"]:
        return
    if plan.target.device is not None and not (given["yes"] or options.wipe):
        _confirm(plan.target.path)
    interrupt_on_termination()
    with open_progress(quiet=quiet, fd=progress_fd if isinstance(progress_fd, int) else None) as progress:
        result = install_to_disk(plan, progress=progress)
    if not quiet:
        _show_result(plan, result)


def _parse_options(given: dict[str, object]) -> InstallOptions:
    def text(name: str) -> str | None:
        value = given[name]
        return str(value) if value is not None else None

    def size(name: str) -> int | None:
        value = text(name)
        return None if value is None else parse_size(value)

    filesystem = text("filesystem")
    if filesystem != "ext4":
        why = " yet" if filesystem in _FILESYSTEMS_LATER else ""
        raise UsageError(f"the root filesystem '{filesystem}' is not supported{why}", hint="--filesystem ext4")
    source = ImageReference.parse(str(given["source_imgref"]), default_transport="registry")
    transport: Transport = "oci" if given["target_transport"] == "oci" else "registry"
    followed = text("target_imgref")
    keys = text("root_ssh_authorized_keys")
    source_options = SourceOptions(
        tls_verify=bool(given["tls_verify"]),
        auth_file=text("authfile"),
        # The kernel's names are taken, too.
        architecture=oci_name(text("arch")),
    )
    kargs = given["kargs"]
    return InstallOptions(
        source=source,
        target=str(given["target"]),
        source_options=source_options,
        followed=ImageReference.parse(followed, default_transport=transport) if followed is not None else None,
        size=size("size"),
        esp_size=size("esp_size") or DEFAULT_ESP_SIZE,
        root_size=size("root_size"),
        disk_format=str(given["disk_format"]),
        kargs=tuple(str(one) for one in kargs) if isinstance(kargs, tuple) else (),
        ssh_keys=None if keys is None else _read_ssh_keys(keys),
        is_generic=bool(given["generic_image"]) or bool(given["via_loopback"]),
        wipe=bool(given["wipe"]),
        allow_missing_verity=bool(given["allow_missing_verity"]),
        algorithm=Algorithm[str(given["digest_algorithm"]).upper()],
        epoch=_read_epoch(),
        seed=text("seed"),
    )


def _read_ssh_keys(path: str) -> bytes:
    with open(path, "rb") as file:
        content = file.read(_SSH_KEYS_MAX + 1)
    if len(content) > _SSH_KEYS_MAX or b"\0" in content:
        raise UsageError(f"'{path}' is no authorized_keys file")
    if not content.strip():
        raise UsageError(f"'{path}' holds no key", hint="ssh-keygen -t ed25519 makes one; give its .pub file")
    return content


def _read_epoch() -> int | None:
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if text is None:
        return None
    if not text.isdecimal():
        raise UsageError(f"SOURCE_DATE_EPOCH is '{text}', not a number of seconds")
    return int(text)


def _show_plan(plan: InstallPlan) -> None:
    version = f", version {plan.version}" if plan.version else ""
    say(f"Image    {plan.options.source}{version}, {format_size(plan.download_size)} to fetch")
    say(f"         {plan.manifest_digest}")
    say(f"Follows  {plan.followed}")
    say(f"Target   {plan.target.describe()}, {format_size(plan.layout.size)} {plan.options.disk_format}")
    kinds = {"EFI-SYSTEM": "FAT32, boot loader and kernels", "root": "ext4, repository and deployments, fs-verity"}
    for number, partition in enumerate(plan.layout.partitions, 1):
        size = format_size(partition.size)
        say(f"  {number}  {partition.name:<10}  {size:>8}  {kinds[partition.name]}")


def _confirm(path: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError(f"everything on '{path}' would be lost, and nobody can be asked", hint="--yes to go on")
    if not click.confirm(f"Everything on '{path}' will be lost. Go on?", err=True):
        raise click.Abort


def _show_result(plan: InstallPlan, result: InstallResult) -> None:
    say(
        f"Installed deployment {result.deployment_id[:16]}… on '{plan.options.target}': {result.objects} files with"
        f" fs-verity, {format_size(result.used)} used, {format_size(result.free)} free for updates"
    )
    if plan.followed.transport == "oci":
        say(f"note: the machine follows '{plan.followed}'; --target-imgref names an image that it can reach")
    if not result.kernel_sees_partitions:
        say(f"note: the kernel still shows the old partitions of '{plan.target.path}' until the machine is rebooted")
    if plan.target.device is None:
        say(f"  bootwright vm run {plan.options.target}")
