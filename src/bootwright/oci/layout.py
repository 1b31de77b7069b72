"""OCI image layouts: an image in a directory (OCI image specification, "Image Layout").

::

    oci-layout                  {"imageLayoutVersion": "1.0.0"}
    index.json                  an index; the tag is the annotation org.opencontainers.image.ref.name
    blobs/sha256/<hex>          manifests, configs and layers
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator

import msgspec

from bootwright.digest import Digest
from bootwright.errors import BootwrightError, ImageError, NotFoundError
from bootwright.linux import files
from bootwright.oci.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_MANIFEST_SIZE,
    OCI_INDEX,
    Descriptor,
    Index,
    parse_manifest,
)
from bootwright.oci.reference import ImageReference
from bootwright.oci.source import BlobReader, ImageSource, ManifestBytes, SourceOptions

__all__ = ["REF_NAME", "LayoutSource", "LayoutWriter"]

REF_NAME = "org.opencontainers.image.ref.name"
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


class LayoutSource(ImageSource):
    """Reads an image from a layout directory.

    Raises:
        NotFoundError: there is no layout in the directory.
    """

    def __init__(self, reference: ImageReference, options: SourceOptions) -> None:
        super().__init__(reference, options)
        self._directory = reference.path
        if not os.path.isfile(os.path.join(self._directory, "index.json")):
            raise NotFoundError(
                f"there is no OCI layout in '{self._directory}'",
                hint="give the directory that has index.json: oci:DIRECTORY:TAG",
            )

    def read_manifest(self, descriptor: Descriptor | None = None) -> ManifestBytes:
        """Read the tagged manifest, or a certain one."""
        chosen = descriptor or self._find_tagged()
        if chosen.size > MAX_MANIFEST_SIZE:
            raise ImageError(f"a manifest of '{self.reference}' has {chosen.size} bytes")
        with self.open_blob(chosen) as blob:
            return ManifestBytes(blob.read_all(), chosen.media_type, chosen.digest)

    @contextlib.contextmanager
    def open_blob(self, descriptor: Descriptor) -> Iterator[BlobReader]:
        """Open a blob file."""
        digest = descriptor.digest
        path = os.path.join(self._directory, "blobs", digest.algorithm, digest.hex)
        try:
            # Not blocking: a FIFO in a hostile layout must not hang us.
            with files.translated("cannot read"):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except BootwrightError as exc:
            if not isinstance(exc.__cause__, FileNotFoundError):
                raise
            raise NotFoundError(
                f"the layout '{self._directory}' has no blob '{digest}'",
                hint="the layout is not complete; copy it again",
            ) from exc
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ImageError(f"the blob '{path}' is no regular file")

            def read(size: int) -> bytes:
                with files.translated(f"cannot read '{path}'"):
                    return os.read(fd, size)

            yield BlobReader(read, descriptor, what=f"blob '{digest}' in '{self._directory}'")
        finally:
            os.close(fd)

    def _find_tagged(self) -> Descriptor:
        index = read_index(self._directory)
        tag = self.reference.tag
        present = sorted({name for entry in index.manifests if (name := _get_tag(entry))})
        if tag is None:
            if len(index.manifests) == 1:
                return index.manifests[0]
            raise NotFoundError(
                f"the layout '{self._directory}' has {len(index.manifests)} images and no tag was given",
                hint=_list_tags(self._directory, present),
            )
        matches = [entry for entry in index.manifests if _get_tag(entry) == tag]
        if not matches:
            raise NotFoundError(
                f"the layout '{self._directory}' has no tag '{tag}'", hint=_list_tags(self._directory, present)
            )
        if len({entry.digest_text for entry in matches}) > 1:
            raise ImageError(f"the layout '{self._directory}' has more than one image with the tag '{tag}'")
        return matches[0]


class LayoutWriter:
    """Writes images into a layout directory, which is created when missing.

    Blobs first, all made durable by one sync, then index.json: after a crash the old index is there, with blobs
    nobody refers to at worst.

    Args:
        directory: of the layout; its parent must exist.

    Raises:
        BootwrightError: it cannot be created or written.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._blobs = os.path.join(directory, "blobs", "sha256")
        with files.translated("cannot create the OCI layout"):
            os.makedirs(self._blobs, exist_ok=True)
            files.replace_durably(os.path.join(directory, "oci-layout"), _LAYOUT)

    def has_blob(self, digest: Digest, size: int) -> bool:
        """Tell whether a blob of that length is there already."""
        try:
            return os.stat(self._path(digest)).st_size == size
        except FileNotFoundError:
            return False

    def write_blob(self, data: bytes) -> Digest:
        """Write a small blob and return its digest."""
        digest = Digest.of(data)
        self.write_blob_pieces([data], expected=digest)
        return digest

    def write_blob_pieces(self, pieces: Iterable[bytes], *, expected: Digest | None = None) -> tuple[Digest, int]:
        """Write a blob that arrives in pieces.

        Returns:
            Its digest and its length in bytes.

        Raises:
            VerificationError: it has another digest than ``expected``; nothing is left behind.
            BootwrightError: it cannot be written.
        """
        kind = expected or Digest("sha256", "")
        content = kind.new_hash()
        size = 0
        temporary = os.path.join(self._blobs, files.temporary_name())
        with files.translated("cannot write a blob"):
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                try:
                    for piece in pieces:
                        content.update(piece)
                        size += len(piece)
                        files.write_all(fd, piece)
                finally:
                    os.close(fd)
                digest = Digest(kind.algorithm, content.hexdigest())
                if expected is not None:
                    expected.check_hex(digest.hex, what="the blob to be written")
                os.makedirs(os.path.dirname(self._path(digest)), exist_ok=True)
                os.rename(temporary, self._path(digest))
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
        return digest, size

    def publish(self, manifest: Descriptor, tag: str | None) -> None:
        """Make everything written durable and name a manifest in index.json; an older one of that tag is replaced.

        Raises:
            ImageError: the index.json that is there is malformed.
            BootwrightError: it cannot be written.
        """
        path = os.path.join(self._directory, "index.json")
        old = read_index(self._directory) if os.path.exists(path) else Index(2, [])
        kept = [
            entry
            for entry in old.manifests
            if (_get_tag(entry) != tag if tag else entry.digest_text != manifest.digest_text or _get_tag(entry))
        ]
        annotations = {key: value for key, value in (manifest.annotations or {}).items() if key != REF_NAME}
        if tag:
            annotations[REF_NAME] = tag
        added = msgspec.structs.replace(manifest, annotations=annotations or None)
        entries = [_to_json(entry) for entry in (*kept, added)]
        document: dict[str, object] = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        if old.annotations:
            document["annotations"] = old.annotations
        with files.translated("cannot write the OCI layout"):
            files.sync_filesystem(self._directory)
            files.replace_durably(path, msgspec.json.encode(document))

    def _path(self, digest: Digest) -> str:
        return os.path.join(self._directory, "blobs", digest.algorithm, digest.hex)


def read_index(directory: str) -> Index:
    """Read the index.json of a layout.

    Raises:
        ImageError: malformed, too large or no index.
        BootwrightError: it cannot be read.
    """
    what = f"index.json of the layout '{directory}'"
    with files.translated("cannot read"), open(os.path.join(directory, "index.json"), "rb") as file:
        data = file.read(MAX_MANIFEST_SIZE + 1)
    index = parse_manifest(data, what=what)
    if not isinstance(index, Index):
        raise ImageError(f"{what} is no index")
    for entry in index.manifests:
        if entry.media_type not in (*MANIFEST_TYPES, *INDEX_TYPES) and _get_tag(entry):
            # Other things may lie in a layout; with a tag they would be taken for an image.
            raise ImageError(f"{what} names '{_get_tag(entry)}' of the unknown type '{entry.media_type[:100]}'")
    return index


def _get_tag(entry: Descriptor) -> str | None:
    return (entry.annotations or {}).get(REF_NAME)


def _list_tags(directory: str, present: list[str]) -> str:
    if not present:
        return f"its images have no tags; with one image in it, oci:{directory} is enough"
    return f"it has: {', '.join(present[:20])}; write oci:{directory}:{present[0]}"


def _to_json(entry: Descriptor) -> dict[str, object]:
    """Return a descriptor as JSON fields, leaving out what is not set."""
    document: dict[str, object] = {"mediaType": entry.media_type, "digest": entry.digest_text, "size": entry.size}
    if entry.annotations:
        document["annotations"] = entry.annotations
    if entry.platform:
        document["platform"] = {key: value for key, value in msgspec.structs.asdict(entry.platform).items() if value}
    if entry.artifact_type:
        document["artifactType"] = entry.artifact_type
    return document
