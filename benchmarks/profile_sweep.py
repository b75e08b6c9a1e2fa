"""Profile every model on every target with every engine, as a person would on the command line.

    python benchmarks/profile_sweep.py MODEL.tflite ... > benchmarks/profile_sweep.md

Each combination must either succeed, with `how`, `low` and `high` on every figure, or end with the
exit code of its class and one line that says why. Exit code 1 if one does neither.

Under qemu the same arm64 program runs whatever the board, for a minute or so: every file runs for
one board, and every board runs one file. Refusals are taken for all.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeshrink.cli import main as edgeshrink
from edgeshrink.target import list_targets

ENGINES = ("tflite", "executorch", "c", "tflm", "qemu")
# What may stand in the way of a combination, by exit code.
CLASSES = {2: "the engine is not for this target or file", 3: "the model has no place there",
           5: "a tool is not prepared"}  # fmt: skip
HOW = {"measured", "emulated", "modelled"}


# Of these a file that ran for one board is left out for boards that ran another file.
SLOW = {"qemu"}


@dataclass(frozen=True, kw_only=True)
class Result:
    model: str
    target: str
    engine: str
    code: int
    said: str
    faults: tuple[str, ...]
    seconds: float


def profile(model: Path, target: str, engine: str) -> Result:
    """Run one command in this process."""
    out, err = io.StringIO(), io.StringIO()
    command = ["profile", str(model), "--target", target, "--engine", engine, "--json"]
    start = time.monotonic()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            edgeshrink(command)
        except SystemExit as left:
            code = int(left.code or 0)
    seconds = time.monotonic() - start
    said = err.getvalue().strip()
    faults = faults_of(out.getvalue()) if code == 0 else faults_of_refusal(code, said)
    return Result(
        model=model.name, target=target, engine=engine, code=code, said=said, faults=faults,
        seconds=seconds,
    )  # fmt: skip


def has_run(results: Sequence[Result], model: str, target: str, engine: str) -> bool:
    """Return whether the engine ran this file for some board, and this board some file."""
    ran = [r for r in results if r.engine == engine and r.code == 0]
    return any(r.model == model for r in ran) and any(r.target == target for r in ran)


def faults_of(text: str) -> tuple[str, ...]:
    """Return what is wrong with the JSON of a profile."""
    found: dict[str, Any] = json.loads(text)
    faults = [] if found["figures"] else ["no figures"]
    for name, figure in found["figures"].items():
        if figure.keys() < {"value", "unit", "how", "low", "high"}:
            faults.append(f"{name} lacks a key")
            continue
        if figure["how"] not in HOW:
            faults.append(f"{name} is {figure['how']}")
        if not figure["low"] <= figure["value"] <= figure["high"]:
            faults.append(f"{name} lies outside its band")
        is_banded = figure["low"] < figure["high"]
        if figure["how"] == "modelled" and is_banded and "validated" not in figure:
            faults.append(f"{name} does not say whether it is validated")
        timed = figure["unit"] in ("ms", "cycles", "uJ") and figure["how"] == "modelled"
        if timed and not is_banded:
            faults.append(f"{name} has no band")
    if found["engine"] != "qemu" and "latency_ms" not in found["figures"]:
        faults.append("no latency")
    return tuple(faults)


def faults_of_refusal(code: int, said: str) -> tuple[str, ...]:
    """Return what is wrong with a refusal: its code, or that it does not say why."""
    faults = [] if code in CLASSES else [f"exit code {code}"]
    if not said.startswith("error: ") or "\n" in said or "; " not in said:
        faults.append(f"says {said!r}")
    return tuple(faults)


def reason(result: Result) -> str:
    """Return why a combination is refused, without what differs between them."""
    said = result.said.removeprefix("error: ").split("; ")[0]
    head, _, rest = said.partition(": ")
    if result.model in head or head.startswith(("main", result.model)):
        said = rest
    if " (operator " in said:  # main: CONV_2D (operator 0): computes in float32, rpi4 allows int8
        said = said.rpartition("): ")[2]
    return said.replace(result.model, "the file").replace(result.target, "TARGET")


def report(results: Sequence[Result]) -> str:
    targets = list(dict.fromkeys(r.target for r in results))
    models = list(dict.fromkeys(r.model for r in results))
    lines = [
        "# Every model, target and engine\n",
        "`python benchmarks/profile_sweep.py MODEL.tflite ...` writes this page: "
        f"{len(results)} combinations of {len(models)} models, {len(targets)} targets and "
        f"{len(ENGINES)} engines, each through the command line. "
        f"{sum(r.code == 0 for r in results)} succeed, with `how`, `low` and `high` on every "
        f"figure; {sum(r.code != 0 for r in results)} are refused with the exit code of their "
        f"class and a reason; {sum(bool(r.faults) for r in results)} do neither.\n",
        "A cell counts models: profiled, and refused by exit code (2: not for this target or "
        "file; 3: the model has no place there; 5: a tool is not prepared). Under qemu the same "
        "program runs whatever the board: every file runs for one board, every board one file.\n",
        "| target | " + " | ".join(ENGINES) + " |",
        "|---" * (len(ENGINES) + 1) + "|",
    ]
    for target in targets:
        cells = []
        for engine in ENGINES:
            codes = Counter(r.code for r in results if (r.target, r.engine) == (target, engine))
            parts = [f"**{codes.pop(0)}**"] if codes[0] else []
            codes.pop(0, None)
            parts += [f"{count} ({code})" for code, count in sorted(codes.items())]
            cells.append(", ".join(parts))
        lines.append(f"| {target} | " + " | ".join(cells) + " |")
    reasons = Counter((r.engine, r.code, reason(r)) for r in results if r.code)
    lines += ["\n## Why combinations are refused\n", "| engine | code | times | reason |",
              "|---|---|---|---|"]  # fmt: skip
    lines += [f"| {engine} | {code} | {count} | {why} |"
              for (engine, code, why), count in sorted(reasons.items())]  # fmt: skip
    faulty = [r for r in results if r.faults]
    if faulty:
        lines.append("\n## Neither\n")
        lines += [f"- {r.model}, {r.target}, {r.engine}: {'; '.join(r.faults)}" for r in faulty]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--targets", default="", help="a,b; left out, all")
    parser.add_argument("--engines", default=",".join(ENGINES), help="a,b; left out, all")
    options = parser.parse_args(arguments)
    targets = options.targets.split(",") if options.targets else [t.name for t in list_targets()]
    results: list[Result] = []
    for model in options.models:
        for target in targets:
            for engine in options.engines.split(","):
                if engine in SLOW and has_run(results, model.name, target, engine):
                    continue
                results.append(profile(model, target, engine))
                if results[-1].faults or results[-1].seconds > 20:
                    print(results[-1], file=sys.stderr)
    sys.stdout.write(report(results))
    raise SystemExit(any(r.faults for r in results))


if __name__ == "__main__":
    main()
