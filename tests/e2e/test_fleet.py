"""A fleet from its keys to its devices, by the commands that people type, over nginx."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from edgeshrink.runtimes.runner import PYTHON_VARIABLE
from tests.tiny_fleets import PASSPHRASE, make_artifact
from tests.tiny_models import expected_fully_connected, fully_connected, pack, unpack

REPO = Path(__file__).parents[2]
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
OLD_PYTHON = os.environ.get(PYTHON_VARIABLE, "")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None, reason="needs nginx: sudo apt-get install nginx-light"),
]


@pytest.fixture
def served(tmp_path) -> Iterator[str]:
    """The address under which nginx serves what is published in `fleet`."""
    assert NGINX is not None
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    work = tmp_path / "nginx"
    work.mkdir()
    temp = "".join(f"{k}_temp_path {work}/{k};" for k in ("client_body", "proxy"))
    temp += "".join(f"{k}_temp_path {work}/{k};" for k in ("fastcgi", "uwsgi", "scgi"))
    user = "user root;" if os.geteuid() == 0 else ""
    (work / "nginx.conf").write_text(
        f"{user} daemon off; pid {work}/pid; events {{ }}\n"
        f"http {{ {temp} access_log off; server {{\n"
        f"  listen 127.0.0.1:{port}; root {tmp_path}/fleet/repository; }} }}\n"
    )
    process = subprocess.Popen(
        [NGINX, "-e", str(work / "error.log"), "-c", str(work / "nginx.conf")]
    )
    try:
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.05)
        else:
            pytest.fail((work / "error.log").read_text())
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


class Person:
    """Types commands in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def types(self, command: str, *, python: str = sys.executable, code: int = 0) -> str:
        """Run `edgeshrink COMMAND`; return what it printed, on whichever stream."""
        environment = os.environ | {
            "PYTHONPATH": str(REPO), "EDGESHRINK_PASSPHRASE": PASSPHRASE, "COLUMNS": "200",
        }  # fmt: skip
        done = subprocess.run(
            [python, "-m", "edgeshrink", *command.split()],
            cwd=self.folder, env=environment, text=True, timeout=120, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        print(f"$ edgeshrink {command}\n{done.stdout}")
        assert done.returncode == code, done.stdout
        return done.stdout


def write_release(folder: Path, moved: int, *, good: bool = True) -> bytes:
    """Write an artifact whose golden outputs are those of its model, or of another one.

    Its model is that of `moved` 0 with as many weights a step further, as after a short training.
    """
    model = unpack(fully_connected(64, 48))
    tensor = model.subgraphs[0].tensors[1]
    weights = np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.int8).copy()
    rows = np.random.default_rng(moved).permutation(len(weights))[:moved]
    weights[rows] += 1
    model.buffers[tensor.buffer].data = weights.view(np.uint8)
    content = pack(model)
    x = np.random.default_rng(0).integers(-8, 8, (4, 64), np.int8)
    golden = io.BytesIO()
    of = content if good else fully_connected(64, 48)
    np.savez(golden, **{"input/x": x, "output/y": expected_fully_connected(x, of)})
    spec = {"dtype": "int8", "scale": 1.0, "zero_point": 0, "layout": "as-is"}
    make_artifact(
        folder, model=content, files={"golden.npz": golden.getvalue()},
        inputs=[{"name": "x", "shape": [1, 64], "model_shape": [1, 64], **spec}],
        outputs=[{"name": "y", "shape": [1, 48], "model_shape": [1, 48], **spec}],
    )  # fmt: skip
    return content


def runtimes() -> list[pytest.param]:
    old = pytest.param(
        OLD_PYTHON, "tflite-runtime", id="tflite-runtime",
        marks=pytest.mark.skipif(not OLD_PYTHON, reason=f"{PYTHON_VARIABLE} is not set"),
    )  # fmt: skip
    return [pytest.param(sys.executable, "litert", id="litert"), old]


def check_agent_runs(python: str) -> None:
    """Skip where that Python has no TUF client."""
    found = subprocess.run([python, "-c", "import tuf, cryptography, click"], check=False)
    if found.returncode:
        pytest.skip(f"{python} needs: pip install tuf cryptography click rich")


@pytest.mark.parametrize(("python", "runtime"), runtimes())
def test_devices_install_update_roll_back_and_leave_what_is_withdrawn(
    tmp_path, served, python, runtime
):
    check_agent_runs(python)
    person = Person(tmp_path)
    device = f"agent --repo {served} --root fleet/root.json --state state --target rpi4 --once"
    current = tmp_path / "state" / "models" / "keywords" / "current"

    def looks(**settings: int) -> str:
        return person.types(device, python=python, **settings)

    person.types("fleet init ./fleet --name sensors --threshold 2 --keys 3")
    first = write_release(tmp_path / "build/1", 0)
    shipped = person.types("ship build/1 --repo ./fleet --channel stable --rollout 5%")
    assert "keywords@1.0.0 (counter 1) for rpi4" in shipped
    person.types("fleet rollout ./fleet keywords@1.0.0 --to 100%")
    assert f"golden samples in {runtime}" in looks()
    assert (current / "model.tflite").read_bytes() == first

    second = write_release(tmp_path / "build/2", 300)
    assert "delta from 1.0.0" in person.types("ship build/2 --repo ./fleet --rollout 100%")
    assert "updated by delta" in looks()
    assert (current / "model.tflite").read_bytes() == second
    assert "updated" not in looks()

    write_release(tmp_path / "build/3", 900, good=False)
    person.types("ship build/3 --repo ./fleet --rollout 100%")
    refused = looks(code=1)
    assert "keywords@1.2.0" in refused
    assert "self-test" in refused
    assert (current / "model.tflite").read_bytes() == second

    person.types("fleet collect state ./fleet")
    assert "1.2.0" in person.types("fleet status ./fleet")
    person.types("fleet rollout ./fleet keywords@1.2.0 --withdraw")
    person.types("fleet rollout ./fleet keywords@1.1.0 --withdraw")
    looks()
    assert (current / "model.tflite").read_bytes() == second  # nothing else is offered yet
    person.types("ship keywords@1.0.0 --repo ./fleet --rollout 100%")
    looks()
    assert (current / "model.tflite").read_bytes() == first
    status = json.loads((tmp_path / "state" / "status.json").read_text())
    assert status["models"]["keywords"]["counter"] == 4
