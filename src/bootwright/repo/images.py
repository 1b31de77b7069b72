"""Images of a repository: what is known about a pulled one, its tree, and the tree that boots.

A pulled image is its manifest's stream; by names that has the config's stream, which in turn has the layers and::

    composefs.image.v1          the EROFS image of the plain tree
    composefs.image.boot.v1     the one transformed for boot, when the image can boot
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from bootwright.digest import Digest, VerityDigest
from bootwright.erofs.reader import read_image
from bootwright.erofs.tree import Inode, lookup
from bootwright.erofs.writer import write_image
from bootwright.errors import ImageError, NotFoundError, RepositoryError, UsageError
from bootwright.oci.manifest import ImageConfig, Manifest, parse_config, parse_manifest
from bootwright.repo.refs import config_stream, layer_stream, manifest_stream
from bootwright.repo.repository import Repository
from bootwright.repo.streams import (
    CONTENT_CONFIG,
    CONTENT_MANIFEST,
    INLINE_LIMIT,
    SplitStream,
    SplitStreamWriter,
    iter_bytes,
)
from bootwright.repo.tree import apply_boot_transform

__all__ = [
    "BOOT_IMAGE",
    "PLAIN_IMAGE",
    "BootImage",
    "KernelFiles",
    "PulledImage",
    "build_boot_image",
    "find_kernel",
    "get_image",
    "list_images",
    "load_image",
    "make_image",
    "read_document",
    "read_tree",
    "write_documents",
]

PLAIN_IMAGE = "composefs.image.v1"
BOOT_IMAGE = "composefs.image.boot.v1"

_DOCUMENT_MAX = 4 << 20
_VERSION = "org.opencontainers.image.version"
_CREATED = "org.opencontainers.image.created"
_ID_MIN = 4
_MODULES = b"/usr/lib/modules"


@dataclass(frozen=True, slots=True, kw_only=True)
class PulledImage:
    """An image in the repository.

    Attributes:
        reference: the tag it has here, or where it was pulled from.
        manifest_digest: of the manifest of its platform.
        config_digest: of its config.
        config: the parsed config.
        manifest: the parsed manifest.
        annotations: of the manifest.
        image_id: digest of the EROFS image of the plain tree.
        boot_id: digest of the one that boots; None when the image cannot.
        layers_fetched: layers that this pull fetched; 0 for an image that was there.
        bytes_fetched: compressed bytes of those.
    """

    reference: str
    manifest_digest: Digest
    config_digest: Digest
    config: ImageConfig
    manifest: Manifest
    annotations: dict[str, str]
    image_id: VerityDigest
    boot_id: VerityDigest | None
    layers_fetched: int = 0
    bytes_fetched: int = 0

    @property
    def version(self) -> str | None:
        """Version for people: the manifest's annotation, then the labels."""
        labels = self.config.labels
        return self.annotations.get(_VERSION) or labels.get(_VERSION) or labels.get("version") or None

    @property
    def created(self) -> str | None:
        """When the image was made, as its maker wrote it (RFC 3339)."""
        return self.annotations.get(_CREATED) or self.config.labels.get(_CREATED) or self.config.created or None

    @property
    def architecture(self) -> str:
        """Architecture in OCI names."""
        return self.config.architecture

    @property
    def id(self) -> VerityDigest:
        """What the image is called: the id of its deployment when it boots, else that of its plain tree."""
        return self.boot_id or self.image_id


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFiles:
    """The kernel of an image.

    Attributes:
        version: name of the directory below /usr/lib/modules.
        vmlinuz: the kernel.
        initramfs: its initial RAM filesystem.
    """

    version: str
    vmlinuz: Inode
    initramfs: Inode


@dataclass(frozen=True, slots=True, kw_only=True)
class BootImage:
    """An image that can be deployed: its id, its tree as it will be mounted, and its kernel."""

    id: VerityDigest
    tree: Inode
    kernel: KernelFiles


# ---- trees and images ----------------------------------------------------------------------------------------


def read_tree(repo: Repository, image_id: VerityDigest) -> Inode:
    """Read the tree of an EROFS image; the image's own digest is checked.

    Raises:
        RepositoryError: there is no such image.
        VerificationError: it is damaged.
        ImageError: it is no image.
    """
    return read_image(repo.objects.read(image_id, verify=True))


def make_image(repo: Repository, tree: Inode) -> VerityDigest:
    """Store the EROFS image (format version 1) of a tree; neither durable nor named yet.

    Raises:
        ImageError: the tree cannot be written, e.g. a name or attribute is too long.
        SpaceError: the filesystem is full.
    """
    return repo.store_bytes(write_image(tree, min_version=1, max_version=1, algorithm=repo.algorithm))


def find_kernel(tree: Inode) -> KernelFiles | None:
    """Find the kernel: vmlinuz and initramfs.img in a directory of /usr/lib/modules; of several the highest version."""
    modules = lookup(tree, _MODULES)
    found = []
    for name in (modules.children if modules is not None else None) or {}:
        kernel = lookup(tree, b"%s/%s/vmlinuz" % (_MODULES, name))
        initramfs = lookup(tree, b"%s/%s/initramfs.img" % (_MODULES, name))
        if kernel is not None and initramfs is not None and kernel.is_regular and initramfs.is_regular:
            version = name.decode("utf-8", "surrogateescape")
            found.append(KernelFiles(version=version, vmlinuz=kernel, initramfs=initramfs))
    return max(found, key=lambda kernel: _version_key(kernel.version), default=None)


def _version_key(version: str) -> list[tuple[int, int, str]]:
    """Compare runs of digits as numbers, so that 6.12 comes after 6.9."""
    parts = re.findall(r"\d+|[^\d]+", version)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


def build_boot_image(repo: Repository, pulled: PulledImage) -> BootImage:
    """Return the bootable form of a pulled image, building and publishing it when it is not there yet.

    Raises:
        ImageError: the image is not bootable: no kernel or initramfs, or no /boot or /sysroot.
        RepositoryError: the image is not complete in the repository.
    """
    if pulled.boot_id is not None and repo.objects.size_of(pulled.boot_id) is not None:
        tree = read_tree(repo, pulled.boot_id)
        return BootImage(id=pulled.boot_id, tree=tree, kernel=_get_kernel(tree, pulled.reference))
    tree = read_tree(repo, pulled.image_id)
    kernel = _get_kernel(tree, pulled.reference)
    apply_boot_transform(tree)
    boot_id = make_image(repo, tree)
    streams = write_documents(repo, pulled.manifest_digest, replace(pulled, boot_id=boot_id))
    repo.sync()
    repo.refs.link_images([boot_id])
    repo.refs.link_streams(streams)
    return BootImage(id=boot_id, tree=tree, kernel=kernel)


def _get_kernel(tree: Inode, reference: str) -> KernelFiles:
    kernel = find_kernel(tree)
    if kernel is None:
        raise ImageError(
            f"the image '{reference}' is not bootable: there is no vmlinuz with initramfs.img in /usr/lib/modules/*/",
            hint="use an image made for booting, with a kernel and an initramfs in it",
        )
    return kernel


# ---- what is stored about an image ---------------------------------------------------------------------------


def read_document(repo: Repository, stream: SplitStream) -> bytes:
    """Return the bytes of a manifest or config stream.

    Raises:
        RepositoryError: damaged, incomplete or too big.
    """
    if stream.size > _DOCUMENT_MAX:
        raise RepositoryError(f"the document '{stream.origin}' has {stream.size} bytes")
    return b"".join(iter_bytes(stream, repo.objects.iter))


def write_documents(
    repo: Repository,
    manifest_digest: Digest,
    pulled: PulledImage,
    *,
    manifest_bytes: bytes | None = None,
    config_bytes: bytes | None = None,
    layers: dict[Digest, VerityDigest] | None = None,
) -> list[tuple[str, VerityDigest]]:
    """Store the streams of manifest and config, naming layers and images; returns the links to publish, in order.

    What is not given is taken from the streams that are there.

    Raises:
        RepositoryError: something that must be there is not.
    """
    if manifest_bytes is None:
        manifest_bytes = read_document(repo, _get_stream(repo, manifest_stream(manifest_digest)))
    if config_bytes is None:
        config_bytes = read_document(repo, _get_stream(repo, config_stream(pulled.config_digest)))
    diff_ids = pulled.config.diff_ids
    if layers is None:
        layers = {diff_id: _get_link(repo, layer_stream(diff_id)) for diff_id in diff_ids}

    config = _begin_document(repo, CONTENT_CONFIG, config_bytes)
    manifest = _begin_document(repo, CONTENT_MANIFEST, manifest_bytes)
    for diff_id in diff_ids:
        config.add_name(str(diff_id), layers[diff_id].raw)
    config.add_name(PLAIN_IMAGE, pulled.image_id.raw)
    if pulled.boot_id is not None:
        config.add_name(BOOT_IMAGE, pulled.boot_id.raw)
    config_object = repo.store_bytes(config.finish())
    manifest.add_name(f"config:{pulled.config_digest}", config_object.raw)
    for diff_id in diff_ids:
        manifest.add_name(str(diff_id), layers[diff_id].raw)
    return [
        (config_stream(pulled.config_digest), config_object),
        (manifest_stream(manifest_digest), repo.store_bytes(manifest.finish())),
    ]


def _begin_document(repo: Repository, content_type: bytes, data: bytes) -> SplitStreamWriter:
    stream = SplitStreamWriter(repo.algorithm, content_type)
    if len(data) > INLINE_LIMIT:
        stream.add_object(repo.store_bytes(data).raw, len(data))
    else:
        stream.add_inline(data)
    return stream


def _get_link(repo: Repository, name: str) -> VerityDigest:
    digest = repo.refs.find_stream(name)
    if digest is None:
        raise RepositoryError(f"the stream '{name}' is missing", hint="pull the image again to bring it back")
    return digest


def _get_stream(repo: Repository, name: str) -> SplitStream:
    return repo.read_stream(_get_link(repo, name), name)


def load_image(repo: Repository, manifest_digest: Digest, *, reference: str) -> PulledImage:
    """Read what the repository knows about an image.

    Raises:
        RepositoryError: it is not here, not complete, or damaged.
    """
    name = manifest_stream(manifest_digest)
    stream = _get_stream(repo, name)
    manifest_bytes = read_document(repo, stream)
    manifest_digest.check(manifest_bytes, what=f"the manifest of '{reference}' in the repository")
    manifest = parse_manifest(manifest_bytes, what=f"manifest of '{reference}'")
    if not isinstance(manifest, Manifest):
        raise RepositoryError(f"the stream '{name}' is no manifest")
    config_digest = manifest.config.digest
    config_object = stream.names.get(f"config:{config_digest}")
    if config_object is None:
        raise RepositoryError(f"the stream '{name}' names no config", hint="pull the image again")
    config_name = config_stream(config_digest)
    # The link first: it moves on when an image is added, as when another tool made the boot image.
    linked = repo.refs.find_stream(config_name)
    config_split = repo.read_stream(linked or config_object, config_name)
    config_bytes = read_document(repo, config_split)
    config_digest.check(config_bytes, what=f"the config of '{reference}' in the repository")
    image_id = config_split.names.get(PLAIN_IMAGE)
    if image_id is None:
        raise RepositoryError(
            f"the image '{reference}' has no EROFS image of format 1", hint="pull the image again to make it"
        )
    return PulledImage(
        reference=reference,
        manifest_digest=manifest_digest,
        config_digest=config_digest,
        config=parse_config(config_bytes, what=f"config of '{reference}'"),
        manifest=manifest,
        annotations=manifest.annotations or {},
        image_id=image_id,
        boot_id=config_split.names.get(BOOT_IMAGE),
    )


def list_images(repo: Repository) -> list[tuple[str, PulledImage | RepositoryError]]:
    """Return every tag with its image, sorted by tag; for a broken one the reason."""
    found: list[tuple[str, PulledImage | RepositoryError]] = []
    for tag, stream in repo.refs.read_tags().items():
        try:
            found.append((tag, load_image(repo, parse_manifest_stream(stream), reference=tag)))
        except RepositoryError as exc:
            found.append((tag, exc))
        except (ImageError, NotFoundError) as exc:
            found.append((tag, RepositoryError(exc.message, hint=exc.hint)))
    return found


def parse_manifest_stream(name: str) -> Digest:
    """Return the digest in the name of a manifest's stream.

    Raises:
        RepositoryError: it is another stream.
    """
    prefix = "oci-manifest-"
    if not name.startswith(prefix):
        raise RepositoryError(f"'{name}' is not the stream of a manifest")
    return Digest.parse(name.removeprefix(prefix))


def get_image(repo: Repository, text: str) -> PulledImage:
    """Find an image by its tag, by a reference with or without transport, or by the beginning of one of its ids.

    Raises:
        NotFoundError: there is none.
        UsageError: the beginning fits several images.
        RepositoryError: it is damaged.
    """
    tags = repo.refs.read_tags()
    names = [text, text.removeprefix("docker://"), text.removeprefix("registry:")]
    for name in names:
        for tag in (name, f"{name}:latest"):
            if tag in tags:
                return load_image(repo, parse_manifest_stream(tags[tag]), reference=tag)
    matches: dict[Digest, PulledImage] = {}
    beginning = text.removeprefix("sha256:")
    if len(beginning) >= _ID_MIN and re.fullmatch(r"[0-9a-f]+", beginning):
        for _, image in list_images(repo):
            if isinstance(image, PulledImage) and _has_id(image, beginning):
                matches.setdefault(image.manifest_digest, image)
    if not matches:
        raise NotFoundError(
            f"there is no image '{text}' in '{repo.path}'", hint=f"bootwright image list --repo {repo.path}"
        )
    if len(matches) > 1:
        raise UsageError(f"'{text}' fits {len(matches)} images", hint="give more digits of the id")
    return next(iter(matches.values()))


def _has_id(image: PulledImage, beginning: str) -> bool:
    ids = [image.image_id.hex, image.manifest_digest.hex, image.config_digest.hex]
    if image.boot_id is not None:
        ids.append(image.boot_id.hex)
    return any(text.startswith(beginning) for text in ids)
