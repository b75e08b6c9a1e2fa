"""Structured pruning: how many channels go, which, and that the rest computes what it did."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from edgeshrink.compression.layers import macs_of
from edgeshrink.compression.prune import apply
from edgeshrink.compression.steps import Context
from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.exporting import export
from edgeshrink.predict import tflite_predict
from edgeshrink.program import ProgramModule
from edgeshrink.quantizer import canonical_program
from edgeshrink.recipe import Prune, Quantize
from edgeshrink.runtimes import open_model
from edgeshrink.scoring import score
from edgeshrink.target import load_target
from edgeshrink.task import ArraySplit, Task
from edgeshrink.task_loader import load_task
from edgeshrink.training import float_predict, train
from tests.zoo import ZOO, zoo_task


class Chain(nn.Module):
    """Two convolutions and a classifier without norms: easy to rate by hand."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, widths[0], 3, padding=1)
        self.second = nn.Conv2d(widths[0], widths[1], 3, padding=1)
        self.head = nn.Linear(widths[1], 4)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


def task_of(model: nn.Module, shape: tuple[int, ...] = (3, 8, 8), *, n: int = 32) -> Task:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((n, *shape)).astype(np.float32)
    return Task(
        model=model.eval(),
        example_inputs=(torch.from_numpy(inputs[:1]),),
        data={"train": ArraySplit(inputs=(inputs,), targets=rng.integers(0, 4, n), batch_size=8)},
        loss=nn.functional.cross_entropy,
    )


def run(model: nn.Module, step: Prune, shape: tuple[int, ...] = (3, 8, 8), **more):
    task = task_of(model, shape)
    return apply(model, step, context_of(task, **more)), task


def context_of(task: Task, **more) -> Context:
    return Context(task=task, target=load_target("nucleo-l4r5zi"), seed=0, **more)


def chain(*widths: int, seed: int = 0) -> Chain:
    torch.manual_seed(seed)
    return Chain(*widths)


def count_macs(model: nn.Module, example: torch.Tensor) -> int:
    """Count by the layers' own numbers: every output value takes one product for each weight."""
    total = 0

    def hook(layer, _inputs, output):
        nonlocal total
        if isinstance(layer, nn.Linear):
            total += output.numel() * layer.in_features
        else:
            per_output = layer.in_channels // layer.groups * math.prod(layer.kernel_size)
            total += output.numel() * per_output

    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d))]
    handles = [layer.register_forward_hook(hook) for layer in layers]
    with torch.no_grad():
        model(example)
    for handle in handles:
        handle.remove()
    return total


def widths_of(model: Chain) -> tuple[int, int]:
    return model.first.out_channels, model.second.out_channels


# How many


@given(st.floats(0.01, 0.95), st.integers(2, 24), st.integers(2, 24))
@settings(max_examples=15, deadline=None)
def test_per_layer_each_loses_its_share(ratio, first, second):
    changed, _ = run(chain(first, second), Prune(ratio=ratio, scope="layer", keep_multiple=1))
    expected = tuple(n - math.floor(ratio * n + 1e-9) for n in (first, second))
    assert widths_of(changed.model) == expected


@given(st.floats(0.01, 0.4), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_globally_the_share_of_all_channels_goes(ratio, seed):
    changed, _ = run(chain(16, 12, seed=seed), Prune(ratio=ratio, keep_multiple=1))
    assert sum(widths_of(changed.model)) == 28 - math.floor(ratio * 28 + 1e-9)


@pytest.mark.parametrize(
    ("width", "ratio", "multiple", "kept"),
    [
        (32, 0.5, 8, 16),
        (32, 0.3, 8, 24),  # 23 of 32
        (32, 0.6, 8, 16),  # 13 of 32
        (32, 0.9, 8, 8),  # never none
        (20, 0.5, 8, 8),  # 10 of 20
        (20, 0.05, 8, 16),  # 19 of 20
        (6, 0.5, 8, 4),  # narrower than the multiple: its divisor 4
        (3, 0.5, 8, 2),
        (24, 0.5, 1, 12),
        (24, 0.45, 12, 12),  # 14 of 24
    ],
)
def test_counts_are_rounded_to_multiples_where_layers_are_wide_enough(width, ratio, multiple, kept):
    step = Prune(ratio=ratio, scope="layer", keep_multiple=multiple)
    changed, _ = run(chain(width, width), step)
    assert widths_of(changed.model) == (kept, kept)


@pytest.mark.parametrize(
    ("name", "scope"),
    [
        *(pytest.param(n, "global", marks=[pytest.mark.slow] * ("mobilenet" in n)) for n in ZOO),
        ("resnet-8", "layer"),
    ],
)
def test_networks_of_the_literature_keep_at_most_the_share_of_macs(name, scope):
    task = zoo_task(name)
    (example,) = task.example_inputs
    before = count_macs(task.model, example)
    changed = apply(task.model, Prune(macs=0.5, scope=scope), context_of(task))
    after = count_macs(changed.model, example)
    assert 0.2 * before < after <= 0.5 * before
    assert changed.details["macs"] == {"before": before, "after": after}
    with torch.no_grad():
        want = changed.model(example)
        got = canonical_program(changed.model, task.example_inputs)(example)
    assert want.shape == task.model(example).shape
    assert torch.allclose(want, got, rtol=1e-3, atol=1e-3 * float(want.abs().max()))


@pytest.mark.parametrize("multiple", [1, 8])
def test_the_search_stops_at_the_widest_network_that_fits(multiple):
    model = chain(32, 32)
    kept = []
    for share in (0.3, 0.5, 0.7, 0.9):
        step = Prune(macs=share, keep_multiple=multiple, scope="layer")
        changed, task = run(copy.deepcopy(model), step)
        (example,) = task.example_inputs
        most = share * count_macs(model, example)
        first, second = widths_of(changed.model)
        assert count_macs(changed.model, example) <= most
        assert first % multiple == second % multiple == 0
        for wider in ((first + multiple, second), (first, second + multiple)):
            if max(wider) <= 32:
                assert count_macs(Chain(*wider), example) > most
        kept.append(first)
    assert kept == sorted(kept)


def test_macs_count_recurrent_layers_and_attention():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(6, 8, batch_first=True)
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, x):
            return self.layer(self.lstm(x)[0])

    lstm = 5 * 4 * 8 * (6 + 8)
    attention = 5 * 8 * 24 + 2 * 5 * 5 * 8 + 5 * 8 * 8
    feed_forward = 2 * 5 * 8 * 16
    model = Mixed().eval()
    assert macs_of(model, (torch.randn(1, 5, 6),)) == lstm + attention + feed_forward


# Which


def test_magnitude_takes_the_channels_with_the_smallest_weights():
    model = chain(8, 8)
    small = [1, 4, 6]
    with torch.no_grad():
        model.first.weight[small] *= 0.01
        model.second.weight[:, small] *= 0.01
    changed, _ = run(model, Prune(ratio=0.4, keep_multiple=1, scope="layer"))
    kept = [i for i in range(8) if i not in small]
    assert torch.equal(changed.model.first.weight, model.first.weight[kept])
    assert torch.equal(changed.model.first.bias, model.first.bias[kept])
    rows = [
        row for row in range(8)
        for new in changed.model.second.weight
        if torch.equal(model.second.weight[row][kept], new)
    ]  # fmt: skip
    assert rows == sorted(rows)
    assert len(rows) == 5


def test_taylor_takes_the_channels_that_the_loss_does_not_feel():
    model = chain(8, 8)
    unfelt = [0, 3, 5]
    with torch.no_grad():
        model.first.weight[unfelt] *= 100  # by magnitude they would be the last to go
        model.first.weight[unfelt] -= 50
        model.first.bias[unfelt] = -1e4  # but they are always off
    changed, _ = run(model, Prune(ratio=0.4, keep_multiple=1, scope="layer", importance="taylor"))
    kept = [i for i in range(8) if i not in unfelt]
    assert torch.equal(changed.model.first.weight, model.first.weight[kept])
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is None for p in changed.model.parameters())


def test_fpgm_takes_the_channel_in_the_middle_of_the_others():
    model = chain(8, 8)
    others = [0, 1, 3, 4, 5, 6, 7]
    with torch.no_grad():
        for weight in (model.first.weight, model.second.weight.transpose(0, 1)):
            weight[2] = weight[others].abs().mean(0)  # its filter says nothing of its own
            weight[2] *= 1.0
    changed, _ = run(model, Prune(ratio=0.13, keep_multiple=1, scope="layer", importance="fpgm"))
    assert torch.equal(changed.model.first.weight, model.first.weight[others])


def test_batch_norm_scales_decide_where_asked_to():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([5.0, 0.1, 4.0, 3.0, 0.2, 2.0, 1.0, 0.3]))
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    step = Prune(ratio=0.4, keep_multiple=1, scope="layer", importance="bn-scale")
    changed, _ = run(model, step)
    assert changed.model[1].weight.tolist() == [5.0, 4.0, 3.0, 2.0, 1.0]


def test_batch_norm_scales_of_a_model_without_norms_are_refused():
    with pytest.raises(ModelError, match="nothing that 'bn-scale' rates"):
        run(chain(8, 8), Prune(ratio=0.5, importance="bn-scale"))


def test_what_remains_computes_what_it_did_without_the_channels():
    model = chain(12, 10)
    changed, task = run(model, Prune(ratio=0.5, keep_multiple=1, scope="layer"))
    pruned = changed.model
    first, second = (
        [next(i for i, b in enumerate(old.bias) if b == new) for new in here.bias]
        for old, here in ((model.first, pruned.first), (model.second, pruned.second))
    )
    assert (len(first), len(second)) == (6, 5)
    (x,) = task.data["train"].inputs
    with torch.no_grad():
        y = torch.relu(model.first(torch.from_numpy(x)))
        y[:, [i for i in range(12) if i not in first]] = 0
        y = torch.relu(model.second(y))
        y[:, [i for i in range(10) if i not in second]] = 0
        expected = model.head(y.mean((2, 3)))
        assert torch.allclose(pruned(torch.from_numpy(x)), expected, atol=1e-5)


@pytest.mark.parametrize("importance", ["magnitude", "taylor", "fpgm", "lamp", "random"])
def test_equal_seeds_give_equal_models(importance):
    step = Prune(ratio=0.5, importance=importance, keep_multiple=1, epochs=1)
    states = [run(chain(16, 16), step)[0].model.state_dict() for _ in range(2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_random_importance_depends_on_the_seed():
    task = task_of(chain(16, 16))
    step = Prune(ratio=0.5, importance="random", keep_multiple=1, scope="layer")
    found = []
    for seed in (0, 1):
        context = Context(task=task, target=load_target("rpi4"), seed=seed)
        found.append(apply(task.model, step, context).model.first.weight)
    assert not torch.equal(found[0], found[1])


# What stays


def test_outputs_and_inputs_of_the_model_keep_their_channels():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.around = nn.Conv2d(8, 8, 3, padding=1)  # added to the input
            self.inner = nn.Conv2d(8, 16, 3, padding=1)
            self.map = nn.Conv2d(16, 8, 1)
            self.head = nn.Linear(16, 6)

        def forward(self, x):
            y = torch.relu(self.inner(x + self.around(x)))
            return {"map": self.map(y), "class": self.head(y.mean((2, 3)))}

    torch.manual_seed(0)
    changed, _ = run(Tied(), Prune(ratio=0.5, scope="layer"), (8, 8, 8))
    assert changed.model.around.weight.shape == (8, 8, 3, 3)
    assert changed.model.inner.weight.shape == (8, 8, 3, 3)
    assert changed.model.map.weight.shape == (8, 8, 1, 1)
    assert changed.model.head.weight.shape == (6, 8)
    assert set(changed.details["held"]) == {"around", "map", "head"}


def test_excluded_layers_and_all_within_them_keep_their_channels():
    model = nn.Sequential()
    model.stem = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
    model.body = nn.Conv2d(16, 16, 3)
    model.tail = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    changed, _ = run(model, Prune(ratio=0.5, scope="layer", exclude=("stem",)))
    assert changed.model.stem[0].out_channels == changed.model.stem[2].out_channels == 16
    assert changed.model.body.out_channels == 8


def test_the_model_given_is_left_as_it_is():
    model = chain(16, 16)
    before = copy.deepcopy(model.state_dict())
    changed, _ = run(model, Prune(ratio=0.5, epochs=1))
    assert changed.model is not model
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert widths_of(model) == (16, 16)


def test_frozen_parameters_stay_frozen():
    model = chain(16, 16)
    model.first.requires_grad_(False)
    changed, _ = run(model, Prune(ratio=0.5, scope="layer"))
    assert not changed.model.first.weight.requires_grad
    assert changed.model.second.weight.requires_grad
    assert not model.first.weight.requires_grad
    assert changed.model.first.out_channels == 8


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 32, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(8, 32)
        self.up = nn.ConvTranspose2d(32, 16, 2, 2)
        self.squeeze, self.excite = nn.Linear(16, 8), nn.Linear(8, 16)
        self.scale = nn.Parameter(torch.randn(16, 1, 1))
        self.head, self.side = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + torch.relu(self.depthwise(x)) * self.scale
        y = self.up(torch.relu(self.norm(self.grouped(x))))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3))))))
        return self.side(x.mean((2, 3))) + self.head((y * gate[:, :, None, None]).mean((2, 3)))


def test_what_depends_on_each_other_loses_the_same_channels():
    torch.manual_seed(0)
    model = Residual()
    step = Prune(ratio=0.5, scope="layer", keep_multiple=1)
    changed, task = run(model, step)
    pruned = changed.model
    # Tied by the sum: stem, depthwise and scale lose the same ones.
    kept = [
        next(i for i in range(16) if torch.equal(model.depthwise.weight[i], row))
        for row in pruned.depthwise.weight
    ]
    assert len(kept) == 8
    assert torch.equal(pruned.stem.weight, model.stem.weight[kept])
    assert torch.equal(pruned.scale, model.scale[kept])
    # Each of four groups keeps the same four of eight filters.
    assert pruned.grouped.weight.shape == (16, 2, 3, 3)
    assert pruned.norm.weight.shape == (16,)
    assert pruned.up.weight.shape == (16, 8, 2, 2)
    assert pruned.head.weight.shape == pruned.side.weight.shape == (4, 8)
    assert pruned.squeeze.weight.shape == (4, 8)
    (example,) = task.example_inputs
    assert canonical_program(pruned, (example,))(example).shape == (1, 4)


def test_layer_norms_keep_the_weights_of_the_channels_that_stay():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(6, 100)
            self.norm = nn.LayerNorm(100)
            self.head = nn.Linear(100, 4)

        def forward(self, x):
            return self.head(self.norm(self.embed(x)))

    torch.manual_seed(0)
    model = Normed()
    with torch.no_grad():
        model.norm.weight.copy_(torch.arange(100) + 1.0)
        model.norm.bias.copy_(torch.arange(100) + 0.5)
        model.embed.weight[:90] *= 1e-4  # only the last ten stay
        model.head.weight[:, :90] *= 1e-4
        model.norm.weight[:90] *= 1e-4
    changed, _ = run(model, Prune(ratio=0.9, scope="layer", keep_multiple=1), (6,))
    assert torch.equal(changed.model.embed.weight, model.embed.weight[90:])
    assert torch.equal(changed.model.norm.weight, model.norm.weight[90:])
    assert torch.equal(changed.model.norm.bias, model.norm.bias[90:])


def test_attention_loses_the_same_channels_of_every_head():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(12, 32)
            self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
            self.head = nn.Linear(32, 4)

        def forward(self, x):
            return self.head(self.layer(self.embed(x)).mean(1))

    torch.manual_seed(0)
    changed, task = run(Encoder(), Prune(ratio=0.5, scope="layer"), (7, 12))
    assert changed.model.layer.self_attn.embed_dim == 16
    assert changed.model.layer.linear1.out_features == 32
    (example,) = task.example_inputs
    assert canonical_program(changed.model, (example,))(example).shape == (1, 4)


def test_the_inputs_of_an_lstm_shrink_with_the_layer_before():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(6, 16, 3, padding=1)
            self.lstm = nn.LSTM(16, 8, batch_first=True)
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            return self.head(self.lstm(torch.relu(self.conv(x)).transpose(1, 2))[0][:, -1])

    torch.manual_seed(0)
    changed, _ = run(Recurrent(), Prune(ratio=0.5, scope="layer"), (6, 10))
    assert changed.model.conv.out_channels == changed.model.lstm.input_size == 8
    assert changed.model.lstm.hidden_size == 8


# What torch-pruning can't do


class FlatCat(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 16, 3, padding=1)
        self.head = nn.Linear(24 * 64, 4)

    def forward(self, x):
        return self.head(torch.cat([self.left(x), self.right(x)], 1).flatten(1))


class Shuffled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.first(x).unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return self.head(self.second(x).mean((2, 3)))


class Matrix(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(3 * 64, 16), nn.Linear(16, 4)
        self.mix = nn.Parameter(torch.randn(16, 16))

    def forward(self, x):
        return self.head(torch.relu(self.first(x.flatten(1))) @ self.mix)


class SkippedLstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, (8, 1))
        self.lstm = nn.LSTM(16, 16, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.conv(x).squeeze(2).transpose(1, 2)
        return self.head((x + self.lstm(x)[0])[:, -1])


class Heads(nn.Module):
    """Attention written by hand: nothing says how many heads the widths stand for."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(24, 32) for _ in range(3))
        self.back, self.wide, self.narrow = nn.Linear(32, 24), nn.Linear(24, 64), nn.Linear(64, 24)
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2).reshape(1, 8, 24)
        q, k, v = (
            layer(x).view(1, 8, 4, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = (torch.softmax(q @ k.transpose(2, 3) / 4, -1) @ v).transpose(1, 2).flatten(2)
        x = x + self.back(mixed)
        return self.head((x + self.narrow(torch.relu(self.wide(x)))).mean(1))


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        (FlatCat, ["left", "right"]),
        (Shuffled, ["first"]),
        (Matrix, ["first"]),
        (SkippedLstm, ["conv"]),
        (Heads, ["query", "key", "value"]),
    ],
)
def test_what_can_not_be_pruned_is_named_and_works_once_excluded(kind, layers):
    torch.manual_seed(0)
    model = kind()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match=r"can't be") as raised:
        run(model, Prune(ratio=0.5, scope="layer", keep_multiple=1))
    assert any(repr(layer) in raised.value.where for layer in layers)
    assert raised.value.fix.startswith("exclude = [")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    if kind is Heads:
        step = Prune(ratio=0.5, scope="layer", keep_multiple=1, exclude=tuple(layers))
        changed, _ = run(model, step)
        assert changed.model.wide.out_features == 32
        assert changed.model.query.out_features == 32


def test_channels_that_are_mixed_up_are_found_although_all_shapes_fit():
    torch.manual_seed(0)
    with pytest.raises(ModelError, match=r"'first'.*others are mixed up"):
        run(Shuffled(), Prune(ratio=0.5, scope="layer", keep_multiple=2))


class Normed(nn.Module):
    """A layer under weight norm, whose outputs no other layer gives."""

    def __init__(self):
        super().__init__()
        self.first = weight_norm(nn.Linear(8, 16))
        self.second, self.head = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


class BothWays(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRU(2, 12, bidirectional=True, batch_first=True)
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        _, last = self.cell(x)
        return self.head(torch.cat([last[-2], last[-1]], 1))


@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
def test_layers_under_weight_norm_stay_and_others_go(importance):
    step = Prune(ratio=0.5, scope="layer", importance=importance, exclude=("second",))
    with pytest.raises(ModelError, match=r"weight of first is computed, .*; merge such weights"):
        run(Normed(), step, (8,))
    changed, _ = run(Normed(), replace(step, exclude=()), (8,))
    assert changed.model.second.out_features == 8
    assert changed.model.first.out_features == 16
    assert "first (the weight of first is computed" in changed.note


@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
def test_recurrent_layers_that_run_both_ways_are_named_in_plain_words(importance):
    with pytest.raises(ModelError, match="through the bidirectional layer 'cell'") as raised:
        run(BothWays(), Prune(ratio=0.5, importance=importance), (6, 2))
    assert "Error" not in str(raised.value)
    assert "factorize" in raised.value.fix


def test_a_layer_that_the_loss_does_not_see_is_named():
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(8, 16), nn.Linear(16, 4)
            self.aside, self.other = nn.Linear(8, 16), nn.Linear(16, 2)

        def forward(self, x):
            return self.head(self.first(x).relu()), self.other(self.aside(x).relu())

    task = replace(task_of(Aside(), (8,)), loss=lambda y, t: nn.functional.cross_entropy(y[0], t))
    context = Context(task=task, target=load_target("rpi4"), seed=0)
    with pytest.raises(ModelError, match=r"'aside'.*the loss does not depend on aside.*exclude"):
        apply(task.model, Prune(ratio=0.5, importance="taylor"), context)


# Rounds


def test_rounds_reach_the_same_width_step_by_step():
    seen = []
    step = Prune(ratio=0.5, keep_multiple=1, scope="layer", rounds=3, epochs=1)
    changed, task = run(chain(12, 12), step, progress=lambda share, _: seen.append(share))
    macs = [entry["macs"] for entry in changed.details["rounds"]]
    (example,) = task.example_inputs
    assert macs == [count_macs(Chain(n, n), example) for n in (10, 8, 6)]
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_recovery_trains_the_pruned_model():
    step = Prune(ratio=0.5, keep_multiple=1, scope="layer")
    plain, _ = run(chain(8, 8), step)
    trained, _ = run(chain(8, 8), Prune(ratio=0.5, keep_multiple=1, scope="layer", epochs=1))
    assert plain.model.first.weight.shape == trained.model.first.weight.shape
    assert not torch.equal(plain.model.first.weight, trained.model.first.weight)


def test_macs_shrink_evenly_over_the_rounds():
    changed, task = run(chain(32, 32), Prune(macs=0.4, rounds=3, keep_multiple=1))
    (example,) = task.example_inputs
    start = count_macs(chain(32, 32), example)
    for entry, share in zip(changed.details["rounds"], (0.8, 0.6, 0.4), strict=True):
        assert (share - 0.1) * start < entry["macs"] <= share * start


# Bad input


def test_a_ratio_that_empties_a_layer_names_it():
    model = chain(8, 8)
    with torch.no_grad():  # three channels of `second` matter, those of `first` all alike
        model.first.weight.fill_(1.0)
        model.second.weight.fill_(1e-3)
        model.second.weight[[1, 4, 5]] = 1.0
        model.head.weight.fill_(1.0)
    with pytest.raises(ModelError, match=r"'first'.*ratio = 0\.85.*all its 8 channels.*exclude"):
        run(model, Prune(ratio=0.85, keep_multiple=1))


def test_a_share_of_macs_out_of_reach_says_how_far_it_goes():
    with pytest.raises(ConfigError, match=r"macs: 0\.01 can't be reached: 0\.\d+ .*stay"):
        run(chain(16, 16), Prune(macs=0.01))


def test_an_unknown_layer_in_exclude_names_the_nearest():
    with pytest.raises(ConfigError, match=r"exclude.*'secnd'.*did you mean 'second'"):
        run(chain(8, 8), Prune(ratio=0.5, exclude=("secnd",)))


def test_a_model_without_prunable_layers_is_refused():
    with pytest.raises(ModelError, match="no convolution or linear layer"):
        run(nn.Flatten(), Prune(ratio=0.5))
    with pytest.raises(ModelError, match=r"no layer whose channels can go.*outputs"):
        run(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), Prune(ratio=0.5))


def test_an_exported_program_is_refused_as_one():
    task = task_of(chain(8, 8))
    program = ProgramModule(torch.export.export(task.model, task.example_inputs))
    with pytest.raises(ModelError, match="exported program"):
        apply(program, Prune(ratio=0.5), context_of(task))


@pytest.mark.parametrize(
    "step", [Prune(ratio=0.5, epochs=1), Prune(ratio=0.5, importance="taylor")]
)
def test_steps_that_train_need_a_loss(step):
    task = replace(task_of(chain(8, 8)), loss=None)
    with pytest.raises(ConfigError, match=r"epochs = 1.*loss|taylor.*loss"):
        apply(task.model, step, context_of(task))


def test_the_note_says_which_layers_the_kernels_do_not_like():
    odd, _ = run(chain(12, 12), Prune(ratio=0.5, scope="layer", keep_multiple=1))
    even, _ = run(chain(12, 12), Prune(ratio=0.5, scope="layer", keep_multiple=4))
    assert "keep_multiple = 4" in odd.note
    assert "first" in odd.note
    assert "keep_multiple" not in even.note


@pytest.mark.slow
def test_digits_with_half_the_macs_recover_and_still_score_in_int8(repo):
    task = load_task(str(repo / "examples" / "digits"), settings={}, seed=0)
    train(task, seed=0)
    before = score(task, float_predict(task.model), "validation")
    step = Prune(
        macs=0.5, importance="taylor", scope="layer", keep_multiple=4, epochs=10, learning_rate=5e-3
    )
    changed = apply(task.model, step, context_of(task))
    (example,) = task.example_inputs
    assert count_macs(changed.model, example) <= 0.5 * count_macs(task.model, example)
    small = replace(task, model=changed.model)
    files = [
        export(each, load_target("nucleo-l4r5zi"), Quantize(), progress=lambda share, what: None)
        for each in (task, small)
    ]
    assert len(files[1].tflite) < len(files[0].tflite)
    with open_model(files[1].tflite, "tflm") as runner:
        predict = tflite_predict(runner, files[1].inputs, files[1].outputs, files[1].structure)
        after = score(task, predict, "validation")
    assert before > 0.95
    assert after >= before - 0.05
