"""What a model costs on a device, found on the host."""

from edgeshrink.emulation.emulate import ENGINES, emulate

__all__ = ["ENGINES", "emulate"]
