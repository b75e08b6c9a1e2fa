"""One choice from each group, with the least loss under limits on sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MOST_STATES: Final = 4000  # partial choices kept; beyond it those of the largest loss go


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One way for a group: what it loses, and what it adds to each limited sum."""

    loss: float
    costs: tuple[float, ...]


def knapsack(groups: Sequence[Sequence[Choice]], limits: Sequence[float]) -> tuple[int, ...] | None:
    """Return the position of the choice for each group; None if none keeps the limits.

    Exact as long as no more than `MOST_STATES` partial choices are worth keeping: those that
    another one beats in loss and every sum are not, nor those that can't be finished.
    """
    n_limits = len(limits)
    rest = [[0.0] * n_limits]  # the least that the groups behind still add
    for choices in reversed(groups):
        least = [min(c.costs[i] for c in choices) for i in range(n_limits)]
        rest.insert(0, [a + b for a, b in zip(least, rest[0], strict=True)])
    states: list[tuple[float, tuple[float, ...], tuple[int, ...]]] = [(0.0, (0.0,) * n_limits, ())]
    for position, choices in enumerate(groups):
        grown = []
        for loss, costs, path in states:
            for number, choice in enumerate(choices):
                total = tuple(a + b for a, b in zip(costs, choice.costs, strict=True))
                over = any(
                    t + r > limit * (1 + 1e-12) + 1e-12
                    for t, r, limit in zip(total, rest[position + 1], limits, strict=True)
                )
                if not over:
                    grown.append((loss + choice.loss, total, (*path, number)))
        states = _undominated(grown)
        if not states:
            return None
    return min(states, key=lambda state: (state[0], state[1]))[2]


def _undominated(
    states: list[tuple[float, tuple[float, ...], tuple[int, ...]]],
) -> list[tuple[float, tuple[float, ...], tuple[int, ...]]]:
    kept: list[tuple[float, tuple[float, ...], tuple[int, ...]]] = []
    for state in sorted(states, key=lambda s: (s[0], s[1])):
        if not any(all(a <= b for a, b in zip(k[1], state[1], strict=True)) for k in kept):
            kept.append(state)
    if len(kept) <= MOST_STATES:
        return kept
    # Of too many, every n-th: the cheapest and the gentlest are both among them.
    stride = len(kept) / MOST_STATES
    return [kept[min(len(kept) - 1, round(i * stride))] for i in range(MOST_STATES)] + [kept[-1]]
