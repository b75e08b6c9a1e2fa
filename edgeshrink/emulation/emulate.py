"""Profile one model file on one target: bytes measured, time modelled with its band."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import Final

from edgeshrink.budget import Budget
from edgeshrink.costs.application import latency
from edgeshrink.costs.work import op_work
from edgeshrink.errors import ConfigError
from edgeshrink.graph import Graph
from edgeshrink.graph_reader import read_graph
from edgeshrink.profile import Figure, OpCost, Profile, exact, overruns
from edgeshrink.runtimes import ModelRunner, open_model
from edgeshrink.target import Target

# The engine's name on the command line -> the runtime that stands for it, and the file it reads.
ENGINES: Final = {"tflite": ("litert", "tflite"), "executorch": ("executorch", "pte")}

# Resident pages repeat to within this much from run to run.
RESIDENT_SHARE: Final = 0.03
RESIDENT_BYTES: Final = 300 * 1024
REPEATS: Final = 50


def emulate(
    model: Path,
    target: Target,
    *,
    engine: str = "tflite",
    graph: Graph | None = None,
    threads: int = 1,
    budget: Budget | None = None,
    name: str | None = None,
) -> Profile:
    """Return the profile of a model file.

    Args:
        model: A `.tflite` for engine `tflite`, a `.pte` for `executorch`.
        target: The device.
        engine: A key of `ENGINES`.
        graph: The operators of a `.pte` (the `.tflite` made from the same program); a `.tflite`
            is read for itself.
        threads: Threads of the runtime.
        budget: Limits to check; the target's where left out.
        name: What to call the file in the profile and in errors.

    Raises:
        ConfigError: no such engine, more threads than cores, or none that runs on this target.
        ModelError: the file is damaged or can't be run.
    """
    if engine not in ENGINES:
        raise ConfigError(f"engine {engine!r}", "is not known", f"choose from {', '.join(ENGINES)}")
    check_threads(threads, target)
    runtime = ENGINES[engine][0]
    shown = name or str(model)
    data = _read(model)
    if engine == "tflite":
        graph = read_graph(data, name=shown)
    figures: dict[str, Figure] = {}
    ops: tuple[OpCost, ...] = ()
    notes: list[str] = []
    figures["flash_bytes"] = exact(
        len(data), "B", note="the model file; the runtime is the system's"
    )
    if graph is not None:
        figures["macs"] = exact(sum(op_work(graph, op).macs for op in graph.ops), "MAC")
    if target.kind == "microcontroller":
        figures.pop("flash_bytes")
        figures["model_bytes"] = exact(len(data), "B")
        notes.append(
            f"{target.name} is a microcontroller: flash, RAM and latency depend on the compiled "
            "firmware, not on the .tflite"
        )
    else:
        with open_model(data, runtime, threads=threads, name=shown) as runner:
            figures |= _memory(runner)
            if target.kind == "host":
                figures["latency_ms"] = _measured_latency(runner)
    per_op: tuple[float | None, ...] = (None,) * (len(graph.ops) if graph else 0)
    if graph is None:
        notes.append("the operators of a .pte alone are not known: no MACs and no latency")
    elif target.kind == "application-processor":
        modelled = latency(graph, target, runtime=runtime, threads=threads)
        per_op = modelled.per_op_ms
        figures["latency_ms"] = Figure(
            value=modelled.total_ms,
            unit="ms",
            how="modelled",
            low=modelled.low_ms,
            high=modelled.high_ms,
            validated=modelled.validated,
            note=f"{threads} thread(s); {modelled.basis}",
        )
    if graph is not None:
        live = live_bytes(graph)
        figures["arena_bytes"] = Figure(
            value=max(live, default=0),
            unit="B",
            how="modelled",
            low=max(live, default=0),
            high=sum(t.n_bytes for t in graph.tensors if t.data is None),
            validated=False,
            note="activations alive at once; a runtime's planner may need more",
        )
        ops = tuple(
            OpCost(
                index=op.index,
                kind=op.kind,
                name=_name(graph, op.outputs),
                macs=op_work(graph, op).macs,
                latency_ms=ms,
                flash_bytes=_constant_bytes(graph, op.inputs),
                live_bytes=alive,
            )
            for op, ms, alive in zip(graph.ops, per_op, live, strict=True)
        )
    return Profile(
        target=target.name,
        engine=engine,
        model_path=shown,
        model_sha256=hashlib.sha256(data).hexdigest(),
        figures=figures,
        ops=ops,
        overruns=overruns(figures, budget or target.budget),
        notes=tuple(notes),
    )


def check_threads(threads: int, target: Target) -> None:
    """Raise ConfigError unless `target` can run that many threads at once."""
    if not 1 <= threads <= target.cpu.n_cores:
        raise ConfigError(
            "--threads", f"is {threads}", f"{target.name} has {target.cpu.n_cores} core(s)"
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise ConfigError(str(path), f"can't be read ({err.strerror})", "check the path") from err


def _name(graph: Graph, outputs: tuple[int, ...]) -> str:
    return next((graph.tensors[i].name for i in outputs if graph.tensors[i].name), "")


def _constant_bytes(graph: Graph, inputs: tuple[int, ...]) -> int:
    constants = {i for i in inputs if i >= 0 and graph.tensors[i].data is not None}
    return sum(graph.tensors[i].n_bytes for i in constants)


def live_bytes(graph: Graph) -> tuple[int, ...]:
    """Return, for every operator, the bytes of activations that must exist while it runs."""
    first: dict[int, int] = dict.fromkeys(graph.inputs, 0)
    last: dict[int, int] = dict.fromkeys(graph.outputs, len(graph.ops) - 1)
    for position, op in enumerate(graph.ops):
        for index in op.outputs:
            first.setdefault(index, position)
            last.setdefault(index, position)
        for index in op.inputs:
            if index >= 0 and graph.tensors[index].data is None and index not in graph.outputs:
                first.setdefault(index, 0)
                last[index] = position
    totals = [0] * len(graph.ops)
    for index, start in first.items():
        for position in range(start, last.get(index, start) + 1):
            totals[position] += graph.tensors[index].n_bytes
    return tuple(totals)


def _memory(runner: ModelRunner) -> dict[str, Figure]:
    """Return RAM: what the runtime holds for the model, the mapped file, and the runtime's code."""
    memory = runner.memory()
    resident = memory.model_resident_bytes + memory.runtime_bytes
    total = memory.heap_bytes + resident
    slack = round(resident * RESIDENT_SHARE) + RESIDENT_BYTES
    where = f"{platform.machine()} host"
    return {
        "ram_bytes": Figure(
            value=total,
            unit="B",
            how="measured",
            low=max(0, total - slack),
            high=total + slack,
            note=f"on this {where}: arena, packed weights and structures "
            f"{memory.heap_bytes} B, model file {memory.model_resident_bytes} B, runtime's "
            f"libraries {memory.runtime_bytes} B",
        ),
        "heap_bytes": exact(memory.heap_bytes, "B", note=memory.note),
    }


def _measured_latency(runner: ModelRunner) -> Figure:
    times = sorted(1e3 * seconds for seconds in runner.latency(REPEATS))
    return Figure(
        value=times[len(times) // 2],
        unit="ms",
        how="measured",
        low=times[len(times) // 20],
        high=times[-1 - len(times) // 20],
        note=f"median of {REPEATS} runs on this host; the band holds nine in ten",
    )
