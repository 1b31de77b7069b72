"""The object store: files named by the fs-verity digest of their content.

::

    objects/
      00/ 01/ … ff/          0755, made when the repository is made
        <62 or 126 hex>      0644, read-only by agreement; fs-verity enabled where the filesystem has it
      .tmp-<random>          only on filesystems without O_TMPFILE; a leftover is removed by gc

A file is written without a name (O_TMPFILE), completed, and then linked to its digest in one step, so an object is
there whole or not at all: for every process, and after every kind of kill. Two writers of the same object do not
disturb each other: the second link fails with EEXIST, which is success.

After a *power cut* an object may be there with missing content, because objects are not fsynced one by one (that costs
two to three times the whole import). :mod:`bootwright.repo.recovery` tells how that is made safe.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bootwright.digest import Algorithm, VerityDigest
from bootwright.errors import RepositoryError, VerificationError
from bootwright.linux import files, fsverity

__all__ = ["MEMORY_LIMIT", "ObjectStore", "StoreCounts"]

# Up to this size a body is held in memory and hashed before anything is written, so that an object that is already
# there costs no write. Bigger ones are written while they are hashed.
MEMORY_LIMIT = 4 << 20

_READ_SIZE = 1 << 20
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)


@dataclass(slots=True)
class StoreCounts:
    """What a store has done since it was opened."""

    objects_written: int = 0
    bytes_written: int = 0
    objects_reused: int = 0
    bytes_reused: int = 0

    def add(self, other: StoreCounts) -> None:
        """Add the counts of another store, e.g. of a worker process."""
        self.objects_written += other.objects_written
        self.bytes_written += other.bytes_written
        self.objects_reused += other.objects_reused
        self.bytes_reused += other.bytes_reused


class ObjectStore:
    """The ``objects`` directory of a repository, held by a descriptor.

    Args:
        path: the directory.
        algorithm: what names the objects.
        verity: enable fs-verity on new objects and require that the kernel measures the digest we computed.
    """

    def __init__(self, path: str, algorithm: Algorithm, *, verity: bool) -> None:
        self.path = path
        self.algorithm = algorithm
        self.verity = verity
        self.counts = StoreCounts()
        self._fd = files.open_directory(path)
        self._has_tmpfile = True
        mask = os.umask(0o022)
        os.umask(mask)
        self._needs_chmod = bool(mask & 0o644)

    def close(self) -> None:
        """Let go of the directory; calling it twice is fine."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def size_of(self, digest: VerityDigest) -> int | None:
        """Return the size of an object in bytes, or None when it is not there."""
        try:
            return os.stat(digest.object_path, dir_fd=self._fd, follow_symlinks=False).st_size
        except FileNotFoundError:
            return None

    def open(self, digest: VerityDigest) -> int:
        """Open an object for reading; the caller closes the descriptor.

        Raises:
            RepositoryError: it is not there.
        """
        try:
            return os.open(digest.object_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        except FileNotFoundError as exc:
            raise RepositoryError(
                f"the object '{digest}' is missing in '{self.path}'", hint="pull the image again to bring it back"
            ) from exc

    def read(self, digest: VerityDigest, *, verify: bool = False) -> bytes:
        """Return the whole content of an object.

        Raises:
            RepositoryError: it is not there.
            VerificationError: ``verify`` was asked for, and the content has another digest.
        """
        data = b"".join(self.iter(digest))
        if verify and fsverity.compute(data, digest.algorithm) != digest:
            raise VerificationError(
                f"the object '{digest}' in '{self.path}' is damaged", hint="pull the image again to bring it back"
            )
        return data

    def iter(self, digest: VerityDigest) -> Iterator[bytes]:
        """Yield the content of an object in pieces of up to 1 MiB.

        Raises:
            RepositoryError: it is not there.
        """
        fd = self.open(digest)
        try:
            while piece := os.read(fd, _READ_SIZE):
                yield piece
        finally:
            os.close(fd)

    def store_bytes(self, data: bytes | bytearray | memoryview) -> VerityDigest:
        """Store data held in memory; nothing is written when the object is already there.

        Raises:
            SpaceError: the filesystem is full.
            VerificationError: the kernel measured another digest.
        """
        digest = fsverity.compute(data, self.algorithm)
        name = digest.object_path
        size = len(data)
        if self._is_present(name, size):
            return digest
        with files.translated(f"could not store the object '{digest.hex[:12]}'"):
            fd, temporary = self._create()
            try:
                files.write_all(fd, data)
            except BaseException:
                self._discard(fd, temporary)
                raise
            self._publish(fd, temporary, digest, name, size)
        return digest

    def store_pieces(self, pieces: Iterable[bytes]) -> tuple[VerityDigest, int]:
        """Store data that arrives in pieces, in bounded memory; returns the digest and the size in bytes.

        Raises:
            SpaceError: the filesystem is full.
            VerificationError: the kernel measured another digest.
        """
        hasher = fsverity.Hasher(self.algorithm)
        with files.translated("could not store an object"):
            fd, temporary = self._create()
        try:
            for piece in pieces:
                hasher.update(piece)
                with files.translated("could not store an object"):
                    files.write_all(fd, piece)
        except BaseException:
            self._discard(fd, temporary)
            raise
        return self._finish(fd, temporary, hasher)

    def store_clone(self, source_fd: int) -> tuple[VerityDigest, int] | None:
        """Store a file by sharing its blocks (reflink); None where the two filesystems cannot.

        The clone is hashed, not the source, so a source that changes meanwhile does no harm.

        Raises:
            SpaceError: the filesystem is full.
            VerificationError: the kernel measured another digest.
        """
        with files.translated("could not store an object"):
            fd, temporary = self._create()
            try:
                if not files.clone(source_fd, fd):
                    self._discard(fd, temporary)
                    return None
                hasher = fsverity.Hasher(self.algorithm)
                while piece := os.read(fd, _READ_SIZE):
                    hasher.update(piece)
            except BaseException:
                self._discard(fd, temporary)
                raise
        return self._finish(fd, temporary, hasher)

    def store_sparse(self, pieces: Iterable[tuple[int, bytes]], size: int) -> VerityDigest:
        """Store a file with holes: data at rising offsets, zeros everywhere else up to ``size``; holes stay holes.

        Raises:
            SpaceError: the filesystem is full.
        """
        hasher = fsverity.Hasher(self.algorithm)
        with files.translated("could not store an object"):
            fd, temporary = self._create()
        try:
            for offset, piece in pieces:
                _add_zeros(hasher, offset - hasher.size)
                hasher.update(piece)
                with files.translated("could not store an object"):
                    os.lseek(fd, offset, os.SEEK_SET)
                    files.write_all(fd, piece)
            _add_zeros(hasher, size - hasher.size)
            with files.translated("could not store an object"):
                os.ftruncate(fd, size)
        except BaseException:
            self._discard(fd, temporary)
            raise
        return self._finish(fd, temporary, hasher)[0]

    def _finish(self, fd: int, temporary: str | None, hasher: fsverity.Hasher) -> tuple[VerityDigest, int]:
        digest = hasher.digest()
        name = digest.object_path
        if self._is_present(name, hasher.size):
            self._discard(fd, temporary)
        else:
            with files.translated(f"could not store the object '{digest.hex[:12]}'"):
                self._publish(fd, temporary, digest, name, hasher.size)
        return digest, hasher.size

    def _is_present(self, name: str, size: int) -> bool:
        try:
            found = os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_size
        except FileNotFoundError:
            return False
        if found == size:
            self.counts.objects_reused += 1
            self.counts.bytes_reused += size
            return True
        # The name says what the content must be, so another size is damage (a power cut under another tool).
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)
        return False

    def _create(self) -> tuple[int, str | None]:
        """Open a new file for writing: the descriptor, and its temporary name on filesystems that need one."""
        if self._has_tmpfile:
            try:
                fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o644, dir_fd=self._fd)
            except OSError as exc:
                if exc.errno not in _NO_TMPFILE:
                    raise
                self._has_tmpfile = False
            else:
                if self._needs_chmod:
                    os.fchmod(fd, 0o644)
                return fd, None
        temporary = files.temporary_name()
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=self._fd)
        if self._needs_chmod:
            os.fchmod(fd, 0o644)
        return fd, temporary

    def _discard(self, fd: int, temporary: str | None) -> None:
        os.close(fd)
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=self._fd)

    def _publish(self, fd: int, temporary: str | None, digest: VerityDigest, name: str, size: int) -> None:
        """Give a complete file its name and close it; always consumes the descriptor and the temporary name."""
        try:
            if self.verity:
                # The kernel refuses verity while a writable descriptor is open, so go on with a read-only one.
                reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
                os.close(fd)
                fd = reader
                self._enable_verity(fd, digest)
            source = f"/proc/self/fd/{fd}" if temporary is None else temporary
            source_dir = None if temporary is None else self._fd
            try:
                self._link(source, source_dir, name)
            except FileExistsError:
                self.counts.objects_reused += 1
                self.counts.bytes_reused += size
                return
            self.counts.objects_written += 1
            self.counts.bytes_written += size
        finally:
            self._discard(fd, temporary)

    def _link(self, source: str, source_dir: int | None, name: str) -> None:
        follow = source_dir is None
        try:
            os.link(source, name, src_dir_fd=source_dir, dst_dir_fd=self._fd, follow_symlinks=follow)
        except FileNotFoundError:
            # Repositories of other tools make the 256 directories when they are needed.
            with contextlib.suppress(FileExistsError):
                os.mkdir(name[:2], 0o755, dir_fd=self._fd)
            os.link(source, name, src_dir_fd=source_dir, dst_dir_fd=self._fd, follow_symlinks=follow)

    def _enable_verity(self, fd: int, digest: VerityDigest) -> None:
        measured = fsverity.measure(fd) if fsverity.enable(fd, self.algorithm) else None
        if measured != digest:
            raise VerificationError(
                f"the kernel measured the digest '{measured}' for an object, expected '{digest}'",
                hint="the disk or memory of this machine may be failing",
            )


_ZEROS = bytes(1 << 20)


def _add_zeros(hasher: fsverity.Hasher, count: int) -> None:
    while count > 0:
        hasher.update(_ZEROS[:count] if count < len(_ZEROS) else _ZEROS)
        count -= len(_ZEROS)
