"""Searches on real workers, one of which is killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgeshrink import trials
from edgeshrink.budget import Budget
from edgeshrink.target import load_target
from edgeshrink.task_loader import load_task
from edgeshrink.trials import TaskPlace, search_and_build
from tests.e2e.commands import call, interrupt, write_task

N_TRIALS = 5
# Tells who loads it; a second long there is something to kill.
SLOW = "import os, pathlib, time\n    " + "\n    ".join([
    "pathlib.Path(__file__).with_name(f'{os.getpid()}.mark').touch()",
    "time.sleep(1.0)",
])  # fmt: skip


@contextmanager
def one_worker_killed(folder) -> Iterator[list[int]]:
    """Kill the first process beside this one that loads the task."""
    killed: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set() and not killed:
            others = [int(p.stem) for p in folder.glob("*.mark") if int(p.stem) != os.getpid()]
            if others:
                os.kill(others[0], signal.SIGKILL)
                killed.append(others[0])
            time.sleep(0.05)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


@contextmanager
def dask_cluster(folder) -> Iterator[str]:
    """Start a scheduler and two workers, each a process of its own."""
    file = folder / "scheduler.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    common = ["--no-dashboard", "--scheduler-file", str(file)]
    dask = [sys.executable, "-m", "dask"]
    processes = [
        subprocess.Popen([*dask, "scheduler", *common, "--host", "127.0.0.1", "--port", "0"],
                         **quiet)
    ]  # fmt: skip
    try:
        limit = time.monotonic() + 60
        while not (file.is_file() and file.read_text().strip().endswith("}")):
            assert time.monotonic() < limit, "no scheduler"
            time.sleep(0.1)
        for _ in range(2):
            processes.append(
                subprocess.Popen(
                    [*dask, "worker", *common, "--nthreads", "1", "--no-nanny"],
                    cwd=folder,
                    **quiet,
                )
            )
        yield json.loads(file.read_text())["address"]
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["processes", "dask"])
def test_no_trial_is_lost_when_a_worker_is_killed(where, tmp_path, monkeypatch):
    folder = write_task(tmp_path / "task", body=SLOW)
    found = {}

    def build(task, target, *, study, **others):
        found.update(study)
        return "built"

    monkeypatch.setattr(trials, "build", build)
    task = load_task(str(folder), settings={}, seed=0)
    with dask_cluster(tmp_path) if where == "dask" else no_cluster() as address:
        if address:
            wait_for_workers(address, 2)
        with one_worker_killed(folder) as killed:
            search_and_build(
                TaskPlace(spec=str(folder)), task, load_target("rpi4"), budget=Budget(),
                out=tmp_path / "out", n_trials=N_TRIALS, jobs=2 if not address else 1,
                cluster=address,
            )  # fmt: skip
    assert len(killed) == 1
    assert [t["number"] for t in found["trials"]] == list(range(N_TRIALS))
    assert found["failed"] == []
    assert all(0 <= t["score"] <= 1 for t in found["trials"])
    if where == "processes":
        others = {int(p.stem) for p in folder.glob("*.mark")} - {os.getpid()}
        assert not [pid for pid in others if is_alive(pid)]


@contextmanager
def no_cluster() -> Iterator[str]:
    yield ""


def wait_for_workers(address: str, count: int) -> None:
    from distributed import Client

    with Client(address, timeout=30, set_as_default=False) as client:
        client.wait_for_workers(count, timeout=60)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # one that ended, and whose parent has not looked yet


@pytest.mark.slow
def test_a_search_that_is_interrupted_goes_on_and_leaves_a_report(tmp_path, capfd):
    folder = write_task(tmp_path / "task", body=SLOW)
    out = tmp_path / "out"
    command = ("build", folder, "--target", "rp2040", "--out", out, "--trials", "3", "--jobs", "2")
    stopped = interrupt("best", *command)
    assert stopped.code == 130
    assert "last good artifact" in stopped.err
    assert not out.exists()
    marks = {int(p.stem) for p in folder.glob("*.mark")}
    assert not [pid for pid in marks if is_alive(pid)]
    done = call(capfd, *command)
    assert done.code == 0, done.err
    content = json.loads((out / "pareto.json").read_text())
    assert [t["number"] for t in content["trials"]] == [0, 1, 2]
    shown = call(capfd, "report", out)
    assert shown.code == 0
    assert "the Pareto front of 3 trials" in shown.out
    assert "http" not in (out / "report.html").read_text().replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--trials", "0"], 2, "0 is not in the range x>=1"),
        (["--trials", "2", "--jobs", "0"], 2, "0 is not in the range x>=1"),
        (["--jobs", "2"], 2, "--jobs: says where trials run, and there are none; add --trials"),
        (["--cluster", "tcp://h:1"], 2, "--cluster: says where trials run"),
        (["--trials", "2", "--jobs", "2", "--cluster", "h:1"], 2, "give one of them"),
        (["--trials", "2", "--cluster", "nowhere"], 2, "write it as tcp://HOST:8786"),
        (["--trials", "2", "--budget", "accuracy=3"], 2, "unknown key 'accuracy'"),
    ],
)  # fmt: skip
def test_options_of_a_search_that_make_no_sense_are_refused(options, code, words, tmp_path, capfd):
    folder = write_task(tmp_path / "task")
    done = call(capfd, "build", folder, "--target", "rpi4", "--out", tmp_path / "out", *options)
    assert (done.code, done.out) == (code, "")
    assert words in done.err
    assert not list(tmp_path.glob("out*"))


def test_a_recipe_and_a_search_for_one_contradict_each_other(tmp_path, capfd):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[steps]]\nstep = "quantize"\n')
    done = call(capfd, "build", tmp_path, "--target", "rpi4", "--trials", "2", "--recipe", recipe)
    assert done.code == 2
    assert "leave --recipe out to search" in done.err


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_told_within_seconds(tmp_path, capfd):
    folder = write_task(tmp_path / "task")
    done = call(
        capfd, "build", folder, "--target", "rpi4", "--out", tmp_path / "out", "--trials", "2",
        "--cluster", "tcp://127.0.0.1:1",
    )  # fmt: skip
    assert done.code == 5
    assert "can't be reached" in done.err
    assert done.err.count("\n") == 1
    assert not list(tmp_path.glob("out*"))
