"""Prices: of narrowed graphs, of firmware, of files; near what a build then finds."""

from __future__ import annotations

import functools
import time

import numpy as np
import pytest
import torch
from torch import nn

from edgeshrink.budget import Budget
from edgeshrink.channels import ChannelGroup
from edgeshrink.costs import graph_macs
from edgeshrink.costs.firmware import constant_bytes
from edgeshrink.errors import ModelError
from edgeshrink.lowering import lower
from edgeshrink.passes import run_passes
from edgeshrink.planning import price
from edgeshrink.planning.narrow import narrow
from edgeshrink.quantizer.sketch import sketch
from edgeshrink.target import load_target
from tests.zoo import zoo_task


class Joined(nn.Module):
    """Two branches that meet by addition and by concatenation, then a flattened map."""

    def __init__(self, width: int = 8, other: int = 12) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(1, width, 1)
        self.deep = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.more = nn.Conv2d(width, other, 1)
        self.last = nn.Linear((width + other) * 16, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined = torch.relu(self.left(x) + self.right(x))
        joined = nn.functional.max_pool2d(self.deep(joined), 2)
        return self.last(torch.cat([joined, self.more(joined)], 1).flatten(1))


def group(root: str, n: int, *members: str) -> ChannelGroup:
    return ChannelGroup(
        root=root, n_channels=n, n_ways=1, importance=np.arange(n, dtype=float),
        members={path: np.arange(n)[:, None] for path in (root, *members)},
    )  # fmt: skip


GROUPS = (group("left", 8, "right", "deep"), group("more", 12))


@pytest.fixture(scope="module")
def joined():
    torch.manual_seed(1)
    return sketch(Joined().eval(), (torch.randn(1, 1, 8, 8),))


def stored_shapes(graph):
    return [[graph.tensors[i].shape for i in (*op.inputs, *op.outputs)] for op in graph.ops]


def test_a_narrowed_graph_has_the_shapes_of_the_narrow_model(joined):
    narrowed = narrow(joined, GROUPS, {"left": 5, "more": 7})
    built = sketch(Joined(5, 7).eval(), (torch.randn(1, 1, 8, 8),)).graph
    assert stored_shapes(narrowed) == stored_shapes(built)
    assert graph_macs(narrowed) == graph_macs(built)


def test_what_stays_are_the_most_important_channels(joined):
    narrowed = narrow(joined, GROUPS, {"left": 8, "more": 5})
    (op,) = joined.layers["more"]
    weight = joined.graph.ops[op].inputs[1]
    assert np.array_equal(narrowed.tensors[weight].data, joined.graph.tensors[weight].data[7:])


def test_keeping_all_changes_nothing(joined):
    assert stored_shapes(narrow(joined, GROUPS, {})) == stored_shapes(joined.graph)


def test_branches_that_keep_different_channels_can_not_be_joined(joined):
    with pytest.raises(ModelError, match="different channels"):
        narrow(joined, [group("left", 8)], {"left": 4})


@pytest.mark.parametrize("name", ["nucleo-l4r5zi", "rp2040", "nrf5340dk", "esp32-c3"])
def test_figures_say_that_they_are_modelled_and_unvalidated(joined, name):
    found = price(joined.graph, load_target(name))
    for key in ("flash_bytes", "ram_bytes", "latency_ms", "cycles"):
        figure = found.figures[key]
        assert (figure.how, figure.validated) == ("modelled", False)
        assert 0 < figure.low <= figure.value <= figure.high


@pytest.mark.parametrize("name", ["nucleo-l4r5zi", "rp2040"])
def test_bounds_lie_under_the_figures(joined, name):
    for optimize in ("latency", "ram", "flash"):
        found = price(joined.graph, load_target(name), optimize=optimize)
        for key, bound in found.bounds.items():
            assert 0 < bound <= found.figures[key].value


@pytest.mark.parametrize("name", ["nucleo-l4r5zi", "rp2040", "rpi4"])
def test_fewer_channels_cost_less_flash_and_fewer_products(joined, name):
    target = load_target(name)
    prices = [
        price(narrow(joined, GROUPS, {"left": n, "more": n}), target, optimize="flash").figures
        for n in (8, 4, 2)
    ]
    for key in ("flash_bytes", "macs"):
        values = [p[key].value for p in prices]
        assert values == sorted(values, reverse=True)
        assert len(set(values)) == 3


def test_a_flash_limit_brings_smaller_kernels(joined):
    target = load_target("nucleo-l4r5zi")
    free = price(joined.graph, target)
    small = price(joined.graph, target, optimize="flash")
    limit = int(small.figures["flash_bytes"].high) + 1
    assert limit < free.figures["flash_bytes"].value
    asked = price(joined.graph, target, budget=Budget(flash_bytes=limit))
    assert asked.optimize == "flash"
    assert not asked.overruns(Budget(flash_bytes=limit))


def test_excess_is_the_worst_limits_share(joined):
    found = price(joined.graph, load_target("rp2040"))
    flash, ram = (found.figures[k].high for k in ("flash_bytes", "ram_bytes"))
    budget = Budget(flash_bytes=round(flash * 2), ram_bytes=round(ram / 2))
    assert found.excess(budget) == pytest.approx(2.0, rel=0.01)
    assert [o.what for o in found.overruns(budget)] == ["ram"]


@pytest.mark.parametrize("name", ["ds-cnn", "resnet-8"])
def test_a_candidate_is_priced_in_under_a_second(name):
    task = zoo_task(name)
    graph = sketch(task.model, task.example_inputs).graph
    for target in ("nucleo-l4r5zi", "rp2040"):
        price(graph, load_target(target))  # imports, and kernels read once
        seconds = []
        for _ in range(3):
            started = time.process_time()
            price(graph, load_target(target))
            seconds.append(time.process_time() - started)
        assert min(seconds) < 1


def test_constants_are_counted_as_the_code_generator_writes_them(joined):
    from edgeshrink.codegen import generate

    clean, _ = run_passes(joined.graph)
    lowered = lower(clean, ("dsp", "fpu"), arena_seconds=0)
    written = generate(lowered, "net")
    exact = written.weight_bytes + written.table_bytes
    assert exact <= constant_bytes(lowered) <= exact + 64 + 3 * 4 * len(lowered.steps)


@functools.cache
def exported_bytes(name: str) -> bytes:
    from edgeshrink.exporting import export
    from edgeshrink.recipe import Quantize

    found = export(
        zoo_task(name), load_target("rp2040"), Quantize(), progress=lambda share, detail: None
    )
    return found.tflite


# Reached: 2 % of flash, 5 % of RAM, 10 % of the cycles that the emulated core takes.
@pytest.mark.slow
@pytest.mark.parametrize("target_name", ["nucleo-l4r5zi", "rp2040"])
@pytest.mark.parametrize("optimize", ["latency", "flash"])
@pytest.mark.parametrize("name", ["ds-cnn", "resnet-8", "mobilenet-v1-0.25-96"])
def test_prices_are_near_what_a_build_finds(name, optimize, target_name, tmp_path):
    from edgeshrink.firmware import profile_model

    task, target = zoo_task(name), load_target(target_name)
    predicted = price(sketch(task.model, task.example_inputs).graph, target, optimize=optimize)
    path = tmp_path / "model.tflite"
    path.write_bytes(exported_bytes(name))
    _, profile = profile_model(path, target, optimize=optimize)
    for key, share in (("flash_bytes", 0.02), ("ram_bytes", 0.05), ("latency_ms", 0.10)):
        real, expected = profile.figures[key].value, predicted.figures[key].value
        assert abs(expected / real - 1) <= share, f"{key}: {expected} predicted, {real} found"
