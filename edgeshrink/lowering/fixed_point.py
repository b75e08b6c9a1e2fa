"""Scales as integers, exactly as TensorFlow Lite Micro derives them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgeshrink.errors import ModelError
from edgeshrink.graph import Graph, Op, Quantization, layer_name
from edgeshrink.passes.fixed_point import LIMITS as LIMITS
from edgeshrink.passes.fixed_point import activation_range as range_of
from edgeshrink.passes.fixed_point import quantize_multiplier as quantize_multiplier


def multipliers(
    scales: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int8]]:
    """Return `quantize_multiplier` of every element of (n,)."""
    pairs = [quantize_multiplier(float(scale)) for scale in scales]
    return (
        np.array([p[0] for p in pairs], np.int32),
        np.array([p[1] for p in pairs], np.int8),
    )


def place_of(graph: Graph, op: Op) -> str:
    """Return how errors name an operator: index, kind, version, and its layer."""
    names = [graph.tensors[i].name for i in op.outputs if graph.tensors[i].name]
    layer = f" ({layer_name(names[0])})" if names else ""
    return f"operator {op.index} {op.kind} v{op.version}{layer}"


def refuse(graph: Graph, op: Op, what: str, fix: str) -> ModelError:
    """Return the error for an operator that can't be compiled as it is."""
    return ModelError(place_of(graph, op), what, fix)


def quantization_of(graph: Graph, op: Op, tensor: int) -> Quantization:
    """Return a tensor's quantization; ModelError when it has none or a scale is not positive."""
    q = graph.tensors[tensor].quantization
    name = graph.tensors[tensor].name or f"tensor {tensor}"
    if q is None or not q.scales.size:
        raise refuse(graph, op, f"{name} has no scale", "quantize the model to int8 first")
    if not (np.isfinite(q.scales).all() and (q.scales > 0).all()):
        raise refuse(graph, op, f"{name} has a scale that is not positive", "export it again")
    return q


def scale_and_zero(graph: Graph, op: Op, tensor: int) -> tuple[float, int]:
    """Return the one scale (of float32, as a float) and zero point of an activation."""
    q = quantization_of(graph, op, tensor)
    if q.scales.size != 1:
        name = graph.tensors[tensor].name or f"tensor {tensor}"
        raise refuse(
            graph, op, f"{name} is quantized per channel", "activations need one scale for all"
        )
    return float(q.scales[0]), int(q.zero_points[0])


def symmetric_scale(graph: Graph, op: Op, tensor: int) -> float:
    """Return the one scale of a tensor whose zero point must be 0 (weights, int16)."""
    scale, zero = scale_and_zero(graph, op, tensor)
    if zero != 0:
        name = graph.tensors[tensor].name or f"tensor {tensor}"
        raise refuse(graph, op, f"{name} has the zero point {zero}", "must be 0: export it again")
    return scale


def check_int16_zero(graph: Graph, op: Op, *zeros: int) -> None:
    """Raise ModelError unless all zero points of an int16 operator are 0."""
    if any(zeros):
        raise refuse(graph, op, f"has the int16 zero points {zeros}", "quantize int16 around 0")


def wide_multiplier(graph: Graph, op: Op, real: float) -> tuple[int, int]:
    """Return `quantize_multiplier` for sums of 64 bits; ModelError where those can't hold it."""
    multiplier, shift = quantize_multiplier(real)
    if shift > 7:
        raise refuse(
            graph, op, f"multiplies its sums by {real:g}", "int16 allows less than 128: recalibrate"
        )
    return multiplier, shift


def wide_multipliers(
    graph: Graph, op: Op, scales: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int8]]:
    """Return `wide_multiplier` of every element of (n,)."""
    pairs = [wide_multiplier(graph, op, float(scale)) for scale in scales]
    return (
        np.array([p[0] for p in pairs], np.int32),
        np.array([p[1] for p in pairs], np.int8),
    )


def activation_range(graph: Graph, op: Op, tensor: int) -> tuple[int, int]:
    """Return the lowest and highest stored value that the op's fused activation lets through."""
    activation = str(op.options.get("activation", "NONE"))
    if activation != "NONE":
        scale_and_zero(graph, op, tensor)  # names what is missing
    found = range_of(activation, graph.tensors[tensor])
    if found is None:
        raise refuse(
            graph, op, f"has the fused activation {activation}", "make it an operator of its own"
        )
    return found


def constant(graph: Graph, op: Op, position: int) -> npt.NDArray[Any] | None:
    """Return the data of the op's input at `position`; None where it is absent or computed."""
    if position >= len(op.inputs) or op.inputs[position] < 0:
        return None
    return graph.tensors[op.inputs[position]].data
