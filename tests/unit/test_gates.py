"""What a file must pass: allowed operators, no float left, agreement of the engines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgeshrink.errors import ModelError
from edgeshrink.exporting.gates import (
    EQUAL,
    EXACT,
    GROSS,
    MAX_RELATIVE,
    Difference,
    Limit,
    check_int8,
    check_operators,
    compare,
    difference,
    engine_limit,
    is_exact,
    limit_lsb,
    output_steps,
)
from edgeshrink.graph import Graph, Op, Quantization, Tensor
from edgeshrink.target import load_target

ONE = Quantization(scales=np.ones(1, np.float32), zero_points=np.zeros(1, np.int64))


def chain(*kinds: str, dtypes: tuple[str, ...] = (), custom: bool = False) -> Graph:
    """Operators in a row; `dtypes` of the tensors from the input on, int8 where not given."""
    types = (*dtypes, *["int8"] * (len(kinds) + 1 - len(dtypes)))
    tensors = tuple(
        Tensor(
            index=i, name=f"features.{i}" if i else "x", shape=(1, 4), dtype=dtype,
            quantization=ONE if dtype == "int8" else None,
        )
        for i, dtype in enumerate(types)
    )  # fmt: skip
    ops = tuple(
        Op(index=i, kind=kind, version=1, inputs=(i, -1), outputs=(i + 1,), options={},
           is_custom=custom)
        for i, kind in enumerate(kinds)
    )  # fmt: skip
    return Graph(name="m", tensors=tensors, ops=ops, inputs=(0,), outputs=(len(kinds),))


APPLICATION = load_target("rpi4")
INT8_ONLY = replace(APPLICATION, name="mcu", ops=replace(APPLICATION.ops, dtypes=("int8",)))


# --- operators and types ----------------------------------------------------------------------


def test_target_of_these_tests_computes_in_float():
    assert "float32" in APPLICATION.ops.dtypes


def test_float_operator_on_an_int8_target_is_refused_by_operator_layer_and_remedy():
    graph = chain("CONV_2D", "SOFTMAX", dtypes=("int8", "int8", "float32"))
    with pytest.raises(ModelError) as caught:
        check_operators(graph, INT8_ONLY)
    assert caught.value.where == "operator 1 SOFTMAX (layer 'features.2')"
    assert caught.value.what == "computes in float32, mcu allows int8"
    assert "quantize the model" in caught.value.fix


def test_float_operator_passes_where_the_target_computes_in_float():
    check_operators(chain("CONV_2D", dtypes=("float32", "float32")), APPLICATION)


def test_indices_and_shapes_are_no_float_and_pass_everywhere():
    check_operators(chain("ARG_MAX", dtypes=("int8", "int32")), INT8_ONLY)


def test_operator_that_the_target_denies_is_refused_though_it_is_int8():
    target = replace(APPLICATION, ops=replace(APPLICATION.ops, deny=("TRANSPOSE_CONV",)))
    check_operators(chain("CONV_2D"), target)
    with pytest.raises(ModelError, match=r"TRANSPOSE_CONV .*features.2.* is not allowed on rpi4"):
        check_operators(chain("CONV_2D", "TRANSPOSE_CONV"), target)


def test_custom_operator_is_refused_everywhere():
    with pytest.raises(ModelError, match="MY_OP"):
        check_operators(chain("MY_OP", custom=True), APPLICATION)


@pytest.mark.parametrize("dtypes", [("int8", "float32"), ("float32", "int8"), ("int8", "float16")])
def test_float_left_in_a_quantized_graph_is_refused_on_either_side(dtypes):
    with pytest.raises(ModelError, match=r"operator 0 DEQUANTIZE .* stayed in floating point"):
        check_int8(chain("DEQUANTIZE", dtypes=dtypes))


def test_graph_of_integers_passes():
    check_int8(chain("CONV_2D", "ARG_MAX", dtypes=("int8", "int8", "int32")))


# --- agreement --------------------------------------------------------------------------------


def codes(*values: int) -> list[np.ndarray]:
    return [np.array([values], np.int8)]


def within(largest: float, rms: float | None = None) -> Limit:
    return Limit(largest=largest, rms=largest if rms is None else rms)


def error_of(largest: float, rms: float) -> Difference:
    return Difference(largest=largest, rms=rms, differing=1.0, n_values=100)


def test_equal_outputs_agree_where_equality_is_demanded():
    found = compare("a", "b", codes(1, 2, -128), codes(1, 2, -128), limit=EQUAL)
    assert (found.largest, found.rms, found.differing, found.n_values) == (0, 0, 0, 3)


def test_one_lsb_is_refused_where_equality_is_demanded():
    with pytest.raises(ModelError, match="outputs of a and b: differ by up to 1 LSB"):
        compare("a", "b", codes(1, 2, 3), codes(1, 2, 4), limit=EQUAL)


def test_difference_is_taken_in_full_range_without_wrapping():
    with pytest.raises(ModelError, match="255 LSB"):
        compare("a", "b", codes(-128), codes(127), limit=within(4))


def test_figures_of_an_agreement_are_those_of_the_differences():
    got, expected = codes(0, 0, 0, -2), codes(0, 0, 0, 0)
    found = compare("a", "b", got, expected, limit=within(5, 3))
    assert (found.largest, found.rms, found.differing, found.n_values) == (2, 1, 0.25, 4)
    assert (found.unit, found.limit, found.rms_limit) == ("LSB", 5, 3)
    assert found.within_limit
    apart = difference(got, expected)
    assert (apart.largest, apart.rms, apart.differing, apart.n_values) == (2, 1, 0.25, 4)


def test_outputs_of_several_tensors_are_all_looked_at():
    fine, off = np.zeros((2, 3), np.int8), np.full((2, 1), 9, np.int8)
    with pytest.raises(ModelError, match="9 LSB"):
        compare("a", "b", [fine, off], [fine, off * 0], limit=within(5))


def test_shift_of_every_value_is_refused_though_each_is_within_the_limit():
    """One rounding differs here and there; a wrong zero point moves everything."""
    expected = [np.arange(-50, 50, dtype=np.int8)]
    with pytest.raises(ModelError, match="rms 4"):
        compare("a", "b", [expected[0] + np.int8(4)], expected, limit=within(5, 2))


def test_saturated_scale_is_refused():
    """What trap T3 does to a file: the widest values are cut off, the others are right."""
    values = np.random.default_rng(0).normal(0, 40, 1000)
    expected = [np.clip(np.round(values), -128, 127).astype(np.int8)]
    got = [np.clip(np.round(values), -60, 60).astype(np.int8)]
    with pytest.raises(ModelError, match="differ by up to"):
        compare("litert", "torch", got, expected, limit=engine_limit(chain(*["RSQRT"] * 40)))


def test_float_outputs_are_measured_in_shares_of_the_largest():
    expected = [np.array([[100.0, -200.0]], np.float32)]
    found = compare("a", "b", [expected[0] + np.float32(0.1)], expected, limit=EQUAL)
    assert found.unit == "of the largest output"
    assert found.largest == pytest.approx(0.1 / 200, rel=1e-3)
    with pytest.raises(ModelError, match="of the largest output"):
        compare("a", "b", [expected[0] * (1 + 2 * MAX_RELATIVE)], expected, limit=EQUAL)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_output_that_is_not_finite_is_refused(bad):
    expected = [np.array([[1.0, 2.0]], np.float32)]
    got = [np.array([[1.0, bad]], np.float32)]
    with pytest.raises(ModelError, match="outputs of a and b"):
        compare("a", "b", got, expected, limit=EQUAL)


def test_float_output_of_zeros_does_not_divide_by_zero():
    zeros = [np.zeros((1, 2), np.float32)]
    assert compare("a", "b", zeros, zeros, limit=EQUAL).largest == 0


# --- what quantization itself did ---------------------------------------------------------------


def test_what_quantization_did_is_allowed_between_engines_too():
    graph = chain("CONV_2D", "FULLY_CONNECTED")
    error = error_of(largest=9, rms=5)
    limit = engine_limit(graph, error)
    assert (limit.largest, limit.quantization) == (9, error)
    assert 1 < limit.rms < 5, "half of it adds an eighth to the noise, all of it doubles the power"
    found = compare("a", "b", codes(0, 0, 0, 7), codes(0, 0, 0, 0), limit=within(9, 4))
    assert found.quantization_largest is None
    found = compare("a", "b", codes(0, 0, 0, 0, 0, 7), codes(0, 0, 0, 0, 0, 0), limit=engine_limit(
        graph, error_of(largest=9, rms=6)))  # fmt: skip
    assert (found.quantization_largest, found.quantization_rms) == (9, 6)


def test_small_quantization_error_takes_nothing_from_what_roundings_may_do():
    graph = chain("CONV_2D", "FULLY_CONNECTED")
    limit = engine_limit(graph, error_of(largest=0, rms=0))
    assert limit.largest == limit_lsb(graph) >= 2
    assert limit.rms >= 1


@pytest.mark.parametrize("fault", [30, 57])
def test_fault_far_beyond_the_quantization_error_is_refused_with_both_figures(fault):
    limit = engine_limit(chain("CONV_2D", "ADD", "MEAN"), error_of(largest=2, rms=0.6))
    got, expected = np.zeros((1, 1000), np.int8), np.zeros((1, 1000), np.int8)
    got[0, 0] = fault
    with pytest.raises(ModelError, match=f"up to {fault} LSB.*moves them by up to 2 .rms 0.6"):
        compare("torch", "litert", [got], [expected], limit=limit)


@pytest.mark.parametrize(
    ("engine", "cause"),
    [("torch", "the conversion changed"), ("executorch", "the conversion changed"),
     ("tflm", "tflm computes the file otherwise than litert")],
)  # fmt: skip
def test_conversion_is_blamed_only_where_two_conversions_are_compared(engine, cause):
    with pytest.raises(ModelError) as caught:
        compare(engine, "litert", codes(0, 99), codes(0, 0), limit=within(3))
    assert cause in caught.value.fix


# --- engines that the target does not run -------------------------------------------------------


def test_difference_of_an_engine_that_the_target_does_not_run_is_reported_and_no_error():
    limit = within(3, 2)
    got, expected = codes(0, 0, 0, 5), codes(0, 0, 0, 0)
    found = compare("a", "b", got, expected, limit=limit, is_run=False)
    assert not found.within_limit
    assert (found.largest, found.limit) == (5, 3)
    with pytest.raises(ModelError, match="up to 5 LSB"):
        compare("a", "b", got, expected, limit=limit)


@pytest.mark.parametrize("got", [codes(0, 0, 0, 100), codes(9, 9, 9, 9)])
def test_gross_difference_is_an_error_of_any_engine(got):
    """A constant read from the wrong place moves a few values far, or all of them."""
    expected = codes(0, 0, 0, 0)
    limit = within(3, 2)
    assert 2 * GROSS < 9
    with pytest.raises(ModelError, match="outputs of a and b"):
        compare("a", "b", got, expected, limit=limit, is_run=False)


# --- what must be equal -----------------------------------------------------------------------


def test_graph_is_exact_until_one_operator_is_a_table():
    assert is_exact(chain("CONV_2D", "ADD", "MEAN", "FULLY_CONNECTED"))
    assert not is_exact(chain("CONV_2D", "LOGISTIC", "FULLY_CONNECTED"))


def test_tables_and_rescaled_averages_are_not_called_exact():
    inexact = {"LOGISTIC", "TANH", "SOFTMAX", "LOG_SOFTMAX", "HARD_SWISH", "GELU", "RSQRT"}
    assert not EXACT & (inexact | {"AVERAGE_POOL_2D", "LEAKY_RELU", "QUANTIZE"})


def test_limit_grows_with_the_operators_that_round_and_stays_below_what_a_fault_does():
    plain, short = chain("RESHAPE", "TRANSPOSE"), chain("CONV_2D", "FULLY_CONNECTED")
    deep, normed = chain(*["CONV_2D"] * 50), chain(*["CONV_2D", "MUL", "RSQRT"] * 20)
    limits = [limit_lsb(graph) for graph in (plain, short, deep, normed)]
    assert limits == sorted(limits)
    assert limits[0] < limits[-1] <= 16
    assert limits[1] <= 3


# --- 16 bits ----------------------------------------------------------------------------------


def test_int16_outputs_are_counted_in_steps_of_int8_only_where_int8_is_rounded_before():
    wide = ("int16",) * 4
    assert output_steps(chain("CONV_2D", "ADD", dtypes=wide[:3])) == (1.0,)
    assert output_steps(
        chain("CONV_2D", "QUANTIZE", "ADD", dtypes=("int8", "int8", *wide[:2]))
    ) == (256.0,)
    moved = chain("PAD", "QUANTIZE", "CONV_2D", dtypes=("int8", "int8", "int16", "int16"))
    assert output_steps(moved) == (1.0,), "padding and reading int8 rounds nothing"
    assert output_steps(chain("CONV_2D", "QUANTIZE", dtypes=("int16", "int16", "int8"))) == (1.0,)
    assert output_steps(chain("CONV_2D", "ADD")) == (1.0,)


def test_a_step_of_int8_is_one_step_of_an_int16_output_behind_it():
    expected = np.array([[0, 300, -300]], np.int16)
    got = expected + np.array([[256, 0, -512]], np.int16)
    found = compare("tflm", "litert", [got], [expected], limit=Limit(largest=2, rms=2), steps=[256])
    assert found.largest == 2.0
    assert found.unit == "LSB of int8"
    assert difference([got], [expected]).largest == 512
    with pytest.raises(ModelError, match="differ by up to 512 LSB "):
        compare("tflm", "litert", [got], [expected], limit=Limit(largest=2, rms=2))


def test_coarse_tables_of_sixteen_bits_are_granted_where_all_is_int16():
    wide = chain("MUL", "RSQRT", dtypes=("int16",) * 3)
    assert limit_lsb(wide) > 63 > limit_lsb(chain("MUL", "RSQRT"))
    assert limit_lsb(chain("MUL", "MUL", dtypes=("int16",) * 3)) == limit_lsb(chain("MUL", "MUL"))
