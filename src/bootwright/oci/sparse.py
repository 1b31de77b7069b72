"""GNU sparse files in tar archives: where the data lies, and the content with its holes filled. Pure.

Four ways to say it (GNU tar manual, "Storing Sparse Files"): the old GNU header (type ``S``) with four pairs and
extension blocks of 21 pairs; PAX 0.0 (repeated records), 0.1 (one record with all numbers) and 1.0 (numbers in front
of the data). Functions raise :class:`ValueError` with a reason, to which the reader adds the name of the entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from bootwright.errors import ImageError
from bootwright.oci.tar_entry import SparseMap
from bootwright.oci.tar_fields import PaxRecords, parse_decimal, parse_number

__all__ = ["MAX_SPARSE_SIZE", "check_map", "expand_holes", "read_old_map", "read_pax_map"]

MAX_SPARSE_SIZE = 1 << 38
"""Largest file with holes, in bytes: the zeros cost time, and a few bytes of archive can ask for any number."""

_MAX_PIECES = 1 << 18
_MAX_MAP_BYTES = 16 << 20
_ZEROS = bytes(1 << 18)


def read_old_map(header: bytes, read_block: Callable[[], bytes]) -> tuple[SparseMap, int]:
    """Read the map of an old GNU sparse header.

    Args:
        header: the 512 bytes of type ``S``.
        read_block: returns the next block of the archive, for the extension headers.

    Returns:
        The map, and the size of the file in bytes.

    Raises:
        ValueError: malformed or without end.
    """
    pieces: SparseMap = []
    size = parse_number(header[483:495])
    _add_pairs(pieces, header[386:482])
    is_extended = header[482]
    while is_extended:
        if len(pieces) > _MAX_PIECES:
            raise ValueError(f"has more than {_MAX_PIECES} sparse pieces")
        block = read_block()
        before = len(pieces)
        _add_pairs(pieces, block[:504])
        is_extended = block[504]
        if is_extended and len(pieces) == before:
            raise ValueError("has an empty sparse extension header")
    return pieces, size


def read_pax_map(records: PaxRecords, stored_size: int, read: Callable[[int], bytes]) -> tuple[SparseMap, int, int]:
    """Read the map of a PAX sparse entry of any of the three formats.

    Args:
        records: of the entry.
        stored_size: bytes that follow the header in the archive.
        read: returns exactly so many bytes that follow the header (format 1.0 keeps the map there).

    Returns:
        The map, the size of the file, and how many bytes were read for the map.

    Raises:
        ValueError: malformed.
    """
    values = records.values
    size_text = values.get(b"GNU.sparse.realsize") or values.get(b"GNU.sparse.size")
    if size_text is None:
        raise ValueError("has a sparse map but no size")
    size = parse_decimal(size_text, "sparse size")
    if values.get(b"GNU.sparse.major", b"0") != b"0":
        if (values[b"GNU.sparse.major"], values.get(b"GNU.sparse.minor", b"0")) != (b"1", b"0"):
            raise ValueError("has a sparse format that is not known")
        pieces, used = _read_leading_map(stored_size, read)
        return pieces, size, used
    if b"GNU.sparse.map" in values:
        texts = values[b"GNU.sparse.map"].split(b",")
        if len(texts) > 2 * _MAX_PIECES or len(texts) % 2:
            raise ValueError("has a sparse map that is too long or not made of pairs")
        numbers = [parse_decimal(text, "sparse map entry") for text in texts]
        return list(zip(numbers[::2], numbers[1::2], strict=True)), size, 0
    return _pair_up(records.sparse_pairs), size, 0


def check_map(pieces: SparseMap, size: int, stored_size: int) -> None:
    """Require that the pieces lie in order inside the file and are what is stored.

    Raises:
        ValueError: they overlap, run backwards, leave the file, or are not ``stored_size`` bytes together.
    """
    if not 0 <= size <= MAX_SPARSE_SIZE:
        raise ValueError(f"has the sparse size {size}, more than {MAX_SPARSE_SIZE >> 30} GiB")
    end = total = 0
    for offset, length in pieces:
        if offset < end or length < 0 or offset + length > size:
            raise ValueError("has a sparse map that overlaps, runs backwards or leaves the file")
        end = offset + length
        total += length
    if total != stored_size:
        raise ValueError(f"has a sparse map of {total} bytes but {stored_size} bytes of data")


def expand_holes(pieces: SparseMap, size: int, body: Iterable[bytes], *, what: str) -> Iterator[bytes]:
    """Yield the real content of a sparse file, holes as zeros, in pieces of bounded size.

    Args:
        pieces: offset and length of each piece of data, checked by :func:`check_map`.
        size: of the file in bytes.
        body: the stored bytes.
        what: names the entry in messages.

    Raises:
        ImageError: the stored bytes end early.
    """
    stored = iter(body)
    rest = b""
    position = 0
    for offset, length in pieces:
        yield from _zeros(offset - position)
        left = length
        while left:
            if not rest:
                rest = next(stored, b"")
                if not rest:
                    raise ImageError(f"{what} ends in the middle of its data")
            part, rest = (rest, b"") if len(rest) <= left else (rest[:left], rest[left:])
            left -= len(part)
            yield part
        position = offset + length
    yield from _zeros(size - position)


def _zeros(count: int) -> Iterator[bytes]:
    while count >= len(_ZEROS):
        yield _ZEROS
        count -= len(_ZEROS)
    if count:
        yield _ZEROS[:count]


def _add_pairs(pieces: SparseMap, fields: bytes) -> None:
    for at in range(0, len(fields), 24):
        # An empty pair ends the list.
        if not fields[at]:
            return
        pieces.append((parse_number(fields[at : at + 12]), parse_number(fields[at + 12 : at + 24])))


def _pair_up(pairs: list[tuple[bytes, int]]) -> SparseMap:
    if len(pairs) % 2 or len(pairs) > 2 * _MAX_PIECES:
        raise ValueError("has a sparse map that is too long or not made of pairs")
    pieces: SparseMap = []
    for (offset_key, offset), (length_key, length) in zip(pairs[::2], pairs[1::2], strict=True):
        if offset_key != b"GNU.sparse.offset" or length_key != b"GNU.sparse.numbytes":
            raise ValueError("has a sparse map that is not made of pairs")
        pieces.append((offset, length))
    return pieces


def _read_leading_map(stored_size: int, read: Callable[[int], bytes]) -> tuple[SparseMap, int]:
    """Read lines (count, then offset and length of each piece), padded to a block, from in front of the data."""
    text = b""
    numbers: list[int] = []
    used = 0
    wanted = 1
    while len(numbers) < wanted:
        if used + 512 > min(stored_size, _MAX_MAP_BYTES):
            raise ValueError("has a sparse map that does not end")
        *lines, text = (text + read(512)).split(b"\n")
        used += 512
        for line in lines:
            if len(numbers) == wanted:
                break
            numbers.append(parse_decimal(line, "sparse map entry"))
            if len(numbers) == 1:
                if numbers[0] > _MAX_PIECES:
                    raise ValueError(f"has more than {_MAX_PIECES} sparse pieces")
                wanted = 1 + 2 * numbers[0]
        if len(text) > 20 and len(numbers) < wanted:
            # What is left may be padding once the map is complete, but never a number.
            raise ValueError("has a sparse map with a number that is too long")
    return list(zip(numbers[1::2], numbers[2::2], strict=True)), used
