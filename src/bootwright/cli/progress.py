"""Progress as people and programs see it: bars on a terminal, a line a second elsewhere, JSON lines on a descriptor.

The JSON lines are bootc's protocol 0.1.0: one object a line, ``Start`` first, at most five lossy events a second,
begin and end never lost. A reader that goes away ends the stream, not the work.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bootwright.errors import UsageError
from bootwright.progress import SILENT, Progress, Task
from bootwright.units import format_size

if TYPE_CHECKING:
    import rich.progress

__all__ = ["open_progress"]

PROTOCOL_VERSION = "0.1.0"
_MACHINE_INTERVAL_S = 0.2
_LINE_INTERVAL_S = 1.0


class _JsonLines:
    """Writes bootc's progress protocol to a descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._last = 0.0
        self._started = False

    def begin(self, task: Task) -> None:
        self._write(task)

    def update(self, task: Task) -> None:
        if time.monotonic() - self._last >= _MACHINE_INTERVAL_S:
            self._write(task)

    def end(self, task: Task) -> None:
        self._write(task)

    def note(self, message: str) -> None:
        """Notes are for people."""

    def _write(self, task: Task) -> None:
        if not self._started:
            self._started = True
            self._send({"type": "Start", "version": PROTOCOL_VERSION})
        self._last = time.monotonic()
        self._send(_event(task))

    def _send(self, event: dict[str, Any]) -> None:
        if self._fd < 0:
            return
        line = json.dumps(event, sort_keys=True, separators=(",", ":")) + "\n"
        try:
            data = line.encode()
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as exc:
            print(f"Failed to write to jsonl: {exc.strerror}", file=sys.stderr)
            self._fd = -1


def _event(task: Task) -> dict[str, Any]:
    event: dict[str, Any] = {
        "task": task.task,
        "description": task.description,
        "id": task.id,
        "steps": task.steps_done,
        "stepsCached": task.steps_cached,
        "stepsTotal": task.steps_total,
    }
    names = [{"subtask": sub.subtask, "description": sub.description, "id": sub.id} for sub in task.subtasks]
    if task.unit == "steps":
        done = [{**name, "completed": sub.done >= 1} for name, sub in zip(names, task.subtasks, strict=True)]
        return {"type": "ProgressSteps", **event, "subtasks": done}
    counts = [
        {**name, "bytes": sub.done, "bytesCached": sub.cached, "bytesTotal": sub.total}
        for name, sub in zip(names, task.subtasks, strict=True)
    ]
    return {
        "type": "ProgressBytes",
        **event,
        "bytes": task.bytes_done,
        "bytesCached": task.bytes_cached,
        "bytesTotal": task.bytes_total,
        "subtasks": counts,
    }


class _Lines:
    """One line a second on stderr, for logs and pipes."""

    def __init__(self) -> None:
        self._last = 0.0
        self._shown = ""

    def begin(self, task: Task) -> None:
        self._last = time.monotonic()
        print(task.description, file=sys.stderr, flush=True)

    def update(self, task: Task) -> None:
        if time.monotonic() - self._last >= _LINE_INTERVAL_S:
            self._print(task)

    def end(self, task: Task) -> None:
        self._print(task)

    def note(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    def _print(self, task: Task) -> None:
        self._last = time.monotonic()
        line = f"  {_summary(task)}"
        if line != self._shown:
            self._shown = line
            print(line, file=sys.stderr, flush=True)


def _summary(task: Task) -> str:
    if task.unit == "steps":
        running = next((sub.description for sub in task.subtasks if sub.done < 1), "done")
        return f"{task.steps_done}/{task.steps_total} {running}"
    text = f"{format_size(task.bytes_done)} of {format_size(task.bytes_total)}"
    if task.steps_total:
        text += f", {task.steps_done}/{task.steps_total} layers"
    if task.bytes_cached:
        text += f", {format_size(task.bytes_cached)} already here"
    return text


class _Bars:
    """Bars on a terminal, one for each running part and one for the whole; drawn by rich on stderr."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TransferSpeedColumn,
        )
        from rich.progress import (
            Progress as RichProgress,
        )

        self._console = Console(stderr=True)
        self._bytes = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=self._console,
        )
        self._steps = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            console=self._console,
        )
        self._rows: dict[str, rich.progress.TaskID] = {}

    def begin(self, task: Task) -> None:
        self._rows = {"": self._drawn(task).add_task(task.description, total=_total(task) or None)}
        self._drawn(task).start()
        self.update(task)

    def update(self, task: Task) -> None:
        drawn = self._drawn(task)
        drawn.update(self._rows[""], completed=_done(task), total=_total(task) or None)
        for sub in task.subtasks:
            running = 0 < sub.done < sub.total and task.unit == "bytes"
            row = self._rows.get(sub.id)
            if running and row is None:
                self._rows[sub.id] = drawn.add_task(f"  {sub.description}", total=sub.total, completed=sub.done)
            elif running and row is not None:
                drawn.update(row, completed=sub.done)
            elif row is not None:
                drawn.remove_task(self._rows.pop(sub.id))

    def end(self, task: Task) -> None:
        self.update(task)
        self._drawn(task).stop()

    def note(self, message: str) -> None:
        self._console.print(message, markup=False, highlight=False)

    def stop(self) -> None:
        """Give the terminal back, also after a failure in the middle."""
        self._bytes.stop()
        self._steps.stop()

    def _drawn(self, task: Task) -> rich.progress.Progress:
        return self._bytes if task.unit == "bytes" else self._steps


def _total(task: Task) -> int:
    return task.bytes_total if task.unit == "bytes" else task.steps_total


def _done(task: Task) -> int:
    return task.bytes_done if task.unit == "bytes" else task.steps_done


@contextlib.contextmanager
def open_progress(*, quiet: bool = False, fd: int | None = None) -> Iterator[Progress]:
    """Choose how progress is shown: JSON lines on ``fd``, nothing when quiet, bars on a terminal, else lines.

    Raises:
        UsageError: ``fd`` is one of the standard three or no pipe.
    """
    if fd is not None:
        try:
            is_pipe = fd > 2 and stat.S_ISFIFO(os.fstat(fd).st_mode)
        except OSError:
            is_pipe = False
        if not is_pipe:
            raise UsageError(
                f"--progress-fd {fd} is not an open pipe",
                hint="use a descriptor above 2: --progress-fd 3 3>&1 | ...",
            )
        yield _JsonLines(fd)
    elif quiet:
        yield SILENT
    elif sys.stderr.isatty():
        bars = _Bars()
        try:
            yield bars
        finally:
            bars.stop()
    else:
        yield _Lines()
