"""Runs lowered graphs on an emulated core."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeshrink.artifact import IoSpec
from edgeshrink.codegen import generate
from edgeshrink.lowering import Lowered
from edgeshrink.runtimes.firmware import FirmwareRun, harness_source, open_firmware
from edgeshrink.toolchain import compile_elf


def outputs_on_core(
    lowered: Lowered, core: str, folder: Path, *inputs: np.ndarray, optimize: str = "-O3"
) -> tuple[list[list[np.ndarray]], FirmwareRun]:
    """Outputs of each sample (inputs are (n, ...)), and what the last inference did."""
    graph = lowered.graph
    generated = generate(lowered, "m")
    for name, text in generated.files.items():
        (folder / name).write_text(text, "utf-8")
    harness = harness_source("m", len(graph.inputs), len(graph.outputs))
    (folder / "harness.c").write_text(harness, "utf-8")
    sources = [folder / name for name in (*generated.sources, "harness.c")]
    elf = compile_elf(sources, core, folder / "m.elf", include=[folder], optimize=optimize)

    def specs(indices: tuple[int, ...]) -> list[IoSpec]:
        return [
            IoSpec(name="t", shape=graph.tensors[i].shape, dtype=graph.tensors[i].dtype,
                   scale=None, zero_point=None)
            for i in indices
        ]  # fmt: skip

    results = []
    with open_firmware(
        elf, core, inputs=specs(graph.inputs), outputs=specs(graph.outputs)
    ) as runner:
        for row in range(len(inputs[0])):
            run, got = runner.count(*(array[row] for array in inputs))
            results.append(list(got))
    return results, run
