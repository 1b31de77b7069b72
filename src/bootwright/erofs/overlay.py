"""What overlayfs must find in an image: names of its xattrs, escaping, the stubs of the root. Pure.

An image is the lower layer of an overlay whose data-only layer holds the objects:

- an external file says where its bytes are (``metacopy`` with their digest, ``redirect`` with the object's path);
- xattrs that already mean something to overlayfs are escaped by one more ``overlay.``, which overlayfs removes;
- a whiteout becomes an empty regular file with marker xattrs, its directory gets marked as well, each time in two
  spellings: for an overlay on top that uses ``trusted.`` and for one that uses ``user.`` xattrs;
- the root is opaque, and real whiteouts ``00`` to ``ff`` hide the object directories of the data-only layer.
"""

from __future__ import annotations

from bootwright.digest import Algorithm
from bootwright.erofs.tree import Inode

__all__ = [
    "DIRECTORY_MARKS",
    "ESCAPED_PREFIX",
    "METACOPY",
    "METACOPY_HEADERS",
    "OPAQUE",
    "OPAQUE_MARKS",
    "OVERLAY_PREFIX",
    "REDIRECT",
    "STUB_NAMES",
    "WHITEOUT_MARKS",
    "escaped",
    "make_stubs",
]

OVERLAY_PREFIX = b"trusted.overlay."
ESCAPED_PREFIX = b"trusted.overlay.overlay."
METACOPY = b"trusted.overlay.metacopy"
REDIRECT = b"trusted.overlay.redirect"
OPAQUE = b"trusted.overlay.opaque"

# version 0, total length, flags 0, the kernel's number of the hash algorithm; the digest follows
METACOPY_HEADERS = {algorithm.size: bytes((0, 4 + algorithm.size, 0, algorithm.value)) for algorithm in Algorithm}

WHITEOUT_MARKS = {b"trusted.overlay.overlay.whiteout": b"", b"user.overlay.whiteout": b""}
DIRECTORY_MARKS = {b"trusted.overlay.overlay.whiteouts": b"", b"user.overlay.whiteouts": b""}
# Since format version 1; the value x says "merged, with xattr whiteouts".
OPAQUE_MARKS = {b"trusted.overlay.overlay.opaque": b"x", b"user.overlay.opaque": b"x"}

STUB_NAMES = tuple(b"%02x" % number for number in range(256))
_SELINUX = b"security.selinux"


def escaped(xattrs: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Return xattrs with the keys that overlayfs would act upon escaped."""
    return {
        ESCAPED_PREFIX + key[len(OVERLAY_PREFIX) :] if key.startswith(OVERLAY_PREFIX) else key: value
        for key, value in xattrs.items()
    }


def make_stubs(root: Inode) -> dict[bytes, Inode]:
    """Return the real whiteouts that a root needs: one for each object directory name that it does not use itself."""
    label = root.xattrs.get(_SELINUX)
    used = root.children or {}
    return {
        name: Inode(
            mode=0o020644,
            uid=root.uid,
            gid=root.gid,
            mtime_sec=root.mtime_sec,
            mtime_nsec=root.mtime_nsec,
            xattrs=None if label is None else {_SELINUX: label},
        )
        for name in STUB_NAMES
        if name not in used
    }
