"""What is left to do on a fresh `.tflite`: int8 at both ends, no needless transposes, names.

Works on the object form of the schema that ai-edge-litert ships; constants stay inside the
flatbuffer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import flatbuffers
import numpy as np
import numpy.typing as npt

FLOAT32, INT32, INT8 = 0, 2, 9  # TensorType
SIGNATURE: Final = b"serving_default"


def _schema() -> Any:
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


class Editor:
    """One model being edited: its first subgraph, with producers and consumers at hand."""

    def __init__(self, data: bytes) -> None:
        self.schema = _schema()
        root = self.schema.Model.GetRootAsModel(data, 0)
        self.model = self.schema.ModelT.InitFromObj(root)
        for buffer in self.model.buffers:
            if buffer.offset > 1:
                span = data[buffer.offset : buffer.offset + buffer.size]
                buffer.data, buffer.offset, buffer.size = np.frombuffer(span, np.uint8), 0, 0
        self.graph = self.model.subgraphs[0]
        self._kinds = {
            v: k for k, v in vars(self.schema.BuiltinOperator).items() if isinstance(v, int)
        }

    def kind(self, op: Any) -> str:
        """Return the operator's TFLite name."""
        code = self.model.operatorCodes[op.opcodeIndex]
        return str(self._kinds[max(code.builtinCode, code.deprecatedBuiltinCode)])

    def opcode(self, kind: str, version: int) -> int:
        """Return the index of an operator code, made where there is none."""
        number = getattr(self.schema.BuiltinOperator, kind)
        for index, code in enumerate(self.model.operatorCodes):
            known = max(code.builtinCode, code.deprecatedBuiltinCode)
            if known == number and code.version == version:
                return index
        code = self.schema.OperatorCodeT()
        code.builtinCode, code.version = number, version
        code.deprecatedBuiltinCode = min(number, 127)
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def consumers(self, tensor: int) -> list[Any]:
        """Return the operators that read `tensor`."""
        return [op for op in self.graph.operators if tensor in list(op.inputs)]

    def producer(self, tensor: int) -> Any | None:
        """Return the operator that writes `tensor`."""
        return next((op for op in self.graph.operators if tensor in list(op.outputs)), None)

    def constant(self, tensor: int, dtype: Any) -> npt.NDArray[Any] | None:
        """Return the values of a constant tensor, None for an activation."""
        entry = self.graph.tensors[tensor]
        data = self.model.buffers[entry.buffer].data
        if data is None or not len(data):
            return None
        raw = np.asarray(data, np.uint8).tobytes()
        return np.frombuffer(raw, dtype).reshape(np.asarray(entry.shape))

    def add_constant(self, values: npt.NDArray[Any], tensor_type: int) -> int:
        """Add a constant tensor; return its index."""
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        tensor = self.schema.TensorT()
        tensor.shape, tensor.type = np.asarray(values.shape, np.int32), tensor_type
        tensor.buffer, tensor.name = len(self.model.buffers) - 1, b""
        tensor.hasRank = True
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def quantization(self, tensor: int) -> tuple[float, int] | None:
        """Return the scale and zero point of a per-tensor quantized activation."""
        parameters = self.graph.tensors[tensor].quantization
        if parameters is None or parameters.scale is None or len(parameters.scale) != 1:
            return None
        return float(parameters.scale[0]), int(parameters.zeroPoint[0])

    def signature_maps(self) -> Iterable[Any]:
        """Iterate over the (name, tensor) pairs of all signatures."""
        for signature in self.model.signatureDefs or []:
            yield from [*signature.inputs, *signature.outputs]

    def reroute(self, old: int, new: int) -> None:
        """Let everything that named tensor `old` as a model input or output name `new`."""
        self.graph.inputs = [new if t == old else t for t in self.graph.inputs]
        self.graph.outputs = [new if t == old else t for t in self.graph.outputs]
        for pair in self.signature_maps():
            if pair.tensorIndex == old:
                pair.tensorIndex = new

    def drop_unused(self) -> None:
        """Remove tensors, buffers and operator codes that nothing refers to."""
        graph, model = self.graph, self.model
        used = {int(t) for op in graph.operators for t in [*op.inputs, *op.outputs] if t >= 0}
        used |= {int(t) for t in [*graph.inputs, *graph.outputs]}
        order = sorted(used)
        place = {old: new for new, old in enumerate(order)} | {-1: -1}
        graph.tensors = [graph.tensors[t] for t in order]
        for op in graph.operators:
            op.inputs = [place[int(t)] for t in op.inputs]
            op.outputs = [place[int(t)] for t in op.outputs]
        graph.inputs = [place[int(t)] for t in graph.inputs]
        graph.outputs = [place[int(t)] for t in graph.outputs]
        for pair in self.signature_maps():
            pair.tensorIndex = place[pair.tensorIndex]
        if len(model.subgraphs) == 1:
            keep = sorted(
                {0} | {t.buffer for t in graph.tensors} | {m.buffer for m in model.metadata or []}
            )
            moved = {old: new for new, old in enumerate(keep)}
            model.buffers = [model.buffers[b] for b in keep]
            for tensor in graph.tensors:
                tensor.buffer = moved[tensor.buffer]
            for entry in model.metadata or []:
                entry.buffer = moved[entry.buffer]
            codes = sorted({op.opcodeIndex for op in graph.operators})
            at = {old: new for new, old in enumerate(codes)}
            model.operatorCodes = [model.operatorCodes[c] for c in codes]
            for op in graph.operators:
                op.opcodeIndex = at[op.opcodeIndex]

    def bytes(self) -> bytes:
        """Return the model as a flatbuffer."""
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def _int8_ends(editor: Editor) -> None:
    """Take the QUANTIZE behind a float input and the DEQUANTIZE before a float output away."""
    graph = editor.graph
    for tensor in list(graph.inputs):
        readers = editor.consumers(tensor)
        if graph.tensors[tensor].type != FLOAT32 or not readers:
            continue
        if any(editor.kind(op) != "QUANTIZE" for op in readers):
            continue
        results = [int(op.outputs[0]) for op in readers]
        if len({editor.quantization(r) for r in results}) != 1:
            continue
        for op in readers:
            graph.operators.remove(op)
        for op in graph.operators:
            op.inputs = [results[0] if t in results else t for t in op.inputs]
        for result in results:
            editor.reroute(result, results[0])
        editor.reroute(tensor, results[0])
    for tensor in list(graph.outputs):
        writer = editor.producer(tensor)
        if graph.tensors[tensor].type != FLOAT32 or writer is None or editor.consumers(tensor):
            continue
        if editor.kind(writer) == "DEQUANTIZE":
            graph.operators.remove(writer)
            editor.reroute(tensor, int(writer.inputs[0]))


def _transposes_around_pad(editor: Editor) -> None:
    """Write TRANSPOSE, PAD, TRANSPOSE back as one PAD with its amounts permuted.

    A transpose that only moves axes of size 1 appears as RESHAPE.
    """
    graph = editor.graph
    for last in list(graph.operators):
        pad = editor.producer(int(last.inputs[0]))
        if pad is None or editor.kind(pad) not in ("PAD", "PADV2"):
            continue
        first = editor.producer(int(pad.inputs[0]))
        amounts = editor.constant(int(pad.inputs[1]), np.int32)
        if first is None or amounts is None:
            continue
        there, back = _permutation(editor, first), _permutation(editor, last)
        if there is None or back is None or len(there) != len(back):
            continue
        if editor.kind(last) == "RESHAPE":  # which axis of size 1 went where is free: undo `there`
            back = [there.index(axis) for axis in range(len(there))]
        if [there[axis] for axis in back] != list(range(len(back))):
            continue
        permuted = amounts[back]
        padded = np.asarray(editor.graph.tensors[first.inputs[0]].shape) + permuted.sum(axis=1)
        if list(padded) != list(editor.graph.tensors[last.outputs[0]].shape):
            continue
        if len(editor.consumers(int(pad.outputs[0]))) != 1 or int(pad.outputs[0]) in graph.outputs:
            continue
        constant = editor.add_constant(permuted, INT32)
        pad.inputs = [first.inputs[0], constant, *list(pad.inputs)[2:]]
        pad.outputs = [last.outputs[0]]
        graph.operators.remove(last)
        if not editor.consumers(int(first.outputs[0])):
            graph.operators.remove(first)


def _permutation(editor: Editor, op: Any) -> list[int] | None:
    """Return p with output axis i = input axis p[i], for a TRANSPOSE or a RESHAPE that is one."""
    if editor.kind(op) == "TRANSPOSE":
        constant = editor.constant(int(op.inputs[1]), np.int32)
        return None if constant is None else [int(axis) for axis in constant]
    if editor.kind(op) != "RESHAPE":
        return None
    source = [int(size) for size in editor.graph.tensors[op.inputs[0]].shape]
    result = [int(size) for size in editor.graph.tensors[op.outputs[0]].shape]
    if len(source) != len(result):
        return None
    ones = [axis for axis, size in enumerate(source) if size == 1]
    others = [axis for axis, size in enumerate(source) if size != 1]
    if [source[axis] for axis in others] != [size for size in result if size != 1]:
        return None
    return [ones.pop(0) if size == 1 else others.pop(0) for size in result]


def _int8_transpose_conv(editor: Editor) -> None:
    """Make DEQUANTIZE, TRANSPOSE_CONV with float weights, QUANTIZE one int8 TRANSPOSE_CONV.

    The converter leaves this operator in float with weights that are exact multiples of their
    per-channel scale; the scale is found again from the largest weight of the channel, which the
    symmetric quantizer puts at 127.
    """
    graph = editor.graph
    for op in list(graph.operators):
        if editor.kind(op) != "TRANSPOSE_CONV":
            continue
        before, behind = editor.producer(int(op.inputs[2])), editor.consumers(int(op.outputs[0]))
        if before is None or editor.kind(before) != "DEQUANTIZE" or len(behind) != 1:
            continue
        if editor.kind(behind[0]) != "QUANTIZE":
            continue
        weights = editor.constant(int(op.inputs[1]), np.float32)  # (out, kh, kw, in)
        entry = editor.quantization(int(before.inputs[0]))
        if weights is None or entry is None:
            continue
        largest = np.abs(weights).max(axis=(1, 2, 3))  # (out,)
        scales = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
        stored = np.round(weights / scales[:, None, None, None]).astype(np.int8)
        weight = editor.add_constant(stored, INT8)
        graph.tensors[weight].quantization = _per_channel(editor, scales)
        inputs = [op.inputs[0], weight, before.inputs[0]]
        if len(op.inputs) > 3 and op.inputs[3] >= 0:
            bias = editor.constant(int(op.inputs[3]), np.float32)
            if bias is None:
                continue
            unit = scales.astype(np.float64) * entry[0]
            low, high = np.iinfo(np.int32).min, np.iinfo(np.int32).max
            whole = np.clip(np.round(bias / unit), low, high).astype(np.int32)
            constant = editor.add_constant(whole, INT32)
            graph.tensors[constant].quantization = _per_channel(editor, unit.astype(np.float32))
            inputs.append(constant)
        op.inputs, op.outputs = inputs, [behind[0].outputs[0]]
        op.opcodeIndex = editor.opcode("TRANSPOSE_CONV", 3 if len(inputs) > 3 else 2)
        graph.operators.remove(behind[0])
        if not editor.consumers(int(before.outputs[0])):
            graph.operators.remove(before)


def _per_channel(editor: Editor, scales: npt.NDArray[np.float32]) -> Any:
    parameters = editor.schema.QuantizationParametersT()
    parameters.scale = scales
    parameters.zeroPoint = np.zeros(len(scales), np.int64)
    parameters.quantizedDimension = 0
    return parameters


def _name(
    editor: Editor,
    input_names: tuple[str, ...],
    output_names: tuple[str, ...],
    layers: Mapping[tuple[float, int], str],
) -> None:
    """Name inputs and outputs as the model does, other results by their layer, no constants."""
    graph = editor.graph
    signature = editor.model.signatureDefs[0]
    ends: dict[int, str] = {}
    for pairs, names, prefix in (
        (signature.inputs, input_names, b"args_"),
        (signature.outputs, output_names, b"output_"),
    ):
        for pair in pairs:
            name = names[int(pair.name.removeprefix(prefix))]
            pair.name = name.encode()
            ends.setdefault(pair.tensorIndex, name)
    signature.signatureKey = SIGNATURE
    by_name = {pair.name.decode(): pair.tensorIndex for pair in editor.signature_maps()}
    graph.inputs = [by_name[n] for n in input_names if by_name[n] in list(graph.inputs)]
    graph.outputs = [by_name[n] for n in output_names]
    for tensor in graph.tensors:
        tensor.name = b""
    seen: dict[str, int] = {}
    for op in graph.operators:
        for index in op.outputs:
            layer = layers.get(editor.quantization(int(index)) or (0.0, 0), "")
            if layer:
                seen[layer] = seen.get(layer, 0) + 1
                count = f":{seen[layer] - 1}" if seen[layer] > 1 else ""
                graph.tensors[index].name = f"{layer}{count}".encode()
    for index, name in ends.items():
        graph.tensors[index].name = name.encode()
    editor.model.description = b"edgeshrink"


PASSES: Final[tuple[Callable[[Editor], None], ...]] = (_transposes_around_pad,)
INT8_PASSES: Final[tuple[Callable[[Editor], None], ...]] = (_int8_transpose_conv, _int8_ends)


def finish(
    data: bytes,
    *,
    input_names: tuple[str, ...],
    output_names: tuple[str, ...],
    layers: Mapping[tuple[float, int], str],
    quantized: bool,
    widen: Callable[[Editor], None] | None = None,
) -> bytes:
    """Return the model with `PASSES` applied, named, and free of what nothing refers to.

    `widen` makes values 16 bits wide, once all is int8.
    """
    editor = Editor(data)
    for apply in (*INT8_PASSES, *PASSES) if quantized else PASSES:
        apply(editor)
    if widen is not None:
        widen(editor)
    _name(editor, input_names, output_names, layers)
    editor.drop_unused()
    return editor.bytes()
