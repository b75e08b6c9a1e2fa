"""The short roundings of DSP kernels against exact integers, at ties and around them."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from tests.kernels.host import _emitted

SHIM = """
#include "es_blocks.h"
void one(const int32_t *x, const int32_t *m, const int32_t *n, int32_t *y, int32_t count);
void one(const int32_t *x, const int32_t *m, const int32_t *n, int32_t *y, int32_t count) {
  for (int32_t i = 0; i < count; i++) {
    y[i] = %s;
  }
}
"""
DSP = "es_requantize_dsp(x[i], m[i], -n[i])"
BLOCK = (
    "0; int32_t c[3] = {m[i], (int32_t)(1u << (n[i] - 1)), n[i]};"
    " y[i] = es_requantize_block(2 * x[i], c)"
)


def exact(x: int, m: int, n: int) -> int:
    """TensorFlow Lite's two roundings, from their definitions, in whole numbers."""
    product = x * m
    nudge = 2**30 if product >= 0 else 1 - 2**30
    total = product + nudge
    high = abs(total) // 2**31 * (1 if total >= 0 else -1)  # division towards 0
    low, sign = divmod(abs(high), 2**n), (1 if high >= 0 else -1)
    return sign * (low[0] + (2 * low[1] >= 2**n))  # ties away from 0


def samples(n_max: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums whose product lies at a tie of either rounding, or next to one; and noise."""
    rng = np.random.default_rng(0)
    rows = []
    for n in range(1, n_max + 1):
        for m in (2**30, 2**30 + 1, 2**31 - 1, *rng.integers(2**30, 2**31, 12).tolist()):
            for half in (-5, -3, -1, 1, 3, 5, *rng.integers(-300, 300, 12).tolist()):
                target = half * 2**n // 2
                base = target * 2**31 // m
                rows += [(base + d, m, n) for d in range(-2, 3)]
            rows += [(x, m, n) for x in (0, 1, -1, 2**30 - 1, 1 - 2**30)]
            rows += [(int(x), m, n) for x in rng.integers(-(2**24), 2**24, 8)]
    kept = [row for row in rows if abs(row[0]) < 2**30]
    x, m, n = (np.array(column, np.int32) for column in zip(*kept, strict=True))
    return x, m, n


def computed(text: str, x: np.ndarray, m: np.ndarray, n: np.ndarray) -> np.ndarray:
    y = np.zeros(x.size, np.int32)
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (x, m, n, y)]
    _emitted(text).one(*pointers, ctypes.c_int32(x.size))
    return y


@pytest.mark.parametrize(("expression", "n_max"), [(DSP, 31), (BLOCK, 22)], ids=["dsp", "block"])
def test_short_rounding_is_exact_at_ties(expression, n_max):
    x, m, n = samples(n_max)
    expected = [exact(*row) for row in zip(x.tolist(), m.tolist(), n.tolist(), strict=True)]
    np.testing.assert_array_equal(computed(SHIM % expression, x, m, n), expected)


@pytest.mark.parametrize(
    "mutant",
    [
        "es_high_product(2 * x[i], m[i], 1 << (n[i] - 1)) >> n[i]",  # ties up
        "es_high_product(2 * x[i], m[i], x[i] >> 31) >> n[i]",  # towards minus infinity
        "(int32_t)(((int64_t)x[i] * m[i] + ((int64_t)1 << (30 + n[i]))) >> (31 + n[i]))",  # once
        "(int32_t)(((int64_t)(2 * x[i]) * m[i]) >> 32) + 0 * n[i]",  # not shifted
    ],
)
def test_samples_kill_a_mutant(mutant):
    x, m, n = samples(22)
    expected = [exact(*row) for row in zip(x.tolist(), m.tolist(), n.tolist(), strict=True)]
    assert (computed(SHIM % mutant, x, m, n) != expected).any()
