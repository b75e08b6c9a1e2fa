"""What models cost on microcontrollers: `python benchmarks/microcontroller.py MODEL.tflite ...`.

Prints markdown: for every model, core, compiler and plan the executed instructions, modelled cycles
for a taken-branch penalty of 1, 2 and 3, cycles per multiply-accumulate of the model as it is
given, arena with its lower bound, stack, and the bytes of code, weights and tables. Then, for
`--per-op`, which operator costs what. `--verify N` compares N inputs with TensorFlow Lite Micro,
bit for bit, on every core.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeshrink.costs import graph_macs
from edgeshrink.costs.microcontroller import block_cycles
from edgeshrink.errors import ToolchainError
from edgeshrink.firmware import (
    Firmware,
    compile_firmware,
    noise,
    open_on_core,
    oracle_outputs,
)
from edgeshrink.runtimes.elf import image_size, read_elf
from edgeshrink.runtimes.firmware import FirmwareRun, shares_by_op
from edgeshrink.target import Target, load_target
from edgeshrink.toolchain import compiler_version, find_cross_cc

TARGETS = ("rp2040", "nucleo-l4r5zi", "nucleo-h7a3zi", "nucleo-u575zi", "esp32-c3")
PLANS = ("latency", "ram", "flash")
PENALTIES = (1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class Row:
    model: str
    target: Target
    compiler: str
    plan: str
    firmware: Firmware
    run: FirmwareRun
    cycles: tuple[float, ...]
    seconds: float
    verified: int


def measure(
    path: Path, target: Target, plan: str, compiler: str, folder: Path, n_verified: int
) -> Row:
    data = path.read_bytes()
    place = folder / f"{path.stem}-{target.name}-{plan}-{compiler}"
    place.mkdir()
    firmware = compile_firmware(
        data, target, place, name=path.stem, optimize=plan, compiler=compiler
    )
    samples = noise(firmware.before, max(3, n_verified), seed=1)
    with open_on_core(firmware.elf, firmware.before, target) as runner:
        start = time.monotonic()
        run, _ = runner.count(*(a[0] for a in samples))
        seconds = time.monotonic() - start
        if n_verified:
            verify(data, firmware, runner, samples)
    cycles = tuple(
        sum(block_cycles(run.blocks, target.cpu.core, branch_penalty=p)) for p in PENALTIES
    )
    return Row(
        model=path.stem, target=target, compiler=compiler, plan=plan, firmware=firmware, run=run,
        cycles=cycles, seconds=seconds, verified=n_verified,
    )  # fmt: skip


def verify(data: bytes, firmware: Firmware, runner: Any, samples: Sequence[np.ndarray]) -> None:
    expected = oracle_outputs(data, samples, firmware.name)
    for sample in range(len(samples[0])):
        got = runner.run(*(a[sample] for a in samples))
        for g, e in zip(got, expected, strict=True):
            if not np.array_equal(np.asarray(g).reshape(e[sample].shape), e[sample]):
                raise SystemExit(f"{firmware.name}: sample {sample} differs from the oracle")


def table(rows: Sequence[Row], macs: dict[str, int]) -> str:
    head = ["model", "target", "core", "compiler", "plan", "instructions"]
    head += [f"cycles P={p}" for p in PENALTIES]
    head += ["cycles/MAC (P=2)", "arena B (bound)", "stack B", "code B", "tables B", "weights B",
             "equal to TFLM", "emulated s"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        lowered, generated = row.firmware.lowered, row.firmware.generated
        size = image_size(read_elf(row.firmware.elf))
        bound = "optimal" if lowered.arena.optimal else f"{lowered.arena.lower_bound:,}"
        cells = [row.model, row.target.name, row.target.cpu.core, row.compiler, row.plan,
                 f"{row.run.instructions:,}"]  # fmt: skip
        cells += [f"{c:,.0f}" for c in row.cycles]
        beside = size.flash - generated.weight_bytes
        cells += [
            f"{row.cycles[1] / macs[row.model]:.2f}",
            f"{lowered.arena.n_bytes:,} ({bound})",
            f"{row.run.stack_bytes}",
            f"{beside - generated.table_bytes:,}",
            f"{generated.table_bytes:,}",
            f"{generated.weight_bytes:,}",
            f"{row.verified} inputs" if row.verified else "8 inputs",
            f"{row.seconds:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def per_op(row: Row) -> str:
    shares = shares_by_op(row.run)
    per_block = block_cycles(row.run.blocks, row.target.cpu.core)
    cycles: dict[int | None, float] = {}
    for block, n in zip(row.run.blocks, per_block, strict=True):
        cycles[block.op] = cycles.get(block.op, 0.0) + n
    graph = row.firmware.lowered.graph
    lines = [f"\n{row.model}, {row.target.name}, {row.plan}, {row.compiler}\n",
             "| op | kind | kernel | MACs | instructions | cycles | cycles/MAC |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    from edgeshrink.costs.work import op_work

    for step in row.firmware.lowered.steps:
        if step.op not in shares:
            continue
        n_macs = op_work(graph, graph.ops[step.op]).macs
        rate = f"{cycles[step.op] / n_macs:.2f}" if n_macs else ""
        cells = [step.op, step.kind, step.variant.name, f"{n_macs:,}",
                 f"{shares[step.op].instructions:,}", f"{cycles[step.op]:,.0f}", rate]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path, help="int8 .tflite files")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--plans", default=",".join(PLANS))
    parser.add_argument(
        "--compilers", default="zig,gcc", help="those that are missing are left out"
    )
    parser.add_argument("--per-op", action="store_true")
    parser.add_argument("--verify", type=int, default=0, metavar="N")
    options = parser.parse_args()
    targets = [load_target(name) for name in options.targets.split(",")]
    rows, macs, versions = [], {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for path in options.models:
            for target in targets:
                for compiler in options.compilers.split(","):
                    try:
                        command = find_cross_cc(target.cpu.core, compiler)
                    except ToolchainError:
                        continue
                    versions[f"{compiler} for {target.cpu.core}"] = compiler_version(command)
                    for plan in options.plans.split(","):
                        row = measure(path, target, plan, compiler, Path(folder), options.verify)
                        macs[row.model] = graph_macs(row.firmware.before)
                        rows.append(row)
                        name = f"{path.stem} {target.name} {plan} {compiler}"
                        print(f"{name}: {row.cycles[1]:,.0f} cycles", file=sys.stderr)
        print("# Compiled models on microcontrollers\n")
        print("`-O3`, in the plan `flash` `-Os`. Instructions are executed and counted; "
              "cycles are modelled from the\ncore's timing table, for memory that never waits. "
              "MACs are those of the file as given.\n")  # fmt: skip
        for name, version in versions.items():
            print(f"- {name}: {version}")
        print()
        print(table(rows, macs))
        if options.per_op:
            for row in rows:
                print(per_op(row))


if __name__ == "__main__":
    main()
