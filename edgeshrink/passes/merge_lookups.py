"""Chains of operators that work value by value become one table."""

from __future__ import annotations

from dataclasses import replace

from edgeshrink.graph import Graph, Op
from edgeshrink.passes.pointwise import (
    Table,
    apply_table,
    float_detour_table,
    is_pointwise,
    pointwise_table,
    varying_input,
)
from edgeshrink.passes.rewrite import consumers, is_internal, rebuilt

LOOKUP = "LOOKUP"


def merge_lookups(graph: Graph) -> Graph:
    """Return the graph with chains of pointwise int8 operators merged into LOOKUP operators.

    A LOOKUP has one input and the option `table`: np.int8 (256), indexed by the stored byte as
    `pointwise_table` says. The pair DEQUANTIZE, QUANTIZE between int8 tensors is such a chain too.
    Values inside a chain must have no other reader. A single pointwise operator stays what it is.
    """
    readers = consumers(graph.ops)
    ops: list[Op | None] = []
    makers: dict[int, int] = {}  # tensor -> place in `ops` of the operator that computes it
    for op in graph.ops:
        place = _before(graph, op, makers, readers)
        first = ops[place] if place is not None else None
        merged = None if first is None else _merged(graph, first, op)
        if merged is not None and place is not None:
            ops[place] = None
        makers.update(dict.fromkeys(op.outputs, len(ops)))
        ops.append(merged or op)
    kept = [op for op in ops if op is not None]
    return graph if len(kept) == len(graph.ops) else rebuilt(graph, kept)


def _before(
    graph: Graph, op: Op, makers: dict[int, int], readers: dict[int, list[Op]]
) -> int | None:
    """Return the place of the operator whose only reader is `op`, if `op` ends a chain."""
    if op.is_custom or not op.inputs:
        return None
    if not is_pointwise(graph, op) and op.kind != "QUANTIZE":
        return None
    x = op.inputs[varying_input(graph, op)] if is_pointwise(graph, op) else op.inputs[0]
    if x not in makers or not is_internal(graph, x) or len(readers[x]) != 1:
        return None
    return makers[x]


def _merged(graph: Graph, first: Op, op: Op) -> Op | None:
    """Return two operators as one LOOKUP; None where they are no chain."""
    table: Table | None
    y = graph.tensors[op.outputs[0]]
    if first.kind == "DEQUANTIZE" and op.kind == "QUANTIZE" and not first.is_custom:
        source = first.inputs[0]
        table = float_detour_table(graph.tensors[source], y)
    elif is_pointwise(graph, first) and is_pointwise(graph, op):
        source = first.inputs[varying_input(graph, first)]
        table = apply_table(pointwise_table(graph, op), pointwise_table(graph, first))
    else:
        return None
    if table is None or graph.tensors[source].shape != y.shape:
        return None
    if graph.tensors[source].is_variable:
        return None
    return replace(op, kind=LOOKUP, version=1, inputs=(source,), options={"table": table})
