"""A change of a fleet: collected, signed by who must, and turned into files to be written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    Root,
    Snapshot,
    T,
    TargetFile,
    Targets,
    Timestamp,
)

from edgeshrink.errors import ConfigError, EdgeshrinkError
from edgeshrink.fleet import keys as key_files
from edgeshrink.fleet.keys import Need, key_name
from edgeshrink.fleet.metadata import (
    DEVICE,
    MAX_BYTES,
    METADATA,
    ONLINE,
    ROLLOUT,
    TARGETS_FOLDER,
    Repository,
    delegated_roles,
    delegations_of,
    device_role,
    entry_of,
    expiry,
    hashed_path,
    is_offline,
    is_signed,
    key_ids,
    must_be_signed,
    need_of,
)
from edgeshrink.fleet.storage import Write
from edgeshrink.release import TARGET

# Phases in which files appear. Clients begin with the root and the timestamp: whatever these lead
# to must be there before.
TIMESTAMP_PHASE: Final = 1
ROOT_LAST: Final = 2
ROOT_FIRST: Final = 0

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
        if name not in delegated_roles(self._role(Targets.type)):
            targets, root = self._edit(Targets.type), self.root
            delegations = delegations_of(targets)
            keyids = key_ids(root, Targets.type)
            role = DelegatedRole(
                name, keyids, root.roles[Targets.type].threshold, True,
                paths=[f"releases/{target}/*"],
            )  # fmt: skip
            assert delegations.roles is not None
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
        key_files.check_signers(len(keys), threshold)
        keys = {name: key_files.named(key, name) for name, key in keys.items()}
        root = self._edit_root()
        for name in (Root.type, Targets.type):
            for keyid in list(root.roles[name].keyids):
                root.revoke_key(keyid, name)
            for key in keys.values():
                root.add_key(key, name)
            root.roles[name].threshold = threshold
        if not any(name.startswith(DEVICE) for name in delegated_roles(self._role(Targets.type))):
            return
        targets = self._edit(Targets.type)
        delegations = delegations_of(targets)
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
        now_ = need_of(self.root)
        before = need_of(self.repository.root)
        return (before,) if now_ == before else (before, now_)

    def keys(self) -> Mapping[str, Key]:
        """Return the public keys of all who are named in `needs`."""
        roots = (self.repository.root, self.root)
        return {key_name(r.keys[i]): r.keys[i] for r in roots for i in key_ids(r, Root.type)}

    def offline(self) -> dict[str, Metadata[Any]]:
        """Return what people must sign, each with its new version and expiry, not yet signed."""
        self._renew_what_no_longer_holds()
        changed: dict[str, Metadata[Any]] = {} if self._root is None else {Root.type: self._root}
        changed |= {name: m for name, m in self._roles.items() if is_offline(name)}
        return {name: m for name, m in changed.items() if name not in self._adopted}

    def retired(self) -> list[Key]:
        """Return the keys of this machine that count no longer after this change."""
        before, after = (
            {keyid: root.keys[keyid] for keyid in key_ids(root, Timestamp.type)}
            | {
                keyid: delegations.keys[keyid]
                for keyid in (delegations.roles or {})[ROLLOUT].keyids
            }
            for root, delegations in (
                (self.repository.root, delegations_of(self.repository.targets)),
                (self.root, delegations_of(self._role(Targets.type))),
            )
        )
        return [key for keyid, key in before.items() if keyid not in after]

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
            if not is_signed(self.root, Targets.type, metadata):
                self._edit(Targets.type)
        targets = self._role(Targets.type)
        for name in delegated_roles(targets):
            if name not in self._roles and not is_signed(
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
            Write(path=f"{TARGETS_FOLDER}/{hashed_path(path, file)}", data=data)
            for path, (file, data) in self.files.items()
        ]
        writes += [
            Write(path=f"{METADATA}/{m.signed.version}.{name}.json", data=m.to_bytes())
            for name, m in self._roles.items()
        ]
        old_and_new = dict.fromkeys([*key_ids(old, "timestamp"), *key_ids(self.root, "timestamp")])
        snapshot_entry = repository.timestamp.snapshot_meta
        # A snapshot that the keys from now on have not signed must be made anew as well.
        if self._roles or Snapshot.type in self._renewed or _online_changed(old, self.root):
            snapshot = Metadata(
                Snapshot(
                    version=repository.snapshot.version + 1,
                    expires=self._expiry(Snapshot.type),
                    meta=dict(repository.snapshot.meta)
                    | {f"{name}.json": entry_of(m) for name, m in self._roles.items()},
                )
            )
            _sign_online(snapshot, Snapshot.type, list(old_and_new), own)
            must_be_signed(self.root, Snapshot.type, snapshot)
            snapshot_entry = entry_of(snapshot)
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
        must_be_signed(self.root, Timestamp.type, timestamp)
        path = f"{METADATA}/timestamp.json"
        writes.append(Write(path=path, data=timestamp.to_bytes(), phase=TIMESTAMP_PHASE))
        if self._root is not None:
            # All above is signed by the old keys and by the new ones, so that it holds under either
            # root: the new root may come last. Without the old key of this machine that can't be.
            holds_before = is_signed(old, Timestamp.type, timestamp)
            path = f"{METADATA}/{self.root.version}.root.json"
            phase = ROOT_LAST if holds_before else ROOT_FIRST
            writes.append(Write(path=path, data=self._root.to_bytes(), phase=phase))
        _check_sizes(writes)
        return writes

    def _check_signatures(self) -> None:
        old = self.repository.root
        if self._root is not None:
            if self.root.version != old.version + 1:
                what = f"has version {self.root.version} behind {old.version}"
                raise ConfigError("root", what, "make the request again")
            must_be_signed(old, Root.type, self._root)
            must_be_signed(self.root, Root.type, self._root)
        for name, metadata in self._roles.items():
            before = self.repository.roles.get(name)
            expected = 1 if before is None else before.signed.version + 1
            if metadata.signed.version != expected:
                what = f"has version {metadata.signed.version}, {expected} comes next"
                raise ConfigError(name, what, "something else was published; make it again")
            if name == Targets.type:
                must_be_signed(old, name, metadata)
                must_be_signed(self.root, name, metadata)
            else:
                must_be_signed(self._role(Targets.type), name, metadata)


def _check_sizes(writes: Sequence[Write]) -> None:
    for write in writes:
        if not write.path.startswith(f"{METADATA}/"):
            continue
        stem = write.path.removesuffix(".json").rpartition("/")[2]
        role = stem.partition(".")[2] or stem
        limit = MAX_BYTES.get(role, MAX_BYTES[Targets.type])
        if len(write.data) > limit:
            what = f"would have {len(write.data):,} bytes, and devices take {limit:,}"
            raise ConfigError(role, what, "list fewer files, or remove old ones")


# ---- keys of this machine


def online_signers(folder: Path) -> dict[str, CryptoSigner]:
    """Return the keys of the machine that publishes, by their ids."""
    found = {}
    for path in sorted((folder / ONLINE).glob("*.pem")):
        signer = key_files.read_private(path, None)
        found[signer.public_key.keyid] = signer
    return found


def new_online_key(folder: Path, name: str) -> tuple[CryptoSigner, Path]:
    """Make a key for this machine and keep it; it counts when root or targets list it."""
    signer = key_files.generate(name)
    try:
        (folder / ONLINE).mkdir(mode=0o700, exist_ok=True)
        path = write_online(folder, signer)
    except OSError as err:
        what = f"can't be written ({err.strerror or err})"
        raise EdgeshrinkError(str(folder / ONLINE), what, "make it writable") from err
    return signer, path


def write_online(folder: Path, signer: CryptoSigner) -> Path:
    """Keep a private key of this machine, which has no passphrase."""
    path = _online_path(folder, key_name(signer.public_key), signer.public_key.keyid)
    key_files.write_secret(path, key_files.private_pem(signer, None))
    return path


def forget_online(folder: Path, change: Change) -> None:
    """Remove the keys of this machine that a published change has replaced."""
    for key in change.retired():
        with suppress(OSError):  # it is of no use any more, here or elsewhere
            _online_path(folder, key_name(key), key.keyid).unlink()


def _online_path(folder: Path, name: str, keyid: str) -> Path:
    return folder / ONLINE / f"{name}-{keyid[:8]}.pem"


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


def _online_changed(old: Root, new: Root) -> bool:
    return set(key_ids(old, Snapshot.type)) != set(key_ids(new, Snapshot.type))
