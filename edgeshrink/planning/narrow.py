"""A sketched graph with fewer channels: what an export of the pruned model would write.

Tracing a pruned model again takes seconds; cutting its graph takes milliseconds. Channels go where
the groups say, and from there through every operator that hands them on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeshrink.channels import ChannelGroup
from edgeshrink.errors import ModelError
from edgeshrink.graph import Graph, Op, Quantization, Tensor, layer_name
from edgeshrink.quantizer.sketch import Sketch

Gone = tuple[int, npt.NDArray[np.int64]]  # axis of a tensor, indices that go from it

# Operators whose output has, on every axis but those that they work on, its input's channels.
HAND_ON: Final = frozenset({
    "AVERAGE_POOL_2D", "MAX_POOL_2D", "PAD", "PADV2", "RELU", "RELU6", "LOGISTIC", "TANH",
    "HARD_SWISH", "ABS", "RSQRT", "GELU", "LEAKY_RELU", "RESIZE_BILINEAR",
    "RESIZE_NEAREST_NEIGHBOR",
})  # fmt: skip
JOIN: Final = frozenset({"ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM"})
WEIGHTED: Final = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"})


def narrow(sketch: Sketch, groups: Sequence[ChannelGroup], kept: Mapping[str, int]) -> Graph:
    """Return the graph of the model in which each root of `groups` keeps so many channels.

    Raises:
        ModelError: An operator mixes channels in a way that is not followed here; names the layer.
    """
    cutter = _Cutter(sketch, _outputs(sketch, groups, kept))
    for op in sketch.graph.ops:
        cutter.cut(op)
    return replace(sketch.graph, tensors=tuple(cutter.tensors), ops=tuple(cutter.ops))


def _outputs(
    sketch: Sketch, groups: Sequence[ChannelGroup], kept: Mapping[str, int]
) -> dict[int, npt.NDArray[np.int64]]:
    """Return, by operator, the outputs that go because of its layer's group."""
    found: dict[int, npt.NDArray[np.int64]] = {}
    for group in groups:
        units = group.gone(kept.get(group.root, group.n_channels))
        if not units.size:
            continue
        for path, members in group.members.items():
            for op in sketch.layers.get(path, ()):
                indices = members[units].reshape(-1)
                found[op] = np.union1d(found.get(op, np.zeros(0, np.int64)), indices)
    return found


class _Cutter:
    """Goes through the operators in order; holds the tensors as far as they are cut."""

    def __init__(self, sketch: Sketch, outputs: Mapping[int, npt.NDArray[np.int64]]) -> None:
        self.graph, self.outputs = sketch.graph, outputs
        self.tensors: list[Tensor] = list(sketch.graph.tensors)
        self.ops: list[Op] = []
        self.gone: dict[int, Gone] = {}

    def cut(self, op: Op) -> None:
        if op.kind in WEIGHTED:
            self._weighted(op)
        elif op.kind in JOIN:
            self._join(op)
        elif any(i in self.gone for i in op.inputs):
            self._other(op)
        self.ops.append(self._adapted(op))

    def _adapted(self, op: Op) -> Op:
        """Return the operator with what its options and lists say of shapes brought up to date."""
        if op.kind == "RESHAPE" and op.outputs[0] in self.gone:
            shape = self.tensors[op.outputs[0]].shape
            old = self.tensors[op.inputs[1]]
            self.tensors[old.index] = replace(old, data=np.array(shape, np.int32))
            return replace(op, options={**op.options, "new_shape": shape})
        return op

    def _mixed(self, op: Op, why: str = "mixes channels of which some go") -> ModelError:
        name = layer_name(self.graph.tensors[op.outputs[0]].name)
        return ModelError(
            f"layer {name!r}", f"{op.kind} {why}", "leave it out of what is pruned (exclude)"
        )

    def _remove(self, index: int, axis: int, indices: npt.NDArray[np.int64]) -> None:
        """Cut a tensor, its values and its scales."""
        if not indices.size:
            return
        tensor = self.tensors[index]
        axis %= len(tensor.shape)
        shape = list(tensor.shape)
        shape[axis] -= len(indices)
        changes: dict[str, Any] = {"shape": tuple(shape)}
        if tensor.data is not None:
            changes["data"] = np.ascontiguousarray(np.delete(tensor.data, indices, axis))
        q = tensor.quantization
        if q is not None and q.scales.size > 1 and q.axis == axis:
            changes["quantization"] = Quantization(
                scales=np.delete(q.scales, indices),
                zero_points=np.delete(q.zero_points, indices),
                axis=q.axis,
            )
        self.tensors[index] = replace(tensor, **changes)

    def _write(self, op: Op, axis: int, indices: npt.NDArray[np.int64]) -> None:
        """Cut an operator's output, and remember it."""
        if indices.size:
            out = op.outputs[0]
            self._remove(out, axis, indices)
            self.gone[out] = axis % len(self.tensors[out].shape), indices

    def _last(self, op: Op, index: int) -> npt.NDArray[np.int64]:
        """Return what is gone of an input's channels, which are its last axis."""
        axis, indices = self.gone.get(index, (-1, np.zeros(0, np.int64)))
        if indices.size and axis != len(self.graph.tensors[index].shape) - 1:
            raise self._mixed(op)
        return indices

    def _weighted(self, op: Op) -> None:
        position = 2 if op.kind == "TRANSPOSE_CONV" else 0
        weight = op.inputs[1]
        bias = op.inputs[3 if position else 2]
        read = self._last(op, op.inputs[position])
        written = self.outputs.get(op.index, np.zeros(0, np.int64))
        shape = self.graph.tensors[weight].shape
        if op.kind == "DEPTHWISE_CONV_2D":
            n_in = self.graph.tensors[op.inputs[0]].shape[-1]
            many = shape[-1] // n_in
            follow = (read[:, None] * many + np.arange(many)).reshape(-1)
            if n_in > 1 and not np.array_equal(np.union1d(follow, written), follow):
                raise self._mixed(op, "loses channels that its input keeps")
            written = follow if n_in > 1 else written
            self._remove(weight, 3, written)
            many = self.tensors[weight].shape[-1] // max(1, n_in - len(read))
            op = replace(op, options={**op.options, "depth_multiplier": many})
        else:
            n_read = shape[-1]
            if read.size and n_read != self.graph.tensors[op.inputs[position]].shape[-1]:
                raise self._mixed(op, "has groups of which channels go")
            self._remove(weight, len(shape) - 1, read)
            self._remove(weight, 0, written)
        if bias >= 0:
            self._remove(bias, 0, written)
        self._write(op, -1, written)
        if op.kind == "TRANSPOSE_CONV" and written.size:
            size = self.tensors[op.inputs[0]]
            y = self.tensors[op.outputs[0]].shape
            self.tensors[size.index] = replace(size, data=np.array(y, np.int32))

    def _join(self, op: Op) -> None:
        computed = [i for i in op.inputs if self.graph.tensors[i].data is None]
        cut = [self.gone[i] for i in computed if i in self.gone]
        if not cut:
            return
        axis, indices = cut[0]
        out = self.graph.tensors[op.outputs[0]].shape
        full = len(self.graph.tensors[op.inputs[0]].shape)
        axis_from_end = axis - full
        for i in op.inputs:
            tensor = self.graph.tensors[i]
            size = tensor.shape[axis_from_end] if len(tensor.shape) >= -axis_from_end else 1
            if size == 1:
                continue
            if tensor.data is not None:
                self._remove(i, axis_from_end, indices)
            elif i not in self.gone or not np.array_equal(self.gone[i][1], indices):
                raise self._mixed(op, "joins maps that keep different channels")
        self._write(op, len(out) + axis_from_end, indices)

    def _other(self, op: Op) -> None:
        x = op.inputs[0]
        before = self.graph.tensors[x].shape
        after = self.graph.tensors[op.outputs[0]].shape
        if op.kind == "CONCATENATION":
            self._concatenation(op)
            return
        if x not in self.gone:
            raise self._mixed(op)
        axis, indices = self.gone[x]
        if op.kind in HAND_ON:
            self._write(op, axis, indices)
        elif op.kind in ("MEAN", "SUM", "REDUCE_MAX"):
            axes = self._numbers(op, 1)
            if axis in axes:
                raise self._mixed(op)
            keeps = bool(op.options.get("keep_dims"))
            self._write(op, axis if keeps else axis - sum(a < axis for a in axes), indices)
        elif op.kind == "TRANSPOSE":
            self._write(op, self._numbers(op, 1).index(axis), indices)
        elif op.kind == "RESHAPE":
            self._write(op, *self._reshaped(op, before, after, axis, indices))
        elif op.kind == "SOFTMAX" or op.kind == "BATCH_MATMUL":
            raise self._mixed(op)
        elif op.kind == "STRIDED_SLICE" and before[axis] == after[axis]:
            self._shorter_end(op, axis, len(indices))
            self._write(op, axis, indices)
        else:
            raise self._mixed(op)

    def _numbers(self, op: Op, position: int) -> list[int]:
        data = self.graph.tensors[op.inputs[position]].data
        assert data is not None
        return [int(v) for v in data.reshape(-1)]

    def _shorter_end(self, op: Op, axis: int, count: int) -> None:
        end = self.tensors[op.inputs[2]]
        assert end.data is not None
        data = end.data.copy()
        data[axis] -= count
        self.tensors[end.index] = replace(end, data=data)

    def _reshaped(
        self, op: Op, before: Sequence[int], after: Sequence[int], axis: int,
        indices: npt.NDArray[np.int64],
    ) -> Gone:  # fmt: skip
        """Return the axis on which the channels lie afterwards, and their indices there."""
        outer = int(np.prod(before[:axis], dtype=np.int64))
        inner = int(np.prod(before[axis + 1 :], dtype=np.int64))
        for place, size in enumerate(after):
            lead = int(np.prod(after[:place], dtype=np.int64))
            if lead == outer and size == before[axis]:
                return place, indices
            if outer % lead == 0 and size == (outer // lead) * before[axis] * inner:
                # Flattened: every position before the axis, and all behind it, once per channel.
                n = outer // lead
                base = np.arange(n)[:, None, None] * before[axis] * inner
                flat = base + indices[None, :, None] * inner + np.arange(inner)[None, None, :]
                return place, np.sort(flat.reshape(-1))
        raise self._mixed(op)

    def _concatenation(self, op: Op) -> None:
        axis = op.options["axis"] % len(self.graph.tensors[op.outputs[0]].shape)
        offset, parts = 0, []
        for i in op.inputs:
            if i in self.gone:
                where, indices = self.gone[i]
                if where != axis:
                    raise self._mixed(op)
                parts.append(indices + offset)
            offset += self.graph.tensors[i].shape[axis]
        self._write(op, axis, np.concatenate(parts))
