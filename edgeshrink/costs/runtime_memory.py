"""RAM of a model in LiteRT or ExecuTorch, from the file alone: what XNNPACK must hold for it.

A runtime packs the weights, holds the activations that are alive at once, and keeps a pointer for
every tap and position of a convolution larger than 1x1 (XNNPACK's indirection buffers). How much of
each, and what comes on top, was fitted to what the runtimes held on a host
(`benchmarks/runtime_memory.py`, which writes `data/runtime_memory.json`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from edgeshrink.costs.work import graph_work
from edgeshrink.graph import Graph
from edgeshrink.profile import Figure
from edgeshrink.runtimes.pte import PteInfo

DATA: Final = Path(__file__).parent / "data" / "runtime_memory.json"
TERMS: Final = ("weights", "activations", "pointers", "ops")
POINTER_BYTES: Final = 8


def memory_terms(graph: Graph) -> dict[str, float]:
    """Return what a runtime's heap grows with: bytes of `TERMS`, and the number of operators.

    Activations are the most that one operator reads and writes.
    """
    works = graph_work(graph)
    pointers = sum(
        POINTER_BYTES * work.taps * work.output_elements / max(1, work.out_channels * work.groups)
        for work in works
        if work.kernel in ("conv_kxk", "depthwise")
    )
    return {
        "weights": float(sum(t.n_bytes for t in graph.tensors if t.data is not None)),
        "activations": float(
            max((work.input_bytes + work.output_bytes for work in works), default=0)
        ),
        "pointers": float(pointers),
        "ops": float(len(graph.ops)),
    }


def runtime_memory(
    runtime: str, n_bytes: int, *, graph: Graph | None = None, pte: PteInfo | None = None
) -> Figure:
    """Return the RAM of a model in a runtime, with its band.

    Args:
        runtime: "litert" or "executorch".
        n_bytes: The model file's.
        graph: Its operators, where they are known.
        pte: Of a `.pte`, what it says of itself: without `graph`, only its constants are known.
    """
    facts = _data()[runtime]
    if graph is not None:
        terms, rates = memory_terms(graph), facts["heap"]
        heap = rates["fixed"] + sum(rates[term] * terms[term] for term in TERMS)
        error = facts["heap_error"]
        how = "from its weights, activations and windows"
    else:
        weights = sum(pte.segment_bytes) if pte is not None else n_bytes
        arena = sum(pte.planned_arena_bytes) if pte is not None else 0
        rates = facts["heap_without_graph"]
        heap = rates["fixed"] + rates["weights"] * weights + rates["arena"] * arena
        error = facts["heap_without_graph_error"]
        how = "from its weights: the file does not tell its activations"
    file = facts["file_share"] * n_bytes
    libraries = facts["libraries_bytes"]
    total = heap + file + libraries
    slack = error * heap + facts["libraries_error"] * libraries
    return Figure(
        value=round(total),
        unit="B",
        how="modelled",
        low=round(total - slack),
        high=round(total + slack),
        validated=False,
        note=f"heap {heap:.0f} B {how}; model file {file:.0f} B, runtime's libraries "
        f"{libraries:.0f} B; fitted to {facts['rows']} models on an {facts['host']} host",
    )


@cache
def _data() -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))
    return found
