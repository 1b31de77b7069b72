"""What is known of a deployment beside its files: the origin file, as bootc writes it, and the last update seen.

::

    [origin]
    container-image-reference = ostree-unverified-image:docker://registry.example.net/edge/os:prod
    [boot]
    boot_type = bls
    digest = <sha256 hex of kernel + initramfs>
    [image]
    manifest_digest = sha256:…
    version = …            ours, and the two below: status reads no repository
    created = …
    architecture = …

Sections and keys that we do not know are kept.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from bootwright.errors import DeploymentError, UsageError

if TYPE_CHECKING:
    from bootwright.oci.reference import ImageReference

__all__ = ["CachedUpdate", "ImageFacts", "Origin", "is_deployment_id"]

_DEPLOYMENT_ID = re.compile(r"[0-9a-f]{64}|[0-9a-f]{128}")
_SECTION = re.compile(r"\[([^\]\n]+)\]")
_FOREIGN_SECTIONS = frozenset({"rpmostree", "packages", "overrides", "modules"})

_REFERENCE = ("origin", "container-image-reference")
_BOOT_TYPE = ("boot", "boot_type")
_BOOT_DIGEST = ("boot", "digest")
_MANIFEST_DIGEST = ("image", "manifest_digest")
_VERSION = ("image", "version")
_CREATED = ("image", "created")
_ARCHITECTURE = ("image", "architecture")
_ORDER = (_REFERENCE, _BOOT_TYPE, _BOOT_DIGEST, _MANIFEST_DIGEST, _VERSION, _CREATED, _ARCHITECTURE)

# ostree-ext's spelling of "who vouches for it", longest first.
_SIGNATURES = {
    "ostree-unverified-image:": None,
    "ostree-unverified-registry:": None,
    "ostree-image-signed:": "containerPolicy",
}


def is_deployment_id(text: str) -> bool:
    """Tell whether a text can be the name of a deployment: 64 or 128 lower-case hex digits."""
    return _DEPLOYMENT_ID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """What people want to know of an image.

    Args:
        image: the reference without its transport.
        transport: ``registry``, ``oci``, …
        manifest_digest: ``sha256:…``; empty when it is not known.
        version: of the operating system, as the image says.
        created: RFC 3339.
        architecture: OCI's name.
        signature: ``containerPolicy``, ``ostreeRemote:<name>``, or None when no signature is demanded.
    """

    image: str
    transport: str
    manifest_digest: str
    version: str | None = None
    created: str | None = None
    architecture: str | None = None
    signature: str | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """An origin file: ``(section, key) -> value`` in order."""

    values: dict[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def make(
        cls,
        reference: ImageReference,
        *,
        manifest_digest: str,
        boot_digest: str,
        version: str | None,
        created: str | None,
        architecture: str,
    ) -> Origin:
        """Describe a deployment that was just made from an image."""
        values = {
            _REFERENCE: f"ostree-unverified-image:{reference}",
            _BOOT_TYPE: "bls",
            _BOOT_DIGEST: boot_digest,
            _MANIFEST_DIGEST: manifest_digest,
            _VERSION: _one_line(version),
            _CREATED: _one_line(created),
            _ARCHITECTURE: _one_line(architecture),
        }
        return cls({key: value for key, value in values.items() if value})

    @classmethod
    def parse(cls, text: str) -> Origin:
        """Parse an origin file; comments and lines before the first section are dropped.

        Raises:
            DeploymentError: a line is neither a section nor ``key = value``.
        """
        values: dict[tuple[str, str], str] = {}
        section: str | None = None
        for number, raw in enumerate(text.splitlines(), 1):
            line = raw.strip()
            if not line or line[0] in "#;":
                continue
            match = _SECTION.fullmatch(line)
            if match:
                section = match[1].strip()
                continue
            key, separator, value = line.partition("=")
            if not separator or section is None:
                raise DeploymentError(f"line {number} of an origin file is neither a section nor 'key = value'")
            values[section, key.strip()] = value.strip()
        return cls(values)

    def format(self) -> str:
        """Write the file; known keys first, in bootc's order."""
        ordered = {key: self.values[key] for key in _ORDER if key in self.values}
        ordered.update(self.values)
        sections: dict[str, list[str]] = {}
        for (section, key), value in ordered.items():
            sections.setdefault(section, []).append(f"{key} = {value}\n")
        return "".join(f"[{section}]\n{''.join(lines)}" for section, lines in sections.items())

    @property
    def boot_type(self) -> str:
        """``bls`` or ``uki``."""
        return self.values.get(_BOOT_TYPE, "bls")

    @property
    def boot_digest(self) -> str | None:
        """Sha256 hex of kernel and initramfs; None in old files."""
        return self.values.get(_BOOT_DIGEST)

    @property
    def manifest_digest(self) -> str | None:
        """Digest of the image's manifest, ``sha256:…``."""
        return self.values.get(_MANIFEST_DIGEST)

    @property
    def is_incompatible(self) -> bool:
        """Another tool layered packages or overrides on it."""
        return any(section in _FOREIGN_SECTIONS for section, _ in self.values)

    @property
    def image(self) -> ImageFacts | None:
        """The image; None when the file names none."""
        text = self.values.get(_REFERENCE)
        if not text:
            return None
        signature, rest = _split_signature(text)
        transport, image = _split_transport(rest)
        return ImageFacts(
            image=image,
            transport=transport,
            manifest_digest=self.manifest_digest or "",
            version=self.values.get(_VERSION),
            created=self.values.get(_CREATED),
            architecture=self.values.get(_ARCHITECTURE),
            signature=signature,
        )

    def get_reference(self) -> ImageReference:
        """Return the reference that is tracked.

        Raises:
            DeploymentError: there is none, or it is of a kind that we cannot pull.
        """
        facts = self.image
        if facts is None:
            raise DeploymentError(
                "the deployment does not say which image it came from", hint="bootwright switch REFERENCE"
            )
        # Late: status shows references and parses none.
        from bootwright.oci.reference import ImageReference

        prefix = "docker://" if facts.transport == "registry" else f"{facts.transport}:"
        try:
            return ImageReference.parse(f"{prefix}{facts.image}")
        except UsageError as exc:
            raise DeploymentError(
                f"the tracked image cannot be used: {exc.message}", hint="bootwright switch REFERENCE"
            ) from exc

    def tracking(self, reference: ImageReference) -> Origin:
        """Return the same deployment following another reference."""
        return replace(self, values={**self.values, _REFERENCE: f"ostree-unverified-image:{reference}"})

    def with_image(self, *, manifest_digest: str, version: str | None, created: str | None) -> Origin:
        """Return the same deployment with another manifest of the same content."""
        values = {**self.values, _MANIFEST_DIGEST: manifest_digest}
        for key, value in ((_VERSION, version), (_CREATED, created)):
            values.pop(key, None)
            if value:
                values[key] = _one_line(value)
        return replace(self, values=values)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())[:500]


def _split_signature(text: str) -> tuple[str | None, str]:
    for prefix, signature in _SIGNATURES.items():
        if text.startswith(prefix):
            # The registry form has no transport of its own.
            return signature, ("docker://" if "registry" in prefix else "") + text.removeprefix(prefix)
    if text.startswith(("ostree-remote-image:", "ostree-remote-registry:")):
        kind, _, rest = text.partition(":")
        remote, _, image = rest.partition(":")
        return f"ostreeRemote:{remote}", ("docker://" if kind.endswith("registry") else "") + image
    return None, text


def _split_transport(text: str) -> tuple[str, str]:
    if text.startswith("docker://"):
        return "registry", text.removeprefix("docker://")
    transport, separator, image = text.partition(":")
    if not separator or "/" in transport or "." in transport:
        return "registry", text
    return transport, image


@dataclass(frozen=True, slots=True)
class CachedUpdate:
    """What the last ``upgrade --check`` saw; kept beside the deployment as a small JSON file."""

    image: ImageFacts

    def to_json(self) -> str:
        """Write it, one key a line."""
        names = ("image", "transport", "manifest_digest", "version", "created", "architecture")
        return json.dumps({name: getattr(self.image, name) for name in names}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> CachedUpdate:
        """Read it.

        Raises:
            DeploymentError: it is no such file.
        """
        try:
            document = json.loads(text)
            return cls(
                ImageFacts(
                    image=str(document["image"]),
                    transport=str(document["transport"]),
                    manifest_digest=str(document["manifest_digest"]),
                    version=_text(document, "version"),
                    created=_text(document, "created"),
                    architecture=_text(document, "architecture"),
                )
            )
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise DeploymentError("the record of the last check for updates is damaged") from exc


def _text(document: dict[str, object], name: str) -> str | None:
    value = document.get(name)
    return value if isinstance(value, str) else None
