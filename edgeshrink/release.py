"""A signed statement over one artifact, and to which part of a fleet it is offered."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, get_args

from edgeshrink.artifact import FileEntry
from edgeshrink.errors import MalformedMetadataError

FORMAT_VERSION: Final = 1
CUSTOM_KEY: Final = "edgeshrink"  # under which a TUF target's `custom` holds a release
State = Literal["active", "halted", "withdrawn"]

NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
# https://semver.org, without build metadata: that place is taken by the counter.
VERSION: Final = re.compile(
    r"(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?"
)
TARGET: Final = re.compile(r"[a-z0-9][a-z0-9+.-]{0,63}")
CHANNEL: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
SHA256: Final = re.compile(r"[0-9a-f]{64}")
MAX_COUNTER: Final = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class RuntimeNeed:
    """A runtime that can run the release, from a version on."""

    name: str  # "litert", "tflite-runtime", "executorch"
    min_version: str


@dataclass(frozen=True, kw_only=True)
class DeltaEntry:
    """A delta that leads to the release from the one whose archive has the digest `base`."""

    path: str  # of the TUF target
    base: str  # SHA-256


@dataclass(frozen=True, kw_only=True)
class Release:
    """What is signed of a release. Any one of `runtimes` suffices."""

    name: str
    version: str
    counter: int  # security counter: a device never goes back
    target: str
    engine: str
    runtimes: tuple[RuntimeNeed, ...]
    operators: Mapping[str, int]  # kind -> highest version in the model; empty for a `.pte`
    files: Mapping[str, FileEntry]
    max_lsb: float  # how far outputs of an engine may be from the golden ones
    deltas: tuple[DeltaEntry, ...] = ()
    # For people: specs, score, figures. What was read has its fractions as text.
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The TUF target that is the release's archive."""
        return release_path(self.target, self.name, self.version, self.counter)

    @property
    def label(self) -> str:
        """What people call it, such as `keywords@1.3.0`."""
        return f"{self.name}@{self.version}"

    @property
    def n_bytes(self) -> int:
        """Bytes of all files, unpacked."""
        return sum(entry.n_bytes for entry in self.files.values())

    def to_json(self) -> dict[str, Any]:
        """Return the release as plain JSON values."""
        return {
            "format": FORMAT_VERSION,
            "name": self.name,
            "version": self.version,
            "counter": self.counter,
            "target": self.target,
            "engine": self.engine,
            "runtimes": [dict(vars(need)) for need in self.runtimes],
            "operators": dict(sorted(self.operators.items())),
            "files": {
                name: {"sha256": entry.sha256, "bytes": entry.n_bytes}
                for name, entry in sorted(self.files.items())
            },
            # What is signed, canonical JSON, has no fractions; codes differ by whole steps.
            "max_lsb": math.floor(self.max_lsb),
            "deltas": [dict(vars(delta)) for delta in self.deltas],
            "facts": _signable(self.facts),
        }


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A release in a channel: to which devices, and whether at all."""

    path: str  # of the release's archive
    share: float  # of devices, in [0, 1]
    state: State = "active"
    groups: tuple[str, ...] = ()  # empty: all
    not_before: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the offer as plain JSON values."""
        when = None if self.not_before is None else self.not_before.isoformat()
        return dict(vars(self)) | {"groups": list(self.groups), "not_before": when}


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """What one channel offers to devices of one target."""

    offers: tuple[Offer, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the rollout as plain JSON values."""
        return {"format": FORMAT_VERSION, "releases": [offer.to_json() for offer in self.offers]}


def _signable(value: Any) -> Any:
    """Return plain JSON values with fractions as text, which canonical JSON can hold."""
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Mapping):
        return {key: _signable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_signable(inner) for inner in value]
    return value


def release_path(target: str, name: str, version: str, counter: int) -> str:
    """Return the path of the TUF target that is a release's archive."""
    return f"releases/{target}/{name}-{version}+{counter}.tar.xz"


def delta_path(target: str, name: str, old: str, new: str) -> str:
    """Return the path of the delta between two releases, each given as `VERSION+COUNTER`."""
    return f"releases/{target}/{name}-{old}..{new}.delta"


def rollout_path(target: str, channel: str) -> str:
    """Return the path of the TUF target that says what a channel offers."""
    return f"rollout/{target}/{channel}.json"


def read_release(content: Any, place: str) -> Release:
    """Return the release that JSON values describe; MalformedMetadataError names what is wrong."""
    try:
        return _release(content)
    except (ValueError, KeyError, TypeError, OverflowError) as err:
        raise _malformed(err, place) from err


def read_rollout(content: Any, place: str) -> Rollout:
    """Return the rollout that JSON values describe; MalformedMetadataError names what is wrong."""
    try:
        _check_format(content)
        return Rollout(offers=tuple(_offer(offer) for offer in _list(content, "releases")))
    except (ValueError, KeyError, TypeError, OverflowError) as err:
        raise _malformed(err, place) from err


def _malformed(err: Exception, place: str) -> MalformedMetadataError:
    reason = f"{err} is missing" if isinstance(err, KeyError) else str(err)
    return MalformedMetadataError(
        place, f"is malformed: {reason:.200}", "tell whoever publishes this fleet"
    )


def _check_format(content: Any) -> None:
    if not isinstance(content, dict):
        raise TypeError(f"{content!r:.80} is no object")
    if content["format"] != FORMAT_VERSION:
        raise ValueError(f"format {content['format']!r:.20}, {FORMAT_VERSION} is known here")


def _list(content: dict[str, Any], key: str) -> list[Any]:
    values = content[key]
    if not isinstance(values, list) or len(values) > 4096:
        raise TypeError(f"{key} is {values!r:.80}")
    return values


def _text(value: Any, pattern: re.Pattern[str], what: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{what} is {value!r:.80}")
    return value


def _integer(value: Any, low: int, high: int, what: str) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{what} is {value!r:.80}")
    return value


def _number(value: Any, low: float, high: float, what: str) -> float:
    if type(value) not in (int, float) or not low <= value <= high:
        raise ValueError(f"{what} is {value!r:.80}")
    return float(value)


_PLAIN: Final = re.compile(r"[ -~]{1,300}")


def _release(content: Any) -> Release:
    _check_format(content)
    files, operators, facts = content["files"], content["operators"], content["facts"]
    if not all(isinstance(value, dict) for value in (files, operators, facts)):
        raise TypeError("files, operators and facts are no objects")
    return Release(
        name=_text(content["name"], NAME, "name"),
        version=_text(content["version"], VERSION, "version"),
        counter=_integer(content["counter"], 0, MAX_COUNTER, "counter"),
        target=_text(content["target"], TARGET, "target"),
        engine=_text(content["engine"], _PLAIN, "engine"),
        runtimes=tuple(
            RuntimeNeed(
                name=_text(need["name"], _PLAIN, "runtime"),
                min_version=_text(need["min_version"], _PLAIN, "min_version"),
            )
            for need in _list(content, "runtimes")
        ),
        operators={
            _text(kind, _PLAIN, "operator"): _integer(version, 0, 10_000, f"version of {kind}")
            for kind, version in operators.items()
        },
        files={
            _text(name, _PLAIN, "file"): FileEntry(
                sha256=_text(entry["sha256"], SHA256, "sha256"),
                n_bytes=_integer(entry["bytes"], 0, 2**40, "bytes"),
            )
            for name, entry in files.items()
        },
        max_lsb=_number(content["max_lsb"], 0.0, 255.0, "max_lsb"),
        deltas=tuple(
            DeltaEntry(
                path=_text(delta["path"], _PLAIN, "delta"),
                base=_text(delta["base"], SHA256, "base"),
            )
            for delta in _list(content, "deltas")
        ),
        facts=facts,
    )


def _offer(content: Any) -> Offer:
    state, when = content["state"], content["not_before"]
    if state not in get_args(State):
        raise ValueError(f"state is {state!r:.80}")
    not_before = None if when is None else datetime.fromisoformat(_text(when, _PLAIN, "not_before"))
    if not_before is not None and not_before.tzinfo is None:
        raise ValueError(f"not_before {when!r:.40} has no time zone")
    return Offer(
        path=_text(content["path"], _PLAIN, "path"),
        share=_number(content["share"], 0.0, 1.0, "share"),
        state=state,
        groups=tuple(_text(group, CHANNEL, "group") for group in _list(content, "groups")),
        not_before=not_before,
    )
