"""What the flash of a microcontroller costs: cycles that its core waits for code and constants.

The timing tables of `microcontroller.py` are for memory that never waits. Here is what a board adds
to them, from facts of its target file alone: wait states, the width of a read, prefetch, caches.
Nothing is fitted. The emulator runs the program through these caches (`runtimes/firmware.py`) and
counts what they do not hold; each such read waits for the flash.

A read of a constant, and the first read behind a jump, waits in full. Of the reads that follow one
another a prefetch hides what the core takes to execute the code of one read. RAM never waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeshrink.runtimes.flash_caches import CacheShape, FlashCaches, Waits
from edgeshrink.target import Cache, Target


@dataclass(frozen=True, kw_only=True)
class MemorySystem:
    """A target's flash, as its core sees it."""

    caches: FlashCaches
    wait_cycles: int  # that a read which no cache answers takes longer than one that does
    has_prefetch: bool

    @property
    def unit_bytes(self) -> int:
        """What one miss brings in."""
        return self.caches.unit_bytes

    @property
    def code_bytes(self) -> int:
        """What the cache of code holds."""
        return _bytes(self.caches.code, self.unit_bytes)


def memory_system(target: Target) -> MemorySystem | None:
    """Return what is known of a target's flash; None if its wait states or width are not."""
    memory = target.memory
    if memory.flash_wait_states is None or memory.flash_bus_bits is None:
        return None
    read = max(1, memory.flash_bus_bits // 8)
    code = _held(memory.caches, "code")
    constants = _held(memory.caches, "constants")
    lines = [c.line_bytes or read for c in (code, constants) if c is not None and c.fills == "line"]
    unit = max([read, *lines])
    # A line of several reads comes one read after the other.
    wait = memory.flash_wait_states + (unit // read - 1) * (memory.flash_wait_states + 1)
    return MemorySystem(
        caches=FlashCaches(
            unit_bytes=unit,
            code=_shape(code, unit),
            constants=None if code is constants and code is not None else _shape(constants, unit),
        ),
        wait_cycles=wait,
        has_prefetch=memory.flash_prefetch,
    )


def constants_bytes(system: MemorySystem) -> int:
    """Return what the cache of constants holds."""
    return _bytes(system.caches.constants or system.caches.code, system.unit_bytes)


def waiting_cycles(system: MemorySystem, waits: Waits, cycles: float) -> float:
    """Return the cycles that code waited for the flash.

    Args:
        system: The flash.
        waits: What no cache held.
        cycles: What the same code takes where memory never waits.
    """
    return waits_for(
        system, fetched=waits.fetched, jumps=waits.jumps, successors=waits.successors,
        misses=waits.misses, cycles=cycles,
    )  # fmt: skip


def waits_for(
    system: MemorySystem,
    *,
    fetched: float,
    jumps: float,
    successors: float,
    misses: float,
    cycles: float,
) -> float:
    """Return the same of counts that may be estimates, named as in `Waits`."""
    follows = float(system.wait_cycles)
    if system.has_prefetch and fetched:
        follows = max(0.0, follows + 1 - cycles / fetched)
    return system.wait_cycles * (jumps + misses) + follows * successors


def waits_per_op(
    system: MemorySystem | None,
    waits: Mapping[int | None, Waits],
    cycles: Mapping[int | None, float],
) -> dict[int | None, float]:
    """Return the cycles every operator waited; nothing where the flash is not known."""
    if system is None:
        return {}
    return {op: waiting_cycles(system, found, cycles.get(op, 0.0)) for op, found in waits.items()}


def _bytes(shape: CacheShape, unit: int) -> int:
    return shape.n_sets * shape.n_ways * shape.line_units * unit


def _held(caches: tuple[Cache, ...], what: str) -> Cache | None:
    return next((cache for cache in caches if cache.holds in (what, "both")), None)


def _shape(cache: Cache | None, unit: int) -> CacheShape:
    """Return a cache's shape; without one, of the one unit that was read last."""
    if cache is None:
        return CacheShape(n_sets=1, n_ways=1, line_units=1)
    line = max(unit, cache.line_bytes or unit)
    n_lines = max(1, cache.size_bytes // line)
    ways = min(cache.ways or n_lines, n_lines)
    return CacheShape(n_sets=max(1, n_lines // ways), n_ways=ways, line_units=line // unit)
