"""Whose checkpoints a build goes on from: those of the same steps up to the last that left one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from edgeshrink import build as building
from edgeshrink.budget import Budget
from edgeshrink.build import claim_steps
from edgeshrink.checkpoints import FILE, IDENTITY
from edgeshrink.compression import reached
from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.recipe import (
    Finetune,
    Prune,
    Quantize,
    Recipe,
    ScaleTemperature,
    TrainQuantized,
)
from edgeshrink.target import load_target
from edgeshrink.task import ArraySplit, Task, Training

STEPS = (Prune(ratio=0.5), Finetune(), TrainQuantized(), ScaleTemperature())


def leave(folder, *names: str) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / FILE).write_bytes(b"")


def test_the_last_step_that_left_something_is_found(tmp_path):
    assert reached(tmp_path / "none") == 0
    leave(tmp_path, "0-prune/round-1", "0-prune/round-2", "1-finetune")
    assert reached(tmp_path) == 2
    leave(tmp_path, "9-finetune", "10-qat", "notes")
    assert reached(tmp_path) == 11


def test_steps_behind_the_last_checkpoint_may_be_corrected(tmp_path):
    claim_steps(tmp_path, Recipe(steps=STEPS))
    leave(tmp_path, "1-finetune")
    claim_steps(tmp_path, Recipe(steps=STEPS[:3]))
    claim_steps(tmp_path, Recipe(steps=(*STEPS[:2], Quantize())))
    corrected = Recipe(steps=(*STEPS[:2], TrainQuantized(epochs=5), ScaleTemperature(n_bins=9)))
    claim_steps(tmp_path, corrected)
    stored = json.loads((tmp_path / IDENTITY).read_text())
    assert stored == {f"step {i + 1}": repr(step) for i, step in enumerate(corrected.steps)}
    leave(tmp_path, "2-qat")
    claim_steps(tmp_path, Recipe(steps=corrected.steps[:3]))
    with pytest.raises(ConfigError, match=r"another step 3 \(TrainQuantized\(epochs=5"):
        claim_steps(tmp_path, Recipe(steps=STEPS))


@pytest.mark.parametrize(
    ("steps", "number"),
    [
        ((Prune(ratio=0.4), *STEPS[1:]), 1),
        ((STEPS[0], Finetune(epochs=2), *STEPS[2:]), 2),
        ((STEPS[0], *STEPS[2:]), 2),
        ((*STEPS[1:],), 1),
        ((STEPS[0], Finetune(), *STEPS[1:]), 3),
    ],
)
def test_a_change_up_to_the_last_checkpoint_is_refused(tmp_path, steps, number):
    claim_steps(tmp_path, Recipe(steps=STEPS))
    leave(tmp_path, "0-prune/round-1", "2-qat")
    before = (tmp_path / IDENTITY).read_bytes()
    with pytest.raises(ConfigError, match=rf"belongs to another step {number} .* delete"):
        claim_steps(tmp_path, Recipe(steps=steps))
    assert (tmp_path / IDENTITY).read_bytes() == before


def test_a_build_that_failed_late_goes_on_with_the_step_corrected(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((32, 6)).astype(np.float32)
    split = ArraySplit(inputs=(inputs,), targets=np.arange(32) % 3, batch_size=8)

    def build(*steps):
        torch.manual_seed(0)
        task = Task(
            model=nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval(),
            example_inputs=(torch.zeros(1, 6),),
            data={"train": split, "validation": split},
            loss=nn.functional.cross_entropy,
            training=Training(epochs=1),
        )
        options = {"budget": Budget(), "out": tmp_path / "out"}
        building.build(task, load_target("rpi4"), recipe=Recipe(steps=steps), **options)

    def fail(*_args, **_more):
        raise ModelError("conversion", "fails", "correct the step")

    monkeypatch.setattr(building, "export", fail)
    with pytest.raises(ModelError, match="conversion"):
        build(Finetune(), Quantize(), ScaleTemperature())
    kept = tmp_path / "out.checkpoints"
    times = {path: path.stat().st_mtime_ns for path in kept.rglob(FILE)}
    assert len(times) == 2
    with pytest.raises(ModelError, match="conversion"):
        build(Finetune(), Quantize(n_samples=16))
    assert {path: path.stat().st_mtime_ns for path in kept.rglob(FILE)} == times
    with pytest.raises(ConfigError, match="belongs to another step 1"):
        build(Finetune(epochs=2), Quantize(n_samples=16))
