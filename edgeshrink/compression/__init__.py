"""Compression of a float model, step by step."""

from edgeshrink.compression.compress import (
    Compressed,
    calibrate_probabilities,
    check_recipe,
    compress,
    compressing_steps,
    reached,
    rehearse_recipe,
    report_quantization,
)
from edgeshrink.compression.steps import StepReport

__all__ = [
    "Compressed",
    "StepReport",
    "calibrate_probabilities",
    "check_recipe",
    "compress",
    "compressing_steps",
    "reached",
    "rehearse_recipe",
    "report_quantization",
]
