"""The status of the machine: bootc's document ``org.containers.bootc/v1 BootcHost``, and the same for people.

It is fast and never in the way: no lock, no image is opened, no kernel is hashed, and what cannot be read is named in
the answer instead of failing it.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

from bootwright.deploy.model import ImageFacts
from bootwright.deploy.store import StoredDeployment
from bootwright.linux.mountinfo import find_mount
from bootwright.ops.host import Environment, Host
from bootwright.ops.state import SystemState, read_state

__all__ = ["build_document", "format_human", "read_status"]

Document = dict[str, Any]

_ANNOTATION = "bootwright/"


def read_status(host: Host, *, booted_only: bool = False) -> Document:
    """Read and build the status document.

    Args:
        host: the machine.
        booted_only: leave the staged and the rollback deployment out (``--booted``).
    """
    document = build_document(host, read_state(host))
    if booted_only:
        document["status"]["staged"] = None
        document["status"]["rollback"] = None
    return document


def build_document(host: Host, state: SystemState) -> Document:
    """Build the document of a state that was read."""
    staged = _boot_entry(host, state, state.staged.deployment_id) if state.staged else None
    booted = _boot_entry(host, state, state.booted_id) if state.booted_id else None
    others = [_boot_entry(host, state, one) for one in state.others]
    tracked = staged or booted
    image = tracked["image"]["image"] if tracked and tracked["image"] else None
    status: Document = {
        "staged": staged,
        "booted": booted,
        "rollback": others[0] if others else None,
        "rollbackQueued": state.is_rollback_queued,
        "type": "bootcHost" if booted else None,
        "usrOverlay": _usr_overlay(host),
        "readOnly": booted is not None and host.is_read_only,
    }
    if others[1:]:
        status["otherDeployments"] = others[1:]
    metadata: Document = {"name": "host"}
    annotations = _annotations(host, state)
    if annotations:
        metadata["annotations"] = annotations
    return {
        "apiVersion": "org.containers.bootc/v1",
        "kind": "BootcHost",
        "metadata": metadata,
        "spec": {"image": image, "bootOrder": "rollback" if state.is_rollback_queued else "default"},
        "status": status,
    }


def _annotations(host: Host, state: SystemState) -> dict[str, str]:
    if state.booted_id is None:
        return {}
    found = {
        "next-boot": state.next_id or "",
        "digests": _describe_digests(host),
        "broken-entries": "\n".join(one.file_name for one in (*state.entries.broken, *state.staged_entries.broken)),
        "problems": "\n".join(state.problems),
    }
    return {f"{_ANNOTATION}{name}": text for name, text in found.items() if text}


def _describe_digests(host: Host) -> str:
    """Tell whether the kernel measures the repository's files, as the file that marks a repository shows."""
    from bootwright.linux import fsverity

    try:
        fd = os.open(os.path.join(host.repository, "meta.json"), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return "kernel fs-verity" if fsverity.measure(fd) is not None else "computed in user space"
    except OSError:
        return ""
    finally:
        os.close(fd)


def _boot_entry(host: Host, state: SystemState, deployment_id: str) -> Document:
    stored = state.deployments.get(deployment_id)
    origin = stored.origin if stored else None
    staged = state.staged
    is_staged = staged is not None and staged.deployment_id == deployment_id
    entry = (state.staged_entries if is_staged else state.entries).find(deployment_id)
    kargs = entry.kargs if entry is not None and entry.kargs.composefs_id else host.kargs
    return {
        "image": _image_status(host, origin.image) if origin else None,
        "cachedUpdate": _cached_update(host, stored),
        "incompatible": origin.is_incompatible if origin else False,
        "pinned": False,
        "softRebootCapable": False,
        "downloadOnly": is_staged and staged is not None and staged.is_locked,
        "store": None,
        "ostree": None,
        "composefs": {
            "verity": deployment_id,
            "bootType": "Uki" if origin and origin.boot_type == "uki" else "Bls",
            "bootloader": state.boot_loader,
            "bootDigest": origin.boot_digest if origin else None,
            "missingVerityAllowed": kargs.is_verity_optional,
        },
    }


def _image_status(host: Host, image: ImageFacts | None) -> Document | None:
    if image is None:
        return None
    reference: Document = {"image": image.image, "transport": image.transport}
    if image.signature is not None:
        kind, separator, remote = image.signature.partition(":")
        reference["signature"] = {kind: remote} if separator else kind
    created = _parse_time(image.created)
    return {
        "image": reference,
        "version": image.version,
        "timestamp": image.created if created else None,
        "imageDigest": image.manifest_digest,
        "architecture": image.architecture or host.architecture,
    }


def _cached_update(host: Host, stored: StoredDeployment | None) -> Document | None:
    update = stored.cached_update if stored else None
    return _image_status(host, update.image) if update else None


def _usr_overlay(host: Host) -> Document | None:
    mount = find_mount(host.mounts, "/usr")
    if mount is None or mount.fstype != "overlay" or host.environment is not Environment.BOOTED:
        return None
    return {"accessMode": "readOnly" if mount.is_read_only else "readWrite", "persistence": "transient"}


def _parse_time(text: str | None) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text) if text and "T" in text else None
    except ValueError:
        return None
    return moment if moment is not None and moment.tzinfo is not None else None


# ---- for people ----------------------------------------------------------------------------------------------------

_NAMES = {"staged": "Staged", "booted": "Booted", "rollback": "Rollback", "other": "Other"}


def format_human(document: Document, *, verbose: bool = False) -> str:
    """Lay the document out for a terminal: what runs, what boots next, can I go back."""
    status = document["status"]
    blocks = [("staged", status["staged"]), ("booted", status["booted"]), ("rollback", status["rollback"])]
    blocks += [("other", other) for other in status.get("otherDeployments", [])]
    if status["booted"] is None:
        return "System is not deployed via bootwright."
    annotations = document["metadata"].get("annotations", {})
    parts = [_format_block(role, entry, status, verbose=verbose) for role, entry in blocks if entry is not None]
    parts.append(_format_rows(_summary(document, annotations, verbose=verbose)))
    problems = annotations.get(f"{_ANNOTATION}problems")
    if problems:
        parts.append("\n".join(f"warning: {line}" for line in problems.splitlines()))
    return "\n\n".join(parts)


def _format_rows(rows: list[tuple[str, str]]) -> str:
    """Align labels to the right, to the width of the first one, as bootc does."""
    width = len(rows[0][0])
    return "\n".join(f"{label:>{width}}: {value}" for label, value in rows)


def _describe_image(image: Document) -> str:
    reference = image["image"]
    return str(
        reference["image"] if reference["transport"] == "registry" else f"{reference['transport']}:{reference['image']}"
    )


def _format_block(role: str, entry: Document, status: Document, *, verbose: bool) -> str:
    bullet = "●" if role == "booted" else " "
    image = entry["image"]
    composefs = entry["composefs"]
    name = _describe_image(image) if image else "(unknown image)"
    rows = [(f"{bullet} {_NAMES[role]} image", name)]
    if image:
        rows.append(("Digest", f"{image['imageDigest'] or '(unknown)'} ({image['architecture']})"))
    rows.append(("Verity", composefs["verity"]))
    rows += _version_rows(image, "Version", "Timestamp") if image else []
    if entry["pinned"]:
        rows.append(("Pinned", "yes"))
    rows += _update_rows(image, entry["cachedUpdate"])
    overlay = status["usrOverlay"]
    if role == "booted" and overlay:
        access = "read/write" if overlay["accessMode"] == "readWrite" else "read-only"
        rows.append(("/usr overlay", f"{overlay['persistence']}, {access}"))
    if verbose:
        rows += _verbose_rows(role, entry)
    return _format_rows(rows)


def _verbose_rows(role: str, entry: Document) -> list[tuple[str, str]]:
    composefs = entry["composefs"]
    rows = [
        ("Boot digest", composefs["bootDigest"] or "(unknown)"),
        ("Boot type", "unified kernel image" if composefs["bootType"] == "Uki" else "kernel and initramfs"),
        ("Boot loader", composefs["bootloader"]),
        ("FsVerity", "Not Enforced" if composefs["missingVerityAllowed"] else "Enforced"),
        ("Soft-reboot", "yes" if entry["softRebootCapable"] else "no"),
    ]
    if role == "staged":
        rows.append(("Download-only", "yes" if entry["downloadOnly"] else "no"))
    return rows


def _format_time(text: str | None) -> str | None:
    moment = _parse_time(text)
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _version_rows(image: Document, label: str, time_label: str) -> list[tuple[str, str]]:
    moment = _format_time(image["timestamp"])
    if image["version"]:
        return [(label, f"{image['version']} ({moment})" if moment else image["version"])]
    return [(time_label, moment)] if moment else []


def _update_rows(image: Document | None, update: Document | None) -> list[tuple[str, str]]:
    if update is None or (image is not None and image["imageDigest"] == update["imageDigest"]):
        return []
    version = _version_rows(update, "UpdateVersion", "") if update["version"] else [("Update", "Available")]
    return [*version, ("UpdateDigest", update["imageDigest"])]


def _summary(document: Document, annotations: dict[str, str], *, verbose: bool) -> list[tuple[str, str]]:
    """Answer the two questions that remain: what boots next, and is there a way back."""
    status = document["status"]
    next_id = annotations.get(f"{_ANNOTATION}next-boot")
    named = [("staged", status["staged"]), ("booted", status["booted"]), ("rollback", status["rollback"])]
    role = next((name for name, entry in named if entry and entry["composefs"]["verity"] == next_id), "other")
    going = {
        "staged": "the staged image",
        "booted": "the booted image",
        "rollback": "the rollback image (queued)",
        "other": f"deployment {next_id}",
    }[role]
    if status["staged"] is not None and status["staged"]["downloadOnly"]:
        going += "; the staged one was only downloaded: 'bootwright upgrade --from-downloaded' unlocks it"
    if status["staged"] is not None:
        back = "yes, 'bootwright rollback' drops the staged image"
    elif status["rollback"] is None:
        back = "no, there is no earlier deployment"
    elif status["rollbackQueued"]:
        back = "yes, queued; 'bootwright rollback' again keeps the booted image"
    else:
        version = status["rollback"]["image"]["version"] if status["rollback"]["image"] else None
        back = f"yes, 'bootwright rollback'{f' to {version}' if version else ''}"
    rows = [("Next boot".rjust(len("● Booted image")), going), ("Can go back", back)]
    if status["readOnly"]:
        rows.append(("Read-only", "yes, the system is on a read-only medium"))
    if verbose and f"{_ANNOTATION}digests" in annotations:
        rows.append(("File digests", annotations[f"{_ANNOTATION}digests"]))
    return rows
