"""A device: cpu, memories, allowed types and operators, runtimes, budget, sources."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

from edgeshrink.budget import Budget, read_budget
from edgeshrink.errors import ConfigError
from edgeshrink.resources import resource_dir
from edgeshrink.strict_toml import REQUIRED, Table, nearest, read_toml

Kind = Literal["application-processor", "microcontroller", "host"]

# Words for `cpu.isa`, and what each lets a kernel do.
ISA: Final = {
    "neon": "128-bit SIMD of Armv7-A and Armv8-A",
    "fp16": "half-precision arithmetic of Armv8.2-A",
    "dotprod": "SDOT and UDOT: four int8 products per lane (Armv8.2-A)",
    "i8mm": "int8 matrix multiply (Armv8.6-A)",
    "dsp": "SMLAD and SXTB16: two 16-bit products per instruction (Armv7E-M, Armv8-M)",
    "fpu": "single-precision floating point in hardware",
    "fpu64": "double-precision floating point in hardware",
    "dual-issue": "two instructions per cycle",
    "mve": "Helium vector extension of Armv8.1-M",
    "mul": "32-bit multiply in one cycle",
    "rv32imc": "RISC-V base integer, multiply and compressed instructions",
}
DTYPES: Final = ("int8", "int16", "float16", "float32")
RUNTIMES: Final = ("litert", "executorch", "tflite-runtime", "tflm", "c")
SOURCE_MARKS: Final = ("datasheet:", "sourced:", "recalled:", "chosen:")
NAME: Final = re.compile(r"[a-z0-9][a-z0-9+.-]*")


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """The core that runs the model."""

    core: str  # "cortex-a72"
    isa: tuple[str, ...]  # "neon", "dotprod", "i8mm", "fp16", "dsp", "fpu", "mve", "rv32imc" …
    clock_mhz: float | None  # None: not known (the host)
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


def target_folders() -> tuple[Path, ...]:
    """Return where targets are looked for: `./targets`, then the package's."""
    own, shipped = Path("targets"), resource_dir("targets")
    if own.is_dir() and not own.samefile(shipped):
        return own, shipped
    return (shipped,)


def _files() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in reversed(target_folders()):
        found |= {path.stem: path for path in folder.glob("*.toml")}
    return dict(sorted(found.items()))


def load_target(name_or_path: str) -> Target:
    """Return a target by its name, or by the path of a `.toml` file.

    Raises:
        ConfigError: there is no such target, or its file is malformed (file, key, remedy).
    """
    if name_or_path.endswith(".toml"):
        return read_target(Path(name_or_path))
    files = _files()
    if name_or_path not in files:
        raise ConfigError(f"target {name_or_path!r}", "is not known", nearest(name_or_path, files))
    return read_target(files[name_or_path])


def list_targets() -> tuple[Target, ...]:
    """Return all targets of `./targets` and of the package, application processors first."""
    order = {kind: rank for rank, kind in enumerate(get_args(Kind))}
    targets = [read_target(path) for path in _files().values()]
    return tuple(sorted(targets, key=lambda t: (order[t.kind], t.name)))


def read_target(path: Path) -> Target:
    """Read one target file strictly; ConfigError names file, key and remedy."""
    table = read_toml(path)
    name = table.text("name")
    if name != path.stem or not NAME.fullmatch(name):
        raise table.error(
            "name", f"is {name!r}", f"it must be the file's name without .toml ({path.stem!r}), "
            "in lower-case letters, digits, '+', '-' and '.'"
        )  # fmt: skip
    kind = table.text("kind", choices=get_args(Kind))
    target = Target(
        name=name,
        title=table.text("title"),
        kind=kind,
        soc=table.text("soc"),
        cpu=_read_cpu(table.table("cpu", required=True), is_host=kind == "host"),
        memory=_read_memory(table.table("memory"), is_host=kind == "host"),
        ops=_read_ops(table.table("ops", required=True)),
        runtimes=tuple(
            Runtime(name=entry.text("name", choices=RUNTIMES), version=entry.text("version"))
            for entry in table.tables("runtimes")
        ),
        budget=read_budget(table.table("budget")),
        power=_read_power(table.table("power")),
        sources=_read_sources(table),
        path=path,
    )
    table.finish()
    if not target.runtimes:
        raise table.error("runtimes", "is missing", "add [[runtimes]] with name and version")
    _check_sources(target, table)
    return replace(target, budget=_checked_budget(target, table))


def _read_cpu(table: Table, *, is_host: bool) -> Cpu:
    """Read `[cpu]`; what the host's file leaves out is this machine's."""
    return Cpu(
        core=table.text("core"),
        isa=table.texts("isa", choices=ISA),
        clock_mhz=table.number("clock_mhz", 1, 10_000, None if is_host else REQUIRED),
        n_cores=table.integer("cores", 1, 1024, os.cpu_count() if is_host else REQUIRED),
    )


def _read_memory(table: Table, *, is_host: bool) -> Memory:
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if is_host else REQUIRED
    memory = Memory(
        flash_bytes=table.size("flash", None),
        ram_bytes=table.size("ram", ram),
        firmware_flash_bytes=table.size("firmware_flash", 0),
        firmware_ram_bytes=table.size("firmware_ram", 0),
        flash_wait_states=table.integer("flash_wait_states", 0, 32, None),
        flash_bus_bits=table.integer("flash_bus_bits", 8, 1024, None),
        tcm_bytes=table.size("tcm", None),
        bandwidth_mb_s=table.number("bandwidth_mb_s", 1, 10_000_000, None),
        caches=tuple(
            Cache(
                name=entry.text("name"),
                size_bytes=entry.size("size"),
                line_bytes=entry.integer("line_bytes", 4, 1024, None),
                shared=entry.flag("shared", False),
            )
            for entry in table.tables("caches")
        ),
    )
    if memory.ram_bytes <= memory.firmware_ram_bytes:
        raise table.error("firmware_ram", "leaves the model nothing", "it must be less than ram")
    if memory.flash_bytes is not None and memory.flash_bytes <= memory.firmware_flash_bytes:
        raise table.error(
            "firmware_flash", "leaves the model nothing", "it must be less than flash"
        )
    return memory


def _read_ops(table: Table) -> Ops:
    return Ops(dtypes=table.texts("dtypes", choices=DTYPES), deny=table.texts("deny", ()))


def _read_power(table: Table) -> Power:
    return Power(
        idle_mw=table.number("idle_mw", 0, 1e6, None),
        active_mw=table.number("active_mw", 0, 1e6, None),
        supply_v=table.number("supply_v", 0, 60, None),
    )


def _read_sources(table: Table) -> dict[str, str]:
    sources = {}
    child = table.table("sources")
    for key, text in child.rest().items():
        if not isinstance(text, str) or not text.startswith(SOURCE_MARKS):
            marks = ", ".join(SOURCE_MARKS)
            raise child.error(
                key, f"is {text!r}", f"write a string that begins with one of {marks}"
            )
        sources[key] = text
    return sources


def _figures(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of everything below a TOML value."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _figures(child, f"{prefix}.{key}" if prefix else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for child in value:
            yield from _figures(child, f"{prefix}.{child.get('name', '')}")
    else:
        yield prefix, value


def source_of(target: Target, key: str) -> str:
    """Return where the figure `key` (`memory.ram`) comes from: its own entry, or its group's."""
    while key:
        if key in target.sources:
            return target.sources[key]
        key = key.rpartition(".")[0]
    return ""


def describe(target: Target) -> tuple[tuple[str, Any, str], ...]:
    """Return (key, value, source) of every fact in the target's file, in its order."""
    assert target.path is not None
    facts = read_toml(target.path).rest()
    facts.pop("sources", None)
    return tuple((key, value, source_of(target, key)) for key, value in _figures(facts))


def _is_figure(key: str, value: Any) -> bool:
    """Say whether a fact is a number, with or without a unit, and so needs a source."""
    if key.partition(".")[0] in ("name", "title", "kind", "soc", "ops", "runtimes"):
        return False
    if isinstance(value, str):
        return re.match(r"\s*[0-9.]", value) is not None
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_sources(target: Target, table: Table) -> None:
    facts = describe(target)
    keys = [key for key, _, _ in facts]
    for key, value, source in facts:
        if _is_figure(key, value) and not source:
            raise table.error(
                f"sources.{key}", "is missing", f'add "{key}" = "datasheet: …" under [sources]'
            )
    for key in target.sources:
        if not any(known == key or known.startswith(f"{key}.") for known in keys):
            raise table.error(f"sources.{key}", "is a source for nothing", nearest(key, keys))


def _checked_budget(target: Target, table: Table) -> Budget:
    """Return the budget, filled up for microcontrollers with what the memories leave."""
    memory, budget = target.memory, target.budget
    if target.kind == "microcontroller" and memory.flash_bytes is None:
        raise table.error("memory.flash", "is missing", "a microcontroller has flash: add its size")
    free = {
        "ram": ("ram_bytes", memory.ram_bytes - memory.firmware_ram_bytes),
        "flash": ("flash_bytes", (memory.flash_bytes or 0) - memory.firmware_flash_bytes),
    }
    for key, (name, available) in free.items():
        asked = getattr(budget, name)
        if key == "flash" and memory.flash_bytes is None:
            continue
        if asked is not None and asked > available:
            raise table.error(
                f"budget.{key}", f"is {asked} bytes", f"memory leaves {available} bytes for a model"
            )
        if asked is None and target.kind == "microcontroller":
            budget = Budget(**{name: available}).over(budget)
    return budget
