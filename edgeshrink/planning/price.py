"""What a graph will cost on a target, before it is exported or compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgeshrink.budget import Budget
from edgeshrink.costs.application import latency
from edgeshrink.costs.firmware import STACK_BYTES, FirmwarePrice, firmware_price
from edgeshrink.costs.memory_system import memory_system
from edgeshrink.costs.microcontroller import time_figures
from edgeshrink.costs.work import graph_macs
from edgeshrink.graph import Graph
from edgeshrink.lowering import Lowered, Optimize, lower
from edgeshrink.lowering.waits import ERROR as WAITING_ERROR
from edgeshrink.lowering.waits import lowered_waiting
from edgeshrink.passes import run_passes
from edgeshrink.profile import Figure, Overrun, exact, overruns
from edgeshrink.target import Target

# Bytes of a .tflite beside its constants, a line through the zoo's files (0.6 % at most): names,
# shapes and options by tensor, scale and zero point by scale.
FILE_PER_TENSOR: Final = 137.0
FILE_PER_SCALE: Final = 11.6
FILE_FIXED: Final = 430.0
FILE_ERROR: Final = 0.01
# What LiteRT 2.3 held on an x86_64 host for the zoo's networks: its libraries' resident pages, and
# heap by constants (packed weights), activations alive at once, and operators.
RUNTIME_BYTES: Final = 11_970_000
HEAP_PER_CONSTANT_BYTE: Final = 0.77
HEAP_PER_LIVE_BYTE: Final = 1.77
HEAP_PER_OP: Final = 9_940.0
HEAP_FIXED: Final = 176_000.0
RUNTIME_ERROR: Final = 0.05
RUNTIMES: Final = {"tflite": "litert", "executorch": "executorch", "tflite-runtime": "litert"}


@dataclass(frozen=True, kw_only=True)
class Price:
    """Predicted figures, under the names of a profile, each with how it was got and its band.

    Attributes:
        optimize: What the kernels are chosen by: as asked for, or what the budget made of it.
        bounds: Figures that no choice of kernels and no plan of memory gets under.
    """

    optimize: Optimize
    figures: Mapping[str, Figure]
    bounds: Mapping[str, float]

    def overruns(self, budget: Budget) -> tuple[Overrun, ...]:
        """Return the limits that a figure's upper end exceeds."""
        return overruns(self.figures, budget)

    def excess(self, budget: Budget) -> float:
        """Return by what factor the worst figure exceeds its limit; at or below 1 where all fit."""
        limits = {
            "flash_bytes": budget.flash_bytes,
            "ram_bytes": budget.ram_bytes,
            "latency_ms": budget.latency_ms,
        }
        shares = [
            self.figures[name].high / limit
            for name, limit in limits.items()
            if limit and name in self.figures
        ]
        return max(shares, default=0.0)


def price(
    graph: Graph,
    target: Target,
    *,
    optimize: Optimize = "latency",
    threads: int = 1,
    budget: Budget | None = None,
) -> Price:
    """Return what a firmware or a model file of `graph` will cost on `target`.

    Args:
        graph: int8, as an export writes it; `quantizer.sketch` makes one without an export.
        target: The device.
        optimize: What a microcontroller's kernels are chosen by.
        threads: Of an application processor's runtime.
        budget: Kernels give way where it asks for less RAM or flash, as they do in a build.

    Raises:
        ModelError: An operator has no kernel.
    """
    if target.kind == "microcontroller":
        return _firmware(graph, target, optimize, budget or Budget())
    return _application(graph, target, optimize, threads)


def _firmware(graph: Graph, target: Target, optimize: Optimize, budget: Budget) -> Price:
    clean, _ = run_passes(graph)
    found = _lowered_price(clean, target, optimize, budget)
    limit = budget.flash_bytes
    if limit is not None and optimize != "flash" and found.figures["flash_bytes"].high > limit:
        return _lowered_price(clean, target, "flash", budget)
    return found


def _lowered_price(graph: Graph, target: Target, optimize: Optimize, budget: Budget) -> Price:
    ram = budget.ram_bytes
    limit = None if ram is None else max(0, ram - STACK_BYTES)
    lowered = lower(
        graph, target.cpu.isa, optimize=optimize, ram_limit_bytes=limit, arena_seconds=0.0,
        flash=memory_system(target),
    )  # fmt: skip
    found = firmware_price(lowered, target.cpu.core)
    return Price(
        optimize=optimize,
        figures=_firmware_figures(found, lowered, target) | {
            "macs": exact(graph_macs(graph), "MAC", how="modelled")
        },
        bounds={
            "flash_bytes": float(_weights(graph)),
            "ram_bytes": float(lowered.arena.lower_bound + lowered.state_bytes),
        },
    )  # fmt: skip


def _weights(graph: Graph) -> int:
    """Return the bytes of the constants that operators multiply with; no form of them is less."""
    kinds = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
    used = {i for op in graph.ops if op.kind in kinds for i in op.inputs if i >= 0}
    sizes = [graph.tensors[i].n_bytes for i in used if graph.tensors[i].data is not None]
    return int(np.sum(sizes, dtype=np.int64)) if sizes else 0


def _firmware_figures(found: FirmwarePrice, lowered: Lowered, target: Target) -> dict[str, Figure]:
    waiting = lowered_waiting(lowered, found.op_cycles, memory_system(target))
    measured = "" if found.core == target.cpu.core else f"; as measured on {found.core}"
    figures = {
        "flash_bytes": _figure(
            found.flash_bytes, "B", found.flash_error,
            f"code {found.code_bytes} B, constants {found.constant_bytes} B{measured}",
        ),
        "ram_bytes": _figure(
            found.ram_bytes, "B", found.ram_error,
            f"variables {found.ram_bytes - found.stack_bytes} B, stack {found.stack_bytes} B",
        ),
        "arena_bytes": exact(lowered.arena.n_bytes, "B", how="modelled", note="part of RAM"),
        "stack_bytes": _figure(found.stack_bytes, "B", 0.3, "part of RAM"),
    }  # fmt: skip
    share = waiting / (found.cycles + waiting) if waiting else 0.0
    return figures | time_figures(
        found.cycles + waiting, target, engine="c", waiting_share=share,
        error=WAITING_ERROR * share,
        note=f"to {100 * found.cycles_error:.0f} % of what the emulator counts{measured}",
    )  # fmt: skip


def _figure(value: float, unit: str, error: float, note: str) -> Figure:
    return Figure(
        value=value, unit=unit, how="modelled", low=value * (1 - error), high=value * (1 + error),
        validated=False, note=note,
    )  # fmt: skip


def _application(graph: Graph, target: Target, optimize: Optimize, threads: int) -> Price:
    constants = sum(t.n_bytes for t in graph.tensors if t.data is not None)
    n_scales = sum(t.quantization.scales.size for t in graph.tensors if t.quantization is not None)
    file = constants + FILE_PER_TENSOR * len(graph.tensors) + FILE_PER_SCALE * n_scales + FILE_FIXED
    live = _live(graph)
    heap = (
        HEAP_PER_CONSTANT_BYTE * constants + HEAP_PER_LIVE_BYTE * live
        + HEAP_PER_OP * len(graph.ops) + HEAP_FIXED
    )  # fmt: skip
    figures = {
        "flash_bytes": _figure(round(file), "B", FILE_ERROR, "the model file"),
        "ram_bytes": _figure(
            round(heap + file + RUNTIME_BYTES), "B", RUNTIME_ERROR,
            f"heap {heap:.0f} B, model file {file:.0f} B, runtime's libraries {RUNTIME_BYTES} B, "
            "as measured on an x86_64 host",
        ),
        "macs": exact(graph_macs(graph), "MAC", how="modelled"),
    }  # fmt: skip
    if target.kind == "application-processor":
        runtime = next((RUNTIMES[r.name] for r in target.runtimes if r.name in RUNTIMES), "litert")
        found = latency(graph, target, runtime=runtime, threads=threads)
        figures["latency_ms"] = Figure(
            value=found.total_ms, unit="ms", how="modelled", low=found.low_ms, high=found.high_ms,
            validated=found.validated, note=f"{threads} thread(s); {found.basis}",
        )  # fmt: skip
    return Price(
        optimize=optimize, figures=figures,
        bounds={"flash_bytes": float(constants), "ram_bytes": float(constants + live)},
    )  # fmt: skip


def _live(graph: Graph) -> int:
    """Return the most bytes that an operator reads and writes."""
    return max(
        (
            sum(
                graph.tensors[i].n_bytes
                for i in {*op.inputs, *op.outputs}
                if i >= 0 and graph.tensors[i].data is None
            )
            for op in graph.ops
        ),
        default=0,
    )
