"""A small disk with a GUID partition table, written from the specification and not by our own writer."""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Mapping

DISK_SIZE = 1 << 20


def make_disk(partitions: Mapping[int, tuple[uuid.UUID, uuid.UUID, str]], *, sector: int = 512) -> bytearray:
    """Make a disk of 1 MiB with header and backup.

    Args:
        partitions: by number from 1: type, GUID and name.
        sector: bytes.
    """
    count = 128
    entries = bytearray(count * 128)
    for number, (kind, guid, name) in partitions.items():
        struct.pack_into(
            "<16s16sQQQ72s",
            entries,
            (number - 1) * 128,
            kind.bytes_le,
            guid.bytes_le,
            64 + number * 8,
            71 + number * 8,
            0,
            name.encode("utf-16-le"),
        )
    disk = bytearray(DISK_SIZE)
    last_sector = DISK_SIZE // sector - 1
    for own, other, at in ((1, last_sector, 2), (last_sector, 1, last_sector - len(entries) // sector)):
        header = bytearray(92)
        fields = (b"EFI PART", 0x10000, 92, 0, 0, own, other, 34, last_sector - 34, uuid.UUID(int=1).bytes_le)
        struct.pack_into("<8sIIIIQQQQ16sQIII", header, 0, *fields, at, count, 128, zlib.crc32(entries))
        struct.pack_into("<I", header, 16, zlib.crc32(header))
        disk[own * sector : own * sector + 92] = header
        disk[at * sector : at * sector + len(entries)] = entries
    return disk
