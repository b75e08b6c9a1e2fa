"""The C compilers. Oracles: ctypes, the linker's own verdict on memory sizes, Python's bytes."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeshrink import toolchain
from edgeshrink.costs.microcontroller import cycle_cores
from edgeshrink.errors import BudgetError, ConfigError, ToolchainError
from edgeshrink.runtimes.firmware import CORE_MODELS
from edgeshrink.target import Target, list_targets
from edgeshrink.toolchain import CORES, MemoryLayout, compile_elf, compile_host_library

EMPTY = "int main(void) { return 0; }\n"


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edgeshrink"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def objects(cache: Path) -> set[Path]:
    return set(cache.rglob("*.o"))


def _compiled_targets() -> list[Target]:
    """The microcontrollers that engine c is for; others run an interpreter only."""
    return [t for t in list_targets() if any(runtime.name == "c" for runtime in t.runtimes)]


def test_every_microcontroller_can_be_compiled_for_emulated_and_priced() -> None:
    cores = {target.cpu.core for target in _compiled_targets()}
    assert cores
    for table in (CORES, CORE_MODELS, cycle_cores()):
        assert cores <= set(table)


def test_the_tables_of_cores_name_the_same_cores() -> None:
    assert set(CORES) == set(CORE_MODELS) == set(cycle_cores())


def test_the_compiler_may_use_the_dsp_instructions_of_every_target_that_has_them() -> None:
    for target in _compiled_targets():
        assert ("dsp" in target.cpu.isa) == ("dsp" in CORES[target.cpu.core].isa), target.name


@pytest.mark.parametrize("core", CORES)
def test_the_instruction_set_of_the_table_is_what_the_compiler_defines(
    core: str, tmp_path: Path
) -> None:
    dsp, fpu = ("dsp" in CORES[core].isa), ("fpu" in CORES[core].isa)
    source = write(
        tmp_path, "isa.c",
        "#if defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP\n#define DSP 1\n"
        "#else\n#define DSP 0\n#endif\n"
        "#if defined(__ARM_FP)\n#define FPU 1\n#else\n#define FPU 0\n#endif\n"
        f'_Static_assert(DSP == {int(dsp)}, "dsp");\n_Static_assert(FPU == {int(fpu)}, "fpu");\n'
        + EMPTY,
    )  # fmt: skip
    assert compile_elf([source], core, tmp_path / "isa.elf").is_file()


def test_a_compiler_error_names_file_and_line(tmp_path: Path) -> None:
    source = write(tmp_path, "wrong.c", "int main(void)\n{\n    return nothing;\n}\n")
    with pytest.raises(ToolchainError, match=r"wrong\.c:3:.*nothing") as caught:
        compile_elf([source], "cortex-m4f", tmp_path / "a.elf")
    assert not (tmp_path / "a.elf").exists()
    assert caught.value.where == str(source)


def test_an_undefined_symbol_is_named(tmp_path: Path) -> None:
    source = write(tmp_path, "a.c", "int missing_part(void); int main(void) {"
                   " return missing_part(); }")  # fmt: skip
    with pytest.raises(ToolchainError, match="undefined symbol: missing_part"):
        compile_elf([source], "cortex-m33", tmp_path / "a.elf")
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("what", ["flash", "ram"])
def test_the_need_of_a_program_that_does_not_fit_is_exact(what: str, tmp_path: Path) -> None:
    source = write(
        tmp_path, "a.c",
        "#include <stdint.h>\nvolatile uint8_t zeroed[5000]; extern const uint8_t fixed[3000];\n"
        "const uint8_t fixed[3000] = {1, 2, 3};\n"
        "int main(void) { return zeroed[17] + fixed[zeroed[3]]; }\n",
    )  # fmt: skip

    def build(n_bytes: int) -> None:
        sizes = {"flash": 1 << 20, "ram": 1 << 20, what: n_bytes}
        layout = MemoryLayout(flash_bytes=sizes["flash"], ram_bytes=sizes["ram"], stack_bytes=1024)
        compile_elf([source], "cortex-m4f", tmp_path / "a.elf", layout=layout)

    with pytest.raises(BudgetError) as caught:
        build(2000)
    need = int(caught.value.need)
    assert (caught.value.where, caught.value.limit) == (what, 2000)
    build(need)
    with pytest.raises(BudgetError):
        build(need - 4)


def test_an_unknown_core_names_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cortex-m4f"):
        compile_elf([], "cortex-m4", tmp_path / "a.elf")


def test_a_missing_cross_compiler_names_the_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match=r"arm-none-eabi-gcc: is not on PATH; apt-get install"):
        compile_elf([], "cortex-m4f", tmp_path / "a.elf", compiler="gcc")


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"absent\.c: can't be read"):
        compile_host_library([tmp_path / "absent.c"], tmp_path / "a.so")


def test_zig_compiles_for_the_host_where_there_is_no_other_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert toolchain.find_host_cc() == (str(toolchain.find_zig()), "cc")


@pytest.mark.slow
def test_the_block_hook_can_be_compiled_by_zig(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ctypes.CDLL(str(toolchain.block_hook())).es_on_block


def test_a_host_library_can_be_called(tmp_path: Path) -> None:
    first = write(tmp_path, "first.c", "int add(int a, int b) { return a + b + OFFSET; }\n")
    second = write(tmp_path, "second.c", "int twice(int a) { return 2 * a; }\n")
    library = ctypes.CDLL(
        str(compile_host_library([first, second], tmp_path / "a.so", defines=["OFFSET=5"]))
    )
    assert (library.add(2, 3), library.twice(21)) == (10, 42)


def test_an_object_is_compiled_once_and_again_when_something_in_it_changes(
    own_cache: Path, tmp_path: Path
) -> None:
    header = write(tmp_path, "value.h", "#define VALUE 1\n")
    source = write(tmp_path, "a.c", '#include "value.h"\nint value(void) { return VALUE; }\n')

    def value(name: str, **options: Any) -> int:
        library = compile_host_library([source], tmp_path / name, **options)
        return int(ctypes.CDLL(str(library)).value())

    assert value("first.so") == 1
    known = objects(own_cache)
    stamps = {path: path.stat().st_mtime_ns for path in known}
    assert value("second.so") == 1
    assert {path: path.stat().st_mtime_ns for path in objects(own_cache)} == stamps
    write(tmp_path, "value.h", "#define VALUE 2\n")
    assert value("third.so") == 2
    assert len(objects(own_cache)) == 2
    value("fourth.so", optimize="-O1")
    value("fifth.so", defines=["OTHER"])
    assert len(objects(own_cache)) == 4
    header.unlink()
    with pytest.raises(ToolchainError, match=r"value\.h"):
        value("sixth.so")


def test_a_header_that_hides_another_is_not_missed(own_cache: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    write(second, "value.h", "#define VALUE 1\n")
    source = write(tmp_path, "a.c", "#include <value.h>\nint value(void) { return VALUE; }\n")

    def value(name: str) -> int:
        library = compile_host_library([source], tmp_path / name, include=[first, second])
        return int(ctypes.CDLL(str(library)).value())

    assert value("before.so") == 1
    write(first, "value.h", "#define VALUE 2\n")
    assert value("after.so") == 2


def test_an_include_by_macro_is_never_taken_from_the_cache(own_cache: Path, tmp_path: Path) -> None:
    write(tmp_path, "value.h", "#define VALUE 1\n")
    source = write(
        tmp_path, "a.c", '#define HEADER "value.h"\n#include HEADER\nint value(void) '
        "{ return VALUE; }\n",
    )  # fmt: skip
    compile_host_library([source], tmp_path / "first.so")
    write(tmp_path, "value.h", "#define VALUE 2\n")
    library = compile_host_library([source], tmp_path / "second.so")
    assert ctypes.CDLL(str(library)).value() == 2


def test_our_memory_functions_do_what_python_does(tmp_path: Path) -> None:
    library = ctypes.CDLL(
        str(
            compile_host_library(
                [toolchain.BARE_METAL / "memory.c"], tmp_path / "a.so", flags=["-fno-builtin"]
            )
        )
    )
    rng = np.random.default_rng(0)
    for _ in range(2000):
        buffer = bytearray(rng.integers(0, 256, 128, np.uint8).tobytes())
        memory = (ctypes.c_uint8 * 128).from_buffer(buffer)
        n, to, at = int(rng.integers(0, 60)), int(rng.integers(0, 64)), int(rng.integers(0, 64))
        expected, base = bytearray(buffer), ctypes.addressof(memory)
        kind = int(rng.integers(0, 3))
        if kind == 0:
            value = int(rng.integers(0, 256))
            expected[to : to + n] = bytes([value]) * n
            call = library.memset, ctypes.c_void_p(base + to), value, ctypes.c_size_t(n)
        else:
            if kind == 1:  # copies must not overlap
                n = min(n, abs(to - at))
            expected[to : to + n] = expected[at : at + n]
            name = "memcpy" if kind == 1 else "memmove"
            call = (getattr(library, name), ctypes.c_void_p(base + to),
                    ctypes.c_void_p(base + at), ctypes.c_size_t(n))  # fmt: skip
        function, *arguments = call
        function.restype = ctypes.c_void_p
        assert function(*arguments) == base + to
        assert buffer == expected
        left, right = ctypes.c_void_p(base + to), ctypes.c_void_p(base + at)
        order = library.memcmp(left, right, ctypes.c_size_t(n))
        a, b = bytes(buffer[to : to + n]), bytes(buffer[at : at + n])
        assert (order > 0) - (order < 0) == (a > b) - (a < b)


@pytest.mark.slow
def test_the_run_time_library_is_built_once(own_cache: Path, tmp_path: Path) -> None:
    source = write(
        tmp_path, "a.c", "volatile float x = 2; int main(void) { return (int)(x * x); }\n"
    )
    seconds = []
    for name in ("first.elf", "second.elf"):
        start = time.perf_counter()
        compile_elf([source], "cortex-m0+", tmp_path / name)
        seconds.append(time.perf_counter() - start)
    assert (own_cache / "zig").is_dir()
    assert seconds[1] < seconds[0] / 3


def test_an_output_folder_that_is_not_there_is_an_error_in_our_words(tmp_path: Path) -> None:
    source = write(tmp_path, "a.c", EMPTY)
    with pytest.raises(ToolchainError):
        compile_elf([source], "cortex-m4f", tmp_path / "absent" / "a.elf")
    assert not os.path.lexists(tmp_path / "absent")
