import os
from pathlib import Path

import pytest

from bootwright.digest import VerityDigest
from bootwright.errors import RepositoryError, UsageError
from bootwright.repo import Repository
from bootwright.repo.refs import References, decode_tag, encode_tag


@pytest.fixture
def refs(tmp_path: Path) -> References:
    for name in ("streams/refs/oci", "images/refs"):
        (tmp_path / name).mkdir(parents=True)
    return References(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("quay.io/fedora/fedora-bootc:42", "quay.io%2Ffedora%2Ffedora-bootc:42"),
        ("100%", "100%25"),
        ("%2F", "%252F"),
        ("localhost/bootc-sha256:00", "localhost%2Fbootc-sha256:00"),
    ],
)
def test_tags_are_encoded_like_the_peers_do(name: str, encoded: str) -> None:
    assert encode_tag(name) == encoded
    assert decode_tag(encoded) == name


@pytest.mark.parametrize("name", ["", "a@b", "a\nb", "..", "a\0b", "x" * 256, ".tmp-x"])
def test_names_that_no_tag_has(name: str) -> None:
    with pytest.raises(UsageError):
        encode_tag(name)


def test_tags(refs: References, tmp_path: Path) -> None:
    assert refs.find_tag("a/b:v1") is None
    refs.write_tag("a/b:v1", "oci-manifest-sha256:00")
    refs.write_tag("a/b:v1", "oci-manifest-sha256:11")
    assert os.readlink(tmp_path / "streams/refs/oci/a%2Fb:v1") == "../../oci-manifest-sha256:11"
    assert refs.read_tags() == {"a/b:v1": "oci-manifest-sha256:11"}
    assert list(refs.read_roots("streams")) == [("oci/a%2Fb:v1", "oci-manifest-sha256:11")]
    assert refs.remove_tag("a/b:v1")
    assert not refs.remove_tag("a/b:v1")


def test_streams_and_images(refs: References, tmp_path: Path) -> None:
    first, second = VerityDigest(b"\1" * 32), VerityDigest(b"\2" * 64)
    refs.link_streams([("oci-layer-sha256:00", first)])
    refs.link_streams([("oci-layer-sha256:00", second)])
    assert os.readlink(tmp_path / "streams/oci-layer-sha256:00") == f"../objects/{second.object_path}"
    assert refs.find_stream("oci-layer-sha256:00") == second
    assert refs.find_stream("oci-layer-sha256:11") is None
    refs.link_images([first])
    assert refs.has_image(first)
    assert refs.read_images() == {first.hex: first}
    refs.remove_links("images", [first.hex])
    assert not refs.has_image(first)


def test_link_that_leads_elsewhere(refs: References, tmp_path: Path) -> None:
    (tmp_path / "streams" / "bad").symlink_to("/etc/passwd")
    (tmp_path / "streams" / ".tmp-leftover").symlink_to("x")
    assert refs.read_streams() == {"bad": None}
    with pytest.raises(RepositoryError, match="is no object"):
        refs.find_stream("bad")
    refs.remove_leftovers()
    assert sorted(os.listdir(tmp_path / "streams")) == ["bad", "refs"]


def test_nothing_to_read_in_a_new_repository(tmp_path: Path) -> None:
    with Repository.init(str(tmp_path / "r")) as repo:
        assert repo.refs.read_tags() == {}
        assert repo.refs.read_streams() == {}
