"""Builds by a recipe, from end to end: what is printed, what is left, what an interrupt costs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeshrink.artifact import read_artifact
from edgeshrink.recipe import STEPS
from edgeshrink.scoring import score
from edgeshrink.task_loader import load_task
from edgeshrink.training import float_predict, train
from tests.e2e.commands import call, run, write_task

RECIPE = """
[[steps]]
step = "prune"
macs = 0.5

[[steps]]
step = "finetune"
epochs = {epochs}
learning_rate = 5e-3
distill = "soft"

[[steps]]
step = "{last}"

[[steps]]
step = "temperature"
"""


def write_recipe(folder: Path, *, epochs: int = 8, last: str = "quantize") -> Path:
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(epochs=epochs, last=last), "utf-8")
    return path


def build(repo: Path, recipe: Path, out: Path, *more: object) -> tuple[object, ...]:
    return (
        "build", repo / "examples" / "digits", "--target", "rpi4", "--recipe", recipe,
        "--out", out, "--set", "epochs=8", "--budget", "drop=0.05", *more,
    )  # fmt: skip


class Whole:
    """Digits, pruned and distilled, built without an interrupt."""

    def __init__(self, folder: Path, repo: Path) -> None:
        self.recipe = write_recipe(folder)
        self.out = folder / "out"
        self.result = run(*build(repo, self.recipe, self.out))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, repo) -> Whole:
    return Whole(tmp_path_factory.mktemp("whole"), repo)


@pytest.mark.slow
def test_a_recipe_builds_and_prints_what_each_step_did(whole):
    assert whole.result.code == 0, whole.result.err
    lines = whole.result.out.splitlines()
    table = [line.split() for line in lines if line.startswith(("  before", "  prune ", "  finet"))]
    before, prune, finetune = table[:3]
    assert [int(x.replace(",", "")) for x in before[1:3]] == [14458, 230720]
    assert int(prune[2].replace(",", "")) <= 230720 / 2
    assert finetune[1:4] == prune[1:4], "training changes no size"
    assert float(prune[4]) < float(finetune[4])
    for words in ("channels removed", "soft targets of the float model", "divide logits by"):
        assert words in whole.result.out
    assert whole.result.err == ""


@pytest.mark.slow
def test_the_audit_has_every_step_and_the_artifact_the_temperature(whole):
    audit = json.loads((whole.out / "audit.json").read_text())
    names = [report["step"]["step"] for report in audit["steps"]]
    assert names == ["prune", "finetune", "temperature"]
    artifact = read_artifact(whole.out)
    assert artifact.temperature == audit["steps"][-1]["details"]["temperature"]
    assert artifact.temperature > 0
    assert [step["step"] for step in artifact.recipe["steps"]] == [
        "prune", "finetune", "quantize", "temperature",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_float_score_is_that_of_the_uncompressed_model(whole, repo):
    task = load_task(str(repo / "examples" / "digits"), settings={"epochs": "8"}, seed=0)
    train(task, seed=0)
    expected = score(task, float_predict(task.model), "test")
    assert read_artifact(whole.out).scores["float"] == expected


@pytest.mark.slow
def test_checkpoints_are_gone_when_the_build_is_done(whole):
    assert {p.name for p in whole.out.parent.iterdir()} == {"out", "recipe.toml"}


def kill(at: Path, *arguments: object) -> None:
    """Run a command, and kill it when the checkpoint `at` is there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeshrink", *map(str, arguments)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    limit = time.monotonic() + 300
    try:
        while not at.exists() and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert at.exists(), "it never came so far"


@pytest.mark.slow
def test_a_build_killed_in_fine_tuning_ends_with_the_same_bytes(whole, repo, tmp_path):
    recipe, out = write_recipe(tmp_path), tmp_path / "out"
    arguments = build(repo, recipe, out, "--json")
    kept = tmp_path / "out.checkpoints"
    kill(kept / "steps" / "1-finetune" / "checkpoint.pt", *arguments)
    assert not out.exists()
    trained = (kept / "float" / "checkpoint.pt").stat().st_mtime_ns
    again = run(*arguments)
    assert again.code == 0, again.err
    for file in ("model.tflite", "model.pte", "golden.npz"):
        assert (out / file).read_bytes() == (whole.out / file).read_bytes(), file
    assert trained < (out / "model.tflite").stat().st_mtime_ns
    assert not kept.exists()
    steps = json.loads(again.out)["steps"]
    assert steps == json.loads((out / "audit.json").read_text())["steps"]


@pytest.mark.slow
def test_a_build_killed_in_quantization_aware_training_ends_with_the_same_bytes(repo, tmp_path):
    recipe = write_recipe(tmp_path, epochs=1, last="qat")
    options = ("--set", "epochs=2", "--budget", "drop=1")
    outs = {name: tmp_path / name / "out" for name in ("whole", "cut")}
    whole = run(*build(repo, recipe, outs["whole"], *options))
    assert (whole.code, whole.err) == (0, "")
    arguments = build(repo, recipe, outs["cut"], *options)
    kept = tmp_path / "cut" / "out.checkpoints"
    kill(kept / "steps" / "2-qat" / "checkpoint.pt", *arguments)
    again = run(*arguments)
    assert again.code == 0, again.err
    for file in ("model.tflite", "model.pte", "golden.npz"):
        assert (outs["cut"] / file).read_bytes() == (outs["whole"] / file).read_bytes(), file


@pytest.mark.slow
def test_checkpoints_of_another_recipe_are_refused_and_left_as_they_are(repo, tmp_path, capfd):
    recipe, out = write_recipe(tmp_path), tmp_path / "out"
    kept = tmp_path / "out.checkpoints"
    kill(kept / "steps" / "1-finetune" / "checkpoint.pt", *build(repo, recipe, out))
    content = {p: p.read_bytes() for p in kept.rglob("*") if p.is_file()}
    write_recipe(tmp_path, epochs=9)
    result = call(capfd, *build(repo, recipe, out))
    assert result.code == 2
    for words in ("belongs to another step 2", "epochs=8", "epochs=9", f"delete {kept / 'steps'}"):
        assert words in result.err
    assert {p: p.read_bytes() for p in kept.rglob("*") if p.is_file()} == content
    assert not out.exists()


TEACHER = """teacher = nn.Sequential(nn.Linear(4, 3))
    model.layer.weight.data.zero_()
    teacher[0].weight.data = torch.eye(3, 4)
    teacher[0].bias.data.zero_()"""


@pytest.mark.slow
def test_a_student_learns_from_the_tasks_teacher_and_is_measured_against_it(tmp_path, capfd):
    folder = write_task(tmp_path / "task", body=TEACHER)
    source = (folder / "task.py").read_text("utf-8")
    source = source.replace("training=training,", "teacher=teacher,")
    (folder / "task.py").write_text(source, "utf-8")
    recipe = tmp_path / "recipe.toml"
    step = 'step = "finetune"\nepochs = 60\nlearning_rate = 0.1\ndistill = "decoupled"'
    recipe.write_text(f'[[steps]]\n{step}\n[[steps]]\nstep = "quantize"\n', "utf-8")
    result = call(
        capfd, "build", folder, "--target", "rpi4", "--recipe", recipe,
        "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    document = json.loads(result.out)
    scores = document["scores"]
    assert scores["teacher"] == 1.0, "labels are the largest of the first three inputs"
    assert scores["float"] < 0.6
    assert scores["tflite"] > 0.85
    assert document["drop"] == 1.0 - min(scores["tflite"], scores["pte"])


def test_a_step_that_the_task_can_not_do_is_refused_before_any_training(tmp_path, capfd):
    task = write_task(tmp_path / "task", body="loss, training = None, None")
    result = call(
        capfd, "build", task, "--target", "rpi4", "--recipe", write_recipe(tmp_path),
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.code == 2
    assert "recipe step 2 (finetune): training needs a loss" in result.err
    assert not (tmp_path / "out.checkpoints").exists()


def test_the_help_names_every_step(capfd):
    result = call(capfd, "build", "--help")

    assert all(word in result.out for word in STEPS)
