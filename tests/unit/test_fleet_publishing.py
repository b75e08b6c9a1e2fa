"""Releases as they are published: what tuf's own client, tarfile and the schemas make of them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf.json_format import Parse
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater

from edgeshrink.artifact import FileEntry
from edgeshrink.cli import main
from edgeshrink.errors import (
    BudgetError,
    ConfigError,
    EdgeshrinkError,
    ThresholdError,
    UnsafeArchiveError,
)
from edgeshrink.fleet import publishing
from edgeshrink.fleet.contents import read_contents
from edgeshrink.fleet.delta import apply_delta
from edgeshrink.fleet.publishing import Order, ship, ship_again, version_order
from edgeshrink.fleet.repository import open_repository
from edgeshrink.fleet.rollouts import (
    Wanted,
    change_rollout,
    list_published,
    parse_selector,
    read_channels,
)
from edgeshrink.fleet.signing import publish_request, read_request, sign_request
from edgeshrink.release import RuntimeNeed, read_release
from tests.tiny_fleets import PASSPHRASE, make_artifact, make_fleet, sha256, without_fsync
from tests.tiny_models import edited, expected_fully_connected, fully_connected

ALL = Order(channel="stable", share=1.0)
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return make_fleet(tmp_path_factory.mktemp("template") / "fleet")


@pytest.fixture
def fleet(template, tmp_path, monkeypatch):
    without_fsync(monkeypatch)
    return template.copy(tmp_path / "fleet")


@pytest.fixture
def artifact(tmp_path):
    return make_artifact(tmp_path / "artifact")


class FromFolder(FetcherInterface):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = self.folder / unquote(url.removeprefix("http://fleet/"))
        if not path.is_file():
            raise DownloadHTTPError(f"no {path.name}", 404)
        yield path.read_bytes()


def client(fleet, tmp_path):
    """tuf's own client, fresh."""
    state = tmp_path / f"client{len(list(tmp_path.glob('client*')))}"
    state.mkdir()
    updater = Updater(
        str(state), "http://fleet/metadata/", str(state), "http://fleet/targets/",
        fetcher=FromFolder(fleet.folder / "repository"),
        bootstrap=(fleet.folder / "root.json").read_bytes(),
    )  # fmt: skip
    updater.refresh()
    return updater


def get(fleet, tmp_path, path):
    """Return content and custom facts of a target, verified by tuf."""
    updater = client(fleet, tmp_path)
    info = updater.get_targetinfo(path)
    assert info is not None, path
    return Path(updater.download_target(info)).read_bytes(), info.custom


def members(archive):
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:xz") as tar:
        return {m.name: tar.extractfile(m).read() for m in tar.getmembers()}


def publish(fleet, artifact, order=ALL, **options):
    return ship(read_contents(artifact), fleet.folder, order, fleet.two, now=NOW, **options)


def retrained(seed=1):
    return fully_connected(seed=seed)


def test_a_device_gets_the_artifacts_files_and_what_was_signed_about_them(
    fleet, artifact, tmp_path
):
    shipped = publish(fleet, artifact, Order(channel="stable", share=0.05, version="1.3.0"))
    path = "releases/rpi4/keywords-1.3.0+1.tar.xz"
    assert shipped.release.path == path
    archive, custom = get(fleet, tmp_path, path)
    files = members(archive)
    for file in artifact.iterdir():
        assert files[file.name] == file.read_bytes()
    assert set(files) - {f.name for f in artifact.iterdir()} == {"bom.cdx.json", "provenance.json"}
    signed = custom["edgeshrink"]
    assert {n: e["sha256"] for n, e in signed["files"].items()} == {
        n: sha256(d) for n, d in files.items()
    }
    assert (signed["name"], signed["version"], signed["counter"]) == ("keywords", "1.3.0", 1)
    assert signed["operators"] == {"FULLY_CONNECTED": 4}
    facts = signed["facts"]
    assert float(facts["score"]) == 0.9375
    assert float(facts["figures"]["latency_ms"]["high"]) == 46.5
    assert facts["golden_sha256"] == sha256((artifact / "golden.npz").read_bytes())
    rollout = json.loads(get(fleet, tmp_path, "rollout/rpi4/stable.json")[0])
    assert rollout["releases"] == [
        {"path": path, "share": 0.05, "state": "active", "groups": [], "not_before": None}
    ]
    assert read_release(signed, "release").label == "keywords@1.3.0"


def test_the_bill_of_materials_is_what_cyclonedx_demands(fleet, artifact, tmp_path):
    shipped = publish(fleet, artifact)
    files = members(get(fleet, tmp_path, shipped.release.path)[0])
    text = files["bom.cdx.json"].decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bom = json.loads(text)
    model = bom["metadata"]["component"]
    assert (model["type"], model["name"]) == ("machine-learning-model", "keywords")
    analysis = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    metrics = {m["type"]: m for m in analysis if m.get("slice") != "test split, float"}
    assert metrics["accuracy"]["value"] == "0.9375"
    interval = metrics["latency_ms (modelled)"]["confidenceInterval"]
    assert interval == {"lowerBound": "37.5", "upperBound": "46.5"}
    listed = {c["name"]: c["hashes"][0]["content"] for c in bom["components"]}
    assert listed == {
        n: sha256(d) for n, d in files.items() if n not in ("bom.cdx.json", "provenance.json")
    }


def test_the_validator_would_notice_a_card_that_is_wrong(fleet, artifact, tmp_path):
    shipped = publish(fleet, artifact)
    bom = json.loads(members(get(fleet, tmp_path, shipped.release.path)[0])["bom.cdx.json"])
    bom["metadata"]["component"]["modelCard"]["modelParameters"]["input"] = []
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bom)) is not None


def test_provenance_is_an_in_toto_statement_about_every_other_file(fleet, artifact, tmp_path):
    shipped = publish(fleet, artifact)
    files = members(get(fleet, tmp_path, shipped.release.path)[0])
    parsed = Parse(files["provenance.json"], statement_pb2.Statement())
    statement = Statement(list(parsed.subject), parsed.predicate_type, parsed.predicate)
    statement.validate()
    assert parsed.predicate_type == "https://slsa.dev/provenance/v1"
    subjects = {s.name: s.digest["sha256"] for s in parsed.subject}
    assert subjects == {n: sha256(d) for n, d in files.items() if n != "provenance.json"}
    predicate = json.loads(files["provenance.json"])["predicate"]
    known = Parse(json.dumps(predicate), provenance_pb2.Provenance())  # no field is unknown
    inputs = {d.name: d for d in known.build_definition.resolved_dependencies}
    assert inputs["recipe.toml"].digest["sha256"] == sha256((artifact / "recipe.toml").read_bytes())
    assert inputs["torch"].uri == "pkg:pypi/torch@2.13.0%2Bcpu"
    assert predicate["buildDefinition"]["externalParameters"]["seed"] == 3


def test_the_same_artifact_gives_the_same_archive(template, artifact, tmp_path, monkeypatch):
    without_fsync(monkeypatch)
    digests = set()
    for name in ("one", "two"):
        fleet = template.copy(tmp_path / name)
        digests.add(sha256(get(fleet, tmp_path, publish(fleet, artifact).release.path)[0]))
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"target": "rpi44"}, ConfigError, "rpi4"),
        ({"target": "rp2040"}, ConfigError, "edgeshrink pack"),
        ({"met": False}, BudgetError, "61.5 ms"),
        ({"name": "Key Words"}, ConfigError, "--name"),
        ({"files": {".hidden": b"x"}}, UnsafeArchiveError, "hidden"),
        ({"files": {"profile.json": b"{"}}, ConfigError, "no JSON"),
        ({"engine": "executorch"}, ConfigError, "runs on no runtime"),
    ],
)
def test_what_must_not_be_published_is_refused(fleet, tmp_path, changes, error, words):
    artifact = make_artifact(tmp_path / "bad", **changes)
    with pytest.raises(error, match=words):
        publish(fleet, artifact)
    assert list_published(open_repository(fleet.folder)) == ()


def test_an_artifact_whose_digests_lie_is_refused(fleet, artifact):
    (artifact / "model.tflite").write_bytes(fully_connected(seed=9))
    with pytest.raises(ConfigError, match=r"model\.tflite: differs from its digest"):
        publish(fleet, artifact)


def test_an_artifact_that_no_device_could_test_is_refused(fleet, artifact):
    manifest = json.loads((artifact / "artifact.json").read_text())
    del manifest["files"]["golden.npz"]
    (artifact / "artifact.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=r"no golden\.npz"):
        publish(fleet, artifact)


def test_a_missed_budget_can_be_published_by_force(fleet, tmp_path):
    artifact = make_artifact(tmp_path / "slow", met=False)
    shipped = publish(fleet, artifact, Order(channel="stable", share=1.0, force=True))
    assert shipped.release.label == "keywords@1.0.0"


def test_a_missed_accuracy_is_a_missed_budget(tmp_path):
    audit = json.dumps({"drop": 0.03, "budget": {"accuracy_drop": 0.01}}).encode()
    contents = read_contents(make_artifact(tmp_path / "a", files={"audit.json": audit}))
    assert [(e.what, e.need, e.limit) for e in contents.unmet] == [
        ("drop needs 0.03 of the metric, the budget allows 0.01 of the metric "
         "(+0.02 of the metric)", 0.03, 0.01)
    ]  # fmt: skip


def test_a_published_version_and_a_counter_that_is_not_higher_are_refused(fleet, artifact):
    publish(fleet, artifact, Order(channel="stable", share=1.0, version="1.3.0", counter=7))
    with pytest.raises(ConfigError, match=r"keywords@1\.3\.0 is published.*1\.4\.0"):
        publish(fleet, artifact, Order(channel="stable", share=1.0, version="1.3.0"))
    with pytest.raises(ConfigError, match=r"counter 7 would never take it.*8"):
        publish(fleet, artifact, Order(channel="stable", share=1.0, counter=7))
    again = publish(fleet, artifact)
    assert (again.release.version, again.release.counter) == ("1.4.0", 8)


def test_counters_are_of_one_name_and_one_target(fleet, artifact, tmp_path):
    publish(fleet, artifact)
    for name, target in (("keywords", "rpi5"), ("gestures", "rpi4")):
        other = make_artifact(tmp_path / name / target, name=name, target=target)
        assert publish(fleet, other).release.counter == 1


def test_versions_are_ordered_as_semantic_versioning_says():
    ordered = [  # section 11.4
        "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2",
        "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "1.0.1", "1.2.0", "1.10.0", "2.0.0",
    ]  # fmt: skip
    mixed = ordered[::-1]
    mixed.sort(key=version_order)
    assert mixed == ordered


def test_too_few_signatures_publish_nothing(fleet, artifact):
    with pytest.raises(ThresholdError):
        ship(read_contents(artifact), fleet.folder, ALL, [fleet.keys["alice"]])
    assert list_published(open_repository(fleet.folder)) == ()
    assert not read_channels(open_repository(fleet.folder))


def test_a_delta_leads_from_the_release_before_to_the_new_one(fleet, tmp_path):
    noise = np.random.default_rng(0).bytes(20_000)  # what makes the archive large stays the same
    old = make_artifact(tmp_path / "old", files={"notes.bin": noise})
    new = make_artifact(tmp_path / "new", model=retrained(), files={"notes.bin": noise})
    first, second = publish(fleet, old), publish(fleet, new)
    (entry,) = second.release.deltas
    archive, _ = get(fleet, tmp_path, first.release.path)
    assert entry.base == sha256(archive)
    assert entry.path == "releases/rpi4/keywords-1.0.0+1..1.1.0+2.delta"
    delta, _ = get(fleet, tmp_path, entry.path)
    wanted = members(get(fleet, tmp_path, second.release.path)[0])
    assert len(delta) < second.n_bytes / 3
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir(), after.mkdir()
    for name, data in members(archive).items():
        (before / name).write_bytes(data)
    expected = {n: FileEntry(sha256=sha256(d), n_bytes=len(d)) for n, d in wanted.items()}
    apply_delta(delta, before, after, expected)
    assert {f.name: f.read_bytes() for f in after.iterdir()} == wanted


def test_a_delta_that_saves_nothing_is_not_published(fleet, artifact, tmp_path, monkeypatch):
    publish(fleet, artifact)
    monkeypatch.setattr(publishing, "make_delta", lambda old, new: bytes(100_000))
    shipped = publish(fleet, make_artifact(tmp_path / "new", model=retrained()))
    assert [(d.n_bytes, d.is_published) for d in shipped.deltas] == [(100_000, False)]
    assert shipped.release.deltas == ()
    listed = open_repository(fleet.folder).role("device-rpi4").targets
    assert not [path for path in listed if path.endswith(".delta")]


def test_deltas_are_made_from_the_last_releases_only(fleet, artifact, tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "make_delta", lambda old, new: b"short")
    for seed in range(5):
        make_artifact(artifact, files={"seed.txt": b"%d" % seed})
        last = publish(fleet, artifact)
    assert [d.base.version for d in last.deltas] == ["1.3.0", "1.2.0", "1.1.0"]


def test_going_back_is_the_old_archive_under_a_higher_counter(fleet, artifact, tmp_path):
    first = publish(fleet, artifact)
    publish(fleet, make_artifact(tmp_path / "new", model=retrained()))
    again = ship_again("keywords@1.0.0", fleet.folder, ALL, fleet.two, now=NOW)
    assert (again.release.label, again.release.counter) == ("keywords@1.0.0", 3)
    assert (
        get(fleet, tmp_path, again.release.path)[0] == get(fleet, tmp_path, first.release.path)[0]
    )
    (done,) = change_rollout(fleet.folder, "keywords@1.0.0", Wanted(action="halt"))
    assert done.release.counter == 3, "of one version, the newest is meant"
    (done,) = change_rollout(fleet.folder, "keywords@1.0.0+1", Wanted(action="halt"))
    assert done.release.counter == 1


def test_a_release_can_be_signed_elsewhere_and_is_offered_when_it_is_published(
    fleet, artifact, tmp_path
):
    request = tmp_path / "release.tar"
    shipped = publish(fleet, artifact, request=request)
    assert list_published(open_repository(fleet.folder)) == ()
    root = (fleet.folder / "root.json").read_bytes()
    for name in ("carol", "bob"):
        sign_request(request, fleet.keys[name], root)
    publish_request(fleet.folder, read_request(request, root))
    assert members(get(fleet, tmp_path, shipped.release.path)[0])
    rollout = json.loads(get(fleet, tmp_path, "rollout/rpi4/stable.json")[0])
    assert [offer["path"] for offer in rollout["releases"]] == [shipped.release.path]


# ---- what a file needs


def with_version(version, data=None):
    def edit(model):
        model.operatorCodes[0].version = version

    return edited(data or fully_connected(), edit)


def with_oldest(text):
    def edit(model):
        from ai_edge_litert import schema_py_generated as schema

        model.buffers.append(schema.BufferT(data=np.frombuffer(text, np.uint8)))
        entry = schema.MetadataT(name="min_runtime_version", buffer=len(model.buffers) - 1)
        model.metadata = [entry]

    return edited(fully_connected(), edit)


@pytest.mark.parametrize(
    ("model", "needs"),
    [
        (fully_connected(), {"litert": "1.0.1", "tflite-runtime": "2.14.0"}),
        (with_oldest(b"1.14.0\0\0\0"), {"litert": "1.0.1", "tflite-runtime": "1.14.0"}),
        (with_oldest(b"../../x"), {"litert": "1.0.1", "tflite-runtime": "2.14.0"}),
        (with_oldest(b"99.0.0"), {"litert": "1.0.1", "tflite-runtime": "2.14.0"}),
        # version 13 is more than 2.14 has, and not more than LiteRT 2.3.0 has
        (with_version(13), {"litert": "2.3.0"}),
    ],
)
def test_runtimes_are_those_that_have_the_files_operators(tmp_path, model, needs):
    contents = read_contents(make_artifact(tmp_path / "a", model=model))
    assert {need.name: need.min_version for need in contents.runtimes} == needs


def test_what_no_runtime_has_is_refused_unless_somebody_names_one(tmp_path):
    artifact = make_artifact(tmp_path / "a", model=with_version(99))
    with pytest.raises(ConfigError, match="FULLY_CONNECTED up to version"):
        read_contents(artifact)
    need = RuntimeNeed(name="litert", min_version="9.0.0")
    assert read_contents(artifact, runtimes=[need]).runtimes == (need,)


def test_pte_of_another_quantization_is_not_offered_to_executorch(tmp_path):
    # its outputs are not the golden ones
    for quantization, has_it in (("one", True), ("separate", False)):
        folder = tmp_path / quantization
        artifact = make_artifact(folder, files={"model.pte": b"pte"}, quantization=quantization)
        runtimes = {need.name: need.min_version for need in read_contents(artifact).runtimes}
        assert ("executorch" in runtimes) == has_it
        assert runtimes.get("executorch", "1.5.1") == "1.5.1"


def test_a_bare_file_gets_golden_vectors_that_are_right(fleet, tmp_path):
    model = fully_connected(seed=5)
    (tmp_path / "My Model.tflite").write_bytes(model)
    contents = read_contents(tmp_path / "My Model.tflite", target="rpi4")
    shipped = ship(contents, fleet.folder, ALL, fleet.two)
    files = members(get(fleet, tmp_path, shipped.release.path)[0])
    assert shipped.release.name == "my-model"
    assert files["model.tflite"] == model
    with np.load(io.BytesIO(files["golden.npz"])) as golden:
        x, y = golden["input/x"], golden["output/y"]
    assert len(np.unique(x)) > 8
    np.testing.assert_array_equal(y, expected_fully_connected(x, model))
    manifest = json.loads(files["artifact.json"])
    assert {n: sha256(files[n]) for n in manifest["files"]} == {
        n: e["sha256"] for n, e in manifest["files"].items()
    }
    assert (
        JsonStrictValidator(SchemaVersion.V1_6).validate_str(files["bom.cdx.json"].decode()) is None
    )


# ---- offers


@pytest.fixture
def offered(fleet, artifact):
    publish(fleet, artifact, Order(channel="stable", share=0.05, groups=("east",)))
    return fleet


def the_offer(fleet, channel="stable", target="rpi4"):
    (offer,) = read_channels(open_repository(fleet.folder))[target, channel].offers
    return offer


def test_an_offer_grows_halts_goes_on_and_is_withdrawn_for_good(offered):
    def set_(**wanted):
        change_rollout(offered.folder, "keywords@1.0.0", Wanted(**wanted))
        return the_offer(offered)

    offer = set_(action="offer", share=0.5)
    assert (offer.share, offer.groups, offer.state) == (0.5, ("east",), "active")
    assert set_(action="offer", share=1.0, groups=()).groups == ()
    assert set_(action="halt").state == "halted"
    assert set_(action="offer", share=0.2).state == "active"
    assert set_(action="withdraw").state == "withdrawn"
    for action in ("offer", "halt"):
        with pytest.raises(ConfigError, match="withdrawn, which is for good"):
            set_(action=action)


def test_a_withdrawn_release_names_where_devices_go(fleet, artifact, tmp_path):
    publish(fleet, artifact)
    publish(fleet, make_artifact(tmp_path / "new", model=retrained()))
    (done,) = change_rollout(fleet.folder, "keywords@1.1.0", Wanted(action="withdraw"))
    assert done.successor is None, "a lower counter is no successor"
    assert done.earlier.label == "keywords@1.0.0"
    ship_again("keywords@1.0.0", fleet.folder, ALL, fleet.two)
    (done,) = change_rollout(fleet.folder, "keywords@1.1.0", Wanted(action="withdraw"))
    assert (done.successor[0].label, done.successor[0].counter) == ("keywords@1.0.0", 3)


def test_another_channel_has_to_be_named(offered):
    change_rollout(
        offered.folder, "keywords@1.0.0", Wanted(action="offer", share=0.1), channel="beta"
    )
    assert the_offer(offered, "beta").share == 0.1
    assert the_offer(offered).share == 0.05
    change_rollout(offered.folder, "keywords@1.0.0", Wanted(action="halt"))
    assert {the_offer(offered, c).state for c in ("beta", "stable")} == {"halted"}
    with pytest.raises(ConfigError, match="canary"):
        change_rollout(offered.folder, "keywords@1.0.0", Wanted(action="halt"), channel="canary")


def test_an_offer_needs_nobodys_passphrase_and_changes_no_release(offered):
    before = open_repository(offered.folder)
    change_rollout(offered.folder, "keywords@1.0.0", Wanted(action="offer", share=1.0))
    after = open_repository(offered.folder)
    changed = {n for n in after.roles if after.role(n).version != before.role(n).version}
    assert changed == {"rollout"}


def test_an_unknown_release_is_answered_by_the_nearest(offered):
    with pytest.raises(ConfigError, match=r"keywords@1\.0\.0"):
        change_rollout(offered.folder, "keyword@1.0.0", Wanted(action="halt"))
    for text in ("keywords", "keywords@1", "@1.0.0", "keywords@1.0.0+", "a b@1.0.0"):
        with pytest.raises(ConfigError, match="NAME@VERSION"):
            parse_selector(text)


# ---- the commands


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err


def test_ship_and_rollout_print_what_they_did(fleet, artifact, capsys, monkeypatch):
    monkeypatch.setenv("EDGESHRINK_PASSPHRASE", PASSPHRASE)
    code, out, err = run(capsys, "ship", artifact, "--repo", fleet.folder, "--rollout", "5%")
    assert code == 0, err
    assert "keywords@1.0.0 (counter 1) for rpi4" in out
    assert "signed by alice, bob" in out
    assert "offered in stable to 5 % of devices" in out
    code, out, _ = run(
        capsys, "fleet", "rollout", fleet.folder, "keywords@1.0.0", "--promote", "--json"
    )
    assert code == 0
    assert json.loads(out)[0]["after"]["share"] == 1.0
    code, out, _ = run(capsys, "fleet", "status", fleet.folder, "--json")
    assert code == 0
    (release,) = json.loads(out)["releases"]
    assert release["offers"][0]["channel"] == "stable"
    code, out, _ = run(capsys, "fleet", "status", fleet.folder)
    assert "keywords@1.0.0" in out
    assert "stable: 100 %" in out


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--rollout", "5"], 2, "0% to 100%"),
        (["--rollout", "101%"], 2, "0% to 100%"),
        (["--rollout", "nan%"], 2, "0% to 100%"),
        (["--not-before", "2026-12-01T06:00"], 2, "time zone"),
        (["--not-before", "soon"], 2, "2026-12-01T06:00Z"),
        (["--version", "1.3"], 2, "semantic version"),
        (["--version", "1.3.0+5"], 2, "semantic version"),
        (["--channel", "../x"], 2, "lower-case"),
        (["--group", "A B"], 2, "lower-case"),
        (["--runtime", "torch>=2"], 2, "litert"),
        (["--runtime", "executorch>=1.0"], 2, "model.pte"),
        (["--target", "rpi5"], 2, "rpi4"),
        (["--name", "../../x"], 2, "--name"),
        (["--counter", "0"], 2, "never take it"),
    ],
)
def test_a_bad_option_publishes_nothing(fleet, artifact, capsys, monkeypatch, options, code, words):
    monkeypatch.setenv("EDGESHRINK_PASSPHRASE", PASSPHRASE)
    before = (fleet.folder / "repository/metadata/timestamp.json").read_bytes()
    got, out, err = run(capsys, "ship", artifact, "--repo", fleet.folder, *options)
    assert (got, out) == (code, "")
    assert words in err
    assert (fleet.folder / "repository/metadata/timestamp.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "nothing was asked for"),
        (["--halt", "--withdraw"], "do not go together"),
        (["--to", "50%", "--promote"], "do not go together"),
        (["--group", "a", "--everyone"], "does not go with"),
        (["--halt", "--group", "a"], "is for all"),
    ],
)
def test_rollout_says_what_does_not_go_together(offered, capsys, options, words):
    code, out, err = run(capsys, "fleet", "rollout", offered.folder, "keywords@1.0.0", *options)
    assert (code, out) == (2, "")
    assert words in err


def test_a_second_publisher_is_refused_while_the_first_is_at_work(fleet, artifact):
    from edgeshrink.fleet.storage import locked

    with locked(fleet.folder), pytest.raises(EdgeshrinkError, match="another process"):
        publish(fleet, artifact)
