"""The publisher's side of a fleet, judged by the client that devices use: tuf's own."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import stat
import tarfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import pytest
from tuf.api.exceptions import DownloadHTTPError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Metadata
from tuf.ngclient import FetcherInterface, Updater

from edgeshrink.cli import main
from edgeshrink.errors import ConfigError, EdgeshrinkError, ThresholdError, TrustError
from edgeshrink.fleet import keys, storage
from edgeshrink.fleet.keys import MIN_PASSPHRASE, generate, read_private, unlock, write_pair
from edgeshrink.fleet.metadata import MAX_BYTES
from edgeshrink.fleet.repository import (
    create_fleet,
    edit,
    open_repository,
    read_target,
    refresh,
)
from edgeshrink.fleet.settings import EXPIRY_DAYS, Settings, read_settings
from edgeshrink.fleet.signers import add_signer, remove_signer, rotate_online, rotate_signer
from edgeshrink.fleet.signing import (
    describe,
    drafting,
    merge,
    publish_request,
    read_request,
    sign_request,
)
from edgeshrink.fleet.trust import CONFIG

PASSPHRASE = "three words or more"
NAMES = ("alice", "bob", "carol")
RELEASE = "releases/rpi4/keywords-{}.tar.xz"
ROLLOUT = "rollout/rpi4/stable.json"


class FromFolder(FetcherInterface):
    """Serves a published folder as a web server would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = self.folder / unquote(url.removeprefix("http://fleet/"))
        if not path.is_file():
            raise DownloadHTTPError(f"no {path.name}", 404)
        yield path.read_bytes()


class Device:
    """A client that keeps what it trusts, as a device does."""

    def __init__(self, state: Path, fleet: Path) -> None:
        self.state, self.root = state, (fleet / "root.json").read_bytes()
        state.mkdir(parents=True, exist_ok=True)

    def look(self, fleet: Path, now: datetime | None = None) -> Updater:
        """Refresh from what is published; raises what tuf refuses."""
        updater = Updater(
            str(self.state), "http://fleet/metadata/", str(self.state), "http://fleet/targets/",
            fetcher=FromFolder(fleet / "repository"), bootstrap=self.root,
        )  # fmt: skip
        if now is not None:
            updater._trusted_set.reference_time = now
        updater.refresh()
        return updater

    def read(self, fleet: Path, path: str, updater: Updater | None = None) -> bytes | None:
        """Return a target's content, verified by tuf; None if nobody has signed one."""
        updater = updater or self.look(fleet)
        info = updater.get_targetinfo(path)
        return None if info is None else Path(updater.download_target(info)).read_bytes()


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A fleet with release 1 offered, and everybody's opened keys."""
    folder = tmp_path_factory.mktemp("template") / "fleet"
    create_fleet(
        folder, Settings(name="sensors"), passphrases=dict.fromkeys(NAMES, PASSPHRASE), threshold=2
    )
    people = {n: read_private(folder / "keys" / f"{n}.pem", PASSPHRASE) for n in NAMES}
    ship(folder, people, 1)
    return folder, people


@pytest.fixture
def fleet(template, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no power fails in these tests
    shutil.copytree(template[0], tmp_path / "fleet")
    return tmp_path / "fleet"


@pytest.fixture
def people(template):
    return template[1]


def ship(fleet, people, number, by=("alice", "bob")):
    """Publish a release, and offer it."""
    with edit(fleet, [people[name] for name in by]) as change:
        role = change.ensure_device_role("rpi4")
        change.add(role, RELEASE.format(number), b"release %d" % number, {"number": number})
        change.add("rollout", ROLLOUT, json.dumps({"offered": number}).encode())


def seen(device, fleet):
    """What a device is offered; and the release must be there, as signed."""
    updater = device.look(fleet)
    number = json.loads(device.read(fleet, ROLLOUT, updater))["offered"]
    assert device.read(fleet, RELEASE.format(number), updater) == b"release %d" % number
    assert device.read(fleet, RELEASE.format(number + 1), updater) is None
    return number


# ---- a fleet


def test_a_new_fleet_is_one_that_a_client_trusts_and_holds_no_release(tmp_path):
    folder = tmp_path / "below" / "fleet"
    create_fleet(folder, Settings(name="sensors"), passphrases={"alice": PASSPHRASE}, threshold=1)
    assert Device(tmp_path / "device", folder).read(folder, RELEASE.format(1)) is None
    assert (folder / "root.json").read_bytes() == (
        folder / "repository" / "metadata" / "1.root.json"
    ).read_bytes()
    assert read_settings(folder / "fleet.toml") == Settings(name="sensors")


def test_private_keys_are_encrypted_or_the_machines_own_and_never_published(fleet):
    for path in fleet.rglob("*.pem"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.parent.name in ("keys", "online")
        assert (b"ENCRYPTED" in path.read_bytes()) == (path.parent.name == "keys")
    published = [p.read_bytes() for p in (fleet / "repository").rglob("*") if p.is_file()]
    assert published
    assert not any(b"PRIVATE KEY" in data for data in published)


def test_a_device_gets_what_was_signed_with_its_facts(fleet, tmp_path):
    device = Device(tmp_path / "device", fleet)
    assert seen(device, fleet) == 1
    assert device.look(fleet).get_targetinfo(RELEASE.format(1)).custom == {"number": 1}
    assert read_target(fleet, RELEASE.format(1)) == b"release 1"


def test_a_role_lists_nothing_outside_of_its_paths(fleet, people):
    for role, path in (
        ("rollout", RELEASE.format(2)), ("device-rpi4", ROLLOUT), ("device-rpi4", "releases/x/a"),
        ("device-rpi4", "releases/rpi4/a/b"), ("targets", "a"), ("device-none", "releases/none/a"),
    ):  # fmt: skip
        with pytest.raises(ConfigError), edit(fleet, list(people.values())) as change:
            change.add(role, path, b"x")


def test_nothing_is_published_without_the_threshold_or_by_a_stranger(fleet, people, tmp_path):
    before = contents(fleet / "repository")
    stranger = generate("alice")
    for signers in ([], [people["alice"]], [people["alice"], people["alice"]],
                    [people["alice"], stranger]):  # fmt: skip
        with pytest.raises(ThresholdError), edit(fleet, signers) as change:
            change.add("device-rpi4", RELEASE.format(2), b"release 2")
    assert contents(fleet / "repository") == before


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_error_in_a_change_publishes_nothing_and_a_change_of_nothing_neither(fleet, people):
    before = contents(fleet / "repository")

    def half(change):
        change.add("device-rpi4", RELEASE.format(2), b"release 2")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), edit(fleet, list(people.values())) as change:
        half(change)
    with edit(fleet):
        pass
    assert contents(fleet / "repository") == before


def test_what_somebody_else_wrote_into_the_published_folder_is_not_built_upon(fleet, people):
    path = fleet / "repository" / "metadata" / "2.targets.json"
    document = json.loads(path.read_bytes())
    document["signed"]["targets"]["evil"] = {"length": 1, "hashes": {"sha256": "00" * 32}}
    path.write_text(json.dumps(document))
    with pytest.raises(TrustError, match=r"targets\.json: is not signed by who may"):
        open_repository(fleet)
    with pytest.raises(TrustError):
        ship(fleet, people, 2)


def test_a_published_file_that_was_changed_is_not_given_back(fleet):
    (file,) = (fleet / "repository" / "targets" / "releases" / "rpi4").iterdir()
    file.write_bytes(b"release !")
    with pytest.raises(TrustError, match="is not what was signed"):
        read_target(fleet, RELEASE.format(1))
    with pytest.raises(ConfigError, match="has no target"):
        read_target(fleet, RELEASE.format(2))


def test_metadata_that_devices_would_not_take_are_not_published(fleet, people):
    limits = {name: getattr(CONFIG, f"{name}_max_length") for name in MAX_BYTES}
    assert limits == MAX_BYTES
    before = contents(fleet / "repository")
    facts = {"x": "y" * 5_000_000}
    with (
        pytest.raises(ConfigError, match=r"device-rpi4: would have 5,\d+,\d+ bytes"),
        edit(fleet, list(people.values())) as change,
    ):
        change.add("device-rpi4", RELEASE.format(2), b"release 2", facts)
    assert contents(fleet / "repository") == before


# ---- killed at any instant


class Killed(BaseException):
    """What no handler of ours may catch, as nothing catches kill -9."""


STEPS = ("_write", "_move")  # all that changes what is there


def killed_at(monkeypatch, number, act, steps=STEPS):
    """Die at the beginning of the step of this number; False when there were fewer."""
    left = number

    def wrapped(name):
        step = getattr(storage, name)

        def call(*arguments):
            nonlocal left
            left -= 1
            if left < 0:
                if name == "_write":  # half of the file is there
                    arguments[0].write_bytes(arguments[1][: len(arguments[1]) // 2])
                raise Killed
            return step(*arguments)

        return call

    with monkeypatch.context() as patch:
        for name in steps:
            patch.setattr(storage, name, wrapped(name))
        try:
            act()
        except Killed:
            return True
    return False


def publish_a_release(fleet, people):
    ship(fleet, people, 2)


def replace_a_signer(fleet, people):
    dave = generate("dave")
    with edit(fleet, [people["bob"], people["carol"], dave]) as change:
        rotate_signer(change, "alice", dave.public_key)
        change.add("rollout", ROLLOUT, b'{"offered": 1}')


def replace_the_machines_keys(fleet, people):
    rotate_online(fleet, "timestamp", list(people.values()))


@pytest.mark.parametrize(
    ("act", "steps", "offers"),
    [
        (publish_a_release, STEPS, {1, 2}),
        (replace_a_signer, ("_move",), {1}),
        (replace_the_machines_keys, ("_move",), {1}),
    ],
)
def test_killed_at_any_write_the_fleet_is_the_old_or_the_new_one(
    fleet, people, tmp_path, monkeypatch, act, steps, offers
):
    known = tmp_path / "known"
    assert seen(Device(known, fleet), fleet) == 1
    after, number = set(), 0
    while True:
        here = tmp_path / str(number)
        shutil.copytree(fleet, here / "fleet")
        shutil.copytree(known, here / "known", symlinks=True)
        is_killed = killed_at(monkeypatch, number, partial(act, here / "fleet", people), steps)
        new, old = Device(here / "new", fleet), Device(here / "known", fleet)
        offered = seen(new, here / "fleet")
        assert seen(old, here / "fleet") == offered
        refresh(here / "fleet")  # whoever comes next brings it to its end
        assert seen(old, here / "fleet") >= offered
        assert not [p for p in (here / "fleet").iterdir() if p.name in (".staged", ".commit")]
        after.add(offered)
        if not is_killed:
            break
        number += 1
    assert number > (14 if steps == STEPS else 4)
    assert after == offers


def test_killed_while_a_lost_key_is_replaced_a_fleet_is_finished_by_who_comes_next(
    fleet, people, tmp_path, monkeypatch
):
    known, told = tmp_path / "known", set()
    assert seen(Device(known, fleet), fleet) == 1
    (lost,) = (fleet / "online").glob("timestamp-*.pem")
    lost.unlink()
    for number in range(20):
        here = tmp_path / f"{number}" / "fleet"
        shutil.copytree(fleet, here)
        if not killed_at(
            monkeypatch, number, partial(replace_the_machines_keys, here, people), ("_move",)
        ):
            break
        try:
            open_repository(here)
        except EdgeshrinkError as err:
            told.add(err.what)
        if not (here / ".commit").exists():
            replace_the_machines_keys(here, people)  # was not decided
        refresh(here)
        device = shutil.copytree(known, here.parent / "known", symlinks=True)
        assert seen(Device(device, fleet), here) == 1
    assert number > 3
    assert told == {"was left while it was published"}


def test_killed_while_it_is_made_a_fleet_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    act = partial(
        create_fleet, tmp_path / "fleet", Settings(name="sensors"),
        passphrases={"alice": PASSPHRASE}, threshold=1, keys_folder=tmp_path / "keys",
    )  # fmt: skip
    for number in (0, 3, 9, 13):
        assert killed_at(monkeypatch, number, act)
        assert not (tmp_path / "fleet").exists()
        assert not list((tmp_path / "keys").iterdir())
    assert not killed_at(monkeypatch, 1000, act)
    assert open_repository(tmp_path / "fleet").threshold == 1


def test_a_full_disk_leaves_the_old_fleet_and_nothing_else(fleet, people, tmp_path, monkeypatch):
    before = contents(fleet)

    def full(path, data):
        path.write_bytes(data[:10])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(storage, "_write", full)
        with pytest.raises(EdgeshrinkError, match=r"No space left on device.*nothing was changed"):
            ship(fleet, people, 2)
    before.pop(".lock")
    after = contents(fleet)
    after.pop(".lock")
    assert after == before


def test_a_read_only_folder_is_told_and_left_alone(fleet, people, monkeypatch):
    real = os.open

    def read_only(path, flags, *rest, **more):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return real(path, flags, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)
        with pytest.raises(EdgeshrinkError, match="Read-only file system"):
            ship(fleet, people, 2)
        assert open_repository(fleet).settings.name == "sensors"  # looking needs no right to write


# ---- two publishers


def test_a_second_publisher_is_refused_or_waits(fleet, people):
    with edit(fleet) as change:
        with pytest.raises(EdgeshrinkError, match=f"another process \\(id {os.getpid()}\\)"):
            refresh(fleet)
        change.renew("timestamp")
    version = open_repository(fleet).timestamp.version
    entered = threading.Event()

    def first():
        with edit(fleet) as change:
            entered.set()
            change.renew("timestamp")
            threading.Event().wait(0.15)

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait()
    refresh(fleet, wait_s=10)
    thread.join()
    assert open_repository(fleet).timestamp.version == version + 2


# ---- expiries


def test_refresh_needs_no_passphrase_and_keeps_devices_from_refusing(fleet, tmp_path):
    device = Device(tmp_path / "device", fleet)
    later = datetime.now(UTC) + timedelta(days=EXPIRY_DAYS["timestamp"] + 1)
    with pytest.raises(ExpiredMetadataError):
        device.look(fleet, later)
    done = refresh(fleet, now=later)
    assert done.renewed == ("timestamp",)
    device.look(fleet, later)
    later += timedelta(days=EXPIRY_DAYS["snapshot"] / 2)
    assert set(refresh(fleet, now=later).renewed) == {"timestamp", "snapshot", "rollout"}
    device.look(fleet, later + timedelta(days=EXPIRY_DAYS["timestamp"] - 1))


def test_refresh_says_what_people_must_sign_before_it_runs_out(fleet, people):
    soon = datetime.now(UTC) + timedelta(days=EXPIRY_DAYS["targets"] - 30)
    assert refresh(fleet).soon == ()
    assert set(refresh(fleet, now=soon).soon) == {"targets", "device-rpi4"}
    signers = [people["alice"], people["carol"]]
    done = refresh(fleet, signers, offline=True, now=soon)
    assert done.soon == ()
    assert {"root", "targets", "device-rpi4"} <= set(done.renewed)
    assert min(done.expiries.values()) > soon


def test_settings_decide_how_long_signatures_hold(fleet):
    text = (fleet / "fleet.toml").read_text()
    (fleet / "fleet.toml").write_text(text.replace("timestamp = 14", "timestamp = 3"))
    left = refresh(fleet).expiries["timestamp"] - datetime.now(UTC)
    assert timedelta(days=2.9) < left <= timedelta(days=3)
    for wrong, told in (("timestamp = 0", "expiry_days.timestamp"), ("timestmp = 3", "timestmp")):
        (fleet / "fleet.toml").write_text(text.replace("timestamp = 14", wrong))
        with pytest.raises(ConfigError, match=told):
            open_repository(fleet)


# ---- people come and go


def test_who_is_added_can_sign_and_old_devices_follow(fleet, people, tmp_path):
    device, dave = Device(tmp_path / "device", fleet), generate("dave")
    assert seen(device, fleet) == 1
    with edit(fleet, [people["alice"], people["bob"]]) as change:
        add_signer(change, dave.public_key)
    ship(fleet, {**people, "dave": dave}, 2, by=("carol", "dave"))
    assert seen(device, fleet) == 2


def test_who_is_removed_cannot_sign_and_what_hung_on_that_signature_is_signed_again(
    fleet, people, tmp_path
):
    device = Device(tmp_path / "device", fleet)
    assert seen(device, fleet) == 1
    with edit(fleet, [people["bob"], people["carol"]]) as change:
        remove_signer(change, "alice")
    assert seen(device, fleet) == 1
    assert seen(Device(tmp_path / "new", fleet), fleet) == 1
    with pytest.raises(ThresholdError):
        ship(fleet, people, 2, by=("alice", "bob"))
    ship(fleet, people, 2, by=("bob", "carol"))
    assert seen(device, fleet) == 2
    role = open_repository(fleet).roles["device-rpi4"]
    assert people["alice"].public_key.keyid not in role.signatures


def test_a_new_root_needs_the_threshold_of_the_old_one(fleet, people):
    eve = generate("eve")
    mallory = generate("mallory")
    with pytest.raises(ThresholdError, match="root"), edit(fleet, [eve, mallory]) as change:
        change.set_signers({"eve": eve.public_key, "mallory": mallory.public_key}, 2)


def test_changes_of_signers_that_would_leave_a_fleet_without_enough_are_refused(fleet, people):
    everybody = list(people.values())
    with edit(fleet, everybody) as change:
        remove_signer(change, "carol")
    for act, told in (
        (lambda c: remove_signer(c, "bob"), "would leave 1 keys, and 2 must sign"),
        (lambda c: remove_signer(c, "carol"), "is nobody who signs"),
        (lambda c: add_signer(c, generate("bob").public_key), "signs already"),
        (lambda c: add_signer(c, keys.named(people["bob"].public_key, "rob")), "has the key of"),
        (lambda c: add_signer(c, generate("dave").public_key, 4), "choose between 1 and 3"),
        (lambda c: rotate_signer(c, "zoe", generate("dave").public_key), "is nobody who signs"),
    ):
        with pytest.raises(ConfigError, match=told), edit(fleet, everybody) as change:
            act(change)


@pytest.mark.parametrize("name", ["timestamp", "rollout"])
@pytest.mark.parametrize("is_lost", [False, True])
def test_a_key_of_the_machine_can_be_replaced_even_when_it_is_lost(
    fleet, people, tmp_path, name, is_lost
):
    device = Device(tmp_path / "device", fleet)
    assert seen(device, fleet) == 1
    (path,) = (fleet / "online").glob(f"{name}-*.pem")
    old = read_private(path, None)
    if is_lost:
        path.unlink()
        with pytest.raises(ConfigError, match="holds no key that may sign"):
            ship(fleet, people, 2)
    rotate_online(fleet, name, [people["alice"], people["bob"]])
    assert not path.exists()
    assert seen(device, fleet) == 1
    ship(fleet, people, 2)
    assert seen(device, fleet) == 2
    # the old key signs nothing any more
    repository = open_repository(fleet)
    path = (
        fleet
        / "repository"
        / "metadata"
        / (
            "timestamp.json"
            if name == "timestamp"
            else f"{repository.role(name).version}.rollout.json"
        )
    )
    metadata = Metadata.from_bytes(path.read_bytes())
    metadata.sign(old)
    metadata.to_file(str(path))
    with pytest.raises(RepositoryError):
        Device(tmp_path / "third", fleet).read(fleet, ROLLOUT)


# ---- signing elsewhere


@pytest.fixture
def request_file(fleet, tmp_path):
    """A request for release 2, which is offered at once."""
    with drafting(fleet, tmp_path / "request.tar") as change:
        change.add("device-rpi4", RELEASE.format(2), b"release 2", {"number": 2})
        change.add("rollout", ROLLOUT, b'{"offered": 2}')
    return tmp_path / "request.tar"


def test_people_sign_a_release_far_from_the_fleet(fleet, people, request_file, tmp_path):
    device = Device(tmp_path / "device", fleet)
    before = contents(fleet / "repository")
    root = (fleet / "root.json").read_bytes()
    assert read_request(request_file).missing() == ((2, frozenset(NAMES)),)
    sign_request(request_file, people["carol"], root)
    assert read_request(request_file).signed_by == {"carol"}
    with pytest.raises(ThresholdError):
        publish_request(fleet, read_request(request_file))
    assert contents(fleet / "repository") == before
    assert read_request(sign_and_path(request_file, people["alice"])).missing() == ()
    publish_request(fleet, read_request(request_file))
    assert seen(device, fleet) == 2


def sign_and_path(path, signer):
    sign_request(path, signer)
    return path


def test_two_people_sign_copies_at_the_same_time(fleet, people, request_file, tmp_path):
    copy = shutil.copy(request_file, tmp_path / "copy.tar")
    sign_request(request_file, people["alice"])
    sign_request(Path(copy), people["bob"])
    publish_request(fleet, merge([read_request(request_file), read_request(Path(copy))]))
    assert seen(Device(tmp_path / "device", fleet), fleet) == 2


def test_a_request_says_in_words_what_is_signed(fleet, people, request_file, tmp_path):
    told = "\n".join(describe(read_request(request_file)))
    assert f"+ {RELEASE.format(2)} (9 B, sha256" in told
    assert "device-rpi4 version 2" in told
    dave = generate("dave")
    with drafting(fleet, tmp_path / "signers.tar") as change:
        rotate_signer(change, "alice", dave.public_key)
    told = "\n".join(describe(read_request(tmp_path / "signers.tar")))
    assert f"+ root is signed by dave (key {dave.public_key.keyid})" in told
    assert "- root is signed by alice no longer" in told


def test_a_change_of_signers_is_signed_in_two_steps_by_old_and_new(fleet, people, tmp_path):
    device, dave, path = Device(tmp_path / "device", fleet), generate("dave"), tmp_path / "r.tar"
    assert seen(device, fleet) == 1
    with drafting(fleet, path) as change:
        remove_signer(change, "bob")
    # dave signs in place of alice and bob: old ones must agree, and new ones be there
    path.unlink()
    with drafting(fleet, path) as change:
        after = {"carol": people["carol"].public_key, "dave": dave.public_key}
        change.set_signers(after, 2)
    sign_request(path, people["alice"])
    sign_request(path, people["carol"])
    with pytest.raises(ThresholdError):
        publish_request(fleet, read_request(path))
    assert read_request(path).missing() == ((1, frozenset({"dave"})),)
    sign_request(path, dave)
    publish_request(fleet, read_request(path))
    assert seen(device, fleet) == 1
    assert set(open_repository(fleet).signers) == {"carol", "dave"}


def test_a_request_that_was_overtaken_is_refused(fleet, people, request_file):
    for name in ("alice", "bob"):
        sign_request(request_file, people[name])
    with edit(fleet) as change:
        change.add("rollout", ROLLOUT, b'{"offered": 1, "halted": true}')
    with pytest.raises(ConfigError, match="was changed since the request was made"):
        publish_request(fleet, read_request(request_file))
    publish_request(fleet, read_request(request_file), with_rollout=False)
    assert b"halted" in read_target(fleet, ROLLOUT)
    with pytest.raises(ConfigError, match="something else was published"):
        publish_request(fleet, read_request(request_file), with_rollout=False)


def test_a_request_of_another_fleet_is_refused_by_who_signs_and_by_who_publishes(
    fleet, people, request_file, tmp_path
):
    other = tmp_path / "other"
    create_fleet(other, Settings(name="sensors"), passphrases={"alice": PASSPHRASE}, threshold=1)
    with pytest.raises(TrustError, match="does not descend from the root"):
        read_request(request_file, (other / "root.json").read_bytes())
    with pytest.raises(ConfigError, match="another fleet"):
        publish_request(other, read_request(request_file))
    with pytest.raises(ConfigError, match="belongs to nobody who may sign"):
        sign_request(request_file, generate("alice"))
    assert read_request(request_file).signed_by == set()


def members(path):
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}


def rewritten(path, changed):
    with tarfile.open(path, "w") as tar:
        for name, data in changed.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_a_request_that_lies_is_not_signed(request_file):
    honest = members(request_file)
    file, new, base = f"targets/{RELEASE.format(2)}", "new/device-rpi4.json", "base/targets.json"
    leap = json.loads(honest[new])
    leap["signed"]["version"] = 9
    evil = json.loads(honest[base])
    evil["signed"]["delegations"]["roles"][-1]["threshold"] = 1
    for changes, told in (
        ({file: b"release !"}, "holds another"),
        ({file: None}, "does not hold it"),
        ({new: json.dumps(leap).encode()}, "version 9"),
        ({base: json.dumps(evil).encode()}, "is not signed by who may"),
        ({"base/device-rpi4.json": None}, "version 2 of device-rpi4, 1 is next"),
        ({"new/device-zzz.json": honest[new]}, "device-zzz"),
        ({"../evil": b""}, r"holds '\.\./evil'"),
        ({"new/device-rpi4.json": b"{}"}, "holds no metadata"),
        ({"request.json": b"[]"}, "is no request"),
        ({"base/1.root.json": None}, "lacks what a request must have"),
        ({new: honest[base]}, "more of device-rpi4 than"),
        ({"new/rollout.json": honest[new]}, "something else as rollout"),
    ):
        lying = {k: v for k, v in (honest | changes).items() if v is not None}
        with pytest.raises((TrustError, ConfigError), match=told):
            read_request(rewritten(request_file, lying))
    rewritten(request_file, honest)
    read_request(request_file)


@pytest.mark.parametrize("end", [0, 1, 700, 5000])
def test_a_request_that_ends_early_is_refused(request_file, end):
    request_file.write_bytes(request_file.read_bytes()[:end])
    with pytest.raises(ConfigError, match=r"request\.tar"):
        read_request(request_file)


def test_a_request_is_not_written_over_another_file_nor_for_what_nobody_signs(fleet, tmp_path):
    path = tmp_path / "request.tar"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="is there already"), drafting(fleet, path):
        pass
    assert path.read_text() == "mine"
    new = tmp_path / "new.tar"
    with pytest.raises(ConfigError, match="nothing for people to sign"), drafting(fleet, new) as c:
        c.add("rollout", ROLLOUT, b"{}")
    assert not new.exists()


# ---- keys


def test_no_more_keys_are_opened_than_must_sign(fleet):
    repository, asked = open_repository(fleet), []

    def ask(name):
        asked.append(name)
        return None if name == "alice" else PASSPHRASE

    opened = unlock(repository.needs, repository.signers, fleet / "keys", ask)
    assert asked == ["alice", "bob", "carol"]
    assert len(opened) == 2
    (fleet / "keys" / "bob.pem").unlink()
    with pytest.raises(ThresholdError, match="2 of alice, bob, carol must sign, and keys of carol"):
        unlock(repository.needs, repository.signers, fleet / "keys", ask)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda pem: b"", "is empty"),
        (lambda pem: b"\n\n", "is empty"),
        (lambda pem: pem[:60], "is no private key"),
        (lambda pem: pem[:-40], "is no private key"),
        (lambda pem: b"x" * 100_000, "bytes"),
        (lambda pem: b"\xff\x00" * 40, "is no private key"),
        (lambda pem: pem.replace(b"M", b"N", 1), "opened by this passphrase|is no private key"),
    ],
)
def test_a_damaged_key_file_is_named_with_what_to_do(fleet, damage, told):
    path = fleet / "keys" / "alice.pem"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=told) as raised:
        read_private(path, PASSPHRASE)
    assert str(path) in str(raised.value)
    assert raised.value.fix


def test_a_wrong_passphrase_and_a_swapped_key_are_told_apart(fleet):
    repository = open_repository(fleet)
    opening = partial(unlock, repository.needs, repository.signers, fleet / "keys")
    with pytest.raises(ConfigError, match="is not opened by this passphrase"):
        opening(lambda name: "another one, alas")
    shutil.copy(fleet / "keys" / "bob.pem", fleet / "keys" / "alice.pem")
    with pytest.raises(ConfigError, match="another key than the one that the fleet knows as alice"):
        opening(lambda name: PASSPHRASE)


def test_a_new_key_replaces_none_and_needs_a_passphrase_worth_the_name(tmp_path):
    write_pair(tmp_path, generate("alice"), PASSPHRASE)
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="is there already"):
        write_pair(tmp_path, generate("alice"), PASSPHRASE)
    with pytest.raises(ConfigError, match=f"at least {MIN_PASSPHRASE}"):
        write_pair(tmp_path, generate("bob"), "short")
    assert contents(tmp_path) == before


# ---- commands


@pytest.fixture
def run(fleet, monkeypatch, capsys):
    monkeypatch.chdir(fleet.parent)
    monkeypatch.setenv("EDGESHRINK_PASSPHRASE", PASSPHRASE)

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(["fleet", *map(str, arguments)])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return call


def test_commands_make_a_fleet_and_keep_it(run, tmp_path):
    code, out, err = run("init", "new", "--name", "cams", "--threshold", 1, "--keys", 2)
    assert (code, err) == (0, "")
    assert "1 of 2 keys must sign" in out
    code, out, err = run("refresh", "new", "--json")
    assert json.loads(out)["renewed"] == ["timestamp"]
    code, out, err = run("signers", "add", "new", "dave", "--threshold", "2", "--json")
    assert json.loads(out) == {
        "root": 2, "threshold": 2, "signers": ["dave", "signer-1", "signer-2"],
    }  # fmt: skip
    assert run("signers", "rotate", "new", "signer-1")[1].startswith("signer-1-b signs in place")
    assert run("signers", "rotate", "new", "timestamp")[0] == 0
    assert run("signers", "remove", "new", "dave", "--request", "r.tar")[0] == 0
    for key in ("signer-1-b", "signer-2"):
        code, out, err = run("sign", "r.tar", "--key", f"new/keys/{key}.pem", "--root", "root.json")
        assert (code, out) == (2, "")
        code, out, err = run(
            "sign", "r.tar", "--key", f"new/keys/{key}.pem", "--root", "new/root.json"
        )
        assert code == 0
        assert "- root is signed by dave no longer" in out
    assert run("publish", "new", "r.tar")[1].startswith("published root version 5")
    code, out, err = run("signers", "list", "new", "--json")
    assert [key["name"] for key in json.loads(out)["keys"]] == [
        "signer-1-b", "signer-2", "timestamp", "rollout",
    ]  # fmt: skip
    Device(tmp_path / "device", tmp_path / "new").look(tmp_path / "new")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["init", "fleet", "--name", "x"], 2, "is a fleet already"),
        (["init", ".", "--name", "x"], 2, "holds files"),
        (["init", "new", "--name", "X!"], 2, "--name"),
        (["init", "new", "--name", "x", "--threshold", "4"], 2, "is 4, of 3 keys"),
        (["init", "new", "--name", "x", "--threshold", "0"], 2, "is 0, of 3 keys"),
        (["init", "new", "--name", "x", "--keys", "100000"], 2, "--keys"),
        (["init", "new", "--name", "x", "--signer", "a", "--signer", "a"], 2, "twice"),
        (["init", "new", "--name", "x", "--signer", "../a"], 2, "--signer"),
        (["refresh", "nowhere"], 2, "is no fleet"),
        (["refresh", "fleet", "--request", "r.tar"], 2, "add --offline"),
        (["refresh", "fleet", "--wait", "soon"], 2, "--wait"),
        (["refresh", "fleet", "--offline", "--keys-dir", "none"], 6, "keys of nobody"),
        (["signers", "remove", "fleet", "alise"], 2, "did you mean 'alice'"),
        (["signers", "remove", "fleet", "alice", "--threshold", "3"], 2, "would leave 2 keys"),
        (["signers", "add", "fleet", "dave", "--public", "fleet/root.json"], 2, "no public key"),
        (["signers", "add", "fleet", "alice"], 2, "signs already"),
        (["signers", "rotate", "fleet", "timestamp", "--to", "x"], 2, "people's keys"),
        (["sign", "none.tar"], 2, "none.tar"),
        (["publish", "fleet", "none.tar"], 2, "none.tar"),
        (["publsh"], 2, "did you mean 'publish'"),
    ],
)
def test_a_command_that_cannot_do_what_is_asked_says_why_and_changes_nothing(
    run, fleet, arguments, code, told
):
    before = contents(fleet.parent)
    result, out, err = run(*arguments)
    assert (result, out) == (code, "")
    assert told in err
    assert err.count("\n") == 1
    after = contents(fleet.parent)
    assert {k: v for k, v in after.items() if ".lock" not in k} == {
        k: v for k, v in before.items() if ".lock" not in k
    }


def test_without_a_terminal_a_missing_passphrase_is_named(run, monkeypatch):
    monkeypatch.delenv("EDGESHRINK_PASSPHRASE")
    monkeypatch.setenv("EDGESHRINK_PASSPHRASE_ALICE", PASSPHRASE)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    code, out, err = run("refresh", "fleet", "--offline")
    assert (code, out) == (2, "")
    assert "EDGESHRINK_PASSPHRASE_BOB" in err
    assert run("refresh", "fleet")[0] == 0
