"""Kernels for cores without SIMD against TensorFlow Lite Micro, bit for bit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.conv_models import Case, cases, model, without_pad
from tests.kernels.host import check_against_tflm, random_inputs
from tests.kernels.test_dense import dense_model

ISA = ("rv32imc",)  # all of Cortex-M0+ is in it


@settings(max_examples=60, deadline=None)
@given(case=cases(depthwise=False))
def test_convolution_equals_tensorflow_lite_micro(case):
    data = model(case)
    check_against_tflm(data, *random_inputs(data), isa=ISA)


@pytest.mark.parametrize("pad", [(1, 1, 1, 1), (0, 1, 0, 1), (2, 0, 1, 3)])
def test_folded_padding_equals_a_pad_before_the_layer(pad):
    case = Case(size=(6, 7), k_c=5, filters=6, stride=(2, 2), x_zero=5)
    data = model(case, pad)
    graph = without_pad(data, pad)
    check_against_tflm(data, *random_inputs(data), graph=graph, isa=ISA)


@settings(max_examples=60, deadline=None)
@given(case=cases(depthwise=True))
def test_depthwise_convolution_equals_tensorflow_lite_micro(case):
    data = model(case)
    check_against_tflm(data, *random_inputs(data), isa=ISA)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.sampled_from([1, 1, 2, 5]),
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
    check_against_tflm(data, *random_inputs(data), isa=ISA)
