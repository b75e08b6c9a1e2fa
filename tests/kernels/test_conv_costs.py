"""What variants say they cost, by which they are chosen, against what the emulated core counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgeshrink.costs.microcontroller import block_cycles
from edgeshrink.graph_reader import read_graph
from edgeshrink.lowering.emit_m4 import requantization
from tests.kernels.conv_models import Case, model
from tests.kernels.host import DSP_ISA, lowered_each_way, random_inputs
from tests.kernels.on_core import outputs_on_core

LAYERS = {
    "3x3": Case(size=(12, 12), k_c=16, filters=16),
    "3x3 stride 2": Case(size=(16, 16), k_c=16, filters=8, stride=(2, 2)),
    "three channels": Case(size=(16, 16), k_c=3, filters=8, stride=(2, 2)),
    "1x1": Case(size=(7, 9), kernel=(1, 1), k_c=32, filters=24),
    "1x1 of few channels": Case(size=(12, 12), kernel=(1, 1), k_c=8, filters=16),
    "depthwise": Case(size=(12, 12), k_c=1, groups=16, filters=1, depthwise=True),
    "depthwise, short rows": Case(size=(9, 4), k_c=1, groups=32, filters=1, depthwise=True),
    "depthwise stride 2": Case(
        size=(16, 16), k_c=1, groups=12, filters=1, depthwise=True, stride=(2, 2)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_the_cycles_of_a_variant_are_those_that_are_counted(name, tmp_path):
    data = model(replace(LAYERS[name], gain=0.003))
    inputs = random_inputs(data, 2)
    for label, lowered in lowered_each_way(read_graph(data), DSP_ISA):
        if not label.startswith("op 0"):
            continue
        folder = tmp_path / label.replace(" ", "_")
        folder.mkdir()
        _, run = outputs_on_core(lowered, "cortex-m4f", folder, *(i[:1] for i in inputs))
        counted = sum(block_cycles(run.blocks, "cortex-m4f"))
        stated = lowered.steps[0].variant.cycles
        assert stated == pytest.approx(counted, rel=0.25), label


def scales(multiplier: int, shift: int, reach: int):
    return requantization(
        np.array([2**30, multiplier], np.int32), np.array([-8, shift], np.int8), 3,
        np.array([10**6, reach], np.int64),
    )  # fmt: skip


@pytest.mark.parametrize("shift", [0, 3])
def test_a_channel_that_is_not_shifted_to_the_right_has_no_short_rounding(shift):
    assert scales(2**30, shift, 100) is None


def test_a_channel_whose_sums_vanish_gives_the_zero_point():
    for found in (scales(2**31 - 1, -31, 2**20), scales(0, 0, 2**20)):
        assert found is not None
        assert found.multiplier[1] == 0
        for sign in (0, -1):  # of the sum, which corrects the rounding
            assert (found.constant[1] + sign) >> found.shift[1] == 3


def test_a_large_shift_of_sums_that_do_not_vanish_has_no_short_rounding():
    assert scales(2**31 - 1, -23, 2**29) is None
