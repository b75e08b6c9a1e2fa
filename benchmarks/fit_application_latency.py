"""Fit the latency model of application processors to published rows, and cross-validate it.

    python benchmarks/fit_application_latency.py ANCHORS > benchmarks/fit_application_latency.md

ANCHORS is a folder with `cortexa.csv`, `ncnn_layers.csv` and `mlperf_tiny.csv`. The rates and
bands go to `edgeshrink/costs/data/application_latency.json`, the tables to standard output.

The fit is maximum a posteriori in log time: a row's residual is log(predicted / measured) over
`ROW_SD`, damped where it is large; every log rate is drawn towards what the same kernel costs on
the other cores, up to one factor per core and type. Boards of one core differ by more than clock
(memory, build, throttling), so each has a factor of its own, which a prediction does not use.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the matrices are small: threads cost time

import argparse
import csv
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
import numpy.typing as npt

from edgeshrink.costs import application
from edgeshrink.costs.application import BYTE_TERMS, BYTES_PARALLEL, ENGINE_TERMS
from edgeshrink.costs.work import graph_macs, op_work
from edgeshrink.graph import Graph, Op, Tensor
from edgeshrink.target import Cpu, Memory, Ops, Target

Array = npt.NDArray[Any]

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
    dtype: str
    threads: int
    log_ratio: float  # of the latencies, against one thread


# ---------------------------------------------------------------- graphs of the rows


Size = tuple[int, int, int]  # height, width, channels
Pair = tuple[int, int]


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
        hwc: Size,
        out: Size,
        kernel: Pair,
        stride: int,
        groups: int = 1,
    ) -> Size:
        depthwise = groups > 1 and groups == hwc[2] == out[2]
        weights = (1, *kernel, out[2]) if depthwise else (out[2], *kernel, hwc[2] // groups)
        kind = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
        self.add(kind, [(1, *hwc)], [weights], (1, *out), stride_h=stride, stride_w=stride)
        return out

    def pool(
        self,
        hwc: Size,
        out: Size,
        kernel: Pair,
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


def ints(text: str) -> list[int]:
    return [int(part) for part in text.split("x")]


def listed_graph(layers: list[dict[str, str]], dtype: str) -> Graph:
    """Return the graph of a layer list; a pool's channels are those of the layer after it."""
    net = Net(layers[0]["model"], dtype)
    for index, layer in enumerate(layers):
        source, output = ints(layer["input_hwc"]), ints(layer["output_hwc"])
        if layer["type"] == "fully_connected":
            net.fully_connected(source[0], output[0])
            continue
        kernel, stride = ints(layer["kernel_hw"]), ints(layer["stride_hw"])[0]
        window = (kernel[0], kernel[1])
        if layer["type"] == "pool":
            after = next(one for one in layers[index + 1 :] if one["type"] != "pool")
            size = ints(after["input_hwc"])
            channels = size[2] if len(size) == 3 else size[0] // (output[0] * output[1])
            net.pool(
                (source[0], source[1], channels), (output[0], output[1], channels), window, stride
            )
        else:
            (height, width, depth), (rows, columns, channels) = source, output
            net.conv(
                (height, width, depth), (rows, columns, channels), window, stride,
                int(layer["groups"]),
            )  # fmt: skip
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
        Scaling(core=CORES[key[0]], dtype=DTYPES[key[4]], threads=n, log_ratio=math.log(many / one))
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
        names += [
            ("engine", d, isa, kind)
            for d in dtypes for isa in ("plain", "dot") for kind in ("compute", "bytes")
        ]  # fmt: skip
        names += [("parallel", c) for c in cores]
        names += [("parallel", e, c, d) for e in ENGINE_TERMS for c, d in core_dtypes]
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
                case ("parallel", _, c, _):
                    lines.append(({name: 1.0, ("parallel", c): -1.0}, 0.0, PARALLEL_SD))
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
        isa = "dot" if row.core in DOT else "plain"
        names: tuple[Name, ...] = (
            ("rate", row.core, row.dtype, like),
            ("engine", row.dtype, isa, kind),
        )
        return (*names, ("indirect",)) if term == "indirect" else names

    def design(self, rows: Sequence[Row]) -> dict[str, Array]:
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
            "parallel": np.array(
                [self.index["parallel", r.engine, r.core, r.dtype] for r in rows], int
            ),
            "boards": np.array(boards, int).reshape(-1, 2),
            "at": np.array([r.log_cycles for r in rows]),
        }

    def predict(
        self, values: Array, design: dict[str, Array], *, boards: bool
    ) -> tuple[Array, Array, Array]:
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

    def start(self) -> Array:
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
        scaling_p = np.array(
            [self.index["parallel", "xnnpack", s.core, s.dtype] for s in self.scaling], int
        )
        scaling_n = np.array([s.threads for s in self.scaling], float)
        scaling_at = np.array([s.log_ratio for s in self.scaling])

        def linearise(values: Array) -> tuple[Array, Array]:
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

        def cost(residual: Array, values: Array) -> float:
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
        "ncnn computes 3x3 convolutions with fewer products than are counted (Winograd); they "
        "have a rate of their own there.\nXNNPACK does not: its larger windows cost what its 1x1 "
        "convolutions cost, times a factor fitted to ResNet rows. Its rates\nare ncnn's times "
        "factors fitted to its rows: for products and for bytes, by type, and for cores with and "
        "without dot products.\n",
        "## Against constant cycles per multiply-accumulate, on the same rows\n",
        "The constant is the mean over the other models of the same board, type and threads. It "
        "knows the board, so the\nfair comparison is the line *board known*. The package predicts "
        "as *board unknown*: it has no factor per board.\n",
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
        "rows in view: which kernels\nget a rate of their own was chosen by the error with models "
        "left out.\n",
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
        "## By model left out\n",
        table(("model", "type", "rows", "mean of measured / predicted"), [
            [model, dtype, len(errors), math.exp(float(np.mean(errors)))]
            for model, dtype in sorted({(r.model, r.dtype) for r in study.rows})
            if (errors := [model_out[r.row_id] for r in study.rows
                           if (r.model, r.dtype) == (model, dtype)])
        ]),
    ]  # fmt: skip
    return "\n".join([*parts, *rate_tables(study), *outside_checks(folder)])


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
    sys.stdout.write(report(results, options.anchors))


if __name__ == "__main__":
    main()
