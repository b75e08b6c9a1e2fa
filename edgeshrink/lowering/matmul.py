"""BATCH_MATMUL: both matrices may be computed, batches broadcast, either may be transposed."""

from __future__ import annotations

import math
from typing import Final

from edgeshrink.graph import Graph, Op
from edgeshrink.lowering.calls import Call, StructArg, TensorArg, Variant
from edgeshrink.lowering.fixed_point import (
    check_int16_zero,
    quantize_multiplier,
    refuse,
    scale_and_zero,
    wide_multiplier,
)

MAX_DEPTH: Final = {"int8": 33025, "int16": 1 << 17}  # so that no sum overflows


def batch_matmul(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """Return the variants of BATCH_MATMUL."""
    a, w = graph.tensors[op.inputs[0]], graph.tensors[op.inputs[1]]
    y = graph.tensors[op.outputs[0]]
    types = (a.dtype, w.dtype, y.dtype)
    if types not in (("int8",) * 3, ("int16",) * 3):
        raise refuse(graph, op, f"has the types {', '.join(types)}", "quantize the model to int8")
    ranks = (len(a.shape), len(w.shape))
    if not all(2 <= rank <= 5 for rank in ranks):
        raise refuse(graph, op, f"has the shapes {(a.shape, w.shape)}", "use 2 to 5 dimensions")
    a_shape, w_shape = ((1,) * (5 - len(t.shape)) + t.shape for t in (a, w))
    rows, depth = _matrix(a_shape, swapped=bool(op.options["adj_x"]))
    w_depth, columns = _matrix(w_shape, swapped=bool(op.options["adj_y"]))
    batches = []
    for left, right in zip(a_shape[:3], w_shape[:3], strict=True):
        if left != right and 1 not in (left, right):
            raise refuse(
                graph, op, f"has the shapes {(a.shape, w.shape)}", "batches must agree or be 1"
            )
        batches.append(max(left, right))
    result = math.prod(batches) * rows * columns
    if w_depth != depth or math.prod(y.shape) != result:
        shapes = (a.shape, w.shape, y.shape)
        raise refuse(graph, op, f"has the shapes {shapes}, which do not agree", "export it again")
    if depth > MAX_DEPTH[a.dtype]:
        raise refuse(
            graph, op, f"adds {depth} products", f"at most {MAX_DEPTH[a.dtype]} fit the sum"
        )
    a_scale, a_zero = scale_and_zero(graph, op, a.index)
    w_scale, w_zero = scale_and_zero(graph, op, w.index)
    y_scale, y_zero = scale_and_zero(graph, op, y.index)
    real = a_scale * w_scale / y_scale
    if a.dtype == "int16":
        check_int16_zero(graph, op, a_zero, w_zero, y_zero)
        multiplier, shift = wide_multiplier(graph, op, real)
    else:
        multiplier, shift = quantize_multiplier(real)
    fields = dict(zip(("b0", "b1", "b2"), batches, strict=True))
    for letter, shape in (("a", a_shape), ("w", w_shape)):
        for axis in range(3):
            stride = math.prod(shape[axis + 1 :])
            fields[f"{letter}{axis}"] = stride if shape[axis] > 1 else 0
    a_row, a_depth = _strides(a_shape, swapped=bool(op.options["adj_x"]))
    w_depth_stride, w_column = _strides(w_shape, swapped=bool(op.options["adj_y"]))
    fields |= {
        "rows": rows, "columns": columns, "depth": depth,
        "a_row": a_row, "a_depth": a_depth, "w_column": w_column, "w_depth": w_depth_stride,
        "a_zero": a_zero, "w_zero": w_zero, "y_zero": y_zero,
        "multiplier": multiplier, "shift": shift,
    }  # fmt: skip
    args = (
        StructArg(type="es_matmul_shape", fields=fields),
        TensorArg(tensor=a.index),
        TensorArg(tensor=w.index),
        TensorArg(tensor=y.index),
    )
    function = "es_matmul_s8__ref" if a.dtype == "int8" else "es_matmul_s16__ref"
    return (
        Variant(
            name="ref",
            calls=(Call(function=function, args=args),),
            cycles=result * (9.0 * depth + 40.0),
            code_bytes=420,
        ),
    )


def _matrix(shape: tuple[int, ...], *, swapped: bool) -> tuple[int, int]:
    """Return rows and columns of the matrix that takes part in the product."""
    return (shape[-1], shape[-2]) if swapped else (shape[-2], shape[-1])


def _strides(shape: tuple[int, ...], *, swapped: bool) -> tuple[int, int]:
    """Return the values from one row and from one column to the next of that matrix."""
    return (1, shape[-1]) if swapped else (shape[-1], 1)
