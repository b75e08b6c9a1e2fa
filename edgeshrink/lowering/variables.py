"""State that stays between inferences: variable tensors, resource variables, CALL_ONCE."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from edgeshrink.errors import ModelError
from edgeshrink.graph import Graph, Op
from edgeshrink.lowering.calls import Call, IntArg, TensorArg, Variant
from edgeshrink.lowering.fixed_point import place_of

VARIABLE_KINDS: Final = frozenset({"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE"})
ALIGN: Final = 16


def inline_init(graph: Graph) -> tuple[Graph, tuple[int, ...]]:
    """Append the subgraphs that CALL_ONCE names; return the graph and the new operators' indices.

    They run once, before the first inference. Their tensors follow the graph's own.
    """
    tensors, ops, init = list(graph.tensors), list(graph.ops), []
    for op in graph.ops:
        if op.kind != "CALL_ONCE":
            continue
        number = int(op.options["init_subgraph_index"])
        if not 1 <= number <= len(graph.subgraphs):
            raise ModelError(place_of(graph, op), f"calls subgraph {number}", "export it again")
        sub = graph.subgraphs[number - 1]
        shift = len(tensors)
        tensors += [replace(t, index=t.index + shift) for t in sub.tensors]
        for inner in sub.ops:
            if inner.kind == "CALL_ONCE":
                raise ModelError(place_of(sub, inner), "is nested", "export it again")
            index = len(ops)
            ops.append(
                replace(
                    inner,
                    index=index,
                    inputs=tuple(i + shift if i >= 0 else i for i in inner.inputs),
                    outputs=tuple(i + shift for i in inner.outputs),
                )
            )
            init.append(index)
    return replace(graph, tensors=tuple(tensors), ops=tuple(ops)), tuple(init)


def _handles(graph: Graph) -> dict[int, str]:
    """Return resource tensor -> name of its variable."""
    return {
        op.outputs[0]: f"{op.options.get('container') or ''}/{op.options.get('shared_name') or ''}"
        for op in graph.ops
        if op.kind == "VAR_HANDLE"
    }


def _variable_of(graph: Graph, op: Op) -> str:
    handles = _handles(graph)
    if op.inputs[0] not in handles:
        raise ModelError(place_of(graph, op), "has no VAR_HANDLE", "export the model again")
    return handles[op.inputs[0]]


def variables(graph: Graph) -> tuple[dict[int, int], int]:
    """Return tensor -> offset in the state, for every tensor that is state, and the state's size.

    The resource tensor of a VAR_HANDLE stands for the variable's memory.
    """
    sizes: dict[str, int] = {}
    for op in graph.ops:
        if op.kind == "ASSIGN_VARIABLE":
            n_bytes, name = graph.tensors[op.inputs[1]].n_bytes, _variable_of(graph, op)
        elif op.kind == "READ_VARIABLE":
            n_bytes, name = graph.tensors[op.outputs[0]].n_bytes, _variable_of(graph, op)
        else:
            continue
        if sizes.setdefault(name, n_bytes) != n_bytes:
            raise ModelError(
                place_of(graph, op), "gives its variable two sizes", "export the model again"
            )
    offsets: dict[int, int] = {}
    at: dict[str, int] = {}
    end = 0
    for tensor, name in _handles(graph).items():
        if name in sizes:
            if name not in at:
                at[name] = end
                end += -(-sizes[name] // ALIGN) * ALIGN
            offsets[tensor] = at[name]
    for tensor_ in graph.tensors:
        if tensor_.is_variable and tensor_.data is None:
            offsets[tensor_.index] = end
            end += -(-tensor_.n_bytes // ALIGN) * ALIGN
    return offsets, end


def lower_variable_op(graph: Graph, op: Op) -> tuple[Variant, ...]:
    """Reading and assigning copy; a handle and CALL_ONCE cost nothing at run time."""
    if op.kind == "READ_VARIABLE":
        source, to = op.inputs[0], op.outputs[0]
        n_bytes = graph.tensors[to].n_bytes
    elif op.kind == "ASSIGN_VARIABLE":
        to, source = op.inputs[0], op.inputs[1]
        n_bytes = graph.tensors[source].n_bytes
    else:
        return (Variant(name="none", calls=()),)
    args = (TensorArg(tensor=source), TensorArg(tensor=to), IntArg(value=n_bytes))
    return (Variant(name="copy", calls=(Call(function="es_copy_b8__ref", args=args),)),)
