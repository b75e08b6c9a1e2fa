"""Model files with one convolution, and the cases that hypothesis draws for them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from ai_edge_litert import schema_py_generated as S
from hypothesis import strategies as st

from edgeshrink.graph import Graph
from edgeshrink.graph_reader import read_graph
from tests.tiny_models import TfliteBuilder


@dataclass(frozen=True, kw_only=True)
class Case:
    """One layer. `size`, `kernel`, `stride`, `dilation` are (height, width)."""

    size: tuple[int, int] = (5, 6)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    batches: int = 1
    k_c: int = 4  # input channels of one filter; 1 for depthwise
    groups: int = 1  # depthwise: the input channels
    filters: int = 4  # per group; depthwise: the multiplier
    depthwise: bool = False
    same: bool = True
    seed: int = 0
    x_zero: int = -128
    y_zero: int = -128
    gain: float = 0.02  # real multiplier of the sums: 1 and more shifts to the left
    per_channel: bool = True
    activation: int = 0
    bias: bool = True  # False: none; depthwise: of zeros, the oracle crashes without one
    ties: bool = False  # scales are powers of two: where gain is, too, half of the roundings tie
    largest: bool = False  # weights of -127 and 127 alone

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """(top, bottom, left, right), derived here by hand."""
        if not self.same:
            return 0, 0, 0, 0
        found = []
        for n, k, s, d in zip(self.size, self.kernel, self.stride, self.dilation, strict=True):
            total = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
            found += [total // 2, total - total // 2]
        return tuple(found)

    @property
    def y_size(self) -> tuple[int, int]:
        pads = self.padding
        return tuple(
            (n + pads[2 * i] + pads[2 * i + 1] - (k - 1) * d - 1) // s + 1
            for i, (n, k, s, d) in enumerate(
                zip(self.size, self.kernel, self.stride, self.dilation, strict=True)
            )
        )


def model(case: Case, pad: tuple[int, int, int, int] | None = None) -> bytes:
    """The file of a case; `pad` (top, bottom, left, right): a PAD stands before a VALID layer."""
    rng = np.random.default_rng(case.seed)
    build = TfliteBuilder()
    x_c, y_c = case.k_c * case.groups, case.filters * case.groups
    x_scale = 2.0**-4 if case.ties else 0.05
    w_unit = 2.0**-7 if case.ties else 0.01
    x = build.tensor("x", (case.batches, *case.size, x_c), "INT8", scale=x_scale,
                     zero_point=case.x_zero)  # fmt: skip
    source = x
    if pad is not None:
        sides = np.array([[0, 0], pad[:2], pad[2:], [0, 0]], np.int32)
        p = build.tensor("pads", (4, 2), "INT32", data=sides)
        padded = (case.size[0] + pad[0] + pad[1], case.size[1] + pad[2] + pad[3])
        source = build.tensor("padded", (case.batches, *padded, x_c), "INT8", scale=x_scale,
                              zero_point=case.x_zero)  # fmt: skip
        build.op("PAD", [x, p], [source], S.PadOptionsT(), 2)
        y_size = tuple(
            (n - (k - 1) * d - 1) // s + 1
            for n, k, s, d in zip(padded, case.kernel, case.stride, case.dilation, strict=True)
        )
    else:
        y_size = case.y_size
    shape = (1, *case.kernel, y_c) if case.depthwise else (y_c, *case.kernel, case.k_c)
    weights = rng.integers(-127, 128, shape).astype(np.int8)
    if case.largest:
        weights = np.where(rng.random(shape) < 0.5, -127, 127).astype(np.int8)
    w_scale = rng.uniform(0.5, 1.0, y_c if case.per_channel else 1) * w_unit
    if case.ties:
        w_scale[:] = w_unit
    w = build.tensor("w", shape, "INT8", data=weights, scale=w_scale,
                     zero_point=[0] * len(w_scale), axis=3 if case.depthwise else 0)  # fmt: skip
    values = rng.integers(-9000, 9000, y_c).astype(np.int32)
    values *= case.bias
    b = -1
    if case.bias or case.depthwise:
        b = build.tensor("b", (y_c,), "INT32", data=values, scale=w_scale * x_scale,
                         zero_point=[0] * len(w_scale))  # fmt: skip
    y = build.tensor("y", (case.batches, *y_size, y_c), "INT8",
                     scale=x_scale * w_unit / case.gain, zero_point=case.y_zero)  # fmt: skip
    common = {
        "padding": 0 if case.same and pad is None else 1,
        "strideH": case.stride[0], "strideW": case.stride[1],
        "dilationHFactor": case.dilation[0], "dilationWFactor": case.dilation[1],
        "fusedActivationFunction": case.activation,
    }  # fmt: skip
    if case.depthwise:
        options = S.DepthwiseConv2DOptionsT(depthMultiplier=case.filters, **common)
        build.op("DEPTHWISE_CONV_2D", [source, w, b], [y], options, 3)
    else:
        build.op("CONV_2D", [source, w, b], [y], S.Conv2DOptionsT(**common), 3)
    build.graph.inputs, build.graph.outputs = [x], [y]
    return build.bytes()


def without_pad(data: bytes, pad: tuple[int, int, int, int]) -> Graph:
    """The graph of `model(case, pad)` with the PAD folded into the layer."""
    graph = read_graph(data)
    x, y = graph.inputs[0], graph.outputs[0]
    layer = graph.ops[1]
    folded = replace(
        layer,
        index=0,
        inputs=(x, *layer.inputs[1:]),
        outputs=(y,),
        options={**layer.options, "padding": "EXPLICIT", "explicit_padding": pad},
    )
    return replace(graph, ops=(folded,))


def without_bias(data: bytes) -> Graph:
    """The graph with the layer's bias left out."""
    graph = read_graph(data)
    layer = graph.ops[-1]
    return replace(graph, ops=(*graph.ops[:-1], replace(layer, inputs=(*layer.inputs[:2], -1))))


def pairs(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


# Sums vanish, are scaled down, are kept, or are shifted to the left.
GAINS = [1e-9, 1e-4, 2**-9, 0.003, 2**-6, 0.02, 2**-3, 0.25, 0.3, 0.5, 0.9, 1.0, 2.5, 40.0]


@st.composite
def cases(draw: st.DrawFn, *, depthwise: bool) -> Case:
    """Any layer; the image is large enough for a VALID window."""
    kernel = draw(st.one_of(st.just((3, 3)), st.just((1, 1)), pairs(1, 4)))
    dilation = draw(st.one_of(st.just((1, 1)), pairs(1, 3)))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    same = draw(st.booleans())
    lowest = [1, 1] if same else reach
    size = tuple(n + draw(st.integers(0, 8)) for n in lowest)
    many = draw(st.booleans())
    return Case(
        size=size,
        kernel=kernel,
        stride=draw(st.one_of(st.just((1, 1)), st.just((2, 2)), pairs(1, 3))),
        dilation=dilation,
        batches=draw(st.sampled_from([1, 1, 2])),
        k_c=1 if depthwise else draw(st.integers(1, 9) if many else st.sampled_from([1, 3, 4, 16])),
        groups=draw(st.integers(1, 9) if depthwise else st.sampled_from([1, 1, 1, 2, 3])),
        filters=draw(st.sampled_from([1, 1, 1, 2, 3]) if depthwise else st.integers(1, 9)),
        depthwise=depthwise,
        same=same,
        seed=draw(st.integers(0, 2**31)),
        x_zero=draw(st.sampled_from([-128, -1, 0, 7, 127])),
        y_zero=draw(st.sampled_from([-128, -3, 0, 127])),
        gain=draw(st.sampled_from(GAINS)),
        ties=draw(st.booleans()),
        per_channel=draw(st.booleans()),
        activation=draw(st.sampled_from([0, 1, 2, 3])),
        bias=draw(st.booleans()),
        largest=draw(st.booleans()),
    )
