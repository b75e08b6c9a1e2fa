"""Fit the latency model of application processors to published rows, and cross-validate it.

    python benchmarks/fit_application_latency.py ANCHORS > benchmarks/fit_application_latency.md

ANCHORS is a folder with `cortexa.csv`, `ncnn_layers.csv` and `mlperf_tiny.csv`. The rates and
bands go to `edgeshrink/costs/data/application_latency.json`, the tables to standard output, and
plots of every board to `fit_application_latency.svg`.
`application_rows.py` reads the rows, `application_fit.py` says what is fitted and how.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the matrices are small: threads cost time

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from application_fit import CENTRES, Problem
from application_plot import Point, draw
from application_rows import (
    DOT,
    DTYPES,
    Net,
    Row,
    Scaling,
    mobilenet_v1,
    read_csv,
    read_rows,
    read_scaling,
    resnet_v1,
)

from edgeshrink.costs import application
from edgeshrink.costs.application import BYTE_TERMS, ENGINE_TERMS
from edgeshrink.costs.work import graph_macs
from edgeshrink.graph import Graph
from edgeshrink.target import Cpu, Memory, Ops, Target

# For the error on a core without rows: each is priced as its nearest relative.
RELATIVES = {
    "cortex-a7": "cortex-a53",
    "cortex-a53": "cortex-a55",
    "cortex-a55": "cortex-a53",
    "cortex-a72": "cortex-a73",
    "cortex-a73": "cortex-a72",
    "cortex-a76": "cortex-a78",
    "cortex-a78": "cortex-a76",
}

COVERAGE = 0.9


# ---------------------------------------------------------------- leaving rows out


@dataclass(frozen=True, kw_only=True)
class Errors:
    """log(measured / predicted) of rows that a fit has not seen, by row."""

    unknown_board: Mapping[str, float]  # predicted as a user's board is
    known_board: Mapping[str, float]  # with the factor of the board, where rows of it were left


class Study:
    """The rows, the fit to all of them, and fits to parts of them."""

    def __init__(self, rows: list[Row], scaling: list[Scaling]) -> None:
        self.rows, self.scaling = rows, scaling
        self.by_id = {row.row_id: row for row in rows}
        self.values = Problem(rows, scaling).solve()
        self.boards: dict[str, set[str]] = {}
        for row in rows:
            self.boards.setdefault(row.core, set()).add(row.board)

    def without(
        self, left_out: Callable[[Row], bool], asked: Callable[[Row], bool] | None = None
    ) -> Errors:
        """Return the errors on the rows `asked` for, of a fit to all but those `left_out`."""
        problem = Problem([r for r in self.rows if not left_out(r)], self.scaling)
        values = np.array(list(problem.solve(self.values, tolerance=1e-7).values()))
        rows = [r for r in self.rows if (asked or left_out)(r)]
        design = problem.design(rows)
        found = [
            design["at"] - problem.predict(values, design, boards=boards)[0]
            for boards in (False, True)
        ]
        unknown, known = (
            {r.row_id: float(e) for r, e in zip(rows, errors, strict=True)} for errors in found
        )
        return Errors(unknown_board=unknown, known_board=known)

    def each(self, of: Callable[[Row], Any], among: Callable[[Row], bool] = bool) -> Errors:
        """Return the errors of leaving out, one after another, all rows that have one value."""
        parts = [
            self.without(lambda r, v=value: among(r) and of(r) == v)  # type: ignore[misc]
            for value in sorted({of(r) for r in self.rows if among(r)})
        ]
        return Errors(
            unknown_board={k: v for part in parts for k, v in part.unknown_board.items()},
            known_board={k: v for part in parts for k, v in part.known_board.items()},
        )

    def has_other_boards(self, row: Row) -> bool:
        return len(self.boards[row.core]) > 1

    def board_and_model(self) -> dict[str, float]:
        """Return the errors on rows whose board and whose model the fit has not seen."""
        found: dict[str, float] = {}
        pairs = {(r.board, r.model) for r in self.rows if self.has_other_boards(r)}
        for board, model in sorted(pairs):
            part = self.without(
                lambda r, b=board, m=model: r.board == b or r.model == m,  # type: ignore[misc]
                lambda r, b=board, m=model: r.board == b and r.model == m,  # type: ignore[misc]
            )
            found |= part.unknown_board
        return found

    def as_relatives(self) -> dict[str, float]:
        """Return the errors of pricing each core's rows with the rates of another core."""
        found: dict[str, float] = {}
        for core, relative in RELATIVES.items():
            problem = Problem([r for r in self.rows if r.core != core], self.scaling)
            values = np.array(list(problem.solve(self.values, tolerance=1e-7).values()))
            for row in self.rows:
                if row.core != core:
                    continue
                dtype = row.dtype
                if dtype == "float16" and relative not in DOT:
                    dtype = "float32"
                stand_in = Row(**{**vars(row), "core": relative, "dtype": dtype})
                design = problem.design([stand_in])
                log_cycles = problem.predict(values, design, boards=False)[0][0]
                found[row.row_id] = float(row.log_cycles - log_cycles)
        return found

    def constant_cycles_per_mac(self) -> dict[str, float]:
        """Return the errors of the simplest model: the mean of a board's other models."""
        found: dict[str, float] = {}
        for row in self.rows:
            others = [
                math.exp(r.log_cycles) / r.macs
                for r in self.rows
                if (r.board, r.engine, r.dtype, r.threads)
                == (row.board, row.engine, row.dtype, row.threads)
                and r.model != row.model
            ]
            if others:
                found[row.row_id] = row.log_cycles - math.log(float(np.mean(others)) * row.macs)
        return found


def width(errors: Iterable[float]) -> float:
    """Return what `COVERAGE` of further errors stay within (split conformal), the worst if few."""
    found = sorted(abs(error) for error in errors)
    return found[min(len(found), math.ceil((len(found) + 1) * COVERAGE)) - 1]


BOARD_ROWS = 10  # a board's mean error counts as if so many rows had that of all boards


def board_widths(rows: Sequence[Row], errors: Mapping[str, float]) -> dict[str, float]:
    """Return each board's `width`, by conformal prediction normalized by how much boards err.

    An error is taken in units of its board's mean error, drawn towards that of all boards (Lei et
    al., 2018, section 5.2), so that few rows of a board do for its band.
    """
    whole = float(np.mean([abs(errors[r.row_id]) for r in rows]))
    of_boards: dict[str, list[float]] = {}
    for row in rows:
        of_boards.setdefault(row.board, []).append(abs(errors[row.row_id]))
    scales = {
        board: (BOARD_ROWS * whole + sum(found)) / (BOARD_ROWS + len(found))
        for board, found in of_boards.items()
    }
    unit = width(errors[r.row_id] / scales[r.board] for r in rows)
    return {board: unit * scale for board, scale in scales.items()}


def summary(errors: Iterable[float]) -> dict[str, float]:
    """Return figures of log errors: shares and means of |predicted / measured - 1|."""
    relative = np.abs(np.expm1(-np.array(list(errors))))
    return {
        "rows": len(relative),
        "mean_abs_error": float(relative.mean()),
        "median_abs_error": float(np.median(relative)),
        "within_10": float((relative <= 0.1).mean()),
        "within_20": float((relative <= 0.2).mean()),
    }


# ---------------------------------------------------------------- the data file


def rounded(value: Any) -> Any:
    """Return the value with floats to four significant figures, so that a fit repeats exactly."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list) else value


def ranges(ids: Iterable[str]) -> list[str]:
    """Return row names shortened: CAc0003, CAc0140-CAc0151."""
    found: list[list[str]] = []
    for name in sorted(ids):
        last = found[-1][-1] if found else ""
        if last and last[:3] == name[:3] and int(name[3:]) == int(last[3:]) + 1:
            found[-1] = [found[-1][0], name]
        else:
            found.append([name])
    return ["-".join(names) for names in found]


def own_rows(results: Results, core: str) -> dict[str, Any]:
    """Return, of the targets among a core's boards, rates with their factors, and errors.

    The errors are of models left out, with the board's other models in the fit.
    """
    study, found = results.study, dict[str, Any]()
    errors = results.model_out.known_board
    widths = board_widths([r for r in study.rows if r.engine == "ncnn"], errors)
    for board in sorted(study.boards[core]):
        profile = PROFILES.get(board.partition(" (")[0])
        for dtype in ("float16", "float32", "int8"):
            rows = [r for r in study.rows if (r.board, r.dtype, r.engine) == (board, dtype, "ncnn")]
            if profile is None or len(rows) < application.MIN_ROWS:
                continue
            values, level = study.values, study.values["board", board]
            log_rates = {
                term: values["rate", core, dtype, term] + values["board rate", board, dtype, term]
                for term in ENGINE_TERMS["ncnn"]
            }
            threads = values["board threads", board]
            found.setdefault(profile, {})[dtype] = {
                "rates": {t: math.exp(v + level) for t, v in log_rates.items()},
                "rates_of_threads": {
                    t: math.exp(v + level + threads) for t, v in log_rates.items()
                },
                "validation": {
                    **summary(errors[r.row_id] for r in rows), "width": widths[board],
                },
            }  # fmt: skip
    return found


def core_rates(study: Study, core: str) -> dict[str, Any]:
    """Return the rates of a core in cycles per unit, by engine and type."""
    values = study.values
    isa = "dot" if core in DOT else "plain"
    rates: dict[str, Any] = {engine: {} for engine in ENGINE_TERMS}
    for dtype in ("float16", "float32", "int8"):
        if ("rate", core, dtype, "gemm") not in values:
            continue
        log_rates = {term: values["rate", core, dtype, term] for term in CENTRES}
        rates["ncnn"][dtype] = {t: math.exp(log_rates[t]) for t in ENGINE_TERMS["ncnn"]}
        log_rates["indirect"] = log_rates["gemm"] + values[("indirect",)]
        rates["xnnpack"][dtype] = {
            term: math.exp(
                log_rates[term]
                + values["engine", dtype, isa, "bytes" if term in BYTE_TERMS else "compute"]
            )
            for term in ENGINE_TERMS["xnnpack"]
        }
    return rates


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything the tables and the data file are made of: errors by row."""

    study: Study
    fit: Mapping[str, float]
    model_out: Errors
    board_out: Mapping[str, float]
    both_out: Mapping[str, float]
    engine_out: Mapping[str, float]
    core_out: Mapping[str, float]
    small_out: Mapping[str, float]
    baseline: Mapping[str, float]

    def held_out(self, row: Row) -> float:
        """Return the error of a row that its core's band comes from."""
        return self.both_out.get(row.row_id, self.model_out.unknown_board[row.row_id])

    def xnnpack_width(self) -> float:
        """Return the width over XNNPACK's rows: each without its model, and without its core."""
        return width(
            max(abs(self.engine_out[i]), abs(self.model_out.unknown_board[i]))
            for i in self.engine_out
        )

    def board_width(self) -> float:
        """Return how far a board's mean error lies from 0 where the board was left out."""
        boards: dict[str, list[float]] = {}
        for row_id, error in self.board_out.items():
            boards.setdefault(self.study.by_id[row_id].board, []).append(error)
        return width(float(np.mean(errors)) for errors in boards.values())

    def per_decade(self) -> float:
        """Return the worst error per decade below the smallest XNNPACK row that was left in."""
        by_id = self.study.by_id
        least = min(
            row.macs
            for row in self.study.rows
            if row.engine == "xnnpack" and row.row_id not in self.small_out
        )
        return max(
            abs(error) / math.log10(least / by_id[i].macs) for i, error in self.small_out.items()
        )


def study_all(rows: list[Row], scaling: list[Scaling]) -> Results:
    study = Study(rows, scaling)
    xnnpack = [row for row in rows if row.engine == "xnnpack"]
    largest = max(row.macs for row in xnnpack)
    return Results(
        study=study,
        fit=study.without(lambda r: False, lambda r: True).known_board,
        model_out=study.each(lambda r: r.model),
        board_out=study.each(lambda r: r.board, study.has_other_boards).unknown_board,
        both_out=study.board_and_model(),
        engine_out=study.each(lambda r: r.core, lambda r: r.engine == "xnnpack").unknown_board,
        core_out=study.as_relatives(),
        small_out=study.without(lambda r: r.engine == "xnnpack" and r.macs < largest).unknown_board,
        baseline=study.constant_cycles_per_mac(),
    )


PROFILES = {"Raspberry Pi 4": "rpi4", "Raspberry Pi 3B+": "rpi3b+", "Pixel 4": "pixel4"}


def data_file(results: Results, folder: Path) -> dict[str, Any]:
    """Return the contents of the data file."""
    study = results.study
    cores: dict[str, Any] = {}
    for core in sorted(study.boards):
        checks = {}
        for dtype in ("float16", "float32", "int8"):
            rows = [r for r in study.rows if (r.core, r.dtype) == (core, dtype)]
            errors = [results.held_out(r) for r in rows]
            if len(rows) >= application.MIN_ROWS:
                checks[dtype] = {**summary(errors), "width": width(errors)}
        boards = sorted(study.boards[core])
        parallel = {
            engine: {
                dtype: 1 / (1 + math.exp(-study.values["parallel", engine, core, dtype]))
                for dtype in ("float16", "float32", "int8")
                if ("parallel", engine, core, dtype) in study.values
            }
            for engine in ENGINE_TERMS
        }
        cores[core] = {
            "boards": boards,
            "profiles": [v for k, v in PROFILES.items() for b in boards if b.startswith(k + " (")],
            "parallel_share": parallel,
            "rates": core_rates(study, core),
            "validation": checks,
            "own": own_rows(results, core),
        }
    engines = sorted(ENGINE_TERMS)
    macs = {e: [r.macs for r in study.rows if r.engine == e] for e in engines}
    tables = ("cortexa.csv", "ncnn_layers.csv")
    known_board = results.model_out.known_board
    return {
        "about": "Written by benchmarks/fit_application_latency.py. Rates are cycles per "
        "multiply-accumulate, per window element (pool), per byte, per operator (ops); widths are "
        "of a band in natural log of measured / predicted time.",
        "sources": {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in tables
        },
        "rows": {
            e: ranges(r.row_id for r in study.rows if r.engine == e) for e in engines
        },
        "bands": {
            "macs": {e: [min(macs[e]), max(macs[e])] for e in engines},
            "per_decade": results.per_decade(),
            "board": {"boards": len({study.by_id[i].board for i in results.board_out}),
                      "width": results.board_width()},
            "other_core": {**summary(results.core_out.values()),
                           "width": width(results.core_out.values())},
            "xnnpack": {"rows": len(results.engine_out), "width": results.xnnpack_width()},
        },
        "comparison": {
            "constant_cycles_per_mac": summary(results.baseline.values()),
            "model_left_out_board_known": summary(known_board[i] for i in results.baseline),
        },
        "cores": cores,
    }  # fmt: skip


# ---------------------------------------------------------------- the tables


def autoencoder(dtype: str) -> Graph:
    """Return the anomaly detector of MLPerf Tiny: ten fully connected layers."""
    net = Net("autoencoder", dtype)
    widths = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640)
    for n_in, n_out in pairwise(widths):
        net.fully_connected(n_in, n_out)
    return net.graph()


def ds_cnn(dtype: str) -> Graph:
    """Return the keyword spotter of MLPerf Tiny: 49x10 features, four separable blocks of 64."""
    net = Net("ds_cnn", dtype)
    x = net.conv((49, 10, 1), (25, 5, 64), (10, 4), 2)
    for _ in range(4):
        x = net.conv(x, x, (3, 3), 1, groups=64)
        x = net.conv(x, x, (1, 1), 1)
    net.add("AVERAGE_POOL_2D", [(1, *x)], [], (1, 1, 1, 64), filter_height=25, filter_width=5,
            stride_h=1, stride_w=1)  # fmt: skip
    net.fully_connected(64, 12)
    return net.graph()


MLPERF_MODELS: dict[str, Callable[[str], Graph]] = {
    "fc-autoencoder": autoencoder,
    "ds-cnn": ds_cnn,
    "resnet": lambda dtype: resnet_v1(1, dtype),
}


def board_target(core: str, clock_mhz: float, name: str, isa: tuple[str, ...] = ()) -> Target:
    return Target(
        name=name,
        title=name,
        kind="application-processor",
        soc="",
        cpu=Cpu(core=core, isa=("neon", *isa), clock_mhz=clock_mhz, n_cores=4),
        memory=Memory(flash_bytes=None, ram_bytes=2**30),
        ops=Ops(dtypes=("int8", "float32")),
        runtimes=(),
    )


def table(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    text = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for line in lines:
        cells = [f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in line]
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text) + "\n"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def error_line(name: str, errors: Iterable[float]) -> list[object]:
    found = list(errors)
    s = summary(found)
    shares = ("mean_abs_error", "median_abs_error", "within_10", "within_20")
    return [name, s["rows"], *[percent(s[key]) for key in shares], f"x{math.exp(width(found)):.2f}"]


ERROR_HEAD = ("", "rows", "mean error", "median", "within 10 %", "within 20 %", "nine in ten")


def report(results: Results, folder: Path) -> str:
    """Return the tables in markdown. Errors are |predicted / measured - 1|."""
    study, by_id = results.study, results.study.by_id
    model_out, known = results.model_out.unknown_board, results.model_out.known_board
    comparable = [i for i in results.baseline if by_id[i].engine == "ncnn"]
    ncnn = [r.row_id for r in study.rows if r.engine == "ncnn"]
    xnnpack = [r.row_id for r in study.rows if r.engine == "xnnpack"]
    parts = [
        "# Latency model of application processors: fit and cross-validation\n",
        "Written by `benchmarks/fit_application_latency.py`; do not edit. Errors are "
        "abs(predicted / measured - 1);\n*nine in ten* is the factor, either way, that 90 % of the "
        "rows stay within (split conformal).\n",
        f"Rows: {len(ncnn)} of ncnn, {len(xnnpack)} of XNNPACK and TFLite, {len(study.scaling)} "
        "speed-ups by threads. All of them are calibration rows:\nan error here is of rows held "
        "out of a fit, not of rows nobody had seen.\n",
        "ncnn computes 3x3 convolutions with fewer products than are counted (Winograd): tiles of "
        "6x6 outputs in float32, of 4x4\nelse, priced by products and by transformed values. What "
        "its models compute beside the published layer list (additions,\nconcatenations, "
        "normalization, quantizing between layers, detection) is counted from their definitions.\n"
        "XNNPACK does not: its larger windows cost what its 1x1 "
        "convolutions cost, times a factor fitted to ResNet rows. Its rates\nare ncnn's times "
        "factors fitted to its rows: for products and for bytes, by type, and for cores with and "
        "without dot products.\n",
        "## Against constant cycles per multiply-accumulate, on the same rows\n",
        "The constant is the mean over the other models of the same board, type and threads. It "
        "knows the board, so the\nfair comparison is the line *board known*. The package predicts "
        "so for ncnn on targets among the boards,\nand as *board unknown* otherwise.\n",
        table(ERROR_HEAD, [
            error_line("constant, model left out", [results.baseline[i] for i in comparable]),
            error_line("this model, model left out, board known", [known[i] for i in comparable]),
            error_line("this model, model left out, board unknown",
                       [model_out[i] for i in comparable]),
            error_line("this model, board left out",
                       [results.board_out[i] for i in comparable if i in results.board_out]),
            error_line("this model, board and model left out",
                       [results.both_out[i] for i in comparable if i in results.both_out]),
            error_line("this model, core left out (nearest relative)",
                       [results.core_out[i] for i in comparable]),
            error_line("this model, fitted to these rows (no prediction)",
                       [results.fit[i] for i in comparable]),
        ]),
        "Board left out: boards of cores that have another board. The model was fitted with these "
        "rows in view: which kernels\nget a rate of their own, Winograd's tiles and how far boards "
        "may differ were chosen by the error with models left\nout, among some forty variants.\n",
        "![predicted over published milliseconds of every board](fit_application_latency.svg)\n",
        *band_tables(results),
        "## XNNPACK\n",
        table(ERROR_HEAD, [
            error_line("model left out", [model_out[i] for i in xnnpack]),
            error_line("the core's XNNPACK rows left out", results.engine_out.values()),
            error_line("constant, model left out (one board has several models)",
                       [results.baseline[i] for i in results.baseline if i in xnnpack]),
            error_line("the same rows, this model, model left out",
                       [model_out[i] for i in results.baseline if i in xnnpack]),
        ]),
        table(
            ("row", "board", "type", "threads", "model", "million MACs", "measured ms",
             "measured / predicted: core's XNNPACK rows left out", "model left out"),
            [[i, by_id[i].board, by_id[i].dtype, by_id[i].threads, by_id[i].model,
              f"{by_id[i].macs / 1e6:.1f}", f"{by_id[i].latency_ms:g}",
              math.exp(results.engine_out[i]), math.exp(model_out[i])] for i in xnnpack],
        ),
        f"Left out all XNNPACK rows but those of the largest model: the worst error per decade of "
        f"size is {results.per_decade():.2f} in\nnatural log. The band grows by that for every "
        "decade a model lies outside the models of its engine's rows.\n",
        table(("model", "million MACs", "measured / predicted"),
              [[by_id[i].model, f"{by_id[i].macs / 1e6:.1f}", math.exp(e)]
               for i, e in results.small_out.items()]),
        "## By core and type\n",
        "Model and board left out; cores with one board (A72, A78): model left out.\n",
        table(ERROR_HEAD, [
            error_line(f"{core.removeprefix('cortex-').upper()} {dtype}",
                       [results.held_out(r) for r in study.rows
                        if (r.core, r.dtype) == (core, dtype)])
            for core, dtype in sorted({(r.core, r.dtype) for r in study.rows})
        ]),
        "## By board left out\n",
        f"Width of the mean errors, added (in quadrature) for other boards of cores with one "
        f"board: x{math.exp(results.board_width()):.2f}.\n",
        table(("board", "rows", "mean of measured / predicted", "mean error"), [
            [board, len(errors), math.exp(float(np.mean(errors))),
             percent(summary(errors)["mean_abs_error"])]
            for board in sorted({by_id[i].board for i in results.board_out})
            if (errors := [e for i, e in results.board_out.items() if by_id[i].board == board])
        ]),
        *floor_tables(study),
        "## By model left out\n",
        table(("model", "type", "rows", "mean of measured / predicted"), [
            [model, dtype, len(errors), math.exp(float(np.mean(errors)))]
            for model, dtype in sorted({(r.model, r.dtype) for r in study.rows})
            if (errors := [model_out[r.row_id] for r in study.rows
                           if (r.model, r.dtype) == (model, dtype)])
        ]),
    ]  # fmt: skip
    return "\n".join([*parts, *rate_tables(study), *outside_checks(folder)])


def band_tables(results: Results) -> list[str]:
    """Return how often bands of held-out rows hold them, how wide they are, and their score."""
    study, lines = results.study, []
    rows = [r for r in study.rows if r.engine == "ncnn"]
    known, unknown = results.model_out.known_board, {r.row_id: results.held_out(r) for r in rows}
    for name, errors in (("board known", known), ("board unknown", unknown)):
        inside, half_widths, scores = [], [], []
        for model in sorted({r.model for r in rows}):
            others = [r for r in rows if r.model != model]
            of_boards = board_widths(others, errors)
            for row in (r for r in rows if r.model == model):
                peers = [r for r in others if (r.core, r.dtype) == (row.core, row.dtype)]
                half = width(errors[r.row_id] for r in peers)
                half = of_boards[row.board] if name == "board known" else half
                error = abs(errors[row.row_id])
                inside.append(error <= half)
                half_widths.append(math.sinh(half))
                scores.append(2 * half + 2 / (1 - COVERAGE) * max(0.0, error - half))
        lines.append([
            name, len(rows), percent(float(np.mean(inside))),
            percent(float(np.median(half_widths))), float(np.mean(scores)),
        ])  # fmt: skip
    return [
        "## Bands\n",
        "A row's band is made without its model. Board known: nine in ten of the errors of other "
        "models, in units of their board's\nmean error. Board unknown: nine in ten of the errors "
        "of the core's other models, each without its board. The interval\nscore is in natural "
        "log: the band's width, and twenty times what a row lies outside (Gneiting and Raftery, "
        "2007).\n",
        table(("", "rows", "inside", "median half-width", "interval score"), lines),
    ]


# Boards with one chip, at one clock.
SAME_CHIP = ("Orange Pi 5", "Orange Pi 5 Plus", "RK3588 board")


def floor_tables(study: Study) -> list[str]:
    """Return how well entries of one chip are told by the others' times for the same model."""
    lines = []
    for core in ("cortex-a55", "cortex-a76"):
        rows = [
            r for r in study.rows
            if r.engine == "ncnn" and r.core == core
            and r.board.partition(" (")[0] in SAME_CHIP
        ]  # fmt: skip
        errors = []
        for row in rows:
            others = [
                r.log_cycles for r in rows
                if r.board != row.board
                and (r.model, r.dtype, r.threads) == (row.model, row.dtype, row.threads)
            ]  # fmt: skip
            if others:
                errors.append(row.log_cycles - float(np.mean(others)))
        lines.append(error_line(f"RK3588, {core.removeprefix('cortex-').upper()}", errors))
    return [
        "Published entries differ where chip and clock are the same: by ncnn's version, cooling, "
        "memory. Each entry of an RK3588,\ntold by the geometric mean of the other entries' times "
        "for the same model, type and threads, with no model of ours:\n",
        table(ERROR_HEAD, lines),
    ]


def rate_tables(study: Study) -> list[str]:
    """Return the rates of XNNPACK, and what is assumed."""
    lines = []
    for core in sorted(study.boards):
        for dtype, rates in core_rates(study, core)["xnnpack"].items():
            share = 1 / (1 + math.exp(-study.values["parallel", "xnnpack", core, dtype]))
            cells = [f"{rates[term]:.3g}" for term in ENGINE_TERMS["xnnpack"]]
            speed_up = f"{1 / (1 - share * 0.75):.2f}"
            lines.append([core.removeprefix("cortex-").upper(), dtype, *cells, speed_up])
    return [
        "## Rates of XNNPACK: cycles per multiply-accumulate, per byte\n",
        table(("core", "type", *ENGINE_TERMS["xnnpack"], "speed-up of 4 threads"), lines),
        f"Assumed, with a factor of {application.ASSUMED_FACTOR:g} either way in the band: "
        f"{application.CALL_CYCLES_OUT_OF_ORDER:g} cycles to call an operator "
        f"({application.CALL_CYCLES_IN_ORDER:g} on\nin-order cores), "
        f"{application.INFERENCE_CALLS:g} such calls for an inference, "
        f"{application.CYCLES_PER_TAP:g} per element of a pooling window, "
        f"{application.CYCLES_PER_FUNCTION:g} per exp, tanh or softmax.\n",
    ]


def outside_checks(folder: Path) -> list[str]:
    """Return tables of rows that took no part: another core, another runtime."""
    xnnpack, tvm = [], []
    for record in read_csv(folder / "cortexa.csv"):
        if record["core"] == "Cortex-A75" and record["runtime"] == "XNNPACK":
            found = application.latency(
                mobilenet_v1(1.0, 224, 3, "float32"),
                board_target("cortex-a75", float(record["clock_mhz"]), "pixel3a", ("dotprod",)),
                runtime="litert",
                threads=int(record["threads"]),
            )
            band = f"{found.low_ms:.3g} to {found.high_ms:.3g}"
            xnnpack.append([record["row_id"], record["threads"], record["latency_ms"],
                            f"{found.total_ms:.3g}", band])  # fmt: skip
    for record in read_csv(folder / "mlperf_tiny.csv"):
        if record["core"] != "Cortex-A72":
            continue
        dtype = DTYPES[record["precision"]]
        graph = MLPERF_MODELS[record["model_family"]](dtype)
        target = board_target("cortex-a72", float(record["clock_mhz"]), "rpi4")
        pair = [application.latency(graph, target, runtime="litert", threads=n) for n in (1, 4)]
        tvm.append([
            record["row_id"], record["model"], dtype, f"{graph_macs(graph) / 1e6:.2f}",
            record["latency_ms"],
            *[f"{f.total_ms:.3g} ({f.low_ms:.2g} to {f.high_ms:.2g})" for f in pair],
        ])  # fmt: skip
    return [
        "## Rows that took no part\n",
        "Pixel 3a: MobileNetV1 1.0 224 float32, XNNPACK. The core has no rows and is priced as "
        "its nearest relative.\n",
        table(("row", "threads", "measured ms", "predicted ms", "band ms"), xnnpack),
        "Raspberry Pi 4, TVM: another runtime, threads not stated, so an order of magnitude for "
        "small models, no more.\n",
        table(("row", "model", "type", "million MACs", "measured ms", "LiteRT predicted, 1 thread",
               "4 threads"), tvm),
    ]  # fmt: skip


def panels(results: Results) -> dict[str, list[Point]]:
    """Return the points of each board: its rows, predicted without their models."""
    found: dict[str, list[Point]] = {}
    errors = results.model_out.known_board
    for row in sorted(results.study.rows, key=lambda r: (r.engine, r.board)):
        point = Point(
            name=f"{row.model}, {row.dtype}, {row.threads} threads",
            dtype=row.dtype,
            published_ms=row.latency_ms,
            predicted_ms=row.latency_ms / math.exp(errors[row.row_id]),
        )
        found.setdefault(f"{row.board}, {row.engine}", []).append(point)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("anchors", type=Path, help="folder with the calibration tables")
    parser.add_argument(
        "--json", action="store_true", help="print the data file, and write and print nothing else"
    )
    options = parser.parse_args(arguments)
    results = study_all(read_rows(options.anchors), read_scaling(options.anchors))
    text = json.dumps(rounded(data_file(results, options.anchors)), indent=1) + "\n"
    if options.json:
        sys.stdout.write(text)
        return
    application.DATA.write_text(text, encoding="utf-8")  # before `report`, which prices with it
    Path(__file__).with_suffix(".svg").write_text(draw(panels(results)), encoding="utf-8")
    sys.stdout.write(report(results, options.anchors))


if __name__ == "__main__":
    main()
