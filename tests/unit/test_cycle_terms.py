"""What the cycles of the plainest convolution grow with, counted tap by tap."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeshrink.costs.firmware import cycle_terms
from edgeshrink.lowering import lower
from edgeshrink.passes import run_passes
from edgeshrink.quantizer.sketch import sketch
from edgeshrink.target import load_target


def counted(size: int, n_in: int, n_out: int, stride: int) -> tuple[int, int, int, int]:
    """Return outputs, taps looked at, taps inside, products of a 3x3 convolution padded by 1."""
    outputs = taps = inside = 0
    places = range(-1, size - 1, stride)
    for top in places:
        for left in places:
            for _ in range(n_out):
                outputs += 1
                for y in range(top, top + 3):
                    for x in range(left, left + 3):
                        taps += 1
                        inside += 0 <= y < size and 0 <= x < size
    return outputs, taps, inside, inside * n_in


@pytest.mark.parametrize(("size", "n_in", "n_out", "stride"), [(4, 3, 5, 1), (8, 4, 2, 2)])
def test_a_tap_outside_the_input_costs_a_look_and_no_product(size, n_in, n_out, stride):
    torch.manual_seed(0)
    model = nn.Conv2d(n_in, n_out, 3, stride, 1).eval()
    drawn = sketch(model, (torch.randn(1, n_in, size, size),))
    graph, _ = run_passes(drawn.graph)  # an uneven padding is an operator of its own before
    lowered = lower(graph, load_target("rp2040").cpu.isa, optimize="flash", arena_seconds=0.0)
    (step,) = (s for s in lowered.steps if s.kind == "CONV_2D")
    expected = counted(size, n_in, n_out, stride)
    assert cycle_terms(lowered.graph, step) == pytest.approx(expected)
