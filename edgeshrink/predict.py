"""Feed a deployed file with what the PyTorch model takes, and give back what the model returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgeshrink.artifact import IoSpec, Structure
from edgeshrink.task import Predict

Array = npt.NDArray[Any]


class Runs(Protocol):
    """What is needed of a runner: arrays (n, ...) in, arrays (n, ...) out."""

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        """Return raw outputs (n, ...) for raw inputs (n, ...)."""
        ...


def quantize_array(values: Array, spec: IoSpec) -> Array:
    """Return `values` in the file's dtype; quantized ones rounded half to even and clamped."""
    if spec.scale is None or spec.zero_point is None:
        return values.astype(spec.dtype, copy=False)
    limits = np.iinfo(spec.dtype)
    stored = np.round(values / np.float32(spec.scale)) + spec.zero_point
    return np.clip(stored, limits.min, limits.max).astype(spec.dtype)


def dequantize_array(stored: Array, spec: IoSpec) -> Array:
    """Return the real values that `stored` stands for."""
    if spec.scale is None or spec.zero_point is None:
        return stored
    return (stored.astype(np.float32) - np.float32(spec.zero_point)) * np.float32(spec.scale)


def to_file_layout(values: Array, spec: IoSpec) -> Array:
    """Bring (n, C, ...) into the layout of the `.tflite`: (n, *spec.shape[1:])."""
    if spec.layout == "channels-last":
        values = np.moveaxis(values, 1, -1)
    return np.ascontiguousarray(values.reshape(len(values), *spec.shape[1:]))


def from_file_layout(values: Array, spec: IoSpec) -> Array:
    """Undo `to_file_layout`: return (n, *spec.model_shape[1:]) where the model's shape is known."""
    if spec.layout == "channels-last":
        values = np.moveaxis(values, -1, 1)  # (n, C, H, W), or (n, C, 1, L)
    return values.reshape(len(values), *spec.model_shape[1:]) if spec.model_shape else values


def restructure(leaves: Sequence[Array], outputs: Sequence[IoSpec], structure: Structure) -> Any:
    """Return the leaves as the model returns them."""
    if structure == "single":
        return leaves[0]
    if structure == "dict":
        return {spec.name: leaf for spec, leaf in zip(outputs, leaves, strict=True)}
    return tuple(leaves)


def tflite_predict(
    runner: Runs,
    inputs: Sequence[IoSpec],
    outputs: Sequence[IoSpec],
    structure: Structure,
) -> Predict:
    """Return `predict` over a `.tflite` runner: quantizes, transposes and back.

    Args:
        runner: An open `.tflite`.
        inputs, outputs: The artifact's specifications.
        structure: What the model returns.
    """

    def predict(*arrays: Array) -> Any:
        stored = [
            quantize_array(to_file_layout(np.asarray(a), spec), spec)
            for a, spec in zip(arrays, inputs, strict=True)
        ]
        leaves = [
            from_file_layout(dequantize_array(raw, spec), spec)
            for raw, spec in zip(runner.run(*stored), outputs, strict=True)
        ]
        return restructure(leaves, outputs, structure)

    return predict


def pte_predict(runner: Runs, outputs: Sequence[IoSpec], structure: Structure) -> Predict:
    """Return `predict` over a `.pte` runner, which takes and gives the model's own arrays."""

    def predict(*arrays: Array) -> Any:
        leaves = runner.run(*(np.ascontiguousarray(a) for a in arrays))
        return restructure(leaves, outputs, structure)

    return predict
