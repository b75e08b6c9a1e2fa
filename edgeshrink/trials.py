"""Builds that search: many recipes are tried on the validation split, the best of them is built.

`planning.search` says what there is to try and `planning.study` keeps what was found; trials run
wherever `executors` says. A trial leaves its checkpoints beside the study, so one that is cut off
goes on where it stopped, here or on another worker, and the build at the end takes up the trained
weights of the one it chooses.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import chdir
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import optuna
import torch

from edgeshrink.budget import Budget
from edgeshrink.build import (
    STEPS,
    Built,
    Progress,
    best_float_score,
    build,
    check_build,
    claim,
    claim_steps,
)
from edgeshrink.checkpoints import FILE as CHECKPOINT
from edgeshrink.checkpoints import (
    claim_folder,
    describe_split,
    digest_of,
    random_states,
    set_random_states,
)
from edgeshrink.compression import compress, compressing_steps
from edgeshrink.errors import ConfigError, EdgeshrinkError, ModelError, ToolchainError
from edgeshrink.executors import Workers, is_lost, open_workers
from edgeshrink.lowering import Optimize
from edgeshrink.outlook import build_first, planned_widths, trainable_of
from edgeshrink.planning.search import (
    OBJECTIVES,
    Direction,
    Space,
    Trial,
    Widths,
    front,
    in_order,
    recipe_of,
)
from edgeshrink.planning.study import Asked, ask, close, open_study, stored, tell, tell_failure
from edgeshrink.planning.study import trials as asked_trials
from edgeshrink.profile import Figure
from edgeshrink.program import ProgramModule
from edgeshrink.quantizer.qat import TrainableQuantized
from edgeshrink.quantizer.samples import calibration_samples
from edgeshrink.quiet import quiet
from edgeshrink.recipe import Prune, Quantize, Recipe, quantizing_step
from edgeshrink.scoring import score
from edgeshrink.target import Target
from edgeshrink.task import Task
from edgeshrink.task_loader import load_task
from edgeshrink.training import float_predict, train
from edgeshrink.units import format_score

FLOAT: Final = "float"  # folder of the first training's checkpoints
MOST_LOSSES: Final = 3  # times in a row that workers may die before a search gives up
_ONE_AT_A_TIME: Final = threading.Lock()  # in a worker: trainings set what is global in PyTorch
_ERRORS: Final = {kind.__name__: kind for kind in (ConfigError, ModelError, ToolchainError)}


@dataclass(frozen=True, kw_only=True)
class TaskPlace:
    """How a task is loaded, in words that travel to another process."""

    spec: str
    settings: Mapping[str, str] = field(default_factory=dict)
    data: Path | None = None
    seed: int = 0
    cwd: Path = field(default_factory=Path.cwd)

    def load(self) -> Task:
        """Return the task, as `load_task` makes it in the folder where this was said."""
        with chdir(self.cwd):
            return load_task(self.spec, settings=self.settings, data=self.data, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One trial, as it travels to a worker."""

    number: int
    recipe: Recipe
    place: TaskPlace
    target: Target
    folder: Path  # of the study
    model: str  # digest of the float model
    n_threads: int  # of PyTorch; 0: as it likes


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a trial: a score, or an error as (class, place, fault, remedy)."""

    score: float | None = None
    error: tuple[str, str, str, str] | None = None


def trials_folder(out: Path) -> Path:
    """Return where a search keeps what it found: beside `out`."""
    out = out if out.name.strip(".") else out.resolve()
    return out.with_name(out.name + ".trials")


def search_and_build(
    place: TaskPlace,
    task: Task,
    target: Target,
    *,
    budget: Budget,
    out: Path,
    n_trials: int,
    jobs: int = 1,
    cluster: str = "",
    seed: int = 0,
    threads: int = 1,
    optimize: Optimize = "latency",
    cache: Path | None = None,
    progress: Progress = lambda stage, share, detail: None,
) -> Built:
    """Try `n_trials` recipes, and build the best that fits.

    What is found stays in `<out>.trials`: the same call goes on there, and one with more trials
    adds to it. Where the real figures of the best miss the budget, the next one is built.

    Args:
        place: Of the task, for other processes. On a cluster its paths, and `out`, must be those
            of this machine: a shared file system.
        task: The same, loaded.
        target, budget, out, seed, threads, optimize: As in `build`.
        n_trials: Finished ones in all, those from before included.
        jobs: Processes on this machine.
        cluster: Address of a Dask scheduler, in place of `jobs`.
        cache: Where measured sensitivity is kept.
        progress: Called as the search advances.

    Raises:
        ConfigError: The task has no score on a validation split, or the study in `<out>.trials` is
            damaged or of something else.
        BudgetError: Nothing can fit, or none of those built does; names the closest.
        ToolchainError: The cluster can't be reached, or workers die again and again.
        EdgeshrinkError: As `build`; as a trial, where all of them fail.
    """
    _check(task)
    with open_workers(jobs=jobs, cluster=cluster):
        pass  # a cluster that can't be reached is told before anything else takes its time
    check_build(task, target, Recipe(), threads=threads, out=out)
    folder = trials_folder(out).resolve()
    names = _objectives(target, budget)
    direction: Direction = task.metric.direction
    identity = _identity(task, target, budget, seed=seed, optimize=optimize, threads=threads)
    lower: Direction = "lower"
    directions = [direction, *(lower for _ in names)]
    study = open_study(folder, identity, directions)
    try:
        started = time.monotonic()
        if task.training is not None:
            train(
                task, seed=seed, checkpoints=folder / FLOAT,
                progress=lambda share, detail: progress("training", share, detail),
            )  # fmt: skip
        trained = replace(task, training=None)
        splits = tuple(task.data.values())
        states = random_states(splits)
        space = _space(
            study, folder, task, trained, target, budget, optimize=optimize, threads=threads,
            seed=seed, cache=cache, progress=progress,
        )  # fmt: skip
        before = best_float_score(trained)
        search = _Search(
            study=study, space=space, place=place, target=target, folder=folder, task=trained,
            budget=budget, before=before, model=digest_of(trained.model), names=names,
            n_trials=n_trials, jobs=jobs, cluster=cluster, progress=progress,
        )  # fmt: skip
        search.run()
        spent = {"searching": time.monotonic() - started}
        found = search.trials()
        if not found:
            raise search.failure()
        queue = list(in_order(found, direction))

        def built(trial: Trial) -> Built:
            set_random_states(splits, states)  # as a worker finds them
            return build(
                trained, target, recipe=trial.recipe, budget=budget, out=out, seed=seed,
                threads=threads, optimize=optimize, progress=progress, spent=spent,
                checkpoints=_folder_of(folder, trial.number),
                study=_pareto(found, trial, search, budget),
            )  # fmt: skip

        done = build_first(lambda _missed: queue.pop(0) if queue else None, built, out)
        for trial in found:
            shutil.rmtree(_folder_of(folder, trial.number), ignore_errors=True)
        return done
    finally:
        close(study)


def _check(task: Task) -> None:
    if isinstance(task.model, ProgramModule):
        fix = "give a task (a Python function) in place of the .pt2, or leave --trials out"
        raise ConfigError("--trials", "an exported program has nothing to choose", fix)
    if task.evaluate is None or "validation" not in task.data:
        what = "no split 'validation'" if task.evaluate else "no evaluate(predict, split)"
        fix = "add it: recipes are compared by their scores there"
        raise ConfigError("--trials", f"task {task.name!r} has {what}", fix)


def _objectives(target: Target, budget: Budget) -> tuple[str, ...]:
    """Return the figures that count beside the score: those with a limit, else all."""
    timed = target.kind != "microcontroller" or target.cpu.clock_mhz is not None
    known = [n for n in OBJECTIVES if n != "latency_ms" or timed]
    return tuple(n for n in known if getattr(budget, n) is not None) or tuple(known)


def _identity(
    task: Task, target: Target, budget: Budget, *, seed: int, optimize: str, threads: int
) -> dict[str, str]:
    limits = ", ".join(f"{k}={v:g}" for k, v in vars(budget).items() if v is not None)
    return {
        "task": task.name, "seed": str(seed), "target": target.name, "budget": limits or "none",
        "optimize": optimize, "threads": str(threads),
        "metric": f"{task.metric.name}, {task.metric.direction} is better",
        "model": f"{type(task.model).__qualname__} {digest_of(task.model)}",
        "training": repr(task.training),
        "validation data": describe_split(task.data["validation"]),
    }  # fmt: skip


def _space(
    study: optuna.Study,
    folder: Path,
    task: Task,
    trained: Task,
    target: Target,
    budget: Budget,
    *,
    optimize: Optimize,
    threads: int,
    seed: int,
    cache: Path | None,
    progress: Progress,
) -> Space:
    """Return what there is to choose; a study that goes on keeps the widths that it has."""
    trainable = trainable_of(task)
    rows = study.user_attrs.get("widths")
    if not rows:
        found = planned_widths(
            trained, target, budget, trainable, optimize=optimize, threads=threads, seed=seed,
            cache=cache, progress=lambda share, detail: progress("planning", share, detail),
        )  # fmt: skip
        rows = [
            {
                "name": c.name,
                "keep": [k for s in c.recipe.steps if isinstance(s, Prune) for k in s.keep],
                "figures": {n: f.to_json() for n, f in c.price.figures.items()},
            }
            for c in found
        ]
        with stored(folder):
            study.set_user_attr("widths", rows)
    widths = tuple(
        Widths(
            name=row["name"], keep=tuple(row["keep"]), fits=True,
            figures={n: Figure(**f) for n, f in row["figures"].items()},
        )
        for row in rows
    )  # fmt: skip
    return Space(widths=widths, trainable=trainable)


@dataclass(frozen=True, kw_only=True)
class _Search:
    """Everything that stays the same while trials run; what they find is in the study."""

    study: optuna.Study
    space: Space
    place: TaskPlace
    target: Target
    folder: Path
    task: Task
    budget: Budget
    before: float  # the float model's score on the validation split, or its teacher's if better
    model: str
    names: tuple[str, ...]
    n_trials: int
    jobs: int
    cluster: str
    progress: Progress

    def run(self) -> None:
        """Run trials until `n_trials` are finished or failed; workers that die cost time only."""
        losses = 0
        while (left := self._left()) > 0:
            n_before = left
            with open_workers(jobs=min(self.jobs, left), cluster=self.cluster) as workers:
                is_whole = self._run_on(workers)
            losses = 0 if self._left() < n_before else losses + (not is_whole)
            if losses >= MOST_LOSSES:
                fix = "look for what ends them (memory?), or use fewer --jobs; the same command "
                raise ToolchainError(
                    "--trials", f"workers died {losses} times in a row", fix + "goes on from here"
                )
        self.progress("trials", 1.0, "")

    def _left(self) -> int:
        done = sum(a.state != "running" for a in asked_trials(self.study))
        return self.n_trials - done

    def _run_on(self, workers: Workers) -> bool:
        """Run what is left on `workers`; False where they died."""
        with stored(self.folder):
            cut_off = [a for a in asked_trials(self.study) if a.state == "running"]
            running: dict[Future[Outcome], int] = {}
            while True:
                left = self._left()
                self.progress("trials", 1 - left / self.n_trials, self._best())
                while len(running) < min(workers.count, left):
                    asked = (
                        cut_off.pop(0) if cut_off else ask(self.study, self.space, self.place.seed)
                    )
                    recipe = recipe_of(self.space, asked.choices)
                    known = self._known(recipe, asked.number)
                    if known is not None:
                        self._store(asked.number, Outcome(score=known))
                        left = self._left()
                        continue
                    try:
                        future = workers.executor.submit(run_trial, self._job(asked.number, recipe))
                    except BrokenProcessPool:
                        return False
                    running[future] = asked.number
                if not running:
                    return True
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    number = running.pop(future)
                    if not is_lost(future):
                        self._store(number, _result(future))
                if any(is_lost(future) for future in done):
                    return False

    def _next(self) -> Asked:
        return ask(self.study, self.space, self.place.seed)

    def _known(self, recipe: Recipe, number: int) -> float | None:
        """Return the score of the same recipe in an earlier trial."""
        return next(
            (t.score for t in self.trials() if t.recipe == recipe and t.number != number), None
        )

    def _job(self, number: int, recipe: Recipe) -> Job:
        shared = self.jobs > 1 and not self.cluster
        return Job(
            number=number, recipe=recipe, place=self.place, target=self.target,
            folder=self.folder, model=self.model,
            n_threads=max(1, torch.get_num_threads() // self.jobs) if shared else 0,
        )  # fmt: skip

    def _store(self, number: int, outcome: Outcome) -> None:
        if outcome.error is not None:
            kind, *words = outcome.error
            if kind != ModelError.__name__:  # the next trial would fail in the same way
                raise _ERRORS.get(kind, EdgeshrinkError)(*words)
            tell_failure(self.study, number, str(ModelError(*words)))
            shutil.rmtree(_folder_of(self.folder, number), ignore_errors=True)
            return
        assert outcome.score is not None
        choices = next(a.choices for a in asked_trials(self.study) if a.number == number)
        figures = self.space.widths[choices["widths"]].figures
        excess = self._drop(outcome.score) - self._most_drop()
        tell(
            self.study, number, outcome.score, [figures[n].high for n in self.names],
            excess if self.budget.accuracy_drop is not None else 0.0,
        )  # fmt: skip
        found = self.trials()
        keep = {t.number for t in front(found, self.task.metric.direction)}
        for trial in found:  # what is beaten needs its weights no more
            if trial.number not in keep:
                shutil.rmtree(_folder_of(self.folder, trial.number), ignore_errors=True)

    def _drop(self, score: float) -> float:
        return self.task.metric.drop(self.before, score)

    def _most_drop(self) -> float:
        limit = self.budget.accuracy_drop
        return float("inf") if limit is None else limit

    def _best(self) -> str:
        found = in_order(self.trials(), self.task.metric.direction)
        return f"best {format_score(found[0].score)}" if found else ""

    def trials(self) -> tuple[Trial, ...]:
        """Return what the study has finished."""
        found = []
        for asked in asked_trials(self.study):
            if asked.state != "finished" or asked.score is None:
                continue
            widths = self.space.widths[asked.choices["widths"]]
            drop = self._drop(asked.score)
            found.append(
                Trial(
                    number=asked.number, widths=widths.name, score=asked.score, drop=drop,
                    recipe=recipe_of(self.space, asked.choices),
                    figures={n: widths.figures[n] for n in self.names},
                    fits=widths.fits and drop <= self._most_drop(),
                )
            )  # fmt: skip
        return tuple(found)

    def failed(self) -> list[dict[str, Any]]:
        """Return the trials that have no score, with the reason."""
        return [
            {"number": a.number, "reason": a.reason}
            for a in asked_trials(self.study)
            if a.state == "failed"
        ]

    def failure(self) -> EdgeshrinkError:
        """Return the error for when no trial has a score."""
        reasons = [str(row["reason"]) for row in self.failed()]
        what = f"all {len(reasons)} trials failed, the first by: {reasons[0] if reasons else ''}"
        return ModelError("--trials", what, f"delete {self.folder} to start again")


def _result(future: Future[Outcome]) -> Outcome:
    try:
        return future.result()
    except (ImportError, AttributeError) as err:  # what can't be unpickled there
        fix = "install the same version of edgeshrink[build,cluster] on every worker"
        raise ToolchainError("a worker", f"can't run a trial ({err})", fix) from err


def _folder_of(folder: Path, number: int) -> Path:
    return folder / f"trial-{number}"


def _pareto(
    found: Sequence[Trial], chosen: Trial, search: _Search, budget: Budget
) -> dict[str, Any]:
    """Return what the search found, as `pareto.json` holds it."""
    best = {t.number for t in front(found, search.task.metric.direction)}
    return {
        "metric": search.task.metric.name,
        "direction": search.task.metric.direction,
        "split": "validation",
        "float_score": search.before,
        "objectives": ["score", *search.names],
        "limits": {n: v for n, v in vars(budget).items() if v is not None},
        "trials": [
            {
                "number": t.number, "widths": t.widths, "score": t.score, "drop": t.drop,
                "fits": t.fits, "front": t.number in best, "chosen": t.number == chosen.number,
                "figures": {n: f.to_json() for n, f in t.figures.items()},
                "recipe": t.recipe.to_json(),
            }
            for t in found
        ],
        "failed": search.failed(),
    }  # fmt: skip


# In a worker


def run_trial(job: Job) -> Outcome:
    """Load the task, do the recipe, score the quantized model on the validation split."""
    with _ONE_AT_A_TIME, quiet():
        if job.n_threads:
            torch.set_num_threads(job.n_threads)
        try:
            return Outcome(score=_score_of(job))
        except EdgeshrinkError as err:
            kind = next((k for k in (*_ERRORS, "") if k in {c.__name__ for c in type(err).__mro__}),
                        "")  # fmt: skip
            return Outcome(error=(kind, err.where, err.what, err.fix))


def _score_of(job: Job) -> float:
    task, seed = job.place.load(), job.place.seed
    if task.training is not None:
        trained = job.folder / FLOAT
        if not (trained / CHECKPOINT).is_file():
            fix = "workers need the folders of the task, its data and --out under the same paths"
            raise ToolchainError(str(trained), "is not there on a worker", fix)
        train(task, seed=seed, checkpoints=trained)  # at once: it is finished
    task = replace(task, training=None)
    if digest_of(task.model) != job.model:
        fix = "draw random numbers from the seed alone, and use the same versions on every worker"
        raise ConfigError(f"task {task.name!r}", "gives another model in another process", fix)
    recipe = job.recipe
    folder = _folder_of(job.folder, job.number)
    if compressing_steps(recipe):
        claim_folder(folder, claim(task, job.target, seed))
        claim_steps(folder / STEPS, recipe)
    compressed = compress(task, recipe, job.target, seed=seed, checkpoints=folder / STEPS)
    step = quantizing_step(recipe)
    if not isinstance(step, Quantize):
        final = compressed.reports[-1].score_after
        assert final is not None  # there is a score, and a validation split
        return final
    quantized = TrainableQuantized(
        compressed.model.eval(),
        tuple(x.detach().clone() for x in task.example_inputs),
        [
            tuple(torch.from_numpy(a) for a in sample)
            for sample in calibration_samples(task, step.n_samples)
        ],
        observer=step.observer,
    ).finish()
    return score(task, float_predict(quantized), "validation")
