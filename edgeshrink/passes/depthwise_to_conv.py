"""A DEPTHWISE_CONV_2D over a single input channel is a CONV_2D, whose kernels are faster."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np

from edgeshrink.graph import Graph, Op, Tensor
from edgeshrink.passes.fixed_point import constant_of
from edgeshrink.passes.rewrite import is_unchanged, new_tensor, rebuilt


def depthwise_to_conv(graph: Graph) -> Graph:
    """Return the graph with depthwise convolutions of one channel as ordinary ones.

    Each output channel is the same sum of the same products, rounded by the same multiplier; only
    the weights' axes are called otherwise: (1, h, w, outputs) becomes (outputs, h, w, 1).
    Converters write the first layer of a network on grey images or spectra this way.
    """
    tensors: list[Tensor] = list(graph.tensors)
    ops = [_as_conv(graph, op, tensors) for op in graph.ops]
    return graph if is_unchanged(graph, ops) else rebuilt(graph, ops, tensors)


def _as_conv(graph: Graph, op: Op, tensors: list[Tensor]) -> Op:
    if op.is_custom or op.kind != "DEPTHWISE_CONV_2D":
        return op
    x, w = graph.tensors[op.inputs[0]], graph.tensors[op.inputs[1]]
    values = constant_of(w)
    if values is None or w.quantization is None or x.shape[3] != 1 or w.shape[3] == 1:
        return op
    turned = np.ascontiguousarray(values.transpose(3, 1, 2, 0))  # (outputs, h, w, 1)
    weights = new_tensor(
        tensors,
        w,
        shape=turned.shape,
        data=turned,
        quantization=replace(w.quantization, axis=0),
    )
    options = copy.copy(op.options) if isinstance(op.options, dict) else dict(op.options)
    options.pop("depth_multiplier", None)
    inputs = (op.inputs[0], weights, *op.inputs[2:])
    return replace(op, kind="CONV_2D", inputs=inputs, options=options)
