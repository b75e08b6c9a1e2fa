"""A clamp behind an operator becomes the operator's own activation."""

from __future__ import annotations

from typing import Final

import numpy as np

from edgeshrink.graph import Graph, Op, Tensor
from edgeshrink.passes.fixed_point import ACTIVATIONS, activation_range, has_same_quantization
from edgeshrink.passes.pointwise import (
    STORED,
    Table,
    apply_table,
    is_pointwise,
    pointwise_table,
    varying_input,
)
from edgeshrink.passes.rewrite import consumers, is_internal, rebuilt, renamed, with_options

FUSABLE: Final = (
    "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "SUB", "MUL", "AVERAGE_POOL_2D",
    "MAX_POOL_2D",
)  # fmt: skip


def fuse_activation(graph: Graph) -> Graph:
    """Return the graph with RELU and its like as the `activation` of what they follow.

    Done where one activation of TFLite leaves the same of every stored value as the two
    operators do, and scale and zero point are the same before and behind. It also finds clamps
    of another name, such as MAXIMUM with a constant.
    """
    readers = consumers(graph.ops)
    ops: list[Op] = []
    makers: dict[int, int] = {}  # tensor -> place in `ops` of the operator that computes it
    for op in graph.ops:
        fused = None
        if is_pointwise(graph, op):
            x = op.inputs[varying_input(graph, op)]
            y = graph.tensors[op.outputs[0]]
            if (
                x in makers
                and is_internal(graph, x)
                and len(readers[x]) == 1
                and graph.tensors[x].shape == y.shape
                and has_same_quantization(graph.tensors[x], y)
            ):
                fused = _fused(ops[makers[x]], pointwise_table(graph, op), y)
        if fused is not None:
            place = makers[x]
            ops[place] = renamed(fused, {x: op.outputs[0]})
        else:
            place = len(ops)
            ops.append(op)
        makers.update(dict.fromkeys(op.outputs, place))
    return graph if len(ops) == len(graph.ops) else rebuilt(graph, ops)


def _fused(op: Op, table: Table, y: Tensor) -> Op | None:
    """Return `op` with the activation that does what its own and `table` do; None if none does."""
    if op.is_custom or op.kind not in FUSABLE or y.dtype != "int8":
        return None
    own = activation_range(op.options.get("activation", "NONE"), y)
    if own is None:
        return None
    wanted = apply_table(table, np.clip(STORED, *own).astype(np.int8))
    for activation in ACTIVATIONS:
        limits = activation_range(activation, y)
        if limits is not None and np.array_equal(np.clip(STORED, *limits), wanted):
            return with_options(op, activation=activation)
    return None
