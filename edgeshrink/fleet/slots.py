"""Slots: whole releases side by side on a device, one of them current, changed in one step.

A model's folder holds `slots/SLOT/`, the link `current` to one of them, and `ledger.json`. What
`current` points to is the truth; it is replaced by a rename, so it leads to the old slot or to the
new one, whenever the power fails. A slot gets its name when all of it is on the disk, and is never
written again. The ledger is a note of what is being tried: a device that starts and finds a trial
knows that the last one did not come to its end.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

CURRENT: Final = "current"
SLOTS: Final = "slots"
LEDGER: Final = "ledger.json"
RELEASE: Final = ".release.json"  # what was signed; no file of a release begins with a dot
PARTIAL: Final = ".partial"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A slot that `current` may point to already, and that nobody has found healthy yet."""

    slot: str
    previous: str | None  # None: there was nothing before
    attempts: int = 0  # how often somebody began to find out


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """What a device remembers about one model beside its slots."""

    trial: Trial | None = None
    refused: Mapping[str, str] = field(default_factory=dict)  # digest of a release -> reason
    highest_counter: int = 0  # of all releases that were ever confirmed here


def write_atomically(path: Path, data: bytes) -> None:
    """Make `data` the content of `path`: all of it or, whatever happens, the old content."""
    descriptor, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in `folder` onto the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in `path`; an empty one where that is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_ledger(model: Path) -> Ledger:
    """Return the ledger of a model's folder; an empty one where there is none."""
    content = read_json(model / LEDGER)
    trial, refused, counter = (content.get(k) for k in ("trial", "refused", "highest_counter"))
    is_trial = (
        isinstance(trial, dict)
        and isinstance(trial.get("slot"), str)
        and isinstance(trial.get("previous"), str | None)
        and isinstance(trial.get("attempts"), int)
    )
    return Ledger(
        trial=Trial(**{k: trial[k] for k in ("slot", "previous", "attempts")})
        if is_trial and trial is not None
        else None,
        refused={k: str(v) for k, v in refused.items()} if isinstance(refused, dict) else {},
        highest_counter=counter if isinstance(counter, int) else 0,
    )


def write_ledger(model: Path, ledger: Ledger) -> None:
    """Replace the ledger of a model's folder."""
    trial = None if ledger.trial is None else vars(ledger.trial)
    content = {"format": 1} | vars(ledger) | {"trial": trial, "refused": dict(ledger.refused)}
    write_atomically(model / LEDGER, json.dumps(content, indent=1).encode())


def current_slot(model: Path) -> str | None:
    """Return the name of the slot that `current` points to; None where nothing is installed."""
    try:
        slot = Path((model / CURRENT).readlink()).name
    except OSError:
        return None
    return slot if (model / SLOTS / slot).is_dir() else None


def slot_folder(model: Path, slot: str) -> Path:
    """Return where `slot` lies."""
    return model / SLOTS / slot


def signed_facts(model: Path, slot: str | None) -> dict[str, Any]:
    """Return what was signed of the release in `slot`; an empty object where nothing is there."""
    return {} if slot is None else read_json(slot_folder(model, slot) / RELEASE)


@contextmanager
def filling(model: Path, slot: str) -> Iterator[Path]:
    """Yield an empty folder that becomes the slot, wholly on the disk, when the block ends well.

    A slot of this name that is there already, and not current, is replaced.
    """
    folder = slot_folder(model, slot)
    aside = folder.with_name(f"{slot}{PARTIAL}")
    aside.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        for path in sorted(aside.rglob("*")):
            if path.is_dir():
                sync_folder(path)
            else:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        sync_folder(aside)
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
        sync_folder(aside.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def switch(model: Path, slot: str | None) -> None:
    """Make `slot` current in one step; None takes `current` away."""
    link = model / CURRENT
    if slot is None:
        link.unlink(missing_ok=True)
    else:
        aside = model / f".{CURRENT}{PARTIAL}"
        aside.unlink(missing_ok=True)
        aside.symlink_to(Path(SLOTS) / slot, target_is_directory=True)
        aside.replace(link)
    sync_folder(model)


def tidy(model: Path, *, keep: int, protected: frozenset[str]) -> None:
    """Remove what was left half done, and the oldest slots beyond `keep`, protected ones apart."""
    folder = model / SLOTS
    (model / f".{CURRENT}{PARTIAL}").unlink(missing_ok=True)
    for aside in model.glob(".ledger.json.*"):
        aside.unlink(missing_ok=True)
    if not folder.is_dir():
        return
    slots = []
    for path in folder.iterdir():
        if path.name.endswith(PARTIAL):
            shutil.rmtree(path, ignore_errors=True)
        else:
            slots.append((path.name in protected, path.stat().st_mtime_ns, path))
    for is_protected, _, path in sorted(slots, reverse=True)[max(keep, 1) :]:
        if not is_protected:
            with suppress(OSError):  # the name goes first: no half a slot keeps it
                doomed = path.with_name(f"{path.name}{PARTIAL}")
                path.rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)
