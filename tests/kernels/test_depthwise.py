"""DEPTHWISE_CONV_2D against TensorFlow Lite Micro, bit for bit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from tests.kernels.conv_models import Case, cases, model, without_bias, without_pad
from tests.kernels.host import check_against_tflm, random_inputs


@settings(max_examples=40, deadline=None)
@given(case=cases(depthwise=True))
def test_depthwise_convolution_equals_tensorflow_lite_micro(case):
    data = model(case)
    check_against_tflm(data, *random_inputs(data))


@pytest.mark.parametrize("pad", [(1, 1, 1, 1), (0, 1, 0, 1), (2, 0, 1, 3)])
def test_folded_padding_equals_a_pad_before_the_layer(pad):
    case = Case(size=(6, 7), k_c=1, groups=5, filters=1, depthwise=True, stride=(2, 2), x_zero=5)
    data = model(case, pad)
    check_against_tflm(data, *random_inputs(data), graph=without_pad(data, pad))


def test_absent_bias_equals_a_bias_of_zeros():
    data = model(Case(k_c=1, groups=5, filters=1, depthwise=True, bias=False))
    check_against_tflm(data, *random_inputs(data), graph=without_bias(data))
