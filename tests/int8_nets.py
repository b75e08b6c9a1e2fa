"""Small int8 networks, layer by layer, as `.tflite` bytes: with directed or random parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as S

from tests.tiny_models import TfliteBuilder

ACTIVATIONS = {"NONE": 0, "RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}
PADDINGS = {"SAME": 0, "VALID": 1}
Pair = tuple[int, int]


class Int8Net:
    """Builds a network. Every method adds one operator and returns its output tensor's number."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.build = TfliteBuilder()
        self.quantizations: dict[int, tuple[float, int]] = {}
        self.inputs: list[int] = []
        self.weight_scale: float | None = None  # of all weights to come, random where None

    def shape(self, tensor: int) -> tuple[int, ...]:
        return tuple(self.build.graph.tensors[tensor].shape)

    def activation(
        self, shape: Sequence[int], scale: float | None = None, zero: int | None = None
    ) -> int:
        """A computed int8 tensor; scale and zero point are random where left out."""
        scale = self.scale() if scale is None else scale
        zero = int(self.random.integers(-128, 128)) if zero is None else zero
        name = f"t{len(self.build.graph.tensors)}"
        index = self.build.tensor(name, shape, "INT8", scale=scale, zero_point=zero)
        self.quantizations[index] = (scale, zero)
        return index

    def scale(self, low: float = 0.004, high: float = 0.25) -> float:
        return float(np.float32(np.exp(self.random.uniform(np.log(low), np.log(high)))))

    def like(self, tensor: int, shape: Sequence[int] | None = None) -> int:
        """A computed tensor with the scale and zero point of another one."""
        return self.activation(
            self.shape(tensor) if shape is None else shape, *self.quantizations[tensor]
        )

    def input(
        self, shape: Sequence[int], scale: float | None = None, zero: int | None = None
    ) -> int:
        index = self.activation(shape, scale, zero)
        self.inputs.append(index)
        return index

    def constant(self, values: np.ndarray, scale: float | None = None, zero: int = 0) -> int:
        dtype = {"int8": "INT8", "int32": "INT32", "float32": "FLOAT32"}[values.dtype.name]
        name = f"c{len(self.build.graph.tensors)}"
        index = self.build.tensor(
            name, values.shape, dtype, data=values, scale=scale, zero_point=zero
        )
        if scale is not None:
            self.quantizations[index] = (scale, zero)
        return index

    # --- layers with weights -------------------------------------------------------------------

    def conv(
        self,
        x: int,
        n_out: int,
        kernel: Pair = (3, 3),
        *,
        stride: Pair = (1, 1),
        dilation: Pair = (1, 1),
        padding: str = "SAME",
        activation: str = "NONE",
        weights: np.ndarray | None = None,
        bias: np.ndarray | bool = True,
        is_per_channel: bool = True,
        y: int | None = None,
    ) -> int:
        batch, height, width, depth = self.shape(x)
        if weights is None:
            weights = self.weights((n_out, *kernel, depth))
        options = S.Conv2DOptionsT(
            padding=PADDINGS[padding], strideH=stride[0], strideW=stride[1],
            dilationHFactor=dilation[0], dilationWFactor=dilation[1],
            fusedActivationFunction=ACTIVATIONS[activation],
        )  # fmt: skip
        rows, columns = _out((height, width), kernel, stride, dilation, padding)
        shape = (batch, rows, columns, n_out)
        return self._layer("CONV_2D", x, weights, 0, bias, is_per_channel, shape, options, y)

    def depthwise(
        self,
        x: int,
        kernel: Pair = (3, 3),
        *,
        multiplier: int = 1,
        stride: Pair = (1, 1),
        dilation: Pair = (1, 1),
        padding: str = "SAME",
        activation: str = "NONE",
        weights: np.ndarray | None = None,
        bias: np.ndarray | bool = True,
        y: int | None = None,
    ) -> int:
        batch, height, width, depth = self.shape(x)
        if weights is None:
            weights = self.weights((1, *kernel, depth * multiplier))
        options = S.DepthwiseConv2DOptionsT(
            padding=PADDINGS[padding], strideH=stride[0], strideW=stride[1],
            depthMultiplier=multiplier, dilationHFactor=dilation[0], dilationWFactor=dilation[1],
            fusedActivationFunction=ACTIVATIONS[activation],
        )  # fmt: skip
        rows, columns = _out((height, width), kernel, stride, dilation, padding)
        shape = (batch, rows, columns, depth * multiplier)
        return self._layer("DEPTHWISE_CONV_2D", x, weights, 3, bias, True, shape, options, y)

    def dense(
        self,
        x: int,
        n_out: int,
        *,
        activation: str = "NONE",
        weights: np.ndarray | None = None,
        bias: np.ndarray | bool = True,
        is_per_channel: bool = False,
        y: int | None = None,
    ) -> int:
        shape = self.shape(x)
        if weights is None:
            weights = self.weights((n_out, int(np.prod(shape[1:]))))
        options = S.FullyConnectedOptionsT(fusedActivationFunction=ACTIVATIONS[activation])
        out = (shape[0], n_out)
        return self._layer("FULLY_CONNECTED", x, weights, 0, bias, is_per_channel, out, options, y)

    def weights(self, shape: Sequence[int]) -> np.ndarray:
        return self.random.integers(-127, 128, tuple(shape), np.int8)

    def _layer(
        self, kind: str, x: int, weights: np.ndarray, axis: int, bias: np.ndarray | bool,
        is_per_channel: bool, shape: Sequence[int], options: Any, y: int | None,
    ) -> int:  # fmt: skip
        n_out = weights.shape[axis]
        n_scales = n_out if is_per_channel else 1
        scales = [self.weight_scale or self.scale(0.002, 0.02) for _ in range(n_scales)]
        w = self.build.tensor(
            f"w{len(self.build.graph.tensors)}", weights.shape, "INT8", data=weights,
            scale=scales, zero_point=[0] * len(scales), axis=axis,
        )  # fmt: skip
        x_scale = self.quantizations[x][0]
        if y is None:  # with a scale that fills the range of int8
            spread = 70 * 70 * np.sqrt(weights.size / n_out) * x_scale * float(np.mean(scales))
            y = self.activation(shape, float(np.float32(spread / 60)))
        inputs = [x, w]  # TFLM crashes on a depthwise layer whose bias is there but absent (-1)
        if bias is not False:
            if bias is True:
                bias = self.random.integers(-20_000, 20_000, n_out, np.int32)
            bias_scales = (np.float32(x_scale) * np.float32(scales)).astype(np.float32)
            b = self.build.tensor(
                f"b{len(self.build.graph.tensors)}", (n_out,), "INT32", data=np.asarray(bias),
                scale=bias_scales, zero_point=[0] * len(scales), axis=0,
            )  # fmt: skip
            inputs.append(b)
        self.build.op(kind, inputs, [y], options, 3)
        return y

    # --- everything else -------------------------------------------------------------------------

    def unary(self, kind: str, x: int, y: int | None = None, options: Any = None) -> int:
        """An operator of one input and an output of the same shape."""
        if y is None:
            fixed = {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0), "SOFTMAX": (1 / 256, -128)}
            low = self.quantizations[x][0] / 50 if kind == "HARD_SWISH" else 0.0
            y = self.activation(self.shape(x), *fixed.get(kind, (max(low, self.scale()), None)))
        defaults = {
            "LEAKY_RELU": lambda: S.LeakyReluOptionsT(alpha=float(self.random.uniform(-0.5, 1.5))),
            "SOFTMAX": lambda: S.SoftmaxOptionsT(beta=1.0),
        }
        if options is None and kind in defaults:
            options = defaults[kind]()
        self.build.op(kind, [x], [y], options, 2)
        return y

    def binary(
        self, kind: str, a: int, b: int, activation: str = "NONE", y: int | None = None
    ) -> int:
        shape = np.broadcast_shapes(self.shape(a), self.shape(b))
        if y is None:
            scales = self.quantizations[a][0], self.quantizations[b][0]
            y_scale = 60 * scales[0] * scales[1] if kind == "MUL" else sum(scales)
            y = self.activation(shape, float(np.float32(y_scale)))
        options = {
            "ADD": S.AddOptionsT, "SUB": S.SubOptionsT, "MUL": S.MulOptionsT,
            "MAXIMUM": S.MaximumMinimumOptionsT, "MINIMUM": S.MaximumMinimumOptionsT,
        }[kind]()  # fmt: skip
        if hasattr(options, "fusedActivationFunction"):
            options.fusedActivationFunction = ACTIVATIONS[activation]
        self.build.op(kind, [a, b], [y], options, 2)
        return y

    def pool(
        self, kind: str, x: int, window: Pair, stride: Pair | None = None, padding: str = "VALID",
        activation: str = "NONE",
    ) -> int:  # fmt: skip
        stride = stride or window
        batch, height, width, depth = self.shape(x)
        rows, columns = _out((height, width), window, stride, (1, 1), padding)
        y = self.like(x, (batch, rows, columns, depth))
        options = S.Pool2DOptionsT(
            padding=PADDINGS[padding], strideH=stride[0], strideW=stride[1],
            filterHeight=window[0], filterWidth=window[1],
            fusedActivationFunction=ACTIVATIONS[activation],
        )  # fmt: skip
        self.build.op(kind, [x], [y], options, 2)
        return y

    def pad(self, x: int, amounts: Sequence[Pair], value: int | None = None) -> int:
        """A PAD, or with a value a PADV2."""
        shape = [size + a + b for size, (a, b) in zip(self.shape(x), amounts, strict=True)]
        y = self.like(x, shape)
        inputs = [x, self.constant(np.array(amounts, np.int32))]
        if value is not None:
            inputs.append(self.constant(np.array([value], np.int8), *self.quantizations[x]))
        self.build.op("PAD" if value is None else "PADV2", inputs, [y], None, 2)
        return y

    def reshape(self, x: int, shape: Sequence[int], y: int | None = None) -> int:
        y = self.like(x, shape) if y is None else y
        new_shape = self.constant(np.array(shape, np.int32))
        self.build.op("RESHAPE", [x, new_shape], [y], S.ReshapeOptionsT(newShape=list(shape)))
        return y

    def concat(self, parts: Sequence[int], axis: int = 3) -> int:
        shape = list(self.shape(parts[0]))
        shape[axis] = sum(self.shape(part)[axis] for part in parts)
        y = self.like(parts[0], shape)
        self.build.op("CONCATENATION", list(parts), [y], S.ConcatenationOptionsT(axis=axis))
        return y

    def mean(
        self, x: int, axes: Sequence[int] = (1, 2), *, keep: bool = True, y: int | None = None
    ) -> int:
        shape = [1 if a in axes else size for a, size in enumerate(self.shape(x))]
        if not keep:
            shape = [size for a, size in enumerate(self.shape(x)) if a not in axes]
        y = self.activation(shape, self.quantizations[x][0]) if y is None else y
        inputs = [x, self.constant(np.array(axes, np.int32))]
        self.build.op("MEAN", inputs, [y], S.ReducerOptionsT(keepDims=keep), 2)
        return y

    def transpose(self, x: int, order: Sequence[int]) -> int:
        y = self.like(x, [self.shape(x)[axis] for axis in order])
        self.build.op("TRANSPOSE", [x, self.constant(np.array(order, np.int32))], [y])
        return y

    def strided_slice(
        self, x: int, begin: Sequence[int], end: Sequence[int], stride: Sequence[int]
    ) -> int:
        slices = tuple(slice(*part) for part in zip(begin, end, stride, strict=True))
        y = self.like(x, np.empty(self.shape(x))[slices].shape)
        inputs = [self.constant(np.array(v, np.int32)) for v in (begin, end, stride)]
        self.build.op("STRIDED_SLICE", [x, *inputs], [y], S.StridedSliceOptionsT())
        return y

    def finish(self, *outputs: int) -> bytes:
        self.build.graph.inputs, self.build.graph.outputs = self.inputs, list(outputs)
        return self.build.bytes()


def _out(size: Pair, window: Pair, stride: Pair, dilation: Pair, padding: str) -> Pair:
    """Rows and columns of the output of a convolution or pool."""
    reach = [(window[i] - 1) * dilation[i] + 1 for i in range(2)]
    if padding == "SAME":
        return -(-size[0] // stride[0]), -(-size[1] // stride[1])
    return (size[0] - reach[0]) // stride[0] + 1, (size[1] - reach[1]) // stride[1] + 1


def random_int8(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-128, 128, tuple(shape), np.int8)


def random_net(seed: int, n_layers: int = 8) -> bytes:
    """A network of layers at random, with much in it that graph passes look for.

    Some filters are zero, some channels are read by nobody, activations and pads stand alone,
    operators change nothing, chains of pointwise operators follow one another.
    """
    net = Int8Net(seed)
    choose = net.random
    shape = (1, int(choose.integers(3, 8)), int(choose.integers(3, 8)), int(choose.integers(1, 6)))
    x = net.input(shape, zero=int(choose.choice([-128, 0, 17])))
    side: list[int] = []  # earlier tensors, to be joined to later ones
    for _ in range(n_layers):
        side.append(x)
        x = _random_layer(net, x, side)
    ends = [x]
    if choose.random() < 0.5:
        ends.append(side[-1] if side[-1] not in net.inputs else x)
    if choose.random() < 0.5:
        flat = net.reshape(x, (1, int(np.prod(net.shape(x)))))
        ends.append(net.unary("SOFTMAX", net.dense(flat, 4, is_per_channel=bool(seed % 2))))
    return net.finish(*dict.fromkeys(ends))


def sparse(net: Int8Net, weights: np.ndarray, outputs: int, inputs: int) -> np.ndarray:
    """Weights with about a third of all filters zero, and of all inputs unread."""
    for axis in (outputs, inputs):
        dead = net.random.random(weights.shape[axis]) < net.random.choice([0, 0.35, 0.8])
        weights[(slice(None),) * axis + (dead,)] = 0
    return weights


def _random_layer(net: Int8Net, x: int, side: Sequence[int]) -> int:
    choose, shape = net.random, net.shape(x)
    depth = shape[3]
    kernel = tuple(int(v) for v in choose.choice([1, 2, 3], 2))
    padding = str(choose.choice(["SAME", "VALID"]))
    if shape[1] < 3 or shape[2] < 3:
        padding = "SAME"
    common: dict[str, Any] = {
        "padding": padding, "activation": str(choose.choice(list(ACTIVATIONS))),
        "bias": bool(choose.random() < 0.8),
    }  # fmt: skip
    kind = choose.choice([
        "conv", "conv", "conv", "depthwise", "depthwise", "pad", "relu", "pointwise", "pointwise",
        "join", "pool", "mean", "same", "scalar", "detour", "concat",
    ])  # fmt: skip
    if kind == "conv":
        n_out = int(choose.integers(1, 7))
        weights = sparse(net, net.weights((n_out, *kernel, depth)), 0, 3)
        per_channel = bool(choose.random() < 0.7)
        return net.conv(x, n_out, kernel, weights=weights, is_per_channel=per_channel, **common)
    if kind == "depthwise":
        times = int(choose.choice([1, 1, 2]))
        weights = sparse(net, net.weights((1, *kernel, depth * times)), 3, 0)
        return net.depthwise(x, kernel, multiplier=times, weights=weights, **common)
    if kind == "pad":
        amounts = [(0, 0), *(tuple(choose.integers(0, 3, 2).tolist()) for _ in range(2)), (0, 0)]
        zero = net.quantizations[x][1]
        value = choose.choice(np.array([None, zero, -128, 5], object))
        padded = net.pad(x, amounts, value)
        if choose.random() < 0.3:
            return net.pool("MAX_POOL_2D", padded, (2, 2), (1, 1), padding)
        return net.conv(padded, 3, kernel, padding=padding)
    if kind == "relu":
        return net.unary(str(choose.choice(["RELU", "RELU6"])), x, net.like(x))
    if kind == "pointwise":
        names = ["RELU", "LEAKY_RELU", "LOGISTIC", "TANH", "HARD_SWISH", "ELU", "QUANTIZE", "ABS"]
        return net.unary(str(choose.choice(names)), x)
    if kind == "join":
        partners = [t for t in side if net.shape(t) == shape]
        other = int(choose.choice(partners)) if partners else x
        if choose.random() < 0.3:
            other = net.constant(net.weights((1, 1, 1, depth)), net.scale(), 3)
        operator, activation = str(choose.choice(["ADD", "SUB", "MUL"])), common["activation"]
        return net.binary(operator, x, other, activation)
    if kind == "pool":
        window = min(2, shape[1]), min(2, shape[2])
        name = str(choose.choice(["AVERAGE_POOL_2D", "MAX_POOL_2D"]))
        return net.pool(name, x, window, (1, 1), "SAME", common["activation"])
    if kind == "mean":
        return net.mean(x, y=net.like(x, (1, 1, 1, depth)) if choose.random() < 0.5 else None)
    if kind == "same":
        which = int(choose.integers(5))
        if which == 0:
            return net.pad(x, ((0, 0),) * 4)
        if which == 1:
            return net.concat([x])
        if which == 2:
            return net.reshape(net.reshape(x, (1, int(np.prod(shape)))), shape)
        if which == 3:
            return net.strided_slice(x, (0,) * 4, shape, (1,) * 4)
        return net.unary("QUANTIZE", x, net.like(x))
    if kind == "scalar":
        one = net.constant(np.array([choose.integers(-128, 128)], np.int8), net.scale(), 7)
        if choose.random() < 0.5:
            limit = net.constant(np.array([0], np.int8), *net.quantizations[x])
            return net.binary("MAXIMUM", x, limit, y=net.like(x))
        return net.binary(str(choose.choice(["ADD", "SUB", "MUL"])), x, one)
    if kind == "detour":
        real = net.build.tensor(f"f{len(net.build.graph.tensors)}", shape)
        net.build.op("DEQUANTIZE", [x], [real], None, 2)
        y = net.like(x) if choose.random() < 0.5 else net.activation(shape)
        net.build.op("QUANTIZE", [real], [y], None, 2)
        return y
    branch = net.conv(x, 3, (1, 1), weights=sparse(net, net.weights((3, 1, 1, depth)), 0, 3),
                      y=net.like(x, (*shape[:3], 3)))  # fmt: skip
    return net.concat([x, branch])
