"""The xattrs of all inodes of an image: which are shared, how each inode's area is encoded. Pure.

A (key, value) pair that two or more inodes have lies once in a shared table, and the inodes hold its number. Most
inodes of an operating system have the same few sets of xattrs, so sets are collected and encoded once, not per inode.
External files have two more xattrs each that are hardly ever the same (digest and object path); these are kept
apart from the sets and spliced in while the area is written.

Order of use: :meth:`XattrPlan.get_set` for every inode and :meth:`XattrPlan.count_external` once, then
:meth:`XattrPlan.share`, after which sizes are known; then :meth:`XattrPlan.place`, after which areas can be encoded.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable

from bootwright.erofs import disk
from bootwright.erofs.overlay import METACOPY, METACOPY_HEADERS, OVERLAY_PREFIX, REDIRECT, escaped
from bootwright.errors import ImageError

__all__ = ["AreaHead", "XattrPlan", "XattrSet", "external_xattrs"]

_Pair = tuple[bytes, bytes]
_ALL_ONES = 0xFFFFFFFF
_ACL_KEYS = frozenset((b"system.posix_acl_access", b"system.posix_acl_default"))
_SPLICED_BITS = {
    False: ~disk.filter_bit(METACOPY),
    True: ~(disk.filter_bit(METACOPY) | disk.filter_bit(REDIRECT)),
}
# Sets larger than this take the general way, where the limit on shared ids is looked at xattr by xattr.
_MAX_SPLICED = disk.MAX_SHARED - 2


def _check(xattrs: dict[bytes, bytes]) -> None:
    for key in xattrs:
        if not 0 < len(key) <= disk.MAX_NAME or b"\0" in key:
            raise ImageError(f"the xattr key {key[:80]!r} cannot be stored", hint="keys have 1 to 255 bytes, no NUL")
    if xattrs and 12 + sum(disk.xattr_cost(*pair) for pair in xattrs.items()) > disk.MAX_XATTR_TOTAL:
        raise ImageError(f"its xattrs are together larger than {disk.MAX_XATTR_TOTAL} bytes")


def _metacopy_value(digest: bytes | None) -> bytes:
    """Return what the metacopy xattr of an external file with this digest says."""
    return METACOPY_HEADERS[len(digest)] + digest if digest else b""


def _entry_start(key: bytes, length: int) -> bytes:
    """Encode an xattr up to its value."""
    index, suffix = disk.split_key(key)
    return disk.XATTR_ENTRY.pack(len(suffix), index, length) + suffix


# By length of the digest; digests need no padding.
_METACOPY_STARTS = {0: _entry_start(METACOPY, 0)} | {
    size: _entry_start(METACOPY, len(header) + size) + header for size, header in METACOPY_HEADERS.items()
}
_PADDING = (b"", b"\0", b"\0\0", b"\0\0\0")


def external_xattrs(digest: bytes | None, payload: bytes | None) -> dict[bytes, bytes]:
    """Return the xattrs that tell overlayfs where the bytes of a file are."""
    xattrs = {METACOPY: _metacopy_value(digest)}
    if payload:
        xattrs[REDIRECT] = b"/" + payload
    return xattrs


class AreaHead:
    """The start of a xattr area: filter, ids of shared xattrs, and those inline ones that come first."""

    __slots__ = ("_bits", "_inline", "_offsets", "encoded", "size")

    def __init__(self, bits: int, offsets: list[int], inline: bytes) -> None:
        self._bits = bits
        self._offsets = offsets
        self._inline = inline
        self.size = disk.XATTR_HEADER.size + 4 * len(offsets) + len(inline)
        self.encoded = b""

    def encode(self, base: int) -> None:
        """Encode it, ``base`` being the place of the shared table in its block."""
        ids = struct.pack(f"<{len(self._offsets)}I", *[(base + offset) >> 2 for offset in self._offsets])
        self.encoded = disk.XATTR_HEADER.pack(self._bits, len(self._offsets)) + ids + self._inline


class XattrSet:
    """The xattrs that many inodes have in common.

    ``size`` and ``encoded`` are the whole area of an inode that has just these. ``can_splice``: metacopy and redirect
    would be neighbours in key order, and their ids within the limit.
    """

    __slots__ = ("_after", "_before", "_bits", "_heads", "can_splice", "count", "encoded", "pairs", "size", "tail")

    def __init__(self, pairs: tuple[_Pair, ...]) -> None:
        self.pairs = pairs
        self.count = 0
        self.can_splice = len(pairs) <= _MAX_SPLICED and not any(key.startswith(OVERLAY_PREFIX) for key, _ in pairs)
        self.size = 0
        self.encoded = self.tail = b""
        # Offsets of shared pairs and encoded unshared ones, before and after the place of metacopy and redirect.
        self._before: tuple[list[int], bytes] = ([], b"")
        self._after: tuple[list[int], bytes] = ([], b"")
        self._heads: dict[tuple[int | None, int | None, bool | None], AreaHead] = {}
        self._bits = _ALL_ONES
        for key, _ in pairs:
            self._bits &= ~disk.filter_bit(key)

    def share(self, offsets: dict[_Pair, int]) -> None:
        """Divide the pairs into shared and inline ones."""
        split = sum(key < METACOPY for key, _ in self.pairs)
        self._before = _divide(self.pairs[:split], offsets, disk.MAX_SHARED)
        self._after = _divide(self.pairs[split:], offsets, disk.MAX_SHARED - len(self._before[0]))
        self.tail = self._after[1]
        if self.pairs:
            self.size = self.get_head(None, None, has_redirect=None).size + len(self.tail)

    def get_head(self, metacopy: int | None, redirect: int | None, *, has_redirect: bool | None) -> AreaHead:
        """Return the head of an area: of these xattrs alone, or (has_redirect is not None) of an external file.

        ``metacopy`` and ``redirect`` are offsets in the shared table, None when not shared.
        """
        key = metacopy, redirect, has_redirect
        head = self._heads.get(key)
        if head is None:
            own = [offset for offset in (metacopy, redirect) if offset is not None]
            bits = self._bits if has_redirect is None else self._bits & _SPLICED_BITS[has_redirect]
            head = AreaHead(bits, [*self._before[0], *own, *self._after[0]], self._before[1])
            self._heads[key] = head
        return head

    def encode(self, base: int) -> None:
        """Encode everything that holds ids, ``base`` being the place of the shared table in its block."""
        for head in self._heads.values():
            head.encode(base)
        if self.pairs:
            self.encoded = self.get_head(None, None, has_redirect=None).encoded + self.tail


def _divide(pairs: tuple[_Pair, ...], offsets: dict[_Pair, int], limit: int) -> tuple[list[int], bytes]:
    """Return the offsets of at most ``limit`` shared pairs, and the other ones encoded."""
    shared: list[int] = []
    inline: list[bytes] = []
    for pair in pairs:
        offset = offsets.get(pair)
        if offset is None or len(shared) >= limit:
            inline.append(disk.xattr_entry(*pair))
        else:
            shared.append(offset)
    return shared, b"".join(inline)


class XattrPlan:
    """All xattrs of an image."""

    def __init__(self) -> None:
        self.known: dict[tuple[_Pair, ...], XattrSet] = {}  # by an inode's xattrs as they are, in any order
        self._sets: dict[tuple[_Pair, ...], XattrSet] = {}
        self._digests: Counter[bytes | None] = Counter()
        self._payloads: Counter[bytes | None] = Counter()
        self._redirect_starts: dict[int, bytes] = {}  # by length of the payload
        self.table = b""
        self.has_acl = False
        # Offsets in the table of the digests and payloads that are shared.
        self._shared_digests: dict[bytes | None, int] = {}
        self._shared_payloads: dict[bytes | None, int] = {}

    def get_set(self, xattrs: dict[bytes, bytes], extra: dict[bytes, bytes] | None = None) -> XattrSet:
        """Return the set for an inode's xattrs, escaped, with those that overlayfs needs.

        The caller adds to its ``count`` for every inode that has it.

        Raises:
            ImageError: they cannot be stored.
        """
        _check(xattrs)
        pairs = tuple(sorted((escaped(xattrs) | (extra or {})).items()))
        found = self._sets.get(pairs)
        if found is None:
            found = self._sets[pairs] = XattrSet(pairs)
            self.has_acl = self.has_acl or any(key in _ACL_KEYS for key, _ in pairs)
        if not extra:
            self.known[tuple(xattrs.items())] = found
        return found

    def count_external(self, digests: Iterable[bytes | None], payloads: Iterable[bytes | None]) -> None:
        """Count the metacopy and redirect xattrs of the external files whose sets do not hold them."""
        self._digests.update(digests)
        self._payloads.update(payloads)
        del self._payloads[None]  # no payload, no xattr

    def share(self) -> None:
        """Decide which pairs are shared and lay out the table: keys, lengths and values in descending order."""
        counts: Counter[_Pair] = Counter()
        for xattr_set in self._sets.values():
            for pair in xattr_set.pairs:
                counts[pair] += xattr_set.count
        # Building every pair costs more than the rest of this: pairs that exist once need not be built.
        mixed = any(key in {METACOPY, REDIRECT} for key, _ in counts)
        digests = {digest: (METACOPY, _metacopy_value(digest)) for digest, n in self._digests.items() if n > 1 or mixed}
        payloads = {
            payload: (REDIRECT, b"/" + payload) for payload, n in self._payloads.items() if payload and (n > 1 or mixed)
        }
        for digest, pair in digests.items():
            counts[pair] += self._digests[digest]
        for payload, pair in payloads.items():
            counts[pair] += self._payloads[payload]

        shared = [pair for pair, count in counts.items() if count > 1]
        shared.sort(key=lambda pair: (pair[0], len(pair[1]), pair[1]), reverse=True)
        offsets: dict[_Pair, int] = {}
        entries: list[bytes] = []
        at = 0
        for pair in shared:
            entry = disk.xattr_entry(*pair)
            offsets[pair] = at
            entries.append(entry)
            at += len(entry)
        self.table = b"".join(entries)
        self._shared_digests = {digest: offsets[pair] for digest, pair in digests.items() if pair in offsets}
        self._shared_payloads = {payload: offsets[pair] for payload, pair in payloads.items() if pair in offsets}
        for xattr_set in self._sets.values():
            xattr_set.share(offsets)

    def place(self, table_start: int) -> None:
        """Encode everything that depends on where the shared table lies in the image."""
        base = table_start % disk.BLOCK
        for xattr_set in self._sets.values():
            xattr_set.encode(base)

    def splice(self, xattr_set: XattrSet, digest: bytes | None, payload: bytes | None) -> tuple[AreaHead, bytes]:
        """Return the area of an external file in two parts: the head, which :meth:`place` encodes, and the rest."""
        metacopy = self._shared_digests.get(digest)
        redirect = self._shared_payloads.get(payload)
        rest = xattr_set.tail
        if payload is not None and redirect is None:
            length = len(payload)
            start = self._redirect_starts.get(length)
            if start is None:
                start = self._redirect_starts[length] = _entry_start(REDIRECT, 1 + length) + b"/"
            rest = start + payload + _PADDING[~length & 3] + rest
        if metacopy is None:
            rest = (_METACOPY_STARTS[len(digest)] + digest if digest else _METACOPY_STARTS[0]) + rest
        return xattr_set.get_head(metacopy, redirect, has_redirect=payload is not None), rest
