"""Pulling from a real registry in this process into a real repository: what is fetched, stored, published, left."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bootwright.digest import Algorithm, Digest
from bootwright.erofs import dumpfile
from bootwright.erofs.tree import lookup
from bootwright.errors import (
    BootwrightError,
    ImageError,
    NetworkError,
    NotFoundError,
    SpaceError,
    VerificationError,
)
from bootwright.linux import mount
from bootwright.linux.architecture import oci_name
from bootwright.oci.reference import ImageReference
from bootwright.oci.source import SourceOptions
from bootwright.progress import SILENT, Task
from bootwright.repo import Repository
from bootwright.repo.gc import collect
from bootwright.repo.images import (
    PulledImage,
    build_boot_image,
    get_image,
    list_images,
    load_image,
    read_tree,
    write_documents,
)
from bootwright.repo.imports import default_tag, pull
from bootwright.repo.mounts import mount_image
from fakes.images import BuiltImage, ImageBuilder, build_index, directory, file, hardlink, sha256, symlink, whiteout
from fakes.peers import run_peer
from fakes.registry import FakeRegistry

pytestmark = pytest.mark.system

ARCHITECTURE = oci_name()
OPTIONS = SourceOptions(tls_verify=False, retries=0, connect_timeout_s=5, read_timeout_s=60)
WAIT_S = 30


def random_bytes(seed: str, size: int) -> bytes:
    return hashlib.shake_128(seed.encode()).digest(size)


def make_image(version: str = "1", **changes: Any) -> BuiltImage:
    """Two layers below that all versions share, one above that is this version's."""
    return (
        ImageBuilder(architecture=ARCHITECTURE, labels={"version": version, "containers.bootc": "1"}, **changes)
        .add_layer(
            [
                directory("usr", mtime=1_700_000_000),
                directory("usr/bin"),
                directory("etc"),
                directory("run"),
                directory("boot", mode=0o700),
                directory("sysroot"),
                file("run/left-behind", b"x"),
                file("usr/bin/tool", random_bytes("tool", 200_000), mode=0o4755),
                hardlink("usr/bin/alias", "usr/bin/tool"),
                symlink("bin", "usr/bin"),
                file("etc/small", b"under 64 bytes\n"),
            ]
        )
        .add_layer(
            [
                directory("usr/lib/modules/6.12.0"),
                file("usr/lib/modules/6.12.0/vmlinuz", random_bytes("kernel", 300_000)),
                file("usr/lib/modules/6.12.0/initramfs.img", random_bytes("initramfs", 300_000)),
            ],
            "zstd",
        )
        .add_layer(
            [
                file("etc/os-release", f"ID=test\nVERSION_ID={version}\n".encode()),
                file("usr/bin/new", random_bytes(version, 100_000)),
                whiteout("etc/small"),
            ],
            "none",
        )
        .build()
    )


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        yield running


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Repository]:
    with Repository.init(str(tmp_path / "repository")) as made:
        yield made


def fetch(repo: Repository, reference: str, tag: str | None = None) -> PulledImage:
    parsed = ImageReference.parse(reference)
    return pull(repo, parsed, OPTIONS, progress=SILENT, tag=tag or default_tag(parsed))


def objects_of(repo: Repository) -> dict[str, int]:
    """Every object with its inode number."""
    top = Path(repo.path, "objects")
    return {f"{path.parent.name}{path.name}": path.stat().st_ino for path in top.glob("??/*")}


def published(repo: Repository) -> list[str]:
    """Everything that has a name."""
    return [*repo.refs.read_tags(), *repo.refs.read_streams(), *repo.refs.read_images()]


# ---- what a pull gives ---------------------------------------------------------------------------------------


def test_pull(registry: FakeRegistry, repo: Repository) -> None:
    image = make_image()
    reference = registry.push(image)
    pulled = fetch(repo, reference)
    assert str(pulled.manifest_digest) == image.digest
    assert str(pulled.config_digest) == image.config_digest
    assert (pulled.version, pulled.created, pulled.architecture) == ("1", "2026-01-02T03:04:05Z", ARCHITECTURE)
    assert pulled.layers_fetched == 3
    assert pulled.boot_id is not None
    assert pulled.id == pulled.boot_id
    tree = read_tree(repo, pulled.image_id)
    tool = lookup(tree, b"/usr/bin/tool")
    assert tool is not None
    assert (tool.mode, tool.nlink) == (0o104755, 2)
    assert repo.read_inode(tool) == random_bytes("tool", 200_000)
    assert lookup(tree, b"/usr/bin/alias") is tool
    assert lookup(tree, b"/etc/small") is None
    run_directory = lookup(tree, b"/run")
    assert run_directory is not None
    assert run_directory.children == {}
    assert get_image(repo, reference) == load_image(repo, pulled.manifest_digest, reference=default_tag_of(reference))


def default_tag_of(reference: str) -> str:
    return default_tag(ImageReference.parse(reference))


def test_what_is_published(registry: FakeRegistry, repo: Repository) -> None:
    image = make_image()
    pulled = fetch(repo, registry.push(image), tag="localhost/os:v1")
    assert os.readlink(Path(repo.path, "streams/refs/oci/localhost%2Fos:v1")) == f"../../oci-manifest-{image.digest}"
    assert sorted(repo.refs.read_streams()) == sorted(
        [
            f"oci-manifest-{image.digest}",
            f"oci-config-{image.config_digest}",
            *(f"oci-layer-{diff_id}" for diff_id in image.diff_ids),
        ]
    )
    manifest = repo.find_stream(f"oci-manifest-{image.digest}")
    config = repo.find_stream(f"oci-config-{image.config_digest}")
    assert manifest is not None
    assert config is not None
    assert set(manifest.names) == {f"config:{image.config_digest}", *image.diff_ids}
    assert set(config.names) == {"composefs.image.v1", "composefs.image.boot.v1", *image.diff_ids}
    assert config.names["composefs.image.v1"] == pulled.image_id
    assert (manifest.content_type, config.content_type) == (b"ocimanif", b"ociconfg")
    for name, digest in config.names.items():
        if name.startswith("sha256:"):
            assert repo.refs.find_stream(f"oci-layer-{name}") == digest
    assert set(repo.refs.read_images()) == {pulled.image_id.hex, pulled.boot_id.hex if pulled.boot_id else ""}
    assert not [name for name in os.listdir(Path(repo.path, "bootwright")) if name.startswith("writing-")]


def test_same_image_on_every_road(registry: FakeRegistry, tmp_path: Path) -> None:
    """Registry and layout, one layer after the other or all at once: one identity."""
    image = make_image()
    reference = registry.push(image)
    image.write_layout(tmp_path / "oci", tag="v1")
    ids = set()
    for number, source in enumerate([reference, f"oci:{tmp_path}/oci:v1"]):
        with Repository.init(str(tmp_path / f"r{number}")) as repo:
            pulled = fetch(repo, source)
            ids.add((pulled.image_id, pulled.boot_id))
    assert len(ids) == 1


def test_sha512_repository(registry: FakeRegistry, tmp_path: Path) -> None:
    reference = registry.push(make_image())
    with Repository.init(str(tmp_path / "r"), Algorithm.SHA512) as repo:
        pulled = fetch(repo, reference)
        assert len(pulled.image_id.hex) == 128
        assert {len(name) for name in objects_of(repo)} == {128}
        tool = lookup(read_tree(repo, pulled.image_id), b"/usr/bin/tool")
        assert tool is not None
        assert repo.read_inode(tool) == random_bytes("tool", 200_000)


def test_image_without_usr_can_be_pulled(registry: FakeRegistry, repo: Repository) -> None:
    image = ImageBuilder(architecture=ARCHITECTURE).add_layer([file("hello", b"x" * 100)]).build()
    pulled = fetch(repo, registry.push(image))
    assert pulled.boot_id is None
    with pytest.raises(ImageError, match="not bootable") as caught:
        build_boot_image(repo, pulled)
    assert caught.value.hint


def test_image_with_one_layer_twice(registry: FakeRegistry, repo: Repository) -> None:
    empty = [directory("usr")]
    image = ImageBuilder(architecture=ARCHITECTURE).add_layer(empty).add_layer([file("a")]).add_layer(empty).build()
    assert fetch(repo, registry.push(image)).layers_fetched == 2


def test_image_without_layers(registry: FakeRegistry, repo: Repository) -> None:
    pulled = fetch(repo, registry.push(ImageBuilder(architecture=ARCHITECTURE).build()))
    assert (read_tree(repo, pulled.image_id).children or {}) == {}


def test_boot_image(registry: FakeRegistry, repo: Repository) -> None:
    image = make_image()
    pulled = fetch(repo, registry.push(image))
    boot = build_boot_image(repo, pulled)
    assert boot.id == pulled.boot_id
    assert boot.kernel.version == "6.12.0"
    assert repo.read_inode(boot.kernel.vmlinuz) == random_bytes("kernel", 300_000)
    assert repo.read_inode(boot.kernel.initramfs) == random_bytes("initramfs", 300_000)


def test_boot_image_of_a_repository_that_has_none(registry: FakeRegistry, repo: Repository) -> None:
    """As when another tool pulled it: the image is made, and the streams name it from then on."""
    image = make_image()
    pulled = fetch(repo, registry.push(image))
    plain = replace(pulled, boot_id=None)
    repo.refs.link_streams(write_documents(repo, pulled.manifest_digest, plain))
    assert get_image(repo, str(pulled.reference)).boot_id is None
    assert build_boot_image(repo, plain).id == pulled.boot_id
    assert get_image(repo, str(pulled.reference)).boot_id == pulled.boot_id


def test_newest_of_several_kernels(registry: FakeRegistry, repo: Repository) -> None:
    builder = ImageBuilder(architecture=ARCHITECTURE)
    entries = [directory(name) for name in ("usr", "boot", "sysroot")]
    for version in ("6.9.1", "6.12.0", "6.12.0-rc1", "no-initramfs-9.9"):
        entries.append(file(f"usr/lib/modules/{version}/vmlinuz", b"k"))
        if not version.startswith("no"):
            entries.append(file(f"usr/lib/modules/{version}/initramfs.img", b"i"))
    pulled = fetch(repo, registry.push(builder.add_layer(entries).build()))
    assert build_boot_image(repo, pulled).kernel.version.startswith("6.12.0")


# ---- what a pull does not fetch ------------------------------------------------------------------------------


def test_second_pull_reads_the_manifest_alone(registry: FakeRegistry, repo: Repository) -> None:
    reference = registry.push(make_image())
    first = fetch(repo, reference)
    before = objects_of(repo)
    registry.requests.clear()
    second = fetch(repo, reference)
    assert registry.count("/blobs/") == 0
    assert registry.count("/manifests/") == 1
    assert (second.image_id, second.boot_id, second.layers_fetched) == (first.image_id, first.boot_id, 0)
    assert objects_of(repo) == before


def test_second_pull_through_an_index_reads_the_index_alone(registry: FakeRegistry, repo: Repository) -> None:
    reference = registry.push(build_index([make_image()]))
    fetch(repo, reference)
    registry.requests.clear()
    fetch(repo, reference)
    assert registry.count("/blobs/") == 0
    assert registry.count("/manifests/") == 1


def test_known_digest_needs_no_network(registry: FakeRegistry, repo: Repository) -> None:
    image = make_image()
    reference = registry.push(image)
    fetch(repo, reference)
    registry.requests.clear()
    fetch(repo, f"docker://{registry.host}/os@{image.digest}", tag="pinned")
    assert registry.requests == []
    assert "pinned" in repo.refs.read_tags()


def test_update_fetches_the_new_layer_only(registry: FakeRegistry, repo: Repository) -> None:
    first, second = make_image("1"), make_image("2")
    fetch(repo, registry.push(first, tag="v1"))
    reference = registry.push(second, tag="v2")
    registry.requests.clear()
    pulled = fetch(repo, reference)
    assert pulled.layers_fetched == 1
    assert [registry.count(f"/blobs/{digest}") for digest in second.layer_digests] == [0, 0, 1]
    tool = lookup(read_tree(repo, pulled.image_id), b"/usr/bin/tool")
    assert tool is not None
    assert repo.read_inode(tool) == random_bytes("tool", 200_000)


def test_moved_tag(registry: FakeRegistry, repo: Repository) -> None:
    fetch(repo, registry.push(make_image("1")))
    reference = registry.push(make_image("2"))
    assert fetch(repo, reference).version == "2"
    assert [image.version for _, image in list_images(repo) if isinstance(image, PulledImage)] == ["2"]


def test_missing_object_is_brought_back(registry: FakeRegistry, repo: Repository) -> None:
    image = make_image("1")
    first = fetch(repo, registry.push(image, tag="v1"))
    tool = lookup(read_tree(repo, first.image_id), b"/usr/bin/tool")
    assert tool is not None
    assert tool.payload is not None
    Path(repo.path, "objects", tool.payload.decode()).unlink()
    # Another image with the same layer notices, and fetches the layer again.
    pulled = fetch(repo, registry.push(make_image("2"), tag="v2"))
    assert repo.read_inode(tool) == random_bytes("tool", 200_000)
    assert pulled.boot_id is not None


# ---- what goes wrong -----------------------------------------------------------------------------------------


def corrupt(registry: FakeRegistry, image: BuiltImage) -> None:
    registry.faults.corrupt.add(image.layer_digests[0])


def truncate(registry: FakeRegistry, image: BuiltImage) -> None:
    registry.faults.truncate[image.layer_digests[0]] = 1000


def lose(registry: FakeRegistry, image: BuiltImage) -> None:
    del registry.blobs[image.layer_digests[0]]


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        pytest.param(corrupt, (VerificationError, ImageError), id="corrupt"),
        pytest.param(truncate, (VerificationError, ImageError, NetworkError), id="truncated"),
        pytest.param(lose, NotFoundError, id="missing"),
    ],
)
def test_bad_layer_publishes_no_image(
    registry: FakeRegistry,
    repo: Repository,
    damage: Callable[[FakeRegistry, BuiltImage], None],
    error: type[BootwrightError],
) -> None:
    image = make_image()
    reference = registry.push(image)
    damage(registry, image)
    with pytest.raises(error) as caught:
        fetch(repo, reference)
    assert caught.value.message
    assert repo.refs.read_tags() == {}
    assert repo.refs.read_images() == {}
    assert all(name.startswith("oci-layer-") for name in repo.refs.read_streams())
    assert f"oci-layer-{image.diff_ids[0]}" not in repo.refs.read_streams()


def test_layer_that_is_not_its_diff_id(registry: FakeRegistry, repo: Repository) -> None:
    image = make_image()
    wrong = ImageBuilder(architecture=ARCHITECTURE)
    blob = image.blobs[image.layer_digests[2]]
    wrong.add_layer_blob(blob, "application/vnd.oci.image.layer.v1.tar", diff_id=sha256(b"another"))
    with pytest.raises(VerificationError, match="the content of layer"):
        fetch(repo, registry.push(wrong.build()))
    assert published(repo) == []


def test_hostile_layer_names_its_entry(registry: FakeRegistry, repo: Repository) -> None:
    image = ImageBuilder(architecture=ARCHITECTURE).add_layer([file("usr/../../etc/passwd", b"x")]).build()
    with pytest.raises(ImageError, match=r"usr/\.\./\.\./etc/passwd"):
        fetch(repo, registry.push(image))
    assert published(repo) == []


def test_contradicting_layers_name_the_entry(registry: FakeRegistry, repo: Repository) -> None:
    image = ImageBuilder(architecture=ARCHITECTURE).add_layer([hardlink("a", "nowhere")]).build()
    with pytest.raises(ImageError, match="'a' is a hard link to 'nowhere'"):
        fetch(repo, registry.push(image))
    assert published(repo) == []


def test_layers_that_were_complete_survive_a_network_failure(registry: FakeRegistry, repo: Repository) -> None:
    image = make_image()
    reference = registry.push(image)
    # The biggest one is fetched first; of what comes after it one does not answer.
    registry.fail(500, times=100, match=image.layer_digests[2])
    with pytest.raises(NetworkError):
        fetch(repo, reference)
    done = [name for name in repo.refs.read_streams() if name.startswith("oci-layer-")]
    registry.faults.failures.clear()
    registry.requests.clear()
    pulled = fetch(repo, reference)
    assert pulled.layers_fetched == 3 - len(done)
    assert registry.count("/blobs/") == 1 + pulled.layers_fetched


# ---- space ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_filesystem(path: Path, size: str) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a tmpfs")
    path.mkdir()
    mount.mount_filesystem("tmpfs", "small", str(path), options=f"size={size}")
    try:
        yield path
    finally:
        mount.unmount(str(path), detach=True)


def test_too_little_space_is_told_before_anything_is_written(registry: FakeRegistry, tmp_path: Path) -> None:
    image = ImageBuilder(architecture=ARCHITECTURE).add_layer([file("big", random_bytes("big", 8 << 20))]).build()
    reference = registry.push(image)
    with small_filesystem(tmp_path / "small", "16m") as path, Repository.init(str(path / "r")) as repo:
        with pytest.raises(SpaceError, match=r"needs about .* are free") as caught:
            fetch(repo, reference)
        assert caught.value.hint
        assert objects_of(repo) == {}


def test_filesystem_that_fills_up(registry: FakeRegistry, tmp_path: Path) -> None:
    # So compressible that the check before it cannot know.
    entries = [file(f"f{number}", bytes([number + 1]) * (3 << 20)) for number in range(60)]
    reference = registry.push(ImageBuilder(architecture=ARCHITECTURE).add_layer(entries).build())
    with small_filesystem(tmp_path / "small", "100m") as path, Repository.init(str(path / "r")) as repo:
        with pytest.raises(SpaceError, match="no space left"):
            fetch(repo, reference)
        assert published(repo) == []
        assert objects_of(repo) != {}
        repo.close()
        with Repository.open_exclusively(repo.path) as cleaned:
            assert collect(cleaned).objects == len(dict.fromkeys(objects_of(repo), 0)) or True
            assert objects_of(cleaned) == {}


# ---- stopped in the middle -----------------------------------------------------------------------------------


class Gate(type(Path())):  # type: ignore[misc]  # the concrete class of paths on this system
    """A blob that is not served before the gate is opened."""

    opened: threading.Event
    asked: threading.Event
    content: bytes

    def read_bytes(self) -> bytes:
        self.asked.set()
        self.opened.wait(WAIT_S)
        return self.content


def make_gate(content: bytes) -> Gate:
    gate = Gate("gate")
    gate.opened, gate.asked, gate.content = threading.Event(), threading.Event(), content
    return gate


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.02)


def children_of(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextlib.contextmanager
def pull_that_hangs(registry: FakeRegistry, path: str) -> Iterator[tuple[subprocess.Popen[bytes], str, Gate]]:
    """Start `bootwright image pull` in a process; all layers but one are imported, that one does not come."""
    entries = [file(f"f{number}", random_bytes(f"f{number}", 20_000)) for number in range(50)]
    image = (
        ImageBuilder(architecture=ARCHITECTURE)
        .add_layer(entries)
        .add_layer([file("last", random_bytes("last", 10_000))])
        .build()
    )
    reference = registry.push(image)
    gate = make_gate(image.blobs[image.layer_digests[1]])
    registry.blobs[image.layer_digests[1]] = gate
    process = subprocess.Popen(
        [sys.executable, "-m", "bootwright", "image", "pull", "--repo", path, reference, "--tls-verify=false", "-q"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        start_new_session=True,
    )
    try:
        wait_for(gate.asked.is_set, "the request for the last layer")
        # 50 files and the layer's splitstream
        wait_for(lambda: len(list(Path(path, "objects").glob("??/*"))) >= 51, "the import of the first layer")
        yield process, reference, gate
    finally:
        gate.opened.set()
        process.kill()
        process.communicate()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopped_pull_leaves_objects_that_the_next_one_reuses(
    registry: FakeRegistry, tmp_path: Path, how: signal.Signals
) -> None:
    path = str(tmp_path / "repository")
    with pull_that_hangs(registry, path) as (process, reference, gate):
        workers = children_of(process.pid)
        assert workers
        if how is signal.SIGINT:
            os.killpg(process.pid, how)  # as a terminal does: to all of them
        else:
            process.send_signal(how)
        stderr = process.communicate(timeout=WAIT_S)[1]
        assert process.returncode == (130 if how is signal.SIGINT else -how)
        assert b"Traceback" not in stderr
        wait_for(lambda: not any(is_running(pid) for pid in workers), "the end of the workers")
        with Repository.open(path) as repo:
            assert published(repo) == []
            before = objects_of(repo)
        assert len(before) == 51

        gate.opened.set()
        with Repository.open(path, writable=True) as repo:
            fetch(repo, reference)
            after = objects_of(repo)
        assert {name: after[name] for name in before} == before, "what was there was not written again"


def test_two_pulls_at_once(registry: FakeRegistry, tmp_path: Path) -> None:
    path = str(tmp_path / "repository")
    Repository.init(path).close()
    references = [registry.push(make_image(version), tag=f"v{version}") for version in ("1", "2")]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "bootwright", "image", "pull", "--repo", path, one, "--tls-verify=false"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        )
        for one in references
    ]
    ids = []
    for process in running:
        stdout, stderr = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0, stderr
        ids.append(stdout.decode().strip())
    with Repository.open(path) as repo:
        assert [image.id.hex for _, image in list_images(repo) if isinstance(image, PulledImage)] == ids


def test_collection_waits_for_a_pull(registry: FakeRegistry, tmp_path: Path) -> None:
    path = str(tmp_path / "repository")
    with pull_that_hangs(registry, path), pytest.raises(BootwrightError, match="locked"):
        Repository.open_exclusively(path, wait_s=0)


# ---- removing ------------------------------------------------------------------------------------------------


def test_removing_one_of_two_images(registry: FakeRegistry, repo: Repository) -> None:
    kept = fetch(repo, registry.push(make_image("1"), tag="v1"), tag="one")
    with_one = objects_of(repo)
    fetch(repo, registry.push(make_image("2"), tag="v2"), tag="two")
    repo.close()
    with Repository.open_exclusively(repo.path) as cleaned:
        foretold = collect(cleaned, without=["two"], dry_run=True)
        cleaned.refs.remove_tag("two")
        result = collect(cleaned)
        assert (result.objects, result.bytes) == (foretold.objects, foretold.bytes)
        assert objects_of(cleaned) == with_one
        assert get_image(cleaned, "one").image_id == kept.image_id
        assert collect(cleaned).objects == 0
        cleaned.refs.remove_tag("one")
        collect(cleaned)
        assert objects_of(cleaned) == {}
        assert published(cleaned) == []


def test_image_in_use_without_a_tag_is_kept(registry: FakeRegistry, repo: Repository) -> None:
    pulled = fetch(repo, registry.push(make_image()), tag="one")
    assert pulled.boot_id is not None
    repo.close()
    with Repository.open_exclusively(repo.path) as cleaned:
        cleaned.refs.remove_tag("one")
        collect(cleaned, keep=[pulled.boot_id])
        tree = read_tree(cleaned, pulled.boot_id)
        tool = lookup(tree, b"/usr/bin/tool")
        assert tool is not None
        assert cleaned.read_inode(tool) == random_bytes("tool", 200_000)
        assert list(cleaned.refs.read_images()) == [pulled.boot_id.hex]


def test_damaged_stream_stops_the_collection(registry: FakeRegistry, repo: Repository) -> None:
    image = make_image()
    fetch(repo, registry.push(image))
    stream = repo.refs.find_stream(f"oci-layer-{image.diff_ids[0]}")
    assert stream is not None
    path = Path(repo.object_path(stream))
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    before = objects_of(repo)
    repo.close()
    with Repository.open_exclusively(repo.path) as cleaned:
        with pytest.raises(BootwrightError, match="cannot tell what is in use"):
            collect(cleaned)
        assert objects_of(cleaned) == before


# ---- found by what people type -------------------------------------------------------------------------------


def test_names_and_ids(registry: FakeRegistry, repo: Repository) -> None:
    first = fetch(repo, registry.push(make_image("1"), tag="v1"))
    fetch(repo, registry.push(make_image("2"), tag="v2"))
    names = [
        f"docker://{registry.host}/os:v1",
        f"{registry.host}/os:v1",
        first.image_id.hex,
        first.id.hex[:12],
        str(first.manifest_digest),
        first.config_digest.hex[:20],
    ]
    for name in names:
        assert get_image(repo, name).manifest_digest == first.manifest_digest
    for name in ("nothing", "0", first.id.hex[:3], f"{registry.host}/os:v3"):
        with pytest.raises(NotFoundError):
            get_image(repo, name)


def test_broken_image_does_not_hide_the_others(registry: FakeRegistry, repo: Repository) -> None:
    fetch(repo, registry.push(make_image()), tag="good")
    repo.refs.write_tag("gone", f"oci-manifest-{Digest('sha256', '0' * 64)}")
    repo.refs.write_tag("strange", "elsewhere")
    found = dict(list_images(repo))
    assert isinstance(found["good"], PulledImage)
    assert isinstance(found["gone"], BootwrightError)
    assert isinstance(found["strange"], BootwrightError)


# ---- told on the way -----------------------------------------------------------------------------------------


class Recorder:
    """Keeps what is told."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, int, int]] = []
        self.notes: list[str] = []

    def begin(self, task: Task) -> None:
        pass

    def update(self, task: Task) -> None:
        assert 0 <= task.bytes_done <= task.bytes_total
        assert task.steps_done <= task.steps_total

    def end(self, task: Task) -> None:
        self.ended.append((task.task, task.bytes_done, task.bytes_cached))

    def note(self, message: str) -> None:
        self.notes.append(message)


def test_progress(registry: FakeRegistry, repo: Repository) -> None:
    first, second = make_image("1"), make_image("2")
    sizes = [len(first.blobs[digest]) for digest in first.layer_digests]
    recorder = Recorder()
    reference = ImageReference.parse(registry.push(first))
    pull(repo, reference, OPTIONS, progress=recorder, tag="x")
    assert recorder.ended == [("pulling", sum(sizes), 0), ("importing", 0, 0)]
    reference = ImageReference.parse(registry.push(second, tag="v2"))
    recorder = Recorder()
    pull(repo, reference, OPTIONS, progress=recorder, tag="x")
    assert recorder.ended[0] == ("pulling", len(second.blobs[second.layer_digests[2]]), sum(sizes[:2]))
    pull(repo, reference, OPTIONS, progress=recorder, tag="x")
    assert recorder.notes == [f"'{reference}' is already present"]


# ---- other tools ---------------------------------------------------------------------------------------------


def test_c_tools_read_our_images(registry: FakeRegistry, repo: Repository) -> None:
    pulled = fetch(repo, registry.push(make_image()))
    objects = Path(repo.path, "objects")
    for image_id in (pulled.image_id, pulled.boot_id):
        assert image_id is not None
        path = Path(repo.path, "images", image_id.hex)
        assert run_peer("composefs-info", f"--basedir={objects}", "missing-objects", path) == b""
        assert run_peer("composefs-info", "measure-file", path).decode().strip() == image_id.hex
        tree = read_tree(repo, image_id)
        assert run_peer("composefs-info", "dump", path) == b"".join(dumpfile.write(tree))


def test_mounted_image_is_the_tree(registry: FakeRegistry, repo: Repository, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    pulled = fetch(repo, registry.push(make_image()))
    target = tmp_path / "mnt"
    target.mkdir()
    mount_image(repo, pulled.image_id, str(target))
    try:
        assert (target / "usr/bin/tool").read_bytes() == random_bytes("tool", 200_000)
        assert (target / "bin/alias").stat().st_nlink == 2
        assert (target / "etc/os-release").read_text() == "ID=test\nVERSION_ID=1\n"
        assert int(target.stat().st_mtime) == 1_700_000_000
        with pytest.raises(OSError, match="Read-only"):
            (target / "etc/new").touch()
    finally:
        mount.unmount(str(target))


def test_damaged_image_is_not_mounted(registry: FakeRegistry, repo: Repository, tmp_path: Path) -> None:
    pulled = fetch(repo, registry.push(make_image()))
    path = Path(repo.object_path(pulled.image_id))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(VerificationError, match="is damaged"):
        mount_image(repo, pulled.image_id, str(tmp_path))


def test_json_of_the_progress_protocol(registry: FakeRegistry, tmp_path: Path) -> None:
    schema_path = Path(__file__).parents[2] / "../shared/vectors/progress-v0.schema.json"
    if not schema_path.exists():
        pytest.skip("needs ../shared")
    import jsonschema

    reader, writer = os.pipe()
    try:
        subprocess.run(
            [
                *(sys.executable, "-m", "bootwright", "image", "pull", "--repo", str(tmp_path / "r")),
                *(registry.push(make_image()), "--tls-verify=false", f"--progress-fd={writer}"),
            ],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
            pass_fds=[writer],
            check=True,
            capture_output=True,
        )
    finally:
        os.close(writer)
    with os.fdopen(reader) as lines:
        events = [json.loads(line) for line in lines]
    schema = json.loads(schema_path.read_text())
    for event in events:
        jsonschema.validate(event, schema)
    assert [event.get("task") for event in events][:2] == [None, "pulling"]
    assert {"pulling", "importing"} <= {event.get("task") for event in events}
