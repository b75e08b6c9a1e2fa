"""Convolutions that write over their own input: exactly as far as they say, and no byte further."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from edgeshrink.graph_reader import read_graph
from edgeshrink.lowering import Lowered, Place
from tests.kernels.conv_models import Case, cases, model
from tests.kernels.host import DSP_ISA, HostModel, lowered_each_way


def overlapping(lowered: Lowered, distance: int) -> Lowered:
    """The same calls with the output `distance` bytes below the input, and the scratch above."""
    graph = lowered.graph
    x, y = (graph.tensors[i] for i in (graph.inputs[0], graph.outputs[0]))
    offsets = {x.index: max(0, distance), y.index: max(0, -distance)}
    end = max(offsets[t.index] + t.n_bytes for t in (x, y))
    end += -end % 16
    step = lowered.steps[0]
    places = dict(lowered.places) | {
        t: Place(where="arena", offset=offset) for t, offset in offsets.items()
    }
    return replace(
        lowered,
        places=places,
        scratch={0: end} if step.variant.scratch_bytes else {},
        arena=replace(lowered.arena, n_bytes=end + step.variant.scratch_bytes),
    )


def variants(case: Case) -> dict[str, Lowered]:
    graph = read_graph(model(case))
    ways = dict(lowered_each_way(graph, DSP_ISA))
    return {
        label.removeprefix("op 0 "): way for label, way in ways.items() if label.startswith("op 0")
    }


def outputs(case: Case, lowered: Lowered, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = lowered.graph.tensors[lowered.graph.inputs[0]].shape
    return HostModel(lowered).run(rng.integers(-128, 128, shape).astype(np.int8))[0]


def check_at_stated_distance(case: Case) -> None:
    ways = variants(case)
    expected = outputs(case, ways["ref"], 7)
    for name, way in ways.items():
        for distance in way.steps[0].variant.overlaps.values():
            got = outputs(case, overlapping(way, distance), 7)
            np.testing.assert_array_equal(got, expected, err_msg=f"{name} at {distance}")


@settings(max_examples=20, deadline=None)
@given(case=cases(depthwise=False))
def test_convolution_is_right_at_its_stated_distance(case):
    check_at_stated_distance(replace(case, gain=0.003))


@settings(max_examples=20, deadline=None)
@given(case=cases(depthwise=True))
def test_depthwise_convolution_is_right_at_its_stated_distance(case):
    check_at_stated_distance(replace(case, gain=0.02))


WIDE = Case(size=(9, 10), k_c=4, filters=4, gain=0.003)
DEEP = Case(size=(9, 10), k_c=1, groups=8, filters=1, depthwise=True)


@pytest.mark.parametrize(
    ("case", "variant"),
    [
        (WIDE, "dsp"),
        (WIDE, "by columns"),
        (WIDE, "by rows"),
        (replace(WIDE, kernel=(1, 1), filters=7), "dsp"),
        (replace(WIDE, kernel=(1, 1), filters=7), "by pixels"),
        (replace(WIDE, stride=(2, 2), filters=19), "by rows"),
        (DEEP, "dsp"),
        (DEEP, "by pairs"),
        (replace(DEEP, stride=(2, 2), filters=1), "by pairs"),
    ],
)
def test_one_byte_less_than_the_stated_distance_is_wrong(case, variant):
    ways = variants(case)
    way = ways[variant]
    (distance,) = way.steps[0].variant.overlaps.values()
    seeds = range(8)  # a byte may have the value by chance that overwrites it
    expected = [outputs(case, ways["ref"], seed) for seed in seeds]
    right = overlapping(way, distance)
    wrong = overlapping(way, distance - 1)
    assert all((outputs(case, right, s) == expected[s]).all() for s in seeds)
    assert not all((outputs(case, wrong, s) == expected[s]).all() for s in seeds)


def test_a_resnet_layer_runs_over_its_input_within_a_row_and_two_pixels():
    case = Case(size=(32, 32), k_c=16, filters=16)
    variant = variants(case)["dsp"].steps[0].variant
    (distance,) = variant.overlaps.values()
    assert distance <= (32 + 2) * 16
    assert variant.scratch_bytes <= 2 * 9 * 16
