"""Plans of a task, and builds that follow them: what to try first, and what when it misses."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from edgeshrink.budget import Budget
from edgeshrink.build import Built, Progress, build, checkpoints_folder, rejected_folder
from edgeshrink.channels import ChannelGroup
from edgeshrink.checkpoints import claim_folder, describe_split, digest_of
from edgeshrink.compression.prune import pruning
from edgeshrink.compression.steps import Context
from edgeshrink.errors import BudgetError, ConfigError, ModelError
from edgeshrink.exporting import check_exportable
from edgeshrink.lowering import Optimize
from edgeshrink.planning import Plan, Trainable, after, plan, price
from edgeshrink.planning.plan import levels
from edgeshrink.program import ProgramModule
from edgeshrink.quantizer.sketch import Sketch, sketch
from edgeshrink.recipe import Prune, Quantize, Recipe
from edgeshrink.scoring import score
from edgeshrink.target import Target
from edgeshrink.task import Task
from edgeshrink.training import check_trainable, float_predict, train

ATTEMPTS: Final = 3
SENSITIVITY: Final = "sensitivity"  # folder of the checkpoints
SENSITIVITY_S: Final = 20.0  # spent on scoring narrower models, about
MEASURED_LEVELS: Final = (0.5, 0.25, 0.75)  # shares of a group's channels, in this order
FINETUNE_EPOCHS: Final = 10  # where the task does not say how it trains


def plan_task(
    task: Task,
    target: Target,
    budget: Budget,
    *,
    optimize: Optimize = "latency",
    threads: int = 1,
    seed: int = 0,
    cache: Path | None = None,
    progress: Callable[[float, str], None] = lambda share, detail: None,
) -> Plan:
    """Return what it would take to make the task's model meet `budget`; nothing is trained.

    Args:
        task: Its model is taken as it is: where `training` is set, it is not trained yet, so
            importance is that of its first weights and no sensitivity is measured.
        target: The device.
        budget: Limits on flash, RAM and latency; on the drop nothing can be said beforehand.
        optimize, threads: As in a build.
        seed: Of random importance.
        cache: A folder where measured sensitivity is kept, by the content of model and data.
        progress: Called as the plan advances.

    Raises:
        BudgetError: Nothing can fit; says which bound exceeds which limit, and what would do.
        ModelError: The model can't be traced, or an operator has no price.
    """
    progress(0.0, "sketching")
    drawn = sketch(task.model, task.example_inputs)
    return _plan(
        task, target, budget, drawn, _trainable(task), optimize=optimize, threads=threads,
        seed=seed, cache=cache, progress=progress,
    )  # fmt: skip


def _plan(
    task: Task,
    target: Target,
    budget: Budget,
    drawn: Sketch,
    trainable: Trainable,
    *,
    optimize: Optimize,
    threads: int,
    seed: int,
    cache: Path | None,
    progress: Callable[[float, str], None],
) -> Plan:
    step = Prune(ratio=0.5)
    context = Context(task=task, target=target, seed=seed)
    groups: tuple[ChannelGroup, ...] = ()
    whole = price(drawn.graph, target, optimize=optimize, threads=threads, budget=budget)
    sensitivity = None
    notes: list[str] = []
    if whole.overruns(budget) and not isinstance(task.model, ProgramModule):
        try:
            groups, cut = pruning(task.model, step, context)
        except ModelError as err:
            notes.append(f"channels can't be pruned: {err}")
        else:
            if task.training is None and task.evaluate is not None and "validation" in task.data:
                progress(0.1, "measuring sensitivity")
                sensitivity = _sensitivity(task, groups, cut, step, cache, progress)
    found = plan(
        drawn, groups, target, budget, trainable=trainable, importance=step.importance,
        sensitivity=sensitivity, optimize=optimize, threads=threads,
        progress=lambda share, detail: progress(0.4 + 0.6 * share, detail),
    )  # fmt: skip
    progress(1.0, "planned")
    return replace(found, notes=(*notes, *found.notes))


def _trainable(task: Task) -> Trainable:
    try:
        check_trainable(task, "plan")
    except ConfigError:
        return Trainable(epochs=0)
    epochs = FINETUNE_EPOCHS if task.training is None else task.training.epochs
    return Trainable(
        epochs=max(1, epochs),
        can_distill=_has_logits(task),
        has_validation="validation" in task.data,
    )


def _has_logits(task: Task) -> bool:
    """Say whether the outputs look like scores of classes, and the targets are such classes."""
    import numpy as np

    outputs = float_predict(task.model)(*(x.numpy() for x in task.example_inputs))
    if not isinstance(outputs, np.ndarray) or outputs.ndim != 2 or outputs.shape[1] < 2:
        return False
    _, targets = next(iter(task.data["train"]))
    return isinstance(targets, np.ndarray) and np.issubdtype(targets.dtype, np.integer)


def _sensitivity(
    task: Task,
    groups: tuple[ChannelGroup, ...],
    cut: Callable[[Mapping[str, int]], Any],
    step: Prune,
    cache: Path | None,
    progress: Callable[[float, str], None],
) -> dict[str, dict[int, float]]:
    """Return by how much the validation score drops when one group alone keeps fewer channels."""
    described = [
        digest_of(task.model), describe_split(task.data["validation"]), step.importance,
        task.metric.direction, *(f"{g.root}={g.n_channels}" for g in groups),
    ]  # fmt: skip
    key = hashlib.sha256("\n".join(described).encode()).hexdigest()[:24]
    path = None if cache is None else cache / f"{key}.json"
    if path is not None and path.is_file():
        with suppress(OSError, ValueError, TypeError, AttributeError):
            stored = json.loads(path.read_text("utf-8"))
            return {r: {int(w): float(d) for w, d in row.items()} for r, row in stored.items()}
    whole = score(task, float_predict(task.model), "validation")
    full = {g.root: g.n_channels for g in groups}
    found: dict[str, dict[int, float]] = {g.root: {} for g in groups}
    started = time.monotonic()
    for number, share in enumerate(MEASURED_LEVELS):
        if number and time.monotonic() - started > SENSITIVITY_S * number / len(MEASURED_LEVELS):
            break
        for group in groups:
            progress(0.1 + 0.1 * number, f"sensitivity of {group.root}")
            wanted = min(levels(group), key=lambda w: abs(w - share * group.n_channels))
            if wanted == group.n_channels or wanted in found[group.root]:
                continue
            narrowed = cut({**full, group.root: wanted})
            value = score(task, float_predict(narrowed), "validation")
            found[group.root][wanted] = task.metric.drop(whole, value)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found) + "\n", "utf-8")
    return found


def build_to_fit(
    task: Task,
    target: Target,
    *,
    recipe: Recipe | None,
    budget: Budget,
    out: Path,
    seed: int = 0,
    threads: int = 1,
    optimize: Optimize = "latency",
    progress: Progress = lambda stage, share, detail: None,
) -> Built:
    """Build with `recipe`; without one, quantize alone where that fits, else by the planner.

    Of the planner's recipes the gentlest is built first; where its real figures miss the budget,
    the next that is worth a try, up to `ATTEMPTS`.

    Raises:
        BudgetError: Nothing can fit, or no attempt did; names the closest one.
        EdgeshrinkError: As `build`.
    """

    def built(task: Task, recipe: Recipe) -> Built:
        return build(
            task, target, recipe=recipe, budget=budget, out=out, seed=seed, threads=threads,
            optimize=optimize, progress=progress,
        )  # fmt: skip

    if recipe is not None:
        return built(task, recipe)
    if isinstance(task.model, ProgramModule):  # its layers are fixed: there is nothing to plan
        return built(task, Recipe())
    drawn = _sketched(task)
    if drawn is None:
        return built(task, Recipe())
    try:
        whole = price(drawn.graph, target, optimize=optimize, threads=threads, budget=budget)
    except ModelError:
        return built(task, Recipe())
    if not whole.overruns(budget):
        return built(task, Recipe())
    checkpoints = checkpoints_folder(out)
    if task.training is not None:
        progress("checking", 0.0, "")
        check_exportable(task, Quantize())
        claim_folder(checkpoints, {"task": task.name, "seed": str(seed), "target": target.name})
        plan_task(
            task, target, budget, optimize=optimize, threads=threads, seed=seed,
            progress=lambda share, detail: progress("planning", share, detail),
        )  # fmt: skip  # raises where nothing can fit, before anything is trained
        train(
            task, seed=seed, checkpoints=checkpoints / "float",
            progress=lambda share, detail: progress("training", share, detail),
        )  # fmt: skip
        drawn = sketch(task.model, task.example_inputs)
    trained = replace(task, training=None)
    found = _plan(
        trained, target, budget, drawn, _trainable(task), optimize=optimize, threads=threads,
        seed=seed, cache=checkpoints / SENSITIVITY,
        progress=lambda share, detail: progress("planning", share, detail),
    )  # fmt: skip
    return _attempts(found, lambda r: built(trained, r), out)


def _sketched(task: Task) -> Sketch | None:
    """Return the model's sketch; None where it has none, and a build says better why."""
    try:
        return sketch(task.model, task.example_inputs)
    except ModelError:
        return None


def _attempts(found: Plan, built: Callable[[Recipe], Built], out: Path) -> Built:
    """Build the candidates in order; leave the closest where a rejected artifact lies."""
    queue = found.chosen or found.candidates[-1:]
    failures: list[tuple[float, BudgetError]] = []
    rejected = rejected_folder(out)
    best = rejected.with_name(rejected.name + ".best")
    shutil.rmtree(best, ignore_errors=True)
    try:
        for _ in range(ATTEMPTS):
            if not queue:
                break
            candidate = queue[0]
            try:
                return built(candidate.recipe)
            except BudgetError as err:
                excess = err.need / err.limit if err.limit else float("inf")
                is_best = all(excess < other for other, _ in failures)
                failures.append((excess, err))
                if is_best and rejected.is_dir():
                    shutil.rmtree(best, ignore_errors=True)
                    rejected.rename(best)
                queue = after(found, candidate, err.where) if candidate in found.chosen else ()
    finally:
        if best.is_dir() and failures:
            shutil.rmtree(rejected, ignore_errors=True)
            best.rename(rejected)
    _, closest = min(failures, key=lambda pair: pair[0])
    raise closest
