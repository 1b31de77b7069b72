"""What this machine can run virtual machines with: QEMU, its firmware, and whether KVM really works."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import tempfile
import time
from dataclasses import dataclass

from bootwright.errors import ToolError, UsageError
from bootwright.image.layout import get_architecture
from bootwright.linux import architecture as machine_names
from bootwright.linux.process import find_program, start

__all__ = ["Accelerator", "Firmware", "cache_directory", "choose_accelerator", "find_firmware", "qemu_program"]

_PROBE_TIMEOUT_S = 20.0
# Code, variables: Debian's ovmf and qemu-efi-aarch64, then Fedora's and Arch's places.
_FIRMWARE = {
    "amd64": (
        ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
        ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
        ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
        ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ),
    "arm64": (
        ("/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"),
        ("/usr/share/edk2/aarch64/QEMU_EFI-pflash.raw", "/usr/share/edk2/aarch64/vars-template-pflash.raw"),
    ),
}
_FIRMWARE_PACKAGES = {"amd64": "ovmf", "arm64": "qemu-efi-aarch64"}


@dataclass(frozen=True, slots=True)
class Firmware:
    """UEFI firmware: its code, and the template of its variable store."""

    code: str
    variables: str


@dataclass(frozen=True, slots=True)
class Accelerator:
    """How instructions are run: ``name`` for people, QEMU's arguments, and why."""

    name: str
    arguments: tuple[str, ...]
    reason: str


def qemu_program(architecture: str) -> str:
    """Return the path of the emulator for an architecture (OCI's name).

    Raises:
        UsageError: no virtual machine of that architecture is known here.
        ToolError: it is not installed.
    """
    if architecture not in _FIRMWARE:
        raise UsageError(
            f"no virtual machine can be made for the architecture '{architecture}'",
            hint=f"known are {', '.join(_FIRMWARE)}",
        )
    return find_program(f"qemu-system-{get_architecture(architecture).machine}")


def find_firmware(architecture: str, path: str | None = None) -> Firmware:
    """Find UEFI firmware; ``path`` names the code to use, with its variables beside it.

    Raises:
        UsageError: ``path`` does not fit.
        ToolError: none is installed.
    """
    if path is not None:
        variables = path.replace("CODE", "VARS").replace(".secboot", "").replace(".ms", "")
        for file in (path, variables):
            if not os.path.isfile(file):
                raise UsageError(f"there is no firmware '{file}'", hint="name a file like OVMF_CODE_4M.fd")
        if variables == path:
            raise UsageError(f"'{path}' has no variable store beside it", hint="name a file like OVMF_CODE_4M.fd")
        return Firmware(path, variables)
    for code, variables in _FIRMWARE.get(architecture, ()):
        if os.path.isfile(code) and os.path.isfile(variables):
            return Firmware(code, variables)
    package = _FIRMWARE_PACKAGES.get(architecture, "ovmf")
    raise ToolError(f"no UEFI firmware for '{architecture}' is installed", hint=f"apt-get install {package}")


def choose_accelerator(wish: str, architecture: str, firmware: Firmware) -> Accelerator:
    """Choose KVM or emulation.

    Args:
        wish: ``auto``, ``kvm`` or ``tcg``. Auto takes KVM when a virtual machine really starts with it.
        architecture: of the guest, OCI's name.
        firmware: what the probe boots.

    Raises:
        ToolError: QEMU is missing.
        UsageError: KVM was asked for, and this machine has none.
    """
    if wish == "tcg":
        return _emulation(architecture, "asked for")
    if machine_names.oci_name(platform.machine()) != architecture:
        if wish == "kvm":
            raise UsageError(f"KVM cannot run '{architecture}' on this machine", hint="--accel tcg")
        return _emulation(architecture, f"this machine is not '{architecture}'")
    if wish == "kvm":
        return _kvm("asked for")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return _emulation(architecture, "/dev/kvm is missing or not accessible")
    return _kvm("probed") if _kvm_works(architecture, firmware) else _emulation(architecture, "KVM fails here")


def _kvm(reason: str) -> Accelerator:
    return Accelerator("kvm", ("-accel", "kvm", "-cpu", "host"), reason)


def _emulation(architecture: str, reason: str) -> Accelerator:
    # `-cpu max` makes Debian's kernels panic under QEMU 7.2; Haswell-v4 has no TSX and all that is needed.
    cpu = "Haswell-v4" if architecture == "amd64" else "cortex-a72"
    return Accelerator("tcg", ("-accel", "tcg,thread=multi", "-cpu", cpu), reason)


# ---- the probe -----------------------------------------------------------------------------------------------------


def _kvm_works(architecture: str, firmware: Firmware) -> bool:
    """Boot the firmware with KVM and see whether it speaks.

    A device that opens is no proof: nested and paravirtual hosts have one that fails at the first instruction they
    cannot run. The answer is kept until the host is booted again or QEMU changes.
    """
    program = qemu_program(architecture)
    key = f"{_boot_id()} {program} {os.stat(program).st_mtime_ns} {firmware.code}"
    cache = os.path.join(cache_directory(), "kvm-probe.json")
    with contextlib.suppress(OSError, ValueError), open(cache, encoding="utf-8") as file:
        known = json.load(file)
        if isinstance(known, dict) and known.get("key") == key:
            return known.get("works") is True
    works = _boot_firmware(program, architecture, firmware)
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(cache), exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=os.path.dirname(cache), delete=False) as new:
            json.dump({"key": key, "works": works}, new)
        os.replace(new.name, cache)
    return works


def _boot_firmware(program: str, architecture: str, firmware: Firmware) -> bool:
    with tempfile.TemporaryDirectory(prefix="bootwright-kvm-") as directory:
        variables = os.path.join(directory, "vars.fd")
        serial = os.path.join(directory, "serial.log")
        shutil.copyfile(firmware.variables, variables)
        argv = [program, "-accel", "kvm", "-cpu", "host", "-m", "256", "-display", "none", "-nodefaults"]
        argv += ["-M", "q35" if architecture == "amd64" else "virt", "-no-reboot", "-serial", f"file:{serial}"]
        argv += ["-drive", f"if=pflash,format=raw,readonly=on,file={firmware.code}"]
        argv += ["-drive", f"if=pflash,format=raw,file={variables}"]
        said = os.path.join(directory, "qemu.log")
        with open(said, "wb") as log:
            process = start(argv, log=log)
        try:
            deadline = time.monotonic() + _PROBE_TIMEOUT_S
            while time.monotonic() < deadline and process.poll() is None:
                with open(said, "rb") as log:
                    if b"KVM internal error" in log.read():
                        return False
                # Firmware that reaches its boot menu has run 16, 32 and 64 bit code with paging.
                with contextlib.suppress(OSError):
                    if os.stat(serial).st_size > 0:
                        return True
                time.sleep(0.05)
            return False
        finally:
            process.kill()
            process.wait()


def _boot_id() -> str:
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
    return "unknown"


def cache_directory() -> str:
    """Return where things are kept that can be made again, by the XDG Base Directory Specification."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "bootwright")
