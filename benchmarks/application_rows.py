"""Published latencies of application processors, and the graphs of the models behind them."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeshrink.costs import application
from edgeshrink.costs.application import ENGINE_TERMS
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


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What an ncnn model computes beside its layer list: elements, and operators.

    Counted in the networks' definitions, as ncnn's benchmark has them. With int8 weights a
    convolution's results are int8 only where quantized layers alone read them: what is pooled,
    added or concatenated is float, and quantized again by whoever reads it next.
    """

    moved: float = 0.0  # read and written by additions, concatenations, permutations, shuffles
    normalized: float = 0.0  # by local response normalization
    boxes: float = 0.0  # candidates x classes of a detector's last step
    float_outputs: float = 0.0  # with int8 weights: results of convolutions that are float
    quantized: float = 0.0  # with int8 weights: values that are quantized between layers
    ops: int = 0


# Additions and concatenations read what they write once or twice: 3 and 2 transfers an element.
BESIDE = {
    "alexnet": Beside(normalized=55 * 55 * 96 + 27 * 27 * 256, ops=3),
    "googlenet": Beside(
        moved=2.471e6, normalized=56 * 56 * (64 + 192), float_outputs=2.641e6, quantized=4.077e6,
        ops=12,
    ),
    "mobilenet": Beside(float_outputs=0.051e6, quantized=0.152e6, ops=1),
    "mobilenet_ssd": Beside(
        moved=0.832e6, boxes=1917 * 21, float_outputs=0.351e6, quantized=1.180e6, ops=37
    ),
    "mobilenet_yolo": Beside(moved=1.038e6, boxes=(13 * 13 + 26 * 26) * 125, ops=3),
    "resnet18": Beside(
        moved=3 * 2 * (56 * 56 * 64 + 28 * 28 * 128 + 14 * 14 * 256 + 7 * 7 * 512),
        float_outputs=1.932e6, quantized=1.631e6, ops=17,
    ),
    "resnet50": Beside(
        moved=3 * (3 * 56 * 56 * 256 + 4 * 28 * 28 * 512 + 6 * 14 * 14 * 1024 + 3 * 7 * 7 * 2048),
        float_outputs=7.827e6, quantized=7.376e6, ops=33,
    ),
    "shufflenet": Beside(moved=6.397e6, ops=48),
    "squeezenet": Beside(moved=3.111e6, float_outputs=2.629e6, quantized=1.459e6, ops=9),
    "squeezenet_ssd": Beside(
        moved=9.001e6, boxes=8030 * 21, float_outputs=4.381e6, quantized=3.596e6, ops=48
    ),
    "vgg16": Beside(float_outputs=6.131e6, quantized=1.689e6, ops=1),
}  # fmt: skip


def with_beside(amounts: dict[str, float], model: str, dtype: str) -> dict[str, float]:
    """Return the amounts of a layer list's terms with what the model computes beside it."""
    beside, size = BESIDE[model], {"float16": 2}.get(dtype, 4)
    more = {
        "moved_bytes": beside.moved * size,
        "normalize": beside.normalized,
        "boxes": beside.boxes,
        "ops": beside.ops,
    }
    if dtype == "int8":
        more |= {"activation_bytes": 3 * beside.float_outputs, "quantize": beside.quantized}
    return {term: amount + more.get(term, 0.0) for term, amount in amounts.items()}


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
        is_float = engine == "ncnn" and dtype == "int8" and work.kernel == "pool"
        for term, amount in application.fitted_terms(work, engine).items():
            amounts[term] += amount * (4 if is_float and term == "activation_bytes" else 1)
        op_shared, op_fixed = application.assumed_cycles(work, core, engine)
        shared, fixed = shared + op_shared, fixed + op_fixed
    if engine == "ncnn":
        amounts = with_beside(amounts, model, dtype)
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
