"""Damaged archives, streams and documents: an error of ours or a result, never anything else, in bounded memory."""

from __future__ import annotations

import gzip
import io
import tracemalloc

import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bootwright.errors import BootwrightError
from bootwright.oci.layer import TarReader, expand_sparse, open_layer
from bootwright.oci.sparse import MAX_SPARSE_SIZE
from fakes.images import device, directory, file, hardlink, make_tar, symlink
from fakes.tars import END, long_name, member, old_sparse, pad, pax

SEEDS = [
    make_tar([directory("d", xattrs={"user.a": b"\xff\0"}), file("d/" + "n" * 150, b"x" * 700), symlink("s", "d"),
              hardlink("h", "s"), device("c", 1, 3)]),
    old_sparse(b"sparse", [(n * 100, 10) for n in range(30)], b"0123456789" * 30, 4000) + END,
    pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"5000"),
        (b"GNU.sparse.name", b"s")) + member(b"x", pad(b"2\n0\n3\n4000\n3\n") + b"abcdef") + END,
    pax((b"GNU.sparse.map", b"0,3,100,3"), (b"GNU.sparse.size", b"200")) + member(b"s", b"abcdef")
    + long_name(b"l" * 200) + long_name(b"t" * 200, b"K") + member(b"l", kind=b"2")
    + pax((b"path", b"p" * 120), (b"mtime", b"1.5"), (b"size", b"4")) + member(b"p", b"data") + END,
]  # fmt: skip
_MAX_EXPANDED = 1 << 20


def exhaust(archive: bytes, chunk: int = 1 << 16) -> None:
    """Read everything; when it succeeds the parts must be the archive."""
    source = io.BytesIO(archive)
    reader = TarReader(lambda size: source.read(min(size, chunk)))
    rebuilt = []
    for entry in reader:
        body = b"".join(reader.iter_body())
        rebuilt += [entry.header, body]
        assert b".." not in entry.name.split(b"/")
        assert b"\0" not in entry.name
        assert not entry.name.startswith(b"/")
        if entry.sparse is not None and entry.size <= _MAX_EXPANDED:
            assert sum(map(len, expand_sparse(entry, [body]))) == entry.size
        assert entry.size <= max(MAX_SPARSE_SIZE, len(archive))
    assert b"".join([*rebuilt, reader.trailer]) == archive


def exhaust_or_refuse(archive: bytes, chunk: int = 1 << 16) -> None:
    try:
        exhaust(archive, chunk)
    except BootwrightError as exc:
        assert exc.message.isprintable()  # noqa: PT017 — both outcomes are right


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    st.booleans(),
    st.sampled_from([100, 512, 1 << 16]),
)
def test_mutated_archives(seed: bytes, changes: list[tuple[float, int]], resealed: bool, chunk: int) -> None:
    data = bytearray(seed)
    for where, value in changes:
        data[int(where * len(data))] = value
    if resealed:
        # With checksums that are right again the changes reach the parsers behind them.
        for at in range(0, len(data) - 511, 512):
            block = data[at : at + 512]
            if block[257:262] == b"ustar":
                block[148:156] = b" " * 8
                data[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    exhaust_or_refuse(bytes(data), chunk)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(SEEDS), st.floats(0, 1))
def test_truncated_archives(seed: bytes, where: float) -> None:
    exhaust_or_refuse(seed[: int(where * len(seed))])


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(
    st.sampled_from([b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime", b"SCHILY.realsize", b"GNU.sparse.map",
                     b"GNU.sparse.size", b"GNU.sparse.realsize", b"GNU.sparse.name", b"GNU.sparse.major",
                     b"GNU.sparse.minor", b"GNU.sparse.offset", b"GNU.sparse.numbytes", b"SCHILY.xattr.user.x",
                     b"LIBARCHIVE.xattr.user.y"]),
    st.binary(max_size=30) | st.integers(-5, 1 << 70).map(lambda n: b"%d" % n),
    max_size=5,
), st.sampled_from([b"0", b"S", b"1", b"2", b"5"]))  # fmt: skip
def test_any_pax_records(records: dict[bytes, bytes], kind: bytes) -> None:
    exhaust_or_refuse(pax(*records.items()) + member(b"x", b"1\n0\n5\n", kind=kind, linkname=b"l") + END)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=3000))
def test_any_bytes(data: bytes) -> None:
    exhaust_or_refuse(data)
    exhaust_or_refuse(pad(data))


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([gzip.compress(SEEDS[0]), zstandard.ZstdCompressor(write_checksum=True).compress(SEEDS[0])]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=3),
    st.floats(0, 1),
)
def test_mutated_streams(seed: bytes, changes: list[tuple[float, int]], cut: float) -> None:
    data = bytearray(seed)
    for where, value in changes:
        data[int(where * len(data))] = value
    for blob in (bytes(data), bytes(data[: int(cut * len(data))])):
        try:
            layer = open_layer(io.BytesIO(blob), "application/vnd.oci.image.layer.v1.tar")
            exhaust(b"".join(iter(layer.read, b"")))
        except BootwrightError as exc:
            assert exc.message.isprintable()  # noqa: PT017


def test_memory_does_not_grow_with_what_an_archive_claims() -> None:
    """A body of 64 MiB, a trailer of 32 MiB, a sparse file of 200 GiB: read through a small window."""
    total = 0

    class Endless(io.RawIOBase):
        def __init__(self) -> None:
            head = member(b"big", b"")[:124] + b"%011o\0" % (64 << 20)
            block = bytearray(member(b"big"))
            block[124:136] = head[124:136]
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
            self._pieces = [bytes(block), *[bytes(1 << 20)] * 64,
                            old_sparse(b"sparse", [(0, 1)], b"x", b"\x80" + (200 << 30).to_bytes(11, "big")),
                            *[bytes(1 << 20)] * 32]  # fmt: skip

        def next_piece(self, size: int) -> bytes:
            return self._pieces.pop(0) if self._pieces else b""

    source = Endless()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    reader = TarReader(source.next_piece)
    for entry in reader:
        for piece in reader.iter_body():
            total += len(piece)
        if entry.sparse is not None:
            content = expand_sparse(entry, [b"x"])
            assert max(len(next(content)) for _ in range(1000)) <= 1 << 20
    total += sum(map(len, reader.iter_trailer()))
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert total > 95 << 20
    assert peak < 8 << 20
