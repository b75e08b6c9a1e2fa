"""What a lowered graph will cost as firmware, before there is any C: bytes, stack, cycles.

Every figure is the sum of what the calls of the lowering cost: kernels by the size they were
measured to have, kernels that are written for one layer by a line through those measured, cycles by
the lowering's own estimate times the factor between it and the emulated core. All of that comes
from `data/firmware_prices.json`, which `benchmarks/fit_firmware_prices.py` writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeshrink.graph import Graph, Op
from edgeshrink.lowering import Call, ConstArg, Lowered, Step, StructArg, TensorArg
from edgeshrink.lowering.calls import ConstantKey, array_key, struct_key
from edgeshrink.passes.padding import conv_padding

DATA: Final = Path(__file__).parent / "data" / "firmware_prices.json"
STACK_BYTES: Final = 1024  # left for the stack when kernels are chosen; the real one is measured
FLAGS: Final = {"latency": "-O3", "ram": "-O3", "flash": "-Os"}
# Cores whose code was not measured are priced as the one with the nearest instruction set.
NEAREST: Final = {
    "cortex-m3": "cortex-m4f", "cortex-m4": "cortex-m4f", "cortex-m7": "cortex-m4f",
    "cortex-m33": "cortex-m4f", "cortex-m0": "cortex-m0+", "rv32imc": "cortex-m0+",
}  # fmt: skip
# Half the width of the bands of a core with measurements of its own; others get OTHER_CORE more.
OTHER_CORE: Final = 0.2
UNKNOWN_CODE: Final = 1.2  # measured over estimated bytes, of kernels that no measurement has
_EMITTED: Final = re.compile(r"_\d+x\d+|_[0-9a-f]{6,}__|_\d")
_PADDED: Final = ("es_conv_s8__ref", "es_depthwise_s8__ref")  # pass taps outside the input by


@dataclass(frozen=True, kw_only=True)
class FirmwarePrice:
    """Predicted figures of a firmware; `*_error` are shares of them, half the width of a band."""

    flash_bytes: int
    code_bytes: int
    constant_bytes: int
    ram_bytes: int
    stack_bytes: int
    cycles: float
    op_cycles: tuple[float, ...]  # of each step
    flash_error: float
    ram_error: float
    cycles_error: float
    core: str  # whose measurements these are


def firmware_price(lowered: Lowered, core: str) -> FirmwarePrice:
    """Return what the firmware of `lowered` will cost on `core`."""
    known = _data()["cores"]
    measured = core if core in known else NEAREST.get(core, "cortex-m4f")
    rates = known[measured][FLAGS[lowered.optimize]]
    errors = _data()["errors"]
    other = 0.0 if measured == core else OTHER_CORE
    code = code_bytes(lowered, rates)
    constants = constant_bytes(lowered)
    stack = max(
        [rates["stack"].get(family(step, call), rates["stack_else"])
         for step in (*lowered.init, *lowered.steps) for call in step.variant.calls],
        default=rates["stack_least"],
    )  # fmt: skip
    per_op = tuple(step_cycles(lowered.graph, step, rates) for step in lowered.steps)
    flash = code + constants
    static = lowered.arena.n_bytes + lowered.state_bytes
    return FirmwarePrice(
        flash_bytes=flash,
        code_bytes=code,
        constant_bytes=constants,
        ram_bytes=static + stack,
        stack_bytes=stack,
        cycles=sum(per_op),
        op_cycles=per_op,
        flash_error=(errors["code"] + other) * code / flash if flash else 0.0,
        ram_error=errors["stack"] * stack / (static + stack),
        cycles_error=errors["cycles"] + other,
        core=measured,
    )


def family(step: Step, call: Call) -> str:
    """Return a kernel's name, without the shape that it was written for."""
    if call.emitted is None:
        return call.function
    match = _EMITTED.search(call.function)
    stem = call.function[: match.start()] if match else call.function.partition("__")[0]
    return f"{stem} {step.variant.name}"


def code_bytes(lowered: Lowered, rates: Mapping[str, Any]) -> int:
    """Return the bytes of code: kernels once, what they need of the run-time once, calls."""
    kernels: dict[str, float] = {}
    needs: set[str] = set()
    total = float(rates["fixed"])
    for step in (*lowered.init, *lowered.steps):
        if not step.variant.calls:
            continue
        total += rates["per_op"]
        for call in step.variant.calls:
            name = family(step, call)
            entry = rates["kernels"].get(name)
            estimate = step.variant.code_bytes / len(step.variant.calls)
            if entry is None:
                kernels[call.function] = UNKNOWN_CODE * estimate
                continue
            needs |= set(entry["needs"])
            kernels[call.function] = entry["bytes"] + entry["slope"] * estimate
    total += sum(kernels.values()) + sum(rates["runtime"][name] for name in needs)
    return round(float(total))


def constant_bytes(lowered: Lowered) -> int:
    """Return the bytes of constants: equal ones once, as the code generator writes them."""
    seen: dict[ConstantKey, int] = {}

    def array(values: Any, align: int) -> None:
        values = np.ascontiguousarray(values)
        seen[array_key(values, align)] = -(-values.nbytes // 4) * 4

    for step in (*lowered.init, *lowered.steps):
        for call in step.variant.calls:
            for arg in call.args:
                if isinstance(arg, ConstArg):
                    array(arg.values, arg.align)
                elif isinstance(arg, StructArg):
                    seen[struct_key(arg)] = 4 * len(arg.fields)
                elif isinstance(arg, TensorArg):
                    place = lowered.places[arg.tensor]
                    data = lowered.graph.tensors[place.constant].data
                    if place.where == "constant" and data is not None:
                        array(data, 4)
    return sum(seen.values()) + int(_data()["vectors"])


def step_cycles(graph: Graph, step: Step, rates: Mapping[str, Any]) -> float:
    """Return an operator's cycles: what they grow with, times what that was measured to take."""
    if not step.variant.calls:
        return 0.0
    line = rates["cycles"].get(cycles_key(step))
    if line is None:
        return float(rates["cycles_else"] * step.variant.cycles)
    return float(np.dot(line, cycle_terms(graph, step)))


def cycle_terms(graph: Graph, step: Step) -> tuple[float, ...]:
    """Return what an operator's cycles grow with: the lowering's estimate, and its outputs.

    The estimate compares kernels for one layer, where all go through the same taps. A kernel that
    looks at every tap and passes those outside the input needs four terms: outputs, taps, taps on
    the input, and products.
    """
    outputs = float(outputs_of(graph, step))
    functions = {call.function for call in step.variant.calls}
    if not functions & set(_PADDED):
        return step.variant.cycles, outputs
    op = graph.ops[step.op]
    shape = graph.tensors[op.inputs[1]].shape
    taps = outputs * shape[1] * shape[2]
    inside = taps * _inside(graph, op)
    return outputs, taps, inside, inside * (shape[3] if op.kind == "CONV_2D" else 1)


def outputs_of(graph: Graph, step: Step) -> int:
    """Return how many values an operator gives."""
    sizes = [graph.tensors[i].shape for i in graph.ops[step.op].outputs]
    return int(sum(np.prod(size, dtype=np.int64) for size in sizes))


def cycles_key(step: Step) -> str:
    """Return what operators with one factor on their cycles have in common."""
    families = "+".join(sorted({family(step, call) for call in step.variant.calls}))
    return f"{step.kind} {step.variant.name} {families}"


def _inside(graph: Graph, op: Op) -> float:
    """Return the share of a convolution's taps that lie on the input."""
    x, w, y = (graph.tensors[i].shape for i in (*op.inputs[:2], op.outputs[0]))
    top, _, left, _ = conv_padding(graph, op)
    share = 1.0
    for axis, pad, letter in ((1, top, "h"), (2, left, "w")):
        stride = op.options[f"stride_{letter}"]
        dilation = op.options.get(f"dilation_{letter}_factor", 1)
        starts = np.arange(y[axis]) * stride - pad
        places = starts[:, None] + np.arange(w[axis]) * dilation
        share *= float(((places >= 0) & (places < x[axis])).mean())
    return share


@cache
def _data() -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))
    return found
