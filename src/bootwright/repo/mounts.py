"""Mounting an image of the repository."""

from __future__ import annotations

import os

from bootwright.digest import VerityDigest
from bootwright.errors import VerificationError
from bootwright.linux import fsverity
from bootwright.linux.composefs import Verity, find_verity_problem, mount_composefs
from bootwright.repo.repository import Repository

__all__ = ["mount_image"]


def mount_image(repo: Repository, image_id: VerityDigest, directory: str) -> bool:
    """Mount an image read-only; the image's own digest is checked first.

    The kernel verifies every object that is opened when the repository has fs-verity (its meta.json has) and so has
    this kernel. Asking for it elsewhere would make every read fail.

    Returns:
        Whether reads are verified.

    Raises:
        RepositoryError: there is no such image.
        VerificationError: the image is damaged.
        PrivilegeError: not root.
        BootwrightError: the kernel cannot mount it.
    """
    objects = os.path.join(repo.path, "objects")
    is_verified = repo.verity and find_verity_problem([objects]) is None
    fd = repo.open_object(image_id)
    try:
        found = fsverity.measure(fd) or fsverity.compute_fd(fd, image_id.algorithm)
        if found != image_id:
            raise VerificationError(f"the image '{image_id}' is damaged", hint="pull the image again to bring it back")
        mount_composefs(
            fd,
            directory,
            base_dirs=[objects],
            source=f"composefs:{image_id}",
            verity=Verity.REQUIRE if is_verified else Verity.OFF,
        )
    finally:
        os.close(fd)
    return is_verified
