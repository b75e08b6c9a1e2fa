"""Scanned handwritten digits, 8x8 pixels: the smallest task that is still real."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from edgeshrink.task import ArraySplit, Predict, Task, Training


def build(*, seed: int, epochs: int = 20, width: int = 16) -> Task:
    """Return the task; `--set epochs=10 --set width=8` reach the parameters."""
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)  # (1797, 1, 8, 8), in [0, 1]
    labels = digits.target.astype(np.int64)

    # Three parts with the same share of each digit. Nothing is chosen on the test part.
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=360, stratify=labels, random_state=seed
    )
    train, validation = train_test_split(
        rest, test_size=240, stratify=labels[rest], random_state=seed
    )
    data = {
        "train": ArraySplit(
            inputs=(images[train],),
            targets=labels[train],
            shuffle=True,
            augment=shift,
            rng=np.random.default_rng(seed),
        ),
        "calibration": ArraySplit(inputs=(images[train[:200]],)),
        "validation": ArraySplit(inputs=(images[validation],), targets=labels[validation]),
        "test": ArraySplit(inputs=(images[test],), targets=labels[test]),
    }

    def evaluate(predict: Predict, split: str) -> float:
        """Return the share of images that are recognised."""
        hits = [
            predict(*inputs).argmax(axis=1) == targets  # (batch,)
            for inputs, targets in data[split]
        ]
        return float(np.concatenate(hits).mean())

    return Task(
        model=Net(width),
        example_inputs=(torch.from_numpy(images[:1]),),
        data=data,
        evaluate=evaluate,
        loss=nn.functional.cross_entropy,
        training=Training(epochs=epochs, learning_rate=5e-3),
    )


class Net(nn.Module):
    """Three convolutions and a linear layer; ends in logits, so that nothing but int8 is left."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *conv(1, width),
            *conv(width, 2 * width, stride=2),
            *conv(2 * width, 2 * width),
        )
        self.classifier = nn.Linear(2 * width, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, 10) of images (batch, 1, 8, 8)."""
        return self.classifier(self.features(image).mean(dim=(2, 3)))


def conv(n_in: int, n_out: int, stride: int = 1) -> tuple[nn.Module, ...]:
    """Return a 3x3 convolution with batch norm and ReLU."""
    return (
        nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(n_out),
        nn.ReLU(),
    )


def shift(inputs: tuple[np.ndarray, ...], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Return the images moved by up to one pixel, the same way for the whole batch."""
    (images,) = inputs
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))  # (batch, 1, 10, 10)
    y, x = rng.integers(0, 3, size=2)
    return (padded[:, :, y : y + 8, x : x + 8],)
