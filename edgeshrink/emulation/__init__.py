"""What a model costs on a device, found on the host."""

from edgeshrink.emulation.emulate import ENGINES, check_threads, emulate

__all__ = ["ENGINES", "check_threads", "emulate"]
