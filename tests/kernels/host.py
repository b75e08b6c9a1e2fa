"""Runs lowered graphs on the host, call by call, with the kernels in one shared library.

The memory around the arena is painted and checked, the arena itself starts as noise: a kernel that
writes outside its buffers or reads what nobody wrote does not go unnoticed.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeshrink.graph import Graph
from edgeshrink.graph_reader import read_graph
from edgeshrink.lowering import (
    LOWERINGS,
    Call,
    ConstArg,
    IntArg,
    Lowered,
    ScratchArg,
    StructArg,
    TensorArg,
    Variant,
    lower,
)
from edgeshrink.lowering import lower as lower_function
from edgeshrink.lowering.kernel_files import included_headers
from edgeshrink.resources import resource_dir

GUARD = 64
FLAGS = ("-std=c11", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror")
DSP_ISA = ("dsp", "fpu")
SCALAR_ISA = ("mul",)
_cache = Path(tempfile.gettempdir()) / "edgeshrink-test-kernels"


def _build(name: str, sources: Sequence[Path]) -> ctypes.CDLL:
    _cache.mkdir(exist_ok=True)
    texts = [p.read_text("utf-8") for p in sources]
    headers = [p.read_text("utf-8") for p in included_headers(texts).values()]
    key = hashlib.sha256("\0".join([*texts, *headers, *FLAGS]).encode()).hexdigest()[:16]
    library = _cache / f"{name}-{key}.so"
    if not library.exists():
        aside = library.with_suffix(f".{id(texts)}.tmp")
        include = resource_dir("kernels") / "include"
        command = ["cc", *FLAGS, f"-I{include}", *map(str, sources), "-o", str(aside)]
        subprocess.run(command, check=True)
        aside.rename(library)
    return ctypes.CDLL(str(library))


@functools.cache
def library() -> ctypes.CDLL:
    """All kernels of all folders; those with intrinsics use their portable stand-ins."""
    return _build("kernels", sorted(resource_dir("kernels").glob("*/es_*__*.c")))


@functools.lru_cache(maxsize=256)
def _emitted(text: str) -> ctypes.CDLL:
    _cache.mkdir(exist_ok=True)
    source = _cache / f"emitted-{hashlib.sha256(text.encode()).hexdigest()[:16]}.c"
    source.write_text(text, "utf-8")
    return _build("emitted", [source])


def struct_fields(type_name: str) -> list[str]:
    """The fields of a shape struct, as the header has them."""
    for path in (resource_dir("kernels") / "include").glob("*.h"):
        match = re.search(
            r"typedef struct(?: \w+)? \{([^}]*)\} " + type_name + ";", path.read_text("utf-8")
        )
        if match:
            body = re.sub(r"/\*.*?\*/", "", match[1], flags=re.DOTALL)
            fields = []
            for declaration in filter(None, (d.strip() for d in body.split(";"))):
                kind, _, names = declaration.partition(" ")
                assert kind == "int32_t", f"{type_name}: {declaration}"
                fields += [n.strip() for n in names.split(",")]
            return fields
    raise AssertionError(f"no struct {type_name}")


class HostModel:
    """A lowered graph with its memory; `run` is one inference."""

    def __init__(self, lowered: Lowered, seed: int = 0) -> None:
        self.lowered = lowered
        rng = np.random.default_rng(seed)
        size = lowered.arena.n_bytes + 2 * GUARD + 16
        self._arena_memory = rng.integers(0, 256, size, dtype=np.uint8)
        self._arena = GUARD + (-(self._arena_memory.ctypes.data + GUARD)) % 16
        self._painted = self._arena_memory.copy()
        self._state_memory = np.zeros(max(16, lowered.state_bytes) + 16, np.uint8)
        self._state = (-self._state_memory.ctypes.data) % 16
        self._keep: list[Any] = []
        self._constants: dict[int, np.ndarray] = {}
        for fill in lowered.fills:
            start = self._state + fill.offset
            self._state_memory[start : start + fill.n_bytes] = fill.byte & 255
        for position, step in enumerate(lowered.init):
            self._step(step, position - len(lowered.init))

    def address(self, tensor: int) -> int:
        place = self.lowered.places[tensor]
        if place.where == "arena":
            return self._arena_memory.ctypes.data + self._arena + place.offset
        if place.where == "state":
            return self._state_memory.ctypes.data + self._state + place.offset
        if place.constant not in self._constants:
            data = self.lowered.graph.tensors[place.constant].data
            self._constants[place.constant] = _aligned(data)
        return self._constants[place.constant].ctypes.data

    def _view(self, tensor: int) -> np.ndarray:
        t = self.lowered.graph.tensors[tensor]
        raw = (ctypes.c_uint8 * t.n_bytes).from_address(self.address(tensor))
        return np.frombuffer(raw, np.dtype(t.dtype)).reshape(t.shape)

    def run(self, *inputs: np.ndarray) -> list[np.ndarray]:
        graph = self.lowered.graph
        for index, value in zip(graph.inputs, inputs, strict=True):
            self._view(index)[...] = value
        for position, step in enumerate(self.lowered.steps):
            self._step(step, position)
        outputs = [self._view(index).copy() for index in graph.outputs]
        end = self._arena + self.lowered.arena.n_bytes
        before, after = slice(0, self._arena), slice(end, None)
        for part in (before, after):
            assert (self._arena_memory[part] == self._painted[part]).all(), (
                "wrote outside the arena"
            )
        return outputs

    def _step(self, step: Any, position: int) -> None:
        scratch = None
        if position in self.lowered.scratch:
            offset = self.lowered.scratch[position]
            scratch = self._arena_memory.ctypes.data + self._arena + offset
        for call in step.variant.calls:
            self._call(call, scratch)

    def _call(self, call: Call, scratch: int | None) -> None:
        arguments: list[Any] = []
        for arg in call.args:
            if isinstance(arg, TensorArg):
                arguments.append(ctypes.c_void_p(self.address(arg.tensor)))
            elif isinstance(arg, ConstArg):
                values = _aligned(arg.values)
                self._keep.append(values)
                arguments.append(ctypes.c_void_p(values.ctypes.data))
            elif isinstance(arg, StructArg):
                assert list(arg.fields) == struct_fields(arg.type), arg.type
                values = np.array(list(arg.fields.values()), np.int32)
                self._keep.append(values)
                arguments.append(ctypes.c_void_p(values.ctypes.data))
            elif isinstance(arg, ScratchArg):
                assert scratch is not None or arg.n_bytes == 0
                arguments.append(ctypes.c_void_p(scratch))
            elif isinstance(arg, IntArg):
                arguments.append(ctypes.c_int32(arg.value))
        owner = library() if call.emitted is None else _emitted(call.emitted.text)
        function = getattr(owner, call.function)
        function.restype = None
        function(*arguments)
        self._keep.clear()


def _aligned(values: np.ndarray) -> np.ndarray:
    """A copy that starts at a multiple of 16 bytes."""
    values = np.ascontiguousarray(values)
    memory = np.zeros(values.nbytes + 32, np.uint8)
    start = -memory.ctypes.data % 16
    copy = memory[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


def tflm_outputs(data: bytes, *inputs: np.ndarray) -> list[list[np.ndarray]]:
    """Outputs of TensorFlow Lite Micro, one list per sample of the inputs (n, ...)."""
    from tflite_micro.python.tflite_micro import runtime

    interpreter = runtime.Interpreter.from_bytes(bytes(data), arena_size=1 << 24)
    graph = read_graph(data)
    results = []
    for row in range(len(inputs[0])):
        for position, array in enumerate(inputs):
            interpreter.set_input(np.ascontiguousarray(array[row]), position)
        interpreter.invoke()
        results.append([interpreter.get_output(i).copy() for i in range(len(graph.outputs))])
    return results


def variants_of(graph: Graph, op_index: int, folders: tuple[str, ...]) -> tuple[Variant, ...]:
    op = graph.ops[op_index]
    return LOWERINGS[op.kind](graph, op, folders)


def lowered_each_way(graph: Graph, isa: Sequence[str]) -> list[tuple[str, Lowered]]:
    """The graph lowered with every variant of every operator at least once."""
    base = lower_function(graph, isa)
    found = [("latency", base), ("ram", lower(graph, isa, optimize="ram")),
             ("flash", lower(graph, isa, optimize="flash"))]  # fmt: skip
    from edgeshrink.lowering.lower import _planned, kernel_folders
    from edgeshrink.lowering.variables import VARIABLE_KINDS

    folders = kernel_folders(isa)
    for op in base.graph.ops:
        if op.kind in VARIABLE_KINDS:
            continue
        for variant in variants_of(base.graph, op.index, folders):
            chosen = {s.op: s.variant for s in (*base.init, *base.steps)} | {op.index: variant}
            order = [base.graph.ops[s.op] for s in base.steps]
            init = tuple(s.op for s in base.init)
            other = _planned(base.graph, order, init, chosen, "latency")
            label = f"op {op.index} {variant.name}"
            same = sum(name.startswith(label) for name, _ in found)
            found.append((f"{label} {same + 1}" if same else label, other))
    return found


def check_against_tflm(
    data: bytes, *inputs: np.ndarray, isa: Sequence[str] = DSP_ISA, graph: Graph | None = None
) -> None:
    """Assert that every variant gives TensorFlow Lite Micro's outputs, bit for bit.

    Args:
        data: The model file.
        inputs: One array (n, ...) per input, n samples, run one after the other (state stays).
        isa: Words of cpu.isa.
        graph: What is lowered in place of the file's own graph (after passes).
    """
    expected = tflm_outputs(data, *inputs)
    for label, lowered in lowered_each_way(graph or read_graph(data), isa):
        model = HostModel(lowered)
        for row in range(len(inputs[0])):
            got = model.run(*(array[row] for array in inputs))
            for i, (g, e) in enumerate(zip(got, expected[row], strict=True)):
                np.testing.assert_array_equal(
                    g.reshape(e.shape), e, err_msg=f"{label}, sample {row}, output {i}"
                )


def random_inputs(data: bytes, n: int = 4, seed: int = 0) -> list[np.ndarray]:
    """(n, ...) per input: noise over the whole range, then all lowest, all highest."""
    rng = np.random.default_rng(seed)
    graph = read_graph(data)
    arrays = []
    for index in graph.inputs:
        t = graph.tensors[index]
        if np.issubdtype(np.dtype(t.dtype), np.integer):
            limits = np.iinfo(t.dtype)
            a = rng.integers(limits.min, limits.max + 1, (n, *t.shape)).astype(t.dtype)
            a[-2], a[-1] = limits.min, limits.max
        else:
            a = rng.standard_normal((n, *t.shape)).astype(t.dtype)
        arrays.append(a)
    return arrays


__all__ = [
    "DSP_ISA", "SCALAR_ISA", "HostModel", "check_against_tflm", "library", "lowered_each_way",
    "random_inputs", "struct_fields", "tflm_outputs", "variants_of",
]  # fmt: skip
