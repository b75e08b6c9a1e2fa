"""Searches: which recipes there are, which of those tried stay, a study that outlives a crash."""

from __future__ import annotations

import itertools
import sys
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeshrink import trials
from edgeshrink.budget import Budget
from edgeshrink.errors import ConfigError, ModelError, ToolchainError
from edgeshrink.executors import Workers
from edgeshrink.outlook import planned_widths
from edgeshrink.planning import Trainable
from edgeshrink.planning import study as studies
from edgeshrink.planning.search import (
    Space,
    Trial,
    Widths,
    first_choices,
    front,
    in_order,
    recipe_of,
)
from edgeshrink.planning.study import FILE, close, distributions, open_study
from edgeshrink.profile import exact
from edgeshrink.recipe import Prune, Quantize, Recipe, TrainQuantized, read_recipe
from edgeshrink.target import load_target
from edgeshrink.trials import Outcome, TaskPlace
from tests.unit.test_outlook import make_task

TARGET = load_target("rp2040")
ALL = Trainable(epochs=8, can_distill=True, has_validation=True)


def widths(name: str, flash: float, keep: tuple[str, ...] = ()) -> Widths:
    figures = {"flash_bytes": exact(flash, "B", how="modelled")}
    return Widths(name=name, keep=keep, figures=figures, fits=True)


SPACE = Space(
    widths=(widths("whole", 100), widths("half", 60, ("a=4",)), widths("least", 30, ("a=2",))),
    trainable=ALL,
)


def trial(number: int, score: float, flash: float, ram: float = 0, *, fits: bool = True) -> Trial:
    figures = {
        "flash_bytes": exact(flash, "B", how="modelled"),
        "ram_bytes": exact(ram, "B", how="modelled"),
    }
    return Trial(
        number=number, widths="w", recipe=Recipe(), score=score, drop=0, figures=figures, fits=fits
    )


SMALL = st.integers(0, 4)


@given(points=st.lists(st.tuples(SMALL, SMALL, SMALL), max_size=12))
def test_the_front_is_what_nothing_beats(points):
    found = [trial(i, score, flash, ram) for i, (score, flash, ram) in enumerate(points)]
    kept = {t.number for t in front(found, "higher")}
    for i, (score, flash, ram) in enumerate(points):
        better = any(
            s >= score and f <= flash and r <= ram and (s, f, r) != (score, flash, ram)
            for s, f, r in points
        )
        is_first = points.index((score, flash, ram)) == i
        assert (i in kept) == (not better and is_first)


def test_lower_scores_win_where_lower_is_better():
    found = [trial(0, 1.0, 5), trial(1, 2.0, 5)]
    assert [t.number for t in front(found, "lower")] == [0]
    assert in_order(found, "lower")[0].number == 0


def test_the_best_that_fits_is_built_first_and_of_equals_the_smallest():
    found = [trial(0, 0.9, 9), trial(1, 0.9, 5), trial(2, 0.95, 1, fits=False), trial(3, 0.8, 1)]
    assert [t.number for t in in_order(found, "higher")] == [1, 0, 3]
    assert [t.number for t in in_order([found[2]], "higher")] == [2]


@pytest.mark.parametrize(
    "trainable",
    [ALL, Trainable(epochs=0), Trainable(epochs=3), Trainable(epochs=1, has_validation=True)],
)
def test_every_point_of_the_space_is_a_recipe_that_can_be_read(trainable, tmp_path):
    space = replace(SPACE, trainable=trainable)
    known = distributions(space)
    corners = [[v.low, v.high] if hasattr(v, "low") else list(v.choices) for v in known.values()]
    for values in itertools.product(*corners):
        recipe = recipe_of(space, dict(zip(known, values, strict=True)))
        assert isinstance(recipe.steps[-1], Quantize | TrainQuantized)
        path = tmp_path / "recipe.toml"
        path.write_text(recipe.to_toml())
        assert read_recipe(path) == recipe
    for choices in first_choices(space):
        chosen = {k: v for k, v in choices.items() if k in known}
        assert chosen.keys() == known.keys()
        assert all(known[k]._contains(known[k].to_internal_repr(v)) for k, v in chosen.items())


def test_the_first_trial_is_what_a_build_without_a_search_does():
    first, second = (recipe_of(SPACE, c) for c in first_choices(SPACE))
    assert first == Recipe()
    assert isinstance(second.steps[-1], TrainQuantized)
    tight = replace(SPACE, widths=SPACE.widths[1:])
    assert isinstance(recipe_of(tight, first_choices(tight)[0]).steps[0], Prune)


# ---- the study


def opened(folder, **identity):
    return open_study(folder, {"task": "t", "seed": "0"} | identity, ["higher", "lower"])


def test_a_study_of_something_else_is_refused_and_left(tmp_path):
    close(opened(tmp_path))
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(ConfigError, match=r"another seed \(0\), this is 1"):
        opened(tmp_path, seed="1")
    assert (tmp_path / FILE).read_bytes() == before
    close(opened(tmp_path))


@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_study_names_the_file_and_what_to_do(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(ConfigError, match=r"study\.db.*damaged.*delete"):
        opened(tmp_path)
    assert (tmp_path / FILE).read_bytes() == content


def test_a_study_that_goes_on_draws_what_it_would_have_drawn(tmp_path):
    def drawn(folder, *, reopened: bool) -> list:
        study = opened(folder)
        found = []
        for number in range(5):
            if reopened:
                close(study)
                study = opened(folder)
            asked = studies.ask(study, SPACE, 0)
            assert asked.number == number
            studies.tell(study, number, number / 5, [1.0], 0.0)
            found.append(asked.choices)
        close(study)
        return found

    whole = drawn(tmp_path / "whole", reopened=False)
    assert drawn(tmp_path / "reopened", reopened=True) == whole
    assert len({repr(choices) for choices in whole}) == 5


def test_a_trial_that_nobody_finished_is_still_running_when_the_study_goes_on(tmp_path):
    study = opened(tmp_path)
    number = studies.ask(study, SPACE, 0).number
    close(study)
    study = opened(tmp_path)
    assert [(a.number, a.state) for a in studies.trials(study)] == [(number, "running")]
    studies.tell(study, number, 0.5, [1.0], 0.0)
    assert [(a.state, a.score) for a in studies.trials(study)] == [("finished", 0.5)]
    close(study)


# ---- trials, run in this process by an executor that fails as it is told


class Inline(Executor):
    """Runs at once what is submitted, through `answer(job)`; an exception is the future's."""

    def __init__(self, answer) -> None:
        self.answer = answer

    def submit(self, fn, /, job):
        future: Future = Future()
        try:
            future.set_result(self.answer(job))
        except (BrokenProcessPool, RuntimeError, ImportError) as err:
            future.set_exception(err)
        return future


def score_of(job) -> Outcome:
    """Return a score that depends on the recipe alone."""
    text = job.recipe.to_toml()
    return Outcome(score=0.5 + 0.4 * (sum(text.encode()) % 97) / 97)


@cache
def _planned(budget):
    return planned_widths(
        make_task(), TARGET, budget, ALL, optimize="latency", threads=1, seed=0, cache=None,
        progress=lambda share, detail: None,
    )  # fmt: skip


def planned(task, target, budget, trainable, **others):
    """Return the widths of the planner, found once for all tests."""
    return _planned(budget)


@pytest.fixture
def search(monkeypatch, tmp_path):
    """Return what runs a search with `answer`; the build at its end gives what it was asked for."""
    built: list[dict] = []

    def build(task, target, *, recipe, study, **others):
        built.append({"recipe": recipe, "study": study})
        return built[-1]

    def go(answer, n_trials=5, **changes):
        @contextmanager
        def workers(**asked):
            yield Workers(executor=Inline(answer), count=2)

        monkeypatch.setattr(trials, "build", build)
        monkeypatch.setattr(trials, "open_workers", workers)
        monkeypatch.setattr(trials, "planned_widths", planned)
        task = changes.pop("task", None) or make_task()
        return trials.search_and_build(
            TaskPlace(spec="nowhere"), task, TARGET, out=tmp_path / "out", n_trials=n_trials,
            **{"budget": Budget(flash_bytes=9000), **changes},
        )  # fmt: skip

    return go


def test_the_best_trial_is_built_and_all_are_in_the_front_file(search):
    done = search(score_of)
    study = done["study"]
    assert len(study["trials"]) == 5
    assert study["objectives"] == ["score", "flash_bytes"]
    (chosen,) = (t for t in study["trials"] if t["chosen"])
    assert chosen["front"]
    assert chosen["score"] == max(t["score"] for t in study["trials"])
    assert chosen["recipe"] == done["recipe"].to_json()
    assert all(t["figures"]["flash_bytes"]["high"] <= 9000 for t in study["trials"])


def test_where_the_whole_models_figures_are_out_of_reach_together_the_budget_counts(monkeypatch):
    # A whole model that kernels for flash made small and slow leaves limits that nothing meets.
    module = sys.modules["edgeshrink.planning.plan"]
    monkeypatch.setattr(module, "_at_most", lambda *given: Budget(flash_bytes=100))
    budget = Budget(flash_bytes=9000)
    found = planned_widths(
        make_task(), TARGET, budget, ALL, optimize="latency", threads=1, seed=0, cache=None,
        progress=lambda share, detail: None,
    )  # fmt: skip
    assert found
    assert found[0].name == "within-100%"
    assert not any(c.overruns for c in found)


def test_a_search_in_which_nothing_can_fit_tries_the_narrowest(monkeypatch):
    search = sys.modules["edgeshrink.planning.plan"]._Search
    monkeypatch.setattr(search, "widths", lambda *given: None)
    (only,) = planned_widths(
        make_task(), TARGET, Budget(flash_bytes=9000), ALL, optimize="latency", threads=1, seed=0,
        cache=None, progress=lambda share, detail: None,
    )  # fmt: skip
    assert only.name == "narrowest"
    assert only.recipe.steps


def test_the_drop_of_a_trial_is_from_the_better_of_model_and_teacher(search):
    taught = replace(make_task(), teacher=make_task().model)
    answers = iter([0.4, 0.9])  # of the model, of its teacher
    taught = replace(taught, evaluate=lambda predict, split: next(answers))
    done = search(score_of, task=taught)
    assert done["study"]["float_score"] == 0.9


def test_a_worker_that_dies_costs_no_trial(search):
    jobs: list[int] = []

    def answer(job):
        jobs.append(job.number)
        if len(jobs) in (2, 5):
            raise BrokenProcessPool("a child process terminated abruptly")
        return score_of(job)

    done = search(answer)
    assert sorted(t["number"] for t in done["study"]["trials"]) == list(range(5))
    assert done["study"]["failed"] == []
    assert len(jobs) > 5


def test_workers_that_always_die_end_the_search(search):
    def answer(job):
        raise BrokenProcessPool("a child process terminated abruptly")

    with pytest.raises(ToolchainError, match="died 3 times in a row"):
        search(answer)


def test_an_interrupted_search_goes_on_with_what_it_had(search):
    asked: list[int] = []

    def interrupted(job):
        asked.append(job.number)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return score_of(job)

    with pytest.raises(KeyboardInterrupt):
        search(interrupted)
    again: list[int] = []
    done = search(lambda job: again.append(job.number) or score_of(job))
    assert asked[-1] in again  # what was cut off runs again, under its number
    assert not set(again) & set(asked[:2])
    assert len(done["study"]["trials"]) == 5


def test_a_finished_search_adds_trials_or_builds_at_once(search):
    search(score_of)
    jobs: list[int] = []
    search(lambda job: jobs.append(job.number) or score_of(job))
    assert jobs == []
    done = search(lambda job: jobs.append(job.number) or score_of(job), n_trials=7)
    assert len(done["study"]["trials"]) == 7
    assert all(number >= 5 for number in jobs)


def test_a_trial_that_fails_is_kept_with_its_reason(search):
    def answer(job):
        if job.number == 1:
            return Outcome(error=("ModelError", "training", "the loss is nan", "lower the rate"))
        return score_of(job)

    study = search(answer)["study"]
    assert [t["number"] for t in study["trials"]] == [0, 2, 3, 4]
    assert "loss is nan" in study["failed"][0]["reason"]


def test_when_all_trials_fail_the_reason_is_told(search):
    with pytest.raises(ModelError, match=r"all 5 trials failed.*the loss is nan"):
        search(lambda job: Outcome(error=("ModelError", "training", "the loss is nan", "x")))


def test_what_every_trial_would_fail_by_ends_the_search_at_once(search):
    jobs: list[int] = []

    def answer(job):
        jobs.append(job.number)
        return Outcome(error=("ConfigError", "task.py:build", "raised KeyError", "look there"))

    with pytest.raises(ConfigError, match="raised KeyError"):
        search(answer)
    assert len(jobs) <= 2


def test_a_worker_of_another_version_is_told(search):
    def answer(job):
        raise ImportError("no module named edgeshrink")

    with pytest.raises(ToolchainError, match="same version"):
        search(answer)


def test_another_target_or_budget_does_not_go_on_there(search):
    search(score_of)
    with pytest.raises(ConfigError, match="another budget"):
        search(score_of, budget=Budget(flash_bytes=8500))
    with pytest.raises(ConfigError, match="another seed"):
        search(score_of, seed=3)


def test_a_search_without_validation_scores_is_refused(search):
    task = make_task()
    data = {k: v for k, v in task.data.items() if k != "validation"}
    with pytest.raises(ConfigError, match="no split 'validation'"):
        search(score_of, task=replace(task, data=data))
    with pytest.raises(ConfigError, match="no evaluate"):
        search(score_of, task=replace(task, evaluate=None))


def test_a_drop_beyond_the_budget_is_never_preferred(search):
    study = search(score_of, budget=Budget(flash_bytes=9000, accuracy_drop=-0.2))["study"]
    before = study["float_score"]
    for t in study["trials"]:
        assert t["fits"] == (before - t["score"] <= -0.2)
    chosen = next(t for t in study["trials"] if t["chosen"])
    assert chosen["fits"] or not any(t["fits"] for t in study["trials"])
