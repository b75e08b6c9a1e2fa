"""An exported program (`.pt2`) with calibration samples, in place of a task."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.task import Arrays, ArraySplit, Task
from edgeshrink.task_checks import check_array, check_task

PROBE_TIMEOUT_S: Final = 300.0
# Loads and runs the program where a crash, a hang or a flood of memory hurts nobody.
PROBE: Final = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[2]),) * 2)
import torch
program = torch.export.load(sys.argv[1])
named = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
values = [named[name] for name in program.graph_signature.user_inputs]
inputs = [torch.zeros([int(size) for size in v.shape], dtype=v.dtype) for v in values]
program.module(check_guards=False)(*inputs)
"""
# What numpy and zipfile raise for files that are damaged, encrypted, or ask for absurd sizes.
NPZ_ERRORS: Final = (
    OSError, ValueError, EOFError, KeyError, TypeError, RuntimeError, OverflowError, MemoryError,
    struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
DAMAGED: Final = (
    "the file is damaged, or not made by torch.export.save of this PyTorch: save it again"
)


class ProgramModule(nn.Module):
    """An exported program as a module: in eval mode for good, with the batch it was traced with."""

    def __init__(self, exported_program: ExportedProgram) -> None:
        super().__init__()
        self.exported_program = exported_program
        self.body = exported_program.module(check_guards=False)
        self.training = False

    @property
    def forward(self) -> Callable[..., Any]:  # type: ignore[override]
        """The program itself, with the names of its inputs."""
        return self.body.forward

    def train(self, mode: bool = True) -> ProgramModule:
        """Do nothing: the mode was fixed when the program was traced."""
        return self


def load_program(path: Path, *, calibration: Path | None) -> Task:
    """Return a task for a program that `torch.export.save` wrote. It has no score and no training.

    A `.pt2` is a program: PyTorch 2.13 rebuilds it with unpickling of some tensors and constants,
    evaluation of shape expressions, and operators looked up by name, so a malicious file can run
    code. Load only files you trust. A damaged one is safe: a child process loads and runs the
    program first, with unpickling restricted to tensors.

    Args:
        path: The program, traced in eval mode with static shapes and a batch of 1.
        calibration: `.npz` with one array (samples, ...) per input, called as the inputs are or in
            their order.

    Raises:
        ConfigError: There is no such file, or the calibration data don't fit the program.
        ModelError: The program can't be loaded or run, or holds NaN or infinity.
    """
    if not path.is_file():
        raise ConfigError(str(path), "no such file", "check the path")
    if calibration is None:
        fix = "name an .npz with one array (samples, ...) per input: --data FILE.npz"
        raise ConfigError(str(path), "comes without calibration samples", fix)
    program = _load(path)
    names, examples = _inputs(program, path)
    arrays = _read_calibration(calibration, names, examples)
    task = Task(
        model=ProgramModule(program),
        example_inputs=tuple(torch.from_numpy(a[:1].copy()) for a in arrays),
        data={"calibration": ArraySplit(inputs=arrays)},
        name=path.stem,
    )
    return check_task(task, str(path), folder=None)


def _load(path: Path) -> ExportedProgram:
    limit_bytes = 2**33 + 8 * path.stat().st_size
    try:
        probe = subprocess.run(
            [sys.executable, "-P", "-W", "ignore", "-c", PROBE, str(path), str(limit_bytes)],
            env={**os.environ, "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as err:
        fault = f"could not be loaded and run in {PROBE_TIMEOUT_S:g} s"
        raise ModelError(str(path), fault, DAMAGED) from err
    if probe.returncode < 0:
        raise ModelError(str(path), f"crashes PyTorch (signal {-probe.returncode})", DAMAGED)
    if probe.returncode:
        lines = probe.stderr.decode(errors="replace").strip().splitlines()
        raise ModelError(str(path), f"can't be loaded: {lines[-1][:300] if lines else ''}", DAMAGED)
    return torch.export.load(path)


def _inputs(program: ExportedProgram, path: Path) -> tuple[tuple[str, ...], list[Tensor]]:
    """Return the names of the program's inputs, and what they are like (1, ...), without data."""
    values = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"}
    names = tuple(str(name) for name in program.graph_signature.user_inputs)
    again = "export it again: torch.export.export(model.eval(), example_inputs)"
    for name in names:
        value = values.get(name)
        if not isinstance(value, Tensor):
            raise ModelError(f"{path}: input {name}", "is not a tensor", again)
        if not all(isinstance(size, int) for size in value.shape):
            fault = f"has the dynamic shape {tuple(value.shape)}"
            raise ModelError(f"{path}: input {name}", fault, f"{again}, without dynamic_shapes")
        if value.dim() == 0 or value.shape[0] != 1:
            fault = f"has the shape {tuple(value.shape)}, its batch must be 1"
            raise ModelError(f"{path}: input {name}", fault, again)
    return names, [values[name] for name in names]


def _read_calibration(path: Path, names: tuple[str, ...], examples: list[Tensor]) -> Arrays:
    found = _read_npz(path)
    if len(found) != len(names):
        fault = f"holds {len(found)} arrays ({', '.join(found)}), the program takes {len(names)}"
        raise ConfigError(str(path), fault, f"save one per input: {', '.join(names)}")
    by_name = set(found) == set(names)
    arrays = tuple(found[name] for name in (names if by_name else found))
    for name, array, example in zip(names, arrays, examples, strict=True):
        where = f"{path}: input {name}"
        if array.ndim == 0:
            raise ConfigError(where, "is a single number", "give an array (samples, ...)")
        check_array(array, example, where)
    counts = {len(a) for a in arrays}
    if len(counts) > 1:
        fault = f"holds arrays of different numbers of samples ({sorted(counts)})"
        raise ConfigError(str(path), fault, "the first dimension of all must be the same")
    return arrays


def _read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    fix = "write it with numpy.savez(path, name=array, ...)"
    try:
        with path.open("rb") as stream:  # numpy leaves a file open that it can't read
            file = np.load(stream, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise ConfigError(str(path), "is a single array, not an .npz", fix)
            with file:
                return {name: file[name] for name in file.files}
    except FileNotFoundError as err:
        raise ConfigError(str(path), "no such file", "check the path") from err
    except NPZ_ERRORS as err:
        raise ConfigError(str(path), f"is not a readable .npz ({err})", fix) from err
