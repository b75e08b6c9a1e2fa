"""BATCH_MATMUL against TensorFlow Lite Micro, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as S
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeshrink.errors import ModelError
from edgeshrink.graph_reader import read_graph
from edgeshrink.lowering import lower
from tests.kernels.host import check_against_tflm, random_inputs
from tests.tiny_models import TfliteBuilder


def matmul_model(a_shape, w_shape, y_shape, *, dtype="INT8", zeros=(0, 0, 0), gain=0.01,
                 adj=(False, False), constant=False, seed=0):  # fmt: skip
    build = TfliteBuilder()
    values = np.random.default_rng(seed).integers(-128, 128, w_shape)
    values = values.astype({"INT8": np.int8, "INT16": np.int16}[dtype])
    scales = (0.05, 0.013, 0.05 * 0.013 / gain)
    if adj[0]:
        a_shape = (*a_shape[:-2], a_shape[-1], a_shape[-2])
    if adj[1]:
        w_shape = (*w_shape[:-2], w_shape[-1], w_shape[-2])
    a = build.tensor("a", a_shape, dtype, scale=scales[0], zero_point=zeros[0])
    data = values.reshape(w_shape) if constant else None
    w = build.tensor("w", w_shape, dtype, scale=scales[1], zero_point=zeros[1], data=data)
    y = build.tensor("y", y_shape, dtype, scale=scales[2], zero_point=zeros[2])
    options = S.BatchMatMulOptionsT(adjX=adj[0], adjY=adj[1])
    build.op("BATCH_MATMUL", [a, w], [y], options, 4)
    build.graph.inputs = [a] if constant else [a, w]
    build.graph.outputs = [y]
    return build.bytes()


@st.composite
def shapes(draw):
    """Shapes of a, w and y, with batches that broadcast."""
    rows, depth, columns = (draw(st.integers(1, 6)) for _ in range(3))
    batch = draw(st.lists(st.integers(1, 3), max_size=3))
    left, right = ([draw(st.sampled_from([n, n, 1])) for n in batch] for _ in range(2))
    a = left[draw(st.integers(0, len(batch))) :] if draw(st.booleans()) else left
    w = right[draw(st.integers(0, len(batch))) :] if draw(st.booleans()) else right
    y = np.broadcast_shapes(tuple(a), tuple(w))
    return (*a, rows, depth), (*w, depth, columns), (*y, rows, columns)


@settings(max_examples=40, deadline=None)
@given(
    sizes=shapes(),
    wide=st.booleans(),
    zeros=st.tuples(*[st.sampled_from([-128, 0, 5, 127])] * 3),
    gain=st.sampled_from([1e-5, 0.003, 0.01, 0.7, 1.0, 3.0]),
    adj=st.tuples(st.booleans(), st.booleans()),
    constant=st.booleans(),
)
def test_batch_matmul_equals_tensorflow_lite_micro(sizes, wide, zeros, gain, adj, constant):
    dtype = "INT16" if wide else "INT8"
    zeros = (0, 0, 0) if wide else zeros
    data = matmul_model(*sizes, dtype=dtype, zeros=zeros, gain=gain, adj=adj, constant=constant)
    check_against_tflm(data, *random_inputs(data))


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ({"a_shape": (2, 3, 4), "w_shape": (3, 4, 5), "y_shape": (3, 3, 5)}, "batches"),
        ({"a_shape": (3, 4), "w_shape": (5, 6), "y_shape": (3, 6)}, "do not agree"),
        ({"a_shape": (3, 4), "w_shape": (4, 6), "y_shape": (3, 5)}, "do not agree"),
        ({"a_shape": (1, 40000), "w_shape": (40000, 1), "y_shape": (1, 1)}, "40000 products"),
        (
            {"a_shape": (1, 2), "w_shape": (2, 1), "y_shape": (1, 1), "dtype": "INT16",
             "zeros": (1, 0, 0)}, "zero point",
        ),
        (
            {"a_shape": (1, 2), "w_shape": (2, 1), "y_shape": (1, 1), "dtype": "INT16",
             "gain": 300.0}, "recalibrate",
        ),
    ],
)  # fmt: skip
def test_impossible_matrix_products_name_operator_and_fault(case, words):
    with pytest.raises(ModelError, match=rf"operator 0 BATCH_MATMUL v4 \(y\).*{words}"):
        lower(read_graph(matmul_model(**case)), ("dsp",))
