"""Activations, ABS, RSQRT, QUANTIZE, DEQUANTIZE and tables, on every value there is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as S
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgeshrink.errors import ModelError
from edgeshrink.graph_reader import read_graph
from edgeshrink.lowering import lower
from tests.kernels.host import HostModel, check_against_tflm, lowered_each_way
from tests.kernels.mutants import is_killed
from tests.kernels.pointwise_models import Spec, one_op

EVERY_INT8 = np.arange(-128, 128).astype(np.int8).reshape(1, -1)
EVERY_INT16 = np.arange(-32768, 32768).astype(np.int16).reshape(1, -1)
ZEROS = st.sampled_from([-128, -1, 0, 5, 127])
SCALES = st.one_of(
    st.integers(-9, 3).map(lambda e: 2.0**e),
    st.floats(-9, 3).map(lambda e: float(np.float32(2.0**e))),
)
SLOPES = st.sampled_from([-1.0, -0.3, 0.0, 0.01, 0.2, 0.5, 1.0, 1.7])


def model(kind, x, y, options=None):
    return one_op(kind, [x], y, options)


def int8(scale, zero):
    return Spec((256,), "INT8", scale, zero)


def int16(scale):
    return Spec((65536,), "INT16", scale, 0)


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(["RELU", "RELU6", "LEAKY_RELU", "ELU", "HARD_SWISH", "ABS"]),
    scales=st.tuples(SCALES, SCALES),
    zeros=st.tuples(ZEROS, ZEROS),
    slope=SLOPES,
)
def test_int8_activations_equal_tensorflow_lite_micro_on_all_256_values(kind, scales, zeros, slope):
    x, y = (int8(*pair) for pair in zip(scales, zeros, strict=True))
    if kind == "HARD_SWISH":  # its 16-bit numbers know nothing else
        y = y._replace(scale=min(max(scales[1], scales[0] / 64), scales[0] * 128))
    options = S.LeakyReluOptionsT(alpha=slope) if kind == "LEAKY_RELU" else None
    check_against_tflm(model(kind, x, y, options), EVERY_INT8)


@settings(max_examples=50, deadline=None)
@given(kind=st.sampled_from(["LOGISTIC", "TANH"]), scale=SCALES, zero=ZEROS)
def test_int8_sigmoids_equal_tensorflow_lite_micro_on_all_256_values(kind, scale, zero):
    y = int8(1 / 256, -128) if kind == "LOGISTIC" else int8(1 / 128, 0)
    check_against_tflm(model(kind, int8(scale, zero), y), EVERY_INT8)


@settings(max_examples=40, deadline=None)
@given(scales=st.tuples(SCALES, SCALES), zeros=st.tuples(ZEROS, ZEROS))
def test_rsqrt_equals_tensorflow_lite_micro_wherever_it_is_defined(scales, zeros):
    x, y = (int8(*pair) for pair in zip(scales, zeros, strict=True))
    check_against_tflm(model("RSQRT", x, y), np.maximum(EVERY_INT8, zeros[0]).astype(np.int8))


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(["RELU_N1_TO_1", "RELU_0_TO_1"]),
    scale=SCALES,
    zeros=st.tuples(ZEROS, ZEROS),
)
def test_activations_that_micro_lacks_equal_those_of_litert(kind, scale, zeros):
    data = model(kind, int8(scale, zeros[0]), int8(scale, zeros[1]))
    oracle = litert.Interpreter(
        model_content=data,
        experimental_op_resolver_type=litert.OpResolverType.BUILTIN_REF,
    )
    oracle.allocate_tensors()
    oracle.set_tensor(oracle.get_input_details()[0]["index"], EVERY_INT8[0])
    oracle.invoke()
    expected = oracle.get_tensor(oracle.get_output_details()[0]["index"])
    for label, lowered in lowered_each_way(read_graph(data), ()):
        (got,) = HostModel(lowered).run(EVERY_INT8[0])
        np.testing.assert_array_equal(got, expected, err_msg=label)


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(["RELU", "RELU6", "LEAKY_RELU", "ABS"]),
    scales=st.tuples(SCALES, SCALES),
    slope=SLOPES,
)
@example(kind="ABS", scales=(1.0, 2.0), slope=0.0)
@example(kind="LEAKY_RELU", scales=(1.0, 2.0), slope=-1.0)
def test_int16_activations_equal_tensorflow_lite_micro_on_all_65536_values(kind, scales, slope):
    x, y = (int16(scale / 128) for scale in scales)
    options = S.LeakyReluOptionsT(alpha=slope) if kind == "LEAKY_RELU" else None
    check_against_tflm(model(kind, x, y, options), EVERY_INT16)


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(["LOGISTIC", "TANH"]),
    scale=st.one_of(st.integers(-16, 1).map(lambda e: 2.0**e), st.floats(2**-16, 2.6)),
)
@example(kind="LOGISTIC", scale=2.0**-12)
@example(kind="TANH", scale=2.0**-12)
@example(kind="TANH", scale=2.0**-11)
def test_int16_sigmoids_equal_tensorflow_lite_micro_on_all_65536_values(kind, scale):
    check_against_tflm(model(kind, int16(scale), int16(2.0**-15)), EVERY_INT16)


PAIRS = [
    ("INT8", "INT8"), ("INT8", "UINT8"), ("INT8", "INT16"), ("INT8", "INT32"), ("UINT8", "INT8"),
    ("INT16", "INT8"), ("INT16", "INT16"), ("INT16", "INT32"), ("INT32", "INT8"),
    ("INT32", "INT16"),
]  # fmt: skip
ZEROS_OF = {"INT8": [-128, 0, 127], "UINT8": [0, 128, 255], "INT16": [0], "INT32": [0]}


@pytest.mark.parametrize(("before", "after"), PAIRS)
@settings(max_examples=15, deadline=None)
@given(scales=st.tuples(SCALES, SCALES), data=st.data())
def test_requantization_equals_tensorflow_lite_micro(before, after, scales, data):
    zeros = [data.draw(st.sampled_from(ZEROS_OF[dtype])) for dtype in (before, after)]
    limits = np.iinfo(before.lower())
    values = np.arange(limits.min, limits.max + 1) if limits.bits <= 16 else SPREAD
    x = values.astype(before.lower()).reshape(1, -1)
    shape = (x.size,)
    file = model(
        "QUANTIZE",
        Spec(shape, before, scales[0], zeros[0]),
        Spec(shape, after, scales[1], zeros[1]),
    )
    check_against_tflm(file, x)


# Small ones, ones near the limits of int16, and any whose left shift stays within int32.
SPREAD = np.concatenate(
    [np.arange(-3000, 3001), np.arange(30000, 36000), -np.arange(30000, 36000),
     np.random.default_rng(0).integers(-(2**18), 2**18, 5000)]
)  # fmt: skip


@pytest.mark.parametrize("dtype", ["INT8", "INT16"])
@settings(max_examples=40, deadline=None)
@given(scale=SCALES, zero=ZEROS, seed=st.integers(0, 2**31))
def test_quantization_of_floats_equals_tensorflow_lite_micro_on_ties_and_beyond_the_limits(
    dtype, scale, zero, seed
):
    zero = zero if dtype == "INT8" else 0
    rng = np.random.default_rng(seed)
    ties = (np.arange(-400, 400) + 0.5) * np.float32(scale)
    near = np.concatenate(
        [np.nextafter(ties.astype(np.float32), np.float32(s)) for s in (-9e9, 9e9)]
    )
    noise = rng.standard_normal(500) * scale * 10.0 ** rng.integers(-3, 6, 500)
    x = np.concatenate([ties, near, noise, [0.0, -0.0]]).astype(np.float32).reshape(1, -1)
    shape = (x.size,)
    data = model("QUANTIZE", Spec(shape, "FLOAT32", None), Spec(shape, dtype, scale, zero))
    check_against_tflm(data, x)


def test_quantization_of_what_has_no_int32_saturates_and_no_number_is_the_zero_point():
    shape = (5,)
    data = model("QUANTIZE", Spec(shape, "FLOAT32", None), Spec(shape, "INT8", 0.5, 7))
    x = np.array([np.inf, -np.inf, np.nan, 3e38, -3e38], np.float32)
    (y,) = HostModel(lower(read_graph(data), ())).run(x)
    assert y.tolist() == [127, -128, 7, 127, -128]


@pytest.mark.parametrize("dtype", ["INT8", "UINT8", "INT16"])
@settings(max_examples=30, deadline=None)
@given(scale=SCALES, data=st.data())
def test_dequantization_equals_tensorflow_lite_micro_on_every_value(dtype, scale, data):
    zero = data.draw(st.sampled_from(ZEROS_OF[dtype]))
    limits = np.iinfo(dtype.lower())
    x = np.arange(limits.min, limits.max + 1).astype(dtype.lower()).reshape(1, -1)
    shape = (x.size,)
    check_against_tflm(
        model("DEQUANTIZE", Spec(shape, dtype, scale, zero), Spec(shape, "FLOAT32", None)), x
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_a_table_is_applied_to_every_value(seed):
    graph = read_graph(model("RELU", int8(1.0, 0), int8(1.0, 0)))
    table = np.random.default_rng(seed).integers(-128, 128, 256).astype(np.int8)
    lookup = replace(graph.ops[0], kind="LOOKUP", options={"table": table})
    for label, lowered in lowered_each_way(replace(graph, ops=(lookup,)), ()):
        (got,) = HostModel(lowered).run(EVERY_INT8[0])
        np.testing.assert_array_equal(got, table[EVERY_INT8[0].view(np.uint8)], err_msg=label)


def test_a_relu_that_keeps_its_scale_needs_no_table():
    lowered = lower(read_graph(model("RELU", int8(0.1, -3), int8(0.1, -3))), (), optimize="flash")
    assert [call.function for call in lowered.steps[0].variant.calls] == ["es_clamp_s8__ref"]


def test_a_requantization_that_changes_nothing_costs_nothing():
    lowered = lower(read_graph(model("QUANTIZE", int8(0.1, -3), int8(0.1, -3))), ())
    assert lowered.steps[0].variant.calls == ()


RELU = (model("RELU", int8(0.1, 3), int8(0.1, 3)), EVERY_INT8)
LEAKY = (model("LEAKY_RELU", int16(1.0), int16(2.0), S.LeakyReluOptionsT(alpha=-1.0)), EVERY_INT16)
ABS = (model("ABS", int16(1.0), int16(2.0)), EVERY_INT16)
TANH = (model("TANH", int16(1e-4), int16(2.0**-15)), EVERY_INT16)
HALVES = np.arange(-300, 300, dtype=np.float32).reshape(1, -1) / 2
FLOAT = (model("QUANTIZE", Spec((600,), "FLOAT32", None), Spec((600,), "INT8", 1.0, 0)), HALVES)
MUTANTS = {
    "a table read with a sign": (RELU, "table", "table[(uint8_t)x[i]]", "table[x[i] & 127]"),
    "a lower limit off by one": (RELU, "clamp", "es_clamp(x[i], low", "es_clamp(x[i], low + 1"),
    "a slope without its sign": (LEAKY, "ref", "shape->neg_sign * es", "es"),
    "the highest magnitude wraps": (ABS, "ref", "es_clamp(v, INT16_MIN, INT16_MAX)", "v + 1"),
    "a table without steps between": (TANH, "ref", "magnitude & 0xff", "0"),
    "halves towards 0": (FLOAT, "ref", "rest >= 0.5f", "rest > 0.5f"),
    "negative halves up": (FLOAT, "ref", "rest <= -0.5f", "rest < -0.5f"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_every_value_kills_a_mutant(name):
    (data, x), variant, old, new = MUTANTS[name]
    assert is_killed(data, [x], old, new, variant=variant)


FAULTS = {
    "float": ("RELU", Spec((3,), "FLOAT32", None), Spec((3,), "FLOAT32", None), "types"),
    "int16 where only int8 will do": ("ELU", int16(0.1), int16(0.1), "types"),
    "another zero point for a sigmoid": ("LOGISTIC", int8(0.1, 0), int8(1 / 256, 0), "zero point"),
    "another scale for an int16 sigmoid": ("TANH", int16(0.1), int16(0.1), "output scale"),
    "a scale too large for an int16 sigmoid": ("TANH", int16(3.0), int16(2.0**-15), "input scale"),
    "types that do not meet": ("QUANTIZE", int8(0.1, 0), Spec((256,), "INT64", 0.1), "types"),
    "a scale for every channel": (
        "DEQUANTIZE", Spec((2,), "INT8", (0.1, 0.2)), Spec((2,), "FLOAT32", None), "per channel",
    ),
    "no scale": ("QUANTIZE", Spec((3,), "INT8", None), Spec((3,), "INT8", 0.1), "no scale"),
    "another number of values": ("ABS", Spec((3,)), Spec((2,)), "(2,)"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_can_not_be_compiled_names_operator_layer_and_remedy(name):
    kind, x, y, words = FAULTS[name]
    with pytest.raises(ModelError) as caught:
        lower(read_graph(one_op(kind, [x], y, version=2)), ())
    assert caught.value.where == f"operator 0 {kind} v2 (y)"
    assert words in caught.value.what
    assert caught.value.fix
