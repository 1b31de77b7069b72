"""fs-verity metadata behind the end of a file, the way ext4 stores it.

::

    data │ hole to the next multiple of 64 KiB │ Merkle tree, root level first │ descriptor │ … │ 256
         ^ the file's size                       4 KiB blocks                    one block: descriptor first,
                                                                                 its length in the last 4 bytes

That is ext4's own layout (kernel sources, fs/ext4/verity.c): everything behind the size is invisible to readers, and
the flag EXT4_VERITY_FL in the inode tells the kernel that it is there. So a file that is built like this, copied by
``mke2fs -d`` and then given its real size and the flag, *is* a file with fs-verity enabled.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from bootwright.digest import Algorithm, VerityDigest
from bootwright.errors import VerificationError
from bootwright.linux import files, fsverity

__all__ = ["METADATA_ALIGNMENT", "SealedFile", "metadata_of", "metadata_size", "seal", "seal_objects"]

METADATA_ALIGNMENT = 1 << 16
_BLOCK = fsverity.BLOCK_SIZE
_READ_SIZE = 1 << 20


@dataclass(frozen=True, slots=True)
class SealedFile:
    """A file that carries its fs-verity metadata; sizes in bytes.

    Attributes:
        size: of its data, which the inode must say.
        stored: the blocks that data and metadata take.
        digest: what the kernel will measure.
    """

    size: int
    stored: int
    digest: VerityDigest


def metadata_size(size: int, algorithm: Algorithm) -> int:
    """Return how many bytes the metadata of a file of ``size`` bytes takes."""
    total = _BLOCK
    hashes = -(-size // _BLOCK)
    while hashes > 1:
        level = -(-hashes * algorithm.size // _BLOCK)
        total += level * _BLOCK
        hashes = level
    return total


def metadata_of(algorithm: Algorithm, size: int, leaves: bytes) -> tuple[bytes, VerityDigest]:
    """Return the metadata of a file, and its digest, from the hashes of its blocks."""
    levels = fsverity.merkle_levels(algorithm, leaves)
    root = hashlib.new(algorithm.hash_name, levels[-1]).digest() if levels else leaves or bytes(algorithm.size)
    descriptor = fsverity.descriptor(algorithm, size, root)
    digest = VerityDigest(hashlib.new(algorithm.hash_name, descriptor).digest())
    tail = descriptor.ljust(_BLOCK - 4, b"\0") + struct.pack("<I", len(descriptor))
    return b"".join([*reversed(levels), tail]), digest


def seal(path: str, algorithm: Algorithm) -> SealedFile:
    """Append the metadata to a file in place; readers of the file see it behind the data from then on.

    Raises:
        OSError: the file cannot be read or written.
    """
    fd = _open_for_sealing(path)
    try:
        hasher = fsverity.Hasher(algorithm)
        while piece := os.read(fd, _READ_SIZE):
            hasher.update(piece)
        size = hasher.size
        metadata, digest = metadata_of(algorithm, size, hasher.leaves())
        at = -(-size // METADATA_ALIGNMENT) * METADATA_ALIGNMENT
        os.lseek(fd, at, os.SEEK_SET)
        files.write_all(fd, metadata)
    finally:
        os.close(fd)
    return SealedFile(size, -(-size // _BLOCK) * _BLOCK + len(metadata), digest)


def _open_for_sealing(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except PermissionError:
        # The filesystem below the work directory has fs-verity itself and the repository enabled it: such a file never
        # changes again, so a copy takes its place.
        temporary = f"{path}{files.TEMPORARY_PREFIX}"
        source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            target = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            files.clone_or_copy(source, target)
        finally:
            os.close(source)
        os.rename(temporary, path)
        os.lseek(target, 0, os.SEEK_SET)
        return target


def seal_objects(objects: str, prefixes: Iterable[str], algorithm: Algorithm) -> dict[str, SealedFile]:
    """Seal every object below some of the directories of an object store, and check it against its name.

    Args:
        objects: the ``objects`` directory.
        prefixes: names of directories in it, two hex digits each.
        algorithm: of the digests.

    Returns:
        The sealed objects by ``xx/rest``. Called in worker processes: takes and returns plain values.

    Raises:
        VerificationError: an object's content is not what its name says.
        SpaceError: no room for the metadata.
    """
    sealed: dict[str, SealedFile] = {}
    for prefix in prefixes:
        directory = os.path.join(objects, prefix)
        for name in os.listdir(directory):
            with files.translated("could not write the Merkle tree of an object"):
                found = seal(os.path.join(directory, name), algorithm)
            if found.digest.hex != prefix + name:
                raise VerificationError(
                    f"the object '{prefix}{name}' has the digest '{found.digest}'",
                    hint="the disk or memory of this machine may be failing",
                )
            sealed[f"{prefix}/{name}"] = found
    return sealed
