"""Programs of other projects to compare with: from PATH, or from a Debian tree named by BOOTWRIGHT_PEERS.

Programs of that tree run with its own libraries through its own loader, not in a chroot, so they see the paths of the
test.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest


def find_peer(name: str) -> list[str]:
    """Return the beginning of an argv that runs a peer; skips the test when there is none."""
    root = os.environ.get("BOOTWRIGHT_PEERS")
    if root is not None:
        machine = platform.machine()
        # A tree that was only unpacked has no /lib64 -> usr/lib64.
        loader = next(
            iter([*Path(root).glob("lib*/ld-linux-*.so.*"), *Path(root).glob("usr/lib*/ld-linux-*.so.*")]), None
        )
        program = Path(root, "usr/bin", name)
        if loader is not None and program.exists():
            libraries = f"{root}/usr/lib/{machine}-linux-gnu:{root}/usr/lib/{machine}-linux-gnu/systemd"
            return [str(loader), "--library-path", libraries, str(program)]
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name} (on PATH, or in the Debian tree that BOOTWRIGHT_PEERS names)")
    return [found]


def run_peer(name: str, *arguments: str | Path) -> bytes:
    """Run a peer and return its output; a failure fails the test with its last words."""
    result = subprocess.run([*find_peer(name), *map(str, arguments)], capture_output=True, check=False)
    assert result.returncode == 0, f"{name} {arguments}: {result.stderr.decode(errors='replace')[-2000:]}"
    return result.stdout
