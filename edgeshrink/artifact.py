"""The deployable directory: what is in it, and what its inputs and outputs are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from edgeshrink.errors import ConfigError

Layout = Literal["as-is", "channels-last"]
Structure = Literal["single", "tuple", "dict"]

FORMAT_VERSION: Final = 1
MANIFEST: Final = "artifact.json"
MODEL_FILES: Final = {"tflite": "model.tflite", "pte": "model.pte"}
GOLDEN: Final = "golden.npz"


@dataclass(frozen=True, kw_only=True)
class IoSpec:
    """One input or output of the deployed files.

    `layout` says how the file's array relates to the PyTorch model's: `channels-last` means that
    the model's (N, C, H, W) is (N, H, W, C) in the `.tflite`, and (N, C, L) is (N, 1, L, C). A
    `.pte` keeps the model's own layout and floats at both ends.
    """

    name: str
    shape: tuple[int, ...]  # in the .tflite, batch of 1 included
    dtype: str  # "int8", "float32", "int32" …
    scale: float | None = None  # None: not quantized
    zero_point: int | None = None
    layout: Layout = "as-is"
    model_shape: tuple[int, ...] = ()  # in the PyTorch model and in the .pte; () where not known

    def to_json(self) -> dict[str, Any]:
        """Return the specification as plain JSON values."""
        return vars(self) | {"shape": list(self.shape), "model_shape": list(self.model_shape)}


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of the artifact."""

    sha256: str
    n_bytes: int


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An artifact directory; `files` maps its relative paths to their digests.

    `quantization` is `one` where both model files come from one quantized graph, `separate` where
    they were quantized each for itself, `none` for a float model.
    """

    folder: Path
    name: str
    target: str
    engine: str
    quantization: Literal["one", "separate", "none"]
    inputs: tuple[IoSpec, ...]
    outputs: tuple[IoSpec, ...]
    structure: Structure
    metric: Mapping[str, str]  # name, direction
    scores: Mapping[str, float]  # "float", "tflite", "pte" on the test split
    recipe: Mapping[str, Any]
    versions: Mapping[str, str]  # of every tool
    seed: int
    files: Mapping[str, FileEntry] = field(default_factory=dict)

    def path(self, file: str) -> Path:
        """Return where `file` lies."""
        return self.folder / file

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as plain JSON values (the content of `artifact.json`)."""
        return {
            "format": FORMAT_VERSION,
            "name": self.name,
            "target": self.target,
            "engine": self.engine,
            "quantization": self.quantization,
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "structure": self.structure,
            "metric": dict(self.metric),
            "scores": dict(self.scores),
            "recipe": dict(self.recipe),
            "versions": dict(self.versions),
            "seed": self.seed,
            "files": {
                name: {"sha256": entry.sha256, "bytes": entry.n_bytes}
                for name, entry in sorted(self.files.items())
            },
        }


def file_entry(data: bytes) -> FileEntry:
    """Return digest and size of a file's content."""
    return FileEntry(sha256=hashlib.sha256(data).hexdigest(), n_bytes=len(data))


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dataclass's fields as JSON gave them, lists made tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}


def read_artifact(folder: Path) -> Artifact:
    """Read the artifact in `folder`, check every digest; ConfigError names what is wrong."""
    manifest = folder / MANIFEST
    try:
        content = json.loads(manifest.read_text("utf-8"))
        if content["format"] != FORMAT_VERSION:
            raise ConfigError(
                str(manifest),
                f"has format {content['format']}, this version reads {FORMAT_VERSION}",
                "build it again",
            )
        specs = {
            side: tuple(IoSpec(**_tuples(spec)) for spec in content[side])
            for side in ("inputs", "outputs")
        }
        files = {
            name: FileEntry(sha256=entry["sha256"], n_bytes=entry["bytes"])
            for name, entry in content["files"].items()
        }
        same = ("name", "target", "engine", "quantization", "structure", "metric", "scores",
                "recipe", "versions", "seed")  # fmt: skip
        artifact = Artifact(
            folder=folder,
            inputs=specs["inputs"],
            outputs=specs["outputs"],
            files=files,
            **{key: content[key] for key in same},
        )
    except FileNotFoundError:
        raise ConfigError(str(folder), f"holds no {MANIFEST}", "give a built artifact") from None
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise ConfigError(
            str(manifest), f"is damaged ({type(err).__name__}: {err})", "build the artifact again"
        ) from err
    for name, entry in files.items():
        try:
            data = artifact.path(name).read_bytes()
        except OSError as err:
            raise ConfigError(
                str(artifact.path(name)), f"can't be read ({err})", "build it again"
            ) from err
        if file_entry(data) != entry:
            raise ConfigError(
                str(artifact.path(name)),
                "differs from its digest in artifact.json",
                "build it again",
            )
    return artifact
