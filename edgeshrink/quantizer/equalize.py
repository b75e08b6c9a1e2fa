"""Cross-layer equalization: the same function with weights that are easier to store in 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, fx

from edgeshrink.quantizer.canonical import constant_of, operand
from edgeshrink.quantizer.fake_quantize import bias_of, weighted_nodes

aten = torch.ops.aten
MOST_ROUNDS: Final = 20
SETTLED: Final = 1e-3  # no factor farther from 1 than this: done
LARGEST_FACTOR: Final = 1e3  # of one pair in one round; a channel that is almost dead stays finite

# f(s * x) = s * f(x) for s > 0, channel by channel.
_HOMOGENEOUS: Final = {
    aten.relu.default, aten.leaky_relu.default, aten.max_pool2d.default, aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Two weighted layers of which the second alone reads the first's channels."""

    first: fx.Node
    second: fx.Node
    repeat: int  # inputs of the second per channel of the first: positions behind a flatten


def equalize_layers(graph_module: fx.GraphModule) -> int:
    """Scale channels between layers so that both use their range alike, in place.

    After Nagel et al. (Data-free quantization through weight equalization and bias correction,
    2019), section 4.1: channel i of the first layer is divided by s[i] and that input of the second
    multiplied by it, with s[i] = sqrt(r1[i] / r2[i]) of their largest weights. Between them may
    stand what is positively homogeneous (ReLU, pools; not ReLU6). Every output stays the same in
    real arithmetic, and zeros stay zeros.

    Returns:
        How many pairs of layers were equalized.
    """
    pairs = _pairs(graph_module)
    for _ in range(MOST_ROUNDS):
        farthest = 0.0
        for pair in pairs:
            farthest = max(farthest, _equalize(graph_module, pair))
        if farthest < SETTLED:
            break
    return len(pairs)


def _pairs(graph_module: fx.GraphModule) -> list[_Pair]:
    found = []
    weighted = weighted_nodes(graph_module)
    for first in weighted:
        if not _owns_constants(graph_module, first) or _interleaves(first):
            continue
        channel_axis = first.meta["val"].dim() - 1 if first.target == aten.linear.default else 1
        node, repeat = first, 1
        while len(node.users) == 1:
            (user,) = node.users
            if user in weighted:
                reads = user.args[0] is node
                in_axis = user.meta["val"].dim() - 1 if user.target == aten.linear.default else 1
                if reads and in_axis == channel_axis and _owns_constants(graph_module, user):
                    found.append(_Pair(first=first, second=user, repeat=repeat))
                break
            behind = _passes(user, channel_axis)
            if behind is None:
                break
            node, repeat = user, repeat * behind
    return found


def _interleaves(node: fx.Node) -> bool:
    """Say whether output channels do not lie one after the other in the weight."""
    grouped = len(node.args) > 6 and node.args[6] != 1
    return bool(node.target == aten.conv_transpose2d.input and grouped)


def _owns_constants(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether weight and bias are constants that nobody else reads."""
    constants = [node.args[1], bias_of(node)]
    return all(
        constant_of(graph_module, c) is not None and len(c.users) == 1
        for c in constants
        if isinstance(c, fx.Node)
    )


def _passes(node: fx.Node, channel_axis: int) -> int | None:
    """Return by how much `node` multiplies the values of a channel in place; None: not a pass."""
    if node.op != "call_function":
        return None
    if node.target in _HOMOGENEOUS:
        return 1
    before, after = operand(node, 0).meta["val"].shape, node.meta["val"].shape
    if node.target == aten.constant_pad_nd.default:
        is_zero = len(node.args) < 3 or node.args[2] == 0
        return 1 if is_zero and before[channel_axis] == after[channel_axis] else None
    if node.target == aten.slice.Tensor:
        return 1 if node.args[1] != channel_axis else None
    if node.target == aten.reshape.default and channel_axis == 1:
        if len(after) == 2 and before[0] == after[0]:
            return int(after[1] // before[1])  # a flatten: positions of a channel side by side
        if len(after) > 2 and before[:2] == after[:2]:
            return 1
    return None


def _equalize(graph_module: fx.GraphModule, pair: _Pair) -> float:
    """Scale one pair; return how far from 1 the factors were."""
    weight = constant_of(graph_module, pair.first.args[1])
    bias = constant_of(graph_module, bias_of(pair.first))
    after = constant_of(graph_module, pair.second.args[1])
    assert weight is not None
    assert after is not None
    axis = 1 if pair.first.target == aten.conv_transpose2d.input else 0
    others = [d for d in range(weight.dim()) if d != axis]
    first_range = weight.abs().amax(others).double()  # (channels,)
    second_range = _input_ranges(pair.second, after).reshape(len(first_range), -1).amax(1)
    alive = (first_range > 0) & (second_range > 0)
    factor = torch.ones_like(first_range)
    factor[alive] = torch.sqrt(first_range[alive] / second_range[alive])
    factor.clamp_(1 / LARGEST_FACTOR, LARGEST_FACTOR)
    shape = [-1 if d == axis else 1 for d in range(weight.dim())]
    weight.copy_(weight.double() / factor.reshape(shape))
    if bias is not None:
        bias.copy_(bias.double() / factor)
    _scale_inputs(pair.second, after, factor.repeat_interleave(pair.repeat))
    return float((factor - 1).abs().max())


def _by_input(node: fx.Node, weight: Tensor) -> Tensor:
    """Return a view of `weight` as (groups, outputs, inputs of a group, positions)."""
    if node.target == aten.linear.default:
        return weight.reshape(1, *weight.shape, 1)
    groups = int(node.args[6]) if len(node.args) > 6 else 1  # type: ignore[arg-type]
    if node.target == aten.conv_transpose2d.input:
        n_in, n_out = weight.shape[:2]
        return weight.reshape(groups, n_in // groups, n_out, -1).transpose(1, 2)
    n_out, n_in = weight.shape[:2]
    return weight.reshape(groups, n_out // groups, n_in, -1)


def _input_ranges(node: fx.Node, weight: Tensor) -> Tensor:
    return _by_input(node, weight).abs().amax((1, 3)).reshape(-1).double()  # (inputs,)


def _scale_inputs(node: fx.Node, weight: Tensor, factor: Tensor) -> None:
    view = _by_input(node, weight)
    assert view.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()
    groups, _, n_in, _ = view.shape
    view.copy_(view.double() * factor.reshape(groups, 1, n_in, 1))
