"""Sparsification: which weights become zero, when, and that they stay zero."""

from __future__ import annotations

import copy
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeshrink.compression.finetune import apply as finetune
from edgeshrink.compression.layers import macs_of, weights_of
from edgeshrink.compression.sparsify import apply, choose_zeros
from edgeshrink.compression.steps import Context
from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.program import ProgramModule
from edgeshrink.quantizer import canonical_program, quantize
from edgeshrink.recipe import Finetune, Sparsify
from edgeshrink.target import load_target
from edgeshrink.task import ArraySplit, Task


class Net(nn.Module):
    def __init__(self, *, depthwise: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.mix = nn.Conv2d(8, 8, 3, groups=8 if depthwise else 1)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(self.up(torch.relu(self.mix(x))).mean((2, 3)))


def make_task(model: nn.Module | None = None, *, n: int = 32) -> Task:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((n, 3, 8, 8)).astype(np.float32)
    labels = rng.integers(0, 4, n)
    torch.manual_seed(0)
    model = Net() if model is None else model
    return Task(
        model=model.eval(),
        example_inputs=(torch.from_numpy(images[:1]),),
        data={"train": ArraySplit(inputs=(images,), targets=labels, batch_size=8)},
        loss=nn.functional.cross_entropy,
    )


def context_of(task: Task, target: str = "nucleo-l4r5zi", **more) -> Context:
    return Context(task=task, target=load_target(target), seed=0, **more)


def values_of(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters() if p.dim() > 1}


@given(st.floats(0, 0.95), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_a_share_of_all_weights_is_zero_and_it_is_the_smallest(ratio, seed):
    torch.manual_seed(seed)
    weights = weights_of(Net())
    zeros = choose_zeros(weights, Sparsify(ratio=ratio))
    flat = np.concatenate([np.abs(w.value.detach().numpy()).ravel() for w in weights])
    chosen = np.concatenate([z.ravel() for z in zeros])
    count = int(np.floor(ratio * flat.size + 1e-9))
    assert chosen.sum() == count
    assert flat[chosen].max(initial=0) <= flat[~chosen].min()


@given(st.floats(0, 0.95), st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_per_layer_each_loses_the_same_share(ratio, seed):
    torch.manual_seed(seed)
    weights = weights_of(Net())
    for weight, zeros in zip(
        weights, choose_zeros(weights, Sparsify(ratio=ratio, scope="layer")), strict=True
    ):
        size = np.abs(weight.value.detach().numpy())
        assert zeros.sum() == int(np.floor(ratio * size.size + 1e-9))
        assert size[zeros].max(initial=0) <= size[~zeros].min()


def test_of_equal_weights_exactly_the_share_goes():
    layer = nn.Linear(10, 10)
    nn.init.constant_(layer.weight, 0.5)
    (zeros,) = choose_zeros(weights_of(layer), Sparsify(ratio=0.29))
    assert zeros.sum() == 29
    assert zeros.ravel()[:29].all()


@given(st.floats(0.01, 1), st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_a_threshold_is_relative_to_each_layers_largest_weight(alpha, seed):
    torch.manual_seed(seed)
    weights = weights_of(Net())
    for weight, zeros in zip(weights, choose_zeros(weights, Sparsify(alpha=alpha)), strict=True):
        size = np.abs(weight.value.detach().double().numpy())
        assert np.array_equal(zeros, size < alpha * size.max())
        assert not zeros.all()


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2), (3, 8), (4, 5)])
def test_a_pattern_keeps_the_n_largest_of_m_neighbours_along_the_input(n, m):
    torch.manual_seed(0)
    for layer, axis in ((nn.Linear(19, 6), 1), (nn.Conv2d(12, 5, 3), 1),
                        (nn.ConvTranspose2d(9, 4, 2), 0)):  # fmt: skip
        (zeros,) = choose_zeros(weights_of(layer), Sparsify(n=n, m=m))
        size = np.moveaxis(np.abs(layer.weight.detach().numpy()), axis, -1)
        mask = np.moveaxis(zeros, axis, -1)
        for row, gone in zip(
            size.reshape(-1, size.shape[-1]), mask.reshape(-1, size.shape[-1]), strict=True
        ):
            for start in range(0, len(row), m):
                group, here = row[start : start + m], gone[start : start + m]
                if len(group) < m:
                    assert not here.any()
                    continue
                assert set(np.flatnonzero(~here)) == set(np.argsort(group)[m - n :])


@pytest.mark.parametrize("step", [Sparsify(ratio=0.8), Sparsify(alpha=0.5), Sparsify(n=1, m=4)])
def test_the_share_rises_along_a_cubic(step):
    torch.manual_seed(0)
    weights = weights_of(Net(depthwise=False))
    final = sum(int(z.sum()) for z in choose_zeros(weights, step))
    for progress in (0.0, 0.1, 0.25, 0.5, 0.9, 1.0):
        now = sum(int(z.sum()) for z in choose_zeros(weights, step, progress=progress))
        # Zhu and Gupta, 2017, equation 1, from an initial sparsity of 0
        expected = final + (0 - final) * (1 - progress) ** 3
        assert expected - 1 <= now <= expected + 1e-6


def test_only_the_chosen_weights_change_and_biases_stay():
    task = make_task()
    before = copy.deepcopy(task.model.state_dict())
    changed = apply(task.model, Sparsify(ratio=0.5), context_of(task))
    n_zeros = 0
    for name, now in changed.model.state_dict().items():
        is_zero = (now == 0) & (before[name] != 0)
        assert torch.equal(torch.where(is_zero, before[name], now), before[name])
        n_zeros += int(is_zero.sum())
    assert n_zeros == sum(layer["n_zeros"] for layer in changed.details["layers"])
    assert n_zeros == sum(p.size for p in values_of(task.model).values()) // 2


def test_excluded_layers_keep_their_weights():
    task = make_task()
    before = values_of(task.model)
    apply(task.model, Sparsify(ratio=0.5, exclude=("conv", "head")), context_of(task))
    after = values_of(task.model)
    assert np.array_equal(before["conv.weight"], after["conv.weight"])
    assert np.array_equal(before["head.weight"], after["head.weight"])
    assert (after["mix.weight"] == 0).any()


@pytest.mark.parametrize(
    "step",
    [
        Sparsify(ratio=0.6, epochs=2),
        Sparsify(ratio=0.6, epochs=2, scope="layer"),
        Sparsify(n=2, m=4, epochs=1),
    ],
)
def test_training_moves_weights_and_ends_with_the_full_share(step):
    task = make_task(n=30)  # a batch of 6 at the end
    untrained = choose_zeros(weights_of(task.model), step)
    before = values_of(task.model)
    changed = apply(task.model, step, context_of(task))
    after = values_of(changed.model)
    n_zeros = sum(int((value == 0).sum()) for value in after.values())
    assert n_zeros == sum(int(z.sum()) for z in untrained)
    assert any((after[name] != before[name])[after[name] != 0].any() for name in after)


def test_equal_seeds_give_equal_weights():
    found = []
    for _ in range(2):
        task = make_task()
        apply(task.model, Sparsify(ratio=0.5, epochs=1), context_of(task))
        found.append(values_of(task.model))
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])


def test_zeros_survive_later_fine_tuning():
    task = make_task()
    changed = apply(task.model, Sparsify(ratio=0.5), context_of(task))
    masks = {name: value == 0 for name, value in values_of(changed.model).items()}
    before = values_of(changed.model)
    finetune(changed.model, Finetune(epochs=2, learning_rate=0.01), context_of(task, held="zeros"))
    after = values_of(changed.model)
    assert all((after[name][masks[name]] == 0).all() for name in masks)
    assert any(not np.array_equal(after[name], before[name]) for name in masks)


def test_zeros_are_zeros_in_the_int8_program():
    task = make_task(Net(depthwise=False))
    changed = apply(task.model, Sparsify(ratio=0.7, scope="layer"), context_of(task))
    graph_module = canonical_program(changed.model, task.example_inputs)
    samples = [(torch.from_numpy(a[None]),) for a in task.data["train"].inputs[0][:8]]
    folded = quantize(graph_module, samples).folded
    stored = [b for _, b in folded.named_buffers() if b.dtype == torch.int8 and b.dim() > 1]
    stored += [
        v for k, v in vars(folded).items()
        if isinstance(v, torch.Tensor) and v.dtype == torch.int8 and v.dim() > 1
    ]  # fmt: skip
    wanted = list(values_of(changed.model).values())
    assert sorted(tuple(s.shape) for s in stored) == sorted(w.shape for w in wanted)
    for want in wanted:
        assert any(
            s.shape == want.shape and (s.numpy()[want == 0] == 0).all() and (s != 0).any()
            for s in stored
        )


def test_the_download_is_measured_as_zlib_packs_it():
    task = make_task()
    before = b"".join(v.tobytes() for v in values_of(task.model).values())
    changed = apply(task.model, Sparsify(ratio=0.9, scope="layer"), context_of(task))
    after = b"".join(v.tobytes() for v in values_of(task.model).values())
    sizes = changed.details["download_bytes"]
    assert sizes["before"]["float32"] == len(zlib.compress(before, 9))
    assert sizes["after"]["float32"] == len(zlib.compress(after, 9))
    assert sizes["after"]["float32"] < sizes["before"]["float32"] / 2
    assert sizes["after"]["int8"] < sizes["before"]["int8"]


def test_the_note_promises_flash_only_where_a_compiler_drops_whole_channels():
    task = make_task()
    with torch.no_grad():
        task.model.conv.weight[:3] *= 1e-6
    step = Sparsify(alpha=0.01)
    board = apply(copy.deepcopy(task.model), step, context_of(task, "nucleo-l4r5zi"))
    host = apply(copy.deepcopy(task.model), step, context_of(task, "rpi4"))
    assert "3 of 26 here" in board.note  # 8 + 8 + 6 + 4 channels
    assert "flash" in board.note
    assert "flash" not in host.note
    for note in (board.note, host.note):
        assert "as long as before" in note


def test_sparsifying_changes_no_multiply_accumulate():
    task = make_task()
    before = macs_of(task.model, task.example_inputs)
    changed = apply(task.model, Sparsify(ratio=0.9, scope="layer"), context_of(task))
    assert macs_of(changed.model, task.example_inputs) == before


def test_a_layer_that_would_lose_all_weights_is_named_and_left_alone():
    task = make_task()
    with torch.no_grad():
        task.model.mix.weight *= 1e-4
    before = values_of(task.model)
    with pytest.raises(ModelError, match=r"'mix'.*ratio = 0\.9.*72 weights.*exclude"):
        apply(task.model, Sparsify(ratio=0.9), context_of(task))
    assert all(np.array_equal(before[k], v) for k, v in values_of(task.model).items())


def test_an_unknown_layer_in_exclude_names_the_nearest():
    task = make_task()
    with pytest.raises(ConfigError, match=r"exclude.*'convv'.*did you mean 'conv'"):
        apply(task.model, Sparsify(exclude=("convv",)), context_of(task))


def test_a_model_without_weights_is_refused():
    task = make_task(nn.Sequential(nn.ReLU(), nn.Flatten()))
    with pytest.raises(ModelError, match=r"Sequential.*has no weight.*drop the step"):
        apply(task.model, Sparsify(), context_of(task))


def test_an_exported_program_is_refused_as_one():
    task = make_task()
    program = torch.export.export(task.model, task.example_inputs)
    with pytest.raises(ModelError, match=r"exported program.*task"):
        apply(ProgramModule(program), Sparsify(), context_of(task))


def test_training_needs_a_loss_and_the_message_says_what_asks_for_it():
    task = replace(make_task(), loss=None)
    with pytest.raises(ConfigError, match=r"epochs = 2.*loss"):
        apply(task.model, Sparsify(epochs=2), context_of(task))


def test_training_behind_clusters_is_refused():
    task = make_task()
    with pytest.raises(ConfigError, match="before 'cluster'"):
        apply(task.model, Sparsify(epochs=1), context_of(task, held="values"))
