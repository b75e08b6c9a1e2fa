"""The tables of a report: the same rows on the terminal, in the page and in the card."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgeshrink.profile import Figure
from edgeshrink.reporting.facts import Facts
from edgeshrink.units import (
    format_bytes,
    format_hours,
    format_ms,
    format_scaled,
    format_score,
)

MODELS: Final = {
    "float": "float model", "teacher": "teacher", "tflite": "model.tflite", "pte": "model.pte",
    "c": "firmware",
}  # fmt: skip
NAMES: Final = {
    "flash_bytes": "flash", "ram_bytes": "RAM", "latency_ms": "latency", "energy_uj": "energy",
    "macs": "MACs", "arena_bytes": "arena", "stack_bytes": "stack", "cycles": "cycles",
    "instructions": "instructions",
}  # fmt: skip
_FORMS: Final[Mapping[str, Callable[[float], str]]] = {
    "B": format_bytes, "ms": format_ms, "h": format_hours,
    "uJ": lambda value: format_scaled(value, "uJ"), "uW": lambda value: format_scaled(value, "uW"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under a title; `numbers` are the columns that hold numbers."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[int] = frozenset()
    note: str = ""


def tables(facts: Facts) -> tuple[Table, ...]:
    """Return the tables of a report that have something in them, in order."""
    found = (
        _scores(facts), _figures(facts), _steps(facts), _search(facts), _agreements(facts),
        _ops(facts),
    )  # fmt: skip
    return tuple(table for table in found if table.rows)


def _scores(facts: Facts) -> Table:
    artifact = facts.artifact
    rows = [(MODELS.get(k, k), format_score(v)) for k, v in _in_order(artifact.scores, MODELS)]
    drop, limit = facts.audit.get("drop"), facts.limits.get("accuracy_drop")
    if drop is not None:
        verdict = "" if limit is None else f", limit {limit:g}: {_verdict(drop <= limit)}"
        rows.append((f"drop of the worst file{verdict}", format_score(drop)))
    return Table(
        title="Scores", head=("model", artifact.metric.get("name", "score")), rows=tuple(rows),
        numbers=frozenset({1}),
        note=f"measured on the test split; {artifact.metric.get('direction', 'higher')} is better",
    )  # fmt: skip


def _figures(facts: Facts) -> Table:
    rows = []
    for name, figure in _in_order(facts.figures, NAMES):
        limit = facts.limits.get(name)
        shown = (
            ""
            if limit is None
            else f"{show(limit, figure.unit)}: " + _verdict(figure.high <= limit)
        )
        band = ""
        if figure.low != figure.high:
            band = f"{show(figure.low, figure.unit)} to {show(figure.high, figure.unit)}"
        value = show(figure.value, figure.unit)
        rows.append((NAMES.get(name, name), value, band, how(figure), shown, figure.note))
    return Table(
        title="Figures", head=("figure", "value", "band", "how", "limit", ""), rows=tuple(rows),
        numbers=frozenset({1, 2}),
    )  # fmt: skip


def _steps(facts: Facts) -> Table:
    rows = []
    for report in facts.audit.get("steps", ()):
        pairs = [
            f"{report[f'{key}_before']:,} → {report[f'{key}_after']:,}"
            for key in ("parameters", "macs", "n_bytes")
        ]
        scores = [report.get("score_before"), report.get("score_after")]
        shown = " → ".join("-" if s is None else format_score(s) for s in scores)
        rows.append((str(report["step"]["step"]), *pairs, shown, str(report["note"])))
    return Table(
        title="Compression", head=("step", "parameters", "MACs", "bytes", "score", ""),
        rows=tuple(rows), numbers=frozenset({1, 2, 3, 4}),
        note="scores on the validation split; bytes of weights as they are stored",
    )  # fmt: skip


def _search(facts: Facts) -> Table:
    if facts.pareto is None:
        return Table(title="Search", head=(), rows=())
    names = facts.pareto["objectives"][1:]
    rows = []
    for trial in facts.pareto["trials"]:
        if not trial["front"] and not trial["chosen"]:
            continue
        figures = [show(trial["figures"][n]["high"], trial["figures"][n]["unit"]) for n in names]
        steps = " + ".join(step["step"] for step in trial["recipe"]["steps"])
        verdict = "chosen" if trial["chosen"] else "fits" if trial["fits"] else "does not fit"
        cells = (str(trial["number"]), format_score(trial["score"]), *figures)
        rows.append((*cells, trial["widths"], steps, verdict))
    count, failed = len(facts.pareto["trials"]), len(facts.pareto["failed"])
    return Table(
        title="Search",
        head=("trial", "score", *(NAMES[n] for n in names), "widths", "steps", ""),
        rows=tuple(rows), numbers=frozenset(range(2 + len(names))),
        note=f"the Pareto front of {count} trials ({failed} more failed): validation score, and "
        "upper ends of predicted figures",
    )  # fmt: skip


def _agreements(facts: Facts) -> Table:
    rows = [
        (
            f"{a['engine']} and {a['reference']}", f"{a['largest']:.3g} {a['unit']}",
            f"{a['limit']:.3g}", f"{a['rms']:.2g}", f"{100 * a['differing']:.2f} %",
            f"{a['n_values']:,}", _verdict(a["within_limit"]),
        )
        for a in facts.audit.get("agreements", ())
    ]  # fmt: skip
    return Table(
        title="Agreement of engines",
        head=("engines", "largest difference", "limit", "rms", "values that differ", "of", ""),
        rows=tuple(rows), numbers=frozenset({1, 2, 3, 4, 5}),
    )  # fmt: skip


def _ops(facts: Facts) -> Table:
    ops: Sequence[Mapping[str, Any]] = facts.profile.get("ops", ())
    columns: list[tuple[str, str, Callable[[Any], str]]] = [
        ("macs", "MACs", "{:,}".format), ("cycles", "cycles", "{:,.0f}".format),
        ("latency_ms", "latency", format_ms), ("flash_bytes", "constants", "{:,} B".format),
        ("live_bytes", "alive", "{:,} B".format),
    ]  # fmt: skip
    used = [c for c in columns if any(c[0] in op for op in ops)]
    rows = [
        (str(op["index"]), str(op["kind"]), str(op["name"]),
         *(form(op[key]) if key in op else "" for key, _, form in used))
        for op in ops
    ]  # fmt: skip
    return Table(
        title="Operators", head=("", "operator", "layer", *(title for _, title, _ in used)),
        rows=tuple(rows), numbers=frozenset({0, *range(3, 3 + len(used))}),
    )  # fmt: skip


def show(value: float, unit: str) -> str:
    """Return a number with its unit, as people read it."""
    form = _FORMS.get(unit)
    return form(value) if form else f"{value:,.0f} {unit}"


def how(figure: Figure) -> str:
    """Say how a figure was got."""
    return figure.how + (", unvalidated" if figure.validated is False else "")


def _verdict(is_met: bool) -> str:
    return "met" if is_met else "NOT MET"


def _in_order(found: Mapping[str, Any], order: Mapping[str, str]) -> list[tuple[str, Any]]:
    """Return the pairs of `found`, those of `order` first and in its order."""
    known = [name for name in order if name in found]
    return [(name, found[name]) for name in [*known, *sorted(found.keys() - order.keys())]]
