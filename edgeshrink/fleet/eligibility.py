"""Decide on the device, before anything is fetched, whether a release is for it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from edgeshrink.artifact import GOLDEN, MODEL_FILES
from edgeshrink.fleet.device import Device
from edgeshrink.fleet.selftest import READS
from edgeshrink.fleet.slots import Ledger
from edgeshrink.release import Offer, Release
from edgeshrink.units import format_bytes

SPARE_BYTES: Final = 1 << 22  # that an update leaves free at least
TRIED: Final = "it was tried here, and did not work"
OPERATORS: Final = Path(__file__).with_name("data") / "operator_versions.json"


def share_of(device_id: str, path: str) -> float:
    """Return where a device stands in the queue for a release, in [0, 1).

    The same device has another place for each release, and always the same one for the same: a
    share that grows only ever adds devices.

    Args:
        device_id: The device's name.
        path: Of the release's archive in the repository.
    """
    digest = hashlib.sha256(f"{path}|{device_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def release_key(release: Release, sha256: str) -> str:
    """Return what a device remembers a release by: the same files with a new counter are new."""
    return f"{release.label}+{release.counter}:{sha256[:16]}"


def why_not_offered(offer: Offer, device: Device, time: datetime) -> str | None:
    """Return why this channel does not offer a release to this device now; None if it does."""
    if offer.state != "active":
        return f"it is {offer.state}"
    if offer.groups and not device.groups & set(offer.groups):
        return f"it is for the groups {', '.join(offer.groups)}"
    if offer.not_before is not None and time < offer.not_before:
        return f"it is not offered before {offer.not_before.isoformat(timespec='minutes')}"
    if share_of(device.device_id, offer.path) >= offer.share:
        return f"it is offered to {100 * offer.share:g} % of devices, and this is none of them"
    return None


def why_not_eligible(release: Release, key: str, device: Device, ledger: Ledger) -> str | None:
    """Return why a release that is offered is not for this device; None if it is."""
    if key in ledger.refused:
        return f"{TRIED}: {ledger.refused[key]}"
    if release.counter <= ledger.highest_counter:
        return (
            f"its counter {release.counter} is not above {ledger.highest_counter}, which ran here"
        )
    if GOLDEN not in release.files:
        return f"it has no {GOLDEN}, so nobody can tell whether it works here"
    try:
        find_runtime(release, device)
    except LookupError as err:
        return str(err)
    return None


def find_runtime(release: Release, device: Device) -> str:
    """Return the runtime that runs the release here; LookupError says why there is none."""
    reasons = []
    for need in release.runtimes:
        if need.name not in READS:
            reasons.append(f"{need.name} is not known here")
        elif MODEL_FILES[READS[need.name]] not in release.files:
            reasons.append(f"{need.name}: the release has no {MODEL_FILES[READS[need.name]]}")
        elif need.name not in device.runtimes:
            lack = device.missing.get(need.name, "not installed")
            reasons.append(f"{need.name} >= {need.min_version}: {lack}")
        elif version_key(device.runtimes[need.name]) < version_key(need.min_version):
            here = device.runtimes[need.name]
            reasons.append(f"{need.name} is {here} here, {need.min_version} is needed")
        else:
            unknown = _unknown_operators(need.name, device.runtimes[need.name], release.operators)
            if unknown is None:
                return need.name
            reasons.append(unknown)
    raise LookupError(f"no runtime here runs it ({'; '.join(reasons) or 'it names none'})")


def _unknown_operators(runtime: str, version: str, operators: Mapping[str, int]) -> str | None:
    """Return which operator this runtime is known to lack; None if none is.

    What a version of a runtime has was measured (`data/operator_versions.json`). A newer one has
    at least that, and more that is not known: there the release's minimum version decides.
    """
    known: dict[str, Any] = json.loads(OPERATORS.read_bytes()).get(runtime, {})
    if not known or version_key(version) > version_key(known["version"]):
        return None
    for kind, needed in operators.items():
        has = known["operators"].get(kind, 0)
        if kind in known["operators"] and needed > has:
            return f"{runtime} {version} has {kind} up to version {has}, {needed} is needed"
        if kind not in known["operators"]:
            return f"{runtime} {version} has no {kind}"
    return None


def version_key(version: str) -> tuple[int, ...]:
    """Return what versions are compared by: their leading numbers."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(n) for n in numbers[0].split(".")) if numbers else ()


def why_no_space(n_fetched: int, release: Release, free: int) -> str | None:
    """Return what is missing in space for the download and the new slot; None if it fits."""
    needed = n_fetched + release.n_bytes + SPARE_BYTES
    if needed <= free:
        return None
    return f"it needs {format_bytes(needed)} of space, {format_bytes(free)} are free"
