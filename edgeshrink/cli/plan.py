"""`edgeshrink plan [TASK] --target NAME`."""

from __future__ import annotations

import textwrap
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeshrink.cli.options import on_a_task
from edgeshrink.cli.output import print_json, progress, stdout_to_stderr
from edgeshrink.quiet import quiet
from edgeshrink.units import format_bytes, format_ms

if TYPE_CHECKING:
    from edgeshrink.budget import Budget
    from edgeshrink.lowering import Optimize
    from edgeshrink.planning import Candidate, Plan


@click.command("plan")
@on_a_task
@click.option("--out", type=click.Path(path_type=Path), help="Write the chosen recipe (.toml).")
def command(
    task_spec: str,
    target_name: str,
    budget_text: str,
    settings: tuple[str, ...],
    data: Path | None,
    out: Path | None,
    seed: int,
    threads: int,
    optimize: Optimize,
    as_json: bool,
) -> None:
    """Say what it would take to make a model fit a device: nothing is trained or compiled.

    Prints candidates, gentlest first, with predicted figures beside the limits, and the recipe of
    the gentlest that fits. Where nothing can fit, says which lower bound exceeds which limit.
    """
    from edgeshrink.budget import parse_budget
    from edgeshrink.target import load_target

    target = load_target(target_name)
    asked = parse_budget(budget_text)
    from edgeshrink.task_loader import load_task, parse_settings

    with stdout_to_stderr() if as_json else nullcontext(), progress() as report:
        report("loading", 0.0, task_spec)
        task = load_task(task_spec, settings=parse_settings(settings), data=data, seed=seed)
        with quiet():
            from edgeshrink.emulation import check_threads
            from edgeshrink.outlook import plan_task, sensitivity_folder
        report("loading", 1.0, "")
        check_threads(threads, target)
        budget = asked.over(task.budget.over(target.budget))
        found = plan_task(
            task, target, budget, optimize=optimize, threads=threads, seed=seed,
            cache=sensitivity_folder(),
            progress=lambda share, detail: report("planning", share, detail),
        )  # fmt: skip
        if out is not None and found.chosen:
            _write(out, found.chosen[0].recipe.to_toml())
    if as_json:
        print_json(plan_json(found, budget))
    else:
        print_plan(found, budget, task.name, target.title)


def _write(path: Path, text: str) -> None:
    from edgeshrink.errors import EdgeshrinkError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    except OSError as err:
        fault = f"can't be written ({err.strerror or err})"
        raise EdgeshrinkError(str(path), fault, "choose another file with --out") from err


def plan_json(found: Plan, budget: Budget) -> dict[str, object]:
    """Return a plan as plain JSON values."""
    return {
        "target": found.target,
        "budget": {k: v for k, v in vars(budget).items() if v is not None},
        "chosen": found.chosen[0].name if found.chosen else None,
        "candidates": [_candidate_json(c) for c in found.candidates],
        "notes": list(found.notes),
    }


def _candidate_json(c: Candidate) -> dict[str, object]:
    drop: dict[str, object] | None = None
    if c.predicted_drop is not None:
        drop = {"value": c.predicted_drop, "how": "modelled", "validated": False}
    return {
        "name": c.name,
        "kept": dict(c.kept),
        "recipe": c.recipe.to_json(),
        "optimize": c.price.optimize,
        "figures": {name: figure.to_json() for name, figure in c.price.figures.items()},
        "loss": c.loss,
        "predicted_drop": drop,
        "overruns": [vars(o) for o in c.overruns],
        "reasons": list(c.reasons),
    }


def print_plan(found: Plan, budget: Budget, name: str, title: str) -> None:
    """Print the table of a plan, and the recipe that was chosen."""
    print(f"{name} on {title}: predicted, unvalidated; upper ends count against the limits")
    print()
    head = ("flash", "RAM", "latency", "MACs", "drop", "")
    print(f"  {'candidate':<12}" + "".join(f" {h:>22}" for h in head[:3])
          + f" {head[3]:>12} {head[4]:>8}")  # fmt: skip
    print(f"  {'limit':<12}" + "".join(f" {shown:>22}" for shown in _limits(budget)))
    for c in found.candidates:
        cells = "".join(f" {_cell(c, key):>22}" for key in ("flash_bytes", "ram_bytes",
                                                           "latency_ms"))  # fmt: skip
        drop = "-" if c.predicted_drop is None else f"{c.predicted_drop:.3f}"
        fits = "fits" if not c.overruns else "misses " + ", ".join(o.what for o in c.overruns)
        print(f"  {c.name:<12}{cells} {c.price.figures['macs'].value:>12,.0f} {drop:>8}  {fits}")
    print("  (drop: before any recovery, from one group of channels at a time, unvalidated)")
    print()
    for c in found.candidates:
        _print_wrapped(f"{c.name}: {'; '.join(c.reasons)}")
    for note in found.notes:
        _print_wrapped(f"note: {note}")
    print()
    if found.chosen:
        print(f"# {found.chosen[0].name}: the gentlest that fits")
        print(found.chosen[0].recipe.to_toml())
    else:
        print("  no candidate fits, though no bound forbids it: ask for a little more")


def _print_wrapped(text: str) -> None:
    print(textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="    "))


def _limits(budget: Budget) -> tuple[str, str, str]:
    flash, ram, latency = budget.flash_bytes, budget.ram_bytes, budget.latency_ms
    return (
        "-" if flash is None else format_bytes(flash),
        "-" if ram is None else format_bytes(ram),
        "-" if latency is None else format_ms(latency),
    )


def _cell(c: Candidate, key: str) -> str:
    if key not in c.price.figures:
        return "-"
    figure = c.price.figures[key]
    form = format_bytes if figure.unit == "B" else format_ms
    return f"{form(figure.value)} (<= {form(figure.high)})"
