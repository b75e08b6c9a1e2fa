"""A static dataflow graph: tensors, operators in execution order; read from `.tflite`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Affine quantization: real = scale * (stored - zero_point); per channel along `axis`."""

    scales: npt.NDArray[np.float32]  # (1,) or (channels,)
    zero_points: npt.NDArray[np.int64]  # same shape
    axis: int = 0


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One value of the graph. `data` holds a constant, None otherwise."""

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: (
        str  # numpy's name ("int8", "float32", "int64", "bool"), or "int4", "string", "resource"…
    )
    quantization: Quantization | None = None
    data: npt.NDArray[Any] | None = field(default=None, repr=False)
    is_variable: bool = False

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor's values; 0 for handles of variables and other non-numbers."""
        if self.dtype in ("resource", "variant", "string"):
            return 0
        count = int(np.prod(self.shape, dtype=np.int64))
        if self.dtype == "int4":
            return (count + 1) // 2
        return count * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operator. `inputs` holds -1 for an optional input that is absent."""

    index: int
    kind: str  # TFLite's name, "CONV_2D"; for custom operators their own name
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Any]  # snake_case keys: stride_w, padding ("SAME"/"VALID"), activation…
    is_custom: bool = False


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A whole model. `tensors[i].index == i`; `ops` are in execution order."""

    name: str
    tensors: tuple[Tensor, ...]
    ops: tuple[Op, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    input_names: tuple[str, ...] = ()  # of the signature where there is one, else the tensors'
    output_names: tuple[str, ...] = ()
    subgraphs: tuple[Graph, ...] = ()  # those after the first (control flow, CALL_ONCE)


def layer_name(name: str) -> str:
    """Return a tensor's name for people: of a fused layer, whose name lists all, the first part."""
    return name.split(";")[0]
