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
        scales = [self.scale(0.002, 0.02) for _ in range(n_out if is_per_channel else 1)]
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
