"""What debugfs prints is parsed right for every file name, and its errors are seen."""

import stat
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bootwright.errors import ImageError, SpaceError, ToolError
from bootwright.image.debugfs import ROOT_INODE, Debugfs, _parse_records
from bootwright.image.ext4 import Ext4, Metadata, Needs, check_filesystem, default_metadata

NAMES = [
    b"a b",
    b"q\"uo'te",
    b"new\nline",
    b"\xff\xfe",
    b"debugfs: ls -p <2>",
    b"x" * 255,
    b"-d",
    b"<12>",
    b"#c",
    b"\t",
]
OFFSET = 1 << 20
SIZE = 64 << 20


def make(work: Path, *, size: int = SIZE, epoch: int | None = None) -> Ext4:
    return Ext4(
        "disk.raw",
        offset=OFFSET,
        size=size,
        label="root",
        fs_uuid=uuid.UUID(int=1),
        hash_seed=uuid.UUID(int=2),
        work=str(work),
        epoch=epoch,
    )


@pytest.fixture
def work(tmp_path: Path) -> Path:
    # A question mark would begin options if it came into debugfs's view.
    path = tmp_path / "a work? directory@@1,M"
    path.mkdir()
    with (path / "disk.raw").open("wb") as file:
        file.truncate(OFFSET + SIZE)
    (path / "root").mkdir()
    return path


def test_every_name_gets_its_metadata(work: Path) -> None:
    metadata = {}
    for number, name in enumerate(NAMES):
        (work / "root").joinpath(name.decode("utf-8", "surrogateescape")).write_bytes(b"x")
        metadata[b"/" + name] = Metadata(
            mode=stat.S_IFREG | 0o4751, uid=70000 + number, gid=number, xattrs={b"security.capability": bytes([number])}
        )
    (work / "root/dir").mkdir()
    (work / "root/dir/link").symlink_to("nowhere")
    metadata[b"/dir"] = Metadata(mode=stat.S_IFDIR | 0o1777, uid=1)
    metadata[b"/dir/link"] = Metadata(mode=stat.S_IFLNK | 0o777, uid=2, gid=3)
    metadata[b"/dir/null device"] = Metadata(mode=stat.S_IFCHR | 0o666, rdev=0x103, gid=5)
    root = make(work)
    root.format("root")
    root.complete(metadata, {})
    check_filesystem("disk.raw", OFFSET, work=str(work))

    tool = Debugfs("disk.raw", OFFSET, work=str(work))
    found = tool.walk()
    assert {path: (found[path].mode, found[path].uid, found[path].gid) for path in metadata} == {
        path: (one.mode, one.uid, one.gid) for path, one in metadata.items()
    }
    inode = found[b"/" + NAMES[7]].inode
    said = tool.run_script([f"ea_list <{inode}>"], purpose="list", writing=False)
    assert b"security.capability (1) = 07" in said
    assert found[b"/"].inode == ROOT_INODE


def test_failed_commands_are_noticed_although_debugfs_exits_with_0(work: Path) -> None:
    make(work).format("root")
    tool = Debugfs("disk.raw", OFFSET, work=str(work))
    with pytest.raises(ToolError, match=r"could not try: 'debugfs' says: .*invalid field"):
        tool.run_script(["sif <2> colour 5"], purpose="try", writing=True)


def test_missing_sealed_file_is_noticed(work: Path) -> None:
    root = make(work)
    root.format("root")
    with pytest.raises(ToolError, match="has left out 1 files"):
        root.complete({}, {b"/composefs/objects/aa/bb": 5})


@pytest.mark.parametrize("name", [b"a b", b"", b"x\ny", b"\xff"])
def test_odd_attribute_names_are_refused(work: Path, name: bytes) -> None:
    (work / "root/file").write_bytes(b"")
    root = make(work)
    root.format("root")
    with pytest.raises(ImageError, match="whose name cannot be written"):
        root.complete({b"/file": Metadata(mode=stat.S_IFREG | 0o644, xattrs={name: b"v"})}, {})


def test_device_with_a_control_character_is_refused(work: Path) -> None:
    root = make(work)
    root.format("root")
    with pytest.raises(ImageError, match="control character"):
        root.complete({b"/a\nb": Metadata(mode=stat.S_IFBLK | 0o600, rdev=0x800)}, {})


def test_times_of_a_reproducible_filesystem(work: Path) -> None:
    (work / "root/file").write_bytes(b"x")
    root = make(work, epoch=1_700_000_000)
    root.format("root")
    root.complete({}, {})
    said = Debugfs("disk.raw", OFFSET, work=str(work)).run_script(["stat /file"], purpose="look", writing=False)
    assert said.count(b"0x6553f100") >= 3


def test_too_much_data_is_a_space_error(work: Path) -> None:
    (work / "root/big").write_bytes(b"x" * SIZE)
    with pytest.raises(SpaceError, match="no space left while the root filesystem was written"):
        make(work).format("root")


def test_capacity_is_that_of_the_real_filesystem_and_needs_are_checked_against_it(work: Path) -> None:
    (work / "root/file").write_bytes(b"x" * 10000)
    root = make(work)
    capacity = root.measure_capacity()
    assert not (work / "capacity.ext4").exists()
    assert 0 < capacity.free_bytes < SIZE
    needs = Needs()
    needs.add_tree(str(work / "root"), known={})
    assert (needs.size, needs.inodes) == (4096 + 12288, 2)
    needs.size = capacity.free_bytes
    with pytest.raises(SpaceError, match=r"disk too small: the root partition of 67\.1 MB needs"):
        needs.check(capacity, partition_size=SIZE)
    needs.size, needs.inodes = 0, capacity.free_inodes + 1
    with pytest.raises(SpaceError, match="disk too small"):
        needs.check(capacity, partition_size=SIZE)


def test_filesystem_that_is_smaller_than_its_own_overhead(work: Path) -> None:
    with pytest.raises(SpaceError, match="hold no root filesystem"):
        make(work, size=40960).measure_capacity()


def test_default_metadata() -> None:
    assert default_metadata(stat.S_IFDIR | 0o700) == Metadata(mode=stat.S_IFDIR | 0o755)
    assert default_metadata(stat.S_IFREG) == Metadata(mode=stat.S_IFREG | 0o644)
    assert default_metadata(stat.S_IFLNK) == Metadata(mode=stat.S_IFLNK | 0o777)


name = st.binary(min_size=1, max_size=40).map(lambda data: data.replace(b"/", b"_").replace(b"\0", b"_"))
numbers = st.integers(0, 2**32 - 1)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(st.tuples(name, numbers, st.integers(0, 0o177777), numbers, numbers, st.none() | numbers)))
def test_lists_are_parsed_whatever_the_names_are(
    records: list[tuple[bytes, int, int, int, int, int | None]],
) -> None:
    text = b"".join(
        b"/%d/%06o/%d/%d/%s/%s/\n" % (inode, mode, uid, gid, name, b"" if size is None else b"%d" % size)
        for name, inode, mode, uid, gid, size in records
    )
    found, end = _parse_records(text + b"\ndebugfs: next", 0)
    assert end == len(text) + 1
    assert [(name, one.inode, one.mode, one.uid, one.gid, one.size) for name, one in found] == [
        (name, inode, mode, uid, gid, size or 0) for name, inode, mode, uid, gid, size in records
    ]


@given(st.binary(max_size=60).filter(lambda data: data.count(b"/") < 7))
def test_cut_lists_are_refused_or_empty(data: bytes) -> None:
    if data.startswith(b"/"):
        with pytest.raises(ToolError):
            _parse_records(data, 0)
    else:
        assert _parse_records(data, 0)[0] == []
