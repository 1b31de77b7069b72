"""Dividing disks."""

import pytest

from bootwright.errors import SpaceError, UsageError
from bootwright.image.layout import ALIGNMENT, ARCHITECTURES, Identity, Layout, get_architecture, plan_layout

MIB = 1 << 20
GIB = 1 << 30


def plan(size: int, *, esp: int = 512 * MIB, root: int | None = None, sector: int = 512) -> Layout:
    return plan_layout(
        architecture=get_architecture("amd64"),
        size=size,
        esp_size=esp,
        root_size=root,
        identity=Identity(b"seed"),
        sector_size=sector,
    )


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("size", [2 * GIB, 2 * GIB + 512 * 4096 + 4096, 8 * GIB - 4096])
def test_partitions_are_aligned_in_order_and_leave_room_for_both_tables(size: int, sector: int) -> None:
    layout = plan(size, sector=sector)
    at = ALIGNMENT
    for partition in layout.partitions:
        assert partition.start % ALIGNMENT == 0
        assert partition.size % ALIGNMENT == 0
        assert partition.start >= at
        at = partition.start + partition.size
    assert at <= size - 16384 - sector
    assert size - at < 2 * ALIGNMENT, "no more is left over than alignment takes"


def test_root_may_be_smaller_than_the_rest() -> None:
    assert plan(8 * GIB, root=3 * GIB + 1).root.size == 3 * GIB + MIB


@pytest.mark.parametrize(
    ("size", "esp", "root"),
    [
        pytest.param(100 * MIB, 512 * MIB, None, id="esp-larger-than-the-disk"),
        pytest.param(514 * MIB, 512 * MIB, None, id="no-room-for-a-root"),
        pytest.param(2 * GIB, 512 * MIB, 2 * GIB, id="root-larger-than-the-rest"),
        pytest.param(0, 512 * MIB, None, id="nothing"),
    ],
)
def test_too_small_disks_are_refused_with_the_size_that_is_enough(size: int, esp: int, root: int | None) -> None:
    with pytest.raises(SpaceError, match="disk too small") as caught:
        plan(size, esp=esp, root=root)
    assert caught.value.hint is not None
    enough = int(caught.value.hint.removeprefix("--size ").partition("M")[0]) * MIB
    assert plan(enough, esp=esp, root=root).root.size > 0


def test_small_esp_is_refused() -> None:
    with pytest.raises(UsageError, match="too small for FAT32"):
        plan(8 * GIB, esp=MIB)
    with pytest.raises(UsageError, match="too small for FAT32"):
        plan(8 * GIB, esp=64 * MIB, sector=4096)


def test_identities_follow_their_seed() -> None:
    first, same, other = Identity(b"a"), Identity(b"a"), Identity(b"b")
    assert first.uuid_of("disk") == same.uuid_of("disk")
    assert len({first.uuid_of("disk"), first.uuid_of("root"), other.uuid_of("disk")}) == 3
    assert first.uuid_of("disk").version == 4
    assert Identity().uuid_of("disk") != Identity().uuid_of("disk")


def test_every_architecture_has_its_own_root_type() -> None:
    assert len({row.root_type for row in ARCHITECTURES.values()}) == len(ARCHITECTURES)
    with pytest.raises(UsageError, match="'sparc'"):
        get_architecture("sparc")
