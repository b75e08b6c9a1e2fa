"""One temperature for a classifier's probabilities, fitted on validation data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torch import nn

from edgeshrink.compression.steps import Changed, Context
from edgeshrink.errors import ConfigError
from edgeshrink.recipe import ScaleTemperature
from edgeshrink.task import Predict, Task
from edgeshrink.training import float_predict
from edgeshrink.user_code import UserCode

LOWEST: Final = 0.01  # temperatures that are searched; at the ends nothing bounds it
HIGHEST: Final = 100.0
Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """Probabilities softmax(logits / temperature), before (at 1) and after."""

    temperature: float
    nll_before: float  # mean negative log-likelihood, in nats
    nll_after: float
    ece_before: float  # expected calibration error, in [0, 1]
    ece_after: float
    n_samples: int


def apply(model: nn.Module, step: ScaleTemperature, context: Context) -> Changed:
    """Fit a temperature for `model`, which stays as it is."""
    return calibrate(float_predict(model), step, context.task, model)


def calibrate(predict: Predict, step: ScaleTemperature, task: Task, model: nn.Module) -> Changed:
    """Fit a temperature for what `predict` gives on `validation`.

    Raises:
        ConfigError: Outputs are no logits (batch, classes), or targets no classes.
    """
    logits, labels = _collect(predict, task)
    found = fit_temperature(logits, labels, n_bins=step.n_bins)
    if _all_right(logits, labels):
        note = (
            f"left at 1: all {found.n_samples} validation samples are right, so nothing bounds it; "
            f"calibration error {found.ece_before:.4f}, NLL {found.nll_before:.4f}"
        )
        return Changed(model=model, note=note, details=asdict(found))
    note = (
        f"divide logits by {found.temperature:.4g} before softmax: calibration error "
        f"{found.ece_before:.4f} to {found.ece_after:.4f}, NLL {found.nll_before:.4f} to "
        f"{found.nll_after:.4f}; the file is unchanged"
    )
    return Changed(model=model, note=note, details=asdict(found))


def fit_temperature(logits: Array, labels: Array, *, n_bins: int) -> Calibrated:
    """Return the temperature of the lowest negative log-likelihood (Guo et al., 2017).

    Args:
        logits: (n, classes).
        labels: (n,), integers.
        n_bins: Of equal width, for the calibration error.

    Where every sample is right no temperature is the best, and it stays 1.
    """
    logits = logits.astype(np.float64)
    if _all_right(logits, labels):  # the likelihood grows for ever
        nll, error = _nll(logits, labels), calibration_error(logits, labels, n_bins=n_bins)
        return Calibrated(
            temperature=1.0, nll_before=nll, nll_after=nll, ece_before=error, ece_after=error,
            n_samples=len(labels),
        )  # fmt: skip
    # The likelihood is log-concave in 1 / temperature, so it has one peak along the logarithm too.
    found = minimize_scalar(
        lambda log_t: _nll(logits / np.exp(log_t), labels),
        bounds=(np.log(LOWEST), np.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    temperature = float(np.exp(found.x))
    return Calibrated(
        temperature=temperature,
        nll_before=_nll(logits, labels),
        nll_after=_nll(logits / temperature, labels),
        ece_before=calibration_error(logits, labels, n_bins=n_bins),
        ece_after=calibration_error(logits / temperature, labels, n_bins=n_bins),
        n_samples=len(labels),
    )


def calibration_error(logits: Array, labels: Array, *, n_bins: int) -> float:
    """Return the expected calibration error: confidence against accuracy, by bins of confidence.

    Args:
        logits: (n, classes).
        labels: (n,), integers.
        n_bins: Of equal width over (0, 1].
    """
    chances = np.exp(log_softmax(logits, axis=1))  # (n, classes)
    confidence = chances.max(axis=1)  # (n,)
    is_right = logits.argmax(axis=1) == labels  # (n,)
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)  # (n,)
    gaps = np.bincount(bins, weights=confidence - is_right, minlength=n_bins)  # n_b * (conf - acc)
    return float(np.abs(gaps).sum() / len(labels))


def _all_right(logits: Array, labels: Array) -> bool:
    return bool((logits.argmax(axis=1) == labels).all())


def _nll(logits: Array, labels: Array) -> float:
    return float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())


def _collect(predict: Predict, task: Task) -> tuple[Array, Array]:
    """Return logits (n, classes) and labels (n,) of the validation split."""
    where = f"task {task.name!r}"
    if "validation" not in task.data:
        fix = "add the split 'validation' to data, or leave the step out"
        raise ConfigError(where, "the task has no split 'validation'", fix)
    rows, labels = [], []
    with UserCode(where, task.folder):
        for inputs, targets in task.data["validation"]:
            outputs = predict(*inputs)
            _check(outputs, targets, len(inputs[0]), where)
            rows.append(outputs)
            labels.append(targets)
    logits, classes = np.concatenate(rows), np.concatenate(labels)
    _refuse_probabilities(logits, where)
    return logits, classes


def check_form(outputs: Any, targets: Any, n_samples: int, where: str) -> None:
    """Raise ConfigError unless these outputs are logits, and these targets classes."""
    _check(outputs, targets, n_samples, where)
    _refuse_probabilities(outputs, where)


def _refuse_probabilities(logits: Array, where: str) -> None:
    if logits.min() >= 0 and np.allclose(logits.sum(axis=1), 1, atol=0.02):
        fix = "end the model in logits, or leave the step out"
        raise ConfigError(where, "the model's outputs are probabilities already", fix)


def _check(outputs: Any, targets: Any, n_samples: int, where: str) -> None:
    fix = "leave the step out: it is for one output of logits (batch, classes)"
    if not isinstance(outputs, np.ndarray) or outputs.ndim != 2 or outputs.shape[1] < 2:
        shape = outputs.shape if isinstance(outputs, np.ndarray) else type(outputs).__name__
        raise ConfigError(where, f"the model's output is {shape}", fix)
    is_class = isinstance(targets, np.ndarray) and targets.dtype.kind in "iu"
    if not is_class or targets.shape != (n_samples,):
        raise ConfigError(where, "the targets of 'validation' are no classes (batch,)", fix)
    if targets.min() < 0 or targets.max() >= outputs.shape[1]:
        fault = f"a target of 'validation' is outside of the {outputs.shape[1]} classes"
        raise ConfigError(where, fault, "number classes from 0")
