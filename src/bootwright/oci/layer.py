"""Layers: from a compressed blob to plain tar bytes and entries, streaming.

The media type of a layer is not believed about its compression: mislabelled layers exist, so the first bytes decide,
as they do for other clients. The plain bytes are hashed on their way; their digest is the layer's diff id.
"""

from __future__ import annotations

from typing import IO, Protocol, cast

import zstandard
from isal import igzip_lib, isal_zlib

from bootwright.digest import Digest
from bootwright.errors import ImageError
from bootwright.oci.archive import EntryType, TarEntry, TarReader, expand_sparse

__all__ = ["EntryType", "LayerReader", "TarEntry", "TarReader", "expand_sparse", "open_layer"]

_READ_SIZE = 1 << 18
_OUTPUT_SIZE = 1 << 20
_MAX_ZSTD_WINDOW = 128 << 20

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# isal's annotation says that it is an exception, not a class of them.
_IsalError = cast("type[Exception]", isal_zlib.error)
_FOREIGN_MAGICS = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x04\x22\x4d\x18": "lz4"}

_LAYER_TYPES = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
)


class _Blob(Protocol):
    """What a layer is read from: a :class:`~bootwright.oci.source.BlobReader` or any object with its ``read``."""

    def read(self, size: int = ..., /) -> bytes: ...


class _Decoder(Protocol):
    def read(self, size: int, /) -> bytes: ...


class LayerReader:
    """Plain tar bytes of a layer, in bounded memory.

    At the end the compressed blob has been read to its end too, so that its digest was checked.

    Attributes:
        bytes_read: plain bytes so far.
    """

    def __init__(self, decoder: _Decoder, diff_id: Digest | None, what: str) -> None:
        self.bytes_read = 0
        self._decoder = decoder
        self._diff_id = diff_id
        self._hash = (diff_id or Digest("sha256", "")).new_hash()
        self._what = what
        self._ended = False

    def read(self, size: int = _OUTPUT_SIZE) -> bytes:
        """Return the next bytes, at most ``size``; ``b""`` at the end.

        Raises:
            ImageError: the compressed stream is damaged, truncated or followed by something else.
            VerificationError: the plain bytes do not have the diff id, or the blob not its digest.
            NetworkError: the registry failed.
        """
        if self._ended:
            return b""
        data = self._decoder.read(size)
        if data:
            self._hash.update(data)
            self.bytes_read += len(data)
            return data
        if self._diff_id is not None:
            self._diff_id.check_hex(self._hash.hexdigest(), what=f"the content of {self._what}")
        self._ended = True
        return b""

    @property
    def hexdigest(self) -> str:
        """Hex digest of the plain bytes so far: sha256, or the algorithm of the diff id."""
        return self._hash.hexdigest()


def open_layer(blob: _Blob, media_type: str, *, diff_id: Digest | None = None, what: str | None = None) -> LayerReader:
    """Open a layer for reading as plain tar.

    Args:
        blob: the compressed bytes; read from here on.
        media_type: as the manifest says; it decides only whether this is a layer at all.
        diff_id: digest that the plain bytes must have; checked at their end.
        what: names the layer in messages; by default what the blob calls itself.

    Raises:
        ImageError: encrypted, no filesystem layer, or compressed in a way that is not supported.
        NetworkError: the registry failed.
    """
    what = what or str(getattr(blob, "what", "layer"))
    _check_media_type(media_type, what)
    start = b""
    while len(start) < 6 and (piece := blob.read(_READ_SIZE)):
        start += piece
    source = _Prefixed(start, blob)
    decoder: _Decoder
    if start.startswith(_GZIP_MAGIC):
        decoder = _GzipDecoder(source, what)
    elif start.startswith(_ZSTD_MAGIC) or (start[1:4] == b"\x2a\x4d\x18" and 0x50 <= start[0] <= 0x5F):
        decoder = _ZstdDecoder(source, what)
    else:
        for magic, name in _FOREIGN_MAGICS.items():
            if start.startswith(magic):
                raise ImageError(
                    f"{what} is compressed with {name}, which is not supported",
                    hint="push the image with gzip or zstd layers",
                )
        decoder = source
    return LayerReader(decoder, diff_id, what)


def _check_media_type(media_type: str, what: str) -> None:
    if media_type.endswith("+encrypted"):
        raise ImageError(f"{what} is encrypted, which is not supported", hint="use an image with plain layers")
    if not media_type.startswith(_LAYER_TYPES):
        raise ImageError(f"{what} is no filesystem layer but of the type '{media_type[:100]}'")


class _Prefixed:
    """Gives back what was read to look at it, then the rest."""

    def __init__(self, start: bytes, blob: _Blob) -> None:
        self._start = start
        self._blob = blob

    def read(self, size: int = _READ_SIZE, /) -> bytes:
        if self._start:
            data, self._start = self._start[:size], self._start[size:]
            return data
        return self._blob.read(size)

    def give_back(self, data: bytes) -> None:
        """Return what was read too far."""
        self._start = data + self._start


class _GzipDecoder:
    """gzip with any number of members (RFC 1952); zeros may follow the last one, as tapes and some tools pad."""

    def __init__(self, source: _Prefixed, what: str) -> None:
        self._source = source
        self._what = what
        self._member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)

    def read(self, size: int, /) -> bytes:
        while True:
            if self._member.eof and not self._next_member():
                return b""
            data = b""
            if self._member.needs_input:
                data = self._source.read(_READ_SIZE)
                if not data:
                    raise ImageError(
                        f"{self._what} ends inside its gzip stream",
                        hint="the layer is truncated; build or push the image again",
                    )
            try:
                plain: bytes = self._member.decompress(data, size)
            except (_IsalError, EOFError, ValueError) as exc:
                raise ImageError(f"{self._what} has a damaged gzip stream: {exc}") from exc
            if plain:
                return plain

    def _next_member(self) -> bool:
        """Start the next member; False at the end of the blob."""
        rest: bytes = self._member.unused_data or self._source.read(_READ_SIZE)
        while rest and rest[0] == 0:
            rest = rest.lstrip(b"\0")
            if rest:
                raise ImageError(f"{self._what} has something after the zeros that pad its gzip stream")
            rest = self._source.read(_READ_SIZE)
        if not rest:
            return False
        while len(rest) < 2 and (more := self._source.read(_READ_SIZE)):
            rest += more
        if not rest.startswith(_GZIP_MAGIC):
            raise ImageError(f"{self._what} has something after its gzip stream that is not gzip")
        self._member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        self._source.give_back(rest)
        return True


class _ZstdDecoder:
    """zstd with any number of frames, skippable ones among them (RFC 8878)."""

    def __init__(self, source: _Prefixed, what: str) -> None:
        self._what = what
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW)
        # Any object with read() will do, whatever the annotation says.
        readable = cast("IO[bytes]", source)
        self._stream = decompressor.stream_reader(readable, read_size=_READ_SIZE, read_across_frames=True)

    def read(self, size: int, /) -> bytes:
        try:
            return self._stream.read(size)
        except zstandard.ZstdError as exc:
            raise ImageError(f"{self._what} has a damaged zstd stream: {exc}") from exc
