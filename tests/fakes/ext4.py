"""Reads an ext4 filesystem in a disk file through debugfs, block by block, and checks fs-verity the kernel's way.

Nothing here is shared with the code that writes: extents are debugfs's, hashes are computed anew.
"""

from __future__ import annotations

import hashlib
import re
import struct
from pathlib import Path

from bootwright.linux.process import run

BLOCK = 4096
VERITY_FLAG = 0x100000
_EXTENT = re.compile(r"^\s*\d+/\s*\d+\s+\d+/\s*\d+\s+(\d+)\s*-\s*(\d+)\s+(\d+)(?:\s*-\s*\d+)?\s+(\d+)", re.MULTILINE)


class Ext4Reader:
    def __init__(self, disk: Path, offset: int) -> None:
        self.disk = disk
        self.offset = offset

    def debugfs(self, *commands: str) -> str:
        script = "".join(f"{command}\n" for command in commands).encode()
        argv = ["debugfs", "-f", "/dev/stdin", f"{self.disk}?offset={self.offset}"]
        return run(argv, purpose="read", stdin=script).stdout.decode("utf-8", "replace")

    def stat(self, path: str) -> dict[str, str]:
        text = self.debugfs(f'stat "{path}"')
        # The first of each: "Fragment" has a size, too.
        fields = dict(reversed(re.findall(r"(Inode|Type|Mode|Flags|User|Group|Size|Links): +(\S+)", text)))
        fields["text"] = text
        return fields

    def names(self, path: str) -> list[str]:
        return [line.split("/")[5] for line in self.debugfs(f'ls -p "{path}"').splitlines() if line.startswith("/")][2:]

    def blocks(self, path: str) -> dict[int, bytes]:
        """Every mapped block of a file by its logical number, also those behind the end of the file."""
        found: dict[int, bytes] = {}
        with self.disk.open("rb") as file:
            for first, last, physical, length in _EXTENT.findall(self.debugfs(f'ex -l "{path}"')):
                assert int(last) - int(first) + 1 == int(length)
                file.seek(self.offset + int(physical) * BLOCK)
                for number in range(int(length)):
                    found[int(first) + number] = file.read(BLOCK)
        return found

    def verify(self, path: str, hash_name: str = "sha256") -> str:
        """Check a file as the kernel does when it opens and reads it; returns the digest that it would measure."""
        fields = self.stat(path)
        assert int(fields["Flags"], 16) & VERITY_FLAG, f"{path} has no fs-verity"
        size = int(fields["Size"])
        blocks = self.blocks(path)
        # The length of the descriptor is at the very end of the last extent (fs/ext4/verity.c).
        (length,) = struct.unpack("<I", blocks[max(blocks)][-4:])
        assert length == 256
        descriptor = blocks[max(blocks)][:length]
        version, algorithm, log_block, salt_size, signature_size, data_size = struct.unpack_from("<BBBBIQ", descriptor)
        assert (version, algorithm, log_block) == (1, {"sha256": 1, "sha512": 2}[hash_name], 12)
        assert (salt_size, signature_size, data_size) == (0, 0, size)
        root = descriptor[16 : 16 + hashlib.new(hash_name).digest_size]
        self._verify_tree(blocks, size, root, hash_name)
        return hashlib.new(hash_name, descriptor).hexdigest()

    def _verify_tree(self, blocks: dict[int, bytes], size: int, root: bytes, hash_name: str) -> None:
        digest_size = len(root)
        per_block = BLOCK // digest_size
        count = -(-size // BLOCK)
        if count == 0:
            assert root == bytes(digest_size)
            return
        levels: list[int] = []
        blocks_of_level = count
        while blocks_of_level > 1:
            blocks_of_level = -(-blocks_of_level // per_block)
            levels.append(blocks_of_level)
        # On disk the levels lie root first, behind the data at a multiple of 64 KiB.
        at = -(-size // 65536) * 65536 // BLOCK
        starts: list[int] = []
        for length in reversed(levels):
            starts.insert(0, at)
            at += length
        hashed = [blocks.get(number, bytes(BLOCK)) for number in range(count)]
        for level, length in enumerate(levels):
            stored = b"".join(blocks[starts[level] + number] for number in range(length))
            for number, block in enumerate(hashed):
                expected = stored[number * digest_size : (number + 1) * digest_size]
                assert hashlib.new(hash_name, block).digest() == expected, f"level {level}, block {number}"
            hashed = [stored[number * BLOCK : (number + 1) * BLOCK] for number in range(length)]
        assert hashlib.new(hash_name, hashed[0]).digest() == root
