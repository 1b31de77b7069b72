"""Boot entries and kernels on the boot partition of a systemd-boot machine.

::

    loader/entries/*.conf            what the menu shows; changed only by one exchange
    loader/entries.staged/*.conf     the next whole set, while an update waits for shutdown
    EFI/Linux/bootc_composefs-<id>/  vmlinuz and initrd; shared by deployments with the same bytes

Entries that are not ours are carried into every new set byte for byte, also ones that nobody can parse. A new set is
written to a temporary directory, made durable and renamed to ``entries.staged``; :meth:`EntryStore.exchange` then
swaps the two directories in one step, which FAT knows since Linux 6.0.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from bootwright.boot.entries import ARTEFACT_PREFIX, MAX_ENTRY_SIZE, BootEntry, format_entry, in_menu_order, parse_entry
from bootwright.boot.kargs import Kargs
from bootwright.errors import BootError, SpaceError
from bootwright.linux import files
from bootwright.units import format_size

__all__ = [
    "BootFiles",
    "BrokenEntry",
    "EntrySet",
    "EntryStore",
    "boot_digest",
    "first_entry",
    "kernel_directory",
]

_LOADER = "loader"
_ENTRIES = "loader/entries"
_STAGED = "loader/entries.staged"
_KERNELS = "EFI/Linux"
_UNIFIED = "EFI/Linux/bootc"
_MAX_FILES = 1000
# Room for directories and entries beside the kernels, on the coarsest FAT clusters (64 KiB each).
_HEADROOM = 1 << 20
_READ_SIZE = 1 << 20


@dataclass(frozen=True, slots=True)
class BrokenEntry:
    """A file among the entries that cannot be used, and why; ``content`` is None when it cannot even be read."""

    file_name: str
    reason: str
    content: bytes | None


@dataclass(frozen=True, slots=True)
class EntrySet:
    """One directory of entries: the readable ones in menu order, the broken ones, and every file's bytes."""

    entries: tuple[BootEntry, ...] = ()
    broken: tuple[BrokenEntry, ...] = ()
    contents: tuple[tuple[str, bytes], ...] = ()

    @property
    def own(self) -> tuple[BootEntry, ...]:
        """The entries of deployments, in menu order."""
        return tuple(entry for entry in self.entries if entry.deployment_id is not None)

    @property
    def deployment_ids(self) -> tuple[str, ...]:
        """Each deployment once, in menu order."""
        return tuple(dict.fromkeys(entry.deployment_id for entry in self.entries if entry.deployment_id is not None))

    def find(self, deployment_id: str) -> BootEntry | None:
        """Return the first entry of a deployment."""
        return next((entry for entry in self.entries if entry.deployment_id == deployment_id), None)


@dataclass(frozen=True, slots=True)
class BootFiles:
    """Where a deployment's kernel lies: ``directory`` as an entry writes it, and the digest of the two files."""

    directory: str
    boot_digest: str
    is_shared: bool = False


def boot_digest(vmlinuz: Iterable[bytes], initrd: Iterable[bytes]) -> str:
    """Return the sha256 hex digest over the kernel's bytes followed by the initramfs' bytes."""
    digest = hashlib.sha256()
    for pieces in (vmlinuz, initrd):
        for piece in pieces:
            digest.update(piece)
    return digest.hexdigest()


def kernel_directory(deployment_id: str) -> str:
    """Return the path, relative to the boot partition, of the directory of a deployment's kernel and initramfs."""
    return f"{_KERNELS}/{ARTEFACT_PREFIX}{deployment_id}"


def first_entry(
    deployment_id: str, *, os_release: dict[str, str], version: str | None, options: Kargs
) -> tuple[str, bytes]:
    """Make the only entry of a freshly installed machine.

    Returns:
        Its path relative to the boot partition, and its bytes.

    Raises:
        BootError: a value cannot be written, or the command line is too long.
    """
    options.check_length()
    entry = BootEntry.for_deployment(
        deployment_id,
        directory=f"/{kernel_directory(deployment_id)}",
        os_release=os_release,
        version=version,
        options=options,
    )
    return f"{_ENTRIES}/{entry.file_name}", format_entry(entry).encode()


class EntryStore:
    """The boot partition mounted at ``boot_root`` (or any directory laid out like one)."""

    def __init__(self, boot_root: str) -> None:
        self.boot_root = boot_root

    def read_entries(self) -> EntrySet:
        """Read what the menu shows; broken files are listed, not raised.

        Raises:
            BootError: the directory itself cannot be read.
        """
        return self._read(_ENTRIES)

    def read_staged(self) -> EntrySet:
        """Read the staged set; empty when there is none.

        Raises:
            BootError: the directory itself cannot be read.
        """
        return self._read(_STAGED)

    @property
    def has_staged(self) -> bool:
        """A staged set, or the leftover of an exchange, is there."""
        return os.path.isdir(self._path(_STAGED))

    def _path(self, relative: str) -> str:
        return os.path.join(self.boot_root, relative)

    def _read(self, relative: str) -> EntrySet:
        try:
            names = sorted(os.listdir(self._path(relative)))
        except FileNotFoundError:
            return EntrySet()
        except OSError as exc:
            raise BootError(f"boot entries in '{self._path(relative)}' cannot be read: {exc.strerror}") from exc
        if len(names) > _MAX_FILES:
            raise BootError(f"'{self._path(relative)}' has {len(names)} files, more than {_MAX_FILES}")
        entries: list[BootEntry] = []
        broken: list[BrokenEntry] = []
        contents: list[tuple[str, bytes]] = []
        for name in names:
            content: bytes | None = None
            try:
                content = _read_small(os.path.join(self._path(relative), name))
                contents.append((name, content))
                if name.endswith(".conf"):
                    entries.append(parse_entry(content.decode(), file_name=name))
            except BootError as exc:
                broken.append(BrokenEntry(name, exc.message, content))
            except UnicodeDecodeError:
                broken.append(BrokenEntry(name, f"boot entry '{name}' is not UTF-8 text", content))
            except OSError as exc:
                broken.append(BrokenEntry(name, f"boot entry '{name}' cannot be read: {exc.strerror}", None))
        return EntrySet(tuple(in_menu_order(entries)), tuple(broken), tuple(contents))

    def check_exchange(self) -> None:
        """Probe that the boot partition can swap two directories in one step.

        Raises:
            BootError: it cannot, or cannot be written; nothing was changed.
        """
        first = self._path(f"{_LOADER}/{files.temporary_name()}")
        second = self._path(f"{_LOADER}/{files.temporary_name()}")
        try:
            os.makedirs(self._path(_LOADER), exist_ok=True)
            os.mkdir(first)
            os.mkdir(second)
            files.exchange(first, second)
        except OSError as exc:
            hint = None
            if exc.errno in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                hint = "the kernel must be Linux 6.0 or newer to do this on FAT"
            elif exc.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                hint = "the boot partition must be writable; run it as root"
            raise BootError(
                f"boot entries in '{self.boot_root}' cannot be exchanged in one step: {exc.strerror}", hint=hint
            ) from exc
        finally:
            for path in (first, second):
                with contextlib.suppress(OSError):
                    os.rmdir(path)

    def write_staged(self, entries: Sequence[BootEntry]) -> None:
        """Write the next set: these entries, in any order, and every foreign file of the current set unchanged.

        1. remove an older staged set   2. write a temporary directory, fsync   3. rename it to ``entries.staged``
        A crash after 1 or 2 leaves the current set alone and a ``.tmp-`` directory that the next run removes.

        Raises:
            BootError: an entry cannot be written, or a foreign one cannot be read and would be lost.
            SpaceError: no room.
        """
        current = self.read_entries()
        lost = [one.reason for one in current.broken if one.content is None]
        if lost:
            raise BootError(f"{lost[0]}, and would be lost", hint="check the boot partition with fsck.fat")
        own = {entry.file_name for entry in current.own}
        texts = {name: content for name, content in current.contents if name not in own}
        for entry in entries:
            texts[entry.file_name] = format_entry(entry).encode()
        with files.translated("could not stage the boot entries"):
            self._remove_leftovers(_LOADER)
            self.discard_staged()
            temporary = self._path(f"{_LOADER}/{files.temporary_name()}")
            os.makedirs(self._path(_LOADER), exist_ok=True)
            os.mkdir(temporary, 0o755)
            for name, content in texts.items():
                _write_durably(os.path.join(temporary, name), [content])
            files.fsync_directory(temporary)
            os.rename(temporary, self._path(_STAGED))
            files.fsync_directory(self._path(_LOADER))

    def exchange(self) -> None:
        """Make the staged set the current one: the commit point of an update.

        1. swap the two directories   2. make it durable   3. remove the old set
        A crash before 1 boots the old set, after it the new one; the old set's directory is then a leftover.

        Raises:
            BootError: nothing is staged, or the filesystem cannot swap.
        """
        staged, current = self._path(_STAGED), self._path(_ENTRIES)
        if not self.has_staged:
            raise BootError(f"no boot entries are staged in '{staged}'", hint="run bootwright upgrade again")
        with files.translated("could not exchange the boot entries"):
            os.makedirs(current, exist_ok=True)
            try:
                files.exchange(staged, current)
            except OSError as exc:
                raise BootError(
                    f"boot entries in '{self.boot_root}' cannot be exchanged: {exc.strerror}",
                    hint="the kernel must be Linux 6.0 or newer to do this on FAT",
                ) from exc
            files.fsync_directory(self._path(_LOADER))
            files.sync_filesystem(self.boot_root)
            self.discard_staged()

    def discard_staged(self) -> None:
        """Remove the staged set, or what an interrupted exchange left there; nothing there is fine."""
        if self.has_staged:
            with files.translated("could not remove the staged boot entries"):
                files.remove_tree(self._path(_STAGED))
                files.fsync_directory(self._path(_LOADER))

    def find_kernel(self, digest: str, size_bytes: int) -> str | None:
        """Return the directory (as an entry writes it) that holds a kernel and initramfs with this boot digest.

        Only directories whose two files have ``size_bytes`` in sum are read.
        """
        for name in self._kernel_names():
            directory = self._path(f"{_KERNELS}/{name}")
            paths = [os.path.join(directory, "vmlinuz"), os.path.join(directory, "initrd")]
            with contextlib.suppress(OSError):
                if sum(os.stat(path).st_size for path in paths) != size_bytes:
                    continue
                if boot_digest(_read_pieces(paths[0]), _read_pieces(paths[1])) == digest:
                    return f"/{_KERNELS}/{name}"
        return None

    def _kernel_names(self) -> list[str]:
        try:
            names = os.listdir(self._path(_KERNELS))
        except OSError:
            return []
        return sorted(name for name in names if name.startswith(ARTEFACT_PREFIX) and not name.endswith(".efi"))

    def check_space(self, size_bytes: int) -> None:
        """Require room for files of this size in sum.

        Raises:
            SpaceError: there is less; the message has both numbers.
        """
        status = os.statvfs(self.boot_root)
        free = status.f_bavail * status.f_frsize
        needed = size_bytes + _HEADROOM
        if free < needed:
            raise SpaceError(
                f"the boot partition '{self.boot_root}' has {format_size(free)} free,"
                f" the new kernel and initramfs need {format_size(needed)}",
                hint="remove files from it that no boot entry needs, or make the initramfs smaller",
            )

    def install_kernel(self, deployment_id: str, vmlinuz: Iterable[bytes], initrd: Iterable[bytes]) -> BootFiles:
        """Store a deployment's kernel, or find the same bytes stored for another one.

        1. write both files into a temporary directory, fsync   2. rename it
        A crash before 2 leaves a ``.tmp-`` directory that the next run removes.

        Raises:
            SpaceError: no room.
            BootwrightError: it cannot be written.
        """
        parent = self._path(_KERNELS)
        final = self._path(kernel_directory(deployment_id))
        temporary = os.path.join(parent, files.temporary_name())
        with files.translated("could not write the kernel to the boot partition"):
            os.makedirs(parent, exist_ok=True)
            self._remove_leftovers(_KERNELS)
            try:
                os.mkdir(temporary, 0o755)
                digest = hashlib.sha256()
                size = _write_durably(os.path.join(temporary, "vmlinuz"), _hashed(vmlinuz, digest.update))
                size += _write_durably(os.path.join(temporary, "initrd"), _hashed(initrd, digest.update))
                shared = self.find_kernel(digest.hexdigest(), size)
                if shared is not None:
                    return BootFiles(shared, digest.hexdigest(), is_shared=True)
                files.fsync_directory(temporary)
                if os.path.lexists(final):
                    # Other bytes under this name can only be damage: the name stands for the whole image.
                    files.exchange(temporary, final)
                else:
                    os.rename(temporary, final)
                files.fsync_directory(parent)
            finally:
                files.remove_tree(temporary)
        return BootFiles(f"/{kernel_directory(deployment_id)}", digest.hexdigest())

    def remove_unreferenced(self, *, keep: Iterable[str] = ()) -> list[str]:
        """Remove kernels, and unified kernel images, of deployments that no current or staged entry boots.

        Args:
            keep: further deployments whose kernels stay, e.g. the booted one.

        Returns:
            The names that were removed. Nothing is removed while an entry cannot be read.
        """
        sets = (self.read_entries(), self.read_staged())
        if any(one.content is None for entries in sets for one in entries.broken):
            return []
        mentioned = b"\n".join(content for entries in sets for _, content in entries.contents)
        kept = tuple(keep)
        removed: list[str] = []
        with files.translated("could not clean the boot partition"):
            self._remove_leftovers(_LOADER)
            self._remove_leftovers(_KERNELS)
            for relative in (_KERNELS, _UNIFIED):
                for name in _list(self._path(relative)):
                    artefact = name.removesuffix(".extra.d").removesuffix(".efi")
                    if not name.startswith(ARTEFACT_PREFIX) or artefact.encode() in mentioned:
                        continue
                    if artefact.removeprefix(ARTEFACT_PREFIX) not in kept:
                        files.remove_tree(os.path.join(self._path(relative), name))
                        removed.append(name)
            if removed:
                files.sync_filesystem(self.boot_root)
        return removed

    def _remove_leftovers(self, relative: str) -> None:
        for name in _list(self._path(relative)):
            if name.startswith(files.TEMPORARY_PREFIX):
                files.remove_tree(os.path.join(self._path(relative), name))


def _list(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read_small(path: str) -> bytes:
    """Read an entry; anything but a small regular file is an error."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise BootError(f"boot entry '{os.path.basename(path)}' is not a file")
        if status.st_size > MAX_ENTRY_SIZE:
            raise BootError(f"boot entry '{os.path.basename(path)}' is larger than {MAX_ENTRY_SIZE} bytes")
        content = b""
        while piece := os.read(fd, MAX_ENTRY_SIZE + 1):
            content += piece
        return content
    finally:
        os.close(fd)


def _read_pieces(path: str) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(_READ_SIZE):
            yield piece


def _hashed(pieces: Iterable[bytes], update: Callable[[bytes], None]) -> Iterator[bytes]:
    for piece in pieces:
        update(piece)
        yield piece


def _write_durably(path: str, pieces: Iterable[bytes]) -> int:
    """Write and fsync a new file; return its size in bytes."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    size = 0
    try:
        for piece in pieces:
            files.write_all(fd, piece)
            size += len(piece)
        os.fsync(fd)
    finally:
        os.close(fd)
    return size
