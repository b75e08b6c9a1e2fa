"""Writes Cortex-M assembly with DSP instructions, scheduled for a core that issues in order.

A load behind another load takes one cycle instead of two, so loads come in clusters; all constants
of a group of channels lie in one stream that one pointer walks. The stack pointer stays where the
stack is: what lies below it belongs to interrupts.
"""

from __future__ import annotations

import hashlib
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeshrink.lowering.calls import Emitted, Loop

PARAMETERS: Final = "const int8_t *x, const int32_t *stream, int16_t *scratch, int8_t *y"
GUARD: Final = "#if defined(__ARM_FEATURE_DSP) && defined(__thumb2__) && defined(__GNUC__)"
MAX_OFFSET: Final = 4095  # of a load with an immediate
_REGISTERS: Final = (*(f"r{i}" for i in range(2, 13)), "lr")
_MOST_UNROLLED: Final = 32  # pairs in a row without a loop, 44 to 60 bytes of code each
# Pairs in a turn of a loop, which itself takes 7 cycles: a pair takes 17 for four pixels, and 12
# for one.
_MOST_LOOPED: Final = {4: 24, 3: 24, 2: 32, 1: 32}
# Shorter turns, for targets whose cache of code is small; 0: the above.
TURNS: Final = (0, 16, 12, 8, 4)
_AROUND_BYTES: Final = 80  # of a block's code outside of its loop over channels
_MAX_SHIFT: Final = 22  # 2^n * (zero point + 1/2) and a product of 2^30 fit int32 together


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of `es_blocks.h`: channels x pixels at a time, as the fields of `es_block` say.

    `most_pairs`, which is no field of it, limits the pairs in a turn of the inner loop, and with
    them its code (`with_turns`); 0: what takes the fewest cycles.
    """

    channels: int
    pixels: int
    runs: int
    pairs: int
    run_pitch: int
    pixel_pitch: int
    n_out: int
    y_min: int
    y_max: int
    most_pairs: int = 0

    @property
    def is_looped(self) -> bool:
        """Whether there is a loop over values; a few are multiplied in a row."""
        reach = 2 * (self.runs - 1) * self.run_pitch + 2 * (self.pixels - 1) * self.pixel_pitch
        most = self.most_pairs or _MOST_UNROLLED
        return self.runs * self.pairs > most or reach + 4 * self.pairs > MAX_OFFSET

    @property
    def unroll(self) -> int:
        """Pairs in a turn of the inner loop: a divisor of `pairs`."""
        if not self.is_looped:
            return self.pairs
        return unroll(self.pairs, self.pixels, self.most_pairs)

    @property
    def fits(self) -> bool:
        """Whether every operand can be addressed."""
        reach = 2 * (self.pixels - 1) * self.pixel_pitch + 4 * self.unroll
        return (
            reach <= MAX_OFFSET
            and (self.pixels - 1) * self.n_out + self.channels <= MAX_OFFSET
            and self.channels <= self.n_out
            and self.channels * self.pixels <= 8
        )


_C_FIELDS: Final = tuple(f.name for f in fields(Block) if f.name != "most_pairs")


def unroll(pairs: int, pixels: int, most_pairs: int = 0) -> int:
    """Return the largest divisor of `pairs` that makes a loop of reasonable size."""
    most = min(most_pairs or _MOST_LOOPED[pixels], pairs)
    return max(n for n in range(1, most + 1) if pairs % n == 0)


def padded_pairs(pairs: int, pixels: int, most_pairs: int = 0) -> int:
    """Return how many pairs, a few of them zeros, take the least time."""
    if pairs <= (most_pairs or _MOST_UNROLLED):
        return pairs
    pair = 5 + 3 * pixels

    def time(n: int) -> int:
        return pair * n + 7 * (n // unroll(n, pixels, most_pairs))

    return min(range(pairs, pairs + 8), key=time)


@dataclass(frozen=True, kw_only=True)
class Requantization:
    """Scales of output channels as blocks want them: see `es_requantize_block`."""

    multiplier: npt.NDArray[np.int64]
    constant: npt.NDArray[np.int64]
    shift: npt.NDArray[np.int64]


def requantization(
    multiplier: npt.NDArray[np.int32],
    shift: npt.NDArray[np.int8],
    y_zero: int,
    reach: npt.NDArray[np.int64],
) -> Requantization | None:
    """Return the constants of the short sequence; None where a channel needs the long one.

    It needs shifts to the right by 1 to 22. A channel whose sums (at most `reach`) all vanish is
    brought there: with a multiplier of 0 it gives the zero point.
    """
    n = -shift.astype(np.int64)
    m = multiplier.astype(np.int64)
    # |sum * m / 2^31| < 2^(n - 1) - 1: rounds to 0 both times
    half = np.left_shift(np.int64(1), np.clip(n - 1, 0, 40))
    vanishes = (m == 0) | ((n >= 2) & ((reach * m >> 31) + 2 < half))
    m, n = np.where(vanishes, 0, m), np.where(vanishes, 1, n)
    if n.min() < 1 or n.max() > _MAX_SHIFT:
        return None
    constant = (np.int64(1) << (n - 1)) + (np.int64(y_zero) << n)
    return Requantization(multiplier=m, constant=constant, shift=n)


def group_starts(n_out: int, channels: int) -> list[int]:
    """Return the first channel of every group; the last may overlap the one before."""
    starts = list(range(0, n_out - channels + 1, channels))
    if n_out % channels:
        starts.append(n_out - channels)
    return starts


def block_stream(
    weights: npt.NDArray[np.int8],
    bias: npt.NDArray[np.int32],
    scales: Requantization,
    channels: int,
) -> npt.NDArray[np.int32]:
    """Return the constants of a block in the order in which it reads them.

    Args:
        weights: (n_out, pairs of all runs, 2), in the order of the values.
        bias: (n_out,), the input's zero point folded in.
        scales: Of the n_out channels.
        channels: Of a group.
    """
    parts = []
    for start in group_starts(len(weights), channels):
        group = slice(start, start + channels)
        parts.append(2 * bias[group].astype(np.int64))
        w = weights[group].reshape(channels // 2, 2, -1, 2)
        words = np.ascontiguousarray(w.transpose(2, 0, 3, 1)).ravel()  # (pair, twos, k, channel)
        parts.append(words.view("<i4").astype(np.int64))
        constants = (scales.multiplier[group], scales.constant[group], scales.shift[group])
        parts.append(np.stack(constants, axis=1).ravel())
    return np.concatenate(parts).astype(np.int32)


def block_assembly(block: Block, name: str) -> str:
    """Return the function `name(x, stream, y)`, an `es_block_function`, as assembly."""
    c, p = block.channels, block.pixels
    acc = [[_REGISTERS[i * p + j] for j in range(p)] for i in range(c)]
    free = _REGISTERS[c * p :]
    looped = block.is_looped
    x, run_end, end, y, y_end = (f"[sp, #{4 * i}]" for i in range(5))
    lines = ["push {r4-r11, lr}", "sub sp, #20", f"str r0, {x}"]
    if block.runs > 1 and looped:
        lines += [_add("r3", "r0", 2 * block.runs * block.run_pitch), f"str r3, {end}"]
    whole = block.n_out // c * c
    lines += [f"str r2, {y}", _add("r3", "r2", whole), f"str r3, {y_end}", "mov r0, r1", "1:"]
    # Sums begin as the bias: the last of each row holds it, the others take it at the first pair.
    lines += [f"ldr {acc[i][-1]}, [r0], #4" for i in range(c)]
    lines.append(f"ldr r1, {x}")
    if looped:
        lines += [f"mov {acc[i][j]}, {acc[i][-1]}" for i in range(c) for j in range(p - 1)]
    if block.runs > 1 and looped:
        lines.append("2:")
    inner = block.pairs > block.unroll
    if inner:
        lines += [_add(free[0], "r1", 4 * block.pairs), f"str {free[0]}, {run_end}", "3:"]
    if looped:
        lines += _pairs(block, acc, free, range(block.unroll), 0, first=False)
        turn = 4 * block.unroll
        if inner:
            lines += [_add("r1", "r1", turn), f"ldr {free[0]}, {run_end}", f"cmp r1, {free[0]}",
                      "bne 3b"]  # fmt: skip
            turn = 4 * block.pairs
        if block.runs > 1:
            rest = 2 * block.run_pitch - (turn if inner else 0)
            lines += [_add("r1", "r1", rest), f"ldr {free[0]}, {end}", f"cmp r1, {free[0]}",
                      "bne 2b"]  # fmt: skip
    else:
        for run in range(block.runs):
            first = run == 0
            lines += _pairs(
                block, acc, free, range(block.pairs), 2 * run * block.run_pitch, first=first
            )
    m, k, n, t = free[:4]
    for i in range(c):
        lines += [f"ldr {r}, [r0], #4" for r in (m, k, n)]
        for j in range(p):
            lines += requantize(acc[i][j], m, k, n, t, block.y_min, block.y_max)
    lines += [f"ldr {m}, {y}", f"ldr {k}, {y_end}"]
    lines += [f"strb {acc[i][j]}, [{m}, #{j * block.n_out + i}]"
              for j in range(p) for i in range(c)]  # fmt: skip
    lines += [f"adds {m}, #{c}", f"str {m}, {y}", f"cmp {m}, {k}", "blo 1b"]
    if block.n_out % c:
        lines += ["bne 4f", f"subs {m}, #{c - block.n_out % c}", f"str {m}, {y}", "b 1b", "4:"]
    lines += ["add sp, #20", "pop {r4-r11, pc}"]
    return function(name, lines)


def _pairs(
    block: Block,
    acc: Sequence[Sequence[str]],
    free: Sequence[str],
    pairs: range,
    base: int,
    *,
    first: bool,
) -> list[str]:
    """Multiply pairs of values, at r1 + base + 4 * pair for the first pixel."""
    c, p = block.channels, block.pixels
    lines: list[str] = []

    def value(register: str, pixel: int, pair: int) -> str:
        offset = base + 2 * pixel * block.pixel_pitch + 4 * pair
        return f"ldr {register}, [r1, #{offset}]"

    def multiply(i: int, j: int, weight: str, x: str, pair: int) -> str:
        start = acc[i][p - 1] if first and pair == pairs[0] else acc[i][j]
        return f"smlad {acc[i][j]}, {weight}, {x}, {start}"

    words = c // 2
    at_once = (len(free) - 1) // (words + p)
    if at_once:
        t = free[-1]
        for start in range(0, len(pairs), at_once):
            chunk = pairs[start : start + at_once]
            raw = {(q, h): free[(q - chunk[0]) * (words + p) + h]
                   for q in chunk for h in range(words)}  # fmt: skip
            xs = {(q, j): free[(q - chunk[0]) * (words + p) + words + j]
                  for q in chunk for j in range(p)}  # fmt: skip
            for q in chunk:
                lines += [f"ldr {raw[q, h]}, [r0], #4" for h in range(words)]
                lines += [value(xs[q, j], j, q) for j in range(p)]
            for q in chunk:
                for h in range(words):
                    w = raw[q, h]
                    lines += [f"sxtb16 {t}, {w}", f"sxtb16 {w}, {w}, ror #8"]
                    lines += [multiply(2 * h, j, t, xs[q, j], q) for j in range(p)]
                    lines += [multiply(2 * h + 1, j, w, xs[q, j], q) for j in range(p)]
        return lines
    # Too few registers for all pixels of a pair: keep the weights, take the pixels in turns.
    w, t, stream = free[0], free[1], free[2:]
    for q in pairs:
        for start in range(0, p, len(stream)):
            chunk = range(start, min(p, start + len(stream)))
            if start == 0:
                lines.append(f"ldr {w}, [r0], #4")
            lines += [value(stream[j - start], j, q) for j in chunk]
            if start == 0:
                lines += [f"sxtb16 {t}, {w}", f"sxtb16 {w}, {w}, ror #8"]
            for j in chunk:
                lines += [multiply(0, j, t, stream[j - start], q)]
                lines += [multiply(1, j, w, stream[j - start], q)]
    return lines


def requantize(
    acc: str, multiplier: str, constant: str, shift: str, t: str, y_min: int, y_max: int
) -> list[str]:
    """Turn twice a sum into an output value, in place: `es_requantize_block`, then the clamp."""
    return [
        f"smmlar {t}, {acc}, {multiplier}, {constant}",
        f"add {t}, {t}, {acc}, asr #31",
        f"asr {t}, {t}, {shift}",
        f"ssat {acc}, #8, {t}",
        *clamp(acc, y_min, y_max),
    ]


def clamp(register: str, y_min: int, y_max: int) -> list[str]:
    """Bring an int8 value into [y_min, y_max]."""
    lines = []
    if y_min > -128:
        lines += [f"cmp {register}, #{y_min}", "it lt", f"movlt {register}, #{y_min}"]
    if y_max < 127:
        lines += [f"cmp {register}, #{y_max}", "it gt", f"movgt {register}, #{y_max}"]
    return lines


def function(name: str, lines: Sequence[str]) -> str:
    """Return a top-level `__asm__` that defines a function, in a section of its own."""
    head = [
        f'.section .text.{name},\\"ax\\",%progbits',
        ".syntax unified", ".thumb", ".balign 4", f".global {name}",
        f".hidden {name}", f".type {name}, %function", ".thumb_func", f"{name}:",
    ]  # fmt: skip
    body = [part for line in lines for part in line.split("\n")]
    text = [*head, *body, f".size {name}, .-{name}", ".text"]
    return "__asm__(\n" + "\n".join(f'    "{line}\\n"' for line in text) + ");\n"


def wrapped(text: str, indent: str = "") -> list[str]:
    """Return a C declaration or call in lines of at most 98 columns; a pointer keeps its type."""
    joined = re.sub(r"(?<=\w) (?=\*|\w+ \*)| (?=\{$)", "\N{NO-BREAK SPACE}", text)
    lines = textwrap.wrap(
        joined, 98, initial_indent=indent, subsequent_indent=indent + "    ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def _is_immediate(value: int) -> bool:
    """Whether ADD takes it as a 12-bit immediate."""
    return 0 <= value <= MAX_OFFSET


def move(register: str, value: int) -> str:
    """Load a constant in [0, 2^32): MOVW, and MOVT where it is large."""
    if value < 1 << 16:
        return f"movw {register}, #{value}"
    return f"movw {register}, #{value & 0xFFFF}\nmovt {register}, #{value >> 16}"


def _add(to: str, register: str, value: int) -> str:
    """Add a constant; one that no immediate holds goes through `to`, or in parts."""
    if _is_immediate(value):
        return f"addw {to}, {register}, #{value}"
    if 0 > value >= -MAX_OFFSET:
        return f"subw {to}, {register}, #{-value}"
    if to != register:
        return f"{move(to, value)}\nadd {to}, {register}"
    assert value > 0, value
    parts = [value & 0xFF << bit for bit in range(0, 32, 8) if value & 0xFF << bit]
    return "\n".join(f"add {to}, {register}, #{part}" for part in parts)


def with_pixels(block: Block, pixels: int) -> Block:
    """Return the block for another number of pixels."""
    return replace(block, pixels=pixels)


def with_turns(block: Block, most_pairs: int) -> Block:
    """Return the block with so many pairs in a turn at most; the same where that limits nothing."""
    limited = replace(block, most_pairs=most_pairs)
    if (limited.unroll, limited.is_looped) == (block.unroll, block.is_looped):
        return block
    return replace(block, most_pairs=limited.unroll)


def block_loop(block: Block, calls: float) -> Loop:
    """Return the loop over channels of `block_assembly`, which is called `calls` times."""
    groups = calls * len(group_starts(block.n_out, block.channels))
    inner: tuple[Loop, ...] = ()
    if block.is_looped:
        turn = 4 * len(_turn(block))
        runs = groups * block.runs
        if block.pairs > block.unroll:
            turns = runs * (block.pairs // block.unroll)
            inner = (Loop(n_bytes=turn + 16, turns=turns, entries=runs),)
        if block.runs > 1:
            inner = (Loop(n_bytes=turn + 40, turns=runs, entries=groups, inner=inner),)
    body = block_bytes(block) - _AROUND_BYTES
    return Loop(n_bytes=body, turns=groups, entries=calls, inner=inner)


@cache
def _turn(block: Block) -> tuple[str, ...]:
    """Return the code of one turn of the innermost loop."""
    c, p = block.channels, block.pixels
    acc = [[_REGISTERS[i * p + j] for j in range(p)] for i in range(c)]
    return tuple(_pairs(block, acc, _REGISTERS[c * p :], range(block.unroll), 0, first=False))


@cache
def block_cycles(block: Block) -> float:
    """Return the cycles of one call of `block_assembly`, by the timing table of Cortex-M4."""
    c, p = block.channels, block.pixels
    turns = block.runs * block.pairs / block.unroll
    turn = cycles(_turn(block))
    loops = 0.0
    if block.is_looped:
        inner = block.pairs > block.unroll
        loops = (7 * turns if inner else 0) + (7 if block.runs > 1 else 0) * block.runs
        loops += (3 * block.runs if inner else 0) + c * (p - 1)
    scale = cycles(requantize("r2", "r3", "r4", "r5", "r6", block.y_min, block.y_max))
    group = c + 3 + turns * turn + loops + c * (4 + p * (scale + 1)) + 10
    return 60 + len(group_starts(block.n_out, c)) * group


def cycles(lines: Sequence[str]) -> float:
    """Return the cycles of straight code; a load behind a load or store takes one."""
    total, after = 0.0, False
    for line in lines:
        word = line.split()[0]
        if word.startswith("ldr"):
            total += 1 if after else 2
        else:
            total += 0.5 if word.startswith("it") else 1
        after = word.startswith(("ldr", "str"))
    return total


@cache
def block_bytes(block: Block) -> int:
    """Return the size of `block_assembly`, about: all but a few instructions take 4 bytes."""
    return 4 * (len(block_assembly(block, "f").splitlines()) - 12)


def emit(
    stem: str, blocks: Sequence[Block], shape: Mapping[str, int], body: str, what: str
) -> tuple[str, Emitted]:
    """Return a kernel's name and its C file: blocks, and a function that calls them.

    Args:
        stem: What the name begins with, `es_conv_s8_3x3x16_16`; the rest tells kernels apart.
        blocks: For four pixels and for the rest, or one of them.
        shape: The fields of es_conv_shape.
        body: The call of the outer loop, with `{four}` and `{rest}` for the blocks' names.
        what: For the comment.
    """
    sizes = ", ".join(str(value) for value in shape.values())
    key = hashlib.sha256(repr((blocks, sizes, body)).encode()).hexdigest()[:6]
    name = f"{stem}_{key}__dsp"
    names = [f"{name}_{b.pixels}" for b in blocks]
    arguments = "const int16_t *x, const int32_t *stream, int8_t *y"
    prototype = f"void {name}({PARAMETERS})"
    lines = [
        f"/* Written for one layer: {what}.",
        " * es_blocks.h says what blocks compute, and what the stream holds. */",
        '#include "es_blocks.h"',
        "",
        "ES_BEGIN",
        "",
        *wrapped(f"{prototype};"),
        "",
        GUARD,
    ]
    for block, block_name in zip(blocks, names, strict=True):
        lines += wrapped(f"void {block_name}({arguments});")
        lines.append(block_assembly(block, block_name))
    lines.append("#else")
    for block, block_name in zip(blocks, names, strict=True):
        values = ", ".join(str(getattr(block, name)) for name in _C_FIELDS)
        lines += wrapped(f"static void {block_name}({arguments}) {{")
        lines += wrapped(f"const es_block block = {{{values}}};", "  ")
        lines += ["  es_block_c(&block, x, stream, y);", "}"]
    lines += ["#endif", "", *wrapped(f"{prototype} {{")]
    if "&s" in body:
        lines += wrapped(f"static const es_conv_shape s = {{{sizes}}};", "  ")
    lines += wrapped(body.format(four=names[0], rest=names[-1]), "  ")
    lines += ["}", "", "ES_END", ""]
    return name, Emitted(text="\n".join(lines), parameters=PARAMETERS)
