"""Between the model's arrays and the file's."""

from __future__ import annotations

import numpy as np
import pytest

from edgeshrink.artifact import IoSpec
from edgeshrink.predict import (
    dequantize_array,
    from_file_layout,
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


def test_predict_over_an_identity_file_returns_the_quantized_input():
    class Identity:
        def run(self, *arrays):
            return arrays

    predict = tflite_predict(Identity(), (IMAGE,), (IMAGE,), "single")
    values = np.random.default_rng(1).uniform(-50, 50, (5, 3, 4, 5)).astype(np.float32)
    assert np.abs(predict(values) - values).max() <= 0.25 + 1e-6
