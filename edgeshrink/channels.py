"""Channels of a model that can only go together, and how much they matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class ChannelGroup:
    """Channels that go together, seen from the layer at the root of their dependencies.

    A unit is what goes at once: one channel, or one of each block of a grouped layer.

    Attributes:
        root: Path of that layer.
        n_channels: How many it has.
        n_ways: Channels in a unit.
        importance: Of each unit; comparable between groups of one model.
        members: Path of every layer that computes such channels -> which of its outputs belong to
            each unit, (units, outputs of a unit).
    """

    root: str
    n_channels: int
    n_ways: int
    importance: npt.NDArray[np.float64]
    members: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict, repr=False)

    def gone(self, kept: int) -> npt.NDArray[np.int64]:
        """Return the units that go when `kept` channels stay: the least important ones."""
        n_units = (self.n_channels - kept) // self.n_ways
        return np.sort(np.argsort(self.importance, kind="stable")[:n_units])
