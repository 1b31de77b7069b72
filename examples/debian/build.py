"""Builds a bootable Debian image, as an OCI layout, from Debian's packages.

    examples/debian/build.py --variant v1 --output images/ --deb dist/bootwright_0.1.0_all.deb

mmdebstrap makes the root filesystem (as root, or as any user in a user namespace), the package bootwright brings the
initramfs module and prepare-image, and the files are divided into layers such that variants share what they have in
common.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from oci_layers import Layer, add_image, read_entries, write_layers

Entries = Mapping[str, tarfile.TarInfo]

HERE = Path(__file__).resolve().parent

# Times of files that no package brought: what a build made gets this one.
BUILD_TIME = 1767225600  # 2026-01-01

# What a machine needs to boot, be reached and update itself.
BASE = (
    "linux-image-cloud-{architecture}",
    "systemd",
    "systemd-sysv",
    "systemd-resolved",
    "systemd-boot-efi",
    "udev",
    "kmod",
    "dbus",
    "libpam-systemd",
    "login",
    "passwd",
    "openssh-server",
    "iproute2",
    "procps",
    "e2fsprogs",
    "ca-certificates",
    "zstd",
    "fsverity",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One image of the demonstration."""

    suite: str
    initramfs: str
    version: str
    created: int
    extras: tuple[str, ...]


VARIANTS = {
    "v1": Variant(suite="trixie", initramfs="dracut", version="13.1", created=BUILD_TIME, extras=("nano",)),
    # Two packages come, one goes, and the files in files/v2 are others: an ordinary update.
    "v2": Variant(
        suite="trixie", initramfs="dracut", version="13.2", created=BUILD_TIME + 86400, extras=("htop", "jq", "tree")
    ),
    # More than 50,000 files and directories: for comparisons and benchmarks, not for the demonstration.
    "big": Variant(
        suite="trixie",
        initramfs="dracut",
        version="13.1",
        created=BUILD_TIME,
        extras=("build-essential", "golang-go", "libboost-dev", "linux-headers-cloud-amd64", "npm", "vim", "git"),
    ),
    # Another release of the distribution, with the other initramfs: a switch rather than an update.
    "other": Variant(
        suite="forky", initramfs="initramfs-tools", version="14.0", created=BUILD_TIME + 2 * 86400, extras=("tree",)
    ),
}


def find_mirror() -> str:
    """Return the archive that this machine installs its own packages from.

    Raises:
        SystemExit: there is none in apt's configuration.
    """
    lists = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for path in lists:
        if not path.is_file():
            continue
        for line in path.read_text(errors="replace").splitlines():
            match = re.match(r"URIs:\s*(\S+)", line) or re.match(r"deb\s+(?:\[[^]]*\]\s+)?(\S+)", line)
            if match and re.search(r"/debian/?$", match[1]):
                return match[1]
    sys.exit("error: no Debian archive in /etc/apt; name one with --mirror")


def make_rootfs(arguments: argparse.Namespace, archive: Path) -> None:
    """Make the root filesystem of the wanted variant as a tar archive."""
    variant = VARIANTS[arguments.variant]
    environment = {
        **os.environ,
        "SOURCE_DATE_EPOCH": str(BUILD_TIME),
        # prepare-image makes the initramfs, once.
        "INITRD": "No",
        "FILES": str(HERE / "files" / "common"),
        "VARIANT_FILES": str(HERE / "files" / arguments.variant),
        "DEB": str(arguments.deb.resolve()),
        "EXTRAS": " ".join(variant.extras),
        "IMAGE_VERSION": variant.version,
    }
    packages = [package.format(architecture=arguments.architecture) for package in BASE]
    subprocess.run(
        [
            "mmdebstrap",
            f"--mode={'root' if os.geteuid() == 0 else 'unshare'}",
            "--variant=apt",
            f"--architectures={arguments.architecture}",
            f"--include={','.join([*packages, variant.initramfs])}",
            '--aptopt=APT::Install-Recommends "false"',
            # Testing and unstable: the archive's release file may have outlived its term on a mirror that is kept.
            '--aptopt=Acquire::Check-Valid-Until "false"',
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-include=/usr/share/doc/*/copyright",
            f"--customize-hook={HERE / 'customize.sh'}",
            arguments.suite or variant.suite,
            str(archive),
            arguments.mirror or find_mirror(),
        ],
        check=True,
        env=environment,
        stdout=sys.stderr,
    )


def owners(archive: Path, entries: Entries) -> dict[str, str]:
    """Return which package each path belongs to, from the package database in the image."""
    result: dict[str, str] = {}
    with tarfile.open(archive) as tar:
        for path, entry in entries.items():
            match = re.fullmatch(r"usr/lib/sysimage/dpkg/info/(.+)\.list", path)
            content = tar.extractfile(entry) if match else None
            if match is None or content is None:
                continue
            for line in content.read().decode().splitlines():
                owned = line.strip("/")
                # Packages may still say /lib for /usr/lib.
                result[re.sub(r"^(bin|sbin|lib|lib32|lib64|libx32)/", r"usr/\1/", owned)] = match[1]
    return result


def parents(path: str) -> Iterator[str]:
    """Yield the directories above a path, the root first."""
    parts = path.split("/")
    for count in range(len(parts)):
        yield "/".join(parts[:count])


def divide(archive: Path, entries: Entries) -> tuple[dict[str, dict[str, tarfile.TarInfo]], set[str]]:
    """Divide the files into layers: what changes least comes first.

    Returns:
        Entries by layer, and the paths of files whose times came with a package.
    """
    owner = owners(archive, entries)
    with tarfile.open(archive) as tar:
        listing = tar.extractfile(entries["usr/lib/sysimage/base-packages"])
        base = set(listing.read().decode().split()) if listing else set()
    base |= {name.partition(":")[0] for name in base}
    layers: dict[str, dict[str, tarfile.TarInfo]] = {
        name: {} for name in ("kernel", "system", "python", "share", "extras", "configuration")
    }

    def choose(path: str) -> str:
        if path.startswith("usr/lib/modules/"):
            return "kernel"
        # Byte code belongs to its source.
        source = re.sub(r"__pycache__/([^/]+)\.cpython-\d+\.pyc$", r"\1.py", path)
        package = owner.get(source)
        if package is None or path.startswith(("etc/", "var/", "usr/lib/sysimage/")) or path == "usr/lib/os-release":
            return "configuration"
        if package not in base:
            return "extras"
        if path.startswith(("usr/lib/python3", "usr/share/python3")):
            return "python"
        return "share" if path.startswith("usr/share/") else "system"

    for path, entry in entries.items():
        # Device nodes are the kernel's business, and directories come with what is in them.
        if path.startswith("dev/") or entry.isdir():
            continue
        target = entry.linkname.removeprefix("./") if entry.islnk() else path
        chosen = layers[choose(target)]
        chosen[path] = entry
        chosen.update((parent, entries[parent]) for parent in parents(path) if parent in entries)
    # Directories without files, and the root.
    layers["configuration"].update(
        (path, entry) for path, entry in entries.items() if entry.isdir() and not path.startswith("dev/")
    )
    packaged = {path for path in owner if path in entries and not entries[path].isdir()}
    return layers, packaged - {"usr/lib/os-release"}


@contextlib.contextmanager
def locked(layout: Path) -> Iterator[None]:
    """Hold a layout alone: what another build writes looks unused until its index names it."""
    with (layout / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(arguments: argparse.Namespace) -> None:
    """Build one variant into the layout."""
    variant = VARIANTS[arguments.variant]
    started = time.monotonic()
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bootwright-image-", dir=arguments.workdir) as scratch:
        archive = Path(scratch) / "root.tar"
        # mmdebstrap maps other users into the directory when it is not run by root.
        Path(scratch).chmod(0o755)
        make_rootfs(arguments, archive)
        made = time.monotonic()
        entries = read_entries(archive)
        layers, packaged = divide(archive, entries)
        labels = {
            "containers.bootc": "1",
            "org.opencontainers.image.title": f"Debian {arguments.suite or variant.suite}, {arguments.variant}",
            "org.opencontainers.image.version": variant.version,
        }
        with locked(output):
            written = write_layers(output, archive, layers, lambda path: None if path in packaged else BUILD_TIME)
            digest = add_image(
                output,
                arguments.variant,
                written,
                architecture=arguments.architecture,
                labels=labels,
                created=variant.created,
            )
    report(written, sum(entry.size for entry in entries.values()), made - started, time.monotonic() - made)
    print(f"oci:{output}:{arguments.variant}@{digest}")


def report(layers: list[Layer], size: int, packages_s: float, layers_s: float) -> None:
    """Say on standard error what was made."""
    for layer in layers:
        print(f"  {layer.name:14} {layer.size / 1e6:7.1f} MB  {layer.digest[7:19]}", file=sys.stderr)
    print(
        f"  {size / 1e6:.0f} MB of files; packages {packages_s:.0f} s, layers {layers_s:.0f} s",
        file=sys.stderr,
    )


def default_architecture() -> str:
    """Return Debian's name of the machine's architecture."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


def main() -> int:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=VARIANTS, required=True, help="which image; also its tag in the layout")
    parser.add_argument("--output", type=Path, required=True, help="OCI layout to add it to; made when it is missing")
    parser.add_argument("--deb", type=Path, help="the package bootwright (default: the one in dist/)")
    parser.add_argument("--mirror", help="Debian archive (default: the one in this machine's apt configuration)")
    parser.add_argument("--suite", help="Debian release (default: the variant's)")
    parser.add_argument("--architecture", default=default_architecture(), help="default: this machine's")
    parser.add_argument("--workdir", help="where temporary files go, about 1 GB (default: TMPDIR)")
    arguments = parser.parse_args()
    if arguments.deb is None:
        packages = sorted((HERE.parents[1] / "dist").glob("bootwright_*_all.deb"))
        if not packages:
            sys.exit("error: there is no package in dist/; type: make deb")
        arguments.deb = packages[-1]
    if shutil.which("mmdebstrap") is None:
        sys.exit("error: mmdebstrap is not installed; type: apt-get install mmdebstrap")
    try:
        build(arguments)
    except subprocess.CalledProcessError as exc:
        sys.exit(f"error: mmdebstrap failed with status {exc.returncode}; its messages are above")
    return 0


if __name__ == "__main__":
    sys.exit(main())
