"""Layers become one tree, and the tree becomes what is deployed. Pure.

**Merging** (OCI image specification, "Applying Changesets"), lowest layer first. For each layer, first all whiteouts,
which touch lower layers only, wherever they stand in the archive; then the entries, in order:

* a directory over a directory takes the new metadata and keeps its entries; anything else replaces;
* ``.wh.NAME`` removes NAME; ``.wh..wh..opq`` empties its directory; other ``.wh..wh.*`` are AUFS' own files: skipped;
* NAME and ``.wh.NAME`` in one layer: NAME is there;
* a hard link is a further name of what its target is in the tree at that moment, also in a lower layer;
* missing parents are made: 0755, root, time 0;
* symlinks are never followed. Below something of a *lower* layer that is no directory, a directory takes its place, as
  overlayfs would show it to a container. Below a symlink or file of the *same* layer nothing can lie: refused.

**OCI transform**, so that every way of pulling an image gives the same tree: the root directory takes the metadata of
/usr (archives seldom carry the root); /run is emptied and takes /usr's time; of the extended attributes only
``security.capability`` stays. Images without /usr are no operating systems: their root stays as their layers say.

**Boot transform**: /boot and /sysroot, which both must exist, are emptied and take /usr's time, nanoseconds included.
/boot must be out, since the kernel image in it may carry the tree's digest. ``security.selinux`` is removed. Labels for
an image with an SELinux policy are *not* computed yet: such an image is deployed unlabelled.

Of several names of one inode the first in depth-first order, names in byte order, is the real one; links are counted.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator

from bootwright.erofs.tree import HardLink, Inode, Node, resolve
from bootwright.errors import ImageError
from bootwright.repo.entries import HARD_LINK, LayerEntry

__all__ = ["apply_boot_transform", "apply_oci_transform", "can_boot", "merge_layers", "settle_links"]

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_META = b".wh..wh."
_CAPABILITY = b"security.capability"
_IMPLIED_MODE = stat.S_IFDIR | 0o755
_MAX_TARGET = 4095
_BOOT_DIRECTORIES = (b"usr", b"boot", b"sysroot")


def merge_layers(layers: Iterable[Iterable[LayerEntry]]) -> Inode:
    """Merge layers into one tree and apply the OCI transform.

    Raises:
        ImageError: an entry contradicts the tree or the format; the message names the layer and the entry.
    """
    root = Inode(_IMPLIED_MODE)
    for number, entries in enumerate(layers, 1):
        _Layer(root, number).apply(entries)
    apply_oci_transform(root)
    settle_links(root)
    return root


class _Layer:
    """Applies the entries of one layer to a tree in which hard-linked names share an inode."""

    def __init__(self, root: Inode, number: int) -> None:
        self._root = root
        self._number = number
        self._own: set[int] = set()
        self._kept: list[Inode] = []
        # Nearly all entries follow one of the same directory.
        self._last_path = b""
        self._last = root

    def apply(self, entries: Iterable[LayerEntry]) -> None:
        added = []
        for entry in entries:
            name = entry.name
            if _WHITEOUT in name and name[name.rfind(b"/") + 1 :].startswith(_WHITEOUT):
                self._remove(name)
            elif _WHITEOUT in name and any(part.startswith(_WHITEOUT) for part in name.split(b"/")):
                # Below a directory that is itself a mark: AUFS' own files.
                self._check_mark(name)
            else:
                added.append(entry)
        for entry in added:
            self._add(entry)

    # ---- whiteouts -------------------------------------------------------------------------------------------

    def _remove(self, path: bytes) -> None:
        parent_path, _, name = path.rpartition(b"/")
        if name == _OPAQUE:
            directory = self._find_directory(parent_path)
            if directory is not None and directory.children:
                directory.children.clear()
            return
        if name.startswith(_META):
            return
        victim = name[len(_WHITEOUT) :]
        if victim in (b"", b".", b".."):
            raise self._error(path, "is a whiteout that names nothing that can be removed")
        directory = self._find_directory(parent_path)
        if directory is not None and directory.children:
            directory.children.pop(victim, None)

    def _check_mark(self, path: bytes) -> None:
        if not any(part.startswith(_META) for part in path.split(b"/")):
            raise self._error(path, "lies below a whiteout")

    def _find_directory(self, path: bytes) -> Inode | None:
        found = self._root
        for name in path.split(b"/") if path else ():
            node = (found.children or {}).get(name)
            if node is None:
                return None
            found = resolve(node)
            if found.children is None:
                return None
        return found

    # ---- entries ---------------------------------------------------------------------------------------------

    def _add(self, entry: LayerEntry) -> None:
        path = entry.name
        if not path:
            self._add_root(entry)
            return
        parent_path, _, name = path.rpartition(b"/")
        parent = self._last if parent_path == self._last_path else self._ensure_directory(parent_path, path)
        children = parent.children
        if children is None:  # only directories are ever in _last
            raise self._error(path, "lies below something that is no directory")
        mode = entry.mode
        old = children.get(name)
        if stat.S_ISDIR(mode):
            directory = None if old is None else resolve(old)
            if directory is not None and directory.children is not None:
                _set_metadata(directory, entry)
            else:
                children[name] = self._mark(_make_inode(entry))
            return
        if stat.S_ISLNK(mode) and not 0 < len(entry.link) <= _MAX_TARGET:
            raise self._error(path, f"is a symlink with a target of {len(entry.link)} bytes")
        inode = self._find_target(entry) if mode == HARD_LINK else _make_inode(entry)
        if old is not None and resolve(old).children is not None:
            # A whole directory goes: the remembered one may be in it.
            self._last_path, self._last = b"", self._root
        children[name] = self._mark(inode)

    def _add_root(self, entry: LayerEntry) -> None:
        if not stat.S_ISDIR(entry.mode):
            raise self._error(b"/", "must be a directory")
        _set_metadata(self._root, entry)

    def _ensure_directory(self, path: bytes, of: bytes) -> Inode:
        found = self._root
        for name in path.split(b"/") if path else ():
            children = found.children
            if children is None:
                raise self._error(of, "lies below something that is no directory")
            node = children.get(name)
            inode = None if node is None else resolve(node)
            if inode is not None and inode.children is None and id(inode) in self._own:
                raise self._error(of, f"lies below '{_text(name)}', which the same layer makes something else")
            if inode is None or inode.children is None:
                inode = self._mark(Inode(_IMPLIED_MODE))
                children[name] = inode
            found = inode
        self._last_path, self._last = path, found
        return found

    def _find_target(self, entry: LayerEntry) -> Inode:
        found = self._root
        for name in entry.link.split(b"/"):
            node = (found.children or {}).get(name)
            if node is None:
                raise self._error(entry.name, f"is a hard link to '{_text(entry.link)}', which does not exist")
            found = resolve(node)
        if found.children is not None:
            raise self._error(entry.name, f"is a hard link to the directory '{_text(entry.link)}'")
        if found.is_whiteout:
            raise self._error(entry.name, f"is a hard link to the whiteout '{_text(entry.link)}'")
        return found

    def _mark(self, inode: Inode) -> Inode:
        """Remember that this layer made an inode; it is kept alive so that its id stays its own."""
        if inode.children is None:
            self._own.add(id(inode))
            self._kept.append(inode)
        return inode

    def _error(self, path: bytes, reason: str) -> ImageError:
        return ImageError(
            f"layer {self._number}: the entry '{_text(path)}' {reason}", hint="build the image again, with another tool"
        )


def _text(path: bytes) -> str:
    return path[:200].decode("utf-8", "backslashreplace")


def _set_metadata(inode: Inode, entry: LayerEntry) -> None:
    inode.mode = entry.mode
    inode.uid = entry.uid
    inode.gid = entry.gid
    inode.mtime_sec = entry.mtime_sec
    inode.mtime_nsec = entry.mtime_nsec
    inode.xattrs = {} if entry.capability is None else {_CAPABILITY: entry.capability}


def _make_inode(entry: LayerEntry) -> Inode:
    mode = entry.mode
    inode = Inode(
        mode,
        1,
        entry.uid,
        entry.gid,
        entry.rdev,
        entry.size,
        entry.mtime_sec,
        entry.mtime_nsec,
        None if entry.capability is None else {_CAPABILITY: entry.capability},
    )
    if stat.S_ISREG(mode):
        if entry.content is not None:
            inode.content = entry.content or None
        elif entry.digest is not None:
            inode.digest = entry.digest
            text = entry.digest.hex()
            inode.payload = f"{text[:2]}/{text[2:]}".encode("ascii")
    elif stat.S_ISLNK(mode):
        inode.target = entry.link
        inode.size = len(entry.link)
    return inode


# ---- transforms ----------------------------------------------------------------------------------------------


def apply_oci_transform(root: Inode) -> None:
    """Give the root /usr's metadata and empty /run; see the module's description. Changes the tree."""
    usr = _child_directory(root, b"usr")
    if usr is None:
        return
    root.mode, root.uid, root.gid = usr.mode, usr.uid, usr.gid
    root.mtime_sec, root.mtime_nsec = usr.mtime_sec, usr.mtime_nsec
    root.xattrs = dict(usr.xattrs)
    run = _child_directory(root, b"run")
    if run is not None:
        _empty(run, usr)


def apply_boot_transform(root: Inode) -> None:
    """Empty /boot and /sysroot and remove SELinux labels; see the module's description. Changes the tree.

    Raises:
        ImageError: a directory that an operating system needs is missing: the image cannot boot.
    """
    found = {name: _child_directory(root, name) for name in _BOOT_DIRECTORIES}
    missing = [f"/{name.decode()}" for name, directory in found.items() if directory is None]
    usr, boot, sysroot = found.values()
    if usr is None or boot is None or sysroot is None:
        raise ImageError(
            f"the image cannot boot: it has no directory {' and no '.join(missing)}",
            hint=f"add 'RUN mkdir -p {' '.join(missing)}' to its Containerfile, or use an image made for booting",
        )
    _empty(boot, usr)
    _empty(sysroot, usr)
    stack = [root]
    while stack:
        inode = stack.pop()
        if inode.xattrs:
            inode.xattrs.pop(b"security.selinux", None)
        stack.extend(node for node in (inode.children or {}).values() if isinstance(node, Inode))
    settle_links(root)


def can_boot(root: Inode) -> bool:
    """Tell whether the boot transform can be applied."""
    return all(_child_directory(root, name) is not None for name in _BOOT_DIRECTORIES)


def _child_directory(root: Inode, name: bytes) -> Inode | None:
    node = (root.children or {}).get(name)
    inode = None if node is None else resolve(node)
    return inode if inode is not None and inode.children is not None else None


def _empty(directory: Inode, usr: Inode) -> None:
    directory.children = {}
    directory.mtime_sec, directory.mtime_nsec = usr.mtime_sec, usr.mtime_nsec


def settle_links(root: Inode) -> None:
    """Decide the real name of every inode with several names, count names, and sort directories. Changes the tree.

    Takes names that share an inode, and :class:`HardLink` nodes, alike.
    """
    seen: set[int] = set()
    stack = [_sorted_children(root)]
    while stack:
        children, items = stack[-1]
        for name, inode in items:
            if inode.children is not None:
                stack.append(_sorted_children(inode))
                break
            if id(inode) in seen:
                inode.nlink += 1
                children[name] = HardLink(inode)
            else:
                seen.add(id(inode))
                inode.nlink = 1
        else:
            stack.pop()


def _sorted_children(directory: Inode) -> tuple[dict[bytes, Node], Iterator[tuple[bytes, Inode]]]:
    children = directory.children or {}
    items = [(name, resolve(children[name])) for name in sorted(children)]
    settled: dict[bytes, Node] = dict(items)
    directory.children = settled
    return settled, iter(items)
