"""The arm64 runtimes under QEMU. Oracles: integer arithmetic, and a loop whose length is known."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgeshrink.cli.main import COMMANDS, main
from edgeshrink.emulation import emulate_arm64
from edgeshrink.errors import ConfigError, EdgeshrinkError, ModelError, ToolchainError
from edgeshrink.runtimes import open_model
from edgeshrink.runtimes.arm64 import count_plugin, cpu_model, find_root, guest
from edgeshrink.runtimes.arm64.root import MANIFEST, QEMU, root_folder
from edgeshrink.runtimes.arm64.stand_ins import needs, write_stand_ins
from edgeshrink.target import load_target
from edgeshrink.toolchain import compile_host_library, find_zig
from tests import tiny_models

needs_qemu = pytest.mark.skipif(
    shutil.which(QEMU) is None, reason=f"needs {QEMU}: apt-get install qemu-user"
)


@pytest.fixture
def root():
    try:
        return find_root()
    except ToolchainError as err:
        pytest.skip(f"needs the arm64 runtimes: {err}")


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


# ---- what must be there


def test_a_root_that_is_not_prepared_names_the_command(no_cache, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(ToolchainError, match="edgeshrink setup qemu"):
        find_root()


def test_a_missing_qemu_names_the_package(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ToolchainError, match="apt-get install qemu-user"):
        find_root()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"packages": {}}', '{"runtimes": 3}'])
def test_a_damaged_root_is_to_be_prepared_again(no_cache, monkeypatch, content):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    root_folder().mkdir()
    (root_folder() / MANIFEST).write_text(content)
    with pytest.raises(ToolchainError, match="setup qemu --again"):
        find_root()


def test_cores_stand_for_targets_by_their_instructions():
    cores = {name: cpu_model(load_target(name)) for name in ("rpi3b+", "rpi4", "rpi5", "pixel4")}
    assert cores == {
        "rpi3b+": "cortex-a53", "rpi4": "cortex-a72", "rpi5": "cortex-a76", "pixel4": "cortex-a76",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["rp2040", "nucleo-l4r5zi", "host"])
def test_other_targets_are_refused(name):
    with pytest.raises(ConfigError, match=name):
        cpu_model(load_target(name))


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"model\.onnx"):
        emulate_arm64(tmp_path / "model.onnx", load_target("rpi4"))


def test_setup_without_a_tool_is_an_unknown_command(capsys):
    assert "setup" in COMMANDS
    with pytest.raises(SystemExit) as end:
        main(["setup", "board"])
    assert end.value.code == 2
    assert "board" in capsys.readouterr().err


# ---- counting


LOOP = """
static long call(long number, long a) {
    register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = 0;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1) : "memory");
    return x0;
}
static void mark(void) { call(167, 0x65730001); }
static void loop(long n) { __asm__ volatile("1: subs %0, %0, #1\\n b.ne 1b" : "+r"(n)); }
void _start(void) {
    mark(); loop(1000); mark(); loop(5000); mark();
    call(94, 0);
}
"""


@needs_qemu
@pytest.mark.slow
def test_instructions_are_counted_exactly(tmp_path):
    source, program, counts = tmp_path / "loop.c", tmp_path / "loop", tmp_path / "counts"
    source.write_text(LOOP)
    counts.touch()
    subprocess.run(
        [find_zig(), "cc", "-target", "aarch64-linux-musl", "-static", "-nostdlib", "-O1",
         source, "-o", program],
        check=True, capture_output=True,
    )  # fmt: skip
    subprocess.run([QEMU, "-plugin", f"{count_plugin()},out={counts}", program], check=True)
    first, second, third = struct.unpack("<3Q", counts.read_bytes())
    assert (third - second) - (second - first) == 2 * (5000 - 1000)


@needs_qemu
@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["litert", "tflite-runtime"])
def test_an_arm64_runtime_computes_the_exact_result(root, runtime):
    data = tiny_models.fully_connected()
    x = np.random.default_rng(1).integers(-30, 30, (20, 4), np.int8)
    with (
        guest(root, runtime, "cortex-a72") as arm64,
        open_model(data, runtime, python=arm64.command) as model,
    ):
        (y,) = model.run(x)
        counts = model.instructions(arm64.counts, repeats=3)
    np.testing.assert_array_equal(y, tiny_models.expected_fully_connected(x, data))
    assert max(counts) - min(counts) < 1000
    assert min(counts) > 100


@needs_qemu
@pytest.mark.slow
def test_a_profile_says_that_outputs_agree(root, tmp_path):
    model = tmp_path / "model.tflite"
    model.write_bytes(tiny_models.fully_connected(16, 8))
    profile = emulate_arm64(model, load_target("rpi5"))
    assert profile.figures["instructions"].how == "emulated"
    assert profile.figures["macs"].value == 16 * 8
    assert any("outputs equal to those of this host" in note for note in profile.notes)
    assert "latency_ms" not in profile.figures


@needs_qemu
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the exporter, which makes the file here
def test_executorch_runs_where_it_is_prepared(root, tmp_path):
    if "executorch" not in root.runtimes:
        pytest.skip("needs edgeshrink setup qemu --executorch")
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    model = tmp_path / "model.pte"
    program = torch.export.export(torch.nn.ReLU(), (torch.zeros(1, 64),))
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    model.write_bytes(lowered.to_executorch().buffer)
    profile = emulate_arm64(model, load_target("rpi4"))
    assert profile.figures["instructions"].value > 1000
    assert any("outputs equal to those of this host" in note for note in profile.notes)


@needs_qemu
@pytest.mark.slow
def test_a_damaged_file_is_a_model_error(root, tmp_path):
    model = tmp_path / "model.tflite"
    model.write_bytes(tiny_models.fully_connected(16, 8)[:-40])
    with pytest.raises(ModelError, match=r"model\.tflite"):
        emulate_arm64(model, load_target("rpi4"))


# ---- stand-ins


def test_what_libraries_need_is_found(tmp_path):
    source = tmp_path / "user.c"
    source.write_text("int cuOne(void); int other(void); int f(void) { return cuOne() + other(); }")
    flags = ["-Wl,--unresolved-symbols=ignore-all"]
    library = compile_host_library([source], tmp_path / "libuser.so", flags=flags)
    found = needs([library], [])
    assert found.plain == {"cuOne"}
    assert found.libraries == frozenset()
    with pytest.raises(EdgeshrinkError, match="no shared library"):
        needs([source], [])


@pytest.mark.slow
def test_stand_ins_have_the_names_and_versions_that_are_asked_for(tmp_path):
    from elftools.elf.elffile import ELFFile

    from edgeshrink.runtimes.arm64.stand_ins import Needs

    wanted = Needs(
        libraries=frozenset({"libcuA.so.1", "libcuB.so"}),
        versioned={
            "libcuA.so.1": frozenset({("cuX", "V1"), ("cuY", "V2")}),
            "libcuB.so": frozenset(),
        },
        plain=frozenset({"cuZ"}),
    )  # fmt: skip
    write_stand_ins(wanted, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["libcuA.so.1", "libcuB.so"]
    names = {}
    for path in tmp_path.iterdir():
        with path.open("rb") as file:
            elf = ELFFile(file)
            assert elf.get_machine_arch() == "AArch64"
            symbols = elf.get_section_by_name(".dynsym").iter_symbols()
            names[path.name] = {s.name for s in symbols if s["st_info"]["type"] == "STT_FUNC"}
            if path.name == "libcuA.so.1":
                defined = elf.get_section_by_name(".gnu.version_d").iter_versions()
                assert {"V1", "V2"} <= {next(iter(entries)).name for _, entries in defined}
    assert names == {"libcuA.so.1": {"cuX", "cuY"}, "libcuB.so": {"cuZ"}}


def test_the_folder_of_the_root_is_in_the_cache(no_cache):
    assert root_folder().is_relative_to(Path(no_cache))
