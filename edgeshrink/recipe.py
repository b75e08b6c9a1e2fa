"""Ordered compression steps with their numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from edgeshrink.strict_toml import Table, read_toml


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Post-training quantization, or none of it.

    `observer` finds activation ranges: `histogram` (least squared error) or `minmax`.
    """

    dtype: str = "int8"  # or "float32": export as it is
    observer: str = "histogram"
    n_samples: int = 128  # calibration samples at most


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is done to a model, in this order."""

    steps: tuple[Quantize, ...] = (Quantize(),)

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as plain JSON values."""
        return {"steps": [{"step": name_of(step), **asdict(step)} for step in self.steps]}

    def to_toml(self) -> str:
        """Return the recipe as TOML that `read_recipe` reads."""
        lines = []
        for step in self.steps:
            lines.append("[[steps]]")
            lines.append(f'step = "{name_of(step)}"')
            for key, value in asdict(step).items():
                lines.append(f"{key} = {value if isinstance(value, int) else repr_toml(value)}")
            lines.append("")
        return "\n".join(lines)


STEPS: Final = {"quantize": Quantize}


def name_of(step: Quantize) -> str:
    """Return the word that stands for this step in a recipe file."""
    return next(name for name, kind in STEPS.items() if isinstance(step, kind))


def repr_toml(value: str) -> str:
    """Return a TOML string."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file; ConfigError names file, key and remedy."""
    table = read_toml(path)
    steps = []
    for entry in table.tables("steps"):
        entry.text("step", choices=STEPS)
        steps.append(_read_quantize(entry))
    if not steps:
        raise table.error("steps", "is empty", 'add [[steps]] with step = "quantize"')
    table.finish()
    return Recipe(steps=tuple(steps))


def _read_quantize(table: Table) -> Quantize:
    return Quantize(
        dtype=table.text("dtype", "int8", choices=("int8", "float32")),
        observer=table.text("observer", "histogram", choices=("histogram", "minmax")),
        n_samples=table.integer("n_samples", 1, 1_000_000, 128),
    )
