"""What `build` prints about engines: one line each, with the limit and what quantization did."""

from __future__ import annotations

from typing import Any

from edgeshrink.cli.build import show_agreement, show_quantization
from edgeshrink.exporting.gates import Agreement


def agreement(**changes: Any) -> Agreement:
    values: dict[str, Any] = {
        "engine": "tflm", "reference": "litert", "unit": "LSB", "largest": 4.0, "rms": 0.84,
        "differing": 0.125, "n_values": 1280, "limit": 7.0, "rms_limit": 1.75,
        "within_limit": True, "quantization_largest": 6.0, "quantization_rms": 2.5,
    }  # fmt: skip
    return Agreement(**(values | changes))


def test_line_of_an_agreement_holds_what_was_found_and_what_is_allowed():
    line = show_agreement(agreement())
    assert "\n" not in line
    assert line.startswith("tflm and litert: ")
    for figure in ("4 LSB (limit 7)", "rms 0.84 (limit 1.8)", "12.50 % of 1,280 values"):
        assert figure in line


def test_equal_outputs_are_called_equal():
    line = show_agreement(agreement(largest=0.0, rms=0.0, differing=0.0))
    assert line == "tflm and litert: 1,280 values, all equal"


def test_error_of_quantization_is_said_once_and_of_quantized_models_alone():
    silent = agreement(quantization_largest=None, quantization_rms=None)
    line = show_quantization([silent, agreement(), agreement(quantization_largest=9.0)])
    assert "largest error 6 LSB, rms 2.5" in line
    assert show_quantization([silent]) == ""
