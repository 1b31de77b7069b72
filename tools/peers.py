"""Fetches the programs we compare ourselves with, from Debian sid, into a tree of their own: .cache/peers.

Nothing is installed: the tests and benchmarks run these programs with the tree's own loader and libraries. With
--podman also what `bench/pull.py` needs, which is run in a chroot.
"""

from __future__ import annotations

import os
import subprocess
import sys

from osimages import CACHE, RECIPES

sys.path.insert(0, str(RECIPES))
from build import find_mirror

PROGRAMS = ("composefs", "umoci")
WITH_PODMAN = ("podman", "crun", "ca-certificates")


def main() -> None:
    """Make the tree, unless it is there."""
    with_podman = "--podman" in sys.argv
    tree = CACHE / ("peers-podman" if with_podman else "peers")
    if (tree / "usr").is_dir():
        return
    packages = [*PROGRAMS, *(WITH_PODMAN if with_podman else ())]
    print(f"fetching {' '.join(packages)} from Debian sid into {tree}", file=sys.stderr, flush=True)
    partial = tree.with_name(f"{tree.name}.partial")
    subprocess.run(["rm", "-rf", partial], check=True)
    partial.mkdir(parents=True)
    archive = subprocess.Popen(
        [
            "mmdebstrap",
            "--quiet",
            f"--mode={'root' if os.geteuid() == 0 else 'unshare'}",
            f"--variant={'apt' if with_podman else 'extract'}",
            '--aptopt=Acquire::Check-Valid-Until "false"',
            f"--include={','.join(packages)}",
            "sid",
            "-",
            find_mirror(),
        ],
        stdout=subprocess.PIPE,
    )
    subprocess.run(["tar", "-C", partial, "--exclude=./dev", "-x"], stdin=archive.stdout, check=True)
    if archive.wait() != 0:
        sys.exit("error: mmdebstrap failed")
    partial.rename(tree)


if __name__ == "__main__":
    main()
