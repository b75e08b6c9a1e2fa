"""Quantization-aware training: the numbers of the export, learned, and never worse than before."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeshrink.compression.qat import apply
from edgeshrink.compression.steps import Context
from edgeshrink.errors import ConfigError
from edgeshrink.quantizer.fake_quantize import FakeQuantize, fake_quantizers
from edgeshrink.quantizer.qat import QuantizedModel, TrainableQuantized
from edgeshrink.recipe import TrainQuantized
from edgeshrink.target import load_target
from edgeshrink.task import ArraySplit, Metric, Task
from edgeshrink.training import hold

SHAPE = (1, 6, 6)


def digits_like(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four kinds of strokes with noise, (n, 1, 6, 6)."""
    rng = np.random.default_rng(seed)
    strokes = np.zeros((4, 6, 6), np.float32)
    strokes[0, :, 2:4] = strokes[1, 2:4, :] = 1
    strokes[2] = np.eye(6)
    strokes[3] = np.eye(6)[::-1]
    labels = rng.integers(0, 4, n)
    images = strokes[labels] + 0.5 * rng.standard_normal((n, 6, 6), np.float32)
    return images[:, None].astype(np.float32), labels


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 5, padding=2, groups=6), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Dropout(0.2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


def task_of(model: nn.Module, **changes) -> Task:
    data = {
        name: ArraySplit(inputs=(images,), targets=labels, batch_size=32)
        for name, (images, labels) in {
            "train": digits_like(256, 1),
            "validation": digits_like(96, 2),
        }.items()
    }

    def evaluate(predict, split):
        hits = [predict(*x).argmax(axis=1) == y for x, y in data[split]]
        return float(np.concatenate(hits).mean())

    values = {
        "model": model.eval(), "example_inputs": (torch.zeros(1, *SHAPE),), "data": data,
        "evaluate": evaluate, "loss": nn.functional.cross_entropy,
    }  # fmt: skip
    return Task(**(values | changes))


def trained_net() -> nn.Module:
    """Trained by hand: the tests share no loop with the subject."""
    model, (images, labels) = net(), digits_like(256, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    model.train()
    for _ in range(60):
        loss = nn.functional.cross_entropy(
            model(torch.from_numpy(images)), torch.from_numpy(labels)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return trained_net()


def calibration(n: int = 24) -> list[tuple[Tensor]]:
    images, _ = digits_like(n, 3)
    return [(torch.from_numpy(images[i : i + 1]),) for i in range(n)]


def trainable(model: nn.Module, **options) -> TrainableQuantized:
    return TrainableQuantized(
        model.eval(), (torch.zeros(1, *SHAPE),), calibration(), observer="minmax", **options
    )


def context_of(task: Task, **options) -> Context:
    return Context(task=task, target=load_target("rpi4"), seed=0, **options)


def codes_apart(one: Tensor, other: Tensor, folded: torch.fx.GraphModule) -> Tensor:
    """In steps of the output's scale."""
    last = [n for n in folded.graph.nodes if "dequantize_per_tensor" in str(n.target)][-1]
    return torch.round((one - other).abs() / float(last.args[1]))


# --- numerics ---------------------------------------------------------------------------------


@pytest.mark.parametrize("learned_scales", [False, True])
def test_training_forward_is_the_converted_graph_but_for_rounded_biases(trained, learned_scales):
    """Biases become int32 at the end: that moves few outputs, and those by one step."""
    model = trainable(trained, learned_scales=learned_scales)
    result = model.finish()
    x = torch.from_numpy(digits_like(200, 7)[0])
    with torch.no_grad():
        converted = torch.cat([result.quantized.folded(x[i : i + 1]) for i in range(len(x))])
        apart = codes_apart(model.train()(x), converted, result.quantized.folded)
        assert torch.equal(result(x), converted)
    assert float(apart.max()) <= 1
    assert float((apart > 0).float().mean()) < 0.03
    assert len(torch.unique(converted)) > 40


def test_after_training_the_finished_model_is_the_converted_graph_to_the_last_bit(trained):
    for learned_scales in (False, True):
        model = trainable(trained, learned_scales=learned_scales)
        _steps(model, 12)
        result = model.finish()
        x = torch.from_numpy(digits_like(50, 7)[0])
        with torch.no_grad():
            for graph in (result.quantized.folded, result.quantized.unfolded):
                alone = torch.cat([graph(x[i : i + 1]) for i in range(len(x))])
                assert torch.equal(result(x), alone)
            apart = codes_apart(model(x), result(x), result.quantized.folded)
            assert float(apart.max()) <= 1


def _steps(model: TrainableQuantized, n: int, lr: float = 0.01) -> None:
    images, labels = (torch.from_numpy(a) for a in digits_like(64, 5))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    model.train()
    for index in range(n):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        with torch.no_grad():
            model.after_step(model, (index + 1) / n)
    model.eval()


def test_before_training_it_is_post_training_quantization(trained):
    from edgeshrink.quantizer import canonical_program, quantize

    samples = calibration()
    plain = quantize(canonical_program(trained, samples[0]), samples, observer="minmax").folded
    result = trainable(trained).finish().quantized.folded
    with torch.no_grad():  # ranges seen in a batch may differ in their last bit, codes may not
        for x in samples:
            assert not codes_apart(plain(*x), result(*x), result).any()
            torch.testing.assert_close(plain(*x), result(*x), rtol=1e-5, atol=0)


def test_reference_is_what_was_trained_without_quantization(trained):
    x = torch.from_numpy(digits_like(40, 7)[0])
    model = trainable(trained)
    with torch.no_grad():
        start = model.finish().quantized.reference(x)
        assert torch.allclose(start, trained(x), atol=1e-5)
        with torch.enable_grad():
            _steps(model, 8)
        result = model.finish()
        reference, got = result.quantized.reference(x), result(x)
    assert not torch.allclose(reference, trained(x), atol=1e-2)
    assert float((got - reference).square().mean()) < 0.01 * float(reference.var())


def test_weights_are_symmetric_per_channel_and_norms_are_folded(trained):
    body = trainable(trained).body
    assert not any("norm" in str(n.target) for n in body.graph.nodes)
    kinds = [m for m in fake_quantizers(body).values() if m.is_weight]
    assert sorted(len(m.scale) for m in kinds) == [4, 6, 6]
    assert all((m.quant_min, m.quant_max) == (-127, 127) for m in kinds)
    assert not any(m.zero_point.any() for m in kinds)


# --- gradients --------------------------------------------------------------------------------


class _Observer:
    dtype, qscheme = torch.int8, torch.per_tensor_affine
    quant_min, quant_max = -128, 127

    def calculate_qparams(self):
        return torch.tensor([0.1]), torch.tensor([-28])


def test_gradient_passes_rounding_and_stops_at_clamping():
    module = FakeQuantize(_Observer())  # from -10 to 15.5
    x = torch.tensor([-11.0, -9.99, 0.03, 15.4, 15.7], requires_grad=True)
    y = module(x)
    assert torch.allclose(y.detach(), torch.tensor([-10.0, -10.0, 0.0, 15.4, 15.5]), atol=1e-6)
    y.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_learned_scale_has_the_gradient_of_the_paper():
    """Esser et al., equation 3, times the scale for its logarithm, times their factor."""
    module = FakeQuantize(_Observer())
    module.learn()
    x = torch.tensor([-11.0, -9.99, 0.03, 0.08, 15.4, 15.7], requires_grad=True)
    weights = torch.tensor([1.0, -2.0, 3.0, 5.0, 7.0, 11.0])
    (module(x) * weights).sum().backward()
    v = x.detach().double().numpy() / 0.1
    slope = np.where(v + -28 < -128, -100.0, np.where(v - 28 > 127, 155.0, np.round(v) - v))
    expected = 0.1 * (slope * weights.numpy()).sum() / np.sqrt(6 * 127)
    assert float(module.growth.grad) == pytest.approx(expected, rel=1e-3)
    assert x.grad.tolist() == [0, -2, 3, 5, 7, 0]


def test_learned_scale_computes_forward_what_a_fixed_one_does():
    plain, learning = FakeQuantize(_Observer()), FakeQuantize(_Observer())
    learning.learn()
    x = 6 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain(x), learning(x).detach())


# --- training ---------------------------------------------------------------------------------


def scales(model: TrainableQuantized, *, weights: bool) -> list[Tensor]:
    return [
        m.scale.clone()
        for m in fake_quantizers(model.body).values()
        if m.is_weight == weights and not m.is_fixed
    ]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_ranges_follow_the_weights_until_they_are_frozen(trained):
    model = trainable(trained, freeze_at=0.5)
    start = scales(model, weights=False)
    with torch.no_grad():
        for value in model.body.parameters():
            value.mul_(1.5)
        model.after_step(model, 0.05)
        assert same(scales(model, weights=False), start)
        model.after_step(model, 0.2)
        moved = scales(model, weights=False)
        assert not same(moved, start)
        for value in model.body.parameters():
            value.mul_(1.5)
        model.after_step(model, 0.5)
        last = scales(model, weights=False)
        assert not same(last, moved)
        for value in model.body.parameters():
            value.mul_(1.5)
        for share in (0.6, 0.9, 1.0):
            model.after_step(model, share)
        assert same(scales(model, weights=False), last)
        model(torch.zeros(1, *SHAPE))
    assert not same(scales(model, weights=True), [2 * s for s in scales(model, weights=True)])
    largest = [
        value.detach().abs().flatten(1).amax(1) / 127
        for value in model.body.parameters()
        if value.dim() > 1
    ]
    got = scales(model, weights=True)
    assert all(any(torch.equal(g, x) for x in largest) for g in got)


def test_frozen_from_the_start_means_the_ranges_of_calibration(trained):
    model = trainable(trained, freeze_at=0.0)
    start = scales(model, weights=False)
    _steps(model, 4)
    assert same(scales(model, weights=False), start)


def test_learned_scales_move_and_are_exported(trained):
    model = trainable(trained, learned_scales=True)
    start = scales(model, weights=False)
    _steps(model, 6, lr=0.05)
    result = model.finish()
    end = [
        m.scale for m in fake_quantizers(result.body).values() if not m.is_weight and not m.is_fixed
    ]
    assert not same(end, start)
    assert all(m.growth is None for m in fake_quantizers(result.body).values())


def test_zeros_that_are_held_stay_zeros_in_float_and_in_int8(trained):
    model = copy.deepcopy(trained)
    with torch.no_grad():
        mask = torch.rand(model[3].weight.shape, generator=torch.Generator().manual_seed(0)) < 0.4
        model[3].weight[mask] = 0
    task = task_of(model)
    step = TrainQuantized(epochs=1, learning_rate=0.02, observer="minmax", n_samples=16)
    changed = apply(model, step, context_of(task, held="zeros"))
    state = changed.model.quantized.folded.state_dict()
    (codes,) = [v for v in state.values() if v.dtype == torch.int8 and v.shape == mask.shape]
    assert not codes[mask].any()
    assert codes[~mask].any()
    free = trainable(model)
    held = hold(free, "zeros")
    _steps(free, 3)
    with torch.no_grad():
        assert any(p.shape == mask.shape and p[mask].any() for p in free.parameters())
        held(free, 1.0)
        assert not any(p.shape == mask.shape and p[mask].any() for p in free.parameters())


def test_values_that_are_shared_stay_shared_where_few_weights_have_them():
    torch.manual_seed(0)
    model = nn.Conv2d(8, 8, 3, groups=8)  # 72 weights
    with torch.no_grad():
        levels = torch.linspace(-1, 1, 8) * torch.linspace(1, 2, 8)[:, None]  # eight for a channel
        picked = torch.randint(0, 8, (8, 9))
        model.weight.copy_(torch.gather(levels, 1, picked).reshape(model.weight.shape))
    held = hold(model, "values")
    with torch.no_grad():
        model.weight += torch.randn_like(model.weight)
    held(model, 1.0)
    for channel, choice in zip(model.weight.detach().reshape(8, 9), picked, strict=True):
        for level in choice.unique():
            values = channel[choice == level]
            assert torch.equal(values, values[:1].expand_as(values))


def test_a_variance_that_rounds_to_zero_has_gradients():
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.norm(self.first(x)))

    torch.manual_seed(0)
    model = Normed().eval()
    wide = [(10 * torch.randn(1, 4, 6),) for _ in range(4)]
    subject = TrainableQuantized(model, wide[0], wide, observer="minmax").train()
    x = wide[0][0].clone()
    x[0, 0] = 0  # after the bias of `first`, with next to no variance
    y = subject(x)
    assert torch.isfinite(y).all()
    y.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in subject.parameters() if p.grad is not None)
    before = [p.detach().clone() for p in subject.parameters()]
    assert any(p.grad is not None and p.grad.any() for p in subject.parameters())
    with torch.no_grad():
        finished = subject.finish()
        assert torch.equal(finished(x), finished.quantized.folded(x))
    assert all(torch.equal(a, b) for a, b in zip(before, subject.parameters(), strict=True))


def test_training_mends_what_rounding_broke():
    """Weights of which quantization keeps little: training must find its way back."""
    model = trained_net()
    with torch.no_grad():
        model[3].weight[:, 0, 0, 0] += 60 * model[3].weight.abs().amax((1, 2, 3))
    model.eval()
    step = TrainQuantized(epochs=6, learning_rate=0.02, observer="minmax", n_samples=24)
    changed = apply(model, step, context_of(task_of(model)))
    assert changed.details["kept"] == "trained"
    assert changed.details["score_trained"] > changed.details["score_post_training"] + 0.1


def test_post_training_quantization_is_kept_where_training_is_worse(trained):
    task = task_of(copy.deepcopy(trained), loss=lambda y, t: -nn.functional.cross_entropy(y, t))
    step = TrainQuantized(epochs=2, learning_rate=0.05, observer="minmax", n_samples=16)
    changed = apply(task.model, step, context_of(task))
    assert changed.details["kept"] == "post-training"
    assert changed.note.startswith("post-training quantization kept: validation score")
    plain = TrainableQuantized(
        trained, task.example_inputs,
        [(torch.from_numpy(digits_like(256, 1)[0][i : i + 1]),) for i in range(16)],
        observer="minmax",
    ).finish()  # fmt: skip
    x = torch.from_numpy(digits_like(20, 4)[0])
    assert torch.equal(changed.model(x), plain(x))


@pytest.mark.parametrize("direction", ["higher", "lower"])
def test_the_better_of_both_is_judged_in_the_direction_of_the_metric(trained, direction):
    scores: list[float] = []

    def evaluate(predict, split):
        assert split == "validation"
        scores.append(float(len(scores)))
        return scores[-1]

    task = task_of(copy.deepcopy(trained), evaluate=evaluate, metric=Metric(direction=direction))
    step = TrainQuantized(epochs=1, observer="minmax", n_samples=4)
    changed = apply(task.model, step, context_of(task))
    assert changed.details["kept"] == ("trained" if direction == "higher" else "post-training")
    assert changed.details["score_post_training"] == 0


def test_without_a_score_the_loss_decides(trained):
    task = task_of(copy.deepcopy(trained), evaluate=None)
    step = TrainQuantized(epochs=1, observer="minmax", n_samples=16)
    changed = apply(task.model, step, context_of(task))
    better = changed.details["loss_trained"] <= changed.details["loss_post_training"]
    assert changed.details["kept"] == ("trained" if better else "post-training")


def test_the_users_model_and_the_teacher_stay_as_they_are(trained):
    model = copy.deepcopy(trained)
    task = task_of(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    step = TrainQuantized(
        epochs=1, learning_rate=0.02, observer="minmax", n_samples=8, distill="soft"
    )
    changed = apply(model, step, context_of(task))
    assert isinstance(changed.model, QuantizedModel)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_equal_seeds_give_equal_quantized_weights(trained):
    step = TrainQuantized(epochs=1, learning_rate=0.01, observer="minmax", n_samples=8)
    states = [
        apply(
            copy.deepcopy(trained), step, context_of(task_of(copy.deepcopy(trained)))
        ).model.quantized.folded.state_dict()
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


def test_a_recurrent_network_trains_sample_by_sample():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRU(6, 4, batch_first=True)
            self.head = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(x)[0][:, -1])

    torch.manual_seed(0)
    model = Recurrent().eval()
    samples = [(torch.randn(1, 3, 6),) for _ in range(4)]
    subject = TrainableQuantized(model, samples[0], samples, observer="minmax")
    x = torch.cat([s[0] for s in samples])
    y = subject.train()(x)
    assert y.shape == (4, 4)
    y.square().sum().backward()
    moved = {n for n, p in subject.named_parameters() if p.grad is not None and p.grad.any()}
    assert any("weight_hh" in n for n in moved)
    result = subject.finish()
    with torch.no_grad():
        expected = torch.cat([result.quantized.folded(*s) for s in samples])
        assert torch.equal(result(x), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"loss": None}, "training needs a loss"), ({"data": {}}, "no split 'train'")],
)
def test_a_task_that_can_not_train_is_refused(trained, changes, message):
    task = task_of(copy.deepcopy(trained), **changes)
    with pytest.raises(ConfigError, match=message):
        apply(task.model, TrainQuantized(), context_of(task))


def test_a_task_without_validation_is_refused_with_the_remedy(trained):
    task = task_of(copy.deepcopy(trained))
    task = task_of(task.model, data={"train": task.data["train"]})
    with pytest.raises(ConfigError, match="'quantize'") as caught:
        apply(task.model, TrainQuantized(), context_of(task))
    assert "qat" in caught.value.where


@pytest.mark.parametrize("learned_scales", [False, True])
def test_an_interrupted_training_goes_on_to_the_same_weights(trained, tmp_path, learned_scales):
    step = TrainQuantized(
        epochs=3, learning_rate=0.01, observer="minmax", n_samples=8,
        learned_scales=learned_scales, freeze_observers_at=0.8,
    )  # fmt: skip

    def run(folder, stop_at: int = 10**9) -> dict[str, Tensor]:
        calls = []

        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            calls.append(1)
            if len(calls) == stop_at:
                raise KeyboardInterrupt
            return nn.functional.cross_entropy(outputs, targets)

        task = task_of(copy.deepcopy(trained), loss=loss)
        changed = apply(task.model, step, context_of(task, checkpoints=folder))
        return changed.model.quantized.folded.state_dict()

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop_at=20)  # of 8 steps an epoch: in the third
    resumed = run(tmp_path / "cut", stop_at=9)  # one epoch is left: stops if it begins anew
    assert all(torch.equal(a, b) for a, b in zip(whole.values(), resumed.values(), strict=True))
