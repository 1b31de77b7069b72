"""The composefs repository: objects, streams, images, references; pulled OCI images become trees here."""

from bootwright.repo.repository import Repository

__all__ = ["Repository"]
