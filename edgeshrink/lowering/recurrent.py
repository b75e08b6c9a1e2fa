"""Operators with a memory of their own: SVDF and UNIDIRECTIONAL_SEQUENCE_LSTM."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeshrink.graph import Graph, Op, Tensor
from edgeshrink.lowering.calls import Call, ConstArg, StructArg, TensorArg, Variant
from edgeshrink.lowering.fixed_point import (
    constant,
    quantize_multiplier,
    refuse,
    scale_and_zero,
    symmetric_scale,
)
from edgeshrink.lowering.lookups import _logistic_table as logistic_table

GATES: Final = ("input", "forget", "cell", "output")
GATE_SCALE: Final = 2.0**-12  # of what goes into the table
TABLE_SCALE: Final = 2.0**-15  # of what comes out of it


def _state(graph: Graph, op: Op, position: int, n_values: int) -> Tensor:
    """Return the variable tensor at an input; ModelError if it can't be one."""
    tensor = graph.tensors[op.inputs[position]]
    name = tensor.name or f"tensor {tensor.index}"
    if not tensor.is_variable:
        raise refuse(graph, op, f"has the state {name}, which is no variable", "export it again")
    if math.prod(tensor.shape) != n_values:
        raise refuse(
            graph, op, f"has a state of {tensor.shape} for {n_values} values", "export it again"
        )
    return tensor


def _weights(graph: Graph, op: Op, position: int, shape: tuple[int, ...], dtype: str) -> Tensor:
    tensor = graph.tensors[op.inputs[position]]
    name = tensor.name or f"tensor {tensor.index}"
    if tensor.data is None:
        raise refuse(graph, op, f"has {name} that is computed", "make weights constants")
    if tensor.shape != shape or tensor.dtype != dtype:
        what = f"has {name} {tensor.dtype} {tensor.shape} where {dtype} {shape} must be"
        raise refuse(graph, op, what, "export it again")
    return tensor


def svdf(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """Return the variants of SVDF. Inputs: x, feature weights, time weights, bias, state.

    TensorFlow Lite Micro clamps to int8 alone, whatever activation is fused.
    """
    x, features, times = (graph.tensors[i] for i in op.inputs[:3])
    y = graph.tensors[op.outputs[0]]
    types = (x.dtype, features.dtype, y.dtype)
    if types != ("int8", "int8", "int8") or times.dtype not in ("int8", "int16"):
        what = f"has the types {', '.join((*types, times.dtype))}"
        raise refuse(graph, op, what, "quantize the model to int8, with time weights int8 or int16")
    rank = int(op.options["rank"])
    shapes = (x.shape, features.shape, times.shape, y.shape)
    if any(len(shape) != 2 or 0 in shape for shape in shapes) or rank < 1:
        raise refuse(graph, op, f"has the shapes {shapes}, rank {rank}", "export it again")
    batches, n_in = x.shape
    n_filters, memory = times.shape
    n_units, rest = divmod(n_filters, rank)
    if rest or y.shape != (batches, n_units) or n_in > 1 << 16:
        raise refuse(graph, op, f"has the shapes {shapes}, rank {rank}", "export it again")
    _weights(graph, op, 1, (n_filters, n_in), "int8")
    _weights(graph, op, 2, (n_filters, memory), times.dtype)
    state = _state(graph, op, 4, batches * n_filters * memory)
    if state.dtype != times.dtype:
        what = f"has a state {state.dtype} with time weights {times.dtype}"
        raise refuse(graph, op, what, "give both one type")
    bias = constant(graph, op, 3)
    if bias is None and op.inputs[3] >= 0:
        raise refuse(graph, op, "has a bias that is computed", "make it a constant")
    values = np.zeros(n_units, np.int32) if bias is None else np.asarray(bias)
    if values.shape != (n_units,) or values.dtype != np.int32:
        what = f"has a bias {values.dtype} {values.shape}"
        raise refuse(graph, op, what, f"must be int32 ({n_units},)")
    x_scale, x_zero = scale_and_zero(graph, op, x.index)
    y_scale, y_zero = scale_and_zero(graph, op, y.index)
    state_scale, state_zero = scale_and_zero(graph, op, state.index)
    feature_scale = symmetric_scale(graph, op, features.index)
    time_scale = symmetric_scale(graph, op, times.index)
    feature_multiplier, feature_shift = quantize_multiplier(x_scale * feature_scale / state_scale)
    time_multiplier, time_shift = quantize_multiplier(state_scale * time_scale / y_scale)
    shape = StructArg(
        type="es_svdf_shape",
        fields={
            "batches": batches, "n_in": n_in, "n_units": n_units, "rank": rank, "memory": memory,
            "x_zero": x_zero, "y_zero": y_zero, "state_zero": state_zero,
            "feature_multiplier": feature_multiplier, "feature_shift": feature_shift,
            "time_multiplier": time_multiplier, "time_shift": time_shift,
        },
    )  # fmt: skip
    args = (
        shape,
        TensorArg(tensor=x.index),
        TensorArg(tensor=features.index),
        TensorArg(tensor=times.index),
        ConstArg(name="bias", values=values),
        TensorArg(tensor=state.index),
        TensorArg(tensor=y.index),
    )
    function = "es_svdf_s8__ref" if times.dtype == "int8" else "es_svdf_s8s16__ref"
    return (
        Variant(
            name="ref",
            calls=(Call(function=function, args=args),),
            cycles=batches * n_filters * (7.0 * n_in + 9.0 * memory + 60.0),
            code_bytes=360,
        ),
    )


# Inputs of UNIDIRECTIONAL_SEQUENCE_LSTM by position; gates in the order of GATES.
_X_WEIGHTS: Final = (1, 2, 3, 4)
_H_WEIGHTS: Final = (5, 6, 7, 8)
_BIASES: Final = (12, 13, 14, 15)
_HIDDEN, _CELL = 18, 19
_EXTRAS: Final = {
    "peephole connections": (9, 10, 11),
    "a projection": (16, 17),
    "layer normalization": (20, 21, 22, 23),
}


def lstm(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """Return the variants of UNIDIRECTIONAL_SEQUENCE_LSTM, as Keras' LSTM layer has it."""
    if len(op.inputs) != 24:
        raise refuse(graph, op, f"has {len(op.inputs)} inputs", "24 must be: export it again")
    for name, positions in _EXTRAS.items():
        if any(op.inputs[p] >= 0 for p in positions):
            raise refuse(graph, op, f"has {name}", "use a plain LSTM")
    if any(op.inputs[p] < 0 for p in (0, *_X_WEIGHTS, *_H_WEIGHTS, *_BIASES, _HIDDEN, _CELL)):
        raise refuse(graph, op, "lacks a gate, a bias or its state", "use a plain LSTM")
    x, y = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
    if (x.dtype, y.dtype) != ("int8", "int8"):
        what = f"has the types {x.dtype}, {y.dtype}"
        raise refuse(graph, op, what, "quantize the model to int8")
    if str(op.options["activation"]) != "TANH":
        what = f"has the activation {op.options['activation']}"
        raise refuse(graph, op, what, "use TANH")
    if len(x.shape) != 3 or 0 in x.shape or len(graph.tensors[op.inputs[5]].shape) != 2:
        raise refuse(graph, op, f"has an input of shape {x.shape}", "use (batch, time, features)")
    is_time_major = bool(op.options["time_major"])
    batches, steps = (x.shape[1], x.shape[0]) if is_time_major else x.shape[:2]
    n_in, n_units = x.shape[2], graph.tensors[op.inputs[5]].shape[0]
    if y.shape != (*x.shape[:2], n_units):
        raise refuse(graph, op, f"makes {y.shape} of {x.shape}", "export it again")
    hidden = _state(graph, op, _HIDDEN, batches * n_units)
    cell = _state(graph, op, _CELL, batches * n_units)
    if (hidden.dtype, cell.dtype) != ("int8", "int16"):
        what = f"has states of types {(hidden.dtype, cell.dtype)}"
        raise refuse(graph, op, what, "the hidden state must be int8, the cell int16")
    x_scale, x_zero = scale_and_zero(graph, op, x.index)
    h_scale, h_zero = scale_and_zero(graph, op, hidden.index)
    cell_scale = symmetric_scale(graph, op, cell.index)
    power = round(math.log2(cell_scale))
    if abs(math.log2(cell_scale) - power) >= 1e-3 or not -30 <= power <= 0:
        what = f"has a cell state of scale {cell_scale:g}"
        raise refuse(graph, op, what, "must be a power of two from 2^-30 to 1: export it again")
    weights, bias = _packed(graph, op, n_in, n_units)
    if max(n_in, n_units) > 1 << 15 or np.abs(bias.astype(np.int64)).max() > 2**30:
        raise refuse(graph, op, "has sums beyond int32", "use smaller layers or biases")
    fields = {
        "batches": batches, "steps": steps, "n_in": n_in, "n_units": n_units,
        "x_batch": n_in if is_time_major else steps * n_in,
        "x_step": batches * n_in if is_time_major else n_in,
        "y_batch": n_units if is_time_major else steps * n_units,
        "y_step": batches * n_units if is_time_major else n_units,
        "x_zero": x_zero, "h_zero": h_zero,
    }  # fmt: skip
    for gate, (wx, wh) in enumerate(zip(_X_WEIGHTS, _H_WEIGHTS, strict=True)):
        for letter, scale, position in (("x", x_scale, wx), ("h", h_scale, wh)):
            w_scale = symmetric_scale(graph, op, op.inputs[position])
            multiplier, shift = quantize_multiplier(scale * w_scale / GATE_SCALE)
            fields[f"{letter}_multiplier{gate}"] = multiplier
            fields[f"{letter}_shift{gate}"] = shift
    for name, real in (
        ("forget", TABLE_SCALE * cell_scale / cell_scale),
        ("input", TABLE_SCALE * TABLE_SCALE / cell_scale),
        ("output", TABLE_SCALE * TABLE_SCALE / h_scale),
    ):
        fields[f"{name}_multiplier"], fields[f"{name}_shift"] = quantize_multiplier(real)
    left = 12 + power
    fields["tanh_multiplier"] = 3 << left if left >= 0 else 3
    fields["tanh_shift"] = 0 if left >= 0 else -left
    clip = float(np.float32(op.options["cell_clip"]))
    fields["cell_clip"] = 0
    if clip > 0:
        fields["cell_clip"] = int(min(max(clip / cell_scale, -32768.0), 32767.0))
        if fields["cell_clip"] == 0:
            raise refuse(graph, op, f"clips its cell to {clip:g}", "clip above the cell's scale")
    args = (
        StructArg(type="es_lstm_shape", fields=fields),
        TensorArg(tensor=x.index),
        ConstArg(name="weights", values=weights),
        ConstArg(name="bias", values=bias),
        ConstArg(name="table", values=logistic_table()),
        TensorArg(tensor=hidden.index),
        TensorArg(tensor=cell.index),
        TensorArg(tensor=y.index),
    )
    return (
        Variant(
            name="ref",
            calls=(Call(function="es_lstm_s8__ref", args=args),),
            cycles=batches * steps * n_units * (28.0 * (n_in + n_units) + 400.0),
            code_bytes=1000,
        ),
    )


def _packed(
    graph: Graph, op: Op, n_in: int, n_units: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int32]]:
    """Return weights (n_units, 4, n_in + n_units) and bias (n_units, 4)."""
    rows, biases = [], []
    for wx, wh, b in zip(_X_WEIGHTS, _H_WEIGHTS, _BIASES, strict=True):
        parts = [
            _weights(graph, op, wx, (n_units, n_in), "int8"),
            _weights(graph, op, wh, (n_units, n_units), "int8"),
        ]
        rows.append(np.concatenate([np.asarray(p.data, np.int8) for p in parts], axis=1))
        biases.append(np.asarray(_weights(graph, op, b, (n_units,), "int32").data, np.int32))
    return np.stack(rows, axis=1), np.stack(biases, axis=1)
