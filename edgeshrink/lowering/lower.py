"""A graph as kernel calls over planned memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from edgeshrink.arena import Block, Overlap, order_for_memory, plan_arena
from edgeshrink.costs.memory_system import MemorySystem
from edgeshrink.errors import ModelError
from edgeshrink.graph import Graph, Op, Tensor
from edgeshrink.lowering.calls import (
    ConstantKey,
    ConstArg,
    Lowered,
    Optimize,
    Place,
    Step,
    StructArg,
    TensorArg,
    Variant,
    array_key,
    struct_key,
)
from edgeshrink.lowering.fixed_point import place_of
from edgeshrink.lowering.table import LOWERINGS
from edgeshrink.lowering.variables import (
    VARIABLE_KINDS,
    copy_variant,
    inline_init,
    is_stateful,
    lower_variable_op,
    variables,
)
from edgeshrink.lowering.waits import variant_waiting
from edgeshrink.passes.check import check_graph

ALIGN: Final = 16  # of every buffer: what the widest load of any kernel wants
NOISE: Final = 5e-4  # of a model's time, by where its code and constants lie
CYCLES_PER_BYTE: Final = 10_000  # the plan `flash` takes a byte more to save this many cycles
DTYPES: Final = {"int8", "uint8", "int16", "int32", "int64", "float32", "bool"}

# Folders of kernels that a core runs, best first, by the words of `cpu.isa` in its target.
_FOLDERS: Final = (("dsp", "dsp"), ("rv32imc", "rv32"), ("rv32imc", "scalar"), ("mul", "scalar"))


def kernel_folders(isa: Sequence[str]) -> tuple[str, ...]:
    """Return the kernel folders for a core with these instruction sets, best first."""
    folders = [folder for word, folder in _FOLDERS if word in isa]
    if "dsp" in folders:  # what is arranged for cores without SIMD is of no use to it
        folders = ["dsp"]
    return (*folders, "ref")


def lower(
    graph: Graph,
    isa: Sequence[str],
    *,
    optimize: Optimize = "latency",
    ram_limit_bytes: int | None = None,
    arena_seconds: float = 5.0,
    flash: MemorySystem | None = None,
) -> Lowered:
    """Choose a kernel for every operator, order the operators, and plan the memory.

    Args:
        graph: Any static graph; run the exact passes on it first.
        isa: Words of `cpu.isa` of the target.
        optimize: `latency` takes the fastest kernels, `ram` those that need the least memory,
            `flash` those that add the fewest bytes, unless a byte saves `CYCLES_PER_BYTE` cycles.
        ram_limit_bytes: Arena and state must fit where they can: kernels at the peak of memory
            give way to smaller ones until they do.
        arena_seconds: Spent on proving the arena's size at most; 0: greedy placements alone.
        flash: The target's (`costs.memory_system`): what kernels wait for it counts as their time.

    Raises:
        ModelError: an operator, type or version is not supported (index, kind, layer, remedy).
    """
    graph, init_ops = inline_init(graph)
    check_graph(graph)
    check_static(graph)
    folders = kernel_folders(isa)
    main = [op for op in graph.ops if op.index not in init_ops]
    order = _order(graph, main)
    options = {op.index: _variants(graph, op, folders, flash) for op in graph.ops}
    chosen = _choose(options, optimize, graph)
    lowered = _planned(graph, order, init_ops, chosen, optimize, arena_seconds)
    if optimize == "ram":
        return _faster(graph, order, init_ops, chosen, options, lowered, arena_seconds)
    if ram_limit_bytes is None:
        return lowered
    smallest = _choose(options, "ram", graph)
    for op in sorted(order, key=lambda op: -_need(graph, op, chosen[op.index])):
        if lowered.arena.n_bytes + lowered.state_bytes <= ram_limit_bytes:
            break
        if chosen[op.index] is not smallest[op.index]:
            chosen[op.index] = smallest[op.index]
            lowered = _planned(graph, order, init_ops, chosen, optimize, arena_seconds)
    return lowered


def _faster(
    graph: Graph,
    order: Sequence[Op],
    init_ops: Sequence[int],
    chosen: dict[int, Variant],
    options: Mapping[int, tuple[Variant, ...]],
    lowered: Lowered,
    arena_seconds: float,
) -> Lowered:
    """Return the plan with the fastest kernels that leave the arena as small as it is.

    Memory counts at its peak alone, so operators elsewhere need not save any.
    """
    for op in sorted(graph.ops, key=lambda op: -chosen[op.index].time_cycles):
        for variant in sorted(options[op.index], key=lambda v: v.time_cycles):
            if variant.time_cycles >= chosen[op.index].time_cycles:
                break
            before = chosen[op.index]
            chosen[op.index] = variant
            other = _planned(graph, order, init_ops, chosen, "ram", arena_seconds)
            if other.arena.n_bytes <= lowered.arena.n_bytes:
                lowered = other
                break
            chosen[op.index] = before
    return lowered


def check_static(graph: Graph) -> None:
    """Raise ModelError for a type or shape that no kernel handles, naming operator and tensor."""
    for op in graph.ops:
        if op.is_custom or (op.kind not in LOWERINGS and op.kind not in VARIABLE_KINDS):
            kinds = ", ".join(sorted({*LOWERINGS, *VARIABLE_KINDS}))
            raise ModelError(
                place_of(graph, op), "has no kernel", f"use one of the supported operators: {kinds}"
            )
        for index in (*op.inputs, *op.outputs):
            is_handle = op.kind in VARIABLE_KINDS and graph.tensors[index].dtype == "resource"
            if index >= 0 and not is_handle:
                _check_tensor(graph.tensors[index], place_of(graph, op))
    for side, indices in (("input", graph.inputs), ("output", graph.outputs)):
        for position, index in enumerate(indices):
            _check_tensor(graph.tensors[index], f"{side} {position} of the model")
            if side == "input" and (
                graph.tensors[index].data is not None or graph.tensors[index].is_variable
            ):
                raise ModelError(
                    f"input {position} of the model",
                    "is a constant or a variable",
                    "the file is damaged: export it again",
                )


def _check_tensor(tensor: Tensor, where: str) -> None:
    name = tensor.name or f"tensor {tensor.index}"
    if tensor.dtype not in DTYPES:
        raise ModelError(where, f"has {name} of type {tensor.dtype}", "quantize the model to int8")
    is_list = tensor.data is not None and tensor.dtype in ("int32", "int64")
    if 0 in tensor.shape and not is_list:  # the list of a scalar's sizes is empty
        raise ModelError(where, f"has {name} of shape {tensor.shape}", "leave empty tensors out")


def _variants(
    graph: Graph, op: Op, folders: tuple[str, ...], flash: MemorySystem | None
) -> tuple[Variant, ...]:
    if op.kind in VARIABLE_KINDS:
        return lower_variable_op(graph, op)
    found = tuple(_detached(graph, v) for v in LOWERINGS[op.kind](graph, op, folders))
    if flash is None or len(found) < 2:
        return found
    return tuple(replace(v, waiting=variant_waiting(graph, op, v, flash)) for v in found)


def _detached(graph: Graph, variant: Variant) -> Variant:
    """Return a copy in place of a view of a variable, which may change while the view is used."""
    for out, source in variant.alias.items():
        if graph.tensors[source].is_variable:
            return copy_variant(source, out, graph.tensors[out].n_bytes)
    return variant


def _order(graph: Graph, ops: Sequence[Op]) -> tuple[Op, ...]:
    """Return the operators in the order with the lowest peak; stateful graphs keep theirs."""
    if is_stateful(graph):
        return tuple(ops)

    def live(indices: Sequence[int]) -> tuple[str, ...]:
        kept = (i for i in indices if i >= 0 and graph.tensors[i].data is None)
        return tuple(dict.fromkeys(str(i) for i in kept if not graph.tensors[i].is_variable))

    sizes = {str(t.index): t.n_bytes for t in graph.tensors if t.data is None}
    order = order_for_memory(
        len(ops),
        [live(op.inputs) for op in ops],
        [live(op.outputs) for op in ops],
        sizes,
        keep=tuple(str(i) for i in graph.outputs),
    )
    return tuple(ops[i] for i in order)


def _need(graph: Graph, op: Op, variant: Variant) -> int:
    """Return the bytes that must exist while `op` runs, its own tensors and scratch."""
    tensors = {i for i in (*op.inputs, *op.outputs) if i >= 0 and graph.tensors[i].data is None}
    return sum(graph.tensors[i].n_bytes for i in tensors) + variant.scratch_bytes


def _memory(graph: Graph, op: Op, variant: Variant) -> int:
    """Return how much a variant adds beside the op's inputs: scratch, and output not overlapped."""
    out = sum(graph.tensors[i].n_bytes for i in op.outputs)
    sizes = [
        max(0, out - graph.tensors[i].n_bytes + max(0, distance))
        for i, distance in variant.overlaps.items()
    ]
    return min([out, *sizes]) + variant.scratch_bytes


def _choose(
    options: Mapping[int, tuple[Variant, ...]], optimize: Optimize, graph: Graph
) -> dict[int, Variant]:
    ops = {op.index: op for op in graph.ops}
    if optimize == "latency":
        return _fastest(options)
    if optimize == "ram":
        return {
            i: min(vs, key=lambda v: (_memory(graph, ops[i], v), v.time_cycles))
            for i, vs in options.items()
        }
    return _smallest(options, graph)


def _fastest(options: Mapping[int, tuple[Variant, ...]]) -> dict[int, Variant]:
    """Return the variants that take the least time, waiting included.

    What an operator waits depends a little on where the linker puts what. So another kernel than
    that of the fewest cycles is taken only where it saves more of the model's time than that.
    """
    best = {i: min(vs, key=lambda v: v.time_cycles) for i, vs in options.items()}
    least_saved = NOISE * sum(v.time_cycles for v in best.values())
    chosen = {}
    for i, vs in options.items():
        fewest = min(vs, key=lambda v: v.cycles)
        is_better = fewest.time_cycles - best[i].time_cycles > least_saved
        chosen[i] = best[i] if is_better else fewest
    return chosen


def _smallest(options: Mapping[int, tuple[Variant, ...]], graph: Graph) -> dict[int, Variant]:
    """Return the variants with the fewest bytes, cycles counted as bytes by `CYCLES_PER_BYTE`.

    Code is paid once by all that share it, so besides single operators all that can share a kernel
    change to it together, as long as anything gets better. Constants that are equal in several
    operators are paid once too.
    """
    constants = {id(v): _constants(graph, v) for vs in options.values() for v in vs}
    users: dict[ConstantKey, set[int]] = {}
    for i, vs in options.items():
        for key in (key for v in vs for key in constants[id(v)]):
            users.setdefault(key, set()).add(i)
    own, shared = {}, {}
    for v in (v for vs in options.values() for v in vs):
        alone = (n for key, n in constants[id(v)].items() if len(users[key]) == 1)
        own[id(v)] = sum(alone) + v.time_cycles / CYCLES_PER_BYTE
        shared[id(v)] = {k: n for k, n in constants[id(v)].items() if len(users[k]) > 1}

    def cost(chosen: Mapping[int, Variant]) -> float:
        code: dict[tuple[str, ...], int] = {}
        for v in chosen.values():
            functions = tuple(c.function for c in v.calls)
            code[functions] = max(v.code_bytes, code.get(functions, 0))
        once = {key: n for v in chosen.values() for key, n in shared[id(v)].items()}
        return sum(code.values()) + sum(once.values()) + sum(own[id(v)] for v in chosen.values())

    chosen = {i: min(vs, key=lambda v: v.code_bytes) for i, vs in options.items()}
    moves: list[dict[int, Variant]] = [{i: v} for i, vs in options.items() for v in vs]
    together: dict[str, dict[int, Variant]] = {}
    for i, vs in options.items():
        for v in vs:
            for call in v.calls:
                together.setdefault(call.function, {})[i] = v
    moves += [move for move in together.values() if len(move) > 1]
    best = cost(chosen)
    improved = True
    while improved:
        improved = False
        for move in moves:
            other = {**chosen, **move}
            if (found := cost(other)) < best:
                chosen, best, improved = other, found, True
    return chosen


def _constants(graph: Graph, variant: Variant) -> dict[ConstantKey, int]:
    """Return the constants that a variant reads, each with its bytes."""
    found: dict[ConstantKey, int] = {}
    for arg in (arg for call in variant.calls for arg in call.args):
        if isinstance(arg, ConstArg):
            found[array_key(np.asarray(arg.values), arg.align)] = int(np.asarray(arg.values).nbytes)
        elif isinstance(arg, StructArg):
            found[struct_key(arg)] = 4 * len(arg.fields)
        elif isinstance(arg, TensorArg) and graph.tensors[arg.tensor].data is not None:
            found[(arg.tensor,)] = graph.tensors[arg.tensor].n_bytes
    return found


def _planned(
    graph: Graph,
    order: Sequence[Op],
    init_ops: Sequence[int],
    chosen: Mapping[int, Variant],
    optimize: Optimize,
    arena_seconds: float = 5.0,
) -> Lowered:
    init = [op for op in graph.ops if op.index in init_ops]
    roots = _roots([chosen[op.index] for op in graph.ops], len(graph.tensors))
    state = variables(graph)
    steps = [*init, *order]
    blocks, lives = _blocks(graph, steps, len(init), roots, state.offsets, chosen)
    overlaps = _overlaps(graph, steps, roots, lives, chosen)
    plan = plan_arena(tuple(blocks), tuple(overlaps), time_limit_s=arena_seconds)
    places: dict[int, Place] = {}
    for tensor in graph.tensors:
        root = roots[tensor.index]
        if graph.tensors[root].data is not None:
            places[tensor.index] = Place(where="constant", constant=root)
        elif root in state.offsets:
            places[tensor.index] = Place(where="state", offset=state.offsets[root])
        elif root in lives:
            places[tensor.index] = Place(where="arena", offset=plan.offsets[str(root)])
    scratch = {
        position - len(init): plan.offsets[f"scratch {position}"]
        for position, op in enumerate(steps)
        if chosen[op.index].scratch_bytes
    }

    def step(op: Op) -> Step:
        names = [graph.tensors[i].name for i in op.outputs if graph.tensors[i].name]
        name = names[0] if names else ""
        return Step(op=op.index, kind=op.kind, name=name, variant=chosen[op.index])

    return Lowered(
        graph=graph,
        optimize=optimize,
        steps=tuple(step(op) for op in order),
        init=tuple(step(op) for op in init),
        places=places,
        scratch=scratch,
        arena=plan,
        state_bytes=state.n_bytes,
        fills=state.fills,
    )


def _roots(variants: Sequence[Variant], n_tensors: int) -> list[int]:
    """Return, for every tensor, the tensor whose memory it is."""
    roots = list(range(n_tensors))
    pending = {out: source for v in variants for out, source in v.alias.items()}

    def find(tensor: int) -> int:
        while tensor in pending:
            tensor = pending[tensor]
        return tensor

    return [find(t) for t in roots]


def _blocks(
    graph: Graph,
    steps: Sequence[Op],
    n_init: int,
    roots: Sequence[int],
    state: Mapping[int, int],
    chosen: Mapping[int, Variant],
) -> tuple[list[Block], dict[int, tuple[int, int]]]:
    """Return the arena's buffers and, by tensor, first and last step of each."""
    lives: dict[int, tuple[int, int]] = {}

    def touch(tensor: int, position: int) -> None:
        root = roots[tensor]
        if graph.tensors[root].data is not None or root in state:
            return
        first, last = lives.get(root, (position, position))
        lives[root] = min(first, position), max(last, position)

    for tensor in graph.inputs:
        touch(tensor, n_init)
    for position, op in enumerate(steps):
        for tensor in (*op.inputs, *op.outputs):
            if tensor >= 0 and graph.tensors[tensor].dtype != "resource":
                touch(tensor, position)
    for tensor in graph.outputs:
        touch(tensor, max(n_init, len(steps)))  # still there when all steps are done
    sizes = {root: graph.tensors[root].n_bytes for root in lives}
    blocks = [
        Block(name=str(root), n_bytes=sizes[root], first=first, last=last, align=ALIGN)
        for root, (first, last) in lives.items()
    ]
    for position, op in enumerate(steps):
        n_bytes = chosen[op.index].scratch_bytes
        if n_bytes:
            blocks.append(
                Block(
                    name=f"scratch {position}",
                    n_bytes=n_bytes,
                    first=position,
                    last=position,
                    align=ALIGN,
                )
            )
    return blocks, lives


def _overlaps(
    graph: Graph,
    steps: Sequence[Op],
    roots: Sequence[int],
    lives: Mapping[int, tuple[int, int]],
    chosen: Mapping[int, Variant],
) -> list[Overlap]:
    found = []
    for position, op in enumerate(steps):
        for source, distance in chosen[op.index].overlaps.items():
            root, out = roots[source], roots[op.outputs[0]]
            if root not in lives or out not in lives or root == out:
                continue
            others = [roots[i] for i in op.inputs if i >= 0 and i != source]
            if root in others or lives[root][1] != position or lives[out][0] != position:
                continue
            found.append(
                Overlap(input=str(root), output=str(out), distance=distance, step=position)
            )
    return found


def with_steps(lowered: Lowered, steps: Sequence[Step]) -> Lowered:
    """Return `lowered` with other steps over the same memory."""
    return replace(lowered, steps=tuple(steps))
