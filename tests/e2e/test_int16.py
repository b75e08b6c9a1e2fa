"""Networks with int16 activations, all or some: what every engine and our C compute of them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgeshrink.artifact import read_artifact
from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.exporting import Exported, export
from edgeshrink.exporting.exporter import stored_inputs
from edgeshrink.graph_reader import read_graph
from edgeshrink.passes import run_passes
from edgeshrink.quantizer.samples import calibration_samples
from edgeshrink.recipe import Quantize
from edgeshrink.target import load_target
from edgeshrink.task import ArraySplit, Task
from tests.e2e.commands import call, run
from tests.e2e.test_supported_layers import _made
from tests.kernels.host import HostModel, tflm_outputs
from tests.layers import SUPPORTED
from tests.zoo import zoo_task

pytestmark = pytest.mark.slow

# In LSB of the output, of int8 where the network is mixed.
ALL_INT16_LSB, MIXED_LSB = 3, 1


def exported(task: Task, step: Quantize, target: str = "nucleo-l4r5zi") -> Exported:
    return export(task, load_target(target), step, progress=lambda share, what: None)


def host_outputs_equal_tflm(result: Exported, task: Task, n: int = 2) -> None:
    """Our kernels after the exact passes, fastest choice, bit for bit."""
    from edgeshrink.lowering import lower

    arrays = stored_inputs(calibration_samples(task, n), result.inputs)
    arrays = [a[:, None] for a in arrays]  # (n, 1, ...): one sample after the other
    expected = tflm_outputs(result.tflite, *arrays)
    model = HostModel(lower(run_passes(result.graph)[0], load_target("nucleo-l4r5zi").cpu.isa))
    for row in range(n):
        got = model.run(*(a[row] for a in arrays))
        for g, e in zip(got, expected[row], strict=True):
            np.testing.assert_array_equal(g.reshape(e.shape), e)


@pytest.mark.parametrize("name", ["ds-cnn", "resnet-8", "autoencoder"])
def test_network_of_int16_agrees_in_every_engine_to_a_few_steps_of_sixteen_bits(name):
    task = zoo_task(name)
    result = exported(task, Quantize(activations="int16"))
    types = {t.dtype for t in result.graph.tensors if t.data is None}
    assert types == {"int16"}
    assert [spec.dtype for spec in (*result.inputs, *result.outputs)] == ["int16", "int16"]
    assert {a.engine for a in result.agreements} == {"torch", "litert-builtin", "tflm"}
    for found in result.agreements:
        assert found.unit == "LSB"
        assert found.largest <= ALL_INT16_LSB, found.engine
    host_outputs_equal_tflm(result, task)


def test_layers_that_need_it_get_int16_and_the_error_falls_below_the_limit():
    task = zoo_task("autoencoder")
    result = exported(task, Quantize(activations="auto"))
    chosen = result.chosen
    assert chosen is not None
    assert 0 < len(chosen.int16) < 6
    assert chosen.errors["chosen"] <= max(1e-3, 1.25 * chosen.errors["weights"])
    assert chosen.errors["chosen"] < 0.5 * chosen.errors["int8"]
    kinds = [op.kind for op in result.graph.ops]
    assert kinds.count("QUANTIZE") == 1, "from int8 to int16, in one place"
    for found in result.agreements:
        assert found.unit == "LSB of int8"
        assert found.largest <= MIXED_LSB, found.engine
    host_outputs_equal_tflm(result, task)
    named = exported(task, Quantize(int16=chosen.int16))
    assert named.tflite == result.tflite, "the list that was found, in a recipe, is the same file"


# The first layer of a row says what the others do; unrolled cells are made of what is here.
# Microcontrollers have no GELU.
LAYERS = [name for name in SUPPORTED if not name.startswith(("LSTM", "GELU"))]
REFUSED = {
    "Hardswish, Hardsigmoid, SiLU": "hardswish",
    "LayerNorm, GroupNorm, InstanceNorm2d, RMSNorm": "rsqrt",
}


@pytest.mark.parametrize("name", LAYERS)
def test_supported_layers_compute_in_int16_or_are_refused_by_name(name):
    layer = SUPPORTED[name][0]
    model, example = _made(layer)
    inputs = np.random.default_rng(0).standard_normal((8, *layer.shape[1:])).astype(np.float32)
    task = Task(
        name="net", model=model, example_inputs=example,
        data={"calibration": ArraySplit(inputs=(inputs,))},
    )  # fmt: skip
    step = Quantize(activations="int16", observer="minmax")
    if name in REFUSED:
        with pytest.raises(ModelError, match=f"'{REFUSED[name]}' has no int16 form here"):
            exported(task, step)
        step = Quantize(activations="auto", most_error=1e-9, observer="minmax")
    host_outputs_equal_tflm(exported(task, step), task)


def test_file_for_linux_has_no_pte_and_says_why():
    result = exported(zoo_task("autoencoder"), Quantize(activations="int16"), "rpi4")
    assert result.pte is None
    assert any("ExecuTorch has no kernels for int16" in note for note in result.notes)
    assert "executorch" not in {a.engine for a in result.agreements}


RECIPE = '[[steps]]\nstep = "quantize"\n'


def test_build_with_int16_layers_runs_on_the_emulated_core(tmp_path, repo):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE + 'int16 = ["features.3", "classifier"]\nobserver = "auto"\n', "utf-8")
    out = tmp_path / "out"
    result = run(
        "build", repo / "examples" / "digits", "--target", "nucleo-l4r5zi", "--recipe", recipe,
        "--out", out, "--set", "epochs=2", "--set", "width=8", "--budget", "drop=0.5",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "int16 activations: features.3, classifier" in result.out
    assert "ranges by observer" in result.out
    graph = read_graph((out / "model.tflite").read_bytes())
    assert {t.dtype for t in graph.tensors if t.data is None} == {"int8", "int16"}
    audit = json.loads((out / "audit.json").read_text("utf-8"))
    (firmware,) = [a for a in audit["agreements"] if "emulated" in a["engine"]]
    assert firmware["largest"] == 0
    assert firmware["n_values"] > 1000
    (step,) = audit["steps"]
    assert step["details"]["int16"] == ["features.3", "classifier"]
    artifact = read_artifact(out)
    assert artifact.outputs[0].dtype == "int16"
    assert artifact.scores["c"] == pytest.approx(artifact.scores["tflite"], abs=0.02)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ('int16 = ["featurs.3"]', 2, "did you mean 'features.3'"),
        ('activations = "int9"', 2, "did you mean 'int"),
        ('int8 = ["features.3"]', 2, "names layers where all are int8"),
        ('int16 = ["a"]\nint8 = ["a"]', 2, "names 'a', and int8 does too"),
        ('activations = "int16"\ndtype = "float32"', 2, "needs quantized weights"),
        ("most_error = -0.1", 2, "most_error: is -0.1"),
    ],
)
def test_bad_widths_are_told_before_any_training(tmp_path, repo, capfd, text, code, words):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE + text + "\n", "utf-8")
    result = call(
        capfd, "build", repo / "examples" / "digits", "--target", "nucleo-l4r5zi",
        "--recipe", recipe, "--out", tmp_path / "out", "--set", "epochs=5000",
    )  # fmt: skip
    assert result.code == code
    assert words in result.err


def test_target_without_int16_is_told_and_auto_stays_int8_there():
    from dataclasses import replace

    target = load_target("nucleo-l4r5zi")
    target = replace(target, ops=replace(target.ops, dtypes=("int8",)))
    task = zoo_task("autoencoder")
    for step in (Quantize(activations="int16"), Quantize(int16=("layers.0",))):
        with pytest.raises(ConfigError, match="ask for int16, and nucleo-l4r5zi takes int8"):
            export(task, target, step, progress=lambda share, what: None)
    result = export(
        task, target, Quantize(activations="auto", most_error=1e-9),
        progress=lambda share, what: None,
    )  # fmt: skip
    assert {t.dtype for t in result.graph.tensors if t.data is None} == {"int8"}
