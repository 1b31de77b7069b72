"""A real registry in this process: speaks HTTP on loopback, serves images from memory, and misbehaves on demand.

with FakeRegistry() as registry:
    reference = registry.push(image, "os", "v1")     # docker://127.0.0.1:PORT/os:v1
    registry.faults.cut_after = 100_000
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import ipaddress
import json
import re
import socket
import ssl
import struct
import tempfile
import threading
import time
import urllib.parse
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from fakes.images import BuiltImage, sha256

_ROUTE = re.compile(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs)/(?P<reference>[^/]+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class Failure:
    """Answers the next ``times`` requests whose path contains ``match`` with an error status."""

    status: int
    times: int
    match: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass
class Faults:
    """What the registry does wrong. Change the fields at any time."""

    auth: Literal["basic", "bearer"] | None = None
    username: str | None = None  # bearer without a user name: tokens for anybody
    password: str = ""
    token_lifetime_s: int = 300
    valid_token_uses: int | None = None  # a token is refused after so many requests
    token_field: str = "token"
    failures: list[Failure] = field(default_factory=list)
    cut_after: int | None = None  # bytes of a blob answer, then the connection is reset
    cut_times: int | None = None  # how many answers are cut; None: all
    truncate: dict[str, int] = field(default_factory=dict)  # digest → length that is served as if it were all
    corrupt: set[str] = field(default_factory=set)  # digests served with a flipped byte
    append: dict[str, bytes] = field(default_factory=dict)  # digest → bytes that are served after the blob
    chunked: bool = False  # no Content-Length
    ignore_range: bool = False
    wrong_content_range: bool = False
    redirect_blobs_to: str | None = None  # base URL, e.g. of another FakeRegistry
    redirect_status: int = 307
    delay_s: float = 0
    content_type: str | None = None  # of manifests
    hide_digest: bool = False  # no Docker-Content-Digest


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]

    @property
    def authorization(self) -> str | None:
        return self.headers.get("authorization")


class FakeRegistry:
    """Listens from the start of the ``with`` block to its end."""

    def __init__(self, *, tls: bool = False) -> None:
        self.faults = Faults()
        self.requests: list[Request] = []
        self.bytes_sent = 0
        self.blobs: dict[str, bytes | Path] = {}
        self.manifests: dict[tuple[str, str], tuple[str, str]] = {}  # (repository, tag) → (digest, media type)
        self.media_types: dict[str, str] = {}
        self.tokens: Counter[str] = Counter()
        self.lock = threading.Lock()
        self._tls = tls
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.registry = self
        self.certificate: str | None = None
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            with tempfile.NamedTemporaryFile(suffix=".pem") as pem:
                self.certificate = _self_signed()
                pem.write(self.certificate.encode())
                pem.flush()
                context.load_cert_chain(pem.name)
            self._server.tls = context
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def host(self) -> str:
        """Host and port, as they stand in a reference."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.host}"

    def push(self, image: BuiltImage, repository: str = "os", tag: str = "v1") -> str:
        """Store an image and return its reference, ``docker://HOST:PORT/repository:tag``."""
        self.blobs.update(image.blobs)
        self.manifests[repository, tag] = (image.digest, image.media_type)
        for digest, blob in image.blobs.items():
            self._learn_type(digest, blob)
        self.media_types[image.digest] = image.media_type
        return f"docker://{self.host}/{repository}:{tag}"

    def push_layout(self, path: Path, repository: str = "os") -> None:
        """Serve every tagged image of an OCI layout, blobs straight from its files."""
        for blob in (path / "blobs" / "sha256").iterdir():
            digest = f"sha256:{blob.name}"
            self.blobs[digest] = blob
            if blob.stat().st_size < 1 << 20:
                self._learn_type(digest, blob.read_bytes())
        for entry in json.loads((path / "index.json").read_text())["manifests"]:
            tag = entry.get("annotations", {}).get("org.opencontainers.image.ref.name", "latest")
            self.manifests[repository, tag] = (entry["digest"], entry["mediaType"])
            self.media_types[entry["digest"]] = entry["mediaType"]

    def fail(self, status: int, times: int = 1, match: str = "", **headers: str) -> None:
        """Answer the next matching requests with an error; header names with _ for -."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults.failures.append(Failure(status, times, match, named))

    def count(self, match: str, method: str = "GET") -> int:
        """How many requests had ``match`` in their path."""
        return sum(request.method == method and match in request.path for request in self.requests)

    def _learn_type(self, digest: str, blob: bytes) -> None:
        if not blob.startswith(b"{"):
            return
        with contextlib.suppress(ValueError):
            media_type = json.loads(blob).get("mediaType")
            if isinstance(media_type, str):
                self.media_types[digest] = media_type

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    registry: FakeRegistry
    tls: ssl.SSLContext | None = None

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self.tls is None:
            super().finish_request(request, client_address)
            return
        # Here and not on the listening socket: a failed handshake must not stop the accept loop.
        try:
            wrapped = self.tls.wrap_socket(request, server_side=True)
        except OSError:
            return
        with contextlib.closing(wrapped):
            super().finish_request(wrapped, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that go away are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""

    @property
    def registry(self) -> FakeRegistry:
        return self.server.registry

    @property
    def faults(self) -> Faults:
        return self.server.registry.faults

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def _handle(self) -> None:
        headers = {key.lower(): value for key, value in self.headers.items()}
        with self.registry.lock:
            self.registry.requests.append(Request(self.command, self.path, headers))
            failure = self._next_failure()
        if self.faults.delay_s:
            time.sleep(self.faults.delay_s)
        if failure is not None:
            self._answer(failure.status, failure.body, headers=failure.headers)
            return
        url = urllib.parse.urlsplit(self.path)
        if url.path == "/token":
            self._token(urllib.parse.parse_qs(url.query))
            return
        route = _ROUTE.fullmatch(url.path)
        if not self._is_authorized(route["name"] if route else ""):
            return
        if url.path in ("/v2/", "/v2"):
            self._answer(200, b"{}")
        elif route is None:
            self._error(404, "NAME_UNKNOWN")
        elif route["kind"] == "manifests":
            self._manifest(route["name"], route["reference"])
        else:
            self._blob(route["reference"])

    def _next_failure(self) -> Failure | None:
        for failure in self.faults.failures:
            if failure.times > 0 and failure.match in self.path:
                failure.times -= 1
                return failure
        return None

    # --- credentials

    def _is_authorized(self, name: str) -> bool:
        if self.faults.auth is None:
            return True
        given = self.headers.get("Authorization", "")
        if self.faults.auth == "basic":
            if given == self._basic():
                return True
            self._error(401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="fake"'})
            return False
        token = given.removeprefix("Bearer ")
        limit = self.faults.valid_token_uses
        with self.registry.lock:
            if token in self.registry.tokens and (limit is None or self.registry.tokens[token] < limit):
                self.registry.tokens[token] += 1
                return True
        challenge = f'Bearer realm="{self.registry.url}/token",service="fake",scope="repository:{name}:pull"'
        self._error(401, "UNAUTHORIZED", {"WWW-Authenticate": challenge})
        return False

    def _basic(self) -> str:
        plain = f"{self.faults.username}:{self.faults.password}".encode()
        return f"Basic {base64.b64encode(plain).decode()}"

    def _token(self, query: dict[str, list[str]]) -> None:
        if self.faults.username is not None and self.headers.get("Authorization") != self._basic():
            self._error(401, "UNAUTHORIZED")
            return
        with self.registry.lock:
            token = f"token-{len(self.registry.tokens)}-{query.get('scope', [''])[0]}".encode().hex()
            self.registry.tokens[token] = 0
        body = {self.faults.token_field: token, "expires_in": self.faults.token_lifetime_s}
        self._answer(200, json.dumps(body).encode())

    # --- content

    def _manifest(self, name: str, reference: str) -> None:
        if reference.startswith("sha256:"):
            digest, media_type = reference, self.registry.media_types.get(reference, "")
        else:
            digest, media_type = self.registry.manifests.get((name, reference), ("", ""))
        blob = self.registry.blobs.get(digest)
        if blob is None:
            self._error(404, "MANIFEST_UNKNOWN")
            return
        headers = {"Content-Type": self.faults.content_type or media_type}
        if not self.faults.hide_digest:
            headers["Docker-Content-Digest"] = digest
        self._answer(200, self._distort(digest, _load(blob)), headers=headers)

    def _blob(self, digest: str) -> None:
        if self.faults.redirect_blobs_to is not None:
            self._answer(self.faults.redirect_status, headers={"Location": self.faults.redirect_blobs_to + self.path})
            return
        blob = self.registry.blobs.get(digest)
        if blob is None:
            self._error(404, "BLOB_UNKNOWN")
            return
        data = self._distort(digest, _load(blob))
        status, headers = 200, {"Content-Type": "application/octet-stream"}
        wanted = _RANGE.fullmatch(self.headers.get("Range", ""))
        if wanted and not self.faults.ignore_range:
            start = int(wanted[1])
            if start >= len(data):
                self._answer(416, headers={"Content-Range": f"bytes */{len(data)}"})
                return
            stop = min(int(wanted[2]) + 1 if wanted[2] else len(data), len(data))
            shift = 1 if self.faults.wrong_content_range else 0
            headers["Content-Range"] = f"bytes {start + shift}-{stop - 1}/{len(data)}"
            status, data = 206, data[start:stop]
        self._answer(status, data, headers=headers, can_cut=True)

    def _distort(self, digest: str, data: bytes) -> bytes:
        if digest in self.faults.corrupt:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 0x20]) + data[middle + 1 :]
        return data[: self.faults.truncate.get(digest, len(data))] + self.faults.append.get(digest, b"")

    def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        body = json.dumps({"errors": [{"code": code, "message": code.lower().replace("_", " ")}]}).encode()
        self._answer(status, body, headers={"Content-Type": "application/json", **(headers or {})})

    def _answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, *, can_cut: bool = False
    ) -> None:
        is_chunked = self.faults.chunked and can_cut
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header(*(("Transfer-Encoding", "chunked") if is_chunked else ("Content-Length", str(len(body)))))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self._cut_length(len(body)) if can_cut else None
        part = body if cut is None else body[:cut]
        if is_chunked:
            self.wfile.write(b"%x\r\n" % len(part) + part + b"\r\n" if part else b"")
            if cut is None:
                self.wfile.write(b"0\r\n\r\n")
        else:
            self.wfile.write(part)
        with self.registry.lock:
            self.registry.bytes_sent += len(part)
        if cut is not None:
            self._reset()

    def _cut_length(self, length: int) -> int | None:
        faults = self.faults
        with self.registry.lock:
            if faults.cut_after is None or length <= faults.cut_after or faults.cut_times == 0:
                return None
            if faults.cut_times is not None:
                faults.cut_times -= 1
            return faults.cut_after

    def _reset(self) -> None:
        """Close in the middle, after what was written has left."""
        self.wfile.flush()
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1))


def _load(blob: bytes | Path) -> bytes:
    return blob if isinstance(blob, bytes) else blob.read_bytes()


def _self_signed() -> str:
    """Make a key and a certificate for 127.0.0.1, both in one PEM text."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private.decode() + certificate.public_bytes(serialization.Encoding.PEM).decode()


__all__ = ["Failure", "FakeRegistry", "Faults", "Request", "sha256"]
