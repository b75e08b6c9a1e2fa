"""What a model costs on a device, found on the host."""

from edgeshrink.emulation.arm64 import emulate_arm64
from edgeshrink.emulation.emulate import (
    ENGINES,
    check_engine,
    check_threads,
    emulate,
    engines_of,
    with_energy,
)
from edgeshrink.emulation.firmware import emulate_firmware, firmware_figures

__all__ = [
    "ENGINES",
    "check_engine",
    "check_threads",
    "emulate",
    "emulate_arm64",
    "emulate_firmware",
    "engines_of",
    "firmware_figures",
    "with_energy",
]
