"""Who signs for a fleet: people join, leave and change keys, and so does what publishes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from securesystemslib.signer import CryptoSigner, Key

from edgeshrink.errors import ConfigError
from edgeshrink.fleet.change import Change, Unlock, new_online_key, online_signers
from edgeshrink.fleet.keys import check_key_name, check_signers, key_name
from edgeshrink.fleet.metadata import (
    ROLLOUT,
    Repository,
    delegations_of,
    key_ids,
    open_repository,
)
from edgeshrink.fleet.repository import edit
from edgeshrink.fleet.signing import drafting
from edgeshrink.fleet.storage import COMMIT
from edgeshrink.strict_toml import nearest


@dataclass(frozen=True, kw_only=True)
class SignerFacts:
    """One key of a fleet."""

    name: str
    keyid: str
    roles: tuple[str, ...]
    is_here: bool  # its private key lies in the folder that was looked into


def list_signers(repository: Repository, keys_folder: Path) -> tuple[SignerFacts, ...]:
    """Return all keys of a fleet, those of people first."""
    root = repository.root
    people = tuple(
        SignerFacts(
            name=name,
            keyid=key.keyid,
            roles=("root", "targets", *(r for r in repository.roles if r.startswith("device-"))),
            is_here=(keys_folder / f"{name}.pem").is_file(),
        )
        for name, key in sorted(repository.signers.items())
    )
    own = online_signers(repository.folder)
    delegations = delegations_of(repository.targets)
    machine: list[tuple[Key, tuple[str, ...]]] = [
        (root.keys[keyid], ("snapshot", "timestamp")) for keyid in key_ids(root, "timestamp")
    ]
    machine += [
        (delegations.keys[keyid], (ROLLOUT,)) for keyid in (delegations.roles or {})[ROLLOUT].keyids
    ]
    return people + tuple(
        SignerFacts(name=key_name(key), keyid=key.keyid, roles=roles, is_here=key.keyid in own)
        for key, roles in machine
    )


def add_signer(change: Change, key: Key, threshold: int | None = None) -> None:
    """Let one more person sign."""
    before = change.repository.signers
    _check_new(before, key)
    change.set_signers({**before, key_name(key): key}, threshold or change.repository.threshold)


def remove_signer(change: Change, name: str, threshold: int | None = None) -> None:
    """Revoke a person's key; whatever depends on its signature is signed again by the others."""
    after = dict(change.repository.signers)
    _must_be_known(name, after)
    after.pop(name)
    threshold = threshold or change.repository.threshold
    if len(after) < threshold:
        what = f"would leave {len(after)} keys, and {threshold} must sign"
        fix = "add somebody first, or lower --threshold"
        raise ConfigError(name, what, fix)
    check_signers(len(after), threshold)
    change.set_signers(after, threshold)


def rotate_signer(change: Change, name: str, key: Key, threshold: int | None = None) -> None:
    """Revoke a person's key, and let another one sign in its place."""
    before = change.repository.signers
    _must_be_known(name, before)
    _check_new(before, key)
    after = {n: k for n, k in before.items() if n != name} | {key_name(key): key}
    change.set_signers(after, threshold or change.repository.threshold)


@contextmanager
def changing(
    folder: Path,
    signers: Sequence[CryptoSigner] | Unlock,
    request: Path | None,
    *,
    now: datetime | None = None,
    wait_s: float = 0.0,
) -> Iterator[Change]:
    """Yield a change that is published in the end, or written as `request` where one is named."""
    if request is None:
        with edit(folder, signers, now=now, wait_s=wait_s) as change:
            yield change
    else:
        with drafting(folder, request, now=now, wait_s=wait_s) as change:
            yield change


def rotate_online(
    folder: Path,
    name: Literal["timestamp", "rollout"],
    signers: Sequence[CryptoSigner] | Unlock = (),
    request: Path | None = None,
    *,
    now: datetime | None = None,
    wait_s: float = 0.0,
) -> None:
    """Replace a key of the publishing machine. People sign that the new one may."""
    path: Path | None = None
    keyid = ""
    try:
        with changing(folder, signers, request, now=now, wait_s=wait_s) as change:
            signer, path = new_online_key(folder, name)
            keyid = signer.public_key.keyid
            change.set_online(name, signer.public_key)
    except BaseException:
        if path is not None and not may_count(folder, keyid, request):
            path.unlink(missing_ok=True)
        raise


def may_count(folder: Path, keyid: str, request: Path | None) -> bool:
    """Say whether a new key is published, about to be, or asked for: then it must not get lost."""
    if (folder / COMMIT).exists() or (request is not None and request.exists()):
        return True
    return any(facts.keyid == keyid for facts in list_signers(open_repository(folder), folder))


def check_new_name(repository: Repository, name: str, replaces: str | None = None) -> None:
    """Raise ConfigError unless `name` can join, or take the place of `replaces`."""
    if replaces is not None:
        _must_be_known(replaces, repository.signers)
    check_key_name(name, "NAME")
    if name in repository.signers:
        raise ConfigError(name, "signs already", "take another name")


def _must_be_known(name: str, known: Mapping[str, Key]) -> None:
    if name not in known:
        raise ConfigError(name, "is nobody who signs for this fleet", nearest(name, known))


def _check_new(known: Mapping[str, Key], key: Key) -> None:
    if key_name(key) in known:
        raise ConfigError(key_name(key), "signs already", "take another name")
    if key.keyid in {other.keyid for other in known.values()}:
        raise ConfigError(key_name(key), "has the key of somebody who signs already", "make one")
