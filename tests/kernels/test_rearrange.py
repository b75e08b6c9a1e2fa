"""Operators that rearrange, mirror or repeat values, against TensorFlow Lite Micro."""

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
from tests.kernels.test_shapes import model

SETTINGS = settings(max_examples=30, deadline=None)
DTYPES = st.sampled_from(["INT8", "FLOAT32"])
SMALL = st.integers(1, 3)


def check(data):
    check_against_tflm(data, *random_inputs(data, 3))


@SETTINGS
@given(grid=st.tuples(SMALL, SMALL, SMALL, SMALL), size=SMALL, dtype=DTYPES, back=st.booleans())
def test_space_to_depth_and_back_equal_tensorflow_lite_micro(grid, size, dtype, back):
    n, h, w, c = grid
    wide, deep = (n, h * size, w * size, c), (n, h, w, c * size * size)
    if back:
        options = S.DepthToSpaceOptionsT(blockSize=size)
        check(model("DEPTH_TO_SPACE", [deep], [wide], options, dtype=dtype))
    else:
        options = S.SpaceToDepthOptionsT(blockSize=size)
        check(model("SPACE_TO_DEPTH", [wide], [deep], options, dtype=dtype))


@SETTINGS
@given(
    batches=SMALL,
    grid=st.tuples(SMALL, SMALL),
    block=st.tuples(SMALL, SMALL),
    edges=st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2),
    channels=SMALL,
    dtype=DTYPES,
    back=st.booleans(),
    flat=st.booleans(),
)
def test_space_to_batch_and_back_equal_tensorflow_lite_micro(
    batches, grid, block, edges, channels, dtype, back, flat
):
    if flat:
        grid, block, edges = grid[:1], block[:1], edges[:1]
    if not back:  # the oracle pads with what its memory holds
        edges = ((0, 0),) * len(grid)
    wide = tuple(g * b - sum(e) for g, b, e in zip(grid, block, edges, strict=True))
    if min(wide) < 1:
        return
    deep = (batches * int(np.prod(block)), *grid, channels)
    wide = (batches, *wide, channels)
    constants = [np.array(block, np.int32), np.array(edges, np.int32)]
    kind = "BATCH_TO_SPACE_ND" if back else "SPACE_TO_BATCH_ND"
    options = S.BatchToSpaceNDOptionsT() if back else S.SpaceToBatchNDOptionsT()
    ends = (deep, wide) if back else (wide, deep)
    inputs = [ends[0], *constants]
    check(model(kind, inputs, [ends[1]], options, constants=(1, 2), dtype=dtype))


@SETTINGS
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    data=st.data(),
    reflect=st.booleans(),
    dtype=DTYPES,
)
def test_mirrored_padding_equals_tensorflow_lite_micro(shape, data, reflect, dtype):
    pads = [data.draw(st.tuples(*[st.integers(0, n - (1 if reflect else 0))] * 2)) for n in shape]
    out = tuple(n + a + b for n, (a, b) in zip(shape, pads, strict=True))
    options = S.MirrorPadOptionsT(mode=0 if reflect else 1)
    inputs = [tuple(shape), np.array(pads, np.int32)]
    check(model("MIRROR_PAD", inputs, [out], options, constants=(1,), dtype=dtype))


@SETTINGS
@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=4), data=st.data(), dtype=DTYPES)
def test_broadcasting_equals_tensorflow_lite_micro(shape, data, dtype):
    kept = [data.draw(st.booleans()) for _ in shape]
    x_shape = tuple(n if keep else 1 for n, keep in zip(shape, kept, strict=True))
    inputs = [x_shape, np.array(shape, np.int32)]
    options = S.BroadcastToOptionsT()
    check(model("BROADCAST_TO", inputs, [tuple(shape)], options, constants=(1,), dtype=dtype))


FAULTS = {
    "a mirror beyond the edge": model(
        "MIRROR_PAD", [(2,), np.array([[2, 0]], np.int32)], [(4,)], S.MirrorPadOptionsT(mode=0),
        constants=(1,),
    ),
    "a block that does not divide": model(
        "SPACE_TO_DEPTH", [(1, 3, 2, 1)], [(1, 1, 1, 4)], S.SpaceToDepthOptionsT(blockSize=2)
    ),
    "a block of nothing": model(
        "DEPTH_TO_SPACE", [(1, 3, 2, 1)], [(1, 3, 2, 1)], S.DepthToSpaceOptionsT(blockSize=0)
    ),
    "padding between blocks": model(
        "SPACE_TO_BATCH_ND",
        [(1, 1, 1, 1), np.array([2, 1], np.int32), np.array([[1, 0], [0, 0]], np.int32)],
        [(2, 1, 1, 1)], S.SpaceToBatchNDOptionsT(), constants=(1, 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_impossible_moves_name_operator_and_remedy(name):
    with pytest.raises(ModelError, match=r"operator 0 [A-Z_]+ v1 \(y0\)") as caught:
        lower(read_graph(FAULTS[name]), ())
    assert caught.value.fix
