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

__all__ = ["XattrPlan", "XattrSet", "external_xattrs"]

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


def _entry_head(key: bytes, length: int) -> bytes:
    """Encode an xattr up to its value."""
    index, suffix = disk.split_key(key)
    return disk.XATTR_ENTRY.pack(len(suffix), index, length) + suffix


# By length of the digest; digests need no padding.
_METACOPY_HEADS = {0: _entry_head(METACOPY, 0)} | {
    size: _entry_head(METACOPY, len(header) + size) + header for size, header in METACOPY_HEADERS.items()
}
_PADDING = (b"", b"\0", b"\0\0", b"\0\0\0")


def external_xattrs(digest: bytes | None, payload: bytes | None) -> dict[bytes, bytes]:
    """Return the xattrs that tell overlayfs where the bytes of a file are."""
    xattrs = {METACOPY: _metacopy_value(digest)}
    if payload:
        xattrs[REDIRECT] = b"/" + payload
    return xattrs


def _padded(size: int) -> int:
    return (size + 3) & ~3


class XattrSet:
    """The xattrs that many inodes have in common.

    ``size`` and ``encoded`` are the whole area of an inode that has just these.
    """

    __slots__ = ("_after", "_before", "_heads", "count", "encoded", "pairs", "size", "spliced_size", "tail")

    def __init__(self, pairs: tuple[_Pair, ...]) -> None:
        self.pairs = pairs
        self.count = 0
        self.size = self.spliced_size = 0
        self.encoded = self.tail = b""
        # Offsets of shared pairs and encoded unshared ones, before and after the place of metacopy and redirect.
        self._before: tuple[list[int], bytes] = ([], b"")
        self._after: tuple[list[int], bytes] = ([], b"")
        self._heads: dict[tuple[int | None, int | None, bool], bytes] = {}

    @property
    def can_splice(self) -> bool:
        """Metacopy and redirect are neighbours in key order and their ids are within the limit."""
        return len(self.pairs) <= _MAX_SPLICED and not any(key.startswith(OVERLAY_PREFIX) for key, _ in self.pairs)

    def share(self, offsets: dict[_Pair, int]) -> None:
        """Divide the pairs into shared and inline ones."""
        self._before, self._after = ([], b""), ([], b"")
        for is_after in (False, True):
            ids: list[int] = []
            inline: list[bytes] = []
            for pair in self.pairs:
                if (pair[0] > METACOPY) is is_after:
                    offset = offsets.get(pair)
                    if offset is None or len(self._before[0]) + len(ids) >= disk.MAX_SHARED:
                        inline.append(disk.xattr_entry(*pair))
                    else:
                        ids.append(offset)
            if is_after:
                self._after = ids, b"".join(inline)
            else:
                self._before = ids, b"".join(inline)
        self.tail = self._after[1]
        self.spliced_size = 4 * (len(self._before[0]) + len(self._after[0])) + len(self._before[1]) + len(self.tail)
        self.size = disk.XATTR_HEADER_SIZE + self.spliced_size if self.pairs else 0

    def encode(self, base: int) -> None:
        """Encode the area, ``base`` being the place of the shared table in its block."""
        if self.pairs:
            ids = self._before[0] + self._after[0]
            self.encoded = _area_head(self._bits(), ids, base) + self._before[1] + self.tail

    def encode_head(self, metacopy: int | None, redirect: int | None, has_redirect: bool, base: int) -> bytes:
        """Encode the area of an external file up to the place of metacopy and redirect.

        ``metacopy`` and ``redirect`` are offsets in the shared table, None when not shared.
        """
        key = metacopy, redirect, has_redirect
        head = self._heads.get(key)
        if head is None:
            own = [offset for offset in (metacopy, redirect) if offset is not None]
            ids = [*self._before[0], *own, *self._after[0]]
            head = _area_head(self._bits() & _SPLICED_BITS[has_redirect], ids, base) + self._before[1]
            self._heads[key] = head
        return head

    def _bits(self) -> int:
        bits = _ALL_ONES
        for key, _ in self.pairs:
            bits &= ~disk.filter_bit(key)
        return bits


def _area_head(bits: int, offsets: list[int], base: int) -> bytes:
    ids = struct.pack(f"<{len(offsets)}I", *[(base + offset) >> 2 for offset in offsets])
    return disk.XATTR_HEADER.pack(bits, len(offsets)) + ids


class XattrPlan:
    """All xattrs of an image."""

    def __init__(self) -> None:
        self._raw_sets: dict[tuple[_Pair, ...], XattrSet] = {}
        self._sets: dict[tuple[_Pair, ...], XattrSet] = {}
        self._digests: Counter[bytes | None] = Counter()
        self._payloads: Counter[bytes | None] = Counter()
        self._redirect_heads: dict[int, bytes] = {}  # by length of the payload
        self._base = 0
        self.table = b""
        self.has_acl = False
        # Offsets in the table of the digests and payloads that are shared.
        self.shared_digests: dict[bytes | None, int] = {}
        self.shared_payloads: dict[bytes | None, int] = {}

    def get_set(self, xattrs: dict[bytes, bytes], extra: dict[bytes, bytes] | None = None) -> XattrSet:
        """Return the set for an inode's xattrs, escaped, with those that overlayfs needs; counts one more inode.

        Raises:
            ImageError: they cannot be stored.
        """
        key = tuple(xattrs.items())
        found = None if extra else self._raw_sets.get(key)
        if found is None:
            _check(xattrs)
            pairs = tuple(sorted((escaped(xattrs) | (extra or {})).items()))
            found = self._sets.get(pairs)
            if found is None:
                found = self._sets[pairs] = XattrSet(pairs)
                self.has_acl = self.has_acl or any(key in _ACL_KEYS for key, _ in pairs)
            if not extra:
                self._raw_sets[key] = found
        found.count += 1
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
        self.shared_digests = {digest: offsets[pair] for digest, pair in digests.items() if pair in offsets}
        self.shared_payloads = {payload: offsets[pair] for payload, pair in payloads.items() if pair in offsets}
        for xattr_set in self._sets.values():
            xattr_set.share(offsets)

    def place(self, table_start: int) -> None:
        """Encode everything that depends on where the shared table lies in the image."""
        self._base = table_start % disk.BLOCK
        for xattr_set in self._sets.values():
            xattr_set.encode(self._base)

    def get_external_size(self, xattr_set: XattrSet, digest: bytes | None, payload: bytes | None) -> int:
        """Return the size of the area of an external file."""
        size = disk.XATTR_HEADER_SIZE + xattr_set.spliced_size
        if digest in self.shared_digests:
            size += 4
        else:
            size += 20 + (4 + len(digest) if digest else 0)
        if payload is None:
            return size
        return size + (4 if payload in self.shared_payloads else 20 + _padded(1 + len(payload)))

    def encode_external(self, xattr_set: XattrSet, digest: bytes | None, payload: bytes | None) -> bytes:
        """Encode the area of an external file."""
        metacopy = self.shared_digests.get(digest)
        redirect = self.shared_payloads.get(payload)
        area = xattr_set.encode_head(metacopy, redirect, payload is not None, self._base)
        if metacopy is None:
            area += _METACOPY_HEADS[len(digest)] + digest if digest else _METACOPY_HEADS[0]
        if payload is not None and redirect is None:
            length = len(payload)
            head = self._redirect_heads.get(length)
            if head is None:
                head = self._redirect_heads[length] = _entry_head(REDIRECT, 1 + length) + b"/"
            area += head + payload + _PADDING[~length & 3]
        return area + xattr_set.tail
