"""Layers become two or three smaller ones, where that takes fewer multiply-accumulates."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from edgeshrink.compression.layers import (
    excluded_layers,
    macs_of,
    replace_layer,
    require_layers,
    tensors_in,
)
from edgeshrink.compression.steps import Changed, Context
from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.quantizer.canonical import TORCH_ERRORS
from edgeshrink.recipe import Factorize
from edgeshrink.target import Target

# Subclasses may use their weight otherwise (that of an attention's projection is read directly).
FACTORIZED: Final = (nn.Linear, nn.Conv1d, nn.Conv2d)
READ_DIRECTLY: Final = (
    nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer,
)  # fmt: skip
ROUNDING: Final = 1e-12  # of the energy: less than float32 holds


@dataclass(frozen=True, kw_only=True)
class _Work:
    """How often a layer is applied in one inference."""

    n_inputs: int  # positions it reads
    n_outputs: int  # positions it writes


@dataclass(frozen=True, kw_only=True)
class _Spectrum:
    """Where the energy of a layer's weight is."""

    path: str
    work: _Work
    energies: tuple[Tensor, ...]

    def ranks(self, share: float) -> tuple[int, ...]:
        """Return the rank of an SVD, or the two ranks (inputs, outputs) of Tucker-2."""
        return tuple(_rank(energies, share) for energies in self.energies)


def apply(model: nn.Module, step: Factorize, context: Context) -> Changed:
    """Factorize linear layers and convolutions (not grouped ones) of `model`, in place.

    Linear layers and convolutions of one tap by a singular value decomposition, others by Tucker-2
    (higher-order SVD over inputs and outputs). Biases stay with the last part. With `macs` all
    layers keep the same share of energy: the largest that brings the model down to it.

    Raises:
        ConfigError: `exclude` names no layer, or ranks of 1 still take more than `macs`.
        ModelError: There is no such layer, or the model doesn't run with factors in its place.
    """
    examples = context.task.example_inputs
    layers = factorizable(model, step)
    work = _work_of(model, layers, examples)
    spectra = []
    for index, (path, layer) in enumerate(layers.items()):
        context.progress(index / len(layers), f"factorizing {path}")
        if path in work:  # else its weight is used some other way
            spectra.append(_Spectrum(path=path, work=work[path], energies=_energies(layer)))
    start = macs_of(model, examples)
    energy = step.energy
    if step.macs:
        energy = _energy_for(step.macs * start, start, layers, spectra, step.least_gain)
    chosen: dict[str, nn.Sequential] = {}
    rows: list[dict[str, Any]] = []
    for one in spectra:
        layer = layers[one.path]
        ranks = one.ranks(energy)
        plain, fewer = _macs(layer, one.work), _macs_of_ranks(layer, ranks, one.work)
        if _gains(plain, fewer, step.least_gain):
            chosen[one.path] = _factors(layer, ranks)
            macs = {"before": plain, "after": fewer}
            rows.append({"layer": one.path, "ranks": list(ranks), "macs": macs})
    _check(model, chosen, examples)
    for path, factors in chosen.items():
        replace_layer(model, layers[path], factors)
    end = macs_of(model, examples)
    return Changed(
        model=model,
        note=_note(rows, len(layers), start, end, energy, step.least_gain, context.target),
        details={"layers": rows, "macs": {"before": start, "after": end}, "energy": energy},
    )


def factorizable(model: nn.Module, step: Factorize) -> dict[str, nn.Module]:
    """Return the layers that may become factors, by path.

    Raises:
        ConfigError: `exclude` names no layer.
        ModelError: There are none.
    """
    skip = excluded_layers(model, step.exclude)
    skip |= {c for m in model.modules() if isinstance(m, READ_DIRECTLY) for c in m.modules()}
    layers = {
        path: layer
        for path, layer in model.named_modules()
        if type(layer) in FACTORIZED and getattr(layer, "groups", 1) == 1 and layer not in skip
    }
    require_layers(model, list(layers), "linear layer or plain convolution")
    return layers


def rehearse(
    model: nn.Module, step: Factorize, context: Context, *, slack: float = 1.0
) -> dict[str, nn.Module]:
    """Return the layers of an untrained `model` that `apply` may factorize; nothing changes.

    Args:
        model, step, context: As for `apply`.
        slack: By how much the least share of the MACs may miss `macs`, as a factor.

    Raises:
        ConfigError, ModelError: As `apply` does, for what no training mends.
    """
    layers = factorizable(model, step)
    if step.macs:
        examples = context.task.example_inputs
        work = _work_of(model, layers, examples)
        start = macs_of(model, examples)
        left = start
        for path in work:
            plain = _macs(layers[path], work[path])
            n_ranks = 1 if _takes_svd(layers[path]) else 2
            fewer = _macs_of_ranks(layers[path], (1,) * n_ranks, work[path])
            left -= plain - fewer if _gains(plain, fewer, step.least_gain) else 0
        if left > slack * step.macs * start:
            raise _out_of_reach(step.macs, left / start)
    return layers


def _work_of(
    model: nn.Module, layers: Mapping[str, nn.Module], examples: tuple[Tensor, ...]
) -> dict[str, _Work]:
    """Return how many positions each layer reads and writes in one inference."""
    found: dict[str, _Work] = {}

    def watch(path: str, layer: nn.Module) -> Any:
        def hook(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            before = found.get(path, _Work(n_inputs=0, n_outputs=0))
            found[path] = _Work(
                n_inputs=before.n_inputs + inputs[0].numel() // _widths(layer)[1],
                n_outputs=before.n_outputs + output.numel() // _widths(layer)[0],
            )

        return hook

    handles = [layer.register_forward_hook(watch(p, layer)) for p, layer in layers.items()]
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(*examples)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return found


def _widths(layer: Any) -> tuple[int, int]:
    """Return (outputs, inputs) of a layer."""
    return int(layer.weight.shape[0]), int(layer.weight.shape[1])


def _n_weights(layer: Any) -> int:
    return int(layer.weight.numel())


def _macs(layer: nn.Module, work: _Work) -> int:
    return _n_weights(layer) * work.n_outputs


def _macs_of_ranks(layer: Any, ranks: tuple[int, ...], work: _Work) -> int:
    """Return the MACs of factors: all but Tucker-2's first part run where outputs are written."""
    n_outputs, n_inputs = _widths(layer)
    if len(ranks) == 1:
        return ranks[0] * (n_inputs + n_outputs) * work.n_outputs
    taps = _n_weights(layer) // (n_outputs * n_inputs)
    core = ranks[0] * taps * ranks[1] + ranks[1] * n_outputs
    return n_inputs * ranks[0] * work.n_inputs + core * work.n_outputs


def _gains(plain: int, fewer: int, least_gain: float) -> bool:
    return fewer < plain and least_gain * fewer <= plain


def _takes_svd(layer: Any) -> bool:
    return isinstance(layer, nn.Linear) or all(size == 1 for size in layer.kernel_size)


def _rank(energies: Tensor, share: float) -> int:
    """Return how many of the descending `energies` hold `share` of their sum; at least 1."""
    total = energies.sum()
    if float(total) == 0:
        return 1
    enough = torch.cumsum(energies, 0) >= (share - ROUNDING) * total
    return int(torch.nonzero(enough)[0]) + 1 if bool(enough.any()) else len(energies)


def _unfoldings(layer: Any) -> tuple[Tensor, Tensor]:
    """Return the weight as matrices (outputs, rest) and (inputs, rest), in double precision."""
    weight = layer.weight.detach().double()
    return weight.flatten(1), weight.transpose(0, 1).flatten(1)


def _energies(layer: Any) -> tuple[Tensor, ...]:
    """Return squared singular values: of the outputs; for Tucker-2 of the inputs before them."""
    by_outputs, by_inputs = _unfoldings(layer)
    of_outputs = torch.linalg.svdvals(by_outputs) ** 2
    if _takes_svd(layer):
        return (of_outputs,)
    return torch.linalg.svdvals(by_inputs) ** 2, of_outputs


def _energy_for(
    most: float,
    start: int,
    layers: Mapping[str, nn.Module],
    spectra: Sequence[_Spectrum],
    least_gain: float,
) -> float:
    """Return the largest share of energy at which the model takes no more than `most` MACs."""

    def left(energy: float) -> float:
        total = start
        for one in spectra:
            layer = layers[one.path]
            plain = _macs(layer, one.work)
            fewer = _macs_of_ranks(layer, one.ranks(energy), one.work)
            total -= plain - fewer if _gains(plain, fewer, least_gain) else 0
        return total

    low, high = 0.0, 1.0
    if left(low) > most:
        raise _out_of_reach(most / start, left(low) / start)
    if left(high) <= most:
        return high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if left(middle) <= most else (low, middle)
    return low


def _out_of_reach(macs: float, least: float) -> ConfigError:
    fault = f"asks for {macs:.1%}, and ranks of 1 leave {least:.1%}"
    return ConfigError("macs", fault, "ask for more, or prune channels first")


def _factors(layer: Any, ranks: tuple[int, ...]) -> nn.Sequential:
    """Return layers that do in a row what `layer` does, up to what the ranks leave out."""
    by_outputs, by_inputs = _unfoldings(layer)
    left, values, right = torch.linalg.svd(by_outputs, full_matrices=False)
    if len(ranks) == 1:
        root = values[: ranks[0]].sqrt()  # shared by both, so that both keep a usual range
        first, last = root[:, None] * right[: ranks[0]], left[:, : ranks[0]] * root
        return _sequence(layer, [_part(layer, first, moves=True), _part(layer, last)])
    inputs = torch.linalg.svd(by_inputs, full_matrices=False)[0][:, : ranks[0]]  # (inputs, rank)
    outputs = left[:, : ranks[1]]  # (outputs, rank)
    weight = layer.weight.detach().double()
    core = torch.einsum("oi...,or,is->rs...", weight, outputs, inputs)
    parts = [_part(layer, inputs.T), _part(layer, core, moves=True), _part(layer, outputs)]
    return _sequence(layer, parts)


def _part(layer: Any, weight: Tensor, *, moves: bool = False) -> Any:
    """Return a layer of the same kind without bias.

    Args:
        layer: What is factorized.
        weight: A matrix makes a convolution of one tap.
        moves: Whether the part takes over stride, padding and dilation.
    """
    value = weight.to(layer.weight.dtype)
    n_outputs, n_inputs = value.shape[:2]
    if isinstance(layer, nn.Linear):
        part: Any = nn.Linear(n_inputs, n_outputs, bias=False)
    else:
        taps = tuple(value.shape[2:]) or (1,) * len(layer.kernel_size)
        value = value.reshape(n_outputs, n_inputs, *taps)
        names = ("stride", "padding", "dilation", "padding_mode") if moves else ()
        geometry = {name: getattr(layer, name) for name in names}
        part = type(layer)(n_inputs, n_outputs, taps, bias=False, **geometry)
    part.weight = nn.Parameter(value.contiguous(), requires_grad=layer.weight.requires_grad)
    return part


def _sequence(layer: Any, parts: Sequence[Any]) -> nn.Sequential:
    if layer.bias is not None:
        parts[-1].bias = nn.Parameter(
            layer.bias.detach().clone(), requires_grad=layer.bias.requires_grad
        )
    return nn.Sequential(*parts).train(layer.training)


def _check(
    model: nn.Module, chosen: Mapping[str, nn.Sequential], examples: tuple[Tensor, ...]
) -> None:
    """Raise ModelError if a copy with factors does not run as the model does."""
    fault = _fault_of(model, chosen, examples)
    if not fault:
        return
    for path, factors in chosen.items():
        alone = _fault_of(model, {path: factors}, examples)
        if alone:
            raise ModelError(f"layer {path!r}", alone, f'exclude = ["{path}"]')
    names = ", ".join(map(repr, chosen))
    raise ModelError(f"layers {names}", fault, "exclude some of them")


def _fault_of(
    model: nn.Module, chosen: Mapping[str, nn.Sequential], examples: tuple[Tensor, ...]
) -> str:
    trial = copy.deepcopy(model).eval()
    with torch.no_grad():
        shapes = [tuple(x.shape) for x in tensors_in(trial(*examples))]
        for path, factors in chosen.items():
            replace_layer(trial, trial.get_submodule(path), copy.deepcopy(factors))
        try:
            found = [tuple(x.shape) for x in tensors_in(trial(*examples))]
        except TORCH_ERRORS as err:
            return f"the model fails with factors in its place ({str(err).strip()[:200]})"
    return "" if found == shapes else f"outputs take the shapes {found}, not {shapes}"


def _note(
    rows: Sequence[Mapping[str, Any]],
    n_layers: int,
    start: int,
    end: int,
    energy: float,
    least_gain: float,
    target: Target,
) -> str:
    if not rows:
        return (
            f"nothing factorized: at energy = {energy:.4g} none of {n_layers} layers needs "
            f"{least_gain:g} times fewer multiply-accumulates as factors"
        )
    return (
        f"{len(rows)} of {n_layers} layers written as factors with {energy:.1%} of the energy; "
        f"multiply-accumulates {start:,} -> "
        f"{end:,} ({end / start:.1%}), which {target.name} gains in time and weights; each factor "
        "adds an activation between"
    )
