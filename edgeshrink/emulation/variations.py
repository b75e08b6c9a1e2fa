"""Graphs of a single operator, and the same one with other channels, positions or types.

A cost model prices them like any graph, so what a change would save can be asked instead of
guessed. Constants have shapes and no values that mean anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeshrink.graph import Graph, Op, Quantization, Tensor

# Operators whose channels can be changed, and which axes of their weights are (out, in).
CONVOLUTIONS: Final = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
SPATIAL: Final = ("CONV_2D", "DEPTHWISE_CONV_2D", "AVERAGE_POOL_2D", "MAX_POOL_2D")
_WEIGHTS, _BIAS = 1, 2

Shape = tuple[int, ...]
Price = Callable[[Graph], float]


def single(graph: Graph, op: Op) -> Graph:
    """Return a graph of `op` alone: its inputs that change are the graph's."""
    used = list(dict.fromkeys(i for i in (*op.inputs, *op.outputs) if i >= 0))
    places = {old: new for new, old in enumerate(used)}
    tensors = tuple(replace(graph.tensors[old], index=new) for old, new in places.items())
    alone = replace(
        op,
        index=0,
        inputs=tuple(places.get(i, -1) for i in op.inputs),
        outputs=tuple(places[i] for i in op.outputs if i >= 0),
    )
    inputs = (i for i in alone.inputs if i >= 0)
    return Graph(
        name=graph.name,
        tensors=tensors,
        ops=(alone,),
        inputs=tuple(dict.fromkeys(i for i in inputs if tensors[i].data is None)),
        outputs=alone.outputs,
        subgraphs=graph.subgraphs,
    )


def out_channels(graph: Graph) -> int | None:
    """Return how many channels the one operator of `graph` gives; None where that says nothing."""
    op = graph.ops[0]
    if op.kind not in CONVOLUTIONS or not graph.tensors[op.outputs[0]].shape:
        return None
    return graph.tensors[op.outputs[0]].shape[-1]


def in_channels(graph: Graph) -> int | None:
    """Return how many channels the one operator of `graph` reads, where that can be changed."""
    op = graph.ops[0]
    if op.kind == "DEPTHWISE_CONV_2D" or out_channels(graph) is None:
        return None
    x, weights = (graph.tensors[i] for i in op.inputs[:2])
    if not x.shape or x.shape[-1] != weights.shape[-1]:  # grouped, or flattened on the way
        return None
    return x.shape[-1]


def with_out_channels(graph: Graph, n: int) -> Graph:
    """Return the operator with `n` channels out; a depthwise one with as many in."""
    op = graph.ops[0]
    y = graph.tensors[op.outputs[0]].shape
    changes = {op.outputs[0]: (*y[:-1], n)}
    weights = graph.tensors[op.inputs[_WEIGHTS]].shape
    if op.kind == "DEPTHWISE_CONV_2D":
        changes[op.inputs[_WEIGHTS]] = (*weights[:-1], n)
        x = graph.tensors[op.inputs[0]].shape
        multiplier = max(1, y[-1] // max(1, x[-1]))
        changes[op.inputs[0]] = (*x[:-1], max(1, n // multiplier))
    else:
        changes[op.inputs[_WEIGHTS]] = (n, *weights[1:])
    if len(op.inputs) > _BIAS and op.inputs[_BIAS] >= 0:
        changes[op.inputs[_BIAS]] = (n,)
    return reshaped(graph, changes)


def with_in_channels(graph: Graph, n: int) -> Graph:
    """Return a convolution or fully connected operator that reads `n` channels."""
    op = graph.ops[0]
    x, weights = (graph.tensors[i].shape for i in op.inputs[:2])
    return reshaped(graph, {op.inputs[0]: (*x[:-1], n), op.inputs[_WEIGHTS]: (*weights[:-1], n)})


def at_half_size(graph: Graph) -> Graph | None:
    """Return the operator on a map of half the height and width; None where it has no map."""
    op = graph.ops[0]
    shapes = {i: graph.tensors[i].shape for i in (op.inputs[0], op.outputs[0]) if i >= 0}
    if op.kind not in SPATIAL or any(len(shape) != 4 for shape in shapes.values()):
        return None
    y = shapes[op.outputs[0]]
    if min(y[1:3]) < 4:
        return None
    return reshaped(
        graph, {i: (s[0], (s[1] + 1) // 2, (s[2] + 1) // 2, s[3]) for i, s in shapes.items()}
    )


def with_window(graph: Graph, size: int) -> Graph | None:
    """Return a convolution with a smaller window; None where it is no larger now."""
    op = graph.ops[0]
    if op.kind not in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        return None
    shape = graph.tensors[op.inputs[_WEIGHTS]].shape
    if len(shape) != 4 or max(shape[1:3]) <= size:
        return None
    smaller = (shape[0], min(size, shape[1]), min(size, shape[2]), shape[3])
    return reshaped(graph, {op.inputs[_WEIGHTS]: smaller})


def as_int8(graph: Graph) -> Graph:
    """Return a graph with every float tensor as int8; biases as int32."""
    biases = {op.inputs[_BIAS] for op in graph.ops
              if op.kind in CONVOLUTIONS and len(op.inputs) > _BIAS}  # fmt: skip

    def tensor(t: Tensor) -> Tensor:
        if not t.dtype.startswith("float"):
            return t
        dtype = "int32" if t.index in biases else "int8"
        return replace(t, dtype=dtype, data=_constant(t, t.shape, dtype))

    return replace(graph, tensors=tuple(tensor(t) for t in graph.tensors))


def reshaped(graph: Graph, shapes: dict[int, Shape]) -> Graph:
    """Return `graph` with other shapes of some tensors."""

    def tensor(t: Tensor) -> Tensor:
        shape = shapes.get(t.index, t.shape)
        if shape == t.shape:
            return t
        return replace(
            t, shape=shape, data=_constant(t, shape, t.dtype),
            quantization=_resized(t.quantization, shape),
        )  # fmt: skip

    return replace(graph, tensors=tuple(tensor(t) for t in graph.tensors))


def _constant(t: Tensor, shape: Shape, dtype: str) -> npt.NDArray[Any] | None:
    """Return a constant of a shape, which takes no memory; None for what is none."""
    if t.data is None:
        return None
    return np.broadcast_to(np.zeros((), t.data.dtype if dtype == t.dtype else dtype), shape)


def _resized(q: Quantization | None, shape: Shape) -> Quantization | None:
    if q is None or q.scales.size <= 1 or not 0 <= q.axis < len(shape):
        return q
    return replace(
        q,
        scales=np.resize(q.scales, shape[q.axis]),
        zero_points=np.resize(q.zero_points, shape[q.axis]),
    )
