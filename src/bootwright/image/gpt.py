"""The GUID partition table, written byte for byte. Pure.

UEFI specification 2.10, chapter 5. Two copies of header and entries, at the start and at the end of the disk; the
backup's header is the very last sector, its entries lie before it. A protective MBR keeps old programs away.

::

    offset  size  header field                       offset  size  entry field
         0     8  "EFI PART"                              0    16  partition type GUID
         8     4  revision 1.0                           16    16  partition GUID
        12     4  header size, 92                        32     8  first LBA
        16     4  CRC32 of the header                    40     8  last LBA, inclusive
        24     8  LBA of this header                     48     8  attributes
        32     8  LBA of the other header                56    72  name, UTF-16LE
        40    16  first and last LBA for partitions
        56    16  disk GUID
        72     8  LBA of the entries
        80     8  number and size of the entries
        88     4  CRC32 of the entries
"""

from __future__ import annotations

import struct
import zlib

from bootwright.image.layout import Layout, Partition

__all__ = ["ENTRY_BYTES", "format_gpt"]

_ENTRY_COUNT = 128
_ENTRY_SIZE = 128
ENTRY_BYTES = _ENTRY_COUNT * _ENTRY_SIZE
_HEADER_SIZE = 92
_REVISION = 0x00010000


def format_gpt(layout: Layout) -> list[tuple[int, bytes]]:
    """Return the table as (offset in bytes, data) pieces: what to write at the start and at the end of the disk."""
    sector = layout.sector_size
    last = layout.size // sector - 1
    entry_sectors = ENTRY_BYTES // sector
    entries = b"".join(_format_entry(partition, sector) for partition in layout.partitions).ljust(ENTRY_BYTES, b"\0")
    primary = _format_header(layout, entries, own=1, other=last, entries_at=2)
    backup = _format_header(layout, entries, own=last, other=1, entries_at=last - entry_sectors)
    start = _format_protective_mbr(last).ljust(sector, b"\0") + primary.ljust(sector, b"\0") + entries
    end = entries + backup.ljust(sector, b"\0")
    return [(0, start), ((last - entry_sectors) * sector, end)]


def _format_entry(partition: Partition, sector: int) -> bytes:
    return struct.pack(
        "<16s16sQQQ72s",
        partition.type_guid.bytes_le,
        partition.guid.bytes_le,
        partition.start // sector,
        (partition.start + partition.size) // sector - 1,
        0,
        partition.name.encode("utf-16-le"),
    )


def _format_header(layout: Layout, entries: bytes, *, own: int, other: int, entries_at: int) -> bytes:
    entry_sectors = ENTRY_BYTES // layout.sector_size
    last = max(own, other)

    def pack(checksum: int) -> bytes:
        return struct.pack(
            "<8sIIIIQQQQ16sQIII",
            b"EFI PART",
            _REVISION,
            _HEADER_SIZE,
            checksum,
            0,
            own,
            other,
            2 + entry_sectors,
            last - entry_sectors - 1,
            layout.disk_guid.bytes_le,
            entries_at,
            _ENTRY_COUNT,
            _ENTRY_SIZE,
            zlib.crc32(entries),
        )

    return pack(zlib.crc32(pack(0)))


def _format_protective_mbr(last: int) -> bytes:
    # One partition of type 0xEE from LBA 1 to the end, or to the largest number that fits.
    entry = struct.pack("<B3sB3sII", 0, b"\x00\x02\x00", 0xEE, b"\xff\xff\xff", 1, min(last, 0xFFFFFFFF))
    return bytes(446) + entry + bytes(48) + b"\x55\xaa"
