"""What devices report: kept one file a device, counted by release, and judged against limits.

Reports are not signed. Who can send them can make a release look bad, so that it is halted, or look
well; nothing that is reported makes a device install anything.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, get_args

from edgeshrink.errors import ConfigError, EdgeshrinkError
from edgeshrink.fleet.device import DEVICE_ID
from edgeshrink.fleet.eligibility import TRIED
from edgeshrink.fleet.metadata import Repository, open_repository
from edgeshrink.fleet.repository import edit
from edgeshrink.fleet.rollouts import Published, list_published, put_offer, read_channels
from edgeshrink.fleet.settings import Halt
from edgeshrink.fleet.slots import read_json
from edgeshrink.fleet.status import FORMAT_VERSION, Outcome
from edgeshrink.release import CHANNEL, MAX_COUNTER, NAME, TARGET, VERSION, release_path

REPORTS: Final = "reports"
DEVICES: Final = f"{REPORTS}/devices"
DECISIONS: Final = f"{REPORTS}/decisions.json"  # what was halted and why, and from when on to count
MAX_REPORT_BYTES: Final = 65_536
MAX_ENTRIES: Final = 64  # of models, events, groups, and outcomes that are remembered of a device
MAX_REASON: Final = 200
# What is wrong with a release itself; all else that fails is the way to it, or the device.
RELEASE_FAULTS: Final = frozenset(
    {
        "LyingManifestError", "GoldenVectorsError", "UnsafeArchiveError", "DecompressionBombError",
        "WrongTargetError",
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Running:
    """The release of one model that a device has."""

    version: str
    counter: int
    is_confirmed: bool
    score: float | None = None  # what the application measured


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What became of a release on a device, the last time that it said so."""

    is_good: bool
    time: datetime
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is known of one device: its last report, and what became of releases there."""

    device: str
    target: str
    channel: str
    groups: tuple[str, ...]
    time: datetime  # its own, but never later than when the report arrived
    agent: str
    outcome: Outcome
    models: Mapping[str, Running]
    tried: Mapping[str, Tried]  # by path of the release's archive
    trouble: str = ""  # what went wrong that is no release's fault

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {
            "format": FORMAT_VERSION,
            "device": self.device,
            "target": self.target,
            "channel": self.channel,
            "groups": list(self.groups),
            "time": self.time.isoformat(timespec="seconds"),
            "agent": self.agent,
            "outcome": self.outcome,
            "models": {
                name: {"version": r.version, "counter": r.counter, "confirmed": r.is_confirmed}
                | ({} if r.score is None else {"score": r.score})
                for name, r in self.models.items()
            },
            "tried": {
                path: {
                    "good": t.is_good,
                    "time": t.time.isoformat(timespec="seconds"),
                    "reason": t.reason,
                }
                for path, t in self.tried.items()
            },
            "trouble": self.trouble,
        }

    def running(self) -> Iterator[tuple[str, Running]]:
        """Yield what the device has, by path of the release's archive."""
        for name, r in self.models.items():
            yield release_path(self.target, name, r.version, r.counter), r


# ---- reading


def read_report(data: bytes, place: str, now: datetime, *, is_kept: bool = False) -> Report:
    """Return what a device's status says; ConfigError names what is wrong with it.

    Args:
        data: The file, or the body of a POST: of any content.
        place: What to call it in errors.
        now: When it arrived.
        is_kept: Whether it is one that `keep_report` wrote, and not one that a device sent.
    """
    if len(data) > MAX_REPORT_BYTES and not is_kept:
        what = f"has {len(data):,} bytes, {MAX_REPORT_BYTES:,} are the limit"
        raise ConfigError(place, what, "send the status.json of an agent")
    try:
        content = json.loads(data)
        return _report(content, now, is_kept=is_kept)
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as err:
        reason = f"{err} is missing" if isinstance(err, KeyError) else str(err)
        fix = "send the status.json of an agent"
        raise ConfigError(place, f"is no report of a device: {reason:.200}", fix) from err


def _report(content: Any, now: datetime, *, is_kept: bool) -> Report:
    if not isinstance(content, dict):
        raise TypeError(f"{content!r:.80} is no object")
    if content["format"] != FORMAT_VERSION:
        raise ValueError(f"format {content['format']!r:.20}, {FORMAT_VERSION} is known here")
    if content["outcome"] not in get_args(Outcome):
        raise ValueError(f"outcome is {content['outcome']!r:.40}")
    target = _text(content["target"], TARGET, "target")
    models = {
        _text(name, NAME, "model"): _running(facts)
        for name, facts in _entries(content["models"], dict, "models").items()
        if facts.get("version") is not None
    }
    time, groups = _time(content["time"], now), _entries(content["groups"], list, "groups")
    report = Report(
        device=_text(content["device"], DEVICE_ID, "device"),
        target=target,
        channel=_text(content["channel"], CHANNEL, "channel"),
        groups=tuple(_text(name, CHANNEL, "group") for name in groups),
        time=time,
        agent=_plain(content.get("agent", ""), 40),
        outcome=content["outcome"],
        models=models,
        tried={},
    )
    if is_kept:
        kept = {path: _tried(facts, now) for path, facts in content["tried"].items()}
        return replace(report, tried=kept, trouble=str(content["trouble"]))
    tried = {path: Tried(is_good=True, time=time) for path, r in report.running() if r.is_confirmed}
    trouble = ""
    for event in _entries(content["events"], list, "events"):
        found = _judged(event, target, time)
        if found is not None:
            tried[found[0]] = found[1]
        elif event.get("outcome") == "failed":
            trouble = _plain(event.get("reason", ""), MAX_REASON)
    return replace(report, tried=tried, trouble=trouble)


def _judged(event: Any, target: str, time: datetime) -> tuple[str, Tried] | None:
    """Return the release that an event is about and what became of it; None if nothing did."""
    if not isinstance(event, dict):
        raise TypeError(f"an event is {event!r:.80}")
    outcome, reason = event.get("outcome"), _plain(event.get("reason", ""), MAX_REASON)
    is_good = outcome == "updated"
    is_bad = (
        outcome == "rolled-back"
        or (outcome == "failed" and event.get("error") in RELEASE_FAULTS)
        or (outcome == "ineligible" and reason.startswith(TRIED))
    )
    if "release" not in event or "counter" not in event or not (is_good or is_bad):
        return None
    name, _, version = str(event["release"]).partition("@")
    path = release_path(
        target,
        _text(name, NAME, "release"),
        _text(version, VERSION, "release"),
        _counter(event["counter"]),
    )
    return path, Tried(is_good=is_good, time=time, reason="" if is_good else reason)


def _running(facts: Any) -> Running:
    score = facts.get("score")
    if score is not None and (type(score) not in (int, float) or not math.isfinite(score)):
        raise ValueError(f"score is {score!r:.40}")
    return Running(
        version=_text(facts["version"], VERSION, "version"),
        counter=_counter(facts["counter"]),
        is_confirmed=facts.get("confirmed") is True,
        score=None if score is None else float(score),
    )


def _tried(facts: Any, now: datetime) -> Tried:
    return Tried(
        is_good=facts["good"] is True,
        time=_time(facts["time"], now),
        reason=_plain(facts["reason"], MAX_REASON),
    )


def _entries(value: Any, kind: type[dict[str, Any]] | type[list[Any]], what: str) -> Any:
    if not isinstance(value, kind) or len(value) > MAX_ENTRIES:
        raise TypeError(f"{what} is {value!r:.80}")
    if isinstance(value, dict) and not all(isinstance(facts, dict) for facts in value.values()):
        raise TypeError(f"{what} is {value!r:.80}")
    return value


def _text(value: Any, pattern: Any, what: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{what} is {value!r:.80}")
    return value


def _counter(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_COUNTER:
        raise ValueError(f"counter is {value!r:.40}")
    return value


def _time(value: Any, now: datetime) -> datetime:
    if not isinstance(value, str):
        raise TypeError(f"time is {value!r:.40}")
    time = datetime.fromisoformat(value)
    if time.tzinfo is None:
        raise ValueError(f"time {value!r:.40} has no zone")
    return min(time, now)


def _plain(value: Any, limit: int) -> str:
    """Return text as it may be printed: nobody's terminal is to be told anything."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is no text")
    return "".join(c if c.isprintable() else " " for c in value[:limit])


# ---- keeping


def merge_reports(old: Report | None, new: Report) -> Report:
    """Return the newer report, with what the older one alone tells of releases."""
    if old is None:
        return new
    # A device that goes on saying that it can't take what it tried has not tried it again.
    told = {
        path: replace(tried, time=old.tried[path].time)
        if path in old.tried and old.tried[path].is_good == tried.is_good
        else tried
        for path, tried in new.tried.items()
    }
    both = {**old.tried, **told}
    newest = sorted(both.items(), key=lambda item: item[1].time)[-MAX_ENTRIES:]
    return replace(new, tried=dict(newest))


def report_file(fleet: Path, device: str) -> Path:
    """Return where the report of a device is kept."""
    shard = hashlib.sha256(device.encode()).hexdigest()[:2]
    return fleet / DEVICES / shard / f"{device}.json"


def keep_report(fleet: Path, report: Report) -> None:
    """Keep a report in the place of the device's last one: all of it, or the old one stays.

    Raises:
        EdgeshrinkError: it can't be written.
    """
    path = report_file(fleet, report.device)
    _write(path, json.dumps(report.to_json(), indent=1).encode())


def _write(path: Path, data: bytes) -> None:
    """Replace a file in one step. It is not waited for the disk: a lost report comes again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(prefix=".", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            Path(aside).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(aside).unlink()
            raise
    except OSError as err:
        what = f"can't be written ({err.strerror or err})"
        raise EdgeshrinkError(str(path), what, "free space, or make it writable") from err


def load_reports(fleet: Path, now: datetime) -> dict[str, Report]:
    """Return all reports that are kept, by device; what is damaged is left out."""
    found = {}
    for path in sorted((fleet / DEVICES).glob("*/*.json")):
        with suppress(ConfigError, OSError):
            report = read_report(path.read_bytes(), str(path), now, is_kept=True)
            found[report.device] = report
    return found


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What came of a folder of reports."""

    n_new: int
    n_old: int  # no news of their devices
    n_other: int  # JSON files that are no reports
    faults: tuple[str, ...]
    halted: tuple[Halted, ...]


def collect(source: Path, fleet: Path, now: datetime, *, wait_s: float = 0.0) -> Collected:
    """Take in the reports that lie in `source` and below, and halt what crosses the limits.

    Args:
        source: A folder with `status.json` files, whatever they are called.
        fleet: The fleet's folder.
        now: When they arrive.

    Raises:
        ConfigError: `source` is no folder, or holds no report.
        EdgeshrinkError: a report can't be written.
    """
    open_repository(fleet)
    if not source.is_dir():
        raise ConfigError(str(source), "is no folder", "give the folder with status files")
    known = load_reports(fleet, now)
    n_new, n_old, n_other, faults = 0, 0, 0, []
    for path in sorted(source.rglob("*.json")):
        if not path.is_file():
            continue
        try:
            with path.open("rb") as file:
                data = file.read(MAX_REPORT_BYTES + 1)
            if not _is_meant_as_report(data) and path.name != "status.json":
                n_other += 1
                continue
            report = read_report(data, str(path), now)
        except ConfigError as err:
            faults.append(str(err))
            continue
        except OSError as err:
            faults.append(f"{path}: can't be read ({err.strerror})")
            continue
        before = known.get(report.device)
        merged = merge_reports(before, report)
        if before is not None and (report.time < before.time or merged == before):
            n_old += 1
            continue
        known[report.device] = merged
        keep_report(fleet, merged)
        n_new += 1
    if not n_new and not n_old and not faults:
        what = f"holds no report of a device ({n_other} other .json files)"
        raise ConfigError(str(source), what, "give the folder with status files")
    halted = halt_failing(fleet, Census(known.values(), read_since(fleet)), now, wait_s=wait_s)
    return Collected(n_new=n_new, n_old=n_old, n_other=n_other, faults=tuple(faults), halted=halted)


def _is_meant_as_report(data: bytes) -> bool:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return b'"device"' in data
    return isinstance(content, dict) and "device" in content and "outcome" in content


# ---- counting and judging


@dataclass(kw_only=True)
class Tally:
    """What devices say of one release."""

    n_running: int = 0
    n_good: int = 0
    n_failed: int = 0
    n_scores: int = 0
    sum_of_scores: float = 0.0

    @property
    def n_reports(self) -> int:
        """How many devices have tried it."""
        return self.n_good + self.n_failed

    @property
    def failure_rate(self) -> float | None:
        """The share of devices that tried it where it does not work."""
        return self.n_failed / self.n_reports if self.n_reports else None

    @property
    def score(self) -> float | None:
        """The mean of what applications measured with it."""
        return self.sum_of_scores / self.n_scores if self.n_scores else None


class Census:
    """Tallies of all releases, kept up as reports come in."""

    def __init__(self, reports: Iterable[Report], since: Mapping[str, datetime]) -> None:
        self._since = since
        self._tallies: dict[str, Tally] = {}
        for report in reports:
            self.count(report)

    def count(self, report: Report, sign: int = 1) -> None:
        """Add a device's report, or with -1 take it out."""
        for path, tried in report.tried.items():
            if path in self._since and tried.time < self._since[path]:
                continue
            tally = self._tallies.setdefault(path, Tally())
            if tried.is_good:
                tally.n_good += sign
            else:
                tally.n_failed += sign
        for path, running in report.running():
            tally = self._tallies.setdefault(path, Tally())
            tally.n_running += sign
            if running.score is not None:
                tally.n_scores += sign
                tally.sum_of_scores += sign * running.score

    def tally(self, path: str) -> Tally:
        """Return what is known of a release, by the path of its archive."""
        return self._tallies.get(path, Tally())

    def copy(self) -> Census:
        """Return one that later reports do not change."""
        copied = Census((), self._since)
        copied._tallies = {path: replace(tally) for path, tally in self._tallies.items()}
        return copied


@dataclass(frozen=True, kw_only=True)
class Halted:
    """A release that was halted, where, and why."""

    label: str
    path: str
    target: str
    channel: str
    reason: str


def why_halt(
    one: Published, releases: Sequence[Published], census: Census, halt: Halt
) -> str | None:
    """Return which limit a release crosses by what devices report; None if none."""
    tally = census.tally(one.release.path)
    rate = tally.failure_rate
    if rate is not None and tally.n_reports >= halt.min_reports and rate > halt.failure_rate:
        return (
            f"it does not work on {tally.n_failed} of {tally.n_reports} devices "
            f"({100 * rate:.3g} %, the limit is {100 * halt.failure_rate:g} %)"
        )
    score = tally.score
    if score is None or tally.n_scores < halt.min_reports:
        return None
    reference, whose = _reference(one, releases, census, halt)
    if reference is None or reference == 0:
        return None
    is_lower_better = one.release.facts.get("metric", {}).get("direction") == "lower"
    worse = (score - reference if is_lower_better else reference - score) / abs(reference)
    if worse <= halt.score_drop:
        return None
    return (
        f"{tally.n_scores} devices score {score:.4g} with it, {100 * worse:.3g} % worse than the "
        f"{reference:.4g} of {whose} (the limit is {100 * halt.score_drop:g} %)"
    )


def _reference(
    one: Published, releases: Sequence[Published], census: Census, halt: Halt
) -> tuple[float | None, str]:
    """Return what a release's score on devices is held against.

    What devices score with the release before it says most, because it was measured in the same
    field; where too few do, it is the score on test data that was signed.
    """
    release = one.release
    older = [
        other.release
        for other in releases
        if (other.release.name, other.release.target) == (release.name, release.target)
        and other.release.counter < release.counter
        and census.tally(other.release.path).n_scores >= halt.min_reports
    ]
    if older:
        base = max(older, key=lambda other: other.counter)
        return census.tally(base.path).score, base.label
    try:
        return float(release.facts["score"]), "its test data"
    except (KeyError, ValueError, TypeError):
        return None, ""


def halt_failing(
    fleet: Path, census: Census, now: datetime, *, wait_s: float = 0.0
) -> tuple[Halted, ...]:
    """Halt every release that crosses a limit, in all channels; return what was halted.

    Raises:
        EdgeshrinkError: another publisher is at work, or writing failed; nothing has changed.
    """
    if not _failing(open_repository(fleet), census):
        return ()
    with edit(fleet, now=now, wait_s=wait_s) as change:
        found = _failing(change.repository, census)
        channels = read_channels(change.repository)
        for one in found:
            for offer in channels[one.target, one.channel].offers:
                if offer.path == one.path:
                    put_offer(change, one.target, one.channel, replace(offer, state="halted"))
    reasons = {
        one.path: {"halted": now.isoformat(timespec="seconds"), "reason": one.reason}
        for one in found
    }
    _decide(fleet, reasons)
    return found


def _failing(repository: Repository, census: Census) -> tuple[Halted, ...]:
    releases = list_published(repository)
    by_path = {one.release.path: one for one in releases}
    found = []
    for (target, channel), rollout in read_channels(repository).items():
        for offer in rollout.offers:
            one = by_path.get(offer.path)
            if offer.state != "active" or one is None:
                continue
            reason = why_halt(one, releases, census, repository.settings.halt)
            if reason is not None:
                label = one.release.label
                found.append(
                    Halted(
                        label=label, path=offer.path, target=target, channel=channel, reason=reason
                    )
                )
    return tuple(found)


# ---- decisions


def read_since(fleet: Path) -> dict[str, datetime]:
    """Return from when on reports about a release count: since somebody let it go on."""
    since = {}
    for path, facts in read_json(fleet / DECISIONS).items():
        with suppress(ValueError, TypeError, KeyError):
            since[path] = datetime.fromisoformat(facts["since"])
    return since


def halt_reasons(fleet: Path) -> dict[str, str]:
    """Return why releases were halted by reports, by path."""
    return {
        path: str(facts["reason"])
        for path, facts in read_json(fleet / DECISIONS).items()
        if isinstance(facts, dict) and "reason" in facts
    }


def resume(fleet: Path, paths: Sequence[str], now: datetime) -> None:
    """Let halted releases go on: what was reported before no longer counts against them."""
    if paths:
        since = now.isoformat(timespec="seconds")
        _decide(fleet, {path: {"since": since} for path in paths})


def _decide(fleet: Path, decisions: Mapping[str, Mapping[str, str]]) -> None:
    content = read_json(fleet / DECISIONS) | dict(decisions)
    _write(fleet / DECISIONS, json.dumps(content, indent=1, sort_keys=True).encode())


# ---- an overview


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A fleet as its reports show it."""

    n_devices: int
    n_recent: int  # that reported within the last day
    n_trouble: int  # whose last run failed for a reason that is no release's
    troubles: tuple[tuple[str, int], ...]  # the most frequent reasons
    versions: Mapping[str, int]  # label -> devices that run it
    census: Census = field(repr=False)


def survey(fleet: Path, now: datetime) -> Seen:
    """Count all reports that are kept."""
    from collections import Counter
    from datetime import timedelta

    reports = load_reports(fleet, now)
    troubles = Counter(r.trouble for r in reports.values() if r.trouble)
    versions = Counter(
        f"{name}@{running.version}"
        for report in reports.values()
        for name, running in report.models.items()
    )
    return Seen(
        n_devices=len(reports),
        n_recent=sum(r.time > now - timedelta(days=1) for r in reports.values()),
        n_trouble=sum(troubles.values()),
        troubles=tuple(troubles.most_common(3)),
        versions=dict(sorted(versions.items())),
        census=Census(reports.values(), read_since(fleet)),
    )
