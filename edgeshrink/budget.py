"""What a model may cost on its device."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Final

from edgeshrink.errors import ConfigError
from edgeshrink.strict_toml import Key, Table, nearest


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


BUDGET_KEYS: Final = (
    Key(name="flash", kind="size", low=1, default=None, field="flash_bytes",
        meaning="Most bytes of the model's files on the device"),
    Key(name="ram", kind="size", low=1, default=None, field="ram_bytes",
        meaning="Most RAM that the model and its runtime may hold"),
    Key(name="latency", kind="duration", low=1e-3, default=None, field="latency_ms",
        meaning="Longest time of one inference; a modelled latency counts with the upper end of "
        "its band"),
    Key(name="accuracy_drop", kind="number", low=0, high=1e9, default=None, unit="the metric's own",
        meaning="By how much the score may be worse than the float model's"),
)  # fmt: skip
DROP: Final = "drop"  # what `accuracy_drop` is called on the command line
EXAMPLES: Final = {
    "flash": "flash=512KiB",
    "ram": "ram=64KiB",
    "latency": "latency=20ms",
    DROP: "drop=0.01",
}


def read_budget(table: Table) -> Budget:
    """Read a `[budget]` table."""
    return Budget(**table.read(BUDGET_KEYS))


def parse_budget(text: str) -> Budget:
    """Parse `ram=64KiB,latency=20ms,flash=1MiB,drop=0.01`, any part of it."""
    option = "--budget"
    values: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if key not in EXAMPLES:
            raise ConfigError(option, f"has unknown key {key!r}", nearest(key, EXAMPLES))
        if key in values:
            raise ConfigError(option, f"gives {key!r} twice", "give each limit once")
        if not equals or not value:
            raise ConfigError(option, f"{key!r} has no value", f"write it like {EXAMPLES[key]}")
        values[key] = _number(value) if key == DROP else value
    keys = (
        replace(key, name=DROP, field=key.name) if key.name == "accuracy_drop" else key
        for key in BUDGET_KEYS
    )
    return Budget(**Table(values, option).read(tuple(keys)))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as err:
        raise ConfigError(
            "--budget", f"{DROP!r} is {text!r}", f"write a number, like {EXAMPLES[DROP]}"
        ) from err
