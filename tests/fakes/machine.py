"""A deployed machine in a directory: physical root with a real repository, boot partition, runtime state.

machine = Machine.install(tmp_path, os_image(version="1"))
machine.serve(os_image(version="2"))          # what the tracked tag leads to now
upgrade(machine.host, UpgradeRequest(), SILENT)
machine.reboot()                              # finalises, then "boots" the first entry
"""

from __future__ import annotations

import gzip
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bootwright.boot.image_kargs import read_image_kargs, read_os_release
from bootwright.boot.kargs import Kargs
from bootwright.boot.sdboot import EntryStore, first_entry
from bootwright.deploy.model import Origin
from bootwright.deploy.seed import write_tree
from bootwright.deploy.store import StateStore
from bootwright.erofs.tree import lookup
from bootwright.linux.mountinfo import Mount
from bootwright.oci.reference import ImageReference
from bootwright.oci.source import SourceOptions
from bootwright.ops.cleanup import TAG_PREFIX
from bootwright.ops.finalize import finalize_staged
from bootwright.ops.host import Host
from bootwright.progress import SILENT
from bootwright.repo.images import build_boot_image
from bootwright.repo.imports import pull
from bootwright.repo.refs import manifest_stream
from bootwright.repo.repository import Repository
from fakes.images import BuiltImage, Entry, ImageBuilder, directory, file, symlink

INITRAMFS = gzip.compress(b"070701 ... usr/lib/systemd/system/bootwright-root-setup.service ...", mtime=0)
VERITY_PREFIX = "?"


def os_image(
    *,
    version: str = "1",
    etc: dict[str, str] | None = None,
    kernel: bytes | None = b"kernel",
    initramfs: bytes = INITRAMFS,
    kargs: str = 'kargs = ["quiet"]',
    os_id: str = "debian",
    architecture: str = "amd64",
    extra: list[Entry] | None = None,
) -> BuiltImage:
    """A small operating system; ``etc`` maps names below /etc to their text."""
    entries = [
        *(directory(name) for name in ("boot", "etc", "run", "sysroot", "usr", "var", "usr/lib", "usr/lib/bootc")),
        directory("usr/lib/modules"),
        directory("usr/lib/modules/6.12"),
        directory("usr/lib/bootc/kargs.d"),
        file("usr/lib/bootc/kargs.d/10-x.toml", kargs.encode()),
        file("usr/lib/os-release", f'ID={os_id}\nPRETTY_NAME="{os_id} {version}"\nVERSION_ID={version}\n'.encode()),
        symlink("etc/os-release", "../usr/lib/os-release"),
        file(
            "usr/bin-of-this-version", f"contents of version {version}, longer than what is stored inline".encode() * 3
        ),
        file("usr/lib/modules/6.12/initramfs.img", initramfs),
    ]
    if kernel is not None:
        entries.append(file("usr/lib/modules/6.12/vmlinuz", kernel))
    for name, text in (etc if etc is not None else {"motd": f"welcome to {version}\n", "conf": "a=1\n"}).items():
        parts = name.split("/")
        entries.extend(directory("etc/" + "/".join(parts[:depth])) for depth in range(1, len(parts)))
        entries.append(file(f"etc/{name}", text.encode()))
    builder = ImageBuilder(architecture=architecture, labels={"org.opencontainers.image.version": version})
    return builder.add_layer([*entries, *(extra or [])]).build()


@dataclass
class Machine:
    """See the module."""

    directory: Path
    booted_id: str
    started_units: list[str] = field(default_factory=list)
    reboots: int = 0
    messages: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def install(cls, directory: Path, image: BuiltImage, *, tag: str = "prod") -> Machine:
        machine = cls(directory, "")
        for name in ("sysroot", "esp", "run"):
            (directory / name).mkdir(parents=True)
        machine.serve(image, tag)
        reference = machine.reference(tag)
        with Repository.init(str(machine.sysroot / "composefs")) as repo:
            pulled = pull(repo, reference, SourceOptions(architecture="amd64"), progress=SILENT, tag=None)
            boot = build_boot_image(repo, pulled)
            repo.refs.write_tag(f"{TAG_PREFIX}{pulled.manifest_digest}", manifest_stream(pulled.manifest_digest))
            kernel = boot.kernel
            files = machine.boot.install_kernel(
                boot.id.hex, repo.iter_inode(kernel.vmlinuz), repo.iter_inode(kernel.initramfs)
            )
            origin = Origin.make(
                reference,
                manifest_digest=str(pulled.manifest_digest),
                boot_digest=files.boot_digest,
                version=pulled.version,
                created=pulled.created,
                architecture=pulled.architecture,
            )
            etc = lookup(boot.tree, b"/etc")
            assert etc is not None
            StateStore(str(machine.sysroot)).create(
                boot.id.hex, origin, fill=lambda path: write_tree(repo, etc, f"{path}/etc", set_owner=True)
            )
            options = Kargs.parse("root=UUID=1 rw").append(read_image_kargs(repo, boot.tree, architecture="x86_64"))
            path, text = first_entry(
                boot.id.hex,
                os_release=read_os_release(repo, boot.tree),
                version=pulled.version,
                options=options.append(f"mine=1 composefs={VERITY_PREFIX}{boot.id.hex}"),
            )
        (machine.esp / path).parent.mkdir(parents=True)
        (machine.esp / path).write_bytes(text)
        machine.booted_id = boot.id.hex
        return machine

    @property
    def sysroot(self) -> Path:
        return self.directory / "sysroot"

    @property
    def esp(self) -> Path:
        return self.directory / "esp"

    @property
    def boot(self) -> EntryStore:
        return EntryStore(str(self.esp))

    @property
    def etc(self) -> Path:
        """The live /etc."""
        return self.sysroot / "state/deploy" / self.booted_id / "etc"

    @property
    def staged_file(self) -> Path:
        return self.directory / "run/composefs/staged-deployment"

    @property
    def host(self) -> Host:
        """The machine as the commands see it; nothing of it is mounted."""
        root = Mount(
            device=(0, 30),
            root="/",
            target="/",
            options=("ro",),
            fstype="overlay",
            source=f"composefs:{self.booted_id}",
        )
        return Host(
            cmdline=f"root=UUID=1 rw composefs={VERITY_PREFIX}{self.booted_id}",
            mounts=[root],
            root=str(self.directory / "root"),
            sysroot=str(self.sysroot),
            run=str(self.directory / "run"),
            efi_variables=str(self.directory / "efivars"),
            sys=str(self.directory / "sys"),
            boot_root=str(self.esp),
            machine="x86_64",
            is_live=False,
            start_unit=self.started_units.append,
            reboot=self._count_reboot,
            journal=lambda message, **fields: self.messages.append({"MESSAGE": message, **fields}),
        )

    def _count_reboot(self) -> None:
        self.reboots += 1

    def reference(self, tag: str = "prod") -> ImageReference:
        return ImageReference.parse(f"oci:{self.directory}/registry:{tag}")

    def serve(self, image: BuiltImage, tag: str = "prod") -> None:
        """Make a tag lead to an image."""
        image.write_layout(self.directory / "registry", tag=tag)

    def menu(self) -> tuple[str, ...]:
        """Deployments in the order of the boot menu."""
        return self.boot.read_entries().deployment_ids

    def options(self, deployment_id: str) -> str:
        entry = self.boot.read_entries().find(deployment_id)
        assert entry is not None
        return entry.options

    def reboot(self, *, finalize: bool = True, choose: str | None = None) -> str:
        """Shut down, then boot what the menu has first, or what is chosen there."""
        if finalize:
            finalize_staged(self.host)
        shutil.rmtree(self.directory / "run")
        (self.directory / "run").mkdir()
        self.booted_id = choose or self.menu()[0]
        entry = self.boot.read_entries().find(self.booted_id)
        assert entry is not None
        assert entry.kargs.composefs_id == self.booted_id
        for path in (entry.linux or "", *entry.initrd):
            assert (self.esp / path.lstrip("/")).is_file(), "the boot loader finds kernel and initramfs"
        assert self.etc.is_dir()
        assert (self.etc.parent / "var").readlink() == Path("../../os/default/var")
        return self.booted_id

    def copy(self, directory: Path, *, share_repository: bool = False) -> Machine:
        """An identical machine elsewhere, for trying what happens when it is interrupted.

        A shared repository is for commands that only read it.
        """
        ignore = shutil.ignore_patterns("composefs") if share_repository else None
        shutil.copytree(self.sysroot, directory / "sysroot", symlinks=True, ignore=ignore)
        if share_repository:
            (directory / "sysroot/composefs").symlink_to(self.sysroot / "composefs")
        for name in ("esp", "run"):
            shutil.copytree(self.directory / name, directory / name, symlinks=True)
        return Machine(directory, self.booted_id)
