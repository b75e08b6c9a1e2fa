"""Latency of a graph on an application processor (Cortex-A): a sum over operators, with a band.

Every operator costs cycles for its multiply-accumulates, by the kernel that computes them, for the
bytes it moves, and for being called. The rates of a core were fitted to published latencies
(`benchmarks/fit_application_latency.py`, which writes `data/application_latency.json`). What no
published row resolves is assumed, kept apart, and given a factor of `ASSUMED_FACTOR` either way.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from edgeshrink.costs.work import OpWork, call_order, graph_work
from edgeshrink.errors import ConfigError
from edgeshrink.graph import Graph
from edgeshrink.profile import Bound, Roofline
from edgeshrink.strict_toml import nearest
from edgeshrink.target import Target

DATA: Final = Path(__file__).parent / "data" / "application_latency.json"

# Which kernels compute a model: LiteRT, ExecuTorch and tflite-runtime all hand it to XNNPACK.
ENGINES: Final = MappingProxyType({
    "litert": "xnnpack",
    "executorch": "xnnpack",
    "tflite-runtime": "xnnpack",
    "ncnn": "ncnn",
})  # fmt: skip

# What a rate is for; of each engine, those that are fitted to its rows.
BYTE_TERMS: Final = ("activation_bytes", "weight_bytes")
OVERHEAD_TERMS: Final = ("ops", "boxes")  # one thread does these
ENGINE_TERMS: Final = MappingProxyType({
    "ncnn": (
        "gemm", "winograd", "transform", "transform_bytes", "direct", "depthwise", "pool",
        "normalize", "quantize", *BYTE_TERMS, "moved_bytes", *OVERHEAD_TERMS,
    ),
    "xnnpack": ("gemm", "indirect", "depthwise", *BYTE_TERMS),
})  # fmt: skip
NCNN_ELEMENTS: Final = MappingProxyType({  # what has a rate of its own there, by element
    "LOCAL_RESPONSE_NORMALIZATION": "normalize", "QUANTIZE": "quantize",
})  # fmt: skip
PRODUCT_TERMS: Final = ("gemm", "winograd", "direct", "indirect", "depthwise")
BYTES_PARALLEL: Final = 0.5  # of a core's parallel share, what memory traffic has

# Cores without rows take the rates of one that is built like them.
NEAREST_CORES: Final = MappingProxyType({
    "cortex-a5": "cortex-a7", "cortex-a8": "cortex-a7", "cortex-a9": "cortex-a7",
    "cortex-a15": "cortex-a72", "cortex-a17": "cortex-a72", "cortex-a57": "cortex-a72",
    "cortex-a32": "cortex-a53", "cortex-a34": "cortex-a53", "cortex-a35": "cortex-a53",
    "cortex-a65": "cortex-a55", "cortex-a510": "cortex-a55", "cortex-a520": "cortex-a55",
    "cortex-a75": "cortex-a73", "cortex-a77": "cortex-a76", "neoverse-n1": "cortex-a76",
    "cortex-a710": "cortex-a78", "cortex-a715": "cortex-a78", "cortex-a720": "cortex-a78",
    "cortex-a725": "cortex-a78", "cortex-x1": "cortex-a78", "cortex-x2": "cortex-a78",
    "cortex-x3": "cortex-a78", "cortex-x4": "cortex-a78", "cortex-x925": "cortex-a78",
})  # fmt: skip
IN_ORDER: Final = ("cortex-a7", "cortex-a53", "cortex-a55")

# Assumed, not fitted. Calls: an XNNPACK operator took 0.28 us on an x86-64 host (three tiny layers
# through LiteRT), some 800 cycles of a core that runs such code several times faster.
CALL_CYCLES_IN_ORDER: Final = 5000.0
CALL_CYCLES_OUT_OF_ORDER: Final = 3000.0
INFERENCE_CALLS: Final = 2.0  # what an inference costs apart from its operators, in calls of one
CYCLES_PER_TAP: Final = 1.0  # pooling and reductions in XNNPACK, per element of a window
CYCLES_PER_FUNCTION: Final = 10.0  # exp, tanh, softmax and the like, per element
ASSUMED_FACTOR: Final = 3.0
WAKE_FACTOR: Final = 2.0  # waking other threads may cost another call

FREE_KINDS: Final = frozenset({"RESHAPE", "SQUEEZE", "EXPAND_DIMS", "BITCAST", "SHAPE"})
CHEAP_ACTIVATIONS: Final = frozenset({
    "RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "LEAKY_RELU", "PRELU", "HARD_SWISH",
})  # fmt: skip
FITTED_KERNELS: Final = frozenset({
    "conv_1x1", "conv_kxk", "depthwise", "fully_connected", "pool", "elementwise", "move",
    "activation",
})  # fmt: skip
RATE_DTYPES: Final = MappingProxyType({
    "int8": "int8", "uint8": "int8", "int4": "int8", "float16": "float16", "float32": "float32",
})  # fmt: skip
SLOWEST_DTYPE: Final = "float32"  # what types without rates are priced as
# ncnn's Winograd tiles: outputs along a side, bytes of a transformed value; fitted by choice.
WINOGRAD_TILES: Final = MappingProxyType({"float32": (6, 4), "float16": (4, 2), "int8": (4, 2)})
TRANSFORM_CACHE_BYTES: Final = 4_000_000  # likewise
MIN_ROWS: Final = 9  # fewer say nothing about nine cases in ten
MAX_DECADES: Final = 1.0  # how far outside the models of the rows a band still counts as validated


@dataclass(frozen=True, kw_only=True)
class OpTime:
    """Where an operator's time goes; the three parts add up to it."""

    compute_ms: float  # products, and what else is done value by value
    memory_ms: float  # bytes of activations and weights moved
    overhead_ms: float  # being called at all

    @property
    def bound(self) -> Bound:
        """What takes most of the time."""
        if self.overhead_ms >= max(self.compute_ms, self.memory_ms):
            return "overhead"
        return "compute" if self.compute_ms >= self.memory_ms else "memory"


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Time of one inference on a target. The band is meant to hold the truth nine times in ten."""

    total_ms: float
    low_ms: float
    high_ms: float
    validated: bool  # whether the band comes from published results of such a core and type
    per_op_ms: tuple[float, ...]  # one per op of the graph; the rest of the total is the call
    per_op: tuple[OpTime, ...]  # their parts
    unknown_ops: frozenset[int]  # positions of those that no published row resolves
    roofline: Roofline  # of the type that most products are in, for these threads
    basis: str  # where the band comes from, one sentence


@dataclass(frozen=True, kw_only=True)
class Validation:
    """How well the model predicts published rows of models it was not fitted to."""

    rows: int
    mean_abs_error: float  # of predicted / measured - 1
    within_10: float  # share of the rows within 10 %, in [0, 1]
    within_20: float
    band: tuple[float, float]  # factors on the predicted time, for LiteRT


def latency(graph: Graph, target: Target, *, runtime: str, threads: int) -> Latency:
    """Return the time of one inference of `graph` on `target`, with its band.

    Operators and types without published rows are priced too: they widen the band, and where they
    make up most of the time it is not `validated`. Nor is it for models ten times smaller or
    larger than any published one. Control flow is priced for one pass.

    Args:
        graph: A model of any type.
        target: An application processor.
        runtime: A key of `ENGINES`.
        threads: Threads of the runtime; more than the target has cores are not used.

    Raises:
        ConfigError: `target` is a microcontroller, or the host, which is measured instead; its
            core is not a Cortex-A, or its clock is not known; `runtime` or `threads` is not valid.
    """
    if runtime not in ENGINES:
        raise ConfigError(f"runtime {runtime!r}", "has no latency model", nearest(runtime, ENGINES))
    if threads < 1:
        raise ConfigError("threads", f"is {threads}", "it must be 1 or more")
    engine, core = ENGINES[runtime], _model_core(target)
    has_fp16 = "fp16" in target.cpu.isa
    n_threads = min(threads, max(1, target.cpu.n_cores))
    clock_mhz = target.cpu.clock_mhz
    if clock_mhz is None:
        raise ConfigError(f"target {target.name}", "has no cpu.clock_mhz", "add the core's clock")
    price = _Price(
        core=core, engine=engine, has_fp16=has_fp16, n_threads=n_threads, board=target.name
    )
    works = graph_work(graph, known=price.body_macs)
    ms_per_cycle = 1e-3 / clock_mhz
    ops = [price.op_cycles(graph, work) for work in works]
    fitted_ms = sum(op.fitted for op in ops) * ms_per_cycle
    assumed_ms = sum(op.assumed for op in ops) * ms_per_cycle
    assumed_ms += inference_cycles(core, engine) * ms_per_cycle
    total_ms = fitted_ms + assumed_ms

    width, has_rows, basis = _band(works, target, core, engine, has_fp16)
    assumed_share = assumed_ms / total_ms if total_ms else 1.0
    if assumed_share > 0.05:
        basis += (
            f"; {assumed_share:.0%} of the time is assumed (calls, operators without published "
            f"latencies), to a factor of {ASSUMED_FACTOR:g}"
        )
    wake = WAKE_FACTOR if n_threads > 1 else 1.0
    return Latency(
        total_ms=total_ms,
        low_ms=fitted_ms * math.exp(-width) + assumed_ms / ASSUMED_FACTOR,
        high_ms=fitted_ms * math.exp(width) + assumed_ms * ASSUMED_FACTOR * wake,
        validated=has_rows and assumed_share <= 0.5,
        per_op_ms=tuple((op.fitted + op.assumed) * ms_per_cycle for op in ops),
        per_op=tuple(
            OpTime(
                compute_ms=op.compute * ms_per_cycle,
                memory_ms=op.memory * ms_per_cycle,
                overhead_ms=op.overhead * ms_per_cycle,
            )
            for op in ops
        ),
        unknown_ops=frozenset(
            index for index, work in enumerate(works) if not price.is_resolved(work)
        ),
        roofline=price.roofline(_main_dtype(works), 1 / ms_per_cycle),
        basis=basis,
    )


def validation(target_core: str, dtype: str) -> Validation:
    """Return how well models left out of the fit are predicted on a core, for values of `dtype`.

    A core or type without enough rows of its own has those of all cores, each predicted from its
    nearest relative.

    Args:
        target_core: As in `Cpu.core`, "cortex-a72".
        dtype: numpy's name, "int8"; types without rates count as float32.
    """
    bands, facts = _data()["bands"], _data()["cores"].get(target_core, {})
    found = facts.get("validation", {}).get(RATE_DTYPES.get(dtype, SLOWEST_DTYPE))
    found = found or bands["other_core"]
    width = max(found["width"], bands["xnnpack"]["width"])
    return Validation(
        rows=found["rows"],
        mean_abs_error=found["mean_abs_error"],
        within_10=found["within_10"],
        within_20=found["within_20"],
        band=(math.exp(-width), math.exp(width)),
    )


def fitted_terms(work: OpWork, engine: str) -> dict[str, float]:
    """Return how much of each of `ENGINE_TERMS` an operator needs: products, bytes, calls."""
    amounts = dict.fromkeys(ENGINE_TERMS[engine], 0.0)
    if work.kernel == "depthwise":
        amounts["depthwise"] += work.macs
    elif work.kernel == "conv_kxk" and engine == "xnnpack":
        # Pointers are gathered, then it multiplies as for 1x1, whatever the window.
        amounts["indirect"] += work.macs
    elif work.kernel == "conv_kxk":
        amounts |= _winograd(work) or {"direct": float(work.macs)}
    elif not work.bodies:  # a body's products are priced with its own operators
        amounts["gemm"] += work.macs
    n_bytes = work.input_bytes + work.output_bytes if work.kind not in FREE_KINDS else 0
    if engine == "ncnn":
        amounts["ops"] += 1
        if work.kernel == "pool":
            amounts["pool"] += work.output_elements * work.taps
        if term := NCNN_ELEMENTS.get(work.kind):
            amounts[term] += work.output_elements
            n_bytes = 0  # are part of the term's rate
        elif work.kernel in ("elementwise", "move"):
            amounts["moved_bytes"] += n_bytes
            n_bytes = 0
    amounts["activation_bytes"] += n_bytes
    if work.kind not in FREE_KINDS:
        amounts["weight_bytes"] += work.weight_bytes * work.steps
    return amounts


def _winograd(work: OpWork) -> dict[str, float] | None:
    """Return what ncnn does for a convolution that it transforms; None where it does not.

    It transforms 3x3 windows that move by one where the input's channels fill vectors of four
    (Lavin and Gray, 2016): a tile of `side` x `side` outputs takes (side + 2)^2 products for each
    pair of channels, and tiles at the border are computed in full. Maps are taken as square. Where
    the transformed values don't fit the caches they go through memory.
    """
    is_plain = work.taps == 9 and work.stride == 1 and work.groups == 1
    if not is_plain or work.in_channels % 4:
        return None
    side, n_bytes = WINOGRAD_TILES.get(work.dtype, WINOGRAD_TILES[SLOWEST_DTYPE])
    map_side = math.sqrt(work.output_elements / work.out_channels)
    values = math.ceil(map_side / side) ** 2 * (side + 2) ** 2  # of one channel
    transformed = values * (work.in_channels + work.out_channels)
    is_spilled = transformed * n_bytes > TRANSFORM_CACHE_BYTES
    return {
        "winograd": values * work.in_channels * work.out_channels,
        "transform": transformed,
        "transform_bytes": transformed * n_bytes if is_spilled else 0.0,
    }


def assumed_cycles(work: OpWork, core: str, engine: str) -> tuple[float, float]:
    """Return an operator's cycles that no row resolves: shared among threads, and of the call."""
    shared = 0.0
    if work.kernel == "activation" and work.kind not in CHEAP_ACTIVATIONS:
        shared += CYCLES_PER_FUNCTION * work.output_elements
    if engine == "ncnn":
        return 0.0 if work.kind in NCNN_ELEMENTS else shared, 0.0
    if work.kernel == "pool":
        shared += CYCLES_PER_TAP * work.output_elements * work.taps
    return shared, call_cycles(core) * work.steps


def call_cycles(core: str) -> float:
    """Return the assumed cycles of calling one XNNPACK operator."""
    return CALL_CYCLES_IN_ORDER if core in IN_ORDER else CALL_CYCLES_OUT_OF_ORDER


def inference_cycles(core: str, engine: str) -> float:
    """Return the assumed cycles of one inference that belong to no operator."""
    return INFERENCE_CALLS * call_cycles(core) if engine == "xnnpack" else 0.0


@dataclass(frozen=True, kw_only=True)
class _Cycles:
    """Of one operator, split by what is known of them, and by where they go."""

    fitted: float
    assumed: float
    compute: float
    memory: float
    overhead: float


@dataclass(frozen=True, kw_only=True)
class _Price:
    """What operators are priced for."""

    core: str
    engine: str
    has_fp16: bool
    n_threads: int
    board: str  # a target; those with rows of their own have rates of their own
    bodies: dict[int, float] = field(default_factory=dict)  # cycles of the subgraphs met
    body_macs: dict[int, int] = field(default_factory=dict)  # their products

    def op_cycles(self, graph: Graph, work: OpWork) -> _Cycles:
        """Return an operator's cycles; of control flow, with its bodies."""
        rates, spared = self._rates(work.dtype)
        parts = {"compute": 0.0, "memory": 0.0, "overhead": 0.0}
        for term, amount in fitted_terms(work, self.engine).items():
            share, part = 1 - spared, "compute"
            if term in BYTE_TERMS:
                share, part = 1 - spared * BYTES_PARALLEL, "memory"
            elif term.endswith("_bytes"):
                part = "memory"
            elif term in OVERHEAD_TERMS:
                share, part = 1.0, "overhead"
            parts[part] += amount * rates[term] * share
        fitted = sum(parts.values())
        shared, fixed = assumed_cycles(work, self.core, self.engine)
        within = shared * (1 - spared) + sum(self.body_cycles(graph, body) for body in work.bodies)
        parts["compute"] += within
        parts["overhead"] += fixed
        assumed = within + fixed
        if not self.is_resolved(work):
            fitted, assumed = 0.0, fitted + assumed
        return _Cycles(fitted=fitted, assumed=assumed, **parts)

    def is_resolved(self, work: OpWork) -> bool:
        """Say whether published rows tell what such an operator costs."""
        dtype = _rate_dtype(work.dtype, self.core, self.has_fp16)
        return dtype is not None and (work.kernel in FITTED_KERNELS or work.kind in FREE_KINDS)

    def roofline(self, dtype: str, cycles_per_ms: float) -> Roofline:
        """Return the rates of the fastest kernel and of activations in memory."""
        rates, spared = self._rates(dtype)
        kernels = [term for term in ENGINE_TERMS[self.engine] if term in PRODUCT_TERMS]
        product = min(rates[term] for term in kernels if rates[term] > 0) * (1 - spared)
        byte = rates["activation_bytes"] * (1 - spared * BYTES_PARALLEL)
        return Roofline(
            macs_per_ms=cycles_per_ms / product,
            bytes_per_ms=cycles_per_ms / byte if byte else math.inf,
        )

    def _rates(self, dtype: str) -> tuple[Mapping[str, float], float]:
        """Return the rates of a type, and what share of the time the threads spare."""
        facts = _data()["cores"][self.core]
        known = _rate_dtype(dtype, self.core, self.has_fp16) or SLOWEST_DTYPE
        parallel = facts["parallel_share"][self.engine][known]
        rates = facts["rates"][self.engine][known]
        if own := _own_rows(self.core, self.engine, known, self.board):
            rates = own["rates" if self.n_threads == 1 else "rates_of_threads"]
        return rates, parallel * (1 - 1 / self.n_threads)

    def body_cycles(self, root: Graph, body: Graph) -> float:
        """Return the cycles of one pass of a subgraph; 0 inside a pass of its own."""
        if id(body) not in self.bodies:
            order = [one for one in call_order(root, body) if id(one) not in self.bodies]
            self.bodies.update({id(one): 0.0 for one in order})
            for one in order:
                works = graph_work(one, root=root, known=self.body_macs)
                ops = [self.op_cycles(root, work) for work in works]
                self.bodies[id(one)] = sum(op.fitted + op.assumed for op in ops)
        return self.bodies[id(body)]


def _rate_dtype(dtype: str, core: str, has_fp16: bool) -> str | None:
    """Return the type whose rates a type is priced with; None where there are none.

    Half precision is computed as float32 where the core can't do it.
    """
    found = RATE_DTYPES.get(dtype)
    if found == "float16" and not (has_fp16 and "float16" in _data()["cores"][core]["validation"]):
        return "float32"
    return found


def _model_core(target: Target) -> str:
    """Return the core whose rates stand for the target's; ConfigError where there is none."""
    place, core = f"target {target.name}", target.cpu.core
    if target.kind != "application-processor":
        raise ConfigError(place, f"is a {target.kind}", "its cycles are modelled by other costs")
    if core == "host":
        raise ConfigError(place, "has no latency model", "run the model on this host instead")
    if core in _data()["cores"]:
        return core
    if core in NEAREST_CORES:
        return NEAREST_CORES[core]
    if "neon" not in target.cpu.isa:
        known = nearest(core, [*_data()["cores"], *NEAREST_CORES])
        raise ConfigError(place, f"has the core {core!r}, which has no latency model", known)
    return "cortex-a55" if "dotprod" in target.cpu.isa else "cortex-a53"


def _own_rows(core: str, engine: str, dtype: str | None, board: str) -> Mapping[str, Any] | None:
    """Return the rates and the validation of a board that the engine's rows are of."""
    if engine != "ncnn":
        return None
    found: Mapping[str | None, Any] = _data()["cores"][core]["own"].get(board, {})
    return found.get(dtype)


def _core_width(core: str, dtype: str | None, board: str) -> float:
    """Return half the width of a core's band in log time, 0 where it has no rows of the type.

    Rows of one board say nothing about other boards: those get how far boards differ on top.
    """
    bands, facts = _data()["bands"], _data()["cores"][core]
    if dtype not in facts["validation"]:
        return 0.0
    width = float(facts["validation"][dtype]["width"])
    if len(facts["boards"]) == 1 and board not in facts["profiles"]:
        return math.hypot(width, float(bands["board"]["width"]))
    return width


def _main_dtype(works: tuple[OpWork, ...]) -> str:
    """Return the type that most products are in."""
    macs = Counter[str]()
    for work in works:
        macs[work.dtype] += work.macs
    return max(macs, key=lambda name: macs[name]) if macs else SLOWEST_DTYPE


def _band(
    works: tuple[OpWork, ...], target: Target, core: str, engine: str, has_fp16: bool
) -> tuple[float, bool, str]:
    """Return half the width of the band in log time, whether it is validated, and its basis."""
    macs = sum(work.macs for work in works)
    dtype = _rate_dtype(_main_dtype(works), core, has_fp16) if works else None
    bands, facts = _data()["bands"], _data()["cores"][core]
    found = facts["validation"].get(dtype) if core == target.cpu.core else None
    width = _core_width(core, dtype, target.name if found else "")
    own = _own_rows(core, engine, dtype, target.name) if found else None
    if own:
        width = float(own["validation"]["width"])
        basis = (
            f"the band holds nine in ten of {own['validation']['rows']} published {dtype} "
            "latencies on this board, each predicted without its model"
        )
    elif found:
        basis = (
            f"the band holds nine in ten of {found['rows']} published {dtype} latencies on {core}, "
            f"each predicted without its model"
        )
        if len(facts["boards"]) > 1:
            basis += " and board"
        elif target.name not in facts["profiles"]:
            basis += ", widened by how far boards of one core differ"
    else:
        width = max(width, float(bands["other_core"]["width"]))
        rates = "the core's other types" if core == target.cpu.core else core
        basis = (
            f"too few published {dtype or 'such'} latencies on {target.cpu.core}: rates of "
            f"{rates}; the band holds nine in ten of {bands['other_core']['rows']} latencies, "
            "each predicted from its core's nearest relative"
        )
    if engine == "xnnpack":
        width = max(width, float(bands["xnnpack"]["width"]))
        basis += f", and of {bands['xnnpack']['rows']} of XNNPACK on any core"
    least, most = bands["macs"][engine]
    total = max(1, macs)
    decades = math.log10(total)  # of any length: control flow may multiply
    decades = max(0.0, math.log10(least) - decades, decades - math.log10(most))
    if decades > 0.05:
        side = "below" if total < least else "above"
        basis += f", widened for {decades:.1f} decades {side} the models among them"
    width += decades * float(bands["per_decade"])
    return width, found is not None and decades <= MAX_DECADES, basis


@cache
def _data() -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))
    return found
