"""Advice is what a cost model says of changed operators: here of models small enough to reckon."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from edgeshrink.costs.application import latency
from edgeshrink.costs.interpreter import interpreter_ms
from edgeshrink.costs.work import graph_macs, graph_work
from edgeshrink.emulation.advice import advise
from edgeshrink.emulation.pricing import (
    Pricing,
    application_pricing,
    firmware_pricing,
    interpreter_pricing,
)
from edgeshrink.emulation.variations import (
    as_int8,
    at_half_size,
    in_channels,
    out_channels,
    single,
    with_in_channels,
    with_out_channels,
    with_window,
)
from edgeshrink.graph import Graph, Op, Quantization, Tensor
from edgeshrink.profile import OpCost, Profile
from edgeshrink.target import load_target


def tensor(index: int, shape: tuple[int, ...], dtype: str = "int8", *, constant: bool = False):
    n = shape[0] if constant and len(shape) > 1 else 1
    scales = Quantization(scales=np.full(n, 0.1, np.float32), zero_points=np.zeros(n, np.int64))
    return Tensor(
        index=index, name=f"t{index}", shape=shape, dtype=dtype,
        quantization=None if dtype == "float32" else scales,
        data=np.ones(shape, dtype) if constant else None,
    )  # fmt: skip


def convolution(
    n_in: int = 16, n_out: int = 32, *, size: int = 8, window: int = 1, n_ops: int = 1,
    dtype: str = "int8",
) -> Graph:  # fmt: skip
    """`n_ops` convolutions behind one another, of `n_out` channels from the second one on."""
    bias = "float32" if dtype == "float32" else "int32"
    tensors, ops, x, channels = [tensor(0, (1, size, size, n_in), dtype)], [], 0, n_in
    for index in range(n_ops):
        at = len(tensors)
        tensors += [
            tensor(at, (n_out, window, window, channels), dtype, constant=True),
            tensor(at + 1, (n_out,), bias, constant=True),
            tensor(at + 2, (1, size, size, n_out), dtype),
        ]
        options = {"stride_w": 1, "stride_h": 1, "padding": "SAME", "fused_activation": "NONE",
                   "dilation_w_factor": 1, "dilation_h_factor": 1}  # fmt: skip
        ops.append(
            Op(
                index=index,
                kind="CONV_2D",
                version=1,
                inputs=(x, at, at + 1),
                outputs=(at + 2,),
                options=options,
            )
        )
        x, channels = at + 2, n_out
    return Graph(name="m", tensors=tuple(tensors), ops=tuple(ops), inputs=(0,), outputs=(x,))


def profile(graph: Graph, ms: list[float], **parts: float) -> Profile:
    ops = tuple(
        OpCost(
            index=op.index, kind=op.kind, name=f"layer{op.index}", macs=work.macs, latency_ms=t,
            flash_bytes=work.weight_bytes, macs_per_byte=1.0,
            **{name: share * t for name, share in parts.items()},
        )
        for op, work, t in zip(graph.ops, graph_work(graph), ms, strict=True)
    )  # fmt: skip
    return Profile(
        target="t", engine="tflite", model_path="m", model_sha256="", figures={}, ops=ops
    )


def by_vectors(graph: Graph) -> float:
    """A machine that computes eight output channels at a time, whether they are there or not."""
    return sum(math.ceil(w.out_channels / 8) * w.macs / w.out_channels for w in graph_work(graph))


def texts(graph: Graph, price, ms: list[float] | None = None, **more) -> str:
    parts = {k: v for k, v in more.items() if k.endswith("_ms")}
    settings = {k: v for k, v in more.items() if not k.endswith("_ms")}
    pricing = Pricing(price=price, multiple=8, **settings)
    found = profile(graph, ms or [1.0] * len(graph.ops), **parts)
    return "\n".join(advice.text for advice in advise(graph, found, pricing))


# ---- rounding channels


def test_channels_that_fill_no_vector_are_rounded_and_the_next_ones_are_free():
    found = texts(convolution(n_out=18), by_vectors)
    assert "round the 18 output channels of op 0 (CONV_2D layer0) to 16" in found
    assert "24 would cost no more than 18 do" in found


def test_channels_that_fill_vectors_are_left_alone():
    assert "round" not in texts(convolution(n_out=16), by_vectors)


def test_where_the_price_is_proportional_rounding_is_no_advice():
    assert "round" not in texts(convolution(n_out=18), graph_macs)


def test_what_an_advice_saves_is_the_share_of_the_price_of_the_time():
    graph = convolution(n_out=18)
    pricing = Pricing(price=by_vectors, multiple=8)
    found = advise(graph, profile(graph, [3.0]), pricing)
    rounding = next(a for a in found if a.text.startswith("round"))
    assert rounding.saves_ms == pytest.approx(3.0 * (1 - 2 / 3))  # two vectors instead of three
    assert rounding.ops == (0,)


# ---- where the time goes


def test_a_large_operator_is_named_with_its_share_and_what_changes_would_save():
    found = texts(convolution(n_ops=2), graph_macs, ms=[1.0, 3.0])
    assert "op 1 (CONV_2D layer1) is 75% of the time" in found
    assert "half the channels saves 38%" in found
    assert "half the height and width saves 56%" in found


def test_operators_that_are_alike_are_told_together():
    found = texts(convolution(n_in=32, n_ops=3), graph_macs)
    assert "ops 0, 1, 2 (CONV_2D) are 100% of the time" in found


def test_a_memory_bound_operator_is_told_that_fewer_products_do_not_help():
    found = texts(
        convolution(), lambda graph: sum(w.weight_bytes for w in graph_work(graph)),
        memory_ms=0.8, compute_ms=0.2,
    )  # fmt: skip
    assert "memory-bound (80% moves bytes" in found
    assert "fewer MACs alone do not" in found
    assert "half the height" not in found  # which would save products and no weights


def test_a_compute_bound_operator_is_not_called_memory_bound():
    assert "memory-bound" not in texts(convolution(), graph_macs, compute_ms=1.0)


def test_calls_that_take_much_of_the_time_are_told():
    found = texts(convolution(n_ops=4), graph_macs, overhead_ms=0.6, compute_ms=0.4)
    assert "calling 4 operators is 60% of the time" in found


def test_threads_are_advised_by_their_own_price():
    found = texts(convolution(), graph_macs, max_threads=4,
                  with_max_threads=lambda graph: graph_macs(graph) / 2)  # fmt: skip
    assert "4 threads save 50%" in found


def test_a_float_model_is_priced_in_int8_where_it_could_be():
    def by_bytes(graph: Graph) -> float:
        return sum(w.weight_bytes + w.input_bytes + w.output_bytes for w in graph_work(graph))

    graph = convolution(dtype="float32")
    assert "quantizing it to int8 saves" in texts(graph, by_bytes, has_int8=True)
    assert "quantizing" not in texts(graph, by_bytes, has_int8=False)
    assert "quantizing" not in texts(convolution(), by_bytes, has_int8=True)


def test_the_advice_that_saves_most_comes_first():
    graph = convolution(n_out=18, n_ops=3)
    pricing = Pricing(price=by_vectors, multiple=8)
    found = advise(graph, profile(graph, [1.0, 2.0, 3.0]), pricing)
    saves = [advice.saves_ms for advice in found]
    assert len(saves) > 1
    assert saves == sorted(saves, reverse=True)


def test_what_can_not_be_priced_gives_no_advice():
    assert texts(convolution(n_out=18), lambda graph: 0.0) == ""


# ---- changed operators


def test_half_the_channels_out_are_half_the_products():
    graph = single(convolution(), convolution().ops[0])
    assert graph_macs(with_out_channels(graph, 16)) * 2 == graph_macs(graph)
    assert graph_macs(with_in_channels(graph, 8)) * 2 == graph_macs(graph)
    assert (out_channels(graph), in_channels(graph)) == (32, 16)


def test_half_the_map_is_a_quarter_of_the_products_with_the_same_weights():
    graph = single(convolution(window=3), convolution(window=3).ops[0])
    half = at_half_size(graph)
    assert graph_macs(half) * 4 == graph_macs(graph)
    assert graph_work(half)[0].weight_bytes == graph_work(graph)[0].weight_bytes
    assert graph_macs(with_window(replace(graph), 1)) * 9 == graph_macs(graph)
    assert with_window(graph, 3) is None


def test_an_operator_alone_is_that_of_the_graph():
    graph = convolution(n_ops=3)
    for op, work in zip(graph.ops, graph_work(graph), strict=True):
        alone = single(graph, op)
        assert len(alone.ops) == 1
        assert graph_work(alone)[0] == work
        assert all(t.index == i for i, t in enumerate(alone.tensors))


def test_a_graph_in_int8_has_a_quarter_of_the_weights_and_wide_biases():
    graph = as_int8(convolution(dtype="float32"))
    assert {t.dtype for t in graph.tensors} == {"int8", "int32"}
    floats = convolution(dtype="float32")
    assert graph_macs(graph) == graph_macs(floats)


# ---- the real cost models


def test_quantizing_is_priced_by_the_latency_model():
    graph, target = convolution(n_in=64, n_out=64, size=28, dtype="float32"), load_target("rpi4")
    pricing = application_pricing(target, runtime="litert", threads=1)
    times = latency(graph, target, runtime="litert", threads=1)
    found = advise(graph, profile(graph, list(times.per_op_ms)), pricing)
    int8 = latency(as_int8(graph), target, runtime="litert", threads=1)
    told = next(a for a in found if "int8" in a.text)
    assert told.saves_ms == pytest.approx(sum(times.per_op_ms) - sum(int8.per_op_ms))


def test_the_interpreter_is_priced_by_its_kernels():
    graph, target = convolution(), load_target("nucleo-l4r5zi")
    halved = with_out_channels(graph, 16)
    price = interpreter_pricing(target).price
    assert 0 < price(halved) < price(graph)
    assert interpreter_ms(halved, target) < interpreter_ms(graph, target)


def test_our_own_kernels_are_priced_without_compiling_them():
    price = firmware_pricing(load_target("nucleo-l4r5zi"), "latency").price
    graph = convolution()
    assert 0 < price(with_out_channels(graph, 16)) < price(graph)
    assert price(replace(graph, ops=(replace(graph.ops[0], kind="NO_SUCH_OP"),))) == 0.0
