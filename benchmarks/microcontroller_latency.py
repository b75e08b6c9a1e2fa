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
    Result,
)
from scipy.optimize import nnls
from scipy.stats import t as student

from edgeshrink.costs.interpreter import cost_of_shapes
from edgeshrink.costs.kernels import GROUPS, KernelShape, group_of, reads_of, terms_of
from edgeshrink.costs.memory_system import (
    MemorySystem,
    constants_bytes,
    memory_system,
    waits_per_op,
)
from edgeshrink.costs.microcontroller import block_cycles
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
            "error": round(float(np.quantile(errors, 0.9)), 4),
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
          "has_memory": False}  # fmt: skip
    cores = {
        "cortex-m4f": m4,
        "cortex-m33": m4,
        "cortex-m7": {
            **m4, "center": center + m7_center, "half_width": math.hypot(half, m7_half),
            "basis": f"{basis}, and {len(ratios)} results of other engines on both a Cortex-M4 and "
            "a Cortex-M7",
        },
        "cortex-m0+": {
            **m4, "center": m0_center, "half_width": m0_half, "rows": len(layers),
            "basis": f"{len(layers)} published layers (TFLM with CMSIS-NN on RP2040, its clock "
            "assumed), to which nothing is fitted",
        },
        "xtensa-lx7": {
            **m4, "center": 0.0, "half_width": 0.3, "rows": 9, "has_memory": True,
            "basis": "9 published kernels of ESP-NN on ESP32-S3, to which the prices are fitted",
        },
        "xtensa-lx6": {
            **m4, "center": 0.0, "half_width": 0.5, "rows": 9, "has_memory": True,
            "basis": "9 published kernels of ESP-NN in plain C on ESP32-S3, another core",
        },
        "other": m4,
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


def page(found: Sequence[Result], validation: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Write the page."""


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
    page(found, validation, data)


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
