"""Predict published microcontroller results: layers of their models, one factor per kernel class.

Used by `microcontroller_latency.py`. The time of another engine is that of TFLM's kernels on the
same board (`costs/interpreter.py`), times what the engine's own kernels of each class take against
them, times a factor per version. The factors are fitted together over all engines and boards, those
of a class drawn to what all engines have; without the layers of a model only its MACs are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

CLASSES: Final = ("conv", "conv 1x1", "depthwise", "fully connected", "rest", "waiting")
# Engines that run the kernels our model is of: their classes have no factors.
SAME_KERNELS: Final = ("microTVM+CMSIS-NN",)
# Engines with earlier versions of these kernels: their classes are drawn to 1, and say nothing of
# those of other makers.
EARLIER_KERNELS: Final = ("TFLM+CMSIS-NN",)
OF_CLASS: Final = {
    "conv": "conv", "conv 1x1": "conv 1x1", "depthwise 3x3": "depthwise",
    "depthwise": "depthwise", "depthwise multiplier": "depthwise",
    "fully connected": "fully connected",
}  # fmt: skip
# How far factors go from what they are drawn to, as standard deviations in log space: of an
# engine's class from the class, of a class from 1, of a version from its engine, of a result.
SPREAD: Final = {
    "all": 0.3, "class": 0.5, "waiting": 0.1, "engine": 0.1, "version": 0.3, "core": 0.1,
    "row": 0.03,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Result:
    """One published latency, and what our model says of the same model in TFLM."""

    board: str
    core: str
    engine: str
    version: str
    model: str  # results of the same network have the same name
    macs: float
    cycles: float  # published
    classes: Mapping[str, float] = field(default_factory=dict)  # modelled cycles in TFLM; or none

    @property
    def estimate(self) -> float:
        """Modelled cycles of the whole model in TFLM."""
        return sum(self.classes.values())


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A result, and what was predicted without it."""

    result: Result
    predicted: float

    @property
    def residual(self) -> float:
        """Published over predicted cycles, in log space."""
        return math.log(self.result.cycles / self.predicted)

    @property
    def error(self) -> float:
        """Of the prediction, relative to the published value."""
        return self.predicted / self.result.cycles - 1


Model = Callable[[Result], float]


def fit(results: Sequence[Result]) -> Model:
    """Fit the factors and return what predicts the cycles of a result."""
    known = [r for r in results if r.classes]
    engines = sorted({r.engine for r in known})
    versions = sorted({(r.engine, r.version) for r in known})
    cores = sorted({(r.engine, r.core) for r in known})
    n_class = len(CLASSES)
    at_class = 1
    at_engine = at_class + n_class
    at_version = at_engine + n_class * len(engines)
    at_core = at_version + len(versions)
    size = at_core + len(cores)

    def log_cycles(p: npt.NDArray[np.float64], rows: Sequence[Result]) -> npt.NDArray[np.float64]:
        amounts = np.array([[r.classes.get(name, 0.0) for name in CLASSES] for r in rows])
        own = np.vstack([p[at_engine:at_version].reshape(-1, n_class), np.zeros(n_class)])
        places = [engines.index(r.engine) if r.engine in engines else -1 for r in rows]
        level = np.append(p[at_version:at_core], 0.0)[
            [_place(versions, (r.engine, r.version)) for r in rows]
        ]
        side = np.append(p[at_core:], 0.0)[[_place(cores, (r.engine, r.core)) for r in rows]]
        other = np.array([[float(r.engine not in SAME_KERNELS)] for r in rows])
        foreign = np.array([[float(r.engine not in EARLIER_KERNELS)] for r in rows])
        per_class = np.exp(other * (foreign * p[at_class:at_engine] + own[places]))
        return np.asarray(p[0] + np.log((amounts * per_class).sum(1)) + level + side)

    weights = np.concatenate([
        [1 / SPREAD["all"]],
        [1 / SPREAD["waiting" if name == "waiting" else "class"] for name in CLASSES],
        [1 / SPREAD["waiting" if name == "waiting" else "engine"] for _ in engines
         for name in CLASSES],
        np.full(len(versions), 1 / SPREAD["version"]), np.full(len(cores), 1 / SPREAD["core"]),
    ])  # fmt: skip

    published = np.log([r.cycles for r in known])

    def residuals(p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.concatenate([(log_cycles(p, known) - published) / SPREAD["row"], p * weights])

    start = np.zeros(size)
    found = least_squares(residuals, start, method="trf").x if known else start
    lines = _lines([r for r in results if not r.classes])

    def predict(r: Result) -> float:
        if r.classes:
            return math.exp(log_cycles(found, [r])[0])
        level, slope = lines[_key(r)]
        return math.exp(level + slope * math.log(r.macs))

    return predict


def _place(names: Sequence[tuple[str, str]], name: tuple[str, str]) -> int:
    return names.index(name) if name in names else -1


def _key(result: Result) -> tuple[str, str, str]:
    return result.engine, result.version, result.board


def _lines(results: Sequence[Result]) -> dict[tuple[str, str, str], tuple[float, float]]:
    """Return (level, slope) of log cycles over log MACs; the slope is drawn to 1."""
    found = {}
    for key in {_key(r) for r in results}:
        rows = [r for r in results if _key(r) == key]
        x = np.log([r.macs for r in rows])
        y = np.log([r.cycles for r in rows])
        if len(rows) < 3:
            slope = 1.0
        else:
            u, v = x - x.mean(), (y - x) - (y - x).mean()
            slope = 1 + float(u @ v / (u @ u + 0.5))
        found[key] = (float(y.mean() - slope * x.mean()), slope)
    return found


def leave_one_model_out(results: Sequence[Result]) -> list[Prediction]:
    """Predict every result by a fit without its engine's results of the same network."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for r in results:
        groups.setdefault((r.engine, r.model), []).append(r)
    found = []
    for (engine, model), rows in groups.items():
        rest = [r for r in results if (r.engine, r.model) != (engine, model)]
        predict = fit(rest)
        keys = {_key(r) for r in rest if not r.classes}
        found += [
            Prediction(result=r, predicted=predict(r))
            for r in rows
            if r.classes or _key(r) in keys
        ]  # fmt: skip
    return found


def leave_one_device_out(results: Sequence[Result]) -> list[Prediction]:
    """Predict the results of each board from those on the others, where its engine is there too."""
    known = [r for r in results if r.classes]
    found = []
    for board in sorted({r.board for r in known}):
        rest = [r for r in known if r.board != board]
        versions = {(r.engine, r.version) for r in rest}
        predict = fit(rest)
        found += [
            Prediction(result=r, predicted=predict(r))
            for r in known
            if r.board == board and (r.engine, r.version) in versions
        ]
    return found


def conformal(residuals: Sequence[float], share: float = 0.9) -> tuple[float, float]:
    """Return (low, high) in log space that hold `share` of further residuals (split conformal)."""
    values = np.sort(np.abs(np.asarray(residuals)))
    rank = min(len(values), math.ceil(share * (len(values) + 1)))
    width = float(values[rank - 1]) if len(values) else math.inf
    return -width, width


def interval_score(low: float, high: float, value: float, share: float = 0.9) -> float:
    """Return the interval score relative to the value (Gneiting and Raftery, 2007, eq. 43)."""
    missed = max(0.0, low - value) + max(0.0, value - high)
    return (high - low + 2 / (1 - share) * missed) / value


def banded(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Return, for every prediction, the band that the other networks' residuals give it."""
    found = []
    for one in predictions:
        others = [p.residual for p in predictions if p.result.model != one.result.model]
        low, high = conformal(others)
        low, high = one.predicted * math.exp(low), one.predicted * math.exp(high)
        found.append({
            "prediction": one, "low": low, "high": high,
            "half_width": (high - low) / 2 / one.predicted,
            "is_inside": low <= one.result.cycles <= high,
            "score": interval_score(low, high, one.result.cycles),
        })  # fmt: skip
    return found
