"""`edgeshrink fleet refresh FLEET`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import click

from edgeshrink.cli.fleet_options import on_a_fleet


@click.command("refresh")
@on_a_fleet
@click.option("--offline", is_flag=True, help="Also what people sign; asks for their passphrases.")
def command(
    folder: Path,
    keys_dir: Path | None,
    wait: str,
    request: Path | None,
    as_json: bool,
    offline: bool,
) -> None:
    """Sign anew what runs out, and say what people must sign before long.

    Without --offline it asks for nothing, and is made for a daily job.
    """
    from datetime import UTC

    from edgeshrink.cli.fleet_options import seconds, unlocking
    from edgeshrink.cli.fleet_sign import show_request
    from edgeshrink.cli.output import print_json
    from edgeshrink.errors import ConfigError
    from edgeshrink.fleet.repository import is_offline, refresh
    from edgeshrink.fleet.signing import drafting

    if request is not None:
        if not offline:
            raise ConfigError("--request", "is for what people sign", "add --offline")
        with drafting(folder, request, wait_s=seconds(wait)) as change:
            for role in filter(is_offline, change.repository.expiries()):
                change.renew(role)
        show_request(request, as_json=as_json)
        return
    now = datetime.now(UTC)
    done = refresh(
        folder, unlocking(folder, keys_dir), offline=offline, now=now, wait_s=seconds(wait)
    )
    if as_json:
        content = {
            "renewed": list(done.renewed),
            "expiries": {role: when.isoformat() for role, when in done.expiries.items()},
            "soon": list(done.soon),
        }
        print_json(content)
        return
    show_expiries(done.expiries, now, renewed=done.renewed, soon=done.soon)
    if done.soon:
        print(f"next: edgeshrink fleet refresh {folder} --offline, with people's keys")


def show_expiries(
    expiries: Mapping[str, datetime],
    now: datetime,
    *,
    renewed: tuple[str, ...] = (),
    soon: tuple[str, ...] = (),
) -> None:
    """Print until when each role's signatures hold."""
    width = max(map(len, expiries))
    for role, when in expiries.items():
        days = (when - now).total_seconds() / 86_400
        left = f"{days:5.0f} days" if days >= 0 else "  expired"
        note = "  signed now" if role in renewed else "  runs out soon" if role in soon else ""
        if days < 0:
            note = "  devices refuse everything until it is signed again"
        print(f"  {role:<{width}}  until {when:%Y-%m-%d}  {left}{note}")
