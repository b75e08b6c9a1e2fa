"""The reference interpreter equals TensorFlow Lite Micro bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgeshrink.graph_reader import read_graph
from edgeshrink.runtimes import open_model
from tests.int8_nets import Int8Net, random_int8
from tests.reference_interpreter import run

ALL_STORED = np.arange(-128, 128).astype(np.int8).reshape(1, 256)


def assert_equals_tflm(data: bytes, *inputs: np.ndarray) -> None:
    """Compare all outputs of one inference."""
    with open_model(data, "tflm") as model:
        expected = model.run(*inputs)
    got = run(read_graph(data), *inputs)
    for index, (mine, theirs) in enumerate(zip(got, expected, strict=True)):
        np.testing.assert_array_equal(mine, theirs, err_msg=f"output {index}")


def convolutions(net: Int8Net) -> list[int]:
    x = net.input((1, 7, 6, 4))
    big = net.conv(x, 5, (3, 3))
    return [
        big,
        net.conv(x, 3, (1, 1), activation="RELU"),
        net.conv(x, 6, (3, 2), stride=(2, 1), padding="VALID", activation="RELU6"),
        net.conv(x, 2, (2, 3), dilation=(2, 2), activation="RELU_N1_TO_1"),
        net.conv(x, 4, (5, 5), stride=(2, 3), is_per_channel=False),
        net.conv(x, 3, (3, 3), bias=False),
        net.conv(x, 4, (3, 3), weights=net.weights((4, 3, 3, 2))),  # two groups
    ]


def depthwise_convolutions(net: Int8Net) -> list[int]:
    x = net.input((1, 6, 7, 4))
    return [
        net.depthwise(x),
        net.depthwise(x, (3, 2), stride=(2, 2), activation="RELU"),
        net.depthwise(x, (2, 2), multiplier=3, padding="VALID"),
        net.depthwise(x, (3, 3), dilation=(2, 1), activation="RELU6"),
        net.depthwise(x, (3, 3), bias=False),
    ]


def dense_layers(net: Int8Net) -> list[int]:
    x = net.input((1, 24))
    return [
        net.dense(x, 7),
        net.dense(x, 5, activation="RELU"),
        net.dense(x, 6, is_per_channel=True),
        net.dense(x, 3, bias=False),
        *(net.dense(x, 4) for _ in range(6)),
    ]


def arithmetic(net: Int8Net) -> list[int]:
    a, b = net.input((1, 4, 5, 6)), net.input((1, 4, 5, 6))
    row = net.input((1, 1, 1, 6))
    constant = net.constant(net.weights((1, 1, 1, 6)), 0.03, 5)
    found = []
    for kind in ("ADD", "SUB", "MUL"):
        for activation in ("NONE", "RELU", "RELU6", "RELU_N1_TO_1"):
            found.append(net.binary(kind, a, b, activation))
        found += [net.binary(kind, a, row), net.binary(kind, constant, b)]
    return [
        *found,
        *(net.binary(kind, a, b, y=net.like(a)) for kind in ("MAXIMUM", "MINIMUM")),
    ]


def pools(net: Int8Net) -> list[int]:
    x = net.input((1, 9, 8, 3))
    found = []
    for kind in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
        found += [
            net.pool(kind, x, (2, 2)),
            net.pool(kind, x, (3, 3), (2, 2), "SAME"),
            net.pool(kind, x, (4, 2), (1, 3), "SAME", "RELU"),
            net.pool(kind, x, (9, 8), activation="RELU6"),
        ]
    return found


def reductions(net: Int8Net) -> list[int]:
    x = net.input((1, 6, 5, 7))
    found = []
    for axes in ((1, 2), (3,), (1,), (1, 2, 3)):
        found += [net.mean(x, axes), net.mean(x, axes, keep=False)]
    return [*found, net.mean(x, y=net.activation((1, 1, 1, 7)))]


def movements(net: Int8Net) -> list[int]:
    x = net.input((1, 4, 5, 3))
    z = net.like(x)
    net.build.op("MAXIMUM", [x, x], [z])
    return [
        net.pad(x, ((0, 0), (1, 2), (0, 3), (0, 0))),
        net.pad(x, ((0, 0), (2, 0), (1, 1), (1, 0)), value=-77),
        net.reshape(x, (1, 60)),
        net.concat([x, z, x]),
        net.concat([x, z], axis=1),
        net.transpose(x, (0, 3, 1, 2)),
        net.strided_slice(x, (0, 1, 0, 0), (1, 4, 5, 3), (1, 2, 2, 1)),
    ]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "layers",
    [
        convolutions, depthwise_convolutions, dense_layers, arithmetic, pools, reductions,
        movements,
    ],
    ids=lambda layers: layers.__name__,
)  # fmt: skip
def test_interpreter_equals_tflm(layers: Callable[[Int8Net], list[int]], seed: int) -> None:
    net = Int8Net(seed)
    data = net.finish(*layers(net))
    shapes = [net.shape(tensor) for tensor in net.inputs]
    assert_equals_tflm(data, *(random_int8(shape, seed + i) for i, shape in enumerate(shapes)))


@pytest.mark.parametrize("kind", ["SOFTMAX", "QUANTIZE", "LEAKY_RELU", "PRELU"])
def test_interpreter_equals_tflm_on_many_scales(kind: str) -> None:
    net = Int8Net(1)
    outputs = []
    for _ in range(40):
        x = net.input((1, 16, 16), net.scale(0.001, 2))
        if kind == "PRELU":
            y = net.activation((1, 16, 16))
            alpha = net.constant(net.weights((1, 1, 16)), net.scale())
            net.build.op("PRELU", [x, alpha], [y])
            outputs.append(y)
        else:
            outputs.append(net.unary(kind, x))
    assert_equals_tflm(net.finish(*outputs), *[ALL_STORED.reshape(1, 16, 16)] * 40)


@pytest.mark.parametrize("layer", ["dense", "conv"])
def test_interpreter_equals_tflm_where_a_sum_lies_at_a_half(layer: str) -> None:
    """Sums are the bias alone; times the ratio of scales they are halves, but for its rounding."""
    net = Int8Net(4)
    outputs = []
    for _ in range(150):
        x_scale, w_scale = net.scale(), net.scale(0.001, 0.1)
        total, halves = net.random.integers(3, 120), net.random.integers(30, 120) + 0.5
        y_scale = float(np.float32(x_scale * w_scale * total / halves))
        bias = np.array([total], np.int32)
        x = net.input((1, 1, 1, 1), x_scale, 0)
        y = net.activation((1, 1) if layer == "dense" else (1, 1, 1, 1), y_scale, 0)
        net.weight_scale = w_scale
        if layer == "dense":
            outputs.append(net.dense(x, 1, bias=bias, y=y))
        else:
            outputs.append(net.conv(x, 1, (1, 1), bias=bias, y=y))
    zeros = np.zeros((1, 1, 1, 1), np.int8)
    assert_equals_tflm(net.finish(*outputs), *[zeros] * 150)


@pytest.mark.parametrize("kind", ["ADD", "SUB", "MUL"])
def test_interpreter_equals_tflm_on_all_pairs_of_values(kind: str) -> None:
    """With 65,536 pairs for each scale, some results lie at halves but for rounding."""
    net = Int8Net(6)
    outputs = []
    for _ in range(6):
        a, b = net.input((1, 256, 256)), net.input((1, 256, 256))
        outputs.append(net.binary(kind, a, b))
    stored = ALL_STORED.reshape(1, 256, 1)
    rows = np.broadcast_to(stored, (1, 256, 256))
    columns = np.broadcast_to(stored.reshape(1, 1, 256), (1, 256, 256))
    pairs = [np.ascontiguousarray(rows), np.ascontiguousarray(columns)] * 6
    assert_equals_tflm(net.finish(*outputs), *pairs)


def test_interpreter_equals_tflm_where_the_gate_of_hard_swish_rounds_at_a_half() -> None:
    net = Int8Net(7)
    outputs = []
    for _ in range(60):
        mantissa = (2 * int(net.random.integers(2**14, 2**15)) + 1) / 2**16
        x_scale = float(np.float32(128 * 3 / 32768 * mantissa * 2.0 ** int(net.random.integers(4))))
        x = net.input((1, 256), x_scale)
        outputs.append(net.unary("HARD_SWISH", x, net.activation((1, 256), x_scale * 0.7)))
    assert_equals_tflm(net.finish(*outputs), *[ALL_STORED] * 60)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["mlperf_ad01", "mlperf_ic_resnet8", "mlperf_kws_dscnn", "mlperf_vww_mbv1_96"]
)
def test_interpreter_equals_tflm_on_the_mlperf_models(name, shared_dir):
    data = (shared_dir / "models" / f"{name}_int8.tflite").read_bytes()
    graph = read_graph(data)
    x = random_int8((20, *graph.tensors[graph.inputs[0]].shape[1:]))
    with open_model(data, "tflm") as model:
        expected = model.run(x)[0]
    got = np.concatenate([run(graph, x[i : i + 1])[0] for i in range(len(x))])
    np.testing.assert_array_equal(got, expected)
