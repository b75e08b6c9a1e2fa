"""TRANSPOSE_CONV against TensorFlow Lite Micro, bit for bit."""

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
from tests.tiny_models import TfliteBuilder


def transpose_conv_model(*, size=(3, 3), kernel=(3, 3), stride=(2, 2), same=True, extra=(0, 0),
                         channels=(2, 3), batches=1, wide=False, zeros=(3, -5), gain=0.01,
                         per_channel=True, bias="INT32", activation=0, seed=0):  # fmt: skip
    rng = np.random.default_rng(seed)
    build = TfliteBuilder()
    dtype = "INT16" if wide else "INT8"
    x_c, y_c = channels
    y_size = [
        n * s + e if same else (n - 1) * s + k + e
        for n, s, k, e in zip(size, stride, kernel, extra, strict=True)
    ]
    shape = np.array([batches, *y_size, y_c], np.int32)
    o = build.tensor("shape", (4,), "INT32", data=shape)
    w_scale = rng.uniform(0.5, 1, y_c if per_channel else 1) * 0.01
    values = rng.integers(-127, 128, (y_c, *kernel, x_c)).astype(np.int8)
    w = build.tensor("w", values.shape, "INT8", data=values, scale=w_scale,
                     zero_point=[0] * len(w_scale))  # fmt: skip
    x = build.tensor("x", (batches, *size, x_c), dtype, scale=0.05, zero_point=zeros[0])
    inputs = [o, w, x]
    if bias:
        numpy_type = {"INT16": np.int16, "INT32": np.int32, "INT64": np.int64}[bias]
        data = rng.integers(-9000, 9000, y_c).astype(numpy_type)
        inputs.append(build.tensor("b", (y_c,), bias, data=data, scale=w_scale * 0.05,
                                   zero_point=[0] * len(w_scale)))  # fmt: skip
    y = build.tensor("y", tuple(shape), dtype, scale=0.05 * 0.01 / gain, zero_point=zeros[1])
    options = S.TransposeConvOptionsT(
        padding=0 if same else 1, strideH=stride[0], strideW=stride[1],
        fusedActivationFunction=activation,
    )  # fmt: skip
    build.op("TRANSPOSE_CONV", inputs, [y], options, 4)
    build.graph.inputs, build.graph.outputs = [x], [y]
    return build.bytes()


PAIR = st.tuples(st.integers(1, 4), st.integers(1, 4))


@settings(max_examples=40, deadline=None)
@given(
    size=PAIR,
    kernel=PAIR,
    stride=PAIR,
    same=st.booleans(),
    extra=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    channels=PAIR,
    batches=st.integers(1, 2),
    zeros=st.tuples(st.sampled_from([-128, 0, 127]), st.sampled_from([-128, 3, 127])),
    gain=st.sampled_from([1e-9, 0.003, 0.01, 0.5, 1.0, 20.0]),
    per_channel=st.booleans(),
    bias=st.booleans(),
    activation=st.sampled_from([0, 1, 2, 3]),
    seed=st.integers(0, 2**31),
)
def test_transposed_convolution_equals_tensorflow_lite_micro(bias, **case):
    data = transpose_conv_model(**case, bias="INT32" if bias else None)
    check_against_tflm(data, *random_inputs(data))


@settings(max_examples=40, deadline=None)
@given(
    size=PAIR,
    kernel=PAIR,
    stride=PAIR,
    same=st.booleans(),
    channels=PAIR,
    gain=st.sampled_from([1e-9, 0.003, 0.5, 1.0, 20.0]),
    per_channel=st.booleans(),
    bias=st.sampled_from([None, "INT64", "INT16"]),
    activation=st.sampled_from([0, 1, 3]),
    seed=st.integers(0, 2**31),
)
def test_transposed_convolution_of_int16_equals_tensorflow_lite_micro(**case):
    data = transpose_conv_model(**case, wide=True, zeros=(0, 0))
    check_against_tflm(data, *random_inputs(data))


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ({"wide": True, "zeros": (0, 3), "bias": None}, "zero points"),
        ({"wide": True, "zeros": (0, 0), "bias": "INT32"}, "has a bias int32"),
        ({"bias": "INT64"}, "has a bias int64"),
        ({"stride": (0, 1), "extra": (2, 0)}, "stride"),
    ],
)
def test_impossible_transposed_convolutions_name_operator_and_fault(case, words):
    with pytest.raises(ModelError, match=rf"operator 0 TRANSPOSE_CONV v4 \(y\).*{words}"):
        lower(read_graph(transpose_conv_model(**case)), ("dsp",))
