"""`make demo`: an image becomes a machine that updates itself and can go back. All of it real, shown as it happens.

Builds three operating systems from Debian's packages, serves them from a registry, makes a disk as an ordinary user,
boots it in QEMU, and works inside the running machine the way its administrator would.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

from machine import HOST_ADDRESS, install_disk, make_overlay, make_scratch, open_machine, read_status, unprivileged
from osimages import ensure_images
from registry import push_layout, running_registry

from bootwright.errors import BootwrightError
from bootwright.ops.vm import VirtualMachine
from bootwright.units import format_duration, format_size

TAGS = ("v1", "v2", "other")
_STARTED = time.monotonic()
_COLOR = sys.stdout.isatty() and "NO_COLOR" not in os.environ


def style(text: str, code: str) -> str:
    """Colour a text on a terminal."""
    return f"\033[{code}m{text}\033[0m" if _COLOR else text


def chapter(title: str) -> None:
    """Start a part of the story."""
    elapsed = format_duration(time.monotonic() - _STARTED)
    print(f"\n{style(f'── {title} ', '1;36')}{style(f'[{elapsed}]', '2')}", flush=True)


def in_guest(machine: VirtualMachine, command: str) -> str:
    """Run a command in the machine and show it with what it prints."""
    print(style(f"machine# {command}", "1"), flush=True)
    result = machine.run(command, timeout_s=1200)
    text = (result.stdout + result.stderr).rstrip()
    if text:
        print("\n".join(f"    {line}" for line in text.splitlines()), flush=True)
    result.check()
    return result.stdout


class Checks:
    """Counts what was checked, and stops at the first thing that is not as it should be."""

    def __init__(self) -> None:
        self.count = 0

    def require(self, what: str, found: object, expected: object) -> None:
        """Compare, and say so.

        Raises:
            SystemExit: they differ.
        """
        self.count += 1
        if found != expected:
            sys.exit(f"{style('✗', '1;31')} {what}: found {found!r}, expected {expected!r}")
        print(f"  {style('✓', '1;32')} {what}", flush=True)


def image_version(machine: VirtualMachine) -> str:
    """Ask the machine's own os-release which image it runs."""
    return machine.run(". /usr/lib/os-release; echo $IMAGE_VERSION").check().strip()


def make_disk(layout: Path, address: str, directory: Path) -> Path:
    """Install v1 into a disk file, as a user who is not root."""
    disk = directory / "disk.raw"
    who = "as uid 65534, no root, no loop device" if unprivileged(directory) else f"as uid {os.geteuid()}"
    print(style(f"host$ bootwright install to-disk --source-imgref oci:…:v1 --size 8G disk.raw   ({who})", "1"))
    target = f"docker://{HOST_ADDRESS}:{address.rpartition(':')[2]}/os:v1"
    sys.stdout.write(install_disk(f"oci:{layout}:v1", target, disk).stdout)
    on_disk = disk.stat().st_blocks * 512
    print(f"    {disk.name}: {format_size(disk.stat().st_size)}, {format_size(on_disk)} on disk")
    return disk


def live(machine: VirtualMachine, address: str, checks: Checks) -> None:
    """The machine's story: look, change, switch, reboot, go back, switch to another release."""
    guest_address = f"{HOST_ADDRESS}:{address.rpartition(':')[2]}"
    chapter("Inside the machine: what runs")
    in_guest(machine, "bootwright status --format=humanreadable")
    in_guest(machine, "findmnt -no SOURCE,FSTYPE,OPTIONS /")
    checks.require("booted v1", image_version(machine), "13.1")
    machine.run("mkdir -p /etc/containers/registries.conf.d").check()
    conf = "/etc/containers/registries.conf.d/demo.conf"
    machine.run(f"printf '[[registry]]\\nlocation = \"{guest_address}\"\\ninsecure = true\\n' > {conf}").check()
    in_guest(machine, "echo 'mine' > /etc/local.conf; echo kept > /var/lib/marker; cat /etc/demo.conf | tail -1")

    chapter("Switch to v2: fetched and staged while v1 runs")
    in_guest(machine, f"bootwright switch {guest_address}/os:v2")
    in_guest(machine, "bootwright status --format=humanreadable")
    checks.require("still running v1", image_version(machine), "13.1")

    chapter("Reboot")
    machine.reboot(timeout_s=900)
    in_guest(machine, "bootwright status --format=humanreadable")
    checks.require("runs v2", image_version(machine), "13.2")
    checks.require("the local file in /etc is there", machine.run("cat /etc/local.conf").stdout, "mine\n")
    follows = "flavour = v2" in machine.run("cat /etc/demo.conf").stdout
    checks.require("the untouched file in /etc follows the image", follows, True)
    checks.require("/var is kept", machine.run("cat /var/lib/marker").stdout, "kept\n")

    chapter("Roll back")
    in_guest(machine, "bootwright rollback")
    machine.reboot(timeout_s=900)
    in_guest(machine, "bootwright status --format=humanreadable")
    checks.require("runs v1 again", image_version(machine), "13.1")

    chapter("Switch to another release of the distribution")
    in_guest(machine, f"bootwright switch {guest_address}/os:other")
    machine.reboot(timeout_s=900)
    in_guest(machine, "bootwright status --format=humanreadable")
    in_guest(machine, "grep PRETTY_NAME /etc/os-release; uname -r")
    checks.require("runs the other release", image_version(machine), "14.0")
    checks.require(
        "/etc and /var came along", machine.run("cat /etc/local.conf /var/lib/marker").stdout, "mine\nkept\n"
    )
    checks.require("it can go back", read_status(machine)["status"]["rollback"] is not None, True)


def main() -> None:
    """Tell the whole story."""
    checks = Checks()
    chapter("Operating systems as images: Debian's packages → OCI layout")
    layouts = ensure_images(*TAGS)
    directory = make_scratch("bootwright-demo-")
    try:
        disk_directory = directory / "disk"
        disk_directory.mkdir()
        with running_registry(directory / "registry") as address:
            chapter(f"A registry: {address}")
            for tag, layout in layouts.items():
                print(f"    os:{tag}  {push_layout(layout, tag, address, 'os', tag)}")
            chapter("A disk from v1")
            disk = make_disk(layouts["v1"], address, disk_directory)
            overlay = make_overlay(disk, directory / "machine.qcow2")
            log = directory / "serial.log"
            with open_machine(overlay, serial_log=log, variables=directory / "variables.fd") as machine:
                chapter(f"Boot ({machine.accelerator.name})")
                machine.wait_for_ssh(timeout_s=900)
                live(machine, address, checks)
                machine.shutdown()
    finally:
        shutil.rmtree(directory)
    elapsed = format_duration(time.monotonic() - _STARTED)
    done = "booted v1, switched to v2, rolled back, all checks passed"
    print(f"\n{style(done, '1;32')} ({checks.count} checks, {elapsed})")


if __name__ == "__main__":
    try:
        main()
    except BootwrightError as error:
        sys.exit(f"error: {error.message}" + (f"\n  hint: {error.hint}" if error.hint else ""))
