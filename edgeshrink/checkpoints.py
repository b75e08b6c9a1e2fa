"""What an interrupted training needs to go on, in a file that appears in one step."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import zlib
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from edgeshrink.errors import ConfigError, EdgeshrinkError
from edgeshrink.task import ArraySplit, Split

FILE: Final = "checkpoint.pt"
IDENTITY: Final = "identity.json"
FORMAT: Final = 1
GENERATORS: Final = ("rng", "generator")  # attributes of a split that draw its random numbers
# What torch.load raises for a file that is damaged, or holds more than tensors and plain values.
_DAMAGES: Final = (
    pickle.UnpicklingError, RuntimeError, ValueError, TypeError, KeyError, IndexError, EOFError,
    AttributeError, OSError,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Where a training leaves its state after every epoch, and what must match to take it up.

    Attributes:
        folder: Made when the first epoch ends.
        identity: In words, by what it is: "seed" → "0". One word that differs refuses a checkpoint.
        splits: Their random generators go on where they stopped.
    """

    folder: Path
    identity: Mapping[str, str] = field(default_factory=dict)
    splits: tuple[Split, ...] = ()


def write_checkpoint(
    checkpoints: Checkpoints, identity: Mapping[str, str], content: Mapping[str, Any]
) -> None:
    """Replace the checkpoint in one step: after a crash the old one or the new one is there.

    Args:
        checkpoints: Where, and of which data.
        identity: What `read_checkpoint` compares.
        content: Tensors and plain values, nested.
    """
    path = checkpoints.folder / FILE
    aside = path.with_name(f"{FILE}.{os.getpid()}.partial")
    whole = {
        "format": FORMAT,
        "identity": dict(identity),
        "random": random_states(checkpoints.splits),
        "content": dict(content),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as stream:
            torch.save(whole, stream)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    except OSError as err:
        aside.unlink(missing_ok=True)
        fix = "free space, or choose another folder with --out"
        raise EdgeshrinkError(str(path), f"can't be written ({err.strerror or err})", fix) from err


def read_checkpoint(
    checkpoints: Checkpoints, identity: Mapping[str, str]
) -> Mapping[str, Any] | None:
    """Return what `write_checkpoint` was given, and set all random generators as they were then.

    None where there is no checkpoint.

    Raises:
        ConfigError: It is damaged, or of something else than `identity` says. It stays as it is.
    """
    path = checkpoints.folder / FILE
    if not path.is_file():
        return None
    fix = f"delete {path.parent} to start again"
    try:
        stored = io.BytesIO(path.read_bytes())
    except OSError as err:
        raise ConfigError(str(path), f"can't be read ({err.strerror or err})", fix) from err
    try:
        whole = torch.load(stored, map_location="cpu", weights_only=True)
        version, found = whole["format"], dict(whole["identity"])
        content, states = whole["content"], whole["random"]
    except _DAMAGES as err:
        reason = (str(err).strip().splitlines() or [type(err).__name__])[0][:200]
        raise ConfigError(str(path), f"is damaged ({reason})", fix) from err
    if version != FORMAT:
        raise ConfigError(str(path), f"has format {version}, this version reads {FORMAT}", fix)
    _compare(path, found, identity, fix)
    set_random_states(checkpoints.splits, states)
    assert isinstance(content, Mapping)
    return content


def claim_folder(
    folder: Path, identity: Mapping[str, str], *, of: Callable[[str], bool] = lambda key: True
) -> None:
    """Say in `folder` whose checkpoints are in it; refuse a folder with those of something else.

    Args:
        folder: Made where it is not there.
        identity: In words, by what it is, as in `Checkpoints`.
        of: Says which words the checkpoints that are there depend on. Others may have changed.

    Raises:
        ConfigError: There are checkpoints of something else. They stay as they are.
        EdgeshrinkError: The folder can't be written.
    """
    path = folder / IDENTITY
    fix = f"delete {folder} to start again"
    try:
        if path.is_file() and any(folder.rglob(FILE)):
            found = json.loads(path.read_text("utf-8"))
            if not isinstance(found, dict):
                raise ValueError("no object")
            there, here = ({k: v for k, v in d.items() if of(k)} for d in (found, identity))
            _compare(path.parent, there, here, fix)
            if found == identity:
                return
        folder.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{IDENTITY}.{os.getpid()}.partial")
        aside.write_text(json.dumps(dict(identity), indent=1) + "\n", "utf-8")
        aside.replace(path)
    except ValueError as err:
        raise ConfigError(str(path), f"is damaged ({err})", fix) from err
    except OSError as err:
        fault = f"can't be written ({err.strerror or err})"
        fix = "free space, or choose another folder with --out"
        raise EdgeshrinkError(str(path), fault, fix) from err


def _compare(path: Path, found: Mapping[str, str], identity: Mapping[str, str], fix: str) -> None:
    for key in [*identity, *found]:
        if found.get(key) != identity.get(key):
            there, here = found.get(key, "none"), identity.get(key, "none")
            fault = f"belongs to another {key} ({there}), this is {here}; it is left as it is"
            raise ConfigError(str(path), fault, f"go on with the {key} it belongs to, or {fix}")


def digest_of(model: nn.Module) -> str:
    """Return a short digest over the names, shapes and values of a model's state."""
    found = hashlib.sha256(type(model).__qualname__.encode())
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            found.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return found.hexdigest()[:16]


def describe_split(split: Split) -> str:
    """Return what tells one data set from another: the content of arrays in memory, else size."""
    name = type(split).__qualname__
    n_batches = f"{len(split)} batches" if isinstance(split, Sized) else "batches"
    if not isinstance(split, ArraySplit):
        return f"{name}, {n_batches}"
    code = 0
    for array in (*split.inputs, *(() if split.targets is None else (split.targets,))):
        plain = np.ascontiguousarray(array)
        code = zlib.crc32(f"{plain.shape} {plain.dtype}".encode(), code)
        if not plain.dtype.hasobject:
            code = zlib.crc32(plain.data.cast("B") if plain.size else b"", code)
    return f"{name}, {n_batches}, {code:08x}"


def _generators(splits: Iterable[Split]) -> list[Any]:
    found = [getattr(split, name, None) for split in splits for name in GENERATORS]
    return [g for g in found if isinstance(g, np.random.Generator | torch.Generator)]


def random_states(splits: Iterable[Split]) -> dict[str, Any]:
    """Return the states of the generators of `splits`, Python, numpy and torch."""
    numpy_state: Any = np.random.get_state(legacy=False)
    return {
        "splits": [
            g.get_state() if isinstance(g, torch.Generator) else _to_json(g.bit_generator.state)
            for g in _generators(splits)
        ],
        "python": json.dumps(random.getstate()),
        "numpy": _to_json(numpy_state),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _to_json(state: Any) -> str:
    return json.dumps(state, default=lambda value: value.tolist())


def set_random_states(splits: Iterable[Split], states: Mapping[str, Any]) -> None:
    """Set all generators as `random_states` found them."""
    for generator, state in zip(_generators(splits), states["splits"], strict=True):
        if isinstance(generator, torch.Generator):
            generator.set_state(state)
        else:
            generator.bit_generator.state = json.loads(state)
    version, words, gauss = json.loads(states["python"])
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(json.loads(states["numpy"]))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
