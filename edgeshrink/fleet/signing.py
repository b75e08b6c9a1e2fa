"""Signing elsewhere: a request carries what people must sign to where their keys are, and back.

A request is one `.tar` file: `new/` has the metadata to be signed, `base/` those that are published
(and all roots, so that the chain can be followed from a copy of `root.json`), `targets/` the files
that are new in them, `online/` those of the rollout, which the publishing machine will sign.
Nothing in it is secret, and nothing in it is believed: what is signed is checked against `base/`,
which is checked against the roots.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, TargetFile, Targets
from tuf.api.serialization import DeserializationError

from edgeshrink.errors import ConfigError, EdgeshrinkError, TrustError
from edgeshrink.fleet.change import Change
from edgeshrink.fleet.keys import Need, key_name
from edgeshrink.fleet.metadata import (
    METADATA,
    ROLLOUT,
    delegated_roles,
    delegations_of,
    is_offline,
    key_ids,
    need_of,
    open_repository,
    verify,
)
from edgeshrink.fleet.repository import edit
from edgeshrink.fleet.storage import locked
from edgeshrink.units import format_bytes

FORMAT_VERSION: Final = 1
HEAD: Final = "request.json"
MAX_METADATA_BYTES: Final = 5_000_000  # what devices accept
MAX_BYTES: Final = 4 << 30
MAX_MEMBERS: Final = 10_000
_MEMBER: Final = re.compile(r"(new|base)/[A-Za-z0-9][A-Za-z0-9+._-]*\.json|(targets|online)/[ -~]+")
_FIX: Final = "take the file that `--request` wrote, unchanged"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What people are asked to sign."""

    fleet: str
    new: Mapping[str, Metadata[Any]]  # role -> what is to be signed, with signatures so far
    base: Mapping[str, Metadata[Any]]  # role -> what is published
    roots: tuple[Metadata[Root], ...]  # from the first one on
    files: Mapping[str, bytes]  # target path -> content
    online: Mapping[str, bytes]  # of the rollout
    online_base: Mapping[str, str | None]  # path -> SHA-256 of what is published

    @property
    def root(self) -> Root:
        """The root from now on."""
        return self.new[Root.type].signed if Root.type in self.new else self.roots[-1].signed

    @property
    def targets(self) -> Targets:
        """The top-level targets from now on."""
        found: Targets = (self.new.get(Targets.type) or self.base[Targets.type]).signed
        return found

    @property
    def needs(self) -> tuple[Need, ...]:
        """Who must sign."""
        before, after = need_of(self.roots[-1].signed), need_of(self.root)
        return (before,) if before == after else (before, after)

    @property
    def signed_by(self) -> frozenset[str]:
        """Names of those whose signatures are good on all that they may sign."""
        keys = {
            keyid: root.keys[keyid]
            for root in (self.roots[-1].signed, self.root)
            for keyid in key_ids(root, Root.type)
        }
        good = set()
        for keyid, key in keys.items():
            if all(_has_signed(metadata, keyid, key) for metadata in self.new.values()):
                good.add(key_name(key))
        return frozenset(good)

    def missing(self) -> tuple[tuple[int, frozenset[str]], ...]:
        """Return how many more must sign, and of whom."""
        good = self.signed_by
        lacking = [
            (need.threshold - len(need.names & good), need.names - good) for need in self.needs
        ]
        strict = [(count, names) for count, names in lacking if count > 0]
        # who is named by the narrower of two needs counts for the wider one as well
        return tuple(
            (count, names)
            for count, names in strict
            if not any(names > narrow and count <= least for least, narrow in strict)
        )


def _has_signed(metadata: Metadata[Any], keyid: str, key: Any) -> bool:
    from securesystemslib.exceptions import UnverifiedSignatureError

    if keyid not in metadata.signatures:
        return False
    try:
        key.verify_signature(metadata.signatures[keyid], metadata.signed_bytes)
    except UnverifiedSignatureError:
        return False
    return True


@contextmanager
def drafting(
    folder: Path, request: Path, *, now: datetime | None = None, wait_s: float = 0.0
) -> Iterator[Change]:
    """Yield a change that is written as a request, and not published, when the block ends well.

    Raises:
        ConfigError: `request` is there already, or the change has nothing that people sign.
    """
    if request.exists():
        raise ConfigError(str(request), "is there already", "choose another file for --request")
    with locked(folder, wait_s):
        repository = open_repository(folder)
        change = Change(repository, now or datetime.now(UTC))
        yield change
        new = change.offline()
        if not new:
            raise ConfigError("--request", "has nothing for people to sign", "leave it out")
        online = {path for path in change.files if path in change.targets(ROLLOUT)}
        published = repository.role(ROLLOUT).targets
        base = {
            name: repository.roles[name]
            for name in {Targets.type, *new}
            if name in repository.roles
        }
        roots = tuple(
            _parse((folder / METADATA / f"{version}.root.json").read_bytes(), request)
            for version in range(1, repository.root.version + 1)
        )
        draft = Request(
            fleet=repository.settings.name,
            new=new,
            base=base,
            roots=roots,
            files={p: data for p, (_, data) in change.files.items() if p not in online},
            online={p: change.files[p][1] for p in sorted(online)},
            online_base={
                p: published[p].hashes["sha256"] if p in published else None for p in sorted(online)
            },
        )
        write_request(request, draft)


def write_request(path: Path, request: Request) -> None:
    """Write a request: all of it, or nothing."""
    head = {
        "format": FORMAT_VERSION,
        "fleet": request.fleet,
        "online_base": dict(request.online_base),
    }
    members = {HEAD: json.dumps(head, indent=1).encode()}
    members |= {f"base/{m.signed.version}.root.json": m.to_bytes() for m in request.roots}
    members |= {f"base/{name}.json": m.to_bytes() for name, m in sorted(request.base.items())}
    members |= {f"new/{name}.json": m.to_bytes() for name, m in sorted(request.new.items())}
    members |= {f"targets/{name}": data for name, data in sorted(request.files.items())}
    members |= {f"online/{name}": data for name, data in sorted(request.online.items())}
    aside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            with tarfile.open(fileobj=file, mode="w") as tar:
                for name, data in members.items():
                    info = tarfile.TarInfo(name)
                    info.size, info.mode = len(data), 0o644
                    tar.addfile(info, io.BytesIO(data))
            file.flush()
            os.fsync(file.fileno())
        Path(aside).chmod(0o644)
        Path(aside).replace(path)
    except OSError as err:
        what = f"can't be written ({err.strerror or err})"
        raise EdgeshrinkError(str(path), what, "free space, or choose another file") from err
    finally:
        if aside is not None:
            Path(aside).unlink(missing_ok=True)


def read_request(path: Path, root: bytes | None = None) -> Request:
    """Read a request, and check all that can be checked without the fleet.

    Args:
        path: The file.
        root: A root of the fleet that the reader trusts: the request must descend from it.

    Raises:
        ConfigError: it is no request.
        TrustError: it was not made from what the fleet has signed, or holds other files than it
            asks to sign.
    """
    members = _read_members(path)
    head = _read_head(members.pop(HEAD, b""), path)
    roots: dict[int, Metadata[Root]] = {}
    new: dict[str, Metadata[Any]] = {}
    base: dict[str, Metadata[Any]] = {}
    files: dict[str, bytes] = {}
    online: dict[str, bytes] = {}
    for name, data in members.items():
        place, _, rest = name.partition("/")
        if place in ("new", "base"):
            metadata, role = _parse(data, path), rest.removesuffix(".json")
            version, _, kind = role.partition(".")
            if place == "base" and kind == Root.type and version.isdecimal():
                roots[metadata.signed.version] = metadata
            else:
                (new if place == "new" else base)[role] = metadata
        else:
            (files if place == "targets" else online)[rest] = data
    if (
        not new
        or not roots
        or Targets.type not in base
        or sorted(roots) != [*range(1, len(roots) + 1)]
    ):
        raise ConfigError(str(path), "lacks what a request must have", _FIX)
    request = Request(
        fleet=head["fleet"],
        new=new,
        base=base,
        roots=tuple(roots[version] for version in sorted(roots)),
        files=files,
        online=online,
        online_base=head["online_base"],
    )
    _check(request, root, path)
    return request


def _read_members(path: Path) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    total = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                total += info.size
                if info.name != HEAD and not _MEMBER.fullmatch(info.name):
                    raise ConfigError(str(path), f"holds {info.name!r:.80}", _FIX)
                is_metadata = not info.name.startswith(("targets/", "online/"))
                limit = MAX_METADATA_BYTES if is_metadata else MAX_BYTES
                if not info.isreg() or info.name in members or info.size > limit:
                    what = f"holds {info.name!r:.80} in a form that no request has"
                    raise ConfigError(str(path), what, _FIX)
                if len(members) > MAX_MEMBERS or total > MAX_BYTES:
                    raise ConfigError(str(path), "is larger than any request", _FIX)
                file = tar.extractfile(info)
                data = b"" if file is None else file.read()
                if len(data) != info.size:
                    raise ConfigError(str(path), "ends early", _FIX)
                members[info.name] = data
    except (OSError, tarfile.TarError, EOFError, ValueError) as err:
        what = f"can't be read ({getattr(err, 'strerror', None) or err})"
        raise ConfigError(str(path), what, _FIX) from err
    return members


def _read_head(data: bytes, path: Path) -> dict[str, Any]:
    try:
        head = json.loads(data)
        if head["format"] != FORMAT_VERSION:
            raise ValueError(f"format {head['format']!r:.20}, {FORMAT_VERSION} is known here")
        is_known = isinstance(head["fleet"], str) and isinstance(head["online_base"], dict)
        if not is_known or not all(isinstance(v, str | None) for v in head["online_base"].values()):
            raise TypeError("its head is malformed")
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise ConfigError(str(path), f"is no request ({err!s:.100})", _FIX) from err
    return dict(head)


def _parse(data: bytes, path: Path) -> Metadata[Any]:
    try:
        return Metadata[Any].from_bytes(data)
    except DeserializationError as err:
        raise ConfigError(str(path), f"holds no metadata ({err!s:.100})", _FIX) from err


def _check(request: Request, root: bytes | None, path: Path) -> None:
    previous: Metadata[Root] | None = None
    for metadata in request.roots:
        if not isinstance(metadata.signed, Root):
            raise TrustError(str(path), "holds something else than roots", _FIX)
        verify((previous or metadata).signed, Root.type, metadata)
        verify(metadata.signed, Root.type, metadata)
        previous = metadata
    if root is not None:
        trusted = _parse(root, path)
        version = trusted.signed.version
        same = version <= len(request.roots) and (
            request.roots[version - 1].signed_bytes == trusted.signed_bytes
        )
        if not isinstance(trusted.signed, Root) or not same:
            what = "does not descend from the root that was given"
            raise TrustError(str(path), what, "sign nothing, and ask who sent it")
    for name, metadata in request.base.items():
        _check_kind(metadata, name, path)
        delegator = (
            request.roots[-1].signed if name == Targets.type else request.base[Targets.type].signed
        )
        if name != Targets.type and name not in delegated_roles(request.base[Targets.type].signed):
            raise TrustError(str(path), f"claims that {name} is published", _FIX)
        verify(delegator, name, metadata)
    for name, metadata in request.new.items():
        _check_kind(metadata, name, path)
        before = request.roots[-1] if name == Root.type else request.base.get(name)
        expected = 1 if before is None else before.signed.version + 1
        if metadata.signed.version != expected:
            what = f"asks to sign version {metadata.signed.version} of {name}, {expected} is next"
            raise TrustError(str(path), what, "sign nothing, and ask who sent it")
        if name == Root.type and not metadata.signed.consistent_snapshot:
            raise TrustError(str(path), "asks to publish without versions", _FIX)
        if name not in (Root.type, Targets.type) and name not in delegated_roles(request.targets):
            raise TrustError(str(path), f"asks to sign {name}, which nobody delegates to", _FIX)
        _check_paths(request, name, path)
        for target, file in added_files(request, name).items():
            if target not in request.files:
                raise TrustError(str(path), f"asks to sign {target} and does not hold it", _FIX)
            try:
                file.verify_length_and_hashes(request.files[target])
            except RepositoryError as err:
                what = f"holds another {target} than it asks to sign ({err})"
                raise TrustError(str(path), what, "sign nothing, and ask who sent it") from err


def _check_paths(request: Request, name: str, path: Path) -> None:
    """Refuse a role that lists what it may not, or delegates where only `targets` does."""
    if name == Root.type:
        return
    signed: Targets = request.new[name].signed
    if name == Targets.type:
        is_fine = not signed.targets and signed.delegations is not None
    else:
        role = (delegations_of(request.targets).roles or {})[name]
        paths = signed.targets
        is_fine = signed.delegations is None and all(map(role.is_delegated_path, paths))
    if not is_fine:
        what = f"asks to sign more of {name} than that role may say"
        raise TrustError(str(path), what, "sign nothing, and ask who sent it")


def _check_kind(metadata: Metadata[Any], name: str, path: Path) -> None:
    kind = Root if name == Root.type else Targets
    if not isinstance(metadata.signed, kind) or not is_offline(name):
        raise ConfigError(str(path), f"holds something else as {name}", _FIX)


def added_files(request: Request, role: str) -> dict[str, TargetFile]:
    """Return the targets that a role lists newly, or with other content or facts."""
    if role == Root.type:
        return {}
    before = request.base[role].signed.targets if role in request.base else {}
    after: dict[str, TargetFile] = request.new[role].signed.targets
    return {path: file for path, file in after.items() if before.get(path) != file}


def describe(request: Request) -> list[str]:
    """Return, line by line, what a signature on this request would say."""
    lines = [f"fleet {request.fleet}"]
    for name, metadata in request.new.items():
        until = f"holds until {metadata.signed.expires:%Y-%m-%d}"
        lines.append(f"{name} version {metadata.signed.version}, {until}")
        lines += [f"  {line}" for line in _differences(request, name)] or ["  nothing else changes"]
    for path in request.online:
        lines.append(f"beside it, not signed here: {path}")
    return lines


def _differences(request: Request, name: str) -> list[str]:
    if name == Root.type:
        return _root_differences(request.roots[-1].signed, request.root)
    lines = []
    before: Targets | None = request.base[name].signed if name in request.base else None
    after: Targets = request.new[name].signed
    if name == Targets.type and before is not None:
        old, new = (delegations_of(t).roles or {} for t in (before, after))
        for role in new:
            if role not in old:
                lines.append(f"+ {role} may list {', '.join(new[role].paths or [])}")
            elif new[role].to_dict() != old[role].to_dict():
                keys, paths = delegations_of(after).keys, ", ".join(new[role].paths or [])
                names = ", ".join(sorted(key_name(keys[k]) for k in new[role].keyids))
                lines.append(f"{role}: {new[role].threshold} of {names} must sign; lists {paths}")
        lines += [f"- {role}" for role in old if role not in new]
    for path, file in added_files(request, name).items():
        digest = file.hashes.get("sha256", "none")
        lines.append(f"+ {path} ({format_bytes(file.length)}, sha256 {digest})")
    gone = () if before is None else before.targets.keys() - after.targets.keys()
    return lines + [f"- {path}" for path in sorted(gone)]


def _root_differences(old: Root, new: Root) -> list[str]:
    lines = []
    for role in sorted(new.roles):
        before, after = old.roles[role], new.roles[role]
        lines += [
            f"+ {role} is signed by {key_name(new.keys[keyid])} (key {keyid})"
            for keyid in after.keyids
            if keyid not in before.keyids
        ]
        lines += [
            f"- {role} is signed by {key_name(old.keys[keyid])} no longer (key {keyid})"
            for keyid in before.keyids
            if keyid not in after.keyids
        ]
        if before.threshold != after.threshold:
            lines.append(f"{role} needs {after.threshold} signatures instead of {before.threshold}")
    return lines


def sign_request(path: Path, signer: CryptoSigner, root: bytes | None = None) -> Request:
    """Add one person's signatures to a request, and return it.

    Raises:
        ConfigError: the key is nobody's who may sign it.
        TrustError: see `read_request`.
    """
    request = read_request(path, root)
    keyid = signer.public_key.keyid
    roots = (request.roots[-1].signed, request.root)
    if not any(keyid in key_ids(root, Root.type) for root in roots):
        names = ", ".join(sorted({name for need in request.needs for name in need.names}))
        raise ConfigError(
            "--key", f"belongs to nobody who may sign (they are {names})", "take another"
        )
    for metadata in request.new.values():
        metadata.sign(signer, append=True)
    write_request(path, request)
    return request


def merge(requests: Sequence[Request]) -> Request:
    """Return one request with the signatures of all copies; ConfigError unless they are copies."""
    first, *others = requests
    for other in others:
        same = other.new.keys() == first.new.keys() and all(
            other.new[name].signed_bytes == first.new[name].signed_bytes for name in first.new
        )
        if not same:
            raise ConfigError("REQUEST", "are different requests", "publish one after the other")
        for name, metadata in first.new.items():
            for keyid, signature in other.new[name].signatures.items():
                metadata.signatures.setdefault(keyid, signature)
    return first


def publish_request(
    folder: Path,
    request: Request,
    *,
    with_rollout: bool = True,
    now: datetime | None = None,
    wait_s: float = 0.0,
) -> tuple[str, ...]:
    """Publish what people have signed; returns the roles that changed.

    Raises:
        ThresholdError: fewer have signed than must.
        ConfigError: something else was published since the request was made.
    """
    now = now or datetime.now(UTC)
    with edit(folder, now=now, wait_s=wait_s) as change:
        repository = change.repository
        known = repository.root_metadata.signed_bytes
        if request.roots[-1].signed_bytes != known or request.fleet != repository.settings.name:
            what = "was made for another fleet, or for one with an older root"
            raise ConfigError("REQUEST", what, "make the request again")
        for name, metadata in request.new.items():
            if metadata.signed.expires <= now:
                what = f"would have run out on {metadata.signed.expires:%Y-%m-%d}"
                raise ConfigError(f"REQUEST: {name}", what, "make the request again")
            change.adopt(name, metadata)
        for name in request.new:
            for path, file in added_files(request, name).items():
                change.adopt_file(path, file, request.files[path])
        if with_rollout:
            published = repository.role(ROLLOUT).targets
            for path, data in request.online.items():
                there = published[path].hashes["sha256"] if path in published else None
                if there != request.online_base.get(path):
                    what = "was changed since the request was made"
                    fix = "publish it with --without-rollout, then: edgeshrink fleet rollout"
                    raise ConfigError(path, what, fix)
                change.add(ROLLOUT, path, data)
    return tuple(request.new)
