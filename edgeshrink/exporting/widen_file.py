"""Make a `.tflite` that is int8 throughout one in which marked values are stored in 16 bits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeshrink.errors import ModelError
from edgeshrink.exporting.tflite_passes import INT8, Editor
from edgeshrink.quantizer.fake_quantize import FIXED_WIDE
from edgeshrink.quantizer.widths import Wide

INT64, INT16 = 4, 7  # TensorType
STEPS: Final = 128  # of int16 in one of int8, where a value is stored in both: nothing is rounded

# Positions of the input, the weights and the bias.
_WEIGHTED: Final = {
    "CONV_2D": (0, 1, 2),
    "DEPTHWISE_CONV_2D": (0, 1, 2),
    "FULLY_CONNECTED": (0, 1, 2),
    "TRANSPOSE_CONV": (2, 1, 3),
}
_FIXED: Final = ("SOFTMAX", "LOGISTIC", "TANH")  # their int16 outputs have one scale

# First version of an operator that takes int16 (`op_version.cc` of TensorFlow Lite).
_VERSIONS: Final = {
    "ABS": 3, "ADD": 3, "AVERAGE_POOL_2D": 3, "BATCH_MATMUL": 3, "CONCATENATION": 3, "CONV_2D": 4,
    "DEPTHWISE_CONV_2D": 5, "FULLY_CONNECTED": 7, "LEAKY_RELU": 2, "LOGISTIC": 3, "MAXIMUM": 4,
    "MAX_POOL_2D": 3, "MEAN": 3, "MINIMUM": 4, "MUL": 4, "PAD": 3, "PADV2": 3, "QUANTIZE": 2,
    "REDUCE_MAX": 3, "RELU": 3, "RELU6": 3, "RESIZE_BILINEAR": 4, "RESIZE_NEAREST_NEIGHBOR": 4,
    "RSQRT": 3, "SLICE": 4, "SOFTMAX": 3, "SUB": 5, "TANH": 3, "TRANSPOSE": 5, "TRANSPOSE_CONV": 3,
}  # fmt: skip


def widen_file(editor: Editor, wide: Wide) -> None:
    """Store marked values in 16 bits, and compute operators that touch them so, in place.

    Int8 values that such an operator reads or writes go through a QUANTIZE, with 128 steps of int16
    to one of int8, so that reading rounds nothing.

    Raises:
        ModelError: a constant in the file is none that the quantized graph has.
    """
    _Widening(editor, wide).run()


class _Widening:
    """One file on its way to 16 bits."""

    def __init__(self, editor: Editor, wide: Wide) -> None:
        self.editor, self.wide = editor, wide
        self.graph = editor.graph
        self.constants = list(wide.constants)  # that no operator has read yet
        self.ratios: dict[int, float] = {}  # of a tensor's scale in the file to the one it gets
        self.widened: dict[int, int] = {}  # int8 tensor -> what holds its values in 16 bits
        self.operators: list[Any] = []

    def run(self) -> None:
        editor, graph = self.editor, self.graph
        for index, tensor in enumerate(graph.tensors):
            found = editor.quantization(index)
            if tensor.type != INT8 or found not in self.wide.scales or self._is_constant(index):
                continue
            assert found is not None
            scale = self.wide.scales[found]
            self.ratios[index] = found[0] / scale
            tensor.type, tensor.quantization = INT16, self._parameters([scale])
        for op in list(graph.operators):
            touched = [int(t) for t in (*op.inputs, *op.outputs) if t >= 0]
            if editor.kind(op) == "QUANTIZE":
                self._set_version(op)
            elif any(graph.tensors[t].type == INT16 for t in touched):
                self._widen(op)
                continue
            self.operators.append(op)
        graph.operators = self.operators

    def _is_constant(self, tensor: int) -> bool:
        data = self.editor.model.buffers[self.graph.tensors[tensor].buffer].data
        return data is not None and len(data) > 0

    def _widen(self, op: Any) -> None:
        """Append `op` in 16 bits, with what has to be converted before and behind it."""
        kind = self.editor.kind(op)
        weights, bias = _WEIGHTED.get(kind, (-1, -1, -1))[1:]
        inputs = [int(t) for t in op.inputs]
        for position, tensor in enumerate(inputs):
            if tensor < 0 or position in (weights, bias):
                continue
            if self.graph.tensors[tensor].type == INT8:
                is_constant = self._is_constant(tensor)
                inputs[position] = self._constant(tensor) if is_constant else self._input(tensor)
        if kind in _WEIGHTED:
            source = int(op.inputs[_WEIGHTED[kind][0]])
            while len(inputs) <= bias:
                inputs.append(-1)
            inputs[bias] = self._bias(inputs[bias], inputs[weights], source)
        op.inputs = inputs
        self._set_version(op)
        if kind in ("ADD", "SUB"):
            op.builtinOptions.potScaleInt16 = False  # scales are no powers of two
        self.operators.append(op)
        outputs = [int(t) for t in op.outputs]
        for position, tensor in enumerate(outputs):
            if self.graph.tensors[tensor].type == INT8:
                scale = FIXED_WIDE if kind in _FIXED else None
                outputs[position] = self._like(tensor, scale)
                self.operators.append(self._quantize(outputs[position], tensor))
        op.outputs = outputs

    def _input(self, tensor: int) -> int:
        if tensor not in self.widened:
            self.widened[tensor] = self._like(tensor)
            self.operators.append(self._quantize(tensor, self.widened[tensor]))
        return self.widened[tensor]

    def _like(self, tensor: int, scale: float | None = None) -> int:
        """Add a tensor of 16 bits for the values of an int8 one."""
        entry, found = self.graph.tensors[tensor], self.editor.quantization(tensor)
        assert found is not None
        made = self.editor.schema.TensorT()
        made.shape, made.type, made.buffer, made.name = entry.shape, INT16, 0, b""
        made.hasRank = True
        made.quantization = self._parameters([found[0] / STEPS if scale is None else scale])
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def _quantize(self, source: int, result: int) -> Any:
        op = self.editor.schema.OperatorT()
        op.opcodeIndex = self.editor.opcode("QUANTIZE", 1)
        op.inputs, op.outputs = [source], [result]
        self._set_version(op)
        return op

    def _set_version(self, op: Any) -> None:
        kind = self.editor.kind(op)
        version = max(
            self.editor.model.operatorCodes[op.opcodeIndex].version, _VERSIONS.get(kind, 1)
        )
        op.opcodeIndex = self.editor.opcode(kind, version)

    def _parameters(self, scales: Sequence[float] | npt.NDArray[np.floating[Any]]) -> Any:
        parameters = self.editor.schema.QuantizationParametersT()
        parameters.scale = np.asarray(scales, np.float32)
        parameters.zeroPoint = np.zeros(len(parameters.scale), np.int64)
        return parameters

    def _bias(self, tensor: int, weights: int, source: int) -> int:
        """Return a bias of int64 for an input that is now stored in finer steps."""
        scales = np.asarray(self.graph.tensors[weights].quantization.scale, np.float64)
        ratio = self.ratios.get(source, float(STEPS))
        shape = [int(size) for size in self.graph.tensors[weights].shape]
        axis = int(self.graph.tensors[weights].quantization.quantizedDimension)
        stored = None if tensor < 0 else self.editor.constant(tensor, np.int32)
        codes = np.zeros(shape[axis], np.int64)
        if stored is not None:
            codes = np.round(stored.astype(np.float64) * ratio).astype(np.int64)
        found = self.editor.quantization(source)
        assert found is not None
        scale = found[0] if source in self.ratios else found[0] / STEPS
        made = self.editor.add_constant(codes, INT64)
        self.graph.tensors[made].quantization = self._parameters(scales * scale)
        return made

    def _constant(self, tensor: int) -> int:
        """Return a constant in 16 bits: as the graph has it, or of its own scale."""
        values, found = self.editor.constant(tensor, np.int8), self.editor.quantization(tensor)
        assert values is not None
        assert found is not None
        if found in self.wide.scales:
            codes, scale = self._graph_constant(values), self.wide.scales[found]
        else:
            codes, scale = (values.astype(np.int16) - found[1]) * STEPS, found[0] / STEPS
        made = self.editor.add_constant(codes.astype(np.int16), INT16)
        self.graph.tensors[made].quantization = self._parameters([scale])
        return made

    def _graph_constant(self, stored: npt.NDArray[np.int8]) -> npt.NDArray[np.int16]:
        """Return the codes that the file has clamped to int8, in the layout of the file."""
        for place, codes in enumerate(self.constants):
            if codes.size != stored.size:
                continue
            for order in _layouts(codes.ndim):
                moved = codes.transpose(order).reshape(stored.shape)
                if np.array_equal(np.clip(moved, -128, 127), stored):
                    del self.constants[place]
                    return moved
        raise ModelError(
            "lowering to .tflite",
            f"a constant {stored.shape} of 16 bits is not in the quantized graph",
            "report it with the model, or quantize its layer to int8",
        )


def _layouts(rank: int) -> list[tuple[int, ...]]:
    """Return orders of axes, channels-last first."""
    orders = list(permutations(range(rank)))
    return [(0, 2, 3, 1), *orders] if rank == 4 else orders
