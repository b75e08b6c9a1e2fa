"""`edgeshrink fleet status FLEET`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgeshrink.fleet.reports import Seen, Tally
    from edgeshrink.fleet.rollouts import Published
    from edgeshrink.release import Offer

Places = list[tuple[str, "Offer"]]


@click.command("status")
@click.argument("folder", metavar="[FLEET]", default=".", type=click.Path(path_type=Path))
@click.option("--all", "show_all", is_flag=True, help="Also releases that no channel offers.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(folder: Path, show_all: bool, as_json: bool) -> None:
    """Show what is published, to whom it is offered, what runs out when, and what devices report.

    A failure is a device on which a release did not pass its self-test, did not keep the device
    well, or was not what was signed. A download that broke is none: it is counted as trouble.
    """
    from datetime import UTC, datetime

    from edgeshrink.cli.fleet_refresh import show_expiries
    from edgeshrink.cli.output import print_json
    from edgeshrink.fleet.metadata import open_repository
    from edgeshrink.fleet.reports import halt_reasons, survey
    from edgeshrink.fleet.repository import expiring_soon
    from edgeshrink.fleet.rollouts import list_published, read_channels

    now = datetime.now(UTC)
    repository = open_repository(folder)
    releases, seen, reasons = list_published(repository), survey(folder, now), halt_reasons(folder)
    places: dict[str, Places] = {one.release.path: [] for one in releases}
    for (_, channel), rollout in read_channels(repository).items():
        for offer in rollout.offers:
            places.setdefault(offer.path, []).append((channel, offer))
    soon = expiring_soon(repository, now)
    if as_json:
        content = {
            "name": repository.settings.name,
            "threshold": repository.threshold,
            "signers": sorted(repository.signers),
            "releases": [
                _json(one, places[one.release.path], seen, reasons.get(one.release.path))
                for one in releases
            ],
            "expiries": {role: t.isoformat() for role, t in repository.expiries().items()},
            "soon": list(soon),
            "devices": {
                "known": seen.n_devices,
                "last_day": seen.n_recent,
                "in_trouble": seen.n_trouble,
                "troubles": [{"reason": r, "devices": n} for r, n in seen.troubles],
                "versions": dict(seen.versions),
            },
            "halt": dict(vars(repository.settings.halt)),
        }
        print_json(content)
        return
    n_people = len(repository.signers)
    print(
        f"fleet {repository.settings.name}: {repository.threshold} of {n_people} people must sign"
    )
    shown = [
        one
        for one in releases
        if show_all or places[one.release.path] or seen.census.tally(one.release.path).n_running
    ]
    _show_releases(shown, places, seen, reasons)
    if len(shown) < len(releases):
        print(f"  and {len(releases) - len(shown)} that are offered nowhere (--all)")
    print()
    _show_devices(seen)
    print()
    print("signatures")
    show_expiries(repository.expiries(), now, soon=soon)
    if soon:
        print(f"next: edgeshrink fleet refresh {folder} --offline, with people's keys")


def _json(one: Published, offers: Places, seen: Seen, reason: str | None) -> dict[str, Any]:
    release, tally = one.release, seen.census.tally(one.release.path)
    return {
        "name": release.name,
        "version": release.version,
        "counter": release.counter,
        "target": release.target,
        "path": release.path,
        "bytes": one.n_bytes,
        "published": release.facts.get("published"),
        "offers": [{"channel": channel, **offer.to_json()} for channel, offer in offers],
        "halted_because": reason if any(o.state == "halted" for _, o in offers) else None,
        "devices": {
            "running": tally.n_running,
            "tried": tally.n_reports,
            "failed": tally.n_failed,
            "failure_rate": tally.failure_rate,
            "score": tally.score,
            "scores": tally.n_scores,
        },
    }


def _show_releases(
    releases: list[Published], places: dict[str, Places], seen: Seen, reasons: dict[str, str]
) -> None:
    from rich.console import Console
    from rich.table import Table

    if not releases:
        print("  no release; publish one with `edgeshrink ship`")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in ("release", "counter", "target", "offered in", "running", "failed", "score"):
        is_number = head in ("counter", "running", "failed", "score")
        table.add_column(head, justify="right" if is_number else "left", overflow="fold")
    for one in releases:
        release, tally = one.release, seen.census.tally(one.release.path)
        offered = "\n".join(f"{c}: {_briefly(o)}" for c, o in places[release.path]) or "nowhere"
        table.add_row(
            release.label, str(release.counter), release.target, offered,
            str(tally.n_running), _failures(tally),
            "" if tally.score is None else f"{tally.score:.4g} ({tally.n_scores})",
        )  # fmt: skip
    Console(highlight=False, markup=False).print(table)
    for one in releases:
        path = one.release.path
        if path in reasons and any(o.state == "halted" for _, o in places[path]):
            print(f"{one.release.label} for {one.release.target} was halted: {reasons[path]}")


def _briefly(offer: Offer) -> str:
    from edgeshrink.cli.ship import brief_time

    if offer.state != "active":
        return offer.state
    words = f"{100 * offer.share:g} %"
    if offer.groups:
        words += f" of {', '.join(offer.groups)}"
    if offer.not_before is not None:
        words += f" from {brief_time(offer.not_before)}"
    return words


def _failures(tally: Tally) -> str:
    if tally.failure_rate is None:
        return ""
    return f"{tally.n_failed} of {tally.n_reports}"


def _show_devices(seen: Seen) -> None:
    if not seen.n_devices:
        print("no device has reported; `fleet collect` and `fleet receive` take reports in")
        return
    have = "device has" if seen.n_devices == 1 else "devices have"
    print(f"{seen.n_devices} {have} reported, {seen.n_recent} of them within the last day")
    for label, count in seen.versions.items():
        print(f"  {count} run {label}")
    if seen.n_trouble:
        print(f"  {seen.n_trouble} had trouble that is no release's fault, most often:")
        for reason, count in seen.troubles:
            print(f"    {count}: {reason}")
