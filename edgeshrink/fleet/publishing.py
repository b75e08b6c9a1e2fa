"""Publish a release: an archive and deltas that people sign, and the offer of it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from securesystemslib.signer import CryptoSigner

from edgeshrink.artifact import file_entry
from edgeshrink.errors import ConfigError
from edgeshrink.fleet import archive
from edgeshrink.fleet.bom import BOM, bill_of_materials
from edgeshrink.fleet.change import Change, Unlock
from edgeshrink.fleet.contents import Contents, entries
from edgeshrink.fleet.delta import make_delta
from edgeshrink.fleet.metadata import Repository, open_repository, read_target_of
from edgeshrink.fleet.provenance import PROVENANCE, provenance
from edgeshrink.fleet.rollouts import (
    Published,
    check_channel,
    find_published,
    list_published,
    put_offer,
)
from edgeshrink.fleet.signers import changing
from edgeshrink.release import (
    CUSTOM_KEY,
    MAX_COUNTER,
    VERSION,
    DeltaEntry,
    Offer,
    Release,
    delta_path,
)

N_DELTAS: Final = 3  # releases before, from which devices can come by a delta
FIRST_VERSION: Final = "1.0.0"
Progress = Callable[[str, float, str], None]


@dataclass(frozen=True, kw_only=True)
class Order:
    """How a release is to be published, and offered to whom."""

    channel: str
    share: float  # of devices, in [0, 1]
    groups: tuple[str, ...] = ()  # empty: all
    not_before: datetime | None = None
    version: str | None = None  # None: the next minor one
    counter: int | None = None  # None: one more than the highest so far
    n_deltas: int = N_DELTAS
    force: bool = False  # although it misses its budget


@dataclass(frozen=True, kw_only=True)
class MadeDelta:
    """A delta from an older release; `is_published` unless the archive is smaller."""

    base: Release
    n_bytes: int
    is_published: bool


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """What was published, or is to be signed first."""

    release: Release
    n_bytes: int  # of the archive
    deltas: tuple[MadeDelta, ...]
    channel: str
    offer: Offer
    signed_by: tuple[str, ...]


def ship(
    contents: Contents,
    fleet: Path,
    order: Order,
    signers: Sequence[CryptoSigner] | Unlock = (),
    request: Path | None = None,
    *,
    now: datetime | None = None,
    wait_s: float = 0.0,
    progress: Progress = lambda stage, share, detail: None,
) -> Shipped:
    """Publish a release, with deltas from those before it, and offer it.

    Args:
        contents: What to release.
        fleet: The fleet's folder.
        order: Version, counter, and to whom.
        signers: Opened keys of people, or what opens them.
        request: Publish nothing; write here what people are to sign.

    Raises:
        BudgetError: The artifact says that it misses its budget, and `order.force` is False.
        ConfigError: The version is published already, or the counter is not higher than all so far.
        ThresholdError: Fewer people have signed than must.
        EdgeshrinkError: Another publisher is at work, or writing failed; nothing has changed.
    """
    if contents.unmet and not order.force:
        raise contents.unmet[0]
    _check(order)
    artifact = contents.artifact
    opened = _open_keys(fleet, signers, request)
    now = now or datetime.now(UTC)
    with changing(fleet, opened, request, now=now, wait_s=wait_s) as change:
        before = _of_same(change.repository, artifact.name, artifact.target)
        version = order.version or _next_version(before)
        if version in {one.release.version for one in before}:
            what = f"{artifact.name}@{version} is published for {artifact.target} already"
            fix = f"take another, or leave it out for {_next_version(before)}"
            raise ConfigError("--version", what, fix)
        progress("pack", 0.0, "")
        files = dict(contents.files)
        card = bill_of_materials(artifact, entries(files), contents.facts, version)
        files[BOM] = card
        files[PROVENANCE] = provenance(artifact, entries(files), is_built=contents.is_built)
        release = Release(
            name=artifact.name,
            version=version,
            counter=_counter(order, before),
            target=artifact.target,
            engine=artifact.engine,
            runtimes=contents.runtimes,
            operators=contents.operators,
            files=entries(files),
            max_lsb=contents.max_lsb,
            facts={**contents.facts, "published": now.isoformat(timespec="seconds")},
        )
        packed = archive.pack(files)
        progress("pack", 1.0, "")
        return _add(change, release, files, packed, before, order, opened, progress)


def ship_again(
    selector: str,
    fleet: Path,
    order: Order,
    signers: Sequence[CryptoSigner] | Unlock = (),
    request: Path | None = None,
    *,
    target: str | None = None,
    now: datetime | None = None,
    wait_s: float = 0.0,
    progress: Progress = lambda stage, share, detail: None,
) -> Shipped:
    """Publish a published release once more, under a higher counter: how a fleet goes back.

    Args:
        selector: `NAME@VERSION`: its archive is taken as it is, so devices that still have it
            fetch nothing.
        target: For which kind of device, where it is published for several.

    Raises:
        ConfigError: it is not published, or for several targets and `target` is None.
        EdgeshrinkError: as `ship`.
    """
    if order.version is not None:
        raise ConfigError("--version", f"{selector} has one", "leave --version out")
    _check(order)
    opened = _open_keys(fleet, signers, request)
    now = now or datetime.now(UTC)
    with changing(fleet, opened, request, now=now, wait_s=wait_s) as change:
        found = find_published(change.repository, selector, target)
        if len(found) > 1:
            names = ", ".join(sorted(one.release.target for one in found))
            raise ConfigError(selector, f"is published for {names}", "choose one with --target")
        old = found[0]
        before = _of_same(change.repository, old.release.name, old.release.target)
        facts = {**old.release.facts, "published": now.isoformat(timespec="seconds")}
        release = replace(old.release, counter=_counter(order, before), deltas=(), facts=facts)
        packed = read_target_of(change.repository, old.release.path)
        files = _unpacked(packed, old.release)
        return _add(change, release, files, packed, before, order, opened, progress)


def _open_keys(
    fleet: Path, signers: Sequence[CryptoSigner] | Unlock, request: Path | None
) -> Sequence[CryptoSigner]:
    """Open people's keys before any work: nobody waits for deltas to type a passphrase."""
    if request is not None:
        return ()
    if callable(signers):
        repository = open_repository(fleet)
        return signers(repository.needs, repository.signers)
    return signers


def _check(order: Order) -> None:
    check_channel(order.channel, order.groups)
    if not 0 <= order.share <= 1:
        raise ConfigError("--rollout", f"is {order.share:.4g}", "choose 0% to 100%")
    if order.version is not None and not VERSION.fullmatch(order.version):
        fix = "write a semantic version without '+', such as 1.3.0 or 2.0.0-rc.1"
        raise ConfigError("--version", f"is {order.version!r:.80}", fix)


def _of_same(repository: Repository, name: str, target: str) -> tuple[Published, ...]:
    """Return the releases of one model for one kind of device, the highest counter first."""
    return tuple(
        one
        for one in list_published(repository)
        if (one.release.name, one.release.target) == (name, target)
    )


def _counter(order: Order, before: Sequence[Published]) -> int:
    highest = max((one.release.counter for one in before), default=0)
    counter = highest + 1 if order.counter is None else order.counter
    if not highest < counter <= MAX_COUNTER:
        what = f"is {counter}, and devices that have counter {highest} would never take it"
        raise ConfigError("--counter", what, f"leave it out for {highest + 1}")
    return counter


def version_order(version: str) -> tuple[Any, ...]:
    """Return what semantic versions are sorted by (Semantic Versioning 2.0.0, section 11)."""
    core, _, before = version.partition("-")
    parts = [
        (0, int(part), "") if re.fullmatch(r"\d+", part) else (1, 0, part)
        for part in filter(None, before.split("."))
    ]
    return tuple(map(int, core.split("."))), not before, tuple(parts)


def _next_version(before: Sequence[Published]) -> str:
    if not before:
        return FIRST_VERSION
    highest = max((one.release.version for one in before), key=version_order)
    core, _, pre_release = highest.partition("-")
    if pre_release:
        return core
    major, minor, _ = core.split(".")
    return f"{major}.{int(minor) + 1}.0"


def _add(
    change: Change,
    release: Release,
    files: Mapping[str, bytes],
    packed: bytes,
    before: Sequence[Published],
    order: Order,
    signers: Sequence[CryptoSigner],
    progress: Progress,
) -> Shipped:
    """List archive and deltas under the target's role, and put the offer into its channel."""
    role = change.ensure_device_role(release.target)
    digest = file_entry(packed).sha256
    bases: dict[str, Published] = {}  # the same files under several counters are one base
    for one in before:
        if one.sha256 != digest and len(bases) < order.n_deltas:
            bases.setdefault(one.sha256, one)
    made: list[MadeDelta] = []
    listed: list[DeltaEntry] = []
    for number, base in enumerate(bases.values()):
        progress("deltas", number / len(bases), f"from {base.release.version}")
        old = _unpacked(read_target_of(change.repository, base.release.path), base.release)
        delta = make_delta(old, files)
        is_published = len(delta) < len(packed)
        if is_published:
            path = delta_path(
                release.target,
                release.name,
                f"{base.release.version}+{base.release.counter}",
                f"{release.version}+{release.counter}",
            )
            change.add(role, path, delta)
            listed.append(DeltaEntry(path=path, base=base.sha256))
        facts = MadeDelta(base=base.release, n_bytes=len(delta), is_published=is_published)
        made.append(facts)
    if bases:
        progress("deltas", 1.0, "")
    release = replace(release, deltas=tuple(listed))
    names = {key.keyid: name for name, key in change.repository.signers.items()}
    change.add(role, release.path, packed, {CUSTOM_KEY: release.to_json()})
    offer = Offer(
        path=release.path, share=order.share, groups=order.groups, not_before=order.not_before
    )
    put_offer(change, release.target, order.channel, offer)
    return Shipped(
        release=release,
        n_bytes=len(packed),
        deltas=tuple(made),
        channel=order.channel,
        offer=offer,
        signed_by=tuple(names.get(s.public_key.keyid, s.public_key.keyid[:8]) for s in signers),
    )


def _unpacked(packed: bytes, release: Release) -> dict[str, bytes]:
    """Return the files of a published archive, each as it was signed."""
    with tempfile.TemporaryDirectory(prefix="edgeshrink-") as folder:
        path, out = Path(folder) / "archive", Path(folder) / "files"
        path.write_bytes(packed)
        out.mkdir()
        archive.unpack(path, out, release.files)
        return {name: (out / name).read_bytes() for name in release.files}
