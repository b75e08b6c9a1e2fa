"""The worker process: loads one model file in one runtime, and runs it for its parent.

Depends on the standard library, numpy and the runtime it loads, and runs on Python 3.9 or later, so
that any Python can start it: `python worker.py SOCKET_FD PARENT_PID`. Parent and worker take turns
on a socket; a message is the length of a JSON header (4 bytes, little-endian), the header, and the
bytes of the arrays that the header announces. Nothing is unpickled on either side.

The parent asks for `open` (once), `run`, `latency` or `instructions`. The worker answers with `ok`,
with `alive` between two inferences when an answer takes long, or with `error` and ends. Whatever
the runtime prints goes where the parent sent stdout and stderr.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its modules must not hide others of the same name

import ctypes
import gc
import json
import os
import resource
import signal
import socket
import struct
import time
from typing import Any

import numpy as np

ALIVE_EVERY_S = 0.5
COUNT_MARK = 0x65730001  # of arm64/count_plugin.c
MAX_HEADER_BYTES = 1 << 24
PR_SET_PDEATHSIG = 1


class Gone(Exception):  # noqa: N818
    """The other side has closed the connection."""


def send(connection: socket.socket, header: dict[str, Any], arrays: Any = ()) -> None:
    """Send a message: `header`, and arrays of any shape and plain dtype."""
    header = dict(header, arrays=[[array.dtype.name, list(array.shape)] for array in arrays])
    text = json.dumps(header).encode()
    connection.sendall(struct.pack("<I", len(text)) + text)
    for array in arrays:
        connection.sendall(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def receive_header(connection: socket.socket) -> dict[str, Any]:
    """Return the header of the next message; the arrays it announces are still to be received.

    Raises Gone at the end of the connection, ValueError for anything that is not a header.
    """
    length = int.from_bytes(_receive_exactly(connection, 4), "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes")
    header = json.loads(_receive_exactly(connection, length))
    if not isinstance(header, dict):
        raise ValueError("a header that is not an object")
    return header


def receive_array(connection: socket.socket, dtype: str, shape: Any) -> Any:
    """Return the next array of the message, of the dtype and shape its header announced."""
    array = np.empty(shape, np.dtype(dtype))
    _receive_into(connection, array.reshape(-1).view(np.uint8).data)
    return array


def _receive_exactly(connection: socket.socket, n_bytes: int) -> bytearray:
    content = bytearray(n_bytes)
    _receive_into(connection, memoryview(content))
    return content


def _receive_into(connection: socket.socket, view: Any) -> None:
    while len(view):
        count = connection.recv_into(view)
        if count == 0:
            raise Gone("the connection is closed")
        view = view[count:]


class Tflite:
    """A `.tflite` in LiteRT or tflite-runtime. `resolver` is the name of an OpResolverType."""

    def __init__(self, package: str, resolver: str) -> None:
        if package == "tflite_runtime":
            from tflite_runtime import interpreter  # type: ignore[import-not-found, unused-ignore]
        else:
            from ai_edge_litert import interpreter
        self.module, self.libraries = interpreter, package
        self.resolver = getattr(interpreter.OpResolverType, resolver)

    def prepare(self, arrays: Any) -> Any:
        """Return inputs in the form `invoke` takes."""
        return [np.ascontiguousarray(array) for array in arrays]

    def load(self, path: str, request: dict[str, Any]) -> None:
        """Load the file and allocate what it needs."""
        self.interpreter = self.module.Interpreter(
            model_path=path,
            num_threads=request["threads"],
            experimental_op_resolver_type=self.resolver,
        )
        self.interpreter.allocate_tensors()
        self.is_stateful = request["is_stateful"]
        self.input_ids = [d["index"] for d in self.interpreter.get_input_details()]
        self.output_ids = [d["index"] for d in self.interpreter.get_output_details()]

    def specs(self) -> Any:
        """Return (dtype, shape) of each input, and of each output."""
        details = self.interpreter.get_input_details(), self.interpreter.get_output_details()
        return [
            [[np.dtype(d["dtype"]).name, [int(size) for size in d["shape"]]] for d in side]
            for side in details
        ]

    def set_inputs(self, inputs: Any) -> None:
        """Set the inputs of the next inference, which starts from a fresh state."""
        if self.is_stateful:
            self.interpreter.reset_all_variables()
        for index, array in enumerate(inputs):
            self.interpreter.set_tensor(self.input_ids[index], array)

    def invoke(self) -> None:
        """Run one inference."""
        self.interpreter.invoke()

    def outputs(self) -> Any:
        """Return copies of the outputs."""
        return [self.interpreter.get_tensor(index) for index in self.output_ids]


class Tflm:
    """A `.tflite` in TensorFlow Lite Micro's interpreter."""

    libraries = "tflite_micro"

    def __init__(self) -> None:
        from tflite_micro.python.tflite_micro import runtime

        self.runtime = runtime

    def prepare(self, arrays: Any) -> Any:
        """Return inputs in the form `invoke` takes."""
        return [np.ascontiguousarray(array) for array in arrays]

    def load(self, path: str, request: dict[str, Any]) -> None:
        """Load the file into an arena of `request["arena_bytes"]`."""
        self.source = path, request["arena_bytes"]
        self.start()
        self.is_stateful = request["is_stateful"]
        self.n_inputs, self.n_outputs = len(request["inputs"]), len(request["outputs"])

    def start(self) -> None:
        """Make an interpreter, with all state as the model has it at first."""
        path, arena_bytes = self.source
        self.interpreter = self.runtime.Interpreter.from_file(path, arena_size=arena_bytes)

    def specs(self) -> Any:
        """Return (dtype, shape) of each input, and of each output."""
        sides = (
            [self.interpreter.get_input_details(i) for i in range(self.n_inputs)],
            [self.interpreter.get_output_details(i) for i in range(self.n_outputs)],
        )
        return [
            [[np.dtype(d["dtype"]).name, [int(size) for size in d["shape"]]] for d in side]
            for side in sides
        ]

    def set_inputs(self, inputs: Any) -> None:
        """Set the inputs of the next inference, which starts from a fresh state."""
        if self.is_stateful:  # `reset` would not run the subgraphs of CALL_ONCE again
            self.start()
        for index, array in enumerate(inputs):
            self.interpreter.set_input(array, index)

    def invoke(self) -> None:
        """Run one inference."""
        self.interpreter.invoke()

    def outputs(self) -> Any:
        """Return copies of the outputs."""
        return [np.array(self.interpreter.get_output(i)) for i in range(self.n_outputs)]


class ExecuTorch:
    """A `.pte` in ExecuTorch's runtime: portable, quantized and XNNPACK kernels."""

    libraries = "executorch"

    def __init__(self) -> None:
        import torch  # before the binding, which needs its libraries

        # The binding itself: `executorch.runtime`, a thin layer above it, imports all of the
        # exporter and takes 5 s more (version 1.5.1).
        from executorch.extension.pybindings import _C

        import executorch.kernels.quantized  # noqa: F401  # isort: skip  registers its kernels

        self.torch, self.binding = torch, _C
        torch.zeros(1).contiguous().numpy()  # PyTorch's own first-use costs are not the model's

    def prepare(self, arrays: Any) -> Any:
        """Return inputs in the form `invoke` takes: tensors in the file's memory order."""
        tensors = []
        for index, array in enumerate(arrays):
            order = self.dim_orders[index]
            stored = np.ascontiguousarray(np.transpose(array, order))
            if not stored.flags.writeable:
                stored = stored.copy()
            back = [order.index(axis) for axis in range(len(order))]
            tensors.append(self.torch.from_numpy(stored).permute(back))
        return tensors

    def configure(self, request: dict[str, Any]) -> None:
        """Take over what must be known before the file is loaded."""
        self.dim_orders = request["dim_orders"]
        self.torch.set_num_threads(request["threads"])
        self.binding._unsafe_reset_threadpool(request["threads"])

    def load(self, path: str, request: dict[str, Any]) -> None:
        """Load the program and its method."""
        self.program = self.binding._load_program(
            path,
            enable_etdump=False,
            debug_buffer_size=0,
            program_verification=self.binding.Verification.InternalConsistency,
            data_path=None,
        )
        self.method = self.program.load_method(request["method"])
        self.results: Any = ()

    def specs(self) -> Any:
        """Return (dtype, shape) of each input, and of each output."""
        meta = self.method.method_meta()
        sides = (
            [meta.input_tensor_meta(i) for i in range(meta.num_inputs())],
            [meta.output_tensor_meta(i) for i in range(meta.num_outputs())],
        )
        names = {6: "float32", 0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64",
                 5: "float16", 7: "float64", 11: "bool"}  # fmt: skip
        return [[[names.get(t.dtype(), "other"), list(t.sizes())] for t in side] for side in sides]

    def set_inputs(self, inputs: Any) -> None:
        """Set the inputs of the next inference."""
        self.inputs = inputs

    def invoke(self) -> None:
        """Run one inference; copies inputs and outputs, as the runtime's binding does."""
        self.results = self.method(self.inputs)

    def outputs(self) -> Any:
        """Return copies of the outputs."""
        return [np.array(tensor.detach().contiguous().numpy()) for tensor in self.results]


LOADERS: dict[str, Any] = {
    "litert": lambda: Tflite("ai_edge_litert", "AUTO"),
    "litert-builtin": lambda: Tflite("ai_edge_litert", "BUILTIN_WITHOUT_DEFAULT_DELEGATES"),
    "litert-reference": lambda: Tflite("ai_edge_litert", "BUILTIN_REF"),
    "tflm": Tflm,
    "tflite-runtime": lambda: Tflite("tflite_runtime", "AUTO"),
    "executorch": ExecuTorch,
}


class _MallInfo2(ctypes.Structure):
    """`struct mallinfo2` of glibc 2.33 and later."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd",
            "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def heap_bytes() -> int:
    """Return the bytes that malloc has given out and not got back, over all its arenas."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _MallInfo2
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)


def process_status() -> dict[str, int]:
    """Return the sizes in /proc/self/status (VmRSS, VmHWM, VmData, ...) in bytes."""
    with open("/proc/self/status", encoding="ascii") as lines:  # noqa: PTH123
        pairs = [line.split(":", 1) for line in lines]
    return {key: int(value.split()[0]) * 1024 for key, value in pairs if value.endswith("kB\n")}


def resident_bytes(part_of_path: str) -> int:
    """Return the resident bytes of the mappings whose file's path contains `part_of_path`."""
    total, is_wanted = 0, False
    with open("/proc/self/smaps", encoding="utf-8", errors="replace") as lines:  # noqa: PTH123
        for line in lines:
            key, _, value = line.partition(" ")
            if not key.endswith(":"):
                path = line.split(None, 5)[5:]
                is_wanted = bool(path) and part_of_path in path[0]
            elif key == "Rss:" and is_wanted:
                total += int(value.split()[0]) * 1024
    return total


def reset_peak() -> None:
    """Make VmHWM start again from what is resident now."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:  # noqa: PTH123
        file.write("5")


def limit_memory(n_bytes: int) -> None:
    """Allow `n_bytes` of private memory beyond what is in use now; further requests fail."""
    limit = process_status()["VmData"] + n_bytes
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def open_file(engine: Any, request: dict[str, Any], arrays: Any) -> dict[str, Any]:
    """Load the model; with `measure`, run it once on `arrays` and say what memory that took."""
    if hasattr(engine, "configure"):
        engine.configure(request)
    if not request["measure"]:
        limit_memory(request["memory_limit_bytes"])
        engine.load(request["path"], request)
        return {"specs": engine.specs()}
    inputs = engine.prepare([array[0] for array in arrays])
    gc.collect()
    gc.disable()
    limit_memory(request["memory_limit_bytes"])
    reset_peak()
    heap_before, before = heap_bytes(), process_status()
    engine.load(request["path"], request)
    engine.set_inputs(inputs)
    engine.invoke()
    heap_after, after = heap_bytes(), process_status()
    # The model lies in shared memory (a memfd), so growth in RssFile is pages of libraries.
    library_growth = after["RssFile"] - before["RssFile"]
    return {
        "specs": engine.specs(),
        "heap_bytes": heap_after - heap_before,
        "peak_bytes": after["VmHWM"] - before["VmRSS"] - library_growth,
        "runtime_bytes": resident_bytes(os.sep + engine.libraries + os.sep),
        "model_resident_bytes": resident_bytes(request["mapped_as"]),
    }


def run(connection: socket.socket, engine: Any, n_calls: int, arrays: Any) -> None:
    """Run `n_calls` inferences; the arrays are (calls, *shape in the file), as are the outputs."""
    collected: Any = None
    told = time.monotonic()
    for call in range(n_calls):
        engine.set_inputs(engine.prepare([array[call] for array in arrays]))
        engine.invoke()
        results = engine.outputs()
        if collected is None:
            collected = [np.empty((n_calls,) + r.shape, r.dtype) for r in results]  # noqa: RUF005
        for index, result in enumerate(results):
            if result.shape != collected[index].shape[1:]:
                raise ValueError(f"output {index} changes its shape: it is now {result.shape}")
            collected[index][call] = result
        if time.monotonic() - told > ALIVE_EVERY_S:
            told = time.monotonic()
            send(connection, {"alive": call + 1})
    send(connection, {"ok": n_calls}, collected or [])


def measure_latency(
    connection: socket.socket, engine: Any, repeats: int, warmups: int, arrays: Any
) -> None:
    """Time each of `repeats` inferences on the same inputs, after some that do not count."""
    inputs = engine.prepare([array[0] for array in arrays])
    seconds = []
    told = time.monotonic()
    for _ in range(warmups + repeats):
        engine.set_inputs(inputs)
        start = time.perf_counter()
        engine.invoke()
        seconds.append(time.perf_counter() - start)
        if time.monotonic() - told > ALIVE_EVERY_S:
            told = time.monotonic()
            send(connection, {"alive": len(seconds)})
    send(connection, {"ok": repeats, "seconds": seconds[warmups:]})


def count_instructions(connection: socket.socket, engine: Any, request: Any, arrays: Any) -> None:
    """Count each of `repeats` inferences on the same inputs, after some that do not count.

    The emulator's plugin appends its count to a file at each mark: a pair with nothing between
    them, then a pair around an inference.
    """
    prctl = ctypes.CDLL(None).prctl
    inputs = engine.prepare([array[0] for array in arrays])
    for _ in range(request["warmups"]):
        engine.set_inputs(inputs)
        engine.invoke()
    before = os.stat(request["counts"]).st_size  # noqa: PTH116
    for _ in range(request["repeats"]):
        engine.set_inputs(inputs)
        prctl(COUNT_MARK, 0, 0, 0, 0)
        prctl(COUNT_MARK, 0, 0, 0, 0)
        prctl(COUNT_MARK, 0, 0, 0, 0)
        engine.invoke()
        prctl(COUNT_MARK, 0, 0, 0, 0)
    with open(request["counts"], "rb") as file:  # noqa: PTH123
        file.seek(before)
        marks = np.frombuffer(file.read(), np.uint64).astype(np.int64)
    marks = marks[: marks.size // 4 * 4].reshape(-1, 4)
    counts = (marks[:, 3] - marks[:, 2]) - (marks[:, 1] - marks[:, 0])
    send(connection, {"ok": len(counts), "instructions": [int(count) for count in counts]})


def serve(connection: socket.socket) -> None:
    """Open the model the first message names, then do what each further one asks, to the end."""
    request = receive_header(connection)
    arrays = [receive_array(connection, *spec) for spec in request["arrays"]]
    before = process_status()["VmRSS"] if request["measure"] else 0
    engine = LOADERS[request["engine"]]()
    imported = process_status()["VmRSS"] - before if request["measure"] else 0
    send(connection, {"ok": "imported"})
    send(connection, dict(open_file(engine, request, arrays), ok="opened", import_bytes=imported))
    while True:
        try:
            request = receive_header(connection)
        except Gone:
            return
        arrays = [receive_array(connection, *spec) for spec in request["arrays"]]
        if request["do"] == "run":
            run(connection, engine, request["calls"], arrays)
        elif request["do"] == "instructions":
            count_instructions(connection, engine, request, arrays)
        else:
            measure_latency(connection, engine, request["repeats"], request["warmups"], arrays)


def main(socket_fd: int, parent_pid: int) -> None:
    """Serve the parent until it closes the connection or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business; it ends us
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before the line above
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = socket.socket(fileno=socket_fd)

    def report(kind: Any, error: Any, trace: Any) -> None:
        missing = error.name or str(error) if issubclass(kind, ImportError) else None
        text = "%s: %s" % (kind.__name__, error)  # noqa: UP031
        send(connection, {"error": text[:4000], "missing": missing})
        os._exit(1)

    sys.excepthook = report
    serve(connection)
    sys.stderr.flush()
    os._exit(0)  # without the runtimes' own teardown, which has nothing left to do


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
