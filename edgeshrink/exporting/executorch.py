"""Lower a quantized (or float) graph to ExecuTorch's `.pte` with the XNNPACK delegate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from edgeshrink.errors import ModelError, ToolchainError
from edgeshrink.quantizer.canonical import TORCH_ERRORS
from edgeshrink.quiet import quiet, reason

INSTALL = "python -m pip install 'edgeshrink[build]'"


def lower_to_pte(graph_module: fx.GraphModule, example_inputs: Sequence[Tensor]) -> bytes:
    """Return the bytes of a `.pte` for `graph_module`, with floats at both ends.

    Args:
        graph_module: The folded quantized graph, or a canonical float graph.
        example_inputs: Contiguous tensors, batch of 1, in the model's own layout.

    Raises:
        ToolchainError: executorch is not installed.
        ModelError: the lowering failed.
    """
    try:
        with quiet():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
                XnnpackPartitioner,
            )
            from executorch.exir import to_edge_transform_and_lower
            from executorch.exir.error import ExportError, InternalError
    except ImportError as err:
        raise ToolchainError("executorch", f"can't be imported ({err})", INSTALL) from err
    try:
        with quiet():
            exported = torch.export.export(graph_module, tuple(example_inputs))
            edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
            return bytes(edge.to_executorch().buffer)
    except (*TORCH_ERRORS, ExportError, InternalError) as err:
        raise ModelError(
            "lowering to .pte",
            f"executorch failed ({type(err).__name__}: {reason(err)})",
            "check that every operator is in the table of supported layers; "
            "--traceback shows the whole message",
        ) from err
