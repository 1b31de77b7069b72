"""What the demo and the VM tests do with a machine: make its disk as an ordinary user, ask it how it is.

The disk is always made by a user who is not root: that is a promise of the product, not a detail of the test.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bootwright.ops.vm import MachineOptions, VirtualMachine

__all__ = [
    "HOST_ADDRESS",
    "install_disk",
    "make_overlay",
    "make_scratch",
    "open_machine",
    "read_status",
    "unprivileged",
]

ROOT = Path(__file__).parents[1]
# How a guest reaches a server on this host's loopback through QEMU's user network.
HOST_ADDRESS = "10.0.2.2"
_NOBODY = 65534


def unprivileged(directory: Path) -> list[str]:
    """Return the prefix that runs a command as an ordinary user who owns ``directory``; empty when we are one."""
    if os.geteuid() != 0:
        return []
    shutil.chown(directory, _NOBODY, _NOBODY)
    drop = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--no-new-privs"]
    can_start = subprocess.run([*drop, sys.executable, "-c", ""], stderr=subprocess.DEVNULL, check=False)
    if can_start.returncode != 0:
        # The checkout lies where others may not look (CI likes /root). Reading is then allowed, and nothing else.
        drop += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return drop


def install_disk(source: str, target: str, disk: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run ``bootwright install to-disk`` as an ordinary user; the directory of ``disk`` is handed to that user.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    argv = [
        *unprivileged(disk.parent),
        sys.executable,
        "-m",
        "bootwright",
        "install",
        "to-disk",
        f"--source-imgref={source}",
        f"--target-imgref={target}",
        "--size=8G",
        *options,
        str(disk),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HOME": str(disk.parent)}
    return subprocess.run(argv, check=True, text=True, stdout=subprocess.PIPE, env=environment)


def make_scratch(prefix: str) -> Path:
    """Make a directory for disks that any user can look into, unlike pytest's own. The caller removes it."""
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir="/var/tmp"))
    directory.chmod(0o755)
    return directory


def make_overlay(base: Path, overlay: Path) -> Path:
    """Make a disk that starts as ``base`` and keeps what is written to it elsewhere."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base.resolve(), overlay], check=True)
    return overlay


def open_machine(disk: Path, *, serial_log: Path, variables: Path | None = None) -> VirtualMachine:
    """Return a machine (a context manager) that keeps what it writes to its disk."""
    return VirtualMachine(
        MachineOptions(
            disk=str(disk),
            snapshot=False,
            serial_log=str(serial_log),
            variables=None if variables is None else str(variables),
        )
    )


def read_status(machine: VirtualMachine) -> dict[str, Any]:
    """Return the guest's own status document."""
    document: dict[str, Any] = json.loads(machine.run("bootwright status --format=json").check())
    return document
