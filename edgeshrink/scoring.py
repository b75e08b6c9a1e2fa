"""Score any callable with the task's own metric."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np

from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.task import Predict, Task
from edgeshrink.user_code import UserCode


def score(task: Task, predict: Predict, split: str) -> float:
    """Return the task's metric for `predict` on the split named.

    Args:
        task: Its `evaluate` is called.
        predict: Takes one array (batch, ...) per input, returns what the model returns in numpy.
        split: One of the task's splits.

    Raises:
        ConfigError: The task has no `evaluate` or no such split, or `evaluate` raises or returns
            something else than a number.
        ModelError: The score is NaN or infinite.
    """
    where = f"task {task.name!r}: evaluate"
    if task.evaluate is None:
        raise ConfigError(where, "is missing", "give the task evaluate(predict, split) -> float")
    if split not in task.data:
        raise ConfigError(where, f"the task has no split {split!r}", f"add {split!r} to data")
    with UserCode(f"{where}(predict, {split!r})", task.folder):
        value: Any = task.evaluate(predict, split)
    if isinstance(value, np.ndarray) or type(value).__module__.partition(".")[0] == "torch":
        value = value.item() if math.prod(value.shape) == 1 else value  # a 0-d array or tensor
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, np.number)):
        raise ConfigError(where, f"returned {value!r:.80}", "it must return one number")
    if not math.isfinite(value):
        fix = "look for NaN in the model's outputs, or for a division by zero in the metric"
        raise ModelError(where, f"returned {float(value)} on {split!r}", fix)
    return float(value)
