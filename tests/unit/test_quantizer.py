"""The quantizer: one spelling per operation, one scale per value, refusals by name."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from edgeshrink.errors import ModelError
from edgeshrink.quantizer import canonical_program, quantize
from edgeshrink.quantizer.annotate import refuse_unsupported
from edgeshrink.quantizer.decompositions import OURS
from edgeshrink.quantizer.operators import MICRO_REMEDIES, REMEDIES, RULES

aten = torch.ops.aten
MAP, WIDE = (1, 4, 8, 8), (1, 4, 6, 10)  # (n, c, h, w)
SIGNAL, VECTOR, SEQUENCE, STEPS = (1, 4, 12), (1, 6), (1, 5, 8), (1, 2, 8)


class Of(nn.Module):
    """A function of the inputs, and the modules that it calls."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleDict(modules)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs, **self.parts)


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give norms statistics, weights and biases that matter; put the model in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name in ("weight", "bias", "running_mean", "running_var"):
                value = getattr(module, name, None)
                if isinstance(value, Tensor) and "Norm" in type(module).__name__:
                    spread = torch.rand(value.shape, generator=generator)
                    value.copy_(0.5 + spread if name != "bias" else spread - 0.5)
    return model.eval()


def rows(*shapes: tuple[int, ...], seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, generator=generator) for shape in shapes)


def leaves(value: Any) -> list[Tensor]:
    return torch.utils._pytree.tree_leaves(value)


def quantized(model: nn.Module, *shapes: tuple[int, ...], n: int = 6) -> fx.GraphModule:
    graph_module = canonical_program(model.eval(), rows(*shapes))
    samples = [rows(*shapes, seed=seed) for seed in range(n)]
    return quantize(graph_module, samples, observer="minmax").folded


def nodes(graph_module: fx.GraphModule, target: Any) -> list[fx.Node]:
    return [n for n in graph_module.graph.nodes if n.target == target]


def held(graph_module: fx.GraphModule, node: Any) -> Tensor:
    """The constant that a `get_attr` node names."""
    assert node.op == "get_attr", f"{node.name} is computed"
    return graph_module.state_dict()[node.target]


def targets(graph_module: fx.GraphModule) -> list[Any]:
    return [n.target for n in graph_module.graph.nodes if n.op == "call_function"]


def is_quantize(node: fx.Node) -> bool:
    return node.op == "call_function" and ".quantize_per_tensor" in str(node.target)


def is_dequantize(node: fx.Node) -> bool:
    return node.op == "call_function" and "dequantize_per_tensor" in str(node.target)


Scale = tuple[float, int]


def read_scale(node: fx.Node, position: int = 0) -> Scale:
    """The scale and zero point with which `node` reads its argument."""
    source = node.args[position]
    assert isinstance(source, fx.Node)
    assert is_dequantize(source), f"{node.name} reads {source.name} in float"
    return float(source.args[1]), int(source.args[2])  # type: ignore[arg-type]


def written_scale(node: fx.Node) -> Scale:
    """The scale and zero point with which what `node` computes is stored."""
    assert [is_quantize(user) for user in node.users] == [True], f"{node.name} is read in float"
    (user,) = node.users
    return float(user.args[1]), int(user.args[2])  # type: ignore[arg-type]


# --- canonical form ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """A model, its inputs, and how much float rounding may move its outputs (of their largest)."""

    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    tolerance: float = 2e-6


def _of(function: Callable[..., Any], *shapes: tuple[int, ...], **modules: nn.Module) -> Rewrite:
    return Rewrite(make=lambda: Of(function, **modules), shapes=shapes or (MAP,))


def _chain(*layers: Callable[[], nn.Module], shape: tuple[int, ...] = MAP) -> Rewrite:
    return Rewrite(make=lambda: nn.Sequential(*(make() for make in layers)), shapes=(shape,))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module], **options: Any) -> None:
        super().__init__()
        self.cell = kind(8, 6, **options)

    def forward(self, x: Tensor) -> Any:
        return self.cell(x)


REWRITES: dict[str, Rewrite] = {
    "silu": _of(F.silu),
    "hardsigmoid": _of(F.hardsigmoid),
    "prelu of one slope": _chain(nn.PReLU),
    "prelu of a slope per channel": _chain(lambda: nn.PReLU(4)),
    "prelu of vectors": _chain(lambda: nn.PReLU(6), shape=VECTOR),
    "layer norm": _chain(lambda: nn.LayerNorm(8), shape=SEQUENCE),
    "layer norm over two axes, without bias": _chain(
        lambda: nn.LayerNorm([5, 8], bias=False), shape=SEQUENCE
    ),
    "layer norm without weights": _chain(
        lambda: nn.LayerNorm(8, elementwise_affine=False), shape=SEQUENCE
    ),
    "rms norm": _chain(lambda: nn.RMSNorm(8), shape=SEQUENCE),
    "rms norm with its own epsilon": _chain(
        lambda: nn.RMSNorm(8, eps=0.1, elementwise_affine=False), shape=SEQUENCE
    ),
    "group norm of maps": _chain(lambda: nn.GroupNorm(2, 4)),
    "group norm of signals": _chain(lambda: nn.GroupNorm(4, 4, affine=False), shape=SIGNAL),
    "instance norm": _chain(lambda: nn.InstanceNorm2d(4, affine=True)),
    "attention": _of(F.scaled_dot_product_attention, SEQUENCE, SEQUENCE, SEQUENCE),
    "attention of two lengths, with a scale": _of(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3),
        SEQUENCE, (1, 7, 8), (1, 7, 3),
    ),
    "multi-head attention with its weights": _of(
        lambda x, attention: attention(x, x, x), SEQUENCE,
        attention=nn.MultiheadAttention(8, 2, batch_first=True),
    ),
    "encoder layer": _chain(
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), shape=SEQUENCE
    ),
    "lstm": Rewrite(make=lambda: Recurrent(nn.LSTM, batch_first=True), shapes=(STEPS,)),
    "two-layer lstm in both directions": Rewrite(
        make=lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True), shapes=(STEPS,)
    ),
    "gru": Rewrite(make=lambda: Recurrent(nn.GRU, batch_first=True), shapes=(STEPS,)),
    "gru without bias": Rewrite(make=lambda: Recurrent(nn.GRU, bias=False), shapes=(STEPS,)),
    "conv1d": _chain(lambda: nn.Conv1d(4, 6, 3, 2, 1), shape=SIGNAL),
    "conv1d, dilated and grouped": _chain(
        lambda: nn.Conv1d(4, 6, 3, dilation=2, groups=2, bias=False), shape=SIGNAL
    ),
    "conv1d of an even kernel that keeps the length": _chain(
        lambda: nn.Conv1d(4, 6, 4, padding="same", dilation=3), shape=SIGNAL
    ),
    "conv1d with valid padding": _chain(lambda: nn.Conv1d(4, 6, 4, padding="valid"), shape=SIGNAL),
    "conv2d of an even, oblong kernel that keeps the size": _chain(
        lambda: nn.Conv2d(4, 6, (2, 5), padding="same", dilation=(3, 1)), shape=WIDE
    ),
    "transposed convolution with padding": _chain(
        lambda: nn.ConvTranspose2d(4, 6, 3, 2, padding=1), shape=WIDE
    ),
    "transposed convolution with output padding": _chain(
        lambda: nn.ConvTranspose2d(4, 6, (3, 4), (2, 3), (1, 2), (1, 2)), shape=WIDE
    ),
    "grouped transposed convolution with padding on one axis": _chain(
        lambda: nn.ConvTranspose2d(4, 6, 3, 2, padding=(0, 1), groups=2), shape=WIDE
    ),
    "max pool of signals": _chain(lambda: nn.MaxPool1d(3, 2, 1), shape=SIGNAL),
    "max pool of signals, dilated": _chain(lambda: nn.MaxPool1d(3, 1, dilation=2), shape=SIGNAL),
    "average pool of signals": _chain(
        lambda: nn.AvgPool1d(3, 2, 1, count_include_pad=False), shape=SIGNAL
    ),
    "average pool of signals, length rounded up": _chain(
        lambda: nn.AvgPool1d(5, 3, ceil_mode=True), shape=SIGNAL
    ),
    "resized signals": _chain(lambda: nn.Upsample(scale_factor=2), shape=SIGNAL),
    "signals resized to a length": _chain(lambda: nn.Upsample(size=17), shape=SIGNAL),
    "global pool of signals": _chain(lambda: nn.AdaptiveAvgPool1d(1), shape=SIGNAL),
    "average pool that covers the map": _of(lambda x: F.avg_pool2d(x, (6, 10)), WIDE),
    "average pool that covers the map with a divisor": _of(
        lambda x: F.avg_pool2d(x, 8, divisor_override=7)
    ),
    "average pool that only seems to cover the map": _of(lambda x: F.avg_pool2d(x, 8, 1, 4)),
    "mean over positions": _of(lambda x: x.mean([2, 3]), WIDE),
    "mean over positions, axes from the end": _of(lambda x: x.mean([-1, -2], keepdim=True), WIDE),
    "mean over the length": _of(lambda x: x.mean(2), SIGNAL),
    "mean over one axis of a map": _of(lambda x: x.mean(2), WIDE),
    "mean over channels": _of(lambda x: x.mean(1, keepdim=True), WIDE),
    "mean of everything": _of(lambda x: x.mean()),
    "sum of everything": _of(lambda x: x.sum()),
    "pad": _of(lambda x: F.pad(x, (1, 2, 3, 0), value=0.5)),
    "zero-pad layer": _chain(lambda: nn.ZeroPad2d((0, 1, 2, 0))),
    "crop by a negative pad": _of(lambda x: F.pad(x, (-1, 2))),
    "pixel shuffle": _chain(lambda: nn.PixelShuffle(2), shape=WIDE),
    "pixel unshuffle": _chain(lambda: nn.PixelUnshuffle(2), shape=WIDE),
    "channel shuffle": _chain(lambda: nn.ChannelShuffle(2)),
    "split with a smaller rest": _of(lambda x: torch.split(x, 3, 1)),
    "split by sizes": _of(lambda x: torch.split(x, [1, 5, 2], -1)),
    "chunk with a smaller rest": _of(lambda x: torch.chunk(x, 3, 3), WIDE),
    "unbind": _of(lambda x: torch.unbind(x, -1), SEQUENCE),
    "select from the end": _of(lambda x: x[:, -2], SEQUENCE),
    "narrow": _of(lambda x: x.narrow(2, 1, 3)),
    "stack in the middle": _of(lambda x, y: torch.stack([x, y, x], 1), SIGNAL, SIGNAL),
    "stack at the end": _of(lambda x, y: torch.stack([x, y], -1), SIGNAL, SIGNAL),
    "flip of two axes": _of(lambda x: x.flip([1, -1]), WIDE),
    "repeat with a new axis": _of(lambda x: x.repeat(2, 1, 3, 2), SIGNAL),
    "hardtanh": _of(lambda x: F.hardtanh(x, -0.3, 0.8)),
    "hardtanh from 0 to 6": _of(lambda x: F.hardtanh(9 * x, 0.0, 6.0)),
    "clamp": _of(lambda x: x.clamp(-0.3, 0.8)),
    "clamp from below": _of(lambda x: x.clamp_min(-0.3)),
    "clamp from below at 0": _of(lambda x: x.clamp(min=0)),
    "clamp from above": _of(lambda x: x.clamp_max(0.3)),
    "negation": _of(lambda x: -x),
    "number minus tensor": _of(lambda x: 2 - x),
    "number minus tensor times number": _of(lambda x: torch.rsub(x, 2, alpha=3)),
    "division by a number": _of(lambda x: x / 3),
    "square": _of(lambda x: x**2 + torch.square(x)),
    "gated linear unit": _of(lambda x: F.glu(x, 1)),
    "dropout": _chain(lambda: nn.Dropout(0.5), nn.Dropout2d),
    "constant arithmetic": _of(lambda x: x * (torch.arange(8.0) / 7).softmax(0)),
    "in-place steps": _of(lambda x: (x * 2).relu_().add_(1).mul_(x)),
    # batch norm in every position
    "batch norm behind a convolution": _chain(
        lambda: nn.Conv2d(4, 6, 3, bias=False), lambda: nn.BatchNorm2d(6)
    ),
    "batch norm behind a grouped convolution": _chain(
        lambda: nn.Conv2d(4, 6, 3, groups=2), lambda: nn.BatchNorm2d(6)
    ),
    "batch norm behind a depthwise convolution": _chain(
        lambda: nn.Conv2d(4, 8, 3, groups=4), lambda: nn.BatchNorm2d(8, affine=False)
    ),
    "batch norm before a convolution": _chain(
        lambda: nn.BatchNorm2d(4), lambda: nn.Conv2d(4, 6, 3, padding=1)
    ),
    "batch norm behind an activation": _chain(
        lambda: nn.Conv2d(4, 6, 3), nn.ReLU, lambda: nn.BatchNorm2d(6)
    ),
    "two batch norms in a row": _chain(
        lambda: nn.Conv2d(4, 6, 3), lambda: nn.BatchNorm2d(6), lambda: nn.BatchNorm2d(6)
    ),
    "batch norm behind a transposed convolution": _chain(
        lambda: nn.ConvTranspose2d(4, 6, 3, 2), lambda: nn.BatchNorm2d(6)
    ),
    "batch norm behind a padded transposed convolution": _chain(
        lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, bias=False), lambda: nn.BatchNorm2d(6), nn.ReLU
    ),
    "batch norm behind a grouped transposed convolution": _chain(
        lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2), lambda: nn.BatchNorm2d(6)
    ),
    "batch norm behind conv1d": _chain(
        lambda: nn.Conv1d(4, 6, 3), lambda: nn.BatchNorm1d(6), nn.ReLU, shape=SIGNAL
    ),
    "batch norm of signals alone": _chain(lambda: nn.BatchNorm1d(4), shape=SIGNAL),
    "batch norm behind a linear layer": _chain(
        lambda: nn.Linear(6, 5, bias=False), lambda: nn.BatchNorm1d(5), shape=VECTOR
    ),
    "batch norm over the positions of a linear layer": _chain(
        lambda: nn.Linear(8, 8), lambda: nn.BatchNorm1d(5), shape=SEQUENCE
    ),
    "batch norm of as many features as positions": _chain(
        lambda: nn.Linear(8, 8), lambda: nn.BatchNorm1d(8), shape=(1, 8, 8)
    ),
    "batch norm behind flatten": _chain(
        lambda: nn.Conv2d(4, 2, 3), nn.Flatten, lambda: nn.BatchNorm1d(72)
    ),
    "batch norm over other channels than the convolution's": _of(
        lambda x, conv, norm: norm(conv(x).reshape(1, 3, 16, 8)),
        conv=nn.Conv2d(4, 6, 3, padding=1), norm=nn.BatchNorm2d(3),
    ),
    "batch norm beside another reader of the convolution": _of(
        lambda x, conv, norm: norm(conv(x)) + conv(x).relu(),
        conv=nn.Conv2d(4, 6, 3), norm=nn.BatchNorm2d(6),
    ),
    "batch norm of a value that is read twice": _of(
        lambda x, conv, norm: (lambda y: norm(y) * y)(conv(x)),
        conv=nn.Conv2d(4, 6, 3), norm=nn.BatchNorm2d(6),
    ),
    "convolution whose weights two norms share": _of(
        lambda x, conv, one, two: one(conv(x)) + two(conv(x * 2)),
        conv=nn.Conv2d(4, 6, 3), one=nn.BatchNorm2d(6), two=nn.BatchNorm2d(6),
    ),
    "activation behind flatten": _of(
        lambda x, conv: torch.relu(conv(x).flatten(1)), conv=nn.Conv2d(4, 6, 3)
    ),
}  # fmt: skip


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomized(REWRITES[name].make())


APPLIED: set[Any] = set()  # operators for which some model above had something else traced


@pytest.fixture(scope="module", autouse=True)
def _watched_decompositions():
    def watched(operator: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            if result is not NotImplemented:
                APPLIED.add(operator)
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for operator, function in OURS.items():
            patch.setitem(OURS, operator, watched(operator, function))
        yield


# Tests of one name, `scope="module"`, run one behind the other, on one worker: one trace for all.
@functools.cache
def rewritten(name: str) -> fx.GraphModule:
    return canonical_program(made(name), rows(*REWRITES[name].shapes))


@pytest.mark.parametrize("name", REWRITES, scope="module")
def test_canonical_program_computes_what_the_model_computes(name):
    case, model, graph_module = REWRITES[name], made(name), rewritten(name)
    for seed in (1, 2):
        inputs = rows(*case.shapes, seed=seed)
        with torch.no_grad():
            expected, got = leaves(model(*inputs)), leaves(graph_module(*inputs))
        assert [g.shape for g in got] == [e.shape for e in expected]
        for one, other in zip(got, expected, strict=True):
            limit = case.tolerance * max(1.0, float(other.abs().max()))
            assert float((one - other).abs().max()) <= limit


@pytest.mark.parametrize("name", REWRITES, scope="module")
def test_every_rewritten_operator_has_a_rule(name):
    assert set(targets(rewritten(name))) <= set(RULES)


def test_every_decomposition_is_compared_with_its_model():
    for name in REWRITES:
        rewritten(name)
    assert set(OURS) - APPLIED == set()


def test_batch_norm_is_folded_into_every_kind_of_convolution():
    for name in (
        "batch norm behind a convolution",
        "batch norm behind a grouped convolution",
        "batch norm behind a depthwise convolution",
        "batch norm behind a transposed convolution",
        "batch norm behind conv1d",
        "batch norm behind a linear layer",
        "two batch norms in a row",
    ):
        found = targets(rewritten(name))
        weighted = {t for t in RULES if RULES[t].kind == "weighted"}
        extra = [t for t in found if t not in weighted | {aten.reshape.default, aten.relu.default}]
        assert len([t for t in found if t in weighted]) == 1, name
        assert not extra, name


def test_mean_over_positions_and_a_pool_that_covers_the_map_become_the_same_operator():
    for function in (
        lambda x: x.mean([2, 3]),
        lambda x: F.avg_pool2d(x, 8).flatten(1),
        lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
    ):
        found = targets(canonical_program(Of(function).eval(), rows(MAP)))
        assert found == [aten.adaptive_avg_pool2d.default, aten.reshape.default]


def test_activation_is_lifted_over_the_reshape_behind_its_convolution():
    model = Of(lambda x, conv: torch.relu(conv(x).flatten(1)), conv=nn.Conv2d(4, 6, 3)).eval()
    found = targets(canonical_program(model, rows(MAP)))
    assert found == [aten.conv2d.default, aten.relu.default, aten.reshape.default]


def test_folded_parameters_leave_the_graph():
    graph_module = rewritten("batch norm behind a convolution")
    held = [*graph_module.named_parameters(), *graph_module.named_buffers()]
    assert sorted(tuple(value.shape) for _, value in held) == [(6,), (6, 4, 3, 3)]


def test_canonical_program_leaves_the_model_as_it_was():
    case = REWRITES["batch norm behind a convolution"]
    model = randomized(case.make())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quantized(model, *case.shapes)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_model_with_a_branch_on_its_data_is_refused_with_the_remedy():
    model = Of(lambda x: x * 2 if x.sum() > 0 else x)
    with pytest.raises(ModelError, match=r"torch\.export\.export") as caught:
        canonical_program(model, rows(VECTOR))
    assert "write the branch with tensor operations" in caught.value.fix


# --- rules ------------------------------------------------------------------------------------

RULE_MODELS: dict[Any, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    aten.relu.default: (lambda x: F.relu(x), (MAP,)),
    aten.relu6.default: (lambda x: F.relu6(x), (MAP,)),
    aten.add.Tensor: (lambda x, y: x + 3 * y, (MAP, MAP)),
    aten.sub.Tensor: (lambda x, y: x - 3 * y, (MAP, MAP)),
    aten.mul.Tensor: (lambda x, y: x * y, (MAP, MAP)),
    aten.matmul.default: (lambda x, y: torch.matmul(x, y), (SEQUENCE, (1, 8, 3))),
    aten.bmm.default: (lambda x, y: torch.bmm(x, y), (SEQUENCE, (1, 8, 3))),
    aten.rsqrt.default: (lambda x: torch.rsqrt(x * x + 1), (VECTOR,)),
    aten.mean.dim: (lambda x: x.mean(1), (SEQUENCE,)),
    aten.sum.dim_IntList: (lambda x: x.sum(1), (SEQUENCE,)),
    aten.adaptive_avg_pool2d.default: (lambda x: F.adaptive_avg_pool2d(x, 1), (MAP,)),
    aten.avg_pool2d.default: (lambda x: F.avg_pool2d(x, 2), (MAP,)),
    aten.max_pool2d.default: (lambda x: F.max_pool2d(x, 2), (MAP,)),
    aten.upsample_nearest2d.vec: (lambda x: F.interpolate(x, scale_factor=2), (MAP,)),
    aten.upsample_bilinear2d.vec: (
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        (MAP,),
    ),
    aten.maximum.default: (lambda x, y: torch.maximum(x, 3 * y), (MAP, MAP)),
    aten.minimum.default: (lambda x, y: torch.minimum(x, 3 * y), (MAP, MAP)),
    aten.cat.default: (lambda x, y: torch.cat([x, 3 * y], 1), (MAP, MAP)),
    aten.reshape.default: (lambda x: x.reshape(1, 8, 32), (MAP,)),
    aten.permute.default: (lambda x: x.permute(0, 2, 3, 1), (MAP,)),
    aten.transpose.int: (lambda x: x.transpose(1, 2), (SEQUENCE,)),
    aten.t.default: (lambda x: x.t(), (VECTOR,)),
    aten.slice.Tensor: (lambda x: x[:, 1:3], (MAP,)),
    aten.expand.default: (lambda x: x.expand(1, 4, 8, 8), ((1, 4, 1, 8),)),
    aten.amax.default: (lambda x: x.amax(1), (SEQUENCE,)),
    aten.abs.default: (lambda x: x.abs(), (MAP,)),
    aten.constant_pad_nd.default: (lambda x: F.pad(x, (1, 1)), (MAP,)),
    aten.hardswish.default: (lambda x: F.hardswish(3 * x), (MAP,)),
    aten.gelu.default: (lambda x: F.gelu(x), (MAP,)),
    aten.leaky_relu.default: (lambda x: F.leaky_relu(x, 0.2), (MAP,)),
    aten.softmax.int: (lambda x: x.softmax(-1), (VECTOR,)),
    aten._softmax.default: (lambda x: torch._softmax(x, -1, False), (VECTOR,)),
    aten.log_softmax.int: (lambda x: x.log_softmax(-1), (VECTOR,)),
    aten.sigmoid.default: (lambda x: x.sigmoid(), (MAP,)),
    aten.tanh.default: (lambda x: x.tanh(), (MAP,)),
}
WEIGHTED_MODELS: dict[Any, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    aten.conv2d.default: (lambda: nn.Conv2d(4, 6, 3), MAP),
    aten.linear.default: (lambda: nn.Linear(6, 5), VECTOR),
    aten.conv_transpose2d.input: (lambda: nn.ConvTranspose2d(4, 6, 2, 2), MAP),
}
# TFLite 8-bit quantization specification: outputs with a fixed scale and zero point.
SPECIFIED = {
    aten.softmax.int: (1 / 256, -128),
    aten._softmax.default: (1 / 256, -128),
    aten.log_softmax.int: (16 / 256, 127),
    aten.sigmoid.default: (1 / 256, -128),
    aten.tanh.default: (1 / 128, 0),
}
# The specification again: operators that compute on stored values, so all scales must be equal.
# (It leaves relu and pads free; one scale there saves a requantization.)
ONE_SCALE = {
    aten.avg_pool2d.default, aten.max_pool2d.default,
    aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec, aten.maximum.default,
    aten.minimum.default, aten.cat.default, aten.reshape.default, aten.permute.default,
    aten.transpose.int, aten.t.default, aten.slice.Tensor, aten.expand.default,
    aten.constant_pad_nd.default, aten.amax.default,
}  # fmt: skip


def test_every_rule_is_exercised():
    assert set(RULE_MODELS) | set(WEIGHTED_MODELS) == set(RULES)
    assert set(SPECIFIED) == {t for t in RULES if RULES[t].kind == "lookup"}
    assert {t for t in RULES if RULES[t].kind in ("same", "join")} == ONE_SCALE


@functools.cache
def ruled(target: Any) -> fx.GraphModule:
    function, shapes = RULE_MODELS[target]
    return quantized(Of(function), *shapes)


@pytest.mark.parametrize("target", RULE_MODELS, ids=str, scope="module")
def test_operator_reads_and_writes_int8_with_the_scales_of_its_rule(target):
    graph_module = ruled(target)
    (node,) = nodes(graph_module, target)[-1:]
    sources = node.all_input_nodes
    assert sources
    assert all(is_dequantize(source) for source in sources)
    read = {(float(s.args[1]), int(s.args[2])) for s in sources}  # type: ignore[arg-type]
    scale = written_scale(node)
    if target in ONE_SCALE:
        assert read == {scale}
    if target in SPECIFIED:
        assert scale == SPECIFIED[target]


@pytest.mark.parametrize("target", RULE_MODELS, ids=str, scope="module")
def test_quantized_operator_stays_near_the_float_one(target):
    function, shapes = RULE_MODELS[target]
    graph_module = ruled(target)
    for seed in range(6):  # as calibrated: nothing saturates
        inputs = rows(*shapes, seed=seed)
        expected, got = function(*inputs), graph_module(*inputs)
        spread = float(expected.max() - expected.min())
        assert float((got - expected).abs().max()) <= 0.05 * spread + 0.05


@functools.cache
def weighted(target: Any) -> tuple[nn.Module, fx.GraphModule]:
    make, shape = WEIGHTED_MODELS[target]
    torch.manual_seed(0)
    model = make().eval()
    return model, quantized(model, shape)


@pytest.mark.parametrize("target", WEIGHTED_MODELS, ids=str, scope="module")
def test_weights_are_symmetric_int8_per_output_channel(target):
    model, graph_module = weighted(target)
    (node,) = nodes(graph_module, target)
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    stored = held(graph_module, weight.args[0])
    axis = {aten.conv_transpose2d.input: 1}.get(target, 0)
    assert weight.args[3] == axis
    assert stored.dtype == torch.int8
    others = [d for d in range(stored.dim()) if d != axis]
    largest = stored.abs().amax(others)
    assert largest.tolist() == [127] * stored.shape[axis]
    zero_points = held(graph_module, weight.args[2])
    assert not zero_points.any()
    scales = held(graph_module, weight.args[1])
    shaped = [-1 if d == axis else 1 for d in range(stored.dim())]
    expected = dict(model.named_parameters())["weight"].detach()
    error = (stored * scales.reshape(shaped) - expected).abs() / scales.reshape(shaped)
    assert float(error.max()) <= 0.5001


@pytest.mark.parametrize("target", WEIGHTED_MODELS, ids=str, scope="module")
def test_bias_lies_on_the_grid_of_its_int32(target):
    _, graph_module = weighted(target)
    (node,) = nodes(graph_module, target)
    weight, bias = node.args[1], node.args[2]
    assert isinstance(weight, fx.Node)
    scales = held(graph_module, weight.args[1]).double()
    codes = held(graph_module, bias).double() / (scales * read_scale(node)[0])
    assert torch.allclose(codes, codes.round(), atol=1e-3)
    assert codes.abs().max() > 1


def test_activation_is_fused_where_it_has_the_only_reader():
    for make in (lambda x: F.relu(x + x * x), lambda x: F.relu6(x * 3)):
        graph_module = quantized(Of(make), MAP)
        node = next(n for n in graph_module.graph.nodes if "relu" in str(n.target))
        assert node.args[0].target in (aten.add.Tensor, aten.mul.Tensor)


def test_activation_is_not_fused_when_somebody_else_reads_what_it_takes():
    model = Of(lambda x: (lambda y: F.relu(y) + y)(x * 3))
    (node,) = nodes(quantized(model, MAP), aten.relu.default)
    assert is_dequantize(node.args[0])


@pytest.mark.parametrize("name", REWRITES, scope="module")
def test_both_forms_of_the_graph_agree_and_no_value_is_stored_twice_on_its_way(name):
    shapes = REWRITES[name].shapes
    samples = [rows(*shapes, seed=seed) for seed in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, about how it copies
        own = copy.deepcopy(rewritten(name))
    result = quantize(own, samples, observer="minmax")
    one, other = (leaves(graph(*samples[0])) for graph in (result.folded, result.unfolded))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    fixed = set(SPECIFIED.values())
    for node in result.folded.graph.nodes:
        if is_quantize(node) and is_dequantize(node.args[0]):
            # The one exception: a scale that the specification fixes, before a join.
            assert (node.args[0].args[1], node.args[0].args[2]) in fixed, node.name


# --- shared scales ----------------------------------------------------------------------------

JOINS = {
    "cat": lambda a, b: torch.cat([a, b], 1),
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}


@pytest.mark.parametrize("name", JOINS)
@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_joined_branches_share_the_scale_of_the_widest(name, factor):
    model = Of(
        lambda x, left, right: JOINS[name](left(x), right(x) * factor),
        left=nn.Conv2d(4, 4, 1), right=nn.Conv2d(4, 4, 3, padding=1),
    ).eval()  # fmt: skip
    graph_module = quantized(model, MAP)
    node = next(n for n in graph_module.graph.nodes if f"aten.{name}" in str(n.target))
    read = {(float(s.args[1]), int(s.args[2])) for s in node.all_input_nodes}
    assert read == {written_scale(node)}
    left, right = (model.parts[side] for side in ("left", "right"))
    samples = [rows(MAP, seed=seed)[0] for seed in range(6)]
    with torch.no_grad():
        values = torch.stack([torch.cat([left(x), right(x) * factor]) for x in samples])
    span = float(values.max() - values.min())
    ((scale, _),) = read
    assert scale == pytest.approx(span / 255, rel=0.05)


def test_sum_reads_each_branch_with_the_scale_it_was_written_with():
    model = Of(
        lambda x, left, right: left(x) + right(x),
        left=nn.Conv2d(4, 4, 1), right=nn.Conv2d(4, 4, 3, padding=1),
    )  # fmt: skip
    graph_module = quantized(model, MAP)
    (node,) = nodes(graph_module, aten.add.Tensor)
    left, right = nodes(graph_module, aten.conv2d.default)
    assert {read_scale(node, 0), read_scale(node, 1)} == {written_scale(left), written_scale(right)}
    assert read_scale(node, 0) != read_scale(node, 1)


def test_fixed_scales_survive_a_join():
    model = Of(lambda x: torch.cat([torch.sigmoid(x), torch.tanh(x), x], 1))
    graph_module = quantized(model, MAP)
    for target in (aten.sigmoid.default, aten.tanh.default):
        (node,) = nodes(graph_module, target)
        assert written_scale(node) == SPECIFIED[target]
    (join,) = nodes(graph_module, aten.cat.default)
    read = {(float(s.args[1]), int(s.args[2])) for s in join.all_input_nodes}
    assert read == {written_scale(join)}
    assert len(nodes(graph_module, aten.mul.Tensor)) == 2, "each is requantized before the join"


def test_values_with_one_fixed_scale_are_joined_with_it():
    model = Of(lambda x, y: torch.cat([torch.sigmoid(x), torch.sigmoid(y).reshape(1, 6)], 1))
    graph_module = quantized(model, VECTOR, VECTOR)
    (join,) = nodes(graph_module, aten.cat.default)
    assert written_scale(join) == SPECIFIED[aten.sigmoid.default]
    assert not nodes(graph_module, aten.mul.Tensor)


def test_bounds_within_a_fixed_range_keep_its_scale_and_others_do_not():
    within = quantized(Of(lambda x: torch.sigmoid(x).clamp(0.2, 0.8)), VECTOR)
    (join,) = nodes(within, aten.maximum.default)
    assert written_scale(join) == SPECIFIED[aten.sigmoid.default]
    assert not nodes(within, aten.mul.Tensor)
    beyond = quantized(Of(lambda x: torch.sigmoid(x).clamp(min=2.0)), VECTOR)
    assert float(beyond(*rows(VECTOR)).min()) == pytest.approx(2.0, abs=0.01)


# --- joins of many --------------------------------------------------------------------------


@pytest.mark.parametrize("count", [10, 11, 19, 20, 101])
@pytest.mark.parametrize("axis", [0, -1])
def test_long_cat_is_a_tree_of_such_as_every_kernel_takes(count, axis):
    model = Of(lambda x: torch.cat([x * float(i + 1) for i in range(count)], axis))
    (x,) = rows(VECTOR)
    graph_module = canonical_program(model, (x,))
    joins = nodes(graph_module, aten.cat.default)
    assert len(joins) == (count > 10) * -(-(count - 10) // 9) + 1
    assert all(len(join.args[0]) <= 10 for join in joins)
    assert torch.equal(graph_module(x), model(x))
    scales = {written_scale(join) for join in nodes(quantized(model, VECTOR), aten.cat.default)}
    assert len(scales) == 1


LOCAL_POOLS = {
    "average pool": lambda x: F.avg_pool2d(x, 2),
    "max pool": lambda x: F.max_pool2d(x, 2),
}
GLOBAL_POOLS = {
    "functional average pool": lambda x: F.avg_pool2d(x, 8),
    "mean": lambda x: x.mean([2, 3]),
    "functional adaptive pool": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive pool layer": nn.AdaptiveAvgPool2d(1),
}


@pytest.mark.parametrize("name", LOCAL_POOLS | GLOBAL_POOLS)
def test_pool_behind_a_residual_sum_keeps_the_scale_of_the_sum(name):
    """A pool shrinks the range. A scale fitted to its output, pushed back, saturates the sum."""
    pooled = (LOCAL_POOLS | GLOBAL_POOLS)[name]
    model = Of(lambda x, conv: pooled(F.relu(conv(x) + x)), conv=nn.Conv2d(4, 4, 3, padding=1))
    torch.manual_seed(0)
    graph_module = quantized(model, MAP)
    pool = next(n for n in graph_module.graph.nodes if "pool2d" in str(n.target))
    (activation,) = nodes(graph_module, aten.relu.default)
    assert read_scale(pool) == written_scale(activation)
    if name in LOCAL_POOLS:
        assert written_scale(pool) == written_scale(activation)
    with torch.no_grad():
        largest = max(
            float((model.parts["conv"](x) + x).max())
            for x in (rows(MAP, seed=seed)[0] for seed in range(6))
        )
    scale, zero_point = written_scale(activation)
    assert (127 - zero_point) * scale >= 0.98 * largest


@pytest.mark.parametrize("name", GLOBAL_POOLS)
def test_global_mean_has_a_scale_that_fits_the_means(name):
    """Means of a wide map are small: with the map's scale few of the 256 codes are left."""
    graph_module = quantized(Of(lambda x: GLOBAL_POOLS[name](20 * x)), MAP)
    pool = next(n for n in graph_module.graph.nodes if "pool2d" in str(n.target))
    means = torch.stack([20 * rows(MAP, seed=seed)[0].mean([2, 3]) for seed in range(6)])
    scale, zero_point = written_scale(pool)
    span = float(means.max().clamp(min=0) - means.min().clamp(max=0))
    assert scale == pytest.approx(span / 255, rel=0.01)
    assert read_scale(pool)[0] > 5 * scale
    codes = torch.round(means / scale) + zero_point
    assert (float(codes.min()), float(codes.max())) == (-128, 127)


def test_head_on_small_means_of_a_wide_map_errs_by_less_than_a_step_of_the_map_would_make_it():
    torch.manual_seed(0)
    head = nn.Linear(4, 3)
    model = Of(lambda x, head: head((20 * x).mean([2, 3])), head=head).eval()
    graph_module = quantized(model, MAP)
    (scaled,) = nodes(graph_module, aten.mul.Tensor)
    map_step = written_scale(scaled)[0]
    squares, coarse = [], []
    with torch.no_grad():
        for seed in range(6):
            x = rows(MAP, seed=seed)
            expected = model(*x)
            squares.append((graph_module(*x) - expected) ** 2)
            means = (20 * x[0]).mean([2, 3])
            coarse.append((head(torch.round(means / map_step) * map_step) - expected) ** 2)
    assert float(torch.cat(squares).mean()) < 0.1 * float(torch.cat(coarse).mean())


@pytest.mark.parametrize("observer", ["histogram", "minmax"])
@pytest.mark.parametrize(("size", "quotient"), [(4, 16), (32, 256)])
def test_scale_of_a_mean_is_no_finer_than_engines_and_stored_values_can_show(
    observer, size, quotient
):
    def sample(seed: int) -> tuple[Tensor]:
        (x,) = rows((1, 3, size, size), seed=seed)
        return (x - x.mean([2, 3], keepdim=True) + 1e-6,)

    model = Of(lambda x: (50 * x).mean([2, 3])).eval()
    graph_module = canonical_program(model, sample(0))
    result = quantize(graph_module, [sample(seed) for seed in range(4)], observer=observer)
    (pool,) = nodes(result.folded, aten.adaptive_avg_pool2d.default)
    assert read_scale(pool)[0] / written_scale(pool)[0] == pytest.approx(quotient, rel=1e-3)


# --- numbers as operands ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + 0.7,
        lambda x: x - 3,
        lambda x: x * -0.3,
        lambda x: 2 - x,
        lambda x: 1.5 * x + 4,
        lambda x: x / 7,
    ],
)
def test_number_beside_a_tensor_is_quantized_like_a_tensor(function):
    graph_module = quantized(Of(function), MAP)
    for node in graph_module.graph.nodes:
        if node.target in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor):
            assert all(is_dequantize(a) for a in node.args[:2])
    inputs = rows(MAP)
    expected = function(*inputs)
    spread = float(expected.max() - expected.min())
    assert float((graph_module(*inputs) - expected).abs().max()) <= 0.02 * spread


# --- refusals ---------------------------------------------------------------------------------


class Inner(nn.Module):
    def __init__(self, operation: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.operation = operation

    def forward(self, x: Tensor) -> Any:
        return self.operation(self.linear(x))


@pytest.mark.parametrize(
    ("operation", "operator"),
    [
        (F.elu, "elu"),
        (F.softplus, "softplus"),
        (torch.exp, "exp"),
        (torch.sin, "sin"),
        (lambda x: x.cumsum(-1), "cumsum"),
        (lambda x: x / (x.abs() + 1), "div"),
        (lambda x: x**3, "pow"),
        (lambda x: torch.where(x > 0, x, 0 * x), "gt"),
        (lambda x: x.argmax(-1), "argmax"),
    ],
)
def test_unsupported_operator_is_refused_by_layer_and_name(operation, operator):
    model = nn.Sequential(nn.Linear(6, 6), Inner(operation))
    graph_module = canonical_program(model, rows(VECTOR))
    with pytest.raises(ModelError, match=f"operator '{operator}' has no int8 form") as caught:
        quantize(graph_module, [rows(VECTOR)])
    assert caught.value.where == "layer '1'"
    assert caught.value.fix
    if operator in REMEDIES:
        assert caught.value.fix == REMEDIES[operator]


@pytest.mark.parametrize("mode", ["linear", "nearest-exact"])
def test_signals_resized_otherwise_are_refused_with_a_remedy(mode):
    graph_module = canonical_program(nn.Upsample(scale_factor=2, mode=mode), rows(SIGNAL))
    with pytest.raises(ModelError, match="has no int8 form") as caught:
        quantize(graph_module, [rows(SIGNAL)])
    assert 'mode="nearest"' in caught.value.fix


def test_operator_that_microcontrollers_lack_is_refused_for_them_alone():
    graph_module = canonical_program(nn.Sequential(nn.Linear(6, 6), nn.GELU()), rows(VECTOR))
    refuse_unsupported(graph_module)
    with pytest.raises(ModelError, match="'gelu' has no kernel on microcontrollers") as caught:
        refuse_unsupported(graph_module, micro=True)
    assert caught.value.where == "layer '1'"
    assert caught.value.fix == MICRO_REMEDIES["gelu"]
    assert {t for t in RULES if not RULES[t].micro} == {aten.gelu.default}


def test_refusal_comes_before_any_calibration():
    def never():
        pytest.fail("the data was touched")
        yield rows(VECTOR)

    graph_module = canonical_program(Inner(torch.exp), rows(VECTOR))
    with pytest.raises(ModelError, match="exp"):
        quantize(graph_module, never())


@pytest.mark.parametrize("observer", ["histogram", "minmax"])
def test_calibration_without_samples_is_refused(observer):
    graph_module = canonical_program(nn.Linear(6, 6), rows(VECTOR))
    with pytest.raises(ModelError, match="calibration data: is empty"):
        quantize(graph_module, [], observer=observer)


@pytest.mark.parametrize("observer", ["histogram", "minmax"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_activation_that_is_not_finite_names_sample_and_layer_though_the_output_is_fine(
    observer, bad
):
    class Overflows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 6)
            self.second = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(self.second(self.first(x)))

    model = Overflows().eval()
    with torch.no_grad():
        nn.init.zeros_(model.second.weight)
        model.second.bias.copy_(torch.tensor([1.0, 0, 0, 0, 0, -bad]))
    samples = [rows(VECTOR, seed=seed) for seed in range(3)]
    assert torch.isfinite(torch.sigmoid(torch.tensor(-np.inf)))
    graph_module = canonical_program(model, samples[0])
    with pytest.raises(ModelError, match="holds NaN or infinity") as caught:
        quantize(graph_module, samples, observer=observer)
    assert caught.value.where == "calibration sample 0, layer 'second'"


@pytest.mark.parametrize("observer", ["histogram", "minmax"])
def test_sample_that_is_not_finite_is_named(observer):
    samples = [*rows(VECTOR, VECTOR), torch.full(VECTOR, torch.nan)]
    graph_module = canonical_program(nn.Linear(6, 6), rows(VECTOR))
    with pytest.raises(ModelError, match="holds NaN or infinity") as caught:
        quantize(graph_module, [(sample,) for sample in samples], observer=observer)
    assert caught.value.where.startswith("calibration sample 2, ")


def test_weight_that_is_not_finite_names_its_layer():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    graph_module = canonical_program(model, rows(VECTOR))
    with torch.no_grad():
        dict(graph_module.named_parameters())["2.weight"][0, 0] = torch.nan
    with pytest.raises(ModelError, match="holds NaN or infinity") as caught:
        quantize(graph_module, [rows(VECTOR)])
    assert caught.value.where == "calibration sample 0, layer '2'"


def test_progress_counts_the_samples():
    seen: list[int] = []
    graph_module = canonical_program(nn.Linear(6, 6), rows(VECTOR))
    quantize(graph_module, [rows(VECTOR, seed=s) for s in range(4)], progress=seen.append)
    assert seen == [1, 2, 3, 4]
