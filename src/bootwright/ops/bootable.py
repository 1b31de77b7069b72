"""What an image must have to boot as a deployment, beyond a kernel: checked before anything is written."""

from __future__ import annotations

from bootwright.boot.initramfs import has_module
from bootwright.errors import ImageError
from bootwright.repo.images import BootImage
from bootwright.repo.repository import Repository

__all__ = ["check_initramfs"]

_INITRAMFS_MAX = 1 << 30


def check_initramfs(repo: Repository, boot: BootImage, *, reference: str) -> bool:
    """Require that the initramfs has the module that mounts deployments.

    Returns:
        False when that cannot be told.

    Raises:
        ImageError: it lacks the module.
    """
    initramfs = boot.kernel.initramfs
    found = has_module(repo.read_inode(initramfs)) if initramfs.size <= _INITRAMFS_MAX else None
    if found is False:
        raise ImageError(
            f"the image '{reference}' is not bootable: its initramfs lacks the module that mounts deployments",
            hint="build its initramfs with bootwright's dracut module or initramfs-tools hook",
        )
    return found is not None
