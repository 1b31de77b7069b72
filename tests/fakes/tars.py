"""Builds tar archives block by block, right or wrong in any way one likes."""

from __future__ import annotations

END = bytes(1024)


def header(
    name: bytes = b"file",
    *,
    kind: bytes = b"0",
    size: int | bytes = 0,
    mode: int | bytes = 0o644,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    mtime: int | bytes = 0,
    linkname: bytes = b"",
    magic: bytes = b"ustar\x0000",
    major: int | bytes = 0,
    minor: int | bytes = 0,
    prefix: bytes = b"",
    tail: bytes = bytes(12),
    checksum: bytes | None = None,
) -> bytes:
    """One header block; bytes for a number are written as they are."""

    def number(value: int | bytes, width: int) -> bytes:
        return value.ljust(width, b"\0") if isinstance(value, bytes) else b"%0*o\0" % (width - 1, value)

    block = b"".join(
        [
            name.ljust(100, b"\0"),
            number(mode, 8),
            number(uid, 8),
            number(gid, 8),
            number(size, 12),
            number(mtime, 12),
            b" " * 8,
            kind,
            linkname.ljust(100, b"\0"),
            magic,
            bytes(64),
            number(major, 8),
            number(minor, 8),
            prefix.ljust(155, b"\0"),
            tail,
        ]
    )
    assert len(block) == 512
    return seal(block, checksum)


def seal(block: bytes, checksum: bytes | None = None) -> bytes:
    """Write the checksum into a header block."""
    blank = block[:148] + b" " * 8 + block[156:]
    if checksum is None:
        checksum = b"%06o\0 " % sum(blank)
    return blank[:148] + checksum + blank[156:]


def pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def member(name: bytes = b"file", data: bytes = b"", **fields: bytes | int) -> bytes:
    """A header and its body."""
    return header(name, **{"size": len(data), **fields}) + pad(data)  # type: ignore[arg-type]


def record(key: bytes, value: bytes) -> bytes:
    """One PAX record."""
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 1
    while len(body) + len(str(length)) != length:
        length = len(body) + len(str(length))
    return str(length).encode() + body


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    """A PAX header with its records."""
    return member(b"pax", b"".join(record(key, value) for key, value in records), kind=kind)


def long_name(name: bytes, kind: bytes = b"L") -> bytes:
    """A GNU long name (``L``) or long link target (``K``)."""
    return member(b"././@LongLink", name + b"\0", kind=kind, magic=b"ustar  \0")


def old_sparse(name: bytes, pieces: list[tuple[int, int]], data: bytes, real_size: int | bytes) -> bytes:
    """An old GNU sparse entry with as many extension blocks as it needs."""

    def pairs(count: int) -> bytes:
        text = b"".join(b"%011o\0%011o\0" % piece for piece in pieces[:count])
        del pieces[:count]
        return text.ljust(24 * count, b"\0")

    pieces = list(pieces)
    block = bytearray(header(name, kind=b"S", size=len(data), magic=b"ustar  \0"))
    block[386:482] = pairs(4)
    block[482] = bool(pieces)
    block[483:495] = real_size if isinstance(real_size, bytes) else b"%011o\0" % real_size
    extensions = b""
    while pieces:
        extensions += pairs(21) + bytes([bool(pieces)]) + bytes(7)
    return seal(bytes(block)) + extensions + pad(data)
