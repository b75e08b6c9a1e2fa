"""Movements told apart by an accelerometer: a 1-D network on windows of short recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from edgeshrink.task import ArraySplit, Predict, Task, Training, find_data

WINDOW, STRIDE = 128, 32  # samples at 100 Hz: 1.28 s every 0.32 s
ONE_G = 16384  # what the sensor's int16 samples call 1 g
KINDS = {  # name -> (prefix in the .npz, folder in the repository, samples of a whole recording)
    "gestures": ("cgestures", "cgestures/har_record", 400),
    "exercises": ("har_exercise_1", "har_record_exercises_1/data", 1000),
}


def build(
    *,
    data: Path | None,
    seed: int,
    recordings: Literal["gestures", "exercises"] = "gestures",
    epochs: int = 40,
) -> Task:
    """Return the task.

    Args:
        data: Folder with `emlearn_har_small.npz` or with the recordings of its source.
        seed: Chooses which recordings are for training, validation and test.
        recordings: Hand gestures (19 recordings) or exercises (32).
        epochs: Of training.
    """
    waves, labels, classes = read_recordings(data, recordings)
    part = assign_parts(labels, np.random.default_rng(seed))
    splits = {}
    for name in ("train", "validation", "test"):
        rows = np.flatnonzero(part == name)
        windows = [cut(waves[row]) for row in rows]  # (n, 3, 128) each
        targets = np.repeat(labels[rows], [len(w) for w in windows])
        splits[name] = ArraySplit(
            inputs=(np.concatenate(windows),),
            targets=targets,
            shuffle=name == "train",
            batch_size=32,
            rng=np.random.default_rng(seed),
        )
    splits["calibration"] = ArraySplit(inputs=splits["train"].inputs)

    def evaluate(predict: Predict, split: str) -> float:
        """Return the share of windows that are recognised."""
        hits = [predict(*inputs).argmax(axis=1) == targets for inputs, targets in splits[split]]
        return float(np.concatenate(hits).mean())

    return Task(
        model=Net(n_classes=len(classes)),
        example_inputs=(torch.from_numpy(splits["train"].inputs[0][:1]),),
        data=splits,
        evaluate=evaluate,
        loss=nn.functional.cross_entropy,
        training=Training(epochs=epochs, learning_rate=3e-3, weight_decay=1e-2),
    )


def read_recordings(
    data: Path | None, kind: str
) -> tuple[list[np.ndarray], np.ndarray, list[str]]:
    """Return the recordings (samples, 3) in g, the class of each, and the names of the classes."""
    prefix, folder, length = KINDS[kind]
    path = find_data(
        ("emlearn_har_small.npz", folder, f"emlearn-micropython/examples/har_trees/data/raw/{folder}"),
        data,
        what="the accelerometer recordings",
        where_from="https://github.com/emlearn/emlearn-micropython",
    )
    if path.is_dir():
        files = sorted(path.glob("*_*.npy"))  # 2025-06-15T192744_snake.npy
        loaded = [(file.stem.rpartition("_")[2], np.load(file, allow_pickle=False)) for file in files]
        whole = [(name, a) for name, a in loaded if len(a) == length]  # not those broken off early
        classes = sorted({name for name, _ in whole})
        labels = np.array([classes.index(name) for name, _ in whole], np.int64)
        return [a.astype(np.float32) / ONE_G for _, a in whole], labels, classes
    file = np.load(path)
    samples, offset = file[f"{prefix}_acc"], file[f"{prefix}_offset"]
    waves = [samples[start:end] for start, end in zip(offset[:-1], offset[1:], strict=True)]
    return waves, file[f"{prefix}_label"].astype(np.int64), list(file[f"{prefix}_classes"])


def assign_parts(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the part of each recording: of every class a quarter for test and for validation.

    Windows of one recording overlap and look alike, so a recording is in one part alone.
    """
    part = np.full(len(labels), "train", dtype="<U10")
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        n = max(1, len(rows) // 4)
        part[rows[:n]], part[rows[n : 2 * n]] = "test", "validation"
    return part


def cut(wave: np.ndarray) -> np.ndarray:
    """Return the windows (n, 3, 128) of a recording (samples, 3)."""
    windows = np.lib.stride_tricks.sliding_window_view(wave, WINDOW, axis=0)[::STRIDE]
    return np.ascontiguousarray(windows, np.float32)


class Net(nn.Module):
    """Three 1-D convolutions over time and a linear layer."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*conv(3, 16), *conv(16, 32), *conv(32, 32))
        self.classifier = nn.Linear(32, n_classes)

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, classes) of windows (batch, 3, 128)."""
        return self.classifier(self.features(window).mean(dim=2))


def conv(n_in: int, n_out: int) -> tuple[nn.Module, ...]:
    """Return a convolution over 5 samples that halves the rate, with batch norm and ReLU."""
    return (
        nn.Conv1d(n_in, n_out, 5, stride=2, padding=2, bias=False),
        nn.BatchNorm1d(n_out),
        nn.ReLU(),
    )
