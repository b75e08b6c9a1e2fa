"""Matrix products: FULLY_CONNECTED."""

from __future__ import annotations

import numpy as np

from edgeshrink.graph import Graph, Op
from edgeshrink.lowering.calls import Call, ConstArg, StructArg, TensorArg, Variant
from edgeshrink.lowering.fixed_point import (
    activation_range,
    constant,
    multipliers,
    quantization_of,
    refuse,
    scale_and_zero,
)


def fully_connected(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """Return the variants of FULLY_CONNECTED."""
    x, y = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
    w = graph.tensors[op.inputs[1]]
    types = (x.dtype, w.dtype, y.dtype)
    if types != ("int8", "int8", "int8"):
        raise refuse(graph, op, f"has the types {types}", "quantize the model to int8")
    if w.data is None:
        raise refuse(graph, op, "has weights that are computed", "make them constants")
    n_out, n_in = w.shape
    x_scale, x_zero = scale_and_zero(graph, op, x.index)
    y_scale, y_zero = scale_and_zero(graph, op, y.index)
    wq = quantization_of(graph, op, w.index)
    w_scales = np.broadcast_to(wq.scales.astype(np.float64), (n_out,))
    multiplier, shift = multipliers(x_scale * w_scales / y_scale)
    bias = constant(graph, op, 2)
    y_min, y_max = activation_range(graph, op, y.index)
    shape = StructArg(
        type="es_dense_shape",
        fields={
            "rows": int(np.prod(y.shape, dtype=np.int64)) // n_out,
            "n_in": n_in,
            "n_out": n_out,
            "x_zero": x_zero,
            "w_zero": int(wq.zero_points[0]),
            "y_zero": y_zero,
            "y_min": y_min,
            "y_max": y_max,
        },
    )
    zeros = np.zeros(n_out, np.int32)
    args = (
        shape,
        TensorArg(tensor=x.index),
        TensorArg(tensor=w.index),
        ConstArg(name="bias", values=zeros if bias is None else bias.astype(np.int32)),
        ConstArg(name="multiplier", values=multiplier),
        ConstArg(name="shift", values=shift),
        TensorArg(tensor=y.index),
    )
    return (Variant(name="ref", calls=(Call(function="es_dense_s8__ref", args=args),)),)
