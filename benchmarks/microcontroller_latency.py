"""Fit and test the latency model of microcontrollers; write its data files and its page.

    python benchmarks/microcontroller_latency.py --anchors DIR --models DIR --cmsis-nn DIR

DIR of `--anchors` holds `cmsis_nn_emulated.csv`, `mlperf_tiny.csv`, `mcu.csv` and `kernels.csv`;
`--models` the MLPerf Tiny `.tflite` files; `--cmsis-nn` a checkout of CMSIS-NN. The kernels are run
on emulated cores (minutes; kept in `--cache`), coefficients are fitted, published results are
predicted, and what is found is written to `edgeshrink/costs/data/` and next to this file.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from cmsis_nn_kernels import Measured, build, measure
from microcontroller_rows import MLPERF, results
from published_engines import (
    SAME_KERNELS,
    Prediction,
    Result,
    banded,
    interval_score,
    leave_one_device_out,
    leave_one_model_out,
)
from scipy.optimize import nnls
from scipy.stats import t as student

from edgeshrink.costs.interpreter import UNKNOWN_OP, cost_of_shapes
from edgeshrink.costs.kernels import GROUPS, KernelShape, group_of, reads_of, terms_of
from edgeshrink.costs.memory_system import (
    MemorySystem,
    constants_bytes,
    memory_system,
    waits_per_op,
)
from edgeshrink.costs.microcontroller import block_cycles
from edgeshrink.emulation.interpreter import emulate_interpreter
from edgeshrink.firmware import compile_firmware
from edgeshrink.graph_reader import read_model_bytes
from edgeshrink.runtimes.firmware import open_firmware
from edgeshrink.runtimes.flash_caches import Waits
from edgeshrink.target import Target, list_targets, load_target

HERE: Final = Path(__file__).parent
DATA: Final = HERE.parent / "edgeshrink" / "costs" / "data"
# Column `core` of the kernel table -> our name. There is no M7 in it: that one is fitted to the
# kernels that are run here.
CORES: Final = {
    "cortex-m4": "cortex-m4f",
    "cortex-m33": "cortex-m33",
    "cortex-m0plus": "cortex-m0+",
}
EMULATED: Final = ("cortex-m4f", "cortex-m33", "cortex-m7", "cortex-m0+")
SIZES: Final = ("in_h", "in_w", "in_c", "out_h", "out_w", "out_c", "k_h", "k_w", "stride")
ESP_NN_ERROR: Final = 0.3  # few published kernels, so a guess at what others deviate

Row = Mapping[str, str]
Array = npt.NDArray[np.float64]


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def shape_of_row(row: Row) -> KernelShape:
    """Return the layer of a row of the kernel table."""
    sizes = {key: int(row[key]) if row[key] else 1 for key in SIZES}
    return KernelShape(kind=row["op"], **sizes)


def solve(terms: Array, wanted: Array) -> Array:
    """Return the coefficients, none below 0, with the least sum of squared relative errors."""
    weights = 1 / np.maximum(wanted, 1.0)
    found: Array = nnls(terms * weights[:, None], wanted * weights)[0]
    return found


def left_out(terms: Array, wanted: Array) -> Array:
    """Return the relative error at each row when the others were fitted."""
    errors = []
    for i in range(len(wanted)):
        others = np.arange(len(wanted)) != i
        errors.append(abs(terms[i] @ solve(terms[others], wanted[others]) / wanted[i] - 1))
    return np.array(errors)


def fit_cycles(shapes: Sequence[KernelShape], cycles: Sequence[float]) -> dict[str, Any]:
    """Return, for every group of kernels, coefficients and errors."""
    found: dict[str, Any] = {}
    for group in GROUPS:
        rows = [i for i, shape in enumerate(shapes) if group_of(shape)[0] == group]
        if len(rows) < 2:
            continue
        terms = np.array([terms_of(group, shapes[i]) for i in rows], float)
        wanted = np.array([cycles[i] for i in rows], float)
        errors = left_out(terms, wanted)
        found[group] = {
            "per": _round(solve(terms, wanted)), "rows": len(rows),
            "error": round(min(UNKNOWN_OP, float(np.quantile(errors, 0.9))), 4),
            "mean_error": round(float(errors.mean()), 4),
            "largest_error": round(float(errors.max()), 4),
        }  # fmt: skip
    return found


def fit_waits(
    shapes: Sequence[KernelShape], rows: Sequence[Measured], system: MemorySystem
) -> dict[str, Any]:
    """Return, for every group, what its kernels miss behind the caches of `system`."""
    found: dict[str, Any] = {}
    for group in GROUPS:
        chosen = [i for i, s in enumerate(shapes) if group_of(s)[0] == group and rows[i].cycles]
        if len(chosen) < 2:
            continue
        terms = np.array([terms_of(group, shapes[i]) for i in chosen], float)
        held = constants_bytes(system)
        reads = np.array([reads_of(group, shapes[i], held) for i in chosen], float)
        cycles = np.array([rows[i].cycles for i in chosen])
        entry: dict[str, Any] = {}
        for name, on in (("fetched", terms), ("jumps", terms), ("successors", terms),
                         ("misses", reads)):  # fmt: skip
            counted = np.array([float(getattr(rows[i].waits, name)) for i in chosen])
            # What counts is the error in the layer's cycles.
            entry[name] = _round(nnls(on / cycles[:, None], counted / cycles)[0])
        found[group] = entry
    return found


def _round(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def esp_nn(kernels: Sequence[Row], runtime: str) -> dict[str, Any]:
    """Return coefficients from the published kernels of ESP-NN on an ESP32-S3."""
    cycles = {
        row["model"]: float(row["latency_ms"]) * float(row["clock_mhz"]) * 1e3
        for row in kernels
        if row["runtime"] == runtime
    }
    conv = np.array([[409600.0, 6400.0], [16384.0, 1024.0]])
    depthwise = np.array([[80000.0, 3200.0], [36864.0, 4096.0]])
    mac, output = solve(
        conv, np.array([cycles["conv in(10,10) 64x1x1x64"], cycles["conv in(8,8) 16x1x1x16"]])
    )
    tap, channel = solve(
        depthwise,
        np.array([cycles["depthwise in(12,12) 8x5x5x4 pad1"],
                  cycles["depthwise in(18,18) 1x3x3x16 valid"]]),
    )  # fmt: skip
    windows = 14 * 14 * 16 * 9
    per = {
        "conv 1x1": [mac, output, 0, 0, 0, 0], "conv": [mac, output, 0, 0, 0],
        "depthwise 3x3": [tap, channel, 0, 0], "depthwise": [tap, channel, 0, 0],
        "depthwise multiplier": [tap, channel, 0],
        "fully connected": [cycles["fully_connected len271 ch3"] / 813, 0, 0],
        "add": [cycles["elementwise_add size1615"] / 1615, 0],
        "average pool": [cycles["avg_pool in(16,16) 1x3x3x16"] / windows, 0, 0, 0],
        "max pool": [cycles["max_pool in(16,16) 1x3x3x16"] / windows, 0, 0, 0],
    }  # fmt: skip
    return {
        group: {"per": _round(values), "rows": 2 if "c" in group[:3] else 1, "error": ESP_NN_ERROR}
        for group, values in per.items()
    }


def interpreter_overhead(table: Sequence[Row]) -> dict[str, float]:
    """Return what TFLM adds to its kernels, from the rows of whole models on an M4."""
    by_kind: dict[str, list[float]] = {}
    copied: list[tuple[int, float]] = []
    for row in table:
        if not row["interpreter_cycles_p2"] or not row["node"].isdigit():
            continue
        cycles = float(row["interpreter_cycles_p2"])
        by_kind.setdefault(row["op"], []).append(cycles)
        if row["op"] == "RESHAPE":
            copied.append((int(row["in_c"]), cycles))
    (few, least), (many, most) = min(copied), max(copied)
    per_byte = (most - least) / (many - few)
    found = {kind: round(float(np.mean(values))) for kind, values in by_kind.items()}
    loops = []
    for row in table:
        if row["node"] == "loop":
            layers = [r for r in table if r["origin"] == row["origin"] and r["node"].isdigit()]
            loops.append((len(layers), float(row["interpreter_cycles_p2"])))
    slope, fixed = np.polyfit(*np.array(loops, float).T, 1)
    mean = round(np.mean([*found.values()]))
    return {
        **found, "RESHAPE": round(least - per_byte * few), "else": mean,
        "per_op": round(float(slope), 1), "per_call": round(float(fixed), 1),
        "copy_per_byte": round(per_byte, 4),
    }  # fmt: skip


def sweep(table: Sequence[Row], cmsis_nn: Path, cache: Path) -> tuple[list[KernelShape], Any]:
    """Run every shape on every core behind the flash of every target; keep it in `cache`."""
    chosen: dict[KernelShape, Row] = {}
    for row in table:
        if row["core"] == "cortex-m4" and (row["origin"] == "sweep" or row["node"].isdigit()):
            chosen.setdefault(shape_of_row(row), row)
    rows = list(chosen.values())
    kept: dict[str, Any] = json.loads(cache.read_text("utf-8")) if cache.is_file() else {}
    for core in EMULATED:
        wanted: dict[str, MemorySystem | None] = {"": None}
        wanted |= {t.name: memory_system(t) for t in _targets(core)}
        missing = [name for name in wanted if f"{core} {name}" not in kept]
        if not missing:
            continue
        elf = build(rows, core, cmsis_nn, cache.with_suffix(f".{core}.elf"))
        for name in missing:
            system = wanted[name]
            found = measure(elf, core, None if system is None else system.caches, len(rows))
            kept[f"{core} {name}"] = [dataclasses.asdict(one) for one in found]
            cache.write_text(json.dumps(kept), "utf-8")
            print(f"measured the kernels on {core} {name}")
    measured = {
        key: [Measured(**{**one, "waits": Waits(**one["waits"])}) for one in values]
        for key, values in kept.items()
    }
    return list(chosen), measured


def _targets(core: str) -> list[Target]:
    return [t for t in list_targets() if t.cpu.core == core and memory_system(t) is not None]


def kernel_data(
    table: Sequence[Row], kernels: Sequence[Row], shapes: Sequence[KernelShape], measured: Any
) -> dict[str, Any]:
    """Return the content of interpreter_kernels.json."""
    overhead = interpreter_overhead(table)
    copy = {"per": [overhead.pop("copy_per_byte"), 0.0], "rows": 2, "error": 0.3}
    found: dict[str, Any] = {}
    for core in EMULATED:
        column = next((key for key, ours in CORES.items() if ours == core), None)
        if column is None:
            rows = [(s, m.cycles) for s, m in zip(shapes, measured[f"{core} "], strict=True)]
            where = "emulated here"
        else:
            rows = [
                (shape_of_row(row), float(row["cycles_p2"]))
                for row in table
                if row["core"] == column and row["origin"] == "sweep"
            ]
            where = "cmsis_nn_emulated.csv"
        fitted = fit_cycles([s for s, c in rows if c], [c for _, c in rows if c])
        found[core] = {
            "about": f"CMSIS-NN 99f736a by gcc 12.2 -O3, cycles of the {core} table ({where})",
            "cycles": {**fitted, "copy": copy},
            "interpreter": overhead,
            "waits": [
                {
                    "like": target.name, "unit_bytes": system.unit_bytes,
                    "code_bytes": system.code_bytes, "constants_bytes": constants_bytes(system),
                    "groups": fit_waits(shapes, measured[f"{core} {target.name}"], system),
                }
                for target in _targets(core)
                if (system := memory_system(target)) is not None
            ],
        }  # fmt: skip
    softmax = found["cortex-m33"]["cycles"]["softmax"]
    for name, runtime in (("esp-nn", "ESP-NN"), ("esp-nn plain", "ESP-NN (plain C)")):
        found[name] = {
            "about": f"{runtime}, published kernels on an ESP32-S3 at 240 MHz",
            "cycles": {**esp_nn(kernels, runtime), "copy": copy,
                       "softmax": {**softmax, "error": 1.0}},
            "interpreter": overhead,
        }  # fmt: skip
    return {
        "about": "Cycles of TFLM's int8 kernels: `per` one of each count of costs/kernels.py; what "
        "they miss behind the flash of a target likewise. Written by "
        "benchmarks/microcontroller_latency.py.",
        "kernels": found,
    }


def half_width(residuals: Sequence[float], share: float = 0.9) -> tuple[float, float]:
    """Return (center, half width) of what holds `share` of further residuals, by Student's t."""
    values = np.asarray(residuals)
    n = len(values)
    spread = float(values.std(ddof=1)) * math.sqrt(1 + 1 / n)
    return float(values.mean()), spread * float(student.ppf((1 + share) / 2, n - 1))


def unfitted(found: Sequence[Result]) -> list[tuple[Result, float]]:
    """Return (result, residual) of engines with CMSIS-NN kernels; nothing is fitted to them."""
    return [
        (r, math.log(r.cycles / r.estimate))
        for r in found
        if r.engine in SAME_KERNELS and r.classes
    ]


def from_m4_to_m7(found: Sequence[Result]) -> list[float]:
    """Return, of engines on both cores, published over estimated ratio of the cores, as logs."""
    ratios = []
    for m4 in found:
        for m7 in found:
            same = (m4.engine, m4.version, m4.model) == (m7.engine, m7.version, m7.model)
            if same and m4.classes and (m4.core, m7.core) == ("cortex-m4f", "cortex-m7"):
                published, estimated = m7.cycles / m4.cycles, m7.estimate / m4.estimate
                ratios.append(math.log(published / estimated))
    return ratios


def rp2040_layers(kernels: Sequence[Row]) -> list[tuple[str, float, float]]:
    """Return (layer, published cycles, estimated cycles) of the layers published for an RP2040."""
    target, found = load_target("rp2040"), []
    for row in kernels:
        if row["profile"] != "rp2040 pico" or row["model"].startswith("SOFTMAX"):
            continue
        kind, _, rest = row["model"].partition(" ")
        out = [int(n) for n in rest.rpartition("-> ")[2].split("x")]
        given = [int(n) for n in row["input_shape"].split("x")]
        k = 1 if "1x1 stride" in rest else 3
        shape = KernelShape(
            kind=kind, in_h=given[1], in_w=given[2], in_c=given[3], out_h=out[1], out_w=out[2],
            out_c=out[3], k_h=k, k_w=k, stride=given[1] // out[1],
        )  # fmt: skip
        published = float(row["latency_ms"]) * float(row["clock_mhz"]) * 1e3
        found.append((row["model"], published, sum(cost_of_shapes([shape], target)[0])))
    return found


def validation_data(found: Sequence[Result], kernels: Sequence[Row]) -> dict[str, Any]:
    """Return the content of microcontroller_validation.json, without what is typical."""
    rows = unfitted(found)
    center, half = half_width([residual for _, residual in rows])
    ratios = from_m4_to_m7(found)
    m7_center, m7_half = half_width(ratios)
    layers = [math.log(published / ours) for _, published, ours in rp2040_layers(kernels)]
    m0_center, m0_half = half_width(layers)
    boards = sorted({r.board for r, _ in rows})
    basis = (
        f"{len(rows)} published results (microTVM with CMSIS-NN, MLPerf Tiny v1.0; "
        f"{' and '.join(boards)}), to which nothing is fitted"
    )
    m4 = {"center": center, "half_width": half, "rows": len(rows), "basis": basis,
          "boards": boards, "has_memory": False}  # fmt: skip
    cores = {
        "cortex-m4f": m4,
        "cortex-m33": m4,
        "cortex-m7": {
            **m4, "center": center + m7_center, "half_width": math.hypot(half, m7_half),
            "basis": f"{basis}, and {len(ratios)} results of other engines on both a Cortex-M4 and "
            "a Cortex-M7",
            "boards": ["nucleo-h7a3zi"],
        },
        "cortex-m0+": {
            **m4, "center": m0_center, "half_width": m0_half, "rows": len(layers),
            "basis": f"{len(layers)} published layers (TFLM with CMSIS-NN on RP2040, its clock "
            "assumed), to which nothing is fitted",
            "boards": ["rp2040"],
        },
        "xtensa-lx7": {
            **m4, "center": 0.0, "half_width": 0.3, "rows": 9, "has_memory": True,
            "basis": "9 published kernels of ESP-NN on ESP32-S3, to which the prices are fitted",
            "boards": ["esp32-s3"],
        },
        "xtensa-lx6": {
            **m4, "center": 0.0, "half_width": 0.5, "rows": 9, "has_memory": True,
            "basis": "9 published kernels of ESP-NN in plain C on ESP32-S3, another core",
            "boards": [],
        },
        "other": {**m4, "boards": []},
    }  # fmt: skip
    return {
        "about": "Published results against estimates that were not fitted to them; residual = "
        "log(published / estimate). `typical`: cycles that compiled models wait for the flash of a "
        "target, per cycle of their code. Written by benchmarks/microcontroller_latency.py.",
        "rows": [
            {
                "target": r.board, "engine": r.engine, "version": r.version, "model": r.model,
                "published_cycles": round(r.cycles), "estimated_cycles": round(r.estimate),
                "residual": round(residual, 4),
            }
            for r, residual in rows
        ] + [
            {
                "target": "rp2040", "engine": "TFLM+CMSIS-NN", "version": "pico-tflmicro",
                "model": layer, "published_cycles": round(published),
                "estimated_cycles": round(ours), "residual": round(math.log(published / ours), 4),
            }
            for layer, published, ours in rp2040_layers(kernels)
        ],
        "cores": {
            core: {**stats, "center": round(stats["center"], 4),
                   "half_width": round(stats["half_width"], 4)}
            for core, stats in cores.items()
        },
        "typical": [],
    }  # fmt: skip


def typical(models: Path) -> list[dict[str, Any]]:
    """Compile the MLPerf Tiny models for every target and run them behind its flash."""
    found = []
    for target in list_targets():
        system = memory_system(target) if target.kind == "microcontroller" else None
        if system is None or all(runtime.name != "c" for runtime in target.runtimes):
            continue
        shares = []
        for _, file in MLPERF.values():
            with tempfile.TemporaryDirectory() as folder:
                data = read_model_bytes(models / file)
                firmware = compile_firmware(data, target, Path(folder), name="m", shown=file)
                assert firmware.elf is not None
                with open_firmware(
                    firmware.elf, target.cpu.core, timeout_s=600, caches=system.caches
                ) as runner:
                    run, _ = runner.count(*[np.zeros(s.shape, s.dtype) for s in runner.inputs])
            cycles: dict[int | None, float] = {}
            for block, took in zip(
                run.blocks, block_cycles(run.blocks, target.cpu.core), strict=True
            ):
                cycles[block.op] = cycles.get(block.op, 0.0) + took
            waited = waits_per_op(system, run.waits, cycles)
            shares.append(round(sum(waited.values()) / sum(cycles.values()), 4))
        found.append({
            "like": target.name, "core": target.cpu.core, "unit_bytes": system.unit_bytes,
            "code_bytes": system.code_bytes, "constants_bytes": constants_bytes(system),
            "wait_cycles": system.wait_cycles, "waiting_per_cycle": shares,
        })  # fmt: skip
        print(f"{target.name}: compiled models wait {shares} per cycle")
    return found


def page(
    found: Sequence[Result],
    validation: Mapping[str, Any],
    data: Mapping[str, Any],
    arenas: Sequence[tuple[str, int, int]],
) -> None:
    """Write the page and its plot."""
    rows = unfitted(found)
    lines = [
        "# Latency of microcontrollers: estimated against published",
        "",
        "Written by `python benchmarks/microcontroller_latency.py`; see there for what it needs.",
        "An estimate is cycles of the core's timing table, plus what the caches in front of the",
        "board's flash do not hold times its wait states; the facts are those of `targets/*.toml`.",
        "",
        "## CMSIS-NN kernels, nothing fitted to any board",
        "",
        "TFLM's kernels as priced by `--engine tflm` against microTVM with CMSIS-NN (MLPerf Tiny",
        "v1.0), whose kernels and compiler are of another version.",
        "",
        "| board | model | published ms | estimated ms | error |",
        "|---|---|---|---|---|",
    ]
    for r, residual in rows:
        clock = load_target(r.board).cpu.clock_mhz or 1.0
        lines.append(
            f"| {r.board} | {r.model} | {r.cycles / clock / 1e3:.2f} | "
            f"{r.estimate / clock / 1e3:.2f} | {100 * (math.exp(-residual) - 1):+.1f} % |"
        )
    errors = [abs(math.exp(-residual) - 1) for _, residual in rows]
    lines += ["", f"Mean absolute error {100 * np.mean(errors):.1f} %; "
              f"{100 * np.mean(np.array(errors) <= 0.1):.0f} % within 10 %.",
              *_without_each(rows), *_engines(found), *_kernels(data), *_layers(validation),
              *_waiting(validation), *_arenas(arenas)]  # fmt: skip
    (HERE / "microcontroller_latency.md").write_text("\n".join(lines) + "\n", "utf-8")
    plot(rows, leave_one_model_out(found), HERE / "microcontroller_latency.svg")


def _without_each(rows: Sequence[tuple[Result, float]]) -> list[str]:
    """Return the coverage of bands that were made without a row, its model, or its board."""
    lines = ["", "Bands (Student's t over the other residuals) around each, when the band is made",
             "without it:", "", "| without | rows inside | median half width | interval score |",
             "|---|---|---|---|"]  # fmt: skip
    for name, key in (("its row", None), ("its model", "model"), ("its board", "board")):
        inside, widths, scores = [], [], []
        for i, (r, _) in enumerate(rows):
            others = [
                residual for j, (o, residual) in enumerate(rows)
                if (j != i if key is None else getattr(o, key) != getattr(r, key))
            ]  # fmt: skip
            center, half = half_width(others)
            low, high = math.exp(center - half), math.exp(center + half)
            ratio = r.cycles / r.estimate
            inside.append(low <= ratio <= high)
            widths.append((high - low) / 2)
            scores.append(interval_score(low, high, ratio))
        lines.append(f"| {name} | {sum(inside)} of {len(inside)} | {100 * np.median(widths):.0f} % "
                     f"| {np.mean(scores):.2f} |")  # fmt: skip
    return lines


def _engines(found: Sequence[Result]) -> list[str]:
    predictions = leave_one_model_out(found)
    lines = [
        "", "## Other engines, each predicted without its own results of the model", "",
        "The same kernel prices, times factors of the engine's kernels by class, its version and",
        "the core (`published_engines.py`), fitted to all results but those of the same engine and",
        "network; where the layers are not known, a line over MACs per engine, version and board.",
        "", "| engine | results | networks | mean error | within 10 % |", "|---|---|---|---|---|",
    ]  # fmt: skip
    engines = sorted({(p.result.engine, bool(p.result.classes)) for p in predictions})
    for engine, has_layers in engines:
        some = [p for p in predictions
                if (p.result.engine, bool(p.result.classes)) == (engine, has_layers)]  # fmt: skip
        errors = np.abs([p.error for p in some])
        how = "" if has_layers else " (by MACs)"
        lines.append(
            f"| {engine}{how} | {len(some)} | {len({p.result.model for p in some})} | "
            f"{100 * errors.mean():.1f} % | {100 * (errors <= 0.1).mean():.0f} % |"
        )
    known = [p for p in predictions if p.result.classes and p.result.engine != "TFLM"]
    bands = banded(known)
    lines += [
        "", f"90 % bands by split conformal prediction over the residuals of other networks: "
        f"{100 * np.mean([b['is_inside'] for b in bands]):.0f} % of {len(bands)} results inside, "
        f"median half width {100 * np.median([b['half_width'] for b in bands]):.0f} %, "
        f"interval score {np.mean([b['score'] for b in bands]):.2f} (relative to the result). "
        "TFLM 2.3.1 runs reference kernels on one board and is left out of it.",
        "", "A board predicted from the others, where its engine and version are there too:", "",
        "| board | results | mean error |", "|---|---|---|",
    ]  # fmt: skip
    for board in sorted({p.result.board for p in leave_one_device_out(found)}):
        some = [p for p in leave_one_device_out(found) if p.result.board == board]
        lines.append(f"| {board} | {len(some)} | "
                     f"{100 * np.mean(np.abs([p.error for p in some])):.1f} % |")  # fmt: skip
    return lines


def _kernels(data: Mapping[str, Any]) -> list[str]:
    lines = ["", "## Kernels of TFLM, each predicted without its own row", "",
             "Against the emulated kernels (so this says nothing about hardware), mean and largest",
             "error in cycles where memory never waits.", "",
             "| kernel | rows | " + " | ".join(EMULATED) + " |",
             "|---|---|" + "---|" * len(EMULATED)]  # fmt: skip
    for group in GROUPS:
        cells = []
        n_rows = 0
        for core in EMULATED:
            entry = data["kernels"][core]["cycles"].get(group)
            if entry is None or "mean_error" not in entry:
                cells.append("-")
                continue
            n_rows = entry["rows"]
            cells.append(f"{100 * entry['mean_error']:.1f} / {100 * entry['largest_error']:.1f} %")
        if n_rows:
            lines.append(f"| {group} | {n_rows} | " + " | ".join(cells) + " |")
    return lines


def _layers(validation: Mapping[str, Any]) -> list[str]:
    lines = ["", "## Single layers on an RP2040", "",
             "Published by pico-tflmicro, its clock assumed to be 125 MHz; nothing fitted.", "",
             "| layer | published ms | estimated ms | error |", "|---|---|---|---|"]  # fmt: skip
    for row in validation["rows"]:
        if row["target"] == "rp2040":
            ms = [row[f"{key}_cycles"] / 125e3 for key in ("published", "estimated")]
            lines.append(f"| {row['model']} | {ms[0]:.2f} | {ms[1]:.2f} | "
                         f"{100 * (ms[1] / ms[0] - 1):+.0f} % |")  # fmt: skip
    return lines


def _waiting(validation: Mapping[str, Any]) -> list[str]:
    names = " | ".join(name for name, _ in MLPERF.values())
    lines = ["", "## What compiled models wait", "",
             "Engine `c`, kernels chosen by latency: cycles that wait, per cycle of code.", "",
             f"| target | wait states | {names} |", "|---|---|" + "---|" * len(MLPERF)]  # fmt: skip
    for entry in validation["typical"]:
        cells = " | ".join(f"{one:.2f}" for one in entry["waiting_per_cycle"])
        lines.append(f"| {entry['like']} | {entry['wait_cycles']} | {cells} |")
    return lines


def _arenas(arenas: Sequence[tuple[str, int, int]]) -> list[str]:
    lines = ["", "## TFLM's arena on a Cortex-M4", "",
             "Told from a recording on the host; three constants are fitted to these four.", "",
             "| model | on the device | told | error |", "|---|---|---|---|"]  # fmt: skip
    for model, known, told in arenas:
        lines.append(f"| {model} | {known:,} B | {told:,} B | {100 * (told / known - 1):+.2f} % |")
    return lines


# Arenas of images for a Cortex-M4 with TFLM 90b983c and CMSIS-NN 99f736a.
ARENAS: Final = {
    "mlperf_ic_resnet8_int8.tflite": 54_996, "mlperf_kws_dscnn_int8.tflite": 22_820,
    "mlperf_vww_mbv1_96_int8.tflite": 100_708, "mlperf_ad01_int8.tflite": 2_580,
}  # fmt: skip


def told_arenas(models: Path) -> list[tuple[str, int, int]]:
    """Return (model, known, told) arenas in bytes."""
    target = load_target("nucleo-l4r5zi")
    return [
        (name, known,
         int(emulate_interpreter(models / name, target).figures["arena_bytes"].value))
        for name, known in ARENAS.items()
    ]  # fmt: skip


def plot(
    rows: Sequence[tuple[Result, float]], predictions: Sequence[Prediction], path: Path
) -> None:
    """Draw predicted over published milliseconds, both logarithmic."""
    points = [("nothing fitted", r.board, r.cycles, r.estimate) for r, _ in rows]
    points += [("model left out", p.result.board, p.result.cycles, p.predicted)
               for p in predictions if p.result.engine not in SAME_KERNELS]  # fmt: skip
    clocks = {t.name: t.cpu.clock_mhz or 1.0 for t in list_targets()}
    clocks |= {"NUCLEO-H743ZI2": 480.0, "NUCLEO-F767ZI": 216.0}
    boards = sorted({board for _, board, _, _ in points})
    colors = ("#1b6ca8", "#c8553d", "#588157", "#8d6b94", "#b8860b", "#444444", "#2a9d8f")
    size, margin, low, high = 520, 60, 0.5, 12_000.0

    def at(ms: float) -> float:
        return margin + (size - 2 * margin) * math.log(ms / low) / math.log(high / low)

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{size + 170}" height="{size}" '
             'font-family="sans-serif" font-size="12">',
             f'<rect width="{size + 170}" height="{size}" fill="white"/>']  # fmt: skip
    for factor, color in ((1.0, "#000"), (1.1, "#bbb"), (1 / 1.1, "#bbb")):
        parts.append(
            f'<line x1="{at(low):.1f}" y1="{size - at(low * factor):.1f}" '
            f'x2="{at(high):.1f}" y2="{size - at(high * factor):.1f}" '
            f'stroke="{color}"/>'
        )
    for tick in (1, 10, 100, 1000, 10_000):
        x = at(tick)
        low_y = size - margin + 18
        parts.append(
            f'<text x="{x:.0f}" y="{low_y}" text-anchor="middle">{tick}</text>'
            f'<text x="{margin - 8}" y="{size - x + 4:.0f}" text-anchor="end">{tick}</text>'
        )
    parts.append(f'<text x="{size / 2}" y="{size - 14}" text-anchor="middle">published ms; grey: '
                 "10 % off</text>"
                 f'<text x="16" y="{size / 2}" transform="rotate(-90 16 {size / 2})" '
                 'text-anchor="middle">predicted ms</text>')  # fmt: skip
    for kind, board, published, predicted in points:
        color = colors[boards.index(board) % len(colors)]
        x, y = (at(c / clocks[board] / 1e3) for c in (published, predicted))
        fill = color if kind == "nothing fitted" else "none"
        parts.append(f'<circle cx="{x:.1f}" cy="{size - y:.1f}" r="4" stroke="{color}" '
                     f'fill="{fill}"><title>{board}, {kind}</title></circle>')  # fmt: skip
    for i, board in enumerate(boards):
        color = colors[i % len(colors)]
        parts.append(f'<text x="{size - 20}" y="{margin + 18 * i}" fill="{color}">'
                     f"{board}</text>")  # fmt: skip
    parts.append(f'<text x="{size - 20}" y="{margin + 18 * len(boards) + 8}">full: nothing fitted'
                 f'</text><text x="{size - 20}" y="{margin + 18 * len(boards) + 26}">'
                 "ring: model left out</text></svg>")  # fmt: skip
    path.write_text("\n".join(parts) + "\n", "utf-8")


def main() -> None:
    """Fit, test, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--anchors", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--cmsis-nn", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("cmsis_nn_sweep.json"))
    parser.add_argument("--typical", action="store_true", help="run compiled models anew")
    options = parser.parse_args()
    table = read(options.anchors / "cmsis_nn_emulated.csv")
    kernels = read(options.anchors / "kernels.csv")
    shapes, measured = sweep(table, options.cmsis_nn, options.cache)
    data = kernel_data(table, kernels, shapes, measured)
    write_json(DATA / "interpreter_kernels.json", data)
    found = results(options.anchors, options.models)
    validation = validation_data(found, kernels)
    kept = DATA / "microcontroller_validation.json"
    if kept.is_file():
        validation["typical"] = json.loads(kept.read_text("utf-8"))["typical"]
    write_json(kept, validation)
    if not validation["typical"] or options.typical:
        validation["typical"] = typical(options.models)
        write_json(kept, validation)
    page(found, validation, data, told_arenas(options.models))


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a data file, short lists on one line."""
    text = json.dumps(data, indent=1)
    lines: list[str] = []
    joined = ""
    for line in text.splitlines():
        stripped = line.strip()
        if joined:
            joined += (" " if joined[-1] == "," else "") + stripped
            if stripped.startswith("]"):
                lines.append(joined)
                joined = ""
        elif line.endswith("[") and not line.strip().startswith("{"):
            joined = line
        else:
            lines.append(line)
        if joined and ("{" in stripped and joined != line):
            lines.append(joined)
            joined = ""
    path.write_text("\n".join(lines) + "\n", "utf-8")
    assert json.loads(path.read_text("utf-8")) == data


if __name__ == "__main__":
    main()
