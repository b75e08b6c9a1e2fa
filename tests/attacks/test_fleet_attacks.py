"""Attacks on a fleet, each stopped under its own name, each without a trace on the device.

Every attack here is tried on a device that runs a release already and is about to be offered a
better one. What it has stays as it was, byte for byte; and when the attack is over, the device
follows its owner again.
"""

from __future__ import annotations

import copy
import io
import json
import lzma
import pickle
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import MetaFile

from edgeshrink.errors import (
    ArbitraryInstallationError,
    DecompressionBombError,
    DeltaError,
    EndlessDataError,
    FastForwardError,
    FreezeError,
    GoldenVectorsError,
    LyingManifestError,
    MalformedMetadataError,
    MirrorError,
    MixAndMatchError,
    OversizedMetadataError,
    RevokedKeyError,
    RollbackError,
    SlowRetrievalError,
    ThresholdError,
    TrustError,
    UnsafeArchiveError,
    WrongTargetError,
)
from edgeshrink.fleet import installing
from edgeshrink.fleet.delta import make_delta
from tests.fleet_device import IMPATIENT, Device, quick_self_test, tree
from tests.fleet_server import (
    NOW,
    TARGET,
    Fault,
    Repository,
    Server,
    artifact_files,
    custom_of,
    new_repository,
    serving,
    sha256,
    tar_xz,
)

OLD, NEW, EVIL = (artifact_files(seed) for seed in (1, 2, 666))
DEVICE_ROLE = f"device-{TARGET}"
PUBLISHED = ("timestamp", "snapshot", "targets", DEVICE_ROLE, "rollout")


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Repository, Path]:
    """A fleet at 1.0.0, and the state folder of a device that runs that."""
    repository = new_repository()
    repository.offer(repository.release(OLD, version="1.0.0", counter=1))
    repository.publish()
    folder = tmp_path_factory.mktemp("origin")
    with serving(repository.files) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(installing, "self_test", quick_self_test)
        device = Device(folder, repository.first_root, server.url)
        assert device.run().error is None
    return repository, device.state


@dataclass
class Scene:
    """A device, the server it asks, and the fleet as the owner has published it."""

    fleet: Repository  # with the owner's keys
    server: Server
    device: Device

    def release(self, files: dict[str, bytes] = NEW, /, **facts: Any) -> str:
        """Publish 2.0.0 and offer it."""
        path = self.fleet.release(files, **({"version": "2.0.0", "counter": 2} | facts))
        self.fleet.offer(path)
        self.fleet.publish()
        return path

    def refused(self, error: type[TrustError], says: str = "") -> TrustError:
        """Let the device look; fail unless it refuses for this reason and stays as it was.

        Only what it was told not to try again may be remembered (in the ledger).
        """
        before = without_ledger(tree(self.device.models))
        run = self.device.run()
        assert type(run.error) is error, repr(run.error)
        assert says in str(run.error)
        assert run.error.exit_code == 6
        assert without_ledger(tree(self.device.models)) == before
        assert self.device.content() == OLD
        events = self.device.status()["events"]
        assert error.__name__ in [event.get("error") for event in events]
        return run.error

    def follows_owner(self, owner: Repository | None = None) -> None:
        """Fail unless the device takes what the owner publishes after the attack."""
        owner = owner or self.fleet
        self.server.faults.clear()
        self.server.files = owner.files
        for role in owner.metadata:  # the owner counts on from whatever the attacker reached
            if role != "root":
                owner.signed(role).version += 10
        owner.offer(owner.release(artifact_files(3), version="3.0.0", counter=3))
        owner.publish()
        run = self.device.run()
        assert run.error is None, repr(run.error)
        assert self.device.version() == "3.0.0"


def without_ledger(files: dict[str, Any]) -> dict[str, Any]:
    return {name: data for name, data in files.items() if not name.endswith("ledger.json")}


@pytest.fixture(scope="module")
def any_server() -> Iterator[Server]:
    with serving({}) as running:
        yield running


@pytest.fixture
def scene(
    tmp_path: Path,
    origin: tuple[Repository, Path],
    any_server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> Scene:
    monkeypatch.setattr(installing, "self_test", quick_self_test)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    repository, state = origin
    fleet = repository.fork()
    any_server.reset(fleet.files)
    device = Device(tmp_path, fleet.first_root, any_server.url)
    shutil.copytree(state, device.state, symlinks=True)
    return Scene(fleet=fleet, server=any_server, device=device)


@pytest.fixture
def impatient(scene: Scene) -> Scene:
    """The device waits only for a moment; for servers that are slow on purpose."""
    scene.device = Device(
        scene.device.state.parent, scene.fleet.first_root, scene.server.url, patience=IMPATIENT
    )
    return scene


# -------------------------------------------------------------------- arbitrary installation


@pytest.mark.parametrize("role", PUBLISHED)
def test_metadata_that_a_stranger_signed_is_arbitrary_installation(scene, role):
    owner = scene.fleet.fork()
    scene.fleet.signers[role] = [CryptoSigner.generate_ed25519()]
    scene.release(EVIL)
    scene.refused(ArbitraryInstallationError, f"{role}.json: is signed by nobody who may")
    scene.follows_owner(owner)


def test_a_root_that_a_stranger_signed_is_arbitrary_installation(scene):
    owner = scene.fleet.fork()
    stranger = CryptoSigner.generate_ed25519()
    root = scene.fleet.signed("root")
    for role in root.roles:
        root.roles[role].keyids, root.roles[role].threshold = [], 1
        root.add_key(stranger.public_key, role)
        scene.fleet.signers[role] = [stranger]
    scene.fleet.publish("root", "targets")
    scene.refused(ArbitraryInstallationError, "root.json")
    scene.follows_owner(owner)


def test_an_offer_of_what_nobody_signed_is_arbitrary_installation(scene):
    data = tar_xz(EVIL)
    path = f"releases/{TARGET}/keywords-2.0.0+2.tar.xz"
    scene.fleet.files[f"targets/releases/{TARGET}/{sha256(data)}.keywords-2.0.0+2.tar.xz"] = data
    scene.fleet.offer(path)
    scene.fleet.publish()
    scene.refused(ArbitraryInstallationError, "is offered, and was signed by nobody who may")
    scene.follows_owner()


def test_the_online_key_of_rollouts_can_sign_no_release(scene):
    path = f"releases/{TARGET}/keywords-2.0.0+2.tar.xz"
    custom = custom_of(EVIL, version="2.0.0", counter=2)
    scene.fleet.add_target("rollout", path, tar_xz(EVIL), custom)
    scene.fleet.offer(path)
    scene.fleet.publish()
    scene.refused(ArbitraryInstallationError, "was signed by nobody who may")


# --------------------------------------------------------------------- endless, large, slow


@pytest.mark.parametrize("where", ["timestamp.json", "snapshot.json", "root.json", "keywords"])
def test_a_server_that_never_stops_sending_is_endless_data(scene, where):
    scene.release()
    scene.server.faults.append(Fault("endless", where))
    scene.refused(EndlessDataError, "goes on beyond")
    scene.follows_owner()


def test_a_release_that_is_announced_longer_than_signed_is_endless_data(scene):
    path = scene.release()
    longer = scene.fleet.files[f"targets/releases/{TARGET}/{named(scene, path)}"] + b"\0"
    scene.server.faults.append(Fault("replace", "keywords-2", data=longer))
    scene.refused(EndlessDataError, f"has {len(longer):,} bytes, signed are")
    scene.follows_owner()


def named(scene: Scene, path: str) -> str:
    return f"{scene.fleet.archive_digest(path)}.{path.rpartition('/')[2]}"


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", DEVICE_ROLE, "root"])
def test_metadata_larger_than_any_honest_one_is_refused_before_it_is_read(scene, role):
    scene.release()
    if role == "root":
        scene.fleet.publish("root")
    scene.server.faults.append(Fault("announce", f"{role}.json"))
    before = scene.server.n_bytes
    scene.refused(OversizedMetadataError, "are more than it can need")
    assert scene.server.n_bytes - before < 50_000
    scene.follows_owner()


def test_a_signed_rollout_larger_than_any_honest_one_is_refused_before_it_is_fetched(scene):
    scene.fleet.add_target("rollout", f"rollout/{TARGET}/stable.json", b" " * ((1 << 20) + 1))
    scene.fleet.publish()
    scene.refused(OversizedMetadataError, "1,048,577 bytes")
    assert not any("stable.json" in path for path in scene.server.requests)
    scene.follows_owner()


@pytest.mark.parametrize("kind", ["drip", "stall", "mute"])
@pytest.mark.parametrize("where", ["timestamp.json", "keywords-2"])
def test_a_server_that_keeps_the_device_waiting_is_slow_retrieval(impatient, kind, where):
    impatient.release(artifact_files(2, extra={"noise": bytes(range(256)) * 4}))
    impatient.server.faults.append(Fault(kind, where))
    impatient.refused(SlowRetrievalError)
    if (kind, where) == ("drip", "timestamp.json"):  # once is enough
        impatient.follows_owner()


# ------------------------------------------------------------------- versions and expiries


def leap_of_timestamp(fleet: Repository) -> None:
    fleet.signed("timestamp").version = 2**31 - 2


def leap_of_snapshot(fleet: Repository) -> None:
    fleet.signed("snapshot").version = 2**31 - 2


def leap_of_what_timestamp_lists(fleet: Repository) -> None:
    fleet.publish()
    fleet.signed("timestamp").snapshot_meta.version = 2**31 - 1
    fleet.put("timestamp", fleet.encode("timestamp"))


def leap_of_what_snapshot_lists(fleet: Repository) -> None:
    fleet.signed("snapshot").meta["targets.json"] = MetaFile(2**31 - 1)
    fleet.publish("snapshot")


def leap_of_a_delegated_role(fleet: Repository) -> None:
    fleet.signed("rollout").version = 2**31 - 2
    fleet.publish()


@pytest.mark.parametrize(
    "leap",
    [
        leap_of_timestamp, leap_of_snapshot, leap_of_what_timestamp_lists,
        leap_of_what_snapshot_lists, leap_of_a_delegated_role,
    ],
)  # fmt: skip
def test_a_version_that_leaps_is_fast_forward_and_the_owner_can_still_be_followed(scene, leap):
    owner = scene.fleet.fork()
    leap(scene.fleet)
    if leap in (leap_of_timestamp, leap_of_snapshot):
        scene.fleet.publish()
    scene.refused(FastForwardError, "leaps from version")
    scene.follows_owner(owner)


def test_who_stole_the_online_keys_and_counted_up_is_overtaken_by_new_keys(scene):
    owner = scene.fleet.fork()
    for role in ("timestamp", "snapshot"):
        scene.fleet.signed(role).version = 9_000_000  # just no leap
    scene.fleet.publish()
    assert scene.device.run().error is None
    for role in ("timestamp", "snapshot"):
        owner.replace_key(role)
    owner.publish("root")
    scene.follows_owner(owner)


@pytest.mark.parametrize("role", [*PUBLISHED, "root"])
def test_metadata_that_has_expired_is_indefinite_freeze(scene, role):
    scene.release()
    fleet, owner = scene.fleet, scene.fleet.fork()
    roles = ["timestamp", "snapshot"]
    later = roles[roles.index(role) :: -1] if role in roles else [*roles[::-1]]
    fleet.publish(*([role] if role not in roles else []), days=10)
    fleet.signed(role).expires = NOW
    relist(fleet, role, *(r for r in later if r != role))
    scene.refused(FreezeError, f"{role}.json: has expired")
    owner.signed("root").version = fleet.signed("root").version
    owner.publish("root")
    scene.follows_owner(owner)


def relist(fleet: Repository, *roles: str) -> None:
    """Sign roles as they are, each listed as it is by the next of them."""
    for role in roles:
        if role == "timestamp":
            listed = fleet.files[f"metadata/{fleet.signed('snapshot').version}.snapshot.json"]
            fleet.signed("timestamp").snapshot_meta = MetaFile(
                fleet.signed("snapshot").version, len(listed), {"sha256": sha256(listed)}
            )
        data = fleet.encode(role)
        fleet.put(role, data)
        if role in ("targets", DEVICE_ROLE, "rollout"):
            version = fleet.signed(role).version
            fleet.signed("snapshot").meta[f"{role}.json"] = MetaFile(version)


def test_a_server_that_freezes_the_fleet_is_found_out_when_the_timestamp_runs_out(scene):
    frozen = dict(scene.fleet.files)
    scene.release()
    scene.server.files = frozen
    assert scene.device.run().status.outcome == "current"  # nobody can tell yet
    run = scene.device.run(at=NOW + timedelta(days=10, seconds=1))
    assert type(run.error) is FreezeError
    scene.follows_owner()


def test_an_older_timestamp_is_rollback(scene):
    older = scene.fleet.files["metadata/timestamp.json"]
    scene.release(OLD, counter=2, version="1.0.1")
    fleet = scene.fleet
    assert scene.device.run().error is None
    before = tree(scene.device.models)
    scene.server.faults.append(Fault("replace", "timestamp.json", data=older))
    run = scene.device.run()
    assert type(run.error) is RollbackError
    assert tree(scene.device.models) == before
    scene.follows_owner(fleet)


def older_snapshot(fleet: Repository) -> None:
    fleet.signed("snapshot").version = 0


def older_role(fleet: Repository) -> None:
    fleet.signed("snapshot").meta["targets.json"].version = 1


def missing_role(fleet: Repository) -> None:
    del fleet.signed("snapshot").meta["rollout.json"]


@pytest.mark.parametrize("change", [older_snapshot, older_role, missing_role])
def test_who_holds_the_online_keys_can_not_go_back_behind_what_was_seen(scene, change):
    owner = scene.fleet.fork()
    change(scene.fleet)
    scene.fleet.publish("snapshot")
    scene.refused(RollbackError)
    scene.follows_owner(owner)


@pytest.mark.parametrize("has_digests", [True, False])
@pytest.mark.parametrize("role", ["snapshot", "targets", DEVICE_ROLE, "rollout"])
def test_files_of_two_publications_are_mix_and_match(scene, role, has_digests):
    """The older file is properly signed, and served under the newer one's name."""
    fleet = scene.fleet
    older = fleet.files[f"metadata/{fleet.signed(role).version}.{role}.json"]
    if not has_digests:  # which are optional; then versions have to tell
        for name in ("targets", DEVICE_ROLE, "rollout"):
            fleet.signed("snapshot").meta[f"{name}.json"] = MetaFile(fleet.signed(name).version)
    scene.release()
    if not has_digests:
        meta = fleet.signed("snapshot").meta
        for name in meta:
            meta[name] = MetaFile(meta[name].version)
        fleet.put("snapshot", fleet.encode("snapshot"))
        fleet.signed("timestamp").snapshot_meta = MetaFile(fleet.signed("snapshot").version)
        fleet.put("timestamp", fleet.encode("timestamp"))
    newest = f"{fleet.signed(role).version}.{role}.json"
    scene.server.faults.append(Fault("replace", newest, data=older))
    scene.refused(MixAndMatchError, "was not published with the files around it")
    scene.follows_owner()


# ---------------------------------------------------------------------------------- mirrors


def test_a_mirror_that_changes_a_release_is_found_out(scene):
    scene.release()
    scene.server.faults.append(Fault("flip", "keywords-2"))
    scene.refused(MirrorError, "differs from the digest that was signed")
    scene.follows_owner()


@pytest.mark.parametrize("where", ["snapshot.json", "rollout.json", "stable.json", "keywords-2"])
def test_a_mirror_that_lacks_what_is_signed_is_found_out(scene, where):
    scene.release()
    scene.server.faults.append(Fault("missing", where))
    before = tree(scene.device.models)
    run = scene.device.run()
    assert isinstance(run.error, MirrorError)
    assert tree(scene.device.models) == before
    scene.follows_owner()


def test_a_mirror_that_changes_the_rollout_is_found_out(scene):
    scene.release()
    scene.server.faults.append(Fault("flip", "stable.json"))
    scene.refused(MirrorError, "differs from the digest")
    scene.follows_owner()


# ----------------------------------------------------------------------------- wrong target


def test_a_release_for_another_device_is_wrong_target_software(scene):
    scene.release(artifact_files(2, target="esp32s3"), target="esp32s3")
    scene.refused(WrongTargetError, "is made for esp32s3, this device is host")
    scene.follows_owner()


def test_a_release_of_another_device_that_was_signed_for_that_one_is_wrong_target_software(scene):
    path = "releases/esp32s3/keywords-2.0.0+2.tar.xz"
    custom = custom_of(NEW, version="2.0.0", counter=2, target="esp32s3")
    scene.fleet.add_target("targets", path, tar_xz(NEW), custom)
    scene.fleet.offer(path)
    scene.fleet.publish()
    scene.refused(WrongTargetError, "is made for esp32s3, this device is host")


def test_another_release_under_the_name_of_the_one_offered_is_wrong_target_software(scene):
    scene.release(path=f"releases/{TARGET}/keywords-9.9.9+9.tar.xz")
    scene.refused(WrongTargetError, "another one than the one offered")
    scene.follows_owner()


def test_an_artifact_that_says_itself_it_is_for_another_device_is_wrong_target_software(scene):
    scene.release(artifact_files(2, target="esp32s3"))
    scene.refused(WrongTargetError, "is made for esp32s3, the release for host")
    scene.follows_owner()


# ------------------------------------------------------------------------- keys, thresholds


@pytest.mark.parametrize("role", ["targets", DEVICE_ROLE, "root"])
@pytest.mark.parametrize("trick", ["one", "twice", "forged"])
def test_fewer_signatures_than_demanded_are_threshold_not_met(scene, role, trick):
    owner = scene.fleet.fork()
    fleet, (first, second) = scene.fleet, scene.fleet.signers[role]
    fleet.signers[role] = [first]
    fleet.release(EVIL, version="2.0.0", counter=2)
    fleet.publish(role) if role != "root" else fleet.publish("root")
    if trick != "one":
        signatures = fleet.metadata[role].signatures
        extra = copy.deepcopy(signatures[first.public_key.keyid])
        if trick == "forged":
            extra.keyid = second.public_key.keyid
            signatures[extra.keyid] = extra
        data = json.loads(fleet.metadata[role].to_bytes())
        if trick == "twice":
            key = CryptoSigner.generate_ed25519().public_key.keyid
            data["signatures"].append(data["signatures"][0] | {"keyid": key})
        served = json.dumps(data).encode()
        fleet.put(role, served)
        if role != "root":
            meta = MetaFile(fleet.signed(role).version)
            fleet.signed("snapshot").meta[f"{role}.json"] = meta
            relist(fleet, "snapshot", "timestamp")
    scene.refused(ThresholdError, "has 1 good signatures of 2")
    scene.follows_owner(owner)


@pytest.mark.parametrize("role", ["timestamp", "snapshot"])
def test_a_key_that_was_replaced_in_root_is_revoked(scene, role):
    former = scene.fleet.replace_key(role)
    scene.fleet.publish("root")
    assert scene.device.run().error is None
    owner = scene.fleet.fork()
    scene.fleet.signers[role] = [former]
    scene.fleet.offer(scene.fleet.release(EVIL, version="2.0.0", counter=2))
    scene.fleet.publish()
    scene.refused(RevokedKeyError, f"{role}.json: is signed by a key that was revoked")
    scene.follows_owner(owner)


def test_a_signer_that_was_removed_is_revoked(scene):
    fleet = scene.fleet
    former = fleet.signers["targets"][:2]
    root = fleet.signed("root")
    for role in ("targets",):
        people = [CryptoSigner.generate_ed25519() for _ in range(2)]
        for signer in list(root.roles[role].keyids):
            root.revoke_key(signer, role)
        for new in people:
            root.add_key(new.public_key, role)
        fleet.signers[role] = people
    fleet.publish("root", "targets")
    assert scene.device.run().error is None
    owner = fleet.fork()
    fleet.signers["targets"] = former
    fleet.publish("targets")
    scene.refused(RevokedKeyError, "targets.json: is signed by a key that was revoked")
    scene.follows_owner(owner)


def test_a_key_of_rollouts_that_was_replaced_is_revoked(scene):
    fleet = scene.fleet
    former, new = fleet.signers["rollout"], CryptoSigner.generate_ed25519()
    targets = fleet.signed("targets")
    targets.revoke_key(former[0].public_key.keyid, "rollout")
    targets.add_key(new.public_key, "rollout")
    fleet.signers["rollout"] = [new]
    owner = fleet.fork()
    fleet.signers["rollout"] = former
    scene.release(EVIL)
    scene.refused(RevokedKeyError, "rollout.json: is signed by a key that was revoked")
    scene.follows_owner(owner)


# ----------------------------------------------------------------------- malformed metadata


JUNK = [
    b"", b"{", b"[]", b"null", b"\xff\xfe{}", b"[" * 10_000, b'{"signed": {}, "signatures": []}',
    b'{"signed": 5, "signatures": 5}', b'{"signatures": {"a": 1}, "signed": {"_type": "root"}}',
    b'{"signed": {"_type": "timestamp", "version": 1e400}, "signatures": [NaN]}',
]  # fmt: skip


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
def test_a_timestamp_that_is_no_metadata_is_malformed(scene, junk):
    scene.server.faults.append(Fault("replace", "timestamp.json", data=junk))
    scene.refused(MalformedMetadataError, "timestamp.json: is no metadata")
    scene.server.faults[:] = [Fault("replace", "2.root.json", data=junk)]
    scene.refused(MalformedMetadataError, "root.json: is no metadata")


@pytest.mark.parametrize("role", ["snapshot", "targets", DEVICE_ROLE, "rollout"])
def test_metadata_that_is_no_json_is_malformed(scene, role):
    scene.release()
    scene.server.faults.append(Fault("replace", f".{role}.json", data=b'{"signed": {'))
    scene.refused(MalformedMetadataError, f"{role}.json: is no metadata")
    scene.follows_owner()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b'{"format": 2, "releases": []}', b'{"format": 1}', b"[" * 100_000,
        b'{"format": 1, "releases": [5]}', b'{"format": 1, "releases": {}}', b"\xff",
        b'{"format": 1, "releases": [{"path": "x", "share": NaN, "groups": [], "not_before": null,'
        b' "state": "active"}]}',
        b'{"format": 1, "releases": [{"path": "x", "share": 1, "groups": [], "not_before": null,'
        b' "state": "mandatory"}]}',
    ],
    ids=range(11),
)  # fmt: skip
def test_a_signed_rollout_that_makes_no_sense_is_malformed(scene, data):
    scene.fleet.add_target("rollout", f"rollout/{TARGET}/stable.json", data)
    scene.fleet.publish("rollout")
    scene.refused(MalformedMetadataError)


@pytest.mark.parametrize(
    "facts",
    [
        {"format": 2}, {"counter": -1}, {"counter": "7"}, {"counter": True}, {"files": []},
        {"files": {"model.tflite": {"sha256": "x", "bytes": 1}}}, {"deltas": 5}, {"max_lsb": 10**9},
        {"files": {"a": {"sha256": "0" * 64, "bytes": -1}}}, {"runtimes": [{"name": "litert"}]},
        {"operators": {"ADD": "1"}}, {"name": "../../etc"}, {"version": "latest"}, {"name": None},
        {"deltas": [{"path": "x", "base": "not a digest"}]}, {"engine": "\x1b[2J"}, {"facts": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_signed_release_that_makes_no_sense_is_malformed(scene, facts):
    scene.release(path=f"releases/{TARGET}/keywords-2.0.0+2.tar.xz", **facts)
    scene.refused(MalformedMetadataError, "is malformed")


# ------------------------------------------------------------------- archives and artifacts


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> Any:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(data), link
    return info, data


def archive_of(files: dict[str, bytes], *first: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for info, data in [*first, *(member(n, d) for n, d in files.items())]:
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return lzma.compress(buffer.getvalue(), preset=0)


UNSAFE = {
    "zip-slip": [member("../../../current/evil", b"evil")],
    "absolute": [member("/tmp/edgeshrink-evil", b"evil")],
    "symlink": [member("model.tflite", kind=tarfile.SYMTYPE, link="/etc/passwd")],
    "hard link": [member("model.tflite", kind=tarfile.LNKTYPE, link="../../ledger.json")],
    "through a link": [member("sub", kind=tarfile.SYMTYPE, link=".."), member("sub/evil", b"x")],
    "device": [member("model.tflite", kind=tarfile.CHRTYPE)],
    "stranger": [member("stranger", b"x")],
}


@pytest.mark.parametrize("first", UNSAFE.values(), ids=UNSAFE)
def test_an_archive_that_reaches_out_of_its_folder_is_refused_even_when_signed(scene, first):
    scene.release(archive=archive_of(NEW, *first))
    scene.refused(UnsafeArchiveError)
    assert not Path("/tmp/edgeshrink-evil").exists()
    scene.follows_owner()


@pytest.mark.parametrize("name", ["../../ledger.json", "/tmp/edgeshrink-evil", ".release.json"])
@pytest.mark.parametrize("way", ["archive", "copy"])
def test_signed_names_that_reach_out_of_their_folder_are_refused(scene, name, way):
    files = (OLD if way == "copy" else NEW) | {name: b"evil"}
    archive = tar_xz(OLD) if way == "copy" else archive_of(NEW, member(name, b"evil"))
    scene.release(files, archive=archive)
    scene.refused(UnsafeArchiveError)
    assert not Path("/tmp/edgeshrink-evil").exists()


@pytest.mark.parametrize("bomb", [
    lzma.compress(bytes(50 << 20), preset=0),
    lzma.compress(lzma.decompress(archive_of(NEW)) + bytes(50 << 20), preset=0),
    archive_of(NEW | {"model.tflite": bytes(50 << 20)}),
], ids=["zeros", "behind the files", "a file"])  # fmt: skip
def test_an_archive_that_unpacks_to_more_than_was_signed_is_a_bomb(scene, bomb):
    scene.release(archive=bomb)
    scene.refused(DecompressionBombError)
    scene.follows_owner()


def test_golden_vectors_that_were_swapped_are_refused(scene):
    swapped = NEW | {"golden.npz": EVIL["golden.npz"]}
    scene.release(NEW, archive=tar_xz(swapped))
    scene.refused(GoldenVectorsError, "golden.npz")
    scene.follows_owner()


def objects() -> bytes:
    packed = io.BytesIO()
    np.savez(packed, **{"input/x": np.array([print], object), "output/y": np.zeros(1)})
    return packed.getvalue()


@pytest.mark.parametrize("golden", [b"", b"PK\3\4", pickle.dumps("evil"), objects()],
                         ids=["nothing", "half", "pickle", "objects"])  # fmt: skip
def test_golden_vectors_that_are_none_are_refused_and_the_release_is_not_tried_again(scene, golden):
    files = with_manifest(NEW, {"golden.npz": golden})
    scene.release(files)
    scene.refused(GoldenVectorsError)
    assert [e.outcome for e in scene.device.run().status.events] == ["ineligible"]
    scene.follows_owner()


def with_manifest(
    files: dict[str, bytes], changes: dict[str, bytes], **told: dict[str, Any]
) -> dict[str, bytes]:
    """Return an artifact with other files, and a manifest that tells their digests, or others."""
    files = files | changes
    manifest = json.loads(files["artifact.json"])
    manifest["files"] = {
        name: {"sha256": sha256(data), "bytes": len(data)}
        for name, data in files.items()
        if name != "artifact.json"
    } | told
    return files | {"artifact.json": json.dumps(manifest).encode()}


@pytest.mark.parametrize(
    "manifest",
    [
        with_manifest(NEW, {}, **{"model.tflite": {"sha256": "0" * 64, "bytes": 5}}),
        with_manifest(NEW, {}, gone={"sha256": "0" * 64, "bytes": 5}),
        with_manifest(NEW, {}, **{"../../ledger.json": {"sha256": "0" * 64, "bytes": 5}}),
        NEW | {"artifact.json": b"{"},
        NEW | {"artifact.json": b"[" * 100_000},
    ],
    ids=["another digest", "a file that is not there", "a file elsewhere", "no JSON", "deep"],
)
def test_an_artifact_that_lies_about_its_files_is_refused_even_when_signed(scene, manifest):
    scene.release(manifest)
    scene.refused(LyingManifestError, "artifact.json")
    scene.follows_owner()


def test_an_archive_with_other_files_than_were_signed_is_refused(scene):
    scene.release(NEW, archive=tar_xz(with_manifest(NEW, {"model.tflite": EVIL["model.tflite"]})))
    scene.refused(LyingManifestError)
    scene.release(NEW, archive=tar_xz({n: d for n, d in NEW.items() if n != "model.tflite"}))
    scene.refused(LyingManifestError, "misses model.tflite")
    scene.follows_owner()


# ----------------------------------------------------------------------------------- deltas


def offer_with_delta(
    scene: Scene, delta: bytes, new: dict[str, bytes], **facts: Any
) -> tuple[str, str]:
    base = scene.fleet.archive_digest(f"releases/{TARGET}/keywords-1.0.0+1.tar.xz")
    path = f"releases/{TARGET}/keywords-1.0.0+1..2.0.0+2.delta"
    scene.fleet.add_target(DEVICE_ROLE, path, delta)
    return scene.release(new, deltas=[{"path": path, "base": base}], **facts), path


NOISE = {"noise": np.random.default_rng(0).bytes(20_000)}


def test_a_delta_that_a_mirror_changed_is_refused(scene):
    new = with_manifest(NEW, NOISE)
    offer_with_delta(scene, make_delta(OLD | NOISE, new), new)
    scene.server.faults.append(Fault("flip", ".delta"))
    scene.refused(DeltaError, "differs from the digest that was signed")
    scene.follows_owner()


@pytest.mark.parametrize(
    "make",
    [
        lambda new: make_delta(EVIL | {"noise": NOISE["noise"]}, new),  # to a base not here
        lambda new: make_delta(OLD, new | {"model.tflite": EVIL["model.tflite"]}),  # elsewhere
        lambda new: b"ESDELTA1" + b"\xff" * 40,
        lambda new: b"",
    ],
    ids=["wrong base", "another result", "junk", "nothing"],
)
def test_a_signed_delta_that_leads_elsewhere_leads_to_what_was_signed_or_to_nothing(scene, make):
    """What it makes is never used; without the archive, the device stays as it was."""
    new = with_manifest(NEW, NOISE)
    offer_with_delta(scene, make(new), new)
    scene.server.faults.append(Fault("missing", ".tar.xz"))
    before = tree(scene.device.models)
    run = scene.device.run()
    assert isinstance(run.error, TrustError)
    assert tree(scene.device.models) == before
    scene.server.faults.clear()
    assert scene.device.run().error is None
    assert scene.device.content() == new
    assert "the delta was of no use" in scene.device.status()["events"][0]["reason"]


# ------------------------------------------------------------------------- somebody on board


@pytest.mark.parametrize("name", ["model.tflite", "golden.npz"])
def test_a_slot_that_was_changed_on_the_device_is_not_taken_for_what_was_signed(scene, name):
    scene.release()
    assert scene.device.run().error is None
    (old,) = (scene.device.models / "keywords/slots").glob("1.0.0*")
    (old / name).write_bytes(b"changed")
    scene.fleet.offer(scene.fleet.release(OLD, version="2.0.1", counter=3))
    scene.fleet.publish()
    run = scene.device.run()
    assert run.error is None
    assert run.status.events[0].how == "archive"
    assert scene.device.content() == OLD


def test_every_attack_of_the_list_has_an_error_of_its_own():
    named = {
        ArbitraryInstallationError, EndlessDataError, FastForwardError, FreezeError, MirrorError,
        MixAndMatchError, RollbackError, WrongTargetError, ThresholdError, RevokedKeyError,
        SlowRetrievalError, DeltaError, UnsafeArchiveError, DecompressionBombError,
        OversizedMetadataError, MalformedMetadataError, GoldenVectorsError, LyingManifestError,
    }  # fmt: skip
    assert all(issubclass(error, TrustError) and error is not TrustError for error in named)
    assert not any(issubclass(a, b) for a in named for b in named if a is not b)
