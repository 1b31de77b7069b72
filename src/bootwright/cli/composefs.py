"""``bootwright composefs``: mkcomposefs, composefs-info and mount.composefs under one roof.

The work is imported when a command runs: making an image from a dump takes no longer than starting the interpreter.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

import click

__all__ = ["composefs"]

_ALGORITHMS = click.Choice(["sha256", "sha512"])


@click.group()
def composefs() -> None:
    """Make, read and mount composefs images.

    The commands take the options of mkcomposefs, composefs-info and mount.composefs, make the same images and print
    the same text.
    """


@composefs.command()
@click.argument("source")
@click.argument("image", required=False)
@click.option("--from-file", is_flag=True, help="SOURCE is a dump file; - is standard input.")
@click.option("--digest-store", metavar="DIR", help="Copy the files of the tree to DIR, named by their digests.")
@click.option("--print-digest", is_flag=True, help="Print the image's fs-verity digest as well.")
@click.option("--print-digest-only", is_flag=True, help="Print the digest and write no image.")
@click.option("--use-epoch", is_flag=True, help="Make all times 0.")
@click.option("--skip-devices", is_flag=True, help="Leave out device nodes.")
@click.option("--skip-xattrs", is_flag=True, help="Leave out extended attributes.")
@click.option("--user-xattrs", is_flag=True, help="Keep only extended attributes that start with user.")
@click.option("--hardlinks", is_flag=True, help="Keep hard links; without it every name becomes a file.")
@click.option("--min-version", type=int, metavar="N", help="Lowest format version to write: 0 or 1.")
@click.option("--max-version", type=int, metavar="N", help="Highest format version, used for trees with whiteouts.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Worker processes.  [default: all processors]")
@click.option("--digest", type=_ALGORITHMS, default="sha256", show_default=True, help="Algorithm of all digests.")
def mkimage(
    source: str,
    image: str | None,
    from_file: bool,
    digest_store: str | None,
    print_digest: bool,
    print_digest_only: bool,
    use_epoch: bool,
    skip_devices: bool,
    skip_xattrs: bool,
    user_xattrs: bool,
    hardlinks: bool,
    min_version: int | None,
    max_version: int | None,
    threads: int | None,
    digest: str,
) -> None:
    """Make the IMAGE of the directory SOURCE; IMAGE - is standard output.

    Files of up to 64 bytes are stored in the image; of others the image holds the digest and the name of the object
    with their bytes. Options about reading a directory have no effect with --from-file.
    """
    from bootwright.digest import Algorithm
    from bootwright.ops import mkimage as operation

    if print_digest_only and image is not None:
        raise click.UsageError("--print-digest-only writes no image, but one is named")
    if not print_digest_only and image is None:
        raise click.UsageError("Missing argument 'IMAGE'.")
    if skip_xattrs and user_xattrs:
        raise click.UsageError("--skip-xattrs and --user-xattrs exclude each other")
    low, high = operation.choose_versions(min_version, max_version)
    algorithm = Algorithm[digest.upper()]
    if from_file:
        root = operation.read_dump(source)
    else:
        from bootwright.cli.output import say
        from bootwright.cli.progress import open_progress
        from bootwright.ops.composefs_scan import ScanOptions, scan_directory

        options = ScanOptions(
            use_epoch=use_epoch,
            skip_devices=skip_devices,
            skip_xattrs=skip_xattrs,
            user_xattrs=user_xattrs,
            hardlinks=hardlinks,
            algorithm=algorithm,
            digest_store=digest_store,
            processes=threads,
        )
        if os.geteuid() != 0 and not (skip_xattrs or user_xattrs):
            say("note: trusted.* attributes are visible to root only; root may get another digest of this tree")
        with open_progress(quiet=not sys.stderr.isatty()) as progress:
            root = scan_directory(source, options, progress=progress)
    data, image_digest = operation.make_image(
        root, operation.ImageOptions(min_version=low, max_version=high, algorithm=algorithm)
    )
    if image is not None:
        operation.write_output(image, data)
    if print_digest or print_digest_only:
        click.echo(image_digest.hex, err=image == "-")


def _write(lines: Iterable[bytes]) -> None:
    """Print results as they are: names are bytes, not text."""
    out = sys.stdout.buffer
    out.writelines(lines)
    out.flush()


@composefs.group()
@click.option("--basedir", metavar="DIR", help="Where missing-objects looks for objects.")
@click.option(
    "--filter", "names", multiple=True, metavar="NAME", help="Only this entry of the top directory; repeatable."
)
@click.pass_context
def info(context: click.Context, basedir: str | None, names: tuple[str, ...]) -> None:
    """Tell what is in composefs images."""
    context.obj = basedir, names


_IMAGES = click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
_Settings = tuple[str | None, tuple[str, ...]]


@info.command("ls")
@_IMAGES
@click.pass_obj
def list_entries(settings: _Settings, images: tuple[str, ...]) -> None:
    """List all entries, and where symlinks and external files lead."""
    from bootwright.ops import composefs_info

    for image in images:
        _write(composefs_info.list_entries(image, settings[1]))


@info.command()
@_IMAGES
@click.pass_obj
def dump(settings: _Settings, images: tuple[str, ...]) -> None:
    """Print the dump text that makes the same image again."""
    from bootwright.ops import composefs_info

    for image in images:
        _write(composefs_info.dump(image, settings[1]))


@info.command()
@_IMAGES
@click.pass_obj
def objects(settings: _Settings, images: tuple[str, ...]) -> None:
    """List the paths of all objects, sorted."""
    from bootwright.ops import composefs_info

    _write(path + b"\n" for path in composefs_info.list_objects(images, settings[1]))


@info.command("missing-objects")
@_IMAGES
@click.pass_obj
def missing_objects(settings: _Settings, images: tuple[str, ...]) -> None:
    """List the objects that are not below --basedir."""
    from bootwright.ops import composefs_info

    basedir, names = settings
    if basedir is None:
        raise click.UsageError("missing-objects needs --basedir DIR before the command")
    _write(path + b"\n" for path in composefs_info.find_missing(images, basedir, names))


@info.command("measure-file")
@click.option("--digest", type=_ALGORITHMS, default="sha256", show_default=True, help="Algorithm.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
def measure_file(digest: str, files: tuple[str, ...]) -> None:
    """Print the fs-verity digests of files."""
    from bootwright.digest import Algorithm
    from bootwright.ops import composefs_info

    for path in files:
        click.echo(composefs_info.measure_file(path, Algorithm[digest.upper()]).hex)


@composefs.command()
@click.option(
    "-t", "fstype", metavar="TYPE", hidden=True, expose_value=False, help="Ignored: mount(8) passes it to its helpers."
)
@click.option("-o", "options", multiple=True, metavar="OPTIONS", help="Options, separated by commas.")
@click.argument("image")
@click.argument("mountpoint")
def mount(options: tuple[str, ...], image: str, mountpoint: str) -> None:
    """Mount IMAGE at MOUNTPOINT.

    \b
    Options of -o:
      basedir=DIR[:DIR...]     directories of objects; needed
      digest=HEX               the kernel must measure this digest of the image; implies verity
      verity, tryverity        objects must have their digests: always, or where that is possible
      upperdir=DIR,workdir=DIR take changes; they belong together
      idmap=PATH               show owners as this user namespace maps them
      ro, rw                   read-only is the default without upperdir
    """  # noqa: D301  a real backspace: it keeps click from filling the lines
    from bootwright.ops import composefs_mount

    composefs_mount.mount_image(image, mountpoint, composefs_mount.parse_options(options))


@composefs.command()
@click.option("-l", "--lazy", is_flag=True, help="Also when it is in use.")
@click.argument("mountpoint")
def umount(lazy: bool, mountpoint: str) -> None:
    """Unmount what is mounted at MOUNTPOINT."""
    from bootwright.linux.mount import unmount

    unmount(mountpoint, detach=lazy)
