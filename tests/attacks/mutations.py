"""Model files that went wrong: random bytes, and random changes of what the file says.

Bytes at random mostly end in the file's reader. Changes of fields (shapes, types, indices, options,
constants) leave a well-formed file, and so reach passes and lowering.
"""

from __future__ import annotations

import faulthandler
import random
import signal
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as S

from edgeshrink.codegen import generate
from edgeshrink.errors import EdgeshrinkError
from edgeshrink.graph_reader import read_graph
from edgeshrink.lowering import lower
from edgeshrink.passes import run_passes
from tests.int8_nets import Int8Net, random_net
from tests.kernels.recurrent_models import lstm_model, svdf_model
from tests.kernels.stateful_models import computed_initial_values, delay_line
from tests.kernels.test_int16_layers import layer
from tests.kernels.test_matmul import matmul_model
from tests.kernels.test_shapes import model
from tests.kernels.test_transpose_conv import transpose_conv_model
from tests.tiny_models import TfliteBuilder, fully_connected, pack, unpack

HANG_S = 20
INTERESTING = (0, 1, -1, 2, 3, 7, 127, 128, 255, 256, 32767, 65536, 2**31 - 1, -(2**31), 2**24)


def _ints(*values: Any) -> np.ndarray:
    return np.array(values, np.int32)


def one_op(
    kind: str,
    x_shape: tuple[int, ...],
    y_shape: tuple[int, ...],
    *,
    options: Any,
    y_type: str = "INT8",
    y_scale: float | None = None,
    y_zero: int = 0,
    more: tuple[np.ndarray, ...] | list[np.ndarray] = (),
) -> bytes:
    build = TfliteBuilder()
    x = build.tensor("x", x_shape, "INT8", scale=0.1)
    constants = [build.tensor(f"c{i}", c.shape, "INT32", data=c) for i, c in enumerate(more)]
    y = build.tensor("y", y_shape, y_type, scale=y_scale, zero_point=y_zero)
    build.op(kind, [x, *constants], [y], options)
    build.graph.inputs, build.graph.outputs = [x], [y]
    return build.bytes()


def seeds() -> dict[str, bytes]:
    """Small models with every operator that can be compiled."""
    found = {f"random net {seed}": random_net(seed) for seed in range(8)}
    found |= {
        "dense": fully_connected(),
        "variable": delay_line(initial=np.array([[1, 2, 3, 4]], np.int8), twice=True),
        "initial values": computed_initial_values(),
        "svdf": svdf_model(),
        "svdf int8": svdf_model(wide=False),
        "lstm": lstm_model(),
        "matmul": matmul_model((2, 3, 4), (2, 4, 5), (2, 3, 5)),
        "matmul int16": matmul_model((3, 4), (4, 5), (3, 5), dtype="INT16"),
        "transposed convolution": transpose_conv_model(),
        "pad": model("PADV2", [(2, 3), _ints([1, 0], [0, 2]), np.array([7], np.int8)], [(3, 5)],
                     S.PadV2OptionsT(), constants=(1, 2)),
        "split": model("SPLIT", [_ints(1), (2, 6)], [(2, 3), (2, 3)],
                       S.SplitOptionsT(numSplits=2), constants=(0,)),
        "split v": model("SPLIT_V", [(2, 6), _ints(2, 4), _ints(1)], [(2, 2), (2, 4)],
                         S.SplitVOptionsT(numSplits=2), constants=(1, 2)),
        "transpose": model("TRANSPOSE", [(2, 3, 4), _ints(2, 0, 1)], [(4, 2, 3)],
                           S.TransposeOptionsT(), constants=(1,)),
        "pack": model("PACK", [(2, 3), (2, 3)], [(2, 2, 3)], S.PackOptionsT(axis=1, valuesCount=2)),
        "unpack": model("UNPACK", [(2, 2, 3)], [(2, 3)] * 2, S.UnpackOptionsT(axis=1, num=2)),
        "strided slice": model("STRIDED_SLICE", [(4, 5), _ints(1, 0), _ints(3, 5), _ints(1, 2)],
                               [(2, 3)], S.StridedSliceOptionsT(), constants=(1, 2, 3)),
        "slice": model("SLICE", [(4, 5), _ints(1, 0), _ints(2, 3)], [(2, 3)], S.SliceOptionsT(),
                       constants=(1, 2)),
        "gather": model("GATHER", [(4, 5), _ints(1, 0, 3)], [(4, 3)], S.GatherOptionsT(axis=1),
                        constants=(1,)),
        "bilinear": model("RESIZE_BILINEAR", [(1, 3, 4, 2), _ints(5, 6)], [(1, 5, 6, 2)],
                          S.ResizeBilinearOptionsT(), constants=(1,)),
        "nearest": model("RESIZE_NEAREST_NEIGHBOR", [(1, 3, 4, 2), _ints(5, 6)], [(1, 5, 6, 2)],
                         S.ResizeNearestNeighborOptionsT(), constants=(1,)),
        "space to depth": model("SPACE_TO_DEPTH", [(1, 4, 4, 2)], [(1, 2, 2, 8)],
                                S.SpaceToDepthOptionsT(blockSize=2)),
        "depth to space": model("DEPTH_TO_SPACE", [(1, 2, 2, 8)], [(1, 4, 4, 2)],
                                S.DepthToSpaceOptionsT(blockSize=2)),
        "space to batch": model("SPACE_TO_BATCH_ND", [(1, 4, 4, 1), _ints(2, 2),
                                _ints([0, 0], [0, 0])], [(4, 2, 2, 1)],
                                S.SpaceToBatchNDOptionsT(), constants=(1, 2)),
        "pad with the zero point": model("PAD", [(2, 3), _ints([1, 0], [0, 2])], [(3, 5)],
                                         S.PadOptionsT(), constants=(1,)),
        "batch to space": model("BATCH_TO_SPACE_ND", [(4, 2, 2, 1), _ints(2, 2),
                                _ints([0, 1], [0, 0])], [(1, 3, 4, 1)],
                                S.BatchToSpaceNDOptionsT(), constants=(1, 2)),
        "mirror": model("MIRROR_PAD", [(3, 4), _ints([1, 1], [2, 0])], [(5, 6)],
                        S.MirrorPadOptionsT(), constants=(1,)),
        "broadcast": model("BROADCAST_TO", [(1, 4), _ints(3, 4)], [(3, 4)],
                           S.BroadcastToOptionsT(), constants=(1,)),
        "arg max": one_op("ARG_MAX", (2, 5), (2,), y_type="INT32", more=[_ints(1)],
                          options=S.ArgMaxOptionsT(outputType=S.TensorType.INT32)),
        "l2": one_op("L2_NORMALIZATION", (2, 5), (2, 5), y_scale=1 / 128,
                     options=S.L2NormOptionsT()),
        "log softmax": one_op("LOG_SOFTMAX", (2, 5), (2, 5), y_scale=16 / 256, y_zero=127,
                              options=S.LogSoftmaxOptionsT()),
        "squeeze": model("SQUEEZE", [(1, 5)], [(5,)], S.SqueezeOptionsT(squeezeDims=[0])),
        "expand": model("EXPAND_DIMS", [(5,), _ints(0)], [(1, 5)], S.ExpandDimsOptionsT(),
                        constants=(1,)),
    }  # fmt: skip
    for kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        found[f"{kind} int16"] = layer(kind)
    net = Int8Net(4)
    x = net.input((1, 4, 4, 3))
    y = net.unary("SOFTMAX", net.unary("HARD_SWISH", net.unary("LEAKY_RELU", x)))
    z = net.binary("MINIMUM", x, net.binary("MAXIMUM", x, x, y=net.like(x)), y=net.like(x))
    found["pointwise"] = net.finish(y, net.unary("ELU", z), net.mean(z))
    return found


def compile_bytes(data: bytes, isa: tuple[str, ...] = ("dsp", "mul")) -> str:
    """Compile a file to C; return "compiled", or how it was refused. All else is raised."""
    signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(HANG_S)
    try:
        graph = read_graph(data, name="a file")
    except EdgeshrinkError as err:
        return _checked("not read", err)
    else:
        try:
            lowered = lower(run_passes(graph)[0], isa)
            generate(lowered, "fuzzed")
        except EdgeshrinkError as err:
            return _checked("not compiled", err)
        return "compiled"
    finally:
        signal.alarm(0)


def _checked(outcome: str, err: EdgeshrinkError) -> str:
    assert err.where, err
    assert err.what, err
    assert err.fix, err
    return outcome


def _hangs(*_: Any) -> None:
    faulthandler.dump_traceback()
    raise AssertionError(f"takes more than {HANG_S} s")


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return `data` with random bytes, or with random changes of its fields."""
    if rng.random() < 0.3:
        return _bytes(data, rng)
    while True:
        file = unpack(data)
        try:
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                rng.choice(FIELDS)(file, rng)
            return pack(file)
        except (struct.error, TypeError, AssertionError, OverflowError, ValueError, IndexError):
            continue  # a value that the format can't hold


def _bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at = rng.randrange(len(changed))
        kind = rng.randrange(4)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at] = rng.randrange(256)
        elif kind == 2 and at + 4 <= len(changed):
            changed[at : at + 4] = (rng.choice(INTERESTING) & 0xFFFFFFFF).to_bytes(4, "little")
        else:
            del changed[at : at + rng.randrange(1, 9)]
    return bytes(changed)


def _graph(file: Any, rng: random.Random) -> Any:
    return rng.choice(file.subgraphs)


def _tensor(file: Any, rng: random.Random) -> Any:
    return rng.choice(_graph(file, rng).tensors)


def _size(rng: random.Random) -> int:
    return rng.choice((*INTERESTING, *range(1, 9)))


def _shape(file: Any, rng: random.Random) -> None:
    tensor = _tensor(file, rng)
    shape = [int(n) for n in _tensor_shape(tensor)]
    kind = rng.randrange(3)
    if kind == 0 and shape:
        shape[rng.randrange(len(shape))] = _size(rng)
    elif kind == 1:
        shape.insert(rng.randrange(len(shape) + 1), rng.choice((0, 1, 1, 2)))
    elif shape:
        del shape[rng.randrange(len(shape))]
    tensor.shape = shape
    _fit_buffer(file, tensor, rng)


def _tensor_shape(tensor: Any) -> Any:
    return [] if tensor.shape is None else tensor.shape


def _fit_buffer(file: Any, tensor: Any, rng: random.Random) -> None:
    """Mostly give a constant as many bytes as its new shape or type takes."""
    data = file.buffers[tensor.buffer].data
    if data is None or rng.random() < 0.2:
        return
    n_bytes = {0: 4, 2: 4, 4: 8, 7: 2, 9: 1, 3: 1, 6: 1}.get(tensor.type, 1)
    for n in _tensor_shape(tensor):
        n_bytes *= int(n)
    if 0 < n_bytes <= 4096:
        old = bytes(bytearray(data))
        file.buffers.append(S.BufferT(data=np.frombuffer((old * n_bytes)[:n_bytes], np.uint8)))
        tensor.buffer = len(file.buffers) - 1


def _type(file: Any, rng: random.Random) -> None:
    tensor = _tensor(file, rng)
    tensor.type = rng.choice([*range(20), 9, 9, 7, 2, 2, 4, 0])
    _fit_buffer(file, tensor, rng)


def _flag(file: Any, rng: random.Random) -> None:
    tensor = _tensor(file, rng)
    tensor.isVariable = not tensor.isVariable


def _quantization(file: Any, rng: random.Random) -> None:
    tensor = _tensor(file, rng)
    q = tensor.quantization
    if q is None:
        tensor.quantization = S.QuantizationParametersT(scale=[0.5], zeroPoint=[0])
        return
    kind = rng.randrange(6)
    n = len(q.scale) if q.scale is not None else 0
    if kind == 0 and n:
        scales = [float(s) for s in q.scale]
        scales[rng.randrange(n)] = rng.choice((0.0, -1.0, 1e-38, 1e38, 1e-9, 1e9, float("nan")))
        q.scale = scales
    elif kind == 1 and q.zeroPoint is not None and len(q.zeroPoint):
        points = [int(z) for z in q.zeroPoint]
        points[rng.randrange(len(points))] = rng.choice((-129, -128, 0, 1, 127, 128, 40000, 2**40))
        q.zeroPoint = points
    elif kind == 2:
        q.quantizedDimension = rng.choice((-1, 0, 1, 2, 3, 4, 100))
    elif kind == 3:
        count = rng.choice((1, 2, 3, 4, 5))
        q.scale, q.zeroPoint = [0.1] * count, [0] * count
        shape = _tensor_shape(tensor)
        if len(shape):
            q.quantizedDimension = rng.randrange(len(shape))
            count = int(shape[q.quantizedDimension])
            if 0 < count < 64:
                q.scale, q.zeroPoint = [0.1] * count, [0] * count
    elif kind == 4:
        tensor.quantization = None
    else:
        q.zeroPoint = [rng.randrange(-128, 128) for _ in range(max(1, n))]


def _op(file: Any, rng: random.Random) -> Any:
    return rng.choice(_graph(file, rng).operators)


def _inputs(file: Any, rng: random.Random) -> None:
    graph = _graph(file, rng)
    op = rng.choice(graph.operators)
    side = rng.choice(("inputs", "inputs", "outputs"))
    values = [int(i) for i in (getattr(op, side) if getattr(op, side) is not None else [])]
    kind = rng.randrange(4)
    if kind == 0 and values:
        del values[rng.randrange(len(values))]
    elif kind == 1:
        values.append(rng.randrange(len(graph.tensors)))
    elif values:
        values[rng.randrange(len(values))] = rng.choice((-1, rng.randrange(len(graph.tensors))))
    setattr(op, side, values)


def _ends(file: Any, rng: random.Random) -> None:
    graph = _graph(file, rng)
    side = rng.choice(("inputs", "outputs"))
    values = [int(i) for i in (getattr(graph, side) if getattr(graph, side) is not None else [])]
    if values and rng.random() < 0.5:
        values[rng.randrange(len(values))] = rng.randrange(len(graph.tensors))
    else:
        values.append(rng.randrange(len(graph.tensors)))
    setattr(graph, side, values)


def _options(file: Any, rng: random.Random) -> None:
    op = _op(file, rng)
    options = op.builtinOptions
    if options is None or rng.random() < 0.1:
        op.builtinOptions, op.builtinOptionsType = None, 0
        return
    names = [n for n, v in vars(options).items() if isinstance(v, (int, float))]
    if names:
        name = rng.choice(names)
        old = getattr(options, name)
        if isinstance(old, float):
            setattr(options, name, rng.choice((0.0, -1.0, 1e38, float("nan"), float("inf"), 0.5)))
        else:
            setattr(options, name, type(old)(rng.choice((*INTERESTING, 4, 5, 6))))


def _kind(file: Any, rng: random.Random) -> None:
    codes = sorted({c.builtinCode for c in file.operatorCodes})
    code = rng.choice(file.operatorCodes)
    code.builtinCode = rng.choice([*codes, rng.randrange(160)])
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)


def _constant(file: Any, rng: random.Random) -> None:
    filled = [b for b in file.buffers if b.data is not None and len(b.data)]
    if not filled:
        return
    buffer = rng.choice(filled)
    data = bytearray(bytearray(buffer.data))
    if len(data) % 4 == 0 and rng.random() < 0.8:
        at = rng.randrange(len(data) // 4) * 4
        data[at : at + 4] = (_size(rng) & 0xFFFFFFFF).to_bytes(4, "little")
    else:
        data[rng.randrange(len(data))] = rng.randrange(256)
    buffer.data = np.frombuffer(bytes(data), np.uint8)


def _order(file: Any, rng: random.Random) -> None:
    operators = _graph(file, rng).operators
    kind = rng.randrange(3)
    if kind == 0:
        rng.shuffle(operators)
    elif kind == 1:
        operators.append(rng.choice(operators))
    else:
        del operators[rng.randrange(len(operators))]


FIELDS: tuple[Callable[[Any, random.Random], None], ...] = (
    _shape, _shape, _type, _flag, _quantization, _quantization, _inputs, _ends, _options, _options,
    _kind, _constant, _constant, _order,
)  # fmt: skip
