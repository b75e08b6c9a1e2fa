"""What would make a model faster: changes of its operators, each priced by the cost model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from edgeshrink.emulation.pricing import Pricing
from edgeshrink.emulation.variations import (
    as_int8,
    at_half_size,
    in_channels,
    out_channels,
    single,
    with_in_channels,
    with_out_channels,
    with_window,
)
from edgeshrink.graph import Graph, layer_name
from edgeshrink.profile import Advice, OpCost, Profile

MOST: Final = 6
LEAST_SHARE: Final = 0.02  # of the whole time: less is not worth a sentence
LOOKED_AT: Final = 6  # operators, those with the largest share
LARGE_SHARE: Final = 0.15  # from which an operator is named for it
LARGE_KIND: Final = 0.25  # and all operators of one kind
CALLS_SHARE: Final = 0.15
WINDOW: Final = 3
FREE: Final = 0.01  # of an operator's time: a change below costs nothing


def advise(graph: Graph, profile: Profile, pricing: Pricing) -> tuple[Advice, ...]:
    """Return what would save most of the latency of `profile`, most first.

    Args:
        graph: What was profiled; its operators are those of `profile.ops`.
        profile: With the latency of every operator.
        pricing: Of the engine and target that the profile is of.
    """
    total = sum(op.latency_ms or 0.0 for op in profile.ops)
    if not total > 0:
        return ()
    by_time = sorted(profile.ops, key=lambda op: -(op.latency_ms or 0.0))
    by_time = [cost for cost in by_time if cost.latency_ms and cost.index < len(graph.ops)]
    found: list[Advice] = []
    for costs in _alike(by_time)[:LOOKED_AT]:
        if sum(cost.latency_ms or 0.0 for cost in costs) >= LEAST_SHARE * total:
            found += _of_operators(graph, costs, total, pricing)
    found += _of_kinds(graph, by_time, total, pricing)
    found += _of_model(graph, profile, total, pricing)
    worth = [advice for advice in found if advice.saves_ms >= LEAST_SHARE * total]
    return tuple(sorted(worth, key=lambda advice: -advice.saves_ms)[:MOST])


def _alike(by_time: Sequence[OpCost]) -> list[list[OpCost]]:
    """Return operators of one kind and size together, those that take most time first."""
    groups: dict[object, list[OpCost]] = {}
    for cost in by_time:
        size = f"{cost.latency_ms:.3g}"
        groups.setdefault((cost.kind, cost.macs, cost.flash_bytes, size), []).append(cost)
    return sorted(groups.values(), key=lambda costs: -sum(c.latency_ms or 0.0 for c in costs))


def _place(costs: Sequence[OpCost]) -> str:
    """Name one operator, or several of a kind."""
    if len(costs) == 1:
        name = f"{costs[0].kind} {layer_name(costs[0].name)}".strip()
        return f"op {costs[0].index} ({name})"
    indices = ", ".join(str(index) for index in sorted(cost.index for cost in costs))
    return f"ops {indices} ({costs[0].kind})"


def _of_operators(
    graph: Graph, costs: Sequence[OpCost], total: float, pricing: Pricing
) -> list[Advice]:
    """Return changes of operators that are alike: channels' alignment, and what they wait for."""
    alone = single(graph, graph.ops[costs[0].index])
    before = pricing.price(alone)
    if not before > 0:
        return []
    ms = sum(cost.latency_ms or 0.0 for cost in costs)

    def saved(changed: Graph | None) -> float:
        return 0.0 if changed is None else (1 - pricing.price(changed) / before) * ms

    place = _place(costs)
    found = []
    n_out, n_in = out_channels(alone), in_channels(alone)
    if n_out is not None:
        found += _rounding(place, "output", n_out, with_out_channels, alone, saved, ms, pricing)
    if n_in is not None:
        found += _rounding(place, "input", n_in, with_in_channels, alone, saved, ms, pricing)
    if ms < LARGE_SHARE * total:
        return [_advice(text, ms_saved, costs) for text, ms_saved in found]
    small = with_window(alone, WINDOW)
    half = with_out_channels(alone, n_out // 2) if n_out and n_out >= 2 else None
    share = f"{'is' if len(costs) == 1 else 'are'} {ms / total:.0%} of the time"
    reading = with_in_channels(alone, n_in // 2) if n_in and n_in >= 2 else None
    options = [
        ("half the channels", saved(half)),
        ("half the inputs", saved(reading)),
        ("half the height and width", saved(at_half_size(alone))),
        (f"a {WINDOW}x{WINDOW} window", saved(small)),
    ]
    told = [f"{what} saves {_of(s, total)}" for what, s in options if s >= LEAST_SHARE * total]
    if told:
        text = f"{place} {share}{_bound(costs)}; {', '.join(told)}"
        found.append((text, max(s for _, s in options)))
    return [_advice(text, ms_saved, costs) for text, ms_saved in found]


def _of_kinds(
    graph: Graph, by_time: Sequence[OpCost], total: float, pricing: Pricing
) -> list[Advice]:
    """Return what fewer channels would save in all operators of a kind that takes much time."""
    kinds: dict[str, list[OpCost]] = {}
    for cost in by_time:
        kinds.setdefault(cost.kind, []).append(cost)
    found = []
    for kind, costs in kinds.items():
        ms = sum(cost.latency_ms or 0.0 for cost in costs)
        if len(_alike(costs)) < 2 or ms < LARGE_KIND * total:
            continue
        saves = 0.0
        for cost in costs:
            alone = single(graph, graph.ops[cost.index])
            n, before = out_channels(alone), pricing.price(alone)
            if n is None or n < 2 or not before > 0:
                continue
            after = pricing.price(with_out_channels(alone, n // 2))
            saves += (1 - after / before) * (cost.latency_ms or 0.0)
        if saves > 0:
            text = (
                f"the {len(costs)} {kind} are {ms / total:.0%} of the time{_bound(costs)}; "
                f"half the channels saves {_of(saves, total)}"
            )
            indices = tuple(sorted(cost.index for cost in costs))
            found.append(Advice(text=text, saves_ms=saves, ops=indices))
    return found


def _rounding(
    place: str,
    side: str,
    n: int,
    change: Callable[[Graph, int], Graph],
    alone: Graph,
    saved: Callable[[Graph | None], float],
    ms: float,
    pricing: Pricing,
) -> list[tuple[str, float]]:
    """Return what rounding a number of channels to whole vectors would save."""
    multiple = pricing.multiple
    down, up = n // multiple * multiple, -(-n // multiple) * multiple
    if down == up or n < multiple:
        return []
    saves, costs = saved(change(alone, down)), -saved(change(alone, up))
    # A cut in proportion to the channels is no gain of alignment.
    if saves <= (1 - down / n) * ms * 1.05:
        return []
    text = f"round the {n} {side} channels of {place} to {down}"
    if costs <= FREE * ms:
        text += f"; {up} would cost no more than {n} do"
    return [(text, saves)]


def _bound(costs: Sequence[OpCost]) -> str:
    """Say what operators mostly wait for, and so what does not help."""
    ms = sum(cost.latency_ms or 0.0 for cost in costs)
    memory = sum(cost.memory_ms or 0.0 for cost in costs)
    if sum(cost.overhead_ms or 0.0 for cost in costs) > ms / 2:
        return ", mostly for being called at all"
    if memory <= ms / 2:
        return ""
    moved = sum(cost.macs / cost.macs_per_byte for cost in costs if cost.macs_per_byte)
    weights = sum(cost.flash_bytes or 0 for cost in costs)
    what = "fewer weights" if 2 * weights > moved else "smaller maps"
    return f", memory-bound ({memory / ms:.0%} moves bytes: {what} help, fewer MACs alone do not)"


def _of_model(graph: Graph, profile: Profile, total: float, pricing: Pricing) -> list[Advice]:
    """Return changes of the whole model: its type, its number of calls, its threads."""
    found = []
    before = pricing.price(graph)
    is_float = any(t.dtype == "float32" for t in graph.tensors if t.data is None)
    if is_float and pricing.has_int8 and before > 0:
        after = pricing.price(as_int8(graph))
        saves = (1 - after / before) * total
        found.append(Advice(text=f"quantizing it to int8 saves {_of(saves, total)}",
                            saves_ms=saves))  # fmt: skip
    overhead = sum(op.overhead_ms or 0.0 for op in profile.ops)
    if overhead >= CALLS_SHARE * total:
        n = sum(1 for op in profile.ops if op.overhead_ms)
        text = f"calling {n} operators is {overhead / total:.0%} of the time: fewer of them help"
        found.append(Advice(text=text, saves_ms=overhead / 2))
    threads = profile.threads or 1
    if pricing.with_max_threads is not None and threads == 1 and pricing.max_threads > 1:
        after = pricing.with_max_threads(graph)
        saves = (1 - after / before) * total if before > 0 else 0.0
        text = f"{pricing.max_threads} threads save {_of(saves, total)}"
        found.append(Advice(text=text, saves_ms=saves))
    return found


def _of(saves: float, total: float) -> str:
    return f"{saves / total:.0%}"


def _advice(text: str, saves_ms: float, costs: Sequence[OpCost]) -> Advice:
    return Advice(text=text, saves_ms=saves_ms, ops=tuple(sorted(cost.index for cost in costs)))
