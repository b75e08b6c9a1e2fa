"""The arm64 builds of the runtimes, under QEMU's user mode."""

from edgeshrink.runtimes.arm64.root import (
    RUNTIMES,
    SETUP,
    Arm64Root,
    Guest,
    count_plugin,
    cpu_model,
    find_root,
    guest,
)

__all__ = [
    "RUNTIMES",
    "SETUP",
    "Arm64Root",
    "Guest",
    "count_plugin",
    "cpu_model",
    "find_root",
    "guest",
]
