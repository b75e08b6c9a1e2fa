"""`edgeshrink agent --repo URL --root root.json --state DIR`."""

from __future__ import annotations

import random
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import click

if TYPE_CHECKING:
    from edgeshrink.fleet.agent import AgentConfig, Run

JITTER: Final = 0.1  # of the interval, either way: a fleet must not come all at once
FIRST_WAIT_S: Final = 60.0  # at most, before the first run: power comes back to many at once


@click.command("agent")
@click.option(
    "--repo", "repos", multiple=True, required=True, metavar="URL",
    help="The fleet's repository; again for each mirror.",
)  # fmt: skip
@click.option(
    "--root", required=True, metavar="FILE", type=click.Path(path_type=Path),
    help="root.json of the fleet, as it came with the device.",
)  # fmt: skip
@click.option(
    "--state", required=True, metavar="DIR", type=click.Path(path_type=Path),
    help="Where models, trusted metadata and status are kept.",
)  # fmt: skip
@click.option("--every", metavar="TIME", help="How often to look: 15min, 1h.  [default: 15min]")
@click.option("--once", is_flag=True, help="Look once, and end.")
@click.option("--device-id", metavar="NAME", help="[default: made from the machine's id]")
@click.option("--target", metavar="NAME", help="What this device is.  [default: found out]")
@click.option("--group", "groups", multiple=True, metavar="NAME", help="A group it belongs to.")
@click.option("--channel", default="stable", show_default=True, metavar="NAME")
@click.option("--model", "names", multiple=True, metavar="NAME", help="[default: all offered]")
@click.option(
    "--health-command", metavar="COMMAND",
    help="Must end with 0 after a switch, else the device goes back.",
)  # fmt: skip
@click.option("--health-timeout", default="60s", show_default=True, metavar="TIME")
@click.option("--keep", default=2, show_default=True, type=click.IntRange(1, 100), metavar="N",
              help="Releases kept on the device.")  # fmt: skip
@click.option("--report-url", "report_urls", multiple=True, metavar="URL",
              help="Where to POST the status.")  # fmt: skip
@click.option("--report-timeout", default="10s", show_default=True, metavar="TIME")
@click.option("--print-systemd", is_flag=True, help="Print a unit for this command, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print the status, one document a run.")
def command(
    repos: tuple[str, ...],
    root: Path,
    state: Path,
    every: str | None,
    once: bool,
    device_id: str | None,
    target: str | None,
    groups: tuple[str, ...],
    channel: str,
    names: tuple[str, ...],
    health_command: str | None,
    health_timeout: str,
    keep: int,
    report_urls: tuple[str, ...],
    report_timeout: str,
    print_systemd: bool,
    as_json: bool,
) -> None:
    """Keep the models of this device up to date: verify, self-test, switch, roll back.

    The current release of a model is DIR/models/NAME/current/, a link that is changed in one step.
    """
    from edgeshrink.errors import ConfigError

    if once and every is not None:
        raise ConfigError("--every", "does not go with --once", "leave one of them out")
    interval_s = _seconds(every or "15min", "--every")
    for url in repos + report_urls:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(url, "is no http or https URL", "write https://HOST/PATH")
    health_s = _seconds(health_timeout, "--health-timeout")
    report_s = _seconds(report_timeout, "--report-timeout")
    health_words = _words(health_command)
    if print_systemd:
        print(_unit(), end="")
        return
    from edgeshrink.fleet.extra import require_fleet

    require_fleet("device")
    from edgeshrink.fleet.agent import AgentConfig
    from edgeshrink.fleet.installing import HealthCheck
    from edgeshrink.release import CHANNEL

    for option, words in (("--channel", (channel,)), ("--group", groups)):
        for word in words:
            if not CHANNEL.fullmatch(word):
                fix = "use lower-case letters, digits, _ and -"
                raise ConfigError(option, f"is {word!r:.80}", fix)
    config = AgentConfig(
        mirrors=repos,
        root=root,
        state=state,
        device_id=device_id,
        target=target,
        groups=frozenset(groups),
        channel=channel,
        names=frozenset(names),
        health=None if health_words is None else HealthCheck(
            command=health_words, timeout_s=health_s
        ),
        keep_slots=keep,
        report_urls=report_urls,
        report_timeout_s=report_s,
    )  # fmt: skip
    if once:
        _run(config, as_json=as_json)
    else:
        _loop(config, interval_s, as_json=as_json)


def _words(command: str | None) -> tuple[str, ...] | None:
    from edgeshrink.errors import ConfigError

    if command is None:
        return None
    try:
        words = tuple(shlex.split(command))
    except ValueError as err:
        raise ConfigError("--health-command", f"can't be read ({err})", "check quotes") from err
    if not words:
        raise ConfigError("--health-command", "is empty", "leave it out, or name a program")
    return words


def _seconds(text: str, option: str) -> float:
    """Return the seconds that `15m`, `15min` or `90s` say."""
    from edgeshrink.errors import ConfigError
    from edgeshrink.units import parse_period_ms

    plain = f"{text}in" if text.endswith("m") and text[:-1].strip().isdecimal() else text
    try:
        seconds = parse_period_ms(plain) / 1000
    except ValueError as err:
        raise ConfigError(option, str(err), "such as 15min") from err
    if not 0.1 <= seconds <= 86_400 * 30:
        raise ConfigError(option, f"is {text}", "choose between 100ms and 30d")
    return seconds


def _run(config: AgentConfig, *, as_json: bool) -> None:
    """Run once and print; raise what went wrong."""
    from edgeshrink.fleet.agent import run_once

    run = run_once(config)
    _show(run, as_json=as_json)
    if run.error is not None:
        raise run.error


def _loop(config: AgentConfig, interval_s: float, *, as_json: bool) -> NoReturn:
    """Run for ever. What goes wrong is told, and tried again next time."""
    from edgeshrink.errors import ConfigError, EdgeshrinkError
    from edgeshrink.fleet.agent import run_once

    time.sleep(random.uniform(0, min(FIRST_WAIT_S, JITTER * interval_s)))
    while True:
        try:
            run = run_once(config)
            _show(run, as_json=as_json)
            if run.error is not None:
                print(f"error: {run.error}", file=sys.stderr, flush=True)
        except ConfigError:
            raise  # no later run would go better
        except EdgeshrinkError as err:
            print(f"error: {err}", file=sys.stderr, flush=True)
        time.sleep(interval_s * random.uniform(1 - JITTER, 1 + JITTER))


def _show(run: Run, *, as_json: bool) -> None:
    from edgeshrink.cli.output import print_json

    status = run.status
    if as_json:
        print_json(status.to_json())
    else:
        for event in status.events:
            what = " ".join(filter(None, (event.release, event.outcome)))
            if event.how:
                what += f" by {event.how}"
            if event.self_test is not None:
                test = event.self_test
                what += (
                    f"; {test['samples']} golden samples in {test['runtime']}, "
                    f"largest difference {test['largest']:g} of {test['limit']:g}"
                )
            print(f"{what}: {event.reason}" if event.reason else what)
        for name, facts in status.models.items():
            print(f"{name} {facts['version']} (counter {facts['counter']}) at {facts['path']}")
        if not status.models:
            print("no model is installed")
        if status.clock_is_behind:
            print("the clock is behind; time is taken to be when metadata was last valid")
    for fault in run.report_faults:
        print(f"note: report lost: {fault}", file=sys.stderr)
    sys.stdout.flush()


def _unit() -> str:
    """Return a systemd unit that runs this very command, but for `--print-systemd`."""
    arguments = [a for a in sys.argv[1:] if a not in ("--print-systemd", "--once", "--json")]
    program = [sys.executable, "-m", "edgeshrink", *arguments]
    context = click.get_current_context()
    state = Path(context.params["state"]).resolve()
    folder = _quoted(str(state))
    return f"""\
[Unit]
Description=edgeshrink: keep the models of this device up to date
Wants=network-online.target
After=network-online.target

[Service]
WorkingDirectory={str(Path.cwd()).replace("%", "%%")}
ExecStartPre=+/bin/mkdir -p {folder}
ExecStart={" ".join(map(_quoted, program))}
Restart=always
RestartSec=30
Nice=10
MemoryMax=512M
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths=-{folder}
RestrictSUIDSGID=yes
LockPersonality=yes

[Install]
WantedBy=multi-user.target
"""


def _quoted(word: str) -> str:
    """Return a word of a command as systemd wants it, which has specifiers and variables."""
    plain = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{plain}"' if not plain or set(plain) & set(" '\\;\"") else plain
