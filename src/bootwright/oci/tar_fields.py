"""The fields of tar headers: numbers, names, PAX records. Pure.

Formats: POSIX.1-2024 pax interchange format and ustar; GNU tar manual, "Basic Tar Format" (base-256 numbers); the
``SCHILY.*`` records of star and ``LIBARCHIVE.*`` of libarchive. Everything here is hostile input: functions raise
:class:`ValueError` with a reason, to which the reader adds the name of the entry.
"""

from __future__ import annotations

import base64
import binascii
import urllib.parse

__all__ = [
    "MAX_NAME",
    "PaxRecords",
    "check_name_length",
    "clean_name",
    "cut",
    "parse_decimal",
    "parse_number",
    "parse_time",
]

MAX_NAME = 4096
_MAX_COMPONENT = 255
_MAX_DEPTH = 256
_MAX_XATTRS = 512
_MAX_XATTR_NAME = 255
_MAX_XATTR_VALUE = 65536
_MAX_INT = (1 << 63) - 1

_SCHILY_XATTR = b"SCHILY.xattr."
_LIBARCHIVE_XATTR = b"LIBARCHIVE.xattr."
_SPARSE = b"GNU.sparse."
# Values in which a NUL byte can only be an attempt to be read differently by others.
_TEXT_KEYS = frozenset({b"path", b"linkpath", b"GNU.sparse.name"})


def cut(field: bytes) -> bytes:
    """Return a header field up to its first NUL."""
    return field.split(b"\0", 1)[0]


def parse_number(field: bytes) -> int:
    """Parse a numeric header field: octal text, or base-256 when the top bit is set.

    Raises:
        ValueError: neither.
    """
    first = field[0]
    if first & 0x80:
        value = int.from_bytes(field, "big")
        bits = 8 * len(field)
        # The top bit is the mark; the one below it is the sign.
        return value - (1 << bits) if first & 0x40 else value - (1 << (bits - 1))
    # Spaces may lead, spaces and NULs may follow; an empty field counts as zero.
    text = field.split(b"\0", 1)[0].strip(b" ")
    if not text:
        return 0
    if text.translate(None, b"01234567"):
        raise ValueError(f"has the number {field!r}")
    return int(text, 8)


def parse_decimal(text: bytes, what: str) -> int:
    """Parse a PAX value that is a number of at least 0 and less than 2⁶³.

    Raises:
        ValueError: it is not.
    """
    if not text.isdigit() or len(text) > 19 or (value := int(text)) > _MAX_INT:
        raise ValueError(f"has the {what} {text[:40]!r}")
    return value


def parse_time(text: bytes) -> tuple[int, int]:
    """Parse a PAX time, seconds since 1970 with an optional fraction, into seconds and nanoseconds (0 … 10⁹-1).

    Raises:
        ValueError: it is no time or does not fit 64 bits.
    """
    whole, _, fraction = text.partition(b".")
    is_negative = whole.startswith(b"-")
    digits = whole[1:] if is_negative else whole
    if not digits.isdigit() or len(digits) > 19 or (fraction and not fraction.isdigit()) or len(fraction) > 100:
        raise ValueError(f"has the time {text[:40]!r}")
    seconds, nanoseconds = int(digits), int(fraction[:9].ljust(9, b"0"))
    if is_negative:
        seconds = -seconds
        if nanoseconds:
            seconds, nanoseconds = seconds - 1, 1_000_000_000 - nanoseconds
    if not -_MAX_INT <= seconds <= _MAX_INT:
        raise ValueError(f"has the time {text[:40]!r}")
    return seconds, nanoseconds


def clean_name(name: bytes) -> bytes:
    """Return a path inside the image without leading ``/`` and ``./`` and without trailing ``/``; the root is ``b""``.

    Raises:
        ValueError: empty, too long, too deep, or with a ``..`` that could lead outside.
    """
    if not name:
        raise ValueError("has no name")
    if len(name) > _MAX_COMPONENT:
        check_name_length(name)
    if name.startswith(b"./"):
        name = name[2:]
    if name.endswith(b"/"):
        name = name[:-1]
    # Nearly every name is clean now; only what might not be is taken apart.
    if b"/." in name or b"//" in name or name[:1] in (b"/", b".") or name.endswith(b"/"):
        parts = [part for part in name.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise ValueError("would leave the image with '..'")
        return b"/".join(parts)
    return name


def check_name_length(name: bytes) -> None:
    """Require that a path fits what Linux can have.

    Raises:
        ValueError: it does not.
    """
    if len(name) > MAX_NAME:
        raise ValueError(f"has a name of {len(name)} bytes")
    if any(len(part) > _MAX_COMPONENT for part in name.split(b"/")):
        raise ValueError(f"has a name component of more than {_MAX_COMPONENT} bytes")
    if name.count(b"/") > _MAX_DEPTH:
        raise ValueError(f"is more than {_MAX_DEPTH} directories deep")


class PaxRecords:
    """The records of one PAX extended header.

    Attributes:
        values: key → value of everything that is not listed below. A record without a value is left out: it means
            "as if the record were not there".
        xattrs: attribute name → value, from ``SCHILY.xattr.*`` and, where that has none, ``LIBARCHIVE.xattr.*``.
        sparse_pairs: numbers of ``GNU.sparse.offset`` and ``GNU.sparse.numbytes`` in their order (format 0.0, which
            repeats its keys).
    """

    __slots__ = ("sparse_pairs", "values", "xattrs")

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.xattrs: dict[bytes, bytes] = {}
        self.sparse_pairs: list[tuple[bytes, int]] = []

    @classmethod
    def parse(cls, data: bytes) -> PaxRecords:
        """Parse the body of an extended header: records of the form ``<length> <key>=<value>``, each on a line.

        Raises:
            ValueError: a record whose length lies, or a value that cannot be.
        """
        records = cls()
        fallback: dict[bytes, bytes] = {}
        position, end = 0, len(data)
        while position < end:
            space = data.find(b" ", position, position + 20)
            digits = data[position:space] if space > 0 else b""
            if not digits.isdigit():
                # Some writers pad with NULs to the block.
                if not data[position:].strip(b"\0"):
                    break
                raise ValueError("has a PAX record without a length")
            stop = position + int(digits)
            if stop > end or stop <= space + 1 or data[stop - 1] != 0x0A:
                raise ValueError("has a PAX record with a wrong length")
            key, equals, value = data[space + 1 : stop - 1].partition(b"=")
            if not equals or not key:
                raise ValueError("has a PAX record without a key")
            records._add(key, value, fallback)
            position = stop
        for key, value in fallback.items():
            records.xattrs.setdefault(key, value)
        if len(records.xattrs) > _MAX_XATTRS:
            raise ValueError(f"has more than {_MAX_XATTRS} extended attributes")
        return records

    def _add(self, key: bytes, value: bytes, fallback: dict[bytes, bytes]) -> None:
        if key.startswith(_SCHILY_XATTR):
            _check_xattr(name := key[len(_SCHILY_XATTR) :], value)
            self.xattrs[name] = value
        elif key.startswith(_LIBARCHIVE_XATTR):
            name = urllib.parse.unquote_to_bytes(key[len(_LIBARCHIVE_XATTR) :])
            value = _decode_base64(value)
            _check_xattr(name, value)
            fallback[name] = value
        elif key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            self.sparse_pairs.append((key, parse_decimal(value, "sparse map entry")))
        elif not value:
            self.values.pop(key, None)
        else:
            if key in _TEXT_KEYS and b"\0" in value:
                raise ValueError(f"has a NUL byte in its {key.decode()}")
            self.values[key] = value

    @property
    def is_sparse(self) -> bool:
        """Whether the entry is a GNU sparse file of one of the PAX formats."""
        return bool(self.sparse_pairs) or any(key.startswith(_SPARSE) for key in self.values)


def _check_xattr(name: bytes, value: bytes) -> None:
    if not name or b"\0" in name or len(name) > _MAX_XATTR_NAME:
        raise ValueError(f"has an extended attribute with the name {name[:60]!r}")
    if len(value) > _MAX_XATTR_VALUE:
        raise ValueError(f"has an extended attribute of {len(value)} bytes")


def _decode_base64(value: bytes) -> bytes:
    # libarchive writes no padding.
    try:
        return base64.b64decode(value.rstrip(b"=") + b"=" * (-len(value.rstrip(b"=")) % 4), validate=True)
    except binascii.Error as exc:
        raise ValueError("has an extended attribute that is not base64") from exc
