"""fs-verity: compute a file's digest, or have the kernel enable and measure it.

Format (kernel documentation, fsverity.rst): the file is cut into 4096-byte blocks, the last one zero-padded, each
hashed; the hashes are concatenated, cut and hashed again until one is left, the root hash. The digest is the hash of
a 256-byte descriptor that holds version 1, the algorithm, log2 of the block size, the file size and the root hash.
An empty file has a root hash of zero bytes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import struct
import time
from collections.abc import Iterable

from bootwright.digest import Algorithm, VerityDigest
from bootwright.errors import VerificationError

__all__ = [
    "BLOCK_SIZE",
    "Hasher",
    "compute",
    "compute_fd",
    "descriptor",
    "enable",
    "is_supported",
    "measure",
    "merkle_levels",
]

BLOCK_SIZE = 4096
_FS_IOC_ENABLE_VERITY = 0x40806685  # _IOW('f', 133, 128 bytes)
_FS_IOC_MEASURE_VERITY = 0xC0046686  # _IOWR('f', 134, 4 bytes)
_READ_SIZE = 1 << 20
_NO_VERITY = (errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS)


def descriptor(algorithm: Algorithm, size: int, root_hash: bytes) -> bytes:
    """Return the 256-byte fs-verity descriptor, without salt and signature."""
    return struct.pack("<BBBBIQ64s176x", 1, algorithm.value, 12, 0, 0, size, root_hash)


def _block_hashes(data: bytes | bytearray | memoryview, hash_name: str) -> bytes:
    """Hash every 4096-byte block, zero-padding the last; the concatenated hashes."""
    make = hashlib.sha256 if hash_name == "sha256" else hashlib.sha512
    size = len(data)
    if size <= BLOCK_SIZE:
        return make(bytes(data).ljust(BLOCK_SIZE, b"\0")).digest()
    view = memoryview(data)
    whole = size - size % BLOCK_SIZE
    hashes = [make(view[at : at + BLOCK_SIZE]).digest() for at in range(0, whole, BLOCK_SIZE)]
    if whole != size:
        hashes.append(make(bytes(view[whole:]).ljust(BLOCK_SIZE, b"\0")).digest())
    return b"".join(hashes)


class Hasher:
    """Computes a digest from data that arrives in pieces of any size.

    Memory is one block and the leaf hashes (1/128 of the data for sha256). The leaf hashes are kept, so that a Merkle
    tree can be written from the same pass (:func:`merkle_levels`).
    """

    __slots__ = ("_algorithm", "_leaves", "_name", "_rest", "size")

    def __init__(self, algorithm: Algorithm) -> None:
        self._algorithm = algorithm
        self._name = algorithm.hash_name
        self._leaves: list[bytes] = []
        self._rest = b""
        self.size = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Add the next bytes of the file."""
        self.size += len(data)
        if self._rest:
            need = BLOCK_SIZE - len(self._rest)
            self._rest += bytes(data[:need])
            if len(self._rest) < BLOCK_SIZE:
                return
            self._leaves.append(_block_hashes(self._rest, self._name))
            self._rest = b""
            data = memoryview(data)[need:]
        whole = len(data) - len(data) % BLOCK_SIZE
        if whole:
            self._leaves.append(_block_hashes(memoryview(data)[:whole], self._name))
        if whole != len(data):
            self._rest = bytes(memoryview(data)[whole:])

    def leaves(self) -> bytes:
        """Return the concatenated leaf hashes; the last block is taken as the end of the file."""
        tail = [_block_hashes(self._rest, self._name)] if self._rest else []
        return b"".join([*self._leaves, *tail])

    def digest(self) -> VerityDigest:
        """Return the digest of everything added so far."""
        return _finish(self._algorithm, self.size, self.leaves())


def _finish(algorithm: Algorithm, size: int, leaves: bytes) -> VerityDigest:
    level = leaves or bytes(algorithm.size)
    while len(level) > algorithm.size:
        level = _block_hashes(level, algorithm.hash_name)
    return VerityDigest(hashlib.new(algorithm.hash_name, descriptor(algorithm, size, level)).digest())


def merkle_levels(algorithm: Algorithm, leaves: bytes) -> list[bytes]:
    """Return the stored levels of a Merkle tree, leaf hashes first, each zero-padded to whole blocks.

    A file of at most one block stores none: its root hash is the leaf itself. On disk the levels lie root first.
    """
    levels: list[bytes] = []
    level = leaves
    while len(level) > algorithm.size:
        levels.append(level.ljust(-(-len(level) // BLOCK_SIZE) * BLOCK_SIZE, b"\0"))
        level = _block_hashes(level, algorithm.hash_name)
    return levels


def compute(data: bytes | bytearray | memoryview, algorithm: Algorithm = Algorithm.SHA256) -> VerityDigest:
    """Compute the digest of data held in memory."""
    return _finish(algorithm, len(data), _block_hashes(data, algorithm.hash_name) if data else b"")


def compute_pieces(pieces: Iterable[bytes], algorithm: Algorithm = Algorithm.SHA256) -> VerityDigest:
    """Compute the digest of data that arrives in pieces."""
    hasher = Hasher(algorithm)
    for piece in pieces:
        hasher.update(piece)
    return hasher.digest()


def compute_fd(fd: int, algorithm: Algorithm = Algorithm.SHA256) -> VerityDigest:
    """Compute the digest of an open file from its first byte; the file position moves to the end."""
    os.lseek(fd, 0, os.SEEK_SET)
    return compute_pieces(iter(lambda: os.read(fd, _READ_SIZE), b""), algorithm)


def measure(fd: int) -> VerityDigest | None:
    """Ask the kernel for the digest of an open file.

    Returns:
        The digest, or None when verity is not enabled on the file or unknown to the kernel or filesystem.

    Raises:
        OSError: any other failure.
    """
    buffer = bytearray(struct.pack("<HH64x", 0, 64))
    try:
        fcntl.ioctl(fd, _FS_IOC_MEASURE_VERITY, buffer)
    except OSError as exc:
        if exc.errno in (errno.ENODATA, *_NO_VERITY):
            return None
        raise
    _, size = struct.unpack_from("<HH", buffer)
    return VerityDigest(bytes(buffer[4 : 4 + size]))


def enable(fd: int, algorithm: Algorithm = Algorithm.SHA256) -> bool:
    """Enable fs-verity on a file that is open for reading and has no writer.

    The data is flushed to disk by the kernel first. Idempotent.

    Returns:
        True when the file has verity now, False where the kernel or filesystem has none.

    Raises:
        VerificationError: a writer stayed open.
        OSError: any other failure, e.g. no space for the Merkle tree.
    """
    argument = struct.pack("<IIIIQII", 1, algorithm.value, BLOCK_SIZE, 0, 0, 0, 0).ljust(128, b"\0")
    # A writer that was just closed in another process (fork between open and exec) can hold the file for a moment.
    for attempt in range(20):
        try:
            fcntl.ioctl(fd, _FS_IOC_ENABLE_VERITY, argument)
        except OSError as exc:
            if exc.errno == errno.EEXIST:
                return True
            if exc.errno in _NO_VERITY:
                return False
            if exc.errno != errno.ETXTBSY:
                raise
            time.sleep(0.005 * (attempt + 1))
        else:
            return True
    raise VerificationError("fs-verity cannot be enabled: the file stays open for writing")


def is_supported(directory: str, algorithm: Algorithm = Algorithm.SHA256) -> bool:
    """Probe whether files in a directory can have fs-verity, by enabling it on an unnamed file and measuring it.

    Raises:
        OSError: the directory cannot be written.
    """
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        if exc.errno in (errno.EOPNOTSUPP, errno.EISDIR):
            return False
        raise
    try:
        os.write(fd, b"probe")
        reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)
    try:
        with contextlib.suppress(OSError):
            return enable(reader, algorithm) and measure(reader) == compute(b"probe", algorithm)
    finally:
        os.close(reader)
    return False
