"""A `.tflite` as firmware: passes, kernels, C, an ELF, and the proof that it computes the same."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeshrink.artifact import IoSpec
from edgeshrink.budget import Budget
from edgeshrink.codegen import Generated, Golden, generate
from edgeshrink.costs.firmware import STACK_BYTES
from edgeshrink.costs.memory_system import memory_system
from edgeshrink.emulation import emulate_firmware
from edgeshrink.errors import BudgetError, ConfigError, ModelError
from edgeshrink.graph import Graph, layer_name
from edgeshrink.graph_reader import read_graph, read_model_bytes
from edgeshrink.lowering import Lowered, Optimize, Step, lower
from edgeshrink.lowering.fixed_point import place_of
from edgeshrink.passes import PASSES, PassReport, run_passes
from edgeshrink.profile import Profile, exact
from edgeshrink.runtimes import open_model
from edgeshrink.runtimes.elf import image_size, read_elf
from edgeshrink.runtimes.firmware import FirmwareRunner, harness_source, open_firmware
from edgeshrink.staging import staging
from edgeshrink.strict_toml import nearest
from edgeshrink.target import Target
from edgeshrink.toolchain import CORES, compile_elf

N_GOLDEN: Final = 8
MODEL: Final = "model.tflite"
SUMMARY: Final = "compiled.json"
ELF: Final = "model.elf"

COMPILER_FLAGS: Final[dict[Optimize, str]] = {"latency": "-O3", "ram": "-O3", "flash": "-Os"}

Progress = Callable[[float, str], None]


@dataclass(frozen=True, kw_only=True)
class Firmware:
    """A model compiled for a microcontroller.

    Attributes:
        before: The graph as the file has it.
        reports: What each pass did.
        lowered: Kernels and memory.
        generated: The C, as written.
        golden: Samples with TensorFlow Lite Micro's outputs, which the firmware gave too.
        elf: The linked program with the harness that the emulator drives; None for cores that
            are not compiled for here.
    """

    name: str
    before: Graph
    reports: tuple[PassReport, ...]
    lowered: Lowered
    generated: Generated
    golden: Golden
    elf: Path | None


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What the command `compile` leaves in its folder, and what it costs."""

    folder: Path
    firmware: Firmware
    profile: Profile | None  # None: the core is not emulated


def parse_passes(text: str) -> tuple[str, ...] | None:
    """Return the passes that `all`, `none` or `a,b,c` says; None stands for all."""
    if text == "all":
        return None
    names = () if text == "none" else tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in PASSES:
            raise ConfigError("--passes", f"has no pass {name!r}", nearest(name, PASSES))
    return names


def compile_model(
    model: Path,
    target: Target,
    out: Path,
    *,
    name: str,
    optimize: Optimize = "latency",
    passes: Sequence[str] | None = None,
    budget: Budget | None = None,
    progress: Progress = lambda share, detail: None,
) -> Compiled:
    """Compile the `.tflite` at `model` into the folder `out`, which appears in one step.

    Raises:
        BudgetError: the firmware does not fit; names the operator at the peak and what would help.
        ConfigError, ModelError, ToolchainError: as `compile_firmware`.
    """
    data = read_model_bytes(model)
    with staging(out, marker=SUMMARY) as folder:
        firmware = compile_firmware(
            data,
            target,
            folder,
            name=name,
            shown=str(model),
            optimize=optimize,
            passes=passes,
            budget=budget,
            progress=progress,
        )
        profile = None
        if firmware.elf is not None:
            profile = profile_of(firmware, target, budget=budget, shown=str(model))
            check_budget(firmware, profile)
        summary = {
            "name": firmware.name,
            "model_sha256": hashlib.sha256(data).hexdigest(),
            "target": target.name,
            "optimize": optimize,
            "profile": None if profile is None else profile.to_json(),
        }
        (folder / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n", "utf-8")
    elf = None if firmware.elf is None else out / firmware.elf.name
    return Compiled(folder=out, firmware=replace(firmware, elf=elf), profile=profile)


def profile_model(
    model: Path,
    target: Target,
    *,
    optimize: Optimize = "latency",
    passes: Sequence[str] | None = None,
    budget: Budget | None = None,
) -> tuple[Firmware, Profile]:
    """Compile a `.tflite` aside and return what it costs on `target`; a budget is not enforced."""
    data = read_model_bytes(model)
    with tempfile.TemporaryDirectory() as folder:
        firmware = compile_firmware(
            data, target, Path(folder), name=model.stem, shown=str(model), optimize=optimize,
            passes=passes, budget=budget,
        )  # fmt: skip
        return firmware, profile_of(firmware, target, budget=budget, shown=str(model))


def profile_of(
    firmware: Firmware, target: Target, *, budget: Budget | None = None, shown: str = MODEL
) -> Profile:
    """Return the profile of one inference of a firmware on the emulated core."""
    if firmware.elf is None:
        raise ConfigError(
            f"target {target.name}",
            f"has a {target.cpu.core}, which is neither compiled for nor emulated here",
            f"emulated cores: {', '.join(CORES)}",
        )
    inputs = [
        np.ascontiguousarray(a[:1]).reshape(-1).view(np.uint8).reshape(1, -1)
        for a in firmware.golden.inputs
    ]
    profile = emulate_firmware(
        firmware.elf,
        target,
        graph=firmware.lowered.graph,
        inputs=inputs,
        budget=budget,
        name=shown,
    )
    lowered = firmware.lowered
    bound = lowered.arena.lower_bound
    verdict = "optimal" if lowered.arena.optimal else f"lower bound {bound} B"
    figures = {
        **profile.figures,
        "macs": exact(sum(op.macs for op in profile.ops), "MAC"),
        "arena_bytes": exact(lowered.arena.n_bytes, "B", note=f"part of RAM; {verdict}"),
        "weight_bytes": exact(
            firmware.generated.weight_bytes,
            "B",
            note=f"part of flash, as are {firmware.generated.table_bytes} B of multipliers, "
            "shifts, tables and shapes",
        ),
    }
    if lowered.state_bytes:
        figures["state_bytes"] = exact(
            lowered.state_bytes, "B", note="part of RAM, kept between inferences"
        )
    return replace(profile, figures=figures)


def check_budget(firmware: Firmware, profile: Profile) -> None:
    """Raise BudgetError for the first limit that is not met, with what would help."""
    if not profile.overruns:
        return
    first = profile.overruns[0]
    remedies = {
        "ram": _ram_remedy(firmware),
        "flash": "prune or factorize the largest layers"
        + ("" if firmware.lowered.optimize == "flash" else ", or try --optimize flash"),
        "latency": f"{_slowest(profile)}; prune it, or choose a faster device",
    }
    raise BudgetError(
        first.what,
        need=first.need,
        limit=first.limit,
        unit=first.unit,
        remedy=remedies.get(first.what, ""),
    )


def _slowest(profile: Profile) -> str:
    op = max(profile.ops, key=lambda op: op.cycles or 0.0)
    total = sum(o.cycles or 0.0 for o in profile.ops) or 1.0
    share = 100 * (op.cycles or 0.0) / total
    return f"operator {op.index} {op.kind} {layer_name(op.name)} takes {share:.0f} % of the cycles"


def _ram_remedy(firmware: Firmware) -> str:
    """Return which operator is at the peak of memory, and what would lower it."""
    lowered = firmware.lowered
    graph = lowered.graph

    def need(step: Step) -> int:
        op = graph.ops[step.op]
        tensors = {i for i in (*op.inputs, *op.outputs) if i >= 0}
        planned = [t for t in tensors if t in lowered.places
                   and lowered.places[t].where == "arena"]  # fmt: skip
        return sum(graph.tensors[t].n_bytes for t in planned) + step.variant.scratch_bytes

    if not lowered.steps:
        return ""
    peak = max(lowered.steps, key=need)
    name = layer_name(peak.name)
    text = f"operator {peak.op} {peak.kind} {name} is at the peak with {need(peak)} B"
    return f"{text}: give it a smaller input or fewer channels"


def compile_firmware(
    data: bytes,
    target: Target,
    out: Path,
    *,
    name: str,
    shown: str = MODEL,
    optimize: Optimize = "latency",
    passes: Sequence[str] | None = None,
    budget: Budget | None = None,
    inputs: Sequence[npt.NDArray[Any]] | None = None,
    compiler: str = "zig",
    progress: Progress = lambda share, detail: None,
) -> Firmware:
    """Compile a `.tflite` to C in the folder `out`, link it, and prove it on the emulated core.

    Args:
        data: The model file.
        target: A microcontroller.
        out: An existing folder for the sources and the ELF.
        name: Prefix of the C functions.
        shown: What to call the model in errors.
        optimize: What to choose kernels by.
        passes: Names of the exact passes to run; left out, all.
        budget: Kernels give way to smaller ones until RAM fits; the target's where left out.
        inputs: Raw samples (n, ...) per input for the golden test; left out, noise and extremes.
        compiler: Of `toolchain.COMPILERS`, for the ELF that is emulated.
        progress: Called as the work advances.

    Raises:
        ConfigError: the target is no microcontroller, or does not run engine c.
        ModelError: an operator can't be compiled, or the firmware's outputs are not those of
            TensorFlow Lite Micro.
        ToolchainError: a compiler, the emulator or the oracle is missing.
    """
    if target.kind != "microcontroller":
        raise ConfigError(
            f"target {target.name}",
            "is no microcontroller",
            "its engines read the .tflite itself; C is for microcontrollers",
        )
    names = [runtime.name for runtime in target.runtimes]
    if "c" not in names:
        raise ConfigError(
            f"target {target.name}",
            f"does not run engine c: firmware for its {target.cpu.core} could not be run here",
            f"it has {', '.join(names)}: edgeshrink profile MODEL.tflite --target {target.name} "
            f"--engine {names[0]}",
        )
    progress(0.0, "reading")
    before = read_graph(data, name=shown)
    check_types(before, target)
    progress(0.1, "running exact passes")
    graph, reports = run_passes(before, passes)
    progress(0.2, "planning memory")
    ram = (budget or target.budget).ram_bytes
    limit = None if ram is None else max(0, ram - STACK_BYTES)
    lowered = lower(
        graph, target.cpu.isa, optimize=optimize, ram_limit_bytes=limit,
        flash=memory_system(target),
    )  # fmt: skip
    progress(0.4, "asking the oracle")
    samples = list(inputs) if inputs is not None else noise(before, N_GOLDEN)
    golden = Golden(inputs=tuple(samples), outputs=oracle_outputs(data, samples, shown))
    generated = generate(lowered, name, golden=golden)
    for file, text in generated.files.items():
        (out / file).write_text(text, "utf-8")
    elf = None
    if target.cpu.core in CORES:
        progress(0.5, "compiling")
        flag = COMPILER_FLAGS[optimize]
        elf = link(generated, before, target, out, compiler=compiler, flag=flag)
        progress(0.8, "running on the emulated core")
        check_golden(elf, before, target, golden)
    progress(1.0, "compiled")
    return Firmware(
        name=generated.name,
        before=before,
        reports=reports,
        lowered=lowered,
        generated=generated,
        golden=golden,
        elf=elf,
    )


def flash_bytes(firmware: Firmware) -> int:
    """Return the bytes of everything linked; 0 where the core is not compiled for."""
    return 0 if firmware.elf is None else image_size(read_elf(firmware.elf)).flash


def check_types(graph: Graph, target: Target) -> None:
    """Raise ModelError for a tensor of a type that `target` does not allow inside a model."""
    for op in graph.ops:
        for index in (*op.inputs, *op.outputs):
            if index < 0:
                continue
            dtype = graph.tensors[index].dtype
            if dtype.startswith("float") and dtype not in target.ops.dtypes:
                raise ModelError(
                    place_of(graph, op),
                    f"computes in {dtype}, {target.name} allows {', '.join(target.ops.dtypes)}",
                    "quantize the model to int8, its inputs and outputs too",
                )


def noise(graph: Graph, n: int, seed: int = 0) -> list[npt.NDArray[Any]]:
    """Return (n, ...) raw samples per input: noise over the whole range, then both extremes."""
    rng = np.random.default_rng(seed)
    samples = []
    for index in graph.inputs:
        tensor = graph.tensors[index]
        dtype = np.dtype(tensor.dtype)
        if np.issubdtype(dtype, np.integer):
            limits = np.iinfo(dtype)
            values = rng.integers(
                limits.min, limits.max, (n, *tensor.shape), dtype=dtype, endpoint=True
            )
            values[-2], values[-1] = limits.min, limits.max
        else:
            values = rng.standard_normal((n, *tensor.shape)).astype(dtype)
        samples.append(values)
    return samples


def oracle_outputs(
    data: bytes, samples: Sequence[npt.NDArray[Any]], shown: str
) -> tuple[npt.NDArray[Any], ...]:
    """Return TensorFlow Lite Micro's raw outputs (n, ...) on `samples` (n, ...), each alone."""
    graph = read_graph(data, name=shown)
    rows = []
    with open_model(data, "tflm", name=shown) as runner:
        for sample in range(len(samples[0])):
            outputs = runner.run(*(a[sample] for a in samples))
            rows.append(
                [
                    np.asarray(o).reshape(graph.tensors[i].shape)
                    for o, i in zip(outputs, graph.outputs, strict=True)
                ]
            )
    return tuple(np.stack(column) for column in zip(*rows, strict=True))


def specs(graph: Graph, tensors: Sequence[int], names: Sequence[str]) -> tuple[IoSpec, ...]:
    """Return what the model's inputs or outputs are, as files store them."""
    found = []
    for position, index in enumerate(tensors):
        tensor = graph.tensors[index]
        q = tensor.quantization
        has_scale = q is not None and q.scales.size == 1
        found.append(
            IoSpec(
                name=names[position] if position < len(names) else tensor.name,
                shape=tensor.shape,
                dtype=tensor.dtype,
                scale=float(q.scales[0]) if q is not None and has_scale else None,
                zero_point=int(q.zero_points[0]) if q is not None and has_scale else None,
            )
        )
    return tuple(found)


def link(
    generated: Generated,
    graph: Graph,
    target: Target,
    folder: Path,
    *,
    compiler: str = "zig",
    flag: str = "-O3",
) -> Path:
    """Compile the sources in `folder` with the harness of the emulator; return the ELF."""
    with tempfile.TemporaryDirectory() as aside:
        harness = Path(aside) / "harness.c"
        harness.write_text(
            harness_source(generated.name, len(graph.inputs), len(graph.outputs)), "utf-8"
        )
        return compile_elf(
            [*(folder / file for file in generated.sources), harness],
            target.cpu.core,
            folder / ELF,
            include=[folder],
            compiler=compiler,
            optimize=flag,
        )


def open_on_core(elf: Path, graph: Graph, target: Target) -> FirmwareRunner:
    """Return the runner of a firmware that `compile_firmware` linked."""
    return open_firmware(
        elf,
        target.cpu.core,
        inputs=specs(graph, graph.inputs, graph.input_names),
        outputs=specs(graph, graph.outputs, graph.output_names),
    )


def check_golden(elf: Path, graph: Graph, target: Target, golden: Golden) -> None:
    """Raise ModelError unless the firmware gives the golden outputs, bit for bit."""
    with open_on_core(elf, graph, target) as runner:
        for sample in range(len(golden.inputs[0])):
            _, outputs = runner.count(*(a[sample] for a in golden.inputs))
            for position, (got, values) in enumerate(zip(outputs, golden.outputs, strict=True)):
                expected = values[sample]
                differing = int(np.sum(got.reshape(expected.shape) != expected))
                if differing:
                    raise ModelError(
                        f"firmware on {target.cpu.core}, output {position}, sample {sample}",
                        f"differs from TensorFlow Lite Micro in {differing} of {expected.size} "
                        "values",
                        "this is a fault of edgeshrink: report it with the model file",
                    )
