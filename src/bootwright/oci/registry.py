"""Pulls from a registry: the OCI distribution specification 1.1, the part of it that reads.

A blob is one stream to its reader even when the connection breaks: it goes on where it was cut with a range request,
and the digest over the whole keeps that honest. Credentials go to the registry and to the token server that it names,
never to the host of a redirect.
"""

from __future__ import annotations

import contextlib
import re
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import replace

import msgspec

from bootwright.digest import Digest
from bootwright.errors import (
    AuthenticationError,
    ImageError,
    NetworkError,
    NotFoundError,
    VerificationError,
)
from bootwright.oci.auth import Challenge, Credentials, find_credentials, parse_challenges, parse_token
from bootwright.oci.http import HttpClient, Response, TransientError, is_loopback
from bootwright.oci.manifest import INDEX_TYPES, MANIFEST_TYPES, MAX_MANIFEST_SIZE, Descriptor
from bootwright.oci.reference import ImageReference
from bootwright.oci.registries_conf import find_endpoint, read_registries_conf
from bootwright.oci.source import BlobReader, ImageSource, ManifestBytes, Session, SourceOptions

__all__ = ["RegistrySource"]

_ACCEPT = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))
_MAX_TOKEN_ANSWER = 1 << 20
_MAX_ERROR_BODY = 64 << 10
_PROGRESS = 1 << 20  # bytes after which a cut connection counts as a new misfortune
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")


class RegistrySource(ImageSource):
    """Reads an image from a registry. No request is made before something is read.

    Raises:
        ConfigError: registries.conf is malformed or blocks the registry.
    """

    def __init__(self, reference: ImageReference, options: SourceOptions) -> None:
        super().__init__(reference, options)
        endpoint = find_endpoint(reference, read_registries_conf(options.registries_conf))
        self._endpoint = endpoint
        self._is_insecure = endpoint.insecure or not options.tls_verify
        known = options.session if options.session and options.session.name == self._session_name else None
        self._scheme = known.scheme if known else None if self._is_insecure else "https"
        self._authorization = known.authorization if known else None
        self._expires_at = float("inf")
        self._http = HttpClient(
            verify=not self._is_insecure,
            connect_timeout_s=options.connect_timeout_s,
            read_timeout_s=options.read_timeout_s,
            retries=options.retries,
            retry_delay_s=options.retry_delay_s,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def worker_options(self) -> SourceOptions:
        """Return options that carry what is known of scheme and token, so that workers need not log in again."""
        session = Session(self._session_name, self._scheme, self._authorization)
        return replace(self.options, session=session)

    @property
    def _session_name(self) -> str:
        return f"{self._endpoint.host}/{self._endpoint.repository}"

    def read_manifest(self, descriptor: Descriptor | None = None) -> ManifestBytes:
        """Fetch the manifest that the reference names, or a certain one."""
        expected = descriptor.digest if descriptor else self.reference.digest
        url = self._make_url("manifests", str(expected or self.reference.tag))
        attempt = 0
        while True:
            response = self._open_response(url, {"Accept": _ACCEPT}, what=f"image '{self.reference}'")
            try:
                content = self._read_document(response, url)
                break
            except TransientError:
                if attempt >= self._http.retries:
                    raise
            finally:
                response.close()
            self._http.pause(attempt)
            attempt += 1
        digest = expected or _parse_digest_header(response) or Digest.of(content)
        digest.check(content, what=f"the manifest of '{self.reference}'")
        if descriptor and descriptor.size != len(content):
            raise VerificationError(
                f"the manifest '{digest}' has {len(content)} bytes, its descriptor says {descriptor.size}"
            )
        return ManifestBytes(content, response.headers.get("Content-Type"), digest)

    def _read_document(self, response: Response, url: str) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while data := self._http.read(response, 1 << 16, url):
            pieces.append(data)
            size += len(data)
            if size > MAX_MANIFEST_SIZE:
                raise ImageError(f"the manifest of '{self.reference}' is larger than {MAX_MANIFEST_SIZE >> 20} MiB")
        length = _parse_length(response)
        if length is not None and size < length:
            raise TransientError(f"the manifest of '{self.reference}' ends after {size} of {length} bytes")
        return b"".join(pieces)

    @contextlib.contextmanager
    def open_blob(self, descriptor: Descriptor) -> Iterator[BlobReader]:
        """Open a blob; its connection may break and is then continued."""
        what = f"blob '{descriptor.digest}' of '{self.reference}'"
        url = self._make_url("blobs", str(descriptor.digest))

        def connect(offset: int) -> Response:
            return self._open_response(url, {"Range": f"bytes={offset}-"} if offset else {}, what=what)

        stream = _BlobStream(self._http, connect, descriptor, url=url, what=what)
        try:
            yield BlobReader(stream.read, descriptor, what=what)
        finally:
            stream.close()

    # --- requests

    def _make_url(self, kind: str, name: str) -> str:
        if self._scheme is None:
            self._scheme = self._find_scheme()
        return f"{self._scheme}://{self._endpoint.host}/v2/{self._endpoint.repository}/{kind}/{name}"

    def _find_scheme(self) -> str:
        """Find out whether an insecure registry speaks https or http, as podman does: https first.

        On loopback http first: that is what one has there, and nothing can listen in.
        """
        schemes = ("http", "https") if is_loopback(self._endpoint.host) else ("https", "http")
        failure: NetworkError | None = None
        for scheme in schemes:
            try:
                status = self._http.probe(f"{scheme}://{self._endpoint.host}/v2/")
            except NetworkError as exc:
                failure = failure or exc
            else:
                # 400 is how servers answer to http on their https port.
                if status != 400 or scheme == "https":
                    return scheme
        raise failure or NetworkError(f"'{self._endpoint.host}' answers neither to https nor to http")

    def _open_response(self, url: str, headers: dict[str, str], *, what: str) -> Response:
        """Send a request with credentials as they turn out to be needed; any answer but 200 and 206 is an error.

        Raises:
            AuthenticationError: other credentials are needed.
            NotFoundError: there is no such thing.
            NetworkError: anything else.
        """
        if self._authorization and time.monotonic() > self._expires_at:
            self._authorization = None
        refused = False
        while True:
            sent = self._authorization
            response = self._http.get(url, {**headers, **({"Authorization": sent} if sent else {})})
            if response.status in (200, 206):
                return response
            if response.status == 401 and not refused:
                challenges = parse_challenges(response.headers.getlist("WWW-Authenticate"))
                _drop(response)
                # A token handed to us may be over; one that was just made is not refused for its age.
                self._authorization = None
                self._log_in(challenges)
                refused = True
                continue
            raise self._status_error(response, what)

    # --- credentials

    def _log_in(self, challenges: list[Challenge]) -> None:
        credentials = find_credentials(self._endpoint.name, self._endpoint.repository, self.options.auth_file)
        for challenge in challenges:
            if challenge.scheme == "bearer" and "realm" in challenge.parameters:
                self._authorization = self._get_token(challenge, credentials)
                return
            if challenge.scheme == "basic" and credentials:
                self._authorization = credentials.basic
                self._expires_at = float("inf")
                return
        raise self._denied(credentials)

    def _get_token(self, challenge: Challenge, credentials: Credentials | None) -> str:
        """Ask the token server that the registry names; anonymously when there are no credentials."""
        realm = challenge.parameters["realm"]
        parts = urllib.parse.urlsplit(realm)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise AuthenticationError(f"'{self._endpoint.host}' names the token server '{realm[:100]}'")
        if parts.scheme == "http" and not self._is_insecure:
            raise AuthenticationError(f"'{self._endpoint.host}' names a token server without TLS, '{realm[:100]}'")
        query = urllib.parse.parse_qsl(parts.query)
        query.append(("scope", challenge.parameters.get("scope") or f"repository:{self._endpoint.repository}:pull"))
        if service := challenge.parameters.get("service"):
            query.append(("service", service))
        if credentials:
            query.append(("account", credentials.username))
        url = urllib.parse.urlunsplit(parts._replace(query=urllib.parse.urlencode(query), fragment=""))
        response = self._http.get(url, {"Authorization": credentials.basic} if credentials else {})
        try:
            if response.status in (400, 401, 403):
                raise self._denied(credentials)
            if response.status != 200:
                raise NetworkError(f"the token server '{parts.netloc}' answered {response.status}")
            token = parse_token(self._http.read(response, _MAX_TOKEN_ANSWER, url), realm=parts.netloc)
        finally:
            response.close()
        self._expires_at = token.expires_at
        return f"Bearer {token.value}"

    def _denied(self, credentials: Credentials | None) -> AuthenticationError:
        name = f"{self._endpoint.name}/{self._endpoint.repository}"
        if credentials:
            return AuthenticationError(
                f"the registry does not accept the credentials of '{credentials.username}' for '{name}'",
                hint=f"log in again: podman login --authfile {credentials.origin} {self._endpoint.name}",
            )
        return AuthenticationError(
            f"the registry wants credentials for '{name}'",
            hint=f"check the name, or log in: podman login --authfile /etc/ostree/auth.json {self._endpoint.name}",
        )

    def _status_error(self, response: Response, what: str) -> NetworkError:
        said = _drop(response)
        detail = f": {said}" if said else ""
        if response.status in (401, 403):
            credentials = find_credentials(self._endpoint.name, self._endpoint.repository, self.options.auth_file)
            return self._denied(credentials)
        if response.status == 404:
            return NotFoundError(f"{what} is not in the registry{detail}", hint="check the name and the tag")
        return NetworkError(f"'{self._endpoint.host}' answered {response.status} for {what}{detail}")


class _BlobStream:
    """The bytes of a blob over as many connections as it takes.

    Args:
        http: reads answers.
        connect: asks for the blob from an offset on.
        descriptor: of the blob.
        url: of the blob, for messages.
        what: names the blob in messages.
    """

    def __init__(
        self, http: HttpClient, connect: Callable[[int], Response], descriptor: Descriptor, *, url: str, what: str
    ) -> None:
        self._http = http
        self._connect = connect
        self._size = descriptor.size
        self._url = url
        self._what = what
        self._offset = 0
        self._failures = 0
        self._counted_from = 0
        self._response: Response | None = None

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes; ``b""`` at the end."""
        while True:
            is_new = self._response is None
            # Getting an answer has its own retries; those here are for answers that break off.
            response = self._response = self._response or self._connect(self._offset)
            try:
                if is_new:
                    self._begin(response)
                data = self._http.read(response, size, self._url)
            except TransientError as exc:
                self.close()
                if self._offset >= self._size:
                    return b""  # everything has come; how the connection ended does not matter
                self._count_failure(exc)
                continue
            if data or self._offset >= self._size:
                self._offset += len(data)
                return data
            self.close()
            self._count_failure(
                TransientError(f"{self._what} ends after {self._offset} of {self._size} bytes", hint="try again")
            )

    def close(self) -> None:
        """Let go of the connection."""
        if self._response is not None:
            self._response.close()
            self._response = None

    def _count_failure(self, failure: TransientError) -> None:
        """Wait before the next attempt; raise when there were too many without progress."""
        if self._offset - self._counted_from >= _PROGRESS:
            self._failures = 0
        self._counted_from = self._offset
        if self._failures >= self._http.retries:
            raise failure
        self._http.pause(self._failures)
        self._failures += 1

    def _begin(self, response: Response) -> None:
        """Require that an answer is what was asked for; skip what came before when ranges are not understood."""
        if response.status == 206:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if not match or int(match[1]) != self._offset or match[3] not in ("*", str(self._size)):
                raise VerificationError(
                    f"{self._what}: asked for the bytes from {self._offset} on, the registry sent others",
                    hint="try again; if it stays so, the registry or a proxy before it is broken",
                )
            return
        length = _parse_length(response)
        if length is not None and length != self._size:
            raise VerificationError(
                f"{self._what} has {length} bytes in the registry, its descriptor says {self._size}",
                hint="the registry is damaged; push the image again",
            )
        skipped = 0
        while skipped < self._offset:
            data = self._http.read(response, min(1 << 18, self._offset - skipped), self._url)
            if not data:
                raise TransientError(f"{self._what} breaks off before the byte {self._offset}", hint="try again")
            skipped += len(data)


def _parse_length(response: Response) -> int | None:
    value = response.headers.get("Content-Length", "")
    return int(value) if value.isdecimal() and len(value) < 20 else None


def _parse_digest_header(response: Response) -> Digest | None:
    """Return what the registry says the digest is; something that is no digest counts as nothing."""
    value = response.headers.get("Docker-Content-Digest")
    if value is None:
        return None
    try:
        return Digest.parse(value)
    except VerificationError:
        return None


def _drop(response: Response) -> str:
    """Read and close an answer that is of no use, so that its connection can be used again.

    Returns:
        What a registry's error document says, made harmless; empty when it says nothing.
    """
    try:
        document = msgspec.json.decode(response.read(_MAX_ERROR_BODY, decode_content=False))
        text = document["errors"][0].get("message") or document["errors"][0]["code"]
    except Exception:  # noqa: BLE001 — whatever is wrong with it, the status says enough
        return ""
    finally:
        response.close()
    return "".join(c for c in str(text)[:200] if c.isprintable())
