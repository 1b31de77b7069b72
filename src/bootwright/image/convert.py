"""Other formats of a finished raw disk, made by qemu-img."""

from __future__ import annotations

from bootwright.errors import UsageError
from bootwright.linux.process import run

__all__ = ["FORMATS", "convert"]

FORMATS = ("raw", "qcow2")


def convert(raw: str, target: str, disk_format: str, *, work: str) -> None:
    """Write a raw disk in another format; both paths are taken from ``work``.

    qcow2 is compressed with zstd (QEMU 5.1 and later read it), clusters written out of order by two coroutines.

    Raises:
        UsageError: unknown format.
        ToolError: qemu-img is missing or failed.
    """
    if disk_format != "qcow2":
        raise UsageError(f"'{disk_format}' is no disk format", hint=f"known are {', '.join(FORMATS)}")
    argv = ["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", "-c", "-m", "2", "-W"]
    run([*argv, "-o", "compression_type=zstd", raw, target], purpose="convert the disk to qcow2", cwd=work)
