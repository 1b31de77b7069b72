"""Digests as values."""

import pickle

import pytest

from bootwright.digest import Algorithm, Digest, VerityDigest
from bootwright.errors import ImageError, VerificationError

EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_digest_of_bytes_round_trips() -> None:
    assert str(Digest.of(b"")) == EMPTY
    assert Digest.parse(EMPTY) == Digest.of(b"")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("sha256:", id="no-hex"),
        pytest.param("md5:d41d8cd98f00b204e9800998ecf8427e", id="unknown-algorithm"),
        pytest.param(EMPTY.upper(), id="upper-case"),
        pytest.param(EMPTY + "0", id="too-long"),
        pytest.param("sha512:" + "a" * 64, id="length-of-another"),
        pytest.param("sha256:" + "g" * 64, id="not-hex"),
        pytest.param("sha256:" + "../" * 21 + "a", id="path"),
    ],
)
def test_malformed_digests_are_refused(text: str) -> None:
    with pytest.raises(VerificationError):
        Digest.parse(text)


def test_check_names_both_digests_and_the_object() -> None:
    with pytest.raises(VerificationError, match=r"layer 3 has the digest 'sha256:.*expected 'sha256:e3b0") as caught:
        Digest.parse(EMPTY).check(b"x", what="layer 3")
    assert caught.value.exit_code == 5


def test_verity_digest_tells_its_algorithm_and_object_path() -> None:
    digest = VerityDigest.parse("ab" * 32)
    assert digest.algorithm is Algorithm.SHA256
    assert digest.object_path == "ab/" + "ab" * 31
    assert VerityDigest.parse("cd" * 64).algorithm is Algorithm.SHA512


@pytest.mark.parametrize("text", ["", "ab", "AB" * 32, "zz" * 32, "../" * 21 + "a"])
def test_malformed_verity_digests_are_refused(text: str) -> None:
    with pytest.raises(VerificationError):
        VerityDigest.parse(text)


def test_algorithm_spec_round_trips() -> None:
    for algorithm in Algorithm:
        assert Algorithm.from_spec(algorithm.spec) is algorithm
    with pytest.raises(VerificationError):
        Algorithm.from_spec("fsverity-sha1-12")


def test_errors_cross_process_boundaries_whole() -> None:
    error = pickle.loads(pickle.dumps(ImageError("no kernel", hint="add one")))
    assert type(error) is ImageError
    assert (error.message, error.hint, error.exit_code) == ("no kernel", "add one", 13)
