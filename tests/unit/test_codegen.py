"""Generated C: it compiles everywhere, proves itself, keeps its state and hides nothing."""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as S
from elftools.elf.elffile import ELFFile

from edgeshrink.codegen import Generated, Golden, c_name, generate
from edgeshrink.costs.firmware import constant_bytes
from edgeshrink.graph_reader import read_graph
from edgeshrink.lowering import Lowered, lower
from edgeshrink.passes import run_passes
from tests.int8_nets import Int8Net
from tests.kernels.host import random_inputs, tflm_outputs
from tests.kernels.recurrent_models import lstm_model, svdf_model
from tests.kernels.stateful_models import computed_initial_values, delay_line
from tests.tiny_models import TfliteBuilder, fully_connected

WARNINGS = ("-Wall", "-Wextra", "-Werror")
DSP = ("dsp", "mul")


def convolutions() -> bytes:
    net = Int8Net(3)
    x = net.input((1, 8, 8, 3))
    y = net.conv(x, 8, stride=(2, 2), activation="RELU")
    y = net.depthwise(y, padding="SAME")
    y = net.conv(y, 6, (1, 1))
    y = net.mean(y, keep=False)
    return net.finish(net.unary("SOFTMAX", net.dense(y, 5)))


def several_ends() -> bytes:
    net = Int8Net(1)
    a, b = net.input((1, 4, 4, 2)), net.input((1, 4, 4, 2))
    total = net.binary("ADD", a, b)
    product = net.binary("MUL", a, total)
    return net.finish(product, net.unary("LOGISTIC", total), total)


def odd_names() -> bytes:
    """Names that are keywords, end comments, or are in no C character set."""
    build = TfliteBuilder()
    names = ["int", "*/ int main(void) {", "größe\n#error", "\\", "/* 日本語 ?/", "/*/*//**/"]
    x = build.tensor(names[0], (1, 3), "INT8", scale=0.1, zero_point=2)
    last = x
    for name in names[1:]:
        y = build.tensor(name, (1, 3), "INT8", scale=0.2, zero_point=-1)
        build.op("ADD", [last, x], [y], S.AddOptionsT(), 2)
        last = y
    build.graph.inputs, build.graph.outputs = [x], [last]
    return build.bytes()


def passed_through() -> bytes:
    """Outputs that are an input, constants that nobody reads, equal and wide ones, and a view."""
    build = TfliteBuilder()
    like = {"scale": 0.1, "zero_point": 3}
    x = build.tensor("x", (2, 3), "INT8", **like)
    c = build.tensor("c", (1, 3), "INT8", data=np.array([[1, -2, 127]], np.int8), **like)
    unread = [
        build.tensor(n, (1, 2), "INT8", data=np.array([[5, 6]], np.int8), **like) for n in "uv"
    ]
    wide = np.array([2**40, -1], np.int64)
    unread.append(build.tensor("wide", (2,), "INT64", data=wide))
    new_shape = build.tensor("shape", (1,), "INT32", data=np.array([6], np.int32))
    view = build.tensor("view", (6,), "INT8", **like)
    y = build.tensor("y", (2, 3), "INT8", scale=0.3)
    build.op("RESHAPE", [x, new_shape], [view], S.ReshapeOptionsT(newShape=[6]))
    build.op("ADD", [x, c], [y], S.AddOptionsT(), 2)
    build.graph.inputs, build.graph.outputs = [x], [x, c, *unread, view, y]
    return build.bytes()


MODELS = {
    "dense": fully_connected(),
    "convolutions": convolutions(),
    "several ends": several_ends(),
    "odd names": odd_names(),
    "passed through": passed_through(),
    "state": delay_line(initial=np.array([[11, -128, 127, 0]], np.int8)),
    "computed state": computed_initial_values(),
    "svdf": svdf_model(wide=False),
    "lstm": lstm_model(),
}
STREAMING = ("state", "computed state", "svdf", "lstm")


def made(name: str, isa: tuple[str, ...] = (), prefix: str = "tiny") -> tuple[Generated, Lowered]:
    data = MODELS[name]
    inputs = [a[:1] for a in random_inputs(data)] if name in STREAMING else random_inputs(data)
    graph = read_graph(data)
    rows = tflm_outputs(data, *inputs)
    outputs = tuple(
        np.stack([row[i] for row in rows]).reshape(len(rows), *graph.tensors[t].shape)
        for i, t in enumerate(graph.outputs)
    )
    lowered = lower(run_passes(graph)[0], isa)
    return generate(lowered, prefix, golden=Golden(inputs=tuple(inputs), outputs=outputs)), lowered


def write(generated: Generated, folder: Path) -> list[str]:
    """Write the folder; return the names of its C files, the golden test last."""
    folder.mkdir(exist_ok=True)
    for file, text in generated.files.items():
        (folder / file).write_text(text, "utf-8")
    return [*generated.sources, "golden_test.c"]


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert not done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", MODELS)
def test_generated_c_passes_its_golden_test_under_sanitizers(name, tmp_path):
    sources = write(made(name)[0], tmp_path)
    flags = ["-O1", "-fsanitize=undefined,address", "-fno-sanitize-recover=all"]
    run(["gcc", "-std=c11", *WARNINGS, *flags, *sources, "-o", "golden"], tmp_path)
    assert " 0 of " in run(["./golden"], tmp_path)


def twice(*, equal: bool) -> bytes:
    """Two dense layers over values of different scales, of equal weights or not."""
    net = Int8Net(5)
    x = net.input((1, 16))
    first, other = (net.weights((16, 16)) for _ in range(2))
    return net.finish(net.dense(net.dense(x, 16, weights=first), 16,
                                weights=first if equal else other))  # fmt: skip


@pytest.mark.parametrize("isa", [(), ("mul",), DSP], ids=["ref", "scalar", "dsp"])
def test_layers_with_equal_weights_share_them(isa, tmp_path):
    found = {}
    for equal in (True, False):
        data = twice(equal=equal)
        graph, inputs = read_graph(data), random_inputs(data)
        outputs = tuple(np.stack(rows) for rows in zip(*tflm_outputs(data, *inputs), strict=True))
        lowered = lower(run_passes(graph)[0], isa, optimize="flash")
        golden = Golden(inputs=tuple(inputs), outputs=outputs)
        generated = generate(lowered, "tiny", golden=golden)
        folder = tmp_path / str(equal)
        sources = write(generated, folder)
        run(["gcc", "-std=c11", *WARNINGS, *sources, "-o", "golden"], folder)
        assert " 0 of " in run(["./golden"], folder)
        arrays = re.findall(r"(\w+)\[(\d+)\];", generated.files["tiny_data.h"])
        found[equal] = sum(int(n) in (256, 64) for _, n in arrays), constant_bytes(lowered)
    assert (found[True][0], found[False][0]) == (1, 2)
    assert found[False][1] - found[True][1] == 256


def test_golden_test_fails_when_one_value_is_wrong(tmp_path):
    generated, lowered = made("dense")
    wrong = Golden(
        inputs=(np.zeros((1, 1, 4), np.int8),), outputs=(np.full((1, 1, 3), 99, np.int8),)
    )
    generated = generate(lowered, "tiny", golden=wrong)
    sources = write(generated, tmp_path)
    run(["gcc", "-std=c11", *sources, "-o", "golden"], tmp_path)
    assert subprocess.run(["./golden"], cwd=tmp_path, capture_output=True).returncode == 1


COMPILERS = {
    "gcc": ("gcc", "-std=c11"),
    "g++": ("g++", "-x", "c++", "-std=c++17"),
    "zig cc": (sys.executable, "-m", "ziglang", "cc", "-std=c11"),
    "clang": ("clang", "-std=c11"),
}


@pytest.mark.slow
@pytest.mark.parametrize("isa", [(), DSP], ids=["ref", "dsp"])
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("name", MODELS)
def test_generated_c_compiles_without_a_warning(name, compiler, isa, tmp_path):
    command = COMPILERS[compiler]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    if compiler == "zig cc" and importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang is not installed")
    sources = write(made(name, isa)[0], tmp_path)
    for level in ("-O2", "-O3", "-Os"):
        run([*command, level, *WARNINGS, *sources, "-o", "golden"], tmp_path)
        assert " 0 of " in run(["./golden"], tmp_path)


def objects(name: str, folder: Path, isa: tuple[str, ...] = ()) -> tuple[list[Path], Lowered]:
    generated, lowered = made(name, isa)
    write(generated, folder)
    run(["gcc", "-std=c11", "-Os", "-c", *generated.sources], folder)
    return [folder / f"{Path(s).stem}.o" for s in generated.sources], lowered


def symbols(paths: list[Path]) -> tuple[set[str], set[str]]:
    """(defined for others, wanted from others), by the files' symbol tables."""
    defined, wanted = set(), set()
    for path in paths:
        with path.open("rb") as file:
            for symbol in ELFFile(file).get_section_by_name(".symtab").iter_symbols():
                if symbol["st_info"]["bind"] == "STB_GLOBAL" and symbol.name:
                    side = wanted if symbol["st_shndx"] == "SHN_UNDEF" else defined
                    side.add(symbol.name)
    return defined, wanted - defined


@pytest.mark.parametrize("name", ["convolutions", "state", "lstm"])
def test_generated_c_defines_its_prefix_alone_and_needs_memcpy_and_memset_at_most(name, tmp_path):
    defined, wanted = symbols(objects(name, tmp_path, DSP)[0])
    assert {s for s in defined if not s.startswith(("tiny_", "es_"))} == set()
    assert {"tiny_init", "tiny_invoke", "tiny_input", "tiny_output"} <= defined
    assert wanted <= {"memcpy", "memset", "_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail"}


@pytest.mark.parametrize("name", MODELS)
def test_int8_models_have_no_float_and_allocate_nothing(name):
    generated, _ = made(name, DSP)
    for file, text in generated.files.items():
        if file == "golden_test.c" or file == "CMakeLists.txt":
            continue
        code = re.sub(
            r"/\*.*?\*/|^#define \w+_SCALE .*?$", "", text, flags=re.DOTALL | re.MULTILINE
        )
        assert not re.search(r"\b(float|double|malloc|calloc|free|alloca)\b", code), file


@pytest.mark.parametrize("name", ["convolutions", "several ends", "state", "lstm"])
def test_memory_is_arena_and_state_and_nothing_else(name, tmp_path):
    paths, lowered = objects(name, tmp_path)
    sizes = {".bss": 0, ".data": 0}
    for path in paths:
        with path.open("rb") as file:
            elf = ELFFile(file)
            for section in sizes:
                sizes[section] += elf.get_section_by_name(section)["sh_size"]
    arena = -(-max(1, lowered.arena.n_bytes) // 16) * 16
    assert sizes[".data"] == 0
    assert sizes[".bss"] - lowered.state_bytes in range(max(1, lowered.arena.n_bytes), arena + 1)
    header = (tmp_path / "tiny.h").read_text("utf-8")
    assert f"#define TINY_ARENA_BYTES {lowered.arena.n_bytes}\n" in header
    assert f"#define TINY_STATE_BYTES {lowered.state_bytes}\n" in header


class Loaded:
    """The generated C as a shared library."""

    def __init__(self, name: str, folder: Path) -> None:
        generated, _ = made(name)
        write(generated, folder)
        flags = ["-std=c11", "-O1", "-shared", "-fPIC"]
        run(["gcc", *flags, *generated.sources, "-o", "model.so"], folder)
        self.library = ctypes.CDLL(str(folder / "model.so"))
        self.library.tiny_input.restype = self.library.tiny_output.restype = ctypes.c_void_p
        self.graph = read_graph(MODELS[name])

    def invoke(self, *inputs: np.ndarray) -> list[np.ndarray]:
        for i, values in enumerate(inputs):
            ctypes.memmove(self.library.tiny_input(i), values.tobytes(), values.nbytes)
        self.library.tiny_invoke()
        outputs = []
        for i, index in enumerate(self.graph.outputs):
            t = self.graph.tensors[index]
            raw = ctypes.string_at(self.library.tiny_output(i), t.n_bytes)
            outputs.append(np.frombuffer(raw, t.dtype).reshape(t.shape))
        return outputs


@pytest.mark.parametrize("name", STREAMING)
def test_state_lives_from_invoke_to_invoke_until_init_forgets_it(name, tmp_path):
    inputs = random_inputs(MODELS[name], 10, seed=5)
    expected = tflm_outputs(MODELS[name], *inputs)
    assert any((a[0] != b[0]).any() for a, b in itertools.pairwise(expected))
    model = Loaded(name, tmp_path)
    for _ in range(2):
        model.library.tiny_init()
        for row in range(10):
            got = model.invoke(*(a[row] for a in inputs))
            for g, e in zip(got, expected[row], strict=True):
                np.testing.assert_array_equal(g, e.reshape(g.shape), err_msg=f"invoke {row}")


def test_inputs_and_outputs_that_do_not_exist_are_null(tmp_path):
    model = Loaded("several ends", tmp_path)
    pointers = [model.library.tiny_input(i) for i in (-1, 0, 1, 2)]
    assert [p is None for p in pointers] == [True, False, False, True]
    pointers = [model.library.tiny_output(i) for i in (-1, 0, 1, 2, 3)]
    assert [p is None for p in pointers] == [True, False, False, False, True]


@pytest.mark.parametrize("name", ["convolutions", "computed state"])
def test_same_graph_gives_the_same_bytes(name):
    assert made(name, DSP)[0].files == made(name, DSP)[0].files


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("Key Word Spotting", "key_word_spotting"),
        ("int", "model_int"),
        ("class", "model_class"),
        ("3d", "model_3d"),
        ("größe", "gr_e"),
        ("日本", "model"),
        ("", "model"),
        ("es_dense", "model_es_dense"),
        ("__x__", "x"),
    ],
)
def test_any_text_becomes_a_c_identifier(given, name):
    assert c_name(given) == name
    assert re.fullmatch("[a-z][a-z0-9_]*", name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int", "größe", "golden_test", "arena", "es"])
def test_any_model_name_compiles(name, tmp_path):
    sources = write(made("state", prefix=name)[0], tmp_path)
    run(["gcc", "-std=c11", *WARNINGS, *sources, "-o", "golden"], tmp_path)
    assert " 0 of " in run(["./golden"], tmp_path)


@pytest.mark.slow
def test_generated_folder_builds_and_tests_with_cmake(tmp_path):
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    write(made("convolutions")[0], tmp_path)
    for command in (
        ["cmake", "-S", ".", "-B", "out", "-Wno-dev"],
        ["cmake", "--build", "out"],
        ["ctest", "--test-dir", "out", "--output-on-failure"],
    ):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
