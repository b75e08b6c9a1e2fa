"""Deltas between two releases: made on a workstation, applied on a device that trusts nothing.

A delta is `ESDELTA1`, the length of a JSON header (4 bytes, little-endian), the header, and packed
streams. The header lists every file of the new release and how it comes about:

- `copy`: a file of the old release, byte for byte.
- `full`: one stream, the file.
- `patch`: two streams. The first holds tables and everything that is no weight; the second the
  differences of weight tensors, each against the tensor of the same layer, wherever that lies in
  the old file. bsdiff sees a retrained model, each weight a step up or down, as all new; here its
  differences are a few small numbers.

What is no weight is patched by bsdiff's controls (add, copy, seek; Percival, "Naive differences of
executable code", 2003). A stream is packed by whichever of xz, bz2 and deflate makes it smallest.
Applying needs the standard library and numpy. A delta is only a way to get bytes cheaply: what
comes out is compared with the signed digest.
"""

from __future__ import annotations

import bz2
import json
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from edgeshrink.artifact import FileEntry, file_entry
from edgeshrink.errors import (
    DecompressionBombError,
    DeltaBaseError,
    DeltaError,
    ModelError,
    ToolchainError,
)

if TYPE_CHECKING:
    from edgeshrink.graph import Graph

MAGIC: Final = b"ESDELTA1"
MAX_HEADER_BYTES: Final = 1 << 20
UNPACK_MEMORY_BYTES: Final = 1 << 26  # what unpacking may take beside its result
DICTIONARY_BYTES: Final = 1 << 23  # so that unpacking takes 9 MiB on the device
BSDIFF_LIMIT_BYTES: Final = 1 << 26  # sorting suffixes takes 17 times as much
MAX_PIECES: Final = 1 << 16  # of a patch, over and above one for every 64 bytes
FIX: Final = "the whole release can be had instead"

_COUNTS: Final = struct.Struct("<II")
_REGION_FIELDS: Final = 4  # new offset, old offset, bytes, bytes per value
_CONTROL_FIELDS: Final = 3  # bytes to add, bytes to copy, bytes to skip in the old file

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Region:
    """A tensor's values in the new file, and those they are told by in the old one."""

    new: int
    old: int
    n_bytes: int
    itemsize: int


# ------------------------------------------------------------------------------ packed streams


def _deflate(data: bytes, strategy: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 15, 9, strategy)
    return packer.compress(data) + packer.flush()


def _xz(data: bytes, literal_bits: int) -> bytes:
    steps = [
        {
            "id": lzma.FILTER_LZMA2,
            "preset": 9 | lzma.PRESET_EXTREME,
            "dict_size": DICTIONARY_BYTES,
            "lc": literal_bits,
            "pb": 0,
        }
    ]
    return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_NONE, filters=steps)


# Small alphabets of noise want Huffman codes alone; sparse changes and text want xz.
_PACKERS: Final[tuple[tuple[str, Callable[[bytes], bytes]], ...]] = (
    ("xz", lambda data: _xz(data, 3)),
    ("xz", lambda data: _xz(data, 0)),
    ("bz2", lambda data: bz2.compress(data, 9)),
    ("deflate", lambda data: _deflate(data, zlib.Z_DEFAULT_STRATEGY)),
    ("deflate", lambda data: _deflate(data, zlib.Z_HUFFMAN_ONLY)),
)
_UNPACKERS: Final[Mapping[str, Callable[[], Any]]] = {
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, UNPACK_MEMORY_BYTES),
    "bz2": bz2.BZ2Decompressor,
    "deflate": zlib.decompressobj,
}


def pack_stream(data: bytes) -> tuple[str, bytes]:
    """Return the codec that makes `data` smallest, and what it makes of it."""
    return min(((name, pack(data)) for name, pack in _PACKERS), key=lambda pair: len(pair[1]))


def unpack_stream(codec: str, packed: bytes, n_bytes: int, place: str) -> bytes:
    """Return the `n_bytes` that `packed` holds.

    Raises:
        DecompressionBombError: It holds more, or unpacking would take too much memory.
        DeltaError: It is damaged, or holds less.
    """
    data = _unpack(codec, packed, n_bytes + 1, place)
    if len(data) > n_bytes:
        raise DecompressionBombError(place, f"unpacks to more than its {n_bytes:,} bytes", FIX)
    if len(data) < n_bytes:
        raise DeltaError(place, f"unpacks to {len(data):,} of {n_bytes:,} bytes", FIX)
    return data


def _unpack(codec: str, packed: bytes, limit: int, place: str) -> bytes:
    """Return what `packed` holds, its first `limit` bytes if that is more: none beyond is made."""
    try:
        data: bytes = _UNPACKERS[codec]().decompress(packed, limit)
    except KeyError:
        raise DeltaError(place, f"is packed by {codec!r:.40}", FIX) from None
    except (lzma.LZMAError, zlib.error, OSError, ValueError, EOFError) as err:
        if "Memory usage limit" in str(err):
            what = f"needs more than {UNPACK_MEMORY_BYTES:,} bytes of memory to unpack"
            raise DecompressionBombError(place, what, FIX) from err
        raise DeltaError(place, f"can't be unpacked ({err})", FIX) from err
    return data


# ------------------------------------------------------------------------------ making


def make_delta(old: Mapping[str, bytes], new: Mapping[str, bytes]) -> bytes:
    """Return a delta that leads from the files of one release to those of another.

    Args:
        old, new: Content by path in the release.

    Raises:
        ToolchainError: bsdiff4, which searches for equal pieces, is not installed.
    """
    by_content = {file_entry(data): path for path, data in sorted(old.items(), reverse=True)}
    entries: list[dict[str, Any]] = []
    streams: list[bytes] = []
    for path, data in sorted(new.items()):
        entry = file_entry(data)
        described: dict[str, Any] = {"path": path, "sha256": entry.sha256, "bytes": entry.n_bytes}
        if entry in by_content:
            described |= {"how": "copy", "base": by_content[entry], "base_sha256": entry.sha256}
        else:
            how, base, packed = _smallest(old.get(path), data, path)
            described |= {"how": how, "streams": [[codec, len(part)] for codec, part in packed]}
            if base is not None:
                described |= {"base": path, "base_sha256": file_entry(base).sha256}
            streams += [part for _, part in packed]
        entries.append(described)
    header = json.dumps({"files": entries}, separators=(",", ":"), sort_keys=True).encode()
    return MAGIC + struct.pack("<I", len(header)) + header + b"".join(streams)


def _smallest(
    old: bytes | None, new: bytes, path: str
) -> tuple[str, bytes | None, list[tuple[str, bytes]]]:
    """Return how, against which base, and with which packed streams `new` is told shortest."""
    whole = [pack_stream(new)]
    best: tuple[str, bytes | None, list[tuple[str, bytes]]] = ("full", None, whole)
    if old is None:
        return best
    candidates = [_weight_regions(old, new)] if path.endswith(".tflite") else []
    if len(old) == len(new):  # other formats, retrained: the same layout, other numbers
        candidates.append([Region(new=0, old=0, n_bytes=len(new), itemsize=1)])
    candidates.append([])
    for regions in candidates:
        packed = [pack_stream(stream) for stream in _difference(old, new, regions)]
        if sum(len(p) for _, p in packed) < sum(len(p) for _, p in best[2]):
            best = ("patch", old, packed)
        if regions and best[0] == "patch":
            break
    return best


def _weight_regions(old: bytes, new: bytes) -> list[Region]:
    """Return where the constants of `new` lie, each with the constant of `old` it is likest to.

    A tensor's likest is the one of its name, else the one of its number, if type and size agree.
    """
    from edgeshrink.graph_reader import read_graph

    try:
        before, after = (list(_constants(read_graph(data), data)) for data in (old, new))
    except ModelError:
        return []  # a file that we can't read is patched as any other
    by_name = {(graph, name, kind): at for graph, _, name, kind, at in before}
    by_number = {(graph, number, kind): at for graph, number, _, kind, at in before}
    regions, end = [], 0
    for graph, number, name, kind, at in sorted(after, key=lambda constant: constant[-1]):
        like = by_name.get((graph, name, kind), by_number.get((graph, number, kind)))
        dtype, n_bytes = kind
        if like is None or at < end or not n_bytes:  # tensors may share a buffer
            continue
        itemsize = np.dtype(dtype).itemsize if dtype in _WHOLE_VALUES else 1
        regions.append(Region(new=at, old=like, n_bytes=n_bytes, itemsize=itemsize))
        end = at + n_bytes
    return regions


_WHOLE_VALUES: Final = ("float16", "float32", "float64", "int16", "int32", "int64", "uint16")


def _constants(graph: Graph, data: bytes) -> Iterator[tuple[int, int, str, tuple[str, int], int]]:
    """Yield (subgraph, number, name, (dtype, bytes), offset in `data`) of each constant."""
    start = _address(np.frombuffer(data, np.uint8))
    for number, part in enumerate(chain([graph], graph.subgraphs)):
        for tensor in part.tensors:
            if tensor.data is not None:
                kind = tensor.dtype, tensor.data.nbytes
                yield number, tensor.index, tensor.name, kind, _address(tensor.data) - start


def _address(array: npt.NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _difference(old: bytes, new: bytes, regions: list[Region]) -> tuple[bytes, bytes]:
    """Return the two streams of a patch: tables and the rest, differences of the regions."""
    before, after = np.frombuffer(old, np.uint8), np.frombuffer(new, np.uint8)
    planes = [_subtract(before, after, region) for region in regions]
    old_rest = _complement(before, [(r.old, r.n_bytes) for r in regions])
    new_rest = _complement(after, [(r.new, r.n_bytes) for r in regions])
    controls, added, copied = _bsdiff(old_rest.tobytes(), new_rest.tobytes())
    tables = [(r.new, r.old, r.n_bytes, r.itemsize) for r in regions]
    head = _COUNTS.pack(len(regions), len(controls))
    return (
        head
        + np.array(tables, "<i8").tobytes()
        + np.array(controls, "<i8").tobytes()
        + added
        + copied,
        b"".join(plane.tobytes() for plane in planes),
    )


def _bsdiff(old: bytes, new: bytes) -> tuple[list[tuple[int, int, int]], bytes, bytes]:
    if not old or len(old) + len(new) > BSDIFF_LIMIT_BYTES:
        return ([(0, len(new), 0)] if new else []), b"", new
    try:
        from bsdiff4 import core
    except ImportError as err:
        fix = "python -m pip install 'edgeshrink[fleet]'"
        raise ToolchainError("bsdiff4", "is not installed", fix) from err
    controls, added, copied = core.diff(old, new)
    # bsdiff writes a number as its magnitude, with the sign in the highest bit.
    stored = np.frombuffer(controls, "<i8")
    numbers = np.where(stored < 0, -(stored & np.int64(2**63 - 1)), stored)
    return [(a, b, c) for a, b, c in numbers.reshape(-1, _CONTROL_FIELDS).tolist()], added, copied


def _subtract(old: Bytes, new: Bytes, region: Region) -> Bytes:
    """Return new - old, value by value, small steps of either sign as small numbers, in planes.

    Values are taken as unsigned integers, floats by their bits. A plane holds the same byte of all
    values, so that high bytes, which hardly differ, lie together.
    """
    kind = np.dtype(f"<u{region.itemsize}")
    before = old[region.old : region.old + region.n_bytes].view(kind)
    after = new[region.new : region.new + region.n_bytes].view(kind)
    step = after - before  # modulo 2**bits
    sign = step >> np.array(8 * region.itemsize - 1, kind)
    folded = (step << np.array(1, kind)) ^ (np.array(0, kind) - sign)
    planes: Bytes = folded.view(np.uint8).reshape(-1, region.itemsize).T
    return np.ascontiguousarray(planes).reshape(-1)


# ------------------------------------------------------------------------------ applying


def apply_delta(
    delta: bytes, old_folder: Path, new_folder: Path, expected: Mapping[str, FileEntry]
) -> None:
    """Write the files of the new release into `new_folder`, each checked against `expected`.

    Args:
        delta: What a mirror sent. It is trusted no more for being signed.
        old_folder: The files of the old release.
        new_folder: An empty folder.
        expected: What was signed: digest and size by path. Paths are safe.

    Raises:
        DeltaBaseError: The old files are not those that the delta was made from.
        DecompressionBombError: A stream unpacks to more than what was signed allows.
        DeltaError: The delta is damaged, or leads to other files than the signed ones.
    """
    header, position = _read_header(delta)
    entries = {entry["path"]: entry for entry in header}
    if len(entries) != len(header) or entries.keys() != expected.keys():
        raise DeltaError("delta", "holds other files than the signed release", FIX)
    for path, signed in sorted(expected.items()):
        entry = entries[path]
        packed = []
        for codec, n_bytes in entry["streams"]:
            packed.append((codec, delta[position : position + n_bytes]))
            position += n_bytes
        data = _rebuild(entry, packed, old_folder, signed)
        if file_entry(data) != signed:
            raise DeltaError(f"delta: {path}", "leads to another file than was signed", FIX)
        target = new_folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    if position != len(delta):
        raise DeltaError("delta", f"is {len(delta):,} bytes, its parts end at {position:,}", FIX)


def base_digests(delta: bytes) -> Mapping[str, str]:
    """Return the SHA-256 of each file of the old release that `delta` builds on."""
    header, _ = _read_header(delta)
    return {entry["base"]: entry["base_sha256"] for entry in header if entry["base"] is not None}


def _read_header(delta: bytes) -> tuple[list[dict[str, Any]], int]:
    """Return the entries, in the order of their streams, and where the first stream begins."""
    start = len(MAGIC) + 4
    if delta[: len(MAGIC)] != MAGIC or len(delta) < start:
        raise DeltaError("delta", f"begins with {delta[:8]!r}, a delta with {MAGIC!r}", FIX)
    length = int.from_bytes(delta[len(MAGIC) : start], "little")
    if length > min(MAX_HEADER_BYTES, len(delta) - start):
        raise DeltaError("delta", f"claims a header of {length:,} bytes", FIX)
    try:
        content = json.loads(delta[start : start + length])
        entries = [_entry(entry) for entry in content["files"]]
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise DeltaError("delta", f"has a damaged header ({err})", FIX) from err
    return sorted(entries, key=lambda entry: str(entry["path"])), start + length


def _entry(content: Any) -> dict[str, Any]:
    """Return one file's entry, of known shape; raises what `_read_header` catches."""
    how, path, base = content["how"], content["path"], content.get("base")
    streams = [(codec, n_bytes) for codec, n_bytes in content.get("streams", ())]
    if not all(
        isinstance(codec, str) and type(n_bytes) is int and n_bytes >= 0
        for codec, n_bytes in streams
    ):
        raise ValueError("a stream has no codec or no length")
    if len(streams) != {"copy": 0, "full": 1, "patch": 2}[how]:
        raise ValueError(f"{how} with {len(streams)} streams")
    if (how == "full") != (base is None):
        raise ValueError(f"{how} with the base {base!r:.80}")
    digest = None if base is None else content["base_sha256"]
    if not isinstance(path, str) or not isinstance(base, str | None):
        raise TypeError("a path is no text")
    return {"how": how, "path": path, "base": base, "base_sha256": digest, "streams": streams}


def _rebuild(
    entry: dict[str, Any], packed: list[tuple[str, bytes]], old_folder: Path, signed: FileEntry
) -> bytes:
    place = f"delta: {entry['path']}"
    if entry["how"] == "full":
        return unpack_stream(*packed[0], signed.n_bytes, place)
    old = _read_base(old_folder, entry["base"], entry["base_sha256"], place)
    if entry["how"] == "copy":
        return old
    # The tables come first, and say how long the rest is.
    codec, stream = packed[0]
    head = _unpack(codec, stream, _COUNTS.size, place)
    if len(head) < _COUNTS.size:
        raise DeltaError(place, "has no tables", FIX)
    n_regions, n_controls = _COUNTS.unpack(head)
    if n_regions + n_controls > MAX_PIECES + signed.n_bytes // 64:
        raise DeltaError(place, f"has {n_regions + n_controls:,} pieces", FIX)
    n_numbers = _REGION_FIELDS * n_regions + _CONTROL_FIELDS * n_controls
    tables_bytes = _COUNTS.size + 8 * n_numbers
    tables = _unpack(codec, stream, tables_bytes + signed.n_bytes + 1, place)
    if len(tables) > tables_bytes + signed.n_bytes:
        raise DecompressionBombError(place, f"unpacks to more than {len(tables) - 1:,} bytes", FIX)
    if len(tables) < tables_bytes:
        raise DeltaError(place, "ends within its tables", FIX)
    numbers = np.frombuffer(tables, "<i8", n_numbers, _COUNTS.size)
    region_table, control_table = np.split(numbers, [_REGION_FIELDS * n_regions])
    regions = [
        Region(new=new, old=before, n_bytes=n_bytes, itemsize=itemsize)
        for new, before, n_bytes, itemsize in region_table.reshape(-1, _REGION_FIELDS).tolist()
    ]
    controls = control_table.reshape(-1, _CONTROL_FIELDS).tolist()
    _check_regions(regions, len(old), signed.n_bytes, place)
    covered = sum(region.n_bytes for region in regions)
    if len(tables) != tables_bytes + signed.n_bytes - covered:
        raise DeltaError(place, "has streams of the wrong length", FIX)
    rest = np.frombuffer(tables, np.uint8)[tables_bytes:]
    steps = np.frombuffer(unpack_stream(*packed[1], covered, place), np.uint8)
    return _patch(np.frombuffer(old, np.uint8), regions, controls, steps, rest, signed, place)


def _read_base(folder: Path, base: str, digest: Any, place: str) -> bytes:
    from edgeshrink.fleet.archive import check_name

    check_name(base, place)
    try:
        old = (folder / base).read_bytes()
    except OSError as err:
        what = f"builds on {base}, which is not there ({err.strerror})"
        raise DeltaBaseError(place, what, FIX) from err
    if file_entry(old).sha256 != digest:
        raise DeltaBaseError(place, f"builds on another {base} than the one installed", FIX)
    return old


def _check_regions(regions: list[Region], old_bytes: int, new_bytes: int, place: str) -> None:
    """Raise DeltaError unless regions lie within both files and, in the new one, apart."""
    end = 0
    for region in regions:
        fits = (
            region.new >= end
            and 0 <= region.old <= old_bytes - region.n_bytes
            and 0 < region.n_bytes <= new_bytes - region.new
            and region.itemsize in (1, 2, 4, 8)
            and region.n_bytes % region.itemsize == 0
        )
        if not fits:
            raise DeltaError(place, f"has an impossible region {region}", FIX)
        end = region.new + region.n_bytes


def _patch(
    old: Bytes,
    regions: list[Region],
    controls: list[list[int]],
    steps: Bytes,
    rest: Bytes,
    signed: FileEntry,
    place: str,
) -> bytes:
    """Return the new file: regions by their steps, everything between them by controls."""
    new = np.empty(signed.n_bytes, np.uint8)
    is_rest = np.ones(signed.n_bytes, np.bool_)
    at = 0
    for region in regions:
        _add(old, new, region, steps[at : at + region.n_bytes])
        is_rest[region.new : region.new + region.n_bytes] = False
        at += region.n_bytes
    old_rest = _complement(old, [(region.old, region.n_bytes) for region in regions])
    new[is_rest] = _run_controls(old_rest, controls, rest, place)
    return new.tobytes()


def _add(old: Bytes, new: Bytes, region: Region, planes: Bytes) -> None:
    """Undo `_subtract`."""
    kind = np.dtype(f"<u{region.itemsize}")
    folded = np.ascontiguousarray(planes.reshape(region.itemsize, -1).T).view(kind).reshape(-1)
    one = np.array(1, kind)
    step = (folded >> one) ^ (np.array(0, kind) - (folded & one))
    before = old[region.old : region.old + region.n_bytes].view(kind)
    new[region.new : region.new + region.n_bytes] = (before + step).view(np.uint8)


def _complement(data: Bytes, spans: list[tuple[int, int]]) -> Bytes:
    """Return `data` without the bytes in `spans` (first, length)."""
    kept = np.ones(len(data), np.bool_)
    for first, n_bytes in spans:
        kept[first : first + n_bytes] = False
    return data[kept]


def _run_controls(old: Bytes, controls: list[list[int]], rest: Bytes, place: str) -> Bytes:
    """Return what bsdiff's controls make of `old`; `rest` is all added bytes, then all copied."""
    if any(min(add, copy) < 0 for add, copy, _ in controls):
        raise DeltaError(place, "has controls that go backwards", FIX)
    total_added = sum(add for add, _, _ in controls)
    if total_added + sum(copy for _, copy, _ in controls) != len(rest):
        raise DeltaError(place, "has controls that don't fill the file", FIX)
    new = np.empty(len(rest), np.uint8)
    at, from_old, added, copied = 0, 0, 0, total_added
    for add, copy, seek in controls:
        # bsdiff lets a piece stick out of the old file; what is outside counts as zero.
        new[at : at + add] = rest[added : added + add]
        first, last = max(0, from_old), min(len(old), from_old + add)
        if first < last:
            new[at + first - from_old : at + last - from_old] += old[first:last]
        at, added = at + add, added + add
        new[at : at + copy] = rest[copied : copied + copy]
        at, copied = at + copy, copied + copy
        from_old += add + seek
    return new
