import json
import os
import stat
import time
from pathlib import Path

import pytest

from bootwright.digest import Algorithm, VerityDigest
from bootwright.erofs.tree import Inode
from bootwright.errors import BusyError, ImageError, RepositoryError
from bootwright.linux.lock import Lock
from bootwright.repo import Repository, recovery
from bootwright.repo.recovery import WriteNote, find_abandoned


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "new" / "repository")


def notes(path: str) -> list[str]:
    directory = Path(path, "bootwright")
    return sorted(os.listdir(directory)) if directory.exists() else []


def test_init_makes_what_the_peers_expect(path: str) -> None:
    with Repository.init(path, Algorithm.SHA512) as repo:
        assert repo.algorithm is Algorithm.SHA512
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    assert sorted(os.listdir(path)) == ["images", "meta.json", "objects", "streams"]
    assert len(os.listdir(Path(path, "objects"))) == 256
    assert json.loads(Path(path, "meta.json").read_bytes())["algorithm"] == "fsverity-sha512-12"


def test_init_refuses_what_is_there(path: str, tmp_path: Path) -> None:
    Repository.init(path).close()
    with pytest.raises(RepositoryError, match="is a repository already"):
        Repository.init(path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    with pytest.raises(RepositoryError, match="is not empty"):
        Repository.init(str(tmp_path / "full"))


def test_init_goes_on_after_a_crash(path: str) -> None:
    Repository.init(path).close()
    os.unlink(Path(path, "meta.json"))
    Repository.init(path).close()


def test_open(path: str) -> None:
    with pytest.raises(RepositoryError, match="there is no repository"):
        Repository.open(path)
    Repository.init(path).close()
    with Repository.open(path) as repo, pytest.raises(RepositoryError, match="opened for reading"):
        repo.store_bytes(b"x")


def test_repository_from_before_meta_json(path: str) -> None:
    with Repository.init(path, Algorithm.SHA512) as repo:
        digest = repo.store_bytes(b"x" * 100)
        repo.sync()
    os.unlink(Path(path, "meta.json"))
    with Repository.open(path) as repo:
        assert repo.algorithm is Algorithm.SHA512
        assert repo.objects.read(digest) == b"x" * 100


def test_unknown_read_only_feature(path: str) -> None:
    Repository.init(path).close()
    meta = Path(path, "meta.json")
    meta.write_text(meta.read_text().replace('"read-only-compatible": []', '"read-only-compatible": ["later"]'))
    Repository.open(path).close()
    with pytest.raises(RepositoryError, match="later"):
        Repository.open(path, writable=True)


def test_several_writers_but_one_collector(path: str) -> None:
    Repository.init(path).close()
    with Repository.open(path, writable=True), Repository.open(path, writable=True), pytest.raises(BusyError):
        Repository.open_exclusively(path, wait_s=0)
    with Repository.open_exclusively(path), pytest.raises(BusyError):
        Repository.open(path, writable=True, wait_s=0)
    with Repository.open_exclusively(path):
        Repository.open(path).close()  # readers never wait


def test_content_of_files(path: str) -> None:
    with Repository.init(path) as repo:
        digest = repo.store_bytes(b"y" * 5000)
        external = Inode(0o100644, size=5000, payload=digest.object_path.encode(), digest=digest.raw)
        assert repo.read_inode(external) == b"y" * 5000
        assert repo.read_inode(Inode(0o100644, size=2, content=b"hi")) == b"hi"
        assert repo.read_inode(Inode(0o100644)) == b""
        assert repo.read_inode(Inode(0o100644, size=3 << 20)) == bytes(3 << 20)
        external.size = 4999
        with pytest.raises(RepositoryError, match="5000 bytes, expected 4999"):
            repo.read_inode(external)
        with pytest.raises(RepositoryError, match="missing"):
            repo.read_inode(Inode(0o100644, size=1, payload=b"00/" + b"0" * 62))
        with pytest.raises(ImageError, match="not the path of an object"):
            repo.read_inode(Inode(0o100644, size=1, payload=b"../../etc/passwd"))
        with pytest.raises(ImageError, match="only regular files"):
            repo.read_inode(Inode(0o40755))


# ---- after a crash -------------------------------------------------------------------------------------------


def test_note_lies_there_while_writing(path: str) -> None:
    with Repository.init(path) as repo:
        assert notes(path) == []
        repo.store_bytes(b"x" * 100)
        assert len(notes(path)) == 1
        assert find_abandoned(path) == ([], [])  # it is held
        repo.sync()
        assert notes(path) == []


def test_killed_writer_of_this_boot(path: str) -> None:
    with Repository.init(path) as repo:
        digest = repo.store_bytes(b"x" * 100)
    assert len(notes(path)) == 1
    # What the disk has does not matter while the page cache is whole: nothing is hashed, nothing removed.
    with Repository.open(path, writable=True) as repo:
        assert notes(path) == []
        assert repo.objects.size_of(digest) == 100


def test_power_cut_removes_torn_objects(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Repository.init(path) as repo:
        whole = repo.store_bytes(b"whole" * 100)
        torn = repo.store_bytes(b"torn!" * 100)
        old = repo.store_bytes(b"old" * 100)
    Path(path, "objects", torn.object_path).write_bytes(b"torn!" * 99 + bytes(5))
    monkeypatch.setattr(recovery, "_read_boot_id", lambda: "another-boot")
    with Repository.open(path, writable=True) as repo:
        assert repo.objects.size_of(torn) is None
        assert repo.objects.size_of(whole) == 500
        assert repo.objects.size_of(old) == 300
        assert repo.store_bytes(b"torn!" * 100) == torn
        assert repo.objects.read(torn, verify=True) == b"torn!" * 100
        repo.sync()
    assert notes(path) == []


def test_objects_from_long_before_are_not_read_again(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Repository.init(path) as repo:
        digest = repo.store_bytes(b"x" * 100)
    # The note is from the future as seen from the object; its content would not pass.
    Path(path, "objects", digest.object_path).write_bytes(b"y" * 100)
    (note,) = notes(path)
    later = time.time() + 3 * 24 * 3600
    os.utime(Path(path, "bootwright", note), (later, later))
    monkeypatch.setattr(recovery, "_read_boot_id", lambda: "another-boot")
    with Repository.open(path, writable=True) as repo:
        assert repo.objects.size_of(digest) == 100


def test_unreadable_note_counts_as_another_boot(path: str) -> None:
    Repository.init(path).close()
    note = WriteNote(path)
    Path(note.path).write_bytes(b"")
    note.abandon()
    assert find_abandoned(path) == ([], [note.path])


def test_recovery_waits_for_other_writers(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Repository.init(path) as repo:
        repo.store_bytes(b"x" * 100)
    monkeypatch.setattr(recovery, "_read_boot_id", lambda: "another-boot")
    with Lock(path, exclusive=False, holder="test"), pytest.raises(BusyError):
        Repository.open(path, writable=True, wait_s=0)
    assert len(notes(path)) == 1


def test_object_path(path: str) -> None:
    with Repository.init(path) as repo:
        digest = VerityDigest(b"\xab" * 32)
        assert repo.object_path(digest) == f"{path}/objects/ab/{'ab' * 31}"
