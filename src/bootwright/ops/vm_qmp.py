"""QEMU's control socket: commands and answers as JSON lines (QEMU Machine Protocol)."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable
from typing import Any, BinaryIO

from bootwright.errors import ToolError

__all__ = ["Qmp"]


class Qmp:
    """A connection to the control socket.

    Args:
        path: of the UNIX socket.
        is_alive: tells whether QEMU still runs, so that nobody waits for one that does not.
        timeout_s: for the connection and for every answer.

    Raises:
        ToolError: nobody answers.
    """

    def __init__(self, path: str, *, is_alive: Callable[[], bool], timeout_s: float = 30.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._file: BinaryIO | None = None
        self._socket.settimeout(timeout_s)
        deadline = time.monotonic() + timeout_s
        try:
            while True:
                try:
                    self._socket.connect(path)
                    break
                except (FileNotFoundError, ConnectionRefusedError) as exc:
                    if not is_alive() or time.monotonic() > deadline:
                        raise ToolError("QEMU does not answer on its control socket") from exc
                    time.sleep(0.02)
            self._file = self._socket.makefile("rb")
            self._read()
            self.execute("qmp_capabilities")
        except BaseException as exc:
            self.close()
            if isinstance(exc, OSError):
                raise ToolError(f"QEMU does not answer on its control socket: {exc}") from exc
            raise

    def execute(self, command: str, **arguments: object) -> Any:
        """Run a command and return its answer; events that come before it are dropped.

        Raises:
            ToolError: QEMU refuses, or is gone.
        """
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            while True:
                message = self._read()
                if "return" in message:
                    return message["return"]
                if "error" in message:
                    raise ToolError(f"QEMU refuses '{command}': {message['error'].get('desc', '')}")
        except OSError as exc:
            raise ToolError(f"QEMU does not answer to '{command}': {exc}") from exc

    def _read(self) -> dict[str, Any]:
        line = self._file.readline() if self._file is not None else b""
        if not line:
            raise ToolError("QEMU has closed its control socket")
        message = json.loads(line)
        return message if isinstance(message, dict) else {}

    def close(self) -> None:
        """Close the connection; calling it twice is fine."""
        # The file first: a socket stays open while there is a file over it.
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
        self._socket.close()
