"""Operators that move values, against TensorFlow Lite Micro, bit for bit."""

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

SETTINGS = settings(max_examples=40, deadline=None)
SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)
DTYPES = st.sampled_from(["INT8", "FLOAT32"])


def model(kind, inputs, outputs, options=None, *, constants=(), dtype="INT8", version=1):
    """One operator: `inputs` are shapes, or arrays for constants (by position in `constants`)."""
    build = TfliteBuilder()
    quantized = {} if dtype == "FLOAT32" else {"scale": 0.1, "zero_point": 3}
    indices, fed = [], []
    for position, value in enumerate(inputs):
        if position in constants:
            array = np.asarray(value)
            kinds = {"int32": "INT32", "int8": "INT8", "float32": "FLOAT32"}
            extra = quantized if array.dtype == np.int8 else {}
            indices.append(
                build.tensor(
                    f"c{position}", array.shape, kinds[array.dtype.name], data=array, **extra
                )
            )
        else:
            indices.append(build.tensor(f"x{position}", value, dtype, **quantized))
            fed.append(indices[-1])
    results = [build.tensor(f"y{i}", shape, dtype, **quantized) for i, shape in enumerate(outputs)]
    build.op(kind, indices, results, options, version)
    build.graph.inputs, build.graph.outputs = fed, results
    return build.bytes()


def check(data):
    check_against_tflm(data, *random_inputs(data, 3))


@SETTINGS
@given(shape=SHAPES, data=st.data(), dtype=DTYPES, v2=st.booleans())
def test_pad_equals_tensorflow_lite_micro(shape, data, dtype, v2):
    amount = st.tuples(st.integers(0, 3), st.integers(0, 3))
    amounts = np.array(
        data.draw(st.lists(amount, min_size=len(shape), max_size=len(shape))), np.int32
    )
    out = tuple(int(n + a.sum()) for n, a in zip(shape, amounts, strict=True))
    value = np.array([7], np.int8) if dtype == "INT8" else np.array([1.5], np.float32)
    extra = [value] if v2 else []
    kind = "PADV2" if v2 else "PAD"
    options = S.PadV2OptionsT() if v2 else S.PadOptionsT()
    check(model(kind, [shape, amounts, *extra], [out], options, constants=(1, 2), dtype=dtype))


@SETTINGS
@given(shape=SHAPES, data=st.data(), dtype=DTYPES)
def test_concatenation_equals_tensorflow_lite_micro(shape, data, dtype):
    axis = data.draw(st.integers(0, len(shape) - 1))
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    shapes = [(*shape[:axis], n, *shape[axis + 1 :]) for n in sizes]
    out = (*shape[:axis], sum(sizes), *shape[axis + 1 :])
    options = S.ConcatenationOptionsT(axis=axis - data.draw(st.sampled_from([0, len(shape)])))
    check(model("CONCATENATION", shapes, [out], options, dtype=dtype))


@SETTINGS
@given(shape=SHAPES, data=st.data(), parts=st.integers(1, 4))
def test_split_equals_tensorflow_lite_micro(shape, data, parts):
    axis = data.draw(st.integers(0, len(shape) - 1))
    whole = (*shape[:axis], shape[axis] * parts, *shape[axis + 1 :])
    options = S.SplitOptionsT(numSplits=parts)
    axis_value = np.array([axis], np.int32)
    check(model("SPLIT", [axis_value, whole], [shape] * parts, options, constants=(0,)))


@SETTINGS
@given(shape=SHAPES, data=st.data())
def test_split_v_equals_tensorflow_lite_micro(shape, data):
    axis = data.draw(st.integers(0, len(shape) - 1))
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    whole = (*shape[:axis], sum(sizes), *shape[axis + 1 :])
    outs = [(*shape[:axis], n, *shape[axis + 1 :]) for n in sizes]
    inputs = [whole, np.array(sizes, np.int32), np.array([axis], np.int32)]
    options = S.SplitVOptionsT(numSplits=len(sizes))
    check(model("SPLIT_V", inputs, outs, options, constants=(1, 2)))


@SETTINGS
@given(shape=SHAPES, data=st.data(), dtype=DTYPES)
def test_transpose_equals_tensorflow_lite_micro(shape, data, dtype):
    order = data.draw(st.permutations(range(len(shape))))
    out = tuple(shape[a] for a in order)
    inputs = [shape, np.array(order, np.int32)]
    check(model("TRANSPOSE", inputs, [out], S.TransposeOptionsT(), constants=(1,), dtype=dtype))


@SETTINGS
@given(shape=SHAPES, data=st.data(), n=st.integers(1, 3), dtype=DTYPES)
def test_pack_and_unpack_equal_tensorflow_lite_micro(shape, data, n, dtype):
    axis = data.draw(st.integers(0, len(shape)))
    whole = (*shape[:axis], n, *shape[axis:])
    pack = S.PackOptionsT(axis=axis, valuesCount=n)
    check(model("PACK", [shape] * n, [whole], pack, dtype=dtype))
    unpack = S.UnpackOptionsT(axis=axis, num=n)
    check(model("UNPACK", [whole], [shape] * n, unpack, dtype=dtype))


@SETTINGS
@given(shape=SHAPES, data=st.data(), dtype=DTYPES)
def test_strided_slice_equals_tensorflow_lite_micro(shape, data, dtype):
    begins, ends, steps, taken = [], [], [], []
    for size in shape:
        step = data.draw(st.sampled_from([1, 2, 3, -1, -2]))
        first, last = sorted(data.draw(st.tuples(*[st.integers(0, size - 1)] * 2)))
        if step > 0:
            begin, end = first, last + 1
        else:
            begin, end = last, first - 1
        begins.append(begin)
        ends.append(end if end >= 0 else -size - 1)
        steps.append(step)
        taken.append(-(-abs(end - begin) // abs(step)))
    masks = data.draw(st.tuples(*[st.integers(0, 2 ** len(shape) - 1)] * 2))
    for axis, size in enumerate(shape):
        if masks[0] >> axis & 1:
            begins[axis] = 0 if steps[axis] > 0 else size - 1
        if masks[1] >> axis & 1:
            ends[axis] = size if steps[axis] > 0 else -size - 1
        low = ends[axis] if ends[axis] >= 0 else -1
        taken[axis] = -(-abs(low - begins[axis]) // abs(steps[axis]))
    if 0 in taken:
        return
    inputs = [shape, *(np.array(v, np.int32) for v in (begins, ends, steps))]
    options = S.StridedSliceOptionsT(beginMask=masks[0], endMask=masks[1])
    check(model("STRIDED_SLICE", inputs, [tuple(taken)], options, constants=(1, 2, 3), dtype=dtype))


@pytest.mark.parametrize(("begin", "row"), [(1, 1), (-1, 2)])
def test_strided_slice_that_drops_an_axis_equals_tensorflow_lite_micro(begin, row):
    inputs = [(3, 4), *(np.array(v, np.int32) for v in ([begin, 0], [begin + 1, 4], [1, 1]))]
    options = S.StridedSliceOptionsT(shrinkAxisMask=1)
    data = model("STRIDED_SLICE", inputs, [(4,)], options, constants=(1, 2, 3))
    check(data)
    values = random_inputs(data, 3)[0]
    assert values[0][row].shape == (4,)


@SETTINGS
@given(shape=SHAPES, data=st.data())
def test_slice_equals_tensorflow_lite_micro(shape, data):
    begins = [data.draw(st.integers(0, n - 1)) for n in shape]
    sizes = [data.draw(st.integers(1, n - b)) for n, b in zip(shape, begins, strict=True)]
    inputs = [shape, np.array(begins, np.int32), np.array(sizes, np.int32)]
    check(model("SLICE", inputs, [tuple(sizes)], S.SliceOptionsT(), constants=(1, 2)))


@SETTINGS
@given(shape=SHAPES, data=st.data(), n=st.integers(1, 4), dtype=DTYPES)
def test_gather_equals_tensorflow_lite_micro(shape, data, n, dtype):
    axis = data.draw(st.integers(0, len(shape) - 1))
    picks = [data.draw(st.integers(0, shape[axis] - 1)) for _ in range(n)]
    out = (*shape[:axis], n, *shape[axis + 1 :])
    options = S.GatherOptionsT(axis=axis)
    inputs = [shape, np.array(picks, np.int32)]
    check(model("GATHER", inputs, [out], options, constants=(1,), dtype=dtype))


@SETTINGS
@given(
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    out=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    channels=st.integers(1, 3),
    mode=st.sampled_from([(False, False), (True, False), (False, True)]),
    bilinear=st.booleans(),
)
def test_resizing_equals_tensorflow_lite_micro(size, out, channels, mode, bilinear):
    kind = "RESIZE_BILINEAR" if bilinear else "RESIZE_NEAREST_NEIGHBOR"
    made = S.ResizeBilinearOptionsT if bilinear else S.ResizeNearestNeighborOptionsT
    options = made(alignCorners=mode[0], halfPixelCenters=mode[1])
    inputs = [(1, *size, channels), np.array(out, np.int32)]
    check(model(kind, inputs, [(1, *out, channels)], options, constants=(1,)))


def test_concatenation_of_other_scales_is_refused_with_a_remedy():
    build = TfliteBuilder()
    a = build.tensor("a", (1, 2), "INT8", scale=0.1)
    b = build.tensor("b", (1, 2), "INT8", scale=0.2)
    y = build.tensor("y", (1, 4), "INT8", scale=0.2)
    build.op("CONCATENATION", [a, b], [y], S.ConcatenationOptionsT(axis=1))
    build.graph.inputs, build.graph.outputs = [a, b], [y]
    with pytest.raises(ModelError, match=r"operator 0 CONCATENATION v1 \(y\).*different scales"):
        lower(read_graph(build.bytes()), ("dsp",))
