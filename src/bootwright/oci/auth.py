"""Credentials and challenges: auth.json, WWW-Authenticate, token answers.

File format: containers-auth.json(5). Challenges: RFC 9110 §11.6.1. Tokens: the distribution specification's "Token
Authentication". Credential helpers are not asked.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from bootwright.errors import AuthenticationError, ConfigError

__all__ = [
    "Challenge",
    "Credentials",
    "Token",
    "find_credentials",
    "list_auth_files",
    "parse_auth_file",
    "parse_challenges",
    "parse_token",
]

_MAX_FILE_SIZE = 1 << 20
_MIN_LIFETIME_S = 60
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # noqa: S105 — the token of a grammar
_SCHEME = re.compile(rf"\s*({_TOKEN})(?:\s+|\Z)")
_PARAMETER = re.compile(rf'\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))\s*')


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and a password, and the file they come from."""

    username: str
    password: str = field(repr=False)
    origin: str = ""

    @property
    def basic(self) -> str:
        """Value of the ``Authorization`` header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a server wants: ``basic`` or ``bearer`` in lower case, with its parameters."""

    scheme: str
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token and when it ends (on the monotonic clock)."""

    value: str = field(repr=False)
    expires_at: float = 0


class _AuthEntry(msgspec.Struct):
    auth: str | None = None


class _AuthFile(msgspec.Struct):
    auths: dict[str, _AuthEntry] | None = None


class _TokenAnswer(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None
    expires_in: float | None = None


def find_credentials(host: str, repository: str, auth_file: str | None = None) -> Credentials | None:
    """Look for credentials for a repository; the first file that has some wins.

    Args:
        host: with its port, as in a reference.
        repository: path below it; the most specific entry of a file wins.
        auth_file: look in this file only.

    Raises:
        ConfigError: a file is malformed, or the given one cannot be read.
    """
    explicit = auth_file or os.environ.get("REGISTRY_AUTH_FILE")
    for path in [explicit] if explicit else list_auth_files():
        try:
            with open(path, "rb") as file:
                content = file.read(_MAX_FILE_SIZE)
        except OSError as exc:
            if explicit:
                raise ConfigError(f"cannot read the credentials file '{path}': {exc.strerror}") from exc
            continue
        entries = parse_auth_file(content, origin=path)
        for key in _list_keys(host, repository):
            if key in entries:
                return entries[key]
    return None


def list_auth_files() -> list[str]:
    """List the files in which credentials are looked for: those of bootc, then those of podman and docker."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    docker = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    return [
        "/run/ostree/auth.json",
        "/etc/ostree/auth.json",
        "/usr/lib/ostree/auth.json",
        os.path.join(runtime, "containers/auth.json") if runtime else f"/run/containers/{os.getuid()}/auth.json",
        os.path.join(config, "containers/auth.json"),
        os.path.join(docker, "config.json"),
    ]


def parse_auth_file(content: bytes, *, origin: str) -> dict[str, Credentials]:
    """Parse auth.json into host or ``host/path`` → credentials; entries without a password are left out.

    Raises:
        ConfigError: malformed; the content is never shown.
    """
    hint = f"write it with: podman login --authfile {origin} HOST"
    try:
        document = msgspec.json.decode(content or b"{}", type=_AuthFile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ConfigError(f"the credentials file '{origin}' is malformed", hint=hint) from exc
    found: dict[str, Credentials] = {}
    for key, entry in (document.auths or {}).items():
        if not entry.auth:
            continue
        try:
            plain = base64.b64decode(entry.auth, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as exc:
            raise ConfigError(f"the entry '{key}' of '{origin}' is not base64", hint=hint) from exc
        username, colon, password = plain.partition(":")
        if not colon or not plain.isprintable():
            raise ConfigError(f"the entry '{key}' of '{origin}' is no user name and password", hint=hint)
        credentials = Credentials(username, password.rstrip("\0"), origin)
        # An exact key wins over an old one in the form of a URL (https://index.docker.io/v1/).
        found.setdefault(_normalise_key(key), credentials)
        found[key] = credentials
    return found


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """Parse the values of all ``WWW-Authenticate`` headers. What cannot be understood is left out."""
    return [challenge for header in headers for challenge in _parse_header(header[:8192])]


def parse_token(content: bytes, *, realm: str) -> Token:
    """Parse the answer of a token server.

    Raises:
        AuthenticationError: there is no usable token in it.
    """
    try:
        answer = msgspec.json.decode(content, type=_TokenAnswer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise AuthenticationError(f"the token server '{realm}' gave a malformed answer") from exc
    value = answer.token or answer.access_token
    if not value or not value.isascii() or not value.isprintable() or " " in value:
        raise AuthenticationError(f"the token server '{realm}' gave no token")
    lifetime = answer.expires_in if answer.expires_in is not None else _MIN_LIFETIME_S
    return Token(value, time.monotonic() + max(lifetime, _MIN_LIFETIME_S))


def _parse_header(header: str) -> Iterator[Challenge]:
    position = 0
    while match := _SCHEME.match(header, position):
        scheme, position = match[1].lower(), match.end()
        parameters: dict[str, str] = {}
        while match := _PARAMETER.match(header, position):
            quoted = match[2]
            value = match[3] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            parameters.setdefault(match[1].lower(), value)
            position = match.end()
            if header[position : position + 1] != ",":
                break
            position += 1
        yield Challenge(scheme, parameters)
        if header[position : position + 1] == ",":
            position += 1


def _list_keys(host: str, repository: str) -> Iterator[str]:
    """Yield the keys that may name a repository, the most specific first."""
    parts = repository.split("/")
    for count in range(len(parts), 0, -1):
        yield "/".join([host, *parts[:count]])
    yield host


def _normalise_key(key: str) -> str:
    """Reduce a key in the old form, a URL, to its host."""
    bare = key.removeprefix("https://").removeprefix("http://")
    if bare == key and not key.endswith(("/v1/", "/v2/", "/v1", "/v2")):
        return key
    host = bare.partition("/")[0]
    return "docker.io" if host in ("index.docker.io", "registry-1.docker.io") else host
