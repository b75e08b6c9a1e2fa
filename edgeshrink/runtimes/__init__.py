"""Runtimes behind one interface: LiteRT, tflite-runtime, TensorFlow Lite Micro, ExecuTorch."""

from edgeshrink.runtimes.pte import PteInfo, read_pte
from edgeshrink.runtimes.runner import ENGINES, Engine, HostMemory, ModelRunner, open_model

__all__ = ["ENGINES", "Engine", "HostMemory", "ModelRunner", "PteInfo", "open_model", "read_pte"]
