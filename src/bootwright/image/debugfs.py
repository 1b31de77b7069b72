"""Reading and changing an ext4 filesystem inside a file through e2fsprogs' ``debugfs``: no mount, no privileges.

Files are addressed by inode number (``<12345>``), never by path: the numbers come from :meth:`Debugfs.walk`, whose
output is unambiguous for every file name, so no name of an image ever has to be quoted. (The one exception is a device
node, which has to be created by name.)
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bootwright.errors import ImageError, ToolError
from bootwright.linux.process import run

__all__ = ["ROOT_INODE", "Debugfs", "Found"]

ROOT_INODE = 2
_RECORD_FIELDS = 6  # /inode/mode/uid/gid/name/size/
_CATASTROPHIC = b"catastrophic mode - not reading inode or group bitmaps\n"
_VERSION_LINE = re.compile(rb"debugfs [^\n]*\n")


@dataclass(frozen=True, slots=True)
class Found:
    """A name in the filesystem: its inode number, st_mode, owner and size."""

    inode: int
    mode: int
    uid: int
    gid: int
    size: int


class Debugfs:
    """One filesystem in a file.

    Args:
        path: disk or filesystem image, from ``work``.
        offset: where the filesystem starts, in bytes.
        work: a directory for scripts.
        env: environment for the program, e.g. its idea of the time.
    """

    def __init__(self, path: str, offset: int, *, work: str, env: Mapping[str, str] | None = None) -> None:
        self._target = f"{path}?offset={offset}"
        self._work = work
        self._env = dict(env or {})

    def run_script(self, commands: Sequence[str], *, purpose: str, writing: bool) -> bytes:
        """Run commands and return what they print, each after an echo ``debugfs: <command>``.

        debugfs goes on after an error and exits with 0, but it prints errors, and nothing else, to stderr.

        Raises:
            ToolError: a command failed.
        """
        script = os.path.join(self._work, "debugfs.script")
        with open(script, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.writelines(f"{command}\n" for command in commands)
        # -c, reading only: do not load the bitmaps.
        mode = "-w" if writing else "-c"
        result = run(["debugfs", mode, "-f", script, self._target], purpose=purpose, env=self._env, cwd=self._work)
        said = _VERSION_LINE.sub(b"", result.stderr, count=1).replace(_CATASTROPHIC, b"").strip()
        if said:
            lines = said.decode("utf-8", "replace").splitlines()
            raise ToolError(f"could not {purpose}: 'debugfs' says: {'; '.join(lines[:3])}")
        return result.stdout

    def walk(self) -> dict[bytes, Found]:
        """List the whole filesystem: absolute path → what is there; ``b"/"`` and ``lost+found`` included.

        Raises:
            ToolError: debugfs failed or printed what cannot be understood.
        """
        found: dict[bytes, Found] = {}
        level = [(b"", ROOT_INODE)]
        while level:
            following: list[tuple[bytes, int]] = []
            for (path, _), records in zip(level, self._list([inode for _, inode in level]), strict=True):
                for name, one in records:
                    if name == b".":
                        found[path or b"/"] = one
                    elif name != b"..":
                        found[path + b"/" + name] = one
                        if stat.S_ISDIR(one.mode):
                            following.append((path + b"/" + name, one.inode))
            level = following
        return found

    def _list(self, inodes: Sequence[int]) -> list[list[tuple[bytes, Found]]]:
        output = self.run_script(
            [f"ls -p <{inode}>" for inode in inodes], purpose="list a directory of the new filesystem", writing=False
        )
        at = 0
        listed: list[list[tuple[bytes, Found]]] = []
        for inode in inodes:
            echo = b"debugfs: ls -p <%d>\n" % inode
            if not output.startswith(echo, at):
                raise ToolError("could not list a directory of the new filesystem: 'debugfs' prints something unknown")
            records, at = _parse_records(output, at + len(echo))
            listed.append(records)
        return listed

    def make_device(self, parent: int, name: bytes, mode: int, rdev: int) -> list[str]:
        """Return the commands that create a device node.

        Raises:
            ImageError: debugfs cannot be told the name.
        """
        if any(byte < 32 or byte == 127 for byte in name):
            raise ImageError(f"the device node {name!r} of the image has a control character in its name")
        kind = "b" if stat.S_ISBLK(mode) else "c"
        quoted = os.fsdecode(name).replace('"', '""')
        return [f"cd <{parent}>", f'mknod "{quoted}" {kind} {os.major(rdev)} {os.minor(rdev)}', "cd /"]


def _parse_records(output: bytes, at: int) -> tuple[list[tuple[bytes, Found]], int]:
    """Parse ``/inode/mode/uid/gid/name/size/`` lines up to the empty line behind them.

    A name has no slash, so cutting at slashes is right whatever else is in it.
    """
    records: list[tuple[bytes, Found]] = []
    while output.startswith(b"/", at):
        fields: list[bytes] = []
        for _ in range(_RECORD_FIELDS):
            end = output.find(b"/", at + 1)
            if end < 0:
                raise ToolError("could not list a directory of the new filesystem: the list of 'debugfs' is cut short")
            fields.append(output[at + 1 : end])
            at = end
        inode, mode, uid, gid, name, size = fields
        records.append((name, Found(int(inode), int(mode, 8), int(uid), int(gid), int(size or b"0"))))
        at += 2  # the closing slash and the line break
    return records, at + 1 if output.startswith(b"\n", at) else at
