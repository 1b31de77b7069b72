"""Digests as values: OCI content digests and fs-verity digests. Pure.

An OCI digest is ``sha256:<64 hex>`` over plain bytes (OCI image spec, "Digests"). An fs-verity digest is the hash of a
256-byte descriptor over a Merkle tree (kernel documentation, fsverity.rst); it names objects and images in
a repository. The two are never interchangeable, hence two types.
"""

from __future__ import annotations

import enum
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bootwright.errors import VerificationError

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["Algorithm", "Digest", "VerityDigest"]

_HEX_LENGTH = {"sha256": 64, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """An OCI content digest, e.g. ``sha256:9f86…``."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Parse ``algorithm:hex``.

        Raises:
            VerificationError: unknown algorithm, wrong length, or characters that are not lower-case hex.
        """
        algorithm, separator, value = text.partition(":")
        if not separator or _HEX_LENGTH.get(algorithm) != len(value) or not _HEX.fullmatch(value):
            raise VerificationError(
                f"'{text[:100]}' is not a digest",
                hint="a digest looks like sha256:<64 lower-case hex digits>",
            )
        return cls(algorithm, value)

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """Compute the sha256 digest of data held in memory."""
        return cls("sha256", hashlib.sha256(data).hexdigest())

    def new_hash(self) -> _Hash:
        """Return a fresh hash object of this digest's algorithm."""
        return hashlib.new(self.algorithm)

    def check(self, data: bytes, *, what: str) -> None:
        """Require that ``data`` has this digest.

        Raises:
            VerificationError: it has another one; ``what`` names the object in the message.
        """
        found = self.new_hash()
        found.update(data)
        self.check_hex(found.hexdigest(), what=what)

    def check_hex(self, found: str, *, what: str) -> None:
        """Require that a computed hex value is this digest's.

        Raises:
            VerificationError: the two differ.
        """
        if found != self.hex:
            raise VerificationError(
                f"{what} has the digest '{self.algorithm}:{found}', expected '{self}'",
                hint="the source is damaged or was changed; pull again, or pull from another source",
            )

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


class Algorithm(enum.Enum):
    """An fs-verity hash algorithm with 4096-byte blocks and no salt.

    The value is the number the kernel uses (``FS_VERITY_HASH_ALG_*``).
    """

    SHA256 = 1
    SHA512 = 2

    @property
    def hash_name(self) -> str:
        """Name for hashlib: ``sha256`` or ``sha512``."""
        return self.name.lower()

    @property
    def size(self) -> int:
        """Digest length in bytes."""
        return 32 if self is Algorithm.SHA256 else 64

    @property
    def spec(self) -> str:
        """Name in a repository's meta.json, e.g. ``fsverity-sha256-12``."""
        return f"fsverity-{self.hash_name}-12"

    @classmethod
    def from_spec(cls, spec: str) -> Algorithm:
        """Parse ``fsverity-sha256-12`` or ``fsverity-sha512-12``.

        Raises:
            VerificationError: any other text.
        """
        for algorithm in cls:
            if algorithm.spec == spec:
                return algorithm
        raise VerificationError(
            f"unknown digest algorithm '{spec[:60]}'", hint="use fsverity-sha256-12 or fsverity-sha512-12"
        )


@dataclass(frozen=True, slots=True, order=True)
class VerityDigest:
    """An fs-verity digest: 32 (sha256) or 64 (sha512) raw bytes."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) not in (32, 64):
            raise VerificationError(f"an fs-verity digest has 32 or 64 bytes, not {len(self.raw)}")

    @classmethod
    def parse(cls, text: str) -> VerityDigest:
        """Parse 64 or 128 lower-case hex digits.

        Raises:
            VerificationError: anything else.
        """
        if len(text) not in (64, 128) or not _HEX.fullmatch(text):
            raise VerificationError(
                f"'{text[:140]}' is not an fs-verity digest", hint="it has 64 or 128 lower-case hex digits"
            )
        return cls(bytes.fromhex(text))

    @property
    def algorithm(self) -> Algorithm:
        """The hash algorithm, told by the length."""
        return Algorithm.SHA256 if len(self.raw) == 32 else Algorithm.SHA512

    @property
    def hex(self) -> str:
        """Lower-case hex: the name of images, deployments and the composefs= argument."""
        return self.raw.hex()

    @property
    def object_path(self) -> str:
        """Path of the object below ``objects/``: ``xx/`` and the rest of the hex digits."""
        text = self.raw.hex()
        return f"{text[:2]}/{text[2:]}"

    def __str__(self) -> str:
        return self.raw.hex()
