"""Virtual machines, as far as they can be looked at without one."""

from pathlib import Path

import pytest

from bootwright.cli.vm import _parse_credential, _parse_forward
from bootwright.errors import ToolError, UsageError
from bootwright.ops.vm import MachineOptions, VirtualMachine, _detect_format, _find_forward
from bootwright.ops.vm_host import choose_accelerator, find_firmware

USERNET = """Hub 0 (net):
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
  TCP[HOST_FORWARD]  14       127.0.0.1  8080       10.0.2.15    80     0     0
  TCP[HOST_FORWARD]  13       127.0.0.1 39785       10.0.2.15    22     0     0
  UDP[236 sec]       25       10.0.2.15 68          10.0.2.2     67     0     0
"""


def test_forwarded_port_is_the_one_qemu_says() -> None:
    assert _find_forward(USERNET, 22) == 39785
    with pytest.raises(ToolError, match="did not forward"):
        _find_forward(USERNET, 23)


def test_disk_formats(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"QFI\xfb and more")
    assert _detect_format(str(disk)) == "qcow2"
    disk.write_bytes(b"")
    assert _detect_format(str(disk)) == "raw"


def test_missing_disk_and_unknown_machines_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no disk"):
        VirtualMachine(MachineOptions(disk=str(tmp_path / "none")))
    (tmp_path / "disk").write_bytes(b"")
    with pytest.raises(UsageError, match="architecture 'vax'"):
        VirtualMachine(MachineOptions(disk=str(tmp_path / "disk"), architecture="vax"))


def test_firmware_with_its_variables(tmp_path: Path) -> None:
    (tmp_path / "OVMF_CODE_4M.fd").write_bytes(b"")
    with pytest.raises(UsageError, match="OVMF_VARS_4M"):
        find_firmware("amd64", str(tmp_path / "OVMF_CODE_4M.fd"))
    (tmp_path / "OVMF_VARS_4M.fd").write_bytes(b"")
    assert find_firmware("amd64", str(tmp_path / "OVMF_CODE_4M.fd")).variables.endswith("OVMF_VARS_4M.fd")
    (tmp_path / "plain.fd").write_bytes(b"")
    with pytest.raises(UsageError, match="no variable store"):
        find_firmware("amd64", str(tmp_path / "plain.fd"))
    with pytest.raises(ToolError, match="no UEFI firmware for 'vax'"):
        find_firmware("vax")


def test_foreign_architectures_are_emulated(tmp_path: Path) -> None:
    (tmp_path / "CODE").write_bytes(b"")
    (tmp_path / "VARS").write_bytes(b"")
    firmware = find_firmware("arm64", str(tmp_path / "CODE"))
    assert choose_accelerator("tcg", "amd64", firmware).name == "tcg"
    with pytest.raises(UsageError, match="KVM cannot run 'riscv64'"):
        choose_accelerator("kvm", "riscv64", firmware)
    assert "not 'riscv64'" in choose_accelerator("auto", "riscv64", firmware).reason


@pytest.mark.parametrize("text", ["", "80", "80:", ":80", "0:80", "80:65536", "a:b", "-1:80"])
def test_odd_forwards_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="names no ports"):
        _parse_forward(text)


def test_options_of_the_command() -> None:
    assert _parse_forward("8080:80") == (8080, 80)
    assert _parse_credential("a.b=c=d") == ("a.b", b"c=d")
    for text in ("a", "=x", "a b=c", "a,b=c"):
        with pytest.raises(UsageError, match="is no credential"):
            _parse_credential(text)
