"""Whole random networks, after the graph passes, in the kernels: the bits of the network before."""

from __future__ import annotations

import numpy as np
import pytest

from edgeshrink.graph_reader import read_graph
from edgeshrink.lowering import lower
from edgeshrink.passes import run_passes
from tests.int8_nets import Int8Net, random_int8, random_net
from tests.kernels.host import HostModel
from tests.reference_interpreter import run


def assert_kernels_give_the_same(data: bytes, seed: int) -> None:
    before = read_graph(data)
    after, _ = run_passes(before)
    model = HostModel(lower(after, ()))
    for number in range(2):
        inputs = [random_int8(before.tensors[i].shape, seed + number) for i in before.inputs]
        for mine, expected in zip(model.run(*inputs), run(before, *inputs), strict=True):
            np.testing.assert_array_equal(mine.reshape(-1), expected.reshape(-1))


@pytest.mark.parametrize("block", range(4))
def test_optimised_random_networks_keep_their_bits_in_the_kernels(block):
    for seed in range(20 * block, 20 * block + 20):
        assert_kernels_give_the_same(random_net(seed), seed)


def test_max_pool_that_took_over_a_pad_keeps_its_bits_in_the_kernels():
    net = Int8Net()
    x = net.input((1, 6, 6, 2), zero=-128)
    x = net.pad(x, ((0, 0), (1, 0), (1, 1), (0, 0)), -128)
    assert_kernels_give_the_same(net.finish(net.pool("MAX_POOL_2D", x, (2, 2), (1, 1))), 0)


def test_activation_that_only_passes_fuse_keeps_its_bits_in_the_kernels():
    net = Int8Net()
    x = net.conv(net.input((1, 5, 5, 3)), 4, y=net.activation((1, 5, 5, 4), 0.02, -50))
    y = net.unary("RELU_0_TO_1", x, net.like(x))
    assert_kernels_give_the_same(net.finish(y), 0)
