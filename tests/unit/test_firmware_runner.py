"""Firmware on emulated cores.

Oracles: loops whose length is written in assembly, a second count made instruction by instruction,
two programs that differ by a known frame, and sizes that are written in C.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeshrink.artifact import IoSpec
from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.runtimes.elf import image_size, parse_elf, read_elf
from edgeshrink.runtimes.firmware import (
    FirmwareRun,
    harness_source,
    open_firmware,
    run_firmware,
    shares_by_function,
    shares_by_op,
)
from edgeshrink.toolchain import CORES, MemoryLayout, compile_elf, find_cross_cc

Build = Callable[..., Path]
ARM = [core for core in CORES if core.startswith("cortex")]
RETURN = {True: "bx lr", False: "ret"}
NOINLINE = "__attribute__((noinline))"
NAKED = "__attribute__((naked, noinline))"


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def build_it(core: str, *texts: str, layout: MemoryLayout | None = None) -> Path:
        sources = []
        for index, text in enumerate(texts):
            sources.append(tmp_path / f"part{index}.c")
            sources[-1].write_text("#include <stdint.h>\n#include <string.h>\n" + text, "utf-8")
        return compile_elf(
            sources, core, tmp_path / f"{core}.elf", layout=layout, include=[tmp_path]
        )

    return build_it


def assembly(core: str, arm: str, riscv: str) -> str:
    lines = arm if core in ARM else riscv
    head = ".syntax unified\\n" if core in ARM else ""
    return '__asm volatile("' + head + lines.replace("\n", "\\n") + '");'


def known_loop(core: str) -> str:
    """2 instructions per turn and 1 to return."""
    body = assembly(
        core, "1: subs r0, r0, #1\nbne 1b\nbx lr", "1: addi a0, a0, -1\nbnez a0, 1b\nret"
    )
    return f"{NAKED} void known_loop(int n) {{ {body} }}\n"


MODEL_HEADER = """
#ifndef M_H
#define M_H
void m_init(void); void m_invoke(void); void *m_input(int i); void *m_output(int i);
#define M_INPUT_0_BYTES 8
#define M_INPUT_1_BYTES 4
#define M_OUTPUT_0_BYTES 4
#define M_OUTPUT_1_BYTES 8
#endif
"""
MODEL = (
    '#include "m.h"\n'
    + """
static int8_t x[8]; static int32_t y, total; static int16_t z[4];
void m_init(void) { total = 0; }
static __attribute__((noinline)) void m_op_0(void)
{
    y = 0;
    for (int i = 0; i < 8; i++) y += x[i];
}
static __attribute__((noinline)) void m_op_1(void)
{
    total += y;
    for (int i = 0; i < 4; i++) z[i] = (int16_t)(total + i);
}
static int32_t bias;
void m_invoke(void) { m_op_0(); y += bias; m_op_1(); }
void *m_input(int i) { return i ? (void *)&bias : x; }
void *m_output(int i) { return i ? (void *)z : &y; }
"""
)
INPUTS = (IoSpec(name="x", shape=(1, 8), dtype="int8"),
          IoSpec(name="bias", shape=(1, 1), dtype="int32"))  # fmt: skip
OUTPUTS = (IoSpec(name="y", shape=(1, 1), dtype="int32"),
           IoSpec(name="z", shape=(1, 2, 2), dtype="int16"))  # fmt: skip


@pytest.fixture
def model(build: Build, tmp_path: Path) -> Path:
    (tmp_path / "m.h").write_text(MODEL_HEADER, "utf-8")
    return build("cortex-m4f", MODEL, harness_source("m", 2, 2))


def run_main(build: Build, core: str, body: str, before: str = "", **options: Any) -> FirmwareRun:
    return run_firmware(build(core, f"{before}\nint main(void) {{ {body} }}\n"), core, **options)


# Counting


@pytest.mark.parametrize("core", CORES)
def test_a_loop_of_known_length_is_counted_exactly(core: str, build: Build) -> None:
    run = run_main(build, core, "known_loop(1000); return 0;", known_loop(core))
    loop = shares_by_function(run)["known_loop"]
    assert loop.instructions == 2001
    assert loop.taken_branches == 1000  # 999 back and the return
    assert run.exit_status == 0


@pytest.mark.parametrize("core", ["cortex-m3", "cortex-m4f", "cortex-m7", "cortex-m33"])
def test_instructions_that_an_it_predicates_off_count(core: str, build: Build) -> None:
    body = (
        '__asm volatile(".syntax unified\\n1: ands r1, r0, #1\\nit ne\\naddne r2, r2, #1\\n'
        'subs r0, r0, #1\\nbne 1b\\nbx lr");'
    )
    before = f"{NAKED} void it_loop(int n) {{ {body} }}\n"
    run = run_main(build, core, "it_loop(1000); return 0;", before)
    assert shares_by_function(run)["it_loop"].instructions == 5001


@pytest.mark.parametrize("core", CORES)
def test_the_count_of_a_whole_program_is_that_of_single_steps(core: str, build: Build) -> None:
    elf = build(
        core,
        f"{NOINLINE} uint32_t mix(uint32_t h, uint32_t b) {{ return h * 31 + b; }}"
        f"{NOINLINE} uint32_t stir(uint32_t h) {{ return h ^ h << 3; }}"
        "static uint8_t bytes[64]; int main(void) { uint32_t hash = 1; "
        "for (int i = 0; i < 64; i++) { bytes[i] = (uint8_t)(i * 7); } "
        "for (int i = 0; i < 64; i++) "
        "{ hash = bytes[i] & 4 ? mix(hash, bytes[i]) : stir(hash); } return hash & 0xff; }",
    )
    run = run_firmware(elf, core)
    if core in ARM:  # a hook per instruction does not see what an IT predicates off
        halves = [half for block in run.blocks for (half,) in struct.iter_unpack("<H", block.code)]
        assert not any(half & 0xFF00 == 0xBF00 and half & 0xF for half in halves)
    assert run.instructions == single_steps(elf, core)


def single_steps(elf: Path, core: str) -> int:
    """Count the calls of an instruction hook until the program stops, in an emulator of our own."""
    import unicorn as u
    from elftools.elf.elffile import ELFFile
    from unicorn import arm_const, riscv_const

    arm = core in ARM
    if arm:
        uc = u.Uc(u.UC_ARCH_ARM, u.UC_MODE_THUMB)
        name = {"cortex-m0+": "M0", "cortex-m4f": "M4"}.get(core, core[7:].upper())
        uc.ctl_set_cpu_model(getattr(arm_const, f"UC_CPU_ARM_CORTEX_{name}"))
        uc.mem_map(0xE000E000, 0x1000)
    else:
        uc = u.Uc(u.UC_ARCH_RISCV, u.UC_MODE_RISCV32)
    uc.mem_map(0x08000000, 1 << 20)
    uc.mem_map(0x20000000, 1 << 20)
    with elf.open("rb") as file:
        parsed = ELFFile(file)
        for segment in parsed.iter_segments("PT_LOAD"):
            uc.mem_write(segment["p_paddr"], segment.data())
        entry = parsed["e_entry"]
        symbols = parsed.get_section_by_name(".symtab")
        top = symbols.get_symbol_by_name("__stack_top")[0]["st_value"]
    uc.reg_write(arm_const.UC_ARM_REG_SP if arm else riscv_const.UC_RISCV_REG_SP, top)
    seen = [0]

    def count(uc: Any, address: int, size: int, data: Any) -> None:
        seen[0] += 1

    uc.hook_add(u.UC_HOOK_CODE, count)
    uc.hook_add(u.UC_HOOK_INTR, lambda uc, number, data: uc.emu_stop())
    if arm:
        uc.emu_start(entry, 0xFFFFFFFE)
    else:
        with pytest.raises(u.UcError, match="INSN_INVALID"):  # how it reports EBREAK
            uc.emu_start(entry, 0xFFFFFFFE)
    return seen[0]


def test_operators_are_told_apart_even_where_they_share_a_kernel(
    build: Build, tmp_path: Path
) -> None:
    (tmp_path / "m.h").write_text(
        "void m_init(void); void m_invoke(void); void *m_input(int i); void *m_output(int i);\n"
        "#define M_INPUT_0_BYTES 4\n#define M_OUTPUT_0_BYTES 4\n", "utf-8"
    )  # fmt: skip
    ops = "".join(
        f'{NAKED} void m_op_{k}(void) {{ __asm volatile(".syntax unified\\npush {{r4, lr}}\\n'
        f'movs r0, #{n}\\nbl known_loop\\npop {{r4, pc}}"); }}\n'
        for k, n in ((0, 10), (1, 20), (2, 100))
    )
    elf = build(
        "cortex-m4f",
        known_loop("cortex-m4f") + ops + '#include "m.h"\nstatic int x;\nvoid m_init(void) {}\n'
        "void m_invoke(void) { m_op_0(); m_op_1(); m_op_2(); known_loop(7); m_op_1(); }\n"
        "void *m_input(int i) { return &x; }\nvoid *m_output(int i) { return &x; }\n",
        harness_source("m", 1, 1),
    )
    with open_firmware(elf, "cortex-m4f") as runner:
        run, _ = runner.count(np.zeros((1, 4), np.uint8))
    shares = shares_by_op(run)
    assert {op: share.instructions for op, share in shares.items() if op is not None} == {
        0: 4 + 21,
        1: 2 * (4 + 41),
        2: 4 + 201,
    }
    assert shares[None].instructions >= 15 + 5  # known_loop(7), and the calls
    total = sum(share.instructions for share in shares.values())
    assert (
        total
        == run.instructions
        == sum(share.instructions for share in shares_by_function(run).values())
    )


def test_counting_an_inference_repeats_to_the_instruction(model: Path) -> None:
    arrays = np.arange(8, dtype=np.int8).reshape(1, 8), np.ones((1, 1), np.int32)
    with open_firmware(model, "cortex-m4f", inputs=INPUTS, outputs=OUTPUTS) as runner:
        first, _ = runner.count(*arrays)
        runner.run(*arrays)
        second, _ = runner.count(*arrays)
    assert first == second


# Stack and image


@pytest.mark.parametrize("core", ["cortex-m0+", "cortex-m4f", "rv32imc"])
def test_a_larger_frame_takes_that_much_more_stack(core: str, build: Build) -> None:
    stacks = []
    for n_bytes in (64, 320):
        body = assembly(
            core,
            f"sub sp, #{n_bytes}\nmov r1, sp\nstr r0, [r1]\nadd sp, #{n_bytes}\nbx lr",
            f"addi sp, sp, -{n_bytes}\nsw a0, 0(sp)\naddi sp, sp, {n_bytes}\nret",
        )
        before = f"{NAKED} void frame(int x) {{ {body} }}"
        stacks.append(run_main(build, core, "frame(0x5eed1234); return 0;", before).stack_bytes)
    assert stacks[0] is not None
    assert stacks[1] == stacks[0] + 256


def test_a_stack_that_is_too_small_is_named(build: Build) -> None:
    before = "__attribute__((noinline)) int deep(volatile int *p) { volatile int a[64]; a[0] = *p; "
    before += "a[1] = deep(a) + 1; return a[1]; }"
    with pytest.raises(ModelError, match=r"deep.*give the stack more room"):
        run_main(build, "cortex-m4f", "volatile int x = 0; return deep(&x);", before)


def test_every_byte_of_an_image_is_found_in_its_part(build: Build) -> None:
    def sizes(constants: int, data: int, zeroed: int) -> tuple[int, int, int, int]:
        text = (
            f"const uint8_t fixed[{constants}] = {{1}}; uint8_t set[{data}] = {{2}}; "
            f"uint8_t unset[{zeroed}]; int main(void) {{ volatile int i = 3; "
            "return fixed[i] + set[i] + unset[i]; }"
        )
        size = image_size(read_elf(build("cortex-m4f", text)))
        assert size.flash == size.code + size.constants + size.data
        assert size.static_ram == size.data + size.zeroed
        return size.code, size.constants, size.data, size.zeroed

    small, large = sizes(100, 40, 60), sizes(1100, 440, 572)
    assert [b - a for a, b in zip(small, large, strict=True)] == [0, 1000, 400, 512]
    assert small[2:] == (40, 60)


# As vendors' linker scripts have it: the stack ends where RAM does, with a heap below it.
VENDOR_SCRIPT = """
ENTRY(Reset_Handler)
MEMORY { FLASH (rx) : ORIGIN = 0, LENGTH = 64K  RAM (rwx) : ORIGIN = 0x20000000, LENGTH = 32K }
_estack = ORIGIN(RAM) + LENGTH(RAM);
SECTIONS {
  .text : { KEEP(*(.isr_vector)) *(.text .text.* .rodata .rodata.*) } >FLASH
  .data : { _sdata = .; *(.data .data.*) . = ALIGN(4); _edata = .; } >RAM AT>FLASH
  _sidata = LOADADDR(.data);
  .bss (NOLOAD) : { *(.bss .bss.*) . = ALIGN(4); _end = .; } >RAM
  ._user_heap_stack (NOLOAD) : { . += 4096; } >RAM
  /DISCARD/ : { *(.ARM.exidx*) *(.comment) }
}
"""
VENDOR_PROGRAM = """
#include <stdint.h>
extern uint32_t _estack[], _sidata[], _sdata[], _edata[], _end[];
uint32_t set[4] = {1, 2, 3, 4}, unset[8];
const uint32_t fixed[25] = {7};
__attribute__((naked, noinline)) void frame(int x)
{
    __asm volatile(".syntax unified\\nsub sp, #200\\nmov r1, sp\\nstr r0, [r1]\\n"
                   "add sp, #200\\nbx lr");
}
void Reset_Handler(void)
{
    for (volatile uint32_t *d = _sdata, *s = _sidata; d < _edata;) *d++ = *s++;
    for (int i = 0; i < 100; i++) ((volatile uint32_t *)_end)[i] = 0x12345678; /* a heap */
    unset[1] = set[2] + fixed[unset[7] & 15];
    frame(0x5eed1234);
    if (unset[1] == 10) __asm volatile("bkpt 0");
    for (;;) ;
}
__attribute__((section(".isr_vector"), used)) const void *const table[4] =
    {_estack, (void *)Reset_Handler};
"""


@pytest.mark.parametrize("entry", ["Reset_Handler", "0"])
def test_an_elf_with_another_memory_map_is_run_and_measured(tmp_path: Path, entry: str) -> None:
    script, source, elf = (tmp_path / name for name in ("vendor.ld", "vendor.c", "vendor.elf"))
    script.write_text(VENDOR_SCRIPT, "utf-8")
    source.write_text(VENDOR_PROGRAM, "utf-8")
    command = [*find_cross_cc("cortex-m4f", "zig"), "-O2", "-g0", "-nostdlib", "-fno-builtin",
               "-fno-unwind-tables", "-fno-asynchronous-unwind-tables", "-fomit-frame-pointer",
               f"-Wl,-T,{script}", f"-Wl,-e,{entry}", str(source), "-o", str(elf)]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    run = run_firmware(elf, "cortex-m4f")
    assert run.stack_bytes is not None
    assert 200 <= run.stack_bytes <= 200 + 4 * 9  # what the handler itself may save
    size = image_size(read_elf(elf))
    assert (size.data, size.zeroed) == (16, 32)  # neither heap nor stack
    assert size.constants == 100 + 16  # among the code: told by their symbols


# Ends


@pytest.mark.parametrize("core", CORES)
def test_variables_are_initialized_and_the_status_comes_back(core: str, build: Build) -> None:
    before = "static volatile int set = 40; static volatile int unset;"
    assert run_main(build, core, "return set + unset + 3;", before).exit_status == 43


@pytest.mark.parametrize(("core", "stop"), [("cortex-m0+", "bkpt 0"), ("rv32imc", "ebreak")])
def test_a_breakpoint_ends_a_program_without_a_status(core: str, stop: str, build: Build) -> None:
    body = f'known_loop(10); __asm volatile("{stop}"); return 5;'
    run = run_main(build, core, body, known_loop(core))
    assert run.exit_status is None
    assert shares_by_function(run)["known_loop"].instructions == 21


def test_what_a_program_prints_is_kept(build: Build) -> None:
    body = """
    register int op __asm("r0") = 4; register const char *text __asm("r1") = "hello\\n";
    __asm volatile("bkpt 0xab" : "+r"(op) : "r"(text) : "memory"); return 0;"""
    run = run_main(build, "cortex-m33", body)
    assert (run.printed, run.exit_status) == ("hello\n", 0)


# Faults: a clear error with pc and symbol

FAULTS = {
    "unmapped read": ("*(volatile int *)0x30000000;", r"reads 4 .*0x30000000, where no memory is"),
    "unmapped write": ("*(volatile int *)0x30000000 = 1;", r"writes 4 .* at 0x30000000"),
    "peripheral": ("*(volatile int *)0x40021000;", r"0x40021000.*no peripherals"),
    "flash": ("*(volatile int *)0x08000000 = 1;", r"writes 4 .* at 0x8000000, which is flash"),
}


@pytest.mark.parametrize(
    ("core", "fault"),
    [*(("cortex-m4f", fault) for fault in FAULTS), ("cortex-m0+", "unmapped read"),
     ("rv32imc", "unmapped write"), ("rv32imc", "peripheral")],
)  # fmt: skip
def test_a_wrong_access_names_address_and_function(core: str, fault: str, build: Build) -> None:
    statement, message = FAULTS[fault]
    with pytest.raises(ModelError, match=message) as caught:
        run_main(build, core, "culprit(); return 0;", f"{NOINLINE} void culprit(void) "
                 f"{{ {statement} }}")  # fmt: skip
    assert "at pc 0x8" in str(caught.value)
    assert "(culprit" in str(caught.value)


def test_a_jump_to_nowhere_is_named(build: Build) -> None:
    with pytest.raises(ModelError, match=r"jumps to 0x30000000, where no code is"):
        run_main(build, "cortex-m4f", "((void (*)(void))0x30000001)(); return 0;")


def test_only_a_core_that_needs_it_refuses_an_unaligned_access(build: Build) -> None:
    body = '__asm volatile("ldr r1, [%0]" : : "r"(bytes + 1) : "r1"); return 0;'
    before = "static uint32_t words[4]; static uint8_t *volatile at = (uint8_t *)words;"
    body = f"uint8_t *bytes = at; {body}"
    assert run_main(build, "cortex-m4f", body, before).exit_status == 0
    with pytest.raises(ModelError, match=r"not aligned, at pc 0x8.*\(main"):
        run_main(build, "cortex-m0+", body, before)


# smlad r0, r0, r1, r0; sxtb16 r0, r0; it eq (with nop); vadd.f32 s0, s0, s1; udiv r0, r0, r1
LACKING = {
    ("cortex-m0+", "0xfb20, 0x0001"), ("cortex-m0+", "0xbf08, 0xbf00"), ("cortex-m0+", "0xb100"),
    ("cortex-m0+", "0xfbb0, 0xf0f1"), ("cortex-m0+", "0xf100, 0x0001"),
    ("cortex-m3", "0xfb20, 0x0001"), ("cortex-m3", "0xfa2f, 0xf080"),
    ("cortex-m3", "0xee30, 0x0a20"), ("cortex-m4f", "0xee30, 0x0b01"),
    ("rv32imc", "0x22af, 0x1001"), ("rv32imc", "0x0553, 0x00b5"), ("rv32imc", "0x0000"),
}  # fmt: skip
HAVING = {
    ("cortex-m4f", "0xfb20, 0x0001"), ("cortex-m33", "0xfb20, 0x0001"),
    ("cortex-m7", "0xfa2f, 0xf080"), ("cortex-m3", "0xbf08, 0xbf00"),
    ("cortex-m3", "0xfbb0, 0xf0f1"), ("cortex-m4f", "0xee30, 0x0a20"),
    ("cortex-m3", "0xfa0f, 0xf080"),  # sxth.w: not of the DSP extension
    ("cortex-m0+", "0xf3ef, 0x8005"), ("cortex-m0+", "0xf3bf, 0x8f4f"),
}  # fmt: skip


def with_code(halves: str) -> str:
    return f'__asm volatile(".short {halves}" : : : "memory", "cc"); return 0;'


@pytest.mark.parametrize(("core", "halves"), sorted(LACKING))
def test_an_instruction_that_the_core_lacks_is_refused(
    core: str, halves: str, build: Build
) -> None:
    with pytest.raises(ModelError, match=r"at pc 0x8.*\(main") as caught:
        run_main(build, core, with_code(halves))
    assert "compile it for this core" in str(caught.value)


@pytest.mark.parametrize(("core", "halves"), sorted(HAVING))
def test_an_instruction_that_the_core_has_is_run(core: str, halves: str, build: Build) -> None:
    assert run_main(build, core, with_code(halves)).exit_status == 0


def test_a_system_call_is_refused(build: Build) -> None:
    with pytest.raises(ModelError, match="calls SVC"):
        run_main(build, "cortex-m4f", '__asm volatile("svc 0"); return 0;')
    with pytest.raises(ModelError, match="calls ECALL"):
        run_main(build, "rv32imc", '__asm volatile("ecall"); return 0;')


def test_a_program_that_does_not_end_is_stopped_and_says_where_it_is(build: Build) -> None:
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"did not end within 0\.5 s, at pc 0x8.*\(spin"):
        run_main(build, "cortex-m4f", "spin(); return 0;",
                 f"{NOINLINE} void spin(void) {{ for (;;) __asm volatile(\"\"); }}",
                 timeout_s=0.5)  # fmt: skip
    assert time.monotonic() - start < 10


# Files


def test_the_wrong_target_is_named(build: Build) -> None:
    elf = build("rv32imc", "int main(void) { return 0; }")
    with pytest.raises(ModelError, match="EM_RISCV, cortex-m4f runs EM_ARM"):
        run_firmware(elf, "cortex-m4f")
    with pytest.raises(ConfigError, match="cortex-m4f"):
        run_firmware(elf, "cortex-m4")


def test_an_elf_of_another_class_is_refused() -> None:
    with pytest.raises(ModelError, match=r"64-bit"):
        read_elf(Path(os.path.realpath("/proc/self/exe")))


def test_what_is_no_elf_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="can't be read"):
        read_elf(tmp_path / "absent.elf")
    with pytest.raises(ModelError, match="is no ELF file"):
        parse_elf(b"MZ" + bytes(100), name="a")
    with pytest.raises(ModelError, match="damaged"):
        parse_elf(b"\x7fELF", name="a")


def test_a_truncated_or_changed_elf_is_refused_or_read_but_never_crashes(build: Build) -> None:
    data = build("cortex-m4f", "int main(void) { return 0; }").read_bytes()
    rng = np.random.default_rng(0)
    messages = []
    for turn in range(300):
        changed = bytearray(data)
        if turn % 3 == 0:
            del changed[int(rng.integers(4, len(data))) :]
        else:
            edge = 52 if turn % 3 == 1 else len(data)
            for at in rng.integers(4, edge, 4):
                changed[int(at)] = int(rng.integers(0, 256))
        try:
            parse_elf(bytes(changed), name="changed.elf")
        except ModelError as err:
            messages.append(str(err))
    assert 100 < len(messages) < 300
    assert all("changed.elf" in message for message in messages)


def test_a_segment_outside_any_microcontroller_is_refused(build: Build) -> None:
    data = bytearray(build("cortex-m4f", "int main(void) { return 0; }").read_bytes())
    offset = struct.unpack_from("<I", data, 28)[0]  # e_phoff
    struct.pack_into("<I", data, offset + 20, 0x70000000)  # p_memsz of the first
    with pytest.raises(ModelError, match=r"needs \d+ bytes of memory"):
        run_firmware(parse_elf(bytes(data), name="huge.elf"), "cortex-m4f")


def test_a_segment_among_the_cores_registers_is_refused(build: Build) -> None:
    data = bytearray(build("cortex-m4f", "int main(void) { return 0; }").read_bytes())
    offset = struct.unpack_from("<I", data, 28)[0]  # e_phoff
    struct.pack_into("<I", data, offset + 8, 0xE0001000)  # p_vaddr of the first
    with pytest.raises(ModelError, match=r"beyond 0xe0000000.*linker script"):
        run_firmware(parse_elf(bytes(data), name="odd.elf"), "cortex-m4f")


# The model's interface


def test_a_batch_gives_what_the_model_computes(model: Path) -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(-128, 128, (20, 8), np.int8)
    bias = rng.integers(-1000, 1000, (20, 1), np.int32)
    done: list[int] = []
    with open_firmware(model, "cortex-m4f", inputs=INPUTS, outputs=OUTPUTS) as runner:
        y, z = runner.run(x, bias, progress=done.append)
    expected = x.sum(axis=1, dtype=np.int32) + bias[:, 0]
    np.testing.assert_array_equal(y[:, 0], expected)
    wide = expected[:, None] + np.arange(4)
    np.testing.assert_array_equal(z, wide.astype(np.int16).reshape(20, 2, 2))
    assert done[-1] == 20


def test_state_is_kept_only_if_asked_for(model: Path) -> None:
    x, bias = np.ones((3, 8), np.int8), np.zeros((3, 1), np.int32)
    first = {}
    for keep in (False, True):
        with open_firmware(
            model, "cortex-m4f", inputs=INPUTS, outputs=OUTPUTS, keep_state=keep
        ) as runner:
            first[keep] = runner.run(x, bias)[1][:, 0, 0].tolist()
    assert first == {False: [8, 8, 8], True: [8, 16, 24]}


def test_counting_returns_the_outputs_too(model: Path) -> None:
    x, bias = np.full((1, 8), 2, np.int8), np.full((1, 1), -6, np.int32)
    with open_firmware(model, "cortex-m4f", inputs=INPUTS, outputs=OUTPUTS) as runner:
        run, (y, z) = runner.count(x, bias)
    assert (y.tolist(), z.tolist()) == ([[10]], [[[10, 11], [12, 13]]])
    assert run.instructions > 0


def test_without_specs_inputs_and_outputs_are_bytes(model: Path) -> None:
    with open_firmware(model, "cortex-m4f") as runner:
        assert [spec.shape for spec in runner.inputs] == [(1, 8), (1, 4)]
        y, _ = runner.run(np.ones((1, 8), np.uint8), np.zeros((1, 4), np.uint8))
    assert y.view("<i4").tolist() == [[8]]


def test_sizes_that_differ_from_the_models_are_refused(model: Path) -> None:
    wrong = (INPUTS[0], IoSpec(name="bias", shape=(1, 2), dtype="int32"))
    with pytest.raises(ModelError, match=r"inputs of \[8, 4\] bytes, the model has \[8, 8\]"):
        open_firmware(model, "cortex-m4f", inputs=wrong, outputs=OUTPUTS)


def test_firmware_without_a_harness_is_refused(build: Build) -> None:
    elf = build("cortex-m4f", "int main(void) { return 0; }")
    with pytest.raises(ModelError, match=r"has no es_wait.*harness_source"):
        open_firmware(elf, "cortex-m4f")


def test_a_worker_that_is_killed_is_an_error(model: Path) -> None:
    with open_firmware(model, "cortex-m4f") as runner:
        os.kill(runner.pid, signal.SIGKILL)
        with pytest.raises(ModelError, match="SIGKILL"):
            runner.run(np.zeros((1, 8), np.uint8), np.zeros((1, 4), np.uint8))
        with pytest.raises(ModelError, match="has ended"):
            runner.run(np.zeros((1, 8), np.uint8), np.zeros((1, 4), np.uint8))


def test_a_worker_that_hangs_is_ended_by_the_parent(model: Path) -> None:
    with open_firmware(model, "cortex-m4f") as runner:
        runner._worker.timeout_s = 0.5
        runner._worker.socket.settimeout(0.5)
        os.kill(runner.pid, signal.SIGSTOP)
        with pytest.raises(ModelError, match="no sign of life"):
            runner.run(np.zeros((1, 8), np.uint8), np.zeros((1, 4), np.uint8))
        assert runner._worker.process.poll() is not None
