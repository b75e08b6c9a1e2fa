"""The training loop of every model, and a model as a `predict`."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgeshrink.checkpoints import (
    Checkpoints,
    describe_split,
    digest_of,
    read_checkpoint,
    write_checkpoint,
)
from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.program import ProgramModule
from edgeshrink.scoring import score
from edgeshrink.task import Predict, Split, Task, Training
from edgeshrink.task_checks import check_weights
from edgeshrink.user_code import UserCode

Loss = Callable[[Any, Any], Tensor]
Progress = Callable[[float, str], None]  # share done in [0, 1], what is being done
AfterStep = Callable[[nn.Module, float], None]  # the model, share of the training done
Held = Literal["nothing", "zeros", "values"]
Precision = Literal["float32", "bfloat16"]
# The epoch with the best score; that, or none if all are worse than before; the last one.
Keep = Literal["best", "best-or-before", "last"]

MOMENTUM: Final = 0.9  # of SGD (Nesterov's)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A loss that runs the model itself: `value(model, inputs, targets) -> scalar tensor`.

    For what a loss of outputs and targets can't see: the inputs, a teacher, layers inside.
    """

    value: Callable[[nn.Module, tuple[Tensor, ...], Any], Tensor]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """How a training went."""

    epochs: int  # gone through, those before an interrupt included
    kept_epoch: int  # whose weights the model has
    rank: float | None  # of that epoch; None where nothing ranks


def train(
    task: Task,
    *,
    seed: int,
    progress: Progress | None = None,
    checkpoints: Path | None = None,
) -> Fitted:
    """Train the task's model in place as its `training` says, on its `train` split.

    Keeps the epoch that scores best on `validation` where the task has a score and its `training`
    doesn't say otherwise.

    Raises:
        ConfigError: The task's own code raises, or `checkpoints` holds those of something else.
        ModelError: The loss or a weight becomes NaN or infinite.
    """
    if task.training is None or task.loss is None:
        raise ConfigError(
            f"task {task.name!r}", "has no training or no loss", "there is nothing to do"
        )
    return retrain(
        task.model, task, task.training,
        seed=seed, progress=progress, checkpoints=checkpoints, keep=task.training.keep,
    )  # fmt: skip


def retrain(
    model: nn.Module,
    task: Task,
    training: Training,
    *,
    seed: int,
    loss: Loss | Objective | None = None,
    after_step: AfterStep | None = None,
    progress: Progress | None = None,
    checkpoints: Path | None = None,
    identity: Mapping[str, str] | None = None,
    keep: Keep = "best",
    where: str = "training",
) -> Fitted:
    """Train `model` in place on the task's `train` split, ranked by the task's score.

    Args:
        model: The task's, or what compression made of it.
        task: Gives data, score and loss.
        training: Epochs, optimizer, rates.
        seed: See `fit`.
        loss: In place of the task's.
        after_step: See `fit`.
        progress: See `fit`.
        checkpoints: A folder for this training alone; an interrupted one goes on from there.
        identity: What else must match for that: "step" → "Finetune(…)".
        keep: Whose weights the model has in the end, see `fit`.
        where: What is being trained, for messages.

    Raises:
        ConfigError: The task has no training data or no loss, its code raises, or `checkpoints`
            holds those of something else.
        ModelError: The loss or a weight becomes NaN or infinite.
    """
    check_trainable(task, f"task {task.name!r}: {where}")
    rank = None
    if keep != "last" and task.evaluate is not None and "validation" in task.data:
        sign = 1.0 if task.metric.direction == "higher" else -1.0

        def rank(predict: Predict) -> float:
            return sign * score(task, predict, "validation")

    chosen = task.loss if loss is None else loss
    assert chosen is not None
    with UserCode(f"task {task.name!r}: {where}", task.folder):
        kept = None
        if checkpoints is not None:
            whole = {"task": task.name, **(identity or {})}
            if rank is not None:
                whole["validation data"] = describe_split(task.data["validation"])
            kept = Checkpoints(folder=checkpoints, identity=whole, splits=tuple(task.data.values()))
        return fit(
            model, task.data["train"], chosen, training,
            seed=seed, rank=rank, progress=progress, after_step=after_step, checkpoints=kept,
            rank_start=keep == "best-or-before",
        )  # fmt: skip


def check_trainable(task: Task, where: str) -> None:
    """Raise ConfigError unless the task can train a model."""
    if isinstance(task.model, ProgramModule):
        fix = "give a task (a Python function) in place of the .pt2, or leave the step out"
        raise ConfigError(where, "an exported program can't be trained", fix)
    if task.loss is None:
        fix = "add loss(outputs, targets) -> scalar tensor to the task, or leave the step out"
        raise ConfigError(where, "training needs a loss, and the task has none", fix)
    if "train" not in task.data:
        fix = "add the split 'train' to data, or leave the step out"
        raise ConfigError(where, "training needs data, and the task has no split 'train'", fix)


def fit(
    model: nn.Module,
    batches: Split,
    loss: Loss | Objective,
    training: Training,
    *,
    seed: int,
    rank: Callable[[Predict], float] | None = None,
    progress: Progress | None = None,
    after_step: AfterStep | None = None,
    checkpoints: Checkpoints | None = None,
    rank_start: bool = False,
    device: torch.device | None = None,
) -> Fitted:
    """Train `model` in place: one cosine cycle with a warm-up, no decay of biases and norms.

    The same model, data, seed, machine and number of threads give the same weights to the last bit;
    so does a training that was interrupted and goes on from its checkpoint.

    Args:
        model: Left in eval mode, on the CPU. Parameters that don't require gradients stay as they
            are.
        batches: Gone through once per epoch.
        loss: `loss(outputs, targets) -> scalar tensor`, targets are tensors; or an `Objective`.
        training: Epochs, optimizer, rates, warm-up, averaging, patience.
        seed: Of torch's global generator (dropout).
        rank: Called after every epoch; the weights of the highest (and of those the latest) stay.
        progress: Called after every step.
        after_step: Called after every step of the optimizer, without gradients: may change weights
            in place. What it decides must follow from the weights and the share done alone.
        checkpoints: Written after every epoch, read at the start.
        rank_start: Whether the weights from before the training stay if no epoch ranks as high.
        device: A GPU where there is one, else the CPU, with all its cores.

    Raises:
        ModelError: Nothing to train, or the loss or a weight becomes NaN or infinite. The model
            then has the weights of its best epoch so far.
        ConfigError: The loss is not a scalar tensor that depends on the model, all targets are of
            one class, patience without `rank`, or a checkpoint of another training.
    """
    if training.patience and rank is None:
        fix = "set patience = 0, or give the task evaluate(predict, split) -> float"
        raise ConfigError("training: patience", "needs a score that can get better", fix)
    device = find_device() if device is None else device
    identity: dict[str, str] = {}
    if checkpoints is not None:
        identity = {
            "seed": str(seed), "training": repr(training), "data": describe_split(batches),
            **checkpoints.identity, "model": f"{type(model).__qualname__} {digest_of(model)}",
        }  # fmt: skip
    steps_per_epoch = len(batches) if isinstance(batches, Sized) else sum(1 for _ in batches)
    n_steps = training.epochs * steps_per_epoch
    with _deterministic(seed), _on(model, device):
        optimizer = _optimizer(model, training)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: _one_cycle(step, n_steps, round(training.warmup_share * n_steps)),
        )
        averages = _state_of(model) if training.ema else {}
        now, kept = _Standing(), _state_of(model)
        found = None if checkpoints is None else read_checkpoint(checkpoints, identity)
        if found is not None:
            now, kept = _Standing(**found["standing"]), dict(found["kept"])
            if not now.done:
                model.load_state_dict(found["model"])
                optimizer.load_state_dict(found["optimizer"])
                scheduler.load_state_dict(found["scheduler"])
                averages = {name: value.to(device) for name, value in found["averages"].items()}
        elif rank_start and rank is not None:
            now = replace(now, rank=rank(float_predict(model)))
        job = _Job(
            model=model,
            batches=batches,
            objective=loss if isinstance(loss, Objective) else _plain(loss),
            training=training,
            optimizer=optimizer,
            scheduler=scheduler,
            n_steps=n_steps,
            averages=averages,
            after_step=after_step,
            progress=progress,
            device=device,
            first_step=now.step,
        )
        try:
            while not now.done:
                now, kept = _epoch(job, now, kept, rank)
                if checkpoints is not None:
                    write_checkpoint(checkpoints, identity, _content(job, now, kept))
        except ModelError as err:
            model.load_state_dict(kept)
            which = f"epoch {now.kept_epoch}" if now.kept_epoch else "the start"
            raise ModelError(
                err.where, f"{err.what}; the model has the weights of {which} again", err.fix
            ) from err
        model.load_state_dict(kept)
        optimizer.zero_grad(set_to_none=True)
        model.eval()
    if progress is not None:
        progress(1.0, f"trained {now.epoch} epochs")
    return Fitted(
        epochs=now.epoch, kept_epoch=now.kept_epoch, rank=None if rank is None else now.rank
    )


def hold(model: nn.Module, what: Held) -> AfterStep:
    """Return an `after_step` that keeps what an earlier step did to single weights.

    Args:
        model: As it is before the training. Parameters of two or more dimensions are looked at.
        what: `zeros`: what is exactly 0 stays 0. `values`: weights of a parameter that are equal
            stay equal (they move to their common mean), and zeros stay zeros.
    """
    masks: dict[str, Tensor] = {}
    groups: dict[str, tuple[Tensor, Tensor]] = {}  # group of each weight; weights in each group
    for name, weight in model.named_parameters():
        if what == "nothing" or weight.dim() < 2:
            continue
        if bool((weight == 0).any()):
            masks[name] = (weight.detach() != 0).to(weight.dtype)
        if what == "values":
            values, inverse = torch.unique(weight.detach(), return_inverse=True)
            if len(values) < weight.numel():
                groups[name] = (inverse.reshape(-1), torch.bincount(inverse.reshape(-1)))

    def after_step(model: nn.Module, _share: float) -> None:
        for name, weight in model.named_parameters():
            if name in groups:
                inverse, counts = (part.to(weight.device) for part in groups[name])
                sums = torch.zeros(len(counts), dtype=weight.dtype, device=weight.device)
                sums.index_add_(0, inverse, weight.detach().reshape(-1))
                weight.data.copy_((sums / counts)[inverse].reshape(weight.shape))
            if name in masks:
                weight.data.mul_(masks[name].to(weight.device))

    return after_step


def float_predict(model: nn.Module) -> Predict:
    """Return `predict` over a PyTorch model: numpy in, and numpy in the model's structure out.

    A tensor comes back as an array, a dict of tensors as a dict, anything else as a flat tuple.
    The model is put into eval mode at every call.
    """

    def predict(*arrays: npt.NDArray[Any]) -> Any:
        model.eval()
        place = next(model.parameters(), torch.empty(0)).device
        with torch.no_grad():
            if not isinstance(model, ProgramModule):
                return _arrays(model(*(_tensor(a).to(place) for a in arrays)))
            rows = [  # its batch is fixed to 1
                _arrays(model(*(_tensor(a[i : i + 1]) for a in arrays)))
                for i in range(len(arrays[0]))
            ]
        if isinstance(rows[0], dict):
            return {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
        if isinstance(rows[0], tuple):
            return tuple(np.concatenate(column) for column in zip(*rows, strict=True))
        return np.concatenate(rows)

    return predict


def find_device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What stays the same for the whole of one training."""

    model: nn.Module
    batches: Split
    objective: Objective
    training: Training
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LambdaLR
    n_steps: int
    averages: dict[str, Tensor]  # of the weights, changed in place; empty: none are kept
    after_step: AfterStep | None
    progress: Progress | None
    device: torch.device
    first_step: int  # of this run
    started_s: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, kw_only=True)
class _Standing:
    """How far a training is, between two epochs."""

    epoch: int = 0  # gone through
    step: int = 0
    kept_epoch: int = 0  # whose weights are the result so far; 0: those from before
    rank: float = -math.inf  # of that epoch
    stale: int = 0  # epochs since the rank rose
    done: bool = False


def _epoch(
    job: _Job,
    now: _Standing,
    kept: dict[str, Tensor],
    rank: Callable[[Predict], float] | None,
) -> tuple[_Standing, dict[str, Tensor]]:
    """Train for one epoch; return how far it is then, and the weights to keep."""
    model, epochs = job.model, job.training.epochs
    where = f"training epoch {now.epoch + 1} of {epochs}"
    step = _one_pass(job, where, now.step, is_first=now.epoch == 0)
    check_weights(model, where, device=job.device.type)
    current = _state_of(model)
    if job.averages:
        model.load_state_dict(job.averages)
        if job.after_step is not None:
            with torch.no_grad():
                job.after_step(model, min(1.0, step / job.n_steps))
    candidate = _state_of(model) if job.averages else current
    found = 0.0 if rank is None else rank(float_predict(model))
    if job.averages:
        model.load_state_dict(current)
    stale = 0 if found > now.rank else now.stale + 1
    now = replace(now, epoch=now.epoch + 1, step=step, stale=stale)
    if rank is None or found >= now.rank:
        now, kept = replace(now, kept_epoch=now.epoch, rank=found), candidate
    gave_up = 0 < job.training.patience <= stale
    return replace(now, done=now.epoch >= epochs or gave_up), kept


def _one_pass(job: _Job, where: str, step: int, *, is_first: bool) -> int:
    """Go through the data once; return the number of steps done so far."""
    with mixed_precision(job.model, job.training.precision, job.device.type):
        return _one_pass_in_precision(job, where, step, is_first=is_first)


def _one_pass_in_precision(job: _Job, where: str, step: int, *, is_first: bool) -> int:
    model, training, optimizer = job.model, job.training, job.optimizer
    model.train()
    full = 0  # samples in the first batch
    classes: set[Any] = set()  # two at most
    n_samples = 0
    for inputs, targets in job.batches:
        n_samples = len(inputs[0])
        full = full or n_samples
        if is_first and len(classes) < 2:
            classes |= _classes(targets)
        if 1 == n_samples < full:
            continue  # a rest of one sample has no variance for a batch norm
        tensors = tuple(_tensor(a).to(job.device) for a in inputs)
        value = job.objective.value(model, tensors, _tensors(targets, job.device))
        _check_loss(value, where, training)
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step < job.n_steps - 1:  # a split may well be a batch longer than it said
            job.scheduler.step()
        step += 1
        share = min(1.0, step / job.n_steps)
        if job.after_step is not None:
            with torch.no_grad():
                job.after_step(model, share)
        if job.averages:
            _average(job, step)
        if job.progress is not None:
            job.progress(share, f"{where}, loss {value.item():.3f}{_time_left(job, step)}")
    if not n_samples:
        raise ConfigError(f"{where}: data", "is empty", "give the split 'train' samples")
    if is_first and len(classes) == 1:
        fault = f"all targets are {next(iter(classes))}: one class alone, nothing to tell apart"
        raise ConfigError(f"{where}: data", fault, "give samples of all classes")
    return step


@contextmanager
def mixed_precision(
    model: nn.Module, precision: Precision, device_type: str = "cpu"
) -> Iterator[None]:
    """Have the model compute in a precision for the block; what it returns is float32.

    With `bfloat16` convolutions and products are computed in it (`torch.autocast`); weights,
    their gradients, norms' statistics and what is made of the outputs stay float32. No loss
    scaling is needed: bfloat16 has float32's exponents.
    """
    if precision == "float32":
        yield
        return
    before = model.__dict__.get("forward")
    whole = model.forward

    def forward(*inputs: Any, **named: Any) -> Any:
        with torch.autocast(device_type, torch.bfloat16):
            outputs = whole(*inputs, **named)
        return torch.utils._pytree.tree_map_only(
            Tensor, lambda x: x.float() if x.dtype == torch.bfloat16 else x, outputs
        )

    model.forward = forward
    try:
        yield
    finally:
        if before is None:
            del model.forward
        else:
            model.forward = before


def _content(job: _Job, now: _Standing, kept: dict[str, Tensor]) -> dict[str, Any]:
    """Return what a checkpoint holds: all that goes on, or the result alone."""
    if now.done:
        return {"standing": asdict(now), "kept": kept}
    return {
        "standing": asdict(now),
        "kept": kept,
        "model": job.model.state_dict(),
        "optimizer": job.optimizer.state_dict(),
        "scheduler": job.scheduler.state_dict(),
        "averages": job.averages,
    }


def _state_of(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in model.state_dict().items()
    }


def _average(job: _Job, step: int) -> None:
    """Move the averages towards the weights; by more at the start, where there is no past."""
    decay = min(job.training.ema, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, value in job.model.state_dict().items():
            if value.is_floating_point():
                job.averages[name].lerp_(value, 1 - decay)
            else:
                job.averages[name].copy_(value)


def _time_left(job: _Job, step: int) -> str:
    elapsed_s = time.monotonic() - job.started_s
    left_s = round(elapsed_s / max(1, step - job.first_step) * max(0, job.n_steps - step))
    if elapsed_s < 1:
        return ""
    minutes, seconds = divmod(left_s, 60)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    return f", {clock} left"


def _classes(targets: Any) -> set[Any]:
    """Return the classes in a batch, two at most; none where targets are no classes."""
    if not isinstance(targets, np.ndarray) or targets.ndim != 1 or targets.dtype.kind not in "iub":
        return {None, ...}
    return set(np.unique(targets)[:2].tolist())


def _plain(loss: Loss) -> Objective:
    """Return the objective that a loss of outputs and targets stands for."""
    return Objective(value=lambda model, inputs, targets: loss(model(*inputs), targets))


def _optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    groups = _groups(model, training.weight_decay)
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=training.learning_rate, momentum=MOMENTUM, nesterov=True)
    return torch.optim.AdamW(groups, lr=training.learning_rate)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        name = type(model).__name__
        raise ModelError(f"model {name}", "has no parameter to train", "leave training out")
    return [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]


def _one_cycle(step: int, n_steps: int, n_warmup: int) -> float:
    """Return the share of the learning rate at `step`: up in a line, down along a cosine to 0."""
    if step < n_warmup:
        return (step + 1) / (n_warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))


def _check_loss(value: Any, where: str, training: Training) -> None:
    if not isinstance(value, Tensor) or value.dim() != 0 or not value.requires_grad:
        fix = "return a scalar tensor computed from the outputs"
        raise ConfigError(f"{where}: loss", f"returned {value!r:.80}", fix)
    if not math.isfinite(value.item()):
        fix = f"lower learning_rate (now {training.learning_rate:g}), "
        fix += "or look for NaN in the training data"
        raise ModelError(where, f"the loss is {value.item()}", fix)


@contextmanager
def _on(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Have the model on `device` for the block, and on the CPU behind it."""
    if device.type == "cpu":
        yield
        return
    model.to(device)
    try:
        yield
    finally:
        model.to("cpu")


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Seed torch and take its deterministic kernels where it has them, for the block."""
    was_on = torch.are_deterministic_algorithms_enabled()
    was_warning = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on, warn_only=was_warning)


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(array, order="C"))  # a copy: torch warns of read-only arrays


def _tensors(targets: Any, device: torch.device) -> Any:
    """Return `targets` with every array in it as a tensor on `device`."""
    return torch.utils._pytree.tree_map_only(
        np.ndarray, lambda array: _tensor(array).to(device), targets
    )


def _arrays(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.detach().cpu().numpy()
    if isinstance(outputs, Mapping) and all(isinstance(v, Tensor) for v in outputs.values()):
        return {str(key): value.detach().cpu().numpy() for key, value in outputs.items()}
    return tuple(leaf.detach().cpu().numpy() for leaf in torch.utils._pytree.tree_leaves(outputs))
