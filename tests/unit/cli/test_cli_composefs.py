"""``bootwright composefs`` from the outside: results, exit statuses and messages."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bootwright.cli import main as cli_main
from bootwright.errors import ImageError, UsageError
from bootwright.linux import fsverity
from bootwright.ops.mkimage import choose_versions

DUMP = "/ 0 40755 2 0 0 0 0.0 - - -\n"
DIGEST = "8f589e8f57ecb88823736b0d857ddca1e1068a23e264fad164b28f7038eb3682"


class Result:
    """Exit status and what was printed."""

    def __init__(self, status: int, out: bytes, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> "Runner":
    return Runner(capfdbinary)


class Runner:
    def __init__(self, capture: pytest.CaptureFixture[bytes]) -> None:
        self._capture = capture

    def __call__(self, *arguments: str | Path) -> Result:
        status = cli_main.main(["composefs", *map(str, arguments)])
        out, err = self._capture.readouterr()
        return Result(status, out, err.decode())


@pytest.fixture
def dump_file(tmp_path: Path) -> Path:
    path = tmp_path / "tree.dump"
    path.write_text(DUMP)
    return path


def test_image_of_a_dump(run: Runner, dump_file: Path, tmp_path: Path) -> None:
    image = tmp_path / "image.cfs"
    result = run("mkimage", "--from-file", "--print-digest", dump_file, image)
    assert (result.status, result.out, result.err) == (0, f"{DIGEST}\n".encode(), "")
    assert fsverity.compute(image.read_bytes()).hex == DIGEST
    assert image.stat().st_mode & 0o777 == 0o644


def test_digest_only_reads_standard_input(run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(DUMP.encode())))
    monkeypatch.chdir(tmp_path)
    assert run("mkimage", "--from-file", "--print-digest-only", "-").out == f"{DIGEST}\n".encode()
    assert os.listdir(tmp_path) == []


def test_image_to_standard_output(run: Runner, dump_file: Path) -> None:
    result = run("mkimage", "--from-file", "--print-digest", dump_file, "-")
    assert fsverity.compute(result.out).hex == DIGEST
    # Standard output is the image, whole; the digest goes to the other one.
    assert result.err == f"{DIGEST}\n"


def test_an_image_is_not_written_to_a_terminal(dump_file: Path) -> None:
    master, slave = os.openpty()
    try:
        command = [sys.executable, "-m", "bootwright", "composefs", "mkimage", "--from-file", str(dump_file), "-"]
        result = subprocess.run(command, stdout=slave, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(master)
        os.close(slave)
    assert result.returncode == 2
    assert b"not written to a terminal" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        pytest.param(["mkimage"], 2, "Missing argument 'SOURCE'", id="no-source"),
        pytest.param(["mkimage", "--from-file", "DUMP"], 2, "Missing argument 'IMAGE'", id="no-image"),
        pytest.param(["mkimage", "--frobnicate", "DUMP", "x"], 2, "--frobnicate", id="unknown-option"),
        pytest.param(["mkimage", "--from-file", "--print-digest-only", "DUMP", "x"], 2, "writes no image", id="both"),
        pytest.param(["mkimage", "--skip-xattrs", "--user-xattrs", "DIR", "x"], 2, "exclude each other", id="xattrs"),
        pytest.param(
            ["mkimage", "--from-file", "--min-version=2", "DUMP", "x"], 2, "no format version 2", id="version"
        ),
        pytest.param(["mkimage", "--from-file", "none", "x"], 1, "could not read 'none': No such file", id="no-dump"),
        pytest.param(
            ["mkimage", "DUMP", "x"], 2, "is no directory\n  hint: a dump file needs --from-file", id="no-dir"
        ),
        pytest.param(["mkimage", "--from-file", "BAD", "x"], 13, "line 2 of the dump, field mode", id="bad-dump"),
        pytest.param(["mkimage", "--from-file", "DUMP", "none/x"], 1, "could not write the image", id="no-target-dir"),
        pytest.param(["info", "ls", "DUMP"], 13, "this is no composefs image", id="no-image-file"),
        pytest.param(["info", "ls", "none"], 1, "could not read the image 'none'", id="missing-image"),
        pytest.param(["info", "ls"], 2, "Missing argument 'IMAGE...'", id="info-without-image"),
        pytest.param(["info", "missing-objects", "IMAGE"], 2, "needs --basedir DIR", id="no-basedir"),
        pytest.param(["info", "--filter", "a/b", "ls", "IMAGE"], 2, "'a/b' is a path", id="filter-path"),
        pytest.param(["mount", "-o", "ro", "IMAGE", "DIR"], 2, "needs a directory of objects", id="no-basedir-mount"),
        pytest.param(["mount", "-o", "noverity", "IMAGE", "DIR"], 2, "unknown mount option", id="noverity"),
        pytest.param(
            ["mount", "-o", "basedir=DIR,digest=" + "0" * 64, "IMAGE", "DIR"], 5, "has no fs-verity", id="digest"
        ),
        pytest.param(["umount", "none"], 1, "could not unmount 'none'", id="umount"),
    ],
)
def test_errors(
    run: Runner,
    dump_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    status: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dir").mkdir()
    (tmp_path / "bad").write_text(DUMP + "/a 0 x 1 0 0 0 0.0 - - -\n")
    run("mkimage", "--from-file", dump_file, "image")
    names = {"DUMP": "tree.dump", "BAD": "bad", "DIR": "dir", "IMAGE": "image", "basedir=DIR": "basedir=dir"}
    before = sorted(os.listdir(tmp_path))
    result = run(*[names.get(argument, argument.replace("basedir=DIR", "basedir=dir")) for argument in arguments])
    assert result.status == status, result.err
    assert message in result.err
    assert result.err.startswith("error: ")
    assert result.out == b""
    assert sorted(os.listdir(tmp_path)) == before, "something was left behind"


def test_a_failure_keeps_the_old_image(run: Runner, tmp_path: Path) -> None:
    image, bad = tmp_path / "image", tmp_path / "bad"
    image.write_bytes(b"old")
    bad.write_text("nonsense\n")
    assert run("mkimage", "--from-file", bad, image).status == ImageError.exit_code
    assert image.read_bytes() == b"old"


def test_image_through_a_symlink_and_into_a_pipe(run: Runner, dump_file: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    assert run("mkimage", "--from-file", dump_file, tmp_path / "link").status == 0
    assert (tmp_path / "link").is_symlink()
    assert fsverity.compute((tmp_path / "real").read_bytes()).hex == DIGEST
    reader, writer = os.pipe()
    try:
        assert run("mkimage", "--from-file", dump_file, f"/dev/fd/{writer}").status == 0
        assert len(os.read(reader, 1 << 20)) == 16384
    finally:
        os.close(reader)
        os.close(writer)


def make_tree(directory: Path) -> None:
    (directory / "d").mkdir(parents=True)
    (directory / "d" / "big").write_bytes(b"big" * 100)
    (directory / "d" / "same").write_bytes(b"big" * 100)
    (directory / "small").write_bytes(b"small")
    (directory / "empty").touch()
    (directory / "link").symlink_to("d/big")
    os.link(directory / "small", directory / "hard")
    os.mkfifo(directory / "fifo")


def test_image_of_a_directory_and_its_store(run: Runner, tmp_path: Path) -> None:
    tree, store, image = tmp_path / "tree", tmp_path / "new" / "store", tmp_path / "image"
    make_tree(tree)
    result = run("mkimage", "--digest-store", store, "--use-epoch", tree, image)
    assert result.status == 0, result.err
    name = fsverity.compute(b"big" * 100).object_path
    assert (store / name).read_bytes() == b"big" * 100
    assert (store / name).stat().st_mode & 0o777 == 0o644
    assert run("info", "objects", image).out == f"{name}\n".encode()
    assert run("info", "--basedir", store, "missing-objects", image).out == b""
    assert run("info", "--basedir", tree, "missing-objects", image).out == f"{name}\n".encode()
    assert run("info", "ls", image).out.splitlines() == [
        b"/d/\t",
        f"/d/big\t@ {name}".encode(),
        f"/d/same\t@ {name}".encode(),
        b"/empty",
        b"/fifo",
        b"/hard",
        b"/link\t-> d/big",
        b"/small",
    ]
    lines = run("info", "--filter", "small", "--filter", "hard", "dump", image).out.splitlines()
    assert [line.split()[0] for line in lines] == [b"/", b"/hard", b"/small"]
    assert all(line.split()[7] == b"0.0" and line.split()[3] != b"2" for line in lines[1:])
    measured = run("info", "measure-file", tree / "d" / "big", image)
    assert measured.out.decode().split() == [name.replace("/", ""), fsverity.compute(image.read_bytes()).hex]
    again = run("mkimage", "--threads", "2", "--use-epoch", "--print-digest-only", tree)
    assert again.out.decode().strip() == measured.out.decode().split()[1]


def test_hard_links_on_request(run: Runner, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    run("mkimage", "--hardlinks", tmp_path / "tree", tmp_path / "image")
    lines = run("info", "dump", tmp_path / "image").out.splitlines()
    real, link = (next(line.split() for line in lines if line.startswith(name)) for name in (b"/hard ", b"/small "))
    assert real[3] == b"2"
    assert (link[2][:1], link[8]) == (b"@", b"/hard")


def test_a_symlink_is_no_source(run: Runner, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    (tmp_path / "s").symlink_to("tree")
    result = run("mkimage", tmp_path / "s", tmp_path / "image")
    assert result.status == UsageError.exit_code
    assert not (tmp_path / "image").exists()


@pytest.mark.parametrize(
    ("minimum", "maximum", "expected"),
    [
        (None, None, (0, 1)),
        (0, None, (0, 0)),
        (1, None, (1, 1)),
        (None, 1, (0, 1)),
        (None, 0, (0, 0)),
        (1, 0, (1, 1)),
    ],
)
def test_version_range(minimum: int | None, maximum: int | None, expected: tuple[int, int]) -> None:
    assert choose_versions(minimum, maximum) == expected


@pytest.mark.parametrize(("minimum", "maximum"), [(2, None), (None, 2), (-1, None)])
def test_version_range_has_limits(minimum: int | None, maximum: int | None) -> None:
    with pytest.raises(UsageError, match="no format version"):
        choose_versions(minimum, maximum)
