"""Movements told apart by an accelerometer: a 1-D network on windows of short recordings."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgeshrink.task import ArraySplit, Predict, Task, Training, find_data

WINDOW, STRIDE = 128, 32  # samples at 100 Hz: 1.28 s every 0.32 s
N_SAMPLES = 400  # of a whole recording: 4 s
ONE_G = 16384  # what the sensor's int16 samples call 1 g
CLASSES = ("idle", "snake", "updown", "wave")
FOLDER = "examples/har_trees/data/raw/cgestures/har_record"  # in the repository


def build(
    *,
    data: Path | None,
    seed: int,
    epochs: int = 40,
) -> Task:
    """Return the task.

    Args:
        data: Folder with `emlearn_har_small.npz` or with the recordings of its source.
        seed: Chooses which recordings are for training, validation and test.
        epochs: Of training.
    """
    waves, labels = read_recordings(data)
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
        model=Net(n_classes=len(CLASSES)),
        example_inputs=(torch.from_numpy(splits["train"].inputs[0][:1]),),
        data=splits,
        evaluate=evaluate,
        loss=nn.functional.cross_entropy,
        training=Training(epochs=epochs, learning_rate=3e-3, weight_decay=1e-2),
    )


def read_recordings(data: Path | None) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the recordings (400, 3) in g, and the class of each."""
    path = find_data(
        ("emlearn_har_small.npz", "har_record", FOLDER, f"emlearn-micropython/{FOLDER}"),
        data,
        what="the recordings of gestures",
        where_from="https://github.com/emlearn/emlearn-micropython",
    )
    if path.is_dir():
        # 80 bytes of header and 3 int16 a sample; recordings that broke off early are shorter
        whole = [f for f in sorted(path.glob("*_*.npy")) if f.stat().st_size == 80 + 6 * N_SAMPLES]
        waves = [np.load(f, allow_pickle=False).astype(np.float32) / ONE_G for f in whole]
        names = [f.stem.rpartition("_")[2] for f in whole]  # 2025-06-15T192744_snake.npy
        return waves, np.array([CLASSES.index(name) for name in names], np.int64)
    file = np.load(path)
    samples, offset = file["cgestures_acc"], file["cgestures_offset"]
    waves = [samples[start:end] for start, end in pairwise(offset)]
    return waves, file["cgestures_label"].astype(np.int64)


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
