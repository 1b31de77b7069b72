"""The .deb: complete, reproducible, and its program runs from the unpacked tree."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import build_deb  # noqa: E402  tools/ is no package

DATE = "1700000000"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not installed")
    directory = tmp_path_factory.mktemp("deb")
    patch = pytest.MonkeyPatch()
    patch.setenv("SOURCE_DATE_EPOCH", DATE)
    try:
        return build_deb.build(directory)
    finally:
        patch.undo()


def contents(package: Path) -> dict[str, tarfile.TarInfo]:
    archive = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {entry.name.removeprefix("./"): entry for entry in tar}


def field(package: Path, name: str) -> str:
    return subprocess.run(
        ["dpkg-deb", "--field", package, name], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_every_data_file_is_installed(package: Path) -> None:
    data = {str(path.relative_to(build_deb.DATA)) for path in build_deb.DATA.rglob("*") if path.is_file()}
    assert data == set(build_deb.INSTALLED), (
        "name each file below src/bootwright/data in INSTALLED of tools/build_deb.py"
    )
    files = contents(package)
    for name, target in build_deb.INSTALLED.items():
        place = target + Path(name).name if target.endswith("/") else target
        assert files[place].isreg()
        is_script = (build_deb.DATA / name).read_bytes().startswith(b"#!")
        assert files[place].mode == (0o755 if is_script else 0o644), place


def test_every_module_is_installed(package: Path) -> None:
    files = contents(package)
    for path in build_deb.PACKAGE.rglob("*.py"):
        assert f"usr/lib/python3/dist-packages/bootwright/{path.relative_to(build_deb.PACKAGE)}" in files


def test_owned_by_root_and_dated(package: Path) -> None:
    for name, entry in contents(package).items():
        assert (entry.uid, entry.gid, entry.uname, entry.gname) == (0, 0, "root", "root"), name
        assert entry.mtime == int(DATE), name
        assert entry.mode in (0o755, 0o644), name


def test_same_sources_same_bytes(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", DATE)
    old = os.umask(0o077)
    try:
        again = build_deb.build(tmp_path)
    finally:
        os.umask(old)
    assert again.read_bytes() == package.read_bytes()


def test_dependencies_are_those_of_the_project(package: Path) -> None:
    depends = field(package, "Depends")
    for name in ("click", "rich", "urllib3", "isal", "zstandard", "msgspec", "cryptography", "yaml"):
        assert f"python3-{name} (>= " in depends
    assert "python3 (>= 3.11)" in depends
    assert "fsverity" in depends


def test_sums_match(package: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "--raw-extract", package, tmp_path / "x"], check=True)
    result = subprocess.run(
        ["md5sum", "--check", "--strict", "--quiet", "DEBIAN/md5sums"],
        cwd=tmp_path / "x",
        capture_output=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, b"")


def test_program_runs_from_the_unpacked_tree(package: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "--extract", package, tmp_path], check=True)
    assert (tmp_path / "usr/bin/bootwright").read_text().startswith("#!/usr/bin/python3 -I\n")
    # This interpreter has the dependencies; the system's need not.
    result = subprocess.run(
        [sys.executable, tmp_path / "usr/bin/bootwright", "--version"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "usr/lib/python3/dist-packages")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.stderr, result.returncode) == ("", 0)
    assert result.stdout == f"bootwright {field(package, 'Version')}\n"


def test_units_are_valid(package: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    subprocess.run(["dpkg-deb", "--extract", package, tmp_path], check=True)
    units = [*tmp_path.rglob("*.service")]
    assert len(units) == 3
    for unit in units:
        # The programs a unit starts are in the package, or in the initramfs, not on this machine.
        result = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit],
            capture_output=True,
            text=True,
            check=False,
        )
        complaints = [
            line for line in result.stderr.splitlines() if unit.name in line and "is not executable" not in line
        ]
        assert complaints == []
