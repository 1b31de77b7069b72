"""The status document in every state a machine passes through, against bootc's own schema."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bootwright.linux.mountinfo import Mount
from bootwright.ops.host import Host
from bootwright.ops.rollback import rollback
from bootwright.ops.status import format_human, read_status
from bootwright.ops.switch import switch
from bootwright.ops.upgrade import UpgradeRequest, upgrade
from bootwright.progress import SILENT
from fakes.machine import Machine, os_image

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners of /etc")]

SCHEMA = Path(__file__).parents[2] / "../shared/vectors/host-v1.schema.json"
Document = dict[str, Any]


@pytest.fixture
def valid() -> Callable[[Document], Document]:
    """Check a document against the schema and give it back."""
    if not SCHEMA.exists():
        pytest.skip("needs ../shared")
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))

    def check(document: Document) -> Document:
        validator.validate(document)
        return document

    return check


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine.install(tmp_path / "machine", os_image(version="1"))


def test_every_state(machine: Machine, valid: Callable[[Document], Document]) -> None:
    first = machine.booted_id
    document = valid(read_status(machine.host))
    status = document["status"]
    assert status["type"] == "bootcHost"
    assert status["booted"]["composefs"]["verity"] == first
    assert status["booted"]["composefs"]["missingVerityAllowed"] is True
    assert status["booted"]["composefs"]["bootType"] == "Bls"
    assert len(status["booted"]["composefs"]["bootDigest"]) == 64
    assert status["booted"]["image"]["version"] == "1"
    assert status["booted"]["image"]["timestamp"] == "2026-01-02T03:04:05Z"
    assert status["booted"]["image"]["architecture"] == "amd64"
    assert (status["staged"], status["rollback"], status["rollbackQueued"]) == (None, None, False)
    assert "otherDeployments" not in status

    machine.serve(os_image(version="2"))
    upgrade(machine.host, UpgradeRequest(check=True), SILENT)
    assert valid(read_status(machine.host))["status"]["booted"]["cachedUpdate"]["version"] == "2"

    upgrade(machine.host, UpgradeRequest(), SILENT)
    staged = valid(read_status(machine.host))
    second = staged["status"]["staged"]["composefs"]["verity"]
    assert staged["metadata"]["annotations"]["bootwright/next-boot"] == second
    assert staged["spec"] == {"image": staged["status"]["staged"]["image"]["image"], "bootOrder": "default"}
    only = valid(read_status(machine.host, booted_only=True))
    assert only["status"]["staged"] is None
    assert only["status"]["booted"]["composefs"]["verity"] == first

    machine.reboot()
    booted = valid(read_status(machine.host))["status"]
    assert (booted["booted"]["composefs"]["verity"], booted["rollback"]["composefs"]["verity"]) == (second, first)

    rollback(machine.host)
    queued = valid(read_status(machine.host))
    assert queued["status"]["rollbackQueued"] is True
    assert queued["spec"]["bootOrder"] == "rollback"
    assert queued["metadata"]["annotations"]["bootwright/next-boot"] == first

    machine.reboot()
    machine.serve(os_image(version="3"), tag="other")
    switch(machine.host, machine.reference("other"), SILENT)
    both = valid(read_status(machine.host))
    assert both["spec"]["image"]["image"].endswith(":other")
    assert both["status"]["rollback"]["composefs"]["verity"] == second


def test_damage_is_named_and_the_rest_is_shown(machine: Machine, valid: Callable[[Document], Document]) -> None:
    machine.serve(os_image(version="2"))
    upgrade(machine.host, UpgradeRequest(), SILENT)
    second = machine.reboot()
    first = machine.menu()[1]
    (machine.sysroot / "state/deploy" / first / f"{first}.origin").write_text("not an ini file")
    (machine.esp / "loader/entries/zz.conf").write_text("title nothing\n")
    (machine.esp / "loader/entries/ghost.conf").write_text(f"linux /x\noptions composefs={'ee' * 32}\nsort-key z\n")
    (machine.sysroot / "state/deploy/junk").mkdir()
    document = valid(read_status(machine.host))
    assert document["status"]["booted"]["composefs"]["verity"] == second
    assert document["status"]["rollback"]["image"] is None
    assert [one["composefs"]["verity"] for one in document["status"]["otherDeployments"]] == ["ee" * 32]
    annotations = document["metadata"]["annotations"]
    assert annotations["bootwright/broken-entries"] == "zz.conf"
    assert len(annotations["bootwright/problems"].splitlines()) == 3
    text = format_human(document, verbose=True)
    assert "warning: boot entry 'zz.conf' names no kernel" in text
    assert "(unknown image)" in text


def test_an_unreadable_boot_partition_leaves_what_can_be_known(
    machine: Machine, valid: Callable[[Document], Document]
) -> None:
    host = machine.host
    host.boot_root = None
    host.uid = 1000
    document = valid(read_status(host))
    assert document["status"]["booted"]["image"]["version"] == "1"
    assert "read by root only" in document["metadata"]["annotations"]["bootwright/problems"]


def test_no_host_of_ours(valid: Callable[[Document], Document]) -> None:
    document = valid(read_status(Host(cmdline="quiet", mounts=[])))
    assert document["status"]["booted"] is None
    assert document["status"]["type"] is None
    assert format_human(document) == "System is not deployed via bootwright."


def test_overlay_on_usr_and_signatures(machine: Machine, valid: Callable[[Document], Document]) -> None:
    host = machine.host
    host.mounts.append(
        Mount(device=(0, 40), root="/", target="/usr", options=("rw",), fstype="overlay", source="overlay")
    )
    origin = machine.etc.parent / f"{machine.booted_id}.origin"
    origin.write_text(
        origin.read_text()
        .replace("ostree-unverified-image:oci:", "ostree-remote-image:fedora:docker://")
        .split("[boot]")[0]
        + "[packages]\nx = y\n"
    )
    document = valid(read_status(host))
    assert document["status"]["usrOverlay"] == {"accessMode": "readWrite", "persistence": "transient"}
    booted = document["status"]["booted"]
    assert booted["image"]["image"]["signature"] == {"ostreeRemote": "fedora"}
    assert booted["image"]["image"]["transport"] == "registry"
    assert booted["incompatible"] is True
    assert "/usr overlay: transient, read/write" in format_human(document)


def test_read_only_medium(machine: Machine, valid: Callable[[Document], Document]) -> None:
    host = machine.host
    host.mounts.append(
        Mount(device=(7, 1), root="/", target=host.sysroot, options=("ro",), fstype="ext4", source="/dev/loop1")
    )
    marker = machine.directory / "sys/dev/block/7:1"
    marker.mkdir(parents=True)
    (marker / "ro").write_text("1\n")
    document = valid(read_status(host))
    assert document["status"]["readOnly"] is True
    assert "Read-only: yes" in format_human(document)


def test_human_layout(machine: Machine) -> None:
    first = machine.booted_id
    reference = str(machine.reference())
    digest = read_status(machine.host)["status"]["booted"]["image"]["imageDigest"]
    assert format_human(read_status(machine.host)) == (
        f"● Booted image: {reference}\n"
        f"        Digest: {digest} (amd64)\n"
        f"        Verity: {first}\n"
        f"       Version: 1 (2026-01-02T03:04:05Z)\n"
        f"\n"
        f"     Next boot: the booted image\n"
        f"   Can go back: no, there is no earlier deployment"
    )
    machine.serve(os_image(version="2"))
    upgrade(machine.host, UpgradeRequest(check=True), SILENT)
    assert " UpdateVersion: 2 (2026-01-02T03:04:05Z)" in format_human(read_status(machine.host))
    upgrade(machine.host, UpgradeRequest(download_only=True), SILENT)
    text = format_human(read_status(machine.host), verbose=True)
    assert text.startswith("  Staged image: ")
    assert " Download-only: yes" in text
    assert "      FsVerity: Not Enforced" in text
    assert "was only downloaded" in text
    upgrade(machine.host, UpgradeRequest(from_downloaded=True), SILENT)
    assert "     Next boot: the staged image" in format_human(read_status(machine.host))
    machine.reboot()
    text = format_human(read_status(machine.host))
    assert "  Rollback image: " in text
    assert "   Can go back: yes, 'bootwright rollback' to 1" in text
    rollback(machine.host)
    assert "     Next boot: the rollback image (queued)" in format_human(read_status(machine.host))
