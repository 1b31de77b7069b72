"""Mount composefs images.

::

    image file --erofs, read-only--> E        objects directory --> O
    overlay: lower layer E, data-only layers O..., metacopy=on, redirect_dir=on; perhaps upper and work directory

E is never attached anywhere where the kernel can take a layer by descriptor (6.15). Older ones take paths under
/proc/self/fd, or need E at a temporary directory for a moment; those that mount block devices only (before 6.12) get
a loop device.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import os
import stat
import struct
import tempfile
from collections.abc import Sequence

from bootwright.errors import BootwrightError, ImageError, UsageError, VerificationError
from bootwright.linux import fsverity, loop, mountapi
from bootwright.linux.files import libc
from bootwright.linux.mountapi import FsContext

__all__ = ["Verity", "find_verity_problem", "mount_composefs", "open_composefs"]

_HEADER = struct.Struct("<III")  # magic, header version, flags
_MAGIC = 0xD078629A
_FLAG_ACL = 1
_MNT_DETACH = 2


class Verity(enum.Enum):
    """Whether every object must have the fs-verity digest that the image says."""

    OFF = "off"
    TRY = "try"  # where kernel and objects have it
    REQUIRE = "require"


def mount_composefs(
    image_fd: int,
    target: str,
    *,
    base_dirs: Sequence[str],
    source: str = "composefs",
    verity: Verity = Verity.OFF,
    upper: str | None = None,
    work: str | None = None,
    read_only: bool = True,
    idmap_fd: int | None = None,
) -> None:
    """Mount an image at a directory.

    Args:
        image_fd: the image, open for reading.
        target: existing directory.
        base_dirs: directories of objects, the first one that has an object wins.
        source: what the mount table shows as the source; by convention ``composefs:<image id>``.
        verity: see :class:`Verity`; checked by the kernel whenever an object is opened.
        upper: directory that takes changes; needs ``work``.
        work: empty directory on the same filesystem as ``upper``.
        read_only: nothing can be written even with ``upper``.
        idmap_fd: a user namespace (``/proc/PID/ns/user``) whose mapping owners are shown through.

    Raises:
        ImageError: it is no composefs image.
        VerificationError: verity is required and would make every read fail.
        PrivilegeError: not root.
        BootwrightError: the kernel cannot or does not want to; the message carries its words.
    """
    if not os.path.isdir(target):
        raise UsageError(f"the mount point '{target}' is no directory", hint=f"mkdir -p {target}")
    fd = open_composefs(
        image_fd,
        base_dirs=base_dirs,
        source=source,
        verity=verity,
        upper=upper,
        work=work,
        read_only=read_only,
        idmap_fd=idmap_fd,
    )
    try:
        mountapi.attach(fd, target)
    except OSError as exc:
        raise mountapi.mount_error(f"mount the image at '{target}'", exc) from exc
    finally:
        os.close(fd)


def open_composefs(
    image_fd: int,
    *,
    base_dirs: Sequence[str],
    source: str = "composefs",
    verity: Verity = Verity.OFF,
    upper: str | None = None,
    work: str | None = None,
    read_only: bool = True,
    idmap_fd: int | None = None,
) -> int:
    """Make the mount without attaching it; returns its descriptor. Arguments and errors as :func:`mount_composefs`."""
    _check_arguments(base_dirs, upper, work)
    if verity is not Verity.OFF:
        problem = find_verity_problem(base_dirs)
        if problem and verity is Verity.REQUIRE:
            raise VerificationError(
                f"fs-verity cannot be required: {problem}; every read would fail with an I/O error",
                hint="mount without verity, or put the objects on a filesystem and kernel that have fs-verity",
            )
        if problem:
            verity = Verity.OFF
    erofs_fd = _open_erofs(image_fd, idmap_fd)
    try:
        options = _Options(base_dirs, source, verity is not Verity.OFF, upper, work, read_only)
        for open_overlay in (_open_overlay_by_fd, _open_overlay_by_path, _open_overlay_at_directory):
            try:
                return open_overlay(erofs_fd, options)
            except _UnknownWay:
                continue
    finally:
        os.close(erofs_fd)
    raise BootwrightError("could not mount the image: this kernel's overlayfs knows no way to take data-only layers")


def find_verity_problem(base_dirs: Sequence[str]) -> str | None:
    """Say why objects cannot be verified by the kernel, None when they can.

    overlayfs accepts ``verity=require`` on a kernel without fs-verity and then fails every open of an object, so one
    object is measured first. Without any object there is nothing that could fail.
    """
    for directory in base_dirs:
        path = _find_object(directory)
        if path is None:
            continue
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as exc:
            return f"the object '{path}' cannot be opened ({exc.strerror})"
        try:
            digest = fsverity.measure(fd)
        except OSError as exc:
            return f"the object '{path}' cannot be measured ({exc.strerror})"
        finally:
            os.close(fd)
        if digest is None:
            return f"the object '{path}' has no fs-verity (or this kernel has not)"
    return None


def _find_object(directory: str) -> str | None:
    """Return a regular file one level below a directory, where objects lie."""
    with contextlib.suppress(OSError), os.scandir(directory) as groups:
        for group in groups:
            if group.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError), os.scandir(group.path) as objects:
                    for entry in objects:
                        if entry.is_file(follow_symlinks=False):
                            return entry.path
    return None


def _check_arguments(base_dirs: Sequence[str], upper: str | None, work: str | None) -> None:
    if not base_dirs:
        raise UsageError("a composefs mount needs a directory of objects", hint="-o basedir=DIR")
    if (upper is None) != (work is None):
        raise UsageError("upperdir and workdir belong together", hint="-o upperdir=DIR,workdir=DIR")
    for path in [*base_dirs, *[path for path in (upper, work) if path is not None]]:
        if not os.path.isdir(path):
            raise UsageError(f"'{path}' is no directory")


def _open_erofs(image_fd: int, idmap_fd: int | None) -> int:
    """Return a detached mount of the image alone."""
    header = os.pread(image_fd, _HEADER.size, 0)
    if (
        len(header) != _HEADER.size
        or _HEADER.unpack(header)[0] != _MAGIC
        or not stat.S_ISREG(os.fstat(image_fd).st_mode)
    ):
        raise ImageError("this is no composefs image", hint="bootwright composefs mkimage makes one")
    has_acl = bool(_HEADER.unpack(header)[2] & _FLAG_ACL)
    try:
        fd = _create_erofs(f"/proc/self/fd/{image_fd}", has_acl)
    except OSError as exc:
        if exc.errno != errno.ENOTBLK:
            raise mountapi.mount_error("mount the image (erofs)", exc, _log_of(exc)) from exc
        device_fd, device = loop.attach_read_only(image_fd)
        try:
            fd = _create_erofs(device, has_acl)
        except OSError as second:
            raise mountapi.mount_error(f"mount the image (erofs on {device})", second, _log_of(second)) from second
        finally:
            os.close(device_fd)
    if idmap_fd is not None:
        try:
            mountapi.set_attributes(fd, add=mountapi.ATTR_IDMAP, userns_fd=idmap_fd)
        except OSError as exc:
            os.close(fd)
            raise mountapi.mount_error("map the owners of the image", exc) from exc
    return fd


def _create_erofs(source: str, has_acl: bool) -> int:
    with FsContext.open("erofs") as context:
        try:
            context.set_string("source", source)
            context.set_flag("ro")
            if not has_acl:
                context.set_flag("noacl")
            context.create()
            return context.mount(mountapi.ATTR_RDONLY)
        except OSError as exc:
            exc.add_note(context.read_log())
            raise


def _log_of(exc: OSError) -> str:
    return "; ".join(note for note in getattr(exc, "__notes__", []) if note)


class _UnknownWay(Exception):  # noqa: N818  no error: the next way is tried
    """This kernel does not take layers in this way."""


class _Options:
    """What an overlay is made from."""

    def __init__(
        self,
        base_dirs: Sequence[str],
        source: str,
        verity: bool,
        upper: str | None,
        work: str | None,
        read_only: bool,
    ) -> None:
        self.base_dirs = [os.path.realpath(path) for path in base_dirs]
        self.source = source
        self.verity = verity
        self.upper = None if upper is None else os.path.realpath(upper)
        self.work = None if work is None else os.path.realpath(work)
        self.attributes = mountapi.ATTR_RDONLY if read_only else 0

    def apply(self, context: FsContext) -> None:
        """Set everything but the lower layers."""
        context.set_string("source", self.source)
        context.set_string("metacopy", "on")
        context.set_string("redirect_dir", "on")
        if self.verity:
            context.set_string("verity", "require")

    def apply_upper(self, context: FsContext) -> None:
        """Set the writable layer."""
        if self.upper is not None and self.work is not None:
            context.set_string("upperdir", self.upper)
            context.set_string("workdir", self.work)


def _finish(context: FsContext, options: _Options) -> int:
    options.apply_upper(context)
    context.create()
    return context.mount(options.attributes)


def _open_overlay_by_fd(erofs_fd: int, options: _Options) -> int:
    """Give the layers as descriptors: Linux 6.15."""
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(FsContext.open("overlay"))
        try:
            options.apply(context)
            try:
                context.set_fd("lowerdir+", erofs_fd)
                for path in options.base_dirs:
                    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                    stack.callback(os.close, fd)
                    context.set_fd("datadir+", fd)
            except OSError as exc:
                if exc.errno == errno.EINVAL:
                    raise _UnknownWay from exc
                raise
            return _finish(context, options)
        except OSError as exc:
            raise _overlay_error(exc, context) from exc


def _open_overlay_by_path(erofs_fd: int, options: _Options) -> int:
    """Give the layers as paths, the image's by way of /proc: Linux 6.7, where that may be detached (6.13)."""
    with FsContext.open("overlay") as context:
        try:
            options.apply(context)
            try:
                context.set_string("lowerdir+", f"/proc/self/fd/{erofs_fd}")
                for path in options.base_dirs:
                    context.set_string("datadir+", path)
            except OSError as exc:
                if exc.errno in (errno.EINVAL, errno.ENOENT, errno.ELOOP):
                    raise _UnknownWay from exc
                raise
            return _finish(context, options)
        except OSError as exc:
            raise _overlay_error(exc, context) from exc


def _open_overlay_at_directory(erofs_fd: int, options: _Options) -> int:
    """Attach the image for a moment and give everything in one option, as kernels before 6.7 want it."""
    with tempfile.TemporaryDirectory(prefix=".bootwright-") as directory:
        try:
            mountapi.attach(erofs_fd, directory)
        except OSError as exc:
            raise mountapi.mount_error("mount the image (erofs)", exc) from exc
        try:
            layers = [_escape(path) for path in (directory, *options.base_dirs)]
            # "::" makes data-only layers (6.5); before, objects are an ordinary layer that only the stubs hide.
            for lower in (f"{layers[0]}::{'::'.join(layers[1:])}", ":".join(layers)):
                with FsContext.open("overlay") as context:
                    try:
                        options.apply(context)
                        context.set_string("lowerdir", lower)
                        return _finish(context, options)
                    except OSError as exc:
                        error = _overlay_error(exc, context)
            raise error
        finally:
            libc.umount2(ctypes.c_char_p(os.fsencode(directory)), _MNT_DETACH)


def _escape(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:")


def _overlay_error(exc: OSError, context: FsContext) -> BootwrightError:
    return mountapi.mount_error("mount the image (overlay)", exc, context.read_log())
