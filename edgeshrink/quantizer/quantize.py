"""Post-training quantization: one graph, in the two forms that the lowerings take."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, fx
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from edgeshrink.errors import ModelError
from edgeshrink.quantizer.annotate import Int8Quantizer
from edgeshrink.quantizer.canonical import constant_of, layer_of, operand, set_constant
from edgeshrink.quantizer.operators import RULES
from edgeshrink.quiet import quiet

MOST_QUOTIENT: Final = 256  # of the scales of a global mean's input and output


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """One quantization. Both graphs hold the same scales and zero points.

    - `unfolded`: weights are float with quantize/dequantize pairs (litert-torch wants them so);
    - `folded`: weights are int8 (ExecuTorch wants them so).
    """

    quantizer: Int8Quantizer
    unfolded: fx.GraphModule
    folded: fx.GraphModule


def quantize(
    graph_module: fx.GraphModule,
    calibration: Iterable[tuple[Tensor, ...]],
    *,
    observer: str = "histogram",
    progress: Callable[[int], None] | None = None,
) -> Quantized:
    """Quantize a canonical graph to int8 with ranges observed on `calibration`.

    Args:
        graph_module: From `canonical_program`; it is consumed.
        calibration: Input tuples, batch of 1 each.
        observer: `histogram` or `minmax`.
        progress: Called with the number of samples done.

    Raises:
        ModelError: an operator has no int8 form, there is no calibration data, or an activation
            is not finite.
    """
    quantizer = Int8Quantizer(observer)
    with quiet():
        prepared = prepare_pt2e(graph_module, quantizer)
    count = 0
    with torch.no_grad():
        for inputs in calibration:
            _Calibration(prepared, sample=count).run(*inputs)
            count += 1
            if progress is not None:
                progress(count)
    if not count:
        raise ModelError(
            "calibration data", "is empty", "give at least one sample (16 to 512 are usual)"
        )
    bound_mean_scales(prepared)
    with quiet():
        unfolded = convert_pt2e(copy.deepcopy(prepared), fold_quantize=False)
        folded = convert_pt2e(prepared, fold_quantize=True)
        for graph in (unfolded, folded):
            snap_constants(graph)
    return Quantized(quantizer=quantizer, unfolded=unfolded, folded=folded)


def bound_mean_scales(prepared: fx.GraphModule) -> None:
    """Keep the scale of a global mean at or above a 256th of its input's, in place.

    Engines multiply the sum of the stored values by the quotient of the two scales. XNNPACK's range
    for it ends at 256, and LiteRT's built-in kernels lose the last bits beyond (7 LSB at a quotient
    of 5,000). Neither is there anything to be seen below the scale over the number of positions:
    means of stored values are multiples of that.
    """
    for node in prepared.graph.nodes:
        if node.target != torch.ops.aten.adaptive_avg_pool2d.default:
            continue
        source = operand(node, 0)
        if source.op != "call_module":
            continue
        observer: Any = prepared.get_submodule(str(source.target))
        scale, _ = observer.calculate_qparams()
        count = math.prod(operand(source, 0).meta["val"].shape[2:])
        least = float(scale) / min(count, MOST_QUOTIENT)
        for user in node.users:
            if user.op == "call_module":
                observer = prepared.get_submodule(str(user.target))
                observer.eps.clamp_(min=least)  # the smallest scale that it gives


class _Calibration(fx.Interpreter):
    """Runs a prepared graph, and looks at every value before its observer does.

    A sigmoid or a clamp would hide an infinity from whoever looks at the outputs alone, and the
    observers either fail on one, ignore it, or make the scale infinite.
    """

    def __init__(self, prepared: fx.GraphModule, *, sample: int) -> None:
        super().__init__(prepared)
        self.extra_traceback = False
        self.sample = sample

    def run_node(self, node: fx.Node) -> Any:
        """Run `node`; ModelError if it observes NaN or infinity."""
        if node.op == "call_module":
            source = operand(node, 0)
            value = self.env[source]
            if isinstance(value, Tensor) and not torch.isfinite(value).all():
                maker = next(iter(node.users)) if source.op == "get_attr" else source
                raise ModelError(
                    f"calibration sample {self.sample}, layer {layer_of(maker)!r}",
                    "holds NaN or infinity",
                    "check that sample and the weights",
                )
        return super().run_node(node)


def snap_constants(graph_module: fx.GraphModule) -> None:
    """Put float weights and biases on the grid of their integers, in place.

    The two lowerings round constants each in its own arithmetic (multiplying by an inverse here,
    dividing there). A value on the grid rounds to the same integer in both; one near a tie might
    not, and then the two files differ in the last bit of a few outputs.
    """
    for node in graph_module.graph.nodes:
        rule = RULES.get(node.target)
        if rule is None or rule.kind != "weighted":
            continue
        source, weight = node.args[0], node.args[1]
        scales = constant_of(graph_module, weight.args[1])  # (output channels,)
        assert scales is not None
        stored = weight.args[0]
        if stored.op == "call_function":  # quantized on the fly from a float weight
            values = constant_of(graph_module, stored.args[0])
            assert values is not None
            shape = [-1 if axis == rule.weight_axis else 1 for axis in range(values.dim())]
            grid = scales.to(values.dtype).reshape(shape)
            codes = torch.clamp(torch.round(values / grid), -127, 127)
            set_constant(graph_module, stored.args[0], codes * grid)
        if len(node.args) > 2 and node.args[2] is not None:
            bias = constant_of(graph_module, node.args[2])
            assert bias is not None
            unit = scales.double() * float(source.args[1])
            if rule.weight_axis == 1 and unit.numel() != bias.numel():
                continue  # grouped transposed convolution: a channel's scale serves all groups
            set_constant(graph_module, node.args[2], (torch.round(bias / unit) * unit).float())
