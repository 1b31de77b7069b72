"""fs-verity digests against values from the kernel's own definition (tests/vectors)."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootwright.digest import Algorithm
from bootwright.linux import fsverity

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "composefs-vectors.json").read_text())["fsverity"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(vector["size"]))
@pytest.mark.parametrize("algorithm", Algorithm)
def test_vectors(vector: dict[str, Any], algorithm: Algorithm, tmp_path: Path) -> None:
    size = vector["size"]
    data = bytes((i * 7 + size) % 251 for i in range(size))
    expected = vector[algorithm.spec]
    assert fsverity.compute(data, algorithm).hex == expected
    (tmp_path / "file").write_bytes(data)
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        assert fsverity.compute_fd(fd, algorithm).hex == expected
    finally:
        os.close(fd)


@given(st.lists(st.binary(max_size=9000), max_size=12))
def test_pieces_of_any_size_give_the_digest_of_the_whole(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    for algorithm in Algorithm:
        assert fsverity.compute_pieces(pieces, algorithm) == fsverity.compute(whole, algorithm)


@pytest.mark.parametrize(
    ("blocks", "levels"),
    [
        pytest.param(1, [], id="one-block-stores-nothing"),
        pytest.param(2, [1], id="two-blocks"),
        pytest.param(128, [1], id="one-full-hash-block"),
        pytest.param(129, [2, 1], id="two-levels"),
    ],
)
def test_merkle_levels_are_whole_blocks_leaves_first(blocks: int, levels: list[int]) -> None:
    hasher = fsverity.Hasher(Algorithm.SHA256)
    hasher.update(os.urandom(blocks * fsverity.BLOCK_SIZE))
    found = fsverity.merkle_levels(Algorithm.SHA256, hasher.leaves())
    assert [len(level) // fsverity.BLOCK_SIZE for level in found] == levels


def test_kernel_and_user_space_agree_where_the_kernel_can(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10_000)
    fd = os.open(path, os.O_RDONLY)
    try:
        if fsverity.is_supported(str(tmp_path)):
            assert fsverity.enable(fd)
            assert fsverity.measure(fd) == fsverity.compute(b"x" * 10_000)
        else:
            assert fsverity.measure(fd) is None
            assert not fsverity.enable(fd)
    finally:
        os.close(fd)
