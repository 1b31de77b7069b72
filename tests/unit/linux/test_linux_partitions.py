"""Reading partition tables: the ones we write, damaged ones, and disks in a directory laid out like sysfs."""

import os
import struct
import uuid
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootwright.errors import BootError
from bootwright.image.gpt import format_gpt
from bootwright.image.layout import Identity, get_architecture, plan_layout
from bootwright.linux.partitions import ESP_TYPE, find_disks, find_partition_device, read_gpt
from fakes.gpt import DISK_SIZE, make_disk

ROOT_TYPE = uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")


PARTITIONS = {1: (ESP_TYPE, uuid.UUID(int=0xE5), "esp"), 3: (ROOT_TYPE, uuid.UUID(int=2), "root")}


def read(tmp_path: Path, disk: bytes | bytearray) -> list[tuple[int, uuid.UUID, str]]:
    path = tmp_path / "disk"
    path.write_bytes(disk)
    fd = os.open(path, os.O_RDONLY)
    try:
        return [(one.number, one.type_guid, one.name) for one in read_gpt(fd)]
    finally:
        os.close(fd)


EXPECTED = [(1, ESP_TYPE, "esp"), (3, ROOT_TYPE, "root")]


@pytest.mark.parametrize("sector", [512, 4096])
def test_both_sector_sizes(tmp_path: Path, sector: int) -> None:
    assert read(tmp_path, make_disk(PARTITIONS, sector=sector)) == EXPECTED


@pytest.mark.parametrize(
    "damage", [slice(512, 520), slice(530, 531), slice(1024, 1030)], ids=["magic", "crc", "entries"]
)
def test_backup_is_used_when_the_first_table_is_damaged(tmp_path: Path, damage: slice) -> None:
    disk = make_disk(PARTITIONS)
    disk[damage] = b"\xff" * (damage.stop - damage.start)
    assert read(tmp_path, disk) == EXPECTED


@pytest.mark.parametrize("disk", [b"", bytes(DISK_SIZE), b"EFI PART" * 200], ids=["empty", "zeros", "nonsense"])
def test_no_table(tmp_path: Path, disk: bytes) -> None:
    with pytest.raises(BootError, match="no valid GUID partition table"):
        read(tmp_path, disk)


@pytest.mark.parametrize(
    ("offset", "value"),
    [(80, 1 << 31), (84, 1 << 31), (84, 8), (72, 1 << 62), (12, 1 << 30)],
    ids=["count", "entry-size", "small-entry", "entries-beyond-the-end", "header-size"],
)
def test_sizes_beyond_reason_are_refused(tmp_path: Path, offset: int, value: int) -> None:
    disk = make_disk(PARTITIONS)
    for own in (512, DISK_SIZE - 512):
        struct.pack_into("<Q" if offset == 72 else "<I", disk, own + offset, value)
        struct.pack_into("<I", disk, own + 16, 0)
        struct.pack_into("<I", disk, own + 16, zlib.crc32(disk[own : own + 92]))
    with pytest.raises(BootError):
        read(tmp_path, disk)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(512, 2048), st.binary(min_size=1, max_size=4)), min_size=1, max_size=5))
def test_a_damaged_table_is_the_backup_or_an_error(tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, bytes]]) -> None:  # fmt: skip  # noqa: E501
    disk = make_disk(PARTITIONS)
    for at, data in damage:
        disk[at : at + len(data)] = data
    assert read(tmp_path_factory.getbasetemp(), disk) == EXPECTED


def test_disks_below_partitions_and_device_mapper(tmp_path: Path) -> None:
    disk = tmp_path / "devices/pci/block/vda"
    for number in (1, 2):
        (disk / f"vda{number}").mkdir(parents=True)
        (disk / f"vda{number}/partition").write_text(f"{number}\n")
    mapped = tmp_path / "devices/virtual/block/dm-0"
    (mapped / "slaves").mkdir(parents=True)
    (mapped / "slaves/vda2").symlink_to(disk / "vda2")
    numbers = tmp_path / "dev/block"
    numbers.mkdir(parents=True)
    (numbers / "254:2").symlink_to(disk / "vda2")
    (numbers / "253:0").symlink_to(mapped)
    assert find_disks((254, 2), sys=str(tmp_path)) == [str(disk)]
    assert find_disks((253, 0), sys=str(tmp_path)) == [str(disk)]
    assert find_disks((9, 9), sys=str(tmp_path)) == []
    assert find_partition_device(str(disk), 2) == "vda2"
    assert find_partition_device(str(disk), 3) is None


@pytest.mark.parametrize("sector", [512, 4096])
def test_the_table_that_our_installer_writes(tmp_path: Path, sector: int) -> None:
    layout = plan_layout(
        architecture=get_architecture("amd64"),
        size=1 << 30,
        esp_size=300 << 20,
        identity=Identity(),
        sector_size=sector,
    )
    path = tmp_path / "disk"
    with path.open("wb") as disk:
        disk.truncate(layout.size)
        for at, data in format_gpt(layout):
            disk.seek(at)
            disk.write(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        esp, root = read_gpt(fd)
    finally:
        os.close(fd)
    assert (esp.number, esp.type_guid, esp.guid) == (1, ESP_TYPE, layout.esp.guid)
    assert (esp.start, esp.size) == (layout.esp.start, layout.esp.size)
    assert (root.number, root.name, root.start, root.size) == (2, "root", layout.root.start, layout.root.size)
