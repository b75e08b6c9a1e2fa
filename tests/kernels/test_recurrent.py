"""SVDF and LSTM against TensorFlow Lite Micro over several inferences, bit for bit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeshrink.errors import ModelError
from edgeshrink.graph_reader import read_graph
from edgeshrink.lowering import lower
from tests.kernels.host import check_against_tflm, random_inputs
from tests.kernels.recurrent_models import lstm_model, svdf_model

SMALL = st.integers(1, 4)
ZERO = st.sampled_from([-128, -1, 0, 5, 127])


@settings(max_examples=40, deadline=None)
@given(
    batches=st.integers(1, 3),
    n_in=st.integers(1, 9),
    n_units=SMALL,
    rank=st.integers(1, 3),
    memory=st.integers(1, 5),
    wide=st.booleans(),
    zeros=st.tuples(ZERO, st.sampled_from([-128, 0, 7, 127]), ZERO),
    gains=st.tuples(
        st.sampled_from([1e-4, 0.02, 0.4, 3.0]), st.sampled_from([1e-4, 0.005, 0.2, 2.0])
    ),
    activation=st.sampled_from([0, 1]),
    seed=st.integers(0, 2**31),
)
def test_svdf_equals_tensorflow_lite_micro_over_time(**case):
    data = svdf_model(**case)
    check_against_tflm(data, *random_inputs(data, 10))


@settings(max_examples=40, deadline=None)
@given(
    batches=st.integers(1, 3),
    steps=SMALL,
    n_in=st.integers(1, 9),
    n_units=st.integers(1, 6),
    time_major=st.booleans(),
    zeros=st.tuples(ZERO, ZERO),
    cell_power=st.integers(-15, -8),
    clip=st.sampled_from([0.0, 0.0, 0.5, 3.0]),
    h_scale=st.sampled_from([1 / 128, 1 / 100, 0.03, 1e-4]),
    weight_scale=st.sampled_from([0.0005, 0.005, 0.02, 0.3]),
    largest=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_lstm_equals_tensorflow_lite_micro_over_time(**case):
    data = lstm_model(**case)
    check_against_tflm(data, *random_inputs(data, 5))


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ({"absent": (1,)}, "lacks a gate"),
        ({"absent": (18,)}, "lacks a gate"),
        ({"cell_scale": 0.0007}, "power of two"),
    ],
)
def test_unusual_lstm_cells_are_refused_with_a_remedy(case, words):
    with pytest.raises(ModelError, match=words) as caught:
        lower(read_graph(lstm_model(**case)), ())
    assert caught.value.where == "operator 0 UNIDIRECTIONAL_SEQUENCE_LSTM v3 (y)"
    assert caught.value.fix
