"""The partition table, read back by sfdisk and by our own reader."""

import json
import os
from pathlib import Path

import pytest

from bootwright.image.gpt import format_gpt
from bootwright.image.layout import ARCHITECTURES, Identity, Layout, plan_layout
from bootwright.linux.partitions import read_gpt
from bootwright.linux.process import run


def write(path: Path, architecture: str, *, sector: int = 512) -> Layout:
    layout = plan_layout(
        architecture=ARCHITECTURES[architecture],
        size=700 << 20,
        esp_size=512 << 20,
        identity=Identity(b"seed"),
        sector_size=sector,
    )
    with path.open("wb") as file:
        file.truncate(layout.size)
        for offset, data in format_gpt(layout):
            file.seek(offset)
            file.write(data)
    assert path.stat().st_size == layout.size, "the backup ends where the disk ends"
    return layout


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sfdisk_finds_no_error_and_the_same_partitions(tmp_path: Path, architecture: str) -> None:
    disk = tmp_path / "disk.raw"
    layout = write(disk, architecture)
    assert b"No errors detected" in run(["sfdisk", "--verify", str(disk)], purpose="verify").stdout
    table = json.loads(run(["sfdisk", "-J", str(disk)], purpose="read").stdout)["partitiontable"]
    assert (table["label"], table["id"]) == ("gpt", str(layout.disk_guid).upper())
    found = [(p["name"], p["start"] * 512, p["size"] * 512, p["type"], p["uuid"]) for p in table["partitions"]]
    assert found == [
        (p.name, p.start, p.size, str(p.type_guid).upper(), str(p.guid).upper()) for p in layout.partitions
    ]


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("damaged", ["nothing", "primary"])
def test_our_reader_agrees_also_from_the_backup(tmp_path: Path, sector: int, damaged: str) -> None:
    disk = tmp_path / "disk.raw"
    layout = write(disk, "amd64", sector=sector)
    fd = os.open(disk, os.O_RDWR)
    try:
        if damaged == "primary":
            os.pwrite(fd, bytes(sector), sector)
        found = [(p.number, p.name, p.start, p.size, p.type_guid, p.guid) for p in read_gpt(fd)]
    finally:
        os.close(fd)
    assert found == [
        (number, p.name, p.start, p.size, p.type_guid, p.guid) for number, p in enumerate(layout.partitions, 1)
    ]


def test_protective_mbr(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    write(disk, "amd64")
    sector = disk.read_bytes()[:512]
    assert sector[510:] == b"\x55\xaa"
    assert sector[450] == 0xEE
