"""TFLM's cost on a device. Oracle: emulated kernels, published times, arenas of real images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeshrink.cli import main
from edgeshrink.costs import interpreter
from edgeshrink.costs.interpreter import cost_of_shapes, interpreter_cost, interpreter_ms
from edgeshrink.costs.kernels import GROUPS, KernelShape, group_of, reads_of, shape_of, terms_of
from edgeshrink.emulation.interpreter import emulate_interpreter, scratch_bytes
from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.graph import Graph, Op, Tensor
from edgeshrink.graph_reader import read_graph_file
from edgeshrink.runtimes.tflm_arena import planned_bytes
from edgeshrink.target import load_target


def tensor(
    index: int, shape: tuple[int, ...], *, data: bool = False, dtype: str = "int8"
) -> Tensor:
    values = np.zeros(shape, dtype) if data else None
    return Tensor(index=index, name=f"t{index}", shape=shape, dtype=dtype, data=values,
                  quantization=None)  # fmt: skip


def one_op(kind: str, x: tuple[int, ...], w: tuple[int, ...] | None, y: tuple[int, ...],
           dtype: str = "int8", **options: object) -> Graph:  # fmt: skip
    tensors = [tensor(0, x, dtype=dtype), tensor(1, y, dtype=dtype)]
    if w is not None:
        tensors.append(tensor(2, w, data=True))
    op = Op(index=0, kind=kind, version=1, inputs=(0,) if w is None else (0, 2), outputs=(1,),
            options=options)  # fmt: skip
    return Graph(name="g", tensors=tuple(tensors), ops=(op,), inputs=(0,), outputs=(1,),
                 input_names=("x",), output_names=("y",))  # fmt: skip


# Shapes and terms


def test_the_shape_of_a_layer_is_read_from_its_tensors() -> None:
    graph = one_op("CONV_2D", (1, 32, 32, 16), (32, 3, 3, 16), (1, 16, 16, 32), stride_h=2)
    shape = shape_of(graph, graph.ops[0])
    assert (shape.in_c, shape.out_h, shape.out_c, shape.taps, shape.stride) == (16, 16, 32, 9, 2)
    assert shape.macs == 16 * 16 * 32 * 9 * 16
    assert shape.weights == 32 * 9 * 16


@pytest.mark.parametrize("group", GROUPS)
def test_every_measured_kernel_has_as_many_coefficients_as_counts(group: str) -> None:
    shape = KernelShape(kind="CONV_2D", in_c=8, out_c=8, out_h=4, out_w=4)
    for rates in json.loads(interpreter.DATA.read_text("utf-8"))["kernels"].values():
        if group in rates["cycles"]:
            assert len(rates["cycles"][group]["per"]) == len(terms_of(group, shape))
        for entry in rates.get("waits", ()):
            if group in entry["groups"]:
                waits = entry["groups"][group]
                assert len(waits["misses"]) == len(reads_of(group, shape, 0))
                for name in ("fetched", "jumps", "successors"):
                    assert len(waits[name]) == len(terms_of(group, shape))


# What the kernels of CMSIS-NN 99f736a take in an emulator on a Cortex-M4, memory never waiting.
EMULATED = [
    (KernelShape(kind="CONV_2D", in_h=25, in_w=5, in_c=64, out_h=25, out_w=5, out_c=64), 1_239_639),
    (KernelShape(kind="CONV_2D", in_h=16, in_w=16, in_c=32, out_h=16, out_w=16, out_c=32, k_h=3,
                 k_w=3), 5_455_132),
    (KernelShape(kind="DEPTHWISE_CONV_2D", in_h=25, in_w=5, in_c=64, out_h=25, out_w=5, out_c=64,
                 k_h=3, k_w=3), 671_600),
    (KernelShape(kind="FULLY_CONNECTED", in_c=640, out_c=128), 197_336),
    (KernelShape(kind="ADD", out_h=16, out_w=16, out_c=32), 782_830),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "cycles"), EMULATED)
def test_a_kernel_is_priced_near_what_an_emulator_counts(shape: KernelShape, cycles: int) -> None:
    target = load_target("nucleo-l4r5zi")
    never = replace(target, memory=replace(target.memory, flash_wait_states=None))
    ((found, waiting),) = cost_of_shapes([shape], never)
    assert found == pytest.approx(cycles, rel=0.06)
    assert waiting == 0
    ((again, waiting),) = cost_of_shapes([shape], target)
    assert again == found
    assert waiting >= 0


# What nobody measured


@pytest.mark.parametrize("kind", ["TRANSPOSE_CONV", "HARD_SWISH", "CONCATENATION", "NO_SUCH_OP"])
def test_an_operator_without_a_measured_kernel_is_flagged_priced_and_widens_the_band(
    kind: str,
) -> None:
    target = load_target("nucleo-l4r5zi")
    known = interpreter_cost(one_op("ADD", (1, 8, 8, 16), None, (1, 8, 8, 16)), target)
    graph = one_op(kind, (1, 8, 8, 16), None, (1, 8, 8, 16))
    if kind == "TRANSPOSE_CONV":
        graph = one_op(kind, (1, 8, 8, 16), (16, 3, 3, 16), (1, 16, 16, 16))
    found = interpreter_cost(graph, target)
    assert found.unknown_ops == (0,)
    assert found.op_cycles[0] > 0
    assert found.error > known.error
    assert known.unknown_ops == ()


def test_16_bit_activations_are_flagged_and_dearer() -> None:
    target = load_target("nrf5340dk")
    few, many = (
        interpreter_cost(one_op("ADD", (1, 8, 8, 16), None, (1, 8, 8, 16), dtype), target)
        for dtype in ("int8", "int16")
    )
    assert many.unknown_ops == (0,)
    assert many.total_cycles > few.total_cycles


def test_kernels_of_another_core_widen_the_band() -> None:
    graph = one_op("ADD", (1, 8, 8, 16), None, (1, 8, 8, 16))
    own, other = (interpreter_cost(graph, load_target(n)) for n in ("esp32-s3", "esp32"))
    assert other.error > own.error
    assert other.total_cycles > own.total_cycles  # plain C against SIMD


def test_a_target_without_tflm_is_refused_with_what_it_has() -> None:
    graph = one_op("ADD", (1, 4), None, (1, 4))
    with pytest.raises(ConfigError, match="use engine tflite or executorch"):
        interpreter_cost(graph, load_target("rpi4"))
    target = load_target("nucleo-l4r5zi")
    with pytest.raises(ConfigError, match="has no clock"):
        interpreter_ms(graph, replace(target, cpu=replace(target.cpu, clock_mhz=None)))


def test_milliseconds_are_cycles_by_the_clock() -> None:
    graph, target = one_op("ADD", (1, 4096), None, (1, 4096)), load_target("nrf52840dk")
    cycles = interpreter_cost(graph, target).total_cycles
    assert interpreter_ms(graph, target) == pytest.approx(cycles / 64e3)


# The arena


def test_the_planner_puts_the_longest_block_first_and_others_where_nothing_lives() -> None:
    assert planned_bytes([]) == 0
    assert planned_bytes([(100, 0, 1), (50, 1, 2), (100, 2, 3)]) == 112 + 64
    assert planned_bytes([(16, 0, 0), (16, 1, 1)]) == 16
    # The gap of 32 below the block of 48 is free again when the last one comes.
    assert planned_bytes([(64, 0, 1), (48, 1, 2), (32, 2, 2)]) == 64 + 48


@pytest.mark.parametrize(
    ("graph", "wanted"),
    [
        # Of the kernels' own size functions: 16 channels 3x3, 3 channels 5x5, 1x1; 16 channels 5x5
        (one_op("CONV_2D", (1, 8, 8, 16), (8, 3, 3, 16), (1, 8, 8, 8)), 576),
        (one_op("CONV_2D", (1, 8, 8, 3), (8, 5, 5, 3), (1, 8, 8, 8)), 304),
        (one_op("CONV_2D", (1, 8, 8, 16), (8, 1, 1, 16), (1, 8, 8, 8)), 0),
        (one_op("DEPTHWISE_CONV_2D", (1, 8, 8, 16), (1, 5, 5, 16), (1, 8, 8, 16)), 800),
        (one_op("DEPTHWISE_CONV_2D", (1, 8, 8, 16), (1, 3, 3, 16), (1, 8, 8, 16)), 0),
        (one_op("AVERAGE_POOL_2D", (1, 8, 8, 64), None, (1, 1, 1, 64), filter_height=8,
                filter_width=8), 256),
    ],
)  # fmt: skip
def test_scratch_buffers_are_those_that_the_kernels_ask_for(graph: Graph, wanted: int) -> None:
    assert scratch_bytes(graph, graph.ops[0]) == wanted


# Whole models

# Arenas of images for a Cortex-M4 with TFLM 90b983c and CMSIS-NN 99f736a.
ARENAS = {"ic_resnet8": 54_996, "kws_dscnn": 22_820, "vww_mbv1_96": 100_708, "ad01": 2_580}


@pytest.mark.shared
@pytest.mark.parametrize(("name", "bytes_on_device"), ARENAS.items())
def test_the_arena_of_a_known_model_is_told_within_2_percent(
    name: str, bytes_on_device: int, shared_dir: Path
) -> None:
    path = shared_dir / "models" / f"mlperf_{name}_int8.tflite"
    profile = emulate_interpreter(path, load_target("nrf5340dk"))
    arena = profile.figures["arena_bytes"]
    assert arena.value == pytest.approx(bytes_on_device, rel=0.02)
    assert arena.low <= bytes_on_device <= arena.high
    assert profile.figures["ram_bytes"].value > arena.value
    for key in ("latency_ms", "cycles", "flash_bytes", "ram_bytes", "arena_bytes"):
        figure = profile.figures[key]
        assert figure.how == "modelled"
        assert figure.low < figure.value < figure.high
    assert [op.index for op in profile.ops] == list(range(len(profile.ops)))


# MLPerf Tiny v1.0, microTVM with CMSIS-NN; milliseconds.
PUBLISHED = {
    ("nucleo-l4r5zi", "ad01"): 8.605, ("nucleo-l4r5zi", "ic_resnet8"): 389.56,
    ("nucleo-l4r5zi", "kws_dscnn"): 99.81, ("nrf5340dk", "ad01"): 6.27,
    ("nrf5340dk", "ic_resnet8"): 316.2, ("nrf5340dk", "kws_dscnn"): 76.09,
}  # fmt: skip


@pytest.mark.shared
def test_published_times_of_the_same_kernels_are_met_without_a_factor_for_any_board(
    shared_dir: Path,
) -> None:
    errors = []
    for (board, name), published in PUBLISHED.items():
        graph = read_graph_file(shared_dir / "models" / f"mlperf_{name}_int8.tflite")
        errors.append(abs(interpreter_ms(graph, load_target(board)) / published - 1))
    assert np.mean(errors) <= 0.10
    assert max(errors) <= 0.15


def test_a_float_model_is_refused_where_the_target_allows_integers_only(tmp_path: Path) -> None:
    from edgeshrink.emulation.interpreter import _check_types

    graph = one_op("ADD", (1, 4), None, (1, 4), "float32")
    with pytest.raises(ModelError, match="computes in float32, rp2040 allows int8, int16"):
        _check_types(graph, load_target("rp2040"))


def test_products_of_the_old_unsigned_scheme_are_refused_by_their_type() -> None:
    from edgeshrink.emulation.interpreter import _check_types

    graph = one_op("FULLY_CONNECTED", (1, 4), (2, 4), (1, 2), "uint8")
    with pytest.raises(ModelError, match=r"FULLY_CONNECTED.*computes in uint8, rp2040 allows int8"):
        _check_types(graph, load_target("rp2040"))


def test_a_file_that_tflm_can_not_load_is_named_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "broken.tflite"
    path.write_bytes(b"TFL3 and nothing else")
    with pytest.raises(ModelError, match=r"broken\.tflite"):
        emulate_interpreter(path, load_target("nucleo-l4r5zi"))


# The commands


@pytest.mark.shared
def test_the_profile_command_prices_a_file_in_the_interpreter(
    shared_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(shared_dir / "models" / "mlperf_kws_dscnn_int8.tflite")
    with pytest.raises(SystemExit) as stop:
        main(["profile", model, "--target", "nucleo-l4r5zi", "--engine", "tflm", "--json"])
    assert stop.value.code == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["engine"] == "tflm"
    assert shown["figures"].keys() >= {"latency_ms", "arena_bytes", "ram_bytes", "flash_bytes"}
    for figure in shown["figures"].values():
        assert figure["low"] <= figure["value"] <= figure["high"]
        assert figure["how"] in ("measured", "modelled")
    assert len(shown["ops"]) == 13


@pytest.mark.shared
def test_the_profile_command_defaults_to_the_interpreter_where_there_is_no_engine_c(
    shared_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(shared_dir / "models" / "mlperf_ad01_int8.tflite")
    with pytest.raises(SystemExit):
        main(["profile", model, "--target", "esp32-s3", "--json"])
    assert json.loads(capsys.readouterr().out)["engine"] == "tflm"


@pytest.mark.parametrize("name", ["nucleo-l4r5zi", "esp32-s3", "rpi4"])
def test_the_targets_command_says_what_validates_a_target(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["targets", name])
    assert stop.value.code == 0
    lines = [s for s in capsys.readouterr().out.splitlines() if s.startswith("validation.")]
    assert lines
    for line in lines:
        assert "90 % band" in line
        assert "unvalidated" in line or "results, mean error" in line
    with pytest.raises(SystemExit):
        main(["targets", name, "--json"])
    shown = json.loads(capsys.readouterr().out)
    entries = {key: entry for key, entry in shown.items() if key.startswith("validation.")}
    assert len(entries) == len(lines)
    for entry in entries.values():
        assert entry["low"] <= 1 <= entry["high"] or entry["validated"]


@pytest.mark.shared
def test_c_for_a_core_that_is_not_emulated_is_refused_with_the_reason(
    tmp_path: Path, shared_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = str(shared_dir / "models" / "mlperf_ad01_int8.tflite"), str(tmp_path / "out")
    with pytest.raises(SystemExit) as stop:
        main(["compile", model, "--target", "esp32", "--out", out])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "does not run engine c" in said
    assert "--engine tflm" in said
    assert not Path(out).exists()


def test_every_group_of_kernels_is_that_of_a_real_operator() -> None:
    kinds = {
        "conv 1x1": KernelShape(kind="CONV_2D"), "conv": KernelShape(kind="CONV_2D", k_h=3, k_w=3),
        "depthwise 3x3": KernelShape(kind="DEPTHWISE_CONV_2D", k_h=3, k_w=3),
        "depthwise": KernelShape(kind="DEPTHWISE_CONV_2D", k_h=5, k_w=5),
        "depthwise multiplier": KernelShape(kind="DEPTHWISE_CONV_2D", in_c=1, out_c=8),
    }  # fmt: skip
    for group, shape in kinds.items():
        assert group_of(shape) == (group, True)
    assert group_of(KernelShape(kind="NO_SUCH_OP")) == ("add", False)
