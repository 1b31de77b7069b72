"""What makes objects safe against a power cut without an fsync for each of them.

Objects are linked to their digest as soon as they are written; their content reaches the disk with **one syncfs before
anything that names them is published**. A power cut before it can leave an object that has its name but not its
content. Nothing refers to it, but the next writer would take it for a finished object and reuse it. So a writer leaves
a note::

    <repository>/bootwright/writing-<random>    {"boot": "<kernel's boot id>"}; its own time is when the writing began

The note is durable before the first object is linked, its writer holds an flock on it, and it is removed after the
syncfs. Whoever opens the repository for writing looks at the notes that nobody holds any more:

===========================  ==========================================================================
note from                    what is done
===========================  ==========================================================================
this boot (killed process)   the page cache is whole: one syncfs, and the note goes
another boot (power cut)     every object that changed since the note was written is read and hashed; torn
                             ones are removed; one syncfs, and the note goes
===========================  ==========================================================================

Crash at any moment of this: the note is still there, and the next writer does it again. The second case runs under the
exclusive lock, since it removes objects. Clocks of machines without a battery jump, so "since" means a day earlier.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets

from bootwright.digest import Algorithm, VerityDigest
from bootwright.errors import VerificationError
from bootwright.linux import files, fsverity

__all__ = ["WriteNote", "find_abandoned", "recover"]

_DIRECTORY = "bootwright"
_PREFIX = "writing-"
_SLACK_NS = 24 * 3600 * 10**9


def _read_boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "unknown"


class WriteNote:
    """The note of a writer that is at work; written on construction, held until :meth:`remove`.

    Args:
        path: of the repository.
    """

    def __init__(self, path: str) -> None:
        directory = os.path.join(path, _DIRECTORY)
        os.makedirs(directory, mode=0o755, exist_ok=True)
        name = secrets.token_hex(8)
        temporary = os.path.join(directory, f"{files.TEMPORARY_PREFIX}{name}")
        self.path = os.path.join(directory, f"{_PREFIX}{name}")
        self._fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            # Locked before it has its name, so that nobody can find it unlocked.
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            files.write_all(self._fd, json.dumps({"boot": _read_boot_id()}).encode() + b"\n")
            os.fsync(self._fd)
            files.rename_durably(temporary, self.path)
        except BaseException:
            os.close(self._fd)
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def remove(self) -> None:
        """Take the note away; everything written under it must be durable."""
        os.unlink(self.path)
        self.abandon()

    def abandon(self) -> None:
        """Let go and leave the note for the next writer."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def find_abandoned(path: str) -> tuple[list[str], list[str]]:
    """Find the notes that no process holds: those of this boot, and those of other boots."""
    directory = os.path.join(path, _DIRECTORY)
    boot = _read_boot_id()
    same: list[str] = []
    other: list[str] = []
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(directory)):
            if not name.startswith(_PREFIX):
                continue
            note = os.path.join(directory, name)
            left = _read_if_abandoned(note)
            if left is not None:
                (same if left == boot != "unknown" else other).append(note)
    return same, other


def _read_if_abandoned(note: str) -> str | None:
    """Return the boot id in a note that nobody holds; None when it is held or gone."""
    try:
        fd = os.open(note, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        try:
            document = json.loads(os.read(fd, 4096))
        except ValueError:
            return ""
        return str(document.get("boot", "")) if isinstance(document, dict) else ""
    finally:
        os.close(fd)


def recover(path: str, algorithm: Algorithm, *, same: list[str], other: list[str]) -> list[VerityDigest]:
    """Do what abandoned notes ask for and remove them; the exclusive lock must be held when ``other`` is not empty.

    Returns:
        The digests of the torn objects that were removed.
    """
    removed: list[VerityDigest] = []
    since = []
    for note in other:
        with contextlib.suppress(FileNotFoundError):
            since.append(os.stat(note).st_mtime_ns)
    if since:
        removed = _remove_torn(os.path.join(path, "objects"), algorithm, min(since) - _SLACK_NS)
    files.sync_filesystem(path)
    for note in (*same, *other):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(note)
    return removed


def _remove_torn(objects: str, algorithm: Algorithm, since_ns: int) -> list[VerityDigest]:
    removed: list[VerityDigest] = []
    for prefix in sorted(os.listdir(objects)):
        directory = os.path.join(objects, prefix)
        if len(prefix) != 2 or not os.path.isdir(directory):
            continue
        with os.scandir(directory) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if max(status.st_mtime_ns, status.st_ctime_ns) < since_ns:
                    continue
                try:
                    digest = VerityDigest.parse(prefix + entry.name)
                except VerificationError:
                    continue
                if digest.algorithm is algorithm and not _is_whole(entry.path, digest):
                    os.unlink(entry.path)
                    removed.append(digest)
    return removed


def _is_whole(path: str, digest: VerityDigest) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return fsverity.compute_fd(fd, digest.algorithm) == digest
    except OSError:
        # A torn file with kernel fs-verity cannot even be read (EIO).
        return False
    finally:
        os.close(fd)
