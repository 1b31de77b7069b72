"""The shell of the initramfs: linted, and its parsing run under the shells that an initramfs has."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
DATA = ROOT / "src" / "bootwright" / "data"
ROOT_SETUP = DATA / "initramfs" / "bootwright-root-setup"

ID = "4" * 64
LONG_ID = "b" * 128


def is_script(path: Path) -> bool:
    return path.is_file() and path.read_bytes().partition(b"\n")[0] in (b"#!/bin/sh", b"#!/bin/bash")


SCRIPTS = sorted(
    path for directory in (DATA, ROOT / "examples", ROOT / "tools") for path in directory.rglob("*") if is_script(path)
)

# What /bin/sh may be in an initramfs; klibc's is dash, with fewer commands around it.
SHELLS = [
    pytest.param(argv, id=argv[0])
    for argv in (["dash"], ["busybox", "sh"], ["bash", "--posix"])
    if argv[0] != "busybox" or shutil.which("busybox")
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_shellcheck_finds_nothing(script: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: apt-get install shellcheck")
    result = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)
    assert result.stdout == ""
    assert result.returncode == 0


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_are_executable(script: Path) -> None:
    assert script.stat().st_mode & 0o111


def call(shell: list[str], commands: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Source the root set-up and run commands with its functions."""
    return subprocess.run(
        [*shell, "-c", f'. "{ROOT_SETUP}"; {commands}', "sh", *arguments],
        env={**os.environ, "BOOTWRIGHT_SOURCED": "1"},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("cmdline", "expected"),
    [
        pytest.param("", "1:", id="empty"),
        pytest.param("root=/dev/vda rw quiet", "1:", id="without"),
        pytest.param(f"root=/dev/vda rw composefs={ID} quiet", f"0:{ID}", id="present"),
        pytest.param(f"composefs=?{ID}", f"0:?{ID}", id="not-required"),
        pytest.param(f"  a=b \t composefs={ID}\n", f"0:{ID}", id="blanks"),
        pytest.param(f'composefs="{ID}"', f"0:{ID}", id="quoted-value"),
        pytest.param(f'"composefs={ID}"', f"0:{ID}", id="quoted-argument"),
        pytest.param(f'dyndbg="file a +p composefs=x y" composefs={ID}', f"0:{ID}", id="inside-other-quotes"),
        pytest.param('dyndbg="file composefs=x"', "1:", id="only-inside-other-quotes"),
        pytest.param('x="unfinished composefs=y', "1:", id="unfinished-quote"),
        pytest.param(f"composefs={ID} composefs={ID}", f"0:{ID}", id="twice-the-same"),
        pytest.param(f"composefs={ID} composefs=?{ID}", f"2:{ID}", id="twice-different"),
        pytest.param("composefs", "0:", id="without-value"),
        pytest.param("composefs=", "0:", id="empty-value"),
        pytest.param(f"xcomposefs={ID} composefs.digest={ID}", "1:", id="other-names"),
        pytest.param(f"quiet -- composefs={ID}", "1:", id="after-double-dash"),
        pytest.param(f"a=* b=? composefs={ID}", f"0:{ID}", id="glob-characters"),
    ],
)
def test_find_argument(shell: list[str], cmdline: str, expected: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [*shell, "-c", f'. "{ROOT_SETUP}"; find_argument "$1"; echo "$?:$value"', "sh", cmdline],
        env={**os.environ, "BOOTWRIGHT_SOURCED": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (result.stdout, result.stderr) == (expected + "\n", "")


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(ID, f"{ID} required", id="sha256"),
        pytest.param(LONG_ID, f"{LONG_ID} required", id="sha512"),
        pytest.param(f"?{ID}", f"{ID} ", id="not-required"),
        pytest.param("", "refused", id="empty"),
        pytest.param("?", "refused", id="only-question-mark"),
        pytest.param(ID[1:], "refused", id="short"),
        pytest.param(f"{ID}0", "refused", id="long"),
        pytest.param(ID[:-1] + "G", "refused", id="no-hex"),
        pytest.param("A" * 64, "refused", id="upper-case"),
        pytest.param("../" + ID[3:], "refused", id="path"),
        pytest.param(f"??{ID}", "refused", id="two-question-marks"),
    ],
)
def test_parse_argument(shell: list[str], value: str, expected: str) -> None:
    result = call(shell, 'parse_argument "$1" && echo "$id $verity" || echo refused', value)
    assert (result.stdout, result.stderr) == (expected + "\n", "")


MOUNTINFO = """\
22 1 0:21 / /proc rw,nosuid - proc proc rw
75 1 254:2 / /sysroot rw,relatime shared:1 - ext4 /dev/vda2 rw,errors=remount-ro
76 75 0:33 / /sysroot/x ro - overlay composefs:1 ro
80 1 0:40 / /btrfs ro,relatime shared:3 master:2 - btrfs /dev/sda3 rw,space_cache=v2
90 1 8:1 / /stacked rw - ext4 /dev/sda1 rw
91 90 0:50 / /stacked ro - overlay composefs:2 ro,lowerdir=x
"""


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("target", "expected"),
    [
        pytest.param("/sysroot", "254:2 /dev/vda2 rw,relatime,rw,errors=remount-ro", id="shared"),
        pytest.param("/btrfs", "0:40 /dev/sda3 ro,relatime,rw,space_cache=v2", id="two-optional-fields"),
        pytest.param("/stacked", "0:50 composefs:2 ro,ro,lowerdir=x", id="topmost"),
        pytest.param("/nowhere", "nothing", id="missing"),
    ],
)
def test_find_mount(shell: list[str], target: str, expected: str) -> None:
    commands = 'find_mount "$1" && echo "$device $source $options" || echo nothing'
    result = call(shell, commands, target, stdin=MOUNTINFO)
    assert (result.stdout, result.stderr) == (expected + "\n", "")


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("link", "expected"),
    [
        pytest.param("../../os/default/var", "state/os/default/var", id="as-deployed"),
        pytest.param("/state/os/default/var", "state/os/default/var", id="absolute-means-physical-root"),
        pytest.param("../../../../../../../../../../etc", "refused", id="escape"),
        pytest.param("../missing", "refused", id="dangling"),
        pytest.param("escape-by-link", "refused", id="escape-by-second-link"),
        pytest.param(None, "state/deploy/1/var", id="directory"),
    ],
)
def test_resolve_below_root(shell: list[str], link: str | None, expected: str, tmp_path: Path) -> None:
    root = tmp_path / "physical"
    state = root / "state" / "deploy" / "1"
    state.mkdir(parents=True)
    (root / "state" / "os" / "default" / "var").mkdir(parents=True)
    (state / "escape-by-link").symlink_to("/usr")
    if link is None:
        (state / "var").mkdir()
    else:
        (state / "var").symlink_to(link)
    result = call(shell, 'root=$1; resolve_below_root "$2" var || echo refused', str(root), str(state))
    wanted = expected if expected == "refused" else str(root / expected)
    assert (result.stdout, result.stderr) == (wanted + "\n", "")
