"""Merge /etc for the next boot, all or nothing.

The merged tree is built in ``.etc-merging`` beside the deployment's ``etc``, starting from the new image every time,
and takes its place by one exchange. A cut at any point leaves the /etc that staging made or the merged one; doing it
again gives the same result. Boot entries are exchanged only after it, and by somebody else.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from bootwright.deploy.etc_tree import LEFT_OUT, read_directory, read_image
from bootwright.deploy.merge import Action, MergePlan, plan_merge
from bootwright.deploy.seed import InodeReader, write_tree
from bootwright.deploy.store import StoredDeployment
from bootwright.digest import Algorithm
from bootwright.erofs.tree import Inode, lookup
from bootwright.errors import DeploymentError
from bootwright.linux import files, xattr

__all__ = ["EtcMerge", "check_conflicts"]

_MERGING = ".etc-merging"
_LISTED_CONFLICTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcMerge:
    """The three sides of one merge.

    Args:
        repo: where contents are.
        algorithm: of the repository.
        booted: tree of the image that runs.
        current: path of the live /etc.
        new: tree of the image to boot next.
    """

    repo: InodeReader
    algorithm: Algorithm
    booted: Inode
    current: str
    new: Inode

    def plan(self) -> MergePlan:
        """Compare the three sides; nothing is written."""
        return plan_merge(
            read_image(self.repo, lookup(self.booted, b"/etc"), self.algorithm),
            read_directory(self.current, self.algorithm),
            read_image(self.repo, lookup(self.new, b"/etc"), self.algorithm),
        )

    def run(self, target: StoredDeployment) -> MergePlan:
        """Merge into the /etc of a deployment.

        1. remove an older ``.etc-merging``   2. write the image's /etc there   3. apply the plan   4. sync
        5. exchange it with ``etc``, fsync   6. remove the old one

        Args:
            target: the deployment whose ``etc`` is replaced.

        Raises:
            DeploymentError: there are conflicts; nothing was changed.
            SpaceError: no room; nothing was changed.
        """
        plan = self.plan()
        check_conflicts(plan)
        etc = lookup(self.new, b"/etc")
        merging = os.path.join(target.path, _MERGING)
        with files.translated("could not merge /etc"):
            files.remove_tree(merging)
            os.mkdir(merging, 0o755)
            if etc is not None:
                write_tree(self.repo, etc, merging, set_owner=True)
            _apply(plan, os.fsencode(self.current), os.fsencode(merging))
            for name in LEFT_OUT:
                files.remove_tree(os.path.join(os.fsencode(merging), name))
            files.sync_filesystem(merging)
            if os.path.lexists(target.etc):
                files.exchange(merging, target.etc)
            else:
                os.rename(merging, target.etc)
            files.fsync_directory(target.path)
            files.remove_tree(merging)
        return plan


def check_conflicts(plan: MergePlan) -> None:
    """Require a plan without conflicts.

    Raises:
        DeploymentError: there are some; the message names the first ones.
    """
    if not plan.conflicts:
        return
    listed = "; ".join(str(conflict) for conflict in plan.conflicts[:_LISTED_CONFLICTS])
    more = len(plan.conflicts) - _LISTED_CONFLICTS
    raise DeploymentError(
        f"local changes in /etc cannot be merged: {listed}{f'; and {more} more' if more > 0 else ''}",
        hint="move the local files away (their content can be put back afterwards) and run the command again",
    )


def _apply(plan: MergePlan, current: bytes, merging: bytes) -> None:
    directories: list[tuple[bytes, bytes]] = []
    for operation in plan.operations:
        source, target = os.path.join(current, operation.path), os.path.join(merging, operation.path)
        match operation.action:
            case Action.MAKE_DIRECTORY:
                if not os.path.lexists(target):
                    os.mkdir(target, 0o700)
                directories.append((source, target))
            case Action.WRITE:
                files.remove_tree(target)
                _copy_leaf(source, target)
            case Action.REMOVE:
                files.remove_tree(target)
    # Last, because writing into a directory changes its time, and its mode may forbid writing.
    for source, target in reversed(directories):
        _copy_metadata(source, target, os.lstat(source))


def _copy_leaf(source: bytes, target: bytes) -> None:
    """Copy a file or symlink. One that vanished since the plan was made was removed locally: then it stays removed."""
    try:
        status = os.lstat(source)
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(source), target)
        elif stat.S_ISREG(status.st_mode):
            source_fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                target_fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    files.clone_or_copy(source_fd, target_fd)
                finally:
                    os.close(target_fd)
            finally:
                os.close(source_fd)
        else:
            raise DeploymentError(
                f"'{os.fsdecode(source)}' changed its type while it was merged", hint="run the command again"
            )
    except FileNotFoundError:
        if os.path.lexists(source):
            raise
        return
    _copy_metadata(source, target, status)


def _copy_metadata(source: bytes, target: bytes, status: os.stat_result) -> None:
    os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(target, stat.S_IMODE(status.st_mode))
    xattr.copy_all(source, target)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
