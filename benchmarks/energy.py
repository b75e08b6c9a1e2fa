"""Validate energy = power x latency on published energies of inferences.

    python benchmarks/energy.py ANCHORS > benchmarks/energy.md

ANCHORS is a folder with `mlperf_tiny.csv` and `mcu.csv`. The widths of the bands go to
`edgeshrink/costs/data/energy.json`, the tables to standard output. Energies are predicted from
published latencies, so the error is that of the power alone.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeshrink.costs import energy

FILES = ("mlperf_tiny.csv", "mcu.csv")
COVERAGE = 0.9
# Typical running currents in the maker's document (recalled: uA per MHz) of supplies with rows.
TYPICAL = {("nucleo-l4r5zi", "1.8V"): 110.0, ("nucleo-l4r5zi", "3V-smps"): 43.0}
SUPPLIES = {"": "not stated", "1.8V": "1.8V", "3.0V": "3V", "3VSMPS": "3V-smps",
            "3.0VSMPS": "3V-smps", "3.3VSMPS": "3.3V-smps", "wholeboard": "board"}  # fmt: skip
BOARDS = {"nucleo-h7a3zi-q": "nucleo-h7a3zi"}


@dataclass(frozen=True, kw_only=True)
class Row:
    id: str
    board: str
    supply: str
    engine: str
    model: str
    mhz: float
    ms: float
    uj: float

    @property
    def mw(self) -> float:
        return self.uj / self.ms

    @property
    def group(self) -> tuple[str, str]:
        return self.board, self.supply


@dataclass(frozen=True, kw_only=True)
class Prediction:
    row: Row
    mw: float

    @property
    def error(self) -> float:
        return self.mw * self.row.ms / self.row.uj - 1


def read_rows(folder: Path) -> list[Row]:
    """Return the rows that state an energy."""
    rows = []
    for name in FILES:
        with (folder / name).open(encoding="utf-8", newline="") as file:
            rows += [_row(r) for r in csv.DictReader(file) if r["energy_uj"]]
    return rows


def _row(record: dict[str, str]) -> Row:
    board = record["profile"] or record["device"].lower()
    return Row(
        id=record["row_id"],
        board=BOARDS.get(board, board),
        supply=SUPPLIES[record["supply"].replace(" ", "")],
        engine=f"{record['runtime']} {record['runtime_version']}",
        model=record["model"],
        mhz=float(record["clock_mhz"]),
        ms=float(record["latency_ms"]),
        uj=float(record["energy_uj"]),
    )


def left_out(rows: Sequence[Row], is_other: Callable[[Row, Row], bool]) -> list[Prediction]:
    """Predict each row by the median power of the rows of its group that are `is_other`."""
    found = []
    for row in rows:
        rest = [r.mw for r in rows if r.group == row.group and is_other(r, row)]
        if rest:
            found.append(Prediction(row=row, mw=statistics.median(rest)))
    return found


def other_model(a: Row, b: Row) -> bool:
    return a.model != b.model


def other_model_and_engine(a: Row, b: Row) -> bool:
    return a.model != b.model and a.engine != b.engine


def other_voltage(rows: Sequence[Row]) -> list[Prediction]:
    """Predict the rows at 3.0 V from the current at 1.8 V, as of a linear regulator."""
    base = statistics.median(r.mw for r in rows if r.group == ("nucleo-l4r5zi", "1.8V"))
    return [
        Prediction(row=r, mw=base * 3.0 / 1.8) for r in rows if r.group == ("nucleo-l4r5zi", "3V")
    ]


def conformal_width(found: Sequence[Prediction]) -> float:
    """Return half the width of a band in log energy that holds `COVERAGE` of the next ones."""
    errors = sorted(abs(math.log1p(p.error)) for p in found)
    rank = min(len(errors), math.ceil((len(errors) + 1) * COVERAGE))
    return errors[rank - 1]


def coverage(found: Sequence[Prediction], band: tuple[float, float]) -> float:
    inside = [band[0] <= p.row.mw / p.mw <= band[1] for p in found]
    return sum(inside) / len(inside)


def stats(found: Sequence[Prediction]) -> dict[str, float]:
    errors = [abs(p.error) for p in found]
    return {
        "rows": len(errors),
        "mean_abs_error": statistics.mean(errors),
        "largest_error": max(errors),
        "within_10": sum(e <= 0.10 for e in errors) / len(errors),
        "within_20": sum(e <= 0.20 for e in errors) / len(errors),
    }


def draws_over_typical(rows: Sequence[Row]) -> dict[tuple[str, str], float]:
    """Return what an inference draws over the typical current of the maker's document."""
    found = {}
    for group, ua_per_mhz in TYPICAL.items():
        of_group = [r for r in rows if r.group == group]
        volts = 1.8 if group[1].startswith("1.8") else 3.0
        typical_mw = ua_per_mhz * of_group[0].mhz * volts / 1e3
        found[group] = statistics.median(r.mw for r in of_group) / typical_mw
    return found


def data_file(rows: Sequence[Row], folder: Path) -> dict[str, Any]:
    engines = left_out(rows, other_model_and_engine)
    width = conformal_width(engines)
    ratios = draws_over_typical(rows)
    most = 1.1 * max(ratios.values())
    digest = hashlib.sha256(b"".join((folder / name).read_bytes() for name in FILES)).hexdigest()
    return {
        "written_by": "benchmarks/energy.py",
        "rows_sha256": digest,
        "inference": {
            "factor": 1.0,
            "low": math.exp(-width),
            "high": math.exp(width),
            "basis": f"the band holds nine in ten of {len(engines)} published energies, each "
            "predicted without its model and engine",
            "validation": stats(engines),
        },
        "datasheet": {
            "factor": math.sqrt(most / 1.1),
            "low": 1 / 1.1,
            "high": most,
            "basis": "between its datasheet's typical current and the "
            f"{max(ratios.values()):.1f} times it that an inference drew on the one chip with both "
            "figures",
        },
        "stress": {
            "factor": 1.0,
            "low": 0.6,
            "high": 1.15,
            "basis": "of the board's power under stress; no published energy of an inference",
        },
        "voltage": {"width": conformal_width(other_voltage(rows))},
        "rest": {"sourced": 1.3, "recalled": 2.0},
        "converter": {"efficiency": [0.8, 0.88, 0.95]},
        "supplies": {
            f"{board} {supply}": _facts([r for r in rows if r.group == (board, supply)])
            for board, supply in sorted({r.group for r in rows})
        },
    }


def _facts(rows: Sequence[Row]) -> dict[str, Any]:
    draws = [r.mw for r in rows]
    return {
        "rows": len(rows),
        "models": len({r.model for r in rows}),
        "engines": len({r.engine for r in rows}),
        "median_mw": statistics.median(draws),
        "least_mw": min(draws),
        "most_mw": max(draws),
    }


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(child) for key, child in value.items()}
    if isinstance(value, list):
        return [rounded(child) for child in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def report(rows: Sequence[Row], data: dict[str, Any]) -> str:
    by_model, by_engine = left_out(rows, other_model), left_out(rows, other_model_and_engine)
    volts, ratios = other_voltage(rows), draws_over_typical(rows)
    band = data["inference"]["low"], data["inference"]["high"]
    summary = []
    for what, found in (
        ("model left out", by_model),
        ("model and engine left out", by_engine),
        ("3.0 V from the current at 1.8 V", volts),
    ):
        s = stats(found)
        summary.append((what, s["rows"], f"{s['mean_abs_error']:.1%}", f"{s['largest_error']:.1%}",
                        f"{s['within_10']:.0%}", f"{s['within_20']:.0%}"))  # fmt: skip
    supplies = []
    for name, facts in data["supplies"].items():
        errors = [abs(p.error) for p in by_model if " ".join(p.row.group) == name]
        supplies.append((name, facts["rows"], facts["models"], facts["engines"],
                         f"{facts['median_mw']:.1f}",
                         f"{facts['least_mw']:.1f} to {facts['most_mw']:.1f}",
                         f"{statistics.mean(errors):.1%}"))  # fmt: skip
    lines = [
        "# Energy of an inference: power times latency\n",
        "`python benchmarks/energy.py ANCHORS` writes this page and "
        "`edgeshrink/costs/data/energy.json`. Every energy is predicted as its published latency "
        "times the median power of other rows of the same board and supply; so this is the error "
        "of the power, to which that of a predicted latency comes on top.\n",
        table(("predicted with", "rows", "mean error", "largest", "within 10 %", "within 20 %"),
              summary),
        f"Band of an engine without rows: {band[0]:.2f} to {band[1]:.2f} times, which holds "
        f"{coverage(by_engine, band):.0%} of the rows with model and engine left out, "
        f"{coverage(by_model, band):.0%} of those with the model left out.\n",
        "## Boards and supplies\n",
        table(("board and supply", "rows", "models", "engines", "median mW", "range mW",
               "mean error, model left out"), supplies),
        "Rows without a stated supply are used for the errors, not for a target.\n",
        "## Makers' typical currents\n",
        "Boards without rows are priced from the typical running current of their maker's "
        "document. Where a chip has both figures, an inference draws more:\n",
        table(("board and supply", "inference over typical"),
              [(" ".join(group), f"{ratio:.2f}") for group, ratio in ratios.items()]),
        "## Every row\n",
        table(("row", "board and supply", "engine", "model", "published uJ", "predicted uJ",
               "error"),
              [(p.row.id, " ".join(p.row.group), p.row.engine, p.row.model.removeprefix(
                  "MLPerf Tiny "), f"{p.row.uj:.0f}", f"{p.mw * p.row.ms:.0f}", f"{p.error:+.1%}")
               for p in by_model]),
    ]  # fmt: skip
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("anchors", type=Path, help="folder with the calibration tables")
    options = parser.parse_args(arguments)
    rows = read_rows(options.anchors)
    data = data_file(rows, options.anchors)
    energy.DATA.write_text(json.dumps(rounded(data), indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(report(rows, data))


if __name__ == "__main__":
    main()
