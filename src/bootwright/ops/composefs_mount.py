"""Mount composefs images with mount.composefs' options."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from bootwright.digest import VerityDigest
from bootwright.errors import UsageError, VerificationError
from bootwright.linux import files, fsverity
from bootwright.linux.composefs import Verity, mount_composefs

__all__ = ["MountOptions", "mount_image", "parse_options"]


@dataclass(slots=True, kw_only=True)
class MountOptions:
    """What ``-o`` says; fields as in :func:`bootwright.linux.composefs.mount_composefs`."""

    base_dirs: list[str] = field(default_factory=list)
    digest: VerityDigest | None = None
    verity: Verity = Verity.OFF
    idmap: str | None = None
    upper: str | None = None
    work: str | None = None
    read_only: bool | None = None


def _split(text: str, separator: str) -> list[str]:
    r"""Split at a separator; a backslash makes the next character an ordinary one and stays before others."""
    parts = [""]
    characters = iter(text)
    for character in characters:
        if character == "\\":
            following = next(characters, "\\")
            parts[-1] += following if following in {separator, "\\"} else "\\" + following
        elif character == separator:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def parse_options(texts: Sequence[str]) -> MountOptions:
    """Parse option lists such as ``basedir=/a:/b,verity``. Pure.

    Raises:
        UsageError: unknown option, missing value, or options that exclude each other.
        VerificationError: ``digest`` is no digest.
    """
    options = MountOptions()
    for option in [option for text in texts for option in _split(text, ",") if option]:
        key, equals, value = option.partition("=")
        takes_value = key in {"basedir", "digest", "idmap", "upperdir", "workdir"}
        if takes_value != bool(equals and value):
            raise UsageError(f"the mount option '{key}' {'needs a value' if takes_value else 'takes no value'}")
        match key:
            case "basedir":
                options.base_dirs += [path for path in _split(value, ":") if path]
            case "digest":
                options.digest = VerityDigest.parse(value.lower())
            case "verity":
                options.verity = Verity.REQUIRE
            case "tryverity":
                options.verity = Verity.TRY if options.verity is Verity.OFF else options.verity
            case "idmap":
                options.idmap = value
            case "upperdir":
                options.upper = value
            case "workdir":
                options.work = value
            case "ro":
                options.read_only = True
            case "rw":
                options.read_only = False
            case _:
                raise UsageError(
                    f"unknown mount option '{key}'",
                    hint="known are basedir, digest, verity, tryverity, idmap, upperdir, workdir, ro, rw",
                )
    return options


def mount_image(image: str, target: str, options: MountOptions) -> None:
    """Mount an image file.

    Raises:
        UsageError: no object directory, or a directory of the options is none.
        VerificationError: the image has another digest or no fs-verity, or verity would make every read fail.
        ImageError: it is no composefs image.
        PrivilegeError: not root.
        BootwrightError: the kernel cannot or does not want to.
    """
    with files.translated("could not open"):
        image_fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    idmap_fd: int | None = None
    try:
        verity = options.verity
        if options.digest is not None:
            _check_digest(image_fd, image, options.digest)
            verity = Verity.REQUIRE
        if options.idmap is not None:
            with files.translated("could not open"):
                idmap_fd = os.open(options.idmap, os.O_RDONLY | os.O_CLOEXEC)
        # Without a writable layer there is nothing to write to.
        read_only = options.upper is None if options.read_only is None else options.read_only
        mount_composefs(
            image_fd,
            target,
            base_dirs=options.base_dirs,
            verity=verity,
            upper=options.upper,
            work=options.work,
            read_only=read_only,
            idmap_fd=idmap_fd,
        )
    finally:
        os.close(image_fd)
        if idmap_fd is not None:
            os.close(idmap_fd)


def _check_digest(image_fd: int, image: str, digest: VerityDigest) -> None:
    # Only the kernel's word counts: a digest computed here says nothing about what the kernel reads a moment later.
    found = fsverity.measure(image_fd)
    if found is None:
        raise VerificationError(
            f"the image '{image}' has no fs-verity, so its digest cannot be required",
            hint="fsverity enable makes it read-only and verified; or mount without digest=",
        )
    if found != digest:
        raise VerificationError(f"the image '{image}' has the digest '{found}', expected '{digest}'")
