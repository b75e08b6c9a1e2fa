"""SOFTMAX, LOG_SOFTMAX and L2_NORMALIZATION against TensorFlow Lite Micro, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as S
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeshrink.errors import ModelError
from edgeshrink.graph_reader import read_graph
from edgeshrink.lowering import lower
from tests.kernels.host import HostModel, check_against_tflm, random_inputs
from tests.kernels.mutants import is_killed
from tests.kernels.pointwise_models import Spec, one_op

OUTPUTS = {
    ("INT8", "INT8"): (1 / 256, -128),
    ("INT8", "INT16"): (1 / 65536, -32768),
    ("INT16", "INT16"): (1 / 32768, 0),
}
SHAPES = st.lists(st.integers(1, 12), min_size=1, max_size=4).map(tuple)
SCALES = st.one_of(
    st.integers(-12, 5).map(lambda e: 2.0**e),
    st.floats(-12, 6).map(lambda e: float(np.float32(2.0**e))),
)
ZEROS = st.sampled_from([-128, -1, 0, 127])


def softmax_model(shape, types, scale, *, beta=1.0, zero=0):
    x = Spec(shape, types[0], scale, zero if types[0] == "INT8" else 0)
    y = Spec(shape, types[1], *OUTPUTS[types])
    return one_op("SOFTMAX", [x], y, S.SoftmaxOptionsT(beta=beta))


def log_softmax_model(shape, scale, *, zero=0):
    y = Spec(shape, "INT8", 1 / 16, 127)
    return one_op("LOG_SOFTMAX", [Spec(shape, "INT8", scale, zero)], y, S.LogSoftmaxOptionsT())


def l2norm_model(shape, scale, *, zero=0):
    y = Spec(shape, "INT8", 1 / 128, 0)
    return one_op("L2_NORMALIZATION", [Spec(shape, "INT8", scale, zero)], y, S.L2NormOptionsT())


def pairs_of(dtype):
    """Rows of two values: the highest, and each other one in turn."""
    limits = np.iinfo(dtype)
    step = 1 if dtype == "int8" else 7
    other = np.arange(limits.min, limits.max + 1, step)
    return np.stack([np.full_like(other, limits.max), other], axis=1).astype(dtype)


@settings(max_examples=80, deadline=None)
@given(
    shape=SHAPES,
    types=st.sampled_from(sorted(OUTPUTS)),
    scale=SCALES,
    beta=st.sampled_from([0.25, 1.0, 1.7]),
    zero=ZEROS,
    seed=st.integers(0, 2**31),
)
def test_softmax_equals_tensorflow_lite_micro(shape, types, scale, beta, zero, seed):
    if types[0] == "INT16":
        scale /= 256
    data = softmax_model(shape, types, scale, beta=beta, zero=zero)
    check_against_tflm(data, *random_inputs(data, seed=seed))


@pytest.mark.parametrize("types", sorted(OUTPUTS))
@settings(max_examples=15, deadline=None)
@given(scale=SCALES)
def test_softmax_equals_tensorflow_lite_micro_for_every_difference(types, scale):
    if types[0] == "INT16":
        scale /= 256
    x = pairs_of(types[0].lower())
    check_against_tflm(softmax_model(x.shape, types, scale), x[None])


@pytest.mark.parametrize("types", sorted(OUTPUTS))
@pytest.mark.parametrize("n", [1, 2, 3, 255, 256, 257, 511])
def test_softmax_of_equal_values_equals_tensorflow_lite_micro(types, n):
    x = np.full((1, 1, n), 5, types[0].lower())
    check_against_tflm(softmax_model((1, n), types, 0.1), x)


def test_softmax_of_more_equal_values_than_int8_can_tell_from_0_is_0_for_each():
    lowered = lower(read_graph(softmax_model((1, 1000), ("INT8", "INT8"), 0.1)), ())
    (y,) = HostModel(lowered).run(np.full((1, 1000), 5, np.int8))
    assert (y == -128).all()


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, scale=SCALES, zero=ZEROS, seed=st.integers(0, 2**31))
def test_log_softmax_equals_tensorflow_lite_micro(shape, scale, zero, seed):
    data = log_softmax_model(shape, scale, zero=zero)
    check_against_tflm(data, *random_inputs(data, seed=seed))


@settings(max_examples=15, deadline=None)
@given(scale=SCALES)
def test_log_softmax_equals_tensorflow_lite_micro_for_every_difference(scale):
    x = pairs_of("int8")
    check_against_tflm(log_softmax_model(x.shape, scale), x[None])


@pytest.mark.parametrize("n", [1, 2, 3, 10, 100, 1000, 4095])
def test_log_softmax_equals_tensorflow_lite_micro_for_sums_up_to_the_limit(n):
    x = np.full((1, 1, n), 5, np.int8)
    check_against_tflm(log_softmax_model((1, n), 0.1), x)


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, zero=ZEROS, seed=st.integers(0, 2**31))
def test_l2_normalization_equals_tensorflow_lite_micro(shape, zero, seed):
    data = l2norm_model(shape, 0.1, zero=zero)
    check_against_tflm(data, *random_inputs(data, seed=seed))


def test_l2_normalization_equals_tensorflow_lite_micro_for_every_length_of_two_values():
    values = np.arange(0, 128)
    x = np.stack(np.meshgrid(values, -values), axis=-1).reshape(-1, 2).astype(np.int8)
    check_against_tflm(l2norm_model(x.shape, 0.1), x[None])


def test_l2_normalization_equals_tensorflow_lite_micro_for_sums_near_the_limit():
    x = np.full((1, 1, 33025), 127, np.int8)
    x[0, 0, ::2] = -128
    check_against_tflm(l2norm_model((1, 33025), 0.1, zero=-128), x)


FINE = softmax_model((256, 2), ("INT8", "INT16"), 0.04)
COARSE = softmax_model((256, 2), ("INT8", "INT8"), 2.0)
LOGS = log_softmax_model((256, 2), 0.3)
LENGTHS = l2norm_model((256, 2), 0.1, zero=3)
MUTANTS = {
    "half of a polynomial's higher terms": (
        FINE, "es_rounding_shift_right(r4, 2) + r3", "(es_rounding_shift_right(r4, 2) + r3) / 2",
    ),
    "e to the 0 from the polynomial": (FINE, "if (x == 0) return INT32_MAX;", ""),
    "one step of Newton's method less": (FINE, "step < 3", "step < 2"),
    "the threshold of a softmax ignored": (COARSE, "diff >= shape->diff_min", "1"),
    "a shift that truncates": (
        FINE, "es_rounding_shift_right(es_doubling_high_mul(scale, power), shift)",
        "(es_doubling_high_mul(scale, power) >> shift)",
    ),
    "the threshold of a logarithm too high": (LOGS, "diff > lowest", "diff > lowest + 100"),
    "the wrong half power": (LOGS, "es_max(k_a, k_b)", "es_min(k_a, k_b)"),
    "roots of three steps": (LENGTHS, "step < 5", "step < 3"),
    "the zero point forgotten": (LENGTHS, "x[i] - shape->x_zero;", "x[i];"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_every_difference_kills_a_mutant(name):
    data, old, new = MUTANTS[name]
    assert is_killed(data, [pairs_of("int8")[None]], old, new, variant="ref")


FAULTS = {
    "another output scale": (
        "SOFTMAX", Spec((1, 3)), Spec((1, 3), "INT8", 1 / 255, -128), "output scale",
    ),
    "another output zero point": (
        "SOFTMAX", Spec((1, 3)), Spec((1, 3), "INT8", 1 / 256, 0), "zero point",
    ),
    "a zero point of int16": (
        "SOFTMAX", Spec((1, 3), "INT16", 0.1, 4), Spec((1, 3), "INT16", 1 / 32768), "zero point",
    ),
    "float": (
        "SOFTMAX", Spec((1, 3), "FLOAT32", None), Spec((1, 3), "FLOAT32", None), "types",
    ),
    "more values than the sum holds": (
        "SOFTMAX", Spec((1, 4096)), Spec((1, 4096), "INT8", 1 / 256, -128), "sums 4096 values",
    ),
    "a scale too small to see": (
        "SOFTMAX", Spec((1, 3), "INT8", 2**-27), Spec((1, 3), "INT8", 1 / 256, -128),
        "input scale",
    ),
    "an output scale that LOG_SOFTMAX does not have": (
        "LOG_SOFTMAX", Spec((1, 3)), Spec((1, 3), "INT8", 1 / 8, 127), "1/16",
    ),
    "an output scale that a direction does not have": (
        "L2_NORMALIZATION", Spec((1, 3)), Spec((1, 3), "INT8", 1 / 64, 0), "1/128",
    ),
    "a scale for every channel": (
        "SOFTMAX", Spec((2, 3), "INT8", (0.1, 0.2)), Spec((2, 3), "INT8", 1 / 256, -128),
        "per channel",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_can_not_be_compiled_names_operator_layer_and_remedy(name):
    kind, x, y, words = FAULTS[name]
    options = S.SoftmaxOptionsT(beta=1.0) if kind == "SOFTMAX" else None
    with pytest.raises(ModelError) as caught:
        lower(read_graph(one_op(kind, [x], y, options, version=2)), ())
    assert caught.value.where == f"operator 0 {kind} v2 (y)"
    assert words in caught.value.what + caught.value.fix
    assert caught.value.fix
