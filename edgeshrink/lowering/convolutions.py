"""CONV_2D and DEPTHWISE_CONV_2D."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeshrink.graph import Graph, Op
from edgeshrink.lowering.calls import Arg, Call, ConstArg, ScratchArg, StructArg, TensorArg, Variant
from edgeshrink.lowering.emit_m4 import (
    Block,
    Requantization,
    block_bytes,
    block_cycles,
    block_stream,
    emit,
    padded_pairs,
    requantization,
    with_pixels,
)
from edgeshrink.lowering.fixed_point import (
    activation_range,
    constant,
    multipliers,
    quantization_of,
    refuse,
    scale_and_zero,
)
from edgeshrink.lowering.padding import conv_padding


@dataclass(frozen=True, kw_only=True)
class Conv:
    """A convolution as its kernels want it. Weights are (y_c, k_h, k_w, k_c) in every case."""

    x: int  # tensors
    w: int
    y: int
    depthwise: bool
    shape: dict[str, int]  # the fields of es_conv_shape
    weights: npt.NDArray[np.int8]
    bias: npt.NDArray[np.int32]
    multiplier: npt.NDArray[np.int32]
    shift: npt.NDArray[np.int8]

    @property
    def groups(self) -> int:
        return self.shape["x_c"] // self.shape["k_c"]

    @property
    def macs(self) -> int:
        s = self.shape
        return s["batches"] * s["y_h"] * s["y_w"] * self.weights.size


def conv_2d(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """Return the variants of CONV_2D."""
    conv = _conv(graph, op, depthwise=False)
    found = [_reference(conv, "es_conv_s8__ref")]
    if "dsp" in isa and _folded_bias(conv) is not None:
        found.append(_dsp_conv(conv))
        found += _block_convs(conv)
    return tuple(found)


def depthwise_conv_2d(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """Return the variants of DEPTHWISE_CONV_2D."""
    conv = _conv(graph, op, depthwise=True)
    found = [_reference(conv, "es_depthwise_s8__ref")]
    if "dsp" in isa and _folded_bias(conv) is not None:
        found.append(_dsp_depthwise(conv))
    return tuple(found)


def _reference(conv: Conv, function: str) -> Variant:
    return Variant(
        name="ref",
        calls=(Call(function=function, args=_args(conv, conv.bias)),),
        cycles=14.0 * conv.macs,
        code_bytes=560,
    )


def _dsp_conv(conv: Conv) -> Variant:
    s = conv.shape
    steps = np.arange(0, s["y_h"] * s["y_w"], 2)
    window = s["k_h"] * s["k_w"] * s["x_c"]
    pixels = s["batches"] * s["y_h"] * s["y_w"]
    return Variant(
        name="dsp",
        calls=(Call(function="es_conv_s8__dsp", args=_args(conv, _bias(conv), 2 * window)),),
        overlaps={conv.x: pixel_distance(conv, steps)},
        cycles=pixels * (40.0 + 2.2 * window + conv.weights.shape[0] * 34.0) + 1.55 * conv.macs,
        code_bytes=900,
    )


def _dsp_depthwise(conv: Conv) -> Variant:
    s = conv.shape
    rows = (s["k_h"] - 1) * s["dilation_h"] + 1
    columns = (s["y_w"] - 1) * s["stride_w"] + (s["k_w"] - 1) * s["dilation_w"] + 1
    window = rows * columns * s["x_c"]
    per_mac = 4.6 if s["x_c"] == s["y_c"] and s["x_c"] % 4 == 0 else 8.0
    return Variant(
        name="dsp",
        calls=(Call(function="es_depthwise_s8__dsp", args=_args(conv, _bias(conv), window)),),
        overlaps={conv.x: row_distance(conv)},
        cycles=per_mac * conv.macs + 34.0 * conv.macs / (s["k_h"] * s["k_w"]),
        code_bytes=1100,
    )


def _block_convs(conv: Conv) -> list[Variant]:
    """Return the variants by register blocks that the layer's shape allows."""
    s = conv.shape
    reach = np.abs(_bias(conv).astype(np.int64)) + 128 * _abs_sums(conv.weights)
    scales = requantization(conv.multiplier, conv.shift, s["y_zero"], reach)
    if scales is None or conv.groups > 1 or s["y_c"] < 2:
        return []
    found = [_by_columns(conv, scales)]
    if (
        s["x_c"] % 4 == 0
        and s["k_h"] * s["k_w"] > 1
        and s["dilation_h"] == s["dilation_w"] == 1
    ):
        found.append(_by_rows(conv, scales))
    return [v for v in found if v is not None]


def _by_columns(conv: Conv, scales: Requantization) -> Variant | None:
    s = conv.shape
    k, pixels = s["k_h"] * s["k_w"] * s["x_c"], s["y_h"] * s["y_w"]
    pairs = padded_pairs(-(-k // 2))
    block = Block(
        channels=2, pixels=min(4, pixels), runs=1, pairs=pairs, run_pitch=0,
        pixel_pitch=2 * pairs, n_out=s["y_c"], y_min=s["y_min"], y_max=s["y_max"],
    )  # fmt: skip
    if not block.fits:
        return None
    in_fours = s["k_w"] * s["x_c"] % 4 == 0
    values = conv.weights.reshape(s["y_c"], k)
    if in_fours:
        values = values.reshape(s["y_c"], k // 4, 4)[:, :, _WIDENED].reshape(s["y_c"], k)
    padded = np.zeros((s["y_c"], 2 * pairs), np.int8)
    padded[:, :k] = values
    per_pixel = 30 + s["k_h"] * (20 + s["k_w"] * s["x_c"] * (2.75 if in_fours else 3.5))
    return _block_variant(
        conv, "by columns", block, pixels % 4, padded, scales,
        scratch=2 * 4 * 2 * pairs,
        body="es_conv_by_columns(&s, x, stream, scratch, y, {four}, {rest}, "
        f"{2 * pairs}, {int(in_fours)});",
        distance=pixel_distance(conv, np.arange(0, pixels, 4)),
        per_image=pixels // 4 * block_cycles(block) + pixels * per_pixel,
        n_rests=1,
        outer_bytes=700,
    )  # fmt: skip


def _by_rows(conv: Conv, scales: Requantization) -> Variant | None:
    s = conv.shape
    columns = (s["y_w"] - 1) * s["stride_w"] + s["k_w"]
    run = s["k_w"] * s["x_c"]
    block = Block(
        channels=2, pixels=min(4, s["y_w"]), runs=s["k_h"], pairs=run // 2,
        run_pitch=columns * s["x_c"], pixel_pitch=s["stride_w"] * s["x_c"], n_out=s["y_c"],
        y_min=s["y_min"], y_max=s["y_max"],
    )  # fmt: skip
    if not block.fits:
        return None
    values = conv.weights.reshape(s["y_c"], -1, 4)[:, :, _WIDENED].reshape(s["y_c"], -1)
    kept = max(0, s["k_h"] - s["stride_h"]) * columns * s["x_c"]
    new = min(s["k_h"], s["stride_h"]) * columns * s["x_c"]
    return _block_variant(
        conv, "by rows", block, s["y_w"] % 4, values, scales,
        scratch=2 * s["k_h"] * columns * s["x_c"],
        body="es_conv_by_rows(&s, x, stream, scratch, y, {four}, {rest});",
        distance=row_distance(conv),
        per_image=s["y_h"] * (s["y_w"] // 4 * block_cycles(block) + kept * 1.5 + new * 2.75 + 100),
        n_rests=s["y_h"],
        outer_bytes=500,
    )  # fmt: skip


def _block_variant(
    conv: Conv,
    name: str,
    block: Block,
    n_rest: int,
    values: npt.NDArray[np.int8],
    scales: Requantization,
    *,
    scratch: int,
    body: str,
    distance: int,
    per_image: float,
    n_rests: int,
    outer_bytes: int,
) -> Variant:
    s = conv.shape
    blocks = [block] if block.pixels == 4 else []
    if n_rest:
        blocks.append(with_pixels(block, n_rest))
        per_image += n_rests * block_cycles(blocks[-1])
    shape = f"{s['k_h']}x{s['k_w']}x{s['x_c']}_{s['y_c']}"
    emitted = emit(f"es_conv_s8_{shape}", blocks, s, body, f"{name}, {_sizes(s)}")
    stream = block_stream(values.reshape(s["y_c"], -1, 2), _bias(conv), scales, block.channels)
    return Variant(
        name=name,
        calls=(
            Call(
                function=emitted[0],
                args=(
                    TensorArg(tensor=conv.x),
                    ConstArg(name="weights", values=stream),
                    ScratchArg(n_bytes=scratch),
                    TensorArg(tensor=conv.y),
                ),
                emitted=emitted[1],
            ),
        ),
        overlaps={conv.x: distance},
        cycles=s["batches"] * per_image,
        code_bytes=outer_bytes + sum(block_bytes(b) for b in blocks),
    )


_WIDENED: Final = [0, 2, 1, 3]  # the order in which es_widen leaves four values


def _sizes(s: dict[str, int]) -> str:
    sizes = (f"{s[f'{t}_h']} x {s[f'{t}_w']} x {s[f'{t}_c']}" for t in ("x", "y"))
    return " to ".join(sizes) + f", stride {s['stride_h']} x {s['stride_w']}"


def pixel_distance(conv: Conv, firsts: npt.NDArray[np.int64]) -> int:
    """Return how far below its input the output of a kernel must lie that works pixel by pixel.

    Args:
        conv: The layer.
        firsts: For every step of one image, the first output pixel that it computes. A step reads
            all that it needs before it writes.
    """
    s = conv.shape
    y, x = np.divmod(np.arange(s["y_h"] * s["y_w"]), s["y_w"])
    row = _lowest(y, s["stride_h"], s["pad_top"], s["dilation_h"], s["k_h"], s["x_h"])
    column = _lowest(x, s["stride_w"], s["pad_left"], s["dilation_w"], s["k_w"], s["x_w"])
    lowest = np.where((row < 0) | (column < 0), _NEVER, (row * s["x_w"] + column) * s["x_c"])
    lasts = np.append(firsts[1:], lowest.size)
    return _distance(conv, lasts * s["y_c"], np.minimum.reduceat(lowest, firsts))


def row_distance(conv: Conv) -> int:
    """Return the same for a kernel that copies rows of its input, each once.

    Before it writes an output row it has copied all rows up to the last that this one needs.
    """
    s = conv.shape
    rows = np.arange(s["y_h"])
    reach = (s["k_h"] - 1) * s["dilation_h"] + 1
    copied = rows * s["stride_h"] - s["pad_top"] + reach  # rows no longer needed after each step
    before = np.clip(np.concatenate([[0], copied[:-1]]), 0, s["x_h"])
    lowest = np.where(before < np.clip(copied, 0, s["x_h"]), before * s["x_w"] * s["x_c"], _NEVER)
    return _distance(conv, (rows + 1) * s["y_w"] * s["y_c"], lowest)


_NEVER: Final = 2**62  # where a step reads nothing


def _lowest(
    at: npt.NDArray[np.int64], stride: int, pad: int, dilation: int, window: int, size: int
) -> npt.NDArray[np.int64]:
    """Return the lowest index inside the image that each position's window has; -1: none."""
    start = at * stride - pad
    first = np.maximum(0, -(start // dilation))  # taps before the image
    index = start + first * dilation
    return np.where((first < window) & (index < size), index, -1)


def _distance(conv: Conv, written: npt.NDArray[np.int64], lowest: npt.NDArray[np.int64]) -> int:
    """Return the largest of (written so far - lowest still needed), over all steps and images."""
    s = conv.shape
    images = np.arange(s["batches"])[:, None]
    y_bytes, x_bytes = s["y_h"] * s["y_w"] * s["y_c"], s["x_h"] * s["x_w"] * s["x_c"]
    all_written = (images * y_bytes + written).ravel()
    all_lowest = np.where(lowest == _NEVER, _NEVER, images * x_bytes + lowest).ravel()
    needed = np.minimum.accumulate(all_lowest[::-1])[::-1]
    steps = all_written[:-1] - needed[1:]
    return max(-int(all_written[-1]), int(steps.max(initial=-_NEVER)))


def _folded_bias(conv: Conv) -> npt.NDArray[np.int32] | None:
    """Return the bias for kernels that leave out the input's zero point; None if sums get large."""
    axes = (1, 2, 3)
    sums = conv.weights.astype(np.int64).sum(axis=axes)
    folded = conv.bias.astype(np.int64) - conv.shape["x_zero"] * sums
    if (np.abs(folded) + 128 * _abs_sums(conv.weights)).max() >= 2**30:
        return None
    narrow: npt.NDArray[np.int32] = folded.astype(np.int32)
    return narrow


def _bias(conv: Conv) -> npt.NDArray[np.int32]:
    folded = _folded_bias(conv)
    assert folded is not None
    return folded


def _args(conv: Conv, bias: npt.NDArray[np.int32], scratch: int = 0) -> tuple[Arg, ...]:
    return (
        StructArg(type="es_conv_shape", fields=conv.shape),
        TensorArg(tensor=conv.x),
        TensorArg(tensor=conv.w),
        ConstArg(name="bias", values=bias),
        ConstArg(name="multiplier", values=conv.multiplier),
        ConstArg(name="shift", values=conv.shift),
        *([ScratchArg(n_bytes=scratch)] if scratch else []),
        TensorArg(tensor=conv.y),
    )


def _conv(graph: Graph, op: Op, *, depthwise: bool) -> Conv:
    """Read the operator; ModelError for what no kernel handles or no shape agrees with."""
    x, w = graph.tensors[op.inputs[0]], graph.tensors[op.inputs[1]]
    y = graph.tensors[op.outputs[0]]
    types = (x.dtype, w.dtype, y.dtype)
    if types != ("int8", "int8", "int8"):
        raise refuse(graph, op, f"has the types {types}", "quantize the model to int8")
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
    reach = np.abs(values.astype(np.int64)) + 255 * _abs_sums(weights)
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


def _abs_sums(weights: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return, for every filter, the sum of its weights' magnitudes."""
    sums: npt.NDArray[np.int64] = np.abs(weights.astype(np.int64)).sum(axis=(1, 2, 3))
    return sums
