"""The caches between a core and its flash, as the emulator simulates them, and what they miss."""

from __future__ import annotations

from dataclasses import dataclass

from edgeshrink.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """A cache in which the least recently used line of a set is replaced."""

    n_sets: int
    n_ways: int
    line_units: int  # that a line can hold; each is brought in for itself


@dataclass(frozen=True, kw_only=True)
class FlashCaches:
    """What stands between a core and its flash. `constants` None: those are in `code` as well."""

    unit_bytes: int  # what one read of the flash brings; a power of two
    code: CacheShape
    constants: CacheShape | None

    def __post_init__(self) -> None:
        """Refuse what the simulation can't represent."""
        shapes = [self.code, *([self.constants] if self.constants else [])]
        sizes = [self.unit_bytes, *(shape.line_units for shape in shapes)]
        if any(size < 1 or size & (size - 1) for size in sizes):
            what = f"has units of {self.unit_bytes} bytes and lines of {sizes[1:]} units"
            raise ConfigError("memory.caches", what, "both must be powers of two")
        if any(shape.line_units > 32 for shape in shapes):
            raise ConfigError(
                "memory.caches", "has a line of more than 32 reads", "make it shorter"
            )


@dataclass(frozen=True, kw_only=True)
class Waits:
    """What one operator asked of the flash, and what no cache held."""

    fetched: int  # units of code
    jumps: int  # of them not held, the first behind a jump
    successors: int  # of them not held, else
    reads: int  # of constants
    misses: int  # of them not held

    def __add__(self, other: Waits) -> Waits:
        """Return both together."""
        return Waits(**{key: value + getattr(other, key) for key, value in vars(self).items()})


NO_WAITS = Waits(fetched=0, jumps=0, successors=0, reads=0, misses=0)
