"""The EFI system partition: FAT32 written into a disk file by dosfstools and mtools.

Which files it holds is the caller's affair: the whole content is staged in an ordinary directory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from bootwright.errors import SpaceError, ToolError
from bootwright.linux.process import run
from bootwright.units import format_size

__all__ = ["Vfat", "check_fits"]

_CLUSTER = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Vfat:
    """A FAT32 filesystem at an offset of a disk.

    Args:
        path: of the disk, from ``work``.
        offset: where the filesystem starts, in bytes.
        size: of the filesystem in bytes.
        label: up to 11 letters.
        volume_id: its serial number, 32 bits: what ``/dev/disk/by-uuid`` shows.
        work: working directory of the programs.
        sector_size: of the disk, in bytes.
        epoch: seconds since 1970 for every time that is written; None for the clock's.
    """

    path: str
    offset: int
    size: int
    label: str
    volume_id: int
    work: str
    sector_size: int = 512
    epoch: int | None = None

    def format(self, directory: str) -> None:
        """Format, and copy the content of a directory into the filesystem.

        Raises:
            SpaceError: it does not fit.
            ToolError: a program is missing or failed.
        """
        check_fits(directory, self.size)
        # -F 32 in any case: UEFI asks for it on fixed disks. 4 KiB clusters unless the partition is so small that it
        # would have fewer than the 65,525 clusters that FAT32 must have.
        sectors_per_cluster = max(1, (_CLUSTER if self.size >= 288 << 20 else 512) // self.sector_size)
        # --invariant, for a fixed time of the label, also fixes the volume id: so that has to come behind it.
        arguments = [*(["--invariant"] if self.epoch is not None else []), "-i", f"{self.volume_id:08x}"]
        arguments += ["-F", "32", "-S", str(self.sector_size), "-s", str(sectors_per_cluster), "-n", self.label]
        arguments += ["--offset", str(self.offset // self.sector_size)]
        self._run(["mkfs.vfat", *arguments, self.path, str(self.size // 1024)], "format the EFI system partition")
        names = sorted(os.listdir(directory))
        if not names:
            return
        image = f"{self.path}@@{self.offset}"
        sources = [os.path.join(os.path.abspath(directory), name) for name in names]
        self._run(["mcopy", "-i", image, "-s", "-m", *sources, "::/"], "fill the EFI system partition")

    def _run(self, argv: list[str], purpose: str) -> None:
        # The user's own mtools configuration must not have a say; the size of a file is no reason for a warning.
        env = {"MTOOLSRC": "/dev/null", "MTOOLS_SKIP_CHECK": "1", "TZ": "UTC"}
        if self.epoch is not None:
            env["SOURCE_DATE_EPOCH"] = str(self.epoch)
        try:
            run(argv, purpose=purpose, env=env, cwd=self.work)
        except ToolError as exc:
            if "Disk full" in exc.message:
                raise SpaceError(f"the EFI system partition is full: {exc.message}", hint="--esp-size 2G") from exc
            raise


def check_fits(directory: str, size: int) -> None:
    """Require that a directory's content fits into a FAT32 filesystem of ``size`` bytes.

    Raises:
        SpaceError: it does not.
    """
    needed = 0
    for path, directories, names in os.walk(directory):
        needed += _CLUSTER * (1 + len(directories) // 32 + len(names) // 32)
        for name in names:
            needed += -(-os.lstat(os.path.join(path, name)).st_size // _CLUSTER) * _CLUSTER
    # Two tables of 4 bytes a cluster, reserved sectors, and a little air.
    usable = size - size // 128 - (1 << 20)
    if needed > usable:
        needed_size = (needed + (1 << 20)) * 128 // 127
        raise SpaceError(
            f"disk too small: the EFI system partition of {format_size(size)} needs {format_size(needed_size)}",
            hint=f"--esp-size {-(-needed_size // (1 << 20))}M or more",
        )
