r"""Escaped text of the composefs dump format: ``\\ \n \r \t \xHH``. Pure."""

from __future__ import annotations

import re

__all__ = ["EscapeError", "escape", "escape_xattr", "unescape"]

_LETTERS = {b"\\\\": b"\\", b"\\n": b"\n", b"\\r": b"\r", b"\\t": b"\t"}
_HEX_DIGITS = b"0123456789abcdefABCDEF"
_MEANINGS = _LETTERS | {
    b"\\x%c%c" % (high, low): bytes((int(b"%c%c" % (high, low), 16),)) for high in _HEX_DIGITS for low in _HEX_DIGITS
}
_ESCAPE = re.compile(rb"\\(?:x..|.)?", re.DOTALL)

_SPELLINGS = {
    byte: {v: k for k, v in _LETTERS.items()}.get(bytes((byte,)), b"\\x%02x" % byte)
    for byte in range(256)
    if not 0x21 <= byte <= 0x7E or byte == 0x5C
}
_SPECIAL = re.compile(rb"[^\x21-\x5b\x5d-\x7e]")


class EscapeError(ValueError):
    """A backslash that starts no known escape."""


def unescape(text: bytes) -> bytes:
    """Resolve the escapes of a field.

    Raises:
        EscapeError: unknown, short or dangling escape.
    """
    try:
        return _ESCAPE.sub(lambda match: _MEANINGS[match[0]], text)
    except KeyError as exc:
        raise EscapeError(f"bad escape '{exc.args[0].decode('ascii', 'backslashreplace')}'") from exc


def _spelling(match: re.Match[bytes]) -> bytes:
    return _SPELLINGS[match[0][0]]


def escape(text: bytes) -> bytes:
    """Write a path, payload, target or content: everything but visible ASCII is escaped."""
    return _SPECIAL.sub(_spelling, text)


def escape_xattr(text: bytes) -> bytes:
    """Write an xattr key or value: like :func:`escape`, and ``=`` as well."""
    return _SPECIAL.sub(_spelling, text).replace(b"=", b"\\x3d")
