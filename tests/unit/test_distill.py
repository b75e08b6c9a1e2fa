"""Distillation: the formulas of the papers, computed a second time in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeshrink.compression.distill import (
    attention_loss,
    check_features,
    decoupled_loss,
    distillation_loss,
    with_teacher,
)
from edgeshrink.errors import ConfigError
from edgeshrink.recipe import Finetune, TrainQuantized
from edgeshrink.task import ArraySplit, Task, Training
from edgeshrink.training import fit


def logits(seed: int, batch: int = 6, classes: int = 5, size: float = 3) -> np.ndarray:
    return size * np.random.default_rng(seed).standard_normal((batch, classes))


def chances(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values)
    return powers / powers.sum(axis=1, keepdims=True)


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * (np.log(p) - np.log(q))).sum(axis=1)


def soft(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    return distillation_loss(
        torch.from_numpy(student), torch.from_numpy(teacher), temperature
    ).item()


# ---- soft targets


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_targets_are_the_divergence_of_softened_chances_times_the_square(temperature):
    student, teacher = logits(1), logits(2)
    p, q = chances(teacher / temperature), chances(student / temperature)
    expected = temperature**2 * divergence(p, q).mean()
    assert soft(student, teacher, temperature) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0.5, 20))
def test_the_divergence_is_never_negative_and_zero_for_equal_predictions(a, b, temperature):
    student, teacher = logits(a), logits(b)
    assert soft(student, teacher, temperature) >= -1e-12
    shifted = teacher + np.arange(6)[:, None]  # softmax does not see a shift
    assert soft(shifted, teacher, temperature) == pytest.approx(0, abs=1e-10)


def test_its_gradient_is_that_of_the_softened_cross_entropy():
    student = torch.from_numpy(logits(1)).requires_grad_()
    distillation_loss(student, torch.from_numpy(logits(2)), 3.0).backward()
    expected = 3.0 * (chances(logits(1) / 3) - chances(logits(2) / 3)) / 6
    np.testing.assert_allclose(student.grad.numpy(), expected, rtol=1e-10)


def test_hot_targets_approach_a_square_distance_of_centred_logits():
    """Hinton et al. (2015), section 2.1: matching logits is the limit of a high temperature."""
    student, teacher = logits(1, size=1), logits(2, size=1)
    s = student - student.mean(axis=1, keepdims=True)
    t = teacher - teacher.mean(axis=1, keepdims=True)
    expected = ((s - t) ** 2).sum(axis=1).mean() / (2 * 5)
    assert soft(student, teacher, 1000.0) == pytest.approx(expected, rel=1e-2)


# ---- decoupled


def by_hand(student, teacher, targets, temperature, alpha, beta) -> float:
    """Zhao et al. (2022), section 3.1, sample by sample."""
    total = 0.0
    p_all, q_all = chances(teacher / temperature), chances(student / temperature)
    for p, q, k in zip(p_all, q_all, targets, strict=True):
        b_p, b_q = np.array([p[k], 1 - p[k]]), np.array([q[k], 1 - q[k]])
        rest = np.arange(len(p)) != k
        r_p, r_q = p[rest] / (1 - p[k]), q[rest] / (1 - q[k])
        total += alpha * (b_p * np.log(b_p / b_q)).sum() + beta * (r_p * np.log(r_p / r_q)).sum()
    return temperature**2 * total / len(targets)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 8.0), (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_decoupled_distillation_is_the_papers_formula(alpha, beta, temperature):
    student, teacher, targets = logits(3), logits(4), np.array([0, 1, 2, 3, 4, 0])
    found = decoupled_loss(
        torch.from_numpy(student), torch.from_numpy(teacher), torch.from_numpy(targets),
        temperature, target_weight=alpha, others_weight=beta,
    )  # fmt: skip
    expected = by_hand(student, teacher, targets, temperature, alpha, beta)
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_weights_of_one_and_of_the_teachers_doubt_give_soft_targets():
    student, teacher, targets = logits(5), logits(6), np.array([4, 3, 2, 1, 0, 2])
    doubt = 1 - chances(teacher / 4)[np.arange(6), targets]
    found = decoupled_loss(
        torch.from_numpy(student), torch.from_numpy(teacher), torch.from_numpy(targets), 4.0,
        target_weight=1.0, others_weight=torch.from_numpy(doubt),
    )  # fmt: skip
    assert found.item() == pytest.approx(soft(student, teacher, 4.0), rel=1e-9)


def test_a_teacher_that_is_sure_gives_finite_losses_and_gradients():
    student = torch.zeros(2, 3, requires_grad=True)
    teacher = torch.tensor([[200.0, 0.0, 0.0], [0.0, -200.0, 0.0]])
    loss = decoupled_loss(student, teacher, torch.tensor([0, 1]), 1.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


# ---- attention


def test_attention_is_half_the_square_distance_of_unit_maps():
    rng = np.random.default_rng(0)
    student, teacher = rng.standard_normal((3, 4, 2, 5)), rng.standard_normal((3, 7, 2, 5))
    total = 0.0
    for a, b in zip(student, teacher, strict=True):
        maps = [(x**2).mean(axis=0).ravel() for x in (a, b)]
        maps = [m / np.sqrt((m**2).sum()) for m in maps]
        total += 0.5 * ((maps[0] - maps[1]) ** 2).sum()
    found = attention_loss(torch.from_numpy(student), torch.from_numpy(teacher))
    assert found.item() == pytest.approx(total / 3, rel=1e-12)


def test_attention_does_not_see_the_order_of_channels_nor_their_size():
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 6, 3, 3)))
    assert attention_loss(3 * x.flip(1), x).item() == pytest.approx(0, abs=1e-12)


# ---- as the loss of a training


class Net(nn.Module):
    def __init__(self, width: int, classes: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, stride=stride)
        self.head = nn.Linear(width, classes)
        self.unused = nn.Identity()

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))


def task(**changes) -> Task:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((24, 1, 6, 6)).astype(np.float32)
    split = ArraySplit(inputs=(images,), targets=np.arange(24) % 3, batch_size=8)
    arguments = {
        "model": Net(4), "example_inputs": (torch.from_numpy(images[:1]),),
        "data": {"train": split}, "loss": nn.functional.cross_entropy,
    }  # fmt: skip
    return Task(**(arguments | changes))


def value(step, student: nn.Module, teacher: nn.Module, targets=None) -> torch.Tensor:
    x = torch.from_numpy(task().data["train"].inputs[0][:8])
    targets = torch.arange(8) % 3 if targets is None else targets
    return with_teacher(task(), step, teacher).value(student, (x,), targets)


def test_the_mixture_is_weighted_as_the_step_says():
    student, teacher = Net(4), Net(8).eval()
    x, targets = torch.from_numpy(task().data["train"].inputs[0][:8]), torch.arange(8) % 3
    with torch.no_grad():
        hard = nn.functional.cross_entropy(student(x), targets).item()
        part = distillation_loss(student(x), teacher(x), 2.0).item()
        maps = attention_loss(student.conv(x), teacher.conv(x)).item()
    step = Finetune(distill="soft", temperature=2.0, weight=0.3, features=("conv=conv",))
    found = value(step, student, teacher).item()
    assert found == pytest.approx(0.7 * hard + 0.3 * part + 0.3 * maps, rel=1e-5)
    alone = value(Finetune(features=("conv=conv",), weight=0.5), student, teacher).item()
    assert alone == pytest.approx(hard + 0.5 * maps, rel=1e-5)
    assert value(TrainQuantized(), student, teacher).item() == pytest.approx(hard, rel=1e-6)


def test_gradients_reach_the_student_and_never_the_teacher():
    student, teacher = Net(4), Net(8)
    value(Finetune(distill="decoupled", features=("conv=conv",)), student, teacher).backward()
    assert student.conv.weight.grad.abs().max() > 0
    assert teacher.conv.weight.grad is None
    assert teacher.conv.weight.requires_grad


def test_a_student_comes_to_predict_what_its_teacher_does():
    torch.manual_seed(0)
    teacher, student = Net(8), Net(8)
    teacher.head.weight.data *= 8
    step = Finetune(distill="soft", temperature=1.0, weight=1.0)
    before = value(step, student.eval(), teacher).item()
    objective = with_teacher(task(), step, teacher)
    data = task().data["train"]
    fit(student, data, objective, Training(epochs=40, learning_rate=0.03), seed=0)
    assert value(step, student, teacher).item() < 0.2 * before


@pytest.mark.parametrize(
    ("step", "student", "teacher", "words"),
    [
        (Finetune(distill="soft"), Net(4), Net(4, classes=5), "(8, 3), the teacher's (8, 5)"),
        (Finetune(distill="soft"), Net(4, classes=1), Net(4, classes=1), "no logits"),
        (Finetune(features=("conv=conv",)), Net(4), Net(4, stride=2), "(4, 4), the teacher's (2"),
        (Finetune(features=("head=head",)), Net(4), Net(4), "not (batch, channels"),
        (Finetune(features=("unused=conv",)), Net(4), Net(4), "'unused' is never run"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_told_with_both_shapes(step, student, teacher, words):
    targets = torch.zeros(8, dtype=torch.long)
    with pytest.raises(ConfigError) as caught:
        value(step, student, teacher, targets)
    assert words in str(caught.value)


@pytest.mark.parametrize("targets", [torch.rand(8, 3), torch.zeros(8, 1, dtype=torch.long)])
def test_decoupled_distillation_asks_for_classes(targets):
    lenient = task(loss=lambda outputs, targets: outputs.sum())
    x = torch.zeros(8, 1, 6, 6)
    objective = with_teacher(lenient, Finetune(distill="decoupled"), Net(4))
    with pytest.raises(ConfigError, match="needs targets that are classes"):
        objective.value(Net(4), (x,), targets)


def test_a_layer_that_is_not_there_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'convv', which the student has not.*'conv'"):
        check_features(Finetune(features=("convv=conv",)), Net(4), Net(4))
    with pytest.raises(ConfigError, match="which the teacher has not"):
        check_features(Finetune(features=("conv=cnv",)), Net(4), Net(4))


def test_hooks_are_gone_after_the_loss_even_when_it_fails():
    student, teacher = Net(4), Net(4, stride=2)
    with pytest.raises(ConfigError):
        value(Finetune(features=("conv=conv",)), student, teacher)
    assert not student.conv._forward_hooks
