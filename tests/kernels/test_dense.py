"""FULLY_CONNECTED against TensorFlow Lite Micro, bit for bit."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as S
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.host import check_against_tflm, random_inputs
from tests.tiny_models import TfliteBuilder


def dense_model(rows, n_in, n_out, *, seed, x_zero, y_zero, scale, per_channel, activation, bias):
    rng = np.random.default_rng(seed)
    build = TfliteBuilder()
    x = build.tensor("x", (rows, n_in), "INT8", scale=0.05, zero_point=x_zero)
    w_scale = rng.uniform(0.001, 0.1, n_out if per_channel else 1)
    weights = rng.integers(-127, 128, (n_out, n_in)).astype(np.int8)
    w = build.tensor("w", (n_out, n_in), "INT8", data=weights, scale=w_scale,
                     zero_point=[0] * len(w_scale))  # fmt: skip
    values = rng.integers(-3000, 3000, n_out).astype(np.int32)
    b = build.tensor("b", (n_out,), "INT32", data=values, scale=w_scale * 0.05,
                     zero_point=[0] * len(w_scale)) if bias else -1  # fmt: skip
    y = build.tensor("y", (rows, n_out), "INT8", scale=scale, zero_point=y_zero)
    options = S.FullyConnectedOptionsT(fusedActivationFunction=activation)
    build.op("FULLY_CONNECTED", [x, w, b], [y], options, 4)
    build.graph.inputs, build.graph.outputs = [x], [y]
    return build.bytes()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 3),
    n_in=st.integers(1, 70),
    n_out=st.integers(1, 20),
    seed=st.integers(0, 2**31),
    x_zero=st.sampled_from([-128, -1, 0, 5, 127]),
    y_zero=st.sampled_from([-128, 0, 3, 127]),
    scale=st.floats(1e-3, 10.0),
    per_channel=st.booleans(),
    activation=st.sampled_from([0, 1, 3]),
    bias=st.booleans(),
)
def test_fully_connected_equals_tensorflow_lite_micro(**case):
    data = dense_model(**case)
    check_against_tflm(data, *random_inputs(data))


def test_one_scale_for_all_weights_is_multiplied_in_float64_as_the_oracle_does():
    """Sums between the two ties that a product of scales in float32 and in float64 leave."""
    x_scale, w_scale, y_scale = np.float32(0.05), np.float32(0.0137), np.float32(3000.0)
    in_float32 = float(x_scale * w_scale) / float(y_scale)
    in_float64 = float(x_scale) * float(w_scale) / float(y_scale)
    halves = np.arange(-120, 120) + 0.5
    ties = halves / in_float32, halves / in_float64
    assert np.abs(ties[0] - ties[1]).max() > 2
    sums = np.round((ties[0] + ties[1]) / 2).astype(np.int32)
    build = TfliteBuilder()
    x = build.tensor("x", (1, 1), "INT8", scale=x_scale)
    w = build.tensor("w", (240, 1), "INT8", data=np.zeros((240, 1), np.int8), scale=w_scale)
    b = build.tensor("b", (240,), "INT32", data=sums, scale=x_scale * w_scale)
    y = build.tensor("y", (1, 240), "INT8", scale=y_scale)
    build.op("FULLY_CONNECTED", [x, w, b], [y], S.FullyConnectedOptionsT(), 4)
    build.graph.inputs, build.graph.outputs = [x], [y]
    check_against_tflm(build.bytes(), np.zeros((1, 1, 1), np.int8))
