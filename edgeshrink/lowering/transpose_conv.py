"""TRANSPOSE_CONV."""

from __future__ import annotations

import numpy as np

from edgeshrink.graph import Graph, Op
from edgeshrink.lowering.calls import Call, ConstArg, StructArg, TensorArg, Variant
from edgeshrink.lowering.fixed_point import (
    activation_range,
    check_int16_zero,
    constant,
    multipliers,
    quantization_of,
    refuse,
    scale_and_zero,
    wide_multipliers,
)
from edgeshrink.lowering.padding import window_padding


def transpose_conv(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """Return the variants of TRANSPOSE_CONV. Its inputs are: shape of y, weights, x, bias."""
    w, x = graph.tensors[op.inputs[1]], graph.tensors[op.inputs[2]]
    y = graph.tensors[op.outputs[0]]
    types = (x.dtype, w.dtype, y.dtype)
    if types not in (("int8", "int8", "int8"), ("int16", "int8", "int16")):
        raise refuse(graph, op, f"has the types {', '.join(types)}", "quantize the model to int8")
    if w.data is None:
        raise refuse(graph, op, "has weights that are computed", "make them constants")
    bias = constant(graph, op, 3)
    if bias is None and len(op.inputs) > 3 and op.inputs[3] >= 0:
        raise refuse(graph, op, "has a bias that is computed", "make it a constant")
    shapes = (x.shape, w.shape, y.shape)
    if any(len(shape) != 4 or 0 in shape for shape in shapes):
        raise refuse(graph, op, f"has the shapes {shapes}", "use (batch, height, width, channels)")
    y_c, k_h, k_w, x_c = w.shape
    if (x.shape[0], x_c, y_c) != (y.shape[0], x.shape[3], y.shape[3]):
        raise refuse(graph, op, f"has the shapes {shapes}, which do not agree", "export it again")
    stride = int(op.options["stride_h"]), int(op.options["stride_w"])
    if min(stride) < 1:
        raise refuse(graph, op, f"has the stride {stride}", "it must be positive")
    padding = str(op.options["padding"])
    if padding not in ("SAME", "VALID"):
        raise refuse(graph, op, f"has the padding {padding}", "export it with SAME or VALID")
    top, left = 0, 0
    if padding == "SAME":  # of the convolution that leads from y to x
        top, _, left, _ = window_padding((y.shape[1], y.shape[2]), (k_h, k_w), stride)
    x_scale, x_zero = scale_and_zero(graph, op, x.index)
    y_scale, y_zero = scale_and_zero(graph, op, y.index)
    wq = quantization_of(graph, op, w.index)
    if wq.scales.size not in (1, y_c):
        raise refuse(
            graph, op, f"has {wq.scales.size} scales for {y_c} filters", "one for each, or for all"
        )
    if wq.zero_points.any():
        raise refuse(graph, op, "has weights with a zero point", "quantize weights symmetrically")
    is_wide = x.dtype == "int16"
    bias_type = np.int64 if is_wide else np.int32
    values = np.zeros(y_c, bias_type) if bias is None else np.asarray(bias)
    if is_wide and values.dtype == np.int16:  # the reference widens it
        values = values.astype(np.int64)
    if values.shape != (y_c,) or values.dtype != bias_type:
        what = f"has a bias {values.dtype} {values.shape}"
        raise refuse(graph, op, what, f"must be {np.dtype(bias_type)} ({y_c},)")
    largest = (1 << 15) if is_wide else 255
    sums = np.abs(np.asarray(w.data, np.int64)).sum(axis=(1, 2, 3))
    reach = int((np.abs(values.astype(np.float64)) + largest * sums).max())
    if reach >= (2**47 if is_wide else 2**31):
        raise refuse(graph, op, f"has sums up to {reach}, too large", "use smaller biases")
    reals = x_scale * np.broadcast_to(wq.scales.astype(np.float64), (y_c,)) / y_scale
    if is_wide:
        check_int16_zero(graph, op, x_zero, y_zero)
        multiplier, shift = wide_multipliers(graph, op, reals)
    else:
        multiplier, shift = multipliers(reals)
    y_min, y_max = activation_range(graph, op, y.index)
    shape = StructArg(
        type="es_transpose_conv_shape",
        fields={
            "batches": x.shape[0],
            "x_h": x.shape[1], "x_w": x.shape[2], "x_c": x_c,
            "y_h": y.shape[1], "y_w": y.shape[2], "y_c": y_c,
            "k_h": k_h, "k_w": k_w, "stride_h": stride[0], "stride_w": stride[1],
            "pad_top": top, "pad_left": left,
            "x_zero": x_zero, "y_zero": y_zero, "y_min": y_min, "y_max": y_max,
        },
    )  # fmt: skip
    args = (
        shape,
        TensorArg(tensor=x.index),
        TensorArg(tensor=w.index),
        ConstArg(name="bias", values=values, align=8 if is_wide else 4),
        ConstArg(name="multiplier", values=multiplier),
        ConstArg(name="shift", values=shift),
        TensorArg(tensor=y.index),
    )
    function = "es_transpose_conv_s16__ref" if is_wide else "es_transpose_conv_s8__ref"
    macs = x.shape[0] * x.shape[1] * x.shape[2] * w.data.size
    outputs = int(np.prod(y.shape, dtype=np.int64))
    return (
        Variant(
            name="ref",
            calls=(Call(function=function, args=args),),
            cycles=7.0 * macs + 120.0 * outputs,
            code_bytes=560,
        ),
    )
