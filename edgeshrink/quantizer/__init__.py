"""The one int8 quantizer, shared by export and by quantization-aware training."""

from edgeshrink.quantizer.annotate import Int8Quantizer
from edgeshrink.quantizer.canonical import canonical_program
from edgeshrink.quantizer.quantize import Quantized, quantize

__all__ = ["Int8Quantizer", "Quantized", "canonical_program", "quantize"]
