"""What a build without a recipe tries, in which order, and what it leaves when all of it misses."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgeshrink import outlook
from edgeshrink.budget import Budget
from edgeshrink.compression.prune import pruning
from edgeshrink.compression.steps import Context
from edgeshrink.errors import BudgetError
from edgeshrink.outlook import build_to_fit, plan_task
from edgeshrink.planning import price
from edgeshrink.quantizer.sketch import sketch
from edgeshrink.recipe import Prune, Recipe, TrainQuantized, kept_channels
from edgeshrink.target import load_target
from edgeshrink.task import ArraySplit, Task, Training

TARGET = load_target("rp2040")
TIGHT = Budget(flash_bytes=9000)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 24, 3, padding=1), nn.Conv2d(24, 32, 3, padding=1)
        self.last = nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.b(torch.relu(self.a(x)))).mean(dim=(2, 3)))


def make_task() -> Task:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((12, 1, 6, 6), np.float32)
    labels = rng.integers(0, 3, 12)
    split = ArraySplit(inputs=(images,), targets=labels)
    data = {"train": split, "validation": split, "test": split}

    def evaluate(predict, name: str) -> float:
        hits = [predict(*x).argmax(axis=1) == y for x, y in data[name]]
        return float(np.concatenate(hits).mean())

    return Task(
        model=Net().eval(), example_inputs=(torch.from_numpy(images[:1]),), data=data,
        evaluate=evaluate, loss=nn.functional.cross_entropy,
    )  # fmt: skip


def widths(recipe: Recipe) -> dict[str, int]:
    step = recipe.steps[0]
    return kept_channels(step) if isinstance(step, Prune) else {}


@pytest.fixture
def tried(monkeypatch, tmp_path):
    """Replace the build by one that fails as `errors` say, and leaves what a build leaves."""
    recipes: list[Recipe] = []
    errors: list[BudgetError] = []

    def build(task, target, *, recipe, out, **others):
        recipes.append(recipe)
        if not errors:
            return "built"
        rejected = Path(out).with_name(Path(out).name + ".rejected")
        rejected.mkdir()
        (rejected / "attempt").write_text(str(len(recipes)))
        raise errors.pop(0)

    monkeypatch.setattr(outlook, "build", build)
    return recipes, errors


def go(tmp_path, budget=TIGHT, recipe=None):
    return build_to_fit(
        make_task(), TARGET, recipe=recipe, budget=budget, out=tmp_path / "out", seed=0
    )


def missed(what: str, need: float, limit: float = 100) -> BudgetError:
    return BudgetError(what, need=need, limit=limit, unit="B")


def test_what_fits_is_built_by_the_default_recipe(tried, tmp_path):
    assert go(tmp_path, Budget(flash_bytes=1 << 20)) == "built"
    assert tried[0] == [Recipe()]


def test_a_recipe_given_is_built_whatever_it_costs(tried, tmp_path):
    given = Recipe(steps=(Prune(ratio=0.1), *Recipe().steps))
    assert go(tmp_path, recipe=given) == "built"
    assert tried[0] == [given]


def test_what_does_not_fit_is_pruned(tried, tmp_path):
    assert go(tmp_path) == "built"
    (recipe,) = tried[0]
    assert widths(recipe)


def test_after_a_size_that_misses_something_narrower_is_built(tried, tmp_path):
    recipes, errors = tried
    errors.append(missed("flash", 101))
    assert go(tmp_path) == "built"
    first, second = recipes
    whole = {"a": 24, "b": 32}
    before, behind = (sum((whole | widths(r)).values()) for r in (first, second))
    assert behind < before


def test_after_a_drop_the_same_widths_are_trained_longer(tried, tmp_path):
    recipes, errors = tried
    errors.append(missed("drop", 0.05, 0.01))
    assert go(tmp_path) == "built"
    first, second = recipes
    assert widths(second) == widths(first)
    assert isinstance(second.steps[-1], TrainQuantized)


@pytest.fixture
def trains(monkeypatch):
    """Leave out the training of a task that asks for it, and set what the trained model spares."""
    drops: dict[str, dict[int, float]] = {}
    monkeypatch.setattr(outlook, "train", lambda task, **others: None)
    monkeypatch.setattr(outlook, "_sensitivity", lambda *given: drops)
    task = replace(make_task(), training=Training(epochs=1))
    return task, drops


COSTLY_A = {"a": {12: 0.9}, "b": {16: 0.0, 8: 0.0}}
COSTLY_B = {"a": {12: 0.0, 4: 0.0}, "b": {16: 0.9}}


@pytest.mark.parametrize("drops", [COSTLY_A, COSTLY_B])
def test_what_a_plan_promised_before_training_is_what_is_built(tried, trains, tmp_path, drops):
    task, measured = trains
    measured.update(drops)
    promised = plan_task(task, TARGET, TIGHT).chosen[0]
    build_to_fit(task, TARGET, recipe=None, budget=TIGHT, out=tmp_path / "out")
    ((recipe,), _) = tried
    model = deepcopy(task.model)
    context = Context(task=task, target=TARGET, seed=0)
    groups, cut = pruning(model, Prune(ratio=0.5), context)
    full = {g.root: g.n_channels for g in groups}
    narrow = cut(full | widths(recipe))
    priced = price(sketch(narrow, task.example_inputs).graph, TARGET, budget=TIGHT)
    for name, share in (("flash_bytes", 0.02), ("ram_bytes", 0.05), ("latency_ms", 0.1)):
        assert priced.figures[name].value == pytest.approx(
            promised.price.figures[name].value, rel=share
        )


def test_widths_that_were_promised_and_lose_too_much_give_way_to_what_training_showed(
    tried, trains, tmp_path
):
    task, measured = trains
    promised = plan_task(task, TARGET, TIGHT).chosen[0]
    costly = min(widths(promised.recipe))  # what the promise takes from
    measured.update({costly: dict.fromkeys((4, 8, 12, 16, 20), 1.0)})
    recipes, errors = tried
    errors += [missed("drop", 0.05, 0.01), missed("drop", 0.04, 0.01)]
    build_to_fit(task, TARGET, recipe=None, budget=TIGHT, out=tmp_path / "out")
    first, second, third = recipes
    assert widths(first) == widths(second) == widths(promised.recipe)
    assert widths(third) != widths(first)
    assert isinstance(third.steps[-1], TrainQuantized)


def test_the_closest_attempt_is_named_and_left(tried, tmp_path):
    recipes, errors = tried
    errors += [missed("flash", 110), missed("flash", 103), missed("flash", 120), missed("flash", 1)]
    with pytest.raises(BudgetError) as caught:
        go(tmp_path)
    assert len(recipes) <= outlook.ATTEMPTS
    assert caught.value.need == 103
    assert (tmp_path / "out.rejected" / "attempt").read_text() == "2"
    assert not (tmp_path / "out.rejected.best").exists()


def test_what_can_never_fit_is_refused_before_any_build(tried, tmp_path):
    with pytest.raises(BudgetError, match="lower bound"):
        go(tmp_path, Budget(flash_bytes=1000))
    assert not tried[0]


def test_sensitivity_is_measured_once_for_a_model(tmp_path, monkeypatch):
    calls = []
    real = outlook.score
    monkeypatch.setattr(outlook, "score", lambda *a: calls.append(a) or real(*a))
    first = plan_task(make_task(), TARGET, TIGHT, cache=tmp_path)
    n_calls = len(calls)
    assert n_calls > 2
    second = plan_task(make_task(), TARGET, TIGHT, cache=tmp_path)
    assert len(calls) == n_calls + 1  # the whole model, to know that it has the score it had
    assert [c.kept for c in first.candidates] == [c.kept for c in second.candidates]
    assert first.chosen[0].predicted_drop is not None
    other = make_task()
    with torch.no_grad():
        other.model.a.weight.mul_(-1)
    plan_task(other, TARGET, TIGHT, cache=tmp_path)
    assert len(calls) > n_calls


def test_a_damaged_cache_is_measured_again(tmp_path):
    found = plan_task(make_task(), TARGET, TIGHT, cache=tmp_path)
    (file,) = tmp_path.glob("*.json")
    file.write_text("{")
    again = plan_task(make_task(), TARGET, TIGHT, cache=tmp_path)
    assert [c.kept for c in found.candidates] == [c.kept for c in again.candidates]


def test_sensitivity_of_another_score_is_measured_again(tmp_path, monkeypatch):
    """The metric's own code is in no digest; what it says of the whole model is."""
    plan_task(make_task(), TARGET, TIGHT, cache=tmp_path)
    (file,) = tmp_path.glob("*.json")
    before = file.read_text()
    task = make_task()
    evaluate = task.evaluate
    changed = replace(task, evaluate=lambda predict, split: evaluate(predict, split) / 2)
    plan_task(changed, TARGET, TIGHT, cache=tmp_path)
    assert file.read_text() != before


def test_a_cache_that_can_not_be_written_costs_nothing_but_time(tmp_path):
    (tmp_path / "file").write_text("")
    found = plan_task(make_task(), TARGET, TIGHT, cache=tmp_path / "file" / "below")
    assert found.chosen


def fitting_budget() -> Budget:
    """Return a flash budget that quantizing alone is predicted to meet, just."""
    figures = plan_task(make_task(), TARGET, Budget()).candidates[0].price.figures
    return Budget(flash_bytes=int(figures["flash_bytes"].high) + 10)


def test_where_a_default_build_misses_what_it_was_predicted_to_meet_channels_go(tried, tmp_path):
    recipes, errors = tried
    budget = fitting_budget()
    assert budget.flash_bytes is not None
    errors.append(missed("flash", budget.flash_bytes * 1.02, budget.flash_bytes))
    assert go(tmp_path, budget) == "built"
    first, second = recipes
    assert first == Recipe()
    assert widths(second)


def test_where_a_default_build_loses_too_much_the_whole_model_is_trained_quantized(tried, tmp_path):
    recipes, errors = tried
    errors.append(missed("drop", 0.05, 0.01))
    assert go(tmp_path, Budget(flash_bytes=1 << 20)) == "built"
    first, second = recipes
    assert first == Recipe()
    assert not widths(second)
    assert isinstance(second.steps[-1], TrainQuantized)


def test_what_misses_for_no_figure_of_the_plan_is_told(tried, tmp_path):
    recipes, errors = tried
    errors.append(missed("arena", 5, 4))
    with pytest.raises(BudgetError, match="arena"):
        go(tmp_path, Budget(flash_bytes=1 << 20))
    assert len(recipes) == 1


def test_an_interrupted_build_does_not_repeat_the_attempts_that_failed(tried, tmp_path):
    recipes, errors = tried
    errors += [missed("flash", 101), KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path)
    first, second = recipes
    assert go(tmp_path) == "built"
    assert recipes[2:] == [second]
    assert not (tmp_path / "out.checkpoints").exists()
    assert go(tmp_path) == "built"  # what has come to its end begins again
    assert recipes[3:] == [first]


def test_each_attempt_has_checkpoints_of_its_own_and_failed_ones_leave_none(tmp_path, monkeypatch):
    folders = []

    def build(task, target, *, checkpoints, **others):
        folders.append(checkpoints)
        checkpoints.mkdir(parents=True)
        assert all(not f.exists() for f in folders[:-1])
        raise missed("flash", 100 + len(folders))

    monkeypatch.setattr(outlook, "build", build)
    with pytest.raises(BudgetError):
        go(tmp_path)
    assert len(set(folders)) == outlook.ATTEMPTS
    assert not (tmp_path / "out.checkpoints").exists()
