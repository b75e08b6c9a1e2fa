"""How a profile is printed: figures, where the time goes, what would help, engines side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from edgeshrink.cli.output import print_json, show_figure
from edgeshrink.graph import layer_name
from edgeshrink.profile import Figure, OpCost, Profile
from edgeshrink.units import format_bytes, format_hours, format_ms, format_scaled

if TYPE_CHECKING:
    from edgeshrink.graph import Graph

SHOWN_OPS: Final = 8  # of longer tables, the costliest
SHOWN_ADVICE: Final = 3
NOTE_WIDTH: Final = 96
# What people read first, in this order; the other figures follow.
FIRST: Final = ("latency_ms", "ram_bytes", "flash_bytes", "energy_uj", "average_power_uw",
                "battery_life_h")  # fmt: skip
COMPARED: Final = {"latency_ms": "latency", "ram_bytes": "RAM", "flash_bytes": "flash",
                   "energy_uj": "energy", "battery_life_h": "battery life",
                   "instructions": "instructions"}  # fmt: skip


def show(profile: Profile, device: str, *, as_json: bool, all_ops: bool = False) -> None:
    """Print a profile: figures, where the time goes, what would help, limits that are not met."""
    if as_json:
        print_json(profile.to_json())
        return
    threads = "" if profile.threads in (None, 1) else f", {profile.threads} threads"
    print(f"{profile.model_path} on {device} ({profile.engine}{threads})")
    print_figures(profile)
    print_ops(profile.ops, profile, all_ops=all_ops)
    if profile.advice:
        print("  what would help, priced by the model and not tried:")
    for advice in profile.advice[:SHOWN_ADVICE]:
        text = f"{advice.text} (saves {format_ms(advice.saves_ms)})"
        print(textwrap.fill(text, NOTE_WIDTH, initial_indent="    - ", subsequent_indent="      "))
    for note in profile.notes:
        print(f"note: {note}")
    for overrun in profile.overruns:
        print(f"over budget: {overrun.what} needs {overrun.need:,.10g} {overrun.unit}, "
              f"{overrun.limit:,.10g} allowed")  # fmt: skip


def print_figures(profile: Profile) -> None:
    """Print every figure with its note."""
    names = [name for name in FIRST if name in profile.figures]
    names += [name for name in profile.figures if name not in names]
    indent = " " * 19
    for name in names:
        figure = profile.figures[name]
        print(f"  {name:<16} {show_figure(figure)}")
        if figure.note:
            print(textwrap.fill(figure.note, NOTE_WIDTH + 19, initial_indent=indent,
                                subsequent_indent=indent))  # fmt: skip


def cut(name: str, width: int = 48) -> str:
    """Return a layer's name for a table, its end if it is longer than `width`."""
    first = layer_name(name)
    return first if len(first) <= width else "…" + first[1 - width :]


def print_ops(
    ops: Sequence[OpCost], profile: Profile | None = None, *, all_ops: bool = True
) -> None:
    """Print a row for every operator, or for the costliest ones and a sum of the rest."""
    if not ops:
        return
    shown, rest = list(ops), []
    if not all_ops and len(ops) > SHOWN_OPS + 1:
        by_cost = sorted(ops, key=lambda op: -_cost(op))
        shown, rest = by_cost[:SHOWN_OPS], by_cost[SHOWN_OPS:]
    total = sum(_cost(op) for op in ops)
    if all(op.instructions is not None for op in ops):
        _print_counted(shown, total)
    elif any(op.bound for op in ops):
        _print_modelled(shown, total, profile, all_ops=all_ops)
    else:
        _print_plain(shown, total)
    if rest:
        share = f": {sum(_cost(op) for op in rest) / total:.1%}" if total else ""
        print(f"  {'':>3}  and {len(rest)} more{share}; --ops prints them all, in order")


def _cost(op: OpCost) -> float:
    return op.cycles if op.cycles is not None else op.latency_ms or 0.0


def _share(op: OpCost, total: float) -> str:
    return f"{100 * _cost(op) / total:.1f} %" if total else ""


def _print_modelled(
    ops: Sequence[OpCost], total: float, profile: Profile | None, *, all_ops: bool
) -> None:
    """Print where the time goes: products, bytes or calls; with `all_ops`, how much of each."""
    parts = f"{'compute':>9} {'memory':>9} {'calls':>9} " if all_ops else ""
    sizes = f"{'weights B':>10} {'live B':>9} " if all_ops else ""
    print(f"  {'op':>3}  {'kind':<24} {'MACs':>13} {sizes}{'ms':>9} {parts}{'share':>7}  "
          f"{'bound by':<8} {'MACs/B':>7}  layer")  # fmt: skip
    for op in ops:
        parts = sizes = ""
        if all_ops:
            parts = "".join(f"{ms or 0.0:>9.4f} "
                            for ms in (op.compute_ms, op.memory_ms, op.overhead_ms))  # fmt: skip
            sizes = f"{op.flash_bytes or 0:>10,} {op.live_bytes or 0:>9,} "
        kind = f"{op.kind} ?" if op.is_unknown else op.kind
        intensity = "" if op.macs_per_byte is None else f"{op.macs_per_byte:.1f}"
        print(f"  {op.index:>3}  {kind:<24} {op.macs:>13,} {sizes}{op.latency_ms or 0.0:>9.4f} "
              f"{parts}{_share(op, total):>7}  {_bound(op):<8} {intensity:>7}  {cut(op.name)}"
              .rstrip())  # fmt: skip
    if profile is not None and profile.roofline is not None:
        line = profile.roofline
        print(f"  {'':>3}  the core's ridge is at {line.ridge_macs_per_byte:.1f} MACs per byte: "
              f"{line.macs_per_ms / 1e6:.3g} G MAC/s, {line.bytes_per_ms / 1e6:.3g} GB/s; "
              "most operators below wait for memory")  # fmt: skip
    if any(op.is_unknown for op in ops):
        print(f"  {'':>3}  ?: never seen by the cost model, priced as its nearest class")


def _bound(op: OpCost) -> str:
    return {"overhead": "calls"}.get(op.bound or "", op.bound or "")


def _print_plain(ops: Sequence[OpCost], total: float) -> None:
    print(f"  {'op':>3}  {'kind':<24} {'MACs':>13} {'weights B':>10} {'live B':>9} "
          f"{'ms':>9} {'share':>7}  layer")  # fmt: skip
    for op in ops:
        ms = "" if op.latency_ms is None else f"{op.latency_ms:.4f}"
        kind = f"{op.kind} ?" if op.is_unknown else op.kind
        print(f"  {op.index:>3}  {kind:<24} {op.macs:>13,} {op.flash_bytes or 0:>10,} "
              f"{op.live_bytes or 0:>9,} {ms:>9} {_share(op, total):>7}  {cut(op.name)}"
              .rstrip())  # fmt: skip


def _print_counted(ops: Sequence[OpCost], total: float) -> None:
    """Print operators or functions of a firmware that ran."""
    print(f"  {'op':>3}  {'kind':<24} {'MACs':>13} {'instructions':>13} {'cycles':>13} "
          f"{'per MAC':>8} {'share':>7}  layer")  # fmt: skip
    for op in ops:
        cycles = op.cycles or 0.0
        per_mac = f"{cycles / op.macs:.2f}" if op.macs else ""
        print(f"  {op.index:>3}  {op.kind:<24} {op.macs:>13,} {op.instructions or 0:>13,} "
              f"{cycles:>13,.0f} {per_mac:>8} {_share(op, total):>7}  {cut(op.name)}"
              .rstrip())  # fmt: skip


def print_side_by_side(
    profiles: Sequence[Profile], refused: Sequence[tuple[str, str]], device: str
) -> None:
    """Print the main figures of every profile in a row, and why others are not there.

    Args:
        profiles: At least one.
        refused: (engine, why it can't) of each that has no profile.
        device: The target's title.
    """
    there = [n for n in COMPARED if any(n in profile.figures for profile in profiles)]
    has_threads = len({profile.threads for profile in profiles}) > 1
    rows = [["engine", *(["threads"] if has_threads else []), *(COMPARED[n] for n in there),
             "budget"]]  # fmt: skip
    for profile in profiles:
        cells = [_cell(profile.figures.get(name)) for name in there]
        threads = [str(profile.threads or "-")] if has_threads else []
        misses = ", ".join(o.what for o in profile.overruns)
        rows.append([profile.engine, *threads, *cells, f"misses {misses}" if misses else "met"])
    print(f"{profiles[0].model_path} on {device}")
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  " + "  ".join(cells).rstrip())
    for engine, why in refused:
        print(f"  {engine}: {why}")
    marks = {_MARKS[_kind(f)] for p in profiles for n in there if (f := p.figures.get(n))}
    print("  " + "; ".join(sorted(marks)))


_MARKS: Final = {
    "measured": "=: measured", "emulated": "#: emulated", "modelled": "~: modelled",
    "unvalidated": "?: modelled, unvalidated",
}  # fmt: skip


def _kind(figure: Figure) -> str:
    return "unvalidated" if figure.validated is False else figure.how


def _cell(figure: Figure | None) -> str:
    """Return a figure for a table, its mark and its band with one unit where that can be."""
    if figure is None:
        return "-"

    def plain(value: float) -> str:
        return f"{value:,.0f}"

    def energy(value: float) -> str:
        return format_scaled(value, "uJ")

    forms: dict[str, Callable[[float], str]] = {
        "B": format_bytes, "ms": format_ms, "h": format_hours, "uJ": energy,
    }  # fmt: skip
    form = forms.get(figure.unit, plain)
    text = f"{_MARKS[_kind(figure)][0]} {form(figure.value)}"
    if figure.low == figure.high:
        return text
    low, high = form(figure.low), form(figure.high)
    if low.partition(" ")[2] == high.partition(" ")[2]:
        low = low.partition(" ")[0]
    return f"{text} [{low} to {high}]"


def graph_json(graph: Graph) -> object:
    """Return the graph as plain JSON values, without the constants' content."""

    def tensor(index: int) -> object:
        t = graph.tensors[index]
        q = t.quantization
        return {
            "index": index, "name": t.name, "shape": list(t.shape), "dtype": t.dtype,
            "constant": t.data is not None,
            "scales": None if q is None else [float(s) for s in q.scales],
            "zero_points": None if q is None else [int(z) for z in q.zero_points],
        }  # fmt: skip

    return {
        "name": graph.name,
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
        "tensors": [tensor(t.index) for t in graph.tensors],
        "ops": [
            {"index": op.index, "kind": op.kind, "version": op.version, "inputs": list(op.inputs),
             "outputs": list(op.outputs), "options": {k: str(v) for k, v in op.options.items()}}
            for op in graph.ops
        ],
    }  # fmt: skip


def print_graph(graph: Graph) -> None:
    """Print operators in order, each with the shapes and types of its tensors."""

    def show(index: int) -> str:
        if index < 0:
            return "-"
        t = graph.tensors[index]
        return f"%{index}:{t.dtype}{list(t.shape)}{'=const' if t.data is not None else ''}"

    print("inputs  " + ", ".join(show(i) for i in graph.inputs))
    for op in graph.ops:
        options = ", ".join(f"{k}={v}" for k, v in op.options.items())
        inputs, outputs = (", ".join(show(i) for i in side) for side in (op.inputs, op.outputs))
        behind = f"  {{{options}}}" if options else ""
        print(f"{op.index:>4} {op.kind} v{op.version}({inputs}) -> {outputs}{behind}")
    print("outputs " + ", ".join(show(i) for i in graph.outputs))
