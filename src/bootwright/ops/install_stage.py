"""Stages an installation in a directory: what the root filesystem and the boot partition will hold.

::

    root/composefs/                  the repository, pulled straight into its place; objects sealed with their trees
    root/state/deploy/<id>/…         the first deployment: etc, var, origin
    root/state/os/default/var/       the image's /var
    root/.bootc-aleph.json           how it all began
    esp/EFI/BOOT/BOOTX64.EFI         systemd-boot, where firmware looks without being told
    esp/EFI/systemd/…, esp/loader/…, esp/EFI/Linux/…

Everything is staged with the caller's owner; owners, modes and attributes are a table beside it.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

from bootwright.boot.entries import ARTEFACT_PREFIX
from bootwright.boot.image_kargs import read_image_kargs, read_os_release
from bootwright.boot.kargs import Kargs
from bootwright.boot.sdboot import EntryStore, first_entry
from bootwright.deploy.model import Origin
from bootwright.deploy.seed import write_tree
from bootwright.deploy.store import SHARED_VAR, StateStore
from bootwright.digest import Algorithm
from bootwright.erofs.tree import Inode, lookup, lookup_follow, resolve, walk
from bootwright.errors import ImageError
from bootwright.image.ext4 import Metadata
from bootwright.image.layout import Architecture
from bootwright.image.verity import SealedFile, seal, seal_objects
from bootwright.linux import files
from bootwright.oci.reference import ImageReference
from bootwright.repo.images import BootImage, PulledImage
from bootwright.repo.repository import Repository
from bootwright.repo.workers import available_processors, run_jobs

__all__ = [
    "LOADER_TIMEOUT_S",
    "SSH_KEYS_FILE",
    "Stage",
    "StagedImage",
    "find_boot_loader",
    "make_options",
]

# Long enough to choose the previous deployment after a bad update, short enough for everybody else.
LOADER_TIMEOUT_S = 3
SSH_KEYS_FILE = "tmpfiles.d/bootc-root-ssh.conf"

_REPOSITORY = "composefs"
_ALEPH = ".bootc-aleph.json"
_UPDATED = b".updated"
_BOOT_LOADERS = "usr/lib/systemd/boot/efi"
_SEALING_CHUNK = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedImage:
    """The image as it lies in the staged repository."""

    repo: Repository
    reference: ImageReference
    pulled: PulledImage
    boot: BootImage
    architecture: Architecture

    @property
    def deployment_id(self) -> str:
        """Name of the deployment."""
        return self.boot.id.hex


def find_boot_loader(tree: Inode, architecture: Architecture, *, reference: str) -> Inode:
    """Find systemd-boot in an image; the signed one when there are both.

    Raises:
        ImageError: there is none.
    """
    path = f"{_BOOT_LOADERS}/systemd-boot{architecture.efi_name}.efi"
    for name in (f"{path}.signed", path):
        found = lookup_follow(tree, name.encode())
        if found is not None and found.is_regular and found.size > 0:
            return found
    raise ImageError(
        f"the image '{reference}' has no boot loader: '/{path}' is missing",
        hint="install systemd-boot in the image (Debian: the package systemd-boot-efi)",
    )


@dataclass(slots=True)
class Stage:
    """The staging directories below ``work``, and the tables that go with them.

    Attributes:
        work: a private directory.
        metadata: owners, modes and attributes by absolute path in the root filesystem.
        sealed: files with fs-verity metadata by absolute path in the root filesystem.
    """

    work: str
    metadata: dict[bytes, Metadata] = field(default_factory=dict)
    sealed: dict[bytes, SealedFile] = field(default_factory=dict)

    @property
    def root(self) -> str:
        """What becomes the root filesystem."""
        return os.path.join(self.work, "root")

    @property
    def esp(self) -> str:
        """What becomes the boot partition."""
        return os.path.join(self.work, "esp")

    @property
    def repository(self) -> str:
        """The repository in the root filesystem."""
        return os.path.join(self.root, _REPOSITORY)

    def make_directories(self) -> None:
        """Make the empty directories."""
        os.mkdir(self.root, 0o755)
        os.mkdir(self.esp, 0o755)

    # ---- the deployment --------------------------------------------------------------------------------------

    def write_deployment(self, image: StagedImage, origin: Origin, *, ssh_keys: bytes | None) -> None:
        """Stage /etc, /var and the origin of the first deployment.

        Raises:
            ImageError: the image has no /etc, or something in it that no directory can hold.
        """
        etc, var = lookup(image.boot.tree, b"/etc"), lookup(image.boot.tree, b"/var")
        if etc is None or not etc.is_directory:
            raise ImageError(f"the image '{image.reference}' has no directory /etc")
        # Without the marker, services with ConditionNeedsUpdate=/etc run once, as they must.
        (etc.children or {}).pop(_UPDATED, None)
        store = StateStore(self.root)

        def fill(directory: str) -> None:
            write_tree(image.repo, etc, os.path.join(directory, "etc"), set_owner=False)
            if ssh_keys is not None:
                _write_ssh_keys(os.path.join(directory, "etc"), _format_ssh_keys(image.boot.tree, ssh_keys))

        deployment = store.create(image.deployment_id, origin, fill=fill)
        self._add_metadata(etc, os.path.relpath(deployment.etc, self.root))
        if var is not None and var.is_directory:
            write_tree(image.repo, var, os.path.join(self.root, SHARED_VAR), set_owner=False)
            self._add_metadata(var, SHARED_VAR)
        self.metadata[f"/{_REPOSITORY}".encode()] = Metadata(mode=stat.S_IFDIR | 0o700)

    def _add_metadata(self, tree: Inode, relative: str) -> None:
        prefix = b"/" + os.fsencode(relative)
        for path, node in walk(tree):
            inode = resolve(node)
            self.metadata[prefix if path == b"/" else prefix + path] = Metadata(
                mode=inode.mode, uid=inode.uid, gid=inode.gid, rdev=inode.rdev, xattrs=inode.xattrs
            )

    def write_aleph(self, image: StagedImage, *, target: ImageReference, kernel: str) -> None:
        """Write bootc's note of how the machine came to be (``.bootc-aleph.json``)."""
        document = {
            "image": str(image.reference),
            "digest": str(image.pulled.manifest_digest),
            "target-image": target.image,
            "labels": image.pulled.config.labels,
            "version": image.pulled.version,
            "timestamp": image.pulled.created,
            "kernel": kernel,
            "selinux": "disabled",
        }
        with open(os.path.join(self.root, _ALEPH), "w", encoding="utf-8") as file:
            json.dump({key: value for key, value in document.items() if value is not None}, file, sort_keys=True)

    # ---- the boot partition ----------------------------------------------------------------------------------

    def write_boot_partition(self, image: StagedImage, options: Kargs, *, with_random_seed: bool) -> str:
        """Stage boot loader, kernel and the first entry.

        Returns:
            The boot digest: of kernel and initramfs.

        Raises:
            ImageError: there is no boot loader in the image.
            BootError: the entry cannot be written.
        """
        loader = find_boot_loader(image.boot.tree, image.architecture, reference=str(image.reference))
        name = image.architecture.efi_name
        content = image.repo.read_inode(loader)
        self._write_esp(f"EFI/BOOT/BOOT{name.upper()}.EFI", content)
        self._write_esp(f"EFI/systemd/systemd-boot{name}.efi", content)
        self._write_esp("loader/loader.conf", f"timeout {LOADER_TIMEOUT_S}\n".encode())
        self._write_esp("loader/entries.srel", b"type1\n")
        if with_random_seed:
            self._write_esp("loader/random-seed", secrets.token_bytes(32))
        kernel = image.boot.kernel
        stored = EntryStore(self.esp).install_kernel(
            image.deployment_id, image.repo.iter_inode(kernel.vmlinuz), image.repo.iter_inode(kernel.initramfs)
        )
        path, entry = first_entry(
            image.deployment_id,
            os_release=read_os_release(image.repo, image.boot.tree),
            version=image.pulled.version,
            options=options,
        )
        if f"{ARTEFACT_PREFIX}{image.deployment_id}" not in stored.directory:
            raise ImageError("the boot partition was not empty when the kernel was staged")
        self._write_esp(path, entry)
        return stored.boot_digest

    def _write_esp(self, relative: str, content: bytes) -> None:
        path = os.path.join(self.esp, relative)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)

    # ---- sealing ---------------------------------------------------------------------------------------------

    def seal(self, algorithm: Algorithm, *, begun: Callable[[], None]) -> None:
        """Append fs-verity metadata to every object and to meta.json; the repository must be closed.

        Args:
            algorithm: of the repository.
            begun: called when the worker processes run.

        Raises:
            VerificationError: an object is not what its name says.
        """
        objects = os.path.join(self.repository, "objects")
        prefixes = sorted(os.listdir(objects))
        chunks = [prefixes[at : at + _SEALING_CHUNK] for at in range(0, len(prefixes), _SEALING_CHUNK)]

        def work(number: int, _report: Callable[[int], None]) -> bytes:
            return pickle.dumps(seal_objects(objects, chunks[number], algorithm))

        with run_jobs(list(range(len(chunks))), work, processes=available_processors()) as events:
            begun()
            for event in events:
                if event.result is None:
                    continue
                found: dict[str, SealedFile] = pickle.loads(event.result)  # noqa: S301  our own worker's
                for name, one in found.items():
                    self.sealed[f"/{_REPOSITORY}/objects/{name}".encode()] = one
        self.sealed[f"/{_REPOSITORY}/meta.json".encode()] = seal(os.path.join(self.repository, "meta.json"), algorithm)
        # The notes of writers, which have done their work.
        files.remove_tree(os.path.join(self.repository, "bootwright"))


def make_options(image: StagedImage, *, root_uuid: str, kargs: tuple[str, ...], allow_missing_verity: bool) -> Kargs:
    """Return the kernel command line: root, the image's arguments, the user's, and the deployment.

    Raises:
        ConfigError: the image's kargs.d is wrong.
        BootError: the line is too long.
    """
    options = Kargs.parse(f"root=UUID={root_uuid} rw")
    options = options.append(read_image_kargs(image.repo, image.boot.tree, architecture=image.architecture.rust_name))
    for karg in kargs:
        options = options.append(karg)
    options = options.with_composefs(image.deployment_id, verity_optional=allow_missing_verity)
    options.check_length()
    return options


def _write_ssh_keys(etc: str, line: str) -> None:
    path = os.path.join(etc, SSH_KEYS_FILE)
    directory = os.path.dirname(path)
    # A symlink of the image there would lead out of the staging directory.
    if os.path.islink(directory) or (os.path.lexists(directory) and not os.path.isdir(directory)):
        raise ImageError("'/etc/tmpfiles.d' of the image is no directory, so root's ssh keys have no place")
    os.makedirs(directory, exist_ok=True)
    files.remove_tree(path)
    with open(path, "x", encoding="utf-8") as file:
        file.write(line)


def _format_ssh_keys(tree: Inode, keys: bytes) -> str:
    """Write the tmpfiles.d line that gives root its authorised keys at boot, as bootc does."""
    home = "/root"
    root = lookup(tree, b"/root")
    if root is not None and root.is_symlink:
        home = os.path.normpath(os.path.join("/", os.fsdecode(root.target or b"")))
    return f"f~ {home}/.ssh/authorized_keys 600 root root - {base64.b64encode(keys).decode('ascii')}\n"
