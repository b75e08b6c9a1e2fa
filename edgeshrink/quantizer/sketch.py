"""What an export would write, without one: the operators and shapes of a model's int8 `.tflite`.

For prices, not for results: weights are the model's, rounded as the export rounds them, and
activations have scales by one run on the example input, so sizes, shapes and kernels are the
export's, and outputs mean nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from edgeshrink.errors import ModelError
from edgeshrink.graph import Graph, Op, Quantization, Tensor
from edgeshrink.quantizer.annotate import (
    FUSES_ACTIVATION,
    is_float,
    operator_name,
    refuse_unsupported,
    scalars_to_constants,
)
from edgeshrink.quantizer.canonical import canonical_program, constant_of, layer_of
from edgeshrink.quantizer.operators import RULES
from edgeshrink.quiet import quiet

aten = torch.ops.aten

SMALLEST_SCALE: Final = 2.0**-12
ACTIVATIONS: Final[dict[Any, str]] = {aten.relu.default: "RELU", aten.relu6.default: "RELU6"}
NHWC: Final = (0, 2, 3, 1)  # of a stored map, by the axes of (N, C, H, W)
VERSIONS: Final = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 5}
POINTWISE: Final[dict[Any, str]] = {
    aten.relu.default: "RELU",
    aten.relu6.default: "RELU6",
    aten.sigmoid.default: "LOGISTIC",
    aten.tanh.default: "TANH",
    aten.hardswish.default: "HARD_SWISH",
    aten.abs.default: "ABS",
    aten.rsqrt.default: "RSQRT",
    aten.gelu.default: "GELU",
    aten.leaky_relu.default: "LEAKY_RELU",
}
BINARY: Final[dict[Any, str]] = {
    aten.add.Tensor: "ADD",
    aten.sub.Tensor: "SUB",
    aten.mul.Tensor: "MUL",
    aten.maximum.default: "MAXIMUM",
    aten.minimum.default: "MINIMUM",
}


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """A graph as an export would write it, and which operators compute the model's layers."""

    graph: Graph
    layers: Mapping[str, tuple[int, ...]]  # path of a layer with weights -> its operators


def sketch(
    model: nn.Module, example_inputs: tuple[torch.Tensor, ...], *, micro: bool = False
) -> Sketch:
    """Return the int8 graph that an export of `model` would write, but for the scales' values.

    Args:
        model: It stays as it is.
        example_inputs: One tensor per input, batch of 1.
        micro: Whether it is for a microcontroller, which has fewer operators.

    Raises:
        ModelError: The model can't be traced, or an operator has no int8 form; names the layer.
    """
    inputs = tuple(x.detach().clone() for x in example_inputs)
    with quiet():  # copying an exported program warns
        own = copy.deepcopy(model)
    graph_module = canonical_program(own, inputs)
    refuse_unsupported(graph_module, micro=micro)
    scalars_to_constants(graph_module)
    return sketch_program(graph_module, inputs)


def sketch_program(graph_module: fx.GraphModule, inputs: tuple[torch.Tensor, ...]) -> Sketch:
    """As `sketch`, of a canonical graph."""
    ranges = _Ranges(graph_module)
    with torch.no_grad():
        ranges.run(*inputs)
    return _Sketcher(graph_module, _scales(graph_module, ranges.found)).done()


class _Ranges(fx.Interpreter):
    """Runs the float graph and keeps the least and the largest value of every node."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.extra_traceback = False
        self.found: dict[fx.Node, tuple[float, float]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
            finite = torch.nan_to_num(value)
            self.found[n] = min(0.0, float(finite.min())), max(0.0, float(finite.max()))
        return value


def _scales(
    graph_module: fx.GraphModule, ranges: Mapping[fx.Node, tuple[float, float]]
) -> dict[fx.Node, tuple[float, int]]:
    """Return scale and zero point of every float value; those that share one by the rules do."""
    owner = {node: node for node in ranges}

    def find(node: fx.Node) -> fx.Node:
        while owner[node] is not node:
            node = owner[node]
        return node

    fixed: dict[fx.Node, tuple[float, int]] = {}
    for node in graph_module.graph.nodes:
        rule = RULES.get(node.target) if node.op == "call_function" else None
        if rule is None or node not in ranges:
            continue
        if rule.kind == "lookup":
            fixed[node] = rule.scale, rule.zero_point
        elif rule.kind in ("same", "join"):
            for source in node.all_input_nodes:
                if source in ranges:
                    owner[find(node)] = find(source)
        elif rule.kind == "activation" and not _is_fused(node):
            owner[find(node)] = find(node.args[0])
    fixed = {find(node): scale for node, scale in fixed.items()}
    joint: dict[fx.Node, tuple[float, float]] = {}
    for node, (low, high) in ranges.items():
        if _fused_reader(node) is None:  # else its values are never stored
            least, most = joint.get(find(node), (0.0, 0.0))
            joint[find(node)] = min(low, least), max(high, most)
    found = {}
    for node in ranges:
        root = find(node)
        low, high = joint.get(root, (0.0, 0.0))
        scale = max((high - low) / 255, SMALLEST_SCALE)
        zero = round(max(-128.0, min(127.0, -128 - low / scale)))
        found[node] = fixed.get(root, (scale, zero))
    return found


def _fused_reader(node: fx.Node) -> fx.Node | None:
    """Return the activation that becomes part of `node`'s operator."""
    users = list(node.users)
    if node.target in FUSES_ACTIVATION and len(users) == 1 and users[0].target in ACTIVATIONS:
        return users[0]
    return None


def _is_fused(node: fx.Node) -> bool:
    source = node.args[0]
    return isinstance(source, fx.Node) and _fused_reader(source) is node


@dataclass(frozen=True, kw_only=True)
class _Value:
    """A stored tensor: the axes of the traced value in the order in which they are stored."""

    index: int
    axes: tuple[int, ...]


class _Sketcher:
    """Walks the canonical graph and writes operators; holds what it has written so far."""

    def __init__(
        self, graph_module: fx.GraphModule, scales: Mapping[fx.Node, tuple[float, int]]
    ) -> None:
        self.graph_module, self.scales = graph_module, scales
        self.tensors: list[Tensor] = []
        self.ops: list[Op] = []
        self.values: dict[fx.Node, _Value] = {}
        self.layers: dict[str, list[int]] = {}
        self.views: dict[tuple[int, tuple[int, ...]], _Value] = {}  # transposed, by axes

    def done(self) -> Sketch:
        inputs, outputs, names = [], [], []
        for node in self.graph_module.graph.nodes:
            if node.op == "placeholder":
                value = self._new(node, axes=self._door(node))
                inputs.append(value.index)
                names.append(node.name)
            elif node.op == "call_function":
                self._write(node)
            elif node.op == "output":
                leaves: list[Any] = torch.utils._pytree.tree_leaves(node.args[0])
                for leaf in leaves:
                    wanted = NHWC if leaf.meta["val"].dim() == 4 else None
                    outputs.append(self._stored(leaf, wanted).index)
        graph = Graph(
            name="main", tensors=tuple(self.tensors), ops=tuple(self.ops),
            inputs=tuple(inputs), outputs=tuple(outputs), input_names=tuple(names),
            output_names=tuple(self.tensors[i].name for i in outputs),
        )  # fmt: skip
        return Sketch(graph=graph, layers={k: tuple(v) for k, v in self.layers.items()})

    def _door(self, node: fx.Node) -> tuple[int, ...]:
        value = node.meta["val"]
        is_map = value.dim() == 4 and value.is_floating_point()
        return NHWC if is_map else tuple(range(value.dim()))

    # Tensors

    def _tensor(
        self,
        shape: Sequence[int],
        dtype: str,
        *,
        name: str = "",
        q: Quantization | None = None,
        data: npt.NDArray[Any] | None = None,
    ) -> int:
        index = len(self.tensors)
        data = None if data is None else np.ascontiguousarray(data)  # kernels reinterpret bytes
        self.tensors.append(
            Tensor(
                index=index, name=name, shape=tuple(int(s) for s in shape), dtype=dtype,
                quantization=q, data=data,
            )
        )  # fmt: skip
        return index

    def _new(self, node: fx.Node, *, axes: Sequence[int], shape: Sequence[int] = ()) -> _Value:
        """Make the tensor that holds the value of `node`, its axes stored in this order."""
        value = node.meta["val"]
        stored = tuple(shape) or tuple(value.shape[a] for a in axes)
        dtype = "int8" if value.is_floating_point() else str(value.dtype).rpartition(".")[2]
        q = self._quantization(node) if dtype == "int8" else None
        index = self._tensor(stored, dtype, name=layer_of(node), q=q)
        self.values[node] = _Value(index=index, axes=tuple(axes))
        return self.values[node]

    def _quantization(self, node: fx.Node) -> Quantization:
        scale, zero = self.scales[node]
        return Quantization(
            scales=np.array([scale], np.float32), zero_points=np.array([zero], np.int64)
        )

    def _list(self, values: Any) -> int:
        data = np.asarray(values, np.int32)
        return self._tensor(data.shape, "int32", data=data)

    def _constant(self, node: fx.Node, axes: Sequence[int]) -> int:
        """Return the tensor of a constant operand, its axes in this order."""
        value = constant_of(self.graph_module, node)
        assert value is not None
        real = value.detach().double().numpy()
        extra = len(axes) - real.ndim
        real = real.reshape((1,) * extra + real.shape).transpose(axes)
        scale, zero = self.scales[node]
        data = np.clip(np.rint(real / scale) + zero, -128, 127).astype(np.int8)
        return self._tensor(data.shape, "int8", q=self._quantization(node), data=data)

    def _stored(self, node: fx.Node, axes: Sequence[int] | None = None) -> _Value:
        """Return the tensor of `node`, brought into this order of its axes (None: the traced)."""
        value = self.values[node]
        wanted = tuple(range(node.meta["val"].dim())) if axes is None else tuple(axes)
        if value.axes == wanted:
            return value
        key = value.index, wanted
        if key not in self.views:
            order = [value.axes.index(a) for a in wanted]
            self.views[key] = _Value(
                index=self._rearranged(value.index, order, layer_of(node)), axes=wanted
            )
        return self.views[key]

    def _rearranged(self, index: int, order: Sequence[int], name: str) -> int:
        """Transpose a tensor; by a RESHAPE where only axes of length 1 move."""
        source = self.tensors[index]
        shape = [source.shape[a] for a in order]
        result = self._tensor(shape, source.dtype, name=name, q=source.quantization)
        long = [a for a in order if source.shape[a] != 1]
        if long == sorted(long):
            self._op("RESHAPE", [index, self._list(shape)], result, new_shape=tuple(shape))
        else:
            self._op("TRANSPOSE", [index, self._list(list(order))], result)
        return result

    def _op(self, kind: str, inputs: Sequence[int], output: int, **options: Any) -> int:
        number = len(self.ops)
        self.ops.append(
            Op(
                index=number, kind=kind, version=VERSIONS.get(kind, 2), inputs=tuple(inputs),
                outputs=(output,), options=options,
            )
        )  # fmt: skip
        return number

    # Operators

    def _write(self, node: fx.Node) -> None:
        if not is_float(node.meta.get("val")):
            return  # sizes and the like: constants by now
        if node.target in ACTIVATIONS and _is_fused(node):
            return  # written with its producer
        if all(n.op == "get_attr" for n in node.all_input_nodes):
            raise self._unknown(node, "computes with constants alone")
        write = WRITERS.get(node.target)
        if write is None:
            raise self._unknown(node, f"has the operator {operator_name(node.target)!r}")
        write(self, node)

    def _unknown(self, node: fx.Node, what: str) -> ModelError:
        return ModelError(
            f"layer {layer_of(node)!r}",
            f"{what}, which has no price before an export",
            "build with a recipe of your own (--recipe); it is measured there",
        )

    def _result(self, node: fx.Node) -> tuple[fx.Node, str]:
        """Return the node whose value an operator stores, and the activation fused into it."""
        reader = _fused_reader(node)
        return (node, "NONE") if reader is None else (reader, ACTIVATIONS[reader.target])

    def _weighted(
        self, node: fx.Node, weight: npt.NDArray[Any], axis: int, x: int, result: fx.Node
    ) -> list[int]:
        """Return weight and bias tensors, quantized per channel along `axis`."""
        del result
        others = tuple(a for a in range(weight.ndim) if a != axis)
        most = np.abs(weight).max(axis=others, keepdims=True)
        scales = np.maximum(most / 127, SMALLEST_SCALE)
        data = np.clip(np.rint(weight / scales), -127, 127).astype(np.int8)
        flat = scales.reshape(-1)
        n = len(flat)
        per_channel = Quantization(
            scales=flat.astype(np.float32), zero_points=np.zeros(n, np.int64), axis=axis
        )
        tensors = [self._tensor(data.shape, "int8", q=per_channel, data=data)]
        bias = constant_of(self.graph_module, node.args[2]) if len(node.args) > 2 else None
        x_quantization = self.tensors[x].quantization
        assert x_quantization is not None
        unit = flat * float(x_quantization.scales[0])
        real = np.zeros(n) if bias is None else bias.double().numpy()
        limits = np.iinfo(np.int32)
        whole = np.clip(np.rint(real / unit), limits.min, limits.max).astype(np.int32)
        q = Quantization(scales=unit.astype(np.float32), zero_points=np.zeros(n, np.int64))
        return [*tensors, self._tensor((n,), "int32", q=q, data=whole)]

    def _belongs(self, node: fx.Node, op: int) -> None:
        self.layers.setdefault(layer_of(node), []).append(op)


def _pair(value: Any) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])


def _argument(node: fx.Node, position: int, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else default


def _is_same(
    size: Sequence[int], window: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> bool:
    """Say whether equal padding on both sides is what TFLite's SAME pads."""
    for n, k, s, p in zip(size, window, stride, padding, strict=True):
        total = max(0, (math.ceil(n / s) - 1) * s + k - n)
        if total != 2 * p:
            return False
    return True


def _padded(
    b: _Sketcher, x: int, padding: Sequence[int], name: str, fill: int | None = None
) -> int:
    """Write a PAD of rows and columns; `fill` is the stored value where it is not zero."""
    source = b.tensors[x]
    n, h, w, c = source.shape
    shape = (n, h + 2 * padding[0], w + 2 * padding[1], c)
    y = b._tensor(shape, source.dtype, name=name, q=source.quantization)
    amounts = b._list([[0, 0], [padding[0]] * 2, [padding[1]] * 2, [0, 0]])
    if fill is None:
        b._op("PAD", [x, amounts], y)
    else:
        data = np.array([fill], np.int8)
        value = b._tensor((1,), "int8", q=source.quantization, data=data)
        b._op("PADV2", [x, amounts, value], y)
    return y


def _conv(b: _Sketcher, node: fx.Node) -> None:
    source, weight_node = node.args[0], node.args[1]
    assert isinstance(source, fx.Node)
    stride, padding = _pair(_argument(node, 3, 1)), _argument(node, 4, 0)
    dilation, groups = _pair(_argument(node, 5, 1)), _argument(node, 6, 1)
    weight = constant_of(b.graph_module, weight_node)
    if weight is None:
        raise b._unknown(node, "convolves with weights that are computed")
    x = b._stored(source, NHWC).index
    _, h, w, channels = b.tensors[x].shape
    window = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    if isinstance(padding, str):
        is_valid = padding == "valid"
        pad = (0, 0)
        mode = "VALID" if is_valid else "SAME"
    else:
        pad = _pair(padding)
        if not any(pad):
            mode = "VALID"
        elif _is_same((h, w), window, stride, pad):
            mode = "SAME"
        else:
            x, mode = _padded(b, x, pad, layer_of(source)), "VALID"
    result, activation = b._result(node)
    values = weight.detach().double().numpy()  # (out, in / groups, h, w)
    options = {
        "padding": mode, "stride_w": stride[1], "stride_h": stride[0], "activation": activation,
        "dilation_w_factor": dilation[1], "dilation_h_factor": dilation[0],
    }  # fmt: skip
    if groups == channels and values.shape[1] == 1:
        kind, axis, stored = "DEPTHWISE_CONV_2D", 3, values.transpose(1, 2, 3, 0)
        options["depth_multiplier"] = values.shape[0] // groups
    else:
        kind, axis, stored = "CONV_2D", 0, values.transpose(0, 2, 3, 1)
    constants = b._weighted(node, stored, axis, x, result)
    y = b._new(result, axes=NHWC)
    b._belongs(node, b._op(kind, [x, *constants], y.index, **options))


def _linear(b: _Sketcher, node: fx.Node) -> None:
    source = node.args[0]
    weight = constant_of(b.graph_module, node.args[1])
    assert isinstance(source, fx.Node)
    if weight is None:
        raise b._unknown(node, "multiplies with weights that are computed")
    x = b._stored(source).index
    result, activation = b._result(node)
    constants = b._weighted(node, weight.detach().double().numpy(), 0, x, result)
    y = b._new(result, axes=range(node.meta["val"].dim()))
    options = {"activation": activation, "weights_format": "DEFAULT", "keep_num_dims": True,
               "asymmetric_quantize_inputs": False}  # fmt: skip
    b._belongs(node, b._op("FULLY_CONNECTED", [x, *constants], y.index, **options))


def _transpose_conv(b: _Sketcher, node: fx.Node) -> None:
    source = node.args[0]
    weight = constant_of(b.graph_module, node.args[1])
    assert isinstance(source, fx.Node)
    stride, padding = _pair(_argument(node, 3, 1)), _pair(_argument(node, 4, 0))
    if weight is None or _argument(node, 6, 1) != 1:
        raise b._unknown(node, "is a transposed convolution in groups")
    x = b._stored(source, NHWC).index
    n, h, w, _ = b.tensors[x].shape
    values = weight.detach().double().numpy().transpose(1, 2, 3, 0)  # (out, h, w, in)
    result, activation = b._result(node)
    weights, bias = b._weighted(node, values, 0, x, result)
    full = [(s - 1) * t + k for s, t, k in zip((h, w), stride, values.shape[1:3], strict=True)]
    final = list(node.meta["val"].shape[2:])
    is_whole = full == final
    shape = (n, *full, values.shape[0])
    y = b._new(result, axes=NHWC)
    target = y.index
    if not is_whole:
        q = b.tensors[target].quantization
        target = b._tensor(shape, "int8", name=layer_of(node), q=q)
    number = b._op(
        "TRANSPOSE_CONV", [b._list(list(shape)), weights, x, bias], target,
        padding="VALID", stride_w=stride[1], stride_h=stride[0], activation=activation,
    )  # fmt: skip
    b._belongs(node, number)
    if not is_whole:
        begin = [0, *padding, 0]
        end = [n, padding[0] + final[0], padding[1] + final[1], values.shape[0]]
        _strided(b, target, begin, end, [1] * 4, y.index)


def _strided(
    b: _Sketcher, x: int, begin: Sequence[int], end: Sequence[int], step: Sequence[int], y: int
) -> None:
    b._op(
        "STRIDED_SLICE", [x, b._list(begin), b._list(end), b._list(step)], y,
        begin_mask=0, end_mask=0, ellipsis_mask=0, new_axis_mask=0, shrink_axis_mask=0,
        offset=False,
    )  # fmt: skip


def _pointwise(b: _Sketcher, node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    x = b.values[source]
    y = b._new(node, axes=x.axes)
    options = {}
    if node.target == aten.leaky_relu.default:
        options["alpha"] = float(_argument(node, 1, 0.01))
    if node.target == aten.gelu.default:
        options["approximate"] = node.kwargs.get("approximate", "none") == "tanh"
    b._op(POINTWISE[node.target], [x.index], y.index, **options)


def _binary(b: _Sketcher, node: fx.Node) -> None:
    result, activation = b._result(node)
    rank = node.meta["val"].dim()
    computed = [n for n in node.all_input_nodes if n.op != "get_attr"]
    full = [n for n in computed if n.meta["val"].dim() == rank]
    axes = next((b.values[n].axes for n in full if b.values[n].axes != tuple(range(rank))), None)
    axes = tuple(range(rank)) if axes is None else axes
    inputs = []
    for position in (0, 1):
        operand: Any = node.args[position]
        if not isinstance(operand, fx.Node):
            raise b._unknown(node, "combines a tensor with a number")
        if operand.op == "get_attr":
            inputs.append(b._constant(operand, axes))
        elif operand.meta["val"].dim() == rank:
            inputs.append(b._stored(operand, axes).index)
        elif axes == tuple(range(rank)):
            inputs.append(b._stored(operand).index)
        else:
            raise b._unknown(node, "combines tensors of different rank")
    y = b._new(result, axes=axes)
    options: dict[str, Any] = {}
    if node.target in FUSES_ACTIVATION:
        options = {"activation": activation}
    b._op(BINARY[node.target], inputs, y.index, **options)


def _max_pool(b: _Sketcher, node: fx.Node) -> None:
    _pool(b, node, "MAX_POOL_2D")


def _average_pool(b: _Sketcher, node: fx.Node) -> None:
    _pool(b, node, "AVERAGE_POOL_2D")


def _pool(b: _Sketcher, node: fx.Node, kind: str) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    window = _pair(node.args[1])
    stride = _pair(_argument(node, 2, None) or window)
    padding = _pair(_argument(node, 3, 0))
    x = b._stored(source, NHWC).index
    size = b.tensors[x].shape[1:3]
    counts_padding = kind == "AVERAGE_POOL_2D" and _argument(node, 5, True)
    if not any(padding):
        mode = "VALID"
    elif _is_same(size, window, stride, padding) and not counts_padding:
        mode = "SAME"
    else:
        fill = -128 if kind == "MAX_POOL_2D" else None
        x, mode = _padded(b, x, padding, layer_of(source), fill), "VALID"
    y = b._new(node, axes=NHWC)
    b._op(
        kind, [x], y.index, padding=mode, stride_w=stride[1], stride_h=stride[0],
        filter_width=window[1], filter_height=window[0], activation="NONE",
    )  # fmt: skip


def _global_mean(b: _Sketcher, node: fx.Node) -> None:
    _reduced(b, node, "MEAN", [2, 3], keeps=True)


def _mean(b: _Sketcher, node: fx.Node) -> None:
    _reduced(b, node, "MEAN", _argument(node, 1, None), keeps=bool(_argument(node, 2, False)))


def _sum(b: _Sketcher, node: fx.Node) -> None:
    _reduced(b, node, "SUM", _argument(node, 1, None), keeps=bool(_argument(node, 2, False)))


def _amax(b: _Sketcher, node: fx.Node) -> None:
    _reduced(b, node, "REDUCE_MAX", _argument(node, 1, None), keeps=bool(_argument(node, 2, False)))


def _reduced(b: _Sketcher, node: fx.Node, kind: str, dims: Any, *, keeps: bool) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    x = b.values[source]
    rank = len(x.axes)
    gone = list(range(rank)) if dims is None else [dims] if isinstance(dims, int) else list(dims)
    gone = [d % rank for d in gone]
    where = sorted(x.axes.index(d) for d in gone)
    users = list(node.users)
    target = node
    if keeps and len(users) == 1 and users[0].target == aten.reshape.default:
        flat = [s for d, s in enumerate(node.meta["val"].shape) if d not in gone]
        if list(users[0].meta["val"].shape) == flat:  # it only drops what the mean leaves as 1
            target, keeps = users[0], False
    if keeps:
        y = b._new(target, axes=x.axes)
    else:
        left = [a for a in x.axes if a not in gone]
        y = b._new(target, axes=[sorted(left).index(a) for a in left])
    b._op(kind, [x.index, b._list(where)], y.index, keep_dims=keeps)


def _reshape(b: _Sketcher, node: fx.Node) -> None:
    if node in b.values:
        return  # part of a mean
    source = node.args[0]
    assert isinstance(source, fx.Node)
    shape, before = list(node.meta["val"].shape), list(source.meta["val"].shape)
    stored = b.values[source]
    # A height of 1 put in or taken out of a map that is channels-last: no value moves.
    if stored.axes == NHWC and len(shape) == 2 and shape == [before[0], before[1]]:
        x = stored.index
    else:
        x = b._stored(source).index
    if len(shape) == 4 and before == [shape[0], shape[1], shape[3]] and source.op == "placeholder":
        _lift(b, node, source)  # a 1-D map at the model's door
        return
    y = b._new(node, axes=range(len(shape)))
    b._op("RESHAPE", [x, b._list(shape)], y.index, new_shape=tuple(shape))


def _lift(b: _Sketcher, node: fx.Node, source: fx.Node) -> None:
    """Store an input (N, C, L) as (N, 1, L, C), as the export does."""
    tensor = b.tensors[b.values[source].index]
    n, c, _, length = node.meta["val"].shape
    b.tensors[tensor.index] = Tensor(
        index=tensor.index, name=tensor.name, shape=(n, 1, length, c), dtype=tensor.dtype,
        quantization=tensor.quantization,
    )  # fmt: skip
    b.values[node] = _Value(index=tensor.index, axes=NHWC)


def _permute(b: _Sketcher, node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    rank = source.meta["val"].dim()
    order = list(range(rank))
    if node.target == aten.permute.default:
        order = [d % rank for d in node.args[1]]  # type: ignore[union-attr]
    else:
        first, second = (0, 1) if node.target == aten.t.default else node.args[1:3]
        first, second = int(first) % rank, int(second) % rank  # type: ignore[arg-type]
        order[first], order[second] = order[second], order[first]
    x = b.values[source]
    by_axis = [order.index(a) for a in x.axes]  # the result's axes as they lie in memory now
    stored = b.tensors[x.index].shape
    wanted = list(range(rank))
    moves = [by_axis.index(a) for a in wanted]
    y = b._new(node, axes=wanted)
    long = [m for m in moves if stored[m] != 1]
    if long == sorted(long):
        shape = b.tensors[y.index].shape
        b._op("RESHAPE", [x.index, b._list(list(shape))], y.index, new_shape=tuple(shape))
    else:
        b._op("TRANSPOSE", [x.index, b._list(moves)], y.index)


def _slice(b: _Sketcher, node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    x = b.values[source]
    shape = source.meta["val"].shape
    axis = int(_argument(node, 1, 0)) % len(shape)
    size = int(shape[axis])
    start, stop = _argument(node, 2, 0) or 0, _argument(node, 3, None)
    start = max(0, start + size) if start < 0 else min(start, size)
    stop = size if stop is None else max(0, stop + size) if stop < 0 else min(stop, size)
    begin, end = [0] * len(shape), [int(s) for s in b.tensors[x.index].shape]
    step = [1] * len(shape)
    place = x.axes.index(axis)
    begin[place], end[place], step[place] = start, stop, int(_argument(node, 4, 1))
    y = b._new(node, axes=x.axes)
    _strided(b, x.index, begin, end, step, y.index)


def _cat(b: _Sketcher, node: fx.Node) -> None:
    sources: Any = node.args[0]
    rank = node.meta["val"].dim()
    computed = [n for n in sources if n.op != "get_attr"]
    plain = tuple(range(rank))
    axes = next((b.values[n].axes for n in computed if b.values[n].axes != plain), plain)
    inputs = [
        b._constant(n, axes) if n.op == "get_attr" else b._stored(n, axes).index for n in sources
    ]
    y = b._new(node, axes=axes)
    axis = axes.index(int(_argument(node, 1, 0)) % rank)
    b._op("CONCATENATION", inputs, y.index, axis=axis, activation="NONE")


def _pad(b: _Sketcher, node: fx.Node) -> None:
    source, amounts = node.args[0], node.args[1]
    assert isinstance(source, fx.Node)
    assert isinstance(amounts, (list, tuple))
    x = b.values[source]
    rank = len(x.axes)
    pairs = [[0, 0] for _ in range(rank)]
    for i in range(len(amounts) // 2):
        pairs[x.axes.index(rank - 1 - i)] = [int(amounts[2 * i]), int(amounts[2 * i + 1])]  # type: ignore[arg-type]
    fill = float(_argument(node, 2, 0) or 0)
    y = b._new(node, axes=x.axes)
    if fill == 0:
        b._op("PAD", [x.index, b._list(pairs)], y.index)
        return
    scale, zero = b.scales[node]
    data = np.array([np.clip(round(fill / scale) + zero, -128, 127)], np.int8)
    value = b._tensor((1,), "int8", q=b._quantization(node), data=data)
    b._op("PADV2", [x.index, b._list(pairs), value], y.index)


def _softmax(b: _Sketcher, node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    rank = source.meta["val"].dim()
    axis = int(_argument(node, 1, -1)) % rank
    axes = [a for a in range(rank) if a != axis] + [axis]
    x = b._stored(source, axes)
    y = b._new(node, axes=axes)
    if node.target == aten.log_softmax.int:
        b._op("LOG_SOFTMAX", [x.index], y.index)
    else:
        b._op("SOFTMAX", [x.index], y.index, beta=1.0)


def _matmul(b: _Sketcher, node: fx.Node) -> None:
    inputs = []
    for position in (0, 1):
        operand: Any = node.args[position]
        if operand.op == "get_attr":
            inputs.append(b._constant(operand, range(operand.meta["val"].dim())))
        else:
            inputs.append(b._stored(operand).index)
    y = b._new(node, axes=range(node.meta["val"].dim()))
    b._op("BATCH_MATMUL", inputs, y.index, adj_x=False, adj_y=False,
          asymmetric_quantize_inputs=False)  # fmt: skip


def _resize(b: _Sketcher, node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    x = b._stored(source, NHWC)
    size = [int(s) for s in node.meta["val"].shape[2:]]
    y = b._new(node, axes=NHWC)
    if node.target == aten.upsample_nearest2d.vec:
        b._op("RESIZE_NEAREST_NEIGHBOR", [x.index, b._list(size)], y.index,
              align_corners=False, half_pixel_centers=False)  # fmt: skip
        return
    corners = bool(_argument(node, 2, False))
    b._op("RESIZE_BILINEAR", [x.index, b._list(size)], y.index,
          align_corners=corners, half_pixel_centers=not corners)  # fmt: skip


def _expand(b: _Sketcher, node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    x = b._stored(source)
    shape = list(node.meta["val"].shape)
    y = b._new(node, axes=range(len(shape)))
    b._op("BROADCAST_TO", [x.index, b._list(shape)], y.index)


WRITERS: Final[dict[Any, Callable[[_Sketcher, fx.Node], None]]] = {
    aten.conv2d.default: _conv,
    aten.linear.default: _linear,
    aten.conv_transpose2d.input: _transpose_conv,
    **dict.fromkeys(POINTWISE, _pointwise),
    **dict.fromkeys(BINARY, _binary),
    aten.max_pool2d.default: _max_pool,
    aten.avg_pool2d.default: _average_pool,
    aten.adaptive_avg_pool2d.default: _global_mean,
    aten.mean.dim: _mean,
    aten.sum.dim_IntList: _sum,
    aten.amax.default: _amax,
    aten.reshape.default: _reshape,
    aten.permute.default: _permute,
    aten.transpose.int: _permute,
    aten.t.default: _permute,
    aten.slice.Tensor: _slice,
    aten.cat.default: _cat,
    aten.constant_pad_nd.default: _pad,
    aten.softmax.int: _softmax,
    aten._softmax.default: _softmax,
    aten.log_softmax.int: _softmax,
    aten.matmul.default: _matmul,
    aten.bmm.default: _matmul,
    aten.upsample_nearest2d.vec: _resize,
    aten.upsample_bilinear2d.vec: _resize,
    aten.expand.default: _expand,
}
