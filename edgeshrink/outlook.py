"""Plans of a task, and builds that follow them: what to try first, and what when it misses."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

from edgeshrink.budget import Budget
from edgeshrink.build import (
    Built,
    Progress,
    build,
    check_build,
    checkpoints_folder,
    claim,
    rejected_folder,
)
from edgeshrink.channels import ChannelGroup
from edgeshrink.checkpoints import (
    claim_folder,
    describe_split,
    digest_of,
    random_states,
    set_random_states,
)
from edgeshrink.compression.prune import pruning
from edgeshrink.compression.steps import Context
from edgeshrink.costs.work import graph_macs
from edgeshrink.errors import BudgetError, ConfigError, ModelError, ToolchainError
from edgeshrink.lowering import Optimize
from edgeshrink.planning import Candidate, Plan, Trainable, after, plan, price
from edgeshrink.planning.plan import FIGURES, WHOLE, levels, narrower, trained_whole
from edgeshrink.planning.search import SHARES
from edgeshrink.profile import Figure
from edgeshrink.program import ProgramModule
from edgeshrink.quantizer.sketch import Sketch, sketch
from edgeshrink.recipe import Prune, Recipe
from edgeshrink.scoring import score
from edgeshrink.target import Target
from edgeshrink.task import Task
from edgeshrink.toolchain import cache_dir
from edgeshrink.training import check_trainable, float_predict, train

T = TypeVar("T")

ATTEMPTS: Final = 3
TIGHTENED: Final = 0.99  # of a limit, at most, after a prediction that was too low
SENSITIVITY: Final = "sensitivity"  # folder of the checkpoints, and of the user's cache
SENSITIVITY_MACS: Final = 1e12  # of scoring narrower models, about: twenty seconds
MEASURED_LEVELS: Final = (0.5, 0.25, 0.75)  # shares of a group's channels, in this order
FINETUNE_EPOCHS: Final = 10  # where the task does not say how it trains
# How near to the figures of a plan before training one after it must stay to be built instead.
KEPT_WITHIN: Final = {"flash_bytes": 0.01, "ram_bytes": 0.03, "latency_ms": 0.05}


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
    is_micro = target.kind == "microcontroller"
    drawn = sketch(task.model, task.example_inputs, micro=is_micro)
    return _plan(
        task, target, budget, drawn, trainable_of(task), optimize=optimize, threads=threads,
        seed=seed, cache=cache, progress=progress,
    )  # fmt: skip


def planned_widths(
    task: Task,
    target: Target,
    budget: Budget,
    trainable: Trainable,
    *,
    optimize: Optimize,
    threads: int,
    seed: int,
    cache: Path | None,
    progress: Callable[[float, str], None],
) -> tuple[Candidate, ...]:
    """Return the widths that a search may take: the gentlest within shares of the budget.

    Raises:
        BudgetError: Nothing can fit.
        ModelError: The model can't be traced, or an operator has no price.
    """
    progress(0.0, "sketching")
    drawn = sketch(task.model, task.example_inputs)
    step = Prune(ratio=0.5)
    try:
        groups, cut = pruning(task.model, step, Context(task=task, target=target, seed=seed))
    except ModelError:
        groups, sensitivity = (), None
    else:
        macs = float(graph_macs(drawn.graph))
        sensitivity = _sensitivity(task, groups, cut, step, seed, cache, macs, progress)
    return narrower(
        drawn, groups, target, budget, SHARES, trainable=trainable, importance=step.importance,
        sensitivity=sensitivity, optimize=optimize, threads=threads,
        progress=lambda share, detail: progress(0.4 + 0.6 * share, detail),
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
    within: Budget | None = None,
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
                macs = float(graph_macs(drawn.graph))
                sensitivity = _sensitivity(task, groups, cut, step, seed, cache, macs, progress)
    found = plan(
        drawn, groups, target, budget, trainable=trainable, importance=step.importance,
        sensitivity=sensitivity, within=within, optimize=optimize, threads=threads,
        progress=lambda share, detail: progress(0.4 + 0.6 * share, detail),
    )  # fmt: skip
    progress(1.0, "planned")
    return replace(found, notes=(*notes, *found.notes))


def trainable_of(task: Task) -> Trainable:
    """Return what a plan may ask of the task."""
    try:
        check_trainable(task, "plan")
    except ConfigError:
        return Trainable(epochs=0)
    epochs = FINETUNE_EPOCHS if task.training is None else task.training.epochs
    return Trainable(
        epochs=max(1, epochs),
        can_distill=_has_logits(task),
        has_teacher=task.teacher is not None,
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


def sensitivity_folder() -> Path | None:
    """Return where measured sensitivity is kept for this user; None where nothing can be."""
    try:
        return cache_dir() / SENSITIVITY
    except ToolchainError:
        return None


def _sensitivity(
    task: Task,
    groups: tuple[ChannelGroup, ...],
    cut: Callable[[Mapping[str, int]], Any],
    step: Prune,
    seed: int,
    cache: Path | None,
    macs: float,
    progress: Callable[[float, str], None],
) -> dict[str, dict[int, float]]:
    """Return by how much the validation score drops when one group alone keeps fewer channels.

    `macs` are those of one inference: the more it takes to score a model, the fewer widths of a
    group are measured, one at least.

    What was measured is found again by the digest of weights, data and groups, and taken if the
    whole model has the score that it had: code of the task may have changed besides.
    """
    described = [
        digest_of(task.model), describe_split(task.data["validation"]), step.importance, str(seed),
        task.metric.name, task.metric.direction, repr(MEASURED_LEVELS),
        *(f"{g.root}={g.n_channels} {g.importance.tobytes().hex()}" for g in groups),
    ]  # fmt: skip
    key = hashlib.sha256("\n".join(described).encode()).hexdigest()[:24]
    path = None if cache is None else cache / f"{key}.json"
    predict, n_samples = float_predict(task.model), 0

    def counted(*inputs: Any) -> Any:
        nonlocal n_samples
        n_samples += len(inputs[0])
        return predict(*inputs)

    whole = score(task, counted, "validation")
    stored = None if path is None else _stored_sensitivity(path, whole)
    if stored is not None:
        return stored
    full = {g.root: g.n_channels for g in groups}
    found: dict[str, dict[int, float]] = {g.root: {} for g in groups}
    level_macs = macs * n_samples * len(groups)
    for number, share in enumerate(MEASURED_LEVELS):
        if number and (number + 1) * level_macs > SENSITIVITY_MACS:
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
        with suppress(OSError):  # a cache that can't be written costs time, and nothing else
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f"{path.name}.{os.getpid()}.partial")
            aside.write_text(json.dumps({"whole": whole, "drops": found}) + "\n", "utf-8")
            aside.replace(path)
    return found


def _stored_sensitivity(path: Path, whole: float) -> dict[str, dict[int, float]] | None:
    """Return what a file of the cache says; None where it is damaged, or of another score."""
    with suppress(OSError, ValueError, TypeError, AttributeError, KeyError):
        stored = json.loads(path.read_text("utf-8"))
        if stored["whole"] == whole:
            rows = stored["drops"].items()
            return {r: {int(w): float(d) for w, d in row.items()} for r, row in rows}
    return None


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
    cache: Path | None = None,
    progress: Progress = lambda stage, share, detail: None,
) -> Built:
    """Build with `recipe`; without one, quantize alone where that fits, else by the planner.

    Quantizing alone is built first if it is predicted to fit. Where its real figures miss the
    budget, and else at once, the planner's recipes are built, the gentlest first; where the real
    figures of one miss, the next that is worth a try, up to `ATTEMPTS` in all. Attempts that failed
    are remembered in `<out>.checkpoints`: an interrupted build does not repeat them.

    Raises:
        BudgetError: Nothing can fit, or no attempt did; names the closest one.
        EdgeshrinkError: As `build`.
    """

    def built(task: Task, recipe: Recipe, **changes: Any) -> Built:
        return build(
            task, target, recipe=recipe, budget=budget, out=out, seed=seed, threads=threads,
            optimize=optimize, progress=progress, **changes,
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
    check_build(task, target, Recipe(), threads=threads, out=out)
    checkpoints = checkpoints_folder(out)
    claim_folder(checkpoints, claim(task, target, seed))
    fits = not whole.overruns(budget)
    started = time.monotonic()
    spent: dict[str, float] = {}
    promised: Plan | None = None  # by figures that `plan` prints before anything is trained
    if task.training is not None:
        if not fits:
            promised = plan_task(
                task, target, budget, optimize=optimize, threads=threads, seed=seed,
                progress=lambda share, detail: progress("planning", share, detail),
            )  # fmt: skip  # raises where nothing can fit, before anything is trained
        train(
            task, seed=seed, checkpoints=checkpoints / "float",
            progress=lambda share, detail: progress("training", share, detail),
        )  # fmt: skip
        spent["training"] = time.monotonic() - started
        drawn = sketch(task.model, task.example_inputs)
    trained = replace(task, training=None)
    attempts = _Attempts(checkpoints, f"{budget} {optimize} {threads}")
    splits = tuple(task.data.values())
    states = random_states(splits)

    def attempt(candidate: Candidate) -> Built:
        set_random_states(splits, states)  # whatever was planned or built before
        return attempts.build(
            candidate, lambda folder: built(trained, candidate.recipe, checkpoints=folder,
                                            spent=spent),
        )  # fmt: skip

    def planned(budget: Budget, within: Budget | None = None) -> Plan:
        return _plan(
            trained, target, budget, drawn, trainable_of(task), optimize=optimize, threads=threads,
            seed=seed, cache=cache or checkpoints / SENSITIVITY, within=within,
            progress=lambda share, detail: progress("planning", share, detail),
        )  # fmt: skip

    queue = _Queue(planned, budget, trainable_of(task), promised)
    try:
        done = build_first(queue.following, attempt, out)
    except BudgetError:
        shutil.rmtree(checkpoints, ignore_errors=True)  # this build has come to its end
        raise
    shutil.rmtree(checkpoints, ignore_errors=True)
    return done


def _sketched(task: Task) -> Sketch | None:
    """Return the model's sketch; None where it has none, and a build says better why."""
    try:
        return sketch(task.model, task.example_inputs)
    except ModelError:
        return None


class _Queue:
    """Says what to build next, from the plan and what the last attempt missed."""

    def __init__(
        self,
        planned: Callable[[Budget, Budget | None], Plan],
        budget: Budget,
        trainable: Trainable,
        promised: Plan | None,
    ) -> None:
        self.planned, self.budget, self.trainable = planned, budget, trainable
        self.promised = promised
        self.plan: Plan | None = None
        self.rest: tuple[Candidate, ...] = ()
        self.last: Candidate | None = None

    def following(self, missed: BudgetError | None) -> Candidate | None:
        if self.plan is None:
            self.plan = self._first()
            self.rest = self.plan.chosen or self.plan.candidates[-1:]
        elif self.last is None or missed is None or self.last not in self.plan.chosen:
            self.rest = ()
        elif self.last.name == WHOLE:
            self.rest = self._after_whole(self.last, missed)
        else:
            self.rest = after(self.plan, self.last, missed.where)
            if not self.rest and missed.where == "drop" and self.plan is self.promised:
                self.rest = self._by_training(self.last)
        self.last = self.rest[0] if self.rest else None
        return self.last

    def _first(self) -> Plan:
        """Return the plan to begin with: one that keeps what was promised before the training.

        The trained model says better which layers can spare channels; but what it says counts only
        where flash, RAM and latency stay what they were.
        """
        if self.promised is None or not self.promised.chosen:
            return self.planned(self.budget, None)
        figures = self.promised.chosen[0].price.figures
        found = self.planned(self.budget, _bounded(self.budget, figures))
        if found.chosen and _is_near(found.chosen[0].price.figures, figures):
            return found
        return self.promised

    def _by_training(self, failed: Candidate) -> tuple[Candidate, ...]:
        """Return what the trained model says where promised widths lose too much, trained long."""
        self.plan = self.planned(self.budget, None)
        kept = [c for c in self.plan.chosen if c.kept == self.plan.chosen[0].kept]
        return tuple(c for c in kept[-1:] if c.kept != failed.kept)

    def _after_whole(self, whole: Candidate, missed: BudgetError) -> tuple[Candidate, ...]:
        """Return what to do where the whole model was predicted to fit, and does not."""
        if missed.where == "drop":
            harder = trained_whole(whole, self.trainable)
            if harder is None:
                return ()
            self.plan = replace(self.plan, candidates=(harder,)) if self.plan else None
            return (harder,)
        name = FIGURES.get(missed.where, "")
        figure = whole.price.figures.get(name)
        if figure is None or missed.need <= 0:
            return ()
        # The prediction errs by that factor: where it meets the corrected limit, the real one does.
        limit = figure.high * min(TIGHTENED, missed.limit / missed.need)
        changed: dict[str, Any] = {name: limit if name == "latency_ms" else int(limit)}
        tight = replace(self.budget, **changed)
        try:
            self.plan = self.planned(tight, None)
        except BudgetError:
            return ()
        return self.plan.chosen


def _bounded(budget: Budget, figures: Mapping[str, Figure]) -> Budget:
    """Return the limits, none above the upper ends of these figures."""
    limits: dict[str, Any] = {}
    for name in KEPT_WITHIN:
        given = getattr(budget, name)
        if name in figures:
            high = figures[name].high if name == "latency_ms" else math.ceil(figures[name].high)
            limits[name] = high if given is None else min(given, high)
    return replace(budget, **limits)


def _is_near(figures: Mapping[str, Figure], others: Mapping[str, Figure]) -> bool:
    return all(
        abs(figures[name].value - others[name].value) <= share * others[name].value
        for name, share in KEPT_WITHIN.items()
        if name in figures and name in others
    )


class _Attempts:
    """Attempts of a build, each with a folder for its checkpoints; failed ones are remembered."""

    def __init__(self, checkpoints: Path, asked: str) -> None:
        self.folder, self.asked = checkpoints, asked

    def build(self, candidate: Candidate, built: Callable[[Path], Built]) -> Built:
        key = hashlib.sha256(f"{candidate.recipe.to_toml()} {self.asked}".encode()).hexdigest()[:16]
        folder, verdict = self.folder / f"attempt-{key}", self.folder / f"failed-{key}.json"
        failed = _failure(verdict)
        if failed is not None:
            raise failed
        try:
            return built(folder)
        except BudgetError as err:
            verdict.parent.mkdir(parents=True, exist_ok=True)
            facts = {"what": err.where, "need": err.need, "limit": err.limit, "unit": err.unit,
                     "closest": err.closest}  # fmt: skip
            verdict.write_text(json.dumps(facts) + "\n", "utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _failure(path: Path) -> BudgetError | None:
    """Return how an attempt failed before an interrupt; None where that is not known."""
    with suppress(OSError, ValueError, TypeError):
        return BudgetError(**json.loads(path.read_text("utf-8")))
    return None


def build_first(
    following: Callable[[BudgetError | None], T | None],
    built: Callable[[T], Built],
    out: Path,
    *,
    most: int = ATTEMPTS,
) -> Built:
    """Build one candidate after the other until one meets the budget.

    The closest of those that miss it is left where a rejected artifact lies.

    Args:
        following: Given what the last one missed, returns the next; None when there is none.
        built: Builds it; raises BudgetError where it misses.
        out: The artifact's folder.
        most: Candidates that are built.

    Raises:
        BudgetError: Of the closest one.
    """
    failures: list[tuple[float, BudgetError]] = []
    rejected = rejected_folder(out)
    best = rejected.with_name(rejected.name + ".best")
    if best.is_dir():  # of a build that was interrupted
        shutil.rmtree(rejected, ignore_errors=True)
        best.rename(rejected)
    candidate = following(None)
    assert candidate is not None
    try:
        while candidate is not None and len(failures) < most:
            try:
                return built(candidate)
            except BudgetError as err:
                excess = err.need / err.limit if err.limit else float("inf")
                is_best = all(excess < other for other, _ in failures)
                failures.append((excess, err))
                if is_best and rejected.is_dir():
                    shutil.rmtree(best, ignore_errors=True)
                    rejected.rename(best)
                candidate = following(err) if len(failures) < most else None
    finally:
        if best.is_dir() and failures:
            shutil.rmtree(rejected, ignore_errors=True)
            best.rename(rejected)
    _, closest = min(failures, key=lambda pair: pair[0])
    raise closest
