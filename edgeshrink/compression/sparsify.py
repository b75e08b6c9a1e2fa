"""Weights become zero, smallest first.

The zeros themselves are the mask: `training.hold` keeps them through later training, and zero is
exact in every type that export stores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgeshrink.checkpoints import Checkpoints
from edgeshrink.compression.layers import (
    Weight,
    download_bytes,
    excluded_layers,
    require_layers,
    weights_of,
)
from edgeshrink.compression.steps import Changed, Context
from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.recipe import Sparsify
from edgeshrink.target import Target
from edgeshrink.task import Training
from edgeshrink.training import AfterStep, Held, check_trainable, fit, hold
from edgeshrink.user_code import UserCode

Bools = npt.NDArray[np.bool_]


def apply(model: nn.Module, step: Sparsify, context: Context) -> Changed:
    """Set weights to zero as `step` says, in place.

    Where it trains, the share of zeros rises from 0 along a cubic (Zhu and Gupta, 2017, equation
    1).

    Raises:
        ConfigError: `exclude` names no layer, or training is asked for and the task has none.
        ModelError: There are no weights, or a layer would lose all of its.
    """
    weights = check_layers(model, step, context.held)
    if step.epochs:
        check_trainable(context.task, f"epochs = {step.epochs}")
    before = download_bytes(weights)
    final = choose_zeros(weights, step)
    _check_alive(weights, final, step)
    if step.epochs:
        _train(model, weights, step, context)
        final = choose_zeros(weights, step)
        _check_alive(weights, final, step)
    _set_zeros(weights, final)
    after = download_bytes(weights)
    layers = _layers(weights, final)
    return Changed(
        model=model,
        note=_note(layers, before, after, context.target),
        details={"layers": layers, "download_bytes": {"before": before, "after": after}},
    )


def check_layers(model: nn.Module, step: Sparsify, held: Held) -> list[Weight]:
    """Return the weights that `step` is about; raise what is wrong with that."""
    weights = weights_of(model, excluded_layers(model, step.exclude))
    require_layers(model, weights, "weight of a convolution, linear or recurrent layer")
    if step.epochs and held == "values":
        fix = "put 'sparsify' before 'cluster', or set epochs = 0"
        raise ConfigError(f"epochs = {step.epochs}", "training would undo the clusters", fix)
    return weights


def choose_zeros(
    weights: Sequence[Weight], step: Sparsify, *, progress: float = 1.0
) -> list[Bools]:
    """Return for each weight which of its elements are to be zero.

    Args:
        weights: Their values decide.
        step: By threshold, by pattern or by share.
        progress: Share of the way, in [0, 1]: of the elements that are to go in the end, the
            smallest 1 - (1 - progress)**3 go now.
    """
    sizes = [np.abs(w.value.detach().double().cpu().numpy()) for w in weights]
    if step.alpha > 0:
        zeros = [size < step.alpha * size.max(initial=0) for size in sizes]
    elif step.m:
        zeros = [_pattern(size, w.input_axis, step) for size, w in zip(sizes, weights, strict=True)]
    else:
        zeros = _smallest(sizes, [np.ones(size.shape, bool) for size in sizes], step.ratio, step)
    share = 1 - (1 - progress) ** 3
    return zeros if share >= 1 else _smallest(sizes, zeros, share, step)


def _smallest(
    sizes: Sequence[npt.NDArray[np.float64]], among: Sequence[Bools], share: float, step: Sparsify
) -> list[Bools]:
    """Return the smallest `share` of the elements that `among` holds; of equals, the first."""
    if step.scope == "layer" and len(sizes) > 1:
        pairs = zip(sizes, among, strict=True)
        return [_smallest([size], [mask], share, step)[0] for size, mask in pairs]
    flat = np.concatenate([size.ravel() for size in sizes])
    candidates = np.flatnonzero(np.concatenate([mask.ravel() for mask in among]))
    count = math.floor(share * len(candidates) + 1e-9)  # 0.29 * 100 is 28.999999999999996
    chosen = np.zeros(len(flat), bool)
    if count:
        values = flat[candidates]
        limit = np.partition(values, count - 1)[count - 1]
        below, equal = np.flatnonzero(values < limit), np.flatnonzero(values == limit)
        chosen[candidates[below]] = True
        chosen[candidates[equal[: count - len(below)]]] = True
    ends = np.cumsum([size.size for size in sizes])
    parts = np.split(chosen, ends[:-1])
    return [part.reshape(size.shape) for part, size in zip(parts, sizes, strict=True)]


def _pattern(size: npt.NDArray[np.float64], input_axis: int, step: Sparsify) -> Bools:
    """Return all but the `n` largest of every `m` neighbours; a rest of fewer than `m` stays."""
    moved = np.moveaxis(size, input_axis, -1)  # (..., inputs)
    whole = moved.shape[-1] // step.m * step.m
    groups = moved[..., :whole].reshape(*moved.shape[:-1], whole // step.m, step.m)
    ranks = np.argsort(np.argsort(groups, axis=-1, kind="stable"), axis=-1, kind="stable")
    zeros = np.zeros(moved.shape, bool)
    zeros[..., :whole] = (ranks < step.m - step.n).reshape(*moved.shape[:-1], whole)
    return np.moveaxis(zeros, -1, input_axis)


def _train(model: nn.Module, weights: Sequence[Weight], step: Sparsify, context: Context) -> None:
    """Train while the share of zeros rises.

    No epoch is chosen by its score: earlier ones have fewer zeros.
    """
    task = context.task
    assert task.loss is not None
    kept = None
    if context.checkpoints is not None:
        kept = Checkpoints(
            folder=context.checkpoints,
            identity={"task": task.name, "step": repr(step)},
            splits=tuple(task.data.values()),
        )
    with UserCode(f"task {task.name!r}: training", task.folder):
        fit(
            model, task.data["train"], task.loss,
            Training(epochs=step.epochs, learning_rate=step.learning_rate),
            seed=context.seed, progress=context.progress, checkpoints=kept,
            after_step=gradual(weights, step, hold(model, context.held)),
        )  # fmt: skip


def gradual(weights: Sequence[Weight], step: Sparsify, held: AfterStep) -> AfterStep:
    """Return an `after_step` under which the share of zeros rises.

    It remembers nothing, so that an interrupted training goes on as if nothing had been: a zero
    that the optimizer has moved is among the smallest again, unless it was moved far.

    Args:
        weights: Of the model that is trained.
        step: How many are zero in the end.
        held: Called first: keeps the zeros of earlier steps.
    """

    def after_step(model: nn.Module, share: float) -> None:
        held(model, share)
        _set_zeros(weights, choose_zeros(weights, step, progress=share))

    return after_step


def _set_zeros(weights: Sequence[Weight], zeros: Sequence[Bools]) -> None:
    for weight, mask in zip(weights, zeros, strict=True):
        weight.value.data.masked_fill_(torch.from_numpy(mask).to(weight.value.device), 0)


def _check_alive(weights: Sequence[Weight], zeros: Sequence[Bools], step: Sparsify) -> None:
    """Raise ModelError for a layer that would have no weight left."""
    for weight, mask in zip(weights, zeros, strict=True):
        if mask.all():
            raise ModelError(
                f"layer {weight.path!r}",
                f"ratio = {step.ratio:g} leaves none of its {mask.size:,} weights",
                'lower the ratio, set scope = "layer", or exclude the layer',
            )


def _layers(weights: Sequence[Weight], zeros: Sequence[Bools]) -> list[dict[str, Any]]:
    found = []
    for weight, mask in zip(weights, zeros, strict=True):
        rows = np.moveaxis(weight.value.detach().numpy(), weight.output_axis, 0)
        rows = rows.reshape(len(rows), -1)
        found.append(
            {
                "layer": weight.path,
                "weight": weight.name,
                "n_weights": mask.size,
                "n_zeros": int(mask.sum()),
                "n_channels": len(rows),
                "n_zero_channels": int((rows == 0).all(axis=1).sum()),
            }
        )
    return found


def _note(
    layers: Sequence[Mapping[str, Any]],
    before: Mapping[str, int],
    after: Mapping[str, int],
    target: Target,
) -> str:
    n_weights, n_zeros, n_channels, n_zero_channels = (
        sum(layer[key] for layer in layers)
        for key in ("n_weights", "n_zeros", "n_channels", "n_zero_channels")
    )
    parts = [
        f"{n_zeros:,} of {n_weights:,} weights ({n_zeros / n_weights:.1%}) are zero",
        f"compressed (zlib), the weights of a download shrink from {before['int8']:,} to "
        f"{after['int8']:,} bytes as int8, from {before['float32']:,} to {after['float32']:,} "
        "as float32",
        f"on {target.name} the layers take as long as before: dense kernels multiply zeros too",
    ]
    if target.kind == "microcontroller" and any(r.name == "c" for r in target.runtimes):
        parts.append(
            f"its compiler drops channels that are zero as a whole, {n_zero_channels:,} of "
            f"{n_channels:,} here: flash and RAM shrink by these alone"
        )
    else:
        parts.append("and the uncompressed file keeps its size")
    return "; ".join(parts)
