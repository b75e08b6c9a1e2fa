"""A model becomes two files that compute the same, int8 throughout, named, self-contained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeshrink.errors import ModelError
from edgeshrink.exporting import Exported, check_exportable, export, exporter
from edgeshrink.exporting.gates import Difference, compare, engine_limit
from edgeshrink.predict import dequantize_array, pte_predict, tflite_predict
from edgeshrink.recipe import Quantize
from edgeshrink.runtimes import open_model
from edgeshrink.target import Target, load_target
from edgeshrink.task import ArraySplit, Task
from tests.tiny_models import edited, text, unpack
from tests.zoo import ZOO, zoo_task

pytestmark = pytest.mark.slow

# Stated limits against LiteRT on XNNPACK, in LSB of the output (benchmarks/engine_agreement.md).
OTHER_ENGINES_LSB = {"litert-builtin": 2, "tflm": 2}
N_FRESH = 16


def target() -> Target:
    return load_target("rpi4")


def exported(task: Task, device: Target | None = None, step: Quantize | None = None) -> Exported:
    return export(task, device or target(), step or Quantize(), progress=lambda share, what: None)


def task_of(model: nn.Module, *shapes: tuple[int, ...], n: int = 32, seed: int = 0) -> Task:
    rng = np.random.default_rng(seed)
    inputs = tuple(rng.standard_normal((n, *shape), np.float32) for shape in shapes)
    return Task(
        name="net",
        model=model.eval(),
        example_inputs=tuple(torch.from_numpy(a[:1].copy()) for a in inputs),
        data={"calibration": ArraySplit(inputs=inputs)},
    )


def agreement(result: Exported, engine: str):
    (found,) = [a for a in result.agreements if a.engine == engine]
    return found


@pytest.fixture(scope="module", params=ZOO)
def network(request) -> tuple[Task, Exported]:
    task = zoo_task(request.param)
    return task, exported(task)


# --- the networks of the literature -----------------------------------------------------------


def test_file_is_int8_from_end_to_end(network):
    _, result = network
    graph = result.graph
    assert {t.dtype for t in graph.tensors} <= {"int8", "int32"}
    assert not {op.kind for op in graph.ops} & {"QUANTIZE", "DEQUANTIZE"}
    ends = [graph.tensors[i] for i in (*graph.inputs, *graph.outputs)]
    assert {t.dtype for t in ends} == {"int8"}
    assert [s.dtype for s in (*result.inputs, *result.outputs)] == ["int8", "int8"]


def test_both_files_give_equal_raw_outputs_on_fresh_inputs(network):
    """Through the runners alone: LiteRT with XNNPACK, and ExecuTorch with XNNPACK."""
    _, result = network
    (spec,), (sink,) = result.inputs, result.outputs
    rng = np.random.default_rng(99)
    stored = rng.integers(-128, 128, (N_FRESH, *spec.shape[1:])).astype(np.int8)
    with open_model(result.tflite, "litert") as runner:
        (raw,) = runner.run(stored)
    real = (stored.astype(np.float32) - np.float32(spec.zero_point)) * np.float32(spec.scale)
    if real.ndim == 4:
        real = np.ascontiguousarray(real.transpose(0, 3, 1, 2))
    with open_model(result.pte, "executorch") as runner:
        (floats,) = runner.run(real)
    again = np.round(floats / np.float32(sink.scale)) + sink.zero_point
    assert np.array_equal(np.clip(again, -128, 127).astype(np.int8), raw)
    assert len(np.unique(raw)) > 2, "outputs that never change prove nothing"


def test_other_engines_stay_within_the_stated_limit(network):
    _, result = network
    assert agreement(result, "executorch").largest == 0
    assert agreement(result, "executorch").limit == 0
    for engine, limit in OTHER_ENGINES_LSB.items():
        assert agreement(result, engine).largest <= limit, engine
    assert agreement(result, "torch").largest <= 2


def test_quantized_outputs_follow_the_float_model(network):
    """Random weights leave outputs close together: the whole error is held against their spread."""
    task, result = network
    inputs = task.data["calibration"].inputs
    with torch.no_grad():
        expected = task.model(*(torch.from_numpy(a) for a in inputs)).numpy()
    with open_model(result.tflite, "litert") as runner:
        predict = tflite_predict(runner, result.inputs, result.outputs, result.structure)
        got = predict(*inputs)
    assert got.shape == expected.shape
    noise, signal = np.mean((got - expected) ** 2), np.var(expected)
    assert noise < 0.1 * signal, f"signal to noise {10 * np.log10(signal / noise):.1f} dB"


def test_images_are_channels_last(network):
    task, result = network
    (spec,) = result.inputs
    shape = task.example_inputs[0].shape
    if len(shape) == 4:
        assert spec.layout == "channels-last"
        assert spec.shape == (1, shape[2], shape[3], shape[1])
        kinds = [op.kind for op in result.graph.ops]
        assert "TRANSPOSE" not in kinds
    else:
        assert spec.shape == tuple(shape)


def test_weights_lie_inside_the_flatbuffer(network):
    _, result = network
    model = unpack(result.tflite)
    assert all(buffer.offset <= 1 for buffer in model.buffers)
    weights = [t for t in result.graph.tensors if t.data is not None and t.dtype == "int8"]
    assert sum(t.data.size for t in weights) > 20_000
    assert len(result.tflite) >= sum(t.n_bytes for t in weights)


def test_inputs_outputs_and_layers_have_names(network):
    task, result = network
    graph = result.graph
    parameter = {"image": "image", "features": "features", "spectrum": "spectrum"}
    assert graph.input_names == (result.inputs[0].name,)
    assert result.inputs[0].name in parameter
    assert graph.output_names == ("output",)
    modules = {name for name, _ in task.model.named_modules()}
    named = [graph.tensors[op.outputs[0]].name for op in graph.ops]
    of_layers = [n for n in named if n.partition(":")[0] in modules - {""}]
    assert len(of_layers) >= len(graph.ops) / 2
    (signature,) = unpack(result.tflite).signatureDefs
    assert [text(pair.name) for pair in signature.inputs] == list(graph.input_names)


def test_golden_samples_are_what_the_file_gives(network):
    _, result = network
    with open_model(result.tflite, "litert") as runner:
        (raw,) = runner.run(result.golden_inputs[result.inputs[0].name])
    assert np.array_equal(raw, result.golden_outputs["output"])
    assert len(raw) == 8


# --- float ------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(image)).mean([2, 3]))


def test_float_recipe_gives_two_float_files_that_compute_what_the_model_computes():
    torch.manual_seed(0)
    task = task_of(Small(), (3, 8, 8))
    result = exported(task, step=Quantize(dtype="float32"))
    assert result.quantization == "none"
    assert {s.dtype for s in (*result.inputs, *result.outputs)} == {"float32"}
    (inputs,) = task.data["calibration"].inputs
    with torch.no_grad():
        expected = task.model(torch.from_numpy(inputs)).numpy()
    with open_model(result.tflite, "litert") as runner:
        predict = tflite_predict(runner, result.inputs, result.outputs, result.structure)
        assert np.allclose(predict(inputs), expected, atol=1e-5)
    with open_model(result.pte, "executorch") as runner:
        assert np.allclose(
            pte_predict(runner, result.outputs, result.structure)(inputs), expected, atol=1e-5
        )


def test_float_model_on_a_target_of_int8_alone_is_refused_with_operator_layer_and_remedy():
    device = target()
    device = replace(device, name="mcu", ops=replace(device.ops, dtypes=("int8",)))
    with pytest.raises(ModelError) as caught:
        exported(task_of(Small(), (3, 8, 8)), device, Quantize(dtype="float32"))
    assert caught.value.where.startswith("operator 0 CONV_2D")
    assert "computes in float32, mcu allows int8" in caught.value.what
    assert "quantize the model" in caught.value.fix


# --- inputs and outputs -----------------------------------------------------------------------


class ManyEnds(nn.Module):
    """An image, a signal and a vector in; a map, a signal and a vector out, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.on_image = nn.Conv2d(3, 4, 3, padding=1)
        self.on_signal = nn.Conv1d(2, 6, 3, padding=1)
        self.on_vector = nn.Linear(5, 4)

    def forward(self, image: Tensor, signal: Tensor, vector: Tensor) -> dict[str, Tensor]:
        a, b, c = self.on_image(image), self.on_signal(signal), self.on_vector(vector)
        return {"scores": c + a.mean([2, 3]), "map": F.relu(a), "trace": b}


def test_several_inputs_and_outputs_keep_their_names_order_and_layout():
    torch.manual_seed(0)
    task = task_of(ManyEnds(), (3, 6, 10), (2, 12), (5,))
    result = exported(task)
    assert [s.name for s in result.inputs] == ["image", "signal", "vector"]
    assert [s.shape for s in result.inputs] == [(1, 6, 10, 3), (1, 1, 12, 2), (1, 5)]
    assert [s.name for s in result.outputs] == ["scores", "map", "trace"]
    assert [s.shape for s in result.outputs] == [(1, 4), (1, 6, 10, 4), (1, 1, 12, 6)]
    assert result.structure == "dict"
    assert {s.dtype for s in (*result.inputs, *result.outputs)} == {"int8"}
    inputs = task.data["calibration"].inputs
    with torch.no_grad():
        expected = task.model(*(torch.from_numpy(a) for a in inputs))
    with open_model(result.tflite, "litert") as runner:
        got = tflite_predict(runner, result.inputs, result.outputs, result.structure)(*inputs)
    with open_model(result.pte, "executorch") as runner:
        other = pte_predict(runner, result.outputs, result.structure)(*inputs)
    assert list(got) == list(other) == list(expected)
    for name, value in expected.items():
        assert got[name].shape == other[name].shape == value.shape
        for found in (got[name], other[name]):
            assert np.abs(found - value.numpy()).max() < 0.06 * float(value.max() - value.min())


class Twice(nn.Module):
    """The same input to both parameters must not become one input."""

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return left - right, left


def test_inputs_of_equal_shape_and_an_input_that_is_an_output_are_kept_apart():
    task = task_of(Twice(), (4,), (4,))
    task = replace(task, example_inputs=(task.example_inputs[0],) * 2)
    result = exported(task)
    assert [s.name for s in result.inputs] == ["left", "right"]
    inputs = task.data["calibration"].inputs
    with open_model(result.tflite, "litert") as runner:
        got = tflite_predict(runner, result.inputs, result.outputs, result.structure)(*inputs)
    assert isinstance(got, tuple)
    assert np.abs(got[0] - (inputs[0] - inputs[1])).max() < 0.1
    assert np.abs(got[1] - inputs[0]).max() < 0.1


# --- trap T3 ----------------------------------------------------------------------------------


class PooledResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.stem(image))
        x = F.relu(self.body(x) + x)
        return self.head(F.avg_pool2d(x, 8).flatten(1))


@pytest.fixture(scope="module")
def pooled() -> Exported:
    torch.manual_seed(0)
    return exported(task_of(PooledResidual(), (3, 8, 8)))


def mean_of(result: Exported):
    """The tensors before and behind the one mean in the file."""
    (op,) = [op for op in result.graph.ops if op.kind == "MEAN"]
    return result.graph.tensors[op.inputs[0]], result.graph.tensors[op.outputs[0]]


def test_scale_of_a_mean_is_not_pushed_back_through_it(pooled):
    before, after = mean_of(pooled)
    assert after.quantization.scales[0] < 0.5 * before.quantization.scales[0]
    assert agreement(pooled, "torch").largest <= 2
    assert agreement(pooled, "executorch").largest == 0


def test_file_whose_scale_was_pushed_back_through_the_mean_is_refused(pooled):
    before, after = mean_of(pooled)

    def push(model):
        tensors = model.subgraphs[0].tensors
        tensors[before.index].quantization = tensors[after.index].quantization

    with open_model(edited(pooled.tflite, push), "litert") as runner:
        got = runner.run(*pooled.golden_inputs.values())
    quantization = agreement(pooled, "torch")
    error = Difference(
        largest=quantization.quantization_largest,
        rms=quantization.quantization_rms,
        differing=1.0,
        n_values=1,
    )
    limit = engine_limit(pooled.graph, error)
    reference = list(pooled.golden_outputs.values())
    with pytest.raises(ModelError, match="the conversion changed the model"):
        compare("torch", "litert", got, reference, limit=limit)


class LocalPool(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return F.avg_pool2d(F.relu(self.stem(image)), 2)


def test_local_average_pool_in_the_file_has_one_scale():
    torch.manual_seed(0)
    graph = exported(task_of(LocalPool(), (3, 8, 8))).graph
    (pool,) = [op for op in graph.ops if op.kind == "AVERAGE_POOL_2D"]
    before, after = (graph.tensors[i].quantization for i in (pool.inputs[0], pool.outputs[0]))
    assert before.scales == after.scales
    assert before.zero_points == after.zero_points


# --- small means of wide maps -----------------------------------------------------------------


class WideAndSmall(nn.Module):
    """Its convolution has a range of about 11, the means of that are some tenths."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.dense = nn.Linear(5, 8)
        self.head = nn.Linear(24, 4)
        with torch.no_grad():
            self.conv.weight *= 4
            self.dense.weight *= 0.3
            self.dense.bias *= 0.3

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        means = self.conv(image).mean([2, 3])
        return self.head(torch.cat([means, self.dense(vector)], 1))


def test_head_on_small_means_of_a_wide_map_follows_the_float_model():
    torch.manual_seed(0)
    task = task_of(WideAndSmall(), (3, 24, 24), (5,))
    result = exported(task)
    before, after = mean_of(result)
    assert before.quantization.scales[0] > 5 * after.quantization.scales[0]
    inputs = task.data["calibration"].inputs
    with torch.no_grad():
        expected = task.model(*(torch.from_numpy(a) for a in inputs)).numpy()
    with open_model(result.tflite, "litert") as runner:
        predict = tflite_predict(runner, result.inputs, result.outputs, result.structure)
        error = np.abs(predict(*inputs) - expected).max()
    assert error < 0.02 * np.ptp(expected)
    assert agreement(result, "executorch").largest == 0
    assert all(a.within_limit for a in result.agreements)


class Joined(nn.Module):
    """What has a fixed scale beside what has none: two branches of sensors, a detector's head."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(6, 8), activation)
        self.right = nn.Sequential(nn.Linear(3, 8), nn.LeakyReLU())
        self.head, self.box = nn.Linear(16, 1), nn.Linear(16, 2)

    def forward(self, sensors: Tensor, setting: Tensor) -> Tensor:
        both = torch.cat([self.left(sensors), self.right(setting)], 1)
        return torch.cat([torch.sigmoid(self.head(both)), self.box(both)], 1)


@pytest.mark.parametrize("device", ["rpi4", "nucleo-l4r5zi"])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid])
def test_fixed_scale_is_requantized_before_it_is_joined_with_another(activation, device):
    torch.manual_seed(0)
    task = task_of(Joined(activation()), (6,), (3,))
    result = exported(task, load_target(device))
    kinds = [op.kind for op in result.graph.ops]
    assert (kinds.count("MUL"), kinds.count("CONCATENATION")) == (2, 2)
    assert all(a.within_limit for a in result.agreements)
    inputs = task.data["calibration"].inputs
    with torch.no_grad():
        expected = task.model(*(torch.from_numpy(a) for a in inputs)).numpy()
    with open_model(result.tflite, "litert") as runner:
        predict = tflite_predict(runner, result.inputs, result.outputs, result.structure)
        assert np.abs(predict(*inputs) - expected).max() < 0.05 * np.ptp(expected)


def test_sequence_of_more_steps_than_a_kernel_joins_is_exported_for_microcontrollers():
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(x)[0])

    torch.manual_seed(0)
    result = exported(task_of(Sequence(), (12, 3)), load_target("rp2040"))
    joins = [op for op in result.graph.ops if op.kind == "CONCATENATION"]
    assert sorted(len(op.inputs) for op in joins) == [3, 10]
    assert all(a.within_limit for a in result.agreements)
    assert agreement(result, "tflm").n_values > 0


# --- engines ----------------------------------------------------------------------------------


def test_operator_that_tflm_lacks_is_no_concern_of_a_target_that_does_not_run_it():
    torch.manual_seed(0)
    task = task_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU()), (3, 8, 8))
    result = exported(task)
    assert "GELU" in {op.kind for op in result.graph.ops}
    assert {a.engine for a in result.agreements} == {"executorch", "torch", "litert-builtin"}
    microcontroller = load_target("nucleo-l4r5zi")
    for refuse in (exported, lambda task, device: check_exportable(task, Quantize(), device)):
        with pytest.raises(ModelError, match=r"'1'.* 'gelu' has no kernel on micro") as caught:
            refuse(task, microcontroller)
        assert "hardswish" in caught.value.fix
    check_exportable(task, Quantize(), target())


class Astray:
    """A runner of which every eighth output code is off."""

    def __init__(self, opening, by: int) -> None:
        self.opening, self.by = opening, by

    def __enter__(self):
        self.runner = self.opening.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self.opening.__exit__(*exception)

    def run(self, *arrays):
        (raw,) = self.runner.run(*arrays)
        moved = raw.astype(int).ravel()
        moved[::8] += np.where(moved[::8] > 0, -self.by, self.by)
        return (moved.astype(np.int8).reshape(raw.shape),)


@pytest.mark.parametrize(
    ("engine", "device", "by", "is_refused"),
    [
        ("litert-builtin", "rpi4", 6, False),
        ("litert-builtin", "rpi4", 100, True),
        ("tflm", "rpi4", 6, False),
        ("tflm", "nucleo-l4r5zi", 6, True),
    ],
)
def test_only_an_engine_that_the_target_runs_fails_the_export_unless_it_is_far_off(
    engine, device, by, is_refused, monkeypatch
):
    def opened(data, which, **options):
        opening = open_model(data, which, **options)
        return Astray(opening, by) if which == engine else opening

    monkeypatch.setattr(exporter, "open_model", opened)
    torch.manual_seed(0)
    task = task_of(Small(), (3, 8, 8))
    if is_refused:
        with pytest.raises(ModelError, match=f"outputs of {engine} and litert"):
            exported(task, load_target(device))
        return
    found = agreement(exported(task, load_target(device)), engine)
    assert not found.within_limit
    assert found.largest >= by - 1


def test_raw_outputs_stand_for_what_predict_returns():
    torch.manual_seed(0)
    task = task_of(Small(), (3, 8, 8))
    result = exported(task)
    raw = result.golden_outputs["output"]
    inputs = task.data["calibration"].inputs[0][: len(raw)]
    with open_model(result.tflite, "litert") as runner:
        got = tflite_predict(runner, result.inputs, result.outputs, "single")(inputs)
    assert np.array_equal(got, dequantize_array(raw, result.outputs[0]))
