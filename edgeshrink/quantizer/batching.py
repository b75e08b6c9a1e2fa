"""Batches through a graph that was traced with a batch of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from edgeshrink.errors import ModelError
from edgeshrink.quantizer.canonical import canonical_program

aten = torch.ops.aten
FIXED: Final = "fixed_arguments"  # key in a node's meta: its arguments for a batch of one
_SHAPED: Final = (aten.reshape.default, aten.expand.default)
N_PROBED: Final = 3
BATCH: Final = 32
TOLERANCE: Final = 1e-4  # of the largest output: float sums of a batch are not those of one sample


def free_batch(
    graph_module: fx.GraphModule,
    model: nn.Module | ExportedProgram,
    example_inputs: tuple[Tensor, ...],
) -> bool:
    """Let a canonical graph take any batch, in place; False, and nothing changed, if it can't.

    Shapes in the graph are constants. A second trace with a batch of two shows which of them grow
    with the batch, and random inputs prove that every sample then comes out as it does alone.
    Recurrent layers with a state of one sample, and programs that were exported with a fixed batch,
    can't be freed: they go sample by sample.

    Args:
        graph_module: `canonical_program(model, example_inputs)`, before anything else was done.
        model: What it was made from.
        example_inputs: Batch of 1.
    """
    if isinstance(model, ExportedProgram):
        return False
    pairs = tuple(torch.cat([x, x]) if x.dim() else x for x in example_inputs)
    try:
        doubled = canonical_program(model, pairs)
    except ModelError:
        return False
    freed = _freed_arguments(graph_module, doubled)
    if freed is None:
        return False
    for node, shape in freed.items():
        node.meta[FIXED] = node.args
        node.args = (node.args[0], shape, *node.args[2:])
    graph_module.recompile()
    if _keeps_samples_apart(graph_module, example_inputs):
        return True
    fix_batch(graph_module)
    return False


def fix_batch(graph_module: fx.GraphModule) -> None:
    """Undo `free_batch`, in place: exporters want shapes without a -1."""
    for node in graph_module.graph.nodes:
        if FIXED in node.meta:
            node.args = (node.args[0], *node.meta.pop(FIXED)[1:])
    graph_module.recompile()


def joined(samples: Sequence[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """Join samples (batch of 1 each) to batches of up to `BATCH`."""
    return [
        tuple(torch.cat(column) for column in zip(*samples[start : start + BATCH], strict=True))
        for start in range(0, len(samples), BATCH)
    ]


def _freed_arguments(
    single: fx.GraphModule, doubled: fx.GraphModule
) -> dict[fx.Node, list[int]] | None:
    """Return the shapes that depend on the batch, with -1 where they do."""
    ones, twos = list(single.graph.nodes), list(doubled.graph.nodes)
    if [(n.op, n.target if n.op == "call_function" else "") for n in ones] != [
        (n.op, n.target if n.op == "call_function" else "") for n in twos
    ]:
        return None
    freed: dict[fx.Node, list[int]] = {}
    for one, two in zip(ones, twos, strict=True):
        if one.op != "call_function":
            continue
        plain_one, plain_two = (_without_nodes(n) for n in (one, two))
        if plain_one == plain_two:
            continue
        if one.target not in _SHAPED:
            return None
        shape, other = list(one.args[1]), list(two.args[1])
        grown = [axis for axis in range(len(shape)) if shape[axis] != other[axis]]
        if len(grown) != 1 or other[grown[0]] != 2 * shape[grown[0]]:
            return None
        shape[grown[0]] = -1
        freed[one] = shape
    return freed


def _without_nodes(node: fx.Node) -> Any:
    return fx.node.map_arg((node.args, node.kwargs), lambda n: None)


def _keeps_samples_apart(graph_module: fx.GraphModule, example_inputs: tuple[Tensor, ...]) -> bool:
    generator = torch.Generator().manual_seed(0)
    batch = tuple(
        torch.randn(N_PROBED, *x.shape[1:], generator=generator).to(x.dtype)
        if x.is_floating_point()
        else x.expand(N_PROBED, *x.shape[1:])
        for x in example_inputs
    )

    def outputs(*inputs: Tensor) -> list[Tensor]:
        runner = fx.Interpreter(graph_module)  # the module itself checks for the traced shapes
        runner.extra_traceback = False
        return torch.utils._pytree.tree_leaves(runner.run(*inputs))

    try:
        with torch.no_grad():
            together = outputs(*batch)
            alone = [outputs(*(x[i : i + 1] for x in batch)) for i in range(N_PROBED)]
    except (RuntimeError, IndexError, TypeError, ValueError):
        return False
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        joined = torch.cat(parts) if parts[0].dim() else None
        if joined is None or whole.shape != joined.shape:
            return False
        limit = TOLERANCE * max(1e-6, float(joined.abs().max()))
        if not float((whole - joined).abs().max()) <= limit:
            return False
    return True
