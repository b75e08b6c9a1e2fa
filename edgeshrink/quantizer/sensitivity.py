"""What each layer's quantization alone does to the outputs."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from edgeshrink.quantizer.canonical import layer_of, operand
from edgeshrink.quantizer.fake_quantize import bound_mean_scales, freeze
from edgeshrink.quantizer.partly import output_noise, partly_quantized
from edgeshrink.quantizer.quantize import calibrate, prepare
from edgeshrink.quiet import quiet


def layer_sensitivity(
    graph_module: fx.GraphModule,
    calibration: Sequence[tuple[Tensor, ...]],
    *,
    observer: str = "histogram",
) -> dict[str, float]:
    """Return the error of the outputs when one layer alone is quantized, for every layer.

    A layer's constants and what it writes are quantized; everything else is float. Layers are named
    by their path in the user's model, operators outside of any layer by the node's own name, the
    inputs of the model by their name.

    Args:
        graph_module: From `canonical_program`; it is left as it is.
        calibration: Input tuples, batch of 1 each (or more, behind `free_batch`).
        observer: A word of `OBSERVERS`.

    Returns:
        Mean squared error over the variance of the float outputs from sample to sample; in the
        order of the graph.
    """
    with quiet():
        own = copy.deepcopy(graph_module)
    frozen, _ = prepare(own, observer)
    calibrate(frozen, calibration)
    freeze(frozen)
    bound_mean_scales(frozen)
    layers: dict[str, set[fx.Node]] = {}
    for node in frozen.graph.nodes:
        if node.op == "call_module":
            layers.setdefault(_layer(node), set()).add(node)
    with torch.no_grad():
        expected = partly_quantized(frozen, set(), calibration)
        return {
            layer: output_noise(expected, partly_quantized(frozen, nodes, calibration))
            for layer, nodes in layers.items()
        }


def _layer(node: fx.Node) -> str:
    """Return the layer that a quantizing node belongs to."""
    source = operand(node, 0)
    return layer_of(next(iter(node.users)) if source.op == "get_attr" else source)
