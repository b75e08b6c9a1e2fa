"""What a model costs on a device: figures that say how they were got, and a row for every op."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from edgeshrink.budget import Budget

How = Literal["measured", "emulated", "modelled"]
Bound = Literal["compute", "memory", "overhead"]  # what most of an operator's time goes into


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
    compute_ms: float | None = None  # the parts of latency_ms: products,
    memory_ms: float | None = None  # bytes moved,
    overhead_ms: float | None = None  # and being called at all
    bound: Bound | None = None
    macs_per_byte: float | None = None  # of inputs, weights and outputs; for the roofline
    is_unknown: bool | None = None  # the cost model has never seen it: its nearest class's price


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """What a core does at most, for the type that most of a model computes in."""

    macs_per_ms: float
    bytes_per_ms: float

    @property
    def ridge_macs_per_byte(self) -> float:
        """Operators with fewer products per byte wait for memory."""
        return self.macs_per_ms / self.bytes_per_ms


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A change that would make the model faster: priced by the cost model, not tried."""

    text: str
    saves_ms: float  # of one inference
    ops: tuple[int, ...] = ()  # the operators concerned; none: the whole model


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
    threads: int | None = None  # None: the engine has none
    roofline: Roofline | None = None
    advice: tuple[Advice, ...] = ()  # what saves most first

    def to_json(self) -> dict[str, Any]:
        """Return the profile as plain JSON values (the layout of `profile --json`)."""
        ops = [{k: v for k, v in vars(op).items() if v is not None} for op in self.ops]
        data: dict[str, Any] = {
            "target": self.target,
            "engine": self.engine,
            "model": {"path": self.model_path, "sha256": self.model_sha256},
            "figures": {name: figure.to_json() for name, figure in self.figures.items()},
            "ops": ops,
            "budget": {"met": not self.overruns, "overruns": [vars(o) for o in self.overruns]},
            "notes": list(self.notes),
        }
        if self.threads is not None:
            data["threads"] = self.threads
        if self.roofline is not None:
            line = self.roofline
            data["roofline"] = vars(line) | {"ridge_macs_per_byte": line.ridge_macs_per_byte}
        if self.advice:
            data["advice"] = [{**vars(a), "how": "modelled", "ops": list(a.ops)}
                              for a in self.advice]  # fmt: skip
        return data


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
