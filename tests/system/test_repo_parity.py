"""The merged tree is what other tools unpack, and an exported image is what was pulled."""

import gzip
import hashlib
import json
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from bootwright.digest import Algorithm
from bootwright.erofs.tree import HardLink, Inode, resolve, walk
from bootwright.errors import VerificationError
from bootwright.linux import fsverity
from bootwright.linux.architecture import oci_name
from bootwright.oci.reference import ImageReference
from bootwright.oci.source import SourceOptions
from bootwright.progress import SILENT
from bootwright.repo import Repository
from bootwright.repo.export import Compression, export_image
from bootwright.repo.images import PulledImage, get_image, read_tree
from bootwright.repo.imports import pull
from fakes.images import (
    BuiltImage,
    ImageBuilder,
    device,
    directory,
    fifo,
    file,
    hardlink,
    opaque,
    symlink,
    whiteout,
)
from fakes.peers import run_peer

pytestmark = pytest.mark.system

ARCHITECTURE = oci_name()


def layered_image() -> BuiltImage:
    """Everything that layers can do to each other, in forms on which all tools agree."""
    builder = ImageBuilder(architecture=ARCHITECTURE, labels={"version": "7"}, annotations={"org.example": "kept"})
    builder.add_layer(
        [
            directory("usr", mtime=1_600_000_000),
            directory("usr/share", mtime=1_600_000_001, mode=0o2755, gid=50),
            file("usr/share/a", b"a" * 100, mtime=1_600_000_002),
            file("usr/share/b", b"b" * 5000, mode=0o4711, uid=10, gid=20),
            hardlink("usr/share/b-again", "usr/share/b"),
            file("usr/share/empty"),
            symlink("usr/share/link", "../nowhere"),
            directory("etc", mtime=5),
            file("etc/gone", b"g"),
            file("etc/changed", b"1"),
            directory("etc/tree"),
            directory("etc/tree/deep"),
            file("etc/tree/deep/er", b"x" * 80),
            directory("opaque", mtime=6),
            file("opaque/old", b"old"),
            directory("opaque/olddir"),
            file("opaque/olddir/x", b"x"),
            directory("dir-to-file"),
            file("dir-to-file/x", b"x"),
            file("file-to-dir", b"f"),
            symlink("link-to-file", "etc/changed"),
            device("null", 1, 3, mode=0o666),
            device("disk", 8, 300, is_block=True),
            fifo("pipe", mode=0o600),
            directory("x" * 200),
            file("x" * 200 + "/" + "y" * 200, b"long"),
            file("caf\u00e9 \n\t'\"", b"odd name"),
        ]
    )
    builder.add_layer(
        [
            whiteout("etc/gone"),
            whiteout("etc/tree"),
            file("etc/changed", b"22", mode=0o600, mtime=9),
            directory("usr/share", mtime=1_600_000_009, mode=0o700),
            hardlink("usr/share/b-third", "usr/share/b"),
            directory("opaque", mtime=7),
            opaque("opaque"),
            file("opaque/new", b"new"),
            file("dir-to-file", b"now a file"),
            directory("file-to-dir", mtime=8),
            file("file-to-dir/inside", b"inside"),
            file("link-to-file", b"no link any more"),
        ],
        "zstd",
    )
    builder.add_layer(
        [
            file("usr/share/capable", b"c" * 70, xattrs={"security.capability": CAPABILITY}),
            directory("etc/tree", mtime=10),
            file("etc/tree/back", b"back"),
            whiteout("usr/share/b"),
        ],
        "none",
        tar_format=tarfile.PAX_FORMAT,
    )
    return builder.build()


# cap_net_raw=ep, in the kernel's second format
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Repository]:
    with Repository.init(str(tmp_path / "repository")) as made:
        yield made


def fetch(repo: Repository, layout: Path, tag: str = "v1") -> PulledImage:
    reference = ImageReference.parse(f"oci:{layout}:{tag}")
    return pull(repo, reference, SourceOptions(), progress=SILENT, tag="image")


def describe(repo: Repository, root: Inode) -> dict[bytes, tuple[object, ...]]:
    found: dict[bytes, tuple[object, ...]] = {}
    for path, node in walk(root):
        inode = resolve(node)
        content: bytes | None = None
        if inode.is_regular:
            content = hashlib.sha256(repo.read_inode(inode)).digest()
        elif inode.is_symlink:
            content = inode.target
        mtime = inode.mtime_sec
        rdev = inode.rdev if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode) else 0
        xattrs = tuple(sorted(inode.xattrs.items()))
        nlink = 0 if inode.is_directory else inode.nlink
        found[path] = (oct(inode.mode), inode.uid, inode.gid, mtime, rdev, nlink, xattrs, content)
    return found


def describe_directory(top: Path) -> dict[bytes, tuple[object, ...]]:
    found: dict[bytes, tuple[object, ...]] = {}
    root = os.fsencode(top)
    paths = [root]
    for parent, directories, names in os.walk(root):
        paths.extend(os.path.join(parent, name) for name in (*directories, *names))
    for path in paths:
        status = os.lstat(path)
        content: bytes | None = None
        if stat.S_ISREG(status.st_mode):
            content = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).digest()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        xattrs = tuple(
            sorted(
                (os.fsencode(name), os.getxattr(path, name, follow_symlinks=False))
                for name in os.listxattr(path, follow_symlinks=False)
                if name == "security.capability"
            )
        )
        found[path.removeprefix(root) or b"/"] = (
            oct(status.st_mode),
            status.st_uid,
            status.st_gid,
            int(status.st_mtime),
            status.st_rdev,
            0 if stat.S_ISDIR(status.st_mode) else status.st_nlink,
            xattrs,
            content,
        )
    return found


def test_merged_tree_is_what_umoci_unpacks(repo: Repository, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to unpack owners and devices")
    layout = layered_image().write_layout(tmp_path / "oci", "v1")
    run_peer("umoci", "unpack", "--image", f"{layout}:v1", tmp_path / "bundle")
    expected = describe_directory(tmp_path / "bundle" / "rootfs")
    found = describe(repo, read_tree(repo, fetch(repo, layout).image_id))
    # The root takes /usr's metadata here, and archives without the root leave it to the tool.
    del expected[b"/"], found[b"/"]
    assert found == expected


def test_hard_links_of_all_layers_are_one_inode(repo: Repository, tmp_path: Path) -> None:
    layout = layered_image().write_layout(tmp_path / "oci", "v1")
    tree = read_tree(repo, fetch(repo, layout).image_id)
    names = {path: node for path, node in walk(tree) if path.startswith(b"/usr/share/b")}
    assert sorted(names) == [b"/usr/share/b-again", b"/usr/share/b-third"]
    assert isinstance(names[b"/usr/share/b-third"], HardLink)
    assert resolve(names[b"/usr/share/b-third"]) is names[b"/usr/share/b-again"]


def test_c_tools_make_the_same_image(repo: Repository, tmp_path: Path) -> None:
    """What mkcomposefs makes of our tree's dump is our image: the writer and the tree agree with the C tools."""
    layout = layered_image().write_layout(tmp_path / "oci", "v1")
    image_id = fetch(repo, layout).image_id
    dump = tmp_path / "dump"
    dump.write_bytes(run_peer("composefs-info", "dump", repo.object_path(image_id)))
    arguments = ["--from-file", "--min-version=1", "--max-version=1", "--print-digest-only"]
    assert run_peer("mkcomposefs", *arguments, dump).decode().strip() == image_id.hex


# ---- export --------------------------------------------------------------------------------------------------


def read_blob(layout: Path, digest: str) -> bytes:
    data = (layout / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()
    assert f"sha256:{hashlib.sha256(data).hexdigest()}" == digest
    return data


def read_manifest(layout: Path) -> dict[str, Any]:
    index = json.loads((layout / "index.json").read_text())
    manifest: dict[str, Any] = json.loads(read_blob(layout, index["manifests"][0]["digest"]))
    return manifest


def sparse_tar() -> bytes:
    info = tarfile.TarInfo("GNUSparseFile.0/holes")
    info.size = 512 + 600
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "holes",
        "GNU.sparse.realsize": "1000000",
    }
    body = b"1\n65536\n600\n".ljust(512, b"\0") + b"s" * 600
    return info.tobuf(tarfile.PAX_FORMAT) + body + bytes(-len(body) % 512) + bytes(10240)


@pytest.mark.parametrize("algorithm", list(Algorithm))
@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_export_has_the_diff_ids_that_were_pulled(
    tmp_path: Path, compression: Compression, algorithm: Algorithm
) -> None:
    builder = ImageBuilder(architecture=ARCHITECTURE)
    image = layered_image()
    plain = {diff_id: image.blobs[digest] for diff_id, digest in zip(image.diff_ids, image.layer_digests, strict=True)}
    for blob in plain.values():
        builder.add_layer_tar(decompress(blob))
    builder.add_layer_tar(sparse_tar())
    builder.add_layer(
        [file(f"g/{'n' * 180}/{number}", b"n" * number) for number in range(150)], tar_format=tarfile.GNU_FORMAT
    )
    built = builder.build()
    with Repository.init(str(tmp_path / "r"), algorithm) as repo:
        pulled = fetch(repo, built.write_layout(tmp_path / "in", "v1"))
        digest = export_image(repo, pulled, str(tmp_path / "out"), tag="v1", compression=compression, progress=SILENT)
        manifest = read_manifest(tmp_path / "out")
        found = []
        for layer in manifest["layers"]:
            data = read_blob(tmp_path / "out", layer["digest"])
            assert len(data) == layer["size"]
            assert layer["mediaType"].endswith({"gzip": ".tar+gzip", "zstd": ".tar+zstd", "none": ".tar"}[compression])
            found.append(f"sha256:{hashlib.sha256(decompress(data)).hexdigest()}")
        assert found == built.diff_ids
        assert manifest["config"]["digest"] == built.config_digest
        read_blob(tmp_path / "out", built.config_digest)
        # And it is an image again: the same one.
        again = fetch(repo, tmp_path / "out")
        assert str(again.manifest_digest) == str(digest)
        assert again.image_id == pulled.image_id


def decompress(data: bytes) -> bytes:
    if data.startswith(b"\x1f\x8b"):
        return gzip.decompress(data)
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data


def test_export_without_compression_of_what_had_none_is_the_same_image(repo: Repository, tmp_path: Path) -> None:
    built = ImageBuilder(architecture=ARCHITECTURE).add_layer([file("a", b"x" * 1000)], "none").build()
    pulled = fetch(repo, built.write_layout(tmp_path / "in", "v1"))
    digest = export_image(repo, pulled, str(tmp_path / "out"), tag="v1", compression="none", progress=SILENT)
    assert str(digest) == built.digest


def test_export_keeps_annotations(repo: Repository, tmp_path: Path) -> None:
    pulled = fetch(repo, layered_image().write_layout(tmp_path / "in", "v1"))
    export_image(repo, pulled, str(tmp_path / "out"), tag=None, progress=SILENT)
    assert read_manifest(tmp_path / "out")["annotations"] == {"org.example": "kept"}


def test_docker_image_is_exported_as_oci(repo: Repository, tmp_path: Path) -> None:
    built = ImageBuilder(architecture=ARCHITECTURE, docker=True).add_layer([file("a", b"x" * 1000)]).build()
    pulled = fetch(repo, built.write_layout(tmp_path / "in", "v1"))
    export_image(repo, pulled, str(tmp_path / "out"), tag="v1", compression="zstd", progress=SILENT)
    manifest = read_manifest(tmp_path / "out")
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    assert fetch(repo, tmp_path / "out").image_id == pulled.image_id


def test_other_tools_read_the_export(repo: Repository, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to unpack owners and devices")
    layout = layered_image().write_layout(tmp_path / "in", "v1")
    export_image(repo, fetch(repo, layout), str(tmp_path / "out"), tag="v1", progress=SILENT)
    for name in ("in", "out"):
        run_peer("umoci", "unpack", "--image", f"{tmp_path / name}:v1", tmp_path / f"bundle-{name}")
    assert describe_directory(tmp_path / "bundle-out" / "rootfs") == describe_directory(
        tmp_path / "bundle-in" / "rootfs"
    )


def test_export_of_a_damaged_layer_fails(repo: Repository, tmp_path: Path) -> None:

    built = ImageBuilder(architecture=ARCHITECTURE).add_layer([file("a", b"x" * 1000)]).build()
    pulled = fetch(repo, built.write_layout(tmp_path / "in", "v1"))
    Path(repo.object_path(fsverity.compute(b"x" * 1000))).write_bytes(b"y" * 1000)
    with pytest.raises(VerificationError, match="the stored layer"):
        export_image(repo, pulled, str(tmp_path / "out"), tag="v1", progress=SILENT)
    assert not (tmp_path / "out" / "index.json").exists()


def test_tree_read_back_is_the_tree_that_was_merged(repo: Repository, tmp_path: Path) -> None:
    """From the splitstreams alone, as for layers that are there already."""
    first = fetch(repo, layered_image().write_layout(tmp_path / "in", "v1"))
    for link in (Path(repo.path, "streams")).glob("oci-[mc]*"):
        link.unlink()
    again = fetch(repo, tmp_path / "in")
    assert again.layers_fetched == 0
    assert (again.image_id, again.boot_id) == (first.image_id, first.boot_id)
    assert get_image(repo, "image").manifest_digest == first.manifest_digest
