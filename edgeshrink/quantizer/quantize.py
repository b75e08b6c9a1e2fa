"""Post-training quantization: one graph, in the two forms that the lowerings take."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from edgeshrink.errors import ModelError
from edgeshrink.quantizer.annotate import Int8Quantizer


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
    prepared = prepare_pt2e(graph_module, quantizer)
    count = 0
    with torch.no_grad():
        for inputs in calibration:
            outputs = prepared(*inputs)
            for value in torch.utils._pytree.tree_leaves(outputs):
                if isinstance(value, Tensor) and not torch.isfinite(value).all():
                    raise ModelError(
                        f"calibration sample {count}",
                        "the model's output holds NaN or infinity",
                        "check that sample and the weights",
                    )
            count += 1
            if progress is not None:
                progress(count)
    if not count:
        raise ModelError(
            "calibration data", "is empty", "give at least one sample (16 to 512 are usual)"
        )
    unfolded = convert_pt2e(copy.deepcopy(prepared), fold_quantize=False)
    folded = convert_pt2e(prepared, fold_quantize=True)
    return Quantized(quantizer=quantizer, unfolded=unfolded, folded=folded)
