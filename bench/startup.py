"""How long a user waits for `bootwright --help` and `bootwright status`, as whole processes.

Prints median and minimum of several runs beside the bare interpreter. The bounds we hold ourselves to are printed
with each row: 150 ms for --help, 250 ms for status.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 15
SOURCE = Path(__file__).parents[1] / "src"


def measure(argv: list[str]) -> list[float]:
    times = []
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    for number in range(RUNS + 1):
        start = time.perf_counter()
        subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, check=False)
        if number:  # the first fills the caches
            times.append((time.perf_counter() - start) * 1000)
    return times


def main() -> None:
    python = sys.executable
    rows: list[tuple[str, list[str], int | None]] = [
        ("python -c pass", [python, "-c", "pass"], None),
        ("bootwright --help", [python, "-m", "bootwright", "--help"], 150),
        ("bootwright status --json", [python, "-m", "bootwright", "status", "--json"], 250),
    ]
    print(f"{'command':28} {'median':>9} {'min':>9}   bound")
    for name, argv, bound in rows:
        times = measure(argv)
        median = statistics.median(times)
        verdict = "" if bound is None else f"{bound} ms  {'met' if median < bound else 'MISSED'}"
        print(f"{name:28} {median:6.0f} ms {min(times):6.0f} ms   {verdict}")


if __name__ == "__main__":
    main()
