"""Padding of operators that slide a window over an image."""

from __future__ import annotations

from edgeshrink.graph import Graph, Op
from edgeshrink.lowering.fixed_point import refuse


def window_padding(
    size: tuple[int, int],
    window: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) of TFLite's SAME padding; all pairs are (height, width)."""
    found: list[int] = []
    for n, k, s, d in zip(size, window, stride, dilation, strict=True):
        out = -(-n // s)
        total = max(0, (out - 1) * s + (k - 1) * d + 1 - n)
        found += [total // 2, total - total // 2]
    return found[0], found[1], found[2], found[3]


def conv_padding(graph: Graph, op: Op) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) of a CONV_2D or DEPTHWISE_CONV_2D.

    A pass that folds a PAD into the operator leaves `explicit_padding` in its options.
    """
    explicit = op.options.get("explicit_padding")
    if explicit is not None:
        top, bottom, left, right = (int(n) for n in explicit)
        return top, bottom, left, right
    padding = str(op.options["padding"])
    if padding == "VALID":
        return 0, 0, 0, 0
    if padding != "SAME":
        raise refuse(graph, op, f"has the padding {padding}", "export it with SAME or VALID")
    x, w = (graph.tensors[i].shape for i in op.inputs[:2])
    options = op.options
    return window_padding(
        (x[1], x[2]),
        (w[1], w[2]),
        (int(options["stride_h"]), int(options["stride_w"])),
        (int(options["dilation_h_factor"]), int(options["dilation_w_factor"])),
    )
