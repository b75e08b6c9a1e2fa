"""Run firmware on an emulated core and count what it does, exactly.

The core runs in a worker process (`firmware_worker.py`) without peripherals: with the memories the
ELF asks for, semihosting, and nothing else. Instructions are counted by the blocks that were
entered, so instructions that an IT predicates off count as well: they take an issue cycle.

What it does not show: interrupts, the MPU, TrustZone, and on Cortex-M3 and later the fault of an
LDM, LDRD or VLDR at an address that is not a multiple of four.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self, TypeVar

import numpy as np
import numpy.typing as npt

from edgeshrink.artifact import IoSpec
from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.runtimes.elf import Elf, FunctionMap, read_elf
from edgeshrink.runtimes.flash_caches import CacheShape, FlashCaches, Waits
from edgeshrink.runtimes.isa import foreign_instruction, instruction_sizes
from edgeshrink.runtimes.runner import Engine, WorkerProcess, arrange, run_batch
from edgeshrink.strict_toml import nearest
from edgeshrink.toolchain import block_hook, memory_hook

ENGINE: Final = Engine(title="the emulated core", reads="tflite", has_memory=False)
WORKER: Final = str(Path(__file__).with_name("firmware_worker.py"))
SLACK_S: Final = 15.0  # beyond the program's own time: loading, translating, counting
PAGE: Final = 4096
SYSTEM_SPACE: Final = 0xE0000000
DEFAULT_RAM_BYTES: Final = 256 << 10
MARKERS: Final[tuple[str, ...]] = ("es_wait", "es_begin", "es_done")
WAITS: Final = ("fetched", "jumps", "successors", "reads", "misses")  # as in memory_hook.c
BAD_FIRMWARE: Final = "this is a fault of the firmware, not of the file"

Key = TypeVar("Key")
_OP = re.compile(r"(?P<model>\w+)_op_(?P<index>\d+)(?:\.\w+)*")
_STACK_TOPS: Final = ("__stack_top", "_estack", "__StackTop", "_stack_top", "__stack", "_stack",
                      "_sp")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CoreModel:
    """What the emulator calls a core. `cpu` is None for RISC-V."""

    cpu: str | None
    machine: str  # of the ELF
    cpuid: int = 0


# `Cpu.core` of a target -> the emulator's model of it, and what its CPUID register says.
CORE_MODELS: Final[Mapping[str, CoreModel]] = MappingProxyType({
    "cortex-m0+": CoreModel(cpu="CORTEX_M0", machine="EM_ARM", cpuid=0x410CC601),
    "cortex-m3": CoreModel(cpu="CORTEX_M3", machine="EM_ARM", cpuid=0x412FC231),
    "cortex-m4f": CoreModel(cpu="CORTEX_M4", machine="EM_ARM", cpuid=0x410FC241),
    "cortex-m7": CoreModel(cpu="CORTEX_M7", machine="EM_ARM", cpuid=0x411FC272),
    "cortex-m33": CoreModel(cpu="CORTEX_M33", machine="EM_ARM", cpuid=0x410FD213),
    "rv32imc": CoreModel(cpu=None, machine="EM_RISCV"),
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Block:
    """Instructions that were executed one behind the other, and how often."""

    address: int
    code: bytes = field(repr=False)
    op: int | None  # the operator they were executed for; None: between operators, or no model
    entries: int
    taken: int  # how often it was left by a taken branch
    is_thumb: bool = True

    @property
    def n_instructions(self) -> int:
        """Instructions in it, once."""
        return len(instruction_sizes(self.code, is_thumb=self.is_thumb))


@dataclass(frozen=True, kw_only=True)
class FirmwareRun:
    """What one run of a firmware, or one inference, did.

    For an inference the counts begin at its start; the stack is the deepest since reset.
    """

    core: str
    elf: Elf = field(repr=False)
    blocks: tuple[Block, ...] = field(repr=False)
    instructions: int
    taken_branches: int
    stack_bytes: int | None  # None: not known where the stack is
    exit_status: int | None = None  # None: an inference, or a BKPT ended it
    printed: str = ""
    # Of every operator (None: between them, or no model), where caches were simulated.
    waits: Mapping[int | None, Waits] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True)
class Share:
    """Instructions and taken branches of one operator or function."""

    instructions: int
    taken_branches: int


def harness_source(name: str, n_inputs: int, n_outputs: int) -> str:
    """Return the C text of a program that runs a generated model whenever the emulator asks.

    Args:
        name: The model's C name, the prefix of its functions; `name.h` declares them.
        n_inputs: Number of inputs.
        n_outputs: Number of outputs.
    """
    upper = name.upper()
    lines = [
        f'#include "{name}.h"',
        "",
        "#include <stdint.h>",
        "",
        "/* The emulator stops at these functions, reads their arguments and sets their result. */",
        "#if defined(__clang__)",
        "#define MARKER __attribute__((noinline))",
        "#else",
        "#define MARKER __attribute__((noinline, noclone))",
        "#endif",
        "MARKER void es_input(void *data, uint32_t n_bytes)",
        '{ __asm volatile("" : : "r"(data), "r"(n_bytes)); }',
        "MARKER void es_output(void *data, uint32_t n_bytes)",
        '{ __asm volatile("" : : "r"(n_bytes), "r"(data)); }',
        'MARKER int es_wait(int init) { __asm volatile("" : "+r"(init)); return init; }',
        'MARKER void es_begin(void) { __asm volatile("" : : : "memory"); }',
        'MARKER void es_done(void) { __asm volatile("" : : : "memory"); }',
        "",
        "int main(void)",
        "{",
        f"    {name}_init();",
    ]
    for kind, count in (("input", n_inputs), ("output", n_outputs)):
        lines += [
            f"    es_{kind}({name}_{kind}({i}), {upper}_{kind.upper()}_{i}_BYTES);"
            for i in range(count)
        ]
    lines += [
        "    for (;;) {",
        "        if (es_wait(0))",
        f"            {name}_init();",
        "        es_begin();",
        f"        {name}_invoke();",
        "        es_done();",
        "    }",
        "}",
        "",
    ]
    return "\n".join(lines)


def run_firmware(
    elf: Path | Elf,
    core: str,
    *,
    timeout_s: float = 60.0,
    ram_bytes: int | None = None,
    caches: FlashCaches | None = None,
) -> FirmwareRun:
    """Run an ELF from its entry until it exits by semihosting, or stops at BKPT or EBREAK.

    Args:
        elf: The program; it may be any, linked for the core's own memory map.
        core: A key of `CORE_MODELS`.
        timeout_s: How long it may run on this host.
        ram_bytes: RAM of the device; left out, what the program states and at least 256 KiB.
        caches: What to simulate between core and flash (takes two to ten times as long).

    Raises:
        ConfigError: There is no such core.
        ModelError: The ELF is damaged or for another core, does not end in time, or faults: an
            access to no memory, an unaligned access, an undefined instruction; with pc and symbol.
        ToolchainError: The emulator or a host C compiler is not installed.
    """
    program = _program(elf, core)
    process = _open(program, core, None, timeout_s, ram_bytes, caches, keep_state=False)[0]
    try:
        answer = process.ask({"do": "run"}, (), None)
        columns = _receive(process, answer, 0)[0]
    finally:
        process.close()
    return _result(program, core, answer, columns)


def open_firmware(
    elf: Path | Elf,
    core: str,
    *,
    inputs: Sequence[IoSpec] | None = None,
    outputs: Sequence[IoSpec] | None = None,
    keep_state: bool = False,
    timeout_s: float = 60.0,
    caches: FlashCaches | None = None,
) -> FirmwareRunner:
    """Load a firmware with our harness and return its runner; use it in a `with` statement.

    Args:
        elf: A program made of a generated model and `harness_source`.
        core: A key of `CORE_MODELS`.
        inputs: The model's inputs; left out, arrays of bytes.
        outputs: The model's outputs; left out, arrays of bytes.
        keep_state: Whether an inference sees the state the last one left (streaming).
        timeout_s: How long one inference may take on this host.
        caches: What to simulate between core and flash; `count` then says what they missed, and
            an inference takes two to ten times as long.

    Raises:
        ConfigError: There is no such core.
        ModelError: As `run_firmware`; or the ELF has no harness, or other inputs and outputs.
        ToolchainError: The emulator or a host C compiler is not installed.
    """
    program = _program(elf, core)
    if not has_harness(program):
        missing = [name for name in MARKERS if name not in program.labels]
        what = f"has no {', '.join(missing)}"
        raise ModelError(program.name, what, "link it with the harness of `harness_source`")
    markers: dict[str, int] = {
        name: program.labels[name]
        for name in (*MARKERS, "es_input", "es_output")
        if name in program.labels
    }
    process, answer = _open(program, core, markers, timeout_s, None, caches, keep_state=keep_state)
    try:
        specs = [
            _specs(program.name, kind, stated, [n for _, n in answer[f"{kind}s"]])
            for kind, stated in (("input", inputs), ("output", outputs))
        ]
        shapes = [[spec.dtype, list(spec.shape)] for spec in specs[1]]
        process.ask({"do": "specs", "outputs": shapes}, (), None)
    except BaseException:
        process.close()
        raise
    return FirmwareRunner(process, program, core, specs[0], specs[1])


def has_harness(elf: Elf) -> bool:
    """Say whether an ELF holds a model that `open_firmware` can run."""
    return all(name in elf.labels for name in MARKERS)


class FirmwareRunner:
    """A model in firmware on an emulated core; used like `ModelRunner`."""

    def __init__(
        self,
        process: WorkerProcess,
        elf: Elf,
        core: str,
        inputs: tuple[IoSpec, ...],
        outputs: tuple[IoSpec, ...],
    ) -> None:
        self.elf, self.core = elf, core
        self.inputs, self.outputs = inputs, outputs
        self._worker = process

    @property
    def pid(self) -> int:
        """The worker's process number."""
        return self._worker.process.pid

    def run(
        self, *arrays: npt.NDArray[Any], progress: Callable[[int], None] | None = None
    ) -> tuple[npt.NDArray[Any], ...]:
        """Run the model over a batch and return its raw outputs; see `ModelRunner.run`."""
        return run_batch(self._worker, self.inputs, self.outputs, arrays, progress)

    def count(self, *arrays: npt.NDArray[Any]) -> tuple[FirmwareRun, tuple[npt.NDArray[Any], ...]]:
        """Run one inference; return what it did, and its outputs as the model shapes them.

        Args:
            arrays: One per input, as for `run`, with one inference's worth of samples.
        """
        calls, _ = arrange(self._worker.name, self.inputs, arrays)
        if calls and len(calls[0]) != 1:
            what = f"{len(calls[0])} inferences given, must be 1"
            raise ModelError(f"{self._worker.name}: inputs", what, "")
        answer = self._worker.ask({"do": "count"}, calls, None)
        columns, outputs = _receive(self._worker, answer, len(self.outputs))
        return _result(self.elf, self.core, answer, columns), outputs

    def close(self) -> None:
        """End the worker. Closing twice does no harm."""
        self._worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def shares_by_op(run: FirmwareRun) -> dict[int | None, Share]:
    """Return each operator's share of a run; None is what ran between operators."""
    return _shares((block.op, block) for block in run.blocks)


def shares_by_function(run: FirmwareRun) -> dict[str, Share]:
    """Return each function's own share of a run, "" where no symbol says which it is."""
    functions = FunctionMap(run.elf.symbols)
    return _shares((functions.name(block.address), block) for block in run.blocks)


def _shares(pairs: Iterable[tuple[Key, Block]]) -> dict[Key, Share]:
    totals: dict[Key, list[int]] = {}
    for key, block in pairs:
        total = totals.setdefault(key, [0, 0])
        total[0] += block.entries * block.n_instructions
        total[1] += block.taken
    return {
        key: Share(instructions=total[0], taken_branches=total[1]) for key, total in totals.items()
    }


def _program(elf: Path | Elf, core: str) -> Elf:
    if core not in CORE_MODELS:
        raise ConfigError(f"core {core!r}", "can't be emulated", nearest(core, CORE_MODELS))
    program = elf if isinstance(elf, Elf) else read_elf(elf)
    wanted = CORE_MODELS[core].machine
    if program.machine != wanted:
        what = f"is for {program.machine}, {core} runs {wanted}"
        raise ModelError(program.name, what, "choose the target it was compiled for")
    return program


def _open(
    elf: Elf,
    core: str,
    markers: Mapping[str, int] | None,
    timeout_s: float,
    ram_bytes: int | None,
    caches: FlashCaches | None,
    *,
    keep_state: bool,
) -> tuple[WorkerProcess, dict[str, Any]]:
    """Start a worker with the program; return it and its answer."""
    model = CORE_MODELS[core]
    pc, sp = _arm_start(elf) if model.cpu else (elf.entry, None)
    stack, maps = _memories(elf, sp, ram_bytes)
    op_base, op_of = _op_table(elf)
    writes, content = [], b""
    for segment in elf.segments:
        if segment.data:
            writes.append((segment.load_address, len(content), len(segment.data)))
            content += segment.data
    request = {
        "core": core, "cpu": model.cpu, "cpuid": model.cpuid, "timeout_s": timeout_s,
        "maps": maps, "writes": writes, "stack": stack, "sp": sp,
        "pc": pc & ~1, "hook": str(block_hook()),
        "op_base": op_base, "markers": markers, "keep_state": keep_state,
        "memory": None if caches is None else _memory_request(elf, caches),
        "functions": [(s.name, s.address, s.n_bytes) for s in elf.symbols if s.is_function],
    }  # fmt: skip
    process = WorkerProcess(elf.name, content, ENGINE, sys.executable, timeout_s + SLACK_S, WORKER)
    try:
        return process, process.open(request, [op_of])
    except BaseException:
        process.close()
        raise


def _memory_request(elf: Elf, caches: FlashCaches) -> dict[str, Any]:
    """Return what the worker must know to simulate caches in front of what can't be written."""
    flash = [part for part in elf.segments if part.data and not part.is_writable]

    def shape(cache: CacheShape) -> list[int]:
        return [cache.n_sets, cache.n_ways, cache.line_units]

    return {
        "hook": str(memory_hook()),
        "low": min((part.address for part in flash), default=0),
        "end": max((part.address + part.n_bytes for part in flash), default=0),
        "unit_bytes": caches.unit_bytes,
        "code": shape(caches.code),
        "constants": None if caches.constants is None else shape(caches.constants),
    }


def _arm_start(elf: Elf) -> tuple[int, int]:
    """Return the entry and what a Cortex-M loads into SP: the first two words of its vectors.

    The vectors are where the word behind the stack pointer is the ELF's entry; without a usable
    entry, the first two words of the image that look the part.
    """
    for segment in elf.segments:
        words = np.frombuffer(segment.data[: len(segment.data) // 4 * 4], "<u4")
        if elf.entry & 1:
            places = np.flatnonzero(words[1:] == elf.entry).tolist()
        else:
            places = [0] if len(words) > 1 and words[1] & 1 and _is_inside(elf, words[1]) else []
        for index in places:
            sp = int(words[index])
            if sp % 4 == 0 and 0x10000000 <= sp <= 0x40000000:
                return int(words[index + 1]), sp
    if not elf.entry & 1:
        what = f"starts at {elf.entry:#x}, in Arm state; a Cortex-M has Thumb only"
        raise ModelError(elf.name, what, "compile it with -mthumb for a Cortex-M")
    for name in _STACK_TOPS:
        if name in elf.labels:
            return elf.entry, elf.labels[name]
    what = "has no vector table that names its entry, so the stack is not known"
    raise ModelError(elf.name, what, f"define one of {', '.join(_STACK_TOPS)}")


def _is_inside(elf: Elf, address: int) -> bool:
    return any(part.address <= address < part.address + part.n_bytes for part in elf.segments)


def _memories(
    elf: Elf, sp: int | None, ram_bytes: int | None
) -> tuple[tuple[int, int] | None, list[tuple[int, int, bool]]]:
    """Return the stack's (low, top), and what is mapped: (address, bytes, is writable)."""
    ranges: list[tuple[int, int, bool]] = []
    for segment in elf.segments:
        is_ram = segment.is_writable or not segment.data
        ranges.append((segment.address, segment.address + segment.n_bytes, is_ram))
        if segment.load_address != segment.address and segment.data:
            end = segment.load_address + len(segment.data)
            ranges.append((segment.load_address, end, False))
    if sp is None:
        sp = next((elf.labels[name] for name in _STACK_TOPS if name in elf.labels), None)
    stack = None
    if "__stack_limit" in elf.labels and sp is not None and sp > elf.labels["__stack_limit"]:
        stack = elf.labels["__stack_limit"], sp
        ranges.append((*stack, True))
    else:  # a heap may lie anywhere in RAM
        used = [(low, end) for low, end, is_ram in ranges if is_ram]
        base = min([low for low, _ in used] or [(sp or 0x20000000) - 4]) & ~0xFFFF
        top = max([end for _, end in used] + [sp or 0, base + (ram_bytes or DEFAULT_RAM_BYTES)])
        ranges.append((base, min(top, 1 << 32), True))
        if sp is not None:
            below = [end for end in _variable_ends(elf) if end <= sp]
            low = max([base, *below])
            stack = (low, sp) if low < sp else None
    pages: dict[int, bool] = {}
    total = sum(end - low for low, end, _ in ranges)
    if total > 1 << 30:
        raise ModelError(elf.name, f"needs {total} bytes of memory", "this is no microcontroller's")
    if elf.machine == "EM_ARM" and any(end > SYSTEM_SPACE for _, end, _ in ranges):
        what = f"has a segment beyond {SYSTEM_SPACE:#x}, where a Cortex-M has its own registers"
        raise ModelError(elf.name, what, "correct the linker script")
    for low, end, is_ram in ranges:
        for page in range(low // PAGE, -(-end // PAGE)):
            pages[page] = pages.get(page, False) or is_ram
    maps: list[tuple[int, int, bool]] = []
    for page in sorted(pages):
        address, is_ram = page * PAGE, pages[page]
        if maps and maps[-1][0] + maps[-1][1] == address and maps[-1][2] == is_ram:
            maps[-1] = (maps[-1][0], maps[-1][1] + PAGE, is_ram)
        else:
            maps.append((address, PAGE, is_ram))
    return stack, maps


def _variable_ends(elf: Elf) -> list[int]:
    """Return where variables end; sections that only reserve a stack or a heap are none."""
    if not elf.sections:
        return [part.address + part.n_bytes for part in elf.segments if part.is_writable]
    return [
        part.address + part.n_bytes
        for part in elf.sections
        if part.is_writable and not any(w in part.name.lower() for w in ("stack", "heap"))
    ]


def _op_table(elf: Elf) -> tuple[int, npt.NDArray[np.uint16]]:
    """Return which operator a block begins, for each two bytes of code from an address on.

    A generated model has one function per operator, `<name>_op_<k>`: k + 2. Everything in
    `<name>_invoke`, and in the harness that calls it, is between operators: 1. Elsewhere, 0, the
    operator that runs goes on.
    """
    marks: list[tuple[int, int, int]] = []
    models = set()
    for symbol in elf.symbols:
        match = _OP.fullmatch(symbol.name)
        if match and symbol.is_function and int(match["index"]) < 0xFFF0:
            models.add(match["model"])
            marks.append((symbol.address, 2, int(match["index"]) + 2))
    between = {f"{model}_invoke" for model in models} | {"main", *MARKERS}
    for symbol in elf.symbols:
        if symbol.is_function and symbol.name in between:
            marks.append((symbol.address, max(2, symbol.n_bytes), 1))
    if not marks:
        return 0, np.zeros(1, np.uint16)
    base = min(address for address, _, _ in marks)
    end = max(address + n_bytes for address, n_bytes, _ in marks)
    if end - base > 1 << 26:
        return 0, np.zeros(1, np.uint16)
    op_of = np.zeros((end - base) // 2 + 1, np.uint16)
    for address, n_bytes, mark in sorted(marks, key=lambda m: -m[1]):
        at = (address - base) // 2
        op_of[at : at + n_bytes // 2] = mark
    return base, op_of


def _specs(
    name: str, kind: str, stated: Sequence[IoSpec] | None, n_bytes: Sequence[int]
) -> tuple[IoSpec, ...]:
    """Return the specs of one side, checked against the sizes the firmware states."""
    if stated is None:
        return tuple(
            IoSpec(name=f"{kind}{i}", shape=(1, n), dtype="uint8", scale=None, zero_point=None)
            for i, n in enumerate(n_bytes)
        )
    wanted = [math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in stated]
    if wanted != list(n_bytes):
        what = f"{kind}s of {list(n_bytes)} bytes, the model has {wanted}"
        raise ModelError(name, what, "compile the model again")
    return tuple(stated)


def _receive(
    process: WorkerProcess, answer: dict[str, Any], n_outputs: int
) -> tuple[list[npt.NDArray[Any]], tuple[npt.NDArray[Any], ...]]:
    """Return the columns of the block table, and the outputs, that follow an answer."""
    announced = answer.get("arrays", [])
    n_blocks = announced[0][1] if announced else []
    dtypes = [dtype for dtype, _ in announced[:6]]
    wanted = ["uint32", "uint32", "uint32", "uint64", "uint64", "uint8"]
    if dtypes != wanted or len(announced) != 6 + n_outputs or len(n_blocks) != 1:
        raise process.failure("gave an answer that makes no sense")
    arrays = process.receive(announced)
    return arrays[:6], tuple(arrays[6:])


def _result(
    elf: Elf, core: str, answer: dict[str, Any], columns: Sequence[npt.NDArray[Any]]
) -> FirmwareRun:
    addresses, sizes, ops, entries, taken, code = columns
    is_thumb = CORE_MODELS[core].machine == "EM_ARM"
    blocks, at = [], 0
    for address, size, op, n, left in zip(
        addresses.tolist(), sizes.tolist(), ops.tolist(), entries.tolist(), taken.tolist(),
        strict=True,
    ):  # fmt: skip
        blocks.append(
            Block(
                address=address, code=code[at : at + size].tobytes(), op=op - 1 if op else None,
                entries=n, taken=left, is_thumb=is_thumb,
            )
        )  # fmt: skip
        at += size
    _check_isa(elf, core, blocks)
    status = answer.get("status")
    waits = {
        op - 1 if op else None: Waits(**dict(zip(WAITS, counts, strict=True)))
        for op, *counts in answer.get("waits", ())
    }
    return FirmwareRun(
        core=core,
        elf=elf,
        blocks=tuple(blocks),
        instructions=sum(block.entries * block.n_instructions for block in blocks),
        taken_branches=sum(block.taken for block in blocks),
        stack_bytes=answer["stack_bytes"],
        exit_status=None if status is None or status < 0 else status,
        printed=answer["printed"],
        waits=waits,
    )


def _check_isa(elf: Elf, core: str, blocks: Iterable[Block]) -> None:
    """Refuse a run that used instructions which only the emulator has."""
    seen = set()
    for block in blocks:
        if block.code in seen:
            continue
        seen.add(block.code)
        found = foreign_instruction(block.code, core)
        if found is not None:
            place = FunctionMap(elf.symbols).describe(block.address + found[0])
            what = f"executes {found[1]}, which {core} does not have, at pc {place}"
            raise ModelError(elf.name, what, "compile it for this core")
