"""The agent: one run brings a device up to date, or leaves it as it was and says why.

Order of a run: finish or undo what was interrupted; refresh the signed metadata; read what the
channel offers; judge each release before anything of it is fetched; install the best of each name;
say what happened.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol

from edgeshrink.artifact import file_entry
from edgeshrink.errors import (
    ArbitraryInstallationError,
    ConfigError,
    EdgeshrinkError,
    MalformedMetadataError,
    OversizedMetadataError,
    TrustError,
    WrongTargetError,
)
from edgeshrink.fleet.device import Device, find_device_id, find_runtimes, find_target
from edgeshrink.fleet.eligibility import release_key, why_not_eligible, why_not_offered
from edgeshrink.fleet.fetching import Fetcher, FetchError, Patience
from edgeshrink.fleet.installing import (
    HealthCheck,
    NoSpaceError,
    RolledBackError,
    Signed,
    Source,
    Step,
    forget_downloads,
    install,
    settle,
)
from edgeshrink.fleet.selftest import SelfTestError
from edgeshrink.fleet.slots import (
    current_slot,
    read_ledger,
    signed_facts,
    tidy,
    write_atomically,
)
from edgeshrink.fleet.status import Event, Status, describe_models, post_status, write_status
from edgeshrink.fleet.trust import Trusted, keep_clock, now, read_clock, refresh
from edgeshrink.release import (
    CUSTOM_KEY,
    Offer,
    Release,
    Rollout,
    read_release,
    read_rollout,
    rollout_path,
)

MODELS: Final = "models"
DOWNLOADS: Final = "downloads"
MAX_ROLLOUT_BYTES: Final = 1 << 20
MAX_ROOT_BYTES: Final = 1 << 20
PUBLISHER_FIX: Final = "nothing was installed; tell whoever publishes this fleet"


class SignedFile(Signed, Protocol):
    """A file of the repository with what was signed along."""

    custom: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """How a device looks after itself."""

    mirrors: tuple[str, ...]  # URLs of the repository
    root: Path  # its first root metadata
    state: Path
    device_id: str | None = None  # None: made from the machine's
    target: str | None = None  # None: found out
    groups: frozenset[str] = frozenset()
    channel: str = "stable"
    names: frozenset[str] = frozenset()  # of models; empty: all that are offered
    health: HealthCheck | None = None
    keep_slots: int = 2
    report_urls: tuple[str, ...] = ()
    report_timeout_s: float = 10.0
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run came to: its status, the first error if there was one, reports that got lost."""

    status: Status
    error: EdgeshrinkError | None
    report_faults: tuple[str, ...]


def run_once(
    config: AgentConfig,
    *,
    system_time: Callable[[], datetime] = now,
    step: Step = lambda name: None,
) -> Run:
    """Bring the device up to date, if there is anything for it.

    Args:
        config: How.
        system_time: The system's clock, which may be wrong.
        step: Told the name of each step of `installing.STEPS`, and "refreshed".

    Raises:
        ConfigError: The state folder is in use or the root metadata can't be read.
        EdgeshrinkError: The state folder can't be written.

    What goes wrong with a release or a mirror is in the result, not raised.
    """
    start, fetcher = time.monotonic(), Fetcher(config.patience)
    with _locked(config.state):
        device = _device(config)
        clock = read_clock(config.state, system_time())
        events: list[Event] = []
        errors: list[EdgeshrinkError] = []

        def note(err: EdgeshrinkError, release: Release | None = None) -> None:
            errors.append(err)
            events.append(_event_of(err, release))

        try:
            for model in _models(config.state):
                undone = settle(model, config.health, step)
                if undone is not None:
                    note(undone)
                protected = current_slot(model)
                tidy(model, keep=config.keep_slots, protected=frozenset({protected or ""}))
            trusted = _refresh(config, clock, fetcher)
            step("refreshed")
            keep_clock(config.state, clock)
            rollout = _read_rollout(trusted, config, device)
            offers = _judge(rollout, trusted, config, device, clock.time, events, note)
            for release, signed in offers:
                _install(release, signed, trusted, config, device, events, note, step)
            if not offers:
                forget_downloads(config.state / DOWNLOADS)
        except EdgeshrinkError as err:
            note(err)
        except OSError as err:
            what = f"can't be written ({err.strerror or err})"
            place = str(err.filename or config.state)
            note(EdgeshrinkError(place, what, "free space; what is installed stays"))
        finally:
            fetcher.close()
        status = Status(
            device=device,
            time=clock.time,
            clock_is_behind=clock.is_behind,
            models=describe_models(config.state / MODELS),
            events=tuple(events),
            seconds=time.monotonic() - start,
            n_requests=fetcher.n_requests,
            n_bytes=fetcher.n_bytes,
        )
        write_status(config.state, status)
    faults = post_status(config.report_urls, status, config.report_timeout_s)
    first = next((err for err in errors if isinstance(err, TrustError)), None)
    error = first or (errors[0] if errors else None)
    return Run(status=status, error=error, report_faults=tuple(faults))


@contextmanager
def _locked(state: Path) -> Iterator[None]:
    """Keep every other agent out of the state folder while the block runs."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as err:
        what = f"can't be written ({err.strerror})"
        fix = "give --state a folder that this user may write; what is installed stays"
        raise EdgeshrinkError(str(state), what, fix) from err
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            fix = "stop that one, or give this one another folder"
            raise ConfigError(f"--state {state}", "is in use by another agent", fix) from err
        yield
    finally:
        os.close(descriptor)


def _device(config: AgentConfig) -> Device:
    here, missing = find_runtimes()
    try:
        device_id = find_device_id(config.state, config.device_id)
    except OSError as err:
        what = f"can't be written ({err.strerror})"
        raise EdgeshrinkError(str(config.state), what, "what is installed stays") from err
    return Device(
        device_id=device_id,
        target=find_target(config.target),
        groups=config.groups,
        channel=config.channel,
        runtimes=here,
        missing=missing,
    )


def _models(state: Path) -> list[Path]:
    return [path for path in sorted((state / MODELS).glob("*")) if path.is_dir()]


def _refresh(config: AgentConfig, clock: Any, fetcher: Fetcher) -> Trusted:
    """Return trusted metadata from the first mirror that has some that holds."""
    try:
        if config.root.stat().st_size > MAX_ROOT_BYTES:
            raise ConfigError(f"--root {config.root}", "is too large for root metadata", "")
        root = config.root.read_bytes()
    except OSError as err:
        fix = "give the root.json of this fleet"
        raise ConfigError(f"--root {config.root}", f"can't be read ({err.strerror})", fix) from err
    faults: list[EdgeshrinkError] = []
    for url in config.mirrors:
        try:
            return refresh(url, root, config.state / "metadata", clock, fetcher)
        except (TrustError, FetchError) as err:
            faults.append(err)
    raise next((fault for fault in faults if isinstance(fault, TrustError)), faults[-1])


def _mirrors(config: AgentConfig, trusted: Trusted) -> tuple[str, ...]:
    return (trusted.url, *(url for url in config.mirrors if url != trusted.url))


def _read_rollout(trusted: Trusted, config: AgentConfig, device: Device) -> Rollout:
    """Return what the device's channel offers; it is fetched when it has changed."""
    path = rollout_path(device.target, device.channel)
    signed = trusted.lookup(path)
    if signed is None:
        what = f"offers nothing to devices of target {device.target!r}"
        fix = "check --channel and --target"
        raise ConfigError(f"channel {device.channel!r}", what, fix)
    if signed.length > MAX_ROLLOUT_BYTES:
        what = f"has {signed.length:,} bytes, {MAX_ROLLOUT_BYTES:,} are the limit"
        raise OversizedMetadataError(path, what, PUBLISHER_FIX)
    kept, sha256 = config.state / "rollout.json", signed.hashes["sha256"]
    try:
        data = kept.read_bytes()
    except OSError:
        data = b""
    if file_entry(data).sha256 != sha256:
        data = _fetch_rollout(trusted, config, signed)
        write_atomically(kept, data)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as err:
        raise MalformedMetadataError(path, f"is no JSON ({err})", PUBLISHER_FIX) from err
    return read_rollout(content, path)


def _fetch_rollout(trusted: Trusted, config: AgentConfig, signed: Any) -> bytes:
    folder, _, name = signed.path.rpartition("/")
    sha256 = signed.hashes["sha256"]
    part = config.state / "rollout.part"
    faults: list[EdgeshrinkError] = []
    for mirror in _mirrors(config, trusted):
        try:
            part.unlink(missing_ok=True)
            trusted.fetcher.download(
                mirror, f"targets/{folder}/{sha256}.{name}", part, sha256=sha256,
                length=signed.length,
            )  # fmt: skip
            return part.read_bytes()
        except (TrustError, FetchError) as err:
            faults.append(err)
        finally:
            part.unlink(missing_ok=True)
    raise next((fault for fault in faults if isinstance(fault, TrustError)), faults[-1])


def _judge(
    rollout: Rollout,
    trusted: Trusted,
    config: AgentConfig,
    device: Device,
    time_now: datetime,
    events: list[Event],
    note: Callable[[EdgeshrinkError, Release | None], None],
) -> list[tuple[Release, Any]]:
    """Return the best release of each name that is for this device and not there yet."""
    best: dict[str, tuple[Release, Any]] = {}
    reasons: list[Event] = []
    for offer in rollout.offers:
        try:
            release, signed = _look_up(offer, trusted, device)
        except TrustError as err:
            note(err, None)
            continue
        if config.names and release.name not in config.names:
            continue
        if _is_installed(release, signed, config):
            if offer.state == "withdrawn":
                reasons.append(_event(release, "withdrawn", "it was withdrawn; no successor yet"))
            continue
        model = config.state / MODELS / release.name
        ledger, running = read_ledger(model), signed_facts(model, current_slot(model))
        if release.counter < running.get("counter", 0):
            continue  # what came before is no news
        key = release_key(release, signed.hashes["sha256"])
        reason = why_not_offered(offer, device, time_now) or why_not_eligible(
            release, key, device, ledger
        )
        if reason is not None:
            reasons.append(_event(release, "ineligible", reason))
        elif release.name not in best or best[release.name][0].counter < release.counter:
            best[release.name] = (release, signed)
    events += [event for event in reasons if event.release.split("@")[0] not in best]
    return list(best.values())


def _is_installed(release: Release, signed: Any, config: AgentConfig) -> bool:
    model = config.state / MODELS / release.name
    facts = signed_facts(model, current_slot(model))
    return facts.get("archive") == signed.hashes["sha256"] and (
        facts.get("counter") == release.counter
    )


def _look_up(offer: Offer, trusted: Trusted, device: Device) -> tuple[Release, SignedFile]:
    """Return the release that an offer names, as it was signed for devices of this target."""
    signed = trusted.lookup(offer.path)
    if signed is None:
        what = "is offered, and was signed by nobody who may"
        raise ArbitraryInstallationError(offer.path, what, PUBLISHER_FIX)
    release = read_release((signed.custom or {}).get(CUSTOM_KEY), offer.path)
    if "sha256" not in signed.hashes:
        raise MalformedMetadataError(offer.path, "has no SHA-256", PUBLISHER_FIX)
    if release.target != device.target:
        what = f"is made for {release.target}, this device is {device.target}"
        raise WrongTargetError(offer.path, what, PUBLISHER_FIX)
    if release.path != offer.path:
        what = f"is the release {release.path}: another one than the one offered"
        raise WrongTargetError(offer.path, what, PUBLISHER_FIX)
    return release, signed


def _install(
    release: Release,
    signed: Any,
    trusted: Trusted,
    config: AgentConfig,
    device: Device,
    events: list[Event],
    note: Callable[[EdgeshrinkError, Release | None], None],
    step: Step,
) -> None:
    source = Source(
        mirrors=_mirrors(config, trusted),
        fetcher=trusted.fetcher,
        downloads=config.state / DOWNLOADS,
        lookup=trusted.lookup,
    )
    try:
        done = install(
            release,
            signed,
            config.state / MODELS / release.name,
            device,
            source,
            config.health,
            keep_slots=config.keep_slots,
            step=step,
        )
    except NoSpaceError as err:
        events.append(_event(release, "ineligible", err.what))
        return
    except EdgeshrinkError as err:
        note(err, release)
        return
    updated = _event(release, "updated", done.note[:500])
    events.append(replace(updated, how=done.how, self_test=dict(vars(done.tested))))


def _event(release: Release, outcome: Any, reason: str) -> Event:
    return Event(outcome=outcome, release=release.label, counter=release.counter, reason=reason)


def _event_of(err: EdgeshrinkError, release: Release | None) -> Event:
    is_undone = isinstance(err, RolledBackError | SelfTestError)
    label, counter = ("", None) if release is None else (release.label, release.counter)
    if isinstance(err, RolledBackError) and err.release:
        label, counter = err.release, err.counter
    return Event(
        outcome="rolled-back" if is_undone else "failed",
        release=label,
        counter=counter,
        reason=str(err)[:500],
        error=type(err).__name__,
    )
