"""Errors of mount calls; verity problems told before anything is mounted."""

import errno
import os
from pathlib import Path

import pytest

from bootwright.errors import BootwrightError, ImageError, PrivilegeError, UsageError
from bootwright.linux import composefs, mountapi


@pytest.mark.parametrize(
    ("code", "kind", "hint"),
    [
        pytest.param(errno.EPERM, PrivilegeError, "run it as root", id="not-root"),
        pytest.param(errno.ENODEV, BootwrightError, "modprobe", id="unknown-filesystem"),
        pytest.param(errno.EINVAL, BootwrightError, "dmesg", id="no-reason"),
    ],
)
def test_mount_errors(code: int, kind: type[BootwrightError], hint: str) -> None:
    error = mountapi.mount_error("mount 'x'", OSError(code, os.strerror(code)))
    assert type(error) is kind
    assert error.message.startswith("could not mount 'x': ")
    assert error.hint is not None
    assert hint in error.hint


def test_the_kernels_words_are_in_the_message() -> None:
    error = mountapi.mount_error("mount 'x'", OSError(errno.EINVAL, "Invalid argument"), "overlay: no lowerdir")
    assert error.message == "could not mount 'x': Invalid argument: overlay: no lowerdir"


def test_objects_without_verity_are_found(tmp_path: Path) -> None:
    assert composefs.find_verity_problem([str(tmp_path)]) is None
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "cdef").write_bytes(b"x")
    problem = composefs.find_verity_problem([str(tmp_path)])
    assert problem is not None
    assert "has no fs-verity" in problem
    assert f"'{tmp_path}/ab/cdef'" in problem


def test_arguments_are_checked_before_any_mount(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(4096))
    fd = os.open(image, os.O_RDONLY)
    base = str(tmp_path)
    try:
        with pytest.raises(UsageError, match="needs a directory of objects"):
            composefs.open_composefs(fd, base_dirs=[])
        with pytest.raises(UsageError, match="belong together"):
            composefs.open_composefs(fd, base_dirs=[base], upper=base)
        with pytest.raises(UsageError, match="is no directory"):
            composefs.open_composefs(fd, base_dirs=[f"{base}/none"])
        with pytest.raises(UsageError, match="mount point"):
            composefs.mount_composefs(fd, f"{base}/none", base_dirs=[base])
        with pytest.raises(ImageError, match="no composefs image"):
            composefs.open_composefs(fd, base_dirs=[base])
    finally:
        os.close(fd)
