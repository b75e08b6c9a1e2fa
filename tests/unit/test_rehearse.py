"""What a recipe can't do whatever the weights are is told before anything is trained."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edgeshrink import build as building
from edgeshrink.budget import Budget
from edgeshrink.checkpoints import random_states
from edgeshrink.compression import check_recipe, rehearse_recipe
from edgeshrink.compression.rehearse import is_late
from edgeshrink.errors import ConfigError, EdgeshrinkError, ModelError
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
)
from edgeshrink.target import load_target
from edgeshrink.task import ArraySplit, Task, Training


class Net(nn.Module):
    """Two convolutions, a norm behind the first where asked for, and a head."""

    def __init__(self, *, norm: bool = True, width: int = 16, outputs: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.second = nn.Conv2d(width, width, 3, padding=1, stride=2, groups=2)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, outputs)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        return self.head(self.drop(torch.relu(self.second(x)).mean((2, 3))))


class Two(Net):
    """Its outputs are a dict."""

    def forward(self, x):
        scores = super().forward(x)
        return {"a": scores, "b": 2 * scores}


class Sure(Net):
    """Its outputs are probabilities."""

    def forward(self, x):
        return super().forward(x).softmax(1)


class Folded(Net):
    """Its channels are summed with neighbours, which nobody can follow."""

    def forward(self, x):
        x = self.first(x).reshape(len(x), 4, -1, 6, 6).sum(2)
        return self.head(x.mean((2, 3)).repeat(1, 4))


def split_of(targets: np.ndarray, seed: int) -> ArraySplit:
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((len(targets), 1, 6, 6)).astype(np.float32)
    return ArraySplit(inputs=(inputs,), targets=targets, batch_size=8, shuffle=True, rng=rng)


def make_task(model: nn.Module | None = None, targets: np.ndarray | None = None, **more) -> Task:
    torch.manual_seed(0)
    targets = np.arange(32) % 3 if targets is None else targets
    return Task(
        model=(Net() if model is None else model).eval(),
        example_inputs=(torch.zeros(1, 1, 6, 6),),
        data={name: split_of(targets, i) for i, name in enumerate(("train", "validation"))},
        loss=nn.functional.cross_entropy,
        training=Training(epochs=1),
        **more,
    )


NUMBERS = np.random.default_rng(0).standard_normal((32, 3)).astype(np.float32)
FAULTS = {
    "prune, exclude": (make_task, (Prune(ratio=0.5, exclude=("frist",)),), "did you mean 'first'"),
    "sparsify, exclude": (make_task, (Sparsify(exclude=("hed",)),), "did you mean 'head'"),
    "cluster, exclude": (make_task, (Cluster(exclude=("hed",)),), "did you mean 'head'"),
    "factorize, exclude": (make_task, (Factorize(exclude=("hed",)),), "did you mean 'head'"),
    "keep, name": (make_task, (Prune(keep=("frist=8",)),), "did you mean 'first'"),
    "keep, outputs": (make_task, (Prune(keep=("head=2",)),), "'head' can't shrink"),
    "keep, groups": (make_task, (Prune(keep=("first=7",)),), "2 blocks, which 7 does not divide"),
    "prune, macs": (make_task, (Prune(macs=0.001, rounds=3),), "0.001 can't be reached"),
    "prune, macs, taylor": (
        make_task, (Prune(macs=0.001, importance="taylor"),), "0.001 can't be reached",
    ),
    "factorize, macs": (make_task, (Factorize(macs=0.01),), "asks for 1.0%, and ranks of 1 leave"),
    "factorize, macs, late": (
        make_task, (Prune(ratio=0.3), Finetune(), Factorize(macs=0.001)), "asks for 0.1%",
    ),
    "bn-scale": (
        lambda: make_task(Net(norm=False)),
        (Prune(ratio=0.5, importance="bn-scale"),),
        "nothing that 'bn-scale' rates",
    ),
    "unfollowed": (lambda: make_task(Folded()), (Prune(ratio=0.5),), "can't be pruned"),
    "features, student": (
        make_task, (Prune(ratio=0.5), Finetune(features=("frist=first",))), "which the student",
    ),
    "features, teacher": (make_task, (Finetune(features=("first=x",)),), "which the teacher"),
    "features, shapes": (
        make_task, (Prune(ratio=0.5), Finetune(features=("first=second",))), "map is (6, 6), the",
    ),
    "features, factors": (
        make_task, (Factorize(), Finetune(features=("hed=head",))), "which the student",
    ),
    "features, no map": (make_task, (Finetune(features=("head=head",)),), "not (batch, channels"),
    "soft, numbers": (
        lambda: make_task(targets=NUMBERS), (Finetune(distill="soft"),), "numbers, no classes",
    ),
    "decoupled, numbers": (
        lambda: make_task(targets=NUMBERS), (Finetune(distill="decoupled"),), "are classes",
    ),
    "qat, soft, numbers": (
        lambda: make_task(targets=NUMBERS), (TrainQuantized(distill="soft"),), "no classes",
    ),
    "soft, one output": (
        lambda: make_task(Net(outputs=1), NUMBERS[:, :1]), (Finetune(distill="soft"),), "no logits",
    ),
    "decoupled, dict": (
        lambda: make_task(Two(), NUMBERS.argmax(1)[:, None].repeat(2, 1)),
        (Finetune(distill="decoupled"),),
        "needs targets that are classes",
    ),
    "temperature, dict": (
        lambda: make_task(Two()), (Quantize(), ScaleTemperature()), "output is dict",
    ),
    "temperature, numbers": (
        lambda: make_task(targets=NUMBERS), (Quantize(), ScaleTemperature()), "no classes (batch,)",
    ),
    "temperature, probabilities": (
        lambda: make_task(Sure()), (Quantize(), ScaleTemperature()), "probabilities already",
    ),
    "sparsify behind cluster": (
        make_task, (Cluster(), Sparsify(epochs=1)), "would undo the clusters",
    ),
}  # fmt: skip


def recipe_of(*steps) -> Recipe:
    ends = any(isinstance(s, Quantize | TrainQuantized) for s in steps)
    return Recipe(steps=steps if ends else (*steps, Quantize()))


def rehearse(task: Task, *steps) -> None:
    recipe = recipe_of(*steps)
    check_recipe(task, recipe)
    rehearse_recipe(task, recipe, load_target("rpi4"))


@pytest.mark.parametrize("fault", FAULTS)
def test_what_can_not_work_is_refused_before_anything_is_trained(tmp_path, monkeypatch, fault):
    make, steps, words = FAULTS[fault]

    def train(*_args, **_more):
        pytest.fail("it is trained")

    monkeypatch.setattr(building, "train", train)
    with pytest.raises(EdgeshrinkError) as caught:
        building.build(
            make(),
            load_target("rpi4"),
            recipe=recipe_of(*steps),
            budget=Budget(),
            out=tmp_path / "out",
        )
    assert isinstance(caught.value, ConfigError | ModelError)
    assert words in str(caught.value)
    number = next(i for i in reversed(range(len(steps))) if not isinstance(steps[i], Quantize))
    assert str(caught.value).startswith(f"recipe step {number + 1} (")
    assert not list(tmp_path.iterdir()), "nothing is left of it"


@pytest.mark.parametrize(
    "steps",
    [
        (Prune(macs=0.5, importance="taylor", rounds=2, epochs=1), Finetune(distill="soft")),
        (Prune(ratio=0.9, importance="random"), TrainQuantized(distill="decoupled")),
        (Sparsify(epochs=1), Cluster(), Finetune(features=("first=first",)), TrainQuantized()),
        (Factorize(macs=0.9), Prune(ratio=0.5, exclude=("head.1",)), TrainQuantized()),
        (Prune(keep=("first=8",)), TrainQuantized(), ScaleTemperature()),
        (Factorize(), Finetune(features=("first.2=first",)), TrainQuantized()),
        (Prune(ratio=0.5, exclude=("misspelt",)), Quantize()),
    ],
)  # fmt: skip
def test_the_task_and_all_random_states_stay_as_they_were(steps):
    task = make_task()
    task.model.train()
    task.model.first.eval()
    state, modes = (
        copy.deepcopy(task.model.state_dict()),
        [m.training for m in task.model.modules()],
    )
    splits = tuple(task.data.values())
    random = copy.deepcopy(random_states(splits))
    if "misspelt" in repr(steps):
        with pytest.raises(ConfigError):
            rehearse(task, *steps)
    else:
        rehearse(task, *steps)
    after = random_states(splits)
    assert torch.equal(random.pop("torch"), after.pop("torch"))
    assert random.pop("cuda") == after.pop("cuda") or torch.cuda.is_available()
    assert random == after
    assert [m.training for m in task.model.modules()] == modes
    assert all(torch.equal(state[k], v) for k, v in task.model.state_dict().items())
    assert all(p.grad is None for p in task.model.parameters())


def test_data_that_is_no_array_goes_on_where_it_was():
    class Drawn:
        def __init__(self) -> None:
            self.rng = np.random.default_rng(5)

        def __iter__(self):
            for _ in range(2):
                x = self.rng.standard_normal((8, 1, 6, 6)).astype(np.float32)
                yield (x,), self.rng.integers(0, 3, 8)

    task = replace(make_task(), data={"train": Drawn(), "validation": Drawn()})
    rehearse(task, Finetune(distill="soft"), Quantize(), ScaleTemperature())
    for split in task.data.values():
        ((found,), _), *_ = list(split)
        ((expected,), _), *_ = list(Drawn())
        assert np.array_equal(found, expected)


def test_ratios_that_only_some_weights_forbid_are_let_pass():
    task = make_task(Net(width=8))
    nn.init.zeros_(task.model.first.weight)
    nn.init.zeros_(task.model.second.weight)
    rehearse(task, Prune(ratio=0.9), Finetune())


def test_chances_of_classes_and_no_targets_are_softened_as_classes_are():
    chances = np.exp(NUMBERS) / np.exp(NUMBERS).sum(axis=1, keepdims=True)
    rehearse(make_task(targets=chances), Finetune(distill="soft"))
    several = np.stack([np.arange(32) % 3, np.arange(32) % 2], 1)
    rehearse(make_task(Two(), several), Finetune(distill="soft"))


def test_what_comes_before_any_training_is_left_to_the_step_itself():
    task = make_task()
    trained = replace(task, training=None)
    assert is_late(task, (Prune(ratio=0.5), Quantize()))
    assert not is_late(task, (Quantize(),))
    assert not is_late(trained, (Prune(ratio=0.5), Finetune(), Quantize()))
    assert is_late(trained, (Prune(ratio=0.5, epochs=1, rounds=2), Quantize()))
    assert is_late(trained, (Finetune(), Prune(ratio=0.5), Quantize()))
    with pytest.raises(ConfigError, match=r"recipe step 2 \(prune\): exclude"):
        rehearse(trained, Finetune(), Prune(ratio=0.5, exclude=("no",)))
