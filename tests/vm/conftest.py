"""A registry with three real operating systems, and a machine that was installed from the first of them."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from machine import HOST_ADDRESS, install_disk, make_scratch
from osimages import ensure_images
from registry import push_layout, running_registry
from vm_ground import Ground

SCHEMA = Path(__file__).parents[3] / "shared" / "vectors" / "host-v1.schema.json"


@contextlib.contextmanager
def _removed(directory: Path) -> Iterator[None]:
    try:
        yield
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def ground() -> Iterator[Ground]:
    """Build, serve, install; the disk is made by a user who is not root."""
    layouts = ensure_images("v1", "v2", "other")
    directory = make_scratch("bootwright-vm-test-")
    with _removed(directory), running_registry(directory / "registry") as address:
        for tag, layout in layouts.items():
            push_layout(layout, tag, address, "os", tag)
        guest_address = f"{HOST_ADDRESS}:{address.rpartition(':')[2]}"
        disk = directory / "disk" / "disk.raw"
        disk.parent.mkdir()
        install_disk(f"oci:{layouts['v1']}:v1", f"docker://{guest_address}/os:v1", disk)
        yield Ground(layouts, address, guest_address, disk)


def check_schema(document: dict[str, Any]) -> None:
    """Require that a status document is valid; without ../shared there is nothing to compare with."""
    if SCHEMA.exists():
        import jsonschema

        jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(document)


@pytest.fixture(scope="session")
def validate_status() -> Any:
    """The check of a status document against bootc's schema."""
    return check_schema


_failed_modules: set[str] = set()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Remember a failure: the tests of one module are the chapters of one machine's life."""
    report = yield
    if report.failed and item.get_closest_marker("vm"):
        _failed_modules.add(str(item.path))
    return report


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A chapter after a failed one would only fail for the same reason."""
    if item.get_closest_marker("vm") and str(item.path) in _failed_modules:
        pytest.fail("an earlier chapter of this machine's life failed", pytrace=False)
