"""Files of a release that somebody has prepared: archives and deltas that must not get anywhere."""

from __future__ import annotations

import bz2
import io
import json
import lzma
import os
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeshrink.artifact import FileEntry, file_entry
from edgeshrink.errors import (
    DecompressionBombError,
    DeltaBaseError,
    DeltaError,
    LyingManifestError,
    TrustError,
    UnsafeArchiveError,
)
from edgeshrink.fleet.archive import pack, unpack
from edgeshrink.fleet.delta import apply_delta, make_delta

FILES = {"artifact.json": b"{}", "model.tflite": bytes(range(256)) * 8, "firmware/a.c": b"int a;"}
SIGNED = {name: file_entry(data) for name, data in FILES.items()}


def tar_xz(members: list[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return lzma.compress(buffer.getvalue())


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(data), link
    return info, data


def members(files: dict[str, bytes] = FILES) -> list[tuple]:
    return [member(name, data) for name, data in files.items()]


def everything_below(folder: Path) -> dict[str, bytes | str]:
    """Files by content, links by where they lead."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def unpacked(tmp_path: Path, archive: bytes, signed: dict[str, FileEntry] = SIGNED) -> Path:
    """Unpack into a folder inside of one where nothing else may appear."""
    (tmp_path / "a.tar.xz").write_bytes(archive)
    folder = tmp_path / "cage" / "slot"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        unpack(tmp_path / "a.tar.xz", folder, signed)
    finally:
        outside = {n for n in everything_below(tmp_path) if not n.startswith("cage/slot/")}
        assert outside == {"a.tar.xz"}
        assert not any(p.is_symlink() for p in folder.rglob("*"))
    return folder


def test_an_archive_of_ours_comes_back_as_it_was_and_is_the_same_each_time(tmp_path):
    assert everything_below(unpacked(tmp_path, pack(FILES))) == FILES
    assert pack(FILES) == pack(dict(reversed(FILES.items())))


@pytest.mark.parametrize(
    "name",
    [
        "../evil", "a/../../evil", "/tmp/evil", "//evil", "..", ".", "", "a//b", "a/", "./a",
        "C:\\evil", "a\\..\\evil", ".hidden", "a/.ssh", "a\tb", "caf\u00e9", "a\x01",
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_signed", [False, True])
def test_a_path_that_could_lead_elsewhere_is_refused_even_when_signed(tmp_path, name, is_signed):
    signed = SIGNED | ({name: file_entry(b"evil")} if is_signed else {})
    with pytest.raises(UnsafeArchiveError):
        unpacked(tmp_path, tar_xz([member(name, b"evil"), *members()]), signed)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE,
             tarfile.BLKTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE]
)  # fmt: skip
def test_links_folders_and_devices_are_refused(tmp_path, kind):
    strange = member("model.tflite", kind=kind, link="/etc/passwd")
    with pytest.raises(UnsafeArchiveError, match="link"):
        unpacked(tmp_path, tar_xz([strange, *members()]))


def test_a_link_that_a_later_file_would_be_written_through_is_refused(tmp_path):
    first = member("firmware", kind=tarfile.SYMTYPE, link="..")
    with pytest.raises(UnsafeArchiveError):
        unpacked(tmp_path, tar_xz([first, *members()]))


def test_long_names_in_extra_headers_are_refused(tmp_path):
    long = member("a/" * 120 + "evil", b"x")
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with pytest.raises(UnsafeArchiveError):
            unpacked(tmp_path, tar_xz([long, *members()], form))


def test_a_stranger_and_a_file_that_comes_twice_are_refused(tmp_path):
    for extra in (member("stranger", b"x"), member("artifact.json", b"{}")):
        with pytest.raises(UnsafeArchiveError, match="not part of the signed release, or twice"):
            unpacked(tmp_path, tar_xz([*members(), extra]))


def test_a_missing_and_a_changed_file_are_refused(tmp_path):
    with pytest.raises(LyingManifestError, match="misses model"):
        unpacked(tmp_path, tar_xz(members({k: v for k, v in FILES.items() if "model" not in k})))
    changed = FILES | {"model.tflite": bytes(len(FILES["model.tflite"]))}
    with pytest.raises(LyingManifestError, match="another model"):
        unpacked(tmp_path, tar_xz(members(changed)))


def test_what_is_no_archive_is_refused(tmp_path):
    whole = pack(FILES)
    for data in (b"", b"PK\3\4" + whole, whole[: len(whole) // 2], lzma.compress(b"x"),
                 lzma.compress(b"\1" * 4096)):  # fmt: skip
        with pytest.raises((UnsafeArchiveError, LyingManifestError)):
            unpacked(tmp_path, data)


def test_a_bomb_is_given_up_before_it_is_unpacked(tmp_path):
    bomb = lzma.compress(bytes(40 << 20), preset=0)
    assert len(bomb) < 20_000
    after_files = lzma.decompress(pack(FILES)) + bytes(40 << 20)
    growing = FILES | {"model.tflite": bytes(4 << 20)}
    for data in (bomb, lzma.compress(after_files, preset=0), tar_xz(members(growing))):
        with pytest.raises((DecompressionBombError, LyingManifestError)):
            unpacked(tmp_path, data)
        assert sum(len(d) for d in everything_below(tmp_path / "cage").values()) < 100_000


def test_an_archive_that_wants_a_huge_dictionary_is_refused(tmp_path):
    steps = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 29}]
    data = lzma.compress(lzma.decompress(pack(FILES)), lzma.FORMAT_XZ, filters=steps)
    with pytest.raises(DecompressionBombError, match="memory"):
        unpacked(tmp_path, data)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_no_damage_of_an_archive_ends_in_anything_else_than_a_trust_error(tmp_path_factory, data):
    plain = bytearray(lzma.decompress(pack(FILES)))
    for _ in range(data.draw(st.integers(1, 4))):
        plain[data.draw(st.integers(0, len(plain) - 1))] = data.draw(st.integers(0, 255))
    try:
        folder = unpacked(tmp_path_factory.mktemp("damaged"), lzma.compress(plain, preset=0))
    except TrustError:
        return
    assert everything_below(folder) == FILES  # the damage was in what nobody reads


# ---------------------------------------------------------------------------------- deltas

OLD = {"model.tflite": bytes(range(256)) * 16, "card": b"old"}
NEW = {"model.tflite": bytes(range(1, 256)) * 16 + b"new", "card": b"old"}


def attempt(tmp_path: Path, delta: bytes, new: dict[str, bytes] = NEW) -> None:
    """Apply to a device that has OLD; whatever happens, that stays as it was."""
    old_folder, new_folder = tmp_path / "old", tmp_path / "new"
    for name, data in OLD.items():
        old_folder.mkdir(exist_ok=True)
        (old_folder / name).write_bytes(data)
    new_folder.mkdir(exist_ok=True)
    try:
        apply_delta(
            delta, old_folder, new_folder, {name: file_entry(data) for name, data in new.items()}
        )
    finally:
        assert everything_below(old_folder) == OLD
        assert {p.name for p in tmp_path.iterdir()} == {"old", "new"}


def rewritten(delta: bytes, **changes: object) -> bytes:
    """The delta with other facts about its model in the header."""
    length = int.from_bytes(delta[8:12], "little")
    header = json.loads(delta[12 : 12 + length])
    entry = next(e for e in header["files"] if e["path"] == "model.tflite")
    entry.update(changes)
    text = json.dumps(header).encode()
    return delta[:8] + struct.pack("<I", len(text)) + text + delta[12 + length :]


def with_stream(number: int, codec: str, packed: bytes) -> bytes:
    """A patch of the model, one of its two streams replaced."""
    delta = make_delta(OLD, NEW)
    length = int.from_bytes(delta[8:12], "little")
    header = json.loads(delta[12 : 12 + length])
    entry = next(e for e in header["files"] if e["path"] == "model.tflite")
    assert entry["how"] == "patch"
    streams, at = [], 12 + length
    for _, size in entry["streams"]:
        streams.append(delta[at : at + size])
        at += size
    entry["streams"][number] = [codec, len(packed)]
    streams[number] = packed
    text = json.dumps(header).encode()
    return delta[:8] + struct.pack("<I", len(text)) + text + b"".join(streams)


def test_a_tampered_delta_leads_nowhere(tmp_path):
    delta = make_delta(OLD, NEW)
    attempt(tmp_path, delta)
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(delta), 150):
        damaged = bytearray(delta)
        damaged[at] ^= 1 << int(rng.integers(8))
        try:
            attempt(tmp_path, bytes(damaged))
        except (DeltaError, DecompressionBombError, UnsafeArchiveError):
            continue
        # only what does not matter may be changed: the check of a stream that is read by length
        assert everything_below(tmp_path / "new") == NEW


@pytest.mark.parametrize("end", [0, 7, 11, 12, 40, -1])
def test_a_delta_that_ends_early_leads_nowhere(tmp_path, end):
    with pytest.raises(DeltaError):
        attempt(tmp_path, make_delta(OLD, NEW)[:end])


def test_a_delta_that_makes_another_file_than_was_signed_is_refused(tmp_path):
    other = NEW | {"model.tflite": NEW["model.tflite"][:-1] + b"W"}
    with pytest.raises(DeltaError, match="another file than was signed"):
        attempt(tmp_path, make_delta(OLD, other))


def test_a_delta_with_more_or_fewer_files_than_were_signed_is_refused(tmp_path):
    for files in (NEW | {"extra": b"x"}, {"model.tflite": NEW["model.tflite"]}):
        with pytest.raises(DeltaError, match="other files"):
            attempt(tmp_path, make_delta(OLD, files))


def test_a_delta_to_a_wrong_base_is_refused_by_its_own_name(tmp_path):
    with pytest.raises(DeltaBaseError, match=r"another model\.tflite than the one installed"):
        attempt(tmp_path, make_delta(OLD | {"model.tflite": OLD["model.tflite"] + b"!"}, NEW))
    files = NEW | {"card": b"some other content"}
    with pytest.raises(DeltaBaseError, match="not there"):
        attempt(tmp_path, make_delta({"gone": b"some other content"}, files), files)


@pytest.mark.parametrize("base", ["../old/model.tflite", "/etc/passwd", "a\\b", ".ledger"])
def test_a_delta_that_builds_on_a_file_elsewhere_is_refused(tmp_path, base):
    with pytest.raises(UnsafeArchiveError):
        attempt(tmp_path, rewritten(make_delta(OLD, NEW), base=base))


@pytest.mark.parametrize("codec", ["xz", "bz2", "deflate"])
@pytest.mark.parametrize("number", [0, 1])
def test_a_stream_that_is_a_bomb_is_given_up(tmp_path, codec, number):
    plain = bytes(8 << 20)
    packed = {
        "xz": lambda: lzma.compress(plain, preset=0),
        "bz2": lambda: bz2.compress(plain),
        "deflate": lambda: zlib.compress(plain),
    }[codec]()
    with pytest.raises((DecompressionBombError, DeltaError)):
        attempt(tmp_path, with_stream(number, codec, packed))
    assert everything_below(tmp_path / "new").keys() <= {"card"}


def test_a_whole_file_that_is_a_bomb_is_given_up(tmp_path):
    bomb = make_delta({}, NEW | {"model.tflite": bytes(4 << 20)})
    with pytest.raises(DecompressionBombError):
        attempt(tmp_path, bomb)


def tables(regions: list[tuple], controls: list[tuple], rest: bytes = b"") -> bytes:
    numbers = [n for row in [*regions, *controls] for n in row]
    head = struct.pack("<II", len(regions), len(controls))
    return head + struct.pack(f"<{len(numbers)}q", *numbers) + rest


SIZE = len(NEW["model.tflite"])
HUGE = 2**62


@pytest.mark.parametrize(
    ("regions", "controls"),
    [
        ([(0, HUGE, 8, 1)], []), ([(0, -1, 8, 1)], []), ([(HUGE, 0, 8, 1)], []),
        ([(-8, 0, 8, 1)], []), ([(0, 0, HUGE, 1)], []), ([(0, 0, -8, 1)], []),
        ([(0, 0, 0, 1)], []), ([(0, 0, 8, 3)], []), ([(0, 0, 8, 0)], []), ([(0, 0, 9, 2)], []),
        ([(0, 0, 8, 1), (4, 0, 8, 1)], []), ([(8, 0, 8, 1), (0, 0, 8, 1)], []),
        ([], [(HUGE, 0, 0)]), ([], [(-SIZE, 2 * SIZE, 0)]), ([], [(SIZE + 1, -1, 0)]),
        ([], [(HUGE, HUGE, 0)]), ([], [(1, SIZE, 0)]), ([], []),
    ],
)  # fmt: skip
def test_tables_that_point_outside_are_refused(tmp_path, regions, controls):
    plain = tables(regions, controls, bytes(SIZE))
    with pytest.raises((DeltaError, DecompressionBombError)):
        attempt(tmp_path, with_stream(0, "deflate", zlib.compress(plain)))


def test_seeks_far_outside_of_the_old_file_make_a_wrong_file_and_no_crash(tmp_path):
    for seek in (HUGE, -HUGE, -1):
        plain = tables([], [(1, 0, seek), (SIZE - 1, 0, 0)], bytes(SIZE))
        with pytest.raises(DeltaError):
            attempt(tmp_path, with_stream(0, "deflate", zlib.compress(plain)))


def test_a_table_of_billions_is_refused_before_it_is_read(tmp_path):
    for counts in ((2**32 - 1, 0), (0, 2**32 - 1), (2**31, 2**31)):
        plain = struct.pack("<II", *counts)
        with pytest.raises(DeltaError, match="pieces"):
            attempt(tmp_path, with_stream(0, "deflate", zlib.compress(plain)))


@pytest.mark.parametrize(
    "changes",
    [
        {"how": "magic"}, {"how": "full"}, {"how": "copy"}, {"streams": []}, {"streams": 5},
        {"streams": [["xz", -1], ["xz", 2]]}, {"streams": [["tar", 5], ["xz", 2]]},
        {"streams": [[5, 5], ["xz", 2]]}, {"base": None}, {"base": 5}, {"base": ["x"]},
        {"path": 7}, {"path": "card"}, {"streams": [["xz", 1 << 60], ["xz", 1]]},
    ],
)  # fmt: skip
def test_a_header_that_makes_no_sense_is_refused(tmp_path, changes):
    with pytest.raises(DeltaError):
        attempt(tmp_path, rewritten(make_delta(OLD, NEW), **changes))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b'{"files":{}}', b'{"files":[5]}',
                                  b"[" * 100_000, b"\xff\xfe"])  # fmt: skip
def test_a_header_that_is_no_json_is_refused(tmp_path, text):
    with pytest.raises(DeltaError):
        attempt(tmp_path, b"ESDELTA1" + struct.pack("<I", len(text)) + text)


@given(junk=st.binary(max_size=300))
@settings(max_examples=60, deadline=None)
def test_no_junk_ends_in_anything_else_than_a_delta_error(tmp_path_factory, junk):
    folder = tmp_path_factory.mktemp("junk")
    with pytest.raises(DeltaError):
        attempt(folder, junk)
    with pytest.raises(DeltaError):
        attempt(folder, b"ESDELTA1" + junk)
    assert os.listdir(folder / "new") == []  # noqa: PTH208
