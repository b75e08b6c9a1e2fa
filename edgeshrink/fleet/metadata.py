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

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from securesystemslib.signer import Key
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import (
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
from edgeshrink.fleet import settings as settings_file
from edgeshrink.fleet.keys import Need, key_name
from edgeshrink.fleet.settings import Settings
from edgeshrink.fleet.storage import COMMIT

PUBLISHED: Final = "repository"
METADATA: Final = f"{PUBLISHED}/metadata"
TARGETS_FOLDER: Final = f"{PUBLISHED}/targets"
KEYS: Final = "keys"
ONLINE: Final = "online"
ROOT: Final = "root.json"
ROLLOUT: Final = "rollout"
DEVICE: Final = "device-"
ONLINE_KEYS: Final = ("timestamp", "rollout")  # the first one signs the snapshot too
# What devices take at most; targets and what it delegates to have the same limit.
MAX_BYTES: Final = {
    "root": 512_000,
    "timestamp": 16_384,
    "snapshot": 2_000_000,
    "targets": 5_000_000,
}
TARGETS_FIX: Final = "restore the fleet's folder from a copy"


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
        keys = [self.root.keys[keyid] for keyid in key_ids(self.root, Root.type)]
        return {key_name(key): key for key in keys}

    @property
    def threshold(self) -> int:
        """How many people must sign."""
        return int(self.root.roles[Root.type].threshold)

    @property
    def needs(self) -> tuple[Need, ...]:
        """Who must sign a release."""
        return (need_of(self.root),)

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
        EdgeshrinkError: a publisher was killed where only a lost key makes a gap: between two
            renames.
    """
    try:
        return _open(folder)
    except TrustError as err:
        if not (folder / COMMIT).exists():
            raise
        fix = f"finish it with: edgeshrink fleet refresh {folder}"
        raise EdgeshrinkError(str(folder), "was left while it was published", fix) from err


def _open(folder: Path) -> Repository:
    if not (folder / settings_file.FILE).is_file():
        fix = "make one with `edgeshrink fleet init`, or check the path"
        raise ConfigError(str(folder), f"is no fleet: it has no {settings_file.FILE}", fix)
    settings = settings_file.read_settings(folder / settings_file.FILE)
    root = _read_roots(folder)
    timestamp = load_metadata(folder, "timestamp.json", Timestamp)
    verify(root.signed, Timestamp.type, timestamp)
    snapshot = load_metadata(
        folder, f"{timestamp.signed.snapshot_meta.version}.snapshot.json", Snapshot
    )
    verify(root.signed, Snapshot.type, snapshot)
    roles: dict[str, Metadata[Targets]] = {}

    def read(name: str, delegator: Root | Targets) -> Metadata[Targets]:
        entry = snapshot.signed.meta.get(f"{name}.json")
        if entry is None:
            raise TrustError(str(folder), f"lists no version of {name}", TARGETS_FIX)
        metadata = load_metadata(folder, f"{entry.version}.{name}.json", Targets)
        verify(delegator, name, metadata)
        return metadata

    roles[Targets.type] = read(Targets.type, root.signed)
    for name in delegated_roles(roles[Targets.type].signed):
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
    file = repository.folder / TARGETS_FOLDER / hashed_path(path, found[1])
    try:
        data = file.read_bytes()
        found[1].verify_length_and_hashes(data)
    except (OSError, RepositoryError) as err:
        raise TrustError(str(file), f"is not what was signed ({err})", TARGETS_FIX) from err
    return data


def expiry(settings: Settings, role: str, now: datetime) -> datetime:
    """Return until when a signature that is made now holds."""
    days = settings.expiry_days[Targets.type if role.startswith(DEVICE) else role]
    return now.astimezone(UTC).replace(microsecond=0) + timedelta(days=days)


def read_root(folder: Path) -> bytes:
    """Return the root that devices begin with."""
    try:
        return (folder / ROOT).read_bytes()
    except OSError as err:
        what = f"can't be read ({err.strerror})"
        raise ConfigError(str(folder / ROOT), what, TARGETS_FIX) from err


def _read_roots(folder: Path) -> Metadata[Root]:
    """Return the newest root, verified from the one that devices begin with."""
    try:
        root = Metadata[Root].from_bytes(read_root(folder))
    except DeserializationError as err:
        raise ConfigError(str(folder / ROOT), f"can't be read ({err})", TARGETS_FIX) from err
    verify(root.signed, Root.type, root)
    while (folder / METADATA / f"{root.signed.version + 1}.root.json").exists():
        following = load_metadata(folder, f"{root.signed.version + 1}.root.json", Root)
        verify(root.signed, Root.type, following)
        verify(following.signed, Root.type, following)
        root = following
    return root


def load_metadata(folder: Path, name: str, kind: type[T]) -> Metadata[T]:
    """Read a file of the published metadata, not yet verified."""
    path = folder / METADATA / name
    try:
        metadata = Metadata[T].from_bytes(path.read_bytes())
    except (OSError, DeserializationError) as err:
        raise ConfigError(str(path), f"can't be read ({err})", TARGETS_FIX) from err
    if not isinstance(metadata.signed, kind):
        raise TrustError(str(path), f"is {metadata.signed.type}, no {kind.type}", TARGETS_FIX)
    return metadata


def verify(delegator: Root | Targets, name: str, metadata: Metadata[Any]) -> None:
    """Raise TrustError unless enough of those who may have signed what was published."""
    try:
        delegator.verify_delegate(name, metadata.signed_bytes, metadata.signatures)
    except (UnsignedMetadataError, ValueError) as err:
        raise TrustError(f"{name}.json", f"is not signed by who may ({err})", TARGETS_FIX) from err


def is_signed(delegator: Root | Targets, name: str, metadata: Metadata[Any]) -> bool:
    """Say whether enough of those who may have signed."""
    return bool(delegator.get_verification_result(name, metadata.signed_bytes, metadata.signatures))


def must_be_signed(delegator: Root | Targets, name: str, metadata: Metadata[Any]) -> None:
    """Raise ThresholdError unless enough of those who may have signed."""
    result = delegator.get_verification_result(name, metadata.signed_bytes, metadata.signatures)
    if not result:
        have = ", ".join(sorted(map(key_name, result.signed.values()))) or "nobody"
        may = ", ".join(sorted(map(key_name, [*result.signed.values(), *result.unsigned.values()])))
        what = f"is signed by {have}, and {result.threshold} of {may} must sign"
        raise ThresholdError(name, what, "nothing was published; sign with more keys")


def need_of(root: Root) -> Need:
    """Return who must sign what a root says."""
    role = root.roles[Root.type]
    names = frozenset(key_name(root.keys[keyid]) for keyid in role.keyids)
    return Need(names=names, threshold=role.threshold)


def key_ids(root: Root, role: str) -> list[str]:
    """Return the ids of the keys of a role."""
    return list(root.roles[role].keyids)


def delegations_of(targets: Targets) -> Delegations:
    """Return what `targets` delegates: something, from a fleet's first version on."""
    assert targets.delegations is not None
    return targets.delegations


def delegated_roles(targets: Targets) -> list[str]:
    """Return the names of the roles that `targets` delegates to."""
    return list(delegations_of(targets).roles or {})


def entry_of(metadata: Metadata[Any]) -> MetaFile:
    """Return how the snapshot or the timestamp lists a metadata file."""
    return MetaFile.from_data(metadata.signed.version, metadata.to_bytes(), ["sha256"])


def hashed_path(path: str, file: TargetFile) -> str:
    """Return under which path a target is published: prefixed by its hash."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{file.hashes['sha256']}.{name}"
