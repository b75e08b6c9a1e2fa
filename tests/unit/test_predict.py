"""Between the model's arrays and the file's."""

from __future__ import annotations

import numpy as np
import pytest

from edgeshrink.artifact import IoSpec
from edgeshrink.predict import (
    dequantize_array,
    from_file_layout,
    pte_predict,
    quantize_array,
    restructure,
    tflite_predict,
    to_file_layout,
)

IMAGE = IoSpec(
    name="x", shape=(1, 4, 5, 3), dtype="int8", scale=0.5, zero_point=3,
    layout="channels-last", model_shape=(1, 3, 4, 5),
)  # fmt: skip
SIGNAL = IoSpec(
    name="s", shape=(1, 1, 7, 2), dtype="int8", scale=1.0, zero_point=0,
    layout="channels-last", model_shape=(1, 2, 7),
)  # fmt: skip


def test_quantizing_rounds_half_to_even_and_clamps():
    codes = quantize_array(np.array([0.25, 0.75, -0.25, 1e9, -1e9], np.float32), IMAGE)
    assert codes.dtype == np.int8
    assert codes.tolist() == [3, 5, 3, 127, -128]


def test_dequantizing_inverts_every_code():
    codes = np.arange(-128, 128).astype(np.int8)
    assert np.array_equal(quantize_array(dequantize_array(codes, IMAGE), IMAGE), codes)


@pytest.mark.parametrize("spec", [IMAGE, SIGNAL])
def test_layout_there_and_back_changes_nothing(spec):
    values = np.random.default_rng(0).standard_normal((6, *spec.model_shape[1:]))
    there = to_file_layout(values, spec)
    assert there.shape == (6, *spec.shape[1:])
    assert np.array_equal(from_file_layout(there, spec), values)


def test_channels_last_moves_the_channel_of_each_position():
    values = np.arange(60).reshape(1, 3, 4, 5)
    assert to_file_layout(values, IMAGE)[0, 2, 4, 1] == values[0, 1, 2, 4]


def test_outputs_come_back_in_the_models_structure():
    leaves = [np.zeros(1), np.ones(2)]
    assert restructure(leaves, (IMAGE, SIGNAL), "dict").keys() == {"x", "s"}
    assert isinstance(restructure(leaves, (IMAGE, SIGNAL), "tuple"), tuple)
    assert restructure(leaves[:1], (IMAGE,), "single") is leaves[0]


VECTOR = IoSpec(name="v", shape=(1, 4), dtype="int8", scale=0.25, zero_point=-8)
FLOAT = IoSpec(
    name="f", shape=(1, 4, 5, 3), dtype="float32", layout="channels-last", model_shape=(1, 3, 4, 5)
)
INDICES = IoSpec(name="i", shape=(1, 2), dtype="int32", model_shape=(1, 2))


class Recorder:
    """A runner that keeps what it was given and gives back what it was told to."""

    def __init__(self, *results):
        self.results = results
        self.given: tuple[np.ndarray, ...] = ()

    def run(self, *arrays):
        self.given = arrays
        return self.results or arrays


def test_quantizing_follows_the_definition():
    """stored = round(real / scale) + zero point (TFLite 8-bit quantization specification)."""
    values = np.array([0.0, 0.25, 0.3, -1.0, 31.0, 34.0, -40.0], np.float32)
    assert quantize_array(values, VECTOR).tolist() == [-8, -7, -7, -12, 116, 127, -128]


def test_float_specification_changes_the_type_and_nothing_else():
    values = np.array([0.1, -3e9, 1e-9])
    assert np.array_equal(quantize_array(values, FLOAT), values.astype(np.float32))
    assert dequantize_array(values, FLOAT) is values


def test_indices_are_cast_and_not_scaled():
    stored = quantize_array(np.array([[3, 70000]], np.int64), INDICES)
    assert stored.dtype == np.int32
    assert stored.tolist() == [[3, 70000]]


def test_dequantized_values_are_float32_and_wide_enough():
    """The difference of two int8 numbers does not fit int8."""
    got = dequantize_array(np.array([127, -128], np.int8), VECTOR)
    assert got.dtype == np.float32
    assert got.tolist() == [33.75, -30.0]


def test_signal_gets_a_height_of_one_in_the_file():
    values = np.arange(14).reshape(1, 2, 7)
    there = to_file_layout(values, SIGNAL)
    assert there.shape == (1, 1, 7, 2)
    assert there[0, 0, 3].tolist() == [values[0, 0, 3], values[0, 1, 3]]


def test_output_of_unknown_model_shape_keeps_the_files_shape():
    assert from_file_layout(np.zeros((3, 4)), VECTOR).shape == (3, 4)


def test_arrays_for_the_file_are_contiguous():
    assert to_file_layout(np.zeros((2, 3, 4, 5)), IMAGE).flags.c_contiguous


def test_runner_of_a_tflite_gets_each_input_quantized_in_its_own_layout():
    runner = Recorder(np.zeros((2, 4), np.int8))
    predict = tflite_predict(runner, (IMAGE, VECTOR), (VECTOR,), "single")
    image = np.zeros((2, 3, 4, 5), np.float32)
    image[1, 2, 0, 4] = 5.0
    predict(image, np.full((2, 4), 1.0, np.float32))
    assert [(a.shape, a.dtype) for a in runner.given] == [
        ((2, 4, 5, 3), np.int8),
        ((2, 4), np.int8),
    ]
    assert runner.given[0][1, 0, 4, 2] == 13
    assert (runner.given[0] == 3).sum() == image.size - 1
    assert (runner.given[1] == -4).all()


def test_outputs_of_a_tflite_come_back_real_named_and_in_the_models_layout():
    image = np.full((2, 4, 5, 3), 3, np.int8)
    image[0, 1, 2, 0] = 7
    runner = Recorder(image, np.full((2, 1, 7, 2), -5, np.int8))
    predict = tflite_predict(runner, (VECTOR,), (IMAGE, SIGNAL), "dict")
    got = predict(np.zeros((2, 4)))
    assert list(got) == ["x", "s"]
    assert got["x"].shape == (2, 3, 4, 5)
    assert got["x"][0, 0, 1, 2] == 2.0
    assert np.count_nonzero(got["x"]) == 1
    assert got["s"].shape == (2, 2, 7)
    assert (got["s"] == -5.0).all()


def test_wrong_number_of_inputs_is_no_silent_truncation():
    predict = tflite_predict(Recorder(), (IMAGE, VECTOR), (VECTOR,), "single")
    with pytest.raises(ValueError, match="argument 2 is longer"):
        predict(np.zeros((1, 3, 4, 5)))


def test_runner_of_a_pte_gets_the_models_own_arrays_contiguous():
    runner = Recorder()
    values = np.zeros((2, 4, 5, 3), np.float32).transpose(0, 3, 1, 2)
    got = pte_predict(runner, (IMAGE,), "tuple")(values)
    assert runner.given[0].flags.c_contiguous
    assert runner.given[0].shape == (2, 3, 4, 5)
    assert isinstance(got, tuple)


@pytest.mark.parametrize("structure", ["single", "tuple", "dict"])
def test_both_kinds_of_file_return_the_same_structure(structure):
    outputs = (VECTOR,) if structure == "single" else (VECTOR, INDICES)
    results = (np.zeros((1, 4), np.int8), np.zeros((1, 2), np.int32))[: len(outputs)]
    one = tflite_predict(Recorder(*results), (VECTOR,), outputs, structure)(np.zeros((1, 4)))
    other = pte_predict(Recorder(*results), outputs, structure)(np.zeros((1, 4)))
    assert type(one) is type(other)
    if structure == "dict":
        assert list(one) == list(other) == ["v", "i"]


def test_predict_over_an_identity_file_returns_the_quantized_input():
    class Identity:
        def run(self, *arrays):
            return arrays

    predict = tflite_predict(Identity(), (IMAGE,), (IMAGE,), "single")
    values = np.random.default_rng(1).uniform(-50, 50, (5, 3, 4, 5)).astype(np.float32)
    assert np.abs(predict(values) - values).max() <= 0.25 + 1e-6
