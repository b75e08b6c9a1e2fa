"""Loops of kernels against caches of code. Oracles: lists as caches, and the emulator's caches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeshrink.costs.memory_system import MemorySystem, memory_system, waiting_cycles
from edgeshrink.costs.microcontroller import block_cycles
from edgeshrink.firmware import compile_firmware
from edgeshrink.graph_reader import read_graph
from edgeshrink.lowering import kernel_folders, lower
from edgeshrink.lowering.table import LOWERINGS
from edgeshrink.lowering.waits import missed_share, variant_waiting
from edgeshrink.runtimes.firmware import open_firmware
from edgeshrink.runtimes.flash_caches import CacheShape
from edgeshrink.target import load_target
from tests.kernels.conv_models import Case, model
from tests.kernels.host import DSP_ISA

POINTWISE = Case(size=(8, 4), kernel=(1, 1), k_c=64, filters=32, gain=0.003)
LAYERS = {
    "1x1": POINTWISE,
    "3x3": Case(size=(12, 12), k_c=16, filters=16, gain=0.003),
    "three channels": Case(size=(16, 16), k_c=3, filters=16, gain=0.003),
    "depthwise": Case(size=(12, 12), k_c=1, groups=16, filters=1, depthwise=True),
    "depthwise, short rows": Case(size=(9, 5), k_c=1, groups=32, filters=1, depthwise=True),
}


def flash_of(name: str) -> MemorySystem:
    found = memory_system(load_target(name))
    assert found is not None
    return found


@given(n_lines=st.integers(1, 40), n_sets=st.sampled_from([1, 2, 4, 8]), n_ways=st.integers(1, 5))
def test_what_is_read_in_a_circle_misses_as_much_as_in_a_cache_of_lists(n_lines, n_sets, n_ways):
    sets: list[list[int]] = [[] for _ in range(n_sets)]
    missed = 0
    for turn in range(4):
        for line in range(n_lines):
            held = sets[line % n_sets]
            if line in held:
                held.remove(line)
            else:
                missed += turn == 3
            held.append(line)
            del held[:-n_ways]
    share = missed_share(16 * n_lines, CacheShape(n_sets=n_sets, n_ways=n_ways, line_units=1), 16)
    # The estimate knows no more than one line too many in a set at a time.
    more = n_lines - n_sets * n_ways
    if more <= n_sets:
        assert share == pytest.approx(missed / n_lines)
    else:
        assert share == pytest.approx(1.0)


def test_short_turns_are_taken_where_the_cache_of_code_is_small_and_nowhere_else():
    graph = read_graph(model(POINTWISE))
    fastest = lower(graph, DSP_ISA).steps[0].variant
    for name, is_small in (("nucleo-l4r5zi", True), ("nucleo-u575zi", False)):
        flash = flash_of(name)
        found = lower(graph, DSP_ISA, flash=flash).steps[0].variant
        assert (found.calls[0].function != fastest.calls[0].function) == is_small, name
        assert found.loops[0].inner[0].n_bytes <= flash.code_bytes, name
        assert found.cycles < 1.1 * fastest.cycles, name


def test_without_any_cache_of_code_the_fewest_instructions_win():
    one_line = CacheShape(n_sets=1, n_ways=1, line_units=1)
    flash = flash_of("nucleo-l4r5zi")
    flash = replace(flash, caches=replace(flash.caches, code=one_line))
    graph = read_graph(model(POINTWISE))
    fastest = lower(graph, DSP_ISA).steps[0].variant
    found = lower(graph, DSP_ISA, flash=flash).steps[0].variant
    assert found.calls[0].function == fastest.calls[0].function


def waited(data: bytes, folder, target_name: str, flash: MemorySystem | None) -> float:
    """Return the cycles of one inference on the board, kernels chosen as for `flash`."""
    target = load_target(target_name)
    own = flash_of(target_name)
    memory = target.memory if flash is not None else replace(target.memory, flash_wait_states=None)
    firmware = compile_firmware(data, replace(target, memory=memory), folder, name="m")
    with open_firmware(firmware.elf, target.cpu.core, caches=own.caches) as runner:
        run, _ = runner.count(*(np.zeros(i.shape, i.dtype) for i in runner.inputs))
    cycles = sum(block_cycles(run.blocks, target.cpu.core))
    return cycles + sum(waiting_cycles(own, waits, 1.0) for waits in run.waits.values())


def test_a_layer_takes_less_than_half_the_time_with_turns_that_the_cache_holds(tmp_path):
    data = model(POINTWISE)
    times = []
    for flash in (None, flash_of("nucleo-l4r5zi")):
        folder = tmp_path / str(len(times))
        folder.mkdir()
        times.append(waited(data, folder, "nucleo-l4r5zi", flash))
    assert times[1] < 0.5 * times[0]


# Reached: 3 % of an operator's time.
@pytest.mark.slow
@pytest.mark.parametrize("target_name", ["nucleo-l4r5zi", "nucleo-f446re", "nrf52840dk"])
@pytest.mark.parametrize("name", LAYERS)
def test_estimated_waits_are_those_of_the_simulated_caches(name, target_name, tmp_path):
    data = model(LAYERS[name])
    target, system = load_target(target_name), flash_of(target_name)
    firmware = compile_firmware(data, target, tmp_path, name="m")
    with open_firmware(firmware.elf, target.cpu.core, caches=system.caches) as runner:
        run, _ = runner.count(*(np.zeros(i.shape, i.dtype) for i in runner.inputs))
    blocks = [b for b in run.blocks if b.op == 0]
    cycles = sum(block_cycles(blocks, target.cpu.core))
    simulated = waiting_cycles(system, run.waits[0], cycles)
    graph, step = firmware.lowered.graph, firmware.lowered.steps[0]
    estimated = variant_waiting(graph, graph.ops[0], step.variant, system, cycles=cycles)
    assert cycles + estimated == pytest.approx(cycles + simulated, rel=0.06)


def test_every_convolution_kernel_written_for_one_layer_says_what_loops_it_has():
    for case in LAYERS.values():
        graph = read_graph(model(case))
        op = graph.ops[0]
        for variant in LOWERINGS[op.kind](graph, op, kernel_folders(DSP_ISA)):
            if any(call.emitted is not None for call in variant.calls):
                assert variant.loops, variant.name
                assert variant.passes > 1, variant.name
