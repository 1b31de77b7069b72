"""Disk images: partition tables and filesystems written without root."""
