"""The repository directory: opening, locking, and what lies where.

::

    <repository>/            0700
      meta.json              version, digest algorithm, feature flags                     repo.format
      objects/xx/rest        every file's content, every image, every splitstream         repo.objects
      streams/…              names of splitstreams; streams/refs: tags                    repo.refs, repo.streams
      images/…               names of EROFS images; images/refs: references by other tools
      bootwright/writing-…   notes of writers at work                                     repo.recovery

The directory is the one of composefs-rs, so that cfsctl and bootc can read it.

**Locks**: flock on the directory. Writers hold it shared, from the first object to the published name: several at a
time are fine, since an object is the same whoever writes it. Garbage collection and recovery hold it exclusively.
Readers that follow names (export, inspect) hold it shared, too; those of a booted deployment hold nothing.

**Order**: objects → one syncfs → layer streams and images → config and manifest streams → tag. Removal is the reverse.
A crash between two steps leaves something that nothing refers to, which the next pull reuses and ``image gc``
removes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from bootwright.digest import Algorithm, VerityDigest
from bootwright.erofs.tree import Inode
from bootwright.errors import ImageError, RepositoryError, VerificationError
from bootwright.linux import files, fsverity
from bootwright.linux.lock import Lock
from bootwright.repo import recovery
from bootwright.repo.format import META_NAME, Meta, format_meta, parse_meta
from bootwright.repo.objects import ObjectStore
from bootwright.repo.refs import References
from bootwright.repo.streams import SplitStream, parse_splitstream, parse_stream_size

__all__ = ["Repository"]

_ZEROS = bytes(1 << 20)
_PAYLOAD = re.compile(rb"/*([0-9a-f]{2})/([0-9a-f]{62}|[0-9a-f]{126})")
_STREAM_MAX = 2 << 30
_DEFAULT_WAIT_S = 10.0


class Repository:
    """An opened repository; a context manager that closes it. Use :meth:`open` or :meth:`init`.

    Attributes:
        path: absolute path of the directory.
        algorithm: of every object's digest.
        verity: objects have kernel fs-verity: for a writable repository, whether new ones get it; for one opened for
            reading, whether meta.json has it, i.e. the repository was made on a filesystem that can.
        objects: the object store.
        refs: the names.
    """

    def __init__(self, path: str, meta: Meta, *, verity: bool, lock: Lock | None, is_writable: bool) -> None:
        self.path = path
        self.algorithm = meta.algorithm
        self.verity = verity
        self.is_writable = is_writable
        self.objects = ObjectStore(os.path.join(path, "objects"), meta.algorithm, verity=verity and is_writable)
        self.refs = References(path)
        self._lock = lock
        self._note: recovery.WriteNote | None = None

    # ---- making and opening ----------------------------------------------------------------------------------

    @classmethod
    def init(cls, path: str, algorithm: Algorithm = Algorithm.SHA256) -> Self:
        """Make a repository in a new or empty directory, and open it for writing.

        meta.json is written last: a directory without it, left by a crash, can be initialised again.

        Raises:
            RepositoryError: the directory holds a repository or something else.
            PrivilegeError: it cannot be written.
        """
        path = os.path.abspath(path)
        with files.translated("could not make the repository"):
            os.makedirs(path, mode=0o700, exist_ok=True)
            present = set(os.listdir(path)) - {"lost+found"}
            if META_NAME in present:
                raise RepositoryError(f"'{path}' is a repository already")
            if present - {"objects", "images", "streams"} or _holds_files(path, present):
                raise RepositoryError(f"'{path}' is not empty", hint="choose an empty or a new directory")
            os.chmod(path, 0o700)
            objects = os.path.join(path, "objects")
            os.makedirs(objects, mode=0o755, exist_ok=True)
            for number in range(256):
                os.makedirs(os.path.join(objects, f"{number:02x}"), mode=0o755, exist_ok=True)
            for name in ("images/refs", "streams/refs/oci"):
                os.makedirs(os.path.join(path, name), mode=0o755, exist_ok=True)
            meta = os.path.join(path, META_NAME)
            files.replace_durably(meta, format_meta(algorithm))
            fd = os.open(meta, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fsverity.enable(fd, algorithm)
            finally:
                os.close(fd)
            files.fsync_directory(path)
        return cls.open(path, writable=True)

    @classmethod
    def open(cls, path: str, writable: bool = False, *, locked: bool = False, wait_s: float = _DEFAULT_WAIT_S) -> Self:
        """Open an existing repository as it is.

        Args:
            path: the directory.
            writable: take the shared lock, clear up after writers that a crash stopped, and allow storing.
            locked: take the shared lock although nothing is written, so that nothing is collected meanwhile.
            wait_s: how long to wait for a garbage collection to end.

        Raises:
            RepositoryError: there is none, or it is of an unknown version or kind.
            BusyError: a garbage collection holds the lock.
            PrivilegeError: it cannot be read or written.
        """
        path = os.path.abspath(path)
        with files.translated("could not open the repository"):
            meta, is_secure = _read_meta(path)
            if not writable:
                lock = _lock(path, exclusive=False, wait_s=wait_s) if locked else None
                return cls(path, meta, verity=is_secure, lock=lock, is_writable=False)
            if not meta.is_writable:
                raise RepositoryError(
                    f"'{path}' has features that a writer must know: {', '.join(meta.unknown_read_only)}",
                    hint="use a newer bootwright to change it; reading works",
                )
            objects = os.path.join(path, "objects")
            verity = fsverity.is_supported(objects, meta.algorithm)
            lock = _lock(path, exclusive=False, wait_s=wait_s)
            try:
                same, other = recovery.find_abandoned(path)
                if other:
                    # Removing torn objects must not meet a writer that is about to reuse one.
                    lock.release()
                    lock = _lock(path, exclusive=True, wait_s=wait_s)
                    same, other = recovery.find_abandoned(path)
                    recovery.recover(path, meta.algorithm, same=same, other=other)
                    lock.release()
                    lock = _lock(path, exclusive=False, wait_s=wait_s)
                elif same:
                    recovery.recover(path, meta.algorithm, same=same, other=[])
            except BaseException:
                lock.release()
                raise
            return cls(path, meta, verity=verity, lock=lock, is_writable=True)

    @classmethod
    def open_exclusively(cls, path: str, *, wait_s: float = _DEFAULT_WAIT_S) -> Self:
        """Open an existing repository for removing objects; nobody else writes or follows names meanwhile.

        Raises:
            RepositoryError: there is none, or it is of an unknown version or kind.
            BusyError: somebody uses it.
        """
        # Opening for writing first clears up what a crash left.
        cls.open(path, writable=True, wait_s=wait_s).close()
        path = os.path.abspath(path)
        with files.translated("could not open the repository"):
            lock = _lock(path, exclusive=True, wait_s=wait_s)
            try:
                meta, is_secure = _read_meta(path)
                return cls(path, meta, verity=is_secure, lock=lock, is_writable=False)
            except BaseException:
                lock.release()
                raise

    def close(self) -> None:
        """Let go of the lock and all descriptors; calling it twice is fine."""
        if self._note is not None:
            self._note.abandon()
            self._note = None
        self.objects.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- objects ---------------------------------------------------------------------------------------------

    def begin_writing(self) -> None:
        """Leave the note that objects are being written; it goes with :meth:`sync`. Idempotent.

        Raises:
            RepositoryError: the repository was opened for reading.
        """
        if not self.is_writable:
            raise RepositoryError(f"the repository '{self.path}' was opened for reading")
        if self._note is None:
            with files.translated("could not write to the repository"):
                self._note = recovery.WriteNote(self.path)

    def sync(self) -> None:
        """Make every object durable that was stored so far. Names are published after it, never before."""
        with files.translated(f"could not write '{self.path}' to disk"):
            files.sync_filesystem(self.path)
            if self._note is not None:
                self._note.remove()
                self._note = None

    def store_bytes(self, data: bytes) -> VerityDigest:
        """Store data as an object and return its digest; :meth:`sync` before publishing a name for it.

        Raises:
            RepositoryError: the repository was opened for reading.
            SpaceError: the filesystem is full.
        """
        self.begin_writing()
        return self.objects.store_bytes(data)

    def object_path(self, digest: VerityDigest) -> str:
        """Return the absolute path of an object, whether it is there or not."""
        return os.path.join(self.path, "objects", digest.object_path)

    def open_object(self, digest: VerityDigest) -> int:
        """Open an object for reading; the caller closes the descriptor.

        Raises:
            RepositoryError: it is not there.
        """
        return self.objects.open(digest)

    # ---- files of trees --------------------------------------------------------------------------------------

    def read_inode(self, inode: Inode) -> bytes:
        """Return the content of a regular file of a tree.

        Raises:
            RepositoryError: its object is missing.
            ImageError: it is no regular file, or the tree names no object of this repository.
        """
        return b"".join(self.iter_inode(inode))

    def iter_inode(self, inode: Inode) -> Iterator[bytes]:
        """Yield the content of a regular file of a tree in pieces of up to 1 MiB.

        Raises:
            RepositoryError: its object is missing or has another size than the tree says.
            ImageError: it is no regular file, or the tree names no object of this repository.
        """
        if not inode.is_regular:
            raise ImageError("only regular files have content")
        if inode.content is not None:
            yield inode.content
            return
        if inode.payload is None:
            # A file with neither content nor object is a hole.
            for start in range(0, inode.size, len(_ZEROS)):
                yield _ZEROS[: inode.size - start]
            return
        digest = payload_digest(inode.payload)
        size = self.objects.size_of(digest)
        if size is not None and size != inode.size:
            raise RepositoryError(
                f"the object '{digest}' has {size} bytes, expected {inode.size}",
                hint="pull the image again to bring it back",
            )
        yield from self.objects.iter(digest)

    # ---- streams ---------------------------------------------------------------------------------------------

    def find_stream(self, name: str) -> SplitStream | None:
        """Read a stream by its name; None when there is none, or its object is missing.

        Raises:
            RepositoryError: it is damaged.
        """
        digest = self.refs.find_stream(name)
        return None if digest is None or self.objects.size_of(digest) is None else self.read_stream(digest, name)

    def read_stream_size(self, name: str) -> int | None:
        """Return the length of a stream when rebuilt, without reading more than its head; None when it is not there.

        Raises:
            RepositoryError: it is damaged.
        """
        digest = self.refs.find_stream(name)
        if digest is None or self.objects.size_of(digest) is None:
            return None
        fd = self.objects.open(digest)
        try:
            return parse_stream_size(lambda at, size: os.pread(fd, size, at), origin=name)
        finally:
            os.close(fd)

    def read_stream(self, digest: VerityDigest, name: str) -> SplitStream:
        """Read a splitstream object, its own digest checked; ``name`` is for messages.

        Raises:
            RepositoryError: it is missing, too big or damaged.
        """
        size = self.objects.size_of(digest) or 0
        if size > _STREAM_MAX:
            raise RepositoryError(f"the splitstream '{name}' has {size} bytes")
        try:
            data = self.objects.read(digest, verify=True)
        except VerificationError as exc:
            raise RepositoryError(f"the splitstream '{name}' is damaged: {exc.message}", hint=exc.hint) from exc
        return parse_splitstream(data, origin=name)


def payload_digest(payload: bytes) -> VerityDigest:
    """Return the digest of an object that a tree names by its path.

    Raises:
        ImageError: the path is not that of an object.
    """
    match = _PAYLOAD.fullmatch(payload)
    if not match:
        text = payload[:100].decode("utf-8", "backslashreplace")
        raise ImageError(f"'{text}' is not the path of an object", hint="the image was made for another object store")
    return VerityDigest(bytes.fromhex((match[1] + match[2]).decode("ascii")))


def _lock(path: str, *, exclusive: bool, wait_s: float) -> Lock:
    return Lock(path, exclusive=exclusive, holder="bootwright", timeout_s=wait_s)


def _holds_files(path: str, names: set[str]) -> bool:
    return any(files_here for name in names for _, _, files_here in os.walk(os.path.join(path, name)))


def _read_meta(path: str) -> tuple[Meta, bool]:
    """Read meta.json, or infer it for a repository from before there was one; and whether it has kernel verity."""
    meta_path = os.path.join(path, META_NAME)
    try:
        fd = os.open(meta_path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as exc:
        algorithm = _infer_algorithm(os.path.join(path, "objects"))
        if algorithm is None:
            raise RepositoryError(
                f"there is no repository at '{path}'", hint=f"bootwright image pull --repo {path} makes one"
            ) from exc
        return Meta(algorithm=algorithm), False
    try:
        with os.fdopen(os.dup(fd), "rb") as file:
            meta = parse_meta(file.read((1 << 20) + 1), origin=meta_path)
        return meta, fsverity.measure(fd) is not None
    finally:
        os.close(fd)


def _infer_algorithm(objects: str) -> Algorithm | None:
    try:
        prefixes = sorted(name for name in os.listdir(objects) if len(name) == 2)
    except (FileNotFoundError, NotADirectoryError):
        return None
    for prefix in prefixes:
        for name in os.listdir(os.path.join(objects, prefix)):
            if len(name) in (62, 126):
                return Algorithm.SHA256 if len(name) == 62 else Algorithm.SHA512
    return None
