"""A task for edgeshrink: your model, your data, your score.

It runs as it is, on pictures of stripes that it draws itself:

    edgeshrink build . --target rpi4

Then put your own model and data where a comment says YOURS.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgeshrink.task import ArraySplit, Predict, Task, Training

CLASSES = ("horizontal", "vertical", "diagonal", "other diagonal")


def build(*, data: Path | None, seed: int, epochs: int = 8) -> Task:
    """Return the task. The parameters are yours: add any, and `--set NAME=VALUE` reaches it.

    Args:
        data: The folder given by `--data` or EDGESHRINK_DATA; None without one. Not used here.
        seed: Given by `--seed`. Draw everything random from it: equal seeds, equal results.
        epochs: Of training.
    """
    # YOURS: read your data instead. `edgeshrink.task.find_data` looks in `data`, and tells the
    # user what to download where it is missing.
    rng = np.random.default_rng(seed)
    splits = {
        "train": make_split(1024, rng, shuffle=True),  # the model learns from it
        "validation": make_split(256, rng),  # everything that is chosen is chosen on it
        "test": make_split(512, rng),  # scored once, at the end
    }
    # A few hundred typical inputs: quantization takes the range of every layer from them.
    splits["calibration"] = ArraySplit(inputs=(splits["train"].inputs[0][:200],))

    # YOURS: how good is it? `predict` takes one array (batch, ...) per input of the model and
    # gives back what the model returns, as numpy arrays. The float model, the .tflite and the
    # .pte are all scored by this one function.
    def evaluate(predict: Predict, split: str) -> float:
        hits = [predict(*inputs).argmax(axis=1) == labels for inputs, labels in splits[split]]
        return float(np.concatenate(hits).mean())

    return Task(
        # YOURS: any nn.Module that torch.export can trace. End in logits: softmax on the device
        # costs time and does not change which class is the largest.
        model=Net(),
        # One tensor per input, as the model takes it, for a batch of 1.
        example_inputs=(torch.from_numpy(splits["train"].inputs[0][:1]),),
        data=splits,
        evaluate=evaluate,
        # Is your model trained already? Load its weights above, and leave these two out:
        #     model.load_state_dict(torch.load(path, weights_only=True))
        loss=nn.functional.cross_entropy,  # loss(outputs, targets) -> scalar tensor
        training=Training(epochs=epochs, learning_rate=5e-3),
    )


class Net(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(16, len(CLASSES))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (batch, 4) of images (batch, 1, 16, 16)."""
        features: Tensor = self.features(image)
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits


def make_split(n: int, rng: np.random.Generator, *, shuffle: bool = False) -> ArraySplit:
    """Return `n` noisy pictures of stripes (1, 16, 16) with the class of each."""
    labels = rng.integers(0, len(CLASSES), n)
    y, x = np.mgrid[0:16, 0:16]
    across = np.stack([y, x, (x + y) / 2, (x - y) / 2])[labels]  # (n, 16, 16)
    wavelengths, phases = rng.uniform(3, 6, (n, 1, 1)), rng.uniform(0, 2 * np.pi, (n, 1, 1))
    images: npt.NDArray[np.float64] = np.sin(2 * np.pi * across / wavelengths + phases)
    images += rng.normal(0, 1.5, images.shape)
    return ArraySplit(
        inputs=(images[:, None].astype(np.float32),),  # the model's own layout: (n, C, H, W)
        targets=labels,
        shuffle=shuffle,
        rng=rng,
    )
