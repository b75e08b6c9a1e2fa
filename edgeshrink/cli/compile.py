"""`edgeshrink compile MODEL.tflite --target NAME --out DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeshrink.cli.output import print_json, progress
from edgeshrink.cli.profile_tables import print_figures, print_ops
from edgeshrink.units import format_bytes

if TYPE_CHECKING:
    from edgeshrink.firmware import Compiled
    from edgeshrink.lowering import Optimize
    from edgeshrink.target import Target


@click.command("compile")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", "target_name", required=True, help="Device name, or path of a .toml.")
@click.option("--out", type=click.Path(path_type=Path), help="Default: build/<model>-<target>-c.")
@click.option("--name", help="Prefix of the C functions. Default: the file's name.")
@click.option(
    "--optimize",
    type=click.Choice(["latency", "ram", "flash"]),
    default="latency",
    show_default=True,
    help="What kernels are chosen by.",
)
@click.option(
    "--passes", "pass_names", default="all", show_default=True, help="all, none, or a,b,c."
)
@click.option("--budget", "budget_text", default="", help="ram=64KiB,latency=20ms,flash=1MiB")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    model: Path,
    target_name: str,
    out: Path | None,
    name: str | None,
    optimize: Optimize,
    pass_names: str,
    budget_text: str,
    as_json: bool,
) -> None:
    """Compile a quantized .tflite to plain C for a microcontroller, and prove it on the host.

    The folder holds everything: `cc *.c` builds a program that tests itself. Leave golden_test.c
    out of your firmware.
    """
    from edgeshrink.budget import parse_budget
    from edgeshrink.target import load_target

    target = load_target(target_name)
    budget = parse_budget(budget_text).over(target.budget)
    from edgeshrink.firmware import compile_model, parse_passes

    passes = parse_passes(pass_names)
    folder = out or Path("build") / f"{model.stem}-{target.name}-c"
    with progress() as report:
        compiled = compile_model(
            model,
            target,
            folder,
            name=name or model.stem,
            optimize=optimize,
            passes=passes,
            budget=budget,
            progress=lambda share, detail: report("compiling", share, detail),
        )
    if as_json:
        print_json(compiled_json(compiled))
    else:
        print_compiled(compiled, target)


def compiled_json(compiled: Compiled) -> dict[str, object]:
    """Return what was compiled as plain JSON values."""
    firmware = compiled.firmware
    arena = firmware.lowered.arena
    return {
        "folder": str(compiled.folder),
        "name": firmware.name,
        "files": sorted(firmware.generated.files),
        "optimize": firmware.lowered.optimize,
        "passes": [vars(report) for report in firmware.reports],
        "arena": {
            "bytes": arena.n_bytes,
            "lower_bound": arena.lower_bound,
            "optimal": arena.optimal,
        },
        "state_bytes": firmware.lowered.state_bytes,
        "weight_bytes": firmware.generated.weight_bytes,
        "table_bytes": firmware.generated.table_bytes,
        "kernels": [
            {"op": step.op, "kind": step.kind, "variant": step.variant.name}
            for step in firmware.lowered.steps
        ],
        "verified": {
            "oracle": "TensorFlow Lite Micro",
            "samples": len(firmware.golden.inputs[0]) if firmware.golden.inputs else 0,
            "core": compiled.profile.target if compiled.profile is not None else None,
        },
        "profile": None if compiled.profile is None else compiled.profile.to_json(),
    }


def print_compiled(compiled: Compiled, target: Target) -> None:
    """Print what was compiled: passes, memory, figures, operators."""
    firmware, profile = compiled.firmware, compiled.profile
    generated, arena = firmware.generated, firmware.lowered.arena
    print(f"{firmware.name} for {target.title}: {compiled.folder}")
    print()
    changes = [r for r in firmware.reports if r.change]
    for report in changes:
        macs = ""
        if report.macs_after != report.macs_before:
            macs = f", MACs {report.macs_before:,} to {report.macs_after:,}"
        print(f"  pass {report.name}: {report.change}{macs}")
    if not changes:
        print("  passes: nothing to change")
    gap = arena.n_bytes - arena.lower_bound
    verdict = "optimal" if arena.optimal else f"at most {gap} B above the optimum"
    print(f"  arena {arena.n_bytes:,} B, lower bound {arena.lower_bound:,} B: {verdict}")
    if firmware.lowered.state_bytes:
        print(f"  state {firmware.lowered.state_bytes:,} B between inferences")
    print(f"  weights {format_bytes(generated.weight_bytes)}, tables "
          f"{format_bytes(generated.table_bytes)}, {len(generated.sources)} C files")  # fmt: skip
    samples = len(firmware.golden.inputs[0]) if firmware.golden.inputs else 0
    print(f"  {samples} samples: bit for bit TensorFlow Lite Micro's outputs on the emulated core")
    if profile is None:
        return
    print()
    print_figures(profile)
    print_ops(profile.ops)
    for note in profile.notes:
        print(f"note: {note}")
