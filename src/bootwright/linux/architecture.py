"""The machine's architecture in the three spellings that matter: the kernel's, OCI's (Go's) and bootc's (Rust's)."""

from __future__ import annotations

import platform

__all__ = ["oci_name", "rust_name"]

_OCI = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
    "i386": "386",
    "i686": "386",
    "loongarch64": "loong64",
}
_RUST = {"ppc64le": "powerpc64", "ppc64": "powerpc64", "armv7l": "arm", "i686": "x86"}


def oci_name(machine: str | None = None) -> str:
    """Return OCI's name (``amd64``, ``arm64``) of a kernel machine name; this machine's when None."""
    name = machine or platform.machine()
    return _OCI.get(name, name)


def rust_name(machine: str | None = None) -> str:
    """Return Rust's name (``x86_64``, ``powerpc64``), which bootc's files use; this machine's when None."""
    name = machine or platform.machine()
    return _RUST.get(name, name)
