"""Networks of the literature, random weights: shapes as published, statistics made plausible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from edgeshrink.task import ArraySplit, Task


def _conv_bn(n_in: int, n_out: int, kernel, stride: int = 1, groups: int = 1) -> nn.Sequential:
    padding = tuple(k // 2 for k in kernel) if isinstance(kernel, tuple) else kernel // 2
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(n_out),
    )


class DsCnn(nn.Module):
    """Zhang et al., 2017 (arXiv 1711.07128), as in MLPerf Tiny: 49x10 features, 64 channels."""

    def __init__(self, n_classes: int = 12, width: int = 64) -> None:
        super().__init__()
        stem = [nn.ZeroPad2d((1, 1, 4, 5)), nn.Conv2d(1, width, (10, 4), 2, bias=False)]
        layers: list[nn.Module] = [*stem, nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.2)]
        for _ in range(4):
            layers += [_conv_bn(width, width, 3, groups=width), nn.ReLU()]
            layers += [_conv_bn(width, width, 1), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, n_classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(features)).flatten(1))


class ResNet8(nn.Module):
    """The image classifier of MLPerf Tiny (Banbury et al., 2021, arXiv 2106.07597)."""

    def __init__(self, n_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv_bn(3, 16, 3), nn.ReLU())
        self.blocks, self.shortcuts = nn.ModuleList(), nn.ModuleList()
        for n_in, n_out, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2)):
            self.blocks.append(
                nn.Sequential(
                    _conv_bn(n_in, n_out, 3, stride), nn.ReLU(), _conv_bn(n_out, n_out, 3)
                )
            )
            same = n_in == n_out
            self.shortcuts.append(nn.Identity() if same else nn.Conv2d(n_in, n_out, 1, stride))
        self.classifier = nn.Linear(64, n_classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        for block, shortcut in zip(self.blocks, self.shortcuts, strict=True):
            x = torch.relu(block(x) + shortcut(x))
        x = nn.functional.avg_pool2d(x, 8)
        return self.classifier(x.flatten(1))


class MobileNetV1(nn.Module):
    """Howard et al., 2017 (arXiv 1704.04861), table 1; width multiplier `alpha`."""

    def __init__(self, alpha: float = 0.25, n_classes: int = 2) -> None:
        super().__init__()
        plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5,
                (1024, 2), (1024, 1)]  # fmt: skip
        channels = int(32 * alpha)
        layers: list[nn.Module] = [_conv_bn(3, channels, 3, 2), nn.ReLU6()]
        for width, stride in plan:
            out = int(width * alpha)
            layers += [_conv_bn(channels, channels, 3, stride, channels), nn.ReLU6()]
            layers += [_conv_bn(channels, out, 1), nn.ReLU6()]
            channels = out
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, n_classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.features(image).mean([2, 3]))


class InvertedResidual(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = n_in * expansion
        expand = [_conv_bn(n_in, hidden, 1), nn.ReLU6()] if expansion > 1 else []
        depthwise = [_conv_bn(hidden, hidden, 3, stride, hidden), nn.ReLU6()]
        self.body = nn.Sequential(*expand, *depthwise, _conv_bn(hidden, n_out, 1))
        self.residual = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class MobileNetV2(nn.Module):
    """Sandler et al., 2018 (arXiv 1801.04381), table 2; width multiplier `alpha`."""

    def __init__(self, alpha: float = 0.35, n_classes: int = 10) -> None:
        super().__init__()

        def width(channels: int) -> int:
            return max(8, int(channels * alpha + 4) // 8 * 8)

        channels = width(32)
        layers: list[nn.Module] = [_conv_bn(3, channels, 3, 2), nn.ReLU6()]
        for expansion, out, repeats, stride in (
            (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
            (6, 160, 3, 2), (6, 320, 1, 1),
        ):  # fmt: skip
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                layers.append(InvertedResidual(channels, width(out), step, expansion))
                channels = width(out)
        layers += [_conv_bn(channels, 1280, 1), nn.ReLU6()]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, n_classes))

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.pool(self.features(image)), 1))


class Autoencoder(nn.Module):
    """The anomaly detector of MLPerf Tiny: dense 640-128x4-8-128x4-640."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [640, 128, 128, 128, 128, 8, 128, 128, 128, 128]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            layers += [nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(128, 640))

    def forward(self, spectrum: Tensor) -> Tensor:
        return self.layers(spectrum)


@dataclass(frozen=True, kw_only=True)
class Entry:
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]  # of one sample


ZOO = {
    "ds-cnn": Entry(make=DsCnn, shape=(1, 49, 10)),
    "resnet-8": Entry(make=ResNet8, shape=(3, 32, 32)),
    "mobilenet-v1-0.25-96": Entry(make=MobileNetV1, shape=(3, 96, 96)),
    "mobilenet-v2-0.35-96": Entry(make=MobileNetV2, shape=(3, 96, 96)),
    "autoencoder": Entry(make=Autoencoder, shape=(640,)),
}


def zoo_task(name: str, *, n_samples: int = 32, seed: int = 0) -> Task:
    """A task around a network with random weights, gaussian inputs, their batch-norm statistics."""
    entry = ZOO[name]
    torch.manual_seed(seed)
    model = entry.make().train()
    with torch.no_grad():
        for _ in range(10):
            model(torch.randn(16, *entry.shape))
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((n_samples, *entry.shape), np.float32)
    return Task(
        name=name,
        model=model.eval(),
        example_inputs=(torch.from_numpy(inputs[:1]),),
        data={"calibration": ArraySplit(inputs=(inputs,))},
    )
