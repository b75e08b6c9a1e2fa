"""A PAD in front of a convolution becomes the convolution's own padding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgeshrink.graph import Graph, Op
from edgeshrink.passes.fixed_point import has_same_quantization, zero_of
from edgeshrink.passes.padding import EXPLICIT, conv_padding, window_of
from edgeshrink.passes.rewrite import (
    constant_input,
    consumers,
    is_internal,
    producers,
    rebuilt,
    with_options,
)

Padding = tuple[int, int, int, int]


def fold_pad(graph: Graph) -> Graph:
    """Return the graph with PAD and PADV2 folded into the convolutions that read them.

    Such a convolution has the padding EXPLICIT and the option `explicit_padding`: (top, bottom,
    left, right). It is exact where what the PAD writes is the zero point, which adds nothing to a
    sum. A MAX_POOL_2D takes over a PAD of the lowest value, if every window sees the input.
    AVERAGE_POOL_2D never does: it counts what a PAD writes, but not its own padding.
    """
    makers, readers = producers(graph.ops), consumers(graph.ops)
    foldable: dict[int, Padding] = {}
    for op in graph.ops:
        amounts = _amounts(graph, op)
        y = op.outputs[0] if op.outputs else -1
        if amounts is None or not is_internal(graph, y):
            continue
        if all(_takes(graph, op, amounts, reader) for reader in readers.get(y, ())):
            foldable[y] = amounts
    if not foldable:
        return graph
    ops = []
    for op in graph.ops:
        if op.inputs and op.inputs[0] in foldable:
            own, more = conv_padding(graph, op), foldable[op.inputs[0]]
            total = tuple(a + b for a, b in zip(own, more, strict=True))
            source = makers[op.inputs[0]].inputs[0]
            op = with_options(op, padding=EXPLICIT, explicit_padding=total)
            op = replace(op, inputs=(source, *op.inputs[1:]))
        ops.append(op)
    return rebuilt(graph, ops)


def _amounts(graph: Graph, op: Op) -> Padding | None:
    """Return (top, bottom, left, right) of a PAD of rows and columns; None for any other op."""
    if op.is_custom or op.kind not in ("PAD", "PADV2"):
        return None
    amounts = constant_input(graph, op, 1)
    if amounts is None or amounts.shape != (4, 2) or (amounts < 0).any():
        return None
    if amounts[0].any() or amounts[3].any():
        return None
    if graph.tensors[op.inputs[0]].is_variable:
        return None
    (top, bottom), (left, right) = amounts[1:3].tolist()
    return top, bottom, left, right


def _takes(graph: Graph, pad: Op, amounts: Padding, reader: Op) -> bool:
    """Return whether `reader` gives the same with the PAD as its own padding."""
    x, y = graph.tensors[pad.inputs[0]], graph.tensors[pad.outputs[0]]
    if reader.is_custom or y.dtype != "int8" or not has_same_quantization(x, y):
        return False
    if y.quantization is None or reader.inputs.count(y.index) != 1 or reader.inputs[0] != y.index:
        return False
    written = zero_of(y)
    if pad.kind == "PADV2":
        value = constant_input(graph, pad, 2)
        if value is None or value.size != 1:
            return False
        written = int(value.flat[0])
    if reader.kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        return written == zero_of(y)
    if reader.kind == "MAX_POOL_2D":
        own = conv_padding(graph, reader)
        return written == -128 and _every_window_sees(graph, reader, x.shape[1:3], amounts, own)
    return False


def _every_window_sees(
    graph: Graph, op: Op, sizes: tuple[int, ...], amounts: Padding, own: Padding
) -> bool:
    """Return whether each window of a pool holds a row and a column of the unpadded input."""
    window = window_of(graph, op)
    out = graph.tensors[op.outputs[0]].shape[1:3]
    for axis, stride in enumerate((op.options["stride_h"], op.options["stride_w"])):
        before = amounts[2 * axis] + own[2 * axis]
        first = np.arange(out[axis]) * stride - before
        if ((first >= sizes[axis]) | (first + window[axis] <= 0)).any():
            return False
    return True
