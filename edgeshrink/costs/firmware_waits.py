"""What the operators of a lowered graph will wait for the flash, before there is any code.

Three things wait: code that is run for the first time, kernels written out for one layer that are
longer than the cache of code, and constants that the cache of constants can't keep until they are
read again. The counts are those that the emulator finds in compiled models, within some 15 % of the
cycles of a model; a profile simulates the caches instead.
"""

from __future__ import annotations

from typing import Final

from edgeshrink.costs.memory_system import MemorySystem, constants_bytes, waits_for
from edgeshrink.graph import Graph, Op
from edgeshrink.lowering import Step

ERROR: Final = 0.15  # of a model's cycles
# Measured over the operators of compiled models, on Cortex-M4 and -M0+.
CODE_PER_CYCLE: Final = {True: 3.5, False: 2.1}  # bytes executed per cycle; written out, or not
ALL_MISSED: Final = 1.5  # a loop so many times as long as its cache misses everything
# Pixels for which weights are read once: by kernels written out, by others, by those in plain C.
PIXELS: Final = {
    "CONV_2D": (3.4, 1.75, 3.8), "TRANSPOSE_CONV": (3.4, 1.75, 3.8),
    "DEPTHWISE_CONV_2D": (14.0, 0.46, 0.46),
}  # fmt: skip
POINTWISE_VALUES: Final = 64  # pointwise kernels of more inputs loop over them
POINTWISE_LOOP: Final = 32  # in steps of so many, which the cache keeps
LOOP_BYTES: Final = 400  # of kernels that are not written out; a cache below that
LOOP_MISSED: Final = 0.8  # misses so much of them
FIRST_RUN_BYTES: Final = 400  # of code around a kernel


def step_waiting(graph: Graph, step: Step, cycles: float, system: MemorySystem) -> float:
    """Return the cycles that an operator waits.

    Args:
        graph: What was lowered.
        step: The operator, as it was lowered.
        cycles: What it takes where memory never waits.
        system: The board's flash.
    """
    calls = step.variant.calls
    if not calls:
        return 0.0
    op, unit = graph.ops[step.op], system.unit_bytes
    is_written_out = any(call.emitted is not None for call in calls)
    fetched = CODE_PER_CYCLE[is_written_out] * cycles / unit
    code = float(step.variant.code_bytes)
    over = (code / system.code_bytes - 1) / (ALL_MISSED - 1)
    loops = is_written_out and op.kind != "DEPTHWISE_CONV_2D"  # whose loops are short
    missed = fetched * min(1.0, max(0.0, over)) if loops else 0.0
    taps = _taps(graph, op)
    if taps > POINTWISE_VALUES and step.variant.name == "by pixels" and op.kind == "CONV_2D":
        missed *= POINTWISE_LOOP / taps
    if not is_written_out and system.code_bytes < LOOP_BYTES:
        missed = LOOP_MISSED * fetched
    first = (code + FIRST_RUN_BYTES) / unit
    constants = sum(
        graph.tensors[i].n_bytes for i in op.inputs if i >= 0 and graph.tensors[i].data is not None
    )
    passes = 1.0
    if constants > constants_bytes(system) and op.kind in PIXELS:
        shape = graph.tensors[op.outputs[0]].shape
        pixels = shape[1] * shape[2] if len(shape) == 4 else 1
        is_plain = all(call.function.endswith(("__scalar", "__ref")) for call in calls)
        passes = max(1.0, pixels / PIXELS[op.kind][0 if is_written_out else 2 if is_plain else 1])
    return waits_for(
        system, fetched=fetched, jumps=0.0, successors=missed + first,
        misses=passes * constants / unit, cycles=cycles,
    )  # fmt: skip


def _taps(graph: Graph, op: Op) -> int:
    """Return how many values a convolution multiplies for one output; 0 of other operators."""
    shape = graph.tensors[op.inputs[1]].shape if op.kind == "CONV_2D" else ()
    return shape[1] * shape[2] * shape[3] if len(shape) == 4 else 0
