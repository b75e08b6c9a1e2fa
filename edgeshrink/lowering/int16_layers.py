"""CONV_2D, DEPTHWISE_CONV_2D and FULLY_CONNECTED with int16 activations and int8 weights."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgeshrink.graph import Graph, Op
from edgeshrink.lowering.calls import Call, ConstArg, StructArg, TensorArg, Variant
from edgeshrink.lowering.fixed_point import (
    activation_range,
    check_int16_zero,
    constant,
    quantization_of,
    refuse,
    scale_and_zero,
    wide_multipliers,
)
from edgeshrink.passes.padding import conv_padding


def int16_layer(graph: Graph, op: Op) -> tuple[Variant, ...]:
    """Return the variants of a layer whose input is int16."""
    x, w = graph.tensors[op.inputs[0]], graph.tensors[op.inputs[1]]
    y = graph.tensors[op.outputs[0]]
    types = (x.dtype, w.dtype, y.dtype)
    if types != ("int16", "int8", "int16"):
        what = f"has the types {', '.join(types)}"
        raise refuse(graph, op, what, "use int16, int8 weights, int16")
    if w.data is None:
        raise refuse(graph, op, "has weights that are computed", "make them constants")
    is_depthwise, is_dense = op.kind == "DEPTHWISE_CONV_2D", op.kind == "FULLY_CONNECTED"
    weights = np.asarray(w.data, np.int8)
    if is_depthwise:
        weights = weights.transpose(3, 1, 2, 0)  # filters first
    n_out = weights.shape[0]
    bias = _bias(graph, op, n_out)
    sums = np.abs(weights.astype(np.int64)).reshape(n_out, -1).sum(axis=1)
    if float((np.abs(bias.astype(np.float64)) + 2.0**15 * sums).max()) >= 2.0**47:
        raise refuse(graph, op, "has sums beyond 48 bits", "use smaller biases")
    x_scale, x_zero = scale_and_zero(graph, op, x.index)
    y_scale, y_zero = scale_and_zero(graph, op, y.index)
    check_int16_zero(graph, op, x_zero, y_zero)
    wq = quantization_of(graph, op, w.index)
    if wq.scales.size not in (1, n_out):
        raise refuse(
            graph, op, f"has {wq.scales.size} scales for {n_out} filters", "one for each, or all"
        )
    if wq.zero_points.any():
        raise refuse(graph, op, "has weights with a zero point", "quantize weights symmetrically")
    w_scales = np.broadcast_to(wq.scales.astype(np.float64), (n_out,))
    multiplier, shift = wide_multipliers(graph, op, x_scale * w_scales / y_scale)
    y_min, y_max = activation_range(graph, op, y.index)
    limits = {"y_min": y_min, "y_max": y_max}
    shape = _dense_shape if is_dense else _conv_shape
    args = (
        shape(graph, op, weights.shape, limits),
        TensorArg(tensor=x.index),
        TensorArg(tensor=w.index),
        ConstArg(name="bias", values=bias, align=8),
        ConstArg(name="multiplier", values=multiplier),
        ConstArg(name="shift", values=shift),
        TensorArg(tensor=y.index),
    )
    name = "dense" if is_dense else "depthwise" if is_depthwise else "conv"
    macs = math.prod(y.shape) // n_out * weights.size
    return (
        Variant(
            name="ref",
            calls=(Call(function=f"es_{name}_s16__ref", args=args),),
            cycles=(10.0 if is_dense else 17.0) * macs + 60.0 * math.prod(y.shape),
            code_bytes=260 if is_dense else 620,
        ),
    )


def _bias(graph: Graph, op: Op, n_out: int) -> npt.NDArray[np.int64]:
    given = constant(graph, op, 2)
    if given is None:
        if len(op.inputs) > 2 and op.inputs[2] >= 0:
            raise refuse(graph, op, "has a bias that is computed", "make it a constant")
        if str(op.options.get("quantized_bias_type")) == "INT32":
            raise refuse(graph, op, "wants sums of int32", "export it with a bias of int64")
        return np.zeros(n_out, np.int64)
    values = np.asarray(given)
    if values.shape != (n_out,) or values.dtype != np.int64:
        what = f"has a bias {values.dtype} {values.shape}"
        raise refuse(graph, op, what, f"must be int64 ({n_out},)")
    return values


def _dense_shape(
    graph: Graph, op: Op, weights: tuple[int, ...], limits: dict[str, int]
) -> StructArg:
    n_out, n_in = weights
    rows = math.prod(graph.tensors[op.outputs[0]].shape) // n_out
    fields = {"rows": rows, "n_in": n_in, "n_out": n_out, "x_zero": 0, "w_zero": 0, "y_zero": 0}
    return StructArg(type="es_dense_shape", fields=fields | limits)


def _conv_shape(
    graph: Graph, op: Op, weights: tuple[int, ...], limits: dict[str, int]
) -> StructArg:
    x, y = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
    y_c, k_h, k_w, k_c = weights
    top, _, left, _ = conv_padding(graph, op)
    options = op.options
    fields = {
        "batches": x.shape[0],
        "x_h": x.shape[1], "x_w": x.shape[2], "x_c": x.shape[3],
        "y_h": y.shape[1], "y_w": y.shape[2], "y_c": y_c,
        "k_h": k_h, "k_w": k_w, "k_c": k_c,
        "stride_h": int(options["stride_h"]), "stride_w": int(options["stride_w"]),
        "dilation_h": int(options["dilation_h_factor"]),
        "dilation_w": int(options["dilation_w_factor"]),
        "pad_top": top, "pad_left": left, "x_zero": 0, "y_zero": 0,
    }  # fmt: skip
    return StructArg(type="es_conv_shape", fields=fields | limits)
