"""Fit the RAM of models in LiteRT and ExecuTorch to what the runtimes hold on this host.

    python benchmarks/runtime_memory.py FILE ... > benchmarks/runtime_memory.md

FILE is a `.tflite`, or a `.pte` with the `.tflite` of the same program beside it. The rates go to
`edgeshrink/costs/data/runtime_memory.json`, the tables to standard output. The fit is a relative
least squares without negative rates; every model is also predicted from the others.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from edgeshrink.costs import runtime_memory
from edgeshrink.costs.runtime_memory import TERMS, memory_terms
from edgeshrink.graph_reader import read_graph
from edgeshrink.runtimes import HostMemory, open_model, read_pte

RUNTIMES = {".tflite": "litert", ".pte": "executorch"}


@dataclass(frozen=True, kw_only=True)
class Row:
    name: str
    memory: HostMemory
    terms: dict[str, float]  # of TERMS
    without_graph: dict[str, float]  # what a .pte says by itself


def measure(path: Path) -> Row:
    data = path.read_bytes()
    graph = read_graph(path.with_suffix(".tflite").read_bytes(), name=str(path))
    with open_model(data, RUNTIMES[path.suffix], name=str(path)) as runner:
        memory = runner.memory()
    alone = {"weights": float(len(data)), "arena": 0.0}
    if path.suffix == ".pte":
        info = read_pte(data)
        alone = {
            "weights": float(sum(info.segment_bytes)), "arena": float(sum(info.planned_arena_bytes))
        }  # fmt: skip
    return Row(name=path.name, memory=memory, terms=memory_terms(graph), without_graph=alone)


def fit(
    rows: Sequence[dict[str, float]], heaps: npt.NDArray[np.float64], names: Sequence[str]
) -> tuple[dict[str, float], npt.NDArray[np.float64]]:
    """Return the rates, and each row's relative error when it is left out."""
    terms = np.array([[row[name] for name in names] + [1.0] for row in rows])
    scaled = terms / heaps[:, None]
    rates, _ = nnls(scaled, np.ones(len(heaps)))
    errors = []
    for index in range(len(heaps)):
        others = np.arange(len(heaps)) != index
        left_out, _ = nnls(scaled[others], np.ones(len(heaps) - 1))
        errors.append(float(terms[index] @ left_out / heaps[index] - 1))
    return dict(zip((*names, "fixed"), map(float, rates), strict=True)), np.array(errors)


def quantile_90(errors: npt.NDArray[np.float64]) -> float:
    ranked = np.sort(np.abs(errors))
    return float(ranked[min(len(ranked), int(np.ceil((len(ranked) + 1) * 0.9))) - 1])


def study(rows: Sequence[Row]) -> tuple[dict[str, Any], str]:
    heaps = np.array([float(row.memory.heap_bytes) for row in rows])
    libraries = np.array([float(row.memory.runtime_bytes) for row in rows])
    rates, errors = fit([row.terms for row in rows], heaps, TERMS)
    alone, alone_errors = fit([row.without_graph for row in rows], heaps, ("weights", "arena"))
    shares = [row.memory.model_resident_bytes / row.memory.model_file_bytes for row in rows
              if row.memory.model_file_bytes > 30_000]  # fmt: skip
    facts = {
        "rows": len(rows),
        "host": platform.machine(),
        "heap": rates,
        "heap_error": quantile_90(errors),
        "heap_without_graph": alone,
        "heap_without_graph_error": quantile_90(alone_errors),
        "file_share": float(np.median(shares)) if shares else 1.0,
        "libraries_bytes": float(np.mean(libraries)),
        "libraries_error": 0.03,  # what resident pages repeat to
    }
    lines = ["| model | heap B | predicted without it, error | libraries B |", "|---|---|---|---|"]
    lines += [
        f"| {row.name} | {row.memory.heap_bytes:,} | {error:+.1%} | {row.memory.runtime_bytes:,} |"
        for row, error in zip(rows, errors, strict=True)
    ]
    head = ", ".join(f"{name} {rate:.4g}" for name, rate in rates.items())
    text = f"Rates: {head} B. Mean error of the heap {np.mean(np.abs(errors)):.1%}.\n\n"
    return facts, text + "\n".join(lines) + "\n"


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(child) for key, child in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    paths = parser.parse_args(arguments).files
    head = "# RAM of models in runtimes, from their files\n"
    sys.stdout.write(f"{head}\n`python benchmarks/runtime_memory.py FILE ...` writes this page.\n")
    data: dict[str, Any] = {"written_by": "benchmarks/runtime_memory.py"}
    for suffix, runtime in RUNTIMES.items():
        rows = [measure(path) for path in sorted(paths) if path.suffix == suffix]
        if rows:
            data[runtime], text = study(rows)
            sys.stdout.write(f"\n## {runtime}\n\n{text}")
    runtime_memory.DATA.write_text(json.dumps(rounded(data), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
