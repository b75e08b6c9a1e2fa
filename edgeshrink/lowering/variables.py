"""State that stays between inferences: variable tensors, resource variables, CALL_ONCE."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from edgeshrink.graph import Graph, Op, Tensor
from edgeshrink.lowering.calls import Call, Fill, IntArg, TensorArg, Variant
from edgeshrink.lowering.fixed_point import refuse

VARIABLE_KINDS: Final = frozenset({"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE"})
ALIGN: Final = 16


@dataclass(frozen=True, kw_only=True)
class State:
    """The memory that outlives an inference.

    The resource tensor of a VAR_HANDLE stands for the variable's memory.
    """

    offsets: dict[int, int]  # tensor -> bytes from the start of the state
    n_bytes: int
    fills: tuple[Fill, ...]


def inline_init(graph: Graph) -> tuple[Graph, tuple[int, ...]]:
    """Append the subgraphs that CALL_ONCE names; return the graph and the new operators' indices.

    They run once, before the first inference. Their tensors follow the graph's own.
    """
    tensors, ops, init = list(graph.tensors), list(graph.ops), []
    touched = False
    for op in graph.ops:
        touched |= op.kind in ("READ_VARIABLE", "ASSIGN_VARIABLE")
        if op.kind != "CALL_ONCE":
            continue
        if touched:
            raise refuse(graph, op, "stands behind a use of a variable", "must come first")
        number = int(op.options["init_subgraph_index"])
        if not 1 <= number <= len(graph.subgraphs):
            raise refuse(graph, op, f"calls subgraph {number}", "export it again")
        sub = graph.subgraphs[number - 1]
        if sub.inputs:
            raise refuse(graph, op, f"calls subgraph {number}, which has inputs", "export it again")
        shift = len(tensors)
        tensors += [replace(t, index=t.index + shift) for t in sub.tensors]
        for inner in sub.ops:
            if inner.kind == "CALL_ONCE":
                raise refuse(sub, inner, "is nested", "call it from the main graph")
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
        op.outputs[0]: f"{op.options['container'] or ''}/{op.options['shared_name'] or ''}"
        for op in graph.ops
        if op.kind == "VAR_HANDLE"
    }


def _value(graph: Graph, op: Op) -> Tensor:
    """Return the tensor that an operator assigns to its variable or reads from it."""
    return graph.tensors[op.inputs[1] if op.kind == "ASSIGN_VARIABLE" else op.outputs[0]]


def is_stateful(graph: Graph) -> bool:
    """Return whether operators meet in a variable, so that their order matters."""
    if any(op.kind in VARIABLE_KINDS for op in graph.ops):
        return True
    readers = [i for op in graph.ops for i in set(op.inputs) if i >= 0]
    return any(graph.tensors[i].is_variable and readers.count(i) > 1 for i in set(readers))


def variables(graph: Graph) -> State:
    """Return where every variable lies and what is in it at first.

    As TensorFlow Lite Micro has it: a variable tensor of int8 starts at its zero point, others at
    0; a resource variable has the zero point of what the first ASSIGN_VARIABLE stores, as a byte.
    """
    handles = _handles(graph)
    sizes: dict[str, int] = {}
    initial: dict[str, int] = {}
    for kinds in (("ASSIGN_VARIABLE",), ("READ_VARIABLE",)):
        for op in graph.ops:
            if op.kind not in kinds:
                continue
            if op.inputs[0] not in handles:
                raise refuse(graph, op, "has no VAR_HANDLE", "export the model again")
            name, value = handles[op.inputs[0]], _value(graph, op)
            if op.kind == "READ_VARIABLE" and name not in sizes:
                raise refuse(
                    graph, op, "reads a variable that nothing assigns", "export the model again"
                )
            if sizes.setdefault(name, value.n_bytes) != value.n_bytes:
                raise refuse(graph, op, "gives its variable two sizes", "export the model again")
            q = value.quantization
            initial.setdefault(name, 0 if q is None else int(q.zero_points[0]))
    offsets: dict[int, int] = {}
    at: dict[str, int] = {}
    fills: list[Fill] = []
    end = 0

    def place(n_bytes: int, byte: int) -> int:
        nonlocal end
        start, end = end, end + -(-n_bytes // ALIGN) * ALIGN
        byte = (byte + 128) % 256 - 128
        if byte and n_bytes:
            fills.append(Fill(offset=start, n_bytes=n_bytes, byte=byte))
        return start

    for tensor, name in handles.items():
        if name in sizes:
            if name not in at:
                at[name] = place(sizes[name], initial[name])
            offsets[tensor] = at[name]
    used = {i for op in graph.ops for i in op.inputs} | set(graph.outputs)
    for variable in graph.tensors:
        if variable.is_variable and variable.dtype != "resource" and variable.index in used:
            q = variable.quantization
            zero = int(q.zero_points[0]) if q is not None and variable.dtype == "int8" else 0
            offsets[variable.index] = place(variable.n_bytes, zero)
    return State(offsets=offsets, n_bytes=end, fills=tuple(fills))


def lower_variable_op(graph: Graph, op: Op) -> tuple[Variant, ...]:
    """Reading and assigning copy; a handle and CALL_ONCE cost nothing at run time."""
    if op.kind == "READ_VARIABLE":
        source, to = op.inputs[0], op.outputs[0]
    elif op.kind == "ASSIGN_VARIABLE":
        to, source = op.inputs[0], op.inputs[1]
    else:
        return (Variant(name="none", calls=()),)
    return (copy_variant(source, to, _value(graph, op).n_bytes),)


def copy_variant(source: int, to: int, n_bytes: int) -> Variant:
    """Return the variant that copies a tensor."""
    args = (TensorArg(tensor=source), TensorArg(tensor=to), IntArg(value=n_bytes))
    return Variant(
        name="copy",
        calls=(Call(function="es_copy_b8__ref", args=args),),
        cycles=30 + 0.5 * n_bytes,
        code_bytes=20,
    )
