import json

import pytest

from bootwright.digest import Algorithm
from bootwright.errors import RepositoryError
from bootwright.repo.format import format_meta, parse_meta


def document(**changes: object) -> bytes:
    return json.dumps({**json.loads(format_meta(Algorithm.SHA256)), **changes}).encode()


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_round_trip(algorithm: Algorithm) -> None:
    data = format_meta(algorithm)
    assert data.endswith(b"}\n")
    meta = parse_meta(data, origin="meta.json")
    assert meta.algorithm is algorithm
    assert meta.is_writable


def test_what_is_written_is_what_composefs_rs_writes() -> None:
    assert json.loads(format_meta(Algorithm.SHA512)) == {
        "version": 1,
        "algorithm": "fsverity-sha512-12",
        "features": {"compatible": [], "read-only-compatible": [], "incompatible": []},
        "erofs_formats": {"default": 1},
    }


def test_older_document_without_formats() -> None:
    assert parse_meta(b'{"version": 1, "algorithm": "fsverity-sha512-12"}', origin="m").algorithm is Algorithm.SHA512


def test_unknown_compatible_feature_is_ignored() -> None:
    features = {"compatible": ["new"], "read-only-compatible": ["v1_erofs"], "incompatible": []}
    assert parse_meta(document(features=features), origin="m").is_writable


def test_unknown_read_only_feature_forbids_writing() -> None:
    meta = parse_meta(document(features={"read-only-compatible": ["v1_erofs", "quotas"]}), origin="m")
    assert not meta.is_writable
    assert meta.unknown_read_only == ("quotas",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "not JSON", id="empty"),
        pytest.param(b"[" * 100_000, "not JSON", id="nesting"),
        pytest.param(b"[]", "not a JSON object", id="list"),
        pytest.param(document(version=2), "version '2'", id="newer"),
        pytest.param(document(algorithm="fsverity-md5-12"), "unknown digest algorithm", id="algorithm"),
        pytest.param(document(features={"incompatible": ["shards"]}), "shards", id="incompatible"),
        pytest.param(document(features=[]), "not an object", id="features-list"),
        pytest.param(document(features={"incompatible": "x"}), "not a list", id="features-text"),
        pytest.param(b" " * (2 << 20), "too big", id="huge"),
    ],
)
def test_refused(data: bytes, message: str) -> None:
    with pytest.raises(RepositoryError, match=message):
        parse_meta(data, origin="m")
