"""Profile a `.tflite` in TensorFlow Lite Micro on a microcontroller: arena, flash, RAM, time.

Nothing of the interpreter runs on an emulated core: the arena is what the same interpreter records
on this host, the time comes from the cost of its kernels (`costs/interpreter.py`), and its code is
taken from images of it that were built with gcc.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Final

from edgeshrink.budget import Budget
from edgeshrink.costs.energy import Duty
from edgeshrink.costs.interpreter import ENGINE, interpreter_cost
from edgeshrink.costs.kernels import shape_of
from edgeshrink.costs.microcontroller import time_figures
from edgeshrink.costs.work import op_work
from edgeshrink.emulation.advice import advise
from edgeshrink.emulation.emulate import live_bytes, with_energy
from edgeshrink.emulation.pricing import interpreter_pricing
from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.graph import Graph, Op
from edgeshrink.graph_reader import read_graph, read_model_bytes
from edgeshrink.profile import Figure, OpCost, Profile, exact, overruns
from edgeshrink.runtimes.tflm_arena import Arena, planned_bytes, recorded_arena
from edgeshrink.target import Target

# .text of images with TFLM 90b983c and CMSIS-NN 99f736a by gcc 12.2: nine operators with all their
# types, the same with int8 kernels only, and three operators.
NINE_OPS: Final = 108_680
NINE_INT8_OPS: Final = 66_888
THREE_OPS: Final = 37_320
RODATA: Final = 1_024
PER_OP: Final = (NINE_OPS - THREE_OPS) / 6  # an operator with all its types
BASE: Final = THREE_OPS - 3 * PER_OP  # the interpreter
INT8_KINDS: Final = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")  # without uint8 kernels
INT8_SHARE: Final = (NINE_INT8_OPS - BASE) / (NINE_OPS - BASE)
CODE_ERROR: Final = 0.15  # other operators, compilers and versions
STACK_BYTES: Final = 1_148  # the deepest of those images
STACK_SHARE: Final = 0.5
STATICS: Final = 600  # interpreter, resolver, logger: variables of such an image
ARENA_SHARE: Final = 0.02  # within which four known arenas were told (all within 0.2 %)


def emulate_interpreter(
    model: Path,
    target: Target,
    *,
    budget: Budget | None = None,
    name: str | None = None,
) -> Profile:
    """Return the profile of a `.tflite` in TFLM.

    Args:
        model: The file.
        target: A microcontroller that has the runtime `tflm`.
        budget: Limits to check; the target's where left out.
        name: What to call the file in the profile and in errors.

    Raises:
        ConfigError: TFLM does not run on this target.
        ModelError: The file is damaged, of types that the target refuses, or TFLM can't load it.
        ToolchainError: tflite-micro is not installed.
    """
    check_runtime(target)
    shown = name or str(model)
    data = read_model_bytes(model)
    graph = read_graph(data, name=shown)
    _check_types(graph, target)
    cost = interpreter_cost(graph, target)
    n_dense = sum(op.kind == "FULLY_CONNECTED" for op in graph.ops)
    arena = recorded_arena(
        data, name=shown, n_dense=n_dense, scratch_bytes=_scratch_in_plan(graph, target)
    )
    macs = [op_work(graph, op).macs for op in graph.ops]
    figures = {
        **time_figures(
            cost.total_cycles, target, engine=ENGINE, error=cost.error,
            waiting_share=cost.waiting_share, note=f"kernels: {cost.kernels}",
        ),
        "flash_bytes": _flash(graph, len(data)),
        "ram_bytes": _ram(arena),
        "arena_bytes": _arena(arena),
        "model_bytes": exact(len(data), "B", note="part of flash"),
        "macs": exact(sum(macs), "MAC"),
    }  # fmt: skip
    clock_mhz = target.cpu.clock_mhz
    notes = []
    if cost.unknown_ops:
        kinds = sorted({graph.ops[i].kind for i in cost.unknown_ops})
        notes.append(
            f"no kernel was measured for {', '.join(kinds)}: priced as the most alike, band widened"
        )
    profile = Profile(
        target=target.name,
        engine=ENGINE,
        model_path=shown,
        model_sha256=hashlib.sha256(data).hexdigest(),
        figures=figures,
        ops=tuple(
            OpCost(
                index=op.index,
                kind=op.kind,
                name=next((graph.tensors[i].name for i in op.outputs if graph.tensors[i].name), ""),
                macs=n_macs,
                latency_ms=None if clock_mhz is None else cycles / (1e3 * clock_mhz),
                cycles=cycles,
                flash_bytes=_constants(graph, op),
                live_bytes=alive,
                is_unknown=op.index in cost.unknown_ops or None,
            )
            for op, cycles, n_macs, alive in zip(
                graph.ops, cost.op_cycles, macs, live_bytes(graph), strict=True
            )
        ),
        overruns=overruns(figures, budget or target.budget),
        notes=tuple(notes),
    )
    profile = replace(profile, advice=advise(graph, profile, interpreter_pricing(target)))
    return with_energy(profile, target, Duty())


def check_runtime(target: Target) -> None:
    """Raise ConfigError unless `target` runs TFLM."""
    names = [runtime.name for runtime in target.runtimes]
    if target.kind != "microcontroller" or ENGINE not in names:
        what = f"does not run on {target.name}"
        raise ConfigError(
            f"--engine {ENGINE}", what, f"runtimes of this target: {', '.join(names)}"
        )


def _check_types(graph: Graph, target: Target) -> None:
    for op in graph.ops:
        for index in (*op.inputs, *op.outputs):
            dtype = graph.tensors[index].dtype if index >= 0 else ""
            is_old = dtype == "uint8" and op.kind in INT8_KINDS
            if (dtype.startswith("float") or is_old) and dtype not in target.ops.dtypes:
                raise ModelError(
                    f"{graph.name}: {op.kind} (operator {op.index})",
                    f"computes in {dtype}, {target.name} allows {', '.join(target.ops.dtypes)}",
                    "quantize the model to int8, its inputs and outputs too",
                )


def _scratch_in_plan(graph: Graph, target: Target) -> int:
    """Return what the scratch buffers of CMSIS-NN make the plan of activations longer."""
    if not target.cpu.core.startswith("cortex"):
        return 0
    blocks = _lifetimes(graph)
    scratch = [
        (n_bytes, position, position)
        for position, op in enumerate(graph.ops)
        if (n_bytes := scratch_bytes(graph, op)) > 0
    ]
    return planned_bytes([*blocks, *scratch]) - planned_bytes(blocks)


def _lifetimes(graph: Graph) -> list[tuple[int, int, int]]:
    """Return (bytes, first, last operator) of every activation."""
    first: dict[int, int] = dict.fromkeys(graph.inputs, 0)
    last: dict[int, int] = {}
    for position, op in enumerate(graph.ops):
        for index in op.outputs:
            first.setdefault(index, position)
            last[index] = position
        for index in op.inputs:
            if index >= 0 and graph.tensors[index].data is None:
                first.setdefault(index, 0)
                last[index] = position
    last |= dict.fromkeys(graph.outputs, len(graph.ops) - 1)
    return [(graph.tensors[i].n_bytes, a, last.get(i, a)) for i, a in first.items()]


def scratch_bytes(graph: Graph, op: Op) -> int:
    """Return the scratch buffer that CMSIS-NN's kernel of an operator asks for on a core with DSP.

    Convolutions but pointwise ones hold two columns of int16, depthwise ones but 3x3 one, average
    pooling a sum for every channel (the kernels' own size functions, CMSIS-NN 99f736a).
    """
    shape = shape_of(graph, op)
    if op.kind == "CONV_2D" and shape.taps > 1:
        return 4 * (-(-shape.taps * shape.in_c // 4) * 4)
    if op.kind == "DEPTHWISE_CONV_2D" and shape.in_c == shape.out_c and shape.taps != 9:
        return 2 * shape.in_c * shape.taps
    return 4 * shape.out_c if op.kind == "AVERAGE_POOL_2D" else 0


def _flash(graph: Graph, model_bytes: int) -> Figure:
    n_kinds = len({op.kind for op in graph.ops})
    code = BASE + PER_OP * n_kinds
    least = (BASE + INT8_SHARE * PER_OP * n_kinds) * (1 - CODE_ERROR)
    fixed = model_bytes + RODATA
    return Figure(
        value=round(code + fixed), unit="B", how="modelled", low=math.floor(least + fixed),
        high=math.ceil(code * (1 + CODE_ERROR) + fixed), validated=False,
        note=f"model {model_bytes} B, interpreter and {n_kinds} kinds of operators {code:.0f} B as "
        f"registered with all their types, {INT8_SHARE * (code - BASE) + BASE:.0f} B with int8 "
        "alone; from images of 3 and 9 operators by gcc 12.2",
    )  # fmt: skip


def _arena(arena: Arena) -> Figure:
    slack = math.ceil(ARENA_SHARE * arena.device_bytes)
    return Figure(
        value=arena.device_bytes, unit="B", how="modelled", low=arena.device_bytes - slack,
        high=arena.device_bytes + slack, validated=True,
        note=f"part of RAM; TFLM on this host takes {arena.host_bytes} B of which "
        f"{arena.activation_bytes} B are activations; told for 32-bit pointers and the scratch "
        "buffers of the device's kernels, known arenas of four models to within 0.2 %",
    )  # fmt: skip


def _ram(arena: Arena) -> Figure:
    slack = math.ceil(ARENA_SHARE * arena.device_bytes)
    total = arena.device_bytes + STATICS + STACK_BYTES
    return Figure(
        value=total, unit="B", how="modelled",
        low=total - slack - math.ceil(STACK_SHARE * (STATICS + STACK_BYTES)),
        high=total + slack + math.ceil(STACK_SHARE * (STATICS + STACK_BYTES)), validated=False,
        note=f"arena {arena.device_bytes} B, the interpreter's variables {STATICS} B, stack "
        f"{STACK_BYTES} B as of other models",
    )  # fmt: skip


def _constants(graph: Graph, op: Op) -> int:
    used = {i for i in op.inputs if i >= 0 and graph.tensors[i].data is not None}
    return sum(graph.tensors[i].n_bytes for i in used)
