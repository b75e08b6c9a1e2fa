"""Run a model file in a runtime, in a process of its own that the file may crash or hang.

What the runtime does wrong ends in one `ModelError`, what is not installed in a `ToolchainError`;
the caller's process never loads a model file.
"""

from __future__ import annotations

import importlib.util
import math
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt

from edgeshrink.artifact import IoSpec
from edgeshrink.errors import ConfigError, ModelError, ToolchainError
from edgeshrink.graph import Graph
from edgeshrink.graph_reader import pack_inline, read_graph, read_model_bytes
from edgeshrink.runtimes import worker
from edgeshrink.runtimes.pte import PteInfo, read_pte
from edgeshrink.tflite_schema import BITS_PER_VALUE, NUMPY_DTYPES

PYTHON_VARIABLE: Final = "EDGESHRINK_TFLITE_RUNTIME_PYTHON"
BUILD_EXTRA: Final = "python -m pip install 'edgeshrink[build]'"
OLD_RUNTIME_EXTRA: Final = (
    "give it an environment of its own (python3.11 -m venv OLD; "
    "OLD/bin/python -m pip install 'tflite-runtime==2.14.0' 'numpy<2') "
    f"and name it: {PYTHON_VARIABLE}=OLD/bin/python"
)
CHUNK_BYTES: Final = 1 << 25  # inputs and outputs of one message
WARMUPS: Final = 3
STATIC_SHAPES: Final = "export the model with static shapes"
STARVED_SHARE: Final = 0.02  # of a processor, at least, for a worker that waits for one
MODEL_TAG: Final = "edgeshrink-model"  # what the file is called in the worker's memory map


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One runtime: what it reads, and how to get it."""

    title: str
    reads: Literal["tflite", "pte"]
    install: str = BUILD_EXTRA
    has_memory: bool = True  # whether `memory()` says something about a device


# The names are also those of the worker's LOADERS.
ENGINES: Final[Mapping[str, Engine]] = {
    "litert": Engine(title="LiteRT with XNNPACK", reads="tflite"),
    "litert-builtin": Engine(title="LiteRT's built-in kernels", reads="tflite"),
    "litert-reference": Engine(title="LiteRT's reference kernels", reads="tflite"),
    "tflm": Engine(title="TensorFlow Lite Micro", reads="tflite", has_memory=False),
    "tflite-runtime": Engine(title="tflite-runtime", reads="tflite", install=OLD_RUNTIME_EXTRA),
    "executorch": Engine(title="ExecuTorch", reads="pte"),
}


@dataclass(frozen=True, kw_only=True)
class HostMemory:
    """What a model takes in a runtime's process on this host, in bytes.

    `heap_bytes` is exact and repeats to within 3 KiB: weights that XNNPACK has packed, tensor
    arenas and the runtime's own structures are all in it. The other figures count resident pages,
    which depend on what the kernel maps around a touched page: they repeat to within 0.3 MiB.
    """

    model_file_bytes: int  # the whole file, as shipped
    model_resident_bytes: int  # pages of it still mapped after an inference; clean, evictable
    heap_bytes: int  # malloc'ed and held after an inference: arenas, packed weights, structures
    peak_bytes: int  # highest growth while loading and running, pages of the file included
    runtime_bytes: int  # resident pages of the runtime's own shared libraries
    import_bytes: int  # growth by importing the runtime; with Python bindings (and PyTorch)
    note: str


@dataclass(frozen=True, kw_only=True)
class _Model:
    """A model file that has been read, and what the worker must know about it."""

    name: str
    data: bytes
    inputs: tuple[IoSpec, ...]
    outputs: tuple[IoSpec, ...]
    details: Mapping[str, Any]


def open_model(
    model: Path | bytes,
    engine: str,
    *,
    threads: int = 1,
    python: str | Sequence[str] | None = None,
    name: str | None = None,
    timeout_s: float = 120.0,
    memory_limit_bytes: int | None = None,
) -> ModelRunner:
    """Load a model file in a worker process and return its runner; use it in a `with` statement.

    A runner belongs to the thread that opened it: the worker ends with that thread.

    Args:
        model: A `.tflite` or `.pte`, as a path or as its bytes.
        engine: A key of `ENGINES`.
        threads: Threads of the runtime.
        python: The Python that runs the worker, or the command that starts one (a `Guest`'s);
            left out, this one, but for `tflite-runtime` the one that the variable
            EDGESHRINK_TFLITE_RUNTIME_PYTHON names.
        name: What to call the model in errors; left out, its path.
        timeout_s: How long the worker may give no sign of life: an import, loading the file, one
            inference. Where others keep the processors busy, that much of a processor's time.
        memory_limit_bytes: Private memory the model may take; left out, 2 GiB and eight times
            the file.

    Raises:
        ConfigError: No such engine, or no positive number of threads.
        ModelError: The file is damaged, or the runtime can't load it, crashes, or hangs.
        ToolchainError: The runtime is not installed.
    """
    if engine not in ENGINES:
        raise ConfigError(f"engine {engine!r}", "is not known", f"choose from {', '.join(ENGINES)}")
    if threads < 1:
        raise ConfigError("threads", f"is {threads}, must be at least 1", "")
    read = _read_model(model, engine, name)
    if memory_limit_bytes is None:
        memory_limit_bytes = 2**31 + 8 * len(read.data)
    request = {
        "engine": engine,
        "threads": threads,
        "memory_limit_bytes": memory_limit_bytes,
        "inputs": [spec.name for spec in read.inputs],
        "outputs": [spec.name for spec in read.outputs],
        **read.details,
    }
    return ModelRunner(read, engine, _python_of(engine, python), request, timeout_s)


class ModelRunner:
    """A model loaded in a worker process, until `close` or the end of the `with` statement."""

    def __init__(
        self,
        model: _Model,
        engine: str,
        python: Sequence[str],
        request: dict[str, Any],
        timeout_s: float,
    ) -> None:
        self.engine = engine
        self.inputs, self.outputs = model.inputs, model.outputs
        self._model, self._python, self._request = model, python, request
        self._timeout_s = timeout_s
        self._worker = self._start()
        try:
            answer = self._worker.open(request | {"measure": False}, ())
            _check_specs(answer, model, ENGINES[engine].title)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The worker's process number."""
        return self._worker.process.pid

    def run(
        self, *arrays: npt.NDArray[Any], progress: Callable[[int], None] | None = None
    ) -> tuple[npt.NDArray[Any], ...]:
        """Run the model over a batch and return its raw outputs, one array each.

        The file has a batch of its own, mostly 1: the first axis of all its inputs. The worker
        runs as many inferences as it takes. Each starts from a fresh state.

        Args:
            arrays: One per input, (n, *shape without its first axis), in the file's dtype. n is a
                multiple of the file's batch.
            progress: Called now and then with the number of samples done.

        Returns:
            One array per output: (n, *shape without its first axis) where that axis is the
            batch, else (inferences, *shape).

        Raises:
            ModelError: The arrays don't fit the inputs, or the runtime fails, crashes or hangs.
        """
        return run_batch(self._worker, self.inputs, self.outputs, arrays, progress)

    def latency(self, repeats: int = 50) -> tuple[float, ...]:
        """Return seconds per inference, measured on this host, on random inputs.

        Inferences that warm up the caches are left out. For ExecuTorch a figure includes copying
        inputs and outputs.
        """
        arrays = _example_inputs(self.inputs)
        request = {"do": "latency", "repeats": repeats, "warmups": WARMUPS}
        seconds = self._worker.ask(request, arrays, None).get("seconds")
        if not isinstance(seconds, list) or len(seconds) != repeats:
            raise self._worker.failure("gave an answer that makes no sense")
        return tuple(float(value) for value in seconds)

    def instructions(self, counts: Path, repeats: int = 5) -> tuple[int, ...]:
        """Return the instructions of each of `repeats` inferences on the same random inputs.

        For a worker under QEMU with the plugin `arm64/count_plugin.c`, which writes to `counts`.
        Includes what the runtime's Python binding executes around an inference, some 300.

        Raises:
            ModelError: The worker was not started so, or the runtime fails.
        """
        request = {"do": "instructions", "repeats": repeats, "warmups": WARMUPS}
        request |= {"counts": str(counts)}
        found = self._worker.ask(request, _example_inputs(self.inputs), None).get("instructions")
        if not isinstance(found, list) or len(found) != repeats:
            raise self._worker.failure("gave no instruction counts")
        return tuple(int(value) for value in found)

    def memory(self) -> HostMemory:
        """Return what the model takes in this runtime on this host.

        Measured in a fresh process that loads the model once and runs one inference, so it takes
        as long as `open_model`.

        Raises:
            ToolchainError: Not Linux with glibc 2.33 or later.
            ConfigError: The engine says nothing about a device's memory (tflm).
        """
        engine = ENGINES[self.engine]
        if not engine.has_memory:
            raise ConfigError(f"engine {self.engine}", "has no memory figures of its own", "")
        _require_mallinfo2()
        fresh = self._start()
        try:
            request = self._request | {"measure": True, "mapped_as": MODEL_TAG}
            answer = fresh.open(request, _example_inputs(self.inputs))
        finally:
            fresh.close()
        return HostMemory(
            model_file_bytes=len(self._model.data),
            model_resident_bytes=answer["model_resident_bytes"],
            heap_bytes=answer["heap_bytes"],
            peak_bytes=answer["peak_bytes"],
            runtime_bytes=answer["runtime_bytes"],
            import_bytes=answer["import_bytes"],
            note=f"{engine.title} on this host, {self._request['threads']} thread(s); heap by "
            "mallinfo2, pages by /proc/self",
        )

    def close(self) -> None:
        """End the worker. Closing twice does no harm."""
        self._worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> WorkerProcess:
        return WorkerProcess(
            self._model.name, self._model.data, ENGINES[self.engine], self._python,
            self._timeout_s, worker.__file__,
        )  # fmt: skip


class WorkerProcess:
    """A worker process and the socket to it. Any failure ends it.

    Args:
        name: What to call the model in errors.
        data: The model file, which the worker gets as a path.
        engine: Its title and install line are for errors.
        python: The Python that runs the worker, or the command that starts one.
        timeout_s: How long the worker may give no sign of life; see `open_model`.
        script: The worker's program, which speaks the protocol of `worker.py`.
    """

    def __init__(
        self,
        name: str,
        data: bytes,
        engine: Engine,
        python: str | Sequence[str],
        timeout_s: float,
        script: str,
    ) -> None:
        command = (python,) if isinstance(python, str) else tuple(python)
        self.engine, self.name, self.timeout_s = engine, name, timeout_s
        self.stage, self.is_imported = "while starting", False
        ours, theirs = socket.socketpair()
        self.socket = ours
        self.chatter: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
        model_fd = os.memfd_create(MODEL_TAG)
        try:
            with open(model_fd, "wb", closefd=False) as file:
                file.write(data)
            self.model_path = f"/proc/self/fd/{model_fd}"
            self.process = subprocess.Popen(
                [*command, "-W", "ignore", script, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL, stdout=self.chatter, stderr=self.chatter,
                pass_fds=(theirs.fileno(), model_fd), env=_environment(command[0]),
            )  # fmt: skip
        except OSError as err:
            ours.close()
            self.chatter.close()
            what = f"can't be started: {err.strerror}"
            raise ToolchainError(command[0], what, self.engine.install) from err
        finally:
            theirs.close()
            os.close(model_fd)
        ours.settimeout(timeout_s)

    def open(self, request: dict[str, Any], arrays: Sequence[npt.NDArray[Any]]) -> dict[str, Any]:
        """Import the runtime, then load the model."""
        self.stage = "while being imported"
        answer = self.ask(request | {"path": self.model_path}, arrays, None)
        self.stage, self.is_imported = "while loading the model", True
        answer = self.hear(None)
        self.stage = "while running the model"
        return answer

    def ask(
        self,
        request: dict[str, Any],
        arrays: Sequence[npt.NDArray[Any]],
        alive: Callable[[int], None] | None,
    ) -> dict[str, Any]:
        """Send a request and return the header of the answer."""
        if self.socket.fileno() < 0:
            raise ModelError(
                self.name, f"its {self.engine.title} process has ended", "open it again"
            )
        try:
            worker.send(self.socket, request, arrays)
        except TimeoutError as err:
            raise self.hung() from err
        except OSError:
            pass  # the worker is gone; what it said before says why
        return self.hear(alive)

    def hear(self, alive: Callable[[int], None] | None) -> dict[str, Any]:
        """Return the header of the answer, past any signs of life."""
        while True:
            self.wait()
            try:
                answer = worker.receive_header(self.socket)
            except TimeoutError as err:
                raise self.hung() from err
            except (worker.Gone, OSError) as err:
                raise self.died() from err
            except ValueError as err:
                raise self.failure("gave an answer that makes no sense") from err
            if "error" in answer:
                raise self.reported(answer)
            if "alive" not in answer:
                return answer
            if alive and isinstance(answer["alive"], int):
                alive(answer["alive"])

    def wait(self) -> None:
        """Wait until the worker says something, or raise the error of one that hangs.

        It hangs if, in silence, it has had `timeout_s` of the clock and of a processor, or waits
        for something else than a processor.
        """
        start = before = self.processor_seconds()
        while not _is_readable(self.socket, self.timeout_s):
            now = self.processor_seconds()
            is_starved = now - before > STARVED_SHARE * self.timeout_s
            if not is_starved or now - start >= self.timeout_s:
                raise self.hung()
            before = now

    def processor_seconds(self) -> float:
        """Return the processor time that the worker has taken, all its threads; 0 once it ended."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime

    def take(
        self,
        answer: dict[str, Any],
        expected: Sequence[tuple[str, tuple[int, ...]]],
        n_calls: int,
        specs: Sequence[IoSpec],
    ) -> list[npt.NDArray[Any]]:
        """Receive the arrays of an answer, which must be (calls, *shape in the file)."""
        announced = answer.get("arrays", [])
        wanted = [[dtype, [n_calls, *shape]] for dtype, shape in expected]
        if announced != wanted:
            for spec, want, got in zip(specs, wanted, announced, strict=False):
                if want != got:
                    raise self.failure(f"gave {got} for {spec.name}, the file states {want}")
            raise self.failure(f"gave {len(announced)} outputs instead of {len(wanted)}")
        return self.receive(wanted)

    def receive(self, announced: Sequence[Any]) -> list[npt.NDArray[Any]]:
        """Receive arrays, each announced as (dtype, shape)."""
        try:
            return [worker.receive_array(self.socket, dtype, shape) for dtype, shape in announced]
        except TimeoutError as err:
            raise self.hung() from err
        except (worker.Gone, OSError) as err:
            raise self.died() from err

    def reported(self, answer: dict[str, Any]) -> ModelError | ToolchainError:
        """Return the error for what the worker said of itself."""
        if answer.get("missing") is not None:
            what = f"can't be imported ({answer['error']})"
            self.close()
            return ToolchainError(self.engine.title, what, self.engine.install)
        if "fix" in answer:  # the worker knows better than we do
            self.close()
            return ModelError(self.name, str(answer["error"]), str(answer["fix"]))
        return self.failure(f"failed {self.stage}: {answer['error']}")

    def hung(self) -> ModelError | ToolchainError:
        """Return the error for a worker that gives no sign of life."""
        return self.failure(f"gave no sign of life for {self.timeout_s:g} s {self.stage}")

    def died(self) -> ModelError | ToolchainError:
        """Return the error for a worker that has ended without a word."""
        try:
            code = self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return self.failure(f"hung up {self.stage}")
        if code >= 0:
            return self.failure(f"ended with exit code {code} {self.stage}")
        try:
            reason = signal.Signals(-code).name
        except ValueError:
            reason = f"signal {-code}"
        if -code == signal.SIGKILL:
            reason += ", perhaps for lack of memory"
        return self.failure(f"crashed ({reason}) {self.stage}")

    def failure(self, what: str) -> ModelError | ToolchainError:
        """End the worker and return the error: of the tool until it is there, then of the model."""
        words = self.last_words()
        self.close()
        what += f" ({words})" if words else ""
        if not self.is_imported:
            return ToolchainError(self.engine.title, what, self.engine.install)
        fix = (
            "the file is damaged, or uses what this runtime lacks: export it again, or try another"
        )
        return ModelError(self.name, f"{self.engine.title} {what}", fix)

    def last_words(self) -> str:
        """Return the last lines that the runtime printed and that are not mere information."""
        if self.chatter.closed:
            return ""
        size = os.fstat(self.chatter.fileno()).st_size
        tail = os.pread(self.chatter.fileno(), 4096, max(0, size - 4096))
        lines = [line.strip() for line in tail.decode(errors="replace").splitlines()]
        lines = [line for line in lines if line and not line.startswith(("INFO", "I0", "W0"))]
        return " | ".join(lines[-3:])[-500:]

    def close(self) -> None:
        """End the process and wait for it."""
        self.socket.close()
        self.chatter.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def _is_readable(connection: socket.socket, timeout_s: float) -> bool:
    """Return whether there is something to receive, or an end, before the time is over."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def run_batch(
    process: WorkerProcess,
    inputs: Sequence[IoSpec],
    outputs: Sequence[IoSpec],
    arrays: Sequence[npt.NDArray[Any]],
    progress: Callable[[int], None] | None,
) -> tuple[npt.NDArray[Any], ...]:
    """Have the worker run a batch; see `ModelRunner.run`."""
    calls, batch = arrange(process.name, inputs, arrays)
    n_calls = len(calls[0]) if calls else 1
    call_bytes = sum(array[:1].nbytes for array in calls)
    call_bytes += sum(_n_bytes(spec) for spec in outputs)
    step = max(1, CHUNK_BYTES // max(1, call_bytes))
    expected = [(spec.dtype, spec.shape) for spec in outputs]
    results = [np.empty((n_calls, *shape), dtype) for dtype, shape in expected]
    for first in range(0, n_calls, step):
        count = min(step, n_calls - first)
        chunk = [array[first : first + count] for array in calls]

        def alive(done: int, first: int = first) -> None:
            if progress:
                progress((first + done) * batch)

        answer = process.ask({"do": "run", "calls": count}, chunk, alive)
        for result, array in zip(
            results, process.take(answer, expected, count, outputs), strict=True
        ):
            result[first : first + count] = array
        alive(count)
    return tuple(
        result.reshape(n_calls * batch, *shape[1:]) if shape[:1] == (batch,) else result
        for result, (_, shape) in zip(results, expected, strict=True)
    )


def arrange(
    name: str, inputs: Sequence[IoSpec], arrays: Sequence[npt.NDArray[Any]]
) -> tuple[list[npt.NDArray[Any]], int]:
    """Return the arrays of a batch as (inferences, *shape in the file), and the file's batch."""
    place = f"{name}: inputs"
    if len(arrays) != len(inputs):
        raise ModelError(place, f"{len(arrays)} given, the model takes {len(inputs)}", "")
    batches = {spec.shape[0] if spec.shape else 0 for spec in inputs}
    batch = batches.pop() if len(batches) == 1 else 0
    if batch == 0:  # inputs that share no first axis: one inference, arrays as the file has them
        arrays, batch = [np.asarray(array)[np.newaxis] for array in arrays], 1
        inner = [spec.shape for spec in inputs]
    else:
        inner = [spec.shape[1:] for spec in inputs]
    count = arrays[0].shape[0] if arrays and arrays[0].ndim else 0
    for spec, array, shape in zip(inputs, arrays, inner, strict=True):
        if array.dtype != spec.dtype or array.shape != (count, *shape):
            what = f"got {array.dtype} {array.shape}, takes {spec.dtype} (n, "
            what += f"{', '.join(map(str, shape))}), the same n for every input"
            raise ModelError(f"{place}: {spec.name}", what, "")
    if count % batch:
        what = f"got {count} samples, the file takes {batch} at a time"
        raise ModelError(place, what, f"give a multiple of {batch}")
    return [
        array.reshape(count // batch, *spec.shape)
        for spec, array in zip(inputs, arrays, strict=True)
    ], batch


def _read_model(model: Path | bytes, engine: str, name: str | None) -> _Model:
    """Read the file as far as it takes to trust its inputs and outputs."""
    reads = ENGINES[engine].reads
    name = name or (f"model.{reads}" if isinstance(model, bytes) else str(model))
    data = model if isinstance(model, bytes) else read_model_bytes(model)
    if reads == "pte":
        info = read_pte(data, name=name)
        read = _Model(
            name=name, data=data, inputs=info.inputs, outputs=info.outputs,
            details=_pte_details(info),
        )  # fmt: skip
    else:
        graph = read_graph(data, name=name)
        if engine == "tflm":
            data = pack_inline(data, name=name)
        read = _Model(
            name=name, data=data, inputs=_specs(graph, graph.inputs, graph.input_names),
            outputs=_specs(graph, graph.outputs, graph.output_names),
            details={"is_stateful": _is_stateful(graph), "arena_bytes": _generous_arena(graph)},
        )  # fmt: skip
    for spec in (*read.inputs, *read.outputs):
        if spec.dtype not in NUMPY_DTYPES:
            what = f"is of type {spec.dtype}, which can't be run here"
            raise ModelError(f"{name}: {spec.name}", what, "export the model with another type")
    return read


def _pte_details(info: PteInfo) -> dict[str, Any]:
    return {"method": info.method, "dim_orders": [list(order) for order in info.input_dim_orders]}


def _specs(graph: Graph, indices: Sequence[int], names: Sequence[str]) -> tuple[IoSpec, ...]:
    specs = []
    for index, name in zip(indices, names, strict=True):
        tensor = graph.tensors[index]
        scale, zero_point = None, None
        if tensor.quantization is not None and tensor.quantization.scales.size == 1:
            scale = float(tensor.quantization.scales[0])
            zero_point = int(tensor.quantization.zero_points[0])
        specs.append(
            IoSpec(
                name=name,
                shape=tensor.shape,
                dtype=tensor.dtype,
                scale=scale,
                zero_point=zero_point,
            )
        )
    return tuple(specs)


def _is_stateful(graph: Graph) -> bool:
    return any(
        tensor.is_variable or tensor.dtype == "resource"
        for part in (graph, *graph.subgraphs)
        for tensor in part.tensors
    )


def _generous_arena(graph: Graph) -> int:
    """Return an arena size in bytes that TFLM needs less than: no tensor shares memory there."""
    total = 1 << 20
    for part in (graph, *graph.subgraphs):
        total += 1024 * (len(part.tensors) + len(part.ops))
        for tensor in part.tensors:
            if tensor.data is None:
                bits = BITS_PER_VALUE.get(tensor.dtype) or 8
                total += 2 * math.prod(tensor.shape) * max(8, bits) // 8
    return min(total, 1 << 30)


def _n_bytes(spec: IoSpec) -> int:
    return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize


def _example_inputs(specs: Sequence[IoSpec]) -> list[npt.NDArray[Any]]:
    """Return one random inference's inputs, (1, *shape): the same ones every time."""
    generator = np.random.default_rng(0)
    arrays: list[npt.NDArray[Any]] = []
    for spec in specs:
        shape, dtype = (1, *spec.shape), np.dtype(spec.dtype)
        if dtype.kind == "f":
            arrays.append(generator.standard_normal(shape).astype(dtype))
        elif spec.dtype in ("int8", "uint8", "int16"):
            limits = np.iinfo(spec.dtype)
            arrays.append(generator.integers(limits.min, limits.max, shape, dtype, endpoint=True))
        else:  # indices, lengths, conditions: 0 is in range
            arrays.append(np.zeros(shape, dtype))
    return arrays


def _check_specs(answer: dict[str, Any], model: _Model, title: str) -> None:
    """Refuse a model that the runtime understands otherwise than the reader."""
    specs = [*model.inputs, *model.outputs]
    stated = [[spec.dtype, list(spec.shape)] for spec in specs]
    understood = [entry for side in answer["specs"] for entry in side]
    for spec, want, got in zip_longest(specs, stated, understood):
        if want != got:
            place = f"{model.name}: {spec.name}" if spec else model.name
            raise ModelError(place, f"the file states {want}, {title} says {got}", STATIC_SHAPES)


def _python_of(engine: str, python: str | Sequence[str] | None) -> tuple[str, ...]:
    if python is not None:
        return (python,) if isinstance(python, str) else tuple(python)
    if engine != "tflite-runtime":
        return (sys.executable,)
    other = os.environ.get(PYTHON_VARIABLE)
    if other:
        return (other,)
    if importlib.util.find_spec("tflite_runtime") is None:
        raise ToolchainError("tflite-runtime", "is not installed", ENGINES[engine].install)
    return (sys.executable,)


def _environment(python: str) -> dict[str, str]:
    """Return the worker's environment; another Python does not get this one's search path."""
    environment = dict(os.environ)
    if python != sys.executable:
        for variable in ("PYTHONPATH", "PYTHONHOME"):
            environment.pop(variable, None)
    return environment


def _require_mallinfo2() -> None:
    try:
        worker.heap_bytes()
    except AttributeError as err:
        raise ToolchainError(
            "the C library", "can't say what it has allocated", "use Linux with glibc 2.33 or later"
        ) from err
