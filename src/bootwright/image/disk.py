"""A whole disk, written in place into a sparse file or onto a block device.

Order: partition table last. A device whose writing was interrupted has no table, so nothing takes it for a system.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bootwright.image import gpt
from bootwright.image.ext4 import Ext4, Metadata, check_filesystem
from bootwright.image.layout import Identity, Layout
from bootwright.image.vfat import Vfat
from bootwright.linux import files

__all__ = ["DiskWriter", "RootContent"]

ROOT_LABEL = "root"
ESP_LABEL = "ESP"


@dataclass(frozen=True, slots=True, kw_only=True)
class RootContent:
    """What goes into the root filesystem.

    Attributes:
        directory: the staged tree.
        metadata: owners, modes and attributes by absolute path in the filesystem.
        sealed: real sizes of files with fs-verity metadata, by absolute path in the filesystem.
    """

    directory: str
    metadata: Mapping[bytes, Metadata]
    sealed: Mapping[bytes, int]


class DiskWriter:
    """Writes one disk.

    Args:
        path: of the disk, from ``work``: an existing file or device of the layout's size.
        layout: where things go.
        identity: gives the filesystems their UUIDs.
        work: working directory for programs and scripts.
        epoch: seconds since 1970 for every time that the build itself sets; None for the clock's.
    """

    def __init__(self, path: str, layout: Layout, identity: Identity, *, work: str, epoch: int | None = None) -> None:
        self._path = path
        self._layout = layout
        self._work = work
        self.root_uuid = identity.uuid_of("root filesystem")
        self._root = Ext4(
            path,
            offset=layout.root.start,
            size=layout.root.size,
            label=ROOT_LABEL,
            fs_uuid=self.root_uuid,
            hash_seed=identity.uuid_of("root directory hash"),
            work=work,
            epoch=epoch,
        )
        self._esp = Vfat(
            path=path,
            offset=layout.esp.start,
            size=layout.esp.size,
            label=ESP_LABEL,
            volume_id=int.from_bytes(identity.bytes_of("esp filesystem", 4), "big"),
            work=work,
            sector_size=layout.sector_size,
            epoch=epoch,
        )

    @property
    def root(self) -> Ext4:
        """The root filesystem, e.g. to ask for its capacity before anything is written."""
        return self._root

    def write(self, root: RootContent, esp_directory: str, *, step: Callable[[str], None]) -> None:
        """Write filesystems and partition table; ``step`` is told what begins.

        Raises:
            SpaceError: something does not fit, or the host's filesystem is full.
            ToolError: a program is missing or failed.
        """
        step("writing the root filesystem")
        self._root.format(root.directory)
        step("setting owners and fs-verity")
        self._root.complete(root.metadata, root.sealed)
        step("writing the boot partition")
        self._esp.format(esp_directory)
        step("checking the root filesystem")
        check_filesystem(self._path, self._layout.root.start, work=self._work)
        with files.translated(f"could not write the partition table of '{self._path}'"):
            fd = os.open(os.path.join(self._work, self._path), os.O_WRONLY | os.O_CLOEXEC)
            try:
                for offset, data in gpt.format_gpt(self._layout):
                    os.lseek(fd, offset, os.SEEK_SET)
                    files.write_all(fd, data)
                os.fsync(fd)
            finally:
                os.close(fd)
