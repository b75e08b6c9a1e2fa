"""A recipe gone through on a copy of the untrained model: what can't work is told at once."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any, Final, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from edgeshrink.checkpoints import random_states, set_random_states
from edgeshrink.compression import cluster, factorize, prune, sparsify, temperature
from edgeshrink.compression.distill import check_features, check_maps, check_outputs, teacher_of
from edgeshrink.compression.steps import Context
from edgeshrink.recipe import (
    Cluster,
    Factorize,
    Finetune,
    Prune,
    Quantize,
    ScaleTemperature,
    Sparsify,
    Step,
    TrainQuantized,
)
from edgeshrink.task import ArraySplit, Split, Task
from edgeshrink.training import Held, float_predict

N_SAMPLES: Final = 8  # on which forms of outputs are looked at
SLACK: Final = 2.0  # of a share of MACs, where the widths before depend on trained weights
N_FACTORS: Final = 3  # at most, of one layer

Named = TypeVar("Named", Prune, Factorize, Cluster, Sparsify)


def trains(step: Step) -> bool:
    """Return whether a step trains."""
    return isinstance(step, Finetune | TrainQuantized) or (
        isinstance(step, Sparsify | Prune) and step.epochs > 0
    )


def is_late(task: Task, steps: tuple[Step, ...]) -> bool:
    """Return whether something is trained before a step that might fail."""
    asked = [not isinstance(step, Quantize) for step in steps]
    if task.training is not None:
        return any(asked)
    for index, step in enumerate(steps):
        if trains(step):
            return any(asked[index + 1 :]) or (isinstance(step, Prune) and step.rounds > 1)
    return False


class Rehearsal:
    """A copy of a task's untrained model, and what is sure of it behind the steps so far.

    Which layers are factorized, and how wide each one becomes, trained weights decide. What hangs
    on that is let pass here; the steps themselves find it.

    Args:
        task: Left as it is; so are all random states, see `untouched`.
        context: For the steps.
    """

    def __init__(self, task: Task, context: Context) -> None:
        self._task, self._context = task, context
        self._model = copy.deepcopy(task.model).eval()
        self._teacher: nn.Module | None = None
        self._factors: frozenset[str] = frozenset()  # layers that there may be by now
        self._widths_known = True

    def do(self, step: Step, held: Held) -> None:
        """Go through `step`; raises what it would raise whatever the weights were."""
        if isinstance(step, Prune):
            self._prune(step)
        elif isinstance(step, Factorize):
            self._factorize(step)
        elif isinstance(step, Sparsify):
            sparsify.check_layers(self._model, self._with_sure_names(step), held)
        elif isinstance(step, Cluster):
            cluster.check_layers(self._model, self._with_sure_names(step))
        elif isinstance(step, Finetune | TrainQuantized):
            self._learn(step)
        elif isinstance(step, ScaleTemperature):
            self._calibrate()

    def _prune(self, step: Prune) -> None:
        step = self._with_sure_names(step)
        if self._factors:  # it follows layers that nobody knows yet
            prune.check_layers(self._model, step)
            return
        if step.macs and not self._widths_known:
            step = replace(step, macs=0.0, ratio=0.5)
        self._model = prune.rehearse(self._model, step, self._context)
        self._widths_known = self._widths_known and bool(step.keep)

    def _factorize(self, step: Factorize) -> None:
        step = self._with_sure_names(step)
        if self._factors and step.macs:
            step = replace(step, macs=0.0)
        slack = 1.0 if self._widths_known else SLACK
        layers = factorize.rehearse(self._model, step, self._context, slack=slack)
        self._factors |= {f"{path}.{i}" for path in layers for i in range(N_FACTORS)}
        self._widths_known = False

    def _learn(self, step: Finetune | TrainQuantized) -> None:
        if isinstance(step, Finetune) and step.features:
            sure = tuple(
                pair
                for pair in step.features
                if pair.partition("=")[0].strip() not in self._factors
            )
            step = replace(step, features=sure)
            check_features(step, self._model, self._taught())
            examples = tuple(x.detach().clone() for x in self._task.example_inputs)
            check_maps(step, self._model, self._taught(), examples)
        if step.distill == "none":
            return
        inputs, targets, _ = _few(self._task.data["train"])
        tensors = tuple(torch.from_numpy(np.array(a)) for a in inputs)
        as_tensors = torch.utils._pytree.tree_map_only(
            np.ndarray, lambda a: torch.from_numpy(np.array(a)), targets
        )
        with torch.no_grad():
            check_outputs(step, self._model(*tensors), self._taught()(*tensors), as_tensors)

    def _calibrate(self) -> None:
        inputs, targets, n_samples = _few(self._task.data["validation"])
        outputs = float_predict(self._model)(*inputs)
        temperature.check_form(outputs, targets, n_samples, f"task {self._task.name!r}")

    def _taught(self) -> nn.Module:
        if self._teacher is None:
            self._teacher = copy.deepcopy(teacher_of(self._task)).eval()
        return self._teacher

    def _with_sure_names(self, step: Named) -> Named:
        """Return the step without names that layers may have once others are factorized."""
        return replace(step, exclude=tuple(n for n in step.exclude if n not in self._factors))


@contextmanager
def untouched(task: Task) -> Iterator[None]:
    """Put all random states back behind the block, those of the task's data too."""
    splits = tuple(task.data.values())
    states = random_states(splits)
    try:
        yield
    finally:
        set_random_states(splits, states)


def _few(split: Split) -> tuple[tuple[Any, ...], Any, int]:
    """Return inputs and targets of the first samples, and how many they are."""
    if isinstance(split, ArraySplit):  # nothing is drawn, nothing augmented
        inputs, targets = split.inputs, split.targets
    else:
        ((inputs, targets),) = islice(iter(split), 1)
    n_samples = len(inputs[0])

    def cut(value: Any) -> Any:
        whole = isinstance(value, np.ndarray | Tensor) and value.ndim and len(value) == n_samples
        return value[:N_SAMPLES] if whole else value

    few = torch.utils._pytree.tree_map(cut, targets)
    return tuple(map(cut, inputs)), few, min(n_samples, N_SAMPLES)
