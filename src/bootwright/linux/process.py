"""The one door to other programs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence

from bootwright.errors import ToolError

__all__ = ["PACKAGES", "find_program", "run"]

# Debian's package for each program we drive, so that a missing one can be named.
PACKAGES = {
    "debugfs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "mke2fs": "e2fsprogs",
    "mcopy": "mtools",
    "mmd": "mtools",
    "mkfs.vfat": "dosfstools",
    "mkfs.fat": "dosfstools",
    "sfdisk": "fdisk",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-system-aarch64": "qemu-system-arm",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "systemctl": "systemd",
    "systemd-run": "systemd",
}

_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find_program(name: str) -> str:
    """Return the path of a program, also looking where a plain user's PATH does not (``/usr/sbin``).

    Raises:
        ToolError: it is not installed; the hint names Debian's package.
    """
    found = shutil.which(name) or shutil.which(name, path=_SYSTEM_PATH)
    if found is None:
        package = PACKAGES.get(name, name)
        raise ToolError(f"the program '{name}' is not installed", hint=f"apt-get install {package}")
    return found


def run(
    argv: Sequence[str],
    *,
    purpose: str,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    ok: Sequence[int] = (0,),
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end and return its output.

    Args:
        argv: program name and arguments; no shell.
        purpose: what it is for, as in "could not <purpose>".
        stdin: bytes for its standard input; nothing when None.
        env: variables added to a fixed environment (the caller's, with LC_ALL=C.UTF-8).
        cwd: its working directory.
        ok: exit statuses that are no failure.

    Raises:
        ToolError: it is missing, was killed, or exited with another status; the message carries its last lines.
    """
    program = find_program(argv[0])
    environment = {**os.environ, "LC_ALL": "C.UTF-8", **(env or {})}
    try:
        result = subprocess.run(
            [program, *argv[1:]],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            env=environment,
            cwd=cwd,
            check=False,
        )
    except OSError as exc:
        raise ToolError(f"could not {purpose}: '{argv[0]}' does not start: {exc.strerror}") from exc
    if result.returncode in ok:
        return result
    if result.returncode < 0:
        how = f"was killed by {signal.Signals(-result.returncode).name}"
    else:
        how = f"exited with status {result.returncode}"
    said = (result.stderr or result.stdout).decode("utf-8", "replace").strip().splitlines()[-5:]
    detail = f": {'; '.join(line.strip() for line in said)}" if said else ""
    raise ToolError(f"could not {purpose}: '{argv[0]}' {how}{detail}")
