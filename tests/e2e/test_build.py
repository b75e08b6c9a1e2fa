"""Builds from end to end: what is promised of the artifact, the table and the JSON document."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from torch import nn

from edgeshrink.artifact import read_artifact
from edgeshrink.budget import Budget
from edgeshrink.build import build, exceeded_limits, unchecked_limits
from edgeshrink.errors import BudgetError
from edgeshrink.profile import Figure, Overrun, Profile, exact
from edgeshrink.recipe import Quantize, Recipe
from edgeshrink.target import load_target
from edgeshrink.task import ArraySplit, Metric, Task
from tests.e2e.commands import call, run

FILES = {
    "artifact.json", "audit.json", "golden.npz", "model.pte", "model.tflite", "profile.json",
    "recipe.toml", "report.html", "MODEL_CARD.md",
}  # fmt: skip


# ---- limits


def profile(**figures: Figure) -> Profile:
    return Profile(
        target="rpi4", engine="tflite", model_path="m", model_sha256="", figures=figures, ops=()
    )


def test_a_drop_at_the_limit_is_allowed_and_one_above_is_not():
    budget = Budget(accuracy_drop=0.25)
    assert exceeded_limits(profile(), budget, 0.25) == []
    assert exceeded_limits(profile(), budget, 0.5) == [("drop", 0.5, 0.25, "of the metric")]
    assert exceeded_limits(profile(), budget, -0.5) == []


def test_overruns_of_the_profile_come_before_the_drop():
    over = Overrun(what="ram", need=3, limit=2, unit="B")
    found = Profile(**{**vars(profile()), "overruns": (over,)})
    exceeded = exceeded_limits(found, Budget(accuracy_drop=0), 1.0)
    assert [what for what, *_ in exceeded] == ["ram", "drop"]


def test_limits_without_a_figure_are_listed_as_unchecked():
    budget = Budget(ram_bytes=1, flash_bytes=1, latency_ms=1, accuracy_drop=1)
    found = profile(ram_bytes=exact(1, "B"))
    assert unchecked_limits(found, budget, None) == ("flash", "latency", "drop")
    assert unchecked_limits(found, Budget(ram_bytes=1), None) == ()


# ---- a new task, twice, in fresh processes


class Fresh:
    """A task by `init` in a folder with spaces and other letters, built twice with one seed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "meine erste Übung 手"
        self.init = run("init", self.folder)
        options = ("--target", "rpi4", "--seed", 5, "--set", "epochs=4", "--budget", "drop=0.1")
        self.table = run("build", *options, cwd=self.folder)
        self.json = run("build", self.folder, *options, "--out", folder / "second", "--json")
        self.first = self.folder / "build" / "meine-erste-Übung-手-rpi4"
        self.second = folder / "second"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> Fresh:
    return Fresh(tmp_path_factory.mktemp("fresh"))


@pytest.mark.slow
def test_a_new_task_builds_and_prints_a_table(fresh):
    assert fresh.init.code == 0
    assert fresh.table.code == 0, fresh.table.err
    assert fresh.table.err == "", "progress is silent where stderr is no terminal"
    for words in ("float model", "model.tflite", "model.pte", "RAM", "latency", "budget met"):
        assert words in fresh.table.out
    assert {p.name for p in fresh.first.iterdir()} == FILES


@pytest.mark.slow
def test_json_is_one_document_with_the_promised_keys(fresh):
    assert fresh.json.code == 0, fresh.json.err
    document = json.loads(fresh.json.out)
    assert document["artifact"] == str(fresh.second)
    assert document["scores"].keys() == {"float", "tflite", "pte"}
    assert document["drop"] <= 0.1
    assert document["budget"]["met"] is True
    found = document["profile"]
    assert found.keys() >= {"target", "engine", "model", "figures", "ops", "budget"}
    assert found["target"] == "rpi4"
    assert found["model"].keys() == {"path", "sha256"}
    assert found["figures"].keys() >= {"latency_ms", "flash_bytes", "ram_bytes", "macs"}
    for figure in found["figures"].values():
        assert figure.keys() >= {"value", "unit", "how", "low", "high"}
        assert figure["low"] <= figure["value"] <= figure["high"]
        assert ("validated" in figure) == (figure["how"] == "modelled")
    for op in found["ops"]:
        assert op.keys() >= {"index", "kind", "name", "macs", "latency_ms", "flash_bytes"}
    assert found["budget"] == {"met": True, "overruns": []}
    assert json.loads((fresh.second / "profile.json").read_text()) == found
    size = (fresh.second / "model.tflite").stat().st_size
    assert found["figures"]["flash_bytes"]["value"] == size


@pytest.mark.slow
@pytest.mark.parametrize("file", ["model.tflite", "model.pte", "golden.npz", "recipe.toml"])
def test_equal_seeds_give_equal_bytes_in_fresh_processes(fresh, file):
    assert (fresh.first / file).read_bytes() == (fresh.second / file).read_bytes()


@pytest.mark.slow
def test_the_manifest_lists_every_file_and_no_path_of_this_machine(fresh):
    artifact = read_artifact(fresh.first)  # checks the digests
    assert set(artifact.files) == FILES - {"artifact.json"}
    assert artifact.quantization == "one"
    assert artifact.seed == 5
    for path in (*fresh.first.glob("*.json"), fresh.first / "recipe.toml"):
        assert str(fresh.folder) not in path.read_text("utf-8")


@pytest.mark.slow
def test_golden_samples_are_what_the_file_computes(fresh):
    golden = np.load(fresh.first / "golden.npz")
    runner = Interpreter(model_path=str(fresh.first / "model.tflite"))
    runner.allocate_tensors()
    (source,), (sink,) = runner.get_input_details(), runner.get_output_details()
    assert source["dtype"] == sink["dtype"] == np.int8
    assert golden["input/image"].dtype == np.int8
    assert len(golden["input/image"]) == len(golden["output/output"]) > 1
    for x, y in zip(golden["input/image"], golden["output/output"], strict=True):
        runner.set_tensor(source["index"], x[None])
        runner.invoke()
        assert np.array_equal(runner.get_tensor(sink["index"])[0], y)


@pytest.mark.slow
def test_an_artifact_can_be_profiled_again_with_the_same_model(fresh, capfd):
    result = call(capfd, "profile", fresh.first, "--target", "rpi4", "--json")
    assert result.code == 0, result.err
    again, before = json.loads(result.out), json.loads(fresh.json.out)["profile"]
    assert again["model"]["sha256"] == before["model"]["sha256"]
    assert again["figures"]["macs"] == before["figures"]["macs"]
    assert again["figures"]["latency_ms"] == before["figures"]["latency_ms"]


@pytest.mark.slow
def test_a_missed_budget_leaves_the_candidate_aside_and_the_old_artifact_as_it_was(
    fresh, tmp_path, capfd
):
    out = tmp_path / "out"
    out.mkdir()
    content = {"artifact.json": b"{}", "model.tflite": b"last good"}
    for name, data in content.items():
        (out / name).write_bytes(data)
    recipe = fresh.folder.parent / "recipe.toml"  # with one there is no plan that refuses at once
    recipe.write_text('[[steps]]\nstep = "quantize"\n')
    arguments = ("build", fresh.folder, "--target", "rpi4", "--set", "epochs=1", "--out", out)
    limits = ("--recipe", recipe, "--budget", "latency=1us,drop=1")
    result = call(capfd, *arguments, *limits, "--json")
    assert result.code == 4, result.err
    assert result.out == ""
    (message,) = result.err.splitlines()
    for words in ("latency needs", "allows 0.001 ms", f"{out}.rejected"):
        assert words in message
    assert {p.name: p.read_bytes() for p in out.iterdir()} == content
    rejected = tmp_path / "out.rejected"
    assert sorted(tmp_path.iterdir()) == [out, rejected]
    assert {p.name for p in rejected.iterdir()} == FILES
    read_artifact(rejected)
    profile = json.loads((rejected / "profile.json").read_text())
    assert profile["budget"]["met"] is False
    assert profile["budget"]["overruns"][0]["what"] == "latency"


# ---- models of every shape


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()
        )  # (batch, 8 * 6 * 5)
        self.kind, self.size = nn.Linear(240 + 4, 5), nn.Linear(240, 2)

    def forward(self, image, context):
        features = self.conv(image)
        return {"kind": self.kind(torch.cat([features, context], 1)), "size": self.size(features)}


class Audio(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 8, 9, stride=4, padding=4), nn.BatchNorm1d(8), nn.ReLU(),
            nn.Conv1d(8, 16, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
            nn.Linear(16, 6),
        )  # fmt: skip

    def forward(self, wave):
        return self.layers(wave)


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(6, 12, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, steps):
        states, last = self.gru(steps)
        return self.head(states[:, -1]), last.squeeze(0)


def untrained_task(model: nn.Module, *shapes: tuple[int, ...]) -> Task:
    """A task whose score is how far outputs lie from the float model's, in shares of its range."""
    rng = np.random.default_rng(0)
    loudness = rng.uniform(0.2, 2, 48)  # else the mean over a sample hardly varies
    inputs = tuple(
        np.stack([x * rng.standard_normal(shape) for x in loudness]).astype(np.float32)
        for shape in shapes
    )
    with torch.no_grad():
        expected = model.eval()(*map(torch.from_numpy, inputs))
    split = ArraySplit(inputs=inputs, batch_size=20)

    def error(got, wanted) -> float:
        assert got.shape == tuple(wanted.shape)
        wanted = wanted.numpy()
        return float(np.sqrt(np.mean((got - wanted) ** 2)) / np.ptp(wanted))

    def evaluate(predict, name: str) -> float:
        results, start, worst = [predict(*batch) for batch, _ in split], 0, 0.0
        for result in results:
            parts = result if isinstance(result, (dict, tuple)) else {0: result}
            assert isinstance(expected, (dict, tuple)) == isinstance(result, (dict, tuple))
            keys = parts if isinstance(parts, dict) else range(len(parts))
            whole = expected if isinstance(expected, (dict, tuple)) else {0: expected}
            assert len(parts) == len(whole)
            for key in keys:
                n = len(parts[key])
                worst = max(worst, error(parts[key], whole[key][start : start + n]))
            start += n
        assert start == 48
        return worst

    return Task(
        model=model,
        example_inputs=tuple(torch.from_numpy(a[:1]) for a in inputs),
        data={"calibration": split, "validation": split, "test": split},
        evaluate=evaluate,
        metric=Metric(name="error", direction="lower"),
        name="shapes",
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "shapes", "structure", "names"),
    [
        (TwoInputs, [(3, 12, 10), (4,)], "dict", (["image", "context"], ["kind", "size"])),
        (Audio, [(1, 400)], "single", (["wave"], ["output"])),
        (Sequence, [(4, 6)], "tuple", (["steps"], ["output_0", "output_1"])),
    ],
    ids=["two inputs and a dict", "audio", "GRU"],
)
def test_models_of_every_shape_build_to_int8(tmp_path, make, shapes, structure, names):
    torch.manual_seed(0)
    task = untrained_task(make(), *shapes)
    budget = Budget(accuracy_drop=0.04)
    out = tmp_path / "out"
    built = build(task, load_target("rpi4"), recipe=Recipe(), budget=budget, out=out)
    assert built.scores["float"] < 1e-5
    assert 0 < built.scores["tflite"] < 0.04
    assert 0 < built.scores["pte"] < 0.04
    artifact = read_artifact(out)
    assert artifact.structure == structure
    assert [spec.name for spec in artifact.inputs] == names[0]
    assert [spec.name for spec in artifact.outputs] == names[1]
    assert {spec.dtype for spec in (*artifact.inputs, *artifact.outputs)} == {"int8"}
    golden = np.load(out / "golden.npz")
    assert set(golden.files) == {f"input/{n}" for n in names[0]} | {f"output/{n}" for n in names[1]}


@pytest.mark.slow
def test_a_float_recipe_keeps_the_model_as_it_is(tmp_path):
    torch.manual_seed(0)
    task = untrained_task(TwoInputs(), (3, 12, 10), (4,))
    recipe = Recipe(steps=(Quantize(dtype="float32"),))
    out = tmp_path / "out"
    built = build(task, load_target("rpi4"), recipe=recipe, budget=Budget(), out=out)
    assert built.scores["tflite"] < 1e-5
    assert built.scores["pte"] < 1e-5
    artifact = read_artifact(out)
    assert artifact.quantization == "none"
    assert {spec.dtype for spec in (*artifact.inputs, *artifact.outputs)} == {"float32"}


@pytest.mark.slow
def test_a_microcontroller_gets_a_firmware_that_is_scored_and_held_to_every_limit(tmp_path):
    torch.manual_seed(0)
    task, target = untrained_task(Audio(), (1, 400)), load_target("nucleo-l4r5zi")
    out, recipe = tmp_path / "out", Recipe()
    built = build(task, target, recipe=recipe, budget=Budget(accuracy_drop=0.1), out=out)
    assert {p.name for p in out.iterdir()} == FILES - {"model.pte"} | {"firmware"}
    assert built.scores.keys() == {"float", "tflite", "c"}
    assert {"ram_bytes", "flash_bytes", "latency_ms", "stack_bytes"} <= set(built.profile.figures)
    assert built.unchecked == ()
    for limit in ({"ram_bytes": 1}, {"flash_bytes": 1}, {"latency_ms": 1e-9}):
        with pytest.raises(BudgetError, match="rejected"):
            build(task, target, recipe=recipe, budget=Budget(**limit), out=out)


@pytest.mark.slow
def test_an_exported_program_builds_with_calibration_samples(tmp_path, capfd):
    torch.manual_seed(0)
    model = Audio().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(model, (torch.zeros(1, 1, 400),)), tmp_path / "a.pt2")
    waves = np.random.default_rng(0).standard_normal((20, 1, 400)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", wave=waves)
    arguments = ("build", tmp_path / "a.pt2", "--calibration", tmp_path / "samples.npz")
    result = call(capfd, *arguments, "--target", "rpi4", "--out", tmp_path / "out", "--json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert document["scores"] == {}
    assert document["drop"] is None
    assert "drop" in document["budget"]["unchecked"]
    artifact = read_artifact(tmp_path / "out")
    assert (artifact.name, artifact.inputs[0].name) == ("a", "wave")
    spec, sink = artifact.inputs[0], artifact.outputs[0]
    golden = np.load(tmp_path / "out" / "golden.npz")
    codes = golden["input/wave"].astype(np.float32)
    values = ((codes - spec.zero_point) * spec.scale).reshape(-1, 1, 400)
    with torch.no_grad():
        expected = model(torch.from_numpy(values)).numpy()
    got = (golden["output/output"].astype(np.float32) - sink.zero_point) * sink.scale
    assert np.sqrt(np.mean((got - expected) ** 2)) < 0.04 * np.ptp(expected)
