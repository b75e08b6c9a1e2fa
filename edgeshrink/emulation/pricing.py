"""How changed graphs are priced, engine by engine, to say what would help."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from edgeshrink.costs.application import latency
from edgeshrink.costs.firmware import firmware_price
from edgeshrink.costs.interpreter import interpreter_cost
from edgeshrink.costs.memory_system import memory_system
from edgeshrink.emulation.variations import Price
from edgeshrink.errors import ModelError
from edgeshrink.graph import Graph
from edgeshrink.lowering import Optimize, lower
from edgeshrink.lowering.waits import lowered_waiting
from edgeshrink.target import Target

VECTOR_CHANNELS: Final = 8  # XNNPACK's and ncnn's kernels compute as many outputs at a time
CORE_CHANNELS: Final = 4  # ours and CMSIS-NN's load as many int8 values at a time


@dataclass(frozen=True, kw_only=True)
class Pricing:
    """How changed graphs are priced for one engine on one target.

    Attributes:
        price: Milliseconds of an inference of a graph, or any multiple of them; 0 for a graph
            that can't be priced.
        multiple: Of how many channels the engine's kernels work on at a time.
        has_int8: Whether a float model could run in int8 there.
        max_threads: How many threads there could be; 1 where the engine has none.
        with_max_threads: The same price for that many threads.
    """

    price: Price
    multiple: int
    has_int8: bool = False
    max_threads: int = 1
    with_max_threads: Price | None = None


def application_pricing(target: Target, *, runtime: str, threads: int) -> Pricing:
    """Return how LiteRT and ExecuTorch are priced on an application processor."""
    cores = target.cpu.n_cores

    def priced(graph: Graph, n_threads: int) -> float:
        return sum(latency(graph, target, runtime=runtime, threads=n_threads).per_op_ms)

    return Pricing(
        price=lambda graph: priced(graph, threads),
        multiple=VECTOR_CHANNELS,
        has_int8="int8" in target.ops.dtypes,
        max_threads=cores,
        with_max_threads=lambda graph: priced(graph, cores),
    )


def firmware_pricing(target: Target, optimize: Optimize) -> Pricing:
    """Return how our own kernels are priced on a microcontroller, before they are compiled."""

    system = memory_system(target)

    def priced(graph: Graph) -> float:
        try:
            lowered = lower(
                _with_values(graph), target.cpu.isa, optimize=optimize, arena_seconds=0.0,
                flash=system,
            )  # fmt: skip
        except ModelError:
            return 0.0  # the changed operator has no kernel
        found = firmware_price(lowered, target.cpu.core)
        return found.cycles + lowered_waiting(lowered, found.op_cycles, system)

    return Pricing(price=priced, multiple=CORE_CHANNELS)


def interpreter_pricing(target: Target) -> Pricing:
    """Return how TensorFlow Lite Micro is priced on a microcontroller."""
    return Pricing(
        price=lambda graph: sum(interpreter_cost(graph, target).op_cycles),
        multiple=CORE_CHANNELS,
    )


def _with_values(graph: Graph) -> Graph:
    """Return `graph` with constants that lie in memory, for the packing of weights."""
    return replace(
        graph,
        tensors=tuple(
            t if t.data is None else replace(t, data=np.ascontiguousarray(t.data))
            for t in graph.tensors
        ),
    )
