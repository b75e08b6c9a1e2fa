"""Convolutions and matrix products for cores without SIMD: Cortex-M0+, RV32IMC.

Two products come out of one multiplication, in the halves of a word (`es_conv_s8__scalar.c`). Their
sums must be taken out of the halves before they overflow; when, follows from the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeshrink.lowering.calls import (
    Call,
    ConstArg,
    IntArg,
    ScratchArg,
    StructArg,
    TensorArg,
    Variant,
)
from edgeshrink.lowering.conv_layer import (
    Conv,
    abs_sums,
    folded_bias,
    pixel_distance,
    row_distance,
)
from edgeshrink.lowering.emit_m4 import requantization

_MAX_SUM: Final = 2**29  # of es_requantize_scalar
_FLAGS: Final = 31  # of a word; one more bit says where they end


@dataclass(frozen=True, kw_only=True)
class Filter:
    """A filter's flags and weights as `es_conv_s8__scalar` reads them.

    Attributes:
        words: uint32.
        n_taken_out: How often sums are taken out of the halves of a word.
    """

    words: npt.NDArray[np.uint32]
    n_taken_out: int


def plain_kernel(reference: Variant, isa: tuple[str, ...]) -> Variant:
    """Return a plain kernel, its cycles given for Cortex-M4, with those of these cores.

    Cortex-M0+ has registers for half of what its loops hold and no product of 64 bits.
    """
    return reference if "rv32" in isa else replace(reference, cycles=1.7 * reference.cycles)


def scalar_conv(conv: Conv) -> list[Variant]:
    """Return the variants of a convolution; none where the layer is outside their reach."""
    s = conv.shape
    scales, folded = _scales(conv), folded_bias(conv)
    if scales is None or folded is None or conv.groups > 1:
        return []
    k = s["k_h"] * s["k_w"] * s["x_c"]
    padded = np.zeros((s["y_c"], -(-k // 4) * 4), np.int8)
    padded[:, :k] = conv.weights.reshape(s["y_c"], k)
    filters = [encode_filter(weights) for weights in padded]
    encoded = [f for f in filters if f is not None]
    if len(encoded) < len(filters):
        return []
    stream = [
        part
        for o, found in enumerate(encoded)
        for part in (folded[o : o + 1], found.words.view(np.int32), scales[o])
    ]
    fours = s["batches"] * -(-s["y_h"] * s["y_w"] // 4)
    taken_out = sum(found.n_taken_out for found in encoded)
    cycles = fours * (9.5 * padded.size + 19.0 * taken_out + 250.0 * s["y_c"] + 22.0 * k)
    call = _streamed("es_conv_s8__scalar", conv, stream, scratch_bytes=8 * padded.shape[1])
    return [_by_four_pixels("scalar", conv, call, cycles=cycles, code_bytes=1100)]


def encode_filter(weights: npt.NDArray[np.int8]) -> Filter | None:
    """Return a filter with its flags; None where even two products may overflow 16 bits.

    Args:
        weights: (n,), n a multiple of 4 and not 0.
    """
    two = weights.astype(np.int64).reshape(-1, 2)
    # Of every two weights, how far their sum may rise and fall for values in [-128, 127].
    rise = np.where(two > 0, 127 * two, -128 * two).sum(axis=1).tolist()
    fall = np.where(two > 0, 128 * two, -127 * two).sum(axis=1).tolist()

    def fits(first: int, end: int) -> bool:
        return bool(sum(rise[first:end]) < 1 << 15 and sum(fall[first:end]) < 1 << 15)

    if not all(fits(i, i + 1) for i in range(len(two))):
        return None
    packed = weights.view("<u4")
    words: list[int] = []
    flags_at, n_flags, n_taken_out = -1, _FLAGS, 0
    start = 0  # of the twos whose sums are held
    for i, word in enumerate(packed.tolist()):
        at = 2 * i
        middle = not fits(start, at + 2)
        if middle:
            start = at + 1
        # The next four are added to those held where they fit, or where their first two do and
        # they must be parted anyway.
        is_out = middle or i + 1 == len(packed) or not fits(start, at + 3)
        is_out = is_out or (not fits(start, at + 4) and fits(at + 2, at + 4))
        if n_flags + 1 + is_out > _FLAGS:
            if flags_at >= 0:
                words[flags_at] |= 1 << (31 - n_flags)
            flags_at, n_flags = len(words), 0
            words.append(0)
        if is_out:
            words[flags_at] |= (2 + middle) << (30 - n_flags)
            start, n_taken_out = at + 2, n_taken_out + 1 + middle
        n_flags += 1 + is_out
        words.append(word)
    words[flags_at] |= 1 << (31 - n_flags)
    return Filter(words=np.array(words, np.uint32), n_taken_out=n_taken_out)


def _scales(conv: Conv) -> npt.NDArray[np.int32] | None:
    """Return multiplier and shift (y_c, 2) of `es_requantize_scalar`.

    None where a channel is outside its reach.
    """
    folded = folded_bias(conv)
    if folded is None:
        return None
    reach = np.abs(folded.astype(np.int64)) + 128 * abs_sums(conv.weights)
    found = requantization(conv.multiplier, conv.shift, conv.shape["y_zero"], reach)
    if found is None or reach.max() >= _MAX_SUM:
        return None
    return np.stack([found.multiplier, found.shift], axis=1).astype(np.int32)


def wide_conv(conv: Conv) -> list[Variant]:
    """Return the variants of a convolution for cores with many registers, RV32: 4 x 4 sums."""
    s = conv.shape
    scales, folded = _scales(conv), folded_bias(conv)
    if scales is None or folded is None or conv.groups > 1:
        return []
    k = s["k_h"] * s["k_w"] * s["x_c"]
    weights = np.pad(conv.weights.reshape(s["y_c"], k), ((0, 0), (0, k % 2)))
    stream: list[npt.NDArray[np.int32]] = []
    whole = s["y_c"] // 4 * 4
    for o in range(0, whole, 4):
        words = np.ascontiguousarray(weights[o : o + 4].T).view("<i4").ravel()
        stream += [folded[o : o + 4], words, scales[o : o + 4].ravel()]
    for o in range(whole, s["y_c"]):
        row = np.pad(weights[o], (0, -len(weights[o]) % 4)).view("<i4")
        stream += [folded[o : o + 1], row, scales[o]]
    fours = s["batches"] * -(-s["y_h"] * s["y_w"] // 4)
    cycles = fours * (10.5 * weights.size + 120.0 * s["y_c"] + 16.0 * k)
    call = _streamed("es_conv_s8__rv32", conv, stream, scratch_bytes=4 * weights.shape[1])
    return [_by_four_pixels("rv32 4x4", conv, call, cycles=cycles, code_bytes=1000)]


def _streamed(
    function: str, conv: Conv, stream: list[npt.NDArray[np.int32]], *, scratch_bytes: int
) -> Call:
    """Return the call of a convolution that reads weights and parameters as one stream."""
    args = (
        StructArg(type="es_conv_shape", fields=conv.shape),
        TensorArg(tensor=conv.x),
        ConstArg(name="weights", values=np.concatenate(stream)),
        ScratchArg(n_bytes=scratch_bytes),
        TensorArg(tensor=conv.y),
    )
    return Call(function=function, args=args)


def _by_four_pixels(
    name: str, conv: Conv, call: Call, *, cycles: float, code_bytes: int
) -> Variant:
    """Return the variant of a call that writes four pixels of the output at once."""
    firsts = np.arange(0, conv.shape["y_h"] * conv.shape["y_w"], 4)
    return Variant(
        name=name,
        calls=(call,),
        overlaps={conv.x: pixel_distance(conv, firsts)},
        cycles=cycles,
        code_bytes=code_bytes,
    )


def scalar_depthwise(conv: Conv) -> list[Variant]:
    """Return the variants of a depthwise convolution; none where it is outside their reach.

    The second, where there is one, computes more rows at once: outputs come in fours.
    """
    s = conv.shape
    least_waste = min(range(1, min(4, s["y_h"]) + 1), key=lambda n: (_fours(conv, n), n))
    scales, folded = _scales(conv), folded_bias(conv)
    if scales is None or folded is None:
        return []
    channels = np.concatenate([folded[:, None], scales], axis=1).astype(np.int32)
    return [_depthwise(conv, channels, at_once) for at_once in sorted({1, least_waste})]


def _fours(conv: Conv, at_once: int) -> int:
    """Return how many times four outputs of a channel are computed."""
    s = conv.shape
    whole, rest = divmod(s["y_h"], at_once)
    return s["batches"] * (whole * -(-at_once * s["y_w"] // 4) + -(-rest * s["y_w"] // 4))


def _depthwise(conv: Conv, channels: npt.NDArray[np.int32], at_once: int) -> Variant:
    s = conv.shape
    rows = (at_once - 1) * s["stride_h"] + (s["k_h"] - 1) * s["dilation_h"] + 1
    columns = (s["y_w"] - 1) * s["stride_w"] + (s["k_w"] - 1) * s["dilation_w"] + 1
    call = Call(
        function="es_depthwise_s8__scalar",
        args=(
            StructArg(type="es_conv_shape", fields=s),
            TensorArg(tensor=conv.x),
            ConstArg(name="weights", values=conv.weights.reshape(s["y_c"], -1)),
            ConstArg(name="channels", values=channels),
            ScratchArg(n_bytes=rows * columns * s["x_c"]),
            TensorArg(tensor=conv.y),
            IntArg(value=at_once),
        ),
    )
    return Variant(
        name="scalar" if at_once == 1 else f"scalar {at_once} rows",
        calls=(call,),
        overlaps={conv.x: row_distance(conv, at_once)},
        cycles=_fours(conv, at_once) * (23.0 * conv.weights.size + 280.0 * s["y_c"]),
        code_bytes=900,
    )


def scalar_dense(conv: Conv, shape: StructArg) -> list[Variant]:
    """Return the variants of a fully connected layer; none where it is outside their reach.

    Args:
        conv: The layer as a 1 x 1 convolution.
        shape: `es_dense_shape` of it.
    """
    scales, folded = _scales(conv), folded_bias(conv)
    n_out, n_in = len(conv.weights), conv.shape["k_c"]
    if scales is None or folded is None or n_in % 4:
        return []
    packed = conv.weights.reshape(n_out, n_in).view("<i4")  # (n_out, words)
    whole = n_out // 4 * 4
    fours = [slice(o, o + 4) for o in range(0, whole, 4)]
    groups = [*fours, *(slice(o, o + 1) for o in range(whole, n_out))]
    weights = [packed[group].T.ravel() for group in groups]
    channels = [part for g in groups for part in (folded[g], scales[g].ravel())]
    call = Call(
        function="es_dense_s8__scalar",
        args=(
            shape,
            TensorArg(tensor=conv.x),
            ConstArg(name="weights", values=np.concatenate(weights)),
            ConstArg(name="channels", values=np.concatenate(channels)),
            TensorArg(tensor=conv.y),
        ),
    )
    one = Variant(
        name="scalar",
        calls=(call,),
        cycles=shape.fields["rows"] * (4.7 * n_out * n_in + 75.0 * n_out),
        code_bytes=500,
    )
    by_rows = scalar_conv(conv) if shape.fields["rows"] > 1 else []
    return [one, *(replace(v, name="scalar by four rows") for v in by_rows)]
