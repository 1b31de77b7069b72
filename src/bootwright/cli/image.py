"""bootwright image: pull, list, inspect, mount, export and remove images."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bootwright.cli.options import ARCH, AUTHFILE, PROGRESS_FD, QUIET, TLS_VERIFY
from bootwright.cli.output import echo_json, echo_table, say
from bootwright.cli.progress import open_progress
from bootwright.digest import Algorithm
from bootwright.errors import RepositoryError, UsageError
from bootwright.units import format_duration, format_size

if TYPE_CHECKING:
    from bootwright.repo import Repository
    from bootwright.repo.gc import Collection
    from bootwright.repo.images import PulledImage

__all__ = ["image"]

_SCHEMA = 1
_SYSTEM_REPOSITORY = "/sysroot/composefs"
_USER_REPOSITORY = "~/.var/lib/composefs"
_ID_SHOWN = 12

_F = TypeVar("_F", bound=Callable[..., Any])


def _repo_option(function: _F) -> _F:
    return click.option(
        "--repo",
        "repo_path",
        metavar="DIR",
        help=f"Repository.  [default: {_SYSTEM_REPOSITORY}, or {_USER_REPOSITORY} for users]",
    )(function)


def _json_option(function: _F) -> _F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def _get_path(given: str | None) -> str:
    if given is not None:
        return given
    return _SYSTEM_REPOSITORY if os.geteuid() == 0 else os.path.expanduser(_USER_REPOSITORY)


def _open_reading(repo_path: str | None) -> Repository:
    from bootwright.repo import Repository

    return Repository.open(_get_path(repo_path), locked=True)


@click.group()
def image() -> None:
    """Pull, list, inspect, mount, export and remove images."""


# ---- pull ----------------------------------------------------------------------------------------------------


@image.command("pull")
@_repo_option
@click.option("--tag", "tag", metavar="NAME", help="Name in the repository.  [default: the reference]")
@TLS_VERIFY
@AUTHFILE
@ARCH
@click.option(
    "--digest-algorithm",
    type=click.Choice(["sha256", "sha512"]),
    help="fs-verity digests when the repository is made by this command; bootc's are sha512.  [default: sha256]",
)
@QUIET
@PROGRESS_FD
@click.argument("reference")
def pull_command(
    repo_path: str | None,
    tag: str | None,
    tls_verify: bool,
    authfile: str | None,
    arch: str | None,
    digest_algorithm: str | None,
    quiet: bool,
    progress_fd: int | None,
    reference: str,
) -> None:
    """Bring the image REFERENCE into the repository: docker://HOST/NAME:TAG or oci:DIRECTORY:TAG.

    Layers that are there already are not fetched again. The id of the image is printed. A repository that does not
    exist is made.
    """
    from bootwright.linux.architecture import oci_name
    from bootwright.oci.reference import ImageReference
    from bootwright.oci.source import SourceOptions
    from bootwright.repo.imports import default_tag, pull

    source = ImageReference.parse(reference, default_transport="registry")
    options = SourceOptions(tls_verify=tls_verify, auth_file=authfile, architecture=oci_name(arch))
    started = time.monotonic()
    with _open_or_make(repo_path, digest_algorithm) as repo:
        with open_progress(quiet=quiet, fd=progress_fd) as progress:
            pulled = pull(repo, source, options, progress=progress, tag=tag or default_tag(source))
        if not quiet and pulled.layers_fetched:
            say(
                f"Pulled {pulled.layers_fetched} layers, {format_size(pulled.bytes_fetched)},"
                f" in {format_duration(time.monotonic() - started)}"
            )
    click.echo(pulled.id.hex)


def _open_or_make(repo_path: str | None, digest_algorithm: str | None) -> Repository:
    from bootwright.repo import Repository

    path = _get_path(repo_path)
    wanted = None if digest_algorithm is None else Algorithm[digest_algorithm.upper()]
    if not os.path.exists(os.path.join(path, "meta.json")) and not os.path.exists(os.path.join(path, "objects")):
        return Repository.init(path, wanted or Algorithm.SHA256)
    repo = Repository.open(path, writable=True)
    if wanted is not None and wanted is not repo.algorithm:
        repo.close()
        raise UsageError(
            f"the repository '{path}' has {repo.algorithm.hash_name} digests, not {digest_algorithm}",
            hint="leave --digest-algorithm out, or use another repository",
        )
    return repo


# ---- list and inspect ----------------------------------------------------------------------------------------


@image.command("list")
@_repo_option
@_json_option
def list_command(repo_path: str | None, as_json: bool) -> None:
    """Show the images of the repository."""
    from bootwright.repo.images import PulledImage, list_images

    with _open_reading(repo_path) as repo:
        found = list_images(repo)
        images = [(name, one, _plain_size(repo, one)) for name, one in found if isinstance(one, PulledImage)]
    broken = [(name, one) for name, one in found if isinstance(one, RepositoryError)]
    if as_json:
        documents = [{"name": name, **_describe(one, size)} for name, one, size in images]
        documents += [{"name": name, "error": one.message} for name, one in broken]
        echo_json({"version": _SCHEMA, "images": documents})
        return
    rows = [
        [name, one.version or "-", one.id.hex[:_ID_SHOWN], format_size(size), _format_time(one.created)]
        for name, one, size in images
    ]
    echo_table(["NAME", "VERSION", "IMAGE ID", "SIZE", "CREATED"], rows)
    for name, one in broken:
        say(f"'{name}' is broken: {one.message}")


@image.command("inspect")
@_repo_option
@_json_option
@click.argument("name")
def inspect_command(repo_path: str | None, as_json: bool, name: str) -> None:
    """Show all about one image: NAME is a name in the repository or the beginning of an id."""
    from bootwright.repo.images import get_image

    with _open_reading(repo_path) as repo:
        found = get_image(repo, name)
        document = {"name": found.reference, **_describe(found, _plain_size(repo, found))}
        document["layers"] = _describe_layers(repo, found)
    document["labels"] = found.config.labels
    document["annotations"] = found.annotations
    if as_json:
        echo_json({"version": _SCHEMA, "image": document})
        return
    for label, value in (
        ("Name", found.reference),
        ("Version", found.version or "-"),
        ("Created", _format_time(found.created)),
        ("Architecture", found.architecture),
        ("Image id", found.image_id.hex),
        ("Boot id", found.boot_id.hex if found.boot_id else "- (the image cannot boot)"),
        ("Manifest", str(found.manifest_digest)),
        ("Config", str(found.config_digest)),
        ("Size", format_size(document["sizeBytes"])),
    ):
        click.echo(f"{label + ':':<14}{value}")
    click.echo()
    echo_table(
        ["LAYER", "FETCHED", "SIZE"],
        [
            [layer["diffId"].removeprefix("sha256:")[:_ID_SHOWN], *map(format_size, _layer_sizes(layer))]
            for layer in document["layers"]
        ],
    )


def _layer_sizes(layer: dict[str, Any]) -> tuple[int, int]:
    return layer["compressedBytes"], layer["sizeBytes"]


def _describe(found: PulledImage, size: int) -> dict[str, Any]:
    return {
        "id": found.id.hex,
        "imageId": found.image_id.hex,
        "bootId": found.boot_id.hex if found.boot_id else None,
        "manifestDigest": str(found.manifest_digest),
        "configDigest": str(found.config_digest),
        "version": found.version,
        "created": found.created,
        "architecture": found.architecture,
        "layerCount": len(found.manifest.layers),
        "sizeBytes": size,
    }


def _describe_layers(repo: Repository, found: PulledImage) -> list[dict[str, Any]]:
    from bootwright.repo.refs import layer_stream

    return [
        {
            "digest": layer.digest_text,
            "diffId": str(diff_id),
            "mediaType": layer.media_type,
            "compressedBytes": layer.size,
            "sizeBytes": repo.read_stream_size(layer_stream(diff_id)) or 0,
        }
        for layer, diff_id in zip(found.manifest.layers, found.config.diff_ids, strict=True)
    ]


def _plain_size(repo: Repository, found: PulledImage | RepositoryError) -> int:
    """Bytes of all layers, uncompressed: what other tools show as an image's size."""
    from bootwright.repo.refs import layer_stream

    if isinstance(found, RepositoryError):
        return 0
    return sum(repo.read_stream_size(layer_stream(diff_id)) or 0 for diff_id in set(found.config.diff_ids))


def _format_time(created: str | None) -> str:
    """Shorten RFC 3339 to minutes; what is no time stays as it is."""
    if not created:
        return "-"
    match = re.match(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)", created)
    return f"{match[1]} {match[2]}" if match else created[:20]


# ---- mount ---------------------------------------------------------------------------------------------------


@image.command("mount")
@_repo_option
@click.option("--plain", is_flag=True, help="Mount the plain tree, with /boot, also of an image that can boot.")
@click.argument("name")
@click.argument("directory", type=click.Path(exists=True, file_okay=False))
def mount_command(repo_path: str | None, plain: bool, name: str, directory: str) -> None:
    """Mount the image NAME read-only on DIRECTORY.

    Every read is verified where the filesystem of the repository and the kernel can do it.
    """
    from bootwright.repo.images import get_image
    from bootwright.repo.mounts import mount_image

    with _open_reading(repo_path) as repo:
        found = get_image(repo, name)
        is_verified = mount_image(repo, found.image_id if plain else found.id, directory)
    if not is_verified:
        say("note: reads are not verified: the repository's filesystem or this kernel has no fs-verity")


@image.command("umount")
@click.argument("directory", type=click.Path(exists=True, file_okay=False))
def umount_command(directory: str) -> None:
    """Unmount what is mounted on DIRECTORY."""
    from bootwright.linux.mount import unmount

    unmount(directory)


# ---- export --------------------------------------------------------------------------------------------------


@image.command("export")
@_repo_option
@click.option(
    "--compression",
    type=click.Choice(["gzip", "zstd", "none"]),
    default="gzip",
    show_default=True,
    help="Of the layers.",
)
@QUIET
@PROGRESS_FD
@click.argument("name")
@click.argument("target", metavar="oci:DIRECTORY[:TAG]")
def export_command(
    repo_path: str | None, compression: str, quiet: bool, progress_fd: int | None, name: str, target: str
) -> None:
    """Write the image NAME into an OCI layout.

    Its layers have the very diff ids that were pulled. The digest of the manifest in the layout is printed; it is the
    one of the registry only when the layers' compressed bytes are the same.
    """
    from bootwright.oci.reference import ImageReference
    from bootwright.repo.export import export_image
    from bootwright.repo.images import get_image

    reference = ImageReference.parse(target, default_transport="oci")
    if reference.transport != "oci":
        raise UsageError(f"'{target}' is no OCI layout", hint="write oci:DIRECTORY:TAG")
    with _open_reading(repo_path) as repo:
        found = get_image(repo, name)
        with open_progress(quiet=quiet, fd=progress_fd) as progress:
            digest = export_image(
                repo,
                found,
                reference.path,
                tag=reference.tag,
                compression="zstd" if compression == "zstd" else "none" if compression == "none" else "gzip",
                progress=progress,
            )
    click.echo(str(digest))


# ---- remove --------------------------------------------------------------------------------------------------


@image.command("rm")
@_repo_option
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@click.argument("names", nargs=-1, required=True)
def rm_command(repo_path: str | None, dry_run: bool, names: tuple[str, ...]) -> None:
    """Remove images, and every file that no other image has: NAMES are names or beginnings of ids."""
    from bootwright.repo import Repository
    from bootwright.repo.gc import collect

    with Repository.open_exclusively(_get_path(repo_path)) as repo:
        tags = _find_tags(repo, names)
        if not dry_run:
            for tag in tags:
                repo.refs.remove_tag(tag)
        result = collect(repo, dry_run=dry_run, without=tags)
    for tag in tags:
        click.echo(tag)
    _show_collection(result, dry_run)


def _find_tags(repo: Repository, names: Iterable[str]) -> list[str]:
    """Return the tags that are meant; an id means every tag of its image."""
    from bootwright.repo.images import get_image
    from bootwright.repo.refs import manifest_stream

    present = repo.refs.read_tags()
    tags: list[str] = []
    for name in names:
        # A broken image must be removable, so a name that is there is not looked into.
        if name in present:
            tags.append(name)
            continue
        found = get_image(repo, name)
        if found.reference in present and found.reference in (name.removeprefix("docker://"), f"{name}:latest"):
            tags.append(found.reference)
        else:
            stream = manifest_stream(found.manifest_digest)
            tags.extend(tag for tag, target in present.items() if target == stream)
    return list(dict.fromkeys(tags))


@image.command("gc")
@_repo_option
@click.option("--dry-run", "-n", is_flag=True, help="Only show what would be removed.")
def gc_command(repo_path: str | None, dry_run: bool) -> None:
    """Remove what no image needs: leftovers of pulls that were stopped or failed."""
    from bootwright.repo import Repository
    from bootwright.repo.gc import collect

    with Repository.open_exclusively(_get_path(repo_path)) as repo:
        result = collect(repo, dry_run=dry_run)
    _show_collection(result, dry_run)


def _show_collection(result: Collection, dry_run: bool) -> None:
    verb = "Would remove" if dry_run else "Removed"
    say(
        f"{verb} {result.objects} objects, {format_size(result.bytes)};"
        f" {len(result.streams)} streams, {len(result.images)} images"
    )
