"""What an exported file must pass: allowed operators, and agreement of all engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
MOST_LSB: Final = 12.0  # allowed after any number of them, where quantization itself did less
WIDE_ROOT_LSB: Final = 128.0  # of int16, behind a reciprocal root: half a step of int8
RMS_SHARE: Final = 0.25  # of the largest difference allowed: the root of the mean squared one
ERROR_SHARE: Final = 1.0  # of quantization's largest error: the largest difference of engines
ERROR_RMS_SHARE: Final = 0.5  # of quantization's rms error: the rms difference of engines
GROSS: Final = 4.0  # times the limit: beyond it even an engine that the target does not run counts
MAX_RELATIVE: Final = 2e-3  # float models: largest difference over the largest output

CONVERTED: Final = ("torch", "executorch")  # not the `.tflite`: two conversions of one program

_FLOATS: Final = {"float16", "float32", "float64", "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far outputs lie apart, over all values of all outputs."""

    largest: float
    rms: float  # root of the mean square
    differing: float  # share of values, in [0, 1]
    n_values: int


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The largest and the rms difference allowed between quantized outputs, in LSB."""

    largest: float
    rms: float
    quantization: Difference | None = None  # what quantization did, where the limit depends on it


EQUAL: Final = Limit(largest=0.0, rms=0.0)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far an engine's outputs lie from those of the reference engine on the same inputs.

    In LSB of the quantized output; for float models in shares of the largest output.
    `quantization_…`: how far the quantized graph lies from the float model on these inputs.
    """

    engine: str
    reference: str
    unit: str  # "LSB" or "of the largest output"
    largest: float
    rms: float
    differing: float  # share of values, in [0, 1]
    n_values: int
    limit: float
    rms_limit: float
    within_limit: bool  # False of an engine that the target does not run, and of no other
    quantization_largest: float | None = None
    quantization_rms: float | None = None


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
    """Return the difference, in LSB, that roundings alone may make between two engines.

    Engines compute the same sums, and part at values near a tie: each operator that rounds may move
    a value by one step of its own output. Such steps are rare and independent, so they add up like
    a random walk: with the square root of the number of operators. A reciprocal root (of a norm)
    has a steep table, where a step of a small variance is several of the result; each of them is
    granted two more. LiteRT's table of 16 bits has 513 entries and lines between
    them: up to 73 of int16 were seen in norms of noise.

    This knows nothing of a layer's gain, by which one step of its input becomes many of its output;
    `engine_limit` does.
    """
    rounding = [op.kind for op in graph.ops if op.kind not in _MOVES]
    steps = LEAST_LSB + np.ceil(np.sqrt(len(rounding)) / 2) + 2 * rounding.count("RSQRT")
    coarse = WIDE_ROOT_LSB if "RSQRT" in rounding and not _rounds_int8(graph) else 0.0
    return float(min(MOST_LSB, steps) + coarse)


def engine_limit(graph: Graph, quantization: Difference | None = None) -> Limit:
    """Return what engines that need not be equal may differ by.

    A difference of engines is harmless when it is small against what quantization did to the model
    anyway: both come from roundings, and pass through the same layers with the same gain. So the
    limit is what roundings alone may do (`limit_lsb`), or the error of quantization where that is
    larger: its largest for the largest, half of its rms for the rms. Independent of it, a
    difference of that rms adds an eighth to the noise.

    A fault of the conversion is no rounding and stands out: a scale pushed through a pool (trap T3)
    moved outputs by 57 LSB on a net of two convolutions and by 30 on ResNet-8, whose quantization
    errors are 1 to 2; a constant read from the wrong place by 126 and 255. A fault that hides
    below this limit does less harm than quantization, which the score judges.

    Args:
        graph: The file that they run.
        quantization: How far the quantized graph lies from the float model on the same inputs.
    """
    steps = limit_lsb(graph)
    floor = max(1.0, RMS_SHARE * steps)
    if quantization is None:
        return Limit(largest=steps, rms=floor)
    return Limit(
        largest=max(steps, ERROR_SHARE * quantization.largest),
        rms=max(floor, ERROR_RMS_SHARE * quantization.rms),
        quantization=quantization,
    )


def _rounds_int8(graph: Graph) -> bool:
    return any(
        graph.tensors[op.outputs[0]].dtype == "int8"
        for op in graph.ops
        if op.kind not in (*_MOVES, "QUANTIZE")
    )


def output_steps(graph: Graph) -> tuple[float, ...]:
    """Return for every output how many of its codes a difference of 1 stands for.

    An output of int16 is counted in steps of int8, 256 codes each, where values before it are int8:
    one of them a step apart moves the output by about as much. Where all is int16, codes count.
    """
    rounds_int8 = _rounds_int8(graph)
    return tuple(
        256.0 if rounds_int8 and graph.tensors[i].dtype == "int16" else 1.0 for i in graph.outputs
    )


def difference(
    got: Sequence[npt.NDArray[Any]],
    expected: Sequence[npt.NDArray[Any]],
    steps: Sequence[float] = (),
) -> Difference:
    """Compare two lists of outputs (n, ...), value by value; `steps` as `output_steps` has them."""
    apart = np.concatenate(
        [
            (g.astype(np.float64) - e.astype(np.float64)).ravel() / step
            for g, e, step in zip(got, expected, steps or [1.0] * len(got), strict=True)
        ]
    )
    return Difference(
        largest=float(np.abs(apart).max(initial=0)),
        rms=float(np.sqrt(np.mean(apart**2))) if apart.size else 0.0,
        differing=float(np.mean(apart != 0)) if apart.size else 0.0,
        n_values=int(apart.size),
    )


def compare(
    engine: str,
    reference: str,
    got: Sequence[npt.NDArray[Any]],
    expected: Sequence[npt.NDArray[Any]],
    *,
    limit: Limit,
    is_run: bool = True,
    steps: Sequence[float] = (),
) -> Agreement:
    """Compare raw outputs (n, ...) of two engines; ModelError when they are too far apart.

    Args:
        engine, reference: What gave `got` and `expected`.
        got, expected: One array per output.
        limit: What quantized outputs may differ by (`EQUAL` where they may not); for a float model
            `MAX_RELATIVE` counts instead, of the largest output.
        is_run: Whether the target runs `engine`. Of one that it does not run, a difference beyond
            the limit is reported in the agreement, and is no error up to `GROSS` times the limit:
            then the engine computes something else, or misreads the file.
        steps: Of every output, as `output_steps` has them; left out, codes count.

    Raises:
        ModelError: the largest difference is beyond the limit, or the rms is (what moves every
            value a little is no rounding), or a float output is not finite.
    """
    quantized = all(np.issubdtype(e.dtype, np.integer) for e in expected)
    found = difference(got, expected, steps)
    unit = "LSB of int8" if any(step != 1 for step in steps) else "LSB"
    if not quantized:
        whole = max(float(np.abs(e).max(initial=0)) for e in expected) or 1.0
        found = replace(found, largest=found.largest / whole, rms=found.rms / whole)
        unit, limit = "of the largest output", Limit(largest=MAX_RELATIVE, rms=MAX_RELATIVE)

    def is_within(times: float) -> bool:
        return found.largest <= times * limit.largest and found.rms <= times * limit.rms

    error = limit.quantization
    if not np.isfinite(found.largest) or not is_within(1.0 if is_run else GROSS):
        cause = "the conversion changed the model"
        if engine not in CONVERTED:
            cause = f"{engine} computes the file otherwise than {reference}"
        moved = "" if error is None else (
            f"; quantization moves them by up to {error.largest:.3g} (rms {error.rms:.3g})"
        )  # fmt: skip
        raise ModelError(
            f"outputs of {engine} and {reference}",
            f"differ by up to {found.largest:.3g} {unit} (rms {found.rms:.3g}), "
            f"at most {limit.largest:.3g} (rms {limit.rms:.3g}) are allowed{moved}",
            f"{cause}; report it with the model, or build with a recipe of dtype float32",
        )
    return Agreement(
        engine=engine,
        reference=reference,
        unit=unit,
        largest=found.largest,
        rms=found.rms,
        differing=found.differing,
        n_values=found.n_values,
        limit=limit.largest,
        rms_limit=limit.rms,
        within_limit=is_within(1.0),
        quantization_largest=None if error is None else error.largest,
        quantization_rms=None if error is None else error.rms,
    )
