"""The command line: exit codes, one JSON document, one message, and clean ends."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import time
import tomllib
from importlib import import_module
from pathlib import Path

import click
import pytest

import edgeshrink
import edgeshrink.target
from edgeshrink.cli import main
from edgeshrink.cli.main import COMMANDS, SUMMARIES
from edgeshrink.errors import (
    BudgetError,
    ConfigError,
    EdgeshrinkError,
    ModelError,
    ToolchainError,
    TrustError,
)

EDGESHRINK = [sys.executable, "-m", "edgeshrink"]
needs_litert = pytest.mark.skipif(
    importlib.util.find_spec("ai_edge_litert") is None, reason="needs the extra [build]"
)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a command in this process, in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return call


def only_message(result: tuple[int, str, str]) -> str:
    """The one message of a command that failed: a line on stderr, nothing on stdout."""
    _, out, err = result
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    return err


# ---- exit codes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EdgeshrinkError("out", "is full", "make room"), 1),
        (ConfigError("a.toml: key", "is 3", "it must be 4"), 2),
        (ModelError("layer 3", "is unknown", "take another"), 3),
        (BudgetError("ram", need=2, limit=1, unit="KiB"), 4),
        (ToolchainError("zig", "is missing", "pip install ziglang"), 5),
        (TrustError("release", "has expired", "publish it again"), 6),
    ],
)
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_every_class_of_error_has_its_exit_code_and_one_message(
    run, monkeypatch, error, code, options
):
    def fail():
        raise error

    monkeypatch.setattr(edgeshrink.target, "list_targets", fail)
    result = run("targets", *options)
    assert result[0] == code
    assert only_message(result) == f"error: {error}\n"


def test_an_interrupt_ends_with_130(run, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(edgeshrink.target, "list_targets", interrupt)
    code, out, err = run("targets", "--json")
    assert (code, out) == (130, "")
    assert err == "interrupted; the last good artifact is intact\n"


def test_a_signal_in_the_middle_of_a_task_ends_with_130(tmp_path):
    script = "import pathlib, time\npathlib.Path('started').touch()\ntime.sleep(60)\n"
    (tmp_path / "task.py").write_text(script)
    process = subprocess.Popen(
        [*EDGESHRINK, "build", "task.py:build", "--target", "rpi4", "--json"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        end = time.monotonic() + 30
        while not (tmp_path / "started").exists():
            assert time.monotonic() < end
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert err == "interrupted; the last good artifact is intact\n"
    assert not (tmp_path / "build").exists()


def test_a_damaged_model_ends_with_3(run, tmp_path):
    (tmp_path / "noise.tflite").write_bytes(b"TFL3" * 100)
    result = run("profile", "noise.tflite", "--target", "rpi4", "--json")
    assert result[0] == 3
    assert "noise.tflite" in only_message(result)


def test_a_missing_extra_ends_with_5_and_the_install_line(tmp_path):
    (tmp_path / "task.py").write_text("def build():\n    pass\n")
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from edgeshrink.cli import main\n"
        "main(['build', 'task.py:build', '--target', 'rpi4', '--json'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 5
    message = only_message((done.returncode, done.stdout, done.stderr))
    assert "python -m pip install 'edgeshrink[build]'" in message


# ---- wrong command lines


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["targts"], "No such command 'targts'; did you mean 'targets'?"),
        (["xyz"], f"No such command 'xyz'; known: {', '.join(sorted(COMMANDS))}"),
        (["--jsn"], "No such option '--jsn'"),
        (["build"], "Missing option '--target'"),
        (["build", "--tarjet", "rpi4"], "--target"),
        (["build", "--target", "rpi44"], "target 'rpi44': is not known; did you mean 'rpi4'?"),
        (["build", "--target", "rpi4", "--threads", "many"], "--threads"),
        (["build", "--target", "rpi4", "--budget", "rma=1KiB"], "did you mean 'ram'?"),
        (["build", "--target", "rpi4", "--recipe", "none.toml"], "none.toml: no such file"),
        (["build", "nowhere", "--target", "rpi4"], "task 'nowhere': does not exist"),
        (["build", "--target", "rpi4"], "has no edgeshrink.toml"),
        (["profile", "--target", "rpi4"], "Missing argument 'MODEL'"),
        (
            ["profile", "m.tflite", "--target", "rpi4", "--engine", "onnx"],
            "rpi4 has tflite, executorch",
        ),
        (["targets", "rpi44"], "did you mean 'rpi4'?"),
        (["targets", "gone.toml"], "gone.toml: no such file"),
        (["targets", "rpi4", "rpi5"], "rpi5"),
        (["init", "a", "b"], "(b)"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_wrong_command_line_ends_with_2_and_says_what_is_right(run, arguments, said, options):
    result = run(*arguments, *options)
    assert result[0] == 2
    assert said in only_message(result)


@pytest.mark.parametrize(
    "arguments", [["--traceback", "targets", "x"], ["targets", "x", "--traceback"]]
)
def test_traceback_shows_the_way_and_then_the_message(run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("Traceback (most recent call last):\n")
    assert "in load_target" in err
    assert err.splitlines()[-1].startswith("error: target 'x': is not known")


# ---- help


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_explains_itself_and_every_option(run, command, option):
    code, out, err = run(command, option)
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: edgeshrink {command} ")
    parts = subcommands(import_module(COMMANDS[command]).command)
    for part in parts:
        assert f"\n  {part[0]} " in out
        code, of_part, err = run(command, *part, option)
        assert (code, err) == (0, "")
        assert "--json" in of_part
    assert parts or "--json" in out


def subcommands(command):
    """The words of every command below one."""
    if not isinstance(command, click.Group):
        return []
    context = click.Context(command)
    found = []
    for name in command.list_commands(context):
        below = subcommands(command.get_command(context, name))
        found += [[name, *words] for words in below] or [[name]]
    return found


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_lists_every_command_with_its_summary(run, arguments):
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    for command in COMMANDS:
        assert f"\n  {command} " in out
        assert SUMMARIES[command].split(",")[0] in out


def test_version_is_the_packages(run):
    assert run("--version") == (0, f"edgeshrink, version {edgeshrink.__version__}\n", "")


# ---- targets


def test_targets_prints_a_row_for_every_target(run, repo):
    code, out, err = run("targets")
    assert (code, err) == (0, "")
    head, *rows = out.splitlines()
    assert head.split() == ["target", "device", "core", "clock", "flash", "RAM", "types"]
    assert {row.split()[0] for row in rows} == {p.stem for p in (repo / "targets").glob("*.toml")}
    pico = next(row for row in rows if row.startswith("rp2040 "))
    assert "2 x 125 MHz" in pico
    assert "2.0 MiB" in pico
    assert "264.0 KiB" in pico


def test_targets_json_says_what_the_table_says(run, repo):
    code, out, err = run("targets", "--json")
    assert (code, err) == (0, "")
    found = {row["name"]: row for row in json.loads(out)}
    assert found.keys() == {path.stem for path in (repo / "targets").glob("*.toml")}
    assert found["rp2040"]["ram_bytes"] == 264 * 1024
    assert found["rpi4"]["flash_bytes"] is None
    assert found["rpi4"]["dtypes"] == ["int8", "int16", "float32"]


def test_targets_name_prints_every_fact_with_its_source(run, repo):
    code, out, err = run("targets", "nucleo-l4r5zi")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line for line in out.splitlines()}
    clock = rows["cpu.clock_mhz"].split(maxsplit=2)
    assert clock == ["cpu.clock_mhz", "120", "sourced: MLPerf Tiny system file"]
    facts = tomllib.loads((repo / "targets" / "nucleo-l4r5zi.toml").read_text("utf-8"))
    for key, value in facts["memory"].items():
        if key != "caches":
            assert str(value) in rows[f"memory.{key}"]


def test_targets_name_json_says_value_and_source(run):
    code, out, err = run("targets", "nucleo-l4r5zi", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["cpu.clock_mhz"] == {
        "value": 120,
        "source": "sourced: MLPerf Tiny system file",
    }


def test_a_target_of_ones_own_is_shown_by_name_and_by_path(run, repo, tmp_path):
    text = (repo / "targets" / "rpi4.toml").read_text("utf-8")
    (tmp_path / "targets").mkdir()
    mine = text.replace('name = "rpi4"', 'name = "mine"').replace("4 Model B", "4 von Jürgen")
    (tmp_path / "targets" / "mine.toml").write_text(mine, "utf-8")
    for name in ("mine", "targets/mine.toml"):
        code, out, _ = run("targets", name)
        assert code == 0
        assert "Raspberry Pi 4 von Jürgen" in out
    assert "\nmine " in run("targets")[1]


# ---- init


def template(repo: Path) -> dict[str, bytes]:
    folder = repo / "edgeshrink" / "task_template"
    return {name: (folder / name).read_bytes() for name in ("edgeshrink.toml", "task.py")}


@pytest.mark.parametrize("folder", ["new", "neu/größe 1 ✓", "."])
def test_init_writes_the_template(run, repo, tmp_path, folder):
    code, out, err = run("init", folder)
    assert (code, err) == (0, "")
    for name, content in template(repo).items():
        assert (tmp_path / folder / name).read_bytes() == content
        assert f"wrote {Path(folder) / name}" in out
    assert "edgeshrink build" in out.splitlines()[-1]
    ast.parse((tmp_path / folder / "task.py").read_bytes())


def test_init_without_a_folder_takes_the_current_one(run, repo, tmp_path):
    assert run("init")[0] == 0
    assert {p.name for p in tmp_path.iterdir()} == template(repo).keys()


def test_init_json_names_the_files(run, tmp_path):
    code, out, err = run("init", "größe 1", "--json")
    assert (code, err) == (0, "")
    written = json.loads(out)["written"]
    assert written == ["größe 1/edgeshrink.toml", "größe 1/task.py"]
    assert all((tmp_path / path).is_file() for path in written)


@pytest.mark.parametrize("there", ["edgeshrink.toml", "task.py"])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_init_overwrites_nothing(run, tmp_path, there, options):
    folder = tmp_path / "größe 1"
    folder.mkdir()
    (folder / there).write_text("mine")
    result = run("init", "größe 1", *options)
    assert result[0] == 2
    assert only_message(result).startswith(f"error: größe 1/{there}: exists already; ")
    assert [p.name for p in folder.iterdir()] == [there]
    assert (folder / there).read_text() == "mine"


def test_init_twice_is_refused(run):
    assert run("init", "new")[0] == 0
    assert run("init", "new")[0] == 2


def test_init_in_a_place_that_is_no_folder_is_refused(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    result = run("init", "file/task")
    assert result[0] == 2
    assert "can't be written" in only_message(result)
    assert (tmp_path / "file").read_text() == "mine"


def test_the_last_line_of_init_can_be_pasted_into_a_shell(run, tmp_path):
    folder = "it's größe 1"
    last = run("init", folder)[1].splitlines()[-1].removeprefix("next: ")
    shell = f'edgeshrink() {{ printf "%s\\n" "$@"; }}; {last}'
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["build", folder, "--target", "rpi4"]


def test_init_takes_a_name_that_is_no_utf8(tmp_path):
    done = subprocess.run(
        [*EDGESHRINK, "init", b"\xff"], cwd=tmp_path, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (Path(os.fsdecode(bytes(tmp_path) + b"/\xff")) / "task.py").is_file()


# ---- profile


@needs_litert
def test_profile_graph_prints_one_json_document(run, tmp_path):
    from tests import tiny_models

    (tmp_path / "größe 1.tflite").write_bytes(tiny_models.fully_connected())
    code, out, err = run("profile", "größe 1.tflite", "--target", "rpi4", "--graph", "--json")
    assert (code, err) == (0, "")
    assert [op["kind"] for op in json.loads(out)["ops"]] == ["FULLY_CONNECTED"]


@needs_litert
def test_profile_prints_one_json_document_with_its_budget(tmp_path):
    from tests import tiny_models

    (tmp_path / "größe 1.tflite").write_bytes(tiny_models.fully_connected())
    command = [*EDGESHRINK, "profile", "größe 1.tflite", "--target", "rpi4", "--json"]
    done = subprocess.run(
        [*command, "--budget", "flash=1B"],
        cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.stderr == ""
    found = json.loads(done.stdout)
    n_bytes = (tmp_path / "größe 1.tflite").stat().st_size
    assert found["figures"]["flash_bytes"]["value"] == n_bytes
    assert found["figures"]["macs"]["value"] == 12
    over = {o["what"]: o for o in found["budget"]["overruns"]}
    assert not found["budget"]["met"]
    assert over["flash"] == {"what": "flash", "need": n_bytes, "limit": 1, "unit": "B"}


# ---- stdout that goes away, or is full

# Python may write at once, or only when it ends.
BUFFERING = pytest.mark.parametrize("unbuffered", ["", "1"])


@BUFFERING
@pytest.mark.parametrize("arguments", [["targets"], ["targets", "rpi4", "--json"], ["--help"]])
def test_a_reader_that_has_left_is_no_error(tmp_path, arguments, unbuffered):
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    reader, writer = os.pipe()
    os.close(reader)
    command = [*EDGESHRINK, *arguments]
    try:
        done = subprocess.run(
            command,
            cwd=tmp_path, env=environment, stdout=writer, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@BUFFERING
@pytest.mark.parametrize("arguments", [["targets"], ["targets", "--json"], ["--help"]])
def test_output_that_does_not_fit_the_disk_is_an_error(tmp_path, arguments, unbuffered):
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("wb") as stdout:
        done = subprocess.run(
            [*EDGESHRINK, *arguments],
            cwd=tmp_path, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True,
            check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "error: standard output: No space left on device\n"


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (PermissionError(13, "Permission denied", "build/größe 1"), "build/größe 1"),
        (OSError(12, "Cannot allocate memory"), "this machine"),
    ],
)
def test_what_the_operating_system_refuses_is_one_message(run, monkeypatch, error, place):
    def fail():
        raise error

    monkeypatch.setattr(edgeshrink.target, "list_targets", fail)
    result = run("targets", "--json")
    assert result[0] == 1
    assert only_message(result) == f"error: {place}: {error.strerror}\n"


def test_a_terminal_that_knows_only_ascii_still_gets_its_output(repo, tmp_path):
    (tmp_path / "targets").mkdir()
    text = (repo / "targets" / "rpi4.toml").read_text("utf-8")
    (tmp_path / "targets" / "rpi4.toml").write_text(text.replace("Model B", "größe"), "utf-8")
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [*EDGESHRINK, "targets", "rpi4"]
    done = subprocess.run(command, cwd=tmp_path, env=ascii_only, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"gr\xf6\xdfe" in done.stdout


# ---- starting


@pytest.mark.parametrize("arguments", [["--help"], ["targets"]])
def test_a_light_command_takes_less_than_two_fifths_of_a_second(tmp_path, arguments):
    seconds = []  # of the processor: other processes may share the machine
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*EDGESHRINK, *arguments], cwd=tmp_path, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.4
