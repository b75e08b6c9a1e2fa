"""Which releases are published, and to which part of a fleet each is offered.

The publishing machine's key signs offers; only what people have signed can be offered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from edgeshrink.errors import ConfigError, MalformedMetadataError
from edgeshrink.fleet.change import Change
from edgeshrink.fleet.metadata import DEVICE, ROLLOUT, Repository, read_target_of
from edgeshrink.fleet.repository import edit
from edgeshrink.release import (
    CHANNEL,
    CUSTOM_KEY,
    NAME,
    VERSION,
    Offer,
    Release,
    Rollout,
    read_release,
    read_rollout,
    rollout_path,
)
from edgeshrink.strict_toml import nearest

Action = Literal["offer", "halt", "withdraw"]
_SELECTOR: Final = re.compile(rf"({NAME.pattern})@({VERSION.pattern})(?:\+(\d{{1,10}}))?")
_ROLLOUT_FILE: Final = re.compile(r"rollout/([^/]+)/([^/]+)\.json")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A release that people have signed, and its archive."""

    release: Release
    sha256: str
    n_bytes: int


@dataclass(frozen=True, kw_only=True)
class Changed:
    """An offer of one channel before and after a change."""

    target: str
    channel: str
    release: Release
    before: Offer | None
    after: Offer
    successor: tuple[Release, Offer] | None = None  # where devices with a withdrawn one move to
    earlier: Release | None = None  # the one before a withdrawn one that was not withdrawn


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to become of offers; None leaves things as they are."""

    action: Action
    share: float | None = None
    groups: tuple[str, ...] | None = None  # empty: everybody
    not_before: datetime | None = None


def list_published(repository: Repository) -> tuple[Published, ...]:
    """Return all releases, the highest counter of each name first.

    Raises:
        MalformedMetadataError: what is signed is no release.
    """
    found = [
        Published(
            release=read_release((file.custom or {}).get(CUSTOM_KEY), path),
            sha256=file.hashes["sha256"],
            n_bytes=file.length,
        )
        for role, metadata in repository.roles.items()
        if role.startswith(DEVICE)
        for path, file in metadata.signed.targets.items()
        if file.custom and CUSTOM_KEY in file.custom
    ]

    def order(one: Published) -> tuple[str, str, int]:
        return one.release.name, one.release.target, -one.release.counter

    return tuple(sorted(found, key=order))


def read_channels(repository: Repository) -> dict[tuple[str, str], Rollout]:
    """Return what each channel offers, by target and channel."""
    found = {}
    for path in sorted(repository.role(ROLLOUT).targets):
        match = _ROLLOUT_FILE.fullmatch(path)
        if match:
            found[match[1], match[2]] = _read_channel(repository, path)
    return found


def _read_channel(repository: Repository, path: str) -> Rollout:
    if path not in repository.role(ROLLOUT).targets:
        return Rollout(offers=())
    try:
        content = json.loads(read_target_of(repository, path))
    except (ValueError, RecursionError) as err:
        fix = "restore the fleet's folder from a copy"
        raise MalformedMetadataError(path, f"is no JSON ({err})", fix) from err
    return read_rollout(content, path)


def parse_selector(text: str) -> tuple[str, str, int | None]:
    """Return name, version and counter that `keywords@1.3.0` or `keywords@1.3.0+7` say."""
    match = _SELECTOR.fullmatch(text)
    if match is None:
        raise ConfigError(text, "names no release", "write NAME@VERSION, such as keywords@1.3.0")
    counter = match.groups()[-1]
    return match[1], match[2], None if counter is None else int(counter)


def find_published(
    repository: Repository, selector: str, target: str | None = None
) -> tuple[Published, ...]:
    """Return the releases that `NAME@VERSION` or `NAME@VERSION+COUNTER` means, one for each target.

    Of one version under several counters the highest is meant.
    """
    name, version, counter = parse_selector(selector)
    known = list_published(repository)
    newest: dict[str, Published] = {}
    for one in known:
        release = one.release
        is_meant = (
            (release.name, release.version) == (name, version)
            and counter in (None, release.counter)
            and target in (None, release.target)
        )
        if is_meant and (
            release.target not in newest or newest[release.target].release.counter < release.counter
        ):
            newest[release.target] = one
    if not newest:
        labels = {one.release.label for one in known if target in (None, one.release.target)}
        where = f" for {target}" if target else ""
        fix = nearest(selector, labels) if labels else "publish one with `edgeshrink ship`"
        raise ConfigError(selector, f"is not published{where}", fix)
    return tuple(newest.values())


def put_offer(change: Change, target: str, channel: str, offer: Offer) -> Offer | None:
    """Set the offer of one release in a channel, and return the one that it replaces."""
    path = rollout_path(target, channel)
    rollout = _read_channel(change.repository, path)
    return _write(change, path, rollout, offer)


def _write(change: Change, path: str, rollout: Rollout, offer: Offer) -> Offer | None:
    before = next((one for one in rollout.offers if one.path == offer.path), None)
    others = tuple(one for one in rollout.offers if one.path != offer.path)
    after = Rollout(offers=(*others, offer))
    change.add(ROLLOUT, path, json.dumps(after.to_json(), indent=1).encode())
    return before


def check_channel(channel: str, groups: Sequence[str] = ()) -> None:
    """Raise ConfigError unless these can name a channel and groups."""
    for option, words in (("--channel", (channel,)), ("--group", groups)):
        for word in words:
            if not CHANNEL.fullmatch(word):
                fix = "use lower-case letters, digits, _ and -"
                raise ConfigError(option, f"is {word!r:.80}", fix)


def change_rollout(
    folder: Path,
    selector: str,
    wanted: Wanted,
    *,
    target: str | None = None,
    channel: str | None = None,
    now: datetime | None = None,
    wait_s: float = 0.0,
) -> tuple[Changed, ...]:
    """Offer a release to more or fewer devices, halt it, or withdraw it.

    Args:
        folder: Of the fleet.
        selector: `NAME@VERSION`.
        wanted: What is to become of it.
        target: Of which kind of device; None: of all that it is published for.
        channel: In which channel; None: in all that offer it. A channel that does not offer it yet
            must be named.

    Raises:
        ConfigError: nothing fits, or the release was withdrawn: that is for good.
    """
    if channel is not None:
        check_channel(channel, wanted.groups or ())
    with edit(folder, now=now, wait_s=wait_s) as change:
        repository = change.repository
        found = {one.release.path: one for one in find_published(repository, selector, target)}
        every = read_channels(repository)
        done: list[Changed] = []
        for one in found.values():
            release = one.release
            places = {
                name: rollout
                for (of, name), rollout in every.items()
                if of == release.target and channel in (None, name)
            }
            if channel is not None:
                places.setdefault(channel, Rollout(offers=()))
            for name, rollout in places.items():
                before = next((o for o in rollout.offers if o.path == release.path), None)
                if before is None and (channel is None or wanted.action != "offer"):
                    continue
                after = _after(before, release, wanted)
                if after != before:
                    path = rollout_path(release.target, name)
                    _write(change, path, rollout, after)
                successor, earlier = None, None
                if after.state == "withdrawn":
                    by_path = {p.release.path: p.release for p in list_published(repository)}
                    successor = find_successor(release, rollout, by_path)
                    earlier = _earlier(release, rollout, by_path)
                done.append(
                    Changed(
                        target=release.target, channel=name, release=release, before=before,
                        after=after, successor=successor, earlier=earlier,
                    )
                )  # fmt: skip
        if not done:
            what = f"is offered in {'no channel' if channel is None else f'another than {channel}'}"
            raise ConfigError(selector, what, "offer it: --channel NAME --to 5%")
    return tuple(done)


def _after(before: Offer | None, release: Release, wanted: Wanted) -> Offer:
    offer = before or Offer(path=release.path, share=0.0)
    if wanted.action == "withdraw":
        return replace(offer, state="withdrawn")
    if offer.state == "withdrawn":
        fix = f"ship it again, under a higher counter: edgeshrink ship {release.label}"
        raise ConfigError(release.label, "was withdrawn, which is for good", fix)
    if wanted.action == "halt":
        return replace(offer, state="halted")
    return replace(
        offer,
        state="active",
        share=offer.share if wanted.share is None else wanted.share,
        groups=offer.groups if wanted.groups is None else wanted.groups,
        not_before=wanted.not_before or offer.not_before,
    )


def find_successor(
    release: Release, rollout: Rollout, by_path: Mapping[str, Release]
) -> tuple[Release, Offer] | None:
    """Return what devices with a withdrawn release move to: the highest counter above its own."""
    above = [
        (by_path[offer.path], offer)
        for offer in rollout.offers
        if offer.state == "active"
        and offer.path in by_path
        and by_path[offer.path].name == release.name
        and by_path[offer.path].counter > release.counter
    ]
    return max(above, key=lambda pair: pair[0].counter, default=None)


def _earlier(release: Release, rollout: Rollout, by_path: Mapping[str, Release]) -> Release | None:
    """Return the release that could be shipped again in the place of a withdrawn one."""
    below = [
        by_path[offer.path]
        for offer in rollout.offers
        if offer.state == "active"
        and offer.path in by_path
        and by_path[offer.path].name == release.name
        and by_path[offer.path].counter < release.counter
        and by_path[offer.path].version != release.version
    ]
    return max(below, key=lambda one: one.counter, default=None)
