"""Every layer that the README's table names, as a small model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAP = (1, 3, 8, 8)  # (n, c, h, w)
VECTOR = (1, 16)
SIGNAL = (1, 3, 32)  # (n, c, length)
SEQUENCE = (1, 6, 16)  # (n, positions, features)


class OnMap(nn.Module):
    """A convolution, the operation, a convolution."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 8, 3, padding=1)
        self.operation = operation
        self.after = nn.LazyConv2d(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.operation(self.before(x)))


class OnVector(nn.Module):
    """A linear layer, then the operation."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.before = nn.Linear(16, 8)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(self.before(x))


class Apply(nn.Module):
    """The operation alone; of several results the first."""

    def __init__(self, operation: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        result = self.operation(x)
        return result[0] if isinstance(result, tuple) else result


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * self.gate(y)


class BackToBack(nn.Module):
    """Two branches that meet again."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.left(x), self.right(x))


@dataclass(frozen=True, kw_only=True)
class Layer:
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]


def _map(operation: Callable[[Tensor], Tensor]) -> Layer:
    return Layer(make=lambda: OnMap(operation), shape=MAP)


def _vector(operation: Callable[[Tensor], Tensor]) -> Layer:
    return Layer(make=lambda: OnVector(operation), shape=VECTOR)


SUPPORTED: dict[str, tuple[Layer, ...]] = {
    "Conv2d (strided, dilated, grouped, depthwise)": (
        Layer(make=lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()), shape=MAP),
        Layer(make=lambda: nn.Conv2d(3, 8, 3, dilation=2), shape=MAP),
        Layer(
            make=lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2)), shape=MAP
        ),
        Layer(make=lambda: nn.Conv2d(3, 6, 3, groups=3, padding="same"), shape=MAP),
    ),
    "Conv1d, MaxPool1d, AvgPool1d": (
        Layer(
            make=lambda: nn.Sequential(
                nn.Conv1d(3, 8, 3, padding=1),
                nn.BatchNorm1d(8),
                nn.ReLU(),
                nn.MaxPool1d(2),
                nn.Conv1d(8, 8, 3, padding="same"),
                nn.ReLU(),
                nn.AvgPool1d(2),
            ),
            shape=SIGNAL,
        ),
    ),
    "ConvTranspose2d": (
        Layer(make=lambda: nn.Sequential(nn.ConvTranspose2d(3, 8, 2, 2), nn.ReLU()), shape=MAP),
        Layer(
            make=lambda: nn.Sequential(nn.ConvTranspose2d(3, 8, 3, 2, 1, 1), nn.BatchNorm2d(8)),
            shape=MAP,
        ),
    ),
    "Linear": (Layer(make=lambda: nn.Linear(16, 8), shape=VECTOR),),
    "BatchNorm1d, BatchNorm2d (folded, or a 1x1 depthwise convolution)": (
        Layer(make=lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), shape=MAP),
        Layer(make=lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3)), shape=MAP),
        Layer(make=lambda: nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8)), shape=VECTOR),
    ),
    "LayerNorm, GroupNorm, InstanceNorm2d, RMSNorm": (
        _vector(nn.LayerNorm(8)),
        _map(nn.GroupNorm(2, 8)),
        _map(nn.InstanceNorm2d(8)),
        _vector(nn.RMSNorm(8)),
    ),
    "ReLU, ReLU6, Hardtanh, clamp": (_map(F.relu), _map(F.relu6), _map(F.hardtanh)),
    "LeakyReLU, PReLU": (_map(nn.LeakyReLU(0.1)), _map(nn.PReLU(8))),
    "Hardswish, Hardsigmoid, SiLU": (_map(F.hardswish), _map(F.hardsigmoid), _map(F.silu)),
    "GELU": (_map(F.gelu),),
    "Sigmoid, Tanh": (_map(torch.sigmoid), _vector(torch.tanh)),
    "Softmax, LogSoftmax": (_vector(nn.Softmax(-1)), _vector(nn.LogSoftmax(-1))),
    "MaxPool2d, AvgPool2d, AdaptiveAvgPool2d(1), mean": (
        _map(nn.MaxPool2d(3, 2, 1)),
        _map(nn.AvgPool2d(2)),
        _map(nn.AdaptiveAvgPool2d(1)),
        _map(lambda x: x.mean([2, 3], keepdim=True)),
    ),
    "+, -, *, maximum, minimum, abs, square": (
        Layer(make=lambda: BackToBack(lambda a, b: torch.relu(a + b)), shape=MAP),
        Layer(make=lambda: BackToBack(lambda a, b: a - 2 * b), shape=MAP),
        Layer(make=lambda: BackToBack(lambda a, b: a * b), shape=MAP),
        Layer(make=lambda: BackToBack(torch.maximum), shape=MAP),
        Layer(make=lambda: BackToBack(torch.minimum), shape=MAP),
        _map(lambda x: x.abs() / 3 - x**2),
    ),
    "cat, stack, split, chunk, slices, flip": (
        Layer(make=lambda: BackToBack(lambda a, b: torch.cat([a, b], 1)), shape=MAP),
        _map(lambda x: torch.cat(torch.split(x, [2, 6], 1)[::-1], 1)),
        _map(lambda x: x.chunk(2, 1)[0] + x[:, 4:]),
        _map(lambda x: x[:, :, ::2, ::2]),
        _vector(lambda x: torch.stack([x, x.flip(1)], 1)),
    ),
    "flatten, reshape, permute, pad, repeat": (
        _map(lambda x: F.pad(x, (1, 2, 1, 2))),
        _map(lambda x: x.repeat(1, 1, 2, 1)),
        Layer(
            make=lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 4)),
            shape=MAP,
        ),
    ),
    "PixelShuffle, PixelUnshuffle, ChannelShuffle": (
        _map(lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2) * 2),
        _map(lambda x: F.channel_shuffle(x, 2)),
    ),
    "Upsample (nearest also in 1-D, bilinear)": (
        _map(nn.Upsample(scale_factor=2)),
        _map(nn.Upsample(scale_factor=2, mode="bilinear")),
        Layer(
            make=lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.Upsample(scale_factor=2)),
            shape=SIGNAL,
        ),
    ),
    "squeeze-and-excite": (Layer(make=SqueezeExcite, shape=MAP),),
    "MultiheadAttention, TransformerEncoderLayer (no mask), matmul": (
        Layer(make=SelfAttention, shape=SEQUENCE),
        Layer(make=lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), shape=SEQUENCE),
    ),
    "LSTM, GRU (unrolled)": (
        Layer(make=lambda: Apply(nn.LSTM(16, 8, batch_first=True)), shape=SEQUENCE),
        Layer(make=lambda: Apply(nn.GRU(16, 8, batch_first=True)), shape=SEQUENCE),
    ),
}

REFUSED: dict[str, Layer] = {
    "ELU": _map(nn.ELU()),
    "SELU": _map(nn.SELU()),
    "CELU": _map(nn.CELU()),
    "Softplus": _map(nn.Softplus()),
    "Mish": _map(nn.Mish()),
    "exp": _vector(torch.exp),
    "log": _vector(lambda x: torch.log(x.abs() + 1)),
    "sqrt": _vector(lambda x: torch.sqrt(x.abs())),
    "division by a tensor": _vector(lambda x: x / (x.abs() + 1)),
    "einsum": _vector(lambda x: torch.einsum("ni,ij->nj", x, torch.eye(8))),
    "attention with a mask": Layer(
        make=lambda: Apply(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)),
        shape=SEQUENCE,
    ),
    "cumsum": _vector(lambda x: x.cumsum(-1)),
    "topk": _vector(lambda x: x.topk(2).values),
    "where": _vector(lambda x: torch.where(x > 0, x, -x)),
    "sin, cos": _vector(torch.sin),
}
