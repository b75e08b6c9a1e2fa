"""Operators that move values or only rename shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeshrink.graph import Graph, Op, Tensor
from edgeshrink.lowering.calls import Arg, Call, ConstArg, IntArg, StructArg, TensorArg, Variant
from edgeshrink.lowering.fixed_point import constant, refuse

MAX_RANK: Final = 5  # dimensions that are left when neighbours have been merged
CYCLES_PER_RUN: Final = 14  # of the block copy, beside the bytes
CYCLES_PER_BYTE: Final = 1.2


def view(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """RESHAPE, SQUEEZE, EXPAND_DIMS: the output is the input's memory."""
    return (Variant(name="view", calls=(), alias={op.outputs[0]: op.inputs[0]}),)


def _block(
    shape: Sequence[int],
    x_strides: Sequence[int],
    y_strides: Sequence[int],
    *,
    x_start: int = 0,
    y_start: int = 0,
    item: int,
) -> StructArg | None:
    """Return the block copy of `shape` elements of `item` bytes; strides and starts in elements.

    Dimensions that follow each other without a gap on both sides are merged. None when more than
    `MAX_RANK` are left.
    """
    dims = [
        (n, xs * item, ys * item)
        for n, xs, ys in zip(shape, x_strides, y_strides, strict=True)
        if n != 1
    ]
    merged: list[tuple[int, int, int]] = [(item, 1, 1)]  # innermost first
    for n, xs, ys in reversed(dims):
        last_n, last_x, last_y = merged[-1]
        if xs == last_n * last_x and ys == last_n * last_y:
            merged[-1] = (last_n * n, last_x, last_y)
        else:
            merged.append((n, xs, ys))
    if len(merged) > MAX_RANK + 1:
        return None
    merged += [(1, 0, 0)] * (MAX_RANK + 1 - len(merged))
    fields = {f"n{MAX_RANK - i}": merged[i][0] for i in range(MAX_RANK, -1, -1)}
    fields |= {f"x{MAX_RANK - i}": merged[i][1] for i in range(MAX_RANK, 0, -1)}
    fields |= {f"y{MAX_RANK - i}": merged[i][2] for i in range(MAX_RANK, 0, -1)}
    fields |= {"x_start": x_start * item, "y_start": y_start * item}
    return StructArg(type="es_block_shape", fields=fields)


def _strides(shape: Sequence[int]) -> list[int]:
    """Return the elements from one value to the next along each axis."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return strides


def _item(graph: Graph, op: Op, tensor: Tensor) -> int:
    try:
        return np.dtype(tensor.dtype).itemsize
    except TypeError:
        raise refuse(
            graph, op, f"moves values of type {tensor.dtype}", "use int8, int16, int32 or float32"
        ) from None


def _copy_call(graph: Graph, op: Op, block: StructArg | None, x: int, y: int) -> Call:
    if block is None:
        raise refuse(
            graph,
            op,
            f"moves a block of more than {MAX_RANK} dimensions that can't be merged",
            "reshape to fewer dimensions first",
        )
    args: tuple[Arg, ...] = (block, TensorArg(tensor=x), TensorArg(tensor=y))
    return Call(function="es_copy_b8_block__ref", args=args)


def _variant(calls: Sequence[Call]) -> tuple[Variant, ...]:
    """Return the one variant that these calls make, priced by runs and bytes."""
    cycles, functions = 0.0, set()
    for call in calls:
        functions.add(call.function)
        first = call.args[0]
        if isinstance(first, StructArg) and first.type == "es_block_shape":
            f = first.fields
            runs = math.prod(f[f"n{i}"] for i in range(MAX_RANK))
            cycles += (
                runs * (CYCLES_PER_RUN if f["n5"] > 1 else 4) + CYCLES_PER_BYTE * runs * f["n5"]
            )
        cycles += 30
    code = 260 if "es_copy_b8_block__ref" in functions else 20
    return (Variant(name="ref", calls=tuple(calls), cycles=cycles, code_bytes=code),)


def _same_scale(graph: Graph, op: Op, tensors: Sequence[int]) -> None:
    """Raise ModelError when values can't be moved between these tensors without rescaling."""
    quantizations = [graph.tensors[i].quantization for i in tensors]
    known = {(tuple(q.scales.tolist()), tuple(q.zero_points.tolist())) for q in quantizations if q}
    if len(known) > 1:
        raise refuse(
            graph, op, "has inputs and outputs of different scales", "give all of them one scale"
        )


def pad(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """PAD and PADV2: a fill and a copy of the block."""
    x, y = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
    amounts = constant(graph, op, 1)
    if amounts is None:
        raise refuse(graph, op, "has amounts that are computed", "make them constants")
    if op.kind == "PAD":
        q = x.quantization
        value = np.array(0 if q is None else int(q.zero_points[0])).astype(y.dtype)
    else:
        given = constant(graph, op, 2)
        if given is None:
            raise refuse(graph, op, "has a value that is computed", "make it a constant")
        _same_scale(graph, op, (op.inputs[0], op.inputs[2], op.outputs[0]))
        value = np.asarray(given).reshape(()).astype(y.dtype)
    item = _item(graph, op, x)
    raw = value.tobytes()
    n_values = math.prod(y.shape)
    if len(set(raw)) == 1:
        stored = raw[0] - 256 if raw[0] > 127 else raw[0]
        fill = Call(
            function="es_fill_b8__ref",
            args=(TensorArg(tensor=y.index), IntArg(value=stored), IntArg(value=n_values * item)),
        )
    else:
        block = _block([n_values], [0], [1], item=item)
        assert block is not None
        source = ConstArg(name="value", values=np.atleast_1d(value))
        fill = Call(
            function="es_copy_b8_block__ref", args=(block, source, TensorArg(tensor=y.index))
        )
    y_strides = _strides(y.shape)
    start = sum(int(a[0]) * s for a, s in zip(amounts, y_strides, strict=True))
    block = _block(x.shape, _strides(x.shape), y_strides, y_start=start, item=item)
    return _variant([fill, _copy_call(graph, op, block, x.index, y.index)])


def concatenation(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """CONCATENATION: one block copy per input; int8 inputs of other scales are refused."""
    if str(op.options.get("activation", "NONE")) != "NONE":
        raise refuse(graph, op, "has a fused activation", "make it an operator of its own")
    y = graph.tensors[op.outputs[0]]
    axis = int(op.options["axis"]) % len(y.shape)
    _same_scale(graph, op, (*op.inputs, *op.outputs))
    y_strides, calls, at = _strides(y.shape), [], 0
    for index in op.inputs:
        x = graph.tensors[index]
        block = _block(
            x.shape,
            _strides(x.shape),
            y_strides,
            y_start=at * y_strides[axis],
            item=_item(graph, op, x),
        )
        calls.append(_copy_call(graph, op, block, index, y.index))
        at += x.shape[axis]
    return _variant(calls)


def split(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """SPLIT and SPLIT_V: one block copy per output."""
    at_axis, at_x = (0, 1) if op.kind == "SPLIT" else (2, 0)
    axis_value = constant(graph, op, at_axis)
    if axis_value is None:
        raise refuse(graph, op, "has an axis that is computed", "make it a constant")
    x = graph.tensors[op.inputs[at_x]]
    axis = int(np.asarray(axis_value).reshape(-1)[0]) % len(x.shape)
    x_strides, calls, at = _strides(x.shape), [], 0
    for index in op.outputs:
        y = graph.tensors[index]
        block = _block(
            y.shape,
            x_strides,
            _strides(y.shape),
            x_start=at * x_strides[axis],
            item=_item(graph, op, x),
        )
        calls.append(_copy_call(graph, op, block, x.index, index))
        at += y.shape[axis]
    return _variant(calls)


def transpose(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """TRANSPOSE: a block copy with the source's strides permuted; a view where nothing moves."""
    x, y = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
    order = constant(graph, op, 1)
    if order is None:
        raise refuse(graph, op, "has a permutation that is computed", "make it a constant")
    axes = [int(a) % len(x.shape) for a in np.asarray(order).reshape(-1)]
    if [a for a in axes if x.shape[a] != 1] == sorted(a for a in axes if x.shape[a] != 1):
        return view(graph, op, isa)
    x_strides = _strides(x.shape)
    block = _block(
        y.shape, [x_strides[a] for a in axes], _strides(y.shape), item=_item(graph, op, x)
    )
    return _variant([_copy_call(graph, op, block, x.index, y.index)])


def pack(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """PACK: each input is a slice of the output."""
    y = graph.tensors[op.outputs[0]]
    axis = int(op.options["axis"]) % len(y.shape)
    y_strides, calls = _strides(y.shape), []
    rest = [s for a, s in enumerate(y_strides) if a != axis]
    for at, index in enumerate(op.inputs):
        x = graph.tensors[index]
        block = _block(
            x.shape, _strides(x.shape), rest, y_start=at * y_strides[axis], item=_item(graph, op, x)
        )
        calls.append(_copy_call(graph, op, block, index, y.index))
    return _variant(calls)


def unpack(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """UNPACK: each output is a slice of the input."""
    x = graph.tensors[op.inputs[0]]
    axis = int(op.options["axis"]) % len(x.shape)
    x_strides, calls = _strides(x.shape), []
    rest = [s for a, s in enumerate(x_strides) if a != axis]
    for at, index in enumerate(op.outputs):
        y = graph.tensors[index]
        block = _block(
            y.shape, rest, _strides(y.shape), x_start=at * x_strides[axis], item=_item(graph, op, x)
        )
        calls.append(_copy_call(graph, op, block, x.index, index))
    return _variant(calls)


def strided_slice(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """STRIDED_SLICE and SLICE with constant positions."""
    x, y = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
    given = [constant(graph, op, i) for i in range(1, len(op.inputs))]
    if any(g is None for g in given):
        raise refuse(graph, op, "has positions that are computed", "make them constants")
    values = [[int(v) for v in np.asarray(g).reshape(-1)] for g in given]
    rank = len(x.shape)
    if op.kind == "SLICE":
        begins, steps, keep = values[0], [1] * rank, list(range(rank))
    else:
        if op.options["ellipsis_mask"] or op.options["new_axis_mask"]:
            raise refuse(
                graph, op, "has an ellipsis or a new axis", "slice with plain ranges and reshape"
            )
        begins, steps, keep = _slice_starts(op, x.shape, values)
    x_strides = _strides(x.shape)
    start = sum(b * s for b, s in zip(begins, x_strides, strict=True))
    y_shape = list(y.shape)
    taken = [x_strides[a] * steps[a] for a in keep]
    if len(taken) != len(y_shape):  # a shape of () for a scalar
        y_shape = y_shape + [1] * (len(taken) - len(y_shape))
    block = _block(y_shape, taken, _strides(y_shape), x_start=start, item=_item(graph, op, x))
    return _variant([_copy_call(graph, op, block, x.index, y.index)])


def _slice_starts(
    op: Op, shape: Sequence[int], values: Sequence[Sequence[int]]
) -> tuple[list[int], list[int], list[int]]:
    """Return first position and step of every axis, and the axes that stay."""
    begins, steps, keep = [], [], []
    for axis, size in enumerate(shape):
        has = axis < len(values[0])
        step = values[2][axis] if has else 1
        begin = values[0][axis] if has else 0
        shrink = has and int(op.options["shrink_axis_mask"]) >> axis & 1
        if not has or int(op.options["begin_mask"]) >> axis & 1:
            begin = 0 if step > 0 else size - 1
        elif begin < 0:
            begin += size
        begin = min(max(begin, 0), size - 1 if step < 0 or shrink else size)
        begins.append(begin)
        steps.append(1 if shrink else step)
        if not shrink:
            keep.append(axis)
    return begins, steps, keep


def gather(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """GATHER along an axis, with constant or computed int32 indices."""
    x, indices = graph.tensors[op.inputs[0]], graph.tensors[op.inputs[1]]
    y = graph.tensors[op.outputs[0]]
    if indices.dtype != "int32":
        raise refuse(graph, op, f"has indices of type {indices.dtype}", "use int32")
    axis = int(op.options["axis"]) % len(x.shape)
    batch_dims = int(op.options["batch_dims"])
    batch_dims += len(indices.shape) if batch_dims < 0 else 0
    shape = StructArg(
        type="es_gather_shape",
        fields={
            "batches": math.prod(x.shape[:batch_dims]),
            "outer": math.prod(x.shape[batch_dims:axis]),
            "axis_size": x.shape[axis],
            "inner_bytes": math.prod(x.shape[axis + 1 :]) * _item(graph, op, x),
            "n_indices": math.prod(indices.shape[batch_dims:]),
        },
    )
    args = (
        shape,
        TensorArg(tensor=x.index),
        TensorArg(tensor=indices.index),
        TensorArg(tensor=y.index),
    )
    cycles = 30 + CYCLES_PER_BYTE * y.n_bytes + 20.0 * math.prod(indices.shape)
    call = Call(function="es_gather_b8__ref", args=args)
    return (Variant(name="ref", calls=(call,), cycles=cycles, code_bytes=120),)


def _resize_shape(graph: Graph, op: Op) -> tuple[StructArg, Tensor, Tensor, bool, bool]:
    x, y = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
    if len(x.shape) != 4:
        raise refuse(graph, op, f"has an input of shape {x.shape}", "give it (n, h, w, c)")
    align, half = bool(op.options["align_corners"]), bool(op.options["half_pixel_centers"])
    shape = StructArg(
        type="es_resize_shape",
        fields={
            "batches": x.shape[0],
            "x_height": x.shape[1],
            "x_width": x.shape[2],
            "y_height": y.shape[1],
            "y_width": y.shape[2],
            "channels": x.shape[3],
            "align_corners": int(align),
            "half_pixel": int(half),
            "value_bytes": _item(graph, op, x),
        },
    )
    return shape, x, y, align, half


def _nearest(n_in: int, n_out: int, *, align: bool, half: bool) -> npt.NDArray[np.int32]:
    """Return the source position of each of `n_out` positions, in TFLite's float32 arithmetic."""
    f = np.float32
    scale = f(n_in) / f(n_out)
    if align and n_out > 1:
        scale = f(n_in - 1) / f(n_out - 1)
    offset = f(0.5) if half else f(0)
    found = []
    for i in range(n_out):
        position = f(f(f(i) + offset) * scale)
        nearest = math.floor(float(position) + 0.5) if align else math.floor(position)
        if half:
            nearest = max(0, nearest)
        found.append(min(nearest, n_in - 1))
    return np.array(found, np.int32)


def resize_nearest(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """RESIZE_NEAREST_NEIGHBOR with tables of source rows and columns."""
    shape, x, y, align, half = _resize_shape(graph, op)
    tables = [_nearest(x.shape[axis], y.shape[axis], align=align, half=half) for axis in (1, 2)]
    args = (
        shape,
        ConstArg(name="rows", values=tables[0]),
        ConstArg(name="columns", values=tables[1]),
        TensorArg(tensor=x.index),
        TensorArg(tensor=y.index),
    )
    call = Call(function="es_resize_b8_nearest__ref", args=args)
    cycles = 40 + CYCLES_PER_BYTE * y.n_bytes + 12.0 * y.shape[1] * y.shape[2]
    return (Variant(name="ref", calls=(call,), cycles=cycles, code_bytes=130),)


def _bilinear(n_in: int, n_out: int, *, align: bool, half: bool) -> npt.NDArray[np.int32]:
    """Return (n_out, 3): scaled position, lower and upper source position, 10 fractional bits."""
    scale = (1024 * n_in + n_out // 2) // n_out
    if align and n_out > 1:
        scale = (1024 * (n_in - 1) + (n_out - 1) // 2) // (n_out - 1)
    rows = []
    for i in range(n_out):
        at = i * scale + (scale // 2 - 512 if half else 0)
        low = max(0, int(at / 1024))
        rows.append((at, low, min(int((at + 1023) / 1024), n_in - 1)))
    return np.array(rows, np.int32)


def resize_bilinear(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """RESIZE_BILINEAR of int8 maps."""
    shape, x, y, align, half = _resize_shape(graph, op)
    if x.dtype != "int8":
        raise refuse(graph, op, f"has the type {x.dtype}", "quantize the model to int8")
    if 1024 * max(*x.shape[1:3], *y.shape[1:3]) >= 2**31:
        raise refuse(
            graph, op, f"makes {y.shape} of {x.shape}", "use fewer than 2^21 rows, columns"
        )
    tables = [_bilinear(x.shape[axis], y.shape[axis], align=align, half=half) for axis in (1, 2)]
    args = (
        shape,
        ConstArg(name="rows", values=tables[0]),
        ConstArg(name="columns", values=tables[1]),
        TensorArg(tensor=x.index),
        TensorArg(tensor=y.index),
    )
    call = Call(function="es_resize_s8_bilinear__ref", args=args)
    return (Variant(name="ref", calls=(call,), cycles=40 + 45.0 * y.n_bytes, code_bytes=260),)


TABLE: Final[dict[str, Any]] = {
    "RESHAPE": view,
    "SQUEEZE": view,
    "EXPAND_DIMS": view,
    "PAD": pad,
    "PADV2": pad,
    "CONCATENATION": concatenation,
    "SPLIT": split,
    "SPLIT_V": split,
    "TRANSPOSE": transpose,
    "PACK": pack,
    "UNPACK": unpack,
    "STRIDED_SLICE": strided_slice,
    "SLICE": strided_slice,
    "GATHER": gather,
    "RESIZE_NEAREST_NEIGHBOR": resize_nearest,
    "RESIZE_BILINEAR": resize_bilinear,
}
