"""A fleet that is made once and copied, and artifacts that nobody had to build."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from securesystemslib.signer import CryptoSigner

from edgeshrink.fleet.keys import read_private
from edgeshrink.fleet.repository import create_fleet
from edgeshrink.fleet.settings import Settings
from tests.tiny_models import expected_fully_connected, fully_connected

PASSPHRASE = "three words or more"
NAMES = ("alice", "bob", "carol")


@dataclass(frozen=True)
class Fleet:
    folder: Path
    keys: Mapping[str, CryptoSigner]

    @property
    def two(self) -> tuple[CryptoSigner, ...]:
        """As many people as must sign."""
        return self.keys["alice"], self.keys["bob"]

    def copy(self, folder: Path) -> Fleet:
        shutil.copytree(self.folder, folder)
        return Fleet(folder, self.keys)


def make_fleet(folder: Path) -> Fleet:
    create_fleet(
        folder, Settings(name="sensors"), passphrases=dict.fromkeys(NAMES, PASSPHRASE), threshold=2
    )
    return Fleet(folder, {n: read_private(folder / "keys" / f"{n}.pem", PASSPHRASE) for n in NAMES})


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_artifact(
    folder: Path,
    *,
    name: str = "keywords",
    target: str = "rpi4",
    model: bytes | None = None,
    score: float = 0.9375,
    met: bool = True,
    files: Mapping[str, bytes] | None = None,
    **changes: Any,
) -> Path:
    """Write an artifact of one dense layer, as `edgeshrink build` lays it out."""
    model = fully_connected() if model is None else model
    x = np.arange(-8, 8, dtype=np.int8).reshape(4, 4)
    golden = io.BytesIO()
    np.savez_compressed(
        golden, **{"input/x": x, "output/y": expected_fully_connected(x, fully_connected())}
    )
    overrun = {"what": "latency", "need": 61.5, "limit": 50.0, "unit": "ms"}
    latency = {"unit": "ms", "how": "modelled", "value": 41.25, "low": 37.5, "high": 46.5}
    profile = {
        "figures": {
            "latency_ms": {**latency, "validated": True, "note": "a note"},
            "flash_bytes": {"unit": "B", "how": "measured", "value": 900, "low": 900, "high": 900},
        },
        "budget": {"met": met, "overruns": [] if met else [overrun]},
    }
    content = {
        "model.tflite": model,
        "golden.npz": golden.getvalue(),
        "profile.json": json.dumps(profile).encode(),
        "recipe.toml": b'[[steps]]\nstep = "quantize"\n',
        "MODEL_CARD.md": b"# keywords\n",
        **(files or {}),
    }
    tensor = {
        "shape": [1, 4],
        "dtype": "int8",
        "scale": 1.0,
        "zero_point": 0,
        "model_shape": [1, 4],
    }
    manifest = {
        "format": 1,
        "name": name,
        "target": target,
        "engine": "tflite",
        "quantization": "one",
        "inputs": [{"name": "x", "layout": "as-is", **tensor}],
        "outputs": [{"name": "y", "layout": "as-is", **tensor, "shape": [1, 3]}],
        "structure": "single",
        "metric": {"name": "accuracy", "direction": "higher"},
        "scores": {"float": 0.95, "tflite": score},
        "recipe": {"steps": [{"step": "quantize"}]},
        "versions": {"edgeshrink": "0.1.0", "torch": "2.13.0+cpu", "executorch": "1.5.1"},
        "seed": 3,
        "files": {n: {"sha256": sha256(d), "bytes": len(d)} for n, d in content.items()},
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in content.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "artifact.json").write_text(json.dumps(manifest))
    return folder


def without_fsync(monkeypatch: Any) -> None:
    """No power fails in tests, and each wait for the disk takes its time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
