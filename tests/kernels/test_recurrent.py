"""SVDF and LSTM against TensorFlow Lite Micro over several inferences, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as S
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeshrink.errors import ModelError
from edgeshrink.graph_reader import read_graph
from edgeshrink.lowering import lower
from tests.kernels.host import check_against_tflm, random_inputs
from tests.kernels.recurrent_models import lstm_model, svdf_model
from tests.tiny_models import TfliteBuilder

SMALL = st.integers(1, 4)
ZERO = st.sampled_from([-128, -1, 0, 5, 127])


@settings(max_examples=40, deadline=None)
@given(
    batches=st.integers(1, 3),
    n_in=st.integers(1, 9),
    n_units=SMALL,
    rank=st.integers(1, 3),
    memory=st.integers(1, 5),
    wide=st.booleans(),
    zeros=st.tuples(ZERO, st.sampled_from([-128, 0, 7, 127]), ZERO),
    gains=st.tuples(
        st.sampled_from([1e-4, 0.02, 0.4, 3.0]), st.sampled_from([1e-4, 0.005, 0.2, 2.0])
    ),
    activation=st.sampled_from([0, 1]),
    seed=st.integers(0, 2**31),
)
def test_svdf_equals_tensorflow_lite_micro_over_time(**case):
    data = svdf_model(**case)
    check_against_tflm(data, *random_inputs(data, 10))


@settings(max_examples=40, deadline=None)
@given(
    batches=st.integers(1, 3),
    steps=SMALL,
    n_in=st.integers(1, 9),
    n_units=st.integers(1, 6),
    time_major=st.booleans(),
    zeros=st.tuples(ZERO, ZERO),
    cell_power=st.integers(-15, -8),
    clip=st.sampled_from([0.0, 0.0, 0.5, 3.0]),
    h_scale=st.sampled_from([1 / 128, 1 / 100, 0.03, 1e-4]),
    weight_scale=st.sampled_from([0.0005, 0.005, 0.02, 0.3]),
    largest=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_lstm_equals_tensorflow_lite_micro_over_time(**case):
    data = lstm_model(**case)
    check_against_tflm(data, *random_inputs(data, 5))


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ({"absent": (1,)}, "lacks a gate"),
        ({"absent": (18,)}, "lacks a gate"),
        ({"cell_scale": 0.0007}, "power of two"),
    ],
)
def test_unusual_lstm_cells_are_refused_with_a_remedy(case, words):
    with pytest.raises(ModelError, match=words) as caught:
        lower(read_graph(lstm_model(**case)), ())
    assert caught.value.where == "operator 0 UNIDIRECTIONAL_SEQUENCE_LSTM v3 (y)"
    assert caught.value.fix


def between_ties(scales, values):
    """Sums whose product with the scales rounds one way in float32, the other in float64.

    `scales` are a, b, c of a * b / c; a sum lies between the two numbers whose product is a half.
    """
    a, b, c = (np.float32(s) for s in scales)
    in_float32, in_float64 = float(a * b / c), float(a) * float(b) / float(c)
    sums = (values + 0.5) / in_float32, (values + 0.5) / in_float64
    assert np.abs(sums[0] - sums[1]).min() > 1
    return np.round((sums[0] + sums[1]) / 2).astype(np.int64)


def test_svdf_multiplies_scales_as_the_oracle_does_from_state_to_output():
    scales = (0.0501, 0.0137, 9000.0)
    values = np.array([v for v in range(-120, 120) if abs(v) > 20])
    bias = between_ties(scales, values).astype(np.int32)
    n = len(bias)
    build = TfliteBuilder()
    x = build.tensor("x", (1, 1), "INT8", scale=0.1)
    zeros = np.zeros((n, 1), np.int8)
    f = build.tensor("f", (n, 1), "INT8", data=zeros, scale=0.1)
    t = build.tensor("t", (n, 1), "INT8", data=zeros, scale=scales[1])
    product = np.float32(scales[0]) * np.float32(scales[1])
    b = build.tensor("b", (n,), "INT32", data=bias, scale=product)
    s = build.tensor("s", (1, n), "INT8", scale=scales[0], is_variable=True)
    y = build.tensor("y", (1, n), "INT8", scale=scales[2])
    build.op("SVDF", [x, f, t, b, s], [y], S.SVDFOptionsT(rank=1), 3)
    build.graph.inputs, build.graph.outputs = [x], [y]
    check_against_tflm(build.bytes(), np.zeros((1, 1, 1), np.int8))


def test_svdf_multiplies_scales_as_the_oracle_does_from_input_to_state():
    scales = (0.0501, 0.0137, 20.0)
    values = np.arange(28000, 28100, 7)
    n_in, n = 1 << 15, len(values)
    sums = between_ties(scales, values)
    features = np.zeros((n, n_in), np.int8)
    for row, total in enumerate(sums):  # x is 255 above its zero point but for the last values
        full, rest = divmod(int(total), 255 * 127)
        assert full < n_in - 3
        features[row, :full] = 127
        features[row, full] = rest // 255
        features[row, -2:] = rest % 255 // 2, rest % 255 - rest % 255 // 2
    build = TfliteBuilder()
    x = build.tensor("x", (1, n_in), "INT8", scale=scales[0], zero_point=-128)
    f = build.tensor("f", (n, n_in), "INT8", data=features, scale=scales[1])
    t = build.tensor("t", (n, 1), "INT16", data=np.ones((n, 1), np.int16), scale=1.0)
    bias = -values.astype(np.int32)
    b = build.tensor("b", (n,), "INT32", data=bias, scale=scales[2])
    s = build.tensor("s", (1, n), "INT16", scale=scales[2], is_variable=True)
    y = build.tensor("y", (1, n), "INT8", scale=scales[2])
    build.op("SVDF", [x, f, t, b, s], [y], S.SVDFOptionsT(rank=1), 3)
    build.graph.inputs, build.graph.outputs = [x], [y]
    values = np.full((1, 1, n_in), 127, np.int8)
    values[..., -2:] = -127
    check_against_tflm(build.bytes(), values)
