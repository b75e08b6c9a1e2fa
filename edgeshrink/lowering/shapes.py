"""Operators that move values or only rename shapes."""

from __future__ import annotations

from edgeshrink.graph import Graph, Op
from edgeshrink.lowering.calls import Variant


def view(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """RESHAPE, SQUEEZE, EXPAND_DIMS: the output is the input's memory."""
    return (Variant(name="view", calls=(), alias={op.outputs[0]: op.inputs[0]}),)
