"""Writes depthwise 3 x 3 convolutions by pairs of rows: the assembly of `es_pairs.h`."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from edgeshrink.lowering.calls import Emitted, Loop
from edgeshrink.lowering.emit_m4 import Requantization, clamp, cycles, function, wrapped

PARAMETERS: Final = (
    "const es_conv_shape *shape, const int8_t *x, const int32_t *stream, int32_t *planes, int8_t *y"
)
_GUARD: Final = (
    "#if defined(__ARM_FEATURE_DSP) && defined(__thumb2__) && defined(__ARM_FP) && "
    "defined(__GNUC__)"
)
_MIDDLE, _LAST = ("r0", "r1", "r2"), ("r3", "r4", "r5")  # weights (top, middle), (middle, bottom)
# One-cycle spill slots: what a channel needs at every output, and what the outer loop keeps.
_AROUND_BYTES: Final = 1300  # of code that widens two rows, as compiled
_BIAS, _MULTIPLIER, _CONSTANT, _SHIFT, _Y, _P, _END = (f"s{i}" for i in range(7))
_CHANNELS, _ROW, _PLANE, _STREAM, _Y_CHANNEL, _Y_END = (f"s{i}" for i in range(7, 13))


def pairs_stream(
    weights: npt.NDArray[np.int8], bias: npt.NDArray[np.int32], scales: Requantization
) -> npt.NDArray[np.int32]:
    """Return the stream of a layer with weights (channels, 3, 3)."""
    w = 2 * weights.astype(np.int64)
    words = [(w[:, ky] & 0xFFFF) | (w[:, ky + 1] & 0xFFFF) << 16 for ky in (0, 1)]  # (channels, 3)
    rest = (2 * bias.astype(np.int64), scales.multiplier, scales.constant, scales.shift)
    stream = np.concatenate([*words, np.stack(rest, axis=1)], axis=1)
    unsigned: npt.NDArray[np.uint32] = (stream & 0xFFFFFFFF).astype(np.uint32)
    return unsigned.view(np.int32).ravel()


def plane_columns(y_w: int, stride: int, *, same: bool) -> int:
    """Return the columns of a plane; `same`: stride 1 with a border of one, which is left out."""
    return y_w if same else (y_w - 1) * stride + 3


def emit_pairs(y_w: int, stride: int, y_min: int, y_max: int, *, same: bool) -> tuple[str, Emitted]:
    """Return name and C file of the kernel for output rows of `y_w` pixels; any channels.

    Args:
        y_w: Output pixels of a row.
        stride: 1 or 2, in both directions.
        y_min: Lowest output.
        y_max: Highest output.
        same: Stride 1, and the input's rows are as long as the output's, with a border of one.
    """
    columns = plane_columns(y_w, stride, same=same)
    suffix = "" if (y_min, y_max) == (-128, 127) else f"_{y_min + 128}to{y_max + 128}"
    kind = "same" if same else f"s{stride}"
    name = f"es_depthwise_s8_3x3{kind}w{y_w}{suffix}__dsp"
    arguments = (
        "const int32_t *planes, const int32_t *stream, int8_t *y, int32_t channels, int32_t row"
    )
    lines = [
        f"/* Depthwise 3 x 3, stride {stride}, output rows of {y_w} pixels.",
        " * es_pairs.h says what is computed, and what the stream holds. */",
        '#include "es_pairs.h"',
        "",
        "ES_BEGIN",
        "",
        *wrapped(f"void {name}({PARAMETERS});"),
        "",
        _GUARD,
    ]
    for is_odd in (False, True):
        part = f"{name}_{'odd' if is_odd else 'even'}"
        lines += wrapped(f"void {part}({arguments});")
        lines.append(_assembly(part, y_w, stride, (y_min, y_max), same=same, is_odd=is_odd))
    lines.append("#else")
    for is_odd in (False, True):
        part = f"{name}_{'odd' if is_odd else 'even'}"
        lines += wrapped(f"static void {part}({arguments}) {{")
        call = (
            f"es_pairs_c(planes, stream, y, channels, row, {stride}, {y_w}, {columns}, "
            f"{int(same)}, {int(is_odd)}, {y_min}, {y_max});"
        )
        lines += [*wrapped(call, "  "), "}"]
    call = (
        f"es_depthwise_by_pairs(shape, x, stream, planes, y, {columns}, {int(same)}, {stride}, "
        f"{name}_even, {name}_odd);"
    )
    lines += [
        "#endif", "", *wrapped(f"void {name}({PARAMETERS}) {{"), *wrapped(call, "  "), "}",
        "", "ES_END", "",
    ]  # fmt: skip
    return name, Emitted(text="\n".join(lines), parameters=PARAMETERS)


def pairs_cycles(y_w: int, stride: int, limits: tuple[int, int], *, same: bool) -> float:
    """Return the cycles of one channel of one call of the assembly."""
    if stride == 2:
        return 40 + y_w * (cycles(_wide_step("1", 16, limits, is_odd=False)) + 4)
    lines = _narrow_columns(y_w, 16, limits, same=same, is_odd=False, unrolled=True)
    return 45 + cycles(lines) + (y_w - 2) // 3 * 5


def pairs_bytes(y_w: int, stride: int) -> int:
    """Return the size of the assembly and the outer loop, about."""
    return (
        _AROUND_BYTES
        + 2
        * len(_assembly("f", y_w, stride, (-128, 127), same=True, is_odd=False).splitlines())
        * 4
    )


def pairs_loops(
    y_w: int, stride: int, calls: int, channels: int, *, same: bool
) -> tuple[Loop, ...]:
    """Return the loops of a kernel whose assembly is called so many times."""
    lines = len(_assembly("f", y_w, stride, (-128, 127), same=same, is_odd=False).splitlines())
    half = 4 * (lines - 12)
    columns, turns = 0, 0
    if stride == 2:
        columns, turns = 4 * (len(_wide_step("r12", 8, (-128, 127), is_odd=False)) + 2), y_w
    elif y_w >= 8:
        three = (_column(j, range(y_w), y_w, 8, (-128, 127), is_odd=False) for j in (2, 3, 4))
        columns, turns = 4 * (sum(map(len, three)) + 3), (y_w - 2) // 3
    inner: tuple[Loop, ...] = ()
    if turns:
        entries = calls * channels
        inner = (Loop(n_bytes=columns, turns=entries * turns, entries=entries),)
    of_channels = Loop(n_bytes=half, turns=calls * channels, entries=calls, inner=inner)
    # Both halves take turns, so the cache has to hold both.
    whole = _AROUND_BYTES + 2 * half
    return (Loop(n_bytes=whole, turns=calls / 2, entries=1, inner=(of_channels,)),)


def _assembly(
    name: str, y_w: int, stride: int, limits: tuple[int, int], *, same: bool, is_odd: bool
) -> str:
    """Return one `es_pairs_function`."""
    plane = 4 * plane_columns(y_w, stride, same=same and stride == 1)
    lines = [
        "push {r4-r11, lr}", "ldr r12, [sp, #36]", f"vmov {_CHANNELS}, r3", f"vmov {_ROW}, r12",
        f"vmov {_PLANE}, r0", f"vmov {_STREAM}, r1", f"vmov {_Y_CHANNEL}, r2", "add r3, r2",
        f"vmov {_Y_END}, r3",
        "5:", f"vmov r12, {_STREAM}", "ldm r12!, {r0-r9}", f"vmov {_STREAM}, r12",
        f"vmov {_BIAS}, r6", f"vmov {_MULTIPLIER}, r7", f"vmov {_CONSTANT}, r8",
        f"vmov {_SHIFT}, r9", f"vmov lr, {_Y_CHANNEL}", f"vmov {_Y}, lr", "add lr, #1",
        f"vmov {_Y_CHANNEL}, lr",
        f"vmov r12, {_PLANE}", f"addw lr, r12, #{2 * plane}", f"vmov {_PLANE}, lr",
    ]  # fmt: skip
    if stride == 1:
        lines += _narrow_columns(y_w, plane, limits, same=same, is_odd=is_odd)
    else:
        upper, lower = (plane, 0) if is_odd else (0, plane)
        lines += [
            f"ldr r8, [r12, #{upper}]", f"ldr r9, [r12, #{lower}]", f"vmov r6, {_BIAS}",
            f"smlad r6, r8, {_MIDDLE[0]}, r6", f"smlabt r6, r9, {_LAST[0]}, r6",
            f"addw lr, r12, #{8 * y_w}", "1:", *_wide_step("r12", plane, limits, is_odd=is_odd),
            "cmp r12, lr", "bne 1b",
        ]  # fmt: skip
    lines += [
        f"vmov r12, {_Y_CHANNEL}", f"vmov lr, {_Y_END}", "cmp r12, lr", "bne 5b",
        "pop {r4-r11, pc}",
    ]  # fmt: skip
    return function(name, lines)


def _narrow_columns(
    y_w: int,
    plane: int,
    limits: tuple[int, int],
    *,
    same: bool,
    is_odd: bool,
    unrolled: bool = False,
) -> list[str]:
    """Stride 1: three columns of two sums each are under way, and each word is used for all."""
    first, last = (1, y_w) if same else (0, y_w + 1)  # columns that a plane has

    def column(j: int) -> list[str]:
        return _column(j, range(first, last + 1), y_w, plane, limits, is_odd=is_odd)

    full = max(0, y_w - 2)  # columns 2 to y_w - 1: one output begins, one goes on, one ends
    turns = full // 3 if full >= 6 and not unrolled else 0
    lines = [line for j in range(first, min(2, last + 1)) for line in column(j)]
    if turns:
        lines += [f"add lr, r12, #{12 * turns}", f"vmov {_END}, lr", "1:"]
        for j in (2, 3, 4):
            lines += column(j)
        lines += [f"vmov lr, {_END}", "cmp r12, lr", "bne 1b"]
    for j in range(2 + 3 * turns, last + 1):
        lines += column(j)
    return lines


def _column(
    j: int, columns: range, y_w: int, plane: int, limits: tuple[int, int], *, is_odd: bool
) -> list[str]:
    """Multiply column j of the planes into up to three outputs, and store those that it ends."""
    sums = (("r6", "r7"), ("r8", "r9"), ("r10", "r11"))
    outputs = [(k, j - k) for k in range(3) if 0 <= j - k < y_w]
    lines: list[str] = []
    # The plane at the offset first, then the one at r12 itself, which moves r12 on.
    for order, (load, is_upper) in enumerate((
        (f"ldr lr, [r12, #{plane}]", is_odd), ("ldr lr, [r12], #4", not is_odd),
    )):  # fmt: skip
        lines.append(load)
        for k, x in outputs:
            top, bottom = sums[x % 3]
            start = top
            if j == max(x, columns[0]) and order == 0:
                lines.append(f"vmov {bottom}, {_BIAS}")
                start = bottom
            if is_upper:
                lines += [f"smlad {top}, lr, {_MIDDLE[k]}, {start}",
                          f"smlatb {bottom}, lr, {_MIDDLE[k]}, {bottom}"]  # fmt: skip
            else:
                lines += [f"smlabt {top}, lr, {_LAST[k]}, {start}",
                          f"smlad {bottom}, lr, {_LAST[k]}, {bottom}"]  # fmt: skip
    ended = [x for _, x in reversed(outputs) if j == min(x + 2, columns[-1])]
    if ended:
        lines.append(f"vmov {_P}, r12")
        for x in ended:
            lines += _finish_two(*sums[x % 3], limits)
        lines.append(f"vmov r12, {_P}")
    return lines


def _finish_two(top: str, bottom: str, limits: tuple[int, int]) -> list[str]:
    """Requantize and store the sums of one column in both rows."""
    lines = [f"vmov lr, {_MULTIPLIER}"]
    for r in (top, bottom):
        lines += [f"vmov r12, {_CONSTANT}", f"add r12, r12, {r}, asr #31",
                  f"smmlar {r}, {r}, lr, r12"]  # fmt: skip
    lines.append(f"vmov lr, {_SHIFT}")
    for r in (top, bottom):
        lines += [f"asr {r}, {r}, lr", f"ssat {r}, #8, {r}", *clamp(r, *limits)]
    # The lower row first: where it does not exist, the upper one takes its place.
    lines += [
        f"vmov lr, {_Y}", f"vmov r12, {_ROW}", f"strb {bottom}, [lr, r12]", f"strb {top}, [lr]",
        f"vmov r12, {_CHANNELS}", "add lr, r12", f"vmov {_Y}, lr",
    ]  # fmt: skip
    return lines


def _wide_step(p: str, plane: int, limits: tuple[int, int], *, is_odd: bool) -> list[str]:
    """Stride 2: two columns, the second of which belongs to the next output as well."""
    upper, lower = (plane, 0) if is_odd else (0, plane)
    return [
        f"ldr r8, [{p}, #{upper + 4}]", f"ldr r9, [{p}, #{lower + 4}]",
        f"ldr r10, [{p}, #{upper + 8}]", f"ldr r11, [{p}, #{lower + 8}]",
        f"smlad r6, r8, {_MIDDLE[1]}, r6", f"smlabt r6, r9, {_LAST[1]}, r6",
        f"smlad r6, r10, {_MIDDLE[2]}, r6", f"smlabt r6, r11, {_LAST[2]}, r6",
        f"vmov r7, {_BIAS}",
        f"smlad r7, r10, {_MIDDLE[0]}, r7", f"smlabt r7, r11, {_LAST[0]}, r7",
        f"vmov r8, {_MULTIPLIER}", f"vmov r9, {_CONSTANT}", "add r9, r9, r6, asr #31",
        "smmlar r6, r6, r8, r9", f"vmov r10, {_SHIFT}", "asr r6, r6, r10", "ssat r6, #8, r6",
        *clamp("r6", *limits),
        f"vmov r8, {_Y}", f"vmov r9, {_CHANNELS}", "strb r6, [r8]", "add r8, r9",
        f"vmov {_Y}, r8", "mov r6, r7", f"adds {p}, #8",
    ]  # fmt: skip
