"""Runs bootwright as an ordinary user: one without any privilege, whoever runs the tests."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
NOBODY = 65534


@functools.cache
def _launcher() -> tuple[list[str], dict[str, str]]:
    """Find a way: drop to nobody with this interpreter or, where nobody may not read it, with the system's own; else a
    user namespace in which we are somebody else.
    """
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    env = {"PYTHONPATH": f"{SOURCE}{os.pathsep}{packages}", "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}
    if os.geteuid() != 0:
        return [sys.executable], env
    drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    away = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
    for argv in ([*drop, sys.executable], [*drop, "/usr/bin/python3"], [*away, sys.executable]):
        tried = subprocess.run(
            [*argv, "-c", "import bootwright.cli.install"],
            env={**os.environ, **env},
            capture_output=True,
            check=False,
            cwd="/",
        )
        if tried.returncode == 0:
            return argv, env
    pytest.skip("no way to run this checkout as an ordinary user")


@contextlib.contextmanager
def ordinary_directory() -> Iterator[Path]:
    """Make a temporary directory that is theirs. (Pytest's own are below one that is closed to others.)"""
    with tempfile.TemporaryDirectory(prefix="bootwright-test-") as name:
        path = Path(name)
        if os.geteuid() == 0 and "unshare" not in _launcher()[0]:
            os.chown(path, NOBODY, NOBODY)
        yield path


def start_as_ordinary_user(
    arguments: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start ``bootwright ARGUMENTS`` in a process group of its own."""
    argv, base = _launcher()
    return subprocess.Popen(
        [*argv, "-m", "bootwright", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, **base, **(env or {})},
        start_new_session=True,
    )


def run_as_ordinary_user(
    arguments: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``bootwright ARGUMENTS`` to its end."""
    process = start_as_ordinary_user(arguments, cwd=cwd, env=env)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
