"""The writer: what it refuses, and that a tree stays as it is."""

import stat
import struct
from collections.abc import Callable

import pytest

from bootwright.digest import Algorithm
from bootwright.erofs import disk, dumpfile
from bootwright.erofs.reader import object_digests, object_paths, read_image, read_version
from bootwright.erofs.tree import HardLink, Inode, lookup
from bootwright.erofs.writer import write_image
from bootwright.erofs.xxhash import xxh32
from bootwright.errors import BootwrightError, ImageError, UsageError


def root_with(**children: Inode | HardLink) -> Inode:
    return Inode(stat.S_IFDIR | 0o755, children={name.encode(): node for name, node in children.items()})


def regular(**fields: object) -> Inode:
    inode = Inode(stat.S_IFREG | 0o644)
    for name, value in fields.items():
        setattr(inode, name, value)
    return inode


@pytest.mark.parametrize(
    ("data", "seed", "expected"),
    [
        pytest.param(b"", 0, 0x02CC5D05, id="empty"),
        pytest.param(b"abc", 0, 0x32D153FF, id="short"),
        pytest.param(b"Nobody inspects the spammish repetition", 0, 0xE2293B2F, id="stripes"),
    ],
)
def test_xxh32(data: bytes, seed: int, expected: int) -> None:
    assert xxh32(data, seed) == expected


def cyclic() -> Inode:
    root = root_with()
    assert root.children is not None
    root.children[b"loop"] = root
    return root


def twice() -> Inode:
    file = regular()
    return root_with(a=file, b=file)


BIG = {b"user.a": b"v" * 32767}
REFUSED: list[tuple[str, Callable[[], Inode], str]] = [
    ("root-file", regular, "root of an image must be a directory"),
    ("cycle", cyclic, "same directory is in the tree twice"),
    ("twice", twice, "same inode is in the tree twice"),
    (
        "dangling-link",
        lambda: root_with(a=HardLink(regular())),
        "hard link 'a' leads to a directory or out of the tree",
    ),
    ("empty-name", lambda: root_with(**{"": regular()}), "name b'' cannot be stored"),
    ("slash", lambda: root_with(**{"a/b": regular()}), "name b'a/b' cannot be stored"),
    ("dot-dot", lambda: root_with(**{"..": regular()}), "name b'..' cannot be stored"),
    ("long-name", lambda: root_with(**{"n" * 256: regular()}), "has 256 bytes"),
    (
        "content-size",
        lambda: root_with(a=regular(size=3, content=b"ab")),
        "'/a': has 2 bytes of content but the size 3",
    ),
    ("content-big", lambda: root_with(a=regular(size=5001, content=b"a" * 5001)), "'/a': has 5001 bytes"),
    ("payload-up", lambda: root_with(a=regular(size=3, payload=b"../x")), "'/a': the object path"),
    ("digest-length", lambda: root_with(a=regular(size=3, digest=bytes(64))), "'/a': its digest has 64 bytes"),
    ("too-big", lambda: root_with(a=regular(size=(1 << 53) + 1)), "'/a': its size"),
    ("symlink", lambda: root_with(a=Inode(stat.S_IFLNK)), "'/a': a symlink's target"),
    ("no-type", lambda: root_with(a=Inode(0o644)), "'/a': the mode 644 has no valid file type"),
    ("uid", lambda: root_with(a=regular(uid=1 << 32)), "'/a': uid 4294967296 is not from 0 to 4294967295"),
    ("negative-uid", lambda: root_with(a=regular(uid=-1)), "'/a': uid -1 is not from 0"),
    ("mtime", lambda: root_with(a=regular(mtime_nsec=1 << 32)), "'/a': mtime_nsec"),
    ("xattr-key", lambda: root_with(a=regular(xattrs={b"": b""})), "'/a': the xattr key"),
    ("xattr-total", lambda: root_with(a=regular(xattrs=BIG)), "'/a': its xattrs are together larger than 32767"),
]


@pytest.mark.parametrize(("make", "reason"), [pytest.param(make, reason, id=name) for name, make, reason in REFUSED])
def test_refusals_name_the_path(make: Callable[[], Inode], reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        write_image(make())
    assert reason in caught.value.message


def test_unknown_versions_are_refused() -> None:
    with pytest.raises(UsageError, match="no format version 2"):
        write_image(root_with(), min_version=0, max_version=2)


def test_version_rises_only_for_whiteouts() -> None:
    assert read_version(write_image(root_with())) == 0
    assert read_version(write_image(root_with(w=Inode(stat.S_IFCHR)))) == 1
    assert read_version(write_image(root_with(w=Inode(stat.S_IFCHR)), max_version=0)) == 0
    assert read_version(write_image(root_with(), min_version=1)) == 1


def test_sha512_digests_are_marked_as_such() -> None:
    digest = bytes(range(64))
    image = write_image(root_with(a=regular(size=9, digest=digest, payload=b"aa/bb")), algorithm=Algorithm.SHA512)
    assert b"\x00\x44\x00\x02" + digest in image
    found = lookup(read_image(image), b"/a")
    assert found is not None
    assert found.digest == digest


def test_escaped_keys_come_back() -> None:
    xattrs = {b"trusted.overlay.opaque": b"y", b"trusted.overlay.overlay.x": b"1", b"user.overlay.opaque": b"y"}
    image = write_image(root_with(a=regular(xattrs=dict(xattrs))))
    assert b"overlay.overlay.overlay.x" in image
    found = lookup(read_image(image), b"/a")
    assert found is not None
    assert found.xattrs == xattrs


def test_whiteouts_come_back_and_look_alikes_stay() -> None:
    marks = {b"trusted.overlay.whiteout": b"", b"user.overlay.whiteout": b""}
    image = write_image(
        root_with(
            d=root_with(w=Inode(stat.S_IFCHR | 0o600)),
            # Marked like a whiteout, but in a directory that is not: a file of a nested overlay.
            e=root_with(f=regular(xattrs=dict(marks))),
        )
    )
    root = read_image(image)
    whiteout, file = lookup(root, b"/d/w"), lookup(root, b"/e/f")
    assert whiteout is not None
    assert whiteout.is_whiteout
    assert whiteout.xattrs == {}
    assert file is not None
    assert file.is_regular
    assert file.xattrs == marks
    assert write_image(root) == image


def test_object_names() -> None:
    digest = bytes(range(32))
    path = b"%b/%b" % (digest.hex()[:2].encode(), digest.hex()[2:].encode())
    named = write_image(root_with(a=regular(size=9, digest=digest, payload=path)))
    assert object_paths(named) == {path}
    assert {found.raw for found in object_digests(named)} == {digest}
    with pytest.raises(ImageError, match="not named by a digest"):
        object_digests(write_image(root_with(a=regular(size=9, payload=b"aa/bb"))))


def simple_image() -> bytearray:
    dump = b"/ 0 40755 2 0 0 0 0.0 - - -\n/d 0 40755 2 0 0 0 0.0 - - -\n/d/f 9 100644 1 0 0 0 0.0 aa/bb - -\n"
    return bytearray(write_image(dumpfile.parse(dump)))


def set_u32(image: bytearray, at: int, value: int) -> None:
    image[at : at + 4] = struct.pack("<I", value)


def blow_up() -> bytearray:
    """Many directories that share one block of entries."""
    image = simple_image()
    (root_nid,) = struct.unpack_from("<H", image, disk.SUPERBLOCK_OFFSET + 14)
    block = struct.unpack_from("<I", image, root_nid * 32 + 16)[0]
    # Entry 0 is "."; make every stub a directory whose entries are the root's block.
    for entry in range(2, 258):
        at = block * 4096 + 12 * entry
        nid, _, kind, _ = disk.DIRENT.unpack_from(image, at)
        if kind == 3:
            image[at + 10] = 2
            image[nid * 32 : nid * 32 + 32] = image[root_nid * 32 : root_nid * 32 + 32]
            struct.pack_into("<H", image, nid * 32 + 2, 0)
    return image


def test_hostile_images_are_refused() -> None:
    image = simple_image()
    read_image(bytes(image))
    for name, at, value in [
        ("root elsewhere", disk.SUPERBLOCK_OFFSET + 12, 0xFFFF000C),
        ("more blocks than bytes", disk.SUPERBLOCK_OFFSET + 36, 99),
        ("incompatible features", disk.SUPERBLOCK_OFFSET + 80, 4),
        ("another block size", disk.SUPERBLOCK_OFFSET + 12, 0x0024000D),
        ("version 2", 12, 2),
        ("no composefs", 0, 1),
        ("no erofs", disk.SUPERBLOCK_OFFSET, 1),
    ]:
        damaged = bytearray(image)
        set_u32(damaged, at, value)
        with pytest.raises(BootwrightError):
            read_image(bytes(damaged))
            pytest.fail(name)
    with pytest.raises(ImageError, match="damaged"):
        read_image(bytes(blow_up()))
    for size in (0, 1, 1152, 4096, len(image) - 4096, len(image) - 1):
        with pytest.raises(ImageError):
            read_image(bytes(image[:size]))
