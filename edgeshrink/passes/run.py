"""The passes in their order, and what each of them did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from edgeshrink.costs.work import graph_macs, table_bytes, tensor_bytes
from edgeshrink.errors import ConfigError
from edgeshrink.graph import Graph
from edgeshrink.passes.check import check_graph
from edgeshrink.passes.dead_channels import WEIGHTED, remove_dead_channels
from edgeshrink.passes.depthwise_to_conv import depthwise_to_conv
from edgeshrink.passes.fold_constants import fold_constants
from edgeshrink.passes.fold_pad import fold_pad
from edgeshrink.passes.fuse_activation import fuse_activation
from edgeshrink.passes.mean_pool import mean_to_pool
from edgeshrink.passes.merge_lookups import merge_lookups
from edgeshrink.passes.remove_identities import remove_identities
from edgeshrink.passes.rewrite import remove_unused

# In order. Each makes graphs that the later ones understand better; `run_passes` starts again
# from the first as long as any of them finds something.
PASSES: Final[dict[str, Callable[[Graph], Graph]]] = {
    "remove_unused": remove_unused,
    "fold_constants": fold_constants,
    "remove_identities": remove_identities,
    "fuse_activation": fuse_activation,
    "depthwise_to_conv": depthwise_to_conv,
    "fold_pad": fold_pad,
    "mean_to_pool": mean_to_pool,
    "remove_dead_channels": remove_dead_channels,
    "merge_lookups": merge_lookups,
}
MAX_ROUNDS: Final = 100  # each round that goes on removes something, so this is never reached


@dataclass(frozen=True, kw_only=True)
class PassReport:
    """What one run of one pass did."""

    name: str  # a key of PASSES
    change: str  # "removed 2 PAD", "removed 971 of 2736 channels"; empty if nothing
    ops_before: int
    ops_after: int
    macs_before: int
    macs_after: int
    constant_bytes_before: int
    constant_bytes_after: int


def run_passes(
    graph: Graph, names: Iterable[str] | None = None
) -> tuple[Graph, tuple[PassReport, ...]]:
    """Run the passes until none of them finds anything more.

    Every pass keeps the outputs bit for bit. Subgraphs stay as they are.

    Args:
        graph: The first subgraph of a model.
        names: Which passes of `PASSES` to run; left out, all of them. They run in the table's
            order, whatever the order here.

    Returns:
        The graph, and a report for each pass: one of the first round, even where it found
        nothing, and one more for each time it found something later.

    Raises:
        ConfigError: A name that is no pass.
        ModelError: An operator whose tensors do not fit together.
    """
    wanted = set(PASSES) if names is None else set(names)
    unknown = sorted(wanted - set(PASSES))
    if unknown:
        fix = f"choose from {', '.join(PASSES)}"
        raise ConfigError("passes", f"there is no pass {unknown[0]!r}", fix)
    check_graph(graph)
    chosen = {name: run for name, run in PASSES.items() if name in wanted}
    reports: list[PassReport] = []
    for round_number in range(MAX_ROUNDS):
        start = graph
        for name, run in chosen.items():
            after = run(graph)
            if after is not graph or round_number == 0:
                reports.append(_report(name, graph, after))
            graph = after
        if graph is start:
            return graph, tuple(reports)
    raise AssertionError("the passes undo one another")


def constant_bytes(graph: Graph) -> int:
    """Return the bytes of all constants of a graph, tables included; each constant once."""
    n_bytes = sum(tensor_bytes(tensor) for tensor in graph.tensors if tensor.data is not None)
    return n_bytes + sum(table_bytes(op) for op in graph.ops)


def _report(name: str, before: Graph, after: Graph) -> PassReport:
    return PassReport(
        name=name,
        change=_change(before, after) if after is not before else "",
        ops_before=len(before.ops),
        ops_after=len(after.ops),
        macs_before=graph_macs(before),
        macs_after=graph_macs(after),
        constant_bytes_before=constant_bytes(before),
        constant_bytes_after=constant_bytes(after),
    )


def _change(before: Graph, after: Graph) -> str:
    """Return in words how two graphs differ."""
    old, new = (Counter(op.kind for op in graph.ops) for graph in (before, after))
    parts = []
    if gone := old - new:
        parts.append("removed " + _counted(gone))
    if more := new - old:
        parts.append("made " + _counted(more))
    channels = _n_channels(before), _n_channels(after)
    if channels[1] < channels[0] and old == new:
        parts.append(f"removed {channels[0] - channels[1]} of {channels[0]} channels")
    if not parts:
        n_bytes = constant_bytes(before) - constant_bytes(after)
        is_more = n_bytes > 0
        parts.append(f"removed {n_bytes} bytes of constants" if is_more else "simplified shapes")
    return ", ".join(parts)


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


def _n_channels(graph: Graph) -> int:
    """Return the output channels of all layers with weights."""
    layers = [op for op in graph.ops if op.kind in WEIGHTED and not op.is_custom]
    return sum(graph.tensors[op.outputs[0]].shape[-1] for op in layers)
