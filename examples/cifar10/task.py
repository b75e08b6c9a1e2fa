"""CIFAR-10: 32x32 colour images of ten kinds of things, with two small residual networks."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from edgeshrink.task import Predict, Task, Training, find_data

MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]  # of ImageNet, as the
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]  # checkpoint expects
N_VALIDATION = 5000
N_CALIBRATION = 256
CHECKPOINTS = {
    "resnet20": "akamaster_resnet20-12fca82f.th",
    "resnet56": "akamaster_resnet56-4bfd9763.th",
}


def build(
    *,
    data: Path | None,
    seed: int,
    model: Literal["resnet8", "resnet20", "resnet56"] = "resnet8",
    checkpoint: Path | None = None,
    teacher: Path | None = None,
    epochs: int | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> Task:
    """Return the task.

    Args:
        data: Folder with `cifar-10-batches-py` or `cifar10_jpeg.npz`.
        seed: Chooses the 5,000 training images that are held out for validation.
        model: MLPerf Tiny's ResNet-8, trained here; or a larger one, from a checkpoint.
        checkpoint: Weights of ResNet-20 or -56; left out, looked for in the data folder.
        teacher: Weights of a ResNet-20 or -56 that recipes distil from; left out, from the model.
        epochs: Of training; left out, 10 of ResNet-8, and none of the others.
        precision: Of training: bfloat16 takes half the time where the processor has it.
    """
    train, train_labels, test, test_labels = read_images(data)
    if epochs is None:
        epochs = 10 if model == "resnet8" else 0
    order = np.random.default_rng(seed).permutation(len(train_labels))
    held_out, rest = order[:N_VALIDATION], order[N_VALIDATION:]
    splits = {
        "train": Images(
            image=train, labels=train_labels, rows=rest, augments=True,
            rng=np.random.default_rng(seed),
        ),
        "calibration": Images(image=train, labels=train_labels, rows=rest[:N_CALIBRATION]),
        "validation": Images(image=train, labels=train_labels, rows=held_out),
        "test": Images(image=test, labels=test_labels, rows=np.arange(len(test_labels))),
    }  # fmt: skip

    def evaluate(predict: Predict, split: str) -> float:
        """Return the share of images that are recognised."""
        hits = [predict(*inputs).argmax(axis=1) == targets for inputs, targets in splits[split]]
        return float(np.concatenate(hits).mean())

    net: nn.Module
    if model == "resnet8":
        net = ResNet8()
        training = Training(
            epochs=epochs, learning_rate=4e-3, weight_decay=5e-3, precision=precision
        )
    else:
        weights = checkpoint or find_data(
            (CHECKPOINTS[model], f"../models/{CHECKPOINTS[model]}"),
            data,
            what=f"the {model.replace('resnet', 'ResNet-')} checkpoint",
            where_from="https://github.com/akamaster/pytorch_resnet_cifar10 (pretrained_models)",
        )
        net = read_resnet(weights)
        training = Training(  # the checkpoints have seen the validation images: no epoch is chosen
            epochs=epochs, optimizer="sgd", learning_rate=0.03, weight_decay=5e-4, ema=0.998,
            precision=precision, keep="last",
        )  # fmt: skip
    return Task(
        model=net,
        example_inputs=(torch.from_numpy(normalise(test(0)[None])),),
        data=splits,
        evaluate=evaluate,
        loss=nn.functional.cross_entropy,
        training=training if epochs else None,
        teacher=None if teacher is None else read_resnet(teacher),
    )


# ---- data


def normalise(images: np.ndarray) -> np.ndarray:
    """Return images (n, 3, 32, 32) of bytes as the networks take them."""
    return (images.astype(np.float32) / 255 - MEAN) / DEVIATION


@dataclass(frozen=True, kw_only=True)
class Images:
    """A split that holds the images as they were stored, and decodes them batch by batch."""

    image: Callable[[int], np.ndarray]  # row -> (3, 32, 32) uint8
    labels: np.ndarray
    rows: np.ndarray
    augments: bool = False  # shuffles, mirrors and shifts
    batch_size: int = 128
    rng: np.random.Generator = field(default_factory=np.random.default_rng)

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[tuple[np.ndarray], np.ndarray]]:
        rows = self.rng.permutation(self.rows) if self.augments else self.rows
        for start in range(0, len(rows), self.batch_size):
            batch = rows[start : start + self.batch_size]
            images = np.stack([self.image(row) for row in batch])  # (batch, 3, 32, 32)
            if self.augments:
                images = self.mirror_and_shift(images)
            yield (normalise(images),), self.labels[batch]

    def mirror_and_shift(self, images: np.ndarray) -> np.ndarray:
        """Return each image mirrored or not, and moved by up to 4 pixels."""
        padded = np.pad(images, ((0, 0), (0, 0), (4, 4), (4, 4)))
        moved = np.empty_like(images)
        for i, (y, x, mirrored) in enumerate(self.rng.integers(0, (9, 9, 2), (len(images), 3))):
            crop = padded[i, :, y : y + 32, x : x + 32]
            moved[i] = crop[:, :, ::-1] if mirrored else crop
        return moved


Part = Callable[[int], np.ndarray]


def read_images(data: Path | None) -> tuple[Part, np.ndarray, Part, np.ndarray]:
    """Return a function from row to image, and the labels, for the training and the test part."""
    path = find_data(
        ("cifar-10-batches-py", "cifar10_jpeg.npz"),
        data,
        what="the CIFAR-10 images",
        where_from="https://www.cs.toronto.edu/~kriz/cifar.html (the python version, unpacked)",
    )
    if path.is_dir():
        train = [read_batch(path / f"data_batch_{i}") for i in range(1, 6)]
        images = np.concatenate([batch[0] for batch in train])
        labels = np.concatenate([batch[1] for batch in train])
        test_images, test_labels = read_batch(path / "test_batch")
        return images.__getitem__, labels, test_images.__getitem__, test_labels
    # Images that went through JPEG: see README.md before you compare figures. Each is decoded once.
    file = np.load(path)
    return (
        cache(partial(decode, file["train_jpeg"].data, file["train_offset"])),
        file["train_y"].astype(np.int64),
        cache(partial(decode, file["test_jpeg"].data, file["test_offset"])),
        file["test_y"].astype(np.int64),
    )


def decode(stream: memoryview, offsets: np.ndarray, row: int) -> np.ndarray:
    """Return image `row` (3, 32, 32) of a stream of JPEG files."""
    from PIL import Image

    with Image.open(io.BytesIO(stream[offsets[row] : offsets[row + 1]])) as image:
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


class ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays and plain values; a pickle with anything else in it is refused."""

    ALLOWED = frozenset({("_reconstruct", "multiarray"), ("ndarray", "numpy"), ("dtype", "numpy")})

    def find_class(self, module: str, name: str) -> Any:
        """Return what numpy calls so; its modules have moved since the files were written."""
        if module.split(".")[0] == "numpy" and (name, module.split(".")[-1]) in self.ALLOWED:
            return np._core.multiarray._reconstruct if name == "_reconstruct" else getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a CIFAR-10 batch")


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the images (10000, 3, 32, 32) and labels of an official batch file."""
    with path.open("rb") as file:
        batch = ArrayUnpickler(file, encoding="bytes").load()
    return batch[b"data"].reshape(-1, 3, 32, 32), np.array(batch[b"labels"], np.int64)


# ---- models


def conv(n_in: int, n_out: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution that keeps the size (or halves it)."""
    return nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)


class Block(nn.Module):
    """Two convolutions with a way around them."""

    def __init__(self, n_in: int, n_out: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(n_in, n_out, stride), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = conv(n_out, n_out), nn.BatchNorm2d(n_out)
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, n_in, h, w) to (batch, n_out, h / stride, w / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet8(nn.Module):
    """The shape of MLPerf Tiny's image classifier: one block each of 16, 32 and 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(
            Block(16, 16, 1, nn.Identity()),
            Block(16, 32, 2, nn.Conv2d(16, 32, 1, stride=2)),
            Block(32, 64, 2, nn.Conv2d(32, 64, 1, stride=2)),
        )
        self.classifier = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, 10) of images (batch, 3, 32, 32)."""
        return self.classifier(self.blocks(self.stem(image)).mean(dim=(2, 3)))


class Subsample(nn.Module):
    """Every second pixel, with zeros as the new channels (He et al., 2016, option A)."""

    def __init__(self, n_new: int) -> None:
        super().__init__()
        self.before, self.after = n_new // 2, n_new - n_new // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, c, h, w) to (batch, c + n_new, h / 2, w / 2)."""
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class ResNet(nn.Module):
    """He et al. (2016), section 4.2; names as in the published checkpoints.

    Args:
        n_blocks: In each of the three stacks: 3 are ResNet-20, 9 are ResNet-56.
    """

    def __init__(self, n_blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 16), nn.BatchNorm2d(16)
        self.layer1 = stack(16, 16, n_blocks)
        self.layer2 = stack(16, 32, n_blocks)
        self.layer3 = stack(32, 64, n_blocks)
        self.linear = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, 10) of images (batch, 3, 32, 32)."""
        x = functional.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


def stack(n_in: int, n_out: int, n_blocks: int) -> nn.Sequential:
    """Return blocks; the first one halves the size where it adds channels."""
    first = Block(n_in, n_out, 2, Subsample(n_out - n_in)) if n_out > n_in else None
    rest = [Block(n_out, n_out, 1, nn.Identity()) for _ in range(n_blocks - bool(first))]
    return nn.Sequential(*([first] if first else []), *rest)


def read_resnet(path: Path) -> ResNet:
    """Return the network of a checkpoint; nothing in the file is executed."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = {k.removeprefix("module."): v for k, v in state.get("state_dict", state).items()}
    model = ResNet(len({name.split(".")[1] for name in state if name.startswith("layer1.")}))
    model.load_state_dict(state)
    return model
