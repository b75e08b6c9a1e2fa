"""What a model takes of TensorFlow Lite Micro's arena: recorded on this host, told for 32 bits.

The interpreter of PyPI's `tflite-micro` records what it allocates. Activations take the same bytes
on every device; what holds pointers is smaller where they have four bytes, and the kernels of
CMSIS-NN ask for scratch buffers that the host's plain ones do not need.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgeshrink.errors import ModelError, ToolchainError
from edgeshrink.graph_reader import pack_inline
from edgeshrink.runtimes.runner import BUILD_EXTRA

# Bytes of TFLM's structures with pointers of eight and of four bytes.
EVAL_TENSOR: Final = (24, 12)
NODE: Final = (64, 32)
TENSOR: Final = (64, 40)  # of inputs and outputs, kept while the interpreter lives
QUANTIZATION: Final = (32, 20)  # of them: one struct and one array of a zero point
# What the allocator, the graph and the kernels' own structures shrink by: fitted to the arenas of
# four models on a Cortex-M4 (facts of the MLPerf Tiny models; to within 0.2 %).
FIXED_SAVING: Final = 270
OP_SAVING: Final = 17
DENSE_SAVING: Final = 37
TIMEOUT_S: Final = 120.0
ALIGNMENT: Final = 16
_LINE: Final = re.compile(r"\[RecordingMicroAllocator\] (?P<what>.*)")
_TOTAL: Final = re.compile(r"Arena allocation (total|head|tail) (\d+) bytes")
_COUNT: Final = re.compile(
    r"'(?P<name>[^']+)' used (?P<used>\d+) bytes .*for (?P<count>\d+) "
    r"(?:allocations|tensors|NodeAndRegistration)"
)
# Loads the file and prints what was recorded; in a process of its own, which a bad file may end.
_SCRIPT: Final = """
import sys
from tflite_micro.python.tflite_micro import runtime
interpreter = runtime.Interpreter.from_file(sys.argv[1], arena_size=int(sys.argv[2]))
interpreter.print_allocations()
"""


@dataclass(frozen=True, kw_only=True)
class Arena:
    """What a model takes of the arena, in bytes."""

    host_bytes: int  # as recorded here
    device_bytes: int  # with 32-bit pointers, scratch buffers included
    activation_bytes: int  # of the head: tensors, where the planner put them
    scratch_bytes: int  # what scratch buffers make the head longer


def recorded_arena(
    data: bytes,
    *,
    name: str,
    n_dense: int,
    scratch_bytes: int = 0,
    arena_bytes: int = 64 << 20,
) -> Arena:
    """Load a model into TFLM in a process of its own and return what its arena takes.

    Args:
        data: A `.tflite`.
        name: What to call it in errors.
        n_dense: Fully connected operators.
        scratch_bytes: What scratch buffers make the plan of activations longer (`planned_bytes`).
        arena_bytes: What the interpreter may use.

    Raises:
        ModelError: TFLM can't load it: an operator it does not have, or no memory.
        ToolchainError: tflite-micro is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        path.write_bytes(pack_inline(data, name=name))
        command = [sys.executable, "-W", "ignore", "-c", _SCRIPT, str(path), str(arena_bytes)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", check=False,
                timeout=TIMEOUT_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired as err:
            what = f"takes TFLM more than {TIMEOUT_S:g} s to load"
            raise ModelError(name, what, "check the file") from err
    said = done.stdout + done.stderr
    if "No module named 'tflite_micro'" in said:
        raise ToolchainError("tflite-micro", "is not installed", BUILD_EXTRA)
    if done.returncode:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        known = [line for line in lines if "not " in line.lower() or "fail" in line.lower()]
        reason = (known or lines or [f"it ended with {done.returncode}"])[0]
        what = f"can't be loaded by TensorFlow Lite Micro ({reason[:200]})"
        raise ModelError(name, what, "use operators and types that TFLM has")
    return _told(said, name, n_dense, scratch_bytes)


def _told(said: str, name: str, n_dense: int, scratch_bytes: int) -> Arena:
    sizes: dict[str, int] = {}
    counts: dict[str, int] = {}
    for line in _LINE.finditer(said):
        if total := _TOTAL.search(line["what"]):
            sizes[total[1]] = int(total[2])
        elif part := _COUNT.search(line["what"]):
            counts[part["name"]] = int(part["count"])
    needed = ("TfLiteEvalTensor data", "NodeAndRegistration struct", "Persistent TfLiteTensor data")
    if "total" not in sizes or any(key not in counts for key in needed):
        raise ModelError(name, "has no allocations that TFLM could tell", "check the file")
    n_nodes, n_kept = counts[needed[1]], counts[needed[2]]
    saved = (
        counts[needed[0]] * (EVAL_TENSOR[0] - EVAL_TENSOR[1])
        + n_nodes * (NODE[0] - NODE[1] + OP_SAVING)
        + n_dense * (DENSE_SAVING - OP_SAVING)
        + n_kept * (TENSOR[0] - TENSOR[1] + QUANTIZATION[0] - QUANTIZATION[1])
        + FIXED_SAVING
    )
    floor = sizes["head"] + counts[needed[0]] * EVAL_TENSOR[1] + n_nodes * NODE[1]
    return Arena(
        host_bytes=sizes["total"],
        device_bytes=max(sizes["total"] - saved, floor) + scratch_bytes,
        activation_bytes=sizes["head"],
        scratch_bytes=scratch_bytes,
    )


def planned_bytes(blocks: Sequence[tuple[int, int, int]]) -> int:
    """Return how long TFLM's greedy planner makes an arena of blocks (bytes, first, last use).

    The longest block first, each at the lowest place that is free while it lives.
    """
    placed: list[tuple[int, int, int, int]] = []
    for size, first, last in sorted(blocks, key=lambda block: -block[0]):
        padded = -(-size // ALIGNMENT) * ALIGNMENT
        at = 0
        for low, end, begins, ends in sorted(placed):
            if ends < first or begins > last:
                continue
            if at + padded <= low:
                break
            at = max(at, end)
        placed.append((at, at + padded, first, last))
    return max((end for _, end, _, _ in placed), default=0)
