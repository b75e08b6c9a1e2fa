"""Refresh a device's trusted metadata with tuf's client, and call every attack by its name.

tuf decides what is trusted. What is decided here is which error its refusal becomes, what the time
is when the clock is wrong, and that a version number may not leap.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadHTTPError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root, Targets
from tuf.api.serialization import DeserializationError
from tuf.ngclient import Updater, UpdaterConfig

from edgeshrink.errors import (
    ArbitraryInstallationError,
    ConfigError,
    FastForwardError,
    FreezeError,
    MalformedMetadataError,
    MirrorError,
    MixAndMatchError,
    RevokedKeyError,
    RollbackError,
    ThresholdError,
    TrustError,
)
from edgeshrink.fleet.fetching import MIRROR_FIX, Fetcher, FetchError
from edgeshrink.fleet.slots import read_json, sync_folder, write_atomically

CLOCK: Final = "clock.json"
# Signing every minute takes 19 years to get so far; who stole a key could otherwise sign the last
# version there is, and no device would follow the owner again before the key is replaced.
MAX_VERSION_STEP: Final = 10_000_000
CONFIG: Final = UpdaterConfig(
    root_max_length=512_000,
    timestamp_max_length=16_384,
    snapshot_max_length=2_000_000,
    targets_max_length=5_000_000,
)
PUBLISHER_FIX: Final = "nothing was installed; tell whoever publishes this fleet"


@dataclass(frozen=True, kw_only=True)
class Clock:
    """What a device takes for the time: never earlier than when it last knew better."""

    time: datetime
    is_behind: bool  # the system's clock was earlier than that


def read_clock(state: Path, system: datetime) -> Clock:
    """Return the time to judge expiries by.

    The floor is when metadata was last found valid. A clock that runs ahead can't move it far: what
    is valid then has not expired, so the floor stays below a signed expiry.
    """
    floor = read_json(state / CLOCK).get("last_good")
    with suppress(TypeError, ValueError):
        known = datetime.fromisoformat(floor)  # type: ignore[arg-type]
        if known.tzinfo is not None and known > system:
            return Clock(time=known, is_behind=True)
    return Clock(time=system, is_behind=False)


def keep_clock(state: Path, clock: Clock) -> None:
    """Remember a time at which metadata was valid; writes at most once an hour, to spare flash."""
    floor = read_json(state / CLOCK).get("last_good")
    with suppress(TypeError, ValueError):
        if (clock.time - datetime.fromisoformat(floor)).total_seconds() < 3600:  # type: ignore[arg-type]
            return
    content = {"last_good": clock.time.isoformat(timespec="seconds")}
    write_atomically(state / CLOCK, json.dumps(content).encode())


class _Recorder(Fetcher):
    """Notes which metadata came last, which is what an error is about; refuses leaps."""

    role: str = "root"
    data: bytes = b""
    folder: Path

    def download_bytes(self, url: str, max_length: int) -> bytes:
        name = unquote(url.rsplit("/", 1)[-1]).removesuffix(".json")
        version, _, rest = name.partition(".")
        self.role, self.data = (rest if rest and version.isdecimal() else name), b""
        self.data = super().download_bytes(url, max_length)
        trusted = _versions_in(_read(self.folder / f"{quote(self.role, '')}.json"), self.role)
        for role, offered in _versions_in(self.data, self.role).items():
            if offered - trusted.get(role, 0) > MAX_VERSION_STEP:
                what = f"leaps from version {trusted.get(role, 0):,} to {offered:,} of {role}"
                raise FastForwardError(f"{self.role}.json", what, PUBLISHER_FIX)
        return self.data


class _Updater(Updater):
    """Writes only what has changed: a device looks every few minutes, for years, on flash."""

    def _persist_file(self, filename: str, data: bytes) -> None:
        if _read(Path(filename)) != data:
            super()._persist_file(filename, data)

    def _update_root_symlink(self) -> None:
        newest = Path("root_history") / f"{self._trusted_set.root.version}.root.json"
        with suppress(OSError):
            if (Path(self._dir) / "root.json").readlink() == newest:
                return
        super()._update_root_symlink()


@dataclass(frozen=True, kw_only=True)
class Trusted:
    """Metadata that holds: signed files can be looked up in it, and are fetched by `fetcher`."""

    updater: Updater
    fetcher: Fetcher
    url: str  # of the mirror
    lookup: Callable[[str], Any]  # path -> TargetFile or None


def refresh(url: str, root: bytes, metadata: Path, clock: Clock, fetcher: Fetcher) -> Trusted:
    """Bring the trusted metadata up to date from one mirror.

    Args:
        url: Where the repository's `metadata/` and `targets/` are.
        root: The root metadata that came with the device.
        metadata: Folder of what is trusted so far.
        clock: To judge expiries by.
        fetcher: How patient to be.

    Raises:
        TrustError: One subclass for each attack. What was trusted before stays so.
        FetchError: The mirror can't be reached or is incomplete for now.
        ConfigError: `root` is no root metadata.
    """
    recorder = _Recorder(fetcher.patience, clock=fetcher.clock)
    recorder.folder = metadata
    recorder._pools = fetcher._pools
    metadata.mkdir(parents=True, exist_ok=True)
    for left_over in metadata.glob("tmp*"):
        left_over.unlink(missing_ok=True)
    try:
        updater = _Updater(
            str(metadata),
            f"{url.rstrip('/')}/metadata/",
            fetcher=recorder,
            config=CONFIG,
            bootstrap=root,
        )
    except (RepositoryError, DeserializationError) as err:
        fix = "give the root.json that `edgeshrink fleet init` wrote"
        raise ConfigError("--root", f"is no root metadata ({err})", fix) from err
    # tuf asks the system for the time when it is made, and has no argument for another one.
    updater._trusted_set.reference_time = clock.time

    @contextmanager
    def counted() -> Iterator[None]:
        before = _times(metadata)
        try:
            with _named(recorder):
                yield
        finally:
            fetcher.n_requests += recorder.n_requests
            fetcher.n_bytes += recorder.n_bytes
            recorder.n_requests = recorder.n_bytes = 0
            _sync(metadata, before)

    def lookup(path: str) -> Any:
        with counted():
            return updater.get_targetinfo(path)

    with counted():
        updater.refresh()
    return Trusted(updater=updater, fetcher=fetcher, url=url, lookup=lookup)


def _sync(metadata: Path, before: Mapping[str, int]) -> None:
    """Bring what tuf has written onto the disk: it renames, which alone survives no power loss."""
    changed = {name for name, when in _times(metadata).items() if before.get(name) != when}
    for name in changed:
        descriptor = os.open(metadata / name, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if changed:
        sync_folder(metadata)


def _times(metadata: Path) -> dict[str, int]:
    files = (p for p in metadata.rglob("*.json") if not p.is_symlink())
    return {str(p.relative_to(metadata)): p.stat().st_mtime_ns for p in files}


@contextmanager
def _named(recorder: _Recorder) -> Iterator[None]:
    """Turn what tuf raises into the error of the attack it stands for."""
    try:
        yield
    except DownloadHTTPError as err:
        what = f"answers HTTP {err.status_code}"
        if err.status_code in (403, 404, 410) and recorder.role not in ("timestamp", "root"):
            what = f"lacks {recorder.role}.json, which is signed (HTTP {err.status_code})"
            raise MirrorError("repository", what, MIRROR_FIX) from err
        where = f"repository: {recorder.role}.json"
        raise FetchError(where, what, "check --repo; it is tried again next time") from err
    except (RepositoryError, DeserializationError) as err:
        raise _attack(err, recorder) from err


def _attack(err: Exception, recorder: _Recorder) -> TrustError:
    place, document = f"{recorder.role}.json", _parse(recorder.data)
    if isinstance(err, ExpiredMetadataError):
        if "root.json" in str(err):  # it is judged when the next file has come
            place = "root.json"
        what = f"has expired ({err}): somebody may be withholding what is newer"
        fix = "check the clock; whoever publishes: edgeshrink fleet refresh"
        return FreezeError(place, what, fix)
    if document is None or isinstance(err, DeserializationError):
        return MalformedMetadataError(place, f"is no metadata ({err})", MIRROR_FIX)
    if isinstance(err, UnsignedMetadataError):
        return _unsigned(err, place, document, recorder)
    if isinstance(err, BadVersionNumberError):
        is_older = recorder.role in ("root", "timestamp") or "version must be" in str(err)
        wanted = _listed_version(recorder)
        if not is_older and wanted is not None and wanted != _version(recorder.data):
            what = f"was not published with the files around it ({err})"
            return MixAndMatchError(place, what, MIRROR_FIX)
        return RollbackError(place, f"is older than what is trusted ({err})", MIRROR_FIX)
    if isinstance(err, LengthOrHashMismatchError):
        what = f"was not published with the files around it ({err})"
        return MixAndMatchError(place, what, MIRROR_FIX)
    if "snapshot" in str(err).lower() and "missing" in str(err):
        return RollbackError(place, f"drops what is trusted ({err})", MIRROR_FIX)
    return MalformedMetadataError(place, f"does not hold ({err})", MIRROR_FIX)


def _listed_version(recorder: _Recorder) -> int | None:
    """Return the version that the role one above lists for the one that came last."""
    above = "timestamp" if recorder.role == "snapshot" else "snapshot"
    document = _parse(_read(recorder.folder / f"{above}.json")) or {}
    with suppress(KeyError, TypeError):
        version = document["signed"]["meta"][f"{recorder.role}.json"]["version"]
        return version if isinstance(version, int) else None
    return None


def _unsigned(
    err: Exception, place: str, document: dict[str, Any], recorder: _Recorder
) -> TrustError:
    """Return which of three it is: too few signatures, those of a removed key, or strangers'."""
    role = recorder.role
    signers, newest = _signers(document), set[str]()
    with suppress(ValueError, DeserializationError, RepositoryError, OSError):
        for delegator in _delegators(recorder.folder, role):
            newest |= set(delegator.get_delegated_role(role).keyids)
            metadata = Metadata[Any].from_bytes(recorder.data)
            result = delegator.get_verification_result(
                role, metadata.signed_bytes, metadata.signatures
            )
            if result.signed:
                what = f"has {len(result.signed)} good signatures of {result.threshold}"
                return ThresholdError(place, what, PUBLISHER_FIX)
    former = {
        key
        for path in sorted((recorder.folder / "root_history").glob("*.root.json"))
        for key in _role_keys(_parse(_read(path)), role)
    }
    former |= _signers(_parse(_read(recorder.folder / f"{quote(role, '')}.json")))
    if signers & (former - newest):
        what = "is signed by a key that was revoked"
        return RevokedKeyError(place, what, PUBLISHER_FIX)
    return ArbitraryInstallationError(place, f"is signed by nobody who may ({err})", PUBLISHER_FIX)


def _signers(document: dict[str, Any] | None) -> set[str]:
    """Return the keys that metadata says it is signed by."""
    signatures = (document or {}).get("signatures")
    entries = signatures if isinstance(signatures, list) else []
    return {str(entry.get("keyid")) for entry in entries if isinstance(entry, dict)}


def _delegators(folder: Path, role: str) -> Iterator[Root | Targets]:
    for path in [folder / "root.json", *sorted(folder.glob("*.json"))]:
        with suppress(DeserializationError, OSError):
            signed = Metadata[Any].from_bytes(path.read_bytes()).signed
            if isinstance(signed, Root | Targets):
                with suppress(ValueError):
                    signed.get_delegated_role(role)
                    yield signed


def _role_keys(document: dict[str, Any] | None, role: str) -> set[str]:
    with suppress(KeyError, TypeError):
        return set((document or {})["signed"]["roles"][role]["keyids"])
    return set()


def _parse(data: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _versions_in(data: bytes, role: str) -> dict[str, int]:
    """Return the versions that metadata gives: its own, and those of the roles it lists."""
    found, own = {}, _version(data)
    with suppress(KeyError, TypeError, AttributeError):
        for name, entry in (_parse(data) or {})["signed"]["meta"].items():
            if isinstance(entry, dict) and type(entry.get("version")) is int:
                found[name.removesuffix(".json")] = entry["version"]
    return found if own is None else found | {role: own}


def _version(data: bytes) -> int | None:
    with suppress(KeyError, TypeError):
        version = (_parse(data) or {})["signed"]["version"]
        return version if type(version) is int else None
    return None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def now() -> datetime:
    """Return the system's time."""
    return datetime.now(UTC)
