"""Operators whose inputs are all constants are computed now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeshrink.graph import Graph, Op, Tensor
from edgeshrink.passes.fixed_point import (
    ACTIVATIONS,
    LIMITS,
    constant_of,
    round_away,
    scale_of,
    wrap,
    zero_of,
)
from edgeshrink.passes.pointwise import (
    apply_table,
    binary,
    is_pointwise,
    pointwise_table,
    varying_input,
)
from edgeshrink.passes.rewrite import rebuilt

Values = npt.NDArray[Any]


def fold_constants(graph: Graph) -> Graph:
    """Return the graph with the operators computed that depend on constants and shapes alone."""
    tensors: list[Tensor] = list(graph.tensors)
    ops: list[Op] = []
    current = graph
    for op in graph.ops:
        value = _value(current, op)
        if value is None:
            ops.append(op)
        else:
            y = tensors[op.outputs[0]]
            tensors[y.index] = replace(y, data=np.ascontiguousarray(value).reshape(y.shape))
            current = replace(graph, tensors=tuple(tensors))
    return graph if len(ops) == len(graph.ops) else rebuilt(graph, ops, tensors)


def _value(graph: Graph, op: Op) -> Values | None:
    """Return the output of an operator; None where it is not known or not ours to know."""
    if op.is_custom or len(op.outputs) != 1 or op.outputs[0] in graph.outputs:
        return None
    y = graph.tensors[op.outputs[0]]
    if op.kind == "SHAPE":
        return np.array(graph.tensors[op.inputs[0]].shape, y.dtype)
    inputs = [graph.tensors[i] for i in op.inputs if i >= 0]
    values = [constant_of(tensor) for tensor in inputs]
    known = [value for value in values if value is not None]
    if not inputs or len(known) != len(op.inputs):
        return None
    found: Values | None
    if op.kind == "QUANTIZE" and inputs[0].dtype == "float32":
        found = _quantize(op, inputs, known, y)
    elif op.kind in EVALUATORS:
        found = EVALUATORS[op.kind](op, inputs, known, y)
    elif is_pointwise(graph, op):
        position = varying_input(graph, op)
        found = apply_table(pointwise_table(graph, op), known[position].astype(np.int8))
    else:
        return None
    if found is None or found.size != int(np.prod(y.shape, dtype=np.int64)):
        return None
    return found.astype(y.dtype)


def _view(_: Op, __: Sequence[Tensor], values: Sequence[Values], ___: Tensor) -> Values:
    return values[0]


def _transpose(_: Op, __: Sequence[Tensor], values: Sequence[Values], ___: Tensor) -> Values:
    return np.transpose(values[0], values[1].tolist())


def _concatenation(
    op: Op, _: Sequence[Tensor], values: Sequence[Values], __: Tensor
) -> Values | None:
    if op.options.get("activation", "NONE") != "NONE":
        return None
    return np.concatenate(values, axis=op.options["axis"])


def _pack(op: Op, _: Sequence[Tensor], values: Sequence[Values], __: Tensor) -> Values:
    return np.stack(values, axis=op.options["axis"])


def _gather(op: Op, _: Sequence[Tensor], values: Sequence[Values], __: Tensor) -> Values | None:
    data, indices = values
    axis = op.options.get("axis", 0)
    if op.options.get("batch_dims", 0) or indices.size == 0:
        return None
    if indices.min() < 0 or indices.max() >= data.shape[axis]:
        return None
    return np.take(data, indices, axis=axis)


def _strided_slice(
    op: Op, _: Sequence[Tensor], values: Sequence[Values], __: Tensor
) -> Values | None:
    index = slices_of(op, values[1:])
    return None if index is None else values[0][index]


def slices_of(op: Op, bounds: Sequence[Values]) -> tuple[slice | int, ...] | None:
    """Return what a STRIDED_SLICE takes of each axis; None for forms that TFLM does not have."""
    options = op.options
    if any(options.get(key) for key in ("ellipsis_mask", "new_axis_mask", "offset")):
        return None
    taken: list[slice | int] = []
    begins, ends, strides = (bound.tolist() for bound in bounds)
    for axis, (begin, end, stride) in enumerate(zip(begins, ends, strides, strict=True)):
        if stride == 0:
            return None
        if options.get("shrink_axis_mask", 0) >> axis & 1:
            taken.append(begin)
            continue
        first = None if options.get("begin_mask", 0) >> axis & 1 else begin
        last = None if options.get("end_mask", 0) >> axis & 1 else end
        taken.append(slice(first, last, stride))
    return tuple(taken)


def _cast(_: Op, __: Sequence[Tensor], values: Sequence[Values], y: Tensor) -> Values | None:
    """Casts between integers, and from integers to float32: those with one meaning everywhere."""
    if values[0].dtype.kind not in "iu" or y.dtype not in ("float32", "int32", "int64"):
        return None
    if y.dtype == "int32" and values[0].dtype.itemsize > 4:
        return wrap(values[0].astype(np.int64))
    return values[0]


def _quantize(
    _: Op, inputs: Sequence[Tensor], values: Sequence[Values], y: Tensor
) -> Values | None:
    """QUANTIZE of float numbers; that of integers is a table."""
    scale = scale_of(y)
    if inputs[0].dtype != "float32" or y.dtype not in ("int8", "int16") or scale is None:
        return None
    if not np.isfinite(values[0]).all():
        return None
    reals = (values[0] / scale).reshape(-1)
    if reals.size and float(np.abs(reals).max()) >= 2**30:
        return None
    stored = np.array([round_away(float(real)) for real in reals], np.int64) + zero_of(y)
    return np.clip(stored, *LIMITS[y.dtype])


def _dequantize(
    _: Op, inputs: Sequence[Tensor], values: Sequence[Values], y: Tensor
) -> Values | None:
    scale = scale_of(inputs[0])
    if inputs[0].dtype not in ("int8", "int16", "uint8") or y.dtype != "float32" or scale is None:
        return None
    return (float(scale) * (values[0].astype(np.int64) - zero_of(inputs[0]))).astype(np.float32)


def _arithmetic(
    op: Op, inputs: Sequence[Tensor], values: Sequence[Values], y: Tensor
) -> Values | None:
    """ADD, SUB and MUL of int32 (sizes and indices) or of quantized int8."""
    a, b = (np.asarray(value) for value in values)
    activation = op.options.get("activation", "NONE")
    if {t.dtype for t in (*inputs, y)} == {"int32"} and activation == "NONE":
        wide = a.astype(np.int64), b.astype(np.int64)
        results = {"ADD": np.add, "SUB": np.subtract, "MUL": np.multiply}
        return wrap(results[op.kind](*wide))
    if {t.dtype for t in (*inputs, y)} != {"int8"} or activation not in ACTIVATIONS:
        return None
    if any(scale_of(tensor) is None for tensor in (*inputs, y)):
        return None
    return binary(op, (inputs[0], inputs[1]), (a.astype(np.int64), b.astype(np.int64)), y)


EVALUATORS: Final[
    dict[str, Callable[[Op, Sequence[Tensor], Sequence[Values], Tensor], Values | None]]
] = {
    "RESHAPE": _view,
    "SQUEEZE": _view,
    "EXPAND_DIMS": _view,
    "TRANSPOSE": _transpose,
    "CONCATENATION": _concatenation,
    "PACK": _pack,
    "GATHER": _gather,
    "STRIDED_SLICE": _strided_slice,
    "CAST": _cast,
    "DEQUANTIZE": _dequantize,
    "ADD": _arithmetic,
    "SUB": _arithmetic,
    "MUL": _arithmetic,
}
