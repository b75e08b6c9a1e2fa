"""Operators that change no value are taken out; those that change a shape alone become RESHAPE."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from edgeshrink.graph import Graph, Op
from edgeshrink.passes.fixed_point import has_same_quantization
from edgeshrink.passes.fold_constants import slices_of
from edgeshrink.passes.pointwise import (
    STORED,
    apply_table,
    float_detour_table,
    is_pointwise,
    pointwise_table,
    varying_input,
)
from edgeshrink.passes.rewrite import (
    as_reshape,
    constant_input,
    is_internal,
    is_unchanged,
    producers,
    rebuilt,
    renamed,
)

VIEWS: Final = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")


def remove_identities(graph: Graph) -> Graph:
    """Return the graph without operators that only rename or reshape what they read.

    A RESHAPE stays where a shape must change, for a consumer or at the model's output; it is an
    alias of memory, not work. FULLY_CONNECTED and RESHAPE read any shape.
    """
    for step in (_canonical_views, _merge_quantizes, _skip_views, _drop_identities):
        graph = step(graph)
    return graph


def _canonical_views(graph: Graph) -> Graph:
    """Turn every operator that moves no byte into a RESHAPE whose shape is an option."""
    ops = []
    for op in graph.ops:
        canonical = op.kind == "RESHAPE" and len(op.inputs) == 1 and "new_shape" in op.options
        if not op.is_custom and not canonical and _moves_nothing(graph, op):
            op = as_reshape(op, op.inputs[0], graph.tensors[op.outputs[0]].shape)
        ops.append(op)
    return graph if is_unchanged(graph, ops) else rebuilt(graph, ops)


def _moves_nothing(graph: Graph, op: Op) -> bool:
    """Return whether the output's bytes are those of the first input, in their order."""
    if not op.inputs or op.inputs[0] < 0 or len(op.outputs) != 1:
        return False
    x, y = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
    if x.dtype != y.dtype or int(np.prod(x.shape)) != int(np.prod(y.shape)):
        return False
    if op.kind in VIEWS:
        return True
    if op.kind == "CONCATENATION":
        return len(op.inputs) == 1 and op.options.get("activation", "NONE") == "NONE"
    if op.kind == "PACK":
        return len(op.inputs) == 1
    if op.kind in ("PAD", "PADV2", "MIRROR_PAD"):
        amounts = constant_input(graph, op, 1)
        return amounts is not None and not amounts.any()
    if op.kind == "TRANSPOSE":
        order = constant_input(graph, op, 1)
        if order is None:
            return False
        long = [axis for axis in order.tolist() if x.shape[axis] != 1]
        return long == sorted(long)
    if op.kind == "STRIDED_SLICE":
        bounds = [constant_input(graph, op, position) for position in (1, 2, 3)]
        known = [bound for bound in bounds if bound is not None]
        taken = slices_of(op, known) if len(known) == 3 else None
        if taken is None:
            return False
        return all(
            not isinstance(part, slice) or part.step > 0 or size == 1
            for part, size in zip(taken, x.shape, strict=False)
        )  # as many values as before, in their order: all of them
    return False


def _merge_quantizes(graph: Graph) -> Graph:
    """Let a QUANTIZE of int8 read what stands before another one, if no value changes by that."""
    makers = producers(graph.ops)
    ops = []
    for op in graph.ops:
        first = makers.get(op.inputs[0]) if op.kind == "QUANTIZE" else None
        if first is not None and first.kind == "QUANTIZE" and not op.is_custom:
            direct = replace(op, inputs=first.inputs)
            both = (*first.inputs, *op.inputs, *op.outputs)
            if all(graph.tensors[i].dtype == "int8" for i in both) and all(
                is_pointwise(graph, one) for one in (first, op, direct)
            ):
                step = pointwise_table(graph, first)
                composed = apply_table(pointwise_table(graph, op), step)
                if np.array_equal(composed, pointwise_table(graph, direct)):
                    op = direct
        ops.append(op)
    return graph if is_unchanged(graph, ops) else rebuilt(graph, ops)


def _skip_views(graph: Graph) -> Graph:
    """Let those that do not care about a shape read what stands before a RESHAPE."""
    makers = producers(graph.ops)
    ops = []
    for op in graph.ops:
        source = op.inputs[0] if op.inputs else -1
        while (
            not op.is_custom
            and op.kind in ("FULLY_CONNECTED", "RESHAPE")
            and source in makers
            and makers[source].kind == "RESHAPE"
            and not makers[source].is_custom
        ):
            before = makers[source].inputs[0]
            if before < 0 or graph.tensors[before].is_variable:
                break
            if op.kind == "FULLY_CONNECTED" and not has_same_quantization(
                graph.tensors[before], graph.tensors[source]
            ):
                break
            source = before
        if op.inputs and source != op.inputs[0]:
            op = replace(op, inputs=(source, *op.inputs[1:]))
        ops.append(op)
    return graph if is_unchanged(graph, ops) else rebuilt(graph, ops)


def _drop_identities(graph: Graph) -> Graph:
    """Make one tensor of input and output of each operator that changes nothing at all."""
    makers = producers(graph.ops)
    same: dict[int, int] = {}

    def find(tensor: int) -> int:
        while tensor in same:
            tensor = same[tensor]
        return tensor

    ops: list[Op] = []
    for op in graph.ops:
        source = _identity_of(graph, op, makers)
        if source is None:
            ops.append(op)
            continue
        x, y = find(source), find(op.outputs[0])
        if x == y:
            continue
        if y not in graph.outputs:
            same[y] = x
        elif is_internal(graph, x):
            same[x] = y  # the model's output keeps its name: what computes x computes y now
        else:
            ops.append(op)
    if len(ops) == len(graph.ops):
        return graph
    names = {tensor: find(tensor) for tensor in list(same)}
    return rebuilt(graph, [renamed(op, names) for op in ops])


def _identity_of(graph: Graph, op: Op, makers: dict[int, Op]) -> int | None:
    """Return the tensor that the output equals in shape, meaning and every value; None if none."""
    if op.is_custom or len(op.outputs) != 1 or not op.inputs:
        return None
    y = graph.tensors[op.outputs[0]]

    def alike(index: int) -> bool:
        x = graph.tensors[index]
        return (
            index >= 0 and not x.is_variable and x.shape == y.shape and has_same_quantization(x, y)
        )

    if op.kind == "RESHAPE":
        return op.inputs[0] if alike(op.inputs[0]) else None
    if op.kind in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
        options = op.options
        sizes = (options["filter_height"], options["filter_width"], options["stride_h"],
                 options["stride_w"])  # fmt: skip
        is_plain = sizes == (1, 1, 1, 1) and options.get("activation", "NONE") == "NONE"
        return op.inputs[0] if is_plain and y.dtype == "int8" and alike(op.inputs[0]) else None
    if op.kind == "QUANTIZE" and op.inputs[0] in makers:
        first = makers[op.inputs[0]]
        if first.kind == "DEQUANTIZE" and not first.is_custom and alike(first.inputs[0]):
            table = float_detour_table(graph.tensors[first.inputs[0]], y)
            if table is not None and np.array_equal(table, STORED):
                return first.inputs[0]
    if is_pointwise(graph, op):
        x = op.inputs[varying_input(graph, op)]
        if alike(x) and np.array_equal(pointwise_table(graph, op), STORED):
            return x
    return None
