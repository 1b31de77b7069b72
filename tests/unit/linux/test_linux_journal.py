"""The journal's native protocol, received on a real socket."""

import socket
import struct
from pathlib import Path

from bootwright.linux import journal


def test_fields_arrive(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        journal.send("all\nwell", message_id="ab" * 16, path=path, BOOTC_IMAGE="x", bad_name="y")
        data = receiver.recv(65536)
    assert data == (
        b"MESSAGE\n" + struct.pack("<Q", 8) + b"all\nwell\n"
        b"MESSAGE_ID=" + b"ab" * 16 + b"\nPRIORITY=6\nSYSLOG_IDENTIFIER=bootwright\nBOOTC_IMAGE=x\n"
    )


def test_a_machine_without_a_journal_loses_the_message_only(tmp_path: Path) -> None:
    journal.send("lost", message_id="ab" * 16, path=str(tmp_path / "nothing"))
