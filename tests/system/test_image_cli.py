"""The image commands as people and scripts use them: processes, output, exit statuses."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bootwright.linux.architecture import oci_name
from fakes.images import BuiltImage, ImageBuilder, directory, file
from fakes.registry import FakeRegistry

pytestmark = pytest.mark.system

Command = Callable[..., subprocess.CompletedProcess[str]]


def make_image(version: str = "1.0", architecture: str | None = None) -> BuiltImage:
    return (
        ImageBuilder(
            architecture=architecture or oci_name(),
            labels={"org.opencontainers.image.version": version},
            created="2026-03-04T05:06:07.123456789Z",
        )
        .add_layer([directory("usr"), file("usr/shared", b"s" * 100_000)])
        .add_layer([file("usr/own", version.encode() * 10_000)])
        .build()
    )


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        yield running


@pytest.fixture
def repository(tmp_path: Path) -> str:
    return str(tmp_path / "repository")


@pytest.fixture
def run(repository: str, tmp_path: Path) -> Command:
    """Run `bootwright image VERB --repo … ARGUMENTS`."""

    def run(verb: str, *arguments: str, repo: str | None = repository) -> subprocess.CompletedProcess[str]:
        where = [] if repo is None else ["--repo", repo]
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2] / "src"),
            "HOME": str(tmp_path),
        }
        return subprocess.run(
            [sys.executable, "-m", "bootwright", "image", verb, *where, *arguments],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
            timeout=120,
        )

    return run


def fetch(run: Command, reference: str, *more: str) -> str:
    result = run("pull", reference, "--tls-verify=false", *more)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def list_json(run: Command) -> list[dict[str, Any]]:
    result = run("list", "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["version"] == 1
    images: list[dict[str, Any]] = document["images"]
    return images


def test_pull_makes_the_repository_and_list_shows_the_image(run: Command, registry: FakeRegistry) -> None:
    image = make_image()
    reference = registry.push(image)
    image_id = fetch(run, reference)
    (found,) = list_json(run)
    assert found["name"] == f"{registry.host}/os:v1"
    assert found["id"] == image_id
    assert found["manifestDigest"] == image.digest
    assert (found["version"], found["created"], found["layerCount"]) == ("1.0", "2026-03-04T05:06:07.123456789Z", 2)
    table = run("list").stdout.splitlines()
    assert table[0].split("  ")[0] == "NAME"
    assert table[1].split()[:3] == [f"{registry.host}/os:v1", "1.0", image_id[:12]]
    assert table[1].endswith("2026-03-04 05:06")


def test_pull_again_says_so(run: Command, registry: FakeRegistry) -> None:
    reference = registry.push(make_image())
    first = fetch(run, reference)
    result = run("pull", reference, "--tls-verify=false")
    assert (result.returncode, result.stdout.strip()) == (0, first)
    assert "is already present" in result.stderr


def test_quiet_prints_the_id_alone(run: Command, registry: FakeRegistry) -> None:
    result = run("pull", registry.push(make_image()), "--tls-verify=false", "--quiet")
    assert result.stderr == ""
    assert len(result.stdout.strip()) == 64


def test_digest_algorithm(run: Command, registry: FakeRegistry, repository: str) -> None:
    reference = registry.push(make_image())
    assert len(fetch(run, reference, "--digest-algorithm", "sha512")) == 128
    assert len(fetch(run, reference)) == 128, "an existing repository is used as it is"
    result = run("pull", reference, "--tls-verify=false", "--digest-algorithm", "sha256")
    assert result.returncode == 2
    assert "has sha512 digests" in result.stderr
    assert json.loads(Path(repository, "meta.json").read_text())["algorithm"] == "fsverity-sha512-12"


def test_inspect(run: Command, registry: FakeRegistry) -> None:
    image = make_image()
    image_id = fetch(run, registry.push(image))
    result = run("inspect", image_id[:10], "--json")
    document = json.loads(result.stdout)["image"]
    assert [layer["diffId"] for layer in document["layers"]] == image.diff_ids
    assert [layer["compressedBytes"] for layer in document["layers"]] == [
        len(image.blobs[digest]) for digest in image.layer_digests
    ]
    assert document["sizeBytes"] == sum(layer["sizeBytes"] for layer in document["layers"])
    assert document["labels"] == {"org.opencontainers.image.version": "1.0"}
    text = run("inspect", image_id[:10]).stdout
    assert image_id in text
    assert image.digest in text


def test_export_and_pull_back(run: Command, registry: FakeRegistry, tmp_path: Path) -> None:
    image_id = fetch(run, registry.push(make_image()))
    result = run("export", image_id[:12], f"oci:{tmp_path}/out:v7", "--compression", "zstd")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("sha256:")
    again = run("pull", f"oci:{tmp_path}/out:v7", repo=str(tmp_path / "another"))
    assert again.stdout.strip() == image_id
    wrong = run("export", image_id[:12], "docker://example.org/x")
    assert (wrong.returncode, wrong.stdout) == (2, "")


def test_rm_frees_what_no_other_image_has(run: Command, registry: FakeRegistry, repository: str) -> None:
    fetch(run, registry.push(make_image("1.0"), tag="v1"))
    fetch(run, registry.push(make_image("2.0"), tag="v2"))
    dry = run("rm", "--dry-run", f"{registry.host}/os:v2")
    assert "Would remove" in dry.stderr
    assert len(list_json(run)) == 2
    result = run("rm", f"docker://{registry.host}/os:v2")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [f"{registry.host}/os:v2"]
    assert result.stderr.replace("Removed", "Would remove") == dry.stderr
    (left,) = list_json(run)
    assert left["version"] == "1.0"
    assert run("rm", left["id"][:12]).returncode == 0
    assert list(Path(repository, "objects").glob("??/*")) == []


def test_rm_of_a_broken_image(run: Command, registry: FakeRegistry, repository: str) -> None:
    fetch(run, registry.push(make_image()), "--tag", "good")
    Path(repository, "streams/refs/oci/broken").symlink_to(f"../../oci-manifest-sha256:{'0' * 64}")
    result = run("list")
    assert result.returncode == 0
    assert "'broken' is broken" in result.stderr
    assert [one.get("error") is None for one in list_json(run)] == [True, False]
    assert run("rm", "broken").returncode == 0
    assert [one["name"] for one in list_json(run)] == ["good"]


def test_gc(run: Command, registry: FakeRegistry, repository: str) -> None:
    fetch(run, registry.push(make_image()))
    os.unlink(next(Path(repository, "streams/refs/oci").iterdir()))
    assert "Would remove" in run("gc", "--dry-run").stderr
    assert run("gc").returncode == 0
    assert list(Path(repository, "objects").glob("??/*")) == []


@pytest.mark.parametrize(
    ("verb", "arguments", "status", "words"),
    [
        pytest.param("pull", ["docker://127.0.0.1:1/os:v1", "--tls-verify=false"], 4, "127.0.0.1:1", id="unreachable"),
        pytest.param("pull", ["docker://{host}/os:v9", "--tls-verify=false"], 12, "os:v9", id="no-such-tag"),
        pytest.param("pull", ["docker://{host}/foreign:v1", "--tls-verify=false"], 13, "s390x", id="architecture"),
        pytest.param("pull", ["docker://{host}/OS:v1"], 2, "lower case", id="reference"),
        pytest.param("pull", ["oci:/nonexistent:v1"], 12, "/nonexistent", id="no-layout"),
        pytest.param("pull", ["docker://{host}/os:v1", "--tls-verify=false", "--tag=a@b"], 2, "a@b", id="tag"),
        pytest.param("inspect", ["nothing"], 12, "no image 'nothing'", id="inspect"),
        pytest.param("rm", ["nothing"], 12, "no image 'nothing'", id="rm"),
        pytest.param("export", ["nothing", "oci:x"], 12, "no image 'nothing'", id="export"),
    ],
)
def test_errors(run: Command, registry: FakeRegistry, verb: str, arguments: list[str], status: int, words: str) -> None:
    fetch(run, registry.push(make_image()))
    registry.push(make_image(architecture="s390x"), repository="foreign")
    before = list_json(run)
    result = run(verb, *(one.format(host=registry.host) for one in arguments))
    assert result.returncode == status, result.stderr
    assert words in result.stderr
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert list_json(run) == before


@pytest.mark.parametrize("verb", ["list", "gc"])
def test_no_repository(run: Command, verb: str) -> None:
    result = run(verb)
    assert result.returncode == 6
    assert "there is no repository at" in result.stderr
    assert "hint: bootwright image pull" in result.stderr


def test_corrupt_layer(run: Command, registry: FakeRegistry) -> None:
    # Without compression nothing but the digests can notice.
    image = ImageBuilder(architecture=oci_name()).add_layer([file("a", b"x" * 50_000)], "none").build()
    reference = registry.push(image)
    registry.faults.corrupt.add(image.layer_digests[0])
    result = run("pull", reference, "--tls-verify=false")
    assert result.returncode == 5, result.stderr
    assert "layer" in result.stderr or "blob" in result.stderr
    assert list_json(run) == []


def test_mount(run: Command, registry: FakeRegistry, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    image_id = fetch(run, registry.push(make_image()))
    target = tmp_path / "mnt"
    target.mkdir()
    result = run("mount", image_id[:12], str(target))
    assert result.returncode == 0, result.stderr
    try:
        assert (target / "usr/shared").read_bytes() == b"s" * 100_000
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        assert any(line.startswith(f"composefs:{image_id} {target} overlay ro") for line in mounts)
    finally:
        assert run("umount", str(target), repo=None).returncode == 0
    assert list(target.iterdir()) == []


def test_registry_that_wants_credentials(run: Command, registry: FakeRegistry) -> None:
    reference = registry.push(make_image())
    registry.faults.auth, registry.faults.username, registry.faults.password = "basic", "someone", "secret"
    result = run("pull", reference, "--tls-verify=false")
    assert result.returncode == 11, result.stderr
    assert result.stderr.startswith("error: ")
    assert "hint: " in result.stderr
    assert list_json(run) == []


def test_blob_that_is_cut_short(run: Command, registry: FakeRegistry) -> None:
    image = make_image()
    reference = registry.push(image)
    registry.faults.truncate[image.layer_digests[0]] = 40
    result = run("pull", reference, "--tls-verify=false")
    assert result.returncode in (4, 5), result.stderr
    assert image.layer_digests[0][7:19] in result.stderr
    assert "Traceback" not in result.stderr
    assert list_json(run) == []
