"""One machine's life: installed with v1, changed by hand, switched to v2, rolled back, switched to another release.

The tests are chapters and run in order. Everything the machine says is asked from inside it; a reboot is over when the
guest reports another boot id. Verity is required throughout (``composefs=`` without ``?``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from machine import make_overlay, open_machine, read_status
from vm_ground import Ground

from bootwright.ops.vm import VirtualMachine

pytestmark = pytest.mark.vm

VERSIONS = {"v1": "13.1", "v2": "13.2", "other": "14.0"}


@pytest.fixture(scope="module")
def machine(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualMachine]:
    directory = tmp_path_factory.mktemp("machine")
    disk = make_overlay(ground.disk, directory / "disk.qcow2")
    with open_machine(disk, serial_log=directory / "serial.log", variables=directory / "variables.fd") as machine:
        machine.wait_for_ssh(timeout_s=600)
        yield machine


def image_version(machine: VirtualMachine) -> str:
    return machine.run(". /usr/lib/os-release; echo $IMAGE_VERSION").check().strip()


def deployment_id(entry: dict[str, Any]) -> str:
    return str(entry["composefs"]["verity"])


def check_runs(machine: VirtualMachine, tag: str, validate_status: Any) -> dict[str, Any]:
    """Require that the machine runs an image, by its own root, its own files and its own status; returns the status."""
    status = read_status(machine)
    validate_status(status)
    booted = status["status"]["booted"]
    assert booted["image"]["version"] == VERSIONS[tag]
    assert image_version(machine) == VERSIONS[tag]
    assert booted["composefs"]["missingVerityAllowed"] is False
    identity = deployment_id(booted)
    assert machine.run("findmnt -no SOURCE /").check().strip() == f"composefs:{identity}"
    assert f"composefs={identity}" in machine.run("cat /proc/cmdline").check().split()
    assert machine.run("systemctl is-system-running --wait").stdout.strip() == "running", machine.run(
        "systemctl --failed --no-legend"
    ).stdout
    return status


def test_boots_what_was_installed(machine: VirtualMachine, ground: Ground, validate_status: Any) -> None:
    status = check_runs(machine, "v1", validate_status)
    assert status["status"]["staged"] is None
    assert status["status"]["rollback"] is None
    assert status["spec"]["image"]["image"] == ground.reference("v1").removeprefix("docker://")
    options = machine.run("findmnt -no OPTIONS /").check()
    assert "verity=require" in options
    assert machine.run("touch /usr/x").status != 0, "/usr is read-only"


def test_the_kernel_measures_every_object_as_it_is_named(machine: VirtualMachine) -> None:
    script = (
        "cd /sysroot/composefs/objects && "
        "find . -type f | sort | xargs fsverity measure | "
        """awk '{ split($1, d, ":"); name = $2; gsub(/[.\\/]/, "", name); n++; if (d[2] != name) { print; bad = 1 } }"""
        """ END { print n " objects"; exit bad }'"""
    )
    result = machine.run(script)
    assert result.status == 0, result.stdout[-500:] + result.stderr[-500:]
    assert int(result.stdout.split()[0]) > 5000


def test_local_changes_are_made(machine: VirtualMachine, ground: Ground) -> None:
    machine.run(
        "mkdir -p /etc/containers/registries.conf.d && "
        f"printf '[[registry]]\\nlocation = \"{ground.guest_address}\"\\ninsecure = true\\n'"
        " > /etc/containers/registries.conf.d/10-local.conf && "
        "echo mine > /etc/local.conf && chmod 600 /etc/local.conf && "
        "echo 'changed here' >> /etc/issue.d/50-demo.issue && "
        "rm /etc/locale.conf && "
        "echo kept > /var/lib/marker && sync"
    ).check()


def test_an_unknown_tag_changes_nothing(machine: VirtualMachine, ground: Ground) -> None:
    before = machine.run("ls -lR /sysroot/state/deploy /run/composefs 2>&1 | cksum").check()
    result = machine.run(f"bootwright switch {ground.reference('no-such-tag')}")
    assert result.status == 12
    assert result.stderr.startswith("error: ")
    assert machine.run("ls -lR /sysroot/state/deploy /run/composefs 2>&1 | cksum").check() == before


def test_switch_to_v2_is_staged(machine: VirtualMachine, ground: Ground, validate_status: Any) -> None:
    result = machine.run(f"bootwright switch {ground.reference('v2')}", timeout_s=900)
    assert result.status == 0, result.stderr
    assert "Queued for next boot" in result.stdout
    status = check_runs(machine, "v1", validate_status)
    assert status["status"]["staged"]["image"]["version"] == VERSIONS["v2"]
    human = machine.run("bootwright status --format=humanreadable").check()
    assert "Staged image" in human
    assert "Booted image" in human


def test_a_power_cut_while_staged_boots_the_old_one(machine: VirtualMachine, validate_status: Any) -> None:
    before = machine.boot_id()
    machine.reset()
    machine.wait_for_new_boot(before, timeout_s=600)
    status = check_runs(machine, "v1", validate_status)
    assert status["status"]["staged"] is None


def test_switch_again_and_reboot_runs_v2(machine: VirtualMachine, ground: Ground, validate_status: Any) -> None:
    machine.run(f"bootwright switch --quiet {ground.reference('v2')}", timeout_s=900).check()
    machine.reboot(timeout_s=600)
    status = check_runs(machine, "v2", validate_status)
    assert status["status"]["rollback"]["image"]["version"] == VERSIONS["v1"]
    assert status["spec"]["image"]["image"] == ground.reference("v2").removeprefix("docker://")
    assert machine.run("command -v jq && ! command -v nano").status == 0, "the packages are v2's"


def test_local_changes_live_and_the_rest_follows_the_image(machine: VirtualMachine) -> None:
    assert machine.run("cat /etc/local.conf; stat -c %a /etc/local.conf").check().split() == ["mine", "600"]
    assert "changed here" in machine.run("cat /etc/issue.d/50-demo.issue").check()
    assert machine.run("test ! -e /etc/locale.conf").status == 0, "what was removed stays removed"
    assert "flavour = v2" in machine.run("cat /etc/demo.conf").check()
    assert machine.run("cat /var/lib/marker").check() == "kept\n"


def test_nothing_to_upgrade(machine: VirtualMachine) -> None:
    result = machine.run("bootwright upgrade", timeout_s=300)
    assert result.status == 0, result.stderr
    assert "No " in result.stdout
    assert read_status(machine)["status"]["staged"] is None


def test_rollback_with_an_update_staged_undoes_the_staging(
    machine: VirtualMachine, ground: Ground, validate_status: Any
) -> None:
    machine.run(f"bootwright switch --quiet {ground.reference('other')}", timeout_s=900).check()
    assert read_status(machine)["status"]["staged"] is not None
    machine.run("bootwright rollback").check()
    status = check_runs(machine, "v2", validate_status)
    assert status["status"]["staged"] is None
    assert status["status"]["rollbackQueued"] is False


def test_rollback_and_reboot_runs_v1_again(machine: VirtualMachine, validate_status: Any) -> None:
    machine.run("echo v2 > /etc/only-in-v2").check()
    result = machine.run("bootwright rollback").check()
    assert "rollback deployment" in result
    assert read_status(machine)["status"]["rollbackQueued"] is True
    machine.reboot(timeout_s=600)
    status = check_runs(machine, "v1", validate_status)
    assert status["status"]["rollback"]["image"]["version"] == VERSIONS["v2"]
    assert "flavour = v1" in machine.run("cat /etc/demo.conf").check()
    assert machine.run("cat /etc/local.conf").check() == "mine\n"
    assert machine.run("test -e /etc/only-in-v2").status != 0, "each deployment has its own /etc"
    assert machine.run("cat /var/lib/marker").check() == "kept\n"


def test_switch_to_another_release_with_another_initramfs(
    machine: VirtualMachine, ground: Ground, validate_status: Any
) -> None:
    kernel = machine.run("uname -r").check()
    machine.run(f"bootwright switch --quiet {ground.reference('other')}", timeout_s=900).check()
    machine.reboot(timeout_s=600)
    check_runs(machine, "other", validate_status)
    assert machine.run("uname -r").check() != kernel
    assert machine.run("cat /etc/local.conf").check() == "mine\n"
    assert machine.run("cat /var/lib/marker").check() == "kept\n"
    assert machine.run("command -v mkinitramfs && ! command -v dracut").status == 0, "this image has initramfs-tools"


def test_kernels_and_deployments_that_nothing_boots_are_gone(machine: VirtualMachine) -> None:
    status = read_status(machine)["status"]
    wanted = {deployment_id(status[name]) for name in ("booted", "rollback")}
    wanted |= {deployment_id(entry) for entry in status.get("otherDeployments", [])}
    assert set(machine.run("ls /sysroot/state/deploy").check().split()) == wanted


def test_it_can_be_asked_by_a_person(machine: VirtualMachine) -> None:
    text = machine.run("bootwright status --format=humanreadable").check()
    assert "● Booted image" in text
    assert "Rollback image" in text
    if path := os.environ.get("BOOTWRIGHT_VM_OUTPUT"):
        Path(path).write_text(text)
