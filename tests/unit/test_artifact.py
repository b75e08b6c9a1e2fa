"""The deployable directory on disk: whole, or refused with the file that is wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from edgeshrink.artifact import Artifact, IoSpec, file_entry, read_artifact
from edgeshrink.errors import ConfigError

MODEL = b"not really a model"
GOLDEN = bytes(range(256))


def an_artifact(folder: Path) -> Artifact:
    return Artifact(
        folder=folder,
        name="digits",
        target="rpi4",
        engine="tflite",
        quantization="one",
        inputs=(
            IoSpec(
                name="image", shape=(1, 8, 8, 1), dtype="int8", scale=0.0625, zero_point=-128,
                layout="channels-last", model_shape=(1, 1, 8, 8),
            ),
            IoSpec(name="größe", shape=(), dtype="float32"),
        ),
        outputs=(IoSpec(name="logits", shape=(1, 10), dtype="int8", scale=1.5, zero_point=3),),
        structure="single",
        metric={"name": "accuracy", "direction": "higher"},
        scores={"float": 0.98, "tflite": 1},
        recipe={"steps": [{"step": "quantize", "n_samples": 128}]},
        versions={"torch": "2.13.0"},
        seed=0,
        files={"model.tflite": file_entry(MODEL), "firmware/golden.npz": file_entry(GOLDEN)},
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A good artifact on disk, in a folder with a space and a letter beyond ASCII."""
    folder = tmp_path / "ziel größe"
    (folder / "firmware").mkdir(parents=True)
    (folder / "model.tflite").write_bytes(MODEL)
    (folder / "firmware" / "golden.npz").write_bytes(GOLDEN)
    save(folder, an_artifact(folder).to_json())
    return folder


def save(folder: Path, manifest: object) -> None:
    (folder / "artifact.json").write_text(json.dumps(manifest), "utf-8")


def load(folder: Path) -> dict:
    return json.loads((folder / "artifact.json").read_text("utf-8"))


def test_an_artifact_survives_the_way_to_disk_and_back(folder):
    assert read_artifact(folder) == an_artifact(folder)


def test_the_manifest_holds_format_digest_and_size_of_every_file(folder):
    manifest = load(folder)
    assert manifest["format"] == 1
    assert manifest["files"]["model.tflite"] == {
        "sha256": hashlib.sha256(MODEL).hexdigest(),
        "bytes": len(MODEL),
    }
    assert manifest["inputs"][0]["zero_point"] == -128


def test_an_artifact_can_be_moved(folder):
    moved = folder.rename(folder.with_name("elsewhere"))
    assert read_artifact(moved) == dataclasses.replace(an_artifact(folder), folder=moved)


def test_a_folder_without_manifest_is_no_artifact(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no artifact\.json; give a built artifact"):
        read_artifact(tmp_path)
    with pytest.raises(ConfigError, match=r"holds no artifact\.json"):
        read_artifact(tmp_path / "none")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"3", b'"a"', b"null", b"{}", b"[" * 100_000, b"9" * 5000],
    ids=lambda content: repr(content[:4]),
)
def test_a_manifest_that_is_none_is_damaged(folder, content):
    (folder / "artifact.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"artifact\.json: is damaged .*; build the artifact"):
        read_artifact(folder)


def test_every_single_key_is_missed(folder):
    for key in load(folder):
        manifest = load(folder)
        manifest.pop(key)
        (folder.parent / key).mkdir()
        save(folder.parent / key, manifest)
        with pytest.raises(ConfigError, match=f"is damaged .*{key}.* is missing"):
            read_artifact(folder.parent / key)


def test_every_key_of_the_wrong_type_is_refused(folder):
    for key in load(folder):
        save(folder, load(folder) | {key: None})
        with pytest.raises(ConfigError, match=r"is damaged"):
            read_artifact(folder)
        save(folder, an_artifact(folder).to_json())
    assert read_artifact(folder).name == "digits"


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        (("inputs", 0), "shape", ["1"]),
        (("inputs", 0), "shape", 8),
        (("inputs", 0), "scale", "0.1"),
        (("inputs", 0), "zero_point", True),
        (("inputs", 0), "layout", "sideways"),
        (("outputs",), 0, 3),
        ((), "structure", "list"),
        ((), "quantization", "two"),
        (("scores",), "float", "good"),
        (("versions",), "torch", 2),
        (("files", "model.tflite"), "bytes", "18"),
        (("files", "model.tflite"), "sha256", None),
        (("files",), "model.tflite", []),
    ],
)
def test_a_value_that_no_build_writes_is_refused(folder, place, key, value):
    manifest = load(folder)
    holder = manifest
    for step in place:
        holder = holder[step]
    holder[key] = value
    save(folder, manifest)
    with pytest.raises(ConfigError, match="is damaged"):
        read_artifact(folder)


def test_another_format_says_which_and_what_to_do(folder):
    save(folder, load(folder) | {"format": 2})
    said = "has format 2, this version reads 1; build the artifact again"
    with pytest.raises(ConfigError, match=said):
        read_artifact(folder)


@pytest.mark.parametrize("content", [MODEL + b"x", MODEL[:-1], b"", MODEL.swapcase()])
def test_a_file_that_differs_from_its_digest_is_named(folder, content):
    (folder / "model.tflite").write_bytes(content)
    with pytest.raises(ConfigError, match=r"ziel größe.model\.tflite: differs from its digest"):
        read_artifact(folder)


def test_a_file_that_is_gone_is_named(folder):
    (folder / "firmware" / "golden.npz").unlink()
    with pytest.raises(ConfigError, match=r"golden\.npz: can't be read \(No such file"):
        read_artifact(folder)


@pytest.mark.parametrize(
    "name", ["../secret", "a/../../secret", "/etc/hostname", "", ".", "a\0b", "x/.."]
)
def test_a_manifest_can_not_name_files_outside_its_folder(folder, name):
    (folder.parent / "secret").write_bytes(MODEL)
    manifest = load(folder)
    manifest["files"][name] = manifest["files"]["model.tflite"]
    save(folder, manifest)
    with pytest.raises(ConfigError, match=r"artifact\.json: is damaged .* names no file of the"):
        read_artifact(folder)


def test_files_that_the_manifest_does_not_name_are_no_matter(folder):
    (folder / "notes.txt").write_text("mine")
    assert set(read_artifact(folder).files) == {"model.tflite", "firmware/golden.npz"}


def test_the_digest_is_sha256_of_the_content():
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180: "abc"
    assert file_entry(b"abc").sha256 == known
    assert file_entry(b"abc").n_bytes == 3
