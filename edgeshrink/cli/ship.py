"""`edgeshrink ship ARTIFACT --repo FLEET`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from datetime import datetime

    from edgeshrink.fleet.publishing import Shipped
    from edgeshrink.release import Offer, RuntimeNeed


@click.command("ship")
@click.argument("what", metavar="ARTIFACT")
@click.option("--repo", "folder", required=True, metavar="FLEET", type=click.Path(path_type=Path),
              help="The fleet's folder, as `fleet init` made it.")  # fmt: skip
@click.option("--channel", default="stable", show_default=True, metavar="NAME")
@click.option("--rollout", "share", default="5%", show_default=True, metavar="PERCENT",
              help="To how many devices it is offered.")  # fmt: skip
@click.option("--version", metavar="X.Y.Z", help="[default: the next minor one]")
@click.option("--name", metavar="NAME", help="Of the model.  [default: the artifact's]")
@click.option("--target", metavar="NAME", help="For a bare model file: the device it is for.")
@click.option("--group", "groups", multiple=True, metavar="NAME",
              help="Offer it to a group of devices only; again for each.")  # fmt: skip
@click.option("--not-before", metavar="TIME", help="Offer it from then on: 2026-12-01T06:00Z")
@click.option("--runtime", "runtimes", multiple=True, metavar="NAME>=VERSION",
              help="What devices need, instead of what the file says.")  # fmt: skip
@click.option("--counter", type=int, metavar="N", help="[default: the highest so far and one]")
@click.option("--deltas", "n_deltas", type=click.IntRange(0, 20), default=3, show_default=True,
              metavar="N", help="From how many releases before.")  # fmt: skip
@click.option("--force", is_flag=True, help="Although it misses its budget.")
@click.option("--keys-dir", metavar="DIR", type=click.Path(path_type=Path),
              help="Where people's keys are.  [default: FLEET/keys]")  # fmt: skip
@click.option("--wait", default="10s", show_default=True, metavar="TIME",
              help="How long to wait for another publisher.")  # fmt: skip
@click.option("--request", metavar="FILE", type=click.Path(path_type=Path),
              help="Publish nothing: write what is to be signed, for `fleet sign`.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    what: str,
    folder: Path,
    channel: str,
    share: str,
    version: str | None,
    name: str | None,
    target: str | None,
    groups: tuple[str, ...],
    not_before: str | None,
    runtimes: tuple[str, ...],
    counter: int | None,
    n_deltas: int,
    force: bool,
    keys_dir: Path | None,
    wait: str,
    request: Path | None,
    as_json: bool,
) -> None:
    """Sign ARTIFACT and offer it to a part of a fleet.

    ARTIFACT is the folder of `edgeshrink build`, a .tflite or .pte (--target says for what), or
    NAME@VERSION: a release that is published, once more under a higher counter. So a fleet goes
    back to it.
    """
    from edgeshrink.fleet.extra import require_fleet

    require_fleet("fleet", "bsdiff4", "cyclonedx")
    from edgeshrink.cli.fleet_options import seconds, unlocking
    from edgeshrink.cli.output import progress
    from edgeshrink.errors import ConfigError
    from edgeshrink.fleet.contents import read_contents
    from edgeshrink.fleet.metadata import open_repository
    from edgeshrink.fleet.publishing import Order, ship, ship_again

    order = Order(
        channel=channel,
        share=percent(share, "--rollout"),
        groups=groups,
        not_before=None if not_before is None else moment(not_before),
        version=version,
        counter=counter,
        n_deltas=n_deltas,
        force=force,
    )
    needs = tuple(_runtime(text) for text in runtimes)
    signers, wait_s = unlocking(folder, keys_dir), seconds(wait)
    if request is not None and request.exists():
        raise ConfigError(str(request), "is there already", "choose another file for --request")
    open_repository(folder)  # says what is wrong before a model is read
    if "@" in what and not Path(what).exists():
        if name is not None or needs:
            option = "--name" if name is not None else "--runtime"
            raise ConfigError(option, f"does not go with {what}, which has one", "leave it out")
        with progress(shown=not as_json) as report:
            shipped = ship_again(
                what, folder, order, signers, request, target=target, wait_s=wait_s,
                progress=report,
            )  # fmt: skip
    else:
        contents = read_contents(Path(what), target=target, name=name, runtimes=needs)
        for note in contents.notes:
            print(f"note: {note}", file=sys.stderr)
        if force:
            for missed in contents.unmet:
                print(f"note: {missed.what}; published nevertheless", file=sys.stderr)
        with progress(shown=not as_json) as report:
            shipped = ship(
                contents, folder, order, signers, request, wait_s=wait_s, progress=report
            )
    _show(shipped, folder, request, as_json=as_json)


def percent(text: str, option: str) -> float:
    """Return the share that `5%` says."""
    from edgeshrink.errors import ConfigError

    number = text.strip().removesuffix("%").strip()
    try:
        share = float(number) / 100
    except ValueError:
        share = -1.0
    if not text.strip().endswith("%") or not 0 <= share <= 1:
        raise ConfigError(option, f"is {text!r:.40}", "write 0% to 100%")
    return share


def moment(text: str) -> datetime:
    """Return the time that `2026-12-01T06:00Z` says."""
    from datetime import datetime

    from edgeshrink.errors import ConfigError

    fix = "write a time with its zone, such as 2026-12-01T06:00Z or 2026-12-01T07:00+01:00"
    try:
        when = datetime.fromisoformat(text)
    except ValueError as err:
        raise ConfigError("--not-before", f"is {text!r:.40}", fix) from err
    if when.tzinfo is None:
        raise ConfigError("--not-before", f"{text} has no time zone", fix)
    return when


def _runtime(text: str) -> RuntimeNeed:
    from edgeshrink.errors import ConfigError
    from edgeshrink.fleet.eligibility import version_key
    from edgeshrink.fleet.selftest import READS
    from edgeshrink.release import RuntimeNeed

    name, given, version = text.partition(">=")
    if name not in READS or not given or not version_key(version):
        fix = f"write one of {', '.join(READS)} and a version, such as litert>=2.3.0"
        raise ConfigError("--runtime", f"is {text!r:.80}", fix)
    return RuntimeNeed(name=name, min_version=version)


def to_whom(offer: Offer) -> str:
    """Return in words whom a release is offered to."""
    words = f"{100 * offer.share:g} % of devices"
    if offer.groups:
        words += f" of the groups {', '.join(offer.groups)}"
    if offer.not_before is not None:
        words += f", not before {brief_time(offer.not_before)}"
    return words if offer.state == "active" else f"{offer.state}; was for {words}"


def brief_time(when: datetime) -> str:
    """Return a time to the minute, in UTC."""
    from datetime import UTC

    return f"{when.astimezone(UTC):%Y-%m-%dT%H:%MZ}"


def _show(shipped: Shipped, folder: Path, request: Path | None, *, as_json: bool) -> None:
    from edgeshrink.cli.fleet_sign import show_request
    from edgeshrink.cli.output import print_json
    from edgeshrink.units import format_bytes

    release = shipped.release
    if as_json:
        content: dict[str, Any] = {
            "release": release.to_json(),
            "path": release.path,
            "bytes": shipped.n_bytes,
            "deltas": [
                {
                    "from": d.base.version,
                    "counter": d.base.counter,
                    "bytes": d.n_bytes,
                    "published": d.is_published,
                }
                for d in shipped.deltas
            ],
            "channel": shipped.channel,
            "offer": shipped.offer.to_json(),
            "signed_by": list(shipped.signed_by),
            "request": None if request is None else str(request),
        }
        print_json(content)
        return
    print(f"{release.label} (counter {release.counter}) for {release.target}")
    print(f"  archive {format_bytes(shipped.n_bytes)}: {len(release.files)} files, "
          f"{format_bytes(release.n_bytes)} on the device")  # fmt: skip
    for delta in shipped.deltas:
        part = f"{100 * delta.n_bytes / shipped.n_bytes:.0f} % of the archive"
        note = "" if delta.is_published else ": not published"
        print(f"  delta from {delta.base.version} {format_bytes(delta.n_bytes)}, {part}{note}")
    needs = " or ".join(f"{need.name} >= {need.min_version}" for need in release.runtimes)
    print(f"  runs on {needs}")
    if request is not None:
        print(f"  to be offered in {shipped.channel} to {to_whom(shipped.offer)}")
        show_request(request, as_json=False)
        return
    print(f"  signed by {', '.join(shipped.signed_by)}")
    print(f"  offered in {shipped.channel} to {to_whom(shipped.offer)}")
    if shipped.offer.share < 1:
        print(f"next: edgeshrink fleet rollout {folder} {release.label} --to 50%")
