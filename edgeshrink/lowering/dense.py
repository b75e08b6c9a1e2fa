"""Matrix products: FULLY_CONNECTED."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from edgeshrink.graph import Graph, Op
from edgeshrink.lowering.calls import Call, ConstArg, StructArg, TensorArg, Variant
from edgeshrink.lowering.conv_blocks import block_variants
from edgeshrink.lowering.conv_layer import Conv, folded_bias, right_shifts
from edgeshrink.lowering.convolutions import dsp_convolution, has_shared_kernel
from edgeshrink.lowering.fixed_point import (
    activation_range,
    constant,
    multipliers,
    quantization_of,
    refuse,
    scale_and_zero,
)
from edgeshrink.lowering.int16_layers import int16_layer
from edgeshrink.lowering.scalar import scalar_dense


def fully_connected(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """Return the variants of FULLY_CONNECTED."""
    if graph.tensors[op.inputs[0]].dtype == "int16":
        return int16_layer(graph, op)
    x, y = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
    w = graph.tensors[op.inputs[1]]
    types = (x.dtype, w.dtype, y.dtype)
    if types != ("int8", "int8", "int8"):
        raise refuse(graph, op, f"has the types {', '.join(types)}", "quantize the model to int8")
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
            cycles=8.5 * rows * w.data.size,
            code_bytes=270,
        )
    ]
    if not {"dsp", "scalar"} & set(isa) or wq.zero_points.any():
        return tuple(found)
    conv = Conv(
        x=x.index,
        w=w.index,
        y=y.index,
        depthwise=False,
        shape=_image_of_rows(shape.fields),
        weights=np.asarray(w.data, np.int8).reshape(n_out, 1, 1, n_in),
        bias=values,
        multiplier=multiplier,
        shift=shift,
    )
    folded, shifts = folded_bias(conv), right_shifts(conv)
    if "scalar" in isa:
        found[0] = replace(found[0], cycles=rows * n_out * (13.0 * n_in + 200.0))
        found += scalar_dense(conv, shape)
    if folded is None or "dsp" not in isa:
        return tuple(found)
    if shifts is not None:
        dsp_args = (
            *args[:3],
            ConstArg(name="bias", values=folded),
            args[4],
            ConstArg(name="shift", values=shifts),
            args[6],
        )
        found.append(
            Variant(
                name="dsp",
                calls=(Call(function="es_dense_s8__dsp", args=dsp_args),),
                cycles=rows * n_out * (2.3 * n_in + 125.0),
                code_bytes=650,
            )
        )
        if has_shared_kernel(conv):
            found.append(replace(dsp_convolution(conv), name="dsp convolution"))
    found += block_variants(conv, "es_dense_s8")
    return tuple(found)


def _image_of_rows(f: Mapping[str, int]) -> dict[str, int]:
    """Return the shape of a 1 x 1 convolution whose image has the samples side by side."""
    return {
        "batches": 1,
        "x_h": 1, "x_w": f["rows"], "x_c": f["n_in"],
        "y_h": 1, "y_w": f["rows"], "y_c": f["n_out"],
        "k_h": 1, "k_w": 1, "k_c": f["n_in"],
        "stride_h": 1, "stride_w": 1, "dilation_h": 1, "dilation_w": 1,
        "pad_top": 0, "pad_left": 0,
        "x_zero": f["x_zero"], "y_zero": f["y_zero"], "y_min": f["y_min"], "y_max": f["y_max"],
    }  # fmt: skip
