"""meta.json: the version, digest algorithm and feature flags of a repository. Pure.

::

    {
      "version": 1,
      "algorithm": "fsverity-sha256-12",          or fsverity-sha512-12
      "features": {
        "compatible": [],                         unknown ones are ignored
        "read-only-compatible": [],               unknown ones: readable, never written
        "incompatible": []                        unknown ones: refused
      },
      "erofs_formats": {"default": 1}             absent in repositories of older tools
    }

The flags work like ext4's: a later version may add one without stranding those who cannot know it. We know no
incompatible flag and one read-only-compatible flag, ``v1_erofs`` (composefs-rs: images are EROFS format version 1,
which is the only one that we write).
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from bootwright.digest import Algorithm
from bootwright.errors import RepositoryError, VerificationError

__all__ = ["META_NAME", "Meta", "format_meta", "parse_meta"]

META_NAME = "meta.json"
_VERSION = 1
_SIZE_MAX = 1 << 20
_KNOWN_READ_ONLY = frozenset({"v1_erofs"})
_KNOWN_INCOMPATIBLE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """What meta.json says, as far as it decides what we may do."""

    algorithm: Algorithm
    unknown_read_only: tuple[str, ...] = ()

    @property
    def is_writable(self) -> bool:
        """Whether every feature that a writer must keep up is known here."""
        return not self.unknown_read_only


def format_meta(algorithm: Algorithm) -> bytes:
    """Return the meta.json of a new repository."""
    document = {
        "version": _VERSION,
        "algorithm": algorithm.spec,
        "features": {"compatible": [], "read-only-compatible": [], "incompatible": []},
        "erofs_formats": {"default": 1},
    }
    return json.dumps(document, indent=2).encode() + b"\n"


def parse_meta(data: bytes, *, origin: str) -> Meta:
    """Parse meta.json; ``origin`` is its path, for messages.

    Raises:
        RepositoryError: it is no JSON object of version 1, names an unknown algorithm, or an incompatible feature.
    """
    if len(data) > _SIZE_MAX:
        raise RepositoryError(f"'{origin}' is too big to be a repository's meta.json")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise RepositoryError(f"'{origin}' is not JSON: {exc}", hint="restore it, or make a new repository") from exc
    if not isinstance(document, dict):
        raise RepositoryError(f"'{origin}' is not a JSON object")
    version = document.get("version")
    if version != _VERSION:
        raise RepositoryError(
            f"'{origin}' has the version '{version}'; this program knows version {_VERSION}",
            hint="use a newer bootwright, or another repository",
        )
    features = _parse_features(document.get("features", {}), origin)
    unknown = sorted(features["incompatible"] - _KNOWN_INCOMPATIBLE)
    if unknown:
        raise RepositoryError(
            f"'{origin}' needs features that this program does not know: {', '.join(unknown)}",
            hint="use a newer bootwright, or another repository",
        )
    try:
        algorithm = Algorithm.from_spec(str(document.get("algorithm")))
    except VerificationError as exc:
        raise RepositoryError(f"'{origin}': {exc.message}", hint=exc.hint) from exc
    return Meta(
        algorithm=algorithm,
        unknown_read_only=tuple(sorted(features["read-only-compatible"] - _KNOWN_READ_ONLY)),
    )


def _parse_features(value: object, origin: str) -> dict[str, set[str]]:
    if not isinstance(value, dict):
        raise RepositoryError(f"'{origin}': 'features' is not an object")
    found: dict[str, set[str]] = {}
    for name in ("compatible", "read-only-compatible", "incompatible"):
        flags = value.get(name, [])
        if not isinstance(flags, list) or not all(isinstance(flag, str) for flag in flags):
            raise RepositoryError(f"'{origin}': the feature list '{name}' is not a list of names")
        found[name] = set(flags)
    return found
