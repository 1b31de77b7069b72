"""xxHash, 32 bits (xxhash.com, "XXH32 algorithm description"): EROFS uses it for the filter of xattr names. Pure."""

from __future__ import annotations

import struct

__all__ = ["xxh32"]

_P1, _P2, _P3, _P4, _P5 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1
_MASK = 0xFFFFFFFF


def _rotate(value: int, bits: int) -> int:
    value &= _MASK
    return (value << bits | value >> (32 - bits)) & _MASK


def xxh32(data: bytes, seed: int) -> int:
    """Hash a short byte string; the seed and the result have 32 bits."""
    whole = len(data) & ~15
    if whole:
        lanes = [seed + _P1 + _P2, seed + _P2, seed, seed - _P1]
        for stripe in struct.iter_unpack("<4I", data[:whole]):
            lanes = [_rotate(lane + word * _P2, 13) * _P1 & _MASK for lane, word in zip(lanes, stripe, strict=True)]
        value = sum(_rotate(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True))
    else:
        value = seed + _P5
    value += len(data)
    words = len(data) & ~3
    for (word,) in struct.iter_unpack("<I", data[whole:words]):
        value = _rotate(value + word * _P3, 17) * _P4
    for byte in data[words:]:
        value = _rotate(value + byte * _P5, 11) * _P1
    value &= _MASK
    value = (value ^ value >> 15) * _P2 & _MASK
    value = (value ^ value >> 13) * _P3 & _MASK
    return value ^ value >> 16
