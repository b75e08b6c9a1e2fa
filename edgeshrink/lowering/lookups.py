"""One input, one output, value by value: activations, QUANTIZE, DEQUANTIZE, tables.

An int8 value that becomes an int8 value needs no arithmetic at run time: it is a table.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeshrink.errors import ModelError
from edgeshrink.graph import Graph, Op, Tensor
from edgeshrink.lowering.calls import Arg, Call, ConstArg, IntArg, StructArg, TensorArg, Variant
from edgeshrink.lowering.fixed_point import (
    LIMITS,
    activation_range,
    quantize_multiplier,
    refuse,
    scale_and_zero,
)
from edgeshrink.lowering.overlap import elementwise_distance
from edgeshrink.passes.pointwise import is_pointwise, pointwise_table, varying_input

_RESCALES: Final = {
    ("int8", "int8"): "s8",
    ("int8", "uint8"): "s8u8",
    ("int8", "int16"): "s8s16",
    ("int8", "int32"): "s8s32",
    ("uint8", "int8"): "u8s8",
    ("int16", "int8"): "s16s8",
    ("int16", "int16"): "s16",
    ("int16", "int32"): "s16s32",
    ("int32", "int8"): "s32s8",
    ("int32", "int16"): "s32s16",
}
_TO_FLOAT: Final = {"int8": "s8", "uint8": "u8", "int16": "s16"}
_FROM_FLOAT: Final = {"int8": "s8", "int16": "s16"}


def pointwise(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """Return the variants of an activation, of ABS, or of LOOKUP."""
    x, y = _tensors(graph, op)
    if (x.dtype, y.dtype) == ("int8", "int8"):
        return _table_variants(graph, op, _table(graph, op))
    if (x.dtype, y.dtype) == ("int16", "int16") and op.kind in _INT16:
        return (_int16(graph, op, x, y),)
    raise refuse(graph, op, f"has the types {x.dtype}, {y.dtype}", "quantize the model to int8")


def pointwise_variants(graph: Graph, op: Op) -> tuple[Variant, ...]:
    """Return the variants by table of an operator with two inputs, one a single constant."""
    return _table_variants(graph, op, _table(graph, op)) if is_pointwise(graph, op) else ()


def rsqrt(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """Return the variants of RSQRT."""
    x, y = _tensors(graph, op)
    if (x.dtype, y.dtype) != ("int8", "int8"):
        raise refuse(graph, op, f"has the types {x.dtype}, {y.dtype}", "quantize to int8")
    return _table_variants(graph, op, _rsqrt_table(graph, op, x, y))


def quantize(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """Return the variants of QUANTIZE."""
    x, y = _tensors(graph, op)
    y_scale, y_zero = scale_and_zero(graph, op, y.index)
    if x.dtype == "float32" and y.dtype in _FROM_FLOAT:
        function = f"es_quantize_f32{_FROM_FLOAT[y.dtype]}__ref"
        return (_float_variant(function, x, y, y_scale, y_zero),)
    if (x.dtype, y.dtype) not in _RESCALES:
        raise refuse(graph, op, f"has the types {x.dtype}, {y.dtype}", "quantize the model to int8")
    x_scale, x_zero = scale_and_zero(graph, op, x.index)
    multiplier, shift = _factor(graph, op, x_scale / y_scale)
    shape = StructArg(
        type="es_rescale_shape",
        fields={
            "n": _count(y),
            "x_zero": x_zero,
            "y_zero": y_zero,
            "multiplier": multiplier,
            "shift": shift,
        },
    )
    call = Call(
        function=f"es_rescale_{_RESCALES[x.dtype, y.dtype]}__ref",
        args=(shape, TensorArg(tensor=x.index), TensorArg(tensor=y.index)),
    )
    rescale = Variant(
        name="rescale",
        calls=(call,),
        overlaps=elementwise_distance(x, y),
        cycles=21.0 * _count(y),
        code_bytes=135,
    )
    if (x.dtype, y.dtype) == ("int8", "int8") and is_pointwise(graph, op):
        return (rescale, *_table_variants(graph, op, _table(graph, op)))
    return (rescale,)


def dequantize(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """Return the variants of DEQUANTIZE."""
    x, y = _tensors(graph, op)
    if x.dtype not in _TO_FLOAT or y.dtype != "float32":
        raise refuse(graph, op, f"has the types {x.dtype}, {y.dtype}", "quantize the model to int8")
    scale, zero = scale_and_zero(graph, op, x.index)
    function = f"es_dequantize_{_TO_FLOAT[x.dtype]}f32__ref"
    return (_float_variant(function, x, y, scale, zero),)


def _float_variant(function: str, x: Tensor, y: Tensor, scale: float, zero: int) -> Variant:
    args = (
        TensorArg(tensor=x.index),
        ConstArg(name="scale", values=np.array([scale], np.float32)),
        TensorArg(tensor=y.index),
        IntArg(value=_count(y)),
        IntArg(value=zero),
    )
    return Variant(
        name="ref",
        calls=(Call(function=function, args=args),),
        overlaps=elementwise_distance(x, y),
        cycles=60.0 * _count(y),
        code_bytes=250,
    )


def _table(graph: Graph, op: Op) -> npt.NDArray[np.int8]:
    try:
        return pointwise_table(graph, op)
    except ModelError as err:
        raise refuse(graph, op, err.what, err.fix) from err


def _table_variants(graph: Graph, op: Op, table: npt.NDArray[np.int8]) -> tuple[Variant, ...]:
    """Return the lookup, and before it what is smaller where the table is nothing but a clamp."""
    position = 0 if op.kind == "LOOKUP" else varying_input(graph, op)
    x, y = graph.tensors[op.inputs[position]], graph.tensors[op.outputs[0]]
    n = _count(y)
    low, high = int(table.min()), int(table.max())
    stored = np.arange(256, dtype=np.uint8).view(np.int8)
    variants = []
    if (table == stored).all():
        variants.append(Variant(name="view", calls=(), alias={y.index: x.index}))
    if (table == np.clip(stored, low, high)).all():
        args: tuple[Arg, ...] = (
            TensorArg(tensor=x.index),
            TensorArg(tensor=y.index),
            *(IntArg(value=value) for value in (n, low, high)),
        )
        call = Call(function="es_clamp_s8__ref", args=args)
        variants.append(_value_by_value("clamp", call, x, y, cycles=10.0, code_bytes=52))
    args = (
        TensorArg(tensor=x.index),
        ConstArg(name="table", values=table.astype(np.int8)),
        TensorArg(tensor=y.index),
        IntArg(value=n),
    )
    call = Call(function="es_lookup_s8__ref", args=args)
    variants.append(_value_by_value("table", call, x, y, cycles=6.0, code_bytes=34))
    return tuple(variants)


def _value_by_value(
    name: str, call: Call, x: Tensor, y: Tensor, *, cycles: float, code_bytes: int
) -> Variant:
    """Return the variant of a call that takes one value after the other, at `cycles` for each."""
    return Variant(
        name=name,
        calls=(call,),
        overlaps=elementwise_distance(x, y),
        cycles=cycles * _count(y),
        code_bytes=code_bytes,
    )


def _int16(graph: Graph, op: Op, x: Tensor, y: Tensor) -> Variant:
    """Return the variant of an int16 activation."""
    x_scale, x_zero = scale_and_zero(graph, op, x.index)
    y_scale, y_zero = scale_and_zero(graph, op, y.index)
    if op.kind == "RELU6":  # TFLM clamps by the input's scale and zero point
        call = _clamp_s16(graph, op, x, y)
    elif x_zero != 0 or y_zero != 0:
        raise refuse(
            graph, op, "is int16 with a zero point other than 0", "quantize int16 symmetrically"
        )
    elif op.kind in ("LOGISTIC", "TANH"):
        call = _sigmoid_s16(graph, op, x, y, x_scale, y_scale)
    else:
        call = _slopes_s16(graph, op, x, y, x_scale, y_scale)
    return _value_by_value("ref", call, x, y, cycles=24.0, code_bytes=160)


_INT16: Final = ("RELU", "RELU6", "LEAKY_RELU", "ABS", "LOGISTIC", "TANH")


def _clamp_s16(graph: Graph, op: Op, x: Tensor, y: Tensor) -> Call:
    as_option = Op(
        index=op.index, kind=op.kind, version=op.version, inputs=op.inputs, outputs=op.outputs,
        options={"activation": op.kind},
    )  # fmt: skip
    low, high = activation_range(graph, as_option, x.index)
    args = (
        TensorArg(tensor=x.index),
        TensorArg(tensor=y.index),
        IntArg(value=_count(y)),
        IntArg(value=low),
        IntArg(value=high),
    )
    return Call(function="es_clamp_s16__ref", args=args)


def _slopes_s16(graph: Graph, op: Op, x: Tensor, y: Tensor, x_scale: float, y_scale: float) -> Call:
    """RELU, LEAKY_RELU and ABS."""
    multiplier, shift = _factor(graph, op, x_scale / y_scale)
    pointers = TensorArg(tensor=x.index), TensorArg(tensor=y.index)
    if op.kind == "ABS":
        fields = {
            "n": _count(y),
            "x_zero": 0,
            "y_zero": 0,
            "multiplier": multiplier,
            "shift": shift,
        }
        shape = StructArg(type="es_rescale_shape", fields=fields)
        return Call(function="es_abs_s16__ref", args=(shape, *pointers))
    slope = x_scale * float(np.float32(op.options.get("alpha", 0.0))) / y_scale
    negative = _factor(graph, op, abs(slope))
    fields = {
        "n": _count(y),
        "multiplier": multiplier,
        "shift": shift,
        "neg_multiplier": negative[0],
        "neg_shift": negative[1],
        "neg_sign": -1 if slope < 0 else 1,
    }
    shape = StructArg(type="es_leaky_shape", fields=fields)
    return Call(function="es_leaky_s16__ref", args=(shape, *pointers))


def _sigmoid_s16(
    graph: Graph, op: Op, x: Tensor, y: Tensor, x_scale: float, y_scale: float
) -> Call:
    if not _is_power_of_two(y_scale, -15):
        raise refuse(graph, op, f"has an output scale of {y_scale:g}", "must be 2^-15")
    left = 12 + round(math.log2(x_scale))
    if _is_power_of_two(x_scale, left - 12) and left in ((0,) if op.kind == "LOGISTIC" else (0, 1)):
        multiplier, shift = 3 << left, 0
    else:
        real, shift = x_scale * 4096.0 * 3.0, 0
        while real <= 32767.0 / 2.0 and shift <= 30:
            shift += 1
            real *= 2.0
        multiplier = int(real)
    if multiplier > 32767:
        raise refuse(
            graph, op, f"has an input scale of {x_scale:g}", "must be below 2.66: calibrate again"
        )
    shape = StructArg(
        type="es_sigmoid_shape",
        fields={"n": _count(y), "multiplier": multiplier, "shift": shift},
    )
    args = (
        shape,
        ConstArg(name="table", values=_logistic_table()),
        TensorArg(tensor=x.index),
        TensorArg(tensor=y.index),
    )
    return Call(function=f"es_{op.kind.lower()}_s16__ref", args=args)


def _logistic_table() -> npt.NDArray[np.uint16]:
    """Return (256,): 2^16 / (1 + e^(-i / 24)), raised by half of what a straight line to the next
    entry falls short of in the middle. The last is what the function tends to."""
    at = np.arange(257) / 24
    exact = 65536 / (1 + np.exp(-at))
    middle = 65536 / (1 + np.exp(-(at[:-1] + 1 / 48)))
    raised = exact[:-1] + (middle - (exact[:-1] + exact[1:]) / 2) / 2
    raised[-1] = 65535
    return np.floor(raised + 0.5).astype(np.uint16)


def _is_power_of_two(scale: float, exponent: int) -> bool:
    """Return whether TFLM takes a scale for 2^exponent."""
    return abs(math.log2(scale) - exponent) < 1e-3


def _rsqrt_table(graph: Graph, op: Op, x: Tensor, y: Tensor) -> npt.NDArray[np.int8]:
    """Return TFLM's RSQRT; below the zero point, where it stops with an error, the highest."""
    x_scale, x_zero = scale_and_zero(graph, op, x.index)
    y_scale, y_zero = scale_and_zero(graph, op, y.index)
    narrow = np.sqrt(np.float32(x_scale)) * np.float32(y_scale)
    multiplier, shift = _factor(graph, op, 1.0 / float(narrow))
    low, high = LIMITS["int8"]
    table = np.full(256, high, np.int8)
    for stored in range(max(low, x_zero + 1), high + 1):
        root, root_shift = _reciprocal_root(stored - x_zero)
        value = _requantize(1, root, root_shift + 20)
        if not -31 <= shift - 20 <= 30:
            raise refuse(graph, op, "has scales too far apart", "calibrate again")
        value = _requantize(value, multiplier, shift - 20) + y_zero
        table[stored & 255] = min(max(value, low), high)
    return table


def _reciprocal_root(x: int) -> tuple[int, int]:
    """Return (multiplier, shift) of 1 / sqrt(x), 1 <= x < 2^29, as es_reciprocal_root does."""
    if x == 1:
        return 2**31 - 1, 0
    pairs = (31 - x.bit_length()) // 2 - 1
    shift = 11 - pairs
    half = _shift_right(x << (2 * pairs) >> 1, 1)
    y = 1 << 28
    for _ in range(5):
        cube = _high_product(_high_product(y, y), y) << 6
        y = (_high_product((1 << 28) + (1 << 27), y) - _high_product(half, cube)) << 3
    y = _high_product(y, 1518500250)
    return (y << -shift, 0) if shift < 0 else (y, -shift)


def _high_product(a: int, b: int) -> int:
    product = a * b
    magnitude = (abs(product) + 2**30 - (product < 0)) >> 31
    return magnitude if product >= 0 else -magnitude


def _shift_right(x: int, n_bits: int) -> int:
    magnitude = (abs(x) + (1 << n_bits >> 1)) >> n_bits
    return magnitude if x >= 0 else -magnitude


def _requantize(x: int, multiplier: int, shift: int) -> int:
    return _shift_right(_high_product(x << max(shift, 0), multiplier), max(-shift, 0))


def _factor(graph: Graph, op: Op, real: float) -> tuple[int, int]:
    """Return `quantize_multiplier` of a factor that a left shift within int32 can express."""
    multiplier, shift = quantize_multiplier(real)
    if real >= 2**30:
        raise refuse(
            graph, op, f"has scales whose quotient is {real:g}",
            "calibrate on data that the model meets",
        )  # fmt: skip
    return multiplier, shift


def _tensors(graph: Graph, op: Op) -> tuple[Tensor, Tensor]:
    x, y = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
    if _count(x) != _count(y):
        raise refuse(graph, op, f"gives {y.shape} for {x.shape}", "export the model again")
    return x, y


def _count(tensor: Tensor) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64))


TABLE: Final = {
    "LOOKUP": pointwise,
    "LOGISTIC": pointwise,
    "TANH": pointwise,
    "RELU": pointwise,
    "RELU6": pointwise,
    "RELU_0_TO_1": pointwise,
    "RELU_N1_TO_1": pointwise,
    "LEAKY_RELU": pointwise,
    "ELU": pointwise,
    "HARD_SWISH": pointwise,
    "ABS": pointwise,
    "RSQRT": rsqrt,
    "QUANTIZE": quantize,
    "DEQUANTIZE": dequantize,
}
