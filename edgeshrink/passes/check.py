"""Refuse graphs whose operators are not as TFLite has them, before anything relies on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from edgeshrink.costs.work import tensor_bytes
from edgeshrink.errors import ModelError
from edgeshrink.graph import Graph, Op, Tensor
from edgeshrink.passes.padding import window_of
from edgeshrink.passes.rewrite import constant_input

MANY: Final = -1  # outputs: one or more

# How many inputs and outputs the operators have that passes and kernels look at: least, most,
# outputs.
ARITY: Final[dict[str, tuple[int, int, int]]] = {
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"), (2, 3, 1)),
    **dict.fromkeys(("ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM", "PRELU"), (2, 2, 1)),
    **dict.fromkeys(("AVERAGE_POOL_2D", "MAX_POOL_2D", "QUANTIZE", "DEQUANTIZE"), (1, 1, 1)),
    **dict.fromkeys(("RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "LEAKY_RELU"), (1, 1, 1)),
    **dict.fromkeys(("ELU", "ABS", "LOGISTIC", "TANH", "HARD_SWISH", "LOOKUP"), (1, 1, 1)),
    **dict.fromkeys(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "TRANSPOSE"), (2, 2, 1)),
    **dict.fromkeys(("RESHAPE", "EXPAND_DIMS"), (1, 2, 1)),
    **dict.fromkeys(("SQUEEZE", "SHAPE", "CAST"), (1, 1, 1)),
    **dict.fromkeys(("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "GATHER"), (2, 2, 1)),
    **dict.fromkeys(("CONCATENATION", "PACK"), (1, 2**16, 1)),
    **dict.fromkeys(("SOFTMAX", "LOG_SOFTMAX", "L2_NORMALIZATION", "RSQRT"), (1, 1, 1)),
    **dict.fromkeys(("SPACE_TO_DEPTH", "DEPTH_TO_SPACE"), (1, 1, 1)),
    **dict.fromkeys(("SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND", "SLICE"), (3, 3, 1)),
    **dict.fromkeys(("ARG_MAX", "BATCH_MATMUL", "BROADCAST_TO"), (2, 2, 1)),
    "PAD": (2, 2, 1), "PADV2": (3, 3, 1), "MIRROR_PAD": (2, 2, 1), "STRIDED_SLICE": (4, 4, 1),
    "SPLIT": (2, 2, MANY), "SPLIT_V": (3, 3, MANY), "UNPACK": (1, 1, MANY),
    "TRANSPOSE_CONV": (3, 4, 1), "SVDF": (5, 5, 1), "UNIDIRECTIONAL_SEQUENCE_LSTM": (24, 24, 1),
    "VAR_HANDLE": (0, 0, 1), "READ_VARIABLE": (1, 1, 1), "ASSIGN_VARIABLE": (2, 2, 0),
    "CALL_ONCE": (0, 0, 0),
}  # fmt: skip
# Positions of inputs that may be absent.
OPTIONAL: Final[dict[str, range]] = {
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"), range(2, 3)),
    "TRANSPOSE_CONV": range(3, 4), "SVDF": range(3, 4),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": range(1, 24),
}  # fmt: skip
# Positions of inputs that are lists of whole numbers.
LISTS: Final[dict[str, tuple[int, ...]]] = {
    **dict.fromkeys(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "TRANSPOSE", "GATHER"), (1,)),
    **dict.fromkeys(("PAD", "PADV2", "MIRROR_PAD", "ARG_MAX", "BROADCAST_TO"), (1,)),
    **dict.fromkeys(("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"), (1,)),
    **dict.fromkeys(("SLICE", "SPLIT_V", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND"), (1, 2)),
    "SPLIT": (0,), "STRIDED_SLICE": (1, 2, 3),
}  # fmt: skip
# Kinds that move values from inputs (but those of LISTS) to outputs of the same type.
MOVES: Final = frozenset({
    "TRANSPOSE", "GATHER", "SPLIT", "SPLIT_V", "UNPACK", "PACK", "CONCATENATION", "PAD", "PADV2",
    "MIRROR_PAD", "STRIDED_SLICE", "SLICE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR",
    "BROADCAST_TO", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND",
    "AVERAGE_POOL_2D", "MAX_POOL_2D", "REDUCE_MAX", "REDUCE_MIN", "MAXIMUM", "MINIMUM",
})  # fmt: skip
BIASES: Final = {"int8": ("int32",), "int16": ("int32", "int64")}  # by type of the activations
MAX_TENSOR_BYTES: Final = 256 << 20  # no microcontroller holds more, and no pass looks at it
LIMITED: Final = ("int8", "uint8", "int16")
SCALES: Final = (1e-30, 1e30)  # so that quotients of two and of a few stay inside float32
REPAIR: Final = "the file is damaged: export it again"


def check_graph(graph: Graph) -> None:
    """Raise ModelError for an operator whose tensors do not fit together.

    Only operators that passes or kernels look into are checked, and only for what these rely on.
    """
    for tensor in graph.tensors:
        n_bytes = max(tensor_bytes(tensor), math.prod(tensor.shape))
        if n_bytes > MAX_TENSOR_BYTES:
            raise ModelError(
                f"tensor {tensor.index} ({tensor.name})",
                f"takes {n_bytes} bytes",
                f"no microcontroller holds more than {MAX_TENSOR_BYTES >> 20} MiB at once",
            )
    for op in graph.ops:
        if op.is_custom or op.kind not in ARITY:
            continue
        fault = _fault(graph, op)
        if fault:
            names = [graph.tensors[i].name for i in op.outputs if graph.tensors[i].name]
            layer = f" ({names[0]})" if names else ""
            raise ModelError(f"operator {op.index} {op.kind} v{op.version}{layer}", fault, REPAIR)


def _fault(graph: Graph, op: Op) -> str:
    least, most, n_outputs = ARITY[op.kind]
    n = len(op.outputs)
    if not least <= len(op.inputs) <= most or (n < 1 if n_outputs == MANY else n != n_outputs):
        return f"has {len(op.inputs)} inputs and {len(op.outputs)} outputs"
    optional = OPTIONAL.get(op.kind, range(0))
    if any(i < 0 and position not in optional for position, i in enumerate(op.inputs)):
        return "lacks an input"
    for index in (*op.inputs, *op.outputs):
        tensor = graph.tensors[max(index, 0)]
        if index >= 0 and tensor.is_variable and tensor.data is not None:
            return f"has {tensor.name or index}, a variable that is a constant"
        q = tensor.quantization
        if index >= 0 and q is not None and tensor.dtype in LIMITED:
            extreme = q.scales[(q.scales < SCALES[0]) | (q.scales > SCALES[1])]
            if extreme.size:
                return f"has {tensor.name or index} with the scale {extreme[0]:g}"
        if index < 0 or tensor.dtype in ("int32", "int64"):
            continue  # a list of sizes or axes may be empty: that of a scalar's shape is
        if any(size < 1 for size in tensor.shape):
            return f"has a tensor of the shape {tensor.shape}"
    for position in LISTS.get(op.kind, ()):
        dtype = graph.tensors[op.inputs[position]].dtype
        if dtype not in ("int32", "int64"):
            return f"has a list of numbers of the type {dtype}"
    if op.kind in MOVES:
        lists = LISTS.get(op.kind, ())
        moved = [i for position, i in enumerate(op.inputs) if position not in lists]
        types = {graph.tensors[i].dtype for i in (*moved, *op.outputs)}
        if len(types) > 1:
            return f"has the types {', '.join(sorted(types))}, which must be one"
    for key, value in op.options.items():
        if isinstance(value, float) and not math.isfinite(value):
            return f"has the option {key} = {value}"
    if op.kind in STATE_KINDS:
        return _variable(graph, op)
    if any(graph.tensors[i].dtype == "resource" for i in (*op.inputs, *op.outputs) if i >= 0):
        return "reads or computes a resource"
    x, y = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
    for kinds, check in CHECKS:
        if op.kind in kinds:
            return check(graph, op, x, y)
    return ""


def _conv(graph: Graph, op: Op, x: Tensor, y: Tensor) -> str:
    w = graph.tensors[op.inputs[1]]
    if any(len(tensor.shape) != 4 for tensor in (x, w, y)):
        return "has a tensor that is not of rank 4"
    n_out = w.shape[3] if op.kind == "DEPTHWISE_CONV_2D" else w.shape[0]
    if op.kind == "DEPTHWISE_CONV_2D":
        fits = w.shape[0] == 1 and n_out % x.shape[3] == 0
    else:
        groups = x.shape[3] // w.shape[3]
        fits = groups * w.shape[3] == x.shape[3] and n_out % groups == 0
    if not fits or y.shape[3] != n_out or y.shape[0] != x.shape[0]:
        return f"has weights of the shape {w.shape} for {x.shape} to {y.shape}"
    axis = 3 if op.kind == "DEPTHWISE_CONV_2D" else 0
    return _scales(w, axis) or _bias(graph, op, n_out) or _windows(graph, op, x, y)


def _scales(w: Tensor, axis: int) -> str:
    """Check that weights have one scale, or one for each filter."""
    q = w.quantization
    if q is None or q.scales.size == 1 or q.axis == axis:
        return ""
    return f"has weights {w.shape} with {q.scales.size} scales along axis {q.axis}, not {axis}"


def _bias(graph: Graph, op: Op, n_out: int) -> str:
    if len(op.inputs) < 3 or op.inputs[2] < 0:
        return ""
    bias, x = graph.tensors[op.inputs[2]], graph.tensors[op.inputs[0]]
    if bias.shape != (n_out,):
        return f"has a bias of the shape {bias.shape} for {n_out} filters"
    fits = x.dtype not in BIASES or bias.dtype in BIASES[x.dtype]
    return "" if fits else f"has a bias of the type {bias.dtype} for {x.dtype}"


def _windows(graph: Graph, op: Op, x: Tensor, y: Tensor) -> str:
    """Check the rows and columns of an output; those of EXPLICIT padding are the pass's own."""
    window, padding = window_of(graph, op), op.options["padding"]
    if padding == "EXPLICIT":
        return ""
    for axis, letter in enumerate("hw"):
        stride = op.options[f"stride_{letter}"]
        dilation = op.options.get(f"dilation_{letter}_factor", 1)
        if stride < 1 or dilation < 1 or window[axis] < 1:
            return f"has a stride of {stride}, a dilation of {dilation}, a window of {window}"
        size = x.shape[1 + axis]
        rest = size if padding == "SAME" else size - (window[axis] - 1) * dilation
        if y.shape[1 + axis] != -(-rest // stride):
            return f"makes {y.shape} of {x.shape}"
    return ""


def _dense(graph: Graph, op: Op, x: Tensor, y: Tensor) -> str:
    w = graph.tensors[op.inputs[1]]
    if len(w.shape) != 2:
        return "has weights that are not of rank 2"
    rows, rest = divmod(math.prod(x.shape), w.shape[1])
    if rest or rows * w.shape[0] != math.prod(y.shape):
        return f"has weights of the shape {w.shape} for {x.shape} to {y.shape}"
    return _scales(w, 0) or _bias(graph, op, w.shape[0])


def _transpose_conv(graph: Graph, op: Op, _: Tensor, __: Tensor) -> str:
    w = graph.tensors[op.inputs[1]]
    return _scales(w, 0) or ("" if len(w.shape) == 4 else "has weights that are not of rank 4")


def _pool(graph: Graph, op: Op, x: Tensor, y: Tensor) -> str:
    if len(x.shape) != 4 or len(y.shape) != 4:
        return "has a tensor that is not of rank 4"
    if (x.shape[0], x.shape[3]) != (y.shape[0], y.shape[3]):
        return f"makes {y.shape} of {x.shape}"
    return _windows(graph, op, x, y)


def _binary(graph: Graph, op: Op, x: Tensor, y: Tensor) -> str:
    shapes = [graph.tensors[i].shape for i in op.inputs]
    longest = max(len(shape) for shape in shapes)
    padded = [(1,) * (longest - len(shape)) + shape for shape in shapes]
    for sizes in zip(*padded, strict=True):
        if len({size for size in sizes if size != 1}) > 1:
            return f"has operands of the shapes {shapes}"
    result = tuple(max(sizes) for sizes in zip(*padded, strict=True))
    return "" if result == y.shape else f"makes {y.shape} of {shapes}"


def _unary(_: Graph, __: Op, x: Tensor, y: Tensor) -> str:
    return "" if x.shape == y.shape else f"makes {y.shape} of {x.shape}"


def _view(_: Graph, __: Op, x: Tensor, y: Tensor) -> str:
    if math.prod(x.shape) != math.prod(y.shape) or x.dtype != y.dtype:
        return f"makes {y.dtype} {y.shape} of {x.dtype} {x.shape}"
    return ""


def _joined(graph: Graph, op: Op, x: Tensor, y: Tensor) -> str:
    shapes = [graph.tensors[i].shape for i in op.inputs]
    axis, rank = op.options.get("axis", 0), len(y.shape)
    if not -rank <= axis < rank:
        return f"has the axis {axis} for {y.shape}"
    axis %= rank
    if op.kind == "PACK":
        fits = all(shape == (*y.shape[:axis], *y.shape[axis + 1 :]) for shape in shapes)
        return "" if fits and y.shape[axis] == len(shapes) else f"makes {y.shape} of {shapes}"
    others = {
        (len(shape), shape[:axis], shape[axis + 1 :]) for shape in (*shapes, y.shape)
    }  # all but the axis
    fits = len(others) == 1 and sum(shape[axis] for shape in shapes) == y.shape[axis]
    return "" if fits else f"makes {y.shape} of {shapes}"


def _pad(graph: Graph, op: Op, x: Tensor, y: Tensor) -> str:
    amounts = constant_input(graph, op, 1)
    if amounts is None:
        return ""
    if amounts.shape != (len(x.shape), 2) or (amounts < 0).any():
        return f"has the amounts {amounts.tolist()} for {x.shape}"
    if op.kind == "PADV2" and math.prod(graph.tensors[op.inputs[2]].shape) != 1:
        return f"has a value of the shape {graph.tensors[op.inputs[2]].shape}"
    sizes = tuple(int(a) + size for a, size in zip(amounts.sum(axis=1), x.shape, strict=True))
    return "" if sizes == y.shape else f"makes {y.shape} of {x.shape}"


def _reduction(graph: Graph, op: Op, x: Tensor, y: Tensor) -> str:
    axes = constant_input(graph, op, 1)
    if axes is None:
        return ""
    rank = len(x.shape)
    if any(not -rank <= int(axis) < rank for axis in axes.reshape(-1)):
        return f"has the axes {axes.tolist()} for {x.shape}"
    gone = {int(axis) % rank for axis in axes.reshape(-1)}
    left = math.prod(size for axis, size in enumerate(x.shape) if axis not in gone)
    return "" if left == math.prod(y.shape) else f"makes {y.shape} of {x.shape}"


def _transpose(graph: Graph, op: Op, x: Tensor, y: Tensor) -> str:
    order = constant_input(graph, op, 1)
    if order is None:
        return ""
    axes = order.tolist()
    if order.ndim != 1 or sorted(axes) != list(range(len(x.shape))):
        return f"has the order {axes} for {x.shape}"
    moved = tuple(x.shape[axis] for axis in axes)
    return "" if moved == y.shape else f"makes {y.shape} of {x.shape}"


def _strided_slice(graph: Graph, op: Op, x: Tensor, y: Tensor) -> str:
    bounds = [constant_input(graph, op, position) for position in (1, 2, 3)]
    known = [bound for bound in bounds if bound is not None]
    for bound in known:
        if bound.shape != (len(x.shape),):
            return f"has bounds of the shape {bound.shape} for {x.shape}"
    if len(known) < 3 or op.options["ellipsis_mask"] or op.options["new_axis_mask"]:
        return ""
    masks = [int(op.options[f"{name}_mask"]) for name in ("begin", "end", "shrink_axis")]
    expected = []
    for axis, (size, *numbers) in enumerate(zip(x.shape, *known, strict=True)):
        begin, end, step = (int(n) for n in numbers)
        no_begin, no_end, shrinks = (mask >> axis & 1 for mask in masks)
        if step == 0 or (shrinks and not -size <= begin < size):
            return f"takes {begin} to {end} by {step} of {x.shape}"
        taken = len(
            range(*slice(None if no_begin else begin, None if no_end else end, step).indices(size))
        )
        if not shrinks:
            expected.append(taken)
    return "" if tuple(expected) == y.shape else f"makes {y.shape} of {x.shape}"


def _gather(graph: Graph, op: Op, x: Tensor, y: Tensor) -> str:
    axis, rank = op.options.get("axis", 0), len(x.shape)
    if not -rank <= axis < rank:
        return f"has the axis {axis} for {x.shape}"
    axis %= rank
    indices = graph.tensors[op.inputs[1]]
    n_batch = op.options.get("batch_dims", 0)
    n_batch += len(indices.shape) if n_batch < 0 else 0
    if not 0 <= n_batch <= min(axis, len(indices.shape)):
        return f"has {n_batch} batch dimensions for {x.shape} and {indices.shape}"
    expected = (*x.shape[:axis], *indices.shape[n_batch:], *x.shape[axis + 1 :])
    if x.shape[:n_batch] != indices.shape[:n_batch] or y.shape != expected:
        return f"makes {y.shape} of {x.shape} and {indices.shape}"
    given = constant_input(graph, op, 1)
    if given is not None and given.size and not (0 <= given.min() <= given.max() < x.shape[axis]):
        return f"gathers {given.min()} to {given.max()} of {x.shape[axis]}"
    return ""


def _resize(graph: Graph, op: Op, x: Tensor, y: Tensor) -> str:
    if len(x.shape) != 4 or len(y.shape) != 4 or x.shape[::3] != y.shape[::3]:
        return f"makes {y.shape} of {x.shape}"
    size = constant_input(graph, op, 1)
    fits = size is None or size.reshape(-1).tolist() == list(y.shape[1:3])
    return "" if fits else f"makes {y.shape} of {x.shape}"


def _arg_max(graph: Graph, op: Op, x: Tensor, y: Tensor) -> str:
    given = constant_input(graph, op, 1)
    if given is None:
        return ""
    axes, rank = given.reshape(-1).tolist(), len(x.shape)
    if len(axes) != 1 or not -rank <= axes[0] < rank:
        return f"has the axes {axes} for {x.shape}"
    axis = axes[0] % rank
    fits = y.shape == (*x.shape[:axis], *x.shape[axis + 1 :])
    return "" if fits else f"makes {y.shape} of {x.shape}"


def _variable(graph: Graph, op: Op) -> str:
    """Check that resources are where they must be, and nowhere else."""
    resources = {"ASSIGN_VARIABLE": op.inputs[:1], "READ_VARIABLE": op.inputs}
    expected = resources.get(op.kind, op.outputs)
    for index in (*op.inputs, *op.outputs):
        dtype = graph.tensors[index].dtype
        if (index in expected) != (dtype == "resource"):
            return f"has a tensor of the type {dtype}"
    return ""


def _slice(graph: Graph, op: Op, x: Tensor, y: Tensor) -> str:
    begin, size = (constant_input(graph, op, position) for position in (1, 2))
    if begin is None or size is None:
        return ""
    rank = (len(x.shape),)
    if begin.shape != rank or size.shape != rank:
        return f"has bounds of the shapes {begin.shape} and {size.shape} for {x.shape}"
    taken = np.where(size == -1, np.array(x.shape) - begin, size)
    fits = (begin >= 0).all() and (taken > 0).all() and (begin + taken <= np.array(x.shape)).all()
    if not fits or y.shape != tuple(taken.tolist()):
        return f"makes {y.shape} of {x.shape} from {begin.tolist()}, {size.tolist()} values"
    return ""


def _split(graph: Graph, op: Op, _: Tensor, __: Tensor) -> str:
    """Check SPLIT, SPLIT_V and UNPACK: outputs are slices of the input along an axis."""
    x = graph.tensors[op.inputs[1 if op.kind == "SPLIT" else 0]]
    shapes = [graph.tensors[i].shape for i in op.outputs]
    if op.kind == "UNPACK":
        axis = op.options.get("axis", 0)
    else:
        given = constant_input(graph, op, 0 if op.kind == "SPLIT" else 2)
        if given is None:
            return ""
        if given.size != 1:
            return f"has an axis of the shape {given.shape}"
        axis = int(given.reshape(-1)[0])
    rank = len(x.shape)
    if not -rank <= axis < rank:
        return f"has the axis {axis} for {x.shape}"
    axis %= rank
    if op.kind == "UNPACK":
        part = (*x.shape[:axis], *x.shape[axis + 1 :])
        fits = all(shape == part for shape in shapes) and x.shape[axis] == len(shapes)
        return "" if fits else f"makes {shapes} of {x.shape}"
    others = {(len(shape), shape[:axis], shape[axis + 1 :]) for shape in (*shapes, x.shape)}
    fits = len(others) == 1 and sum(shape[axis] for shape in shapes) == x.shape[axis]
    return "" if fits else f"makes {shapes} of {x.shape}"


def _lookup(_: Graph, op: Op, x: Tensor, y: Tensor) -> str:
    table = np.asarray(op.options["table"])
    if table.shape != (256,) or table.dtype != np.int8:
        return f"has a table of {table.dtype} {table.shape}"
    return _unary(_, op, x, y)


STATE_KINDS: Final = ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE")
CHECKS: Final[tuple[tuple[tuple[str, ...], Callable[[Graph, Op, Tensor, Tensor], str]], ...]] = (
    (("CONV_2D", "DEPTHWISE_CONV_2D"), _conv),
    (("FULLY_CONNECTED",), _dense),
    (("AVERAGE_POOL_2D", "MAX_POOL_2D"), _pool),
    (("ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM", "PRELU"), _binary),
    (("RESHAPE", "SQUEEZE", "EXPAND_DIMS"), _view),
    (("CONCATENATION", "PACK"), _joined),
    (("PAD", "PADV2"), _pad),
    (("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"), _reduction),
    (("TRANSPOSE",), _transpose),
    (("STRIDED_SLICE",), _strided_slice),
    (("GATHER",), _gather),
    (("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"), _resize),
    (("ARG_MAX",), _arg_max),
    (("TRANSPOSE_CONV",), _transpose_conv),
    (("SLICE",), _slice),
    (("SPLIT", "SPLIT_V", "UNPACK"), _split),
    (("SOFTMAX", "LOG_SOFTMAX", "L2_NORMALIZATION", "RSQRT"), _unary),
    (("LOOKUP",), _lookup),
    (("RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "LEAKY_RELU", "ELU", "ABS"), _unary),
    (("LOGISTIC", "TANH", "HARD_SWISH", "QUANTIZE", "DEQUANTIZE"), _unary),
)
