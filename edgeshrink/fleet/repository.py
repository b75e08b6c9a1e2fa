"""The publisher's side of a fleet: a TUF repository, read and changed as a whole.

A fleet's folder holds `repository/` (what is published, `metadata/` and `targets/`), `root.json`
(what devices begin with), `fleet.toml`, `online/` (keys of this machine) and, unless they are kept
elsewhere, `keys/` (encrypted keys of people). Roles:

- `root`, `targets` and `device-TARGET` are signed by a threshold of people: which keys there are,
  and which releases exist.
- `rollout`, `snapshot` and `timestamp` are signed by this machine: which of these releases are
  offered to whom, and what is current.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

from securesystemslib.signer import CryptoSigner, Key
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    T,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError

from edgeshrink.errors import ConfigError, EdgeshrinkError, ThresholdError, TrustError
from edgeshrink.fleet import keys as key_files
from edgeshrink.fleet import settings as settings_file
from edgeshrink.fleet.keys import Need, key_name
from edgeshrink.fleet.settings import Settings
from edgeshrink.fleet.storage import Write, locked, write_together
from edgeshrink.release import TARGET

PUBLISHED: Final = "repository"
METADATA: Final = f"{PUBLISHED}/metadata"
TARGETS_FOLDER: Final = f"{PUBLISHED}/targets"
KEYS: Final = "keys"
ONLINE: Final = "online"
ROOT: Final = "root.json"
ROLLOUT: Final = "rollout"
DEVICE: Final = "device-"
ONLINE_KEYS: Final = ("timestamp", "rollout")  # the first one signs the snapshot too
TARGETS_FIX: Final = "restore the fleet's folder from a copy"
# Phases in which files appear. Clients begin with the root and the timestamp: whatever these lead
# to must be there before.
_TIMESTAMP: Final = 1
_ROOT_LAST: Final = 2
_ROOT_FIRST: Final = 0


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A fleet as it is published. Its metadata have been verified; they may have expired."""

    folder: Path
    settings: Settings
    root_metadata: Metadata[Root]
    timestamp: Timestamp
    snapshot: Snapshot
    roles: Mapping[str, Metadata[Targets]]  # targets and all that it delegates to

    @property
    def root(self) -> Root:
        """The newest root."""
        return self.root_metadata.signed

    @property
    def targets(self) -> Targets:
        """The top-level targets, which lists no file, only who may list which."""
        return self.roles[Targets.type].signed

    def role(self, name: str) -> Targets:
        """Return the metadata of `targets`, `rollout` or `device-TARGET`; ConfigError if none."""
        if name not in self.roles:
            known = ", ".join(sorted(self.roles))
            raise ConfigError(str(self.folder), f"has no role {name}", f"it has {known}")
        return self.roles[name].signed

    @property
    def signers(self) -> Mapping[str, Key]:
        """The public keys of people, by their names."""
        return {key_name(self.root.keys[i]): self.root.keys[i] for i in _keyids(self.root, "root")}

    @property
    def threshold(self) -> int:
        """How many people must sign."""
        return int(self.root.roles[Root.type].threshold)

    @property
    def needs(self) -> tuple[Need, ...]:
        """Who must sign a release."""
        return (_need(self.root),)

    def expiries(self) -> dict[str, datetime]:
        """Return when each role's signatures run out."""
        return {
            "root": self.root.expires,
            **{name: metadata.signed.expires for name, metadata in sorted(self.roles.items())},
            "snapshot": self.snapshot.expires,
            "timestamp": self.timestamp.expires,
        }

    def find(self, path: str) -> tuple[str, TargetFile] | None:
        """Return the role that lists the target `path`, and its facts; None if nobody does."""
        for name, metadata in self.roles.items():
            if path in metadata.signed.targets:
                return name, metadata.signed.targets[path]
        return None


def device_role(target: str) -> str:
    """Return the name of the role that lists releases for a target."""
    return f"{DEVICE}{target}"


def is_offline(role: str) -> bool:
    """Say whether people sign this role."""
    return role in (Root.type, Targets.type) or role.startswith(DEVICE)


def open_repository(folder: Path) -> Repository:
    """Read a fleet, and verify all of its metadata from `root.json` on.

    Raises:
        ConfigError: `folder` is no fleet.
        TrustError: what is published was not signed by who may: nothing should be built on it.
    """
    if not (folder / settings_file.FILE).is_file():
        fix = "make one with `edgeshrink fleet init`, or check the path"
        raise ConfigError(str(folder), f"is no fleet: it has no {settings_file.FILE}", fix)
    settings = settings_file.read_settings(folder / settings_file.FILE)
    root = _read_roots(folder)
    timestamp = _load(folder, "timestamp.json", Timestamp)
    _verify(root.signed, Timestamp.type, timestamp)
    snapshot = _load(folder, f"{timestamp.signed.snapshot_meta.version}.snapshot.json", Snapshot)
    _verify(root.signed, Snapshot.type, snapshot)
    roles: dict[str, Metadata[Targets]] = {}

    def read(name: str, delegator: Root | Targets) -> Metadata[Targets]:
        entry = snapshot.signed.meta.get(f"{name}.json")
        if entry is None:
            raise TrustError(str(folder), f"lists no version of {name}", TARGETS_FIX)
        metadata = _load(folder, f"{entry.version}.{name}.json", Targets)
        _verify(delegator, name, metadata)
        return metadata

    roles[Targets.type] = read(Targets.type, root.signed)
    for name in _delegated(roles[Targets.type].signed):
        roles[name] = read(name, roles[Targets.type].signed)
    return Repository(
        folder=folder,
        settings=settings,
        root_metadata=root,
        timestamp=timestamp.signed,
        snapshot=snapshot.signed,
        roles=roles,
    )


def read_target(folder: Path, path: str) -> bytes:
    """Return the content of a published target.

    Raises:
        ConfigError: nobody has signed such a target.
        TrustError: the file differs from what was signed.
    """
    return read_target_of(open_repository(folder), path)


def read_target_of(repository: Repository, path: str) -> bytes:
    """Return the content of a published target; see `read_target`."""
    found = repository.find(path)
    if found is None:
        raise ConfigError(str(repository.folder), f"has no target {path}", "check the path")
    file = repository.folder / TARGETS_FOLDER / _hashed(path, found[1])
    try:
        data = file.read_bytes()
        found[1].verify_length_and_hashes(data)
    except (OSError, RepositoryError) as err:
        raise TrustError(str(file), f"is not what was signed ({err})", TARGETS_FIX) from err
    return data


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
    check_signers(len(passphrases), threshold)
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
            _write_online(aside, signer)
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


def check_signers(n_keys: int, threshold: int) -> None:
    """Raise ConfigError unless `threshold` of `n_keys` people can sign."""
    if not 1 <= threshold <= n_keys:
        what = f"is {threshold}, of {n_keys} keys"
        raise ConfigError("--threshold", what, f"choose between 1 and {n_keys}, or add keys")
    if n_keys > 64:
        raise ConfigError("--keys", f"are {n_keys}", "64 are enough for anybody's metadata")


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
            meta={f"{name}.json": _entry(metadata) for name, metadata in roles.items()},
        )
    )
    snapshot.sign(online["timestamp"])
    timestamp = Metadata(
        Timestamp(expires=expiry(settings, Timestamp.type, now), snapshot_meta=_entry(snapshot))
    )
    timestamp.sign(online["timestamp"])
    first: dict[str, Metadata[Any]] = {"root": signed_root, **roles, "snapshot": snapshot}
    return [
        Write(path=ROOT, data=signed_root.to_bytes()),
        *(Write(path=f"{METADATA}/1.{n}.json", data=m.to_bytes()) for n, m in first.items()),
        Write(path=f"{METADATA}/timestamp.json", data=timestamp.to_bytes(), phase=_TIMESTAMP),
    ]


def expiry(settings: Settings, role: str, now: datetime) -> datetime:
    """Return until when a signature that is made now holds."""
    days = settings.expiry_days[Targets.type if role.startswith(DEVICE) else role]
    return now.astimezone(UTC).replace(microsecond=0) + timedelta(days=days)


Unlock = Callable[[Sequence[Need], Mapping[str, Key]], Sequence[CryptoSigner]]


class Change:
    """What is about to be published. Nothing is written before `edit` ends well."""

    def __init__(self, repository: Repository, now: datetime) -> None:
        self.repository, self.now = repository, now
        self.files: dict[str, tuple[TargetFile, bytes]] = {}
        self._root: Metadata[Root] | None = None
        self._roles: dict[str, Metadata[Targets]] = {}
        self._adopted: set[str] = set()  # came with their signatures
        self._renewed: set[str] = set()  # of snapshot and timestamp

    def targets(self, role: str) -> Mapping[str, TargetFile]:
        """Return what a role lists, by path, changes included."""
        return self._role(role).targets

    def add(
        self, role: str, path: str, data: bytes, custom: Mapping[str, Any] | None = None
    ) -> TargetFile:
        """List a file under a role, in the place of one with the same path.

        Args:
            role: `rollout`, or what `ensure_device_role` returned.
            path: Of the target; the role must be allowed to list it.
            data: The content.
            custom: What is signed about it beside length and hash.
        """
        delegation = (self._role(Targets.type).delegations or Delegations({}, {})).roles or {}
        if role not in delegation or not delegation[role].is_delegated_path(path):
            raise ConfigError(role, f"may not list {path}", "choose a path of its delegation")
        file = TargetFile.from_data(path, data, ["sha256"])
        if custom is not None:
            file.unrecognized_fields["custom"] = dict(custom)
        self._edit(role).targets[path] = file
        self.files[path] = (file, data)
        return file

    def remove(self, role: str, path: str) -> None:
        """List a file no longer. Devices that have it keep it."""
        self._edit(role).targets.pop(path, None)
        self.files.pop(path, None)

    def ensure_device_role(self, target: str) -> str:
        """Return the role that lists releases for a target; people's keys delegate to a new one."""
        name = device_role(target)
        if not TARGET.fullmatch(target):
            fix = "use lower-case letters, digits, '.', '+' and '-'"
            raise ConfigError("target", f"is {target!r:.80}", fix)
        if name not in _delegated(self._role(Targets.type)):
            targets, root = self._edit(Targets.type), self.root
            delegations = _delegations(targets)
            keyids = _keyids(root, Targets.type)
            role = DelegatedRole(
                name, keyids, root.roles[Targets.type].threshold, True,
                paths=[f"releases/{target}/*"],
            )  # fmt: skip
            assert delegations.roles is not None
            # before the roles that came earlier or later: none of them shares a path with it
            delegations.roles[name] = role
            delegations.keys.update({keyid: root.keys[keyid] for keyid in keyids})
            self._roles[name] = Metadata(Targets(expires=self._expiry(name)))
        return name

    def renew(self, role: str) -> None:
        """Let a role's signatures hold from now on, its content unchanged."""
        if role in (Snapshot.type, Timestamp.type):
            self._renewed.add(role)
        elif role == Root.type:
            self._edit_root()
        else:
            self._edit(role)

    def set_signers(self, keys: Mapping[str, Key], threshold: int) -> None:
        """Replace the people who sign, everywhere.

        Whatever the new ones would not have signed is signed again: what somebody signed whose key
        is taken away does not stay because of that signature.
        """
        check_signers(len(keys), threshold)
        root = self._edit_root()
        for name in (Root.type, Targets.type):
            for keyid in list(root.roles[name].keyids):
                root.revoke_key(keyid, name)
            for key in keys.values():
                root.add_key(key, name)
            root.roles[name].threshold = threshold
        if not any(name.startswith(DEVICE) for name in _delegated(self._role(Targets.type))):
            return
        targets = self._edit(Targets.type)
        delegations = _delegations(targets)
        assert delegations.roles is not None
        for name, role in delegations.roles.items():
            if name.startswith(DEVICE):
                role.keyids = [key.keyid for key in keys.values()]
                role.threshold = threshold
        used = {keyid for role in delegations.roles.values() for keyid in role.keyids}
        known = delegations.keys | {key.keyid: key for key in keys.values()}
        delegations.keys = {keyid: known[keyid] for keyid in known if keyid in used}

    def set_online(self, name: Literal["timestamp", "rollout"], key: Key) -> None:
        """Replace a key of the machine that publishes."""
        if name == ROLLOUT:
            targets = self._edit(Targets.type)
            for keyid in list(targets.get_delegated_role(ROLLOUT).keyids):
                targets.revoke_key(keyid, ROLLOUT)
            targets.add_key(key, ROLLOUT)
            return
        root = self._edit_root()
        for role in (Snapshot.type, Timestamp.type):
            for keyid in list(root.roles[role].keyids):
                root.revoke_key(keyid, role)
            root.add_key(key, role)

    def adopt(self, name: str, metadata: Metadata[Any]) -> None:
        """Take a role that was changed and signed elsewhere."""
        self._adopted.add(name)
        if name == Root.type:
            self._root = metadata
        else:
            self._roles[name] = metadata

    def adopt_file(self, path: str, file: TargetFile, data: bytes) -> None:
        """Take the content of a target that an adopted role lists."""
        self.files[path] = (file, data)

    @property
    def root(self) -> Root:
        """The root, changes included."""
        return (self._root or self.repository.root_metadata).signed

    def needs(self) -> tuple[Need, ...]:
        """Return who must sign: of the signers so far, and of those from now on."""
        now_ = _need(self.root)
        before = _need(self.repository.root)
        return (before,) if now_ == before else (before, now_)

    def keys(self) -> Mapping[str, Key]:
        """Return the public keys of all who are named in `needs`."""
        roots = (self.repository.root, self.root)
        return {key_name(r.keys[i]): r.keys[i] for r in roots for i in _keyids(r, Root.type)}

    def offline(self) -> dict[str, Metadata[Any]]:
        """Return what people must sign, each with its new version and expiry, not yet signed."""
        self._renew_what_no_longer_holds()
        changed: dict[str, Metadata[Any]] = {} if self._root is None else {Root.type: self._root}
        changed |= {name: m for name, m in self._roles.items() if is_offline(name)}
        return {name: m for name, m in changed.items() if name not in self._adopted}

    def is_empty(self) -> bool:
        """Say whether there is nothing to publish."""
        return self._root is None and not self._roles and not self._renewed

    def _role(self, name: str) -> Targets:
        return self._roles[name].signed if name in self._roles else self.repository.role(name)

    def _edit(self, name: str) -> Targets:
        if name not in self._roles:
            self.repository.role(name)
            self._roles[name] = self._copy(name, self.repository.roles[name])
        elif name in self._adopted and is_offline(name):
            raise AssertionError(f"{name} is signed already")
        return self._roles[name].signed

    def _edit_root(self) -> Root:
        if self._root is None:
            self._root = self._copy(Root.type, self.repository.root_metadata)
        return self._root.signed

    def _copy(self, name: str, metadata: Metadata[T]) -> Metadata[T]:
        copy = Metadata[T].from_bytes(metadata.to_bytes())
        copy.signatures.clear()
        copy.signed.version += 1
        copy.signed.expires = self._expiry(name)
        return copy

    def _expiry(self, role: str) -> datetime:
        return expiry(self.repository.settings, role, self.now)

    def _renew_what_no_longer_holds(self) -> None:
        """Sign again whatever the keys as they are from now on have not signed."""
        if self._root is not None and Targets.type not in self._roles:
            metadata = self.repository.roles[Targets.type]
            if not _is_signed(self.root, Targets.type, metadata):
                self._edit(Targets.type)
        targets = self._role(Targets.type)
        for name in _delegated(targets):
            if name not in self._roles and not _is_signed(
                targets, name, self.repository.roles[name]
            ):
                self._edit(name)

    def writes(self, signers: Sequence[CryptoSigner] | Unlock) -> list[Write]:
        """Sign everything, and return the files to write.

        Raises:
            ThresholdError: fewer people have signed than must.
            ConfigError: a key of this machine is missing.
        """
        offline = self.offline()
        people = signers(self.needs(), self.keys()) if offline and callable(signers) else signers
        for metadata in offline.values():
            metadata.signatures.clear()
            for signer in () if callable(people) else people:
                metadata.sign(signer, append=True)
        return self._all_writes()

    def _all_writes(self) -> list[Write]:
        old, repository = self.repository.root, self.repository
        own = online_signers(repository.folder)
        for name, metadata in self._roles.items():
            if not is_offline(name):
                keyids = self._role(Targets.type).get_delegated_role(name).keyids
                _sign_online(metadata, name, keyids, own)
        self._check_signatures()
        writes = [
            Write(path=f"{TARGETS_FOLDER}/{_hashed(path, file)}", data=data)
            for path, (file, data) in self.files.items()
        ]
        writes += [
            Write(path=f"{METADATA}/{m.signed.version}.{name}.json", data=m.to_bytes())
            for name, m in self._roles.items()
        ]
        old_and_new = dict.fromkeys([*_keyids(old, "timestamp"), *_keyids(self.root, "timestamp")])
        snapshot_entry = repository.timestamp.snapshot_meta
        # A snapshot that the keys from now on have not signed must be made anew as well.
        if self._roles or Snapshot.type in self._renewed or _online_changed(old, self.root):
            snapshot = Metadata(
                Snapshot(
                    version=repository.snapshot.version + 1,
                    expires=self._expiry(Snapshot.type),
                    meta=dict(repository.snapshot.meta)
                    | {f"{name}.json": _entry(m) for name, m in self._roles.items()},
                )
            )
            _sign_online(snapshot, Snapshot.type, list(old_and_new), own)
            _must_be_signed(self.root, Snapshot.type, snapshot)
            snapshot_entry = _entry(snapshot)
            path = f"{METADATA}/{snapshot.signed.version}.snapshot.json"
            writes.append(Write(path=path, data=snapshot.to_bytes()))
        timestamp = Metadata(
            Timestamp(
                version=repository.timestamp.version + 1,
                expires=self._expiry(Timestamp.type),
                snapshot_meta=snapshot_entry,
            )
        )
        _sign_online(timestamp, Timestamp.type, list(old_and_new), own)
        _must_be_signed(self.root, Timestamp.type, timestamp)
        path = f"{METADATA}/timestamp.json"
        writes.append(Write(path=path, data=timestamp.to_bytes(), phase=_TIMESTAMP))
        if self._root is not None:
            # All above is signed by the old keys and by the new ones, so that it holds under either
            # root: the new root may come last. Without the old key of this machine that can't be.
            holds_before = _is_signed(old, Timestamp.type, timestamp)
            path = f"{METADATA}/{self.root.version}.root.json"
            phase = _ROOT_LAST if holds_before else _ROOT_FIRST
            writes.append(Write(path=path, data=self._root.to_bytes(), phase=phase))
        return writes

    def _check_signatures(self) -> None:
        old = self.repository.root
        if self._root is not None:
            if self.root.version != old.version + 1:
                what = f"has version {self.root.version} behind {old.version}"
                raise ConfigError("root", what, "make the request again")
            _must_be_signed(old, Root.type, self._root)
            _must_be_signed(self.root, Root.type, self._root)
        for name, metadata in self._roles.items():
            before = self.repository.roles.get(name)
            expected = 1 if before is None else before.signed.version + 1
            if metadata.signed.version != expected:
                what = f"has version {metadata.signed.version}, {expected} comes next"
                raise ConfigError(name, what, "something else was published; make it again")
            if name == Targets.type:
                _must_be_signed(old, name, metadata)
                _must_be_signed(self.root, name, metadata)
            else:
                _must_be_signed(self._role(Targets.type), name, metadata)


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
            _forget_online(folder)


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


# ---- keys of this machine


def online_signers(folder: Path) -> dict[str, CryptoSigner]:
    """Return the keys of the machine that publishes, by their ids."""
    found = {}
    for path in sorted((folder / ONLINE).glob("*.pem")):
        signer = key_files.read_private(path, None)
        found[signer.public_key.keyid] = signer
    return found


def new_online_key(folder: Path, name: str) -> CryptoSigner:
    """Make a key for this machine and keep it; it counts when a root or targets lists it."""
    signer = key_files.generate(name)
    try:
        (folder / ONLINE).mkdir(mode=0o700, exist_ok=True)
        _write_online(folder, signer)
    except OSError as err:
        what = f"can't be written ({err.strerror or err})"
        raise EdgeshrinkError(str(folder / ONLINE), what, "make it writable") from err
    return signer


def _write_online(folder: Path, signer: CryptoSigner) -> None:
    name, key = key_name(signer.public_key), signer.public_key
    path = folder / ONLINE / f"{name}-{key.keyid[:8]}.pem"
    key_files.write_secret(path, key_files.private_pem(signer, None))


def _forget_online(folder: Path) -> None:
    """Remove the keys of this machine that a newer one has replaced."""
    repository = open_repository(folder)
    rollout = _delegations(repository.targets).roles or {}
    valid = {
        "timestamp": _keyids(repository.root, "timestamp"),
        "rollout": rollout[ROLLOUT].keyids,
    }
    revoked = _former_online(folder, repository)
    for path in (folder / ONLINE).glob("*.pem"):
        keyid = key_files.read_private(path, None).public_key.keyid
        if keyid in revoked and not any(keyid in keyids for keyids in valid.values()):
            path.unlink(missing_ok=True)


def _former_online(folder: Path, repository: Repository) -> set[str]:
    former: set[str] = set()
    for version in range(1, repository.root.version):
        former |= set(_keyids(_load(folder, f"{version}.root.json", Root).signed, "timestamp"))
    for version in range(1, repository.targets.version):
        path = folder / METADATA / f"{version}.targets.json"
        if path.exists():
            targets = _load(folder, path.name, Targets).signed
            former |= set((_delegations(targets).roles or {})[ROLLOUT].keyids)
    return former


def _sign_online(
    metadata: Metadata[Any], role: str, keyids: Sequence[str], own: Mapping[str, CryptoSigner]
) -> None:
    metadata.signatures.clear()
    for keyid in keyids:
        if keyid in own:
            metadata.sign(own[keyid], append=True)
    if not metadata.signatures:
        what = f"holds no key that may sign {role}"
        fix = "publish from the machine that has it, or: edgeshrink fleet signers rotate"
        raise ConfigError(ONLINE, what, fix)


# ---- metadata


def _read_roots(folder: Path) -> Metadata[Root]:
    """Return the newest root, verified from the one that devices begin with."""
    try:
        first = (folder / ROOT).read_bytes()
        root = Metadata[Root].from_bytes(first)
    except (OSError, DeserializationError) as err:
        raise ConfigError(str(folder / ROOT), f"can't be read ({err})", TARGETS_FIX) from err
    _verify(root.signed, Root.type, root)
    while (folder / METADATA / f"{root.signed.version + 1}.root.json").exists():
        following = _load(folder, f"{root.signed.version + 1}.root.json", Root)
        _verify(root.signed, Root.type, following)
        _verify(following.signed, Root.type, following)
        root = following
    return root


def _load(folder: Path, name: str, kind: type[T]) -> Metadata[T]:
    path = folder / METADATA / name
    try:
        metadata = Metadata[T].from_bytes(path.read_bytes())
    except (OSError, DeserializationError) as err:
        raise ConfigError(str(path), f"can't be read ({err})", TARGETS_FIX) from err
    if not isinstance(metadata.signed, kind):
        raise TrustError(str(path), f"is {metadata.signed.type}, no {kind.type}", TARGETS_FIX)
    return metadata


def _verify(delegator: Root | Targets, name: str, metadata: Metadata[Any]) -> None:
    try:
        delegator.verify_delegate(name, metadata.signed_bytes, metadata.signatures)
    except (UnsignedMetadataError, ValueError) as err:
        raise TrustError(f"{name}.json", f"is not signed by who may ({err})", TARGETS_FIX) from err


def _is_signed(delegator: Root | Targets, name: str, metadata: Metadata[Any]) -> bool:
    return bool(delegator.get_verification_result(name, metadata.signed_bytes, metadata.signatures))


def _must_be_signed(delegator: Root | Targets, name: str, metadata: Metadata[Any]) -> None:
    result = delegator.get_verification_result(name, metadata.signed_bytes, metadata.signatures)
    if not result:
        have = ", ".join(sorted(map(key_name, result.signed.values()))) or "nobody"
        may = ", ".join(sorted(map(key_name, [*result.signed.values(), *result.unsigned.values()])))
        what = f"is signed by {have}, and {result.threshold} of {may} must sign"
        raise ThresholdError(name, what, "nothing was published; sign with more keys")


def _need(root: Root) -> Need:
    role = root.roles[Root.type]
    names = frozenset(key_name(root.keys[keyid]) for keyid in role.keyids)
    return Need(names=names, threshold=role.threshold)


def _online_changed(old: Root, new: Root) -> bool:
    return set(_keyids(old, Snapshot.type)) != set(_keyids(new, Snapshot.type))


def _keyids(root: Root, role: str) -> list[str]:
    return list(root.roles[role].keyids)


def _delegations(targets: Targets) -> Delegations:
    assert targets.delegations is not None  # a fleet delegates from its first version on
    return targets.delegations


def _delegated(targets: Targets) -> list[str]:
    return list(_delegations(targets).roles or {})


def _entry(metadata: Metadata[Any]) -> MetaFile:
    return MetaFile.from_data(metadata.signed.version, metadata.to_bytes(), ["sha256"])


def _hashed(path: str, file: TargetFile) -> str:
    """Return under which path a target is published: prefixed by its hash."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{file.hashes['sha256']}.{name}"
