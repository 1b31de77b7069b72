"""The root filesystem: ext4 with fs-verity enabled on its objects, written by a plain user.

1. ``mke2fs -d DIRECTORY`` formats the partition inside the disk file and copies the tree into it, in one pass;
2. one ``debugfs`` script gives every inode what a plain user's files could not have: owner, mode, extended attributes,
   and for sealed files (:mod:`bootwright.image.verity`) the real size and the verity flag.

Features are spelled out, and the machine's mke2fs.conf is not read: the same disk comes out everywhere, and every
kernel since 5.4 (fs-verity on ext4) mounts it.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from bootwright.errors import ImageError, SpaceError, ToolError
from bootwright.image.debugfs import Debugfs, Found
from bootwright.linux.process import run
from bootwright.units import format_size

__all__ = [
    "BLOCK_SIZE",
    "Capacity",
    "Ext4",
    "Metadata",
    "Needs",
    "check_filesystem",
    "default_metadata",
]

BLOCK_SIZE = 4096
_FEATURES = (
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,"
    "huge_file,dir_nlink,extra_isize,metadata_csum,verity"
)
# EXT4_EXTENTS_FL | EXT4_VERITY_FL
_VERITY_FLAGS = 0x80000 | 0x100000
_SUPERBLOCK_OFFSET = 1024
_TRIAL = "capacity.ext4"
_XATTR_NAME = re.compile(rb"[A-Za-z0-9._-]{1,255}")
_CONFIGURATION = "[defaults]\n[fs_types]\n\text4 = {\n\t}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What an inode must have besides its content.

    Attributes:
        mode: st_mode with the type.
        uid: owner.
        gid: group.
        rdev: of a device node.
        xattrs: extended attributes by full name.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)


def default_metadata(mode: int) -> Metadata:
    """Return root's ownership and the usual permissions for a type of file."""
    permissions = 0o755 if stat.S_ISDIR(mode) else 0o777 if stat.S_ISLNK(mode) else 0o644
    return Metadata(mode=stat.S_IFMT(mode) | permissions)


@dataclass(frozen=True, slots=True)
class Capacity:
    """What an empty filesystem has free: bytes and inodes."""

    free_bytes: int
    free_inodes: int


@dataclass(slots=True)
class Needs:
    """What a tree will take in the filesystem: bytes and inodes."""

    size: int = 0
    inodes: int = 0

    def add_file(self, stored: int) -> None:
        """Count a file whose blocks take ``stored`` bytes."""
        self.size += -(-stored // BLOCK_SIZE) * BLOCK_SIZE
        self.inodes += 1

    def add_tree(self, directory: str, *, known: Mapping[str, int] | None = None) -> None:
        """Count a directory and everything below it; ``known`` overrides file sizes by path."""
        known = known or {}
        for path, directories, names in os.walk(directory):
            # An entry takes its name and up to 12 bytes; blocks are rarely more than half full in the worst case.
            entries = sum(len(os.fsencode(name)) + 12 for name in (*directories, *names))
            self.add_file(max(BLOCK_SIZE, 2 * entries))
            for name in names:
                full = os.path.join(path, name)
                self.add_file(known[full] if full in known else os.lstat(full).st_size)

    @property
    def with_slack(self) -> int:
        """The bytes with what cannot be known beforehand: extent blocks, attribute blocks, a little air."""
        return self.size + self.size // 50 + (16 << 20)

    def check(self, capacity: Capacity, *, partition_size: int) -> None:
        """Require that it fits.

        Raises:
            SpaceError: it does not; the message says what the partition needs.
        """
        if self.with_slack > capacity.free_bytes or self.inodes > capacity.free_inodes:
            overhead = partition_size - capacity.free_bytes
            # Inode tables grow with the partition: 1/64 of it.
            by_inodes = self.inodes * 16384 * 65 // 64
            needed = max((self.with_slack + overhead) * 65 // 64, by_inodes)
            raise SpaceError(
                f"disk too small: the root partition of {format_size(partition_size)} needs {format_size(needed)}",
                hint=f"make the disk larger by {-(-(needed - partition_size) // (1 << 20))}M or more (--size)",
            )


class Ext4:
    """An ext4 filesystem at an offset of a disk file or device.

    Args:
        path: of the disk, from ``work``: relative names keep "?" in a parent directory from being read as options.
        offset: where the filesystem starts, in bytes.
        size: of the filesystem in bytes.
        label: shown by lsblk.
        fs_uuid: what ``root=UUID=`` names.
        hash_seed: of directory hashes.
        work: directory for scripts and small files.
        epoch: seconds since 1970 for every time that the build itself sets; None for the clock's.
    """

    def __init__(
        self,
        path: str,
        *,
        offset: int,
        size: int,
        label: str,
        fs_uuid: uuid.UUID,
        hash_seed: uuid.UUID,
        work: str,
        epoch: int | None = None,
    ) -> None:
        self._path = path
        self._offset = offset
        self._blocks = size // BLOCK_SIZE
        self._label = label
        self._uuid = fs_uuid
        self._hash_seed = hash_seed
        self._work = work
        self._epoch = epoch
        configuration = os.path.join(work, "mke2fs.conf")
        with open(configuration, "w", encoding="ascii") as file:
            file.write(_CONFIGURATION)
        self._env = {"MKE2FS_CONFIG": configuration, "MKE2FS_SYNC": "0"}
        if epoch is not None:
            # The first for e2fsprogs before 1.47.1, which did not know the second.
            self._env |= {"E2FSPROGS_FAKE_TIME": str(epoch), "SOURCE_DATE_EPOCH": str(epoch)}

    def measure_capacity(self) -> Capacity:
        """Format an empty filesystem of the same size in a sparse file, and read what it has free.

        Raises:
            SpaceError: it is too small to be formatted at all.
        """
        trial = os.path.join(self._work, _TRIAL)
        try:
            with open(trial, "xb") as file:
                file.truncate(self._blocks * BLOCK_SIZE)
            try:
                self._mke2fs(_TRIAL, 0, None)
            except ToolError as exc:
                raise SpaceError(
                    f"disk too small: {format_size(self._blocks * BLOCK_SIZE)} hold no root filesystem"
                ) from exc
            with open(trial, "rb") as file:
                file.seek(_SUPERBLOCK_OFFSET)
                superblock = file.read(1024)
        finally:
            if os.path.lexists(trial):
                os.unlink(trial)
        free_low, free_inodes = struct.unpack_from("<II", superblock, 12)
        (free_high,) = struct.unpack_from("<I", superblock, 0x158)
        return Capacity((free_high << 32 | free_low) * BLOCK_SIZE, free_inodes)

    def format(self, directory: str) -> None:
        """Format, and copy a directory's content into the filesystem.

        Raises:
            SpaceError: it does not fit.
            ToolError: mke2fs is missing or failed.
        """
        try:
            self._mke2fs(self._path, self._offset, directory)
        except ToolError as exc:
            if "No space left" in exc.message or "Could not allocate" in exc.message:
                raise SpaceError(
                    f"no space left while the root filesystem was written: {exc.message}", hint="--size with more"
                ) from exc
            raise

    def _mke2fs(self, path: str, offset: int, directory: str | None) -> None:
        extended = [
            "nodiscard",
            "lazy_itable_init=1",
            f"offset={offset}",
            "root_owner=0:0",
            "no_copy_xattrs",
            f"hash_seed={self._hash_seed}",
        ]
        arguments = ["-q", "-F", "-t", "ext4", "-O", _FEATURES, "-b", str(BLOCK_SIZE), "-I", "256", "-i", "16384"]
        arguments += ["-m", "0", "-E", ",".join(extended), "-L", self._label, "-U", str(self._uuid)]
        if directory is not None:
            arguments += ["-d", directory]
        purpose = "format the root filesystem"
        run(["mke2fs", *arguments, path, str(self._blocks)], purpose=purpose, env=self._env, cwd=self._work)

    def complete(self, metadata: Mapping[bytes, Metadata], sealed: Mapping[bytes, int]) -> None:
        """Give every inode its owner, mode and attributes, and sealed files their real size and the verity flag.

        Args:
            metadata: by absolute path; what is not named gets :func:`default_metadata`.
            sealed: real sizes of sealed files by absolute path.

        Raises:
            ImageError: the image has an attribute or device that cannot be written.
            ToolError: debugfs failed.
        """
        tool = Debugfs(self._path, self._offset, work=self._work, env=self._env)
        found = tool.walk()
        if devices := _device_commands(tool, metadata, found):
            tool.run_script(devices, purpose="write the device nodes of the image", writing=True)
            found = tool.walk()
        missing = sealed.keys() - found.keys()
        if missing:
            raise ToolError(f"'mke2fs' has left out {len(missing)} files, the first is {min(missing)!r}")
        commands: list[str] = []
        done: set[int] = set()
        for path, one in found.items():
            if one.inode in done or path == b"/lost+found":
                continue
            done.add(one.inode)
            wanted = metadata.get(path) or default_metadata(one.mode)
            commands += self._commands(one, wanted, sealed.get(path))
        tool.run_script(commands, purpose="set owners, modes and fs-verity in the root filesystem", writing=True)

    def _commands(self, one: Found, wanted: Metadata, size: int | None) -> list[str]:
        where = f"<{one.inode}>"
        if stat.S_IFMT(wanted.mode) != stat.S_IFMT(one.mode):
            raise ToolError(f"'mke2fs' has written inode {one.inode} as another type of file than asked for")
        commands: list[str] = []
        if one.mode != wanted.mode:
            commands.append(f"sif {where} mode 0{wanted.mode:o}")
        if one.uid != wanted.uid:
            commands.append(f"sif {where} uid {wanted.uid}")
        if one.gid != wanted.gid:
            commands.append(f"sif {where} gid {wanted.gid}")
        for name, value in wanted.xattrs.items():
            commands.append(f"ea_set -f {self._value_file(value)} {where} {_xattr_name(name)}")
        if size is not None:
            commands += [f"sif {where} size {size}", f"sif {where} flags {_VERITY_FLAGS:#x}"]
        if self._epoch is not None:
            commands += [f"sif {where} {which} @{self._epoch}" for which in ("ctime", "crtime", "atime")]
        return commands

    def _value_file(self, value: bytes) -> str:
        """Write an attribute's value where debugfs reads it; equal values share one file."""
        name = f"xattr-{hashlib.sha256(value).hexdigest()}"
        path = os.path.join(self._work, name)
        if not os.path.lexists(path):
            with open(path, "wb") as file:
                file.write(value)
        return name


def _xattr_name(name: bytes) -> str:
    if not _XATTR_NAME.fullmatch(name):
        raise ImageError(f"the image has the extended attribute {name!r}, whose name cannot be written")
    return name.decode("ascii")


def _device_commands(tool: Debugfs, metadata: Mapping[bytes, Metadata], found: Mapping[bytes, Found]) -> list[str]:
    commands: list[str] = []
    for path, wanted in metadata.items():
        if path not in found and (stat.S_ISCHR(wanted.mode) or stat.S_ISBLK(wanted.mode)):
            parent, _, name = path.rpartition(b"/")
            commands += tool.make_device(found[parent or b"/"].inode, name, wanted.mode, wanted.rdev)
    return commands


def check_filesystem(path: str, offset: int, *, work: str) -> None:
    """Have e2fsck check the filesystem, changing nothing; ``path`` is taken from the directory ``work``.

    Raises:
        ToolError: it found something.
    """
    run(["e2fsck", "-fn", f"{path}?offset={offset}"], purpose="verify the root filesystem", cwd=work)
