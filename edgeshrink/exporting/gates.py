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

# Move values, or choose among them, and round none.
_MOVES: Final = frozenset({
    "BROADCAST_TO", "CONCATENATION", "DEPTH_TO_SPACE", "EXPAND_DIMS", "GATHER", "MAXIMUM",
    "MAX_POOL_2D", "MINIMUM", "PACK", "PAD", "PADV2", "REDUCE_MAX", "RELU", "RELU6", "RESHAPE",
    "RESIZE_NEAREST_NEIGHBOR", "REVERSE_V2", "SLICE", "SPACE_TO_DEPTH", "SPLIT", "SPLIT_V",
    "SQUEEZE", "STRIDED_SLICE", "TILE", "TRANSPOSE", "UNPACK",
})  # fmt: skip
LEAST_LSB: Final = 2.0  # allowed after one operator that rounds, when engines need not be equal
MOST_LSB: Final = 12.0  # allowed after any number of them
RMS_SHARE: Final = 0.25  # of the largest difference allowed: the root of the mean squared one
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


def limit_lsb(graph: Graph) -> float:
    """Return the largest difference allowed between engines that need not be equal, in LSB.

    Engines compute the same sums, and part at values near a tie: each operator that rounds may move
    a value by one step of its own output. Such steps are rare and independent, so they add up like
    a random walk: with the square root of the number of operators. A reciprocal root (of a norm)
    has a steep table, where a step of a small variance is several of the result; each of them is
    granted two more. Five networks of 11 to 65 operators need 2 LSB at most (benchmarks/
    engine_agreement.md) and are granted 4 to 7; single layers need up to 3, those with a norm 4.

    The faults that this is to catch do more: a scale pushed through a pool (trap T3) moved outputs
    by 30 to 57 LSB, a constant read from the wrong place by over 100.
    """
    rounding = [op.kind for op in graph.ops if op.kind not in _MOVES]
    steps = LEAST_LSB + np.ceil(np.sqrt(len(rounding)) / 2) + 2 * rounding.count("RSQRT")
    return float(min(MOST_LSB, steps))


def compare(
    engine: str,
    reference: str,
    got: Sequence[npt.NDArray[Any]],
    expected: Sequence[npt.NDArray[Any]],
    *,
    limit: float,
) -> Agreement:
    """Compare raw outputs (n, ...) of two engines; ModelError when they are too far apart.

    Args:
        engine, reference: What gave `got` and `expected`.
        got, expected: One array per output.
        limit: The largest difference allowed, in LSB (0 where they must be equal); for a float
            model `MAX_RELATIVE` counts instead.

    Raises:
        ModelError: beyond `limit`, or the root mean square beyond `RMS_SHARE` of it (what moves
            every value a little is no rounding), or a float output is not finite.
    """
    quantized = all(np.issubdtype(e.dtype, np.integer) for e in expected)
    difference = np.concatenate(
        [
            (g.astype(np.float64) - e.astype(np.float64)).ravel()
            for g, e in zip(got, expected, strict=True)
        ]
    )
    unit, rms_limit = "LSB", max(1.0, RMS_SHARE * limit)
    if not quantized:
        largest_output = max(float(np.abs(e).max(initial=0)) for e in expected) or 1.0
        difference = difference / largest_output
        unit, limit, rms_limit = "of the largest output", MAX_RELATIVE, MAX_RELATIVE
    largest = float(np.abs(difference).max(initial=0))
    rms = float(np.sqrt(np.mean(difference**2))) if difference.size else 0.0
    if not np.isfinite(largest) or largest > limit or rms > rms_limit:
        raise ModelError(
            f"outputs of {engine} and {reference}",
            f"differ by up to {largest:.3g} {unit} (rms {rms:.3g}), "
            f"at most {limit:g} (rms {rms_limit:g}) are allowed",
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
