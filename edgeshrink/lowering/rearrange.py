"""Operators that rearrange blocks of an image, mirror its edges or repeat values."""

from __future__ import annotations

from typing import Final

import numpy as np

from edgeshrink.graph import Graph, Op, Tensor
from edgeshrink.lowering.calls import Variant
from edgeshrink.lowering.fixed_point import constant, refuse
from edgeshrink.lowering.shapes import (
    _block,
    _copy_call,
    _item,
    _same_scale,
    _strides,
    _variant,
    view,
)

MAX_BLOCKS: Final = 64  # copies that one operator may become


def depth_and_space(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """SPACE_TO_DEPTH and DEPTH_TO_SPACE: one copy with a dimension for each side of the block."""
    x, y = _ends(graph, op)
    size = int(op.options["block_size"])
    wide, deep = (x, y) if op.kind == "SPACE_TO_DEPTH" else (y, x)
    if len(wide.shape) != 4 or len(deep.shape) != 4 or size < 1:
        raise refuse(graph, op, f"makes {y.shape} of {x.shape} by {size}", "export it again")
    batches, height, width, channels = wide.shape
    rows, columns = height // size, width // size
    if deep.shape != (batches, rows, columns, channels * size * size) or (
        (rows * size, columns * size) != (height, width)
    ):
        raise refuse(graph, op, f"makes {y.shape} of {x.shape} by {size}", "export it again")
    shape = (batches, rows, columns, size, size, channels)
    b, h, w, c = _strides(wide.shape)
    wide_strides = [b, h * size, w * size, h, w, c]
    deep_strides = _strides(shape)
    strides = (wide_strides, deep_strides) if wide is x else (deep_strides, wide_strides)
    block = _block(shape, *strides, item=_item(graph, op, x))
    return _variant([_copy_call(graph, op, block, x.index, y.index)])


def batch_and_space(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """SPACE_TO_BATCH_ND and BATCH_TO_SPACE_ND of images: one copy for each place in the block."""
    x, y = _ends(graph, op)
    sizes, edges = constant(graph, op, 1), constant(graph, op, 2)
    if sizes is None or edges is None:
        raise refuse(graph, op, "has blocks that are computed", "make them constants")
    is_split = op.kind == "SPACE_TO_BATCH_ND"
    wide, deep = (x, y) if is_split else (y, x)
    spatial = len(wide.shape) - 2
    if spatial not in (1, 2) or len(deep.shape) != len(wide.shape):
        raise refuse(graph, op, f"makes {y.shape} of {x.shape}", "use 3 or 4 dimensions")
    if sizes.shape != (spatial,) or edges.shape != (spatial, 2):
        what = f"has blocks {sizes.tolist()} and edges {edges.tolist()}"
        raise refuse(graph, op, what, f"both need {spatial} rows")
    block = [int(n) for n in sizes]
    before = [int(n) for n in edges[:, 0]]
    padded = [n + int(e.sum()) for n, e in zip(wide.shape[1:], edges, strict=False)]
    expected = (
        wide.shape[0] * int(np.prod(block)),
        *(n // b if b > 0 else -1 for n, b in zip(padded, block, strict=True)),
        wide.shape[-1],
    )
    exact = all(b > 0 and n % b == 0 for n, b in zip(padded, block, strict=True))
    if not exact or deep.shape != expected or (edges < 0).any():
        what = f"makes {y.shape} of {x.shape} by {block} with edges {edges.tolist()}"
        raise refuse(graph, op, what, "export it again")
    if int(np.prod(block)) > MAX_BLOCKS:
        raise refuse(graph, op, f"has blocks of {block}", f"at most {MAX_BLOCKS} values a block")
    item = _item(graph, op, x)
    calls = []
    if is_split and edges.any():  # the reference fills them with what its memory holds
        raise refuse(graph, op, "pads, with values that are not defined", "put a PAD before it")
    wide_steps, deep_steps = _strides(wide.shape), _strides(deep.shape)
    for place in np.ndindex(*block):
        taken, wide_start, deep_start = [], 0, 0
        for axis in range(spatial):
            # wide position = deep position * block + place - before
            first = max(0, -((place[axis] - before[axis]) // block[axis]))
            end = -((place[axis] - before[axis] - wide.shape[1 + axis]) // block[axis])
            taken.append(min(end, deep.shape[1 + axis]) - first)
            at = first * block[axis] + place[axis] - before[axis]
            wide_start += at * wide_steps[1 + axis]
            deep_start += first * deep_steps[1 + axis]
        if min(taken) < 1:
            continue
        number = int(np.ravel_multi_index(place, block))
        deep_start += number * wide.shape[0] * deep_steps[0]
        shape = (wide.shape[0], *taken, wide.shape[-1])
        inner = [s * b for s, b in zip(wide_steps[1:-1], block, strict=True)]
        ends = ([wide_steps[0], *inner, 1], deep_steps)
        starts = (wide_start, deep_start)
        if not is_split:
            ends, starts = ends[::-1], starts[::-1]
        copy = _block(shape, *ends, x_start=starts[0], y_start=starts[1], item=item)
        calls.append(_copy_call(graph, op, copy, x.index, y.index))
    return _variant(calls)


def mirror_pad(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """MIRROR_PAD: the input is copied, then every axis mirrors what is there, innermost first."""
    x, y = _ends(graph, op)
    amounts = constant(graph, op, 1)
    if amounts is None:
        raise refuse(graph, op, "has amounts that are computed", "make them constants")
    offset = {"REFLECT": 1, "SYMMETRIC": 0}.get(str(op.options["mode"]))
    if offset is None or amounts.shape != (len(x.shape), 2):
        what = f"has the mode {op.options['mode']}, amounts {amounts.tolist()}"
        raise refuse(graph, op, what, "export it again")
    pads = [(int(a), int(b)) for a, b in amounts]
    sizes = tuple(n + a + b for n, (a, b) in zip(x.shape, pads, strict=True))
    if sizes != y.shape or any(
        not 0 <= pad <= n - offset for n, both in zip(x.shape, pads, strict=True) for pad in both
    ):
        what = f"makes {y.shape} of {x.shape} by {amounts.tolist()}"
        raise refuse(graph, op, what, "mirror at most what is there")
    item, steps = _item(graph, op, x), _strides(y.shape)
    start = sum(a * s for (a, _), s in zip(pads, steps, strict=True))
    block = _block(x.shape, _strides(x.shape), steps, y_start=start, item=item)
    calls = [_copy_call(graph, op, block, x.index, y.index)]
    shape = list(x.shape)
    for axis in reversed(range(len(shape))):
        # Axes behind this one are complete, those before it are not.
        base = sum(pads[a][0] * steps[a] for a in range(axis))
        first, size = pads[axis][0], x.shape[axis]
        for n, to, source in (
            (first, 0, 2 * first + offset - 1),
            (pads[axis][1], first + size, first + size - 1 - offset),
        ):
            if n:
                part = (*shape[:axis], n, *shape[axis + 1 :])
                mirrored = [*steps[:axis], -steps[axis], *steps[axis + 1 :]]
                block = _block(
                    part,
                    mirrored,
                    steps,
                    x_start=base + source * steps[axis],
                    y_start=base + to * steps[axis],
                    item=item,
                )
                calls.append(_copy_call(graph, op, block, y.index, y.index))
        shape[axis] = y.shape[axis]
    return _variant(calls)


def broadcast_to(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """BROADCAST_TO: a copy whose source stands still along axes that repeat."""
    x, y = _ends(graph, op)
    extended = (1,) * (len(y.shape) - len(x.shape)) + x.shape
    if len(extended) != len(y.shape) or any(
        n not in (1, m) for n, m in zip(extended, y.shape, strict=True)
    ):
        raise refuse(graph, op, f"makes {y.shape} of {x.shape}", "export it again")
    if extended == y.shape:
        return view(graph, op, isa)
    steps = [s if n > 1 else 0 for n, s in zip(extended, _strides(extended), strict=True)]
    block = _block(y.shape, steps, _strides(y.shape), item=_item(graph, op, x))
    return _variant([_copy_call(graph, op, block, x.index, y.index)])


def _ends(graph: Graph, op: Op) -> tuple[Tensor, Tensor]:
    """Return input and output; ModelError unless values may move between them."""
    x, y = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
    if x.dtype != y.dtype:
        raise refuse(graph, op, f"makes {y.dtype} of {x.dtype}", "give both one type")
    if x.dtype not in ("int8", "float32") and op.kind != "BROADCAST_TO":
        raise refuse(graph, op, f"moves values of type {x.dtype}", "use int8 or float32")
    _same_scale(graph, op, (x.index, y.index))
    return x, y


TABLE: Final = {
    "SPACE_TO_DEPTH": depth_and_space,
    "DEPTH_TO_SPACE": depth_and_space,
    "SPACE_TO_BATCH_ND": batch_and_space,
    "BATCH_TO_SPACE_ND": batch_and_space,
    "MIRROR_PAD": mirror_pad,
    "BROADCAST_TO": broadcast_to,
}
