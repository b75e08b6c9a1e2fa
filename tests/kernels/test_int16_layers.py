"""Layers with int16 activations against TensorFlow Lite Micro, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as S
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeshrink.errors import ModelError
from edgeshrink.graph_reader import read_graph
from edgeshrink.lowering import lower
from tests.int8_nets import _out
from tests.kernels.host import check_against_tflm, random_inputs
from tests.tiny_models import TfliteBuilder


def layer(kind, *, size=(4, 4), kernel=(3, 3), stride=(1, 1), dilation=(1, 1), same=True,
          channels=(3, 4), batches=1, gain=1e-4, per_channel=True, bias="INT64", activation=0,
          zero=0, seed=0):  # fmt: skip
    rng = np.random.default_rng(seed)
    build = TfliteBuilder()
    x_c, y_c = channels
    padding = {"padding": 0 if same else 1}
    common = padding | {
        "strideH": stride[0], "strideW": stride[1], "dilationHFactor": dilation[0],
        "dilationWFactor": dilation[1], "fusedActivationFunction": activation,
    }  # fmt: skip
    rows, columns = _out(size, kernel, stride, dilation, "SAME" if same else "VALID")
    x_shape, y_shape, axis = (batches, *size, x_c), (batches, rows, columns, y_c), 0
    if kind == "CONV_2D":
        shape, options = (y_c, *kernel, x_c), S.Conv2DOptionsT(**common)
    elif kind == "DEPTHWISE_CONV_2D":
        y_c *= x_c
        y_shape, axis = (batches, rows, columns, y_c), 3
        shape = (1, *kernel, y_c)
        options = S.DepthwiseConv2DOptionsT(depthMultiplier=channels[1], **common)
    else:
        x_shape, y_shape, shape = (batches, x_c), (batches, y_c), (y_c, x_c)
        options = S.FullyConnectedOptionsT(fusedActivationFunction=activation)
    x = build.tensor("x", x_shape, "INT16", scale=0.001, zero_point=zero)
    scales = rng.uniform(0.5, 1, y_c if per_channel else 1) * 0.01
    weights = rng.integers(-127, 128, shape).astype(np.int8)
    w = build.tensor("w", shape, "INT8", data=weights, scale=scales,
                     zero_point=[0] * len(scales), axis=axis)  # fmt: skip
    inputs = [x, w]
    if bias:
        values = rng.integers(-(2**20), 2**20, y_c)
        values = values.astype({"INT32": np.int32, "INT64": np.int64}[bias])
        inputs.append(build.tensor("b", (y_c,), bias, data=values, scale=scales * 0.001,
                                   zero_point=[0] * len(scales)))  # fmt: skip
    y = build.tensor("y", y_shape, "INT16", scale=0.001 * 0.01 / gain)
    build.op(kind, inputs, [y], options, 4)
    build.graph.inputs, build.graph.outputs = [x], [y]
    return build.bytes()


PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"]),
    size=st.tuples(st.integers(3, 6), st.integers(3, 6)),
    kernel=PAIR,
    stride=PAIR,
    same=st.booleans(),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 4)),
    batches=st.integers(1, 2),
    gain=st.sampled_from([1e-9, 1e-4, 0.004, 0.5, 1.0, 20.0]),
    per_channel=st.booleans(),
    bias=st.sampled_from([None, "INT64"]),
    activation=st.sampled_from([0, 1, 3]),
    seed=st.integers(0, 2**31),
)
def test_layers_of_int16_equal_tensorflow_lite_micro(kind, bias, **case):
    if kind == "DEPTHWISE_CONV_2D":
        bias = "INT64"  # the oracle needs one
    data = layer(kind, bias=bias, **case)
    check_against_tflm(data, *random_inputs(data))


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ({"bias": "INT32"}, "bias int32"),
        ({"zero": 1}, "zero points"),
        ({"gain": 300.0}, "recalibrate"),
    ],
)
@pytest.mark.parametrize("kind", ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"])
def test_impossible_int16_layers_name_operator_and_remedy(kind, case, words):
    with pytest.raises(ModelError, match=rf"operator 0 {kind} v4 \(y\).*{words}") as caught:
        lower(read_graph(layer(kind, **case)), ())
    assert caught.value.fix
