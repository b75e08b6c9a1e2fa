"""Waiting for flash. Oracle: counts by hand, and a cache of plain lists over the same addresses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgeshrink.costs.memory_system import memory_system, waiting_cycles, waits_per_op
from edgeshrink.emulation import emulate_firmware
from edgeshrink.errors import ConfigError
from edgeshrink.runtimes.firmware import run_firmware
from edgeshrink.runtimes.flash_caches import CacheShape, FlashCaches, Waits
from edgeshrink.target import load_target
from edgeshrink.toolchain import compile_elf

SMALL = CacheShape(n_sets=1, n_ways=4, line_units=1)
CACHES = FlashCaches(unit_bytes=8, code=SMALL, constants=SMALL)


def waits(**given: int) -> Waits:
    return Waits(**{"fetched": 0, "jumps": 0, "successors": 0, "reads": 0, "misses": 0, **given})


# The target's facts


@pytest.mark.parametrize(
    ("name", "unit", "wait", "code", "constants"),
    [
        ("nucleo-l4r5zi", 8, 5, (1, 32, 4), (1, 8, 4)),  # lines of four reads, each for itself
        ("nrf5340dk", 16, 5, (256, 2, 1), None),  # one cache for both
        ("nucleo-h7a3zi", 32, 6 + 7, (256, 2, 1), (128, 4, 1)),  # a line is two reads
        ("rp2040", 8, 50, (1024, 2, 1), None),
        ("nrf52840dk", 16, 2, (64, 2, 1), (1, 1, 1)),  # constants have the last read only
    ],
)
def test_caches_and_waits_follow_from_the_facts_of_a_target(
    name: str, unit: int, wait: int, code: tuple[int, ...], constants: tuple[int, ...] | None
) -> None:
    system = memory_system(load_target(name))
    assert system is not None
    assert (system.unit_bytes, system.wait_cycles) == (unit, wait)
    assert tuple(vars(system.caches.code).values()) == code
    found = system.caches.constants
    assert (None if found is None else tuple(vars(found).values())) == constants


def test_without_wait_states_nothing_is_known_of_the_flash() -> None:
    target = load_target("nucleo-l4r5zi")
    assert memory_system(load_target("esp32")) is None
    for key in ("flash_wait_states", "flash_bus_bits"):
        assert memory_system(replace(target, memory=replace(target.memory, **{key: None}))) is None
    assert waits_per_op(None, {0: waits(jumps=3)}, {0: 9.0}) == {}


def test_lines_that_are_no_power_of_two_are_refused() -> None:
    with pytest.raises(ConfigError, match="powers of two"):
        FlashCaches(unit_bytes=12, code=SMALL, constants=None)


# Cycles


def test_every_read_that_no_cache_holds_waits_in_full() -> None:
    system = memory_system(load_target("nucleo-l4r5zi"))  # 5 wait states, no prefetch
    assert system is not None
    found = waiting_cycles(system, waits(fetched=100, jumps=2, successors=3, misses=7), 300.0)
    assert found == 5 * (2 + 3 + 7)


def test_a_prefetch_hides_what_the_code_of_one_read_takes() -> None:
    system = memory_system(load_target("nucleo-f446re"))  # 5 wait states, prefetch
    assert system is not None
    some = waits(fetched=100, jumps=2, successors=30, misses=7)
    assert waiting_cycles(system, some, 400.0) == 5 * (2 + 7) + 30 * (5 + 1 - 4)
    assert waiting_cycles(system, some, 1000.0) == 5 * (2 + 7)  # never less than nothing


# The simulation

WALK = """
#include <stdint.h>
static const int32_t T[64] __attribute__((aligned(8))) = {3, 1, 4, 1, 5, 9, 2, 6};
volatile int32_t out;
__attribute__((naked, noinline)) int walk(const int32_t *t, int n)
{
    __asm volatile(".syntax unified\\n movs r2, #0\\n1: tst r1, #1\\n itt ne\\n ldrne r3, [r0]\\n"
                   " addne r2, r2, r3\\n adds r0, r0, #4\\n subs r1, r1, #1\\n bne 1b\\n"
                   " mov r0, r2\\n bx lr");
}
int main(void) { out = walk(T, 64); return 0; }
"""


@pytest.mark.parametrize("core", ["cortex-m4f", "cortex-m33"])
def test_simulated_caches_change_nothing_of_the_run_and_see_every_read(
    core: str, tmp_path: Path
) -> None:
    """Reads in an IT block: the emulator must not take what follows for a part of the block."""
    (tmp_path / "walk.c").write_text(WALK, "utf-8")
    elf = compile_elf([tmp_path / "walk.c"], core, tmp_path / "walk.elf")
    plain, seen = run_firmware(elf, core), run_firmware(elf, core, caches=CACHES)
    assert (plain.instructions, plain.taken_branches) == (seen.instructions, seen.taken_branches)
    assert not plain.waits
    assert seen.waits[None].reads == 32  # every other word
    assert seen.waits[None].misses == 32  # each in a read of eight bytes of its own


TWICE = """
#include <stdint.h>
static const int32_t T[] __attribute__((aligned(64))) = {%s};
volatile int32_t out;
__attribute__((noinline)) static int32_t sum(const volatile int32_t *t, int n)
{
    int32_t s = 0;
    for (int i = 0; i < n; i++)
        s += t[i];
    return s;
}
int main(void) { out = sum(T, %d) + sum(T, %d); return 0; }
"""


def lru_misses(addresses: list[int], shape: CacheShape, unit_bytes: int) -> int:
    """Count what a cache does not hold, with lists and sets."""
    sets: dict[int, list[int]] = {}
    held: dict[int, set[int]] = {}
    misses = 0
    for address in addresses:
        unit = address // unit_bytes
        line = unit // shape.line_units
        order = sets.setdefault(line % shape.n_sets, [])
        if line in order:
            order.remove(line)
        else:
            held[line] = set()
            if len(order) == shape.n_ways:
                order.pop()
        order.insert(0, line)
        misses += unit not in held[line]
        held[line].add(unit)
    return misses


@pytest.mark.parametrize(
    "shape",
    [
        CacheShape(n_sets=1, n_ways=8, line_units=1), CacheShape(n_sets=1, n_ways=8, line_units=4),
        CacheShape(n_sets=4, n_ways=2, line_units=2), CacheShape(n_sets=16, n_ways=4, line_units=1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("n", [8, 40])
def test_constants_miss_as_in_a_cache_of_lists(shape: CacheShape, n: int, tmp_path: Path) -> None:
    numbers = ",".join(str(i) for i in range(40))
    (tmp_path / "twice.c").write_text(TWICE % (numbers, n, n), "utf-8")
    elf = compile_elf([tmp_path / "twice.c"], "cortex-m0+", tmp_path / "twice.elf")
    apart = FlashCaches(unit_bytes=8, code=SMALL, constants=shape)
    found = run_firmware(elf, "cortex-m0+", caches=apart).waits[None]
    wanted = lru_misses([4 * i for i in range(n)] * 2, shape, 8)
    assert 0 <= found.misses - wanted <= 8  # and some literals of the start-up code
    assert 2 * n <= found.reads <= 2 * n + 12


def test_a_loop_that_fits_its_cache_misses_once_and_a_longer_one_every_time(
    tmp_path: Path,
) -> None:
    counts = {}
    for name, n_nops in (("few_nops", 8), ("many_nops", 64)):
        source = (
            f"__attribute__((naked, noinline, aligned(64))) void {name}(int n) {{ __asm volatile("
            f'".syntax unified\\n1:\\n.rept {n_nops}\\nnop\\n.endr\\nsubs r0, r0, #1\\nbne 1b\\n'
            f'bx lr"); }}\nint main(void) {{ {name}(500); return 0; }}\n'
        )
        (tmp_path / f"{name}.c").write_text(source, "utf-8")
        elf = compile_elf([tmp_path / f"{name}.c"], "cortex-m0+", tmp_path / f"{name}.elf")
        counts[name] = run_firmware(elf, "cortex-m0+", caches=CACHES).waits[None]
    # 8 NOPs, SUBS and BNE are 20 bytes, three reads of the four that the cache holds.
    assert counts["few_nops"].successors + counts["few_nops"].jumps < 60
    # 64 NOPs, SUBS and BNE are 132 bytes, 17 reads: none is there when the loop begins anew.
    assert counts["many_nops"].successors >= 500 * 16
    assert counts["many_nops"].jumps + 20 >= 500 * 1
    assert counts["many_nops"].successors + counts["many_nops"].jumps <= 500 * 17 + 60


def test_a_profile_says_what_waits_and_adds_it_up(tmp_path: Path) -> None:
    (tmp_path / "walk.c").write_text(WALK, "utf-8")
    elf = compile_elf([tmp_path / "walk.c"], "cortex-m4f", tmp_path / "walk.elf")
    target = load_target("nucleo-l4r5zi")
    never = replace(target, memory=replace(target.memory, flash_wait_states=None))
    slow, fast = emulate_firmware(elf, target), emulate_firmware(elf, never)
    waiting = next(op for op in slow.ops if op.kind == "waiting for flash")
    assert waiting.cycles is not None
    assert slow.figures["cycles"].value == fast.figures["cycles"].value + waiting.cycles
    assert slow.figures["cycles"].value == sum(op.cycles or 0.0 for op in slow.ops)
    assert "waiting for flash" in slow.figures["cycles"].note
    assert slow.figures["instructions"] == fast.figures["instructions"]
