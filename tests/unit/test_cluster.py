"""Weight clustering: few values, the right ones, and what that packs to."""

from __future__ import annotations

import copy
import itertools
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from edgeshrink.compression.cluster import apply, codebook_of
from edgeshrink.compression.finetune import apply as finetune
from edgeshrink.compression.steps import Context
from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.program import ProgramModule
from edgeshrink.recipe import Cluster, Finetune
from edgeshrink.target import load_target
from edgeshrink.task import ArraySplit, Task


def make_task(model: nn.Module | None = None) -> Task:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((32, 3, 8, 8)).astype(np.float32)
    if model is None:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
        )  # fmt: skip
    return Task(
        model=model.eval(),
        example_inputs=(torch.from_numpy(images[:1]),),
        data={"train": ArraySplit(inputs=(images,), targets=rng.integers(0, 4, 32), batch_size=8)},
        loss=nn.functional.cross_entropy,
    )


def context_of(task: Task, **more) -> Context:
    return Context(task=task, target=load_target("nucleo-l4r5zi"), seed=0, **more)


def weights_of(model: nn.Module) -> dict[str, np.ndarray]:
    return {n: p.detach().numpy().copy() for n, p in model.named_parameters() if p.dim() > 1}


finite = st.floats(-4, 4, width=32)


@given(hnp.arrays(np.float64, st.integers(1, 200), elements=finite), st.integers(2, 32))
@settings(max_examples=150, deadline=None)
def test_every_value_takes_the_nearest_of_at_most_so_many(values, n_clusters):
    codebook, codes = codebook_of(values, n_clusters)
    assert 1 <= len(codebook) <= n_clusters
    assert np.all(np.diff(codebook) > 0)
    assert codes.shape == values.shape
    assert set(codes) == set(range(len(codebook)))  # none is unused
    distance = np.abs(values[:, None] - codebook[None])
    mine = distance[np.arange(len(values)), codes]
    nonzero = values != 0
    others = distance.copy()
    others[:, codebook == 0] = np.inf  # zero may be kept for those that were zero
    assert np.all(mine[nonzero] <= others[nonzero].min(axis=1, initial=np.inf) + 1e-12)


@given(hnp.arrays(np.float64, st.integers(1, 200), elements=finite), st.integers(2, 32))
@settings(max_examples=100, deadline=None)
def test_each_centre_is_the_mean_of_its_values(values, n_clusters):
    codebook, codes = codebook_of(values, n_clusters)
    means = [values[codes == code].mean() for code in range(len(codebook))]
    assert np.allclose(codebook, means, atol=1e-9)


def test_a_few_values_are_kept_as_they_are():
    values = np.array([3.0, -1.0, 3.0, 0.5, -1.0])
    codebook, codes = codebook_of(values, 3)
    assert np.array_equal(codebook[codes], values)


def test_separate_clumps_are_found():
    rng = np.random.default_rng(0)
    clumps = [-3.0, -1.0, 0.5, 2.0]
    values = np.concatenate([c + 0.01 * rng.standard_normal(n) for c, n in
                             zip(clumps, (500, 20, 3, 40), strict=True)])  # fmt: skip
    codebook, _ = codebook_of(values, 4)
    assert np.allclose(codebook, clumps, atol=0.02)


def test_two_clusters_come_close_to_the_best_split():
    rng = np.random.default_rng(1)
    for _ in range(20):
        values = np.sort(rng.standard_normal(30) ** 3)
        codebook, codes = codebook_of(values, 2)
        mine = ((values - codebook[codes]) ** 2).sum()
        best = min(
            ((values[:k] - values[:k].mean()) ** 2).sum()
            + ((values[k:] - values[k:].mean()) ** 2).sum()
            for k in range(1, 30)
        )
        assert mine <= 1.5 * best
        # and no single value would be better off in the other cluster
        for index, other in itertools.product(range(30), codebook):
            assert (values[index] - codebook[codes[index]]) ** 2 <= (values[index] - other) ** 2


@pytest.mark.parametrize("n_clusters", [2, 5, 16])
def test_every_layer_has_few_values_and_biases_stay(n_clusters):
    task = make_task()
    before = copy.deepcopy(task.model.state_dict())
    changed = apply(task.model, Cluster(n_clusters=n_clusters), context_of(task))
    rows = {row["layer"]: row for row in changed.details["layers"]}
    for name, values in weights_of(changed.model).items():
        different = len(np.unique(values))
        assert different == rows[name.removesuffix(".weight")]["n_values"] <= n_clusters
        was = before[name].numpy()
        error = np.sqrt(((values - was) ** 2).sum() / (was**2).sum())
        assert rows[name.removesuffix(".weight")]["error"] == pytest.approx(float(error), rel=1e-3)
    for name, value in changed.model.state_dict().items():
        if name not in weights_of(changed.model):
            assert torch.equal(value, before[name])


def test_zeros_of_an_earlier_step_stay_zeros():
    task = make_task()
    with torch.no_grad():
        for parameter in task.model.parameters():
            if parameter.dim() > 1:
                parameter[parameter.abs() < parameter.abs().median()] = 0
    before = weights_of(task.model)
    changed = apply(task.model, Cluster(n_clusters=4), context_of(task))
    for name, values in weights_of(changed.model).items():
        assert (before[name] == 0).any()
        assert np.array_equal(values == 0, before[name] == 0)
        assert len(np.unique(values)) <= 4


def test_fine_tuning_behind_it_keeps_the_clusters():
    task = make_task()
    changed = apply(task.model, Cluster(n_clusters=4), context_of(task))
    before = weights_of(changed.model)
    step = Finetune(epochs=1, learning_rate=0.01)
    finetune(changed.model, step, context_of(task, held="values"))
    after = weights_of(changed.model)
    for name in before:
        assert len(np.unique(after[name])) <= len(np.unique(before[name]))
    assert any(not np.array_equal(after[name], before[name]) for name in before)


def test_downloads_are_measured_as_zlib_packs_them():
    task = make_task(nn.Sequential(nn.Flatten(), nn.Linear(192, 64)))
    raw = task.model[1].weight.detach().numpy().tobytes()
    changed = apply(task.model, Cluster(n_clusters=16), context_of(task))
    values = task.model[1].weight.detach().numpy()
    codebook, codes = np.unique(values, return_inverse=True)
    nibbles = codes.reshape(-1, 2)
    packed = (nibbles[:, 0] * 16 + nibbles[:, 1]).astype(np.uint8).tobytes()
    sizes = changed.details["download_bytes"]
    assert sizes["before"]["float32"] == len(zlib.compress(raw, 9))
    assert sizes["after"]["float32"] == len(zlib.compress(values.tobytes(), 9))
    assert sizes["after"]["codebook"] == len(zlib.compress(codebook.tobytes() + packed, 9))
    assert sizes["after"]["codebook"] < sizes["after"]["float32"] < sizes["before"]["float32"]


def test_the_note_promises_nothing_for_the_device():
    task = make_task()
    note = apply(task.model, Cluster(), context_of(task)).note
    assert "nucleo-l4r5zi gains neither flash nor time" in note


def test_equal_models_give_equal_clusters():
    found = [
        weights_of(apply(task.model, Cluster(n_clusters=5), context_of(task)).model)
        for task in (make_task(), make_task())
    ]
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])


def test_excluded_layers_keep_their_weights():
    task = make_task()
    before = weights_of(task.model)
    apply(task.model, Cluster(n_clusters=3, exclude=("6",)), context_of(task))
    assert np.array_equal(before["6.weight"], weights_of(task.model)["6.weight"])
    assert len(np.unique(weights_of(task.model)["0.weight"])) == 3


def test_a_layer_of_zeros_is_left_as_it_is():
    layer = nn.Linear(192, 4)
    nn.init.zeros_(layer.weight)
    task = make_task(nn.Sequential(nn.Flatten(), layer))
    changed = apply(task.model, Cluster(), context_of(task))
    assert not changed.model[1].weight.any()
    assert changed.details["layers"][0]["error"] == 0


def test_an_unknown_layer_in_exclude_is_refused():
    task = make_task()
    with pytest.raises(ConfigError, match=r"exclude.*no layer 'head'"):
        apply(task.model, Cluster(exclude=("head",)), context_of(task))


def test_models_without_weights_are_refused():
    task = make_task(nn.Sequential(nn.Flatten()))
    with pytest.raises(ModelError, match="has no weight"):
        apply(task.model, Cluster(), context_of(task))
    task = make_task()
    program = ProgramModule(torch.export.export(task.model, task.example_inputs))
    with pytest.raises(ModelError, match="exported program"):
        apply(program, Cluster(), context_of(task))
