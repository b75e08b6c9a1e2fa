"""CONV_2D against TensorFlow Lite Micro, bit for bit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from edgeshrink.graph_reader import read_graph
from edgeshrink.lowering import LOWERINGS
from tests.kernels.conv_models import Case, cases, model, without_pad
from tests.kernels.host import check_against_tflm, random_inputs


@settings(max_examples=40, deadline=None)
@given(case=cases(depthwise=False))
def test_convolution_equals_tensorflow_lite_micro(case):
    data = model(case)
    check_against_tflm(data, *random_inputs(data))


@pytest.mark.parametrize("pad", [(1, 1, 1, 1), (0, 1, 0, 1), (2, 0, 1, 3)])
def test_folded_padding_equals_a_pad_before_the_layer(pad):
    case = Case(size=(6, 7), k_c=5, filters=6, stride=(2, 2), x_zero=5)
    data = model(case, pad)
    check_against_tflm(data, *random_inputs(data), graph=without_pad(data, pad))


def emitted_kernels(case: Case) -> dict[str, str]:
    graph = read_graph(model(case))
    (op,) = graph.ops
    variants = LOWERINGS[op.kind](graph, op, ("dsp", "ref"))
    calls = [call for variant in variants for call in variant.calls if call.emitted is not None]
    return {call.function: call.emitted.text for call in calls}


def test_kernels_of_one_name_have_one_text():
    known: dict[str, str] = {}
    n_shared = 0
    for depthwise in (False, True):
        for seed in (1, 2):
            for width, k_c, filters, y_zero, activation in (
                (8, 4, 4, -128, 0), (8, 8, 4, -128, 0), (9, 8, 4, 0, 1), (8, 8, 4, 0, 1),
            ):  # fmt: skip
                case = Case(
                    size=(8, width), k_c=1 if depthwise else k_c, depthwise=depthwise,
                    groups=k_c if depthwise else 1, filters=1 if depthwise else filters,
                    seed=seed, y_zero=y_zero, activation=activation, gain=0.003,
                )  # fmt: skip
                for name, text in emitted_kernels(case).items():
                    n_shared += name in known
                    assert known.setdefault(name, text) == text, name
    assert n_shared > 8  # other weights, and for depthwise other channels, take the same kernel
