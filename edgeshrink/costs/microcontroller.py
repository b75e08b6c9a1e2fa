"""Cycles and milliseconds on a microcontroller: instruction timing, waiting for flash, a band.

The code that ran is known exactly, block by block (`runtimes/firmware.py`); what a block costs
where memory never waits comes from the core's table in `data/microcontroller_cycles.json`, what the
board's flash adds from facts of its target (`memory_system.py`). `time_figures` is the one place
where cycles become milliseconds. Bands come from published results of engines that run CMSIS-NN
kernels, predicted with nothing fitted to them (`data/microcontroller_validation.json`, written by
`benchmarks/microcontroller_latency.py`). Of generated C there are no published results: it has the
band that the same timing tables and memory model have there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from edgeshrink.costs.data_files import read_data
from edgeshrink.costs.memory_system import MemorySystem, constants_bytes, memory_system
from edgeshrink.errors import ConfigError, ModelError, ToolchainError
from edgeshrink.profile import Figure
from edgeshrink.runtimes.firmware import Block
from edgeshrink.strict_toml import nearest
from edgeshrink.target import Target

DATA: Final = Path(__file__).parent / "data" / "microcontroller_cycles.json"
BUILD_EXTRA: Final = "python -m pip install 'edgeshrink[build]'"
VALIDATION: Final = Path(__file__).parent / "data" / "microcontroller_validation.json"
# In log space: a board without published results has a band so much wider than its core's, one
# whose flash is not known, and a core without any so much wider than that of Cortex-M4.
OTHER_BOARD_WIDTH: Final = 1.25
UNKNOWN_FLASH_WIDTH: Final = 2.0
OTHER_CORE_WIDTH: Final = 2.0
# On boards without published results, the part of the waiting that may be wrong either way.
WAITING_ERROR: Final = 0.5

# Mnemonic of capstone, without condition and width -> class, the first that fits. In an IT block
# capstone adds the condition, so patterns match from the start and end where the name may go on.
_ARM_CLASSES: Final = (
    (r"v(pop|ldm)", "load_multiple"),
    (r"v(push|stm)", "store_multiple"),
    (r"vldr", "load"),
    (r"vstr", "store"),
    (r"v(div|sqrt)", "fpu_divide"),
    (r"vf?n?m[la][as]\b|vfn?m[as]|vn?ml[as]", "fpu_multiply_accumulate"),
    (r"v", "fpu"),
    (r"pop|ldm", "load_multiple"),
    (r"push|stm", "store_multiple"),
    (r"ldrd", "load_multiple"),
    (r"strd", "store_multiple"),
    (r"ld[ra]", "load"),
    (r"st[rl]", "store"),
    (r"it[te]{0,3}$", "it"),
    (r"tb[bh]$", "table_branch"),
    (r"bl(x|\b)|bl(eq|ne|cs|hs|cc|lo|mi|pl|vs|vc|hi|ls|ge|lt|gt|le)$", "call"),
    (r"bx|b$|b(eq|ne|cs|hs|cc|lo|mi|pl|vs|vc|hi|ls|ge|lt|gt|le)$|cbn?z$", "branch"),
    (r"[su]div", "divide"),
    (r"smlal|umlal|smlsl|umaal", "multiply_accumulate_long"),
    (r"[su]mull", "multiply_long"),
    (r"ml[as]|sml|smml|usada", "multiply_accumulate"),
    (r"mul|smu|smmul", "multiply"),
    (r"mrs|msr", "special"),
    (r"dmb|dsb|isb", "barrier"),
)
_RISCV_CLASSES: Final = (
    (r"l[bhw]u?(sp)?$", "load"),
    (r"s[bhw](sp)?$", "store"),
    (r"beqz?$|bnez?$|b(lt|ge|gt|le)u?z?$", "branch"),
    (r"jalr?$", "call"),
    (r"j$|jr$|ret$", "jump"),
    (r"(div|rem)u?$", "divide"),
    (r"mulhs?u?$|mulhsu$", "multiply_long"),
    (r"mul$", "multiply"),
    (r"csr|rd(cycle|time|instret)", "special"),
    (r"fence", "barrier"),
)
_REGISTERS: Final = re.compile(r"([a-z]+)(\d+)")
_TWO_REGISTERS: Final = re.compile(r"r\d+, r\d+, |, r\d+, r\d+$|\bs\d+, s\d+, r")


@dataclass(frozen=True, kw_only=True)
class Band:
    """How far off an estimate may be: factors on it, and where they come from."""

    low: float
    high: float
    basis: str
    is_validated: bool = False  # by published results of this board and of this kind of engine


@dataclass(frozen=True, kw_only=True)
class BoardValidation:
    """How published results of a board compare with estimates that were not fitted to them."""

    rows: int  # 0: there are none for this engine on this board
    mean_error: float  # of estimate / published - 1, absolute
    within_10: float  # share of the rows within 10 %, in [0, 1]
    basis: str  # whose results, or why there are none
    low: float  # the band, as factors on an estimate
    high: float

    @property
    def is_validated(self) -> bool:
        """Say whether there are published results."""
        return self.rows > 0


@dataclass(frozen=True, kw_only=True)
class TypicalWaiting:
    """What generated code waits for a flash, from models that were compiled and run."""

    factor: float  # cycles on the board over those where memory never waits
    share: float  # of the board's cycles, in [0, 1]
    error: float  # half the width of a band around the factor


@dataclass(frozen=True, kw_only=True)
class _Instruction:
    kind: str
    n_registers: int
    text: str
    reads: frozenset[str] = frozenset()
    writes: frozenset[str] = frozenset()


def cycle_cores() -> tuple[str, ...]:
    """Return the cores there is a table for."""
    return tuple(_data()["cores"])


def block_cycles(
    blocks: Iterable[Block], core: str, *, branch_penalty: int | None = None
) -> tuple[float, ...]:
    """Return the cycles each block took, all its entries together.

    Args:
        blocks: What was executed.
        core: As in `Cpu.core`.
        branch_penalty: Cycles of a pipeline refill, where the core's manual states a range
            (Cortex-M3 and -M4: 1 to 3); left out, the table's own.

    Raises:
        ConfigError: There is no table for this core.
        ModelError: Executed bytes are no instructions.
        ToolchainError: capstone is not installed.
    """
    table = _table(core)
    prices: dict[bytes, tuple[float, float]] = {}
    found = []
    for block in blocks:
        if block.code not in prices:
            prices[block.code] = _price(block, core, table, branch_penalty)
        straight, taken = prices[block.code]
        found.append(block.entries * straight + block.taken * taken)
    return tuple(found)


def time_figures(
    cycles: float,
    target: Target,
    *,
    engine: str,
    error: float = 0.0,
    waiting_share: float = 0.0,
    note: str = "",
) -> dict[str, Figure]:
    """Return the figures `cycles` and, where the clock is known, `latency_ms`, with their band.

    Args:
        cycles: Of one inference on the board, waiting included.
        target: The board.
        engine: "c" or "tflm".
        error: Half the relative width of the band that the estimate of the cycles alone has.
        waiting_share: The part of the cycles in which the core waits for its flash, in [0, 1].
        note: What else to say of the cycles.
    """
    band = cycle_band(target, engine=engine, error=error, waiting_share=waiting_share)
    waits = f"{100 * waiting_share:.0f} % of them waiting for flash; " if waiting_share else ""
    figures = {
        "cycles": Figure(
            value=cycles, unit="cycles", how="modelled", low=cycles * band.low,
            high=cycles * band.high, validated=band.is_validated,
            note=waits + (f"{note}; " if note else "") + band.basis,
        )
    }  # fmt: skip
    if target.cpu.clock_mhz is not None:
        per_ms = 1e3 * target.cpu.clock_mhz
        modelled = figures["cycles"]
        figures["latency_ms"] = Figure(
            value=modelled.value / per_ms, unit="ms", how="modelled", low=modelled.low / per_ms,
            high=modelled.high / per_ms, validated=band.is_validated,
            note=f"cycles at {target.cpu.clock_mhz:g} MHz",
        )  # fmt: skip
    return figures


def cycle_band(
    target: Target, *, engine: str, error: float = 0.0, waiting_share: float = 0.0
) -> Band:
    """Return the band of an estimate of cycles; arguments as of `time_figures`."""
    checked = board_validation(target, engine)
    low, high = math.log(checked.low), math.log(checked.high)
    center, half = (low + high) / 2, (high - low) / 2
    unsure = 0.0 if _has_results(target) else WAITING_ERROR * waiting_share
    half = math.sqrt(half**2 + error**2 + unsure**2)
    return Band(
        low=min(1.0, math.exp(center - half)), high=max(1.0, math.exp(center + half)),
        basis=checked.basis, is_validated=checked.is_validated,
    )  # fmt: skip


def board_validation(target: Target, engine: str) -> BoardValidation:
    """Return what published results say of estimates for an engine on a board.

    Results are of engines that run CMSIS-NN kernels, so they validate engine "tflm". For engine
    "c" and on other boards they give the width of the band, and nothing is called validated.
    """
    data = _validation()
    core, name = target.cpu.core, target.name
    own = _results(name)
    known = data["cores"].get(core)
    stats = known or data["cores"]["other"]
    width = 1.0 if known else OTHER_CORE_WIDTH
    why = [str(stats["basis"])]
    if name not in stats["boards"]:
        width *= OTHER_BOARD_WIDTH
        why.append("none of them on this board: widened")
    if known is None:
        why.append(f"none on {core}: twice that width")
    if memory_system(target) is None and not stats["has_memory"]:
        width *= UNKNOWN_FLASH_WIDTH
        why.append("the target's file does not say how its flash waits: widened")
    center, half = stats["center"], width * stats["half_width"]
    rows = own if engine == "tflm" else []
    errors = [abs(math.exp(-row["residual"]) - 1) for row in rows]
    if engine == "c":
        why[0] = (
            "no published results of generated code; the timing and memory model was compared with "
            + why[0]
        )
    return BoardValidation(
        rows=len(rows),
        mean_error=sum(errors) / len(errors) if errors else 0.0,
        within_10=sum(e <= 0.1 for e in errors) / len(errors) if errors else 0.0,
        basis=", ".join(why),
        low=math.exp(center - half),
        high=math.exp(center + half),
    )


def typical_waiting(target: Target) -> TypicalWaiting:
    """Return what generated code waits for the flash of `target`, before there is any code."""
    system = memory_system(target)
    if system is None:
        return TypicalWaiting(factor=1.0, share=0.0, error=0.0)
    entries = [e for e in _validation()["typical"] if e["core"] == target.cpu.core]
    entries = entries or list(_validation()["typical"])
    entry = min(entries, key=lambda e: _far(e, system))
    scale = system.wait_cycles / entry["wait_cycles"] if entry["wait_cycles"] else 0.0
    extra = [scale * one for one in entry["waiting_per_cycle"]]
    factor = 1 + sum(extra) / len(extra)
    spread = max((abs(math.log((1 + one) / factor)) for one in extra), default=0.0)
    return TypicalWaiting(factor=factor, share=1 - 1 / factor, error=spread)


def _far(entry: Mapping[str, Any], system: MemorySystem) -> float:
    """Return how different the caches of an entry are from those of `system`, in log space."""
    pairs = (
        (entry["unit_bytes"], system.unit_bytes),
        (entry["code_bytes"], system.code_bytes),
        (entry["constants_bytes"], constants_bytes(system)),
        (entry["wait_cycles"], system.wait_cycles),
    )
    return sum(abs(math.log((a + 1) / (b + 1))) for a, b in pairs)


def _has_results(target: Target) -> bool:
    """Say whether what the band rests on was measured on this board, among others."""
    cores = _validation()["cores"]
    return target.name in cores.get(target.cpu.core, cores["other"])["boards"]


def _results(name: str) -> list[Mapping[str, Any]]:
    """Return the published results of a board that estimates were compared with."""
    return [row for row in _validation()["rows"] if row["target"] == name]


@cache
def _validation() -> Mapping[str, Any]:
    return read_data(VALIDATION, ("rows", "cores", "typical"))


@cache
def _data() -> Mapping[str, Any]:
    return read_data(DATA, ("cores",))


def _table(core: str) -> Mapping[str, Any]:
    cores = _data()["cores"]
    if core not in cores:
        raise ConfigError(f"core {core!r}", "has no timing table", nearest(core, cores))
    table = cores[core]
    return {**cores[table["same_as"]], **table} if "same_as" in table else table


def _price(
    block: Block, core: str, table: Mapping[str, Any], branch_penalty: int | None
) -> tuple[float, float]:
    """Return a block's cycles, and what is added when it is left by a taken branch."""
    instructions = _decode(block, needs_registers="per_cycle" in table or "load_use" in table)
    if "per_cycle" in table:
        straight = _dual_issue(instructions, table)
    else:
        straight = 0.0
        previous: _Instruction | None = None
        for instruction in instructions:
            straight += _cycles(instruction, previous, table)
            previous = instruction
    last = instructions[-1]
    if "refill" in table:
        return straight, table["refill"] if branch_penalty is None else branch_penalty
    kind = "return" if last.kind == "load_multiple" else last.kind
    return straight, table["taken"].get(kind, table["taken"]["any"])


def _cycles(
    instruction: _Instruction, previous: _Instruction | None, table: Mapping[str, Any]
) -> float:
    kind = instruction.kind
    if kind == "load" and previous is not None and previous.kind in ("load", "store"):
        kind = "load_behind_access"
    found = _of_table(kind, table["cycles"])
    cycles = found[0] + found[1] * instruction.n_registers if isinstance(found, list) else found
    if (
        "load_use" in table
        and previous is not None
        and previous.kind == "load"
        and previous.writes & instruction.reads
    ):
        cycles += table["load_use"]
    return float(cycles)


def _of_table(kind: str, cycles: Mapping[str, Any]) -> Any:
    """Return a class's entry; a call or jump is a branch, and anything else ordinary work."""
    if kind in cycles:
        return cycles[kind]
    return cycles["branch"] if kind in ("call", "jump") else cycles["alu"]


def _dual_issue(instructions: Sequence[_Instruction], table: Mapping[str, Any]) -> float:
    """Return the cycles in which a dual-issue core has issued the last of the instructions."""
    limits, latencies = table["per_cycle"], table["latency"]
    ready: dict[str, float] = {}  # register -> cycle from which it can be read
    now, used = 0.0, dict.fromkeys(limits, 0)
    for instruction in instructions:
        unit = instruction.kind.partition("_")[0]
        unit = "branch" if unit in ("call", "jump", "table") else unit
        cycles = _cycles(instruction, None, table)
        if cycles == 0:
            continue
        start = max([now, *(ready.get(register, 0.0) for register in instruction.reads)])
        alone = cycles > 1
        is_full = used["all"] >= limits["all"] or used.get(unit, 0) >= limits.get(unit, 2)
        if start == now and (is_full or (alone and used["all"])):
            start = now + 1
        if start > now:
            now, used = start, dict.fromkeys(limits, 0)
        used["all"] += 1
        if unit in used:
            used[unit] += 1
        done = start + max(cycles, latencies.get(instruction.kind, 1))
        ready.update(dict.fromkeys(instruction.writes, done))
        if alone:
            now, used = now + cycles - 1, dict.fromkeys(limits, limits["all"])
    return now + 1


def _decode(block: Block, *, needs_registers: bool) -> list[_Instruction]:
    disassembler = _disassembler(block.is_thumb)
    found, n_bytes = [], 0
    for decoded in disassembler.disasm(block.code, block.address):
        n_bytes += decoded.size
        name, operands = decoded.mnemonic, decoded.op_str
        if block.is_thumb:
            kind = _arm_class(name, operands)
            reads, writes = decoded.regs_access() if needs_registers else ((), ())
            named = [frozenset(disassembler.reg_name(r) for r in side) for side in (reads, writes)]
        else:
            kind = _riscv_class(name)
            named = _riscv_registers(kind, operands)
        found.append(
            _Instruction(
                kind=kind, n_registers=_register_count(kind, operands),
                text=f"{name} {operands}".strip(), reads=named[0], writes=named[1],
            )
        )  # fmt: skip
    if n_bytes != len(block.code) or not found:
        bad = block.code[n_bytes : n_bytes + 4].hex(" ")
        what = f"the bytes {bad} at {block.address + n_bytes:#x} are no known instruction"
        raise ModelError("executed code", what, "compile it for this core")
    return found


@cache
def _disassembler(is_thumb: bool) -> Any:
    try:
        import capstone
    except ImportError as err:
        raise ToolchainError("capstone", "is not installed", BUILD_EXTRA) from err
    if is_thumb:
        mode = capstone.CS_MODE_THUMB | capstone.CS_MODE_MCLASS | capstone.CS_MODE_V8
        found = capstone.Cs(capstone.CS_ARCH_ARM, mode)
    else:
        mode = capstone.CS_MODE_RISCV32 | capstone.CS_MODE_RISCVC
        found = capstone.Cs(capstone.CS_ARCH_RISCV, mode)
    found.detail = True
    return found


def _arm_class(mnemonic: str, operands: str) -> str:
    name = mnemonic.partition(".")[0]
    kind = next((kind for pattern, kind in _ARM_CLASSES if re.match(pattern, name)), "alu")
    if kind == "fpu" and name.startswith("vmov") and _TWO_REGISTERS.search(operands):
        return "fpu_move_two"
    return kind


def _riscv_class(mnemonic: str) -> str:
    name = mnemonic.removeprefix("c.")
    return next((kind for pattern, kind in _RISCV_CLASSES if re.match(pattern, name)), "alu")


def _register_count(kind: str, operands: str) -> int:
    """Return how many words a multiple load or store moves."""
    if kind not in ("load_multiple", "store_multiple"):
        return 0
    if "{" not in operands:
        return 2  # LDRD, STRD
    total = 0
    for part in operands[operands.index("{") + 1 : operands.index("}")].split(","):
        words = 2 if re.match(r"d\d", part.strip()) else 1
        ends = [int(number) for _, number in _REGISTERS.findall(part)]
        total += words * (ends[1] - ends[0] + 1 if len(ends) == 2 else 1)
    return total


def _riscv_registers(kind: str, operands: str) -> list[frozenset[str]]:
    """Return the registers an instruction reads and writes, as far as a load-use stall needs it."""
    names = re.findall(r"\b(?:[ast]\d+|ra|sp|gp|tp|zero)\b", operands)
    if kind in ("store", "branch", "jump") or not names:
        return [frozenset(names), frozenset()]
    # The two-operand forms of compressed instructions read what they write.
    reads = names[1:] if len(names) > 2 or kind in ("load", "call") else names
    return [frozenset(reads), frozenset(names[:1])]
