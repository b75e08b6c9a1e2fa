"""What an exported file must pass: allowed operators, and agreement of all engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeshrink.errors import ModelError
from edgeshrink.graph import Graph
from edgeshrink.target import Target

# Computed by XNNPACK in the same integer arithmetic from both files. Everything else is a float
# kernel between quantize and dequantize in the .pte, or a table in the .tflite.
EXACT: Final = frozenset({
    "ADD", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "MAXIMUM",
    "MAX_POOL_2D", "MEAN", "MINIMUM", "MUL", "PAD", "PADV2", "RELU", "RELU6", "RESHAPE",
    "RESIZE_NEAREST_NEIGHBOR", "SLICE", "STRIDED_SLICE", "SUB", "TRANSPOSE",
})  # fmt: skip

MAX_LSB: Final = 24  # largest difference allowed between engines that need not be equal
RMS_LSB: Final = 4.0  # root of the mean squared difference allowed
MAX_RELATIVE: Final = 2e-3  # float models: largest difference over the largest output

_FLOATS: Final = {"float16", "float32", "float64", "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far an engine's outputs lie from those of the reference engine on the same inputs.

    In LSB of the quantized output; for float models in shares of the largest output.
    """

    engine: str
    reference: str
    unit: str  # "LSB" or "of the largest output"
    largest: float
    rms: float
    differing: float  # share of values, in [0, 1]
    limit: float
    n_values: int


def check_operators(graph: Graph, target: Target) -> None:
    """Raise ModelError for an operator or type that `target` does not allow."""
    for op in graph.ops:
        layer = _layer(graph, op.outputs)
        if op.kind in target.ops.deny or op.is_custom:
            raise ModelError(
                f"operator {op.index} {op.kind}{layer}",
                f"is not allowed on {target.name}",
                "replace that layer, or choose another target",
            )
        for index in (*op.inputs, *op.outputs):
            if index < 0:
                continue
            dtype = graph.tensors[index].dtype
            if dtype in _FLOATS and dtype not in target.ops.dtypes:
                raise ModelError(
                    f"operator {op.index} {op.kind}{layer}",
                    f"computes in {dtype}, {target.name} allows {', '.join(target.ops.dtypes)}",
                    "quantize the model, or replace that layer (see the table in the README)",
                )


def check_int8(graph: Graph) -> None:
    """Raise ModelError when floating point is left inside a graph that was quantized."""
    for op in graph.ops:
        types = {graph.tensors[i].dtype for i in (*op.inputs, *op.outputs) if i >= 0}
        if types & _FLOATS:
            raise ModelError(
                f"operator {op.index} {op.kind}{_layer(graph, op.outputs)}",
                "stayed in floating point although the model was quantized",
                "replace that layer (see the table in the README)",
            )


def _layer(graph: Graph, outputs: Sequence[int]) -> str:
    names = [graph.tensors[i].name for i in outputs if graph.tensors[i].name]
    return f" (layer {names[0]!r})" if names else ""


def is_exact(graph: Graph) -> bool:
    """Say whether both files must give equal outputs on XNNPACK."""
    return all(op.kind in EXACT for op in graph.ops)


def compare(
    engine: str,
    reference: str,
    got: Sequence[npt.NDArray[Any]],
    expected: Sequence[npt.NDArray[Any]],
    *,
    exact: bool,
) -> Agreement:
    """Compare raw outputs (n, ...) of two engines; ModelError when they are too far apart.

    Raises:
        ModelError: beyond `MAX_LSB` or `RMS_LSB` (any difference where `exact`), or `MAX_RELATIVE`.
    """
    quantized = all(np.issubdtype(e.dtype, np.integer) for e in expected)
    difference = np.concatenate(
        [
            (g.astype(np.float64) - e.astype(np.float64)).ravel()
            for g, e in zip(got, expected, strict=True)
        ]
    )
    unit, limit, rms_limit = "LSB", 0.0 if exact else float(MAX_LSB), RMS_LSB
    if not quantized:
        largest_output = max(float(np.abs(e).max(initial=0)) for e in expected) or 1.0
        difference = difference / largest_output
        unit, limit, rms_limit = "of the largest output", MAX_RELATIVE, MAX_RELATIVE
    largest = float(np.abs(difference).max(initial=0))
    rms = float(np.sqrt(np.mean(difference**2))) if difference.size else 0.0
    if not np.isfinite(largest) or largest > limit or rms > rms_limit:
        raise ModelError(
            f"outputs of {engine} and {reference}",
            f"differ by up to {largest:.3g} {unit} (rms {rms:.3g}), at most {limit:g} are allowed",
            "the conversion changed the model; report it with the model, or build with "
            "a recipe of dtype float32",
        )
    return Agreement(
        engine=engine,
        reference=reference,
        unit=unit,
        largest=largest,
        rms=rms,
        differing=float(np.mean(difference != 0)) if difference.size else 0.0,
        limit=limit,
        n_values=int(difference.size),
    )
