"""The three-way merge of /etc, as a plan. Pure.

Inputs are three trees: *pristine* (the /etc of the image that runs), *current* (the live /etc) and *new* (the /etc of
the next image). What was changed locally wins, what was not follows the image, what was removed stays removed. A
modification time is no change, and neither is a SELinux label: a relabel must not freeze a file for ever.

The one thing that cannot be merged is a directory on one side where the other has a file or symlink, when the local
one was changed. Such conflicts are listed, and nothing is planned for them.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

__all__ = ["Action", "Conflict", "Kind", "MergeNode", "MergePlan", "MergeTree", "Operation", "plan_merge"]


class Kind(enum.Enum):
    """Type of a file that can be merged; sockets, pipes and devices are not."""

    DIRECTORY = "directory"
    FILE = "file"
    SYMLINK = "symlink"


@dataclass(frozen=True, slots=True)
class MergeNode:
    """What makes two files the same.

    Args:
        kind: its type.
        mode: permission bits, 0 for symlinks.
        uid: owner.
        gid: group.
        xattrs: sorted pairs, without ``security.selinux``.
        content: raw digest of a file, target of a symlink, empty for a directory.
    """

    kind: Kind
    mode: int
    uid: int
    gid: int
    xattrs: tuple[tuple[bytes, bytes], ...]
    content: bytes


# Relative path -> node; the parents of every path are in the tree too, as directories. The top is not in it.
MergeTree = Mapping[bytes, MergeNode]


class Action(enum.Enum):
    """What to do with a path of the new tree."""

    MAKE_DIRECTORY = "make directory"  # create it when missing; its metadata is the current one's
    WRITE = "write"  # replace whatever is there by the current file or symlink
    REMOVE = "remove"  # with everything below it


@dataclass(frozen=True, slots=True)
class Operation:
    """One step of a plan, on a path below the new /etc."""

    action: Action
    path: bytes


@dataclass(frozen=True, slots=True)
class Conflict:
    """A path that is a directory on one side only."""

    path: bytes
    current: Kind
    new: Kind

    def __str__(self) -> str:
        name = self.path.decode("utf-8", "backslashreplace")
        return f"'/etc/{name}' is a {self.current.value} here and a {self.new.value} in the new image"


@dataclass(frozen=True, slots=True)
class MergePlan:
    """Operations in the order to apply them, and what stands in the way."""

    operations: tuple[Operation, ...]
    conflicts: tuple[Conflict, ...]


def plan_merge(pristine: MergeTree, current: MergeTree, new: MergeTree) -> MergePlan:
    """Plan how to turn the new image's tree into the merged one."""
    changed = [path for path, node in current.items() if pristine.get(path) != node]
    conflicts: dict[bytes, Conflict] = {}
    # A directory that the new image dropped comes back when something below it was changed here.
    wanted = dict.fromkeys(changed)
    for path in changed:
        for parent in _parents(path):
            if parent not in new:
                wanted.setdefault(parent)
            elif new[parent].kind is not Kind.DIRECTORY:
                conflicts[parent] = Conflict(parent, current[parent].kind, new[parent].kind)
    operations: list[Operation] = []
    for path in sorted(wanted):
        node, other = current[path], new.get(path)
        if other is not None and (node.kind is Kind.DIRECTORY) != (other.kind is Kind.DIRECTORY):
            conflicts[path] = Conflict(path, node.kind, other.kind)
        elif node != other:
            action = Action.MAKE_DIRECTORY if node.kind is Kind.DIRECTORY else Action.WRITE
            operations.append(Operation(action, path))
    operations.extend(Operation(Action.REMOVE, path) for path in _removed(pristine, current) if path in new)
    return MergePlan(tuple(operations), tuple(conflicts[path] for path in sorted(conflicts)))


def _removed(pristine: MergeTree, current: MergeTree) -> Iterator[bytes]:
    """Yield the top of everything that was removed, in order.

    What lay below a removed directory goes with it; what lay below one that became a file or symlink has its parent's
    change to speak for it.
    """
    for path in sorted(pristine.keys() - current.keys()):
        parent, separator, _ = path.rpartition(b"/")
        if not separator or (parent in current and current[parent].kind is Kind.DIRECTORY):
            yield path


def _parents(path: bytes) -> Iterator[bytes]:
    at = path.find(b"/")
    while at >= 0:
        yield path[:at]
        at = path.find(b"/", at + 1)
