"""The training loop of the float model, and the float model as a `predict`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.program import ProgramModule
from edgeshrink.scoring import score
from edgeshrink.task import Predict, Split, Task, Training
from edgeshrink.task_checks import check_weights
from edgeshrink.user_code import UserCode

Loss = Callable[[Any, Any], Tensor]
Progress = Callable[[float, str], None]  # share done in [0, 1], what is being done


def train(task: Task, *, seed: int, progress: Progress | None = None) -> None:
    """Train the task's model in place as its `training` says, on its `train` split.

    Keeps the epoch that scores best on `validation`, where the task has a score.

    Raises:
        ConfigError: The task's own code raises.
        ModelError: The loss or a weight becomes NaN or infinite.
    """
    if task.training is None or task.loss is None:
        raise ConfigError(
            f"task {task.name!r}", "has no training or no loss", "there is nothing to do"
        )
    rank = None
    if task.evaluate is not None:
        sign = 1.0 if task.metric.direction == "higher" else -1.0

        def rank(predict: Predict) -> float:
            return sign * score(task, predict, "validation")

    with UserCode(f"task {task.name!r}: training", task.folder):
        fit(
            task.model, task.data["train"], task.loss, task.training,
            seed=seed, rank=rank, progress=progress,
        )  # fmt: skip


def fit(
    model: nn.Module,
    batches: Split,
    loss: Loss,
    training: Training,
    *,
    seed: int,
    rank: Callable[[Predict], float] | None = None,
    progress: Progress | None = None,
) -> None:
    """Train `model` in place: AdamW, one cosine cycle with a warm-up, no decay of biases and norms.

    The same model, data, seed, machine and number of threads give the same weights to the last bit.

    Args:
        model: Left in eval mode. Parameters that don't require gradients stay as they are.
        batches: Gone through once per epoch.
        loss: `loss(outputs, targets) -> scalar tensor`; targets are tensors.
        training: Epochs, rates and warm-up.
        seed: Of torch's global generator (dropout).
        rank: Called after every epoch; the weights of the highest (and of those the latest) stay.
        progress: Called after every step.

    Raises:
        ModelError: Nothing to train, or the loss or a weight becomes NaN or infinite.
        ConfigError: The loss is not a scalar tensor that depends on the model.
    """
    optimizer = torch.optim.AdamW(_groups(model, training.weight_decay), lr=training.learning_rate)
    steps_per_epoch = len(batches) if isinstance(batches, Sized) else sum(1 for _ in batches)
    n_steps = training.epochs * steps_per_epoch
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _one_cycle(step, n_steps, round(training.warmup_share * n_steps))
    )
    best_rank, best_state, step = -math.inf, None, 0
    with _deterministic(seed):
        for epoch in range(1, training.epochs + 1):
            model.train()
            where = f"training epoch {epoch} of {training.epochs}"
            full = 0  # samples in the first batch
            for inputs, targets in batches:
                n_samples = len(inputs[0])
                full = full or n_samples
                if 1 == n_samples < full:
                    continue  # a rest of one sample has no variance for a batch norm
                value = loss(model(*map(_tensor, inputs)), _tensors(targets))
                _check_loss(value, where, training)
                optimizer.zero_grad(set_to_none=True)
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                if step < n_steps - 1:  # a split may well be a batch longer than it said
                    scheduler.step()
                step += 1
                if progress is not None:
                    progress(min(1.0, step / n_steps), f"{where}, loss {value.item():.3f}")
            check_weights(model, where)
            if rank is not None and (found := rank(float_predict(model))) >= best_rank:
                best_rank, best_state = found, copy.deepcopy(model.state_dict())
    if best_state is not None:
        model.load_state_dict(best_state)
    optimizer.zero_grad(set_to_none=True)
    model.eval()
    if progress is not None:
        progress(1.0, f"trained {training.epochs} epochs")


def float_predict(model: nn.Module) -> Predict:
    """Return `predict` over a PyTorch model: numpy in, and numpy in the model's structure out.

    A tensor comes back as an array, a dict of tensors as a dict, anything else as a flat tuple.
    The model is put into eval mode at every call.
    """

    def predict(*arrays: npt.NDArray[Any]) -> Any:
        model.eval()
        with torch.no_grad():
            if not isinstance(model, ProgramModule):
                return _arrays(model(*map(_tensor, arrays)))
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
        fix = f"lower learning_rate in Training (now {training.learning_rate:g}), "
        fix += "or look for NaN in the training data"
        raise ModelError(where, f"the loss is {value.item()}", fix)


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


def _tensors(targets: Any) -> Any:
    """Return `targets` with every array in it as a tensor."""
    return torch.utils._pytree.tree_map_only(np.ndarray, _tensor, targets)


def _arrays(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.detach().numpy()
    if isinstance(outputs, Mapping) and all(isinstance(v, Tensor) for v in outputs.values()):
        return {str(key): value.detach().numpy() for key, value in outputs.items()}
    return tuple(leaf.detach().numpy() for leaf in torch.utils._pytree.tree_leaves(outputs))
