"""Stage, finalise, roll back: whole cycles on a machine in a directory, with a real repository."""

import gzip
import json
import os
import re
from pathlib import Path

import pytest

from bootwright.errors import (
    BusyError,
    DeploymentError,
    ImageError,
    NotFoundError,
    PrivilegeError,
    SpaceError,
    ToolError,
    UsageError,
)
from bootwright.linux.lock import Lock
from bootwright.oci.reference import ImageReference
from bootwright.ops.finalize import finalize_staged
from bootwright.ops.host import FINALIZE_UNIT, Host
from bootwright.ops.rollback import RollbackKind, rollback
from bootwright.ops.state import read_state
from bootwright.ops.status import read_status
from bootwright.ops.switch import switch
from bootwright.ops.upgrade import OutcomeKind, UpgradeRequest, upgrade
from bootwright.progress import SILENT
from bootwright.repo.repository import Repository
from fakes.images import BuiltImage, ImageBuilder, directory, file
from fakes.machine import Machine, os_image

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners of /etc")]

V1 = {"motd": "one\n", "conf": "a=1\n", "gone": "x\n", "d/keep": "1\n", "d/drop": "1\n"}
V2 = {"motd": "two\n", "conf": "a=2\n", "new": "n\n", "d/keep": "2\n", "d/drop": "2\n"}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine.install(tmp_path / "machine", os_image(version="1", etc=V1))


def up(machine: Machine, **options: object) -> OutcomeKind:
    return upgrade(machine.host, UpgradeRequest(**options), SILENT).kind  # type: ignore[arg-type]  # as typed there


def stage_second(machine: Machine) -> str:
    machine.serve(os_image(version="2", etc=V2, kargs='kargs = ["loud"]', kernel=b"kernel 2"))
    assert up(machine) is OutcomeKind.STAGED
    staged = read_state(machine.host).staged
    assert staged is not None
    return staged.deployment_id


def snapshot(path: Path) -> dict[str, object]:
    """Every path below a directory with what can be compared."""
    return {
        str(one.relative_to(path)): one.read_bytes() if one.is_file() else one.is_dir()
        for one in sorted(path.rglob("*"))
    }


def test_a_whole_life(machine: Machine) -> None:
    first = machine.booted_id
    assert machine.menu() == (first,)
    (machine.etc / "motd").write_text("mine\n")
    (machine.etc / "added").mkdir(mode=0o700)
    (machine.etc / "added/file").write_text("local\n")
    (machine.etc / "d/drop").unlink()
    (machine.etc / ".updated").write_text("systemd-update-done\n")
    (machine.sysroot / "state/os/default/var/data").write_text("kept\n")

    second = stage_second(machine)
    assert machine.menu() == (first,), "the menu changes at shutdown only"
    assert machine.started_units == [FINALIZE_UNIT]
    assert json.loads(machine.staged_file.read_bytes()) == {"depl_id": second, "finalization_locked": False}

    # What is changed between staging and shutdown counts, too.
    (machine.etc / "late").write_text("late\n")
    assert machine.reboot() == second
    assert machine.menu() == (second, first)
    assert (machine.etc / "motd").read_text() == "mine\n"
    assert (machine.etc / "conf").read_text() == "a=2\n"
    assert (machine.etc / "new").read_text() == "n\n"
    assert (machine.etc / "late").read_text() == "late\n"
    assert (machine.etc / "added/file").read_text() == "local\n"
    assert (machine.etc / "added").stat().st_mode & 0o777 == 0o700
    assert (machine.etc / "d/keep").read_text() == "2\n"
    assert not (machine.etc / "d/drop").exists()
    assert not (machine.etc / "gone").exists()
    assert not (machine.etc / ".updated").exists()
    assert (machine.etc.parent / "var/data").read_text() == "kept\n"
    assert machine.options(second) == f"root=UUID=1 rw mine=1 composefs=?{second} loud"

    assert up(machine) is OutcomeKind.UNCHANGED
    assert rollback(machine.host).kind is RollbackKind.QUEUED
    assert machine.menu() == (first, second)
    ids = [message["message_id"] for message in machine.messages]
    assert len(ids) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids), "stage, finalise, rollback: 128 bits each"
    assert machine.reboot() == first
    assert (machine.etc / "motd").read_text() == "mine\n", "the old deployment's own /etc"
    assert (machine.etc / "d/keep").read_text() == "1\n"
    assert (machine.etc / "late").read_text() == "late\n"

    machine.serve(os_image(version="3", os_id="fedora"), tag="other")
    assert switch(machine.host, machine.reference("other"), SILENT).kind is OutcomeKind.STAGED
    third = machine.reboot()
    assert machine.menu() == (third, first), "another distribution's sort key does not disturb the order"
    assert up(machine) is OutcomeKind.UNCHANGED


def test_what_is_not_needed_any_more_is_removed(machine: Machine) -> None:
    first = machine.booted_id
    second = stage_second(machine)
    machine.reboot()
    machine.serve(os_image(version="3", kernel=b"kernel 3"))
    up(machine)
    third = machine.reboot()
    assert machine.menu() == (third, second)
    deployments = machine.sysroot / "state/deploy"
    # The oldest is dropped at shutdown, with its kernel; what the repository has of it when the next one is staged.
    assert sorted(os.listdir(deployments)) == sorted([second, third])
    assert sorted(os.listdir(machine.esp / "EFI/Linux")) == sorted(f"bootc_composefs-{one}" for one in (second, third))
    machine.serve(os_image(version="4"))
    up(machine)
    with Repository.open(str(machine.sysroot / "composefs")) as repo:
        assert len(repo.refs.read_tags()) == 3
        assert set(repo.refs.read_images()) >= {second, third}
        assert first not in repo.refs.read_images()


def test_the_same_kernel_is_stored_once(machine: Machine) -> None:
    machine.serve(os_image(version="2"))
    up(machine)
    machine.reboot()
    assert len(os.listdir(machine.esp / "EFI/Linux")) == 1
    machine.serve(os_image(version="3"))
    up(machine)
    machine.reboot()
    assert len(os.listdir(machine.esp / "EFI/Linux")) == 1


def test_conflict_in_etc_stops_before_anything_is_staged(machine: Machine) -> None:
    (machine.etc / "new").mkdir()
    (machine.etc / "new/inside").write_text("x")
    before = snapshot(machine.esp)
    machine.serve(os_image(version="2", etc=V2, kernel=b"kernel 2"))
    with pytest.raises(DeploymentError, match="'/etc/new' is a directory here and a file in the new image"):
        up(machine)
    assert snapshot(machine.esp) == before
    assert not machine.staged_file.exists()
    assert os.listdir(machine.sysroot / "state/deploy") == [machine.booted_id]
    assert machine.started_units == []


def test_conflict_that_appears_after_staging_leaves_the_old_system(machine: Machine) -> None:
    first = machine.booted_id
    stage_second(machine)
    (machine.etc / "new").mkdir()
    (machine.etc / "new/inside").write_text("x")
    with pytest.raises(DeploymentError, match="cannot be merged"):
        finalize_staged(machine.host)
    assert machine.menu() == (first,)
    assert machine.messages[-1]["priority"] == 3
    assert machine.reboot(finalize=False) == first


def test_without_a_shutdown_nothing_is_finalised_and_the_next_command_cleans_up(machine: Machine) -> None:
    first = machine.booted_id
    second = stage_second(machine)
    assert machine.reboot(finalize=False) == first
    assert machine.boot.has_staged
    assert read_status(machine.host)["status"]["staged"] is None
    assert finalize_staged(machine.host) is None
    machine.serve(os_image(version="3"))
    up(machine)
    assert not (machine.sysroot / "state/deploy" / second).exists()
    assert machine.reboot() != second


def test_staging_again_replaces_the_staged_deployment(machine: Machine) -> None:
    second = stage_second(machine)
    assert up(machine) is OutcomeKind.STAGED_ALREADY
    machine.serve(os_image(version="3"))
    assert up(machine) is OutcomeKind.STAGED
    assert not (machine.sysroot / "state/deploy" / second).exists()
    third = machine.reboot()
    assert third != second
    assert len(machine.menu()) == 2


def test_rollback_undoes_a_staging_then_itself(machine: Machine) -> None:
    first = machine.booted_id
    with pytest.raises(DeploymentError, match="no deployment to roll back to"):
        rollback(machine.host)
    second = stage_second(machine)
    assert rollback(machine.host).kind is RollbackKind.UNSTAGED
    assert not machine.staged_file.exists()
    assert not (machine.sysroot / "state/deploy" / second).exists()
    assert len(os.listdir(machine.esp / "EFI/Linux")) == 1
    assert machine.reboot() == first

    stage_second(machine)
    machine.reboot()
    assert rollback(machine.host).kind is RollbackKind.QUEUED
    assert read_status(machine.host)["status"]["rollbackQueued"] is True
    assert rollback(machine.host).kind is RollbackKind.REVERTED
    assert read_status(machine.host)["status"]["rollbackQueued"] is False
    assert machine.menu() == (second, first)


def test_going_forward_again_to_what_is_kept_for_going_back(machine: Machine) -> None:
    """After a rollback, upgrading leads to a deployment that is in the menu already."""
    first = machine.booted_id
    second = stage_second(machine)
    machine.reboot()
    (machine.etc / "from-second").write_text("2\n")
    rollback(machine.host)
    machine.reboot()
    (machine.etc / "from-first").write_text("1\n")
    assert up(machine) is OutcomeKind.STAGED
    assert rollback(machine.host).kind is RollbackKind.UNSTAGED
    assert (machine.sysroot / "state/deploy" / second / "etc/from-second").exists(), "dropping it leaves the menu's own"
    assert machine.menu() == (first, second)
    assert up(machine) is OutcomeKind.STAGED
    assert machine.reboot() == second
    assert machine.menu() == (second, first)
    assert (machine.etc / "from-first").exists()
    assert not (machine.etc / "from-second").exists(), "/etc is merged from what ran last"


def test_identical_content_under_another_name_only_changes_what_is_tracked(machine: Machine) -> None:
    first = machine.booted_id
    machine.serve(os_image(version="1", etc=V1), tag="same")
    outcome = switch(machine.host, machine.reference("same"), SILENT)
    assert outcome.kind is OutcomeKind.RETRACKED
    assert not outcome.is_pending
    assert not machine.staged_file.exists()
    document = read_status(machine.host)
    assert document["spec"]["image"]["image"].endswith(":same")
    unchanged = switch(machine.host, machine.reference("same"), SILENT)
    assert (unchanged.kind, unchanged.notes) == (OutcomeKind.UNCHANGED, ["Image specification is unchanged."])
    assert machine.reboot() == first


def test_another_manifest_with_the_same_content_is_no_update(machine: Machine) -> None:
    """Only the layer's compression differs, so the digest does and the deployment does not."""
    image = os_image(version="1", etc=V1)
    layer = next(data for digest, data in image.blobs.items() if digest == image.layer_digests[0])
    rebuilt = ImageBuilder(labels={"org.opencontainers.image.version": "1 again"})
    machine.serve(rebuilt.add_layer_tar(gzip.decompress(layer), "zstd").build())
    assert up(machine) is OutcomeKind.UNCHANGED
    assert up(machine, check=True) is OutcomeKind.UNCHANGED, "its digest is known now"
    assert read_status(machine.host)["status"]["booted"]["image"]["version"] == "1 again"


def test_asking_for_what_runs_drops_what_is_staged(machine: Machine) -> None:
    stage_second(machine)
    machine.serve(os_image(version="1", etc=V1))
    outcome = upgrade(machine.host, UpgradeRequest(), SILENT)
    assert outcome.kind is OutcomeKind.UNCHANGED
    assert any("dropped" in note for note in outcome.notes)
    assert read_state(machine.host).staged is None


def test_check_remembers_the_update_and_staging_forgets_it(machine: Machine) -> None:
    assert up(machine, check=True) is OutcomeKind.UNCHANGED
    machine.serve(os_image(version="2", etc=V2))
    outcome = upgrade(machine.host, UpgradeRequest(check=True), SILENT)
    assert outcome.kind is OutcomeKind.AVAILABLE
    assert outcome.version == "2"
    assert [line.split(":")[0] for line in outcome.layers] == ["Total new layers", "Removed layers", "Added layers"]
    cached = read_status(machine.host)["status"]["booted"]["cachedUpdate"]
    assert cached["version"] == "2"
    assert cached["imageDigest"] == outcome.digest
    assert up(machine) is OutcomeKind.STAGED
    assert read_status(machine.host)["status"]["booted"]["cachedUpdate"] is None


def test_download_only_waits_until_it_is_unlocked(machine: Machine) -> None:
    first = machine.booted_id
    machine.serve(os_image(version="2", etc=V2))
    assert up(machine, download_only=True) is OutcomeKind.STAGED
    assert read_status(machine.host)["status"]["staged"]["downloadOnly"] is True
    assert finalize_staged(machine.host) is None
    assert machine.menu() == (first,)
    assert up(machine, from_downloaded=True) is OutcomeKind.UNLOCKED
    assert up(machine, from_downloaded=True) is OutcomeKind.STAGED_ALREADY
    assert machine.reboot() != first
    with pytest.raises(DeploymentError, match="nothing is staged"):
        up(machine, from_downloaded=True)


def test_another_tag(machine: Machine) -> None:
    machine.serve(os_image(version="9"), tag="beta")
    assert up(machine, tag="beta") is OutcomeKind.STAGED
    assert read_status(machine.host)["spec"]["image"]["image"].endswith(":beta")


# ---- bad input: each leaves the running system's entries untouched ---------------------------------------------------


@pytest.mark.parametrize(
    ("image", "message"),
    [
        pytest.param(os_image(version="2", kernel=None), "not bootable", id="no-kernel"),
        pytest.param(os_image(version="2", architecture="arm64"), "architecture 'arm64'", id="architecture"),
        pytest.param(
            os_image(version="2", initramfs=gzip.compress(b"nothing of ours")), "initramfs lacks", id="initramfs"
        ),
    ],
)
def test_images_that_cannot_boot_are_refused(machine: Machine, image: BuiltImage, message: str) -> None:
    before = snapshot(machine.esp)
    machine.serve(image)
    with pytest.raises(ImageError, match=message) as caught:
        up(machine)
    assert caught.value.exit_code == 13
    assert snapshot(machine.esp) == before
    assert not machine.staged_file.exists()


def test_unknown_compression_of_an_initramfs_is_a_warning(machine: Machine) -> None:
    machine.serve(os_image(version="2", initramfs=b"\x02!L\x18 lz4 legacy"))
    assert up(machine) is OutcomeKind.STAGED


def test_second_command_at_the_same_time_is_told_who_is_first(machine: Machine) -> None:
    lock = machine.directory / "run/bootwright/lock"
    lock.parent.mkdir()
    before = snapshot(machine.esp)
    with Lock(str(lock), exclusive=True, holder="bootwright switch"):
        for command in (up, lambda machine: rollback(machine.host)):
            with pytest.raises(BusyError, match=r"bootwright switch \(process \d+\)") as caught:
                command(machine)
            assert caught.value.exit_code == 10
        assert read_status(machine.host)["status"]["booted"], "status does not wait"
    assert snapshot(machine.esp) == before


def test_full_boot_partition(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs

    def small(path: str | int) -> os.statvfs_result:
        found = real(path)
        if path != str(machine.esp):
            return found
        values = list(found)
        values[4] = 10  # f_bavail
        return os.statvfs_result(values)

    monkeypatch.setattr(os, "statvfs", small)
    machine.serve(os_image(version="2", kernel=b"another kernel"))
    with pytest.raises(SpaceError, match=r"boot partition .* free") as caught:
        up(machine)
    assert caught.value.exit_code == 14
    assert not machine.staged_file.exists()
    # The same kernel needs no room.
    machine.serve(os_image(version="3"))
    assert up(machine) is OutcomeKind.STAGED


def test_missing_source(machine: Machine) -> None:
    with pytest.raises(NotFoundError) as caught:
        switch(machine.host, machine.reference("no-such-tag"), SILENT)
    assert caught.value.exit_code == 12


def test_verity_is_required_where_it_cannot_be_enabled(machine: Machine) -> None:
    with Repository.open(str(machine.sysroot / "composefs"), writable=True) as repo:
        if repo.verity:
            pytest.skip("this filesystem has fs-verity")
    entry = next((machine.esp / "loader/entries").iterdir())
    entry.write_text(entry.read_text().replace("composefs=?", "composefs="))
    machine.serve(os_image(version="2"))
    with pytest.raises(DeploymentError, match="requires fs-verity"):
        up(machine)


def test_a_service_that_does_not_start_stops_the_staging(machine: Machine) -> None:
    host = machine.host

    def fail(name: str) -> None:
        raise ToolError(f"could not start '{name}'")

    host.start_unit = fail
    before = snapshot(machine.esp)
    machine.serve(os_image(version="2", kernel=b"kernel 2"))
    with pytest.raises(ToolError):
        upgrade(host, UpgradeRequest(), SILENT)
    assert snapshot(machine.esp) == before
    assert not machine.staged_file.exists()


def test_not_root_and_not_ours(machine: Machine) -> None:
    host = machine.host
    host.uid = 1000
    with pytest.raises(PrivilegeError):
        rollback(host)
    with pytest.raises(DeploymentError, match="not deployed via bootwright"):
        upgrade(Host(cmdline="quiet", mounts=[], uid=0), UpgradeRequest(), SILENT)
    with pytest.raises(DeploymentError, match="this is a container"):
        upgrade(Host(cmdline="quiet", mounts=[], uid=0, in_container=True), UpgradeRequest(), SILENT)
    with pytest.raises(DeploymentError, match="not mounted from it"):
        upgrade(Host(cmdline=f"composefs={'a' * 64}", mounts=[], uid=0), UpgradeRequest(), SILENT)


def test_an_origin_of_a_foreign_transport_says_what_to_do(machine: Machine) -> None:
    origin = machine.etc.parent / f"{machine.booted_id}.origin"
    origin.write_text("[origin]\ncontainer-image-reference = ostree-unverified-image:dir:/x\n")
    with pytest.raises(DeploymentError, match="tracked image cannot be used") as caught:
        up(machine)
    assert caught.value.hint == "bootwright switch REFERENCE"
    assert switch(machine.host, machine.reference(), SILENT).kind is OutcomeKind.RETRACKED


def test_foreign_entries_survive_everything(machine: Machine) -> None:
    windows = machine.esp / "loader/entries/windows.conf"
    windows.write_text("title Windows\nefi /EFI/Microsoft/bootmgfw.efi\n")
    (machine.esp / "loader/entries/broken.conf").write_text("nothing\n")
    stage_second(machine)
    machine.reboot()
    rollback(machine.host)
    assert windows.read_text() == "title Windows\nefi /EFI/Microsoft/bootmgfw.efi\n"
    assert (machine.esp / "loader/entries/broken.conf").read_text() == "nothing\n"


def test_kept_metadata_of_etc(machine: Machine) -> None:
    secret = machine.etc / "secret"
    secret.write_text("s")
    os.chown(secret, 123, 45)
    secret.chmod(0o4600)
    os.setxattr(secret, "user.note", b"mine")
    (machine.etc / "link").symlink_to("motd")
    os.mkfifo(machine.etc / "pipe")
    stage_second(machine)
    machine.reboot()
    kept = machine.etc / "secret"
    assert (kept.stat().st_uid, kept.stat().st_gid, kept.stat().st_mode & 0o7777) == (123, 45, 0o4600)
    assert os.getxattr(kept, "user.note") == b"mine"
    assert (machine.etc / "link").readlink() == Path("motd")
    assert not (machine.etc / "pipe").exists()


def test_the_tag_of_a_layout_cannot_be_empty(machine: Machine) -> None:
    with pytest.raises(UsageError):
        up(machine, tag="")
    with pytest.raises(UsageError):
        ImageReference.parse("oci:x:")


def test_an_image_with_var_content_does_not_touch_var(machine: Machine) -> None:
    machine.serve(os_image(version="2", extra=[directory("var/lib"), file("var/lib/fresh", b"x")]))
    up(machine)
    machine.reboot()
    assert not (machine.etc.parent / "var/lib").exists()
