"""The client against Debian's docker-registry, a registry that people really run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootwright.errors import AuthenticationError, NetworkError, NotFoundError, VerificationError
from bootwright.oci.layer import TarReader, open_layer
from bootwright.oci.reference import ImageReference
from bootwright.oci.source import SourceOptions, open_source
from fakes.images import BuiltImage, ImageBuilder, build_index, directory, file

pytestmark = pytest.mark.system

# The user "user" with the password "secret", by bcrypt: the registry takes no other kind.
HTPASSWD = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(directory: Path, extra: str = "") -> tuple[subprocess.Popen[bytes], str]:
    """Start a registry and wait until it answers."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("needs docker-registry (apt-get install docker-registry)")
    host = f"127.0.0.1:{free_port()}"
    config = directory / "config.yml"
    config.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {directory}/data}}}}\n"
        f"http: {{addr: '{host}'}}\nlog: {{level: error}}\n{extra}"
    )
    log = open(directory / "log", "wb")  # noqa: SIM115 — the process writes to it
    with log:
        process = subprocess.Popen([program, "serve", str(config)], stdout=log, stderr=log)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", int(host.rpartition(":")[2]))) == 0:
                return process, host
        if process.poll() is not None:
            break
        time.sleep(0.02)
    process.kill()
    process.wait()
    pytest.fail(f"docker-registry did not start: {(directory / 'log').read_text()[-2000:]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(20)


def push(host: str, image: BuiltImage, repository: str, tag: str) -> str:
    """Push by the registry's own HTTP API, with Python's own client."""

    def send(method: str, url: str, body: bytes = b"", content_type: str = "application/octet-stream") -> str:
        request = urllib.request.Request(url, data=body, method=method, headers={"Content-Type": content_type})
        with urllib.request.urlopen(request) as answer:
            return str(answer.headers.get("Location", ""))

    manifests = [d for d, blob in image.blobs.items() if blob.startswith(b"{") and "schemaVersion" in json.loads(blob)]
    for digest, blob in image.blobs.items():
        location = send("POST", f"http://{host}/v2/{repository}/blobs/uploads/")
        send("PUT", f"{location}&digest={digest}", blob)
    for digest in sorted(manifests, key=lambda digest: digest == image.digest):
        media_type = json.loads(image.blobs[digest])["mediaType"]
        name = tag if digest == image.digest else digest
        send("PUT", f"http://{host}/v2/{repository}/manifests/{name}", image.blobs[digest], media_type)
    return f"docker://{host}/{repository}:{tag}"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("registry")
    process, host = start(folder)
    yield host, folder
    stop(process)


@pytest.fixture(scope="module")
def image() -> BuiltImage:
    builder = ImageBuilder(labels={"version": "1"}).add_layer([directory("etc"), file("etc/x", b"x" * 100)])
    return builder.add_layer([file("big", os.urandom(5_000_000))], "zstd").build()


def options(**fields: object) -> SourceOptions:
    return SourceOptions(**{"tls_verify": False, "architecture": "amd64", "retry_delay_s": 0.01, **fields})  # type: ignore[arg-type]


def pull(text: str, **fields: object) -> dict[bytes, str]:
    """Pull and verify everything; returns the names with the digests of their contents."""
    found = {}
    with open_source(ImageReference.parse(text), options(**fields)) as source:
        resolved = source.resolve()
        for descriptor, diff_id in zip(resolved.manifest.layers, resolved.config.diff_ids, strict=True):
            with source.open_blob(descriptor) as blob:
                reader = TarReader(open_layer(blob, descriptor.media_type, diff_id=diff_id).read)
                for entry in reader:
                    found[entry.name] = hashlib.sha256(b"".join(reader.iter_body())).hexdigest()
                for _ in reader.iter_trailer():
                    pass
    return found


def test_pull(running: tuple[str, Path], image: BuiltImage) -> None:
    host, _ = running
    found = pull(push(host, image, "library/os", "v1"))
    assert list(found) == [b"etc", b"etc/x", b"big"]
    assert found[b"etc/x"] == hashlib.sha256(b"x" * 100).hexdigest()
    assert pull(f"docker://{host}/library/os@{image.digest}") == found


def test_index(running: tuple[str, Path], image: BuiltImage) -> None:
    host, _ = running
    other = ImageBuilder(architecture="arm64", variant="v8").add_layer([file("arm")]).build()
    reference = push(host, build_index([other, image]), "multi", "v1")
    assert b"big" in pull(reference)
    assert list(pull(reference, architecture="arm64")) == [b"arm"]


def test_range_request_goes_on_where_it_was(running: tuple[str, Path], image: BuiltImage) -> None:
    host, _ = running
    reference = ImageReference.parse(push(host, image, "ranges", "v1"))
    with open_source(reference, options()) as source:
        layer = source.resolve().manifest.layers[1]
        with source.open_blob(layer) as blob:
            first = blob.read(100_000)
            # Break the connection under the reader, as a bad line would.
            response = blob._read.__self__._response  # type: ignore[attr-defined]
            response._fp.fp.raw._sock.shutdown(socket.SHUT_RDWR)
            rest = blob.read_all()
    assert hashlib.sha256(first + rest).hexdigest() == layer.digest.hex


def test_not_there(running: tuple[str, Path], image: BuiltImage) -> None:
    host, _ = running
    push(host, image, "there", "v1")
    with pytest.raises(NotFoundError, match="manifest unknown"):
        pull(f"docker://{host}/there:v2")
    with pytest.raises(NotFoundError):
        pull(f"docker://{host}/nowhere:v1")


def test_damaged_storage(running: tuple[str, Path], image: BuiltImage) -> None:
    """A blob that rotted on the registry's disk is noticed here, since the registry does not look."""
    host, folder = running
    reference = push(host, image, "damaged", "v1")
    digest = image.layer_digests[1].removeprefix("sha256:")
    path = folder / "data/docker/registry/v2/blobs/sha256" / digest[:2] / digest / "data"
    good = path.read_bytes()
    try:
        path.write_bytes(good[:2_000_000] + b"\0" + good[2_000_001:])
        with pytest.raises(VerificationError):
            pull(reference)
        path.write_bytes(good[:-1000])
        with pytest.raises(VerificationError):
            pull(reference)
    finally:
        path.write_bytes(good)
    assert b"big" in pull(reference)


def test_passwords(tmp_path: Path, image: BuiltImage) -> None:
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    process, host = start(tmp_path, f"auth: {{htpasswd: {{realm: test, path: {tmp_path}/htpasswd}}}}\n")
    try:
        with pytest.raises(AuthenticationError, match="wants credentials"):
            pull(f"docker://{host}/os:v1")
        auth = tmp_path / "auth.json"
        auth.write_text(json.dumps({"auths": {host: {"auth": "dXNlcjpzZWNyZXQ="}}}))
        with pytest.raises(NotFoundError):
            pull(f"docker://{host}/os:v1", auth_file=str(auth))
    finally:
        stop(process)


def test_registry_that_stops(tmp_path: Path, image: BuiltImage) -> None:
    process, host = start(tmp_path)
    try:
        reference = push(host, image, "os", "v1")
        with open_source(ImageReference.parse(reference), options(retries=1)) as source:
            layer = source.resolve().manifest.layers[1]
            stop(process)
            with pytest.raises(NetworkError, match="Connection refused"), source.open_blob(layer) as blob:
                blob.read_all()
    finally:
        if process.poll() is None:
            stop(process)
