"""What each operator of a graph has to do: multiply-accumulates, bytes, elements, kernel class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from edgeshrink.graph import Graph, Op, Tensor
from edgeshrink.tflite_schema import DTYPES

KernelClass = Literal[
    "conv_1x1", "conv_kxk", "depthwise", "fully_connected", "matmul", "recurrent",
    "pool", "elementwise", "activation", "move", "other",
]  # fmt: skip

# Those that depend on the weights' shape (CONV_2D and its kind) are decided in `op_work`.
KERNEL_CLASSES: Final[dict[str, KernelClass]] = {
    kind: kernel
    for kernel, kinds in {
        "fully_connected": "FULLY_CONNECTED",
        "matmul": "BATCH_MATMUL STABLEHLO_DOT_GENERAL",
        "recurrent": """
            LSTM RNN SVDF UNIDIRECTIONAL_SEQUENCE_LSTM UNIDIRECTIONAL_SEQUENCE_RNN
            BIDIRECTIONAL_SEQUENCE_LSTM BIDIRECTIONAL_SEQUENCE_RNN""",
        "pool": """
            AVERAGE_POOL_2D MAX_POOL_2D L2_POOL_2D MEAN SUM REDUCE_MAX REDUCE_MIN REDUCE_PROD
            REDUCE_ANY REDUCE_ALL REDUCE_WINDOW STABLEHLO_REDUCE STABLEHLO_REDUCE_WINDOW""",
        "elementwise": """
            ADD SUB MUL DIV MAXIMUM MINIMUM SQUARED_DIFFERENCE ADD_N NEG ABS SQUARE FLOOR CEIL
            ROUND SIGN FLOOR_DIV FLOOR_MOD SELECT SELECT_V2 LESS LESS_EQUAL GREATER GREATER_EQUAL
            EQUAL NOT_EQUAL LOGICAL_AND LOGICAL_OR LOGICAL_NOT QUANTIZE DEQUANTIZE CAST FAKE_QUANT
            BITWISE_XOR RIGHT_SHIFT STABLEHLO_ADD STABLEHLO_SUBTRACT STABLEHLO_MULTIPLY
            STABLEHLO_DIVIDE STABLEHLO_MAXIMUM STABLEHLO_MINIMUM STABLEHLO_CLAMP STABLEHLO_ABS
            STABLEHLO_AND STABLEHLO_OR STABLEHLO_NEGATE STABLEHLO_FLOOR STABLEHLO_REMAINDER
            STABLEHLO_SELECT STABLEHLO_COMPARE STABLEHLO_CONVERT STABLEHLO_SHIFT_LEFT""",
        "activation": """
            RELU RELU6 RELU_N1_TO_1 RELU_0_TO_1 LEAKY_RELU PRELU ELU HARD_SWISH GELU LOGISTIC TANH
            SOFTMAX LOG_SOFTMAX EXP LOG SIN COS SQRT RSQRT POW ATAN2 L2_NORMALIZATION
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
    }.items()
    for kind in kinds.split()
}  # type: ignore[misc]

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


@dataclass(frozen=True, kw_only=True)
class OpWork:
    """One operator's work for one inference. For control flow, `bodies` holds what it runs once.

    A multiply-accumulate is a product that is added up into an output: convolutions, fully
    connected layers, matrix products, recurrent layers, peepholes included. Element-by-element
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
    # How the multiply-accumulates are arranged; 0 or 1 where that says nothing.
    taps: int = 1  # kernel height x width (x depth); the window of a pooling
    in_channels: int = 0  # per group
    out_channels: int = 0  # per group
    groups: int = 1
    stride: int = 1  # the largest of all directions
    steps: int = 1  # passes over the weights, one after another (time steps)
    bodies: tuple[Graph, ...] = ()


def tensor_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor's values; 0 for strings and resources, whose size is unknown."""
    bits = BITS.get(tensor.dtype)
    return (_elements(tensor) * bits + 7) // 8 if bits else 0


BITS: Final = {name: bits for name, bits in DTYPES.values() if bits}


def op_work(graph: Graph, op: Op) -> OpWork:
    """Return the work of `op`, an operator of `graph`.

    Never raises: an operator that is unknown, or whose tensors are not as TFLite has them, is of
    class `other` and has its bytes alone. Control flow counts its bodies once (of alternatives,
    the one with the most multiply-accumulates), since the number of passes is not in the file.
    """
    return _op_work(graph, graph, op, ())


def graph_macs(graph: Graph) -> int:
    """Return the multiply-accumulates of one inference; see `op_work`."""
    return sum(op_work(graph, op).macs for op in graph.ops)


def body_work(graph: Graph, work: OpWork) -> tuple[tuple[Op, OpWork], ...]:
    """Return the operators, with their work, that a control flow operator of `graph` runs once."""
    return tuple(
        (op, _op_work(graph, body, op, (body,))) for body in work.bodies for op in body.ops
    )


def _elements(tensor: Tensor) -> int:
    return math.prod(max(size, 1) if size < 0 else size for size in tensor.shape)


def _op_work(root: Graph, graph: Graph, op: Op, outer: tuple[Graph, ...]) -> OpWork:
    inputs = [graph.tensors[i] if 0 <= i < len(graph.tensors) else None for i in op.inputs]
    outputs = [graph.tensors[i] for i in op.outputs if 0 <= i < len(graph.tensors)]
    values = [t for t in inputs if t is not None and t.data is None]
    constants = [t for t in inputs if t is not None and t.data is not None]
    shape = _arithmetic(op, inputs, outputs)
    bodies = _bodies(root, op, outer)
    macs = shape.macs + sum(
        _op_work(root, body, inner, (*outer, body)).macs for body in bodies for inner in body.ops
    )
    return OpWork(
        kind=op.kind,
        kernel=shape.kernel,
        dtype=_dtype(op, inputs, outputs),
        macs=macs,
        input_bytes=sum(tensor_bytes(t) for t in values),
        output_bytes=sum(tensor_bytes(t) for t in outputs),
        weight_bytes=sum(tensor_bytes(t) for t in constants),
        output_elements=sum(_elements(t) for t in outputs),
        taps=shape.taps,
        in_channels=shape.in_channels,
        out_channels=shape.out_channels,
        groups=shape.groups,
        stride=shape.stride,
        steps=shape.steps,
        bodies=bodies,
    )


def _dtype(op: Op, inputs: list[Tensor | None], outputs: list[Tensor]) -> str:
    """Return the type an operator works on: of its data input, which is not always the first."""
    first = 2 if op.kind in ("TRANSPOSE_CONV", "CONV_3D_TRANSPOSE") else 0
    if op.kind in ("SPLIT", "EMBEDDING_LOOKUP"):
        first = 1
    if op.kind in ("SELECT", "SELECT_V2"):
        first = 1
    if len(inputs) > first and (tensor := inputs[first]) is not None:
        return tensor.dtype
    return outputs[0].dtype if outputs else "none"


@dataclass(frozen=True, kw_only=True)
class _Arithmetic:
    kernel: KernelClass
    macs: int = 0
    taps: int = 1
    in_channels: int = 0
    out_channels: int = 0
    groups: int = 1
    stride: int = 1
    steps: int = 1


def _arithmetic(op: Op, inputs: list[Tensor | None], outputs: list[Tensor]) -> _Arithmetic:
    """Return what an operator multiplies, and how; class `other` where its tensors don't fit."""
    if op.is_custom or not outputs:
        return _Arithmetic(kernel="other")

    def tensor(position: int, rank: int) -> Tensor | None:
        found = inputs[position] if position < len(inputs) else None
        return found if found is not None and len(found.shape) >= rank else None

    stride = max(
        (v for k, v in op.options.items() if k.startswith("stride_") and isinstance(v, int)),
        default=1,
    )
    out, kind = outputs[0], op.kind
    result: _Arithmetic | None = None
    if kind in ("CONV_2D", "CONV_3D"):
        weights, x = tensor(1, 4), tensor(0, 4)
        if weights and x and kind == "CONV_2D":  # weights (out, kh, kw, in / groups)
            result = _convolution(_elements(out), weights.shape[1:3], weights.shape[3],
                                  weights.shape[0], x.shape[3], stride)  # fmt: skip
        elif weights and x and len(weights.shape) == 5:  # weights (d, h, w, in, out)
            result = _convolution(_elements(out), weights.shape[:3], weights.shape[3],
                                  weights.shape[4], x.shape[-1], stride)  # fmt: skip
    elif kind == "DEPTHWISE_CONV_2D":
        if weights := tensor(1, 4):  # weights (1, kh, kw, out)
            result = _Arithmetic(
                kernel="depthwise",
                macs=_elements(out) * weights.shape[1] * weights.shape[2],
                taps=weights.shape[1] * weights.shape[2],
                in_channels=1,
                out_channels=1,
                groups=weights.shape[3],
                stride=stride,
            )
    elif kind in ("TRANSPOSE_CONV", "CONV_3D_TRANSPOSE"):
        weights, x = tensor(1, 4), tensor(2, 4)
        if weights and x and kind == "TRANSPOSE_CONV":  # weights (out, kh, kw, in)
            result = _convolution(_elements(x), weights.shape[1:3], weights.shape[0],
                                  weights.shape[0], weights.shape[0], stride)  # fmt: skip
        elif weights and x and len(weights.shape) == 5:  # weights (d, h, w, out, in)
            result = _convolution(_elements(x), weights.shape[:3], weights.shape[3],
                                  weights.shape[3], weights.shape[3], stride)  # fmt: skip
        if result and x and weights:
            result = _Arithmetic(**{**vars(result), "in_channels": x.shape[-1], "groups": 1})
    elif kind == "FULLY_CONNECTED":
        if weights := tensor(1, 2):  # weights (out, in)
            result = _Arithmetic(
                kernel="fully_connected",
                macs=_elements(out) * weights.shape[-1],
                in_channels=weights.shape[-1],
                out_channels=weights.shape[-2],
            )
    elif kind == "BATCH_MATMUL":
        if x := tensor(0, 2):
            depth = x.shape[-2] if op.options.get("adj_x") else x.shape[-1]
            result = _Arithmetic(
                kernel="matmul",
                macs=_elements(out) * depth,
                in_channels=depth,
                out_channels=out.shape[-1] if out.shape else 1,
            )
    elif kind == "STABLEHLO_DOT_GENERAL":
        axes = op.options.get("lhs_contracting_dimensions") or ()
        if (x := tensor(0, 1)) and all(0 <= axis < len(x.shape) for axis in axes):
            depth = math.prod(x.shape[axis] for axis in axes)
            result = _Arithmetic(
                kernel="matmul",
                macs=_elements(out) * depth,
                in_channels=depth,
                out_channels=out.shape[-1] if out.shape else 1,
            )
    elif kind == "STABLEHLO_CONVOLUTION":
        axis = op.options.get("kernel_output_feature_dimension", 0)
        depth_axis = op.options.get("kernel_input_feature_dimension", 0)
        if (weights := tensor(1, 2)) and max(axis, depth_axis) < len(weights.shape):
            channels, depth = weights.shape[axis], weights.shape[depth_axis]
            taps = _elements(weights) // max(1, channels * depth)
            groups = op.options.get("feature_group_count") or 1
            result = _convolution(
                _elements(out), (taps,), depth, channels, depth * groups,
                max(op.options.get("window_strides") or (1,)),
            )  # fmt: skip
    elif kind in RECURRENT_WEIGHTS:
        result = _recurrence(op, inputs)
    elif kind in ("AVERAGE_POOL_2D", "MAX_POOL_2D", "L2_POOL_2D"):
        taps = op.options.get("filter_height", 1) * op.options.get("filter_width", 1)
        result = _Arithmetic(kernel="pool", taps=taps, stride=stride)
    elif KERNEL_CLASSES.get(kind) == "pool" and (x := tensor(0, 0)):
        result = _Arithmetic(kernel="pool", taps=_elements(x) // max(1, _elements(out)))
    elif kind in KERNEL_CLASSES:
        result = _Arithmetic(kernel=KERNEL_CLASSES[kind])
    return result or _Arithmetic(kernel="other")


def _convolution(
    positions: int,
    kernel: tuple[int, ...],
    depth: int,
    channels: int,
    in_channels: int,
    stride: int,
) -> _Arithmetic:
    """Return a convolution whose every one of `positions` costs kernel x depth products."""
    taps = math.prod(kernel)
    groups = max(1, in_channels // max(1, depth))
    is_depthwise = depth == 1 and groups > 1
    return _Arithmetic(
        kernel="depthwise" if is_depthwise else "conv_1x1" if taps == 1 else "conv_kxk",
        macs=positions * taps * depth,
        taps=taps,
        in_channels=depth,
        out_channels=max(1, channels // groups),
        groups=groups,
        stride=stride,
    )


def _recurrence(op: Op, inputs: list[Tensor | None]) -> _Arithmetic | None:
    """Return a recurrent layer: every weight once for each sample and step."""
    x = inputs[0] if inputs else None
    if x is None or len(x.shape) < 2:
        return None
    steps, samples = 1, x.shape[0]
    if "SEQUENCE" in op.kind:
        is_batch_first = len(x.shape) > 2 and not op.options.get("time_major")
        steps, samples = x.shape[1 if is_batch_first else 0], x.shape[0 if is_batch_first else 1]
        if len(x.shape) == 2:  # (time, features): one sample
            samples = 1
    positions = RECURRENT_WEIGHTS[op.kind]
    if op.kind == "LSTM" and len(inputs) == 5:
        positions = BASIC_LSTM_WEIGHTS
    weights = [t for i in positions if i < len(inputs) and (t := inputs[i]) is not None]
    return _Arithmetic(
        kernel="recurrent",
        macs=steps * samples * sum(_elements(t) for t in weights),
        in_channels=x.shape[-1],
        steps=steps,
    )


ALTERNATIVES: Final = ("IF", "STABLEHLO_CASE")
CONTROL_FLOW: Final = ("CALL", "WHILE", "STABLEHLO_WHILE", "STABLEHLO_COMPOSITE", *ALTERNATIVES)


def _bodies(root: Graph, op: Op, outer: tuple[Graph, ...]) -> tuple[Graph, ...]:
    """Return the subgraphs that one pass of a control flow operator runs."""
    if op.kind not in CONTROL_FLOW or op.is_custom:
        return ()
    numbers: list[int] = []
    for key, value in op.options.items():
        if key == "subgraph" or key.endswith(("subgraph_index", "subgraph_indices")):
            numbers += [value] if isinstance(value, int) else list(value or ())
    graphs = (root, *root.subgraphs)
    found = [graphs[n] for n in numbers if 0 < n < len(graphs)]
    found = [body for body in found if not any(body is seen for seen in outer)]
    if op.kind not in ALTERNATIVES or not found:
        return tuple(found)
    costs = [
        sum(_op_work(root, body, inner, (*outer, body)).macs for inner in body.ops)
        for body in found
    ]
    return (found[costs.index(max(costs))],)
