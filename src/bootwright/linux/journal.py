"""Messages for the journal, over its native socket (systemd, "Native Journal Protocol").

A machine without a journal loses the message and nothing else: the journal tells a story, it carries no state.
"""

from __future__ import annotations

import contextlib
import re
import struct

__all__ = ["send"]

SOCKET = "/run/systemd/journal/socket"
_FIELD = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


def send(message: str, *, message_id: str, priority: int = 6, path: str = SOCKET, **fields: str) -> None:
    """Send one message.

    Args:
        message: a sentence for people.
        message_id: 32 hex digits that name this kind of event for ever.
        priority: syslog's: 3 error, 4 warning, 5 notice, 6 information.
        path: the journal's socket.
        **fields: further fields, upper case.
    """
    import socket  # here, because everything that could log imports this module, and hardly anything logs

    values = {
        "MESSAGE": message,
        "MESSAGE_ID": message_id,
        "PRIORITY": str(priority),
        "SYSLOG_IDENTIFIER": "bootwright",
        **fields,
    }
    data = b"".join(_format(name, value) for name, value in values.items() if _FIELD.fullmatch(name))
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)
        sender.sendto(data, path)


def _format(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "surrogateescape")
    if b"\n" not in data:
        return name.encode() + b"=" + data + b"\n"
    return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
