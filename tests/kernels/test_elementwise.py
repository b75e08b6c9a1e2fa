"""ADD, SUB, MUL, MAXIMUM, MINIMUM and PRELU against TensorFlow Lite Micro, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as S
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgeshrink.errors import ModelError
from edgeshrink.graph_reader import read_graph
from edgeshrink.lowering import lower
from tests.kernels.host import (
    DSP_ISA,
    SCALAR_ISA,
    HostModel,
    check_against_tflm,
    lowered_each_way,
    random_inputs,
    tflm_outputs,
)
from tests.kernels.mutants import is_killed
from tests.kernels.pointwise_models import Spec, one_op

OPTIONS = {
    "ADD": S.AddOptionsT,
    "SUB": S.SubOptionsT,
    "MUL": S.MulOptionsT,
    "MAXIMUM": S.MaximumMinimumOptionsT,
    "MINIMUM": S.MaximumMinimumOptionsT,
}
ZEROS = st.sampled_from([-128, -1, 0, 5, 127])
# Powers of two make every product exact, so that sums and quotients fall on ties.
SCALES = st.one_of(
    st.integers(-9, 3).map(lambda e: 2.0**e),
    st.floats(-9, 3).map(lambda e: float(np.float32(2.0**e))),
)


@st.composite
def broadcasts(draw):
    """Two shapes that broadcast, and what they make."""
    y = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    repeated = st.sampled_from([(False, False), (True, False), (False, True)])
    kinds = [draw(repeated) for _ in y]
    a = [1 if kind[0] else n for n, kind in zip(y, kinds, strict=True)]
    b = [1 if kind[1] else n for n, kind in zip(y, kinds, strict=True)]
    shorter = draw(st.sampled_from([None, a, b]))
    while shorter is not None and len(shorter) > 1 and shorter[0] == 1:
        del shorter[0]
    return tuple(a), tuple(b), tuple(y)


def every_pair():
    """All 65,536 pairs of int8 values."""
    values = np.arange(-128, 128).astype(np.int8)
    return np.repeat(values, 256).reshape(1, -1), np.tile(values, 256).reshape(1, -1)


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(["ADD", "SUB", "MUL"]),
    shapes=broadcasts(),
    dtype=st.sampled_from(["INT8", "INT16"]),
    scales=st.tuples(SCALES, SCALES, SCALES),
    zeros=st.tuples(ZEROS, ZEROS, ZEROS),
    activation=st.sampled_from([0, 1, 2, 3]),
    seed=st.integers(0, 2**31),
)
def test_arithmetic_equals_tensorflow_lite_micro_for_any_shapes_that_broadcast(
    kind, shapes, dtype, scales, zeros, activation, seed
):
    zeros = zeros if dtype == "INT8" else (0, 0, 0)
    scales = scales if dtype == "INT8" else tuple(s / 128 for s in scales)
    *inputs, output = (
        Spec(shape, dtype, scale, zero)
        for shape, scale, zero in zip(shapes, scales, zeros, strict=True)
    )
    data = one_op(kind, inputs, output, OPTIONS[kind](fusedActivationFunction=activation))
    for isa in (DSP_ISA, SCALAR_ISA):
        check_against_tflm(data, *random_inputs(data, n=3, seed=seed), isa=isa)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["ADD", "SUB", "MUL"]),
    scales=st.tuples(SCALES, SCALES, SCALES),
    zeros=st.tuples(ZEROS, ZEROS, ZEROS),
)
def test_arithmetic_equals_tensorflow_lite_micro_on_every_pair_of_values(kind, scales, zeros):
    shape = (65536,)
    *inputs, output = (Spec(shape, "INT8", s, z) for s, z in zip(scales, zeros, strict=True))
    for isa in (DSP_ISA, SCALAR_ISA):
        check_against_tflm(one_op(kind, inputs, output, OPTIONS[kind]()), *every_pair(), isa=isa)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM"]),
    first=st.booleans(),
    constant=st.integers(-128, 127),
    scale=SCALES,
    seed=st.integers(0, 2**31),
)
def test_a_single_constant_may_become_a_table(kind, first, constant, scale, seed):
    single = Spec((1,), "INT8", scale, 3, np.array([constant], np.int8))
    rest = Spec((3, 90), "INT8", scale, 3)
    inputs = [single, rest] if first else [rest, single]
    data = one_op(kind, inputs, rest, OPTIONS[kind]())
    check_against_tflm(data, *random_inputs(data, seed=seed))


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["MAXIMUM", "MINIMUM"]),
    shapes=broadcasts(),
    dtype=st.sampled_from(["INT8", "INT16"]),
    seed=st.integers(0, 2**31),
)
def test_maximum_and_minimum_equal_tensorflow_lite_micro(kind, shapes, dtype, seed):
    *inputs, output = (Spec(shape, dtype, 0.1) for shape in shapes)
    data = one_op(kind, inputs, output, OPTIONS[kind]())
    check_against_tflm(data, *random_inputs(data, n=3, seed=seed))


@settings(max_examples=60, deadline=None)
@given(
    shapes=broadcasts(),
    dtype=st.sampled_from(["INT8", "INT16"]),
    scales=st.tuples(SCALES, SCALES, SCALES),
    zeros=st.tuples(ZEROS, ZEROS, ZEROS),
    seed=st.integers(0, 2**31),
)
def test_prelu_equals_tensorflow_lite_micro(shapes, dtype, scales, zeros, seed):
    _, alpha, y = shapes
    if dtype == "INT16":
        zeros, scales = (0, zeros[1], 0), (scales[0] / 128, scales[1], scales[2] / 128)
    inputs = [Spec(y, dtype, scales[0], zeros[0]), Spec(alpha, "INT8", scales[1], zeros[1])]
    data = one_op("PRELU", inputs, Spec(y, dtype, scales[2], zeros[2]))
    check_against_tflm(data, *random_inputs(data, n=3, seed=seed))


@settings(max_examples=60, deadline=None)
@given(shapes=broadcasts())
def test_a_sum_is_written_over_an_input_of_its_size(shapes):
    a, b, y = shapes
    sizes = [int(np.prod(shape)) for shape in shapes]
    assume(sizes[2] in sizes[:2])
    data = one_op("ADD", [Spec(a), Spec(b)], Spec(y, scale=0.1), S.AddOptionsT())
    lowered = lower(read_graph(data), ())
    padded = [-(-size // 16) * 16 for size in sizes]
    assert lowered.arena.n_bytes <= padded[0] + padded[1]


@pytest.mark.parametrize("isa", [DSP_ISA, SCALAR_ISA], ids=["dsp", "scalar"])
def test_an_activation_from_0_to_1_that_a_pass_fused_clamps_the_sum(isa):
    shape = (65536,)
    inputs = [Spec(shape, "INT8", 0.02, -3), Spec(shape, "INT8", 0.01, 7)]
    data = one_op("ADD", inputs, Spec(shape, "INT8", 0.02, -40), S.AddOptionsT())
    ((plain,),) = tflm_outputs(data, *every_pair())
    graph = read_graph(data)
    fused = replace(graph.ops[0], options={**graph.ops[0].options, "activation": "RELU_0_TO_1"})
    for label, lowered in lowered_each_way(replace(graph, ops=(fused,)), isa):
        (got,) = HostModel(lowered).run(*(values[0] for values in every_pair()))
        np.testing.assert_array_equal(got, np.clip(plain, -40, 10), err_msg=label)


# Scales of 1, 1 and 2: half of all sums end in a tie of the last shift; 1/3 makes inexact factors.
PLAIN = [Spec((65536,), "INT8", 1.0, -1), Spec((65536,), "INT8", 1.0, 2)]
UNEVEN = [Spec((65536,), "INT8", 1 / 3, -1), Spec((65536,), "INT8", 1.0, 2)]
# A factor of 2^30 + 2^9: half of all values of the second input end in a tie of their product.
TIED = [Spec((65536,), "INT8", 1.0, 0), Spec((65536,), "INT8", 0.5 + 2**-22, 0)]
MUTANTS = {
    "halves of the shift rounded up": (
        "ADD", PLAIN, 2.0, "(mask >> 1) + (x < 0 ? 1 : 0)", "(mask >> 1)",
    ),
    "the product truncated": (
        "ADD", UNEVEN, 2.0, "product + (INT64_C(1) << 30)", "product",
    ),
    "no clamp from below": (
        "ADD", PLAIN, 1.0, "es_clamp(sum, shape->y_min, shape->y_max)", "es_min(sum, shape->y_max)",
    ),
    "the sign of the second input lost": (
        "SUB", PLAIN, 2.0, "shape->b_sign * b", "b",
    ),
    "the second input negated before it is rounded": (
        "SUB", TIED, 2.0,
        "shape->b_multiplier, shape->b_shift);\n  sum = es_requantize(a + shape->b_sign * b",
        "shape->b_sign * shape->b_multiplier, shape->b_shift);\n  sum = es_requantize(a + b",
    ),
    "one zero point for both": (
        "MUL", PLAIN, 1.0, "(b - shape->b_zero)", "(b - shape->a_zero)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_every_pair_of_values_kills_a_mutant(name):
    kind, inputs, scale, old, new = MUTANTS[name]
    data = one_op(kind, inputs, Spec((65536,), "INT8", scale, 0), OPTIONS[kind]())
    assert is_killed(data, list(every_pair()), old, new, variant="ref")


FAULTS = {
    "a scale for every channel": (
        "ADD", [Spec((3,), "INT8", (0.1, 0.2, 0.3)), Spec((3,))], Spec((3,)), "per channel",
    ),
    "two types": ("ADD", [Spec((3,), "INT8"), Spec((3,), "INT16")], Spec((3,)), "types"),
    "float": (
        "MUL", [Spec((3,), "FLOAT32", None)] * 2, Spec((3,), "FLOAT32", None), "types",
    ),
    "an output scale too small for its inputs": (
        "ADD", [Spec((3,), "INT8", 1000.0)] * 2, Spec((3,), "INT8", 1e-4), "output scale",
    ),
    "an int16 zero point": (
        "MUL", [Spec((3,), "INT16", 0.1, 3), Spec((3,), "INT16")], Spec((3,), "INT16"),
        "zero point",
    ),
    "scales that differ": (
        "MAXIMUM", [Spec((3,), "INT8", 0.1), Spec((3,), "INT8", 0.2)], Spec((3,), "INT8", 0.1),
        "different scales",
    ),
    "shapes that do not broadcast": ("ADD", [Spec((3,)), Spec((2,))], Spec((3,)), "shapes"),
    "a TANH at the end": ("ADD", [Spec((3,))] * 2, Spec((3,)), "fused activation TANH"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_can_not_be_compiled_names_operator_layer_and_remedy(name):
    kind, inputs, output, words = FAULTS[name]
    options = OPTIONS[kind]()
    if "TANH" in name:
        options.fusedActivationFunction = S.ActivationFunctionType.TANH
    data = one_op(kind, inputs, output, options, version=2)
    with pytest.raises(ModelError) as caught:
        lower(read_graph(data), ())
    assert caught.value.where == f"operator 0 {kind} v2 (y)"
    assert words in caught.value.what
    assert caught.value.fix
