"""Padding of convolutions and pools, by TFLite's rules; all that ask share this module."""

from __future__ import annotations

from edgeshrink.errors import ModelError
from edgeshrink.graph import Graph, Op

EXPLICIT = "EXPLICIT"  # the padding option of an operator that took over a PAD


def conv_padding(graph: Graph, op: Op) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) of a convolution or pool, in rows and columns.

    SAME puts the odd row or column at the bottom or right. What is padded counts as the zero
    point in a convolution and does not exist for a pool.

    Raises:
        ModelError: The operator has another padding.
    """
    padding = op.options["padding"]
    if padding == "VALID":
        return 0, 0, 0, 0
    if padding == EXPLICIT:
        top, bottom, left, right = op.options["explicit_padding"]
        return top, bottom, left, right
    if padding != "SAME":
        where = f"operator {op.index} {op.kind}"
        raise ModelError(where, f"has the padding {padding!r}", "use SAME or VALID")
    height, width = graph.tensors[op.inputs[0]].shape[1:3]
    window = window_of(graph, op)
    options = op.options
    top, bottom = _same(height, window[0], options["stride_h"], options.get("dilation_h_factor", 1))
    left, right = _same(width, window[1], options["stride_w"], options.get("dilation_w_factor", 1))
    return top, bottom, left, right


def window_of(graph: Graph, op: Op) -> tuple[int, int]:
    """Return (rows, columns) of the kernel of a convolution, or of the window of a pool."""
    if op.kind in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
        return op.options["filter_height"], op.options["filter_width"]
    height, width = graph.tensors[op.inputs[1]].shape[1:3]
    return height, width


def _same(size: int, window: int, stride: int, dilation: int) -> tuple[int, int]:
    n_out = -(-size // stride)
    total = max(0, (n_out - 1) * stride + (window - 1) * dilation + 1 - size)
    return total // 2, total - total // 2
