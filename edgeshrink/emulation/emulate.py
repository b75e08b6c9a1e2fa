"""Profile one model file on one target: bytes measured, time modelled with its band.

Nothing is run for it unless the target is this host, or RAM is asked to be measured: everything
else is in the graph.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from edgeshrink.budget import Budget
from edgeshrink.costs.application import Latency, latency
from edgeshrink.costs.energy import Duty, energy_figures
from edgeshrink.costs.runtime_memory import runtime_memory
from edgeshrink.costs.work import graph_work
from edgeshrink.emulation.advice import advise
from edgeshrink.emulation.pricing import application_pricing
from edgeshrink.errors import ConfigError
from edgeshrink.graph import Graph
from edgeshrink.graph_reader import read_graph
from edgeshrink.profile import Figure, OpCost, Profile, exact, overruns
from edgeshrink.runtimes import ModelRunner, open_model, read_pte
from edgeshrink.target import Target

# The engine's name on the command line -> the runtime that stands for it, and the file it reads.
ENGINES: Final = {"tflite": ("litert", "tflite"), "executorch": ("executorch", "pte")}
# The engine's name on the command line -> what a target's [[runtimes]] call it.
RUNTIMES_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "tflite": ("litert", "tflite-runtime"),
    "executorch": ("executorch",),
    "c": ("c",),
    "tflm": ("tflm",),
}

QEMU: Final = "qemu"  # counts instructions and has no time: only where it is asked for by name

# Resident pages repeat to within this much from run to run.
RESIDENT_SHARE: Final = 0.03
RESIDENT_BYTES: Final = 300 * 1024
# How long the host is measured: the model warms up, then runs until the time is over.
WARM_UPS: Final = 10
MEASURE_MS: Final = 2000.0
LEAST_RUNS, MOST_RUNS = 15, 300


def engines_of(target: Target) -> tuple[str, ...]:
    """Return the engines that can be asked for on `target`, the default one first."""
    names = {runtime.name for runtime in target.runtimes}
    return tuple(engine for engine, runtimes in RUNTIMES_OF.items() if names.intersection(runtimes))


def check_engine(engine: str, target: Target) -> None:
    """Raise ConfigError unless `engine` runs on `target`; says which ones there are."""
    there = engines_of(target)
    if target.kind == "application-processor":
        there = (*there, QEMU)
    if engine in there:
        return
    known = engine in (*RUNTIMES_OF, QEMU)
    what = f"does not run on {target.name}" if known else "is not known"
    raise ConfigError(f"--engine {engine}", what, f"{target.name} has {', '.join(there) or 'none'}")


def emulate(
    model: Path,
    target: Target,
    *,
    engine: str = "tflite",
    graph: Graph | None = None,
    threads: int = 1,
    budget: Budget | None = None,
    name: str | None = None,
    measure_ram: bool = True,
    duty: Duty | None = None,
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
        measure_ram: Load the file in its runtime on this host, which takes about a second; else
            RAM is modelled from the file.
        duty: Supply, period and battery for the figures of energy.

    Raises:
        ConfigError: no such engine, more threads than cores, or none that runs on this target.
        ModelError: the file is damaged or can't be run.
        ToolchainError: the runtime is not installed, and something must be measured.
    """
    if engine not in ENGINES:
        raise ConfigError(f"engine {engine!r}", "is not known", f"choose from {', '.join(ENGINES)}")
    check_threads(threads, target)
    runtime, kind = ENGINES[engine]
    shown = name or str(model)
    data = _read(model)
    if kind == "tflite":
        graph = read_graph(data, name=shown)
    pte = read_pte(data, name=shown) if kind == "pte" else None
    figures: dict[str, Figure] = {}
    notes: list[str] = []
    modelled: Latency | None = None
    works = () if graph is None else graph_work(graph)
    if graph is not None:
        figures["macs"] = exact(sum(work.macs for work in works), "MAC")
    if target.kind == "microcontroller":
        figures["model_bytes"] = exact(len(data), "B")
        notes.append(
            f"{target.name} is a microcontroller: flash, RAM and latency depend on the compiled "
            "firmware, not on the .tflite"
        )
    else:
        figures = {"flash_bytes": exact(len(data), "B", note="the model file; the runtime is the "
                                        "system's")} | figures  # fmt: skip
        if target.kind == "host" or measure_ram:
            with _runner(data, runtime, threads, shown, target) as runner:
                figures |= _memory(runner)
                if target.kind == "host":
                    figures["latency_ms"] = measured_latency(runner, threads)
        else:
            ram = runtime_memory(runtime, len(data), graph=graph, pte=pte)
            figures["ram_bytes"] = ram
    if graph is None:
        notes.append("the operators of a .pte alone are not known: no MACs and no latency")
    elif target.kind == "application-processor":
        modelled = latency(graph, target, runtime=runtime, threads=threads)
        if modelled.unknown_ops:
            kinds = sorted({graph.ops[index].kind for index in modelled.unknown_ops})
            notes.append(
                f"no published latency tells what {', '.join(kinds)} costs: priced as the nearest "
                "class, and the band is widened"
            )
        figures["latency_ms"] = Figure(
            value=modelled.total_ms,
            unit="ms",
            how="modelled",
            low=modelled.low_ms,
            high=modelled.high_ms,
            validated=modelled.validated,
            note=f"{threads} thread(s); {modelled.basis}",
        )
    ops: tuple[OpCost, ...] = ()
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
        ops = _op_costs(graph, live, modelled)
    profile = Profile(
        target=target.name,
        engine=engine,
        model_path=shown,
        model_sha256=hashlib.sha256(data).hexdigest(),
        figures=figures,
        ops=ops,
        overruns=overruns(figures, budget or target.budget),
        notes=tuple(notes),
        threads=threads,
        roofline=None if modelled is None else modelled.roofline,
    )
    if graph is not None and modelled is not None:
        pricing = application_pricing(target, runtime=runtime, threads=threads)
        profile = replace(profile, advice=advise(graph, profile, pricing))
    return with_energy(profile, target, duty or Duty(), threads=threads)


def with_energy(profile: Profile, target: Target, duty: Duty, *, threads: int = 1) -> Profile:
    """Return `profile` with what can be said of energy, from its latency.

    Raises:
        ConfigError: no such supply, or an inference takes longer than the period.
    """
    found, notes = energy_figures(profile.figures, target, duty, threads=threads)
    told = tuple(note for note in notes if note not in profile.notes)
    return replace(
        profile, figures={**profile.figures, **found}, notes=(*profile.notes, *told)
    )  # fmt: skip


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


def _op_costs(graph: Graph, live: tuple[int, ...], modelled: Latency | None) -> tuple[OpCost, ...]:
    """Return a row for every operator; the parts of its time where it was modelled."""
    rows = []
    for position, (op, work) in enumerate(zip(graph.ops, graph_work(graph), strict=True)):
        moved = work.input_bytes + work.output_bytes + work.weight_bytes * work.steps
        row = OpCost(
            index=op.index,
            kind=op.kind,
            name=_name(graph, op.outputs),
            macs=work.macs,
            flash_bytes=_constant_bytes(graph, op.inputs),
            live_bytes=live[position],
            macs_per_byte=round(work.macs / moved, 3) if moved else None,
        )
        if modelled is not None:
            parts = modelled.per_op[position]
            row = replace(
                row,
                latency_ms=modelled.per_op_ms[position],
                compute_ms=parts.compute_ms,
                memory_ms=parts.memory_ms,
                overhead_ms=parts.overhead_ms,
                bound=parts.bound,
                is_unknown=True if position in modelled.unknown_ops else None,
            )
        rows.append(row)
    return tuple(rows)


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


@contextmanager
def _runner(
    data: bytes, runtime: str, threads: int, shown: str, target: Target
) -> Iterator[ModelRunner]:
    """Yield the runner of a model; for the host, on cores of its own."""
    with open_model(data, runtime, threads=threads, name=shown) as runner:
        if target.kind == "host":
            pin(runner.pid, threads)
        yield runner


def pin(pid: int, threads: int) -> tuple[int, ...]:
    """Keep a process with all its threads on the first cores that are one each; return them."""
    allowed = sorted(os.sched_getaffinity(0))
    seen, chosen = set(), []
    for cpu in allowed:
        core = _siblings(cpu)
        if core not in seen:
            seen.add(core)
            chosen.append(cpu)
    chosen += [cpu for cpu in allowed if cpu not in chosen]  # hyper-threads where cores run out
    cores = chosen[:threads]
    for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
        os.sched_setaffinity(int(task.name), cores)
    return tuple(cores)


def _siblings(cpu: int) -> str:
    """Return what names the physical core of a logical one."""
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return path.read_text("ascii").strip()
    except OSError:
        return str(cpu)


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


def measured_latency(runner: ModelRunner, threads: int) -> Figure:
    """Return the median time of an inference on this host, once it has warmed up."""
    warm = sorted(1e3 * seconds for seconds in runner.latency(WARM_UPS))
    usual_ms = max(1e-3, warm[len(warm) // 2])
    runs = min(MOST_RUNS, max(LEAST_RUNS, round(MEASURE_MS / usual_ms)))
    times = sorted(1e3 * seconds for seconds in runner.latency(runs))
    quarter, half = times[runs // 4], times[runs // 2]
    return Figure(
        value=half,
        unit="ms",
        how="measured",
        low=times[runs // 20],
        high=times[-1 - runs // 20],
        note=f"median of {runs} runs on this host, {threads} thread(s) on cores of their own; half "
        f"of them took {quarter:.3g} to {times[-1 - runs // 4]:.3g} ms, nine in ten lie in the "
        "band",
    )
