"""The steps of a recipe in order: what each is given, what is reported, how one fails."""

from __future__ import annotations

import copy
import importlib
import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edgeshrink import recipe as recipes
from edgeshrink.compression import calibrate_probabilities, check_recipe, compress
from edgeshrink.compression.compress import STEPS, apply_of, held_by, weight_bytes
from edgeshrink.compression.steps import Changed
from edgeshrink.compression.temperature import calibration_error, fit_temperature
from edgeshrink.errors import ConfigError, EdgeshrinkError, ModelError
from edgeshrink.program import ProgramModule
from edgeshrink.recipe import (
    Cluster,
    Factorize,
    Finetune,
    Prune,
    Quantize,
    Recipe,
    ScaleTemperature,
    Sparsify,
    TrainQuantized,
    name_of,
)
from edgeshrink.target import load_target
from edgeshrink.task import ArraySplit, Task, Training
from edgeshrink.task_checks import check_task


class Net(nn.Module):
    def __init__(self, width: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def images(n: int, seed: int) -> ArraySplit:
    """Images whose class is the size of their pixels."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 3)
    x = rng.standard_normal((n, 1, 6, 6)) * (0.3 + labels[:, None, None, None])
    return ArraySplit(
        inputs=(x.astype(np.float32),), targets=labels, batch_size=16, shuffle=True, rng=rng
    )


def make_task(**changes) -> Task:
    torch.manual_seed(0)
    data = {"train": images(96, 0), "validation": images(48, 1), "test": images(48, 2)}

    def evaluate(predict, split):
        assert split == "validation", "test is never touched by a step"
        hits = [predict(*x).argmax(axis=1) == y for x, y in data[split]]
        return float(np.concatenate(hits).mean())

    task = Task(
        model=Net().eval(),
        example_inputs=(torch.zeros(1, 1, 6, 6),),
        data=data,
        evaluate=evaluate,
        loss=nn.functional.cross_entropy,
    )
    return replace(task, **changes)


def run(task: Task, *steps, **more):
    options = {"seed": 0} | more
    return compress(task, Recipe(steps=(*steps, Quantize())), load_target("rpi4"), **options)


def states(model: nn.Module) -> dict:
    return copy.deepcopy(model.state_dict())


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# ---- the table


def test_every_step_but_quantize_has_a_function_that_runs_it():
    assert set(STEPS) == set(recipes.STEPS.values()) - {Quantize}
    for kind in STEPS:
        assert callable(apply_of(kind()))


# ---- order, reports


def test_a_recipe_that_only_quantizes_gives_the_model_itself():
    task = make_task()
    done = run(task)
    assert done.model is task.model
    assert done.reports == ()


def test_steps_run_in_order_and_each_is_reported_on_what_the_one_before_left(monkeypatch):
    def widen(model, step, context):
        return Changed(model=Net(16), note="wider", details={"a": [1]})

    def narrow(model, step, context):
        assert model.conv.out_channels == 16
        return Changed(model=Net(4), note="narrower")

    monkeypatch.setitem(STEPS, Prune, f"{__name__}:widen")
    monkeypatch.setitem(STEPS, Cluster, f"{__name__}:narrow")
    monkeypatch.setitem(globals(), "widen", widen)
    monkeypatch.setitem(globals(), "narrow", narrow)
    task = make_task()
    before = states(task.model)
    done = run(task, Prune(ratio=0.5), Cluster())
    first, second = done.reports
    assert (first.step, first.note) == (Prune(ratio=0.5), "wider")

    def figures(width: int) -> tuple[int, int, int]:
        """Of Net by hand: the norm is folded, and then the convolution has a bias."""
        parameters = 9 * width + 2 * width + 3 * width + 3
        return parameters, 36 * 9 * width + 3 * width, 9 * width + 3 * width + 4 * (width + 3)

    assert (first.parameters_before, first.macs_before, first.n_bytes_before) == figures(8)
    assert (first.parameters_after, first.macs_after, first.n_bytes_after) == figures(16)
    assert (second.parameters_before, second.macs_before, second.n_bytes_before) == figures(16)
    assert (second.parameters_after, second.macs_after, second.n_bytes_after) == figures(4)
    assert first.score_after == second.score_before
    assert same(before, states(task.model)), "the teacher stays as it was"
    document = json.loads(json.dumps(first.to_json()))
    assert document["step"]["step"] == "prune"
    assert document["details"] == {"a": [1]}


def test_float_weights_take_four_bytes():
    examples = (torch.zeros(1, 1, 6, 6),)
    assert weight_bytes(Net(8), examples, "float32") == 4 * (9 * 8 + 8 + 3 * 8 + 3)


def test_what_earlier_steps_did_to_single_weights_is_held(monkeypatch):
    seen = []

    def look(model, step, context):
        seen.append(context.held)
        return Changed(model=model, note="")

    monkeypatch.setitem(globals(), "look", look)
    monkeypatch.setitem(STEPS, Finetune, f"{__name__}:look")
    run(make_task(), Sparsify(), Finetune())
    assert seen == ["zeros"]
    assert held_by([Finetune(), Prune(ratio=0.5)]) == "nothing"
    assert held_by([Sparsify(), Finetune()]) == "zeros"
    assert held_by([Sparsify(), Cluster(), Finetune()]) == "values"


def test_progress_names_the_step_and_rises_to_one():
    told = []
    run(make_task(), Finetune(epochs=2), progress=lambda share, text: told.append((share, text)))
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert any("recipe step 1 (finetune): training epoch 2 of 2, loss" in text for _, text in told)


# ---- fine-tuning


def test_fine_tuning_gets_better_and_zeros_survive_it():
    task = make_task()
    steps = (Sparsify(ratio=0.5), Finetune(epochs=8, learning_rate=0.02, distill="soft"))
    done = run(task, *steps)
    assert (done.model.conv.weight == 0).sum() + (done.model.head.weight == 0).sum() == 48
    assert done.reports[1].score_after > done.reports[1].score_before


def test_fine_tuning_that_helps_nothing_leaves_the_weights_as_they_were():
    task = make_task(evaluate=lambda predict, split: -float(np.abs(predict_all(predict)).mean()))
    task.model.head.weight.data.zero_()
    task.model.head.bias.data.zero_()
    done = run(task, Finetune(epochs=2))
    assert same(states(done.model), states(task.model))
    assert "weights as before" in done.reports[0].note


def predict_all(predict) -> np.ndarray:
    return predict(images(8, 3).inputs[0])


def test_the_tasks_teacher_teaches_where_it_has_one(monkeypatch):
    finetune = importlib.import_module("edgeshrink.compression.finetune")
    taught, real = [], finetune.with_teacher
    monkeypatch.setattr(
        finetune, "with_teacher", lambda task, step, t: taught.append(t) or real(task, step, t)
    )
    mine = Net(16)
    for task in (make_task(teacher=mine), make_task()):
        run(task, Finetune(distill="decoupled"))
    assert taught == [mine, task.model]


def test_equal_seeds_give_equal_models_after_an_interrupt_too(tmp_path):
    steps = (Finetune(epochs=2, learning_rate=0.01), Finetune(epochs=3, distill="soft", ema=0.5))

    def stop(share, detail):
        if "step 2" in detail and "epoch 3" in detail:
            raise KeyboardInterrupt

    whole = run(make_task(), *steps, checkpoints=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(make_task(), *steps, checkpoints=tmp_path / "cut", progress=stop)
    told = []
    again = run(
        make_task(), *steps, checkpoints=tmp_path / "cut", progress=lambda _, t: told.append(t)
    )
    assert same(states(whole.model), states(again.model))
    assert not any("epoch 1" in text for text in told)
    assert [replace(r, seconds=0) for r in again.reports] == [
        replace(r, seconds=0) for r in whole.reports
    ]


def test_trained_quantization_is_handed_on_beside_the_float_model():
    task = make_task()
    recipe = Recipe(steps=(Finetune(epochs=1), TrainQuantized(epochs=1, n_samples=8)))
    done = compress(task, recipe, load_target("rpi4"), seed=0)
    assert done.quantized is not None
    assert isinstance(done.model, Net)
    first, second = done.reports
    assert second.parameters_after == first.parameters_after
    assert second.score_after is not None


# ---- faults


def fail(model, step, context):
    raise ModelError("layer 'conv'", "can't be traced", "leave it")


def crash(model, step, context):
    raise IndexError("7")


@pytest.mark.parametrize(
    ("function", "kind", "words"),
    [
        ("fail", ModelError, "recipe step 2 (cluster): layer 'conv': can't be traced; leave it"),
        ("crash", ConfigError, "recipe step 2 (cluster): raised IndexError: 7"),
    ],
)
def test_a_step_that_fails_names_itself(monkeypatch, function, kind, words):
    monkeypatch.setitem(STEPS, Cluster, f"{__name__}:{function}")
    with pytest.raises(EdgeshrinkError) as caught:
        run(make_task(), Sparsify(), Cluster())
    assert type(caught.value) is kind
    assert str(caught.value).startswith(words)


def fail_here(model, step, context):
    raise ConfigError("cluster: macs", "is too low", "raise it")


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ((Factorize(macs=0.001),), "recipe step 1 (factorize): macs: asks for 0.1%"),
        ((Sparsify(), Cluster()), "recipe step 2 (cluster): macs: is too low; raise it"),
        ((Finetune(features=("cnv=conv",)),), "recipe step 1 (finetune): features: names 'cnv'"),
    ],
    ids=["factorize", "cluster", "finetune"],
)
def test_the_place_of_a_fault_is_named_once(monkeypatch, steps, words):
    monkeypatch.setitem(STEPS, Cluster, f"{__name__}:fail_here")
    with pytest.raises(ConfigError) as caught:
        run(make_task(), *steps)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    "step",
    [
        Finetune(),
        TrainQuantized(),
        Prune(ratio=0.5, epochs=1),
        Prune(ratio=0.5, importance="taylor"),
        Sparsify(epochs=2),
    ],
    ids=lambda step: name_of(step),
)
@pytest.mark.parametrize("missing", ["loss", "train"])
def test_a_step_that_trains_says_what_the_task_has_not(step, missing):
    data = {"calibration": images(8, 0), "validation": images(8, 0)}
    task = make_task(loss=None) if missing == "loss" else make_task(data=data)
    with pytest.raises(ConfigError, match=rf"recipe step 1 \({name_of(step)}\).*{missing}"):
        check_recipe(task, Recipe(steps=(step, Quantize())))


@pytest.mark.parametrize(
    ("step", "changes", "words"),
    [
        (Finetune(patience=2), {"evaluate": None}, "patience: needs a score"),
        (Finetune(features=("cnv=conv",)), {}, "the student has not; did you mean 'conv'"),
        (ScaleTemperature(), {"data": {"train": images(8, 0)}}, "no split 'validation'"),
        (TrainQuantized(), {"data": {"train": images(8, 0)}}, "no split 'validation'"),
    ],
)
def test_what_a_task_can_not_do_is_refused_before_anything_runs(step, changes, words):
    with pytest.raises(ConfigError) as caught:
        check_recipe(make_task(**changes), Recipe(steps=(step, Quantize())))
    assert words in str(caught.value)
    assert str(caught.value).startswith("recipe step 1")


@pytest.mark.parametrize("step", [Finetune(), Cluster(), TrainQuantized()], ids=name_of)
def test_an_exported_program_can_only_be_quantized(step):
    task = make_task()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(task.model, task.example_inputs)
    task = replace(task, model=ProgramModule(program))
    check_recipe(task, Recipe())
    with pytest.raises(
        ConfigError, match=r"recipe step 1.*exported program.*in place of the \.pt2"
    ):
        check_recipe(task, Recipe(steps=(step, Quantize())))


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        (Net(4, classes=5), "teacher returns (1, 5), the model (1, 3)"),
        (Net, "teacher is a builtins.type"),
    ],
)
def test_a_teacher_that_answers_another_question_is_refused_at_the_door(teacher, words):
    with pytest.raises(ConfigError) as caught:
        check_task(make_task(teacher=teacher, training=Training(epochs=1)), "t", folder=None)
    assert words in caught.value.what


# ---- temperature


def sampled(temperature: float, n: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `temperature` times what labels were drawn from."""
    rng = np.random.default_rng(0)
    real = 2 * rng.standard_normal((n, 4))
    chances = np.exp(real) / np.exp(real).sum(axis=1, keepdims=True)
    labels = (chances.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return temperature * real, labels


def test_where_every_sample_is_right_no_temperature_is_made_up():
    logits, _ = sampled(1.0, 200)
    found = fit_temperature(logits, logits.argmax(axis=1), n_bins=15)
    assert found.temperature == 1
    assert found.nll_after == found.nll_before > 0


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_is_found_that_made_the_logits_too_sure(temperature):
    found = fit_temperature(*sampled(temperature), n_bins=15)
    assert found.temperature == pytest.approx(temperature, rel=0.03)
    assert found.nll_after <= found.nll_before + 1e-12
    assert found.ece_after < 0.02
    if temperature != 1:
        assert found.ece_before > 0.05


def test_calibration_error_is_the_gap_of_confidence_and_accuracy_by_bins():
    chances = np.array([[0.95, 0.05], [0.92, 0.08], [0.65, 0.35], [0.3, 0.7]])
    labels = np.array([0, 1, 0, 1])
    # (0.9, 1]: confidence 0.935, half right. (0.6, 0.7]: 0.65, right. 0.7: in a bin of its own.
    expected = (abs(1.87 - 1) + abs(0.65 - 1) + abs(0.7 - 1)) / 4
    logits = np.log(chances) + 5
    assert calibration_error(logits, labels, n_bins=10) == pytest.approx(expected, abs=1e-9)


def test_calibration_looks_at_what_was_quantized_and_changes_nothing():
    task = make_task()
    model = states(task.model)
    logits = np.array([4.0, 0.0, 0.0])

    def predict(x):
        return np.tile(logits, (len(x), 1))

    recipe = Recipe(steps=(Quantize(), ScaleTemperature()))
    done = compress(task, recipe, load_target("rpi4"), seed=0)
    done = calibrate_probabilities(task, recipe, done, predict)
    (report,) = done.reports
    assert report.details["temperature"] == pytest.approx(100, rel=0.01)  # a third is right
    assert report.details["ece_after"] < 0.02 < report.details["ece_before"]
    assert (report.score_before, report.score_after) == (pytest.approx(1 / 3),) * 2
    assert same(model, states(task.model))


@pytest.mark.parametrize(
    ("predict", "words"),
    [
        (lambda x: {"a": x}, "output is dict"),
        (lambda x: x, "output is (16, 1, 6, 6)"),
        (lambda x: np.full((len(x), 4), 0.25), "probabilities already"),
        (lambda x: np.zeros((len(x), 2)), "outside of the 2 classes"),
    ],
)
def test_temperature_is_for_logits_of_classes(predict, words):
    task, recipe = make_task(), Recipe(steps=(Quantize(), ScaleTemperature()))
    done = compress(task, recipe, load_target("rpi4"), seed=0)
    with pytest.raises(ConfigError) as caught:
        calibrate_probabilities(task, recipe, done, predict)
    assert words in str(caught.value)
    assert str(caught.value).startswith("recipe step 2 (temperature)")
