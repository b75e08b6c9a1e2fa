"""Runs a graph in plain numpy, operator by operator, with TensorFlow Lite Micro's int8 arithmetic.

A second oracle beside TFLM itself: it also runs graphs that no `.tflite` can hold, such as those
with the options that graph passes add (`padding` "EXPLICIT", LOOKUP, the activation RELU_0_TO_1).
It shares no code with the package but the nouns of `edgeshrink.graph`; everything is written from
the kernels' definitions: int64 arrays, saturating rounding doubling high multiplication, then the
rounding right shift. Tests compare it with TFLM bit for bit.

    outputs = run(graph, x)          # one inference; arrays have the shapes in the graph
    values = run_all(graph, x)       # every tensor's value, by index
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgeshrink.graph import Graph, Op, Tensor

Array = np.ndarray
I32_MIN, I32_MAX = -(2**31), 2**31 - 1
LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767)}


def run(graph: Graph, *inputs: Array) -> tuple[Array, ...]:
    """One inference: the outputs for these inputs."""
    values = run_all(graph, *inputs)
    return tuple(values[i] for i in graph.outputs)


def run_all(graph: Graph, *inputs: Array) -> dict[int, Array]:
    """One inference: the value of every tensor that has one."""
    values = {t.index: np.asarray(t.data) for t in graph.tensors if t.data is not None}
    for index, array in zip(graph.inputs, inputs, strict=True):
        tensor = graph.tensors[index]
        assert array.dtype == tensor.dtype, f"input {tensor.name} is {tensor.dtype}"
        values[index] = array.reshape(tensor.shape)
    for op in graph.ops:
        if op.is_custom or op.kind not in KERNELS:
            raise NotImplementedError(f"operator {op.index} {op.kind}")
        arguments = [values[i] if i >= 0 else None for i in op.inputs]
        results = KERNELS[op.kind](Call(graph, op), *arguments)
        if not isinstance(results, tuple):
            results = (results,)
        for index, result in zip(op.outputs, results, strict=True):
            tensor = graph.tensors[index]
            assert result.size == math.prod(tensor.shape), f"{op.kind} gives {result.shape}"
            values[index] = result.astype(tensor.dtype).reshape(tensor.shape)
    return values


class Call:
    """One operator of a graph and what its kernel asks about it."""

    def __init__(self, graph: Graph, op: Op) -> None:
        self.graph, self.op, self.options = graph, op, op.options

    def x(self, position: int = 0) -> Tensor:
        return self.graph.tensors[self.op.inputs[position]]

    @property
    def y(self) -> Tensor:
        return self.graph.tensors[self.op.outputs[0]]


def scale(tensor: Tensor) -> np.float32:
    assert tensor.quantization is not None, f"{tensor.name} has no scale"
    assert tensor.quantization.scales.size == 1, f"{tensor.name} has several scales"
    return np.float32(tensor.quantization.scales[0])


def zero(tensor: Tensor) -> int:
    return 0 if tensor.quantization is None else int(tensor.quantization.zero_points[0])


# --- Fixed-point arithmetic: int64 arrays that hold int32 values -----------------------------


def away(real: float) -> int:
    """The nearest integer, halves away from zero, as C's round()."""
    return int(math.copysign(math.floor(abs(real) + 0.5), real))


def truncated(a: Array, b: int) -> Array:
    """C's integer division, towards zero."""
    a = np.asarray(a, np.int64)
    return np.sign(a) * (np.abs(a) // b)


def high_mul(a: Array | int, b: Array | int) -> Array:
    """Rounded high half of 2ab, saturated where both are the lowest int32."""
    product = np.asarray(a, np.int64) * np.asarray(b, np.int64)
    nudged = product + np.where(product >= 0, 2**30, 1 - 2**30)
    return np.where(product == 2**62, I32_MAX, truncated(nudged, 2**31))


def shift_right(x: Array, exponent: int) -> Array:
    """x / 2^exponent to the nearest integer, halves away from zero."""
    x = np.asarray(x, np.int64)
    if exponent == 0:
        return x
    half = 1 << (exponent - 1)
    return np.where(x >= 0, (x + half) >> exponent, -((-x + half) >> exponent))


def quantized(real: float) -> tuple[int, int]:
    """A positive real as (multiplier, shift): multiplier x 2^(shift - 31)."""
    if real == 0:
        return 0, 0
    fraction, shift = math.frexp(real)
    multiplier = away(fraction * 2**31)
    if abs(multiplier) == 2**31:
        multiplier, shift = multiplier // 2, shift + 1
    return (0, 0) if shift < -31 else (multiplier, shift)


def wrapped(x: Array) -> Array:
    """The int32 that is left of x."""
    return (np.asarray(x, np.int64) + 2**31) % 2**32 - 2**31


def rescaled(x: Array, multiplier: int, shift: int) -> Array:
    """x times a quantized multiplier, rounded twice."""
    left, right = max(shift, 0), max(-shift, 0)
    return shift_right(high_mul(wrapped(np.asarray(x, np.int64) << left), multiplier), right)


def clamped(x: Array, low: int, high: int) -> Array:
    return np.minimum(np.maximum(x, low), high)


def bounds(call: Call) -> tuple[int, int]:
    """Lowest and highest stored value that the fused activation leaves."""
    low, high = LIMITS[call.y.dtype]
    real_low, real_high = {
        "NONE": (None, None), "RELU": (0, None), "RELU6": (0, 6), "RELU_N1_TO_1": (-1, 1),
        "RELU_0_TO_1": (0, 1),
    }[call.options.get("activation", "NONE")]  # fmt: skip
    return _bounds(low, high, real_low, real_high, call.y)


def _bounds(
    low: int, high: int, real_low: float | None, real_high: float | None, y: Tensor
) -> tuple[int, int]:
    if real_low is not None:
        low = max(low, zero(y) + away(float(np.float32(real_low) / scale(y))))
    if real_high is not None:
        high = min(high, zero(y) + away(float(np.float32(real_high) / scale(y))))
    return low, high


# --- gemmlowp's functions on fixed-point numbers ---------------------------------------------


def saturated_left(x: Array, bits: int) -> Array:
    return clamped(np.asarray(x, np.int64) << bits, I32_MIN, I32_MAX)


def exp_on_negative(x: Array, integer_bits: int) -> Array:
    """exp of x <= 0 with `integer_bits`, as Q0.31."""
    x = np.asarray(x, np.int64)
    fractional = 31 - integer_bits
    quarter = 1 << (fractional - 2)
    low = (x & (quarter - 1)) - quarter
    t = (low << integer_bits) + (1 << 28)  # within 1/8 of -1/8
    t2 = high_mul(t, t)
    t3, t4 = high_mul(t2, t), high_mul(t2, t2)
    tail = shift_right(high_mul(shift_right(t4, 2) + t3, 715827883) + t2, 1)
    result = 1895147668 + high_mul(1895147668, t + tail)
    rest = low - x
    factors = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)
    for exponent, factor in zip(range(-2, 5), factors, strict=True):
        if integer_bits > exponent:
            chosen = (rest >> (fractional + exponent)) & 1 == 1
            result = np.where(chosen, high_mul(result, factor), result)
    return np.where(x == 0, I32_MAX, result)


def _reciprocal_start(x: Array) -> Array:
    """1 / ((1 + x) / 2) for x in [0, 1) of Q0.31, as Q2.29, by three Newton steps."""
    total = np.asarray(x, np.int64) + I32_MAX
    half = truncated(total + np.where(total >= 0, 1, -1), 2)
    result = 1515870810 + high_mul(half, -1010580540)
    for _ in range(3):
        error = (1 << 29) - high_mul(half, result)
        result = result + saturated_left(high_mul(result, error), 2)
    return result


def one_over_one_plus(x: Array) -> Array:
    return saturated_left(_reciprocal_start(x), 1)


def one_minus_over_one_plus(x: Array) -> Array:
    return saturated_left(_reciprocal_start(x) - (1 << 29), 2)


# --- Products --------------------------------------------------------------------------------


def products(a: Array, b: Array) -> Array:
    """Matrix product of small integers; exact, since every sum stays below 2^53."""
    return np.rint(a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)


def padding(call: Call, in_size: tuple[int, int], window: tuple[int, int]) -> tuple[int, ...]:
    """(top, bottom, left, right) in rows and columns."""
    kind = call.options["padding"]
    if kind == "EXPLICIT":
        return tuple(call.options["explicit_padding"])
    if kind == "VALID":
        return (0, 0, 0, 0)
    found: list[int] = []
    for axis, letter in enumerate("hw"):
        stride = call.options[f"stride_{letter}"]
        dilation = call.options.get(f"dilation_{letter}_factor", 1)
        reach = (window[axis] - 1) * dilation + 1
        out = -(-in_size[axis] // stride)
        total = max(0, (out - 1) * stride + reach - in_size[axis])
        found += [total // 2, total - total // 2]
    return tuple(found)


def windows(call: Call, x: Array, window: tuple[int, int], fill: int) -> list[Array]:
    """For every tap of the window, what it sees: (batch, out height, out width, channels)."""
    top, bottom, left, right = padding(call, x.shape[1:3], window)
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    _, height, width, _ = call.y.shape
    strides = call.options["stride_h"], call.options["stride_w"]
    dilations = (
        call.options.get("dilation_h_factor", 1), call.options.get("dilation_w_factor", 1),
    )  # fmt: skip
    seen = []
    for row in range(window[0]):
        for column in range(window[1]):
            first = row * dilations[0], column * dilations[1]
            last = first[0] + (height - 1) * strides[0], first[1] + (width - 1) * strides[1]
            seen.append(
                padded[:, first[0] : last[0] + 1 : strides[0], first[1] : last[1] + 1 : strides[1]]
            )
    return seen


def requantized(call: Call, sums: Array) -> Array:
    """Sums (..., channels) as outputs: one multiplier a channel, or one for all."""
    weights = call.x(1).quantization
    assert weights is not None
    reals = [float(scale(call.x())) * float(s) / float(scale(call.y)) for s in weights.scales]
    result = np.empty_like(sums)
    for channel in range(sums.shape[-1]):
        multiplier = quantized(reals[channel if len(reals) > 1 else 0])
        result[..., channel] = rescaled(sums[..., channel], *multiplier)
    return clamped(result + zero(call.y), *bounds(call))


def conv_2d(call: Call, x: Array, w: Array, bias: Array | None = None) -> Array:
    shifted = x.astype(np.int64) - zero(call.x())
    n_out, height, width, depth = w.shape
    groups = x.shape[3] // depth
    seen = windows(call, shifted, (height, width), 0)
    sums = np.zeros((*seen[0].shape[:3], n_out), np.int64)
    for group in range(groups):
        outs = slice(group * n_out // groups, (group + 1) * n_out // groups)
        ins = slice(group * depth, (group + 1) * depth)
        for tap, patch in enumerate(seen):
            matrix = w[outs, tap // width, tap % width].T  # (depth, outputs of the group)
            sums[..., outs] += products(patch[..., ins], matrix)
    return requantized(call, wrapped(sums + (0 if bias is None else bias)))


def depthwise_conv_2d(call: Call, x: Array, w: Array, bias: Array | None = None) -> Array:
    shifted = x.astype(np.int64) - zero(call.x())
    _, height, width, n_out = w.shape
    repeated = np.repeat(shifted, n_out // x.shape[3], axis=3)
    seen = windows(call, repeated, (height, width), 0)
    sums = sum(
        patch * w[0, tap // width, tap % width].astype(np.int64) for tap, patch in enumerate(seen)
    )
    return requantized(call, wrapped(sums + (0 if bias is None else bias)))


def fully_connected(call: Call, x: Array, w: Array, bias: Array | None = None) -> Array:
    n_out, depth = w.shape[-2:]
    rows = x.astype(np.int64).reshape(-1, depth) - zero(call.x())
    sums = products(rows, w.reshape(n_out, depth).astype(np.int64).T - zero(call.x(1)))
    return requantized(call, wrapped(sums + (0 if bias is None else bias)))


# --- Element by element ----------------------------------------------------------------------


def add_sub(call: Call, a: Array, b: Array) -> Array:
    x1, x2, y = call.x(0), call.x(1), call.y
    if y.dtype == "int32":
        return a + b if call.op.kind == "ADD" else a - b
    twice = 2 * float(max(scale(x1), scale(x2)))
    reals = float(scale(x1)) / twice, float(scale(x2)) / twice
    out = twice / (2**20 * float(scale(y)))
    terms = [
        rescaled((value.astype(np.int64) - zero(tensor)) << 20, *quantized(real))
        for value, tensor, real in zip((a, b), (x1, x2), reals, strict=True)
    ]
    total = terms[0] + terms[1] if call.op.kind == "ADD" else terms[0] - terms[1]
    return clamped(rescaled(total, *quantized(out)) + zero(y), *bounds(call))


def mul(call: Call, a: Array, b: Array) -> Array:
    x1, x2, y = call.x(0), call.x(1), call.y
    if y.dtype == "int32":
        return a * b
    real = float(scale(x1)) * float(scale(x2)) / float(scale(y))
    product = (a.astype(np.int64) - zero(x1)) * (b.astype(np.int64) - zero(x2))
    return clamped(rescaled(product, *quantized(real)) + zero(y), *bounds(call))


def lookup(call: Call, x: Array) -> Array:
    return np.asarray(call.options["table"])[x.view(np.uint8)]


def relu(call: Call, x: Array) -> Array:
    low, high = LIMITS[call.y.dtype]
    limits = {"RELU": (0, None), "RELU_N1_TO_1": (-1, 1), "RELU_0_TO_1": (0, 1)}[call.op.kind]
    low, high = _bounds(low, high, *limits, call.y)
    factor = quantized(float(scale(call.x())) / float(scale(call.y)))
    y = rescaled(x.astype(np.int64) - zero(call.x()), *factor) + zero(call.y)
    return clamped(y, low, high)


def relu6(call: Call, x: Array) -> Array:
    """Clamps what is stored, by the input's scale, whatever the output's is."""
    six = clamped(away(float(np.float32(6) / scale(call.x()))) + zero(call.x()), -128, 127)
    return clamped(x.astype(np.int64), zero(call.x()), int(six))


def leaky_relu(call: Call, x: Array) -> Array:
    ratio = float(scale(call.x())) / float(scale(call.y))
    alpha, alpha_shift = quantized(
        float(scale(call.x())) * float(np.float32(call.options["alpha"])) / float(scale(call.y))
    )
    shifted = x.astype(np.int64) - zero(call.x())
    plain = rescaled(shifted, *quantized(ratio))
    leaked = rescaled(shifted, abs(alpha), alpha_shift) * (-1 if alpha < 0 else 1)
    return clamped(np.where(shifted >= 0, plain, leaked) + zero(call.y), -128, 127)


def elu(call: Call, x: Array) -> Array:
    """A float function of each stored value, as TFLM fills its table."""
    y = []
    for value in x.reshape(-1).tolist():
        real = scale(call.x()) * np.float32(value - zero(call.x()))
        if real < 0:
            real = np.float32(math.exp(real)) - np.float32(1)
        stored = np.float32(away(float(real * (np.float32(1) / scale(call.y)))))
        y.append(int(stored + np.float32(zero(call.y))))
    return clamped(np.array(y, np.int64), -128, 127)


def absolute(call: Call, x: Array) -> Array:
    y = np.abs(x.astype(np.int64) - zero(call.x()))
    if scale(call.x()) != scale(call.y):
        y = rescaled(y, *quantized(float(scale(call.x())) / float(scale(call.y))))
    return clamped(y + zero(call.y), -128, 127)


def sigmoid_or_tanh(call: Call, x: Array) -> Array:
    """LOGISTIC and TANH on Q4.27; outputs with the one scale that the specification allows."""
    fraction, shift = math.frexp(float(scale(call.x())) * 2**27)
    radius = math.floor(15 * 2**27 / 2**shift)
    shifted = x.astype(np.int64) - zero(call.x())
    inside = clamped(shifted, -radius, radius)
    q4 = rescaled(inside, away(fraction * 2**31), shift)
    if call.op.kind == "LOGISTIC":
        positive = one_over_one_plus(exp_on_negative(-np.abs(q4), 4))
        real = np.where(q4 > 0, positive, I32_MAX - positive)
        y = shift_right(np.where(q4 == 0, 2**30, real), 23) - 128
    else:
        positive = one_minus_over_one_plus(exp_on_negative(-np.abs(q4), 5))
        y = shift_right(np.sign(q4) * positive, 24)
    y = clamped(y, -128, 127)
    return np.where(shifted <= -radius, -128, np.where(shifted >= radius, 127, y))


def hard_swish(call: Call, x: Array) -> Array:
    """On int16, value by value: what overflows there wraps."""
    fine = float(scale(call.x())) / 128
    y_factor, y_shift = quantized(fine / float(scale(call.y)))
    relu_factor, relu_shift = quantized(fine / (3 / 32768))

    def short(multiplier: int) -> int:
        return min(32767, (multiplier + 2**15) >> 16)

    def times(a: int, b: int) -> int:  # rounded high half of the doubled product
        product = a * b + (2**14 if a * b >= 0 else 1 - 2**14)
        return 32767 if a == b == -32768 else int(truncated(product, 2**15))

    def limited(a: int) -> int:
        return max(-32768, min(32767, a))

    y = []
    for value in x.reshape(-1).tolist():
        widened = (value - zero(call.x())) * 128
        before_shift = times(widened, short(y_factor))
        gate = widened
        if relu_shift > 0:
            gate = limited(gate << (relu_shift - 1))
        gate = times(gate, short(relu_factor))
        if relu_shift > 0:
            gate = limited(gate << 1)
        if relu_shift < 0:
            gate = int(shift_right(gate, -relu_shift))
        gate = (gate + 2**15) >> 1
        product = int(truncated(gate * before_shift, 2**15))
        stored = int(shift_right(product, -y_shift)) + zero(call.y)
        y.append((stored + 2**15) % 2**16 - 2**15)
    return clamped(np.array(y, np.int64), -128, 127)


def prelu(call: Call, x: Array, alpha: Array) -> Array:
    shifted = x.astype(np.int64) - zero(call.x())
    slope = alpha.astype(np.int64) - zero(call.x(1))
    plain = float(scale(call.x())) / float(scale(call.y))
    steep = float(scale(call.x())) * float(scale(call.x(1))) / float(scale(call.y))
    negative = rescaled(shifted * slope, *quantized(steep))
    y = np.where(shifted >= 0, rescaled(shifted, *quantized(plain)), negative)
    return clamped(y + zero(call.y), -128, 127)


def quantize(call: Call, x: Array) -> Array:
    low, high = LIMITS.get(call.y.dtype, (I32_MIN, I32_MAX))
    if x.dtype == np.float32:
        y = [away(float(v)) for v in (x.reshape(-1) / scale(call.y))]
        return clamped(np.array(y, np.int64) + zero(call.y), low, high)
    factor = quantized(float(scale(call.x())) / float(scale(call.y)))
    y = rescaled(x.astype(np.int64) - zero(call.x()), *factor) + zero(call.y)
    return clamped(y, low, high)


def dequantize(call: Call, x: Array) -> Array:
    return (float(scale(call.x())) * (x.astype(np.int64) - zero(call.x()))).astype(np.float32)


def softmax(call: Call, x: Array) -> Array:
    real = min(float(call.options["beta"]) * float(scale(call.x())) * 2**26, 2.0**31 - 1)
    multiplier, shift = quantized(real)
    lowest = -math.floor(31 * 2**26 / 2**shift)
    difference = x.astype(np.int64) - x.max(axis=-1, keepdims=True).astype(np.int64)
    counts = difference >= lowest
    q5 = high_mul(np.where(counts, difference, 0) << shift, multiplier)
    powers = exp_on_negative(q5, 5)
    sums = np.where(counts, shift_right(powers, 12), 0).sum(axis=-1)  # Q12.19
    y = np.empty(x.shape, np.int64)
    for row in np.ndindex(sums.shape):
        headroom = 32 - int(sums[row]).bit_length()
        inverse = one_over_one_plus(np.int64((int(sums[row]) << headroom) - 2**31))
        y[row] = shift_right(high_mul(inverse, powers[row]), 12 - headroom + 31 - 8) - 128
    return np.where(counts, clamped(y, -128, 127), -128)


# --- Windows and reductions ------------------------------------------------------------------


def average_pool_2d(call: Call, x: Array) -> Array:
    window = call.options["filter_height"], call.options["filter_width"]
    sums = sum(windows(call, x.astype(np.int64), window, 0))
    counts = sum(windows(call, np.ones_like(x, np.int64), window, 0))
    y = np.where(sums > 0, sums + counts // 2, sums - counts // 2)
    return clamped(np.sign(y) * (np.abs(y) // counts), *bounds(call))


def max_pool_2d(call: Call, x: Array) -> Array:
    window = call.options["filter_height"], call.options["filter_width"]
    seen = windows(call, x.astype(np.int64), window, LIMITS[call.y.dtype][0])
    return clamped(np.max(seen, axis=0), *bounds(call))


def mean_or_sum(call: Call, x: Array, axes: Array) -> Array:
    over = tuple(int(a) % x.ndim for a in np.atleast_1d(axes))
    count = math.prod(x.shape[axis] for axis in set(over))
    multiplier, shift = quantized(float(scale(call.x())) / float(scale(call.y)))
    if call.op.kind == "MEAN":
        more = min(count.bit_length() - 1, 32, 31 + shift)
        multiplier, shift = (multiplier << more) // count, shift - more
    sums = x.astype(np.int64).sum(axis=tuple(set(over))) - zero(call.x()) * count
    return clamped(rescaled(sums, multiplier, shift) + zero(call.y), -128, 127)


# --- Moving values ---------------------------------------------------------------------------


def pad(call: Call, x: Array, amounts: Array, fill: Array | None = None) -> Array:
    value = zero(call.y) if fill is None else fill.reshape(-1)[0]
    return np.pad(x, [tuple(pair) for pair in amounts.tolist()], constant_values=value)


def strided_slice(call: Call, x: Array, begin: Array, end: Array, stride: Array) -> Array:
    slices: list[Any] = []
    for axis, (first, last, step) in enumerate(
        zip(begin.tolist(), end.tolist(), stride.tolist(), strict=True)
    ):
        if call.options.get("shrink_axis_mask", 0) >> axis & 1:
            slices.append(first)
            continue
        skip_first = call.options.get("begin_mask", 0) >> axis & 1
        skip_last = call.options.get("end_mask", 0) >> axis & 1
        slices.append(slice(None if skip_first else first, None if skip_last else last, step))
    return x[tuple(slices)]


def split(call: Call, axis: Array, x: Array) -> tuple[Array, ...]:
    return tuple(np.split(x, len(call.op.outputs), axis=int(axis.reshape(-1)[0])))


def concatenation(call: Call, *parts: Array) -> Array:
    return np.concatenate(parts, axis=call.options["axis"])


def pack(call: Call, *parts: Array) -> Array:
    return np.stack(parts, axis=call.options.get("axis", 0))


def transpose(call: Call, x: Array, order: Array) -> Array:
    return np.transpose(x, order.tolist())


def same(call: Call, x: Array, *_: Array) -> Array:
    return x


def shape(call: Call, x: Array) -> Array:
    return np.array(x.shape)


def extreme(call: Call, a: Array, b: Array) -> Array:
    return np.maximum(a, b) if call.op.kind == "MAXIMUM" else np.minimum(a, b)


KERNELS: dict[str, Callable[..., Array | Sequence[Array]]] = {
    "CONV_2D": conv_2d, "DEPTHWISE_CONV_2D": depthwise_conv_2d, "FULLY_CONNECTED": fully_connected,
    "ADD": add_sub, "SUB": add_sub, "MUL": mul, "MAXIMUM": extreme, "MINIMUM": extreme,
    "RELU": relu, "RELU_N1_TO_1": relu, "RELU_0_TO_1": relu, "RELU6": relu6,
    "LEAKY_RELU": leaky_relu, "ELU": elu, "ABS": absolute, "LOGISTIC": sigmoid_or_tanh,
    "TANH": sigmoid_or_tanh, "HARD_SWISH": hard_swish, "PRELU": prelu, "LOOKUP": lookup,
    "QUANTIZE": quantize, "DEQUANTIZE": dequantize, "SOFTMAX": softmax,
    "AVERAGE_POOL_2D": average_pool_2d, "MAX_POOL_2D": max_pool_2d, "MEAN": mean_or_sum,
    "SUM": mean_or_sum, "PAD": pad, "PADV2": pad, "STRIDED_SLICE": strided_slice, "SPLIT": split,
    "CONCATENATION": concatenation, "PACK": pack, "TRANSPOSE": transpose, "SHAPE": shape,
    "RESHAPE": same, "SQUEEZE": same, "EXPAND_DIMS": same,
}  # fmt: skip
