"""The deployable directory: what is in it, and what its inputs and outputs are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Layout = Literal["as-is", "channels-last"]


@dataclass(frozen=True, kw_only=True)
class IoSpec:
    """One input or output of the deployed files.

    `layout` says how the file's array relates to the PyTorch model's: `channels-last` means that
    the model's (N, C, ...) is (N, ..., C) in the `.tflite`.
    """

    name: str
    shape: tuple[int, ...]  # in the .tflite, batch of 1 included
    dtype: str  # "int8", "float32", "int32" …
    scale: float | None = None  # None: not quantized
    zero_point: int | None = None
    layout: Layout = "as-is"

    def to_json(self) -> dict[str, Any]:
        """Return the specification as plain JSON values."""
        return vars(self) | {"shape": list(self.shape)}
