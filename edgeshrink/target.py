"""A device: its cpu, memories, allowed types and operators, runtimes, budget, and the source of each figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgeshrink.budget import Budget

Kind = Literal["application-processor", "microcontroller"]


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """The core that runs the model."""

    core: str  # "cortex-a72"
    isa: tuple[str, ...]  # "neon", "dotprod", "i8mm", "fp16", "dsp", "fpu", "mve", "rv32imc" …
    clock_mhz: float
    n_cores: int


@dataclass(frozen=True, kw_only=True)
class Cache:
    """One cache or flash accelerator."""

    name: str  # "L1D", "L2", "ART", "ICACHE", "XIP"
    size_bytes: int
    line_bytes: int | None = None
    shared: bool = False  # by all cores


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The memories; what the firmware or operating system keeps is not the model's."""

    flash_bytes: int | None  # None: storage that is no constraint (a card, an SSD)
    ram_bytes: int
    firmware_flash_bytes: int = 0
    firmware_ram_bytes: int = 0
    flash_wait_states: int | None = None
    flash_bus_bits: int | None = None
    tcm_bytes: int | None = None  # tightly coupled data memory, part of ram_bytes
    bandwidth_mb_s: float | None = None  # bytes copied once, large memcpy
    caches: tuple[Cache, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Ops:
    """What may appear in a model for this device."""

    dtypes: tuple[str, ...]  # of "int8", "int16", "float16", "float32"
    deny: tuple[str, ...] = ()  # TFLite operator names that are refused


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """An engine that the device can run, in order of preference."""

    name: str  # "litert", "executorch", "tflite-runtime", "tflm", "c"
    version: str


@dataclass(frozen=True, kw_only=True)
class Power:
    """Board power by state; None where no figure is known."""

    idle_mw: float | None = None
    active_mw: float | None = None
    supply_v: float | None = None


@dataclass(frozen=True, kw_only=True)
class Target:
    """A device and its limits. `sources` maps the key of a figure to where it comes from."""

    name: str
    title: str
    kind: Kind
    soc: str
    cpu: Cpu
    memory: Memory
    ops: Ops
    runtimes: tuple[Runtime, ...]
    budget: Budget = field(default_factory=Budget)
    power: Power = field(default_factory=Power)
    sources: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None

    def int8_only(self) -> bool:
        """Say whether no floating point may appear in the model."""
        return not any(dtype.startswith("float") for dtype in self.ops.dtypes)
