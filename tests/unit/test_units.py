"""Sizes and durations as people write them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeshrink.units import (
    BYTE_UNITS,
    format_bytes,
    format_ms,
    format_score,
    parse_bytes,
    parse_ms,
)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("0B", 0),
        ("7 B", 7),
        ("64KiB", 65_536),
        ("64 kB", 64_000),
        ("64 KB", 64_000),
        ("1.5 MiB", 1_572_864),
        (".5 MB", 500_000),
        ("2. GiB", 2_147_483_648),
        ("  3  GB  ", 3_000_000_000),
        ("1 TiB", 1_099_511_627_776),
    ],
)
def test_sizes_are_read(text, n_bytes):
    assert parse_bytes(text) == n_bytes
    assert isinstance(parse_bytes(text), int)


@pytest.mark.parametrize(
    ("text", "ms"),
    [("20ms", 20.0), ("1.5 s", 1500.0), ("250 us", 0.25), ("250 \u00b5s", 0.25),
     ("250 \u03bcs", 0.25)],
)  # fmt: skip
def test_durations_are_read(text, ms):
    assert parse_ms(text) == pytest.approx(ms)


@pytest.mark.parametrize(
    "text", ["", "64", "KiB", "64 kib", "64 Kib", "64 mb", "-1 B", "+1 B", "1e3 B", "1,5 MB",
             "1 B B", "nan B", "inf B", "0x10 B", "\u0663 B", "9" * 400 + " B"]
)  # fmt: skip
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="size"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["20", "20 m", "20 MS", "20 min", "-1 ms", "20 KiB"])
def test_what_is_no_duration_is_refused_with_the_units(text):
    with pytest.raises(ValueError, match="one of us, ms, s"):
        parse_ms(text)


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (1 << 20, "1.0 MiB"),
     (3 << 30, "3.0 GiB"), (1 << 40, "1.0 TiB"), (-2048, "-2.0 KiB")],
)  # fmt: skip
def test_sizes_are_written(n_bytes, text):
    assert format_bytes(n_bytes) == text


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0, "0 us"), (0.0123, "12.3 us"), (0.9994, "999 us"), (0.9999, "1 ms"), (1, "1 ms"),
     (37.16, "37.2 ms"), (999.4, "999 ms"), (999.9, "1 s"), (1234, "1.23 s"), (3.6e6, "3600 s"),
     (-5, "-5 ms")],
)  # fmt: skip
def test_durations_are_written_with_three_figures_and_no_exponent(ms, text):
    assert format_ms(ms) == text


@given(st.floats(1e-3, 3.6e6))
@example(999.95)
def test_a_written_duration_reads_back_to_three_figures(ms):
    assert parse_ms(format_ms(ms)) == pytest.approx(ms, rel=0.0051)


@given(st.integers(0, 1 << 50))
def test_a_written_size_reads_back_to_a_twentieth_of_its_unit(n_bytes):
    unit = format_bytes(n_bytes).split()[1]
    assert abs(parse_bytes(format_bytes(n_bytes)) - n_bytes) <= 0.05 * BYTE_UNITS[unit] + 0.5


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.9861111, "0.9861"), (12.34567, "12.3457"), (0.0, "0.0000"), (-0.0, "0.0000"),
        (0.00277778, "0.00278"), (0.002, "0.00200"), (-0.0012, "-0.00120"), (2.5e-6, "2.5e-06"),
    ],
)  # fmt: skip
def test_small_scores_keep_their_figures(value: float, text: str) -> None:
    assert format_score(value) == text
