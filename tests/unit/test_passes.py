"""Graph passes keep every bit of every output, fire where they can, and nowhere else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as S
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeshrink.costs.work import graph_macs
from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.graph import Graph
from edgeshrink.graph_reader import read_graph
from edgeshrink.passes import PASSES, conv_padding, is_pointwise, pointwise_table, run_passes
from edgeshrink.passes.fixed_point import multiply, quantize_multiplier
from edgeshrink.runtimes import open_model
from tests.int8_nets import Int8Net, random_int8, random_net
from tests.reference_interpreter import run

ALL_STORED = np.arange(-128, 128).astype(np.int8).reshape(1, 256)


def kinds(graph: Graph) -> list[str]:
    return [op.kind for op in graph.ops]


def samples(graph: Graph, seed: int = 0) -> Iterable[list[np.ndarray]]:
    """Random inputs, and the extremes."""
    shapes = [graph.tensors[i].shape for i in graph.inputs]
    for number in range(3):
        yield [random_int8(shape, seed + number) for shape in shapes]
    for value in (-128, 127):
        yield [np.full(shape, value, np.int8) for shape in shapes]


def passed(data: bytes, *names: str) -> Graph:
    """The graph after some passes (all if none is named), its outputs compared on the way."""
    before = read_graph(data)
    after, _ = run_passes(before, names or None)
    assert [t.index for t in after.tensors] == list(range(len(after.tensors)))
    assert [op.index for op in after.ops] == list(range(len(after.ops)))
    for old, new in ((before.inputs, after.inputs), (before.outputs, after.outputs)):
        for a, b in zip(old, new, strict=True):
            first, second = before.tensors[a], after.tensors[b]
            assert (first.name, first.shape, first.dtype) == (
                second.name,
                second.shape,
                second.dtype,
            )
    for inputs in samples(before):
        for old, new in zip(run(before, *inputs), run(after, *inputs), strict=True):
            np.testing.assert_array_equal(new, old)
    return after


def n_channels(graph: Graph) -> list[int]:
    return [graph.tensors[op.outputs[0]].shape[-1] for op in graph.ops]


# --- All of them -----------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32), name=st.sampled_from([*PASSES, "all"]))
@settings(max_examples=150, deadline=None)
def test_passes_keep_every_bit_of_random_networks(seed, name):
    data = random_net(seed)
    passed(data) if name == "all" else passed(data, name)


def test_every_pass_but_constant_folding_finds_work_in_random_networks():
    found = Counter(
        report.name
        for seed in range(40)
        for report in run_passes(read_graph(random_net(seed)))[1]
        if report.change
    )
    assert set(PASSES) - set(found) <= {"fold_constants"}


@pytest.mark.slow
def test_optimised_random_networks_equal_tflm():
    for seed in range(30):
        data = random_net(seed)
        graph = read_graph(data)
        inputs = [random_int8(graph.tensors[i].shape, seed) for i in graph.inputs]
        with open_model(data, "tflm") as model:
            expected = model.run(*inputs)
        for mine, theirs in zip(run(run_passes(graph)[0], *inputs), expected, strict=True):
            np.testing.assert_array_equal(mine, theirs, err_msg=f"network {seed}")


def test_no_passes_leave_the_graph_as_it_is():
    graph = read_graph(random_net(3))
    after, reports = run_passes(graph, ())
    assert after is graph
    assert reports == ()


def test_unknown_pass_is_refused_by_name():
    with pytest.raises(ConfigError, match="no pass 'fold_everything'; choose from remove_unused"):
        run_passes(read_graph(random_net(0)), ["fold_everything"])


def test_reports_count_operators_products_and_bytes():
    net = Int8Net()
    x = net.input((1, 4, 4, 2), zero=0)
    weights = net.weights((3, 1, 1, 2))
    weights[1] = 0
    hidden = net.conv(x, 3, (1, 1), weights=weights)
    data = net.finish(net.conv(net.unary("RELU", hidden, net.like(hidden)), 2, (1, 1)))
    _, reports = run_passes(read_graph(data))
    changes = {report.name: report for report in reports if report.change}
    assert changes["fuse_activation"].change == "removed 1 RELU"
    assert changes["fuse_activation"].ops_before - changes["fuse_activation"].ops_after == 1
    dead = changes["remove_dead_channels"]
    assert dead.change == "removed 1 of 5 channels"
    assert (dead.macs_before, dead.macs_after) == (16 * 6 + 16 * 6, 16 * 4 + 16 * 4)
    # One row of two weights and one column of two, one bias.
    assert dead.constant_bytes_before - dead.constant_bytes_after == 2 + 2 + 4


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"inputs": (0,)}, "has 1 inputs and 1 outputs"),
        ({"inputs": (-1, 1, 2)}, "lacks an input"),
        ({"inputs": (0, 0, 2)}, "has weights of the shape"),
    ],
)
def test_operator_that_does_not_fit_is_refused_by_index_and_kind(change, fault):
    net = Int8Net()
    graph = read_graph(net.finish(net.conv(net.input((1, 4, 5, 2)), 3)))
    broken = replace(graph, ops=(replace(graph.ops[0], **change),))
    with pytest.raises(ModelError, match=f"operator 0 CONV_2D.*: {fault}"):
        run_passes(broken)


def damaged(graph: Graph, random: np.random.Generator) -> Graph:
    """The graph with one thing wrong: a shape, a type, a scale, an input or an option."""
    tensors, ops = list(graph.tensors), list(graph.ops)
    place, tensor = int(random.integers(len(ops))), int(random.integers(len(tensors)))
    op, what = ops[place], int(random.integers(5))
    if what == 0 and tensors[tensor].data is None:
        shape = [*tensors[tensor].shape, 1][: int(random.integers(1, 6))]
        shape[-1] = int(random.integers(0, 5))
        tensors[tensor] = replace(tensors[tensor], shape=tuple(shape))
    elif what == 1 and tensors[tensor].data is None:
        dtype = str(random.choice(["int16", "float32", "int32", "uint8"]))
        tensors[tensor] = replace(tensors[tensor], dtype=dtype)
    elif what == 2:
        tensors[tensor] = replace(tensors[tensor], quantization=None)
    elif what == 3:
        known = [-1, *graph.inputs, *(t.index for t in graph.tensors if t.data is not None)]
        known += [i for earlier in ops[:place] for i in earlier.outputs]
        inputs = list(op.inputs)
        inputs[int(random.integers(len(inputs)))] = int(random.choice(known))
        ops[place] = replace(op, inputs=tuple(inputs[: int(random.integers(1, 5))]))
    else:
        numbers = [key for key, value in op.options.items() if isinstance(value, int)]
        if numbers:
            wrong = {str(random.choice(numbers)): int(random.integers(-2, 9))}
            ops[place] = replace(op, options={**op.options, **wrong})
    return replace(graph, tensors=tuple(tensors), ops=tuple(ops))


@given(seed=st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_damaged_graph_ends_in_an_error_of_ours_or_in_none(seed):
    random = np.random.default_rng(seed)
    graph = damaged(read_graph(random_net(seed % 100)), random)
    try:
        after, _ = run_passes(graph)
    except ModelError as error:
        where = error.where
    else:
        where = "operator 0"
        assert len(after.outputs) == len(graph.outputs)
    assert where.startswith("operator ")


def test_reshape_to_a_scalar_is_no_damage():
    net = Int8Net()
    x = net.unary("TANH", net.input((1, 1)))
    scalar = net.like(x, ())
    net.build.op("RESHAPE", [x, net.constant(np.zeros(0, np.int32))], [scalar])
    assert kinds(passed(net.finish(scalar))) == ["TANH", "RESHAPE"]


# --- Tables of pointwise operators ------------------------------------------------------------

POINTWISE = [
    "LOGISTIC", "TANH", "HARD_SWISH", "ELU", "LEAKY_RELU", "RELU", "RELU6", "QUANTIZE", "ABS",
]  # fmt: skip
# Powers of two make exact halves; around them rounding tips over.
DIRECTED_SCALES = [0.5, 0.25, 0.125, 0.5 + 2**-24, 0.25 - 2**-26, 1 / 3, 0.1, 0.75, 1.5, 1 / 256]


def assert_tables_equal_tflm(kind: str, cases: list[tuple[float, int, float, int]]) -> None:
    net = Int8Net(5)
    outputs = []
    for x_scale, x_zero, y_scale, y_zero in cases:
        x = net.input((1, 256), x_scale, x_zero)
        y_scale, y_zero = {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0)}.get(
            kind, (y_scale, y_zero)
        )
        outputs.append(net.unary(kind, x, net.activation((1, 256), y_scale, y_zero)))
    data = net.finish(*outputs)
    graph = read_graph(data)
    with open_model(data, "tflm") as model:
        expected = model.run(*[ALL_STORED] * len(cases))
    for op, case, values in zip(graph.ops, cases, expected, strict=True):
        assert is_pointwise(graph, op), case
        table = pointwise_table(graph, op)
        np.testing.assert_array_equal(table[ALL_STORED.view(np.uint8)], values, err_msg=str(case))


@pytest.mark.parametrize("kind", POINTWISE)
def test_table_equals_tflm_on_directed_scales(kind):
    cases = [
        (x_scale, x_zero, y_scale, y_zero)
        for x_scale in DIRECTED_SCALES
        for y_scale in DIRECTED_SCALES
        for x_zero, y_zero in ((0, 0), (-128, 127), (5, -9))
        if kind != "HARD_SWISH" or x_scale / 127 < y_scale < x_scale * 200
    ]
    assert_tables_equal_tflm(kind, cases)


@pytest.mark.parametrize("kind", POINTWISE)
def test_table_equals_tflm_on_random_scales(kind):
    net = Int8Net(11)  # for its random numbers
    cases = []
    for _ in range(100):
        x_scale, y_scale = net.scale(1e-4, 4), net.scale(1e-4, 4)
        zeros = net.random.integers(-128, 128, 2).tolist()
        if kind == "HARD_SWISH":
            y_scale = min(max(y_scale, x_scale / 100), x_scale * 200)
        cases.append((x_scale, zeros[0], y_scale, zeros[1]))
    assert_tables_equal_tflm(kind, cases)


@pytest.mark.parametrize("kind", ["RELU", "ABS", "LEAKY_RELU", "QUANTIZE", "HARD_SWISH"])
def test_table_equals_tflm_on_scales_that_lie_near_halves(kind):
    """Where float32 and double ratios of scales round to different sides."""
    random = np.random.default_rng(8)
    cases = []
    while len(cases) < 60:
        y_scale = np.float32(random.uniform(0.01, 1))
        halves = (2 * random.integers(1, 60) + 1) / 2
        ratio = halves / random.integers(3, 255)
        if kind == "HARD_SWISH":  # the multiplier keeps 15 bits
            ratio = (2 * random.integers(2**14, 2**15) + 1) / 2**15
        x_scale = np.float32(float(y_scale) * ratio)
        wide, narrow = float(x_scale) / float(y_scale), float(x_scale / y_scale)
        if quantize_multiplier(wide) != quantize_multiplier(narrow):
            cases.append((float(x_scale), -128, float(y_scale), -128))
    assert_tables_equal_tflm(kind, cases)


@pytest.mark.parametrize("kind", ["RELU_N1_TO_1", "RELU_0_TO_1"])
def test_table_of_an_activation_that_tflm_lacks_equals_litert(kind):
    for scale in (1 / 16, 0.03, 0.5):
        net = Int8Net()
        x = net.input((1, 256), scale, 3)
        y = net.like(x)
        net.build.op(kind, [x], [y])
        data = net.finish(y)
        graph = read_graph(data)
        with open_model(data, "litert-reference") as model:
            expected = model.run(ALL_STORED)[0]
        table = pointwise_table(graph, graph.ops[0])
        np.testing.assert_array_equal(table[ALL_STORED.view(np.uint8)], expected)


@pytest.mark.parametrize("kind", ["ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM"])
@pytest.mark.parametrize("is_first", [True, False])
def test_table_of_arithmetic_with_one_constant_equals_tflm(kind, is_first):
    net = Int8Net(2)
    outputs = []
    for value in (-128, -1, 0, 77, 127):
        x = net.input((1, 256))
        constant = net.constant(np.array([value], np.int8), net.scale(), -7)
        pair = (constant, x) if is_first else (x, constant)
        outputs.append(net.binary(kind, *pair))
    data = net.finish(*outputs)
    graph = read_graph(data)
    with open_model(data, "tflm") as model:
        expected = model.run(*[ALL_STORED] * 5)
    for op, values in zip(graph.ops, expected, strict=True):
        table = pointwise_table(graph, op)
        np.testing.assert_array_equal(table[ALL_STORED.view(np.uint8)], values)


def test_requantization_rounds_twice_first_halves_up_then_halves_away_from_zero():
    """Cases where one rounding, or another rule for halves, gives another result."""
    half, shift = quantize_multiplier(0.5)
    values = np.array([1, -1, 3, -3, 5, -5], np.int64)
    assert multiply(values, (half, shift)).tolist() == [1, 0, 2, -1, 3, -2]
    # 0.4999… of 2^-1: the first rounding makes it a half, the second one rounds that up.
    factor = (2**31 - 1, -1)
    assert multiply(np.array([1, -1, 3, -3], np.int64), factor).tolist() == [1, -1, 2, -2]


def test_table_of_an_operator_that_has_none_is_refused_with_a_reason():
    net = Int8Net()
    graph = read_graph(net.finish(net.unary("SOFTMAX", net.input((1, 8)))))
    with pytest.raises(ModelError, match=r"operator 0 SOFTMAX.*: does not work value by value"):
        pointwise_table(graph, graph.ops[0])
    net = Int8Net()
    x = net.input((1, 8))
    graph = read_graph(net.finish(net.unary("LOGISTIC", x, net.activation((1, 8), 1 / 256, 0))))
    with pytest.raises(ModelError, match=r"LOGISTIC.*: has the output zero point 0, must be -128"):
        pointwise_table(graph, graph.ops[0])


# --- fold_constants ---------------------------------------------------------------------------


def test_arithmetic_of_shapes_folds_into_a_plain_reshape():
    net = Int8Net()
    x = net.input((1, 4, 4, 2))
    build = net.build
    sizes, first, packed = (build.tensor(n, s, "INT32") for n, s in
                            (("sizes", (4,)), ("first", (1,)), ("new", (2,))))  # fmt: skip
    build.op("SHAPE", [x], [sizes], S.ShapeOptionsT(outType=2))
    bounds = [net.constant(np.array([v], np.int32)) for v in (0, 1, 1)]
    build.op("STRIDED_SLICE", [sizes, *bounds], [first], S.StridedSliceOptionsT())
    rest = net.constant(np.array([32], np.int32))
    build.op("CONCATENATION", [first, rest], [packed], S.ConcatenationOptionsT(axis=0))
    flat = net.like(x, (1, 32))
    build.op("RESHAPE", [x, packed], [flat])
    after = passed(net.finish(net.dense(flat, 3)))
    assert kinds(after) == ["FULLY_CONNECTED"]


def test_constants_are_quantized_and_dequantized_as_tflm_does():
    net = Int8Net()
    x = net.input((1, 6))
    floats = net.constant(np.array([0.5, -0.5, 1.5, 2.5, -99, 0.24], np.float32).reshape(1, 6))
    quantized = net.activation((1, 6), 1.0, 3)
    net.build.op("QUANTIZE", [floats], [quantized])
    data = net.finish(net.binary("ADD", x, quantized, y=net.activation((1, 6), 1.0, 0)))
    after = passed(data, "fold_constants")
    assert kinds(after) == ["ADD"]
    folded = after.tensors[after.ops[0].inputs[1]].data
    assert folded is not None
    assert folded.tolist() == [[4, 2, 5, 6, -96, 3]]  # halves away from zero, then the zero point


def test_output_of_the_model_is_not_folded_into_a_constant():
    net = Int8Net()
    x = net.input((1, 2))
    values = net.constant(np.array([[1, 2]], np.int8), 0.5)
    y = net.reshape(values, (2, 1))
    after = passed(net.finish(net.unary("TANH", x), y), "fold_constants")
    assert Counter(kinds(after)) == {"TANH": 1, "RESHAPE": 1}


# --- remove_identities ------------------------------------------------------------------------


def test_operators_that_change_nothing_vanish():
    net = Int8Net()
    x = net.input((1, 4, 4, 2))
    y = net.conv(x, 2)
    y = net.unary("QUANTIZE", y, net.like(y))
    y = net.pad(y, ((0, 0),) * 4)
    y = net.concat([y])
    y = net.strided_slice(y, (0, 0, 0, 0), (1, 4, 4, 2), (1, 1, 1, 1))
    y = net.reshape(net.reshape(y, (1, 32)), (1, 4, 4, 2))
    y = net.pool("MAX_POOL_2D", y, (1, 1))
    assert kinds(passed(net.finish(net.conv(y, 3)), "remove_identities")) == ["CONV_2D", "CONV_2D"]


def test_flatten_in_front_of_a_dense_layer_vanishes():
    net = Int8Net()
    x = net.conv(net.input((1, 3, 4, 2)), 3)
    data = net.finish(net.dense(net.reshape(x, (1, 36)), 5))
    after = passed(data, "remove_identities")
    assert kinds(after) == ["CONV_2D", "FULLY_CONNECTED"]


def test_transposition_of_axes_of_size_one_becomes_a_reshape_and_a_real_one_stays():
    for shape, kind in (((1, 5, 1, 3), "RESHAPE"), ((1, 5, 2, 3), "TRANSPOSE")):
        net = Int8Net()
        x = net.conv(net.input(shape), 3, (1, 1))
        y = net.transpose(x, (0, 2, 1, 3))
        after = passed(net.finish(net.unary("TANH", y)), "remove_identities")
        assert kinds(after) == ["CONV_2D", kind, "TANH"]


def test_shape_of_the_models_output_stays():
    net = Int8Net()
    x = net.input((1, 2, 3, 1))
    after = passed(net.finish(net.reshape(net.unary("TANH", x), (6, 1))))
    assert kinds(after) == ["TANH", "RESHAPE"]


@pytest.mark.parametrize("is_output", [False, True])
def test_identity_between_input_and_output_of_the_model_stays(is_output):
    net = Int8Net()
    x = net.input((1, 4))
    y = net.unary("QUANTIZE", x, net.like(x))
    after = passed(net.finish(y if is_output else net.unary("TANH", y)), "remove_identities")
    assert kinds(after) == (["QUANTIZE"] if is_output else ["TANH"])


def test_quantize_that_changes_the_zero_point_stays():
    net = Int8Net()
    x = net.unary("TANH", net.input((1, 4)))
    after = passed(net.finish(net.unary("QUANTIZE", x, net.activation((1, 4), 1 / 128, 1))),
                   "remove_identities")  # fmt: skip
    assert kinds(after) == ["TANH", "QUANTIZE"]


def test_reshape_that_reinterprets_values_stays():
    """Bytes are copied, their meaning changes: the dense layer must see the new scale."""
    net = Int8Net()
    x = net.unary("TANH", net.input((1, 2, 2, 1)))
    y = net.reshape(x, (1, 4), net.activation((1, 4), 0.5, 9))
    after = passed(net.finish(net.dense(y, 2)), "remove_identities")
    assert kinds(after) == ["TANH", "RESHAPE", "FULLY_CONNECTED"]


@pytest.mark.parametrize(
    ("middle", "is_merged"), [((0.25, 0), False), ((0.0625, 0), True), ((0.125, 100), False)]
)
def test_two_quantizes_merge_only_where_no_value_changes(middle, is_merged):
    """Through a coarser scale, or a zero point that clips, values are lost."""
    net = Int8Net()
    x = net.input((1, 256), 0.0625, 0)
    y = net.unary("QUANTIZE", x, net.activation((1, 256), *middle))
    z = net.unary("QUANTIZE", y, net.activation((1, 256), 0.125, 3))
    assert (len(passed(net.finish(z), "remove_identities").ops) == 1) == is_merged


# --- fuse_activation --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1"])
@pytest.mark.parametrize("layer", ["conv", "depthwise", "dense", "ADD", "MUL", "MAX_POOL_2D"])
def test_activation_moves_into_what_it_follows(kind, layer):
    net = Int8Net()
    x = net.input((1, 4, 4, 3), 0.05, -3)
    if layer in ("ADD", "MUL"):
        y = net.binary(layer, x, x, y=net.activation((1, 4, 4, 3), 0.06, -20))
    elif layer == "MAX_POOL_2D":
        y = net.pool(layer, x, (2, 2))
    elif layer == "dense":
        y = net.dense(x, 5, y=net.activation((1, 5), 0.06, -20))
    else:
        build = {
            "conv": lambda y: net.conv(x, 3, y=y),
            "depthwise": lambda y: net.depthwise(x, y=y),
        }
        y = build[layer](net.activation((1, 4, 4, 3), 0.06, -20))
    after = passed(net.finish(net.unary(kind, y, net.like(y))), "fuse_activation")
    assert len(after.ops) == 1
    assert after.ops[0].options["activation"] == kind


def test_activation_fuses_with_another_where_both_together_are_a_third():
    cases = (("RELU", "RELU6"), ("RELU6", "RELU"), ("RELU_N1_TO_1", "RELU"))
    for own, kind in cases:
        net = Int8Net()
        x = net.conv(net.input((1, 4, 4, 2)), 3, activation=own,
                     y=net.activation((1, 4, 4, 3), 0.06, -20))  # fmt: skip
        after = passed(net.finish(net.unary(kind, x, net.like(x))), "fuse_activation")
        assert len(after.ops) == 1, (own, kind)


def test_activation_stays_where_scales_differ_or_others_read_before_it():
    net = Int8Net()
    x = net.conv(net.input((1, 4, 4, 2)), 3)
    after = passed(
        net.finish(net.unary("RELU", x, net.activation((1, 4, 4, 3)))), "fuse_activation"
    )
    assert kinds(after) == ["CONV_2D", "RELU"]
    net = Int8Net()
    x = net.conv(net.input((1, 4, 4, 2)), 3)
    after = passed(net.finish(net.unary("RELU", x, net.like(x)), x), "fuse_activation")
    assert kinds(after) == ["CONV_2D", "RELU"]
    net = Int8Net()
    x = net.conv(net.input((1, 4, 4, 2)), 3)
    y = net.unary("RELU", x, net.like(x))
    after = passed(net.finish(net.binary("ADD", x, y)), "fuse_activation")
    assert kinds(after) == ["CONV_2D", "RELU", "ADD"]


def test_activation_that_reinterprets_values_stays():
    """RELU6 copies what is stored, whatever the scale behind it: the layer must keep its own."""
    net = Int8Net()
    x = net.conv(net.input((1, 4, 4, 2)), 3, y=net.activation((1, 4, 4, 3), 0.02, 0))
    y = net.unary("RELU6", x, net.activation((1, 4, 4, 3), 0.01, 0))
    assert kinds(passed(net.finish(y), "fuse_activation")) == ["CONV_2D", "RELU6"]


# --- fold_pad -----------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize("layer", ["conv", "depthwise"])
def test_pad_becomes_padding_and_products_stay_the_same(layer, padding):
    net = Int8Net()
    x = net.pad(net.input((1, 6, 7, 2)), ((0, 0), (0, 1), (2, 1), (0, 0)))
    y = getattr(net, layer)(x, **({"n_out": 3} if layer == "conv" else {}), stride=(2, 2),
                            padding=padding)  # fmt: skip
    data = net.finish(y)
    after = passed(data, "fold_pad")
    assert len(after.ops) == 1
    assert after.ops[0].options["padding"] == "EXPLICIT"
    # SAME of 7 rows and 10 columns, kernel 3, stride 2: 2 rows and 1 column, the odd one behind.
    more = (1, 1, 0, 1) if padding == "SAME" else (0, 0, 0, 0)
    assert conv_padding(after, after.ops[0]) == tuple(np.add((0, 1, 2, 1), more))
    assert graph_macs(after) == graph_macs(read_graph(data))


@pytest.mark.parametrize(
    ("value", "amounts"),
    [(5, ((0, 0), (1, 1), (1, 1), (0, 0))), (17, ((0, 0), (1, 1), (0, 0), (1, 0)))],
    ids=["not the zero point", "channels"],
)
def test_pad_of_other_values_or_channels_stays(value, amounts):
    net = Int8Net()
    x = net.pad(net.input((1, 5, 5, 2), zero=17), amounts, value)
    after = passed(net.finish(net.conv(x, 3)), "fold_pad")
    assert kinds(after) == ["PADV2", "CONV_2D"]


def test_pad_that_another_operator_reads_too_stays():
    net = Int8Net()
    x = net.pad(net.input((1, 5, 5, 2)), ((0, 0), (1, 1), (1, 1), (0, 0)))
    after = passed(net.finish(net.conv(x, 3), net.unary("TANH", x)), "fold_pad")
    assert Counter(kinds(after)) == {"PAD": 1, "CONV_2D": 1, "TANH": 1}


@pytest.mark.parametrize(
    ("kind", "value", "amount", "is_folded"),
    [
        ("MAX_POOL_2D", -128, 1, True),
        ("MAX_POOL_2D", -127, 1, False),
        ("MAX_POOL_2D", -128, 2, False),  # the first window sees nothing of the input
        ("AVERAGE_POOL_2D", -128, 1, False),
    ],
)
def test_pool_takes_over_a_pad_only_where_it_is_exact(kind, value, amount, is_folded):
    net = Int8Net()
    x = net.input((1, 6, 6, 2), zero=-128)
    x = net.pad(x, ((0, 0), (amount, 0), (amount, 1), (0, 0)), value)
    after = passed(net.finish(net.pool(kind, x, (2, 2), (1, 1))), "fold_pad")
    assert (kinds(after) == [kind]) == is_folded


# --- remove_dead_channels -------------------------------------------------------------------------


def dead_net(kernel: tuple[int, int], constant: int, padding: str = "SAME") -> tuple[Int8Net, int]:
    """A 1x1 convolution whose channel 1 of 4 always gives `constant`, where the zero point is 0."""
    net = Int8Net()
    x = net.input((1, 5, 5, 3), 0.5, 2)
    weights, bias = net.weights((4, 1, 1, 3)), np.array([100, 0, -50, 9], np.int32)
    weights[1] = 0
    hidden = net.conv(
        x, 4, (1, 1), weights=weights, bias=bias, y=net.activation((1, 5, 5, 4), 1.0, 0)
    )
    layer = net.build.graph.tensors[net.build.graph.operators[-1].inputs[1]]
    scale = 0.5 * layer.quantization.scale[1]
    bias[1] = round(constant / scale)
    net.build.model.buffers[-1].data = np.frombuffer(bias.tobytes(), np.uint8)
    return net, net.conv(hidden, 2, kernel, padding=padding)


@pytest.mark.parametrize(
    ("kernel", "constant", "padding", "is_removed"),
    [
        ((3, 3), 0, "SAME", True),  # the zero point adds nothing, borders or not
        ((3, 3), 40, "SAME", False),  # at the border there is 0 instead of 40
        ((3, 3), 40, "VALID", True),
        ((1, 1), 40, "SAME", True),  # nothing is padded
    ],
)
def test_constant_channel_goes_into_the_bias_unless_padding_forbids(
    kernel, constant, padding, is_removed
):
    net, y = dead_net(kernel, constant, padding)
    data = net.finish(y)
    after = passed(data, "remove_dead_channels")
    assert n_channels(after) == ([3, 2] if is_removed else [4, 2])
    old, new = (graph.tensors[graph.ops[1].inputs[2]].data for graph in (read_graph(data), after))
    assert old is not None
    assert new is not None
    assert np.array_equal(old, new) == (constant == 0 or not is_removed)


def test_constant_channel_that_a_depthwise_layer_pads_stays():
    """Its output is not constant: at the border there is 0 instead of 40."""
    net, _ = dead_net((1, 1), 40)
    net.build.graph.operators.pop()
    hidden = net.build.graph.operators[-1].outputs[0]
    y = net.depthwise(hidden, weights=np.full((1, 3, 3, 4), 9, np.int8))
    after = passed(net.finish(net.conv(y, 2, (1, 1))), "remove_dead_channels")
    assert n_channels(after) == [4, 4, 2]


def test_bias_is_made_where_a_layer_has_none():
    net, _ = dead_net((1, 1), 40)
    net.build.graph.operators.pop()
    hidden = net.build.graph.operators[-1].outputs[0]
    after = passed(net.finish(net.conv(hidden, 2, (1, 1), bias=False)), "remove_dead_channels")
    assert n_channels(after) == [3, 2]
    bias = after.tensors[after.ops[1].inputs[2]]
    assert (bias.dtype, bias.shape) == ("int32", (2,))


def test_channel_that_nobody_reads_is_removed_through_everything_in_between():
    net = Int8Net()
    x = net.input((1, 6, 6, 2))
    y = net.conv(x, 5)
    y = net.depthwise(y)
    y = net.binary("ADD", y, net.constant(net.weights((1, 1, 1, 5)), 0.1))
    y = net.pool("MAX_POOL_2D", net.unary("LEAKY_RELU", y), (2, 2))
    y = net.concat([y, net.unary("QUANTIZE", y, net.like(y))])
    weights = net.weights((3, 3, 3, 10))
    weights[..., [2, 7]] = 0
    after = passed(net.finish(net.conv(y, 3, weights=weights)), "remove_dead_channels")
    sizes = dict(zip(kinds(after), n_channels(after), strict=True))
    assert (sizes["DEPTHWISE_CONV_2D"], sizes["ADD"], sizes["CONCATENATION"]) == (4, 4, 8)


def test_channel_that_half_of_a_concatenation_reads_stays():
    net = Int8Net()
    y = net.conv(net.input((1, 4, 4, 2)), 5)
    joined = net.concat([y, net.unary("RELU", y, net.like(y))])
    weights = net.weights((3, 1, 1, 10))
    weights[..., 2] = 0  # but channel 7, the other copy, is read
    after = passed(net.finish(net.conv(joined, 3, (1, 1), weights=weights)), "remove_dead_channels")
    assert n_channels(after)[0] == 5


def test_dead_channels_of_the_models_outputs_stay():
    net = Int8Net()
    weights = net.weights((4, 1, 1, 3))
    weights[2] = 0
    y = net.conv(net.input((1, 4, 4, 3)), 4, (1, 1), weights=weights)
    assert n_channels(passed(net.finish(y))) == [4]
    z = net.unary("TANH", y)
    assert n_channels(passed(net.finish(z)))[0] == 4


def test_zero_depthwise_filter_frees_the_channel_it_reads():
    net = Int8Net()
    weights = net.weights((1, 3, 3, 4))
    weights[..., 3] = 0
    y = net.depthwise(net.conv(net.input((1, 5, 5, 2)), 4), weights=weights)
    after = passed(net.finish(net.conv(y, 2, (1, 1))), "remove_dead_channels")
    assert n_channels(after) == [3, 3, 2]


def test_tensor_keeps_a_channel_when_all_are_dead():
    net = Int8Net()
    weights = np.zeros((3, 3, 3, 2), np.int8)
    y = net.conv(net.input((1, 5, 5, 2)), 3, weights=weights)
    after = passed(net.finish(net.conv(y, 2, (1, 1))), "remove_dead_channels")
    assert n_channels(after) == [1, 2]


def test_dense_layer_behind_a_map_loses_a_column_for_each_position():
    net = Int8Net()
    weights = net.weights((3, 2, 2, 2))
    weights[1] = 0
    y = net.conv(net.input((1, 3, 3, 2)), 3, (2, 2), weights=weights)
    data = net.finish(net.dense(net.reshape(y, (1, 27)), 4))
    after = passed(data, "remove_identities", "remove_dead_channels")
    assert after.tensors[after.ops[1].inputs[1]].shape == (4, 18)


def test_bias_that_would_overflow_keeps_the_channel():
    net = Int8Net()
    x = net.input((1, 3, 3, 2), 0.5, 0)
    first = net.weights((2, 1, 1, 2))
    first[0] = 0
    y = net.conv(x, 2, (1, 1), weights=first, bias=np.array([10**9, 5], np.int32),
                 y=net.activation((1, 3, 3, 2), 0.01, 0))  # fmt: skip
    second = np.full((1, 1, 1, 2), 100, np.int8)
    limit = 2**31 - 1
    z = net.conv(y, 1, (1, 1), weights=second, bias=np.array([limit - 100 * 127], np.int32))
    after = passed(net.finish(z), "remove_dead_channels")
    assert n_channels(after) == [2, 1]


# --- merge_lookups ----------------------------------------------------------------------------


def test_chain_of_pointwise_operators_becomes_one_table():
    net = Int8Net()
    y = net.input((1, 256))
    for kind in ("LEAKY_RELU", "TANH", "QUANTIZE", "ELU", "HARD_SWISH"):
        y = net.unary(kind, y)
    after = passed(net.finish(y), "merge_lookups")
    assert kinds(after) == ["LOOKUP"]
    table = after.ops[0].options["table"]
    assert (table.dtype, table.shape) == (np.int8, (256,))


def test_detour_through_float_becomes_a_table_or_nothing():
    for is_same, expected in ((True, ["TANH"]), (False, ["LOOKUP"])):
        net = Int8Net()
        x = net.unary("TANH", net.input((1, 256)))
        real = net.build.tensor("real", (1, 256))
        net.build.op("DEQUANTIZE", [x], [real], None, 2)
        y = net.like(x) if is_same else net.activation((1, 256), 0.013, 5)
        net.build.op("QUANTIZE", [real], [y])
        assert kinds(passed(net.finish(y))) == expected


def test_single_pointwise_operator_and_one_with_another_reader_stay():
    net = Int8Net()
    x = net.unary("TANH", net.input((1, 8)))
    assert kinds(passed(net.finish(x), "merge_lookups")) == ["TANH"]
    y = net.unary("ELU", x)
    assert kinds(passed(net.finish(x, y), "merge_lookups")) == ["TANH", "ELU"]
    after = passed(net.finish(net.binary("ADD", y, x)), "merge_lookups")
    assert kinds(after) == ["TANH", "ELU", "ADD"]


# --- mean_to_pool -----------------------------------------------------------------------------


@given(
    height=st.integers(1, 12), width=st.integers(1, 12), zero=st.integers(-128, 127),
    keep=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_mean_becomes_a_pool_only_without_a_difference(height, width, zero, keep, seed):
    net = Int8Net(seed)
    x = net.input((1, height, width, 40), zero=zero)
    shape = (1, 1, 1, 40) if keep else (1, 40)
    data = net.finish(net.mean(x, keep=keep, y=net.like(x, shape)))
    graph = read_graph(data)
    after = passed(data, "mean_to_pool")
    if kinds(after) != ["MEAN"]:  # sums at random around halves, where the two differ if at all
        spread = np.random.default_rng(seed).integers(-3, 4, graph.tensors[0].shape)
        inputs = np.clip(spread + zero, -128, 127).astype(np.int8)
        np.testing.assert_array_equal(run(after, inputs)[0], run(graph, inputs)[0])


def test_mean_of_few_values_becomes_a_pool_and_one_that_rounds_otherwise_stays():
    for size, expected in (((3, 1), ["AVERAGE_POOL_2D"]), ((2, 1), ["MEAN"])):
        net = Int8Net()
        x = net.input((1, *size, 5), zero=-7)  # halves of negative sums part the two
        after = passed(net.finish(net.mean(x, y=net.like(x, (1, 1, 1, 5)))), "mean_to_pool")
        assert kinds(after) == expected


def test_mean_onto_another_scale_or_other_axes_stays():
    for arguments in ({"axes": (1, 2)}, {"axes": (1,)}, {"axes": (3,)}):
        net = Int8Net()
        x = net.input((1, 3, 3, 5))
        shape = [1 if axis in arguments["axes"] else n for axis, n in enumerate((1, 3, 3, 5))]
        quantization: Any = (0.3, 5) if arguments["axes"] == (1, 2) else net.quantizations[x]
        y = net.mean(x, **arguments, y=net.activation(shape, *quantization))
        assert kinds(passed(net.finish(y), "mean_to_pool")) == ["MEAN"]


# --- The MLPerf Tiny models -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["mlperf_ad01", "mlperf_ic_resnet8", "mlperf_kws_dscnn", "mlperf_vww_mbv1_96"]
)
def test_optimised_mlperf_models_equal_tflm_on_100_inputs(name, shared_dir):
    data = (shared_dir / "models" / f"{name}_int8.tflite").read_bytes()
    graph = read_graph(data)
    after, _ = run_passes(graph)
    x = random_int8((100, *graph.tensors[graph.inputs[0]].shape[1:]))
    with open_model(data, "tflm") as model:
        expected = model.run(x)[0]
    got = np.concatenate([run(after, x[i : i + 1])[0] for i in range(len(x))])
    np.testing.assert_array_equal(got, expected)


def test_half_of_the_products_of_visual_wake_words_vanish(shared_dir):
    data = (shared_dir / "models" / "mlperf_vww_mbv1_96_int8.tflite").read_bytes()
    graph = read_graph(data)
    filters = []
    for op in graph.ops:
        if op.kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            weights = np.asarray(graph.tensors[op.inputs[1]].data)
            axis = 0 if op.kind == "CONV_2D" else 3
            filters.append((weights != 0).any(axis=tuple({0, 1, 2, 3} - {axis})))
    assert (sum((~f).sum() for f in filters), sum(f.size for f in filters)) == (971, 2736)
    assert graph_macs(graph) == 7_489_664
    after, _ = run_passes(graph)
    assert graph_macs(after) <= 3_742_047  # what is left without the zero filters alone


# --- depthwise_to_conv -------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_depthwise_layer_of_one_channel_becomes_a_convolution(padding, stride, dilation, bias):
    net = Int8Net(5)
    x = net.input((1, 9, 8, 1), zero=-7)
    if dilation != (1, 1):
        stride = (1, 1)
    y = net.depthwise(x, (3, 2), multiplier=6, stride=stride, dilation=dilation, padding=padding,
                      activation="RELU", bias=bias)  # fmt: skip
    after = passed(net.finish(y), "depthwise_to_conv")
    assert [op.kind for op in after.ops] == ["CONV_2D"]
    weights = after.tensors[after.ops[0].inputs[1]]
    assert weights.shape == (6, 3, 2, 1)
    assert weights.quantization.axis == 0
    assert "depth_multiplier" not in after.ops[0].options


def test_depthwise_layer_of_more_channels_stays():
    net = Int8Net(6)
    y = net.depthwise(net.input((1, 5, 5, 2)), multiplier=3)
    after = passed(net.finish(y), "depthwise_to_conv")
    assert [op.kind for op in after.ops] == ["DEPTHWISE_CONV_2D"]
