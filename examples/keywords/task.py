"""Spoken digits with a DS-CNN of MLPerf Tiny's shape, on features computed with numpy and scipy."""

from __future__ import annotations

import wave
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy.fft import dct
from torch import nn

from edgeshrink.task import ArraySplit, Predict, Task, Training, find_data

RATE_HZ = 8000
N_SAMPLES = RATE_HZ  # one second
WINDOW, STRIDE, N_FFT = 320, 160, 512  # samples: 40 ms every 20 ms
N_MELS, N_MFCC = 40, 10
N_FRAMES = 1 + (N_SAMPLES - WINDOW) // STRIDE  # 49


def build(
    *,
    data: Path | None,
    seed: int,
    split: Literal["official", "speaker"] = "official",
    speaker: Literal["george", "jackson", "lucas", "nicolas", "theo", "yweweler"] = "yweweler",
    epochs: int = 15,
) -> Task:
    """Return the task.

    Args:
        data: Folder with `fsdd_8khz.npz` or with the recordings of the data set's repository.
        seed: Of the augmentation.
        split: `official`: takes 0 to 4 of every speaker are the test, so all voices are known;
            `speaker`: the test is everything that one speaker said, who is in no other part.
        speaker: Who is left out.
        epochs: Of training.
    """
    waves, labels, speakers, takes = read_recordings(data)
    features = np.stack([mfcc(wave) for wave in waves])[:, None]  # (n, 1, 49, 10)
    if split == "official":
        is_test, is_validation = takes < 5, (takes >= 5) & (takes < 10)
    else:
        is_test = speakers == speaker
        is_validation = ~is_test & (takes < 5)
    is_train = ~is_test & ~is_validation
    mean = features[is_train].mean(axis=(0, 2), keepdims=True)  # (1, 1, 1, 10)
    deviation = features[is_train].std(axis=(0, 2), keepdims=True)
    features = ((features - mean) / deviation).astype(np.float32)
    rng = np.random.default_rng(seed)
    parts = {"train": is_train, "validation": is_validation, "test": is_test}
    splits = {
        name: ArraySplit(
            inputs=(features[rows],),
            targets=labels[rows],
            shuffle=name == "train",
            augment=shift_and_mask if name == "train" else None,
            rng=rng,
        )
        for name, rows in parts.items()
    }
    typical = rng.permutation(np.flatnonzero(is_train))[:256]
    splits["calibration"] = ArraySplit(inputs=(features[typical],))

    def evaluate(predict: Predict, split: str) -> float:
        """Return the share of recordings that are recognised."""
        hits = [predict(*inputs).argmax(axis=1) == targets for inputs, targets in splits[split]]
        return float(np.concatenate(hits).mean())

    return Task(
        model=DsCnn(),
        example_inputs=(torch.from_numpy(features[:1]),),
        data=splits,
        evaluate=evaluate,
        loss=nn.functional.cross_entropy,
        training=Training(epochs=epochs, learning_rate=3e-3, weight_decay=1e-2),
    )


# ---- data


def read_recordings(
    data: Path | None,
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Return the waves in [-1, 1), and for each the digit, the speaker's name and the take."""
    path = find_data(
        ("fsdd_8khz.npz", "free-spoken-digit-dataset/recordings", "recordings"),
        data,
        what="the spoken digits",
        where_from="https://github.com/Jakobovski/free-spoken-digit-dataset",
    )
    if path.is_dir():
        files = sorted(path.glob("*_*_*.wav"))  # 7_jackson_32.wav
        digits, names, takes = zip(*(file.stem.split("_") for file in files), strict=True)
        waves = [read_wave(file) for file in files]
        return waves, np.array(digits, np.int64), np.array(names), np.array(takes, int)
    file = np.load(path)
    audio, offset = file["audio"].astype(np.float32) / 32768, file["offset"]
    waves = [audio[start:end] for start, end in pairwise(offset)]
    names = file["speakers"][file["speaker"]]
    return waves, file["label"].astype(np.int64), names, file["take"].astype(int)


def read_wave(path: Path) -> np.ndarray:
    """Return the samples of a 16-bit mono file."""
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, RATE_HZ)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return samples.astype(np.float32) / 32768


# ---- features


def mel_filters() -> np.ndarray:
    """Return triangular filters (N_MELS, N_FFT // 2 + 1), evenly spaced in mel, 20 to 4000 Hz."""
    lowest, highest = 2595 * np.log10(1 + np.array([20, RATE_HZ / 2]) / 700)
    edges_hz = 700 * (10 ** (np.linspace(lowest, highest, N_MELS + 2) / 2595) - 1)
    bins_hz = np.fft.rfftfreq(N_FFT, 1 / RATE_HZ)
    left, centre, right = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    rising, falling = (bins_hz - left) / (centre - left), (right - bins_hz) / (right - centre)
    return np.maximum(0, np.minimum(rising, falling))


FILTERS = mel_filters()
TAPER = np.hanning(WINDOW)


def mfcc(wave: np.ndarray) -> np.ndarray:
    """Return the mel-frequency cepstrum (49, 10) of the middle second, padded where shorter."""
    start = max(0, (len(wave) - N_SAMPLES) // 2)
    wave = wave[start : start + N_SAMPLES]
    before = (N_SAMPLES - len(wave)) // 2
    wave = np.pad(wave, (before, N_SAMPLES - len(wave) - before))
    frames = np.lib.stride_tricks.sliding_window_view(wave, WINDOW)[::STRIDE]  # (49, 320)
    power = np.abs(np.fft.rfft(frames * TAPER, N_FFT)) ** 2  # (49, 257)
    return dct(np.log(power @ FILTERS.T + 1e-6), norm="ortho")[:, :N_MFCC]


def shift_and_mask(
    inputs: tuple[np.ndarray, ...], rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """Return each recording moved by up to 5 frames (100 ms), with up to 8 frames blanked."""
    (features,) = inputs
    changed = features.copy()
    for i, shift in enumerate(rng.integers(-5, 6, len(features))):
        changed[i, 0] = np.roll(features[i, 0], shift, axis=0)
        start, length = rng.integers(0, N_FRAMES), rng.integers(0, 9)
        changed[i, 0, start : start + length] = 0
    return (changed,)


# ---- model


class DsCnn(nn.Module):
    """One ordinary and four depthwise-separable convolutions, 64 channels (Zhang et al., 2017)."""

    def __init__(self, n_channels: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, n_channels, (10, 4), stride=2, padding=(5, 1), bias=False),
            nn.BatchNorm2d(n_channels),
            nn.ReLU(),
        )  # (batch, 64, 25, 5)
        self.blocks = nn.Sequential(*(separable(n_channels) for _ in range(4)))
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(n_channels, 10)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, 10) of features (batch, 1, 49, 10)."""
        x = self.blocks(self.stem(features)).mean(dim=(2, 3))
        return self.classifier(self.dropout(x))


def separable(n_channels: int) -> nn.Sequential:
    """Return a 3x3 convolution of each channel alone, then a 1x1 convolution across channels."""
    return nn.Sequential(
        nn.Conv2d(n_channels, n_channels, 3, padding=1, groups=n_channels, bias=False),
        nn.BatchNorm2d(n_channels),
        nn.ReLU(),
        nn.Conv2d(n_channels, n_channels, 1, bias=False),
        nn.BatchNorm2d(n_channels),
        nn.ReLU(),
    )
