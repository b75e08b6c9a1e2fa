"""The self-test of a release: golden vectors through the interpreter that is really there."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgeshrink.artifact import (
    GOLDEN,
    MODEL_FILES,
    FileEntry,
    IoSpec,
    file_entry,
    read_artifact,
)
from edgeshrink.errors import (
    ConfigError,
    EdgeshrinkError,
    GoldenVectorsError,
    ModelError,
    ToolchainError,
)

if TYPE_CHECKING:
    import numpy.typing as npt

MAX_GOLDEN_BYTES: Final = 1 << 28
MAX_RELATIVE: Final = 1e-3  # of the largest output, where outputs are floats
TIMEOUT_S: Final = 120.0

# What a runtime on the device is called in `runtimes`, and which file of a release it runs.
READS: Final = {"litert": "tflite", "tflite-runtime": "tflite", "executorch": "pte"}


class SelfTestError(EdgeshrinkError):
    """A release does not give its golden outputs on this device."""


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """How a release did: `largest` is in codes of the output, or a share of the largest float."""

    runtime: str
    samples: int
    values: int
    largest: float
    limit: float


def self_test(
    folder: Path,
    *,
    runtime: str,
    golden: FileEntry,
    max_lsb: float,
    python: str = sys.executable,
    timeout_s: float = TIMEOUT_S,
) -> SelfTest:
    """Run the golden inputs of the release in `folder`, compare with its golden outputs.

    The model runs in a process of its own, with bounded time and memory: it may crash.

    Args:
        folder: The files of a release.
        runtime: A key of `READS`, installed here.
        golden: What was signed of the vectors.
        max_lsb: How far integer outputs may be from the golden ones, as it was signed.
        python: Whose runtime is meant.
        timeout_s: How long loading, or one inference, may take.

    Raises:
        GoldenVectorsError: The vectors are not the signed ones, or make no sense.
        SelfTestError: Outputs differ by more than is allowed, or the runtime fails or hangs.
    """
    arrays = read_golden(folder / GOLDEN, golden)
    from edgeshrink.runtimes import open_model

    path = folder / MODEL_FILES[READS[runtime]]
    specs = _specs(folder)
    try:
        with open_model(path, runtime, python=python, timeout_s=timeout_s) as runner:
            inputs = _in_order(arrays, "input", specs[0] or runner.inputs)
            wanted = _in_order(arrays, "output", specs[1] or runner.outputs)
            if READS[runtime] == "pte":  # takes and gives the model's own floats
                outputs = _stored(runner.run(*_floats(inputs, specs[0])), specs[1])
            else:
                outputs = runner.run(*inputs)
    except (ModelError, ToolchainError) as err:
        fix = "the release that was there before stays"
        raise SelfTestError(str(path.name), f"fails in {runtime} ({err})", fix) from err
    return _compare(outputs, wanted, runtime=runtime, max_lsb=max_lsb)


def _floats(stored: list[npt.NDArray[Any]], specs: tuple[IoSpec, ...]) -> list[npt.NDArray[Any]]:
    """Return what the stored arrays stand for, in the model's own layout."""
    from edgeshrink.predict import dequantize_array, from_file_layout

    return [
        from_file_layout(dequantize_array(array, spec), spec)
        for array, spec in zip(stored, specs, strict=True)
    ]


def _stored(
    values: tuple[npt.NDArray[Any], ...], specs: tuple[IoSpec, ...]
) -> tuple[npt.NDArray[Any], ...]:
    """Return the model's own outputs as its `.tflite` would have stored them."""
    from edgeshrink.predict import quantize_array, to_file_layout

    return tuple(
        quantize_array(to_file_layout(value, spec), spec)
        for value, spec in zip(values, specs, strict=True)
    )


def read_golden(path: Path, signed: FileEntry) -> Mapping[str, npt.NDArray[Any]]:
    """Return the golden arrays by name; GoldenVectorsError if they are not the signed ones."""
    import numpy as np

    fix = "nothing was installed; tell whoever publishes this fleet"
    try:
        data = path.read_bytes()
    except OSError as err:
        what = f"can't be read ({err.strerror})"
        raise GoldenVectorsError(str(path), what, fix) from err
    if file_entry(data) != signed:
        raise GoldenVectorsError(str(path.name), "holds other vectors than were signed", fix)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as members:
            if sum(member.file_size for member in members.infolist()) > MAX_GOLDEN_BYTES:
                what = f"unpacks to more than {MAX_GOLDEN_BYTES:,} bytes"
                raise GoldenVectorsError(path.name, what, fix)
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as err:
        raise GoldenVectorsError(path.name, f"holds no arrays ({err})", fix) from err


def _specs(folder: Path) -> tuple[tuple[IoSpec, ...], tuple[IoSpec, ...]]:
    """Return the inputs and outputs that the artifact states: vectors are named by them."""
    try:
        artifact = read_artifact(folder)
    except ConfigError:
        return (), ()  # a model file that edgeshrink did not make names them itself
    return artifact.inputs, artifact.outputs


def _in_order(
    arrays: Mapping[str, npt.NDArray[Any]], side: str, specs: tuple[IoSpec, ...]
) -> list[npt.NDArray[Any]]:
    """Return the golden arrays of one side, one per input or output of the file."""
    found = []
    for spec in specs:
        array = arrays.get(f"{side}/{spec.name}")
        if array is None or array.dtype.name != spec.dtype or array.shape[1:] != spec.shape[1:]:
            what = f"{side}/{spec.name} is not there, or is no {spec.dtype} of {list(spec.shape)}"
            raise GoldenVectorsError(GOLDEN, what, "build the artifact again")
        found.append(array)
    if not found or not len(found[0]):
        raise GoldenVectorsError(GOLDEN, f"has no {side} vectors", "build the artifact again")
    return found


def _compare(
    outputs: tuple[npt.NDArray[Any], ...],
    wanted: list[npt.NDArray[Any]],
    *,
    runtime: str,
    max_lsb: float,
) -> SelfTest:
    import numpy as np

    largest, limit = 0.0, max_lsb
    for number, (got, want) in enumerate(zip(outputs, wanted, strict=True)):
        if got.shape != want.shape:
            raise SelfTestError(runtime, f"output {number} is {got.shape}, golden {want.shape}")
        difference = np.abs(got.astype(np.float64) - want.astype(np.float64))
        if np.issubdtype(want.dtype, np.floating):
            limit = MAX_RELATIVE
            difference = difference / max(float(np.abs(want).max()), 1e-30)
        worst = float(difference.max()) if np.isfinite(difference).all() else float("inf")
        largest = max(largest, worst)
        if not worst <= limit:
            what = f"output {number} is {worst:.4g} from the golden one, {limit:.4g} is allowed"
            raise SelfTestError(f"self-test in {runtime}", what, "the model before it stays")
    return SelfTest(
        runtime=runtime,
        samples=len(wanted[0]),
        values=sum(array.size for array in wanted),
        largest=largest,
        limit=limit,
    )
