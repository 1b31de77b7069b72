"""Ground truth: what the C tools made of the inputs in tests/vectors, and what composefs-rs pins."""

import gzip
import hashlib
from pathlib import Path
from typing import Any

import pytest

from bootwright.digest import Algorithm
from bootwright.erofs import dumpfile
from bootwright.erofs.reader import read_image
from bootwright.erofs.writer import write_image
from bootwright.errors import ImageError
from bootwright.linux import fsverity
from fakes.trees import SHARED, load_vectors

VECTORS = load_vectors()
DUMPS = SHARED / "vectors" / "dumps"
PINNED = [vector for vector in VECTORS["pinned_by_composefs_rs"] if vector["format_version"] <= 1]


def by_name(vector: dict[str, Any]) -> str:
    return str(vector["name"])


def test_the_vectors_are_all_there() -> None:
    assert (len(VECTORS["images"]), len(VECTORS["must_reject"]), len(VECTORS["fsverity"]), len(PINNED)) == (
        40,
        24,
        10,
        2,
    )


@pytest.mark.parametrize("vector", VECTORS["images"], ids=by_name)
def test_image_is_the_one_of_the_c_tool(vector: dict[str, Any]) -> None:
    root = dumpfile.parse(vector["dump"].encode())
    image = write_image(root, min_version=vector["min_version"], max_version=vector["max_version"])
    assert len(image) == vector["image_size"]
    assert hashlib.sha256(image).hexdigest() == vector["image_sha256"]
    assert fsverity.compute(image).hex == vector["image_fsverity_sha256_12"]


@pytest.mark.parametrize("vector", VECTORS["images"], ids=by_name)
def test_image_round_trips(vector: dict[str, Any]) -> None:
    versions = {"min_version": vector["min_version"], "max_version": vector["max_version"]}
    image = write_image(dumpfile.parse(vector["dump"].encode()), **versions)
    root = read_image(image)
    assert write_image(root, **versions) == image
    assert write_image(dumpfile.parse(b"".join(dumpfile.write(root))), **versions) == image


@pytest.mark.parametrize("vector", VECTORS["must_reject"], ids=by_name)
def test_bad_dump_is_rejected(vector: dict[str, Any]) -> None:
    with pytest.raises(ImageError) as caught:
        dumpfile.parse(vector["dump"].encode())
    assert caught.value.message.startswith("line ") or vector["dump"] == ""


@pytest.mark.parametrize("vector", PINNED, ids=by_name)
def test_digest_is_the_one_composefs_rs_pins(vector: dict[str, Any]) -> None:
    algorithm = Algorithm.from_spec(vector["algorithm"])
    version = vector["format_version"]
    image = write_image(
        dumpfile.parse(vector["dump"].encode()), min_version=version, max_version=version, algorithm=algorithm
    )
    assert fsverity.compute(image, algorithm).hex == vector["image_digest"]


@pytest.mark.parametrize("vector", VECTORS["fsverity"], ids=lambda vector: str(vector["size"]))
@pytest.mark.parametrize("algorithm", list(Algorithm), ids=lambda algorithm: algorithm.hash_name)
def test_fsverity_of_every_size(vector: dict[str, Any], algorithm: Algorithm) -> None:
    size = vector["size"]
    data = bytes((index * 7 + size) % 251 for index in range(size))
    assert fsverity.compute(data, algorithm).hex == vector[algorithm.spec]


@pytest.mark.parametrize(
    "name",
    [
        "bigfile.dump",
        "config.dump.gz",
        "cs9-x86_64-minimal.dump.gz",
        "longlink.dump",
        "no-newline.dump",
        "special.dump",
    ],
)
def test_asset_of_the_c_tools(name: str) -> None:
    path = DUMPS / name
    if not path.exists():
        pytest.skip("needs ../shared")
    data = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
    version_file = Path(f"{path}.version")
    # As in the project's own test: a version file means exactly that version, none means the default range.
    minimum, maximum = (int(version_file.read_text()),) * 2 if version_file.exists() else (0, 1)
    root = dumpfile.parse(data)
    image = write_image(root, min_version=minimum, max_version=maximum)
    expected = Path(f"{path}.sha256").read_text().strip()
    hash_name = {64: "sha256", 128: "sha512"}[len(expected)]
    found = hashlib.new(hash_name, image).hexdigest()
    assert found == expected
    assert write_image(read_image(image), min_version=minimum, max_version=maximum) == image
