"""Which function lowers which operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from edgeshrink.graph import Graph, Op
from edgeshrink.lowering import (
    convolutions,
    dense,
    elementwise,
    lookups,
    matmul,
    normalizations,
    rearrange,
    recurrent,
    reductions,
    shapes,
    transpose_conv,
)
from edgeshrink.lowering.calls import Variant

# (graph, operator, folders of kernels that the core can run, best first) -> variants
Lowering = Callable[[Graph, Op, tuple[str, ...]], tuple[Variant, ...]]

LOWERINGS: Final[dict[str, Lowering]] = {
    "CONV_2D": convolutions.conv_2d,
    "DEPTHWISE_CONV_2D": convolutions.depthwise_conv_2d,
    "FULLY_CONNECTED": dense.fully_connected,
    "BATCH_MATMUL": matmul.batch_matmul,
    "SVDF": recurrent.svdf,
    "TRANSPOSE_CONV": transpose_conv.transpose_conv,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": recurrent.lstm,
    **elementwise.TABLE,
    **lookups.TABLE,
    **normalizations.TABLE,
    **rearrange.TABLE,
    **reductions.TABLE,
    **shapes.TABLE,
}
