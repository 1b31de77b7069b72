"""The store of boot entries, in a directory laid out like an ESP."""

import os
from collections import namedtuple
from pathlib import Path

import pytest

from bootwright.boot import sdboot
from bootwright.boot.entries import BootEntry, parse_entry, ranked
from bootwright.boot.kargs import Kargs
from bootwright.boot.sdboot import EntryStore, boot_digest, first_entry, kernel_directory
from bootwright.errors import BootError, SpaceError

A, B, C = "aa" * 32, "bb" * 32, "cc" * 32
FOREIGN = b"# Windows, hands off\ntitle  Windows\nefi   /EFI/Microsoft/bootmgfw.efi\n"
BROKEN = b"title nothing to boot\n"


def entry(deployment_id: str) -> BootEntry:
    return BootEntry.for_deployment(
        deployment_id,
        directory=f"/{kernel_directory(deployment_id)}",
        os_release={"ID": "debian"},
        version="1",
        options=Kargs.parse(f"rw composefs={deployment_id}"),
    )


@pytest.fixture
def store(tmp_path: Path) -> EntryStore:
    path, text = first_entry(A, os_release={"ID": "debian"}, version="1", options=Kargs.parse(f"rw composefs={A}"))
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_bytes(text)
    return EntryStore(str(tmp_path))


def test_first_entry_is_what_the_store_reads(store: EntryStore) -> None:
    assert store.read_entries().deployment_ids == (A,)
    assert not store.has_staged
    assert store.read_staged().entries == ()


def test_stage_and_exchange(store: EntryStore) -> None:
    entries = Path(store.boot_root, "loader/entries")
    (entries / "windows.conf").write_bytes(FOREIGN)
    (entries / "broken.conf").write_bytes(BROKEN)
    (entries / "note.txt").write_bytes(b"keep me")
    store.check_exchange()
    store.write_staged(ranked([entry(B), entry(A)]))
    assert store.read_entries().deployment_ids == (A,)
    assert store.read_staged().deployment_ids == (B, A)
    store.exchange()
    assert store.read_entries().deployment_ids == (B, A)
    assert not store.has_staged
    assert (entries / "windows.conf").read_bytes() == FOREIGN
    assert (entries / "broken.conf").read_bytes() == BROKEN
    assert (entries / "note.txt").read_bytes() == b"keep me"
    assert sorted(os.listdir(Path(store.boot_root, "loader"))) == ["entries"]


def test_staging_again_replaces_the_staged_set(store: EntryStore) -> None:
    store.write_staged([entry(B)])
    store.write_staged([entry(C)])
    assert store.read_staged().deployment_ids == (C,)
    store.discard_staged()
    assert not store.has_staged
    with pytest.raises(BootError, match="no boot entries are staged"):
        store.exchange()


def test_broken_entries_are_reported_and_the_rest_is_read(store: EntryStore) -> None:
    entries = Path(store.boot_root, "loader/entries")
    (entries / "broken.conf").write_bytes(BROKEN)
    (entries / "latin.conf").write_bytes(b"title \xff\nlinux /a\n")
    (entries / "big.conf").write_bytes(b"#" * 100_000)
    (entries / "dir.conf").mkdir()
    (entries / "link.conf").symlink_to("/etc/passwd")
    found = store.read_entries()
    assert found.deployment_ids == (A,)
    assert sorted(one.file_name for one in found.broken) == [
        "big.conf",
        "broken.conf",
        "dir.conf",
        "latin.conf",
        "link.conf",
    ]


def test_an_entry_that_would_be_lost_stops_the_staging(store: EntryStore) -> None:
    Path(store.boot_root, "loader/entries/big.conf").write_bytes(b"#" * 100_000)
    with pytest.raises(BootError, match="would be lost"):
        store.write_staged([entry(B)])
    assert not store.has_staged


def test_kernels_are_shared_by_content(store: EntryStore) -> None:
    first = store.install_kernel(A, [b"kernel"], [b"init", b"rd"])
    second = store.install_kernel(B, [b"kernel"], [b"initrd"])
    third = store.install_kernel(C, [b"kernel2"], [b"initrd"])
    assert first.boot_digest == boot_digest([b"kernel"], [b"initrd"])
    assert second == sdboot.BootFiles(first.directory, first.boot_digest, is_shared=True)
    assert third.directory == f"/{kernel_directory(C)}"
    assert sorted(os.listdir(Path(store.boot_root, "EFI/Linux"))) == [
        f"bootc_composefs-{A}",
        f"bootc_composefs-{C}",
    ]
    assert store.find_kernel(first.boot_digest, 12) == first.directory
    assert store.find_kernel(first.boot_digest, 13) is None


def test_a_damaged_kernel_of_the_same_name_is_replaced(store: EntryStore) -> None:
    store.install_kernel(B, [b"kernel"], [b"initrd"])
    path = Path(store.boot_root, kernel_directory(B), "vmlinuz")
    path.write_bytes(b"damage")
    again = store.install_kernel(B, [b"kernel"], [b"initrd"])
    assert not again.is_shared
    assert path.read_bytes() == b"kernel"


def test_unreferenced_kernels_go_and_referenced_stay(store: EntryStore) -> None:
    for deployment_id, kernel in ((A, b"1"), (B, b"2"), (C, b"3")):
        store.install_kernel(deployment_id, [kernel], [b"i"])
    unified = Path(store.boot_root, "EFI/Linux/bootc")
    unified.mkdir()
    (unified / f"bootc_composefs-{'dd' * 32}.efi").write_bytes(b"uki")
    (Path(store.boot_root) / "EFI/Linux/other.efi").write_bytes(b"foreign")
    store.write_staged([entry(B)])
    assert store.remove_unreferenced() == [f"bootc_composefs-{C}", f"bootc_composefs-{'dd' * 32}.efi"]
    store.discard_staged()
    assert store.remove_unreferenced(keep=[B]) == []
    assert store.remove_unreferenced() == [f"bootc_composefs-{B}"]
    assert (Path(store.boot_root) / "EFI/Linux/other.efi").exists()


def test_nothing_is_removed_while_an_entry_cannot_be_read(store: EntryStore) -> None:
    store.install_kernel(B, [b"2"], [b"i"])
    Path(store.boot_root, "loader/entries/big.conf").write_bytes(b"#" * 100_000)
    assert store.remove_unreferenced() == []


def test_a_failed_kernel_leaves_nothing(store: EntryStore) -> None:
    def fail() -> bytes:
        raise BootError("the disk is on fire")

    with pytest.raises(BootError):
        store.install_kernel(B, (fail() for _ in range(1)), [])
    assert os.listdir(Path(store.boot_root, "EFI/Linux")) == []


def test_too_small_boot_partition(store: EntryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    free = namedtuple("free", "f_bavail f_frsize")  # noqa: PYI024
    monkeypatch.setattr(os, "statvfs", lambda path: free(5, 1 << 20))
    store.check_space(4 << 20)
    with pytest.raises(SpaceError, match=r"has 5\.2 MB free.* need 5\.2 MB"):
        store.check_space((4 << 20) + 1)


def test_probe_names_the_reason(tmp_path: Path) -> None:
    (tmp_path / "loader").write_bytes(b"not a directory")
    with pytest.raises(BootError, match="cannot be exchanged in one step"):
        EntryStore(str(tmp_path)).check_exchange()


def test_foreign_sort_keys_do_not_hide_ours(store: EntryStore) -> None:
    Path(store.boot_root, "loader/entries/arch.conf").write_text("linux /vmlinuz\nsort-key arch\n")
    found = store.read_entries()
    assert [one.file_name for one in found.entries] == ["arch.conf", f"bootc_composefs-{A}.conf"]
    assert [one.deployment_id for one in found.own] == [A]
    assert parse_entry("linux /vmlinuz", file_name="x.conf").deployment_id is None
