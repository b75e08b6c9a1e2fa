"""What a frozen graph computes when only some of it quantizes, and how far off that is."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from edgeshrink.quantizer.canonical import operand

Outputs = list[list[Tensor]]  # of every batch, every output


def partly_quantized(
    frozen: fx.GraphModule, quantizing: Collection[fx.Node], batches: Sequence[tuple[Tensor, ...]]
) -> Outputs:
    """Return the outputs of every batch when only the nodes `quantizing` quantize."""
    runner = _Partly(frozen, quantizing)
    with torch.no_grad():
        return [_leaves(runner.run(*inputs)) for inputs in batches]


class _Partly(fx.Interpreter):
    """Runs a frozen graph in which only some nodes quantize."""

    def __init__(self, frozen: fx.GraphModule, quantizing: Collection[fx.Node]) -> None:
        super().__init__(frozen)
        self.extra_traceback = False
        self.quantizing = quantizing

    def run_node(self, node: fx.Node) -> Any:
        """Run `node`, or pass on what it reads."""
        if node.op == "call_module" and node not in self.quantizing:
            return self.env[operand(node, 0)]
        return super().run_node(node)


def _leaves(outputs: Any) -> list[Tensor]:
    return [x.double() for x in torch.utils._pytree.tree_leaves(outputs)]


def output_noise(expected: Outputs, got: Outputs) -> float:
    """Return squared error over variance of `expected`, both summed over the outputs.

    What every sample has in common says nothing about it: the variance of an element is taken over
    the samples, where there are several.
    """
    error = spread = 0.0
    for wanted, found in zip(zip(*expected, strict=True), zip(*got, strict=True), strict=True):
        one, other = _joined(wanted), _joined(found)
        mean = one.mean(0) if len(one) > 1 else one.mean()
        error += float(((one - other) ** 2).sum())
        spread += float(((one - mean) ** 2).sum())
    return error / max(spread, 1e-30)


def _joined(batches: Sequence[Tensor]) -> Tensor:
    """Return (samples, ...) of an output of all batches."""
    return torch.cat([x if x.dim() else x.reshape(1) for x in batches])
