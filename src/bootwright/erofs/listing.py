"""What people and scripts want to know of an image: its names, its objects; composefs-info's text. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from bootwright.erofs.dumptext import escape
from bootwright.erofs.tree import Inode, resolve, walk

__all__ = ["format_list", "list_objects"]


def format_list(root: Inode, names: Collection[bytes] = ()) -> Iterator[bytes]:
    """Yield a line for every entry but the root, depth first.

    Directories end with a slash, symlinks and external files show where they lead; of a hard-linked file only the
    first name does.

    Args:
        root: the tree.
        names: entries of the root to list; all when empty.
    """
    seen: set[Inode] = set()
    for path, node in walk(root, names):
        inode = resolve(node)
        shown = b" ".join(escape(part) for part in path.split(b" "))
        if inode is root:
            continue
        if inode in seen:
            yield shown + b"\n"
            continue
        seen.add(inode)
        if inode.is_directory:
            yield shown + b"/\t\n"
        elif inode.is_symlink:
            yield b"%b\t-> %b\n" % (shown, escape(inode.target or b""))
        elif inode.is_external and inode.payload:
            yield b"%b\t@ %b\n" % (shown, escape(inode.payload))
        else:
            yield shown + b"\n"


def list_objects(root: Inode, names: Collection[bytes] = ()) -> set[bytes]:
    """Return the object paths of all external files.

    Args:
        root: the tree.
        names: entries of the root to look at; all when empty.
    """
    return {payload for _, node in walk(root, names) if (payload := resolve(node).payload)}
