"""Read the GUID partition table of a disk (UEFI specification 2.10, chapter 5), and find disks in sysfs.

The table is somebody else's data: both checksums must be right, sizes are bounded, and the backup header at the end of
the disk is used when the first one is damaged.
"""

from __future__ import annotations

import os
import struct
import uuid
import zlib
from dataclasses import dataclass

from bootwright.errors import BootError

__all__ = ["ESP_TYPE", "GptPartition", "find_disks", "find_partition_device", "read_gpt"]

ESP_TYPE = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")

_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")
_MAX_ENTRIES = 1024
_MAX_ENTRY_SIZE = 4096
_MAX_SLAVE_DEPTH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class GptPartition:
    """One used entry of the table; ``number`` counts from 1, start and size are in bytes."""

    number: int
    type_guid: uuid.UUID
    guid: uuid.UUID
    start: int
    size: int
    name: str


def read_gpt(fd: int) -> list[GptPartition]:
    """Read the table of an open disk or disk file, with sectors of 512 or 4096 bytes.

    Raises:
        BootError: there is no valid table.
        OSError: it cannot be read.
    """
    end = os.lseek(fd, 0, os.SEEK_END)
    for sector in (512, 4096):
        for header_at in (sector, (end // sector - 1) * sector):
            partitions = _read_table(fd, end, sector, header_at)
            if partitions is not None:
                return partitions
    raise BootError("the disk has no valid GUID partition table")


def _read_table(fd: int, end: int, sector: int, header_at: int) -> list[GptPartition] | None:
    raw = os.pread(fd, sector, header_at) if header_at > 0 else b""
    if len(raw) != sector or not raw.startswith(b"EFI PART"):
        return None
    fields = _HEADER.unpack_from(raw)
    size, checksum = fields[2], fields[3]
    entries_lba, count, entry_size, entries_checksum = fields[10:14]
    if not _HEADER.size <= size <= sector or zlib.crc32(raw[:16] + bytes(4) + raw[20:size]) != checksum:
        return None
    if count > _MAX_ENTRIES or not _ENTRY.size <= entry_size <= _MAX_ENTRY_SIZE:
        return None
    if entries_lba * sector + count * entry_size > end:
        return None
    table = os.pread(fd, count * entry_size, entries_lba * sector)
    if len(table) != count * entry_size or zlib.crc32(table) != entries_checksum:
        return None
    return [
        _parse_entry(table, number * entry_size, number + 1, sector)
        for number in range(count)
        if any(table[number * entry_size : number * entry_size + 16])
    ]


def _parse_entry(table: bytes, at: int, number: int, sector: int) -> GptPartition:
    type_guid, guid, first, last, _, name = _ENTRY.unpack_from(table, at)
    return GptPartition(
        number=number,
        type_guid=uuid.UUID(bytes_le=type_guid),
        guid=uuid.UUID(bytes_le=guid),
        start=first * sector,
        size=max(last - first + 1, 0) * sector,
        name=name.decode("utf-16-le", "replace").partition("\0")[0],
    )


def find_disks(device: tuple[int, int], *, sys: str = "/sys") -> list[str]:
    """Return the sysfs directories of the whole disks below a block device, through partitions and device mapper."""
    start = os.path.realpath(os.path.join(sys, f"dev/block/{device[0]}:{device[1]}"))
    disks: dict[str, None] = {}
    todo = [(start, 0)]
    while todo:
        directory, depth = todo.pop()
        if os.path.exists(os.path.join(directory, "partition")):
            directory = os.path.dirname(directory)
        slaves = _list(os.path.join(directory, "slaves"))
        if slaves and depth < _MAX_SLAVE_DEPTH:
            todo.extend((os.path.realpath(os.path.join(directory, "slaves", name)), depth + 1) for name in slaves)
        elif os.path.isdir(directory):
            disks.setdefault(directory)
    return list(disks)


def find_partition_device(disk: str, number: int) -> str | None:
    """Return the name below /dev of a disk's partition, given the disk's sysfs directory."""
    for name in _list(disk):
        try:
            with open(os.path.join(disk, name, "partition"), encoding="ascii") as file:
                if int(file.read()) == number:
                    return name
        except (OSError, ValueError):
            continue
    return None


def _list(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []
