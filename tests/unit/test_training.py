"""The training loop: repeatable, keeps its best epoch, and stops at the first NaN."""

from __future__ import annotations

import copy
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edgeshrink.checkpoints import FILE, Checkpoints, claim_folder
from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.task import ArraySplit, Metric, Task, Training
from edgeshrink.training import (
    Objective,
    check_trainable,
    find_device,
    fit,
    float_predict,
    hold,
    mixed_precision,
    retrain,
    train,
)


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


# ---- optimizers, averages, patience


def test_sgd_is_nesterovs_momentum_along_one_cosine():
    """The weights of a linear model, computed a second time by the textbook's recurrence."""
    x = np.array([[1.0], [2.0], [-1.0]], np.float32)
    y = np.array([[3.0], [5.0], [-1.0]], np.float32)
    model = nn.Linear(1, 1, bias=False)
    weight = model.weight.detach().numpy().astype(np.float64).item()
    split = ArraySplit(inputs=(x,), targets=y, batch_size=3)
    training = Training(
        epochs=5, learning_rate=0.1, optimizer="sgd", weight_decay=0.01, warmup_share=0.4
    )
    fit(model, split, nn.functional.mse_loss, training, seed=0)
    velocity = 0.0
    shares = [1 / 3, 2 / 3, *(0.5 * (1 + np.cos(np.pi * i / 3)) for i in range(3))]
    for share in shares:
        slope = float((2 * (x * weight - y) * x).mean()) + 0.01 * weight
        velocity = 0.9 * velocity + slope
        weight -= 0.1 * share * (slope + 0.9 * velocity)
    assert model.weight.item() == pytest.approx(weight, rel=1e-5)


def test_averaged_weights_are_ranked_and_kept_while_training_goes_on_from_its_own():
    x = np.ones((4, 1), np.float32)
    model = nn.Linear(1, 1, bias=False)
    path, ranked = [model.weight.item()], []

    def watch(model, share):
        path.append(model.weight.item())

    def rank(predict):
        ranked.append(predict(x[:1]).item())
        return float(len(ranked))

    split = ArraySplit(inputs=(x,), targets=5 * x, batch_size=2)
    training = Training(epochs=3, learning_rate=0.05, optimizer="sgd", ema=0.9)
    fitted = fit(
        model, split, nn.functional.mse_loss, training, seed=0, rank=rank,
        after_step=lambda m, share: watch(m, share) if m.weight.item() not in ranked else None,
    )  # fmt: skip
    average, expected = path[0], []
    steps = [w for i, w in enumerate(path[1:]) if (i + 1) % 3]  # each third: the averages
    for step, weight in enumerate(steps, 1):
        decay = min(0.9, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
        if step % 2 == 0:
            expected.append(average)
    assert ranked == pytest.approx(expected, rel=1e-5)
    assert model.weight.item() == pytest.approx(expected[-1], rel=1e-5)
    assert abs(steps[-1] - expected[-1]) > 0.01
    assert fitted.kept_epoch == 3


def test_patience_ends_a_training_that_gets_no_better():
    ranks = iter([0.5, 0.7, 0.7, 0.6, 0.9])
    training = Training(epochs=9, learning_rate=1e-2, patience=2)
    model = network()
    fitted = fit(
        model, points(), nn.functional.cross_entropy, training, seed=0, rank=lambda p: next(ranks)
    )
    assert (fitted.epochs, fitted.kept_epoch, fitted.rank) == (4, 3, 0.7)


@pytest.mark.parametrize(("keep", "kept_epoch"), [("best", 1), ("last", 3)])
def test_a_task_whose_validation_data_is_known_to_the_model_keeps_the_last_epoch(keep, kept_epoch):
    scores = iter([0.9, 0.8, 0.7])
    task = Task(
        model=network(), example_inputs=(torch.zeros(1, 2),), loss=nn.functional.cross_entropy,
        data={"train": points(), "validation": points()},
        evaluate=lambda predict, split: next(scores),
        training=Training(epochs=3, learning_rate=1e-2, keep=keep),
    )  # fmt: skip
    fitted = train(task, seed=0)
    assert fitted.kept_epoch == kept_epoch
    assert equal(task.model, trained(epochs=kept_epoch)) == (keep == "last")


def test_patience_without_a_score_is_refused():
    with pytest.raises(ConfigError, match="patience"):
        fit(
            network(), points(), nn.functional.cross_entropy,
            Training(epochs=1, patience=2), seed=0,
        )  # fmt: skip


def test_weights_from_before_stay_where_no_epoch_is_as_good():
    model = network()
    before = copy.deepcopy(model)
    ranks = iter([0.9, 0.5, 0.6])
    fitted = fit(
        model, points(), nn.functional.cross_entropy, Training(epochs=2), seed=0,
        rank=lambda p: next(ranks), rank_start=True,
    )  # fmt: skip
    assert equal(model, before)
    assert fitted.kept_epoch == 0


# ---- hooks


def test_an_objective_sees_model_and_inputs():
    seen = []

    def value(model, inputs, targets):
        seen.append((model, inputs[0].shape))
        return nn.functional.cross_entropy(model(*inputs), targets)

    model = network()
    fit(model, points(32), Objective(value=value), Training(epochs=1), seed=0)
    assert seen == [(model, (16, 2)), (model, (16, 2))]
    other = network()
    fit(other, points(32), nn.functional.cross_entropy, Training(epochs=1), seed=0)
    assert equal(model, other)


def test_zeros_that_are_held_stay_zero_and_the_rest_is_trained():
    model = network()
    model[0].weight.data[::2] = 0
    before = model[0].weight.detach().clone()
    training = Training(epochs=3, learning_rate=1e-2, ema=0.5)
    fit(
        model, points(), nn.functional.cross_entropy, training,
        seed=0, after_step=hold(model, "zeros"),
    )  # fmt: skip
    assert (model[0].weight[::2] == 0).all()
    assert (model[0].weight[1::2] != before[1::2]).all()


def test_equal_weights_that_are_held_stay_equal():
    model = network()
    values = torch.tensor([-0.5, 0.0, 0.25])
    group = torch.arange(32).reshape(16, 2) % 3
    model[0].weight.data = values[group]
    fit(
        model, points(), nn.functional.cross_entropy, Training(epochs=3, learning_rate=1e-2),
        seed=0, after_step=hold(model, "values"),
    )  # fmt: skip
    found = [model[0].weight[group == i].unique() for i in range(3)]
    assert [len(values) for values in found] == [1, 1, 1]
    assert found[1].item() == 0
    assert found[0].item() != -0.5


# ---- faults


def test_a_nan_gives_back_the_best_weights_and_says_which():
    model, states, calls = network(), [], []
    ranks = iter([0.9, 0.3])

    def loss(outputs, targets):
        calls.append(1)
        value = nn.functional.cross_entropy(outputs, targets)
        return value * (np.nan if len(calls) == 15 else 1.0)  # in the third epoch of six steps

    def rank(predict):
        states.append(copy.deepcopy(model.state_dict()))
        return next(ranks)

    with pytest.raises(ModelError, match=r"epoch 3 of 4.*weights of epoch 1 again"):
        fit(model, points(), loss, Training(epochs=4, learning_rate=1e-2), seed=0, rank=rank)
    for name, value in model.state_dict().items():
        assert torch.equal(value, states[0][name])


def test_a_nan_in_the_first_epoch_gives_back_the_weights_from_before():
    model = network()
    before = copy.deepcopy(model)
    with pytest.raises(ModelError, match="weights of the start again"):
        fit(model, points(), lambda o, t: o.sum() * np.nan, Training(epochs=1), seed=0)
    assert equal(model, before)


def test_targets_of_one_class_are_refused():
    split = ArraySplit(inputs=(np.ones((8, 2), np.float32),), targets=np.full(8, 1))
    with pytest.raises(ConfigError, match="all targets are 1: one class alone"):
        fit(network(), split, nn.functional.cross_entropy, Training(epochs=1), seed=0)


def test_a_split_without_batches_is_refused():
    with pytest.raises(ConfigError, match="is empty"):
        fit(network(), [], nn.functional.cross_entropy, Training(epochs=1), seed=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"loss": None}, "needs a loss"), ({"data": {"validation": points()}}, "no split 'train'")],
)
def test_a_task_that_can_not_train_is_told_what_is_missing(change, words):
    task = replace(simple_task(), **change)
    with pytest.raises(ConfigError, match=words):
        check_trainable(task, "recipe step 1 (finetune)")


# ---- precision


def test_products_in_bfloat16_are_rounded_and_outputs_are_not():
    layer = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0**-5, 1.0]]))
    x = torch.tensor([[1.0, 2.0**-5, 2.0**-9]])  # 1 + 2^-10 + 2^-9; bfloat16 has 8 bits
    assert layer(x).item() == 1 + 2.0**-10 + 2.0**-9
    with mixed_precision(layer, "bfloat16"):
        y = layer(x)
    assert y.dtype == torch.float32
    assert y.item() == 1
    assert layer(x).item() > 1, "behind the block it computes in float32 again"
    assert "forward" not in vars(layer)


def test_a_training_in_bfloat16_repeats_and_keeps_float32_weights():
    runs = [network() for _ in range(3)]
    for model, precision in zip(runs, ("bfloat16", "bfloat16", "float32"), strict=True):
        training = Training(epochs=3, learning_rate=1e-2, precision=precision)
        fit(model, points(), nn.functional.cross_entropy, training, seed=0)
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])
    assert {value.dtype for value in runs[0].parameters()} == {torch.float32}
    accuracies = [score_of(model) for model in runs]
    assert abs(accuracies[0] - accuracies[2]) < 0.1


def test_the_loss_of_a_bfloat16_training_is_computed_in_float32():
    seen = set()

    def loss(outputs, targets):
        seen.add(outputs.dtype)
        return nn.functional.cross_entropy(outputs, targets)

    training = Training(epochs=1, learning_rate=1e-2, precision="bfloat16")
    fit(network(), points(), loss, training, seed=0)
    assert seen == {torch.float32}


def score_of(model: nn.Module) -> float:
    (x,), targets = next(iter(points(512, seed=9, batch_size=512, shuffle=False)))
    return float((float_predict(model)(x).argmax(axis=1) == targets).mean())


# ---- checkpoints


def simple_task(**changes) -> Task:
    def evaluate(predict, split):
        hits = [predict(*x).argmax(axis=1) == y for x, y in task.data[split]]
        return float(np.concatenate(hits).mean())

    task = Task(
        model=network(),
        example_inputs=(torch.zeros(1, 2),),
        data={"train": points(), "validation": points(seed=1)},
        evaluate=evaluate,
        loss=nn.functional.cross_entropy,
        training=Training(epochs=6, learning_rate=1e-2, ema=0.8),
    )
    return replace(task, **changes) if changes else task


class Stop(BaseException):
    """What Ctrl-C is: no Exception."""


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("stop_at", [0.1, 0.4, 0.99, 1.0])
def test_an_interrupted_training_ends_with_the_same_bytes(tmp_path, optimizer, stop_at):
    training = Training(epochs=6, learning_rate=1e-2, ema=0.8, optimizer=optimizer)
    whole = simple_task(training=training)
    train(whole, seed=3)
    after = [torch.rand(3), np.random.default_rng(0), whole.data["train"].rng.random()]

    def progress(share, detail):
        if share >= stop_at:
            raise Stop

    first = simple_task(training=training)
    with pytest.raises(Stop):
        train(first, seed=3, checkpoints=tmp_path, progress=progress)
    random.random(), torch.rand(5)  # what happens in between does not matter
    second = simple_task(training=training)
    epochs = []
    train(second, seed=3, checkpoints=tmp_path, progress=lambda _, d: epochs.append(d))
    assert equal(whole.model, second.model)
    assert torch.equal(torch.rand(3), after[0])
    assert second.data["train"].rng.random() == after[2]
    if stop_at >= 0.4:
        assert not any("epoch 1 of" in text for text in epochs), "what is done is not done again"


def test_a_finished_training_is_not_done_again(tmp_path):
    first, second = simple_task(), simple_task()
    done = train(first, seed=0, checkpoints=tmp_path)
    told = []
    again = train(second, seed=0, checkpoints=tmp_path, progress=lambda _, d: told.append(d))
    assert equal(first.model, second.model)
    assert again == done
    assert told == ["trained 6 epochs"]


def test_early_stopping_survives_an_interrupt(tmp_path):
    def run(ranks, **more):
        ranks, model = iter(ranks), network()
        fitted = fit(
            model, points(), nn.functional.cross_entropy,
            Training(epochs=9, learning_rate=1e-2, patience=2), seed=0,
            rank=lambda p: next(ranks), **more,
        )  # fmt: skip
        return model, fitted

    model, fitted = run([0.5, 0.7, 0.6, 0.6])
    kept = Checkpoints(folder=tmp_path)
    with pytest.raises(StopIteration):
        run([0.5, 0.7, 0.6], checkpoints=kept)  # there is no fourth
    other, again = run([0.6], checkpoints=kept)
    assert again == fitted
    assert equal(model, other)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("seed", {"seed": 1}),
        ("training", {"training": Training(epochs=7, learning_rate=1e-2, ema=0.8)}),
        ("data", {"data": {"train": points(seed=9), "validation": points(seed=1)}}),
        ("model", {"model": nn.Linear(2, 2)}),
        ("task", {"name": "other"}),
        ("step", {"identity": {"step": "Finetune(weight=0.5)"}}),
    ],
)
def test_a_checkpoint_of_something_else_is_refused_and_left_as_it_is(tmp_path, what, change):
    task = simple_task()
    retrain(
        task.model, task, task.training, seed=0, checkpoints=tmp_path,
        identity={"step": "Finetune(weight=0.7)"},
    )  # fmt: skip
    content = (tmp_path / FILE).read_bytes()
    options = {"seed": 0, "identity": {"step": "Finetune(weight=0.7)"}} | {
        k: v for k, v in change.items() if k in ("seed", "identity")
    }
    other = simple_task(**{k: v for k, v in change.items() if k not in ("seed", "identity")})
    with pytest.raises(ConfigError, match=f"belongs to another {what}.*delete {tmp_path}"):
        retrain(other.model, other, other.training, checkpoints=tmp_path, **options)
    assert (tmp_path / FILE).read_bytes() == content


@pytest.mark.parametrize("damage", ["half", "empty", "random", "a pickle"])
def test_a_damaged_checkpoint_is_named_and_never_run(tmp_path, damage):
    train(simple_task(), seed=0, checkpoints=tmp_path)
    path, flag = tmp_path / FILE, tmp_path / "ran"
    good = path.read_bytes()
    if damage == "a pickle":
        torch.save(Evil(str(flag)), path)
    else:
        bad = {"half": good[: len(good) // 2], "empty": b"", "random": random.randbytes(999)}
        path.write_bytes(bad[damage])
    with pytest.raises(ConfigError, match=r"checkpoint\.pt: is damaged"):
        train(simple_task(), seed=0, checkpoints=tmp_path)
    assert not flag.exists()


class Evil:
    """Unpickled without care, it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_no_checkpoint_is_left_half_written(tmp_path, monkeypatch):
    train(simple_task(), seed=0, checkpoints=tmp_path)
    good = (tmp_path / FILE).read_bytes()

    def full(content, stream):
        stream.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    (tmp_path / "next").mkdir()
    (tmp_path / "next" / FILE).write_bytes(good)
    with pytest.raises(Exception, match="No space left"):
        train(simple_task(), seed=0, checkpoints=tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())
    assert (tmp_path / FILE).read_bytes() == good


def test_generators_of_torch_and_of_other_splits_go_on_where_they_were(tmp_path):
    class Loader:
        def __init__(self):
            self.generator = torch.Generator().manual_seed(4)

        def __len__(self):
            return 3

        def __iter__(self):
            for _ in range(3):
                x = torch.randn(8, 2, generator=self.generator).numpy()
                x += np.random.standard_normal((8, 2)).astype(np.float32)
                yield (x,), (x[:, 0] > random.gauss(0, 0.1)).astype(np.int64)

    def run(**more):
        random.seed(1)
        np.random.seed(1)
        task = simple_task(data={"train": Loader(), "validation": points(seed=1)})
        train(task, seed=0, **more)
        return task.model

    def stop(share, detail):
        if "epoch 4" in detail:
            raise Stop

    with pytest.raises(Stop):
        run(checkpoints=tmp_path, progress=stop)
    assert equal(run(), run(checkpoints=tmp_path))


def test_a_folder_with_checkpoints_is_for_one_recipe(tmp_path):
    identity = {"seed": "0", "step 1": "Prune(ratio=0.5)"}
    claim_folder(tmp_path, identity)
    claim_folder(tmp_path, identity | {"step 1": "Prune(ratio=0.25)"})  # nothing is in it so far
    (tmp_path / "0-prune").mkdir()
    (tmp_path / "0-prune" / FILE).write_bytes(b"")
    claim_folder(tmp_path, identity | {"step 1": "Prune(ratio=0.25)"})
    with pytest.raises(ConfigError, match=r"another step 1 \(Prune\(ratio=0.25\)\), this is"):
        claim_folder(tmp_path, identity)


KILLED = """
import sys, time
from pathlib import Path
import numpy as np, torch
from torch import nn
from edgeshrink.task import ArraySplit, Task, Training
from edgeshrink.training import train

rng = np.random.default_rng(0)
x = rng.standard_normal((64, 2)).astype(np.float32)
data = {"train": ArraySplit(inputs=(x,), targets=(x[:, 0] > 0).astype(int), shuffle=True, rng=rng,
                            batch_size=8)}
torch.manual_seed(0)
task = Task(model=nn.Sequential(nn.Linear(2, 8), nn.Dropout(), nn.Linear(8, 2)), data=data,
            example_inputs=(torch.zeros(1, 2),), loss=nn.functional.cross_entropy,
            training=Training(epochs=40, learning_rate=0.01))
slow = float(sys.argv[2])
def progress(share, detail):
    time.sleep(slow)
train(task, seed=0, checkpoints=Path(sys.argv[1]), progress=progress)
np.savez(sys.argv[3], **{k: v.numpy() for k, v in task.model.state_dict().items()})
"""


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_bytes(tmp_path):
    def start(folder: str, slow: float) -> subprocess.Popen:
        arguments = [tmp_path / folder, slow, tmp_path / f"{folder}.npz"]
        return subprocess.Popen([sys.executable, "-c", KILLED, *map(str, arguments)])

    whole = start("whole", 0)
    killed = start("killed", 0.01)
    limit = time.monotonic() + 120
    while not (tmp_path / "killed" / FILE).exists() and time.monotonic() < limit:
        time.sleep(0.01)
    time.sleep(0.3)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed.npz").exists()
    assert start("killed", 0).wait() == 0
    assert whole.wait() == 0
    results = [np.load(tmp_path / f"{name}.npz") for name in ("whole", "killed")]
    for name in results[0].files:
        assert np.array_equal(results[0][name], results[1][name])


# ---- where it runs


def test_a_gpu_is_taken_where_there_is_one(monkeypatch):
    assert find_device().type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_device().type == "cuda"


def test_model_inputs_and_targets_go_to_the_device_and_the_model_comes_back():
    """On a device without memory: that it is used is seen, numbers are not."""
    seen = []

    def value(model, inputs, targets):
        seen.append(
            (next(model.parameters()).device.type, inputs[0].device.type, targets.device.type)
        )
        raise Stop

    with pytest.raises((Stop, NotImplementedError)):
        fit(
            network(), points(), Objective(value=value), Training(epochs=1), seed=0,
            device=torch.device("meta"),
        )  # fmt: skip
    assert seen == [("meta", "meta", "meta")]


def test_the_time_that_is_left_is_told():
    told = []

    def progress(share, text):
        told.append(text)
        time.sleep(0.2)

    trained(epochs=2, progress=progress)
    assert any(text.endswith(("0:01 left", "0:02 left")) for text in told)
