"""registries.conf, version 2: where a name leads, and which registries may be reached without TLS.

Format: containers-registries.conf(5). Read are ``prefix``, ``location``, ``insecure`` and ``blocked`` of each
``[[registry]]``; a machine needs them to upgrade from a registry in its own network.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from bootwright.errors import ConfigError
from bootwright.oci.reference import ImageReference

__all__ = ["Endpoint", "RegistryRule", "find_endpoint", "parse_registries_conf", "read_registries_conf"]

_T = TypeVar("_T")
_DIRECTORIES = ("/usr/share/containers", "/etc/containers")
_MAX_FILE_SIZE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryRule:
    """One ``[[registry]]``: everything whose name begins with ``prefix`` is at ``location``."""

    prefix: str
    location: str
    insecure: bool
    blocked: bool

    def matches(self, name: str) -> bool:
        """Tell whether this is about ``host/path``; a prefix ends where a part of the name ends."""
        if self.prefix.startswith("*."):
            return name.partition("/")[0].endswith(self.prefix[1:])
        return name.startswith(self.prefix) and name[len(self.prefix) :][:1] in ("", "/", ":", "@")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where to send the requests for an image.

    Attributes:
        host: host and port to connect to.
        repository: path below it.
        name: host as credentials know it (``docker.io``, not ``registry-1.docker.io``).
        insecure: any certificate is accepted, and plain http.
    """

    host: str
    repository: str
    name: str
    insecure: bool


def find_endpoint(reference: ImageReference, rules: Iterable[RegistryRule]) -> Endpoint:
    """Apply the longest matching rule to a registry reference.

    Raises:
        ConfigError: the registry is blocked.
    """
    name = f"{reference.host}/{reference.repository}"
    matching = [rule for rule in rules if rule.matches(name)]
    if not matching:
        return Endpoint(host=reference.endpoint, repository=reference.repository, name=reference.host, insecure=False)
    rule = max(matching, key=lambda rule: len(rule.prefix))
    if rule.blocked:
        raise ConfigError(
            f"'{rule.prefix}' is blocked in registries.conf", hint="choose another registry or change registries.conf"
        )
    if rule.location and not rule.prefix.startswith("*."):
        name = rule.location + name[len(rule.prefix) :]
    host, _, repository = name.partition("/")
    if not repository:
        raise ConfigError(f"registries.conf leads '{reference}' to '{name}', which names no repository")
    connect = "registry-1.docker.io" if host == "docker.io" else host
    return Endpoint(host=connect, repository=repository, name=host, insecure=rule.insecure)


def parse_registries_conf(text: str, *, origin: str) -> list[RegistryRule]:
    """Parse one file. Keys for others (mirrors, short names) are passed over.

    Raises:
        ConfigError: no TOML, or a key that we read has a wrong type.
    """
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise ConfigError(f"'{origin}' is no TOML: {exc}", hint="see containers-registries.conf(5)") from exc
    tables = document.get("registry", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"'registry' in '{origin}' is no list of tables", hint="write [[registry]]")
    return [_parse_rule(table, origin) for table in tables]


def read_registries_conf(path: str | None = None) -> list[RegistryRule]:
    """Read a given file, or what ``$CONTAINERS_REGISTRIES_CONF`` names, or the machine's files and their drop-ins.

    A later rule replaces an earlier one with the same prefix.

    Raises:
        ConfigError: a file is malformed, or the given one is missing.
    """
    chosen = path or os.environ.get("CONTAINERS_REGISTRIES_CONF")
    rules: dict[str, RegistryRule] = {}
    for name in [chosen] if chosen else _find_files():
        try:
            with open(name, encoding="utf-8") as file:
                text = file.read(_MAX_FILE_SIZE)
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"cannot read '{name}': {exc}") from exc
        rules.update((rule.prefix, rule) for rule in parse_registries_conf(text, origin=name))
    return list(rules.values())


def _find_files() -> list[str]:
    """List the main file that counts and all drop-ins, those in order of their base names."""
    home = os.path.join(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"), "containers")
    directories = (*_DIRECTORIES, home)
    mains = [path for folder in directories if os.path.isfile(path := os.path.join(folder, "registries.conf"))]
    drop_ins = []
    for rank, folder in enumerate(directories):
        try:
            names = os.listdir(os.path.join(folder, "registries.conf.d"))
        except OSError:
            continue
        drop_ins += [(name, rank, folder) for name in names if name.endswith(".conf")]
    return [*mains[-1:], *(os.path.join(folder, "registries.conf.d", name) for name, _, folder in sorted(drop_ins))]


def _parse_rule(table: dict[str, Any], origin: str) -> RegistryRule:
    location = _get(table, "location", str, "", origin)
    prefix = _get(table, "prefix", str, "", origin) or location
    if not prefix:
        raise ConfigError(f"a [[registry]] in '{origin}' has neither prefix nor location")
    if "://" in location or "://" in prefix:
        raise ConfigError(
            f"'{location or prefix}' in '{origin}' must not have a scheme", hint="write host[:port][/path]"
        )
    return RegistryRule(
        prefix=prefix.rstrip("/"),
        location=location.rstrip("/"),
        insecure=_get(table, "insecure", bool, False, origin),
        blocked=_get(table, "blocked", bool, False, origin),
    )


def _get(table: dict[str, Any], key: str, kind: type[_T], default: _T, origin: str) -> _T:
    value = table.get(key, default)
    if not isinstance(value, kind):
        raise ConfigError(f"'{key}' of a [[registry]] in '{origin}' is not a {kind.__name__}")
    return value
