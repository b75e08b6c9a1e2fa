"""A task is checked at the door: each part that can be wrong is named with its remedy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edgeshrink.budget import Budget
from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.task import ArraySplit, Metric, Task, Training
from edgeshrink.task_checks import check_task, check_weights


def split(n: int = 4, **changes) -> ArraySplit:
    return ArraySplit(
        **{"inputs": (np.ones((n, 3), np.float32),), "targets": np.zeros(n)} | changes
    )


def good(**changes) -> Task:
    parts = {
        "model": nn.Linear(3, 2),
        "example_inputs": (torch.ones(1, 3),),
        "data": {name: split() for name in ("train", "validation", "test")},
        "evaluate": lambda predict, name: 0.0,
    }
    return Task(**parts | changes)


def refusal(task, kind=ConfigError) -> ConfigError | ModelError:
    with pytest.raises(kind) as caught:
        check_task(task, "task.py:build", folder=None)
    assert caught.value.where.startswith("task.py:build")
    assert caught.value.what
    assert caught.value.fix
    return caught.value


def with_data(**splits) -> Task:
    return good(data={"train": split(), "validation": split(), "test": split()} | splits)


def test_a_good_task_passes_in_eval_mode_with_a_tuple_of_examples():
    task = good(example_inputs=[torch.ones(1, 3)], model=nn.Linear(3, 2).train())
    checked = check_task(task, "task.py:build", folder=None)
    assert isinstance(checked.example_inputs, tuple)
    assert not checked.model.training


@pytest.mark.parametrize("value", [None, 3, nn.Linear(1, 1), {"model": nn.Linear(1, 1)}])
def test_anything_but_a_task_is_refused(value):
    assert "not a Task" in refusal(value).what


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": nn.Linear}, "not a torch.nn.Module"),
        ({"evaluate": 0.5}, "evaluate is a builtins.float"),
        ({"loss": "cross_entropy"}, "loss is a builtins.str"),
        ({"metric": "accuracy"}, "metric is a builtins.str"),
        ({"metric": Metric(direction="up")}, "metric.direction is 'up'"),
        ({"budget": {"ram": 3}}, "budget is a builtins.dict"),
        ({"training": 3, "loss": nn.functional.mse_loss}, "training is a builtins.int"),
        ({"training": Training(epochs=1)}, "training but no loss"),
    ],
)
def test_a_part_of_the_wrong_kind_is_named(changes, words):
    assert words in refusal(good(**changes)).what


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"epochs": 1.5},
        {"epochs": True},
        {"learning_rate": 0},
        {"learning_rate": math.nan},
        {"weight_decay": -1},
        {"warmup_share": 1},
    ],
)
def test_a_training_number_out_of_range_is_named_with_its_range(change):
    training = replace(Training(epochs=1), **change)
    error = refusal(good(training=training, loss=nn.functional.mse_loss))
    assert f"training.{next(iter(change))}" in error.what
    assert "in [" in error.fix


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optimizer": "adam"}, "training.optimizer is 'adam'"),
        ({"precision": "float16"}, "training.precision is 'float16'"),
        ({"keep": "first"}, "training.keep is 'first'"),
        ({"keep": "last", "patience": 2}, "has patience"),
    ],
)
def test_a_choice_of_training_that_there_is_not_is_named(change, words):
    training = replace(Training(epochs=1), **change)
    assert words in refusal(good(training=training, loss=nn.functional.mse_loss)).what


@pytest.mark.parametrize(
    ("examples", "words"),
    [
        (torch.ones(1, 3), "is a tensor"),
        ((), "is ()"),
        ((np.ones((1, 3), np.float32),), "is a numpy.ndarray"),
        ((torch.tensor(1.0),), "has the shape ()"),
        ((torch.ones(2, 3),), "has the shape (2, 3)"),
        ((torch.full((1, 3), torch.nan),), "NaN or infinity"),
        ((torch.ones(1, 3, device="meta"),), "is on meta"),
    ],
)
def test_wrong_example_inputs_say_what_they_are(examples, words):
    assert words in refusal(good(example_inputs=examples)).what


def test_data_without_calibration_and_train_is_refused_with_a_count_to_aim_at():
    error = refusal(good(data={"validation": split(), "test": split()}))
    assert "neither 'calibration' nor 'train'" in error.what
    assert "16 to 512" in error.fix


@pytest.mark.parametrize("missing", ["validation", "test"])
def test_a_score_needs_its_splits(missing):
    data = {name: split() for name in ("train", "validation", "test") if name != missing}
    assert f"no split {missing!r}" in refusal(good(data=data)).what


def test_an_unknown_split_names_the_nearest():
    assert "'validation'" in refusal(with_data(valdation=split())).fix


def test_data_that_is_no_mapping_is_refused():
    assert "data is a builtins.list" in refusal(good(data=[split()])).what


class Batches:
    def __init__(self, *batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


X = np.ones((4, 3), np.float32)


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        (3, "is a builtins.int"),
        (iter([((X,), None)]), "only once"),
        (Batches(), "is empty"),
        (Batches(X), "yields a numpy.ndarray"),
        (Batches((X, None)), "inputs that are a numpy.ndarray"),
        (Batches(([X], None)), "inputs that are a builtins.list"),
        (Batches(((torch.ones(4, 3),), None)), "inputs that are"),
        (Batches(((X, X), None)), "2 inputs, example_inputs has 1"),
        (Batches(((X.astype(np.float64),), None)), "is float64"),
        (Batches(((X[:, :2],), None)), "samples of shape (2,)"),
        (Batches(((X[:0],), None)), "is empty"),
        (Batches(((X * np.inf,), None)), "NaN or infinity"),
    ],
)
def test_a_wrong_split_says_which_one_and_what_it_yields(batches, words):
    error = refusal(with_data(train=batches))
    assert "data['train']" in error.where
    assert words in error.what


def test_an_exception_in_a_split_is_ours():
    class Broken:
        def __iter__(self):
            raise OSError("file gone")

    assert "OSError: file gone" in refusal(with_data(test=Broken())).what


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_spoilt_weight_is_named_with_a_count(value):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[1].weight.data[1, 2] = value
    error = refusal(good(model=model), ModelError)
    assert error.where == "task.py:build: parameter 1.weight"
    assert "1 of 8" in error.what


def test_a_spoilt_buffer_is_named():
    model = nn.BatchNorm1d(3)
    model.running_var[0] = math.nan
    assert refusal(good(model=model), ModelError).where.endswith("buffer running_var")


def test_weights_without_values_are_refused():
    with pytest.raises(ModelError, match="is on meta"):
        check_weights(nn.Linear(3, 2, device="meta"), "here")


def test_lazy_layers_get_their_shapes_from_the_example_inputs():
    model = nn.LazyLinear(2)
    check_task(good(model=model), "task.py:build", folder=None)
    assert model.weight.shape == (2, 3)


def test_the_first_layer_that_gives_nan_is_named():
    class Log(nn.Module):
        def forward(self, x):
            return torch.log(x - 1)

    model = nn.Sequential(nn.Identity(), Log(), nn.ReLU())
    error = refusal(good(model=model), ModelError)
    assert "layer 1 gives NaN or infinity" in error.what


def test_a_model_that_does_not_take_its_examples_is_a_model_error():
    error = refusal(good(model=nn.Linear(5, 2)), ModelError)
    assert "RuntimeError" in error.what
    assert "model.eval()" in error.fix


@pytest.mark.parametrize("output", ["a string", 3.0, (), [np.ones(2)], None])
def test_outputs_that_are_not_tensors_are_refused(output):
    class Other(nn.Module):
        def forward(self, x):
            return output

    refusal(good(model=Other()), ModelError)


def test_the_budget_of_the_task_is_kept():
    assert check_task(good(budget=Budget(ram_bytes=1)), "x", folder=None).budget.ram_bytes == 1
