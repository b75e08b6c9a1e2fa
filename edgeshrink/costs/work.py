"""What each operator of a graph has to do: multiply-accumulates, bytes, elements, kernel class."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

from edgeshrink.graph import Graph, Op, Tensor
from edgeshrink.tflite_schema import DTYPES

KernelClass = Literal[
    "conv_1x1", "conv_kxk", "depthwise", "fully_connected", "matmul", "recurrent",
    "pool", "elementwise", "activation", "move", "other",
]  # fmt: skip

_KINDS: Final[dict[KernelClass, str]] = {
    "pool": """
        MEAN SUM REDUCE_MAX REDUCE_MIN REDUCE_PROD REDUCE_ANY REDUCE_ALL REDUCE_WINDOW
        STABLEHLO_REDUCE STABLEHLO_REDUCE_WINDOW""",
    "elementwise": """
        ADD SUB MUL DIV MAXIMUM MINIMUM SQUARED_DIFFERENCE ADD_N NEG ABS SQUARE FLOOR CEIL ROUND
        SIGN FLOOR_DIV FLOOR_MOD SELECT SELECT_V2 LESS LESS_EQUAL GREATER GREATER_EQUAL EQUAL
        NOT_EQUAL LOGICAL_AND LOGICAL_OR LOGICAL_NOT QUANTIZE DEQUANTIZE CAST FAKE_QUANT
        BITWISE_XOR RIGHT_SHIFT STABLEHLO_ADD STABLEHLO_SUBTRACT STABLEHLO_MULTIPLY
        STABLEHLO_DIVIDE STABLEHLO_MAXIMUM STABLEHLO_MINIMUM STABLEHLO_CLAMP STABLEHLO_ABS
        STABLEHLO_AND STABLEHLO_OR STABLEHLO_NEGATE STABLEHLO_FLOOR STABLEHLO_REMAINDER
        STABLEHLO_SELECT STABLEHLO_COMPARE STABLEHLO_CONVERT STABLEHLO_SHIFT_LEFT""",
    "activation": """
        RELU RELU6 RELU_N1_TO_1 RELU_0_TO_1 LEAKY_RELU PRELU ELU HARD_SWISH GELU LOGISTIC TANH
        LOOKUP SOFTMAX LOG_SOFTMAX EXP LOG SIN COS SQRT RSQRT POW ATAN2 L2_NORMALIZATION
        LOCAL_RESPONSE_NORMALIZATION STABLEHLO_LOGISTIC STABLEHLO_TANH STABLEHLO_EXPONENTIAL
        STABLEHLO_LOG STABLEHLO_COSINE STABLEHLO_RSQRT STABLEHLO_POWER STABLEHLO_CBRT""",
    "move": """
        RESHAPE SQUEEZE EXPAND_DIMS PAD PADV2 MIRROR_PAD CONCATENATION TRANSPOSE SLICE
        STRIDED_SLICE SPLIT SPLIT_V PACK UNPACK TILE GATHER GATHER_ND BROADCAST_TO REVERSE_V2
        SPACE_TO_DEPTH DEPTH_TO_SPACE SPACE_TO_BATCH_ND BATCH_TO_SPACE_ND EMBEDDING_LOOKUP
        RESIZE_NEAREST_NEIGHBOR DYNAMIC_UPDATE_SLICE ASSIGN_VARIABLE READ_VARIABLE FILL BITCAST
        ZEROS_LIKE SHAPE DILATE STABLEHLO_RESHAPE STABLEHLO_CONCATENATE STABLEHLO_TRANSPOSE
        STABLEHLO_BROADCAST_IN_DIM STABLEHLO_SLICE STABLEHLO_DYNAMIC_SLICE STABLEHLO_PAD
        STABLEHLO_DYNAMIC_UPDATE_SLICE STABLEHLO_GATHER STABLEHLO_IOTA""",
}
# Classes of operators that multiply nothing; the others' are decided by their tensors.
KERNEL_CLASSES: Final[dict[str, KernelClass]] = {
    kind: kernel for kernel, kinds in _KINDS.items() for kind in kinds.split()
}

# Which inputs of an operator hold weights that every step multiplies with.
LSTM_WEIGHTS: Final = (*range(1, 12), 16)  # input, recurrent, peephole; projection
BIDIRECTIONAL_LSTM_WEIGHTS: Final = (*LSTM_WEIGHTS, *range(18, 29), 33, *range(40, 48))
RECURRENT_WEIGHTS: Final = {
    "RNN": (1, 2),
    "SVDF": (1, 2),
    "UNIDIRECTIONAL_SEQUENCE_RNN": (1, 2),
    "BIDIRECTIONAL_SEQUENCE_RNN": (1, 2, 5, 6, 10, 11),
    "LSTM": LSTM_WEIGHTS,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": LSTM_WEIGHTS,
    "BIDIRECTIONAL_SEQUENCE_LSTM": BIDIRECTIONAL_LSTM_WEIGHTS,
}
BASIC_LSTM_WEIGHTS: Final = (2,)  # LSTM's five-input form: data, activation, weights, bias, state


ALTERNATIVES: Final = ("IF", "STABLEHLO_CASE")
CONTROL_FLOW: Final = ("CALL", "WHILE", "STABLEHLO_WHILE", "STABLEHLO_COMPOSITE", *ALTERNATIVES)

BITS: Final = {name: bits for name, bits in DTYPES.values() if bits}
DATA_INPUTS: Final = {  # where it is not the first
    "TRANSPOSE_CONV": 2, "CONV_3D_TRANSPOSE": 2, "SPLIT": 1, "EMBEDDING_LOOKUP": 1, "SELECT": 1,
    "SELECT_V2": 1,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OpWork:
    """One operator's work for one inference.

    A multiply-accumulate is a product that is added up into an output: convolutions, fully
    connected layers, matrix products, recurrent layers with their peepholes. Element-by-element
    products, normalisations and requantization count none. Counts are dense: padding and zero
    weights count as if they were computed.
    """

    kind: str  # the operator's name, "CONV_2D"
    kernel: KernelClass
    dtype: str  # of the values it works on, "int8"
    macs: int
    input_bytes: int  # values that change from one inference to the next
    output_bytes: int
    weight_bytes: int  # constants, biases included
    output_elements: int
    # How the products are arranged; 0 or 1 where that says nothing.
    taps: int = 1  # kernel height x width (x depth); elements of a pooling window
    in_channels: int = 0  # per group
    out_channels: int = 0  # per group
    groups: int = 1
    stride: int = 1  # the largest of all directions
    steps: int = 1  # passes over the weights that must follow one another (time steps)
    bodies: tuple[Graph, ...] = ()  # what control flow runs once; its products are in `macs`


def op_work(graph: Graph, op: Op, *, root: Graph | None = None) -> OpWork:
    """Return the work of `op`, an operator of `graph`.

    Never raises: an operator that is unknown, or whose tensors are not as TFLite has them, is of
    class `other` and has its bytes alone. Control flow counts its bodies once (of alternatives
    the one with the most products), since the number of passes is not in the file.

    Args:
        graph: The graph that holds the tensors of `op`.
        op: One of its operators.
        root: The model, if `graph` is one of its subgraphs.
    """
    return _op_work(root or graph, graph, op, {})


def graph_work(
    graph: Graph, *, root: Graph | None = None, known: dict[int, int] | None = None
) -> tuple[OpWork, ...]:
    """Return the work of every operator of `graph`, in order; see `op_work`.

    Args:
        graph: A model or one of its subgraphs.
        root: The model, if `graph` is one of its subgraphs.
        known: Filled with the products of the subgraphs met, by identity; handed on from call to
            call, each subgraph is counted once.
    """
    known = {} if known is None else known
    return tuple(_op_work(root or graph, graph, op, known) for op in graph.ops)


def graph_macs(graph: Graph) -> int:
    """Return the multiply-accumulates of one inference; see `op_work`."""
    return _graph_macs(graph, graph, {})


def tensor_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor's values; 0 for strings and resources, whose size is unknown."""
    bits = BITS.get(tensor.dtype)
    return (_elements(tensor) * bits + 7) // 8 if bits else 0


def table_bytes(op: Op) -> int:
    """Return the bytes of the table of a LOOKUP, the operator that graph passes make of others."""
    return 256 if op.kind == "LOOKUP" and not op.is_custom else 0


def _elements(tensor: Tensor) -> int:
    return math.prod(abs(size) for size in tensor.shape)  # -1 stands for an unknown size


def call_order(root: Graph, graph: Graph) -> list[Graph]:
    """Return `graph` and all it calls, each once, those called before those that call them.

    Where graphs call one another in a circle, one of them comes too early. Takes no more stack
    for a longer chain of calls.
    """
    found: list[Graph] = []
    opened: set[int] = set()
    waiting = [(graph, False)]
    while waiting:
        current, is_last_visit = waiting.pop()
        if is_last_visit:
            found.append(current)
        elif id(current) not in opened:
            opened.add(id(current))
            waiting.append((current, True))
            waiting += [(body, False) for op in current.ops for body in _called(root, op)]
    return found


def _graph_macs(root: Graph, graph: Graph, seen: dict[int, int]) -> int:
    """Return the products of a graph; `seen` keeps those of all graphs on the way."""
    if id(graph) not in seen:
        order = [one for one in call_order(root, graph) if id(one) not in seen]
        seen.update({id(one): 0 for one in order})
        for one in order:
            seen[id(one)] = sum(_op_work(root, one, op, seen).macs for op in one.ops)
    return seen[id(graph)]


def _op_work(root: Graph, graph: Graph, op: Op, seen: dict[int, int]) -> OpWork:
    inputs = [graph.tensors[i] if 0 <= i < len(graph.tensors) else None for i in op.inputs]
    outputs = [graph.tensors[i] for i in op.outputs if 0 <= i < len(graph.tensors)]
    present = [tensor for tensor in inputs if tensor is not None]
    bodies = _bodies(root, op, seen)
    products = _products(op, inputs, outputs)
    return OpWork(
        kind=op.kind,
        kernel=products.kernel,
        dtype=_dtype(op, inputs, outputs),
        macs=products.macs + sum(_graph_macs(root, body, seen) for body in bodies),
        input_bytes=sum(tensor_bytes(t) for t in present if t.data is None),
        output_bytes=sum(tensor_bytes(t) for t in outputs),
        weight_bytes=sum(tensor_bytes(t) for t in present if t.data is not None) + table_bytes(op),
        output_elements=sum(_elements(t) for t in outputs),
        taps=products.taps,
        in_channels=products.in_channels,
        out_channels=products.out_channels,
        groups=products.groups,
        stride=products.stride,
        steps=products.steps,
        bodies=bodies,
    )


def _called(root: Graph, op: Op) -> tuple[Graph, ...]:
    """Return the subgraphs that a control flow operator names."""
    if op.kind not in CONTROL_FLOW or op.is_custom:
        return ()
    numbers: list[int] = []
    for key, value in op.options.items():
        if key == "subgraph" or key.endswith(("subgraph_index", "subgraph_indices")):
            numbers += [value] if isinstance(value, int) else list(value or ())
    bodies = root.subgraphs  # the first subgraph of the file is `root`
    return tuple(bodies[number - 1] for number in numbers if 0 < number <= len(bodies))


def _bodies(root: Graph, op: Op, seen: dict[int, int]) -> tuple[Graph, ...]:
    """Return the subgraphs that one pass of a control flow operator runs."""
    found = _called(root, op)
    if op.kind in ALTERNATIVES and found:
        found = (max(found, key=lambda body: _graph_macs(root, body, seen)),)
    return found


def _dtype(op: Op, inputs: list[Tensor | None], outputs: list[Tensor]) -> str:
    """Return the type an operator works on: that of its data input."""
    position = DATA_INPUTS.get(op.kind, 0)
    tensor = inputs[position] if position < len(inputs) else None
    if tensor is None:
        tensor = outputs[0] if outputs else None
    return tensor.dtype if tensor is not None else "none"


@dataclass(frozen=True, kw_only=True)
class _Products:
    """The fields of `OpWork` that say what is multiplied."""

    kernel: KernelClass
    macs: int = 0
    taps: int = 1
    in_channels: int = 0
    out_channels: int = 0
    groups: int = 1
    stride: int = 1
    steps: int = 1


def _products(op: Op, inputs: list[Tensor | None], outputs: list[Tensor]) -> _Products:
    """Return what an operator multiplies; class `other` where its tensors are not as they must."""
    found = None
    if outputs and not op.is_custom:
        if op.kind in MULTIPLIERS:
            found = MULTIPLIERS[op.kind](op, inputs, outputs[0])
        elif kernel := KERNEL_CLASSES.get(op.kind):
            x = _shaped(inputs, 0, 0)
            taps = _elements(x) // max(1, _elements(outputs[0])) if kernel == "pool" and x else 1
            found = _Products(kernel=kernel, taps=max(1, taps))
    return found or _Products(kernel="other")


def _shaped(inputs: list[Tensor | None], position: int, rank: int) -> Tensor | None:
    """Return an input if it is there and has at least `rank` dimensions."""
    tensor = inputs[position] if position < len(inputs) else None
    return tensor if tensor is not None and len(tensor.shape) >= rank else None


def _stride(op: Op) -> int:
    strides = [v for k, v in op.options.items() if k.startswith("stride_") and isinstance(v, int)]
    return max(strides, default=1)


def _convolution(
    positions: int, taps: int, depth: int, channels: int, groups: int, stride: int
) -> _Products:
    """Return a convolution whose every one of `positions` sums up taps x depth products."""
    is_depthwise = depth == 1 and groups > 1
    return _Products(
        kernel="depthwise" if is_depthwise else "conv_1x1" if taps == 1 else "conv_kxk",
        macs=positions * taps * depth,
        taps=taps,
        in_channels=depth,
        out_channels=max(1, channels // groups),
        groups=groups,
        stride=stride,
    )


def _conv_2d(op: Op, inputs: list[Tensor | None], out: Tensor) -> _Products | None:
    x, weights = _shaped(inputs, 0, 4), _shaped(inputs, 1, 4)
    if not x or not weights:
        return None
    channels, height, width, depth = weights.shape[:4]
    groups = max(1, x.shape[3] // max(1, depth))
    return _convolution(_elements(out), height * width, depth, channels, groups, _stride(op))


def _depthwise_conv_2d(op: Op, inputs: list[Tensor | None], out: Tensor) -> _Products | None:
    weights = _shaped(inputs, 1, 4)
    if not weights:
        return None
    _, height, width, channels = weights.shape[:4]
    plain = _convolution(_elements(out), height * width, 1, channels, channels, _stride(op))
    return replace(plain, kernel="depthwise")


def _conv_3d(op: Op, inputs: list[Tensor | None], out: Tensor) -> _Products | None:
    x, weights = _shaped(inputs, 0, 5), _shaped(inputs, 1, 5)
    if not x or not weights:
        return None
    *kernel, depth, channels = weights.shape
    groups = max(1, x.shape[4] // max(1, depth))
    return _convolution(_elements(out), math.prod(kernel), depth, channels, groups, _stride(op))


def _transpose_conv(op: Op, inputs: list[Tensor | None], _: Tensor) -> _Products | None:
    """Every input value is multiplied into a window of each output channel."""
    is_3d = op.kind == "CONV_3D_TRANSPOSE"
    x, weights = _shaped(inputs, 2, 5 if is_3d else 4), _shaped(inputs, 1, 5 if is_3d else 4)
    if not x or not weights:
        return None
    shape = weights.shape
    channels, kernel = (shape[3], shape[:3]) if is_3d else (shape[0], shape[1:3])
    plain = _convolution(_elements(x), math.prod(kernel), channels, channels, 1, _stride(op))
    return replace(plain, in_channels=x.shape[-1])


def _fully_connected(_: Op, inputs: list[Tensor | None], out: Tensor) -> _Products | None:
    weights = _shaped(inputs, 1, 2)
    if not weights:
        return None
    return _Products(
        kernel="fully_connected",
        macs=_elements(out) * weights.shape[-1],
        in_channels=weights.shape[-1],
        out_channels=weights.shape[-2],
    )


def _matmul(op: Op, inputs: list[Tensor | None], out: Tensor) -> _Products | None:
    x = _shaped(inputs, 0, 1)
    axes = op.options.get("lhs_contracting_dimensions")
    if axes is None:  # BATCH_MATMUL
        axes = (-2 if op.options.get("adj_x") else -1,)
    if not x or not all(-len(x.shape) <= axis < len(x.shape) for axis in axes):
        return None
    depth = math.prod(x.shape[axis] for axis in axes)
    channels = out.shape[-1] if out.shape else 1
    return _Products(
        kernel="matmul", macs=_elements(out) * depth, in_channels=depth, out_channels=channels
    )


def _stablehlo_convolution(op: Op, inputs: list[Tensor | None], out: Tensor) -> _Products | None:
    weights = _shaped(inputs, 1, 2)
    axes = [op.options.get(f"kernel_{side}_feature_dimension", 0) for side in ("input", "output")]
    if not weights or not all(0 <= axis < len(weights.shape) for axis in axes):
        return None
    depth, channels = (weights.shape[axis] for axis in axes)
    taps = _elements(weights) // max(1, depth * channels)
    groups = op.options.get("feature_group_count") or 1
    stride = max(op.options.get("window_strides") or (1,))
    return _convolution(_elements(out), taps, depth, channels, groups, stride)


def _recurrent(op: Op, inputs: list[Tensor | None], _: Tensor) -> _Products | None:
    """Every weight is used once for each sample and each step."""
    x = _shaped(inputs, 0, 2)
    if not x:
        return None
    positions = RECURRENT_WEIGHTS[op.kind]
    if op.kind == "LSTM" and len(inputs) == 5:
        positions = BASIC_LSTM_WEIGHTS
    steps, samples = 1, x.shape[0]
    if "SEQUENCE" in op.kind:  # (time, batch, features), or (batch, time, features), or no batch
        is_time_major = bool(op.options.get("time_major")) or len(x.shape) == 2
        steps, samples = (x.shape[0], x.shape[1]) if is_time_major else (x.shape[1], x.shape[0])
        samples = 1 if len(x.shape) == 2 else samples
    weights = [inputs[position] for position in positions if position < len(inputs)]
    return _Products(
        kernel="recurrent",
        macs=steps * samples * sum(_elements(t) for t in weights if t is not None),
        in_channels=x.shape[-1],
        steps=steps,
    )


def _pool_2d(op: Op, _: list[Tensor | None], __: Tensor) -> _Products:
    taps = op.options.get("filter_height", 1) * op.options.get("filter_width", 1)
    return _Products(kernel="pool", taps=taps, stride=_stride(op))


MULTIPLIERS: Final[dict[str, Callable[[Op, list[Tensor | None], Tensor], _Products | None]]] = {
    "CONV_2D": _conv_2d,
    "DEPTHWISE_CONV_2D": _depthwise_conv_2d,
    "CONV_3D": _conv_3d,
    "TRANSPOSE_CONV": _transpose_conv,
    "CONV_3D_TRANSPOSE": _transpose_conv,
    "STABLEHLO_CONVOLUTION": _stablehlo_convolution,
    "FULLY_CONNECTED": _fully_connected,
    "BATCH_MATMUL": _matmul,
    "STABLEHLO_DOT_GENERAL": _matmul,
    "AVERAGE_POOL_2D": _pool_2d,
    "MAX_POOL_2D": _pool_2d,
    "L2_POOL_2D": _pool_2d,
    **dict.fromkeys(RECURRENT_WEIGHTS, _recurrent),
}
