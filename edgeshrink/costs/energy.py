"""Energy of an inference, and how long a battery lasts: power of a state times the time in it.

What a device draws stands in its target file, by supply and state, with its source. How far such
figures are off comes from `data/energy.json` (`benchmarks/energy.py` writes it): from published
energies of inferences, each predicted from the other models' power, or from how far the one chip
that has both kinds of figures draws more than its maker's typical current.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

from edgeshrink.errors import ConfigError
from edgeshrink.profile import Figure
from edgeshrink.strict_toml import nearest
from edgeshrink.target import Supply, Target, source_of
from edgeshrink.units import format_ms, parse_period_ms

DATA: Final = Path(__file__).parent / "data" / "energy.json"
BATTERY_EXAMPLE: Final = "220mAh,3V"
CAPACITY_UNITS: Final = {"mAh": 1.0, "Ah": 1e3}
MAX_MAH: Final = 1e9
MAX_V: Final = 1e3


@dataclass(frozen=True, kw_only=True)
class Battery:
    """A battery as its label has it."""

    capacity_mah: float
    voltage_v: float

    @property
    def energy_mwh(self) -> float:
        """The rated charge at the rated voltage."""
        return self.capacity_mah * self.voltage_v


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What a device draws in one state; the band is meant to hold the truth nine times in ten."""

    value_mw: float
    low_mw: float
    high_mw: float
    is_validated: bool  # the band comes from published energies of such inferences
    basis: str


@dataclass(frozen=True, kw_only=True)
class PowerUse:
    """How a device is fed, and what it draws while a model runs and between two inferences."""

    supply: Supply
    voltage_v: float
    active: Draw
    resting: Draw | None  # None: no figure is known
    resting_state: str


@dataclass(frozen=True, kw_only=True)
class Duty:
    """How often a model runs, and from what battery."""

    period_ms: float | None = None
    battery: Battery | None = None
    supply: str | None = None  # the name of one of the target's supplies


def parse_battery(text: str) -> Battery:
    """Parse `220mAh,3V`; ConfigError says what is wrong."""
    option, found = "--battery", {}
    units = {**CAPACITY_UNITS, "V": 1.0}
    fix = f"write its capacity and voltage, like {BATTERY_EXAMPLE}"
    for part in (piece.strip() for piece in text.split(",")):
        unit = next((u for u in ("mAh", "Ah", "V") if part.endswith(u)), None)
        what = "voltage" if unit == "V" else "capacity"
        try:
            value = float(part.removesuffix(unit)) * units[unit] if unit else math.nan
        except ValueError:
            value = math.nan
        if unit is None or math.isnan(value):
            raise ConfigError(option, f"has {part!r}, which is no capacity and no voltage", fix)
        if what in found:
            raise ConfigError(option, f"gives its {what} twice", fix)
        limit = MAX_V if unit == "V" else MAX_MAH
        if not 0 < value <= limit:
            raise ConfigError(option, f"has a {what} of {part!r}", f"{fix}, both above 0")
        found[what] = value
    for what in ("capacity", "voltage"):
        if what not in found:
            raise ConfigError(option, f"is {text!r}, without a {what}", fix)
    return Battery(capacity_mah=found["capacity"], voltage_v=found["voltage"])


def parse_period(text: str) -> float:
    """Parse `1s`, `10min`; return milliseconds. ConfigError says what is wrong."""
    try:
        period_ms = parse_period_ms(text)
    except ValueError as err:
        raise ConfigError("--every", str(err), "write a time, like 1s or 10min") from err
    if period_ms <= 0:
        raise ConfigError("--every", f"is {text!r}", "it must be longer than nothing")
    return period_ms


def power_use(target: Target, duty: Duty, *, threads: int = 1) -> PowerUse | None:
    """Return what `target` draws; None where its file has no power figures.

    Args:
        target: The device.
        duty: Its supply, or the battery that feeds it; else the target's first supply.
        threads: Cores at work, of a board whose figures are those of all cores.

    Raises:
        ConfigError: there is no such supply.
    """
    supplies = target.power.supplies
    if duty.supply is not None and all(s.name != duty.supply for s in supplies):
        names = [s.name for s in supplies]
        raise ConfigError("--supply", f"{target.name} has no {duty.supply!r}", nearest(
            duty.supply, names))  # fmt: skip
    if not supplies:
        return None
    supply, voltage_v = _chosen(supplies, duty)
    is_direct = duty.battery is None or _takes(supply, duty.battery.voltage_v)
    factor = voltage_v / supply.voltage_v if supply.regulator == "ldo" else 1.0
    active = _scaled(_active(target, supply, threads), factor)
    resting = _resting(target, supply)
    resting = None if resting is None else _scaled(resting, factor)
    if not is_direct:
        active = _converted(active)
        resting = None if resting is None else _converted(resting)
    state = supply.sleep_state or "asleep"
    if supply.sleep_uw is None:
        state = "awake, idle"
    return PowerUse(
        supply=supply, voltage_v=voltage_v, active=active, resting=resting, resting_state=state
    )


def inference_energy(latency: Figure, use: PowerUse) -> Figure:
    """Return the energy of one inference: the active state's power times `latency`."""
    value = use.active.value_mw * latency.value  # mW x ms = uJ
    active = use.active
    return Figure(
        value=value,
        unit="uJ",
        how="modelled",
        low=value * math.exp(-_width(latency.value, latency.low, active.value_mw, active.low_mw)),
        high=value * math.exp(_width(latency.value, latency.high, active.value_mw, active.high_mw)),
        validated=active.is_validated and latency.validated is not False,
        note=f"{active.value_mw:.3g} mW at {use.voltage_v:g} V, {active.basis}",
    )


def average_power(latency: Figure, use: PowerUse, period_ms: float) -> Figure | None:
    """Return the average power of one inference per period, resting in between.

    Returns:
        None where it is not known what the device draws between two inferences.

    Raises:
        ConfigError: one inference takes longer than the period.
    """
    if latency.value > period_ms:
        raise ConfigError(
            "--every",
            f"is {format_ms(period_ms)}, one inference takes {format_ms(latency.value)}",
            "give a longer period",
        )
    if use.resting is None:
        return None
    energy = inference_energy(latency, use)
    busy = latency.value / period_ms
    rest = use.resting
    value_mw = energy.value / period_ms + rest.value_mw * (1 - busy)
    down = math.hypot((energy.value - energy.low) / period_ms, rest.value_mw - rest.low_mw)
    up = math.hypot((energy.high - energy.value) / period_ms, rest.high_mw - rest.value_mw)
    state = f"{rest.value_mw * 1e3:.3g} uW between, {use.resting_state}: {rest.basis}"
    return Figure(
        value=1e3 * value_mw,
        unit="uW",
        how="modelled",
        low=1e3 * max(rest.low_mw, value_mw - down),
        high=1e3 * min(max(use.active.high_mw, value_mw), value_mw + up),
        validated=False,
        note=f"busy {busy:.2%} of the time; {state}; without sensors, radio and waking up",
    )


def battery_life(battery: Battery, average: Figure) -> Figure:
    """Return how long a battery feeds an average power."""
    energy_uwh = 1e3 * battery.energy_mwh
    return Figure(
        value=energy_uwh / average.value,
        unit="h",
        how="modelled",
        low=energy_uwh / average.high,
        high=energy_uwh / average.low,
        validated=False,
        note=f"{battery.capacity_mah:g} mAh at {battery.voltage_v:g} V as rated: without "
        "self-discharge, and all of it usable",
    )


def energy_figures(
    figures: Mapping[str, Figure], target: Target, duty: Duty, *, threads: int = 1
) -> tuple[dict[str, Figure], tuple[str, ...]]:
    """Return what can be said of energy beside `figures`, and notes on what can't.

    Raises:
        ConfigError: no such supply, or an inference takes longer than the period.
    """
    latency = figures.get("latency_ms")
    use = power_use(target, duty, threads=threads)
    asked = duty.period_ms is not None or duty.battery is not None or duty.supply is not None
    if latency is None or use is None:
        what = "no latency is known" if latency is None else "no power figure of it is known"
        fix = "" if latency is None else "; give them in a target file of your own"
        return {}, ((f"no energy for {target.name}: {what}{fix}",) if asked else ())
    found = {"energy_uj": inference_energy(latency, use)}
    if duty.period_ms is None:
        return found, ()
    average = average_power(latency, use, duty.period_ms)
    if average is None:
        return found, (
            f"no average power: what {target.name} draws between two inferences is not known",
        )
    found["average_power_uw"] = average
    if duty.battery is not None:
        found["battery_life_h"] = battery_life(duty.battery, average)
    return found, ()


def _chosen(supplies: Sequence[Supply], duty: Duty) -> tuple[Supply, float]:
    """Return the supply that is asked for or nearest to the battery's voltage, and a voltage."""
    named = [s for s in supplies if s.name == duty.supply] or list(supplies)
    if duty.battery is None:
        return named[0], named[0].voltage_v
    volts = duty.battery.voltage_v
    fitting = [s for s in named if _takes(s, volts)]
    if not fitting:
        return named[0], named[0].voltage_v
    return min(fitting, key=lambda s: abs(s.voltage_v - volts)), volts


def _takes(supply: Supply, voltage_v: float) -> bool:
    low, high = supply.min_v or supply.voltage_v, supply.max_v or supply.voltage_v
    return low <= voltage_v <= high


def _active(target: Target, supply: Supply, threads: int) -> Draw:
    key = f"power.supplies.{supply.name}.active_mw"
    source = source_of(target, key)
    facts = _data()[supply.basis]
    low, high = supply.active_mw * facts["low"], supply.active_mw * facts["high"]
    value = supply.active_mw * facts["factor"]
    basis = facts["basis"]
    if supply.basis == "stress":
        idle, cores = supply.idle_mw or 0.0, max(1, target.cpu.n_cores)
        share = min(threads, cores) / cores
        peak = max(supply.peak_mw or 0.0, supply.active_mw)
        value = idle + (supply.active_mw - idle) * share
        low = idle + (supply.active_mw - idle) * share * facts["low"]
        high = (idle + (peak - idle) * share) * facts["high"]
        basis = f"{min(threads, cores)} of {cores} cores busy, {basis}"
    return Draw(
        value_mw=value,
        low_mw=low,
        high_mw=high,
        is_validated=supply.basis == "inference",
        basis=f"{basis} ({source})",
    )


def _resting(target: Target, supply: Supply) -> Draw | None:
    """Return what a device draws between two inferences: asleep, or awake where it can't sleep."""
    field = "sleep_uw" if supply.sleep_uw is not None else "idle_mw"
    value = supply.idle_mw if supply.sleep_uw is None else supply.sleep_uw / 1e3
    if value is None:
        return None
    source = source_of(target, f"power.supplies.{supply.name}.{field}")
    mark = source.partition(":")[0]
    facts = _data()["rest"]
    factor = facts["recalled" if mark == "recalled" else "sourced"]
    return Draw(
        value_mw=value, low_mw=value / factor, high_mw=value * factor, is_validated=False,
        basis=f"{source}, to a factor of {factor:g}",
    )  # fmt: skip


def _scaled(draw: Draw, factor: float) -> Draw:
    if factor == 1.0:
        return draw
    error = math.exp(_data()["voltage"]["width"])
    return replace(
        draw,
        value_mw=draw.value_mw * factor,
        low_mw=draw.low_mw * factor / error,
        high_mw=draw.high_mw * factor * error,
        basis=f"{draw.basis}, its current at another voltage",
    )


def _converted(draw: Draw) -> Draw:
    """Return what a battery of another voltage gives, through a converter of its own."""
    least, usual, most = _data()["converter"]["efficiency"]
    return replace(
        draw,
        value_mw=draw.value_mw / usual,
        low_mw=draw.low_mw / most,
        high_mw=draw.high_mw / least,
        basis=f"{draw.basis}, through a converter that passes {least:.0%} to {most:.0%} on",
    )


def _width(time: float, time_end: float, power: float, power_end: float) -> float:
    """Return the width of a product's band in log space; the two errors have nothing in common."""
    if not time > 0 or not time_end > 0:
        return 0.0
    return math.hypot(math.log(time_end / time), math.log(power_end / power))


@cache
def _data() -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))
    return found
