"""Matrix products: FULLY_CONNECTED."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

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
    rows = int(np.prod(y.shape, dtype=np.int64)) // n_out
    values = np.zeros(n_out, np.int32) if bias is None else np.asarray(bias, np.int32)
    shape = StructArg(
        type="es_dense_shape",
        fields={
            "rows": rows,
            "n_in": n_in,
            "n_out": n_out,
            "x_zero": x_zero,
            "w_zero": int(wq.zero_points[0]),
            "y_zero": y_zero,
            "y_min": y_min,
            "y_max": y_max,
        },
    )
    args = (
        shape,
        TensorArg(tensor=x.index),
        TensorArg(tensor=w.index),
        ConstArg(name="bias", values=values),
        ConstArg(name="multiplier", values=multiplier),
        ConstArg(name="shift", values=shift),
        TensorArg(tensor=y.index),
    )
    found = [
        Variant(
            name="ref",
            calls=(Call(function="es_dense_s8__ref", args=args),),
            cycles=7.0 * rows * w.data.size,
            code_bytes=220,
        )
    ]
    folded = _folded_bias(w.data, values, x_zero) if not wq.zero_points.any() else None
    if "dsp" in isa and folded is not None:
        dsp_args = (*args[:3], ConstArg(name="bias", values=folded), *args[4:])
        found.append(
            Variant(
                name="dsp",
                calls=(Call(function="es_dense_s8__dsp", args=dsp_args),),
                cycles=1.9 * rows * w.data.size + 40.0 * rows * n_out,
                code_bytes=500,
            )
        )
    return tuple(found)


def _folded_bias(
    weights: npt.NDArray[np.int8], bias: npt.NDArray[np.int32], x_zero: int
) -> npt.NDArray[np.int32] | None:
    """Return the bias for kernels that leave out the input's zero point; None if sums get large."""
    wide = weights.astype(np.int64)
    folded: npt.NDArray[np.int64] = bias.astype(np.int64) - x_zero * wide.sum(axis=1)
    if (np.abs(folded) + 128 * np.abs(wide).sum(axis=1)).max() >= 2**30:
        return None
    narrow: npt.NDArray[np.int32] = folded.astype(np.int32)
    return narrow
