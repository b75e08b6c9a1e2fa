"""Observers find the ranges that brute force over the values themselves finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgeshrink.quantizer import canonical_program, quantize
from edgeshrink.quantizer.annotate import EPSILON, OBSERVERS
from edgeshrink.quantizer.observers import (
    COVERED,
    CountingObserver,
    EntropyObserver,
    MseObserver,
    PercentileObserver,
)
from edgeshrink.recipe import Quantize

OPTIONS = {
    "dtype": torch.int8, "quant_min": -128, "quant_max": 127,
    "qscheme": torch.per_tensor_affine, "eps": EPSILON,
}  # fmt: skip
RNG = np.random.default_rng(0)
DATA = {
    "normal": RNG.normal(size=20_000),
    "half": np.maximum(RNG.normal(size=20_000), 0),
    "outliers": np.concatenate([RNG.normal(size=20_000), [60.0, -35.0]]),
    "shifted": RNG.normal(3, 0.5, size=20_000),
    "long tail": RNG.exponential(size=20_000) ** 2,
    "small": RNG.normal(size=3_000) * 1e-3,
}


def seen(kind: type[CountingObserver], values: np.ndarray, n_parts: int = 1) -> CountingObserver:
    observer = kind(**OPTIONS)
    for part in np.array_split(values.astype(np.float32), n_parts):
        observer(torch.from_numpy(part))
    return observer


def squared_error(values: np.ndarray, low: float, high: float) -> float:
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / 255, EPSILON)
    zero = np.clip(-128 - np.round(low / scale), -128, 127)
    codes = np.clip(np.round(values / scale) + zero, -128, 127)
    return float((((codes - zero) * scale - values) ** 2).sum())


@pytest.mark.parametrize("name", DATA)
def test_bins_hold_every_value_where_it_belongs(name):
    values = DATA[name].astype(np.float32)
    observer = seen(CountingObserver, values, n_parts=7)
    edges = (np.arange(len(observer.counts) + 1) + observer.first) * observer.width
    expected, _ = np.histogram(values[values != 0].astype(np.float64), edges)
    # numpy counts a value on the last edge in; ours lie strictly below it
    assert np.array_equal(observer.counts.numpy(), expected)
    assert observer.n_zeros == (values == 0).sum()
    assert (observer.least, observer.largest) == (values.min(), values.max())


@pytest.mark.parametrize("name", ["percentile", "mse", "entropy"])
@pytest.mark.parametrize("data", DATA)
def test_ranges_depend_neither_on_batches_nor_on_order(name, data):
    values = DATA[data]
    found = [
        seen(OBSERVERS[name], each, n_parts).calculate_qparams()
        for each, n_parts in ((values, 1), (values, 13), (values[::-1].copy(), 5))
    ]
    assert len({(float(scale), int(zero)) for scale, zero in found}) == 1


@pytest.mark.parametrize("name", DATA)
def test_percentile_range_leaves_out_the_share_it_says(name):
    values = DATA[name]
    observer = seen(PercentileObserver, values)
    low, high = observer.range()
    tail = (1 - COVERED) / 2
    assert low == pytest.approx(np.quantile(values, tail), abs=max(
        np.diff(np.sort(values)[:5]).max(), 2 * observer.width
    ))  # fmt: skip
    assert high == pytest.approx(np.quantile(values, 1 - tail), abs=max(
        np.diff(np.sort(values)[-5:]).max(), 2 * observer.width
    ))  # fmt: skip
    outside = ((values < low - observer.width) | (values > high + observer.width)).mean()
    assert outside <= 1 - COVERED + 1 / len(values)


def test_one_wild_value_moves_min_max_and_not_the_percentile():
    values = np.concatenate([RNG.normal(size=100_000), [500.0]])
    assert seen(PercentileObserver, values).range()[1] < 6


@pytest.mark.parametrize("name", DATA)
def test_mse_range_is_as_good_as_the_best_of_a_grid(name):
    """Brute force over both ends at once, on the values and not on counts."""
    values = DATA[name]
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    shares = np.linspace(0.05, 1, 20)
    best = min(squared_error(values, low * a, high * b) for a in shares for b in shares)
    observer = seen(MseObserver, values)
    assert squared_error(values, *observer.range()) <= 1.05 * best + 1e-12


def test_mse_range_clips_where_clipping_costs_less_than_coarse_steps():
    values = DATA["outliers"]
    low, high = seen(MseObserver, values).range()
    assert high < 60
    assert squared_error(values, low, high) < squared_error(values, values.min(), values.max())


def divergence(values: np.ndarray, observer: CountingObserver, low: float, high: float) -> float:
    """The published algorithm, bin by bin, in plain loops."""
    edges = (np.arange(len(observer.counts) + 1) + observer.first) * observer.width
    counts, _ = np.histogram(values[values != 0], edges)
    centres = (edges[:-1] + edges[1:]) / 2
    scale = max((high - low) / 255, EPSILON)
    zero = np.clip(-128 - np.round(low / scale), -128, 127)
    inside = [i for i, c in enumerate(centres) if low <= c < high]
    true = {i: float(counts[i]) for i in inside}
    true[inside[0]] += counts[: inside[0]].sum()
    true[inside[-1]] += counts[inside[-1] + 1 :].sum()
    groups: dict[int, list[int]] = {}
    for i in inside:
        code = int(np.clip(np.round(centres[i] / scale) + zero, -128, 127))
        groups.setdefault(code, []).append(i)
    stored = dict.fromkeys(inside, 0.0)
    for members in groups.values():
        used = [i for i in members if counts[i]]
        for i in used:
            stored[i] = sum(counts[j] for j in members) / len(used)
    p_sum, q_sum, total = sum(true.values()), sum(stored.values()), 0.0
    for i in inside:
        if true[i]:
            p, q = true[i] / p_sum, max(stored[i] / q_sum, 1e-12)
            total += p * np.log(p / q)
    return total


@pytest.mark.parametrize("name", ["half", "outliers", "long tail"])
def test_entropy_costs_are_the_divergence_that_was_published(name):
    values = DATA[name].astype(np.float32).astype(np.float64)
    observer = seen(EntropyObserver, values)
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    for share in (0.3, 0.7, 1.0):
        expected = divergence(values, observer, np.float32(low * share), np.float32(high * share))
        got = observer.cost(float(np.float32(low * share)), float(np.float32(high * share)))
        assert got == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_entropy_range_is_no_worse_than_any_of_a_scan_and_clips_outliers():
    values = DATA["outliers"]
    observer = seen(EntropyObserver, values)
    low, high = observer.range()
    assert 2 < high < 30
    least = min(observer.cost(low, 60 * share) for share in np.linspace(0.15, 1, 40))
    assert observer.cost(low, high) <= 1.02 * least


@pytest.mark.parametrize("name", ["percentile", "mse", "entropy"])
@pytest.mark.parametrize("value", [0.0, 2.5, -1e-6])
def test_constant_values_get_a_scale_that_is_finite(name, value):
    observer = OBSERVERS[name](**OPTIONS)
    observer(torch.full((10,), value))
    scale, zero = observer.calculate_qparams()
    assert EPSILON <= float(scale) < 1
    back = (np.clip(np.round(value / float(scale)) + int(zero), -128, 127) - int(zero)) * scale
    assert float(back) == pytest.approx(value, abs=float(scale))


def test_recipe_and_quantizer_know_the_same_observers():
    import typing

    assert set(typing.get_args(typing.get_type_hints(Quantize)["observer"])) == set(OBSERVERS)


@pytest.mark.parametrize("name", ["percentile", "mse", "entropy"])
def test_networks_are_quantized_with_every_observer(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    samples = [(torch.randn(1, 1, 8, 8),) for _ in range(12)]
    graph_module = canonical_program(model, samples[0])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = quantize(graph_module, samples, observer=name)
    with torch.no_grad():
        expected = torch.cat([model(*x) for x in samples])
        got = torch.cat([result.folded(*x) for x in samples])
    assert float(((got - expected) ** 2).mean()) < 0.01 * float(expected.var())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
