"""Run `edgeshrink` as a person does, on small tasks written for one test."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgeshrink.cli import main

# The parts in braces are what a test changes.
TASK = """
import math
import numpy as np
import torch
from torch import nn
from edgeshrink.task import ArraySplit, Task, Training

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        x = self.layer(x)
        {forward}

def samples(rng, n=64):
    x = rng.standard_normal((n, 4)).astype(np.float32)
    return ArraySplit(inputs=(x,), targets=x[:, :3].argmax(axis=1))

def build(*, seed: int):
    rng = np.random.default_rng(seed)
    model = Model()
    data = {{name: samples(rng) for name in ("train", "validation", "test")}}
    training = Training(epochs=3)
    example = torch.zeros(1, 4)

    def evaluate(predict, split):
        hits = [predict(x).argmax(axis=1) == labels for (x,), labels in data[split]]
        return float(np.concatenate(hits).mean())

    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets)

    {body}
    return Task(
        model=model, example_inputs=(example,), data=data, evaluate=evaluate, loss=loss,
        training=training,
    )
"""
TOML = '[task]\nentry = "task.py:build"\n[budget]\naccuracy_drop = 1\n'


@dataclass(frozen=True, kw_only=True)
class Result:
    code: int
    out: str
    err: str


def write_task(
    folder: Path, *, forward: str = "return x", body: str = "pass", toml: str = TOML
) -> Path:
    """Write a task of one linear layer into `folder`, changed as a test needs it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "edgeshrink.toml").write_text(toml, "utf-8")
    (folder / "task.py").write_text(TASK.format(forward=forward, body=body), "utf-8")
    return folder


def call(capfd: pytest.CaptureFixture[str], *arguments: object) -> Result:
    """Run a command in this process: fast, because PyTorch is imported once for all tests."""
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    captured = capfd.readouterr()
    return Result(code=int(left.value.code or 0), out=captured.out, err=captured.err)


def run(*arguments: object, cwd: Path | None = None) -> Result:
    """Run a command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "edgeshrink", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=600,
        check=False,
    )
    return Result(code=done.returncode, out=done.stdout, err=done.stderr)


def interrupt(text: str, *arguments: object, timeout_s: float = 300.0) -> Result:
    """Run a command on a terminal, press Ctrl-C as soon as its progress shows `text`."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeshrink", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=slave,
        env={**os.environ, "COLUMNS": "250", "TERM": "xterm"},
        start_new_session=True,
    )
    os.close(slave)
    shown, pressed, limit = b"", False, time.monotonic() + timeout_s
    try:
        while time.monotonic() < limit:
            try:
                piece = os.read(master, 4096)
            except OSError:  # the other end is closed
                break
            shown += piece
            if not pressed and text.encode() in shown:
                os.killpg(process.pid, signal.SIGINT)
                pressed = True
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert pressed, f"{text!r} was never shown: {shown[-500:]!r}"
    return Result(code=process.returncode, out=out.decode(), err=shown.decode(errors="replace"))
