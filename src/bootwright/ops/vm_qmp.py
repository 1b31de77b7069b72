"""QEMU's control socket: commands and answers as JSON lines (QEMU Machine Protocol)."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from typing import Any

from bootwright.errors import ToolError

__all__ = ["Qmp"]


class Qmp:
    """A connection to the control socket.

    Args:
        path: of the UNIX socket.
        timeout_s: for the connection and for every answer.

    Raises:
        ToolError: nobody answers.
    """

    def __init__(self, path: str, *, timeout_s: float = 10.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(timeout_s)
        deadline = time.monotonic() + timeout_s
        try:
            while True:
                try:
                    self._socket.connect(path)
                    break
                except (FileNotFoundError, ConnectionRefusedError) as exc:
                    if time.monotonic() > deadline:
                        raise ToolError("QEMU does not answer on its control socket") from exc
                    time.sleep(0.02)
            self._file = self._socket.makefile("rb")
            self._read()
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
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
        line = self._file.readline()
        if not line:
            raise ToolError("QEMU has closed its control socket")
        message = json.loads(line)
        return message if isinstance(message, dict) else {}

    def close(self) -> None:
        """Close the connection; calling it twice is fine."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._socket.close()
