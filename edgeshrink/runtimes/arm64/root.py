"""A small arm64 root folder (Python, the C library, the runtimes' wheels) and how to enter it.

`edgeshrink setup qemu` prepares it (`prepare.py`). Nothing here fetches anything.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from edgeshrink.errors import ConfigError, ToolchainError
from edgeshrink.target import Target
from edgeshrink.toolchain import cache_dir, host_library

QEMU: Final = "qemu-aarch64"
QEMU_INSTALL: Final = "apt-get install qemu-user"
SETUP: Final = "edgeshrink setup qemu"
MANIFEST: Final = "arm64-root.json"
FORMAT: Final = 1  # of the folder: another one is prepared anew
PYTHON: Final = "usr/bin/python3.11"
PLUGIN_SOURCE: Final = Path(__file__).with_name("count_plugin.c")

# Engine of `runtimes.open_model` -> the requirements that bring its arm64 build, exactly.
RUNTIMES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({
    "litert": ("ai-edge-litert==2.3.0", "numpy==2.4.6", "backports-strenum==1.2.8",
               "flatbuffers==25.12.19", "protobuf==6.33.6", "tqdm==4.67.1",
               "typing-extensions==4.15.0"),
    "tflite-runtime": ("tflite-runtime==2.14.0", "numpy==1.26.4"),
    "executorch": ("executorch==1.5.1", "torch==2.13.0", "numpy==2.4.6",
                   "typing-extensions==4.15.0"),
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """A core as Linux describes it: the runtimes choose their kernels by these lines."""

    part: int  # of the main ID register, implementer Arm
    features: str


_ARMV8: Final = "fp asimd evtstrm crc32 cpuid"
CPUS: Final[Mapping[str, Cpu]] = MappingProxyType({
    "cortex-a53": Cpu(part=0xD03, features=_ARMV8),
    "cortex-a72": Cpu(part=0xD08, features=_ARMV8),
    "cortex-a76": Cpu(
        part=0xD0B,
        features=f"{_ARMV8} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp",
    ),
})  # fmt: skip
N_CPUS: Final = 4
IN_ORDER: Final = frozenset({"cortex-a53", "cortex-a55", "cortex-a510", "cortex-a520"})
NOT_64_BIT: Final = frozenset({
    "cortex-a5", "cortex-a7", "cortex-a8", "cortex-a9", "cortex-a15", "cortex-a17", "cortex-a32",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Arm64Root:
    """A prepared root folder."""

    folder: Path
    packages: Mapping[str, str]  # Debian package -> version
    runtimes: Mapping[str, tuple[str, ...]]  # engine -> its requirements


@dataclass(frozen=True, kw_only=True)
class Guest:
    """How to start an arm64 Python, and where its instruction counts arrive."""

    command: tuple[str, ...]
    counts: Path


def root_folder() -> Path:
    """Return where the root lies, there or not."""
    return cache_dir() / f"arm64-root-{FORMAT}"


def find_root() -> Arm64Root:
    """Return the prepared root.

    Raises:
        ToolchainError: QEMU or the root is missing; the remedy is the line to type.
    """
    if shutil.which(QEMU) is None:
        raise ToolchainError(QEMU, "is not on PATH", f"{QEMU_INSTALL}, then {SETUP}")
    folder = root_folder()
    try:
        data = json.loads((folder / MANIFEST).read_text())
        return Arm64Root(
            folder=folder,
            packages=dict(data["packages"]),
            runtimes={name: tuple(pins) for name, pins in data["runtimes"].items()},
        )
    except FileNotFoundError as err:
        raise ToolchainError("the arm64 runtimes", "are not prepared", SETUP) from err
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise ToolchainError(str(folder / MANIFEST), "is damaged", f"{SETUP} --again") from err


def cpu_model(target: Target) -> str:
    """Return which of `CPUS` stands for a target's cores.

    Raises:
        ConfigError: the target has no 64-bit Arm cores.
    """
    core = target.cpu.core
    if target.kind != "application-processor" or not core.startswith(("cortex-a", "cortex-x")):
        what, fix = f"does not run on {target.name}", "it is for 64-bit Cortex-A targets"
        raise ConfigError("--engine qemu", what, fix)
    if core in NOT_64_BIT:
        what = f"does not run on {target.name}: {core} is a 32-bit core"
        raise ConfigError("--engine qemu", what, "it is for 64-bit Cortex-A targets")
    if "dotprod" in target.cpu.isa:
        return "cortex-a76"
    return "cortex-a53" if core in IN_ORDER else "cortex-a72"


@contextmanager
def guest(root: Arm64Root, runtime: str, cpu: str) -> Iterator[Guest]:
    """Yield how to start Python with a runtime's arm64 build; its counts last as long as the block.

    Args:
        root: From `find_root`.
        runtime: A key of `RUNTIMES`.
        cpu: A key of `CPUS`.

    Raises:
        ToolchainError: the root has not this runtime.
    """
    if runtime not in root.runtimes:
        fix = f"{SETUP} --again" if runtime != "executorch" else f"{SETUP} --executorch"
        raise ToolchainError(f"{runtime} for arm64", "is not prepared", fix)
    tree = root.folder / "cores" / cpu
    variables = {
        "PYTHONPATH": str(root.folder / "site" / runtime),
        "PYTHONHOME": "/usr",
        "LD_LIBRARY_PATH": str(root.folder / "stand-ins"),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    words = [word for name, value in variables.items() for word in ("-E", f"{name}={value}")]
    with tempfile.NamedTemporaryFile(prefix="edgeshrink-counts-") as counts:
        yield Guest(
            command=(
                QEMU, "-L", str(tree), "-cpu", cpu, *words,
                "-plugin", f"{count_plugin()},out={counts.name}",
                str(root.folder / "root" / PYTHON),
            ),
            counts=Path(counts.name),
        )  # fmt: skip


def cpuinfo(cpu: str) -> str:
    """Return /proc/cpuinfo of `N_CPUS` such cores."""
    entry = CPUS[cpu]
    return "".join(
        f"processor\t: {index}\nBogoMIPS\t: 108.00\nFeatures\t: {entry.features}\n"
        f"CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\n"
        f"CPU part\t: {entry.part:#x}\nCPU revision\t: 3\n\n"
        for index in range(N_CPUS)
    )


@functools.cache
def count_plugin() -> Path:
    """Return the plugin that counts instructions, compiled if it is not in the cache."""
    version = 1 if qemu_version() < (9, 0) else 2
    # QEMU resolves the functions of its interface when it loads the plugin.
    flags = (f"-DAPI_VERSION={version}", "-Wl,--unresolved-symbols=ignore-all")
    return host_library(PLUGIN_SOURCE, flags)


@functools.cache
def qemu_version() -> tuple[int, int]:
    """Return the version of the installed QEMU, (7, 2)."""
    try:
        shown = subprocess.run(
            [QEMU, "--version"], capture_output=True, text=True, check=True, timeout=30
        ).stdout
    except (OSError, subprocess.SubprocessError) as err:
        raise ToolchainError(QEMU, "can't be started", QEMU_INSTALL) from err
    found = re.search(r"version (\d+)\.(\d+)", shown)
    if found is None:
        raise ToolchainError(QEMU, f"says {shown[:80]!r} of its version", QEMU_INSTALL)
    return int(found[1]), int(found[2])


def size_bytes(folder: Path) -> int:
    """Return what the files below a folder take."""
    return sum(
        os.lstat(os.path.join(path, name)).st_size  # noqa: PTH118
        for path, _, names in os.walk(folder)
        for name in names
    )
