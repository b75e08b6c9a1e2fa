"""What an ELF says: where its parts lie, how large they are, and which name stands where."""

from __future__ import annotations

import bisect
import hashlib
import io
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from edgeshrink.errors import ModelError, ToolchainError

BUILD_EXTRA: Final = "python -m pip install 'edgeshrink[build]'"
MAX_BYTES: Final = 1 << 30
REBUILD: Final = "give the linker's output file, an ELF with a program in it"

SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4
PF_X, PF_W = 1, 2
# Sections that only reserve room which the emulator measures instead.
RESERVED: Final = ("stack", "heap")


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of the image. Its first `len(data)` bytes are stored at `load_address`."""

    address: int  # where it is used
    load_address: int  # where it is stored: in flash for .data
    n_bytes: int  # in memory; what is beyond `data` is zero
    data: bytes = field(repr=False)
    is_writable: bool
    is_executable: bool


@dataclass(frozen=True, kw_only=True)
class Section:
    """A named part; only those that take memory are kept."""

    name: str
    address: int
    n_bytes: int
    is_writable: bool
    is_executable: bool
    has_content: bool


@dataclass(frozen=True, kw_only=True)
class Symbol:
    """A function or object. Bit 0 of a Thumb function's address is cleared."""

    name: str
    address: int
    n_bytes: int
    is_function: bool


@dataclass(frozen=True, kw_only=True)
class Elf:
    """A 32-bit little-endian executable."""

    name: str
    sha256: str
    machine: str  # "EM_ARM", "EM_RISCV"
    entry: int
    segments: tuple[Segment, ...]
    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...]  # sorted by address; functions and objects
    labels: dict[str, int]  # every named address, those of linker scripts included


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """Bytes of an image, counted from its sections. `flash` and `static_ram` are the sums."""

    code: int
    constants: int
    data: int  # initialized variables: in flash and in RAM
    zeroed: int  # .bss

    @property
    def flash(self) -> int:
        """Bytes of everything stored: code, constants and the load image of .data."""
        return self.code + self.constants + self.data

    @property
    def static_ram(self) -> int:
        """Bytes of all variables; the stack is not among them."""
        return self.data + self.zeroed


def read_elf(path: Path) -> Elf:
    """Read an ELF as far as running and measuring it takes.

    Raises:
        ModelError: The file can't be read, is damaged, or is no 32-bit little-endian executable.
        ToolchainError: pyelftools is not installed.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as err:
        raise ModelError(str(path), f"can't be read ({err.strerror})", "check the path") from err
    return parse_elf(data, name=str(path))


def parse_elf(data: bytes, *, name: str) -> Elf:
    """Return what the bytes of an ELF say; see `read_elf`."""
    try:
        from elftools.common.exceptions import ELFError
        from elftools.construct import ConstructError
    except ImportError as err:
        raise ToolchainError("pyelftools", "is not installed", BUILD_EXTRA) from err
    if len(data) > MAX_BYTES:
        raise ModelError(name, f"is larger than {MAX_BYTES} bytes", REBUILD)
    if data[:4] != b"\x7fELF":
        raise ModelError(name, "is no ELF file", REBUILD)
    damage = (
        ELFError, ConstructError, struct.error, ArithmeticError, AssertionError, AttributeError,
        LookupError, MemoryError, RecursionError, TypeError, ValueError,
    )  # fmt: skip
    try:
        return _parse(data, name)
    except damage as err:
        what = f"is a damaged ELF ({type(err).__name__}: {err})"[:300]
        raise ModelError(name, what, REBUILD) from err


def _parse(data: bytes, name: str) -> Elf:
    from elftools.elf.elffile import ELFFile

    file: Any = ELFFile(io.BytesIO(data))
    kind, machine = str(file["e_type"]), str(file["e_machine"])
    if file.elfclass != 32 or not file.little_endian:
        order = "little" if file.little_endian else "big"
        what = f"is a {file.elfclass}-bit {order}-endian ELF, must be 32-bit little-endian"
        raise ModelError(name, what, "compile it for a Cortex-M or an RV32 core")
    if kind != "ET_EXEC":
        what = f"is of type {kind}, must be an executable (ET_EXEC)"
        raise ModelError(name, what, "link it, without -r, -shared and -pie")
    segments = [
        Segment(
            address=int(part["p_vaddr"]),
            load_address=int(part["p_paddr"]),
            n_bytes=int(part["p_memsz"]),
            data=_slice(data, int(part["p_offset"]), int(part["p_filesz"]), name),
            is_writable=bool(part["p_flags"] & PF_W),
            is_executable=bool(part["p_flags"] & PF_X),
        )
        for part in file.iter_segments()
        if part["p_type"] == "PT_LOAD" and part["p_memsz"]
    ]
    for segment in segments:
        end = max(segment.address + segment.n_bytes, segment.load_address + len(segment.data))
        if len(segment.data) > segment.n_bytes or end > 1 << 32:
            raise ModelError(name, f"has a segment at {segment.address:#x} that ends "
                             f"beyond its memory, at {end:#x}", REBUILD)  # fmt: skip
    if not any(segment.data for segment in segments):
        raise ModelError(name, "holds no program", REBUILD)
    is_thumb = machine == "EM_ARM"
    sections, symbols, labels = [], [], {}
    for part in file.iter_sections():
        if part["sh_flags"] & SHF_ALLOC and part["sh_size"]:
            sections.append(
                Section(
                    name=str(part.name),
                    address=int(part["sh_addr"]),
                    n_bytes=int(part["sh_size"]),
                    is_writable=bool(part["sh_flags"] & SHF_WRITE),
                    is_executable=bool(part["sh_flags"] & SHF_EXECINSTR),
                    has_content=part["sh_type"] != "SHT_NOBITS",
                )
            )
        if part["sh_type"] == "SHT_SYMTAB":
            for entry in part.iter_symbols():
                kind, value = str(entry["st_info"]["type"]), int(entry["st_value"])
                if not entry.name or entry["st_shndx"] == "SHN_UNDEF":
                    continue
                is_function = kind == "STT_FUNC"
                if is_function and is_thumb:
                    value &= ~1
                if kind in ("STT_FUNC", "STT_OBJECT", "STT_NOTYPE"):
                    labels[str(entry.name)] = value
                if kind in ("STT_FUNC", "STT_OBJECT"):
                    symbols.append(
                        Symbol(
                            name=str(entry.name), address=value,
                            n_bytes=int(entry["st_size"]), is_function=is_function,
                        )
                    )  # fmt: skip
    symbols.sort(key=lambda symbol: (symbol.address, symbol.n_bytes, symbol.name))
    return Elf(
        name=name,
        sha256=hashlib.sha256(data).hexdigest(),
        machine=machine,
        entry=int(file["e_entry"]),
        segments=tuple(segments),
        sections=tuple(sections),
        symbols=tuple(symbols),
        labels=labels,
    )


def _slice(data: bytes, offset: int, n_bytes: int, name: str) -> bytes:
    if offset + n_bytes > len(data):
        what = f"ends after {len(data)} bytes, a segment needs {offset + n_bytes}"
        raise ModelError(name, what, "the file is truncated: copy it again")
    return data[offset : offset + n_bytes]


def image_size(elf: Elf) -> ImageSize:
    """Return the bytes of an image: from its sections, or from its segments if it has none.

    Constants that the linker put among the code are told apart by their symbols.
    """
    if not elf.sections:
        stored = [part for part in elf.segments if not part.is_writable]
        written = [part for part in elf.segments if part.is_writable]
        data = sum(len(part.data) for part in written)
        return ImageSize(
            code=sum(len(part.data) for part in stored if part.is_executable),
            constants=sum(len(part.data) for part in stored if not part.is_executable),
            data=data,
            zeroed=sum(part.n_bytes for part in written) - data,
        )
    code = constants = data = zeroed = 0
    for section in elf.sections:
        if not section.has_content:
            reserved = any(word in section.name.lower() for word in RESERVED)
            zeroed += 0 if reserved else section.n_bytes
        elif section.is_writable:
            data += section.n_bytes
        elif section.is_executable:
            among = _object_bytes(elf.symbols, section)
            code += section.n_bytes - among
            constants += among
        else:
            constants += section.n_bytes
    return ImageSize(code=code, constants=constants, data=data, zeroed=zeroed)


def _object_bytes(symbols: Iterable[Symbol], section: Section) -> int:
    """Return how many bytes of a section are objects, aliases counted once."""
    end = section.address + section.n_bytes
    total, covered = 0, section.address
    for symbol in symbols:
        if not symbol.is_function and section.address <= symbol.address < end:
            upper = min(end, symbol.address + symbol.n_bytes)
            total += max(0, upper - max(covered, symbol.address))
            covered = max(covered, upper)
    return total


class FunctionMap:
    """Which function an address lies in."""

    def __init__(self, symbols: Iterable[Symbol]) -> None:
        best: dict[int, Symbol] = {}
        for symbol in symbols:  # of several names the longest function, then the first name
            known = best.get(symbol.address)
            if symbol.is_function and (known is None or symbol.n_bytes > known.n_bytes):
                best[symbol.address] = symbol
        self._symbols = [best[address] for address in sorted(best)]
        self._addresses = [symbol.address for symbol in self._symbols]

    def name(self, address: int) -> str:
        """Return the function's name, "" where none is known."""
        symbol = self._at(address)
        return symbol.name if symbol else ""

    def describe(self, address: int) -> str:
        """Return "0x8000123 (name+4)"."""
        symbol = self._at(address)
        if symbol is None:
            return f"{address:#x}"
        offset = address - symbol.address
        return f"{address:#x} ({symbol.name}{f'+{offset}' if offset else ''})"

    def _at(self, address: int) -> Symbol | None:
        index = bisect.bisect_right(self._addresses, address) - 1
        if index < 0:
            return None
        symbol = self._symbols[index]
        inside = address < symbol.address + symbol.n_bytes or symbol.n_bytes == 0
        return symbol if inside else None
