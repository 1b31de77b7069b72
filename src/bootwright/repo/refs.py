"""Names in a repository: streams, images, and the references that keep them from being collected.

::

    streams/oci-manifest-sha256:<hex>   -> ../objects/xx/rest      a manifest, and by its names all that belongs to it
    streams/oci-config-sha256:<hex>     -> ../objects/xx/rest      a config; names its layers and images
    streams/oci-layer-sha256:<hex>      -> ../objects/xx/rest      a layer, by its diff id
    streams/refs/oci/NAME               -> ../../oci-manifest-…    a tag: a root of garbage collection
    images/<hex>                        -> ../objects/xx/rest      an EROFS image
    images/refs/…                       -> …/<hex>                 a root of garbage collection, made by other tools

A tag's file name is the tag with ``%`` as ``%25`` and ``/`` as ``%2F``; a tag has no ``@``. Every link is replaced by
a rename, so a reader sees the old or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from urllib.parse import unquote

from bootwright.digest import Digest, VerityDigest
from bootwright.errors import RepositoryError, UsageError, VerificationError
from bootwright.linux import files

__all__ = ["References", "config_stream", "decode_tag", "encode_tag", "layer_stream", "manifest_stream"]

_OBJECT = re.compile(r"(?:.*/)?([0-9a-f]{2})/([0-9a-f]{62}|[0-9a-f]{126})")
_NAME_MAX = 255


def manifest_stream(digest: Digest) -> str:
    """Name the stream of a manifest."""
    return f"oci-manifest-{digest}"


def config_stream(digest: Digest) -> str:
    """Name the stream of a config."""
    return f"oci-config-{digest}"


def layer_stream(diff_id: Digest) -> str:
    """Name the stream of a layer, by the digest of its uncompressed tar."""
    return f"oci-layer-{diff_id}"


def encode_tag(name: str) -> str:
    """Return the file name of a tag.

    Raises:
        UsageError: the name is empty, too long, or has a character that no tag has.
    """
    encoded = name.replace("%", "%25").replace("/", "%2F")
    if not name or "@" in name or not name.isprintable() or encoded in (".", ".."):
        raise UsageError(f"'{name[:100]}' cannot be the name of an image", hint="a name has no '@' and is printable")
    if len(os.fsencode(encoded)) > _NAME_MAX or encoded.startswith(files.TEMPORARY_PREFIX):
        raise UsageError(f"the name '{name[:60]}…' is too long or reserved", hint="choose a shorter name with --tag")
    return encoded


def decode_tag(file_name: str) -> str:
    """Return the tag of a file name."""
    return unquote(file_name, errors="surrogateescape")


class References:
    """The ``streams`` and ``images`` directories of a repository.

    Args:
        path: of the repository.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def read_tags(self) -> dict[str, str]:
        """Return every tag with the name of its manifest stream, sorted; foreign files are passed over."""
        directory = os.path.join(self._path, "streams", "refs", "oci")
        tags: dict[str, str] = {}
        with contextlib.suppress(FileNotFoundError):
            for file_name in sorted(os.listdir(directory)):
                target = _read_link(os.path.join(directory, file_name))
                if target is not None and not file_name.startswith(files.TEMPORARY_PREFIX):
                    tags[decode_tag(file_name)] = os.path.basename(target)
        return tags

    def find_tag(self, name: str) -> str | None:
        """Return the name of the manifest stream that a tag refers to, or None."""
        target = _read_link(os.path.join(self._path, "streams", "refs", "oci", encode_tag(name)))
        return None if target is None else os.path.basename(target)

    def write_tag(self, name: str, stream: str) -> None:
        """Create or replace a tag; what it refers to must be durable already.

        Raises:
            UsageError: the name cannot be a tag.
        """
        directory = os.path.join(self._path, "streams", "refs", "oci")
        file_name = encode_tag(name)
        with files.translated(f"could not write the name '{name}'"):
            os.makedirs(directory, exist_ok=True)
            files.replace_symlink(f"../../{stream}", os.path.join(directory, file_name))

    def remove_tag(self, name: str) -> bool:
        """Remove a tag durably; False when there was none."""
        directory = os.path.join(self._path, "streams", "refs", "oci")
        with files.translated(f"could not remove the name '{name}'"):
            try:
                os.unlink(os.path.join(directory, encode_tag(name)))
            except FileNotFoundError:
                return False
            files.fsync_directory(directory)
        return True

    def find_stream(self, name: str) -> VerityDigest | None:
        """Return the object that holds a stream, or None.

        Raises:
            RepositoryError: the link does not lead to an object.
        """
        return _parse_link(os.path.join(self._path, "streams", name))

    def read_streams(self) -> dict[str, VerityDigest | None]:
        """Return every stream with its object; None where the link is broken."""
        return dict(_read_links(os.path.join(self._path, "streams")))

    def read_images(self) -> dict[str, VerityDigest | None]:
        """Return every image link with its object; None where the link is broken."""
        return dict(_read_links(os.path.join(self._path, "images")))

    def has_image(self, digest: VerityDigest) -> bool:
        """Tell whether an object is known as an image."""
        return os.path.lexists(os.path.join(self._path, "images", digest.hex))

    def link_streams(self, streams: Iterable[tuple[str, VerityDigest]]) -> None:
        """Publish streams, then make the links durable together. The objects must be durable already."""
        self._link("streams", streams)

    def link_images(self, images: Iterable[VerityDigest]) -> None:
        """Publish images, then make the links durable together. The objects must be durable already."""
        self._link("images", ((digest.hex, digest) for digest in images))

    def remove_links(self, kind: str, names: Iterable[str]) -> None:
        """Remove links below ``streams`` or ``images``, then make that durable."""
        directory = os.path.join(self._path, kind)
        with files.translated(f"could not remove from '{directory}'"):
            for name in names:
                os.unlink(os.path.join(directory, name))
            files.fsync_directory(directory)

    def remove_leftovers(self) -> None:
        """Remove the temporary names that a crash left among the links; nobody else may be writing."""
        for kind in ("streams", "images"):
            for directory, _, names in os.walk(os.path.join(self._path, kind)):
                for name in names:
                    if name.startswith(files.TEMPORARY_PREFIX):
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(os.path.join(directory, name))

    def read_roots(self, kind: str) -> Iterator[tuple[str, str]]:
        """Yield every reference below ``streams/refs`` or ``images/refs``: its path there and what it names."""
        top = os.path.join(self._path, kind, "refs")
        for directory, _, names in os.walk(top):
            for name in names:
                path = os.path.join(directory, name)
                target = _read_link(path)
                if target is not None and not name.startswith(files.TEMPORARY_PREFIX):
                    yield os.path.relpath(path, top), os.path.basename(target)

    def _link(self, kind: str, links: Iterable[tuple[str, VerityDigest]]) -> None:
        directory = os.path.join(self._path, kind)
        with files.translated(f"could not write to '{directory}'"):
            changed = False
            for name, digest in links:
                path = os.path.join(directory, name)
                target = f"../objects/{digest.object_path}"
                if _read_link(path) == target:
                    continue
                files.replace_symlink(target, path, durable=False)
                changed = True
            if changed:
                files.fsync_directory(directory)


def _read_link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.EINVAL, errno.ENOTDIR, errno.ENAMETOOLONG):
            return None
        raise


def _parse_link(path: str) -> VerityDigest | None:
    target = _read_link(path)
    if target is None:
        return None
    match = _OBJECT.fullmatch(target)
    if not match:
        raise RepositoryError(f"the link '{path}' leads to '{target[:200]}', which is no object")
    return VerityDigest.parse(match[1] + match[2])


def _read_links(directory: str) -> Iterator[tuple[str, VerityDigest | None]]:
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        if name.startswith(files.TEMPORARY_PREFIX) or not os.path.islink(path):
            continue
        try:
            yield name, _parse_link(path)
        except (RepositoryError, VerificationError):
            yield name, None
