"""Passes over a fresh `.tflite`, on small files written for them; LiteRT says what they compute."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as S

from edgeshrink.exporting.tflite_passes import Editor, finish
from edgeshrink.graph import Graph
from edgeshrink.graph_reader import read_graph
from edgeshrink.runtimes import open_model
from tests.tiny_models import TfliteBuilder, unpack, with_outside_buffers

SIGNATURE_IN, SIGNATURE_OUT = "args_0", "output_0"


def finished(build: TfliteBuilder, *, quantized: bool = True, layers=None) -> bytes:
    n_in, n_out = len(build.graph.inputs), len(build.graph.outputs)
    if build.model.signatureDefs is None:
        build.signature(
            {f"args_{i}": t for i, t in enumerate(build.graph.inputs)},
            {f"output_{i}": t for i, t in enumerate(build.graph.outputs)},
        )
    return finish(
        build.bytes(),
        input_names=("image", "extra")[:n_in],
        output_names=("scores", "more", "last")[:n_out],
        layers=layers or {},
        quantized=quantized,
    )


def kinds(data: bytes) -> list[str]:
    return [op.kind for op in read_graph(data).ops]


def run(data: bytes, *arrays: np.ndarray) -> list[np.ndarray]:
    with open_model(data, "litert-builtin") as runner:
        return list(runner.run(*arrays))


def names(graph: Graph, tensors: Sequence[int]) -> list[str]:
    return [graph.tensors[i].name for i in tensors]


# --- int8 at both ends ------------------------------------------------------------------------


def quantized_sum(*, second_scale: float = 0.5) -> TfliteBuilder:
    """float -> QUANTIZE (twice) -> x + x -> DEQUANTIZE -> float."""
    build = TfliteBuilder()
    x = build.tensor("serving_x", (1, 4))
    left = build.tensor("a", (1, 4), "INT8", scale=0.5, zero_point=3)
    right = build.tensor("b", (1, 4), "INT8", scale=second_scale, zero_point=3)
    total = build.tensor("t", (1, 4), "INT8", scale=1.0, zero_point=0)
    y = build.tensor("serving_y", (1, 4))
    build.op("QUANTIZE", [x], [left])
    build.op("QUANTIZE", [x], [right])
    build.op("ADD", [left, right], [total], S.AddOptionsT())
    build.op("DEQUANTIZE", [total], [y])
    build.graph.inputs, build.graph.outputs = [x], [y]
    return build


def test_quantize_and_dequantize_at_the_ends_are_gone_and_the_ends_are_int8():
    data = finished(quantized_sum())
    graph = read_graph(data)
    assert kinds(data) == ["ADD"]
    source, sink = graph.tensors[graph.inputs[0]], graph.tensors[graph.outputs[0]]
    assert (source.dtype, sink.dtype) == ("int8", "int8")
    assert source.quantization is not None
    assert (source.quantization.scales[0], source.quantization.zero_points[0]) == (0.5, 3)
    x = np.array([[3, 13, -7, 103]], np.int8)  # 0, 5, -5, 50
    assert run(data, x)[0].tolist() == [[0, 10, -10, 100]]


def test_input_that_is_quantized_with_two_scales_keeps_its_float_end():
    data = finished(quantized_sum(second_scale=0.25))
    assert kinds(data) == ["QUANTIZE", "QUANTIZE", "ADD"]
    graph = read_graph(data)
    assert graph.tensors[graph.inputs[0]].dtype == "float32"


def test_float_input_that_somebody_reads_in_float_keeps_its_end():
    build = TfliteBuilder()
    x, z = build.tensor("x", (1, 4)), build.tensor("z", (1, 4))
    q = build.tensor("q", (1, 4), "INT8", scale=0.5)
    build.op("QUANTIZE", [x], [q])
    build.op("ADD", [x, x], [z], S.AddOptionsT())
    build.graph.inputs, build.graph.outputs = [x], [q, z]
    assert sorted(kinds(finished(build))) == ["ADD", "QUANTIZE"]


def test_ends_of_a_float_model_are_left_alone():
    data = finished(quantized_sum(), quantized=False)
    assert kinds(data) == ["QUANTIZE", "QUANTIZE", "ADD", "DEQUANTIZE"]


# --- names ------------------------------------------------------------------------------------


def test_inputs_outputs_and_results_have_names_and_constants_have_none():
    build = quantized_sum()
    constant = build.tensor(
        "a_very_long_name_of_a_constant", (1, 4), "INT8", data=np.ones((1, 4), np.int8), scale=1.0
    )
    total = build.tensor("t2", (1, 4), "INT8", scale=2.0, zero_point=1)
    build.op("ADD", [3, constant], [total], S.AddOptionsT())
    build.graph.operators[3], build.graph.operators[4] = (
        build.graph.operators[4], build.graph.operators[3],
    )  # fmt: skip
    build.graph.operators[4].inputs = [total]
    graph = read_graph(finished(build, layers={(1.0, 0): "features.0", (2.0, 1): "head"}))
    assert names(graph, graph.inputs) == ["image"]
    assert names(graph, graph.outputs) == ["scores"]
    assert names(graph, graph.ops[0].outputs) == ["features.0"]
    assert all(t.name == "" for t in graph.tensors if t.data is not None)
    assert (graph.input_names, graph.output_names) == (("image",), ("scores",))


def test_results_of_one_layer_are_told_apart():
    build = quantized_sum()
    build.graph.operators.pop()
    second = build.tensor("t2", (1, 4), "INT8", scale=1.0, zero_point=0)
    build.op("ABS", [3], [second])
    third = build.tensor("t3", (1, 4), "INT8", scale=1.0, zero_point=0)
    build.op("NEG", [second], [third])
    build.graph.outputs = [third]
    build.signature({SIGNATURE_IN: 0}, {SIGNATURE_OUT: third})
    graph = read_graph(finished(build, layers={(1.0, 0): "block"}))
    found = [graph.tensors[op.outputs[0]].name for op in graph.ops]
    assert found == ["block", "block:1", "scores"]


def test_names_follow_the_signature_whatever_order_the_file_has():
    build = TfliteBuilder()
    a, b = build.tensor("p", (1, 2)), build.tensor("q", (1, 2))
    total, difference = build.tensor("r", (1, 2)), build.tensor("s", (1, 2))
    build.op("ADD", [a, b], [total], S.AddOptionsT())
    build.op("SUB", [a, b], [difference], S.SubOptionsT())
    build.graph.inputs, build.graph.outputs = [b, a], [total, difference]
    build.signature({"args_1": b, "args_0": a}, {"output_1": difference, "output_0": total})
    data = finished(build, quantized=False)
    graph = read_graph(data)
    assert graph.input_names == ("image", "extra")
    assert names(graph, graph.outputs) == ["scores", "more"]
    one, two = np.array([[5.0, 1.0]], np.float32), np.array([[2.0, 3.0]], np.float32)
    got = run(data, one, two)
    assert [g.tolist() for g in got] == [[[7.0, 4.0]], [[3.0, -2.0]]]


# --- buffers ----------------------------------------------------------------------------------


def constant_sum() -> TfliteBuilder:
    build = TfliteBuilder()
    x, y = build.tensor("x", (1, 4)), build.tensor("y", (1, 4))
    c = build.tensor("c", (1, 4), data=np.arange(4, dtype=np.float32)[None])
    unused = build.tensor("unused", (1, 64), data=np.zeros((1, 64), np.float32))
    build.op("ADD", [x, c], [y], S.AddOptionsT())
    build.op("ADD", [x, unused], [build.tensor("dead", (1, 64))], S.AddOptionsT())
    build.graph.operators.pop()
    build.graph.inputs, build.graph.outputs = [x], [y]
    return build


def test_constants_outside_the_flatbuffer_come_inside():
    build = constant_sum()
    build.signature({SIGNATURE_IN: 0}, {SIGNATURE_OUT: 1})
    outside = with_outside_buffers(build.bytes())
    assert any(buffer.offset > 1 for buffer in unpack(outside).buffers)
    data = finish(outside, input_names=("x",), output_names=("y",), layers={}, quantized=False)
    assert all(buffer.offset <= 1 for buffer in unpack(data).buffers)
    assert run(data, np.ones((1, 4), np.float32))[0].tolist() == [[1, 2, 3, 4]]


def test_what_nothing_refers_to_is_dropped():
    model = unpack(finished(constant_sum(), quantized=False))
    assert len(model.subgraphs[0].tensors) == 3
    assert len(model.operatorCodes) == 1
    assert len(model.buffers) == 2  # the empty one that the format wants first, and the constant


def test_finishing_twice_gives_the_same_bytes():
    assert finished(quantized_sum()) == finished(quantized_sum())


def test_operator_code_is_found_again_and_made_where_there_is_none():
    build = quantized_sum()
    build.signature({SIGNATURE_IN: 0}, {SIGNATURE_OUT: 4})
    editor = Editor(build.bytes())
    count = len(editor.model.operatorCodes)
    assert editor.model.operatorCodes[editor.opcode("ADD", 1)].builtinCode == S.BuiltinOperator.ADD
    assert len(editor.model.operatorCodes) == count
    index = editor.opcode("GELU", 2)
    code = editor.model.operatorCodes[index]
    assert (code.builtinCode, code.deprecatedBuiltinCode, code.version) == (150, 127, 2)


# --- transposes around a pad ------------------------------------------------------------------


def transposed_pad(*, back: Sequence[int] = (0, 2, 3, 1), amounts=None) -> TfliteBuilder:
    """(1, 3, 5, 2) -> channels first -> PAD -> channels last."""
    amounts = np.array([[0, 0], [0, 0], [1, 2], [0, 3]] if amounts is None else amounts, np.int32)
    build = TfliteBuilder()
    x = build.tensor("x", (1, 3, 5, 2), "INT8", scale=0.5, zero_point=-4)
    first, pad = np.array([0, 3, 1, 2], np.int32), (1, 2, 3, 5)
    padded = tuple(int(n) for n in np.array(pad) + amounts.sum(1))
    a = build.tensor("a", pad, "INT8", scale=0.5, zero_point=-4)
    b = build.tensor("b", padded, "INT8", scale=0.5, zero_point=-4)
    out = tuple(padded[axis] for axis in back)
    y = build.tensor("y", out, "INT8", scale=0.5, zero_point=-4)
    build.op("TRANSPOSE", [x, build.tensor("p", (4,), "INT32", data=first)], [a], version=2)
    build.op("PAD", [a, build.tensor("n", (4, 2), "INT32", data=amounts)], [b], version=2)
    last = np.array(back, np.int32)
    build.op("TRANSPOSE", [b, build.tensor("q", (4,), "INT32", data=last)], [y], version=2)
    build.graph.inputs, build.graph.outputs = [x], [y]
    return build


SOME = np.random.default_rng(0).integers(-128, 128, (2, 3, 5, 2)).astype(np.int8)


@pytest.mark.parametrize("amounts", [None, [[0, 0], [1, 0], [0, 0], [2, 2]]])
def test_transposes_around_a_pad_become_one_pad_that_computes_the_same(amounts):
    build = transposed_pad(amounts=amounts)
    before = build.bytes()
    data = finished(build)
    assert kinds(data) == ["PAD"]
    assert np.array_equal(run(data, SOME)[0], run(before, SOME)[0])


def test_transposes_that_do_not_undo_each_other_stay():
    data = finished(transposed_pad(back=(0, 3, 2, 1)))
    assert kinds(data) == ["TRANSPOSE", "PAD", "TRANSPOSE"]


def test_pad_whose_result_is_read_elsewhere_stays():
    build = transposed_pad()
    build.graph.outputs = [*build.graph.outputs, 2]
    before = build.bytes()
    data = finished(build)
    assert "TRANSPOSE" in kinds(data)
    assert all(map(np.array_equal, run(data, SOME), run(before, SOME)))


# --- transposed convolution -------------------------------------------------------------------


def float_transpose_conv(*, with_bias: bool) -> tuple[TfliteBuilder, np.ndarray, np.ndarray]:
    """int8 -> DEQUANTIZE -> float TRANSPOSE_CONV -> QUANTIZE -> int8; weights on an int8 grid."""
    generator = np.random.default_rng(0)
    codes = generator.integers(-127, 128, (3, 2, 2, 2))  # (out, kh, kw, in)
    codes[:, 0, 0, 0] = 127
    scales = np.array([0.5, 0.25, 0.125])
    weights = (codes * scales[:, None, None, None]).astype(np.float32)
    bias = np.array([16.0, -8.0, 4.0], np.float32)
    build = TfliteBuilder()
    x = build.tensor("x", (1, 2, 3, 2), "INT8", scale=0.5, zero_point=7)
    f = build.tensor("f", (1, 2, 3, 2))
    g = build.tensor("g", (1, 4, 6, 3))
    y = build.tensor("y", (1, 4, 6, 3), "INT8", scale=64.0, zero_point=-1)
    shape = build.tensor("s", (4,), "INT32", data=np.array([1, 4, 6, 3], np.int32))
    w = build.tensor("w", weights.shape, data=weights)
    inputs = [shape, w, f]
    if with_bias:
        inputs.append(build.tensor("c", (3,), data=bias))
    build.op("DEQUANTIZE", [x], [f], version=2)
    options = S.TransposeConvOptionsT(padding=S.Padding.VALID, strideW=2, strideH=2)
    build.op("TRANSPOSE_CONV", inputs, [g], options, version=3 if with_bias else 1)
    build.op("QUANTIZE", [g], [y])
    build.graph.inputs, build.graph.outputs = [x], [y]
    return build, codes, scales


@pytest.mark.parametrize("with_bias", [False, True])
def test_float_transposed_convolution_becomes_int8_and_stays_within_a_rounding(with_bias):
    build, codes, scales = float_transpose_conv(with_bias=with_bias)
    before = build.bytes()
    data = finished(build)
    graph = read_graph(data)
    assert kinds(data) == ["TRANSPOSE_CONV"]
    weight = graph.tensors[graph.ops[0].inputs[1]]
    assert weight.quantization is not None
    assert np.array_equal(weight.quantization.scales, scales.astype(np.float32))
    assert np.array_equal(weight.data, codes)
    if with_bias:
        bias = graph.tensors[graph.ops[0].inputs[3]]
        assert bias.dtype == "int32"
        assert (bias.data * scales * 0.5).tolist() == [16.0, -8.0, 4.0]
    x = np.random.default_rng(1).integers(-128, 128, (8, 2, 3, 2)).astype(np.int8)
    difference = run(data, x)[0].astype(int) - run(before, x)[0]
    assert np.abs(difference).max() <= 1
    assert np.mean(difference != 0) < 0.02
    assert len(np.unique(run(data, x)[0])) > 20


def test_transposed_convolution_of_a_float_model_stays_float():
    build, _, _ = float_transpose_conv(with_bias=True)
    assert kinds(finished(build, quantized=False)) == ["DEQUANTIZE", "TRANSPOSE_CONV", "QUANTIZE"]
