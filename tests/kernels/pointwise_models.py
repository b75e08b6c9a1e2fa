"""Model files of one operator, for the tests of its kernels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tests.tiny_models import TfliteBuilder


class Spec(NamedTuple):
    """One tensor of a model."""

    shape: tuple[int, ...]
    dtype: str = "INT8"
    scale: float | tuple[float, ...] | None = 0.05
    zero_point: int = 0
    data: np.ndarray | None = None


def one_op(
    kind: str, inputs: list[Spec], output: Spec, options: Any = None, version: int = 1
) -> bytes:
    """A model of one operator; inputs with data are constants."""
    build = TfliteBuilder()
    numbers = [_tensor(build, f"x{i}", spec) for i, spec in enumerate(inputs)]
    y = _tensor(build, "y", output)
    build.op(kind, numbers, [y], options, version)
    build.graph.inputs = [n for n, spec in zip(numbers, inputs, strict=True) if spec.data is None]
    build.graph.outputs = [y]
    return build.bytes()


def _tensor(build: TfliteBuilder, name: str, spec: Spec) -> int:
    zero = [spec.zero_point] * len(spec.scale) if isinstance(spec.scale, tuple) else spec.zero_point
    return build.tensor(
        name, spec.shape, spec.dtype, data=spec.data, scale=spec.scale, zero_point=zero
    )
