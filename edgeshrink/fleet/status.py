"""What a device says about itself: a file, and a report to whoever collects them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

import urllib3

from edgeshrink import __version__
from edgeshrink.fleet.device import Device
from edgeshrink.fleet.slots import (
    CURRENT,
    current_slot,
    read_json,
    read_ledger,
    signed_facts,
    write_atomically,
)

FORMAT_VERSION: Final = 1
STATUS: Final = "status.json"
SCORE: Final = "score.json"  # what the application measured of the model: {"score": 0.93}
Outcome = Literal["current", "updated", "ineligible", "withdrawn", "rolled-back", "failed"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """What became of one release in one run; `error` is the name of an error's class."""

    outcome: Outcome
    release: str = ""  # keywords@1.3.0; empty: the run as a whole
    counter: int | None = None
    reason: str = ""
    error: str = ""
    how: str = ""  # of an update: "archive", "delta" or "copy"
    self_test: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Status:
    """One run of the agent."""

    device: Device
    time: datetime
    clock_is_behind: bool
    models: Mapping[str, Mapping[str, Any]]
    events: tuple[Event, ...]
    seconds: float
    n_requests: int
    n_bytes: int

    @property
    def outcome(self) -> Outcome:
        """The gravest outcome of all events."""
        found = {event.outcome for event in self.events}
        order: tuple[Outcome, ...] = ("failed", "rolled-back", "updated", "withdrawn")
        return next((outcome for outcome in order if outcome in found), "current")

    def to_json(self) -> dict[str, Any]:
        """Return the status as plain JSON values."""
        return {
            "format": FORMAT_VERSION,
            "device": self.device.device_id,
            "target": self.device.target,
            "channel": self.device.channel,
            "groups": sorted(self.device.groups),
            "runtimes": dict(self.device.runtimes),
            "agent": __version__,
            "time": self.time.isoformat(timespec="seconds"),
            "clock": "behind" if self.clock_is_behind else "ok",
            "outcome": self.outcome,
            "models": {name: dict(facts) for name, facts in sorted(self.models.items())},
            "events": [
                {k: v for k, v in vars(event).items() if v not in ("", None)}
                for event in self.events
            ],
            "seconds": round(self.seconds, 3),
            "requests": self.n_requests,
            "bytes": self.n_bytes,
        }


def describe_models(models: Path) -> dict[str, dict[str, Any]]:
    """Return what is installed, by name: version, counter, slot, the application's own score."""
    found: dict[str, dict[str, Any]] = {}
    for model in sorted(models.glob("*")):
        slot = current_slot(model)
        if slot is None:
            continue
        facts, trial = signed_facts(model, slot), read_ledger(model).trial
        described: dict[str, Any] = {
            "version": facts.get("version"),
            "counter": facts.get("counter"),
            "archive": facts.get("archive"),
            "path": str(model / CURRENT),
            "slot": slot,
            "confirmed": trial is None or trial.slot != slot,
        }
        score = read_json(model / SCORE).get("score")
        if type(score) in (int, float):
            described["score"] = score
        found[model.name] = described
    return found


def write_status(state: Path, status: Status) -> None:
    """Leave the status in the state folder, if there is space for it."""
    with suppress(OSError):
        write_atomically(state / STATUS, json.dumps(status.to_json(), indent=1).encode())


def post_status(urls: tuple[str, ...], status: Status, timeout_s: float) -> list[str]:
    """POST the status to each URL; return what went wrong. A report is never worth a failure."""
    faults = []
    body = json.dumps(status.to_json()).encode()
    headers = {"Content-Type": "application/json", "User-Agent": f"edgeshrink/{__version__}"}
    with urllib3.PoolManager(headers=headers) as pool:
        for url in urls:
            try:
                answer = pool.request(
                    "POST",
                    url,
                    body=body,
                    timeout=urllib3.Timeout(total=timeout_s),
                    retries=False,
                    redirect=False,
                    preload_content=False,
                )
                answer.close()
            except (urllib3.exceptions.HTTPError, OSError) as err:
                faults.append(f"{url}: {err}")
            else:
                if answer.status >= 300:
                    faults.append(f"{url}: HTTP {answer.status}")
    return faults
