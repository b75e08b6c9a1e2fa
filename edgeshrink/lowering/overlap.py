"""How far an operator's output may run over its input: the distances of `Variant.overlaps`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgeshrink.graph import Tensor


def in_order_distance(first_read: npt.NDArray[np.int64], x: Tensor, y: Tensor) -> dict[int, int]:
    """Return `Variant.overlaps` of a kernel that computes y[0], y[1], … one after the other.

    Before it writes y[o] it has read all that y[o] needs; what it still needs then begins at the
    lowest `first_read[o']`, o' > o. So the bytes of y[o] must end at or below that:
    offset(y) + (o + 1) * size(y) <= offset(x) + lowest * size(x), for every o but the last.

    Args:
        first_read: (values of y) index of the first value of x that each value of y needs.
        x: The input; nothing but x and y may share memory.
        y: The output.
    """
    sizes = x.n_bytes // _count(x), y.n_bytes // _count(y)
    if sizes[0] != sizes[1] and 1 not in sizes:
        return {}  # a compiler may assume that pointers to different types never meet
    if first_read.size == 1:
        return {x.index: -x.n_bytes}
    lowest = np.minimum.accumulate(first_read[:0:-1])[::-1]
    written = np.arange(1, first_read.size, dtype=np.int64)
    return {x.index: int((written * sizes[1] - lowest * sizes[0]).max())}


def elementwise_distance(x: Tensor, y: Tensor) -> dict[int, int]:
    """Return `Variant.overlaps` of a kernel that reads x[i] and then writes y[i], in order."""
    n = _count(y)
    growth = y.n_bytes // n - x.n_bytes // n
    ends = np.array([0, 1, n - 1]) if n > 1 else np.zeros(1, np.int64)
    distance = in_order_distance(ends, x, y)
    if n > 1 and distance:  # the largest of (i + 1) * growth for i < n - 1
        distance = {x.index: max(growth, (n - 1) * growth)}
    return distance


def _count(tensor: Tensor) -> int:
    return max(1, int(np.prod(tensor.shape, dtype=np.int64)))


def grid(sizes: tuple[int, ...], strides: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return the index of every element of a strided array, in order, as one dimension."""
    index = np.zeros(1, np.int64)
    for size, stride in zip(sizes, strides, strict=True):
        index = np.add.outer(index, np.arange(size, dtype=np.int64) * stride).reshape(-1)
    return index
