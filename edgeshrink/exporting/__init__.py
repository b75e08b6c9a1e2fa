"""Lower one program to `.tflite` and `.pte`, and prove that both still are the model."""

from edgeshrink.exporting.exporter import (
    Exported,
    check_exportable,
    check_widths,
    export,
    golden_samples,
)
from edgeshrink.exporting.gates import Agreement

__all__ = [
    "Agreement",
    "Exported",
    "check_exportable",
    "check_widths",
    "export",
    "golden_samples",
]
