import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootwright.digest import Algorithm, VerityDigest
from bootwright.errors import RepositoryError, VerificationError
from bootwright.linux import fsverity
from bootwright.repo.objects import ObjectStore


@pytest.fixture(params=[Algorithm.SHA256, Algorithm.SHA512], ids=["sha256", "sha512"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    objects = ObjectStore(str(tmp_path), request.param, verity=False)
    yield objects
    objects.close()


def names(store: ObjectStore) -> list[str]:
    return sorted(str(path.relative_to(store.path)) for path in Path(store.path).rglob("*") if path.is_file())


def test_store_and_read(store: ObjectStore) -> None:
    digest = store.store_bytes(b"hello")
    assert digest == fsverity.compute(b"hello", store.algorithm)
    assert store.read(digest, verify=True) == b"hello"
    assert store.size_of(digest) == 5
    path = Path(store.path, digest.object_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert names(store) == [digest.object_path]


def test_mode_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        store = ObjectStore(str(tmp_path), Algorithm.SHA256, verity=False)
        digest = store.store_bytes(b"hello")
        store.close()
    finally:
        os.umask(old)
    assert stat.S_IMODE(Path(tmp_path, digest.object_path).stat().st_mode) == 0o644


def test_second_time_writes_nothing(store: ObjectStore) -> None:
    digest = store.store_bytes(b"hello")
    before = Path(store.path, digest.object_path).stat()
    assert store.store_bytes(b"hello") == digest
    assert store.store_pieces(iter([b"hel", b"lo"])) == (digest, 5)
    assert Path(store.path, digest.object_path).stat().st_ino == before.st_ino
    assert (store.counts.objects_written, store.counts.objects_reused) == (1, 2)
    assert (store.counts.bytes_written, store.counts.bytes_reused) == (5, 10)


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 1 << 20, (5 << 20) + 3])
def test_pieces_give_the_digest_of_the_whole(store: ObjectStore, size: int) -> None:
    data = bytes(i * 7 % 251 for i in range(1000)) * (size // 1000 + 1)
    data = data[:size]
    pieces = [data[at : at + 70_001] for at in range(0, size, 70_001)]
    digest, length = store.store_pieces(pieces)
    assert (digest, length) == (fsverity.compute(data, store.algorithm), size)
    assert store.read(digest) == data


def test_failing_source_leaves_nothing(store: ObjectStore) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"x" * 100
        raise VerificationError("broken")

    with pytest.raises(VerificationError):
        store.store_pieces(pieces())
    assert names(store) == []


def test_sparse_file_stays_sparse(store: ObjectStore) -> None:
    size = 64 << 20
    digest = store.store_sparse(iter([(4096, b"a" * 10), (32 << 20, b"b")]), size)
    status = Path(store.path, digest.object_path).stat()
    assert status.st_size == size
    assert status.st_blocks * 512 < 1 << 20
    data = bytearray(size)
    data[4096:4106] = b"a" * 10
    data[32 << 20] = ord("b")
    assert digest == fsverity.compute(data, store.algorithm)


def test_torn_object_of_another_size_is_replaced(store: ObjectStore) -> None:
    digest = store.store_bytes(b"hello")
    Path(store.path, digest.object_path).write_bytes(b"")
    assert store.store_bytes(b"hello") == digest
    assert store.read(digest) == b"hello"


def test_without_unnamed_files(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    # tmpfs of old, overlayfs of old and FAT have no O_TMPFILE.
    monkeypatch.setattr(store, "_has_tmpfile", False)
    digest = store.store_bytes(b"hello")
    assert store.store_pieces([b"hello"])[0] == digest
    assert names(store) == [digest.object_path]


def test_missing_object(store: ObjectStore) -> None:
    digest = VerityDigest(bytes(store.algorithm.size))
    assert store.size_of(digest) is None
    with pytest.raises(RepositoryError, match="is missing"):
        store.read(digest)


def test_damaged_object_is_found(store: ObjectStore) -> None:
    digest = store.store_bytes(b"hello")
    Path(store.path, digest.object_path).write_bytes(b"hallo")
    with pytest.raises(VerificationError, match="damaged"):
        store.read(digest, verify=True)
