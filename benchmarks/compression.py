"""Compress the example networks by the recipes beside this file, and table what is left of them.

    python benchmarks/compression.py DATA --runs FOLDER > benchmarks/compression.md

DATA is the folder with the examples' data (`cifar10_jpeg.npz`, `fsdd_8khz.npz`). Hours of training:
everything that is done stays in FOLDER, an interrupted run goes on from its last epoch, and `--only
NAME` runs the cases whose name begins so. A float model is trained once, and every case of it
starts from there. Choices (epochs kept, widths, trained or post-training scales) are made on the
validation split; the scores are those of the `.tflite`, in LiteRT, on the whole test split.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from edgeshrink.budget import Budget
from edgeshrink.build import build
from edgeshrink.recipe import read_recipe
from edgeshrink.scoring import score
from edgeshrink.target import load_target
from edgeshrink.task import Task
from edgeshrink.task_loader import load_task
from edgeshrink.training import float_predict, train

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent / "examples"
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
SEEDS = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Float:
    """A float model: the baseline of the cases that start from it."""

    name: str
    task: str
    settings: tuple[tuple[str, str], ...]
    seed: int = 0
    teacher: Float | None = None  # of its recipes that distil; None: the float model itself

    def load(self, data: Path) -> Task:
        folder = str(EXAMPLES / self.task)
        return load_task(folder, data=data, seed=self.seed, settings=dict(self.settings))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A float model and what is made of it."""

    base: Float
    recipe: str

    @property
    def name(self) -> str:
        return f"{self.base.name}/{self.recipe}"


def cases() -> list[Case]:
    """Return all cases, those that the tables need first in front."""
    resnet56 = Float(
        name="resnet56",
        task="cifar10",
        settings=(("model", "resnet56"), ("epochs", "4"), ("precision", "bfloat16")),
    )
    resnet20 = Float(
        name="resnet20",
        task="cifar10",
        settings=(("model", "resnet20"), ("epochs", "24"), ("precision", "bfloat16")),
        teacher=resnet56,
    )
    recipes = ("resnet20-2.5x", "resnet20-2.5x-low-rank", "resnet20-4x", "ptq")
    found = [Case(base=resnet20, recipe=r) for r in recipes]
    keywords = Float(name="keywords", task="keywords", settings=())
    found.append(Case(base=keywords, recipe="ptq"))
    for speaker in SPEAKERS:
        base = Float(
            name=f"keywords-without-{speaker}",
            task="keywords",
            settings=(("split", "speaker"), ("speaker", speaker)),
        )
        for recipe in ("ptq", "keywords-qat", "keywords-qat-kd"):
            found.append(Case(base=base, recipe=recipe))
    for seed in SEEDS:
        base = Float(
            name=f"resnet8-seed{seed}",
            task="cifar10",
            settings=(("model", "resnet8"), ("epochs", "12"), ("precision", "bfloat16")),
            seed=seed,
            teacher=replace(resnet20, teacher=None),
        )
        for recipe in ("ptq", "resnet8-qat", "resnet8-half-kd", "resnet8-half"):
            found.append(Case(base=base, recipe=recipe))
    return found


# ---- running


def run(case: Case, runs: Path, data: Path) -> dict[str, Any]:
    """Return the result of a case; what was found before is not done again."""
    result = runs / case.name / "result.json"
    recipe = HERE / "recipes" / f"{case.recipe}.toml"
    if result.is_file():
        found: dict[str, Any] = json.loads(result.read_text())
        if found["recipe"] == recipe.read_text():
            return found
    task, baseline = trained(case.base, runs, data)
    task = replace(task, training=None)
    if case.base.teacher is not None and 'distill = "soft"' in recipe.read_text():
        task = replace(task, teacher=trained(case.base.teacher, runs, data)[0].model)
    start_s = time.monotonic()
    built = build(
        task,
        load_target("rpi4"),
        recipe=read_recipe(recipe),
        budget=Budget(),
        out=runs / case.name / "artifact",
        seed=case.base.seed,
        progress=printer(case.name),
    )
    steps = [report.to_json() for report in built.steps]
    found = {
        "recipe": recipe.read_text(),
        "float": baseline,
        "scores": dict(built.scores),
        "bytes": (runs / case.name / "artifact" / "model.tflite").stat().st_size,
        "macs": built.profile.figures["macs"].value,
        "steps": [
            {key: step[key] for key in ("step", "note", "macs_before", "macs_after", "score_after")}
            for step in steps
        ],
        "seconds": time.monotonic() - start_s,
    }
    write(result, found)
    return found


def trained(base: Float, runs: Path, data: Path) -> tuple[Task, dict[str, Any]]:
    """Return the task with its trained model, and what its training gave."""
    task = base.load(data)
    weights, facts = runs / base.name / "float.pt", runs / base.name / "float.json"
    if facts.is_file():
        task.model.load_state_dict(torch.load(weights, weights_only=True))
        return task, json.loads(facts.read_text())
    start_s = time.monotonic()
    before = score(task, float_predict(task.model), "validation")
    weights.parent.mkdir(parents=True, exist_ok=True)
    fitted = train(
        task,
        seed=base.seed,
        progress=lambda share, text: printer(base.name)("training", share, text),
        checkpoints=runs / base.name / "float.checkpoints",
    )
    found = {
        "settings": dict(base.settings),
        "seed": base.seed,
        "epochs": fitted.epochs,
        "kept_epoch": fitted.kept_epoch,
        "validation_before": before,
        "validation": fitted.rank,
        "test": score(task, float_predict(task.model), "test"),
        "n_test": sum(len(inputs[0]) for inputs, _ in task.data["test"]),
        "seconds": time.monotonic() - start_s,
    }
    torch.save(task.model.state_dict(), weights)
    write(facts, found)
    return task, found


def write(path: Path, content: dict[str, Any]) -> None:
    """Write JSON that is there as a whole, or not at all."""
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(content, indent=1))
    aside.replace(path)


def printer(name: str) -> Callable[[str, float, str], None]:
    """Return a `progress` that writes a line to stderr where the detail's first words change."""

    def show(stage: str, share: float, detail: str) -> None:
        line = f"{name}: {stage} {detail.split(',')[0]}"
        if line != shown.get(name):
            shown[name] = line
            print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)

    return show


shown: dict[str, str] = {}


# ---- tables


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def points(case: float, baseline: float) -> str:
    return f"{100 * (case - baseline):+.2f}"


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation, in percent; of one value, that."""
    if len(values) < 2:
        return percent(statistics.mean(values))
    deviation = statistics.stdev(values)
    return f"{100 * statistics.mean(values):.2f} ± {100 * deviation:.2f} %"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(found: dict[str, dict[str, Any]]) -> str:
    """Return the markdown of what is there."""
    parts = ["# What compression leaves", HEAD]
    rows = [
        [
            name,
            percent(result["float"]["test"]),
            percent(result["scores"]["tflite"]),
            percent(result["scores"]["pte"]),
            points(result["scores"]["tflite"], result["float"]["test"]),
            f"{macs_before(result) / result['macs']:.2f}",
            f"{result['bytes']:,}",
            str(result["float"]["epochs"]),
            str(epochs_of(result)),
            f"{result['seconds'] / 60:.0f}",
        ]
        for name, result in found.items()
    ]
    header = ("float model / recipe", "float", ".tflite", ".pte", "points", "MACs, times fewer",
              ".tflite bytes", "epochs of float", "epochs of recipe", "minutes")  # fmt: skip
    parts += ["## Every case", table(header, rows)]
    parts += ["## ResNet-8: mean and spread over seeds", by_recipe(found, "resnet8-seed")]
    parts += [
        "## Spoken digits: the speaker was never heard in training; mean and spread over speakers",
        by_recipe(found, "keywords-without-"),
    ]
    parts.append("## What the steps said")
    for name, result in found.items():
        notes = [f"- {s['step']['step']}: {s['note']}" for s in result["steps"]]
        if notes:
            parts.append("\n".join([f"`{name}`", "", *notes]))
    return "\n\n".join(parts) + "\n"


HEAD = """Written by `python benchmarks/compression.py DATA --runs FOLDER`; the recipes are in
`benchmarks/recipes/`. Scores are shares of the whole test split that are recognised: by the float
model, by the `.tflite` in LiteRT and by the `.pte` in ExecuTorch. CIFAR-10 is a JPEG copy here:
compare within this page only. ResNet-20's checkpoint was trained on all 50,000 training images,
those that are held out here among them, so its validation scores are optimistic; no training has
seen a test image."""


def by_recipe(found: dict[str, dict[str, Any]], prefix: str) -> str:
    """Return the table of all models whose names begin with `prefix`, a recipe a row."""
    chosen = {name: r for name, r in found.items() if name.startswith(prefix)}
    models = list(dict.fromkeys(name.split("/")[0] for name in chosen))
    recipes = list(dict.fromkeys(name.split("/")[1] for name in chosen))
    floats = [next(r for n, r in chosen.items() if n.startswith(f"{m}/")) for m in models]
    baseline = [r["float"]["test"] for r in floats]
    rows = [["float", *map(percent, baseline), spread(baseline) if models else "", "", "", ""]]
    for recipe in recipes:
        runs = [chosen.get(f"{model}/{recipe}") for model in models]
        done = [(r, b) for r, b in zip(runs, baseline, strict=True) if r is not None]
        scores = [r["scores"]["tflite"] for r, _ in done]
        drops = [100 * (r["scores"]["tflite"] - b) for r, b in done]
        rows.append(
            [
                recipe,
                *("not run" if r is None else percent(r["scores"]["tflite"]) for r in runs),
                spread(scores),
                f"{statistics.mean(drops):+.2f} ({min(drops):+.2f} to {max(drops):+.2f})",
                f"{macs_before(done[0][0]) / done[0][0]['macs']:.2f}",
                str(epochs_of(done[0][0])),
            ]
        )
    names = [model.removeprefix(prefix) for model in models]
    header = ["", *names, "mean ± deviation", "points to float", "MACs, times fewer", "epochs"]
    return table(header, rows)


def macs_before(result: dict[str, Any]) -> float:
    return float(result["steps"][0]["macs_before"] if result["steps"] else result["macs"])


def epochs_of(result: dict[str, Any]) -> int:
    return sum(int(step["step"].get("epochs", 0)) for step in result["steps"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--only", default="", help="cases whose names begin so")
    parser.add_argument("--table", action="store_true", help="of what is there; run nothing")
    options = parser.parse_args()
    found = {}
    for case in cases():
        is_done = (options.runs / case.name / "result.json").is_file()
        if is_done or (case.name.startswith(options.only) and not options.table):
            found[case.name] = run(case, options.runs, options.data)
    print(page(found), end="")


if __name__ == "__main__":
    main()
