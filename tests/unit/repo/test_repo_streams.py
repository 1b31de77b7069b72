import struct
from collections.abc import Callable, Iterator

import pytest
import zstandard

from bootwright.digest import Algorithm, VerityDigest
from bootwright.errors import RepositoryError
from bootwright.repo.streams import (
    CONTENT_LAYER,
    SplitStreamWriter,
    is_splitstream,
    iter_bytes,
    parse_splitstream,
)

OBJECTS = {VerityDigest(bytes([n]) * 32): bytes([n]) * (100 * n) for n in range(1, 5)}


def read_object(digest: VerityDigest) -> Iterator[bytes]:
    data = OBJECTS[digest]
    yield data[:30]
    yield data[30:]


def example() -> bytes:
    writer = SplitStreamWriter(Algorithm.SHA256, CONTENT_LAYER)
    writer.add_inline(b"head")
    writer.add_inline(b"er")
    writer.add_object(b"\1" * 32, 100)
    writer.add_object(b"\2" * 32, 200)
    writer.add_object(b"\1" * 32, 100)
    writer.add_inline(b"end")
    writer.need_object(b"\4" * 32)
    writer.add_name("zeta", b"\7" * 32)
    writer.add_name("alpha", b"\x08" * 32)
    writer.add_name("beta", b"\7" * 32)
    return writer.finish()


EXPECTED = b"header" + b"\1" * 100 + b"\2" * 200 + b"\1" * 100 + b"end"


def test_round_trip() -> None:
    stream = parse_splitstream(example(), origin="x")
    assert stream.content_type == b"ocilayer"
    assert stream.size == len(EXPECTED)
    assert [digest.raw[0] for digest in stream.object_refs] == [1, 2, 4]
    assert {name: digest.raw[0] for name, digest in stream.names.items()} == {"alpha": 8, "beta": 7, "zeta": 7}
    assert b"".join(iter_bytes(stream, read_object)) == EXPECTED


def test_empty_stream() -> None:
    stream = parse_splitstream(SplitStreamWriter(Algorithm.SHA512, CONTENT_LAYER).finish(), origin="x")
    assert stream.size == 0
    assert list(stream.pieces()) == []
    assert stream.names == {}


def test_layout_is_the_documented_one() -> None:
    """Taken apart with struct alone, by the description of the format."""
    data = example()
    magic, version, flags, algorithm, block, start, end = struct.unpack_from("<11sBHBBQQ", data)
    assert (magic, version, flags, algorithm, block, start, end) == (b"SplitStream", 0, 0, 1, 12, 32, 112)
    info = struct.unpack_from("<8Q8sQ", data, start)
    assert data[info[0] : info[1]] == b"\7" * 32 + b"\x08" * 32
    assert data[info[2] : info[3]] == b"\1" * 32 + b"\2" * 32 + b"\4" * 32
    assert zstandard.ZstdDecompressor().decompress(data[info[6] : info[7]]) == b"0:beta\x000:zeta\x001:alpha\x00"
    plain = zstandard.ZstdDecompressor().decompressobj().decompress(data[info[4] : info[5]])
    expected = struct.pack("<q", -6) + b"header" + struct.pack("<qqqq", 0, 1, 0, -3) + b"end"
    assert plain == expected
    assert info[8:] == (b"ocilayer", len(EXPECTED))


def test_old_order_of_the_header_is_read() -> None:
    data = bytearray(example())
    data[:32] = struct.pack("<QQH11sBBB", 32, 112, 0, b"SplitStream", 0, 1, 12)
    assert is_splitstream(bytes(data[:32]))
    assert b"".join(iter_bytes(parse_splitstream(bytes(data), origin="x"), read_object)) == EXPECTED


def test_longer_info_block_is_allowed() -> None:
    """Later versions may append to it; ours lies at the end of the file here."""
    data = bytearray(example())
    start = len(data)
    data += data[32:112] + b"more"
    data[16:32] = struct.pack("<QQ", start, len(data))
    assert b"".join(iter_bytes(parse_splitstream(bytes(data), origin="x"), read_object)) == EXPECTED


def test_long_inline_run_is_split() -> None:
    writer = SplitStreamWriter(Algorithm.SHA256, CONTENT_LAYER)
    block = bytes(range(256)) * 1024
    for _ in range(20):
        writer.add_inline(block)
    stream = parse_splitstream(writer.finish(), origin="x")
    pieces = list(stream.pieces())
    assert all(isinstance(piece, bytes) and len(piece) <= 1 << 17 for piece in pieces)
    assert b"".join(piece for piece in pieces if isinstance(piece, bytes)) == block * 20


def patched(offset: int, layout: str, *values: int | bytes) -> bytes:
    data = bytearray(example())
    struct.pack_into(layout, data, offset, *values)
    return bytes(data)


def with_stream(plain: bytes, size: int = len(EXPECTED), compress: Callable[[bytes], bytes] | None = None) -> bytes:
    """The example with another stream at its end."""
    data = bytearray(example())
    stream = (compress or zstandard.ZstdCompressor().compress)(plain)
    struct.pack_into("<QQ", data, 32 + 32, len(data), len(data) + len(stream))
    struct.pack_into("<Q", data, 32 + 72, size)
    return bytes(data) + stream


def q(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}q", *numbers)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "not a splitstream", id="empty"),
        pytest.param(b"x" * 200, "not a splitstream", id="foreign"),
        pytest.param(example()[:31], "not a splitstream", id="cut-header"),
        pytest.param(example()[:100], "range 32-112", id="cut-info"),
        pytest.param(patched(11, "<B", 1), "unknown kind", id="version"),
        pytest.param(patched(12, "<H", 1), "unknown kind", id="flags"),
        pytest.param(patched(14, "<B", 3), "unknown kind", id="algorithm"),
        pytest.param(patched(15, "<B", 16), "unknown kind", id="block"),
        pytest.param(patched(16, "<QQ", 112, 32), "range 112-32", id="backwards"),
        pytest.param(patched(16, "<QQ", 32, 64), "info block of 32 bytes", id="short-info"),
        pytest.param(patched(16, "<QQ", 32, 1 << 63), "range", id="huge-info"),
        pytest.param(patched(32 + 16, "<QQ", 112, 112 + 33), "broken list", id="uneven-digests"),
        pytest.param(patched(32 + 64 - 16, "<QQ", 0, 1 << 40), "range", id="names-outside"),
        pytest.param(patched(32 + 48, "<QQ", 112, 150), "damaged", id="names-not-zstd"),
        pytest.param(with_stream(b"x"), "middle of a length", id="cut-length"),
        pytest.param(with_stream(q(-10) + b"abc"), "middle of its data", id="cut-data"),
        pytest.param(with_stream(q(3)), "object 3 of 3", id="object-number"),
        pytest.param(with_stream(q(-(1 << 63))), "more than its", id="most-negative"),
        pytest.param(with_stream(q(-5) + b"abcde", size=4), "more than its 4", id="too-much-inline"),
        pytest.param(with_stream(q(-5) + b"abcde", size=6), "gives 5 bytes, expected 6", id="too-little"),
        pytest.param(with_stream(q(1), size=100), "expected 100", id="object-too-big"),
        pytest.param(with_stream(b"", compress=lambda _: b"garbage!"), "damaged", id="not-zstd"),
    ],
)
def test_hostile_streams_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(RepositoryError, match=message):
        list(iter_bytes(parse_splitstream(data, origin="x"), read_object))


def test_bomb_stops_at_the_stated_size() -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(q(-(1 << 40)) + bytes(64 << 20))
    data = with_stream(b"", size=1000, compress=lambda _: bomb)
    assert len(data) < 20_000
    with pytest.raises(RepositoryError, match="more than its 1000 bytes"):
        list(parse_splitstream(data, origin="x").pieces())


@pytest.mark.parametrize("text", [b"9:x\0", b"x\0", b":x\0", b"-1:x\0", b"0000000000:x\0"])
def test_names_out_of_range_are_refused(text: bytes) -> None:
    data = bytearray(example())
    names = zstandard.ZstdCompressor().compress(text)
    struct.pack_into("<QQ", data, 32 + 48, len(data), len(data) + len(names))
    with pytest.raises(RepositoryError, match="broken name"):
        parse_splitstream(bytes(data) + names, origin="x")
