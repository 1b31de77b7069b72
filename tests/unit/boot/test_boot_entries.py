"""Boot Loader Specification entries as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootwright.boot.entries import (
    BootEntry,
    format_entry,
    in_menu_order,
    parse_entry,
    parse_os_release,
    ranked,
)
from bootwright.boot.kargs import Kargs
from bootwright.errors import BootError

A, B, C = "aa" * 32, "bb" * 32, "cc" * 64

TEXT = f"""\
title Debian GNU/Linux 13 (trixie)
version 13
linux /EFI/Linux/bootc_composefs-{A}/vmlinuz
initrd /EFI/Linux/bootc_composefs-{A}/initrd
options root=UUID=1 rw composefs={A}
machine-id 0123
sort-key bootc-debian-0
architecture x64
x-options-source-tuned a=b
"""


def own(deployment_id: str, sort_key: str = "bootc-debian-0", **changes: str) -> BootEntry:
    return parse_entry(
        f"title x\nlinux /EFI/Linux/bootc_composefs-{deployment_id}/vmlinuz\n"
        f"options composefs={deployment_id}\nsort-key {sort_key}\n",
        file_name=changes.get("file_name", f"bootc_composefs-{deployment_id}.conf"),
    )


def test_text_round_trip_keeps_order_and_unknown_keys() -> None:
    entry = parse_entry(TEXT, file_name="a.conf")
    assert format_entry(entry) == TEXT
    assert entry.deployment_id == A
    assert entry.artefact == f"bootc_composefs-{A}"
    assert entry.extra == (("architecture", "x64"), ("x-options-source-tuned", "a=b"))


def test_comments_blank_lines_tabs_and_repeated_keys() -> None:
    entry = parse_entry(
        "# a comment\n\ntitle\tArch\nlinux\t /vmlinuz \ninitrd /ucode\ninitrd /initrd\noptions a\noptions b\n",
        file_name="arch.conf",
    )
    assert (entry.title, entry.linux, entry.initrd, entry.options) == (
        "Arch",
        "/vmlinuz",
        ("/ucode", "/initrd"),
        "a b",
    )
    assert entry.deployment_id is None
    assert entry.artefact is None


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        pytest.param("title x\n", "a.conf", "names no kernel", id="no-kernel"),
        pytest.param("linux /a\0b\n", "a.conf", "zero bytes", id="zero-byte"),
        pytest.param("linux /a\n", "../a.conf", "boot loaders skip", id="path"),
        pytest.param("linux /a\n", "a.txt", "boot loaders skip", id="extension"),
    ],
)
def test_broken_entries_are_refused(text: str, name: str, message: str) -> None:
    with pytest.raises(BootError, match=message):
        parse_entry(text, file_name=name)


def test_bootc_names_are_understood() -> None:
    entry = own(C, file_name="bootc_debian-13-1.conf")
    assert entry.deployment_id == C


def test_unified_kernel_images_are_known_by_their_name() -> None:
    uki = parse_entry(f"title x\nuki /EFI/Linux/bootc/bootc_composefs-{C}.efi\n", file_name="a.conf")
    assert uki.deployment_id == C
    assert uki.artefact == f"bootc_composefs-{C}.efi"


def test_a_value_cannot_smuggle_a_line() -> None:
    with pytest.raises(BootError, match="line break"):
        format_entry(BootEntry(file_name="a.conf", title="x\noptions init=/bin/sh", linux="/a"))


def test_menu_order_is_systemd_boots() -> None:
    names = [
        entry.file_name
        for entry in in_menu_order(
            [
                parse_entry("linux /a\nversion 6.9", file_name="plain-9.conf"),
                parse_entry("linux /a\nversion 6.10", file_name="plain-10.conf"),
                own(B, "bootc-debian-1"),
                own(A, "bootc-debian-0"),
                own(C, "bootc-debian-0", file_name="counted+0-3.conf"),
            ]
        )
    ]
    assert names == [
        f"bootc_composefs-{A}.conf",
        f"bootc_composefs-{B}.conf",
        "plain-10.conf",
        "plain-9.conf",
        "counted+0-3.conf",
    ]


def test_rank_makes_the_order_across_distributions() -> None:
    """bootc's own keys would boot `bootc-debian-1` before `bootc-fedora-0`."""
    foreign = parse_entry("linux /a\nsort-key zzz", file_name="other.conf")
    entries = ranked([own(A, "bootc-fedora-0"), foreign, own(B, "bootc-debian-0")])
    assert [entry.sort_key for entry in entries] == ["bootc-fedora-0", "zzz", "bootc-fedora-1"]
    assert [entry.deployment_id for entry in in_menu_order(entries)][:2] == [A, B]


def test_rank_of_many_entries_still_sorts() -> None:
    entries = ranked([own(f"{number:064x}") for number in range(12)])
    assert [entry.deployment_id for entry in in_menu_order(entries[::-1])] == [f"{number:064x}" for number in range(12)]


def test_entry_of_a_deployment() -> None:
    entry = BootEntry.for_deployment(
        A,
        directory=f"/EFI/Linux/bootc_composefs-{A}",
        os_release={"ID": "debian", "PRETTY_NAME": "Debian\n13", "VERSION_ID": "13"},
        version=None,
        options=Kargs.parse(f"rw composefs={A}"),
    )
    assert format_entry(entry) == (
        f"title Debian 13\nversion 13\nlinux /EFI/Linux/bootc_composefs-{A}/vmlinuz\n"
        f"initrd /EFI/Linux/bootc_composefs-{A}/initrd\noptions rw composefs={A}\nsort-key bootc-debian-0\n"
    )


def test_entry_without_os_release_falls_back_to_the_id() -> None:
    entry = BootEntry.for_deployment(A, directory="/x", os_release={}, version=None, options=Kargs())
    assert (entry.title, entry.version, entry.sort_key) == (A, A, "bootc-bootc-0")


def test_os_release() -> None:
    text = '# c\nID=debian\nPRETTY_NAME="Debian \\"13\\" \\$x"\nNAME=\'a b\'\nbad line\nVERSION_ID=""\n'
    assert parse_os_release(text) == {"ID": "debian", "PRETTY_NAME": 'Debian "13" $x', "NAME": "a b", "VERSION_ID": ""}


@given(st.text(max_size=300))
def test_any_text_parses_or_is_refused_with_a_reason(text: str) -> None:
    try:
        entry = parse_entry(text, file_name="a.conf")
    except BootError:
        return
    again = parse_entry(format_entry(entry), file_name="a.conf")
    assert (again.linux, again.options.split(), again.extra) == (entry.linux, entry.options.split(), entry.extra)
