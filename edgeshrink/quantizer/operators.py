"""Which operators the int8 specification covers, and how each is annotated.

Source: the TFLite 8-bit quantization specification (int8 activations per tensor and affine, int8
weights per channel and symmetric, int32 bias) and the constraints it lists for each operator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import torch

aten = torch.ops.aten

Engines = Literal["every", "litert", "none"]
Kind = Literal["weighted", "activation", "same", "join", "own", "lookup"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How an operator's float inputs and output get their scales.

    - `weighted`: int8 activations times per-channel int8 weights (axis `weight_axis`); the output
      has a scale of its own.
    - `activation`: fused into the producer where it can be, else like `same`.
    - `same`: the output has its input's scale.
    - `join`: all inputs and the output have one scale.
    - `own`: the output has a scale of its own, every float input too.
    - `lookup`: like `own`, but with the scale and zero point that the specification fixes.

    `wide` says who has a kernel with int16 activations: `every` engine that runs `.tflite`, LiteRT
    alone, or `none`. `micro`: TensorFlow Lite Micro has a kernel for it.
    """

    kind: Kind
    wide: Engines = "every"
    weight_axis: int = 0
    scale: float = 0.0
    zero_point: int = 0
    micro: bool = True


_SAME: Final = Rule(kind="same")
_OWN: Final = Rule(kind="own")
_JOIN: Final = Rule(kind="join")
_ACTIVATION: Final = Rule(kind="activation")

RULES: Final[dict[Any, Rule]] = {
    aten.conv2d.default: Rule(kind="weighted"),
    aten.linear.default: Rule(kind="weighted"),
    aten.conv_transpose2d.input: Rule(kind="weighted", weight_axis=1),
    aten.relu.default: _ACTIVATION,
    aten.relu6.default: _ACTIVATION,
    aten.add.Tensor: _OWN,
    aten.sub.Tensor: _OWN,
    aten.mul.Tensor: _OWN,
    aten.matmul.default: _OWN,
    aten.bmm.default: _OWN,
    aten.rsqrt.default: Rule(kind="own", wide="litert"),
    aten.mean.dim: _OWN,
    aten.sum.dim_IntList: _OWN,
    aten.adaptive_avg_pool2d.default: _OWN,  # the mean of the whole map: MEAN in the file
    aten.avg_pool2d.default: _SAME,  # the specification demands it of AVERAGE_POOL_2D
    aten.max_pool2d.default: _SAME,
    aten.upsample_nearest2d.vec: _SAME,
    aten.upsample_bilinear2d.vec: Rule(kind="same", wide="litert"),
    aten.maximum.default: _JOIN,
    aten.minimum.default: _JOIN,
    aten.cat.default: _JOIN,
    aten.reshape.default: _SAME,
    aten.permute.default: _SAME,
    aten.transpose.int: _SAME,
    aten.t.default: _SAME,
    aten.slice.Tensor: _SAME,
    aten.expand.default: _SAME,
    aten.amax.default: _SAME,
    aten.abs.default: _OWN,
    aten.constant_pad_nd.default: _SAME,
    aten.hardswish.default: Rule(kind="own", wide="none"),
    aten.gelu.default: Rule(kind="own", wide="litert", micro=False),
    aten.leaky_relu.default: _OWN,
    aten.softmax.int: Rule(kind="lookup", scale=1 / 256, zero_point=-128),
    aten._softmax.default: Rule(kind="lookup", scale=1 / 256, zero_point=-128),
    aten.log_softmax.int: Rule(kind="lookup", scale=16 / 256, zero_point=127, wide="none"),
    aten.sigmoid.default: Rule(kind="lookup", scale=1 / 256, zero_point=-128),
    aten.tanh.default: Rule(kind="lookup", scale=1 / 128, zero_point=0),
}

# What to write instead of operators that have no int8 form in the files that leave here.
REMEDIES: Final[dict[str, str]] = {
    "elu": "use hardswish, leaky_relu or relu",
    "selu": "use hardswish, leaky_relu or relu",
    "celu": "use hardswish, leaky_relu or relu",
    "softplus": "use relu",
    "mish": "use hardswish or silu",
    "exp": "let softmax, sigmoid or the application compute the exponential",
    "log": "use log_softmax, or take the logarithm outside of the model",
    "sqrt": "take the root outside of the model; norms are supported as layers",
    "div": "multiply by the reciprocal where the divisor is a constant",
    "embedding": "look the rows up outside of the model and give it the vectors",
    "einsum": "write it with matmul, permute and reshape",
    "scaled_dot_product_attention": "leave the mask out, or add it to the scores by hand",
    "conv_transpose2d": "keep output_padding at or below padding",
    "sin": "compute it outside of the model or make it a constant",
    "cos": "compute it outside of the model or make it a constant",
    "cumsum": "compute it outside of the model",
    "topk": "sort outside of the model",
    "upsample_linear1d": 'use mode="nearest", or a map of height 1 and mode="bilinear"',
    "upsample_bicubic2d": 'use mode="nearest" or mode="bilinear"',
    "upsample_nearest_exact1d": 'use mode="nearest"',
    "upsample_nearest_exact2d": 'use mode="nearest"',
    "conv3d": "use 2-D convolutions; int8 runtimes have no 3-D ones",
    "where": "blend with a multiplication, or branch outside of the model",
} | dict.fromkeys(
    ("gt", "lt", "ge", "le", "eq", "ne", "logical_and", "logical_or", "logical_not"),
    "blend with a multiplication, or branch outside of the model",
)

# The same for operators that microcontrollers lack.
MICRO_REMEDIES: Final[dict[str, str]] = {"gelu": "use relu, hardswish or silu"}
