"""One scorer: what `evaluate` returns is a finite number, or an error says what it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.scoring import score
from edgeshrink.task import ArraySplit, Task

SAMPLES = ArraySplit(inputs=(np.arange(6, dtype=np.float32).reshape(6, 1),), batch_size=4)


def task(evaluate) -> Task:
    data = {"validation": SAMPLES, "test": SAMPLES}
    example = torch.zeros(1, 1)
    return Task(
        model=nn.Identity(), example_inputs=(example,), data=data, evaluate=evaluate, name="t"
    )


def double(x):
    return 2 * x


def test_evaluate_gets_the_callable_and_the_split():
    def evaluate(predict, split):
        assert split == "test"
        return sum(float(predict(*inputs).sum()) for inputs, _ in SAMPLES)

    assert score(task(evaluate), double, "test") == 30.0


@pytest.mark.parametrize(
    "value",
    [3, 3.0, np.float32(3), np.int64(3), np.array(3.0), np.array([3.0]), torch.tensor(3.0)],
)
def test_any_kind_of_number_becomes_a_float(value):
    got = score(task(lambda predict, split: value), double, "test")
    assert got == 3.0
    assert type(got) is float


@pytest.mark.parametrize("value", [None, "0.9", True, (0.9, 0.8), np.ones(2), torch.ones(2, 2), 1j])
def test_what_is_not_one_number_is_refused(value):
    with pytest.raises(ConfigError, match="it must return one number"):
        score(task(lambda predict, split: value), double, "test")


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float32("-inf"), torch.tensor(math.nan)])
def test_a_score_that_is_not_finite_is_a_fault_of_the_model(value):
    with pytest.raises(ModelError, match="on 'test'") as caught:
        score(task(lambda predict, split: value), double, "test")
    assert "NaN" in caught.value.fix


def test_an_exception_names_task_and_split():
    def evaluate(predict, split):
        raise KeyError("logits")

    with pytest.raises(ConfigError, match="KeyError: 'logits'") as caught:
        score(task(evaluate), double, "validation")
    assert caught.value.where == "task 't': evaluate(predict, 'validation')"


def test_an_error_of_ours_inside_evaluate_passes_through():
    def predict(x):
        raise ModelError("model.tflite", "crashed", "look")

    def evaluate(predict, split):
        return [predict(*inputs) for inputs, _ in SAMPLES]

    with pytest.raises(ModelError, match=r"model\.tflite: crashed"):
        score(task(evaluate), predict, "test")


def test_a_task_without_score_and_an_unknown_split_are_refused():
    with pytest.raises(ConfigError, match="is missing"):
        score(task(None), double, "test")
    with pytest.raises(ConfigError, match="no split 'train'"):
        score(task(lambda predict, split: 1), double, "train")
