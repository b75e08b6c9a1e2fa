"""Published microcontroller latencies with the layers of their models, for the benchmark."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from published_engines import OF_CLASS, Result

from edgeshrink.costs.interpreter import cost_of_shapes
from edgeshrink.costs.kernels import KernelShape, group_of, shape_of
from edgeshrink.graph_reader import read_graph_file
from edgeshrink.target import load_target

# Board as the tables name it -> our target.
BOARDS: Final = {
    "nucleo-l4r5zi": "nucleo-l4r5zi",
    "nucleo-h7a3zi-q": "nucleo-h7a3zi",
    "nrf5340-dk": "nrf5340dk",
    "stm32h747i-disco": "stm32h747i-disco",
    "nucleo-f446re": "nucleo-f446re",
}
# Boards that the tables give no profile name.
DEVICES: Final = {"NUCLEO-F767ZI": "nucleo-f767zi"}  # fmt: skip
MLPERF: Final = {
    "MLPerf Tiny ad": ("ad", "mlperf_ad01_int8.tflite"),
    "MLPerf Tiny ic": ("ic", "mlperf_ic_resnet8_int8.tflite"),
    "MLPerf Tiny kws": ("kws", "mlperf_kws_dscnn_int8.tflite"),
}
OF_MLPERF: Final = {"AD-baseline (FC-AE)": "MLPerf Tiny ad"}  # the same network by another name
# Channels of the convolution and of each separable block (Banbury et al., 2020, MicroNets; its
# DS-CNNs are those of Zhang et al., 2017, in width). Strides follow from the published
# multiply-accumulates, which these come to within 2 %: 1 of the convolution, 2 of the first block.
KEYWORD_NETS: Final = {
    "DSCNN-S": (64, *[64] * 4), "DSCNN-M": (172, *[172] * 4), "DSCNN-L": (276, *[276] * 5),
    "MicroNet-KWS-S": (84, 112, 84, 84, 84, 196), "MicroNet-KWS-M": (140, 140, 140, 140, 112, 196),
    "MicroNet-KWS-L": (276, 248, 276, 276, 248, 248, 248, 248),
}  # fmt: skip
CORES: Final = {"Cortex-M4F": "cortex-m4f", "Cortex-M7": "cortex-m7", "Cortex-M33": "cortex-m33"}


def _conv(h: int, c: int, out: int, k: int, stride: int, *, valid: bool = False) -> KernelShape:
    size = (h - k) // stride + 1 if valid else -(-h // stride)
    return KernelShape(
        kind="CONV_2D", in_h=h, in_w=h, in_c=c, out_h=size, out_w=size, out_c=out, k_h=k, k_w=k,
        stride=stride,
    )  # fmt: skip


def _depthwise(h: int, c: int, stride: int) -> KernelShape:
    size = -(-h // stride)
    return KernelShape(
        kind="DEPTHWISE_CONV_2D", in_h=h, in_w=h, in_c=c, out_h=size, out_w=size, out_c=c,
        k_h=3, k_w=3, stride=stride,
    )  # fmt: skip


def mobilenet_v1(side: int, width: float) -> list[KernelShape]:
    """Return the layers of MobileNetV1 (Howard et al., 2017, table 1) without the classifier."""

    def of(n: int) -> int:
        return max(8, int(n * width + 4) // 8 * 8)

    layers, h, c = [_conv(side, 3, of(32), 3, 2)], -(-side // 2), of(32)
    for out, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
                        *[(512, 1)] * 5, (1024, 2), (1024, 1)):  # fmt: skip
        layers += [_depthwise(h, c, stride)]
        h = -(-h // stride)
        layers += [_conv(h, c, of(out), 1, 1)]
        c = of(out)
    return layers


def fd_mobilenet(side: int, width: float) -> list[KernelShape]:
    """Return the layers of FD-MobileNet (Qin et al., 2018, table 1), which shrinks earlier."""

    def of(n: int) -> int:
        return max(8, int(n * width + 4) // 8 * 8)

    layers, h, c = [_conv(side, 3, of(32), 3, 2)], -(-side // 2), of(32)
    for out, stride in ((64, 2), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 4,
                        (1024, 1)):  # fmt: skip
        layers += [_depthwise(h, c, stride)]
        h = -(-h // stride)
        layers += [_conv(h, c, of(out), 1, 1)]
        c = of(out)
    return layers


def keyword_net(channels: Sequence[int]) -> list[KernelShape]:
    """Return the layers of a DS-CNN over 49 frames of 10 coefficients, told apart in 12 classes."""
    h, w = 49, 10
    layers = [
        KernelShape(kind="CONV_2D", in_h=h, in_w=w, in_c=1, out_h=h, out_w=w, out_c=channels[0],
                    k_h=10, k_w=4, stride=1)
    ]  # fmt: skip
    for i, (c, out) in enumerate(pairwise(channels)):
        stride = 1 if i else 2
        out_h, out_w = -(-h // stride), -(-w // stride)
        layers += [
            KernelShape(kind="DEPTHWISE_CONV_2D", in_h=h, in_w=w, in_c=c, out_h=out_h, out_w=out_w,
                        out_c=c, k_h=3, k_w=3, stride=stride),
            KernelShape(kind="CONV_2D", in_h=out_h, in_w=out_w, in_c=c, out_h=out_h, out_w=out_w,
                        out_c=out, k_h=1, k_w=1, stride=1),
        ]  # fmt: skip
        h, w = out_h, out_w
    last = channels[-1]
    pool = KernelShape(kind="AVERAGE_POOL_2D", in_h=h, in_w=w, in_c=last, out_h=1, out_w=1,
                       out_c=last, k_h=h, k_w=w, stride=1)  # fmt: skip
    dense = KernelShape(kind="FULLY_CONNECTED", in_h=1, in_w=1, in_c=last, out_h=1, out_w=1,
                        out_c=12, k_h=1, k_w=1, stride=1)  # fmt: skip
    return [*layers, pool, dense]


def squeezenet_v11(side: int) -> list[KernelShape]:
    """Return the convolutions of SqueezeNet 1.1 (Iandola et al., 2016, and its later release)."""
    layers = [_conv(side, 3, 64, 3, 2)]
    h, c = -(-side // 2) // 2, 64
    fires = ((16, 64, 0), (16, 64, 1), (32, 128, 0), (32, 128, 1), (48, 192, 0), (48, 192, 0),
             (64, 256, 0), (64, 256, 0))  # fmt: skip
    for squeeze, expand, pools in fires:
        layers += [_conv(h, c, squeeze, 1, 1), _conv(h, squeeze, expand, 1, 1),
                   _conv(h, squeeze, expand, 3, 1)]  # fmt: skip
        c = 2 * expand
        h = h // 2 if pools else h
    return layers


def _layers(row: Mapping[str, str], models: Path) -> tuple[str, list[KernelShape]] | None:
    """Return the name of a row's network and its layers, None where they are not known."""
    model, family = OF_MLPERF.get(row["model"], row["model"]), row["model_family"]
    if model in MLPERF:
        name, file = MLPERF[model]
    elif model in KEYWORD_NETS:
        return model, keyword_net(KEYWORD_NETS[model])
    elif family == "resnet v1":
        name, file = "ic", MLPERF["MLPerf Tiny ic"][1]  # the same network
    else:
        side = int(row["input_shape"].split("x")[0]) if row["input_shape"] else 0
        if family == "mobilenet v1":
            return f"mobilenet v1 {side}", mobilenet_v1(side, 0.25)
        if family == "fdmobilenet":
            return f"fdmobilenet {side}", fd_mobilenet(side, 0.25)
        if family == "squeezenet v1.1":
            return f"squeezenet {side}", squeezenet_v11(side)
        if "ssd mobilenet v1" in family:
            body = mobilenet_v1(side, 0.25)
            rest = float(row["macs"]) - sum(layer.macs for layer in body)
            head = side // 32  # what the backbone does not do is in the heads' convolutions
            out = max(1, round(rest / (head * head * 9 * 256)))
            return f"ssd mobilenet v1 {side}", [*body, _conv(head, 256, out, 3, 1)]
        return None
    graph = read_graph_file(models / file)
    return name, [shape_of(graph, op) for op in graph.ops]


def results(anchors: Path, models: Path) -> list[Result]:
    """Return int8 results, those of several submitters of one version together."""
    found: dict[tuple[str, str, str, str], list[Result]] = {}
    for row in _rows(anchors):
        target = BOARDS.get(row["profile"]) or DEVICES.get(row["device"])
        layers = _layers(row, models) if target is not None else None
        cycles = float(row["latency_ms"]) * float(row["clock_mhz"]) * 1e3
        if layers is None and not row["macs"]:
            continue  # nothing to predict from
        classes: dict[str, float] = {}
        name = row["model"]
        macs = float(row["macs"] or 0)
        if layers is not None and target is not None:
            name, shapes = layers
            macs = macs or sum(shape.macs for shape in shapes)
            per_layer = cost_of_shapes(shapes, load_target(target))
            for shape, one in zip(shapes, per_layer, strict=True):
                kind = OF_CLASS.get(group_of(shape)[0], "rest")
                classes[kind] = classes.get(kind, 0.0) + one[0]
                classes["waiting"] = classes.get("waiting", 0.0) + one[1]
        result = Result(
            board=target or row["device"], core=CORES[row["core"]], engine=row["runtime"],
            version=row["runtime_version"], model=name, macs=macs, cycles=cycles, classes=classes,
        )  # fmt: skip
        key = (result.board, result.engine, result.version, row["model"])
        if row["runtime"] == "microTVM+CMSIS-NN" or row["runtime"] == "microTVM native":
            key = (result.board, result.engine, "", row["model"])  # rounds repeat the same build
        found.setdefault(key, []).append(result)
    merged = []
    for rows in found.values():
        first = rows[0]
        mean = float(np.exp(np.mean(np.log([r.cycles for r in rows]))))
        merged.append(Result(**{**vars(first), "cycles": mean}))
    return merged


def _rows(anchors: Path) -> Iterator[dict[str, str]]:
    for name in ("mlperf_tiny.csv", "mcu.csv"):
        with (anchors / name).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["core"] in CORES and row["precision"] == "int8" and row["quality"] != "C":
                    yield row
