"""Knowledge distillation: what a student learns from a teacher beside the targets."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeshrink.checkpoints import digest_of
from edgeshrink.errors import ConfigError
from edgeshrink.recipe import Finetune, TrainQuantized
from edgeshrink.strict_toml import nearest
from edgeshrink.task import Task
from edgeshrink.training import Objective, mixed_precision

TARGET_WEIGHT: Final = 1.0  # of the target class's part in decoupled distillation (Zhao et al.)
OTHERS_WEIGHT: Final = 8.0  # of the other classes' part; their setting for CIFAR-100


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return how far softened predictions lie from the teacher's (Hinton et al., 2015, section 2).

    The divergence KL(teacher || student): the cross-entropy less the teacher's own entropy, so that
    it is 0 for equal predictions; its gradient is that of the cross-entropy.

    Args:
        student: Logits (batch, classes).
        teacher: Logits (batch, classes), detached.
        temperature: Above 0; the logits are divided by it.

    Returns:
        Scalar, scaled by temperature**2 so that gradients keep their size.
    """
    softened = F.log_softmax(student / temperature, dim=1)  # (batch, classes)
    wanted = F.log_softmax(teacher / temperature, dim=1)  # (batch, classes)
    return temperature**2 * F.kl_div(softened, wanted, reduction="batchmean", log_target=True)


def decoupled_loss(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor,
    temperature: float,
    *,
    target_weight: float = TARGET_WEIGHT,
    others_weight: float | Tensor = OTHERS_WEIGHT,
) -> Tensor:
    """Return the decoupled distillation loss (Zhao et al., 2022, equation 7).

    Soft targets weigh what the teacher knows about the other classes by 1 minus its confidence in
    the target. Here the two parts have weights of their own: with 1, and per sample that
    1 minus confidence, it is `distillation_loss`.

    Args:
        student: Logits (batch, classes).
        teacher: Logits (batch, classes), detached.
        targets: Classes (batch,), integers.
        temperature: Above 0; the logits are divided by it.
        target_weight: Of KL between (target, all others) of teacher and student.
        others_weight: Of KL among the other classes; a number, or (batch,).

    Returns:
        Scalar, scaled by temperature**2.
    """
    target = F.one_hot(targets.long(), student.shape[1]).bool()  # (batch, classes)
    binary, among = [], []
    for logits in (student / temperature, teacher / temperature):
        others = logits.masked_fill(target, -torch.inf)  # (batch, classes)
        whole = torch.logsumexp(logits, dim=1)  # (batch,)
        mine = logits.masked_fill(~target, 0).sum(dim=1)  # (batch,)
        binary.append(torch.stack([mine, torch.logsumexp(others, dim=1)], dim=1) - whole[:, None])
        n_others = logits.shape[1] - 1
        rest = logits[~target].reshape(len(logits), n_others)  # (batch, classes - 1)
        among.append(F.log_softmax(rest, dim=1))
    of_target, of_others = (
        F.kl_div(mine, wanted, reduction="none", log_target=True).sum(dim=1)  # (batch,)
        for mine, wanted in (binary, among)
    )
    return temperature**2 * (target_weight * of_target + others_weight * of_others).mean()


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return how differently two layers attend to positions (Zagoruyko and Komodakis, 2017).

    A map is the mean of the squared activations over the channels, brought to unit length; the loss
    is half the squared distance of the two maps, summed over positions: between 0 and 1.

    Args:
        student: Activations (batch, channels, ...positions).
        teacher: Activations (batch, other channels, ...positions), detached.

    Returns:
        Scalar, the mean over the batch.
    """
    wide = [x.float() if x.dtype == torch.bfloat16 else x for x in (student, teacher)]
    maps = [F.normalize(x.pow(2).mean(dim=1).flatten(1), dim=1) for x in wide]  # (batch, positions)
    return 0.5 * (maps[0] - maps[1]).pow(2).sum(dim=1).mean()


def teacher_of(task: Task) -> nn.Module:
    """Return what a step distils from: the task's teacher, else its float model."""
    return task.model if task.teacher is None else task.teacher


def is_distilling(step: Finetune | TrainQuantized) -> bool:
    """Return whether a step needs a teacher."""
    return step.distill != "none" or bool(features_of(step))


def features_of(step: Finetune | TrainQuantized) -> tuple[tuple[str, str], ...]:
    """Return the pairs (layer of the student, layer of the teacher) of attention transfer."""
    pairs = step.features if isinstance(step, Finetune) else ()
    return tuple((p.partition("=")[0].strip(), p.partition("=")[2].strip()) for p in pairs)


def distillation_identity(step: Finetune | TrainQuantized, teacher: nn.Module) -> dict[str, str]:
    """Return what tells this distillation from another one, for its checkpoints."""
    return {"teacher": digest_of(teacher) if is_distilling(step) else "none"}


def with_teacher(task: Task, step: Finetune | TrainQuantized, teacher: nn.Module) -> Objective:
    """Return the task's loss mixed with the teacher's part, as `step` says.

    `(1 - weight) * loss + weight * distillation`; attention transfer adds `weight` times the sum of
    its losses. With neither it is the task's loss.

    Args:
        task: Gives the loss.
        step: What to distil, temperature and weight.
        teacher: Copied; runs in eval mode.

    Returns:
        For `training.retrain`. On outputs of other shapes than the teacher's it raises ConfigError,
        as it does on targets that are no classes where distillation is decoupled.
    """
    assert task.loss is not None
    loss, pairs = task.loss, features_of(step)
    fixed = copy.deepcopy(teacher).eval().requires_grad_(False)
    precision = step.precision if isinstance(step, Finetune) else "float32"

    def value(model: nn.Module, inputs: tuple[Tensor, ...], targets: Any) -> Tensor:
        with _watching(model, [here for here, _ in pairs], "student") as seen:
            outputs = model(*inputs)
        whole = loss(outputs, targets)
        if not is_distilling(step):
            return whole
        fixed.to(inputs[0].device)
        with (
            torch.no_grad(),
            mixed_precision(fixed, precision, inputs[0].device.type),
            _watching(fixed, [there for _, there in pairs], "teacher") as known,
        ):
            taught = fixed(*inputs)
        if step.distill != "none":
            part = _output_loss(step, outputs, taught, targets)
            whole = (1 - step.weight) * whole + step.weight * part
        for here, there in pairs:
            _check_maps(seen[here], known[there], f"{here}={there}")
            whole = whole + step.weight * attention_loss(seen[here], known[there])
        return whole

    return Objective(value=value)


def check_features(step: Finetune | TrainQuantized, model: nn.Module, teacher: nn.Module) -> None:
    """Raise ConfigError for a layer named in `features` that student or teacher don't have."""
    for here, there in features_of(step):
        for name, owner, role in ((here, model, "student"), (there, teacher, "teacher")):
            names = [layer for layer, _ in owner.named_modules() if layer]
            if name not in names:
                fault = f"names {name!r}, which the {role} has not"
                raise ConfigError("features", fault, nearest(name, names))


def _output_loss(
    step: Finetune | TrainQuantized, outputs: Any, taught: Any, targets: Any
) -> Tensor:
    """Return the sum over all outputs of student and teacher."""
    check_outputs(step, outputs, taught, targets)
    tree = torch.utils._pytree
    parts = []
    for pair in zip(tree.tree_leaves(outputs), tree.tree_leaves(taught), strict=True):
        student, teacher = map(_by_position, pair)
        if step.distill == "soft":
            parts.append(distillation_loss(student, teacher, step.temperature))
        else:
            parts.append(decoupled_loss(student, teacher, targets.reshape(-1), step.temperature))
    return torch.stack(parts).sum()


def check_outputs(step: Finetune | TrainQuantized, outputs: Any, taught: Any, targets: Any) -> None:
    """Raise ConfigError unless these outputs can be distilled as `step` says.

    Args:
        step: Its `distill` is not `none`.
        outputs, taught: Of student and teacher: scores of classes, in any structure.
        targets: Classes; for soft distillation also their chances, or none at all. To soften the
            numbers of a regression would teach something else.
    """
    tree = torch.utils._pytree
    here, there = tree.tree_leaves(outputs), tree.tree_leaves(taught)
    shapes = [[tuple(x.shape) for x in leaves] for leaves in (here, there)]
    if shapes[0] != shapes[1] or _keys(outputs) != _keys(taught):
        fault = f"the student's outputs are {_show(outputs)}, the teacher's {_show(taught)}"
        raise ConfigError("distillation", fault, "both must return the same names and shapes")
    none = 'set distill = "none" (features = [...] works with any outputs)'
    for leaf in here:
        if leaf.dim() < 2 or leaf.shape[1] < 2:
            fault = f"an output is {tuple(leaf.shape)}, which is no logits (batch, classes)"
            raise ConfigError("distillation", fault, none)
    leaves = tree.tree_leaves(targets)
    is_number = any(
        isinstance(x, Tensor) and x.is_floating_point() and not _are_chances(x) for x in leaves
    )
    if step.distill == "soft" and is_number:
        raise ConfigError("distillation", "the targets are numbers, no classes", none)
    if step.distill == "decoupled":
        fix = none if is_number else 'set distill = "soft"'
        for leaf in here:
            is_class = isinstance(targets, Tensor) and not targets.is_floating_point()
            if not is_class or targets.shape != leaf.shape[:1] + leaf.shape[2:]:
                fault = f"needs targets that are classes, one for each of {tuple(leaf.shape)}"
                raise ConfigError("distillation: decoupled", fault, fix)


def _are_chances(targets: Tensor) -> bool:
    """Return whether these are chances of classes (batch, classes, ...positions)."""
    if targets.dim() < 2 or targets.shape[1] < 2 or bool((targets < 0).any()):
        return False
    sums = targets.sum(dim=1)
    return torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


def _by_position(logits: Tensor) -> Tensor:
    """Return logits (batch, classes, ...positions) as (batch * positions, classes)."""
    return logits.movedim(1, -1).reshape(-1, logits.shape[1])


def _keys(outputs: Any) -> Sequence[Any]:
    return list(outputs) if isinstance(outputs, Mapping) else []


def _show(outputs: Any) -> str:
    return str(torch.utils._pytree.tree_map(lambda leaf: tuple(leaf.shape), outputs))


def check_maps(
    step: Finetune | TrainQuantized,
    model: nn.Module,
    teacher: nn.Module,
    inputs: tuple[Tensor, ...],
) -> None:
    """Raise ConfigError for a pair of `features` whose maps can't be compared.

    Args:
        step: Its layers are there, see `check_features`.
        model: The student, in eval mode as the teacher.
        teacher: See there.
        inputs: A batch.
    """
    pairs = features_of(step)
    if not pairs:
        return
    with (
        torch.no_grad(),
        _watching(model, [here for here, _ in pairs], "student") as seen,
        _watching(teacher, [there for _, there in pairs], "teacher") as known,
    ):
        model(*inputs)
        teacher(*inputs)
    for here, there in pairs:
        _check_maps(seen[here], known[there], f"{here}={there}")


def _check_maps(student: Any, teacher: Any, pair: str) -> None:
    where, fix = f"distillation: features {pair!r}", "name layers with equal positions"
    for role, value in (("student", student), ("teacher", teacher)):
        if not isinstance(value, Tensor) or value.dim() < 3:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            fault = f"the {role}'s layer gives {shape}, not (batch, channels, ...positions)"
            raise ConfigError(where, fault, "name a convolution, or a block of them")
    if student.shape[2:] != teacher.shape[2:]:
        fault = f"the student's map is {tuple(student.shape[2:])}, "
        raise ConfigError(where, f"{fault}the teacher's {tuple(teacher.shape[2:])}", fix)


@contextmanager
def _watching(model: nn.Module, names: Sequence[str], role: str) -> Iterator[dict[str, Any]]:
    """Collect what the layers named return while the block runs."""
    seen: dict[str, Any] = {}

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen[name] = output

        return hook

    layers = dict(model.named_modules())
    handles = [layers[name].register_forward_hook(watch(name)) for name in names]
    try:
        yield seen
        missing = [name for name in names if name not in seen]
        if missing:
            fault = f"the {role}'s layer {missing[0]!r} is never run"
            raise ConfigError("distillation: features", fault, "name a layer that is")
    finally:
        for handle in handles:
            handle.remove()
