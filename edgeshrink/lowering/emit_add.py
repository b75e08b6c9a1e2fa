"""Writes sums and differences of two int8 tensors as assembly, for the scales of one layer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from edgeshrink.lowering.calls import Emitted
from edgeshrink.lowering.emit_m4 import GUARD, clamp, function, move, wrapped

PARAMETERS: Final = "const int8_t *a, const int8_t *b, int8_t *y"
_UNROLL: Final = 4


def can_emit_add(f: Mapping[str, int]) -> bool:
    """Whether `emit_add` takes this es_add_shape.

    One input at least has half the common scale, as the larger of two scales does: its values need
    no rounding. The output is shifted to the right by 1 to 22, so its constant fits.
    """
    exact = [t for t in "ab" if (f[f"{t}_multiplier"], f[f"{t}_shift"]) == (2**30, 0)]
    right = all(f[f"{t}_shift"] < 0 for t in "ab" if t not in exact)
    return bool(exact) and right and -22 <= f["y_shift"] <= -1


def emit_add(f: Mapping[str, int]) -> tuple[str, Emitted]:
    """Return name and C file of `name(a, b, y)` for an es_add_shape that `can_emit_add`."""
    fields = ", ".join(str(value) for value in f.values())
    name = f"es_add_s8_{hashlib.sha256(fields.encode()).hexdigest()[:8]}__dsp"
    lines = [
        f"/* Sum of two tensors of {f['n']} values, for the scales of one layer: see",
        " * es_add_s8__ref, which it equals bit for bit. One input lies exactly on the common",
        " * scale but for a shift; the other takes a rounded product, and so does the sum. */",
        '#include "es_elementwise.h"',
        "",
        "ES_BEGIN",
        "",
        f"void {name}({PARAMETERS});",
        "",
        GUARD,
        _assembly(name, f).rstrip(),
        "#else",
        f"void {name}({PARAMETERS}) {{",
        *wrapped(f"static const es_add_shape s = {{{fields}}};", "  "),
        "  for (int32_t i = 0; i < s.n; i++) y[i] = (int8_t)es_add_one(&s, 20, a[i], b[i]);",
        "}",
        "#endif",
        "",
        "ES_END",
        "",
    ]  # fmt: skip
    return name, Emitted(text="\n".join(lines), parameters=PARAMETERS)


def add_cycles(f: Mapping[str, int]) -> float:
    """Return the cycles of one call."""
    return 50 + f["n"] * (14 + 4 / _UNROLL + 2.5 * len(clamp("r0", f["y_min"], f["y_max"])) / 3)


def _assembly(name: str, f: Mapping[str, int]) -> str:
    exact, other = ("a", "b") if (f["a_multiplier"], f["a_shift"]) == (2**30, 0) else ("b", "a")
    signs = {"a": 1, "b": f["b_sign"]}
    # A second input on exactly half the scale: twice its value, shifted by 1, rounds nothing.
    right = max(1, -f[f"{other}_shift"])
    left = 21 if f[f"{other}_shift"] else 22
    y_right = -f["y_shift"]
    constants = {
        "r4": f[f"{other}_zero"] << left,
        "r5": f[f"{other}_multiplier"],
        "r6": 1 << (right - 1),
        "r7": -signs[exact] * (f[f"{exact}_zero"] << 20),  # twice, on the common scale
        "r8": f["y_multiplier"],
        "r9": (1 << (y_right - 1)) + (f["y_zero"] << y_right),
    }
    one = [
        f"ldrsb r10, [{'r0' if exact == 'a' else 'r1'}], #1",
        f"ldrsb r11, [{'r1' if exact == 'a' else 'r0'}], #1",
        f"rsb r11, r4, r11, lsl #{left}",
        "add r12, r6, r11, asr #31",
        "smmlar r11, r11, r5, r12",
        f"asr r11, r11, #{right}",
        f"{'add' if signs[other] > 0 else 'sub'} r11, r7, r11, lsl #1",
        f"{'add' if signs[exact] > 0 else 'sub'} r11, r11, r10, lsl #20",
        "add r12, r9, r11, asr #31",
        "smmlar r11, r11, r8, r12",
        f"asr r11, r11, #{y_right}",
        "ssat r11, #8, r11",
        *clamp("r11", f["y_min"], f["y_max"]),
        "strb r11, [r2], #1",
    ]
    turns, rest = divmod(f["n"], _UNROLL)
    lines = ["push {r4-r11, lr}"]
    lines += [move(register, value & 0xFFFFFFFF) for register, value in constants.items()]
    if turns:
        lines += [move("r3", turns * _UNROLL), "add r3, r2", "1:", *one * _UNROLL, "cmp r2, r3",
                  "bne 1b"]  # fmt: skip
    lines += [*one * rest, "pop {r4-r11, pc}"]
    return function(name, lines)
