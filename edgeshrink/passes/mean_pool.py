"""A MEAN over rows and columns becomes an AVERAGE_POOL_2D, where both round alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from edgeshrink.graph import Graph, Op, Tensor
from edgeshrink.passes.fixed_point import (
    Ints,
    has_same_quantization,
    multiply,
    quantize_multiplier,
    scale_of,
    zero_of,
)
from edgeshrink.passes.rewrite import (
    as_reshape,
    constant_input,
    is_unchanged,
    new_tensor,
    rebuilt,
)

MAX_COUNT: Final = 2**14  # values in a mean; every sum of so many is tried


def mean_to_pool(graph: Graph) -> Graph:
    """Return the graph with MEAN over rows and columns as AVERAGE_POOL_2D, one kernel less.

    The two are not the same: MEAN multiplies a sum by a rounded reciprocal and rounds twice,
    AVERAGE_POOL_2D divides and rounds once. So the pass compares them on every sum that so many
    int8 values can have, and leaves the MEAN where a single one differs.
    """
    tensors: list[Tensor] = list(graph.tensors)
    ops: list[Op] = []
    for op in graph.ops:
        ops += _pooled(graph, op, tensors) or [op]
    return graph if is_unchanged(graph, ops) else rebuilt(graph, ops, tensors)


def mean_of(sums: Ints, count: int, x: Tensor, y: Tensor) -> Ints:
    """Return what MEAN makes of sums of `count` stored values, as stored in `y`."""
    x_scale, y_scale = scale_of(x), scale_of(y)
    assert x_scale is not None
    assert y_scale is not None
    multiplier, shift = quantize_multiplier(float(x_scale) / float(y_scale))
    n_bits = min(count.bit_length() - 1, 32, 31 + shift)
    factor = (multiplier << n_bits) // count, shift - n_bits
    return np.clip(multiply(sums - zero_of(x) * count, factor) + zero_of(y), -128, 127)


def _pool_of(sums: Ints, count: int) -> Ints:
    """Return what AVERAGE_POOL_2D makes of sums of `count` stored values."""
    nudged = np.where(sums > 0, sums + count // 2, sums - count // 2)
    divided: Ints = np.sign(nudged) * (np.abs(nudged) // count)
    return divided


def _pooled(graph: Graph, op: Op, tensors: list[Tensor]) -> list[Op] | None:
    if op.is_custom or op.kind != "MEAN":
        return None
    x, y = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
    axes = constant_input(graph, op, 1)
    if axes is None or len(x.shape) != 4 or {int(a) % 4 for a in axes.reshape(-1)} != {1, 2}:
        return None
    if x.dtype != "int8" or scale_of(x) is None or not has_same_quantization(x, y):
        return None
    count = x.shape[1] * x.shape[2]
    if not 0 < count <= MAX_COUNT:
        return None
    sums = np.arange(-128 * count, 127 * count + 1, dtype=np.int64)
    if not np.array_equal(mean_of(sums, count, x, y), _pool_of(sums, count)):
        return None
    options = {
        "padding": "VALID", "stride_h": x.shape[1], "stride_w": x.shape[2],
        "filter_height": x.shape[1], "filter_width": x.shape[2], "activation": "NONE",
    }  # fmt: skip
    pool = replace(op, kind="AVERAGE_POOL_2D", version=2, inputs=(op.inputs[0],), options=options)
    shape = (x.shape[0], 1, 1, x.shape[3])
    if y.shape == shape:
        return [pool]
    pooled = new_tensor(tensors, y, shape=shape)
    return [replace(pool, outputs=(pooled,)), as_reshape(op, pooled, y.shape)]
