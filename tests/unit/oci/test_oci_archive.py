"""TarReader against archives that were built block by block: dialects, and everything that must be refused."""

from __future__ import annotations

import io
import os

import pytest

from bootwright.errors import ImageError
from bootwright.oci.layer import EntryType, TarEntry, TarReader, expand_sparse
from fakes.tars import END, header, long_name, member, old_sparse, pad, pax, record, seal


def read(archive: bytes, chunk: int = 1 << 20) -> list[tuple[TarEntry, bytes]]:
    """Read every entry with its body, and require that the parts are the archive."""
    source = io.BytesIO(archive)
    reader = TarReader(lambda size: source.read(min(size, chunk)), what="layer 'x'")
    found = []
    rebuilt = b""
    for entry in reader:
        body = b"".join(reader.iter_body())
        assert len(body) == entry.stored_size
        rebuilt += entry.header + body
        found.append((entry, body))
    assert rebuilt + reader.trailer == archive
    assert reader.trailer == reader.trailer
    return found


def read_one(archive: bytes) -> TarEntry:
    [(entry, _)] = read(archive + END)
    return entry


# --- dialects


@pytest.mark.parametrize("chunk", [1, 3, 511, 512, 513, 1 << 20])
def test_pieces_of_any_size(chunk: int) -> None:
    archive = (
        member(b"./", kind=b"5", mode=0o755)
        + member(b"a", b"x" * 513)
        + pax((b"path", b"p/" * 150 + b"p"), (b"SCHILY.xattr.user.k", b"v\0w"))
        + member(b"short", b"y" * 1024)
        + long_name(b"n" * 200)
        + member(b"n", b"z")
        + END
        + bytes(8192)
    )
    found = read(archive, chunk)
    assert [entry.name for entry, _ in found] == [b"", b"a", b"p/" * 150 + b"p", b"n" * 200]
    assert [len(body) for _, body in found] == [0, 513, 1024, 1]
    assert found[2][0].xattrs == {b"user.k": b"v\0w"}


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        (b"usr/bin/x", b"usr/bin/x"),
        (b"./usr//bin/./x", b"usr/bin/x"),
        (b"/etc/passwd", b"etc/passwd"),
        (b"//etc///passwd", b"etc/passwd"),
        (b".hidden/.wh.x", b".hidden/.wh.x"),
        (b"a/..b/c..", b"a/..b/c.."),
        (b"././a", b"a"),
        (b"\xff\xfe", b"\xff\xfe"),
    ],
)
def test_names_are_cleaned(raw: bytes, clean: bytes) -> None:
    assert read_one(member(raw)).name == clean


@pytest.mark.parametrize("raw", [b"./", b"/", b".", b"./.", b"//"])
def test_root_directory(raw: bytes) -> None:
    entry = read_one(member(raw, kind=b"5", mode=0o750))
    assert (entry.name, entry.type, entry.mode) == (b"", EntryType.DIR, 0o750)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (b"0", EntryType.REG),
        (b"\0", EntryType.REG),
        (b"7", EntryType.REG),
        (b"1", EntryType.HARDLINK),
        (b"2", EntryType.SYMLINK),
        (b"3", EntryType.CHAR),
        (b"4", EntryType.BLOCK),
        (b"5", EntryType.DIR),
        (b"6", EntryType.FIFO),
    ],
)
def test_types(kind: bytes, expected: EntryType) -> None:
    entry = read_one(member(b"x", kind=kind, linkname=b"target", major=8, minor=300))
    assert entry.type is expected
    assert entry.rdev == (os.makedev(8, 300) if expected in (EntryType.CHAR, EntryType.BLOCK) else 0)
    assert entry.linkname == (b"target" if expected in (EntryType.HARDLINK, EntryType.SYMLINK) else b"")


def test_v7_directory_is_told_by_its_slash() -> None:
    assert read_one(member(b"dir/", kind=b"\0", magic=bytes(8))).type is EntryType.DIR
    assert read_one(member(b"dir/", kind=b"0")).type is EntryType.REG


def test_symlink_target_is_kept_and_hard_link_cleaned() -> None:
    assert read_one(member(b"l", kind=b"2", linkname=b"../..//x/")).linkname == b"../..//x/"
    assert read_one(member(b"l", kind=b"1", linkname=b"./a//b")).linkname == b"a/b"
    assert read_one(member(b"l", kind=b"2", linkname=b"t" * 100)).linkname == b"t" * 100
    assert read_one(long_name(b"t" * 300, b"K") + member(b"l", kind=b"2", linkname=b"t")).linkname == b"t" * 300


def test_prefix_counts_in_ustar_only() -> None:
    assert read_one(member(b"n", prefix=b"p/q")).name == b"p/q/n"
    assert read_one(member(b"n", prefix=b"p/q", magic=b"ustar  \0")).name == b"n"
    assert read_one(member(b"n", prefix=b"p/q", magic=bytes(8))).name == b"n"
    star = b"p".ljust(131, b"\0") + b"00000000001 00000000001 "
    assert read_one(member(b"n", prefix=star, tail=bytes(8) + b"tar\0")).name == b"p/n"


def test_prefix_and_name_of_full_length() -> None:
    name, prefix = b"n" * 100, b"/".join([b"p" * 77] * 2)[:155]
    assert read_one(member(name, prefix=prefix)).name == prefix + b"/" + name


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000644\0", 0o644),
        (b" 644 \0\0\0", 0o644),
        (b"   644 \0", 0o644),
        (b"00000644", 0o644),
        (bytes(8), 0),
        (b"\x80" + (0o644).to_bytes(7, "big"), 0o644),
    ],
)
def test_numbers(field: bytes, value: int) -> None:
    entry = read_one(header(b"x", mode=field, uid=field))
    assert (entry.mode, entry.uid) == (value, value)


def test_base_256() -> None:
    big = b"\x80" + (1 << 33).to_bytes(11, "big")
    entry = read_one(header(b"x", uid=b"\x80" + (4_000_000_000).to_bytes(7, "big"), mtime=big))
    assert (entry.uid, entry.mtime_sec) == (4_000_000_000, 1 << 33)
    assert read_one(header(b"x", mtime=b"\xff" * 11 + b"\xfe")).mtime_sec == -2


def test_pax_overrules() -> None:
    extended = pax(
        (b"path", b"dir/\xc3\xa4"),
        (b"size", b"3"),
        (b"uid", b"70000"),
        (b"gid", b"70001"),
        (b"mtime", b"1700000000.123456789999"),
        (b"comment", b"hello"),
    )
    [(entry, body)] = read(extended + header(b"x", uid=1, gid=1, mtime=1, size=0) + pad(b"abc") + END)
    assert (entry.name, entry.uid, entry.gid, body) == (b"dir/\xc3\xa4", 70000, 70001, b"abc")
    assert (entry.mtime_sec, entry.mtime_nsec) == (1700000000, 123456789)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"1", (1, 0)),
        (b"1.5", (1, 500_000_000)),
        (b"1.", (1, 0)),
        (b"0.000000001", (0, 1)),
        (b"-1", (-1, 0)),
        (b"-1.25", (-2, 750_000_000)),
        (b"-0.5", (-1, 500_000_000)),
    ],
)
def test_pax_times(text: bytes, expected: tuple[int, int]) -> None:
    entry = read_one(pax((b"mtime", text)) + member())
    assert (entry.mtime_sec, entry.mtime_nsec) == expected


def test_pax_is_for_one_entry_and_an_empty_value_is_none() -> None:
    archive = pax((b"path", b"long"), (b"mtime", b"")) + member(b"a", mtime=5) + member(b"b") + END
    assert [(entry.name, entry.mtime_sec) for entry, _ in read(archive)] == [(b"long", 5), (b"b", 0)]


def test_xattrs() -> None:
    extended = pax(
        (b"SCHILY.xattr.security.capability", bytes(range(20))),
        (b"SCHILY.xattr.user.a=b", b"kept=whole"),
        (b"SCHILY.xattr.user.empty", b""),
        (b"LIBARCHIVE.xattr.user.other%20name", b"AAEC"),
        (b"LIBARCHIVE.xattr.security.capability", b"AAAA"),
    )
    entry = read_one(extended + member())
    assert entry.xattrs == {
        b"security.capability": bytes(range(20)),
        b"user.a": b"b=kept=whole",
        b"user.empty": b"",
        b"user.other name": b"\0\1\2",
    }
    assert read_one(member()).xattrs is None


def test_global_headers_mean_nothing() -> None:
    archive = pax((b"path", b"everything"), (b"comment", b"1234"), kind=b"g") + member(b"a") + END
    assert [entry.name for entry, _ in read(archive)] == [b"a"]


def test_gnu_long_name_wins_over_pax() -> None:
    # As in Go's archive/tar.
    assert read_one(pax((b"path", b"from-pax")) + long_name(b"from-gnu") + member(b"x")).name == b"from-gnu"


def test_hard_link_with_and_without_a_body() -> None:
    archive = member(b"a", b"data") + header(b"l", kind=b"1", linkname=b"a", size=4) + member(b"b", b"x") + END
    assert [(entry.name, body) for entry, body in read(archive)] == [(b"a", b"data"), (b"l", b""), (b"b", b"x")]
    archive = member(b"a", b"data") + member(b"l", b"data", kind=b"1", linkname=b"a") + member(b"b", b"x") + END
    found = read(archive)
    assert [(entry.name, body) for entry, body in found] == [(b"a", b"data"), (b"l", b"data"), (b"b", b"x")]
    assert (found[1][0].size, found[1][0].stored_size) == (0, 4)
    read(header(b"l", kind=b"1", linkname=b"a", size=4) + END)


@pytest.mark.parametrize("kind", [b"2", b"3", b"4", b"5", b"6"])
def test_other_types_have_no_body(kind: bytes) -> None:
    archive = header(b"x", kind=kind, linkname=b"t", size=4096) + member(b"b") + END
    assert [entry.size for entry, _ in read(archive)] == [0, 0]


def test_signed_checksum() -> None:
    block = header(b"\xe4\xf6")
    blank = block[:148] + b" " * 8 + block[156:]
    signed = sum(byte - 256 if byte > 127 else byte for byte in blank)
    assert read_one(seal(block, b"%06o\0 " % signed)).name == b"\xe4\xf6"


@pytest.mark.parametrize("end", [b"", bytes(512), bytes(1024), bytes(10240), bytes(1024) + b"after the end"])
def test_ends(end: bytes) -> None:
    assert len(read(member(b"a", b"x") + end)) == 1
    assert read(end[:1024]) == []


def test_unread_bodies_are_skipped() -> None:
    source = io.BytesIO(member(b"a", b"x" * 100_000) + member(b"b", b"y" * 10) + END)
    reader = TarReader(lambda size: source.read(min(size, 1000)))
    first = next(reader)
    pieces = reader.iter_body()
    assert next(pieces) == b"x" * 488
    assert reader.read_body(100) == b"x" * 100
    second = next(reader)
    assert (first.name, second.name) == (b"a", b"b")
    # What is left of the old iterator must not eat from the new body.
    assert list(pieces) == []
    assert reader.read_body(3) + reader.read_body() + reader.read_body() == b"y" * 10
    assert list(reader) == []
    assert b"".join(reader.iter_trailer()) == bytes(502) + END


# --- sparse files


def test_old_sparse() -> None:
    pieces = [(offset, 3) for offset in range(1000, 1000 + 30 * 10, 10)]
    data = b"".join(b"%03d" % n for n in range(30))
    [(entry, body)] = read(old_sparse(b"s", pieces, data, 5000) + END)
    assert (entry.sparse, entry.size, entry.stored_size) == (pieces, 5000, 90)
    content = bytearray(5000)
    for n, (offset, length) in enumerate(pieces):
        content[offset : offset + length] = b"%03d" % n
    assert b"".join(expand_sparse(entry, [body])) == content


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
@pytest.mark.parametrize("count", [0, 1, 3, 100])
def test_pax_sparse(version: str, count: int) -> None:
    pieces = [(n * 2000, n + 1) for n in range(count)]
    data = b"".join(bytes([65 + n % 26]) * (n + 1) for n in range(count))
    real_size = count * 2000 + 7
    if version == "0.0":
        records = [(b"GNU.sparse.size", b"%d" % real_size), (b"GNU.sparse.numblocks", b"%d" % count)]
        for offset, length in pieces:
            records += [(b"GNU.sparse.offset", b"%d" % offset), (b"GNU.sparse.numbytes", b"%d" % length)]
        archive = pax(*records) + member(b"s", data)
    elif version == "0.1":
        numbers = b",".join(b"%d,%d" % piece for piece in pieces)
        archive = pax(
            (b"GNU.sparse.map", numbers), (b"GNU.sparse.size", b"%d" % real_size), (b"GNU.sparse.name", b"s")
        ) + member(b"GNUSparseFile.1/s", data)
    else:
        numbers = b"%d\n" % count + b"".join(b"%d\n%d\n" % piece for piece in pieces)
        archive = pax(
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.name", b"s"),
            (b"GNU.sparse.realsize", b"%d" % real_size),
        ) + member(b"GNUSparseFile.1/s", pad(numbers) + data)
    [(entry, body)] = read(archive + END, 700)
    assert (entry.name, entry.sparse, entry.size, body) == (b"s", pieces, real_size, data)
    content = b"".join(expand_sparse(entry, [body[i : i + 13] for i in range(0, len(body), 13)]))
    assert len(content) == real_size
    assert content.replace(b"\0", b"") == data
    assert all(content[offset : offset + 1] == bytes([65 + n % 26]) for n, (offset, _) in enumerate(pieces))


def test_expand_passes_other_files_through() -> None:
    assert list(expand_sparse(read_one(member(b"a", b"xyz")), [b"x", b"yz"])) == [b"x", b"yz"]


def test_expand_notices_missing_data() -> None:
    [(entry, body)] = read(old_sparse(b"s", [(10, 5)], b"12345", 20) + END)
    with pytest.raises(ImageError, match="'s' ends in the middle"):
        list(expand_sparse(entry, [body[:3]]))


# --- hostile archives

_HUGE = b"\x80" + (1 << 70).to_bytes(11, "big")
_NEGATIVE = b"\xff" * 12

HOSTILE = [
    pytest.param(member(b"../x"), "'../x' would leave the image", id="dotdot"),
    pytest.param(member(b"usr/../../x"), "would leave the image", id="dotdot-inside"),
    pytest.param(member(b"/.."), "would leave the image", id="dotdot-absolute"),
    pytest.param(member(b"a/.."), "'a/..' would leave the image", id="dotdot-end"),
    pytest.param(member(b""), "has no name", id="empty-name"),
    pytest.param(member(b"./"), "makes the root directory a file", id="root-file"),
    pytest.param(member(b".", kind=b"2", linkname=b"/"), "makes the root directory a symlink", id="root-symlink"),
    pytest.param(pax((b"path", b"a\0b")) + member(), "NUL byte in its path", id="pax-path-nul"),
    pytest.param(pax((b"linkpath", b"a\0b")) + member(b"l", kind=b"2"), "NUL byte in its linkpath", id="pax-link-nul"),
    pytest.param(pax((b"path", b"../x")) + member(), "'../x' would leave", id="pax-dotdot"),
    pytest.param(pax((b"path", b"x/" * 2100 + b"x")) + member(), "has a name of 4201 bytes", id="name-too-long"),
    pytest.param(pax((b"path", b"x/" * 300 + b"x")) + member(), "256 directories deep", id="too-deep"),
    pytest.param(pax((b"path", b"x" * 256)) + member(), "component of more than 255", id="component-too-long"),
    pytest.param(long_name(b"x" * 5000) + member(), "has a name of 5000 bytes", id="gnu-name-too-long"),
    pytest.param(long_name(b"") + member(), "has no name", id="gnu-name-empty"),
    pytest.param(member(b"l", kind=b"2"), "'l' is a link without a target", id="no-target"),
    pytest.param(member(b"l", kind=b"1"), "'l' is a link without a target", id="no-link-target"),
    pytest.param(pax((b"linkpath", b"t" * 4096)) + member(b"l", kind=b"2"), "target of 4096 bytes", id="long-target"),
    pytest.param(member(b"l", kind=b"1", linkname=b"../x"), "'l' is a hard link to '../x'", id="link-dotdot"),
    pytest.param(member(b"l", kind=b"1", linkname=b"/"), "hard link to the root", id="link-root"),
    pytest.param(member(b"d", kind=b"3", major=0o7777777, minor=0), "'d' has the device number", id="device-major"),
    pytest.param(member(b"d", kind=b"4", minor=_NEGATIVE[:8]), "'d' has the device number", id="device-negative"),
    pytest.param(member(b"v", kind=b"V"), "'v' is of the unknown type", id="volume-label"),
    pytest.param(member(b"m", kind=b"M"), "'m' is of the unknown type", id="multi-volume"),
    pytest.param(member(b"z", kind=b"z"), "'z' is of the unknown type", id="unknown-type"),
    pytest.param(header(b"x", size=_NEGATIVE), "'x' has the size -1", id="negative-size"),
    pytest.param(header(b"x", size=_HUGE), "'x' has the size", id="huge-size"),
    pytest.param(
        header(b"x", size=b"\x80" + (1 << 62).to_bytes(11, "big")), "ends inside the entry 'x'", id="big-size"
    ),
    pytest.param(header(b"x", size=b"12345678901"), "'x' has the number", id="octal-digits"),
    pytest.param(header(b"x", size=b"+1"), "'x' has the number", id="size-sign"),
    pytest.param(header(b"x", size=b"1_0"), "'x' has the number", id="size-underscore"),
    pytest.param(header(b"x", size=b"1 0"), "'x' has the number", id="size-space"),
    pytest.param(header(b"x", uid=_NEGATIVE[:8]), "'x' has the owner -1:0", id="negative-uid"),
    pytest.param(header(b"x", gid=b"\x80" + b"\xff" * 7), "'x' has the owner 0:", id="huge-gid"),
    pytest.param(header(b"x", mtime=_HUGE), "'x' has the time", id="huge-time"),
    pytest.param(pax((b"uid", b"4294967295")) + member(b"x"), "'x' has the owner 4294967295", id="pax-uid-minus-one"),
    pytest.param(pax((b"uid", b"-1")) + member(b"x"), "'x' has the owner b'-1'", id="pax-uid-negative"),
    pytest.param(pax((b"size", b"-1")) + member(b"x"), "'x' has the size b'-1'", id="pax-size-negative"),
    pytest.param(pax((b"size", b"99999999999999999999")) + member(b"x"), "'x' has the size", id="pax-size-huge"),
    pytest.param(pax((b"size", b"1e3")) + member(b"x"), "'x' has the size", id="pax-size-float"),
    pytest.param(pax((b"size", "٣".encode())) + member(b"x"), "'x' has the size", id="pax-size-arabic"),
    pytest.param(pax((b"mtime", b"now")) + member(b"x"), "'x' has the time", id="pax-time-word"),
    pytest.param(pax((b"mtime", b"9" * 30)) + member(b"x"), "'x' has the time", id="pax-time-huge"),
    pytest.param(pax((b"mtime", b"1.-5")) + member(b"x"), "'x' has the time", id="pax-time-fraction"),
    pytest.param(
        member(b"p", b"99 path=x\n", kind=b"x") + member(), "'p' has a PAX record with a wrong", id="pax-long"
    ),
    pytest.param(member(b"p", b"5 path=x\n", kind=b"x") + member(), "PAX record with a wrong length", id="pax-short"),
    pytest.param(member(b"p", b"0 path=x\n", kind=b"x") + member(), "PAX record with a wrong length", id="pax-zero"),
    pytest.param(member(b"p", b"2 \n", kind=b"x") + member(), "PAX record with a wrong length", id="pax-tiny"),
    pytest.param(member(b"p", b"-9 path=x\n", kind=b"x") + member(), "without a length", id="pax-negative"),
    pytest.param(member(b"p", b"x" * 100, kind=b"x") + member(), "without a length", id="pax-no-length"),
    pytest.param(member(b"p", b"1" * 100, kind=b"x") + member(), "without a length", id="pax-endless-length"),
    pytest.param(member(b"p", b"8 path\n\n", kind=b"x") + member(), "without a key", id="pax-no-equals"),
    pytest.param(member(b"p", b"5 =x\n", kind=b"x") + member(), "without a key", id="pax-no-key"),
    pytest.param(member(b"g", b"x" * 100, kind=b"g") + member(), "'g' has a PAX record", id="global-malformed"),
    pytest.param(header(b"p", kind=b"x", size=2 << 20), "extension header of 2097152 bytes", id="pax-too-large"),
    pytest.param(header(b"p", kind=b"L", size=_NEGATIVE), "extension header of -1 bytes", id="long-name-negative"),
    pytest.param(header(b"p", kind=b"x", size=b"zz"), "'p' has the number", id="pax-size-garbage"),
    pytest.param(
        pax((b"comment", b"x"), kind=b"g") * 100 + member(), "16 extension headers in a row", id="global-chain"
    ),
    pytest.param(pax((b"comment", b"x")) * 100 + member(), "16 extension headers in a row", id="pax-chain"),
    pytest.param(pax((b"path", b"x")) + END, "ends after an extension header", id="pax-without-entry"),
    pytest.param(pax((b"path", b"x")), "ends after an extension header", id="pax-at-the-end"),
    pytest.param(
        pax(*((b"SCHILY.xattr.user.%d" % n, b"") for n in range(600))) + member(b"x"),
        "'x'|more than 512 extended",
        id="many-xattrs",
    ),
    pytest.param(pax((b"SCHILY.xattr.", b"x")) + member(), "extended attribute with the name b''", id="xattr-no-name"),
    pytest.param(pax((b"SCHILY.xattr.a\0b", b"x")) + member(), "with the name", id="xattr-nul"),
    pytest.param(pax((b"SCHILY.xattr." + b"n" * 256, b"x")) + member(), "with the name", id="xattr-long-name"),
    pytest.param(pax((b"SCHILY.xattr.n", b"x" * 65537)) + member(), "attribute of 65537 bytes", id="xattr-large"),
    pytest.param(pax((b"LIBARCHIVE.xattr.n", b"!")) + member(), "not base64", id="xattr-base64"),
    pytest.param(pax((b"LIBARCHIVE.xattr.%00", b"AA")) + member(), "with the name", id="xattr-encoded-nul"),
    pytest.param(member(b"x", checksum=b"000000\0 "), "wrong checksum at its start", id="checksum"),
    pytest.param(member(b"x", checksum=b"garbage!"), "wrong checksum", id="checksum-garbage"),
    pytest.param(member(b"ok", b"1") + b"\x01" * 512, "wrong checksum after 'ok'", id="garbage-block"),
    pytest.param(member(b"ok") + bytes(512) + member(b"hidden"), "zero block that does not end", id="lone-zero-block"),
    pytest.param(member(b"x", b"y" * 600)[:-300], "ends inside the padding|inside the entry 'x'", id="cut-padding"),
    pytest.param(member(b"x", b"y" * 2000)[:1000], "ends inside the entry 'x'", id="cut-body"),
    pytest.param(member(b"x")[:300], "ends inside a header", id="cut-header"),
    pytest.param(pax((b"path", b"x" * 1000))[:700], "ends inside an extension header", id="cut-pax"),
    pytest.param(old_sparse(b"s", [(10, 5), (0, 5)], b"0123456789", 99), "'s' has a sparse map that", id="sparse-back"),
    pytest.param(old_sparse(b"s", [(0, 5), (3, 5)], b"0123456789", 99), "'s' has a sparse map that", id="sparse-over"),
    pytest.param(old_sparse(b"s", [(0, 5)], b"01234", 3), "'s' has a sparse map that", id="sparse-leaves"),
    pytest.param(old_sparse(b"s", [(0, 5)], b"0123456", 99), "map of 5 bytes but 7", id="sparse-sum"),
    pytest.param(old_sparse(b"s", [(0, 1)], b"0", _HUGE), "'s' has the sparse size", id="sparse-huge"),
    pytest.param(old_sparse(b"s", [(0, 1)], b"0", _NEGATIVE), "'s' has the sparse size -1", id="sparse-negative"),
    pytest.param(old_sparse(b"s", [(0, 1)] * 40, b"0", 99)[:1024], "ends inside its sparse map", id="sparse-cut"),
    pytest.param(
        pax((b"GNU.sparse.map", b"0,1"), (b"GNU.sparse.size", b"9" * 18)) + member(b"s", b"x"),
        "'s' has the sparse size",
        id="sparse-pax-huge",
    ),
    pytest.param(pax((b"GNU.sparse.map", b"0,1")) + member(b"s", b"x"), "map but no size", id="sparse-no-size"),
    pytest.param(
        pax((b"GNU.sparse.map", b"0,1,2"), (b"GNU.sparse.size", b"9")) + member(b"s", b"x"), "pairs", id="sparse-odd"
    ),
    pytest.param(
        pax((b"GNU.sparse.map", b"0,x"), (b"GNU.sparse.size", b"9")) + member(b"s", b"x"), "map entry", id="sparse-word"
    ),
    pytest.param(
        pax((b"GNU.sparse.numbytes", b"1"), (b"GNU.sparse.offset", b"0"), (b"GNU.sparse.size", b"9"))
        + member(b"s", b"x"),
        "not made of pairs",
        id="sparse-order",
    ),
    pytest.param(
        pax((b"GNU.sparse.major", b"2"), (b"GNU.sparse.realsize", b"9")) + member(b"s", b"x"),
        "not known",
        id="sparse-2",
    ),
    pytest.param(
        pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.realsize", b"9")) + member(b"s", pad(b"999999999\n")),
        "more than 262144 sparse pieces",
        id="sparse-1-count",
    ),
    pytest.param(
        pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.realsize", b"9")) + member(b"s", pad(b"9\n0\n")),
        "number that is too long",
        id="sparse-1-short",
    ),
    pytest.param(
        pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.realsize", b"9")) + member(b"s", b"1" * 512),
        "does not end|too long",
        id="sparse-1-number",
    ),
    pytest.param(
        pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.realsize", b"9")) + member(b"s", b"1\n"),
        "does not end",
        id="sparse-1-unpadded",
    ),
]


@pytest.mark.parametrize(("archive", "reason"), HOSTILE)
def test_hostile_archives_are_refused(archive: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        read(archive + (b"" if len(archive) % 512 or "ends" in reason else END))
    assert caught.value.message.startswith("layer 'x'")
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 600


def test_sparse_extension_chain_without_end_is_bounded() -> None:
    block = bytearray(header(b"s", kind=b"S", magic=b"ustar  \0"))
    block[482] = 1
    endless = bytearray(512)
    endless[504] = 1
    with pytest.raises(ImageError, match="empty sparse extension"):
        read(seal(bytes(block)) + bytes(endless) * 100)
    full = b"%011o\0%011o\0" % (0, 0) * 21 + b"\1" + bytes(7)
    with pytest.raises(ImageError, match="more than 262144 sparse pieces"):
        read(seal(bytes(block)) + full * 13_000)


def test_control_characters_in_names_do_not_reach_the_terminal() -> None:
    with pytest.raises(ImageError) as caught:
        read(member(b"\x1b[31m\n../..", kind=b"Q"))
    assert caught.value.message.isprintable()


def test_reader_errors_pass_through() -> None:
    def read_piece(size: int) -> bytes:
        raise ImageError("from below")

    with pytest.raises(ImageError, match="from below"):
        next(TarReader(read_piece))


def test_trailer_before_the_end_is_a_bug() -> None:
    reader = TarReader(io.BytesIO(member() + END).read)
    with pytest.raises(RuntimeError):
        list(reader.iter_trailer())


def test_record_of_the_builder_counts_itself() -> None:
    assert record(b"a", b"b") == b"6 a=b\n"
    assert record(b"a", b"b" * 4) == b"9 a=bbbb\n"
    assert record(b"a", b"b" * 5) == b"11 a=bbbbb\n"
