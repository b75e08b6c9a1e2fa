"""Quantization in float arithmetic: a prepared graph that computes what the converted one will."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor, fx, nn
from torchao.quantization.pt2e.observer import (
    FixedQParamsObserver,
    ObserverBase,
    PerChannelMinMaxObserver,
)

from edgeshrink.quantizer.annotate import EPSILON
from edgeshrink.quantizer.canonical import constant_of, operand
from edgeshrink.quantizer.observers import AnyObserver
from edgeshrink.quantizer.operators import RULES

aten = torch.ops.aten
EPSILON_WIDE: Final = 2.0**-20  # smallest scale of 16 bits
FIXED_WIDE: Final = 2.0**-15  # what the specification fixes for softmax, sigmoid and tanh
MOST_QUOTIENT: Final = 256  # of the scales of a global mean's input and output


class FakeQuantize(ObserverBase):  # type: ignore[misc]
    """Rounds and clamps as the device will, and stays in float; takes an observer's place.

    Forward, it equals the quantize/dequantize pair that `convert_pt2e` puts in its place, bit for
    bit. Backward, rounding passes the gradient through (straight-through estimator) and clamping
    stops it.

    Attributes:
        observed: Least and largest value that an activation had.
        candidates: Scale and zero point by the word of the observer that found them, where several
            looked at the same values.
        narrow_scale: What `narrow` puts back: scale and zero point of int8; None where it is int8.
        follows: Whether the scale follows the values (weights of which training moves the largest).
        growth: Logarithm of what training multiplied the scale by (LSQ, Esser et al., 2020); None
            where the scale is not learned. A factor keeps the scale above 0, and lets one learning
            rate serve scales of all sizes.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, observer: Any) -> None:
        super().__init__(dtype=observer.dtype, is_dynamic=False)
        self.qscheme = observer.qscheme
        self.quant_min, self.quant_max = observer.quant_min, observer.quant_max
        self.ch_axis = getattr(observer, "ch_axis", 0)
        self.is_weight = isinstance(observer, PerChannelMinMaxObserver)
        self.is_fixed = isinstance(observer, FixedQParamsObserver)  # by the specification
        scale, zero_point = observer.calculate_qparams()
        self.register_buffer("scale", scale.detach().clone().float())
        self.register_buffer("zero_point", zero_point.detach().clone().to(torch.int32))
        self.observed = _observed(observer)
        self.candidates = _candidates(observer)
        self.narrow_scale: tuple[Tensor, Tensor] | None = None
        self.follows = False
        self.growth: nn.Parameter | None = None

    @property
    def is_wide(self) -> bool:
        """Whether values are stored in 16 bits."""
        return bool(self.dtype == torch.int16)

    def widen(self) -> None:
        """Store values in 16 bits, symmetrically around 0 as the specification of int16x8 has it.

        All values that were observed are in range: clipping buys nothing where steps are this fine.
        """
        if self.is_wide:
            return
        self.narrow_scale = self.scale.clone(), self.zero_point.clone()
        self.dtype, self.qscheme = torch.int16, torch.per_tensor_symmetric
        self.quant_min, self.quant_max = -(2**15), 2**15 - 1
        low, high = self.observed
        largest = max(abs(low), abs(high))
        scale = FIXED_WIDE if self.is_fixed else max(largest / self.quant_max, EPSILON_WIDE)
        self.scale.fill_(scale)
        self.zero_point.fill_(0)

    def narrow(self) -> None:
        """Undo `widen`."""
        if self.narrow_scale is None:
            return
        self.dtype, self.qscheme = torch.int8, torch.per_tensor_affine
        self.quant_min, self.quant_max = -(2**7), 2**7 - 1
        self.scale.copy_(self.narrow_scale[0])
        self.zero_point.copy_(self.narrow_scale[1])
        self.narrow_scale = None

    def take(self, observer: str) -> None:
        """Use the range that one of the observers found; `candidates` has their words."""
        scale, zero_point = self.candidates[observer]
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    def learn(self) -> None:
        """Make the scale a parameter."""
        self.growth = nn.Parameter(torch.zeros_like(self.scale))

    def settle(self) -> None:
        """Keep what was learned as the scale."""
        if self.growth is not None:
            self.scale.copy_(self._learned().detach())
            self.growth = None

    def follow(self, weight: Tensor) -> None:
        """Make the largest weight of every channel the largest stored value."""
        others = [axis for axis in range(weight.dim()) if axis != self.ch_axis]
        largest = weight.detach().abs().amax(others) if others else weight.detach().abs()
        steps = float(self.quant_max - self.quant_min) / 2
        self.scale.copy_((largest / steps).clamp_(min=EPSILON))

    def _learned(self) -> Tensor:
        assert self.growth is not None
        return (self.scale * torch.exp(self.growth)).clamp(min=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` as it would be read back."""
        if self.follows:
            self.follow(x)
        if self.growth is not None:
            return self._learning(x)
        bounds = (self.quant_min, self.quant_max)
        if self.is_weight:
            return torch.fake_quantize_per_channel_affine(
                x, self.scale, self.zero_point, self.ch_axis, *bounds
            )
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, *bounds)

    def _learning(self, x: Tensor) -> Tensor:
        """As above, with a gradient to the scale.

        It is scaled down by the root of the number of values times that of the steps, so that one
        learning rate serves weights and scales (section 2.2 of the paper).
        """
        scale = self._learned()
        share = 1 / math.sqrt(max(1, x.numel() // scale.numel()) * self.quant_max)
        scale = scale * share + (scale - scale * share).detach()
        shape = [-1 if self.is_weight and d == self.ch_axis else 1 for d in range(x.dim())]
        step, zero = scale.reshape(shape), self.zero_point.reshape(shape)
        exact = x * (1.0 / step)
        rounded = exact + (torch.round(exact) - exact).detach()
        codes = torch.clamp(rounded + zero, self.quant_min, self.quant_max)
        return (codes - zero) * step

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return scale and zero point, as `convert_pt2e` asks for them."""
        return self.scale, self.zero_point.long()


def _observed(observer: Any) -> tuple[float, float]:
    """Return the least and the largest value that an activation's observer saw."""
    if hasattr(observer, "least"):
        return float(observer.least), float(observer.largest)
    low, high = getattr(observer, "min_val", None), getattr(observer, "max_val", None)
    if low is None or high is None or low.numel() != 1:
        return 0.0, 0.0  # of weights and of fixed ranges, which do not ask
    return float(low), float(high)


def _candidates(observer: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Return scale and zero point of every range that an `AnyObserver` found."""
    if not isinstance(observer, AnyObserver):
        return {}
    return {
        word: tuple(x.detach().float() for x in observer.scale_of(*bounds))  # type: ignore[misc]
        for word, bounds in observer.ranges().items()
    }


def freeze(prepared: fx.GraphModule) -> None:
    """Put a `FakeQuantize` in the place of every observer, in place.

    Observers that stand in several places, because a scale is shared, become one that does.
    """
    made: dict[ObserverBase, FakeQuantize] = {}
    for name, module in list(prepared.named_modules(remove_duplicate=False)):
        if isinstance(module, ObserverBase) and not isinstance(module, FakeQuantize):
            owner, _, leaf = name.rpartition(".")
            if module not in made:
                made[module] = FakeQuantize(module)
            setattr(prepared.get_submodule(owner), leaf, made[module])


def fake_quantizers(frozen: fx.GraphModule) -> dict[str, FakeQuantize]:
    """Return every `FakeQuantize` of a frozen graph once, by its name."""
    return {n: m for n, m in frozen.named_modules() if isinstance(m, FakeQuantize)}


def quantizer_of(frozen: fx.GraphModule, node: Any) -> FakeQuantize | None:
    """Return what quantizes in `node`; None where it is no node that quantizes."""
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return None
    module = frozen.get_submodule(str(node.target))
    return module if isinstance(module, FakeQuantize) else None


def bound_mean_scales(frozen: fx.GraphModule) -> None:
    """Keep the scale of a global mean at or above a 256th of its input's, in place.

    Engines multiply the sum of the stored values by the quotient of the two scales. XNNPACK's range
    for it ends at 256, and LiteRT's built-in kernels lose the last bits beyond (7 LSB at a quotient
    of 5,000). Neither is there anything to be seen below the scale over the number of positions:
    means of stored values are multiples of that.
    """
    for node in frozen.graph.nodes:
        if node.target != aten.adaptive_avg_pool2d.default:
            continue
        source = quantizer_of(frozen, node.args[0])
        if source is None:
            continue
        count = math.prod(operand(operand(node, 0), 0).meta["val"].shape[2:])
        least = source.scale / min(count, MOST_QUOTIENT)
        for user in node.users:
            result = quantizer_of(frozen, user)
            if result is None or float(result.scale) >= float(least):
                continue
            low = (result.quant_min - result.zero_point) * result.scale
            zero_point = result.quant_min - torch.round(low / least)
            result.scale.copy_(least)
            result.zero_point.copy_(zero_point.clamp(result.quant_min, result.quant_max))


def weighted_nodes(graph_module: fx.GraphModule) -> list[fx.Node]:
    """Return convolutions and linear layers in the order of the graph."""
    return [
        node
        for node in graph_module.graph.nodes
        if node.target in RULES and RULES[node.target].kind == "weighted"
    ]


def bias_of(node: fx.Node) -> fx.Node | None:
    """Return the bias of a weighted node, if it has one."""
    bias = node.args[2] if len(node.args) > 2 else None
    return bias if isinstance(bias, fx.Node) else None


def snap_constants(frozen: fx.GraphModule) -> None:
    """Put float weights and biases on the grid of their integers, in place.

    The two lowerings round constants each in its own arithmetic (multiplying by an inverse here,
    dividing there). A value on the grid rounds to the same integer in both; one near a tie might
    not, and then the two files differ in the last bit of a few outputs.
    """
    for node in weighted_nodes(frozen):
        source, weight = quantizer_of(frozen, node.args[0]), quantizer_of(frozen, node.args[1])
        assert source is not None
        assert weight is not None
        stored = operand(operand(node, 1), 0)
        values = constant_of(frozen, stored)
        if values is not None:
            shape = [-1 if axis == weight.ch_axis else 1 for axis in range(values.dim())]
            grid = weight.scale.reshape(shape)
            codes = torch.clamp(torch.round(values / grid), weight.quant_min, weight.quant_max)
            values.copy_(codes * grid)
        bias = constant_of(frozen, bias_of(node))
        if bias is not None:
            unit = weight.scale.double() * float(source.scale)
            if weight.ch_axis == 1 and unit.numel() != bias.numel():
                continue  # grouped transposed convolution: a channel's scale serves all groups
            bias.copy_((torch.round(bias / unit) * unit).float())
