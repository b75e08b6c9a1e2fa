"""Two inputs, value by value: ADD, SUB, MUL, MAXIMUM, MINIMUM, PRELU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from edgeshrink.graph import Graph, Op, Tensor
from edgeshrink.lowering.calls import Arg, Call, ConstArg, StructArg, TensorArg, Variant
from edgeshrink.lowering.emit_add import add_cycles, can_emit_add, emit_add
from edgeshrink.lowering.fixed_point import (
    LIMITS,
    activation_range,
    quantize_multiplier,
    refuse,
    scale_and_zero,
)
from edgeshrink.lowering.lookups import pointwise_variants
from edgeshrink.lowering.overlap import elementwise_distance
from edgeshrink.passes.fixed_point import multiply

_SUFFIX: Final = {"int8": "s8", "int16": "s16"}
_MAX_LOOPS: Final = 5  # of es_broadcast_shape
_LEFT: Final = {"int8": 20, "int16": 15}  # bits that sums gain before they are rounded


def add(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """Return the variants of ADD and SUB."""
    a, b, y = _tensors(graph, op)
    suffix = _suffix(graph, op, a, b, y)
    a_scale, a_zero = scale_and_zero(graph, op, a.index)
    b_scale, b_zero = scale_and_zero(graph, op, b.index)
    y_scale, y_zero = scale_and_zero(graph, op, y.index)
    left = _LEFT[y.dtype]
    twice = 2 * max(a_scale, b_scale)
    factors = a_scale / twice, b_scale / twice, twice / (2**left * y_scale)
    a_factor, b_factor, y_factor = (quantize_multiplier(f) for f in factors)
    if not 0 < factors[2] < 1 or y_factor[1] > 0:
        raise refuse(
            graph, op, f"has an output scale of {y_scale:g} for inputs of {a_scale:g} and "
            f"{b_scale:g}: too small for exact sums", "calibrate on data that the model meets",
        )  # fmt: skip
    y_min, y_max = activation_range(graph, op, y.index)
    shape = StructArg(
        type="es_add_shape",
        fields={
            "n": _count(y),
            "a_zero": a_zero,
            "b_zero": b_zero,
            "y_zero": y_zero,
            "a_multiplier": a_factor[0],
            "a_shift": a_factor[1],
            "b_multiplier": b_factor[0],
            "b_shift": b_factor[1],
            "b_sign": 1 if op.kind == "ADD" else -1,
            "y_multiplier": y_factor[0],
            "y_shift": y_factor[1],
            "y_min": y_min,
            "y_max": y_max,
        },
    )
    found = _variants(graph, op, f"es_add_{suffix}", shape, cycles_per_value=98)
    if "dsp" in isa and y.dtype == "int8" and a.shape == b.shape == y.shape:
        found += _dsp_add(a, b, y, shape)
    if "scalar" in isa and y.dtype == "int8" and a.shape == b.shape == y.shape:
        found += _scalar_add(a, b, y, shape.fields)
    return found


def mul(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """Return the variants of MUL."""
    a, b, y = _tensors(graph, op)
    suffix = _suffix(graph, op, a, b, y)
    a_scale, a_zero = scale_and_zero(graph, op, a.index)
    b_scale, b_zero = scale_and_zero(graph, op, b.index)
    y_scale, y_zero = scale_and_zero(graph, op, y.index)
    if y.dtype == "int16" and (a_zero, b_zero, y_zero) != (0, 0, 0):
        raise refuse(
            graph, op, "is int16 with a zero point other than 0", "quantize int16 symmetrically"
        )
    multiplier, shift = _factor(graph, op, a_scale * b_scale / y_scale)
    y_min, y_max = activation_range(graph, op, y.index)
    shape = StructArg(
        type="es_mul_shape",
        fields={
            "n": _count(y),
            "a_zero": a_zero,
            "b_zero": b_zero,
            "y_zero": y_zero,
            "multiplier": multiplier,
            "shift": shift,
            "y_min": y_min,
            "y_max": y_max,
        },
    )
    return _variants(graph, op, f"es_mul_{suffix}", shape, cycles_per_value=50)


def maximum_minimum(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """Return the variants of MAXIMUM and MINIMUM."""
    a, b, y = _tensors(graph, op)
    suffix = _suffix(graph, op, a, b, y)
    if len({scale_and_zero(graph, op, t.index) for t in (a, b, y)}) != 1:
        raise refuse(
            graph, op, "has inputs and an output of different scales or zero points",
            "give all three the same quantization",
        )  # fmt: skip
    fields = broadcast_fields(graph, op, a, b, y)
    call = Call(
        function=f"es_{op.kind.lower()}_{suffix}__ref",
        args=(StructArg(type="es_broadcast_shape", fields=fields), *_pointers(a, b, y)),
    )
    variant = Variant(
        name="ref",
        calls=(call,),
        overlaps=_overlaps(a, b, y),
        cycles=16.0 * _count(y),
        code_bytes=204,
    )
    return (variant, *pointwise_variants(graph, op))


def prelu(graph: Graph, op: Op, isa: tuple[str, ...]) -> tuple[Variant, ...]:
    """Return the variants of PRELU."""
    x, alpha, y = _tensors(graph, op)
    types = x.dtype, alpha.dtype, y.dtype
    if types not in (("int8", "int8", "int8"), ("int16", "int8", "int16")):
        raise refuse(graph, op, f"has the types {', '.join(types)}", "quantize the model to int8")
    x_scale, x_zero = scale_and_zero(graph, op, x.index)
    alpha_scale, alpha_zero = scale_and_zero(graph, op, alpha.index)
    y_scale, y_zero = scale_and_zero(graph, op, y.index)
    multiplier, shift = _factor(graph, op, x_scale / y_scale)
    neg_multiplier, neg_shift = _factor(graph, op, x_scale * alpha_scale / y_scale)
    y_min, y_max = LIMITS[y.dtype]
    shape = StructArg(
        type="es_prelu_shape",
        fields={
            "x_zero": x_zero,
            "alpha_zero": alpha_zero,
            "y_zero": y_zero,
            "multiplier": multiplier,
            "shift": shift,
            "neg_multiplier": neg_multiplier,
            "neg_shift": neg_shift,
            "y_min": y_min,
            "y_max": y_max,
        },
    )
    fields = broadcast_fields(graph, op, x, alpha, y)
    call = Call(
        function=f"es_prelu_{_SUFFIX[y.dtype]}__ref",
        args=(
            shape, StructArg(type="es_broadcast_shape", fields=fields), *_pointers(x, alpha, y),
        ),
    )  # fmt: skip
    overlaps = elementwise_distance(x, y) if _count(x) == _count(y) else {}
    variant = Variant(
        name="ref",
        calls=(call,),
        overlaps=overlaps,
        cycles=60.0 * _count(y),
        code_bytes=400,
    )
    return (variant,)


def broadcast_fields(graph: Graph, op: Op, a: Tensor, b: Tensor, y: Tensor) -> dict[str, int]:
    """Return the fields of es_broadcast_shape: as few loops as the shapes allow.

    Adjacent dimensions in which each input either repeats or does not are one loop.
    """
    rank = len(y.shape)
    shapes = [(1,) * (rank - len(t.shape)) + tuple(t.shape) for t in (a, b)]
    meets = all(len(s) == rank for s in shapes) and all(
        n == max(i, j) and {i, j} <= {1, n} for n, i, j in zip(y.shape, *shapes, strict=True)
    )
    if not meets:
        raise refuse(
            graph, op, f"makes {y.shape} of {a.shape} and {b.shape}", "export the model again"
        )
    loops: list[tuple[int, bool, bool]] = []  # size, whether a repeats, whether b does
    for n, i, j in zip(y.shape, *shapes, strict=True):
        if n == 1:
            continue
        repeats = i != n, j != n
        if loops and loops[-1][1:] == repeats:
            loops[-1] = (loops[-1][0] * n, *repeats)
        else:
            loops.append((n, *repeats))
    if len(loops) > _MAX_LOOPS:
        raise refuse(
            graph, op, f"broadcasts {a.shape} and {b.shape} along too many dimensions in turn",
            "reshape its inputs",
        )  # fmt: skip
    loops = [(1, False, False)] * (_MAX_LOOPS - len(loops)) + loops
    fields = {f"d{k}": loop[0] for k, loop in enumerate(loops)}
    for position, letter in ((1, "a"), (2, "b")):
        strides, step = [], 1
        for loop in reversed(loops):
            strides.append(0 if loop[position] else step)
            step *= 1 if loop[position] else loop[0]
        fields |= {f"{letter}{k}": s for k, s in enumerate(reversed(strides))}
    return fields


def _variants(
    graph: Graph, op: Op, stem: str, shape: StructArg, *, cycles_per_value: int
) -> tuple[Variant, ...]:
    """Return the kernel for equal shapes, or that for others, and the table where one input is
    a single constant."""
    a, b, y = _tensors(graph, op)
    fields = broadcast_fields(graph, op, a, b, y)
    args: tuple[Arg, ...] = _pointers(a, b, y)
    n = _count(y)
    if a.shape == b.shape == y.shape:
        function = f"{stem}__ref"
        structs: tuple[Arg, ...] = (shape,)
        cycles = float(cycles_per_value * n)
    else:
        function = f"{stem}_broadcast__ref"
        structs = (shape, StructArg(type="es_broadcast_shape", fields=fields))
        cycles = float((cycles_per_value + 12) * n + 60 * (n // fields["d4"]))
    variant = Variant(
        name="ref",
        calls=(Call(function=function, args=(*structs, *args)),),
        overlaps=_overlaps(a, b, y),
        cycles=cycles,
        code_bytes=310 if len(structs) == 1 else 470,
    )
    return (variant, *pointwise_variants(graph, op))


def _dsp_add(a: Tensor, b: Tensor, y: Tensor, shape: StructArg) -> tuple[Variant, ...]:
    """Return the variants with short rounding where the output's shift allows them."""
    if not -22 <= shape.fields["y_shift"] <= -1:
        return ()
    halves = [shape.fields[f"{t}_multiplier"] for t in "ab" if shape.fields[f"{t}_shift"] == 0]
    if any(m != 2**30 for m in halves):
        return ()
    pointers = _pointers(a, b, y)
    overlaps = _overlaps(a, b, y)
    variant = Variant(
        name="dsp",
        calls=(Call(function="es_add_s8__dsp", args=(shape, *pointers)),),
        overlaps=overlaps,
        cycles=56.0 * _count(y),
        code_bytes=260,
    )
    if not can_emit_add(shape.fields):
        return (variant,)
    name, emitted = emit_add(shape.fields)
    written = Variant(
        name="dsp for these scales",
        calls=(Call(function=name, args=pointers, emitted=emitted),),
        overlaps=overlaps,
        cycles=add_cycles(shape.fields),
        code_bytes=290,
    )
    return (variant, written)


def _scalar_add(a: Tensor, b: Tensor, y: Tensor, f: Mapping[str, int]) -> tuple[Variant, ...]:
    """Return the variant with a table for the input with the smaller scale.

    The larger scale is half of the common one: multiplying by 2^20 and then 1/2 rounds nothing.
    """
    exact, rounded = ("a", "b") if (f["a_multiplier"], f["a_shift"]) == (2**30, 0) else ("b", "a")
    if (f[f"{exact}_multiplier"], f[f"{exact}_shift"]) != (2**30, 0) or not -22 <= f["y_shift"] < 0:
        return ()
    signs = {"a": 1, "b": f["b_sign"]}
    factor = signs[exact] * 2**19
    stored = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.int64) - f[f"{rounded}_zero"]
    scaled = multiply(stored << 20, (f[f"{rounded}_multiplier"], f[f"{rounded}_shift"]))
    table = signs[rounded] * scaled - factor * f[f"{exact}_zero"]
    shape = StructArg(
        type="es_add_table_shape",
        fields={
            "n": f["n"],
            "factor": factor,
            "y_multiplier": f["y_multiplier"],
            "y_constant": (1 << (-f["y_shift"] - 1)) + (f["y_zero"] << -f["y_shift"]),
            "y_right": -f["y_shift"],
            "y_min": f["y_min"],
            "y_max": f["y_max"],
        },
    )
    tensors = {"a": TensorArg(tensor=a.index), "b": TensorArg(tensor=b.index)}
    args = (
        shape,
        tensors[exact],
        tensors[rounded],
        ConstArg(name="table", values=table.astype(np.int32)),
        TensorArg(tensor=y.index),
    )
    variant = Variant(
        name="scalar",
        calls=(Call(function="es_add_s8_table__scalar", args=args),),
        overlaps=_overlaps(a, b, y),
        cycles=50.0 * f["n"],
        code_bytes=160,
    )
    return (variant,)


def _overlaps(a: Tensor, b: Tensor, y: Tensor) -> Mapping[int, int]:
    """Return what y may be written over: inputs of its size, which are read in its order."""
    found: dict[int, int] = {}
    for tensor in (a, b):
        if _count(tensor) == _count(y):
            found |= elementwise_distance(tensor, y)
    return found


def _pointers(a: Tensor, b: Tensor, y: Tensor) -> tuple[TensorArg, TensorArg, TensorArg]:
    return TensorArg(tensor=a.index), TensorArg(tensor=b.index), TensorArg(tensor=y.index)


def _tensors(graph: Graph, op: Op) -> tuple[Tensor, Tensor, Tensor]:
    if len(op.inputs) != 2 or min(op.inputs) < 0:
        raise refuse(graph, op, "has not two inputs", "export the model again")
    a, b = (graph.tensors[i] for i in op.inputs)
    return a, b, graph.tensors[op.outputs[0]]


def _suffix(graph: Graph, op: Op, *tensors: Tensor) -> str:
    types = tuple(t.dtype for t in tensors)
    if len(set(types)) != 1 or types[0] not in _SUFFIX:
        raise refuse(graph, op, f"has the types {', '.join(types)}", "quantize the model to int8")
    return _SUFFIX[types[0]]


def _factor(graph: Graph, op: Op, real: float) -> tuple[int, int]:
    """Return `quantize_multiplier` of a factor that a left shift within int32 can express."""
    multiplier, shift = quantize_multiplier(real)
    if real >= 2**30 or shift > 30:
        raise refuse(
            graph, op, f"has scales whose quotient is {real:g}",
            "calibrate on data that the model meets",
        )  # fmt: skip
    return multiplier, shift


def _count(tensor: Tensor) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64))


TABLE: Final = {
    "ADD": add,
    "SUB": add,
    "MUL": mul,
    "MAXIMUM": maximum_minimum,
    "MINIMUM": maximum_minimum,
    "PRELU": prelu,
}
