"""bootwright vm: boot a disk in a virtual machine."""

from __future__ import annotations

import click

from bootwright.cli.interrupt import interrupt_on_termination
from bootwright.cli.output import say
from bootwright.errors import UsageError
from bootwright.ops.vm import MachineOptions, VirtualMachine
from bootwright.units import parse_size

__all__ = ["vm"]

_MIB = 1 << 20


@click.group()
def vm() -> None:
    """Boot a disk in a virtual machine."""


@vm.command("run")
@click.option("--memory", default="2G", show_default=True, metavar="SIZE", help="Memory of the machine.")
@click.option("--cpus", type=click.IntRange(1, 255), default=2, show_default=True, help="Processors of the machine.")
@click.option(
    "--snapshot/--no-snapshot", default=True, show_default=True, help="Leave the disk as it is, or keep changes."
)
@click.option("--ssh", "login", is_flag=True, help="Log in as root when the machine is up; it ends with the session.")
@click.option("--exec", "command", metavar="CMD", help="Run a command as root and return its exit status.")
@click.option("--port-forward", "forwards", multiple=True, metavar="HOST:GUEST", help="Forward a loopback port.")
@click.option(
    "--accel",
    type=click.Choice(["auto", "kvm", "tcg"]),
    default="auto",
    show_default=True,
    help="KVM, emulation, or KVM when it is found to work.",
)
@click.option("--arch", metavar="ARCH", help="Architecture of the guest, e.g. arm64.  [default: this machine's]")
@click.option("--firmware", metavar="FILE", help="UEFI firmware code; its variable store is found beside it.")
@click.option(
    "--timeout",
    type=click.FloatRange(1),
    default=600,
    show_default=True,
    help="Seconds until root must be able to log in.",
)
@click.option("--serial-log", metavar="FILE", help="Keep what the serial console shows.")
@click.option("--smbios-credential", "credentials", multiple=True, metavar="NAME=VALUE", help="A systemd credential.")
@click.option("--verbose", "-v", is_flag=True, help="Say how the machine is run.")
@click.argument("disk")
def run(
    disk: str,
    memory: str,
    cpus: int,
    snapshot: bool,
    login: bool,
    command: str | None,
    forwards: tuple[str, ...],
    accel: str,
    arch: str | None,
    firmware: str | None,
    timeout: float,
    serial_log: str | None,
    credentials: tuple[str, ...],
    verbose: bool,
) -> int:
    """Boot DISK with UEFI firmware in QEMU.

    Without --ssh or --exec the serial console is on this terminal; Ctrl-A X ends the machine, Ctrl-A H shows more.
    What the guest writes is lost at the end unless --no-snapshot is given. The host is 10.0.2.2 for the guest.
    """
    if login and command is not None:
        raise UsageError("--ssh and --exec exclude each other", hint="--exec CMD runs one command, --ssh a shell")
    uses_ssh = login or command is not None
    machine = VirtualMachine(
        MachineOptions(
            disk=disk,
            memory=parse_size(memory) // _MIB,
            cpus=cpus,
            snapshot=snapshot,
            architecture=arch,
            accel=accel,
            firmware=firmware,
            serial_log=serial_log,
            on_terminal=not uses_ssh,
            ssh=uses_ssh,
            credentials=dict(_parse_credential(text) for text in credentials),
            forwards=[_parse_forward(text) for text in forwards],
        )
    )
    interrupt_on_termination()
    with machine:
        if verbose:
            say(f"QEMU with {machine.accelerator.name} ({machine.accelerator.reason}), console in {machine.serial_log}")
        if not uses_ssh:
            return machine.wait()
        machine.wait_for_ssh(timeout_s=timeout)
        status = machine.run_on_terminal(command)
        if not snapshot:
            machine.shutdown()
        return status


def _parse_credential(text: str) -> tuple[str, bytes]:
    name, separator, value = text.partition("=")
    if not separator or not name or not all(letter.isalnum() or letter in "._-" for letter in name):
        raise UsageError(f"'{text}' is no credential", hint="write NAME=VALUE: ssh.authorized_keys.root=ssh-ed25519…")
    return name, value.encode()


def _parse_forward(text: str) -> tuple[int, int]:
    outer, _, inner = text.partition(":")
    if not (outer.isdecimal() and inner.isdecimal() and 0 < int(outer) < 65536 and 0 < int(inner) < 65536):
        raise UsageError(f"'{text}' names no ports", hint="write HOST:GUEST, e.g. 8080:80")
    return int(outer), int(inner)
