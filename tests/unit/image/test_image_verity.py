"""fs-verity metadata behind the end of files, against digests computed in another way."""

import hashlib
import struct
from pathlib import Path

import pytest

from bootwright.digest import Algorithm
from bootwright.errors import VerificationError
from bootwright.image.verity import METADATA_ALIGNMENT, metadata_size, seal, seal_objects
from bootwright.linux import fsverity

SIZES = [0, 1, 4095, 4096, 4097, 65535, 65536, 65537, 4096 * 128, 4096 * 128 + 1, 3 << 20]


def content(size: int) -> bytes:
    return (hashlib.sha256(b"seed").digest() * (size // 32 + 1))[:size]


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("size", SIZES)
def test_sealed_file_has_data_tree_and_descriptor_where_ext4_looks(
    tmp_path: Path, size: int, algorithm: Algorithm
) -> None:
    path = tmp_path / "object"
    data = content(size)
    path.write_bytes(data)
    sealed = seal(str(path), algorithm)
    expected = fsverity.compute(data, algorithm)
    assert (sealed.size, sealed.digest) == (size, expected)

    raw = path.read_bytes()
    assert raw[:size] == data
    start = -(-size // METADATA_ALIGNMENT) * METADATA_ALIGNMENT
    assert not any(raw[size:start])
    metadata = raw[start:]
    assert len(metadata) == metadata_size(size, algorithm)
    assert sealed.stored == -(-size // 4096) * 4096 + len(metadata)
    # The kernel takes the descriptor's length from the file's last four bytes.
    (length,) = struct.unpack("<I", raw[-4:])
    descriptor = metadata[-4096:][:length]
    assert hashlib.new(algorithm.hash_name, descriptor).digest() == expected.raw
    tree = metadata[:-4096]
    if tree:
        # The root level comes first, and is one block.
        root = hashlib.new(algorithm.hash_name, tree[:4096]).digest()
        assert descriptor[16 : 16 + algorithm.size] == root


def test_gap_before_the_tree_takes_no_room(tmp_path: Path) -> None:
    path = tmp_path / "object"
    path.write_bytes(content(5000))
    seal(str(path), Algorithm.SHA256)
    assert path.stat().st_size > METADATA_ALIGNMENT
    assert path.stat().st_blocks * 512 < METADATA_ALIGNMENT


def test_object_that_is_not_what_its_name_says_is_refused(tmp_path: Path) -> None:
    digest = fsverity.compute(b"content")
    path = tmp_path / digest.object_path
    path.parent.mkdir()
    path.write_bytes(b"content")
    assert list(seal_objects(str(tmp_path), [path.parent.name], Algorithm.SHA256)) == [digest.object_path]
    path.write_bytes(b"Content")
    with pytest.raises(VerificationError, match="has the digest"):
        seal_objects(str(tmp_path), [path.parent.name], Algorithm.SHA256)
