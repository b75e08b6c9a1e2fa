"""Plans: the knapsack against brute force, certificates, and that more budget asks for less."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeshrink.budget import Budget
from edgeshrink.channels import ChannelGroup
from edgeshrink.errors import BudgetError
from edgeshrink.planning import Trainable, after, plan, price
from edgeshrink.planning.knapsack import Choice, knapsack
from edgeshrink.planning.plan import importance_loss, interpolated, levels
from edgeshrink.quantizer.sketch import sketch
from edgeshrink.recipe import Finetune, Prune, Quantize, TrainQuantized, read_recipe
from edgeshrink.target import load_target

COST = st.integers(0, 20).map(float)
CHOICE = st.builds(lambda loss, a, b: Choice(loss=loss, costs=(a, b)), COST, COST, COST)


def brute_force(groups, limits) -> float | None:
    """Return the least loss of all combinations that keep the limits."""
    losses = [
        sum(c.loss for c in picked)
        for picked in itertools.product(*groups)
        if all(sum(c.costs[i] for c in picked) <= limit for i, limit in enumerate(limits))
    ]
    return min(losses, default=None)


@given(
    groups=st.lists(st.lists(CHOICE, min_size=1, max_size=4), min_size=1, max_size=5),
    limits=st.tuples(st.integers(0, 60), st.integers(0, 60)),
)
@settings(max_examples=150, deadline=None)
def test_the_knapsack_finds_the_least_loss(groups, limits):
    chosen = knapsack(groups, limits)
    best = brute_force(groups, limits)
    assert (chosen is None) == (best is None)
    if chosen is not None:
        picked = [choices[number] for choices, number in zip(groups, chosen, strict=True)]
        assert sum(c.loss for c in picked) == best
        for i, limit in enumerate(limits):
            assert sum(c.costs[i] for c in picked) <= limit


def test_the_knapsack_of_nothing_is_nothing():
    assert knapsack([], (1.0,)) == ()


def group(root: str, n: int, importance=None) -> ChannelGroup:
    rated = np.ones(n) if importance is None else np.asarray(importance, float)
    return ChannelGroup(
        root=root, n_channels=n, n_ways=1, importance=rated,
        members={root: np.arange(n)[:, None]},
    )  # fmt: skip


@pytest.mark.parametrize("n", [2, 3, 7, 8, 16, 24, 31, 64, 256])
def test_levels_fall_from_the_whole_width_in_steps_that_kernels_like(n):
    found = levels(group("a", n))
    assert found[0] == n
    assert list(found) == sorted(set(found), reverse=True)
    assert all(width >= 2 for width in found)
    if n >= 8:
        assert all(width % 4 == 0 for width in found[1:])
        assert found[-1] == 4
    assert len(found) <= 8


def test_levels_keep_blocks_whole():
    blocks = ChannelGroup(root="a", n_channels=24, n_ways=3, importance=np.ones(8))
    assert all(width % 3 == 0 for width in levels(blocks))


def test_losing_channels_of_no_importance_costs_nothing():
    assert importance_loss(group("a", 8, [0, 0, 0, 0, 1, 1, 1, 1]), 4) == 0
    assert importance_loss(group("a", 8), 4) == pytest.approx(math.log(2))


def test_a_drop_between_measured_widths_lies_between_them_and_never_falls():
    measured = {4: 0.2, 8: 0.05, 12: 0.06}
    drops = [interpolated(measured, 16, width) for width in range(16, 1, -1)]
    assert drops[0] == 0
    assert drops == sorted(drops)
    assert interpolated(measured, 16, 4) == pytest.approx(0.2)
    assert interpolated(measured, 16, 6) == pytest.approx((0.2 + 0.06) / 2)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 32, 3, padding=1), nn.Conv2d(32, 48, 3, padding=1)
        self.last = nn.Linear(48, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.b(torch.relu(self.a(x)))).mean(dim=(2, 3)))


GROUPS = (group("a", 32), group("b", 48))
TARGET = load_target("rp2040")
CAN_TRAIN = Trainable(epochs=5, can_distill=True, has_validation=True)


@pytest.fixture(scope="module")
def drawn():
    torch.manual_seed(0)
    return sketch(Net().eval(), (torch.randn(1, 4, 8, 8),))


@pytest.fixture(scope="module")
def whole(drawn):
    return price(drawn.graph, TARGET, optimize="flash").figures


def planned(drawn, budget, **changes):
    return plan(drawn, GROUPS, TARGET, budget, **{"trainable": CAN_TRAIN, **changes})


def test_what_fits_is_quantized_and_nothing_else(drawn):
    found = planned(drawn, Budget(flash_bytes=1 << 20, ram_bytes=1 << 20))
    assert [c.name for c in found.chosen] == ["whole"]
    assert found.chosen[0].recipe.steps == (Quantize(),)


def test_candidates_meet_every_limit_gentlest_first(drawn, whole):
    budget = Budget(
        flash_bytes=round(whole["flash_bytes"].value * 0.6), ram_bytes=1 << 15,
        latency_ms=whole["latency_ms"].high,
    )  # fmt: skip
    found = planned(drawn, budget)
    assert found.candidates[0].name == "whole"
    assert [o.what for o in found.candidates[0].overruns] == ["flash"]
    assert len(found.chosen) >= 2
    for candidate in found.chosen:
        assert not candidate.price.overruns(budget)
    losses = [c.loss for c in found.chosen]
    assert losses == sorted(losses)


def test_a_larger_budget_never_asks_for_more_loss(drawn, whole):
    losses = []
    for share in (0.4, 0.55, 0.7, 0.85):
        budget = Budget(flash_bytes=round(whole["flash_bytes"].value * share))
        losses.append(planned(drawn, budget).chosen[0].loss)
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1]


def test_sensitivity_decides_which_group_gives_way(drawn, whole):
    budget = Budget(flash_bytes=round(whole["flash_bytes"].value * 0.7))
    costly_a = {"a": {16: 0.5, 4: 0.9}, "b": {24: 0.0, 4: 0.01}}
    costly_b = {"a": {16: 0.0, 4: 0.01}, "b": {24: 0.5, 4: 0.9}}
    first = planned(drawn, budget, sensitivity=costly_a).chosen[0]
    second = planned(drawn, budget, sensitivity=costly_b).chosen[0]
    assert first.kept["a"] == 32
    assert second.kept["b"] == 48
    assert first.predicted_drop is not None
    assert first.predicted_drop < 0.1


def test_recipes_are_files_that_can_be_read_again(drawn, whole, tmp_path):
    budget = Budget(flash_bytes=round(whole["flash_bytes"].value * 0.6))
    for candidate in planned(drawn, budget).chosen:
        path = tmp_path / f"{candidate.name}.toml"
        path.write_text(candidate.recipe.to_toml())
        assert read_recipe(path) == candidate.recipe


def test_recovery_distils_where_the_task_can_and_is_left_out_where_it_can_not(drawn, whole):
    budget = Budget(flash_bytes=round(whole["flash_bytes"].value * 0.6))
    first, second, *_ = planned(drawn, budget).chosen
    prune, finetune, _ = first.recipe.steps
    assert isinstance(prune, Prune)
    assert isinstance(finetune, Finetune)
    assert (finetune.epochs, finetune.distill) == (5, "soft")
    assert isinstance(second.recipe.steps[-1], TrainQuantized)
    assert second.kept == first.kept
    # The float model held the first one back: the second learns from the targets alone,
    assert [s.distill for s in second.recipe.steps[1:]] == ["none", "none"]
    taught = replace(CAN_TRAIN, has_teacher=True)  # but goes on with a teacher of the task's.
    second = planned(drawn, budget, trainable=taught).chosen[1]
    assert [s.distill for s in second.recipe.steps[1:]] == ["soft", "soft"]
    bare = planned(drawn, budget, trainable=Trainable(epochs=0)).chosen[0]
    assert [type(s) for s in bare.recipe.steps] == [Prune, Quantize]


def test_after_a_drop_come_the_same_widths_and_after_a_size_narrower_ones(drawn, whole):
    budget = Budget(flash_bytes=round(whole["flash_bytes"].value * 0.6))
    found = planned(drawn, budget)
    first = found.chosen[0]
    trained = after(found, first, "drop")
    assert trained
    assert all(c.kept == first.kept and c.recipe != first.recipe for c in trained)
    narrower = after(found, first, "flash")
    assert narrower
    assert all(c.kept != first.kept for c in narrower)


@pytest.mark.parametrize(
    ("budget", "what"),
    [
        (Budget(flash_bytes=1500), "flash"),
        (Budget(ram_bytes=300), "ram"),
        (Budget(latency_ms=0.01), "latency"),
    ],
)
def test_a_certificate_names_the_bound_the_limit_and_what_would_do(drawn, budget, what):
    with pytest.raises(BudgetError, match="nearest budget that would do") as caught:
        planned(drawn, budget)
    error = caught.value
    assert error.where == what
    assert error.need > error.limit
    assert error.exit_code == 4


@pytest.mark.parametrize("what", ["flash", "ram"])
def test_the_budget_that_a_certificate_names_does(drawn, what):
    with pytest.raises(BudgetError) as caught:
        planned(drawn, Budget(**{f"{what}_bytes": 300}))
    need = int(str(caught.value).partition(f"{what}=")[2].split(";")[0].split(",")[0])
    assert planned(drawn, Budget(**{f"{what}_bytes": need + 1})).chosen
