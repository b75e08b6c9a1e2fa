"""The outer search: which recipes there are to try, and which of those tried are worth keeping.

A trial is a recipe with its score on the validation split and the predicted figures of its widths.
Nothing here runs one: `study` asks for the next, whoever can train runs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from edgeshrink.planning.plan import Trainable
from edgeshrink.profile import Figure
from edgeshrink.recipe import (
    Distillation,
    Finetune,
    Importance,
    Prune,
    Quantize,
    Recipe,
    Step,
    TrainQuantized,
)

OBJECTIVES: Final = ("flash_bytes", "ram_bytes", "latency_ms")
SHARES: Final = (1.0, 0.9, 0.8, 0.65, 0.5)  # of the budget, for the widths that are tried
EPOCHS: Final = (0.0, 0.5, 1.0, 2.0)  # of fine-tuning, in the task's own number of epochs
LEARNING_RATES: Final = (3e-4, 1e-2)
TEMPERATURES: Final = (1.0, 8.0)
IMPORTANCES: Final = ("magnitude", "lamp", "fpgm")
OBSERVERS: Final = ("histogram", "mse", "percentile", "entropy")
DISTILLATIONS: Final = ("none", "soft", "decoupled")
Direction = Literal["higher", "lower"]


@dataclass(frozen=True, kw_only=True)
class Widths:
    """How many channels layers keep ("layer=channels"), and what that will cost; () keeps all."""

    name: str
    keep: tuple[str, ...]
    figures: Mapping[str, Figure]  # predicted
    fits: bool


@dataclass(frozen=True, kw_only=True)
class Space:
    """What there is to choose from: `widths`, gentlest first, and what the task can do."""

    widths: tuple[Widths, ...]
    trainable: Trainable


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A recipe that was tried."""

    number: int
    widths: str
    recipe: Recipe
    score: float  # on the validation split
    drop: float  # of it, against the float model's
    figures: Mapping[str, Figure]  # predicted
    fits: bool  # figures and drop are within the budget


def recipe_of(space: Space, choices: Mapping[str, Any]) -> Recipe:
    """Return the recipe that a point of the space stands for; see `study.distributions`."""
    widths = space.widths[choices["widths"]]
    steps: list[Step] = []
    if widths.keep:
        importance: Importance = choices["importance"]
        steps.append(Prune(keep=widths.keep, importance=importance))
    if not space.trainable.epochs:
        return Recipe(steps=(*steps, Quantize(observer=choices["observer"])))
    distill: Distillation = choices.get("distill", "none")
    temperature = float(choices.get("temperature", 4.0)) if distill != "none" else 4.0
    epochs = round(EPOCHS[choices["epochs"]] * space.trainable.epochs)
    if epochs:
        rate = float(f"{choices['learning_rate']:.2g}")
        steps.append(
            Finetune(epochs=epochs, learning_rate=rate, distill=distill, temperature=temperature)
        )
    if choices.get("quantize", "ptq") == "ptq":
        return Recipe(steps=(*steps, Quantize()))
    quantized = max(1, space.trainable.epochs // 4)
    train = TrainQuantized(epochs=quantized, distill=distill, temperature=temperature)
    return Recipe(steps=(*steps, train))


def first_choices(space: Space) -> tuple[dict[str, Any], ...]:
    """Return the points that are tried before any search: what a build without one would try."""
    fitting = [i for i, widths in enumerate(space.widths) if widths.fits] or [len(space.widths) - 1]
    gentlest = fitting[0]
    common = {
        "widths": gentlest, "importance": "magnitude", "observer": "histogram", "epochs": 2,
        "learning_rate": 1e-3, "distill": "soft", "temperature": 4.0, "quantize": "ptq",
    }  # fmt: skip
    plain = common | {"epochs": 0} if not space.widths[gentlest].keep else common
    return plain, common | {"quantize": "qat"}


def front(trials: Sequence[Trial], direction: Direction) -> tuple[Trial, ...]:
    """Return the trials that no other one beats: as good in score and figures, better in one.

    Of equals the first stays.
    """
    points = [(_losses(trial, direction), trial) for trial in trials]
    kept = []
    for position, (mine, trial) in enumerate(points):
        beaten = any(
            all(a <= b for a, b in zip(other, mine, strict=True))
            and (other != mine or place < position)
            for place, (other, _) in enumerate(points)
            if place != position
        )
        if not beaten:
            kept.append(trial)
    return tuple(kept)


def in_order(trials: Sequence[Trial], direction: Direction) -> tuple[Trial, ...]:
    """Return the trials that are worth a build, best first: what fits, by score, then by figures.

    Where nothing fits, the one that comes closest in score.
    """
    ranked = sorted(trials, key=lambda trial: (*_losses(trial, direction), trial.number))
    fitting = [trial for trial in ranked if trial.fits]
    return tuple(fitting or ranked[:1])


def _losses(trial: Trial, direction: Direction) -> tuple[float, ...]:
    """Return what is to be small: the score turned over, and every figure's upper end."""
    sign = -1.0 if direction == "higher" else 1.0
    highs = (trial.figures[n].high for n in OBJECTIVES if n in trial.figures)
    return sign * trial.score, *highs
