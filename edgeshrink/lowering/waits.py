"""What lowered operators will wait for the flash, before there is any code.

Three things wait: code that is run for the first time, loops that are longer than the cache of
code, and constants that the cache of constants can't keep until they are read again. Kernels are
chosen by what they take with these waits, so that the loops of those written for one layer are no
longer than the target's cache is good for. A profile simulates the caches instead.

A cache that replaces the least recently used line and is read in a circle keeps nothing of a set
with more lines than ways: so a loop that is a little too long misses everything in a cache with one
set, and a part in one with many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edgeshrink.costs.memory_system import MemorySystem, waits_for
from edgeshrink.graph import Graph, Op
from edgeshrink.lowering.calls import Loop, Lowered, TensorArg, Variant
from edgeshrink.runtimes.flash_caches import CacheShape

ERROR: Final = 0.15  # of a model's cycles
# Measured over the operators of compiled models, on Cortex-M4 and -M0+.
CODE_PER_CYCLE: Final = {True: 3.5, False: 2.1}  # bytes executed per cycle; written out, or not
# Pixels for which weights are read once, by kernels that are not written out: those in plain C,
# others.
PIXELS: Final = {
    "CONV_2D": (3.8, 1.75), "TRANSPOSE_CONV": (3.8, 1.75), "DEPTHWISE_CONV_2D": (0.46, 0.46),
}  # fmt: skip
PLAIN: Final = ("__scalar", "__rv32", "__ref")
LOOP_BYTES: Final = 400  # of kernels that are not written out; a cache below that
LOOP_MISSED: Final = 0.8  # misses so much of them
FIRST_RUN_BYTES: Final = 400  # of code around a kernel


@dataclass(frozen=True, kw_only=True)
class _Missed:
    """Units of code that a cache did not hold: the first behind a jump, and others."""

    jumps: float = 0.0
    successors: float = 0.0

    def __add__(self, other: _Missed) -> _Missed:
        return _Missed(
            jumps=self.jumps + other.jumps, successors=self.successors + other.successors
        )


def variant_waiting(
    graph: Graph,
    op: Op,
    variant: Variant,
    system: MemorySystem,
    *,
    cycles: float | None = None,
) -> float:
    """Return the cycles that an operator waits.

    Args:
        graph: What is lowered.
        op: The operator.
        variant: What it is lowered to.
        system: The board's flash.
        cycles: What it takes where memory never waits; left out, the variant's own estimate.
    """
    if not variant.calls:
        return 0.0
    cycles = variant.cycles if cycles is None else cycles
    unit = system.unit_bytes
    is_written_out = any(call.emitted is not None for call in variant.calls)
    fetched = CODE_PER_CYCLE[is_written_out] * cycles / unit
    missed = _Missed(successors=(variant.code_bytes + FIRST_RUN_BYTES) / unit)
    for loop in variant.loops:
        missed += _missed_by(loop, 0.0, system)
    if not is_written_out and system.code_bytes < LOOP_BYTES:
        missed += _Missed(successors=LOOP_MISSED * fetched)
    return waits_for(
        system, fetched=max(fetched, missed.successors), jumps=missed.jumps,
        successors=missed.successors, misses=_missed_constants(graph, op, variant, system),
        cycles=cycles,
    )  # fmt: skip


def constant_tensor_bytes(graph: Graph, variant: Variant) -> int:
    """Return the bytes of the graph's constants that the calls of a variant read."""
    used = {a.tensor for c in variant.calls for a in c.args if isinstance(a, TensorArg)}
    return sum(graph.tensors[t].n_bytes for t in used if graph.tensors[t].data is not None)


def lowered_waiting(
    lowered: Lowered, op_cycles: Sequence[float], system: MemorySystem | None
) -> float:
    """Return the cycles that all steps wait; 0 where nothing is known of the flash.

    Args:
        lowered: A graph with the kernels that were chosen.
        op_cycles: What each of its steps takes where memory never waits.
        system: The board's flash.
    """
    if system is None:
        return 0.0
    graph = lowered.graph
    return sum(
        variant_waiting(graph, graph.ops[step.op], step.variant, system, cycles=took)
        for step, took in zip(lowered.steps, op_cycles, strict=True)
    )


def missed_share(n_bytes: float, shape: CacheShape, unit_bytes: int) -> float:
    """Return what part of so many bytes, read in a circle, a cache does not hold."""
    lines = n_bytes / (shape.line_units * unit_bytes)
    too_many = lines - shape.n_sets * shape.n_ways
    if too_many <= 0:
        return 0.0
    # Each line too many makes one set of ways + 1 lines, which misses them all.
    return min(1.0, max(1.0, too_many) * (shape.n_ways + 1) / lines)


def _missed_by(loop: Loop, outside: float, system: MemorySystem) -> _Missed:
    """Return what a loop misses; `outside`: the share of it that is gone when it is entered."""
    code, unit = system.caches.code, system.unit_bytes
    # It begins and ends within a line, so that it touches one more.
    inside = missed_share(loop.n_bytes + code.line_units * unit - 2, code, unit)
    again = loop.turns - loop.entries
    own = loop.n_bytes - sum(inner.n_bytes for inner in loop.inner)
    times = loop.entries * outside + again * inside
    found = _Missed(jumps=times, successors=times * max(0.0, own / unit - 1))
    for inner in loop.inner:
        # Where it is entered several times a turn, it is gone at the first of them.
        gone = min(max(outside, inside), times / max(1.0, inner.entries))
        found += _missed_by(inner, gone, system)
    return found


def _missed_constants(graph: Graph, op: Op, variant: Variant, system: MemorySystem) -> float:
    """Return how many reads of constants no cache answers."""
    unit = system.unit_bytes
    constants = variant.constant_bytes + constant_tensor_bytes(graph, variant)
    passes = variant.passes
    if not variant.loops and op.kind in PIXELS:
        shape = graph.tensors[op.outputs[0]].shape
        pixels = shape[0] * shape[1] * shape[2] if len(shape) == 4 else 1
        is_plain = all(call.function.endswith(PLAIN) for call in variant.calls)
        passes = max(1.0, pixels / PIXELS[op.kind][0 if is_plain else 1])
    shape_of_cache = system.caches.constants or system.caches.code
    return constants / unit * (1 + (passes - 1) * missed_share(constants, shape_of_cache, unit))
