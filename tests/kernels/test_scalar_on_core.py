"""Kernels for cores without SIMD on emulated cores: the assembly, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from edgeshrink.firmware import profile_model
from edgeshrink.graph_reader import read_graph
from edgeshrink.target import load_target
from tests.kernels.conv_models import Case, model
from tests.kernels.host import lowered_each_way, random_inputs, tflm_outputs
from tests.kernels.on_core import outputs_on_core
from tests.kernels.test_conv_on_core import LAYERS
from tests.kernels.test_dense import dense_model

pytestmark = pytest.mark.slow

MORE = {
    "1x1 of few channels": Case(size=(5, 5), kernel=(1, 1), k_c=3, filters=9, y_zero=3),
    "two pixels": Case(size=(1, 2), kernel=(1, 1), k_c=8, filters=3),
    "3x3 of the largest weights": Case(size=(6, 7), k_c=33, filters=2, largest=True, gain=0.003),
    "depthwise 4x5": Case(size=(9, 9), kernel=(4, 5), k_c=1, groups=5, filters=1, depthwise=True),
}
ISA = {"cortex-m0+": ("mul",), "cortex-m3": ("mul",), "rv32imc": ("rv32imc",)}
# Cycles of one inference may not exceed these; a published engine takes 7.8 to 12 for a MAC.
CYCLES_PER_MAC = {"ad01": 7.0, "ic_resnet8": 5.0, "kws_dscnn": 7.5, "vww_mbv1_96": 9.5}


def check_on_core(data: bytes, core: str, folder, *, optimize: str = "-O3") -> None:
    inputs = random_inputs(data, 3)
    expected = tflm_outputs(data, *inputs)
    for label, lowered in lowered_each_way(read_graph(data), ISA[core]):
        if not label.startswith(("op 0 scalar", "op 0 rv32")):
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


@pytest.mark.parametrize("name", LAYERS | MORE)
def test_a_layer_on_cortex_m0plus_equals_tensorflow_lite_micro(name, tmp_path):
    check_on_core(model((LAYERS | MORE)[name]), "cortex-m0+", tmp_path)


@pytest.mark.parametrize("name", LAYERS | MORE)
def test_a_layer_on_rv32_equals_tensorflow_lite_micro(name, tmp_path):
    check_on_core(model((LAYERS | MORE)[name]), "rv32imc", tmp_path)


@pytest.mark.parametrize("core", ["cortex-m0+", "cortex-m3", "rv32imc"])
@pytest.mark.parametrize("name", ["3x3", "three channels", "depthwise odd height"])
def test_a_layer_compiled_for_size_equals_tensorflow_lite_micro(core, name, tmp_path):
    check_on_core(model(LAYERS[name]), core, tmp_path, optimize="-Os")


@pytest.mark.parametrize("core", ["cortex-m0+", "rv32imc"])
@pytest.mark.parametrize(("rows", "n_in", "n_out"), [(1, 72, 7), (1, 4, 4), (5, 40, 6)])
def test_a_dense_layer_equals_tensorflow_lite_micro(core, rows, n_in, n_out, tmp_path):
    data = dense_model(rows, n_in, n_out, seed=1, x_zero=-5, y_zero=3, scale=8.0,
                       per_channel=True, activation=1, bias=True)  # fmt: skip
    check_on_core(data, core, tmp_path)


@pytest.mark.parametrize("target", ["rp2040", "esp32-c3"])
@pytest.mark.parametrize("name", CYCLES_PER_MAC)
def test_a_whole_model_equals_tensorflow_lite_micro_in_few_cycles(name, target, shared_dir):
    path = shared_dir / "models" / f"mlperf_{name}_int8.tflite"
    _, profile = profile_model(path, load_target(target))  # compares 8 samples, bit for bit
    figures = profile.figures
    assert figures["core_cycles"].value < CYCLES_PER_MAC[name] * figures["macs"].value
