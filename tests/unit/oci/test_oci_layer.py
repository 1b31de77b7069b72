from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib

import pytest
import zstandard

from bootwright.digest import Digest
from bootwright.errors import BootwrightError, ImageError, VerificationError
from bootwright.oci.layer import TarReader, open_layer
from bootwright.oci.manifest import Descriptor
from bootwright.oci.source import BlobReader
from fakes.images import compress, directory, file, make_tar, sha256

TAR = make_tar([directory("d"), file("d/a", b"hello " * 1000), file("d/b", bytes(range(256)) * 200)])
TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
SKIPPABLE = b"\x5a\x2a\x4d\x18\x05\x00\x00\x00hello"
EMPTY_FRAME = zstandard.ZstdCompressor().compress(b"")


def read(blob: bytes, *, chunk: int = 1 << 18, media_type: str = TYPE, diff_id: bytes | None = TAR) -> bytes:
    source = io.BytesIO(blob)

    class Piecemeal:
        what = "layer 'x'"

        def read(self, size: int = chunk, /) -> bytes:
            return source.read(min(size, chunk))

    expected = Digest.of(diff_id) if diff_id is not None else None
    layer = open_layer(Piecemeal(), media_type, diff_id=expected)
    data = b"".join(iter(layer.read, b""))
    assert layer.read() == b""
    assert layer.bytes_read == len(data)
    assert source.read() == b""
    return data


def frames(count: int) -> bytes:
    step = len(TAR) // count + 1
    return b"".join(
        zstandard.ZstdCompressor(write_checksum=True).compress(TAR[at : at + step]) for at in range(0, len(TAR), step)
    )


def members(count: int) -> bytes:
    step = len(TAR) // count + 1
    return b"".join(gzip.compress(TAR[at : at + step]) for at in range(0, len(TAR), step))


@pytest.mark.parametrize("chunk", [1, 7, 1000, 1 << 18])
@pytest.mark.parametrize(
    "blob",
    [
        pytest.param(TAR, id="plain"),
        pytest.param(gzip.compress(TAR), id="gzip"),
        pytest.param(members(7), id="gzip-members"),
        pytest.param(gzip.compress(TAR) + gzip.compress(b""), id="gzip-empty-member"),
        pytest.param(gzip.compress(TAR) + bytes(1000), id="gzip-zeros"),
        pytest.param(zstandard.ZstdCompressor().compress(TAR), id="zstd"),
        pytest.param(frames(9), id="zstd-frames"),
        pytest.param(SKIPPABLE + frames(3) + SKIPPABLE, id="zstd-skippable"),
    ],
)
def test_every_compression(blob: bytes, chunk: int) -> None:
    assert read(blob, chunk=chunk) == TAR


def test_thousands_of_members_do_not_nest() -> None:
    blob = b"".join(gzip.compress(TAR[at : at + 512]) for at in range(0, len(TAR), 512))
    assert read(blob) == TAR
    assert read(blob, chunk=100) == TAR


def test_gzip_header_fields() -> None:
    buffer = io.BytesIO()
    with gzip.GzipFile("a name", "wb", fileobj=buffer) as writer:
        writer.write(TAR)
    assert read(buffer.getvalue()) == TAR


def test_media_type_is_not_believed_about_compression() -> None:
    for media_type in (
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    ):
        for compression in ("gzip", "zstd", "none"):
            assert read(compress(TAR, compression), media_type=media_type) == TAR


def test_empty_blob_is_an_empty_layer() -> None:
    assert read(b"", diff_id=b"") == b""
    assert read(EMPTY_FRAME, diff_id=b"") == b""
    assert list(TarReader(io.BytesIO(b"").read)) == []


def bad_crc() -> bytes:
    blob = bytearray(gzip.compress(TAR))
    blob[-8] ^= 1
    return bytes(blob)


def bad_length() -> bytes:
    blob = bytearray(gzip.compress(TAR))
    blob[-1] ^= 1
    return bytes(blob)


def bad_zstd() -> bytes:
    blob = bytearray(frames(1))
    blob[-1] ^= 1
    return bytes(blob)


@pytest.mark.parametrize(
    ("blob", "reason"),
    [
        pytest.param(gzip.compress(TAR)[:-1], "ends inside its gzip stream", id="gzip-trailer-cut"),
        pytest.param(gzip.compress(TAR)[:200], "ends inside its gzip stream", id="gzip-cut"),
        pytest.param(gzip.compress(TAR)[:5], "ends inside its gzip stream", id="gzip-header-cut"),
        pytest.param(b"\x1f\x8b" + b"\xff" * 100, "damaged gzip stream", id="gzip-garbage"),
        pytest.param(bad_crc(), "damaged gzip stream", id="gzip-crc"),
        pytest.param(bad_length(), "damaged gzip stream", id="gzip-length"),
        pytest.param(gzip.compress(TAR) + b"garbage", "something after its gzip stream", id="gzip-trailing"),
        pytest.param(gzip.compress(TAR) + b"\x1f", "something after its gzip stream", id="gzip-half-magic"),
        pytest.param(gzip.compress(TAR) + bytes(10) + b"x", "after the zeros", id="gzip-zeros-then-garbage"),
        pytest.param(frames(1) + b"garbage", "damaged zstd stream", id="zstd-trailing"),
        pytest.param(bad_zstd(), "damaged zstd stream", id="zstd-checksum"),
        pytest.param(b"\x28\xb5\x2f\xfd" + b"\xff" * 100, "damaged zstd stream", id="zstd-garbage"),
        pytest.param(bz2.compress(TAR), "compressed with bzip2", id="bzip2"),
        pytest.param(lzma.compress(TAR), "compressed with xz", id="xz"),
    ],
)
@pytest.mark.parametrize("chunk", [100, 1 << 18])
def test_damaged_streams(blob: bytes, reason: str, chunk: int) -> None:
    with pytest.raises(ImageError, match=f"layer 'x'.*{reason}"):
        read(blob, chunk=chunk)


def test_truncated_zstd_is_noticed_by_the_diff_id() -> None:
    with pytest.raises(VerificationError, match="content of layer 'x'"):
        read(frames(5)[:-2000])


def test_wrong_content_is_noticed() -> None:
    with pytest.raises(VerificationError, match="content of layer 'x' has the digest"):
        read(gzip.compress(TAR), diff_id=b"other")
    assert read(gzip.compress(TAR), diff_id=None) == TAR


def test_zstd_window_is_limited() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28, write_content_size=False)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    blob = stream.compress(TAR) + stream.flush()
    with pytest.raises(ImageError, match="damaged zstd stream"):
        read(blob)


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_bombs_come_in_bounded_pieces(kind: str) -> None:
    if kind == "gzip":
        deflate = zlib.compressobj(9, wbits=31)
        blob = b"".join(deflate.compress(bytes(1 << 20)) for _ in range(64)) + deflate.flush()
    else:
        blob = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    layer = open_layer(io.BytesIO(blob), TYPE)
    sizes = {len(piece) for piece in iter(lambda: layer.read(1 << 20), b"")}
    assert max(sizes) <= 1 << 20
    assert layer.bytes_read == 64 << 20


@pytest.mark.parametrize(
    ("media_type", "reason"),
    [
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "is encrypted"),
        ("application/vnd.wasm.content.layer.v1+wasm", "is no filesystem layer"),
        ("", "is no filesystem layer"),
    ],
)
def test_what_is_no_layer(media_type: str, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        open_layer(io.BytesIO(TAR), media_type)


def test_hexdigest_is_that_of_the_plain_bytes() -> None:
    layer = open_layer(io.BytesIO(gzip.compress(TAR)), TYPE)
    for _ in iter(layer.read, b""):
        pass
    assert f"sha256:{layer.hexdigest}" == sha256(TAR)


def blob_reader(content: bytes, *, size: int | None = None, digest: str | None = None) -> BlobReader:
    descriptor = Descriptor(TYPE, digest or sha256(content), len(content) if size is None else size)
    return BlobReader(io.BytesIO(content).read, descriptor, what="blob 'b'")


def test_blob_reader_checks_at_the_end() -> None:
    blob = blob_reader(b"hello")
    assert blob.read(3) + blob.read(3) == b"hello"
    assert (blob.read(), blob.read(), blob.bytes_read) == (b"", b"", 5)
    assert blob_reader(b"hello").read_all() == b"hello"
    sha512 = "sha512:" + Digest("sha512", "").new_hash().hexdigest()
    assert blob_reader(b"", digest=sha512).read_all() == b""


@pytest.mark.parametrize(
    ("blob", "reason"),
    [
        pytest.param(blob_reader(b"hello", size=6), "ends after 5 of 6 bytes", id="short"),
        pytest.param(blob_reader(b"hello", size=4), "longer than the 4 bytes", id="long"),
        pytest.param(blob_reader(b"hello", digest=sha256(b"x")), "has the digest", id="digest"),
    ],
)
def test_blob_reader_refuses(blob: BlobReader, reason: str) -> None:
    with pytest.raises(VerificationError, match=f"blob 'b' .*{reason}"):
        blob.read_all()


def test_layer_reads_its_blob_to_the_end_so_that_it_is_checked() -> None:
    content = gzip.compress(TAR)
    wrong = blob_reader(content, digest=sha256(b"x"))
    reader = TarReader(open_layer(wrong, TYPE).read)
    assert len(list(reader)) == 3
    with pytest.raises(VerificationError):
        list(reader.iter_trailer())


def test_errors_name_the_blob() -> None:
    with pytest.raises(BootwrightError, match="blob 'b'"):
        open_layer(blob_reader(bz2.compress(b"x")), TYPE)
