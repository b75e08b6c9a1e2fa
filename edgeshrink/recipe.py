"""Ordered compression steps with their numbers."""

from __future__ import annotations

import json
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
                lines.append(f"{key} = {repr_toml(value)}")
            lines.append("")
        return "\n".join(lines)


STEPS: Final = {"quantize": Quantize}


def name_of(step: Quantize) -> str:
    """Return the word that stands for this step in a recipe file."""
    return next(name for name, kind in STEPS.items() if isinstance(step, kind))


def repr_toml(value: bool | int | float | str) -> str:
    """Return a value as TOML."""
    text = json.dumps(value, ensure_ascii=False)  # its strings are TOML's, but for one character
    return text.replace("\x7f", "\\u007f")


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file; ConfigError names file, key and remedy."""
    table = read_toml(path)
    steps: list[Quantize] = []
    for entry in table.tables("steps"):
        word = entry.text("step", choices=STEPS)
        if steps:
            raise entry.error("step", f"is {word!r} again", "quantize once, as the last step")
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
