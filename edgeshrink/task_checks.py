"""Check a task at the door: everything later on trusts it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from edgeshrink.budget import Budget
from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.strict_toml import nearest
from edgeshrink.task import SPLITS, Metric, Split, Task, Training
from edgeshrink.user_code import UserCode

ARRAY_KINDS = "fiub"  # kinds of numpy types that a model takes
TRAINING_CHOICES = {
    "optimizer": ("adamw", "sgd"),
    "precision": ("float32", "bfloat16"),
    "keep": ("best", "last"),
}


def check_task(task: Any, where: str, *, folder: Path | None) -> Task:
    """Return `task` as it can be used: its model in eval mode, its example inputs a tuple.

    Looks at the first batch of each split, and runs the model once on the example inputs.

    Args:
        task: What the user's function returned.
        where: What returned it, for messages.
        folder: The user's folder, so that faults name a line in it.

    Raises:
        ConfigError: It is no task, or some part of it is missing or of the wrong kind.
        ModelError: The model can't run on its example inputs, or a weight or output of it is NaN
            or infinite.
    """
    if not isinstance(task, Task):
        fix = "return edgeshrink.task.Task(model=..., example_inputs=..., data=...)"
        raise ConfigError(where, f"returned {_kind(task)}, not a Task", fix)
    model: object = task.model
    if not isinstance(model, nn.Module):
        fault = f"model is {_kind(model)}, not a torch.nn.Module"
        raise ConfigError(where, fault, "give the module itself")
    _check_functions(task, where)
    examples = _check_examples(task.example_inputs, where)
    _check_splits(task, examples, where, folder)
    check_weights(task.model, where)
    outputs = _check_outputs(task.model, examples, where, folder)
    if task.teacher is not None:
        _check_teacher(task.teacher, outputs, examples, where, folder)
    return replace(task, example_inputs=examples)


def check_weights(model: nn.Module, where: str, *, device: str = "cpu") -> None:
    """Raise ModelError for the first parameter or buffer that holds NaN or infinity.

    Or that is not on a device of the type `device`.
    """
    for kind, tensors in (
        ("parameter", model.named_parameters()),
        ("buffer", model.named_buffers()),
    ):
        for name, tensor in tensors:
            if is_lazy(tensor):  # gets its values when the model first runs
                continue
            if tensor.device.type != device:
                fault = f"is on {tensor.device}"
                raise ModelError(f"{where}: {kind} {name}", fault, "move the model: model.cpu()")
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                bad = int((~torch.isfinite(tensor)).sum())
                fault = f"holds NaN or infinity ({bad} of {tensor.numel()} values)"
                fix = "load or train the model again: its weights are spoilt"
                raise ModelError(f"{where}: {kind} {name}", fault, fix)


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__module__}.{type(value).__qualname__}"


def _check_functions(task: Task, where: str) -> None:
    for name in ("evaluate", "loss"):
        value = getattr(task, name)
        if value is not None and not callable(value):
            raise ConfigError(where, f"{name} is {_kind(value)}", "it must be a function or None")
    for name, kind in (("metric", Metric), ("budget", Budget)):
        value = getattr(task, name)
        if not isinstance(value, kind):
            raise ConfigError(where, f"{name} is {_kind(value)}", f"it must be a {kind.__name__}")
    if task.metric.direction not in ("higher", "lower"):
        fault = f"metric.direction is {task.metric.direction!r}"
        raise ConfigError(where, fault, "it must be 'higher' or 'lower'")
    if task.training is not None:
        _check_training(task.training, where)
        if task.loss is None:
            fix = "add loss(outputs, targets) -> scalar tensor, or leave training out"
            raise ConfigError(where, "has training but no loss", fix)


def _check_training(training: Any, where: str) -> None:
    if not isinstance(training, Training):
        fault = f"training is {_kind(training)}"
        raise ConfigError(where, fault, "it must be edgeshrink.task.Training(epochs=...) or None")
    limits = (
        ("epochs", 1, 1_000_000),
        ("learning_rate", 1e-12, 1e3),
        ("weight_decay", 0, 1e3),
        ("warmup_share", 0, 0.999),
        ("ema", 0, 0.99999),
        ("patience", 0, 1_000_000),
    )
    for name, choices in TRAINING_CHOICES.items():
        if getattr(training, name) not in choices:
            fault = f"training.{name} is {getattr(training, name)!r}"
            raise ConfigError(where, fault, f"it must be {choices[0]!r} or {choices[1]!r}")
    if training.patience and training.keep == "last":
        fault = "training has patience, and keeps the last epoch whatever its score"
        raise ConfigError(where, fault, "set patience = 0, or keep = 'best'")
    for name, low, high in limits:
        value = getattr(training, name)
        is_whole = name in ("epochs", "patience")
        is_number = isinstance(value, int if is_whole else int | float)
        if not is_number or isinstance(value, bool) or not low <= value <= high:
            kind = "a whole number" if is_whole else "a number"
            fix = f"it must be {kind} in [{low:g}, {high:g}]"
            raise ConfigError(where, f"training.{name} is {value!r}", fix)


def _check_examples(examples: Any, where: str) -> tuple[Tensor, ...]:
    fix = "give a tuple with one tensor per input of the model, each with a first dimension of 1"
    if isinstance(examples, Tensor):
        raise ConfigError(where, "example_inputs is a tensor", f"{fix}: (tensor,)")
    if not isinstance(examples, (tuple, list)) or not examples:
        raise ConfigError(where, f"example_inputs is {examples!r:.80}", fix)
    for index, example in enumerate(examples):
        place = f"example_inputs[{index}]"
        if not isinstance(example, Tensor):
            raise ConfigError(where, f"{place} is {_kind(example)}", fix)
        if example.dim() == 0 or example.shape[0] != 1:
            fault = f"{place} has the shape {tuple(example.shape)}"
            raise ConfigError(where, fault, "its first dimension, the batch, must be 1")
        if example.device.type != "cpu":
            raise ConfigError(where, f"{place} is on {example.device}", "move it: tensor.cpu()")
        if example.is_floating_point() and not torch.isfinite(example).all():
            raise ConfigError(where, f"{place} holds NaN or infinity", "give a real sample")
    return tuple(examples)


def _check_splits(
    task: Task, examples: tuple[Tensor, ...], where: str, folder: Path | None
) -> None:
    data: object = task.data
    if not isinstance(data, Mapping):
        fix = 'give {"train": ..., "validation": ..., "test": ...}'
        raise ConfigError(where, f"data is {_kind(data)}", fix)
    for name in task.data:
        if name not in SPLITS:
            raise ConfigError(
                where, f"data has an unknown split {name!r}", nearest(str(name), SPLITS)
            )
    if "calibration" not in task.data and "train" not in task.data:
        fix = "quantization observes typical inputs: add one of them (16 to 512 samples are usual)"
        raise ConfigError(where, "data has neither 'calibration' nor 'train'", fix)
    needed = ("validation", "test") if task.evaluate is not None else ()
    for name in (*needed, *(("train",) if task.training is not None else ())):
        if name not in task.data:
            use = {
                "validation": "what is chosen, is chosen on it",
                "test": "it is scored once, at the end",
                "train": "training needs it",
            }[name]
            raise ConfigError(where, f"data has no split {name!r}", f"add it: {use}")
    for name, split in task.data.items():
        _check_first_batch(split, examples, f"{where}: data[{name!r}]", folder)


def _check_first_batch(
    split: Split, examples: tuple[Tensor, ...], where: str, folder: Path | None
) -> None:
    fix = "give an ArraySplit, or an object whose __iter__ starts anew each time"
    if not hasattr(type(split), "__iter__"):
        raise ConfigError(where, f"is {_kind(split)}", fix)
    if isinstance(split, Iterator):
        raise ConfigError(where, "can be gone through only once", fix)
    with UserCode(where, folder):
        first = list(islice(iter(split), 1))
    if not first:
        raise ConfigError(where, "is empty", "give at least one sample")
    shape_of_batch = "a batch is a pair (inputs, targets); inputs is a tuple of numpy arrays"
    if not isinstance(first[0], tuple) or len(first[0]) != 2:
        raise ConfigError(where, f"yields {_kind(first[0])}", shape_of_batch)
    inputs = first[0][0]
    if not isinstance(inputs, tuple) or not all(isinstance(a, np.ndarray) for a in inputs):
        raise ConfigError(where, f"yields inputs that are {_kind(inputs)}", shape_of_batch)
    if len(inputs) != len(examples):
        fault = f"yields {len(inputs)} inputs, example_inputs has {len(examples)}"
        raise ConfigError(where, fault, "both must be one per input of the model")
    for index, (array, example) in enumerate(zip(inputs, examples, strict=True)):
        check_array(array, example, f"{where}: input {index}")


def check_array(array: np.ndarray[Any, Any], example: Tensor, where: str) -> None:
    """Raise ConfigError unless `array` (n, ...) holds samples such as `example` (1, ...)."""
    needed = str(example.dtype).removeprefix("torch.")
    if array.dtype.kind not in ARRAY_KINDS or array.dtype.name != needed:
        fix = f"the example input is {needed}: use .astype({needed!r}) on one of them"
        raise ConfigError(where, f"is {array.dtype.name}", fix)
    if array.shape[1:] != tuple(example.shape[1:]):
        fault = (
            f"has samples of shape {array.shape[1:]}, the example input {tuple(example.shape[1:])}"
        )
        raise ConfigError(where, fault, "both must be in the layout that the model takes")
    if not len(array):
        raise ConfigError(where, "is empty", "give at least one sample")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ConfigError(where, "holds NaN or infinity", "clean the data")


def _check_outputs(
    model: nn.Module,
    examples: tuple[Tensor, ...],
    where: str,
    folder: Path | None,
    role: str = "model",
) -> Any:
    """Return what the model gives in eval mode; refuse NaN and infinity by the first layer."""
    place = f"{where}: {role} {type(model).__name__}"
    fix = f"{role}.eval()(*example_inputs) must succeed"
    spoilt: list[str] = []

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not spoilt and not all(torch.isfinite(leaf).all() for leaf in _floats(output)):
                spoilt.append(name)

        return hook

    handles = [m.register_forward_hook(watch(name)) for name, m in model.named_modules()]
    try:
        with UserCode(place, folder, kind=ModelError, fix=fix), torch.no_grad():
            outputs = model.eval()(*examples)
    finally:
        for handle in handles:
            handle.remove()
    leaves = torch.utils._pytree.tree_leaves(outputs)
    if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
        fix = "return a tensor, a tuple of tensors or a dict of tensors"
        raise ModelError(place, f"returns {_kind(outputs)} that is not made of tensors", fix)
    if spoilt:
        layer = f"layer {spoilt[0]}" if spoilt[0] else "the model itself"
        fault = f"{layer} gives NaN or infinity on the example inputs"
        raise ModelError(place, fault, "look for a division by zero, a log of 0 or an overflow")
    return outputs


def _check_teacher(
    teacher: Any, outputs: Any, examples: tuple[Tensor, ...], where: str, folder: Path | None
) -> None:
    if not isinstance(teacher, nn.Module):
        fault = f"teacher is {_kind(teacher)}, not a torch.nn.Module"
        raise ConfigError(where, fault, "give the module itself, or None")
    check_weights(teacher, f"{where}: teacher")
    taught = _check_outputs(teacher, examples, where, folder, "teacher")
    here, there = (_shapes(value) for value in (outputs, taught))
    if here != there:
        fault = f"teacher returns {there}, the model {here}"
        raise ConfigError(where, fault, "both must return the same names and shapes")


def _shapes(outputs: Any) -> str:
    """Return the structure of `outputs` with a shape in place of every tensor."""
    return str(torch.utils._pytree.tree_map(lambda leaf: tuple(leaf.shape), outputs))


def _floats(output: Any) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(output)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
