"""Lower a quantized (or float) graph to `.tflite`: channels-last, int8 at both ends, named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgeshrink.artifact import Layout
from edgeshrink.errors import ModelError, ToolchainError
from edgeshrink.exporting.tflite_passes import finish
from edgeshrink.exporting.widen_file import widen_file
from edgeshrink.quantizer.annotate import Int8Quantizer
from edgeshrink.quantizer.canonical import TORCH_ERRORS, operand, propagate_shapes
from edgeshrink.quantizer.widths import Wide
from edgeshrink.quiet import quiet, reason

aten = torch.ops.aten
INSTALL = "python -m pip install 'edgeshrink[build]'"


@dataclass(frozen=True, kw_only=True)
class Names:
    """What inputs, outputs and layers are called in the file."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: Mapping[tuple[float, int], str]  # (scale, zero point) of a layer's output -> its path


class _ChannelsLast(nn.Module):
    """The graph behind channels-last inputs and outputs; the permutations vanish in conversion."""

    def __init__(
        self, graph_module: fx.GraphModule, inputs: Sequence[Layout], outputs: Sequence[Layout]
    ) -> None:
        super().__init__()
        self.graph_module, self.inputs, self.outputs = graph_module, inputs, outputs
        self.training = False

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        arguments = [
            value.permute(0, 3, 1, 2) if layout == "channels-last" else value
            for value, layout in zip(values, self.inputs, strict=True)
        ]
        results = torch.utils._pytree.tree_leaves(self.graph_module(*arguments))
        return tuple(
            result.permute(0, 2, 3, 1) if layout == "channels-last" else result
            for result, layout in zip(results, self.outputs, strict=True)
        )


def lower_to_tflite(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Tensor],
    names: Names,
    quantizer: Int8Quantizer | None,
    wide: Wide | None = None,
) -> tuple[bytes, tuple[Layout, ...], tuple[Layout, ...]]:
    """Return the bytes of a `.tflite`, and the layout of its inputs and outputs.

    4-D inputs and outputs (N, C, H, W) become (N, H, W, C); (N, C, L) of 1-D convolutions become
    (N, 1, L, C).

    Args:
        graph_module: The unfolded quantized graph, or a canonical float graph; it is consumed.
        example_inputs: Contiguous tensors, batch of 1, in the model's own layout.
        names: Names for inputs, outputs and layers.
        quantizer: The quantizer that annotated the graph; None for a float model.
        wide: What is to be 16 bits wide; None: nothing.

    Raises:
        ToolchainError: litert-torch is not installed.
        ModelError: the conversion failed.
    """
    try:
        with quiet():
            import litert_torch
            from litert_torch import progress
            from litert_torch.quantize.quant_config import QuantConfig
    except ImportError as err:
        raise ToolchainError("litert-torch", f"can't be imported ({err})", INSTALL) from err
    examples = list(example_inputs)
    propagate_shapes(graph_module, tuple(examples))
    input_layouts = _lift_inputs(graph_module, examples)
    output_layouts = _lift_outputs(graph_module)
    shown = [
        x.permute(0, 2, 3, 1).contiguous() if layout == "channels-last" else x
        for x, layout in zip(examples, input_layouts, strict=True)
    ]
    config = None if quantizer is None else QuantConfig(pt2e_quantizer=quantizer)
    wrapped = _ChannelsLast(graph_module, input_layouts, output_layouts)
    try:
        with quiet():
            progress.log = lambda message: None
            edge = litert_torch.convert(wrapped, tuple(shown), quant_config=config)
            data = bytes(edge.model_content())
    except TORCH_ERRORS as err:
        raise ModelError(
            "lowering to .tflite",
            f"litert-torch failed ({type(err).__name__}: {reason(err)})",
            "check that every operator is in the table of supported layers; "
            "--traceback shows the whole message",
        ) from err
    finished = finish(
        data,
        input_names=names.inputs,
        output_names=names.outputs,
        layers=names.layers,
        quantized=quantizer is not None,
        widen=None if wide is None else partial(widen_file, wide=wide),
    )
    return finished, input_layouts, output_layouts


def _is_chain(node: fx.Node) -> bool:
    """Say whether `node` is one of the quantize/dequantize operators."""
    return node.op == "call_function" and "quantize" in str(node.target)


def _lift_inputs(graph_module: fx.GraphModule, examples: list[Tensor]) -> tuple[Layout, ...]:
    """Return the layout of every input; give 1-D maps (N, C, L) their height of 1 at the door."""
    layouts: list[Layout] = []
    placeholders = [n for n in graph_module.graph.nodes if n.op == "placeholder"]
    for position, (node, example) in enumerate(zip(placeholders, examples, strict=True)):
        if example.dim() == 4 and example.is_floating_point():
            layouts.append("channels-last")
            continue
        reshapes = _reshapes_behind(node) if example.dim() == 3 else []
        with_height = [*example.shape[:2], 1, *example.shape[2:]]
        if not reshapes or any(list(r.meta["val"].shape) != with_height for r in reshapes):
            layouts.append("as-is")
            continue
        for reshape in reshapes:
            reshape.replace_all_uses_with(operand(reshape, 0))
            graph_module.graph.erase_node(reshape)
        examples[position] = example.unsqueeze(2)
        layouts.append("channels-last")
    graph_module.recompile()
    return tuple(layouts)


def _reshapes_behind(node: fx.Node) -> list[fx.Node]:
    """Return the reshapes that are the only readers of `node`, through quantize/dequantize."""
    found: list[fx.Node] = []
    for user in node.users:
        if user.target == aten.reshape.default:
            found.append(user)
        elif _is_chain(user):
            behind = _reshapes_behind(user)
            if not behind:
                return []
            found += behind
        else:
            return []
    return found


def _lift_outputs(graph_module: fx.GraphModule) -> tuple[Layout, ...]:
    """Return the layout of every output; leave 1-D maps their height of 1."""
    layouts: list[Layout] = []
    output = next(n for n in graph_module.graph.nodes if n.op == "output")
    leaves: list[Any] = torch.utils._pytree.tree_leaves(output.args[0])
    for leaf in leaves:
        value = leaf.meta["val"]
        if value.dim() == 4:
            layouts.append("channels-last")
            continue
        reshape = leaf
        while _is_chain(reshape) and len(reshape.users) == 1:
            reshape = reshape.args[0]
        is_map = value.dim() == 3 and reshape.target == aten.reshape.default
        with_height = [value.shape[0], value.shape[1], 1, value.shape[2]] if is_map else []
        source = reshape.args[0] if is_map else None
        if source is None or list(source.meta["val"].shape) != with_height:
            layouts.append("as-is")
            continue
        reshape.replace_all_uses_with(source)
        graph_module.graph.erase_node(reshape)
        layouts.append("channels-last")
    graph_module.recompile()
    return tuple(layouts)
