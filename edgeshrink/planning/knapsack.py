"""One choice from each group, with the least loss under limits on sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

MOST_STATES: Final = 4000  # partial choices kept; beyond it every n-th stays
BLOCK: Final = 512  # rows compared at once


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One way for a group: what it loses, and what it adds to each limited sum."""

    loss: float
    costs: tuple[float, ...]


def knapsack(groups: Sequence[Sequence[Choice]], limits: Sequence[float]) -> tuple[int, ...] | None:
    """Return the position of the choice for each group; None if none keeps the limits.

    Exact as long as no more than `MOST_STATES` partial choices are worth keeping: those that
    another one beats in loss and every sum are not, nor those that can't be finished. Sums that no
    choice brings over their limit are left out.
    """
    bounds = [limit * (1 + 1e-12) + 1e-12 for limit in limits]
    binding = [
        i for i, bound in enumerate(bounds)
        if sum(max((c.costs[i] for c in choices), default=0.0) for choices in groups) > bound
    ]  # fmt: skip
    bound = np.array([bounds[i] for i in binding])  # (sums,)
    options = [
        np.array([(c.loss, *(c.costs[i] for i in binding)) for c in choices], np.float64)
        .reshape(len(choices), 1 + len(binding))
        for choices in groups
    ]  # fmt: skip
    if any(len(choices) == 0 for choices in groups):
        return None
    least = np.array([choices[:, 1:].min(axis=0) for choices in options])  # (groups, sums)
    states = np.zeros((1, 1 + len(binding)))  # loss and sums
    paths = np.zeros((1, 0), np.int64)
    for position, choices in enumerate(options):
        n_choices = len(choices)
        grown = (states[:, None] + choices[None]).reshape(-1, states.shape[1])
        longer = np.column_stack(
            [np.repeat(paths, n_choices, axis=0), np.tile(np.arange(n_choices), len(states))]
        )
        rest = least[position + 1 :].sum(axis=0)  # the least that the groups behind still add
        fits = (grown[:, 1:] + rest <= bound).all(axis=1)
        states, paths = grown[fits], longer[fits]
        kept = _undominated(states)
        states, paths = states[kept], paths[kept]
        if not len(states):
            return None
    return tuple(int(number) for number in paths[0])


def _undominated(states: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the rows that no other is as low as in all columns, the lowest of equals, in order.

    Args:
        states: (n, columns); ordered by the first column, then the others.
    """
    order = np.lexsort(states.T[::-1])
    kept = np.zeros(0, np.int64)
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        for first in range(0, len(kept), BLOCK):
            against = states[kept[first : first + BLOCK], None, 1:]
            block = block[~(against <= states[None, block, 1:]).all(axis=2).any(axis=0)]
        rows = states[block, 1:]
        beats = (rows[:, None] <= rows[None]).all(axis=2)  # row beats column
        block = block[~np.triu(beats, 1).any(axis=0)]  # of equals the first stays
        kept = np.concatenate([kept, block])
    if len(kept) <= MOST_STATES:
        return kept
    # Of too many, every n-th: the cheapest and the gentlest are both among them.
    return kept[np.unique(np.linspace(0, len(kept) - 1, MOST_STATES).round().astype(np.int64))]
