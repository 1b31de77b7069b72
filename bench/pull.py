"""`bootwright image pull` and `podman pull` of the same image from a registry on loopback, in turn.

Prints wall time, processor time (children included) and peak memory (of the biggest process) of every run, the
medians, and the ratios beside the bounds that we hold ourselves to: at most 0.5 of podman's wall time, 0.6 of its
processor time, 300 MB for a worker.

    bench/pull.py                                      makes an image of this machine's /usr, serves it, pulls it
    bench/pull.py --image docker://127.0.0.1:5000/os:v1 --chroot /path/to/debian-sid

Storage is new for every run and is removed only at the end: ext4 avoids inodes that were freed a moment ago, at a cost
that would be somebody else's. After every run the disks are synced, and the time that takes is printed: bootwright has
synced its filesystem before it ends, podman does not.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[1] / "src"
LAYERS = 12
IMAGE_SIZE = 1_600_000_000
WALL_BOUND, CPU_BOUND, MEMORY_BOUND = 0.5, 0.6, 300


@dataclass(frozen=True)
class Run:
    """One pull: seconds and megabytes."""

    wall: float
    user: float
    system: float
    memory: float
    sync: float

    @property
    def cpu(self) -> float:
        return self.user + self.system


def measure(argv: list[str], environment: dict[str, str]) -> Run:
    """Run a command to its end; its rusage includes every descendant that was waited for."""
    start = time.perf_counter()
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    assert process.stderr is not None
    words = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(argv)}: status {process.returncode}\n{words.decode(errors='replace')[-2000:]}")
    start = time.perf_counter()
    os.sync()
    sync = time.perf_counter() - start
    return Run(wall, usage.ru_utime, usage.ru_stime, usage.ru_maxrss / 1024, sync)


# ---- the two programs ----------------------------------------------------------------------------------------


def bootwright_command(storage: Path, image: str, algorithm: str) -> list[str]:
    pull = ["image", "pull", "--repo", str(storage), "--digest-algorithm", algorithm, "--tls-verify=false", "--quiet"]
    return [sys.executable, "-m", "bootwright", *pull, image]


def podman_command(storage: str, image: str, driver: str, arguments: argparse.Namespace) -> list[str]:
    prefix = ["chroot", str(arguments.chroot)] if arguments.chroot else []
    where = ["--root", f"{storage}/root", "--runroot", f"{storage}/run", "--storage-driver", driver]
    return [*prefix, arguments.podman, *where, "pull", "--tls-verify=false", "--quiet", image]


def find_driver(arguments: argparse.Namespace, storage: str) -> str | None:
    """Return the storage driver that podman can use here; None when there is no podman."""
    program = Path(arguments.chroot or "/", "usr/bin", arguments.podman)
    if not (program.exists() or (not arguments.chroot and shutil.which(arguments.podman))):
        return None
    for driver in ("overlay", "vfs"):
        argv = podman_command(f"{storage}/probe-{driver}", "", driver, arguments)
        if subprocess.run([*argv[: argv.index("pull")], "info"], capture_output=True, check=False).returncode == 0:
            return driver
    sys.exit(f"{arguments.podman} is there, but works with neither overlay nor vfs")


# ---- an image, when none is given ----------------------------------------------------------------------------


def make_image(directory: Path) -> Path:
    """Make an OCI layout of this machine's /usr in 12 gzip layers of about the same size; kept for the next time."""
    layout = directory / "oci"
    if (layout / "index.json").exists():
        return layout
    shutil.rmtree(layout, ignore_errors=True)
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    print(f"making an image of /usr in '{layout}' ...", file=sys.stderr)
    layers, diff_ids = [], []
    members = walk_usr()
    for number in range(LAYERS):
        plain, packed, compressed_path = hashlib.sha256(), hashlib.sha256(), blobs / f"layer-{number}"
        with compressed_path.open("wb") as out, tempfile.TemporaryFile() as temporary:
            taken = 0
            with tarfile.open(fileobj=temporary, mode="w", format=tarfile.PAX_FORMAT) as archive:
                for path in members:
                    taken += add(archive, path)
                    if taken >= IMAGE_SIZE / LAYERS:
                        break
            temporary.seek(0)
            with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=6, mtime=0) as compressor:
                while piece := temporary.read(1 << 20):
                    plain.update(piece)
                    compressor.write(piece)
        with compressed_path.open("rb") as file:
            while piece := file.read(1 << 20):
                packed.update(piece)
        size = compressed_path.stat().st_size
        compressed_path.rename(blobs / packed.hexdigest())
        media_type = "application/vnd.oci.image.layer.v1.tar+gzip"
        layers.append({"mediaType": media_type, "digest": f"sha256:{packed.hexdigest()}", "size": size})
        diff_ids.append(f"sha256:{plain.hexdigest()}")
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    config = write_json(
        blobs, {"architecture": machine, "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    )
    manifest = write_json(
        blobs,
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **config},
            "layers": layers,
        },
    )
    entry = {"mediaType": "application/vnd.oci.image.manifest.v1+json", **manifest}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return layout


def walk_usr() -> Iterator[str]:
    for parent, directories, names in os.walk("/usr"):
        directories.sort()
        yield parent
        yield from (os.path.join(parent, name) for name in sorted(names))


def add(archive: tarfile.TarFile, path: str) -> int:
    """Add one file without what is below it; returns its size."""
    try:
        archive.add(path, recursive=False)
        return os.lstat(path).st_size
    except OSError:
        return 0


def write_json(blobs: Path, document: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(document).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


@contextlib.contextmanager
def serve(layout: Path, directory: Path) -> Iterator[str]:
    """Run Debian's docker-registry on loopback with the image of a layout in it; gives its reference."""
    program = shutil.which("docker-registry")
    if program is None:
        sys.exit("docker-registry is missing: apt-get install docker-registry, or give --image")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = directory / "registry.yml"
    settings.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {directory}/registry}}}}\n"
        f"http: {{addr: 127.0.0.1:{port}}}\nlog: {{level: error}}\n"
    )
    process = subprocess.Popen([program, "serve", str(settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        base = f"http://127.0.0.1:{port}/v2"
        for _ in range(100):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{base}/", timeout=5):
                break
            time.sleep(0.1)
        push(layout, f"{base}/os")
        yield f"docker://127.0.0.1:{port}/os:v1"
    finally:
        process.terminate()
        process.wait()


def push(layout: Path, base: str) -> None:
    index = json.loads((layout / "index.json").read_text())
    manifest_digest = index["manifests"][0]["digest"]
    for blob in (layout / "blobs" / "sha256").iterdir():
        digest = f"sha256:{blob.name}"
        if digest != manifest_digest and not exists(f"{base}/blobs/{digest}"):
            with urllib.request.urlopen(urllib.request.Request(f"{base}/blobs/uploads/", method="POST")) as answer:
                location = answer.headers["Location"]
            joint = "&" if "?" in location else "?"
            with blob.open("rb") as file:
                headers = {"Content-Length": str(blob.stat().st_size), "Content-Type": "application/octet-stream"}
                url = f"{location}{joint}digest={digest}"
                urllib.request.urlopen(urllib.request.Request(url, data=file, headers=headers, method="PUT")).close()
    data = (layout / "blobs" / "sha256" / manifest_digest.removeprefix("sha256:")).read_bytes()
    headers = {"Content-Type": index["manifests"][0]["mediaType"]}
    request = urllib.request.Request(f"{base}/manifests/v1", data=data, headers=headers, method="PUT")
    urllib.request.urlopen(request).close()


def exists(url: str) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD")).close()
    except urllib.error.HTTPError:
        return False
    return True


def warm_up(image: str) -> int:
    """Read every layer once, so that both find them in the page cache; returns their bytes."""
    host, _, rest = image.removeprefix("docker://").partition("/")
    name, _, tag = rest.rpartition(":")
    accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
    request = urllib.request.Request(f"http://{host}/v2/{name}/manifests/{tag}", headers={"Accept": accept})
    with urllib.request.urlopen(request) as answer:
        layers = json.load(answer)["layers"]
    for layer in layers:
        with urllib.request.urlopen(f"http://{host}/v2/{name}/blobs/{layer['digest']}") as answer:
            while answer.read(1 << 20):
                pass
    return sum(layer["size"] for layer in layers)


# ---- report --------------------------------------------------------------------------------------------------


def show(name: str, run: Run) -> None:
    print(
        f"{name:22} {run.wall:7.2f} s {run.cpu:7.2f} s ({run.user:5.2f} + {run.system:5.2f}) {run.memory:6.0f} MB"
        f" {run.sync:6.2f} s",
        flush=True,
    )


def median(runs: list[Run]) -> Run:
    def of(name: str) -> float:
        return float(statistics.median(getattr(run, name) for run in runs))

    return Run(of("wall"), of("user"), of("system"), max(run.memory for run in runs), of("sync"))


def verdict(name: str, value: float, bound: float, unit: str = "") -> None:
    print(f"{name:34} {value:6.2f}{unit}   bound {bound}{unit}   {'met' if value <= bound else 'MISSED'}")


def compare(arguments: argparse.Namespace, image: str, work: Path) -> None:
    inside = f"/{work.relative_to(arguments.chroot)}" if arguments.chroot else str(work)
    driver = find_driver(arguments, inside)
    if driver is None:
        print("podman was not found: give --podman or --chroot; only bootwright is measured", file=sys.stderr)
    print(f"{image}: {warm_up(image) / 1e6:.0f} MB compressed, {len(os.sched_getaffinity(0))} processors")
    print(f"{'':22} {'wall':>9} {'cpu':>9} {'(user + system)':16} {'peak':>8} {'sync after':>9}")
    runs: dict[str, list[Run]] = {}
    os.sync()
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    for number in range(arguments.runs):
        for algorithm in arguments.algorithm:
            name = f"bootwright {algorithm}"
            run = measure(bootwright_command(work / f"{algorithm}-{number}", image, algorithm), environment)
            runs.setdefault(name, []).append(run)
            show(name, run)
        if driver is not None:
            name = f"podman {driver}"
            run = measure(podman_command(f"{inside}/podman-{number}", image, driver, arguments), environment)
            runs.setdefault(name, []).append(run)
            show(name, run)
    print("medians:")
    medians = {name: median(found) for name, found in runs.items()}
    for name, run in medians.items():
        show(name, run)
    peer = next((run for name, run in medians.items() if name.startswith("podman")), None)
    for name, run in medians.items():
        if name.startswith("podman"):
            continue
        if peer is not None:
            verdict(f"{name}: wall / podman's", run.wall / peer.wall, WALL_BOUND)
            verdict(f"{name}: cpu / podman's", run.cpu / peer.cpu, CPU_BOUND)
        verdict(f"{name}: peak memory", run.memory, MEMORY_BOUND, " MB")


def remove(work: Path) -> None:
    # podman's overlay may leave its mount of the storage directory.
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        target = line.split()[1]
        if target.startswith(str(work)):
            subprocess.run(["umount", "-l", target], check=False)
    shutil.rmtree(work, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", help="docker:// reference on loopback; without it one is made and served")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--podman", default="podman", help="the program")
    parser.add_argument("--chroot", type=Path, help="directory of a system that has podman; needs root")
    parser.add_argument("--work", type=Path, help="directory for storage; below --chroot when that is given")
    parser.add_argument("--cache", type=Path, default=Path(__file__).parents[1] / ".cache" / "bench-pull")
    parser.add_argument("--algorithm", action="append", choices=["sha256", "sha512"], help="of bootwright's digests")
    arguments = parser.parse_args()
    arguments.algorithm = arguments.algorithm or ["sha256"]
    if arguments.chroot:
        arguments.chroot = arguments.chroot.resolve()
    parent = arguments.work or (arguments.chroot / "var" / "tmp" if arguments.chroot else Path("/var/tmp"))
    work = Path(tempfile.mkdtemp(prefix="bench-pull-", dir=parent))
    try:
        if arguments.image:
            compare(arguments, arguments.image, work)
        else:
            arguments.cache.mkdir(parents=True, exist_ok=True)
            with serve(make_image(arguments.cache), arguments.cache) as image:
                compare(arguments, image, work)
    finally:
        remove(work)


if __name__ == "__main__":
    main()
