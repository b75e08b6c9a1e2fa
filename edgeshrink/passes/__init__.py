"""Exact passes: a graph in, a smaller graph with the same outputs out, bit for bit.

Passes may leave what no file holds: the padding "EXPLICIT" with the option `explicit_padding`
(`conv_padding` reads all three kinds), the activation RELU_0_TO_1, and the operator LOOKUP with
the option `table`.
"""

from edgeshrink.passes.padding import conv_padding
from edgeshrink.passes.pointwise import apply_table, is_pointwise, pointwise_table
from edgeshrink.passes.run import PASSES, PassReport, constant_bytes, run_passes

__all__ = [
    "PASSES",
    "PassReport",
    "apply_table",
    "constant_bytes",
    "conv_padding",
    "is_pointwise",
    "pointwise_table",
    "run_passes",
]
