"""Constants that suit their quantization: which way weights round, and biases that keep means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from edgeshrink.quantizer.canonical import constant_of, operand
from edgeshrink.quantizer.fake_quantize import FakeQuantize, bias_of, quantizer_of
from edgeshrink.quantizer.operators import RULES

aten = torch.ops.aten

# AdaRound (Nagel et al., Up or down? Adaptive rounding for post-training quantization, 2020).
N_STEPS: Final = 600
LEARNING_RATE: Final = 2e-2
BETAS: Final = (0.9, 0.999)  # of Adam
STRETCH: Final = (-0.1, 1.1)  # of the sigmoid, equation 23: so that 0 and 1 are reached
SHARPNESS: Final = (20.0, 2.0)  # of the regularizer, equation 24: from and to
WARMUP: Final = 0.2  # share of the steps without the regularizer
WEIGHT: Final = 0.02  # of the regularizer, in errors of rounding to the nearest
MOST_FLIPS: Final = 1  # exchanges of a row at the end, per term
MOST_ROWS: Final = 32_768  # positions in all batches that a layer's moments are taken over


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A weighted node with what it reads in the float graph and in the quantized one."""

    frozen: fx.GraphModule
    node: fx.Node
    exact: Sequence[Tensor]
    stored: Sequence[Tensor]
    floats: dict[str, Tensor]  # constants of the float graph

    def outputs(self, inputs: Sequence[Tensor], *, is_float: bool) -> Iterator[Tensor]:
        """Apply the layer to `inputs`, with its float or with its stored weights."""
        for x in inputs:
            source = operand(self.node, 0)
            constants = [n for n in self.node.all_input_nodes if n is not source]
            values = {n: _constant(self.frozen, self.floats, n, is_float) for n in constants}
            values[source] = x
            args, kwargs = fx.node.map_arg((self.node.args, self.node.kwargs), values.__getitem__)
            yield self.node.target(*args, **kwargs)  # type: ignore[operator]


def adapt(
    frozen: fx.GraphModule,
    batches: Sequence[tuple[Tensor, ...]],
    *,
    adaround: bool,
    correct_bias: bool,
) -> None:
    """Adapt the constants of a frozen graph layer by layer, in place.

    Each layer is fitted to what the float graph computes, given what the quantized layers before it
    really deliver. Constants that several layers read stay as they are.

    Args:
        frozen: From `freeze`, with the float weights.
        batches: Calibration inputs.
        adaround: Choose which way each weight rounds. Zeros stay zeros.
        correct_bias: Make the mean of every channel that of the float graph.
    """
    with torch.no_grad():
        for layer in _layers(frozen, batches):
            if adaround:
                _round(layer)
            if correct_bias:
                _correct_bias(layer)


def _constant(
    frozen: fx.GraphModule, floats: dict[str, Tensor], node: fx.Node, is_float: bool
) -> Any:
    """Return the value of a node that depends on constants alone."""
    if node.op == "get_attr":
        return floats[str(node.target)] if is_float else constant_of(frozen, node)
    value = _constant(frozen, floats, operand(node, 0), is_float)
    return value if is_float else frozen.get_submodule(str(node.target))(value)


def _is_constant(node: fx.Node) -> bool:
    if node.op == "call_module":
        return operand(node, 0).op == "get_attr"
    return node.op == "get_attr"


def _layers(frozen: fx.GraphModule, batches: Sequence[tuple[Tensor, ...]]) -> Iterator[_Layer]:
    """Run float and quantized graph side by side; stop at every weighted node before it runs."""
    floats = {
        str(node.target): value.clone()
        for node in frozen.graph.nodes
        if (value := constant_of(frozen, node)) is not None
    }
    exact: dict[fx.Node, list[Any]] = {}
    stored: dict[fx.Node, list[Any]] = {}
    left = {node: len(node.users) for node in frozen.graph.nodes}
    position = 0
    for node in frozen.graph.nodes:
        if _is_constant(node):
            continue
        if node.op == "output":
            return
        if node.op == "placeholder":
            exact[node] = stored[node] = [batch[position] for batch in batches]
            position += 1
            continue
        if node.target in RULES and RULES[node.target].kind == "weighted":
            source = operand(node, 0)
            yield _Layer(
                frozen=frozen, node=node, floats=floats, exact=exact[source], stored=stored[source]
            )
        for values, is_float in ((exact, True), (stored, False)):
            values[node] = [
                _run(frozen, floats, node, values, index, is_float) for index in range(len(batches))
            ]
        for source in node.all_input_nodes:
            left[source] -= 1
            if not left[source]:
                exact.pop(source, None)
                stored.pop(source, None)


def _run(
    frozen: fx.GraphModule,
    floats: dict[str, Tensor],
    node: fx.Node,
    values: dict[fx.Node, list[Any]],
    index: int,
    is_float: bool,
) -> Any:
    def of(source: fx.Node) -> Any:
        if _is_constant(source):
            return _constant(frozen, floats, source, is_float)
        return values[source][index]

    if node.op == "call_module":
        x = of(operand(node, 0))
        return x if is_float else frozen.get_submodule(str(node.target))(x)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), of)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _correct_bias(layer: _Layer) -> None:
    bias_node = bias_of(layer.node)
    bias = constant_of(layer.frozen, bias_node)
    if bias is None or bias_node is None or len(bias_node.users) > 1:
        return
    axis = layer.node.meta["val"].dim() - 1 if layer.node.target == aten.linear.default else 1

    def mean(outputs: Iterator[Tensor]) -> Tensor:
        total, count = torch.zeros(len(bias), dtype=torch.float64), 0
        for y in outputs:
            others = [d for d in range(y.dim()) if d != axis]
            total += y.double().sum(others)
            count += y.numel() // len(bias)
        return total / count

    wanted = mean(layer.outputs(layer.exact, is_float=True))
    found = mean(layer.outputs(layer.stored, is_float=False))
    bias.copy_(bias.double() + wanted - found)


def _round(layer: _Layer) -> None:
    """Put the layer's weight on its grid, each element up or down as serves the outputs best."""
    node = layer.node
    quantizer, stored = quantizer_of(layer.frozen, node.args[1]), operand(operand(node, 1), 0)
    weight = constant_of(layer.frozen, stored)
    readers = [user for quantized in stored.users for user in quantized.users]
    if quantizer is None or weight is None or len(readers) != 1:
        return
    rows = _rows(node, weight)  # (groups, outputs, terms)
    shape = [-1 if axis == quantizer.ch_axis else 1 for axis in range(weight.dim())]
    step = _rows(node, quantizer.scale.reshape(shape).expand_as(weight))
    codes = rounded_codes(rows, step, _moments(layer), quantizer)
    weight.copy_(_unrows(node, codes * step, weight.shape))


def rounded_codes(
    weight: Tensor, step: Tensor, moments: tuple[Tensor, Tensor], quantizer: FakeQuantize
) -> Tensor:
    """Return the integers that weights round to, up or down, for the least error of the outputs.

    The squared error of a row's outputs is a quadratic form of its stored weights (equation 13 of
    the paper), so that two matrices of moments stand for all calibration data.

    Args:
        weight: Float weights (groups, outputs, terms).
        step: What one of the integers is worth, same shape.
        moments: Means of q q' and of x q' (groups, terms, terms): x are the exact values that a
            weight meets, q those that the quantized layers before deliver.
        quantizer: Its bounds.
    """
    stored_moment, mixed_moment = (m.to(weight.dtype) for m in moments)
    target = weight @ mixed_moment  # (groups, outputs, terms)
    floor = torch.floor(weight / step)
    share = weight / step - floor
    free = weight != 0
    low, high = STRETCH

    def error(codes: Tensor) -> Tensor:
        values = codes * step
        return ((values @ stored_moment - 2 * target) * values).sum(-1)  # (groups, outputs)

    nearest = torch.round(weight / step).clamp(quantizer.quant_min, quantizer.quant_max)
    # In units of what rounding to the nearest costs, all layers ask for the same regularizer.
    moved = nearest * step - weight
    unit = ((moved @ stored_moment) * moved).sum(-1, keepdim=True).clamp(min=1e-20)
    start = ((share - low) / (high - low)).clamp(1e-3, 1 - 1e-3)
    logit = torch.log(start / (1 - start))
    first_moment, second_moment = torch.zeros_like(logit), torch.zeros_like(logit)
    first_sharpness, last_sharpness = SHARPNESS
    for index in range(N_STEPS):
        sigmoid = torch.sigmoid(logit)
        soft = (sigmoid * (high - low) + low).clamp_(0, 1)
        codes = (floor + soft).clamp_(quantizer.quant_min, quantizer.quant_max)
        values = torch.where(free, codes * step, 0)
        slope = 2 * (values @ stored_moment - target) * step / unit
        done = index / N_STEPS
        if done >= WARMUP:
            left = 1 - (done - WARMUP) / (1 - WARMUP)
            sharpness = last_sharpness + (first_sharpness - last_sharpness) * left
            side = 2 * soft - 1
            slope -= 2 * WEIGHT * sharpness * side.abs().pow_(sharpness - 1) * side.sign()
        inside = (soft > 0) & (soft < 1)
        gradient = torch.where(inside, slope * sigmoid * (1 - sigmoid) * (high - low), 0)
        # Adam, written out: the gradient is known in closed form
        first_moment.lerp_(gradient, 1 - BETAS[0])
        second_moment.lerp_(gradient * gradient, 1 - BETAS[1])
        size = (second_moment / (1 - BETAS[1] ** (index + 1))).sqrt_().add_(1e-8)
        logit -= LEARNING_RATE / (1 - BETAS[0] ** (index + 1)) * first_moment / size
    up = torch.sigmoid(logit) * (high - low) + low >= 0.5
    chosen = torch.where(free, floor + up, floor)
    chosen = chosen.clamp(quantizer.quant_min, quantizer.quant_max)
    better = (error(chosen) < error(nearest)).unsqueeze(-1)
    codes = torch.where(better, chosen, nearest)
    other = (2 * floor + 1 - codes).clamp(quantizer.quant_min, quantizer.quant_max)
    other = torch.where(free & ((other - floor).abs() <= 1), other, codes)
    return _flipped(codes, other, step, stored_moment, target)


def _flipped(
    codes: Tensor, other: Tensor, step: Tensor, stored_moment: Tensor, target: Tensor
) -> Tensor:
    """Exchange, one at a time in every row, the code that helps most for its alternative.

    What the relaxation leaves is near an optimum, and seldom one: no single exchange improves what
    this returns.
    """
    codes, other = codes.clone(), other.clone()
    slope = (codes * step) @ stored_moment - target  # half of the error's
    diagonal = stored_moment.diagonal(dim1=1, dim2=2).unsqueeze(1)  # (groups, 1, terms)
    tiny = -1e-7 * ((codes * step) ** 2 * diagonal).sum(-1, keepdim=True)
    for _ in range(MOST_FLIPS * codes.shape[-1]):
        moves = (other - codes) * step
        gains = 2 * moves * slope + moves * moves * diagonal
        least, best = gains.min(-1, keepdim=True)  # (groups, outputs, 1)
        helps = least < tiny
        if not bool(helps.any()):
            break
        move = torch.where(helps, moves.gather(-1, best), 0)
        slope = slope + move * _row_of(stored_moment, best)
        here, there = codes.gather(-1, best), other.gather(-1, best)
        codes.scatter_(-1, best, torch.where(helps, there, here))
        other.scatter_(-1, best, torch.where(helps, here, there))
    return codes


def _row_of(moment: Tensor, index: Tensor) -> Tensor:
    """Return of (groups, terms, terms) the rows that (groups, outputs, 1) names."""
    return torch.stack([m[i.reshape(-1)] for m, i in zip(moment, index, strict=True)])


def _moments(layer: _Layer) -> tuple[Tensor, Tensor]:
    """Return the means of q q' and x q' over all positions of the calibration data."""
    stored_moment = mixed_moment = torch.zeros(())
    count = 0
    for exact, stored in zip(layer.exact, layer.stored, strict=True):
        x, q = (_terms(layer.node, value) for value in (exact, stored))  # (groups, rows, terms)
        every = -(-x.shape[1] * len(layer.exact) // MOST_ROWS)
        x, q = x[:, ::every], q[:, ::every]
        stored_moment = stored_moment + (q.transpose(1, 2) @ q).double()
        mixed_moment = mixed_moment + (x.transpose(1, 2) @ q).double()
        count += x.shape[1]
    return stored_moment / count, mixed_moment / count


def _groups(node: fx.Node) -> int:
    if node.target == aten.linear.default or len(node.args) <= 6:
        return 1
    groups = node.args[6]
    assert isinstance(groups, int)
    return groups


def _rows(node: fx.Node, weight: Tensor) -> Tensor:
    """Return a weight as (groups, outputs of a group, terms of an output)."""
    groups = _groups(node)
    if node.target == aten.conv_transpose2d.input:
        by_group = weight.reshape(groups, -1, *weight.shape[1:])  # (groups, in, out, h, w)
        return by_group.flip([3, 4]).transpose(1, 2).flatten(2)
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def _unrows(node: fx.Node, rows: Tensor, shape: torch.Size) -> Tensor:
    """Undo `_rows`."""
    if node.target != aten.conv_transpose2d.input:
        return rows.reshape(shape)
    groups = _groups(node)
    by_output = rows.reshape(groups, shape[1], shape[0] // groups, *shape[2:])
    return by_output.transpose(1, 2).flip([3, 4]).reshape(shape)


def _terms(node: fx.Node, x: Tensor) -> Tensor:
    """Return what the weights of an output are multiplied by, (groups, positions, terms)."""
    if node.target == aten.linear.default:
        return x.reshape(1, -1, x.shape[-1])
    groups = _groups(node)
    stride, padding, dilation = _geometry(node)
    kernel = _pair(operand(operand(node, 1), 0).meta["val"].shape[2:])
    if node.target == aten.conv_transpose2d.input:
        # A transposed convolution is one of the flipped kernel over an input with gaps.
        spread = x.new_zeros(
            *x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True))
        )
        spread[:, :, :: stride[0], :: stride[1]] = x
        around = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
        assert min(around) >= 0
        x, stride, padding = spread, (1, 1), _pair(around)
    columns = F.unfold(x, kernel, dilation, padding, stride)  # (n, channels * h * w, positions)
    n, _, positions = columns.shape
    grouped = columns.reshape(n, groups, -1, positions).permute(1, 0, 3, 2)
    return grouped.reshape(groups, n * positions, -1)


def _geometry(node: fx.Node) -> tuple[tuple[int, int], ...]:
    """Return stride, padding and dilation of a convolution."""
    is_transposed = node.target == aten.conv_transpose2d.input
    places = ((3, 1), (4, 0), (7 if is_transposed else 5, 1))
    return tuple(_pair(node.args[i] if len(node.args) > i else [least]) for i, least in places)


def _pair(value: Any) -> tuple[int, int]:
    first, *rest = value
    return int(first), int(rest[0] if rest else first)
