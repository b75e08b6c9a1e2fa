"""What a model may cost on its device."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Final

from edgeshrink.errors import ConfigError
from edgeshrink.strict_toml import Table, nearest
from edgeshrink.units import parse_bytes, parse_ms


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits; None where there is none."""

    flash_bytes: int | None = None
    ram_bytes: int | None = None
    latency_ms: float | None = None
    accuracy_drop: float | None = None  # in the metric's own unit, against the float model

    def over(self, other: Budget) -> Budget:
        """Return this budget with what it leaves open taken from `other`."""
        mine = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(other, **{k: v for k, v in mine.items() if v is not None})


def read_budget(table: Table) -> Budget:
    """Read a `[budget]` table."""
    return Budget(
        flash_bytes=table.size("flash", None),
        ram_bytes=table.size("ram", None),
        latency_ms=table.duration_ms("latency", None),
        accuracy_drop=table.number("accuracy_drop", 0, 1e9, None),
    )


def _parse_drop(text: str) -> float:
    drop = float(text)
    if not drop >= 0:
        raise ValueError(f"{text!r} is not a drop; write a number of 0 or more")
    return drop


_OPTIONS: Final[dict[str, tuple[str, Any, str]]] = {
    "flash": ("flash_bytes", parse_bytes, "flash=512KiB"),
    "ram": ("ram_bytes", parse_bytes, "ram=64KiB"),
    "latency": ("latency_ms", parse_ms, "latency=20ms"),
    "drop": ("accuracy_drop", _parse_drop, "drop=0.01"),
}


def parse_budget(text: str) -> Budget:
    """Parse `ram=64KiB,latency=20ms,flash=1MiB,drop=0.01`, any part of it."""
    limits: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, equals, value = part.partition("=")
        if key not in _OPTIONS:
            raise ConfigError("--budget", f"has unknown key {key!r}", nearest(key, _OPTIONS))
        field, parse, example = _OPTIONS[key]
        if not equals:
            raise ConfigError("--budget", f"{key!r} has no value", f"write it like {example}")
        try:
            limits[field] = parse(value)
        except ValueError as err:
            raise ConfigError("--budget", f"{part!r}: {err}", f"write it like {example}") from err
    return Budget(**limits)
