"""`edgeshrink fleet rollout FLEET NAME@VERSION --to 50%`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgeshrink.fleet.rollouts import Changed


@click.command("rollout")
@click.argument("folder", metavar="FLEET", type=click.Path(path_type=Path))
@click.argument("release", metavar="NAME@VERSION")
@click.option("--to", "share", metavar="PERCENT", help="Offer it to so many devices; ends a halt.")
@click.option("--promote", is_flag=True, help="Offer it to all: the same as --to 100%.")
@click.option("--halt", is_flag=True, help="Offer it to no further device.")
@click.option("--withdraw", is_flag=True,
              help="For good: devices that have it move to a later release.")  # fmt: skip
@click.option("--channel", metavar="NAME",
              help="[default: all that offer it]")  # fmt: skip
@click.option("--target", metavar="NAME", help="[default: all that it is published for]")
@click.option("--group", "groups", multiple=True, metavar="NAME",
              help="Offer it to a group of devices only; again for each.")  # fmt: skip
@click.option("--everyone", is_flag=True, help="Offer it to all groups.")
@click.option("--not-before", metavar="TIME", help="Offer it from then on: 2026-12-01T06:00Z")
@click.option("--wait", default="10s", show_default=True, metavar="TIME",
              help="How long to wait for another publisher.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    folder: Path,
    release: str,
    share: str | None,
    promote: bool,
    halt: bool,
    withdraw: bool,
    channel: str | None,
    target: str | None,
    groups: tuple[str, ...],
    everyone: bool,
    not_before: str | None,
    wait: str,
    as_json: bool,
) -> None:
    """Offer a release to more devices or to fewer, halt it, or withdraw it.

    The machine's own key signs this; nobody is asked for a passphrase. Who is offered a smaller
    share, and halting, take nothing away: devices that have the release keep it. NAME@VERSION+N
    means the one with counter N, where a version is published under several.
    """
    from datetime import UTC, datetime

    from edgeshrink.cli.fleet_options import seconds
    from edgeshrink.cli.output import print_json
    from edgeshrink.cli.ship import moment, percent
    from edgeshrink.errors import ConfigError
    from edgeshrink.fleet.reports import resume
    from edgeshrink.fleet.rollouts import Wanted, change_rollout

    options = {"--to": share is not None, "--promote": promote, "--halt": halt}
    chosen = [option for option, given in (options | {"--withdraw": withdraw}).items() if given]
    narrows = bool(groups) or everyone or not_before is not None
    if len(chosen) > 1:
        raise ConfigError(" and ".join(chosen), "do not go together", "choose one")
    if not chosen and not narrows:
        fix = "give --to 50%, --promote, --halt or --withdraw"
        raise ConfigError(release, "stays as it is: nothing was asked for", fix)
    if groups and everyone:
        raise ConfigError("--group", "does not go with --everyone", "leave one of them out")
    if narrows and (halt or withdraw):
        fix = "leave --group, --everyone and --not-before out"
        raise ConfigError(chosen[0], "is for all that have it", fix)
    wanted = Wanted(
        action="halt" if halt else "withdraw" if withdraw else "offer",
        share=1.0 if promote else None if share is None else percent(share, "--to"),
        groups=() if everyone else groups or None,
        not_before=None if not_before is None else moment(not_before),
    )
    done = change_rollout(
        folder, release, wanted, target=target, channel=channel, wait_s=seconds(wait)
    )
    going_on = [
        c.release.path
        for c in done
        if c.before is not None and (c.before.state, c.after.state) == ("halted", "active")
    ]
    resume(folder, going_on, datetime.now(UTC))
    if as_json:
        print_json([_json(change) for change in done])
        return
    for change in done:
        _show(change, folder)


def _json(change: Changed) -> dict[str, object]:
    successor = None if change.successor is None else change.successor[0].path
    return {
        "target": change.target,
        "channel": change.channel,
        "path": change.release.path,
        "before": None if change.before is None else change.before.to_json(),
        "after": change.after.to_json(),
        "successor": successor,
    }


def _show(change: Changed, folder: Path) -> None:
    from edgeshrink.cli.ship import to_whom

    release, after, before = change.release, change.after, change.before
    where = f"{release.label} (counter {release.counter}) for {change.target} in {change.channel}"
    if after == before:
        print(f"{where}: {to_whom(after)}, as before")
    elif after.state == "halted":
        print(f"{where}: halted; devices that have it keep it")
        print(f"next: --to {100 * after.share:g}% goes on, --withdraw is for good")
    elif after.state == "active":
        was = "" if before is None else f" (was: {to_whom(before)})"
        print(f"{where}: offered to {to_whom(after)}{was}")
        if before is not None and after.share < before.share:
            print("note: devices that have it keep it")
    if after.state == "withdrawn":
        print(f"{where}: withdrawn")
        if change.successor is None:
            print("  no later release is offered there: devices that have it keep it, and say so")
            again = "ARTIFACT" if change.earlier is None else change.earlier.label
            print(f"next: edgeshrink ship {again} --repo {folder}, and they move to that")
        else:
            later, offer = change.successor
            print(
                f"  devices that have it move to {later.label} (counter {later.counter}), "
                f"which is offered to {to_whom(offer)}"
            )
