"""The archive of a release: a plain tar, packed by xz, that holds the signed files and no other.

It is read as one nobody vouches for. The tar is not unpacked by its own account: each header must
announce a file that was signed, of the size that was signed, and nothing else is ever written.
"""

from __future__ import annotations

import io
import lzma
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Final

from edgeshrink.artifact import GOLDEN, FileEntry, file_entry
from edgeshrink.errors import (
    DecompressionBombError,
    GoldenVectorsError,
    LyingManifestError,
    TrustError,
    UnsafeArchiveError,
)

UNPACK_MEMORY_BYTES: Final = 1 << 26
DICTIONARY_BYTES: Final = 1 << 23
MAX_NAME_BYTES: Final = 240
MAX_FILES: Final = 4096
FIX: Final = "nothing of it was installed; tell whoever publishes this fleet"
_PART: Final = re.compile(r"[A-Za-z0-9_+@=,~-][A-Za-z0-9._+@=,~ -]*")
_TAR_BLOCK: Final = 512


def check_name(name: object, place: str) -> str:
    """Return `name` if it is a plain relative path; UnsafeArchiveError if it could lead elsewhere.

    Only letters, digits and a few signs may be in it, no part begins with a dot: what is refused
    are absolute paths, `..`, drives, backslashes, NUL, hidden files, and whatever a file system
    may take for something else.
    """
    is_plain = (
        isinstance(name, str)
        and 0 < len(name) <= MAX_NAME_BYTES
        and all(_PART.fullmatch(part) for part in name.split("/"))
    )
    if not is_plain:
        raise UnsafeArchiveError(place, f"names the file {name!r:.80}", FIX)
    return str(name)


def pack(files: Mapping[str, bytes]) -> bytes:
    """Return the archive of `files`, content by path; the same files give the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in sorted(files.items()):
            info = tarfile.TarInfo(check_name(name, "release"))
            info.size, info.mode, info.mtime = len(data), 0o644, 0
            tar.addfile(info, io.BytesIO(data))
    steps = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": DICTIONARY_BYTES}]
    return lzma.compress(buffer.getvalue(), lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=steps)


def unpack(archive: Path, folder: Path, expected: Mapping[str, FileEntry]) -> None:
    """Write the files of `archive` into the empty `folder`: all of `expected`, and no others.

    Args:
        archive: A file of any content.
        folder: Where to write.
        expected: What was signed: digest and size by path.

    Raises:
        UnsafeArchiveError: A path leads elsewhere; or a member is a link, a device, no file that
            was signed, or there twice; or it is no archive at all.
        DecompressionBombError: It unpacks to more than the signed files.
        LyingManifestError: A file is missing or differs from its signed digest.
        GoldenVectorsError: The file that differs holds the golden vectors.
    """
    if len(expected) > MAX_FILES:
        raise UnsafeArchiveError("release", f"lists {len(expected):,} files", FIX)
    for name in expected:
        check_name(name, "release")
    place = f"archive {archive.name}"
    # Of each file a header of a block, and its content in whole blocks; zeros to a full record.
    limit = sum(entry.n_bytes + 2 * _TAR_BLOCK for entry in expected.values()) + tarfile.RECORDSIZE
    left = dict(expected)
    with archive.open("rb") as packed:
        stream = _Unpacked(packed, limit, place)
        while (member := _next_member(stream, place)) is not None:
            name = check_name(member.name, place)
            entry = left.pop(name, None)
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                what = f"holds {name!r} as a link, a folder or a device"
                raise UnsafeArchiveError(place, what, FIX)
            if entry is None:
                what = f"holds {name!r}, which is not part of the signed release, or twice"
                raise UnsafeArchiveError(place, what, FIX)
            if member.size != entry.n_bytes:
                what = f"holds {name} of {member.size:,} bytes, signed are {entry.n_bytes:,}"
                if member.size > entry.n_bytes:
                    raise DecompressionBombError(place, what, FIX)
                raise another_file(name, place, what)
            data = stream.read(-(-member.size // _TAR_BLOCK) * _TAR_BLOCK)[: member.size]
            if file_entry(data) != entry:
                raise another_file(name, place, f"holds another {name} than was signed")
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        stream.drain()
    if left:
        raise LyingManifestError(place, f"misses {', '.join(sorted(left)):.200}", FIX)


def another_file(name: str, place: str, what: str) -> TrustError:
    """Return the error for a file of a release that is not the one that was signed."""
    return (GoldenVectorsError if name == GOLDEN else LyingManifestError)(place, what, FIX)


def _next_member(stream: _Unpacked, place: str) -> tarfile.TarInfo | None:
    """Return the next header, None at the end; extended headers (long names, PAX) are refused."""
    block = stream.read(_TAR_BLOCK)
    if not block.strip(b"\0"):
        return None
    try:
        member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError) as err:
        raise UnsafeArchiveError(place, f"is no tar ({err})", FIX) from err
    if member.size < 0:
        raise UnsafeArchiveError(place, f"has a file of {member.size} bytes", FIX)
    return member


class _Unpacked:
    """What an `.xz` unpacks to, piece by piece and never more than `limit` bytes in all."""

    def __init__(self, packed: IO[bytes], limit: int, place: str) -> None:
        self._packed, self._left, self._place = packed, limit, place
        self._unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, UNPACK_MEMORY_BYTES)

    def read(self, n_bytes: int) -> bytes:
        """Return the next `n_bytes`; UnsafeArchiveError where the file ends before."""
        pieces, wanted = [], n_bytes
        while wanted:
            piece = self._more(wanted)
            if not piece:
                raise UnsafeArchiveError(self._place, "ends too early, or is no archive", FIX)
            pieces.append(piece)
            wanted -= len(piece)
        return b"".join(pieces)

    def drain(self) -> None:
        """Read to the end, which has to come within the limit."""
        while self._more(1 << 16):
            pass

    def _more(self, wanted: int) -> bytes:
        while not self._unpacker.eof:
            feed = self._packed.read(1 << 16) if self._unpacker.needs_input else b""
            if self._unpacker.needs_input and not feed:
                return b""
            try:
                piece = self._unpacker.decompress(feed, wanted)
            except (lzma.LZMAError, EOFError) as err:
                if "Memory usage limit" in str(err):
                    what = f"needs more than {UNPACK_MEMORY_BYTES:,} bytes of memory to unpack"
                    raise DecompressionBombError(self._place, what, FIX) from err
                what = f"is no archive, or damaged ({err})"
                raise UnsafeArchiveError(self._place, what, FIX) from err
            self._left -= len(piece)
            if self._left < 0:
                what = "unpacks to more than the files that were signed"
                raise DecompressionBombError(self._place, what, FIX)
            if piece:
                return piece
        return b""
