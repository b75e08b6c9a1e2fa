"""A delta leads to the same bytes, is small where weights moved a little, and needs no more."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import bsdiff4
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeshrink.artifact import file_entry
from edgeshrink.fleet.delta import apply_delta, base_digests, make_delta
from tests.tiny_models import edited, fully_connected


def weights_at(data: bytes, values: np.ndarray) -> int:
    """Where a tensor's bytes are: searched for, not read from the file's tables."""
    at = data.index(values.tobytes())
    assert data.count(values.tobytes()) == 1
    return at


def retrained(data: bytes, at: int, n_bytes: int, seed: int = 0) -> bytes:
    """Every int8 weight one step up or down."""
    new = np.frombuffer(data, np.uint8).copy()
    steps = np.random.default_rng(seed).choice(np.array([1, 255], np.uint8), n_bytes)
    new[at : at + n_bytes] += steps
    return new.tobytes()


def applied(tmp_path: Path, old: dict[str, bytes], new: dict[str, bytes]) -> tuple[bytes, Path]:
    before, after = tmp_path / "before", tmp_path / "after"
    for name, data in old.items():
        (before / name).parent.mkdir(parents=True, exist_ok=True)
        (before / name).write_bytes(data)
    after.mkdir(exist_ok=True)
    delta = make_delta(old, new)
    apply_delta(delta, before, after, {name: file_entry(data) for name, data in new.items()})
    assert {
        str(p.relative_to(after)): p.read_bytes() for p in after.rglob("*") if p.is_file()
    } == new
    return delta, after


@pytest.fixture(scope="module")
def model() -> tuple[bytes, int, int]:
    """A .tflite of one dense layer with random int8 weights; where they are, how many."""
    data = fully_connected(256, 200)
    weights = np.random.default_rng(1).integers(-127, 128, 256 * 200).astype(np.int8)

    def set_weights(model: object) -> None:
        largest = max(model.buffers, key=lambda b: 0 if b.data is None else len(b.data))
        largest.data = weights.view(np.uint8)

    data = edited(data, set_weights)
    return data, weights_at(data, weights), weights.size


def test_weights_one_step_away_cost_an_eighth_where_bsdiff_needs_most_of_the_file(tmp_path, model):
    old, at, n_bytes = model
    new = retrained(old, at, n_bytes)
    delta, _ = applied(tmp_path, {"model.tflite": old}, {"model.tflite": new})
    assert len(delta) < 0.16 * len(new)
    assert len(bsdiff4.diff(old, new)) > 0.7 * len(new)


def test_weights_are_found_where_they_moved_to(tmp_path, model):
    old, at, n_bytes = model

    def rename(model: object) -> None:
        model.description = "a description that moves everything behind it" * 20

    new = edited(retrained(old, at, n_bytes), rename)
    assert len(new) != len(old)
    delta, _ = applied(tmp_path, {"model.tflite": old}, {"model.tflite": new})
    assert len(delta) < 0.2 * len(new)


def test_floats_are_told_by_the_small_steps_they_took(tmp_path):
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(64 * 64).astype(np.float32)

    def with_weights(values: np.ndarray) -> bytes:
        def set_weights(model: object) -> None:
            largest = max(model.buffers, key=lambda b: 0 if b.data is None else len(b.data))
            largest.data = values.view(np.uint8)
            tensor = next(
                t for t in model.subgraphs[0].tensors if model.buffers[t.buffer] is largest
            )
            tensor.type = 0  # FLOAT32

        return edited(fully_connected(64, 256), set_weights)

    steps = 1 + rng.normal(0, 1e-3, weights.size).astype(np.float32)
    old, new = with_weights(weights), with_weights(weights * steps)
    delta, _ = applied(tmp_path, {"model.tflite": old}, {"model.tflite": new})
    assert len(delta) < 0.6 * len(bsdiff4.diff(old, new))


def test_equal_files_are_copied_new_ones_sent_and_others_patched(tmp_path, model):
    old, at, n_bytes = model
    text = b"a model card, somewhat long, with many words " * 40
    before = {"model.tflite": old, "golden.npz": b"\1\2\3" * 50, "docs/card.md": text}
    after = {
        "renamed.npz": before["golden.npz"],
        "model.tflite": retrained(old, at, n_bytes),
        "docs/card.md": text.replace(b"somewhat", b"rather"),
        "empty": b"",
        "new.bin": np.random.default_rng(2).bytes(300),
    }
    delta, _ = applied(tmp_path, before, after)
    assert len(delta) < 0.2 * sum(map(len, after.values()))
    assert base_digests(delta) == {
        name: file_entry(before[name]).sha256 for name in ("model.tflite", "golden.npz")
    }


def test_a_file_of_another_layout_is_patched_as_bsdiff_would(tmp_path):
    rng = np.random.default_rng(0)
    old = rng.bytes(20_000)
    new = old[5_000:12_000] + rng.bytes(100) + old[:5_000] + old[13_000:]
    delta, _ = applied(tmp_path, {"model.pte": old}, {"model.pte": new})
    assert len(delta) < 1.3 * len(bsdiff4.diff(old, new)) + 400


@given(old=st.binary(max_size=400), new=st.binary(max_size=400), splice=st.integers(0, 400))
@settings(max_examples=60, deadline=None)
def test_any_two_files_make_a_delta_that_leads_from_one_to_the_other(
    tmp_path_factory, old, new, splice
):
    new = old[splice:] + new + old[:splice]
    applied(tmp_path_factory.mktemp("delta"), {"a": old, "b": b"x"}, {"a": new, "b": old})


def test_applying_needs_numpy_and_the_standard_library_alone(tmp_path, model):
    old, at, n_bytes = model
    new = {"model.tflite": retrained(old, at, n_bytes), "text": b"abc" * 100}
    (tmp_path / "delta").write_bytes(make_delta({"model.tflite": old, "text": b"abd" * 100}, new))
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "old/model.tflite").write_bytes(old)
    (tmp_path / "old/text").write_bytes(b"abd" * 100)
    entries = {name: (file_entry(d).sha256, len(d)) for name, d in new.items()}
    code = f"""
import sys
from pathlib import Path
from edgeshrink.artifact import FileEntry
from edgeshrink.fleet.delta import apply_delta
expected = {{k: FileEntry(sha256=s, n_bytes=n) for k, (s, n) in {entries!r}.items()}}
here = Path({str(tmp_path)!r})
apply_delta((here / "delta").read_bytes(), here / "old", here / "new", expected)
allowed = set(sys.stdlib_module_names) | {{"numpy", "edgeshrink", "__main__"}}
brought = {{m.split(".")[0] for m in sys.modules}} - allowed - BEFORE
assert not brought, brought
"""
    code = "import sys; BEFORE = {m.split('.')[0] for m in sys.modules}\n" + code
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "new/model.tflite").read_bytes() == new["model.tflite"]


def test_the_same_releases_make_the_same_delta(model):
    old, at, n_bytes = model
    new = retrained(old, at, n_bytes)
    files = {"b": b"2", "model.tflite": new, "a": b"1"}
    again = dict(sorted(files.items()))
    assert make_delta({"model.tflite": old}, files) == make_delta({"model.tflite": old}, again)


def test_the_header_is_where_the_format_says(model):
    delta = make_delta({}, {"model.tflite": model[0]})
    assert delta[:8] == b"ESDELTA1"
    (length,) = struct.unpack("<I", delta[8:12])
    assert delta[12 : 12 + length].startswith(b'{"files":[')
