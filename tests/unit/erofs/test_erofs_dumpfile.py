"""The dump text: what the strict parser refuses, and where it says the fault is."""

import stat

import pytest

from bootwright.erofs import dumpfile
from bootwright.erofs.dumptext import EscapeError, escape, escape_xattr, unescape
from bootwright.erofs.tree import HardLink, Inode, lookup
from bootwright.errors import ImageError

ROOT = b"/ 0 40755 2 0 0 0 0.0 - - -\n"
HEX = b"5a" * 32


def test_fields() -> None:
    root = dumpfile.parse(
        ROOT
        + b"/a\\x20b 70 100640 3 4 5 6 -7.8 5a/5b - "
        + HEX
        + b" user.a=1 user.\\x3d=\\x00=\n"
        + b"/c 3 100644 1 0 0 0 0.0 - a\\n\\x01 -\n"
        + b"/dev 9 60600 1 0 0 259 0.0 - - -\n"
        + b"/l 0 120777 1 0 0 0 0.0 a\\x20b - -\n"
    )
    file = lookup(root, b"/a b")
    assert file is not None
    assert (file.mode, file.nlink, file.uid, file.gid, file.rdev) == (stat.S_IFREG | 0o640, 3, 4, 5, 6)
    assert (file.size, file.mtime_sec, file.mtime_nsec) == (70, -7, 8)
    assert (file.payload, file.digest, file.content) == (b"5a/5b", b"\x5a" * 32, None)
    assert file.xattrs == {b"user.a": b"1", b"user.=": b"\0="}
    inline, device, link = lookup(root, b"/c"), lookup(root, b"/dev"), lookup(root, b"/l")
    assert inline is not None
    assert inline.content == b"a\n\x01"
    assert device is not None
    assert device.rdev == 259
    assert link is not None
    assert (link.target, link.size) == (b"a b", 3)


def test_inodes_with_equal_xattrs_do_not_share_them() -> None:
    root = dumpfile.parse(ROOT + b"/a 0 100644 1 0 0 0 0.0 - - - user.a=b\n/b 0 100644 1 0 0 0 0.0 - - - user.a=b\n")
    first, second = lookup(root, b"/a"), lookup(root, b"/b")
    assert first is not None
    assert second is not None
    first.xattrs[b"user.c"] = b""
    assert second.xattrs == {b"user.a": b"b"}


def test_paths_need_not_be_canonical() -> None:
    root = dumpfile.parse(
        ROOT + b"d 0 40755 2 0 0 0 0.0 - - -\n//d///f 0 100644 1 0 0 0 0.0 - - -\nd\\x2fg 0 100644 1 0 0 0 0.0 - - -"
    )
    assert lookup(root, b"/d/f") is not None
    assert lookup(root, b"/d/g") is not None


def test_links_forward_and_to_links() -> None:
    root = dumpfile.parse(
        ROOT + b"/a 0 @100644 - - - - - /b - -\n/b 0 @120000 - - - - - d//f\n/d 0 40755 2 0 0 0 0.0 - - -\n"
        b"/d/f 0 100644 3 0 0 0 0.0 - - -\n"
    )
    assert root.children is not None
    real = lookup(root, b"/d/f")
    assert real is not None
    for name in (b"a", b"b"):
        link = root.children[name]
        assert isinstance(link, HardLink)
        assert link.target is real


def test_a_long_chain_of_links_is_resolved() -> None:
    lines = b"".join(b"/%06d 0 @100644 - - - - - /%06d - -\n" % (number, number + 1) for number in range(20_000))
    root = dumpfile.parse(ROOT + lines + b"/020000 0 100644 1 0 0 0 0.0 - - -\n")
    assert lookup(root, b"/000000") is lookup(root, b"/020000")


@pytest.mark.parametrize(
    ("line", "field", "reason"),
    [
        pytest.param(b"/a 0 100644 1 0 +5 0 0.0 - - -", "gid", r"'\+5' is not a number", id="sign"),
        pytest.param(b"/a 0 100644 1 1 x 0 0.0 - - -", "gid", "'x' is not a number", id="gid-when-uid-is-set"),
        pytest.param(b"/a 0 100644 1 1 0 x 0.0 - - -", "rdev", "'x' is not a number", id="rdev-when-uid-is-set"),
        pytest.param(b"/a 0 100644 1 4294967296 0 0 0.0 - - -", "uid", "from 0 to 4294967295", id="uid-range"),
        pytest.param(b"/a 1_0 100644 1 0 0 0 0.0 - - -", "size", "'1_0' is not a number", id="underscore"),
        pytest.param(b"/a 0 644 1 0 0 0 0.0 - - -", "mode", "no valid file type", id="no-type"),
        pytest.param(b"/a 0 @40755 1 0 0 0 0.0 /b - -", "mode", "directory cannot be a hard link", id="link-mode-dir"),
        pytest.param(b"/a 0 @100644 1 0 0 0 0.0 / - -", "payload", "lead to a directory", id="link-to-dir"),
        pytest.param(b"/a 0 @100644", "payload", "lead to a directory", id="link-without-target"),
        pytest.param(
            b"/a 0 @100644 - - - - - /x - -", "payload", "target '/x' of the hard link is missing", id="no-target"
        ),
        pytest.param(b"/a 0 @100644 - - - - - /a - -", "payload", "leads to itself", id="link-to-itself"),
        pytest.param(b"/a 0 100644 1 0 0 0 1 - - -", "mtime", "'1' is not SEC.NSEC", id="mtime-without-dot"),
        pytest.param(b"/a 0 100644 1 0 0 0 1.-5 - - -", "mtime", "'-5' is not a number", id="negative-nsec"),
        pytest.param(b"/a\\x00b 0 100644 1 0 0 0 0.0 - - -", "path", "NUL", id="nul-in-path"),
        pytest.param(b"/a 5 100644 1 0 0 0 0.0 a\\x00b - -", "payload", "NUL", id="nul-in-payload"),
        pytest.param(b"/a 0 100644 1 0 0 0 0.0 - - - a\\x00b=c", "xattr", "NUL", id="nul-in-key"),
        pytest.param(b"/a 5 100644 1 0 0 0 0.0 a/b - 5a5a", "digest", "not 64 or 128 hex", id="digest-short"),
        pytest.param(b"/a 5 100644 1 0 0 0 0.0 a/b - " + b"zz" * 32, "digest", "not 64 or 128 hex", id="digest-no-hex"),
        pytest.param(b"/a 5 100644 1 0 0 0 0.0 a/b -", "digest", "missing", id="digest-missing"),
        pytest.param(b"/a 5 100644 1 0 0 0 0.0 ../b - -", "payload", "leaves the object directory", id="payload-up"),
        pytest.param(b"/a 0 120777 1 0 0 0 0.0 - - -", "payload", "at least one byte", id="symlink-without-target"),
        pytest.param(b"/a/ 0 100644 1 0 0 0 0.0 - - -", "path", "no name after its last slash", id="trailing-slash"),
        pytest.param(b"// 0 40755 2 0 0 0 0.0 - - -", "path", "no name after its last slash", id="only-slashes"),
        pytest.param(b"/.. 0 40755 2 0 0 0 0.0 - - -", "path", "'..' is no name", id="dot-dot"),
        pytest.param(b"/./a 0 40755 2 0 0 0 0.0 - - -", "path", "parent of '/./a' is missing", id="dot-as-parent"),
        pytest.param(b"/a 0 100644 1 0 0 0 0.0 - - -\n/a 0 100644 1 0 0 0 0.0 - - -", "path", "twice", id="twice"),
        pytest.param(b"/a 0 100644 1 0 0 0 0.0 \\q - -", "payload", r"bad escape '\\q'", id="unknown-escape"),
        pytest.param(b"/a 0 100644 1 0 0 0 0.0 - - - =v", "xattr", "1 to 255 bytes", id="empty-key"),
    ],
)
def test_refusals_name_line_and_field(line: bytes, field: str, reason: str) -> None:
    with pytest.raises(ImageError, match=rf"^line \d of the dump, field {field}: .*{reason}") as caught:
        dumpfile.parse(ROOT + line + b"\n")
    number = 1 + line.count(b"\n") + 1
    assert caught.value.message.startswith(f"line {number} ")


def test_faults_of_the_root() -> None:
    with pytest.raises(ImageError, match=r"line 1 .* root must be a directory"):
        dumpfile.parse(b"/ 0 100644 1 0 0 0 0.0 - - -\n/a 0 100644 1 0 0 0 0.0 - - -\n")
    with pytest.raises(ImageError, match="first line must be '/'"):
        dumpfile.parse(b"/a 0 40755 1 0 0 0 0.0 - - -\n" + ROOT)
    with pytest.raises(ImageError, match=r"line 2 .*the line is empty"):
        dumpfile.parse(ROOT + b"\n")
    with pytest.raises(ImageError, match="line 2 of the dump has a NUL byte"):
        dumpfile.parse(ROOT + b"/a\0 0 100644 1 0 0 0 0.0 - - -\n")


def test_write_marks_the_real_name_wherever_it_stands() -> None:
    real = Inode(stat.S_IFREG | 0o644, nlink=2, size=3, content=b"abc", xattrs={b"user.a": b"="})
    directory = Inode(stat.S_IFDIR | 0o755, children={b"f": real})
    root = Inode(stat.S_IFDIR | 0o755, nlink=3, children={b"a": HardLink(real), b"d": directory})
    assert b"".join(dumpfile.write(root)) == (
        b"/ 0 40755 3 0 0 0 0.0 - - -\n"
        b"/a 3 @100644 2 0 0 0 0.0 /d/f abc - user.a=\\x3d\n"
        b"/d 0 40755 1 0 0 0 0.0 - - -\n"
        b"/d/f 3 100644 2 0 0 0 0.0 - abc - user.a=\\x3d\n"
    )
    # The real name is filtered out: the file itself is written.
    assert b"/a 3 100644 2 0 0 0 0.0 - abc - user.a=\\x3d\n" in list(dumpfile.write(root, [b"a"]))


def test_dashes_are_escaped() -> None:
    root = dumpfile.parse(ROOT + b"/- 1 100644 1 0 0 0 0.0 - \\x2d - user.d=-\n/l 1 120777 1 0 0 0 0.0 \\x2d - -\n")
    text = b"".join(dumpfile.write(root))
    assert b"/- 1 100644 1 0 0 0 0.0 - \\x2d - user.d=-\n/l 1 120777 1 0 0 0 0.0 \\x2d - -\n" in text


@pytest.mark.parametrize("text", [b"\\", b"a\\", b"\\x", b"\\x1", b"\\xg0", b"\\x1g", b"\\q", b"\\X41"])
def test_bad_escapes(text: bytes) -> None:
    with pytest.raises(EscapeError):
        unescape(text)


def test_escapes() -> None:
    assert unescape(rb"\\\n\r\t\x41\xFf") == b"\\\n\r\tA\xff"
    assert escape(b"\\\n\r\tA =\xff\0") == rb"\\\n\r\tA\x20=\xff\x00"
    assert escape_xattr(b"a=b") == rb"a\x3db"
