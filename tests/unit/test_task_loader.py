"""Find a task, give it its parameters, call it; each fault with its place and its remedy."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeshrink.budget import Budget
from edgeshrink.errors import ConfigError, ToolchainError
from edgeshrink.task import Metric
from edgeshrink.task_loader import find_task, init_task, load_task, parse_settings

TOML = '[task]\nentry = "task.py:build"\n'

# A whole task; `seen` is what the function was called with.
TASK = """
import numpy as np
import torch
from edgeshrink.task import ArraySplit, Task

class Model(torch.nn.Linear):
    seen = None

def build({parameters}):
    seen = dict(locals())
    {body}
    samples = ArraySplit(inputs=(np.ones((4, 3), np.float32),))
    model = Model(3, 2)
    model.seen = seen
    return Task(model=model, example_inputs=(torch.ones(1, 3),), data={{"calibration": samples}})
"""


def write_task(folder: Path, parameters: str = "", *, body: str = "pass", toml: str = TOML) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "edgeshrink.toml").write_text(toml, "utf-8")
    (folder / "task.py").write_text(TASK.format(parameters=parameters, body=body), "utf-8")
    return str(folder)


def seen(spec: str, *settings: str, **options) -> dict:
    return load_task(spec, settings=parse_settings(settings), **options).model.seen


def refusal(spec: str, *settings: str, **options) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_task(spec, settings=parse_settings(settings), **options)
    assert caught.value.where
    assert caught.value.what
    assert caught.value.fix
    return caught.value


# ---- where a task is


def test_folder_and_file_with_function_name_the_same_task(tmp_path):
    spec = write_task(tmp_path / "job")
    by_folder, by_file = find_task(spec), find_task(f"{spec}/task.py:build")
    assert (by_folder.file, by_folder.function) == (by_file.file, by_file.function)
    assert by_folder.name == "job"
    assert by_file.name == "task"


def test_an_empty_spec_is_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(write_task(tmp_path / "here"))
    assert find_task("").name == "here"


def test_the_toml_file_itself_names_its_folder(tmp_path):
    assert find_task(write_task(tmp_path / "job") + "/edgeshrink.toml").name == "job"


def test_a_folder_with_spaces_and_letters_of_any_script_works(tmp_path):
    spec = write_task(tmp_path / "meine größte Übung 手")
    task = load_task(spec, settings={})
    assert task.name == "meine-größte-Übung-手"
    assert task.folder == Path(spec)


def test_finding_a_task_runs_nothing(tmp_path):
    spec = write_task(tmp_path)
    (tmp_path / "task.py").write_text("raise SystemExit('run')\n")
    assert find_task(spec).function == "build"


def test_missing_place_says_what_a_task_is(tmp_path):
    error = refusal(str(tmp_path / "nowhere"))
    assert "does not exist" in error.what
    assert "edgeshrink.toml" in error.fix


def test_folder_without_toml_says_how_to_get_one(tmp_path):
    assert "edgeshrink init" in refusal(str(tmp_path)).fix


def test_file_without_function_names_the_functions_in_it(tmp_path):
    write_task(tmp_path)
    assert "task.py:build" in refusal(str(tmp_path / "task.py")).fix


@pytest.mark.parametrize("suffix", [".tflite", ".pte"])
def test_a_lowered_file_is_sent_to_profile(tmp_path, suffix):
    (tmp_path / f"model{suffix}").write_bytes(b"anything")
    error = refusal(str(tmp_path / f"model{suffix}"))
    assert "lowered already" in error.what
    assert "edgeshrink profile" in error.fix


def test_missing_python_file_names_the_nearest(tmp_path):
    spec = write_task(tmp_path, toml='[task]\nentry = "taks.py:build"\n')
    error = refusal(spec)
    assert error.where.endswith("edgeshrink.toml: task.entry")
    assert "task.py" in error.fix


def test_missing_function_names_the_nearest(tmp_path):
    spec = write_task(tmp_path, toml='[task]\nentry = "task.py:biuld"\n')
    error = refusal(spec)
    assert "no function 'biuld'" in error.what
    assert "'build'" in error.fix


def test_a_constant_in_place_of_the_function_is_refused(tmp_path):
    spec = write_task(tmp_path, toml='[task]\nentry = "task.py:LIMIT"\n')
    with (tmp_path / "task.py").open("a") as file:
        file.write("LIMIT = 3\n")
    assert "is 3" in refusal(spec).what


# ---- edgeshrink.toml


@pytest.mark.parametrize(
    ("toml", "key", "fault", "remedy"),
    [
        ("[task]\nentry = ", "", "not valid TOML", "line"),
        ('[task]\nentyr = "task.py:build"\n', "task.entry", "is missing", "rename 'entyr'"),
        ('[task]\nentry = "task.py"\n', "task.entry", "is 'task.py'", "task.py:build"),
        (TOML + "name = 3\n", "task.name", "is 3", "a string"),
        (TOML + 'name = "a/b"\n', "task.name", "is 'a/b'", "letters"),
        (TOML + 'direction = "hihger"\n', "task.direction", "is 'hihger'", "'higher'"),
        (TOML + "[budget]\nrma = 3\n", "budget.rma", "not a known key", "'ram'"),
        (TOML + '[budget]\nram = "3 parsecs"\n', "budget.ram", "is '3 parsecs'", "KiB"),
        (TOML + "[bugdet]\n", "bugdet", "not a known key", "'budget'"),
    ],
)
def test_a_fault_in_the_toml_names_file_key_and_remedy(tmp_path, toml, key, fault, remedy):
    error = refusal(write_task(tmp_path, toml=toml))
    assert str(tmp_path / "edgeshrink.toml") in error.where
    assert error.where.endswith(key)
    assert fault in error.what
    assert remedy in error.fix


def test_toml_that_is_not_utf8_is_refused(tmp_path):
    write_task(tmp_path)
    (tmp_path / "edgeshrink.toml").write_bytes(b'[task]\nentry = "\xff"\n')
    assert "can't be read" in refusal(str(tmp_path)).what


def test_metric_and_budget_of_the_toml_reach_the_task(tmp_path):
    toml = TOML + 'metric = "error"\ndirection = "lower"\n[budget]\nram = "2 KiB"\n'
    task = load_task(write_task(tmp_path, toml=toml), settings={})
    assert (task.metric.name, task.metric.direction) == ("error", "lower")
    assert task.metric.drop(0.2, 0.5) == pytest.approx(0.3)
    assert task.budget == Budget(ram_bytes=2048)


def test_a_drop_of_just_what_is_allowed_is_allowed():
    for hits in range(1, 300):
        assert Metric().drop(hits / 300, (hits - 1) / 300) <= 1 / 300
        assert Metric(direction="lower").drop((hits - 1) / 100, hits / 100) <= 0.01
        assert Metric().drop(hits / 300, (hits - 1.001) / 300) > 1 / 300
    assert Metric().drop(1e-9, 1e-9 - 1e-15) > 0
    assert Metric().drop(float("inf"), 0.0) == float("inf")
    assert Metric().drop(0.0, 0.0) == 0


# ---- parameters

SIGNATURE = (
    "*, n: int = 1, rate: float = 0.5, big: bool = False, kind: Literal['a', 'b'] = 'a', "
    "path: Path | None = None, text='x'"
)
IMPORTS = "from typing import Literal\nfrom pathlib import Path\n"


def write_typed_task(folder: Path, toml: str = TOML) -> str:
    spec = write_task(folder, SIGNATURE, toml=toml)
    file = folder / "task.py"
    file.write_text(IMPORTS + file.read_text())
    return spec


@pytest.mark.parametrize(
    ("setting", "name", "value"),
    [
        ("n=12", "n", 12),
        ("rate=1e-2", "rate", 0.01),
        ("big=yes", "big", True),
        ("big=off", "big", False),
        ("kind=b", "kind", "b"),
        ("path=a b/ü", "path", Path("a b/ü")),
        ("path=none", "path", None),
        ("text=a=b", "text", "a=b"),
    ],
)
def test_set_converts_to_the_type_of_the_parameter(tmp_path, setting, name, value):
    got = seen(write_typed_task(tmp_path), setting)[name]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ("n=many", "a whole number"),
        ("n=1.5", "a whole number"),
        ("rate=fast", "a number"),
        ("big=perhaps", "true or false"),
        ("kind=c", "a or b"),
    ],
)
def test_set_to_a_wrong_value_says_what_it_must_be(tmp_path, setting, remedy):
    error = refusal(write_typed_task(tmp_path), setting)
    assert error.where == f"--set {setting.partition('=')[0]}"
    assert remedy in error.fix


def test_set_of_an_unknown_parameter_names_the_nearest(tmp_path):
    error = refusal(write_typed_task(tmp_path), "raet=1")
    assert "no parameter 'raet'" in error.what
    assert "'rate'" in error.fix


def test_set_without_a_value_is_refused():
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_settings(["epochs"])


@pytest.mark.parametrize(("name", "option"), [("seed", "--seed"), ("data", "--data")])
def test_set_of_a_parameter_with_an_option_of_its_own_names_the_option(tmp_path, name, option):
    error = refusal(write_task(tmp_path, "data=None, seed=0"), f"{name}=1")
    assert option in error.fix


def test_set_goes_before_the_toml_which_goes_before_the_default(tmp_path):
    spec = write_typed_task(tmp_path, TOML + "[parameters]\nn = 7\nrate = 2\n")
    got = seen(spec, "n=9")
    assert (got["n"], got["rate"], got["text"]) == (9, 2.0, "x")
    assert type(got["rate"]) is float


def test_path_in_the_toml_is_relative_to_its_folder(tmp_path):
    spec = write_typed_task(tmp_path / "a", TOML + '[parameters]\npath = "w.bin"\n')
    assert seen(spec)["path"] == tmp_path / "a" / "w.bin"


def test_wrong_type_in_the_toml_names_the_key(tmp_path):
    error = refusal(write_typed_task(tmp_path, TOML + '[parameters]\nn = "many"\n'))
    assert error.where.endswith("edgeshrink.toml: parameters.n")
    assert "a whole number" in error.fix


def test_parameter_without_a_value_says_how_to_give_one(tmp_path):
    error = refusal(write_task(tmp_path, "width"))
    assert "'width' has no value" in error.what
    assert "--set width=" in error.fix


def test_data_folder_comes_from_the_option_before_the_variable(tmp_path, monkeypatch):
    spec = write_task(tmp_path, "data")
    monkeypatch.setenv("EDGESHRINK_DATA", "/from/variable")
    assert seen(spec)["data"] == Path("/from/variable")
    assert seen(spec, data=Path("/from/option"))["data"] == Path("/from/option")
    monkeypatch.setenv("EDGESHRINK_DATA", "")
    assert seen(spec)["data"] is None


# ---- the user's code


def test_exception_in_the_task_names_file_line_and_message(tmp_path):
    error = refusal(write_task(tmp_path, body="raise RuntimeError('no disk today')"))
    assert error.where == f"{tmp_path / 'task.py'}:build"
    assert "RuntimeError: no disk today" in error.what
    assert "task.py, line 11" in error.what


def test_exception_while_importing_names_file_and_line(tmp_path):
    spec = write_task(tmp_path)
    (tmp_path / "task.py").write_text("x = 1\ny = x / 0\n")
    error = refusal(spec)
    assert "ZeroDivisionError" in error.what
    assert "task.py, line 2: y = x / 0" in error.what


def test_syntax_error_names_the_line(tmp_path):
    spec = write_task(tmp_path)
    (tmp_path / "task.py").write_text("x = 1\ndef build(:\n")
    error = refusal(spec)
    assert "SyntaxError" in error.what
    assert "line 2" in error.what


def test_a_task_that_exits_does_not_end_us(tmp_path):
    assert "SystemExit" in refusal(write_task(tmp_path, body="raise SystemExit(0)")).what


def test_interruption_in_the_task_stays_an_interruption(tmp_path):
    spec = write_task(tmp_path, body="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_task(spec, settings={})


def test_missing_package_of_the_build_extra_names_the_install_line(tmp_path):
    body = "raise ModuleNotFoundError(\"No module named 'scipy'\", name='scipy.fft')"
    with pytest.raises(ToolchainError, match=r"edgeshrink\[build\]"):
        load_task(write_task(tmp_path, body=body), settings={})


def test_wrong_return_value_says_what_came_back(tmp_path):
    error = refusal(write_task(tmp_path, body="return 3"))
    assert "a builtins.int, not a Task" in error.what
    assert "Task(" in error.fix


def test_modules_beside_the_task_are_its_own(tmp_path):
    for name, value in (("one", 1), ("two", 2)):
        spec = write_task(tmp_path / name, body="import helper; seen['helper'] = helper.VALUE")
        (tmp_path / name / "helper.py").write_text(f"VALUE = {value}\n")
        assert seen(spec)["helper"] == value


def test_sys_path_is_as_it_was_after_a_failure(tmp_path):
    before = list(sys.path)
    refusal(write_task(tmp_path, body="1 / 0"))
    assert sys.path == before


def test_equal_seeds_give_equal_first_weights(tmp_path):
    spec = write_task(tmp_path, "seed")
    weights = [load_task(spec, settings={}, seed=s).model.weight.detach() for s in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# ---- init


def test_init_writes_a_task_that_loads_and_trains_on_its_own_data(tmp_path):
    written = init_task(tmp_path / "new")
    assert {p.name for p in written} == {"edgeshrink.toml", "task.py"}
    task = load_task(str(tmp_path / "new"), settings={"epochs": "3"})
    assert task.training.epochs == 3
    assert {"train", "validation", "test", "calibration"} == set(task.data)
    first = task.data["test"].inputs[0]
    assert first.dtype == np.float32


@pytest.mark.parametrize("name", ["edgeshrink.toml", "task.py"])
def test_init_overwrites_nothing(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        init_task(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_init_below_a_file_says_that_it_can_not_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be written"):
        init_task(tmp_path / "file" / "task")
