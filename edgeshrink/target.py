"""A device: cpu, memories, allowed types and operators, runtimes, budget, sources."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

from edgeshrink.budget import BUDGET_KEYS, Budget, read_budget
from edgeshrink.errors import ConfigError
from edgeshrink.resources import resource_dir
from edgeshrink.strict_toml import Key, Table, nearest, read_toml

Kind = Literal["application-processor", "microcontroller", "host"]
Holds = Literal["code", "constants", "both"]
Fills = Literal["line", "read"]

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
    "pie": "128-bit SIMD of ESP32-S3, sixteen int8 products per instruction",
    "rv32imc": "RISC-V base integer, multiply and compressed instructions",
}
DTYPES: Final = ("int8", "int16", "float16", "float32")
RUNTIMES: Final = ("litert", "executorch", "tflite-runtime", "tflm", "c")
# How a source begins, and what that says.
SOURCE_MARKS: Final = {
    "datasheet:": "read in the maker's document that it names",
    "sourced:": "read or derived from the publication that it names",
    "recalled:": "written from general knowledge, to be checked before a decision hangs on it",
    "chosen:": "a decision of whoever wrote the file, not a property of the device",
}
# What stands between supply and core, and so what is constant when the voltage changes.
REGULATORS: Final = {
    "ldo": "linear: the current is the same at any voltage",
    "smps": "switching: the power is the same at any voltage",
    "board": "the board's own converter: power of the whole board, at its input",
}
POWER_BASES: Final = {
    "inference": "published energies of inferences over their latencies",
    "datasheet": "typical running current in the maker's document, times voltage",
    "stress": "all cores of the board under a stress test",
}
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
    holds: Holds = "both"
    ways: int | None = None  # lines of a set; None: any line may be anywhere
    fills: Fills = "line"  # what a miss brings in


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The memories; what the firmware or operating system keeps is not the model's."""

    flash_bytes: int | None  # None: storage that is no constraint (a card, an SSD)
    ram_bytes: int
    firmware_flash_bytes: int = 0
    firmware_ram_bytes: int = 0
    flash_wait_states: int | None = None
    flash_bus_bits: int | None = None
    flash_prefetch: bool = False
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
class Supply:
    """Power by state under one supply; None where no figure is known."""

    name: str  # "1.8V"
    voltage_v: float
    regulator: str  # a key of REGULATORS
    basis: str  # a key of POWER_BASES: what `active_mw` was found with
    active_mw: float
    min_v: float | None = None
    max_v: float | None = None
    idle_mw: float | None = None  # awake, doing nothing
    peak_mw: float | None = None  # the most that was seen
    sleep_uw: float | None = None  # in the deepest state that keeps all RAM and wakes by a timer
    sleep_state: str | None = None  # what the maker calls it


@dataclass(frozen=True, kw_only=True)
class Power:
    """What the device draws; the first supply is used where none is asked for."""

    supplies: tuple[Supply, ...] = ()


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


# Every key of a target file: the reader takes these and no others, and the field reference
# (targets/README.md) is written from them.
_THIS = "left out in a file of kind `host`: this machine's"
TARGET_KEYS: Final = (
    Key(name="name", kind="text", meaning="What `--target` takes: the file's name without `.toml`"),
    Key(name="title", kind="text", meaning="What people call the device"),
    Key(name="kind", kind="text", choices=get_args(Kind), meaning="An operating system with its "
        "own storage, a bare core with flash, or the machine that edgeshrink runs on"),
    Key(name="soc", kind="text", meaning="The chip"),
)  # fmt: skip
CPU_KEYS: Final = (
    Key(name="core", kind="text", meaning="The core, as its maker writes it, in lower case: "
        "`cortex-a72`, `cortex-m4f`; selects the cost model"),
    Key(name="isa", kind="texts", choices=ISA.keys(), meaning="What the core can do, see below"),
    Key(name="clock_mhz", kind="number", low=1, high=10_000, unit="MHz",
        meaning=f"Clock while the model runs; {_THIS}"),
    Key(name="cores", kind="integer", low=1, high=1024, field="n_cores",
        meaning=f"Cores of this kind that a model may use; {_THIS}"),
)  # fmt: skip
MEMORY_KEYS: Final = (
    Key(name="flash", kind="size", low=1, default=None, field="flash_bytes",
        meaning="Flash; required for a microcontroller, left out where storage is no constraint"),
    Key(name="ram", kind="size", low=1, field="ram_bytes", meaning=f"RAM, all banks that a model "
        f"may use; {_THIS}"),
    Key(name="firmware_flash", kind="size", default=0, field="firmware_flash_bytes",
        meaning="Flash that everything but the model takes"),
    Key(name="firmware_ram", kind="size", default=0, field="firmware_ram_bytes",
        meaning="RAM that everything but the model takes"),
    Key(name="flash_wait_states", kind="integer", low=0, high=1000, default=None, unit="cycles",
        meaning="Extra cycles of a read from flash at `clock_mhz`; of serial flash, those that "
        "bring `flash_bus_bits`"),
    Key(name="flash_bus_bits", kind="integer", low=8, high=1024, default=None, unit="bits",
        meaning="Width of one read from flash; serial flash: what is read at once, a cache line"),
    Key(name="flash_prefetch", kind="flag", default=False, meaning="Whether the next read of code "
        "from flash begins before it is asked for"),
    Key(name="tcm", kind="size", low=1, default=None, field="tcm_bytes",
        meaning="Tightly coupled data memory, part of `ram`"),
    Key(name="bandwidth_mb_s", kind="number", low=1, high=10_000_000, default=None,
        unit="10^6 bytes/s", meaning="Bytes copied per second by a large memcpy, counted once"),
)  # fmt: skip
CACHE_KEYS: Final = (
    Key(name="name", kind="text", meaning="`L1D`, `L2`, `ICACHE`, `XIP`; each name once"),
    Key(name="size", kind="size", low=1, field="size_bytes", meaning="Capacity; of one core where "
        "each has its own"),
    Key(name="line_bytes", kind="integer", low=4, high=1024, default=None, unit="bytes",
        meaning="Length of a line"),
    Key(name="shared", kind="flag", default=False, meaning="Whether all cores share it"),
    Key(name="holds", kind="text", choices=get_args(Holds), default="both", meaning="What of the "
        "flash of a microcontroller it holds"),
    Key(name="ways", kind="integer", low=1, high=1024, default=None, meaning="Lines of a set; left "
        "out, a line may be anywhere"),
    Key(name="fills", kind="text", choices=get_args(Fills), default="line", meaning="What a miss "
        "brings in: its line, or one read of `flash_bus_bits`"),
)  # fmt: skip
OPS_KEYS: Final = (
    Key(name="dtypes", kind="texts", low=1, choices=DTYPES, meaning="Types that a model may "
        "compute in; anything else left in the graph is an error"),
    Key(name="deny", kind="texts", default=(), meaning="Operators that are refused, by their "
        "TFLite names (`CUMSUM`)"),
)  # fmt: skip
RUNTIME_KEYS: Final = (
    Key(name="name", kind="text", choices=RUNTIMES, meaning="The engine; each one once"),
    Key(name="version", kind="text", meaning="Its version"),
)
SUPPLY_KEYS: Final = (
    Key(name="name", kind="text", meaning="What `--supply` takes; each name once"),
    Key(name="voltage_v", kind="number", low=0.5, high=60, unit="V",
        meaning="Voltage at which the figures hold"),
    Key(name="min_v", kind="number", low=0.5, high=60, default=None, unit="V",
        meaning="Lowest voltage that may be fed here; left out, `voltage_v`"),
    Key(name="max_v", kind="number", low=0.5, high=60, default=None, unit="V",
        meaning="Highest voltage that may be fed here; left out, `voltage_v`"),
    Key(name="regulator", kind="text", choices=REGULATORS.keys(),
        meaning="What stands between supply and core, see below"),
    Key(name="basis", kind="text", choices=POWER_BASES.keys(),
        meaning="What `active_mw` was found with, see below"),
    Key(name="active_mw", kind="number", low=1e-3, high=1e6, unit="mW",
        meaning="While a model runs; of basis `stress`, with all `cores` busy"),
    Key(name="idle_mw", kind="number", low=0, high=1e6, default=None, unit="mW",
        meaning="Awake, doing nothing"),
    Key(name="peak_mw", kind="number", low=0, high=1e6, default=None, unit="mW",
        meaning="The most that was seen with all cores busy"),
    Key(name="sleep_uw", kind="number", low=0, high=1e9, default=None, unit="uW",
        meaning="In the deepest state that keeps all RAM and wakes by a timer"),
    Key(name="sleep_state", kind="text", default=None, meaning="What the maker calls that state"),
)  # fmt: skip
TABLES: Final = {
    "": TARGET_KEYS,
    "[cpu]": CPU_KEYS,
    "[memory]": MEMORY_KEYS,
    "[[memory.caches]]": CACHE_KEYS,
    "[ops]": OPS_KEYS,
    "[[runtimes]]": RUNTIME_KEYS,
    "[budget]": BUDGET_KEYS,
    "[[power.supplies]]": SUPPLY_KEYS,
}
SUB_TABLES: Final = ("cpu", "memory", "ops", "runtimes", "budget", "power", "sources")


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
        fix = f"{nearest(name_or_path, files)} (or give the path of a .toml file)"
        raise ConfigError(f"target {name_or_path!r}", "is not known", fix)
    return read_target(files[name_or_path])


def list_targets() -> tuple[Target, ...]:
    """Return all targets of `./targets` and of the package, application processors first."""
    order = {kind: rank for rank, kind in enumerate(get_args(Kind))}
    targets = [read_target(path) for path in _files().values()]
    return tuple(sorted(targets, key=lambda t: (order[t.kind], t.name)))


def read_target(path: Path) -> Target:
    """Read one target file strictly; ConfigError names file, key and remedy."""
    table = read_toml(path)
    identity = table.read(TARGET_KEYS, tables=SUB_TABLES)
    name, is_host = identity["name"], identity["kind"] == "host"
    if name != path.stem or not NAME.fullmatch(name):
        raise table.error(
            "name", f"is {name!r}", f"it must be the file's name without .toml ({path.stem!r}), "
            "in lower-case letters, digits, '+', '-' and '.'"
        )  # fmt: skip
    target = Target(
        **identity,
        cpu=_read_cpu(table.table("cpu", required=True), is_host=is_host),
        memory=_read_memory(table.table("memory", required=not is_host), is_host=is_host),
        ops=Ops(**table.table("ops", required=True).read(OPS_KEYS)),
        runtimes=_read_runtimes(table),
        budget=read_budget(table.table("budget")),
        power=_read_power(table.table("power")),
        sources=_read_sources(table.table("sources")),
        path=path,
    )
    table.finish()
    _check_sources(target, table)
    return replace(target, budget=_checked_budget(target, table))


def _read_cpu(table: Table, *, is_host: bool) -> Cpu:
    """Read `[cpu]`; what the host's file leaves out is this machine's."""
    here = {"clock_mhz": None, "cores": os.cpu_count() or 1}
    return Cpu(**table.read(CPU_KEYS, absent=here if is_host else None))


def _read_memory(table: Table, *, is_host: bool) -> Memory:
    here = {"ram": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}
    values = table.read(MEMORY_KEYS, tables=("caches",), absent=here if is_host else None)
    entries = table.tables("caches")
    caches = tuple(Cache(**entry.read(CACHE_KEYS)) for entry in entries)
    _refuse_twice(entries, [cache.name for cache in caches])
    memory = Memory(**values, caches=caches)
    nothing, less = "leaves the model nothing", "it must be less than"
    if memory.ram_bytes <= memory.firmware_ram_bytes:
        raise table.error("firmware_ram", nothing, f"{less} ram")
    if memory.flash_bytes is not None and memory.flash_bytes <= memory.firmware_flash_bytes:
        raise table.error("firmware_flash", nothing, f"{less} flash")
    if memory.tcm_bytes is not None and memory.tcm_bytes > memory.ram_bytes:
        raise table.error("tcm", "is larger than ram", "it is a part of ram")
    return memory


def _read_runtimes(table: Table) -> tuple[Runtime, ...]:
    entries = table.tables("runtimes")
    if not entries:
        raise table.error("runtimes", "is missing", "add [[runtimes]] with name and version")
    runtimes = tuple(Runtime(**entry.read(RUNTIME_KEYS)) for entry in entries)
    _refuse_twice(entries, [runtime.name for runtime in runtimes])
    return runtimes


def _read_power(table: Table) -> Power:
    table.read((), tables=("supplies",))
    entries = table.tables("supplies")
    supplies = tuple(Supply(**entry.read(SUPPLY_KEYS)) for entry in entries)
    _refuse_twice(entries, [supply.name for supply in supplies])
    for entry, supply in zip(entries, supplies, strict=True):
        low, high = supply.min_v or supply.voltage_v, supply.max_v or supply.voltage_v
        if not low <= supply.voltage_v <= high:
            what = f"is {supply.voltage_v:g}"
            raise entry.error("voltage_v", what, f"it must lie in [{low:g}, {high:g}]")
        if supply.idle_mw is not None and supply.idle_mw > supply.active_mw:
            raise entry.error("idle_mw", "exceeds active_mw", "an idle board draws less")
        if supply.peak_mw is not None and supply.peak_mw < supply.active_mw:
            raise entry.error("peak_mw", "is below active_mw", "it is the most that was seen")
    return Power(supplies=supplies)


def _refuse_twice(entries: list[Table], names: list[str]) -> None:
    for index, name in enumerate(names):
        if name in names[:index]:
            raise entries[index].error("name", f"is {name!r} again", "write each one once")


def _read_sources(table: Table) -> dict[str, str]:
    """Read `[sources]`, whose keys are dotted: quoted or not."""
    sources = dict(_figures(table.rest()))
    for key, text in sources.items():
        mark = next((m for m in SOURCE_MARKS if isinstance(text, str) and text.startswith(m)), "")
        if not mark or text == mark or text[len(mark) :].isspace():
            begin = f"it must be a string that begins with one of {', '.join(SOURCE_MARKS)}"
            raise table.error(key, f"is {text!r}", f"{begin} and names the source")
    return sources


def _figures(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of everything below a TOML value."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _figures(child, f"{prefix}.{key}" if prefix else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for child in value:  # an array of tables, each with a name
            rest = {key: fact for key, fact in child.items() if key != "name"}
            yield from _figures(rest, f"{prefix}.{child.get('name', '')}")
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
