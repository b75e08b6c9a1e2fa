"""Every example is complete, says what data it needs, and builds."""

from __future__ import annotations

import importlib.util
import inspect
import io
import json
import pickle
import re
import struct
import sys
import types
import wave
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from edgeshrink.task_loader import find_task, load_task
from tests.conftest import REPO
from tests.e2e.commands import call

EXAMPLES = sorted(p.name for p in (REPO / "examples").iterdir() if (p / "edgeshrink.toml").exists())
NEED_DATA = {  # what each one looks for, and where that is to be had
    "cifar10": ("cifar-10-batches-py", "https://www.cs.toronto.edu/~kriz/cifar.html"),
    "keywords": ("fsdd_8khz.npz", "https://github.com/Jakobovski/free-spoken-digit-dataset"),
    "gestures": ("emlearn_har_small.npz", "https://github.com/emlearn/emlearn-micropython"),
}


def module_of(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", find_task(folder(name)).file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def folder(name: str) -> str:
    return str(REPO / "examples" / name)


# ---- what every example has


def test_the_folder_holds_nothing_but_examples():
    assert {"digits", "cifar10", "keywords", "gestures"} <= set(EXAMPLES)
    assert {p.name for p in (REPO / "examples").iterdir() if p.is_dir()} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_has_its_three_files_and_a_name_of_its_own(name):
    files = {p.name for p in (REPO / "examples" / name).iterdir() if p.is_file()}
    assert files == {"edgeshrink.toml", "task.py", "README.md"}
    source = find_task(folder(name))
    assert source.name == name
    assert source.metric_name is not None
    assert source.budget.accuracy_drop is not None


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_readme_shows_the_command_and_every_parameter(name):
    text = (REPO / "examples" / name / "README.md").read_text("utf-8")
    commands = re.findall(rf"^edgeshrink build examples/{name} .*$", text, re.MULTILINE)
    assert commands
    for line in commands:
        assert "--target " in line
        assert ("--data DIR" in line) == (name in NEED_DATA)
    documented = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    parameters = set(inspect.signature(module_of(name).build).parameters) - {"data", "seed"}
    assert documented == parameters
    if name in NEED_DATA:
        assert all(word in text for word in NEED_DATA[name])


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_code_is_short_enough_to_read_and_commented(name):
    module = module_of(name)
    assert module.__doc__
    assert module.build.__doc__
    assert len(Path(module.__file__).read_text("utf-8").splitlines()) <= 300


# ---- missing data


@pytest.mark.parametrize("name", NEED_DATA)
@pytest.mark.parametrize("given", ["nothing", "an empty folder", "no such folder", "a variable"])
def test_missing_data_is_one_message_that_says_what_to_get_and_where_to_put_it(
    tmp_path, capfd, monkeypatch, name, given
):
    monkeypatch.delenv("EDGESHRINK_DATA", raising=False)
    options = {
        "nothing": (),
        "an empty folder": ("--data", tmp_path),
        "no such folder": ("--data", tmp_path / "none"),
        "a variable": (),
    }[given]
    if given == "a variable":
        monkeypatch.setenv("EDGESHRINK_DATA", str(tmp_path))
    result = call(capfd, "build", folder(name), "--target", "rpi4", *options)
    assert result.code == 2
    assert result.out == ""
    (message,) = result.err.splitlines()
    for word in (*NEED_DATA[name], "--data DIR", "EDGESHRINK_DATA"):
        assert word in message
    assert ("no data folder is given" in message) == (given == "nothing")
    if given != "nothing":
        assert str(tmp_path) in message


@pytest.mark.shared
def test_missing_checkpoint_says_where_to_get_it(tmp_path, capfd, shared_dir):
    (tmp_path / "cifar10_jpeg.npz").symlink_to(shared_dir / "data" / "cifar10_jpeg.npz")
    arguments = ("build", folder("cifar10"), "--set", "model=resnet20", "--data", tmp_path)
    result = call(capfd, *arguments, "--target", "rpi4")
    assert result.code == 2
    (message,) = result.err.splitlines()
    assert "ResNet-20 checkpoint" in message
    assert "https://github.com/akamaster/pytorch_resnet_cifar10" in message


# ---- the original forms of the data


class Python2Pickler(pickle._Pickler):
    """Writes byte strings as Python 2 did, with which the official files were made."""

    dispatch: ClassVar[dict] = dict(pickle._Pickler.dispatch)

    def save_string(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_string


def write_batch(path: Path, labels: list[int]) -> np.ndarray:
    images = np.random.default_rng(sum(labels)).integers(0, 256, (len(labels), 3072), np.uint8)
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump({b"data": images, b"labels": labels})
    path.write_bytes(file.getvalue().replace(b"numpy._core.multi", b"numpy.core.multi"))
    return images


def test_official_cifar_batches_are_read_in_order(tmp_path):
    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()
    train = [write_batch(batches / f"data_batch_{i}", [i, i + 1]) for i in range(1, 6)]
    test = write_batch(batches / "test_batch", [7, 8, 9])
    image, labels, test_image, test_labels = module_of("cifar10").read_images(tmp_path)
    assert labels.tolist() == [1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
    assert np.array_equal(image(3), train[1][1].reshape(3, 32, 32))
    assert np.array_equal(test_image(2), test[2].reshape(3, 32, 32))
    assert test_labels.tolist() == [7, 8, 9]


def test_a_pickle_with_anything_but_arrays_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": Evil(), b"labels": []}))
    with pytest.raises(pickle.UnpicklingError, match="not allowed"):
        module_of("cifar10").read_batch(tmp_path / "test_batch")
    assert not (tmp_path / "owned").exists()


def test_recordings_of_the_spoken_digits_repository_are_read(tmp_path):
    recordings = tmp_path / "free-spoken-digit-dataset" / "recordings"
    recordings.mkdir(parents=True)
    samples = np.array([0, 16384, -32768], "<i2")
    for name in ("3_theo_12", "7_jackson_0"):
        with wave.open(str(recordings / f"{name}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(samples.tobytes())
    waves, labels, speakers, takes = module_of("keywords").read_recordings(tmp_path)
    assert labels.tolist() == [3, 7]
    assert speakers.tolist() == ["theo", "jackson"]
    assert takes.tolist() == [12, 0]
    assert waves[0].tolist() == [0, 0.5, -1]


def test_recordings_of_the_gestures_repository_are_read_and_short_ones_left_out(tmp_path):
    recordings = tmp_path / "har_record"
    recordings.mkdir()

    def write(name: str, n_samples: int) -> None:
        header = b"\x93NUMPY\x01\x00\x46\x00"
        text = f"{{'descr': '<i2', 'fortran_order': False, 'shape': ({n_samples}, 3), }}"
        samples = np.full((n_samples, 3), 8192, "<i2")
        data = header + text.ljust(69).encode() + b"\n" + samples.tobytes()
        (recordings / name).write_bytes(data)

    write("2025-06-15T192744_wave.npy", 400)
    write("2025-06-15T192801_idle.npy", 400)
    write("2025-06-15T192812_idle.npy", 123)
    waves, labels = module_of("gestures").read_recordings(tmp_path)
    assert labels.tolist() == [3, 0]
    assert waves[0].shape == (400, 3)
    assert np.all(waves[0] == 0.5)


# ---- with data


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "settings", "sizes"),
    [
        ("cifar10", {"model": "resnet20"}, (45_000, 5_000, 10_000)),
        ("keywords", {}, (2_400, 300, 300)),
        ("keywords", {"split": "speaker", "speaker": "theo"}, (2_250, 250, 500)),
    ],
)
def test_splits_have_the_sizes_that_the_data_sets_give_them(shared_dir, name, settings, sizes):
    task = load_task(folder(name), settings=settings, data=shared_dir / "data")

    def n_samples(split) -> int:
        return len(split.rows) if name == "cifar10" else len(split.inputs[0])

    assert tuple(n_samples(task.data[s]) for s in ("train", "validation", "test")) == sizes


@pytest.mark.shared
def test_no_recording_of_a_gesture_is_in_two_parts(shared_dir):
    task = load_task(folder("gestures"), settings={}, data=shared_dir / "data")
    seen = {
        s: {w.tobytes() for w in task.data[s].inputs[0]} for s in ("train", "validation", "test")
    }
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]
    for name in seen:
        assert set(task.data[name].targets) == {0, 1, 2, 3}


@pytest.mark.slow
def test_digits_build_within_a_point_and_both_files_are_equal(tmp_path, capfd):
    out = tmp_path / "out"
    result = call(capfd, "build", folder("digits"), "--target", "rpi4", "--out", out, "--json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert document["budget"]["met"] is True
    scores = document["scores"]
    assert scores["float"] > 0.95
    assert scores["float"] - min(scores.values()) <= 0.01
    (whole,) = [a for a in document["agreements"] if "whole test set" in a["reference"]]
    assert whole["engine"] == "executorch"
    assert whole["n_values"] == 360 * 10
    assert whole["largest"] == 0


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "target", "files"),
    [
        ("keywords", "rpi4", {"model.tflite", "model.pte"}),
        ("gestures", "nucleo-l4r5zi", {"model.tflite"}),
    ],
)
def test_an_example_builds_from_its_data(tmp_path, capfd, shared_dir, name, target, files):
    options = ("--data", shared_dir / "data", "--set", "epochs=1", "--budget", "drop=0.5")
    arguments = ("build", folder(name), "--target", target, *options, "--out", tmp_path / "out")
    result = call(capfd, *arguments, "--json")
    assert result.code == 0, result.err
    assert set(json.loads(result.out)["manifest"]["files"]) >= files
    assert {p.name for p in (tmp_path / "out").glob("model.*")} == files
