"""Which channels go so that a model fits: search over prices, reasons, and certificates.

The search knows what a candidate costs (`price`), and how much it hurts: by measured sensitivity
where the model is trained and there is a score, else by the importance of what goes. A knapsack
over single groups around a uniform candidate proposes widths; true prices decide.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from edgeshrink.budget import Budget
from edgeshrink.channels import ChannelGroup
from edgeshrink.errors import BudgetError, ModelError
from edgeshrink.graph import Graph
from edgeshrink.lowering import Optimize
from edgeshrink.planning.knapsack import Choice, knapsack
from edgeshrink.planning.narrow import narrow
from edgeshrink.planning.price import Price, price
from edgeshrink.profile import Overrun
from edgeshrink.quantizer.sketch import Sketch
from edgeshrink.recipe import Finetune, Importance, Prune, Quantize, Recipe, TrainQuantized
from edgeshrink.target import Target

LEVELS: Final = 8  # widths of a group that are priced, its own included
# Operators that are priced for each share of `TIGHTER`, about: a microcontroller's kernels in six
# seconds. A number, not a time, so that a plan is the same on a slow machine.
PRICED_OPS: Final = {"microcontroller": 1_000}
PRICED_OPS_ELSE: Final = 100_000
TIGHTER: Final = (1.0, 0.93, 0.8)  # of the budget: a first candidate, and ones for when it misses
ROUNDS: Final = 6  # of correcting the knapsack's sums by true prices
WHOLE: Final = "whole"  # the candidate that keeps every channel
FIGURES: Final = {"flash": "flash_bytes", "ram": "ram_bytes", "latency": "latency_ms"}

Progress = Callable[[float, str], None]
Sensitivity = Mapping[str, Mapping[int, float]]  # root -> channels kept -> drop in score


@dataclass(frozen=True, kw_only=True)
class Trainable:
    """What a plan may ask of the task: whether and how long it can train."""

    epochs: int  # of fine-tuning; 0: it can't train
    can_distill: bool = False
    has_teacher: bool = False  # of its own: else a float model teaches what comes of it
    has_validation: bool = False


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to make the model fit, priced but not trained.

    `loss` is what the search minimises: the drop in score before any recovery, where sensitivity
    was measured, else the sum over groups of -log(share of importance that stays).
    """

    name: str
    kept: Mapping[str, int]
    recipe: Recipe
    price: Price
    loss: float
    predicted_drop: float | None  # unvalidated: before recovery, groups added up
    overruns: tuple[Overrun, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Candidates, gentlest first; `chosen` are those whose predicted figures meet the budget."""

    target: str
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]

    @property
    def chosen(self) -> tuple[Candidate, ...]:
        """Candidates whose predicted figures meet the budget."""
        return tuple(c for c in self.candidates if not c.overruns)


def plan(
    sketch: Sketch,
    groups: Sequence[ChannelGroup],
    target: Target,
    budget: Budget,
    *,
    trainable: Trainable,
    importance: Importance = "magnitude",
    sensitivity: Sensitivity | None = None,
    within: Budget | None = None,
    optimize: Optimize = "latency",
    threads: int = 1,
    progress: Progress = lambda share, detail: None,
) -> Plan:
    """Return recipes that make the model of `sketch` meet `budget`, gentlest first.

    Args:
        sketch: Of the whole model.
        groups: What structured pruning may take.
        target: The device.
        budget: Its limits on flash, RAM and latency.
        trainable: What recipes may do to recover.
        importance: By which `groups` are rated; goes into the recipes.
        sensitivity: Drops in score by group and width, where they were measured.
        within: Tighter limits for the widths alone; kernels are those that `budget` asks for.
        optimize, threads: As in a build.
        progress: Called as the search advances.

    Raises:
        BudgetError: Not even the smallest candidate can fit: names the bound and the limit, and
            the nearest budget that would do.
    """
    search = _Search(
        sketch, groups, target, budget, optimize=optimize, threads=threads,
        sensitivity=sensitivity, within=within, progress=progress,
    )  # fmt: skip
    progress(0.0, "pricing the whole model")
    whole = search.candidate(search.full, WHOLE, trainable, importance)
    if not whole.overruns:
        return Plan(target=target.name, candidates=(whole,), notes=search.notes())
    progress(0.1, "pricing the smallest candidate")
    search.certify()
    candidates = [whole]
    for share in TIGHTER:
        kept = search.widths(share)
        if kept is None or any(kept == c.kept for c in candidates):
            continue
        name = f"pruned-{len(candidates)}"
        candidates.append(search.candidate(kept, name, trainable, importance))
        if trainable.epochs and trainable.has_validation and share == TIGHTER[0]:
            harder = _trained_longer(candidates[-1], trainable)
            candidates.append(replace(harder, name=f"pruned-{len(candidates)}"))
    return Plan(target=target.name, candidates=tuple(candidates), notes=search.notes())


def after(plan: Plan, failed: Candidate, missed: str) -> tuple[Candidate, ...]:
    """Return what is worth a try after the real figures of `failed` missed the limit `missed`.

    After a drop in score, the same widths trained longer or none; after a size, narrower ones.
    """
    rest = plan.chosen[plan.chosen.index(failed) + 1 :]
    if missed == "drop":
        return tuple(c for c in rest if c.kept == failed.kept)
    return tuple(c for c in rest if c.kept != failed.kept)


class _Search:
    """Prices candidates and remembers what they cost."""

    def __init__(
        self,
        sketch: Sketch,
        groups: Sequence[ChannelGroup],
        target: Target,
        budget: Budget,
        *,
        optimize: Optimize,
        threads: int,
        sensitivity: Sensitivity | None,
        progress: Progress,
        within: Budget | None = None,
    ) -> None:
        self.sketch, self.target, self.budget = sketch, target, budget
        self.within = within or budget
        self.optimize, self.threads, self.progress = optimize, threads, progress
        self.sensitivity = sensitivity
        priced_ops = PRICED_OPS.get(target.kind, PRICED_OPS_ELSE)
        self.most = max(8, priced_ops // max(1, len(sketch.graph.ops)))
        self.known: dict[tuple[int, ...], Price] = {}
        self.seconds = 0.0
        self.unfollowed: list[str] = []
        self.groups = tuple(g for g in groups if self._follows(g))
        self.full = {g.root: g.n_channels for g in self.groups}
        self.least = {g.root: levels(g)[-1] for g in self.groups}

    def _follows(self, group: ChannelGroup) -> bool:
        widths = levels(group)
        if len(widths) < 2:
            return False
        try:
            narrow(self.sketch, [group], {group.root: widths[-1]})
        except ModelError as err:
            self.unfollowed.append(f"{group.root}: {err.what}")
            return False
        return True

    def notes(self) -> tuple[str, ...]:
        found = [f"{len(self.known)} candidates priced in {self.seconds:.1f} s"]
        if self.unfollowed:
            found.append(f"kept as wide as they are: {'; '.join(self.unfollowed)}")
        if self.sensitivity is None:
            found.append(
                "no sensitivity was measured (the model is not trained yet, or has no score): "
                "importance alone says what goes, and there is no predicted drop"
            )
        return tuple(found)

    def graph(self, kept: Mapping[str, int]) -> Graph:
        return narrow(self.sketch, self.groups, kept)

    def price(self, kept: Mapping[str, int]) -> Price:
        key = tuple(kept[g.root] for g in self.groups)
        if key not in self.known:
            started = time.monotonic()
            self.known[key] = price(
                self.graph(kept), self.target, optimize=self.optimize, threads=self.threads,
                budget=self.budget,
            )  # fmt: skip
            self.seconds += time.monotonic() - started
        return self.known[key]

    def loss(self, kept: Mapping[str, int]) -> float:
        return sum(self.group_loss(g, kept[g.root]) for g in self.groups)

    def group_loss(self, group: ChannelGroup, kept: int) -> float:
        measured = (self.sensitivity or {}).get(group.root)
        by_importance = importance_loss(group, kept)
        if not measured:
            return by_importance
        # Where the score does not tell two candidates apart, importance does.
        return interpolated(measured, group.n_channels, kept) + 1e-3 * by_importance

    def certify(self) -> None:
        """Raise BudgetError if the smallest candidate exceeds a limit whatever is chosen."""
        smallest: dict[str, float] = {}
        graph = self.graph(self.least)
        for optimize in _choices(self.target):
            found = price(
                graph, self.target, optimize=optimize, threads=self.threads, budget=self.budget
            )
            for what, name in FIGURES.items():
                if name not in found.figures:
                    continue
                figure = found.figures[name]
                low = figure.high if what == "latency" else figure.low
                low = max(low, found.bounds.get(name, 0.0))
                smallest[what] = min(low, smallest.get(what, math.inf))
        # What would do is what this very search reaches, by the kernels that were asked for.
        figures = self.price(self.least).figures
        reached = {what: figures[n].high for what, n in FIGURES.items() if n in figures}
        limits = {
            "flash": self.budget.flash_bytes, "ram": self.budget.ram_bytes,
            "latency": self.budget.latency_ms,
        }  # fmt: skip
        for what, limit in limits.items():
            if limit is None or smallest.get(what, 0.0) <= limit:
                continue
            unit = "ms" if what == "latency" else "B"
            raise BudgetError(
                what, need=smallest[what], limit=limit, unit=unit,
                remedy=self._remedy(what, limits, reached),
            )  # fmt: skip

    def _remedy(
        self, what: str, limits: Mapping[str, float | None], reached: Mapping[str, float]
    ) -> str:
        words = {
            "flash": "its code and weights",
            "ram": "its arena and stack",
            "latency": "its cycles, with the upper end of their band",
        }
        parts = []
        for key, limit in limits.items():
            if limit is None or key not in reached:
                continue
            need = max(limit, reached[key])
            parts.append(f"{key}={need:.4g}ms" if key == "latency" else f"{key}={math.ceil(need)}")
        return (
            f"this is the lower bound by {words[what]} of the smallest candidate, each of whose "
            f"{len(self.groups)} groups of channels is as narrow as it may get; the nearest budget "
            f"that would do is {','.join(parts)}; else give the task a smaller model, or choose a "
            "larger device"
        )

    def widths(self, share: float) -> dict[str, int] | None:
        """Return the gentlest widths found whose price is at most `share` of every limit."""
        budget = _scaled(self.within, share)
        reference = self._uniform(budget)
        if reference is None:
            return None
        best = self._widened(reference, budget)
        refined = self._knapsack(reference, budget)
        if refined is not None:
            refined = self._widened(refined, budget)
            if self.loss(refined) < self.loss(best):
                best = refined
        return best

    def _uniform(self, budget: Budget) -> dict[str, int] | None:
        """Return the widest candidate that takes the same share from every group and fits."""
        low, high = 0, LEVELS - 1
        if self.price(self._level(high)).excess(budget) > 1:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            fits = self.price(self._level(middle)).excess(budget) <= 1
            low, high = (low, middle) if fits else (middle, high)
        return self._level(high)

    def _level(self, level: int) -> dict[str, int]:
        found = {}
        for group in self.groups:
            widths = levels(group)
            found[group.root] = widths[round(level * (len(widths) - 1) / (LEVELS - 1))]
        return found

    def _knapsack(self, reference: Mapping[str, int], budget: Budget) -> dict[str, int] | None:
        """Choose each group's width by what it costs around `reference`, corrected by prices."""
        names = [
            name for what, name in FIGURES.items()
            if _limit(budget, what) is not None and name in self.price(reference).figures
        ]  # fmt: skip
        at = self._highs(reference, names)
        options: dict[str, list[tuple[int, Choice]]] = {g.root: [] for g in self.groups}
        before = len(self.known)
        for group, width in self._steps(reference):
            if width != reference[group.root] and len(self.known) - before >= self.most:
                continue
            self.progress(0.2 + 0.6 * len(options[group.root]) / LEVELS, f"pricing {group.root}")
            highs = self._highs({**reference, group.root: width}, names)
            costs = tuple(h - a for h, a in zip(highs, at, strict=True))
            choice = Choice(loss=self.group_loss(group, width), costs=costs)
            options[group.root].append((width, choice))
        rows = [sorted(row, key=lambda x: -x[0]) for row in options.values()]
        limits = [float(_limit(budget, what) or 0) for what, n in FIGURES.items() if n in names]
        slack = [limit - a for limit, a in zip(limits, at, strict=True)]
        for _ in range(ROUNDS):
            shifted, bounds = _non_negative([[c for _, c in row] for row in rows], slack)
            chosen = knapsack(shifted, bounds)
            if chosen is None:
                return None
            kept = {
                root: row[number][0]
                for root, row, number in zip(options, rows, chosen, strict=True)
            }
            over = [
                high - limit for high, limit in zip(self._highs(kept, names), limits, strict=True)
            ]
            if max(over, default=0.0) <= 0:
                return kept
            slack = [s - max(0.0, o) * 1.1 for s, o in zip(slack, over, strict=True)]
        return None

    def _steps(self, reference: Mapping[str, int]) -> Iterator[tuple[ChannelGroup, int]]:
        """Yield every group with every width, those first that say most: each group's in turn."""
        for rank in range(LEVELS):
            for group in self.groups:
                ordered = _spread(levels(group))
                ordered.remove(reference[group.root])
                ordered.insert(0, reference[group.root])
                if rank < len(ordered):
                    yield group, ordered[rank]

    def _highs(self, kept: Mapping[str, int], names: Sequence[str]) -> list[float]:
        figures = self.price(kept).figures
        return [figures[name].high for name in names]

    def _widened(self, kept: Mapping[str, int], budget: Budget) -> dict[str, int]:
        """Give channels back where that gains most, as long as the price still fits."""
        counts = dict(kept)
        open_groups = list(self.groups)
        before = len(self.known)
        while open_groups and len(self.known) - before < self.most:
            gains = {}
            for group in open_groups:
                wider = [w for w in levels(group) if w > counts[group.root]]
                if wider:
                    new = min(wider)
                    gain = self.group_loss(group, counts[group.root]) - self.group_loss(group, new)
                    gains[group.root] = (gain, new, group)
            if not gains:
                break
            root = max(gains, key=lambda r: gains[r][0])
            _, new, group = gains[root]
            if self.price({**counts, root: new}).excess(budget) <= 1:
                counts[root] = new
            else:
                open_groups.remove(group)
            open_groups = [g for g in open_groups if g.root in gains]
        return counts

    def candidate(
        self, kept: Mapping[str, int], name: str, trainable: Trainable, importance: Importance
    ) -> Candidate:
        found = self.price(kept)
        narrowed = {r: n for r, n in kept.items() if n < self.full[r]}
        overruns = found.overruns(self.budget)
        return Candidate(
            name=name,
            kept=dict(kept),
            recipe=_recipe(narrowed, trainable, importance),
            price=found,
            loss=self.loss(kept),
            predicted_drop=None if self.sensitivity is None else self._drop(kept),
            overruns=overruns,
            reasons=self._reasons(narrowed, found, overruns),
        )

    def _drop(self, kept: Mapping[str, int]) -> float:
        assert self.sensitivity is not None
        return sum(
            interpolated(self.sensitivity[g.root], g.n_channels, kept[g.root])
            for g in self.groups
            if g.root in self.sensitivity
        )

    def _reasons(
        self, narrowed: Mapping[str, int], found: Price, overruns: Sequence[Overrun]
    ) -> tuple[str, ...]:
        reasons = []
        if not narrowed:
            reasons.append("quantized as it is: no channel has to go" if not overruns
                           else "quantized as it is: not enough")  # fmt: skip
        for over in overruns:
            reasons.append(
                f"{over.what} {_number(over.need)} {over.unit} exceeds {_number(over.limit)}"
            )
        if narrowed:
            before = self.price(self.full).figures["macs"].value
            after_ = found.figures["macs"].value
            n_before = sum(self.full[r] for r in narrowed)
            reasons.append(
                f"{n_before - sum(narrowed.values())} of {n_before} channels go from "
                f"{len(narrowed)} groups, which leaves {after_ / max(1.0, before):.0%} of the MACs"
            )
            whole = self.price(self.full)
            missed = [o.what for o in whole.overruns(self.budget)]
            if missed:
                reasons.append(f"because the whole model misses {', '.join(missed)}")
        if found.optimize != self.optimize:
            reasons.append(f"kernels chosen by {found.optimize}, for the sake of its limit")
        return tuple(reasons)


def levels(group: ChannelGroup) -> tuple[int, ...]:
    """Return the widths that are considered, widest first: multiples of four where they can be."""
    unit = math.lcm(4, group.n_ways) if group.n_channels >= 8 else group.n_ways
    least = max(unit, 2 * group.n_ways)
    if group.n_channels <= least:
        return (group.n_channels,)
    n_steps = min(LEVELS - 1, (group.n_channels - least) // unit or 1)
    spread = [
        group.n_channels - round(i * (group.n_channels - least) / n_steps / unit) * unit
        for i in range(n_steps)
    ]
    rounded = [w // unit * unit if w < group.n_channels else w for w in spread]
    return tuple(sorted({*(w for w in rounded if w >= least), least}, reverse=True))


def _spread(widths: Sequence[int]) -> list[int]:
    """Return the same widths, both ends first, then what halves the gaps."""
    ordered = [widths[0], widths[-1]] if len(widths) > 1 else list(widths)
    gaps = [(0, len(widths) - 1)]
    for low, high in gaps:
        middle = (low + high) // 2
        if middle > low:
            ordered.append(widths[middle])
            gaps += [(low, middle), (middle, high)]
    return ordered


def importance_loss(group: ChannelGroup, kept: int) -> float:
    """Return -log(share of importance that stays), so that a layer's last channels cost most."""
    gone = group.gone(kept)
    total = float(abs(group.importance).sum())
    left = total - float(abs(group.importance[gone]).sum())
    if total <= 0:
        return -math.log(max(kept, 1) / group.n_channels)
    return -math.log(max(left / total, 1e-9))


def interpolated(measured: Mapping[int, float], full: int, kept: int) -> float:
    """Return the drop at a width between those measured, never less than at a wider one."""
    points = sorted({full: 0.0, **{w: max(0.0, d) for w, d in measured.items()}}.items())
    worst = 0.0
    rising = []
    for width, drop in reversed(points):
        worst = max(worst, drop)
        rising.append((width, worst))
    rising.reverse()
    for (low, drop_low), (high, drop_high) in pairwise(rising):
        if low <= kept <= high:
            return drop_low + (drop_high - drop_low) * (kept - low) / (high - low)
    width, drop = rising[0]  # narrower than any measured: on along the last piece
    return drop * (1 + (width - kept) / max(1, width))


def _recipe(narrowed: Mapping[str, int], trainable: Trainable, importance: Importance) -> Recipe:
    if not narrowed:
        return Recipe()
    keep = tuple(f"{root}={count}" for root, count in narrowed.items())
    prune = Prune(keep=keep, importance=importance)
    if not trainable.epochs:
        return Recipe(steps=(prune, Quantize()))
    return Recipe(steps=(prune, _finetune(trainable.epochs, trainable), Quantize()))


def _finetune(epochs: int, trainable: Trainable) -> Finetune:
    return Finetune(epochs=epochs, distill="soft" if trainable.can_distill else "none")


def _trained_longer(candidate: Candidate, trainable: Trainable) -> Candidate:
    """Return the same widths with twice the fine-tuning, and training while quantized.

    A float model that could have been trained further holds back what learns from it: here what
    has no teacher of its own learns from the targets alone.
    """
    prune = candidate.recipe.steps[0]
    alone = trainable if trainable.has_teacher else replace(trainable, can_distill=False)
    steps = (
        prune, _finetune(2 * trainable.epochs, alone),
        TrainQuantized(
            epochs=max(2, trainable.epochs // 4), distill="soft" if alone.can_distill else "none"
        ),
    )  # fmt: skip
    how = "" if alone.can_distill else ", on the targets alone"
    reason = f"trained twice as long{how}, and then quantized: if the score drops"
    reasons = (*candidate.reasons, reason)
    return replace(candidate, recipe=Recipe(steps=steps), reasons=reasons)


def trained_whole(whole: Candidate, trainable: Trainable) -> Candidate | None:
    """Return the whole model trained while quantized: for when quantizing it loses too much.

    None where the task can't train, or has nothing to judge it by.
    """
    if not trainable.epochs or not trainable.has_validation:
        return None
    step = TrainQuantized(
        epochs=max(2, trainable.epochs // 4), distill="soft" if trainable.can_distill else "none"
    )
    reasons = ("no channel has to go", "trained while quantized: quantizing alone lost too much")
    recipe = Recipe(steps=(step,))
    return replace(whole, name=f"{WHOLE}-trained", recipe=recipe, reasons=reasons)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _choices(target: Target) -> tuple[Optimize, ...]:
    return ("latency", "ram", "flash") if target.kind == "microcontroller" else ("latency",)


def _limit(budget: Budget, what: str) -> float | None:
    return {
        "flash": budget.flash_bytes, "ram": budget.ram_bytes, "latency": budget.latency_ms,
    }[what]  # fmt: skip


def _scaled(budget: Budget, share: float) -> Budget:
    def part(limit: int | None) -> int | None:
        return None if limit is None else int(limit * share)

    latency = None if budget.latency_ms is None else budget.latency_ms * share
    return replace(
        budget, flash_bytes=part(budget.flash_bytes), ram_bytes=part(budget.ram_bytes),
        latency_ms=latency,
    )  # fmt: skip


def _non_negative(
    groups: Sequence[Sequence[Choice]], limits: Sequence[float]
) -> tuple[list[list[Choice]], list[float]]:
    """Return the same choices with the least cost of each group taken off both sides."""
    bounds = list(limits)
    shifted = []
    for choices in groups:
        least = [min(c.costs[i] for c in choices) for i in range(len(bounds))]
        bounds = [b - low for b, low in zip(bounds, least, strict=True)]
        shifted.append(
            [
                replace(c, costs=tuple(a - low for a, low in zip(c.costs, least, strict=True)))
                for c in choices
            ]
        )
    return shifted, bounds


def narrower(
    sketch: Sketch,
    groups: Sequence[ChannelGroup],
    target: Target,
    budget: Budget,
    shares: Sequence[float],
    *,
    trainable: Trainable,
    importance: Importance = "magnitude",
    sensitivity: Sensitivity | None = None,
    optimize: Optimize = "latency",
    threads: int = 1,
    progress: Progress = lambda share, detail: None,
) -> tuple[Candidate, ...]:
    """Return the gentlest candidates within each share of the budget, each once, gentlest first.

    Where the whole model fits it is the first, and shares are those of what it takes: so there is
    always something to gain.

    Args:
        sketch, groups, target, budget, trainable, importance, sensitivity: As for `plan`.
        shares: At most 1, falling.
        optimize, threads: As in a build.
        progress: Called as the search advances.

    Raises:
        BudgetError: Not even the smallest candidate can fit.
    """
    search = _Search(
        sketch, groups, target, budget, optimize=optimize, threads=threads,
        sensitivity=sensitivity, progress=lambda share, detail: None,
    )  # fmt: skip
    whole = search.candidate(search.full, WHOLE, trainable, importance)
    found = [] if whole.overruns else [whole]
    if whole.overruns:
        search.certify()
    figures = {n: f.high for n, f in whole.price.figures.items() if n in FIGURES.values()}
    # The whole model's figures may be out of reach together, where a limit changed its kernels.
    for limits in (_at_most(budget, figures), budget):
        search.within = limits
        for position, share in enumerate(shares):
            progress(position / len(shares), f"within {share:.0%} of the budget")
            if share >= 1 and found:
                continue
            kept = search.widths(share)
            if kept is not None and all(kept != c.kept for c in found):
                found.append(search.candidate(kept, f"within-{share:.0%}", trainable, importance))
        if found:
            return tuple(found)
    return (search.candidate(search.least, "narrowest", trainable, importance),)


def _at_most(budget: Budget, figures: Mapping[str, float]) -> Budget:
    """Return the limits, none above what the whole model takes; where there are none, its own."""
    limits = {name: getattr(budget, name) for name in figures}
    if all(limit is None for limit in limits.values()):
        first = next(n for n in ("latency_ms", "flash_bytes", "ram_bytes") if n in figures)
        limits = {first: figures[first]}
    tightened = {
        name: min(limit, figures[name]) for name, limit in limits.items() if limit is not None
    }
    return replace(
        budget,
        **{n: v if n == "latency_ms" else math.floor(v) for n, v in tightened.items()},
    )
