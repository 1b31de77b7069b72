"""The machine and its state: what is told by mounts, records and boot entries."""

from pathlib import Path

import pytest

from bootwright.boot.entries import BootEntry, ranked
from bootwright.boot.kargs import Kargs
from bootwright.boot.sdboot import EntrySet
from bootwright.linux.mountinfo import Mount
from bootwright.oci.manifest import Descriptor, Manifest
from bootwright.ops.candidate import describe_layers
from bootwright.ops.host import Environment, Host
from bootwright.ops.state import StagedRecord, SystemState, read_staged_record, remove_staged_record

A, B, C = "aa" * 32, "bb" * 32, "cc" * 64


def menu(*deployment_ids: str) -> EntrySet:
    return EntrySet(
        tuple(
            ranked(
                [
                    BootEntry.for_deployment(
                        one, directory="/x", os_release={}, version=None, options=Kargs.parse(f"composefs={one}")
                    )
                    for one in deployment_ids
                ]
            )
        )
    )


@pytest.mark.parametrize(
    ("order", "staged", "rollback", "is_queued", "next_id"),
    [
        pytest.param([A], None, None, False, A, id="alone"),
        pytest.param([A, B], None, B, False, A, id="normal"),
        pytest.param([B, A], None, B, True, B, id="queued"),
        pytest.param([A, B, C], None, B, False, A, id="three"),
        pytest.param([A, B], StagedRecord(C), B, False, C, id="staged"),
        pytest.param([A, B], StagedRecord(C, is_locked=True), B, False, A, id="locked"),
        pytest.param([A, B], StagedRecord(B), None, False, B, id="staged-is-the-rollback"),
        pytest.param([B], None, B, True, B, id="booted-has-no-entry"),
        pytest.param([], None, None, False, A, id="no-entries"),
    ],
)
def test_roles(
    order: list[str], staged: StagedRecord | None, rollback: str | None, is_queued: bool, next_id: str
) -> None:
    state = SystemState(booted_id=A, staged=staged, entries=menu(*order))
    assert (state.rollback_id, state.is_rollback_queued, state.next_id) == (rollback, is_queued, next_id)
    assert A in state.live_ids
    assert state.tracked_id == (staged.deployment_id if staged else A)


def test_record_of_staging(tmp_path: Path) -> None:
    path = str(tmp_path / "composefs/staged-deployment")
    assert read_staged_record(path) is None
    record = StagedRecord(A, is_locked=True)
    record.write(path)
    assert Path(path).read_bytes() == f'{{"depl_id":"{A}","finalization_locked":true}}'.encode()
    assert read_staged_record(path) == record
    remove_staged_record(path)
    remove_staged_record(path)
    assert read_staged_record(path) is None


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff", b"{}", b'{"depl_id": 1}', b'{"depl_id": "../../etc"}', b"null"]
)
def test_a_record_that_makes_no_sense_is_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "record"
    path.write_bytes(content)
    assert read_staged_record(str(path)) is None


def root(source: str) -> Mount:
    return Mount(device=(0, 1), root="/", target="/", options=("ro",), fstype="overlay", source=source)


@pytest.mark.parametrize(
    ("source", "in_container", "booted", "environment"),
    [
        (f"composefs:{A}", False, A, Environment.BOOTED),
        (f"transient:composefs={C}", False, C, Environment.BOOTED),
        ("composefs:../x", False, None, Environment.OTHER),
        ("/dev/vda2", False, None, Environment.OTHER),
        (f"composefs:{A}", True, A, Environment.CONTAINER),
    ],
)
def test_what_booted(source: str, in_container: bool, booted: str | None, environment: Environment) -> None:
    host = Host(cmdline=f"composefs={B}", mounts=[root(source)], in_container=in_container)
    assert (host.booted_id, host.environment) == (booted, environment)


def test_live_etc_is_read_from_disk_unless_something_else_is_mounted_there(tmp_path: Path) -> None:
    stored = tmp_path / "state"
    (stored / "etc").mkdir(parents=True)
    (tmp_path / "root").mkdir()
    (tmp_path / "root/etc").symlink_to(stored / "etc")
    host = Host(cmdline="", mounts=[], root=str(tmp_path / "root"))
    assert host.current_etc(str(stored)) == str(stored / "etc")
    (tmp_path / "root/etc").unlink()
    (tmp_path / "root/etc").mkdir()
    assert host.current_etc(str(stored)) == str(tmp_path / "root/etc")


def test_layers_are_compared() -> None:
    def layer(letter: str, size: int) -> Descriptor:
        return Descriptor(media_type="x", digest_text=f"sha256:{letter * 64}", size=size)

    def manifest(*layers: Descriptor) -> Manifest:
        return Manifest(schema_version=2, config=layer("f", 1), layers=list(layers))

    new = manifest(layer("a", 1000), layer("b", 2_000_000))
    assert describe_layers(new, manifest(layer("a", 1000), layer("c", 30))) == [
        "Total new layers: 2    Size: 2.0 MB",
        "Removed layers:   1    Size: 30 B",
        "Added layers:     1    Size: 2.0 MB",
    ]
    assert len(describe_layers(new, None)) == 1
