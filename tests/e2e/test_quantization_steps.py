"""What training and adapted constants end in becomes two files that agree to the last bit."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest

from edgeshrink.compression.qat import apply
from edgeshrink.compression.steps import Context
from edgeshrink.exporting import Exported, export
from edgeshrink.predict import pte_predict, tflite_predict
from edgeshrink.recipe import Quantize, TrainQuantized
from edgeshrink.runtimes import open_model
from edgeshrink.scoring import score
from edgeshrink.target import load_target
from edgeshrink.task import Task
from edgeshrink.task_loader import load_task
from edgeshrink.training import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits(repo) -> Task:
    task = load_task(
        str(repo / "examples" / "digits"), seed=0, settings={"epochs": "6", "width": "8"}
    )
    train(task, seed=0)
    return task


def raw_outputs(exported: Exported, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes of both files, on inputs that both store alike."""
    (spec,), (sink,) = exported.inputs, exported.outputs
    stored = np.round(images.transpose(0, 2, 3, 1) / spec.scale) + spec.zero_point
    stored = np.clip(stored, -128, 127).astype(np.int8)
    real = (stored.astype(np.float32) - np.float32(spec.zero_point)) * np.float32(spec.scale)
    with open_model(exported.tflite, "litert") as runner:
        (raw,) = runner.run(stored)
    with open_model(exported.pte, "executorch") as runner:
        (floats,) = runner.run(np.ascontiguousarray(real.transpose(0, 3, 1, 2)))
    again = np.round(floats / np.float32(sink.scale)) + sink.zero_point
    return raw, np.clip(again, -128, 127).astype(np.int8)


def file_scores(task: Task, exported: Exported) -> tuple[float, float]:
    inputs, outputs, structure = exported.inputs, exported.outputs, exported.structure
    with open_model(exported.tflite, "litert") as runner:
        tflite = score(task, tflite_predict(runner, inputs, outputs, structure), "validation")
    with open_model(exported.pte, "executorch") as runner:
        pte = score(task, pte_predict(runner, outputs, structure), "validation")
    return tflite, pte


def exported_with(task: Task, step, quantized=None) -> Exported:
    return export(
        task, load_target("rpi4"), step,
        progress=lambda share, what: None, quantized=quantized,
    )  # fmt: skip


@pytest.mark.parametrize("learned_scales", [False, True])
def test_trained_quantization_becomes_two_equal_files_that_are_no_worse(digits, learned_scales):
    step = TrainQuantized(epochs=2, learning_rate=1e-3, learned_scales=learned_scales)
    changed = apply(
        copy.deepcopy(digits.model), step,
        Context(task=digits, target=load_target("rpi4"), seed=0),
    )  # fmt: skip
    result = exported_with(digits, step, quantized=changed.model.quantized)
    assert result.quantization == "one"
    assert result.reference is changed.model.quantized.reference
    assert result.reference is not digits.model
    assert {a.engine: a.largest for a in result.agreements}["executorch"] == 0
    images = np.concatenate([inputs[0] for inputs, _ in digits.data["test"]])
    one, other = raw_outputs(result, images)
    assert np.array_equal(one, other)
    plain = exported_with(digits, Quantize(observer=step.observer))
    of_training, of_rounding = file_scores(digits, result), file_scores(digits, plain)
    assert min(of_training) >= max(of_rounding)
    again = exported_with(digits, step, quantized=changed.model.quantized)
    assert again.tflite == result.tflite
    assert again.pte == result.pte


@pytest.mark.parametrize(
    "step",
    [
        Quantize(adaround=True, observer="mse"),
        Quantize(equalize=True, correct_bias=True, observer="percentile"),
        Quantize(observer="entropy"),
    ],
    ids=lambda step: step.observer,
)
def test_adapted_constants_are_the_same_integers_in_both_files(digits, step):
    result = exported_with(replace(digits), step)
    images = np.concatenate([inputs[0] for inputs, _ in digits.data["test"]])
    one, other = raw_outputs(result, images)
    assert np.array_equal(one, other)
    assert len(np.unique(one)) > 40
    tflite, pte = file_scores(digits, result)
    assert min(tflite, pte) > 0.7
