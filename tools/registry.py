"""A real registry on loopback for tests, demo and benchmarks: Debian's docker-registry, and a pusher for OCI layouts.

Not part of the product: `bootwright` itself only pulls yet.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

__all__ = ["free_port", "push_layout", "running_registry"]

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


def free_port() -> int:
    """Return a TCP port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_registry(storage: Path, *, port: int = 0) -> Iterator[str]:
    """Run docker-registry over a storage directory; yields ``127.0.0.1:PORT``.

    Raises:
        RuntimeError: it is not installed, or does not answer within 30 s.
    """
    program = shutil.which("docker-registry")
    if program is None:
        raise RuntimeError("docker-registry is not installed: apt-get install docker-registry")
    port = port or free_port()
    storage.mkdir(parents=True, exist_ok=True)
    config = storage / "config.yml"
    config.write_text(
        "version: 0.1\n"
        f"storage: {{filesystem: {{rootdirectory: {storage / 'data'}}}}}\n"
        f"http: {{addr: 127.0.0.1:{port}}}\n"
        "log: {level: error}\n"
    )
    with (storage / "log").open("w") as log:
        process = subprocess.Popen([program, "serve", str(config)], stdout=log, stderr=log)
    address = f"127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{address}/v2/", timeout=5):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"docker-registry does not answer: {(storage / 'log').read_text()[-500:]}")
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=20)


def _request(method: str, url: str, data: bytes | None = None, headers: dict[str, str] | None = None) -> str:
    request = urllib.request.Request(url, data=data, method=method, headers=headers or {})
    with urllib.request.urlopen(request, timeout=120) as response:
        return str(response.headers.get("Location", ""))


def _push_blob(base: str, layout: Path, digest: str) -> None:
    with contextlib.suppress(urllib.error.HTTPError):
        _request("HEAD", f"{base}/blobs/{digest}")
        return
    location = urljoin(base, _request("POST", f"{base}/blobs/uploads/", b""))
    algorithm, value = digest.split(":")
    data = (layout / "blobs" / algorithm / value).read_bytes()
    separator = "&" if "?" in location else "?"
    _request("PUT", f"{location}{separator}digest={digest}", data, {"Content-Type": "application/octet-stream"})


def push_layout(layout: Path, layout_tag: str, address: str, name: str, tag: str) -> str:
    """Push the image ``layout_tag`` of an OCI layout as ``address/name:tag``; returns its manifest digest."""
    index = json.loads((layout / "index.json").read_text())
    entry = next(
        manifest
        for manifest in index["manifests"]
        if manifest.get("annotations", {}).get("org.opencontainers.image.ref.name") == layout_tag
    )
    digest: str = entry["digest"]
    algorithm, value = digest.split(":")
    data = (layout / "blobs" / algorithm / value).read_bytes()
    manifest = json.loads(data)
    base = f"http://{address}/v2/{name}"
    for blob in [manifest["config"], *manifest["layers"]]:
        _push_blob(base, layout, blob["digest"])
    _request("PUT", f"{base}/manifests/{tag}", data, {"Content-Type": manifest.get("mediaType", MANIFEST_TYPE)})
    return digest
