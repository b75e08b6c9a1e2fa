"""Profile firmware on an emulated microcontroller: bytes measured, instructions counted exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeshrink.budget import Budget
from edgeshrink.costs.energy import Duty
from edgeshrink.costs.memory_system import memory_system, waits_per_op
from edgeshrink.costs.microcontroller import (
    block_cycles,
    cycle_band,
    time_figures,
    typical_waiting,
)
from edgeshrink.costs.work import graph_macs, op_work
from edgeshrink.emulation.advice import advise
from edgeshrink.emulation.emulate import with_energy
from edgeshrink.emulation.pricing import firmware_pricing
from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.graph import Graph
from edgeshrink.lowering import Optimize
from edgeshrink.profile import Figure, OpCost, Profile, exact, overruns
from edgeshrink.runtimes.elf import Elf, FunctionMap, image_size, read_elf
from edgeshrink.runtimes.firmware import (
    CORE_MODELS,
    FirmwareRun,
    has_harness,
    open_firmware,
    run_firmware,
)
from edgeshrink.runtimes.flash_caches import FlashCaches
from edgeshrink.target import Target

BETWEEN: Final = "between operators"
WAITING: Final = "waiting for flash"
# Larger programs are not run through simulated caches, which takes two to ten times as long.
SIMULATED_INSTRUCTIONS: Final = 60_000_000
SIMULATED_MACS: Final = 15_000_000
NO_SYMBOL: Final = "(no symbol)"


def emulate_firmware(
    elf: Path,
    target: Target,
    *,
    graph: Graph | None = None,
    inputs: Sequence[npt.NDArray[Any]] | None = None,
    budget: Budget | None = None,
    timeout_s: float = 60.0,
    name: str | None = None,
) -> Profile:
    """Return the profile of a firmware.

    Firmware with our harness is profiled over one inference, any other ELF from its entry to its
    end. Rows are operators where the code tells them apart, else functions.

    Args:
        elf: The program.
        target: The device, a microcontroller.
        graph: What the firmware was generated from: `<name>_op_<k>` computes `graph.ops[k]`.
        inputs: Raw bytes of each input of the inference, as one array (1, bytes) of uint8 each;
            left out, zeros. Costs do not depend on the values, but for saturating branches.
        budget: Limits to check; the target's where left out.
        timeout_s: How long it may run on this host.
        name: What to call the file in the profile and in errors.

    Raises:
        ConfigError: The target is no microcontroller, or its core can't be emulated.
        ModelError: The ELF is damaged, for another core, does not end in time, or faults.
        ToolchainError: The emulator is not installed.
    """
    core = target.cpu.core
    if target.kind != "microcontroller" or core not in CORE_MODELS:
        known = ", ".join(CORE_MODELS)
        raise ConfigError(
            f"target {target.name}", f"has a {core}, which can't be emulated", f"cores: {known}"
        )
    program = read_elf(elf)
    notes: list[str] = []
    run = _run(program, target, graph, inputs, timeout_s)
    if run.exit_status:
        notes.append(f"the program ended with status {run.exit_status}")
    per_block = block_cycles(run.blocks, core)
    waiting = _waiting(run, per_block, target)
    figures = firmware_figures(run, sum(per_block), waiting, target)
    if run.stack_bytes is None:
        notes.append("it is not known where the stack is: RAM is without it; name its upper end "
                     "__stack_top")  # fmt: skip
    if run.printed.strip():
        notes.append(f"printed: {run.printed.strip()[-200:]}")
    profile = Profile(
        target=target.name,
        engine="c",
        model_path=name or str(elf),
        model_sha256=program.sha256,
        figures=figures,
        ops=_rows(run, per_block, waiting, target, graph),
        overruns=overruns(figures, budget or target.budget),
        notes=tuple(notes),
    )
    return with_energy(profile, target, Duty())


def advised_firmware(profile: Profile, graph: Graph, target: Target, optimize: Optimize) -> Profile:
    """Return `profile` with what would make the firmware faster.

    Args:
        profile: Of a firmware that was generated from `graph`.
        graph: After the passes: the operators of `profile.ops`.
        target: A microcontroller.
        optimize: What its kernels were chosen by.
    """
    return replace(profile, advice=advise(graph, profile, firmware_pricing(target, optimize)))


def _run(
    program: Elf,
    target: Target,
    graph: Graph | None,
    inputs: Sequence[npt.NDArray[Any]] | None,
    timeout_s: float,
) -> FirmwareRun:
    """Run one inference, or all of a program without our harness; behind caches if it is short."""
    system = memory_system(target)
    caches = system.caches if system is not None else None
    simulated_s = 10 * timeout_s

    def once(caches: FlashCaches | None, timeout_s: float) -> FirmwareRun:
        if has_harness(program):
            return _one_inference(program, target.cpu.core, inputs, timeout_s, caches)
        return run_firmware(
            program, target.cpu.core, timeout_s=timeout_s, ram_bytes=target.memory.ram_bytes,
            caches=caches,
        )  # fmt: skip

    if graph is not None and caches is not None and graph_macs(graph) <= SIMULATED_MACS:
        return once(caches, simulated_s)
    run = once(None, timeout_s)
    if caches is None or run.instructions > SIMULATED_INSTRUCTIONS:
        return run
    return once(caches, simulated_s)


def _one_inference(
    program: Elf,
    core: str,
    inputs: Sequence[npt.NDArray[Any]] | None,
    timeout_s: float,
    caches: FlashCaches | None,
) -> FirmwareRun:
    with open_firmware(program, core, timeout_s=timeout_s, caches=caches) as runner:
        if inputs is None:
            inputs = [np.zeros(spec.shape, spec.dtype) for spec in runner.inputs]
        run, _ = runner.count(*inputs)
    return run


def _waiting(
    run: FirmwareRun, per_block: Sequence[float], target: Target
) -> dict[int | None, float]:
    """Return what every operator waited for the flash: as simulated, else as is typical."""
    cycles: dict[int | None, float] = {}
    for block, took in zip(run.blocks, per_block, strict=True):
        cycles[block.op] = cycles.get(block.op, 0.0) + took
    if run.waits:
        return waits_per_op(memory_system(target), run.waits, cycles)
    extra = typical_waiting(target).factor - 1
    return {op: extra * took for op, took in cycles.items()} if extra else {}


def firmware_figures(
    run: FirmwareRun, cycles: float, waiting: Mapping[int | None, float], target: Target
) -> dict[str, Figure]:
    """Return the figures of a run: of its counts, its cycles, and the image it ran from.

    Args:
        run: What was counted.
        cycles: Of the code, where memory never waits.
        waiting: Cycles that each operator waited for the flash.
        target: The board.
    """
    size, stack = image_size(run.elf), run.stack_bytes
    waited = sum(waiting.values())
    is_typical = bool(waiting) and not run.waits
    figures = {
        "instructions": exact(run.instructions, "instructions", how="emulated"),
        **time_figures(
            cycles + waited, target, engine="c",
            waiting_share=waited / (cycles + waited) if waited else 0.0,
            error=typical_waiting(target).error if is_typical else 0.0,
            note="as other models wait, for this one is long" if is_typical else "",
        ),
        **({"core_cycles": _core_cycles(cycles, target)} if waiting else {}),
        "flash_bytes": exact(
            size.flash,
            "B",
            note=f"code {size.code} B, constants {size.constants} B, initial values {size.data} B",
        ),
        "ram_bytes": exact(
            size.static_ram + (stack or 0),
            "B",
            how="emulated",
            note=f"variables {size.static_ram} B" + (f", stack {stack} B" if stack else ""),
        ),
    }  # fmt: skip
    if stack is not None:
        figures["stack_bytes"] = exact(
            stack, "B", how="emulated", note="the deepest byte written since reset"
        )
    return figures


def _core_cycles(cycles: float, target: Target) -> Figure:
    """Return what the code takes where memory never waits, with the band of the same tables."""
    band = cycle_band(target, engine="c")
    return Figure(
        value=cycles, unit="cycles", how="modelled", low=cycles * band.low,
        high=cycles * band.high, validated=band.is_validated,
        note="of the cycles, without those that wait for flash",
    )  # fmt: skip


def _rows(
    run: FirmwareRun,
    per_block: Sequence[float],
    waiting: Mapping[int | None, float],
    target: Target,
    graph: Graph | None,
) -> tuple[OpCost, ...]:
    """Return a row for every operator in order, or for every function, costliest first.

    What operators wait is in their cycles; of functions it is not known apart, so it has a row.
    """
    has_ops = any(block.op is not None for block in run.blocks)
    functions = FunctionMap(run.elf.symbols)
    totals: dict[int | str, tuple[int, float]] = {}
    for block, cycles in zip(run.blocks, per_block, strict=True):
        key: int | str
        if has_ops:
            key = BETWEEN if block.op is None else block.op
        else:
            key = functions.name(block.address) or NO_SYMBOL
        instructions, sum_cycles = totals.get(key, (0, 0.0))
        totals[key] = (
            instructions + block.entries * block.n_instructions,
            sum_cycles + cycles,
        )
    for op, waited in waiting.items():
        key = (BETWEEN if op is None else op) if has_ops else WAITING
        instructions, sum_cycles = totals.get(key, (0, 0.0))
        if waited:
            totals[key] = instructions, sum_cycles + waited
    if graph is not None and has_ops:
        unknown = [key for key in totals if isinstance(key, int) and key >= len(graph.ops)]
        if unknown:
            what = f"runs operator {max(unknown)}, the graph has {len(graph.ops)}"
            raise ModelError(run.elf.name, what, "give the graph it was generated from")
    return tuple(
        _row(index, key, counts, target, graph)
        for index, (key, counts) in enumerate(_in_order(totals))
    )


def _in_order(
    totals: Mapping[int | str, tuple[int, float]],
) -> list[tuple[int | str, tuple[int, float]]]:
    """Sort operators by their index, what is no operator behind them by its cycles."""

    def rank(item: tuple[int | str, tuple[int, float]]) -> tuple[bool, float]:
        key, (_, cycles) = item
        return (False, key) if isinstance(key, int) else (True, -cycles)

    return sorted(totals.items(), key=rank)


def _row(
    position: int,
    key: int | str,
    counts: tuple[int, float],
    target: Target,
    graph: Graph | None,
) -> OpCost:
    instructions, cycles = counts
    kind, name, macs, index = "function", str(key), 0, position
    if isinstance(key, int):
        kind, name, index = "op", "", key
        if graph is not None:
            op = graph.ops[key]
            kind, macs = op.kind, op_work(graph, op).macs
            name = next((graph.tensors[i].name for i in op.outputs if graph.tensors[i].name), "")
    elif key in (BETWEEN, WAITING):
        kind, name = str(key), ""
    clock_mhz = target.cpu.clock_mhz
    return OpCost(
        index=index,
        kind=kind,
        name=name,
        macs=macs,
        latency_ms=None if clock_mhz is None else cycles / (1e3 * clock_mhz),
        cycles=cycles,
        instructions=instructions,
    )
