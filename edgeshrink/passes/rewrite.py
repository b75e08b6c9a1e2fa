"""What every pass needs to take a graph apart and put it together again."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeshrink.graph import Graph, Op, Quantization, Tensor
from edgeshrink.passes.fixed_point import constant_of

# Operators that do something beside computing their outputs.
EFFECTS: Final = frozenset({
    "ASSIGN_VARIABLE", "CALL_ONCE", "CALL", "IF", "WHILE", "VAR_HANDLE", "HASHTABLE",
    "HASHTABLE_IMPORT", "STABLEHLO_WHILE", "STABLEHLO_CASE", "STABLEHLO_COMPOSITE",
    "STABLEHLO_CUSTOM_CALL", "RANDOM_STANDARD_NORMAL", "RANDOM_UNIFORM", "MULTINOMIAL",
})  # fmt: skip


def producers(ops: Iterable[Op]) -> dict[int, Op]:
    """Return the operator that computes each tensor."""
    return {tensor: op for op in ops for tensor in op.outputs}


def consumers(ops: Iterable[Op]) -> dict[int, list[Op]]:
    """Return the operators that read each tensor, once for each time they do."""
    found: dict[int, list[Op]] = {}
    for op in ops:
        for tensor in op.inputs:
            if tensor >= 0:
                found.setdefault(tensor, []).append(op)
    return found


def is_internal(graph: Graph, tensor: int) -> bool:
    """Return whether a tensor is computed and seen by the graph's operators alone."""
    return (
        tensor >= 0
        and tensor not in graph.inputs
        and tensor not in graph.outputs
        and graph.tensors[tensor].data is None
        and not graph.tensors[tensor].is_variable
    )


def constant_input(graph: Graph, op: Op, position: int) -> npt.NDArray[Any] | None:
    """Return the values of an input that is a constant; None if it is absent or computed."""
    if position >= len(op.inputs) or op.inputs[position] < 0:
        return None
    return constant_of(graph.tensors[op.inputs[position]])


def with_options(op: Op, **changes: Any) -> Op:
    """Return `op` with some options changed or added."""
    options: dict[str, Any] = (
        copy.copy(op.options) if isinstance(op.options, dict) else dict(op.options)
    )
    options.update(changes)
    return replace(op, options=options)


def as_reshape(op: Op, source: int, shape: Sequence[int]) -> Op:
    """Return the RESHAPE of `source` that gives the output of `op`; its shape is an option."""
    return replace(
        op, kind="RESHAPE", version=1, inputs=(source,), options={"new_shape": tuple(shape)}
    )


def renamed(op: Op, names: Mapping[int, int]) -> Op:
    """Return `op` with tensors replaced."""
    inputs = tuple(names.get(i, i) for i in op.inputs)
    outputs = tuple(names.get(i, i) for i in op.outputs)
    if inputs == op.inputs and outputs == op.outputs:
        return op
    return replace(op, inputs=inputs, outputs=outputs)


def is_unchanged(graph: Graph, ops: Sequence[Op]) -> bool:
    """Return whether `ops` are the very operators of the graph."""
    return len(ops) == len(graph.ops) and all(a is b for a, b in zip(ops, graph.ops, strict=True))


def new_tensor(tensors: list[Tensor], like: Tensor, **changes: Any) -> int:
    """Append a tensor that differs from `like` by `changes`, and return its index."""
    tensors.append(replace(like, index=len(tensors), **changes))
    return len(tensors) - 1


def selected(tensor: Tensor, kept: Mapping[int, npt.NDArray[np.int64]]) -> dict[str, Any]:
    """Return shape, data and quantization of a tensor cut to the `kept` indices of some axes."""
    shape = tuple(len(kept[a]) if a in kept else size for a, size in enumerate(tensor.shape))
    data, quantization = tensor.data, tensor.quantization
    if data is not None:
        for axis, indices in kept.items():
            data = np.take(data, indices, axis=axis)
    if quantization is not None and quantization.scales.size > 1 and quantization.axis in kept:
        indices = kept[quantization.axis]
        quantization = Quantization(
            scales=quantization.scales[indices],
            zero_points=quantization.zero_points[indices],
            axis=quantization.axis,
        )
    return {"shape": shape, "data": data, "quantization": quantization}


def rebuilt(graph: Graph, ops: Sequence[Op], tensors: Sequence[Tensor] | None = None) -> Graph:
    """Return `graph` with other operators, without what nobody reads, numbered anew.

    Args:
        graph: The graph to take inputs, outputs, names and subgraphs from.
        ops: Operators in execution order; their numbers may be anything.
        tensors: The tensors they speak of; left out, the graph's.
    """
    tensors = graph.tensors if tensors is None else tensors
    kept = _live(graph, ops, tensors)
    used = {*graph.inputs, *graph.outputs}
    for op in kept:
        used.update(i for i in (*op.inputs, *op.outputs) if i >= 0)
    numbers = {old: new for new, old in enumerate(sorted(used))}
    return replace(
        graph,
        tensors=tuple(replace(tensors[old], index=new) for old, new in numbers.items()),
        ops=tuple(replace(renamed(op, numbers), index=i) for i, op in enumerate(kept)),
        inputs=tuple(numbers[i] for i in graph.inputs),
        outputs=tuple(numbers[i] for i in graph.outputs),
    )


def _live(graph: Graph, ops: Sequence[Op], tensors: Sequence[Tensor]) -> list[Op]:
    """Return the operators whose outputs are read, or that have an effect."""
    read = set(graph.outputs)
    kept: list[Op] = []
    for op in reversed(ops):
        has_effect = (
            op.is_custom
            or op.kind in EFFECTS
            or not op.outputs
            or any(i >= 0 and tensors[i].is_variable for i in (*op.inputs, *op.outputs))
        )
        if has_effect or any(i in read for i in op.outputs):
            kept.append(op)
            read.update(op.inputs)
    return kept[::-1]


def remove_unused(graph: Graph) -> Graph:
    """Return the graph without operators and tensors whose values nobody reads."""
    live = _live(graph, graph.ops, graph.tensors)
    used = {*graph.inputs, *graph.outputs, *(i for op in live for i in (*op.inputs, *op.outputs))}
    if len(live) == len(graph.ops) and len(used - {-1}) == len(graph.tensors):
        return graph
    return rebuilt(graph, graph.ops)
