"""Signals as commands with something to take back see them."""

from __future__ import annotations

import signal
from types import FrameType

__all__ = ["interrupt_on_termination"]


def interrupt_on_termination() -> None:
    """Let SIGTERM end the work as Ctrl-C does, so that no temporary file or virtual machine stays behind."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
