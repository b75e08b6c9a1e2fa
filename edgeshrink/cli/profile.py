"""`edgeshrink profile MODEL --target NAME`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from edgeshrink.cli.output import print_json
from edgeshrink.cli.profile_tables import graph_json, print_graph, print_side_by_side, show

if TYPE_CHECKING:
    from edgeshrink.budget import Budget
    from edgeshrink.costs.energy import Duty
    from edgeshrink.graph import Graph
    from edgeshrink.lowering import Optimize
    from edgeshrink.profile import Profile
    from edgeshrink.target import Target

# Engine -> what it reads.
READS: Final = {"c": ".tflite", "tflm": ".tflite", "tflite": ".tflite", "executorch": ".pte"}


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """What was asked for on the command line, engine and threads apart."""

    model: Path
    pte: Path | None  # of an artifact that has one beside its `model`
    graph: Graph | None  # of an artifact
    target: Target
    budget: Budget
    duty: Duty
    measure_ram: bool
    optimize: Optimize
    pass_names: str


@click.command("profile")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", "target_name", required=True, help="Device name, or path of a .toml.")
@click.option(
    "--engine",
    help="c, tflm, tflite, executorch or qemu; a,b or all: side by side.  [default: by the target]",
)
@click.option("--threads", default="1", help="A number; 1,2,4 or all: side by side.  [default: 1]")
@click.option("--ops", "all_ops", is_flag=True, help="Print every operator, in order.")
@click.option("--every", help="How often it runs, like 1s or 10min: average power.")
@click.option("--battery", help="Like 220mAh,3V: how long it lasts. Needs --every.")
@click.option("--supply", help="One of the target's power supplies, by its name.")
@click.option("--measure-ram", is_flag=True, help="Load the model in its runtime on this host.")
@click.option(
    "--optimize",
    type=click.Choice(["latency", "ram", "flash"]),
    help="Engine c: what kernels are chosen by.  [default: latency]",
)
@click.option("--passes", "pass_names", help="Engine c: all, none, or a,b,c.  [default: all]")
@click.option("--budget", "budget_text", default="", help="ram=64KiB,latency=20ms,flash=1MiB")
@click.option("--graph", "show_graph", is_flag=True, help="Print the operators with their tensors.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    model: Path,
    target_name: str,
    engine: str | None,
    threads: str,
    all_ops: bool,
    every: str | None,
    battery: str | None,
    supply: str | None,
    measure_ram: bool,
    optimize: Optimize | None,
    pass_names: str | None,
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
    from edgeshrink.errors import ConfigError
    from edgeshrink.graph_reader import read_graph_file

    duty = _duty(every, battery, supply, target)
    counts = _threads(threads, target)
    of_compiler = {"--optimize": optimize is not None, "--passes": pass_names is not None}
    of_runtimes = {"--threads": counts != (1,), "--measure-ram": measure_ram}
    of_energy = {"--every": every, "--battery": battery, "--supply": supply}
    if is_elf(model):
        given = {"--engine": engine is not None, "--graph": show_graph} | of_runtimes
        _refuse_options(given | of_compiler, f"does not go with the firmware {model}")
        from edgeshrink.emulation import emulate_firmware, with_energy

        found = with_energy(emulate_firmware(model, target, budget=budget), target, duty)
        show(found, target.title, as_json=as_json, all_ops=all_ops)
        return
    if model.suffix == ".pt2":
        fix = f"first: edgeshrink build {model} --calibration FILE.npz --target {target.name}"
        raise ConfigError(str(model), "is a program that is not lowered yet", fix)
    graph, pte = None, None
    if model.is_dir():
        artifact = read_artifact(model)
        graph = read_graph_file(artifact.path(MODEL_FILES["tflite"]))
        if MODEL_FILES["pte"] in artifact.files:
            pte = artifact.path(MODEL_FILES["pte"])
        model = artifact.path(MODEL_FILES["tflite"])
    if show_graph:
        _show_graph(graph or read_graph_file(model), pass_names, as_json=as_json)
        return
    wanted = _Wanted(
        model=model, pte=pte, graph=graph, target=target, budget=budget, duty=duty,
        measure_ram=measure_ram, optimize=optimize or "latency", pass_names=pass_names or "all",
    )  # fmt: skip
    engines = _engines(engine, wanted)
    if "c" not in engines:
        _refuse_options(of_compiler, f"does not go with engine {engines[0]}")
    if not set(engines) & {"tflite", "executorch"}:
        _refuse_options(of_runtimes, f"does not go with engine {engines[0]}")
    if "qemu" in engines:
        asked = {option: text is not None for option, text in of_energy.items()}
        _refuse_options(asked | of_runtimes, "does not go with engine qemu")
    if len(engines) == 1 and len(counts) == 1:
        found = _profile(engines[0], counts[0], wanted)
        show(found, target.title, as_json=as_json, all_ops=all_ops)
        return
    _compare(engines, counts, wanted, as_json=as_json)


def _engines(text: str | None, wanted: _Wanted) -> tuple[str, ...]:
    """Return the engines that are asked for, each of which runs on the target."""
    from edgeshrink.emulation import check_engine, engines_of
    from edgeshrink.errors import ConfigError

    there = engines_of(wanted.target)
    if text is None:
        if wanted.model.suffix == ".pte":
            text = "executorch"
        elif not there:
            raise ConfigError(f"target {wanted.target.name}", "has no engine to profile with",
                              "add one under [[runtimes]]")  # fmt: skip
        else:
            text = next((name for name in there if READS[name] == ".tflite"), there[0])
    if text.strip() == "all":
        return there
    names = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    for name in names:
        check_engine(name, wanted.target)
    return names


def _profile(engine: str, threads: int, wanted: _Wanted) -> Profile:
    """Return the profile of one engine."""
    from edgeshrink.emulation import (
        advised_firmware,
        emulate,
        emulate_arm64,
        emulate_interpreter,
        with_energy,
    )
    from edgeshrink.errors import ConfigError

    target, model = wanted.target, wanted.model
    if engine == "executorch" and wanted.pte is not None:
        model = wanted.pte
    if engine in READS and (model.suffix == ".pte") != (READS[engine] == ".pte"):
        what = f"reads a {READS[engine]}, {model.name} is none"
        raise ConfigError(f"--engine {engine}", what, f"give a {READS[engine]}, or an artifact")
    if engine == "qemu":
        return emulate_arm64(model, target)
    if engine == "tflm":
        found = emulate_interpreter(model, target, budget=wanted.budget)
    elif engine == "c":
        from edgeshrink.firmware import parse_passes, profile_model

        firmware, found = profile_model(
            model, target, optimize=wanted.optimize, passes=parse_passes(wanted.pass_names),
            budget=wanted.budget,
        )  # fmt: skip
        found = advised_firmware(found, firmware.lowered.graph, target, wanted.optimize)
    else:
        return emulate(
            model, target, engine=engine, graph=wanted.graph, threads=threads,
            budget=wanted.budget, measure_ram=wanted.measure_ram, duty=wanted.duty,
        )  # fmt: skip
    return with_energy(found, target, wanted.duty)


def _compare(
    engines: tuple[str, ...], counts: tuple[int, ...], wanted: _Wanted, *, as_json: bool
) -> None:
    """Print several engines or numbers of threads side by side; those that can't, with a reason.

    Raises:
        EdgeshrinkError: none of them can: what stands in the way of the first.
    """
    from edgeshrink.errors import EdgeshrinkError

    profiles, refused = [], []
    for engine in engines:
        for count in counts if engine in ("tflite", "executorch") else (1,):
            try:
                profiles.append(_profile(engine, count, wanted))
            except EdgeshrinkError as err:
                refused.append((engine, err))
                break
    if not profiles:
        raise refused[0][1]
    if as_json:
        print_json({
            "target": wanted.target.name,
            "profiles": [profile.to_json() for profile in profiles],
            "refused": [{"engine": name, "error": str(err), "exit_code": err.exit_code}
                        for name, err in refused],
        })  # fmt: skip
        return
    reasons = [(name, str(err)) for name, err in refused]
    print_side_by_side(profiles, reasons, wanted.target.title)


def _threads(text: str, target: Target) -> tuple[int, ...]:
    """Return the numbers of threads that are asked for."""
    from edgeshrink.emulation import check_threads
    from edgeshrink.errors import ConfigError

    if text.strip() == "all":
        return tuple(range(1, target.cpu.n_cores + 1))
    try:
        counts = tuple(dict.fromkeys(int(word) for word in text.split(",")))
    except ValueError as err:
        fix = "give a number, or 1,2,4, or all"
        raise ConfigError("--threads", f"{text!r} is no number", fix) from err
    for count in counts:
        check_threads(count, target)
    return counts


def _duty(every: str | None, battery: str | None, supply: str | None, target: Target) -> Duty:
    """Return how often the model runs, and from what."""
    from edgeshrink.costs.energy import Duty, parse_battery, parse_period, power_use
    from edgeshrink.errors import ConfigError

    if battery is not None and every is None:
        raise ConfigError("--battery", "needs --every", "say how often it runs, like --every 1s")
    duty = Duty(
        period_ms=None if every is None else parse_period(every),
        battery=None if battery is None else parse_battery(battery),
        supply=supply,
    )
    power_use(target, duty)  # refuses a supply that there is not, before anything is run
    return duty


def _show_graph(graph: Graph, pass_names: str | None, *, as_json: bool) -> None:
    if pass_names is not None:
        from edgeshrink.firmware import parse_passes
        from edgeshrink.passes import run_passes

        graph, _ = run_passes(graph, parse_passes(pass_names))
    if as_json:
        print_json(graph_json(graph))
    else:
        print_graph(graph)


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
