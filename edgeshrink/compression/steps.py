"""What a compression step is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import nn

from edgeshrink.recipe import Step, name_of
from edgeshrink.target import Target
from edgeshrink.task import Task
from edgeshrink.training import Held

Progress = Callable[[float, str], None]


@dataclass(frozen=True, kw_only=True)
class Context:
    """What every step may use.

    Attributes:
        task: Data, loss and score. Its `model` is the float model as it was before the first step,
            which no step changes: the teacher, unless the task brings one.
        target: The device: what its kernels like, and which types it allows.
        seed: Equal seeds give equal results.
        checkpoints: Folder of this step for what an interrupted training needs to go on; None
            where nothing is kept.
        held: What later trainings must keep of earlier steps' work on single weights; see
            `training.hold`.
        progress: Called with the share done and what is being done.
    """

    task: Task
    target: Target
    seed: int
    checkpoints: Path | None = None
    held: Held = "nothing"
    progress: Progress = lambda share, detail: None


@dataclass(frozen=True, kw_only=True)
class Changed:
    """What a step made of a model.

    Attributes:
        model: A new module, or the one given, changed in place.
        note: In words, for people: what was done, and what it does and does not buy on the target.
        details: Plain JSON values for `audit.json`: layers, counts, scores.
    """

    model: nn.Module
    note: str
    details: Mapping[str, Any] = field(default_factory=dict)


# A step: takes a model that it may change in place, returns what it made of it.
Apply = Callable[[nn.Module, Any, Context], Changed]


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One row of what compression did; scores are on the validation split."""

    step: Step
    note: str
    parameters_before: int
    parameters_after: int
    macs_before: int
    macs_after: int
    n_bytes_before: int  # of weights, as the next export would store them
    n_bytes_after: int
    score_before: float | None
    score_after: float | None
    seconds: float
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        names = [f.name for f in fields(self) if f.name not in ("step", "details")]
        return {
            "step": {"step": name_of(self.step), **asdict(self.step)},
            **{name: getattr(self, name) for name in names},
            "details": dict(self.details),
        }
