"""Instructions that the emulator executes although the core does not have them.

Unicorn 2.1.4 lets a Cortex-M0 run IT, CBZ and CBNZ, a Cortex-M3 the DSP instructions, and an RV32
core atomics and floating point; what else a core lacks it refuses by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from edgeshrink.errors import ToolchainError

BUILD_EXTRA: Final = "python -m pip install 'edgeshrink[build]'"
# Of Armv7E-M, without condition: saturating and parallel arithmetic, 16-bit products, packing.
_DSP: Final = re.compile(
    r"(q|s|u|sh|uh|uq)(add|sub)(8|16)|(q|s|u|sh|uh|uq)(asx|sax)|qd?(add|sub)(?!\d)|sel(?!\w{3})"
    r"|sml[as](bb|bt|tb|tt|wb|wt|d)|smlal(bb|bt|tb|tt|d)|smlsld|smu(ad|sd|l(bb|bt|tb|tt|wb|wt))"
    r"|smm(ul|la|ls)|umaal|usada?8|[su]sat16|[su]xta?b16|[su]xta[bh]|pkh(bt|tb)"
)
_RV32IMC_OPCODES: Final = frozenset(
    (0x03, 0x0F, 0x13, 0x17, 0x23, 0x33, 0x37, 0x63, 0x67, 0x6F, 0x73)
)


def foreign_instruction(code: bytes, core: str) -> tuple[int, str] | None:
    """Return offset and description of the first instruction of `code` that `core` lacks."""
    checks = {
        "cortex-m0+": _not_v6m,
        "cortex-m3": _not_v7m,
        "rv32imc": _not_rv32imc,
    }
    return next(checks[core](code), None) if core in checks else None


def instruction_sizes(code: bytes, *, is_thumb: bool) -> list[int]:
    """Return the size in bytes of each instruction of Thumb or compressed RISC-V code."""
    sizes, at = [], 0
    while at < len(code):
        if is_thumb:
            size = 4 if code[at + 1] >> 3 in (0x1D, 0x1E, 0x1F) else 2
        else:
            size = 4 if code[at] & 3 == 3 else 2
        sizes.append(size)
        at += size
    return sizes


def _halves(code: bytes, *, is_thumb: bool) -> Iterator[tuple[int, int, int | None]]:
    """Yield (offset, first halfword, second halfword or None) of each instruction."""
    at = 0
    for size in instruction_sizes(code, is_thumb=is_thumb):
        first = int.from_bytes(code[at : at + 2], "little")
        second = int.from_bytes(code[at + 2 : at + 4], "little") if size == 4 else None
        yield at, first, second
        at += size


def _not_v6m(code: bytes) -> Iterator[tuple[int, str]]:
    for at, first, second in _halves(code, is_thumb=True):
        if second is None:
            if first & 0xFF00 == 0xBF00 and first & 0xF:
                yield at, "IT"
            elif first & 0xF500 == 0xB100:
                yield at, "CBNZ" if first & 0x0800 else "CBZ"
        elif not (
            (first & 0xF800 == 0xF000 and second & 0xD000 == 0xD000)  # BL
            or (first & 0xFFE0 == 0xF380 and second & 0xD000 == 0x8000)  # MSR
            or (first & 0xFFF0 == 0xF3B0 and second & 0xD000 == 0x8000)  # DSB, DMB, ISB
            or (first & 0xFFE0 == 0xF3E0 and second & 0xD000 == 0x8000)  # MRS
            or (first & 0xFFF0 == 0xF7F0 and second & 0xF000 == 0xA000)  # UDF
        ):
            yield at, f"{first:04x} {second:04x}, an instruction of Armv7-M"


def _not_v7m(code: bytes) -> Iterator[tuple[int, str]]:
    at = 0
    for _, size, name, _ in _thumb_disassembler().disasm_lite(code, 0):
        if _DSP.match(name):
            yield at, name.upper()
        at += size


def _not_rv32imc(code: bytes) -> Iterator[tuple[int, str]]:
    for at, first, second in _halves(code, is_thumb=False):
        if second is not None:
            if first & 0x7F not in _RV32IMC_OPCODES:
                yield at, f"{second:04x}{first:04x}, of another extension"
        elif (first & 3 == 0 and first >> 13 in (1, 3, 5, 7)) or (
            first & 3 == 2 and first >> 13 in (1, 3, 5, 7)
        ):
            yield at, f"{first:04x}, a compressed floating-point access"


def _thumb_disassembler() -> Any:
    try:
        import capstone
    except ImportError as err:
        raise ToolchainError("capstone", "is not installed", BUILD_EXTRA) from err
    mode = capstone.CS_MODE_THUMB | capstone.CS_MODE_MCLASS | capstone.CS_MODE_V8
    return capstone.Cs(capstone.CS_ARCH_ARM, mode)
