"""What an operator has to do, against products counted by hand or one by one."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeshrink.costs.work import (
    CONTROL_FLOW,
    KERNEL_CLASSES,
    MULTIPLIERS,
    OpWork,
    graph_macs,
    op_work,
    tensor_bytes,
)
from edgeshrink.graph import Graph, Op, Tensor
from edgeshrink.tflite_schema import DTYPES, OPERATORS

Shape = tuple[int, ...]


def one_op(
    kind: str,
    inputs: list[Shape | None],
    output: Shape,
    *,
    constants: tuple[int, ...] = (),
    dtype: str = "int8",
    is_custom: bool = False,
    **options: Any,
) -> Graph:
    """A graph of one operator; `constants` are positions among its inputs."""
    tensors, ids = [], []
    for position, shape in enumerate(inputs):
        if shape is None:
            ids.append(-1)
            continue
        data = np.broadcast_to(np.zeros((), dtype), shape) if position in constants else None
        ids.append(len(tensors))
        tensors.append(Tensor(index=len(tensors), name="", shape=shape, dtype=dtype, data=data))
    tensors.append(Tensor(index=len(tensors), name="", shape=output, dtype=dtype))
    op = Op(
        index=0,
        kind=kind,
        version=1,
        inputs=tuple(ids),
        outputs=(len(tensors) - 1,),
        options=options,
        is_custom=is_custom,
    )
    return Graph(name="", tensors=tuple(tensors), ops=(op,), inputs=(), outputs=())


def work_of(*args: Any, **options: Any) -> OpWork:
    graph = one_op(*args, **options)
    return op_work(graph, graph.ops[0])


def test_conv_2d_multiplies_the_window_for_every_output_value():
    work = work_of(
        "CONV_2D", [(1, 32, 32, 3), (16, 3, 3, 3), (16,)], (1, 32, 32, 16), constants=(1, 2),
        stride_w=1, stride_h=1,
    )  # fmt: skip
    assert (work.kernel, work.macs) == ("conv_kxk", 442_368)  # 1024 pixels x 16 x 27
    assert (work.taps, work.in_channels, work.out_channels, work.groups) == (9, 3, 16, 1)
    assert (work.input_bytes, work.output_bytes) == (3072, 16384)
    assert work.weight_bytes == 432 + 16
    assert work.output_elements == 16384


def test_pointwise_convolution_is_a_class_of_its_own():
    work = work_of("CONV_2D", [(1, 5, 5, 64), (12, 1, 1, 64)], (1, 5, 5, 12), stride_w=1)
    assert (work.kernel, work.macs) == ("conv_1x1", 19_200)  # 25 x 12 x 64


def test_grouped_convolution_multiplies_only_the_channels_of_its_group():
    work = work_of("CONV_2D", [(1, 8, 8, 24), (30, 1, 1, 8)], (1, 8, 8, 30), stride_w=1)
    assert (work.macs, work.groups, work.out_channels) == (15_360, 3, 10)  # 64 x 30 x 8


def test_convolution_with_one_channel_a_group_counts_as_depthwise():
    work = work_of("CONV_2D", [(1, 8, 8, 24), (24, 3, 3, 1)], (1, 8, 8, 24), stride_w=1)
    assert (work.kernel, work.macs) == ("depthwise", 13_824)  # 64 x 24 x 9


def test_depthwise_conv_multiplies_one_channel_for_every_output_value():
    work = work_of(
        "DEPTHWISE_CONV_2D", [(1, 25, 5, 64), (1, 3, 3, 64), (64,)], (1, 25, 5, 64),
        constants=(1, 2), stride_h=2, stride_w=1,
    )  # fmt: skip
    assert (work.kernel, work.macs, work.stride) == ("depthwise", 72_000, 2)  # 8000 x 9


def test_depthwise_conv_of_one_channel_is_still_depthwise():
    work = work_of("DEPTHWISE_CONV_2D", [(1, 49, 40, 1), (1, 10, 8, 8)], (1, 25, 20, 8))
    assert (work.kernel, work.macs) == ("depthwise", 320_000)  # 4000 x 80


def test_transpose_conv_multiplies_every_input_value_into_a_window():
    work = work_of(
        "TRANSPOSE_CONV", [(4,), (6, 2, 2, 5), (1, 7, 7, 5)], (1, 14, 14, 6), constants=(0, 1)
    )
    assert (work.kernel, work.macs) == ("conv_kxk", 5_880)  # 49 x 5 inputs x 4 x 6
    assert (work.in_channels, work.out_channels) == (5, 6)


def test_conv_3d_and_its_transpose_have_three_directions():
    forward = work_of("CONV_3D", [(1, 4, 5, 6, 2), (3, 3, 3, 2, 7)], (1, 2, 3, 4, 7))
    assert forward.macs == 2 * 3 * 4 * 7 * 27 * 2
    back = work_of("CONV_3D_TRANSPOSE", [(5,), (2, 2, 2, 3, 4), (1, 5, 6, 7, 4)], (1, 6, 7, 8, 3))
    assert back.macs == 5 * 6 * 7 * 4 * 8 * 3


def test_fully_connected_counts_every_row_of_a_batch():
    work = work_of("FULLY_CONNECTED", [(10, 64), (12, 64), None], (10, 12), constants=(1,))
    assert (work.kernel, work.macs, work.weight_bytes) == ("fully_connected", 7_680, 768)
    flattened = work_of("FULLY_CONNECTED", [(1, 4, 4, 8), (5, 128)], (1, 5))
    assert flattened.macs == 640


@pytest.mark.parametrize(("adj_x", "left"), [(False, (2, 3, 4, 5)), (True, (2, 3, 5, 4))])
def test_batch_matmul_multiplies_along_the_inner_dimension(adj_x, left):
    work = work_of("BATCH_MATMUL", [left, (2, 3, 5, 6)], (2, 3, 4, 6), adj_x=adj_x, adj_y=False)
    assert (work.kernel, work.macs) == ("matmul", 720)  # 6 matrices of 4 x 6 x 5


def test_stablehlo_products_count_their_contracted_dimensions():
    dot = work_of(
        "STABLEHLO_DOT_GENERAL", [(3, 4, 5), (4, 5, 6)], (3, 6),
        lhs_contracting_dimensions=(1, 2), rhs_contracting_dimensions=(0, 1),
    )  # fmt: skip
    assert dot.macs == 3 * 6 * 20
    conv = work_of(
        "STABLEHLO_CONVOLUTION", [(1, 8, 8, 4), (3, 3, 4, 16)], (1, 6, 6, 16),
        kernel_input_feature_dimension=2, kernel_output_feature_dimension=3, feature_group_count=1,
        window_strides=(1, 1),
    )  # fmt: skip
    assert (conv.macs, conv.kernel) == (36 * 16 * 36, "conv_kxk")


def lstm_inputs(n_in: int, n_out: int, x: Shape) -> list[Shape | None]:
    """UNIDIRECTIONAL_SEQUENCE_LSTM without peepholes, projection and layer norm."""
    gates: list[Shape | None] = [(n_out, n_in)] * 4 + [(n_out, n_out)] * 4
    return [x, *gates, *[None] * 3, *[(n_out,)] * 4, None, None, (1, n_out), (1, n_out)]


@pytest.mark.parametrize(("x", "time_major"), [((1, 20, 8), False), ((20, 1, 8), True)])
def test_lstm_uses_four_input_and_four_recurrent_matrices_at_every_step(x, time_major):
    work = work_of(
        "UNIDIRECTIONAL_SEQUENCE_LSTM", lstm_inputs(8, 16, x), (*x[:2], 16), time_major=time_major
    )
    assert (work.kernel, work.macs, work.steps) == ("recurrent", 20 * (4 * 128 + 4 * 256), 20)


def test_lstm_peepholes_and_projection_count():
    inputs = lstm_inputs(8, 16, (3, 5, 8))
    inputs[5:9] = [(16, 4)] * 4
    inputs[9:12] = [(16,)] * 3
    inputs[16] = (4, 16)
    work = work_of("UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, (3, 5, 4), time_major=False)
    assert work.macs == 15 * (4 * 128 + 4 * 64 + 3 * 16 + 64)


def test_bidirectional_lstm_counts_both_directions():
    one = lstm_inputs(8, 16, (5, 1, 8))[1:18]
    inputs = [(5, 1, 8), *one, *one, *[(1, 16)] * 4]
    work = work_of("BIDIRECTIONAL_SEQUENCE_LSTM", inputs, (5, 1, 32), time_major=True)
    assert work.macs == 2 * 5 * (4 * 128 + 4 * 256)


def test_recurrent_layers_use_every_weight_once_a_step():
    rnn = work_of("RNN", [(2, 8), (16, 8), (16, 16), (16,), (2, 16)], (2, 16))
    assert (rnn.macs, rnn.steps) == (2 * (128 + 256), 1)
    sequence = work_of(
        "UNIDIRECTIONAL_SEQUENCE_RNN", [(7, 2, 8), (16, 8), (16, 16), (16,), (2, 16)], (7, 2, 16),
        time_major=True,
    )  # fmt: skip
    assert sequence.macs == 14 * (128 + 256)
    basic = work_of("LSTM", [(1, 8), (1, 4), (16, 12), (16,), (1, 4)], (1, 4))
    assert basic.macs == 16 * 12
    svdf = work_of("SVDF", [(1, 40), (32, 40), (32, 10), (16,), (1, 320)], (1, 16), rank=2)
    assert (svdf.kernel, svdf.macs) == ("recurrent", 32 * 40 + 32 * 10)


@pytest.mark.parametrize(
    ("kind", "kernel"),
    [
        ("ADD", "elementwise"), ("MUL", "elementwise"), ("QUANTIZE", "elementwise"),
        ("RESHAPE", "move"), ("PAD", "move"), ("CONCATENATION", "move"), ("TRANSPOSE", "move"),
        ("SOFTMAX", "activation"), ("HARD_SWISH", "activation"), ("TOPK_V2", "other"),
        ("NOT_A_KIND", "other"),
    ],
)  # fmt: skip
def test_operators_that_add_up_no_products_have_bytes_alone(kind, kernel):
    work = work_of(kind, [(1, 4, 4, 2)], (1, 4, 4, 2), dtype="float32")
    assert (work.kernel, work.macs) == (kernel, 0)
    assert (work.input_bytes, work.output_bytes, work.dtype) == (128, 128, "float32")


def test_pooling_knows_its_window():
    pool = work_of("MAX_POOL_2D", [(1, 8, 8, 4)], (1, 4, 4, 4), filter_height=2, filter_width=3)
    assert (pool.kernel, pool.taps, pool.macs) == ("pool", 6, 0)
    mean = work_of("MEAN", [(1, 8, 8, 4), (2,)], (1, 4), constants=(1,))
    assert (mean.kernel, mean.taps) == ("pool", 64)


def test_every_operator_of_the_schema_is_priced_without_a_crash():
    for kind in OPERATORS:
        for shapes in ([], [()], [(2,)], [(1, 2, 2, 1)] * 5, [None, None, None]):
            work = work_of(kind, list(shapes), (1, 2, 2, 1))
            assert work.macs >= 0
            assert work.output_bytes == 4


def test_no_operator_has_two_ways_to_be_counted():
    assert not KERNEL_CLASSES.keys() & MULTIPLIERS.keys()
    made_by_passes = {"LOOKUP"}
    known = set(OPERATORS) | made_by_passes
    assert set(KERNEL_CLASSES) | set(MULTIPLIERS) | set(CONTROL_FLOW) <= known


def test_custom_operator_named_like_a_builtin_is_not_that_builtin():
    work = work_of("CONV_2D", [(1, 4, 4, 2), (2, 1, 1, 2)], (1, 4, 4, 2), is_custom=True)
    assert (work.kernel, work.macs) == ("other", 0)


def test_type_is_that_of_the_data_not_of_a_shape_input():
    tensors = (
        Tensor(index=0, name="", shape=(4,), dtype="int32", data=np.zeros(4, np.int32)),
        Tensor(index=1, name="", shape=(2, 2, 2, 3), dtype="int8", data=np.zeros((2, 2, 2, 3))),
        Tensor(index=2, name="", shape=(1, 4, 4, 3), dtype="int8"),
        Tensor(index=3, name="", shape=(1, 8, 8, 2), dtype="int8"),
    )
    op = Op(
        index=0, kind="TRANSPOSE_CONV", version=1, inputs=(0, 1, 2), outputs=(3,), options={}
    )  # fmt: skip
    graph = Graph(name="", tensors=tensors, ops=(op,), inputs=(2,), outputs=(3,))
    work = op_work(graph, op)
    assert (work.dtype, work.input_bytes, work.weight_bytes) == ("int8", 48, 16 + 24)


@pytest.mark.parametrize("dtype", [name for name, _ in DTYPES.values()])
def test_bytes_of_every_type_of_the_format_are_known_or_0(dtype):
    known = {"int4": 3, "uint4": 3, "int2": 2, "bfloat16": 10, "bool": 5, "complex128": 80}
    found = tensor_bytes(Tensor(index=0, name="", shape=(5,), dtype=dtype))
    if dtype in ("string", "resource", "variant"):
        assert found == 0
    elif dtype in known:
        assert found == known[dtype]
    elif not dtype.startswith("float8"):
        assert found == 5 * np.dtype(dtype).itemsize
    else:
        assert found == 5


def call(kind: str, **options: Any) -> Graph:
    return one_op(kind, [(1, 4)], (1, 4), **options)


def with_bodies(graph: Graph, *bodies: Graph) -> Graph:
    return Graph(**{**vars(graph), "subgraphs": bodies})


def fully_connected(n: int) -> Graph:
    return one_op("FULLY_CONNECTED", [(1, n), (n, n)], (1, n), constants=(1,))


def test_loop_counts_its_condition_and_body_once():
    graph = with_bodies(
        call("WHILE", cond_subgraph_index=1, body_subgraph_index=2),
        fully_connected(2),
        fully_connected(5),
    )
    assert graph_macs(graph) == 4 + 25


def test_branch_counts_the_dearer_side():
    graph = with_bodies(
        call("IF", then_subgraph_index=1, else_subgraph_index=2),
        fully_connected(5),
        fully_connected(2),
    )
    assert graph_macs(graph) == 25


def test_subgraphs_that_call_two_others_each_take_no_exponential_time():
    depth = 200
    bodies = [
        Graph(**{**vars(call("CALL", subgraph=n + 1)), "ops": call("CALL", subgraph=n + 1).ops * 2})
        for n in range(1, depth)
    ]
    graph = with_bodies(call("CALL", subgraph=1), *bodies, fully_connected(1))
    assert graph_macs(graph) == 2 ** (depth - 1)


def test_long_chain_of_calls_needs_no_deep_stack():
    depth = 5000
    bodies = [call("CALL", subgraph=n + 1) for n in range(1, depth)]
    assert graph_macs(with_bodies(call("CALL", subgraph=1), *bodies, fully_connected(3))) == 9


def test_subgraph_that_calls_itself_ends():
    graph = with_bodies(call("CALL", subgraph=1), call("CALL", subgraph=1))
    assert graph_macs(graph) == 0


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    depth=st.integers(1, 3),
    groups=st.integers(1, 3),
    per_group=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_convolution_agrees_with_products_counted_one_by_one(
    height, width, depth, groups, per_group, kernel
):
    counted = 0
    for _ in itertools.product(range(height), range(width), range(groups), range(per_group)):
        for _ in itertools.product(range(kernel[0]), range(kernel[1]), range(depth)):
            counted += 1
    channels = groups * per_group
    work = work_of(
        "CONV_2D",
        [(1, height, width, depth * groups), (channels, *kernel, depth)],
        (1, height, width, channels),
    )
    assert work.macs == counted


@pytest.mark.shared
def test_published_models_have_their_published_products(shared_dir):
    import csv

    from edgeshrink.graph_reader import read_graph_file

    with (shared_dir / "models" / "README.csv").open(encoding="utf-8", newline="") as file:
        told = {
            row["file"]: int(row["conv_fc_macs"])
            for row in csv.DictReader(file)
            if row["file"].endswith(".tflite")
        }
    found = {
        name: graph_macs(read_graph_file(shared_dir / "models" / name)) for name in told
    }  # fmt: skip
    assert found == told
    assert len(told) >= 10
