"""`edgeshrink fleet collect DIR [FLEET]`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgeshrink.fleet.reports import Halted


@click.command("collect")
@click.argument("source", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("folder", metavar="[FLEET]", default=".", type=click.Path(path_type=Path))
@click.option("--wait", default="10s", show_default=True, metavar="TIME",
              help="How long to wait for another publisher.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(source: Path, folder: Path, wait: str, as_json: bool) -> None:
    """Take in the status files of devices below DIR, and halt releases that fail.

    DIR may hold `status.json` of many devices under any names that end in .json, for instance
    copied there by rsync. The limits are in FLEET/fleet.toml.
    """
    from datetime import UTC, datetime

    from edgeshrink.cli.fleet_options import seconds
    from edgeshrink.cli.output import print_json
    from edgeshrink.errors import ConfigError
    from edgeshrink.fleet.reports import collect

    done = collect(source, folder, datetime.now(UTC), wait_s=seconds(wait))
    for fault in done.faults:
        print(f"note: {fault}", file=sys.stderr)
    if as_json:
        content = {
            "new": done.n_new,
            "old": done.n_old,
            "refused": list(done.faults),
            "others": done.n_other,
            "halted": [dict(vars(halted)) for halted in done.halted],
        }
        print_json(content)
    else:
        taken = "report" if done.n_new == 1 else "reports"
        print(f"{done.n_new} {taken} taken, {done.n_old} without news, {len(done.faults)} refused")
        for halted in done.halted:
            show_halted(halted, folder)
    if done.faults and not done.n_new and not done.n_old:
        raise ConfigError(str(source), "holds no report that can be read", "see the notes above")


def show_halted(halted: Halted, folder: Path) -> None:
    """Print what was halted, why, and what can be done."""
    print(f"halted {halted.label} for {halted.target} in {halted.channel}: {halted.reason}")
    print(f"next: edgeshrink fleet rollout {folder} {halted.label} --withdraw, or --to 5% to go on")
