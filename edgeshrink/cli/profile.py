"""`edgeshrink profile MODEL --target NAME`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeshrink.cli.output import print_json, show_figure
from edgeshrink.graph import layer_name

if TYPE_CHECKING:
    from edgeshrink.graph import Graph
    from edgeshrink.lowering import Optimize
    from edgeshrink.profile import OpCost, Profile


@click.command("profile")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", "target_name", required=True, help="Device name, or path of a .toml.")
@click.option(
    "--engine",
    type=click.Choice(["c", "tflite", "executorch"]),
    help="Default: c for microcontrollers, else by the file.",
)
@click.option(
    "--optimize",
    type=click.Choice(["latency", "ram", "flash"]),
    help="Engine c: what kernels are chosen by.  [default: latency]",
)
@click.option("--passes", "pass_names", help="Engine c: all, none, or a,b,c.  [default: all]")
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--budget", "budget_text", default="", help="ram=64KiB,latency=20ms,flash=1MiB")
@click.option("--graph", "show_graph", is_flag=True, help="Print the operators with their tensors.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    model: Path,
    target_name: str,
    engine: str | None,
    optimize: Optimize | None,
    pass_names: str | None,
    threads: int,
    budget_text: str,
    show_graph: bool,
    as_json: bool,
) -> None:
    """Say what MODEL costs on a device: a .tflite, a .pte, an ELF, or an artifact's folder."""
    from edgeshrink.budget import parse_budget
    from edgeshrink.target import load_target

    target = load_target(target_name)
    budget = parse_budget(budget_text).over(target.budget)
    from edgeshrink.artifact import MODEL_FILES, read_artifact
    from edgeshrink.emulation import emulate
    from edgeshrink.errors import ConfigError
    from edgeshrink.graph_reader import read_graph_file

    of_compiler = {"--optimize": optimize is not None, "--passes": pass_names is not None}
    if is_elf(model):
        given = {"--engine": engine is not None, "--threads": threads != 1, "--graph": show_graph}
        _refuse_options(given | of_compiler, f"does not go with the firmware {model}")
        from edgeshrink.emulation import emulate_firmware

        show(emulate_firmware(model, target, budget=budget), target.title, as_json=as_json)
        return
    graph = None
    if model.suffix == ".pt2":
        fix = f"first: edgeshrink build {model} --calibration FILE.npz --target {target.name}"
        raise ConfigError(str(model), "is a program that is not lowered yet", fix)
    if model.is_dir():
        artifact = read_artifact(model)
        graph = read_graph_file(artifact.path(MODEL_FILES["tflite"]))
        model = artifact.path(MODEL_FILES["pte" if engine == "executorch" else "tflite"])
    by_file = "executorch" if model.suffix == ".pte" else "tflite"
    is_mcu = target.kind == "microcontroller"
    engine = engine or ("c" if is_mcu and by_file == "tflite" else by_file)
    if is_mcu != (engine == "c") and not show_graph:
        fix = "use engine c" if is_mcu else "use engine tflite or executorch"
        raise ConfigError(f"--engine {engine}", f"does not run on {target.name}", fix)
    if engine != "c":
        _refuse_options(of_compiler, f"does not go with engine {engine}")
    if show_graph:
        shown = graph or read_graph_file(model)
        if pass_names is not None:
            from edgeshrink.firmware import parse_passes
            from edgeshrink.passes import run_passes

            shown, _ = run_passes(shown, parse_passes(pass_names))
        if as_json:
            print_json(graph_json(shown))
        else:
            print_graph(shown)
        return
    if engine == "c":
        _refuse_options({"--threads": threads != 1}, "does not go with engine c")
        from edgeshrink.firmware import parse_passes, profile_model

        _, profile = profile_model(
            model,
            target,
            optimize=optimize or "latency",
            passes=parse_passes(pass_names or "all"),
            budget=budget,
        )
        show(profile, target.title, as_json=as_json)
        return
    profile = emulate(model, target, engine=engine, graph=graph, threads=threads, budget=budget)
    show(profile, target.title, as_json=as_json)


def _refuse_options(given: Mapping[str, bool], what: str) -> None:
    """Raise ConfigError for the first option that was given."""
    from edgeshrink.errors import ConfigError

    for option in (name for name, is_given in given.items() if is_given):
        raise ConfigError(option, what, "leave it out")


def is_elf(path: Path) -> bool:
    """Say whether a file begins as every ELF does."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"\x7fELF"
    except OSError:
        return False


def show(profile: Profile, device: str, *, as_json: bool) -> None:
    """Print a profile: figures, a row for every operator, notes, limits that are not met."""
    if as_json:
        print_json(profile.to_json())
        return
    print(f"{profile.model_path} on {device} ({profile.engine})")
    print_figures(profile)
    print_ops(profile.ops)
    for note in profile.notes:
        print(f"note: {note}")
    for overrun in profile.overruns:
        print(f"over budget: {overrun.what} needs {overrun.need:,.10g} {overrun.unit}, "
              f"{overrun.limit:,.10g} allowed")  # fmt: skip


def print_figures(profile: Profile) -> None:
    """Print every figure with its note."""
    for name, figure in profile.figures.items():
        print(f"  {name:<14} {show_figure(figure)}")
        if figure.note:
            print(f"  {'':<14} {figure.note}")


def cut(name: str, width: int = 48) -> str:
    """Return a layer's name for a table, its end if it is longer than `width`."""
    first = layer_name(name)
    return first if len(first) <= width else "…" + first[1 - width :]


def print_ops(ops: Sequence[OpCost]) -> None:
    """Print a row for every operator, costliest share marked by its percentage."""
    if not ops:
        return
    if all(op.instructions is not None for op in ops):
        print_counted(ops)
        return
    total = sum(op.latency_ms or 0.0 for op in ops)
    print(f"  {'op':>3}  {'kind':<24} {'MACs':>13} {'weights B':>10} {'live B':>9} "
          f"{'ms':>9} {'share':>6}  layer")  # fmt: skip
    for op in ops:
        name = cut(op.name)
        ms = "" if op.latency_ms is None else f"{op.latency_ms:.4f}"
        share = f"{100 * op.latency_ms / total:.1f} %" if op.latency_ms and total else ""
        print(f"  {op.index:>3}  {op.kind:<24} {op.macs:>13,} {op.flash_bytes or 0:>10,} "
              f"{op.live_bytes or 0:>9,} {ms:>9} {share:>6}  {name}".rstrip())  # fmt: skip


def print_counted(ops: Sequence[OpCost]) -> None:
    """Print a row for every operator or function of a firmware that ran."""
    total = sum(op.cycles or 0.0 for op in ops)
    print(f"  {'op':>3}  {'kind':<24} {'MACs':>13} {'instructions':>13} {'cycles':>13} "
          f"{'per MAC':>8} {'share':>6}  layer")  # fmt: skip
    for op in ops:
        cycles, name = op.cycles or 0.0, cut(op.name)
        per_mac = f"{cycles / op.macs:.2f}" if op.macs else ""
        share = f"{100 * cycles / total:.1f} %" if total else ""
        print(f"  {op.index:>3}  {op.kind:<24} {op.macs:>13,} {op.instructions or 0:>13,} "
              f"{cycles:>13,.0f} {per_mac:>8} {share:>6}  {name}".rstrip())  # fmt: skip


def graph_json(graph: Graph) -> object:
    """Return the graph as plain JSON values, without the constants' content."""

    def tensor(index: int) -> object:
        t = graph.tensors[index]
        q = t.quantization
        return {
            "index": index, "name": t.name, "shape": list(t.shape), "dtype": t.dtype,
            "constant": t.data is not None,
            "scales": None if q is None else [float(s) for s in q.scales],
            "zero_points": None if q is None else [int(z) for z in q.zero_points],
        }  # fmt: skip

    return {
        "name": graph.name,
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
        "tensors": [tensor(t.index) for t in graph.tensors],
        "ops": [
            {"index": op.index, "kind": op.kind, "version": op.version, "inputs": list(op.inputs),
             "outputs": list(op.outputs), "options": {k: str(v) for k, v in op.options.items()}}
            for op in graph.ops
        ],
    }  # fmt: skip


def print_graph(graph: Graph) -> None:
    """Print operators in order, each with the shapes and types of its tensors."""

    def show(index: int) -> str:
        if index < 0:
            return "-"
        t = graph.tensors[index]
        return f"%{index}:{t.dtype}{list(t.shape)}{'=const' if t.data is not None else ''}"

    print("inputs  " + ", ".join(show(i) for i in graph.inputs))
    for op in graph.ops:
        options = ", ".join(f"{k}={v}" for k, v in op.options.items())
        inputs, outputs = (", ".join(show(i) for i in side) for side in (op.inputs, op.outputs))
        behind = f"  {{{options}}}" if options else ""
        print(f"{op.index:>4} {op.kind} v{op.version}({inputs}) -> {outputs}{behind}")
    print("outputs " + ", ".join(show(i) for i in graph.outputs))
