"""An int8 file with marked scales becomes one with int16 values; LiteRT says what it computes."""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as S

from edgeshrink.errors import ModelError
from edgeshrink.exporting.tflite_passes import Editor
from edgeshrink.exporting.widen_file import widen_file
from edgeshrink.graph import Graph
from edgeshrink.graph_reader import read_graph
from edgeshrink.quantizer.widths import Wide
from edgeshrink.runtimes import open_model
from tests.kernels.host import check_against_tflm
from tests.tiny_models import TfliteBuilder

MARK = 2.0**-13  # the scale of the values that are to be int16
X_SCALE, X_ZERO = 0.03125, 5
WEIGHT_SCALES = np.array([0.01, 0.002, 0.004], np.float32)


def widened(build: TfliteBuilder, *scales: float, constants=()) -> bytes:
    editor = Editor(build.bytes())
    marks = {(scale, 0): scale for scale in scales or (MARK,)}
    widen_file(editor, Wide(scales=marks, constants=tuple(constants)))
    editor.drop_unused()
    return editor.bytes()


def run(data: bytes, *arrays: np.ndarray) -> np.ndarray:
    with open_model(data, "litert-builtin") as runner:
        return runner.run(*arrays)[0]


def dense(build: TfliteBuilder, x: int, y: int, *, seed: int = 0, bias: bool = True):
    """FULLY_CONNECTED 4 -> 3; returns weights and bias as the file has them."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(-127, 128, (3, 4)).astype(np.int8)
    w = build.tensor("w", (3, 4), "INT8", data=weights, scale=WEIGHT_SCALES, zero_point=[0] * 3)
    inputs, codes = [x, w], rng.integers(-500, 500, 3).astype(np.int32)
    if bias:
        x_scale = build.graph.tensors[x].quantization.scale[0]
        inputs.append(build.tensor("b", (3,), "INT32", data=codes, scale=WEIGHT_SCALES * x_scale,
                                   zero_point=[0] * 3))  # fmt: skip
    build.op("FULLY_CONNECTED", inputs, [y], S.FullyConnectedOptionsT(keepNumDims=True), 4)
    return weights, codes if bias else np.zeros(3, np.int32)


def types(graph: Graph, tensors) -> list[str]:
    return [graph.tensors[t].dtype for t in tensors if t >= 0]


@pytest.mark.parametrize("bias", [True, False])
def test_layer_that_writes_int16_reads_int8_without_loss(bias):
    build = TfliteBuilder()
    x = build.tensor("x", (1, 4), "INT8", scale=X_SCALE, zero_point=X_ZERO)
    y = build.tensor("y", (1, 3), "INT8", scale=MARK)
    weights, codes = dense(build, x, y, bias=bias)
    build.graph.inputs, build.graph.outputs = [x], [y]
    data = widened(build)
    graph = read_graph(data)
    assert [op.kind for op in graph.ops] == ["QUANTIZE", "FULLY_CONNECTED"]
    assert [op.version for op in graph.ops] == [2, 7]
    assert types(graph, graph.ops[1].inputs) == ["int16", "int8", "int64"]
    assert types(graph, (*graph.inputs, *graph.outputs)) == ["int8", "int16"]
    stored = np.random.default_rng(1).integers(-128, 128, (50, 1, 4)).astype(np.int8)
    real = (stored.astype(np.float64) - X_ZERO) * X_SCALE
    unit = WEIGHT_SCALES.astype(np.float64)
    exact = real @ (weights * unit[:, None]).T + codes * unit * X_SCALE
    expected = np.clip(np.round(exact / MARK), -32768, 32767)
    got = run(data, stored[:, 0])
    assert np.abs(got - expected[:, 0]).max() <= 1, "one multiplier is rounded"
    assert np.abs(got).max() > 10_000
    check_against_tflm(data, stored)


def test_values_between_int16_layers_stay_int16_and_leave_through_a_quantize():
    build = TfliteBuilder()
    x = build.tensor("x", (1, 4), "INT8", scale=X_SCALE, zero_point=X_ZERO)
    between = build.tensor("z", (1, 4), "INT8", scale=MARK)
    y = build.tensor("y", (1, 3), "INT8", scale=0.0625, zero_point=-9)
    build.op("TANH", [x], [between])
    dense(build, between, y)
    build.graph.inputs, build.graph.outputs = [x], [y]
    graph = read_graph(widened(build))
    assert [op.kind for op in graph.ops] == ["QUANTIZE", "TANH", "FULLY_CONNECTED", "QUANTIZE"]
    wide = graph.tensors[graph.ops[2].outputs[0]]
    assert wide.dtype == "int16"
    assert float(wide.quantization.scales[0]) == 0.0625 / 128
    assert types(graph, graph.outputs) == ["int8"]


def test_bias_keeps_its_value_in_the_steps_of_its_input():
    build = TfliteBuilder()
    x = build.tensor("x", (1, 4), "INT8", scale=MARK)
    y = build.tensor("y", (1, 3), "INT8", scale=0.25)
    _, codes = dense(build, x, y)
    build.graph.inputs, build.graph.outputs = [x], [y]
    graph = read_graph(widened(build))
    bias = graph.tensors[graph.ops[0].inputs[2]]
    np.testing.assert_array_equal(bias.data, codes.astype(np.int64))
    np.testing.assert_allclose(bias.quantization.scales, WEIGHT_SCALES * np.float32(MARK))


def test_fixed_output_scale_of_the_specification_holds_on_the_way_to_int8():
    build = TfliteBuilder()
    x = build.tensor("x", (1, 40), "INT8", scale=MARK)
    y = build.tensor("y", (1, 40), "INT8", scale=1 / 128)
    build.op("TANH", [x], [y])
    build.graph.inputs, build.graph.outputs = [x], [y]
    data = widened(build)
    graph = read_graph(data)
    assert float(graph.tensors[graph.ops[0].outputs[0]].quantization.scales[0]) == 2.0**-15
    stored = np.linspace(-32768, 32767, 40).astype(np.int16)[None]
    expected = np.clip(np.round(np.tanh(stored * MARK) * 128), -128, 127)
    assert np.abs(run(data, stored) - expected).max() <= 1
    check_against_tflm(data, stored[None])


def test_constant_of_its_own_scale_is_read_without_loss():
    build = TfliteBuilder()
    x = build.tensor("x", (1, 8), "INT8", scale=MARK)
    values = np.array([-128, -5, 0, 1, 17, 64, 126, 127], np.int8)
    c = build.tensor("c", (1, 8), "INT8", data=values, scale=0.01, zero_point=3)
    y = build.tensor("y", (1, 8), "INT8", scale=MARK * 2)
    build.op("MUL", [x, c], [y], S.MulOptionsT())
    build.graph.inputs, build.graph.outputs = [x], [y]
    data = widened(build, MARK, MARK * 2)
    stored = np.full((1, 8), 20_000, np.int16)
    expected = 20_000 * (values.astype(np.float64) - 3) * 0.01 / 2
    assert np.abs(run(data, stored) - expected).max() <= 1.5
    check_against_tflm(data, stored[None])


def clamp() -> TfliteBuilder:
    """Clamp to numbers that have the scale of x, and are beyond int8 in it."""
    build = TfliteBuilder()
    x, z, y = (build.tensor(name, (1, 8), "INT8", scale=MARK) for name in "xzy")
    low, high = (
        build.tensor(name, (1, 1), "INT8", data=np.array([[code]], np.int8), scale=MARK)
        for name, code in (("low", 127), ("high", 127))
    )
    build.op("MAXIMUM", [x, low], [z], S.MaximumMinimumOptionsT())
    build.op("MINIMUM", [z, high], [y], S.MaximumMinimumOptionsT())
    build.graph.inputs, build.graph.outputs = [x], [y]
    return build


def test_constants_that_int8_clamped_come_back_in_the_order_in_which_they_are_read():
    codes = [np.array([[1000]], np.int16), np.array([[9000]], np.int16)]
    data = widened(clamp(), constants=codes)
    stored = np.linspace(-32768, 32767, 8).astype(np.int16)[None]
    np.testing.assert_array_equal(run(data, stored), np.clip(stored, 1000, 9000))
    check_against_tflm(data, stored[None])


def test_constant_that_the_graph_does_not_have_is_refused():
    for codes in ([], [np.array([[1000]], np.int16)], [np.array([[-3]], np.int16)] * 2):
        with pytest.raises(ModelError, match="is not in the quantized graph"):
            widened(clamp(), constants=codes)


def test_constants_move_to_the_layout_of_the_file():
    build = TfliteBuilder()
    x, y = (build.tensor(name, (1, 2, 2, 3), "INT8", scale=MARK) for name in "xy")
    codes = np.array([700, -4, 30_000], np.int16).reshape(1, 3, 1, 1)  # channels first
    clipped = np.clip(codes, -128, 127).astype(np.int8).reshape(1, 1, 1, 3)
    c = build.tensor("c", (1, 1, 1, 3), "INT8", data=clipped, scale=MARK)
    build.op("MINIMUM", [x, c], [y], S.MaximumMinimumOptionsT())
    build.graph.inputs, build.graph.outputs = [x], [y]
    data = widened(build, constants=[codes])
    stored = np.random.default_rng(0).integers(-32768, 32768, (1, 2, 2, 3)).astype(np.int16)
    np.testing.assert_array_equal(run(data, stored), np.minimum(stored, codes.reshape(1, 1, 1, 3)))


def test_sums_of_any_scales_are_asked_for():
    build = TfliteBuilder()
    a = build.tensor("a", (1, 8), "INT8", scale=X_SCALE, zero_point=X_ZERO)
    b, y = (build.tensor(n, (1, 8), "INT8", scale=MARK * 1.5) for n in "by")
    build.op("ADD", [a, b], [y], S.AddOptionsT())
    build.graph.inputs, build.graph.outputs = [a, b], [y]
    data = widened(build, MARK * 1.5)
    one = np.arange(-4, 4, dtype=np.int8)[None]
    other = np.linspace(-9000, 9000, 8).astype(np.int16)[None]
    expected = (one.astype(float) - X_ZERO) * X_SCALE / (MARK * 1.5) + other
    assert np.abs(run(data, one, other) - expected).max() <= 1
    check_against_tflm(data, one[None], other[None])


def test_file_without_marks_stays_as_it_is():
    build = TfliteBuilder()
    x = build.tensor("x", (1, 4), "INT8", scale=X_SCALE, zero_point=X_ZERO)
    y = build.tensor("y", (1, 3), "INT8", scale=0.25)
    dense(build, x, y)
    build.graph.inputs, build.graph.outputs = [x], [y]
    kept = read_graph(widened(build))
    assert {t.dtype for t in kept.tensors} == {"int8", "int32"}
    assert [(op.kind, op.version) for op in kept.ops] == [("FULLY_CONNECTED", 4)]
