"""CONV_2D and DEPTHWISE_CONV_2D."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgeshrink.graph import Graph, Op
from edgeshrink.lowering.calls import Arg, Call, ConstArg, ScratchArg, StructArg, TensorArg, Variant
from edgeshrink.lowering.conv_blocks import block_variants, pairs_variants
from edgeshrink.lowering.conv_layer import (
    Conv,
    abs_sums,
    bias_of,
    folded_bias,
    packed_shape,
    pixel_distance,
    right_shifts,
    row_distance,
)
from edgeshrink.lowering.fixed_point import (
    activation_range,
    constant,
    multipliers,
    quantization_of,
    refuse,
    scale_and_zero,
)
from edgeshrink.lowering.int16_layers import int16_layer
from edgeshrink.lowering.scalar import plain_kernel, scalar_conv, scalar_depthwise, wide_conv
from edgeshrink.passes.padding import conv_padding


def conv_2d(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """Return the variants of CONV_2D."""
    if graph.tensors[op.inputs[0]].dtype == "int16":
        return int16_layer(graph, op)
    conv = _conv(graph, op, depthwise=False)
    found = [_reference(conv, "es_conv_s8__ref")]
    if "dsp" in isa and folded_bias(conv) is not None:
        if has_shared_kernel(conv):
            found.append(dsp_convolution(conv))
        found += block_variants(conv)
    if "scalar" in isa:
        found = [plain_kernel(found[0], isa), *scalar_conv(conv)]
    if "rv32" in isa:
        found += wide_conv(conv)
    return tuple(found)


def depthwise_conv_2d(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """Return the variants of DEPTHWISE_CONV_2D."""
    if graph.tensors[op.inputs[0]].dtype == "int16":
        return int16_layer(graph, op)
    conv = _conv(graph, op, depthwise=True)
    found = [_reference(conv, "es_depthwise_s8__ref")]
    if "dsp" in isa and folded_bias(conv) is not None:
        if has_shared_kernel(conv) and conv.shape["x_c"] == conv.shape["y_c"] >= 4:
            found.append(_dsp_depthwise(conv))
        found += pairs_variants(conv)
    if "scalar" in isa:
        found = [plain_kernel(found[0], isa), *scalar_depthwise(conv)]
    return tuple(found)


def _reference(conv: Conv, function: str) -> Variant:
    s = conv.shape
    outputs = s["batches"] * s["y_h"] * s["y_w"] * s["y_c"]
    per_mac = 6.0 + (37.0 if s["k_c"] == 1 else 69.0) / s["k_c"]
    return Variant(
        name="ref",
        calls=(Call(function=function, args=_args(conv, conv.bias)),),
        cycles=120.0 * outputs + per_mac * conv.macs,
        code_bytes=620,
    )


def dsp_convolution(conv: Conv) -> Variant:
    """Return the variant of the kernel that all layers share; `has_shared_kernel`."""
    s = conv.shape
    steps = np.arange(0, s["y_h"] * s["y_w"], 2)
    window = s["k_h"] * s["k_w"] * s["x_c"]
    pixels = s["batches"] * s["y_h"] * s["y_w"]
    runs = s["k_h"] * s["k_w"] * conv.groups
    return Variant(
        name="dsp",
        calls=(Call(function="es_conv_s8__dsp", args=_dsp_args(conv, 2 * window)),),
        overlaps={conv.x: pixel_distance(conv, steps)},
        # a window, its stretches and its values; an output; four MACs of four outputs in 30 cycles
        cycles=pixels * (60.0 + 60.0 * runs + window + 90.0 * s["y_c"]) + 1.875 * conv.macs,
        code_bytes=1010,
    )


def _dsp_depthwise(conv: Conv) -> Variant:
    s = conv.shape
    rows = (s["k_h"] - 1) * s["dilation_h"] + 1
    columns = (s["y_w"] - 1) * s["stride_w"] + (s["k_w"] - 1) * s["dilation_w"] + 1
    window = rows * columns * s["x_c"]
    pixels = s["batches"] * s["y_h"] * s["y_w"]
    four = 240 + s["k_h"] * (30 + 20 * s["k_w"])
    return Variant(
        name="dsp",
        calls=(Call(function="es_depthwise_s8__dsp", args=_dsp_args(conv, window)),),
        overlaps={conv.x: row_distance(conv)},
        cycles=float(pixels * -(-s["y_c"] // 4) * four),
        code_bytes=1020,
    )


def has_shared_kernel(conv: Conv) -> bool:
    """Whether the kernels of the DSP folder that all layers share take this one."""
    checks = (folded_bias(conv), right_shifts(conv), packed_shape(conv))
    return all(check is not None for check in checks)


def _dsp_args(conv: Conv, scratch: int) -> tuple[Arg, ...]:
    shape, shift = packed_shape(conv), right_shifts(conv)
    assert shape is not None
    assert shift is not None
    bytes_of_shifts = np.zeros(-(-shift.size // 4) * 4, np.int8)
    bytes_of_shifts[: shift.size] = shift
    scales = np.concatenate([conv.multiplier, bytes_of_shifts.view(np.int32)])
    return (
        StructArg(type="es_conv_packed_shape", fields=shape),
        TensorArg(tensor=conv.x),
        TensorArg(tensor=conv.w),
        ConstArg(name="bias", values=bias_of(conv)),
        ConstArg(name="scales", values=scales),
        ScratchArg(n_bytes=scratch),
        TensorArg(tensor=conv.y),
    )


def _args(conv: Conv, bias: npt.NDArray[np.int32]) -> tuple[Arg, ...]:
    return (
        StructArg(type="es_conv_shape", fields=conv.shape),
        TensorArg(tensor=conv.x),
        TensorArg(tensor=conv.w),
        ConstArg(name="bias", values=bias),
        ConstArg(name="multiplier", values=conv.multiplier),
        ConstArg(name="shift", values=conv.shift),
        TensorArg(tensor=conv.y),
    )


def _conv(graph: Graph, op: Op, *, depthwise: bool) -> Conv:
    """Read the operator; ModelError for what no kernel handles or no shape agrees with."""
    x, w = graph.tensors[op.inputs[0]], graph.tensors[op.inputs[1]]
    y = graph.tensors[op.outputs[0]]
    types = (x.dtype, w.dtype, y.dtype)
    if types != ("int8", "int8", "int8"):
        raise refuse(graph, op, f"has the types {', '.join(types)}", "quantize the model to int8")
    if w.data is None:
        raise refuse(graph, op, "has weights that are computed", "make them constants")
    bias = constant(graph, op, 2)
    if bias is None and len(op.inputs) > 2 and op.inputs[2] >= 0:
        raise refuse(graph, op, "has a bias that is computed", "make it a constant")
    if not len(x.shape) == len(w.shape) == len(y.shape) == 4 or 0 in (*x.shape, *w.shape, *y.shape):
        shapes = (x.shape, w.shape, y.shape)
        raise refuse(graph, op, f"has the shapes {shapes}", "use (batch, height, width, channels)")
    weights = np.asarray(w.data, np.int8)
    if depthwise:
        weights = weights.transpose(3, 1, 2, 0)  # (y_c, k_h, k_w, 1)
    y_c, k_h, k_w, k_c = weights.shape
    batches, y_h, y_w, y_channels = y.shape
    _check_channels(graph, op, (x.shape[3], k_c, y_c, y_channels), depthwise)
    options = op.options
    top, bottom, left, right = conv_padding(graph, op)
    stride = int(options["stride_h"]), int(options["stride_w"])
    dilation = int(options["dilation_h_factor"]), int(options["dilation_w_factor"])
    if min(*stride, *dilation) < 1:
        raise refuse(
            graph, op, f"has stride {stride}, dilation {dilation}", "they must be positive"
        )
    padded = x.shape[1] + top + bottom, x.shape[2] + left + right
    for n_out, n, k, s, d in zip((y_h, y_w), padded, (k_h, k_w), stride, dilation, strict=True):
        if n_out != (n - ((k - 1) * d + 1)) // s + 1 or x.shape[0] != batches:
            raise refuse(
                graph,
                op,
                f"computes {y.shape} from {x.shape}, which do not agree",
                "export it again",
            )
    x_scale, x_zero = scale_and_zero(graph, op, x.index)
    y_scale, y_zero = scale_and_zero(graph, op, y.index)
    wq = quantization_of(graph, op, w.index)
    if wq.scales.size not in (1, y_c):
        raise refuse(
            graph,
            op,
            f"has {wq.scales.size} scales for {y_c} filters",
            "one for each, or one for all",
        )
    if wq.zero_points.any():
        raise refuse(graph, op, "has weights with a zero point", "quantize weights symmetrically")
    w_scales = np.broadcast_to(wq.scales.astype(np.float64), (y_c,))
    multiplier, shift = multipliers(x_scale * w_scales / y_scale)
    y_min, y_max = activation_range(graph, op, y.index)
    values = np.zeros(y_c, np.int32) if bias is None else np.asarray(bias)
    if values.shape != (y_c,) or values.dtype != np.int32:
        raise refuse(graph, op, f"has a bias {values.dtype} {values.shape}", f"int32 ({y_c},)")
    reach = np.abs(values.astype(np.int64)) + 255 * abs_sums(weights)
    if reach.max() >= 2**31:
        raise refuse(graph, op, f"has sums up to {reach.max()}, beyond int32", "use smaller biases")
    return Conv(
        x=x.index,
        w=w.index,
        y=y.index,
        depthwise=depthwise,
        shape={
            "batches": batches,
            "x_h": x.shape[1], "x_w": x.shape[2], "x_c": x.shape[3],
            "y_h": y_h, "y_w": y_w, "y_c": y_c,
            "k_h": k_h, "k_w": k_w, "k_c": k_c,
            "stride_h": stride[0], "stride_w": stride[1],
            "dilation_h": dilation[0], "dilation_w": dilation[1],
            "pad_top": top, "pad_left": left,
            "x_zero": x_zero, "y_zero": y_zero, "y_min": y_min, "y_max": y_max,
        },
        weights=weights,
        bias=values,
        multiplier=multiplier,
        shift=shift,
    )  # fmt: skip


def _check_channels(
    graph: Graph, op: Op, channels: tuple[int, int, int, int], depthwise: bool
) -> None:
    x_c, k_c, y_c, y_channels = channels
    if y_channels != y_c or x_c % k_c or y_c % (x_c // k_c) or (depthwise and k_c != 1):
        raise refuse(
            graph,
            op,
            f"has {x_c} input channels, {y_c} filters of {k_c} channels, {y_channels} output "
            "channels, which do not agree",
            "export it again",
        )
