"""Deployments on disk: ``state/deploy/<id>`` on the physical root.

::

    state/deploy/<id>/etc/            this deployment's /etc
    state/deploy/<id>/var             -> ../../os/default/var, shared by all
    state/deploy/<id>/<id>.origin     where it came from
    state/deploy/<id>/cached-update.json   what the last check for updates saw (ours)
    state/os/default/var/

A deployment appears by one rename of a directory that was made durable before, and is removed by the reverse.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from bootwright.deploy.model import CachedUpdate, Origin, is_deployment_id
from bootwright.errors import DeploymentError
from bootwright.linux import files

__all__ = ["DEPLOY_DIRECTORY", "SHARED_VAR", "VAR_TARGET", "StateStore", "StoredDeployment"]

DEPLOY_DIRECTORY = "state/deploy"
SHARED_VAR = "state/os/default/var"
VAR_TARGET = "../../os/default/var"

_CACHED_UPDATE = "cached-update.json"
_MAX_TEXT = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredDeployment:
    """One directory below ``state/deploy``.

    Args:
        id: its name.
        path: the directory.
        origin: None when it is missing or damaged; ``problem`` then says why.
        problem: a sentence, or None.
        cached_update: what the last check for updates saw, if any.
    """

    id: str
    path: str
    origin: Origin | None
    problem: str | None = None
    cached_update: CachedUpdate | None = None

    @property
    def etc(self) -> str:
        """Its /etc."""
        return os.path.join(self.path, "etc")

    def get_origin(self) -> Origin:
        """Return its origin.

        Raises:
            DeploymentError: missing or damaged.
        """
        if self.origin is None:
            raise DeploymentError(
                self.problem or f"deployment '{self.id}' has no origin", hint="bootwright switch REFERENCE"
            )
        return self.origin


class StateStore:
    """The deployments below a physical root (``/sysroot`` on a booted machine)."""

    def __init__(self, sysroot: str) -> None:
        self.sysroot = sysroot
        self.directory = os.path.join(sysroot, DEPLOY_DIRECTORY)

    def list(self) -> list[StoredDeployment]:
        """Read all deployments, by id; anything else in the directory is skipped.

        Raises:
            DeploymentError: the directory cannot be read.
        """
        try:
            names = sorted(os.listdir(self.directory))
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise DeploymentError(f"'{self.directory}' cannot be read: {exc.strerror}") from exc
        return [found for name in names if (found := self.find(name)) is not None]

    def find(self, deployment_id: str) -> StoredDeployment | None:
        """Read one deployment; None when there is none of that name."""
        if not is_deployment_id(deployment_id):
            return None
        path = self.path(deployment_id)
        if not os.path.isdir(path) or os.path.islink(path):
            return None
        origin, problem = self._read_origin(deployment_id)
        return StoredDeployment(deployment_id, path, origin, problem, self._read_cached_update(path))

    def get(self, deployment_id: str) -> StoredDeployment:
        """Read one deployment.

        Raises:
            DeploymentError: there is none of that name.
        """
        found = self.find(deployment_id)
        if found is None:
            raise DeploymentError(f"there is no deployment '{deployment_id}' in '{self.directory}'")
        return found

    def path(self, deployment_id: str) -> str:
        """Return the directory of a deployment, which need not exist.

        Raises:
            DeploymentError: that is no name of a deployment.
        """
        if not is_deployment_id(deployment_id):
            raise DeploymentError(f"'{deployment_id[:140]}' is no name of a deployment")
        return os.path.join(self.directory, deployment_id)

    def _read_origin(self, deployment_id: str) -> tuple[Origin | None, str | None]:
        path = os.path.join(self.path(deployment_id), f"{deployment_id}.origin")
        try:
            return Origin.parse(_read_text(path)), None
        except FileNotFoundError:
            return None, f"deployment '{deployment_id}' has no origin file"
        except OSError as exc:
            return None, f"the origin file of deployment '{deployment_id}' cannot be read: {exc.strerror}"
        except (DeploymentError, UnicodeDecodeError) as exc:
            return None, f"the origin file of deployment '{deployment_id}' is damaged: {exc}"

    def _read_cached_update(self, path: str) -> CachedUpdate | None:
        try:
            return CachedUpdate.from_json(_read_text(os.path.join(path, _CACHED_UPDATE)))
        except (OSError, UnicodeDecodeError, DeploymentError):
            return None

    def create(self, deployment_id: str, origin: Origin, *, fill: Callable[[str], None]) -> StoredDeployment:
        """Make a deployment's directory, replacing an unfinished or older one of the same name.

        1. ``fill(directory)`` writes ``etc`` into a temporary directory   2. var link, origin   3. sync   4. rename
        A crash before 4 leaves a ``.tmp-`` directory that :meth:`remove_leftovers` takes away.

        Raises:
            SpaceError, PrivilegeError: it cannot be written.
        """
        final = self.path(deployment_id)
        temporary = os.path.join(self.directory, files.temporary_name())
        with files.translated(f"could not create the deployment '{deployment_id}'"):
            os.makedirs(os.path.join(self.sysroot, SHARED_VAR), exist_ok=True)
            os.makedirs(self.directory, exist_ok=True)
            try:
                os.mkdir(temporary, 0o755)
                os.mkdir(os.path.join(temporary, "etc"), 0o755)
                fill(temporary)
                os.symlink(VAR_TARGET, os.path.join(temporary, "var"))
                files.replace_durably(
                    os.path.join(temporary, f"{deployment_id}.origin"), origin.format().encode(), mode=0o644
                )
                files.sync_filesystem(temporary)
                if os.path.lexists(final):
                    files.exchange(temporary, final)
                else:
                    os.rename(temporary, final)
                files.fsync_directory(self.directory)
            finally:
                files.remove_tree(temporary)
        return self.get(deployment_id)

    def write_origin(self, deployment_id: str, origin: Origin) -> None:
        """Replace the origin file of a deployment durably."""
        with files.translated(f"could not write the origin of deployment '{deployment_id}'"):
            path = os.path.join(self.path(deployment_id), f"{deployment_id}.origin")
            files.replace_durably(path, origin.format().encode(), mode=0o644)

    def write_cached_update(self, deployment_id: str, update: CachedUpdate | None) -> None:
        """Remember, or forget, what the last check for updates saw."""
        path = os.path.join(self.path(deployment_id), _CACHED_UPDATE)
        with files.translated("could not remember the result of the check"):
            if update is not None:
                files.replace_durably(path, update.to_json().encode(), mode=0o644)
            elif os.path.lexists(path):
                os.unlink(path)

    def remove(self, deployment_id: str) -> None:
        """Remove a deployment's directory: first one rename out of sight, then the files."""
        path = self.path(deployment_id)
        trash = os.path.join(self.directory, files.temporary_name())
        with files.translated(f"could not remove the deployment '{deployment_id}'"):
            try:
                files.rename_durably(path, trash)
            except FileNotFoundError:
                return
            files.remove_tree(trash)

    def remove_leftovers(self) -> None:
        """Remove what an interrupted :meth:`create` or :meth:`remove` left."""
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return
        with files.translated(f"could not clean '{self.directory}'"):
            for name in names:
                if name.startswith(files.TEMPORARY_PREFIX):
                    files.remove_tree(os.path.join(self.directory, name))


def _read_text(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        return file.read(_MAX_TEXT).decode()
