"""The tree model."""

import stat

import pytest

from bootwright.erofs.tree import HardLink, Inode, lookup, lookup_follow, resolve, walk
from bootwright.errors import ImageError


def file() -> Inode:
    return Inode(stat.S_IFREG | 0o644)


def symlink(target: bytes) -> Inode:
    return Inode(stat.S_IFLNK | 0o777, target=target, size=len(target))


def directory(**children: Inode | HardLink) -> Inode:
    return Inode(stat.S_IFDIR | 0o755, children={name.encode(): node for name, node in children.items()})


def test_new_inodes_share_nothing() -> None:
    first, second = Inode(stat.S_IFDIR), Inode(stat.S_IFDIR)
    first.xattrs[b"user.a"] = b"x"
    assert first.children is not None
    first.children[b"a"] = file()
    assert second.xattrs == {}
    assert second.children == {}
    assert file().children is None


def test_copy_has_its_own_dicts_and_the_same_children() -> None:
    original = directory(a=file())
    copy = original.copy()
    assert copy.children is not None
    assert original.children is not None
    assert copy.children[b"a"] is original.children[b"a"]
    copy.children[b"b"] = file()
    copy.xattrs[b"user.a"] = b""
    assert list(original.children) == [b"a"]
    assert original.xattrs == {}


def test_walk_is_depth_first_in_byte_order() -> None:
    root = directory(b=directory(z=file(), a=file()), a=file(), B=file())
    assert [path for path, _ in walk(root)] == [b"/", b"/B", b"/a", b"/b", b"/b/a", b"/b/z"]
    assert [path for path, _ in walk(root, [b"b", b"none"])] == [b"/", b"/b", b"/b/a", b"/b/z"]


def test_walk_allows_changing_the_directory_that_was_just_yielded() -> None:
    root = directory(d=directory(a=file(), b=file()))
    seen = []
    for path, node in walk(root):
        seen.append(path)
        if path == b"/d" and isinstance(node, Inode) and node.children is not None:
            node.children.clear()
    assert seen == [b"/", b"/d"]


def test_lookup_resolves_hard_links_but_not_symlinks() -> None:
    real = file()
    root = directory(d=directory(f=real), link=HardLink(real), s=symlink(b"d"))
    assert lookup(root, b"/d/f") is real
    assert lookup(root, b"link") is real
    assert lookup(root, b"/") is root
    assert lookup(root, b"/s/f") is None
    assert lookup(root, b"/d/f/x") is None
    assert root.children is not None
    assert resolve(root.children[b"link"]) is real


@pytest.mark.parametrize(
    ("path", "found"),
    [
        pytest.param(b"/s/f", True, id="relative"),
        pytest.param(b"/abs/f", True, id="absolute"),
        pytest.param(b"/d/up", True, id="dot-dot"),
        pytest.param(b"/../../d/f", True, id="dot-dot-ends-at-the-root"),
        pytest.param(b"/d/./f", True, id="dot"),
        pytest.param(b"/dangling", False, id="dangling"),
        pytest.param(b"/d/f/..", False, id="not-the-file"),
    ],
)
def test_lookup_follow(path: bytes, found: bool) -> None:
    real = file()
    root = directory(
        d=directory(f=real, up=symlink(b"../../../d/f")),
        s=symlink(b"d"),
        abs=symlink(b"/s"),
        dangling=symlink(b"nowhere"),
    )
    assert (lookup_follow(root, path) is real) is found


def test_lookup_follow_ends_loops() -> None:
    with pytest.raises(ImageError, match="symbolic links at '/a'"):
        lookup_follow(directory(a=symlink(b"b"), b=symlink(b"a")), b"/a")


def test_kinds() -> None:
    assert directory().is_directory
    assert symlink(b"x").is_symlink
    assert Inode(stat.S_IFCHR).is_whiteout
    assert not Inode(stat.S_IFCHR, rdev=1).is_whiteout
    assert Inode(stat.S_IFREG, size=5).is_external
    assert not Inode(stat.S_IFREG, size=1, content=b"x").is_external
    assert not file().is_external
