"""A virtual machine that boots a disk the way hardware does: UEFI firmware, boot loader, kernel.

::

    disk                virtio-blk, with a throw-away overlay above it unless changes are to be kept
    firmware            code read-only, variables a private copy
    network             user mode: the guest is 10.0.2.15, the host 10.0.2.2
    console             serial, into a log file or on this terminal
    ssh                 through a forwarded loopback port, with the user's key for machines, which systemd gets as a
                        credential (SMBIOS type 11)
    control             QMP on a UNIX socket

Nothing waits blindly: every wait ends early when QEMU ends or the console shows that the boot has failed.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from bootwright.errors import BootError, ToolError, UsageError
from bootwright.linux import architecture as machine_names
from bootwright.linux import process
from bootwright.ops.vm_host import Accelerator, cache_directory, choose_accelerator, find_firmware, qemu_program
from bootwright.ops.vm_qmp import Qmp

__all__ = ["CommandResult", "MachineOptions", "VirtualMachine"]

_SSH_CREDENTIAL = "ssh.authorized_keys.root"
_SSH_FAILED = 255
_QEMU_LOG = "qemu.log"
# What a console shows when waiting longer makes no sense.
_FAILURES = (
    re.compile(rb"Kernel panic - not syncing[^\r\n]*"),
    re.compile(rb"You are in emergency mode[^\r\n]*"),
    re.compile(rb"Entering emergency mode[^\r\n]*"),
    re.compile(rb"Generating \"/run/initramfs/rdsosreport.txt\""),
    re.compile(rb"\(initramfs\) *$"),
    re.compile(rb"No bootable (?:option or )?device[^\r\n]*"),
    re.compile(rb"UEFI Interactive Shell"),
)
_CONTROL = re.compile(rb"\x1b\[[0-9;?=]*[A-Za-z]|\x1b[()][A-Z0-9]|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineOptions:
    """A virtual machine.

    Attributes:
        disk: path of the disk.
        disk_format: ``raw`` or ``qcow2``; found out when None.
        memory: MiB.
        cpus: how many.
        snapshot: keep the disk as it is: what the guest writes is lost at the end.
        architecture: of the guest, OCI's name; this machine's when None.
        accel: ``auto``, ``kvm`` or ``tcg``.
        firmware: UEFI code to use, instead of the one found.
        variables: file with the firmware's variables, made when missing and kept; a private copy when None.
        serial_log: file for the console's output, replaced; a temporary one when None.
        on_terminal: the console is this terminal.
        ssh: make a key, give it to the guest's root, forward a port to its sshd.
        credentials: further systemd credentials by name.
        forwards: (port on the host's loopback, port in the guest).
    """

    disk: str
    disk_format: str | None = None
    memory: int = 2048
    cpus: int = 2
    snapshot: bool = True
    architecture: str | None = None
    accel: str = "auto"
    firmware: str | None = None
    variables: str | None = None
    serial_log: str | None = None
    on_terminal: bool = False
    ssh: bool = True
    credentials: Mapping[str, bytes] = field(default_factory=dict)
    forwards: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command in the guest did: exit status and output."""

    status: int
    stdout: str
    stderr: str

    def check(self) -> str:
        """Return the output of a command that succeeded.

        Raises:
            ToolError: it did not.
        """
        if self.status != 0:
            raise ToolError(f"a command in the guest exited with status {self.status}: {self.stderr.strip()[-400:]}")
        return self.stdout


class VirtualMachine:
    """A virtual machine; a context manager that starts it, and kills it at the end.

    Args:
        options: what it is.

    Raises:
        ToolError: QEMU or its firmware is missing.
        UsageError: the disk is missing, or options do not fit.
    """

    def __init__(self, options: MachineOptions) -> None:
        self.options = options
        self._architecture = options.architecture or machine_names.oci_name()
        if not os.path.exists(options.disk):
            raise UsageError(f"there is no disk '{options.disk}'", hint="bootwright install to-disk makes one")
        self._program = qemu_program(self._architecture)
        self._firmware = find_firmware(self._architecture, options.firmware)
        self._format = options.disk_format or _detect_format(options.disk)
        self.accelerator: Accelerator = choose_accelerator(options.accel, self._architecture, self._firmware)
        self._directory = tempfile.mkdtemp(prefix="bootwright-vm-")
        self.serial_log = os.path.abspath(options.serial_log or os.path.join(self._directory, "serial.log"))
        self._process: subprocess.Popen[bytes] | None = None
        self._qmp: Qmp | None = None
        self._ssh_port = 0
        self._console_read = 0

    # ---- life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start QEMU. Returns when it runs, long before the guest does.

        Raises:
            ToolError: it does not start.
        """
        if self._process is not None:
            raise ToolError("the virtual machine runs already")
        with open(self.serial_log, "wb"):
            pass
        self._console_read = 0
        if self.options.ssh:
            self._ensure_key()
        variables = self._variables
        if not os.path.exists(variables):
            shutil.copyfile(self._firmware.variables, variables)
            os.chmod(variables, 0o600)
        with open(os.path.join(self._directory, _QEMU_LOG), "wb") as log:
            self._process = process.start(self._arguments(variables), log=log, attached=self.options.on_terminal)
        try:
            self._qmp = Qmp(self._socket_path, is_alive=lambda: self._get_process().poll() is None)
            if self.options.ssh:
                self._ssh_port = _find_forward(self._qmp.execute("human-monitor-command", **_INFO_USERNET), 22)
        except BaseException as exc:
            reason = self._qemu_said()
            self.kill()
            if isinstance(exc, ToolError):
                name = os.path.basename(self._program)
                raise ToolError(f"'{name}' does not start: {reason or exc.message}") from exc
            raise

    def kill(self) -> None:
        """End QEMU at once, as if the power failed; calling it twice is fine. The machine can be started again."""
        if self._qmp is not None:
            self._qmp.close()
            self._qmp = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Kill it and remove its temporary files; a serial log that was asked for stays."""
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wait(self, *, timeout_s: float | None = None) -> int:
        """Wait until QEMU ends by itself: the guest was powered off.

        Returns:
            Its exit status.

        Raises:
            BootError: it did not within the time.
        """
        try:
            status = self._get_process().wait(timeout_s)
        except subprocess.TimeoutExpired as exc:
            raise BootError(f"the virtual machine did not end within {timeout_s} s") from exc
        self.kill()
        return status

    def shutdown(self, *, timeout_s: float = 120) -> None:
        """Press the power button and wait until the guest has shut down.

        Raises:
            BootError: it did not within the time.
        """
        self._get_qmp().execute("system_powerdown")
        self.wait(timeout_s=timeout_s)

    def reset(self) -> None:
        """Press the reset button: no shutdown, no sync; memory is lost, what the disk was given is not."""
        self._get_qmp().execute("system_reset")

    # ---- console ---------------------------------------------------------------------------------------------

    def console(self) -> str:
        """Return everything the console has shown since the start, without terminal sequences."""
        try:
            with open(self.serial_log, "rb") as file:
                return _CONTROL.sub(b"", file.read()).decode("utf-8", "replace").replace("\r", "")
        except FileNotFoundError:
            return ""

    def wait_for_console(self, pattern: str, *, timeout_s: float = 300) -> str:
        """Wait until the console shows a text that the regular expression finds; returns the match.

        Raises:
            BootError: not within the time, or QEMU ended.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            found = re.search(pattern, self.console())
            if found:
                return found[0]
            self._check_alive(f"the console showed '{pattern}'")
            if time.monotonic() > deadline:
                raise self._failure(f"the console did not show '{pattern}' within {timeout_s:.0f} s")
            time.sleep(0.2)

    def _check_boot(self, since: int) -> None:
        with open(self.serial_log, "rb") as file:
            file.seek(since)
            shown = _CONTROL.sub(b"", file.read())
        for pattern in _FAILURES:
            if found := pattern.search(shown):
                raise self._failure(f"the guest did not boot: '{found[0].decode('utf-8', 'replace').strip()}'")

    def _check_alive(self, awaited: str) -> None:
        if self._get_process().poll() is not None:
            raise self._failure(f"QEMU ended before {awaited}: {self._qemu_said() or 'no reason given'}")
        if self.accelerator.name == "kvm" and "KVM internal error" in self._qemu_said():
            raise BootError("KVM cannot run this guest here", hint="--accel tcg")

    def _failure(self, message: str) -> BootError:
        tail = [line for line in self.console().splitlines() if line.strip()][-12:]
        lines = "".join(f"\n    {line[:200]}" for line in tail)
        return BootError(message, hint=f"the last lines of the console:{lines}" if tail else None)

    def _qemu_said(self) -> str:
        with contextlib.suppress(OSError), open(os.path.join(self._directory, _QEMU_LOG), "rb") as file:
            text = file.read(1 << 20).decode("utf-8", "replace")
            lines = [line for line in text.splitlines() if "warning:" not in line]
            return "; ".join(lines[:3])
        return ""

    # ---- ssh -------------------------------------------------------------------------------------------------

    def wait_for_ssh(self, *, timeout_s: float = 300) -> None:
        """Wait until root can log in.

        Raises:
            BootError: not within the time, QEMU ended, or the console shows that the boot failed.
        """
        deadline = time.monotonic() + timeout_s
        since = self._console_read
        while True:
            self._check_alive("root could log in")
            self._check_boot(since)
            # User-mode networking accepts the connection before the guest has a network: only the banner counts.
            if self._has_banner() and self._ssh(["true"], timeout_s=60).status == 0:
                self._console_read = os.stat(self.serial_log).st_size
                return
            if time.monotonic() > deadline:
                raise self._failure(f"nobody could log in within {timeout_s:.0f} s")
            time.sleep(0.3)

    def _has_banner(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._ssh_port), timeout=2) as connection:
                connection.settimeout(5)
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def run(self, command: str, *, stdin: bytes = b"", timeout_s: float = 600) -> CommandResult:
        """Run a shell command as root in the guest.

        Raises:
            BootError: the guest cannot be reached, or the command does not end within the time.
        """
        result = self._ssh([command], stdin=stdin, timeout_s=timeout_s)
        if result.status == _SSH_FAILED:
            self._check_alive("a command could run")
            if "ssh:" in result.stderr or "Connection" in result.stderr:
                raise self._failure(f"the guest cannot be reached: {result.stderr.strip()[-200:]}")
        return result

    def run_on_terminal(self, command: str | None) -> int:
        """Run a command, or a login shell when None, with this process's own standard streams; returns its status."""
        options = ["-t"] if command is None else []
        argv = [*self._ssh_command(), *options, "root@127.0.0.1", *([] if command is None else [command])]
        return process.run_attached(argv)

    def _ssh(self, command: Sequence[str], *, stdin: bytes = b"", timeout_s: float) -> CommandResult:
        argv = [*self._ssh_command(), "-o", "BatchMode=yes", "root@127.0.0.1", *command]
        try:
            result = process.run(
                argv, purpose="run a command in the guest", stdin=stdin, ok=range(256), timeout_s=timeout_s
            )
        except TimeoutError as exc:
            what = shlex.join(command)
            raise self._failure(f"the command '{what[:100]}' did not end within {timeout_s:.0f} s") from exc
        out, err = (stream.decode("utf-8", "replace") for stream in (result.stdout, result.stderr))
        return CommandResult(result.returncode, out, err)

    def _ssh_command(self) -> list[str]:
        options = {
            "IdentitiesOnly": "yes",
            # The key of the guest is made at its first boot, and the port is forwarded to that guest alone.
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
            "ConnectTimeout": "20",
            "ServerAliveInterval": "15",
            "ServerAliveCountMax": "20",
        }
        flags = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return ["ssh", "-F", "/dev/null", "-i", self._key, "-p", str(self._ssh_port), *flags]

    def boot_id(self) -> str:
        """Return the id of the guest's running boot.

        Raises:
            BootError: the guest cannot be reached.
        """
        return self.run("cat /proc/sys/kernel/random/boot_id").check().strip()

    def reboot(self, *, timeout_s: float = 400) -> None:
        """Reboot the guest in order, and wait until root can log into the new boot.

        Raises:
            BootError: it does not come back within the time.
        """
        before = self.boot_id()
        self._console_read = os.stat(self.serial_log).st_size
        # The connection may end before the answer.
        self._ssh(["systemctl reboot"], timeout_s=120)
        self.wait_for_new_boot(before, timeout_s=timeout_s)

    def wait_for_new_boot(self, before: str, *, timeout_s: float = 400) -> None:
        """Wait until root can log into a boot with another id than ``before``.

        Raises:
            BootError: not within the time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            self.wait_for_ssh(timeout_s=max(deadline - time.monotonic(), 1))
            with contextlib.suppress(BootError, ToolError):
                if self.boot_id() != before:
                    return
            if time.monotonic() > deadline:
                raise self._failure(f"the guest did not reboot within {timeout_s:.0f} s")
            time.sleep(0.5)

    # ---- QEMU's arguments ------------------------------------------------------------------------------------

    @property
    def _key(self) -> str:
        # One for all of this user's machines: a disk that keeps what is written to it keeps the key of its first boot.
        return os.path.join(cache_directory(), "vm-key", "id")

    def _ensure_key(self) -> None:
        """Make the key unless it is there; of two machines that start at the same time, one makes it."""
        if os.path.exists(self._key):
            return
        final = os.path.dirname(self._key)
        os.makedirs(cache_directory(), mode=0o700, exist_ok=True)
        new = tempfile.mkdtemp(prefix=".tmp-", dir=cache_directory())
        try:
            make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bootwright vm", "-f", os.path.join(new, "id")]
            process.run(make, purpose="make a key for virtual machines")
            # A directory is renamed onto nothing or an empty one; the loser takes the winner's key.
            with contextlib.suppress(OSError):
                os.rename(new, final)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    @property
    def _socket_path(self) -> str:
        return os.path.join(self._directory, "qmp")

    @property
    def _variables(self) -> str:
        return self.options.variables or os.path.join(self._directory, "variables.fd")

    def _arguments(self, variables: str) -> list[str]:
        options = self.options
        is_x86 = self._architecture == "amd64"
        disk = f"if=none,id=disk,format={self._format},file={_escape(os.path.abspath(options.disk))}"
        disk += ",snapshot=on" if options.snapshot else ",discard=unmap"
        argv = [self._program, "-name", "bootwright", "-nodefaults", "-display", "none"]
        argv += ["-M", "q35" if is_x86 else "virt", *self.accelerator.arguments]
        argv += ["-m", str(options.memory), "-smp", str(options.cpus)]
        argv += ["-drive", f"if=pflash,format=raw,readonly=on,file={_escape(self._firmware.code)}"]
        argv += ["-drive", f"if=pflash,format=raw,file={_escape(os.path.abspath(variables))}"]
        argv += ["-drive", disk, "-device", "virtio-blk-pci,drive=disk,bootindex=0"]
        argv += ["-device", "virtio-rng-pci"]
        forwards = [f"hostfwd=tcp:127.0.0.1:{outer}-:{inner}" for outer, inner in options.forwards]
        if options.ssh:
            # Port 0: the kernel chooses a free one, and QEMU is asked which.
            forwards.append("hostfwd=tcp:127.0.0.1:0-:22")
        argv += ["-netdev", ",".join(["user,id=net", *forwards])]
        # Without its ROM the firmware does not try to boot from the network.
        argv += ["-device", "virtio-net-pci,netdev=net,romfile="]
        argv += ["-qmp", f"unix:{_escape(self._socket_path)},server=on,wait=off"]
        for name, value in self._credentials().items():
            text = base64.b64encode(value).decode("ascii")
            argv += ["-smbios", f"type=11,value=io.systemd.credential.binary:{name}={text}"]
        log = _escape(self.serial_log)
        if options.on_terminal:
            argv += ["-chardev", f"stdio,id=console,mux=on,signal=off,logfile={log}", "-serial", "chardev:console"]
            argv += ["-mon", "chardev=console"]
        else:
            argv += ["-serial", f"file:{log}"]
        return argv

    def _credentials(self) -> dict[str, bytes]:
        credentials = dict(self.options.credentials)
        if self.options.ssh:
            with open(f"{self._key}.pub", "rb") as file:
                credentials.setdefault(_SSH_CREDENTIAL, file.read())
        return credentials

    def _get_process(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ToolError("the virtual machine is not running")
        return self._process

    def _get_qmp(self) -> Qmp:
        if self._qmp is None:
            raise ToolError("the virtual machine is not running")
        return self._qmp


_INFO_USERNET = {"command-line": "info usernet"}


def _escape(path: str) -> str:
    """Double the commas, which separate QEMU's options."""
    return path.replace(",", ",,")


def _find_forward(table: object, guest_port: int) -> int:
    """Find the host's port in ``info usernet``: ``TCP[HOST_FORWARD] fd address port address port …``."""
    for line in str(table).splitlines():
        fields = line.split()
        if len(fields) >= 6 and fields[0] == "TCP[HOST_FORWARD]" and fields[5] == str(guest_port):
            return int(fields[3])
    raise ToolError("QEMU did not forward a port to the guest")


def _detect_format(path: str) -> str:
    with open(path, "rb") as file:
        return "qcow2" if file.read(4) == b"QFI\xfb" else "raw"
