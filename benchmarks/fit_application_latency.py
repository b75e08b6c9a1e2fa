"""Fit the latency model of application processors to published rows, and cross-validate it.

    python benchmarks/fit_application_latency.py ANCHORS [--data FILE] > fit_application_latency.md

ANCHORS is a folder with `cortexa.csv` and `ncnn_layers.csv`. The rates go to
`edgeshrink/costs/data/application_latency.json`, the tables to standard output.

The fit is maximum a posteriori in log time: a row's residual is log(predicted / measured) over
`ROW_SD`, damped where it is large; every log rate is drawn towards what the same kernel costs on
the other cores, up to one factor per core and type. Boards of one core differ by more than clock
(memory, build, throttling), so each has a factor of its own, which a prediction does not use.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeshrink.costs import application
from edgeshrink.costs.application import BYTE_TERMS, BYTES_PARALLEL, ENGINE_TERMS
from edgeshrink.costs.work import graph_macs, op_work
from edgeshrink.graph import Graph, Op, Tensor

CORES = {
    "Cortex-A7": "cortex-a7",
    "Cortex-A53": "cortex-a53",
    "Cortex-A55": "cortex-a55",
    "Cortex-A72": "cortex-a72",
    "Cortex-A73": "cortex-a73",
    "Kryo 280 (Cortex-A73)": "cortex-a73",
    "Cortex-A76": "cortex-a76",
    "Kryo 485 (Cortex-A76)": "cortex-a76",
    "Cortex-A78AE": "cortex-a78",
}
DTYPES = {"int8": "int8", "uint8": "int8", "fp16": "float16", "fp32": "float32"}
DOT = ("cortex-a55", "cortex-a76", "cortex-a78")  # have dot products and half precision
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

# Where the search starts and what an unseen kernel is drawn to: cycles per unit of each term.
CENTRES = {
    "gemm": 0.3,
    "winograd": 0.2,
    "direct": 0.4,
    "depthwise": 1.0,
    "pool": 0.5,
    "activation_bytes": 0.5,
    "weight_bytes": 0.5,
    "ops": 15000.0,
}
ROW_SD = 0.1
CENTRE_SD = 0.7  # of a kernel's cost over all cores, around CENTRES
CORE_SD = 1.5  # of a core's factor, all types
CORE_DTYPE_SD = 0.5  # of a core's factor for one type, around that
RATE_SD = 0.3  # of one rate, around kernel times core
BOARD_SD, BOARD_THREADS_SD = 0.2, 0.15
ENGINE_SD = 0.5  # of XNNPACK against ncnn
INDIRECT_SD = 0.1  # of an indirect convolution against a 1x1 one
SCALING_SD = 0.2  # of a speed-up by threads
PARALLEL_CENTRE, PARALLEL_SD = 2.5, 0.7  # logit of the parallel share
COVERAGE = 0.9


@dataclass(frozen=True, kw_only=True)
class Row:
    """One published latency of a model whose layers are known."""

    row_id: str
    engine: str
    core: str
    board: str
    dtype: str
    threads: int
    clock_mhz: float
    latency_ms: float
    model: str  # the same network in different files has one name
    macs: int
    amounts: tuple[float, ...]  # of the engine's terms
    assumed_cycles: tuple[float, float]  # shared among threads, not shared

    @property
    def log_cycles(self) -> float:
        return math.log(self.latency_ms * self.clock_mhz * 1e3)


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """How much faster a model became with threads; its layers are not known."""

    core: str
    threads: int
    log_ratio: float  # of the latencies, against one thread


# ---------------------------------------------------------------- graphs of the rows


class Net:
    """Collects operators; each gets tensors of its own, since only shapes are priced."""

    def __init__(self, name: str, dtype: str) -> None:
        self.name, self.dtype = name, dtype
        self.tensors: list[Tensor] = []
        self.ops: list[Op] = []

    def _tensor(self, shape: Sequence[int], *, constant: bool = False) -> int:
        data = np.broadcast_to(np.zeros((), self.dtype), tuple(shape)) if constant else None
        index = len(self.tensors)
        self.tensors.append(
            Tensor(index=index, name="", shape=tuple(shape), dtype=self.dtype, data=data)
        )
        return index

    def add(
        self,
        kind: str,
        inputs: Sequence[Sequence[int]],
        weights: Sequence[Sequence[int]],
        output: Sequence[int],
        **options: int,
    ) -> None:
        ids = [self._tensor(s) for s in inputs] + [self._tensor(s, constant=True) for s in weights]
        op = Op(
            index=len(self.ops),
            kind=kind,
            version=1,
            inputs=tuple(ids),
            outputs=(self._tensor(output),),
            options=options,
        )
        self.ops.append(op)

    def conv(
        self,
        hwc: tuple[int, int, int],
        out: tuple[int, int, int],
        kernel: tuple[int, int],
        stride: int,
        groups: int = 1,
    ) -> tuple[int, int, int]:
        depthwise = groups > 1 and groups == hwc[2] == out[2]
        weights = (1, *kernel, out[2]) if depthwise else (out[2], *kernel, hwc[2] // groups)
        kind = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
        self.add(kind, [(1, *hwc)], [weights], (1, *out), stride_h=stride, stride_w=stride)
        return out

    def pool(
        self,
        hwc: tuple[int, int, int],
        out: tuple[int, int, int],
        kernel: tuple[int, int],
        stride: int,
    ) -> None:
        self.add(
            "MAX_POOL_2D", [(1, *hwc)], [], (1, *out),
            filter_height=kernel[0], filter_width=kernel[1], stride_h=stride, stride_w=stride,
        )  # fmt: skip

    def fully_connected(self, n_in: int, n_out: int) -> None:
        self.add("FULLY_CONNECTED", [(1, n_in)], [(n_out, n_in)], (1, n_out))

    def graph(self) -> Graph:
        return Graph(
            name=self.name, tensors=tuple(self.tensors), ops=tuple(self.ops), inputs=(), outputs=()
        )


def ints(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("x"))


def listed_graph(layers: list[dict[str, str]], dtype: str) -> Graph:
    """Return the graph of a layer list; a pool's channels are those of the layer after it."""
    net = Net(layers[0]["model"], dtype)
    for index, layer in enumerate(layers):
        source, output = ints(layer["input_hwc"]), ints(layer["output_hwc"])
        if layer["type"] == "fully_connected":
            net.fully_connected(source[0], output[0])
            continue
        kernel, stride = ints(layer["kernel_hw"]), ints(layer["stride_hw"])[0]
        if layer["type"] == "pool":
            after = next(one for one in layers[index + 1 :] if one["type"] != "pool")
            size = ints(after["input_hwc"])
            channels = size[2] if len(size) == 3 else size[0] // (output[0] * output[1])
            net.pool((*source, channels), (*output, channels), kernel, stride)
        else:
            net.conv(source, output, kernel, stride, int(layer["groups"]))
    return net.graph()


def mobilenet_v1(alpha: float, size: int, channels: int, dtype: str) -> Graph:
    """Return MobileNetV1 (Howard et al., 2017, table 1) with 1000 or, if small, 5 classes."""
    net = Net("mobilenet_v1", dtype)
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5,
            (1024, 2), (1024, 1)]  # fmt: skip
    width = int(32 * alpha)
    x = net.conv((size, size, channels), (-(-size // 2), -(-size // 2), width), (3, 3), 2)
    for out, stride in plan:
        side = -(-x[0] // stride)
        x = net.conv(x, (side, side, x[2]), (3, 3), stride, groups=x[2])
        x = net.conv(x, (side, side, int(out * alpha)), (1, 1), 1)
    net.add("AVERAGE_POOL_2D", [(1, *x)], [], (1, 1, 1, x[2]), filter_height=x[0],
            filter_width=x[0], stride_h=1, stride_w=1)  # fmt: skip
    net.fully_connected(x[2], 1000 if alpha == 1 else 5)
    return net.graph()


def resnet_v1(blocks: int, dtype: str) -> Graph:
    """Return the CIFAR ResNet with `blocks` blocks a stage, 1x1 shortcuts where shapes change."""
    net = Net("resnet_v1", dtype)
    x = net.conv((32, 32, 3), (32, 32, 16), (3, 3), 1)
    for stage, width in enumerate((16, 32, 64)):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            out = (x[0] // stride, x[1] // stride, width)
            net.conv(x, out, (3, 3), stride)
            net.conv(out, out, (3, 3), 1)
            if stride > 1:
                net.conv(x, out, (1, 1), stride)
            net.add("ADD", [(1, *out), (1, *out)], [], (1, *out))
            x = out
    net.add("AVERAGE_POOL_2D", [(1, *x)], [], (1, 1, 1, x[2]), filter_height=x[0],
            filter_width=x[1], stride_h=1, stride_w=1)  # fmt: skip
    net.fully_connected(x[2], 10)
    return net.graph()


XNNPACK_MODELS: dict[tuple[str, str], tuple[str, Callable[[str], Graph]]] = {
    ("MobileNetV1 1.0 224", "224x224x3"):
        ("mobilenet", lambda dtype: mobilenet_v1(1.0, 224, 3, dtype)),
    ("MobileNetV1 0.5", "224x224x3"):
        ("mobilenet 0.5", lambda dtype: mobilenet_v1(0.5, 224, 3, dtype)),
    ("MobileNetV1 0.25", "224x224x3"):
        ("mobilenet 0.25", lambda dtype: mobilenet_v1(0.25, 224, 3, dtype)),
    ("MobileNetV1 0.25", "96x96x3"):
        ("mobilenet 0.25 96", lambda dtype: mobilenet_v1(0.25, 96, 3, dtype)),
    ("MobileNetV1 0.25 gray", "96x96x1"):
        ("mobilenet 0.25 96", lambda dtype: mobilenet_v1(0.25, 96, 1, dtype)),
    ("ResNet v1 8", "32x32x3"): ("resnet8", lambda dtype: resnet_v1(1, dtype)),
    ("ResNet v1 32", "32x32x3"): ("resnet32", lambda dtype: resnet_v1(5, dtype)),
}  # fmt: skip


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_rows(folder: Path) -> list[Row]:
    """Return the rows of cores in `CORES` whose layers are known, up to 12 threads."""
    layers: dict[str, list[dict[str, str]]] = {}
    for layer in read_csv(folder / "ncnn_layers.csv"):
        layers.setdefault(layer["model"], []).append(layer)
    rows, graphs = [], dict[tuple[str, str], Graph]()
    for record in read_csv(folder / "cortexa.csv"):
        if record["core"] not in CORES or record["quality"] == "C" or not record["macs"]:
            continue
        engine, dtype = "xnnpack", DTYPES[record["precision"]]
        key = (record["model"], record["input_shape"])
        if record["runtime"] == "ncnn":
            engine, model = "ncnn", record["model"].removesuffix("_int8")
            if (model, dtype) not in graphs:
                graphs[model, dtype] = listed_graph(layers[model], dtype)
            graph = graphs[model, dtype]
        elif key in XNNPACK_MODELS:
            model, build = XNNPACK_MODELS[key]
            graph = build(dtype)
        else:
            continue
        if abs(graph_macs(graph) / int(record["macs"]) - 1) > 0.005:
            raise SystemExit(f"{record['row_id']}: {graph_macs(graph)} MACs, {record['macs']} told")
        rows.append(_row(record, engine, dtype, model, graph))
    return rows


def _row(record: dict[str, str], engine: str, dtype: str, model: str, graph: Graph) -> Row:
    core = CORES[record["core"]]
    amounts = dict.fromkeys(ENGINE_TERMS[engine], 0.0)
    shared, fixed = 0.0, application.inference_cycles(core, engine)
    for op in graph.ops:
        work = op_work(graph, op)
        for term, amount in application.fitted_terms(work, engine).items():
            amounts[term] += amount
        op_shared, op_fixed = application.assumed_cycles(work, core, engine)
        shared, fixed = shared + op_shared, fixed + op_fixed
    return Row(
        row_id=record["row_id"],
        engine=engine,
        core=core,
        board=f"{record['device']} ({core.removeprefix('cortex-').upper()})",
        dtype=dtype,
        threads=int(record["threads"]),
        clock_mhz=float(record["clock_mhz"]),
        latency_ms=float(record["latency_ms"]),
        model=model,
        macs=int(record["macs"]),
        amounts=tuple(amounts.values()),
        assumed_cycles=(shared, fixed),
    )


def read_scaling(folder: Path) -> list[Scaling]:
    """Return the speed-ups of the TFLite 2.5.0 rows: one group holds one model on one system.

    Several tables of one board have the same heading; they are told apart by their order.
    """
    groups: dict[tuple[str, ...], dict[int, list[float]]] = {}
    for record in read_csv(folder / "cortexa.csv"):
        if record["runtime_version"] == "2.5.0" and record["core"] in CORES:
            key = tuple(record[k] for k in ("core", "abi", "runtime", "model", "precision"))
            by_threads = groups.setdefault(key, {})
            by_threads.setdefault(int(record["threads"]), []).append(float(record["latency_ms"]))
    return [
        Scaling(core=CORES[key[0]], threads=n, log_ratio=math.log(many / one))
        for key, by_threads in groups.items()
        for n, values in by_threads.items()
        if n > 1 and len(values) == len(by_threads[1])
        for one, many in zip(by_threads[1], values, strict=True)
    ]


# ---------------------------------------------------------------- the fit

Name = tuple[str, ...]


class Problem:
    """The parameters that some rows need, the priors on them, and the search."""

    def __init__(self, rows: Iterable[Row], scaling: Iterable[Scaling]) -> None:
        rows = list(rows)
        cores, dtypes = sorted({r.core for r in rows}), ["float16", "float32", "int8"]
        core_dtypes = [(c, d) for c in cores for d in dtypes if d != "float16" or c in DOT]
        boards = sorted({r.board for r in rows})
        names: list[Name] = [("zero",), ("indirect",)]
        names += [("rate", c, d, t) for c, d in core_dtypes for t in CENTRES]
        names += [("kernel", d, t) for d in dtypes for t in CENTRES]
        names += [("core", c) for c in cores] + [("core", c, d) for c, d in core_dtypes]
        names += [("engine", d, s, k) for d in dtypes for s in ("", "dot") for k in ("compute", "bytes")]
        names += [("parallel", c) for c in cores]
        names += [(kind, b) for b in boards for kind in ("board", "board threads")]
        self.index = {name: i for i, name in enumerate(names)}
        self.scaling = [s for s in scaling if s.core in cores]
        self.rows = rows
        self._priors(core_dtypes)

    def _priors(self, core_dtypes: list[tuple[str, str]]) -> None:
        lines: list[tuple[dict[Name, float], float, float]] = [({("zero",): 1.0}, 0.0, 1e-6)]
        for name in self.index:
            match name:
                case ("indirect",):
                    lines.append(({name: 1.0}, 0.0, INDIRECT_SD))
                case ("rate", c, d, t):
                    middle = {name: 1.0, ("kernel", d, t): -1.0, ("core", c, d): -1.0}
                    lines.append((middle, 0.0, RATE_SD))
                case ("kernel", _, t):
                    lines.append(({name: 1.0}, math.log(CENTRES[t]), CENTRE_SD))
                case ("core", _):
                    lines.append(({name: 1.0}, 0.0, CORE_SD))
                case ("core", c, _):
                    lines.append(({name: 1.0, ("core", c): -1.0}, 0.0, CORE_DTYPE_SD))
                case ("engine", _, _, _):
                    lines.append(({name: 1.0}, 0.0, ENGINE_SD))
                case ("parallel", _):
                    lines.append(({name: 1.0}, PARALLEL_CENTRE, PARALLEL_SD))
                case ("board", _):
                    lines.append(({name: 1.0}, 0.0, BOARD_SD))
                case ("board threads", _):
                    lines.append(({name: 1.0}, 0.0, BOARD_THREADS_SD))
        self.prior = np.zeros((len(lines), len(self.index)))
        self.prior_at = np.zeros(len(lines))
        for number, (line, at, sd) in enumerate(lines):
            for name, factor in line.items():
                self.prior[number, self.index[name]] = factor / sd
            self.prior_at[number] = at / sd

    def _rate_names(self, row: Row, term: str) -> tuple[Name, ...]:
        """Return the parameters whose sum is the log rate of a term of a row."""
        if row.engine == "ncnn":
            return (("rate", row.core, row.dtype, term),)
        kind = "bytes" if term in BYTE_TERMS else "compute"
        like = "gemm" if term == "indirect" else term
        names: tuple[Name, ...] = (("rate", row.core, row.dtype, like), ("engine", row.dtype, "dot" if row.core in DOT else "", kind))
        return (*names, ("indirect",)) if term == "indirect" else names

    def design(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        width = max(map(len, ENGINE_TERMS.values()))
        amounts = np.zeros((len(rows), width))
        params = np.zeros((len(rows), width, 3), int)
        share = np.ones((len(rows), width))
        for i, row in enumerate(rows):
            for j, term in enumerate(ENGINE_TERMS[row.engine]):
                amounts[i, j] = row.amounts[j]
                share[i, j] = BYTES_PARALLEL if term in BYTE_TERMS else term != "ops"
                for k, name in enumerate(self._rate_names(row, term)):
                    params[i, j, k] = self.index[name]
        boards = [[self.index.get((k, r.board), 0) for k in ("board", "board threads")]
                  for r in rows]  # fmt: skip
        return {
            "amounts": amounts,
            "params": params,
            "share": share,
            "assumed": np.array([r.assumed_cycles for r in rows]).reshape(-1, 2),
            "threads": np.array([r.threads for r in rows], float),
            "parallel": np.array([self.index["parallel", r.core] for r in rows], int),
            "boards": np.array(boards, int).reshape(-1, 2),
            "at": np.array([r.log_cycles for r in rows]),
        }

    def predict(
        self, values: np.ndarray, design: dict[str, np.ndarray], *, boards: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return log cycles of the rows, and how they change with rates and parallel shares."""
        parallel = 1 / (1 + np.exp(-values[design["parallel"]]))
        threads = design["threads"]
        gain = 1 / threads - 1
        scale = 1 + design["share"] * (parallel * gain)[:, None]
        cost = design["amounts"] * np.exp(values[design["params"]].sum(-1))
        shared, fixed = design["assumed"].T
        total = (cost * scale).sum(1) + shared * (1 + parallel * gain) + fixed
        by_parallel = ((cost * design["share"]).sum(1) + shared) * gain / total
        log_cycles = np.log(total)
        if boards:
            log_cycles = log_cycles + values[design["boards"][:, 0]]
            log_cycles += (threads > 1) * values[design["boards"][:, 1]]
        by_rate = cost * scale / total[:, None]
        return log_cycles, by_rate, by_parallel * parallel * (1 - parallel)

    def start(self) -> np.ndarray:
        values = np.zeros(len(self.index))
        for name, i in self.index.items():
            if name[0] in ("rate", "kernel"):
                values[i] = math.log(CENTRES[name[-1]])
            elif name[0] == "parallel":
                values[i] = PARALLEL_CENTRE
        return values

    def solve(
        self, guess: dict[Name, float] | None = None, *, tolerance: float = 1e-10
    ) -> dict[Name, float]:
        """Return the most probable parameters (damped Gauss-Newton, soft-L1 rows)."""
        design = self.design(self.rows)
        n_rows, n = len(self.rows), len(self.index)
        at = np.arange(n_rows)
        scaling_p = np.array([self.index["parallel", s.core] for s in self.scaling], int)
        scaling_n = np.array([s.threads for s in self.scaling], float)
        scaling_at = np.array([s.log_ratio for s in self.scaling])
        n_soft = n_rows + len(self.scaling)

        def linearise(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            found, by_rate, by_parallel = self.predict(values, design, boards=True)
            jacobian = np.zeros((n_rows, n))
            for j in range(by_rate.shape[1]):
                for k in range(3):
                    np.add.at(jacobian, (at, design["params"][:, j, k]), by_rate[:, j])
            jacobian[at, design["parallel"]] += by_parallel
            jacobian[at, design["boards"][:, 0]] += 1
            jacobian[at, design["boards"][:, 1]] += design["threads"] > 1
            share = 1 / (1 + np.exp(-values[scaling_p]))
            gain = 1 / scaling_n - 1
            speed = np.zeros((len(self.scaling), n))
            speed[np.arange(len(self.scaling)), scaling_p] = (
                gain * share * (1 - share) / (1 + share * gain)
            )
            residual = np.concatenate([
                (found - design["at"]) / ROW_SD,
                (np.log(1 + share * gain) - scaling_at) / SCALING_SD,
            ])  # fmt: skip
            return residual, np.vstack([jacobian / ROW_SD, speed / SCALING_SD])

        def cost(residual: np.ndarray, values: np.ndarray) -> float:
            strain = self.prior @ values - self.prior_at
            return float((2 * (np.sqrt(1 + residual**2) - 1)).sum() + strain @ strain)

        values, damping = self.start(), 1e-3
        for name, value in (guess or {}).items():
            if name in self.index:
                values[self.index[name]] = value
        stiffness, pull = self.prior.T @ self.prior, self.prior.T @ self.prior_at
        residual, jacobian = linearise(values)
        for _ in range(100):
            weight = 1 / np.sqrt(1 + residual**2)
            normal = (jacobian.T * weight) @ jacobian + stiffness
            slope = jacobian.T @ (weight * residual) + stiffness @ values - pull
            before = cost(residual, values)
            for _ in range(12):
                step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), slope)
                trial, trial_jacobian = linearise(values - step)
                after = cost(trial, values - step)
                if after < before:
                    break
                damping *= 5
            else:
                break
            values, residual, jacobian = values - step, trial, trial_jacobian
            damping = max(damping / 5, 1e-9)
            if before - after < tolerance * before:
                break
        return {name: float(values[i]) for name, i in self.index.items()}
