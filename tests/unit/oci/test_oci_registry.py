"""The registry client against real HTTP on loopback, with every way in which a registry is known to misbehave."""

from __future__ import annotations

import email.utils
import json
import os
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootwright import __version__
from bootwright.errors import (
    AuthenticationError,
    ConfigError,
    ImageError,
    NetworkError,
    NotFoundError,
    VerificationError,
)
from bootwright.oci.http import is_loopback
from bootwright.oci.layer import TarReader, open_layer
from bootwright.oci.reference import ImageReference
from bootwright.oci.source import ResolvedImage, SourceOptions, open_source
from fakes.images import BuiltImage, ImageBuilder, attestation, build_index, directory, file
from fakes.registry import FakeRegistry

NOISE = os.urandom(300_000)


@pytest.fixture(autouse=True)
def _clean_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials or configuration of the machine that runs the tests."""
    (tmp_path / "auth.json").write_text("{}")
    (tmp_path / "registries.conf").write_text("")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(tmp_path / "registries.conf"))


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        yield running


@pytest.fixture(scope="module")
def image() -> BuiltImage:
    builder = ImageBuilder(labels={"version": "1"})
    builder.add_layer([directory("etc"), file("etc/os-release", b"ID=test\n")])
    return builder.add_layer([file("noise", NOISE)], "none").build()


def options(**fields: object) -> SourceOptions:
    return SourceOptions(**{"tls_verify": False, "architecture": "amd64", "retry_delay_s": 0.001, **fields})  # type: ignore[arg-type]


def parse(text: str) -> ImageReference:
    return ImageReference.parse(text)


def resolve(text: str, **fields: object) -> ResolvedImage:
    with open_source(parse(text), options(**fields)) as source:
        return source.resolve()


def pull(text: str, **fields: object) -> list[bytes]:
    """Pull everything there is, verified; returns the names in the layers."""
    names = []
    with open_source(parse(text), options(**fields)) as source:
        resolved = source.resolve()
        for descriptor, diff_id in zip(resolved.manifest.layers, resolved.config.diff_ids, strict=True):
            with source.open_blob(descriptor) as blob:
                reader = TarReader(open_layer(blob, descriptor.media_type, diff_id=diff_id).read)
                names += [entry.name for entry in reader]
                assert reader.trailer
    return names


NAMES = [b"etc", b"etc/os-release", b"noise"]


def write_auth(path: Path, host: str, credentials: str = "user:secret") -> str:
    import base64

    name = path / "given.json"
    name.write_text(json.dumps({"auths": {host: {"auth": base64.b64encode(credentials.encode()).decode()}}}))
    return str(name)


# --- what should work


def test_pull(registry: FakeRegistry, image: BuiltImage) -> None:
    reference = registry.push(image, "library/deep/os", "v1")
    assert pull(reference) == NAMES
    resolved = resolve(reference)
    assert str(resolved.manifest_digest) == image.digest
    assert resolved.manifest_bytes == image.manifest_bytes
    assert resolved.config.labels == {"version": "1"}
    assert {request.headers["user-agent"] for request in registry.requests} == {f"bootwright/{__version__}"}
    assert registry.bytes_sent < 2.5 * len(NOISE)


def test_pull_by_digest(registry: FakeRegistry, image: BuiltImage) -> None:
    registry.push(image)
    assert pull(f"docker://{registry.host}/os@{image.digest}") == NAMES
    # The digest wins, even over a tag that does not exist.
    assert pull(f"docker://{registry.host}/os:other@{image.digest}") == NAMES


def test_connections_are_kept(registry: FakeRegistry, image: BuiltImage) -> None:
    registry.faults.auth = "bearer"
    reference = registry.push(image)
    ports = set()
    server = registry._server
    original = server.process_request

    def watch(request: socket.socket, client_address: tuple[str, int]) -> None:
        ports.add(client_address[1])
        original(request, client_address)

    server.process_request = watch  # type: ignore[method-assign,assignment]
    assert pull(reference) == NAMES
    # The probe, and one for everything else.
    assert len(ports) <= 2


def test_index_chooses_the_platform(registry: FakeRegistry, image: BuiltImage) -> None:
    other = ImageBuilder(architecture="arm64", variant="v8").build()
    reference = registry.push(build_index([attestation(), other, image]))
    assert str(resolve(reference).manifest_digest) == image.digest
    assert str(resolve(reference, architecture="arm64").manifest_digest) == other.digest
    with pytest.raises(ImageError, match="only for 'linux/amd64', 'linux/arm64/v8'"):
        resolve(reference, architecture="s390x")


def test_docker_schema_2(registry: FakeRegistry) -> None:
    built = ImageBuilder(docker=True).add_layer([file("x", b"y")]).build()
    assert pull(registry.push(build_index([built], docker=True))) == [b"x"]


@pytest.mark.parametrize("content_type", ["application/json", "text/plain; charset=utf-8"])
def test_vague_content_type(registry: FakeRegistry, image: BuiltImage, content_type: str) -> None:
    registry.faults.content_type = content_type
    registry.faults.hide_digest = True
    assert pull(registry.push(image)) == NAMES


def test_chunked_answers(registry: FakeRegistry, image: BuiltImage) -> None:
    registry.faults.chunked = True
    assert pull(registry.push(image)) == NAMES


def test_https_with_any_certificate(image: BuiltImage) -> None:
    with FakeRegistry(tls=True) as registry:
        assert pull(registry.push(image)) == NAMES


def test_https_with_a_known_certificate(image: BuiltImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeRegistry(tls=True) as registry:
        (tmp_path / "ca.pem").write_text(registry.certificate or "")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert pull(registry.push(image), tls_verify=True) == NAMES


def test_registries_conf_allows_http(registry: FakeRegistry, image: BuiltImage, tmp_path: Path) -> None:
    registry.push(image, "inner/os")
    conf = tmp_path / "r.conf"
    conf.write_text(f'[[registry]]\nprefix="outer.test/ns"\nlocation="{registry.host}/inner"\ninsecure=true')
    assert pull("docker://outer.test/ns/os:v1", tls_verify=True, registries_conf=str(conf)) == NAMES
    conf.write_text('[[registry]]\nlocation="outer.test"\nblocked=true')
    with pytest.raises(ConfigError, match="blocked"):
        pull("docker://outer.test/ns/os:v1", registries_conf=str(conf))


def test_workers_reuse_scheme_and_token(registry: FakeRegistry, image: BuiltImage) -> None:
    registry.faults.auth = "bearer"
    reference = parse(registry.push(image))
    with open_source(reference, options()) as source:
        resolved = source.resolve()
        worker_options = pickle.loads(pickle.dumps(source.worker_options()))
    assert "token" not in repr(worker_options)
    before = len(registry.requests)
    with open_source(reference, worker_options) as worker, worker.open_blob(resolved.manifest.layers[1]) as blob:
        assert len(blob.read_all()) > len(NOISE)
    assert [request.path.split("/")[-2] for request in registry.requests[before:]] == ["blobs"]
    # For another repository what was learned means nothing.
    registry.push(image, "other")
    with open_source(parse(f"docker://{registry.host}/other:v1"), worker_options) as source:
        before = len(registry.requests)
        source.resolve()
    assert all(request.authorization is None for request in registry.requests[before : before + 2])


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("127.9.9.9", True),
        ("[::1]:5000", True),
        ("[::1]", True),
        ("a.localhost", True),
        ("127.evil.test", False),
        ("10.0.0.1:80", False),
        ("[2001:db8::1]:5000", False),
        ("quay.io", False),
    ],
)
def test_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


# --- credentials


def test_basic(registry: FakeRegistry, image: BuiltImage, tmp_path: Path) -> None:
    registry.faults.auth, registry.faults.username, registry.faults.password = "basic", "user", "secret"
    reference = registry.push(image)
    assert pull(reference, auth_file=write_auth(tmp_path, registry.host)) == NAMES


def test_anonymous_token(registry: FakeRegistry, image: BuiltImage) -> None:
    registry.faults.auth = "bearer"
    assert pull(registry.push(image)) == NAMES
    assert registry.count("/token") == 1
    [request] = [request for request in registry.requests if "/token" in request.path]
    assert "scope=repository%3Aos%3Apull" in request.path
    assert "service=fake" in request.path
    assert request.authorization is None


@pytest.mark.parametrize("field", ["token", "access_token"])
def test_token_with_credentials(registry: FakeRegistry, image: BuiltImage, tmp_path: Path, field: str) -> None:
    registry.faults.auth, registry.faults.username, registry.faults.password = "bearer", "user", "secret"
    registry.faults.token_field = field
    assert pull(registry.push(image), auth_file=write_auth(tmp_path, f"{registry.host}/os")) == NAMES
    assert "account=user" in next(request.path for request in registry.requests if "/token" in request.path)


def test_token_that_ends_is_fetched_again(registry: FakeRegistry, image: BuiltImage) -> None:
    registry.faults.auth = "bearer"
    registry.faults.valid_token_uses = 1
    assert pull(registry.push(image)) == NAMES
    assert registry.count("/token") == 4


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_credentials_wanted(registry: FakeRegistry, image: BuiltImage, tmp_path: Path, auth: str) -> None:
    registry.faults.auth, registry.faults.username, registry.faults.password = auth, "user", "secret"  # type: ignore[assignment]
    reference = registry.push(image)
    with pytest.raises(AuthenticationError, match="wants credentials for") as caught:
        pull(reference)
    assert caught.value.exit_code == 11
    assert "podman login" in (caught.value.hint or "")
    with pytest.raises(AuthenticationError, match="does not accept the credentials of 'user'") as caught:
        pull(reference, auth_file=write_auth(tmp_path, registry.host, "user:wrong"))
    assert "wrong" not in str(caught.value) + (caught.value.hint or "")


def test_forbidden(registry: FakeRegistry, image: BuiltImage) -> None:
    registry.fail(403, times=9, match="/manifests/")
    with pytest.raises(AuthenticationError, match=f"'{registry.host}/os'"):
        pull(registry.push(image))


@pytest.mark.parametrize(
    "challenge", ["", "Negotiate", "Bearer", 'Bearer realm="file:///etc/passwd"', 'Bearer realm="/token"', "Basic"]
)
def test_strange_challenges(registry: FakeRegistry, image: BuiltImage, challenge: str) -> None:
    registry.fail(401, times=9, match="/manifests/", WWW_Authenticate=challenge)
    with pytest.raises(AuthenticationError):
        pull(registry.push(image))


def test_credentials_stay_with_their_host(registry: FakeRegistry, image: BuiltImage, tmp_path: Path) -> None:
    with FakeRegistry() as storage:
        storage.push(image)
        registry.faults.auth, registry.faults.username, registry.faults.password = "basic", "user", "secret"
        registry.faults.redirect_blobs_to = storage.url
        reference = registry.push(image)
        assert pull(reference, auth_file=write_auth(tmp_path, registry.host)) == NAMES
        assert len(storage.requests) == 3
        assert [request.authorization for request in storage.requests] == [None] * 3
        assert registry.requests[-1].authorization is not None


def test_redirects_that_are_not_followed(registry: FakeRegistry, image: BuiltImage) -> None:
    reference = registry.push(image)
    registry.faults.redirect_blobs_to = registry.url
    with pytest.raises(NetworkError, match="redirects in a circle"):
        pull(reference)
    registry.faults.redirect_blobs_to = "ftp://x"
    with pytest.raises(NetworkError, match="which is no web address"):
        pull(reference)


def test_no_redirect_from_https_to_http(image: BuiltImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeRegistry(tls=True) as registry, FakeRegistry() as storage:
        (tmp_path / "ca.pem").write_text(registry.certificate or "")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        storage.push(image)
        registry.faults.redirect_blobs_to = storage.url
        with pytest.raises(NetworkError, match="redirects from https to plain http"):
            pull(registry.push(image), tls_verify=True)
        assert storage.requests == []


# --- connections that fail


def test_cut_connections_are_continued(registry: FakeRegistry, image: BuiltImage) -> None:
    reference = registry.push(image)
    registry.faults.cut_after = 100_000
    assert pull(reference) == NAMES
    assert registry.count(image.layer_digests[1]) == 4
    ranges = [request.headers.get("range") for request in registry.requests if image.layer_digests[1] in request.path]
    assert ranges[:2] == [None, "bytes=100000-"]
    assert registry.bytes_sent < 1.1 * len(NOISE) + 20_000


def test_cut_connection_of_a_chunked_answer(registry: FakeRegistry, image: BuiltImage) -> None:
    reference = registry.push(image)
    registry.faults.chunked = True
    registry.faults.cut_after = 100_000
    assert pull(reference) == NAMES


def test_registry_that_ignores_ranges(registry: FakeRegistry, image: BuiltImage) -> None:
    reference = registry.push(image)
    registry.faults.cut_after, registry.faults.cut_times = 200_000, 2
    registry.faults.ignore_range = True
    assert pull(reference) == NAMES
    registry.faults.cut_times = None
    with pytest.raises(NetworkError) as caught:
        pull(reference)
    assert caught.value.exit_code == 4


def test_registry_that_sends_other_ranges(registry: FakeRegistry, image: BuiltImage) -> None:
    reference = registry.push(image)
    registry.faults.cut_after = 100_000
    registry.faults.wrong_content_range = True
    with pytest.raises(VerificationError, match="asked for the bytes from 100000 on"):
        pull(reference)


def test_registry_that_cuts_at_once_gives_up(registry: FakeRegistry, image: BuiltImage) -> None:
    reference = registry.push(image)
    registry.faults.cut_after = 0
    with pytest.raises(NetworkError, match=r"broke|ends after"):
        pull(reference, retries=2)
    assert registry.count(image.config_digest) == 3


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429, 408])
def test_passing_failures_are_tried_again(registry: FakeRegistry, image: BuiltImage, status: int) -> None:
    reference = registry.push(image)
    registry.fail(status, times=2, match="/manifests/")
    registry.fail(status, times=2, match=image.layer_digests[1])
    assert pull(reference) == NAMES
    assert registry.count("/manifests/") == 3


def test_lasting_failures_are_told(registry: FakeRegistry, image: BuiltImage) -> None:
    reference = registry.push(image)
    registry.fail(503, times=99, match="/manifests/")
    with pytest.raises(NetworkError, match="failed with 503 Service Unavailable") as caught:
        pull(reference, retries=2)
    assert caught.value.exit_code == 4
    assert registry.count("/manifests/") == 3
    registry.faults.failures.clear()
    registry.fail(429, times=99, match="/blobs/")
    with pytest.raises(NetworkError, match="refuses more requests for now"):
        pull(reference, retries=1)


@pytest.mark.parametrize("form", ["0", "date", "nonsense"])
def test_retry_after(registry: FakeRegistry, image: BuiltImage, form: str) -> None:
    value = email.utils.formatdate(time.time(), usegmt=True) if form == "date" else form
    registry.fail(429, times=2, match="/manifests/", Retry_After=value)
    # A delay that would be noticed: Retry-After must win over it.
    delay_s = 0.001 if form == "nonsense" else 30
    assert resolve(registry.push(image), retry_delay_s=delay_s)


def test_silent_registry(image: BuiltImage, registry: FakeRegistry) -> None:
    reference = registry.push(image)
    registry.faults.delay_s = 0.3
    with pytest.raises(NetworkError, match=r"silent for 0\.1 s"):
        pull(reference, read_timeout_s=0.1, retries=1)


def test_unreachable() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        for tls_verify in (True, False):
            with pytest.raises(
                NetworkError, match=f"cannot connect to '127.0.0.1:{port}': Connection refused"
            ) as caught:
                pull(f"docker://127.0.0.1:{port}/os:v1", tls_verify=tls_verify, retry_delay_s=30)
            assert caught.value.exit_code == 4
            assert caught.value.hint


def test_unknown_host() -> None:
    with pytest.raises(NetworkError, match=r"the host of 'no-such-host\.invalid' is not known"):
        pull("docker://no-such-host.invalid/os:v1", tls_verify=True, retry_delay_s=30)


def test_http_answered_to_https(registry: FakeRegistry, image: BuiltImage) -> None:
    with pytest.raises(NetworkError, match="does not answer to https") as caught:
        pull(registry.push(image), tls_verify=True, retry_delay_s=30)
    assert "--tls-verify=false" in (caught.value.hint or "")


def test_unknown_certificate(image: BuiltImage) -> None:
    with FakeRegistry(tls=True) as registry:
        with pytest.raises(NetworkError, match=r"certificate of '.*' is not trusted: self") as caught:
            pull(registry.push(image), tls_verify=True, retry_delay_s=30)
        assert "--tls-verify=false" in (caught.value.hint or "")


def test_no_http_at_all() -> None:
    """Something listens that is no web server."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    connection.sendall(b"220 smtp ready\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(NetworkError, match=r"the connection to '.*' broke|does not answer to https"):
            pull(f"docker://127.0.0.1:{server.getsockname()[1]}/os:v1", retries=0)
        thread.join()


# --- content that is wrong


def test_not_found(registry: FakeRegistry, image: BuiltImage) -> None:
    reference = registry.push(image)
    with pytest.raises(NotFoundError, match=r"image 'docker://.*/os:v2' is not in the registry") as caught:
        pull(reference.replace(":v1", ":v2"))
    assert caught.value.exit_code == 12
    del registry.blobs[image.layer_digests[1]]
    with pytest.raises(NotFoundError, match=f"blob '{image.layer_digests[1]}'"):
        pull(reference)


def test_corrupt_blob(registry: FakeRegistry, image: BuiltImage) -> None:
    reference = registry.push(image)
    registry.faults.corrupt.add(image.layer_digests[1])
    with pytest.raises(VerificationError) as caught:
        pull(reference)
    assert caught.value.exit_code == 5


def test_corrupt_config_and_manifest(registry: FakeRegistry, image: BuiltImage) -> None:
    reference = registry.push(image)
    registry.faults.corrupt.add(image.config_digest)
    with pytest.raises(VerificationError, match=image.config_digest):
        pull(reference)
    registry.faults.corrupt = {image.digest}
    with pytest.raises(VerificationError, match="the manifest of"):
        pull(reference)
    registry.faults.hide_digest = True
    with pytest.raises(VerificationError, match="the manifest of"):
        pull(f"docker://{registry.host}/os@{image.digest}")


def test_lengths_that_lie(registry: FakeRegistry, image: BuiltImage) -> None:
    reference = registry.push(image)
    registry.faults.truncate[image.layer_digests[1]] = 1000
    with pytest.raises(VerificationError, match="has 1000 bytes in the registry"):
        pull(reference)
    registry.faults.truncate.clear()
    registry.faults.append[image.layer_digests[1]] = b"x"
    with pytest.raises(VerificationError, match="bytes in the registry"):
        pull(reference)
    registry.faults.chunked = True
    with pytest.raises(VerificationError, match="longer than"):
        pull(reference)
    registry.faults.append.clear()
    registry.faults.truncate[image.layer_digests[1]] = 1000
    with pytest.raises(NetworkError):
        pull(reference, retries=1)


def test_large_manifest(registry: FakeRegistry, image: BuiltImage) -> None:
    reference = registry.push(image)
    registry.faults.append[image.digest] = b" " * (5 << 20)
    with pytest.raises(ImageError, match="larger than 4 MiB"):
        pull(reference)


def test_manifest_size_must_be_that_of_the_index(registry: FakeRegistry, image: BuiltImage) -> None:
    lying = BuiltImage(image.blobs, {**image.descriptor, "size": 3})
    with pytest.raises(VerificationError, match="its descriptor says 3"):
        pull(registry.push(build_index([lying])))


def test_other_statuses(registry: FakeRegistry, image: BuiltImage) -> None:
    reference = registry.push(image)
    registry.fail(418, times=1, match="/manifests/")
    with pytest.raises(NetworkError, match="answered 418"):
        pull(reference)


def test_errors_survive_a_process_boundary(registry: FakeRegistry, image: BuiltImage) -> None:
    reference = registry.push(image)
    registry.fail(503, times=99)
    with pytest.raises(NetworkError) as caught:
        pull(reference, retries=0)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert (copied.message, copied.hint, copied.exit_code) == (caught.value.message, caught.value.hint, 4)
