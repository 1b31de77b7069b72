"""The mount table: ``/proc/<pid>/mountinfo``, parsed (proc_pid_mountinfo(5)). Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

__all__ = ["Mount", "find_mount", "parse_mountinfo"]

_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One mount.

    Args:
        device: major and minor number of the filesystem's device; anonymous ones have major 0.
        root: directory of the filesystem that is mounted.
        target: where.
        options: of the mount, e.g. ``rw``, ``nosuid``.
        fstype: ``ext4``, ``overlay``.
        source: device path, or whatever the mounter called it.
        super_options: of the filesystem.
    """

    device: tuple[int, int]
    root: str
    target: str
    options: tuple[str, ...]
    fstype: str
    source: str
    super_options: tuple[str, ...] = ()

    @property
    def is_read_only(self) -> bool:
        """The mount or its filesystem is read-only."""
        return "ro" in self.options or "ro" in self.super_options


def parse_mountinfo(text: str) -> list[Mount]:
    """Parse the table, in mount order; lines that are none are skipped."""
    return list(_parse(text.splitlines()))


def _parse(lines: Iterable[str]) -> Iterator[Mount]:
    for line in lines:
        fields = line.split(" ")
        try:
            separator = fields.index("-", 6)
            major, _, minor = fields[2].partition(":")
            yield Mount(
                device=(int(major), int(minor)),
                root=_unescape(fields[3]),
                target=_unescape(fields[4]),
                options=tuple(fields[5].split(",")),
                fstype=fields[separator + 1],
                source=_unescape(fields[separator + 2]),
                super_options=tuple(fields[separator + 3].split(",")) if len(fields) > separator + 3 else (),
            )
        except (ValueError, IndexError):
            continue


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def find_mount(mounts: Iterable[Mount], target: str) -> Mount | None:
    """Return the mount that is visible at exactly this path: the last one made there."""
    found = None
    for mount in mounts:
        if mount.target == target:
            found = mount
    return found
