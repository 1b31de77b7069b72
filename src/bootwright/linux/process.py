"""The one door to other programs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import IO

from bootwright.errors import ToolError
from bootwright.linux.files import libc

__all__ = ["PACKAGES", "find_program", "run", "run_attached", "start"]

_PR_SET_PDEATHSIG = 1

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
    timeout_s: float | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end and return its output.

    Args:
        argv: program name and arguments; no shell.
        purpose: what it is for, as in "could not <purpose>".
        stdin: bytes for its standard input; nothing when None.
        env: variables added to a fixed environment (the caller's, with LC_ALL=C.UTF-8).
        cwd: its working directory.
        ok: exit statuses that are no failure.
        timeout_s: after this time it is killed.

    Raises:
        TimeoutError: it did not end within ``timeout_s``.
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
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as exc:
        raise TimeoutError(f"could not {purpose}: '{argv[0]}' did not end within {timeout_s} s") from exc
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


def run_attached(argv: Sequence[str]) -> int:
    """Run a program on our own standard streams and return its exit status, 128 and the signal when it was killed.

    Raises:
        ToolError: it is missing.
    """
    status = subprocess.run([find_program(argv[0]), *argv[1:]], check=False).returncode
    return status if status >= 0 else 128 - status


def start(argv: Sequence[str], *, log: IO[bytes], attached: bool = False) -> subprocess.Popen[bytes]:
    """Start a program that runs beside us; the kernel ends it with us, even when we are killed.

    Args:
        argv: program and arguments.
        log: takes its standard error, and its standard output unless ``attached``.
        attached: it has our standard input and output, and our signals from the terminal.

    Raises:
        ToolError: it is missing or does not start.
    """
    program = find_program(argv[0])
    # The kernel counts the thread that starts a program as its parent: one started elsewhere must outlive its thread.
    is_main = threading.current_thread() is threading.main_thread()
    try:
        return subprocess.Popen(
            [program, *argv[1:]],
            stdin=None if attached else subprocess.DEVNULL,
            stdout=None if attached else log,
            stderr=log,
            start_new_session=not attached,
            preexec_fn=_die_with_parent if is_main else None,  # noqa: PLW1509  one system call, no lock
        )
    except OSError as exc:
        raise ToolError(f"'{argv[0]}' does not start: {exc.strerror}") from exc


def _die_with_parent() -> None:
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
