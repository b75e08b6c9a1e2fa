"""Many values become one: pools, MEAN, SUM, ARG_MAX."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from edgeshrink.graph import Graph, Op, Tensor
from edgeshrink.lowering.calls import Call, StructArg, TensorArg, Variant
from edgeshrink.lowering.fixed_point import (
    activation_range,
    constant,
    quantize_multiplier,
    refuse,
    scale_and_zero,
)
from edgeshrink.lowering.overlap import grid, in_order_distance
from edgeshrink.passes.padding import conv_padding

_SUFFIX: Final = {"int8": "s8", "int16": "s16"}
_MAX_LOOPS: Final = 3  # of es_sum_shape: kept, and summed over


def pool(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """Return the variants of AVERAGE_POOL_2D and MAX_POOL_2D."""
    x, y, suffix = _tensors(graph, op)
    x_scale, x_zero = scale_and_zero(graph, op, x.index)
    y_scale, y_zero = scale_and_zero(graph, op, y.index)
    if x_zero != y_zero or abs(x_scale - y_scale) > 1e-6:
        raise refuse(
            graph, op, "changes scale or zero point", "give input and output one quantization"
        )
    window = int(op.options["filter_height"]), int(op.options["filter_width"])
    stride = int(op.options["stride_h"]), int(op.options["stride_w"])
    if len(x.shape) != 4 or min(window) < 1 or min(stride) < 1:
        raise refuse(
            graph, op, f"has a window of {window} and a stride of {stride} on {x.shape}",
            "export the model again",
        )  # fmt: skip
    top, bottom, left, right = conv_padding(graph, op)
    pad = top, left
    size = [
        (n + added - k) // s + 1
        for n, added, k, s in zip(
            x.shape[1:3], (top + bottom, left + right), window, stride, strict=True
        )
    ]
    if y.shape != (x.shape[0], *size, x.shape[3]):
        raise refuse(
            graph, op, f"gives {y.shape} for {x.shape}, must be "
            f"{(x.shape[0], *size, x.shape[3])}", "export the model again",
        )  # fmt: skip
    covered = min(window[0], x.shape[1]) * min(window[1], x.shape[2])
    if op.kind == "AVERAGE_POOL_2D" and covered > (2**23 if suffix == "s8" else 2**15):
        raise refuse(graph, op, f"sums {covered} values", "pool in two steps")
    y_min, y_max = activation_range(graph, op, y.index)
    fields = {
        "batch": x.shape[0],
        "in_height": x.shape[1],
        "in_width": x.shape[2],
        "channels": x.shape[3],
        "out_height": size[0],
        "out_width": size[1],
        "window_height": window[0],
        "window_width": window[1],
        "stride_height": stride[0],
        "stride_width": stride[1],
        "pad_top": pad[0],
        "pad_left": pad[1],
        "y_min": y_min,
        "y_max": y_max,
    }
    rows = np.maximum(0, np.arange(size[0]) * stride[0] - pad[0])
    columns = np.maximum(0, np.arange(size[1]) * stride[1] - pad[1])
    pixels = np.add.outer(np.arange(x.shape[0]) * x.shape[1], rows)  # (batch, rows)
    pixels = np.add.outer(pixels * x.shape[2], columns)
    first = np.add.outer(pixels * x.shape[3], np.arange(x.shape[3])).reshape(-1)
    name = "avgpool" if op.kind == "AVERAGE_POOL_2D" else "maxpool"
    n = _count(y)
    reference = Variant(
        name="ref",
        calls=(_call(f"es_{name}_{suffix}__ref", "es_pool_shape", fields, x, y),),
        overlaps=in_order_distance(first, x, y),
        cycles=n * (9.0 * covered + 140),
        code_bytes=300,
    )
    fits = name == "maxpool" or covered <= 256  # four sums of 16 bits
    if suffix != "s8" or not fits:
        return (reference,)
    if "dsp" in isa:
        per_value, per_output = 2.75, 42 if name == "avgpool" else 18
        folder = "dsp"
    elif "scalar" in isa and name == "avgpool" and x.shape[3] % 4 == 0:
        per_value, per_output, folder = 3.5, 50, "scalar"
    else:
        return (reference,)
    by_four = replace(
        reference,
        name=folder,
        calls=(_call(f"es_{name}_s8__{folder}", "es_pool_shape", fields, x, y),),
        cycles=n * (per_value * covered + per_output),
        code_bytes=500 if folder == "dsp" else 380,
    )
    return (reference, by_four)


def mean_or_sum(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """Return the variants of MEAN and SUM."""
    x, y, suffix = _tensors(graph, op)
    axes = _axes(graph, op, x)
    x_scale, x_zero = scale_and_zero(graph, op, x.index)
    y_scale, y_zero = scale_and_zero(graph, op, y.index)
    summands = int(np.prod([x.shape[a] for a in axes], dtype=np.int64))
    kept_shape = [n for a, n in enumerate(x.shape) if a not in axes]
    if _count(y) != int(np.prod(kept_shape, dtype=np.int64)) or summands == 0:
        raise refuse(
            graph, op, f"gives {y.shape} for {x.shape} over {axes}", "export the model again"
        )
    real = x_scale / y_scale
    if real >= 2**30:
        raise refuse(graph, op, f"has scales whose quotient is {real:g}", "calibrate again")
    multiplier, shift = quantize_multiplier(real)
    if op.kind == "MEAN":  # 1 / summands becomes part of the multiplier, as TFLM does it
        extra = min(summands.bit_length() - 1, 32, 31 + shift)
        multiplier = (multiplier << extra) // summands
        shift -= extra
    kept, reduced = _loops(x.shape, axes)
    if max(len(kept), len(reduced)) > _MAX_LOOPS:
        raise refuse(
            graph, op, f"reduces {x.shape} over {axes}", "reduce neighbouring dimensions at a time"
        )
    kept = [(1, 0)] * (_MAX_LOOPS - len(kept)) + kept
    reduced = [(1, 0)] * (_MAX_LOOPS - len(reduced)) + reduced
    fields = {f"k{i}": size for i, (size, _) in enumerate(kept)}
    fields |= {f"ks{i}": stride for i, (_, stride) in enumerate(kept)}
    fields |= {f"r{i}": size for i, (size, _) in enumerate(reduced)}
    fields |= {f"rs{i}": stride for i, (_, stride) in enumerate(reduced)}
    fields |= {
        "bias": _wrap(-x_zero * summands),
        "multiplier": multiplier,
        "shift": shift,
        "y_zero": y_zero,
    }
    first = grid(tuple(k[0] for k in kept), tuple(k[1] for k in kept))
    return (
        Variant(
            name="ref",
            calls=(_call(f"es_sum_{suffix}__ref", "es_sum_shape", fields, x, y),),
            overlaps=in_order_distance(first, x, y),
            cycles=6.0 * _count(x) + 60.0 * _count(y),
            code_bytes=320,
        ),
    )


def arg_max(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """Return the variants of ARG_MAX."""
    x, y = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
    types = x.dtype, y.dtype
    if types not in (("int8", "int32"), ("int8", "int64")):
        raise refuse(graph, op, f"has the types {', '.join(types)}", "quantize its input to int8")
    axes = _axes(graph, op, x)
    if len(axes) != 1:
        raise refuse(graph, op, f"has the axes {axes}", "give it one axis")
    axis = axes[0]
    fields = {
        "outer": int(np.prod(x.shape[:axis], dtype=np.int64)),
        "n": x.shape[axis],
        "inner": int(np.prod(x.shape[axis + 1 :], dtype=np.int64)),
    }
    if _count(y) != fields["outer"] * fields["inner"] or fields["n"] < 1:
        raise refuse(
            graph, op, f"gives {y.shape} for {x.shape} along {axis}", "export the model again"
        )
    strides = fields["n"] * fields["inner"], 1
    first = grid((fields["outer"], fields["inner"]), strides)
    function = f"es_argmax_s8{'s32' if y.dtype == 'int32' else 's64'}__ref"
    return (
        Variant(
            name="ref",
            calls=(_call(function, "es_arg_shape", fields, x, y),),
            overlaps=in_order_distance(first, x, y),
            cycles=9.0 * _count(x),
            code_bytes=138,
        ),
    )


def _axes(graph: Graph, op: Op, x: Tensor) -> tuple[int, ...]:
    """Return the dimensions that the op's second input names, in order, each once."""
    values = constant(graph, op, 1)
    if values is None:
        raise refuse(graph, op, "has axes that are computed", "make them constants")
    rank = len(x.shape)
    axes = {int(a) + rank if a < 0 else int(a) for a in values.reshape(-1).tolist()}
    if any(not 0 <= a < rank for a in axes):
        raise refuse(
            graph, op, f"has the axes {values.reshape(-1).tolist()} on {rank} dimensions",
            "export the model again",
        )  # fmt: skip
    return tuple(sorted(axes))


def _loops(
    shape: tuple[int, ...], axes: tuple[int, ...]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return (size, stride) of the dimensions that are kept, and of those that are not.

    Neighbours of one kind are one: they lie in memory like one.
    """
    found: list[tuple[int, int, bool]] = []
    stride = 1
    for axis in range(len(shape) - 1, -1, -1):
        size, is_reduced = shape[axis], axis in axes
        if size != 1:
            if found and found[-1][2] == is_reduced:
                found[-1] = found[-1][0] * size, found[-1][1], is_reduced
            else:
                found.append((size, stride, is_reduced))
        stride *= size
    found.reverse()
    kept = [(size, stride) for size, stride, is_reduced in found if not is_reduced]
    return kept, [(size, stride) for size, stride, is_reduced in found if is_reduced]


def _call(function: str, struct: str, fields: dict[str, int], x: Tensor, y: Tensor) -> Call:
    args = (
        StructArg(type=struct, fields=fields),
        TensorArg(tensor=x.index),
        TensorArg(tensor=y.index),
    )
    return Call(function=function, args=args)


def _tensors(graph: Graph, op: Op) -> tuple[Tensor, Tensor, str]:
    """Return input, output and the type as kernels spell it; both must be int8, or int16."""
    x, y = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
    if x.dtype != y.dtype or x.dtype not in _SUFFIX:
        types = x.dtype, y.dtype
        raise refuse(graph, op, f"has the types {', '.join(types)}", "quantize the model to int8")
    return x, y, _SUFFIX[x.dtype]


def _wrap(value: int) -> int:
    """Return what int32 arithmetic makes of a value."""
    return (value + 2**31) % 2**32 - 2**31


def _count(tensor: Tensor) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64))


TABLE: Final = {
    "AVERAGE_POOL_2D": pool,
    "MAX_POOL_2D": pool,
    "MEAN": mean_or_sum,
    "SUM": mean_or_sum,
    "ARG_MAX": arg_max,
}
