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
from edgeshrink.emulation.firmware import advised_firmware, emulate_firmware, firmware_figures
from edgeshrink.emulation.interpreter import emulate_interpreter

__all__ = [
    "ENGINES",
    "advised_firmware",
    "check_engine",
    "check_threads",
    "emulate",
    "emulate_arm64",
    "emulate_firmware",
    "emulate_interpreter",
    "engines_of",
    "firmware_figures",
    "with_energy",
]
