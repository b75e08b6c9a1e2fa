"""Kernels for cores without SIMD against TensorFlow Lite Micro, bit for bit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeshrink.graph_reader import read_graph
from tests.kernels.conv_models import Case, cases, model, without_pad
from tests.kernels.host import HostModel, check_against_tflm, lowered_each_way, random_inputs
from tests.kernels.mutants import mutated
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


@pytest.mark.parametrize(
    ("variant", "old", "new"),
    [
        ("scalar", "(int32_t)(s0 >> 15 & 1)", "0"),  # a negative lower sum borrows from the upper
        ("scalar", "all0 += s0, all1 += s1;", "all0 += s0;"),
        ("scalar", "in_line = s->dilation_w == 1", "in_line = 1"),
        ("rv32 4x4", "s->k_w - 1) * s->dilation_w", "s->k_w - 1) * 1"),
        ("rv32 4x4", "(sum >> 31)", "0"),
    ],
)
def test_inputs_kill_a_mutant(variant, old, new):
    case = Case(size=(6, 7), k_c=5, filters=6, dilation=(2, 2), ties=True, gain=2**-6, y_zero=0)
    data = model(case)
    inputs = random_inputs(data, 8)
    lowered = dict(lowered_each_way(read_graph(data), ISA))[f"op 0 {variant}"]
    expected = [HostModel(lowered).run(inputs[0][i])[0] for i in range(8)]
    other = HostModel(mutated(lowered, old, new))
    assert any((other.run(inputs[0][i])[0] != expected[i]).any() for i in range(8))
