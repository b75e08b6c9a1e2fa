"""What the user brings: a float model, its data, and how it is scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from edgeshrink.budget import Budget
from edgeshrink.errors import ConfigError

if TYPE_CHECKING:
    import torch

SPLITS: Final = ("train", "calibration", "validation", "test")

Arrays = tuple[npt.NDArray[Any], ...]  # one array per model input, batch first
Batch = tuple[Arrays, Any]  # inputs, targets (None where there are none)
Predict = Callable[..., Any]  # arrays (batch, ...) one per input -> the model's output structure
Evaluate = Callable[[Predict, str], float]


class Split(Protocol):
    """Data that can be gone through again and again, as batches of `(inputs, targets)`.

    `inputs` is a tuple with one array (batch, ...) per model input, in the model's own layout.
    """

    def __iter__(self) -> Iterator[Batch]: ...


@dataclass(frozen=True, kw_only=True)
class ArraySplit:
    """A split that lies in memory. `shuffle_seed` None keeps the order; else every pass reshuffles.

    Args:
        inputs: One array per model input, all with the same first dimension.
        targets: Array with the same first dimension, or None.
        batch_size: Samples per batch; the last batch may be smaller.
        augment: Applied to each batch as `augment(inputs, rng) -> inputs`.
    """

    inputs: Arrays
    targets: npt.NDArray[Any] | None = None
    batch_size: int = 64
    shuffle: bool = False
    augment: Callable[[Arrays, np.random.Generator], Arrays] | None = None
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0), repr=False)

    def __post_init__(self) -> None:
        if not self.inputs or len({len(a) for a in self.inputs}) != 1:
            raise ValueError("inputs must be a tuple of arrays with the same first dimension")
        if self.targets is not None and len(self.targets) != len(self.inputs[0]):
            raise ValueError("targets and inputs differ in their first dimension")

    def __len__(self) -> int:
        """Batches in one pass."""
        return -(-len(self.inputs[0]) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        n = len(self.inputs[0])
        order = self.rng.permutation(n) if self.shuffle else np.arange(n)
        for start in range(0, n, self.batch_size):
            rows = order[start : start + self.batch_size]
            batch = tuple(a[rows] for a in self.inputs)
            if self.augment is not None:
                batch = self.augment(batch, self.rng)
            yield batch, None if self.targets is None else self.targets[rows]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What `evaluate` returns, and which way is better."""

    name: str = "score"
    direction: Literal["higher", "lower"] = "higher"

    def drop(self, reference: float, score: float) -> float:
        """Return by how much `score` is worse than `reference`; negative when it is better.

        Of the difference, what only the rounding of the scores may have made is cut off: 0.99 and
        0.98 are 0.01 apart, which a limit of 0.01 allows.
        """
        worse = reference - score if self.direction == "higher" else score - reference
        size = max(abs(reference), abs(score))
        if not 0 < size < math.inf:
            return worse
        return round(worse, 13 - math.floor(math.log10(size)))

    def best(self, scores: Sequence[float]) -> float:
        """Return the best of some scores."""
        return max(scores) if self.direction == "higher" else min(scores)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is trained: one cosine cycle after a warm-up.

    SGD has Nesterov's momentum of 0.9.
    """

    epochs: int
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup_share: float = 0.1  # of all steps, in [0, 1)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    ema: float = 0.0  # decay of averaged weights, which then are the result; 0: none
    patience: int = 0  # epochs without a better score before it stops; 0: never
    # bfloat16: products, on hardware that has them half the time; weights and losses stay float32.
    precision: Literal["float32", "bfloat16"] = "float32"
    # The weights of the epoch with the best score on `validation`, or of the last epoch: for models
    # that have seen the validation data before, where that score would choose the first epochs.
    keep: Literal["best", "last"] = "best"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model with its data and its score.

    Args:
        model: The float module; already trained where `training` is None.
        example_inputs: One tensor per input, batch of 1.
        data: Splits by name, of `SPLITS`; `calibration` falls back to `train`.
        evaluate: `evaluate(predict, split) -> float`: calls `predict` with one array (batch, ...)
            per model input on the split named, gets back what the model returns (array, tuple or
            dict of arrays), and computes the metric. None: there is no score.
        loss: `loss(outputs, targets) -> scalar tensor`, for training.
        training: How to train `model` first; None when it is trained.
        teacher: What compression distils from, where a recipe says so; None: `model` itself, as it
            is before compression. Its outputs must have the shapes of the model's. The drop in
            score is then measured against the better of the two.
        metric, budget, name: Filled from `edgeshrink.toml` where that exists.
    """

    model: torch.nn.Module
    example_inputs: tuple[torch.Tensor, ...]
    data: Mapping[str, Split]
    evaluate: Evaluate | None = None
    loss: Callable[[Any, Any], torch.Tensor] | None = None
    training: Training | None = None
    teacher: torch.nn.Module | None = None
    metric: Metric = field(default_factory=Metric)
    budget: Budget = field(default_factory=Budget)
    name: str = "model"
    folder: Path | None = None


def find_data(name: str | Sequence[str], data: Path | None, *, what: str, where_from: str) -> Path:
    """Return the path of a data set in the folder that the user named.

    Args:
        name: File or folder to look for, relative to `data`; of several, the first that exists.
        data: The user's data folder (`--data`, `EDGESHRINK_DATA`), or the thing itself; None when
            no folder was named.
        what: What it is, for the message: "the CIFAR-10 images".
        where_from: Where to get it: an address, and what to do with the download.

    Raises:
        ConfigError: It is not there. The message says what to get, from where, where to put it.
    """
    names = (name,) if isinstance(name, str) else tuple(name)
    for each in names:
        if data is not None and (data / each).exists():
            return data / each
        if data is not None and data.name == Path(each).name and data.exists():
            return data
    if data is None:
        fault, put = "no data folder is given", "put it into a folder"
    else:
        fault = (
            f"not found in {data}" if data.is_dir() else f"the data folder {data} does not exist"
        )
        put = "put it into that folder"
    raise ConfigError(
        what,
        fault,
        f"get {' or '.join(names)} from {where_from}, {put}, "
        "and name the folder with --data DIR or the variable EDGESHRINK_DATA",
    )
