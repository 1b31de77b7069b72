"""Where things lie on a disk. Pure.

::

    LBA 0      protective MBR
    LBA 1..    GPT header and 128 entries
    1 MiB      ESP  "EFI-SYSTEM"   FAT32: systemd-boot, kernels, boot entries
    …          root "root"         ext4: the repository and the deployments; to the end of the disk
    end        backup of the GPT

Every partition starts and ends on a 1 MiB boundary, which suits every disk's physical blocks. Partition types are those
of the Discoverable Partitions Specification, so that systemd finds the root of its architecture by itself.
"""

from __future__ import annotations

import hashlib
import secrets
import uuid
from dataclasses import dataclass

from bootwright.errors import SpaceError, UsageError
from bootwright.units import format_size

__all__ = [
    "ALIGNMENT",
    "ARCHITECTURES",
    "ESP_SIZE_MIN",
    "Architecture",
    "Identity",
    "Layout",
    "Partition",
    "get_architecture",
    "plan_layout",
]

ALIGNMENT = 1 << 20
# FAT32 needs 65,525 clusters, which are at least one sector each: with 512-byte sectors 32 MiB and the tables.
ESP_SIZE_MIN = 36 << 20
_ROOT_SIZE_MIN = 16 << 20
_ESP_TYPE = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a disk for one architecture needs to know.

    Attributes:
        name: OCI's name, e.g. ``amd64``.
        root_type: partition type of a root filesystem (Discoverable Partitions Specification).
        efi_name: the architecture in the names of UEFI programs: ``x64`` in ``BOOTX64.EFI``.
        machine: the kernel's name, as ``uname -m`` prints it; programs that emulate it have it in theirs.
        rust_name: what drop-ins of bootc call it.
    """

    name: str
    root_type: uuid.UUID
    efi_name: str
    machine: str
    rust_name: str


# name, root type, UEFI's, the kernel's and Rust's name
_ROWS = (
    ("amd64", "4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "x64", "x86_64", "x86_64"),
    ("arm64", "b921b045-1df0-41c3-af44-4c6f280d3fae", "aa64", "aarch64", "aarch64"),
    ("386", "44479540-f297-41b2-9af7-d131d5f0458a", "ia32", "i686", "x86"),
    ("arm", "69dad710-2ce4-4e3c-b16c-21a1d49abed3", "arm", "armv7l", "arm"),
    ("riscv64", "72ec70a6-cf74-40e6-bd49-4bda08e8f224", "riscv64", "riscv64", "riscv64"),
    ("loong64", "77055800-792c-4f94-b39a-98c91b762bb6", "loongarch64", "loongarch64", "loongarch64"),
)
ARCHITECTURES = {name: Architecture(name, uuid.UUID(kind), *names) for name, kind, *names in _ROWS}


def get_architecture(name: str) -> Architecture:
    """Return the row of an architecture by its OCI name.

    Raises:
        UsageError: no UEFI machines of that architecture are known here.
    """
    try:
        return ARCHITECTURES[name]
    except KeyError:
        raise UsageError(
            f"no disk can be made for the architecture '{name[:40]}'", hint=f"known are {', '.join(ARCHITECTURES)}"
        ) from None


class Identity:
    """Gives every part of a disk its UUID, all derived from one seed.

    The same seed gives the same disk; without one it is random.
    """

    def __init__(self, seed: bytes | None = None) -> None:
        self._seed = secrets.token_bytes(32) if seed is None else seed

    def bytes_of(self, part: str, length: int) -> bytes:
        """Return up to 32 bytes for a part of the disk."""
        return hashlib.sha256(self._seed + b"\0" + part.encode()).digest()[:length]

    def uuid_of(self, part: str) -> uuid.UUID:
        """Return the UUID (version 4 by its form) for a part of the disk."""
        return uuid.UUID(bytes=self.bytes_of(part, 16), version=4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """One partition; start and size in bytes."""

    name: str
    type_guid: uuid.UUID
    guid: uuid.UUID
    start: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A whole disk; sizes in bytes.

    Attributes:
        size: of the disk.
        sector_size: logical sectors, 512 or 4096 bytes.
        disk_guid: of the partition table.
        esp: the EFI system partition, first on the disk.
        root: the root filesystem, last on the disk.
    """

    size: int
    sector_size: int
    disk_guid: uuid.UUID
    esp: Partition
    root: Partition

    @property
    def partitions(self) -> tuple[Partition, ...]:
        """The partitions in the order of their numbers."""
        return (self.esp, self.root)


def plan_layout(
    *,
    architecture: Architecture,
    size: int,
    esp_size: int,
    identity: Identity,
    root_size: int | None = None,
    sector_size: int = 512,
) -> Layout:
    """Divide a disk of ``size`` bytes into an ESP and a root; the root takes the rest unless it is given a size.

    Raises:
        UsageError: the ESP is too small to be FAT32.
        SpaceError: the disk is too small for what was asked.
    """
    esp_size = _round_up(esp_size)
    least = ESP_SIZE_MIN * sector_size // 512
    if esp_size < least:
        raise UsageError(
            f"an ESP of {format_size(esp_size)} is too small for FAT32", hint=f"--esp-size {least >> 20}M or more"
        )
    # The backup table is one sector of header and 16 KiB of entries at the very end.
    end = (size - sector_size - 16384) // ALIGNMENT * ALIGNMENT
    root_start = ALIGNMENT + esp_size
    room = end - root_start
    wanted = room if root_size is None else _round_up(root_size)
    if wanted > room or wanted < _ROOT_SIZE_MIN:
        needed = root_start + max(wanted, _ROOT_SIZE_MIN) + ALIGNMENT
        raise SpaceError(
            f"disk too small: {format_size(size)} do not hold an ESP of {format_size(esp_size)} and the root",
            hint=f"--size {-(-needed // ALIGNMENT)}M or more",
        )
    return Layout(
        size=size,
        sector_size=sector_size,
        disk_guid=identity.uuid_of("disk"),
        esp=Partition(
            name="EFI-SYSTEM",
            type_guid=_ESP_TYPE,
            guid=identity.uuid_of("partition esp"),
            start=ALIGNMENT,
            size=esp_size,
        ),
        root=Partition(
            name="root",
            type_guid=architecture.root_type,
            guid=identity.uuid_of("partition root"),
            start=root_start,
            size=wanted,
        ),
    )


def _round_up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
