"""Which ranges and which widths serve a model: chosen by what they do to its outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from torch import Tensor, fx

from edgeshrink.quantizer.fake_quantize import FakeQuantize, fake_quantizers, quantizer_of
from edgeshrink.quantizer.operators import Engines
from edgeshrink.quantizer.partly import Outputs, output_noise, partly_quantized
from edgeshrink.quantizer.widths import Value, asked_values, values_of, widen

Activations = Literal["int8", "int16", "auto"]
LEAST_GAIN: Final = 1.25  # times the error of int8 weights alone: below it int16 buys nothing


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How activations are to be stored, and what a choice is judged by.

    Attributes:
        activations: `int8`, `int16`, or `auto`: int16 for as few layers as are needed.
        int16: Layers that are int16 whatever `activations` says, by path; model inputs by name.
        int8: Layers that are int8 whatever `activations` says.
        engines: Whose kernels of 16 bits the target can use; none where it takes int8 alone.
        most_error: What `auto` brings the error of the outputs down to: mean squared error over
            variance, where there is no `drop`.
        drop: Measures by how much a quantized graph scores worse than the float model.
        most_drop: What `auto` brings that down to.
        choose_ranges: Whether each value takes the range of the observer that serves it best.
        batches: Inputs on which errors are measured.
    """

    activations: Activations = "int8"
    int16: tuple[str, ...] = ()
    int8: tuple[str, ...] = ()
    engines: frozenset[Engines] = frozenset()
    most_error: float = 1e-3
    drop: Callable[[fx.GraphModule], float] | None = None
    most_drop: float | None = None
    choose_ranges: bool = False
    batches: Sequence[tuple[Tensor, ...]] = ()


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What was chosen, and why.

    Attributes:
        int16: Layers whose outputs are int16, in the order of the graph.
        ranges: Observers by the number of values that took their range.
        errors: Error of the outputs by what is quantized: `int8` (all of it), `weights` (alone),
            `chosen`.
        drops: Loss of score against the float model, likewise; `limit` is what was allowed.
        sensitivity: Error of the outputs when the values of one layer alone are int8.
        note: In words, for people.
    """

    int16: tuple[str, ...] = ()
    ranges: Mapping[str, int]
    errors: Mapping[str, float]
    drops: Mapping[str, float]
    sensitivity: Mapping[str, float]
    note: str

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {name: value for name, value in asdict(self).items() if name != "note"}


def choose(frozen: fx.GraphModule, precision: Precision) -> Chosen | None:
    """Choose ranges and widths of activations, in place; None where there was nothing to choose.

    Args:
        frozen: From `freeze`, calibrated.
        precision: What is asked for.

    Raises:
        ConfigError: a layer has a name that the model does not know.
        ModelError: a layer that is to be int16 is written or read by an operator that has no kernel
            for it.
    """
    trial = _Trial(frozen, precision)
    notes = []
    ranges = _choose_ranges(trial) if precision.choose_ranges else {}
    if ranges:
        shown = ", ".join(f"{word} {count}" for word, count in ranges.items())
        notes.append(f"ranges by observer: {shown} values")
    if precision.activations == "int8" and not precision.int16:
        return None if not ranges else Chosen(
            ranges=ranges, errors={"chosen": trial.error()}, drops={}, sensitivity={},
            note="; ".join(notes),
        )  # fmt: skip
    values = values_of(frozen, precision.engines)
    asked, kept = asked_values(values, precision.activations, precision.int16, precision.int8)
    activations = {value.quantizer for value in values}
    constants = [module for module in trial.nodes if module not in activations]
    errors = {"int8": trial.error(), "weights": trial.error_of(constants)}
    sensitivity: dict[str, float] = {}
    drops: dict[str, float] = {}
    widen(asked)
    if precision.activations == "auto":
        fixed = {v for v in values if v in kept or v.blocker is not None}
        free = [v for v in values if v not in fixed and v not in asked]
        names = [n for n in _layers(free) if not any(n in v.names for v in fixed)]
        sensitivity = {
            name: trial.error_of([v.quantizer for v in _of(free, name)]) for name in names
        }
        reason, drops = _choose_layers(trial, free, sensitivity, errors)
        notes.append(reason)
    errors["chosen"] = trial.error()
    wide = [value for value in values if value.quantizer.is_wide]
    if wide:
        shown = _listed(_layers(wide)) if len(wide) < len(values) else "all"
        notes.insert(0, f"int16 activations: {shown} ({len(wide)} of {len(values)} values)")
    else:
        notes.insert(0, "all activations int8")
    notes.append(
        f"error of the outputs {errors['chosen']:.2g} of their variance "
        f"({errors['int8']:.2g} in int8, {errors['weights']:.2g} by int8 weights alone)"
    )
    return Chosen(
        int16=tuple(_layers(wide)), ranges=ranges, errors=errors, drops=drops,
        sensitivity=sensitivity, note="; ".join(notes),
    )  # fmt: skip


class _Trial:
    """A frozen graph with what it should compute."""

    def __init__(self, frozen: fx.GraphModule, precision: Precision) -> None:
        self.frozen, self.precision = frozen, precision
        self.nodes: dict[FakeQuantize, list[fx.Node]] = {}
        for node in frozen.graph.nodes:
            module = quantizer_of(frozen, node)
            if module is not None:
                self.nodes.setdefault(module, []).append(node)
        self.expected: Outputs = partly_quantized(frozen, (), precision.batches)

    def error(self) -> float:
        """Return the error of the outputs with all that quantizes."""
        return self.error_of(self.nodes.keys())

    def error_of(self, modules: Collection[FakeQuantize]) -> float:
        """Return the error of the outputs when only `modules` quantize."""
        nodes = {node for module in modules for node in self.nodes[module]}
        return output_noise(
            self.expected, partly_quantized(self.frozen, nodes, self.precision.batches)
        )


def _choose_ranges(trial: _Trial) -> dict[str, int]:
    """Give every value the range of the observer that disturbs the outputs least, in place.

    It starts with the one observer that is best for all; then, in the order of the graph, each
    value takes the range with which the outputs are best, all others being as they are. So no one
    observer is better on the same data.
    """
    modules = [m for m in fake_quantizers(trial.frozen).values() if m.candidates]
    if not modules:
        return {}
    words = list(modules[0].candidates)
    uniform: dict[str, float] = {}
    for word in words:
        _take(modules, word)
        uniform[word] = trial.error()
    start = min(words, key=lambda word: uniform[word])
    _take(modules, start)
    least = uniform[start]
    taken = dict.fromkeys(modules, start)
    for module in modules:
        for word in words:
            module.take(word)
            error = trial.error()
            if error < least:
                least, taken[module] = error, word
        module.take(taken[module])
    counts = list(taken.values())
    return {word: counts.count(word) for word in words if word in counts}


def _take(modules: Sequence[FakeQuantize], word: str) -> None:
    for module in modules:
        module.take(word)


def _layers(values: Sequence[Value]) -> list[str]:
    """Return the layers that make values, each once."""
    return list(dict.fromkeys(value.layer for value in values))


def _of(values: Sequence[Value], name: str) -> list[Value]:
    return [value for value in values if name in value.names]


def _choose_layers(
    trial: _Trial, free: Sequence[Value], sensitivity: Mapping[str, float], errors: dict[str, float]
) -> tuple[str, dict[str, float]]:
    """Make as few layers int16 as bring the drop, or the error, under its limit, in place.

    The most sensitive ones first; a bisection finds how many of them are needed, then each that can
    be left out is. Returns the reason in words and the drops that were measured.
    """
    precision = trial.precision
    order = sorted(sensitivity, key=lambda name: -sensitivity[name])
    use_drop = precision.drop is not None and precision.most_drop is not None

    def measured(names: Collection[str]) -> float:
        for value in free:
            value.quantizer.narrow()
        widen([value for name in names for value in _of(free, name)])
        if use_drop:
            assert precision.drop is not None
            return precision.drop(trial.frozen)
        return trial.error()

    start, end = measured(()), measured(order)
    if use_drop:
        assert precision.most_drop is not None
        what, limit, why = "drop in score", precision.most_drop, ""
        drops = {"limit": limit, "int8": start, "int16": end}
    else:
        what, limit, why, drops = "error", precision.most_error, "", {}
        floor = LEAST_GAIN * errors["weights"]
        if floor > limit:
            limit, why = floor, f" ({LEAST_GAIN:g} times that of int8 weights)"
    asked = limit
    if start <= limit:
        measured(())
        return f"{what} {start:.3g} in int8 keeps the limit {limit:.3g}{why}", drops
    if end >= start or not math.isfinite(end):
        measured(())
        return f"{what} {start:.3g} in int8, {end:.3g} with all in int16: int8 kept", drops
    if end > limit:
        limit = end if use_drop else LEAST_GAIN * end
        why = f" (what int16 can reach; {asked:.3g} was asked for)"
    low, high = 0, len(order)  # `high` of them are enough, `low` are not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if measured(order[:middle]) <= limit else (middle, high)
    needed = order[:high]
    for name in reversed(needed[:-1]):
        fewer = [other for other in needed if other != name]
        if measured(fewer) <= limit:
            needed = fewer
    reached = measured(needed)
    shown = ", ".join(f"{name} {sensitivity[name]:.2g}" for name in needed[:4])
    if use_drop:
        drops["chosen"] = reached
    return (
        f"{what} {start:.3g} in int8, {reached:.3g} as chosen, limit {limit:.3g}{why}; "
        f"error by one layer's int8 alone: {shown}"
    ), drops


def _listed(names: Sequence[str]) -> str:
    return (
        ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:5])} and {len(names) - 5} more"
    )
