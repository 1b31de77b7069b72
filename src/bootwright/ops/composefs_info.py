"""Answers about composefs images in files: entries, dumps, objects, digests; composefs-info's commands."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence

from bootwright.digest import Algorithm, VerityDigest
from bootwright.erofs import dumpfile, listing
from bootwright.erofs.reader import read_image
from bootwright.erofs.tree import Inode
from bootwright.errors import BootwrightError, ImageError, UsageError
from bootwright.linux import files, fsverity

__all__ = ["dump", "find_missing", "list_entries", "list_objects", "measure_file", "open_image"]

_MAGIC = b"\x9a\x62\x78\xd0"


def open_image(path: str) -> Inode:
    """Read an image file.

    Raises:
        ImageError: it is no composefs image, or damaged.
        BootwrightError: it cannot be read.
    """
    with files.translated("could not read the image"), open(path, "rb") as file:
        # Nothing large is read into memory by mistake.
        data = file.read(len(_MAGIC))
        if data == _MAGIC:
            data += file.read()
    try:
        return read_image(data)
    except ImageError as exc:
        raise ImageError(f"'{path}': {exc.message}", hint=exc.hint) from exc


def _check_names(names: Collection[str]) -> list[bytes]:
    for name in names:
        if "/" in name or not name:
            raise UsageError(f"--filter takes a name of the top directory, '{name}' is a path")
    return [os.fsencode(name) for name in names]


def list_entries(path: str, names: Sequence[str] = ()) -> Iterator[bytes]:
    """Return the lines of ``ls``; errors as :func:`open_image`."""
    chosen = _check_names(names)
    return listing.format_list(open_image(path), chosen)


def dump(path: str, names: Sequence[str] = ()) -> Iterator[bytes]:
    """Return the lines of ``dump``; errors as :func:`open_image`."""
    chosen = _check_names(names)
    return dumpfile.write(open_image(path), chosen)


def list_objects(paths: Sequence[str], names: Sequence[str] = ()) -> list[bytes]:
    """Return the sorted object paths of several images; errors as :func:`open_image`."""
    chosen = _check_names(names)
    return sorted({payload for path in paths for payload in listing.list_objects(open_image(path), chosen)})


def find_missing(paths: Sequence[str], base_dir: str, names: Sequence[str] = ()) -> list[bytes]:
    """Return the sorted paths of the objects that are not below a directory.

    Raises:
        UsageError: there is no such directory.
        BootwrightError: as :func:`open_image`.
    """
    if not os.path.isdir(base_dir):
        raise UsageError(f"'{base_dir}' is no directory")
    base = os.fsencode(base_dir)
    return [
        payload
        for payload in list_objects(paths, names)
        if not os.path.lexists(os.path.join(base, payload.lstrip(b"/")))
    ]


def measure_file(path: str, algorithm: Algorithm) -> VerityDigest:
    """Return the fs-verity digest of a file: the kernel's when it has one, else computed.

    Raises:
        BootwrightError: it cannot be read.
    """
    with files.translated("could not read"):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = fsverity.measure(fd)
            if found is not None and found.algorithm is algorithm:
                return found
            return fsverity.compute_fd(fd, algorithm)
        except IsADirectoryError as exc:
            raise BootwrightError(f"'{path}' is a directory") from exc
        finally:
            os.close(fd)
