"""Finding the ESP through the kernel's and the boot loader's words, in directories laid out like theirs."""

import uuid
from pathlib import Path

import pytest

from bootwright.boot.esp import find_boot_partition, read_boot_loader, read_loader_variable
from bootwright.errors import BootError
from bootwright.linux.partitions import ESP_TYPE
from fakes.gpt import make_disk

LOADER = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"


def write_variable(directory: Path, name: str, text: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / f"{name}-{LOADER}").write_bytes(b"\6\0\0\0" + text.encode("utf-16-le") + b"\0\0")


@pytest.mark.parametrize(
    ("told", "has_directory", "loader"),
    [
        ("systemd-boot 257", False, "systemd"),
        ("GRUB CC 2.12", False, "grub-cc"),
        ("GRUB 2.12", True, "grub"),
        (None, True, "systemd"),
        (None, False, "grub"),
    ],
)
def test_boot_loader(tmp_path: Path, told: str | None, has_directory: bool, loader: str) -> None:
    variables, boot_root = tmp_path / "efivars", tmp_path / "esp"
    if told is not None:
        write_variable(variables, "LoaderInfo", told)
    if has_directory:
        (boot_root / "EFI/systemd").mkdir(parents=True)
    assert read_boot_loader(str(boot_root), directory=str(variables)) == loader
    assert read_loader_variable("LoaderInfo", directory=str(variables)) == told


def lay_out(tmp_path: Path, esps: list[uuid.UUID]) -> tuple[str, str]:
    """A disk `vda` whose first partitions are ESPs; returns the directories that stand for /sys and /dev."""
    types = [(ESP_TYPE, guid, "esp") for guid in esps] + [(uuid.UUID(int=7), uuid.UUID(int=8), "root")]
    disk = make_disk(dict(enumerate(types, 1)))
    sys, dev = tmp_path / "sys", tmp_path / "dev"
    dev.mkdir()
    (dev / "vda").write_bytes(disk)
    for number in range(1, len(esps) + 2):
        (sys / f"devices/vda/vda{number}").mkdir(parents=True)
        (sys / f"devices/vda/vda{number}/partition").write_text(f"{number}\n")
    (sys / "dev/block").mkdir(parents=True)
    (sys / "dev/block/254:9").symlink_to(sys / f"devices/vda/vda{len(esps) + 1}")
    return str(sys), str(dev)


def test_the_esp_of_the_disk_is_found(tmp_path: Path) -> None:
    sys, dev = lay_out(tmp_path, [uuid.UUID(int=1)])
    found = find_boot_partition((254, 9), sys=sys, dev=dev, efi_variables=str(tmp_path / "none"))
    assert found.device == f"{dev}/vda1"


def test_of_several_the_boot_loaders_own_is_taken(tmp_path: Path) -> None:
    first, second = uuid.uuid4(), uuid.uuid4()
    sys, dev = lay_out(tmp_path, [first, second])
    assert find_boot_partition((254, 9), sys=sys, dev=dev, efi_variables=str(tmp_path / "v")).guid == first
    write_variable(tmp_path / "v", "LoaderDevicePartUUID", str(second).upper())
    assert find_boot_partition((254, 9), sys=sys, dev=dev, efi_variables=str(tmp_path / "v")).device == f"{dev}/vda2"


def test_no_esp(tmp_path: Path) -> None:
    sys, dev = lay_out(tmp_path, [])
    with pytest.raises(BootError, match="no EFI system partition"):
        find_boot_partition((254, 9), sys=sys, dev=dev, efi_variables="/nonexistent")
    (tmp_path / "dev/vda").write_bytes(b"")
    with pytest.raises(BootError, match="no valid GUID partition table"):
        find_boot_partition((254, 9), sys=sys, dev=dev, efi_variables="/nonexistent")
