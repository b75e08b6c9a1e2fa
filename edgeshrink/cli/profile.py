"""`edgeshrink profile MODEL --target NAME`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeshrink.cli.output import print_json, show_figure
from edgeshrink.graph import layer_name
from edgeshrink.units import format_ms

if TYPE_CHECKING:
    from edgeshrink.costs.energy import Duty
    from edgeshrink.graph import Graph
    from edgeshrink.lowering import Optimize
    from edgeshrink.profile import OpCost, Profile
    from edgeshrink.target import Target


@click.command("profile")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", "target_name", required=True, help="Device name, or path of a .toml.")
@click.option(
    "--engine",
    help="c, tflm, tflite, executorch, qemu; all; a,b: side by side.  [default: by the target]",
)
@click.option(
    "--optimize",
    type=click.Choice(["latency", "ram", "flash"]),
    help="Engine c: what kernels are chosen by.  [default: latency]",
)
@click.option("--passes", "pass_names", help="Engine c: all, none, or a,b,c.  [default: all]")
@click.option("--threads", default="1", help="A number; all, or 1,2,4: side by side.  [default: 1]")
@click.option("--measure-ram", is_flag=True, help="Load the model in its runtime on this host.")
@click.option("--every", help="How often it runs, as 1s: average power.")
@click.option("--battery", help="As 220mAh,3V: how long it lasts; needs --every.")
@click.option("--supply", help="One of the target's power supplies, by name.")
@click.option("--budget", "budget_text", default="", help="ram=64KiB,latency=20ms,flash=1MiB")
@click.option("--graph", "show_graph", is_flag=True, help="Print the operators with their tensors.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    model: Path,
    target_name: str,
    engine: str | None,
    optimize: Optimize | None,
    pass_names: str | None,
    threads: str,
    measure_ram: bool,
    every: str | None,
    battery: str | None,
    supply: str | None,
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
    from edgeshrink.emulation import emulate, emulate_arm64, engines_of, with_energy
    from edgeshrink.errors import ConfigError
    from edgeshrink.graph_reader import read_graph_file

    duty = _duty(every, battery, supply)
    counts = _threads(threads, target)
    of_compiler = {"--optimize": optimize is not None, "--passes": pass_names is not None}
    of_runtimes = {"--threads": counts != (1,), "--measure-ram": measure_ram}
    if is_elf(model):
        given = {"--engine": engine is not None, "--graph": show_graph} | of_runtimes
        _refuse_options(given | of_compiler, f"does not go with the firmware {model}")
        from edgeshrink.emulation import emulate_firmware

        found = emulate_firmware(model, target, budget=budget)
        show(with_energy(found, target, duty), target.title, as_json=as_json)
        return
    graph = None
    if model.suffix == ".pt2":
        fix = f"first: edgeshrink build {model} --calibration FILE.npz --target {target.name}"
        raise ConfigError(str(model), "is a program that is not lowered yet", fix)
    files = {"tflite": model, "executorch": model}
    if model.is_dir():
        artifact = read_artifact(model)
        graph = read_graph_file(artifact.path(MODEL_FILES["tflite"]))
        files["tflite"] = model = artifact.path(MODEL_FILES["tflite"])
        if MODEL_FILES["pte"] in artifact.files:
            files["executorch"] = artifact.path(MODEL_FILES["pte"])
    by_file = "executorch" if model.suffix == ".pte" else "tflite"
    is_mcu = target.kind == "microcontroller"
    default = engines_of(target)[0] if is_mcu and by_file == "tflite" else by_file
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
    readers = {"c": ".tflite", "tflm": ".tflite", "tflite": ".tflite", "executorch": ".pte"}
    wanted = [word.strip() for word in (engine or default).split(",")]
    if wanted == ["all"]:
        wanted = [
            name for name in engines_of(target)
            if files.get(name, model).suffix == readers.get(name)
        ]  # fmt: skip
    profiles = []
    for name in wanted:
        _check_engine(name, target)
        if name != "c":
            _refuse_options(of_compiler, f"does not go with engine {name}")
        if name == "qemu":
            _refuse_options(of_runtimes, "does not go with engine qemu")
            profiles.append(emulate_arm64(model, target))
        elif name == "c":
            _refuse_options(of_runtimes, "does not go with engine c")
            from edgeshrink.firmware import parse_passes, profile_model

            _, found = profile_model(
                model,
                target,
                optimize=optimize or "latency",
                passes=parse_passes(pass_names or "all"),
                budget=budget,
            )
            profiles.append(with_energy(found, target, duty))
        elif name == "tflm":
            _refuse_options(of_runtimes, "does not go with engine tflm")
            from edgeshrink.emulation.interpreter import emulate_interpreter

            found = emulate_interpreter(files["tflite"], target, budget=budget)
            profiles.append(with_energy(found, target, duty))
        else:
            profiles += [
                emulate(
                    files[name], target, engine=name, graph=graph, threads=count, budget=budget,
                    measure_ram=measure_ram, duty=duty,
                )
                for count in counts
            ]  # fmt: skip
    if len(profiles) == 1:
        show(profiles[0], target.title, as_json=as_json)
    elif as_json:
        print_json({"profiles": [profile.to_json() for profile in profiles]})
    else:
        print_side_by_side(profiles, target.title)


def _check_engine(name: str, target: Target) -> None:
    """Raise ConfigError for an engine that there is not, or not on this target."""
    from edgeshrink.emulation import check_engine

    check_engine(name, target)


def _threads(text: str, target: Target) -> tuple[int, ...]:
    """Return the numbers of threads that are asked for."""
    from edgeshrink.emulation import check_threads
    from edgeshrink.errors import ConfigError

    if text.strip() == "all":
        return tuple(range(1, target.cpu.n_cores + 1))
    try:
        counts = tuple(int(word) for word in text.split(","))
    except ValueError as err:
        fix = "give a number, or 1,2,4, or all"
        raise ConfigError("--threads", f"{text!r} is no number", fix) from err
    for count in counts:
        check_threads(count, target)
    return counts


def _duty(every: str | None, battery: str | None, supply: str | None) -> Duty:
    """Return how often the model runs, and from what."""
    from edgeshrink.costs.energy import Duty, parse_battery, parse_period
    from edgeshrink.errors import ConfigError

    if battery is not None and every is None:
        raise ConfigError("--battery", "needs --every", "as in --every 1s")
    return Duty(
        period_ms=None if every is None else parse_period(every),
        battery=None if battery is None else parse_battery(battery),
        supply=supply,
    )


def print_side_by_side(profiles: Sequence[Profile], device: str) -> None:
    """Print a row of main figures for every profile."""
    names = {"latency_ms": "latency", "ram_bytes": "RAM", "flash_bytes": "flash",
             "energy_uj": "energy", "instructions": "instructions"}  # fmt: skip
    there = [n for n in names if any(n in profile.figures for profile in profiles)]
    rows = [["engine", "threads", *(names[n] for n in there), "budget"]]
    for profile in profiles:
        cells = [show_figure(profile.figures[n]) if n in profile.figures else "-" for n in there]
        met = "missed: " + ", ".join(o.what for o in profile.overruns)
        rows.append([profile.engine, str(profile.threads or "-"), *cells,
                     met if profile.overruns else "met"])  # fmt: skip
    print(f"{profiles[0].model_path} on {device}")
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  " + "  ".join(cells).rstrip())


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
    for advice in profile.advice:
        print(f"would help: {advice.text} (saves {format_ms(advice.saves_ms)}, modelled)")
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
          f"{'ms':>9} {'share':>6}  {'bound by':<8}  layer")  # fmt: skip
    for op in ops:
        name = cut(op.name)
        ms = "" if op.latency_ms is None else f"{op.latency_ms:.4f}"
        share = f"{100 * op.latency_ms / total:.1f} %" if op.latency_ms and total else ""
        bound = "unknown" if op.is_unknown else op.bound or ""
        print(f"  {op.index:>3}  {op.kind:<24} {op.macs:>13,} {op.flash_bytes or 0:>10,} "
              f"{op.live_bytes or 0:>9,} {ms:>9} {share:>6}  {bound:<8}  {name}"
              .rstrip())  # fmt: skip


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
