"""Low-rank factors: exact where all energy is kept, and only where they cost less."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeshrink.compression.factorize import apply
from edgeshrink.compression.steps import Context
from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.program import ProgramModule
from edgeshrink.quantizer import canonical_program
from edgeshrink.recipe import Factorize
from edgeshrink.target import load_target
from edgeshrink.task import Task
from tests.zoo import zoo_task


def run(model: nn.Module, example: torch.Tensor, step: Factorize, **more):
    task = Task(model=model.eval(), example_inputs=(example,), data={})
    return apply(model, step, Context(task=task, target=load_target("rpi4"), seed=0, **more))


def low_rank(layer: nn.Module, *ranks: int) -> nn.Module:
    """Give the layer a weight of exactly these ranks (outputs, inputs)."""
    rng = np.random.default_rng(0)
    shape = tuple(layer.weight.shape)
    core = rng.standard_normal((*ranks, *shape[2:]))
    left = rng.standard_normal((shape[0], ranks[0]))
    right = rng.standard_normal((shape[1], ranks[1]))
    weight = np.einsum("oi...,ao,bi->ab...", core, left, right)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight / np.abs(weight).max()))
    return layer


def count_macs(model: nn.Module, example: torch.Tensor) -> int:
    """Count by the layers' own numbers: every output value takes one product for each weight."""
    total = 0

    def hook(layer, _inputs, output):
        nonlocal total
        taps = 1 if isinstance(layer, nn.Linear) else math.prod(layer.kernel_size)
        total += output.numel() * layer.weight.shape[1] * taps

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    handles = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, kinds)]
    with torch.no_grad():
        model(example)
    for handle in handles:
        handle.remove()
    return total


LAYERS = {
    "linear": (lambda: low_rank(nn.Linear(40, 30), 5, 5), (3, 7, 40), (5,)),
    "linear without bias": (lambda: low_rank(nn.Linear(40, 30, bias=False), 4, 4), (1, 40), (4,)),
    "1x1": (lambda: low_rank(nn.Conv2d(24, 32, 1), 3, 3), (1, 24, 6, 5), (3,)),
    "1x1, stride and padding": (
        lambda: low_rank(nn.Conv2d(24, 32, 1, stride=2, padding=1), 3, 3), (1, 24, 7, 6), (3,),
    ),
    "3x3": (lambda: low_rank(nn.Conv2d(24, 32, 3), 4, 6), (1, 24, 8, 8), (6, 4)),
    "3x3, all there is": (
        lambda: low_rank(
            nn.Conv2d(24, 32, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), 4, 6
        ),
        (1, 24, 9, 12), (6, 4),
    ),
    "3x3, reflected": (
        lambda: low_rank(nn.Conv2d(24, 32, 3, padding=2, padding_mode="reflect"), 4, 6),
        (1, 24, 8, 8), (6, 4),
    ),
    "same": (lambda: low_rank(nn.Conv2d(24, 32, 3, padding="same"), 4, 6), (1, 24, 8, 8), (6, 4)),
    "1-D": (lambda: low_rank(nn.Conv1d(24, 32, 5, padding=2), 4, 6), (1, 24, 20), (6, 4)),
    "1-D of one tap": (lambda: low_rank(nn.Conv1d(24, 32, 1), 4, 4), (1, 24, 20), (4,)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_at_full_energy_outputs_are_the_same(name):
    make, shape, ranks = LAYERS[name]
    torch.manual_seed(0)
    model = nn.Sequential(make())
    x = torch.randn(shape)
    with torch.no_grad():
        before = model(x)
        macs_before = count_macs(model, x)
        changed = run(model, x, Factorize(energy=1.0))
        after = changed.model(x)
    assert tuple(changed.details["layers"][0]["ranks"]) == ranks
    assert float((after - before).abs().max()) <= 1e-5 * max(1.0, float(before.abs().max()))
    assert changed.details["macs"] == {
        "before": macs_before, "after": count_macs(changed.model, x),
    }  # fmt: skip
    assert changed.details["layers"][0]["macs"] == changed.details["macs"]
    assert changed.details["macs"]["after"] < macs_before


@given(st.floats(0.05, 1.0), st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_the_rank_is_the_least_that_keeps_the_energy(energy, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(30, 40))
    with torch.no_grad():
        model[0].weight *= torch.exp(-torch.arange(40.0) / 4)[:, None]
    weight = model[0].weight.detach().double().numpy()
    squares = np.linalg.eigvalsh(weight @ weight.T)[::-1][:30]
    need = 1 + int(np.argmax(np.cumsum(squares) >= (energy - 1e-9) * squares.sum()))
    changed = run(model, torch.randn(1, 30), Factorize(energy=energy, least_gain=1))
    rows = changed.details["layers"]
    if need * (30 + 40) >= 30 * 40:
        assert rows == []
        assert isinstance(changed.model[0], nn.Linear)
        return
    assert rows[0]["ranks"] == [need]
    first, last = changed.model[0]
    got = (last.weight.double() @ first.weight.double()).detach().numpy()
    lost = ((weight - got) ** 2).sum() / (weight**2).sum()
    assert lost <= 1 - energy + 1e-6
    # Eckart and Young: nothing of this rank comes closer.
    assert abs(lost - squares[need:].sum() / squares.sum()) < 1e-6


def test_tucker_loses_at_most_what_both_sides_leave_out():
    torch.manual_seed(0)
    layer = nn.Conv2d(24, 32, 3)
    with torch.no_grad():
        layer.weight *= torch.exp(-torch.arange(32.0) / 4)[:, None, None, None]
        layer.weight *= torch.exp(-torch.arange(24.0) / 4)[None, :, None, None]
    weight = layer.weight.detach().double().numpy()
    changed = run(nn.Sequential(layer), torch.randn(1, 24, 8, 8), Factorize(energy=0.9))
    inputs, core, outputs = changed.model[0]
    got = np.einsum(
        "rs...,or,si->oi...",
        core.weight.detach().double().numpy(),
        outputs.weight.detach().double().numpy()[:, :, 0, 0],
        inputs.weight.detach().double().numpy()[:, :, 0, 0],
    )
    lost = ((weight - got) ** 2).sum() / (weight**2).sum()
    assert 0 < lost <= 0.2  # De Lathauwer et al., 2000, property 10: the sum of both


@pytest.mark.parametrize(("least_gain", "is_split"), [(1.1, True), (1.7, True), (1.8, False)])
def test_layers_are_split_only_where_macs_shrink_by_the_factor(least_gain, is_split):
    # 40 * 30 products as they are, 10 * (40 + 30) as factors: 1.714 times fewer
    model = nn.Sequential(low_rank(nn.Linear(40, 30), 10, 10))
    step = Factorize(energy=1.0, least_gain=least_gain)
    changed = run(model, torch.randn(1, 40), step)
    assert isinstance(changed.model[0], nn.Sequential) is is_split
    assert ("nothing factorized" in changed.note) is not is_split


@pytest.mark.parametrize("share", [0.2, 0.4, 0.7])
def test_ranks_come_down_to_a_share_of_the_macs_and_no_further(share):
    torch.manual_seed(0)
    x = torch.randn(1, 8, 12, 12)
    layers = [
        nn.Conv2d(8, 24, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(24, 32, 3), nn.ReLU(),
        nn.Conv2d(32, 48, 1), nn.Flatten(), nn.Linear(48 * 16, 20),
    ]  # fmt: skip
    model = nn.Sequential(*layers)
    before = count_macs(model, x)
    changed = run(copy.deepcopy(model), x, Factorize(macs=share))
    after = count_macs(changed.model, x)
    assert after <= share * before
    assert changed.details["macs"]["after"] == after
    # A bit more of the energy, with the energy given, takes more than asked for.
    energy = changed.details["energy"]
    again = run(copy.deepcopy(model), x, Factorize(energy=energy))
    assert [r["ranks"] for r in again.details["layers"]] == [
        r["ranks"] for r in changed.details["layers"]
    ]
    more = run(copy.deepcopy(model), x, Factorize(energy=energy + 1e-9))
    assert count_macs(more.model, x) > share * before


def test_a_share_of_the_macs_that_ranks_of_1_exceed_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, groups=1), nn.Conv2d(8, 8, 3, groups=8))
    with pytest.raises(ConfigError, match=r"ranks of 1 leave") as caught:
        run(model, torch.randn(1, 3, 9, 9), Factorize(macs=0.01))
    assert "1.0%" in caught.value.what


def test_grouped_excluded_and_directly_read_layers_stay():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.grouped = nn.Conv1d(16, 16, 3, padding=1, groups=4)
            self.kept = low_rank(nn.Linear(16, 16), 1, 1)
            self.split = low_rank(nn.Linear(16, 16), 1, 1)
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
            self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

        def forward(self, x):
            x = self.grouped(x.transpose(1, 2)).transpose(1, 2)
            x = self.split(self.kept(x))
            return self.encoder(self.attention(x, x, x)[0])

    torch.manual_seed(0)
    model, x = Net(), torch.randn(1, 6, 16)
    with torch.no_grad():
        before = model.eval()(x)
        changed = run(model, x, Factorize(energy=1.0, exclude=("kept",)))
        assert torch.allclose(changed.model(x), before, atol=1e-5)
    assert [row["layer"] for row in changed.details["layers"]] == ["split"]


def test_a_layer_that_is_called_twice_is_replaced_everywhere():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = low_rank(nn.Linear(20, 20), 2, 2)
            self.other = self.one

        def forward(self, x):
            return self.other(torch.relu(self.one(x)))

    model, x = Twice(), torch.randn(1, 20)
    with torch.no_grad():
        before = model(x)
        changed = run(model, x, Factorize(energy=1.0))
        assert torch.allclose(changed.model(x), before, atol=1e-4)
    assert changed.model.one is changed.model.other
    assert changed.details["macs"]["before"] == 2 * 20 * 20
    assert changed.details["macs"]["after"] == 2 * 2 * (20 + 20)


def test_factors_train_and_export():
    task = zoo_task("resnet-8")
    (x,) = task.example_inputs
    changed = run(copy.deepcopy(task.model), x, Factorize(energy=0.6))
    assert len(changed.details["layers"]) >= 3
    assert all(p.requires_grad for p in changed.model.parameters())
    with torch.no_grad():
        want = changed.model(x)
        got = canonical_program(changed.model, (x,))(x)
    assert torch.allclose(want, got, atol=1e-3 * float(want.abs().max()))
    assert count_macs(changed.model, x) < count_macs(task.model, x)


def test_frozen_layers_give_frozen_factors():
    model = nn.Sequential(low_rank(nn.Linear(40, 30), 5, 5).requires_grad_(False))
    changed = run(model, torch.randn(1, 40), Factorize(energy=1.0))
    assert not any(p.requires_grad for p in changed.model.parameters())


def test_a_model_that_reads_the_weight_itself_names_the_layer_and_stays_whole():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = low_rank(nn.Linear(20, 20), 2, 2)

        def forward(self, x):
            return self.table(x) @ self.table.weight

    model = Reads()
    with pytest.raises(ModelError, match=r"'table'.*weight.*exclude = \[\"table\"\]"):
        run(model, torch.randn(1, 20), Factorize(energy=1.0))
    assert isinstance(model.table, nn.Linear)


def test_an_unknown_layer_in_exclude_names_the_nearest():
    with pytest.raises(ConfigError, match=r"exclude.*'1'.*known: 0"):
        run(nn.Sequential(nn.Linear(4, 4)), torch.randn(1, 4), Factorize(exclude=("1",)))


def test_a_model_without_such_layers_is_refused():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4))
    with pytest.raises(ModelError, match="no linear layer or plain convolution"):
        run(model, torch.randn(1, 4, 8, 8), Factorize())


def test_an_exported_program_is_refused_as_one():
    x = torch.randn(1, 4)
    program = torch.export.export(nn.Sequential(nn.Linear(4, 4)), (x,))
    with pytest.raises(ModelError, match="exported program"):
        run(ProgramModule(program), x, Factorize())
