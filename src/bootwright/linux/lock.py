"""Advisory locks with the holder's name.

flock(2) on a file or directory: it goes away with the process, whatever kills it. For an exclusive lock the holder
writes its command and process id into the locked file, so that the one who waits can be told who holds it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from types import TracebackType
from typing import Self

from bootwright.errors import BusyError

__all__ = ["Lock"]


class Lock:
    """A held flock; a context manager that releases it.

    Args:
        path: file (created when missing) or existing directory to lock.
        exclusive: alone, or together with other shared holders.
        holder: what we are doing, shown to others: ``bootwright upgrade``.
        timeout_s: how long to wait; 0 fails at once.

    Raises:
        BusyError: somebody else holds it after ``timeout_s``.
        OSError: the path cannot be opened.
    """

    def __init__(self, path: str, *, exclusive: bool, holder: str, timeout_s: float = 0) -> None:
        self.path = path
        is_directory = os.path.isdir(path)
        flags = os.O_RDONLY | os.O_DIRECTORY if is_directory else os.O_RDWR | os.O_CREAT
        self._fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
        self._named = exclusive and not is_directory
        try:
            self._acquire(fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH, timeout_s)
            if self._named:
                os.ftruncate(self._fd, 0)
                os.pwrite(self._fd, f"{holder} (process {os.getpid()})".encode(), 0)
        except BaseException:
            os.close(self._fd)
            raise

    def _acquire(self, how: int, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(self._fd, how | fcntl.LOCK_NB)
            except OSError as exc:
                if exc.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                if time.monotonic() >= deadline:
                    raise BusyError(
                        f"'{self.path}' is locked by {self._read_holder()}",
                        hint="wait until it is done, then run the command again",
                    ) from exc
                time.sleep(0.05)
            else:
                return

    def _read_holder(self) -> str:
        try:
            return os.pread(self._fd, 200, 0).decode("utf-8", "replace") or "another process"
        except OSError:
            return "another process"

    def release(self) -> None:
        """Let go; calling it twice is fine."""
        if self._fd >= 0:
            if self._named:
                os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
