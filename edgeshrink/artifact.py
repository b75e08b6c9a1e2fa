"""The deployable directory: what is in it, and what its inputs and outputs are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, get_args

from edgeshrink.errors import ConfigError

Layout = Literal["as-is", "channels-last"]
Structure = Literal["single", "tuple", "dict"]
Quantization = Literal["one", "separate", "none"]

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
    they were quantized each for itself, `none` for a float model. `temperature` is
    what to divide logits by before softmax, where a recipe had it fitted.
    """

    folder: Path
    name: str
    target: str
    engine: str
    quantization: Quantization
    inputs: tuple[IoSpec, ...]
    outputs: tuple[IoSpec, ...]
    structure: Structure
    metric: Mapping[str, str]  # name, direction
    scores: Mapping[str, float]  # "float", "tflite", "pte" on the test split
    recipe: Mapping[str, Any]
    versions: Mapping[str, str]  # of every tool
    seed: int
    temperature: float | None = None
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
            **({} if self.temperature is None else {"temperature": self.temperature}),
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
        content = json.loads(manifest.read_bytes())
        version = _take(content, "format", int)
        if version != FORMAT_VERSION:
            raise ConfigError(
                str(manifest),
                f"has format {version}, this version reads {FORMAT_VERSION}",
                "build the artifact again",
            )
        artifact = _from_json(folder, content)
    except FileNotFoundError:
        raise ConfigError(str(folder), f"holds no {MANIFEST}", "give a built artifact") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as err:
        reason = f"{err} is missing" if isinstance(err, KeyError) else str(err)
        raise ConfigError(
            str(manifest), f"is damaged ({reason})", "build the artifact again"
        ) from err
    for name, entry in artifact.files.items():
        path = artifact.path(name)
        try:
            data = path.read_bytes()
        except OSError as err:
            fault = f"can't be read ({err.strerror})"
            raise ConfigError(str(path), fault, "build the artifact again") from err
        if file_entry(data) != entry:
            fault = f"differs from its digest in {MANIFEST}"
            raise ConfigError(str(path), fault, "build the artifact again")
    return artifact


def _take(content: Any, key: str, *kinds: type) -> Any:
    """Return `content[key]`; TypeError where that is none of `kinds`."""
    if not isinstance(content, dict):
        raise TypeError(f"{content!r:.80} is not an object")
    value = content[key]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise TypeError(f"{key} is {value!r:.80}")
    return value


def _choice(content: Any, key: str, choices: tuple[str, ...]) -> Any:
    value = _take(content, key, str)
    if value not in choices:
        raise ValueError(f"{key} is {value!r:.80}")
    return value


def _from_json(folder: Path, content: Any) -> Artifact:
    """Return the artifact that a manifest describes; raises what `read_artifact` catches."""
    files = {}
    for name, entry in _take(content, "files", dict).items():
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\0" in name:
            raise ValueError(f"{name!r:.80} names no file of the artifact")
        files[name] = FileEntry(
            sha256=_take(entry, "sha256", str), n_bytes=_take(entry, "bytes", int)
        )
    return Artifact(
        folder=folder,
        name=_take(content, "name", str),
        target=_take(content, "target", str),
        engine=_take(content, "engine", str),
        quantization=_choice(content, "quantization", get_args(Quantization)),
        inputs=tuple(_spec(spec) for spec in _take(content, "inputs", list)),
        outputs=tuple(_spec(spec) for spec in _take(content, "outputs", list)),
        structure=_choice(content, "structure", get_args(Structure)),
        metric=_mapping(content, "metric", str),
        scores=_mapping(content, "scores", int, float),
        recipe=_take(content, "recipe", dict),
        versions=_mapping(content, "versions", str),
        seed=_take(content, "seed", int),
        temperature=_take(content, "temperature", float) if "temperature" in content else None,
        files=files,
    )


def _mapping(content: Any, key: str, *kinds: type) -> dict[str, Any]:
    values = _take(content, key, dict)
    return {name: _take(values, name, *kinds) for name in values}


def _spec(content: Any) -> IoSpec:
    absent = type(None)
    return IoSpec(
        name=_take(content, "name", str),
        shape=_shape(content, "shape"),
        dtype=_take(content, "dtype", str),
        scale=_take(content, "scale", int, float, absent),
        zero_point=_take(content, "zero_point", int, absent),
        layout=_choice(content, "layout", get_args(Layout)),
        model_shape=_shape(content, "model_shape"),
    )


def _shape(content: Any, key: str) -> tuple[int, ...]:
    shape = tuple(_take(content, key, list))
    if not all(type(size) is int for size in shape):
        raise TypeError(f"{key} is {list(shape)!r:.80}")
    return shape
