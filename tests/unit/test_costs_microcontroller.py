"""Cycles of executed code. Oracle: sums made by hand from the cores' manuals, written as sums."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeshrink.cli import main
from edgeshrink.costs import microcontroller
from edgeshrink.costs.data_files import read_data
from edgeshrink.costs.microcontroller import (
    block_cycles,
    board_validation,
    cycle_band,
    cycle_cores,
    time_figures,
    typical_waiting,
)
from edgeshrink.emulation import emulate_firmware
from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.runtimes.elf import image_size, read_elf
from edgeshrink.runtimes.firmware import Block, harness_source, run_firmware
from edgeshrink.target import list_targets, load_target
from edgeshrink.toolchain import compile_elf


def block(code: str, *, entries: int = 1, taken: int = 0, core: str = "cortex-m4f") -> Block:
    return Block(
        address=0x08000100, code=bytes.fromhex(code), op=None, entries=entries, taken=taken,
        is_thumb=core.startswith("cortex"),
    )  # fmt: skip


def cycles(core: str, code: str, *, entries: int = 1, taken: int = 0) -> float:
    (found,) = block_cycles([block(code, entries=entries, taken=taken, core=core)], core)
    return found


# push {r4-r7, lr}; pop {r4-r7, pc}
PUSH_5, POP_5_PC = "f0b5", "f0bd"
# ldr r0, [r1]; ldr r2, [r1, #4]; str r0, [r1]; adds r0, r0, #1; muls r0, r2, r0
LDR, LDR_2, STR, ADDS, MULS = "0868", "4a68", "0860", "0130", "5043"
# bne .-4; b .; bx lr; bl .+4; cbz r0
BNE, B, BX_LR, BL, CBZ = "fcd1", "fee7", "7047", "00f000f8", "00b1"
# smlad r0, r0, r1, r0; mla r0, r1, r2, r0; smull r0, r3, r2, r1; smlal likewise; sdiv r0, r1, r2
SMLAD, MLA, SMULL, SMLAL, SDIV = "20fb0100", "01fb0230", "82fb0301", "c2fb0301", "91fbf2f0"
# ldrd r0, r1, [r2]; strd r0, r1, [r2]; push.w {r4-r8, lr}; ldm r0!, {r1, r2, r3}; it eq; tbb
LDRD, STRD, PUSH_W_6, LDM_3, IT, TBB = (
    "d2e90001",
    "c2e90001",
    "2de9f041",
    "0ec8",
    "08bf",
    "dfe800f0",
)
# vldr s0, [r0]; vadd.f32; vfma.f32; vdiv.f32; vpush {d8, d9}; vmov r0, r1, d0
VLDR, VADD, VFMA, VDIV = "90ed000a", "30ee200a", "a0ee200a", "80ee200a"
VPUSH_2D, VMOV_2 = "2ded048b", "51ec100b"
# mrs r0, primask; dmb; sxtb16 r0, r0; ssat r0, #8, r0
MRS, DMB, SXTB16, SSAT = "eff31080", "bff35f8f", "2ffa80f0", "00f30700"


@pytest.mark.parametrize(
    ("core", "code", "taken", "expected"),
    [
        # Cortex-M0+: DDI 0484C, table 3.1
        ("cortex-m0+", PUSH_5, 0, 1 + 5),
        ("cortex-m0+", POP_5_PC, 1, 3 + 5),
        ("cortex-m0+", LDR + LDR_2 + STR, 0, 2 + 2 + 2),
        ("cortex-m0+", ADDS + MULS + BNE, 0, 1 + 1 + 1),
        ("cortex-m0+", ADDS + MULS + BNE, 1, 1 + 1 + 2),
        ("cortex-m0+", B, 1, 2),
        ("cortex-m0+", BX_LR, 1, 2),
        ("cortex-m0+", BL, 1, 3),
        ("cortex-m0+", LDM_3, 0, 1 + 3),
        ("cortex-m0+", MRS + DMB, 0, 3 + 3),
        # Cortex-M3: DDI 0337I, table 3.1; ranges by their middle
        ("cortex-m3", MULS + MLA, 0, 1 + 2),
        ("cortex-m3", SMULL + SMLAL, 0, (3 + 5) / 2 + (4 + 7) / 2),
        ("cortex-m3", SDIV, 0, (2 + 12) / 2),
        ("cortex-m3", BNE, 1, 1 + 2),
        # Cortex-M4: table of processor instructions, P = 2; loads behind an access pipeline
        ("cortex-m4f", LDR + LDR_2 + ADDS + LDR, 0, 2 + 1 + 1 + 2),
        ("cortex-m4f", STR + LDR, 0, 1 + 1),
        ("cortex-m4f", SMLAD + MLA + SMULL + SMLAL + SXTB16 + SSAT, 0, 6 * 1),
        ("cortex-m4f", SDIV, 0, (2 + 12) / 2),
        ("cortex-m4f", LDRD + STRD, 0, (1 + 2) + (1 + 2)),
        ("cortex-m4f", PUSH_W_6 + LDM_3, 0, (1 + 6) + (1 + 3)),
        ("cortex-m4f", POP_5_PC, 1, 1 + 5 + 2),
        ("cortex-m4f", BL, 1, 1 + 2),
        ("cortex-m4f", CBZ, 0, 1),
        ("cortex-m4f", CBZ, 1, 1 + 2),
        ("cortex-m4f", TBB, 1, 2 + 2),
        ("cortex-m4f", IT + ADDS, 0, 0.5 + 1),
        ("cortex-m4f", VLDR + VADD + VFMA + VDIV, 0, 2 + 1 + 3 + 14),
        ("cortex-m4f", VPUSH_2D + VMOV_2, 0, (1 + 4) + 2),
        # CV32E40P user manual; a load's result used at once costs a cycle
        ("rv32imc", "03a50500" + "0505", 0, 1 + 1 + 1),  # lw a0, 0(a1); c.addi a0, 1
        ("rv32imc", "03a50500" + "8505", 0, 1 + 1),  # lw a0, 0(a1); c.addi a1, 1
        ("rv32imc", "8841" + "13060500", 0, 1 + 1 + 1),  # c.lw a0, 0(a1); addi a2, a0, 0
        ("rv32imc", "3385c502" + "3315b502", 0, 1 + 5),  # mul; mulh
        ("rv32imc", "3345b502", 0, (3 + 35) / 2),  # div
        ("rv32imc", "75fd", 0, 1),  # c.bnez
        ("rv32imc", "75fd", 1, 3),
        ("rv32imc", "8280", 1, 2),  # ret
        ("rv32imc", "ef008000", 1, 2),  # jal
        ("rv32imc", "a8c1", 0, 1),  # c.sw a0, 64(a1)
    ],
)
def test_a_sequence_takes_what_the_manual_adds_up_to(
    core: str, code: str, taken: int, expected: float
) -> None:
    assert cycles(core, code, taken=taken) == expected


def test_entries_and_taken_branches_multiply() -> None:
    # 100 times adds, bne; 99 of them taken
    assert cycles("cortex-m4f", ADDS + BNE, entries=100, taken=99) == 100 * 2 + 99 * 2


def test_the_branch_penalty_can_be_set_where_the_manual_states_a_range() -> None:
    blocks = [block(ADDS + BNE, entries=10, taken=9)]
    found = [block_cycles(blocks, "cortex-m4f", branch_penalty=p)[0] for p in (1, 2, 3)]
    assert found == [20 + 9, 20 + 18, 20 + 27]
    assert block_cycles(blocks, "cortex-m0+", branch_penalty=3) == (20 + 9,)


def test_an_m33_is_priced_as_an_m4() -> None:
    code = LDR + LDR_2 + SMLAD + VFMA + BNE
    assert cycles("cortex-m33", code, taken=1) == cycles("cortex-m4f", code, taken=1)


# adds r1, r1, #1; adds r2, r2, #1; adds r3, r3, #1; adds r4, r4, #1
ADDS_1, ADDS_2, ADDS_3, ADDS_4 = "0131", "0132", "0133", "0134"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("00bf" + "00bf" + "00bf" + "00bf", 2),  # NOP in pairs
        ("0146" + "0a46", 2),  # mov r1, r0; mov r2, r1: one waits for the other
        ("0146" + "1a46", 1),  # mov r1, r0; mov r2, r3: together
        (LDR + "0246", 3),  # the loaded value can be used after a cycle between
        ("01fb02f0" + "03fb04f5", 2),  # mul r0, r1, r2; mul r5, r3, r4: one multiplier
    ],
)
def test_an_m7_issues_two_instructions_where_it_can(code: str, expected: float) -> None:
    assert cycles("cortex-m7", code) == expected


def test_an_m7_is_never_faster_than_two_instructions_per_cycle_nor_slower_than_an_m4() -> None:
    rng = np.random.default_rng(0)
    pool = [LDR, LDR_2, STR, ADDS, MULS, SMLAD, MLA, SXTB16, PUSH_5, LDM_3, LDRD, ADDS_1, ADDS_2]
    for _ in range(200):
        chosen = [pool[i] for i in rng.integers(0, len(pool), int(rng.integers(1, 20)))]
        code = "".join(chosen)
        found = cycles("cortex-m7", code)
        assert len(chosen) / 2 <= found <= cycles("cortex-m4f", code) + 2 * len(chosen)


def test_bytes_that_are_no_instructions_are_named() -> None:
    with pytest.raises(ModelError, match=r"00 de ff ff|ff ff at 0x8000102"):
        cycles("cortex-m4f", ADDS + "ffffffff")


def test_an_unknown_core_names_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="cortex-m4f"):
        block_cycles([], "cortex-m4")


@pytest.mark.parametrize("core", cycle_cores())
def test_every_table_says_where_it_comes_from(core: str) -> None:
    data = json.loads(Path(microcontroller.DATA).read_text("utf-8"))
    assert data["cores"][core]["source"]


# The band

MICROCONTROLLERS = [t.name for t in list_targets() if t.kind == "microcontroller"]


@pytest.mark.parametrize("name", MICROCONTROLLERS)
@pytest.mark.parametrize("engine", ["c", "tflm"])
def test_every_board_has_a_band_around_the_value_that_says_what_it_rests_on(
    name: str, engine: str
) -> None:
    band = cycle_band(load_target(name), engine=engine)
    assert 0 < band.low <= 1 <= band.high < 6
    assert "published" in band.basis
    assert not (engine == "c" and band.is_validated)


def test_the_band_holds_every_published_result_of_its_boards() -> None:
    rows = json.loads(microcontroller.VALIDATION.read_text("utf-8"))["rows"]
    assert len(rows) >= 6
    for row in rows:
        band = cycle_band(load_target(row["target"]), engine="tflm")
        ratio = row["published_cycles"] / row["estimated_cycles"]
        assert band.low < ratio < band.high, row


def test_only_a_board_with_published_results_is_validated_and_others_are_wider() -> None:
    own, other = load_target("nucleo-l4r5zi"), load_target("nucleo-f446re")
    assert board_validation(own, "tflm").rows == 3
    assert not board_validation(own, "c").is_validated
    assert not board_validation(other, "tflm").is_validated
    assert "widened" in board_validation(other, "tflm").basis
    widths = [
        math.log(b.high / b.low)
        for b in (
            cycle_band(own, engine="tflm"), cycle_band(other, engine="tflm"),
            cycle_band(load_target("esp32-c3"), engine="c"),
        )
    ]  # fmt: skip
    assert widths == sorted(widths)
    assert widths[0] < widths[1] < widths[2]


def test_what_else_is_unsure_widens_the_band() -> None:
    target = load_target("nucleo-f446re")
    bands = [
        cycle_band(target, engine="c"),
        cycle_band(target, engine="c", waiting_share=0.5),
        cycle_band(target, engine="c", waiting_share=0.5, error=0.4),
    ]
    assert bands[0].low > bands[1].low > bands[2].low
    assert bands[0].high < bands[1].high < bands[2].high


def test_a_target_that_does_not_say_how_its_flash_waits_is_wider_and_says_so() -> None:
    target = load_target("nucleo-l4r5zi")
    silent = replace(target, memory=replace(target.memory, flash_wait_states=None))
    known, unknown = (cycle_band(t, engine="c") for t in (target, silent))
    assert unknown.high > known.high
    assert "does not say how its flash waits" in unknown.basis
    assert typical_waiting(silent).factor == 1


def test_cycles_become_milliseconds_by_the_clock() -> None:
    figures = time_figures(240_000.0, load_target("nucleo-l4r5zi"), engine="c")
    cycles, latency = figures["cycles"], figures["latency_ms"]
    assert latency.value == 2.0  # 240,000 cycles at 120 MHz
    assert latency.low / latency.value == pytest.approx(cycles.low / cycles.value)
    assert latency.high / latency.value == pytest.approx(cycles.high / cycles.value)
    assert (latency.how, latency.validated) == ("modelled", False)


def test_code_waits_longer_where_the_flash_waits_longer() -> None:
    target = load_target("nucleo-l4r5zi")
    factors = [
        typical_waiting(
            replace(target, memory=replace(target.memory, flash_wait_states=states))
        ).factor
        for states in (0, 2, 5)
    ]
    assert factors == sorted(factors)
    assert factors[0] == 1


@pytest.mark.parametrize(
    ("content", "what"),
    [("{", "is no JSON"), ("[]", "is no JSON object"), ('{"rows": []}', "has no cores, typical")],
)
def test_a_malformed_data_file_is_named_with_its_remedy(
    content: str, what: str, tmp_path: Path
) -> None:
    path = tmp_path / "microcontroller_validation.json"
    path.write_text(content, "utf-8")
    with pytest.raises(ConfigError, match=what) as caught:
        read_data(path, ("rows", "cores", "typical"))
    assert str(path) in str(caught.value)
    assert "restore" in str(caught.value)


# The profile

LOOP = (
    '__attribute__((naked, noinline)) void known_loop(int n) { __asm volatile(".syntax unified\\n'
    '1: subs r0, r0, #1\\nbne 1b\\nbx lr"); }\n'
)


@pytest.fixture
def looping(tmp_path: Path) -> Path:
    source = tmp_path / "loop.c"
    source.write_text(LOOP + "int main(void) { known_loop(5000); return 0; }\n", "utf-8")
    return compile_elf([source], "cortex-m33", tmp_path / "loop.elf")


def test_a_profile_of_any_elf_has_a_row_for_every_function(looping: Path) -> None:
    target = load_target("nrf5340dk")
    profile = emulate_firmware(looping, target)
    row = next(op for op in profile.ops if op.name == "known_loop")
    assert (row.instructions, row.cycles) == (10001, 5000 * 2 + 4999 * 2 + 1 + 2)
    assert profile.ops[0] == row  # the costliest comes first
    cycles_found, latency = profile.figures["cycles"], profile.figures["latency_ms"]
    assert cycles_found.value == sum(op.cycles or 0 for op in profile.ops)
    assert latency.value == pytest.approx(cycles_found.value / 128e3)
    assert profile.figures["instructions"].value == sum(op.instructions or 0 for op in profile.ops)
    for figure in (cycles_found, latency):
        assert (figure.how, figure.validated) == ("modelled", False)
        assert figure.low < figure.value < figure.high
    assert profile.figures["instructions"].how == "emulated"
    assert profile.figures["flash_bytes"].how == "measured"


def test_ram_is_variables_and_stack_and_flash_what_is_stored(looping: Path) -> None:
    figures = emulate_firmware(looping, load_target("nrf5340dk")).figures
    size, run = image_size(read_elf(looping)), run_firmware(looping, "cortex-m33")
    assert figures["stack_bytes"].value == run.stack_bytes
    assert figures["ram_bytes"].value == size.static_ram + (run.stack_bytes or 0)
    assert figures["flash_bytes"].value == size.flash


def test_a_profile_of_a_model_has_a_row_for_every_operator(tmp_path: Path) -> None:
    (tmp_path / "m.h").write_text(
        "void m_init(void); void m_invoke(void); void *m_input(int i); void *m_output(int i);\n"
        "#define M_INPUT_0_BYTES 4\n#define M_OUTPUT_0_BYTES 4\n", "utf-8"
    )  # fmt: skip
    (tmp_path / "m.c").write_text(
        '#include "m.h"\nstatic int x;\n' + LOOP +
        "__attribute__((noinline)) static void m_op_0(void) { known_loop(100); x++; }\n"
        "__attribute__((noinline)) static void m_op_1(void) { known_loop(250); x++; }\n"
        "void m_init(void) { x = 0; }\nvoid m_invoke(void) { m_op_0(); m_op_1(); }\n"
        "void *m_input(int i) { return &x; }\nvoid *m_output(int i) { return &x; }\n", "utf-8"
    )  # fmt: skip
    (tmp_path / "harness.c").write_text(harness_source("m", 1, 1), "utf-8")
    elf = compile_elf([tmp_path / "m.c", tmp_path / "harness.c"], "cortex-m0+", tmp_path / "m.elf")
    target = load_target("rp2040")
    never = replace(target, memory=replace(target.memory, flash_wait_states=None))
    profile = emulate_firmware(elf, never)
    assert [(op.index, op.kind) for op in profile.ops[:2]] == [(0, "op"), (1, "op")]
    first, second = (op.cycles for op in profile.ops[:2])
    assert first is not None
    assert second is not None
    assert second - first == 150 * 3  # a turn is SUBS 1 and BNE taken 2
    assert profile.ops[2].kind == "between operators"


def test_a_target_without_an_emulated_core_is_refused(looping: Path) -> None:
    with pytest.raises(ConfigError, match="cortex-a72, which can't be emulated"):
        emulate_firmware(looping, load_target("rpi4"))


def test_limits_of_the_target_are_checked(looping: Path) -> None:
    from edgeshrink.budget import parse_budget

    profile = emulate_firmware(
        looping, load_target("nrf5340dk"), budget=parse_budget("flash=16B,latency=1us")
    )
    assert {overrun.what for overrun in profile.overruns} == {"flash", "latency"}


# The command


def test_the_profile_command_takes_an_elf(
    looping: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["profile", str(looping), "--target", "nrf5340dk", "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert stop.value.code == 0
    assert shown["engine"] == "c"
    assert {op["name"]: op["instructions"] for op in shown["ops"]}["known_loop"] == 10001


def test_the_profile_command_prints_a_row_for_every_function(
    looping: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["profile", str(looping), "--target", "nrf5340dk"])
    line = next(s for s in capsys.readouterr().out.splitlines() if s.endswith("known_loop"))
    assert "10,001" in line
    assert "20,001" in line  # cycles


def test_an_option_that_means_nothing_for_firmware_is_refused(
    looping: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["profile", str(looping), "--target", "nrf5340dk", "--graph"])
    assert stop.value.code == 2
    assert "--graph: does not go with the firmware" in capsys.readouterr().err
