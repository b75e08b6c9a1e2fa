"""Kernel calls: what an operator becomes, before there is any C."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgeshrink.arena import ArenaPlan
from edgeshrink.graph import Graph

ConstantKey = tuple[Any, ...]
Optimize = Literal["latency", "ram", "flash"]


@dataclass(frozen=True, kw_only=True)
class TensorArg:
    """A pointer to a tensor: in the arena, in the state, or a constant as the file has it."""

    tensor: int


@dataclass(frozen=True, kw_only=True)
class ConstArg:
    """A pointer to a constant array of the lowering's making (packed weights, tables)."""

    name: str  # what it holds: "weights", "bias", "multiplier", "shift", "table"
    values: npt.NDArray[Any]
    align: int = 4


@dataclass(frozen=True, kw_only=True)
class StructArg:
    """A pointer to a constant shape struct of int32_t fields, in the header's order."""

    type: str  # "es_dense_shape"
    fields: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class ScratchArg:
    """A pointer to memory that the operator may use while it runs; part of the arena plan."""

    n_bytes: int
    align: int = 4


@dataclass(frozen=True, kw_only=True)
class IntArg:
    """An int32_t by value."""

    value: int


def array_key(values: npt.NDArray[Any], align: int) -> ConstantKey:
    """Return what arrays have in common that are one in the firmware: content, type, alignment."""
    return values.tobytes(), values.dtype.name, max(align, values.itemsize)


def struct_key(arg: StructArg) -> ConstantKey:
    """Return what structs have in common that are one in the firmware."""
    return arg.type, tuple(arg.fields.items())


Arg = TensorArg | ConstArg | StructArg | ScratchArg | IntArg


@dataclass(frozen=True, kw_only=True)
class Emitted:
    """A kernel written for one layer's shape: a C file that defines the called function.

    `text` compiles everywhere: where it holds assembly, a plain C twin stands beside it for other
    compilers and cores. `parameters` is the function's parameter list, as in its definition.
    """

    text: str
    parameters: str


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call: `function(args...)`. `function` is a kernel's full name or that of `emitted`."""

    function: str  # "es_dense_s8__ref"
    args: tuple[Arg, ...]
    emitted: Emitted | None = None


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Code that runs over and over: how much of it a cache must hold, and how often it is read.

    Attributes:
        n_bytes: Of code in a turn, that of the loops inside it included.
        turns: Of one inference, all entries together.
        entries: How often it is entered from outside.
        inner: The loops inside it.
    """

    n_bytes: int
    turns: float
    entries: float
    inner: tuple[Loop, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to compute an operator. Every variant of an operator gives the same bits.

    Attributes:
        name: What distinguishes it, for tables: "ref", "dsp 2x3", "dsp in place".
        calls: In order. None at all: the output is the input's memory (`alias`).
        overlaps: Input tensor -> distance in bytes: the output may be written over that input if
            the input's offset is at least this much above the output's (`arena.Overlap`). Left
            out: they must not share memory.
        alias: Output tensor -> input tensor whose memory it is (reshapes).
        cycles: Estimated cycles on the core family it is for, to choose by.
        code_bytes: Estimated size of the code that this layer adds if it is the only one with
            these kernels; emitted kernels are not shared, others are.
        loops: The loops of kernels that are written for one layer.
        passes: How often an inference reads the constants of these kernels from end to end.
        waiting: Cycles that the target's flash makes it wait, as estimated before there is any
            code (`waits.variant_waiting`); 0 where nothing is known of that flash.
    """

    name: str
    calls: tuple[Call, ...]
    overlaps: Mapping[int, int] = field(default_factory=dict)
    alias: Mapping[int, int] = field(default_factory=dict)
    cycles: float = 0.0
    code_bytes: int = 0
    loops: tuple[Loop, ...] = ()
    passes: float = 1.0
    waiting: float = 0.0

    @property
    def time_cycles(self) -> float:
        """Cycles on the target: those of the core, and those that it waits."""
        return self.cycles + self.waiting

    @property
    def scratch_bytes(self) -> int:
        """Largest scratch of any of its calls."""
        sizes = [a.n_bytes for c in self.calls for a in c.args if isinstance(a, ScratchArg)]
        return max(sizes, default=0)

    @property
    def constant_bytes(self) -> int:
        """Bytes of the arrays and structs that it adds to flash; constant tensors not counted."""
        total = 0
        for call in self.calls:
            for arg in call.args:
                if isinstance(arg, ConstArg):
                    total += int(np.asarray(arg.values).nbytes)
                elif isinstance(arg, StructArg):
                    total += 4 * len(arg.fields)
        return total


@dataclass(frozen=True, kw_only=True)
class Step:
    """An operator with the variant chosen for it."""

    op: int  # index in the graph; operators of an initialisation subgraph follow the others
    kind: str
    name: str  # the layer's name where the file has one
    variant: Variant


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor lives: bytes `offset` of the arena or of the state, or in flash."""

    where: Literal["arena", "state", "constant"]
    offset: int = 0
    constant: int = -1  # the tensor whose data it is


@dataclass(frozen=True, kw_only=True)
class Fill:
    """Bytes of the state that start with a value other than 0."""

    offset: int
    n_bytes: int
    byte: int  # -128 to 127


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A graph as kernel calls over planned memory: what the code generator prints.

    At first the state is 0 but for `fills`; then `init` runs once (the subgraphs of CALL_ONCE),
    `steps` at every inference. `scratch` maps a step's position to the arena offset of its
    scratch; positions of `init` count down from -1, its last.
    """

    graph: Graph
    optimize: Optimize
    steps: tuple[Step, ...]
    init: tuple[Step, ...]
    places: Mapping[int, Place]
    scratch: Mapping[int, int]
    arena: ArenaPlan
    state_bytes: int
    fills: tuple[Fill, ...] = ()
