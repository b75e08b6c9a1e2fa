"""Reading .tflite files. The oracle is the official schema module of ai-edge-litert."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as S

from edgeshrink.errors import ModelError
from edgeshrink.flatbuffer import SCALARS, Field, parse_schema, read_flatbuffer
from edgeshrink.graph_reader import pack_inline, read_graph, read_graph_file, strip_names
from edgeshrink.tflite_schema import DTYPES, OPERATORS, SCHEMA
from tests import tiny_models

SPELLED_OTHERWISE = {"fused_activation_function": "activation"}


def enum_members(enum: type) -> dict[str, int]:
    return {k: v for k, v in vars(enum).items() if isinstance(v, int) and not k.startswith("_")}


def snake(name: str) -> str:
    out = "".join("_" + c.lower() if c.isupper() else c for c in name)
    return SPELLED_OTHERWISE.get(out, out)


# The schema as data


@pytest.mark.parametrize("name", SCHEMA.enums)
def test_every_enum_is_the_official_one(name: str) -> None:
    assert dict(zip(SCHEMA.enums[name], range(999), strict=False)) == enum_members(getattr(S, name))


@pytest.mark.parametrize("name", SCHEMA.unions)
def test_every_union_is_the_official_one(name: str) -> None:
    official = enum_members(getattr(S, name))
    assert {member: i for i, member in enumerate(SCHEMA.unions[name])} == official


def test_every_operator_and_dtype_of_the_official_schema_is_known() -> None:
    assert list(OPERATORS) == list(enum_members(S.BuiltinOperator))
    assert set(DTYPES) == set(enum_members(S.TensorType))


class Filler:
    """Fills a table of the official schema with random values, and says what must be read."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def table(self, name: str, depth: int = 0) -> tuple[Any, dict[str, Any]]:
        official = getattr(S, name + "T")()
        attributes = {snake(a): a for a in vars(official)}
        expected: dict[str, Any] = {}
        union_types = set()
        for field in SCHEMA.tables[name]:
            value, read = self.value(field, depth)
            setattr(official, attributes[field.name], value)
            expected[field.name] = read
            if field.type_name in SCHEMA.unions:
                union_types.add(field.name + "_type")
                number = SCHEMA.unions[field.type_name].index(read[0]) if read else 0
                setattr(official, attributes[field.name + "_type"], number)
        unknown = set(attributes) - set(expected) - union_types
        assert not unknown, f"{name} has further fields: {unknown}"
        return official, expected

    def value(self, field: Field, depth: int) -> tuple[Any, Any]:
        kind = field.type_name
        if kind in SCHEMA.unions:
            member = str(self.generator.choice(SCHEMA.unions[kind][1:]))
            official, expected = self.table(member, depth + 1)
            return official, (member, expected)
        count = int(self.generator.integers(1, 4)) if field.is_vector else 1
        pairs = [self.single(kind, depth) for _ in range(count)]
        if not field.is_vector:
            return pairs[0]
        official, expected = [p[0] for p in pairs], [p[1] for p in pairs]
        return official, tuple(expected) if kind in SCHEMA.enums else expected

    def single(self, kind: str, depth: int) -> tuple[Any, Any]:
        if kind in SCHEMA.enums:
            number = int(self.generator.integers(len(SCHEMA.enums[kind])))
            return number, SCHEMA.enums[kind][number]
        if kind == "bool":
            value = bool(self.generator.integers(2))
            return value, value
        if kind in ("f32", "f64"):
            number = float(np.float32(self.generator.standard_normal()))
            return number, number
        if kind in SCALARS:
            limits = np.iinfo(
                kind.replace("u", "uint").replace("i", "int").replace("uintnt", "uint")
            )
            integer = int(self.generator.integers(limits.min, limits.max, dtype=limits.dtype))
            return integer, integer
        if kind == "str":
            word = f"word{self.generator.integers(1000)}"
            return word, word
        return self.table(kind, depth + 1)


def plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(plain(v) for v in value)
    return [plain(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", SCHEMA.tables)
def test_every_field_of_every_table_is_read_as_the_official_writer_wrote_it(name: str) -> None:
    for seed in range(3):
        official, expected = Filler(seed).table(name)
        builder = flatbuffers.Builder(256)
        builder.Finish(official.Pack(builder), b"TFL3")
        assert plain(read_flatbuffer(bytes(builder.Output()), SCHEMA, name, b"TFL3")) == expected


@pytest.mark.parametrize("name", SCHEMA.tables)
def test_absent_fields_have_the_official_defaults(name: str) -> None:
    official = getattr(S, name + "T")()
    builder = flatbuffers.Builder(256)
    builder.Finish(official.Pack(builder), b"TFL3")
    read = read_flatbuffer(bytes(builder.Output()), SCHEMA, name, b"TFL3")
    defaults = {snake(a): v for a, v in vars(official).items()}
    for field in SCHEMA.tables[name]:
        value = defaults[field.name]
        if field.type_name in SCHEMA.enums and not field.is_vector:
            value = SCHEMA.enums[field.type_name][value]
        assert read[field.name] == value, field.name


def test_a_malformed_schema_is_refused() -> None:
    with pytest.raises(ValueError, match="struct Thing"):
        parse_schema("struct Thing  a:i32")


# Reading


def test_a_small_graph_is_read_completely() -> None:
    graph = read_graph(tiny_models.fully_connected())
    (op,) = graph.ops
    assert (op.kind, op.version, op.inputs, op.outputs) == ("FULLY_CONNECTED", 4, (0, 1, 2), (3,))
    assert op.options["activation"] == "NONE"
    assert op.options["keep_num_dims"] is True
    assert [t.shape for t in graph.tensors] == [(1, 4), (3, 4), (3,), (1, 3)]
    assert [t.dtype for t in graph.tensors] == ["int8", "int8", "int32", "int8"]
    assert [t.data is not None for t in graph.tensors] == [False, True, True, False]
    assert graph.inputs == (0,)
    assert graph.outputs == (3,)
    assert graph.input_names == ("x",)


def test_constants_are_read_only_views_of_the_file() -> None:
    data = tiny_models.fully_connected()
    weights = read_graph(data).tensors[1].data
    assert weights is not None
    assert weights.shape == (3, 4)
    assert not weights.flags.writeable
    assert np.shares_memory(weights, np.frombuffer(data, np.uint8))


def test_quantization_per_channel_keeps_scales_zero_points_and_axis() -> None:
    build = tiny_models.TfliteBuilder()
    x = build.tensor("x", (1, 2, 3), "INT8", scale=[0.5, 0.25, 2], zero_point=[0, 0, 0], axis=2)
    build.graph.inputs = build.graph.outputs = [x]
    quantization = read_graph(build.bytes()).tensors[0].quantization
    assert quantization is not None
    assert quantization.axis == 2
    np.testing.assert_array_equal(quantization.scales, np.float32([0.5, 0.25, 2]))
    np.testing.assert_array_equal(quantization.zero_points, [0, 0, 0])


def test_one_zero_point_serves_all_channels() -> None:
    build = tiny_models.TfliteBuilder()
    x = build.tensor("x", (3, 2), "INT8", scale=[0.5, 0.25, 2], zero_point=[7])
    build.graph.inputs = build.graph.outputs = [x]
    quantization = read_graph(build.bytes()).tensors[0].quantization
    assert quantization is not None
    np.testing.assert_array_equal(quantization.zero_points, [7, 7, 7])


@pytest.mark.parametrize(("old", "new"), [(9, 0), (0, 9), (9, 9), (127, 150)])
def test_operator_number_is_the_larger_of_both_fields(old: int, new: int) -> None:
    def edit(model: Any) -> None:
        model.operatorCodes[0].deprecatedBuiltinCode = old
        model.operatorCodes[0].builtinCode = new

    graph = read_graph(tiny_models.edited(tiny_models.fully_connected(), edit))
    assert graph.ops[0].kind == OPERATORS[max(old, new)]


def test_custom_operators_keep_their_name_and_bytes() -> None:
    def edit(model: Any) -> None:
        model.operatorCodes[0].builtinCode = S.BuiltinOperator.CUSTOM
        model.operatorCodes[0].deprecatedBuiltinCode = S.BuiltinOperator.CUSTOM
        model.operatorCodes[0].customCode = "MyOp"
        model.subgraphs[0].operators[0].customOptions = [1, 2, 3]

    (op,) = read_graph(tiny_models.edited(tiny_models.fully_connected(), edit)).ops
    assert (op.kind, op.is_custom, op.options["custom"]) == ("MyOp", True, b"\1\2\3")


def test_a_missing_option_names_the_operator() -> None:
    (op,) = read_graph(tiny_models.fully_connected()).ops
    with pytest.raises(ModelError, match=r"operators\[0\] \(FULLY_CONNECTED\).*stride_w"):
        op.options["stride_w"]


def test_buffers_behind_the_flatbuffer_are_read() -> None:
    data = tiny_models.fully_connected()
    inside, outside = read_graph(data), read_graph(tiny_models.with_outside_buffers(data))
    for a, b in zip(inside.tensors, outside.tensors, strict=True):
        np.testing.assert_array_equal(a.data, b.data)


def test_names_come_from_the_signature_in_the_order_of_the_function() -> None:
    build = tiny_models.TfliteBuilder()
    ids = [build.tensor(f"inner_{i}", (1,)) for i in range(12)]
    build.graph.inputs = ids
    build.graph.outputs = [*reversed(ids), ids[3]]
    names = {f"args_{i}": i for i in ids}
    results = {f"output_{k}": i for k, i in enumerate(build.graph.outputs)}
    build.signature(dict(sorted(names.items())), dict(sorted(results.items())))
    graph = read_graph(build.bytes())
    assert graph.input_names == tuple(f"args_{i}" for i in range(12))
    assert graph.output_names == tuple(f"output_{k}" for k in range(13))
    assert graph.outputs == (*reversed(ids), ids[3])


@pytest.mark.parametrize(("dtype", "n_bytes"), [("INT4", 3), ("UINT4", 3), ("INT2", 2)])
def test_packed_types_stay_packed(dtype: str, n_bytes: int) -> None:
    build = tiny_models.TfliteBuilder()
    packed = np.arange(n_bytes, dtype=np.uint8)
    build.tensor("w", (5,), dtype, data=packed)
    (tensor,) = read_graph(build.bytes()).tensors
    assert tensor.dtype == dtype.lower()
    np.testing.assert_array_equal(tensor.data, packed)


@pytest.mark.parametrize("dtype", ["FLOAT16", "INT64", "BOOL", "UINT32", "FLOAT64", "COMPLEX64"])
def test_numpy_types_keep_their_values(dtype: str) -> None:
    values = np.array([[0, 1], [1, 0]]).astype(dtype.lower())
    build = tiny_models.TfliteBuilder()
    build.tensor("w", (2, 2), dtype, data=values)
    np.testing.assert_array_equal(read_graph(build.bytes()).tensors[0].data, values)


def test_an_empty_constant_is_a_constant() -> None:
    build = tiny_models.TfliteBuilder()
    build.tensor("axes", (0,), "INT32")
    assert read_graph(build.bytes()).tensors[0].data is not None


def test_variables_are_marked_and_may_be_read_before_they_are_written() -> None:
    graph = read_graph(tiny_models.stateful())
    assert [t.name for t in graph.tensors if t.is_variable] == ["state"]


def test_further_subgraphs_are_read_too() -> None:
    def edit(model: Any) -> None:
        model.subgraphs.append(tiny_models.unpack(tiny_models.add_float()).subgraphs[0])
        for op in model.subgraphs[1].operators:
            op.opcodeIndex = 0

    graph = read_graph(tiny_models.edited(tiny_models.fully_connected(), edit))
    assert len(graph.subgraphs) == 1
    assert len(graph.subgraphs[0].ops) == 2
    assert graph.subgraphs[0].inputs == (0, 1)


# What is refused


def refused(edit: Any, match: str) -> None:
    data = tiny_models.edited(tiny_models.fully_connected(), edit)
    with pytest.raises(ModelError, match=match) as caught:
        read_graph(data, name="my.tflite")
    assert caught.value.where.startswith("my.tflite")
    assert caught.value.fix


def test_sparse_tensors_are_refused_by_name() -> None:
    def edit(model: Any) -> None:
        model.subgraphs[0].tensors[1].sparsity = S.SparsityParametersT(traversalOrder=[0, 1])

    refused(edit, r"tensors\[1\] \('w'\): is stored sparse")


def test_tensors_in_other_files_are_refused() -> None:
    def edit(model: Any) -> None:
        model.subgraphs[0].tensors[1].externalBuffer = 1

    refused(edit, "another file")


def test_blockwise_quantization_is_refused() -> None:
    def edit(model: Any) -> None:
        quantization = model.subgraphs[0].tensors[1].quantization
        quantization.detailsType = S.QuantizationDetails.BlockwiseQuantization
        quantization.details = S.BlockwiseQuantizationT(blockSize=32)

    refused(edit, "BlockwiseQuantization")


def set_tensor(index: int, **values: Any) -> Any:
    def edit(model: Any) -> None:
        for key, value in values.items():
            setattr(model.subgraphs[0].tensors[index], key, value)

    return edit


def set_op(**values: Any) -> Any:
    def edit(model: Any) -> None:
        for key, value in values.items():
            setattr(model.subgraphs[0].operators[0], key, value)

    return edit


def set_scale(scale: list[float], zero_point: list[int]) -> Any:
    def edit(model: Any) -> None:
        quantization = model.subgraphs[0].tensors[1].quantization
        quantization.scale, quantization.zeroPoint = scale, zero_point

    return edit


def set_code(**values: Any) -> Any:
    def edit(model: Any) -> None:
        for key, value in values.items():
            setattr(model.operatorCodes[0], key, value)

    return edit


def set_graph(**values: Any) -> Any:
    def edit(model: Any) -> None:
        for key, value in values.items():
            setattr(model.subgraphs[0], key, value)

    return edit


def set_signature(**values: Any) -> Any:
    def edit(model: Any) -> None:
        entry = S.TensorMapT(name="x", tensorIndex=values.pop("tensor", 0))
        model.signatureDefs = [S.SignatureDefT(inputs=[entry], **values)]

    return edit


def call_itself(model: Any) -> None:
    model.operatorCodes[0].builtinCode = S.BuiltinOperator.CALL_ONCE
    model.operatorCodes[0].deprecatedBuiltinCode = 127
    op = model.subgraphs[0].operators[0]
    op.builtinOptions, op.builtinOptionsType = (
        S.CallOnceOptionsT(0),
        S.BuiltinOptions.CallOnceOptions,
    )


FAULTS = {
    "tensor of a buffer that is not there": (set_tensor(1, buffer=9), r"buffer: is buffer 9"),
    "negative dimension": (set_tensor(0, shape=[1, -4]), r"shape \(1, -4\)"),
    "huge shape": (set_tensor(0, shape=[2**31 - 1] * 4), "4 GiB"),
    "shape that overflows 64 bits": (set_tensor(0, shape=[2**31 - 1] * 40), "4 GiB"),
    "constant of the wrong size": (set_tensor(1, shape=[3, 5]), "12 bytes of data"),
    "operator reads a tensor that is not there": (set_op(inputs=[0, 1, 9]), "tensor 9"),
    "operator input below -1": (set_op(inputs=[0, 1, -2]), "tensor -2"),
    "operator writes a tensor that is not there": (set_op(outputs=[4]), "tensor 4"),
    "operator writes nothing at all": (set_op(outputs=[]), "nothing computes"),
    "operator writes -1": (set_op(outputs=[-1]), "tensor -1"),
    "operator writes a constant": (set_op(outputs=[1]), "has its value already"),
    "operator writes its input": (set_op(outputs=[0]), "has its value already"),
    "operator reads its own output": (set_op(inputs=[3, 1, 2]), "nothing computed before"),
    "operator code that is not there": (set_op(opcodeIndex=1), "opcode_index"),
    "operator newer than the reader": (set_code(builtinCode=len(OPERATORS)), "newer"),
    "negative operator": (set_code(builtinCode=-1, deprecatedBuiltinCode=-1), "operator -1"),
    "custom operator without a name": (
        set_code(builtinCode=32, deprecatedBuiltinCode=32), "without a name",
    ),
    "input that is not there": (set_graph(inputs=[7]), "inputs: names tensor 7"),
    "negative input": (set_graph(inputs=[-1]), "tensor -1"),
    "output that is not there": (set_graph(outputs=[7]), "outputs: names tensor 7"),
    "no tensors": (set_graph(tensors=[]), "has 0"),
    "scale of zero": (set_scale([0.0], [0]), "positive"),
    "negative scale": (set_scale([-1.0], [0]), "positive"),
    "scale that is no number": (set_scale([float("nan")], [0]), "positive"),
    "infinite scale": (set_scale([float("inf")], [0]), "positive"),
    "zero point out of range": (set_scale([1.0], [128]), "zero point"),
    "more scales than channels": (set_scale([1.0] * 4, [0] * 4), "4 scales along axis 0"),
    "zero points that don't fit the scales": (set_scale([1.0] * 3, [0, 0]), "2 zero points"),
    "signature of a tensor that is not there": (
        set_signature(subgraphIndex=0, tensor=9), r"inputs\[0\]: names tensor 9",
    ),
    "signature of a subgraph that is not there": (set_signature(subgraphIndex=1), "subgraph_index"),
    "subgraph that calls itself": (call_itself, "calls itself"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_refused_with_its_place(fault: str) -> None:
    refused(*FAULTS[fault])


def test_a_call_of_a_missing_subgraph_is_refused() -> None:
    def edit(model: Any) -> None:
        call_itself(model)
        model.subgraphs[0].operators[0].builtinOptions.initSubgraphIndex = 3

    refused(edit, "calls a subgraph that is not there")


def test_an_older_schema_version_is_refused() -> None:
    def edit(model: Any) -> None:
        model.version = 2

    refused(edit, "schema version 2")


def test_a_file_without_subgraphs_is_refused() -> None:
    def edit(model: Any) -> None:
        model.subgraphs = []

    refused(edit, "no subgraph")


# Files


def test_a_missing_file_a_folder_and_a_device_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.tflite", tmp_path, Path("/dev/zero")):
        with pytest.raises(ModelError) as caught:
            read_graph_file(path)
        assert caught.value.where == str(path)


def test_a_path_with_spaces_and_other_letters_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mein Mödell 模型.tflite"
    path.write_bytes(tiny_models.add_float())
    assert len(read_graph_file(path).ops) == 2


def test_reading_needs_numpy_alone() -> None:
    code = (
        "import sys, edgeshrink.graph_reader, edgeshrink.runtimes\n"
        "heavy = {'torch', 'ai_edge_litert', 'flatbuffers', 'executorch', 'tflite_micro'}\n"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# Rewriting


def alignment(data: bytes) -> int:
    """Largest power of two, up to 16, that divides the place of every inline buffer."""
    root, base, worst = S.Model.GetRootAsModel(data, 0), np.frombuffer(data, np.uint8), 16
    for index in range(root.BuffersLength()):
        buffer = root.Buffers(index)
        if buffer.DataLength():
            place = buffer.DataAsNumpy().ctypes.data - base.ctypes.data
            while place % worst:
                worst //= 2
    return worst


def test_pack_inline_leaves_a_file_without_outside_buffers_alone() -> None:
    data = tiny_models.fully_connected()
    assert pack_inline(data) is data


def test_pack_inline_moves_every_buffer_inside_and_aligns_it_to_16_bytes() -> None:
    data = tiny_models.fully_connected(5, 3)
    packed = pack_inline(tiny_models.with_outside_buffers(data))
    assert all(buffer.offset == 0 for buffer in tiny_models.unpack(packed).buffers)
    assert alignment(packed) == 16
    for a, b in zip(read_graph(data).tensors, read_graph(packed).tensors, strict=True):
        np.testing.assert_array_equal(a.data, b.data)
        assert (a.name, a.shape, a.dtype) == (b.name, b.shape, b.dtype)


def test_pack_inline_moves_large_custom_options_inside() -> None:
    def edit(model: Any) -> None:
        model.operatorCodes[0].builtinCode = S.BuiltinOperator.CUSTOM
        model.operatorCodes[0].deprecatedBuiltinCode = S.BuiltinOperator.CUSTOM
        model.operatorCodes[0].customCode = "MyOp"
        model.subgraphs[0].operators[0].largeCustomOptionsOffset = 2
        model.subgraphs[0].operators[0].largeCustomOptionsSize = 4

    data = tiny_models.edited(tiny_models.fully_connected(), edit)

    def point(model: Any) -> None:
        model.subgraphs[0].operators[0].largeCustomOptionsOffset = len(data)

    packed = pack_inline(tiny_models.edited(data, point) + b"abcd")
    assert read_graph(packed).ops[0].options["custom"] == b"abcd"


def test_strip_names_keeps_those_of_inputs_and_outputs_and_everything_else() -> None:
    data = tiny_models.fully_connected()
    before, after = read_graph(data), read_graph(strip_names(data))
    assert [t.name for t in after.tensors] == ["x", "", "", "y"]
    for a, b in zip(before.tensors, after.tensors, strict=True):
        np.testing.assert_array_equal(a.data, b.data)
    assert [(o.kind, o.inputs, o.options) for o in before.ops] == [
        (o.kind, o.inputs, o.options) for o in after.ops
    ]


def test_rewriting_gives_the_same_bytes_every_time() -> None:
    data = tiny_models.with_outside_buffers(tiny_models.fully_connected())
    assert pack_inline(data) == pack_inline(data)
    assert strip_names(data) == strip_names(data)


# Published models


def published() -> list[str]:
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "models"
    return sorted(path.name for path in folder.glob("*.tflite")) or ["none"]


@pytest.mark.shared
@pytest.mark.parametrize("file", published())
def test_published_models_have_the_operators_their_list_says(file: str, shared_dir: Path) -> None:
    with (shared_dir / "models" / "README.csv").open(encoding="utf-8") as lines:
        row = next(row for row in csv.DictReader(lines) if row["file"] == file)
    stated = dict(entry.strip().split("*") for entry in row["ops"].split(";"))
    graph = read_graph_file(shared_dir / "models" / file)
    assert Counter(op.kind for op in graph.ops) == {k: int(v) for k, v in stated.items()}
    for stated_io, index in ((row["inputs"], graph.inputs[0]), (row["outputs"], graph.outputs[0])):
        shape, dtype = stated_io.split()[:2]
        tensor = graph.tensors[index]
        assert "x".join(map(str, tensor.shape)) == shape
        assert tensor.dtype == dtype.lower()


@pytest.mark.shared
@pytest.mark.parametrize("file", published())
def test_published_models_are_read_as_the_official_reader_reads_them(
    file: str, shared_dir: Path
) -> None:
    data = (shared_dir / "models" / file).read_bytes()
    start = time.perf_counter()
    graph = read_graph(data)
    assert time.perf_counter() - start < 1.0
    model = tiny_models.unpack(data)
    official = model.subgraphs[0]
    for tensor, other in zip(graph.tensors, official.tensors, strict=True):
        assert tensor.name == tiny_models.text(other.name)
        assert tensor.shape == tuple([] if other.shape is None else other.shape)
        content = model.buffers[other.buffer].data
        if content is not None and len(content):
            assert tensor.data is not None
            assert tensor.data.tobytes() == bytes(content)
        if other.quantization is not None and other.quantization.scale is not None:
            assert tensor.quantization is not None
            np.testing.assert_array_equal(tensor.quantization.scales, other.quantization.scale)
            np.testing.assert_array_equal(
                tensor.quantization.zero_points, other.quantization.zeroPoint
            )
    for op, other in zip(graph.ops, official.operators, strict=True):
        assert op.inputs == tuple(other.inputs)
        assert op.outputs == tuple(other.outputs)
        for name, value in vars(other.builtinOptions or object).items() if op.options else ():
            read = op.options[snake(name)]
            if isinstance(read, str):
                assert value == next(
                    names.index(read) for names in SCHEMA.enums.values() if read in names
                )
            else:
                assert plain(read) == (tuple(value) if isinstance(value, np.ndarray) else value)
