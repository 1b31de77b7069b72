"""Where images come from: one interface over registries and layouts.

A source knows how to fetch a manifest and how to open a blob; choosing the platform and checking that digests, sizes
and documents agree is the same for all and lives here. Sources are not shared between processes: a worker opens its
own with the options that :meth:`ImageSource.worker_options` gives, which carry what the first one has learned.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from bootwright.digest import Digest
from bootwright.errors import ImageError, VerificationError
from bootwright.linux.architecture import oci_name
from bootwright.oci.manifest import (
    CONFIG_TYPES,
    MAX_CONFIG_SIZE,
    MAX_MANIFEST_SIZE,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    check_config,
    parse_config,
    parse_manifest,
    select_platform,
)
from bootwright.oci.reference import ImageReference

__all__ = [
    "BlobReader",
    "ImageSource",
    "ManifestBytes",
    "ResolvedImage",
    "Session",
    "SourceOptions",
    "open_source",
]

_MAX_INDEX_DEPTH = 4


@dataclass(frozen=True, slots=True)
class Session:
    """What is known of a registry after the first contact; used only for the same host and repository.

    Attributes:
        name: host and repository.
        scheme: ``http`` or ``https``; None when not yet known.
        authorization: value of the ``Authorization`` header; None when none was wanted.
    """

    name: str
    scheme: str | None
    authorization: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """How to reach a source. Picklable: workers in other processes get a copy.

    Attributes:
        tls_verify: False: accept any certificate, and plain http where https is not answered.
        architecture: wanted, in OCI names.
        variant: of the architecture, e.g. ``v3``; empty for the usual one.
        auth_file: read credentials from this file only, which must exist.
        registries_conf: read this file instead of the machine's registries.conf and its drop-ins.
        connect_timeout_s: for one attempt to connect.
        read_timeout_s: how long a connection may be silent.
        retries: attempts after the first one that failed for a reason that may pass.
        retry_delay_s: pause before the first of them; it doubles each time.
        session: what an earlier source has learned, see :meth:`ImageSource.worker_options`.
    """

    tls_verify: bool = True
    architecture: str = field(default_factory=oci_name)
    variant: str = ""
    auth_file: str | None = None
    registries_conf: str | None = None
    connect_timeout_s: float = 10
    read_timeout_s: float = 60
    retries: int = 5
    retry_delay_s: float = 1
    session: Session | None = None


@dataclass(frozen=True, slots=True)
class ManifestBytes:
    """A manifest or index as it was sent, its digest checked."""

    content: bytes
    media_type: str | None
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedImage:
    """The image of one platform: manifest and config, parsed, and their exact bytes."""

    manifest_bytes: bytes
    manifest_digest: Digest
    manifest: Manifest
    config_bytes: bytes
    config: ImageConfig


class BlobReader:
    """Reads one blob and checks its length and digest as it passes.

    Nothing that was read may be trusted before :meth:`read` has returned ``b""``: that is when the digest is checked.

    Args:
        read: returns up to n bytes of the blob, ``b""`` at its end.
        descriptor: length and digest that the blob must have.
        what: names the blob in messages.
    """

    def __init__(self, read: Callable[[int], bytes], descriptor: Descriptor, *, what: str) -> None:
        self.descriptor = descriptor
        self.what = what
        self.bytes_read = 0
        self._read = read
        self._digest = descriptor.digest
        self._hash = self._digest.new_hash()
        self._checked = False

    def read(self, size: int = 1 << 18) -> bytes:
        """Return the next bytes, at most ``size``; ``b""`` at the end, when everything was found right.

        Raises:
            VerificationError: the blob is shorter or longer than it should be, or has another digest.
            NetworkError: the registry failed and would not recover.
        """
        if self._checked:
            return b""
        data = self._read(size)
        self.bytes_read += len(data)
        if self.bytes_read > self.descriptor.size:
            raise VerificationError(
                f"{self.what} is longer than the {self.descriptor.size} bytes its descriptor says",
                hint="the source is damaged or was changed; pull again, or pull from another source",
            )
        if data:
            self._hash.update(data)
            return data
        if self.bytes_read < self.descriptor.size:
            raise VerificationError(
                f"{self.what} ends after {self.bytes_read} of {self.descriptor.size} bytes",
                hint="the source is damaged; pull again, or pull from another source",
            )
        self._digest.check_hex(self._hash.hexdigest(), what=self.what)
        self._checked = True
        return b""

    def read_all(self) -> bytes:
        """Return the whole blob, checked. For small blobs: the caller has looked at ``descriptor.size``.

        Raises:
            VerificationError: the blob is not what its descriptor says.
            NetworkError: the registry failed.
        """
        return b"".join(iter(self.read, b""))


class ImageSource(abc.ABC):
    """An opened source of one image; a context manager that closes it."""

    def __init__(self, reference: ImageReference, options: SourceOptions) -> None:
        self.reference = reference
        self.options = options

    @abc.abstractmethod
    def read_manifest(self, descriptor: Descriptor | None = None) -> ManifestBytes:
        """Fetch the manifest that the reference names, or a certain one; its digest is checked.

        Raises:
            NotFoundError: there is none.
            VerificationError: it has another digest than asked for.
            NetworkError: the registry failed.
        """

    @abc.abstractmethod
    def open_blob(self, descriptor: Descriptor) -> AbstractContextManager[BlobReader]:
        """Open a blob for reading from its start.

        Raises:
            NotFoundError: there is none.
            NetworkError: the registry failed.
        """

    def worker_options(self) -> SourceOptions:
        """Return options with which a worker reaches the same source without asking everything again."""
        return self.options

    def close(self) -> None:  # noqa: B027 — not every source holds something
        """Let go of connections and files; calling it twice is fine."""

    def resolve(self) -> ResolvedImage:
        """Find the image for the wanted platform and read its manifest and config.

        Raises:
            ImageError: malformed, or nothing in it is for the wanted architecture.
            NotFoundError: no such image.
            VerificationError: a document is not what its digest says.
            NetworkError: the registry failed.
        """
        what = f"image '{self.reference}'"
        found = self.read_manifest()
        for _ in range(_MAX_INDEX_DEPTH):
            document = parse_manifest(found.content, found.media_type, what=what)
            if isinstance(document, Manifest):
                return self._complete(found, document, what)
            found = self._descend(document, what)
        raise ImageError(f"{what} has indexes within indexes, more than {_MAX_INDEX_DEPTH} deep")

    def _descend(self, index: Index, what: str) -> ManifestBytes:
        chosen = select_platform(index, self.options.architecture, self.options.variant, what=what)
        if chosen.size > MAX_MANIFEST_SIZE:
            raise ImageError(f"{what} has a manifest of {chosen.size} bytes, more than {MAX_MANIFEST_SIZE >> 20} MiB")
        found = self.read_manifest(chosen)
        return ManifestBytes(found.content, chosen.media_type, found.digest)

    def _complete(self, found: ManifestBytes, manifest: Manifest, what: str) -> ResolvedImage:
        if manifest.config.media_type not in CONFIG_TYPES:
            kind = manifest.artifact_type or manifest.config.media_type
            raise ImageError(f"{what} is no container image but an artifact of the type '{kind[:100]}'")
        if manifest.config.size > MAX_CONFIG_SIZE:
            raise ImageError(f"{what} has a config of {manifest.config.size} bytes")
        with self.open_blob(manifest.config) as blob:
            config_bytes = blob.read_all()
        config = parse_config(config_bytes, what=f"config of {what}")
        check_config(manifest, config, architecture=self.options.architecture, what=what)
        return ResolvedImage(
            manifest_bytes=found.content,
            manifest_digest=found.digest,
            manifest=manifest,
            config_bytes=config_bytes,
            config=config,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_source(reference: ImageReference, options: SourceOptions) -> ImageSource:
    """Open what a reference names. No request is made before something is read.

    Raises:
        NotFoundError: the layout directory does not exist.
        ConfigError: registries.conf or the credentials file is wrong.
    """
    # Late: reading a layout needs no HTTP client, and `status` needs neither.
    if reference.transport == "oci":
        from bootwright.oci.layout import LayoutSource

        return LayoutSource(reference, options)
    from bootwright.oci.registry import RegistrySource

    return RegistrySource(reference, options)
