"""Padding of operators that slide a window over an image."""

from __future__ import annotations


def window_padding(
    size: tuple[int, int],
    window: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) of TFLite's SAME padding; all pairs are (height, width)."""
    found: list[int] = []
    for n, k, s, d in zip(size, window, stride, dilation, strict=True):
        out = -(-n // s)
        total = max(0, (out - 1) * s + (k - 1) * d + 1 - n)
        found += [total // 2, total - total // 2]
    return found[0], found[1], found[2], found[3]
