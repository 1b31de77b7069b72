import stat

import pytest

from bootwright.erofs import dumpfile
from bootwright.erofs.tree import HardLink, Inode, lookup, resolve
from bootwright.errors import ImageError
from bootwright.repo.entries import HARD_LINK, LayerEntry, decode_entries, encode_entries
from bootwright.repo.tree import apply_boot_transform, can_boot, merge_layers, settle_links


def file(name: str, content: bytes = b"x", *, mode: int = 0o644, mtime: int = 1) -> LayerEntry:
    return LayerEntry(name.encode(), stat.S_IFREG | mode, mtime_sec=mtime, size=len(content), content=content)


def directory(name: str, *, mode: int = 0o755, uid: int = 0, mtime: int = 1, nsec: int = 0) -> LayerEntry:
    return LayerEntry(name.encode(), stat.S_IFDIR | mode, uid=uid, mtime_sec=mtime, mtime_nsec=nsec)


def symlink(name: str, target: str) -> LayerEntry:
    return LayerEntry(name.encode(), stat.S_IFLNK | 0o777, link=target.encode())


def link(name: str, target: str) -> LayerEntry:
    return LayerEntry(name.encode(), HARD_LINK, link=target.encode())


def whiteout(name: str) -> LayerEntry:
    parent, slash, last = name.rpartition("/")
    return file(f"{parent}{slash}.wh.{last}", b"")


def opaque(name: str) -> LayerEntry:
    return file(f"{name}/.wh..wh..opq", b"")


def names(root: Inode, prefix: str = "") -> dict[str, str]:
    """Every path with what is there: the content of files, / for directories, -> for symlinks, = for further names."""
    found: dict[str, str] = {}
    for name, node in (root.children or {}).items():
        path = f"{prefix}/{name.decode()}".lstrip("/")
        inode = resolve(node)
        if isinstance(node, HardLink):
            found[path] = f"={(inode.content or b'').decode()}"
        elif inode.children is not None:
            found[path] = "/"
            found.update(names(inode, path))
        elif inode.is_symlink:
            found[path] = f"->{(inode.target or b'').decode()}"
        else:
            found[path] = (inode.content or b"").decode()
    return found


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        pytest.param([], {}, id="nothing"),
        pytest.param([[file("a", b"1")], [file("a", b"2")]], {"a": "2"}, id="file-over-file"),
        pytest.param(
            [[directory("d"), file("d/a", b"1")], [directory("d", mode=0o700)]], {"d": "/", "d/a": "1"}, id="dir-keeps"
        ),
        pytest.param([[directory("d"), file("d/a")], [file("d", b"f")]], {"d": "f"}, id="file-over-directory"),
        pytest.param([[file("d", b"f")], [directory("d"), file("d/a", b"1")]], {"d": "/", "d/a": "1"}, id="over-file"),
        pytest.param([[directory("d"), file("d/a")], [symlink("d", "e")]], {"d": "->e"}, id="symlink-over-directory"),
        pytest.param(
            [[symlink("lib", "usr/lib")], [file("lib/x", b"1")]],
            {"lib": "/", "lib/x": "1"},
            id="below-a-symlink-of-a-lower-layer",
        ),
        pytest.param([[file("a/b/c", b"1")]], {"a": "/", "a/b": "/", "a/b/c": "1"}, id="implied-parents"),
        pytest.param([[file("a", b"1"), file("b")], [whiteout("b")]], {"a": "1"}, id="whiteout"),
        pytest.param([[file("d/a"), file("d/b/c")], [whiteout("d/b")]], {"d": "/", "d/a": "x"}, id="whiteout-tree"),
        pytest.param([[file("a", b"1")], [whiteout("a"), file("a", b"2")]], {"a": "2"}, id="whiteout-then-file"),
        pytest.param([[file("a", b"1")], [file("a", b"2"), whiteout("a")]], {"a": "2"}, id="file-then-whiteout"),
        pytest.param(
            [[file("d/old")], [opaque("d"), file("d/new", b"2")]], {"d": "/", "d/new": "2"}, id="opaque-first"
        ),
        pytest.param([[file("d/old")], [file("d/new", b"2"), opaque("d")]], {"d": "/", "d/new": "2"}, id="opaque-last"),
        pytest.param(
            [[file("d/a")], [file("d/b"), whiteout("nowhere/x"), whiteout("y")]],
            {"d": "/", "d/a": "x", "d/b": "x"},
            id="whiteout-of-nothing",
        ),
        pytest.param([[file("a", b"1")], [whiteout("a/b")]], {"a": "1"}, id="whiteout-below-a-file"),
        pytest.param([[file("a")], [whiteout("a")], [file("a", b"3")]], {"a": "3"}, id="removed-and-back"),
        pytest.param([[file(".wh..wh.plnk"), file(".wh..wh..tmp/x"), file("a")]], {"a": "x"}, id="aufs"),
        pytest.param([[file("a.wh.b", b"1")]], {"a.wh.b": "1"}, id="mark-in-the-middle"),
        pytest.param([[file("b", b"1"), link("a", "b")]], {"a": "1", "b": "=1"}, id="link-before"),
        pytest.param([[file("a", b"1"), link("d/b", "a")]], {"a": "1", "d": "/", "d/b": "=1"}, id="link-after"),
        pytest.param([[file("a", b"1")], [link("b", "a")]], {"a": "1", "b": "=1"}, id="link-to-lower"),
        pytest.param(
            [[file("a", b"1"), link("b", "a"), link("c", "b")], [whiteout("a")]], {"b": "1", "c": "=1"}, id="link-stays"
        ),
        pytest.param(
            [[file("a", b"1"), link("b", "a")], [file("a", b"2")]], {"a": "2", "b": "1"}, id="link-not-written-through"
        ),
        pytest.param([[file("d/a", b"1"), link("d", "d/a")]], {"d": "1"}, id="link-over-its-directory"),
        pytest.param(
            [[file("d/a"), file("d", b"f"), directory("d"), file("d/b", b"2")]], {"d": "/", "d/b": "2"}, id="back-again"
        ),
    ],
)
def test_merge(layers: list[list[LayerEntry]], expected: dict[str, str]) -> None:
    assert names(merge_layers(layers)) == expected


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        pytest.param([[link("a", "b")]], "layer 1: .*'a' is a hard link to 'b', which does not exist", id="missing"),
        pytest.param([[file("b")], [whiteout("b"), link("a", "b")]], "layer 2: .*does not exist", id="whited-out"),
        pytest.param([[directory("d"), link("a", "d")]], "hard link to the directory 'd'", id="directory"),
        pytest.param([[LayerEntry(b"w", stat.S_IFCHR), link("a", "w")]], "the whiteout 'w'", id="whiteout"),
        pytest.param([[link("a", "a/b")]], "does not exist", id="below-itself"),
        pytest.param([[symlink("l", "/etc"), file("l/x")]], "'l/x' lies below 'l', which the same", id="own-symlink"),
        pytest.param([[file("f"), directory("f/d/e")]], "lies below 'f'", id="own-file"),
        pytest.param([[file("a/.wh...")]], "names nothing that can be removed", id="dotdot"),
        pytest.param([[file("a/.wh..")]], "names nothing that can be removed", id="dot"),
        pytest.param([[file(".wh.")]], "names nothing that can be removed", id="no-name"),
        pytest.param([[directory(".wh.d"), file(".wh.d/x")]], "lies below a whiteout", id="below-a-whiteout"),
        pytest.param([[file("", b"")]], "must be a directory", id="root-is-a-file"),
        pytest.param([[symlink("l", "")]], "target of 0 bytes", id="empty-target"),
        pytest.param([[symlink("l", "x" * 4096)]], "target of 4096 bytes", id="long-target"),
    ],
)
def test_refused(layers: list[list[LayerEntry]], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        merge_layers(layers)


def test_links_are_counted() -> None:
    root = merge_layers([[file("z/a", b"1"), link("a", "z/a"), link("m", "a"), file("n")], [whiteout("m")]])
    first = (root.children or {})[b"a"]
    assert isinstance(first, Inode), "the first name in depth-first order is the real one"
    assert first.nlink == 2
    assert isinstance(((lookup(root, b"/z") or root).children or {})[b"a"], HardLink)
    other = lookup(root, b"/n")
    assert other is not None
    assert other.nlink == 1


def test_depth_first_not_by_path_text() -> None:
    # "a-b" sorts before "a/b" as text, but the directory "a" comes before the name "a-b".
    root = merge_layers([[file("a/b", b"1"), link("a-b", "a/b")]])
    assert isinstance((root.children or {})[b"a-b"], HardLink)


def test_implied_parents_and_metadata() -> None:
    root = merge_layers([[file("a/b")], [directory("a", mode=0o1777, uid=7, mtime=99)]])
    parent = lookup(root, b"/a")
    assert parent is not None
    assert (parent.mode, parent.uid, parent.mtime_sec) == (0o41777, 7, 99)
    implied = lookup(merge_layers([[file("a/b")]]), b"/a")
    assert implied is not None
    assert (implied.mode, implied.uid, implied.gid, implied.mtime_sec) == (0o40755, 0, 0, 0)


def test_oci_transform() -> None:
    entry = directory("usr", mode=0o750, uid=3, mtime=1234567890, nsec=5)
    entry.capability = b"cap"
    root = merge_layers([[directory("", mode=0o700, mtime=4), directory("run"), file("run/x"), entry]])
    assert (root.mode, root.uid, root.mtime_sec, root.mtime_nsec) == (0o40750, 3, 1234567890, 5)
    assert root.xattrs == {b"security.capability": b"cap"}
    run = lookup(root, b"/run")
    assert run is not None
    assert run.children == {}
    assert (run.mtime_sec, run.mtime_nsec, run.mode) == (1234567890, 5, 0o40755)


def test_image_without_usr_keeps_its_root() -> None:
    root = merge_layers([[directory("", mode=0o700, mtime=4), file("run/x")]])
    assert (root.mode, root.mtime_sec) == (0o40700, 4)
    assert names(root) == {"run": "/", "run/x": "x"}


BOOTABLE = [directory("usr", mtime=77, nsec=9), directory("boot", mode=0o700, uid=4), directory("sysroot")]


def test_boot_transform() -> None:
    root = merge_layers([[*BOOTABLE, file("boot/k", b"1"), link("usr/k", "boot/k"), file("sysroot/x")]])
    assert can_boot(root)
    assert isinstance((lookup(root, b"/usr") or root).children, dict)
    apply_boot_transform(root)
    assert names(root) == {"boot": "/", "sysroot": "/", "usr": "/", "usr/k": "1"}
    kept = lookup(root, b"/usr/k")
    assert kept is not None
    assert kept.nlink == 1, "its other name went with /boot"
    boot = lookup(root, b"/boot")
    assert boot is not None
    assert (boot.mode, boot.uid, boot.mtime_sec, boot.mtime_nsec) == (0o40700, 4, 77, 9)


def test_boot_transform_removes_labels() -> None:
    root = merge_layers([[*BOOTABLE, file("usr/a")]])
    inode = lookup(root, b"/usr/a")
    assert inode is not None
    inode.xattrs[b"security.selinux"] = b"x"
    apply_boot_transform(root)
    assert inode.xattrs == {}


@pytest.mark.parametrize(
    ("entries", "missing"),
    [
        pytest.param([directory("usr"), directory("boot")], "no directory /sysroot", id="sysroot"),
        pytest.param([directory("usr"), symlink("boot", "usr"), directory("sysroot")], "/boot", id="symlink"),
        pytest.param([], "/usr and no /boot and no /sysroot", id="all"),
    ],
)
def test_boot_transform_needs_directories(entries: list[LayerEntry], missing: str) -> None:
    root = merge_layers([entries])
    assert not can_boot(root)
    with pytest.raises(ImageError, match=missing) as caught:
        apply_boot_transform(root)
    assert "mkdir -p /" in str(caught.value.hint)


def test_settling_twice_changes_nothing() -> None:
    root = merge_layers([[file("d/a", b"1"), link("b", "d/a"), link("z", "b")]])
    before = b"".join(dumpfile.write(root))
    settle_links(root)
    assert b"".join(dumpfile.write(root)) == before


def test_entries_pass_between_processes() -> None:
    entries = [file("a", b"\xff"), link("b", "a"), directory("d", nsec=3)]
    entries[0].capability = b"\0\1"
    entries[0].digest = b"\2" * 32
    assert decode_entries(encode_entries(entries)) == entries
