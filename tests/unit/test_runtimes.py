"""Running model files in worker processes. Oracles: exact integer arithmetic, numpy, PyTorch."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeshrink.errors import ConfigError, ModelError, ToolchainError
from edgeshrink.runtimes import ENGINES, ModelRunner, open_model, read_pte, runner, worker
from edgeshrink.runtimes.runner import PYTHON_VARIABLE, WorkerProcess
from tests import tiny_models

LITERT = ("litert", "litert-builtin", "litert-reference")
needs_old_runtime = pytest.mark.skipif(
    PYTHON_VARIABLE not in os.environ, reason=f"needs tflite-runtime: set {PYTHON_VARIABLE}"
)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_end(pid: int, timeout_s: float = 10) -> bool:
    end = time.monotonic() + timeout_s
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not is_alive(pid)


def be_impatient(model: ModelRunner, timeout_s: float = 0.3) -> None:
    """Shorten the timeout of a model that is open: opening may well take longer than that."""
    model._worker.timeout_s = timeout_s
    model._worker.socket.settimeout(timeout_s)


# Running


@pytest.mark.parametrize(
    "engine", [*LITERT, "tflm", pytest.param("tflite-runtime", marks=needs_old_runtime)]
)
def test_every_tflite_engine_computes_the_exact_result(engine: str) -> None:
    data = tiny_models.fully_connected()
    x = np.random.default_rng(1).integers(-30, 30, (200, 4), np.int8)
    with open_model(data, engine) as model:
        (y,) = model.run(x)
    np.testing.assert_array_equal(y, tiny_models.expected_fully_connected(x, data))


def test_inputs_and_outputs_keep_the_order_of_the_file() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 7, 3)).astype(np.float32)
    with open_model(tiny_models.add_float(), "litert") as model:
        assert [spec.name for spec in model.inputs] == ["first", "second"]
        assert [spec.name for spec in model.outputs] == ["difference", "sum", "first"]
        difference, total, first = model.run(a, b)
    np.testing.assert_array_equal(difference, a - b)
    np.testing.assert_array_equal(total, a + b)
    np.testing.assert_array_equal(first, a)


def test_inputs_state_their_quantization() -> None:
    with open_model(tiny_models.fully_connected(), "litert") as model:
        (spec,) = model.inputs
    assert (spec.name, spec.shape, spec.dtype) == ("x", (1, 4), "int8")
    assert (spec.scale, spec.zero_point) == (1.0, 0)


def test_a_batch_that_takes_several_messages_comes_back_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner, "CHUNK_BYTES", 64)
    data = tiny_models.fully_connected()
    x = np.random.default_rng(1).integers(-30, 30, (101, 4), np.int8)
    done: list[int] = []
    with open_model(data, "litert") as model:
        (y,) = model.run(x, progress=done.append)
    np.testing.assert_array_equal(y, tiny_models.expected_fully_connected(x, data))
    assert len(done) > 5
    assert done == sorted(done)
    assert done[-1] == 101


def test_a_file_with_a_batch_of_its_own_takes_multiples_of_it() -> None:
    a = np.arange(12, dtype=np.float32).reshape(4, 3)
    with open_model(tiny_models.add_float(batch=2), "litert") as model:
        difference, total, _ = model.run(a, 2 * a)
        np.testing.assert_array_equal(difference, -a)
        np.testing.assert_array_equal(total, 3 * a)
        with pytest.raises(ModelError, match="3 samples, the file takes 2 at a time"):
            model.run(a[:3], a[:3])


def test_an_output_without_the_batch_gets_an_axis_of_inferences() -> None:
    build = tiny_models.TfliteBuilder()
    x, axis = build.tensor("x", (1, 3)), build.tensor("axis", (2,), "INT32", data=np.int32([0, 1]))
    y = build.tensor("total", ())
    build.op("SUM", [x, axis], [y], tiny_models.S.ReducerOptionsT())
    build.graph.inputs, build.graph.outputs = [x], [y]
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    with open_model(build.bytes(), "litert") as model:
        np.testing.assert_array_equal(model.run(values)[0], values.sum(1))


def test_inputs_without_a_common_first_axis_run_once_as_the_file_has_them() -> None:
    build = tiny_models.TfliteBuilder()
    a, b, y = build.tensor("a", (2, 3)), build.tensor("b", (1, 3)), build.tensor("y", (2, 3))
    build.op("ADD", [a, b], [y], tiny_models.S.AddOptionsT())
    build.graph.inputs, build.graph.outputs = [a, b], [y]
    left, right = np.ones((2, 3), np.float32), np.arange(3, dtype=np.float32)[np.newaxis]
    with open_model(build.bytes(), "litert") as model:
        np.testing.assert_array_equal(model.run(left, right)[0][0], left + right)


def test_no_samples_give_no_results() -> None:
    with open_model(tiny_models.fully_connected(), "litert") as model:
        assert model.run(np.empty((0, 4), np.int8))[0].shape == (0, 3)


@pytest.mark.parametrize("engine", LITERT)
def test_every_sample_starts_from_a_fresh_state(engine: str) -> None:
    x = np.float32([[1], [2], [1], [1]])
    with open_model(tiny_models.stateful(), engine) as model:
        (y,) = model.run(x)
        np.testing.assert_array_equal(y, x)  # with the state of the sample before: 10 times that


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ((np.zeros((2, 4), np.float32),), r"inputs: x: got float32 \(2, 4\), takes int8 \(n, 4\)"),
        ((np.zeros((2, 5), np.int8),), r"\(2, 5\)"),
        ((np.int8(3),), r"got int8 \(\)"),
        ((), "0 given, the model takes 1"),
        ((np.zeros((1, 4), np.int8),) * 2, "2 given, the model takes 1"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_before_anything_runs(
    arrays: tuple[Any, ...], match: str
) -> None:
    with open_model(tiny_models.fully_connected(), "litert", name="my.tflite") as model:
        with pytest.raises(ModelError, match=match):
            model.run(*arrays)
        assert model.run(np.zeros((1, 4), np.int8))[0].shape == (1, 3)


def test_inputs_of_different_length_are_refused() -> None:
    with (
        open_model(tiny_models.add_float(), "litert") as model,
        pytest.raises(ModelError, match="same n for every input"),
    ):
        model.run(np.zeros((2, 3), np.float32), np.zeros((3, 3), np.float32))


def test_tensorflow_lite_micro_gets_buffers_it_would_not_find() -> None:
    data = tiny_models.fully_connected()
    x = np.random.default_rng(1).integers(-30, 30, (9, 4), np.int8)
    with open_model(tiny_models.with_outside_buffers(data), "tflm") as model:
        (y,) = model.run(x)
    np.testing.assert_array_equal(y, tiny_models.expected_fully_connected(x, data))


def test_a_path_with_spaces_and_other_letters_runs(tmp_path: Path) -> None:
    path = tmp_path / "mein Mödell 模型.tflite"
    path.write_bytes(tiny_models.add_float())
    ones = np.ones((1, 3), np.float32)
    with open_model(path, "litert", threads=2) as model:
        np.testing.assert_array_equal(model.run(ones, ones)[1], 2 * ones)


def test_ten_thousand_images_take_seconds_not_minutes() -> None:
    build = tiny_models.TfliteBuilder()
    x, y = build.tensor("x", (1, 32, 32, 3), "INT8"), build.tensor("y", (1, 3072), "INT8")
    shape = build.tensor("shape", (2,), "INT32", data=np.int32([1, 3072]))
    build.op("RESHAPE", [x, shape], [y])
    build.graph.inputs, build.graph.outputs = [x], [y]
    images = np.random.default_rng(0).integers(-128, 128, (10_000, 32, 32, 3), np.int8)
    with open_model(build.bytes(), "litert") as model:
        start = time.perf_counter()
        (out,) = model.run(images)
        elapsed_s = time.perf_counter() - start
    np.testing.assert_array_equal(out, images.reshape(10_000, -1))
    assert elapsed_s < 5  # 0.2 s on an idle machine


# Figures


def test_latency_gives_one_figure_per_repeat_and_big_models_take_longer() -> None:
    medians = []
    for n in (16, 1024):
        with open_model(tiny_models.float_dense(n), "litert") as model:
            seconds = model.latency(21)
        assert len(seconds) == 21
        assert min(seconds) > 0
        medians.append(np.median(seconds))
    assert medians[1] > 3 * medians[0]


def test_heap_counts_the_weights_that_xnnpack_packs() -> None:
    data = tiny_models.float_dense(512)
    figures = {}
    for engine in ("litert", "litert-builtin"):
        with open_model(data, engine) as model:
            figures[engine] = model.memory()
    packed = figures["litert"].heap_bytes - figures["litert-builtin"].heap_bytes
    weights = 4 * 512 * 512
    assert weights <= packed < weights + 200_000
    assert figures["litert-builtin"].heap_bytes < 300_000  # weights stay in the mapped file
    for memory in figures.values():
        assert memory.model_file_bytes == len(data)
        assert weights <= memory.model_resident_bytes <= len(data) + 8192
        assert memory.peak_bytes > 0.9 * weights
        assert 1 << 20 < memory.runtime_bytes < 100 << 20


def test_heap_figures_repeat() -> None:
    with open_model(tiny_models.fully_connected(), "litert") as model:
        heaps = [model.memory().heap_bytes for _ in range(4)]
    assert max(heaps) - min(heaps) <= 3 * 1024


def test_memory_of_tensorflow_lite_micro_is_refused() -> None:
    with (
        open_model(tiny_models.fully_connected(), "tflm") as model,
        pytest.raises(ConfigError, match="tflm"),
    ):
        model.memory()


def test_measuring_memory_leaves_the_runner_usable() -> None:
    with open_model(tiny_models.fully_connected(), "litert") as model:
        pid = model.pid
        model.memory()
        assert model.pid == pid
        assert model.run(np.zeros((1, 4), np.int8))[0].shape == (1, 3)


# Processes


def test_the_worker_ends_with_the_with_statement() -> None:
    with open_model(tiny_models.fully_connected(), "litert") as model:
        assert is_alive(model.pid)
    assert not is_alive(model.pid)
    with pytest.raises(ModelError, match="has ended"):
        model.run(np.zeros((1, 4), np.int8))
    model.close()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_crash_becomes_a_model_error_that_names_file_and_signal(number: signal.Signals) -> None:
    with open_model(tiny_models.fully_connected(), "litert", name="my.tflite") as model:
        os.kill(model.pid, number)
        with pytest.raises(ModelError, match=rf"my\.tflite: LiteRT.* crashed \({number.name}"):
            model.run(np.zeros((1, 4), np.int8))
        assert not is_alive(model.pid)


def test_a_hang_becomes_a_model_error_after_the_timeout() -> None:
    with open_model(tiny_models.fully_connected(), "litert") as model:
        be_impatient(model)
        os.kill(model.pid, signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(ModelError, match=r"no sign of life for 0\.3 s while running"):
            model.run(np.zeros((1, 4), np.int8))
        assert time.monotonic() - start < 5
        assert not is_alive(model.pid)


# Loads at once, then takes its argument's seconds of a processor in turns with as long a sleep.
SLOW_WORKER = """
import json, socket, sys, time
connection = socket.socket(fileno=int(sys.argv[1]))
def send(message):
    text = json.dumps(message).encode()
    connection.sendall(len(text).to_bytes(4, "little") + text)
while time.process_time() < {seconds}:
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    time.sleep(0.15)
send({{"done": True}})
"""


@pytest.mark.parametrize(("seconds", "is_patient"), [(0.3, True), (30, False)])
def test_a_worker_that_others_keep_from_the_processor_does_not_hang(
    tmp_path: Path, seconds: float, is_patient: bool
) -> None:
    script = tmp_path / "worker.py"
    script.write_text(SLOW_WORKER.format(seconds=seconds))
    process = WorkerProcess("my.tflite", b"", ENGINES["litert"], sys.executable, 0.5, str(script))
    try:
        if is_patient:
            assert process.hear(None) == {"done": True}
        else:
            with pytest.raises(ToolchainError, match=r"no sign of life for 0\.5 s"):
                process.hear(None)
    finally:
        process.close()


def test_a_hang_is_noticed_while_data_is_still_being_sent() -> None:
    with open_model(tiny_models.float_dense(512), "litert") as model:
        be_impatient(model)
        os.kill(model.pid, signal.SIGSTOP)
        with pytest.raises(ModelError, match="no sign of life"):
            model.run(np.zeros((10_000, 512), np.float32))


@pytest.mark.slow
def test_a_long_run_with_signs_of_life_is_no_hang() -> None:
    data = tiny_models.float_dense(1024)
    with open_model(data, "litert-reference", timeout_s=3) as model:
        calls = int(4.0 / np.median(model.latency(5))) + 1
        start = time.monotonic()
        model.run(np.zeros((calls, 1024), np.float32))
        assert time.monotonic() - start > 3


def test_what_the_runtime_prints_reaches_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    with open_model(tiny_models.fully_connected(), "litert") as model:  # says: INFO: Created ...
        model.run(np.zeros((1, 4), np.int8))
    assert capfd.readouterr() == ("", "")


def test_noise_on_stdout_reaches_nobody_and_does_not_disturb(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    python = tmp_path / "noisy python"
    python.write_text(f'#!/bin/sh\necho noise\necho noise >&2\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    with open_model(tiny_models.fully_connected(), "litert", python=str(python)) as model:
        assert model.run(np.zeros((1, 4), np.int8))[0].shape == (1, 3)
    assert capfd.readouterr() == ("", "")


def test_ctrl_c_is_left_to_the_parent() -> None:
    with open_model(tiny_models.fully_connected(), "litert") as model:
        os.kill(model.pid, signal.SIGINT)
        assert model.run(np.zeros((1, 4), np.int8))[0].shape == (1, 3)


PARENT = """
import os, sys, time, numpy as np
sys.path.insert(0, {repo!r})
from tests import tiny_models
from edgeshrink.runtimes import open_model
with open_model(tiny_models.float_dense(1024), "litert-reference") as model:
    print(model.pid, flush=True)
    while True:
        model.run(np.zeros((2000, 1024), np.float32))
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, -signal.SIGINT)]
)
def test_the_worker_ends_when_its_parent_does(
    number: signal.Signals, code: int, repo: Path
) -> None:
    script = PARENT.format(repo=str(repo))
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.3)
        assert is_alive(pid)
        os.kill(pid, signal.SIGSTOP)  # as if it hung: it can't notice anything by itself
        parent.send_signal(number)
        assert parent.wait(20) == code
    assert wait_for_end(pid)


def test_a_model_may_not_take_more_memory_than_allowed() -> None:
    build = tiny_models.TfliteBuilder()
    x = build.tensor("x", (1, 1))
    size = build.tensor("size", (2,), "INT32", data=np.int32([30_000, 30_000]))
    wide, axis = (
        build.tensor("wide", (30_000, 30_000)),
        build.tensor("axis", (2,), "INT32", data=np.int32([0, 1])),
    )
    y = build.tensor("y", (1, 1))
    build.op("BROADCAST_TO", [x, size], [wide], version=2)
    build.op("SUM", [wide, axis], [y], tiny_models.S.ReducerOptionsT(keepDims=True))
    build.graph.inputs, build.graph.outputs = [x], [y]
    with (
        pytest.raises(ModelError, match=r"big\.tflite: LiteRT"),
        open_model(build.bytes(), "litert", name="big.tflite") as model,
    ):
        model.run(np.ones((1, 1), np.float32))


# What is missing


def test_the_table_of_engines_is_that_of_the_worker() -> None:
    assert set(ENGINES) == set(worker.LOADERS)


def test_an_unknown_engine_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="litert-builtin"):
        open_model(b"", "tensorrt")


def test_no_threads_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        open_model(tiny_models.fully_connected(), "litert", threads=0)


def test_a_runtime_that_is_not_installed_gives_the_install_line() -> None:
    with pytest.raises(ToolchainError, match=r"can't be imported.*tflite_runtime") as caught:
        open_model(tiny_models.fully_connected(), "tflite-runtime", python=sys.executable)
    assert "numpy<2" in caught.value.fix
    assert PYTHON_VARIABLE in caught.value.fix


def test_without_a_python_for_tflite_runtime_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    with pytest.raises(ToolchainError, match=f"not installed.*{PYTHON_VARIABLE}"):
        open_model(tiny_models.fully_connected(), "tflite-runtime")


def test_a_python_without_numpy_gives_the_install_line(tmp_path: Path) -> None:
    python = tmp_path / "bare python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    with pytest.raises(ToolchainError, match=r"edgeshrink\[build\]") as caught:
        open_model(tiny_models.fully_connected(), "litert", python=str(python))
    assert "numpy" in str(caught.value)


def test_a_python_that_is_not_there_is_named() -> None:
    with pytest.raises(ToolchainError, match="/no/such/python"):
        open_model(tiny_models.fully_connected(), "litert", python="/no/such/python")


def test_the_worker_is_written_for_python_3_9() -> None:
    ast.parse(Path(worker.__file__).read_text(), feature_version=(3, 9))


# .pte


def test_a_pte_states_calls_arenas_inputs_and_outputs() -> None:
    info = read_pte(tiny_models.tiny_pte())
    assert info.method == "forward"
    assert info.calls == {"aten::add.out": 2, "delegate:XnnpackBackend": 1}
    assert info.planned_arena_bytes == (4096, 128)
    assert [(s.name, s.shape, s.dtype) for s in info.inputs] == [("args_0", (1, 3), "float32")]
    assert [(s.name, s.shape, s.dtype) for s in info.outputs] == [("output_0", (1, 3), "float32")]


class Exported:
    """Small models, exported once: float and int8, portable and XNNPACK."""

    def __init__(self) -> None:
        import torch
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
        from torch import nn

        torch.manual_seed(0)

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 8, 3, 2, 1)
                self.head = nn.Linear(8, 4)

            def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
                features = torch.relu(self.conv(x)).mean([2, 3])
                return self.head(features) + y, features

        self.torch, self.net = torch, Net().eval()
        example = torch.randn(1, 3, 8, 6), torch.randn(1, 4)
        last = example[0].to(memory_format=torch.channels_last), example[1]
        self.files = {}
        for name, inputs, partitioner in (
            ("xnnpack", example, [XnnpackPartitioner()]),
            ("portable", example, []),
            ("channels-last", last, []),
        ):
            program = torch.export.export(self.net, inputs)
            lowered = to_edge_transform_and_lower(program, partitioner=partitioner)
            self.files[name] = bytes(lowered.to_executorch().buffer)


@pytest.fixture(scope="module")
def exported() -> Exported:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Exported()


PTES = ("xnnpack", "portable", "channels-last")


@pytest.mark.slow
@pytest.mark.parametrize("kind", PTES)
def test_executorch_computes_what_pytorch_does(kind: str, exported: Exported) -> None:
    torch = exported.torch
    x, y = torch.randn(5, 3, 8, 6), torch.randn(5, 4)
    with torch.no_grad():
        expected = exported.net(x, y)
    with open_model(exported.files[kind], "executorch") as model:
        assert [spec.shape for spec in model.inputs] == [(1, 3, 8, 6), (1, 4)]
        outputs = model.run(x.numpy(), y.numpy())
        assert len(model.latency(3)) == 3
    for output, want in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output, want.numpy(), atol=1e-5)


@pytest.mark.slow
def test_heap_of_executorch_holds_the_planned_arena_and_repeats(exported: Exported) -> None:
    data = exported.files["portable"]
    with open_model(data, "executorch") as model:
        memories = [model.memory() for _ in range(3)]
    heaps = [memory.heap_bytes for memory in memories]
    assert max(heaps) - min(heaps) <= 3 * 1024
    assert min(heaps) >= sum(read_pte(data).planned_arena_bytes)
    assert all(m.runtime_bytes < m.import_bytes for m in memories)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PTES)
def test_a_pte_is_read_as_executorch_reads_it(kind: str, exported: Exported) -> None:
    from executorch.exir._serialize._program import deserialize_pte_binary

    data = exported.files[kind]
    plan = deserialize_pte_binary(data).program.execution_plan[0]
    calls: dict[str, int] = {}
    for instruction in plan.chains[0].instructions:
        arguments = instruction.instr_args
        if type(arguments).__name__ == "KernelCall":
            op = plan.operators[arguments.op_index]
            name = op.name + ("." + op.overload if op.overload else "")
        else:
            name = "delegate:" + plan.delegates[arguments.delegate_index].id
        calls[name] = calls.get(name, 0) + 1
    info = read_pte(data)
    assert info.calls == calls
    assert list(info.planned_arena_bytes) == plan.non_const_buffer_sizes[1:]
    for indices, specs in ((plan.inputs, info.inputs), (plan.outputs, info.outputs)):
        tensors = [plan.values[index].val for index in indices]
        assert [list(spec.shape) for spec in specs] == [tensor.sizes for tensor in tensors]
    orders = [tuple(plan.values[index].val.dim_order) for index in plan.inputs]
    assert list(info.input_dim_orders) == orders


@pytest.mark.slow
def test_a_kernel_that_executorch_lacks_is_named(exported: Exported) -> None:
    data = exported.files["portable"]
    assert b"aten::convolution" in data
    broken = data.replace(b"aten::convolution", b"aten::convolutiox")
    with pytest.raises(ModelError, match=r"my\.pte: ExecuTorch failed while loading") as caught:
        open_model(broken, "executorch", name="my.pte")
    assert "convolutiox" in str(caught.value)
