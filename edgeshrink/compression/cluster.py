"""Each layer's weights take few values: a codebook, and an index into it for every weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgeshrink.compression.layers import (
    Weight,
    download_bytes,
    excluded_layers,
    packed_bytes,
    require_layers,
    weights_of,
)
from edgeshrink.compression.steps import Changed, Context
from edgeshrink.recipe import Cluster
from edgeshrink.target import Target

MAX_ROUNDS: Final = 300  # of Lloyd's algorithm; it ends when nothing moves

Floats = npt.NDArray[np.float64]


def apply(model: nn.Module, step: Cluster, context: Context) -> Changed:
    """Replace the weights of every layer by the nearest of `n_clusters` values, in place.

    Where some are zero already, zero is one of the values and stays theirs alone.

    Raises:
        ConfigError: `exclude` names no layer.
        ModelError: There are no weights.
    """
    weights = check_layers(model, step)
    before = download_bytes(weights)
    rows: list[dict[str, Any]] = []
    chunks: list[bytes] = []
    for index, weight in enumerate(weights):
        context.progress(index / len(weights), f"clustering {weight.path}")
        values = weight.value.detach().double().numpy()
        codebook, codes = codebook_of(values.ravel(), step.n_clusters)
        stored = codebook.astype(np.float32)
        with torch.no_grad():
            weight.value.copy_(torch.from_numpy(stored[codes].reshape(values.shape)))
        squared = float(np.mean((values - codebook[codes].reshape(values.shape)) ** 2))
        power = float(np.mean(values**2))
        rows.append(
            {
                "layer": weight.path,
                "weight": weight.name,
                "n_weights": values.size,
                "n_values": len(codebook),
                "error": math.sqrt(squared / power) if power else 0.0,
            }
        )
        chunks += [stored.tobytes(), _pack(codes, len(codebook))]
    after = {**download_bytes(weights), "codebook": packed_bytes(chunks)}
    return Changed(
        model=model,
        note=_note(rows, before, after, step, context.target),
        details={"layers": rows, "download_bytes": {"before": before, "after": after}},
    )


def check_layers(model: nn.Module, step: Cluster) -> list[Weight]:
    """Return the weights that `step` is about; raise what is wrong with that."""
    weights = weights_of(model, excluded_layers(model, step.exclude))
    require_layers(model, weights, "weight of a convolution, linear or recurrent layer")
    return weights


def codebook_of(values: Floats, n_clusters: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return few values that stand for many, and which of them stands for each (k-means).

    Lloyd's algorithm from evenly spaced centres (Han et al., 2016: large weights are few, and it
    is them that this start keeps). Deterministic.

    Args:
        values: (n,).
        n_clusters: At most so many; fewer where there are fewer values.

    Returns:
        The codebook in ascending order, and indices (n,) into it.
    """
    different = np.unique(values)
    if len(different) <= n_clusters:
        return different, np.searchsorted(different, values)
    is_zero = values == 0
    free = n_clusters - int(is_zero.any())
    ordered = np.sort(values[~is_zero])
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centres = np.linspace(ordered[0], ordered[-1], free) if free > 1 else ordered[:1]
    for _ in range(MAX_ROUNDS):
        ends = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2, side="right")
        edges = np.concatenate([[0], ends, [len(ordered)]])
        counts = np.diff(edges)
        # A centre that nothing is near to stays where it is.
        moved = np.where(counts > 0, np.diff(sums[edges]) / np.maximum(counts, 1), centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    codes = np.searchsorted((centres[1:] + centres[:-1]) / 2, values, side="left")
    chosen = centres[codes]
    chosen[is_zero] = 0
    return np.unique(chosen), np.searchsorted(np.unique(chosen), chosen)


def _pack(codes: npt.NDArray[np.int64], n_values: int) -> bytes:
    """Return the indices with as many bits each as they need."""
    width = max(1, math.ceil(math.log2(n_values)))
    bits = codes[:, None] >> np.arange(width - 1, -1, -1) & 1  # (n, width)
    return np.packbits(bits.astype(np.uint8)).tobytes()


def _note(
    rows: Sequence[Mapping[str, Any]],
    before: Mapping[str, int],
    after: Mapping[str, int],
    step: Cluster,
    target: Target,
) -> str:
    n_weights = sum(row["n_weights"] for row in rows)
    return (
        f"{n_weights:,} weights of {len(rows)} layers take {step.n_clusters} values each layer at "
        f"most; compressed (zlib), the weights of a download shrink from {before['float32']:,} to "
        f"{after['float32']:,} bytes as float32 ({after['codebook']:,} as codebook and indices), "
        f"from {before['int8']:,} to {after['int8']:,} as int8; {target.name} gains neither flash "
        "nor time: there each weight has its own byte again"
    )
