"""Durable writes: the one module through which anything lasting reaches a disk.

Small files: temporary file in the same directory → write → fsync → rename → fsync of the directory. After a power cut
the old or the new content is there, never a part of it; a leftover has a name that starts with ``.tmp-``.

Many files at once (objects): written anywhere, then one :func:`sync_filesystem` before anything that names them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator

from bootwright.errors import BootwrightError, PrivilegeError, SpaceError

__all__ = [
    "TEMPORARY_PREFIX",
    "clone",
    "clone_or_copy",
    "exchange",
    "fsync_directory",
    "libc",
    "open_directory",
    "remove_tree",
    "rename_durably",
    "replace_durably",
    "replace_symlink",
    "sync_filesystem",
    "temporary_name",
    "translate",
    "translated",
    "write_all",
]

TEMPORARY_PREFIX = ".tmp-"

_FICLONE = 0x40049409
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_PathLike = str | bytes | os.PathLike[str]

libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn an OSError inside the block into one of ours, with the object and what to do.

    Raises:
        SpaceError: no space or no inodes left, or over quota.
        PrivilegeError: permission denied or a read-only filesystem.
        BootwrightError: any other operating-system error.
    """
    try:
        yield
    except OSError as exc:
        raise translate(exc, what) from exc


def translate(exc: OSError, what: str) -> BootwrightError:
    """Return an operating-system error as one of ours, see :func:`translated`."""
    reason = exc.strerror or str(exc)
    where = f" '{os.fsdecode(exc.filename)}'" if isinstance(exc.filename, str | bytes) else ""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return SpaceError(
            f"{what}: no space left{where and ' for'}{where}",
            hint="free some space (bootwright image rm, or a larger disk) and run the command again",
        )
    if exc.errno in (errno.EPERM, errno.EACCES, errno.EROFS):
        return PrivilegeError(f"{what}{where}: {reason}", hint="run it as root, or choose a writable place")
    return BootwrightError(f"{what}{where}: {reason}")


def temporary_name() -> str:
    """Return a name for a file or directory that is not complete yet; clean-ups know it by its prefix."""
    return f"{TEMPORARY_PREFIX}{os.urandom(8).hex()}"


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    """Write every byte, whatever the kernel takes at a time."""
    written = os.write(fd, data)
    if written == len(data):
        return
    rest = memoryview(data)
    while written < len(rest):
        written += os.write(fd, rest[written:])


def open_directory(path: _PathLike, *, dir_fd: int | None = None) -> int:
    """Open a directory for ``*at`` calls; the caller closes the descriptor."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)


def fsync_directory(path: _PathLike) -> None:
    """Make the entries of a directory durable."""
    fd = open_directory(path)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_filesystem(path: _PathLike) -> None:
    """Make everything written to the filesystem that holds ``path`` durable (syncfs).

    Raises:
        OSError: the filesystem reports an I/O error for something that was written.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.syncfs(fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
    finally:
        os.close(fd)


def replace_durably(path: _PathLike, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file so that after a crash the old or the new content is there.

    A crash before the rename leaves the old file and a ``.tmp-`` leftover; after it, the new file.
    """
    path = os.fsdecode(path)
    directory = os.path.dirname(path) or "."
    temporary = os.path.join(directory, temporary_name())
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            write_all(fd, data)
            os.fchmod(fd, mode)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    fsync_directory(directory)


def replace_symlink(target: str, path: _PathLike, *, durable: bool = True) -> None:
    """Create or replace a symlink atomically and durably; many at once are made durable by the caller's one fsync."""
    path = os.fsdecode(path)
    directory = os.path.dirname(path) or "."
    temporary = os.path.join(directory, temporary_name())
    os.symlink(target, temporary)
    try:
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if durable:
        fsync_directory(directory)


def rename_durably(old: _PathLike, new: _PathLike) -> None:
    """Rename and make it durable in both directories."""
    old, new = os.fsdecode(old), os.fsdecode(new)
    os.rename(old, new)
    fsync_directory(os.path.dirname(new) or ".")
    if os.path.dirname(old) != os.path.dirname(new):
        fsync_directory(os.path.dirname(old) or ".")


def exchange(first: _PathLike, second: _PathLike) -> None:
    """Swap two directory entries in one atomic step (renameat2 RENAME_EXCHANGE); both must exist.

    Not yet durable: call :func:`fsync_directory` on the parent. FAT knows this since Linux 6.0.

    Raises:
        OSError: EINVAL or ENOSYS where the filesystem or kernel cannot exchange.
    """
    first, second = os.fsencode(first), os.fsencode(second)
    if libc.renameat2(_AT_FDCWD, first, _AT_FDCWD, second, _RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fsdecode(first), None, os.fsdecode(second))


def clone(source_fd: int, target_fd: int) -> bool:
    """Make a file share the blocks of another one (reflink); False where the filesystem cannot."""
    try:
        fcntl.ioctl(target_fd, _FICLONE, source_fd)
    except OSError as exc:
        if exc.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS):
            raise
        return False
    return True


def clone_or_copy(source_fd: int, target_fd: int) -> None:
    """Copy a whole file: reflink where the filesystem can, else in the kernel, else by reading and writing."""
    if clone(source_fd, target_fd):
        return
    left = os.fstat(source_fd).st_size
    os.lseek(source_fd, 0, os.SEEK_SET)
    try:
        while left > 0 and (copied := os.copy_file_range(source_fd, target_fd, left)) > 0:
            left -= copied
    except OSError as exc:
        if exc.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
    while data := os.read(source_fd, 1 << 20):
        write_all(target_fd, data)


def remove_tree(path: _PathLike) -> None:
    """Remove a file or a directory tree, never following symlinks; a missing path is fine."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(status.st_mode):
        shutil.rmtree(path)
    else:
        os.unlink(path)
