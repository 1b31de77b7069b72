"""What long work tells about itself. Pure: states only; the command line draws or prints them.

A piece of work owns one :class:`Task`, changes its numbers and calls :meth:`Progress.update`. The fields are those of
bootc's progress protocol (``--progress-fd``, version 0.1.0), so that a renderer needs nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

__all__ = ["SILENT", "Progress", "SubTask", "Task"]


@dataclass(slots=True, kw_only=True)
class SubTask:
    """One part of a task, e.g. a layer. It is complete when ``done`` equals ``total``.

    ``done``, ``cached`` and ``total`` are bytes in a bytes task, 0 or 1 in a steps task.
    """

    subtask: str
    description: str
    id: str
    done: int = 0
    cached: int = 0
    total: int = 0


@dataclass(slots=True, kw_only=True)
class Task:
    """One phase of a command: ``pulling``, ``importing``, ``staging``, ``installing``."""

    task: str
    description: str
    id: str
    unit: Literal["bytes", "steps"]
    bytes_done: int = 0
    bytes_cached: int = 0
    bytes_total: int = 0
    steps_done: int = 0
    steps_cached: int = 0
    steps_total: int = 0
    subtasks: list[SubTask] = field(default_factory=list)


class Progress(Protocol):
    """Receives the state of the running task."""

    def begin(self, task: Task) -> None:
        """A task starts."""

    def update(self, task: Task) -> None:
        """Some numbers changed; may be dropped by the receiver."""

    def end(self, task: Task) -> None:
        """The task is over; never dropped."""

    def note(self, message: str) -> None:
        """A sentence for people that is not a number (``layer already present``)."""


class _Silent:
    """Shows nothing."""

    def begin(self, task: Task) -> None:
        """Show nothing."""

    def update(self, task: Task) -> None:
        """Show nothing."""

    def end(self, task: Task) -> None:
        """Show nothing."""

    def note(self, message: str) -> None:
        """Show nothing."""


SILENT: Progress = _Silent()
