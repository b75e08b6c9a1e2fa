"""Cycles of executed code on a microcontroller's core: from instruction timing, with a band.

The code that ran is known exactly, block by block (`runtimes/firmware.py`); what a block costs
comes from the core's table in `data/microcontroller_cycles.json`, for memory that never waits. Wait
states and caches are not in it. The band comes from a comparison with published results of another
inference engine, so it validates nothing about other code: it says what the table leaves out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from edgeshrink.errors import ConfigError, ModelError, ToolchainError
from edgeshrink.runtimes.firmware import Block
from edgeshrink.strict_toml import nearest

DATA: Final = Path(__file__).parent / "data" / "microcontroller_cycles.json"
BUILD_EXTRA: Final = "python -m pip install 'edgeshrink[build]'"
# Cores without a comparison take twice its width, in log space.
OTHER_CORE_WIDTH: Final = 2.0

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


def cycle_band(core: str) -> Band:
    """Return the band of an estimate for a core; it is validated for no core."""
    table, comparison = _table(core), _data()["comparison"]
    factors = [factor for row in comparison["factors"].values() for factor in row]
    error = 1 + comparison["left_out_error"]
    low, high = min(1.0, *factors) / error, max(factors) * error
    basis = (
        f"{table['source']}; no wait states; published results of one engine on two boards are "
        f"{min(factors):g} to {max(factors):g} times such an estimate"
    )
    if core not in comparison["cores"]:
        basis += f", none of them on {core}: twice that width"
        low, high = low**OTHER_CORE_WIDTH, high**OTHER_CORE_WIDTH
        if not table["is_published"]:
            low = min(low, 1 / high)
    return Band(low=low, high=high, basis=basis)


@cache
def _data() -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))
    return found


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
