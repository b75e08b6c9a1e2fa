"""What would make a model faster: changes of its operators, each priced by the cost model."""

from __future__ import annotations

from collections.abc import Callable
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
    found: list[Advice] = []
    for cost in by_time[:LOOKED_AT]:
        if (cost.latency_ms or 0.0) >= LEAST_SHARE * total and cost.index < len(graph.ops):
            found += _of_operator(graph, cost, total, pricing)
    found += _of_model(graph, profile, total, pricing)
    worth = [advice for advice in found if advice.saves_ms >= LEAST_SHARE * total]
    return tuple(sorted(worth, key=lambda advice: -advice.saves_ms)[:MOST])


def _of_operator(graph: Graph, cost: OpCost, total: float, pricing: Pricing) -> list[Advice]:
    """Return changes of one operator: its channels' alignment, and what it waits for."""
    alone = single(graph, graph.ops[cost.index])
    before = pricing.price(alone)
    if not before > 0:
        return []
    ms = cost.latency_ms or 0.0

    def saved(changed: Graph | None) -> float:
        return 0.0 if changed is None else (1 - pricing.price(changed) / before) * ms

    name = f"{cost.kind} {layer_name(cost.name)}".strip()
    place = f"op {cost.index} ({name})"
    found = []
    n_out, n_in = out_channels(alone), in_channels(alone)
    if n_out is not None:
        found += _rounding(place, "output", n_out, with_out_channels, alone, saved, ms, pricing)
    if n_in is not None:
        found += _rounding(place, "input", n_in, with_in_channels, alone, saved, ms, pricing)
    if ms < LARGE_SHARE * total:
        return [_advice(text, ms_saved, cost) for text, ms_saved in found]
    small = with_window(alone, WINDOW)
    half = with_out_channels(alone, n_out // 2) if n_out and n_out >= 2 else None
    share = f"is {ms / total:.0%} of the time"
    options = [
        ("half its channels", saved(half)),
        ("half the height and width", saved(at_half_size(alone))),
        (f"a {WINDOW}x{WINDOW} window", saved(small)),
    ]
    told = [f"{what} saves {_of(s, total)}" for what, s in options if s >= LEAST_SHARE * total]
    if told:
        text = f"{place} {share}{_bound(cost)}; {', '.join(told)}"
        found.append((text, max(s for _, s in options)))
    return [_advice(text, ms_saved, cost) for text, ms_saved in found]


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


def _bound(cost: OpCost) -> str:
    """Say what an operator waits for, and so what does not help."""
    if cost.bound == "overhead":
        return ", most of it for being called at all"
    if cost.bound != "memory" or not cost.latency_ms or not cost.macs_per_byte:
        return ""
    moved = cost.macs / cost.macs_per_byte
    what = "fewer weights" if 2 * (cost.flash_bytes or 0) > moved else "smaller maps"
    share = (cost.memory_ms or 0.0) / cost.latency_ms
    return f", memory-bound ({share:.0%} of it moves bytes): {what} help, fewer MACs alone do not"


def _of_model(graph: Graph, profile: Profile, total: float, pricing: Pricing) -> list[Advice]:
    """Return changes of the whole model: its type, its number of calls, its threads."""
    found = []
    before = pricing.price(graph)
    is_float = any(t.dtype == "float32" for t in graph.tensors if t.data is None)
    if is_float and pricing.has_int8 and before > 0:
        after = pricing.price(as_int8(graph))
        saves = (1 - after / before) * total
        found.append(Advice(text=f"quantized to int8 it would save {_of(saves, total)}",
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
        text = f"{pricing.max_threads} threads would save {_of(saves, total)}"
        found.append(Advice(text=text, saves_ms=saves))
    return found


def _of(saves: float, total: float) -> str:
    return f"{saves / total:.0%}"


def _advice(text: str, saves_ms: float, cost: OpCost) -> Advice:
    return Advice(text=text, saves_ms=saves_ms, ops=(cost.index,))
