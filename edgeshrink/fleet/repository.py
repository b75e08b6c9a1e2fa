"""Make a fleet, and change it: whatever is published appears as a whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

from edgeshrink.errors import ConfigError, EdgeshrinkError
from edgeshrink.fleet import keys as key_files
from edgeshrink.fleet import settings as settings_file
from edgeshrink.fleet.change import TIMESTAMP_PHASE, Change, Unlock, forget_online, write_online
from edgeshrink.fleet.keys import key_name
from edgeshrink.fleet.metadata import (
    KEYS,
    METADATA,
    ONLINE,
    ONLINE_KEYS,
    ROLLOUT,
    ROOT,
    TARGETS_FOLDER,
    Repository,
    device_role,
    entry_of,
    expiry,
    is_offline,
    open_repository,
    read_target,
    read_target_of,
)
from edgeshrink.fleet.settings import Settings
from edgeshrink.fleet.storage import Write, locked, write_together

__all__ = [
    "Change", "Refreshed", "Repository", "Unlock", "check_new", "create_fleet", "device_role",
    "edit", "expiring_soon", "is_offline", "open_repository", "read_target", "read_target_of",
    "refresh",
]  # fmt: skip


def create_fleet(
    folder: Path,
    settings: Settings,
    *,
    passphrases: Mapping[str, str],
    threshold: int,
    keys_folder: Path | None = None,
    now: datetime | None = None,
) -> Repository:
    """Make a fleet: keys of people and of this machine, and a repository without a release.

    Args:
        folder: To be made; empty if it is there.
        settings: What `fleet.toml` shall say.
        passphrases: Of each person's key, by the name of the key.
        threshold: How many of them must sign.
        keys_folder: Where people's keys go; None: `keys/` in the fleet's folder.
        now: From when signatures hold.

    Raises:
        ConfigError: `folder` holds something, or there are fewer keys than must sign.
        EdgeshrinkError: writing failed; nothing is left.
    """
    key_files.check_signers(len(passphrases), threshold)
    for name, passphrase in passphrases.items():
        key_files.check_key_name(name, "key")
        key_files.check_passphrase(name, passphrase)
    folder = folder.absolute()
    check_new(folder)
    people = [key_files.generate(name) for name in passphrases]
    online = {name: key_files.generate(name) for name in ONLINE_KEYS}
    writes = _first_metadata(settings, people, online, threshold, now or datetime.now(UTC))
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    pairs: list[Path] = []
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
        for below in (KEYS, ONLINE):
            (aside / below).mkdir(mode=0o700)
        for signer in people:
            place = keys_folder or aside / KEYS
            pair = key_files.write_pair(place, signer, passphrases[key_name(signer.public_key)])
            pairs += [pair, pair.with_suffix(".pub")]
        for signer in online.values():
            write_online(aside, signer)
        (aside / settings_file.FILE).write_text(settings_file.write_settings(settings), "utf-8")
        (aside / TARGETS_FOLDER).mkdir(parents=True)
        with locked(aside):
            write_together(aside, writes)
        aside.rename(folder)
    except BaseException as err:
        if keys_folder is not None:
            for path in pairs:
                path.unlink(missing_ok=True)
        if isinstance(err, OSError):
            if err.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                check_new(folder)
            where, reason = err.filename or folder, err.strerror or err
            fix = "free space, or choose another folder; nothing was left behind"
            raise EdgeshrinkError(str(where), f"can't be written ({reason})", fix) from err
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return open_repository(folder)


def check_new(folder: Path) -> None:
    """Raise ConfigError where `folder` can't become a fleet because something is there."""
    if (folder / settings_file.FILE).is_file():
        fix = "`edgeshrink fleet status` shows it; choose another folder for a new one"
        raise ConfigError(str(folder), "is a fleet already", fix)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "holds files" if folder.is_dir() else "is a file"
        raise ConfigError(str(folder), what, "choose another folder")


def _first_metadata(
    settings: Settings,
    people: Sequence[CryptoSigner],
    online: Mapping[str, CryptoSigner],
    threshold: int,
    now: datetime,
) -> list[Write]:
    root = Root(expires=expiry(settings, Root.type, now), consistent_snapshot=True)
    for name in (Root.type, Targets.type):
        for signer in people:
            root.add_key(signer.public_key, name)
        root.roles[name].threshold = threshold
    for name in (Snapshot.type, Timestamp.type):
        root.add_key(online["timestamp"].public_key, name)
    rollout_key = online[ROLLOUT].public_key
    delegation = DelegatedRole(ROLLOUT, [rollout_key.keyid], 1, True, paths=["rollout/*/*.json"])
    targets = Targets(expires=expiry(settings, Targets.type, now))
    targets.delegations = Delegations({rollout_key.keyid: rollout_key}, {ROLLOUT: delegation})
    rollout = Targets(expires=expiry(settings, ROLLOUT, now))
    roles = {Targets.type: Metadata(targets), ROLLOUT: Metadata(rollout)}
    signed_root = Metadata(root)
    for signer in people:
        signed_root.sign(signer, append=True)
        roles[Targets.type].sign(signer, append=True)
    roles[ROLLOUT].sign(online[ROLLOUT])
    snapshot = Metadata(
        Snapshot(
            expires=expiry(settings, Snapshot.type, now),
            meta={f"{name}.json": entry_of(metadata) for name, metadata in roles.items()},
        )
    )
    snapshot.sign(online["timestamp"])
    timestamp = Metadata(
        Timestamp(expires=expiry(settings, Timestamp.type, now), snapshot_meta=entry_of(snapshot))
    )
    timestamp.sign(online["timestamp"])
    first: dict[str, Metadata[Any]] = {"root": signed_root, **roles, "snapshot": snapshot}
    return [
        Write(path=ROOT, data=signed_root.to_bytes()),
        *(Write(path=f"{METADATA}/1.{n}.json", data=m.to_bytes()) for n, m in first.items()),
        Write(path=f"{METADATA}/timestamp.json", data=timestamp.to_bytes(), phase=TIMESTAMP_PHASE),
    ]


@contextmanager
def edit(
    folder: Path,
    signers: Sequence[CryptoSigner] | Unlock = (),
    *,
    now: datetime | None = None,
    wait_s: float = 0.0,
) -> Iterator[Change]:
    """Yield a change of a fleet that is published, wholly or not at all, when the block ends well.

    Args:
        folder: Of the fleet.
        signers: Opened keys of people, or a function that opens them; asked only if what changes
            is theirs to sign.
        now: From when new signatures hold.
        wait_s: How long to wait for another publisher to end.

    Raises:
        EdgeshrinkError: another publisher is at work, or writing failed; nothing has changed.
        ThresholdError: fewer people have signed than must; nothing has changed.
    """
    if not (folder / settings_file.FILE).is_file():
        open_repository(folder)  # says what is wrong
    with locked(folder, wait_s):
        change = Change(open_repository(folder), now or datetime.now(UTC))
        yield change
        if not change.is_empty():
            write_together(folder, change.writes(signers))
            forget_online(folder, change)


@dataclass(frozen=True, kw_only=True)
class Refreshed:
    """What `refresh` has done, and what it could not do."""

    renewed: tuple[str, ...]
    expiries: Mapping[str, datetime]
    soon: tuple[str, ...]  # roles of people that run out before long, or have


def refresh(
    folder: Path,
    signers: Sequence[CryptoSigner] | Unlock = (),
    *,
    offline: bool = False,
    now: datetime | None = None,
    wait_s: float = 0.0,
) -> Refreshed:
    """Let signatures hold from now on.

    The timestamp is always signed anew; the snapshot and the rollout when less than half of their
    time is left, which spares devices a download. What people sign only if `offline`.
    """
    now = now or datetime.now(UTC)
    with edit(folder, signers, now=now, wait_s=wait_s) as change:
        before = change.repository
        renewed = [Timestamp.type]
        days = before.settings.expiry_days
        for role, expires in before.expiries().items():
            if is_offline(role):
                due = offline
            else:
                due = role != Timestamp.type and expires - now < timedelta(days=days[role] / 2)
            if due:
                renewed.append(role)
        for role in renewed:
            change.renew(role)
    after = open_repository(folder)
    return Refreshed(
        renewed=tuple(renewed), expiries=after.expiries(), soon=expiring_soon(after, now)
    )


def expiring_soon(repository: Repository, now: datetime) -> tuple[str, ...]:
    """Return the roles of people whose signatures run out before long, or have."""
    until = now + timedelta(days=repository.settings.warn_days)
    return tuple(
        role
        for role, expires in repository.expiries().items()
        if is_offline(role) and expires < until
    )
