"""TensorFlow Lite Micro's integer arithmetic, on arrays: what a pass must know to be exact.

Values are int64 arrays that hold int32 numbers. Products are rounded twice: first to the high
half of the doubled 64-bit product, halves up, then by the right shift, halves away from zero.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeshrink.graph import Tensor

Ints = npt.NDArray[np.int64]

INT32_MIN: Final = -(2**31)
INT32_MAX: Final = 2**31 - 1
LIMITS: Final = {
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-32768, 32767),
    "int32": (INT32_MIN, INT32_MAX),
}
# Real limits of the activations an operator may end in. RELU_0_TO_1 is an operator of its own in
# a file; `fuse_activation` makes it an option.
ACTIVATIONS: Final[dict[str, tuple[float | None, float | None]]] = {
    "NONE": (None, None),
    "RELU": (0.0, None),
    "RELU6": (0.0, 6.0),
    "RELU_N1_TO_1": (-1.0, 1.0),
    "RELU_0_TO_1": (0.0, 1.0),
}


def round_away(real: float) -> int:
    """Return the nearest integer, halves away from zero (C's `round`)."""
    return int(math.copysign(math.floor(abs(real) + 0.5), real))


def mantissa_and_shift(real: float) -> tuple[int, int]:
    """Return (multiplier, shift) of real = multiplier * 2^(shift - 31).

    2^30 <= |multiplier| < 2^31, or both are 0.
    """
    if real == 0:
        return 0, 0
    fraction, shift = math.frexp(real)
    multiplier = round_away(fraction * 2**31)
    if abs(multiplier) == 2**31:
        multiplier, shift = multiplier // 2, shift + 1
    return multiplier, shift


def quantize_multiplier(real: float) -> tuple[int, int]:
    """Return `mantissa_and_shift` of a factor that int32 can apply, as TFLite's function does.

    Numbers below 2^-32 are (0, 0), positive ones too large saturate at shift 30.
    """
    multiplier, shift = mantissa_and_shift(real)
    if shift > 30:
        return INT32_MAX, 30
    return (0, 0) if shift < -31 else (multiplier, shift)


def high_product(a: Ints, b: Ints | int) -> Ints:
    """Return the high 32 bits of 2ab, halves rounded up; the one overflow saturates."""
    product: Ints = a * np.asarray(b, np.int64)
    magnitude = (np.abs(product) + np.where(product >= 0, 2**30, 2**30 - 1)) >> 31
    rounded: Ints = np.minimum(np.where(product >= 0, magnitude, -magnitude), INT32_MAX)
    return rounded


def shift_right(x: Ints, n_bits: int) -> Ints:
    """Return x / 2^n_bits, halves rounded away from zero."""
    if n_bits == 0:
        return x
    magnitude = (np.abs(x) + (1 << (n_bits - 1))) >> n_bits
    return np.where(x >= 0, magnitude, -magnitude)


def wrap(x: Ints) -> Ints:
    """Return x modulo 2^32 as a signed number."""
    return ((x + 2**31) & 0xFFFFFFFF) - 2**31


def multiply(x: Ints, factor: tuple[int, int]) -> Ints:
    """Return x times a (multiplier, shift) of `quantize_multiplier`, rounded twice."""
    multiplier, shift = factor
    return shift_right(high_product(wrap(x << max(shift, 0)), multiplier), max(-shift, 0))


def scale_of(tensor: Tensor) -> np.float32 | None:
    """Return the one scale of a tensor; None if it has none or several."""
    quantization = tensor.quantization
    if quantization is None or quantization.scales.size != 1:
        return None
    return np.float32(quantization.scales.flat[0])


def zero_of(tensor: Tensor) -> int:
    """Return the zero point of a tensor quantized as a whole; 0 if it is not quantized."""
    return 0 if tensor.quantization is None else int(tensor.quantization.zero_points.flat[0])


def has_same_quantization(a: Tensor, b: Tensor) -> bool:
    """Return whether equal stored values mean equal numbers."""
    if a.dtype != b.dtype:
        return False
    p, q = a.quantization, b.quantization
    if p is None or q is None:
        return p is q
    return (
        np.array_equal(p.scales, q.scales)
        and np.array_equal(p.zero_points, q.zero_points)
        and (p.scales.size == 1 or p.axis == q.axis)
    )


def activation_range(activation: str, y: Tensor) -> tuple[int, int] | None:
    """Return the stored values an activation lets through in `y`; None for one unknown.

    Limits are divided in float32, as TFLite does.
    """
    if activation not in ACTIVATIONS or y.dtype not in LIMITS:
        return None
    low, high = LIMITS[y.dtype]
    real_low, real_high = ACTIVATIONS[activation]
    if real_low is None and real_high is None:
        return low, high
    scale = scale_of(y)
    if scale is None:
        return None
    if real_low is not None:
        low = max(low, zero_of(y) + round_away(float(np.float32(real_low) / scale)))
    if real_high is not None:
        high = min(high, zero_of(y) + round_away(float(np.float32(real_high) / scale)))
    return low, high


def output_multipliers(x: Tensor, w: Tensor, y: Tensor) -> tuple[tuple[int, int], ...] | None:
    """Return the multiplier of every output channel of a layer with weights, or one for all.

    All arithmetic on scales is in double, though TFLite's sources say float32 in places: so it is
    in the pinned version of TFLM (tests find scales where the two differ).
    """
    x_scale, y_scale = scale_of(x), scale_of(y)
    if x_scale is None or y_scale is None or w.quantization is None:
        return None
    scales = w.quantization.scales
    return tuple(
        quantize_multiplier(float(x_scale) * float(scale) / float(y_scale)) for scale in scales
    )


# --- Functions of fixed-point numbers, after the definitions of the gemmlowp library ----------


def _shift_left(x: Ints, n_bits: int) -> Ints:
    shifted: Ints = np.clip(x << n_bits, INT32_MIN, INT32_MAX)
    return shifted


def exp_on_negative(x: Ints, integer_bits: int) -> Ints:
    """Return exp(x) in Q0.31 for x <= 0 with `integer_bits` bits before the point."""
    fraction_bits = 31 - integer_bits
    quarter = 1 << (fraction_bits - 2)
    low = (x & (quarter - 1)) - quarter  # in [-1/4, 0)
    t = (low << integer_bits) + (1 << 28)
    t2 = high_product(t, t)
    t3, t4 = high_product(t2, t), high_product(t2, t2)
    tail = shift_right(high_product(shift_right(t4, 2) + t3, 715827883) + t2, 1)
    result = 1895147668 + high_product(t + tail, 1895147668)  # exp(-1/8) (1 + t + t2/2 + ...)
    rest = low - x  # a multiple of 1/4: one factor for each of its bits
    powers = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)
    for exponent, power in zip(range(-2, 5), powers, strict=True):
        if integer_bits > exponent:
            has_bit = (rest >> (fraction_bits + exponent)) & 1
            result = np.where(has_bit == 1, high_product(result, power), result)
    return np.where(x == 0, INT32_MAX, result)


def _inverse_of_half(x: Ints) -> Ints:
    """Return 2 / (1 + x) in Q2.29 for x of Q0.31 in [0, 1]: Newton's method, three steps."""
    half = (x + INT32_MAX + 1) >> 1
    y = 1515870810 + high_product(half, -1010580540)  # 48/17 - 32/17 h
    for _ in range(3):
        y = y + _shift_left(high_product(y, (1 << 29) - high_product(half, y)), 2)
    return y


def logistic(x: Ints) -> Ints:
    """Return the logistic function of Q4.27 in Q0.31."""
    positive = _shift_left(_inverse_of_half(exp_on_negative(-np.abs(x), 4)), 1)
    return np.where(x == 0, 1 << 30, np.where(x > 0, positive, INT32_MAX - positive))


def tanh(x: Ints) -> Ints:
    """Return the hyperbolic tangent of Q4.27 in Q0.31."""
    inverse = _inverse_of_half(exp_on_negative(-np.abs(x), 5))  # -2|x|: one more integer bit
    result: Ints = np.sign(x) * _shift_left(inverse - (1 << 29), 2)
    return result


def constant_of(tensor: Tensor) -> npt.NDArray[Any] | None:
    """Return the values of a constant; None for a computed one, or one whose type is packed."""
    if tensor.data is None or tensor.is_variable or tensor.data.dtype != tensor.dtype:
        return None
    return tensor.data
