"""Damaged and hostile model files: each ends in a ModelError with the file's name, in bounded time.

Nothing here may take the caller's process down, so most tests just call and look at the error.
"""

from __future__ import annotations

import random
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as S

from edgeshrink.errors import EdgeshrinkError, ModelError
from edgeshrink.graph_reader import pack_inline, read_graph, read_graph_file, strip_names
from edgeshrink.runtimes import open_model, read_pte
from tests import tiny_models

GOOD = {
    "tflite": tiny_models.fully_connected(16, 8),
    "outside": tiny_models.with_outside_buffers(tiny_models.fully_connected(16, 8)),
    "pte": tiny_models.tiny_pte(),
}
TIME_LIMIT_S = 2.0  # far above what any of these takes (milliseconds): machines may be busy


def read(data: bytes, kind: str, name: str = "my model.bin") -> None:
    if kind == "pte":
        read_pte(data, name=name)
    else:
        read_graph(data, name=name)


def must_be_refused(data: bytes, kind: str) -> ModelError:
    start = time.monotonic()
    with pytest.raises(ModelError) as caught:
        read(data, kind)
    assert time.monotonic() - start < TIME_LIMIT_S
    assert caught.value.where.startswith("my model.bin")
    assert caught.value.what
    assert caught.value.fix
    assert len(str(caught.value)) < 1000
    return caught.value


def may_be_refused(data: bytes, kind: str) -> bool:
    """Return whether `data` could be read; anything but success or a ModelError fails the test."""
    start, error = time.monotonic(), None
    try:
        read(data, kind)
    except ModelError as err:
        error = err
    assert time.monotonic() - start < TIME_LIMIT_S
    assert error is None or error.where.startswith("my model.bin")
    return error is None


# Damaged files


@pytest.mark.parametrize("kind", GOOD)
def test_the_undamaged_files_are_read(kind: str) -> None:
    read(GOOD[kind], kind)


@pytest.mark.parametrize("kind", GOOD)
def test_an_empty_file_is_refused(kind: str) -> None:
    assert "empty" in must_be_refused(b"", kind).what


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("n_bytes", range(1, 12))
def test_a_file_shorter_than_its_header_is_refused(kind: str, n_bytes: int) -> None:
    must_be_refused(GOOD[kind][:n_bytes], kind)


@pytest.mark.parametrize("kind", GOOD)
def test_a_truncated_file_is_refused_wherever_it_ends(kind: str) -> None:
    data = GOOD[kind]
    padding = 16  # the last bytes may be padding that nothing refers to
    for end in range(len(data) - padding):
        if may_be_refused(data[:end], kind):
            pytest.fail(f"read the first {end} of {len(data)} bytes as a whole file")


@pytest.mark.parametrize("kind", GOOD)
def test_another_identifier_is_refused_by_name(kind: str) -> None:
    data = GOOD[kind]
    error = must_be_refused(data[:4] + b"ELF!" + data[8:], kind)
    assert "b'ELF!'" in error.what


def test_a_pte_is_no_tflite_and_the_other_way_round() -> None:
    assert "TFL3" in must_be_refused(GOOD["pte"], "tflite").what
    assert "ET12" in must_be_refused(GOOD["tflite"], "pte").what


@pytest.mark.parametrize("kind", GOOD)
def test_random_bytes_behind_a_good_header_are_refused(kind: str) -> None:
    generator = random.Random(0)
    for _ in range(300):
        data = GOOD[kind][:8] + generator.randbytes(generator.randrange(2000))
        may_be_refused(data, kind)
    must_be_refused(GOOD[kind][:8] + generator.randbytes(500), kind)


def mutations(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Flip bits, overwrite words with extreme ones, copy pieces of the file over others."""
    generator = random.Random(seed)
    words = [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\0\0\0", b"\1\0\0\0"]
    for _ in range(count):
        mutant = bytearray(data)
        for _ in range(generator.randrange(1, 6)):
            at = generator.randrange(8, len(mutant) - 4)
            choice = generator.randrange(3)
            if choice == 0:
                mutant[at] ^= 1 << generator.randrange(8)
            elif choice == 1:
                mutant[at : at + 4] = generator.choice(words)
            else:
                other = generator.randrange(len(mutant) - 4)
                mutant[at : at + 4] = mutant[other : other + 4]
        yield bytes(mutant)


@pytest.mark.parametrize("kind", GOOD)
def test_mutated_files_are_read_or_refused(kind: str) -> None:
    results = [may_be_refused(mutant, kind) for mutant in mutations(GOOD[kind], 600, seed=1)]
    assert 0 < sum(results) < len(results)  # the mutations reach beyond the first check


@pytest.mark.parametrize("kind", GOOD)
def test_every_single_byte_may_be_wrong(kind: str) -> None:
    data = GOOD[kind]
    for at in range(len(data)):
        for value in (0x00, 0x7F, 0xFF):
            may_be_refused(data[:at] + bytes([value]) + data[at + 1 :], kind)


def test_rewriting_mutated_files_refuses_them_or_gives_sound_ones() -> None:
    n_rewritten = 0
    for mutant in mutations(GOOD["outside"], 800, seed=2):
        try:
            rewritten = strip_names(pack_inline(mutant))
        except ModelError:
            continue
        n_rewritten += 1
        may_be_refused(rewritten, "tflite")
    assert n_rewritten > 10


# Lies


def vector_at(data: bytes, content: bytes) -> int:
    """Where the length of the vector with this content stands."""
    at = data.index(content) - 4
    assert struct.unpack_from("<I", data, at)[0] * 4 >= len(content)
    return at


@pytest.mark.parametrize("claimed", [5, 2**16, 2**24, 2**31, 2**32 - 1])
def test_a_lying_vector_length_allocates_nothing(claimed: int) -> None:
    data = bytearray(GOOD["tflite"])
    at = vector_at(data, struct.pack("<2i", 8, 16))  # the shape of the weights
    data[at : at + 4] = struct.pack("<I", claimed)
    error = must_be_refused(bytes(data), "tflite")
    assert "shape" in str(error) or "tensors" in str(error)


@pytest.mark.parametrize("claimed", [10**6, 2**31, 2**32 - 1])
def test_a_lying_table_count_is_refused(claimed: int) -> None:
    root = struct.unpack_from("<I", GOOD["tflite"], 0)[0]
    vtable = root - struct.unpack_from("<i", GOOD["tflite"], root)[0]
    slot = struct.unpack_from("<H", GOOD["tflite"], vtable + 4 + 2 * 2)[0]  # subgraphs
    at = root + slot
    at += struct.unpack_from("<I", GOOD["tflite"], at)[0]
    data = bytearray(GOOD["tflite"])
    data[at : at + 4] = struct.pack("<I", claimed)
    assert "subgraphs" in must_be_refused(bytes(data), "tflite").where


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("root", [0, 1, 2, 3, 4, 2**31, 2**32 - 1])
def test_a_root_that_points_at_itself_or_nowhere_is_refused(kind: str, root: int) -> None:
    must_be_refused(struct.pack("<I", root) + GOOD[kind][4:], kind)


@pytest.mark.parametrize("kind", GOOD)
def test_every_word_may_point_at_itself_backwards_or_far_away(kind: str) -> None:
    data = GOOD[kind]
    for at in range(0, len(data) - 4, 4):
        for word in (0, 4, -4, -at, len(data) - at, 2**31 - 1, -(2**31)):
            mutant = data[:at] + struct.pack("<i", word) + data[at + 4 :]
            may_be_refused(mutant, kind)


def test_half_a_slot_at_the_end_of_a_field_list_is_refused() -> None:
    """Readers differ in whether it counts: what is checked might not be what is used."""
    data = bytearray(GOOD["tflite"])
    root = struct.unpack_from("<I", data, 0)[0]
    vtable = root - struct.unpack_from("<i", data, root)[0]
    data[vtable] -= 1
    assert "field list" in must_be_refused(bytes(data), "tflite").what


def test_tables_shared_a_million_times_are_refused_at_once() -> None:
    """A vector of a million offsets, all to one subgraph: 4 MB that unfold to gigabytes."""
    b = flatbuffers.Builder(1024)
    tensors = [S.TensorT(name="t" * 50, shape=[1]).Pack(b) for _ in range(50)]
    vector = tiny_models.tables(b, tensors)
    graph = tiny_models.table(b, [vector])
    b.StartVector(4, 10**6, 4)
    for _ in range(10**6):
        b.PrependUOffsetTRelative(graph)
    graphs = "ref", b.EndVector()
    b.Finish(tiny_models.table(b, [3, None, graphs]), b"TFL3")
    error = must_be_refused(bytes(b.Output()), "tflite")
    assert "over and over" in error.what


def test_a_name_shared_by_every_tensor_is_refused_when_it_unfolds_to_gigabytes() -> None:
    b = flatbuffers.Builder(1024)
    name = "ref", b.CreateString("x" * 10**6)
    tensors = [tiny_models.table(b, [None, None, None, name]) for _ in range(20_000)]
    graph = tiny_models.table(b, [tiny_models.tables(b, tensors)])
    b.Finish(tiny_models.table(b, [3, None, tiny_models.tables(b, [graph])]), b"TFL3")
    assert "over and over" in must_be_refused(bytes(b.Output()), "tflite").what


@pytest.mark.parametrize("at_and_size", [(2, 2**63), (2**63, 2), (2**64 - 1, 1), (10**6, 1)])
def test_outside_buffers_beyond_the_file_are_refused(at_and_size: tuple[int, int]) -> None:
    def edit(model: S.ModelT) -> None:
        model.buffers[1] = S.BufferT(offset=at_and_size[0], size=at_and_size[1])

    data = tiny_models.edited(GOOD["tflite"], edit)
    assert "buffers[1]" in must_be_refused(data, "tflite").where


def test_a_name_of_a_million_digits_sorts_without_trouble() -> None:
    def edit(model: S.ModelT) -> None:
        entries = [S.TensorMapT(name="9" * 10**6, tensorIndex=0), S.TensorMapT("10", 0)]
        model.signatureDefs = [S.SignatureDefT(inputs=entries, subgraphIndex=0)]

    graph = read_graph(tiny_models.edited(GOOD["tflite"], edit))
    assert graph.input_names == ("10",)


def test_names_that_are_no_text_are_read() -> None:
    data = GOOD["tflite"].replace(b"\1\0\0\0w\0", b"\1\0\0\0\xff\0")
    assert read_graph(data).tensors[1].name == "\ufffd"


def test_long_names_do_not_flood_the_error() -> None:
    def edit(model: S.ModelT) -> None:
        model.subgraphs[0].tensors[1].name = "x" * 10**6
        model.subgraphs[0].tensors[1].shape = [-1]

    must_be_refused(tiny_models.edited(GOOD["tflite"], edit), "tflite")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"op_index": 7}, "number 7 is called, there are 1"),
        ({"op_index": -1}, "number -1"),
        ({"value_index": 9}, "number 9"),
        ({"sizes": (1, -3)}, r"shape \(1, -3\)"),
    ],
)
def test_a_pte_with_numbers_out_of_range_is_refused(changes: dict[str, int], match: str) -> None:
    with pytest.raises(ModelError, match=match):
        read_pte(tiny_models.tiny_pte(**changes))


def test_reading_hostile_files_takes_little_memory(repo: Path) -> None:
    """In a process that may grow by 512 MiB: nothing a file claims is allocated."""
    code = (
        "import resource\n"
        "from tests.attacks import test_untrusted_models as attacks\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29),) * 2)\n"
        "for kind, data in attacks.GOOD.items():\n"
        "    for mutant in attacks.mutations(data, 200, seed=3):\n"
        "        attacks.may_be_refused(mutant, kind)\n"
        "attacks.test_tables_shared_a_million_times_are_refused_at_once()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repo)
    assert done.returncode == 0, done.stderr


# Runtimes: what gets past the reader


ENGINES = ["litert", "litert-builtin", "tflm"]


def run_or_refuse(data: bytes, engine: str) -> None:
    """Run the model; it may fail with an error that names the file, and in no other way."""
    error = None
    try:
        with open_model(data, engine, name="my model.bin", timeout_s=60) as model:
            model.run(*(np.zeros((1, *s.shape[1:]), s.dtype) for s in model.inputs))
    except ModelError as err:
        error = err
    assert error is None or error.where.startswith("my model.bin")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("sixteenth", [0, 1, 4, 8, 12, 15])
def test_a_truncated_file_never_reaches_a_runtime(engine: str, sixteenth: int) -> None:
    data = GOOD["tflite"]
    with pytest.raises(ModelError, match=r"my model\.bin"):
        open_model(data[: len(data) * sixteenth // 16], engine, name="my model.bin")


@pytest.mark.parametrize("engine", ENGINES)
def test_mutants_that_the_reader_accepts_do_not_crash_the_caller(engine: str) -> None:
    mutants = mutations(GOOD["tflite"], 400, seed=4)
    accepted = [mutant for mutant in mutants if may_be_refused(mutant, "tflite")]
    for mutant in accepted[:3]:
        run_or_refuse(mutant, engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_operator_with_another_operators_options_is_contained(engine: str) -> None:
    def edit(model: S.ModelT) -> None:
        op = model.subgraphs[0].operators[0]
        op.builtinOptions = S.VarHandleOptionsT(container="x", sharedName="y")
        op.builtinOptionsType = S.BuiltinOptions.VarHandleOptions

    run_or_refuse(tiny_models.edited(GOOD["tflite"], edit), engine)


def test_shapes_that_do_not_fit_each_other_are_refused_by_the_runtime() -> None:
    def edit(model: S.ModelT) -> None:
        model.subgraphs[0].tensors[0].shape = [1, 15]

    data = tiny_models.edited(GOOD["tflite"], edit)
    with pytest.raises(ModelError, match=r"my model\.bin: LiteRT's built-in kernels failed"):
        open_model(data, "litert-builtin", name="my model.bin")


def test_a_tensor_of_gigabytes_is_refused_in_the_worker() -> None:
    build = tiny_models.TfliteBuilder()
    x, y = build.tensor("x", (1, 900_000_000)), build.tensor("y", (1, 900_000_000))
    build.op("NEG", [x], [y])
    build.graph.inputs, build.graph.outputs = [x], [y]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    with pytest.raises(EdgeshrinkError, match=r"my model\.bin: LiteRT"):
        open_model(build.bytes(), "litert-builtin", name="my model.bin")
    grown_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss - before
    assert grown_kib < 2 << 20


@pytest.mark.slow
@pytest.mark.parametrize("sixteenth", [1, 4, 8, 12, 15])
def test_a_truncated_pte_never_reaches_executorch(sixteenth: int) -> None:
    data = GOOD["pte"]
    with pytest.raises(ModelError, match=r"my model\.bin"):
        open_model(data[: len(data) * sixteenth // 16], "executorch", name="my model.bin")


@pytest.mark.slow
def test_a_pte_that_is_only_a_shell_is_contained() -> None:
    """It reads well, but its delegate has no data: the runtime must fail, not the caller."""
    with pytest.raises(ModelError, match=r"my model\.bin: ExecuTorch"):
        open_model(GOOD["pte"], "executorch", name="my model.bin")


# Published models


def published() -> list[str]:
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "models"
    return sorted(path.name for path in folder.glob("*.tflite")) or ["none"]


@pytest.mark.shared
@pytest.mark.parametrize("file", published())
def test_published_models_truncated_at_every_sixteenth_are_refused(
    file: str, shared_dir: Path, tmp_path: Path
) -> None:
    data = (shared_dir / "models" / file).read_bytes()
    path = tmp_path / "my model.bin"
    for sixteenth in range(16):
        path.write_bytes(data[: len(data) * sixteenth // 16])
        with pytest.raises(ModelError) as caught:
            read_graph_file(path)
        assert caught.value.where.startswith(str(path))


@pytest.mark.shared
@pytest.mark.parametrize("file", published())
def test_published_models_with_flipped_bits_are_read_or_refused(
    file: str, shared_dir: Path
) -> None:
    for mutant in mutations((shared_dir / "models" / file).read_bytes(), 40, seed=5):
        may_be_refused(mutant, "tflite")
