"""Sizes and durations as people write them (`64 KiB`, `20ms`), and back."""

from __future__ import annotations

import math
import re
from typing import Final

BYTE_UNITS: Final = {
    "B": 1,
    "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
MS_UNITS: Final = {"us": 1e-3, "\u00b5s": 1e-3, "\u03bcs": 1e-3, "ms": 1.0, "s": 1e3}

PERIOD_UNITS: Final = MS_UNITS | {"min": 6e4, "h": 3.6e6, "d": 8.64e7}

_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z\u00b5\u03bc]+)\s*")


def _parse(text: str, units: dict[str, int] | dict[str, float], kind: str) -> float:
    match = _QUANTITY.fullmatch(text)
    if not match or match[2] not in units:
        words = ", ".join(unit for unit in units if unit.isascii())
        raise ValueError(f"{text!r} is not a {kind}; write a number and one of {words}")
    value = float(match[1]) * units[match[2]]
    if not math.isfinite(value):
        raise ValueError(f"the {kind} is too large")
    return value


def parse_bytes(text: str) -> int:
    """Return the bytes that `text` (such as `64KiB`) says; ValueError names the units allowed."""
    return round(_parse(text, BYTE_UNITS, "size"))


def parse_ms(text: str) -> float:
    """Return the milliseconds that `text` (such as `20ms`) says; ValueError names the units."""
    return _parse(text, MS_UNITS, "duration")


def parse_period_ms(text: str) -> float:
    """Return the milliseconds that `text` (such as `10min`) says; ValueError names the units."""
    return _parse(text, PERIOD_UNITS, "time")


def format_hours(hours: float) -> str:
    """Return a long time for people: three significant figures in years, days or hours."""
    for unit, length in (("years", 365.25 * 24), ("days", 24.0)):
        if hours >= 2 * length:
            return f"{hours / length:.3g} {unit}"
    return f"{hours:.3g} h" if hours >= 1 else format_ms(hours * 3.6e6)


def format_score(value: float) -> str:
    """Return a score or a drop for people: four decimals, or three significant figures if small."""
    if abs(value) >= 0.01 or value == 0:
        return f"{value + 0.0:.4f}"  # no negative zero
    return f"{value:.3g}" if abs(value) < 1e-4 else f"{value:#.3g}"


def format_scaled(value: float, unit: str) -> str:
    """Return a value in micro-units (`uJ`, `uW`) for people, in three significant figures."""
    for prefix, factor in (("", 1e6), ("m", 1e3)):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit[1:]}"
    return f"{value:.3g} {unit}"


def format_bytes(n_bytes: float) -> str:
    """Return `n_bytes` for people: the largest binary unit that leaves a number of 1 or more."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if abs(n_bytes) >= BYTE_UNITS[unit]:
            return f"{n_bytes / BYTE_UNITS[unit]:.1f} {unit}"
    return f"{n_bytes:.0f} B"


def format_ms(ms: float) -> str:
    """Return a duration for people: three significant figures in s, ms or us."""
    for unit in ("s", "ms", "us"):
        value = float(f"{ms / MS_UNITS[unit]:.3g}")
        if abs(value) >= 1:
            break
    return f"{value:g} {unit}"
