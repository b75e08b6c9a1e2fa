"""What the owner of a fleet may set: `fleet.toml` in the fleet's folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from edgeshrink.errors import ConfigError
from edgeshrink.release import NAME
from edgeshrink.strict_toml import read_toml

FILE: Final = "fleet.toml"
# How many days signatures of a role hold. Who withholds updates from a device can do so no longer
# than the timestamp's; what people sign by hand lasts long, what a cron job signs lasts short.
EXPIRY_DAYS: Final = {"root": 730, "targets": 365, "snapshot": 60, "rollout": 60, "timestamp": 14}


@dataclass(frozen=True, kw_only=True)
class Halt:
    """When a release is offered to no further device, by what devices report."""

    failure_rate: float = 0.05  # share of the reports about a release; above it, halt
    score_drop: float = 0.05  # by what share devices may score worse with it than before
    min_reports: int = 20  # fewer than these decide nothing


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything in `fleet.toml`."""

    name: str
    expiry_days: Mapping[str, int] = field(default_factory=lambda: dict(EXPIRY_DAYS))
    warn_days: int = 45  # before a signature that needs a person runs out
    halt: Halt = Halt()


def check_name(name: str) -> None:
    """Raise ConfigError unless `name` can name a fleet."""
    if not NAME.fullmatch(name):
        fix = "use up to 64 lower-case letters, digits, '.', '_' and '-'"
        raise ConfigError("--name", f"is {name!r:.80}", fix)


def read_settings(path: Path) -> Settings:
    """Read a `fleet.toml`; ConfigError names file and key of what is wrong."""
    table = read_toml(path)
    name = table.text("name")
    if not NAME.fullmatch(name):
        raise table.error("name", f"is {name!r:.80}", "use lower-case letters, digits, '.', '_'")
    warn_days = table.integer("warn_days", 1, 3650, Settings.warn_days)
    days = table.table("expiry_days")
    halt = table.table("halt")
    settings = Settings(
        name=name,
        warn_days=warn_days,
        expiry_days={role: days.integer(role, 1, 3650, n) for role, n in EXPIRY_DAYS.items()},
        halt=Halt(
            failure_rate=halt.number("failure_rate", 0, 1, Halt.failure_rate),
            score_drop=halt.number("score_drop", 0, 1, Halt.score_drop),
            min_reports=halt.integer("min_reports", 1, 10**6, Halt.min_reports),
        ),
    )
    table.finish()
    return settings


def write_settings(settings: Settings) -> str:
    """Return the text of a `fleet.toml` that reads as `settings`."""
    days = "\n".join(f"{role} = {n}" for role, n in settings.expiry_days.items())
    return f"""\
name = "{settings.name}"
warn_days = {settings.warn_days} # how long before a signature runs out `fleet refresh` says so

[expiry_days] # how long signatures hold, from when they are made
{days}

[halt] # when a release is offered to no further device
failure_rate = {settings.halt.failure_rate} # share of the reports about it
score_drop = {settings.halt.score_drop} # by what share devices may score worse with it than before
min_reports = {settings.halt.min_reports} # devices that must have said something about it
"""
