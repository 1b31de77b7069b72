"""The EFI system partition, read back by mtools."""

import os
import time
from pathlib import Path

import pytest

from bootwright.errors import SpaceError
from bootwright.image.vfat import Vfat, check_fits
from bootwright.linux.process import run

OFFSET = 1 << 20
ENV = {"MTOOLSRC": "/dev/null", "MTOOLS_SKIP_CHECK": "1", "TZ": "UTC"}


def make(work: Path, *, size: int, sector: int = 512, epoch: int | None = None) -> Vfat:
    with (work / "disk.raw").open("wb") as file:
        file.truncate(OFFSET + size)
    return Vfat(
        path="disk.raw",
        offset=OFFSET,
        size=size,
        label="ESP",
        volume_id=0x1234ABCD,
        work=str(work),
        sector_size=sector,
        epoch=epoch,
    )


def fill(work: Path) -> Path:
    esp = work / "esp dir"
    long = esp / "EFI/Linux" / f"bootc_composefs-{'a' * 128}"
    long.mkdir(parents=True)
    (long / "vmlinuz").write_bytes(os.urandom(3_000_000))
    (esp / "loader/entries").mkdir(parents=True)
    (esp / "loader/entries" / f"bootc_composefs-{'a' * 128}.conf").write_bytes(b"title x\n")
    return esp


@pytest.mark.parametrize(("size", "sector"), [(40 << 20, 512), (512 << 20, 512), (512 << 20, 4096)])
def test_files_come_back_from_fat32(tmp_path: Path, size: int, sector: int) -> None:
    esp = fill(tmp_path)
    make(tmp_path, size=size, sector=sector).format(str(esp))
    with (tmp_path / "disk.raw").open("rb") as file:
        file.seek(OFFSET)
        boot_sector = file.read(512)
    assert boot_sector[82:90] == b"FAT32   "
    assert int.from_bytes(boot_sector[11:13], "little") == sector
    out = tmp_path / "out"
    out.mkdir()
    image = f"disk.raw@@{OFFSET}"
    run(["mcopy", "-s", "-i", image, "::/EFI", "::/loader", str(out)], purpose="read", env=ENV, cwd=str(tmp_path))
    for path in esp.rglob("*"):
        if path.is_file():
            assert (out / path.relative_to(esp)).read_bytes() == path.read_bytes()


def test_same_bytes_for_the_same_time(tmp_path: Path) -> None:
    images = []
    for number in range(2):
        work = tmp_path / str(number)
        work.mkdir()
        esp = work / "esp"
        (esp / "loader").mkdir(parents=True)
        (esp / "loader/loader.conf").write_bytes(b"timeout 3\n")
        for path in (esp / "loader/loader.conf", esp / "loader"):
            os.utime(path, (1_700_000_000, 1_700_000_000))
        make(work, size=40 << 20, epoch=1_700_000_000).format(str(esp))
        # FAT counts in steps of two seconds: without the fixed time the second one would differ.
        time.sleep(2 - number * 2)
        images.append((work / "disk.raw").read_bytes())
    assert images[0] == images[1]


def test_content_that_does_not_fit_is_refused_with_the_size_that_is_enough(tmp_path: Path) -> None:
    esp = tmp_path / "esp"
    esp.mkdir()
    with (esp / "initrd").open("wb") as file:
        file.truncate(60 << 20)
    with pytest.raises(SpaceError, match=r"EFI system partition of 41\.9 MB needs") as caught:
        check_fits(str(esp), 40 << 20)
    assert caught.value.hint is not None
    enough = int(caught.value.hint.removeprefix("--esp-size ").partition("M")[0]) << 20
    make(tmp_path, size=enough).format(str(esp))
