"""The agent on a device: what it installs, what it leaves alone, and how it survives."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from edgeshrink.cli import main
from edgeshrink.errors import ConfigError, EdgeshrinkError, FreezeError
from edgeshrink.fleet import agent as agent_module
from edgeshrink.fleet import installing
from edgeshrink.fleet.delta import make_delta
from edgeshrink.fleet.eligibility import share_of
from edgeshrink.fleet.fetching import FetchError
from edgeshrink.fleet.installing import MAX_ATTEMPTS, STEPS, RolledBackError
from edgeshrink.fleet.selftest import SelfTestError
from tests.fleet_device import (
    Device,
    fetched_releases,
    health,
    outcomes,
    quick_self_test,
    reason,
    tree,
)
from tests.fleet_server import (
    NOW,
    TARGET,
    Fault,
    Repository,
    Server,
    artifact_files,
    new_repository,
    serving,
)

V1, V2, V3 = (artifact_files(seed) for seed in (1, 2, 3))
RUNTIME = {"name": "litert", "min_version": "2.0.0"}


@pytest.fixture(scope="module")
def first() -> Repository:
    """A fleet that offers keywords 1.0.0."""
    repository = new_repository()
    repository.offer(repository.release(V1, version="1.0.0", counter=1))
    repository.publish()
    return repository


@pytest.fixture
def fleet(first: Repository) -> Repository:
    return first.fork()


@pytest.fixture(scope="module")
def any_server() -> Iterator[Server]:
    with serving({}) as running:
        yield running


@pytest.fixture
def server(any_server: Server, fleet: Repository) -> Server:
    any_server.reset(fleet.files)
    return any_server


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No interpreter's process in the self-test, and no waiting for the disk."""
    monkeypatch.setattr(installing, "self_test", quick_self_test)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def device(tmp_path: Path, fleet: Repository, server: Server, quick: None) -> Device:
    return Device(tmp_path, fleet.first_root, server.url)


def release_next(
    fleet: Repository, files: dict[str, bytes] = V2, *, offer: dict[str, Any] | None = None, **facts
) -> str:
    """Publish the next release and offer it beside nothing else; return its path."""
    facts = {"version": "2.0.0", "counter": 2} | facts
    path = fleet.release(files, **facts)
    fleet.offer({"path": path} | (offer or {}))
    fleet.publish()
    return path


def with_delta(fleet: Repository, old: dict[str, bytes], new: dict[str, bytes]) -> bytes:
    """Release `new` as 2.0.0 with a delta from 1.0.0; return the delta."""
    delta = make_delta(old, new)
    base = fleet.archive_digest(f"releases/{TARGET}/keywords-1.0.0+1.tar.xz")
    path = f"releases/{TARGET}/keywords-1.0.0+1..2.0.0+2.delta"
    fleet.add_target(f"device-{TARGET}", path, delta)
    release_next(fleet, new, deltas=[{"path": path, "base": base}])
    return delta


# ------------------------------------------------------------------------------ installing


def test_a_release_is_installed_after_its_golden_vectors_ran_in_the_real_interpreter(
    tmp_path, fleet, server
):
    device = Device(tmp_path, fleet.first_root, server.url)
    run = device.run()
    assert run.error is None
    assert outcomes(run) == ["updated"]
    assert device.content() == V1
    said = device.status()
    assert said == run.status.to_json()
    assert said["outcome"] == "updated"
    assert said["device"] == "thermostat-7"
    assert said["models"]["keywords"]["version"] == "1.0.0"
    assert said["models"]["keywords"]["confirmed"]
    assert said["events"][0]["self_test"] == {
        "runtime": "litert", "samples": 4, "values": 16, "largest": 0.0, "limit": 0.0,
    }  # fmt: skip
    assert said["requests"] == len(server.requests)
    assert said["bytes"] == server.n_bytes

    release_next(fleet, artifact_files(2, golden_shift=1))
    before = tree(device.models / "keywords" / "slots")
    run = device.run()
    assert isinstance(run.error, SelfTestError)
    assert "1 from the golden one" in str(run.error)
    assert tree(device.models / "keywords" / "slots") == before
    assert device.version() == "1.0.0"


def test_without_news_two_files_are_asked_for_and_nothing_is_written_but_the_status(device, server):
    device.run()
    (before, server.requests[:]) = ({p: p.lstat().st_mtime_ns for p in device.state.rglob("*")}, [])
    run = device.run()
    assert run.status.outcome == "current"
    assert run.status.events == ()
    assert server.requests == ["metadata/2.root.json", "metadata/timestamp.json"]
    after = {p: p.lstat().st_mtime_ns for p in device.state.rglob("*")}
    changed = {p.name for p in after.keys() | before.keys() if after.get(p) != before.get(p)}
    assert changed == {"status.json"}


def test_an_update_comes_as_a_delta_to_what_is_there(device, fleet, server):
    big = {"weights.bin": bytes(range(256)) * 64}
    old, new = artifact_files(1, extra=big), artifact_files(4, extra=big)
    fleet.offer(fleet.release(old, version="1.0.0", counter=1))
    fleet.publish()
    device.run()
    server.requests.clear()
    with_delta(fleet, old, new)
    run = device.run()
    assert run.status.events[0].how == "delta"
    assert fetched_releases(server.requests) == ["keywords-1.0.0+1..2.0.0+2.delta"]
    assert device.content() == new


@pytest.mark.parametrize("kind", ["missing", "replace"])
def test_the_whole_release_is_taken_where_a_signed_delta_is_of_no_use(device, fleet, server, kind):
    big = {"weights.bin": os.urandom(30_000)}
    old, new = artifact_files(1, extra=big), artifact_files(4, extra=big)
    fleet.offer(fleet.release(old, version="1.0.0", counter=1))
    fleet.publish()
    device.run()
    if kind == "missing":  # at this mirror
        with_delta(fleet, old, new)
        server.faults.append(Fault("missing", ".delta"))
    else:  # it was signed, and leads elsewhere
        with_delta(fleet, artifact_files(9, extra=big), new)
    run = device.run()
    assert run.error is None
    (event,) = run.status.events
    assert event.how == "archive"
    said = {"missing": "HTTP 404", "replace": "than the one installed"}
    assert event.reason.startswith("the delta was of no use (")
    assert said[kind] in event.reason
    assert device.content() == new


def test_old_files_under_a_new_signature_are_taken_from_the_slot_that_has_them(
    device, fleet, server
):
    device.run()
    release_next(fleet)
    device.run()
    server.requests.clear()
    release_next(fleet, V1, version="2.0.1", counter=3)
    run = device.run()
    assert run.status.events[0].how == "copy"
    assert fetched_releases(server.requests) == []
    assert device.content() == V1
    assert device.version() == "2.0.1"


def test_several_models_are_looked_after_and_one_that_fails_stops_no_other(device, fleet):
    paths = [
        fleet.release(artifact_files(5, golden_shift=3), name="anomaly"),
        fleet.release(V1, name="keywords"),
        fleet.release(V3, name="wakeword"),
    ]
    fleet.offer(*paths)
    fleet.publish()
    run = device.run()
    assert sorted(outcomes(run)) == ["rolled-back", "updated", "updated"]
    assert [device.version(n) for n in ("anomaly", "keywords", "wakeword")] == [
        None, "1.0.0", "1.0.0",
    ]  # fmt: skip


def test_only_the_models_that_were_named_are_installed(tmp_path, fleet, server, quick):
    fleet.offer(fleet.release(V1), fleet.release(V3, name="wakeword"))
    fleet.publish()
    device = Device(tmp_path, fleet.first_root, server.url, names=frozenset({"wakeword"}))
    device.run()
    assert (device.version(), device.version("wakeword")) == (None, "1.0.0")


def test_the_highest_counter_on_offer_is_taken_at_once(device, fleet):
    paths = [
        fleet.release(files, version=f"{n}.0.0", counter=n)
        for n, files in ((3, V3), (1, V1), (2, V2))
    ]
    fleet.offer(*paths)
    fleet.publish()
    run = device.run()
    assert outcomes(run) == ["updated"]
    assert device.version() == "3.0.0"


def test_releases_that_came_before_are_no_news_however_they_are_offered(device, fleet):
    old, new = fleet.release(V1), fleet.release(V2, version="2.0.0", counter=2)
    fleet.offer(new)
    fleet.publish()
    device.run()
    for state in ("active", "halted", "withdrawn"):
        fleet.offer(new, {"path": old, "state": state})
        fleet.publish()
        assert device.run().status.events == ()
    assert device.version() == "2.0.0"


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_as_many_releases_stay_on_the_device_as_were_asked_for(
    tmp_path, fleet, server, quick, keep
):
    device = Device(tmp_path, fleet.first_root, server.url, keep_slots=keep)
    for n in range(1, 6):
        release_next(fleet, artifact_files(n), version=f"{n}.0.0", counter=n)
        assert device.run().error is None
    slots = sorted(p.name.partition("+")[0] for p in (device.models / "keywords/slots").iterdir())
    # the one before stays until another one has run, so that there is one to go back to
    assert slots == [f"{n}.0.0" for n in range(6 - max(keep, 2), 6)]
    device.run()
    assert len(list((device.models / "keywords/slots").iterdir())) == keep


def test_root_keys_that_were_replaced_are_followed_without_a_hand_on_the_device(device, fleet):
    device.run()
    for _ in range(3):
        fleet.replace_key("timestamp")
        fleet.publish("root", "timestamp")
    release_next(fleet)
    assert device.run().error is None
    assert device.version() == "2.0.0"


# ------------------------------------------------------------------------------ eligibility


INELIGIBLE = [
    ({"runtimes": [{"name": "litert", "min_version": "99.1"}]}, r"litert is .* here, 99\.1 is nee"),
    ({"operators": {"FULLY_CONNECTED": 99}}, "FULLY_CONNECTED up to version .*, 99 is needed"),
    ({"operators": {"TELEPORT": 1}}, "no TELEPORT"),
    ({"runtimes": []}, "it names none"),
    ({"runtimes": [{"name": "tensorrt", "min_version": "1"}]}, "tensorrt is not known here"),
    ({"counter": 1}, "its counter 1 is not above 1"),
]


@pytest.mark.parametrize(("facts", "said"), INELIGIBLE)
def test_what_does_not_run_here_is_not_even_fetched(device, fleet, server, facts, said):
    device.run()
    server.requests.clear()
    release_next(fleet, **facts)
    before = tree(device.models)
    run = device.run()
    assert outcomes(run) == ["ineligible"]
    assert re.search(said, reason(run)), reason(run)
    assert run.error is None
    assert fetched_releases(server.requests) == []
    assert tree(device.models) == before


@pytest.mark.parametrize(
    ("offer", "said"),
    [
        ({"share": 0.0}, "offered to 0 % of devices"),
        ({"groups": ["beta", "lab"]}, "it is for the groups beta, lab"),
        ({"not_before": "2026-06-01T12:00:01+00:00"}, "not offered before 2026-06-01T12:00+00:00"),
        ({"state": "halted"}, "it is halted"),
        ({"state": "withdrawn"}, "it is withdrawn"),
    ],
)
def test_what_is_not_offered_to_this_device_is_not_even_fetched(device, fleet, server, offer, said):
    device.run()
    server.requests.clear()
    release_next(fleet, offer=offer)
    run = device.run()
    assert outcomes(run) == ["ineligible"]
    assert said in reason(run)
    assert fetched_releases(server.requests) == []
    assert device.version() == "1.0.0"


def test_a_release_for_executorch_says_what_the_device_lacks(device, fleet, monkeypatch):
    find = agent_module.find_runtimes

    def without_torch() -> tuple[dict[str, str], dict[str, str]]:
        here, missing = find()
        here.pop("executorch", None)
        return here, missing | {"executorch": "torch not installed"}

    monkeypatch.setattr(agent_module, "find_runtimes", without_torch)
    files = V2 | {"model.pte": b"a program"}
    release_next(fleet, files, runtimes=[{"name": "executorch", "min_version": "1.0"}])
    assert "executorch >= 1.0: torch not installed" in reason(device.run())


def test_a_release_is_ineligible_where_there_is_no_space_and_taken_when_there_is(
    device, fleet, server, monkeypatch
):
    device.run()
    path = release_next(fleet)
    server.requests.clear()
    with monkeypatch.context() as patch:
        patch.setattr(installing, "free_bytes", lambda folder: 1 << 20)
        run = device.run()
    assert outcomes(run) == ["ineligible"]
    assert "of space, 1.0 MiB are free" in reason(run)
    assert run.error is None
    assert fetched_releases(server.requests) == []
    device.run()
    assert device.version() == "2.0.0", path


def test_a_device_takes_part_when_its_group_its_time_and_its_share_have_come(
    tmp_path, fleet, server, quick
):
    device = Device(tmp_path, fleet.first_root, server.url, groups=frozenset({"lab"}))
    device.run()
    path = fleet.release(V2, version="2.0.0", counter=2)
    place = share_of("thermostat-7", path)
    later = NOW + timedelta(hours=1)

    def offered(share: float, at: datetime) -> str | None:
        fleet.offer(
            {"path": path, "share": share, "groups": ["lab"], "not_before": later.isoformat()}
        )
        fleet.publish()
        device.run(at=at)
        return device.version()

    assert offered(1.0, NOW) == "1.0.0"
    assert offered(place, later) == "1.0.0"
    assert offered(min(1.0, place + 1e-9), later) == "2.0.0"


def test_a_withdrawn_release_keeps_running_until_there_is_a_successor(device, fleet):
    device.run()
    path = f"releases/{TARGET}/keywords-1.0.0+1.tar.xz"
    fleet.offer({"path": path, "state": "withdrawn"})
    fleet.publish("rollout")
    run = device.run()
    assert (run.status.outcome, device.version()) == ("withdrawn", "1.0.0")
    fleet.offer({"path": path, "state": "withdrawn"}, fleet.release(V2, version="1.0.1", counter=2))
    fleet.publish()
    assert (device.run().status.outcome, device.version()) == ("updated", "1.0.1")


def test_a_channel_that_nobody_publishes_is_an_error_that_names_it(tmp_path, fleet, server, quick):
    device = Device(tmp_path, fleet.first_root, server.url, channel="nightly")
    assert "channel 'nightly': offers nothing to devices of target 'host'" in str(
        device.run().error
    )


# --------------------------------------------------------------------------------- fetching


def test_a_download_that_breaks_off_goes_on_where_it_ended(device, fleet, server):
    release_next(fleet, artifact_files(2, extra={"noise": os.urandom(40_000)}))
    archive = "keywords-2.0.0"
    server.faults.append(Fault("cut", archive, times=3))
    assert device.run().error is None  # within one run
    starts = [int(asked[6:-1]) for asked in server.ranges]
    assert starts == sorted(starts)
    assert len(starts) == 3
    assert device.version() == "2.0.0"


def test_a_download_goes_on_in_the_next_run_and_from_another_mirror(tmp_path, fleet, server, quick):
    release_next(fleet, artifact_files(2, extra={"noise": os.urandom(40_000)}))
    (fault,) = server.faults = [Fault("cut", "keywords-2.0.0")]
    device = Device(tmp_path, fleet.first_root, server.url)
    run = device.run()
    assert isinstance(run.error, FetchError)
    assert "broke off after" in str(run.error)
    (part,) = (device.state / "downloads").iterdir()
    there = part.stat().st_size
    server.ranges.clear()
    fault.times = 0
    assert device.run().error is None
    assert server.ranges == [f"bytes={there}-"]
    assert device.version() == "2.0.0"
    assert list((device.state / "downloads").iterdir()) == []


def test_pieces_of_something_else_are_thrown_away_once_and_all_is_fetched_again(
    device, fleet, server
):
    path = release_next(fleet)
    part = device.state / "downloads" / f"{fleet.archive_digest(path)}.part"
    part.parent.mkdir(parents=True)
    for junk in (b"junk", bytes(10**6)):
        part.write_bytes(junk)
    (part.parent / "older.part").write_bytes(b"of a release that is no longer offered")
    assert device.run().error is None
    assert device.version() == "2.0.0"


@pytest.mark.parametrize("kind", ["drop", "unavailable"])
@pytest.mark.parametrize("where", ["timestamp", "snapshot", "rollout", "keywords"])
def test_a_server_that_fails_costs_nothing_but_time(device, fleet, server, kind, where):
    device.run()
    release_next(fleet)
    before = tree(device.models)
    server.faults.append(Fault(kind, where))
    run = device.run()
    assert isinstance(run.error, EdgeshrinkError)
    assert run.status.outcome == "failed"
    assert tree(device.models) == before
    server.faults.clear()
    assert device.run().error is None
    assert device.version() == "2.0.0"


@pytest.mark.parametrize("kind", ["drop", "unavailable", "missing", "flip"])
def test_a_second_mirror_stands_in_for_one_that_fails(tmp_path, fleet, server, quick, kind):
    with serving(fleet.files) as other:
        server.faults.append(Fault(kind))
        device = Device(tmp_path, fleet.first_root, server.url, other.url)
        assert device.run().error is None
        server.faults[:] = [Fault(kind, "targets/")]
        release_next(fleet)
        assert device.run().error is None
    assert device.version() == "2.0.0"


# --------------------------------------------------------------- self-test, health, rollback


def test_a_release_that_fails_its_self_test_is_not_tried_again_but_its_successor_is(
    device, fleet, server
):
    device.run()
    release_next(fleet, artifact_files(2, golden_shift=2))
    run = device.run()
    assert outcomes(run) == ["rolled-back"]
    assert isinstance(run.error, SelfTestError)
    assert device.content() == V1
    server.requests.clear()
    run = device.run()
    assert outcomes(run) == ["ineligible"]
    assert "it was tried here, and did not work" in reason(run)
    assert fetched_releases(server.requests) == []
    release_next(fleet, version="2.0.1", counter=3)
    assert device.run().error is None
    assert device.version() == "2.0.1"


def test_integer_outputs_may_differ_by_as_much_as_was_signed(device, fleet):
    release_next(fleet, artifact_files(2, golden_shift=2), max_lsb=2)
    assert device.run().error is None


def test_a_health_command_that_fails_brings_the_old_release_back(tmp_path, fleet, server, quick):
    script = tmp_path / "well"
    script.write_text(
        "#!/bin/sh\necho $EDGESHRINK_RELEASE on $(cat $EDGESHRINK_CURRENT/.release.json | wc -l)\n"
        "echo the camera is dark >&2\n"
        'case $EDGESHRINK_RELEASE in 2*) test "$EDGESHRINK_MODEL" = '
        '"$(readlink -f "$EDGESHRINK_CURRENT")"; exit 3;; esac\n'
    )
    script.chmod(0o755)
    device = Device(tmp_path / "device", fleet.first_root, server.url, health=health(str(script)))
    assert device.run().error is None
    before = tree(device.models / "keywords" / "slots")
    release_next(fleet)
    run = device.run()
    assert isinstance(run.error, RolledBackError)
    assert "ended with 3" in str(run.error)
    assert "the camera is dark" in str(run.error)
    assert "1.0.0+1" in run.error.fix
    assert run.status.to_json()["events"][0]["release"] == "keywords@2.0.0"
    assert device.content() == V1
    assert tree(device.models / "keywords" / "slots") == before
    assert outcomes(device.run()) == ["ineligible"]


def test_a_health_command_that_hangs_is_ended_with_all_its_children(tmp_path, fleet, server, quick):
    device = Device(tmp_path, fleet.first_root, server.url)
    device.run()
    mark = tmp_path / "mark"
    hanging = health("/bin/sh", "-c", f"(sleep 0.6; touch {mark}) & sleep 60", timeout_s=0.2)
    device = Device(tmp_path, fleet.first_root, server.url, health=hanging)
    release_next(fleet)
    start = time.monotonic()
    run = device.run()
    assert time.monotonic() - start < 5
    assert "took more than 0.2 s" in str(run.error)
    assert device.version() == "1.0.0"
    time.sleep(max(0.0, start + 1.2 - time.monotonic()))
    assert not mark.exists()


def test_a_health_command_that_is_not_there_fails_and_the_first_release_leaves_no_current(
    tmp_path, fleet, server, quick
):
    device = Device(tmp_path, fleet.first_root, server.url, health=health("/no/such/thing"))
    run = device.run()
    assert "can't be started (No such file or directory)" in str(run.error)
    assert device.version() is None
    assert device.status()["models"] == {}


# ---------------------------------------------------------------------------------- reports


def test_the_status_is_posted_as_it_is_in_the_file(tmp_path, fleet, server, quick):
    device = Device(tmp_path, fleet.first_root, server.url, report_urls=(f"{server.url}/reports",))
    (device.state / "models/keywords").mkdir(parents=True)
    (device.state / "models/keywords/score.json").write_text('{"score": 0.875}')
    run = device.run()
    assert run.report_faults == ()
    assert server.posts == [device.status()]
    assert server.posts[0]["models"]["keywords"]["score"] == 0.875


def test_a_report_that_gets_lost_is_said_and_harms_nothing(tmp_path, fleet, server, quick):
    urls = (f"{server.url}/reports", "http://127.0.0.1:9/nobody")
    device = Device(tmp_path, fleet.first_root, server.url, report_urls=urls)
    server.post_status = 500
    run = device.run()
    assert run.error is None
    assert len(run.report_faults) == 2
    assert run.report_faults[0].endswith("HTTP 500")
    assert device.version() == "1.0.0"


# ------------------------------------------------------------------------------------ clocks


def test_a_clock_that_has_lost_its_time_opens_no_door_to_what_has_expired(device, fleet):
    device.run(at=NOW + timedelta(days=9))
    release_next(fleet, offer={"not_before": (NOW + timedelta(days=8)).isoformat()})
    run = device.run(at=datetime(1970, 1, 1, tzinfo=UTC))
    assert run.error is None
    assert run.status.to_json()["clock"] == "behind"
    assert run.status.time == NOW + timedelta(days=9)
    assert device.version() == "2.0.0"
    fleet.publish(days=8.5)  # has expired a while before the time that the device knows of
    assert isinstance(device.run(at=datetime(1970, 1, 1, tzinfo=UTC)).error, FreezeError)


def test_a_clock_that_ran_ahead_does_no_lasting_harm(device, fleet):
    device.run()
    ahead = device.run(at=NOW + timedelta(days=4000))
    assert isinstance(ahead.error, FreezeError)
    assert device.version() == "1.0.0"
    release_next(fleet)
    run = device.run()
    assert run.error is None
    assert not run.status.clock_is_behind
    assert device.version() == "2.0.0"


# -------------------------------------------------------------------- disks, power and crowds


@contextmanager
def small_disk(folder: Path, *, n_bytes: int | None = None) -> Iterator[None]:
    """Give `folder` a file system of `n_bytes`; without that, make what is there read-only."""
    if os.geteuid() != 0:
        pytest.skip("needs to mount a file system")
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "--bind", str(folder), str(folder)]
    if n_bytes is not None:
        command = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "none", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("may mount no file system here")
    try:
        if n_bytes is None:
            again = ["mount", "-o", "remount,bind,ro", str(folder)]
            subprocess.run(again, check=True, capture_output=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


@pytest.mark.parametrize("free", [0, 8192, 40_960, 90_112])
def test_a_disk_that_is_full_leaves_the_device_as_it_was(
    tmp_path, fleet, server, quick, monkeypatch, free
):
    monkeypatch.setattr(
        installing, "free_bytes", lambda folder: 1 << 40
    )  # somebody else was faster
    with small_disk(tmp_path / "disk", n_bytes=1 << 20):
        device = Device(tmp_path, fleet.first_root, server.url, state=tmp_path / "disk" / "state")
        assert device.run().error is None
        release_next(fleet, artifact_files(2, extra={"noise": os.urandom(50_000)}))
        before = tree(device.models)
        found = os.statvfs(tmp_path / "disk")
        hog = tmp_path / "disk" / "hog"
        hog.write_bytes(bytes(found.f_bavail * found.f_frsize - free))
        run = device.run()
        assert isinstance(run.error, EdgeshrinkError)
        assert "No space left" in str(run.error)
        after = tree(device.models)
        assert after == before
        hog.unlink()
        assert device.run().error is None
        assert device.version() == "2.0.0"


def test_a_disk_that_turned_read_only_is_named_and_stays_as_it_is(tmp_path, device, fleet):
    device.run()
    release_next(fleet)
    before = tree(device.state)
    with small_disk(device.state):
        with pytest.raises(EdgeshrinkError, match=r"can't be written \(Read-only file system\)"):
            device.run()
        assert tree(device.state) == before


def test_one_agent_at_a_time_has_the_state_folder(device):
    def second(step: str) -> None:
        with pytest.raises(ConfigError, match="is in use by another agent"):
            agent_module.run_once(device.config, system_time=lambda: NOW)

    assert device.run(step=second).error is None
    assert device.version() == "1.0.0"


ALL_STEPS = ("refreshed", *STEPS)


@pytest.mark.parametrize(
    "is_update",
    [pytest.param(False, marks=pytest.mark.slow, id="first"), pytest.param(True, id="update")],
)
@pytest.mark.parametrize("step", ALL_STEPS)
def test_after_a_loss_of_power_at_any_step_the_next_run_comes_to_the_same_end(
    device, fleet, step, is_update
):
    if is_update:
        device.run()
        with_delta(fleet, V1, V2)
    else:
        release_next(fleet)
    assert device.died(step), f"no run came to the step {step!r}"
    assert device.version() in ({"1.0.0", "2.0.0"} if is_update else {None, "2.0.0"})
    run = device.run()
    assert run.error is None
    assert device.content() == V2
    assert device.status()["models"]["keywords"]["confirmed"]
    clean = {p.name for p in (device.models / "keywords").iterdir()}
    assert clean == {"slots", "current", "ledger.json"}
    assert list((device.state / "downloads").iterdir()) == []
    assert len(list((device.models / "keywords/slots").iterdir())) == (2 if is_update else 1)
    assert device.run().status.events == ()


@pytest.mark.slow
def test_power_may_fail_before_any_change_of_the_disk(tmp_path, fleet, server, quick):
    origin = Device(tmp_path / "origin", fleet.first_root, server.url)
    origin.run()
    with_delta(fleet, V1, V2)
    number, is_over = 0, False
    while not is_over:
        folder = tmp_path / f"device-{number}"
        device = Device(folder, fleet.first_root, server.url)
        shutil.copytree(origin.state, device.state, symlinks=True)
        is_over = not device.died(number)
        assert device.version() in {"1.0.0", "2.0.0"}, number
        assert device.run().error is None, number
        assert device.content() == V2, number
        leftovers = {p.name for p in device.models.rglob("*") if "partial" in p.name}
        assert not leftovers, number
        shutil.rmtree(folder)
        number += 1
    assert number > 30


@pytest.mark.parametrize("step", ["noted", "switched"])
def test_a_release_that_takes_the_device_down_each_time_is_given_up(device, fleet, step):
    device.run()
    path = release_next(fleet)
    for _ in range(MAX_ATTEMPTS):
        assert device.died(step) or step == "switched"
        if step == "switched":
            break
    if step == "switched":  # the trial is taken up before anything else; it dies there
        for _ in range(MAX_ATTEMPTS - 1):
            assert device.died("healthy")
    run = device.run()
    assert isinstance(run.error, RolledBackError)
    assert "the device went down 3 times while trying it" in str(run.error)
    assert device.content() == V1
    assert run.status.events[0].release == "keywords@2.0.0", path
    assert outcomes(device.run()) == ["ineligible"]
    release_next(fleet, V3, version="3.0.0", counter=3)
    assert device.run().error is None
    assert device.version() == "3.0.0"


@pytest.mark.parametrize("name", ["ledger.json", "../../rollout.json", "../../clock.json"])
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\0" * 64, b'{"trial": 5, "refused": []}'])
def test_a_note_of_the_device_that_is_damaged_is_made_anew(device, fleet, name, data):
    device.run()
    (device.models / "keywords" / name).write_bytes(data)
    release_next(fleet)
    assert device.run().error is None
    assert device.version() == "2.0.0"


# ------------------------------------------------------------------------------- the command


def agent(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        main(["agent", *arguments])
    return ended.value.code


def options(device: Device) -> list[str]:
    config = device.config
    return [
        "--repo", config.mirrors[0], "--root", str(config.root), "--state", str(config.state),
        "--device-id", "thermostat-7", "--target", TARGET, "--once",
    ]  # fmt: skip


@pytest.fixture
def today(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command asks the system for the time; the fleet's signatures hold on another day."""
    real = agent_module.run_once
    monkeypatch.setattr(
        agent_module, "run_once", lambda config: real(config, system_time=lambda: NOW)
    )


def test_the_command_says_what_it_did_and_ends_with_the_code_of_what_went_wrong(
    device, fleet, server, today, capsys
):
    assert agent(*options(device)) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "keywords@1.0.0 updated by archive; 4 golden samples in litert, largest difference 0 of 0",
        f"keywords 1.0.0 (counter 1) at {device.models}/keywords/current",
    ]
    assert said.err == ""
    assert agent(*options(device), "--json") == 0
    assert json.loads(capsys.readouterr().out) == device.status()
    release_next(fleet, artifact_files(2, golden_shift=9))
    assert agent(*options(device)) == 1
    assert "9 from the golden one" in capsys.readouterr().err
    server.faults.append(Fault("flip", "timestamp"))
    assert agent(*options(device)) == 6


def test_the_command_refuses_what_it_can_not_mean(device, capsys, tmp_path):
    for extra, said in (
        (["--every", "1h"], "does not go with --once"),
        (["--repo", "ftp://somewhere"], "is no http or https URL"),
        (["--channel", "Stable!"], "--channel"),
        (["--health-command", "'"], "check quotes"),
        (["--health-timeout", "soon"], "--health-timeout"),
        (["--device-id", "a b"], "--device-id"),
        (["--root", str(tmp_path / "none.json")], "can't be read (No such file or directory)"),
    ):
        assert agent(*options(device), *extra) == 2, extra
        assert said in capsys.readouterr().err
    (tmp_path / "none.json").write_bytes(b"{}")
    assert agent(*options(device), "--root", str(tmp_path / "none.json")) == 2
    assert "is no root metadata" in capsys.readouterr().err


def test_the_unit_that_is_printed_runs_the_very_command(device, capsys, monkeypatch):
    arguments = [*options(device), "--health-command", "/bin/check 100%", "--print-systemd"]
    monkeypatch.setattr(sys, "argv", ["edgeshrink", "agent", *arguments])
    assert agent(*arguments) == 0
    unit = capsys.readouterr().out
    (line,) = (n for n in unit.splitlines() if n.startswith("ExecStart="))
    assert line.startswith(f"ExecStart={sys.executable} -m edgeshrink agent --repo http://")
    assert line.endswith('--health-command "/bin/check 100%%"')
    assert f"ReadWritePaths=-{device.state}" in unit
