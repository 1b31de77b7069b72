"""A directory becomes a tree: metadata by lstat, digests of the files by worker processes, perhaps objects in a store.

Hashing runs in processes because the interpreter lock makes threads slower than one of them. Jobs are lists of files of
similar total size, the biggest first. Objects of a digest store are made durable by one syncfs at the end.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from bootwright.digest import Algorithm
from bootwright.erofs.tree import HardLink, Inode, Node
from bootwright.errors import BootwrightError, UsageError
from bootwright.linux import files, fsverity, xattr
from bootwright.progress import SILENT, Progress, Task
from bootwright.repo.objects import ObjectStore
from bootwright.repo.workers import Report, available_processors, run_jobs

__all__ = ["ScanOptions", "scan_directory"]

INLINE_LIMIT = 64  # bytes; larger files are external
_JOB_BYTES = 16 << 20
_JOB_FILES = 256
_MAX_JOBS = 16000
_IN_MEMORY = 1 << 20
# Below this, starting processes costs more than they save.
_ALONE_BYTES, _ALONE_FILES = 8 << 20, 128


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanOptions:
    """How a directory is read.

    Args:
        use_epoch: all times become 0.
        skip_devices: leave out character and block devices.
        skip_xattrs: no extended attributes.
        user_xattrs: only those whose key starts with ``user.``.
        hardlinks: keep hard links; mkcomposefs makes an independent file of every name.
        algorithm: of the digests.
        digest_store: directory that gets every external file as ``xx/rest``, made when missing.
        processes: that hash; None for one a processor.
    """

    use_epoch: bool = False
    skip_devices: bool = False
    skip_xattrs: bool = False
    user_xattrs: bool = False
    hardlinks: bool = False
    algorithm: Algorithm = Algorithm.SHA256
    digest_store: str | None = None
    processes: int | None = None


def scan_directory(directory: str, options: ScanOptions, *, progress: Progress = SILENT) -> Inode:
    """Read a directory and everything below it, mounts included.

    Raises:
        UsageError: it is no directory, or contradictory options.
        PrivilegeError: something cannot be read.
        BootwrightError: a file changed while it was read, or any other failure.
    """
    if options.skip_xattrs and options.user_xattrs:
        raise UsageError("--skip-xattrs and --user-xattrs exclude each other")
    status = _lstat(os.fsencode(directory))
    if not stat.S_ISDIR(status.st_mode):
        raise UsageError(f"'{directory}' is no directory", hint="a dump file needs --from-file")
    with files.translated("could not read"):
        scan = _Scan(options)
        root = scan.read(os.fsencode(directory), status)
    _hash_files(scan.external, options, progress)
    return root


def _lstat(path: bytes) -> os.stat_result:
    with files.translated("could not read"):
        return os.lstat(path)


class _Scan:
    """Reads metadata, and the content of files that are stored inside the image."""

    def __init__(self, options: ScanOptions) -> None:
        self._options = options
        self._linked: dict[tuple[int, int], Inode] = {}
        self.external: list[tuple[bytes, Inode]] = []

    def read(self, top: bytes, status: os.stat_result) -> Inode:
        """Return the tree of a directory, depth first with names sorted: the first name of a linked file is real."""
        root = self._make_inode(top, status)
        stack: list[Iterator[tuple[bytes, bytes, dict[bytes, Node]]]] = [_list(top, root)]
        while stack:
            for path, name, children in stack[-1]:
                node = self._read_entry(path)
                if node is None:
                    continue
                children[name] = node
                if isinstance(node, Inode) and node.is_directory:
                    stack.append(_list(path, node))
                    break
            else:
                stack.pop()
        return root

    def _read_entry(self, path: bytes) -> Node | None:
        status = os.lstat(path)
        mode = status.st_mode
        if self._options.skip_devices and (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
            return None
        key = status.st_dev, status.st_ino
        is_linked = self._options.hardlinks and status.st_nlink > 1 and not stat.S_ISDIR(mode)
        if is_linked and key in self._linked:
            self._linked[key].nlink += 1
            return HardLink(self._linked[key])
        inode = self._make_inode(path, status)
        if is_linked:
            self._linked[key] = inode
        return inode

    def _make_inode(self, path: bytes, status: os.stat_result) -> Inode:
        options = self._options
        mode = status.st_mode
        seconds, nanoseconds = (0, 0) if options.use_epoch else divmod(status.st_mtime_ns, 1_000_000_000)
        xattrs: dict[bytes, bytes] = {}
        if not options.skip_xattrs:
            xattrs = xattr.read_all(path)
            if options.user_xattrs:
                xattrs = {key: value for key, value in xattrs.items() if key.startswith(b"user.")}
        inode = Inode(
            mode,
            uid=status.st_uid,
            gid=status.st_gid,
            size=0 if stat.S_ISDIR(mode) else status.st_size,
            mtime_sec=seconds,
            mtime_nsec=nanoseconds,
            xattrs=xattrs,
        )
        if stat.S_ISLNK(mode):
            inode.target = os.readlink(path)
        elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            inode.rdev = _kernel_device(status.st_rdev)
        elif stat.S_ISREG(mode) and 0 < status.st_size <= INLINE_LIMIT:
            inode.content = _read_small(path, status.st_size)
        elif stat.S_ISREG(mode) and status.st_size:
            self.external.append((path, inode))
        return inode


def _list(path: bytes, inode: Inode) -> Iterator[tuple[bytes, bytes, dict[bytes, Node]]]:
    children = inode.children
    if children is not None:
        for name in sorted(os.listdir(path)):
            yield os.path.join(path, name), name, children


def _kernel_device(number: int) -> int:
    """Return a device number as the kernel's 32-bit form (new_encode_dev)."""
    major, minor = os.major(number), os.minor(number)
    return (minor & 0xFF | major << 8 | (minor & ~0xFF) << 12) & 0xFFFFFFFF


def _changed(path: bytes) -> BootwrightError:
    return BootwrightError(
        f"'{os.fsdecode(path)}' changed while it was read", hint="make an image of a tree that nobody writes to"
    )


def _read_small(path: bytes, size: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        content = os.read(fd, size + 1)
    finally:
        os.close(fd)
    if len(content) != size:
        raise _changed(path)
    return content


def _hash_files(external: list[tuple[bytes, Inode]], options: ScanOptions, progress: Progress) -> None:
    """Give every external file its digest and payload, and the store its objects."""
    if not external:
        return
    store = None if options.digest_store is None else _open_store(options.digest_store, options.algorithm)
    try:
        jobs = _divide(external)
        processes = options.processes or available_processors()
        total = sum(inode.size for _, inode in external)
        task = Task(task="hashing", description="hashing files", id="hashing", unit="bytes", bytes_total=total)
        progress.begin(task)
        if processes == 1 or (total < _ALONE_BYTES and len(external) < _ALONE_FILES):
            for job in jobs:
                _apply(job, b"".join(_hash(path, inode, options.algorithm, store) for path, inode in job))
        else:

            def work(number: int, _: Report) -> bytes:
                return b"".join(_hash(path, inode, options.algorithm, store) for path, inode in jobs[number])

            with run_jobs(list(range(len(jobs))), work, processes=processes) as events:
                for event in events:
                    if event.result is not None:
                        _apply(jobs[event.job], event.result)
                        task.bytes_done += sum(inode.size for _, inode in jobs[event.job])
                        progress.update(task)
        task.bytes_done = total
        progress.end(task)
        if store is not None:
            with files.translated("could not make the objects durable"):
                files.sync_filesystem(store.path)
    finally:
        if store is not None:
            store.close()


_Job = list[tuple[bytes, Inode]]


def _divide(external: _Job) -> list[_Job]:
    """Make jobs of files that lie together in the tree, the biggest job first."""
    max_files = max(_JOB_FILES, -(-len(external) // (_MAX_JOBS // 2)))
    max_bytes = max(_JOB_BYTES, sum(inode.size for _, inode in external) // (_MAX_JOBS // 4))
    jobs: list[_Job] = [[]]
    size = 0
    for item in external:
        if jobs[-1] and (len(jobs[-1]) >= max_files or size + item[1].size > max_bytes):
            jobs.append([])
            size = 0
        jobs[-1].append(item)
        size += item[1].size
    jobs.sort(key=lambda job: sum(inode.size for _, inode in job), reverse=True)
    return jobs


def _apply(job: _Job, digests: bytes) -> None:
    size = len(digests) // len(job)
    for number, (_, inode) in enumerate(job):
        inode.digest = digests[number * size : (number + 1) * size]
        text = inode.digest.hex()
        inode.payload = f"{text[:2]}/{text[2:]}".encode()


def _open_store(directory: str, algorithm: Algorithm) -> ObjectStore:
    with files.translated("could not use the digest store"):
        os.makedirs(directory, 0o755, exist_ok=True)
        return ObjectStore(directory, algorithm, verity=fsverity.is_supported(directory, algorithm))


def _hash(path: bytes, inode: Inode, algorithm: Algorithm, store: ObjectStore | None) -> bytes:
    """Return the digest of a file, which is in the store afterwards."""
    with files.translated("could not read"):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _changed(path)
        with files.translated(f"could not read '{os.fsdecode(path)}'"):
            digest = fsverity.measure(fd)
            is_measured = digest is not None and digest.algorithm is algorithm
            if digest is not None and is_measured and (store is None or store.size_of(digest) == inode.size):
                return digest.raw
            if inode.size <= _IN_MEMORY:
                data = os.read(fd, inode.size + 1)
                size = len(data)
                digest = fsverity.compute(data, algorithm) if store is None else store.store_bytes(data)
            elif store is None:
                hasher = fsverity.Hasher(algorithm)
                while piece := os.read(fd, _IN_MEMORY):
                    hasher.update(piece)
                digest, size = hasher.digest(), hasher.size
            else:
                clone = store.store_clone(fd)
                digest, size = clone or store.store_pieces(iter(lambda: os.read(fd, _IN_MEMORY), b""))
    finally:
        os.close(fd)
    if size != inode.size:
        raise _changed(path)
    return digest.raw
