"""Normalisations along the last axis: SOFTMAX, LOG_SOFTMAX, L2_NORMALIZATION."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeshrink.graph import Graph, Op, Tensor
from edgeshrink.lowering.calls import Arg, Call, ConstArg, StructArg, TensorArg, Variant
from edgeshrink.lowering.fixed_point import quantize_multiplier, refuse, scale_and_zero
from edgeshrink.lowering.overlap import elementwise_distance
from edgeshrink.passes.fixed_point import exp_on_negative, multiply

_INTEGER_BITS: Final = 5  # of differences in e^difference
_MAX_TERMS: Final = 4095  # each is at most 1, and the sum has 12 bits before its point


def softmax(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """Return the variants of SOFTMAX."""
    x, y = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
    types = x.dtype, y.dtype
    if types not in _SOFTMAX_OUTPUT:
        raise refuse(graph, op, f"has the types {', '.join(types)}", "quantize the model to int8")
    rows, n = _rows(graph, op, x, y)
    x_scale, x_zero = scale_and_zero(graph, op, x.index)
    y_scale, y_zero = scale_and_zero(graph, op, y.index)
    scale, zero, tolerance = _SOFTMAX_OUTPUT[types]
    if y_zero != zero or abs(y_scale - scale) > tolerance * scale:
        raise refuse(
            graph, op, f"has an output scale of {y_scale:g} and zero point {y_zero}",
            f"must be {scale:g} and {zero}: export the model again",
        )  # fmt: skip
    beta = float(np.float32(op.options.get("beta", 1.0)))
    tables: tuple[Arg, ...] = ()
    if x.dtype == "int16":
        if x_zero != 0:
            raise refuse(graph, op, f"has the zero point {x_zero}", "quantize symmetrically")
        if n > 65536:
            raise refuse(graph, op, f"sums {n} values", "reduce the last dimension to 65536")
        real = x_scale * beta / (10.0 / 65535.0)
        if not 0 < real < 2**14:
            raise refuse(graph, op, f"has an input scale of {x_scale:g}", "calibrate again")
        multiplier, shift = quantize_multiplier(real)
        lowest = 0
        tables = (
            ConstArg(name="exp_table", values=_table(_exp, -10.0, 0.0)),
            ConstArg(name="reciprocal_table", values=_table(_reciprocal, 0.0, 1.0)),
        )
        function = "es_softmax_s16__ref"
    else:
        multiplier, shift, lowest = _scaled_differences(graph, op, x_scale, beta, n)
        function = f"es_softmax_{'s8' if y.dtype == 'int8' else 's8s16'}__ref"
    shape = StructArg(
        type="es_softmax_shape",
        fields={
            "rows": rows,
            "n": n,
            "multiplier": multiplier,
            "shift": shift,
            "diff_min": lowest,
        },
    )
    args = (shape, TensorArg(tensor=x.index), *tables, TensorArg(tensor=y.index))
    computed = _variant(function, args, x, y, cycles_per_value=330, code_bytes=900)
    if x.dtype == "int16":
        return (replace(computed, cycles=computed.cycles / 4, code_bytes=500),)
    powers = ConstArg(name="table", values=_powers(multiplier, shift, lowest))
    args = (shape, TensorArg(tensor=x.index), powers, TensorArg(tensor=y.index))
    stem = function.removesuffix("__ref")
    table = _variant(f"{stem}_table__ref", args, x, y, cycles_per_value=41, code_bytes=480)
    return (replace(table, name="table"), computed)


def _powers(multiplier: int, shift: int, lowest: int) -> npt.NDArray[np.int32]:
    """Return (256,): e^-difference in Q0.31 for every difference of two int8 values."""
    differences = -np.arange(256, dtype=np.int64)
    kept = differences >= lowest
    scaled = multiply(np.where(kept, differences, 0), (multiplier, shift))
    powers = np.where(kept, exp_on_negative(scaled, _INTEGER_BITS), 0)
    return powers.astype(np.int32)


def log_softmax(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """Return the variants of LOG_SOFTMAX."""
    x, y = _int8_tensors(graph, op)
    rows, n = _rows(graph, op, x, y)
    x_scale, _ = scale_and_zero(graph, op, x.index)
    if scale_and_zero(graph, op, y.index) != (1 / 16, 127):
        raise refuse(
            graph, op, "has an output of another scale or zero point than 1/16 and 127",
            "export the model again",
        )  # fmt: skip
    multiplier, shift, lowest = _scaled_differences(graph, op, x_scale, 1.0, n)
    back_multiplier, back_shift = quantize_multiplier((1 << (31 - shift)) / multiplier)
    if back_shift > 0:
        raise refuse(graph, op, f"has an input scale of {x_scale:g}", "calibrate again")
    shape = StructArg(
        type="es_log_softmax_shape",
        fields={
            "rows": rows,
            "n": n,
            "multiplier": multiplier,
            "shift": shift,
            "diff_min": lowest,
            "back_multiplier": back_multiplier,
            "back_shift": back_shift,
        },
    )
    args = shape, TensorArg(tensor=x.index), TensorArg(tensor=y.index)
    return (_variant("es_log_softmax_s8__ref", args, x, y, cycles_per_value=200, code_bytes=1640),)


def l2_normalization(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """Return the variants of L2_NORMALIZATION."""
    x, y = _int8_tensors(graph, op)
    rows, n = _rows(graph, op, x, y)
    _, x_zero = scale_and_zero(graph, op, x.index)
    if str(op.options.get("activation", "NONE")) != "NONE":
        raise refuse(
            graph, op, f"has the fused activation {op.options['activation']}",
            "make it an operator of its own",
        )  # fmt: skip
    if scale_and_zero(graph, op, y.index) != (1 / 128, 0):
        raise refuse(
            graph, op, "has an output of another scale or zero point than 1/128 and 0",
            "export the model again",
        )  # fmt: skip
    if n > 33025:
        raise refuse(graph, op, f"sums {n} squares", "reduce the last dimension to 33025")
    shape = StructArg(type="es_l2norm_shape", fields={"rows": rows, "n": n, "x_zero": x_zero})
    args = shape, TensorArg(tensor=x.index), TensorArg(tensor=y.index)
    return (_variant("es_l2norm_s8__ref", args, x, y, cycles_per_value=26, code_bytes=600),)


# Scale, zero point and relative tolerance of the output that TFLM asks for.
_SOFTMAX_OUTPUT: Final = {
    ("int8", "int8"): (1 / 256, -128, 0.0),
    ("int8", "int16"): (1 / 65536, -32768, 1e-3),
    ("int16", "int16"): (1 / 32768, 0, 1e-3),
}


def _scaled_differences(
    graph: Graph, op: Op, x_scale: float, beta: float, n: int
) -> tuple[int, int, int]:
    """Return multiplier and shift of differences to Q5.26, and the least that fits."""
    if n > _MAX_TERMS:
        raise refuse(graph, op, f"sums {n} values", f"reduce the last dimension to {_MAX_TERMS}")
    real = min(beta * x_scale * 2 ** (31 - _INTEGER_BITS), 2.0**31 - 1)
    if real <= 1:
        raise refuse(
            graph, op, f"has an input scale of {x_scale:g} and beta {beta:g}", "calibrate again"
        )
    multiplier, shift = quantize_multiplier(real / 2)  # the shift may be 31: then only 0 fits
    shift += 1
    limit = (2**_INTEGER_BITS - 1) * 2.0 ** (31 - _INTEGER_BITS) / 2.0**shift
    return multiplier, shift, -math.floor(limit)


def _exp(x: np.float32) -> np.float32:
    return np.float32(math.exp(float(x)))


def _reciprocal(x: np.float32) -> np.float32:
    return np.float32(1) / (np.float32(1) + x)


@cache
def _table(
    function: Callable[[np.float32], np.float32], low: float, high: float
) -> npt.NDArray[np.int16]:
    """Return Q0.15 values of a function on 512 steps from low to high, and at the end.

    TFLM's table, computed in float32 as it does: each entry is off by half of what linear
    interpolation gets wrong in the middle of its step.
    """
    one = np.float32(1)
    scale = np.float32(high - low) / np.float32(65535)
    zero = 32767 if high == 0 else -32768
    first, last = scale * np.float32(-32768 - zero), scale * np.float32(32767 - zero)
    step = (last - first) / np.float32(512)
    out_scale = np.float32(2) / np.float32(65535)
    span = out_scale * np.float32(32767) - out_scale * np.float32(-32768)
    inverse = np.float32(65536) * one / span
    half = np.float32(2)
    entries = []
    for i in range(512):
        at = first + np.float32(i) * step
        value = _round(function(at) * inverse)
        after = function(first + np.float32(i + 1) * step) * inverse
        between = _round((after + value) / half)
        middle = _round(function(at + step / half) * inverse)
        entries.append(value - _round((between - middle) / half))
    entries.append(_round(function(last) * inverse))
    return np.clip(np.array(entries, np.float64), -32768, 32767).astype(np.int16)


def _round(x: np.float32) -> np.float32:
    """Return the nearest integer, halves away from zero."""
    return np.float32(math.copysign(math.floor(abs(float(x)) + 0.5), float(x)))


def _rows(graph: Graph, op: Op, x: Tensor, y: Tensor) -> tuple[int, int]:
    """Return how many rows there are and how long they are."""
    if x.shape != y.shape or not x.shape:
        raise refuse(graph, op, f"gives {y.shape} for {x.shape}", "export the model again")
    return int(np.prod(x.shape[:-1], dtype=np.int64)), x.shape[-1]


def _int8_tensors(graph: Graph, op: Op) -> tuple[Tensor, Tensor]:
    x, y = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
    if (x.dtype, y.dtype) != ("int8", "int8"):
        raise refuse(graph, op, f"has the types {x.dtype}, {y.dtype}", "quantize the model to int8")
    return x, y


def _variant(
    function: str,
    args: tuple[Arg, ...],
    x: Tensor,
    y: Tensor,
    *,
    cycles_per_value: int,
    code_bytes: int,
) -> Variant:
    rows, n = int(np.prod(x.shape[:-1], dtype=np.int64)), x.shape[-1]
    return Variant(
        name="ref",
        calls=(Call(function=function, args=args),),
        overlaps=elementwise_distance(x, y),
        cycles=rows * (cycles_per_value * n + 390.0),  # the reciprocal, or the root, of the sum
        code_bytes=code_bytes,
    )


TABLE: Final = {
    "SOFTMAX": softmax,
    "LOG_SOFTMAX": log_softmax,
    "L2_NORMALIZATION": l2_normalization,
}
