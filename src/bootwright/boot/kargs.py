"""Kernel arguments: parse, change and format them as the kernel reads them. Pure.

The kernel splits its command line at white space outside double quotes and takes the quotes off around a whole
argument or a whole value (``next_arg`` in lib/cmdline.c). A dash and an underscore in a key are the same to it.

Images bring arguments in drop-in files ``kargs.d/*.toml``::

    kargs = ["console=ttyS0,115200n8", "quiet"]
    match-architectures = ["x86_64"]

On an update the difference between the old and the new image's list is applied to the machine's own arguments, so that
what an administrator added stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bootwright.errors import BootError, ConfigError, UsageError

__all__ = ["COMPOSEFS_KEY", "Karg", "Kargs", "parse_drop_in"]

COMPOSEFS_KEY = "composefs"

# x86 keeps 2048 bytes, arm64 and riscv64 as many or more; the terminating NUL is counted.
MAX_LENGTH = 2047

_SPACE = " \t\n\r\v\f"
_DEPLOYMENT_ID = re.compile(r"[0-9a-f]{64}|[0-9a-f]{128}")


@dataclass(frozen=True, slots=True)
class Karg:
    """One argument, as it stands on the command line, quotes included."""

    text: str

    @classmethod
    def make(cls, key: str, value: str | None) -> Karg:
        """Write an argument, with quotes where its value has white space.

        Raises:
            UsageError: it cannot be written: an empty key, a quote, or a control character.
        """
        plain = key if value is None else f"{key}={value}"
        if not key or '"' in plain or any(ord(letter) < 32 or ord(letter) == 127 for letter in plain):
            raise UsageError(
                f"'{plain}' is not a kernel argument", hint="write key or key=value, without quotes and line breaks"
            )
        if value is not None and any(letter in _SPACE for letter in value):
            return cls(f'{key}="{value}"')
        return cls(plain)

    @property
    def key(self) -> str:
        """The part before ``=``, unquoted."""
        return self._unquoted().partition("=")[0]

    @property
    def value(self) -> str | None:
        """The part after the first ``=``, unquoted; None when there is no ``=``."""
        _, separator, value = self._unquoted().partition("=")
        if not separator:
            return None
        return value[1:].removesuffix('"') if value.startswith('"') else value

    @property
    def canonical(self) -> tuple[str, str | None]:
        """What two spellings of the same argument have in common."""
        return self.key.replace("-", "_"), self.value

    def _unquoted(self) -> str:
        if self.text.startswith('"'):
            return self.text[1:].removesuffix('"')
        return self.text


@dataclass(frozen=True, slots=True)
class Kargs:
    """A command line: arguments in order; every change gives a new one."""

    arguments: tuple[Karg, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Kargs:
        """Split a command line as the kernel does; a quote that is never closed reaches to the end."""
        return cls(tuple(Karg(word) for word in _split(text)))

    def __iter__(self) -> Iterator[Karg]:
        return iter(self.arguments)

    def __len__(self) -> int:
        return len(self.arguments)

    def __str__(self) -> str:
        return " ".join(argument.text for argument in self.arguments)

    def __contains__(self, argument: Karg) -> bool:
        return any(other.canonical == argument.canonical for other in self.arguments)

    def find(self, key: str) -> str | None:
        """Return the value of the last argument with this key, ``""`` when it has none; None when it is not there."""
        wanted = key.replace("-", "_")
        values = [argument.value or "" for argument in self.arguments if argument.canonical[0] == wanted]
        return values[-1] if values else None

    def append(self, more: Kargs | str) -> Kargs:
        """Add arguments at the end, also ones that are there already (``console=`` may come twice)."""
        other = Kargs.parse(more) if isinstance(more, str) else more
        return Kargs(self.arguments + other.arguments)

    def append_missing(self, more: Kargs | str) -> Kargs:
        """Add the arguments that are not there yet."""
        result = self
        for argument in Kargs.parse(more) if isinstance(more, str) else more:
            if argument not in result:
                result = Kargs((*result.arguments, argument))
        return result

    def replace(self, key: str, value: str | None) -> Kargs:
        """Give a key one value, at the place where it first stood, or at the end."""
        new = Karg.make(key, value)
        wanted = new.canonical[0]
        result: list[Karg] = []
        placed = False
        for argument in self.arguments:
            if argument.canonical[0] != wanted:
                result.append(argument)
            elif not placed:
                result.append(new)
                placed = True
        return Kargs(tuple(result if placed else [*result, new]))

    def delete(self, text: str) -> Kargs:
        """Remove ``key=value`` where it stands exactly so, or every argument with that key when only a key is given."""
        unwanted = Karg(text)
        if unwanted.value is None:
            return Kargs(tuple(one for one in self.arguments if one.canonical[0] != unwanted.canonical[0]))
        return self.without([unwanted])

    def without(self, unwanted: Iterable[Karg]) -> Kargs:
        """Remove the arguments that are the same as one of these, value included."""
        gone = {argument.canonical for argument in unwanted}
        return Kargs(tuple(one for one in self.arguments if one.canonical not in gone))

    def updated(self, *, old: Kargs, new: Kargs) -> Kargs:
        """Apply the difference between two images' lists: drop what is only in ``old``, add what is only in ``new``."""
        dropped = [argument for argument in old if argument not in new]
        added = Kargs(tuple(argument for argument in new if argument not in old))
        return self.without(dropped).append_missing(added)

    @property
    def composefs_id(self) -> str | None:
        """The deployment that ``composefs=`` names; None when there is none or it is no digest."""
        value = (self.find(COMPOSEFS_KEY) or "").removeprefix("?")
        return value if _DEPLOYMENT_ID.fullmatch(value) else None

    @property
    def is_verity_optional(self) -> bool:
        """The argument is ``composefs=?…``: the deployment also boots where fs-verity is missing."""
        return (self.find(COMPOSEFS_KEY) or "").startswith("?")

    def with_composefs(self, deployment_id: str, *, verity_optional: bool) -> Kargs:
        """Name another deployment, in place."""
        return self.replace(COMPOSEFS_KEY, f"{'?' if verity_optional else ''}{deployment_id}")

    def check_length(self) -> None:
        """Require that the kernel takes the line whole.

        Raises:
            BootError: it is too long, and the kernel would cut it.
        """
        length = len(str(self).encode())
        if length > MAX_LENGTH:
            raise BootError(
                f"the kernel command line has {length} bytes, more than the {MAX_LENGTH} that every kernel takes",
                hint="remove arguments from the image's kargs.d or from the boot entry",
            )


def _split(text: str) -> Iterator[str]:
    word = ""
    quoted = False
    for letter in text:
        if letter in _SPACE and not quoted:
            if word:
                yield word
            word = ""
            continue
        if letter == '"':
            quoted = not quoted
        word += letter
    if word:
        yield word


def parse_drop_in(data: bytes, *, origin: str, architecture: str) -> Kargs:
    """Parse one ``kargs.d/*.toml`` file.

    Args:
        data: the file.
        origin: its name, for messages.
        architecture: this machine's, in Rust's spelling (``x86_64``, ``aarch64``, ``powerpc64``).

    Returns:
        Its arguments; none when it is for other architectures.

    Raises:
        ConfigError: it is no TOML, has an unknown key, or a value of the wrong type.
    """
    import tomllib  # not needed to read a command line, which `status` does

    try:
        document = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(f"'{origin}' is not valid TOML: {exc}") from exc
    unknown = document.keys() - {"kargs", "match-architectures"}
    if unknown:
        raise ConfigError(
            f"'{origin}' has the unknown key '{min(unknown)}'", hint="the keys are kargs and match-architectures"
        )
    words = _strings(document.get("kargs"), f"'kargs' in '{origin}'")
    if "match-architectures" in document:
        names = _strings(document["match-architectures"], f"'match-architectures' in '{origin}'")
        if architecture not in names:
            return Kargs()
    for word in words:
        if any(ord(letter) < 32 and letter not in _SPACE for letter in word):
            raise ConfigError(f"'kargs' in '{origin}' has a control character")
    return Kargs.parse(" ".join(words))


def _strings(value: object, what: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{what} is not a list of strings", hint='write it as ["one", "two"]')
    return [str(item) for item in value]
