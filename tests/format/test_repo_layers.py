"""A layer goes into objects and a splitstream and comes back byte for byte, whatever wrote the tar."""

import hashlib
import io
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bootwright.digest import Algorithm, VerityDigest
from bootwright.errors import ImageError, RepositoryError
from bootwright.linux import fsverity
from bootwright.oci.archive import TarReader
from bootwright.repo.entries import HARD_LINK, LayerEntry
from bootwright.repo.layers import import_layer, read_layer
from bootwright.repo.objects import MEMORY_LIMIT, ObjectStore
from bootwright.repo.streams import iter_bytes, parse_splitstream
from fakes.images import Entry, device, directory, fifo, file, hardlink, make_tar, symlink

BIG = bytes(range(256)) * ((MEMORY_LIMIT >> 8) + 100)


@pytest.fixture(params=[Algorithm.SHA256, Algorithm.SHA512], ids=["sha256", "sha512"])
def objects(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    store = ObjectStore(str(tmp_path), request.param, verity=False)
    yield store
    store.close()


def run(tar: bytes, objects: ObjectStore, piece: int = 1 << 20) -> list[LayerEntry]:
    """Import a tar, rebuild it from the store alone, and read its entries again."""
    source = io.BytesIO(tar)
    entries, digest, size = import_layer(TarReader(lambda n: source.read(min(n, piece))), objects)
    assert size == len(tar)
    stream = parse_splitstream(objects.read(digest, verify=True), origin="layer")
    assert stream.size == len(tar)
    assert b"".join(iter_bytes(stream, objects.iter)) == tar
    assert read_layer(stream, objects) == entries
    return entries


ENTRIES: list[Entry] = [
    directory("usr", mtime=1234567890),
    file("usr/empty"),
    file("usr/64", b"a" * 64),
    file("usr/65", b"b" * 65),
    file("usr/block", b"c" * 512),
    file("usr/page", b"d" * 4097, uid=1000, gid=2000, uname="", gname=""),
    file("usr/big", BIG),
    file("usr/capable", b"e" * 100, xattrs={"security.capability": b"\1\0\0\2\xff", "user.other": b"x"}),
    file("usr/" + "long" * 60 + "/" + "n" * 200, b"f" * 70),
    file("usr/\udcff\udcfe bytes", b"g" * 70),
    file("usr/new\nline", b"h"),
    symlink("usr/link", "../some/" + "target" * 30),
    hardlink("usr/hard", "usr/65"),
    hardlink("usr/hard-to-long", "usr/" + "long" * 60 + "/" + "n" * 200),
    device("usr/null", 1, 3),
    device("usr/disk", 259, 70000, is_block=True),
    fifo("usr/pipe"),
    file("usr/later", b"i" * 99, mtime=1700000000.123456789),
    file("usr/before-1970", b"j" * 99, mtime=-5),
    file("usr/rich", b"k" * 99, uid=3_000_000_000),
]


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
@pytest.mark.parametrize("piece", [1 << 20, 700])
def test_round_trip(objects: ObjectStore, tar_format: int, piece: int) -> None:
    entries = {entry.name: entry for entry in run(make_tar(ENTRIES, tar_format=tar_format), objects, piece)}
    assert len(entries) == len(ENTRIES)
    assert entries[b"usr/64"].content == b"a" * 64
    assert entries[b"usr/65"].content is None
    assert entries[b"usr/65"].digest == fsverity.compute(b"b" * 65, objects.algorithm).raw
    assert entries[b"usr/big"].digest == fsverity.compute(BIG, objects.algorithm).raw
    assert entries[b"usr/big"].size == len(BIG)
    assert entries[b"usr/page"].uid == 1000
    assert entries[b"usr/hard"].mode == HARD_LINK
    assert entries[b"usr/hard"].link == b"usr/65"
    assert entries[b"usr/\xff\xfe bytes"].size == 70
    assert stat.S_ISCHR(entries[b"usr/null"].mode)
    # The kernel's 32-bit form: low byte of the minor, major, the rest of the minor.
    assert entries[b"usr/null"].rdev == 0x103
    assert entries[b"usr/disk"].rdev == (70000 & 0xFF) | 259 << 8 | (70000 & ~0xFF) << 12
    if tar_format == tarfile.PAX_FORMAT:
        assert entries[b"usr/capable"].capability == b"\1\0\0\2\xff"
        assert entries[b"usr/later"].mtime_nsec > 0
    assert entries[b"usr/before-1970"].mtime_sec == -5


def test_what_is_inline_is_not_an_object(objects: ObjectStore) -> None:
    run(make_tar([file("a", b"x" * 64), file("b", b"")]), objects)
    assert objects.size_of(fsverity.compute(b"x" * 64, objects.algorithm)) is None
    assert objects.size_of(fsverity.compute(b"", objects.algorithm)) is None


def test_same_content_is_stored_once(objects: ObjectStore) -> None:
    run(make_tar([file("a", b"x" * 100), file("b", b"x" * 100)]), objects)
    assert objects.counts.objects_reused >= 1


@pytest.mark.parametrize("padding", [0, 512, 9216, 100_000])
def test_record_padding_is_kept(objects: ObjectStore, padding: int) -> None:
    plain = make_tar([file("a", b"x" * 100)]).rstrip(b"\0")
    plain += bytes(-len(plain) % 512 + 1024)
    run(plain + bytes(padding), objects)


def test_hard_link_with_a_body_is_kept(objects: ObjectStore) -> None:
    """Allowed by POSIX, written by some (pax -o linkdata); the body makes no file but belongs to the diff id."""
    first = make_tar([file("a", b"x" * 100)]).rstrip(b"\0")
    first += bytes(-len(first) % 512)
    info = tarfile.TarInfo("b")
    info.type, info.linkname, info.size = tarfile.LNKTYPE, "a", 600
    body = b"\1" * 600 + bytes(-600 % 512)
    entries = run(first + info.tobuf(tarfile.USTAR_FORMAT) + body + bytes(1024), objects)
    assert [entry.mode for entry in entries] == [0o100644, HARD_LINK]


def old_gnu_sparse() -> bytes:
    header = bytearray(tarfile.TarInfo("holes").tobuf(tarfile.GNU_FORMAT))
    pieces = [(4096, 512), (1 << 20, 100)]
    header[124:136] = b"%011o\0" % sum(length for _, length in pieces)
    header[156] = ord("S")
    for number, (offset, length) in enumerate(pieces):
        header[386 + 24 * number : 410 + 24 * number] = b"%011o\0%011o\0" % (offset, length)
    header[483:495] = b"%011o\0" % ((2 << 20) + 5)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"s" * 612 + bytes(-612 % 512) + bytes(1024)


def pax_sparse_1_0() -> bytes:
    sparse_map = b"2\n4096\n512\n1048576\n100\n".ljust(512, b"\0")
    info = tarfile.TarInfo("GNUSparseFile.0/holes")
    info.size = 512 + 612
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "holes",
        "GNU.sparse.realsize": str((2 << 20) + 5),
    }
    return info.tobuf(tarfile.PAX_FORMAT) + sparse_map + b"s" * 612 + bytes(-1124 % 512) + bytes(1024)


@pytest.mark.parametrize("make", [old_gnu_sparse, pax_sparse_1_0])
def test_sparse_file(objects: ObjectStore, make: Callable[[], bytes]) -> None:
    (entry,) = run(make(), objects)
    real = bytearray((2 << 20) + 5)
    real[4096:4608] = b"s" * 512
    real[1 << 20 : (1 << 20) + 100] = b"s" * 100
    assert entry.name == b"holes"
    assert entry.size == len(real)
    assert entry.digest == fsverity.compute(real, objects.algorithm).raw
    assert objects.read(VerityDigest(entry.digest)) == real


def test_sparse_content_is_kept_by_its_stream(objects: ObjectStore) -> None:
    """No byte of the tar refers to the real content, but garbage collection must not take it."""
    source = io.BytesIO(old_gnu_sparse())
    (entry,), digest, _ = import_layer(TarReader(source.read), objects)
    stream = parse_splitstream(objects.read(digest), origin="layer")
    assert entry.digest in [reference.raw for reference in stream.object_refs]


def test_sparse_file_of_unreasonable_size(objects: ObjectStore) -> None:
    info = tarfile.TarInfo("huge")
    info.size = 512
    info.pax_headers = {"GNU.sparse.map": "0,512", "GNU.sparse.size": str(1 << 37)}
    source = io.BytesIO(info.tobuf(tarfile.PAX_FORMAT) + bytes(512 + 1024))
    with pytest.raises(ImageError, match="'huge' has 137438953472 bytes, more than 16 GiB"):
        import_layer(TarReader(source.read), objects)


def test_small_sparse_file_lives_in_the_image(objects: ObjectStore) -> None:
    info = tarfile.TarInfo("small")
    info.size = 3
    info.pax_headers = {"GNU.sparse.map": "5,3", "GNU.sparse.size": "10"}
    (entry,) = run(info.tobuf(tarfile.PAX_FORMAT) + b"abc".ljust(512, b"\0") + bytes(1024), objects)
    assert entry.content == bytes(5) + b"abc" + bytes(2)


def test_missing_object_of_a_stored_layer(objects: ObjectStore) -> None:
    source = io.BytesIO(make_tar([file("a", b"x" * 100)]))
    (entry,), digest, _ = import_layer(TarReader(source.read), objects)
    stream = parse_splitstream(objects.read(digest), origin="layer")
    assert entry.digest is not None
    path = Path(objects.path, VerityDigest(entry.digest).object_path)
    path.write_bytes(b"x" * 99)
    with pytest.raises(RepositoryError):
        read_layer(stream, objects)
    path.unlink()
    with pytest.raises(RepositoryError, match="missing"):
        read_layer(stream, objects)


NAMES = st.binary(min_size=1, max_size=120).filter(lambda name: not set(name) & {0, 47} and name not in (b".", b".."))


@given(
    files=st.dictionaries(NAMES, st.binary(max_size=200), max_size=8),
    tar_format=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    piece=st.integers(1, 2000),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_names_and_contents(tmp_path: Path, files: dict[bytes, bytes], tar_format: int, piece: int) -> None:
    store = ObjectStore(str(tmp_path), Algorithm.SHA256, verity=False)
    try:
        tar = make_tar(
            [file(f"d/{name.decode('utf-8', 'surrogateescape')}", data) for name, data in files.items()],
            tar_format=tar_format,
        )
        entries = run(tar, store, piece)
    finally:
        store.close()
    assert [(entry.name, entry.size) for entry in entries] == [
        (b"d/" + name, len(data)) for name, data in files.items()
    ]


def test_diff_id_survives(objects: ObjectStore) -> None:
    tar = make_tar(ENTRIES)
    source = io.BytesIO(tar)
    _, digest, _ = import_layer(TarReader(source.read), objects)
    rebuilt = hashlib.sha256()
    for piece in iter_bytes(parse_splitstream(objects.read(digest), origin="layer"), objects.iter):
        rebuilt.update(piece)
    assert rebuilt.hexdigest() == hashlib.sha256(tar).hexdigest()
