"""Stand-ins for shared libraries that a program links to and never calls.

PyTorch's arm64 wheel links to 3 GB of CUDA libraries. ExecuTorch needs the wheel's CPU half, which
can't be loaded without them; so each is stood in for by a library with the same name, whose
functions all answer that there is no device.
"""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from edgeshrink.errors import ToolchainError
from edgeshrink.toolchain import find_zig

NO_DEVICE: Final = 100  # cudaErrorNoDevice and CUDA_ERROR_NO_DEVICE
FOREIGN: Final = re.compile(r"(lib)?(cu|nccl|nv)")  # how names of what is stood in for begin


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What shared libraries need and do not have among themselves."""

    libraries: frozenset[str]  # by DT_NEEDED
    versioned: Mapping[str, frozenset[tuple[str, str]]]  # library -> (symbol, version)
    plain: frozenset[str]  # symbols without a version, of any library


@dataclass
class _Found:
    needed: set[str] = field(default_factory=set)
    defined: set[str] = field(default_factory=set)
    versioned: dict[str, set[tuple[str, str]]] = field(default_factory=lambda: defaultdict(set))
    plain: set[str] = field(default_factory=set)


def needs(libraries: Iterable[Path], present: Iterable[str]) -> Needs:
    """Return what `libraries` need of CUDA, beyond themselves and libraries named in `present`."""
    found, there = _Found(), set(present)
    for path in libraries:
        there.add(path.name)
        _read(path, found)
    missing = frozenset(name for name in found.needed - there if FOREIGN.match(name))
    return Needs(
        libraries=missing,
        versioned={name: frozenset(found.versioned.get(name, ())) for name in missing},
        plain=frozenset(s for s in found.plain - found.defined if FOREIGN.match(s)),
    )


def _read(path: Path, found: _Found) -> None:
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        with path.open("rb") as file:
            elf = ELFFile(file)
            dynamic = elf.get_section_by_name(".dynamic")
            symbols = elf.get_section_by_name(".dynsym")
            if dynamic is None or symbols is None:
                return
            found.needed.update(tag.needed for tag in dynamic.iter_tags("DT_NEEDED"))
            versions = elf.get_section_by_name(".gnu.version")
            wanted = elf.get_section_by_name(".gnu.version_r")
            origin = {
                entry["vna_other"]: (library.name, entry.name)
                for library, entries in (wanted.iter_versions() if wanted else ())
                for entry in entries
            }
            for index, symbol in enumerate(symbols.iter_symbols()):
                if symbol["st_shndx"] != "SHN_UNDEF":
                    found.defined.add(symbol.name)
                    continue
                number = versions.get_symbol(index)["ndx"] if versions else None
                library, version = origin.get(number, ("", ""))
                if library:
                    found.versioned[library].add((symbol.name, version))
                elif symbol["st_info"]["bind"] == "STB_GLOBAL":
                    found.plain.add(symbol.name)
    except (OSError, ELFError) as err:
        raise ToolchainError(str(path), f"is no shared library ({err})", "prepare again") from err


def write_stand_ins(wanted: Needs, folder: Path) -> None:
    """Write a library for each of `wanted.libraries` into `folder`, for arm64 Linux."""
    folder.mkdir(parents=True, exist_ok=True)
    for library in sorted(wanted.libraries):
        symbols = wanted.versioned[library]
        # Symbols without a version come from libraries without any; which one, nothing says.
        names = {name for name, _ in symbols} if symbols else wanted.plain
        source, script = folder / "stand_in.c", folder / "stand_in.map"
        lines = [f"int {name}(void) {{ return {NO_DEVICE}; }}" for name in sorted(names)]
        source.write_text("\n".join([*lines, ""]) or "\n")
        flags = ["-target", "aarch64-linux-gnu", "-shared", "-nostdlib", "-fno-builtin", "-w"]
        if symbols:
            script.write_text(_version_script(symbols))
            flags.append(f"-Wl,--version-script={script}")
        command = [str(find_zig()), "cc", *flags, f"-Wl,-soname,{library}", str(source)]
        done = subprocess.run(
            [*command, "-o", str(folder / library)],
            capture_output=True, text=True, errors="replace", check=False, timeout=300,
        )  # fmt: skip
        if done.returncode:
            raise ToolchainError(library, f"no stand-in for it: {done.stderr[:300]}", "")
        source.unlink()
        script.unlink(missing_ok=True)


def _version_script(symbols: Iterable[tuple[str, str]]) -> str:
    of_version: dict[str, list[str]] = defaultdict(list)
    for name, version in sorted(symbols):
        of_version[version].append(name)
    return "".join(
        f"{version} {{ global: {' '.join(f'{name};' for name in names)} }};\n"
        for version, names in of_version.items()
    )
