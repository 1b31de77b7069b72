"""Builds ``dist/bootwright_<version>_all.deb`` from this checkout, without debhelper, root or a network.

The package is what an image or a build host installs: the program, the initramfs modules, units, manual pages. The same
sources and SOURCE_DATE_EPOCH (default: the time of the last commit) give the same bytes. Dependencies come from
pyproject.toml, so the two cannot disagree.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import sys
import tempfile
import time
import tomllib
from email.utils import formatdate
from pathlib import Path

from bootwright import __version__
from bootwright.errors import BootwrightError, ToolError
from bootwright.linux.process import run

__all__ = ["INSTALLED", "ROOT", "build", "dependencies", "stage"]

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "bootwright"
DATA = PACKAGE / "data"

# Where each file below src/bootwright/data goes. A test checks that no data file is missing here.
INSTALLED = {
    "dracut/51bootwright/bootwright-root-setup.service": "usr/lib/dracut/modules.d/51bootwright/",
    "dracut/51bootwright/module-setup.sh": "usr/lib/dracut/modules.d/51bootwright/",
    "image/prepare-image": "usr/lib/bootwright/",
    "initramfs-tools/hooks/bootwright": "usr/share/initramfs-tools/hooks/",
    "initramfs-tools/scripts/local-bottom/bootwright": "usr/share/initramfs-tools/scripts/local-bottom/",
    "initramfs/bootwright-root-setup": "usr/lib/bootwright/root-setup",
    "systemd/bootwright-finalize-staged.service": "usr/lib/systemd/system/",
    "systemd/bootwright-ssh-host-keys.service": "usr/lib/systemd/system/",
}

# Names on PyPI that are not python3-<name> in Debian.
_DEBIAN_NAMES = {"pyyaml": "python3-yaml"}

_PROGRAM = """\
#!/usr/bin/python3 -I
# Isolated: what lies in the working directory, or in PYTHONPATH, is not the program that root runs.
from bootwright.cli.main import run

run()
"""

_CONTROL = """\
Package: bootwright
Version: {version}
Section: admin
Priority: optional
Architecture: all
Maintainer: Bootwright developers <bootwright@localhost.localdomain>
Installed-Size: {size_kib}
Depends: {depends}
Recommends: dracut | linux-initramfs-tool, dosfstools, e2fsprogs, fdisk, mtools
Suggests: mmdebstrap, openssh-client, ovmf, qemu-system-x86, qemu-utils, systemd-boot-efi
Description: boot a machine from an OCI image and keep it on it
 Bootwright makes a machine boot from a container image and keeps it up to
 date from the same image: transactional, in-place operating-system updates
 delivered as OCI images, with rollback and verified storage (composefs).
 .
 The package has the command, and what an image needs to boot that way: a
 dracut module, an initramfs-tools hook, systemd units and
 /usr/lib/bootwright/prepare-image.
"""

_POSTINST = """\
#!/bin/sh
set -e
if [ "$1" = configure ] && command -v py3compile >/dev/null 2>&1; then
    py3compile -p bootwright
fi
exit 0
"""

_PRERM = """\
#!/bin/sh
set -e
if command -v py3clean >/dev/null 2>&1; then
    py3clean -p bootwright
fi
exit 0
"""

_COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: bootwright

Files: *
Copyright: 2026 Bootwright developers
License: Apache-2.0
 On Debian systems, the full text of the Apache License, version 2.0, is in
 /usr/share/common-licenses/Apache-2.0.
"""

_CHANGELOG = """\
bootwright ({version}) unstable; urgency=medium

  * Built from the project's own sources.

 -- Bootwright developers <bootwright@localhost.localdomain>  {date}
"""


def source_date() -> int:
    """Return the time, in seconds since 1970, that everything in the package is dated."""
    wanted = os.environ.get("SOURCE_DATE_EPOCH")
    if wanted is not None:
        return int(wanted)
    try:
        return int(run(["git", "-C", str(ROOT), "log", "-1", "--format=%ct"], purpose="date the package").stdout)
    except (ToolError, ValueError):
        return int(time.time())  # a source archive without git


def dependencies() -> list[str]:
    """Return Debian's names for what pyproject.toml depends on, and the packages no deployment works without."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python = re.fullmatch(r">=\s*([0-9.]+)", project["requires-python"])
    if python is None:
        raise ToolError(f"requires-python '{project['requires-python']}' in pyproject.toml is no '>=' version")
    depends = [f"python3 (>= {python[1]})"]
    for requirement in project["dependencies"]:
        match = re.fullmatch(r"([a-z0-9_-]+)>=([0-9.]+)", requirement)
        if match is None:
            raise ToolError(f"dependency '{requirement}' in pyproject.toml is not 'name>=version'")
        name, version = match.groups()
        depends.append(f"{_DEBIAN_NAMES.get(name, f'python3-{name}')} (>= {version})")
    return [*depends, "fsverity", "kmod", "mount"]


def _put(root: Path, name: str, content: bytes | str, *, executable: bool = False) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(0o755 if executable else 0o644)


def _put_gzip(root: Path, name: str, content: bytes) -> None:
    _put(root, name, gzip.compress(content, 9, mtime=0))


def _completions() -> dict[str, str]:
    """Return the shell completion scripts: target name and text."""
    from click.shell_completion import BashComplete, FishComplete, ZshComplete

    from bootwright.cli.main import cli

    variable = "_BOOTWRIGHT_COMPLETE"
    return {
        "usr/share/bash-completion/completions/bootwright": BashComplete(cli, {}, "bootwright", variable).source(),
        "usr/share/fish/vendor_completions.d/bootwright.fish": FishComplete(cli, {}, "bootwright", variable).source(),
        "usr/share/zsh/vendor-completions/_bootwright": ZshComplete(cli, {}, "bootwright", variable).source(),
    }


def stage(root: Path, *, date: int) -> None:
    """Write the files of the package below a directory."""
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix == ".py" or path.name == "py.typed":
            _put(root, f"usr/lib/python3/dist-packages/bootwright/{path.relative_to(PACKAGE)}", path.read_bytes())
    _put(root, "usr/bin/bootwright", _PROGRAM, executable=True)
    for name, target in INSTALLED.items():
        content = (DATA / name).read_bytes()
        place = target + Path(name).name if target.endswith("/") else target
        _put(root, place, content, executable=content.startswith(b"#!"))
    for page in sorted((ROOT / "docs" / "man").glob("*.[1-8]")):
        _put_gzip(root, f"usr/share/man/man{page.suffix[1:]}/{page.name}.gz", page.read_bytes())
    for name, text in _completions().items():
        _put(root, name, text)
    documents = "usr/share/doc/bootwright"
    _put(root, f"{documents}/copyright", _COPYRIGHT)
    changelog = _CHANGELOG.format(version=__version__, date=formatdate(date, usegmt=False))
    _put_gzip(root, f"{documents}/changelog.gz", changelog.encode())


def _write_control(root: Path) -> None:
    """Write DEBIAN/ for a staged tree."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    sums = "".join(
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(root)}\n"
        for path in files
    )
    # As dpkg-gencontrol counts: whole KiB a file, one KiB for everything else.
    size_kib = sum(-(-path.stat().st_size // 1024) if path.is_file() else 1 for path in root.rglob("*"))
    control = _CONTROL.format(version=__version__, size_kib=size_kib, depends=", ".join(dependencies()))
    _put(root, "DEBIAN/md5sums", sums)
    _put(root, "DEBIAN/control", control)
    _put(root, "DEBIAN/postinst", _POSTINST, executable=True)
    _put(root, "DEBIAN/prerm", _PRERM, executable=True)


def build(directory: Path) -> Path:
    """Build the package into a directory and return its path.

    Raises:
        ToolError: dpkg-deb is missing or failed.
    """
    date = source_date()
    directory.mkdir(parents=True, exist_ok=True)
    package = directory / f"bootwright_{__version__}_all.deb"
    with tempfile.TemporaryDirectory(prefix="bootwright-deb-") as scratch:
        root = Path(scratch) / "root"
        root.mkdir()
        stage(root, date=date)
        _write_control(root)
        for path in [root, *root.rglob("*")]:
            if path.is_dir():
                path.chmod(0o755)
            os.utime(path, (date, date))
        # Built beside its place, so that a reader never meets half a package.
        built = Path(scratch) / package.name
        run(
            ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(root), str(built)],
            purpose="build the package",
            env={"SOURCE_DATE_EPOCH": str(date)},
        )
        partial = package.with_suffix(f".{os.getpid()}")
        partial.write_bytes(built.read_bytes())
        partial.replace(package)
    return package


def main() -> int:
    """Build into dist/ and print the path."""
    try:
        print(build(ROOT / "dist").relative_to(ROOT))
    except BootwrightError as exc:
        print(f"error: {exc.message}", file=sys.stderr)
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
