"""Looking for the module in real initramfs layouts: plain microcode first, then every usual compression."""

import bz2
import gzip
import lzma

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from bootwright.boot.initramfs import has_module


def cpio(*names: str) -> bytes:
    """A newc archive of empty files, as `find | cpio -o -H newc` writes it."""
    result = b""
    for name in [*names, "TRAILER!!!"]:
        raw = name.encode() + b"\0"
        fields = [1, 0o100644, 0, 0, 1, 0, 0, 0, 0, 0, 0, len(raw), 0]
        entry = b"070701" + b"".join(b"%08X" % field for field in fields) + raw
        result += entry.ljust(-(-len(entry) // 4) * 4, b"\0")
    return result.ljust(-(-len(result) // 512) * 512, b"\0")


EARLY = cpio("kernel/x86/microcode/GenuineIntel.bin")
WITH = cpio("usr", "usr/lib/systemd/system/bootwright-root-setup.service")
TOOLS = cpio("scripts/local-bottom/bootwright")
WITHOUT = cpio("usr", "usr/bin/sh")


@pytest.mark.parametrize(
    "pack",
    [
        pytest.param(lambda data: data, id="plain"),
        pytest.param(gzip.compress, id="gzip"),
        pytest.param(lambda data: zstandard.ZstdCompressor().compress(data), id="zstd"),
        pytest.param(lambda data: zstandard.ZstdCompressor().compress(data) + bytes(3), id="zstd-padded"),
        pytest.param(lzma.compress, id="xz"),
        pytest.param(lambda data: lzma.compress(data, lzma.FORMAT_ALONE), id="lzma"),
        pytest.param(bz2.compress, id="bzip2"),
    ],
)
@pytest.mark.parametrize("early", [b"", EARLY], ids=["alone", "after-microcode"])
def test_compressions(pack: object, early: bytes) -> None:
    assert callable(pack)
    assert has_module(early + pack(WITH)) is True
    assert has_module(early + pack(TOOLS)) is True
    assert has_module(early + pack(WITHOUT)) is False


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x02!L\x18" + b"x" * 100, id="lz4"),
        pytest.param(b"not an initramfs", id="text"),
        pytest.param(gzip.compress(WITHOUT)[:-20], id="cut"),
        pytest.param(WITHOUT[:100], id="cut-cpio"),
        pytest.param(EARLY[:-400][:200], id="no-trailer"),
    ],
)
def test_what_cannot_be_told_is_none(data: bytes) -> None:
    assert has_module(data) is None


@given(st.binary(max_size=200))
def test_any_bytes_give_an_answer(tail: bytes) -> None:
    assert has_module(tail) in (True, False, None)
    assert has_module(EARLY + tail) in (True, False, None)


def test_a_name_across_two_reads_is_found() -> None:
    padding = (1 << 20) - 5
    assert has_module(gzip.compress(b"x" * padding + b"bootwright-root-setup" + b"x" * 100)) is True
