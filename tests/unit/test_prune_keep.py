"""Pruning layers to the widths that a recipe names, as plans do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgeshrink.compression.prune import apply, pruning
from edgeshrink.compression.steps import Context
from edgeshrink.errors import ConfigError
from edgeshrink.recipe import Prune, read_recipe
from edgeshrink.target import load_target
from edgeshrink.task import ArraySplit, Task


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 2, 1),
    ).eval()  # fmt: skip


@pytest.fixture
def context() -> Context:
    samples = ArraySplit(inputs=(np.zeros((2, 1, 6, 6), np.float32),))
    task = Task(
        model=net(), example_inputs=(torch.zeros(1, 1, 6, 6),), data={"calibration": samples}
    )
    return Context(task=task, target=load_target("rp2040"), seed=0)


def widths(model: nn.Module) -> list[int]:
    return [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]


def test_named_layers_keep_what_is_named_and_others_all(context):
    changed = apply(net(), Prune(keep=("2=5",)), context)
    assert widths(changed.model) == [8, 5, 2]
    both = apply(net(), Prune(keep=("0=3", "2=7")), context)
    assert widths(both.model) == [3, 7, 2]


def test_rounds_end_at_the_named_width(context):
    assert widths(apply(net(), Prune(keep=("2=5",), rounds=3), context).model) == [8, 5, 2]


def test_the_channels_that_go_are_the_least_important(context):
    model = net()
    with torch.no_grad():
        model[0].weight.mul_(0.01)
        model[2].weight[:, [1, 4, 6]] *= 0.01
        for index in (0, 2, 3, 5, 7):
            model[0].weight[index] *= 100
    changed = apply(model, Prune(keep=("0=5",)), context)
    assert torch.equal(changed.model[0].weight, model[0].weight[[0, 2, 3, 5, 7]])


@pytest.mark.parametrize(
    ("keep", "said"),
    [("nowhere=4", "no layer 'nowhere'"), ("4=1", "can't shrink")],
)
def test_a_layer_that_can_not_be_named_is_refused(context, keep, said):
    with pytest.raises(ConfigError, match=said):
        apply(net(), Prune(keep=(keep,)), context)


def test_groups_say_which_outputs_of_which_layers_go_together(context):
    groups, cut = pruning(net(), Prune(ratio=0.5), context)
    by_root = {g.root: g for g in groups}
    assert {root: g.n_channels for root, g in by_root.items()} == {"0": 8, "2": 12}
    assert by_root["2"].members["2"][:, 0].tolist() == list(range(12))
    assert widths(cut({"0": 4, "2": 12})) == [4, 12, 2]


@pytest.mark.parametrize(
    "lines",
    ['keep = ["a"]', 'keep = ["a=0"]', 'keep = ["a=x"]', 'keep = ["a=1", "a=2"]', 'keep = ["=3"]',
     'keep = ["a=3"]\nmacs = 0.5'],
)  # fmt: skip
def test_widths_that_make_no_sense_are_refused(tmp_path, lines):
    path = tmp_path / "recipe.toml"
    path.write_text(f'[[steps]]\nstep = "prune"\n{lines}\n[[steps]]\nstep = "quantize"\n')
    with pytest.raises(ConfigError):
        read_recipe(path)
