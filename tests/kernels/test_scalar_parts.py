"""What the kernels for cores without SIMD are made of: rounding, and sums in half words."""

from __future__ import annotations

import ctypes
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeshrink.lowering.scalar import encode_filter
from tests.kernels.host import _emitted
from tests.kernels.test_rounding import exact, samples

SHIM = """
#include "es_scalar.h"
void one(const int32_t *x, const int32_t *m, const int32_t *n, int32_t *y, int32_t count);
void one(const int32_t *x, const int32_t *m, const int32_t *n, int32_t *y, int32_t count) {
  for (int32_t i = 0; i < count; i++) {
    int32_t scale[2] = {m[i], n[i]}, high = %s;
    y[i] = (high + (1 << (n[i] - 1)) + (x[i] >> 31)) >> n[i];
    if (%s) y[i] = es_requantize_scalar(x[i], scale, 1);
  }
}
"""
ANY = """
#include "es_base.h"
void one(const int32_t *x, const int32_t *m, const int32_t *n, int32_t *y, int32_t count);
void one(const int32_t *x, const int32_t *m, const int32_t *n, int32_t *y, int32_t count) {
  (void)n;
  for (int32_t i = 0; i < count; i++) y[i] = es_doubling_high_mul_by_halves(x[i], m[i]);
}
"""
HALVES = SHIM % ("es_doubling_high_mul_halves(x[i], m[i])", "0")
WHOLE = SHIM % ("0", "1")


def computed(text: str, x: np.ndarray, m: np.ndarray, n: np.ndarray) -> np.ndarray:
    y = np.zeros(x.size, np.int32)
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (x, m, n, y)]
    _emitted(text).one(*pointers, ctypes.c_int32(x.size))
    return y


def ties() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, m, n = samples(22)
    kept = np.abs(x.astype(np.int64)) < 2**29
    return x[kept], m[kept], n[kept]


@pytest.mark.parametrize("text", [HALVES, WHOLE], ids=["by halves", "by a long product"])
def test_requantization_is_exact_at_ties(text):
    x, m, n = ties()
    expected = [exact(*row) for row in zip(x.tolist(), m.tolist(), n.tolist(), strict=True)]
    np.testing.assert_array_equal(computed(text, x, m, n), expected)


@pytest.mark.parametrize("text", [HALVES, WHOLE], ids=["by halves", "by a long product"])
def test_requantization_is_exact_on_millions_of_random_values(text):
    rng = np.random.default_rng(5)
    bits = rng.integers(1, 30, 2_000_000)
    x = (rng.integers(-(2**29) + 1, 2**29, bits.size) >> (29 - bits)).astype(np.int32)
    m = rng.integers(2**30, 2**31, bits.size).astype(np.int32)
    n = rng.integers(1, 23, bits.size).astype(np.int32)
    product = x.astype(np.int64) * m
    nudged = np.abs(product) + 2**30 - (product < 0)  # halves of the doubled product go up
    high = np.sign(product) * (nudged >> 31)
    expected = np.sign(high) * ((np.abs(high) + (np.int64(1) << (n - 1))) >> n)
    np.testing.assert_array_equal(computed(text, x, m, n), expected)


def test_product_by_halves_is_exact_for_any_factors():
    rng = np.random.default_rng(6)
    ends = [-(2**31), 1 - 2**31, -(2**16), -1, 0, 1, 2**15, 2**16 - 1, 2**16, 2**31 - 1]
    x, m = (np.repeat(ends, len(ends)), np.tile(ends, len(ends)))
    x = np.append(x, rng.integers(-(2**31), 2**31, 2_000_000))[1:]  # not -2^31 twice
    m = np.append(m, rng.integers(-(2**31), 2**31, 2_000_000))[1:]
    x[500:900] = 2 * np.arange(400) + 1
    m[500:900] = 2**30  # ties
    expected = ((x * m >> 29) + 2) >> 2
    got = computed(ANY, x.astype(np.int32), m.astype(np.int32), np.zeros(x.size, np.int32))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("((middle + (1 << 14)) >> 15)", "(middle >> 15)"),
        ("((al * bl) >> 16)", "0"),
        ("(int16_t)a", "a & 0xFFFF"),
        ("top + top", "top"),
    ],
)
def test_samples_kill_a_mutant_of_the_product_by_halves(old, new):
    from edgeshrink.resources import resource_dir

    header = (resource_dir("kernels") / "include" / "es_scalar.h").read_text("utf-8")
    assert header.count(old) == 1
    x, m, n = ties()
    expected = [exact(*row) for row in zip(x.tolist(), m.tolist(), n.tolist(), strict=True)]
    text = HALVES.replace('#include "es_scalar.h"', header.replace(old, new))
    if new == "a & 0xFFFF":  # unsigned halves: the middle overflows, on purpose
        x, m, n = x[x > 2**28], m[x > 2**28], n[x > 2**28]
        expected = [exact(*row) for row in zip(x.tolist(), m.tolist(), n.tolist(), strict=True)]
    assert (computed(text, x, m, n) != expected).any()


def decoded(words: np.ndarray) -> tuple[list[int], list[int]]:
    """The weights of a filter, and after how many of them sums are taken out."""
    weights: list[int] = []
    cuts: list[int] = []
    stream = iter(words.tolist())
    bits = ""
    while True:
        if not bits:
            word = next(stream, None)
            if word is None:
                return weights, cuts
            bits = f"{word:032b}".rstrip("0")[:-1]  # without the 1 that ends them
        is_out, bits = bits[0] == "1", bits[1:]
        if is_out and bits[0] == "1":
            cuts.append(len(weights) + 2)
        if is_out:
            bits = bits[1:]
        weights += np.array([next(stream)], np.uint32).view(np.int8).tolist()
        if is_out:
            cuts.append(len(weights))


WEIGHTS = st.one_of(
    st.integers(-127, 127), st.integers(-30, 30), st.sampled_from([-127, -64, 0, 64, 127])
)


@given(weights=st.lists(WEIGHTS, min_size=4, max_size=200).map(lambda w: w[: len(w) // 4 * 4]))
@example(weights=[64] * 8)
@example(weights=[-64] * 8)
@example(weights=[127, 127, -127, -127] * 40)
@example(weights=[1] * 4 * 70)
def test_a_filter_comes_back_from_its_words_and_no_sum_leaves_16_bits(weights):
    found = encode_filter(np.array(weights, np.int8))
    assert found is not None
    got, cuts = decoded(found.words)
    assert got == weights
    assert cuts[-1] == len(weights)
    assert found.n_taken_out == len(cuts)
    for first, end in pairwise([0, *cuts]):
        part = weights[first:end]
        highest = sum(127 * w if w > 0 else -128 * w for w in part)
        lowest = sum(-128 * w if w > 0 else 127 * w for w in part)
        assert highest <= 2**15 - 1
        assert lowest > -(2**15)  # in the upper half, -2^15 and a negative sum below it wrap


def test_a_filter_whose_pairs_overflow_has_no_words():
    assert encode_filter(np.array([-128, -128, 0, 0], np.int8)) is None


def test_sums_are_taken_out_no_more_often_than_they_must():
    small = encode_filter(np.full(64, 3, np.int8))
    assert small is not None
    assert small.n_taken_out == 1
    large = encode_filter(np.full(64, 60, np.int8))
    assert large is not None
    assert large.n_taken_out == 16  # 4 * 60 * 128 fits, 8 * 60 * 128 does not
