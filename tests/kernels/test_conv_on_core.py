"""Kernels of convolutions, matrix products and sums on emulated cores: the assembly, bit for bit.

On a host the same calls run the C that stands beside the assembly, so these tests are what says
that both compute the same.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as S

from edgeshrink.graph_reader import read_graph
from edgeshrink.lowering import Emitted
from tests.kernels.conv_models import Case, model
from tests.kernels.host import DSP_ISA, lowered_each_way, random_inputs, tflm_outputs
from tests.kernels.on_core import outputs_on_core
from tests.kernels.test_dense import dense_model
from tests.tiny_models import TfliteBuilder

pytestmark = pytest.mark.slow

CONVOLUTIONS = {
    "3x3": Case(size=(9, 12), k_c=16, filters=16),
    "3x3 with a rest of each size": Case(size=(5, 7), k_c=8, filters=5, batches=2, x_zero=7),
    "5x5 that loops over values": Case(size=(6, 6), kernel=(5, 5), k_c=20, filters=3, gain=0.003),
    "3x3 stride 2": Case(size=(9, 12), k_c=12, filters=6, stride=(2, 2), x_zero=-3),
    "1x1": Case(size=(5, 5), kernel=(1, 1), k_c=64, filters=9, y_zero=3, activation=3),
    "1x1 of many channels": Case(size=(3, 3), kernel=(1, 1), k_c=258, filters=3, gain=0.003),
    "three channels": Case(size=(9, 10), k_c=3, filters=8, stride=(2, 2), x_zero=5),
    "one channel": Case(size=(9, 10), kernel=(10, 4), k_c=1, filters=7, stride=(2, 2)),
    "dilated": Case(size=(9, 8), k_c=4, filters=5, dilation=(2, 2), gain=0.003),
    "grouped": Case(size=(5, 6), k_c=5, filters=3, groups=2, y_zero=4, activation=1),
    "one output": Case(size=(3, 3), k_c=6, filters=6, same=False),
    "ties": Case(size=(6, 6), k_c=8, filters=6, ties=True, gain=2**-6, y_zero=0),
    "ties, shift 1": Case(size=(6, 6), k_c=4, filters=4, kernel=(1, 1), ties=True, gain=0.25,
                          y_zero=0),
    "extremes": Case(size=(6, 6), k_c=16, filters=4, largest=True, gain=2**-9, ties=True),
}  # fmt: skip
DEPTHWISE = {
    "one column": Case(size=(5, 1), groups=4),
    "two columns": Case(size=(4, 2), groups=5),
    "odd height": Case(size=(7, 5), groups=6, x_zero=9, y_zero=-4, activation=1),
    "long rows": Case(size=(4, 23), groups=8, y_zero=-128, activation=3),
    "stride 2": Case(size=(9, 10), groups=7, stride=(2, 2)),
    "stride 2, VALID": Case(size=(9, 11), groups=4, stride=(2, 2), same=False, batches=2),
    "multiplier": Case(size=(5, 6), groups=3, filters=2),
    "5x3": Case(size=(7, 6), kernel=(5, 3), groups=8, dilation=(1, 2)),
    "ties": Case(size=(6, 6), groups=8, ties=True, gain=2**-4, y_zero=0),
    "extremes": Case(size=(6, 8), groups=8, ties=True, gain=2**-9, largest=True, x_zero=127),
}  # fmt: skip
LAYERS = CONVOLUTIONS | {
    f"depthwise {name}": replace(case, depthwise=True, k_c=1, filters=max(1, case.filters % 4))
    for name, case in DEPTHWISE.items()
}


def check_on_core(data: bytes, core: str, folder, *, optimize: str = "-O3") -> None:
    inputs = random_inputs(data, 3)
    expected = tflm_outputs(data, *inputs)
    for label, lowered in lowered_each_way(read_graph(data), DSP_ISA):
        if not label.startswith("op 0") or label.endswith(" ref"):
            continue
        place = folder / label.replace(" ", "_")
        place.mkdir()
        got, run = outputs_on_core(lowered, core, place, *inputs, optimize=optimize)
        assert run.stack_bytes is not None
        assert run.stack_bytes <= 512, label
        for row, (g, e) in enumerate(zip(got, expected, strict=True)):
            np.testing.assert_array_equal(
                g[0].reshape(e[0].shape), e[0], err_msg=f"{label}, sample {row}"
            )


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_on_cortex_m4_equals_tensorflow_lite_micro(name, tmp_path):
    check_on_core(model(LAYERS[name]), "cortex-m4f", tmp_path)


@pytest.mark.parametrize("core", ["cortex-m7", "cortex-m33"])
@pytest.mark.parametrize("name", ["3x3", "three channels", "depthwise odd height"])
def test_a_layer_on_other_cores_equals_tensorflow_lite_micro(core, name, tmp_path):
    check_on_core(model(LAYERS[name]), core, tmp_path, optimize="-Os")


@pytest.mark.parametrize(("rows", "n_in", "n_out"), [(1, 70, 7), (1, 131, 9), (3, 40, 6)])
def test_a_dense_layer_on_cortex_m4_equals_tensorflow_lite_micro(rows, n_in, n_out, tmp_path):
    data = dense_model(rows, n_in, n_out, seed=1, x_zero=-5, y_zero=3, scale=8.0,
                       per_channel=True, activation=1, bias=True)  # fmt: skip
    check_on_core(data, "cortex-m4f", tmp_path)


def sum_model(kind: str, scales: tuple[float, float, float], n: int, activation: int) -> bytes:
    build = TfliteBuilder()
    a = build.tensor("a", (1, n), "INT8", scale=scales[0], zero_point=-128)
    b = build.tensor("b", (1, n), "INT8", scale=scales[1], zero_point=5)
    y = build.tensor("y", (1, n), "INT8", scale=scales[2], zero_point=-7)
    options = S.AddOptionsT if kind == "ADD" else S.SubOptionsT
    build.op(kind, [a, b], [y], options(fusedActivationFunction=activation), 2)
    build.graph.inputs, build.graph.outputs = [a, b], [y]
    return build.bytes()


@pytest.mark.parametrize("kind", ["ADD", "SUB"])
@pytest.mark.parametrize("scales", [(0.1, 0.03, 0.07), (0.02, 0.11, 0.2), (0.05, 0.05, 0.1)])
def test_a_sum_on_cortex_m4_equals_tensorflow_lite_micro(kind, scales, tmp_path):
    check_on_core(sum_model(kind, scales, 259, 0), "cortex-m4f", tmp_path)


def test_a_clamped_sum_on_cortex_m4_equals_tensorflow_lite_micro(tmp_path):
    check_on_core(sum_model("ADD", (0.1, 0.03, 0.07), 66, 3), "cortex-m4f", tmp_path)


MUTANTS = {
    "ties up": (CONVOLUTIONS["ties, shift 1"], "by pixels", "add lr, lr, r2, asr #31", "nop.w"),
    "no clamp": (CONVOLUTIONS["1x1"], "by pixels", "movlt r2, #3", "movlt r2, r2"),
    "a lane left out": (CONVOLUTIONS["3x3"], "by rows", "smlad r2, r11, r12, r2", "nop.w"),
    "one pixel off": (CONVOLUTIONS["3x3"], "by rows", "strb r3, [r10, #16]",
                      "strb r3, [r10, #17]"),
    "a column of weights twice": (LAYERS["depthwise odd height"], "by pairs", "lr, r4,",
                                  "lr, r3,"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_fault_in_the_assembly_is_noticed(name, tmp_path):
    case, variant, old, new = MUTANTS[name]
    data = model(case)
    inputs = random_inputs(data, 3)
    expected = tflm_outputs(data, *inputs)
    lowered = dict(lowered_each_way(read_graph(data), DSP_ISA))[f"op 0 {variant}"]
    (step,) = lowered.steps
    (call,) = step.variant.calls
    assert old in call.emitted.text
    faulty = Emitted(text=call.emitted.text.replace(old, new), parameters=call.emitted.parameters)
    calls = (replace(call, emitted=faulty),)
    mutant = replace(lowered, steps=(replace(step, variant=replace(step.variant, calls=calls)),))
    got, _ = outputs_on_core(mutant, "cortex-m4f", tmp_path, *inputs)
    assert any(
        not np.array_equal(g[0].reshape(e[0].shape), e[0])
        for g, e in zip(got, expected, strict=True)
    )
