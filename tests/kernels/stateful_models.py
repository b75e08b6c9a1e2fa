"""Model files with resource variables and initialisation subgraphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as S

from tests.tiny_models import TfliteBuilder, pack


class StatefulBuilder(TfliteBuilder):
    """A model of several subgraphs: `subgraph` starts the next one."""

    def subgraph(self, name: str) -> int:
        self.graph = S.SubGraphT(tensors=[], inputs=[], outputs=[], operators=[], name=name)
        self.model.subgraphs.append(self.graph)
        return len(self.model.subgraphs) - 1

    def main(self) -> None:
        self.graph = self.model.subgraphs[0]

    def handle(self, name: str, container: str = "") -> int:
        handle = self.tensor(f"{name} handle", (1,), "RESOURCE")
        options = S.VarHandleOptionsT(container=container, sharedName=name)
        self.op("VAR_HANDLE", [], [handle], options)
        return handle

    def read(self, handle: int, like: dict[str, Any], name: str = "read") -> int:
        value = self.tensor(name, **like)
        self.op("READ_VARIABLE", [handle], [value], S.ReadVariableOptionsT())
        return value

    def assign(self, handle: int, value: int) -> None:
        self.op("ASSIGN_VARIABLE", [handle, value], [], S.AssignVariableOptionsT())

    def call_once(self, number: int) -> None:
        self.op("CALL_ONCE", [], [], S.CallOnceOptionsT(initSubgraphIndex=number))

    def finish(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        self.main()
        self.graph.inputs, self.graph.outputs = list(inputs), list(outputs)
        return pack(self.model)


def like(n: int = 4, *, zero: int = 0, scale: float = 0.1) -> dict[str, Any]:
    return {"shape": (1, n), "dtype": "INT8", "scale": scale, "zero_point": zero}


def delay_line(
    n: int = 4, *, zero: int = 5, initial: np.ndarray | None = None, twice: bool = False
) -> bytes:
    """y = x + the sample before; with `twice`, y = x + the sample before that."""
    build = StatefulBuilder()
    x = build.tensor("x", **like(n, zero=zero))
    names = ["last", "before"] if twice else ["last"]
    if initial is not None:
        number = build.subgraph("initialise")
        for i, name in enumerate(names):
            value = build.tensor("initial", data=initial + i, **like(n, zero=zero))
            build.assign(build.handle(name), value)
        build.main()
        build.call_once(number)
    handles = [build.handle(name) for name in names]
    olds = [build.read(h, like(n, zero=zero), f"{name} value")
            for h, name in zip(handles, names, strict=True)]  # fmt: skip
    y = build.tensor("y", **like(n, zero=-3, scale=0.15))
    build.op("ADD", [x, olds[-1]], [y], S.AddOptionsT(), 2)
    for handle, value in reversed(list(zip(handles, [x, *olds], strict=False))):
        build.assign(handle, value)
    return build.finish([x], [y])


def computed_initial_values() -> bytes:
    """The initialisation subgraph computes what it stores, with an operator that needs room."""
    build = StatefulBuilder()
    x = build.tensor("x", **like())
    number = build.subgraph("initialise")
    build.tensor("unused", **like())
    a = build.tensor("a", data=np.array([[1, -2, 3, 120]], np.int8), **like())
    b = build.tensor("b", data=np.array([[9, 9, -100, 120]], np.int8), **like(scale=0.2))
    s = build.tensor("s", **like(zero=-7))
    build.op("ADD", [a, b], [s], S.AddOptionsT(), 2)
    build.assign(build.handle("kept"), s)
    build.main()
    build.call_once(number)
    handle = build.handle("kept")
    old = build.read(handle, like(zero=-7))
    y = build.tensor("y", **like(zero=1))
    build.op("SUB", [x, old], [y], S.SubOptionsT(), 2)
    new = build.tensor("new", **like(zero=-7))
    build.op("ADD", [x, old], [new], S.AddOptionsT(), 2)
    build.assign(handle, new)
    return build.finish([x], [y, old])


def faulty(edit: Callable[[StatefulBuilder, int], Sequence[int]]) -> bytes:
    """`edit` adds operators to a graph with the input x and returns the outputs."""
    build = StatefulBuilder()
    x = build.tensor("x", **like())
    return build.finish([x], edit(build, x))
