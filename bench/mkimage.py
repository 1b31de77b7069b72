"""`bootwright composefs mkimage` beside the C mkcomposefs: whole processes, dump to image file.

The C tool is taken from PATH, from the Debian tree given by --chroot, or from the one BOOTWRIGHT_PEERS names. Runs
alternate, so that a busy machine is busy for both. Printed are medians of wall and CPU time, peak memory and the
ratios; both images must be the same.

    bench/mkimage.py [--chroot DIR] [--runs N] [DUMP[.gz]]...
"""

import argparse
import gzip
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
DUMPS = SOURCE.parent / "../shared/vectors/dumps"
BOUND = 6.0


@dataclass
class Run:
    """One process."""

    wall_s: float
    cpu_s: float
    peak_kib: int


def run(argv: list[str], dump: Path) -> Run:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with open(dump, "rb") as source:
        start = time.perf_counter()
        process = subprocess.Popen(argv, stdin=source, stdout=subprocess.DEVNULL, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{argv[0]} failed with status {process.returncode}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)


def find_mkcomposefs(chroot: str | None) -> tuple[list[str], str] | None:
    """Return the argv up to the options, and the directory that is / for it."""
    if chroot is not None:
        if not Path(chroot, "usr/bin/mkcomposefs").exists():
            raise SystemExit(f"no mkcomposefs in '{chroot}'")
        return ["chroot", chroot, "mkcomposefs"], chroot
    found = shutil.which("mkcomposefs")
    return None if found is None else ([found], "/")


def make_dump(lines: int) -> Iterator[bytes]:
    """Something of the size and shape of an operating system, for when there is no real dump."""
    yield b"/ 0 40755 2 0 0 0 0.0 - - - security.selinux=system_u:object_r:root_t:s0\n"
    for number in range(lines):
        if number % 50 == 0:
            directory = b"/d%05d" % number
            yield b"%b 0 40755 2 0 0 0 0.0 - - - security.selinux=system_u:object_r:usr_t:s0\n" % directory
        digest = hashlib.sha256(b"%d" % number).hexdigest().encode()
        yield b"%b/f%05d %d 100644 1 0 0 0 %d.0 %b/%b - %b security.selinux=system_u:object_r:usr_t:s0\n" % (
            directory,
            number,
            number * 7 + 65,
            1_700_000_000 + number % 9,
            digest[:2],
            digest[2:],
            digest,
        )


def compare(name: str, dump: Path, peer: tuple[list[str], str] | None, runs: int, ground: Path) -> float | None:
    """Print the rows of one dump; return the ratio of wall times."""
    ours = [sys.executable, "-m", "bootwright", "composefs", "mkimage", "--from-file", "-", str(ground / "ours")]
    rows: dict[str, list[Run]] = {"bootwright": []}
    commands = {"bootwright": ours}
    if peer is not None:
        inside = Path("/") / (ground / "theirs").relative_to(peer[1])
        commands["mkcomposefs"] = [*peer[0], "--from-file", "-", str(inside)]
        rows["mkcomposefs"] = []
    for number in range(runs + 1):
        for program, argv in commands.items():
            result = run(argv, dump)
            if number:  # the first fills the caches
                rows[program].append(result)
    print(f"{name}:")
    for program, results in rows.items():
        wall, cpu = (statistics.median(getattr(one, field) for one in results) for field in ("wall_s", "cpu_s"))
        peak = max(one.peak_kib for one in results) / 1024
        print(f"  {program:12} {wall * 1000:7.0f} ms wall {cpu * 1000:7.0f} ms CPU {peak:6.0f} MiB peak")
    if peer is None:
        return None
    same = (ground / "ours").read_bytes() == (ground / "theirs").read_bytes()
    ratios = [
        statistics.median(getattr(one, field) for one in rows["bootwright"])
        / statistics.median(getattr(one, field) for one in rows["mkcomposefs"])
        for field in ("wall_s", "cpu_s")
    ]
    verdict = "met" if ratios[0] <= BOUND else "MISSED"
    print(f"  ratio {ratios[0]:.1f}x wall, {ratios[1]:.1f}x CPU; bound {BOUND:.0f}x wall: {verdict}")
    print(f"  images are {'the same' if same else 'DIFFERENT'}")
    if not same:
        raise SystemExit(1)
    return float(ratios[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chroot", default=os.environ.get("BOOTWRIGHT_PEERS"), metavar="DIR")
    parser.add_argument("--runs", type=int, default=11, metavar="N")
    parser.add_argument("dumps", nargs="*", type=Path, metavar="DUMP")
    arguments = parser.parse_args()
    peer = find_mkcomposefs(arguments.chroot)
    if peer is None:
        print("mkcomposefs is not installed (Debian's package: composefs): measuring alone")
    # Both write to the same filesystem.
    parent = Path(peer[1], "tmp").resolve() if peer is not None else None
    dumps = arguments.dumps or [path for path in [DUMPS / "cs9-x86_64-minimal.dump.gz"] if path.exists()]
    with tempfile.TemporaryDirectory(prefix="bench-mkimage-", dir=parent) as directory:
        ground = Path(directory)
        plain = ground / "dump"
        for path in dumps:
            data = path.read_bytes()
            plain.write_bytes(gzip.decompress(data) if path.suffix == ".gz" else data)
            compare(path.name, plain, peer, arguments.runs, ground)
        plain.write_bytes(b"".join(make_dump(22_000)))
        compare("22,000 files with labels, digests and times", plain, peer, arguments.runs, ground)


if __name__ == "__main__":
    main()
