"""A convolution as its kernels want it, and how far a kernel may run over its input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Conv:
    """A convolution as its kernels want it. Weights are (y_c, k_h, k_w, k_c) in every case."""

    x: int  # tensors
    w: int
    y: int
    depthwise: bool
    shape: dict[str, int]  # the fields of es_conv_shape
    weights: npt.NDArray[np.int8]
    bias: npt.NDArray[np.int32]
    multiplier: npt.NDArray[np.int32]
    shift: npt.NDArray[np.int8]

    @property
    def groups(self) -> int:
        """Stretches of input channels that share no filter."""
        return self.shape["x_c"] // self.shape["k_c"]

    @property
    def macs(self) -> int:
        """Multiplications of one inference."""
        s = self.shape
        return s["batches"] * s["y_h"] * s["y_w"] * self.weights.size


def pixel_distance(conv: Conv, firsts: npt.NDArray[np.int64]) -> int:
    """Return how far below its input the output of a kernel must lie that works pixel by pixel.

    Args:
        conv: The layer.
        firsts: For every step of one image, the first output pixel that it computes. A step reads
            all that it needs before it writes.
    """
    s = conv.shape
    y, x = np.divmod(np.arange(s["y_h"] * s["y_w"]), s["y_w"])
    row = _lowest(y, s["stride_h"], s["pad_top"], s["dilation_h"], s["k_h"], s["x_h"])
    column = _lowest(x, s["stride_w"], s["pad_left"], s["dilation_w"], s["k_w"], s["x_w"])
    lowest = np.where((row < 0) | (column < 0), _NEVER, (row * s["x_w"] + column) * s["x_c"])
    lasts = np.append(firsts[1:], lowest.size)
    return _distance(conv, lasts * s["y_c"], np.minimum.reduceat(lowest, firsts))


def row_distance(conv: Conv, at_once: int = 1) -> int:
    """Return the same for a kernel that copies rows of its input, each once.

    Before it writes output rows, `at_once` of them, it has copied all rows up to the last that
    these need.
    """
    s = conv.shape
    written = np.minimum(np.arange(0, s["y_h"], at_once) + at_once, s["y_h"])
    reach = (s["k_h"] - 1) * s["dilation_h"] + 1
    copied = (written - 1) * s["stride_h"] - s["pad_top"] + reach
    return _copied_distance(conv, written, copied)


def pair_distance(conv: Conv) -> int:
    """Return the same for a kernel that copies pairs of rows, and one pair ahead.

    Before it writes two output rows (stride 1) or one (stride 2), it has copied the pair with the
    first row that these need, and the pair after it.
    """
    s = conv.shape
    steps = np.arange(-(-s["y_h"] // (3 - s["stride_h"])))
    written = np.minimum((steps + 1) * (3 - s["stride_h"]), s["y_h"])
    return _copied_distance(conv, written, 2 * steps + 4 - s["pad_top"])


def _copied_distance(
    conv: Conv, written: npt.NDArray[np.int64], copied: npt.NDArray[np.int64]
) -> int:
    """Return the distance where after each step so many rows are written, and so many copied."""
    s = conv.shape
    done = np.clip(copied, 0, s["x_h"])
    before = np.concatenate([[0], done[:-1]])
    lowest = np.where(before < done, before * s["x_w"] * s["x_c"], _NEVER)
    return _distance(conv, written * s["y_w"] * s["y_c"], lowest)


_NEVER: Final = 2**62  # where a step reads nothing


def _lowest(
    at: npt.NDArray[np.int64], stride: int, pad: int, dilation: int, window: int, size: int
) -> npt.NDArray[np.int64]:
    """Return the lowest index inside the image that each position's window has; -1: none."""
    start = at * stride - pad
    first = np.maximum(0, -(start // dilation))  # taps before the image
    index = start + first * dilation
    return np.where((first < window) & (index < size), index, -1)


def _distance(conv: Conv, written: npt.NDArray[np.int64], lowest: npt.NDArray[np.int64]) -> int:
    """Return the largest of (written so far - lowest still needed), over all steps and images."""
    s = conv.shape
    images = np.arange(s["batches"])[:, None]
    y_bytes, x_bytes = s["y_h"] * s["y_w"] * s["y_c"], s["x_h"] * s["x_w"] * s["x_c"]
    all_written = (images * y_bytes + written).ravel()
    all_lowest = np.where(lowest == _NEVER, _NEVER, images * x_bytes + lowest).ravel()
    needed = np.minimum.accumulate(all_lowest[::-1])[::-1]
    steps = all_written[:-1] - needed[1:]
    return max(-int(all_written[-1]), int(steps.max(initial=-_NEVER)))


def folded_bias(conv: Conv) -> npt.NDArray[np.int32] | None:
    """Return the bias for kernels that leave out the input's zero point; None if sums get large."""
    axes = (1, 2, 3)
    sums = conv.weights.astype(np.int64).sum(axis=axes)
    folded = conv.bias.astype(np.int64) - conv.shape["x_zero"] * sums
    if (np.abs(folded) + 128 * abs_sums(conv.weights)).max() >= 2**30:
        return None
    narrow: npt.NDArray[np.int32] = folded.astype(np.int32)
    return narrow


def bias_of(conv: Conv) -> npt.NDArray[np.int32]:
    """Return `folded_bias` of a layer that has one."""
    folded = folded_bias(conv)
    assert folded is not None
    return folded


def abs_sums(weights: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return, for every filter, the sum of its weights' magnitudes."""
    sums: npt.NDArray[np.int64] = np.abs(weights.astype(np.int64)).sum(axis=(1, 2, 3))
    return sums


def right_shifts(conv: Conv) -> npt.NDArray[np.int8] | None:
    """Return the shifts where all go to the right by 1 or more; None where one does not.

    A multiplier of 0 gives 0 with any shift.
    """
    shift = np.where(conv.multiplier == 0, -1, conv.shift).astype(np.int8)
    return shift if shift.max() < 0 else None


def packed_shape(conv: Conv) -> dict[str, int] | None:
    """Return the fields of es_conv_packed_shape; None where one does not fit its bits."""
    s = conv.shape
    fields: dict[str, int] = {}
    for name, parts in _PACKED.items():
        bits = 32 // len(parts)
        low, high = (-128, 127) if name == "levels" else (0, 2**bits - 1)
        values = [s[part] for part in parts]
        if not all(low <= value <= high for value in values):
            return None
        word = sum((value & (2**bits - 1)) << (bits * i) for i, value in enumerate(values))
        fields[name] = word - 2**32 if word >= 2**31 else word
    return fields


_PACKED: Final = {
    "x_size": ("x_h", "x_w"),
    "y_size": ("y_h", "y_w"),
    "channels": ("x_c", "y_c"),
    "filters": ("k_c", "batches"),
    "window": ("k_h", "k_w", "pad_top", "pad_left"),
    "steps": ("stride_h", "stride_w", "dilation_h", "dilation_w"),
    "levels": ("x_zero", "y_zero", "y_min", "y_max"),
}
