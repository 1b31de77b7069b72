"""Make a composefs image of a directory or of a dump, as mkcomposefs does.

Order of what is written: objects into the digest store, one syncfs, then the image in one step. A failure leaves the
old image and at most objects that the next run finds.
"""

from __future__ import annotations

import contextlib
import gc
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from bootwright.digest import Algorithm, VerityDigest
from bootwright.erofs import dumpfile
from bootwright.erofs.tree import Inode
from bootwright.erofs.writer import write_image
from bootwright.errors import UsageError
from bootwright.linux import files, fsverity

__all__ = ["ImageOptions", "choose_versions", "make_image", "read_dump", "write_output"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """What kind of image.

    Args:
        min_version: lowest format version.
        max_version: highest; used when the tree has whiteouts.
        algorithm: of the digests of objects and image.
    """

    min_version: int = 0
    max_version: int = 1
    algorithm: Algorithm = field(default=Algorithm.SHA256)


def choose_versions(minimum: int | None, maximum: int | None) -> tuple[int, int]:
    """Return the range of format versions that two command-line options mean, as mkcomposefs understands them.

    Raises:
        UsageError: there is no such version.
    """
    if minimum is None and maximum is None:
        return 0, 1
    low = minimum or 0
    high = max(maximum or 0, low)
    if not 0 <= low <= high <= 1:
        wrong = low if not 0 <= low <= 1 else high
        raise UsageError(f"there is no format version {wrong}", hint="the format versions are 0 and 1")
    return low, high


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Keep the cycle collector from walking hundreds of thousands of new objects, none of which is garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def read_dump(source: str) -> Inode:
    """Read a dump file, ``-`` for standard input.

    Raises:
        ImageError: a line is wrong.
        BootwrightError: the file cannot be read.
    """
    with files.translated("could not read"):
        if source == "-":
            data = sys.stdin.buffer.read()
        else:
            with open(source, "rb") as file:
                data = file.read()
    with _without_collector():
        return dumpfile.parse(data)


def make_image(root: Inode, options: ImageOptions) -> tuple[bytes, VerityDigest]:
    """Return the image of a tree and its fs-verity digest.

    Raises:
        ImageError: something in the tree cannot be stored.
        UsageError: unknown format version.
    """
    with _without_collector():
        image = write_image(
            root, min_version=options.min_version, max_version=options.max_version, algorithm=options.algorithm
        )
    return image, fsverity.compute(image, options.algorithm)


def write_output(path: str, image: bytes) -> None:
    """Write an image to a file in one step, or to standard output (``-``), which must be no terminal.

    A symlink is followed; a pipe or device is written to as it is.

    Raises:
        UsageError: standard output is a terminal.
        BootwrightError: it cannot be written.
    """
    if path == "-":
        if sys.stdout.isatty():
            raise UsageError("an image is not written to a terminal", hint="name a file, or redirect the output")
        sys.stdout.buffer.write(image)
        sys.stdout.buffer.flush()
        return
    with files.translated("could not write the image"):
        try:
            is_file = stat.S_ISREG(os.stat(path).st_mode)
        except FileNotFoundError:
            is_file = True
        if is_file:
            files.replace_durably(os.path.realpath(path), image)
            return
        with open(path, "wb") as file:
            file.write(image)
