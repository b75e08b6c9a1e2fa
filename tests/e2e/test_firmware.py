"""From a `.tflite` to a proved firmware: the commands compile and profile, and what they leave."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgeshrink.artifact import read_artifact
from edgeshrink.budget import Budget
from edgeshrink.errors import BudgetError, ConfigError, ModelError
from edgeshrink.firmware import (
    compile_firmware,
    compile_model,
    noise,
    open_on_core,
    oracle_outputs,
    parse_passes,
    profile_model,
)
from edgeshrink.graph_reader import read_graph
from edgeshrink.profile import Profile
from edgeshrink.target import load_target
from edgeshrink.toolchain import CORES
from tests.e2e.commands import run
from tests.tiny_models import add_float, fully_connected

MODELS = ("ad01", "ic_resnet8", "kws_dscnn", "vww_mbv1_96")
TARGETS = ("rp2040", "nucleo-l4r5zi", "nucleo-h7a3zi", "nucleo-u575zi", "esp32-c3")


@pytest.fixture
def dense(tmp_path) -> Path:
    path = tmp_path / "my dense é.tflite"
    path.write_bytes(fully_connected(n_in=20, n_out=7))
    return path


@pytest.mark.parametrize("target", TARGETS)
def test_a_compiled_model_gives_the_oracle_s_bits_on_every_core(dense, tmp_path, target):
    data, device = dense.read_bytes(), load_target(target)
    firmware = compile_firmware(data, device, tmp_path, name="dense")
    samples = noise(firmware.before, 5, seed=3)
    expected = oracle_outputs(data, samples, "dense")
    with open_on_core(firmware.elf, firmware.before, device) as runner:
        for i in range(5):
            got = runner.run(*(a[i] for a in samples))
            assert np.array_equal(got[0].reshape(expected[0][i].shape), expected[0][i])


def test_compile_leaves_a_folder_that_builds_and_tests_itself(dense, tmp_path):
    out = tmp_path / "firm ware"
    done = run("compile", str(dense), "--target", "rp2040", "--out", str(out))
    assert done.code == 0, done.err
    assert "bit for bit" in done.out
    assert "arena" in done.out
    sources = sorted(p.name for p in out.glob("*.c"))
    command = ["cc", "-std=c11", "-Wall", "-Wextra", "-Werror", *sources, "-o", "selftest"]
    subprocess.run(command, cwd=out, check=True)
    subprocess.run(["./selftest"], cwd=out, check=True)


def test_compile_prints_one_json_document(dense, tmp_path):
    out = tmp_path / "out"
    done = run("compile", str(dense), "--target", "nucleo-l4r5zi", "--out", str(out), "--json")
    found = json.loads(done.out)
    assert set(found["arena"]) == {"bytes", "lower_bound", "optimal"}
    assert found["profile"]["engine"] == "c"
    figures = found["profile"]["figures"]
    assert figures["ram_bytes"]["value"] >= found["arena"]["bytes"]
    assert figures["flash_bytes"]["value"] > found["weight_bytes"]
    assert figures["cycles"]["how"] == "modelled"
    assert figures["instructions"]["how"] == "emulated"
    assert figures["latency_ms"]["validated"] is False
    assert json.loads((out / "compiled.json").read_text())["target"] == "nucleo-l4r5zi"


def test_compiling_again_replaces_the_folder_and_spares_one_of_other_files(dense, tmp_path):
    target, out = load_target("rp2040"), tmp_path / "out"
    first = compile_model(dense, target, out, name="dense")
    again = compile_model(dense, target, out, name="other")
    assert first.firmware.name == "dense"
    assert (out / "other.h").is_file()
    assert not (out / "dense.h").exists()
    assert again.profile is not None
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep me")
    with pytest.raises(ConfigError, match="was not made here"):
        compile_model(dense, target, mine, name="dense")
    assert (mine / "notes.txt").read_text() == "keep me"


def test_a_model_that_does_not_fit_names_the_peak_and_leaves_the_last_one(dense, tmp_path):
    target, out = load_target("rp2040"), tmp_path / "out"
    compile_model(dense, target, out, name="dense")
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    for budget, said in (
        (Budget(ram_bytes=100), "operator 0 FULLY_CONNECTED .* is at the peak"),
        (Budget(flash_bytes=200), "prune or factorize"),
        (Budget(latency_ms=1e-3), "% of the cycles"),
    ):
        with pytest.raises(BudgetError, match=said):
            compile_model(dense, target, out, name="dense", budget=budget)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--target", "rpi4"), 2, "is no microcontroller"),
        (("--target", "rp2040", "--passes", "fold_pads"), 2, "did you mean 'fold_pad'"),
        (("--target", "rp2040", "--optimize", "speed"), 2, "speed"),
        (("--target", "rp2041"), 2, "did you mean 'rp2040'"),
    ],
)
def test_wrong_options_of_compile_are_named(dense, options, code, said):
    done = run("compile", str(dense), *options)
    assert done.code == code
    assert said in done.err
    assert done.out == ""


def test_a_float_model_is_refused_with_operator_and_remedy(tmp_path):
    path = tmp_path / "float.tflite"
    path.write_bytes(add_float())
    with pytest.raises(
        ModelError, match=r"operator 0 ADD v1 \(sum\): computes in float32.*quantize"
    ):
        compile_model(path, load_target("rp2040"), tmp_path / "out", name="float")
    assert not (tmp_path / "out").exists()


def test_profile_of_a_model_on_a_microcontroller_has_a_row_for_every_operator(dense):
    done = run("profile", str(dense), "--target", "nucleo-l4r5zi", "--json")
    found = json.loads(done.out)
    assert found["model"]["path"] == str(dense)
    assert found["ops"][0]["kind"] == "FULLY_CONNECTED"
    assert found["ops"][0]["macs"] == 140
    assert found["figures"]["macs"]["value"] == 140
    assert found["budget"] == {"met": True, "overruns": []}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--engine", "tflite"), "does not run on rp2040"),
        (("--threads", "2"), "does not go with engine c"),
    ],
)
def test_profile_refuses_what_a_microcontroller_does_not_have(dense, options, said):
    done = run("profile", str(dense), "--target", "rp2040", *options)
    assert done.code == 2
    assert said in done.err


def test_passes_are_chosen_by_name():
    assert parse_passes("all") is None
    assert parse_passes("none") == ()
    assert parse_passes("fold_pad, fold_constants") == ("fold_pad", "fold_constants")
    with pytest.raises(ConfigError, match="did you mean 'fold_pad'"):
        parse_passes("fold_padd")


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model", MODELS)
def test_mlperf_tiny_models_give_the_oracle_s_bits_on_every_core(
    shared_dir, tmp_path, model, target
):
    path = shared_dir / "models" / f"mlperf_{model}_int8.tflite"
    data, device = path.read_bytes(), load_target(target)
    firmware = compile_firmware(data, device, tmp_path, name=model)
    samples = noise(read_graph(data), 3, seed=5)
    expected = oracle_outputs(data, samples, model)
    with open_on_core(firmware.elf, firmware.before, device) as runner:
        for i in range(3):
            got = runner.run(*(a[i] for a in samples))
            assert np.array_equal(got[0].reshape(expected[0][i].shape), expected[0][i])


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("target", ["rp2040", "nucleo-l4r5zi"])
@pytest.mark.parametrize("plan", ["latency", "flash"])
def test_gcc_s_firmware_gives_the_same_bits(shared_dir, tmp_path, target, plan):
    device = load_target(target)
    if shutil.which(CORES[device.cpu.core].gcc) is None:
        pytest.skip(f"needs {CORES[device.cpu.core].gcc}")
    data = (shared_dir / "models" / "mlperf_kws_dscnn_int8.tflite").read_bytes()
    firmware = compile_firmware(
        data, device, tmp_path, name="kws", optimize=plan, compiler="gcc"
    )  # checks the golden samples
    assert firmware.elf is not None


def _plan(path: Path, plan: str) -> Profile:
    return profile_model(path, load_target("nucleo-l4r5zi"), optimize=plan)[1]


# Figures to hold on a Cortex-M4, by plan: cycles of `latency` where memory never waits, arena of
# `ram`.
@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(
    ("model", "cycles", "arena"),
    [
        ("ic_resnet8", 16.0e6, 36_000),
        ("kws_dscnn", 4.2e6, 10_500),
        ("vww_mbv1_96", 7.5e6, 46_000),
        ("ad01", 0.42e6, 1_300),
    ],
)
def test_mlperf_tiny_models_are_as_fast_and_small_as_promised(shared_dir, model, cycles, arena):
    path = shared_dir / "models" / f"mlperf_{model}_int8.tflite"
    latency, ram = _plan(path, "latency"), _plan(path, "ram")
    assert latency.figures["core_cycles"].value <= cycles
    assert ram.figures["arena_bytes"].value <= arena
    for profile in (latency, ram):
        assert profile.figures["stack_bytes"].value <= 512


@pytest.mark.slow
def test_a_build_for_a_microcontroller_scores_the_firmware_itself(repo, tmp_path):
    out = tmp_path / "artifact"
    options = ("--set", "epochs=4", "--budget", "drop=0.1", "--out", out, "--json")
    done = run("build", repo / "examples" / "digits", "--target", "rp2040", *options)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    artifact = read_artifact(out)
    assert artifact.engine == "c"
    assert set(found["scores"]) == {"float", "tflite", "c"}
    assert {"firmware/digits.h", "firmware/model.elf", "model.tflite"} <= set(artifact.files)
    assert "model.pte" not in artifact.files
    firmware = next(a for a in found["agreements"] if a["engine"].startswith("firmware"))
    assert firmware["largest"] == 0
    golden = np.load(out / "golden.npz")
    graph, elf = read_graph((out / "model.tflite").read_bytes()), out / "firmware" / "model.elf"
    with open_on_core(elf, graph, load_target("rp2040")) as runner:
        got = runner.run(golden["input/image"])
    assert np.array_equal(got[0], golden["output/output"])
