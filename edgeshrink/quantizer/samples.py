"""Calibration samples of a task."""

from __future__ import annotations

import numpy as np

from edgeshrink.errors import ModelError
from edgeshrink.task import Arrays, Task


def calibration_samples(task: Task, n_samples: int) -> list[Arrays]:
    """Return up to `n_samples` samples (batch of 1) of the calibration split, else of train."""
    split = task.data.get("calibration", task.data.get("train"))
    if split is None:
        raise ModelError(
            f"task {task.name!r}",
            "has neither a calibration nor a train split",
            "add one of them to data: quantization needs to see typical inputs",
        )
    samples: list[Arrays] = []
    for inputs, _ in split:
        for row in range(len(inputs[0])):
            sample = tuple(np.ascontiguousarray(a[row : row + 1]) for a in inputs)
            for position, array in enumerate(sample):
                if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
                    raise ModelError(
                        f"task {task.name!r}, calibration sample {len(samples)}, input {position}",
                        "holds NaN or infinity",
                        "clean the data",
                    )
            samples.append(sample)
            if len(samples) >= n_samples:
                return samples
    if not samples:
        raise ModelError(
            f"task {task.name!r}", "has an empty calibration split", "give at least one sample"
        )
    return samples
