"""Boot entries as text: Boot Loader Specification Type 1. Pure.

::

    title Debian GNU/Linux 13 (trixie)
    version 20260801
    linux /EFI/Linux/bootc_composefs-<id>/vmlinuz
    initrd /EFI/Linux/bootc_composefs-<id>/initrd
    options root=UUID=… rw composefs=<id>
    sort-key bootc-debian-0

(UAPI group, "Boot Loader Specification", Type #1). Keys are written in that order, bootc's; keys that we do not know
are kept behind them. The files' names do not make the order: sort keys do, ``-0`` boots first. All of our entries
share one prefix, the first one's, because a boot loader compares whole sort keys and ``bootc-debian-1`` would come
before ``bootc-fedora-0``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bootwright.boot.kargs import Kargs
from bootwright.errors import BootError

__all__ = ["ARTEFACT_PREFIX", "BootEntry", "format_entry", "in_menu_order", "parse_entry", "parse_os_release", "ranked"]

ARTEFACT_PREFIX = "bootc_composefs-"
MAX_ENTRY_SIZE = 64 << 10

_FILE_NAME = re.compile(r"[A-Za-z0-9+_.~^-]{1,250}\.conf")
_TRIES = re.compile(r"\+(\d+)(?:-\d+)?\.conf$")
_SORT_KEY = re.compile(r"(?P<prefix>bootc-[A-Za-z0-9._+~^-]+)-\d+")
_ARTEFACT = re.compile(rf"{ARTEFACT_PREFIX}([0-9a-f]{{128}}|[0-9a-f]{{64}})(?:\.efi)?")
_OS_RELEASE_LINE = re.compile(r"\s*([A-Z][A-Z0-9_]*)=(.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class BootEntry:
    """One entry of the boot menu.

    Args:
        file_name: its name in ``loader/entries``.
        title: what the menu shows.
        version: orders entries of the same sort key; shown when titles are the same.
        linux: path of the kernel on the boot partition.
        initrd: paths of its initramfs files, in order.
        options: the kernel command line.
        machine_id: the installation that wrote the entry.
        sort_key: makes the order.
        extra: all other keys with their values, in order: ``uki``, ``efi``, ``architecture``, unknown ones.
    """

    file_name: str
    title: str | None = None
    version: str | None = None
    linux: str | None = None
    initrd: tuple[str, ...] = ()
    options: str = ""
    machine_id: str | None = None
    sort_key: str | None = None
    extra: tuple[tuple[str, str], ...] = ()

    @property
    def kargs(self) -> Kargs:
        """The kernel command line, split."""
        return Kargs.parse(self.options)

    @property
    def uki(self) -> str | None:
        """Path of the unified kernel image, of an entry that boots one."""
        return next((value for key, value in self.extra if key in ("uki", "efi")), None)

    @property
    def deployment_id(self) -> str | None:
        """The deployment that this entry boots; None for an entry that is not ours.

        It is read from ``composefs=``, or from the file name of a unified kernel image, so bootc's entries
        (``bootc_<os>-<version>-<priority>.conf``) are known too.
        """
        found = self.kargs.composefs_id
        if found is None and self.uki is not None:
            match = _ARTEFACT.fullmatch(self.uki.rpartition("/")[2])
            found = match[1] if match else None
        return found

    @property
    def artefact(self) -> str | None:
        """Name of the directory (or image) below ``EFI/Linux`` that this entry boots from; None when it is foreign."""
        for part in (self.linux or self.uki or "").split("/"):
            if _ARTEFACT.fullmatch(part):
                return part
        return None

    @property
    def is_out_of_tries(self) -> bool:
        """Boot counting gave it up: its name ends in ``+0``."""
        match = _TRIES.search(self.file_name)
        return match is not None and int(match[1]) == 0

    @classmethod
    def for_deployment(
        cls, deployment_id: str, *, directory: str, os_release: dict[str, str], version: str | None, options: Kargs
    ) -> BootEntry:
        """Make the entry of a deployment.

        Args:
            deployment_id: hex digits.
            directory: absolute path on the boot partition of the directory with ``vmlinuz`` and ``initrd``.
            os_release: the image's os-release fields.
            version: the image's version; os-release's when None.
            options: the whole kernel command line.
        """
        title = os_release.get("PRETTY_NAME") or os_release.get("NAME") or os_release.get("ID") or deployment_id
        shown = version or os_release.get("VERSION_ID") or os_release.get("VERSION") or deployment_id
        os_id = re.sub(r"[^a-z0-9._-]", "", os_release.get("ID", "").lower()) or "bootc"
        return cls(
            file_name=f"{ARTEFACT_PREFIX}{deployment_id}.conf",
            title=_one_line(title),
            version=_one_line(shown),
            linux=f"{directory}/vmlinuz",
            initrd=(f"{directory}/initrd",),
            options=str(options),
            sort_key=f"bootc-{os_id}-0",
        )


def _one_line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:200]


def parse_entry(text: str, *, file_name: str) -> BootEntry:
    """Parse an entry.

    Raises:
        BootError: a name no boot loader takes, a line without a value, or nothing in it that can be booted.
    """
    if not _FILE_NAME.fullmatch(file_name):
        raise BootError(f"boot entry '{file_name}' has a name that boot loaders skip", hint="it must end in .conf")
    single: dict[str, str] = {}
    initrd: list[str] = []
    options: list[str] = []
    extra: list[tuple[str, str]] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if "\0" in line:
            raise BootError(f"boot entry '{file_name}' is damaged: line {number} has zero bytes")
        key, _, value = line.replace("\t", " ").partition(" ")
        value = value.strip()
        if key == "initrd":
            initrd.append(value)
        elif key == "options":
            options.append(value)
        elif key in ("title", "version", "linux", "machine-id", "sort-key"):
            single[key] = value
        else:
            extra.append((key, value))
    entry = BootEntry(
        file_name=file_name,
        title=single.get("title"),
        version=single.get("version"),
        linux=single.get("linux"),
        initrd=tuple(initrd),
        options=" ".join(options),
        machine_id=single.get("machine-id"),
        sort_key=single.get("sort-key"),
        extra=tuple(extra),
    )
    if not entry.linux and not entry.uki:
        raise BootError(f"boot entry '{file_name}' names no kernel", hint="it needs a 'linux', 'uki' or 'efi' line")
    return entry


def format_entry(entry: BootEntry) -> str:
    """Write an entry, keys in the order title, version, linux, initrd, options, machine-id, sort-key, others.

    Raises:
        BootError: a value with a line break, which would become another key.
    """
    lines = [
        ("title", entry.title),
        ("version", entry.version),
        ("linux", entry.linux),
        *(("initrd", path) for path in entry.initrd),
        ("options", entry.options or None),
        ("machine-id", entry.machine_id),
        ("sort-key", entry.sort_key),
        *entry.extra,
    ]
    if any(value is not None and ("\n" in value or "\r" in value or "\0" in value) for _, value in lines):
        raise BootError(f"boot entry '{entry.file_name}' would have a line break in a value")
    return "".join(f"{key} {value}".rstrip() + "\n" for key, value in lines if value is not None)


def in_menu_order(entries: Sequence[BootEntry]) -> list[BootEntry]:
    """Sort as systemd-boot does: tries left, sort key, machine id, version newest first, then file name newest first.

    Versions are compared number by number and word by word; the specification's finer rules (``~`` and ``^``) play no
    part for our own entries, whose sort keys all differ.
    """
    by_name = sorted(entries, key=lambda entry: _version_key(entry.file_name), reverse=True)
    by_version = sorted(by_name, key=lambda entry: _version_key(entry.version or ""), reverse=True)
    return sorted(
        by_version,
        key=lambda entry: (
            entry.is_out_of_tries,
            entry.sort_key is None,
            entry.sort_key or "",
            entry.machine_id or "",
        ),
    )


def _version_key(text: str) -> list[tuple[int, int, str]]:
    return [
        (1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.findall(r"[0-9]{1,300}|[A-Za-z]+", text)
    ]


def ranked(entries: Sequence[BootEntry]) -> list[BootEntry]:
    """Give entries of ours sort keys that boot them in the order of the list; foreign ones stay as they are."""
    own = [entry for entry in entries if entry.deployment_id is not None]
    match = _SORT_KEY.fullmatch(own[0].sort_key or "") if own else None
    prefix = match["prefix"] if match else "bootc-bootwright"
    width = len(str(max(len(own) - 1, 0)))
    keys = iter(f"{prefix}-{number:0{width}}" for number in range(len(own)))
    return [entry if entry.deployment_id is None else replace(entry, sort_key=next(keys)) for entry in entries]


def parse_os_release(text: str) -> dict[str, str]:
    """Parse an os-release file (os-release(5)): shell-like assignments; lines that are none are skipped."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        match = _OS_RELEASE_LINE.fullmatch(line)
        if not match:
            continue
        value = match[2].strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            quote = value[0]
            value = value[1:-1]
            if quote == '"':
                value = re.sub(r'\\(["$`\\])', r"\1", value)
        fields[match[1]] = value
    return fields
