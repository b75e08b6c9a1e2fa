"""A `.pt2` in place of a task: what fits is taken, everything else is refused without a crash."""

from __future__ import annotations

import io
import random
import warnings
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.program import ProgramModule, load_program
from edgeshrink.training import float_predict


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)

    def forward(self, signal, gain):
        return {"scaled": self.layer(signal) * gain, "signal": signal + 0}


EXAMPLES = (torch.ones(1, 3), torch.ones(1, 1))
SIGNAL = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
GAIN = np.linspace(0, 1, 6, dtype=np.float32)[:, None]


def without_probe(monkeypatch):
    monkeypatch.setattr("edgeshrink.program.PROBE", "")


def save(path, model=None, examples=EXAMPLES, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export((model or TwoInputs()).eval(), examples, **options)
        torch.export.save(program, path)
    return path


@pytest.fixture
def loaded(program, monkeypatch):
    """The good program, without the seconds that the child process takes to look at it."""
    kept = torch.export.load(program)
    monkeypatch.setattr("edgeshrink.program._load", lambda path: kept)
    return program


def calibration(tmp_path, **arrays):
    path = tmp_path / "calibration.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return save(tmp_path_factory.mktemp("program") / "my model.pt2")


def refusal(path, data, kind=ConfigError):
    with pytest.raises(kind) as caught:
        load_program(path, calibration=data)
    assert caught.value.what
    assert caught.value.fix
    return caught.value


def test_program_and_samples_make_a_task(program, tmp_path):
    task = load_program(program, calibration=calibration(tmp_path, gain=GAIN, signal=SIGNAL))
    assert task.name == "my model"
    assert isinstance(task.model, ProgramModule)
    (inputs, targets), *rest = task.data["calibration"]
    assert targets is None
    assert not rest
    assert np.array_equal(inputs[0], SIGNAL)
    assert np.array_equal(inputs[1], GAIN)


def test_arrays_without_the_inputs_names_are_taken_in_order(loaded, tmp_path):
    file = tmp_path / "calibration.npz"
    np.savez(file, SIGNAL, GAIN)
    task = load_program(loaded, calibration=file)
    assert [x.shape for x in task.example_inputs] == [(1, 3), (1, 1)]


def test_the_program_predicts_batches_although_traced_for_one_sample(loaded, tmp_path):
    task = load_program(loaded, calibration=calibration(tmp_path, signal=SIGNAL, gain=GAIN))
    got = float_predict(task.model)(SIGNAL, GAIN)
    layer = TwoInputs().layer
    expected = (SIGNAL @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()) * GAIN
    assert np.allclose(got["scaled"], expected, atol=1e-6)
    assert np.array_equal(got["signal"], SIGNAL)


def test_train_mode_changes_nothing(loaded, tmp_path):
    task = load_program(loaded, calibration=calibration(tmp_path, signal=SIGNAL, gain=GAIN))
    assert task.model.train() is task.model
    assert not task.model.training


def test_missing_program_and_missing_samples_are_named(loaded, tmp_path):
    assert "no such file" in refusal(tmp_path / "none.pt2", None).what
    assert "--data FILE.npz" in refusal(loaded, None).fix
    assert "no such file" in refusal(loaded, tmp_path / "none.npz").what


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"signal": SIGNAL}, "holds 1 arrays (signal), the program takes 2"),
        ({}, "holds 0 arrays"),
        ({"signal": SIGNAL.astype(np.float64), "gain": GAIN}, "is float64"),
        ({"signal": SIGNAL[:, :2], "gain": GAIN}, "samples of shape (2,)"),
        ({"signal": SIGNAL, "gain": GAIN[:5]}, "different numbers of samples"),
        ({"signal": SIGNAL * np.nan, "gain": GAIN}, "NaN or infinity"),
        ({"signal": SIGNAL[:0], "gain": GAIN[:0]}, "is empty"),
        ({"signal": np.float32(1), "gain": GAIN}, "is a single number"),
        ({"signal": np.array(["a"] * 6), "gain": GAIN}, "is str"),
        ({"gain": SIGNAL, "signal": GAIN}, "samples of shape (1,)"),
    ],
)
def test_samples_that_do_not_fit_say_what_they_are(loaded, tmp_path, arrays, words):
    error = refusal(loaded, calibration(tmp_path, **arrays))
    assert "calibration.npz" in error.where
    assert words in error.what


def test_a_pickle_in_the_samples_is_never_loaded(loaded, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    file = tmp_path / "calibration.npz"
    np.savez(file, signal=np.array([Evil()], object), gain=GAIN)
    refusal(loaded, file)
    assert not (tmp_path / "owned").exists()


def test_a_single_array_is_not_samples(loaded, tmp_path):
    np.save(tmp_path / "one.npy", SIGNAL)
    assert "single array" in refusal(loaded, tmp_path / "one.npy").what


def test_damaged_samples_are_one_error_whatever_the_damage(loaded, tmp_path):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, signal=SIGNAL, gain=GAIN)
    good, rng = buffer.getvalue(), random.Random(0)
    file, places = tmp_path / "calibration.npz", []
    for _ in range(300):
        data = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        file.write_bytes(data)
        try:
            load_program(loaded, calibration=file)
        except ConfigError as err:
            places.append(err.where)
    assert len(places) > 200
    assert all("calibration.npz" in place for place in places)


@pytest.mark.parametrize(
    "damage",
    ["truncated", *(pytest.param(d, marks=pytest.mark.slow) for d in ("random", "empty", "zip"))],
)
def test_a_damaged_program_is_a_model_error_with_its_name(program, tmp_path, damage):
    path = tmp_path / "bad.pt2"
    good = program.read_bytes()
    if damage == "zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("readme.txt", "nothing")
    else:
        content = {
            "random": random.Random(0).randbytes(4096),
            "empty": b"",
            "truncated": good[: len(good) // 2],
        }
        path.write_bytes(content[damage])
    error = refusal(path, calibration(tmp_path, signal=SIGNAL, gain=GAIN), ModelError)
    assert error.where == str(path)
    assert "save it again" in error.fix


def test_a_program_that_crashes_its_process_is_a_model_error(program, tmp_path, monkeypatch):
    monkeypatch.setattr("edgeshrink.program.PROBE", "import os; os.abort()")
    error = refusal(program, calibration(tmp_path, signal=SIGNAL, gain=GAIN), ModelError)
    assert "crashes PyTorch (signal 6)" in error.what


def test_a_program_that_hangs_is_a_model_error(program, tmp_path, monkeypatch):
    monkeypatch.setattr("edgeshrink.program.PROBE", "import time; time.sleep(60)")
    monkeypatch.setattr("edgeshrink.program.PROBE_TIMEOUT_S", 0.2)
    error = refusal(program, calibration(tmp_path, signal=SIGNAL, gain=GAIN), ModelError)
    assert "0.2 s" in error.what


def test_a_program_of_a_larger_batch_says_that_it_must_be_one(tmp_path, monkeypatch):
    without_probe(monkeypatch)
    path = save(tmp_path / "four.pt2", nn.Linear(3, 2), (torch.ones(4, 3),))
    error = refusal(path, calibration(tmp_path, x=SIGNAL), ModelError)
    assert "its batch must be 1" in error.what
    assert "export it again" in error.fix


def test_a_program_of_dynamic_shapes_is_refused(tmp_path, monkeypatch):
    without_probe(monkeypatch)
    batch = torch.export.Dim("batch", min=1, max=16)
    path = save(
        tmp_path / "any.pt2", nn.Linear(3, 2), (torch.ones(2, 3),), dynamic_shapes=({0: batch},)
    )
    error = refusal(path, calibration(tmp_path, x=SIGNAL), ModelError)
    assert "dynamic shape" in error.what


def test_a_program_with_spoilt_weights_names_the_weight(tmp_path, monkeypatch):
    without_probe(monkeypatch)
    model = nn.Linear(3, 2)
    model.weight.data[0, 0] = np.nan
    path = save(tmp_path / "nan.pt2", model, (torch.ones(1, 3),))
    assert "weight" in refusal(path, calibration(tmp_path, x=SIGNAL), ModelError).where
