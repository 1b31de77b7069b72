"""What the virtual machines of a test run share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Ground"]


@dataclass(frozen=True, slots=True)
class Ground:
    """What the machines of a run share.

    Attributes:
        layouts: OCI layouts by the tag that each holds: v1, v2, other.
        address: of the registry, as this host sees it.
        guest_address: the same, as a guest sees it.
        disk: installed from v1, following ``os:v1`` of the registry; never written.
    """

    layouts: dict[str, Path]
    address: str
    guest_address: str
    disk: Path

    def reference(self, tag: str) -> str:
        """Return how a guest names an image."""
        return f"docker://{self.guest_address}/os:{tag}"
