"""What decides the cost of an interpreter's int8 kernel: the layer's shape, as a few terms.

The cost of a kernel is linear in counts that follow from its loops: multiply-accumulates, outputs,
what is done once per pixel and tap, once per weight. `shape_of` reads the shape of an operator,
`group_of` names its kernel, `terms_of` gives the counts; what one of each costs is in data files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from edgeshrink.graph import Graph, Op, Tensor


@dataclass(frozen=True, kw_only=True)
class KernelShape:
    """Sizes of one layer; 1 where there is none. A dense layer has its inputs in `in_c`."""

    kind: str  # TFLite's name of the operator
    in_h: int = 1
    in_w: int = 1
    in_c: int = 1
    out_h: int = 1
    out_w: int = 1
    out_c: int = 1
    k_h: int = 1
    k_w: int = 1
    stride: int = 1

    @property
    def pixels(self) -> int:
        """Positions of the output."""
        return self.out_h * self.out_w

    @property
    def outputs(self) -> int:
        """Values of the output."""
        return self.pixels * self.out_c

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return self.k_h * self.k_w

    @property
    def macs(self) -> int:
        """Multiply-accumulates, those on padding too."""
        if self.kind == "DEPTHWISE_CONV_2D":
            return self.outputs * self.taps
        if self.kind in ("CONV_2D", "FULLY_CONNECTED"):
            return self.outputs * self.taps * self.in_c
        return 0

    @property
    def weights(self) -> int:
        """Bytes of int8 weights."""
        if self.kind == "DEPTHWISE_CONV_2D":
            return self.out_c * self.taps
        if self.kind in ("CONV_2D", "FULLY_CONNECTED"):
            return self.out_c * self.taps * self.in_c
        return 0


# Kernels that were measured. What an operator that is none of them is priced as is in `NEAREST`.
GROUPS: Final = (
    "conv 1x1", "conv", "depthwise 3x3", "depthwise", "depthwise multiplier", "fully connected",
    "add", "average pool", "max pool", "softmax", "copy",
)  # fmt: skip
_BY_KIND: Final = {
    "FULLY_CONNECTED": "fully connected", "ADD": "add", "AVERAGE_POOL_2D": "average pool",
    "MAX_POOL_2D": "max pool", "SOFTMAX": "softmax", "RESHAPE": "copy",
}  # fmt: skip
# Operators of which no kernel was measured -> the group whose loops are the most alike.
NEAREST: Final = {
    "TRANSPOSE_CONV": "conv", "CONV_3D": "conv", "BATCH_MATMUL": "fully connected",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "fully connected", "SVDF": "fully connected",
    "MEAN": "average pool", "SUM": "average pool", "REDUCE_MAX": "max pool",
    "SQUEEZE": "copy", "EXPAND_DIMS": "copy", "CONCATENATION": "copy", "PAD": "copy",
    "PADV2": "copy", "MIRROR_PAD": "copy", "SLICE": "copy", "STRIDED_SLICE": "copy",
    "SPLIT": "copy", "SPLIT_V": "copy", "PACK": "copy", "UNPACK": "copy", "TRANSPOSE": "copy",
    "GATHER": "copy", "TILE": "copy", "SPACE_TO_DEPTH": "copy", "DEPTH_TO_SPACE": "copy",
    "RESIZE_NEAREST_NEIGHBOR": "copy", "BROADCAST_TO": "copy", "LOG_SOFTMAX": "softmax",
}  # fmt: skip
ELSE: Final = "add"  # an operator of which nothing is known costs this per value


def group_of(shape: KernelShape) -> tuple[str, bool]:
    """Return the group of a layer's kernel, and whether kernels of this operator were measured."""
    kind = shape.kind
    if kind == "CONV_2D":
        return ("conv 1x1" if shape.taps == 1 else "conv"), True
    if kind == "DEPTHWISE_CONV_2D":
        if shape.out_c != shape.in_c:
            return "depthwise multiplier", True
        return ("depthwise 3x3" if shape.k_h == shape.k_w == 3 else "depthwise"), True
    if kind in _BY_KIND:
        return _BY_KIND[kind], True
    return NEAREST.get(kind, ELSE), False


def terms_of(group: str, shape: KernelShape) -> tuple[float, ...]:
    """Return the counts that the cost of a kernel of `group` is linear in."""
    s = shape
    match group:
        case "conv 1x1":  # with a stride it is called once per row, and sums the weights each time
            calls = s.out_h if s.stride > 1 else 1
            rest = s.outputs if s.in_c > 16 and s.in_c % 16 else 0  # both the loop and its rest
            return s.macs, s.outputs, rest, calls * s.weights, calls * s.out_c, 1.0
        case "conv":  # columns of all taps, then a matrix product
            return s.macs, s.outputs, s.pixels * s.taps * s.in_c, s.pixels * s.taps, 1.0
        case "depthwise 3x3" | "depthwise":
            return s.macs, s.outputs, s.pixels, 1.0
        case "depthwise multiplier":  # a kernel for multiples of four channels, one for others
            return s.macs, s.outputs, s.outputs if (s.out_c // s.in_c) % 4 else 0
        case "fully connected":
            return max(s.macs, s.outputs), s.outputs, 1.0
        case "average pool" | "max pool":
            return s.outputs * s.taps, s.outputs, s.pixels, 1.0
        case "softmax":
            return s.outputs, s.pixels, 1.0
    return s.outputs, 1.0


def reads_of(group: str, shape: KernelShape, held_bytes: int) -> tuple[float, ...]:
    """Return the counts that reads of constants which no cache holds are linear in, in bytes.

    All constants once; what is read again for every pixel, where a cache of `held_bytes` is too
    small to keep it until then.
    """
    parameters = 4.0 * shape.out_c if shape.weights else 0.0  # biases; the rest is in RAM
    once = shape.weights + parameters
    if group in ("conv", "depthwise 3x3", "depthwise", "depthwise multiplier"):
        again = shape.pixels * float(once > held_bytes)
    elif group == "conv 1x1":  # a few rows of weights stay for all pixels
        again = shape.pixels * float(2 * shape.in_c >= held_bytes)
    else:
        again = 0.0
    return once, again * shape.weights, again * parameters, shape.pixels * parameters, 1.0


def shape_of(graph: Graph, op: Op) -> KernelShape:
    """Return the shape of an operator's layer, as its kernel sees it."""
    inputs = [graph.tensors[i] for i in op.inputs if i >= 0]
    outputs = [graph.tensors[i] for i in op.outputs]
    values = max((math.prod(t.shape) for t in outputs), default=1)
    given = max((math.prod(t.shape) for t in inputs if t.data is None), default=values)
    kind = op.kind
    if kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV") and len(outputs[0].shape) == 4:
        return _convolution(op, inputs, outputs[0])
    if kind.endswith("POOL_2D") and len(outputs[0].shape) == 4:
        return _pool(op, inputs[0], outputs[0])
    if kind in ("FULLY_CONNECTED", "BATCH_MATMUL") and inputs and outputs[0].shape:
        out_c = outputs[0].shape[-1] or 1
        in_c = inputs[0].shape[-1] if inputs[0].shape else 1
        return KernelShape(kind=kind, in_c=in_c, out_w=max(1, values // out_c), out_c=out_c)
    if kind in ("UNIDIRECTIONAL_SEQUENCE_LSTM", "SVDF"):
        steps = inputs[0].shape[1] if kind != "SVDF" and len(inputs[0].shape) == 3 else 1
        weights = sum(math.prod(t.shape) for t in inputs if t.data is not None)
        return KernelShape(kind="FULLY_CONNECTED", in_c=max(1, weights), out_w=steps)
    if kind in ("SOFTMAX", "LOG_SOFTMAX") and outputs[0].shape:
        out_c = outputs[0].shape[-1] or 1
        return KernelShape(kind=kind, out_w=max(1, values // out_c), out_c=out_c)
    if NEAREST.get(kind) in ("average pool", "max pool"):
        return KernelShape(kind=kind, out_c=max(1, values), k_w=max(1, given // max(1, values)))
    return KernelShape(kind=kind, out_c=max(1, values, given if kind == "CONCATENATION" else 1))


def _convolution(op: Op, inputs: list[Tensor], out: Tensor) -> KernelShape:
    # Of TRANSPOSE_CONV the first input is the shape, the data the third.
    x = inputs[2] if op.kind == "TRANSPOSE_CONV" and len(inputs) > 2 else inputs[0]
    weights = inputs[1]
    _, k_h, k_w, _ = weights.shape if len(weights.shape) == 4 else (1, 1, 1, 1)
    place = x if op.kind == "TRANSPOSE_CONV" else out
    return KernelShape(
        kind="CONV_2D" if op.kind == "TRANSPOSE_CONV" else op.kind,
        in_h=x.shape[1], in_w=x.shape[2], in_c=x.shape[3],
        out_h=place.shape[1], out_w=place.shape[2], out_c=out.shape[3],
        k_h=k_h, k_w=k_w, stride=int(op.options.get("stride_h", 1)),
    )  # fmt: skip


def _pool(op: Op, x: Tensor, out: Tensor) -> KernelShape:
    return KernelShape(
        kind=op.kind, in_h=x.shape[1], in_w=x.shape[2], in_c=x.shape[3],
        out_h=out.shape[1], out_w=out.shape[2], out_c=out.shape[3],
        k_h=int(op.options.get("filter_height", 1)), k_w=int(op.options.get("filter_width", 1)),
        stride=int(op.options.get("stride_h", 1)),
    )  # fmt: skip
