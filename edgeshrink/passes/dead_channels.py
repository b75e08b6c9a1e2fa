"""Channels that are constant, or that nobody reads, are removed from producer to consumer.

The last axis of an int8 activation holds its channels. Operators that work channel by channel
(depthwise convolution, addition, pools, tables, concatenation, …) tie channels of their inputs and
outputs together: such a group can only go as a whole. A convolution or fully connected layer ties
nothing: it can lose any output channel, and any input channel it can do without. That is one

- whose weights are all zero, for the outputs that remain; or
- whose value is always the same: its share of each sum is a constant, which goes into the bias.
  With padding this holds only where the value is the zero point, which adds nothing to a sum,
  since beside the border there is nothing instead of the value.

A channel is constant where its filter is zero, or is non-zero only for constant channels.
Nothing else is changed: the remaining channels keep weights, scales and every value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeshrink.graph import Graph, Op, Quantization, Tensor
from edgeshrink.passes.fixed_point import (
    INT32_MAX,
    Ints,
    activation_range,
    constant_of,
    multiply,
    output_multipliers,
    scale_of,
    wrap,
    zero_of,
)
from edgeshrink.passes.mean_pool import mean_of
from edgeshrink.passes.padding import conv_padding
from edgeshrink.passes.pointwise import apply_table, binary, is_pointwise, pointwise_table
from edgeshrink.passes.rewrite import constant_input, new_tensor, rebuilt, selected, with_options

Bools = npt.NDArray[np.bool_]

WEIGHTED: Final = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
POOLS: Final = ("AVERAGE_POOL_2D", "MAX_POOL_2D")
REDUCTIONS: Final = ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN")
RESIZES: Final = ("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR")
VIEWS: Final = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")
ELEMENTWISE: Final = ("ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM", "PRELU")


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A layer that ends and begins channels: its weights seen as (outputs, inputs, taps)."""

    weights: Ints
    bias: Ints  # (outputs,)
    is_padded: bool
    repeats: int  # columns of a fully connected layer that belong to one channel


@dataclass(frozen=True, kw_only=True)
class _Constants:
    """Of every channel of a tensor: whether its value never changes, and that value."""

    is_known: Bools
    values: Ints


def remove_dead_channels(graph: Graph) -> Graph:
    """Return the graph without channels that change nothing; outputs keep every bit.

    Inputs and outputs of the model keep all their channels, and every tensor keeps at least one.
    """
    analysis = _Analysis(graph)
    held: set[int] = set()  # groups that must stay, found while trying
    while True:
        gone = analysis.removable(held)
        if not gone.any():
            return graph
        more = analysis.must_stay(gone)
        if not more:
            return _without(graph, analysis, gone)
        held |= more


class _Analysis:
    """What is known of a graph's channels; `nodes` numbers all channels of all tensors."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.first: dict[int, int] = {}  # tensor -> number of its first channel
        n_nodes = 0
        for tensor in graph.tensors:
            if tensor.data is None and tensor.shape:
                self.first[tensor.index] = n_nodes
                n_nodes += tensor.shape[-1]
        self.parents = np.arange(n_nodes)
        blocked = np.zeros(n_nodes, np.bool_)
        self.layers: dict[int, _Layer] = {}
        for op in graph.ops:
            layer = _layer_of(graph, op)
            if layer is not None:
                self.layers[op.index] = layer
            elif not self._tie(op):
                for index in (*op.inputs, *op.outputs):
                    blocked[self.channels(index)] = True
        for index in (*graph.inputs, *graph.outputs):
            blocked[self.channels(index)] = True
        for tensor in graph.tensors:
            if tensor.is_variable:
                blocked[self.channels(tensor.index)] = True
        self.groups = np.array([self._root(node) for node in range(n_nodes)], np.int64)
        self.blocked = np.zeros(n_nodes, np.bool_)  # by group
        self.blocked[self.groups[blocked]] = True
        self.constants = _constants(graph, self.layers)

    def channels(self, index: int) -> slice:
        """Return the nodes of a tensor; none for an absent or constant one."""
        if index not in self.first:
            return slice(0, 0)
        return slice(self.first[index], self.first[index] + self.graph.tensors[index].shape[-1])

    def _root(self, node: int) -> int:
        while self.parents[node] != node:
            self.parents[node] = self.parents[self.parents[node]]
            node = int(self.parents[node])
        return node

    def _join(self, a: slice, b: slice) -> None:
        for left, right in zip(range(a.start, a.stop), range(b.start, b.stop), strict=True):
            self.parents[self._root(left)] = self._root(right)

    def _tie(self, op: Op) -> bool:
        """Tie the channels of an operator that works channel by channel; False for any other."""
        parts = _parts(self.graph, op)
        if parts is None:
            return False
        y = self.channels(op.outputs[0])
        for index, part in parts:
            x = self.channels(index)
            if self.graph.tensors[index].data is None:
                self._join(x, slice(y.start + part.start, y.start + part.stop))
        if op.kind == "DEPTHWISE_CONV_2D":
            x = self.channels(op.inputs[0])
            times = (y.stop - y.start) // (x.stop - x.start)
            for channel in range(x.stop - x.start):
                for copy in range(times):
                    node = y.start + channel * times + copy
                    self._join(
                        slice(node, node + 1), slice(x.start + channel, x.start + channel + 1)
                    )
        return True

    def gone_of(self, gone: Bools, index: int) -> Bools:
        """Return which channels of a tensor go; `gone` is by group."""
        found: Bools = gone[self.groups[self.channels(index)]]
        return found

    def removable(self, held: set[int]) -> Bools:
        """Return, by group, what no layer needs any more; the largest such set."""
        candidates = np.zeros(len(self.groups), np.bool_)
        candidates[self.groups] = True
        candidates &= ~self.blocked
        candidates[list(held)] = False
        # From none: a channel goes when all its readers can do without it. More readers' outputs
        # gone only makes this easier, so repeating this ends in the one largest set.
        gone = np.zeros_like(candidates)
        while True:
            needed = np.zeros_like(candidates)
            for op in self.graph.ops:
                if op.index in self.layers:
                    needs = self._needs(op, self.gone_of(gone, op.outputs[0]))
                    needed[self.groups[self.channels(op.inputs[0])][needs]] = True
            now = candidates & ~needed
            if np.array_equal(now, gone):
                return gone
            gone = now

    def _needs(self, op: Op, gone_outputs: Bools) -> Bools:
        """Return which input channels a layer can't do without."""
        layer = self.layers[op.index]
        is_read = (layer.weights[~gone_outputs] != 0).any(axis=(0, 2))
        is_foldable = self._shares(op)[0]
        needs: Bools = is_read & ~is_foldable
        return needs

    def _shares(self, op: Op) -> tuple[Bools, Ints]:
        """Return which input channels have a constant share in each sum, and their offsets."""
        constants = self.constants[op.inputs[0]]
        offsets = constants.values - zero_of(self.graph.tensors[op.inputs[0]])
        is_foldable = constants.is_known
        if self.layers[op.index].is_padded:
            is_foldable = is_foldable & (offsets == 0)
        return is_foldable, np.where(is_foldable, offsets, 0)

    def folded_bias(self, op: Op, gone: Bools) -> Ints:
        """Return the bias of all outputs with the shares of the channels that go."""
        layer = self.layers[op.index]
        offsets = np.where(self.gone_of(gone, op.inputs[0]), self._shares(op)[1], 0)
        folded: Ints = layer.bias + layer.weights.sum(axis=2) @ offsets
        return folded

    def must_stay(self, gone: Bools) -> set[int]:
        """Return groups that can't go after all: the last of a tensor, or too much for a bias."""
        stay: set[int] = set()
        for index in self.first:
            going = self.gone_of(gone, index)
            groups = self.groups[self.channels(index)]
            if len(going) and going.all():
                stay.add(int(groups[0]))
        for op in self.graph.ops:
            if op.index not in self.layers:
                continue
            layer, kept = self.layers[op.index], ~self.gone_of(gone, op.outputs[0])
            bias = self.folded_bias(op, gone)
            reach = np.abs(bias) + 255 * np.abs(layer.weights).sum(axis=(1, 2))
            if (bias != layer.bias)[kept].any() and (reach[kept] > INT32_MAX).any():
                going = self.gone_of(gone, op.inputs[0]) & (self._shares(op)[1] != 0)
                stay |= {int(g) for g in self.groups[self.channels(op.inputs[0])][going]}
        return stay


def _layer_of(graph: Graph, op: Op) -> _Layer | None:
    """Return a convolution or fully connected layer in int8; None for another operator."""
    if not _is_int8_layer(graph, op):
        return None
    x, w, y = (graph.tensors[i] for i in (op.inputs[0], op.inputs[1], op.outputs[0]))
    values = constant_of(w)
    assert values is not None
    weights, repeats = values.astype(np.int64), 1
    n_channels = x.shape[-1]
    if op.kind == "CONV_2D":
        if w.shape[3] != n_channels:
            return None  # grouped
        weights = weights.reshape(w.shape[0], -1, n_channels).transpose(0, 2, 1)
    elif op.kind == "DEPTHWISE_CONV_2D":
        if n_channels != 1:
            return None  # ties channels
        weights = weights.reshape(-1, w.shape[3]).T[:, np.newaxis]
    else:
        repeats = w.shape[1] // max(1, n_channels)
        if repeats * n_channels != w.shape[1]:
            return None
        weights = weights.reshape(w.shape[0], repeats, n_channels).transpose(0, 2, 1)
    if weights.shape[0] != y.shape[-1]:
        return None
    is_padded = op.kind != "FULLY_CONNECTED" and any(conv_padding(graph, op))
    bias = constant_input(graph, op, 2)
    shares = np.zeros(weights.shape[0], np.int64) if bias is None else bias.astype(np.int64)
    return _Layer(weights=weights, bias=shares, is_padded=is_padded, repeats=repeats)


def _is_int8_layer(graph: Graph, op: Op) -> bool:
    """Return whether a layer with weights is int8 with constant weights and an int32 bias."""
    if op.is_custom or op.kind not in WEIGHTED or len(op.outputs) != 1 or len(op.inputs) < 2:
        return False
    x, w, y = (graph.tensors[i] for i in (op.inputs[0], op.inputs[1], op.outputs[0]))
    if (x.dtype, w.dtype, y.dtype) != ("int8", "int8", "int8") or constant_of(w) is None:
        return False
    if len(w.shape) != (2 if op.kind == "FULLY_CONNECTED" else 4) or not x.shape or not y.shape:
        return False
    if op.kind != "FULLY_CONNECTED" and len(x.shape) != 4:
        return False
    if w.quantization is None or w.quantization.zero_points.any() or x.data is not None:
        return False
    if len(op.inputs) > 2 and op.inputs[2] >= 0:
        bias = graph.tensors[op.inputs[2]]
        if constant_of(bias) is None or bias.dtype != "int32" or bias.shape != (y.shape[-1],):
            return False
    return output_multipliers(x, w, y) is not None and _limits(op, y) is not None


def _limits(op: Op, y: Tensor) -> tuple[int, int] | None:
    return activation_range(op.options.get("activation", "NONE"), y)


def _parts(graph: Graph, op: Op) -> list[tuple[int, slice]] | None:
    """Return which channels of the output those of each input are tied to; None if to none.

    Constants are there where they have a value for each channel.
    """
    if op.is_custom or len(op.outputs) != 1 or not op.inputs or op.inputs[0] < 0:
        return None
    x, y = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
    if not x.shape or not y.shape:
        return None
    n_channels = y.shape[-1]
    every = slice(0, n_channels)
    if op.kind == "DEPTHWISE_CONV_2D":
        if not _is_int8_layer(graph, op) or n_channels % max(1, x.shape[-1]):
            return None
        return []
    if op.kind == "CONCATENATION":
        return _parts_of_concatenation(graph, op)
    if op.kind in ELEMENTWISE:
        parts = []
        for index in op.inputs:
            tensor = graph.tensors[index]
            if tensor.dtype != "int8":
                return None
            if tensor.shape and tensor.shape[-1] == n_channels:
                if tensor.data is None or n_channels > 1:
                    parts.append((index, every))
            elif tensor.data is None:
                return None  # one channel for all
        return parts
    if x.data is not None or x.shape[-1] != n_channels or x.dtype != y.dtype:
        return None
    if is_pointwise(graph, op) or op.kind in (*POOLS, *RESIZES, *VIEWS):
        return [(x.index, every)]
    if op.kind in REDUCTIONS:
        axes = constant_input(graph, op, 1)
        last = len(x.shape) - 1
        if axes is None or any(int(axis) % len(x.shape) == last for axis in axes.reshape(-1)):
            return None
        return [(x.index, every)]
    if op.kind in ("PAD", "PADV2"):
        amounts = constant_input(graph, op, 1)
        return None if amounts is None or amounts[-1].any() else [(x.index, every)]
    return None


def _parts_of_concatenation(graph: Graph, op: Op) -> list[tuple[int, slice]] | None:
    y = graph.tensors[op.outputs[0]]
    axis = op.options["axis"] % len(y.shape)
    if axis != len(y.shape) - 1:
        return [(index, slice(0, y.shape[-1])) for index in op.inputs]
    parts, first = [], 0
    for index in op.inputs:
        size = graph.tensors[index].shape[-1]
        parts.append((index, slice(first, first + size)))
        first += size
    return parts


# --- Which channels are constant -----------------------------------------------------------------


def _constants(graph: Graph, layers: Mapping[int, _Layer]) -> dict[int, _Constants]:
    """Return of every tensor with channels which of them have one value, whatever the input is."""
    found: dict[int, _Constants] = {}
    for tensor in graph.tensors:
        if not tensor.shape:
            continue
        size = tensor.shape[-1]
        found[tensor.index] = _Constants(
            is_known=np.zeros(size, np.bool_), values=np.zeros(size, np.int64)
        )
        values = constant_of(tensor)
        if values is not None and tensor.dtype == "int8" and values.size:
            rows = values.reshape(-1, size).astype(np.int64)
            found[tensor.index] = _Constants(is_known=(rows == rows[0]).all(axis=0), values=rows[0])
    for op in graph.ops:
        if len(op.outputs) == 1 and op.outputs[0] in found:
            constants = _constants_of(graph, op, layers.get(op.index), found)
            if constants is not None:
                found[op.outputs[0]] = constants
    return found


def _constants_of(
    graph: Graph, op: Op, layer: _Layer | None, found: Mapping[int, _Constants]
) -> _Constants | None:
    """Return the constant channels of an operator's output."""
    y = graph.tensors[op.outputs[0]]
    if layer is not None:
        return _constants_of_layer(graph, op, layer, found[op.inputs[0]])
    parts = _parts(graph, op)
    if parts is None:
        return None
    if op.kind == "DEPTHWISE_CONV_2D":
        return _constants_of_depthwise(graph, op, found[op.inputs[0]])
    x = found.get(op.inputs[0])
    if x is None:
        return None
    if op.kind == "CONCATENATION":
        return _constants_of_concatenation(graph, op, parts, found)
    if op.kind in ("ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM"):
        return _constants_of_elementwise(graph, op, found)
    if is_pointwise(graph, op):
        table = pointwise_table(graph, op)
        values = apply_table(table, x.values.astype(np.int8)).astype(np.int64)
        return _Constants(is_known=x.is_known, values=values)
    if op.kind in POOLS:
        limits = _limits(op, y)
        if limits is None or y.dtype != "int8":
            return None
        return _Constants(is_known=x.is_known, values=np.clip(x.values, *limits))
    if op.kind in VIEWS:
        return x
    if op.kind == "MEAN":
        source = graph.tensors[op.inputs[0]]
        if scale_of(source) is None or scale_of(y) is None or y.dtype != "int8":
            return None
        count = int(np.prod(source.shape)) // max(1, int(np.prod(y.shape)))
        values = mean_of(x.values * count, count, source, y)
        return _Constants(is_known=x.is_known, values=values)
    if op.kind in ("PAD", "PADV2"):
        fill = constant_input(graph, op, 2) if op.kind == "PADV2" else None
        if y.dtype != "int8" or (op.kind == "PADV2" and fill is None):
            return None
        written = zero_of(y) if fill is None else int(fill.flat[0])
        return _Constants(is_known=x.is_known & (x.values == written), values=x.values)
    return None


def _constants_of_layer(graph: Graph, op: Op, layer: _Layer, x: _Constants) -> _Constants:
    source = graph.tensors[op.inputs[0]]
    offsets = x.values - zero_of(source)
    usable = x.is_known & ((offsets == 0) | (not layer.is_padded))
    is_zero = (layer.weights == 0).all(axis=2)
    sums = layer.bias + layer.weights.sum(axis=2) @ np.where(usable, offsets, 0)
    return _Constants(is_known=(is_zero | usable).all(axis=1), values=_requantized(graph, op, sums))


def _constants_of_depthwise(graph: Graph, op: Op, x: _Constants) -> _Constants:
    source, w = graph.tensors[op.inputs[0]], constant_input(graph, op, 1)
    assert w is not None
    bias = constant_input(graph, op, 2)
    times = w.shape[3] // source.shape[3]
    offsets = np.repeat(x.values - zero_of(source), times)
    usable = np.repeat(x.is_known, times) & ((offsets == 0) | (not any(conv_padding(graph, op))))
    weights = w.astype(np.int64).reshape(-1, w.shape[3])
    sums = weights.sum(axis=0) * np.where(usable, offsets, 0)
    sums = sums + (0 if bias is None else bias.astype(np.int64))
    is_known = (weights == 0).all(axis=0) | usable
    return _Constants(is_known=is_known, values=_requantized(graph, op, sums))


def _requantized(graph: Graph, op: Op, sums: Ints) -> Ints:
    """Return the outputs for sums (channels,)."""
    x, w, y = (graph.tensors[i] for i in (op.inputs[0], op.inputs[1], op.outputs[0]))
    factors, limits = output_multipliers(x, w, y), _limits(op, y)
    assert factors is not None
    assert limits is not None
    factors = factors * (len(sums) if len(factors) == 1 else 1)
    stored = [int(multiply(wrap(sums[i : i + 1]), factor)[0]) for i, factor in enumerate(factors)]
    return np.clip(np.array(stored, np.int64) + zero_of(y), *limits)


def _constants_of_concatenation(
    graph: Graph, op: Op, parts: Sequence[tuple[int, slice]], found: Mapping[int, _Constants]
) -> _Constants:
    inputs = [found[index] for index, _ in parts]
    y = graph.tensors[op.outputs[0]]
    if op.options["axis"] % len(y.shape) == len(y.shape) - 1:
        return _Constants(
            is_known=np.concatenate([x.is_known for x in inputs]),
            values=np.concatenate([x.values for x in inputs]),
        )
    first = inputs[0]
    alike = [x.is_known & (x.values == first.values) for x in inputs]
    return _Constants(is_known=np.logical_and.reduce(alike), values=first.values)


def _constants_of_elementwise(
    graph: Graph, op: Op, found: Mapping[int, _Constants]
) -> _Constants | None:
    y, tensors = graph.tensors[op.outputs[0]], [graph.tensors[i] for i in op.inputs]
    if len(tensors) != 2 or y.dtype != "int8" or _limits(op, y) is None:
        return None
    if any(scale_of(tensor) is None for tensor in (*tensors, y)):
        return None
    known, values = [], []
    for tensor in tensors:
        if tensor.index not in found:
            return None
        constants = found[tensor.index]
        known.append(np.broadcast_to(constants.is_known, (y.shape[-1],)))
        values.append(np.broadcast_to(constants.values, (y.shape[-1],)))
    result = binary(op, (tensors[0], tensors[1]), (values[0], values[1]), y)
    return _Constants(is_known=known[0] & known[1], values=result)


# --- Taking channels out --------------------------------------------------------------------------


def _without(graph: Graph, analysis: _Analysis, gone: Bools) -> Graph:
    """Return the graph without the channels of the groups that are `gone`."""
    tensors: list[Tensor] = list(graph.tensors)
    kept: dict[int, Ints] = {}  # tensor -> channels that stay, where some go
    for index in analysis.first:
        going = analysis.gone_of(gone, index)
        if going.any():
            kept[index] = np.flatnonzero(~going)
            cut = selected(tensors[index], {len(tensors[index].shape) - 1: kept[index]})
            tensors[index] = replace(tensors[index], **cut)
    ops = []
    for op in graph.ops:
        if op.index in analysis.layers:
            op = _cut_layer(op, analysis, gone, kept, tensors)
        elif any(index in kept for index in (*op.inputs, *op.outputs)):
            op = _cut_tied(graph, op, kept, tensors)
        ops.append(op)
    return rebuilt(graph, ops, tensors)


def _cut(tensors: list[Tensor], index: int, axes: Mapping[int, Ints | None]) -> int:
    """Append a constant cut to some indices of its axes; None stands for all of them."""
    chosen = {axis: indices for axis, indices in axes.items() if indices is not None}
    if not chosen:
        return index
    return new_tensor(tensors, tensors[index], **selected(tensors[index], chosen))


def _cut_layer(
    op: Op, analysis: _Analysis, gone: Bools, kept: Mapping[int, Ints], tensors: list[Tensor]
) -> Op:
    ins, outs = kept.get(op.inputs[0]), kept.get(op.outputs[0])
    if ins is None and outs is None:
        return op
    layer, weights = analysis.layers[op.index], op.inputs[1]
    bias = _new_bias(op, analysis, gone, tensors)
    if op.kind == "CONV_2D":
        weights = _cut(tensors, weights, {0: outs, 3: ins})
    elif op.kind == "FULLY_CONNECTED":
        columns = None
        if ins is not None:
            n_channels = layer.weights.shape[1]
            columns = (np.arange(layer.repeats)[:, np.newaxis] * n_channels + ins).reshape(-1)
        weights = _cut(tensors, weights, {0: outs, 1: columns})
    elif outs is not None:  # a depthwise convolution of one input channel
        weights = _cut(tensors, weights, {3: outs})
        if "depth_multiplier" in op.options:
            op = with_options(op, depth_multiplier=len(outs))
    if bias >= 0:
        bias = _cut(tensors, bias, {0: outs})
    return replace(op, inputs=(op.inputs[0], weights, bias))


def _new_bias(op: Op, analysis: _Analysis, gone: Bools, tensors: list[Tensor]) -> int:
    """Return the tensor of a layer's bias, a new one where channels that go leave a share in it."""
    old = op.inputs[2] if len(op.inputs) > 2 else -1
    values = analysis.folded_bias(op, gone)
    kept = ~analysis.gone_of(gone, op.outputs[0])
    if not (values != analysis.layers[op.index].bias)[kept].any():
        return old
    data = wrap(values).astype(np.int32)  # only outputs that go can be out of range
    if old >= 0:
        return new_tensor(tensors, tensors[old], data=data)
    x, w = (analysis.graph.tensors[i] for i in op.inputs[:2])
    scale = scale_of(x)
    assert scale is not None
    assert w.quantization is not None
    scales = (scale * w.quantization.scales).astype(np.float32)
    quantization = Quantization(scales=scales, zero_points=np.zeros(scales.size, np.int64))
    tensors.append(
        Tensor(
            index=len(tensors),
            name=f"{w.name}_bias",
            shape=(len(data),),
            dtype="int32",
            quantization=quantization,
            data=data,
        )
    )
    return len(tensors) - 1


def _cut_tied(graph: Graph, op: Op, kept: Mapping[int, Ints], tensors: list[Tensor]) -> Op:
    """Cut the constants of an operator that works channel by channel, and its shape."""
    outs = kept.get(op.outputs[0])
    if op.kind == "DEPTHWISE_CONV_2D":
        weights = _cut(tensors, op.inputs[1], {3: outs})
        rest = op.inputs[2:]
        if rest and rest[0] >= 0:
            rest = (_cut(tensors, rest[0], {0: outs}), *rest[1:])
        return replace(op, inputs=(op.inputs[0], weights, *rest))
    if op.kind == "RESHAPE":
        shape = tensors[op.outputs[0]].shape
        return replace(op, inputs=op.inputs[:1], options={"new_shape": shape})
    parts = _parts(graph, op)
    assert parts is not None
    if outs is None:
        return op
    inputs = list(op.inputs)
    for position, index in enumerate(op.inputs):
        part = next((part for tied, part in parts if tied == index), None)
        if part is None or graph.tensors[index].data is None:
            continue
        mine = outs[(outs >= part.start) & (outs < part.stop)] - part.start
        inputs[position] = _cut(tensors, index, {len(graph.tensors[index].shape) - 1: mine})
    return replace(op, inputs=tuple(inputs))
