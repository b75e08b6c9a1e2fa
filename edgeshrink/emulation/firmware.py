"""Profile firmware on an emulated microcontroller: bytes measured, instructions counted exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeshrink.budget import Budget
from edgeshrink.costs.microcontroller import block_cycles, cycle_band
from edgeshrink.costs.work import op_work
from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.graph import Graph
from edgeshrink.profile import Figure, OpCost, Profile, exact, overruns
from edgeshrink.runtimes.elf import Elf, FunctionMap, image_size, read_elf
from edgeshrink.runtimes.firmware import (
    CORE_MODELS,
    FirmwareRun,
    has_harness,
    open_firmware,
    run_firmware,
)
from edgeshrink.target import Target

BETWEEN: Final = "between operators"
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
    if has_harness(program):
        run = _one_inference(program, core, inputs, timeout_s)
    else:
        run = run_firmware(program, core, timeout_s=timeout_s, ram_bytes=target.memory.ram_bytes)
        if run.exit_status:
            notes.append(f"the program ended with status {run.exit_status}")
    per_block = block_cycles(run.blocks, core)
    figures = firmware_figures(run, sum(per_block), target)
    if run.stack_bytes is None:
        notes.append("it is not known where the stack is: RAM is without it; name its upper end "
                     "__stack_top")  # fmt: skip
    if run.printed.strip():
        notes.append(f"printed: {run.printed.strip()[-200:]}")
    return Profile(
        target=target.name,
        engine="c",
        model_path=name or str(elf),
        model_sha256=program.sha256,
        figures=figures,
        ops=_rows(run, per_block, target, graph),
        overruns=overruns(figures, budget or target.budget),
        notes=tuple(notes),
    )


def _one_inference(
    program: Elf, core: str, inputs: Sequence[npt.NDArray[Any]] | None, timeout_s: float
) -> FirmwareRun:
    with open_firmware(program, core, timeout_s=timeout_s) as runner:
        if inputs is None:
            inputs = [np.zeros(spec.shape, spec.dtype) for spec in runner.inputs]
        run, _ = runner.count(*inputs)
    return run


def firmware_figures(run: FirmwareRun, cycles: float, target: Target) -> dict[str, Figure]:
    """Return the figures of a run: of its counts, its cycles, and the image it ran from."""
    size, band = image_size(run.elf), cycle_band(target.cpu.core)
    stack = run.stack_bytes
    modelled = Figure(
        value=cycles,
        unit="cycles",
        how="modelled",
        low=cycles * band.low,
        high=cycles * band.high,
        validated=False,
        note=band.basis,
    )
    figures = {
        "instructions": exact(run.instructions, "instructions", how="emulated"),
        "cycles": modelled,
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
    }
    if stack is not None:
        figures["stack_bytes"] = exact(
            stack, "B", how="emulated", note="the deepest byte written since reset"
        )
    if target.cpu.clock_mhz is not None:
        per_ms = 1e3 * target.cpu.clock_mhz
        figures["latency_ms"] = Figure(
            value=modelled.value / per_ms,
            unit="ms",
            how="modelled",
            low=modelled.low / per_ms,
            high=modelled.high / per_ms,
            validated=False,
            note=f"cycles at {target.cpu.clock_mhz:g} MHz",
        )
    return figures


def _rows(
    run: FirmwareRun, per_block: Sequence[float], target: Target, graph: Graph | None
) -> tuple[OpCost, ...]:
    """Return a row for every operator in order, or for every function, costliest first."""
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
    elif key == BETWEEN:
        kind, name = BETWEEN, ""
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
