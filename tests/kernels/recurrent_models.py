"""Model files with one SVDF or LSTM, whose state lives from inference to inference."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as S

from tests.tiny_models import TfliteBuilder

GATES = ("input", "forget", "cell", "output")


def svdf_model(*, batches=1, n_in=3, n_units=2, rank=2, memory=4, wide=True, zeros=(3, 7, -5),
               gains=(0.02, 0.005), activation=0, seed=0):  # fmt: skip
    """`zeros` are those of input, state (int8 alone) and output."""
    rng = np.random.default_rng(seed)
    build = TfliteBuilder()
    n_filters = n_units * rank
    x = build.tensor("x", (batches, n_in), "INT8", scale=0.05, zero_point=zeros[0])
    features = rng.integers(-127, 128, (n_filters, n_in)).astype(np.int8)
    f = build.tensor("features", features.shape, "INT8", data=features, scale=0.011)
    kind, numpy_type, limit = ("INT16", np.int16, 32767) if wide else ("INT8", np.int8, 127)
    times = rng.integers(-limit, limit + 1, (n_filters, memory)).astype(numpy_type)
    if wide:
        times //= 256  # keeps sums of products inside int32
    t = build.tensor("times", times.shape, kind, data=times, scale=0.007)
    state_scale = 0.05 * 0.011 / gains[0]
    bias = rng.integers(-500, 500, n_units).astype(np.int32)
    b = build.tensor("bias", (n_units,), "INT32", data=bias, scale=state_scale * 0.007)
    s = build.tensor("state", (batches, n_filters * memory), kind, scale=state_scale,
                     zero_point=0 if wide else zeros[1], is_variable=True)  # fmt: skip
    y = build.tensor("y", (batches, n_units), "INT8", scale=state_scale * 0.007 / gains[1],
                     zero_point=zeros[2])  # fmt: skip
    options = S.SVDFOptionsT(rank=rank, fusedActivationFunction=activation)
    build.op("SVDF", [x, f, t, b, s], [y], options, 3)
    build.graph.inputs, build.graph.outputs = [x], [y]
    return build.bytes()


def lstm_model(*, batches=1, steps=3, n_in=3, n_units=2, time_major=False, zeros=(3, -5),
               cell_power=-11, clip=0.0, h_scale=1 / 128, weight_scale=0.02, largest=False,
               cell_scale=None, absent=(), seed=0):  # fmt: skip
    """`zeros` are those of input and hidden state; `absent` are positions of inputs left out."""
    rng = np.random.default_rng(seed)
    build = TfliteBuilder()
    first = (steps, batches) if time_major else (batches, steps)
    x = build.tensor("x", (*first, n_in), "INT8", scale=0.05, zero_point=zeros[0])
    inputs = [-1] * 24
    inputs[0] = x

    def weights(name, shape):
        values = rng.integers(-127, 128, shape).astype(np.int8)
        if largest:
            values = np.where(rng.random(shape) < 0.5, -127, 127).astype(np.int8)
        scale = weight_scale * rng.uniform(0.5, 1)
        return build.tensor(name, shape, "INT8", data=values, scale=scale), scale

    for k, gate in enumerate(GATES):
        inputs[1 + k], x_scale = weights(f"{gate} x", (n_units, n_in))
        inputs[5 + k], _ = weights(f"{gate} h", (n_units, n_units))
        bias = rng.integers(-3000, 3000, n_units).astype(np.int32)
        inputs[12 + k] = build.tensor(f"{gate} bias", (n_units,), "INT32", data=bias,
                                      scale=x_scale * 0.05)  # fmt: skip
    inputs[18] = build.tensor("hidden", (batches, n_units), "INT8", scale=h_scale,
                              zero_point=zeros[1], is_variable=True)  # fmt: skip
    inputs[19] = build.tensor("cell", (batches, n_units), "INT16",
                              scale=cell_scale or 2.0**cell_power, is_variable=True)  # fmt: skip
    for position in absent:
        inputs[position] = -1
    y = build.tensor("y", (*first, n_units), "INT8", scale=h_scale, zero_point=zeros[1])
    options = S.UnidirectionalSequenceLSTMOptionsT(
        fusedActivationFunction=4, timeMajor=time_major, cellClip=clip
    )
    build.op("UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, [y], options, 3)
    build.graph.inputs, build.graph.outputs = [x], [y]
    return build.bytes()
