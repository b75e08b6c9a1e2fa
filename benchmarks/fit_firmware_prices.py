"""Measure what kernels cost as firmware; write `edgeshrink/costs/data/firmware_prices.json`.

    python benchmarks/fit_firmware_prices.py [--core cortex-m4f] ...

Each kernel is compiled and linked alone, for its bytes and what it needs of the compiler's
run-time; the networks of `tests/zoo.py` and narrower ones are linked whole and run on the emulated
core, for cycles, stack and what lies around the kernels. Errors are those of each network with the
figures of the others. Takes about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

sys.path.insert(0, str(Path(__file__).parents[1]))

from edgeshrink.codegen import generate
from edgeshrink.costs.firmware import (
    DATA,
    code_bytes,
    constant_bytes,
    cycle_terms,
    cycles_key,
    family,
    step_cycles,
)
from edgeshrink.emulation import emulate_firmware
from edgeshrink.errors import EdgeshrinkError
from edgeshrink.firmware import COMPILER_FLAGS, link, noise
from edgeshrink.graph import Graph
from edgeshrink.lowering import Lowered, lower
from edgeshrink.passes import run_passes
from edgeshrink.quantizer.sketch import sketch
from edgeshrink.resources import resource_dir
from edgeshrink.runtimes.elf import image_size, read_elf
from edgeshrink.target import load_target
from edgeshrink.toolchain import compile_elf
from tests.zoo import ZOO, DsCnn, MobileNetV1, zoo_task

CORES = {"cortex-m4f": "nucleo-l4r5zi", "cortex-m0+": "rp2040"}
OPTIMIZE = ("latency", "ram", "flash")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One network on one core."""

    network: str
    lowered: Lowered
    flag: str
    code: int
    constants: int
    stack: int
    cycles: dict[int, float]  # by operator
    emitted: dict[str, int]  # a written kernel's function -> bytes of its object


def networks() -> Iterator[tuple[str, Graph]]:
    """Yield graphs: the zoo's, and narrow ones as pruning leaves them."""
    import torch

    for name in ZOO:
        task = zoo_task(name)
        yield name, sketch(task.model, task.example_inputs).graph
    torch.manual_seed(0)
    for name, model, shape in (
        ("ds-cnn-24", DsCnn(width=24), (1, 1, 49, 10)),
        ("ds-cnn-40", DsCnn(width=40), (1, 1, 49, 10)),
        ("mobilenet-v1-0.5-48", MobileNetV1(alpha=0.5), (1, 3, 48, 48)),
    ):
        yield name, sketch(model.eval(), (torch.randn(shape),)).graph
    for name, widths, shape in (
        ("plain-8", (16, 32, 32), (1, 1, 8, 8)),
        ("plain-8-narrow", (8, 12, 8), (1, 1, 8, 8)),
        ("plain-32", (12, 20, 44), (1, 3, 32, 32)),
    ):
        yield name, sketch(plain(shape[1], widths).eval(), (torch.randn(shape),)).graph


def plain(n_in: int, widths: Sequence[int]) -> Any:
    """Return 3x3 convolutions in a row, the second with stride 2, a mean and a linear layer."""
    from torch import nn

    layers: list[nn.Module] = []
    for position, width in enumerate(widths):
        layers += [nn.Conv2d(n_in, width, 3, 1 + (position == 1), 1), nn.ReLU()]
        n_in = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, 10))


def object_bytes(source: Path, function: str, core: str, flag: str) -> tuple[int, dict[str, int]]:
    """Link one kernel alone; return its bytes and those of the run-time functions that it needs."""
    with tempfile.TemporaryDirectory() as folder:
        main = Path(folder) / "main.c"
        main.write_text(
            f"void {function}(void);\nvoid (*volatile kernel)(void);\n"
            f"int main(void) {{ kernel = {function}; return 0; }}\n"
        )
        elf = read_elf(
            compile_elf(
                [source, main], core, Path(folder) / "k.elf", include=[source.parent, *includes()],
                optimize=flag,
            )
        )  # fmt: skip
    own = {s.address: s.n_bytes for s in elf.symbols if s.is_function and s.name.startswith("es_")}
    own.pop(next((s.address for s in elf.symbols if s.name == "es_start"), -1), None)
    runtime: dict[int, tuple[str, int]] = {}
    for s in elf.symbols:
        if s.is_function and not s.name.startswith(("es_", "main", "reset", "fault")):
            name, n = runtime.get(s.address, (s.name, s.n_bytes))
            runtime[s.address] = (min(name, s.name), n)
    return sum(own.values()), dict(runtime.values())


def includes() -> list[Path]:
    return [resource_dir("kernels") / "include"]


def run(name: str, graph: Graph, core: str, optimize: str) -> Run:
    """Link a network and run it."""
    target = load_target(CORES[core])
    clean, _ = run_passes(graph)
    lowered = lower(clean, target.cpu.isa, optimize=optimize, arena_seconds=0)  # type: ignore[arg-type]
    generated = generate(lowered, "net")
    emitted = {}
    with tempfile.TemporaryDirectory() as folder:
        for file, text in generated.files.items():
            (Path(folder) / file).write_text(text)
        flag = COMPILER_FLAGS[optimize]  # type: ignore[index]
        elf = link(generated, graph, target, Path(folder), flag=flag)
        inputs = [a[:1].reshape(1, -1).view(np.uint8) for a in noise(graph, 3)]
        profile = emulate_firmware(elf, target, graph=lowered.graph, inputs=inputs)
        size = image_size(read_elf(elf))
        for step in lowered.steps:
            for call in step.variant.calls:
                if call.emitted is not None and call.function not in emitted:
                    source = Path(folder) / f"{call.function}.c"
                    emitted[call.function] = object_bytes(source, call.function, core, flag)[0]
    return Run(
        network=name, lowered=lowered, flag=flag, code=size.code, constants=size.constants,
        stack=int(profile.figures["stack_bytes"].value),
        cycles={op.index: op.cycles or 0.0 for op in profile.ops if op.kind != "between operators"},
        emitted=emitted,
    )  # fmt: skip


def fit(runs: Sequence[Run], kernels: dict[str, Any], runtime: dict[str, int]) -> dict[str, Any]:
    """Return the figures of one core and one flag."""
    points: dict[str, list[tuple[float, int]]] = defaultdict(list)
    seen: dict[str, list[tuple[tuple[float, ...], float]]] = defaultdict(list)
    estimates, measured = 0.0, 0.0
    stack: dict[str, int] = {}
    for r in runs:
        for step in r.lowered.steps:
            if step.variant.calls and step.op in r.cycles:
                graph = r.lowered.graph
                cycles = r.cycles[step.op]
                seen[cycles_key(step)].append((cycle_terms(graph, step), cycles))
                estimates, measured = estimates + step.variant.cycles, measured + cycles
            for call in step.variant.calls:
                name = family(step, call)
                stack[name] = min(r.stack, stack.get(name, r.stack))
                if call.function in r.emitted:
                    estimate = step.variant.code_bytes / len(step.variant.calls)
                    points[name].append((estimate, r.emitted[call.function]))
    kernels = {name: dict(entry) for name, entry in kernels.items()}
    for name, found in points.items():
        x, y = np.array(found, float).T
        slope = float(np.polyfit(x, y, 1)[0]) if np.ptp(x) > 100 else 1.0
        kernels[name] = {
            "bytes": round(float((y - slope * x).mean()), 1), "slope": round(slope, 4), "needs": []
        }  # fmt: skip
    rates: dict[str, Any] = {
        "kernels": kernels, "runtime": runtime, "fixed": 0.0, "per_op": 0.0,
        "stack": stack, "stack_least": min(stack.values()), "stack_else": max(stack.values()),
        "cycles": {k: cycles_line(found) for k, found in sorted(seen.items())},
        "cycles_else": round(measured / estimates, 4),
    }  # fmt: skip
    rows = []
    for r in runs:
        n_ops = sum(1 for s in r.lowered.steps if s.variant.calls)
        rest = r.code - code_bytes(r.lowered, rates)
        rows.append((1.0, n_ops, rest))
    table = np.array(rows)
    (fixed, per_op), *_ = np.linalg.lstsq(table[:, :2], table[:, 2], rcond=None)
    return rates | {"fixed": round(float(fixed), 1), "per_op": round(float(per_op), 2)}


def cycles_line(rows: Sequence[tuple[tuple[float, ...], float]]) -> list[float]:
    """Return what each term of `cycle_terms` takes, by least squares of the relative error.

    An estimate and its outputs alone get a line only where networks differ, and none that falls
    below 0; of several terms each takes something or nothing.
    """
    terms = np.array([t for t, _ in rows])
    measured = np.array([cycles for _, cycles in rows])
    table = terms / measured[:, None]
    if terms.shape[1] > 2:
        found, _ = nnls(table, np.ones(len(measured)))
        return [round(float(c), 4) for c in found]
    ratios = terms[:, 0] / terms[:, 1]
    if ratios.max() > 1.2 * ratios.min():
        found, *_ = np.linalg.lstsq(table, np.ones(len(measured)), rcond=None)
        if found[0] > 0 and (terms @ found > 0).all():
            return [round(float(c), 4) for c in found]
    return [round(float(measured.sum() / terms[:, 0].sum()), 4), 0.0]


def errors(runs: Sequence[Run], kernels: dict[str, Any], runtime: dict[str, int]) -> list[Any]:
    """Return (network, errors of code, stack, cycles) of each, with the figures of the others."""
    found = []
    for left_out in runs:
        rates = fit([r for r in runs if r.network != left_out.network], kernels, runtime)
        graph, steps = left_out.lowered.graph, left_out.lowered.steps
        cycles = sum(step_cycles(graph, step, rates) for step in steps)
        stack = max(
            rates["stack"].get(family(s, c), rates["stack_else"])
            for s in steps for c in s.variant.calls
        )  # fmt: skip
        code = code_bytes(left_out.lowered, rates)
        found.append((
            left_out.network, code / left_out.code - 1, stack / left_out.stack - 1,
            cycles / sum(left_out.cycles.values()) - 1, code - left_out.code, left_out.code,
            constant_bytes(left_out.lowered) - left_out.constants,
        ))  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--core", action="append", choices=tuple(CORES))
    cores = parser.parse_args().core or list(CORES)
    graphs = list(networks())
    data: dict[str, Any] = {
        "source": "benchmarks/fit_firmware_prices.py: zig's clang, linked alone and whole, "
        "run on the emulated core",
        "vectors": 64,
        "cores": {},
        "errors": {"code": 0.05, "stack": 0.3, "cycles": 0.1},
    }
    if DATA.exists():
        data = json.loads(DATA.read_text("utf-8"))
    all_errors = []
    DATA.write_text(json.dumps(data))
    for core in cores:
        isa = load_target(CORES[core]).cpu.isa
        folders = ["ref", "dsp"] if "dsp" in isa else ["ref", "scalar"]
        runs = [run(n, g, core, o) for n, g in graphs for o in OPTIMIZE]
        data["cores"][core] = {}
        for flag in ("-O3", "-Os"):
            kernels, runtime = {}, {}
            for source in sorted(
                p for f in folders for p in (resource_dir("kernels") / f).glob("*.c")
            ):
                try:
                    n, needs = object_bytes(source, source.stem, core, flag)
                except EdgeshrinkError as err:
                    print("skipped", source.name, err)
                    continue
                kernels[source.stem] = {"bytes": n, "slope": 0, "needs": sorted(needs)}
                runtime |= needs
            mine = [r for r in runs if r.flag == flag]
            data["cores"][core][flag] = fit(mine, kernels, runtime)
            for row in errors(mine, kernels, runtime):
                all_errors.append(row)
                print(
                    core,
                    flag,
                    row[0],
                    *(f"{100 * e:+.1f} %" for e in row[1:4]),
                    row[4:],
                    flush=True,
                )
    quantiles = np.quantile(np.abs(np.array([r[1:4] for r in all_errors])), 0.9, axis=0)
    data["errors"] = dict(
        zip(("code", "stack", "cycles"), quantiles.round(4).tolist(), strict=True)
    )
    DATA.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    main()
