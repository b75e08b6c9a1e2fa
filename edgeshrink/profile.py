"""What a model costs on a device: figures that say how they were got, and a row for every op."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from edgeshrink.budget import Budget

How = Literal["measured", "emulated", "modelled"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number, its unit, how it was got, and the band it lies in.

    `low` and `high` equal `value` where the number is exact. `validated` is set on modelled
    figures: whether the band comes from a comparison with published hardware results.
    """

    value: float
    unit: str
    how: How
    low: float
    high: float
    validated: bool | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the figure as plain JSON values."""
        data: dict[str, Any] = {"value": self.value, "unit": self.unit, "how": self.how}
        data |= {"low": self.low, "high": self.high}
        if self.validated is not None:
            data["validated"] = self.validated
        if self.note:
            data["note"] = self.note
        return data


def exact(value: float, unit: str, *, how: How = "measured", note: str = "") -> Figure:
    """Return a figure without a band."""
    return Figure(value=value, unit=unit, how=how, low=value, high=value, note=note)


@dataclass(frozen=True, kw_only=True)
class OpCost:
    """One operator's share. Figures that were not determined are None."""

    index: int
    kind: str
    name: str
    macs: int
    latency_ms: float | None = None
    cycles: float | None = None
    instructions: int | None = None
    flash_bytes: int | None = None  # its constants
    live_bytes: int | None = None  # activations alive while it runs


@dataclass(frozen=True, kw_only=True)
class Overrun:
    """A budget that is not met: the figure's upper end against the limit, in `unit`."""

    what: str
    need: float
    limit: float
    unit: str


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What was found about one model file on one target with one engine."""

    target: str
    engine: str
    model_path: str
    model_sha256: str
    figures: Mapping[str, Figure]
    ops: tuple[OpCost, ...]
    overruns: tuple[Overrun, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return the profile as plain JSON values (the layout of `profile --json`)."""
        ops = [{k: v for k, v in vars(op).items() if v is not None} for op in self.ops]
        return {
            "target": self.target,
            "engine": self.engine,
            "model": {"path": self.model_path, "sha256": self.model_sha256},
            "figures": {name: figure.to_json() for name, figure in self.figures.items()},
            "ops": ops,
            "budget": {"met": not self.overruns, "overruns": [vars(o) for o in self.overruns]},
            "notes": list(self.notes),
        }


_BUDGETED = {
    "flash": ("flash_bytes", "flash_bytes", "B"),
    "ram": ("ram_bytes", "ram_bytes", "B"),
    "latency": ("latency_ms", "latency_ms", "ms"),
}


def overruns(figures: Mapping[str, Figure], budget: Budget) -> tuple[Overrun, ...]:
    """Return every limit of `budget` that a figure's upper end exceeds."""
    found = []
    for what, (figure_name, limit_name, unit) in _BUDGETED.items():
        limit, figure = getattr(budget, limit_name), figures.get(figure_name)
        if limit is not None and figure is not None and figure.high > limit:
            found.append(Overrun(what=what, need=figure.high, limit=limit, unit=unit))
    return tuple(found)
