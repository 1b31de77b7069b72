"""The fixture of composefs-rs: one layer with usr/, hello.txt and a hard link, whose image id other tools pin."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from bootwright.digest import Algorithm
from bootwright.erofs import dumpfile
from bootwright.erofs.tree import Inode
from bootwright.erofs.writer import write_image
from bootwright.oci.archive import TarReader
from bootwright.repo.layers import import_layer
from bootwright.repo.objects import ObjectStore
from bootwright.repo.tree import merge_layers
from fakes.images import directory, file, hardlink, make_tar

VECTORS = Path(__file__).parents[2] / "../shared/vectors/composefs-vectors.json"


@pytest.fixture
def fixture() -> dict[str, Any]:
    if not VECTORS.exists():
        pytest.skip("needs ../shared")
    pinned = json.loads(VECTORS.read_text())["pinned_by_composefs_rs"]
    return next(entry for entry in pinned if entry["name"].startswith("oci-fixture"))


@pytest.fixture
def tree(tmp_path: Path) -> Inode:
    tar = make_tar(
        [
            directory("usr", mtime=1234567890),
            file("hello.txt", b"hello from test layer\n", mtime=1234567890),
            hardlink("hello-link.txt", "hello.txt", mtime=1234567890),
        ]
    )
    store = ObjectStore(str(tmp_path), Algorithm.SHA512, verity=False)
    entries, _, _ = import_layer(TarReader(io.BytesIO(tar).read), store)
    store.close()
    return merge_layers([entries])


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_layer_gives_the_tree_of_the_fixture(fixture: dict[str, Any], tree: Inode, algorithm: Algorithm) -> None:
    """The same image, byte for byte, as the dump that composefs-rs' id belongs to."""
    expected = dumpfile.parse(fixture["dump"].encode())
    assert write_image(tree, min_version=1, max_version=1, algorithm=algorithm) == write_image(
        expected, min_version=1, max_version=1, algorithm=algorithm
    )
