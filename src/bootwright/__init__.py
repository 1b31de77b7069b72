"""Bootwright: boots a machine from an OCI image and keeps it on it."""

__version__ = "0.1.0"
