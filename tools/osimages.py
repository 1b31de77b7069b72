"""Builds the example OS images once and keeps them: used by the demo, the VM tests and the benchmarks.

An image is built again when anything it is made of changed: the package of this checkout, the recipes, the Debian
archive it comes from. Kept below ``.cache/os-images`` (or $BOOTWRIGHT_CACHE), never in git.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = ["CACHE", "ROOT", "build_package", "ensure_images"]

ROOT = Path(__file__).parents[1]
CACHE = Path(os.environ.get("BOOTWRIGHT_CACHE", ROOT / ".cache"))
RECIPES = ROOT / "examples" / "debian"
# A day's packages are good enough for a test; tomorrow's archive may have newer ones.
FRESH_S = 24 * 3600


def build_package() -> Path:
    """Build the .deb of this checkout; the same sources give the same bytes."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1735689600"}
    subprocess.run(
        [sys.executable, ROOT / "tools" / "build_deb.py"], check=True, env=environment, stdout=subprocess.DEVNULL
    )
    (package,) = (ROOT / "dist").glob("bootwright_*_all.deb")
    return package


def _fingerprint(variant: str, package: Path) -> str:
    made_of = hashlib.sha256(variant.encode())
    made_of.update(package.read_bytes())
    for path in sorted(RECIPES.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            made_of.update(str(path.relative_to(RECIPES)).encode() + b"\0" + path.read_bytes())
    return made_of.hexdigest()


def ensure_images(*variants: str) -> dict[str, Path]:
    """Return, for each named variant (``v1``, ``v2``, ``other``, ``big``), an OCI layout that holds it under that tag.

    Two are built at a time: a build is mostly waiting for one program after the other.
    """
    package = build_package()
    with ThreadPoolExecutor(max_workers=2) as pool:
        return dict(zip(variants, pool.map(lambda variant: _ensure(variant, package), variants), strict=True))


def _ensure(variant: str, package: Path) -> Path:
    layout = CACHE / "os-images" / variant
    layout.mkdir(parents=True, exist_ok=True)
    stamp = layout / ".stamp"
    wanted = _fingerprint(variant, package)
    if stamp.exists() and time.time() - stamp.stat().st_mtime < FRESH_S and stamp.read_text() == wanted:
        return layout
    print(f"building the example image '{variant}' from Debian packages", file=sys.stderr, flush=True)
    command = [sys.executable, str(RECIPES / "build.py")]
    command += ["--variant", variant, "--output", str(layout), "--deb", str(package)]
    result = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    (layout / "build.log").write_bytes(result.stdout)
    if result.returncode != 0:
        tail = result.stdout.decode(errors="replace")[-3000:]
        raise RuntimeError(f"building the example image '{variant}' failed:\n{tail}")
    stamp.write_text(wanted)
    return layout


if __name__ == "__main__":
    if sys.argv[1:] == ["clean"]:
        shutil.rmtree(CACHE / "os-images", ignore_errors=True)
    else:
        for name, directory in ensure_images(*(sys.argv[1:] or ["v1", "v2", "other"])).items():
            print(f"oci:{directory}:{name}")
