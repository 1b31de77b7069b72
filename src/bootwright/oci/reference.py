"""Image references: where an image is, as a value. Pure.

::

    docker://[host[:port]/]path[:tag][@digest]      a registry
    registry:[host[:port]/]path[:tag][@digest]      the same, in the words of bootc
    oci:DIRECTORY[:TAG]                             an OCI layout on this machine

The grammar is that of github.com/distribution/reference; a name without a host means Docker Hub, as people expect.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from bootwright.digest import Digest
from bootwright.errors import UsageError, VerificationError

__all__ = ["ImageReference", "Transport"]

Transport = Literal["registry", "oci"]

_DEFAULT_HOST = "docker.io"
_DEFAULT_TAG = "latest"
_MAX_NAME = 255  # host and path together, as registries limit it

_PREFIXES: dict[str, Transport] = {"docker://": "registry", "registry:": "registry", "oci:": "oci"}
_FOREIGN_PREFIXES = ("oci-archive", "docker-archive", "docker-daemon", "containers-storage", "dir", "ostree")

_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:.]+\])(?::[0-9]{{1,5}})?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReference:
    """Names one image.

    Attributes:
        transport: ``registry`` or ``oci``.
        host: registry only: host and port, e.g. ``quay.io`` or ``127.0.0.1:5000``; IPv6 in brackets.
        repository: registry only: path below the host, e.g. ``library/debian``.
        path: oci only: the layout directory, as it was written.
        tag: tag in the registry, or ``org.opencontainers.image.ref.name`` in the layout. None: see ``digest``; in
            a layout, its only image.
        digest: registry only: pins the image; it wins over the tag.
    """

    transport: Transport
    host: str = ""
    repository: str = ""
    path: str = ""
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str, *, default_transport: Transport | None = None) -> ImageReference:
        """Parse a reference as a person writes it.

        Args:
            text: with its transport, or without one when ``default_transport`` is given (``--transport``).
            default_transport: what a text without a transport means.

        Raises:
            UsageError: it is no reference, or of a transport that is not known.
        """
        for prefix, transport in _PREFIXES.items():
            if text.startswith(prefix):
                return _parse_bare(text.removeprefix(prefix), transport, text)
        head = text.partition(":")[0]
        if head in _FOREIGN_PREFIXES and text != head:
            raise UsageError(
                f"the transport '{head}' of '{_short(text)}' is not supported",
                hint="use docker://HOST/NAME:TAG for a registry or oci:DIRECTORY:TAG for an OCI layout",
            )
        if default_transport is None:
            raise UsageError(
                f"'{_short(text)}' does not say where the image is",
                hint=f"write docker://{_short(text)} for a registry or oci:DIRECTORY:TAG for an OCI layout",
            )
        return _parse_bare(text, default_transport, text)

    @property
    def image(self) -> str:
        """The reference without its transport, as bootc's status shows it."""
        if self.transport == "oci":
            return self.path if self.tag is None else f"{self.path}:{self.tag}"
        tag = "" if self.tag is None else f":{self.tag}"
        digest = "" if self.digest is None else f"@{self.digest}"
        return f"{self.host}/{self.repository}{tag}{digest}"

    @property
    def canonical(self) -> ImageReference:
        """The same without the tag when there is a digest, which alone decides what is pulled."""
        return self if self.digest is None else replace(self, tag=None)

    @property
    def endpoint(self) -> str:
        """Host and port to connect to: that of the reference but for Docker Hub."""
        return "registry-1.docker.io" if self.host == _DEFAULT_HOST else self.host

    def with_tag(self, tag: str) -> ImageReference:
        """Return the reference to another tag; a digest is dropped, as it names another image.

        Raises:
            UsageError: the text cannot be a tag.
        """
        if self.transport == "registry":
            _check_tag(tag, tag)
        elif not tag:
            raise UsageError("a tag must not be empty")
        return replace(self, tag=tag, digest=None)

    def with_digest(self, digest: Digest) -> ImageReference:
        """Return the reference pinned to a digest, without a tag (registry only)."""
        return replace(self, tag=None, digest=digest)

    def __str__(self) -> str:
        return f"{'docker://' if self.transport == 'registry' else 'oci:'}{self.image}"


def _parse_bare(text: str, transport: Transport, whole: str) -> ImageReference:
    if not text or "\0" in text or "\n" in text:
        raise UsageError(f"'{_short(whole)}' names no image")
    if transport == "oci":
        # The path ends at the first colon, as for skopeo: a tag may contain colons, a path cannot.
        path, colon, tag = text.partition(":")
        if not path or (colon and not tag):
            raise UsageError(f"'{_short(whole)}' names no OCI layout", hint="write oci:DIRECTORY or oci:DIRECTORY:TAG")
        return ImageReference(transport="oci", path=path, tag=tag or None)
    return _parse_registry(text, whole)


def _parse_registry(text: str, whole: str) -> ImageReference:
    rest, at, digest_text = text.removeprefix("//").partition("@")
    digest = _parse_digest(digest_text, whole) if at else None

    first, slash, remainder = rest.partition("/")
    if slash and (any(c in first for c in ".:[") or first == "localhost" or first != first.lower()):
        host, rest = first, remainder
    else:
        host = _DEFAULT_HOST
    path, colon, tag = rest.rpartition(":")
    if not colon:
        path, tag = rest, ""
    if host == "index.docker.io":
        host = _DEFAULT_HOST
    if host == _DEFAULT_HOST and path and "/" not in path:
        path = f"library/{path}"

    _check_host(host, whole)
    _check_path(path, host, whole)
    if colon:
        _check_tag(tag, whole)
    elif digest is None:
        tag = _DEFAULT_TAG
    return ImageReference(transport="registry", host=host, repository=path, tag=tag or None, digest=digest)


def _check_host(host: str, whole: str) -> None:
    if not _HOST.fullmatch(host):
        raise UsageError(f"'{_short(host)}' in '{_short(whole)}' is no host", hint="write HOST[:PORT]/NAME[:TAG]")
    port = host.rpartition(":")[2] if not host.endswith("]") and ":" in host else ""
    if port and not 0 < int(port) < 65536:
        raise UsageError(f"'{port}' in '{_short(whole)}' is no port", hint="a port is a number from 1 to 65535")


def _check_path(path: str, host: str, whole: str) -> None:
    if path != path.lower():
        raise UsageError(f"the name '{_short(path)}' must be lower case", hint=f"write {_short(whole.lower())}")
    if not _PATH.fullmatch(path):
        raise UsageError(
            f"'{_short(whole)}' is no image reference",
            hint="write HOST[:PORT]/NAME[:TAG]: lower case, digits, and single . _ - inside the names",
        )
    if _IMAGE_ID.fullmatch(path.removeprefix("library/")):
        raise UsageError(f"'{_short(whole)}' looks like an image id", hint="write a name, or NAME@sha256:DIGEST")
    if len(host) + 1 + len(path) > _MAX_NAME:
        raise UsageError(f"the name '{_short(whole)}' is longer than {_MAX_NAME} characters")


def _check_tag(tag: str, whole: str) -> None:
    if not _TAG.fullmatch(tag):
        raise UsageError(
            f"'{_short(tag)}' in '{_short(whole)}' is no tag",
            hint="a tag has up to 128 letters, digits and . _ - and does not begin with . or -",
        )


def _parse_digest(text: str, whole: str) -> Digest:
    try:
        return Digest.parse(text)
    except VerificationError as exc:
        raise UsageError(f"'{_short(text)}' in '{_short(whole)}' is no digest", hint=exc.hint) from exc


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}..."
