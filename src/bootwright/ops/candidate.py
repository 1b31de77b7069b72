"""An image that may become the next one: what its source says of it before anything is fetched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bootwright.deploy.model import CachedUpdate, ImageFacts
from bootwright.digest import Digest
from bootwright.oci.manifest import Descriptor, Manifest
from bootwright.oci.reference import ImageReference
from bootwright.oci.source import ResolvedImage, SourceOptions, open_source
from bootwright.units import format_size

__all__ = ["Candidate", "describe_layers", "resolve_candidate"]

_VERSION = "org.opencontainers.image.version"
_CREATED = "org.opencontainers.image.created"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What a reference leads to now."""

    reference: ImageReference
    resolved: ResolvedImage

    @property
    def manifest_digest(self) -> Digest:
        """Digest of the manifest for this machine."""
        return self.resolved.manifest_digest

    @property
    def pinned(self) -> ImageReference:
        """The reference to exactly this image; a layout has only its tag."""
        if self.reference.transport != "registry":
            return self.reference
        return self.reference.with_digest(self.manifest_digest)

    @property
    def version(self) -> str | None:
        """Version for people: the manifest's annotation, then the labels."""
        annotations, labels = self.resolved.manifest.annotations or {}, self.resolved.config.labels
        return annotations.get(_VERSION) or labels.get(_VERSION) or labels.get("version") or None

    @property
    def created(self) -> str | None:
        """When it was made (RFC 3339)."""
        annotations, labels = self.resolved.manifest.annotations or {}, self.resolved.config.labels
        return annotations.get(_CREATED) or labels.get(_CREATED) or self.resolved.config.created or None

    def to_cached_update(self) -> CachedUpdate:
        """Make the record that status shows."""
        facts = ImageFacts(
            image=self.reference.image,
            transport=self.reference.transport,
            manifest_digest=str(self.manifest_digest),
            version=self.version,
            created=self.created,
            architecture=self.resolved.config.architecture,
        )
        return CachedUpdate(facts)


def resolve_candidate(reference: ImageReference, options: SourceOptions) -> Candidate:
    """Ask the source what a reference leads to; only manifest and config are read.

    Raises:
        NetworkError: it cannot be reached or has no such image.
        ImageError: malformed, or for another architecture.
        VerificationError: a document is not what its digest says.
    """
    with open_source(reference, options) as source:
        return Candidate(reference=reference, resolved=source.resolve())


def describe_layers(new: Manifest, old: Manifest | None) -> list[str]:
    """Compare the layers of two manifests: bootc's three lines; one when the old manifest is not known."""
    lines = [_count("Total new layers", new.layers)]
    if old is not None:
        new_digests = {layer.digest_text for layer in new.layers}
        old_digests = {layer.digest_text for layer in old.layers}
        lines.append(_count("Removed layers", (one for one in old.layers if one.digest_text not in new_digests)))
        lines.append(_count("Added layers", (one for one in new.layers if one.digest_text not in old_digests)))
    return lines


def _count(name: str, layers: Iterable[Descriptor]) -> str:
    found = list(layers)
    size = format_size(sum(layer.size for layer in found))
    return f"{f'{name}:':<18}{len(found):<4} Size: {size}"
