"""Pools, MEAN, SUM and ARG_MAX against TensorFlow Lite Micro, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as S
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeshrink.errors import ModelError
from edgeshrink.graph_reader import read_graph
from edgeshrink.lowering import lower
from tests.kernels.host import (
    DSP_ISA,
    SCALAR_ISA,
    HostModel,
    check_against_tflm,
    random_inputs,
)
from tests.kernels.mutants import is_killed
from tests.kernels.pointwise_models import Spec, one_op

ZEROS = st.sampled_from([-128, -1, 0, 5, 127])
SCALES = st.one_of(
    st.integers(-9, 3).map(lambda e: 2.0**e),
    st.floats(-9, 3).map(lambda e: float(np.float32(2.0**e))),
)


def axes_of(*axes):
    return Spec((len(axes),), "INT32", None, 0, np.array(axes, np.int32))


def pooled(n, window, stride, *, same):
    return -(-n // stride) if same else (n - window) // stride + 1


def pool_model(kind, x, window, stride, *, same, dtype="INT8", scale=0.1, zero=0, activation=0):
    sizes = [pooled(*sizes, same=same) for sizes in zip(x[1:3], window, stride, strict=True)]
    options = S.Pool2DOptionsT(
        padding=S.Padding.SAME if same else S.Padding.VALID,
        strideH=stride[0],
        strideW=stride[1],
        filterHeight=window[0],
        filterWidth=window[1],
        fusedActivationFunction=activation,
    )
    y = Spec((x[0], *sizes, x[3]), dtype, scale, zero)
    return one_op(kind, [Spec(x, dtype, scale, zero)], y, options)


@st.composite
def pools(draw):
    window = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    x = (
        draw(st.integers(1, 2)),
        draw(st.integers(window[0], 9)),
        draw(st.integers(window[1], 9)),
        draw(st.integers(1, 5)),
    )
    return x, window, draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))


@settings(max_examples=120, deadline=None)
@given(
    kind=st.sampled_from(["AVERAGE_POOL_2D", "MAX_POOL_2D"]),
    sizes=pools(),
    same=st.booleans(),
    dtype=st.sampled_from(["INT8", "INT16"]),
    scale=SCALES,
    zero=ZEROS,
    activation=st.sampled_from([0, 1, 2, 3]),
    seed=st.integers(0, 2**31),
)
def test_pools_equal_tensorflow_lite_micro(kind, sizes, same, dtype, scale, zero, activation, seed):
    zero = zero if dtype == "INT8" else 0
    data = pool_model(
        kind, *sizes, same=same, dtype=dtype, scale=scale, zero=zero, activation=activation
    )
    for isa in (DSP_ISA, SCALAR_ISA):
        check_against_tflm(data, *random_inputs(data, seed=seed), isa=isa)


@pytest.mark.parametrize("isa", [DSP_ISA, SCALAR_ISA], ids=["dsp", "scalar"])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("rows", [16, 17])
def test_a_mean_of_the_most_that_16_bits_hold_equals_tensorflow_lite_micro(isa, channels, rows):
    data = pool_model("AVERAGE_POOL_2D", (1, rows, 16, channels), (rows, 16), (1, 1), same=False)
    check_against_tflm(data, *random_inputs(data), isa=isa)


@st.composite
def reductions(draw):
    """A shape and the axes that go, spelled from either end."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=5)))
    axes = draw(st.lists(st.integers(-len(shape), len(shape) - 1), min_size=1, max_size=4))
    return shape, tuple(axes)


@settings(max_examples=120, deadline=None)
@given(
    kind=st.sampled_from(["MEAN", "SUM"]),
    shape_and_axes=reductions(),
    keep=st.booleans(),
    dtype=st.sampled_from(["INT8", "INT16"]),
    scales=st.tuples(SCALES, SCALES),
    zeros=st.tuples(ZEROS, ZEROS),
    seed=st.integers(0, 2**31),
)
def test_means_and_sums_equal_tensorflow_lite_micro_over_any_axes(
    kind, shape_and_axes, keep, dtype, scales, zeros, seed
):
    shape, axes = shape_and_axes
    gone = {axis % len(shape) for axis in axes}
    out = tuple(1 if i in gone else n for i, n in enumerate(shape) if keep or i not in gone)
    zeros = zeros if dtype == "INT8" else (0, 0)
    inputs = [Spec(shape, dtype, scales[0], zeros[0]), axes_of(*axes)]
    data = one_op(
        kind, inputs, Spec(out, dtype, scales[1], zeros[1]), S.ReducerOptionsT(keepDims=keep)
    )
    check_against_tflm(data, *random_inputs(data, seed=seed))


def test_a_mean_of_a_whole_image_equals_tensorflow_lite_micro():
    x = Spec((1, 48, 48, 16), "INT8", 0.05, -128)
    y = Spec((1, 1, 1, 16), "INT8", 0.013, -128)
    data = one_op("MEAN", [x, axes_of(1, 2)], y, S.ReducerOptionsT(keepDims=True))
    check_against_tflm(data, *random_inputs(data))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple),
    data=st.data(),
    values=st.sampled_from([1, 3, 256]),
    seed=st.integers(0, 2**31),
)
def test_arg_max_equals_tensorflow_lite_micro_and_takes_the_first_of_several(
    shape, data, values, seed
):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    out = tuple(n for i, n in enumerate(shape) if i != axis % len(shape))
    model = one_op(
        "ARG_MAX",
        [Spec(shape), axes_of(axis)],
        Spec(out, "INT32", None),
        S.ArgMaxOptionsT(outputType=S.TensorType.INT32),
    )
    x = np.random.default_rng(seed).integers(0, values, (3, *shape)) - values // 2
    check_against_tflm(model, x.astype(np.int8))


def test_arg_max_gives_int64_where_the_model_asks_for_it():
    model = one_op(
        "ARG_MAX",
        [Spec((2, 7, 3)), axes_of(1)],
        Spec((2, 3), "INT64", None),
        S.ArgMaxOptionsT(outputType=S.TensorType.INT64),
    )
    x = np.random.default_rng(0).integers(-128, 128, (2, 7, 3)).astype(np.int8)
    (y,) = HostModel(lower(read_graph(model), ())).run(x)
    np.testing.assert_array_equal(y, x.argmax(axis=1))


@pytest.mark.parametrize("kind", ["AVERAGE_POOL_2D", "MAX_POOL_2D"])
def test_a_pool_whose_window_is_its_stride_is_written_over_its_input(kind):
    data = pool_model(kind, (1, 8, 8, 16), (2, 2), (2, 2), same=False)
    lowered = lower(read_graph(data), ())
    assert lowered.arena.n_bytes == 8 * 8 * 16


# Sums of 2, 3 and 4 values of both signs: halves occur, and quotients on both sides of 0.
AVERAGE = pool_model("AVERAGE_POOL_2D", (1, 4, 9, 8), (2, 2), (1, 1), same=True, zero=-1)
MAX = pool_model("MAX_POOL_2D", (1, 4, 9, 8), (2, 2), (1, 1), same=True, zero=-5)
RELU = pool_model("MAX_POOL_2D", (1, 4, 9, 8), (2, 2), (1, 1), same=True, activation=1)
MEAN = one_op(
    "MEAN",
    [Spec((1, 4, 4, 8), "INT8", 1.0, 3), axes_of(1, 2)],
    Spec((1, 8), "INT8", 1.0, 3),
    S.ReducerOptionsT(),
)
FIRST = one_op("ARG_MAX", [Spec((9, 8)), axes_of(0)], Spec((8,), "INT32", None), S.ArgMaxOptionsT())
MUTANTS = {
    "negative means rounded up": (AVERAGE, "sum > 0 ? sum + count / 2 : sum - count / 2",
                                  "sum + count / 2"),
    "means not rounded": (AVERAGE, "sum > 0 ? sum + count / 2 : sum - count / 2", "sum"),
    "padding counted": (AVERAGE, "(w.bottom - w.top) * (w.right - w.left)",
                        "shape->window_height * shape->window_width"),
    "padding taken for 0": (MAX, "largest = INT8_MIN", "largest = 0"),
    "no activation": (RELU, "es_clamp(largest, shape->y_min, shape->y_max)", "largest"),
    "the zero point forgotten": (MEAN, "sum = shape->bias", "sum = 0"),
    "halves rounded up": (MEAN, "(mask >> 1) + (x < 0 ? 1 : 0)", "(mask >> 1)"),
    "the last of several": (FIRST, "+ i] > x[", "+ i] >= x["),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_small_values_of_both_signs_kill_a_mutant(name):
    data, old, new = MUTANTS[name]
    shape = read_graph(data).tensors[0].shape
    x = np.random.default_rng(1).integers(-9, 9, (20, *shape)).astype(np.int8)
    assert is_killed(data, [x], old, new, variant="ref")


FAULTS = {
    "another scale": ("MAX_POOL_2D", lambda: changed_pool(scale=0.2), "changes scale"),
    "another zero point": ("AVERAGE_POOL_2D", lambda: changed_pool(zero_point=1), "zero point"),
    "a shape the window does not give": (
        "MAX_POOL_2D", lambda: changed_pool(shape=(1, 3, 2, 3)), "(1, 3, 2, 3)",
    ),
    "an axis that is not there": (
        "MEAN", lambda: ([Spec((2, 3)), axes_of(2)], Spec((2,)), S.ReducerOptionsT()), "axes [2]",
    ),
    "axes that are computed": (
        "SUM", lambda: ([Spec((2, 3)), Spec((1,), "INT32", None)], Spec((2,)), S.ReducerOptionsT()),
        "axes that are computed",
    ),
    "float": (
        "MEAN",
        lambda: ([Spec((2, 3), "FLOAT32", None), axes_of(1)], Spec((2,), "FLOAT32", None),
                 S.ReducerOptionsT()),
        "types",
    ),
    "a scale for every channel": (
        "SUM", lambda: ([Spec((2, 3), "INT8", (0.1, 0.2)), axes_of(1)], Spec((2,)),
                        S.ReducerOptionsT()),
        "per channel",
    ),
}  # fmt: skip


def changed_pool(**changes):
    x = Spec((1, 4, 4, 3), "INT8", 0.1, 0)
    y = Spec((1, 2, 2, 3), "INT8", 0.1, 0)._replace(**changes)
    options = S.Pool2DOptionsT(strideH=2, strideW=2, filterHeight=2, filterWidth=2)
    return [x], y, options


@pytest.mark.parametrize("name", FAULTS)
def test_what_can_not_be_compiled_names_operator_layer_and_remedy(name):
    kind, parts, words = FAULTS[name]
    data = one_op(kind, *parts(), version=2)
    with pytest.raises(ModelError) as caught:
        lower(read_graph(data), ())
    assert caught.value.where == f"operator 0 {kind} v2 (y)"
    assert words in caught.value.what
    assert caught.value.fix
