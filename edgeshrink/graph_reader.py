"""Read the `Graph` of a `.tflite` nobody vouches for; move its buffers inside; drop its names.

Reading needs numpy alone, rewriting the [build] extra. Time and memory are bounded by the size of
the file, whatever it says, and every fault is a `ModelError`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from graphlib import CycleError, TopologicalSorter
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeshrink.errors import ModelError, ToolchainError
from edgeshrink.flatbuffer import FlatbufferError, read_flatbuffer
from edgeshrink.graph import Graph, Op, Quantization, Tensor
from edgeshrink.tflite_schema import DTYPES, IDENTIFIER, NUMPY_DTYPES, OPERATORS, SCHEMA, VERSION

MAX_FILE_BYTES: Final = 2**31  # what offsets inside a flatbuffer can reach
MAX_TENSOR_BYTES: Final = 2**32  # far beyond any device this is for
ZERO_POINT_RANGES: Final = {
    "int4": (-8, 7), "int8": (-128, 127), "uint8": (0, 255), "int16": (-(2**15), 2**15 - 1),
}  # fmt: skip
DAMAGED: Final = "the file is damaged, or not a .tflite: export or download it again"


class OpOptions(dict[str, Any]):
    """The options of one operator; a missing one is a ModelError that names the operator."""

    def __init__(self, values: dict[str, Any], place: str) -> None:
        super().__init__(values)
        self.place = place

    def __missing__(self, key: str) -> Any:
        raise ModelError(self.place, f"the file states no {key!r}", DAMAGED)


def read_graph_file(path: Path) -> Graph:
    """Return the graph of the `.tflite` at `path`; see `read_graph`."""
    return read_graph(read_model_bytes(path), name=str(path))


def read_model_bytes(path: Path) -> bytes:
    """Return the bytes of the model file at `path`; ModelError if they can't be had."""
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist, or is no regular file"
            raise ModelError(str(path), what, "name a model file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ModelError(
                str(path), "is larger than 2 GiB", "no small device holds such a model"
            )
        return path.read_bytes()
    except OSError as err:
        raise ModelError(str(path), f"can't be read: {err.strerror}", "check the file") from err


def read_graph(data: bytes, *, name: str = "model.tflite") -> Graph:
    """Return the graph of a `.tflite`: the first subgraph, the others in its `subgraphs`.

    Inputs and outputs stand in the order of the original function (that of the subgraph; a
    signature is sorted by name), and have their names from the signature where there is one.
    Constants are read-only views on `data`: with the tensor's shape where numpy has its type,
    else flat bytes as stored (int4 packed, bfloat16, strings).

    Op options have TFLite's names in snake case, enums are strings; the fused activation is
    `activation` ("NONE", "RELU", "RELU6", ...). A custom operator has the one option `custom`,
    its bytes.

    Args:
        data: The file. Buffers may lie inside the flatbuffer or behind it (`Buffer.offset`).
        name: What to call the file in errors.

    Raises:
        ModelError: The file is damaged (the error names the part), or has sparse or externally
            stored tensors, blockwise quantization, or operators newer than this reader.
    """
    return _graph_of(_read_model(data, name), data, name)


def min_runtime_version(data: bytes, *, name: str = "model.tflite") -> str | None:
    """Return the oldest runtime that its writer says a `.tflite` needs; None if it does not say.

    The number is TensorFlow's, which tflite-runtime shares.

    Raises:
        ModelError: The file is damaged.
    """
    model = _read_model(data, name)
    for entry in model["metadata"] or ():
        if entry["name"] == "min_runtime_version" and 0 <= entry["buffer"] < len(model["buffers"]):
            content = _content(model["buffers"][entry["buffer"]], data)
            text = b"" if content is None else bytes(content[:32]).split(b"\0")[0]
            if re.fullmatch(rb"\d{1,4}(\.\d{1,4}){1,3}", text):
                return text.decode()
    return None


def pack_inline(data: bytes, *, name: str = "model.tflite") -> bytes:
    """Return the same model with every buffer inside the flatbuffer, aligned to 16 bytes.

    Large files keep their constants behind the flatbuffer, where TensorFlow Lite Micro does not
    find them and says nothing. A file without such buffers is returned unchanged.

    Raises:
        ModelError: `data` is not a sound `.tflite`.
        ToolchainError: The [build] extra is missing.
    """
    model = _read_model(data, name)
    outside = [
        op for graph in model["subgraphs"] for op in graph["operators"] or ()
        if op["large_custom_options_offset"] > 1
    ]  # fmt: skip
    if not outside and all(buffer["offset"] <= 1 for buffer in model["buffers"]):
        return data
    return _rewrite(data, lambda model: None)


def strip_names(data: bytes, *, name: str = "model.tflite") -> bytes:
    """Return the same model without tensor names, but for those of inputs and outputs.

    Buffers are inside the flatbuffer afterwards, aligned to 16 bytes. Raises as `pack_inline`.
    """
    _read_model(data, name)

    def drop(model: Any) -> None:
        for graph in model.subgraphs:
            kept = {*map(int, graph.inputs), *map(int, graph.outputs)}
            for index, tensor in enumerate(graph.tensors):
                if index not in kept:
                    tensor.name = None

    return _rewrite(data, drop)


def _rewrite(data: bytes, edit: Callable[[Any], None]) -> bytes:
    """Return `data`, which is known to be sound, unpacked, edited and packed again."""
    try:
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as err:
        raise ToolchainError(
            "ai-edge-litert", "is not installed", "python -m pip install 'edgeshrink[build]'"
        ) from err

    class AlignedBuffer(schema.BufferT):  # type: ignore[misc]
        """Packs as the schema demands (`force_align: 16`); the generated code aligns to 4."""

        def Pack(self, builder: Any) -> int:  # noqa: N802
            builder.StartVector(1, len(self.data), 16)
            builder.head -= len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = bytes(self.data)
            at = builder.EndVector()
            schema.BufferStart(builder)
            schema.BufferAddData(builder, at)
            return int(schema.BufferEnd(builder))

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))
    for graph in model.subgraphs:
        for op in graph.operators or ():
            if op.largeCustomOptionsOffset > 1:
                first, size = op.largeCustomOptionsOffset, op.largeCustomOptionsSize
                op.customOptions = np.frombuffer(data, np.uint8, size, first)
                op.largeCustomOptionsOffset = op.largeCustomOptionsSize = 0
    for index, buffer in enumerate(model.buffers):
        content = buffer.data
        if buffer.offset > 1:
            content = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
        if content is not None and len(content):
            model.buffers[index] = AlignedBuffer(data=content)
        buffer.offset = buffer.size = 0
    edit(model)
    builder = flatbuffers.Builder(len(data))
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


@contextmanager
def _faults_in(place: str) -> Iterator[None]:
    """Turn faults of the bytes into ModelErrors that name `place`."""
    try:
        yield
    except FlatbufferError as err:
        raise ModelError(f"{place}: {err.path}", err.fault, DAMAGED) from err


def _fault(place: str, what: str) -> ModelError:
    return ModelError(place, what, DAMAGED)


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _read_model(data: bytes, name: str) -> dict[str, Any]:
    """Return the tables of the file, each offset and index in them checked."""
    if not data:
        raise _fault(name, "is empty")
    with _faults_in(name):
        model = read_flatbuffer(data, SCHEMA, "Model", IDENTIFIER)
    if model["version"] != VERSION:
        raise _fault(name, f"has schema version {model['version']}, {VERSION} is supported")
    if not model["subgraphs"]:
        raise _fault(name, "has no subgraph")
    model["buffers"] = model["buffers"] or []
    for index, buffer in enumerate(model["buffers"]):
        _check_span(buffer["offset"], buffer["size"], data, f"{name}: buffers[{index}]")
    for number, graph in enumerate(model["subgraphs"]):
        _check_subgraph(graph, model, data, f"{name}: subgraphs[{number}]")
    for number, signature in enumerate(model["signature_defs"] or ()):
        _check_signature(signature, model, f"{name}: signature_defs[{number}]")
    _check_calls(model, name)
    return model


def _check_span(first: int, size: int, data: bytes, place: str) -> None:
    if first > 1 and first + size > len(data):
        raise _fault(place, f"lies at bytes {first} to {first + size} of {len(data)}")


def _check_subgraph(graph: dict[str, Any], model: dict[str, Any], data: bytes, place: str) -> None:
    graph["tensors"] = graph["tensors"] or []
    graph["operators"] = graph["operators"] or []
    for key in ("inputs", "outputs"):
        graph[key] = _indices(graph[key], graph, f"{place}.{key}")
    for index, tensor in enumerate(graph["tensors"]):
        if tensor["buffer"] >= max(1, len(model["buffers"])):
            what = f"is buffer {tensor['buffer']}, the file has {len(model['buffers'])}"
            raise _fault(f"{place}.tensors[{index}].buffer", what)
    for index, op in enumerate(graph["operators"]):
        at = f"{place}.operators[{index}]"
        if op["opcode_index"] >= len(model["operator_codes"] or ()):
            raise _fault(f"{at}.opcode_index", f"is {op['opcode_index']}, beyond the last")
        op["inputs"] = _indices(op["inputs"], graph, f"{at}.inputs", lowest=-1)
        op["outputs"] = _indices(op["outputs"], graph, f"{at}.outputs")
        _check_span(op["large_custom_options_offset"], op["large_custom_options_size"], data, at)


def _indices(
    values: npt.NDArray[np.int32] | None, graph: dict[str, Any], place: str, lowest: int = 0
) -> tuple[int, ...]:
    """Return tensor indices as a tuple; below 0 only -1 and only where `lowest` is."""
    indices: tuple[int, ...] = () if values is None else tuple(values.tolist())
    for value in indices:
        if not lowest <= value < len(graph["tensors"]):
            what = f"names tensor {value}, the subgraph has {len(graph['tensors'])}"
            raise _fault(place, what)
    return indices


def _check_signature(signature: dict[str, Any], model: dict[str, Any], place: str) -> None:
    if signature["subgraph_index"] >= len(model["subgraphs"]):
        raise _fault(f"{place}.subgraph_index", f"is {signature['subgraph_index']}")
    n_tensors = len(model["subgraphs"][signature["subgraph_index"]]["tensors"])
    for key in ("inputs", "outputs"):
        for index, entry in enumerate(signature[key] or ()):
            if entry["tensor_index"] >= n_tensors:
                what = f"names tensor {entry['tensor_index']}, the subgraph has {n_tensors}"
                raise _fault(f"{place}.{key}[{index}]", what)


def _check_calls(model: dict[str, Any], name: str) -> None:
    """Refuse calls of subgraphs that do not exist, and subgraphs that end up calling themselves."""
    n_graphs, calls = len(model["subgraphs"]), []
    for number, graph in enumerate(model["subgraphs"]):
        called: set[int] = set()
        for index, op in enumerate(graph["operators"]):
            for key, value in _options_of(op).items():
                if key == "subgraph" or key.endswith(("subgraph_index", "subgraph_indices")):
                    called.update([value] if isinstance(value, int) else value or ())
            if any(not -1 <= target < n_graphs for target in called):
                place = f"{name}: subgraphs[{number}].operators[{index}]"
                raise _fault(place, f"calls a subgraph that is not there, of {n_graphs}")
        calls.append(called - {-1})
    try:
        TopologicalSorter(dict(enumerate(calls))).prepare()
    except CycleError as err:
        raise _fault(name, "has a subgraph that calls itself") from err


def _options_of(op: dict[str, Any]) -> dict[str, Any]:
    chosen: tuple[str, dict[str, Any]] | None = op["builtin_options"] or op["builtin_options2"]
    if chosen is None:
        return {}
    return {k: _plain(v) for k, v in chosen[1].items()}


def _plain(value: Any) -> Any:
    return tuple(value.tolist()) if isinstance(value, np.ndarray) else value


def _graph_of(model: dict[str, Any], data: bytes, name: str) -> Graph:
    contents = [_content(buffer, data) for buffer in model["buffers"]] or [None]
    kinds = [
        _kind(code, f"{name}: operator_codes[{index}]")
        for index, code in enumerate(model["operator_codes"] or ())
    ]
    signatures = {s["subgraph_index"]: s for s in reversed(model["signature_defs"] or ())}
    graphs = [
        _subgraph(
            table, signatures.get(number, {}), contents, kinds, f"{name}: subgraphs[{number}]"
        )
        for number, table in enumerate(model["subgraphs"])
    ]
    first = vars(graphs[0]) | {"subgraphs": tuple(graphs[1:])}
    return Graph(**first)


def _content(buffer: dict[str, Any], data: bytes) -> npt.NDArray[np.uint8] | None:
    if buffer["offset"] > 1:
        return np.frombuffer(data, np.uint8, buffer["size"], buffer["offset"])
    content: npt.NDArray[np.uint8] | None = buffer["data"]
    return None if content is None or not content.size else content


def _kind(code: dict[str, Any], place: str) -> tuple[str, int, bool]:
    """Return an operator code's kind, version, and whether it is a custom operator."""
    # Old writers fill only the 8-bit field, newer ones may fill only the 32-bit one.
    number = max(code["builtin_code"], code["deprecated_builtin_code"])
    if not 0 <= number < len(OPERATORS):
        fix = "the file is damaged, or newer than this edgeshrink"
        raise ModelError(
            place, f"is operator {number}, {len(OPERATORS) - 1} is the last known", fix
        )
    if OPERATORS[number] != "CUSTOM":
        return OPERATORS[number], code["version"], False
    if not code["custom_code"]:
        raise _fault(place, "is a custom operator without a name")
    return code["custom_code"], code["version"], True


def _subgraph(
    table: dict[str, Any],
    signature: dict[str, Any],
    contents: list[npt.NDArray[np.uint8] | None],
    kinds: list[tuple[str, int, bool]],
    place: str,
) -> Graph:
    ops = tuple(
        _op(index, op, kinds[op["opcode_index"]], f"{place}.operators[{index}]")
        for index, op in enumerate(table["operators"])
    )
    computed = {index for op in ops for index in op.outputs} | set(table["inputs"])
    tensors = tuple(
        _tensor(index, tensor, contents[tensor["buffer"]], index in computed, place)
        for index, tensor in enumerate(table["tensors"])
    )
    _check_order(ops, tensors, table, place)
    return Graph(
        name=table["name"] or "main",
        tensors=tensors,
        ops=ops,
        inputs=table["inputs"],
        outputs=table["outputs"],
        input_names=_names(table["inputs"], signature.get("inputs"), tensors),
        output_names=_names(table["outputs"], signature.get("outputs"), tensors),
    )


def _op(index: int, op: dict[str, Any], kind: tuple[str, int, bool], place: str) -> Op:
    options = _options_of(op)
    if kind[2]:
        custom = op["custom_options"]
        options = {"custom": b"" if custom is None else custom.tobytes()}
    return Op(
        index=index,
        kind=kind[0],
        version=kind[1],
        inputs=op["inputs"],
        outputs=op["outputs"],
        options=OpOptions(options, f"{place} ({_short(kind[0])})"),
        is_custom=kind[2],
    )


def _tensor(
    index: int,
    table: dict[str, Any],
    content: npt.NDArray[np.uint8] | None,
    is_computed: bool,
    place: str,
) -> Tensor:
    name = table["name"] or ""
    place = f"{place}.tensors[{index}] ({_short(name)!r})"
    if table["sparsity"] is not None:
        raise ModelError(place, "is stored sparse", "export the model with dense weights")
    if table["external_buffer"]:
        raise ModelError(place, "is stored in another file", "export the model as one file")
    dtype, bits = DTYPES[table["type"]]
    shape = _plain(table["shape"]) or ()
    if any(size < 0 for size in shape):
        raise _fault(place, f"has the shape {shape}")
    n_values = math.prod(shape)
    n_bytes = (n_values * bits + 7) // 8 if bits else None
    if max(n_values, n_bytes or 0) > MAX_TENSOR_BYTES:
        raise _fault(place, f"has the shape {shape}, more than {MAX_TENSOR_BYTES >> 30} GiB")
    if content is not None and n_bytes is not None and content.size != n_bytes:
        what = f"has {content.size} bytes of data, its shape {shape} of {dtype} takes {n_bytes}"
        raise _fault(place, what)
    if content is None and n_bytes == 0 and not is_computed and not table["is_variable"]:
        content = np.frombuffer(b"", np.uint8)  # an empty constant: its buffer is empty too
    if content is not None and dtype in NUMPY_DTYPES:
        content = content.view(np.dtype(dtype).newbyteorder("<")).reshape(shape)
    return Tensor(
        index=index,
        name=name,
        shape=shape,
        dtype=dtype,
        quantization=_quantization(table["quantization"], shape, dtype, f"{place}.quantization"),
        data=content,
        is_variable=table["is_variable"],
    )


def _quantization(
    table: dict[str, Any] | None, shape: tuple[int, ...], dtype: str, place: str
) -> Quantization | None:
    if table is None:
        return None
    if table["details"] is not None:
        fix = "quantize the model per tensor or per channel"
        raise ModelError(place, f"is of the unsupported kind {table['details'][0]}", fix)
    scales = table["scale"]
    if scales is None or scales.size == 0:
        return None
    if not np.isfinite(scales).all() or (dtype != "float32" and (scales <= 0).any()):
        raise _fault(place, "has a scale that is not a positive number")
    zero_points = table["zero_point"]
    if zero_points is None or zero_points.size == 0:
        zero_points = np.zeros(scales.size, np.int64)
    if zero_points.size == 1:
        zero_points = np.broadcast_to(zero_points, scales.shape)
    axis = table["quantized_dimension"]
    if zero_points.size != scales.size:
        raise _fault(place, f"has {scales.size} scales and {zero_points.size} zero points")
    lowest, highest = ZERO_POINT_RANGES.get(dtype, (-(2**31), 2**31 - 1))
    if zero_points.min() < lowest or zero_points.max() > highest:
        raise _fault(place, f"has a zero point that {dtype} can't hold")
    if scales.size > 1 and not (0 <= axis < len(shape) and shape[axis] == scales.size):
        raise _fault(place, f"has {scales.size} scales along axis {axis} of the shape {shape}")
    return Quantization(scales=scales, zero_points=zero_points, axis=axis)


def _check_order(
    ops: tuple[Op, ...], tensors: tuple[Tensor, ...], table: dict[str, Any], place: str
) -> None:
    """Refuse a tensor that is computed twice, or read before it is computed."""
    known = {
        tensor.index for tensor in tensors
        if tensor.data is not None or tensor.is_variable or math.prod(tensor.shape) == 0
        or tensor.dtype in ("resource", "variant")
    }  # fmt: skip
    computed = set(table["inputs"])
    for op in ops:
        at = f"{place}.operators[{op.index}] ({_short(op.kind)})"
        for index in op.inputs:
            if index not in known and index not in computed and index != -1:
                raise _fault(at, f"reads tensor {index}, which nothing computed before")
        for index in op.outputs:
            if index in computed or tensors[index].data is not None:
                raise _fault(at, f"computes tensor {index}, which has its value already")
            computed.add(index)
    for index in table["outputs"]:
        if index not in known and index not in computed:
            raise _fault(f"{place}.outputs", f"holds tensor {index}, which nothing computes")


def _names(
    indices: tuple[int, ...], entries: list[dict[str, Any]] | None, tensors: tuple[Tensor, ...]
) -> tuple[str, ...]:
    """Return the name of each input or output. A tensor may be there twice, under two names."""
    waiting: dict[int, list[str]] = {}
    for entry in sorted(entries or (), key=lambda entry: _natural(entry["name"] or "")):
        waiting.setdefault(entry["tensor_index"], []).append(entry["name"] or "")
    names = []
    for index in indices:
        left = waiting.get(index)
        names.append((left.pop(0) if left else "") or tensors[index].name)
    return tuple(names)


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts `output_2` before `output_10`."""
    parts = re.split(r"([0-9]+)", name)  # text at even places, digits at odd ones
    numbers = [part.lstrip("0") for part in parts[1::2]]
    texts = [(-1, part) for part in parts[0::2]]
    pairs = zip_longest(texts, [(len(n), n) for n in numbers], fillvalue=(-2, ""))
    return [*chain.from_iterable(pairs)]
