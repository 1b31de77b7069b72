"""The exception tree. Every failure a person can meet is one of these.

::

    BootwrightError               exit 1    anything that has no class of its own
    ├── UsageError                     2    the command line makes no sense
    ├── ConfigError                    3    a configuration file is wrong
    ├── NetworkError                   4    a registry or the way to it failed
    │   ├── AuthenticationError       11    the registry wants (other) credentials
    │   └── NotFoundError             12    no such image, tag or blob there
    ├── VerificationError              5    bytes are not what their digest or signature says
    ├── RepositoryError                6    the composefs repository is missing or damaged
    ├── DeploymentError                7    staging, merging or finalising failed
    ├── BootError                      8    boot loader, ESP or boot entries
    ├── PrivilegeError                 9    needs root or a capability
    ├── BusyError                     10    another command holds the lock
    ├── ImageError                    13    the image is malformed, foreign or cannot boot
    ├── SpaceError                    14    not enough room on a disk or partition
    └── ToolError                     15    a program we drive is missing or failed

``message`` says what failed on which object: lower case, no full stop, values in quotes. ``hint`` is what to
type or change next. Only the command line turns these into text and an exit status; a bug (any other
exception) exits 70, an interrupt 130. ``docs/exit-codes.md`` is checked against this module by a test.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AuthenticationError",
    "BootError",
    "BootwrightError",
    "BusyError",
    "ConfigError",
    "DeploymentError",
    "ImageError",
    "NetworkError",
    "NotFoundError",
    "PrivilegeError",
    "RepositoryError",
    "SpaceError",
    "ToolError",
    "UsageError",
    "VerificationError",
]


class BootwrightError(Exception):
    """Base of everything we raise on purpose.

    Args:
        message: what failed, on which object.
        hint: the next command to type or thing to change.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        """Cross a process boundary whole: workers raise these and the parent shows them."""
        return _rebuild, (type(self), self.message, self.hint)


def _rebuild(kind: type[BootwrightError], message: str, hint: str | None) -> BootwrightError:
    return kind(message, hint=hint)


class UsageError(BootwrightError):
    """The command line makes no sense."""

    exit_code = 2


class ConfigError(BootwrightError):
    """A configuration file is wrong."""

    exit_code = 3


class NetworkError(BootwrightError):
    """A registry, or the way to it, failed."""

    exit_code = 4


class AuthenticationError(NetworkError):
    """The registry wants credentials, or other ones."""

    exit_code = 11


class NotFoundError(NetworkError):
    """The registry or layout has no such image, tag or blob."""

    exit_code = 12


class VerificationError(BootwrightError):
    """Bytes are not what their digest or signature says they are."""

    exit_code = 5


class RepositoryError(BootwrightError):
    """The composefs repository is missing, of a foreign version or damaged."""

    exit_code = 6


class DeploymentError(BootwrightError):
    """Staging, merging, finalising or finding a deployment failed."""

    exit_code = 7


class BootError(BootwrightError):
    """The boot loader, the ESP or the boot entries are not usable."""

    exit_code = 8


class PrivilegeError(BootwrightError):
    """The operation needs root or a capability that this process lacks."""

    exit_code = 9


class BusyError(BootwrightError):
    """Another command holds the lock."""

    exit_code = 10


class ImageError(BootwrightError):
    """The image is malformed, made for another architecture, or cannot boot."""

    exit_code = 13


class SpaceError(BootwrightError):
    """Not enough room on a filesystem, partition or disk."""

    exit_code = 14


class ToolError(BootwrightError):
    """A program that we drive is missing or failed."""

    exit_code = 15
