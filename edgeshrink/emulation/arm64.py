"""Run a model file in the arm64 builds of the runtimes: outputs compared, instructions counted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeshrink.costs.work import op_work
from edgeshrink.errors import ConfigError, ToolchainError
from edgeshrink.graph_reader import read_graph
from edgeshrink.profile import Figure, Profile, exact
from edgeshrink.runtimes import ModelRunner, open_model
from edgeshrink.runtimes.arm64 import SETUP, Arm64Root, cpu_model, find_root, guest
from edgeshrink.target import Target

ENGINE: Final = "qemu"
# What reads a file, the main runtime first; its figures have the plain names.
RUNTIMES_OF: Final = {".tflite": ("litert", "tflite-runtime"), ".pte": ("executorch",)}
N_SAMPLES: Final = 8
TIMEOUT_S: Final = 300.0  # importing PyTorch takes half a minute under emulation
MAX_INDEX: Final = 2  # integers that may be indices stay below


def emulate_arm64(model: Path, target: Target, *, name: str | None = None) -> Profile:
    """Return what the arm64 runtimes do with a model file, under QEMU's user mode.

    Every runtime that is prepared (`edgeshrink setup qemu`) and reads the file runs it on
    `N_SAMPLES` random inputs; the outputs are compared with those of the same runtime on this
    host, and the instructions of an inference are counted. The emulated processor has the
    instructions of the target's core, by which the runtimes choose their kernels. It has no
    caches and no clock: this says nothing about time.

    Args:
        model: A `.tflite` or `.pte`.
        target: A 64-bit application processor.
        name: What to call the file in the profile and in errors.

    Raises:
        ConfigError: the target has no such cores, or the file is of another kind.
        ModelError: the file is damaged, or a runtime fails on it.
        ToolchainError: QEMU or the arm64 runtimes are missing.
    """
    cpu = cpu_model(target)
    runtimes = RUNTIMES_OF.get(model.suffix)
    shown = name or str(model)
    if runtimes is None:
        raise ConfigError(shown, "is neither a .tflite nor a .pte", "engine qemu runs these")
    try:
        data = model.read_bytes()
    except OSError as err:
        raise ConfigError(str(model), f"can't be read ({err.strerror})", "check the path") from err
    figures: dict[str, Figure] = {}
    if model.suffix == ".tflite":
        graph = read_graph(data, name=shown)
        figures["macs"] = exact(sum(op_work(graph, op).macs for op in graph.ops), "MAC")
    root = find_root()
    notes = []
    for index, runtime in enumerate(runtimes):
        if index and runtime not in root.runtimes:
            continue
        figure, note = _run(data, runtime, cpu, root, shown)
        figures["instructions" if not index else f"instructions_{runtime}"] = figure
        notes.append(note)
    notes.append("an emulated processor has no caches and no clock: it says nothing about time")
    return Profile(
        target=target.name,
        engine=ENGINE,
        model_path=shown,
        model_sha256=hashlib.sha256(data).hexdigest(),
        figures=figures,
        ops=(),
        notes=tuple(notes),
    )


def _run(data: bytes, runtime: str, cpu: str, root: Arm64Root, shown: str) -> tuple[Figure, str]:
    """Return the instructions of an inference in a runtime, and how its outputs compare."""
    version = root.runtimes[runtime][0]
    with guest(root, runtime, cpu) as arm64:
        try:
            runner = open_model(
                data, runtime, python=arm64.command, name=shown, timeout_s=TIMEOUT_S
            )
        except ToolchainError as err:
            raise ToolchainError(f"{version} for arm64", err.what, f"{SETUP} --again") from err
        with runner:
            inputs = _random_inputs(runner)
            there = runner.run(*inputs)
            counts = sorted(runner.instructions(arm64.counts))
    figure = Figure(
        value=counts[len(counts) // 2],
        unit="instructions",
        how="emulated",
        low=counts[0],
        high=counts[-1],
        note=f"{version} for arm64 on an emulated {cpu}, one thread; median of {len(counts)}",
    )
    try:
        with open_model(data, runtime, name=shown) as runner:
            here = runner.run(*inputs)
    except ToolchainError as err:
        return (
            figure,
            f"{version} on arm64: outputs not compared, on this host {err.where} {err.what}",
        )
    names = [spec.name for spec in runner.outputs]
    told = _compare(there, here, names)
    return figure, f"{version} on arm64 ({cpu}), {N_SAMPLES} random inputs: {told}"


def _random_inputs(runner: ModelRunner) -> list[npt.NDArray[Any]]:
    """Return `N_SAMPLES` samples of every input, the same ones every time."""
    generator = np.random.default_rng(0)
    arrays: list[npt.NDArray[Any]] = []
    for spec in runner.inputs:
        n = N_SAMPLES * (spec.shape[0] if spec.shape else 1)
        shape, dtype = (n, *spec.shape[1:]), np.dtype(spec.dtype)
        if dtype.kind == "f":
            arrays.append(generator.standard_normal(shape).astype(dtype))
        elif spec.dtype in ("int8", "uint8", "int16"):
            limits = np.iinfo(spec.dtype)
            arrays.append(generator.integers(limits.min, limits.max, shape, dtype, endpoint=True))
        else:
            arrays.append(generator.integers(0, MAX_INDEX, shape).astype(dtype))
    return arrays


def _compare(
    there: Sequence[npt.NDArray[Any]], here: Sequence[npt.NDArray[Any]], names: Sequence[str]
) -> str:
    """Say how far the outputs of two runs are apart."""
    parts = []
    for name, a, b in zip(names, there, here, strict=True):
        if np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            continue
        difference = np.abs(a.astype(np.float64) - b.astype(np.float64))
        share = float(np.mean(a != b))
        unit = "" if a.dtype.kind == "f" else " LSB"
        parts.append(f"{name} differs by up to {difference.max():.3g}{unit}, {share:.1%} of values")
    return "; ".join(parts) or "outputs equal to those of this host, bit for bit"
