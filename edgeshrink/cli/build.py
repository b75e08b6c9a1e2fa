"""`edgeshrink build [TASK] --target NAME`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeshrink.cli.options import on_a_task
from edgeshrink.cli.output import print_json, progress, show_figure, stdout_to_stderr
from edgeshrink.quiet import quiet
from edgeshrink.recipe import name_of
from edgeshrink.units import format_bytes, format_score

if TYPE_CHECKING:
    from edgeshrink.build import Built
    from edgeshrink.compression import StepReport
    from edgeshrink.exporting import Agreement
    from edgeshrink.lowering import Optimize
    from edgeshrink.task import Task


@click.command("build")
@on_a_task
@click.option("--recipe", "recipe_path", type=click.Path(path_type=Path), help="Recipe file.")
@click.option("--calibration", type=click.Path(path_type=Path), help="Samples (.npz) for a .pt2.")
@click.option("--out", type=click.Path(path_type=Path), help="Default: build/<task>-<target>.")
@click.option(
    "--trials", type=click.IntRange(min=1), help="Search: try so many recipes, build the best."
)
@click.option("--jobs", type=click.IntRange(min=1), help="Trials at a time, a process each.")
@click.option(
    "--cluster", metavar="ADDRESS", help="Run trials on a Dask cluster (tcp://HOST:8786)."
)
def command(
    task_spec: str,
    target_name: str,
    recipe_path: Path | None,
    budget_text: str,
    settings: tuple[str, ...],
    data: Path | None,
    calibration: Path | None,
    out: Path | None,
    trials: int | None,
    jobs: int | None,
    cluster: str | None,
    seed: int,
    threads: int,
    optimize: Optimize,
    as_json: bool,
) -> None:
    """Compress a model until it fits a device, and prove it.

    TASK is a folder with edgeshrink.toml, file.py:function, or an exported program (.pt2, with
    --calibration); left out, the current folder.

    A recipe is TOML: [[steps]] tables in the order in which they are done, each with step = a word
    and the step's numbers. The words: sparsify, prune, factorize, cluster, finetune, quantize, qat,
    temperature; quantize or qat ends it. Without a recipe the model is quantized, and where that
    does not fit, pruned as far as it must be. A build that was interrupted while it trained goes on
    where it stopped when it is started again.

    With --trials a search tries recipes: which channels go, how long and from what the rest learns,
    how it is quantized. It compares them on the validation split and by predicted figures, and
    builds the best that fits. What it finds stays in <out>.trials: it goes on from there.
    """
    from edgeshrink.budget import parse_budget
    from edgeshrink.errors import ConfigError
    from edgeshrink.recipe import read_recipe
    from edgeshrink.target import load_target

    # Nothing heavy is imported before the target and the options are known to be good.
    target = load_target(target_name)
    asked = parse_budget(budget_text)
    recipe = None if recipe_path is None else read_recipe(recipe_path)

    if calibration is not None and Path(task_spec).suffix != ".pt2":
        fix = "leave it out: a task brings its own calibration split"
        raise ConfigError("--calibration", "has a meaning for a .pt2 only", fix)

    _check_search(trials, jobs, cluster, recipe_path, task_spec)
    from edgeshrink.task_loader import load_task, parse_settings

    # What the task's own code prints must not end up in the JSON document.
    with stdout_to_stderr() if as_json else nullcontext(), progress() as report:
        report("loading", 0.0, task_spec)
        values, place = parse_settings(settings), calibration or data
        task = load_task(task_spec, settings=values, data=place, seed=seed)
        with quiet():  # what PyTorch says while it is imported
            from edgeshrink.outlook import build_to_fit, sensitivity_folder

        report("loading", 1.0, "")
        budget = asked.over(task.budget.over(target.budget))
        folder = out or Path("build") / f"{task.name}-{target.name}"
        if trials is None:
            built = build_to_fit(
                task, target, recipe=recipe, budget=budget, out=folder, seed=seed, threads=threads,
                optimize=optimize, cache=sensitivity_folder(), progress=report,
            )  # fmt: skip
        else:
            with quiet():
                from edgeshrink.trials import TaskPlace, search_and_build

            source = TaskPlace(spec=task_spec, settings=values, data=place, seed=seed)
            built = search_and_build(
                source, task, target, budget=budget, out=folder, n_trials=trials, jobs=jobs or 1,
                cluster=cluster or "", seed=seed, threads=threads, optimize=optimize,
                cache=sensitivity_folder(), progress=report,
            )  # fmt: skip
    if as_json:
        print_json(built_json(built, task))
    else:
        print_built(built, task, target.title)


def _check_search(
    trials: int | None,
    jobs: int | None,
    cluster: str | None,
    recipe_path: Path | None,
    task_spec: str,
) -> None:
    """Raise for options of a search that contradict each other, and for tools that it lacks."""
    from importlib.util import find_spec

    from edgeshrink.errors import ConfigError, ToolchainError

    if trials is None:
        for name, value in (("--jobs", jobs), ("--cluster", cluster)):
            if value is not None:
                raise ConfigError(name, "says where trials run, and there are none", "add --trials")
        return
    if recipe_path is not None:
        fix = "leave --recipe out to search, or --trials to build it"
        raise ConfigError("--trials", "searches for a recipe, and one is given", fix)
    if jobs is not None and cluster is not None:
        raise ConfigError("--jobs", "and --cluster say where trials run", "give one of them")
    if Path(task_spec).suffix == ".pt2":
        fix = "give a task (a Python function) in place of the .pt2, or leave --trials out"
        raise ConfigError("--trials", "an exported program has nothing to choose", fix)
    if find_spec("optuna") is None:
        install = "python -m pip install 'edgeshrink[build]'"
        raise ToolchainError("--trials", "needs Optuna, which is not installed", install)


def built_json(built: Built, task: Task) -> dict[str, object]:
    """Return what a build found as plain JSON values."""
    return {
        "artifact": str(built.artifact.folder),
        "manifest": built.artifact.to_json(),
        "metric": {"name": task.metric.name, "direction": task.metric.direction},
        "scores": dict(built.scores),
        "drop": built.drop,
        "agreements": [vars(a) for a in built.agreements],
        "steps": [report.to_json() for report in built.steps],
        "profile": built.profile.to_json(),
        "budget": {
            "met": not built.overruns,
            "unchecked": list(built.unchecked),
            "limits": {k: v for k, v in vars(built.budget).items() if v is not None},
        },
        "seconds": {k: round(v, 2) for k, v in built.seconds.items()},
    }


def show_agreement(found: Agreement) -> str:
    """Say in one line how far two engines lie apart, and what they may."""
    pair = f"{found.engine} and {found.reference}"
    if not found.largest:
        return f"{pair}: {found.n_values:,} values, all equal"
    return (
        f"{pair}: largest difference {found.largest:.3g} {found.unit} (limit {found.limit:.3g}), "
        f"rms {found.rms:.2g} (limit {found.rms_limit:.2g}), "
        f"{100 * found.differing:.2f} % of {found.n_values:,} values differ"
    )


def show_quantization(agreements: Sequence[Agreement]) -> str:
    """Say in one line what quantization did to the outputs; nothing where it did not happen."""
    for found in agreements:
        if found.quantization_largest is not None:
            largest, rms = found.quantization_largest, found.quantization_rms
            return f"quantization itself: largest error {largest:.3g} {found.unit}, rms {rms:.2g}"
    return ""


def print_steps(reports: Sequence[StepReport], metric: str) -> None:
    """Print what each step of a recipe did; scores are on the validation split."""

    def row(name: str, figures: tuple[int, int, int], score: float | None, seconds: str) -> None:
        columns = "".join(f" {figure:>13,}" for figure in figures)
        shown = "-" if score is None else format_score(score)
        print(f"  {name:<14}{columns} {shown:>12} {seconds:>9}".rstrip())

    print(
        f"  {'step':<14} {'parameters':>13} {'MACs':>13} {'bytes':>13} {metric:>12} {'seconds':>9}"
    )
    first = reports[0]
    figures = (first.parameters_before, first.macs_before, first.n_bytes_before)
    row("before", figures, first.score_before, "")
    for r in reports:
        figures = (r.parameters_after, r.macs_after, r.n_bytes_after)
        row(name_of(r.step), figures, r.score_after, f"{r.seconds:.1f}")
    print("  (bytes of weights as they are stored; scores on the validation split)")
    for r in reports:
        text = f"{name_of(r.step)}: {r.note}"
        print(textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="    "))


def print_built(built: Built, task: Task, title: str) -> None:
    """Print the table of a build."""
    artifact, profile, metric = built.artifact, built.profile, task.metric
    print(f"{artifact.name} on {title}: {artifact.folder}")
    print()
    print(f"  {'':<14} {metric.name:>12}  bytes")
    if "float" in built.scores:
        print(f"  {'float model':<14} {format_score(built.scores['float']):>12}")
    if "teacher" in built.scores:
        print(f"  {'teacher':<14} {format_score(built.scores['teacher']):>12}")
    for key, file in (("tflite", "model.tflite"), ("pte", "model.pte")):
        if file in artifact.files:
            value = format_score(built.scores[key]) if key in built.scores else "-"
            size = artifact.files[file].n_bytes
            print(f"  {file:<14} {value:>12}  {size:,} ({format_bytes(size)})")
    if "c" in built.scores:
        size = round(profile.figures["flash_bytes"].value)
        value = format_score(built.scores["c"])
        print(f"  {'firmware':<14} {value:>12}  {size:,} ({format_bytes(size)})")
    if built.steps:
        print()
        print_steps(built.steps, metric.name)
    print()
    limits = {
        "flash_bytes": built.budget.flash_bytes,
        "ram_bytes": built.budget.ram_bytes,
        "latency_ms": built.budget.latency_ms,
    }
    for name, label in (("flash_bytes", "flash"), ("ram_bytes", "RAM"), ("latency_ms", "latency"),
                        ("macs", "MACs")):  # fmt: skip
        if name not in profile.figures:
            continue
        figure, limit = profile.figures[name], limits.get(name)
        verdict = ""
        if limit is not None:
            shown = format_bytes(limit) if figure.unit == "B" else f"{limit:g} ms"
            verdict = f"  limit {shown}: {'met' if figure.high <= limit else 'NOT MET'}"
        print(f"  {label:<14} {show_figure(figure)}{verdict}")
        if figure.note:
            print(f"  {'':<14} {figure.note}")
    if built.drop is not None:
        limit_drop = built.budget.accuracy_drop
        verdict = "" if limit_drop is None else f"  limit {limit_drop:g}: met"
        print(f"  {'drop':<14} {format_score(built.drop)} (measured, test split){verdict}")
    print()
    if quantization := show_quantization(built.agreements):
        print(f"  {quantization}")
    for a in built.agreements:
        print(f"  {show_agreement(a)}")
        if not a.within_limit:
            print(
                f"  note: {artifact.target} does not run {a.engine}, so its difference is no error"
            )
    for note in profile.notes:
        print(f"  note: {note}")
    if built.unchecked:
        print(f"  note: no figure for {', '.join(built.unchecked)}: that limit is not checked")
    met = "budget met" + (", as far as it was checked" if built.unchecked else "")
    times = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in built.seconds.items())
    print(f"\n  {met}; {times}")
