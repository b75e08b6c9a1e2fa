"""Bad input gets a clear error: its exit code, and a message with place, fault and remedy.

Nothing is lost either: the last good artifact stays byte for byte, and no litter is left beside it.
"""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from edgeshrink.cli.output import stdout_to_stderr
from edgeshrink.errors import ConfigError, EdgeshrinkError
from edgeshrink.staging import staging
from tests import tiny_models
from tests.e2e.commands import TOML, Result, call, interrupt, run, write_task


def must_say(result: Result, code: int, *words: str) -> None:
    """One line on stderr with these words, nothing on stdout, and no traceback."""
    assert result.code == code, result.err
    assert result.out == ""
    lines = [line for line in result.err.splitlines() if line]
    assert len(lines) == 1, result.err
    assert lines[0].startswith("error: ")
    assert "; " in lines[0], "an error ends in its remedy"
    for word in words:
        assert word in lines[0]


def good_artifact(folder: Path) -> dict[str, bytes]:
    """Write what passes for the last good artifact; return its content."""
    folder.mkdir(parents=True)
    content = {"artifact.json": b"{}\n", "model.tflite": b"last good", "golden.npz": b"\0" * 9}
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return content


def write_artifact(out: Path, content: bytes, *, then: type[BaseException] | None = None) -> None:
    """Write an artifact of one file as a build does, unless something stops it."""
    with staging(out) as new:
        (new / "artifact.json").write_bytes(content)
        if then is not None:
            raise then


def must_be_intact(folder: Path, content: dict[str, bytes]) -> None:
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == content
    beside = {p.name for p in folder.parent.iterdir()} - {folder.name}
    assert beside <= {f"{folder.name}.checkpoints"}, "litter is left"


# ---- target and files


def test_unknown_target_names_the_nearest(tmp_path, capfd):
    result = call(capfd, "build", write_task(tmp_path), "--target", "rpi44")
    must_say(result, 2, "rpi44", "rpi4")


def test_target_file_with_a_typo_names_file_key_and_nearest(tmp_path, repo, capfd):
    text = (repo / "targets" / "rpi4.toml").read_text("utf-8")
    file = tmp_path / "rpi4.toml"
    file.write_text(text.replace("clock_mhz", "clock_mzh", 1), "utf-8")
    result = call(capfd, "build", write_task(tmp_path / "task"), "--target", file)
    must_say(result, 2, str(file), "cpu", "clock_mhz")


def test_malformed_toml_names_file_and_line(tmp_path, capfd):
    folder = write_task(tmp_path, toml='[task]\nentry = "task.py:build\n')
    must_say(call(capfd, "build", folder, "--target", "rpi4"), 2, "edgeshrink.toml", "line 2")


def test_malformed_recipe_names_file_and_key(tmp_path, capfd):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[steps]]\nstep = "quantise"\n')
    result = call(
        capfd, "build", write_task(tmp_path / "t"), "--target", "rpi4", "--recipe", recipe
    )
    must_say(result, 2, str(recipe), "step", "'quantize'")


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--budget", "rma=3KiB", "'ram'"),
        ("--budget", "ram=3", "KiB"),
        ("--set", "seed=3", "--seed"),
        ("--set", "wdith=3", "wdith"),
        ("--threads", "9", "4"),
        ("--calibration", "x.npz", ".pt2"),
    ],
)
def test_a_wrong_option_is_named_before_any_work(tmp_path, capfd, option, value, word):
    folder = write_task(tmp_path, body="data['train'] = None" if option == "--calibration" else "")
    result = call(capfd, "build", folder, "--target", "rpi4", option, value)
    must_say(result, 2, option, word)


# ---- the task


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise RuntimeError('no camera')", ["task.py:build", "no camera", "line"]),
        ("return model", ["task.py:build", "Model, not a Task", "Task("]),
        ("return None", ["task.py:build", "None, not a Task"]),
        ("import no_such_package", ["task.py:build", "no_such_package"]),
        ("data = {}; evaluate = None", ["neither 'calibration' nor 'train'", "16 to 512"]),
        ("data['train'] = samples(rng, 0)", ["data['train']", "is empty"]),
        ("example = torch.zeros(1, 5)", ["samples of shape (4,)", "(5,)"]),
        ("loss = None", ["training but no loss"]),
    ],
)
def test_a_faulty_task_function_is_named_with_the_fault(tmp_path, capfd, body, words):
    folder = write_task(tmp_path, body=body)
    must_say(call(capfd, "build", folder, "--target", "rpi4"), 2, *words)


def test_missing_task_function_names_the_nearest(tmp_path, capfd):
    folder = write_task(tmp_path, toml='[task]\nentry = "task.py:biuld"\n')
    must_say(call(capfd, "build", folder, "--target", "rpi4"), 2, "task.py", "biuld", "'build'")


def test_a_folder_without_a_task_says_how_to_start_one(tmp_path, capfd):
    must_say(call(capfd, "build", tmp_path, "--target", "rpi4"), 2, "edgeshrink init")


def test_a_task_below_spaces_and_other_letters_is_named_as_it_is(tmp_path, capfd):
    folder = write_task(tmp_path / "größere Übung 手書き", body="1 / 0")
    must_say(call(capfd, "build", folder, "--target", "rpi4"), 2, str(folder), "ZeroDivisionError")


# ---- the model


def test_nan_weights_are_a_model_error_that_names_the_weight(tmp_path, capfd):
    folder = write_task(tmp_path, body="model.layer.weight.data[1, 2] = math.nan")
    must_say(
        call(capfd, "build", folder, "--target", "rpi4"), 3, "parameter layer.weight", "1 of 12"
    )


def test_nan_activations_are_a_model_error_that_names_the_layer(tmp_path, capfd):
    body = "model.layer = nn.Sequential(model.layer, nn.Threshold(99, math.nan))"
    folder = write_task(tmp_path, body=body)
    must_say(call(capfd, "build", folder, "--target", "rpi4"), 3, "layer layer.1", "NaN")


@pytest.mark.parametrize("hidden", [False, True], ids=["at the output", "inside"])
def test_nan_on_a_calibration_sample_is_a_model_error(tmp_path, capfd, hidden):
    # The example input is fine; a sample is not. Clamped, it does not show at the output.
    forward = "x = x * 1e38 * 1e38; return " + ("torch.sigmoid(x)" if hidden else "x")
    body = "training = evaluate = None; nn.init.zeros_(model.layer.bias)"
    folder = write_task(tmp_path / "task", forward=forward, body=body)
    result = call(capfd, "build", folder, "--target", "rpi4", "--out", tmp_path / "out")
    must_say(result, 3, "calibration sample", "infinity")
    assert not (tmp_path / "out").exists()


def test_training_that_diverges_is_a_model_error_that_names_the_epoch(tmp_path, capfd):
    folder = write_task(tmp_path / "task", body="loss = lambda o, t: o.sum() * math.nan")
    result = call(capfd, "build", folder, "--target", "rpi4", "--out", tmp_path / "out")
    must_say(result, 3, "epoch 1 of 3", "nan", "learning_rate")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        ("return x + 1 if x.sum() > 0 else x", ["Model", "torch.export", "branch"]),
        ("return nn.functional.softplus(x)", ["softplus", "no int8 form"]),
        ("return torch.cumsum(x, dim=1)", ["cumsum", "no int8 form"]),
    ],
    ids=["dynamic control flow", "softplus", "cumsum"],
)
def test_what_can_not_be_lowered_is_refused_before_training_and_conversion(
    tmp_path, capfd, monkeypatch, forward, words
):
    def never(*_args, **_options):
        raise AssertionError("was called")

    for name in ("build.train", "exporting.exporter.lower_to_pte"):
        monkeypatch.setattr(f"edgeshrink.{name}", never)
    monkeypatch.setattr("edgeshrink.exporting.exporter.lower_to_tflite", never)
    folder = write_task(tmp_path / "task", forward=forward)
    result = call(capfd, "build", folder, "--target", "rpi4", "--out", tmp_path / "out")
    must_say(result, 3, *words)
    assert not (tmp_path / "out").exists()


def test_a_float_recipe_for_an_int8_target_is_refused_before_any_work(tmp_path, capfd):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[steps]]\nstep = "quantize"\ndtype = "float32"\n')
    folder = write_task(tmp_path / "task", body="loss = lambda o, t: 1 / 0")
    result = call(capfd, "build", folder, "--target", "nucleo-l4r5zi", "--recipe", recipe)
    must_say(result, 2, "float32", "nucleo-l4r5zi", "int8")


# ---- where it is written


def untrained(folder: Path) -> Path:
    """A task that fails if its training starts: a bad place is found before."""
    return write_task(folder, body="loss = lambda o, t: 1 / 0")


def test_out_below_a_file_is_refused_before_training(tmp_path, capfd):
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "out"
    result = call(capfd, "build", untrained(tmp_path / "t"), "--target", "rpi4", "--out", out)
    must_say(result, 1, str(tmp_path / "file"), "can't be written", "--out")
    assert (tmp_path / "file").read_text() == "mine"


def test_out_that_is_a_file_is_refused_before_training(tmp_path, capfd):
    out = tmp_path / "out"
    out.write_text("mine")
    result = call(capfd, "build", untrained(tmp_path / "t"), "--target", "rpi4", "--out", out)
    must_say(result, 1, str(out), "is a file", "--out")
    assert out.read_text() == "mine"


def test_out_that_holds_other_files_is_never_replaced(tmp_path, capfd):
    out = tmp_path / "home"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    result = call(capfd, "build", untrained(tmp_path / "t"), "--target", "rpi4", "--out", out)
    must_say(result, 2, str(out), "artifact.json", "--out")
    assert (out / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("out", [".", "/", "..", "../"])
def test_out_that_names_a_folder_in_use_is_refused(tmp_path, capfd, monkeypatch, out):
    folder = untrained(tmp_path / "t" / "u")
    monkeypatch.chdir(folder)
    must_say(call(capfd, "build", "--target", "rpi4", "--out", out), 2, "--out")
    assert (folder / "task.py").is_file()


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_found_before_training(small_disk, tmp_path, capfd):
    content = good_artifact(small_disk / "out")
    with (small_disk / "out" / "fill").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"\0" * 1024):
            pass
    size = (small_disk / "out" / "fill").stat().st_size
    folder = untrained(tmp_path / "task")
    result = call(capfd, "build", folder, "--target", "rpi4", "--out", small_disk / "out")
    must_say(result, 1, str(small_disk), "No space left", "free space", "last good artifact")
    must_be_intact(small_disk / "out", content | {"fill": b"\0" * size})


def test_a_disk_that_fills_up_at_the_end_leaves_the_last_artifact(small_disk):
    content = good_artifact(small_disk / "out")
    with pytest.raises(EdgeshrinkError, match="No space left"):
        write_artifact(small_disk / "out", b"\0" * 100_000)
    must_be_intact(small_disk / "out", content)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_whatever_stops_the_writing_leaves_the_last_artifact(tmp_path, error):
    content = good_artifact(tmp_path / "out")
    with pytest.raises(error):
        write_artifact(tmp_path / "out", b"new", then=error)
    must_be_intact(tmp_path / "out", content)


@pytest.mark.parametrize("can_swap", [True, False])
def test_the_new_artifact_takes_the_place_of_the_old_one(tmp_path, monkeypatch, can_swap):
    good_artifact(tmp_path / "out")
    if not can_swap:  # as on file systems and kernels without an atomic exchange
        monkeypatch.setattr("edgeshrink.staging._RENAME_EXCHANGE", 1 << 20)
    write_artifact(tmp_path / "out", b"new")
    must_be_intact(tmp_path / "out", {"artifact.json": b"new"})


def test_an_old_artifact_comes_back_when_the_new_one_can_not_take_its_place(tmp_path, monkeypatch):
    content = good_artifact(tmp_path / "out")
    monkeypatch.setattr("edgeshrink.staging._RENAME_EXCHANGE", 1 << 20)
    rename = Path.rename

    def fails(self, target):
        if self.name.endswith(".partial"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(EdgeshrinkError, match="can't be written"):
        write_artifact(tmp_path / "out", b"new")
    monkeypatch.undo()
    must_be_intact(tmp_path / "out", content)


def test_a_link_stays_a_link_and_its_folder_is_replaced(tmp_path):
    good_artifact(tmp_path / "there" / "real")
    (tmp_path / "link").symlink_to(tmp_path / "there" / "real")
    write_artifact(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    must_be_intact(tmp_path / "there" / "real", {"artifact.json": b"new"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "there"]


def test_a_missing_parent_folder_is_made(tmp_path):
    write_artifact(tmp_path / "a" / "b" / "out", b"new")
    must_be_intact(tmp_path / "a" / "b" / "out", {"artifact.json": b"new"})


def test_a_folder_of_other_files_is_told_from_an_empty_one(tmp_path):
    (tmp_path / "empty").mkdir()
    write_artifact(tmp_path / "empty", b"new")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_text("")
    with pytest.raises(ConfigError, match="not replaced"):
        write_artifact(tmp_path / "other", b"new")


# ---- Ctrl-C


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    ["training epoch 2", "calibrating", "lowering to .pte", "lowering to .tflite", "comparing"],
)
def test_ctrl_c_leaves_the_last_good_artifact_and_exits_with_130(tmp_path, moment):
    body = "training = Training(epochs=100_000)" if "training" in moment else ""
    folder = write_task(tmp_path / "task", body=body)
    out = tmp_path / "build" / "out"
    content = good_artifact(out)
    result = interrupt(moment, "build", folder, "--target", "rpi4", "--out", out)
    assert result.code == 130, result.err[-2000:]
    assert "interrupted; the last good artifact is intact" in result.err
    assert "Traceback" not in result.err
    must_be_intact(out, content)


# ---- model files


def damaged(kind: str, damage: str) -> bytes:
    good = tiny_models.tiny_pte() if kind == "pte" else tiny_models.fully_connected(16, 8)
    if damage == "random":
        return random.Random(1).randbytes(2000)
    if damage == "random behind a good head":
        return good[:16] + random.Random(2).randbytes(2000)
    return {"empty": b"", "half": good[: len(good) // 2], "short": good[:-40]}[damage]


DAMAGES = ["random", "random behind a good head", "empty", "half", "short"]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["tflite", "pte"])
def test_profile_of_a_damaged_file_is_a_model_error_with_its_name(tmp_path, capfd, kind, damage):
    file = tmp_path / f"ein modèle.{kind}"
    file.write_bytes(damaged(kind, damage))
    result = call(capfd, "profile", file, "--target", "rpi4")
    must_say(result, 3, str(file))


@pytest.mark.parametrize("kind", ["tflite", "pte"])
def test_build_of_a_lowered_file_sends_to_profile(tmp_path, capfd, kind):
    file = tmp_path / f"model.{kind}"
    file.write_bytes(damaged(kind, "half"))
    must_say(call(capfd, "build", file, "--target", "rpi4"), 2, str(file), "edgeshrink profile")


def test_profile_of_a_program_sends_to_build(tmp_path, capfd):
    file = tmp_path / "model.pt2"
    file.write_bytes(random.Random(0).randbytes(999))
    must_say(call(capfd, "profile", file, "--target", "rpi4"), 2, str(file), "edgeshrink build")


def test_build_of_a_random_program_is_a_model_error_with_its_name(tmp_path, capfd):
    file, samples = tmp_path / "model.pt2", tmp_path / "samples.npz"
    file.write_bytes(random.Random(0).randbytes(999))
    np.savez(samples, x=np.ones((4, 3), np.float32))
    result = call(capfd, "build", file, "--target", "rpi4", "--calibration", samples)
    must_say(result, 3, str(file), "save it again")


def test_build_of_a_program_without_samples_says_how_to_give_them(tmp_path, capfd):
    file = tmp_path / "model.pt2"
    file.write_bytes(random.Random(0).randbytes(999))
    must_say(call(capfd, "build", file, "--target", "rpi4"), 2, str(file), ".npz")


@pytest.mark.parametrize("name", ["missing.tflite", "missing.pte", "missing"])
def test_profile_of_nothing_names_the_path(tmp_path, capfd, name):
    result = call(capfd, "profile", tmp_path / name, "--target", "rpi4")
    must_say(result, 2, str(tmp_path / name))


def test_profile_of_a_folder_that_is_no_artifact_says_so(tmp_path, capfd):
    must_say(call(capfd, "profile", tmp_path, "--target", "rpi4"), 2, "artifact.json")


# ---- output


def test_a_task_that_prints_does_not_spoil_an_error(tmp_path):
    folder = write_task(tmp_path, body="print('loading'); 1 / 0")
    result = run("build", folder, "--target", "rpi4", "--json")
    assert result.code == 2
    assert result.out == ""
    assert "loading" in result.err


def test_traceback_option_shows_the_way_to_the_fault(tmp_path, capfd):
    folder = write_task(tmp_path, toml=TOML, body="1 / 0")
    result = call(capfd, "build", folder, "--target", "rpi4", "--traceback")
    assert result.code == 2
    assert "Traceback" in result.err
    assert result.err.splitlines()[-1].startswith("error: ")


def test_with_json_stdout_is_for_the_document_alone(capfd):
    with stdout_to_stderr():
        print("from the task")
        os.write(1, b"from a library in C\n")
    print("the document")
    captured = capfd.readouterr()
    assert captured.out == "the document\n"
    assert "from the task" in captured.err
    assert "from a library in C" in captured.err
