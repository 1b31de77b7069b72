"""Deployments on disk."""

import os
from pathlib import Path

import pytest

from bootwright.deploy.model import CachedUpdate, ImageFacts, Origin
from bootwright.deploy.store import StateStore
from bootwright.errors import DeploymentError

A, B = "aa" * 32, "bb" * 64
ORIGIN = Origin.parse("[origin]\ncontainer-image-reference = ostree-unverified-image:docker://a.io/b:c\n")


def fill(directory: str) -> None:
    Path(directory, "etc/motd").write_text("hello")


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return StateStore(str(tmp_path))


def test_create_read_remove(store: StateStore) -> None:
    assert store.list() == []
    created = store.create(A, ORIGIN, fill=fill)
    assert created.get_origin() == ORIGIN
    assert Path(created.etc, "motd").read_text() == "hello"
    assert os.path.samefile(Path(created.path, "var"), Path(store.sysroot, "state/os/default/var"))
    store.create(B, ORIGIN, fill=fill)
    assert [one.id for one in store.list()] == [A, B]
    store.remove(A)
    store.remove(A)
    assert [one.id for one in store.list()] == [B]
    assert os.listdir(store.directory) == [B]


def test_a_failed_creation_leaves_nothing(store: StateStore) -> None:
    def fail(directory: str) -> None:
        raise DeploymentError("no")

    with pytest.raises(DeploymentError):
        store.create(A, ORIGIN, fill=fail)
    assert os.listdir(store.directory) == []


def test_creating_again_replaces_the_whole(store: StateStore) -> None:
    Path(store.create(A, ORIGIN, fill=fill).path, "stale").write_text("x")
    again = store.create(A, ORIGIN, fill=fill)
    assert sorted(os.listdir(again.path)) == [f"{A}.origin", "etc", "var"]


def test_junk_is_skipped_and_damage_is_named(store: StateStore) -> None:
    store.create(A, ORIGIN, fill=fill)
    directory = Path(store.directory)
    (directory / "junk").mkdir()
    (directory / ("cc" * 32)).write_text("a file")
    (directory / ("dd" * 32)).symlink_to("/etc")
    (directory / B).mkdir()
    (directory / B / f"{B}.origin").write_bytes(b"\xff")
    (directory / ("ee" * 32)).mkdir()
    found = {one.id: one for one in store.list()}
    assert sorted(found) == [A, B, "ee" * 32]
    assert found[A].problem is None
    assert "is damaged" in (found[B].problem or "")
    assert "has no origin file" in (found["ee" * 32].problem or "")
    with pytest.raises(DeploymentError):
        found[B].get_origin()
    (directory / ".tmp-left").mkdir()
    store.remove_leftovers()
    assert not (directory / ".tmp-left").exists()


def test_names_that_are_paths_are_refused(store: StateStore) -> None:
    assert store.find("../../etc") is None
    for name in ("../x", "", "AA" * 32):
        with pytest.raises(DeploymentError):
            store.path(name)
    with pytest.raises(DeploymentError, match="there is no deployment"):
        store.get(A)


def test_cached_update_and_origin_are_replaced(store: StateStore) -> None:
    store.create(A, ORIGIN, fill=fill)
    update = CachedUpdate(ImageFacts(image="a.io/b:c", transport="registry", manifest_digest="sha256:" + "0" * 64))
    store.write_cached_update(A, update)
    assert store.get(A).cached_update == update
    store.write_cached_update(A, None)
    store.write_cached_update(A, None)
    assert store.get(A).cached_update is None
    Path(store.path(A), "cached-update.json").write_text("nonsense")
    assert store.get(A).cached_update is None
    other = Origin.parse("[origin]\nx = y\n")
    store.write_origin(A, other)
    assert store.get(A).get_origin() == other
