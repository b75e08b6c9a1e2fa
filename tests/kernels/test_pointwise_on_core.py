"""Kernels without products on emulated cores: what hosts never run, and every core's compiler.

Hosts run portable functions in place of SSUB8, SEL and their like; these tests are what says that
both compute the same. The others show that a core needs nothing but its compiler's own functions.
"""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as S

from edgeshrink.graph_reader import read_graph
from tests.kernels.host import DSP_ISA, SCALAR_ISA, lowered_each_way, random_inputs, tflm_outputs
from tests.kernels.on_core import outputs_on_core
from tests.kernels.pointwise_models import Spec, one_op
from tests.kernels.test_reductions import axes_of, pool_model
from tests.kernels.test_softmax import l2norm_model, log_softmax_model, softmax_model

pytestmark = pytest.mark.slow

CORES = {"cortex-m0+": SCALAR_ISA, "cortex-m4f": DSP_ISA, "rv32imc": SCALAR_ISA}
AVERAGE, MAX = "AVERAGE_POOL_2D", "MAX_POOL_2D"
POOLS = {
    "mean of 256 values": pool_model(AVERAGE, (1, 16, 16, 5), (16, 16), (1, 1), same=False),
    "mean at the border": pool_model(AVERAGE, (2, 5, 7, 10), (3, 3), (2, 2), same=True, zero=-4),
    "clamped mean": pool_model(AVERAGE, (1, 5, 7, 4), (2, 2), (1, 1), same=True, activation=3),
    "largest at the border": pool_model(MAX, (2, 5, 7, 10), (3, 3), (2, 2), same=True, zero=-4),
    "clamped largest": pool_model(MAX, (1, 5, 7, 4), (2, 2), (1, 1), same=True, activation=3),
}
ROW = Spec((1, 259), "INT8", 0.1, -128)
OTHERS = {
    "sum": one_op("ADD", [ROW, ROW._replace(scale=0.03, zero_point=5)],
                  ROW._replace(scale=0.07, zero_point=-7), S.AddOptionsT()),
    "difference": one_op("SUB", [ROW._replace(scale=0.02), ROW._replace(zero_point=5)],
                         ROW._replace(scale=0.2, zero_point=-7),
                         S.SubOptionsT(fusedActivationFunction=1)),
    "product": one_op("MUL", [ROW, Spec((1, 1), "INT8", 0.03, 5)], ROW._replace(scale=0.4),
                      S.MulOptionsT()),
    "mean": one_op("MEAN", [Spec((1, 9, 9, 5), "INT8", 0.1, 3), axes_of(1, 2)],
                   Spec((1, 5), "INT8", 0.07, -3), S.ReducerOptionsT()),
    "softmax": softmax_model((3, 10), ("INT8", "INT8"), 0.1),
    "softmax of int16": softmax_model((3, 10), ("INT16", "INT16"), 0.0005),
    "logarithm of a softmax": log_softmax_model((3, 10), 0.1),
    "direction": l2norm_model((3, 10), 0.1, zero=3),
    "quantization": one_op("QUANTIZE", [Spec((99,), "FLOAT32", None)], Spec((99,), "INT8", 0.02)),
    "dequantization": one_op("DEQUANTIZE", [Spec((99,))], Spec((99,), "FLOAT32", None)),
    "sigmoid of int16": one_op("LOGISTIC", [Spec((99,), "INT16", 1e-4)],
                               Spec((99,), "INT16", 2.0**-15)),
}  # fmt: skip


def check_on_core(data: bytes, core: str, folder) -> None:
    inputs = random_inputs(data, 4)
    expected = tflm_outputs(data, *inputs)
    for label, lowered in lowered_each_way(read_graph(data), CORES[core]):
        if not label.startswith("op 0"):
            continue
        place = folder / label.replace(" ", "_")
        place.mkdir()
        got, run = outputs_on_core(lowered, core, place, *inputs, optimize="-Os")
        assert run.stack_bytes is not None
        assert run.stack_bytes <= 512, label
        for row, (g, e) in enumerate(zip(got, expected, strict=True)):
            np.testing.assert_array_equal(
                g[0].reshape(e[0].shape), e[0], err_msg=f"{label}, sample {row}"
            )


@pytest.mark.parametrize("name", POOLS)
def test_a_pool_by_four_channels_on_cortex_m4_equals_tensorflow_lite_micro(name, tmp_path):
    check_on_core(POOLS[name], "cortex-m4f", tmp_path)


@pytest.mark.parametrize("core", ["cortex-m0+", "rv32imc"])
def test_a_pool_by_four_channels_on_a_small_core_equals_tensorflow_lite_micro(core, tmp_path):
    check_on_core(POOLS["clamped mean"], core, tmp_path)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("name", OTHERS)
def test_an_operator_equals_tensorflow_lite_micro_on_every_core(core, name, tmp_path):
    check_on_core(OTHERS[name], core, tmp_path)
