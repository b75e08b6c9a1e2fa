"""Observers of activation ranges beyond torchao's, as its `prepare_pt2e` takes them.

All of them count values in bins whose width is a power of two. When the range outgrows the bins,
neighbours are merged and the width doubles, which is exact: the counts depend on the values alone,
not on how they were batched or in which order they came.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchao.quantization.pt2e.observer import UniformQuantizationObserverBase

Floats = npt.NDArray[np.floating[Any]]

MOST_BINS: Final = 8192  # at least half of them are in use
N_CANDIDATES: Final = 64  # of each end of the range, in a scan
LEAST_SHARE: Final = 1 / 8  # of the observed range that a scan still considers, for each end
MOST_SCANS: Final = 4
LEAST_DENSITY: Final = 1e-12  # of a bin that nothing but clipped values fill
COVERED: Final = 0.9999  # share of the values that PercentileObserver keeps in range


class CountingObserver(UniformQuantizationObserverBase):  # type: ignore[misc]
    """Counts values; subclasses choose a range from the counts.

    Zeros are counted apart: every range holds them exactly.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.width = 0.0  # of a bin; 0 before the first value
        self.first = 0  # bin i covers [(first + i) * width, (first + i + 1) * width)
        self.counts = torch.zeros(0, dtype=torch.int64)
        self.n_zeros = 0
        self.least, self.largest = math.inf, -math.inf

    def forward(self, x: Tensor) -> Tensor:
        """Count the values of `x`, and return it."""
        values = x.detach().reshape(-1)
        if not values.numel():
            return x
        low, high = (float(v) for v in torch.aminmax(values))
        self.least, self.largest = min(self.least, low), max(self.largest, high)
        self._widen()
        others = values[values != 0]
        self.n_zeros += values.numel() - others.numel()
        if others.numel():
            bins = torch.floor(others.double() / self.width).long() - self.first
            self.counts += torch.bincount(bins, minlength=len(self.counts))
        return x

    def _widen(self) -> None:
        """Make the bins cover `least` to `largest`, merging them where they would be too many."""
        span, size = self.largest - self.least, max(abs(self.least), abs(self.largest))
        # Finer than a float's last bits, or than anything that a scale can tell, is no use.
        floor = max(span / (MOST_BINS - 1), size * 2.0**-22, 2.0**-64)
        width = 2.0 ** math.ceil(math.log2(floor))
        if math.floor(self.largest / width) - math.floor(self.least / width) >= MOST_BINS:
            width *= 2
        width = max(width, self.width)
        first = math.floor(self.least / width)
        counts = torch.zeros(math.floor(self.largest / width) - first + 1, dtype=torch.int64)
        if len(self.counts):
            factor = round(width / self.width)
            old = torch.div(
                torch.arange(len(self.counts)) + self.first, factor, rounding_mode="floor"
            )
            counts.index_add_(0, old - first, self.counts)
        self.width, self.first, self.counts = width, first, counts

    def centres(self) -> Floats:
        """Return the middle of every bin."""
        return (np.arange(len(self.counts)) + self.first + 0.5) * self.width

    def range(self) -> tuple[float, float]:
        """Return the lowest and the highest value that shall be told apart."""
        raise NotImplementedError

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return scale and zero point, one element each."""
        return self.scale_of(*(self.range() if self.width else (math.inf, -math.inf)))

    def scale_of(self, low: float, high: float) -> tuple[Tensor, Tensor]:
        """Return scale and zero point of a range, one element each."""
        scale, zero_point = self._calculate_qparams(torch.tensor(low), torch.tensor(high))
        return scale, zero_point

    def scanned(self) -> tuple[float, float]:
        """Return the range of the least `cost`: scan one end, then the other, until both stay."""
        low, high = min(self.least, 0.0), max(self.largest, 0.0)
        shares = torch.linspace(1, LEAST_SHARE, N_CANDIDATES, dtype=torch.float64).tolist()
        best = self.cost(low, high)
        full = (low, high)
        for _ in range(MOST_SCANS):
            before = (low, high)
            for share in shares if full[1] else ():
                cost = self.cost(low, full[1] * share)
                if cost < best:
                    best, high = cost, full[1] * share
            for share in shares if full[0] else ():
                cost = self.cost(full[0] * share, high)
                if cost < best:
                    best, low = cost, full[0] * share
            if before == (low, high):
                break
        return low, high

    def cost(self, low: float, high: float) -> float:
        """Return what a range costs; only its order matters."""
        raise NotImplementedError

    def codes(self, low: float, high: float) -> tuple[Floats, float, int]:
        """Return the stored value of every bin under a range, its scale and its zero point."""
        scale, zero = self._calculate_qparams(torch.tensor(low), torch.tensor(high))
        step, zero_point = float(scale), int(zero)
        codes = np.rint(self.centres() / step) + zero_point
        return np.clip(codes, self.quant_min, self.quant_max), step, zero_point


class PercentileObserver(CountingObserver):
    """Leaves out the same share of values, few, at both ends."""

    def range(self) -> tuple[float, float]:
        """Return the values below and above which `(1 - COVERED) / 2` of all lie."""
        counts = self.counts.double()
        if self.n_zeros:
            counts[-self.first] += self.n_zeros
        reached = torch.cumsum(counts, 0)
        total = float(reached[-1])

        def quantile(share: float) -> float:
            index = int(torch.searchsorted(reached, share * total))
            index = min(index, len(counts) - 1)
            before = float(reached[index - 1]) if index else 0.0
            inside = (share * total - before) / max(1.0, float(counts[index]))
            return (self.first + index + min(1.0, max(0.0, inside))) * self.width

        tail = (1 - COVERED) / 2
        low, high = np.clip([quantile(tail), quantile(1 - tail)], self.least, self.largest)
        return float(low), float(high)


class MseObserver(CountingObserver):
    """Makes the mean squared error of the stored values least: of rounding and of clipping."""

    def range(self) -> tuple[float, float]:
        """Return the range of the least squared error."""
        return self.scanned()

    def cost(self, low: float, high: float) -> float:
        """Return the squared error, summed over all values."""
        codes, scale, zero_point = self.codes(low, high)
        error = (codes - zero_point) * scale - self.centres()
        return float((self.counts.numpy() * error * error).sum())


class EntropyObserver(CountingObserver):
    """Loses the least information: divergence of the stored values' distribution from the true one.

    As published for symmetric ranges (Migacz, 8-bit inference with TensorRT, 2017): what is clipped
    counts in the outermost bins of the true distribution, and is missing in the stored one, where
    every stored value's share is spread evenly over the bins that it stands for and that are used.
    """

    def range(self) -> tuple[float, float]:
        """Return the range of the least divergence."""
        return self.scanned()

    def cost(self, low: float, high: float) -> float:
        """Return the Kullback-Leibler divergence."""
        counts, centres = self.counts.numpy(), self.centres()
        start, stop = np.searchsorted(centres, [low, high])
        kept = counts[start:stop].astype(np.float64)
        if not kept.any():
            return math.inf
        true = kept.copy()
        true[0] += counts[:start].sum()
        true[-1] += counts[stop:].sum()
        codes = (self.codes(low, high)[0][start:stop] - self.quant_min).astype(np.int64)
        mass = np.bincount(codes, weights=kept)
        used = np.bincount(codes, weights=kept > 0)
        stored = np.where(kept > 0, mass[codes] / np.maximum(used[codes], 1), 0)
        p, q = true / true.sum(), stored / stored.sum()
        q = np.maximum(q, LEAST_DENSITY)
        seen = p > 0
        return float((p[seen] * np.log(p[seen] / q[seen])).sum())


class AnyObserver(MseObserver):
    """Offers what each of the observers would have found; `quantizer.precision` chooses."""

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Return a range by the word of its observer: least and largest first."""
        if not self.width:
            return {}
        return {
            "minmax": (self.least, self.largest),
            "percentile": self._as(PercentileObserver).range(),
            "mse": self.range(),
            "entropy": self._as(EntropyObserver).range(),
        }

    def _as(self, kind: type[CountingObserver]) -> CountingObserver:
        """Return an observer of another kind that has seen the same values."""
        found = kind.__new__(kind)
        found.__dict__.update(self.__dict__)
        return found
