"""Trees for tests: the committed vectors, and Hypothesis strategies for trees of every kind of inode."""

from __future__ import annotations

import json
import stat
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from bootwright.erofs.tree import HardLink, Inode, Node

ROOT = Path(__file__).parents[2]
SHARED = ROOT / "../shared"


@cache
def load_vectors() -> dict[str, Any]:
    """Return the vectors document: images, must_reject, fsverity, pinned_by_composefs_rs."""
    document: dict[str, Any] = json.loads((ROOT / "tests/vectors/composefs-vectors.json").read_text("utf-8"))
    return document


NAMES = st.one_of(
    st.binary(min_size=1, max_size=8), st.sampled_from([b"!", b"...", b"-", b"a b", b"\xff\n", b"00", b"n" * 255])
).filter(lambda name: b"/" not in name and b"\0" not in name and name not in {b".", b".."})

_KEYS = st.sampled_from(
    [
        b"user.a",
        b"user.b",
        b"security.selinux",
        b"trusted.x",
        b"trusted.overlay.opaque",
        b"trusted.overlay.redirect",
        b"user.overlay.opaque",
        b"system.posix_acl_access",
        b"system.posix_acl_accessX",
        b"plain",
        b"user.= \\",
    ]
)
_XATTRS = st.dictionaries(_KEYS, st.sampled_from([b"", b"x", b"=", b"y\0z", b"v" * 300]), max_size=4)

_COMMON = {
    "nlink": st.sampled_from([1, 1, 2, 65535, 65536]),
    "uid": st.sampled_from([0, 1000, 65535, 65536, 0xFFFFFFFF]),
    "gid": st.sampled_from([0, 65536]),
    "mtime_sec": st.sampled_from([0, 1, -3, 1_700_000_000]),
    "mtime_nsec": st.sampled_from([0, 5, 999_999_999]),
}


def _inode(kind: int, **fields: Any) -> st.SearchStrategy[Inode]:
    modes = st.integers(0, 0o7777).map(lambda bits: kind | bits)
    # Inodes are mutable: every one must get xattrs of its own.
    return st.builds(Inode, modes, xattrs=_XATTRS.map(dict), **_COMMON, **fields)


def _with_size(inode: Inode) -> Inode:
    inode.size = len(inode.content or inode.target or b"")
    return inode


_CONTENT = st.builds(
    lambda byte, size: bytes([byte]) * size, st.integers(0, 255), st.sampled_from([1, 64, 2048, 2049, 5000])
)
_TARGETS = st.sampled_from([b"t", b"/a b", b"-", b"t" * 3900, b"t" * 4064, b"t" * 4095])
_DIGESTS = st.one_of(st.none(), st.sampled_from([b"\x11" * 32, bytes(range(32))]), st.binary(min_size=32, max_size=32))
_PAYLOADS = st.one_of(st.none(), st.sampled_from([b"aa/bb", b"-", b"/x", b"q//r", b"p" * 4095]))

LEAVES = st.one_of(
    _inode(stat.S_IFREG),
    _inode(stat.S_IFREG, content=_CONTENT).map(_with_size),
    _inode(
        stat.S_IFREG,
        size=st.sampled_from([1, 4096, 4097, 1 << 32, (1 << 43) + 1, 1020 << 43, 1 << 53]),
        digest=_DIGESTS,
        payload=_PAYLOADS,
    ),
    _inode(stat.S_IFLNK, target=_TARGETS).map(_with_size),
    _inode(stat.S_IFCHR, rdev=st.sampled_from([0, 0, 259, 0xFFFFFFFF])),
    _inode(stat.S_IFBLK, rdev=st.sampled_from([0, 7])),
    _inode(stat.S_IFIFO),
    _inode(stat.S_IFSOCK),
)


def _directory(children: st.SearchStrategy[Inode]) -> st.SearchStrategy[Inode]:
    return _inode(stat.S_IFDIR, children=st.dictionaries(NAMES, children, max_size=6))


@st.composite
def trees(draw: st.DrawFn) -> Inode:
    """Draw a root directory with subdirectories, files of all kinds and hard links in both directions."""
    root = draw(_directory(st.recursive(LEAVES, _directory, max_leaves=20)))
    inodes = [node for node in _collect(root) if isinstance(node, Inode)]
    leaves = [inode for inode in inodes if not inode.is_directory]
    directories = [inode for inode in inodes if inode.is_directory]
    if leaves:
        for _ in range(draw(st.integers(0, 4))):
            directory = draw(st.sampled_from(directories))
            assert directory.children is not None
            directory.children.setdefault(draw(NAMES), HardLink(draw(st.sampled_from(leaves))))
    return root


def _collect(root: Inode) -> list[Node]:
    found: list[Node] = [root]
    for node in found:
        if isinstance(node, Inode) and node.children:
            found.extend(node.children.values())
    return found
