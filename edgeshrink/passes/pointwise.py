"""Operators that map each int8 value to an int8 value, as tables of 256 entries.

A table is indexed by the stored byte: the entry of `x` is `table[x & 255]`, in numpy
`table[x.view(np.uint8)]`. So entries 0 to 127 are for x >= 0, entries 128 to 255 for -128 to -1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeshrink.errors import ModelError
from edgeshrink.graph import Graph, Op, Tensor
from edgeshrink.passes.fixed_point import (
    LIMITS,
    Ints,
    activation_range,
    constant_of,
    logistic,
    mantissa_and_shift,
    multiply,
    quantize_multiplier,
    round_away,
    scale_of,
    shift_right,
    tanh,
    zero_of,
)

Table = npt.NDArray[np.int8]

STORED: Final[Ints] = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.int64)


def pointwise_table(graph: Graph, op: Op) -> Table:
    """Return what `op` makes of each of the 256 stored values, bit for bit as TFLM does.

    RELU_N1_TO_1 and RELU_0_TO_1, which TFLM does not have, follow LiteRT's reference kernels.

    Args:
        graph: The graph that holds the tensors of `op`.
        op: An operator for which `is_pointwise` holds.

    Raises:
        ModelError: The operator maps no single int8 value to an int8 value, or its scales are
            outside of what its kernel computes.
    """
    fault = _fault(graph, op)
    if fault:
        raise ModelError(f"operator {op.index} {op.kind}", fault, "quantize the model to int8")
    if op.kind == "LOOKUP":
        return np.asarray(op.options["table"], np.int8)
    position = varying_input(graph, op)
    x, y = graph.tensors[op.inputs[position]], graph.tensors[op.outputs[0]]
    if op.kind in _BINARY:
        other = constant_of(graph.tensors[op.inputs[1 - position]])
        assert other is not None
        tensors = graph.tensors[op.inputs[0]], graph.tensors[op.inputs[1]]
        constant = np.full_like(STORED, int(other.flat[0]))
        pair = (STORED, constant) if position == 0 else (constant, STORED)
        return binary(op, tensors, pair, y).astype(np.int8)
    return np.clip(_UNARY[op.kind](op, x, y), -128, 127).astype(np.int8)


def float_detour_table(x: Tensor, y: Tensor) -> Table | None:
    """Return what DEQUANTIZE of `x` and QUANTIZE into `y` make of each stored value, together."""
    if x.dtype != "int8" or y.dtype != "int8":
        return None
    x_scale, y_scale = scale_of(x), scale_of(y)
    if x_scale is None or y_scale is None or not 2**-16 < float(x_scale) / float(y_scale) < 2**16:
        return None
    reals = (float(x_scale) * (STORED - zero_of(x))).astype(np.float32) / y_scale
    stored = np.array([round_away(float(real)) for real in reals], np.int64) + zero_of(y)
    return np.clip(stored, -128, 127).astype(np.int8)


def is_pointwise(graph: Graph, op: Op) -> bool:
    """Return whether `op` maps each int8 value of one input to one int8 value of its output."""
    return _fault(graph, op) == ""


def varying_input(graph: Graph, op: Op) -> int:
    """Return the position of the input a pointwise operator reads; the other one is constant."""
    return 1 if len(op.inputs) > 1 and _is_scalar(graph, op.inputs[0]) else 0


def apply_table(table: Table, values: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """Return what a table makes of an int8 array."""
    return table[np.ascontiguousarray(values).view(np.uint8)].reshape(values.shape)


def binary(op: Op, inputs: tuple[Tensor, Tensor], values: tuple[Ints, Ints], y: Tensor) -> Ints:
    """Return ADD, SUB, MUL, MAXIMUM or MINIMUM of stored int8 values, as stored in `y`."""
    a, b = values
    if op.kind in ("MAXIMUM", "MINIMUM"):
        return np.maximum(a, b) if op.kind == "MAXIMUM" else np.minimum(a, b)
    limits = activation_range(op.options.get("activation", "NONE"), y)
    assert limits is not None
    a, b = a - zero_of(inputs[0]), b - zero_of(inputs[1])
    scales, y_scale = (_scale(inputs[0]), _scale(inputs[1])), _scale(y)
    if op.kind == "MUL":
        factor = float(scales[0]) * float(scales[1]) / float(y_scale)
        return np.clip(multiply(a * b, quantize_multiplier(factor)) + zero_of(y), *limits)
    first, second, last = _sum_factors(scales[0], scales[1], y_scale)
    a = multiply(a << 20, quantize_multiplier(first))
    b = multiply(b << 20, quantize_multiplier(second))
    total = a + b if op.kind == "ADD" else a - b
    return np.clip(multiply(total, quantize_multiplier(last)) + zero_of(y), *limits)


def _sum_factors(a: np.float32, b: np.float32, y: np.float32) -> tuple[float, float, float]:
    """Return the factors of both operands and of their sum."""
    twice = 2 * float(max(a, b))
    return float(a) / twice, float(b) / twice, twice / (2**20 * float(y))


def _scale(tensor: Tensor) -> np.float32:
    scale = scale_of(tensor)
    assert scale is not None
    return scale


def _is_scalar(graph: Graph, index: int) -> bool:
    """Return whether a tensor is a constant whose values are all the same."""
    if index < 0:
        return False
    values = constant_of(graph.tensors[index])
    return values is not None and values.size > 0 and bool((values == values.flat[0]).all())


def _fault(graph: Graph, op: Op) -> str:
    """Return why an operator is not pointwise; an empty text if it is."""
    if op.is_custom or op.kind not in (*_UNARY, *_BINARY, "LOOKUP"):
        return "does not work value by value"
    tensors = [graph.tensors[i] for i in (*op.inputs, *op.outputs) if i >= 0]
    if any(tensor.dtype != "int8" for tensor in tensors):
        return "is not int8 throughout"
    if op.kind == "LOOKUP":
        return ""
    if any(scale_of(tensor) is None for tensor in tensors):
        return "has a tensor without a scale, or with several"
    y = graph.tensors[op.outputs[0]]
    if op.kind in _BINARY:
        if len(op.inputs) != 2 or sum(_is_scalar(graph, i) for i in op.inputs) != 1:
            return "has not exactly one constant of a single value"
        if graph.tensors[op.inputs[varying_input(graph, op)]].shape != y.shape:
            return "broadcasts"
        return _range_fault(op, tensors, y)
    x_scale, y_scale = _scale(graph.tensors[op.inputs[0]]), _scale(y)
    if op.kind == "LOGISTIC" and zero_of(y) != -128:
        return f"has the output zero point {zero_of(y)}, must be -128"
    if op.kind in ("LOGISTIC", "TANH") and not 2**-27 <= float(x_scale) < 2**4:
        return f"has an input scale of {float(x_scale):g}, must be at least 2^-27 and below 16"
    if op.kind == "HARD_SWISH" and not 2**-15 < float(x_scale) / 128 / float(y_scale) < 1:
        return "has scales too far apart"
    if op.kind == "LEAKY_RELU" and not abs(float(op.options["alpha"])) < 2**10:
        return f"has the slope {op.options['alpha']}"
    if op.kind in _RESCALING and not 2**-15 < float(x_scale) / float(y_scale) < 2**15:
        return "has scales too far apart"
    return ""


def _range_fault(op: Op, tensors: list[Tensor], y: Tensor) -> str:
    if op.kind in ("MAXIMUM", "MINIMUM"):
        return ""
    if activation_range(op.options.get("activation", "NONE"), y) is None:
        return f"has the fused activation {op.options.get('activation')}"
    a, b, out = (float(_scale(tensor)) for tensor in (*tensors[:2], y))
    if op.kind == "MUL":
        return "" if 2**-31 < a * b / out < 2**14 else "has scales too far apart"
    last = 2 * max(a, b) / (2**20 * out)
    return "" if last < 1 and min(a, b) / max(a, b) > 2**-30 else "has scales too far apart"


def _rescaled(x: Tensor, y: Tensor) -> Ints:
    """Return the stored values on the output's scale, not clamped."""
    factor = quantize_multiplier(float(_scale(x)) / float(_scale(y)))
    return multiply(STORED - zero_of(x), factor) + zero_of(y)


def _quantize(_: Op, x: Tensor, y: Tensor) -> Ints:
    return _rescaled(x, y)


def _relu(op: Op, x: Tensor, y: Tensor) -> Ints:
    limits = activation_range(op.kind, y)
    assert limits is not None
    return np.clip(_rescaled(x, y), *limits)


def _relu6(_: Op, x: Tensor, __: Tensor) -> Ints:
    """Return stored values clamped by the input's scale: TFLM does not look at the output's."""
    limits = activation_range("RELU6", x)
    assert limits is not None
    return np.clip(STORED, *limits)


def _leaky_relu(op: Op, x: Tensor, y: Tensor) -> Ints:
    x_scale, y_scale = _scale(x), _scale(y)
    slope = quantize_multiplier(
        float(x_scale) * float(np.float32(op.options["alpha"])) / float(y_scale)
    )
    # TFLM multiplies by the magnitude and turns the sign of the result.
    leaked = multiply(STORED - zero_of(x), (abs(slope[0]), slope[1])) * (-1 if slope[0] < 0 else 1)
    return np.where(zero_of(x) <= STORED, _rescaled(x, y), leaked + zero_of(y))


def _elu(_: Op, x: Tensor, y: Tensor) -> Ints:
    x_scale, y_scale = _scale(x), _scale(y)
    inverse = np.float32(1) / y_scale
    found = []
    for stored in STORED.tolist():
        real = x_scale * np.float32(stored - zero_of(x))
        if real < 0:
            real = np.float32(math.exp(float(real))) - np.float32(1)
        rounded = round_away(max(-1e9, min(1e9, float(real * inverse))))
        found.append(int(np.float32(rounded) + np.float32(zero_of(y))))
    return np.array(found, np.int64)


def _abs(_: Op, x: Tensor, y: Tensor) -> Ints:
    magnitude = np.abs(STORED - zero_of(x))
    x_scale, y_scale = _scale(x), _scale(y)
    if x_scale != y_scale:
        magnitude = multiply(magnitude, quantize_multiplier(float(x_scale) / float(y_scale)))
    return magnitude + zero_of(y)


def _sigmoid(op: Op, x: Tensor, _: Tensor) -> Ints:
    """LOGISTIC and TANH in Q4.27. Their outputs have the one scale that the kernels know."""
    x_scale = _scale(x)
    factor = mantissa_and_shift(float(x_scale) * 2**27)
    radius = math.floor(15 * 2**27 / 2 ** factor[1])  # from here on the function is saturated
    shifted = STORED - zero_of(x)
    q4 = multiply(np.clip(shifted, -radius, radius), factor)
    is_logistic = op.kind == "LOGISTIC"
    y = shift_right(logistic(q4), 23) - 128 if is_logistic else shift_right(tanh(q4), 24)
    return np.where(shifted <= -radius, -128, np.where(shifted >= radius, 127, y))


def _hard_swish(_: Op, x: Tensor, y: Tensor) -> Ints:
    """x min(6, max(0, x + 3)) / 6 in 16-bit fixed-point numbers."""
    x_scale, y_scale = _scale(x), _scale(y)
    fine = float(x_scale) / 128
    out, out_shift = quantize_multiplier(fine / float(y_scale))
    gate_factor, gate_shift = quantize_multiplier(fine / (3 / 32768))
    widened = (STORED - zero_of(x)) * 128
    before_shift = _short_product(widened, _short(out))
    gate = widened
    if gate_shift > 0:  # saturates: all but the last bit before, the last one behind the product
        gate = _saturate_short(gate << (gate_shift - 1))
    gate = _short_product(gate, _short(gate_factor))
    gate = _saturate_short(gate << 1) if gate_shift > 0 else shift_right(gate, -gate_shift)
    gate = (gate + 2**15) >> 1  # from [-1, 1] to [0, 1]
    product = gate * before_shift
    truncated = np.sign(product) * (np.abs(product) >> 15)
    stored = shift_right(truncated, -out_shift) + zero_of(y)
    return ((stored + 2**15) & 0xFFFF) - 2**15  # an int16 that overflows wraps


def _short(multiplier: int) -> int:
    return min(32767, (multiplier + 2**15) >> 16)


def _short_product(a: Ints, b: int) -> Ints:
    product = a * b
    magnitude = (np.abs(product) + np.where(product >= 0, 2**14, 2**14 - 1)) >> 15
    return np.minimum(np.where(product >= 0, magnitude, -magnitude), 32767)


def _saturate_short(x: Ints) -> Ints:
    return np.clip(x, *LIMITS["int16"])


_UNARY: Final[dict[str, Callable[[Op, Tensor, Tensor], Ints]]] = {
    "QUANTIZE": _quantize,
    "RELU": _relu,
    "RELU_N1_TO_1": _relu,
    "RELU_0_TO_1": _relu,
    "RELU6": _relu6,
    "LEAKY_RELU": _leaky_relu,
    "ELU": _elu,
    "ABS": _abs,
    "LOGISTIC": _sigmoid,
    "TANH": _sigmoid,
    "HARD_SWISH": _hard_swish,
}
_BINARY: Final = ("ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM")
_RESCALING: Final = ("QUANTIZE", "RELU", "RELU_N1_TO_1", "RELU_0_TO_1", "LEAKY_RELU", "ABS")
