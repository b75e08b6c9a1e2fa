"""A `.tflite` as firmware: passes, kernels, C, an ELF, and the proof that it computes the same."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeshrink.artifact import IoSpec
from edgeshrink.codegen import Generated, Golden, generate
from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.graph import Graph
from edgeshrink.graph_reader import read_graph
from edgeshrink.lowering import Lowered, Optimize, lower
from edgeshrink.passes import PassReport, run_passes
from edgeshrink.runtimes import open_model
from edgeshrink.runtimes.firmware import FirmwareRunner, harness_source, open_firmware
from edgeshrink.target import Target
from edgeshrink.toolchain import CORES, compile_elf

N_GOLDEN: Final = 8
STACK_BYTES: Final = 1024  # left for the stack when kernels are chosen; the real one is measured
MODEL: Final = "model.tflite"

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


def compile_firmware(
    data: bytes,
    target: Target,
    out: Path,
    *,
    name: str,
    shown: str = MODEL,
    optimize: Optimize = "latency",
    passes: Sequence[str] | None = None,
    inputs: Sequence[npt.NDArray[Any]] | None = None,
    progress: Progress = lambda share, detail: None,
) -> Firmware:
    """Compile a `.tflite` to C in the folder `out`, link it, and prove it on the emulated core.

    Args:
        data: The model file.
        target: A microcontroller.
        out: An existing folder for the sources and `model.elf`.
        name: Prefix of the C functions.
        shown: What to call the model in errors.
        optimize: What to choose kernels by.
        passes: Names of the exact passes to run; left out, all.
        inputs: Raw samples (n, ...) per input for the golden test; left out, noise and extremes.
        progress: Called as the work advances.

    Raises:
        ConfigError: the target is no microcontroller.
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
    progress(0.0, "reading")
    before = read_graph(data, name=shown)
    check_types(before, target)
    progress(0.1, "running exact passes")
    graph, reports = run_passes(before, passes)
    progress(0.2, "planning memory")
    ram = target.budget.ram_bytes
    limit = None if ram is None else max(0, ram - STACK_BYTES)
    lowered = lower(graph, target.cpu.isa, optimize=optimize, ram_limit_bytes=limit)
    progress(0.4, "asking the oracle")
    samples = list(inputs) if inputs is not None else noise(before, N_GOLDEN)
    golden = Golden(inputs=tuple(samples), outputs=oracle_outputs(data, samples, shown))
    generated = generate(lowered, name, golden=golden)
    for file, text in generated.files.items():
        (out / file).write_text(text, "utf-8")
    elf = None
    if target.cpu.core in CORES:
        progress(0.5, "compiling")
        elf = link(generated, before, target, out)
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


def check_types(graph: Graph, target: Target) -> None:
    """Raise ModelError for a tensor of a type that `target` does not allow inside a model."""
    for op in graph.ops:
        for index in (*op.inputs, *op.outputs):
            if index < 0:
                continue
            tensor = graph.tensors[index]
            if tensor.dtype.startswith("float") and tensor.dtype not in target.ops.dtypes:
                layer = f" ({tensor.name})" if tensor.name else ""
                raise ModelError(
                    f"operator {op.index} {op.kind} v{op.version}{layer}",
                    f"computes in {tensor.dtype}, {target.name} allows "
                    f"{', '.join(target.ops.dtypes)}",
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


def link(generated: Generated, graph: Graph, target: Target, folder: Path) -> Path:
    """Compile the sources in `folder` with the harness of the emulator; return the ELF."""
    with tempfile.TemporaryDirectory() as aside:
        harness = Path(aside) / "harness.c"
        harness.write_text(
            harness_source(generated.name, len(graph.inputs), len(graph.outputs)), "utf-8"
        )
        return compile_elf(
            [*(folder / file for file in generated.sources), harness],
            target.cpu.core,
            folder / "model.elf",
            include=[folder],
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
