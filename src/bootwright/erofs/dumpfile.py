r"""The composefs dump: a tree as text, one line an entry. Pure.

::

    PATH SIZE MODE NLINK UID GID RDEV SEC.NSEC PAYLOAD CONTENT DIGEST KEY=VALUE...
    /usr/bin/env 48536 100755 1 0 0 0 1700000000.0 5a/5a5a... - 5a5a...  security.selinux=...
    /usr/bin/env2 0 @100755 - - - - - /usr/bin/env - -

Fields are separated by one space and escaped as :mod:`dumptext` says; ``-`` is "not set". The first line is the root;
parents come before children, siblings in any order; a hard link (``@``) may precede its target. Numbers are plain
digits in the range of what an image stores. This parser is strict: what the composefs tools accept by oversight
(digests that are no hex, links to directories, NUL bytes, signs and blanks in numbers) is an error with line and field.

Source: composefs-dump(5).
"""

from __future__ import annotations

import binascii
import stat
from collections.abc import Collection, Iterator
from typing import BinaryIO

from bootwright.erofs import disk
from bootwright.erofs.dumptext import EscapeError, escape, escape_xattr, unescape
from bootwright.erofs.tree import HardLink, Inode, Node, resolve, walk
from bootwright.errors import ImageError

__all__ = ["parse", "write"]

_MAX_XATTR_TEXT = 65535
_MAX_CACHED = 8192
_LINK = 1  # kind of a hard-link line; no value of S_IFMT
_U64 = (1 << 64) - 1


class _FieldError(ValueError):
    """A field is wrong; the line number is added by :func:`parse`."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason


def _show(text: bytes) -> str:
    shown = escape(text).decode("ascii")
    return f"'{shown}'" if len(shown) <= 80 else f"'{shown[:80]}...'"


def _number(text: bytes, field: str, limit: int) -> int:
    if not text.isdigit() or len(text) > 20 or int(text) > limit:
        raise _FieldError(field, f"{_show(text)} is not a number from 0 to {limit}")
    return int(text)


_Numbers = tuple[int, int, int, int, int, int]  # kind, mode, nlink, uid, gid, rdev


def _parse_numbers(mode_text: bytes, nlink: bytes, uid: bytes, gid: bytes, rdev: bytes) -> _Numbers:
    is_link = mode_text.startswith(b"@")
    digits = mode_text[1:] if is_link else mode_text
    if not digits.isdigit() or len(digits) > 11 or digits.strip(b"01234567"):
        raise _FieldError("mode", f"{_show(mode_text)} is not octal")
    mode = int(digits, 8)
    if mode > 0xFFFF or stat.S_IFMT(mode) not in disk.FILE_TYPES:
        raise _FieldError("mode", f"{_show(mode_text)} has no valid file type")
    if is_link:
        if stat.S_ISDIR(mode):
            raise _FieldError("mode", "a directory cannot be a hard link")
        return _LINK, mode, 0, 0, 0, 0
    return (
        stat.S_IFMT(mode),
        mode,
        _number(nlink, "nlink", 0xFFFFFFFF),
        _number(uid, "uid", 0xFFFFFFFF),
        _number(gid, "gid", 0xFFFFFFFF),
        _number(rdev, "rdev", 0xFFFFFFFF),
    )


def _parse_mtime(text: bytes) -> tuple[int, int]:
    seconds, dot, nanoseconds = text.partition(b".")
    if not dot:
        raise _FieldError("mtime", f"{_show(text)} is not SEC.NSEC")
    if seconds.startswith(b"-"):
        return -_number(seconds[1:], "mtime", 1 << 63), _number(nanoseconds, "mtime", 0xFFFFFFFF)
    return _number(seconds, "mtime", (1 << 63) - 1), _number(nanoseconds, "mtime", 0xFFFFFFFF)


def _unescape_field(text: bytes, field: str) -> bytes:
    try:
        return unescape(text)
    except EscapeError as exc:
        raise _FieldError(field, str(exc)) from exc


def _unescape_string(text: bytes, field: str) -> bytes:
    value = _unescape_field(text, field)
    if b"\0" in value:
        raise _FieldError(field, "a NUL byte cannot be stored here")
    return value


def _parse_digest(text: bytes) -> bytes:
    try:
        digest = binascii.unhexlify(_unescape_string(text, "digest"))
    except binascii.Error:
        digest = b""
    if len(digest) not in (32, 64):
        raise _FieldError("digest", f"{_show(text)} is not 64 or 128 hex digits")
    return digest


def _parse_xattrs(text: bytes) -> dict[bytes, bytes]:
    if len(text) > _MAX_XATTR_TEXT:
        raise _FieldError("xattr", f"{len(text)} bytes of text, at most {_MAX_XATTR_TEXT} are allowed")
    xattrs: dict[bytes, bytes] = {}
    for field in text.removesuffix(b" ").split(b" "):
        key_text, equals, value_text = field.partition(b"=")
        if not equals:
            raise _FieldError("xattr", f"{_show(field)} has no '='")
        key = _unescape_string(key_text, "xattr")
        if not 0 < len(key) <= disk.MAX_NAME:
            raise _FieldError("xattr", f"a key has 1 to 255 bytes, {_show(key)} has {len(key)}")
        value = _unescape_field(value_text, "xattr")
        if len(value) > 0xFFFF:
            raise _FieldError("xattr", f"the value of {_show(key)} is longer than 65535 bytes")
        xattrs[key] = value
    if 12 + sum(disk.xattr_cost(key, value) for key, value in xattrs.items()) > disk.MAX_XATTR_TOTAL:
        raise _FieldError("xattr", f"together larger than {disk.MAX_XATTR_TOTAL} bytes")
    return xattrs


def _canonical(path: bytes) -> bytes:
    """Write a path with one leading slash and single separators; a trailing slash stays."""
    names = [name for name in path.split(b"/") if name]
    canonical = b"".join(b"/" + name for name in names)
    return canonical + b"/" if path.endswith(b"/") else canonical


def _find(directories: dict[bytes, Inode], path: bytes) -> Node | None:
    canonical = _canonical(path)
    parent, _, name = canonical.rpartition(b"/")
    if not name:
        return directories.get(parent)
    directory = directories.get(parent)
    return None if directory is None or directory.children is None else directory.children.get(name)


def _parse_payload(text: bytes) -> bytes | None:
    if text == b"-":
        return None
    payload = _unescape_string(text, "payload") if b"\\" in text else text
    if len(payload) > disk.MAX_PAYLOAD:
        raise _FieldError("payload", f"longer than {disk.MAX_PAYLOAD} bytes")
    return payload


def _parse_content(text: bytes, size: int) -> bytes:
    content = _unescape_field(text, "content")
    if len(content) != size:
        raise _FieldError("content", f"has {len(content)} bytes but the size is {size}")
    if size > disk.MAX_CONTENT:
        raise _FieldError("content", f"longer than {disk.MAX_CONTENT} bytes")
    return content


def _check_file(size: int, payload: bytes | None) -> None:
    if size > disk.MAX_EXTERNAL:
        raise _FieldError("size", f"{size} is more than {disk.MAX_EXTERNAL} bytes")
    if payload and b".." in payload.split(b"/"):
        raise _FieldError("payload", f"{_show(payload)} leaves the object directory")


class _Tree:
    """A tree that grows line by line."""

    def __init__(self) -> None:
        self.number = 0
        self.directories: dict[bytes, Inode] = {}  # by canonical path; the root is b""
        self.links: dict[HardLink, tuple[int, bytes]] = {}  # line and target path of links not yet resolved

    def add_lines(self, lines: list[bytes]) -> None:
        """Add every line.

        The loop is long and calls nothing on the way of an ordinary line: it runs 60,000 times for an OS image. Texts
        that come again and again are parsed once and remembered.
        """
        directories = self.directories
        all_numbers: dict[tuple[bytes, bytes, bytes, bytes, bytes], _Numbers] = {}
        all_mtimes: dict[bytes, tuple[int, int]] = {}
        all_xattrs: dict[bytes, dict[bytes, bytes]] = {b"": {}}
        for self.number, line in enumerate(lines, 1):
            fields = line.split(b" ", 11)
            if len(fields) != 12:
                if not line:
                    raise _FieldError("path", "the line is empty")
                fields += [b""] * (12 - len(fields))
            path, size_text, mode_text, nlink, uid, gid, rdev, mtime_text, payload_text, content_text, digest, more = (
                fields
            )

            key = (mode_text, nlink, uid, gid, rdev)
            numbers = all_numbers.get(key)
            if numbers is None:
                numbers = all_numbers[key] = _parse_numbers(*key)
            kind, mode, nlink_count, uid_number, gid_number, device = numbers

            if b"\\" in path:
                path = _unescape_string(path, "path")
            parent_path, _, name = path.rpartition(b"/")
            directory = directories.get(parent_path)
            if directory is None or not name or path[0] != 0x2F:
                path, directory, name = self._find_parent(path)
            children = directory.children
            if children is None or name in children or name in {b".", b".."} or len(name) > disk.MAX_NAME:
                raise _name_error(path, name)

            payload = None if payload_text == b"-" else _parse_payload(payload_text)
            if kind == _LINK:
                link = children[name] = HardLink(directory)  # the target may come later
                self.links[link] = self.number, payload or b""
                continue

            size = int(size_text) if size_text.isdigit() and len(size_text) < 19 else _number(size_text, "size", _U64)
            mtime = all_mtimes.get(mtime_text)
            if mtime is None:
                if len(all_mtimes) > _MAX_CACHED:
                    all_mtimes.clear()
                mtime = all_mtimes[mtime_text] = _parse_mtime(mtime_text)
            xattrs = all_xattrs.get(more)
            if xattrs is None:
                if len(all_xattrs) > _MAX_CACHED:
                    all_xattrs.clear()
                xattrs = all_xattrs[more] = _parse_xattrs(more)
            content = None if content_text == b"-" else _parse_content(content_text, size)
            raw_digest = None if digest == b"-" or not digest else _parse_digest(digest)
            inode = children[name] = Inode(
                mode, nlink_count, uid_number, gid_number, device, size, mtime[0], mtime[1], xattrs.copy()
            )
            if kind == stat.S_IFREG:
                if content is not None:
                    inode.content = content or None
                elif size:
                    if size > disk.MAX_EXTERNAL or (payload and b".." in payload):
                        _check_file(size, payload)
                    if not digest:
                        raise _FieldError("digest", "is missing; write '-' when there is none")
                    inode.payload = payload or None
                    inode.digest = raw_digest
            elif kind == stat.S_IFDIR:
                directories[path] = inode
            elif kind == stat.S_IFLNK:
                if not payload:
                    raise _FieldError("payload", "a symlink has a target of at least one byte")
                inode.target = payload
                inode.size = len(payload)

    def _find_parent(self, path: bytes) -> tuple[bytes, Inode, bytes]:
        """Return canonical path, parent and name of the root, of a path written in another way, or of a wrong one."""
        directories = self.directories
        if self.number == 1:
            if path != b"/":
                raise _FieldError("path", f"the first line must be '/', not {_show(path)}")
            return b"", Inode(stat.S_IFDIR), b""
        if not directories:
            self.number = 1
            raise _FieldError("mode", "the root must be a directory")
        canonical = _canonical(path)
        parent, _, name = canonical.rpartition(b"/")
        if not name:
            reason = "is a second root" if path == b"/" else "has no name after its last slash"
            raise _FieldError("path", f"{_show(path)} {reason}")
        directory = directories.get(parent)
        if directory is None:
            reason = "is missing" if _find(directories, parent) is None else "is not a directory"
            raise _FieldError("path", f"the parent of {_show(path)} {reason}")
        return canonical, directory, name

    def get_root(self) -> Inode:
        """Return the root of the finished tree."""
        root = self.directories.get(b"")
        if root is None:
            self.number = 1
            raise _FieldError("mode", "the root must be a directory")
        return root

    def resolve_links(self) -> None:
        """Find the inode of every hard link; links to links are followed."""
        pending = self.links
        for first in list(pending):
            chain: dict[HardLink, None] = {}
            node: Node | None = first
            while isinstance(node, HardLink) and node in pending:
                if node in chain:
                    raise _FieldError("payload", "the hard link leads to itself")
                chain[node] = None
                self.number, path = pending[node]
                node = _find(self.directories, path)
                if node is None:
                    raise _FieldError("payload", f"the target {_show(path)} of the hard link is missing")
            inode = resolve(node) if node is not None else None
            if inode is None or inode.is_directory:
                raise _FieldError("payload", "a hard link cannot lead to a directory")
            for link in chain:
                link.target = inode
                del pending[link]


def _name_error(path: bytes, name: bytes) -> _FieldError:
    if name in (b".", b".."):
        return _FieldError("path", f"{_show(name)} is no name")
    if len(name) > disk.MAX_NAME:
        return _FieldError("path", f"the name {_show(name)} has {len(name)} bytes, at most {disk.MAX_NAME} are allowed")
    return _FieldError("path", f"{_show(path)} is there twice")


def parse(source: bytes | BinaryIO) -> Inode:
    """Parse a dump and return its root.

    Args:
        source: the text, or a binary file that is read to its end.

    Raises:
        ImageError: a line is wrong; the message names its number and the field.
    """
    data = source if isinstance(source, bytes) else source.read()
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise ImageError("the dump has no lines", hint="its first line must describe the directory '/'")
    nul = data.find(b"\0")
    if nul >= 0:
        number = data.count(b"\n", 0, nul) + 1
        raise ImageError(f"line {number} of the dump has a NUL byte", hint="write it as \\x00 where it is allowed")
    tree = _Tree()
    try:
        tree.add_lines(lines)
        root = tree.get_root()
        tree.resolve_links()
    except _FieldError as exc:
        raise ImageError(f"line {tree.number} of the dump, field {exc.field}: {exc.reason}") from exc
    return root


def write(root: Inode, names: Collection[bytes] = ()) -> Iterator[bytes]:
    """Yield the lines of a tree, depth first, as ``composefs-info dump`` prints them.

    Xattrs keep the order of their dict, which for a tree read from an image is the one composefs-info prints.
    A link is written as a line of its own where it stands, so that parsing gives the same tree again.

    Args:
        root: the tree.
        names: entries of the root to write; all when empty. A link whose target is left out is written as the file.
    """
    real_paths: dict[Inode, bytes] | None = None
    for path, node in walk(root, names):
        if isinstance(node, HardLink):
            if real_paths is None:
                real_paths = {inode: path for path, inode in walk(root, names) if isinstance(inode, Inode)}
            target = node.target
            real_path = real_paths.setdefault(target, path)
            yield _format_line(path, target, None if real_path == path else real_path)
        else:
            yield _format_line(path, node, None)


def _format_line(path: bytes, inode: Inode, real_path: bytes | None) -> bytes:
    payload = real_path or inode.target or inode.payload
    fields = b"%b %d %b%o %d %d %d %d %d.%d %b %b %b" % (
        escape(path),
        inode.size,
        b"" if real_path is None else b"@",
        inode.mode,
        inode.nlink,
        inode.uid,
        inode.gid,
        inode.rdev,
        inode.mtime_sec,
        inode.mtime_nsec,
        _format_value(payload),
        _format_value(inode.content),
        inode.digest.hex().encode() if inode.digest else b"-",
    )
    xattrs = inode.xattrs
    if not xattrs:
        return fields + b"\n"
    pairs = [b" %b=%b" % (escape_xattr(key), escape_xattr(value)) for key, value in xattrs.items()]
    return b"%b%b\n" % (fields, b"".join(pairs))


def _format_value(value: bytes | None) -> bytes:
    if not value:
        return b"-"
    return b"\\x2d" if value == b"-" else escape(value)
