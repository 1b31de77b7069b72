"""Side by side with mkcomposefs and composefs-info: images, stores and text must be the same.

The tree is that of BOOTWRIGHT_TREE, or else a whole operating system: the largest of the example images, as root
unpacks it.
"""

import filecmp
import json
import os
import subprocess
from pathlib import Path

import pytest
from osimages import ensure_images

from bootwright.cli import main as cli_main
from bootwright.erofs import dumpfile
from fakes.peers import find_peer, run_peer
from fakes.trees import load_vectors

pytestmark = pytest.mark.system


def run(*arguments: str | Path) -> None:
    assert cli_main.main(["composefs", *map(str, arguments)]) == 0


@pytest.fixture(scope="module", autouse=True)
def peers() -> None:
    find_peer("mkcomposefs")
    find_peer("composefs-info")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if chosen := os.environ.get("BOOTWRIGHT_TREE"):
        return Path(chosen)
    if os.geteuid() != 0:
        return Path(os.__file__).parent
    root = tmp_path_factory.mktemp("os")
    for layer in read_layers(ensure_images("big")["big"], "big"):
        subprocess.run(["tar", "-C", root, "--xattrs", "--xattrs-include=*", "-xpf", layer], check=True)
    return root


def read_layers(layout: Path, tag: str) -> list[Path]:
    """Return the layer files of an image of a layout, lowest first."""

    def blob(digest: str) -> Path:
        return layout / "blobs" / digest.replace(":", "/")

    index = json.loads((layout / "index.json").read_text())
    (digest,) = (
        one["digest"] for one in index["manifests"] if one["annotations"]["org.opencontainers.image.ref.name"] == tag
    )
    return [blob(layer["digest"]) for layer in json.loads(blob(digest).read_text())["layers"]]


def test_the_tree_is_a_real_one(tree: Path) -> None:
    count = sum(len(directories) + len(names) for _, directories, names in os.walk(tree))
    assert count > (50_000 if os.geteuid() == 0 and "BOOTWRIGHT_TREE" not in os.environ else 1000)


@pytest.fixture(scope="module")
def images(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``theirs`` and ``ours``, images of the same tree, and the stores that belong to them."""
    ground = tmp_path_factory.mktemp("peers")
    run_peer("mkcomposefs", f"--digest-store={ground}/theirs.store", tree, ground / "theirs")
    run("mkimage", "--digest-store", ground / "ours.store", tree, ground / "ours")
    return ground


def test_image_of_a_directory(images: Path) -> None:
    assert (images / "ours").read_bytes() == (images / "theirs").read_bytes()


def test_stores_hold_the_same(images: Path) -> None:
    ours, theirs = images / "ours.store", images / "theirs.store"
    names = sorted(str(path.relative_to(theirs)) for path in theirs.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(ours)) for path in ours.rglob("*") if path.is_file())
    _, mismatch, errors = filecmp.cmpfiles(ours, theirs, names, shallow=False)
    assert not mismatch
    assert not errors
    assert {(theirs / name).stat().st_mode for name in names} == {(ours / name).stat().st_mode for name in names}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--use-epoch"], id="use-epoch"),
        pytest.param(["--skip-xattrs"], id="skip-xattrs"),
        pytest.param(["--user-xattrs"], id="user-xattrs"),
        pytest.param(["--skip-devices"], id="skip-devices"),
        pytest.param(["--min-version=1"], id="version-1"),
        pytest.param(["--threads=1"], id="alone"),
    ],
)
def test_digest_with_options(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    for number in range(50):
        (tree / "d" / f"{number}").write_bytes(b"x" * (number * 97))
    (tree / "s").symlink_to("d/1")
    os.setxattr(tree / "d" / "1", "user.a", b"b")
    if os.geteuid() == 0:
        os.setxattr(tree / "d", "trusted.overlay.opaque", b"y")
        os.mknod(tree / "whiteout", 0o20644, 0)
        os.mknod(tree / "device", 0o60644, os.makedev(259, 70_000))
    theirs = run_peer("mkcomposefs", "--print-digest-only", *options, tree)
    run("mkimage", "--print-digest-only", *options, tree)
    assert capsys.readouterr().out.encode() == theirs


@pytest.mark.parametrize("command", ["ls", "dump", "objects"])
def test_info_prints_the_same(images: Path, command: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    theirs = run_peer("composefs-info", command, images / "theirs")
    capfdbinary.readouterr()
    run("info", command, images / "ours")
    assert capfdbinary.readouterr().out == theirs
    assert theirs.count(b"\n") > 50


def test_missing_objects_and_measures(images: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    objects = run_peer("composefs-info", "objects", images / "theirs").split()
    removed = objects[::3]
    for name in removed:
        (images / "ours.store" / name.decode()).rename(images / "ours.store" / (name.decode() + ".away"))
    try:
        theirs = run_peer("composefs-info", f"--basedir={images}/ours.store", "missing-objects", images / "ours")
        run("info", "--basedir", images / "ours.store", "missing-objects", images / "theirs")
        assert capfdbinary.readouterr().out == theirs == b"".join(name + b"\n" for name in removed)
    finally:
        for name in removed:
            (images / "ours.store" / (name.decode() + ".away")).rename(images / "ours.store" / name.decode())
    files = [images / "ours", images / "theirs.store" / objects[0].decode()]
    measured = run_peer("composefs-info", "measure-file", *files)
    run("info", "measure-file", *files)
    assert capfdbinary.readouterr().out == measured


def test_our_dump_makes_their_image(images: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    run("info", "dump", images / "ours")
    (tmp_path / "dump").write_bytes(capfdbinary.readouterr().out)
    run_peer("mkcomposefs", "--from-file", tmp_path / "dump", tmp_path / "theirs")
    assert (tmp_path / "theirs").read_bytes() == (images / "ours").read_bytes()


def test_vectors_are_what_this_peer_makes(tmp_path: Path) -> None:
    for vector in load_vectors()["images"]:
        (tmp_path / "dump").write_text(vector["dump"])
        options = [f"--min-version={vector['min_version']}", f"--max-version={vector['max_version']}", "--from-file"]
        run_peer("mkcomposefs", *options, tmp_path / "dump", tmp_path / "theirs")
        run("mkimage", *options, tmp_path / "dump", tmp_path / "ours")
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes(), vector["name"]
        dumpfile.parse(run_peer("composefs-info", "dump", tmp_path / "ours"))
