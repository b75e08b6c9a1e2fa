"""Cycles of one inference in TensorFlow Lite Micro: its kernels, its loop, the flash they wait for.

Arm cores run the kernels of CMSIS-NN, Espressif's those of ESP-NN. What a kernel costs is linear in
a few counts of its layer (`kernels.py`). The coefficients of CMSIS-NN come from the instructions of
emulated kernels and the timing table of the core, for memory that never waits; what the caches in
front of a board's flash do not hold is linear in such counts too. Those of ESP-NN come from
published kernels on an ESP32-S3, memory included. All are in `data/interpreter_kernels.json`, which
`benchmarks/microcontroller_latency.py` writes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from edgeshrink.costs.data_files import read_data
from edgeshrink.costs.kernels import ELSE, KernelShape, group_of, reads_of, shape_of, terms_of
from edgeshrink.costs.memory_system import MemorySystem, constants_bytes, memory_system, waits_for
from edgeshrink.errors import ConfigError
from edgeshrink.graph import Graph
from edgeshrink.target import Target

DATA: Final = Path(__file__).parent / "data" / "interpreter_kernels.json"
ENGINE: Final = "tflm"
# Cores without kernels of their own -> whose are taken: those with the nearest instruction set.
NEAREST: Final = {
    "cortex-m0": "cortex-m0+", "cortex-m3": "cortex-m0+", "cortex-m4": "cortex-m4f",
    "xtensa-lx7": "esp-nn", "xtensa-lx6": "esp-nn plain", "rv32imc": "esp-nn plain",
}  # fmt: skip
# Half the width of the band that is added for kernels of another core.
OTHER_CORE: Final = 0.4
UNKNOWN_OP: Final = 0.5  # for the share of the time that operators without a kernel here take
INT16: Final = 1.5  # cycles of 16-bit activations over those of 8-bit ones; no kernel was measured


@dataclass(frozen=True, kw_only=True)
class InterpreterCost:
    """Cycles of one inference on a board, interpreter included."""

    op_cycles: tuple[float, ...]  # of each operator, waiting included
    waiting_cycles: tuple[float, ...]  # of them, for the flash
    loop_cycles: float  # of the interpreter, between operators
    unknown_ops: tuple[int, ...]  # operators that were priced as the most alike
    error: float  # half the width of the band that the prices alone ask for
    kernels: str  # whose they are

    @property
    def total_cycles(self) -> float:
        """Cycles of the whole call."""
        return sum(self.op_cycles) + self.loop_cycles

    @property
    def waiting_share(self) -> float:
        """The part of the cycles in which the core waits for its flash, in [0, 1]."""
        total = self.total_cycles
        return sum(self.waiting_cycles) / total if total else 0.0


def interpreter_cost(graph: Graph, target: Target) -> InterpreterCost:
    """Return what one inference of `graph` in TFLM costs on `target`.

    Raises:
        ConfigError: The target does not run TFLM, or there are no kernels for its core.
    """
    if target.kind != "microcontroller":
        what = "is for microcontrollers"
        raise ConfigError(f"--engine {ENGINE}", what, "use engine tflite or executorch")
    name, rates = _rates(target.cpu.core)
    op_cycles, waiting, unknown = [], [], []
    errors = 0.0
    for op in graph.ops:
        shape = shape_of(graph, op)
        factor, is_int8 = _type_factor(graph, op.inputs)
        layer = _layer(shape, rates, target, factor)
        overhead = rates["interpreter"].get(op.kind, rates["interpreter"]["else"])
        op_cycles.append(layer.cycles + layer.waiting + overhead)
        waiting.append(layer.waiting)
        is_known = layer.is_known and shape.kind == op.kind and is_int8
        errors += (layer.error if is_known else UNKNOWN_OP) * op_cycles[-1]
        if not is_known:
            unknown.append(op.index)
    loop = rates["interpreter"]["per_call"] + len(graph.ops) * rates["interpreter"]["per_op"]
    total = sum(op_cycles) or 1.0
    is_own = name == target.cpu.core or (name == "esp-nn" and target.cpu.core == "xtensa-lx7")
    return InterpreterCost(
        op_cycles=tuple(op_cycles),
        waiting_cycles=tuple(waiting),
        loop_cycles=float(loop),
        unknown_ops=tuple(unknown),
        error=errors / total + (0.0 if is_own else OTHER_CORE),
        kernels=str(rates["about"]),
    )


def cost_of_shapes(
    shapes: Sequence[KernelShape], target: Target
) -> tuple[tuple[float, float], ...]:
    """Return, for layers without a graph, the cycles of int8 kernels and those spent waiting."""
    _, rates = _rates(target.cpu.core)
    layers = [_layer(shape, rates, target, 1.0) for shape in shapes]
    return tuple((layer.cycles, layer.waiting) for layer in layers)


def interpreter_ms(graph: Graph, target: Target) -> float:
    """Return the milliseconds of one inference of `graph` in TFLM on `target`.

    Raises:
        ConfigError: As `interpreter_cost`; or the target's clock is not known.
    """
    if target.cpu.clock_mhz is None:
        raise ConfigError(f"target {target.name}", "has no clock", "add cpu.clock_mhz")
    return interpreter_cost(graph, target).total_cycles / (1e3 * target.cpu.clock_mhz)


@dataclass(frozen=True, kw_only=True)
class _Layer:
    cycles: float  # where memory never waits
    waiting: float
    error: float
    is_known: bool


def _layer(shape: KernelShape, rates: Mapping[str, Any], target: Target, factor: float) -> _Layer:
    """Return what a kernel costs on the board of `target`; `factor` is for other types."""
    group, is_known = group_of(shape)
    if group not in rates["cycles"]:
        group, is_known = ELSE, False
    entry, terms = rates["cycles"][group], terms_of(group, shape)
    cycles = factor * _dot(entry["per"], terms)
    system = memory_system(target) if "waits" in rates else None
    waiting = 0.0
    if system is not None:
        waits = _waits(rates["waits"], system)
        if group in waits:
            waiting = _waited(waits[group], system, group, shape, terms, cycles)
    return _Layer(cycles=cycles, waiting=waiting, error=entry["error"], is_known=is_known)


def _rates(core: str) -> tuple[str, Mapping[str, Any]]:
    kernels = _data()["kernels"]
    name = core if core in kernels else NEAREST.get(core, "")
    if name not in kernels:
        known = ", ".join([*kernels, *NEAREST])
        raise ConfigError(f"core {core!r}", "has no interpreter's kernels", f"cores: {known}")
    return name, kernels[name]


def _waits(entries: Sequence[Mapping[str, Any]], system: MemorySystem) -> Mapping[str, Any]:
    """Return what kernels miss behind the caches that are the most like those of `system`."""

    def far(entry: Mapping[str, Any]) -> float:
        wanted = (system.unit_bytes, system.code_bytes, constants_bytes(system))
        found = (entry["unit_bytes"], entry["code_bytes"], entry["constants_bytes"])
        return sum(abs(math.log((a + 1) / (b + 1))) for a, b in zip(wanted, found, strict=True))

    groups: Mapping[str, Any] = min(entries, key=far)["groups"]
    return groups


def _waited(
    entry: Mapping[str, Sequence[float]],
    system: MemorySystem,
    group: str,
    shape: KernelShape,
    terms: Sequence[float],
    cycles: float,
) -> float:
    reads = reads_of(group, shape, constants_bytes(system))
    return waits_for(
        system,
        fetched=_dot(entry["fetched"], terms),
        jumps=_dot(entry["jumps"], terms),
        successors=_dot(entry["successors"], terms),
        misses=_dot(entry["misses"], reads),
        cycles=cycles,
    )


def _dot(per: Sequence[float], terms: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(per, terms, strict=True))


def _type_factor(graph: Graph, inputs: Sequence[int]) -> tuple[float, bool]:
    """Return what the types of an operator's activations do to its cycles, and whether int8."""
    dtypes = {graph.tensors[i].dtype for i in inputs if i >= 0 and graph.tensors[i].data is None}
    if not dtypes or dtypes <= {"int8", "bool", "int32"}:
        return 1.0, True
    return INT16, False


@cache
def _data() -> Mapping[str, Any]:
    return read_data(DATA, ("kernels",))
