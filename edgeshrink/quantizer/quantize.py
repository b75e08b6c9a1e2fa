"""Post-training quantization: one graph, in the two forms that the lowerings take."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from edgeshrink.errors import ModelError
from edgeshrink.quantizer.adapt import adapt
from edgeshrink.quantizer.annotate import Int8Quantizer, refuse_unsupported
from edgeshrink.quantizer.batching import fix_batch
from edgeshrink.quantizer.canonical import add_biases, layer_of, operand, own_constants
from edgeshrink.quantizer.equalize import equalize_layers
from edgeshrink.quantizer.fake_quantize import bound_mean_scales, freeze, snap_constants
from edgeshrink.quantizer.precision import Chosen, Precision, choose
from edgeshrink.quantizer.widths import Wide, marked_int8, tell_apart, wide_quantizers
from edgeshrink.quiet import quiet


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """One quantization. Both graphs hold the same scales and zero points.

    - `unfolded`: weights are float with quantize/dequantize pairs (litert-torch wants them so);
    - `folded`: weights are int8 (ExecuTorch wants them so).
    - `reference`: what was quantized, in float; None: the model that the graph was traced from.
    - `chosen`: which ranges and widths were chosen, and why; None: nothing was to be chosen.
    - `wide`: which scales of `unfolded`, all int8, stand for values of 16 bits; None: none do.
    """

    quantizer: Int8Quantizer
    unfolded: fx.GraphModule
    folded: fx.GraphModule
    reference: nn.Module | None = None
    wide: Wide | None = None
    chosen: Chosen | None = None


def quantize(
    graph_module: fx.GraphModule,
    calibration: Iterable[tuple[Tensor, ...]],
    *,
    observer: str = "histogram",
    equalize: bool = False,
    correct_bias: bool = False,
    adaround: bool = False,
    precision: Precision | None = None,
    progress: Callable[[int], None] | None = None,
) -> Quantized:
    """Quantize a canonical graph to int8 with ranges observed on `calibration`.

    Args:
        graph_module: From `canonical_program`; it is consumed, the model it came from is not.
        calibration: Input tuples, batch of 1 each (or more, behind `free_batch`).
        observer: A word of `OBSERVERS`.
        equalize: Equalize weights across layers first.
        correct_bias: Shift biases by what quantization moved the means of channels.
        adaround: Choose for every weight which way it rounds.
        precision: Which activations are 16 bits wide; None: none.
        progress: Called with the number of samples done.

    Raises:
        ModelError: an operator has no int8 form, there is no calibration data, or an activation
            is not finite, or a layer that is to be int16 has no kernel for it.
        ConfigError: `precision` names a layer that is none.
    """
    samples = list(calibration) if adaround or correct_bias else calibration
    prepared, quantizer = prepare(
        graph_module, observer, equalize=equalize, with_biases=correct_bias
    )
    calibrate(prepared, samples, progress=progress)
    freeze(prepared)
    bound_mean_scales(prepared)
    chosen = None if precision is None else choose(prepared, precision)
    if adaround or correct_bias:
        assert isinstance(samples, list)
        adapt(prepared, samples, adaround=adaround, correct_bias=correct_bias)
    return replace(convert(prepared, quantizer), chosen=chosen)


def prepare(
    graph_module: fx.GraphModule,
    observer: str,
    *,
    equalize: bool = False,
    with_biases: bool = False,
) -> tuple[fx.GraphModule, Int8Quantizer]:
    """Put an observer on every value that becomes int8; constants become the graph's own.

    Args:
        graph_module: From `canonical_program`; it is consumed.
        observer: A word of `OBSERVERS`.
        equalize: Equalize weights across layers first.
        with_biases: Give layers that have none a bias of 0.
    """
    quantizer = Int8Quantizer(observer)
    refuse_unsupported(graph_module)
    own_constants(graph_module)
    if equalize:
        with torch.no_grad():
            equalize_layers(graph_module)
    if with_biases:
        add_biases(graph_module)
    with quiet():
        return prepare_pt2e(graph_module, quantizer), quantizer


def calibrate(
    prepared: fx.GraphModule,
    calibration: Iterable[tuple[Tensor, ...]],
    *,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Let the observers of a prepared graph see `calibration`, in place."""
    count = 0
    with torch.no_grad():
        for inputs in calibration:
            _Calibration(prepared, sample=count).run(*inputs)
            count += len(inputs[0]) if inputs[0].dim() else 1
            if progress is not None:
                progress(count)
    if not count:
        raise ModelError(
            "calibration data", "is empty", "give at least one sample (16 to 512 are usual)"
        )


def convert(frozen: fx.GraphModule, quantizer: Int8Quantizer) -> Quantized:
    """Return both forms of a frozen graph; it is consumed."""
    fix_batch(frozen)
    wide = None
    with torch.no_grad():
        if wide_quantizers(frozen):
            wide = tell_apart(frozen)
        snap_constants(frozen)
        marked = marked_int8(frozen)
    with quiet():
        unfolded = convert_pt2e(marked, fold_quantize=False)
        folded = convert_pt2e(frozen, fold_quantize=True)
    return Quantized(quantizer=quantizer, unfolded=unfolded, folded=folded, wide=wide)


def _first_bad_row(value: Tensor) -> int:
    return int(torch.nonzero(~torch.isfinite(value))[0, 0])


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
            if source.op == "get_attr" and self.sample:
                return value  # a constant, seen with the first sample
            if isinstance(value, Tensor) and not torch.isfinite(value).all():
                is_constant = source.op == "get_attr"
                maker = next(iter(node.users)) if is_constant else source
                row = 0 if is_constant or value.dim() == 0 else _first_bad_row(value)
                raise ModelError(
                    f"calibration sample {self.sample + row}, layer {layer_of(maker)!r}",
                    "holds NaN or infinity",
                    "check that sample and the weights",
                )
        return super().run_node(node)
