"""What a device is: its name, its kind, the runtimes that are installed, the space that is left."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from edgeshrink.errors import ConfigError
from edgeshrink.fleet.slots import read_json, write_atomically

DEVICE: Final = "device.json"
DEVICE_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
MACHINE_ID: Final = Path("/etc/machine-id")
MODEL_NAME: Final = Path("/proc/device-tree/model")
# Runtime -> (module, distribution, other modules that it needs).
RUNTIMES: Final[Mapping[str, tuple[str, str, tuple[str, ...]]]] = {
    "litert": ("ai_edge_litert", "ai-edge-litert", ()),
    "tflite-runtime": ("tflite_runtime", "tflite-runtime", ()),
    "executorch": ("executorch", "executorch", ("torch",)),
}


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device, as it decides what is for it."""

    device_id: str
    target: str
    groups: frozenset[str]
    channel: str
    runtimes: Mapping[str, str]  # name -> version, what can really be imported here
    missing: Mapping[str, str]  # runtime -> what it lacks


def find_runtimes() -> tuple[dict[str, str], dict[str, str]]:
    """Return the runtimes that are installed with their versions, and what the others lack."""
    here, missing = {}, {}
    for name, (module, distribution, needs) in RUNTIMES.items():
        lacking = [m for m in (module, *needs) if importlib.util.find_spec(m) is None]
        if lacking:
            missing[name] = f"{' and '.join(lacking)} not installed"
            continue
        with suppress(metadata.PackageNotFoundError):
            here[name] = metadata.version(distribution)
    return here, missing


def find_device_id(state: Path, given: str | None) -> str:
    """Return the device's name: the given one, the one it had before, or one made of its machine's.

    The machine's own number is not told to anybody: what is derived from it can't be turned back.
    """
    if given is not None:
        if not DEVICE_ID.fullmatch(given):
            fix = "use letters, digits and . _ : -, at most 128"
            raise ConfigError("--device-id", f"is {given!r:.80}", fix)
        return given
    known = read_json(state / DEVICE).get("device_id")
    if isinstance(known, str) and DEVICE_ID.fullmatch(known):
        return known
    try:
        machine = MACHINE_ID.read_text("ascii").strip()
    except (OSError, ValueError):
        machine = ""
    seed = machine or secrets.token_hex(16)
    made = hashlib.sha256(f"edgeshrink device {seed}".encode()).hexdigest()[:32]
    write_atomically(state / DEVICE, json.dumps({"device_id": made}).encode())
    return made


def find_target(given: str | None) -> str:
    """Return the name of the target that this machine is, by its devicetree; `host` if unknown."""
    if given is not None:
        return given
    try:
        model = MODEL_NAME.read_bytes().rstrip(b"\0").decode("utf-8", "replace")
    except OSError:
        return "host"
    from edgeshrink.target import list_targets

    fitting = [(len(t.title), t.name) for t in list_targets() if model.startswith(t.title)]
    return max(fitting)[1] if fitting else "host"


def free_bytes(folder: Path) -> int:
    """Return the space left for this user where `folder` is."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
