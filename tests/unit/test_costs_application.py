"""The latency model: its shape without any data, and its figures against the published rows."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edgeshrink.costs import application
from edgeshrink.costs.application import ENGINES, NEAREST_CORES, latency, validation
from edgeshrink.costs.work import op_work
from edgeshrink.errors import ConfigError
from edgeshrink.graph import Graph, Op, Tensor
from edgeshrink.target import Cpu, Memory, Ops, Target, list_targets

Shape = tuple[int, ...]
CORES = ("cortex-a7", "cortex-a53", "cortex-a55", "cortex-a72", "cortex-a73", "cortex-a76")


def a_target(
    core: str = "cortex-a72",
    *,
    name: str = "board",
    clock_mhz: float | None = 1500.0,
    n_cores: int = 4,
    isa: Sequence[str] = ("neon",),
    kind: Any = "application-processor",
) -> Target:
    return Target(
        name=name,
        title=name,
        kind=kind,
        soc="",
        cpu=Cpu(core=core, isa=tuple(isa), clock_mhz=clock_mhz, n_cores=n_cores),
        memory=Memory(flash_bytes=None, ram_bytes=2**30),
        ops=Ops(dtypes=("int8", "float32")),
        runtimes=(),
    )


Layer = tuple[str, list[Shape], list[Shape], Shape, dict[str, Any]]


def graph_of(layers: Sequence[Layer], dtype: str = "int8") -> Graph:
    """A graph of operators with tensors of their own: kind, inputs, weights, output, options."""
    tensors: list[Tensor] = []
    ops = []

    def add(shape: Shape, *, constant: bool = False) -> int:
        stored = dtype if dtype in ("int8", "float16", "float32", "int16") else "int8"
        data = np.broadcast_to(np.zeros((), stored), shape) if constant else None
        tensors.append(Tensor(index=len(tensors), name="", shape=shape, dtype=dtype, data=data))
        return len(tensors) - 1

    for index, (kind, inputs, weights, output, options) in enumerate(layers):
        ids = [add(s) for s in inputs] + [add(s, constant=True) for s in weights]
        outputs = (add(output),)
        ops.append(
            Op(
                index=index,
                kind=kind,
                version=1,
                inputs=tuple(ids),
                outputs=outputs,
                options=options,
            )
        )
    return Graph(name="", tensors=tuple(tensors), ops=tuple(ops), inputs=(), outputs=())


def conv(size: int, n_in: int, n_out: int, kernel: int = 3) -> Layer:
    weights = [(n_out, kernel, kernel, n_in)]
    options = {"stride_w": 1, "stride_h": 1}
    return ("CONV_2D", [(1, size, size, n_in)], weights, (1, size, size, n_out), options)


def net(n_layers: int = 4, channels: int = 32, dtype: str = "int8") -> Graph:
    return graph_of([conv(32, channels, channels)] * n_layers, dtype)


def test_latency_falls_as_the_clock_rises():
    slow, fast = (latency(net(), a_target(clock_mhz=c), runtime="litert", threads=1) for c in
                  (1000.0, 2000.0))  # fmt: skip
    assert slow.total_ms == pytest.approx(2 * fast.total_ms)
    assert slow.low_ms > fast.low_ms
    assert slow.high_ms > fast.high_ms


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("dtype", ["int8", "float32"])
@pytest.mark.parametrize("runtime", ENGINES)
def test_latency_grows_with_every_kind_of_work(core, dtype, runtime):
    def total(*layers: Layer) -> float:
        graph = graph_of(layers, dtype)
        return latency(graph, a_target(core), runtime=runtime, threads=2).total_ms

    few = conv(16, 16, 16)
    for more in (conv(17, 16, 16), conv(16, 24, 16), conv(16, 16, 24), conv(16, 16, 16, 5)):
        assert total(more) > total(few)
    assert total(few, few) > total(few)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("runtime", ENGINES)
def test_more_threads_reduce_the_latency_and_never_raise_it(core, runtime):
    times = [
        latency(net(), a_target(core), runtime=runtime, threads=n).total_ms for n in range(1, 7)
    ]
    assert times[1] < times[0]
    assert times == sorted(times, reverse=True)
    assert times[0] / times[3] < 4
    assert times[3] == times[4] == times[5]  # the target has four cores


def test_every_operator_has_its_share_of_the_total():
    small, large = conv(8, 8, 8), conv(16, 64, 64)
    found = latency(graph_of([small, large]), a_target(), runtime="litert", threads=1)
    assert len(found.per_op_ms) == 2
    assert found.per_op_ms[1] > 10 * found.per_op_ms[0]
    call_us = (found.total_ms - sum(found.per_op_ms)) * 1e3
    assert 0 < call_us < 20


def test_calling_an_operator_costs_microseconds_on_a_small_board():
    tiny = graph_of([("FULLY_CONNECTED", [(1, 4)], [(4, 4)], (1, 4), {})] * 10)
    found = latency(tiny, a_target("cortex-a72"), runtime="litert", threads=1)
    assert 1 < found.total_ms * 1e3 / 10 < 10
    assert not found.validated
    assert "assumed" in found.basis


@pytest.mark.parametrize("dtype", ["int16", "bool", "string", "bfloat16", "float64", "int4"])
@pytest.mark.parametrize("kind", ["CONV_2D", "NOT_A_KIND", "TOPK_V2"])
def test_unknown_types_and_operators_are_priced_and_not_validated(dtype, kind):
    layer = (kind, *conv(32, 16, 16)[1:])
    found = latency(graph_of([layer], dtype), a_target(), runtime="litert", threads=1)
    assert 0 < found.low_ms < found.total_ms < found.high_ms < math.inf
    if kind != "CONV_2D" or dtype != "int4":
        assert not found.validated


def test_unknown_work_widens_the_band():
    known, unknown = (
        latency(graph_of([layer]), a_target(name="rpi4"), runtime="litert", threads=1)
        for layer in (conv(64, 32, 32), ("NOT_A_KIND", *conv(64, 32, 32)[1:]))
    )
    assert known.validated
    assert unknown.high_ms / unknown.low_ms > 1.5 * known.high_ms / known.low_ms


def test_control_flow_is_priced_for_one_pass_of_its_body():
    body = net(3)
    loop = graph_of([("WHILE", [(1, 4)], [], (1, 4), {"body_subgraph_index": 1})])
    looped = latency(
        replace(loop, subgraphs=(body,)), a_target(), runtime="litert", threads=1
    )  # fmt: skip
    plain = latency(body, a_target(), runtime="litert", threads=1)
    assert looped.total_ms == pytest.approx(plain.total_ms, rel=0.05)
    assert not looped.validated


def test_chains_and_circles_of_subgraphs_end():
    def call(n: int) -> Graph:
        return graph_of([("CALL", [(1, 4)], [], (1, 4), {"subgraph": n})] * 2)

    chain = replace(call(1), subgraphs=tuple(call(n) for n in range(2, 400)))
    circle = replace(call(1), subgraphs=(call(2), call(1)))
    for graph in (chain, circle):
        found = latency(graph, a_target(), runtime="litert", threads=1)
        assert found.low_ms <= found.total_ms <= found.high_ms


def test_smaller_models_than_any_published_have_a_wider_band_that_says_so():
    shown, tiny = (
        latency(graph_of([conv(size, 16, 16)]), a_target(name="rpi4"), runtime="litert", threads=1)
        for size in (64, 6)
    )
    assert tiny.high_ms / tiny.low_ms > shown.high_ms / shown.low_ms
    assert "decades below" in tiny.basis
    assert "decades" not in shown.basis
    assert shown.validated
    assert not tiny.validated  # 83 thousand products, the smallest published model has 7 million


def test_another_board_of_a_core_with_one_published_board_has_a_wider_band():
    known, other = (
        latency(net(8), a_target(name=name), runtime="litert", threads=1)
        for name in ("rpi4", "mine")
    )
    assert known.total_ms == other.total_ms
    assert other.high_ms > 1.2 * known.high_ms
    assert "boards" in other.basis


@pytest.mark.parametrize("core", [*NEAREST_CORES, "cortex-a999"])
def test_cores_without_rows_take_a_relative_and_are_not_validated(core):
    found = latency(net(), a_target(core), runtime="litert", threads=1)
    assert not found.validated
    assert 0 < found.low_ms < found.total_ms < found.high_ms < math.inf
    assert core in found.basis
    relative = NEAREST_CORES.get(core, "cortex-a53")
    own = latency(net(), a_target(relative), runtime="litert", threads=1)
    assert found.total_ms == own.total_ms
    assert found.high_ms >= own.high_ms


def test_every_application_processor_of_the_package_has_a_finite_band():
    targets = [t for t in list_targets() if t.kind == "application-processor"]
    targets = [t for t in targets if t.cpu.core != "host"]
    names = {"rpi4", "rpi5", "rpi3b+", "rpi-zero-2w", "android-arm64"}
    names |= {"pixel3", "pixel4", "pixel6"}
    assert names <= {t.name for t in targets}
    for target in targets:
        for dtype in ("int8", "float32"):
            for threads in (1, target.cpu.n_cores):
                found = latency(net(dtype=dtype), target, runtime="litert", threads=threads)
                assert 0 < found.low_ms <= found.total_ms <= found.high_ms < math.inf, target.name
                assert found.basis


def test_every_other_target_of_the_package_is_refused_by_name():
    others = [t for t in list_targets() if t.kind == "microcontroller" or t.cpu.core == "host"]
    assert len(others) > 5
    for target in others:
        with pytest.raises(ConfigError, match=target.name):
            latency(net(), target, runtime="litert", threads=1)


@pytest.mark.parametrize("core", [*CORES, "cortex-a75"])
@pytest.mark.parametrize("isa", [("neon",), ("neon", "fp16", "dotprod")])
def test_half_precision_is_never_slower_than_single(core, isa):
    half, single = (
        latency(net(dtype=d), a_target(core, isa=isa), runtime="litert", threads=1).total_ms
        for d in ("float16", "float32")
    )
    assert half <= single


def test_faster_cores_are_faster():
    times = [
        latency(net(), a_target(core), runtime="litert", threads=1).total_ms
        for core in ("cortex-a7", "cortex-a53", "cortex-a72", "cortex-a76", "cortex-a78")
    ]
    assert times == sorted(times, reverse=True)


def test_winograd_is_ncnn_s_alone():
    def per_mac(runtime: str, kernel: int) -> float:
        graph = graph_of([conv(56, 64, 64, kernel)])
        found = latency(graph, a_target(), runtime=runtime, threads=1)
        return found.total_ms / kernel**2

    assert per_mac("ncnn", 3) < 0.7 * per_mac("ncnn", 5)
    assert per_mac("litert", 3) == pytest.approx(per_mac("litert", 5), rel=0.1)


def test_winograd_computes_tiles_at_the_border_in_full():
    """F(6x6, 3x3) takes 64 products for 36 outputs, F(4x4, 3x3) 36 for 16 (Lavin and Gray)."""
    for dtype, side, products in (("float32", 13, 9 * 64), ("int8", 13, 16 * 36)):
        graph = graph_of([conv(side, 8, 24)], dtype)
        found = application.fitted_terms(op_work(graph, graph.ops[0]), "ncnn")
        assert found["winograd"] == products * 8 * 24
        assert found["transform"] == products * (8 + 24)
        assert found["direct"] == found["gemm"] == 0


def test_a_board_with_rows_of_its_own_has_a_narrower_band():
    known, unknown = (
        latency(net(8, 256, "float32"), a_target(name=name), runtime="ncnn", threads=4)
        for name in ("rpi4", "board")
    )
    assert known.high_ms / known.low_ms < 1.8 < unknown.high_ms / unknown.low_ms
    assert "on this board" in known.basis
    assert known.validated


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        (a_target("cortex-m4", kind="microcontroller"), {}, ("board", "microcontroller")),
        (a_target("host", isa=("avx2",)), {}, ("board", "host")),
        (a_target("cortex-a27", isa=()), {}, ("cortex-a27", "cortex-a")),
        (a_target(), {"runtime": "litter"}, ("litter", "litert")),
        (a_target(), {"threads": 0}, ("threads", "0")),
        (a_target(clock_mhz=None), {}, ("board", "clock_mhz")),
    ],
)
def test_what_can_t_be_priced_is_refused_by_name(target, options, words):
    with pytest.raises(ConfigError) as caught:
        latency(net(), target, **{"runtime": "litert", "threads": 1, **options})
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("core", [*CORES, "cortex-a75", "cortex-x1"])
@pytest.mark.parametrize("dtype", ["int8", "float32", "float16", "int16"])
def test_validation_has_enough_rows_and_a_band_around_one(core, dtype):
    found = validation(core, dtype)
    assert found.rows >= 9
    assert 0 <= found.within_10 <= found.within_20 <= 1
    assert 0.05 < found.mean_abs_error < 1
    assert 0.1 < found.band[0] < 1 < found.band[1] < 10
    assert found.band[0] * found.band[1] == pytest.approx(1)


def test_importing_the_costs_imports_nothing_heavy():
    code = "import sys, edgeshrink.costs; print(*{'torch', 'scipy', 'pandas'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_data_file_has_rates_for_all_that_is_priced():
    data = json.loads(application.DATA.read_text("utf-8"))
    for core, facts in data["cores"].items():
        for engine, terms in application.ENGINE_TERMS.items():
            by_dtype = facts["rates"][engine]
            assert {"int8", "float32"} <= set(by_dtype), core
            assert set(by_dtype) == set(facts["parallel_share"][engine])
            for rates in by_dtype.values():
                assert set(rates) == set(terms)
                assert all(0 < rate < 1e6 for rate in rates.values())
        assert set(facts["validation"]) <= set(facts["rates"]["ncnn"])
    assert set(NEAREST_CORES.values()) <= set(data["cores"])
    assert not set(NEAREST_CORES) & set(data["cores"])


# ---------------------------------------------------------------- against the published rows

CORE_NAMES = {
    "Cortex-A53": "cortex-a53", "Cortex-A55": "cortex-a55", "Cortex-A72": "cortex-a72",
    "Cortex-A73": "cortex-a73", "Kryo 280 (Cortex-A73)": "cortex-a73",
    "Cortex-A76": "cortex-a76", "Kryo 485 (Cortex-A76)": "cortex-a76",
}  # fmt: skip
DTYPES = {"int8": "int8", "uint8": "int8", "fp16": "float16", "fp32": "float32"}


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _numbers(text: str) -> Shape:
    return tuple(map(int, text.split("x")))


def _published_layers(lines: list[dict[str, str]]) -> list[Layer]:
    """The layers of a published list, read here once more, so that one reader checks the other."""
    layers: list[Layer] = []
    for at, line in enumerate(lines):
        source, output = _numbers(line["input_hwc"]), _numbers(line["output_hwc"])
        if line["type"] == "fully_connected":
            layers.append(("FULLY_CONNECTED", [(1, *source)], [output + source], (1, *output), {}))
            continue
        (height, width), (stride, _) = _numbers(line["kernel_hw"]), _numbers(line["stride_hw"])
        options = {"stride_w": stride, "stride_h": stride}
        if line["type"] == "pool":
            size = next(_numbers(x["input_hwc"]) for x in lines[at:] if x["type"] != "pool")
            depth = size[-1] if len(size) == 3 else size[0] // math.prod(output)
            options |= {"filter_width": width, "filter_height": height}
            shapes = [(1, *source, depth)], [], (1, *output, depth)
            layers.append(("AVERAGE_POOL_2D", *shapes, options))
        elif line["type"] == "depthwise":
            weights = [(1, height, width, output[2])]
            layers.append(("DEPTHWISE_CONV_2D", [(1, *source)], weights, (1, *output), options))
        else:
            weights = [(output[2], height, width, source[2] // int(line["groups"]))]
            layers.append(("CONV_2D", [(1, *source)], weights, (1, *output), options))
    return layers


@pytest.fixture(scope="module")
def fit(repo: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "fit_application_latency", repo / "benchmarks" / "fit_application_latency.py"
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(repo / "benchmarks"))  # where its parts lie
    spec.loader.exec_module(module)
    return module


def _unlisted_layers(beside: Any, layers: list[Layer], dtype: str) -> list[Layer]:
    """What an ncnn model computes beside its list, as operators that move and compute as much."""

    def each(kind: str, n: float) -> list[Layer]:
        return [(kind, [(1, round(n))], [], (1, round(n)), {})] if n else []

    width = {"int8": 4, "float16": 1, "float32": 1}[dtype]  # of floats, in values of `dtype`
    found = each("CONCATENATION", beside.moved * width / 2)
    found += each("LOCAL_RESPONSE_NORMALIZATION", beside.normalized)
    if dtype == "int8":
        pools = [layer for layer in layers if layer[0] == "AVERAGE_POOL_2D"]
        pooled = sum(math.prod(x[1][0]) + math.prod(x[3]) for x in pools)
        found += each("QUANTIZE", beside.quantized)
        found += each("RELU", 1.5 * (beside.float_outputs + pooled))  # three bytes more for each
    return found + (beside.ops - len(found)) * each("RESHAPE", 1)


@pytest.fixture(scope="module")
def published(shared_dir: Path, fit: ModuleType) -> list[dict[str, Any]]:
    """Measured and predicted times of the published rows on the cores that targets have."""
    lists: dict[str, list[dict[str, str]]] = {}
    for line in _rows(shared_dir / "anchors" / "ncnn_layers.csv"):
        lists.setdefault(line["model"], []).append(line)
    found, beside = [], sys.modules["application_rows"].BESIDE
    for row in _rows(shared_dir / "anchors" / "cortexa.csv"):
        if row["core"] not in CORE_NAMES or not row["macs"]:
            continue
        model = row["model"].removesuffix("_int8")
        if row["model"] == "MobileNetV1 1.0 224":
            model = "mobilenet"  # the same network
        dtype, layers = DTYPES[row["precision"]], _published_layers(lists[model])
        if row["runtime"] == "ncnn":
            layers += _unlisted_layers(beside[model], layers, dtype)
        graph = graph_of(layers, dtype)
        target = a_target(
            CORE_NAMES[row["core"]],
            name=row["profile"] or "board",
            clock_mhz=float(row["clock_mhz"]),
            n_cores=12,
            isa=("neon", "fp16"),
        )
        runtime = "ncnn" if row["runtime"] == "ncnn" else "litert"
        priced = latency(graph, target, runtime=runtime, threads=int(row["threads"]))
        found.append({**row, "priced": priced, "measured": float(row["latency_ms"])})
    assert len(found) > 400
    return found


@pytest.mark.shared
def test_bands_hold_nine_in_ten_of_the_rows_they_come_from(published):
    groups: dict[tuple[str, str], list[bool]] = {}
    for row in published:
        inside = row["priced"].low_ms <= row["measured"] <= row["priced"].high_ms
        groups.setdefault((CORE_NAMES[row["core"]], DTYPES[row["precision"]]), []).append(inside)
    for key, inside in groups.items():
        assert np.mean(inside) >= 0.9, key


@pytest.mark.shared
def test_xnnpack_rows_lie_in_their_bands(published):
    rows = [row for row in published if row["runtime"] != "ncnn"]
    assert len(rows) >= 10
    for row in rows:
        assert row["priced"].low_ms <= row["measured"] <= row["priced"].high_ms, row["row_id"]
        assert row["priced"].validated or row["precision"] == "fp32", row["row_id"]


@pytest.mark.shared
def test_bands_are_not_wide_enough_to_hold_everything(published):
    doubled = [row for row in published if row["priced"].high_ms < 4 * row["measured"]]
    assert len(doubled) > 0.9 * len(published)
    widths = [row["priced"].high_ms / row["priced"].low_ms for row in published]
    assert np.median(widths) < 6


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {
            k: v for key, inner in value.items() for k, v in _leaves(inner, f"{path}/{key}").items()
        }
    if isinstance(value, list):
        pairs = enumerate(value)
        return {k: v for n, inner in pairs for k, v in _leaves(inner, f"{path}/{n}").items()}
    return {path: value}


@pytest.mark.shared
@pytest.mark.slow
def test_fit_repeats_the_rates_of_the_data_file(fit, shared_dir):
    anchors = shared_dir / "anchors"
    study = fit.Study(fit.read_rows(anchors), fit.read_scaling(anchors))
    shipped = json.loads(application.DATA.read_text("utf-8"))
    for core, facts in shipped["cores"].items():
        assert _leaves(fit.core_rates(study, core)) == pytest.approx(
            _leaves(facts["rates"]), rel=2e-3
        )
    # The package prices a row as the fit does.
    fitted = study.without(lambda row: False, lambda row: True).unknown_board
    for row in study.rows[::10]:
        predicted = math.exp(row.log_cycles - fitted[row.row_id])
        cycles = 0.0
        facts = shipped["cores"][row.core]
        parallel = facts["parallel_share"][row.engine][row.dtype]
        for term, amount in zip(application.ENGINE_TERMS[row.engine], row.amounts, strict=True):
            part = {"activation_bytes": 0.5, "weight_bytes": 0.5}.get(term, 1.0)
            part = 0.0 if term in ("ops", "boxes") else part
            share = 1 - part * parallel * (1 - 1 / row.threads)
            cycles += amount * facts["rates"][row.engine][row.dtype][term] * share
        cycles += row.assumed_cycles[0] * (1 - parallel * (1 - 1 / row.threads))
        assert cycles + row.assumed_cycles[1] == pytest.approx(predicted, rel=5e-3)


@pytest.mark.shared
@pytest.mark.slow
def test_fit_and_cross_validation_repeat_the_whole_data_file(repo, shared_dir):
    script = repo / "benchmarks" / "fit_application_latency.py"
    done = subprocess.run(
        [sys.executable, str(script), str(shared_dir / "anchors"), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    again = _leaves(json.loads(done.stdout))
    shipped = _leaves(json.loads(application.DATA.read_text("utf-8")))
    assert again.keys() == shipped.keys()
    numbers = {k for k, v in shipped.items() if isinstance(v, float)}
    assert {k: again[k] for k in shipped.keys() - numbers} == {
        k: shipped[k] for k in shipped.keys() - numbers
    }
    assert {k: again[k] for k in numbers} == pytest.approx(
        {k: shipped[k] for k in numbers}, rel=0.02
    )


def test_model_errs_less_than_half_as_much_as_constant_cycles_per_product():
    found = json.loads(application.DATA.read_text("utf-8"))["comparison"]
    constant, ours = found["constant_cycles_per_mac"], found["model_left_out_board_known"]
    assert constant["rows"] == ours["rows"] > 500
    assert ours["mean_abs_error"] < 0.5 * constant["mean_abs_error"]
    assert ours["within_10"] > constant["within_10"]
