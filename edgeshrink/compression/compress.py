"""The steps of a recipe, one after the other, with a report of each."""

from __future__ import annotations

import copy
import importlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from edgeshrink.checkpoints import FILE
from edgeshrink.compression.distill import check_features, teacher_of
from edgeshrink.compression.layers import macs_of
from edgeshrink.compression.rehearse import Rehearsal, is_late, trains, untouched
from edgeshrink.compression.steps import Apply, Changed, Context, Progress, StepReport
from edgeshrink.compression.temperature import calibrate
from edgeshrink.errors import BudgetError, ConfigError, EdgeshrinkError
from edgeshrink.program import ProgramModule
from edgeshrink.quantizer.canonical import canonical_program, constant_of
from edgeshrink.quantizer.operators import RULES
from edgeshrink.quantizer.qat import QuantizedModel
from edgeshrink.quantizer.quantize import Quantized
from edgeshrink.recipe import (
    QUANTIZING,
    Cluster,
    Factorize,
    Finetune,
    Prune,
    Quantize,
    Recipe,
    ScaleTemperature,
    Sparsify,
    Step,
    TrainQuantized,
    name_of,
    quantizing_step,
)
from edgeshrink.scoring import score
from edgeshrink.target import Target
from edgeshrink.task import Predict, Task
from edgeshrink.training import Held, check_trainable, float_predict
from edgeshrink.user_code import UserCode

# What runs each step. Quantize alone has no row: `export` does it.
STEPS: Final[dict[type[Any], str]] = {
    Sparsify: "edgeshrink.compression.sparsify:apply",
    Prune: "edgeshrink.compression.prune:apply",
    Factorize: "edgeshrink.compression.factorize:apply",
    Cluster: "edgeshrink.compression.cluster:apply",
    Finetune: "edgeshrink.compression.finetune:apply",
    TrainQuantized: "edgeshrink.compression.qat:apply",
    ScaleTemperature: "edgeshrink.compression.temperature:apply",
}


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """What a recipe made of a model before its export, and what each step did.

    `quantized` is what quantization-aware training ended with; `model` is the float model that it
    came from, and what a recipe with `quantize` quantizes while it exports.
    """

    model: nn.Module
    quantized: Quantized | None = None
    reports: tuple[StepReport, ...] = ()


def compress(
    task: Task,
    recipe: Recipe,
    target: Target,
    *,
    seed: int,
    checkpoints: Path | None = None,
    progress: Progress = lambda share, detail: None,
) -> Compressed:
    """Run the steps of `recipe` in order, up to quantization-aware training where it has that.

    `quantize` is left to `export`, `temperature` to `calibrate_probabilities`.

    Args:
        task: Its model is left as it is: it is the teacher.
        recipe: In an order that makes sense, as `read_recipe` checks.
        target: What the steps may ask about the device.
        seed: Equal seeds give equal models.
        checkpoints: A folder for what an interrupted training needs to go on.
        progress: Called with the share done of all steps, and what is being done.

    Raises:
        EdgeshrinkError: One of its classes; the message begins with the step that failed.
    """
    check_recipe(task, recipe)
    todo = compressing_steps(recipe)
    if not todo:
        return Compressed(model=task.model)
    model = copy.deepcopy(task.model)
    dtype = _stored_type(recipe)
    before = _measure(model, task, dtype)
    quantized = None
    reports = []
    for index, step in enumerate(todo):
        title = _title(index, step)

        def report(share: float, detail: str, index: int = index, title: str = title) -> None:
            progress((index + share) / len(todo), f"{title}: {detail}")

        report(0.0, "")
        start_s = time.monotonic()
        context = Context(
            task=task,
            target=target,
            seed=seed,
            checkpoints=checkpoints and checkpoints / f"{index}-{name_of(step)}",  # see `reached`
            held=held_by(todo[:index]),
            progress=report,
        )
        with _named(title), UserCode(title, task.folder):
            changed = apply_of(step)(model, step, context)
            changed.model.eval()
            seconds = time.monotonic() - start_s
            if isinstance(step, TrainQuantized):
                assert isinstance(changed.model, QuantizedModel)
                quantized = changed.model.quantized
                after = replace(before, score=_score(float_predict(changed.model), task))
            else:
                model = changed.model
                after = _measure(model, task, dtype)
        reports.append(_report(step, changed, before=before, after=after, seconds=seconds))
        before = after
    progress(1.0, "compressed")
    return Compressed(model=model, quantized=quantized, reports=tuple(reports))


def calibrate_probabilities(
    task: Task, recipe: Recipe, compressed: Compressed, predict: Predict
) -> Compressed:
    """Run the steps that look at probabilities, and change nothing, behind the quantizing one.

    Args:
        task: Gives the validation split.
        recipe: Its `ScaleTemperature` steps are run.
        compressed: What `compress` returned.
        predict: Of the quantized model.
    """
    reports = []
    for index, step in enumerate(recipe.steps):
        if not isinstance(step, ScaleTemperature):
            continue
        start_s = time.monotonic()
        with _named(_title(index, step)):
            changed = calibrate(predict, step, task, compressed.model)
            same = replace(
                _measure(compressed.model, task, _stored_type(recipe)), score=_score(predict, task)
            )
        reports.append(
            _report(step, changed, before=same, after=same, seconds=time.monotonic() - start_s)
        )
    return replace(compressed, reports=(*compressed.reports, *reports))


def report_quantization(
    task: Task,
    recipe: Recipe,
    compressed: Compressed,
    predict: Predict,
    *,
    note: str,
    details: Mapping[str, Any],
    seconds: float,
) -> Compressed:
    """Add the row of a `quantize` step that had something to choose.

    Args:
        task: Gives the validation split.
        recipe: Its `quantize` step is what was done.
        compressed: What `compress` returned.
        predict: Of the quantized model.
        note, details: What was chosen, and why.
        seconds: What the export took.
    """
    step = quantizing_step(recipe)
    before = _measure(compressed.model, task, _stored_type(recipe))
    after = replace(before, score=_score(predict, task))
    changed = Changed(model=compressed.model, note=note, details=details)
    row = _report(step, changed, before=before, after=after, seconds=seconds)
    return replace(compressed, reports=(*compressed.reports, row))


def check_recipe(task: Task, recipe: Recipe) -> None:
    """Raise ConfigError for a step that this task can't do: before anything is trained."""
    for index, step in enumerate(recipe.steps):
        title = _title(index, step)
        if trains(step) or (isinstance(step, Prune) and step.importance == "taylor"):
            check_trainable(task, title)
        if isinstance(step, Finetune):
            if step.patience and task.evaluate is None:
                fix = "set patience = 0, or give the task evaluate(predict, split) -> float"
                raise ConfigError(f"{title}: patience", "needs a score, the task has none", fix)
            shapes_stay = not any(isinstance(s, Factorize) for s in recipe.steps[:index])
            if shapes_stay:  # else layers have other names by then
                with _named(title):
                    check_features(step, task.model, teacher_of(task))
        if isinstance(task.model, ProgramModule) and not isinstance(step, QUANTIZING):
            fix = "give a task (a Python function) in place of the .pt2, or leave the step out"
            raise ConfigError(title, "can't change an exported program", fix)
        if isinstance(step, TrainQuantized | ScaleTemperature) and "validation" not in task.data:
            fix = "add the split 'validation' to data, or leave the step out"
            raise ConfigError(title, "the task has no split 'validation'", fix)


def rehearse_recipe(task: Task, recipe: Recipe, target: Target) -> None:
    """Raise what a step would raise behind a training whatever that had given.

    Goes through the steps on a copy of the model and trains nothing: names, shapes, shares that
    can't be reached, outputs that can't be distilled or calibrated. Where nothing is trained before
    a step that might fail, it does nothing: that step tells as soon.

    Args:
        task: Its model and all random states stay as they are.
        recipe: As `check_recipe` has passed it.
        target: For the steps.

    Raises:
        EdgeshrinkError: One of its classes; the message begins with the step that would fail.
    """
    if not is_late(task, recipe.steps):
        return
    with untouched(task):
        rehearsal = Rehearsal(task, Context(task=task, target=target, seed=0))
        for index, step in enumerate(recipe.steps):
            title = _title(index, step)
            with _named(title), UserCode(title, task.folder):
                rehearsal.do(step, held_by(recipe.steps[:index]))


def apply_of(step: Step) -> Apply:
    """Return the function that runs a step."""
    module, _, name = STEPS[type(step)].partition(":")
    found: Apply = getattr(importlib.import_module(module), name)
    return found


def compressing_steps(recipe: Recipe) -> tuple[Step, ...]:
    """Return the steps that `compress` runs."""
    return tuple(step for step in recipe.steps if not isinstance(step, Quantize | ScaleTemperature))


def reached(checkpoints: Path) -> int:
    """Return the number, from 1, of the last step that has left a checkpoint; 0 if none has."""
    folders = {path.relative_to(checkpoints).parts[0] for path in checkpoints.rglob(FILE)}
    indices = [name.partition("-")[0] for name in folders]
    return max((int(index) + 1 for index in indices if index.isdecimal()), default=0)


def held_by(steps: Sequence[Step]) -> Held:
    """Return what trainings behind `steps` must keep of single weights."""
    if any(isinstance(step, Cluster) for step in steps):
        return "values"
    return "zeros" if any(isinstance(step, Sparsify) for step in steps) else "nothing"


def _title(index: int, step: Step) -> str:
    return f"recipe step {index + 1} ({name_of(step)})"


@contextmanager
def _named(title: str) -> Iterator[None]:
    """Put the step's name in front of what goes wrong in the block."""
    try:
        yield
    except EdgeshrinkError as err:
        if isinstance(err, BudgetError) or title in err.where:
            raise
        word = title.rpartition("(")[2].rstrip(")")
        place = "" if err.where == word else err.where.removeprefix(f"{word}: ")
        where = f"{title}: {place}" if place else title
        raise type(err)(where, err.what, err.fix) from err


@dataclass(frozen=True, kw_only=True)
class _Measured:
    parameters: int
    macs: int
    n_bytes: int
    score: float | None


def _report(
    step: Step, changed: Changed, *, before: _Measured, after: _Measured, seconds: float
) -> StepReport:
    return StepReport(
        step=step,
        note=changed.note,
        parameters_before=before.parameters,
        parameters_after=after.parameters,
        macs_before=before.macs,
        macs_after=after.macs,
        n_bytes_before=before.n_bytes,
        n_bytes_after=after.n_bytes,
        score_before=before.score,
        score_after=after.score,
        seconds=seconds,
        details=changed.details,
    )


def _score(predict: Predict, task: Task) -> float | None:
    if task.evaluate is None or "validation" not in task.data:
        return None
    return score(task, predict, "validation")


def _measure(model: nn.Module, task: Task, dtype: str) -> _Measured:
    return _Measured(
        parameters=sum(p.numel() for p in model.parameters()),
        macs=macs_of(model, task.example_inputs),
        n_bytes=weight_bytes(model, task.example_inputs, dtype),
        score=_score(float_predict(model), task),
    )


def weight_bytes(model: nn.Module, example_inputs: tuple[Tensor, ...], dtype: str) -> int:
    """Return the bytes of the constants that an export stores: batch norms folded, each once.

    Args:
        model: Float.
        example_inputs: One tensor per input, batch of 1.
        dtype: `int8`: a byte for a weight, four for a bias; `float32`: four for each.
    """
    graph_module = canonical_program(copy.deepcopy(model), tuple(x.clone() for x in example_inputs))
    wide = {  # biases are int32
        node.args[2]
        for node in graph_module.graph.nodes
        if node.target in RULES and RULES[node.target].kind == "weighted" and len(node.args) > 2
    }
    sizes: dict[str, int] = {}
    for node in graph_module.graph.nodes:
        constant = constant_of(graph_module, node)
        if constant is not None and node.users:
            width = 1 if dtype == "int8" and node not in wide else 4
            sizes[str(node.target)] = width * constant.numel()
    return sum(sizes.values())


def _stored_type(recipe: Recipe) -> str:
    step = quantizing_step(recipe)
    return step.dtype if isinstance(step, Quantize) else "int8"
