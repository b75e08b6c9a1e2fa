"""Cross-check the latency model on this machine: predicted against measured.

    python benchmarks/host_latency.py MODEL.tflite ... > benchmarks/host_latency.md

`--target host` is measured, so the product has no model of it. This benchmark makes one: the rates
of the fastest core with published rows, with one factor for each class of kernel and type, and one
for calls, each taken from a single probe that LiteRT runs here. What is then predicted are models
that no probe has seen: their shapes, mixtures of kernels and numbers of operators.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as S

from edgeshrink.costs.application import latency
from edgeshrink.costs.work import graph_macs, graph_work
from edgeshrink.emulation.emulate import measured_latency, pin
from edgeshrink.graph import Graph
from edgeshrink.graph_reader import read_graph
from edgeshrink.profile import Figure
from edgeshrink.runtimes import open_model
from edgeshrink.target import Cpu, Memory, Ops, Target
from tests.tiny_models import TfliteBuilder

REFERENCE = Target(
    name="reference", title="", kind="application-processor", soc="",
    cpu=Cpu(core="cortex-a78", isa=("neon", "dotprod"), clock_mhz=1000.0, n_cores=1),
    memory=Memory(flash_bytes=None, ram_bytes=2**30),
    ops=Ops(dtypes=("int8", "float32")), runtimes=(),
)  # fmt: skip
CLASSES = {"conv_1x1": "convolution", "conv_kxk": "convolution", "depthwise": "depthwise",
           "fully_connected": "dense"}  # fmt: skip
CHAIN = 40  # operators of the probe for calls
DTYPES = {"int8": np.int8, "uint8": np.uint8, "float32": np.float32}


@dataclass(frozen=True, kw_only=True)
class Factors:
    """Host over reference: by (class, type) for what is computed and moved; ms of calls."""

    work: Mapping[tuple[str, str], float]
    call_ms: float  # of an operator
    inference_ms: float  # of an inference, whatever is in it


class Probe(TfliteBuilder):
    """A model of one kind of operator, with random weights."""

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.dtype, self.rng = dtype, np.random.default_rng(0)

    def values(self, name: str, shape: Sequence[int]) -> int:
        return self.tensor(name, shape, self.dtype.upper(), **self.quantization(0.05))

    def weights(self, name: str, shape: Sequence[int]) -> int:
        low, high = (0, 256) if self.dtype == "uint8" else (-100, 100)
        data = self.rng.integers(low, high, shape).astype(DTYPES[self.dtype])
        return self.tensor(name, shape, self.dtype.upper(), data=data, **self.quantization(0.01))

    def quantization(self, scale: float) -> dict[str, Any]:
        if self.dtype == "float32":
            return {}
        return {"scale": scale, "zero_point": 128 if self.dtype == "uint8" else 0}

    def bias(self, n: int) -> int:
        if self.dtype != "float32":
            return self.tensor("bias", (n,), "INT32", data=np.zeros(n, np.int32), scale=0.0005)
        return self.tensor("bias", (n,), "FLOAT32", data=np.zeros(n, np.float32))

    def finish(self, x: int, y: int) -> bytes:
        self.graph.inputs, self.graph.outputs = [x], [y]
        return self.bytes()


def convolution(dtype: str) -> bytes:
    build = Probe(dtype)
    x, y = build.values("x", (1, 28, 28, 128)), build.values("y", (1, 28, 28, 128))
    options = S.Conv2DOptionsT(strideW=1, strideH=1, padding=S.Padding.SAME)
    build.op("CONV_2D", [x, build.weights("w", (128, 1, 1, 128)), build.bias(128)], [y], options)
    return build.finish(x, y)


def depthwise(dtype: str) -> bytes:
    build = Probe(dtype)
    x, y = build.values("x", (1, 28, 28, 128)), build.values("y", (1, 28, 28, 128))
    options = S.DepthwiseConv2DOptionsT(
        strideW=1, strideH=1, depthMultiplier=1, padding=S.Padding.SAME
    )
    w, b = build.weights("w", (1, 3, 3, 128)), build.bias(128)
    build.op("DEPTHWISE_CONV_2D", [x, w, b], [y], options)
    return build.finish(x, y)


def dense(dtype: str) -> bytes:
    build = Probe(dtype)
    x, y = build.values("x", (1, 512)), build.values("y", (1, 512))
    w, b = build.weights("w", (512, 512)), build.bias(512)
    build.op("FULLY_CONNECTED", [x, w, b], [y], S.FullyConnectedOptionsT())
    return build.finish(x, y)


def addition(dtype: str, *, shape: Sequence[int] = (1, 28, 28, 128), n: int = 1) -> bytes:
    build = Probe(dtype)
    x = last = build.values("x", shape)
    for index in range(n):
        y = build.values(f"y{index}", shape)
        build.op("ADD", [last, x], [y], S.AddOptionsT())
        last = y
    return build.finish(x, last)


PROBES = {"convolution": convolution, "depthwise": depthwise, "dense": dense, "other": addition}


def measure(data: bytes) -> Figure:
    """Return the median time of an inference, one thread on a core of its own."""
    with open_model(data, "litert", name="model") as runner:
        pin(runner.pid, 1)
        return measured_latency(runner, 1)


def parts(graph: Graph) -> list[tuple[tuple[str, str], float, bool]]:
    """Return, of each operator, its class and type, the reference's time, and if it is called."""
    times = latency(graph, REFERENCE, runtime="litert", threads=1).per_op
    return [
        (
            (CLASSES.get(work.kernel, "other"), work.dtype if work.dtype in DTYPES else "float32"),
            time.compute_ms + time.memory_ms,
            time.overhead_ms > 0,
        )
        for work, time in zip(graph_work(graph), times, strict=True)
    ]


def calibrate() -> Factors:
    """Return the factors of this machine, from its probes."""
    chain = [measure(addition("int8", shape=(1, 8), n=n)).value for n in (1, CHAIN)]
    call_ms = (chain[1] - chain[0]) / (CHAIN - 1)
    inference_ms = max(0.0, chain[0] - call_ms)
    work = {}
    for name, probe in PROBES.items():
        for dtype in DTYPES:
            data = probe(dtype)
            [(_, reference_ms, _)] = parts(read_graph(data, name=name))
            work[name, dtype] = max(0.0, measure(data).value - chain[0]) / reference_ms
    return Factors(work=work, call_ms=call_ms, inference_ms=inference_ms)


def predict(graph: Graph, factors: Factors) -> float:
    return factors.inference_ms + sum(
        ms * factors.work[kind] + (factors.call_ms if is_called else 0.0)
        for kind, ms, is_called in parts(graph)
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+")
    paths = parser.parse_args(arguments).models
    factors = calibrate()
    rows, errors = [], []
    for path in paths:
        data = path.read_bytes()
        graph = read_graph(data, name=path.name)
        found, predicted = measure(data), predict(graph, factors)
        error = predicted / found.value - 1
        errors.append(abs(error))
        rows.append(
            f"| {path.name} | {graph_macs(graph) / 1e6:.3g} | {found.value:.4g} | "
            f"{found.low:.4g} to {found.high:.4g} | {predicted:.4g} | {error:+.0%} |"
        )
    lines = [
        "# Predicted and measured on a host\n",
        "`python benchmarks/host_latency.py MODEL.tflite ...` writes this page: LiteRT with "
        f"XNNPACK, one thread on a core of its own, {platform.machine()}, {os.cpu_count()} "
        "logical cores, median of up to 300 runs after warming up.\n",
        "The prediction takes the rates of a Cortex-A78 and multiplies them by one factor for "
        "each class of kernel and type, from one probe each (a 1x1 convolution, a 3x3 depthwise "
        "convolution, a dense layer, an addition); a call costs what it does in a chain of "
        f"{CHAIN} tiny additions, {1e3 * factors.call_ms:.3g} us, and an inference "
        f"{1e3 * factors.inference_ms:.3g} us. No figure of the product comes "
        "from it: `--target host` is measured.\n",
        f"| class | {' | '.join(DTYPES)} |", "|---" * (len(DTYPES) + 1) + "|",
        *(f"| {name} | {' | '.join(f'{factors.work[name, d]:.3g}' for d in DTYPES)} |"
          for name in PROBES),
        "\n| model | million MACs | measured ms | nine in ten runs | predicted ms | error |",
        "|---|---|---|---|---|---|", *rows,
        f"\nMean error {np.mean(errors):.0%}, within 20 %: "
        f"{sum(e <= 0.2 for e in errors)} of {len(errors)}.",
    ]  # fmt: skip
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
