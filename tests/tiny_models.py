"""Tiny model files, written with the official schema of LiteRT and the flatbuffers library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as S

Model = Any


def text(value: Any) -> str:
    """The schema's strings are bytes when read, and may be str when set."""
    return value.decode() if isinstance(value, bytes) else value or ""


class TfliteBuilder:
    """Collects tensors, operators and signatures of one subgraph."""

    def __init__(self) -> None:
        self.graph = S.SubGraphT(tensors=[], inputs=[], outputs=[], operators=[], name="main")
        self.model = S.ModelT(
            version=3, operatorCodes=[], subgraphs=[self.graph], buffers=[S.BufferT()]
        )

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str = "FLOAT32",
        *,
        data: np.ndarray | None = None,
        scale: Sequence[float] | float | None = None,
        zero_point: Sequence[int] | int = 0,
        axis: int = 0,
        is_variable: bool = False,
    ) -> int:
        tensor = S.TensorT(
            name=name, shape=list(shape), type=getattr(S.TensorType, dtype), buffer=0,
            isVariable=is_variable, hasRank=True,
        )  # fmt: skip
        if data is not None:
            tensor.buffer = len(self.model.buffers)
            self.model.buffers.append(S.BufferT(data=np.frombuffer(data.tobytes(), np.uint8)))
        if scale is not None:
            tensor.quantization = S.QuantizationParametersT(
                scale=np.atleast_1d(np.float32(scale)).tolist(),
                zeroPoint=np.atleast_1d(zero_point).tolist(),
                quantizedDimension=axis,
            )
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def op(
        self,
        kind: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: Any = None,
        version: int = 1,
    ) -> None:
        number = getattr(S.BuiltinOperator, kind)
        code = S.OperatorCodeT(
            builtinCode=number, deprecatedBuiltinCode=min(number, 127), version=version
        )
        self.model.operatorCodes.append(code)
        op = S.OperatorT(
            opcodeIndex=len(self.model.operatorCodes) - 1,
            inputs=list(inputs),
            outputs=list(outputs),
        )
        if options is not None:
            op.builtinOptions = options
            op.builtinOptionsType = getattr(S.BuiltinOptions, type(options).__name__[:-1])
        self.graph.operators.append(op)

    def signature(self, inputs: dict[str, int], outputs: dict[str, int]) -> None:
        def maps(names: dict[str, int]) -> list[Any]:
            return [S.TensorMapT(name=n, tensorIndex=i) for n, i in names.items()]

        self.model.signatureDefs = [
            S.SignatureDefT(
                inputs=maps(inputs), outputs=maps(outputs), signatureKey="serving_default"
            )
        ]

    def bytes(self) -> bytes:
        return pack(self.model)


def pack(model: Model) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def unpack(data: bytes) -> Model:
    return S.ModelT.InitFromObj(S.Model.GetRootAsModel(data, 0))


def edited(data: bytes, edit: Callable[[Model], None]) -> bytes:
    model = unpack(data)
    edit(model)
    return pack(model)


def fully_connected(n_in: int = 4, n_out: int = 3, seed: int = 0) -> bytes:
    """int8: y = clamp(W x + b), with scales that make it exact: no rounding takes place."""
    generator = np.random.default_rng(seed)
    build = TfliteBuilder()
    x = build.tensor("x", (1, n_in), "INT8", scale=1.0)
    weights = generator.integers(-2, 3, (n_out, n_in), np.int8)
    w = build.tensor("w", (n_out, n_in), "INT8", data=weights, scale=1.0)
    bias = generator.integers(-9, 9, n_out, np.int32)
    b = build.tensor("b", (n_out,), "INT32", data=bias, scale=1.0)
    y = build.tensor("y", (1, n_out), "INT8", scale=1.0)
    build.op("FULLY_CONNECTED", [x, w, b], [y], S.FullyConnectedOptionsT(keepNumDims=True), 4)
    build.graph.inputs, build.graph.outputs = [x], [y]
    return build.bytes()


def expected_fully_connected(x: np.ndarray, data: bytes) -> np.ndarray:
    """Plain integer arithmetic on the constants as the official schema reads them."""
    model = unpack(data)
    tensors = model.subgraphs[0].tensors
    n_out, n_in = (int(size) for size in tensors[1].shape)
    content = [bytes(model.buffers[tensors[i].buffer].data) for i in (1, 2)]
    weights = np.frombuffer(content[0], np.int8).reshape(n_out, n_in).astype(np.int64)
    sums = x.astype(np.int64) @ weights.T + np.frombuffer(content[1], np.int32)
    return np.clip(sums, -128, 127).astype(np.int8)


def add_float(n: int = 3, batch: int = 1) -> bytes:
    """Two inputs whose order shows: y = a + 0, z = a - b, and `a` itself as a third output."""
    build = TfliteBuilder()
    a, b = build.tensor("first", (batch, n)), build.tensor("second", (batch, n))
    y, z = build.tensor("sum", (batch, n)), build.tensor("difference", (batch, n))
    build.op("ADD", [a, b], [y], S.AddOptionsT())
    build.op("SUB", [a, b], [z], S.SubOptionsT())
    build.graph.inputs, build.graph.outputs = [a, b], [z, y, a]
    return build.bytes()


def float_dense(n: int) -> bytes:
    """One n x n float layer: 4 n^2 bytes of weights."""
    build = TfliteBuilder()
    x = build.tensor("x", (1, n))
    weights = np.random.default_rng(0).standard_normal((n, n)).astype(np.float32)
    w = build.tensor("w", (n, n), data=weights)
    y = build.tensor("y", (1, n))
    build.op("FULLY_CONNECTED", [x, w, -1], [y], S.FullyConnectedOptionsT())
    build.graph.inputs, build.graph.outputs = [x], [y]
    return build.bytes()


def stateful() -> bytes:
    """A float SVDF with memory 2: what it gives depends on the sample before."""
    build = TfliteBuilder()
    x = build.tensor("x", (1, 1))
    feature = build.tensor("feature", (1, 1), data=np.ones((1, 1), np.float32))
    time = build.tensor("time", (1, 2), data=np.array([[10, 1]], np.float32))
    state = build.tensor("state", (1, 2), is_variable=True)
    y = build.tensor("y", (1, 1))
    build.op("SVDF", [x, feature, time, -1, state], [y], S.SVDFOptionsT(rank=1))
    build.graph.inputs, build.graph.outputs = [x], [y]
    return build.bytes()


def with_outside_buffers(data: bytes) -> bytes:
    """The same model with its constants behind the flatbuffer, as large files have them."""
    model = unpack(data)
    contents = {i: bytes(b.data) for i, b in enumerate(model.buffers) if b.data is not None}
    for index, content in contents.items():
        model.buffers[index] = S.BufferT(offset=2, size=len(content))
    n_bytes = len(pack(model))  # the offsets have their place already, only the values follow
    position = n_bytes + (-n_bytes % 16)
    tail = b"\0" * (position - n_bytes)
    for index, content in contents.items():
        model.buffers[index].offset = n_bytes + len(tail)
        tail += content + b"\0" * (-len(content) % 16)
    packed = pack(model)
    assert len(packed) == n_bytes
    return packed + tail


def table(builder: flatbuffers.Builder, fields: Sequence[Any]) -> int:
    """Write a table: a field is None, an int (int32), ("u8", n), or ("ref", offset)."""
    builder.StartObject(len(fields))
    for slot, field in enumerate(fields):
        if isinstance(field, int):
            builder.PrependInt32Slot(slot, field, -(2**31))
        elif field is not None and field[0] == "u8":
            builder.PrependUint8Slot(slot, field[1], 255)
        elif field is not None:
            builder.PrependUOffsetTRelativeSlot(slot, field[1], 0)
    return builder.EndObject()


def tables(builder: flatbuffers.Builder, offsets: Sequence[int]) -> tuple[str, int]:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return "ref", builder.EndVector()


def tiny_pte(*, sizes: Sequence[int] = (1, 3), op_index: int = 0, value_index: int = 0) -> bytes:
    """A `.pte` with one input, one output, two kernel calls and one delegate call."""
    b = flatbuffers.Builder(256)

    def vector(values: Sequence[int], dtype: type) -> tuple[str, int]:
        return "ref", b.CreateNumpyVector(np.array(values, dtype))

    def string(value: str) -> tuple[str, int]:
        return "ref", b.CreateString(value)

    tensor_fields = [("u8", 6), None, vector(sizes, np.int32), vector(range(len(sizes)), np.uint8)]
    tensor = table(b, tensor_fields)
    values = [table(b, [("u8", 5), ("ref", tensor)]) for _ in range(2)]  # EValue, a Tensor
    arguments = vector([0, 0, 1], np.int32)
    kernel = table(b, [op_index, arguments])
    delegate = table(b, [0, arguments])
    calls = [(1, kernel), (2, delegate), (1, kernel)]
    instructions = [table(b, [("u8", kind), ("ref", call)]) for kind, call in calls]
    chain = table(b, [None, None, tables(b, instructions)])
    operator = table(b, [string("aten::add"), string("out")])
    backend = table(b, [string("XnnpackBackend")])
    plan = table(b, [
        string("forward"), None, tables(b, values), vector([value_index], np.int32),
        vector([1], np.int32), tables(b, [chain]), tables(b, [operator]), tables(b, [backend]),
        vector([0, 4096, 128], np.int64),
    ])  # fmt: skip
    b.Finish(table(b, [0, tables(b, [plan])]), b"ET12")
    return bytes(b.Output())
