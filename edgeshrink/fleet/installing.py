"""Install a release on a device: fetch, verify, unpack, self-test, switch, check, roll back.

Every step leaves a device that starts: before `switch` the old release is current and untouched,
after it the new one, whole and tested. What was interrupted is taken up or undone by `settle`.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from edgeshrink.artifact import GOLDEN, MANIFEST, file_entry, read_artifact
from edgeshrink.errors import (
    ConfigError,
    DecompressionBombError,
    DeltaError,
    EdgeshrinkError,
    LyingManifestError,
    MirrorError,
    TrustError,
    UnsafeArchiveError,
    WrongTargetError,
)
from edgeshrink.fleet.archive import another_file, check_name, unpack
from edgeshrink.fleet.device import Device, free_bytes
from edgeshrink.fleet.eligibility import find_runtime, release_key, why_no_space
from edgeshrink.fleet.fetching import Fetcher, FetchError, MissingFileError
from edgeshrink.fleet.selftest import SelfTest, SelfTestError, self_test
from edgeshrink.fleet.slots import (
    RELEASE,
    SLOTS,
    Trial,
    current_slot,
    filling,
    read_json,
    read_ledger,
    signed_facts,
    slot_folder,
    switch,
    tidy,
    write_ledger,
)
from edgeshrink.release import Release

MAX_ATTEMPTS: Final = 3  # to see a release work, before what keeps interrupting is held against it
# Every point of an installation at which a test takes the power away.
STEPS: Final = (
    "chosen", "downloaded", "unpacking", "unpacked", "noted", "tested", "switched",
    "healthy", "confirmed", "tidied",
)  # fmt: skip
Step = Callable[[str], None]


class RolledBackError(EdgeshrinkError):
    """A release was installed and did not work; the one before it is current again.

    Args:
        where, what, fix: As of every error.
        release: What it is called, such as `keywords@1.3.0`; empty where that is not known.
        counter: Its counter.
    """

    def __init__(
        self, where: str, what: str, fix: str, *, release: str = "", counter: int | None = None
    ) -> None:
        super().__init__(where, what, fix)
        self.release, self.counter = release, counter


class NoSpaceError(EdgeshrinkError):
    """A release is for this device, which has no space for it; nothing was fetched."""


@dataclass(frozen=True, kw_only=True)
class HealthCheck:
    """A command that ends with 0 within its time where the device is well."""

    command: tuple[str, ...]
    timeout_s: float = 60.0


class Signed(Protocol):
    """A file of the repository as it was signed; tuf's `TargetFile`."""

    path: str
    length: int
    hashes: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where files of releases come from."""

    mirrors: tuple[str, ...]  # of the repository; that first whose metadata was taken
    fetcher: Fetcher
    downloads: Path
    lookup: Callable[[str], Signed | None]  # path -> what was signed of it


@dataclass(frozen=True, kw_only=True)
class Installed:
    """An installation that came to its end."""

    slot: str
    how: str  # "archive", "delta", or "copy" of a slot that was still there
    note: str  # why a signed delta was of no use; empty: it was, or there was none
    seconds: float
    n_bytes: int  # fetched
    tested: SelfTest


def settle(
    model: Path, health: HealthCheck | None, step: Step = lambda name: None
) -> EdgeshrinkError | None:
    """Bring an installation that was interrupted to its end; return why it was undone, if it was.

    Args:
        model: The model's folder.
        health: What says whether the device is well.
        step: Told the name of each step of `STEPS`.
    """
    ledger = read_ledger(model)
    trial, current = ledger.trial, current_slot(model)
    if trial is None or current != trial.slot:
        return None  # nothing was switched; attempts are counted by `install`
    reason = f"the device went down {trial.attempts} times while trying it"
    if trial.attempts < MAX_ATTEMPTS:
        trial = replace(trial, attempts=trial.attempts + 1)
        write_ledger(model, replace(ledger, trial=trial))
        try:
            _confirm(model, trial, health, step)
        except RolledBackError as err:
            return err
        return None
    return _roll_back(model, trial, reason)


def _confirm(model: Path, trial: Trial, health: HealthCheck | None, step: Step) -> None:
    """Keep the slot that is being tried if the device is well; else RolledBackError."""
    fault = None if health is None else run_health_check(health, model, trial.slot)
    if fault is not None:
        raise _roll_back(model, trial, fault)
    step("healthy")
    counter = signed_facts(model, trial.slot).get("counter", 0)
    ledger = read_ledger(model)
    highest = max(ledger.highest_counter, counter if isinstance(counter, int) else 0)
    write_ledger(model, replace(ledger, trial=None, highest_counter=highest))
    step("confirmed")


def _roll_back(model: Path, trial: Trial, reason: str) -> RolledBackError:
    """Make the slot before the trial current again, and remember why; return what to raise."""
    facts = signed_facts(model, trial.slot)
    previous = trial.previous
    if previous is not None and not slot_folder(model, previous).is_dir():
        previous = None  # nothing but a person takes a protected slot away
    switch(model, previous)
    ledger = read_ledger(model)
    refused = dict(ledger.refused) | {str(facts.get("key", trial.slot)): reason}
    write_ledger(model, replace(ledger, trial=None, refused=refused))
    shutil.rmtree(slot_folder(model, trial.slot), ignore_errors=True)
    fix = f"{previous} is current again" if previous else "nothing was there before it"
    name, version, counter = (facts.get(key) for key in ("name", "version", "counter"))
    return RolledBackError(
        trial.slot, reason, fix, counter=counter, release=f"{name}@{version}" if name else ""
    )


def refuse(model: Path, key: str, reason: str) -> None:
    """Remember not to try this release again."""
    ledger = read_ledger(model)
    refused = dict(ledger.refused) | {key: reason}
    write_ledger(model, replace(ledger, trial=None, refused=refused))


def run_health_check(check: HealthCheck, model: Path, slot: str) -> str | None:
    """Return what is wrong with the device; None if the command says that nothing is."""
    environment = os.environ | {
        "EDGESHRINK_MODEL": str(slot_folder(model, slot)),
        "EDGESHRINK_CURRENT": str(model / "current"),
        "EDGESHRINK_RELEASE": slot,
    }
    shown = shlex.join(check.command)
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                check.command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        except OSError as err:
            return f"the health command {shown!r:.80} can't be started ({err.strerror})"
        try:
            code = process.wait(check.timeout_s)
        except subprocess.TimeoutExpired:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)  # and whatever it waits for
            process.wait()
            return f"the health command {shown!r:.80} took more than {check.timeout_s:g} s"
        said.seek(max(0, said.tell() - 200))
        words = " ".join(said.read(200).decode("utf-8", "replace").split())
    if code == 0:
        return None
    return f"the health command {shown!r:.80} ended with {code}" + (f": {words}" if words else "")


def slot_name(release: Release, sha256: str) -> str:
    """Return the name of a release's slot."""
    return f"{release.version}+{release.counter}-{sha256[:12]}"


def install(
    release: Release,
    signed: Signed,
    model: Path,
    device: Device,
    source: Source,
    health: HealthCheck | None,
    *,
    keep_slots: int,
    step: Step = lambda name: None,
) -> Installed:
    """Make `release` the current one of `model`, or leave everything as it was.

    Args:
        release: Judged to be for this device.
        signed: Its archive, as it was signed.
        model: The model's folder.
        device: This device.
        source: Where its files come from.
        health: What says whether the device is well with it.
        keep_slots: How many releases stay on the device, the current one included.
        step: Told the name of each step of `STEPS`.

    Raises:
        TrustError: What came is not what was signed.
        FetchError: It did not come; what did is kept for next time.
        SelfTestError: It does not give its golden outputs here. It is not tried again.
        RolledBackError: The device was not well with it. It is not tried again.
        NoSpaceError: There is no space for it.
    """
    start, bytes_before = time.monotonic(), source.fetcher.n_bytes
    model.mkdir(parents=True, exist_ok=True)
    sha256 = signed.hashes["sha256"]
    slot, key, before = (
        slot_name(release, sha256),
        release_key(release, sha256),
        current_slot(model),
    )
    ledger = read_ledger(model)
    attempts = 1 + (ledger.trial.attempts if ledger.trial and ledger.trial.slot == slot else 0)
    if attempts > MAX_ATTEMPTS:
        reason = f"the device went down {MAX_ATTEMPTS} times while trying it"
        refuse(model, key, reason)
        raise RolledBackError(slot, reason, f"{before or 'nothing'} stays current")
    step("chosen")
    how, remark = _fill(release, signed, model, slot, source, step)
    step("unpacked")
    trial = Trial(slot=slot, previous=before, attempts=attempts)
    write_ledger(model, replace(ledger, trial=trial))
    step("noted")
    try:
        tested = self_test(
            slot_folder(model, slot),
            runtime=find_runtime(release, device),
            golden=release.files[GOLDEN],
            max_lsb=release.max_lsb,
        )
    except (SelfTestError, TrustError) as err:
        refuse(model, key, str(err))
        shutil.rmtree(slot_folder(model, slot), ignore_errors=True)
        raise
    step("tested")
    switch(model, slot)
    step("switched")
    _confirm(model, trial, health, step)
    tidy(model, keep=keep_slots, protected=frozenset({slot, before or slot}))
    forget_downloads(source.downloads)
    step("tidied")
    return Installed(
        slot=slot,
        how=how,
        note=remark,
        seconds=time.monotonic() - start,
        n_bytes=source.fetcher.n_bytes - bytes_before,
        tested=tested,
    )


def forget_downloads(folder: Path) -> None:
    """Remove what was fetched, in part or wholly, and is no longer needed."""
    for part in folder.glob("*"):
        part.unlink(missing_ok=True)


def _fill(
    release: Release, signed: Signed, model: Path, slot: str, source: Source, step: Step
) -> tuple[str, str]:
    """Fill the slot with the files of the release, each as it was signed.

    Returns how, and why a delta was of no use if it was not.
    """
    for name in release.files:
        check_name(name, release.label)
    sha256 = signed.hashes["sha256"]
    facts = release.to_json() | {"archive": sha256, "key": release_key(release, sha256)}
    whole = _slot_with(model, sha256)
    if whole is not None:
        with suppress(TrustError, OSError), filling(model, slot) as folder:
            for name in release.files:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(whole / name, folder / name)
            _seal(folder, release, facts)
            return "copy", ""
    note = ""
    delta = _usable_delta(release, signed, model, source)
    if delta is not None:
        base, offered = delta
        try:
            part = _fetch_delta(offered, release, source, step)
            _apply(part, base, model, slot, release, facts, step)
        except (MissingFileError, _UselessDelta) as err:  # the archive has it all
            note = f"the delta was of no use ({err})"
        else:
            return "delta", ""
    part = _fetch(signed, release, source, step)
    with filling(model, slot) as folder:
        step("unpacking")
        unpack(part, folder, release.files)
        _seal(folder, release, facts)
    return "archive", note


class _UselessDelta(Exception):  # noqa: N818
    """A delta that is as it was signed, and does not lead from here to the release."""


def _fetch_delta(offered: Signed, release: Release, source: Source, step: Step) -> Path:
    """Return the delta's file; DeltaError where a mirror has changed it."""
    try:
        return _fetch(offered, release, source, step)
    except MissingFileError:
        raise
    except MirrorError as err:
        raise DeltaError(err.where, err.what, err.fix) from err


def _apply(
    part: Path,
    base: Path,
    model: Path,
    slot: str,
    release: Release,
    facts: dict[str, Any],
    step: Step,
) -> None:
    """Fill the slot by a delta from the files in `base`."""
    from edgeshrink.fleet.delta import apply_delta

    with filling(model, slot) as folder:
        step("unpacking")
        try:
            apply_delta(part.read_bytes(), base, folder, release.files)
        except (DeltaError, DecompressionBombError, UnsafeArchiveError) as err:
            raise _UselessDelta(str(err)) from err
        _seal(folder, release, facts)


def _slot_with(model: Path, archive: str) -> Path | None:
    """Return the slot that was made of this archive, or of what it is made of."""
    for folder in sorted((model / SLOTS).glob("*")):
        if read_json(folder / RELEASE).get("archive") == archive:
            return folder
    return None


def _usable_delta(
    release: Release, signed: Signed, model: Path, source: Source
) -> tuple[Path, Signed] | None:
    """Return the smallest delta from a slot of this device, if that is less than the archive."""
    found = []
    for entry in release.deltas:
        base = _slot_with(model, entry.base)
        offered = None if base is None else source.lookup(entry.path)
        if base is not None and offered is not None and offered.length < signed.length:
            found.append((base, offered))
    return min(found, key=lambda pair: pair[1].length, default=None)


def _fetch(offered: Signed, release: Release, source: Source, step: Step) -> Path:
    """Return the file, fetched from the first mirror that has it as it was signed."""
    sha256 = offered.hashes["sha256"]
    source.downloads.mkdir(parents=True, exist_ok=True)
    part = source.downloads / f"{sha256}.part"
    for other in source.downloads.glob("*"):
        if other != part:
            other.unlink()
    there = part.stat().st_size if part.exists() else 0
    missing = why_no_space(offered.length - there, release, free_bytes(source.downloads))
    if missing is not None:
        raise NoSpaceError(release.label, missing, "free space; what is installed stays")
    folder, _, name = offered.path.rpartition("/")
    path = f"targets/{folder}/{sha256}.{name}"
    faults: list[EdgeshrinkError] = []
    for mirror in source.mirrors:
        try:
            source.fetcher.download(mirror, path, part, sha256=sha256, length=offered.length)
            step("downloaded")
            return part
        except (TrustError, FetchError) as err:
            faults.append(err)
        except OSError:
            part.unlink(missing_ok=True)  # the disk is full: that space is needed for other things
            raise
    raise next((fault for fault in faults if isinstance(fault, TrustError)), faults[-1])


def _seal(folder: Path, release: Release, facts: dict[str, Any]) -> None:
    """Check every file in `folder` and what the artifact says of itself; leave the signed facts.

    Raises:
        LyingManifestError: A file differs from its digest, or `artifact.json` contradicts.
        GoldenVectorsError: The file that differs holds the golden vectors.
        WrongTargetError: The artifact is made for another device, or is another one.
    """
    fix = "nothing was installed; tell whoever publishes this fleet"
    for name, entry in release.files.items():
        if file_entry((folder / name).read_bytes()) != entry:
            raise another_file(name, name, "differs from its signed digest")
    if MANIFEST in release.files:
        try:
            artifact = read_artifact(folder)
        except ConfigError as err:
            raise LyingManifestError(MANIFEST, err.what, fix) from err
        if artifact.target != release.target:
            what = f"is made for {artifact.target}, the release for {release.target}"
            raise WrongTargetError(MANIFEST, what, fix)
        for name, claimed in artifact.files.items():
            if release.files.get(name) != claimed:
                raise LyingManifestError(MANIFEST, f"lists another {name} than was signed", fix)
    (folder / RELEASE).write_text(json.dumps(facts, indent=1), "utf-8")
