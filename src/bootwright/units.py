"""Sizes and durations: parse what people type, format what they read. Pure."""

from __future__ import annotations

import re

from bootwright.errors import UsageError

__all__ = ["format_duration", "format_size", "parse_size"]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(i?B)?", re.IGNORECASE)
_POWER = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


def parse_size(text: str) -> int:
    """Parse ``8G``, ``512M``, ``1.5GiB`` or plain bytes; units are powers of 1024.

    Raises:
        UsageError: the text is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"'{text}' is not a size", hint="write bytes or a number with K, M, G or T: 512M, 8G")
    return int(float(match[1]) * 1024 ** _POWER[match[2].upper()])


def format_size(size_bytes: float) -> str:
    """Format a size for people: ``999 B``, ``1.2 MB``, ``640 MB`` (powers of 1000, three digits)."""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def format_duration(seconds: float) -> str:
    """Format a duration for people: ``0.4 s``, ``12 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
