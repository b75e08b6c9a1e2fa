"""The training loop: repeatable, keeps its best epoch, and stops at the first NaN."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.task import ArraySplit, Metric, Task, Training
from edgeshrink.training import fit, float_predict, train


def points(n: int = 96, *, seed: int = 0, batch_size: int = 16, shuffle: bool = True) -> ArraySplit:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 2)).astype(np.float32)
    labels = (x[:, 0] * x[:, 1] > 0).astype(np.int64)
    return ArraySplit(inputs=(x,), targets=labels, batch_size=batch_size, shuffle=shuffle, rng=rng)


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2)
    )


def trained(seed: int = 0, epochs: int = 3, **changes) -> nn.Module:
    model = network()
    training = Training(epochs=epochs, learning_rate=1e-2)
    arguments = {"batches": points(), "loss": nn.functional.cross_entropy} | changes
    fit(model, training=training, seed=seed, **arguments)
    return model


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_equal_seeds_give_equal_weights_to_the_last_bit():
    first = trained(seed=1)
    torch.rand(7)  # what happened to the global generator before does not matter
    assert equal(first, trained(seed=1))


def test_another_seed_drops_other_activations():
    assert not equal(trained(seed=1), trained(seed=2))


def test_training_learns_what_a_line_can_not_separate():
    model = trained(epochs=40)
    (x,), labels = next(iter(points(400, seed=5, batch_size=400)))
    hits = float_predict(model)(x).argmax(axis=1) == labels
    assert hits.mean() > 0.85


def test_the_epoch_with_the_highest_rank_is_kept():
    seen = []
    ranks = iter([0.1, 0.9, 0.3, 0.2])

    model = network()

    def rank(predict):
        seen.append(copy.deepcopy(model.state_dict()))
        return next(ranks)

    training = Training(epochs=4, learning_rate=1e-2)
    fit(model, points(), nn.functional.cross_entropy, training, seed=0, rank=rank)
    assert len(seen) == 4
    for name, value in model.state_dict().items():
        assert torch.equal(value, seen[1][name])
    assert not torch.equal(seen[1]["0.weight"], seen[3]["0.weight"])
    assert not model.training


@pytest.mark.parametrize(("direction", "kept"), [("higher", 1), ("lower", 2)])
def test_validation_chooses_in_the_direction_of_the_metric(direction, kept):
    scores = iter([0.5, 0.9, 0.1])
    weights = []
    model = network()

    def evaluate(predict, split):
        assert split == "validation"
        weights.append(model[0].weight.detach().clone())
        return next(scores)

    task = Task(
        model=model,
        example_inputs=(torch.zeros(1, 2),),
        data={"train": points(), "validation": points(seed=1)},
        evaluate=evaluate,
        loss=nn.functional.cross_entropy,
        training=Training(epochs=3, learning_rate=1e-2),
        metric=Metric(direction=direction),
    )
    train(task, seed=0)
    assert torch.equal(model[0].weight, weights[kept])


def test_a_loss_of_nan_stops_at_once_and_says_what_to_try():
    calls = []

    def loss(outputs, targets):
        calls.append(1)
        return outputs.sum() * (np.nan if len(calls) == 2 else 1.0)

    with pytest.raises(ModelError, match="epoch 1 of 3") as caught:
        trained(loss=loss)
    assert len(calls) == 2
    assert "the loss is nan" in caught.value.what
    assert "learning_rate" in caught.value.fix


def test_weights_that_overflow_are_found_at_the_end_of_the_epoch():
    model = nn.Linear(2, 2)

    def loss(outputs, targets):
        model.bias.data[0] = np.inf  # the loss itself stays finite
        return outputs[:, 1].sum()

    with pytest.raises(ModelError, match="parameter bias"):
        fit(model, points(), loss, Training(epochs=1), seed=0)


@pytest.mark.parametrize(
    "loss",
    [
        lambda outputs, targets: outputs,
        lambda outputs, targets: 0.5,
        lambda outputs, targets: torch.tensor(1.0),
    ],
)
def test_a_loss_that_is_no_scalar_of_the_outputs_is_refused(loss):
    with pytest.raises(ConfigError, match="scalar tensor"):
        trained(loss=loss)


def test_an_exception_in_the_loss_names_the_task():
    task = Task(
        model=network(),
        example_inputs=(torch.zeros(1, 2),),
        data={"train": points()},
        loss=lambda outputs, targets: outputs["logits"],
        training=Training(epochs=1),
        name="mine",
    )
    with pytest.raises(ConfigError, match="task 'mine': training: raised"):
        train(task, seed=0)


def test_a_model_without_free_parameters_is_refused():
    model = network().requires_grad_(False)
    with pytest.raises(ModelError, match="no parameter to train"):
        fit(model, points(), nn.functional.cross_entropy, Training(epochs=1), seed=0)


def test_frozen_parameters_stay_as_they_are():
    model = network()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    training = Training(epochs=2, learning_rate=1e-2)
    fit(model, points(), nn.functional.cross_entropy, training, seed=0)
    assert torch.equal(model[0].weight, before)


def test_a_rest_of_one_sample_does_not_break_a_batch_norm():
    trained(batches=points(33, batch_size=16))


def test_batches_of_one_sample_are_trained_on():
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    training = Training(epochs=1)
    fit(model, points(3, batch_size=1), nn.functional.cross_entropy, training, seed=0)
    assert not torch.equal(model.weight, before)


def test_progress_rises_to_one_and_tells_the_loss():
    told = []
    trained(progress=lambda share, text: told.append((share, text)))
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert any("epoch 2 of 3, loss" in text for _, text in told)


def test_deterministic_mode_is_left_as_it_was():
    assert not torch.are_deterministic_algorithms_enabled()
    trained(epochs=1)
    assert not torch.are_deterministic_algorithms_enabled()


def test_float_predict_gives_back_the_models_structure():
    class Two(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.kind = kind

        def forward(self, a, b):
            return self.kind(a, b)

    a, b = np.ones((5, 2), np.float32), np.full((5, 2), 3, np.float32)
    single = float_predict(Two(lambda a, b: a + b))(a, b)
    assert np.array_equal(single, np.full((5, 2), 4, np.float32))
    pair = float_predict(Two(lambda a, b: (a, [b])))(a, b)
    assert isinstance(pair, tuple)
    assert np.array_equal(pair[1], b)
    named = float_predict(Two(lambda a, b: {"sum": a + b, "b": b}))(a, b)
    assert list(named) == ["sum", "b"]


def test_float_predict_takes_read_only_arrays():
    x = np.ones((2, 2), np.float32)
    x.setflags(write=False)
    assert float_predict(nn.Identity())(x).shape == (2, 2)
