"""The C compilers: firmware for emulated cores, shared libraries for this host.

Objects are kept in a folder of the user's (`$XDG_CACHE_HOME/edgeshrink`), by the hash of everything
that goes into them; it may be deleted at any time. Sources that are compiled here find their start,
their memory map and `memcpy` in `runtimes/bare_metal/`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from edgeshrink.errors import BudgetError, ConfigError, ToolchainError
from edgeshrink.strict_toml import nearest

BARE_METAL: Final = Path(__file__).parent / "runtimes" / "bare_metal"
STUBS: Final = BARE_METAL / "include"  # headers that the compiler may lack, looked up last
BUILD_EXTRA: Final = "python -m pip install 'edgeshrink[build]'"
COMPILE_TIMEOUT_S: Final = 600


@dataclass(frozen=True, kw_only=True)
class Core:
    """How to compile for one core."""

    zig: tuple[str, ...]  # target and processor for `zig cc`
    gcc: str  # the program, where it is on PATH
    gcc_flags: tuple[str, ...]
    isa: tuple[str, ...]  # of target.ISA: what these flags let the compiler use


_SOFT, _HARD = "thumb-freestanding-eabi", "thumb-freestanding-eabihf"
_THUMB: Final = ("-mthumb",)

# `Cpu.core` of a target -> how to compile for it. The DSP instructions of an M33 and every FPU must
# be named; an M7 gets the single-precision FPU, which all of them have.
CORES: Final[Mapping[str, Core]] = MappingProxyType({
    "cortex-m0+": Core(
        zig=("-target", _SOFT, "-mcpu=cortex_m0plus"),
        gcc="arm-none-eabi-gcc", gcc_flags=("-mcpu=cortex-m0plus", *_THUMB), isa=("mul",),
    ),
    "cortex-m3": Core(
        zig=("-target", _SOFT, "-mcpu=cortex_m3"),
        gcc="arm-none-eabi-gcc", gcc_flags=("-mcpu=cortex-m3", *_THUMB), isa=("mul",),
    ),
    "cortex-m4f": Core(
        zig=("-target", _HARD, "-mcpu=cortex_m4+vfp4d16sp"),
        gcc="arm-none-eabi-gcc",
        gcc_flags=("-mcpu=cortex-m4", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard", *_THUMB),
        isa=("dsp", "fpu", "mul"),
    ),
    "cortex-m7": Core(
        zig=("-target", _HARD, "-mcpu=cortex_m7+fp_armv8d16sp"),
        gcc="arm-none-eabi-gcc",
        gcc_flags=("-mcpu=cortex-m7", "-mfpu=fpv5-sp-d16", "-mfloat-abi=hard", *_THUMB),
        isa=("dsp", "fpu", "mul", "dual-issue"),
    ),
    "cortex-m33": Core(
        zig=("-target", _HARD, "-mcpu=cortex_m33+dsp+fp_armv8d16sp"),
        gcc="arm-none-eabi-gcc",
        gcc_flags=("-mcpu=cortex-m33", "-mfpu=fpv5-sp-d16", "-mfloat-abi=hard", *_THUMB),
        isa=("dsp", "fpu", "mul"),
    ),
    "rv32imc": Core(
        zig=("-target", "riscv32-freestanding-none", "-mcpu=generic_rv32+m+c"),
        gcc="riscv64-unknown-elf-gcc", gcc_flags=("-march=rv32imc", "-mabi=ilp32"),
        isa=("rv32imc", "mul"),
    ),
})  # fmt: skip

COMPILERS: Final = ("zig", "gcc")

# `-fhosted`: zig's freestanding targets imply -ffreestanding, which turns a memcpy of four bytes
# into a call. No unwind tables: they take flash and pull in symbols.
_FLAGS: Final = (
    "-std=c11", "-ffunction-sections", "-fdata-sections", "-fomit-frame-pointer", "-g0",
    "-fno-unwind-tables", "-fno-asynchronous-unwind-tables",
)  # fmt: skip
_ZIG_FLAGS: Final = ("-fhosted", "-fno-sanitize=all")
_INCLUDE: Final = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*(?:(["<])([^">\n]+)[">]|(\S))', re.M)
_OVERFLOW: Final = re.compile(
    r"(?:section '[^']*' )?will not fit in region '(\w+)': overflowed by (\d+) bytes"
    r"|region `(\w+)' overflowed by (\d+) bytes"
)


@dataclass(frozen=True, kw_only=True)
class MemoryLayout:
    """What the linker may fill. The default is larger than any microcontroller's memories."""

    flash_bytes: int = 64 << 20
    ram_bytes: int = 64 << 20
    stack_bytes: int = 64 << 10  # of the RAM, for the stack


def core(name: str) -> Core:
    """Return the entry of `CORES`; ConfigError names the nearest one."""
    if name not in CORES:
        raise ConfigError(f"core {name!r}", "can't be compiled for", nearest(name, CORES))
    return CORES[name]


def cache_dir() -> Path:
    """Return the folder for compiled objects, made if it is missing."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(root) / "edgeshrink"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        what = f"can't be made ({err.strerror})"
        raise ToolchainError(
            str(folder), what, "point XDG_CACHE_HOME to a writable folder"
        ) from err
    return folder


@functools.cache
def find_zig() -> Path:
    """Return the zig program of the `ziglang` package."""
    spec = importlib.util.find_spec("ziglang")
    if spec is None or not spec.submodule_search_locations:
        raise ToolchainError("zig", "is not installed", BUILD_EXTRA)
    program = Path(spec.submodule_search_locations[0]) / "zig"
    if not program.is_file():
        raise ToolchainError(str(program), "is missing from the package ziglang", BUILD_EXTRA)
    return program


def find_host_cc() -> tuple[str, ...]:
    """Return the command of this host's C compiler: cc, gcc or clang, else zig's."""
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return (found,)
    return (str(find_zig()), "cc")


def find_cross_cc(core_name: str, compiler: str) -> tuple[str, ...]:
    """Return the command, with the core's flags, of `compiler` (of `COMPILERS`)."""
    entry = core(core_name)
    if compiler not in COMPILERS:
        known = ", ".join(COMPILERS)
        raise ConfigError(f"compiler {compiler!r}", "is not known", f"choose from {known}")
    if compiler == "zig":
        return (str(find_zig()), "cc", *entry.zig, *_ZIG_FLAGS)
    found = shutil.which(entry.gcc)
    if found is None:
        package = "gcc-arm-none-eabi" if entry.gcc.startswith("arm") else "gcc-riscv64-unknown-elf"
        raise ToolchainError(entry.gcc, "is not on PATH", f"apt-get install {package}")
    return (found, *entry.gcc_flags)


def compiler_version(command: Sequence[str]) -> str:
    """Return the first line of what the compiler says of itself, "clang version 22.1.8"."""
    program = tuple(command[:2] if Path(command[0]).name == "zig" else command[:1])
    return _version(program)


@functools.cache
def _version(program: tuple[str, ...]) -> str:
    lines = _run([*program, "--version"], program[0]).splitlines()
    return lines[0].strip() if lines else ""


def compile_elf(
    sources: Sequence[Path],
    core_name: str,
    out: Path,
    *,
    include: Sequence[Path] = (),
    defines: Sequence[str] = (),
    optimize: str = "-O3",
    compiler: str = "zig",
    layout: MemoryLayout | None = None,
) -> Path:
    """Compile and link C sources with our start-up code into a firmware, and return its path.

    The program starts in `main`; when that returns, the run ends with its status.

    Args:
        sources: C files, one object each.
        core_name: A key of `CORES`.
        out: The ELF to write.
        include: Folders for `#include`.
        defines: `NAME` or `NAME=VALUE`.
        optimize: The optimization flag.
        compiler: `zig`, or `gcc` (arm-none-eabi-gcc, riscv64-unknown-elf-gcc) from PATH.
        layout: Memory sizes; left out, more than enough.

    Raises:
        ConfigError: There is no such core or compiler.
        ToolchainError: The compiler is missing, or does not compile or link the sources.
        BudgetError: The program does not fit `layout`.
    """
    layout = layout or MemoryLayout()
    command = find_cross_cc(core_name, compiler)
    flags = [optimize, *_FLAGS, *(f"-D{define}" for define in defines)]
    own_flags = ["-Os", *_FLAGS, "-fno-builtin"]  # or a loop becomes a call of memset
    own = [(BARE_METAL / name, own_flags) for name in ("startup.c", "memory.c")]
    jobs = [(Path(source), flags) for source in sources] + own
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        objects = list(pool.map(lambda job: _object(job[0], command, job[1], include), jobs))
    script = (BARE_METAL / "link.ld").read_text("utf-8")
    for key, value in vars(layout).items():
        script = script.replace(f"@{key.upper()}@", str(value))
    with _aside(out) as linked, tempfile.TemporaryDirectory() as folder:
        script_path = Path(folder) / "link.ld"
        script_path.write_text(script, "utf-8")
        words = [
            *command, *map(str, objects), "-Wl,--gc-sections", "-Wl,-e,reset",
            f"-Wl,-T,{script_path}", "-o", str(linked), "-nostdlib",
        ]  # fmt: skip
        try:
            _link(words if compiler == "zig" else [*words, "-lgcc"], str(out), layout)
        except ToolchainError as err:
            # zig builds its run-time library for every core, some 10 s once: only if it is needed.
            if compiler != "zig" or "undefined symbol" not in err.what:
                raise
            _link(words[:-1], str(out), layout)
        linked.replace(out)
    return out


def compile_host_library(
    sources: Sequence[Path],
    out: Path,
    *,
    include: Sequence[Path] = (),
    defines: Sequence[str] = (),
    optimize: str = "-O2",
    flags: Sequence[str] = (),
    cc: Sequence[str] | str | None = None,
) -> Path:
    """Compile C sources into a shared library for this host, and return its path.

    Args:
        sources: C files, one object each.
        out: The library to write.
        include: Folders for `#include`.
        defines: `NAME` or `NAME=VALUE`.
        optimize: The optimization flag.
        flags: Further flags, for compiling and linking (sanitizers, warnings).
        cc: The compiler's command; left out, what `find_host_cc` finds.

    Raises:
        ToolchainError: There is no compiler, or it does not compile or link the sources.
    """
    command = (cc,) if isinstance(cc, str) else tuple(cc or find_host_cc())
    all_flags = [optimize, "-std=c11", "-fPIC", *flags, *(f"-D{define}" for define in defines)]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        objects = list(
            pool.map(lambda source: _object(Path(source), command, all_flags, include), sources)
        )
    with _aside(out) as linked:
        _run([*command, "-shared", *flags, *map(str, objects), "-o", str(linked)], str(out))
        linked.replace(out)
    return out


def host_library(source: Path, flags: Sequence[str] = ()) -> Path:
    """Return a C file as a shared library of this host, compiled if it is not in the cache."""
    key = _hash(compiler_version(find_host_cc()).encode(), platform.machine().encode(),
                source.read_bytes(), *(flag.encode() for flag in flags))  # fmt: skip
    library = cache_dir() / f"{source.stem}-{key[:32]}.so"
    if not library.is_file():
        compile_host_library([source], library, flags=flags)
    return library


def block_hook() -> Path:
    """Return the library that counts blocks in the emulator."""
    return host_library(BARE_METAL / "block_hook.c")


def memory_hook() -> Path:
    """Return the library that simulates caches in the emulator."""
    return host_library(BARE_METAL / "memory_hook.c")


def _object(
    source: Path, command: Sequence[str], flags: Sequence[str], include: Sequence[Path]
) -> Path:
    """Return the object of one source, from the cache where nothing that goes into it changed."""
    try:
        parts = list(_inputs(source, include))
    except OSError as err:
        what = f"can't be read ({err.strerror})"
        raise ToolchainError(str(err.filename or source), what, "check the path") from err
    words = [compiler_version(command), *command[1:], *flags]
    key = _hash(*(word.encode() for word in words), *parts)
    folder = cache_dir() / "objects" / key[:2]
    cached = folder / f"{key}.o"
    if cached.is_file():
        return cached
    folder.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{path}" for path in include] + ["-idirafter", str(STUBS)]
    with _aside(cached) as made:
        _run([*command, *flags, *includes, "-c", str(source), "-o", str(made)], str(source))
        made.replace(cached)
    return cached


def _inputs(source: Path, include: Sequence[Path]) -> Iterator[bytes]:
    """Yield what the object depends on: the source and every file of ours that it includes.

    Conditions are not evaluated, so this may be more than what is compiled. Headers that are not
    found belong to the compiler, whose version is part of the key.
    """
    seen: set[Path] = set()
    todo = [source]
    while todo:
        path = todo.pop()
        text = path.read_bytes()
        yield text
        for quote, name, computed in _INCLUDE.findall(text):
            if computed:  # `#include MACRO`: can't be followed, so it must not be reused
                yield os.urandom(16)
                continue
            folders = [path.parent, *include] if quote == b'"' else list(include)
            for folder in [*folders, STUBS]:
                found = (folder / os.fsdecode(name)).resolve()
                if found.is_file():
                    yield quote + name
                    if found not in seen:
                        seen.add(found)
                        todo.append(found)
                    break


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


@contextmanager
def _aside(final: Path) -> Iterator[Path]:
    """Yield a name beside `final`, gone afterwards unless it was moved to its place."""
    path = final.with_name(f".{final.name}-{secrets.token_hex(6)}")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _link(command: Sequence[str], out: str, layout: MemoryLayout) -> None:
    try:
        _run(command, out)
    except ToolchainError as err:
        found = list(_OVERFLOW.finditer(err.what))
        for match in found:
            region = match[1] or match[3]
            over = max(int(m[2] or m[4]) for m in found if region in (m[1], m[3]))
            limit = layout.flash_bytes if region == "FLASH" else layout.ram_bytes
            what = "flash" if region == "FLASH" else "ram"
            raise BudgetError(what, need=limit + over, limit=limit, unit="B") from err
        raise


def _run(command: Sequence[str], where: str) -> str:
    """Run a tool and return what it prints; its failure is ToolchainError with the first error."""
    environment = dict(os.environ, LC_ALL="C")
    if Path(command[0]).name == "zig":
        folder = cache_dir() / "zig"
        environment |= {"ZIG_GLOBAL_CACHE_DIR": str(folder), "ZIG_LOCAL_CACHE_DIR": str(folder)}
    try:
        done = subprocess.run(
            list(command), capture_output=True, text=True, errors="replace", check=False,
            env=environment, stdin=subprocess.DEVNULL, timeout=COMPILE_TIMEOUT_S,
        )  # fmt: skip
    except OSError as err:
        what = f"can't be started ({err.strerror})"
        raise ToolchainError(command[0], what, "install a C compiler, or " + BUILD_EXTRA) from err
    except subprocess.TimeoutExpired as err:
        raise ToolchainError(command[0], f"took more than {COMPILE_TIMEOUT_S} s", "") from err
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines()]
        errors = [line for line in lines if "error" in line.lower() or "overflowed" in line]
        what = next(iter(errors or [line for line in lines if line]), f"exit {done.returncode}")
        fix = f"the command was: {' '.join(command[:2])} …"
        raise ToolchainError(where, what[:500], fix)
    return done.stdout
