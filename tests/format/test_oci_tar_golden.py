"""TarReader beside Python's tarfile, and on archives made by the real tar programs."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootwright.oci.layer import EntryType, TarEntry, TarReader, expand_sparse
from fakes.images import Entry, device, directory, fifo, file, hardlink, make_tar, symlink

_KINDS = {
    tarfile.REGTYPE: EntryType.REG,
    tarfile.AREGTYPE: EntryType.REG,
    tarfile.CONTTYPE: EntryType.REG,
    tarfile.GNUTYPE_SPARSE: EntryType.REG,
    tarfile.DIRTYPE: EntryType.DIR,
    tarfile.SYMTYPE: EntryType.SYMLINK,
    tarfile.LNKTYPE: EntryType.HARDLINK,
    tarfile.CHRTYPE: EntryType.CHAR,
    tarfile.BLKTYPE: EntryType.BLOCK,
    tarfile.FIFOTYPE: EntryType.FIFO,
}


def read(archive: bytes, chunk: int = 1 << 20) -> list[tuple[TarEntry, bytes]]:
    """Read entries and contents; the parts joined must be the archive."""
    source = io.BytesIO(archive)
    reader = TarReader(lambda size: source.read(min(size, chunk)))
    found = []
    rebuilt = hashlib.sha256()
    for entry in reader:
        stored = b"".join(reader.iter_body())
        rebuilt.update(entry.header + stored)
        found.append((entry, b"".join(expand_sparse(entry, [stored] if stored else []))))
    for piece in reader.iter_trailer():
        rebuilt.update(piece)
    assert rebuilt.digest() == hashlib.sha256(archive).digest()
    return found


def _clean(name: str) -> bytes:
    return b"/".join(part for part in os.fsencode(name).split(b"/") if part not in (b"", b"."))


def check_against_tarfile(archive: bytes) -> int:
    """Compare every field that Python's tarfile knows; returns the number of entries."""
    found = read(archive)
    with tarfile.open(fileobj=io.BytesIO(archive), errors="surrogateescape", encoding="utf-8") as other:
        members = other.getmembers()
        assert len(found) == len(members)
        for (entry, content), member in zip(found, members, strict=True):
            assert entry.name == _clean(member.name)
            assert entry.type is _KINDS[member.type]
            assert entry.mode == member.mode & 0o7777
            assert (entry.uid, entry.gid) == (member.uid, member.gid)
            # tarfile reads PAX times as floats, which hold microseconds at best.
            assert abs(entry.mtime_sec + entry.mtime_nsec / 1e9 - member.mtime) < 1e-5
            if entry.type is EntryType.REG:
                extracted = other.extractfile(member)
                assert extracted is not None
                assert (entry.size, content) == (member.size, extracted.read())
            elif entry.type is EntryType.SYMLINK:
                assert entry.linkname == os.fsencode(member.linkname)
            elif entry.type is EntryType.HARDLINK:
                assert entry.linkname == _clean(member.linkname)
            elif entry.type in (EntryType.CHAR, EntryType.BLOCK):
                assert entry.rdev == os.makedev(member.devmajor, member.devminor)
            prefix = "SCHILY.xattr."
            xattrs = {
                key.removeprefix(prefix).encode(): value.encode("utf-8", "surrogateescape")
                for key, value in member.pax_headers.items()
                if key.startswith(prefix)
            }
            assert (entry.xattrs or {}) == xattrs
    return len(found)


# --- written by tarfile

_names = st.lists(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60)
    .filter(lambda part: part not in (".", "..") and len(part.encode()) < 250),
    min_size=1,
    max_size=4,
).map("/".join)  # fmt: skip
_plain_names = st.text("abcXYZ019._-", min_size=1, max_size=20).filter(lambda part: part.strip(".") != "")
_owners = st.integers(0, 0o7777777)
_big_owners = st.integers(0, 0xFFFFFFFE)


def _entries(names: st.SearchStrategy[str], owners: st.SearchStrategy[int], times: st.SearchStrategy[float | int],
             xattrs: st.SearchStrategy[dict[str, bytes]]) -> st.SearchStrategy[list[Entry]]:  # fmt: skip
    fields = st.fixed_dictionaries({"uid": owners, "gid": owners, "mtime": times, "xattrs": xattrs})
    modes = st.integers(0, 0o7777)
    one = st.one_of(
        st.builds(lambda n, d, m, f: file(n, d, mode=m, **f), names, st.binary(max_size=2000), modes, fields),
        st.builds(lambda n, m, f: directory(n, mode=m, **f), names, modes, fields),
        st.builds(lambda n, t, f: symlink(n, t, **f), names, names, fields),
        st.builds(lambda n, t, f: hardlink(n, t, **f), names, names, fields),
        st.builds(lambda n, a, i, f: device(n, a, i, **f), names, st.integers(0, 4095), st.integers(0, 1 << 20), fields)
        .filter(lambda entry: entry[0].devminor < 1 << 20),
        st.builds(lambda n, f: fifo(n, **f), names, fields),
    )  # fmt: skip
    return st.lists(one, max_size=8)


_no_xattrs: st.SearchStrategy[dict[str, bytes]] = st.just({})
_xattrs = st.dictionaries(st.text("abc.", min_size=1, max_size=10), st.binary(max_size=30), max_size=3)


@settings(max_examples=60, deadline=None)
@given(_entries(_names, _big_owners, st.integers(-(1 << 40), 1 << 40).map(lambda n: n / 1024), _xattrs))
def test_random_pax_archives(entries: list[Entry]) -> None:
    assert check_against_tarfile(make_tar(entries, tar_format=tarfile.PAX_FORMAT)) == len(entries)


@settings(max_examples=60, deadline=None)
@given(_entries(_names, _big_owners, st.integers(-(1 << 60), 1 << 60), _no_xattrs))
def test_random_gnu_archives(entries: list[Entry]) -> None:
    assert check_against_tarfile(make_tar(entries, tar_format=tarfile.GNU_FORMAT)) == len(entries)


@settings(max_examples=60, deadline=None)
@given(_entries(_plain_names, _owners, st.integers(0, (1 << 33) - 1), _no_xattrs))
def test_random_ustar_archives(entries: list[Entry]) -> None:
    assert check_against_tarfile(make_tar(entries, tar_format=tarfile.USTAR_FORMAT)) == len(entries)


# --- written by the real programs


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with everything an unprivileged user can make."""
    root = tmp_path_factory.mktemp("tree")
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/tool").write_bytes(bytes(range(256)) * 700)
    (root / "usr/bin/tool").chmod(0o4755)
    (root / "empty").touch()
    (root / "link").symlink_to("usr/bin/tool")
    (root / "dangling").symlink_to("../" * 40 + "x" * 120)
    os.link(root / "usr/bin/tool", root / "usr/bin/other")
    os.mkfifo(root / "fifo")
    deep = root / "/".join(["d" * 60] * 4)[1:]
    deep.mkdir(parents=True)
    (deep / ("n" * 120)).write_bytes(b"deep")
    (root / "ümläut").write_bytes(b"utf-8")
    (Path(os.fsdecode(bytes(root) + b"/latin-\xe4"))).write_bytes(b"not utf-8")
    (root / "block").write_bytes(b"x" * 512)
    for name, second in [("old", -1), ("y2k38", 1 << 31), ("exact", 1_700_000_000)]:
        (root / name).touch()
        os.utime(root / name, ns=(0, second * 10**9 + 123_456_789))
    with open(root / "sparse", "wb") as sparse:
        for at in range(60):
            sparse.seek(at * 200_000)
            sparse.write(b"data %d" % at)
        sparse.truncate(20_000_000)
    with open(root / "hole", "wb") as hole:
        hole.truncate(5_000_000)
    return root


def _content_matches(
    tree: Path, found: list[tuple[TarEntry, bytes]], *, has_ns: bool, keeps_old_times: bool = True
) -> None:
    """Compare with what is on disk."""
    assert len({entry.name for entry, _ in found}) == len(found)
    names = {os.fsencode(os.path.relpath(path, tree)) for path in tree.rglob("*")}
    assert {entry.name for entry, _ in found} - {b""} == names
    for entry, content in found:
        path = os.path.join(os.fsencode(tree), entry.name)
        status = os.lstat(path)
        assert entry.mode == status.st_mode & 0o7777 or entry.type is EntryType.SYMLINK
        assert (entry.uid, entry.gid) == (status.st_uid, status.st_gid)
        if status.st_mtime_ns < 0 and not keeps_old_times:
            pass
        elif has_ns:
            assert entry.mtime_sec * 10**9 + entry.mtime_nsec == status.st_mtime_ns
        else:
            assert entry.mtime_sec == status.st_mtime_ns // 10**9
        if entry.type is EntryType.REG:
            assert entry.size == status.st_size
            assert hashlib.sha256(content).digest() == hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).digest()
        elif entry.type is EntryType.SYMLINK:
            assert entry.linkname == os.readlink(path)
        elif entry.type is EntryType.HARDLINK:
            assert os.lstat(os.path.join(os.fsencode(tree), entry.linkname)).st_ino == status.st_ino


def _run(program: str, *args: str) -> bytes:
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}")
    return subprocess.run(
        [program, *args], check=True, capture_output=True, env={**os.environ, "LC_ALL": "C.UTF-8"}
    ).stdout


@pytest.mark.parametrize(
    ("options", "has_ns"),
    [
        pytest.param(["--format=gnu"], False, id="gnu"),
        pytest.param(["--format=gnu", "--sparse"], False, id="gnu-sparse"),
        pytest.param(["--format=oldgnu", "--sparse", "-b1"], False, id="oldgnu-sparse"),
        pytest.param(["--format=pax"], True, id="pax"),
        pytest.param(["--format=pax", "--sparse", "--sparse-version=0.0"], True, id="pax-sparse-0.0"),
        pytest.param(["--format=pax", "--sparse", "--sparse-version=0.1"], True, id="pax-sparse-0.1"),
        pytest.param(["--format=pax", "--sparse", "--sparse-version=1.0"], True, id="pax-sparse-1.0"),
        pytest.param(["--format=pax", "--sparse", "--hole-detection=raw", "--xattrs", "--acls"], True, id="pax-raw"),
        pytest.param(["--format=pax", "--pax-option=globexthdr.name=g,comment=x"], True, id="pax-global"),
    ],
)
def test_gnu_tar(tree: Path, options: list[str], has_ns: bool) -> None:
    archive = _run("tar", "-cf", "-", *options, "-C", str(tree), ".")
    found = read(archive)
    _content_matches(tree, found, has_ns=has_ns)
    if "--sparse" in options:
        assert {entry.name for entry, _ in found if entry.sparse is not None} == {b"sparse", b"hole"}
        assert len(archive) < 2_000_000
    assert [entry.name for entry, _ in read(archive, 777)] == [entry.name for entry, _ in found]


@pytest.mark.parametrize("tar_format", ["ustar", "v7"])
def test_gnu_tar_writes_old_formats(tree: Path, tar_format: str) -> None:
    archive = _run("tar", "-cf", "-", f"--format={tar_format}", "-C", str(tree), "usr", "empty", "link", "block")
    assert check_against_tarfile(archive) == 7


@pytest.mark.parametrize("tar_format", ["gnu", "pax"])
def test_gnu_tar_and_tarfile_agree(tree: Path, tar_format: str) -> None:
    check_against_tarfile(_run("tar", "-cf", "-", f"--format={tar_format}", "-C", str(tree), "."))


@pytest.mark.parametrize("tar_format", ["pax", "gnutar"])
def test_bsdtar(tree: Path, tar_format: str) -> None:
    found = read(_run("bsdtar", "-cf", "-", f"--format={tar_format}", "-C", str(tree), "."))
    # libarchive writes times before 1970 as zero, or with the fraction on the wrong side of the second.
    _content_matches(tree, found, has_ns=tar_format == "pax", keeps_old_times=False)


def test_xattrs_written_by_gnu_tar(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    value = bytes(range(256))
    try:
        os.setxattr(path, "user.binary", value)
        os.setxattr(path, "user.empty", b"")
    except OSError as exc:
        pytest.skip(f"no extended attributes here: {exc}")
    archive = _run(
        "tar", "-cf", "-", "--format=pax", "--xattrs", "--xattrs-include=user.*", "-C", str(tmp_path), "file"
    )
    [(entry, _)] = read(archive)
    assert entry.xattrs is not None
    assert entry.xattrs[b"user.binary"] == value
    assert entry.xattrs[b"user.empty"] == b""


def test_archives_of_a_python_file_collection() -> None:
    """Every dialect of one collection gives the same entries."""
    entries = [
        directory("etc"),
        file("etc/a", b"a" * 513, mtime=1_700_000_000),
        symlink("etc/b", "a"),
        hardlink("etc/c", "etc/a"),
        device("null", 1, 3, mode=0o666),
        fifo("pipe"),
    ]
    forms = [
        [
            (e.name, e.type, e.mode, e.mtime_sec, e.linkname, e.rdev, body)
            for e, body in read(make_tar(entries, tar_format=f))
        ]
        for f in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    ]
    assert forms[0] == forms[1] == forms[2]
    assert len(forms[0]) == len(entries)
